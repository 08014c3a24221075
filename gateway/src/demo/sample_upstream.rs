//! A model API in miniature, for `stillgate demo` and for tests.
//!
//! It answers OpenAI chat, Responses and legacy completions, Anthropic Messages and Gemini, whole
//! and streamed, with the event sequences of the providers' own documentation, so that their SDKs
//! parse every answer. What it says is `prose.rs`, chosen by a hash of the last question: the
//! same question gets the same answer. Token counts are one for four characters.
//!
//! A request that offers tools gets a call when it names one of them, says "weather", or demands
//! one; a request that asks for reasoning gets some; a schema gets a JSON text that fits it.
//! Events follow each other after [`DELAY_DEFAULT`], or `x-sample-delay-ms` (at most
//! [`DELAY_MAX`]). Any credential is accepted: it is a sample, not a provider.
//!
//! Sources: <https://platform.openai.com/docs/api-reference>, <https://docs.anthropic.com/en/api>,
//! <https://ai.google.dev/api>.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::Stream;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::time::{Instant, Sleep, sleep};

use super::prose;

/// Time between two events of a stream.
pub const DELAY_DEFAULT: Duration = Duration::from_millis(5);
/// The longest that a request may ask for.
pub const DELAY_MAX: Duration = Duration::from_millis(200);

/// Request body. As much as the proxy itself lets through.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Answers to one request, and tool calls in one answer.
const CHOICES_MAX: u64 = 8;
/// Nesting of a schema that is filled in.
const SCHEMA_DEPTH_MAX: usize = 8;
/// Models that the lists name. Others are answered as well.
const MODELS: &[&str] = &["sample-large", "sample-small"];

/// Serves the sample API until `shutdown`.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router()).with_graceful_shutdown(shutdown).await
}

/// The sample API with [`DELAY_DEFAULT`] between events.
pub fn router() -> Router {
    router_paced(DELAY_DEFAULT)
}

/// The sample API with `delay` between events where the request does not ask for another.
pub fn router_paced(delay: Duration) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/responses", post(responses))
        .route("/v1/completions", post(completions))
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model).post(gemini))
        .route("/v1beta/models", get(gemini_models))
        .route("/v1beta/models/{model}", get(gemini_model).post(gemini))
        .fallback(async || openai_error(StatusCode::NOT_FOUND, "there is no such path"))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Pace { delay })
}

// ---- OpenAI chat completions ----

async fn chat(State(pace): State<Pace>, headers: HeaderMap, body: Bytes) -> Response {
    let body = match object(&body) {
        Ok(body) => body,
        Err(message) => return openai_error(StatusCode::BAD_REQUEST, &message),
    };
    let Some(messages) = body["messages"].as_array().filter(|list| !list.is_empty()) else {
        return openai_error(StatusCode::BAD_REQUEST, "messages must be a list with an entry");
    };
    let Some(model) = body["model"].as_str() else {
        return openai_error(StatusCode::BAD_REQUEST, "you must provide a model");
    };
    let effort = body["reasoning_effort"].as_str().or(body["reasoning"]["effort"].as_str());
    let ask = Ask {
        question: last_of(messages, "user"),
        prompt_chars: chars_in(&body["messages"]) + chars_in(&body["tools"]),
        tools: named_tools(&body["tools"], "parameters"),
        tool_use: ToolUse::of(&body["tool_choice"]),
        after_tool: messages.last().is_some_and(|message| message["role"] == "tool"),
        tokens_max: number(&body, &["max_completion_tokens", "max_tokens"]),
        reasons: effort.is_some_and(|effort| effort != "none"),
        schema: match body["response_format"]["type"].as_str() {
            Some("json_schema") => Some(body["response_format"]["json_schema"]["schema"].clone()),
            Some("json_object") => Some(json!({})),
            _ => None,
        },
    };
    let choices: Vec<Said> = (0..choices(&body["n"])).map(|index| say(&ask, index)).collect();
    let stamp = Stamp::new(&ask);
    let alternatives = body["logprobs"]
        .as_bool()
        .unwrap_or(false)
        .then(|| body["top_logprobs"].as_u64().unwrap_or(0));
    let usage = chat_usage(&ask, &choices);
    if body["stream"] == true {
        let include_usage = body["stream_options"]["include_usage"] == true;
        let mut chunks: Vec<Value> = interleaved(
            choices
                .iter()
                .enumerate()
                .map(|(index, said)| {
                    chat_deltas(index, said, alternatives, &stamp, whole_calls(&headers))
                })
                .collect(),
        )
        .into_iter()
        .map(|choice| json!([choice]))
        .collect();
        if include_usage {
            chunks.push(json!([]));
        }
        let last = chunks.len() - 1;
        let chunks = chunks.into_iter().enumerate().map(|(index, choices)| {
            let mut chunk = json!({
                "id": stamp.id("chatcmpl-"), "object": "chat.completion.chunk",
                "created": stamp.created, "model": model, "service_tier": "default",
                "system_fingerprint": "fp_sample", "choices": choices,
            });
            if include_usage {
                chunk["usage"] = if index == last { usage.clone() } else { Value::Null };
            }
            chunk
        });
        let events = chunks.map(|chunk| data(&chunk)).chain([DONE.to_owned()]).collect();
        return pace.stream(&headers, EVENT_STREAM, events);
    }
    let choices: Vec<Value> = choices
        .iter()
        .enumerate()
        .map(|(index, said)| {
            let mut message = json!({ "role": "assistant", "refusal": null, "annotations": [] });
            message["content"] = if said.calls.is_empty() { json!(said.text) } else { Value::Null };
            if let Some(thoughts) = &said.thoughts {
                message["reasoning_content"] = json!(thoughts);
            }
            if !said.calls.is_empty() {
                let calls = said.calls.iter().enumerate();
                message["tool_calls"] = calls
                    .map(|(at, call)| {
                        json!({
                            "id": stamp.part("call_", index, at), "type": "function",
                            "function": { "name": call.name, "arguments": call.arguments() },
                        })
                    })
                    .collect();
            }
            json!({
                "index": index, "message": message,
                "logprobs": alternatives.map(|count| chat_logprobs(&said.pieces(), count)),
                "finish_reason": chat_finish(said),
            })
        })
        .collect();
    let answer = json!({
        "id": stamp.id("chatcmpl-"), "object": "chat.completion", "created": stamp.created,
        "model": model, "choices": choices, "usage": usage, "service_tier": "default",
        "system_fingerprint": "fp_sample",
    });
    pace.whole(&headers, &answer).await
}

/// The chunks of one choice.
fn chat_deltas(
    index: usize,
    said: &Said,
    alternatives: Option<u64>,
    stamp: &Stamp,
    whole_calls: bool,
) -> Vec<Value> {
    let choice = |delta: Value, finish: Option<&str>| json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": finish });
    let content = if said.calls.is_empty() { json!("") } else { Value::Null };
    let mut deltas =
        vec![choice(json!({ "role": "assistant", "content": content, "refusal": null }), None)];
    for piece in said.thoughts.as_deref().map(pieces).unwrap_or_default() {
        deltas.push(choice(json!({ "reasoning_content": piece }), None));
    }
    for piece in said.pieces() {
        let mut delta = choice(json!({ "content": piece }), None);
        if let Some(count) = alternatives {
            delta["logprobs"] = chat_logprobs(&[piece], count);
        }
        deltas.push(delta);
    }
    for (at, call) in said.calls.iter().enumerate() {
        let arguments = call.arguments();
        let start = json!([{
            "index": at, "id": stamp.part("call_", index, at), "type": "function",
            "function": {
                "name": call.name, "arguments": if whole_calls { &*arguments } else { "" },
            },
        }]);
        deltas.push(choice(json!({ "tool_calls": start }), None));
        for part in fragments(&arguments).into_iter().filter(|_| !whole_calls) {
            let more = json!([{ "index": at, "function": { "arguments": part } }]);
            deltas.push(choice(json!({ "tool_calls": more }), None));
        }
    }
    deltas.push(choice(json!({}), Some(chat_finish(said))));
    deltas
}

/// Mistral, whose format is otherwise this one, sends a tool call in one piece, and its SDK takes no
/// other.
fn whole_calls(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    agent.is_some_and(|agent| agent.starts_with("mistral"))
}

fn chat_finish(said: &Said) -> &'static str {
    match said {
        Said { calls, .. } if !calls.is_empty() => "tool_calls",
        Said { is_cut: true, .. } => "length",
        Said { .. } => "stop",
    }
}

fn chat_logprobs(pieces: &[&str], alternatives: u64) -> Value {
    let content: Vec<Value> = pieces
        .iter()
        .map(|piece| {
            let mut entry = logprob(piece, 0);
            entry["top_logprobs"] =
                (0..alternatives.min(20)).map(|rank| logprob(piece, rank)).collect();
            entry
        })
        .collect();
    json!({ "content": content, "refusal": null })
}

/// A token's entry; alternatives of a higher rank are other spellings, each less likely.
fn logprob(piece: &str, rank: u64) -> Value {
    let token = if rank == 0 { piece.to_owned() } else { format!("{piece}{rank}") };
    json!({ "token": token, "bytes": token.as_bytes(), "logprob": likelihood(piece, rank) })
}

fn likelihood(piece: &str, rank: u64) -> f64 {
    let spread = f64::from(digest(piece.as_bytes())[0]) / 512.0;
    let steps = f64::from(u32::try_from(rank).unwrap_or(u32::MAX));
    -(spread + 0.001) - steps * 1.5
}

fn chat_usage(ask: &Ask, choices: &[Said]) -> Value {
    let completion: usize = choices.iter().map(Said::tokens).sum();
    let reasoning: usize = choices.iter().map(Said::reasoning_tokens).sum();
    json!({
        "prompt_tokens": ask.prompt_tokens(), "completion_tokens": completion,
        "total_tokens": ask.prompt_tokens() + completion,
        "prompt_tokens_details": { "cached_tokens": 0, "audio_tokens": 0 },
        "completion_tokens_details": {
            "reasoning_tokens": reasoning, "audio_tokens": 0, "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    })
}

// ---- OpenAI legacy completions ----

async fn completions(State(pace): State<Pace>, headers: HeaderMap, body: Bytes) -> Response {
    let body = match object(&body) {
        Ok(body) => body,
        Err(message) => return openai_error(StatusCode::BAD_REQUEST, &message),
    };
    let Some(model) = body["model"].as_str() else {
        return openai_error(StatusCode::BAD_REQUEST, "you must provide a model");
    };
    let prompts: Vec<String> = match &body["prompt"] {
        Value::String(prompt) => vec![prompt.clone()],
        Value::Array(list) if list.iter().all(Value::is_number) => vec![body["prompt"].to_string()],
        Value::Array(list) => list
            .iter()
            .map(|prompt| prompt.as_str().map_or_else(|| prompt.to_string(), str::to_owned))
            .collect(),
        _ => vec![String::new()],
    };
    let asks: Vec<Ask> = prompts
        .iter()
        .take(usize::try_from(CHOICES_MAX).unwrap_or(1))
        .map(|prompt| Ask {
            question: prompt.clone(),
            prompt_chars: prompt.chars().count(),
            tokens_max: number(&body, &["max_tokens"]).or(Some(16)),
            ..Ask::default()
        })
        .collect();
    let choices: Vec<Said> = asks
        .iter()
        .flat_map(|ask| (0..choices(&body["n"])).map(move |index| say(ask, index)))
        .collect();
    let stamp = asks.first().map_or_else(|| Stamp::new(&Ask::default()), Stamp::new);
    let prompt_tokens: usize = asks.iter().map(Ask::prompt_tokens).sum();
    let completion_tokens: usize = choices.iter().map(Said::tokens).sum();
    let usage = json!({
        "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    });
    let alternatives = body["logprobs"].as_u64();
    let choice = |index: usize, text: &str, offset: usize, finish: Option<&str>| {
        let logprobs = alternatives.map(|count| completion_logprobs(&pieces(text), offset, count));
        json!({ "text": text, "index": index, "logprobs": logprobs, "finish_reason": finish })
    };
    let answer = |choices: Value| {
        json!({
            "id": stamp.id("cmpl-"), "object": "text_completion", "created": stamp.created,
            "model": model, "choices": choices,
        })
    };
    if body["stream"] == true {
        let deltas = choices.iter().enumerate().map(|(index, said)| {
            let mut offset = 0;
            let mut deltas = Vec::new();
            for piece in said.pieces() {
                deltas.push(choice(index, piece, offset, None));
                offset += piece.chars().count();
            }
            deltas.push(choice(index, "", offset, Some(chat_finish(said))));
            deltas
        });
        let mut events: Vec<String> = interleaved(deltas.collect())
            .into_iter()
            .map(|choice| data(&answer(json!([choice]))))
            .collect();
        if body["stream_options"]["include_usage"] == true {
            let mut last = answer(json!([]));
            last["usage"] = usage;
            events.push(data(&last));
        }
        events.push(DONE.to_owned());
        return pace.stream(&headers, EVENT_STREAM, events);
    }
    let choices = choices.iter().enumerate();
    let mut answer = answer(
        choices.map(|(i, said)| choice(i, &said.text, 0, Some(chat_finish(said)))).collect(),
    );
    answer["usage"] = usage;
    pace.whole(&headers, &answer).await
}

fn completion_logprobs(pieces: &[&str], offset: usize, alternatives: u64) -> Value {
    let mut offsets = Vec::new();
    let mut at = offset;
    for piece in pieces {
        offsets.push(at);
        at += piece.chars().count();
    }
    let top: Vec<Map<String, Value>> = pieces
        .iter()
        .map(|piece| {
            let ranks = 0..alternatives.min(5);
            ranks
                .map(|rank| {
                    let entry = logprob(piece, rank);
                    let token = entry["token"].as_str().unwrap_or_default().to_owned();
                    (token, entry["logprob"].clone())
                })
                .collect()
        })
        .collect();
    let likelihoods: Vec<f64> = pieces.iter().map(|piece| likelihood(piece, 0)).collect();
    json!({
        "tokens": pieces, "token_logprobs": likelihoods, "top_logprobs": top,
        "text_offset": offsets,
    })
}

// ---- OpenAI Responses ----

async fn responses(State(pace): State<Pace>, headers: HeaderMap, body: Bytes) -> Response {
    let body = match object(&body) {
        Ok(body) => body,
        Err(message) => return openai_error(StatusCode::BAD_REQUEST, &message),
    };
    if !body["model"].is_string() {
        return openai_error(StatusCode::BAD_REQUEST, "you must provide a model");
    }
    let items = body["input"].as_array().map(Vec::as_slice).unwrap_or_default();
    let reasoning = &body["reasoning"];
    let format = &body["text"]["format"];
    let ask = Ask {
        question: match &body["input"] {
            Value::String(input) => input.clone(),
            _ => last_of(items, "user"),
        },
        prompt_chars: [&body["input"], &body["instructions"], &body["tools"]]
            .iter()
            .map(|part| chars_in(part))
            .sum(),
        tools: named_tools(&body["tools"], "parameters"),
        tool_use: ToolUse::of(&body["tool_choice"]),
        after_tool: items.last().is_some_and(|item| item["type"] == "function_call_output"),
        tokens_max: number(&body, &["max_output_tokens"]),
        reasons: reasoning.is_object() && reasoning["effort"] != "none",
        schema: match format["type"].as_str() {
            Some("json_schema") => Some(format["schema"].clone()),
            Some("json_object") => Some(json!({})),
            _ => None,
        },
    };
    let said = say(&ask, 0);
    let stamp = Stamp::new(&ask);
    let logprobs = body["include"]
        .as_array()
        .is_some_and(|list| list.iter().any(|what| what == "message.output_text.logprobs"));
    let answer = ResponsesAnswer {
        alternatives: logprobs.then(|| body["top_logprobs"].as_u64().unwrap_or(0)),
        body: &body,
        ask: &ask,
        said: &said,
        stamp: &stamp,
    };
    if body["stream"] == true {
        pace.stream(&headers, EVENT_STREAM, answer.events())
    } else {
        pace.whole(&headers, &answer.response(Stage::Ended)).await
    }
}

struct ResponsesAnswer<'a> {
    body: &'a Value,
    ask: &'a Ask,
    said: &'a Said,
    stamp: &'a Stamp,
    alternatives: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begun,
    Ended,
}

impl ResponsesAnswer<'_> {
    /// The response object.
    fn response(&self, stage: Stage) -> Value {
        let (body, said) = (self.body, self.said);
        let or = |name: &str, default: Value| {
            if body[name].is_null() { default } else { body[name].clone() }
        };
        let (status, incomplete, output, usage) = match stage {
            Stage::Begun => ("in_progress", Value::Null, json!([]), Value::Null),
            Stage::Ended if said.is_cut => (
                "incomplete",
                json!({ "reason": "max_output_tokens" }),
                json!(self.output()),
                self.usage(),
            ),
            Stage::Ended => ("completed", Value::Null, json!(self.output()), self.usage()),
        };
        json!({
            "id": self.stamp.id("resp_"), "object": "response", "created_at": self.stamp.created,
            "status": status, "background": false, "error": null,
            "incomplete_details": incomplete, "instructions": body["instructions"],
            "max_output_tokens": body["max_output_tokens"], "max_tool_calls": null,
            "model": body["model"], "output": output,
            "parallel_tool_calls": or("parallel_tool_calls", json!(true)),
            "previous_response_id": body["previous_response_id"], "prompt_cache_key": null,
            "reasoning": {
                "effort": body["reasoning"]["effort"], "summary": body["reasoning"]["summary"],
            },
            "safety_identifier": null, "service_tier": "default",
            "store": or("store", json!(true)), "temperature": or("temperature", json!(1.0)),
            "text": or("text", json!({ "format": { "type": "text" }, "verbosity": "medium" })),
            "tool_choice": or("tool_choice", json!("auto")), "tools": or("tools", json!([])),
            "top_logprobs": or("top_logprobs", json!(0)), "top_p": or("top_p", json!(1.0)),
            "truncation": "disabled", "usage": usage, "user": null,
            "metadata": or("metadata", json!({})),
        })
    }

    fn usage(&self) -> Value {
        let (input, output) = (self.ask.prompt_tokens(), self.said.tokens());
        json!({
            "input_tokens": input, "input_tokens_details": { "cached_tokens": 0, "cache_write_tokens": 0 },
            "output_tokens": output,
            "output_tokens_details": { "reasoning_tokens": self.said.reasoning_tokens() },
            "total_tokens": input + output,
        })
    }

    /// The items of the finished output.
    fn output(&self) -> Vec<Value> {
        let mut items = Vec::new();
        if self.said.thoughts.is_some() {
            items.push(self.reasoning_item(true));
        }
        if self.said.calls.is_empty() {
            items.push(self.message_item(true));
        }
        for (at, call) in self.said.calls.iter().enumerate() {
            items.push(self.call_item(at, call, true));
        }
        items
    }

    /// The summary that is shown: none unless it was asked for.
    fn summary(&self) -> Option<&str> {
        let asked = self.body["reasoning"]["summary"].is_string()
            || self.body["reasoning"]["generate_summary"].is_string();
        self.said.thoughts.as_deref().filter(|_| asked)
    }

    fn reasoning_item(&self, finished: bool) -> Value {
        let summary: Vec<Value> = self
            .summary()
            .filter(|_| finished)
            .map(|text| json!({ "type": "summary_text", "text": text }))
            .into_iter()
            .collect();
        let mut item =
            json!({ "id": self.stamp.id("rs_"), "type": "reasoning", "summary": summary });
        let include = self.body["include"].as_array();
        if include.is_some_and(|list| list.iter().any(|what| what == "reasoning.encrypted_content"))
        {
            item["encrypted_content"] = json!(self.stamp.sealed());
        }
        item
    }

    fn message_item(&self, finished: bool) -> Value {
        let status = match (finished, self.said.is_cut) {
            (false, _) => "in_progress",
            (true, true) => "incomplete",
            (true, false) => "completed",
        };
        let content = if finished { json!([self.text_part(&self.said.text)]) } else { json!([]) };
        json!({
            "id": self.stamp.id("msg_"), "type": "message", "status": status,
            "content": content, "role": "assistant",
        })
    }

    fn text_part(&self, text: &str) -> Value {
        json!({
            "type": "output_text", "annotations": [], "logprobs": self.logprobs(&pieces(text)),
            "text": text,
        })
    }

    fn logprobs(&self, pieces: &[&str]) -> Value {
        self.alternatives
            .map_or_else(|| json!([]), |count| chat_logprobs(pieces, count)["content"].clone())
    }

    fn call_item(&self, at: usize, call: &Call, finished: bool) -> Value {
        json!({
            "id": self.stamp.part("fc_", 0, at), "type": "function_call",
            "status": if finished { "completed" } else { "in_progress" },
            "arguments": if finished { call.arguments() } else { String::new() },
            "call_id": self.stamp.part("call_", 0, at), "name": call.name,
        })
    }

    fn events(&self) -> Vec<String> {
        let mut events = ResponsesEvents::default();
        let begun = self.response(Stage::Begun);
        events.push("response.created", json!({ "response": begun }));
        events.push("response.in_progress", json!({ "response": begun }));
        let mut at = 0;
        if self.said.thoughts.is_some() {
            self.push_reasoning(&mut events, at);
            at += 1;
        }
        if self.said.calls.is_empty() {
            self.push_message(&mut events, at);
        }
        for (index, call) in self.said.calls.iter().enumerate() {
            self.push_call(&mut events, at + index, index, call);
        }
        let last = if self.said.is_cut { "response.incomplete" } else { "response.completed" };
        events.push(last, json!({ "response": self.response(Stage::Ended) }));
        events.list
    }

    fn push_reasoning(&self, events: &mut ResponsesEvents, at: usize) {
        let item = self.reasoning_item(false);
        let id = item["id"].clone();
        events.push("response.output_item.added", json!({ "output_index": at, "item": item }));
        if let Some(summary) = self.summary() {
            let mut push = |kind: &str, name: &str, value: Value| {
                let mut fields = json!({ "item_id": id, "output_index": at, "summary_index": 0 });
                fields[name] = value;
                if name == "delta" {
                    fields["obfuscation"] = padding(&fields["delta"]);
                }
                events.push(&format!("response.reasoning_summary_{kind}"), fields);
            };
            let part = |text: &str| json!({ "type": "summary_text", "text": text });
            push("part.added", "part", part(""));
            for piece in pieces(summary) {
                push("text.delta", "delta", json!(piece));
            }
            push("text.done", "text", json!(summary));
            push("part.done", "part", part(summary));
        }
        let item = self.reasoning_item(true);
        events.push("response.output_item.done", json!({ "output_index": at, "item": item }));
    }

    fn push_message(&self, events: &mut ResponsesEvents, at: usize) {
        let item = self.message_item(false);
        let id = item["id"].clone();
        let place = |fields: Value| {
            let mut fields = fields;
            fields["item_id"] = id.clone();
            fields["output_index"] = json!(at);
            fields["content_index"] = json!(0);
            fields
        };
        let text = &self.said.text;
        events.push("response.output_item.added", json!({ "output_index": at, "item": item }));
        let part = self.text_part("");
        events.push("response.content_part.added", place(json!({ "part": part })));
        for piece in pieces(text) {
            let delta = json!(piece);
            let obfuscation = padding(&delta);
            let fields = json!({
                "delta": delta, "logprobs": self.logprobs(&[piece]), "obfuscation": obfuscation,
            });
            events.push("response.output_text.delta", place(fields));
        }
        let done = json!({ "text": text, "logprobs": self.logprobs(&pieces(text)) });
        events.push("response.output_text.done", place(done));
        let part = self.text_part(text);
        events.push("response.content_part.done", place(json!({ "part": part })));
        let item = self.message_item(true);
        events.push("response.output_item.done", json!({ "output_index": at, "item": item }));
    }

    fn push_call(&self, events: &mut ResponsesEvents, at: usize, index: usize, call: &Call) {
        let item = self.call_item(index, call, false);
        let id = item["id"].clone();
        events.push("response.output_item.added", json!({ "output_index": at, "item": item }));
        let arguments = call.arguments();
        for part in fragments(&arguments) {
            let delta = json!(part);
            let obfuscation = padding(&delta);
            let fields = json!({
                "item_id": id, "output_index": at, "delta": delta, "obfuscation": obfuscation,
            });
            events.push("response.function_call_arguments.delta", fields);
        }
        let done = json!({
            "item_id": id, "output_index": at, "name": call.name, "arguments": arguments,
        });
        events.push("response.function_call_arguments.done", done);
        let item = self.call_item(index, call, true);
        events.push("response.output_item.done", json!({ "output_index": at, "item": item }));
    }
}

#[derive(Default)]
struct ResponsesEvents {
    list: Vec<String>,
}

impl ResponsesEvents {
    fn push(&mut self, kind: &str, mut fields: Value) {
        fields["type"] = json!(kind);
        fields["sequence_number"] = json!(self.list.len());
        self.list.push(named(kind, &fields));
    }
}

/// Random-looking letters that hide a delta's length from someone who sees only packets.
fn padding(delta: &Value) -> Value {
    let text = delta.to_string();
    let digest = digest(text.as_bytes());
    let letters = STANDARD.encode(digest).replace(['+', '/', '='], "x");
    json!(letters[..16 - text.len().min(15)])
}

// ---- Anthropic Messages ----

async fn messages(State(pace): State<Pace>, headers: HeaderMap, body: Bytes) -> Response {
    let (body, ask) = match anthropic_ask(&body) {
        Ok(read) => read,
        Err(message) => return anthropic_error(&message),
    };
    if !body["max_tokens"].is_u64() {
        return anthropic_error("max_tokens: Field required");
    }
    let said = say(&ask, 0);
    let stamp = Stamp::new(&ask);
    let usage = |output: usize| {
        json!({
            "input_tokens": ask.prompt_tokens(), "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": { "ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0 },
            "output_tokens": output, "service_tier": "standard",
        })
    };
    let message = |content: Value, stop: Option<&str>, usage: Value| {
        json!({
            "id": stamp.id("msg_"), "type": "message", "role": "assistant",
            "model": body["model"], "content": content, "stop_reason": stop,
            "stop_sequence": null, "usage": usage,
        })
    };
    let stop = match chat_finish(&said) {
        "tool_calls" => "tool_use",
        "length" => "max_tokens",
        _ => "end_turn",
    };
    let blocks = anthropic_blocks(&said, &stamp);
    if body["stream"] != true {
        let content = blocks.iter().map(|block| block.whole.clone()).collect();
        let answer = message(content, Some(stop), usage(said.tokens()));
        return pace.whole(&headers, &answer).await;
    }
    let mut events = vec![json!({
        "type": "message_start", "message": message(json!([]), None, usage(1)),
    })];
    for (index, block) in blocks.into_iter().enumerate() {
        events.push(json!({
            "type": "content_block_start", "index": index, "content_block": block.start,
        }));
        if index == 0 {
            events.push(json!({ "type": "ping" }));
        }
        events.extend(
            block.deltas.into_iter().map(
                |delta| json!({ "type": "content_block_delta", "index": index, "delta": delta }),
            ),
        );
        events.push(json!({ "type": "content_block_stop", "index": index }));
    }
    events.push(json!({
        "type": "message_delta", "delta": { "stop_reason": stop, "stop_sequence": null },
        "usage": {
            "input_tokens": ask.prompt_tokens(), "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0, "output_tokens": said.tokens(),
        },
    }));
    events.push(json!({ "type": "message_stop" }));
    let events = events
        .iter()
        .map(|event| named(event["type"].as_str().unwrap_or_default(), event))
        .collect();
    pace.stream(&headers, EVENT_STREAM, events)
}

async fn count_tokens(State(pace): State<Pace>, headers: HeaderMap, body: Bytes) -> Response {
    match anthropic_ask(&body) {
        Ok((_, ask)) => pace.whole(&headers, &json!({ "input_tokens": ask.prompt_tokens() })).await,
        Err(message) => anthropic_error(&message),
    }
}

fn anthropic_ask(body: &[u8]) -> Result<(Value, Ask), String> {
    let body = object(body)?;
    if !body["model"].is_string() {
        return Err("model: Field required".to_owned());
    }
    let Some(messages) = body["messages"].as_array().filter(|list| !list.is_empty()) else {
        return Err("messages: at least one message is required".to_owned());
    };
    let config = &body["output_config"]["format"];
    let format = if config.is_object() { config } else { &body["output_format"] };
    let ask = Ask {
        question: last_of(messages, "user"),
        prompt_chars: [&body["messages"], &body["system"], &body["tools"]]
            .iter()
            .map(|part| chars_in(part))
            .sum(),
        tools: named_tools(&body["tools"], "input_schema"),
        tool_use: ToolUse::of(&body["tool_choice"]),
        after_tool: messages.last().is_some_and(|message| has_part(message, "tool_result")),
        tokens_max: number(&body, &["max_tokens"]),
        reasons: matches!(body["thinking"]["type"].as_str(), Some("enabled" | "adaptive")),
        schema: (format["type"] == "json_schema").then(|| format["schema"].clone()),
    };
    Ok((body, ask))
}

/// A content block, whole and as a stream of deltas.
struct Block {
    whole: Value,
    start: Value,
    deltas: Vec<Value>,
}

fn anthropic_blocks(said: &Said, stamp: &Stamp) -> Vec<Block> {
    let mut blocks = Vec::new();
    if let Some(thoughts) = &said.thoughts {
        let signature = stamp.sealed();
        let deltas = pieces(thoughts)
            .into_iter()
            .map(|piece| json!({ "type": "thinking_delta", "thinking": piece }))
            .chain([json!({ "type": "signature_delta", "signature": signature })]);
        blocks.push(Block {
            whole: json!({ "type": "thinking", "thinking": thoughts, "signature": signature }),
            start: json!({ "type": "thinking", "thinking": "", "signature": "" }),
            deltas: deltas.collect(),
        });
    }
    // With tools the model says what it is about to do.
    let text = if said.calls.is_empty() { &said.text } else { "I'll look that up." };
    let deltas =
        pieces(text).into_iter().map(|piece| json!({ "type": "text_delta", "text": piece }));
    blocks.push(Block {
        whole: json!({ "type": "text", "text": text }),
        start: json!({ "type": "text", "text": "" }),
        deltas: deltas.collect(),
    });
    for (at, call) in said.calls.iter().enumerate() {
        let id = stamp.part("toolu_", 0, at);
        let arguments = call.arguments();
        let deltas = [""]
            .into_iter()
            .chain(fragments(&arguments))
            .map(|part| json!({ "type": "input_json_delta", "partial_json": part }));
        blocks.push(Block {
            whole: json!({ "type": "tool_use", "id": id, "name": call.name, "input": call.input }),
            start: json!({ "type": "tool_use", "id": id, "name": call.name, "input": {} }),
            deltas: deltas.collect(),
        });
    }
    blocks
}

// ---- Gemini ----

async fn gemini(
    State(pace): State<Pace>,
    Path(call): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some((model, method)) = call.rsplit_once(':') else {
        return gemini_error(StatusCode::NOT_FOUND, "there is no such path");
    };
    let body = match object(&body) {
        Ok(body) => body,
        Err(message) => return gemini_error(StatusCode::BAD_REQUEST, &message),
    };
    let Some(contents) = body["contents"].as_array().filter(|list| !list.is_empty()) else {
        return gemini_error(StatusCode::BAD_REQUEST, "contents is not specified");
    };
    let config = either(&body, "generationConfig", "generation_config");
    let thinking = either(config, "thinkingConfig", "thinking_config");
    let wants_json = either(config, "responseMimeType", "response_mime_type") == "application/json";
    let ask = Ask {
        question: last_of(contents, "user"),
        prompt_chars: [
            &body["contents"],
            either(&body, "systemInstruction", "system_instruction"),
            &body["tools"],
        ]
        .iter()
        .map(|part| chars_in(part))
        .sum(),
        tools: gemini_tools(&body["tools"]),
        tool_use: {
            let config = either(&body, "toolConfig", "tool_config");
            let calling = either(config, "functionCallingConfig", "function_calling_config");
            ToolUse::of(&calling["mode"])
        },
        after_tool: contents.last().is_some_and(|content| {
            let parts = content["parts"].as_array().map(Vec::as_slice).unwrap_or_default();
            parts.iter().any(|p| !either(p, "functionResponse", "function_response").is_null())
        }),
        tokens_max: number(config, &["maxOutputTokens", "max_output_tokens"]),
        reasons: thinking.is_object() && either(thinking, "thinkingBudget", "thinking_budget") != 0,
        schema: wants_json.then(|| {
            let schema = either(config, "responseSchema", "response_schema");
            let json_schema = either(config, "responseJsonSchema", "response_json_schema");
            if schema.is_object() { schema.clone() } else { json_schema.clone() }
        }),
    };
    let stamp = Stamp::new(&ask);
    let show_thoughts = either(thinking, "includeThoughts", "include_thoughts") == true;
    let choices: Vec<Said> = (0..choices(either(config, "candidateCount", "candidate_count")))
        .map(|index| say(&ask, index))
        .collect();
    let answer = |candidates: Vec<Value>| {
        let usage = gemini_usage(&ask, &choices);
        json!({
            "candidates": candidates, "usageMetadata": usage, "modelVersion": model,
            "responseId": stamp.id(""),
        })
    };
    match method {
        "countTokens" => {
            let tokens = ask.prompt_tokens();
            let details = json!([{ "modality": "TEXT", "tokenCount": tokens }]);
            let count = json!({ "totalTokens": tokens, "promptTokensDetails": details });
            pace.whole(&headers, &count).await
        }
        "generateContent" => {
            let candidates = choices.iter().enumerate().map(|(index, said)| {
                let parts = gemini_parts(said, show_thoughts, &stamp, usize::MAX);
                gemini_candidate(index, &parts.concat(), Some(said))
            });
            pace.whole(&headers, &answer(candidates.collect())).await
        }
        "streamGenerateContent" => {
            /// Words in an event: Gemini's are longer than its rivals'.
            const EVENT_PIECES: usize = 8;
            let candidates = choices.iter().enumerate().map(|(index, said)| {
                let parts = gemini_parts(said, show_thoughts, &stamp, EVENT_PIECES);
                let last = parts.len().saturating_sub(1);
                let parts = parts.into_iter().enumerate();
                parts
                    .map(|(at, parts)| {
                        gemini_candidate(index, &parts, (at == last).then_some(said))
                    })
                    .collect()
            });
            let chunks = interleaved(candidates.collect()).into_iter().map(|one| answer(vec![one]));
            let as_events = query.is_some_and(|query| query.split('&').any(|p| p == "alt=sse"));
            if as_events {
                let events = chunks.map(|chunk| format!("data: {chunk}\r\n\r\n"));
                pace.stream(&headers, EVENT_STREAM, events.collect())
            } else {
                let mut elements: Vec<String> =
                    chunks.map(|chunk| format!(",\r\n{chunk}")).collect();
                if let Some(first) = elements.first_mut() {
                    first.replace_range(..3, "[");
                }
                elements.push("]".to_owned());
                pace.stream(&headers, "application/json; charset=UTF-8", elements)
            }
        }
        _ => gemini_error(StatusCode::NOT_FOUND, "there is no such method"),
    }
}

/// The parts of an answer, in groups that are sent together.
fn gemini_parts(
    said: &Said,
    show_thoughts: bool,
    stamp: &Stamp,
    event_pieces: usize,
) -> Vec<Vec<Value>> {
    let grouped = |text: &str| -> Vec<String> {
        let pieces = pieces(text);
        pieces.chunks(event_pieces.min(pieces.len().max(1))).map(<[&str]>::concat).collect()
    };
    let mut groups = Vec::new();
    if let Some(thoughts) = said.thoughts.as_deref().filter(|_| show_thoughts) {
        let thoughts = grouped(thoughts);
        groups.extend(thoughts.iter().map(|text| vec![json!({ "text": text, "thought": true })]));
    }
    for (at, call) in said.calls.iter().enumerate() {
        let id = stamp.part("", 0, at);
        let mut part =
            json!({ "functionCall": { "id": id, "name": call.name, "args": call.input } });
        // Only the first call of a step carries the signature.
        if said.thoughts.is_some() && at == 0 {
            part["thoughtSignature"] = json!(stamp.sealed());
        }
        groups.push(vec![part]);
    }
    if said.calls.is_empty() {
        let texts = grouped(&said.text);
        groups.extend(texts.iter().map(|text| vec![json!({ "text": text })]));
        if said.thoughts.is_some() {
            groups.push(vec![json!({ "text": "", "thoughtSignature": stamp.sealed() })]);
        }
    }
    groups
}

fn gemini_candidate(index: usize, parts: &[Value], finished: Option<&Said>) -> Value {
    let content = json!({ "parts": parts, "role": "model" });
    let mut candidate = json!({ "content": content, "index": index });
    if let Some(said) = finished {
        candidate["finishReason"] = json!(if said.is_cut { "MAX_TOKENS" } else { "STOP" });
    }
    candidate
}

fn gemini_usage(ask: &Ask, choices: &[Said]) -> Value {
    let prompt = ask.prompt_tokens();
    let all: usize = choices.iter().map(Said::tokens).sum();
    let thoughts: usize = choices.iter().map(Said::reasoning_tokens).sum();
    let mut usage = json!({
        "promptTokenCount": prompt, "candidatesTokenCount": all - thoughts,
        "totalTokenCount": prompt + all,
        "promptTokensDetails": [{ "modality": "TEXT", "tokenCount": prompt }],
    });
    if thoughts > 0 {
        usage["thoughtsTokenCount"] = json!(thoughts);
    }
    usage
}

fn gemini_tools(tools: &Value) -> Vec<Tool> {
    let lists = tools.as_array().map(Vec::as_slice).unwrap_or_default();
    lists
        .iter()
        .flat_map(|list| {
            let declared = either(list, "functionDeclarations", "function_declarations");
            declared.as_array().map(Vec::as_slice).unwrap_or_default()
        })
        .filter_map(|tool| {
            let schema = either(tool, "parametersJsonSchema", "parameters_json_schema");
            let schema = if schema.is_object() { schema } else { &tool["parameters"] };
            Some(Tool { name: tool["name"].as_str()?.to_owned(), schema: schema.clone() })
        })
        .collect()
}

/// A member by its JSON name or its protobuf name: the API takes both.
fn either<'a>(value: &'a Value, camel: &str, snake: &str) -> &'a Value {
    if value[camel].is_null() { &value[snake] } else { &value[camel] }
}

// ---- Models ----

/// Three providers have lists of models at the same path; their headers tell them apart.
async fn models(headers: HeaderMap) -> Response {
    if is_gemini(&headers) {
        return gemini_models().await;
    }
    if headers.contains_key("anthropic-version") {
        let models: Vec<Value> = MODELS.iter().map(|name| anthropic_model(name)).collect();
        let (first, last) = (MODELS.first(), MODELS.last());
        return Json(json!({
            "data": models, "has_more": false, "first_id": first, "last_id": last,
        }))
        .into_response();
    }
    let models: Vec<Value> = MODELS.iter().map(|name| openai_model(name)).collect();
    Json(json!({ "object": "list", "data": models })).into_response()
}

async fn model(Path(name): Path<String>, headers: HeaderMap) -> Response {
    Json(if is_gemini(&headers) {
        gemini_description(&name)
    } else if headers.contains_key("anthropic-version") {
        anthropic_model(&name)
    } else {
        openai_model(&name)
    })
    .into_response()
}

fn is_gemini(headers: &HeaderMap) -> bool {
    headers.contains_key("x-goog-api-key") || headers.contains_key("x-goog-api-client")
}

async fn gemini_models() -> Response {
    let models: Vec<Value> = MODELS.iter().map(|name| gemini_description(name)).collect();
    Json(json!({ "models": models })).into_response()
}

async fn gemini_model(Path(name): Path<String>) -> Response {
    Json(gemini_description(&name)).into_response()
}

/// When the sample models were published, in two notations.
const MODELS_CREATED: (u64, &str) = (1_735_689_600, "2025-01-01T00:00:00Z");

fn openai_model(name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": MODELS_CREATED.0, "owned_by": "sample" })
}

fn anthropic_model(name: &str) -> Value {
    json!({
        "type": "model", "id": name, "display_name": name, "created_at": MODELS_CREATED.1,
        "lifecycle": "active",
    })
}

fn gemini_description(name: &str) -> Value {
    json!({
        "name": format!("models/{name}"), "version": "001", "displayName": name,
        "inputTokenLimit": 1_048_576, "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
    })
}

// ---- What is asked and what is said ----

/// A request, as far as it bears on the answer.
#[derive(Default)]
struct Ask {
    question: String,
    prompt_chars: usize,
    tools: Vec<Tool>,
    tool_use: ToolUse,
    after_tool: bool,
    tokens_max: Option<usize>,
    reasons: bool,
    schema: Option<Value>,
}

impl Ask {
    fn prompt_tokens(&self) -> usize {
        self.prompt_chars.div_ceil(4).max(1)
    }
}

struct Tool {
    name: String,
    schema: Value,
}

#[derive(Default, PartialEq, Eq)]
enum ToolUse {
    #[default]
    Free,
    Forbidden,
    Required,
    Named(String),
}

impl ToolUse {
    /// `auto`, `none`, `required`, `any`, or an object with one of them as `type` or with a name.
    fn of(choice: &Value) -> Self {
        let named = choice["function"]["name"].as_str().or(choice["name"].as_str());
        if let Some(name) = named {
            return Self::Named(name.to_owned());
        }
        let word = choice.as_str().or(choice["type"].as_str()).unwrap_or_default();
        match word.to_ascii_lowercase().as_str() {
            "none" => Self::Forbidden,
            "required" | "any" => Self::Required,
            _ => Self::Free,
        }
    }
}

/// One answer.
struct Said {
    text: String,
    thoughts: Option<String>,
    calls: Vec<Call>,
    is_cut: bool,
}

impl Said {
    /// The text as tokens; none where the answer is a tool call.
    fn pieces(&self) -> Vec<&str> {
        if self.calls.is_empty() { pieces(&self.text) } else { Vec::new() }
    }

    fn reasoning_tokens(&self) -> usize {
        self.thoughts.as_deref().map_or(0, |thoughts| thoughts.chars().count().div_ceil(4))
    }

    /// Tokens written, reasoning included.
    fn tokens(&self) -> usize {
        let arguments: usize = self.calls.iter().map(|call| call.arguments().len()).sum();
        let text = if self.calls.is_empty() { self.text.chars().count() } else { arguments };
        text.div_ceil(4) + self.reasoning_tokens()
    }
}

struct Call {
    name: String,
    input: Value,
}

impl Call {
    fn arguments(&self) -> String {
        self.input.to_string()
    }
}

/// The answer to `ask`; `choice` counts further answers to the same request.
fn say(ask: &Ask, choice: u64) -> Said {
    let seed = seed_of(&ask.question).wrapping_add(choice);
    let thoughts = ask.reasons.then(|| prose::reasoning(seed));
    let calls = calls(ask);
    let mut text = match &ask.schema {
        Some(schema) => fill(schema, schema, &ask.question, 0).to_string(),
        None if ask.after_tool => prose::after_tool(seed),
        None => prose::answer(seed),
    };
    let mut is_cut = false;
    if let Some(tokens_max) = ask.tokens_max.filter(|_| calls.is_empty()) {
        let chars_max = tokens_max.max(1).saturating_mul(4);
        if let Some((end, _)) = text.char_indices().nth(chars_max) {
            is_cut = true;
            // The word that does not fit is left out, except where it is the first.
            let end = text[..end].rfind(char::is_whitespace).filter(|&at| at > 0).unwrap_or(end);
            text.truncate(end);
        }
    }
    Said { text, thoughts, calls, is_cut }
}

fn calls(ask: &Ask) -> Vec<Call> {
    let question = ask.question.to_lowercase();
    let mentioned = |tool: &&Tool| question.contains(&tool.name.to_lowercase());
    let chosen: Vec<&Tool> = match &ask.tool_use {
        ToolUse::Forbidden => Vec::new(),
        _ if ask.after_tool => Vec::new(),
        ToolUse::Named(name) => ask.tools.iter().filter(|tool| tool.name == *name).collect(),
        ToolUse::Free | ToolUse::Required => {
            let mut chosen: Vec<&Tool> = ask.tools.iter().filter(mentioned).collect();
            if chosen.is_empty()
                && (ask.tool_use == ToolUse::Required || question.contains("weather"))
            {
                let about_weather = ask.tools.iter().find(|tool| tool.name.contains("weather"));
                chosen.extend(about_weather.or(ask.tools.first()));
            }
            chosen
        }
    };
    chosen
        .into_iter()
        .take(usize::try_from(CHOICES_MAX).unwrap_or(1))
        .map(|tool| {
            let mut input = fill(&tool.schema, &tool.schema, &ask.question, 0);
            if !input.is_object() {
                input = json!({});
            }
            Call { name: tool.name.clone(), input }
        })
        .collect()
}

/// A value that fits a JSON schema, or Gemini's kind of schema, as far as its types go.
fn fill(schema: &Value, root: &Value, question: &str, depth: usize) -> Value {
    if depth > SCHEMA_DEPTH_MAX {
        return Value::Null;
    }
    let deeper = |schema: &Value| fill(schema, root, question, depth + 1);
    if let Some(pointer) = schema["$ref"].as_str().and_then(|target| target.strip_prefix('#')) {
        return root.pointer(pointer).map_or(Value::Null, deeper);
    }
    if let Some(value) = schema.get("const") {
        return value.clone();
    }
    if let Some(first) = schema["enum"].as_array().and_then(|values| values.first()) {
        return first.clone();
    }
    for choice in ["anyOf", "oneOf", "allOf"] {
        if let Some(first) = schema[choice].as_array().and_then(|schemas| schemas.first()) {
            return deeper(first);
        }
    }
    let kind = schema["type"].as_str().or(schema["type"][0].as_str()).unwrap_or("object");
    match kind.to_ascii_lowercase().as_str() {
        "string" => json!(place_in(question)),
        "integer" => schema.get("minimum").filter(|it| it.is_i64()).cloned().unwrap_or(json!(3)),
        "number" => schema.get("minimum").cloned().unwrap_or(json!(2.5)),
        "boolean" => json!(true),
        "null" => Value::Null,
        "array" => json!([deeper(&schema["items"])]),
        _ => match schema["properties"].as_object() {
            Some(properties) => {
                properties.iter().map(|(name, schema)| (name.clone(), deeper(schema))).collect()
            }
            None if depth == 0 => json!({ "answer": "It depends, but probably yes." }),
            None => json!({}),
        },
    }
}

/// The last word with a capital, which in a question about the weather is the place.
fn place_in(question: &str) -> &str {
    let mut words = question.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 2);
    words.rfind(|word| word.starts_with(char::is_uppercase)).unwrap_or("Lisbon")
}

fn seed_of(question: &str) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&digest(question.as_bytes())[..8]);
    u64::from_be_bytes(first)
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Words with the white space before them, as tokens mostly are. Nothing is lost in between.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut in_word = false;
    for (at, c) in text.char_indices() {
        if c.is_whitespace() && in_word {
            pieces.push(&text[start..at]);
            start = at;
        }
        in_word = !c.is_whitespace();
    }
    if start < text.len() {
        pieces.push(&text[start..]);
    }
    pieces
}

/// Arguments in parts of a few characters, which fall anywhere in the JSON.
fn fragments(arguments: &str) -> Vec<&str> {
    const PART_CHARS: usize = 5;
    let cuts: Vec<usize> = arguments.char_indices().map(|(at, _)| at).step_by(PART_CHARS).collect();
    let ends = cuts.iter().skip(1).copied().chain([arguments.len()]);
    cuts.iter().zip(ends).map(|(&start, end)| &arguments[start..end]).collect()
}

/// One event of each choice in turn, as choices that are generated together come.
fn interleaved(choices: Vec<Vec<Value>>) -> Vec<Value> {
    let mut queues: Vec<_> = choices.into_iter().map(Vec::into_iter).collect();
    let mut events = Vec::new();
    loop {
        let before = events.len();
        events.extend(queues.iter_mut().filter_map(Iterator::next));
        if events.len() == before {
            return events;
        }
    }
}

// ---- Reading requests ----

fn object(body: &[u8]) -> Result<Value, String> {
    let body: Value =
        serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
    if body.is_object() { Ok(body) } else { Err("the body is not a JSON object".to_owned()) }
}

fn number(body: &Value, names: &[&str]) -> Option<usize> {
    names.iter().find_map(|name| usize::try_from(body[*name].as_u64()?).ok())
}

fn choices(n: &Value) -> u64 {
    n.as_u64().unwrap_or(1).clamp(1, CHOICES_MAX)
}

/// The text of the last message of `role` that has any.
fn last_of(messages: &[Value], role: &str) -> String {
    let texts = messages.iter().rev().filter(|message| {
        message["role"].as_str().is_none_or(|found| found == role) && message["role"] != "assistant"
    });
    texts.map(text_of).find(|text| !text.is_empty()).unwrap_or_default()
}

/// The text of a message: a string, or the `text` of its parts.
fn text_of(message: &Value) -> String {
    let content =
        if message["content"].is_null() { &message["parts"] } else { &message["content"] };
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part["text"].as_str());
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

fn has_part(message: &Value, kind: &str) -> bool {
    message["content"].as_array().is_some_and(|parts| parts.iter().any(|p| p["type"] == kind))
}

/// Characters of all strings inside, names of members and attachments left out.
fn chars_in(value: &Value) -> usize {
    match value {
        Value::String(text) => text.chars().count(),
        Value::Array(list) => list.iter().map(chars_in).sum(),
        Value::Object(members) => members
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "type" | "role" | "data" | "url" | "id"))
            .map(|(_, value)| chars_in(value))
            .sum(),
        _ => 0,
    }
}

/// Tools of the OpenAI formats and of Anthropic; those that the provider itself runs are left out.
fn named_tools(tools: &Value, schema: &str) -> Vec<Tool> {
    let list = tools.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .filter_map(|tool| {
            let tool = if tool["function"].is_object() { &tool["function"] } else { tool };
            Some(Tool { name: tool["name"].as_str()?.to_owned(), schema: tool[schema].clone() })
        })
        .collect()
}

// ---- Writing answers ----

const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";
const DONE: &str = "data: [DONE]\n\n";

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn named(event: &str, value: &Value) -> String {
    format!("event: {event}\ndata: {value}\n\n")
}

/// Names of one answer and its parts.
struct Stamp {
    seed: u64,
    serial: u64,
    created: u64,
}

impl Stamp {
    fn new(ask: &Ask) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        Self {
            seed: seed_of(&ask.question),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        }
    }

    fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:08x}", self.seed, self.serial)
    }

    /// The name of one of several parts, such as a tool call.
    fn part(&self, prefix: &str, choice: usize, at: usize) -> String {
        format!("{}{choice:02x}{at:02x}", self.id(prefix))
    }

    /// Bytes that only the provider could read, in place of a signature or sealed reasoning.
    fn sealed(&self) -> String {
        let halves: [[u8; 32]; 2] =
            [digest(self.id("a").as_bytes()), digest(self.id("b").as_bytes())];
        STANDARD.encode(halves.concat())
    }
}

#[derive(Clone, Copy)]
struct Pace {
    delay: Duration,
}

impl Pace {
    fn of(self, headers: &HeaderMap) -> Duration {
        let asked = headers.get("x-sample-delay-ms").and_then(|ms| ms.to_str().ok()?.parse().ok());
        asked.map_or(self.delay, |ms| Duration::from_millis(ms).min(DELAY_MAX))
    }

    async fn whole(self, headers: &HeaderMap, answer: &Value) -> Response {
        sleep(self.of(headers)).await;
        ([(header::CONTENT_TYPE, "application/json")], answer.to_string()).into_response()
    }

    fn stream(self, headers: &HeaderMap, kind: &'static str, events: Vec<String>) -> Response {
        let delay = self.of(headers);
        let events = events.into_iter();
        let paced = Paced { events, delay, timer: Box::pin(sleep(delay)) };
        let mut response = Response::new(Body::from_stream(paced));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }
}

/// Events with time between them.
struct Paced {
    events: std::vec::IntoIter<String>,
    delay: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Stream for Paced {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.delay.is_zero() && self.events.len() > 0 {
            ready!(self.timer.as_mut().poll(context));
            let next = Instant::now() + self.delay;
            self.timer.as_mut().reset(next);
        }
        Poll::Ready(self.events.next().map(|event| Ok(Bytes::from(event))))
    }
}

fn openai_error(status: StatusCode, message: &str) -> Response {
    let kind = "invalid_request_error";
    let error = json!({ "message": message, "type": kind, "param": null, "code": null });
    (status, Json(json!({ "error": error }))).into_response()
}

fn anthropic_error(message: &str) -> Response {
    let error = json!({ "type": "invalid_request_error", "message": message });
    let body = json!({ "type": "error", "error": error, "request_id": null });
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

fn gemini_error(status: StatusCode, message: &str) -> Response {
    let name = if status == StatusCode::NOT_FOUND { "NOT_FOUND" } else { "INVALID_ARGUMENT" };
    let error = json!({ "code": status.as_u16(), "message": message, "status": name });
    (status, Json(json!({ "error": error }))).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::http::Request;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use proptest::prelude::*;

    use super::*;

    /// Status, content type and body.
    async fn send(path: &str, body: &str) -> (u16, String, String) {
        let request = Request::post(path)
            .header("x-sample-delay-ms", "0")
            .body(Body::from(body.to_owned()))
            .unwrap();
        let service = TowerToHyperService::new(router());
        let response = service.call(request).await.unwrap();
        let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn whole(path: &str, body: &Value) -> Value {
        let (status, kind, answer) = send(path, &body.to_string()).await;
        assert_eq!((status, kind.as_str()), (200, "application/json"), "{answer}");
        serde_json::from_str(&answer).unwrap()
    }

    /// The data of each event; `[DONE]` is a string.
    async fn events(path: &str, body: &Value) -> Vec<Value> {
        let (status, kind, stream) = send(path, &body.to_string()).await;
        assert_eq!((status, kind.as_str()), (200, EVENT_STREAM), "{stream}");
        let end = if stream.contains("\r\n") { "\r\n\r\n" } else { "\n\n" };
        let events = stream.strip_suffix(end).unwrap().split(end);
        events
            .map(|event| {
                let (name, data) = match event.split_once('\n') {
                    Some((name, data)) => (name.strip_prefix("event: "), data),
                    None => (None, event),
                };
                let data = data.strip_prefix("data: ").unwrap();
                let data = serde_json::from_str(data).unwrap_or_else(|_| json!(data));
                assert!(name.is_none_or(|name| data["type"] == name), "{event}");
                data
            })
            .collect()
    }

    fn with(body: &Value, more: &Value) -> Value {
        let mut body = body.clone();
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    }

    /// Runs of equal names as one, so that a sequence can be read.
    fn sequence(events: &[Value]) -> Vec<&str> {
        let mut names: Vec<&str> =
            events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        names.dedup();
        names
    }

    fn joined(events: &[Value], pointer: &str) -> String {
        events.iter().filter_map(|event| event.pointer(pointer)?.as_str()).collect()
    }

    fn user(text: &str) -> Value {
        json!([{ "role": "user", "content": text }])
    }

    #[tokio::test]
    async fn chat_streams_what_it_says_whole() {
        let path = "/v1/chat/completions";
        let body = json!({ "model": "m", "messages": user("How do I bake bread?") });
        let answer = whole(path, &body).await;
        let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(said.len() > 100);
        let usage = json!({ "stream": true, "stream_options": { "include_usage": true } });
        let events = events(path, &with(&body, &usage)).await;
        assert_eq!(joined(&events, "/choices/0/delta/content"), said);
        let [.., finish, last, done] = &events[..] else { panic!("{events:?}") };
        assert_eq!(finish["choices"][0]["finish_reason"], "stop");
        assert_eq!(finish["usage"], Value::Null);
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"], answer["usage"]);
        let tokens = said.chars().count().div_ceil(4);
        assert_eq!(last["usage"]["completion_tokens"], tokens);
        assert_eq!(done, "[DONE]");
    }

    #[tokio::test]
    async fn chat_choices_interleave() {
        let body = json!({
            "model": "m", "messages": user("Hello"), "n": 3, "stream": true, "logprobs": true,
            "top_logprobs": 2,
        });
        let events = events("/v1/chat/completions", &body).await;
        let indices: Vec<u64> =
            events[..6].iter().map(|e| e["choices"][0]["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, [0, 1, 2, 0, 1, 2]);
        for event in &events {
            let choice = &event["choices"][0];
            if let Some(text) = choice["delta"]["content"].as_str().filter(|it| !it.is_empty()) {
                let entry = &choice["logprobs"]["content"][0];
                assert_eq!(entry["token"], text);
                assert_eq!(entry["bytes"], json!(text.as_bytes()));
                assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 2);
            }
        }
    }

    #[tokio::test]
    async fn chat_calls_tools_and_answers_afterwards() {
        let path = "/v1/chat/completions";
        let schema = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
        let function = json!({ "name": "get_weather", "parameters": schema });
        let body = json!({
            "model": "m", "messages": user("How is the weather in Turin?"),
            "tools": [{ "type": "function", "function": function }],
        });
        let answer = whole(path, &body).await;
        let choice = &answer["choices"][0];
        let call = &choice["message"]["tool_calls"][0];
        assert_eq!(choice["finish_reason"], "tool_calls");
        assert_eq!(call["function"]["arguments"], r#"{"city":"Turin"}"#);
        let streamed = events(path, &with(&body, &json!({ "stream": true }))).await;
        let arguments = joined(&streamed, "/choices/0/delta/tool_calls/0/function/arguments");
        assert_eq!(arguments, r#"{"city":"Turin"}"#);
        let names = joined(&streamed, "/choices/0/delta/tool_calls/0/function/name");
        assert_eq!(names, "get_weather");

        let mut after = body.clone();
        let more = json!({ "role": "tool", "tool_call_id": call["id"], "content": "sun" });
        after["messages"].as_array_mut().unwrap().push(more);
        for (body, finish) in [
            (after, "stop"),
            (with(&body, &json!({ "tool_choice": "none" })), "stop"),
            (
                with(&body, &json!({ "messages": user("Hi"), "tool_choice": "required" })),
                "tool_calls",
            ),
            (with(&body, &json!({ "messages": user("Hi") })), "stop"),
        ] {
            let answer = whole(path, &body).await;
            assert_eq!(answer["choices"][0]["finish_reason"], finish, "{body}");
        }
    }

    #[tokio::test]
    async fn reasoning_comes_when_asked_for() {
        let path = "/v1/chat/completions";
        let body = json!({ "model": "m", "messages": user("Why?"), "stream": true });
        let plain = events(path, &body).await;
        assert_eq!(joined(&plain, "/choices/0/delta/reasoning_content"), "");
        let body = with(&body, &json!({ "reasoning_effort": "high" }));
        let events = events(path, &body).await;
        assert!(joined(&events, "/choices/0/delta/reasoning_content").starts_with("The question"));
    }

    #[tokio::test]
    async fn max_tokens_cuts_the_answer() {
        for (path, body, pointer, expected) in [
            (
                "/v1/chat/completions",
                json!({ "model": "m", "messages": user("Hi"), "max_completion_tokens": 4 }),
                "/choices/0/finish_reason",
                "length",
            ),
            (
                "/v1/completions",
                json!({ "model": "m", "prompt": "Hi", "max_tokens": 4 }),
                "/choices/0/finish_reason",
                "length",
            ),
            (
                "/v1/responses",
                json!({ "model": "m", "input": "Hi", "max_output_tokens": 4 }),
                "/incomplete_details/reason",
                "max_output_tokens",
            ),
            (
                "/v1/messages",
                json!({ "model": "m", "messages": user("Hi"), "max_tokens": 4 }),
                "/stop_reason",
                "max_tokens",
            ),
            (
                "/v1beta/models/m:generateContent",
                json!({
                    "contents": [{ "parts": [{ "text": "Hi" }] }],
                    "generationConfig": { "maxOutputTokens": 4 },
                }),
                "/candidates/0/finishReason",
                "MAX_TOKENS",
            ),
        ] {
            let answer = whole(path, &body).await;
            assert_eq!(answer.pointer(pointer), Some(&json!(expected)), "{answer}");
            assert!(answer.to_string().len() < 2000, "{answer}");
        }
    }

    #[tokio::test]
    async fn responses_tell_the_same_text_everywhere() {
        let path = "/v1/responses";
        let body = json!({
            "model": "m", "input": "How do I bake bread?",
            "reasoning": { "effort": "high", "summary": "auto" },
        });
        let events = events(path, &with(&body, &json!({ "stream": true }))).await;
        assert_eq!(
            sequence(&events),
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.reasoning_summary_part.added",
                "response.reasoning_summary_text.delta",
                "response.reasoning_summary_text.done",
                "response.reasoning_summary_part.done",
                "response.output_item.done",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.completed",
            ]
        );
        for (index, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], index);
        }
        let of = |kind: &str| -> Vec<Value> {
            events.iter().filter(|event| event["type"] == kind).cloned().collect()
        };
        let text = joined(&of("response.output_text.delta"), "/delta");
        let last = &of("response.completed")[0]["response"];
        let message = &last["output"][1];
        for place in [
            &of("response.output_text.done")[0]["text"],
            &of("response.content_part.done")[0]["part"]["text"],
            &of("response.output_item.done")[1]["item"]["content"][0]["text"],
            &message["content"][0]["text"],
        ] {
            assert_eq!(*place, text);
        }
        assert_eq!(of("response.output_item.done")[1]["item"], *message);
        let mut answer = whole(path, &body).await;
        assert_eq!(answer["output"][1]["content"], message["content"]);
        assert_eq!(answer["usage"], last["usage"]);
        assert_eq!(answer["reasoning"].take(), json!({ "effort": "high", "summary": "auto" }));
    }

    #[tokio::test]
    async fn responses_call_functions() {
        let tool = json!({
            "type": "function", "name": "look_up",
            "parameters": { "type": "object", "properties": { "q": { "enum": ["a"] } } },
        });
        let body = json!({ "model": "m", "input": "Use look_up", "tools": [tool], "stream": true });
        let events = events("/v1/responses", &body).await;
        assert_eq!(
            sequence(&events)[2..],
            [
                "response.output_item.added",
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "response.output_item.done",
                "response.completed",
            ]
        );
        let deltas: Vec<Value> = events.into_iter().filter(|e| e["delta"].is_string()).collect();
        assert_eq!(joined(&deltas, "/delta"), r#"{"q":"a"}"#);
    }

    #[tokio::test]
    async fn anthropic_blocks_follow_each_other() {
        let path = "/v1/messages";
        let body = json!({
            "model": "m", "max_tokens": 900, "messages": user("Please look_up this"),
            "tools": [{ "name": "look_up", "input_schema": {
                "type": "object", "properties": { "n": { "type": "integer" } },
            } }],
            "thinking": { "type": "enabled", "budget_tokens": 1024 },
        });
        let answer = whole(path, &body).await;
        let events = events(path, &with(&body, &json!({ "stream": true }))).await;
        let block = ["content_block_start", "content_block_delta", "content_block_stop"];
        let mut expected = vec!["message_start", block[0], "ping", block[1], block[2]];
        expected.extend(block.iter().chain(&block).chain(&["message_delta", "message_stop"]));
        assert_eq!(sequence(&events), expected);
        let deltas: Vec<Value> =
            events.iter().filter(|event| event["type"] == block[1]).cloned().collect();
        assert_eq!(joined(&deltas, "/delta/thinking"), answer["content"][0]["thinking"]);
        assert!(!joined(&deltas, "/delta/signature").is_empty());
        assert_eq!(joined(&deltas, "/delta/text"), answer["content"][1]["text"]);
        assert_eq!(joined(&deltas, "/delta/partial_json"), r#"{"n":3}"#);
        assert_eq!(answer["content"][2]["input"], json!({ "n": 3 }));
        let end = &events[events.len() - 2];
        assert_eq!(end["delta"]["stop_reason"], "tool_use");
        assert_eq!(end["usage"]["output_tokens"], answer["usage"]["output_tokens"]);
    }

    #[tokio::test]
    async fn gemini_streams_events_and_a_list() {
        let body = json!({
            "contents": [{ "role": "user", "parts": [{ "text": "How do I sleep better?" }] }],
            "generationConfig": { "thinkingConfig": { "includeThoughts": true } },
        });
        let answer = whole("/v1beta/models/g:generateContent", &body).await;
        let parts = answer["candidates"][0]["content"]["parts"].as_array().unwrap();
        assert_eq!(parts[0]["thought"], true);
        assert!(parts[2]["thoughtSignature"].is_string());

        let path = "/v1beta/models/g:streamGenerateContent";
        let (_, kind, raw) = send(&format!("{path}?alt=sse"), &body.to_string()).await;
        assert_eq!(kind, EVENT_STREAM);
        assert_eq!(raw.matches("\r\n\r\n").count(), raw.matches("data: ").count());
        let events = events(&format!("{path}?alt=sse"), &body).await;
        let (_, kind, list) = send(path, &body.to_string()).await;
        assert!(kind.starts_with("application/json"));
        let list: Vec<Value> = serde_json::from_str(&list).unwrap();
        assert!(list.len() > 3);
        for stream in [events, list] {
            let texts = |thought: bool| -> String {
                let parts = stream.iter().map(|e| &e["candidates"][0]["content"]["parts"][0]);
                let chosen = parts.filter(|part| (part["thought"] == true) == thought);
                chosen.filter_map(|part| part["text"].as_str()).collect()
            };
            assert_eq!(texts(true), parts[0]["text"]);
            assert_eq!(texts(false), parts[1]["text"]);
            let finished = |chunk: &Value| chunk["candidates"][0]["finishReason"] == "STOP";
            assert!(finished(stream.last().unwrap()));
            assert_eq!(stream.iter().filter(|chunk| finished(chunk)).count(), 1);
        }
    }

    #[tokio::test]
    async fn mistakes_are_answered_in_each_providers_shape() {
        for (path, body, status, pointer) in [
            ("/v1/chat/completions", "no json", 400, "/error/message"),
            ("/v1/chat/completions", r#"{"model":"m"}"#, 400, "/error/type"),
            ("/v1/chat/completions", r#"{"messages":[{}]}"#, 400, "/error/message"),
            ("/v1/completions", "[]", 400, "/error/message"),
            ("/v1/responses", "{}", 400, "/error/message"),
            ("/v1/messages", r#"{"model":"m","messages":[{}]}"#, 400, "/error/type"),
            ("/v1/messages", "{}", 400, "/type"),
            ("/v1beta/models/m:generateContent", "{}", 400, "/error/status"),
            ("/v1beta/models/m:dance", r#"{"contents":[{}]}"#, 404, "/error/status"),
            ("/v2/other", "{}", 404, "/error/message"),
        ] {
            let (found, _, answer) = send(path, body).await;
            assert_eq!(found, status, "{path} {body}");
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert!(answer.pointer(pointer).is_some_and(Value::is_string), "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_paced() {
        let time = async |delay: Option<&str>| {
            let body = json!({ "model": "m", "prompt": "Hi", "stream": true, "max_tokens": 5 });
            let mut request = Request::post("/v1/completions");
            if let Some(delay) = delay {
                request = request.header("x-sample-delay-ms", delay);
            }
            let request = request.body(Body::from(body.to_string())).unwrap();
            let before = Instant::now();
            let service = TowerToHyperService::new(router_paced(Duration::from_millis(20)));
            let response = service.call(request).await.unwrap();
            let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
            let events =
                u128::try_from(body.windows(6).filter(|w| w == b"data: ").count()).unwrap();
            before.elapsed().as_millis() / events
        };
        for (delay, expected) in [
            (None, 20),
            (Some("nonsense"), 20),
            (Some("0"), 0),
            (Some("100"), 100),
            (Some("9000"), DELAY_MAX.as_millis()),
        ] {
            let found = time(delay).await;
            assert!((expected..=expected + 1).contains(&found), "{delay:?}: {found} ms");
        }
    }

    #[tokio::test]
    async fn the_server_ends_on_shutdown() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, async {
            let _ = ended.await;
        }));
        drop(tokio::net::TcpStream::connect(address).await.unwrap());
        end.send(()).unwrap();
        server.await.unwrap().unwrap();
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }

    #[test]
    fn schemas_are_filled() {
        for (schema, expected) in [
            (json!({}), json!({ "answer": "It depends, but probably yes." })),
            (json!({ "type": "string" }), json!("Oslo")),
            (json!({ "type": ["integer", "null"], "minimum": 7 }), json!(7)),
            (json!({ "type": "ARRAY", "items": { "type": "BOOLEAN" } }), json!([true])),
            (
                json!({ "properties": { "a": { "$ref": "#/$defs/A" } },
                        "$defs": { "A": { "anyOf": [{ "const": 4 }] } } }),
                json!({ "a": 4 }),
            ),
        ] {
            assert_eq!(fill(&schema, &schema, "In Oslo", 0), expected, "{schema}");
        }
        let endless = json!({ "properties": { "a": { "$ref": "#" } } });
        assert!(fill(&endless, &endless, "", 0).to_string().len() < 200);
    }

    /// Any JSON, with member names that the readers look for.
    fn json_value() -> impl Strategy<Value = Value> {
        let name = prop::sample::select(vec![
            "model",
            "messages",
            "input",
            "prompt",
            "contents",
            "content",
            "role",
            "parts",
            "text",
            "type",
            "tools",
            "function",
            "name",
            "parameters",
            "properties",
            "items",
            "enum",
            "$ref",
            "anyOf",
            "n",
            "stream",
            "max_tokens",
            "generationConfig",
            "thinkingConfig",
            "functionDeclarations",
            "response_format",
            "reasoning",
            "tool_choice",
            "logprobs",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "(user|assistant|tool|object|array|any|#|json_schema|weather|\\PC{0,9})"
                .prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(name.clone().prop_map(str::to_owned), inner, 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_answered(body in json_value(), parts in any::<[bool; 3]>()) {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let mut body = body;
            if body.is_object() {
                // Enough of a request that the readers get past the first look.
                for (name, value, set) in [
                    ("model", json!("m"), parts[0]), ("stream", json!(true), parts[1]),
                    ("max_tokens", json!(50), parts[2]),
                ] {
                    if set {
                        body[name] = value;
                    }
                }
                for list in ["messages", "contents"] {
                    if body[list].is_object() || body[list].is_string() {
                        body[list] = json!([body[list].take()]);
                    }
                }
            }
            for path in [
                "/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/messages",
                "/v1/messages/count_tokens", "/v1beta/models/g:generateContent",
                "/v1beta/models/g:streamGenerateContent",
            ] {
                let (status, _, answer) = runtime.block_on(send(path, &body.to_string()));
                prop_assert!(status == 200 || status == 400, "{} {} {}", path, status, answer);
            }
        }

        #[test]
        fn nothing_is_lost_between_pieces(text in any::<String>()) {
            prop_assert_eq!(pieces(&text).concat(), text.as_str());
            prop_assert_eq!(fragments(&text).concat(), text.as_str());
            prop_assert!(pieces(&text).iter().all(|piece| !piece.is_empty()));
        }
    }
}
