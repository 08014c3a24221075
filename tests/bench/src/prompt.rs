//! The requests: chat prompts of 2 KB from a small pool of keys, the same in every run.

use std::fmt::Write as _;

use bytes::Bytes;
use http::Request;

use crate::answer::Kind;

/// Size of every request body.
pub const BODY_BYTES: usize = 2048;
/// Different prompts; each belongs to one key.
const PROMPTS: u64 = 256;
/// Different keys.
const KEYS: u64 = 64;

/// A pool of requests for one kind of answer.
#[derive(Debug)]
pub struct Requests {
    authority: String,
    target: String,
    prompts: Vec<Prompt>,
}

#[derive(Debug)]
struct Prompt {
    key: String,
    body: Bytes,
    http1: Bytes,
}

impl Requests {
    /// The pool for `kind`, addressed to `authority`.
    #[must_use]
    pub fn new(authority: &str, kind: Kind) -> Self {
        let target = kind.target();
        let prompts = (0..PROMPTS)
            .map(|number| {
                let key = format!("sk-bench-{:016x}", (number % KEYS).wrapping_mul(0x9e37_79b9));
                let body = body(number, kind.is_stream());
                let head = format!(
                    "POST {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: bench/1\r\n\
                     Accept: */*\r\nContent-Type: application/json\r\n\
                     Authorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let http1 = [head.as_bytes(), body.as_bytes()].concat().into();
                Prompt { key, body: body.into(), http1 }
            })
            .collect();
        Self { authority: authority.to_owned(), target, prompts }
    }

    /// A whole HTTP/1.1 request.
    #[must_use]
    pub fn http1(&self, number: usize) -> Bytes {
        self.prompts[number % self.prompts.len()].http1.clone()
    }

    /// Head and body of an HTTP/2 request.
    ///
    /// # Errors
    /// When the authority is not one.
    pub fn http2(&self, number: usize) -> Result<(Request<()>, Bytes), http::Error> {
        let prompt = &self.prompts[number % self.prompts.len()];
        let request = Request::post(format!("https://{}{}", self.authority, self.target))
            .header("user-agent", "bench/1")
            .header("accept", "*/*")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", prompt.key))
            .header("content-length", prompt.body.len())
            .body(())?;
        Ok((request, prompt.body.clone()))
    }
}

/// Common words in an order that depends on `seed`.
#[must_use]
pub fn words(seed: u64) -> Vec<&'static str> {
    const WORDS: [&str; 40] = [
        "account",
        "answer",
        "because",
        "before",
        "between",
        "change",
        "customer",
        "data",
        "describe",
        "difference",
        "example",
        "explain",
        "file",
        "following",
        "function",
        "give",
        "group",
        "history",
        "however",
        "input",
        "language",
        "list",
        "method",
        "number",
        "order",
        "people",
        "please",
        "problem",
        "process",
        "question",
        "reason",
        "report",
        "result",
        "section",
        "simple",
        "system",
        "table",
        "value",
        "water",
        "write",
    ];
    let mut random = Random::new(seed);
    (0..400).map(|_| WORDS[random.below(WORDS.len())]).collect()
}

/// A small generator of numbers (xorshift64*): the same seed gives the same load.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator whose numbers follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from 0 up to, not with, `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() >> 33).unwrap_or(0) % end.max(1)
    }

    /// A number over 0 and up to 1.
    pub fn fraction(&mut self) -> f64 {
        ((self.number() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

fn body(seed: u64, stream: bool) -> String {
    const TAIL: &str = "\"}]}";
    let streamed =
        if stream { r#""stream":true,"stream_options":{"include_usage":true},"# } else { "" };
    let mut body = format!(
        "{{\"model\":\"bench-model\",{streamed}\"temperature\":0.7,\"max_tokens\":512,\
         \"messages\":[{{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"}},\
         {{\"role\":\"user\",\"content\":\"Ticket {seed}:"
    );
    for word in words(seed) {
        if body.len() + 1 + word.len() + TAIL.len() > BODY_BYTES {
            break;
        }
        let _ = write!(body, " {word}");
    }
    while body.len() + TAIL.len() < BODY_BYTES {
        body.push('.');
    }
    body + TAIL
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{Framing, Head, Start};

    #[test]
    fn bodies_are_json_of_the_stated_size() {
        for kind in [Kind::Whole, Kind::Fast { events: 100 }] {
            let requests = Requests::new("localhost:1", kind);
            for number in 0..PROMPTS as usize {
                let (_, body) = requests.http2(number).unwrap();
                assert_eq!(body.len(), BODY_BYTES);
                let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(json["stream"].as_bool().unwrap_or_default(), kind.is_stream());
                let raw = requests.http1(number);
                let (head, length) = Head::parse(&raw, Start::Request).unwrap().unwrap();
                assert_eq!(head.framing, Framing::Length(BODY_BYTES as u64));
                assert_eq!(raw[length..], body);
            }
        }
    }

    #[test]
    fn fractions_are_spread_over_the_unit() {
        let mut random = Random::new(1);
        let fractions: Vec<f64> = (0..10_000).map(|_| random.fraction()).collect();
        assert!(fractions.iter().all(|fraction| *fraction > 0.0 && *fraction <= 1.0));
        let mean = fractions.iter().sum::<f64>() / 10_000.0;
        assert!((0.48..0.52).contains(&mean), "{mean}");
    }
}
