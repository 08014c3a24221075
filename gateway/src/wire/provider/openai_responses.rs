//! `POST …/responses`: OpenAI Responses.
//!
//! A stream says the same text in up to five places: `output_text.delta`, `output_text.done`,
//! `content_part.done`, `output_item.done` and `response.completed`. Each text is counted at the
//! first of these that carries it, and whatever repeats it later is passed over. There is no
//! `[DONE]`; `response.completed`, `.incomplete` and `.failed` end the stream.
//!
//! Source: OpenAI API reference, "Responses" and "Responses streaming".

use detectors::{Conversation, Finish, Role, Sampling, Text, Turn, Usage};
use serde_json::json;

use super::openai::{Content, ErrorField, Problem, Typed, error_object, note_error, role};
use crate::limits::ANSWER_TEXTS_MAX;
use crate::wire::answer::Sink;
use crate::wire::framing::json::{
    Code, Filled, Flag, Gather, Gathered, List, Maybe, Num, Raw, Str, TooMany, object,
};
use crate::wire::refusal::Refusal;
use crate::wire::request::{Dialogue, name, text_turn};
use crate::wire::rewrite::{Editor, Stretch, TextId, Unit};

object! {
    /// The request.
    struct Request<'de> {
        "model" => model: Str<'de>,
        "instructions" => instructions: Str<'de>,
        "input" => input: Gathered<Input>,
        "tools" => tools: List<Tool<'de>>,
        "max_output_tokens" => max_output_tokens: Num,
        "temperature" => temperature: Num,
        "top_p" => top_p: Num,
        "top_logprobs" => top_logprobs: Num,
        "include" => include: List<Str<'de>>,
        "stream" => stream: Flag,
        "seed" => seed: Num,
        "reasoning" => reasoning: Reasoning<'de>,
        "text" => text: TextSettings<'de>,
    }
}

object! {
    /// Reasoning settings, with OpenRouter's budget.
    struct Reasoning<'de> {
        "effort" => effort: Str<'de>,
        "max_tokens" => budget: Num,
    }
}

object! {
    /// Settings of the answer's text.
    struct TextSettings<'de> {
        "format" => format: Typed<'de>,
    }
}

object! {
    /// A tool on offer; built-in ones have a type only.
    struct Tool<'de> {
        "type" => kind: Str<'de>,
        "name" => name: Str<'de>,
    }
}

object! {
    /// An item of the input.
    struct InputItem<'de> {
        "type" => kind: Str<'de>,
        "role" => role: Str<'de>,
        "content" => content: Gathered<Content>,
        "summary" => summary: Gathered<Content>,
        "output" => output: Gathered<Content>,
        "name" => name: Str<'de>,
    }
}

/// Reads a request.
pub(in crate::wire) fn read_request(_: &str, body: &[u8]) -> serde_json::Result<Conversation> {
    let request: Request<'_> = serde_json::from_slice(body)?;
    let tools = request.tools.0.iter();
    let top_logprobs = request.top_logprobs.small();
    let dialogue = request.input.0.0;
    let mut system = Text::new(request.instructions.into_string());
    system.join(dialogue.system.as_str());
    Ok(Conversation {
        model: request.model.filled().map(name),
        system,
        turns: dialogue.turns,
        tools: tools
            .filter_map(|tool| tool.name.filled().or(tool.kind.filled()))
            .map(name)
            .collect(),
        sampling: Sampling {
            max_tokens: request.max_output_tokens.count(),
            temperature: request.temperature.float(),
            top_p: request.top_p.float(),
            n: None,
            logprobs: top_logprobs.is_some_and(|top| top > 0)
                || request.include.0.iter().any(|part| part.as_str().ends_with(".logprobs")),
            top_logprobs,
            stream: request.stream.0,
            seed: request.seed.whole(),
            reasoning: request
                .reasoning
                .effort
                .filled()
                .map(name)
                .or_else(|| request.reasoning.budget.count().map(|budget| budget.to_string())),
            structured: request.text.format.is_structured(),
        },
    })
}

#[derive(Default)]
struct Input(Dialogue);

impl Input {
    /// The assistant's turn that is going on: what the format splits into items (reasoning, a
    /// message, calls) is one turn in every other format.
    fn assistant(&mut self) -> Result<&mut Turn, TooMany> {
        if self.0.turns.last().is_none_or(|turn| turn.role != Role::Assistant) {
            self.0.push(text_turn(Role::Assistant, ""))?;
        }
        self.0.turns.last_mut().ok_or(TooMany)
    }
}

impl Gather for Input {
    type Item<'de> = InputItem<'de>;

    fn string(&mut self, text: &str) -> Result<(), TooMany> {
        self.0.push(text_turn(Role::User, text))
    }

    fn object(&mut self, item: InputItem<'_>) -> Result<(), TooMany> {
        let kind = item.kind.as_str();
        if kind == "reasoning" {
            let turn = self.assistant()?;
            turn.text.join(item.summary.0.text.as_str());
            turn.text.join(item.content.0.text.as_str());
        } else if kind.ends_with("_call") {
            let tool = item.name.filled().unwrap_or(kind);
            self.assistant()?.tool_calls.push(name(tool));
        } else if kind.ends_with("_output") {
            let Content { text, attachments } = item.output.0;
            self.0.push(Turn { role: Role::Tool, text, tool_calls: Vec::new(), attachments })?;
        } else if matches!(kind, "" | "message") {
            let Content { text, attachments } = item.content.0;
            match role(item.role.as_str()) {
                Role::Assistant => {
                    let turn = self.assistant()?;
                    turn.text.join(text.as_str());
                    turn.attachments += attachments;
                }
                role => self.0.push(Turn { role, text, tool_calls: Vec::new(), attachments })?,
            }
        }
        // What is left refers to something that is not in the request (`item_reference`).
        Ok(())
    }
}

object! {
    /// An event of a stream, or a whole answer, which is what `response` holds in a stream.
    struct Event<'de> {
        "type" => kind: Str<'de>,
        "output_index" => output_index: Num,
        "content_index" | "summary_index" => part_index: Num,
        "delta" => delta: Str<'de>,
        "text" => text: Str<'de>,
        "refusal" => refusal: Str<'de>,
        "arguments" | "input" => arguments: Str<'de>,
        "part" => part: Part<'de>,
        "item" => item: Item<'de>,
        "response" => response: Maybe<Response<'de>>,
        "error" => error: ErrorField<'de>,
        "code" => code: Code,
        "message" => message: Str<'de>,
    }
}

object! {
    /// The answer.
    struct Response<'de> {
        "object" => object: Str<'de>,
        "model" => model: Str<'de>,
        "status" => status: Str<'de>,
        "output" => output: List<Item<'de>>,
        "usage" => usage: Maybe<ResponsesUsage>,
        "incomplete_details" => incomplete: Incomplete<'de>,
        "error" => error: ErrorField<'de>,
    }
}

object! {
    /// Why an answer is incomplete.
    struct Incomplete<'de> {
        "reason" => reason: Str<'de>,
    }
}

object! {
    /// `usage` of this format.
    struct ResponsesUsage {
        "input_tokens" => input: Num,
        "input_tokens_details" => input_details: InputDetails,
        "output_tokens" => output: Num,
        "output_tokens_details" => output_details: OutputDetails,
    }
}

object! {
    /// Parts of the input.
    struct InputDetails {
        "cached_tokens" => cached: Num,
    }
}

object! {
    /// Parts of the output.
    struct OutputDetails {
        "reasoning_tokens" => reasoning: Num,
    }
}

object! {
    /// An item of the output: a message, reasoning or a call.
    struct Item<'de> {
        "type" => kind: Str<'de>,
        "call_id" | "id" => id: Str<'de>,
        "name" => name: Str<'de>,
        "arguments" | "input" => arguments: Str<'de>,
        "content" => content: List<Part<'de>>,
        "summary" => summary: List<Part<'de>>,
    }
}

object! {
    /// A part of an item.
    struct Part<'de> {
        "type" => kind: Str<'de>,
        "text" => text: Str<'de>,
        "refusal" => refusal: Str<'de>,
    }
}

/// What a text of the answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Refusal,
    /// Reasoning as it is.
    Reasoning,
    /// Reasoning as summed up for the reader.
    Summary,
    Arguments,
}

/// Which texts of the answer have been counted.
#[derive(Debug, Default)]
pub(in crate::wire) struct Progress {
    counted: Vec<(Kind, u32, u32)>,
}

impl Progress {
    /// Reads an event of a stream, or a whole answer.
    pub(in crate::wire) fn read_event(
        &mut self,
        name: &[u8],
        data: &[u8],
        sink: &mut Sink<'_>,
    ) -> serde_json::Result<()> {
        let event: Event<'_> = serde_json::from_slice(data)?;
        let kind = match event.kind.as_str() {
            "" => std::str::from_utf8(name).unwrap_or_default(),
            kind => kind,
        };
        let output = event.output_index.small().unwrap_or(0);
        let part = event.part_index.small().unwrap_or(0);
        let delta = event.delta.as_str();
        match kind.strip_prefix("response.").unwrap_or(kind) {
            "output_text.delta" => self.delta((Kind::Text, output, part), delta, sink),
            "refusal.delta" => self.delta((Kind::Refusal, output, part), delta, sink),
            "reasoning_text.delta" => self.delta((Kind::Reasoning, output, part), delta, sink),
            "reasoning_summary_text.delta" => {
                self.delta((Kind::Summary, output, part), delta, sink);
            }
            "function_call_arguments.delta"
            | "custom_tool_call_input.delta"
            | "mcp_call_arguments.delta" => self.delta((Kind::Arguments, output, 0), delta, sink),
            "output_text.done" => {
                self.whole((Kind::Text, output, part), event.text.as_str(), sink);
            }
            "refusal.done" => {
                self.whole((Kind::Refusal, output, part), event.refusal.as_str(), sink);
            }
            "reasoning_text.done" => {
                self.whole((Kind::Reasoning, output, part), event.text.as_str(), sink);
            }
            "reasoning_summary_text.done" => {
                self.whole((Kind::Summary, output, part), event.text.as_str(), sink);
            }
            "function_call_arguments.done"
            | "custom_tool_call_input.done"
            | "mcp_call_arguments.done" => {
                self.whole((Kind::Arguments, output, 0), event.arguments.as_str(), sink);
            }
            "content_part.done" => self.part(output, part, &event.part, sink),
            "reasoning_summary_part.done" => {
                self.whole((Kind::Summary, output, part), event.part.text.as_str(), sink);
            }
            "output_item.added" => begin_call(output, &event.item, sink),
            "output_item.done" => self.item(output, &event.item, sink),
            "created" | "in_progress" | "queued" | "completed" | "incomplete" | "failed" => {
                if let Some(response) = event.response.0 {
                    self.response(&response, sink);
                }
            }
            "error" => {
                let error =
                    Problem { code: event.code, kind: Str::default(), message: event.message };
                if let ErrorField::Absent = event.error {
                    note_error(&ErrorField::Other(error), &Problem::default(), sink);
                } else {
                    note_error(&event.error, &Problem::default(), sink);
                }
            }
            // A whole answer has no `type`, and a refused request has only `error`.
            "" => self.response(&serde_json::from_slice(data)?, sink),
            _ => {}
        }
        Ok(())
    }

    fn response(&mut self, response: &Response<'_>, sink: &mut Sink<'_>) {
        sink.model(response.model.as_str());
        for (output, item) in (0_u32..).zip(&response.output.0) {
            self.item(output, item, sink);
        }
        if let Some(usage) = &response.usage.0 {
            sink.usage(Usage {
                prompt_tokens: usage.input.count().unwrap_or(0),
                completion_tokens: usage.output.count().unwrap_or(0),
                reasoning_tokens: usage.output_details.reasoning.count().unwrap_or(0),
                cached_tokens: usage.input_details.cached.count().unwrap_or(0),
            });
        }
        match (response.status.as_str(), response.incomplete.reason.as_str()) {
            ("completed", _) if sink.calls_tools() => sink.finish(0, Finish::ToolCalls),
            ("completed", _) => sink.finish(0, Finish::Stop),
            ("incomplete", "max_output_tokens") => sink.finish(0, Finish::Length),
            ("incomplete", "content_filter") => sink.finish(0, Finish::Filtered),
            ("incomplete" | "failed" | "cancelled", _) => sink.finish(0, Finish::Other),
            _ => {}
        }
        note_error(&response.error, &Problem::default(), sink);
    }

    fn item(&mut self, output: u32, item: &Item<'_>, sink: &mut Sink<'_>) {
        begin_call(output, item, sink);
        self.whole((Kind::Arguments, output, 0), item.arguments.as_str(), sink);
        for (index, part) in (0_u32..).zip(&item.summary.0) {
            self.whole((Kind::Summary, output, index), part.text.as_str(), sink);
        }
        for (index, part) in (0_u32..).zip(&item.content.0) {
            self.part(output, index, part, sink);
        }
    }

    fn part(&mut self, output: u32, index: u32, part: &Part<'_>, sink: &mut Sink<'_>) {
        let (kind, text) = match part.kind.as_str() {
            "output_text" | "text" => (Kind::Text, &part.text),
            "refusal" => (Kind::Refusal, &part.refusal),
            "reasoning_text" => (Kind::Reasoning, &part.text),
            _ => return,
        };
        self.whole((kind, output, index), text.as_str(), sink);
    }

    /// A piece of a text.
    fn delta(&mut self, key: (Kind, u32, u32), text: &str, sink: &mut Sink<'_>) {
        self.note(key);
        put(key, text, sink);
    }

    /// A whole text, which counts unless it is known already.
    fn whole(&mut self, key: (Kind, u32, u32), text: &str, sink: &mut Sink<'_>) {
        if !text.is_empty() && self.note(key) {
            put(key, text, sink);
        }
    }

    /// Remembers a text; whether it is new. The latest is looked at first, as pieces of one text
    /// mostly follow each other.
    fn note(&mut self, key: (Kind, u32, u32)) -> bool {
        if self.counted.iter().rev().any(|known| *known == key) {
            return false;
        }
        if self.counted.len() < ANSWER_TEXTS_MAX {
            self.counted.push(key);
        }
        true
    }
}

fn put((kind, output, _): (Kind, u32, u32), text: &str, sink: &mut Sink<'_>) {
    match kind {
        Kind::Text => sink.text(0, text),
        Kind::Refusal => sink.refusal(0, text),
        Kind::Reasoning | Kind::Summary => sink.reasoning(0, text),
        Kind::Arguments => sink.arguments(0, output, text),
    }
}

fn begin_call(output: u32, item: &Item<'_>, sink: &mut Sink<'_>) {
    let kind = item.kind.as_str();
    if kind.ends_with("_call") {
        sink.tool_call(0, output, item.id.as_str(), item.name.filled().unwrap_or(kind));
    }
}

object! {
    /// An event of a stream, or a whole answer, with the places of its texts.
    struct PlacedEvent<'de> {
        "type" => kind: Str<'de>,
        "output_index" => output_index: Num,
        "content_index" | "summary_index" => part_index: Num,
        "delta" => delta: Raw<'de>,
        "text" => text: Raw<'de>,
        "logprobs" => logprobs: Filled,
        "part" => part: PlacedPart<'de>,
        "item" => item: PlacedItem<'de>,
        "annotation" => annotation: Annotation<'de>,
        "response" => response: PlacedResponse<'de>,
    }
}

object! {
    /// A whole answer, of which only the texts are of interest. Its own `text` is no text.
    struct PlacedResponse<'de> {
        "output" => output: List<PlacedItem<'de>>,
    }
}

object! {
    /// An item of the output.
    struct PlacedItem<'de> {
        "content" => content: List<PlacedPart<'de>>,
        "summary" => summary: List<PlacedPart<'de>>,
    }
}

object! {
    /// A part of an item.
    struct PlacedPart<'de> {
        "type" => kind: Str<'de>,
        "text" => text: Raw<'de>,
        "logprobs" => logprobs: Filled,
        "annotations" => annotations: List<Annotation<'de>>,
    }
}

object! {
    /// What points into a text, in characters: at a stretch, or (`index`) at one place.
    struct Annotation<'de> {
        "start_index" => start: Raw<'de>,
        "end_index" => end: Raw<'de>,
        "index" => index: Raw<'de>,
    }
}

const REASONING: &str = "reasoning";
const SUMMARY: &str = "summary";

/// Names the places of an event's texts. Each text is in up to five of them.
pub(in crate::wire) fn rewrite_event(
    name: &[u8],
    data: &[u8],
    editor: &mut Editor<'_>,
) -> serde_json::Result<()> {
    let event: PlacedEvent<'_> = serde_json::from_slice(data)?;
    let kind = match event.kind.as_str() {
        "" => std::str::from_utf8(name).unwrap_or_default(),
        kind => kind,
    };
    let item = event.output_index.small().unwrap_or(0);
    let id = TextId { choice: 0, item, part: event.part_index.small().unwrap_or(0) };
    match kind.strip_prefix("response.").unwrap_or(kind) {
        "output_text.delta" => {
            if event.logprobs.0 {
                editor.leave(id);
            }
            editor.text(id, event.delta);
        }
        "output_text.done" => {
            if event.logprobs.0 {
                editor.leave(id);
            }
            editor.whole_text(id, event.text);
        }
        "output_text.annotation.added" => rewrite_annotation(id, &event.annotation, editor),
        "reasoning_text.delta" => editor.reasoning((REASONING, id), event.delta),
        "reasoning_text.done" => editor.whole_reasoning((REASONING, id), event.text),
        "reasoning_summary_text.delta" => editor.reasoning((SUMMARY, id), event.delta),
        "reasoning_summary_text.done" => editor.whole_reasoning((SUMMARY, id), event.text),
        "reasoning_summary_part.added" => editor.reasoning((SUMMARY, id), event.part.text),
        "reasoning_summary_part.done" => editor.whole_reasoning((SUMMARY, id), event.part.text),
        // Pieces follow what a part has when it is added.
        "content_part.added" => match event.part.kind.as_str() {
            "output_text" | "text" => editor.text(id, event.part.text),
            "reasoning_text" => editor.reasoning((REASONING, id), event.part.text),
            _ => {}
        },
        "content_part.done" => rewrite_part(id, &event.part, editor),
        "output_item.added" => {
            for (part, content) in (0_u32..).zip(&event.item.content.0) {
                let id = TextId { part, ..id };
                match content.kind.as_str() {
                    "output_text" | "text" => editor.text(id, content.text),
                    "reasoning_text" => editor.reasoning((REASONING, id), content.text),
                    _ => {}
                }
            }
            for (part, summary) in (0_u32..).zip(&event.item.summary.0) {
                editor.reasoning((SUMMARY, TextId { part, ..id }), summary.text);
            }
        }
        "output_item.done" => rewrite_item(item, &event.item, editor),
        "completed" | "incomplete" | "failed" => {
            rewrite_response(&event.response, editor);
            editor.end_all();
        }
        "error" => editor.end_all(),
        // A whole answer has no `type`.
        "" => rewrite_response(&serde_json::from_slice(data)?, editor),
        _ => {}
    }
    Ok(())
}

fn rewrite_response(response: &PlacedResponse<'_>, editor: &mut Editor<'_>) {
    for (index, item) in (0_u32..).zip(&response.output.0) {
        rewrite_item(index, item, editor);
    }
}

fn rewrite_item(item: u32, placed: &PlacedItem<'_>, editor: &mut Editor<'_>) {
    for (part, summary) in (0_u32..).zip(&placed.summary.0) {
        let id = TextId { choice: 0, item, part };
        editor.whole_reasoning((SUMMARY, id), summary.text);
    }
    for (part, content) in (0_u32..).zip(&placed.content.0) {
        rewrite_part(TextId { choice: 0, item, part }, content, editor);
    }
}

fn rewrite_part(id: TextId, part: &PlacedPart<'_>, editor: &mut Editor<'_>) {
    match part.kind.as_str() {
        "output_text" | "text" => {
            if part.logprobs.0 {
                editor.leave(id);
            }
            editor.whole_text(id, part.text);
            for annotation in &part.annotations.0 {
                rewrite_annotation(id, annotation, editor);
            }
        }
        "reasoning_text" => editor.whole_reasoning((REASONING, id), part.text),
        _ => {}
    }
}

fn rewrite_annotation(id: TextId, annotation: &Annotation<'_>, editor: &mut Editor<'_>) {
    let Annotation { start, end, index } = *annotation;
    let stretch = Stretch { start, end, said: None, unit: Unit::Chars, base: 0 };
    editor.stretch(id, stretch);
    editor.stretch(id, Stretch { start: index, end: None, ..stretch });
}

/// The error as streams carry it. Documented is the flat form and sent is the nested one; clients
/// look for either, so both are there.
pub(in crate::wire) fn stream_error(refusal: &Refusal) -> Vec<u8> {
    let error = error_object(refusal);
    let event = json!({
        "type": "error",
        "sequence_number": 0,
        "code": error["code"],
        "message": error["message"],
        "param": null,
        "error": error,
    });
    format!("event: error\ndata: {event}\n\n").into_bytes()
}
