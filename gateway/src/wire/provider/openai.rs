//! What the three OpenAI formats have in common: content parts, usage, errors, refusals.

use detectors::{Finish, Role, Text, Usage};
use serde_json::{Value, json};

use crate::wire::answer::Sink;
use crate::wire::framing::json::{Code, Gather, Gathered, Num, Str, StrOr, TooMany, object};
use crate::wire::refusal::{Body, Refusal, RefusalKind};

/// The role that a message names.
pub(super) fn role(role: &str) -> Role {
    match role {
        "assistant" | "model" => Role::Assistant,
        "tool" | "function" => Role::Tool,
        "system" | "developer" => Role::System,
        _ => Role::User,
    }
}

/// Content of a message: a string, or parts, of which those without text are counted.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) text: Text,
    pub(super) attachments: u32,
}

object! {
    /// A content part of the chat and Responses formats; Mistral's thinking parts too.
    pub(super) struct Part<'de> {
        "type" => kind: Str<'de>,
        "text" => text: Str<'de>,
        "refusal" => refusal: Str<'de>,
        "thinking" => thinking: Gathered<Content>,
    }
}

impl Gather for Content {
    type Item<'de> = Part<'de>;

    fn string(&mut self, text: &str) -> Result<(), TooMany> {
        self.text.join(text);
        Ok(())
    }

    fn object(&mut self, part: Part<'_>) -> Result<(), TooMany> {
        match part.kind.as_str() {
            "" | "text" | "input_text" | "output_text" | "summary_text" | "reasoning_text" => {
                self.text.join(part.text.as_str());
            }
            "refusal" => self.text.join(part.refusal.as_str()),
            "thinking" => self.text.join(part.thinking.0.text.as_str()),
            _ => self.attachments += 1,
        }
        Ok(())
    }
}

object! {
    /// Something that has a type, such as a response format.
    pub(super) struct Typed<'de> {
        "type" => kind: Str<'de>,
    }
}

impl Typed<'_> {
    /// Whether a response format asks for JSON or a schema.
    pub(super) fn is_structured(&self) -> bool {
        !matches!(self.kind.as_str(), "" | "text")
    }
}

object! {
    /// `usage` of the chat and completions formats, with DeepSeek's spelling of cached tokens.
    pub(super) struct ChatUsage {
        "prompt_tokens" => prompt: Num,
        "completion_tokens" => completion: Num,
        "total_tokens" => total: Num,
        "prompt_tokens_details" => prompt_details: PromptDetails,
        "completion_tokens_details" => completion_details: CompletionDetails,
        "prompt_cache_hit_tokens" => cache_hit: Num,
    }
}

object! {
    /// Parts of the prompt.
    pub(super) struct PromptDetails {
        "cached_tokens" => cached: Num,
    }
}

object! {
    /// Parts of the completion.
    pub(super) struct CompletionDetails {
        "reasoning_tokens" => reasoning: Num,
    }
}

impl ChatUsage {
    /// The usage in the common terms. Some compatibles leave reasoning out of the completion but
    /// not out of the total, so the completion is what the prompt leaves of the total.
    pub(super) fn normalise(&self) -> Usage {
        let prompt = self.prompt.count().unwrap_or(0);
        let completion = self.completion.count().unwrap_or(0);
        let rest = self.total.count().unwrap_or(0).saturating_sub(prompt);
        let cached = self.prompt_details.cached.count().or(self.cache_hit.count());
        Usage {
            prompt_tokens: prompt,
            completion_tokens: completion.max(rest),
            reasoning_tokens: self.completion_details.reasoning.count().unwrap_or(0),
            cached_tokens: cached.unwrap_or(0),
        }
    }
}

/// The reason why a choice ended.
pub(super) fn finish(reason: &str) -> Finish {
    match reason {
        "stop" | "eos" => Finish::Stop,
        "length" | "model_length" | "max_tokens" => Finish::Length,
        "tool_calls" | "function_call" => Finish::ToolCalls,
        "content_filter" => Finish::Filtered,
        _ => Finish::Other,
    }
}

object! {
    /// An error object, of a refused request or inside a stream.
    pub(super) struct Problem<'de> {
        "code" => code: Code,
        "type" => kind: Str<'de>,
        "message" => message: Str<'de>,
    }
}

/// The `error` field of an answer: an object, or bare words.
pub(super) type ErrorField<'de> = StrOr<'de, Problem<'de>>;

/// Notes the error of an answer, if there is one. `top_level` is for servers (Mistral, FastAPI)
/// that put code and type at the top of a refusal.
pub(super) fn note_error(error: &ErrorField<'_>, top_level: &Problem<'_>, sink: &mut Sink<'_>) {
    let problem = match error {
        StrOr::Other(problem) => problem,
        StrOr::Str(_) => return sink.error(""),
        StrOr::Absent if sink.is_error() => top_level,
        StrOr::Absent => return,
    };
    match problem.code.filled().or(problem.kind.filled()) {
        Some(code) => sink.error(code),
        None if problem.message.filled().is_some() || sink.is_error() => sink.error(""),
        // An empty object in a successful answer reports nothing.
        None => {}
    }
}

/// A refusal in OpenAI's shape.
pub(in crate::wire) fn refusal(refusal: &Refusal) -> Body {
    let body = json!({ "error": error_object(refusal) });
    Body { status: refusal.status(), request_id_header: "x-request-id", json: body }
}

/// The error as chat and completions streams carry it.
pub(in crate::wire) fn stream_error(refusal: &Refusal) -> Vec<u8> {
    format!("data: {}\n\n", json!({ "error": error_object(refusal) })).into_bytes()
}

pub(super) fn error_object(refusal: &Refusal) -> Value {
    let (kind, code) = match refusal.kind {
        RefusalKind::Unauthenticated => ("invalid_request_error", Some("invalid_api_key")),
        RefusalKind::PermissionDenied => ("invalid_request_error", Some("permission_denied")),
        RefusalKind::VerificationRequired => {
            ("invalid_request_error", Some("verification_required"))
        }
        RefusalKind::RateLimited { .. } => ("requests", Some("rate_limit_exceeded")),
        RefusalKind::BodyTooLarge => ("invalid_request_error", Some("request_too_large")),
        RefusalKind::HeaderTooLarge => ("invalid_request_error", Some("headers_too_large")),
        RefusalKind::RequestTimeout => ("invalid_request_error", Some("request_timeout")),
        RefusalKind::BadRequest => ("invalid_request_error", None),
        RefusalKind::NotFound => ("invalid_request_error", Some("not_found")),
        RefusalKind::UnsupportedEncoding => ("invalid_request_error", Some("unsupported_encoding")),
        RefusalKind::UpstreamUnavailable { .. } => ("server_error", Some("service_unavailable")),
        RefusalKind::UpstreamTimeout => ("server_error", Some("timeout")),
    };
    json!({ "message": refusal.text(), "type": kind, "param": null, "code": code })
}
