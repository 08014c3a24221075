//! A raw HTTP/1.1 client: sends the bytes it is given, well-formed or not, and reads the answer.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// Longest wait for the next byte.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// A TLS connection to a loopback server.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// An answer as it came.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Status; 0 if the connection ended before one came.
    pub status: u16,
    /// Header fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body, chunked framing taken off.
    pub body: Vec<u8>,
    /// Whether the body reached its proper end.
    pub complete: bool,
}

impl Response {
    /// The first value of a header field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// Opens a TCP connection with Nagle's algorithm off.
///
/// # Panics
/// If nobody listens.
#[must_use]
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("connect {address}: {e}"));
    stream.set_nodelay(true).expect("an open socket");
    stream.set_read_timeout(Some(SILENCE_MAX)).expect("a valid timeout");
    stream.set_write_timeout(Some(SILENCE_MAX)).expect("a valid timeout");
    stream
}

/// Opens a TLS connection to `localhost`; the handshake happens at the first read or write.
#[must_use]
pub fn connect_tls(address: SocketAddr, config: &Arc<ClientConfig>) -> TlsStream {
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(config.clone(), name).expect("a client connection");
    StreamOwned::new(connection, connect(address))
}

/// One request over plain text, one answer.
#[must_use]
pub fn plain(address: SocketAddr, request: &[u8]) -> Response {
    exchange(&mut connect(address), request)
}

/// One request over TLS, one answer.
#[must_use]
pub fn tls(address: SocketAddr, config: &Arc<ClientConfig>, request: &[u8]) -> Response {
    exchange(&mut connect_tls(address, config), request)
}

/// Sends a request and reads its answer. A server may close before it has read everything.
pub fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> Response {
    let _ = stream.write_all(request).and_then(|()| stream.flush());
    read_response(stream)
}

/// Reads one answer; interim ones (1xx) are skipped.
pub fn read_response(stream: &mut impl Read) -> Response {
    let mut reader = Reader { stream, pending: Vec::new() };
    loop {
        let Some(head) = reader.head() else { return Response::default() };
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        if (100..200).contains(&status) && status != 101 {
            continue;
        }
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut response = Response { status, headers, ..Response::default() };
        reader.body(&mut response);
        return response;
    }
}

/// Reads until the other side closes; `None` if it did not within `limit`.
pub fn read_to_close(stream: &mut TcpStream, limit: Duration) -> Option<Vec<u8>> {
    stream.set_read_timeout(Some(limit)).expect("a valid timeout");
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => Some(bytes),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        // A reset is a close too.
        Err(_) => Some(bytes),
    }
}

struct Reader<'a, S> {
    stream: &'a mut S,
    pending: Vec<u8>,
}

impl<S: Read> Reader<'_, S> {
    fn head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.pending.windows(4).position(|w| w == b"\r\n\r\n") {
                let head: Vec<u8> = self.pending.drain(..at + 4).collect();
                return Some(String::from_utf8_lossy(&head[..at]).into_owned());
            }
            self.fill()?;
        }
    }

    fn body(&mut self, response: &mut Response) {
        if matches!(response.status, 101 | 204 | 304) {
            response.complete = true;
        } else if response.header("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
            response.complete = self.chunked(&mut response.body).is_some();
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().unwrap_or(0);
            while self.pending.len() < length && self.fill().is_some() {}
            response.complete = self.pending.len() >= length;
            response.body = self.pending.drain(..length.min(self.pending.len())).collect();
        } else {
            while self.fill().is_some() {}
            response.body = std::mem::take(&mut self.pending);
            response.complete = true;
        }
    }

    fn chunked(&mut self, body: &mut Vec<u8>) -> Option<()> {
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Some(());
            }
            while self.pending.len() < size + 2 {
                if self.fill().is_none() {
                    body.append(&mut self.pending);
                    return None;
                }
            }
            body.extend(self.pending.drain(..size));
            self.pending.drain(..2);
        }
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.pending.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.pending.drain(..at + 2).collect();
                return Some(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            self.fill()?;
        }
    }

    /// Reads more; `None` at the end, on an error and after too long a silence.
    fn fill(&mut self) -> Option<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) | Err(_) => None,
            Ok(length) => {
                self.pending.extend_from_slice(&buffer[..length]);
                Some(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_framed() {
        let cases: &[(&str, u16, &str, bool)] = &[
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef", 200, "abc", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", 200, "abc", false),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                200,
                "abc",
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
                200,
                "abc",
                false,
            ),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 Too\r\n\r\nno", 413, "no", true),
            ("", 0, "", false),
        ];
        for (bytes, status, body, complete) in cases {
            let response = read_response(&mut bytes.as_bytes());
            assert_eq!(
                (response.status, response.text().as_str(), response.complete),
                (*status, *body, *complete),
                "{bytes:?}"
            );
        }
    }
}
