//! What the fake model API answers, chosen by the request's query.
//!
//! The shape is that of an OpenAI chat completion (`chat.completion.chunk` events of about 200
//! bytes, one chunk of the chunked body each, a usage event and `[DONE]` at the end), the text plain
//! prose, word by word, the first tenth of it reasoning (`reasoning_content`). Both ends
//! build it from this file, so that the load generator knows how many bytes must arrive.

use std::time::Duration;

use bytes::Bytes;

use crate::prose;

/// Path of every request; the query is appended.
pub const PATH: &str = "/v1/chat/completions";

/// Most events that a query may ask for.
const EVENTS_MAX: u32 = 10_000;
/// The last event of a stream.
const DONE: &str = "data: [DONE]\n\n";
/// One event in as many is reasoning, from the first on.
const REASONING_SHARE: u32 = 10;

/// The kind of answer that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A stream whose events are ready together.
    Fast {
        /// Events before usage and `[DONE]`.
        events: u32,
    },
    /// A stream whose events come one by one.
    Paced {
        /// Events before usage and `[DONE]`.
        events: u32,
        /// Time between two events.
        pace: Duration,
    },
    /// A small answer in one JSON object.
    Whole,
}

/// A rendered answer.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// Response head and, where all is ready together, the framed body.
    pub first: Bytes,
    /// Framed pieces that follow one by one, the first of them at once.
    pub paced: Vec<Bytes>,
    /// Bytes of the body without its framing.
    pub body_bytes: u64,
}

impl Kind {
    /// Target that asks for this kind.
    #[must_use]
    pub fn target(self) -> String {
        match self {
            Self::Fast { events } => format!("{PATH}?events={events}"),
            Self::Paced { events, pace } => {
                format!("{PATH}?events={events}&pace_ms={}", pace.as_millis())
            }
            Self::Whole => PATH.to_owned(),
        }
    }

    /// The kind that a target asks for; `None` where it is not one of ours.
    #[must_use]
    pub fn of_target(target: &str) -> Option<Self> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if !path.ends_with(PATH) {
            return None;
        }
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value.parse::<u32>().ok())
        };
        let Some(events) = value("events") else { return Some(Self::Whole) };
        let events = events.filter(|events| (1..=EVENTS_MAX).contains(events))?;
        match value("pace_ms") {
            None => Some(Self::Fast { events }),
            Some(pace_ms) => {
                Some(Self::Paced { events, pace: Duration::from_millis(pace_ms?.into()) })
            }
        }
    }

    /// Whether the answer is a stream of events.
    #[must_use]
    pub fn is_stream(self) -> bool {
        self != Self::Whole
    }

    /// The last bytes of every answer of this kind, changed on the way or not.
    #[must_use]
    pub fn end(self) -> &'static [u8] {
        if self.is_stream() { DONE.as_bytes() } else { b"}}" }
    }

    /// Events that a reader of the answer counts; usage and `[DONE]` are two.
    #[must_use]
    pub fn events(self) -> u32 {
        match self {
            Self::Fast { events } | Self::Paced { events, .. } => events + 2,
            Self::Whole => 0,
        }
    }

    /// Time that the upstream takes over the answer.
    #[must_use]
    pub fn duration(self) -> Duration {
        match self {
            Self::Paced { events, pace } => pace * events,
            Self::Fast { .. } | Self::Whole => Duration::ZERO,
        }
    }

    /// Builds the answer.
    #[must_use]
    pub fn render(self) -> Rendered {
        let (events, paced) = match self {
            Self::Whole => return whole(),
            Self::Fast { events } => (events, false),
            Self::Paced { events, .. } => (events, true),
        };
        let mut first = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
            cache-control: no-cache\r\nopenai-processing-ms: 12\r\nx-request-id: req_bench\r\n\
            transfer-encoding: chunked\r\n\r\n"
            .to_vec();
        let mut pieces = Vec::new();
        let mut body_bytes = 0;
        let text = prose::answer(u64::from(events), events as usize);
        for number in 0..events {
            let event = event(number, events, &text[number as usize]);
            body_bytes += event.len() as u64;
            let mut piece = chunk(&event);
            if number + 1 == events {
                for event in [usage(events), DONE.to_owned()] {
                    body_bytes += event.len() as u64;
                    piece.extend_from_slice(&chunk(&event));
                }
                piece.extend_from_slice(b"0\r\n\r\n");
            }
            if paced {
                pieces.push(Bytes::from(piece));
            } else {
                first.extend_from_slice(&piece);
            }
        }
        Rendered { first: first.into(), paced: pieces, body_bytes }
    }
}

fn chunk(event: &str) -> Vec<u8> {
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

fn event(number: u32, events: u32, word: &str) -> String {
    let role = if number == 0 { r#""role":"assistant","# } else { "" };
    let field = if number < events / REASONING_SHARE { "reasoning_content" } else { "content" };
    let finish = if number + 1 == events { r#""stop""# } else { "null" };
    format!(
        "data: {{\"id\":\"chatcmpl-00000000000000\",\"object\":\"chat.completion.chunk\",\
         \"created\":1700000000,\"model\":\"bench-model\",\"choices\":[{{\"index\":0,\
         \"delta\":{{{role}\"{field}\":\"{word}\"}},\"logprobs\":null,\
         \"finish_reason\":{finish}}}]}}\n\n"
    )
}

fn usage(events: u32) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-00000000000000\",\"object\":\"chat.completion.chunk\",\
         \"created\":1700000000,\"model\":\"bench-model\",\"choices\":[],\
         \"usage\":{{\"prompt_tokens\":480,\"completion_tokens\":{events},\"total_tokens\":{}}}}}\
         \n\n",
        480 + events
    )
}

fn whole() -> Rendered {
    let text = prose::answer(7, 40).concat();
    let body = format!(
        "{{\"id\":\"chatcmpl-00000000000000\",\"object\":\"chat.completion\",\
         \"created\":1700000000,\"model\":\"bench-model\",\"choices\":[{{\"index\":0,\
         \"message\":{{\"role\":\"assistant\",\"content\":\"{text}\"}},\"logprobs\":null,\
         \"finish_reason\":\"stop\"}}],\"usage\":{{\"prompt_tokens\":480,\
         \"completion_tokens\":40,\"total_tokens\":520}}}}"
    );
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nopenai-processing-ms: 12\r\n\
         x-request-id: req_bench\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Rendered { first: (head + &body).into(), paced: Vec::new(), body_bytes: body.len() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{Body, Head, Start};

    const KINDS: [Kind; 4] = [
        Kind::Whole,
        Kind::Fast { events: 100 },
        Kind::Fast { events: 1 },
        Kind::Paced { events: 7, pace: Duration::from_millis(20) },
    ];

    #[test]
    fn targets_are_read_back() {
        for kind in KINDS {
            assert_eq!(Kind::of_target(&kind.target()), Some(kind));
        }
        for target in
            ["/", "/v1/models", "/v1/chat/completions?events=x", "/v1/chat/completions?events=0"]
        {
            assert_eq!(Kind::of_target(target), None, "{target}");
        }
    }

    #[test]
    fn answers_are_framed_json_of_the_stated_size() {
        for kind in KINDS {
            let rendered = kind.render();
            let mut bytes = rendered.first.to_vec();
            bytes.extend(rendered.paced.iter().flatten());
            let (head, length) = Head::parse(&bytes, Start::Response).unwrap().unwrap();
            let mut body = Body::new(head.framing);
            let mut plain = Vec::new();
            let read = body.read(&bytes[length..], |piece| plain.extend_from_slice(piece)).unwrap();
            assert!(body.is_done());
            assert_eq!(length + read, bytes.len());
            assert_eq!(plain.len() as u64, rendered.body_bytes);
            assert!(plain.ends_with(kind.end()));
            let text = String::from_utf8(plain).unwrap();
            if kind == Kind::Whole {
                serde_json::from_str::<serde_json::Value>(&text).unwrap();
                continue;
            }
            let events: Vec<_> = text.split_terminator("\n\n").collect();
            assert_eq!(events.len(), kind.events() as usize);
            let (last, events) = events.split_last().unwrap();
            assert_eq!(*last, "data: [DONE]");
            for event in events {
                let json = event.strip_prefix("data: ").unwrap();
                serde_json::from_str::<serde_json::Value>(json).unwrap();
                assert!((180..260).contains(&event.len()), "{}", event.len());
            }
        }
    }
}
