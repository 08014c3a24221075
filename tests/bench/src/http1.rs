//! As much HTTP/1.1 as the two ends of the stand speak: heads and bodies (RFC 9112), nothing kept.
//!
//! It is lean so that the load generator is not what is measured, and strict: whatever it cannot
//! read is an error, which the load generator counts.

use std::fmt;

/// A head with its end; larger ones are an error.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// A chunk-size line (with extensions) or a trailer line.
const LINE_BYTES_MAX: usize = 4 * 1024;

/// Which of the two messages a head starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A request.
    Request,
    /// A response.
    Response,
}

/// What must be known of a message's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Request line or status line.
    pub line: String,
    /// How the body is delimited.
    pub framing: Framing,
    /// Whether the connection ends with this message.
    pub close: bool,
}

/// How a body is delimited (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By its length, which may be zero.
    Length(u64),
    /// By chunks.
    Chunked,
    /// By the connection's end.
    UntilClose,
}

/// Bytes that are not HTTP/1.1 as we speak it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed HTTP/1.1: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

impl From<Malformed> for std::io::Error {
    fn from(error: Malformed) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

impl Head {
    /// Reads a head and its length in bytes; `None` when more is needed.
    ///
    /// # Errors
    /// When the bytes are not a head.
    pub fn parse(bytes: &[u8], start: Start) -> Result<Option<(Self, usize)>, Malformed> {
        let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
            let too_long = bytes.len() > HEAD_BYTES_MAX;
            return if too_long { Err(Malformed("the head is too long")) } else { Ok(None) };
        };
        let head =
            std::str::from_utf8(&bytes[..end]).map_err(|_| Malformed("the head is not text"))?;
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default();
        let plausible = match start {
            Start::Request => line.ends_with(" HTTP/1.1"),
            Start::Response => line.starts_with("HTTP/1.1 "),
        };
        if !plausible {
            return Err(Malformed("the first line is not of HTTP/1.1"));
        }
        let (mut length, mut chunked, mut close) = (None, false, false);
        for field in lines {
            let (name, value) = field.split_once(':').ok_or(Malformed("a field has no colon"))?;
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                let value = value.parse().map_err(|_| Malformed("content-length is no number"))?;
                length = Some(value);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.eq_ignore_ascii_case("chunked");
            } else if name.eq_ignore_ascii_case("connection") {
                close = value.eq_ignore_ascii_case("close");
            }
        }
        let mut head = Self { line: line.to_owned(), framing: Framing::UntilClose, close };
        head.framing = match (chunked, length, start) {
            (true, _, _) => Framing::Chunked,
            (false, Some(length), _) => Framing::Length(length),
            (false, None, Start::Request) => Framing::Length(0),
            (false, None, Start::Response) if head.has_no_body() => Framing::Length(0),
            (false, None, Start::Response) => Framing::UntilClose,
        };
        Ok(Some((head, end + 4)))
    }

    /// Status of a response.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.line.get(9..12)?.parse().ok()
    }

    /// Target of a request.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        self.line.split(' ').nth(1)
    }

    fn has_no_body(&self) -> bool {
        matches!(self.status(), Some(100..200 | 204 | 304))
    }
}

/// A body on its way.
#[derive(Debug)]
pub struct Body(State);

#[derive(Debug)]
enum State {
    /// Bytes of a body of known length that are still to come.
    Left(u64),
    UntilClose,
    /// In a chunk-size line: digits so far, bytes of the line.
    Size {
        size: Option<u64>,
        digits: bool,
        read: usize,
    },
    /// In a chunk.
    Data(u64),
    /// In the line end after a chunk: bytes of it that were read.
    DataEnd(usize),
    /// In the trailers: bytes of the line so far, without its end.
    Trailer(usize),
    Done,
}

impl Body {
    /// A body of which nothing was read.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Left(length),
            Framing::Chunked => State::size(),
            Framing::UntilClose => State::UntilClose,
        })
    }

    /// Whether the body was read to its end.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.0, State::Done)
    }

    /// Whether the connection's end is the body's proper end.
    #[must_use]
    pub fn ends_with_connection(&self) -> bool {
        matches!(self.0, State::UntilClose)
    }

    /// Reads what of `bytes` belongs to the body, hands its pieces on, and returns how many bytes
    /// that were.
    ///
    /// # Errors
    /// When the chunks are not well formed.
    pub fn read(
        &mut self,
        bytes: &[u8],
        mut on_piece: impl FnMut(&[u8]),
    ) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.0 {
                State::Done => break,
                State::UntilClose => {
                    on_piece(rest);
                    at = bytes.len();
                }
                State::Left(left) => {
                    at += take(rest, left, &mut on_piece);
                    if *left == 0 {
                        self.0 = State::Done;
                    }
                }
                State::Data(left) => {
                    at += take(rest, left, &mut on_piece);
                    if *left == 0 {
                        self.0 = State::DataEnd(0);
                    }
                }
                State::DataEnd(read) => {
                    if rest[0] != b"\r\n"[*read] {
                        return Err(Malformed("a chunk is longer than its size"));
                    }
                    at += 1;
                    *read += 1;
                    if *read == 2 {
                        self.0 = State::size();
                    }
                }
                State::Size { .. } => {
                    self.size_byte(rest[0])?;
                    at += 1;
                }
                State::Trailer(length) => {
                    at += 1;
                    match rest[0] {
                        b'\n' if *length == 0 => self.0 = State::Done,
                        b'\n' => *length = 0,
                        b'\r' => {}
                        _ if *length == LINE_BYTES_MAX => {
                            return Err(Malformed("a trailer is too long"));
                        }
                        _ => *length += 1,
                    }
                }
            }
        }
        Ok(at)
    }

    fn size_byte(&mut self, byte: u8) -> Result<(), Malformed> {
        let State::Size { size, digits, read } = &mut self.0 else { return Ok(()) };
        *read += 1;
        if *read > LINE_BYTES_MAX {
            return Err(Malformed("a chunk-size line is too long"));
        }
        if byte == b'\n' {
            self.0 = match size {
                None => return Err(Malformed("a chunk has no size")),
                Some(0) => State::Trailer(0),
                Some(size) => State::Data(*size),
            };
            return Ok(());
        }
        match char::from(byte).to_digit(16) {
            Some(digit) if *digits => {
                let larger = size.unwrap_or(0).checked_mul(16);
                *size = Some(larger.ok_or(Malformed("a chunk is too long"))? + u64::from(digit));
            }
            // What follows the digits is an extension or the line's end.
            _ => *digits = false,
        }
        Ok(())
    }
}

impl State {
    fn size() -> Self {
        Self::Size { size: None, digits: true, read: 0 }
    }
}

fn take(bytes: &[u8], left: &mut u64, on_piece: &mut impl FnMut(&[u8])) -> usize {
    let n = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
    on_piece(&bytes[..n]);
    *left -= n as u64;
    n
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_in_pieces(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool), Malformed> {
        let mut body = Body::new(framing);
        let mut plain = Vec::new();
        for piece in pieces {
            body.read(piece, |bytes| plain.extend_from_slice(bytes))?;
        }
        Ok((plain, body.is_done()))
    }

    #[test]
    fn heads() {
        let check = |bytes: &[u8], start, expected| {
            let parsed = Head::parse(bytes, start).unwrap();
            assert_eq!(parsed.map(|(head, _)| (head.framing, head.close)), expected);
        };
        let ok = |fields: &str, expected| {
            check(format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_bytes(), Start::Response, expected);
        };
        ok("Content-Length: 5\r\n", Some((Framing::Length(5), false)));
        ok("transfer-encoding:chunked\r\n", Some((Framing::Chunked, false)));
        ok("Connection: Close\r\n", Some((Framing::UntilClose, true)));
        check(b"HTTP/1.1 204 None\r\n\r\n", Start::Response, Some((Framing::Length(0), false)));
        check(b"GET / HTTP/1.1\r\n\r\n", Start::Request, Some((Framing::Length(0), false)));
        check(b"GET / HTTP/1.1\r\nhost: a\r\n", Start::Request, None);
        for bytes in [
            &b"HTTP/2 200\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nx: \xff\r\n\r\n",
        ] {
            assert!(Head::parse(bytes, Start::Response).is_err());
        }
        assert!(Head::parse(&[b'a'; HEAD_BYTES_MAX + 1], Start::Response).is_err());
        let (head, length) =
            Head::parse(b"HTTP/1.1 429 Slow\r\n\r\nbody", Start::Response).unwrap().unwrap();
        assert_eq!((head.status(), length), (Some(429), 21));
        let (head, _) =
            Head::parse(b"POST /a?b HTTP/1.1\r\n\r\n", Start::Request).unwrap().unwrap();
        assert_eq!(head.target(), Some("/a?b"));
    }

    #[test]
    fn chunked_bodies() {
        let cases: &[(&[u8], &[u8], bool)] = &[
            (b"5\r\nhello\r\n0\r\n\r\n", b"hello", true),
            (b"a;name=1\r\n0123456789\r\n00\r\nx: y\r\n\r\n", b"0123456789", true),
            (b"5\r\nhel", b"hel", false),
            (b"5\r\nhello\r\n0\r\n", b"hello", false),
        ];
        for (bytes, plain, done) in cases {
            let read = read_in_pieces(Framing::Chunked, &[bytes]).unwrap();
            assert_eq!(read, (plain.to_vec(), *done));
        }
        for bytes in [&b"5\r\nhello!\r\n"[..], b"\r\n", b"x\r\n", b"11111111111111111\r\n"] {
            assert!(read_in_pieces(Framing::Chunked, &[bytes]).is_err());
        }
    }

    #[test]
    fn what_follows_a_body_is_left() {
        let mut body = Body::new(Framing::Length(3));
        assert_eq!(body.read(b"abcHTTP", |_| {}), Ok(3));
        assert!(body.is_done());
        let mut body = Body::new(Framing::Chunked);
        assert_eq!(body.read(b"0\r\n\r\nHTTP", |_| {}), Ok(5));
        assert!(body.is_done());
    }

    proptest! {
        #[test]
        fn chunks_are_read_in_whatever_pieces_they_come(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut framed = Vec::new();
            for chunk in &chunks {
                framed.extend(format!("{:X}\r\n", chunk.len()).bytes());
                framed.extend(chunk);
                framed.extend(b"\r\n");
            }
            framed.extend(b"0\r\n\r\n");
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(framed.len())).collect();
            cuts.extend([0, framed.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &framed[cut[0]..cut[1]]).collect();
            let read = read_in_pieces(Framing::Chunked, &pieces).unwrap();
            prop_assert_eq!(read, (chunks.concat(), true));
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Head::parse(&bytes, Start::Response);
            let _ = Head::parse(&bytes, Start::Request);
            let mut body = Body::new(Framing::Chunked);
            if let Ok(read) = body.read(&bytes, |_| {}) {
                prop_assert!(read <= bytes.len());
                prop_assert!(body.is_done() || read == bytes.len());
            }
        }
    }
}
