"""Checks this folder of evidence: its files' hashes and the chain of the audit. Needs Python 3.8."""
import hashlib, json, pathlib, sys

folder = pathlib.Path(__file__).resolve().parent
sha256 = lambda data: hashlib.sha256(data).hexdigest()
lines = lambda name: (folder / name).read_bytes().decode().split("\n")[:-1]
listed = {line[66:]: line[:64] for line in lines("SHA256SUMS")}
found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
if found - {"SHA256SUMS", "SHA256SUMS.sig"} != set(listed):
    sys.exit("FAILED: the files are not those that SHA256SUMS lists")
for name, digest in listed.items():
    if sha256((folder / name).read_bytes()) != digest:
        sys.exit("FAILED: " + name + " was changed")
told = json.loads((folder / "evidence.json").read_text())
seq, last, texts = told["after"]["seq"], told["after"]["hash"], set()
for line in lines("audit.ndjson"):
    link = json.loads(line)
    if "entry" in link:  # {"hash":"64 digits","entry":TEXT}, the text byte for byte
        text = line[83:-1]
        texts.add(text)
        number, digest = json.loads(text)["seq"], sha256(text.encode())
    else:
        number, digest = link["seq"], link["digest"]
    seq += 1
    last = sha256((last + digest).encode())
    if (number, link["hash"]) != (seq, last):
        sys.exit("FAILED: the audit's chain is broken at entry " + str(seq))
if {"seq": seq, "hash": last} != told["head"]:
    sys.exit("FAILED: the chain does not end at its head")
for name in ("decisions.ndjson", "takedowns.ndjson", "marks.ndjson"):
    if not set(lines(name)) <= texts:
        sys.exit("FAILED: " + name + " has an entry that is not in the audit")
for path in folder.glob("policies/*.toml"):
    if sha256(path.read_bytes())[:16] != path.stem:
        sys.exit("FAILED: " + path.name + " is not the policy of this version")
print("OK: %d files, entries %d to %d, head %d:%s"
      % (len(listed), told["after"]["seq"] + 1, seq, seq, last))
