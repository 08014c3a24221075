//! A raw HTTP/2 client (RFC 9113): frames and header blocks exactly as a test wants them, the
//! forbidden ones too. Header fields go out as literals without indexing (RFC 7541, section 6.2.2).

use std::collections::BTreeMap;
use std::io::{Read, Write};

/// Flag of DATA and HEADERS: the stream ends here.
pub const END_STREAM: u8 = 0x1;
/// Flag of HEADERS and CONTINUATION: the header block ends here.
pub const END_HEADERS: u8 = 0x4;
/// Frame type DATA.
pub const DATA: u8 = 0x0;
/// Frame type HEADERS.
pub const HEADERS: u8 = 0x1;
/// Frame type CONTINUATION.
pub const CONTINUATION: u8 = 0x9;
/// Frame type RST_STREAM.
pub const RST_STREAM: u8 = 0x3;
/// Frame type SETTINGS.
pub const SETTINGS: u8 = 0x4;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const WINDOW_UPDATE: u8 = 0x8;
/// Flag of SETTINGS and PING: an acknowledgement.
pub const ACK: u8 = 0x1;
const INITIAL_WINDOW_SIZE: u16 = 0x4;
const WINDOW_BYTES_DEFAULT: i64 = 65_535;
/// SETTINGS_MAX_FRAME_SIZE at its default.
const DATA_BYTES_MAX: i64 = 16_384;

/// What came back on one stream.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// `:status`; 0 if no response header came.
    pub status: u16,
    /// Response header fields, `:status` left out; trailers follow.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// Whether the server ended the stream properly.
    pub ended: bool,
    /// Error code of the RST_STREAM, if one came.
    pub reset: Option<u32>,
}

/// A connection that has sent its preface.
pub struct Connection<S> {
    stream: S,
    decoder: loona_hpack::Decoder<'static>,
    pending: Vec<u8>,
    /// Answers by stream.
    pub answers: BTreeMap<u32, Answer>,
    /// Error code of the GOAWAY, if one came.
    pub goaway: Option<u32>,
    /// Whether the server closed the connection.
    pub closed: bool,
    /// Whether what came is given back to its stream's window. Off, an answer ends with its window.
    pub gives_room: bool,
    /// Bytes of answers whose room was not given back.
    held: BTreeMap<u32, u32>,
    /// Room that the server gives to a stream at its beginning, and has given beyond that.
    initial_window: i64,
    given: BTreeMap<u32, i64>,
    /// DATA bytes sent.
    sent: BTreeMap<u32, i64>,
}

impl<S: Read + Write> Connection<S> {
    /// Sends the preface: SETTINGS in the given order, and a connection window that never fills.
    pub fn open(mut stream: S, settings: &[(u16, u32)]) -> Self {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut payload = Vec::new();
        for (identifier, value) in settings {
            payload.extend_from_slice(&identifier.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        bytes.extend(frame(SETTINGS, 0, 0, &payload));
        bytes.extend(frame(WINDOW_UPDATE, 0, 0, &0x4000_0000_u32.to_be_bytes()));
        // A server may have closed already; the reads tell.
        let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
        Self {
            stream,
            decoder: loona_hpack::Decoder::new(),
            pending: Vec::new(),
            answers: BTreeMap::new(),
            goaway: None,
            closed: false,
            gives_room: true,
            held: BTreeMap::new(),
            initial_window: WINDOW_BYTES_DEFAULT,
            given: BTreeMap::new(),
            sent: BTreeMap::new(),
        }
    }

    /// Sends a body to its end, as fast as the server gives room for it.
    pub fn send_body(&mut self, stream: u32, body: &[u8]) {
        let mut rest = body;
        while !self.closed && self.answers.get(&stream).is_none_or(|a| a.reset.is_none()) {
            let room = self.room(stream).clamp(0, DATA_BYTES_MAX);
            let piece = rest.len().min(usize::try_from(room).expect("not negative"));
            if piece == 0 && !rest.is_empty() {
                self.read_some();
                continue;
            }
            let (now, later) = rest.split_at(piece);
            let flags = if later.is_empty() { END_STREAM } else { 0 };
            self.send(&frame(DATA, flags, stream, now));
            for id in [0, stream] {
                *self.sent.entry(id).or_default() += i64::try_from(piece).expect("a short piece");
            }
            rest = later;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Gives back all room that was held, and no longer holds any.
    pub fn give_room(&mut self) {
        self.gives_room = true;
        for (stream, held) in std::mem::take(&mut self.held) {
            self.send(&frame(WINDOW_UPDATE, 0, stream, &held.to_be_bytes()));
        }
    }

    /// Bytes that the server takes on a stream at the moment.
    fn room(&self, stream: u32) -> i64 {
        let of = |id: u32, initial: i64| {
            let given = self.given.get(&id).copied().unwrap_or(0);
            initial + given - self.sent.get(&id).copied().unwrap_or(0)
        };
        of(0, WINDOW_BYTES_DEFAULT).min(of(stream, self.initial_window))
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        let sent = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
        self.closed |= sent.is_err();
    }

    /// Reads until all these streams have ended or were reset, or the connection is gone.
    pub fn settle(&mut self, streams: &[u32]) {
        let done = |answers: &BTreeMap<u32, Answer>| {
            let over = |id| answers.get(id).is_some_and(|a: &Answer| a.ended || a.reset.is_some());
            streams.iter().all(over)
        };
        while !self.closed && !done(&self.answers) {
            self.read_some();
        }
    }

    /// The answer on a stream; an empty one if nothing came.
    #[must_use]
    pub fn answer(&self, stream: u32) -> Answer {
        self.answers.get(&stream).cloned().unwrap_or_default()
    }

    fn read_some(&mut self) {
        let mut buffer = vec![0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) | Err(_) => self.closed = true,
            Ok(length) => self.pending.extend_from_slice(&buffer[..length]),
        }
        while let Some((kind, flags, stream, payload)) = self.take_frame() {
            self.frame_came(kind, flags, stream, payload);
        }
    }

    fn take_frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let head = self.pending.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = number(&head[5..9]) & 0x7fff_ffff;
        let payload = self.pending.get(9..9 + length)?.to_vec();
        self.pending.drain(..9 + length);
        Some((kind, flags, stream, payload))
    }

    fn frame_came(&mut self, kind: u8, flags: u8, stream: u32, payload: Vec<u8>) {
        match kind {
            SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    if u16::from_be_bytes([setting[0], setting[1]]) == INITIAL_WINDOW_SIZE {
                        self.initial_window = i64::from(number(&setting[2..]));
                    }
                }
                self.send(&frame(SETTINGS, ACK, 0, &[]));
            }
            WINDOW_UPDATE => {
                *self.given.entry(stream).or_default() += i64::from(number(&payload));
            }
            PING if flags & ACK == 0 => self.send(&frame(PING, ACK, 0, &payload)),
            GOAWAY => self.goaway = payload.get(4..8).map(number),
            RST_STREAM => self.answers.entry(stream).or_default().reset = Some(number(&payload)),
            // The servers under test answer with header blocks of one frame.
            HEADERS => {
                let fields = self.decoder.decode(&payload).expect("a valid header block");
                let answer = self.answers.entry(stream).or_default();
                for (name, value) in fields {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    let value = String::from_utf8_lossy(&value).into_owned();
                    if name == ":status" {
                        answer.status = value.parse().expect("a status");
                    } else {
                        answer.headers.push((name, value));
                    }
                }
                answer.ended |= flags & END_STREAM != 0;
            }
            DATA => {
                let grown = u32::try_from(payload.len()).expect("a frame's length");
                let answer = self.answers.entry(stream).or_default();
                answer.body.extend(payload);
                answer.ended |= flags & END_STREAM != 0;
                if grown > 0 && !self.gives_room {
                    *self.held.entry(stream).or_default() += grown;
                } else if grown > 0 && !answer.ended {
                    self.send(&frame(WINDOW_UPDATE, 0, stream, &grown.to_be_bytes()));
                }
            }
            _ => {}
        }
    }
}

/// One frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block of literals, in the given order and case.
#[must_use]
pub fn header_block<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x00);
        push_string(&mut block, name.as_ref());
        push_string(&mut block, value.as_ref());
    }
    block
}

/// A request without a body as one HEADERS frame.
#[must_use]
pub fn request<N: AsRef<[u8]>, V: AsRef<[u8]>>(stream: u32, fields: &[(N, V)]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &header_block(fields))
}

/// The pseudo-header fields of a GET, in the order that curl sends them.
#[must_use]
pub fn get(path: &str) -> Vec<(String, String)> {
    let fields =
        [(":method", "GET"), (":path", path), (":scheme", "https"), (":authority", "localhost")];
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A string literal without Huffman coding (RFC 7541, section 5.2).
fn push_string(block: &mut Vec<u8>, string: &[u8]) {
    let mut rest = string.len();
    if rest < 127 {
        block.push(u8::try_from(rest).expect("below 127"));
    } else {
        block.push(127);
        rest -= 127;
        while rest >= 128 {
            block.push(u8::try_from(rest % 128).expect("below 128") | 0x80);
            rest /= 128;
        }
        block.push(u8::try_from(rest).expect("below 128"));
    }
    block.extend_from_slice(string);
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_what_a_decoder_reads() {
        let long = "v".repeat(40_000);
        let fields = [(":method", "GET"), ("X-Upper", "1"), ("x-long", long.as_str()), ("x-a", "")];
        let decoded = loona_hpack::Decoder::new().decode(&header_block(&fields)).unwrap();
        let expected: Vec<(Vec<u8>, Vec<u8>)> =
            fields.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
        assert_eq!(decoded, expected);
    }

    #[test]
    fn a_provider_answers_a_raw_request() {
        let provider = crate::Provider::start();
        let mut connection = Connection::open(crate::http1::connect(provider.address()), &[(2, 0)]);
        let mut fields = get("/raw");
        fields.push(("x-provider".to_owned(), "stream=own/gemini/text.sse;trailers".to_owned()));
        connection.send(&request(1, &fields));
        connection.send(&request(3, &get("/second")));
        connection.settle(&[1, 3]);
        let answer = connection.answer(1);
        assert_eq!((answer.status, answer.ended), (200, true));
        assert_eq!(Some(answer.body), crate::streams::read("own/gemini/text.sse"));
        assert!(answer.headers.contains(&("x-trailer".to_owned(), "end".to_owned())));
        assert_eq!(connection.answer(3).status, 200);
        assert_eq!(provider.received().len(), 2);
    }
}
