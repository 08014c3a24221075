//! Reassembly of hello messages from TLS records and TCP segments.
//!
//! It matters because a ClientHello may be cut anywhere: over reads, and over records (RFC 8446,
//! section 5.1 allows it). A capture that takes the first record for the message loses the
//! fingerprint of whoever cuts on purpose. The numbers of records and reads are evidence of their
//! own: common clients send one record.
//!
//! One [`HandshakeReassembler`] watches one direction; [`ClientHelloReader`] and
//! [`ServerHelloReader`] read what it finds. The client's stops at the first
//! ClientHello, so that the second one, which follows a HelloRetryRequest, never replaces it; the
//! server's goes on past a HelloRetryRequest to the final ServerHello. Each byte is looked at
//! once, however the bytes are cut, and what is held is bounded.

use crate::limits::{CLIENT_HELLO_BYTES_MAX, SERVER_HELLO_BYTES_MAX};

use super::client_hello::{CLIENT_HELLO, ClientHello, HelloError};
use super::server_hello::{HELLO_RETRY_REQUEST_RANDOM, SERVER_HELLO, ServerHello};

/// Why no hello can be had from a direction. The handshake itself is TLS's affair and may still
/// succeed or fail; this ends the capture only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// An HTTP request without TLS on a TLS port.
    #[error("plain HTTP where TLS was expected")]
    PlainHttp,
    /// An SSL 2.0 hello, which no current server accepts (RFC 6176).
    #[error("an SSL 2.0 hello")]
    Ssl2Hello,
    /// Bytes that are no TLS record.
    #[error("not a TLS record")]
    NotTls,
    /// The peer sent an alert in place of a hello.
    #[error("a TLS alert before the hello")]
    Alert,
    /// A record of a type that cannot stand before the hello.
    #[error("a TLS record of type {0} before the hello")]
    UnexpectedRecord(u8),
    /// A handshake record without contents (RFC 8446, section 5.1 forbids it).
    #[error("an empty handshake record")]
    EmptyRecord,
    /// A record longer than 2^14 bytes.
    #[error("a TLS record longer than 2^14 bytes")]
    RecordTooLong,
    /// The first handshake message is of another type.
    #[error("handshake message of type {0} in place of the hello")]
    UnexpectedMessage(u8),
    /// More bytes than the bound allows.
    #[error("the hello is longer than the bound of this gateway")]
    TooLong,
    /// The message is whole and malformed.
    #[error(transparent)]
    Malformed(#[from] HelloError),
}

/// A hello message and how it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadHello<H> {
    /// The message.
    pub hello: H,
    /// TLS records that it came in.
    pub records: u16,
    /// Reads that it came in.
    pub reads: u16,
    /// Length of the message in bytes.
    pub bytes: u32,
}

/// Reads the first ClientHello out of what a client sends.
#[derive(Clone, Debug)]
pub struct ClientHelloReader(HandshakeReassembler);

impl Default for ClientHelloReader {
    fn default() -> Self {
        Self::new()
    }
}

impl ClientHelloReader {
    /// A reader at the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self(HandshakeReassembler::client())
    }

    /// Takes the next bytes; `Some` once the hello is complete.
    ///
    /// # Errors
    /// When no hello can come any more.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<ReadHello<ClientHello>>, HandshakeError> {
        self.0.feed(bytes)?;
        let Some(message) = self.0.message() else { return Ok(None) };
        Ok(Some(ReadHello {
            hello: ClientHello::parse(message)?,
            records: self.0.records(),
            reads: self.0.feeds(),
            bytes: u32::try_from(message.len()).unwrap_or(u32::MAX),
        }))
    }
}

/// Reads the final ServerHello out of what a server sends.
#[derive(Clone, Debug)]
pub struct ServerHelloReader(HandshakeReassembler);

impl Default for ServerHelloReader {
    fn default() -> Self {
        Self::new()
    }
}

impl ServerHelloReader {
    /// A reader at the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self(HandshakeReassembler::server())
    }

    /// Takes the next bytes; `Some` once the final ServerHello is complete.
    ///
    /// # Errors
    /// When no hello can come any more.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<ServerHello>, HandshakeError> {
        self.0.feed(bytes)?;
        Ok(self.0.message().map(ServerHello::parse).transpose()?)
    }

    /// Whether a HelloRetryRequest has been seen.
    #[must_use]
    pub fn hello_retry_request(&self) -> bool {
        self.0.hello_retry_request()
    }
}

/// Watches one direction of a connection for its hello.
#[derive(Clone, Debug)]
pub struct HandshakeReassembler {
    side: Side,
    /// Header of the record that is being read, and how many of its bytes have come.
    header: [u8; RECORD_HEADER_BYTES],
    header_len: usize,
    /// Payload bytes of the current record still to come.
    record_left: usize,
    /// Whether that payload is skipped (change_cipher_spec).
    skipping: bool,
    /// Handshake message as far as it has come.
    message: Vec<u8>,
    /// Bytes taken in, for the bound.
    taken: usize,
    records: u16,
    feeds: u16,
    hello_retry_request: bool,
    outcome: Option<Result<(), HandshakeError>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl HandshakeReassembler {
    /// Watches what the client sends, for its first ClientHello.
    #[must_use]
    pub fn client() -> Self {
        Self::new(Side::Client)
    }

    /// Watches what the server sends, for its final ServerHello.
    #[must_use]
    pub fn server() -> Self {
        Self::new(Side::Server)
    }

    /// A new reassembler for the same direction.
    #[must_use]
    pub fn fresh(&self) -> Self {
        Self::new(self.side)
    }

    /// Takes the next bytes of the direction. `true` once the hello is complete; bytes after it
    /// are ignored.
    ///
    /// # Errors
    /// When no hello can come any more; the same error from then on.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<bool, HandshakeError> {
        if self.outcome.is_none() && !bytes.is_empty() {
            self.feeds = self.feeds.saturating_add(1);
            self.outcome = self.advance(bytes).transpose();
            if matches!(self.outcome, Some(Err(_))) {
                self.message = Vec::new();
            }
        }
        match self.outcome {
            None => Ok(false),
            Some(outcome) => outcome.map(|()| true),
        }
    }

    /// The hello message with its four-byte header, once [`Self::feed`] has said `true`.
    #[must_use]
    pub fn message(&self) -> Option<&[u8]> {
        matches!(self.outcome, Some(Ok(()))).then_some(&self.message)
    }

    /// Whether no further bytes are needed: the hello is complete or cannot come.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.outcome.is_some()
    }

    /// Handshake records that carried bytes up to the end of the hello.
    #[must_use]
    pub fn records(&self) -> u16 {
        self.records
    }

    /// Calls of [`Self::feed`] with bytes up to the end of the hello.
    #[must_use]
    pub fn feeds(&self) -> u16 {
        self.feeds
    }

    /// Whether a HelloRetryRequest has been seen. Server side only.
    #[must_use]
    pub fn hello_retry_request(&self) -> bool {
        self.hello_retry_request
    }

    fn new(side: Side) -> Self {
        Self {
            side,
            header: [0; RECORD_HEADER_BYTES],
            header_len: 0,
            record_left: 0,
            skipping: false,
            message: Vec::new(),
            taken: 0,
            records: 0,
            feeds: 0,
            hello_retry_request: false,
            outcome: None,
        }
    }

    /// `Some` once the hello is complete.
    fn advance(&mut self, mut bytes: &[u8]) -> Result<Option<()>, HandshakeError> {
        while !bytes.is_empty() {
            if self.record_left == 0 {
                let wanted = RECORD_HEADER_BYTES - self.header_len;
                let (head, rest) = bytes.split_at(wanted.min(bytes.len()));
                self.header[self.header_len..][..head.len()].copy_from_slice(head);
                self.header_len += head.len();
                bytes = rest;
                if self.header_len == RECORD_HEADER_BYTES {
                    self.header_len = 0;
                    self.start_record()?;
                }
                continue;
            }
            let (payload, rest) = bytes.split_at(self.record_left.min(bytes.len()));
            self.record_left -= payload.len();
            bytes = rest;
            if !self.skipping && self.take_payload(payload)? {
                return Ok(Some(()));
            }
        }
        Ok(None)
    }

    /// Judges a complete record header.
    fn start_record(&mut self) -> Result<(), HandshakeError> {
        let [kind, major, _, high, low] = self.header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !(20..=23).contains(&kind) || major != 3 {
            return Err(self.foreign());
        }
        if length > RECORD_BYTES_MAX {
            return Err(HandshakeError::RecordTooLong);
        }
        match kind {
            HANDSHAKE if length == 0 => return Err(HandshakeError::EmptyRecord),
            HANDSHAKE => self.records = self.records.saturating_add(1),
            // A server may send one after its HelloRetryRequest, for the sake of middleboxes
            // (RFC 8446, appendix D.4).
            CHANGE_CIPHER_SPEC if self.side == Side::Server => {}
            ALERT => return Err(HandshakeError::Alert),
            _ => return Err(HandshakeError::UnexpectedRecord(kind)),
        }
        self.skipping = kind != HANDSHAKE;
        self.record_left = length;
        // Headers count too, so that records of nothing cannot go on without end.
        self.taken += RECORD_HEADER_BYTES + length;
        if self.taken > self.bytes_max() + RECORD_BYTES_MAX {
            return Err(HandshakeError::TooLong);
        }
        Ok(())
    }

    /// Names what came in place of a TLS record.
    fn foreign(&self) -> HandshakeError {
        let [first, _, third, fourth, _] = self.header;
        if self.records > 0 {
            HandshakeError::NotTls
        } else if first.is_ascii_uppercase() {
            HandshakeError::PlainHttp
        } else if first & 0x80 != 0 && third == CLIENT_HELLO && matches!(fourth, 0 | 2 | 3) {
            // A two-byte length with its top bit set, the message type, the version.
            HandshakeError::Ssl2Hello
        } else {
            HandshakeError::NotTls
        }
    }

    /// Takes handshake bytes; `true` once the hello is complete.
    fn take_payload(&mut self, mut payload: &[u8]) -> Result<bool, HandshakeError> {
        while !payload.is_empty() {
            let wanted = match message_length(&self.message) {
                None => MESSAGE_HEADER_BYTES,
                Some(length) => length,
            };
            let (part, rest) = payload.split_at((wanted - self.message.len()).min(payload.len()));
            self.message.extend_from_slice(part);
            payload = rest;
            if let Some(length) = message_length(&self.message) {
                self.check_message(length)?;
                if length == self.message.len() && self.finish_message() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn check_message(&self, length: usize) -> Result<(), HandshakeError> {
        if self.side == Side::Client && self.message[0] != CLIENT_HELLO {
            return Err(HandshakeError::UnexpectedMessage(self.message[0]));
        }
        if length > self.bytes_max() { Err(HandshakeError::TooLong) } else { Ok(()) }
    }

    /// Whether the complete message is the one that is looked for; otherwise it is dropped.
    fn finish_message(&mut self) -> bool {
        if self.side == Side::Client {
            return true;
        }
        let retry = self.message.get(6..38) == Some(&HELLO_RETRY_REQUEST_RANDOM[..]);
        if self.message[0] == SERVER_HELLO && !retry {
            return true;
        }
        self.hello_retry_request |= self.message[0] == SERVER_HELLO;
        self.message.clear();
        false
    }

    fn bytes_max(&self) -> usize {
        match self.side {
            Side::Client => CLIENT_HELLO_BYTES_MAX,
            Side::Server => SERVER_HELLO_BYTES_MAX,
        }
    }
}

const RECORD_HEADER_BYTES: usize = 5;
const MESSAGE_HEADER_BYTES: usize = 4;
/// RFC 8446, section 5.1.
const RECORD_BYTES_MAX: usize = 1 << 14;
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

/// Length of a message with its header, once the header is there.
fn message_length(message: &[u8]) -> Option<usize> {
    let [_, high, middle, low] = *message.first_chunk()?;
    Some(MESSAGE_HEADER_BYTES + u32::from_be_bytes([0, high, middle, low]) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::client_hello::ClientHello;
    use crate::capture::client_hello::tests::{chrome, firefox, handshake};
    use crate::capture::server_hello::tests::{
        hello_retry_request, message as server_hello, tls13,
    };

    fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u16).to_be_bytes();
        [&[kind, 3, 1][..], &length, payload].concat()
    }

    fn fingerprint(reassembler: &HandshakeReassembler) -> String {
        ClientHello::parse(reassembler.message().expect("complete")).expect("well formed").ja3()
    }

    #[test]
    fn a_hello_cut_at_any_byte_over_two_records_is_whole() {
        let message = firefox().message();
        let expected = ClientHello::parse(&message).expect("well formed").ja3();
        for cut in 1..message.len() {
            let (head, tail) = message.split_at(cut);
            let bytes = [record(22, head), record(22, tail)].concat();
            let mut at_once = HandshakeReassembler::client();
            assert_eq!(at_once.feed(&bytes), Ok(true), "{cut}");
            assert_eq!(fingerprint(&at_once), expected);
            assert_eq!((at_once.records(), at_once.feeds()), (2, 1));
        }
    }

    #[test]
    fn a_hello_fed_by_the_byte_is_whole() {
        let message = chrome().message();
        let bytes: Vec<u8> = message.chunks(50).flat_map(|part| record(22, part)).collect();
        let mut reassembler = HandshakeReassembler::client();
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(reassembler.feed(&[*byte]), Ok(at + 1 == bytes.len()));
        }
        assert_eq!(reassembler.message(), Some(&message[..]));
        assert_eq!(usize::from(reassembler.records()), message.len().div_ceil(50));
        assert_eq!(usize::from(reassembler.feeds()), bytes.len());
    }

    #[test]
    fn the_second_hello_does_not_replace_the_first() {
        let mut reassembler = HandshakeReassembler::client();
        let first = record(22, &chrome().message());
        assert_eq!(reassembler.feed(&first), Ok(true));
        let second = [record(20, &[1]), record(22, &firefox().message())].concat();
        assert_eq!(reassembler.feed(&second), Ok(true));
        assert_eq!(reassembler.message(), Some(&chrome().message()[..]));
        assert_eq!((reassembler.records(), reassembler.feeds()), (1, 1));
    }

    #[test]
    fn the_server_side_goes_on_past_a_retry() {
        let retry = hello_retry_request();
        let last = tls13(&[(41, &[0, 0])]);
        let certificate = handshake(11, &[0; 700]);
        let tls12 = server_hello(&[1; 32], &[], 0xc02f, &[]);
        let (retry_head, retry_tail) = retry.split_at(3);
        // (bytes, hello, retried, records)
        let cases = [
            (record(22, &last), &last, false, 1),
            ([record(22, &retry), record(20, &[1]), record(22, &last)].concat(), &last, true, 2),
            (record(22, &[&retry[..], &last].concat()), &last, true, 1),
            (record(22, &[&tls12[..], &certificate].concat()), &tls12, false, 1),
            (
                [record(22, retry_head), record(22, &[retry_tail, &last].concat())].concat(),
                &last,
                true,
                2,
            ),
            // HelloRequest (RFC 5246, section 7.4.1.1) may stand before.
            (record(22, &[&handshake(0, &[])[..], &tls12].concat()), &tls12, false, 1),
        ];
        for (bytes, expected, retried, records) in cases {
            for step in [1, 2, 7, bytes.len()] {
                let mut reassembler = HandshakeReassembler::server();
                let done = bytes.chunks(step).try_fold(false, |_, part| reassembler.feed(part));
                assert_eq!(done, Ok(true));
                assert_eq!(reassembler.message(), Some(&expected[..]));
                assert_eq!(reassembler.hello_retry_request(), retried);
                assert_eq!(reassembler.records(), records);
            }
        }
    }

    #[test]
    fn readers_give_the_parsed_hellos() {
        let message = firefox().message();
        let (head, tail) = message.split_at(99);
        let mut client = ClientHelloReader::new();
        assert_eq!(client.feed(&record(22, head)), Ok(None));
        let read = client.feed(&record(22, tail)).expect("well formed").expect("complete");
        assert_eq!((read.records, read.reads, read.bytes as usize), (2, 2, message.len()));
        assert_eq!(read.hello, ClientHello::parse(&message).expect("well formed"));
        let mut server = ServerHelloReader::new();
        assert_eq!(server.feed(&record(22, &hello_retry_request())), Ok(None));
        assert!(server.hello_retry_request());
        let last = server.feed(&record(22, &tls13(&[]))).expect("well formed").expect("complete");
        assert_eq!(last.ja3s(), "771,4866,51-43");
        let cut = handshake(CLIENT_HELLO, &message[4..60]);
        let malformed = ClientHelloReader::new().feed(&record(22, &cut));
        assert!(matches!(malformed, Err(HandshakeError::Malformed(HelloError::Truncated(_)))));
    }

    #[test]
    fn what_is_no_hello_is_named() {
        let hello = chrome().message();
        let huge = handshake(CLIENT_HELLO, &vec![0; CLIENT_HELLO_BYTES_MAX]);
        let cases = [
            (b"GET / HTTP/1.1\r\n".to_vec(), HandshakeError::PlainHttp),
            (b"PRI * HTTP/2.0\r\n".to_vec(), HandshakeError::PlainHttp),
            (vec![0x80, 46, 1, 0, 2, 0, 21], HandshakeError::Ssl2Hello),
            (vec![0x80, 46, 1, 3, 1, 0, 21], HandshakeError::Ssl2Hello),
            (b"\0\0\0\0\0".to_vec(), HandshakeError::NotTls),
            (b"ssh-2.0".to_vec(), HandshakeError::NotTls),
            (vec![22, 2, 0, 0, 5], HandshakeError::NotTls),
            (record(21, &[2, 40]), HandshakeError::Alert),
            (record(20, &[1]), HandshakeError::UnexpectedRecord(20)),
            (record(23, &[1]), HandshakeError::UnexpectedRecord(23)),
            (record(22, &[]), HandshakeError::EmptyRecord),
            (vec![22, 3, 1, 0x40, 1], HandshakeError::RecordTooLong),
            (record(22, &handshake(2, &[0; 40])), HandshakeError::UnexpectedMessage(2)),
            (record(22, &huge[..100]), HandshakeError::TooLong),
            ([record(22, &hello[..9]), b"GET /".to_vec()].concat(), HandshakeError::NotTls),
        ];
        for (bytes, expected) in cases {
            let mut reassembler = HandshakeReassembler::client();
            assert_eq!(reassembler.feed(&bytes), Err(expected), "{bytes:x?}");
            assert_eq!(reassembler.feed(&record(22, &hello)), Err(expected), "it stays so");
            assert_eq!(reassembler.message(), None);
        }
    }

    #[test]
    fn a_server_that_never_says_hello_is_bounded() {
        let mut reassembler = HandshakeReassembler::server();
        let filler = record(22, &handshake(0, &[]));
        let fed = (0..SERVER_HELLO_BYTES_MAX).take_while(|_| reassembler.feed(&filler).is_ok());
        assert!(fed.count() * filler.len() <= SERVER_HELLO_BYTES_MAX + RECORD_BYTES_MAX);
        assert_eq!(reassembler.feed(&filler), Err(HandshakeError::TooLong));
        let mut reassembler = HandshakeReassembler::server();
        let empty = record(20, &[]);
        assert!((0..SERVER_HELLO_BYTES_MAX).any(|_| reassembler.feed(&empty).is_err()));
    }

    #[test]
    fn a_huge_hello_in_tiny_records_is_taken() {
        let message = handshake(CLIENT_HELLO, &vec![0; 9_000]);
        let bytes: Vec<u8> = message.chunks(1).flat_map(|part| record(22, part)).collect();
        let mut reassembler = HandshakeReassembler::client();
        assert_eq!(reassembler.feed(&bytes), Ok(true));
        assert_eq!(usize::from(reassembler.records()), message.len());
        let largest = handshake(CLIENT_HELLO, &vec![0; CLIENT_HELLO_BYTES_MAX - 4]);
        let bytes: Vec<u8> = largest.chunks(16_384).flat_map(|part| record(22, part)).collect();
        assert_eq!(HandshakeReassembler::client().feed(&bytes), Ok(true));
    }
}
