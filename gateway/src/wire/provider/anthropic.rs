//! `POST …/v1/messages`: Anthropic Messages.
//!
//! A tool's result travels in a user message here; it becomes a turn of its own, as in the other
//! formats. Reasoning is in `thinking` blocks; signatures, redacted thinking and citations carry
//! no text of the answer. `input_tokens` leaves cached tokens out, so the prompt is the sum of
//! three counts, and a stream's last count of each stands. Errors may come inside a 200
//! (`event: error`).
//!
//! Source: Anthropic API reference, "Messages", "Streaming messages", "Errors".

use detectors::{Conversation, Finish, Role, Sampling, Text, Turn, Usage};
use serde_json::{Value, json};

use super::openai::{ErrorField, Problem, note_error};
use crate::wire::answer::Sink;
use crate::wire::framing::json::{
    Flag, Gather, Gathered, List, Maybe, Num, Present, Raw, Str, TooMany, object, spelt,
};
use crate::wire::refusal::{Body, Refusal, RefusalKind};
use crate::wire::request::{Dialogue, name, text_turn};
use crate::wire::rewrite::{Editor, TextId};

object! {
    /// The request.
    struct Request<'de> {
        "model" => model: Str<'de>,
        "system" => system: Gathered<Blocks>,
        "messages" => messages: Gathered<Messages>,
        "tools" => tools: List<Tool<'de>>,
        "max_tokens" => max_tokens: Num,
        "temperature" => temperature: Num,
        "top_p" => top_p: Num,
        "stream" => stream: Flag,
        "thinking" => thinking: Thinking<'de>,
        "output_config" => output_config: OutputConfig<'de>,
        "output_format" => output_format: Present,
    }
}

object! {
    /// Extended thinking.
    struct Thinking<'de> {
        "type" => kind: Str<'de>,
        "budget_tokens" => budget: Num,
    }
}

object! {
    /// Settings of the output.
    struct OutputConfig<'de> {
        "effort" => effort: Str<'de>,
        "format" => format: Present,
    }
}

object! {
    /// A tool on offer; the provider's own have a name too.
    struct Tool<'de> {
        "name" => name: Str<'de>,
        "type" => kind: Str<'de>,
    }
}

object! {
    /// A message of the conversation.
    struct Message<'de> {
        "role" => role: Str<'de>,
        "content" => content: Gathered<Blocks>,
    }
}

object! {
    /// A content block of a request.
    struct Block<'de> {
        "type" => kind: Str<'de>,
        "text" => text: Str<'de>,
        "thinking" => thinking: Str<'de>,
        "name" => name: Str<'de>,
        "content" => content: Gathered<Blocks>,
        "source" => source: Source<'de>,
    }
}

object! {
    /// What a document is made of.
    struct Source<'de> {
        "type" => kind: Str<'de>,
        "data" => data: Str<'de>,
        "content" => content: Gathered<Blocks>,
    }
}

/// Reads a request.
pub(in crate::wire) fn read_request(_: &str, body: &[u8]) -> serde_json::Result<Conversation> {
    let request: Request<'_> = serde_json::from_slice(body)?;
    let Dialogue { system: leading, turns } = request.messages.0.0;
    let mut system = request.system.0.text;
    system.join(leading.as_str());
    let tools = request.tools.0.iter();
    let budget = request.thinking.budget.count().map(|budget| budget.to_string());
    let thinking = request.thinking.kind.filled().filter(|kind| *kind != "disabled").map(name);
    Ok(Conversation {
        model: request.model.filled().map(name),
        system,
        turns,
        tools: tools
            .filter_map(|tool| tool.name.filled().or(tool.kind.filled()))
            .map(name)
            .collect(),
        sampling: Sampling {
            max_tokens: request.max_tokens.count(),
            temperature: request.temperature.float(),
            top_p: request.top_p.float(),
            stream: request.stream.0,
            reasoning: budget.or(request.output_config.effort.filled().map(name)).or(thinking),
            structured: request.output_format.0 || request.output_config.format.0,
            ..Sampling::default()
        },
    })
}

#[derive(Default)]
struct Messages(Dialogue);

impl Gather for Messages {
    type Item<'de> = Message<'de>;

    fn string(&mut self, text: &str) -> Result<(), TooMany> {
        self.0.push(text_turn(Role::User, text))
    }

    fn object(&mut self, message: Message<'_>) -> Result<(), TooMany> {
        let role = super::openai::role(message.role.as_str());
        let Blocks { text, attachments, tool_calls, results } = message.content.0;
        let only_results = text.is_empty() && attachments == 0 && !results.is_empty();
        let turn = Turn { role, text, tool_calls, attachments };
        if role == Role::Assistant {
            // Results of the provider's own tools follow the call inside the same message.
            self.0.push(turn)?;
            return results.into_iter().try_for_each(|result| self.0.push(result));
        }
        results.into_iter().try_for_each(|result| self.0.push(result))?;
        if only_results { Ok(()) } else { self.0.push(turn) }
    }
}

/// Content: a string or blocks.
#[derive(Debug, Default)]
struct Blocks {
    text: Text,
    attachments: u32,
    tool_calls: Vec<String>,
    /// A turn for each tool result.
    results: Vec<Turn>,
}

impl Gather for Blocks {
    type Item<'de> = Block<'de>;

    fn string(&mut self, text: &str) -> Result<(), TooMany> {
        self.text.join(text);
        Ok(())
    }

    fn object(&mut self, block: Block<'_>) -> Result<(), TooMany> {
        let inner = block.content.0;
        match block.kind.as_str() {
            "" | "text" => self.text.join(block.text.as_str()),
            "thinking" => self.text.join(block.thinking.as_str()),
            "compaction" | "search_result" => self.text.join(inner.text.as_str()),
            "redacted_thinking" => {}
            "document" => {
                self.attachments += 1;
                if block.source.kind.as_str() == "text" {
                    self.text.join(block.source.data.as_str());
                }
                self.text.join(block.source.content.0.text.as_str());
            }
            kind if kind.ends_with("tool_use") => self.tool_calls.push(name(block.name.as_str())),
            kind if kind.ends_with("tool_result") => self.results.push(Turn {
                role: Role::Tool,
                text: inner.text,
                tool_calls: Vec::new(),
                attachments: inner.attachments,
            }),
            _ => self.attachments += 1,
        }
        Ok(())
    }
}

object! {
    /// An event of a stream, or a whole answer, which has the fields of `message`.
    struct Event<'de> {
        "type" => kind: Str<'de>,
        "index" => index: Num,
        "message" => message: Maybe<Started<'de>>,
        "content_block" => block: AnswerBlock<'de>,
        "delta" => delta: Delta<'de>,
        "model" => model: Str<'de>,
        "content" => content: List<AnswerBlock<'de>>,
        "stop_reason" => stop_reason: Str<'de>,
        "usage" => usage: AnthropicUsage,
        "error" => error: ErrorField<'de>,
    }
}

object! {
    /// The message that a stream starts with.
    struct Started<'de> {
        "model" => model: Str<'de>,
        "usage" => usage: AnthropicUsage,
    }
}

object! {
    /// A block of the answer.
    struct AnswerBlock<'de> {
        "type" => kind: Str<'de>,
        "id" => id: Str<'de>,
        "name" => name: Str<'de>,
        "text" => text: Str<'de>,
        "thinking" => thinking: Str<'de>,
        "input" => input: Raw<'de>,
    }
}

object! {
    /// A piece of a block, or the end of the message. The other kinds (signatures, citations,
    /// compactions) have none of these fields.
    struct Delta<'de> {
        "text" => text: Str<'de>,
        "thinking" => thinking: Str<'de>,
        "partial_json" => partial_json: Str<'de>,
        "stop_reason" => stop_reason: Str<'de>,
    }
}

object! {
    /// `usage`, of which later events repeat what has changed.
    #[derive(Clone, Copy, Debug)]
    struct AnthropicUsage {
        "input_tokens" => input: Num,
        "cache_creation_input_tokens" => cache_creation: Num,
        "cache_read_input_tokens" => cache_read: Num,
        "output_tokens" => output: Num,
        "output_tokens_details" => output_details: OutputDetails,
    }
}

object! {
    /// Parts of the output.
    #[derive(Clone, Copy, Debug)]
    struct OutputDetails {
        "thinking_tokens" => thinking: Num,
    }
}

/// The usage so far.
#[derive(Debug, Default)]
pub(in crate::wire) struct Progress {
    input: Option<u64>,
    cache_creation: Option<u64>,
    cache_read: Option<u64>,
    output: Option<u64>,
    thinking: Option<u64>,
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
        let index = event.index.small().unwrap_or(0);
        match kind {
            "content_block_delta" => {
                sink.text(0, event.delta.text.as_str());
                sink.reasoning(0, event.delta.thinking.as_str());
                sink.arguments(0, index, event.delta.partial_json.as_str());
            }
            "content_block_start" => read_block(index, &event.block, false, sink),
            "message_start" => {
                if let Some(message) = event.message.0 {
                    sink.model(message.model.as_str());
                    self.usage(&message.usage, sink);
                }
            }
            "message_delta" => {
                self.usage(&event.usage, sink);
                end(event.delta.stop_reason.as_str(), sink);
            }
            "message_stop" => sink.end(),
            "message" => {
                sink.model(event.model.as_str());
                for (index, block) in (0_u32..).zip(&event.content.0) {
                    read_block(index, block, true, sink);
                }
                self.usage(&event.usage, sink);
                end(event.stop_reason.as_str(), sink);
            }
            _ => {}
        }
        note_error(&event.error, &Problem::default(), sink);
        Ok(())
    }

    fn usage(&mut self, usage: &AnthropicUsage, sink: &mut Sink<'_>) {
        self.input = usage.input.count().or(self.input);
        self.cache_creation = usage.cache_creation.count().or(self.cache_creation);
        self.cache_read = usage.cache_read.count().or(self.cache_read);
        self.output = usage.output.count().or(self.output);
        self.thinking = usage.output_details.thinking.count().or(self.thinking);
        if self.input.is_some() || self.output.is_some() {
            let prompt = [self.input, self.cache_creation, self.cache_read];
            sink.usage(Usage {
                prompt_tokens: prompt.into_iter().flatten().fold(0, u64::saturating_add),
                completion_tokens: self.output.unwrap_or(0),
                reasoning_tokens: self.thinking.unwrap_or(0),
                cached_tokens: self.cache_read.unwrap_or(0),
            });
        }
    }
}

fn read_block(index: u32, block: &AnswerBlock<'_>, whole: bool, sink: &mut Sink<'_>) {
    match block.kind.as_str() {
        "text" => sink.text(0, block.text.as_str()),
        "thinking" => sink.reasoning(0, block.thinking.as_str()),
        kind if kind.ends_with("tool_use") => {
            sink.tool_call(0, index, block.id.as_str(), block.name.as_str());
            // A stream starts a call with empty input and sends the arguments in pieces.
            let input = spelt(block.input);
            if whole || input != "{}" {
                sink.arguments(0, index, input);
            }
        }
        _ => {}
    }
}

fn end(stop_reason: &str, sink: &mut Sink<'_>) {
    let finish = match stop_reason {
        "" => return,
        "end_turn" | "stop_sequence" => Finish::Stop,
        "max_tokens" | "model_context_window_exceeded" => Finish::Length,
        "tool_use" => Finish::ToolCalls,
        "refusal" => Finish::Filtered,
        _ => Finish::Other,
    };
    sink.finish(0, finish);
}

object! {
    /// An event of a stream, or a whole answer, with the places of its texts.
    struct PlacedEvent<'de> {
        "type" => kind: Str<'de>,
        "index" => index: Num,
        "content_block" => block: PlacedBlock<'de>,
        "delta" => delta: PlacedDelta<'de>,
        "content" => content: List<PlacedBlock<'de>>,
    }
}

object! {
    /// A block of the answer.
    struct PlacedBlock<'de> {
        "type" => kind: Str<'de>,
        "text" => text: Raw<'de>,
        "thinking" => thinking: Raw<'de>,
        "citations" => citations: Raw<'de>,
    }
}

object! {
    /// A piece of a block.
    struct PlacedDelta<'de> {
        "type" => kind: Str<'de>,
        "text" => text: Raw<'de>,
        "thinking" => thinking: Raw<'de>,
    }
}

/// Names the places of an event's texts.
///
/// Text with citations is left alone. Withheld thinking has the shape of the API's own omitted
/// thinking (an empty text, and the signature that carries the whole of it encrypted), which
/// clients therefore know. Source: Anthropic API reference, `thinking.display`.
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
    let id = block_id(event.index.small().unwrap_or(0));
    match kind {
        "content_block_start" => rewrite_block(id, &event.block, editor),
        "content_block_delta" if event.delta.kind.as_str() == "citations_delta" => editor.leave(id),
        "content_block_delta" => {
            editor.text(id, event.delta.text);
            editor.reasoning(("thinking", id), event.delta.thinking);
        }
        "content_block_stop" => editor.end(id),
        "message" => {
            for (index, block) in (0_u32..).zip(&event.content.0) {
                rewrite_block(block_id(index), block, editor);
            }
        }
        "message_delta" | "message_stop" | "error" => editor.end_all(),
        _ => {}
    }
    Ok(())
}

fn block_id(index: u32) -> TextId {
    TextId { item: index, ..TextId::default() }
}

fn rewrite_block(id: TextId, block: &PlacedBlock<'_>, editor: &mut Editor<'_>) {
    match block.kind.as_str() {
        "text" => {
            if block.citations.is_some() {
                editor.leave(id);
            }
            editor.text(id, block.text);
        }
        "thinking" => editor.reasoning(("thinking", id), block.thinking),
        _ => {}
    }
}

/// A refusal in Anthropic's shape.
pub(in crate::wire) fn refusal(refusal: &Refusal) -> Body {
    Body { status: refusal.status(), request_id_header: "request-id", json: error_object(refusal) }
}

/// The error as streams carry it.
pub(in crate::wire) fn stream_error(refusal: &Refusal) -> Vec<u8> {
    format!("event: error\ndata: {}\n\n", error_object(refusal)).into_bytes()
}

fn error_object(refusal: &Refusal) -> Value {
    let kind = match refusal.kind {
        RefusalKind::Unauthenticated => "authentication_error",
        RefusalKind::PermissionDenied | RefusalKind::VerificationRequired => "permission_error",
        RefusalKind::RateLimited { .. } => "rate_limit_error",
        RefusalKind::BodyTooLarge => "request_too_large",
        RefusalKind::BadRequest
        | RefusalKind::HeaderTooLarge
        | RefusalKind::UnsupportedEncoding => "invalid_request_error",
        RefusalKind::NotFound => "not_found_error",
        RefusalKind::UpstreamUnavailable { retry_after: Some(_) } => "overloaded_error",
        RefusalKind::UpstreamUnavailable { retry_after: None } => "api_error",
        RefusalKind::UpstreamTimeout | RefusalKind::RequestTimeout => "timeout_error",
    };
    json!({
        "type": "error",
        "error": { "type": kind, "message": refusal.text() },
        "request_id": refusal.request_id,
    })
}
