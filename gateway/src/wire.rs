//! Provider formats: what is asked in a request, what is said in an answer, how to refuse.
//!
//! The formats stand in one list, [`detectors::Format`], and each function here dispatches on it:
//! [`recognise`] by method, path and content type, [`read_request`] and [`AnswerReader`] to read,
//! [`Refusal::render`] and [`stream_error`] to refuse. Everything that is peculiar to one format
//! is in its one file under `wire/provider/`; how bytes become events is under `wire/framing/`.
//! What is not recognised is not read: it passes through byte for byte.

mod answer;
pub mod framing {
    //! How bytes become events, whatever the provider.

    pub mod grpc;
    pub(crate) mod json;
    pub mod sse;
}
mod provider {
    pub(super) mod anthropic;
    pub(super) mod gemini;
    pub(super) mod openai;
    pub(super) mod openai_chat;
    pub(super) mod openai_completions;
    pub(super) mod openai_responses;
}
#[cfg(test)]
mod recorded;
mod refusal;
mod request;
mod rewrite;
#[cfg(test)]
mod rewritten;

use std::borrow::Cow;

use detectors::{Answer, Format};

pub use answer::{AnswerReader, Delta, Piece};
pub use refusal::{Refusal, RefusalKind, Rendered, stream_error};
pub use request::{Unreadable, read_request};
pub use rewrite::{
    Changes, Edit, EventMeter, MarkerFor, Reasoning, Released, RewriteCounts, Rewriter, TextId,
    TextMarker,
};

/// The format of a request. `path` may carry a query.
///
/// Whatever stands before the known end of a path is free, as gateways and clouds put prefixes
/// there. Percent-encoding, repeated and trailing slashes do not hide a path that a server would
/// still take.
#[must_use]
pub fn recognise(method: &str, path: &str, content_type: Option<&str>) -> Format {
    if method != "POST" {
        return Format::Unknown;
    }
    if content_type.is_some_and(is_grpc) {
        return Format::Grpc;
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let path = percent_decode(path);
    let mut segments = path.rsplit('/').filter(|segment| !segment.is_empty());
    let last = segments.next().unwrap_or_default();
    match (segments.next().unwrap_or_default(), last) {
        ("chat", "completions") => Format::OpenaiChat,
        (_, "completions") => Format::OpenaiCompletions,
        (_, "responses") => Format::OpenaiResponses,
        // Alone, `messages` is the name of many things (threads of the Assistants API, for one).
        ("v1", "messages") => Format::AnthropicMessages,
        _ => match provider::gemini::model_and_method(last) {
            (_, "generateContent" | "streamGenerateContent") => Format::GeminiGenerate,
            _ => Format::Unknown,
        },
    }
}

/// `application/grpc`, with or without a suffix (`+proto`, `-web`).
fn is_grpc(content_type: &str) -> bool {
    let prefix = b"application/grpc";
    let start = content_type.trim_start().as_bytes().get(..prefix.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn percent_decode(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut rest = path.as_bytes();
    let mut out = Vec::with_capacity(rest.len());
    while let [byte, after @ ..] = rest {
        let decoded = match rest {
            [b'%', high, low, ..] => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        out.push(decoded.unwrap_or(*byte));
        rest = if decoded.is_some() { &rest[3..] } else { after };
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Feeds arbitrary bytes to everything that reads JSON: must not panic.
#[doc(hidden)]
pub fn fuzz_json(data: &[u8]) {
    for format in Format::ALL {
        let _ = read_request(format, "/v1beta/models/m:generateContent", data);
        for status in [200, 400] {
            let _ = read_in_pieces(format, status, "application/json", &[data]);
        }
    }
}

/// Feeds arbitrary bytes to everything that reads streams: must not panic, and must read the same
/// wherever the bytes are cut. The first byte chooses where that is.
#[doc(hidden)]
pub fn fuzz_sse(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let (head, tail) = data.split_at(data.len() * usize::from(*first) / 256);
    for format in Format::ALL {
        for content_type in ["text/event-stream", "application/json"] {
            let whole = read_in_pieces(format, 200, content_type, &[data]);
            let cut = read_in_pieces(format, 200, content_type, &[head, tail]);
            assert_eq!(whole, cut, "{format:?} reads differently when cut");
        }
    }
}

/// Feeds arbitrary bytes to everything that rewrites answers: must not panic, must write the same
/// wherever the bytes are cut, and what nobody marks must come out as it came in. The first byte
/// chooses the cut.
#[doc(hidden)]
pub fn fuzz_rewrite(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let (head, tail) = data.split_at(data.len() * usize::from(*first) / 256);
    for format in Format::ALL {
        for content_type in ["text/event-stream", "application/json"] {
            for (begin, marks, notice) in [
                (Rewriter::new as Begin, true, Some("withheld".to_owned())),
                (Rewriter::resume, true, None),
                (Rewriter::new, false, None),
            ] {
                let changes = || Changes {
                    mark: Some(Box::new(
                        move |_| Some(Box::new(rewrite::Hyphens::new(marks)) as _),
                    )),
                    reasoning: match marks {
                        true => Reasoning::Withhold { notice: notice.clone() },
                        false => Reasoning::Keep,
                    },
                };
                let run = |pieces: &[&[u8]]| {
                    let rewriter = begin(format, 200, Some(content_type), changes());
                    rewriter.map(|rewriter| rewrite_in_pieces(rewriter.with_meter(), pieces))
                };
                let whole = run(&[data]);
                assert_eq!(whole, run(&[head, tail]), "{format:?} writes differently when cut");
                assert!(marks || whole.is_none_or(|out| out == data), "{format:?} changes bytes");
            }
            let mut meter = EventMeter::new(format, Some(content_type));
            let mut released = Vec::new();
            meter.push(head, &mut released);
            meter.push(tail, &mut released);
        }
    }
}

/// Either way to begin a rewriter.
type Begin = fn(Format, u16, Option<&str>, Changes) -> Option<Rewriter>;

fn rewrite_in_pieces(mut rewriter: Rewriter, pieces: &[&[u8]]) -> Vec<u8> {
    let mut out = bytes::BytesMut::new();
    for piece in pieces {
        rewriter.push(piece, &mut out);
    }
    rewriter.finish(&mut out);
    out.to_vec()
}

/// The answer and what was not read of it.
fn read_in_pieces(
    format: Format,
    status: u16,
    content_type: &str,
    pieces: &[&[u8]],
) -> (Answer, u64) {
    let mut reader = AnswerReader::new(format, status, Some(content_type));
    for piece in pieces {
        reader.count(piece);
    }
    reader.finish_with(true, &mut |_| {})
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn formats_are_recognised_by_method_path_and_content_type() {
        let json = Some("application/json");
        let cases = [
            ("/v1/chat/completions", Format::OpenaiChat),
            ("/chat/completions", Format::OpenaiChat),
            ("/api/v1/chat/completions", Format::OpenaiChat),
            ("/openai/deployments/x/chat/completions?api-version=2024-10-21", Format::OpenaiChat),
            ("/v1/chat/completions/", Format::OpenaiChat),
            ("//v1//chat//completions", Format::OpenaiChat),
            ("/v1/chat%2Fcompletion%73", Format::OpenaiChat),
            ("/v1/completions", Format::OpenaiCompletions),
            ("/v1/fim/completions", Format::OpenaiCompletions),
            ("/v1/responses", Format::OpenaiResponses),
            ("/openai/responses?api-version=preview", Format::OpenaiResponses),
            ("/v1/messages", Format::AnthropicMessages),
            ("/anthropic/v1/messages?beta=true", Format::AnthropicMessages),
            ("/v1beta/models/m:generateContent", Format::GeminiGenerate),
            ("/v1beta/models/m:streamGenerateContent?alt=sse", Format::GeminiGenerate),
            ("/v1beta/models/m%3AgenerateContent", Format::GeminiGenerate),
            (
                "/v1/projects/p/locations/l/publishers/google/models/m:generateContent",
                Format::GeminiGenerate,
            ),
            ("/v1/messages/count_tokens", Format::Unknown),
            ("/v1/messages/batches", Format::Unknown),
            ("/v1/threads/t/messages", Format::Unknown),
            ("/v1/responses/resp_1", Format::Unknown),
            ("/v1/responses/resp_1/cancel", Format::Unknown),
            ("/v1/embeddings", Format::Unknown),
            ("/v1beta/models/m:countTokens", Format::Unknown),
            ("/v1beta/models/m:embedContent", Format::Unknown),
            ("/v1/chat/completions%", Format::Unknown),
            ("/", Format::Unknown),
            ("", Format::Unknown),
            ("/search?next=/v1/chat/completions", Format::Unknown),
        ];
        for (path, format) in cases {
            assert_eq!(recognise("POST", path, json), format, "{path}");
            assert_eq!(recognise("POST", path, None), format, "{path}");
            assert_eq!(recognise("GET", path, json), Format::Unknown, "{path}");
        }
        for content_type in ["application/grpc", "application/grpc+proto", "Application/gRPC-web"] {
            assert_eq!(recognise("POST", "/llm.Chat/Say", Some(content_type)), Format::Grpc);
            assert_eq!(recognise("GET", "/llm.Chat/Say", Some(content_type)), Format::Unknown);
        }
    }

    #[test]
    fn the_list_holds_every_format_once() {
        let names: std::collections::BTreeSet<&str> =
            Format::ALL.iter().map(|format| format.name()).collect();
        assert_eq!(names.len(), Format::ALL.len());
    }

    /// Bytes in which the words of the formats are common.
    fn noise() -> impl Strategy<Value = Vec<u8>> {
        let words = [
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "\"",
            "\\",
            "\n\n",
            "\r\n\r\n",
            "data: ",
            "event: error\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n",
            "data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"x\"}}\n\n",
            "data: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n",
            "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"x\"}]}}]}",
            "\"messages\"",
            "\"contents\"",
            "\"input\"",
            "\"prompt\"",
            "\"role\"",
            "\"content\"",
            "\"type\"",
            "\"text\"",
            "null",
            "1e9",
            "-1",
            "true",
            "\\ud800",
            "[DONE]",
        ];
        let word = prop_oneof![
            4 => proptest::sample::select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 0..6),
        ];
        proptest::collection::vec(word, 0..30).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(data in noise()) {
            fuzz_json(&data);
            fuzz_sse(&data);
            fuzz_rewrite(&data);
        }

        #[test]
        fn no_path_makes_recognition_panic(path in "\\PC{0,40}", content_type in "\\PC{0,20}") {
            let _ = recognise("POST", &path, Some(&content_type));
        }
    }
}
