//! The demo's own clients: HTTP/1.1 over TLS, from an address that a PROXY header tells.
//!
//! Just enough of a client for requests and answers of our own: a request on a connection of its
//! own, an answer read as it comes. Nothing here reads what strangers send.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;

/// Longest silence inside an answer: a token at the slowest pace takes a fraction of it.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Largest head of an answer, bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Longest line of a body, bytes; the rest of a longer one is left out.
const LINE_BYTES_MAX: usize = 256 * 1024;
/// The port that a client seems to come from. Nobody connects back to it.
const CLIENT_PORT: u16 = 40_000;

/// Characters that nobody sees, in which answers are marked.
const ZERO_WIDTH: [char; 4] = ['\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}'];

/// How a client's TLS looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    /// As the library does it by itself.
    Plain,
    /// TLS 1.2 only.
    Old,
    /// TLS 1.3 only, with its ciphers in an order of its own: a make that few have.
    Rare,
}

/// Where requests go.
pub struct Door {
    address: SocketAddr,
    plain: Arc<ClientConfig>,
    old: Arc<ClientConfig>,
    rare: Arc<ClientConfig>,
}

/// A request.
pub struct Request<'r> {
    /// The client's address.
    pub from: IpAddr,
    /// Its TLS.
    pub make: Make,
    /// Path and query.
    pub path: &'r str,
    /// Header fields in their order; `host`, `connection` and `content-length` are added.
    pub headers: &'r [(&'static str, String)],
    /// JSON.
    pub body: &'r str,
}

impl Door {
    /// Clients that trust the CA in this file.
    ///
    /// # Errors
    /// What is wrong with the file or the TLS settings, in words.
    pub fn new(address: SocketAddr, ca: &Path) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(ca).map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let mut reversed = provider.clone();
        reversed.cipher_suites.reverse();
        reversed.kx_groups.reverse();
        let config = |provider, versions: &[&'static rustls::SupportedProtocolVersion]| {
            let builder = ClientConfig::builder_with_provider(Arc::new(provider));
            let builder = builder.with_protocol_versions(versions).map_err(|e| e.to_string())?;
            let mut config = builder.with_root_certificates(roots.clone()).with_no_client_auth();
            // Every request comes on a connection of its own, as from as many processes.
            config.resumption = rustls::client::Resumption::disabled();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok::<_, String>(Arc::new(config))
        };
        Ok(Self {
            address,
            plain: config(provider.clone(), rustls::ALL_VERSIONS)?,
            old: config(provider, &[&rustls::version::TLS12])?,
            rare: config(reversed, &[&rustls::version::TLS13])?,
        })
    }

    /// Sends a request and hands on the answer's body as it comes. Returns its status.
    ///
    /// # Errors
    /// The connection's, or an answer that is none.
    pub fn send(&self, request: &Request<'_>, mut on_body: impl FnMut(&[u8])) -> io::Result<u16> {
        let mut socket = TcpStream::connect(self.address)?;
        socket.set_read_timeout(Some(SILENCE_MAX))?;
        socket.set_write_timeout(Some(SILENCE_MAX))?;
        socket.set_nodelay(true)?;
        socket.write_all(&proxy_header(request.from, self.address))?;
        let config = match request.make {
            Make::Plain => &self.plain,
            Make::Old => &self.old,
            Make::Rare => &self.rare,
        };
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let connection = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, socket);
        let mut head = format!("POST {} HTTP/1.1\r\nhost: localhost\r\n", request.path);
        for (name, value) in request.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!(
            "content-length: {}\r\nconnection: close\r\n\r\n",
            request.body.len()
        ));
        stream.write_all(head.as_bytes())?;
        stream.write_all(request.body.as_bytes())?;
        stream.flush()?;
        read_answer(&mut stream, &mut on_body)
    }
}

/// A PROXY protocol v2 header: a relayed TCP connection.
fn proxy_header(from: IpAddr, to: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    match from {
        IpAddr::V4(from) => {
            let to = match to.ip() {
                IpAddr::V4(to) => to,
                IpAddr::V6(_) => std::net::Ipv4Addr::LOCALHOST,
            };
            header.extend([0x11, 0, 12]);
            header.extend(from.octets());
            header.extend(to.octets());
        }
        IpAddr::V6(from) => {
            let to = match to.ip() {
                IpAddr::V4(to) => to.to_ipv6_mapped(),
                IpAddr::V6(to) => to,
            };
            header.extend([0x21, 0, 36]);
            header.extend(from.octets());
            header.extend(to.octets());
        }
    }
    header.extend(CLIENT_PORT.to_be_bytes());
    header.extend(to.port().to_be_bytes());
    header
}

fn read_answer(stream: &mut impl Read, on_body: &mut impl FnMut(&[u8])) -> io::Result<u16> {
    let mut head = Vec::new();
    let mut buffer = [0; 8 * 1024];
    let body_at = loop {
        let read = stream.read(&mut buffer)?;
        head.extend_from_slice(buffer.get(..read).unwrap_or_default());
        if let Some(end) = memchr::memmem::find(&head, b"\r\n\r\n") {
            break end + 4;
        }
        if read == 0 || head.len() > HEAD_BYTES_MAX {
            return Err(io::Error::other("an answer without a head"));
        }
    };
    let body = head.split_off(body_at);
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let status = head.get(9..12).and_then(|digits| digits.parse().ok());
    let status = status.ok_or_else(|| io::Error::other("an answer without a status"))?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut left = match length {
        _ if head.contains("transfer-encoding: chunked") => Left::Chunks(Chunks::default()),
        Some(length) => Left::Bytes(length.trim().parse().map_err(io::Error::other)?),
        None => Left::UntilClosed,
    };
    let mut ended = left.take(&body, on_body);
    while !ended {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return match left {
                Left::UntilClosed => Ok(status),
                Left::Bytes(_) | Left::Chunks(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        ended = left.take(buffer.get(..read).unwrap_or_default(), on_body);
    }
    Ok(status)
}

/// What is still to come of a body.
enum Left {
    Bytes(usize),
    Chunks(Chunks),
    UntilClosed,
}

impl Left {
    /// Takes bytes in; whether the body has ended.
    fn take(&mut self, bytes: &[u8], on_body: &mut impl FnMut(&[u8])) -> bool {
        match self {
            Self::Bytes(left) => {
                let taken = bytes.len().min(*left);
                on_body(bytes.get(..taken).unwrap_or_default());
                *left -= taken;
                *left == 0
            }
            Self::Chunks(chunks) => chunks.take(bytes, on_body),
            Self::UntilClosed => {
                on_body(bytes);
                false
            }
        }
    }
}

/// Reads the chunked coding (RFC 9112, section 7.1).
#[derive(Default)]
struct Chunks {
    /// Bytes left of this chunk, with the line break behind it.
    left: usize,
    /// A size line that has not ended.
    line: Vec<u8>,
}

impl Chunks {
    fn take(&mut self, mut bytes: &[u8], on_body: &mut impl FnMut(&[u8])) -> bool {
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = bytes.len().min(self.left);
                let data = taken.min(self.left.saturating_sub(2));
                on_body(bytes.get(..data).unwrap_or_default());
                self.left -= taken;
                bytes = bytes.get(taken..).unwrap_or_default();
                continue;
            }
            let Some(end) = memchr::memchr(b'\n', bytes) else {
                self.line.extend_from_slice(bytes);
                // No size has as many digits: the next read fails.
                self.line.truncate(64);
                return false;
            };
            let (line, rest) = bytes.split_at(end + 1);
            self.line.extend_from_slice(line);
            bytes = rest;
            let size = String::from_utf8_lossy(&self.line);
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            self.line.clear();
            if size == 0 {
                return true;
            }
            self.left = size.saturating_add(2);
        }
        false
    }
}

/// What came in one piece of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Text of the answer.
    pub text: String,
    /// Reasoning before it, characters.
    pub reasoning_chars: usize,
    /// It is an error.
    pub error: bool,
}

impl Piece {
    /// About how many tokens it is: one for four characters that somebody sees, and at least one.
    #[must_use]
    pub fn tokens(&self) -> usize {
        let chars = self.text.chars().count() - invisible(&self.text) + self.reasoning_chars;
        if chars == 0 { 0 } else { (chars / 4).max(1) }
    }
}

/// Characters of a text that nobody sees.
#[must_use]
pub fn invisible(text: &str) -> usize {
    text.chars().filter(|c| ZERO_WIDTH.contains(c)).count()
}

/// Reads the text out of an answer of any of the formats that the sample API speaks.
#[derive(Default)]
pub struct Reader {
    line: Vec<u8>,
}

impl Reader {
    /// Takes a part of the body in and gives the events that ended in it.
    pub fn take(&mut self, mut bytes: &[u8], on_piece: &mut impl FnMut(Piece)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end + 1);
            bytes = rest;
            self.keep(line);
            self.end(on_piece);
        }
        self.keep(bytes);
    }

    /// The body has ended.
    pub fn end(&mut self, on_piece: &mut impl FnMut(Piece)) {
        let line = std::mem::take(&mut self.line);
        let data = line.strip_prefix(b"data:").unwrap_or(&line);
        if let Ok(value) = serde_json::from_slice::<Value>(data) {
            on_piece(piece(&value));
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES_MAX.saturating_sub(self.line.len()).min(bytes.len());
        self.line.extend_from_slice(bytes.get(..room).unwrap_or_default());
    }
}

fn piece(value: &Value) -> Piece {
    const TEXTS: [&str; 5] = [
        "/choices/0/delta/content",
        "/choices/0/message/content",
        "/choices/0/text",
        "/delta/text",
        "/content/0/text",
    ];
    const REASONING: [&str; 3] = [
        "/choices/0/delta/reasoning_content",
        "/choices/0/message/reasoning_content",
        "/delta/thinking",
    ];
    let of = |places: &[&str]| -> String {
        places.iter().filter_map(|place| value.pointer(place)?.as_str()).collect()
    };
    let (mut text, mut reasoning) = (of(&TEXTS), of(&REASONING));
    if value["type"] == "response.output_text.delta" {
        text.push_str(value["delta"].as_str().unwrap_or_default());
    }
    for part in
        value.pointer("/candidates/0/content/parts").and_then(Value::as_array).into_iter().flatten()
    {
        let said = part["text"].as_str().unwrap_or_default();
        if part["thought"] == true { &mut reasoning } else { &mut text }.push_str(said);
    }
    let error = !value["error"].is_null() || value["type"] == "response.failed";
    Piece { text, reasoning_chars: reasoning.chars().count(), error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::proxy_protocol;

    #[test]
    fn the_gateway_understands_the_header() {
        for (from, to) in [("192.0.2.7", "127.0.0.1:8443"), ("2001:db8::7", "127.0.0.1:8443")] {
            let (from, to): (IpAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let bytes = proxy_header(from, to);
            let (header, taken) = proxy_protocol::parse(&bytes).unwrap().unwrap();
            assert_eq!(taken, bytes.len());
            assert_eq!(header.addresses.unwrap().source, SocketAddr::new(from, CLIENT_PORT));
        }
    }

    #[test]
    fn answers_are_read_however_they_are_cut() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                       5\r\nHello\r\n7\r\n, world\r\n0\r\n\r\n";
        let sized = "HTTP/1.1 403 Forbidden\r\nContent-Length: 12\r\n\r\nHello, world";
        for (answer, status) in [(chunked, 200), (sized, 403)] {
            for size in [1, 2, 3, 7, 1000] {
                let mut parts = answer.as_bytes().chunks(size);
                let mut stream = Parts(&mut parts);
                let mut body = Vec::new();
                let found = read_answer(&mut stream, &mut |bytes: &[u8]| body.extend(bytes));
                assert_eq!((found.unwrap(), body.as_slice()), (status, b"Hello, world".as_slice()));
            }
        }
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nHello";
        assert!(read_answer(&mut cut.as_bytes(), &mut |_: &[u8]| ()).is_err());
    }

    struct Parts<'a, 'b>(&'a mut std::slice::Chunks<'b, u8>);

    impl Read for Parts<'_, '_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let part = self.0.next().unwrap_or_default();
            buffer[..part.len()].copy_from_slice(part);
            Ok(part.len())
        }
    }

    #[test]
    fn text_is_found_in_every_format() {
        for (line, text, reasoning_chars, error) in [
            (r#"data: {"choices":[{"delta":{"content":"Hi"}}]}"#, "Hi", 0, false),
            (r#"data: {"choices":[{"delta":{"reasoning_content":"Hm."}}]}"#, "", 3, false),
            (r#"{"choices":[{"message":{"content":"Hi"}}]}"#, "Hi", 0, false),
            (r#"data: {"type":"content_block_delta","delta":{"text":"Hi"}}"#, "Hi", 0, false),
            (r#"data: {"type":"response.output_text.delta","delta":"Hi"}"#, "Hi", 0, false),
            (
                r#"data: {"candidates":[{"content":{"parts":[{"text":"Hm","thought":true},{"text":"Hi"}]}}]}"#,
                "Hi",
                2,
                false,
            ),
            (r#"{"error":{"message":"no"}}"#, "", 0, true),
        ] {
            let mut reader = Reader::default();
            let mut pieces = Vec::new();
            let line = format!("{line}\n\n");
            for part in line.as_bytes().chunks(5) {
                reader.take(part, &mut |piece| pieces.push(piece));
            }
            reader.end(&mut |piece| pieces.push(piece));
            assert_eq!(pieces, [Piece { text: text.to_owned(), reasoning_chars, error }], "{line}");
        }
        assert_eq!(invisible("a\u{200b}b\u{2060}c"), 2);
    }
}
