//! The streams that the fake providers answer with, and what stands in them.
//!
//! `own/…` are the project's, under `tests/streams/`; `recorded/…` are recorded ones from a folder
//! beside the repository, used where it is there. The text of a stream is read here with nothing
//! but a JSON parser, apart from the gateway's readers, so that the two check each other.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// What a stream says, all its events together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Visible text of the first choice.
    pub text: String,
    /// Reasoning text of the first choice.
    pub reasoning: String,
    /// Names of the tools called, in order.
    pub tools: Vec<String>,
}

/// Names of the project's own streams.
#[must_use]
pub fn own() -> Vec<String> {
    let names = names_under(&own_folder(), "own");
    assert!(names.len() > 10, "tests/streams is incomplete");
    names
}

/// Names of the recorded streams; empty where the folder is not there.
#[must_use]
pub fn recorded() -> Vec<String> {
    recorded_folder().map_or_else(Vec::new, |folder| names_under(&folder, "recorded"))
}

/// The own and the recorded streams.
#[must_use]
pub fn all() -> Vec<String> {
    let recorded = recorded();
    if recorded.is_empty() {
        eprintln!("the recorded streams are not here: the project's own are used alone");
    }
    own().into_iter().chain(recorded).collect()
}

/// The bytes of a stream.
#[must_use]
pub fn read(name: &str) -> Option<Vec<u8>> {
    let (place, path) = name.split_once('/')?;
    let folder = match place {
        "own" => own_folder(),
        "recorded" => recorded_folder()?,
        _ => return None,
    };
    if path.split('/').any(|part| part == "..") {
        return None;
    }
    std::fs::read(folder.join(path)).ok()
}

/// The content type that a provider sends with it.
#[must_use]
pub fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("sse") => "text/event-stream; charset=utf-8",
        Some("json") => "application/json",
        Some("ndjson") => "application/x-ndjson",
        Some("eventstream") => "application/vnd.amazon.eventstream",
        _ => "text/plain; charset=utf-8",
    }
}

/// The own stream for a provider's path, streamed where path or body ask for it.
#[must_use]
pub fn default_for(path: &str, body: &[u8]) -> Option<&'static str> {
    let route = path.split('?').next().unwrap_or(path);
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let stream = body["stream"] == Value::Bool(true);
    let pick = |streamed, plain| Some(if stream { streamed } else { plain });
    if route.ends_with(":streamGenerateContent") {
        let sse = path.contains("alt=sse");
        Some(if sse { "own/gemini/text.sse" } else { "own/gemini/text-array.json" })
    } else if route.ends_with(":generateContent") {
        Some("own/gemini/text.json")
    } else if route.ends_with("/chat/completions") {
        pick("own/openai-chat/text.sse", "own/openai-chat/text.json")
    } else if route.ends_with("/completions") {
        pick("own/openai-completions/text.sse", "own/openai-completions/text.json")
    } else if route.ends_with("/responses") {
        pick("own/openai-responses/text.sse", "own/openai-responses/text.json")
    } else if route.ends_with("/messages") {
        pick("own/anthropic/text.sse", "own/anthropic/text.json")
    } else {
        None
    }
}

/// Reads what a stream says. The format is the folder's name.
#[must_use]
pub fn said(name: &str) -> Said {
    let bytes = read(name).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
    let events: Vec<Value> = if name.ends_with(".json") {
        match serde_json::from_str(&text).unwrap_or_default() {
            Value::Array(events) => events,
            whole => vec![whole],
        }
    } else {
        let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
        data.filter_map(|data| serde_json::from_str(data.trim_start()).ok()).collect()
    };
    let mut said = Said::default();
    for event in &events {
        match name.split('/').nth(1) {
            Some("openai-responses") => responses_event(event, &mut said),
            Some("anthropic") => anthropic_event(event, &mut said),
            Some("gemini") => gemini_event(event, &mut said),
            _ => chat_event(event, &mut said),
        }
    }
    said
}

/// OpenAI chat and its compatibles, legacy completions included; first choice only.
fn chat_event(event: &Value, said: &mut Said) {
    let choices = event["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
    for choice in choices.iter().filter(|choice| choice["index"].as_u64().unwrap_or(0) == 0) {
        push(&mut said.text, &choice["text"]);
        for message in [&choice["delta"], &choice["message"]] {
            match message["content"].as_array() {
                // Mistral's reasoning models: parts in place of a string.
                Some(parts) => {
                    for part in parts {
                        push(&mut said.text, &part["text"]);
                        for thought in part["thinking"].as_array().into_iter().flatten() {
                            push(&mut said.reasoning, &thought["text"]);
                        }
                    }
                }
                None => push(&mut said.text, &message["content"]),
            }
            push(&mut said.reasoning, &message["reasoning_content"]);
            push(&mut said.reasoning, &message["reasoning"]);
            for call in message["tool_calls"].as_array().into_iter().flatten() {
                push_name(&mut said.tools, &call["function"]["name"]);
            }
        }
    }
}

fn responses_event(event: &Value, said: &mut Said) {
    match event["type"].as_str() {
        Some("response.output_text.delta") => push(&mut said.text, &event["delta"]),
        Some("response.reasoning_summary_text.delta") => push(&mut said.reasoning, &event["delta"]),
        Some("response.output_item.added") if event["item"]["type"] == "function_call" => {
            push_name(&mut said.tools, &event["item"]["name"]);
        }
        _ if event["object"] == "response" => {
            for item in event["output"].as_array().into_iter().flatten() {
                for part in item["content"].as_array().into_iter().flatten() {
                    push(&mut said.text, &part["text"]);
                }
                for part in item["summary"].as_array().into_iter().flatten() {
                    push(&mut said.reasoning, &part["text"]);
                }
            }
        }
        _ => {}
    }
}

fn anthropic_event(event: &Value, said: &mut Said) {
    match event["type"].as_str() {
        Some("content_block_start") => {
            let block = &event["content_block"];
            push(&mut said.text, &block["text"]);
            push_name(&mut said.tools, &block["name"]);
        }
        Some("content_block_delta") => match event["delta"]["type"].as_str() {
            Some("text_delta") => push(&mut said.text, &event["delta"]["text"]),
            Some("thinking_delta") => push(&mut said.reasoning, &event["delta"]["thinking"]),
            _ => {}
        },
        Some("message") => {
            for block in event["content"].as_array().into_iter().flatten() {
                push(&mut said.text, &block["text"]);
                push(&mut said.reasoning, &block["thinking"]);
                push_name(&mut said.tools, &block["name"]);
            }
        }
        _ => {}
    }
}

fn gemini_event(event: &Value, said: &mut Said) {
    for part in event["candidates"][0]["content"]["parts"].as_array().into_iter().flatten() {
        let thought = part["thought"] == Value::Bool(true);
        push(if thought { &mut said.reasoning } else { &mut said.text }, &part["text"]);
        push_name(&mut said.tools, &part["functionCall"]["name"]);
    }
}

fn push(text: &mut String, piece: &Value) {
    text.push_str(piece.as_str().unwrap_or_default());
}

fn push_name(names: &mut Vec<String>, name: &Value) {
    names.extend(name.as_str().filter(|name| !name.is_empty()).map(str::to_owned));
}

fn own_folder() -> PathBuf {
    crate::package_folder().join("streams")
}

fn recorded_folder() -> Option<PathBuf> {
    let folder = crate::package_folder().join("../../shared/fixtures/streams");
    folder.is_dir().then_some(folder)
}

fn names_under(folder: &Path, place: &str) -> Vec<String> {
    let mut names = Vec::new();
    for format in std::fs::read_dir(folder).expect("a folder of streams").flatten() {
        let Ok(files) = std::fs::read_dir(format.path()) else { continue };
        for file in files.flatten() {
            let (format, file) = (format.file_name(), file.file_name());
            names.push(format!("{place}/{}/{}", format.to_string_lossy(), file.to_string_lossy()));
        }
    }
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_own_answer_says_something() {
        for name in own().iter().filter(|name| !name.contains("/errors/")) {
            let said = said(name);
            assert!(!said.text.is_empty() || !said.tools.is_empty(), "{name}: {said:?}");
        }
    }

    #[test]
    fn streamed_and_plain_twins_say_the_same() {
        let formats =
            ["openai-chat", "openai-responses", "openai-completions", "anthropic", "gemini"];
        for format in formats {
            let (streamed, plain) =
                (said(&format!("own/{format}/text.sse")), said(&format!("own/{format}/text.json")));
            assert_eq!(streamed, plain, "{format}");
        }
        assert_eq!(said("own/gemini/text.sse"), said("own/gemini/text-array.json"));
    }

    #[test]
    fn names_cannot_leave_their_folder() {
        assert_eq!(read("own/../Cargo.toml"), None);
        assert_eq!(read("elsewhere/text.sse"), None);
    }
}
