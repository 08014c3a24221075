//! The requests: chat prompts of 2 KB from a small pool of keys, the same in every run.

use bytes::Bytes;
use http::Request;

use crate::answer::Kind;
use crate::prose;

/// Size of every request body.
pub const BODY_BYTES: usize = 2048;
/// Different keys, each an account.
pub const KEYS: usize = 1000;
/// Different prompts where any will do.
const PROMPTS_FEW: u64 = 256;
/// Different prompts of a load: four times as many as the gateway remembers the readings of.
const PROMPTS_VARIED: u64 = 16_384;

/// A pool of requests for one kind of answer.
#[derive(Debug)]
pub struct Requests {
    authority: String,
    target: String,
    keys: Vec<String>,
    /// Heads of HTTP/1.1 requests, one for each key.
    heads: Vec<String>,
    bodies: Vec<Bytes>,
}

impl Requests {
    /// A small pool for `kind`, addressed to `authority`.
    #[must_use]
    pub fn new(authority: &str, kind: Kind) -> Self {
        Self::pool(authority, kind, 0, PROMPTS_FEW)
    }

    /// A pool so large that no prompt comes again while it may be remembered. Another seed gives
    /// other prompts; the keys stay.
    #[must_use]
    pub fn varied(authority: &str, kind: Kind, seed: u64) -> Self {
        Self::pool(authority, kind, seed.wrapping_mul(PROMPTS_VARIED), PROMPTS_VARIED)
    }

    fn pool(authority: &str, kind: Kind, first: u64, prompts: u64) -> Self {
        let target = kind.target();
        let keys: Vec<String> = (0..KEYS as u64)
            .map(|number| format!("sk-bench-{:016x}", number.wrapping_mul(0x9e37_79b9)))
            .collect();
        let head = |key: &String| {
            format!(
                "POST {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: bench/1\r\n\
                 Accept: */*\r\nContent-Type: application/json\r\n\
                 Authorization: Bearer {key}\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
            )
        };
        let heads = keys.iter().map(head).collect();
        let body = |number| body(first.wrapping_add(number), kind.is_stream()).into();
        let bodies = (0..prompts).map(body).collect();
        Self { authority: authority.to_owned(), target, keys, heads, bodies }
    }

    /// A whole HTTP/1.1 request. Its key is `number` modulo [`KEYS`].
    #[must_use]
    pub fn http1(&self, number: usize) -> Vec<u8> {
        let head = &self.heads[number % KEYS];
        [head.as_bytes(), &self.bodies[number % self.bodies.len()]].concat()
    }

    /// Head and body of an HTTP/2 request, with the same key and prompt.
    ///
    /// # Errors
    /// When the authority is not one.
    pub fn http2(&self, number: usize) -> Result<(Request<()>, Bytes), http::Error> {
        let body = self.bodies[number % self.bodies.len()].clone();
        let request = Request::post(format!("https://{}{}", self.authority, self.target))
            .header("user-agent", "bench/1")
            .header("accept", "*/*")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", self.keys[number % KEYS]))
            .header("content-length", body.len())
            .body(())?;
        Ok((request, body))
    }
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
         {{\"role\":\"user\",\"content\":\""
    );
    body += &prose::prompt(seed, BODY_BYTES - body.len() - TAIL.len());
    body + TAIL
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::http1::{Framing, Head, Start};

    #[test]
    fn bodies_are_json_of_the_stated_size() {
        for kind in [Kind::Whole, Kind::Fast { events: 100 }] {
            let requests = Requests::new("localhost:1", kind);
            for number in 0..PROMPTS_FEW as usize {
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
    fn prompts_of_a_load_differ() {
        let pool = |seed| Requests::varied("localhost:1", Kind::Whole, seed);
        let (one, other) = (pool(1), pool(2));
        let bodies: HashSet<&Bytes> = one.bodies.iter().chain(&other.bodies).collect();
        assert_eq!(bodies.len() as u64, 2 * PROMPTS_VARIED);
        assert_eq!(one.keys.iter().collect::<HashSet<_>>().len(), KEYS);
        assert_eq!(one.keys, other.keys);
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
