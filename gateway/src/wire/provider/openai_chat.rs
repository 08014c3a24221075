//! `POST …/chat/completions`: OpenAI, and what is compatible with it (Mistral, DeepSeek, vLLM,
//! Groq, OpenRouter, Azure).
//!
//! Where the text is: `choices[].delta.content` (a string, or Mistral's array of text and thinking
//! parts) and `.refusal`; reasoning in `.reasoning_content` (DeepSeek), `.reasoning` (Groq,
//! OpenRouter) or `.reasoning_details` (OpenRouter); a server that sends several of these says the
//! same in each, so one counts. Choices interleave when `n` is above 1. Azure's first event has no
//! choices. An event with `error` may come inside a 200.
//!
//! Source: OpenAI API reference, "Chat" and "Chat streaming"; the compatibles' own references.

use detectors::{Conversation, Role, Sampling, Turn};

use super::openai::{ChatUsage, Content, ErrorField, Problem, Typed, finish, note_error, role};
use crate::wire::answer::Sink;
use crate::wire::framing::json::{
    Code, Filled, Flag, Gather, Gathered, List, Maybe, Num, Present, Raw, Str, StrOr, TooMany,
    object,
};
use crate::wire::request::{Dialogue, name};
use crate::wire::rewrite::{Editor, Stretch, TextId, Unit};

object! {
    /// The request, with the fields of the compatibles.
    struct Request<'de> {
        "model" => model: Str<'de>,
        "messages" => messages: Gathered<Messages>,
        "tools" => tools: List<Tool<'de>>,
        "functions" => functions: List<Named<'de>>,
        "max_tokens" => max_tokens: Num,
        "max_completion_tokens" => max_completion_tokens: Num,
        "temperature" => temperature: Num,
        "top_p" => top_p: Num,
        "n" => n: Num,
        "logprobs" => logprobs: Flag,
        "top_logprobs" => top_logprobs: Num,
        "prompt_logprobs" => prompt_logprobs: Flag,
        "stream" => stream: Flag,
        "seed" => seed: Num,
        "random_seed" => random_seed: Num,
        "reasoning_effort" => effort: Str<'de>,
        "reasoning" => reasoning: Reasoning<'de>,
        "thinking" => thinking: Reasoning<'de>,
        "response_format" => response_format: Typed<'de>,
        "structured_outputs" | "guided_json" | "guided_regex" | "guided_choice" | "guided_grammar"
            => guided: Present,
    }
}

object! {
    /// OpenRouter's `reasoning`, and the `thinking` of gateways in front of other providers.
    struct Reasoning<'de> {
        "effort" => effort: Str<'de>,
        "max_tokens" | "budget_tokens" => budget: Num,
    }
}

object! {
    /// A message of the conversation.
    struct Message<'de> {
        "role" => role: Str<'de>,
        "content" => content: Gathered<Content>,
        "refusal" => refusal: Str<'de>,
        "reasoning_content" => reasoning_content: Str<'de>,
        "reasoning" => reasoning: Str<'de>,
        "tool_calls" => tool_calls: List<Tool<'de>>,
        "function_call" => function_call: Named<'de>,
    }
}

object! {
    /// A tool on offer, or a call of it.
    struct Tool<'de> {
        "type" => kind: Str<'de>,
        "function" | "custom" => function: Named<'de>,
        "name" => name: Str<'de>,
    }
}

impl Tool<'_> {
    fn name(&self) -> &str {
        let names = [&self.function.name, &self.name, &self.kind];
        names.into_iter().find_map(Str::filled).unwrap_or_default()
    }
}

object! {
    /// Something that has a name.
    struct Named<'de> {
        "name" => name: Str<'de>,
    }
}

/// Reads a request.
pub(in crate::wire) fn read_request(_: &str, body: &[u8]) -> serde_json::Result<Conversation> {
    let request: Request<'_> = serde_json::from_slice(body)?;
    let tools = request.tools.0.iter().map(Tool::name);
    let functions = request.functions.0.iter().map(|function| function.name.as_str());
    let top_logprobs = request.top_logprobs.small();
    let Dialogue { system, turns } = request.messages.0.0;
    Ok(Conversation {
        model: request.model.filled().map(name),
        system,
        turns,
        tools: tools.chain(functions).filter(|tool| !tool.is_empty()).map(name).collect(),
        sampling: Sampling {
            max_tokens: request.max_completion_tokens.count().or(request.max_tokens.count()),
            temperature: request.temperature.float(),
            top_p: request.top_p.float(),
            n: request.n.small(),
            logprobs: request.logprobs.0
                || request.prompt_logprobs.0
                || top_logprobs.is_some_and(|top| top > 0),
            top_logprobs,
            stream: request.stream.0,
            seed: request.seed.whole().or(request.random_seed.whole()),
            reasoning: [&request.effort, &request.reasoning.effort]
                .into_iter()
                .find_map(|effort| effort.filled().map(name))
                .or_else(|| {
                    let budgets = [request.reasoning.budget, request.thinking.budget];
                    budgets.into_iter().find_map(Num::count).map(|budget| budget.to_string())
                }),
            structured: request.response_format.is_structured() || request.guided.0,
        },
    })
}

#[derive(Default)]
struct Messages(Dialogue);

impl Gather for Messages {
    type Item<'de> = Message<'de>;

    fn string(&mut self, text: &str) -> Result<(), TooMany> {
        self.0.push(crate::wire::request::text_turn(Role::User, text))
    }

    fn object(&mut self, message: Message<'_>) -> Result<(), TooMany> {
        let Content { mut text, attachments } = message.content.0;
        text.join(message.refusal.as_str());
        // Reasoning handed back is read by the model like the rest of the message.
        text.join(message.reasoning_content.filled().unwrap_or(message.reasoning.as_str()));
        let calls = message.tool_calls.0.iter().map(Tool::name);
        let calls = calls.chain(message.function_call.name.filled());
        let tool_calls = calls.filter(|call| !call.is_empty()).map(name).collect();
        self.0.push(Turn { role: role(message.role.as_str()), text, tool_calls, attachments })
    }
}

object! {
    /// An event of a stream, or a whole answer.
    struct Chunk<'de> {
        "model" => model: Str<'de>,
        "choices" => choices: List<Choice<'de>>,
        "usage" => usage: Maybe<ChatUsage>,
        "x_groq" => x_groq: Groq,
        "error" => error: ErrorField<'de>,
        "code" => code: Code,
        "type" => kind: Str<'de>,
    }
}

object! {
    /// Groq's own corner, where its older streams put the usage.
    struct Groq {
        "usage" => usage: Maybe<ChatUsage>,
    }
}

object! {
    /// One of the answers asked for at once.
    struct Choice<'de> {
        "index" => index: Num,
        "delta" | "message" => delta: Said<'de>,
        "finish_reason" => finish_reason: Str<'de>,
    }
}

object! {
    /// What a choice says, in a piece or whole.
    struct Said<'de> {
        "content" => content: StrOr<'de, Gathered<Pieces>>,
        "refusal" => refusal: Str<'de>,
        "reasoning_content" => reasoning_content: Str<'de>,
        "reasoning" => reasoning: Str<'de>,
        "reasoning_details" => reasoning_details: Gathered<Details>,
        "tool_calls" => tool_calls: List<Call<'de>>,
        "function_call" => function_call: Function<'de>,
    }
}

object! {
    /// A tool call, in a piece or whole.
    struct Call<'de> {
        "index" => index: Num,
        "id" => id: Str<'de>,
        "function" | "custom" => function: Function<'de>,
    }
}

object! {
    /// A tool's name and a piece of its arguments.
    struct Function<'de> {
        "name" => name: Str<'de>,
        "arguments" | "input" => arguments: Str<'de>,
    }
}

/// Reads an event of a stream, or a whole answer.
pub(in crate::wire) fn read_event(data: &[u8], sink: &mut Sink<'_>) -> serde_json::Result<()> {
    let chunk: Chunk<'_> = serde_json::from_slice(data)?;
    sink.model(chunk.model.as_str());
    for choice in &chunk.choices.0 {
        let index = choice.index.small().unwrap_or(0);
        read_said(index, &choice.delta, sink);
        if let Some(reason) = choice.finish_reason.filled() {
            sink.finish(index, finish(reason));
        }
    }
    if let Some(usage) = chunk.usage.0.or(chunk.x_groq.usage.0) {
        sink.usage(usage.normalise());
    }
    let top_level = Problem { code: chunk.code, kind: chunk.kind, message: Str::default() };
    note_error(&chunk.error, &top_level, sink);
    Ok(())
}

fn read_said(choice: u32, said: &Said<'_>, sink: &mut Sink<'_>) {
    let (content, thinking): (&str, &str) = match &said.content {
        StrOr::Absent => ("", ""),
        StrOr::Str(text) => (text, ""),
        StrOr::Other(Gathered(pieces)) => (&pieces.text, &pieces.thinking),
    };
    let reasoning = [said.reasoning_content.as_str(), said.reasoning.as_str()];
    let details = [thinking, said.reasoning_details.0.0.as_str()];
    let reasoning = reasoning.into_iter().chain(details).find(|text| !text.is_empty());
    sink.reasoning(choice, reasoning.unwrap_or_default());
    sink.text(choice, content);
    sink.refusal(choice, said.refusal.as_str());
    for (position, call) in (0_u32..).zip(&said.tool_calls.0) {
        // Mistral and whole answers do not number their calls.
        let number = call.index.small().unwrap_or(position);
        sink.tool_call(choice, number, call.id.as_str(), call.function.name.as_str());
        sink.arguments(choice, number, call.function.arguments.as_str());
    }
    if said.function_call.name.filled().is_some() {
        sink.tool_call(choice, 0, "", said.function_call.name.as_str());
    }
    sink.arguments(choice, 0, said.function_call.arguments.as_str());
}

/// Mistral's content parts, the pieces of each kind put together.
#[derive(Default)]
struct Pieces {
    text: String,
    thinking: String,
}

object! {
    /// A content part of an answer.
    struct PiecePart<'de> {
        "type" => kind: Str<'de>,
        "text" => text: Str<'de>,
        "thinking" => thinking: Gathered<Pieces>,
    }
}

impl Gather for Pieces {
    type Item<'de> = PiecePart<'de>;

    fn string(&mut self, text: &str) -> Result<(), TooMany> {
        self.text.push_str(text);
        Ok(())
    }

    fn object(&mut self, part: PiecePart<'_>) -> Result<(), TooMany> {
        match part.kind.as_str() {
            "thinking" => self.thinking.push_str(&part.thinking.0.text),
            _ => self.text.push_str(part.text.as_str()),
        }
        Ok(())
    }
}

/// OpenRouter's `reasoning_details`, those that can be read put together.
#[derive(Default)]
struct Details(String);

object! {
    /// One detail: text or a summary; encrypted ones have neither.
    struct Detail<'de> {
        "text" | "summary" => text: Str<'de>,
    }
}

impl Gather for Details {
    type Item<'de> = Detail<'de>;

    fn string(&mut self, _: &str) -> Result<(), TooMany> {
        Ok(())
    }

    fn object(&mut self, detail: Detail<'_>) -> Result<(), TooMany> {
        self.0.push_str(detail.text.as_str());
        Ok(())
    }
}

object! {
    /// An event of a stream, or a whole answer, with the places of its texts.
    struct PlacedChunk<'de> {
        "choices" => choices: List<PlacedChoice<'de>>,
        "error" => error: Present,
    }
}

object! {
    /// One of the answers asked for at once.
    struct PlacedChoice<'de> {
        "index" => index: Num,
        "delta" | "message" => said: PlacedSaid<'de>,
        "logprobs" => logprobs: Logprobs,
        "finish_reason" => finish_reason: Str<'de>,
    }
}

object! {
    /// The probabilities of a choice's tokens, which spell out its text.
    struct Logprobs {
        "content" => content: Filled,
    }
}

object! {
    /// What a choice says, in a piece or whole.
    struct PlacedSaid<'de> {
        "content" => content: Raw<'de>,
        "reasoning_content" => reasoning_content: Raw<'de>,
        "reasoning" => reasoning: Raw<'de>,
        "reasoning_details" => reasoning_details: List<PlacedDetail<'de>>,
        "tool_calls" => tool_calls: Filled,
        "thinking_blocks" => thinking_blocks: List<PlacedPart<'de>>,
        "provider_specific_fields" => specific: Specific<'de>,
        "annotations" => annotations: List<Annotation<'de>>,
    }
}

object! {
    /// LiteLLM's corner, where it repeats another provider's reasoning.
    struct Specific<'de> {
        "reasoning_content" => reasoning_content: Raw<'de>,
        "thinking_blocks" => thinking_blocks: List<PlacedPart<'de>>,
    }
}

object! {
    /// One of OpenRouter's `reasoning_details`.
    struct PlacedDetail<'de> {
        "text" => text: Raw<'de>,
        "summary" => summary: Raw<'de>,
    }
}

object! {
    /// A content part of Mistral's.
    struct PlacedPart<'de> {
        "type" => kind: Str<'de>,
        "text" => text: Raw<'de>,
        "thinking" => thinking: Raw<'de>,
    }
}

object! {
    /// What points into the text.
    struct Annotation<'de> {
        "url_citation" => citation: Citation<'de>,
    }
}

object! {
    /// The stretch that a page was cited for, in characters.
    struct Citation<'de> {
        "start_index" => start: Raw<'de>,
        "end_index" => end: Raw<'de>,
    }
}

/// Names the places of an event's texts. Tool arguments, refusals and transcripts are no text.
pub(in crate::wire) fn rewrite_event(
    data: &[u8],
    editor: &mut Editor<'_>,
) -> serde_json::Result<()> {
    let chunk: PlacedChunk<'_> = serde_json::from_slice(data)?;
    for choice in &chunk.choices.0 {
        let id = TextId::choice(choice.index.small().unwrap_or(0));
        let said = &choice.said;
        editor.reasoning(("reasoning_content", id), said.reasoning_content);
        editor.reasoning(("reasoning", id), said.reasoning);
        for detail in &said.reasoning_details.0 {
            editor.reasoning(("reasoning_details", id), detail.text);
            editor.reasoning(("reasoning_details", id), detail.summary);
        }
        for block in &said.thinking_blocks.0 {
            editor.reasoning(("thinking_blocks", id), block.thinking);
        }
        editor.reasoning(("specific", id), said.specific.reasoning_content);
        for block in &said.specific.thinking_blocks.0 {
            editor.reasoning(("specific blocks", id), block.thinking);
        }
        if choice.logprobs.content.0 {
            editor.leave(id);
        }
        rewrite_content(id, said.content, editor);
        if said.tool_calls.0 {
            editor.pause(id);
        }
        if choice.finish_reason.filled().is_some() {
            editor.end(id);
        }
        for Annotation { citation } in &said.annotations.0 {
            let Citation { start, end } = *citation;
            let unit = Unit::Chars;
            editor.stretch(id, Stretch { start, end, said: None, unit, base: 0 });
        }
    }
    if chunk.error.0 {
        editor.end_all();
    }
    Ok(())
}

/// A string, or Mistral's array of strings, text and thinking parts.
fn rewrite_content(id: TextId, content: Raw<'_>, editor: &mut Editor<'_>) {
    let Some(array) = content.filter(|content| content.get().starts_with('[')) else {
        return editor.text(id, content);
    };
    let Ok(List(parts)) = serde_json::from_str::<List<Raw<'_>>>(array.get()) else {
        return editor.leave(id);
    };
    for (position, part) in parts.into_iter().enumerate() {
        if position > 0 {
            // Text stays in its part.
            editor.pause(id);
        }
        let Some(object) = part.filter(|part| part.get().starts_with('{')) else {
            editor.text(id, part);
            continue;
        };
        let Ok(part) = serde_json::from_str::<PlacedPart<'_>>(object.get()) else {
            editor.leave(id);
            continue;
        };
        match part.kind.as_str() {
            "thinking" => rewrite_thinking(id, part.thinking, editor),
            _ => editor.text(id, part.text),
        }
    }
}

/// Mistral's thinking: a string, or an array of strings and text parts.
fn rewrite_thinking(id: TextId, thinking: Raw<'_>, editor: &mut Editor<'_>) {
    editor.reasoning(("thinking", id), thinking);
    let parts = thinking.map(|thinking| serde_json::from_str::<List<Raw<'_>>>(thinking.get()));
    for part in parts.and_then(Result::ok).unwrap_or_default().0 {
        editor.reasoning(("thinking", id), part);
        let part = part.map(|part| serde_json::from_str::<PlacedPart<'_>>(part.get()));
        if let Some(Ok(part)) = part {
            editor.reasoning(("thinking", id), part.text);
        }
    }
}
