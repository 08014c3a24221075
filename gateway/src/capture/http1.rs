//! The HTTP/1 tap: follows a client's requests through the decrypted bytes.
//!
//! It keeps each request's head as sent (order and case of the fields are the fingerprint) and
//! checks framing where it is decided, on the bytes. Pingora repairs some of what it reads: it
//! escapes a space in the request target, takes an empty chunk-size line for the last chunk, drops
//! a Content-Length beside a Transfer-Encoding. Here all of that is a fault (RFC 9112, section
//! 11.2), found before pingora sees the bytes. The tap changes nothing on the way.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use memchr::memchr;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::limits::{CHUNK_LINE_BYTES_MAX, HTTP1_TRAILER_BYTES_MAX, HTTP1_UNCLAIMED_MAX};
use crate::proxy::framing::{self, BodyLength, FramingFault};

/// A request head as sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Http1Request {
    /// Field lines in wire order and case. They hold credentials: `Debug` does not show them.
    pub headers: Vec<(Bytes, Bytes)>,
    /// Whether it opens a WebSocket.
    pub websocket: bool,
}

impl std::fmt::Debug for Http1Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http1Request").field("fields", &self.headers.len()).finish()
    }
}

/// What the tap of a connection has seen, shared with the proxy.
#[derive(Debug, Default)]
pub struct Http1Connection {
    seen: Mutex<Seen>,
    begun: Notify,
}

#[derive(Debug, Default)]
struct Seen {
    unclaimed: VecDeque<Http1Request>,
    heads_begun: u64,
    heads_claimed: u64,
    fault: Option<FramingFault>,
}

impl Http1Connection {
    /// The next request's head, in the order in which they came.
    ///
    /// # Errors
    /// The fault that was met instead. Whatever follows a fault is not read.
    pub fn claim(&self) -> Result<Http1Request, FramingFault> {
        let mut seen = self.seen.lock();
        seen.heads_claimed += 1;
        match (seen.unclaimed.pop_front(), seen.fault) {
            (Some(request), _) => Ok(request),
            (None, Some(fault)) => Err(fault),
            // Pingora read a head that the tap did not: they disagree on where requests begin.
            (None, None) => Err(FramingFault::MalformedHead),
        }
    }

    /// Waits until the first byte of a head that is not claimed yet has come.
    pub async fn head_begun(&self) {
        loop {
            {
                let seen = self.seen.lock();
                if seen.heads_begun > seen.heads_claimed || seen.fault.is_some() {
                    return;
                }
            }
            self.begun.notified().await;
        }
    }

    /// The fault that ended the tap, if one did. While a body is read it tells of that body.
    #[must_use]
    pub fn fault(&self) -> Option<FramingFault> {
        self.seen.lock().fault
    }
}

/// Follows one connection.
#[derive(Debug)]
pub struct Http1Tap {
    connection: Arc<Http1Connection>,
    over_tls: bool,
    head_bytes_max: usize,
    state: State,
    /// The head, chunk-size line or trailer section that is being read.
    held: BytesMut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a request line; empty lines are skipped (RFC 9112, section 2.2).
    Start,
    Head,
    /// Body bytes left.
    Length(u64),
    ChunkSize,
    /// Bytes of the chunk left.
    Chunk(u64),
    /// The line break behind a chunk: bytes of it that have come.
    ChunkEnd(u8),
    Trailers,
    /// A fault, or a protocol that is not HTTP/1.
    Off,
}

impl Http1Tap {
    /// A tap at the start of a connection.
    #[must_use]
    pub fn new(connection: Arc<Http1Connection>, over_tls: bool, head_bytes_max: usize) -> Self {
        Self { connection, over_tls, head_bytes_max, state: State::Start, held: BytesMut::new() }
    }

    /// Takes the next bytes that the client sent.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.state != State::Off {
            match self.step(bytes) {
                Ok(used) => bytes = &bytes[used..],
                Err(fault) => {
                    self.state = State::Off;
                    self.held = BytesMut::new();
                    self.connection.seen.lock().fault = Some(fault);
                }
            }
        }
    }

    fn step(&mut self, bytes: &[u8]) -> Result<usize, FramingFault> {
        match self.state {
            State::Start => {
                let blank = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
                if blank < bytes.len() {
                    self.state = State::Head;
                    self.connection.seen.lock().heads_begun += 1;
                    self.connection.begun.notify_one();
                }
                Ok(blank)
            }
            State::Head => self.head(bytes),
            State::Length(left) => Ok(self.skip(bytes, left, State::Length, State::Start)),
            State::ChunkSize => self.chunk_size(bytes),
            State::Chunk(left) => Ok(self.skip(bytes, left, State::Chunk, State::ChunkEnd(0))),
            State::ChunkEnd(seen) => match (seen, bytes[0]) {
                (0, b'\r') => {
                    self.state = State::ChunkEnd(1);
                    Ok(1)
                }
                (1, b'\n') => {
                    self.state = State::ChunkSize;
                    Ok(1)
                }
                _ => Err(FramingFault::Chunks),
            },
            State::Trailers => self.trailers(bytes),
            State::Off => Ok(bytes.len()),
        }
    }

    fn skip(&mut self, bytes: &[u8], left: u64, more: fn(u64) -> State, after: State) -> usize {
        let used = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - used as u64;
        self.state = if left == 0 { after } else { more(left) };
        used
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, FramingFault> {
        let used = self.hold_line(bytes, self.head_bytes_max, FramingFault::HeadTooLarge)?;
        // An empty line ends the head; a line that is not ended by CR LF is never one of ours.
        if self.held.ends_with(b"\n") && !self.held.ends_with(b"\r\n") {
            return Err(FramingFault::BareLineBreak);
        }
        if self.held.ends_with(b"\r\n\r\n") {
            let raw = std::mem::take(&mut self.held).freeze();
            self.state = self.begin(&raw)?;
        }
        Ok(used)
    }

    fn begin(&mut self, raw: &Bytes) -> Result<State, FramingFault> {
        let head = framing::read_http1(raw, self.over_tls)?;
        let headers = head
            .fields
            .iter()
            .map(|field| (raw.slice_ref(field.name), raw.slice_ref(field.value)))
            .collect();
        let mut seen = self.connection.seen.lock();
        if seen.unclaimed.len() >= HTTP1_UNCLAIMED_MAX {
            return Err(FramingFault::MalformedHead);
        }
        seen.unclaimed.push_back(Http1Request { headers, websocket: head.websocket });
        Ok(match head.body {
            // What follows may be another protocol. The proxy does not use the connection again.
            _ if head.websocket => State::Off,
            BodyLength::None => State::Start,
            BodyLength::Known(length) => State::Length(length),
            BodyLength::Chunked => State::ChunkSize,
        })
    }

    fn chunk_size(&mut self, bytes: &[u8]) -> Result<usize, FramingFault> {
        let used = self.hold_line(bytes, CHUNK_LINE_BYTES_MAX, FramingFault::Chunks)?;
        if self.held.ends_with(b"\n") {
            let size = read_chunk_size(&self.held).ok_or(FramingFault::Chunks)?;
            self.held.clear();
            self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
        }
        Ok(used)
    }

    fn trailers(&mut self, bytes: &[u8]) -> Result<usize, FramingFault> {
        let used = self.hold_line(bytes, HTTP1_TRAILER_BYTES_MAX, FramingFault::Chunks)?;
        if self.held.ends_with(b"\n") {
            if !self.held.ends_with(b"\r\n") {
                return Err(FramingFault::BareLineBreak);
            }
            if &self.held[..] == b"\r\n" || self.held.ends_with(b"\r\n\r\n") {
                self.held.clear();
                self.state = State::Start;
            }
        }
        Ok(used)
    }

    /// Holds bytes up to and with the next LF.
    fn hold_line(
        &mut self,
        bytes: &[u8],
        max: usize,
        too_long: FramingFault,
    ) -> Result<usize, FramingFault> {
        let used = memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1);
        if self.held.len() + used > max {
            return Err(too_long);
        }
        self.held.extend_from_slice(&bytes[..used]);
        Ok(used)
    }
}

/// `1*HEXDIG [ chunk-ext ] CRLF` (RFC 9112, section 7.1).
fn read_chunk_size(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"\r\n")?;
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at(digits);
    // 15 digits keep clear of every integer's end.
    let sound = (1..=15).contains(&digits)
        && (extension.is_empty() || extension.trim_ascii_start().starts_with(b";"))
        && extension.iter().all(|b| *b == b'\t' || (0x20..0x7f).contains(b));
    if !sound {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()
}

#[doc(hidden)]
pub fn fuzz_http1(data: &[u8]) {
    // The same requests and the same fault, wherever the bytes are cut.
    let read = |step: usize| {
        let connection = Arc::new(Http1Connection::default());
        let mut tap = Http1Tap::new(connection.clone(), true, 4096);
        for piece in data.chunks(step) {
            tap.feed(piece);
        }
        let mut heads = Vec::new();
        while let Ok(head) = connection.claim() {
            heads.push(head);
        }
        (heads, connection.fault())
    };
    assert_eq!(read(data.len().max(1)), read(1));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Requests that were read, by their number of fields, and the fault.
    fn read(bytes: &[u8], step: usize) -> (Vec<usize>, Option<FramingFault>) {
        let connection = Arc::new(Http1Connection::default());
        let mut tap = Http1Tap::new(connection.clone(), true, 1024);
        for piece in bytes.chunks(step) {
            tap.feed(piece);
        }
        let mut heads = Vec::new();
        while let Ok(head) = connection.claim() {
            heads.push(head.headers.len());
        }
        (heads, connection.fault())
    }

    const HOST: &str = "Host: a\r\n";

    #[test]
    fn requests_are_told_apart_wherever_the_bytes_are_cut() {
        let requests = format!(
            "\r\nGET / HTTP/1.1\r\n{HOST}\r\n\
             POST / HTTP/1.1\r\n{HOST}Content-Length: 16\r\n\r\nGET / HTTP/1.1\r\n\
             POST / HTTP/1.1\r\n{HOST}A: b\r\nTransfer-Encoding: chunked\r\n\r\n\
             5;name=\"v\"\r\nhello\r\nA\r\n0\r\n\r\n01234\r\n0\r\nTrailer: x\r\n\r\n\
             DELETE /x HTTP/1.1\r\n{HOST}\r\n"
        );
        for step in 1..=requests.len() {
            assert_eq!(read(requests.as_bytes(), step), (vec![1, 2, 3, 1], None), "{step}");
        }
    }

    #[test]
    fn order_and_case_are_kept() {
        let connection = Arc::new(Http1Connection::default());
        let mut tap = Http1Tap::new(connection.clone(), true, 1024);
        tap.feed(b"GET / HTTP/1.1\r\nhOsT: a\r\nX-b:  c \r\n\r\n");
        let head = connection.claim().unwrap();
        let seen: Vec<(&[u8], &[u8])> =
            head.headers.iter().map(|(n, v)| (&n[..], &v[..])).collect();
        assert_eq!(seen, [(&b"hOsT"[..], &b"a"[..]), (b"X-b", b"c")]);
        assert!(!format!("{head:?}").contains("hOsT"));
    }

    #[tokio::test]
    async fn a_head_begins_with_its_first_byte() {
        let connection = Arc::new(Http1Connection::default());
        let mut tap = Http1Tap::new(connection.clone(), true, 1024);
        let begun = || async {
            let wait = std::time::Duration::from_millis(5);
            tokio::time::timeout(wait, connection.head_begun()).await.is_ok()
        };
        assert!(!begun().await);
        tap.feed(b"\r\n");
        assert!(!begun().await);
        tap.feed(b"G");
        assert!(begun().await);
        tap.feed(b"ET / HTTP/1.1\r\nHost: a\r\n\r\n");
        connection.claim().unwrap();
        assert!(!begun().await, "that one is claimed");
    }

    #[test]
    fn ill_formed_bodies_are_faults() {
        use FramingFault::*;
        let chunked = format!("POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n");
        let cases: &[(&str, FramingFault)] = &[
            ("\r\n\r\n", Chunks),
            (";ext\r\n", Chunks),
            ("0x5\r\nhello\r\n", Chunks),
            ("+5\r\nhello\r\n", Chunks),
            ("5 \r\nhello\r\n", Chunks),
            (" 5\r\nhello\r\n", Chunks),
            ("5\nhello\r\n", Chunks),
            ("5\r\nhello\n", Chunks),
            ("5\r\nhello!\r\n", Chunks),
            ("5;a\rb\r\nhello\r\n", Chunks),
            ("fffffffffffffffff\r\n", Chunks),
            ("g\r\n", Chunks),
            ("0\r\nA: b\n\r\n", BareLineBreak),
        ];
        for (body, fault) in cases {
            let bytes = format!("{chunked}{body}");
            for step in [1, 7, bytes.len()] {
                assert_eq!(read(bytes.as_bytes(), step), (vec![3 - 1], Some(*fault)), "{body:?}");
            }
        }
    }

    #[test]
    fn nothing_behind_a_fault_or_an_upgrade_is_read() {
        let after = format!("GET /2 HTTP/1.1\r\n{HOST}\r\n");
        let fault = format!("GET / HTTP/1.1\r\nHost : a\r\n\r\n{after}");
        assert_eq!(read(fault.as_bytes(), 9), (vec![], Some(FramingFault::FieldName)));
        let upgrade = format!(
            "GET / HTTP/1.1\r\n{HOST}Upgrade: websocket\r\nConnection: upgrade\r\n\r\n{after}"
        );
        assert_eq!(read(upgrade.as_bytes(), 9), (vec![3], None));
    }

    #[test]
    fn what_is_held_has_a_bound() {
        let long = format!("GET / HTTP/1.1\r\nA: {}", "b".repeat(2000));
        assert_eq!(read(long.as_bytes(), 100), (vec![], Some(FramingFault::HeadTooLarge)));
        let many = format!("GET / HTTP/1.1\r\n{HOST}\r\n").repeat(HTTP1_UNCLAIMED_MAX + 1);
        assert_eq!(read(many.as_bytes(), 64).1, Some(FramingFault::MalformedHead));
    }

    proptest! {
        #[test]
        fn cuts_change_nothing_and_nothing_panics(
            pieces in proptest::collection::vec(proptest::sample::select(vec![
                "GET / HTTP/1.1\r\n", "Host: a\r\n", "\r\n", "\n", "\r", "Content-Length: 3\r\n",
                "Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n", "0\r\n\r\n", "x", " ", ":", "1",
            ]), 0..30),
        ) {
            fuzz_http1(pieces.concat().as_bytes());
        }

        #[test]
        fn no_bytes_make_it_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_http1(&data);
        }
    }
}
