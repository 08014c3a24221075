//! What the request readers of all formats share.

use detectors::{Conversation, Format, Role, Text, Turn};
use serde_json::error::Category;
use thiserror::Error;

use super::framing::json::{self, TooMany};
use super::provider::{anthropic, gemini, openai_chat, openai_completions, openai_responses};
use crate::limits::{NAME_BYTES_MAX, TURNS_MAX};

/// Why a request could not be read. Says what and where; never quotes the request.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Unreadable {
    /// The body is not a JSON object.
    #[error("the request body is not a JSON object")]
    NotAnObject,
    /// The body is broken JSON.
    #[error("the request body is not valid JSON (line {line}, column {column})")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// The body stops before its JSON does.
    #[error("the request body ends in the middle of its JSON (line {line}, column {column})")]
    CutOff {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// The body nests deeper than it may.
    #[error("the request body nests too deep (line {line}, column {column})")]
    TooDeep {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// A list in the body has more items than are read.
    #[error("the request body has a list with too many items (line {line}, column {column})")]
    TooMany {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
}

/// Reads the conversation of a request.
///
/// `path` is the request's path with its query; Gemini names the model there. The body must be
/// free of any content coding. gRPC and unknown formats have nothing to read and give an empty
/// conversation.
///
/// # Errors
///
/// When the body is not JSON, or holds more than is read; unknown fields and fields of an
/// unexpected type are no error.
pub fn read_request(format: Format, path: &str, body: &[u8]) -> Result<Conversation, Unreadable> {
    let reader = match format {
        Format::OpenaiChat => openai_chat::read_request,
        Format::OpenaiResponses => openai_responses::read_request,
        Format::OpenaiCompletions => openai_completions::read_request,
        Format::AnthropicMessages => anthropic::read_request,
        Format::GeminiGenerate => gemini::read_request,
        Format::Grpc | Format::Unknown => return Ok(Conversation::default()),
    };
    // Every reader takes any JSON for an object without fields, so this is looked at first. The
    // marks and zero bytes before the brace belong to other Unicode encodings.
    let brace = body.iter().find(|b| !b.is_ascii_whitespace() && !MARK.contains(b));
    if brace != Some(&b'{') {
        return Err(Unreadable::NotAnObject);
    }
    json::read(body, |body| reader(path, body)).map_err(|error| unreadable(&error))
}

/// Bytes of byte order marks, and the zeros of UTF-16 and UTF-32.
const MARK: [u8; 6] = [0xef, 0xbb, 0xbf, 0xfe, 0xff, 0];

/// A conversation in the making: leading instructions go to the system prompt, later ones are
/// turns.
#[derive(Debug, Default)]
pub(crate) struct Dialogue {
    pub(crate) system: Text,
    pub(crate) turns: Vec<Turn>,
}

impl Dialogue {
    /// Appends a turn.
    pub(crate) fn push(&mut self, turn: Turn) -> Result<(), TooMany> {
        if turn.role == Role::System && self.turns.is_empty() && turn.attachments == 0 {
            self.system.join(turn.text.as_str());
            return Ok(());
        }
        if self.turns.len() == TURNS_MAX {
            return Err(TooMany);
        }
        self.turns.push(turn);
        Ok(())
    }
}

/// A turn of text only.
pub(crate) fn text_turn(role: Role, text: impl Into<String>) -> Turn {
    Turn { role, text: Text::new(text), tool_calls: Vec::new(), attachments: 0 }
}

/// A name, cut to the length that is kept.
pub(crate) fn name(name: &str) -> String {
    name[..name.floor_char_boundary(NAME_BYTES_MAX)].to_owned()
}

/// Only the place and the kind: serde_json's own words may quote the request.
fn unreadable(error: &serde_json::Error) -> Unreadable {
    let (line, column) = (error.line(), error.column());
    match error.classify() {
        Category::Eof => Unreadable::CutOff { line, column },
        Category::Data => Unreadable::TooMany { line, column },
        Category::Io | Category::Syntax => {
            if error.to_string().starts_with("recursion limit exceeded") {
                Unreadable::TooDeep { line, column }
            } else {
                Unreadable::Syntax { line, column }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_says_where_and_quotes_nothing() {
        let deep = format!(r#"{{"messages":{}"#, "[".repeat(1000));
        let many = format!(r#"{{"messages":[{}{{}}]}}"#, "{},".repeat(TURNS_MAX));
        let cases: [(&str, &str); 8] = [
            ("", "not a JSON object"),
            ("  ", "not a JSON object"),
            ("[]", "not a JSON object"),
            ("\"secret\"", "not a JSON object"),
            ("{\"messages\": secret}", "not valid JSON (line 1, column 14)"),
            (
                "{\"messages\":\n[{\"content\":\"secret",
                "ends in the middle of its JSON (line 2, column",
            ),
            (&deep, "nests too deep (line 1, column"),
            (&many, "too many items (line 1, column"),
        ];
        for (body, expected) in cases {
            let error = read_request(Format::OpenaiChat, "/", body.as_bytes()).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(expected), "{message}");
            assert!(!message.contains("secret") && !format!("{error:?}").contains("secret"));
        }
    }

    #[test]
    fn formats_without_a_reader_give_an_empty_conversation() {
        for format in [Format::Grpc, Format::Unknown] {
            assert_eq!(read_request(format, "/", b"\0\0"), Ok(Conversation::default()));
        }
    }

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(name("gpt"), "gpt");
        assert_eq!(name(&"ü".repeat(200)).len(), 256);
        assert_eq!(name(&format!("x{}", "ü".repeat(200))).len(), 255);
    }
}
