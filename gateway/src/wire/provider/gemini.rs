//! `POST …:generateContent` and `…:streamGenerateContent`: Gemini, on its own API and on Vertex.
//!
//! The path names the model and whether the answer is a stream; a stream is server-sent events
//! with CRLF (`alt=sse`) or one JSON array whose elements come one by one. Every field has a
//! camelCase and a snake_case name, and servers take either. Reasoning is in parts marked
//! `thought`. A stream has no end mark but `finishReason` (or a block reason for the prompt).
//!
//! Source: Gemini API reference, "Generating content"; google.rpc.Status and error_details.proto.

use detectors::{Conversation, Finish, Role, Sampling, Text, Turn, Usage};
use serde_json::{Value, json};

use crate::wire::answer::Sink;
use crate::wire::framing::json::{
    Code, Flag, Gather, Gathered, List, Maybe, Num, Present, Raw, Str, StrOr, TooMany, object,
    spelt,
};
use crate::wire::refusal::{Body, Refusal, RefusalKind};
use crate::wire::request::{Dialogue, name, text_turn};
use crate::wire::rewrite::{Editor, Stretch, TextId, Unit};

object! {
    /// The request.
    struct Request<'de> {
        "systemInstruction" | "system_instruction" => system: Gathered<Contents>,
        "contents" => contents: Gathered<Contents>,
        "tools" => tools: List<Tool<'de>>,
        "generationConfig" | "generation_config" => config: Config<'de>,
    }
}

object! {
    /// What is asked of the sampler.
    struct Config<'de> {
        "maxOutputTokens" | "max_output_tokens" => max_output_tokens: Num,
        "temperature" => temperature: Num,
        "topP" | "top_p" => top_p: Num,
        "candidateCount" | "candidate_count" => candidate_count: Num,
        "responseLogprobs" | "response_logprobs" => response_logprobs: Flag,
        "logprobs" => logprobs: Num,
        "seed" => seed: Num,
        "responseMimeType" | "response_mime_type" => mime_type: Str<'de>,
        "responseSchema" | "response_schema" | "responseJsonSchema" | "response_json_schema"
            => schema: Present,
        "thinkingConfig" | "thinking_config" => thinking: Thinking<'de>,
    }
}

object! {
    /// Thinking: a budget in tokens (-1 leaves it to the model), or a level.
    struct Thinking<'de> {
        "thinkingBudget" | "thinking_budget" => budget: Num,
        "thinkingLevel" | "thinking_level" => level: Str<'de>,
    }
}

object! {
    /// Tools on offer: declared functions, or one of the provider's own.
    struct Tool<'de> {
        "functionDeclarations" | "function_declarations" => functions: List<Named<'de>>,
        "googleSearch" | "google_search" | "googleSearchRetrieval" | "google_search_retrieval"
            => search: Present,
        "codeExecution" | "code_execution" => code: Present,
        "urlContext" | "url_context" => url: Present,
    }
}

object! {
    /// Something that has a name.
    struct Named<'de> {
        "name" => name: Str<'de>,
    }
}

object! {
    /// A message of the conversation.
    struct Content<'de> {
        "role" => role: Str<'de>,
        "parts" => parts: Gathered<Parts>,
    }
}

object! {
    /// A part of a message.
    struct Part<'de> {
        "text" => text: Str<'de>,
        "functionCall" | "function_call" => call: Maybe<Named<'de>>,
        "functionResponse" | "function_response" => response: Maybe<FunctionResponse<'de>>,
        "executableCode" | "executable_code" => code: Executable<'de>,
        "codeExecutionResult" | "code_execution_result" => result: Executable<'de>,
        "inlineData" | "inline_data" | "fileData" | "file_data" => data: Present,
    }
}

object! {
    /// A tool's result.
    struct FunctionResponse<'de> {
        "response" => response: Raw<'de>,
    }
}

object! {
    /// Code that the model has run, or what came of it.
    struct Executable<'de> {
        "code" | "output" => text: Str<'de>,
    }
}

/// Reads a request.
pub(in crate::wire) fn read_request(path: &str, body: &[u8]) -> serde_json::Result<Conversation> {
    let request: Request<'_> = serde_json::from_slice(body)?;
    let Dialogue { mut system, turns } = request.contents.0.0;
    for turn in request.system.0.0.turns {
        system.join(turn.text.as_str());
    }
    let config = request.config;
    let (model, method) = model_and_method(path);
    let logprobs = config.logprobs.small();
    let budget = match config.thinking.budget {
        Num::Whole(budget) => Some(budget.to_string()),
        Num::Absent | Num::Fraction(_) => None,
    };
    Ok(Conversation {
        model: (!model.is_empty()).then(|| name(model)),
        system,
        turns,
        tools: request.tools.0.iter().flat_map(tool_names).collect(),
        sampling: Sampling {
            max_tokens: config.max_output_tokens.count(),
            temperature: config.temperature.float(),
            top_p: config.top_p.float(),
            n: config.candidate_count.small(),
            logprobs: config.response_logprobs.0 || logprobs.is_some_and(|top| top > 0),
            top_logprobs: logprobs,
            stream: method == "streamGenerateContent",
            seed: config.seed.whole(),
            reasoning: budget.or(config.thinking.level.filled().map(name)),
            structured: config.schema.0 || !matches!(config.mime_type.as_str(), "" | "text/plain"),
        },
    })
}

/// The model and the method in the last segment of a path, such as `gemini-pro:generateContent`.
pub(in crate::wire) fn model_and_method(path: &str) -> (&str, &str) {
    let path = path.split('?').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    last.rsplit_once(':').unwrap_or_default()
}

fn tool_names(tool: &Tool<'_>) -> Vec<String> {
    let declared = tool.functions.0.iter().filter_map(|function| function.name.filled());
    let own = [
        (tool.search.0, "googleSearch"),
        (tool.code.0, "codeExecution"),
        (tool.url.0, "urlContext"),
    ];
    declared
        .chain(own.into_iter().filter_map(|(there, tool)| there.then_some(tool)))
        .map(name)
        .collect()
}

/// Messages. A system instruction has the shape of one.
#[derive(Default)]
struct Contents(Dialogue);

impl Gather for Contents {
    type Item<'de> = Content<'de>;

    fn string(&mut self, text: &str) -> Result<(), TooMany> {
        self.0.push(text_turn(Role::User, text))
    }

    fn object(&mut self, content: Content<'_>) -> Result<(), TooMany> {
        let Parts { text, attachments, tool_calls, results } = content.parts.0;
        let role = match content.role.as_str() {
            "model" => Role::Assistant,
            "function" => Role::Tool,
            // `system` serves only inside a system instruction, which is told by its place.
            _ => Role::User,
        };
        let only_results = text.is_empty() && attachments == 0 && !results.is_empty();
        results.into_iter().try_for_each(|result| self.0.push(result))?;
        if only_results {
            return Ok(());
        }
        self.0.push(Turn { role, text, tool_calls, attachments })
    }
}

#[derive(Default)]
struct Parts {
    text: Text,
    attachments: u32,
    tool_calls: Vec<String>,
    /// A turn for each tool result.
    results: Vec<Turn>,
}

impl Gather for Parts {
    type Item<'de> = Part<'de>;

    fn string(&mut self, text: &str) -> Result<(), TooMany> {
        self.text.join(text);
        Ok(())
    }

    fn object(&mut self, part: Part<'_>) -> Result<(), TooMany> {
        for text in [&part.text, &part.code.text, &part.result.text] {
            self.text.join(text.as_str());
        }
        if let Some(call) = part.call.0 {
            self.tool_calls.push(name(call.name.as_str()));
        }
        if let Some(response) = part.response.0 {
            self.results.push(text_turn(Role::Tool, spelt(response.response)));
        }
        self.attachments += u32::from(part.data.0);
        Ok(())
    }
}

object! {
    /// An event of a stream, or a whole answer.
    struct Chunk<'de> {
        "candidates" => candidates: List<Candidate<'de>>,
        "usageMetadata" | "usage_metadata" => usage: Maybe<GeminiUsage>,
        "promptFeedback" | "prompt_feedback" => feedback: Feedback<'de>,
        "modelVersion" | "model_version" => model: Str<'de>,
        "error" => error: StrOr<'de, Status<'de>>,
    }
}

object! {
    /// One of the answers asked for at once.
    struct Candidate<'de> {
        "index" => index: Num,
        "content" => content: AnswerContent<'de>,
        "finishReason" | "finish_reason" => finish_reason: Str<'de>,
    }
}

object! {
    /// What a candidate says.
    struct AnswerContent<'de> {
        "parts" => parts: List<AnswerPart<'de>>,
    }
}

object! {
    /// A part of an answer.
    struct AnswerPart<'de> {
        "text" => text: Str<'de>,
        "thought" => thought: Flag,
        "functionCall" | "function_call" => call: Maybe<FunctionCall<'de>>,
    }
}

object! {
    /// A tool call, whole or (with `partialArgs`) in pieces of which only the first has a name.
    struct FunctionCall<'de> {
        "id" => id: Str<'de>,
        "name" => name: Str<'de>,
        "args" => args: Raw<'de>,
        "partialArgs" | "partial_args" => partial_args: Raw<'de>,
    }
}

object! {
    /// `usageMetadata`; thoughts are not among the candidates' tokens.
    struct GeminiUsage {
        "promptTokenCount" | "prompt_token_count" => prompt: Num,
        "toolUsePromptTokenCount" | "tool_use_prompt_token_count" => tool_use: Num,
        "candidatesTokenCount" | "candidates_token_count" => candidates: Num,
        "thoughtsTokenCount" | "thoughts_token_count" => thoughts: Num,
        "cachedContentTokenCount" | "cached_content_token_count" => cached: Num,
    }
}

object! {
    /// Why a prompt was not answered.
    struct Feedback<'de> {
        "blockReason" | "block_reason" => block_reason: Str<'de>,
    }
}

object! {
    /// google.rpc.Status as JSON.
    struct Status<'de> {
        "status" => status: Str<'de>,
        "code" => code: Code,
    }
}

/// How many tool calls have begun.
#[derive(Debug, Default)]
pub(in crate::wire) struct Progress {
    calls: u32,
}

impl Progress {
    /// Reads an event of a stream, or a whole answer.
    pub(in crate::wire) fn read_event(
        &mut self,
        data: &[u8],
        sink: &mut Sink<'_>,
    ) -> serde_json::Result<()> {
        let chunk: Chunk<'_> = serde_json::from_slice(data)?;
        sink.model(chunk.model.as_str());
        for candidate in &chunk.candidates.0 {
            let choice = candidate.index.small().unwrap_or(0);
            for part in &candidate.content.parts.0 {
                self.part(choice, part, sink);
            }
            if let Some(reason) = candidate.finish_reason.filled() {
                let calls_tools = sink.calls_tools();
                sink.finish(choice, finish(reason, calls_tools));
            }
        }
        if let Some(usage) = &chunk.usage.0 {
            let sum =
                |a: Num, b: Num| a.count().unwrap_or(0).saturating_add(b.count().unwrap_or(0));
            sink.usage(Usage {
                prompt_tokens: sum(usage.prompt, usage.tool_use),
                completion_tokens: sum(usage.candidates, usage.thoughts),
                reasoning_tokens: usage.thoughts.count().unwrap_or(0),
                cached_tokens: usage.cached.count().unwrap_or(0),
            });
        }
        if chunk.feedback.block_reason.filled().is_some() {
            sink.finish(0, Finish::Filtered);
        }
        match &chunk.error {
            StrOr::Other(error) => {
                sink.error(error.status.filled().or(error.code.filled()).unwrap_or_default());
            }
            StrOr::Str(_) => sink.error(""),
            StrOr::Absent => {}
        }
        Ok(())
    }

    fn part(&mut self, choice: u32, part: &AnswerPart<'_>, sink: &mut Sink<'_>) {
        if part.thought.0 {
            sink.reasoning(choice, part.text.as_str());
        } else {
            sink.text(choice, part.text.as_str());
        }
        if let Some(call) = &part.call.0 {
            if call.name.filled().is_some() {
                self.calls = self.calls.saturating_add(1);
                sink.tool_call(choice, self.calls - 1, call.id.as_str(), call.name.as_str());
            }
            let number = self.calls.saturating_sub(1);
            sink.arguments(choice, number, spelt(call.args));
            sink.arguments(choice, number, spelt(call.partial_args));
        }
    }
}

/// Gemini ends with STOP also where it waits for a tool's result.
fn finish(reason: &str, calls_tools: bool) -> Finish {
    match reason {
        "STOP" if calls_tools => Finish::ToolCalls,
        "STOP" => Finish::Stop,
        "MAX_TOKENS" => Finish::Length,
        "SAFETY"
        | "RECITATION"
        | "LANGUAGE"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION"
        | "MODEL_ARMOR" => Finish::Filtered,
        _ => Finish::Other,
    }
}

object! {
    /// An event of a stream, or a whole answer, with the places of its texts.
    struct PlacedChunk<'de> {
        "candidates" => candidates: List<PlacedCandidate<'de>>,
        "error" => error: Present,
    }
}

object! {
    /// One of the answers asked for at once.
    struct PlacedCandidate<'de> {
        "index" => index: Num,
        "content" => content: PlacedContent<'de>,
        "finishReason" | "finish_reason" => finish_reason: Str<'de>,
        "logprobsResult" | "logprobs_result" => logprobs: Present,
        "groundingMetadata" | "grounding_metadata" => grounding: Grounding<'de>,
        "citationMetadata" | "citation_metadata" => citations: Citations<'de>,
    }
}

object! {
    /// What a candidate says.
    struct PlacedContent<'de> {
        "parts" => parts: List<PlacedPart<'de>>,
    }
}

object! {
    /// A part of an answer.
    struct PlacedPart<'de> {
        "text" => text: Raw<'de>,
        "thought" => thought: Flag,
        "thoughtSignature" | "thought_signature" => signature: Str<'de>,
    }
}

object! {
    /// Which parts of the answer which sources support.
    struct Grounding<'de> {
        "groundingSupports" | "grounding_supports" => supports: List<Support<'de>>,
    }
}

object! {
    /// One stretch that sources support.
    struct Support<'de> {
        "segment" => segment: Segment<'de>,
    }
}

object! {
    /// A stretch of one part's text, in bytes, and the stretch itself.
    struct Segment<'de> {
        "partIndex" | "part_index" => part: Num,
        "startIndex" | "start_index" => start: Raw<'de>,
        "endIndex" | "end_index" => end: Raw<'de>,
        "text" => text: Raw<'de>,
    }
}

object! {
    /// Sources that the answer quotes.
    struct Citations<'de> {
        "citationSources" | "citation_sources" | "citations" => sources: List<Citation<'de>>,
    }
}

object! {
    /// A quoted stretch, in bytes.
    struct Citation<'de> {
        "startIndex" | "start_index" => start: Raw<'de>,
        "endIndex" | "end_index" => end: Raw<'de>,
    }
}

/// Names the places of an event's texts. All visible parts of a candidate are one text; of these, a
/// signed one is left alone.
pub(in crate::wire) fn rewrite_event(
    data: &[u8],
    editor: &mut Editor<'_>,
) -> serde_json::Result<()> {
    let chunk: PlacedChunk<'_> = serde_json::from_slice(data)?;
    for candidate in &chunk.candidates.0 {
        let id = TextId::choice(candidate.index.small().unwrap_or(0));
        if candidate.logprobs.0 {
            editor.leave(id);
        }
        let parts = &candidate.content.parts.0;
        // Where the text of each part begins.
        let mut begins = Vec::with_capacity(parts.len());
        for part in parts {
            if !begins.is_empty() || part.text.is_none() {
                // Text stays in its part.
                editor.pause(id);
            }
            begins.push(editor.length(id));
            if part.thought.0 {
                editor.reasoning(("thought", id), part.text);
                continue;
            }
            if part.signature.filled().is_some() {
                editor.fixed_text(id, part.text);
            } else {
                editor.text(id, part.text);
            }
        }
        if candidate.finish_reason.filled().is_some() {
            // Not the end for sure: older models give a reason with every event.
            editor.pause(id);
        }
        for Support { segment } in &candidate.grounding.supports.0 {
            let Segment { start, end, text, .. } = *segment;
            // In a stream the first part's offsets count from the beginning of the answer.
            let part = segment.part.count().and_then(|part| usize::try_from(part).ok());
            let part = part.filter(|part| *part > 0);
            let base = part.and_then(|part| begins.get(part)).copied().unwrap_or(0);
            editor.stretch(id, Stretch { start, end, said: text, unit: Unit::Bytes, base });
        }
        for Citation { start, end } in &candidate.citations.sources.0 {
            let (start, end) = (*start, *end);
            editor.stretch(id, Stretch { start, end, said: None, unit: Unit::Bytes, base: 0 });
        }
    }
    if chunk.error.0 {
        editor.end_all();
    }
    Ok(())
}

/// A refusal in the shape of google.rpc.Status.
pub(in crate::wire) fn refusal(refusal: &Refusal) -> Body {
    Body {
        status: refusal.status(),
        request_id_header: "x-request-id",
        json: error_object(refusal),
    }
}

/// The error as streams of server-sent events carry it.
pub(in crate::wire) fn stream_error(refusal: &Refusal) -> Vec<u8> {
    format!("data: {}\r\n\r\n", error_object(refusal)).into_bytes()
}

fn error_object(refusal: &Refusal) -> Value {
    let status = match refusal.kind {
        RefusalKind::Unauthenticated => "UNAUTHENTICATED",
        RefusalKind::PermissionDenied | RefusalKind::VerificationRequired => "PERMISSION_DENIED",
        RefusalKind::RateLimited { .. } => "RESOURCE_EXHAUSTED",
        RefusalKind::BodyTooLarge
        | RefusalKind::HeaderTooLarge
        | RefusalKind::BadRequest
        | RefusalKind::UnsupportedEncoding => "INVALID_ARGUMENT",
        RefusalKind::NotFound => "NOT_FOUND",
        RefusalKind::UpstreamUnavailable { .. } => "UNAVAILABLE",
        RefusalKind::UpstreamTimeout | RefusalKind::RequestTimeout => "DEADLINE_EXCEEDED",
    };
    let mut details = vec![json!({
        "@type": "type.googleapis.com/google.rpc.RequestInfo",
        "requestId": refusal.request_id,
    })];
    if let Some(seconds) = refusal.retry_after_seconds() {
        details.push(json!({
            "@type": "type.googleapis.com/google.rpc.RetryInfo",
            "retryDelay": format!("{seconds}s"),
        }));
    }
    if let Some(link) = &refusal.link {
        details.push(json!({
            "@type": "type.googleapis.com/google.rpc.Help",
            "links": [{ "description": "What to do", "url": link }],
        }));
    }
    json!({ "error": {
        "code": refusal.status(),
        "message": refusal.text(),
        "status": status,
        "details": details,
    } })
}
