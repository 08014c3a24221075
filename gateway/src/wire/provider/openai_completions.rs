//! `POST …/completions`: OpenAI's legacy completions, as vLLM and others still serve them, and
//! Mistral's fill-in-the-middle, which answers in the shape of a chat.
//!
//! A prompt is a string, an array of strings (several prompts at once), or token numbers, which
//! cannot be read and count as an attachment.
//!
//! Source: OpenAI API reference, "Completions"; Mistral API reference, "FIM".

use detectors::{Conversation, Role, Sampling, Text, Turn};
use serde::de::IgnoredAny;

use super::openai::{ChatUsage, ErrorField, Problem, finish, note_error};
use crate::wire::answer::Sink;
use crate::wire::framing::json::{
    Code, Flag, Gather, Gathered, List, Maybe, Num, Present, Raw, Str, TooMany, object,
};
use crate::wire::request::{Dialogue, name, text_turn};
use crate::wire::rewrite::{Editor, TextId};

object! {
    /// The request.
    struct Request<'de> {
        "model" => model: Str<'de>,
        "prompt" => prompt: Gathered<Prompts>,
        "suffix" => suffix: Str<'de>,
        "max_tokens" => max_tokens: Num,
        "temperature" => temperature: Num,
        "top_p" => top_p: Num,
        "n" => n: Num,
        "logprobs" => logprobs: Num,
        "prompt_logprobs" => prompt_logprobs: Flag,
        "stream" => stream: Flag,
        "seed" => seed: Num,
        "random_seed" => random_seed: Num,
        "structured_outputs" | "guided_json" | "guided_regex" | "guided_choice" | "guided_grammar"
            => guided: Present,
    }
}

/// Reads a request. The suffix, which the answer is to lead up to, joins the last prompt.
pub(in crate::wire) fn read_request(_: &str, body: &[u8]) -> serde_json::Result<Conversation> {
    let request: Request<'_> = serde_json::from_slice(body)?;
    let mut turns = request.prompt.0.finish();
    match (turns.last_mut(), request.suffix.filled()) {
        (Some(turn), Some(suffix)) => turn.text.join(suffix),
        (None, Some(suffix)) => turns.push(text_turn(Role::User, suffix)),
        (_, None) => {}
    }
    let top_logprobs = request.logprobs.small();
    Ok(Conversation {
        model: request.model.filled().map(name),
        system: Text::default(),
        turns,
        tools: Vec::new(),
        sampling: Sampling {
            max_tokens: request.max_tokens.count(),
            temperature: request.temperature.float(),
            top_p: request.top_p.float(),
            n: request.n.small(),
            // Here `logprobs` is the number of alternatives; zero still gives the chosen token's.
            logprobs: top_logprobs.is_some() || request.prompt_logprobs.0,
            top_logprobs,
            stream: request.stream.0,
            seed: request.seed.whole().or(request.random_seed.whole()),
            reasoning: None,
            structured: request.guided.0,
        },
    })
}

/// The prompts: each string is one, and so is each array of token numbers.
#[derive(Default)]
struct Prompts {
    dialogue: Dialogue,
    /// Numbers of an array that has not ended.
    tokens: bool,
}

impl Prompts {
    fn finish(self) -> Vec<Turn> {
        self.dialogue.turns
    }
}

impl Gather for Prompts {
    type Item<'de> = IgnoredAny;

    fn string(&mut self, text: &str) -> Result<(), TooMany> {
        self.dialogue.push(text_turn(Role::User, text))
    }

    fn object(&mut self, _: IgnoredAny) -> Result<(), TooMany> {
        Ok(())
    }

    fn number(&mut self) {
        self.tokens = true;
    }

    fn end_of_array(&mut self) -> Result<(), TooMany> {
        if std::mem::take(&mut self.tokens) {
            self.dialogue.push(Turn { attachments: 1, ..text_turn(Role::User, "") })?;
        }
        Ok(())
    }
}

object! {
    /// An event of a stream, or a whole answer.
    struct Chunk<'de> {
        "model" => model: Str<'de>,
        "choices" => choices: List<Choice<'de>>,
        "usage" => usage: Maybe<ChatUsage>,
        "error" => error: ErrorField<'de>,
        "code" => code: Code,
        "type" => kind: Str<'de>,
    }
}

object! {
    /// One of the answers asked for at once.
    struct Choice<'de> {
        "index" => index: Num,
        "text" => text: Str<'de>,
        "delta" | "message" => said: Said<'de>,
        "finish_reason" => finish_reason: Str<'de>,
    }
}

object! {
    /// The chat shape of a fill-in-the-middle answer.
    struct Said<'de> {
        "content" => content: Str<'de>,
    }
}

/// Reads an event of a stream, or a whole answer.
pub(in crate::wire) fn read_event(data: &[u8], sink: &mut Sink<'_>) -> serde_json::Result<()> {
    let chunk: Chunk<'_> = serde_json::from_slice(data)?;
    sink.model(chunk.model.as_str());
    for choice in &chunk.choices.0 {
        let index = choice.index.small().unwrap_or(0);
        sink.text(index, choice.text.filled().unwrap_or(choice.said.content.as_str()));
        if let Some(reason) = choice.finish_reason.filled() {
            sink.finish(index, finish(reason));
        }
    }
    if let Some(usage) = chunk.usage.0 {
        sink.usage(usage.normalise());
    }
    let top_level = Problem { code: chunk.code, kind: chunk.kind, message: Str::default() };
    note_error(&chunk.error, &top_level, sink);
    Ok(())
}

object! {
    /// An event of a stream, or a whole answer, with the places of its texts.
    struct PlacedChunk<'de> {
        "choices" => choices: List<PlacedChoice<'de>>,
        "error" => error: Present,
    }
}

object! {
    /// One of the answers asked for at once. Its `logprobs` spell out its text.
    struct PlacedChoice<'de> {
        "index" => index: Num,
        "text" => text: Raw<'de>,
        "delta" | "message" => said: PlacedSaid<'de>,
        "logprobs" => logprobs: Present,
        "finish_reason" => finish_reason: Str<'de>,
    }
}

object! {
    /// The chat shape of a fill-in-the-middle answer.
    struct PlacedSaid<'de> {
        "content" => content: Raw<'de>,
    }
}

/// Names the places of an event's texts.
pub(in crate::wire) fn rewrite_event(
    data: &[u8],
    editor: &mut Editor<'_>,
) -> serde_json::Result<()> {
    let chunk: PlacedChunk<'_> = serde_json::from_slice(data)?;
    for choice in &chunk.choices.0 {
        let id = TextId::choice(choice.index.small().unwrap_or(0));
        if choice.logprobs.0 {
            editor.leave(id);
        }
        editor.text(id, choice.text.or(choice.said.content));
        if choice.finish_reason.filled().is_some() {
            editor.end(id);
        }
    }
    if chunk.error.0 {
        editor.end_all();
    }
    Ok(())
}
