//! A fake provider: answers any path with the bytes it is told to, exactly, and keeps what it
//! received.
//!
//! Speaks HTTP/1.1 and HTTP/2 by prior knowledge on one loopback port. What to answer is said by
//! the request header `x-provider`, a list such as `stream=own/openai-chat/text.sse;chunks=odd`:
//!
//! | directive | meaning |
//! |---|---|
//! | `stream=NAME` | the stream of that name (see [`streams`](crate::streams)) |
//! | `chunks=whole\|events\|odd\|paced:MS` | how its bytes are cut into writes; `whole` by default |
//! | `status=N` | the status instead of 200 |
//! | `echo` | a JSON object with length and SHA-256 of the request body (the default without a stream) |
//! | `mirror` | the request's body, piece by piece as it comes in, without waiting for its end |
//! | `size=N` | a body of N patterned bytes |
//! | `events=N` | a chat stream of N events of one token each |
//! | `cut=N` | the connection (HTTP/1) or stream (HTTP/2) breaks after N body bytes |
//! | `stall=N` | nothing more comes after N body bytes, and the body does not end |
//! | `header_delay=MS` | silence before the response header |
//! | `trailers` | the trailer `x-trailer: end` after the body |
//! | `gzip` | the body gzip-encoded, with its `content-encoding` |
//!
//! Without the header, a request for a known provider path gets the project's own stream of that
//! format, so that clients that cannot send headers are served too.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::streams;

/// Bytes kept of a request body and of a connection, for assertions.
const KEPT_BYTES_MAX: usize = 1024 * 1024;
/// Pieces of a request body that wait to be sent back.
const MIRRORED_PIECES_MAX: usize = 64 * 1024;

/// A request as the provider received it.
#[derive(Clone, Debug)]
pub struct Received {
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// HTTP version.
    pub version: Version,
    /// Header fields in the order received; equal names stand together.
    pub headers: Vec<(String, String)>,
    /// Trailer fields.
    pub trailers: Vec<(String, String)>,
    /// The body's first mebibyte.
    pub body: Vec<u8>,
    /// Length of the whole body.
    pub body_bytes: u64,
    /// SHA-256 of the whole body, hex.
    pub body_sha256: String,
}

impl Received {
    /// The first value of a header field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// A fake provider on a loopback port of its own, ended when it goes out of scope.
pub struct Provider {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Vec<Received>>,
    connections: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
}

impl Provider {
    /// Starts a provider on a port that is free.
    #[must_use]
    pub fn start() -> Self {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Starts a provider on a given address.
    #[must_use]
    pub fn start_on(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        // The provider before on this address may still be ending.
        let listener = crate::wait_for("a loopback port", Duration::from_secs(5), || {
            runtime.block_on(TcpListener::bind(address)).ok()
        });
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared::default());
        runtime.spawn(serve(listener, shared.clone()));
        Self { address, shared, runtime: Some(runtime) }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests received so far, in order of their end.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().expect("not poisoned").clone()
    }

    /// The first request whose path contains `part`.
    #[must_use]
    pub fn request(&self, part: &str) -> Option<Received> {
        self.received().into_iter().find(|request| request.path.contains(part))
    }

    /// The opening bytes of every connection, as they came off the socket.
    #[must_use]
    pub fn connections(&self) -> Vec<Vec<u8>> {
        let connections = self.shared.connections.lock().expect("not poisoned");
        connections.iter().map(|bytes| bytes.lock().expect("not poisoned").clone()).collect()
    }

    /// Whether these bytes came in on any connection: what was refused must not have.
    #[must_use]
    pub fn saw(&self, needle: &[u8]) -> bool {
        self.connections().iter().any(|bytes| bytes.windows(needle.len()).any(|w| w == needle))
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let opening = Arc::new(Mutex::new(Vec::new()));
        shared.connections.lock().expect("not poisoned").push(opening.clone());
        let shared = shared.clone();
        tokio::spawn(async move {
            let service =
                hyper::service::service_fn(move |request| answer(request, shared.clone()));
            let mut builder = auto::Builder::new(TokioExecutor::new());
            // The gateway's own bounds are under test, so this side takes more than they allow.
            builder.http2().max_header_list_size(1 << 20).initial_stream_window_size(1 << 20);
            builder.http1().max_buf_size(2 << 20);
            // A connection's end is the client's business; the answer went out or it did not.
            let _ = builder.serve_connection(TokioIo::new(Kept { stream, opening }), service).await;
        });
    }
}

/// A connection whose first bytes are kept.
struct Kept {
    stream: TcpStream,
    opening: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Kept {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let mut opening = self.opening.lock().expect("not poisoned");
        let fresh = buf.filled().get(before..).unwrap_or_default();
        let room = KEPT_BYTES_MAX.saturating_sub(opening.len());
        opening.extend_from_slice(&fresh[..fresh.len().min(room)]);
        drop(opening);
        polled
    }
}

impl AsyncWrite for Kept {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Written>, Infallible> {
    let (head, body) = request.into_parts();
    if head.headers.get("x-provider").is_some_and(|value| value == "mirror") {
        return Ok(mirror(body));
    }
    let received = match receive(&head, body).await {
        Ok(received) => received,
        Err(error) => {
            // The request broke off: nobody is left to read this, and nothing is recorded.
            let body = Written::all(vec![Bytes::from(error.to_string())]);
            return Ok(Response::builder().status(400).body(body).expect("a valid response"));
        }
    };
    let directives = Directives::of(&head.headers, &received);
    shared.received.lock().expect("not poisoned").push(received.clone());
    Ok(directives.answer(&received).await)
}

/// Answers while it reads, and reads whether or not its answer is taken.
fn mirror(mut body: Incoming) -> Response<Written> {
    let (sender, receiver) = mpsc::channel(MIRRORED_PIECES_MAX);
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            if sender.send(Ok(frame)).await.is_err() {
                return;
            }
        }
    });
    let response = Response::builder().header("content-type", "application/octet-stream");
    response.body(Written { receiver }).expect("a valid response")
}

async fn receive(
    head: &http::request::Parts,
    mut body: Incoming,
) -> Result<Received, hyper::Error> {
    let mut kept = Vec::new();
    let mut sha256 = Sha256::new();
    let mut body_bytes = 0_u64;
    let mut trailers = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                let room = KEPT_BYTES_MAX.saturating_sub(kept.len());
                kept.extend_from_slice(&data[..data.len().min(room)]);
                sha256.update(&data);
                body_bytes += data.len() as u64;
            }
            Err(frame) => {
                if let Ok(fields) = frame.into_trailers() {
                    trailers = field_list(&fields);
                }
            }
        }
    }
    Ok(Received {
        method: head.method.to_string(),
        path: head.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        version: head.version,
        headers: field_list(&head.headers),
        trailers,
        body: kept,
        body_bytes,
        body_sha256: hex::encode(sha256.finalize()),
    })
}

fn field_list(fields: &HeaderMap) -> Vec<(String, String)> {
    fields
        .iter()
        .map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect()
}

/// What the request asks the provider to do.
#[derive(Default)]
struct Directives {
    stream: Option<String>,
    chunks: Option<String>,
    status: Option<u16>,
    size: Option<usize>,
    events: Option<usize>,
    cut: Option<usize>,
    stall: Option<usize>,
    header_delay_ms: u64,
    trailers: bool,
    gzip: bool,
}

impl Directives {
    fn of(headers: &HeaderMap, received: &Received) -> Self {
        let Some(text) = headers.get("x-provider").and_then(|value| value.to_str().ok()) else {
            let stream = streams::default_for(&received.path, &received.body);
            return Self { stream: stream.map(str::to_owned), ..Self::default() };
        };
        let mut directives = Self::default();
        for part in text.split(';') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let number = || value.parse::<usize>().expect("a number in x-provider");
            match name.trim() {
                "stream" => directives.stream = Some(value.to_owned()),
                "chunks" => directives.chunks = Some(value.to_owned()),
                "status" => directives.status = Some(value.parse().expect("a status")),
                "size" => directives.size = Some(number()),
                "events" => directives.events = Some(number()),
                "cut" => directives.cut = Some(number()),
                "stall" => directives.stall = Some(number()),
                "header_delay" => directives.header_delay_ms = number() as u64,
                "trailers" => directives.trailers = true,
                "gzip" => directives.gzip = true,
                "echo" => {}
                unknown => panic!("x-provider does not know `{unknown}`"),
            }
        }
        directives
    }

    async fn answer(&self, received: &Received) -> Response<Written> {
        tokio::time::sleep(Duration::from_millis(self.header_delay_ms)).await;
        let (mut body, content_type) = match (&self.stream, self.size) {
            (Some(name), _) => match streams::read(name) {
                Some(bytes) => (bytes, streams::content_type(name)),
                None => panic!("there is no stream `{name}`"),
            },
            (None, Some(size)) => (patterned(size), "application/octet-stream"),
            (None, None) if self.events.is_some() => {
                (chat_events(self.events.unwrap_or(0)), "text/event-stream")
            }
            (None, None) => (echo(received), "application/json"),
        };
        let mut response = Response::builder()
            .status(self.status.unwrap_or(200))
            .header("content-type", content_type)
            .header("x-request-id", "req_fake_provider");
        if self.gzip {
            body = gzip(&body);
            response = response.header("content-encoding", "gzip");
        }
        if self.trailers {
            response = response.header("trailer", "x-trailer");
        }
        let broken_after = self.cut.or(self.stall);
        if !self.trailers && (self.stream.is_none() || content_type == "application/json") {
            // A plain answer has a length, as providers send it; a stream has none.
            response = response.header("content-length", body.len());
        }
        if let Some(length) = broken_after {
            body.truncate(length);
        }
        let written = self.write(body);
        response.body(written).expect("a valid response")
    }

    /// Sends the body from a task of its own, cut into writes as asked.
    fn write(&self, body: Vec<u8>) -> Written {
        let (sender, receiver) = mpsc::channel(1);
        let pattern = self.chunks.clone().unwrap_or_else(|| "whole".to_owned());
        let (cut, stall, trailers) = (self.cut.is_some(), self.stall.is_some(), self.trailers);
        tokio::spawn(async move {
            let pause = pattern.strip_prefix("paced:").map(|ms| ms.parse().expect("milliseconds"));
            for chunk in chunks(&pattern, body) {
                if sender.send(Ok(Frame::data(chunk))).await.is_err() {
                    return;
                }
                match pause {
                    Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                    // Lets the connection write this chunk before it sees the next.
                    None => tokio::task::yield_now().await,
                }
            }
            if stall {
                sender.closed().await;
            } else if cut {
                // Time for what came before to leave, so that the cut falls into the stream.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let _ = sender.send(Err(std::io::Error::other("cut as asked"))).await;
            } else if trailers {
                let mut fields = HeaderMap::new();
                fields.insert("x-trailer", HeaderValue::from_static("end"));
                let _ = sender.send(Ok(Frame::trailers(fields))).await;
            }
        });
        Written { receiver }
    }
}

/// The writes that a body is cut into.
fn chunks(pattern: &str, body: Vec<u8>) -> Vec<Bytes> {
    let body = Bytes::from(body);
    if pattern == "whole" {
        return vec![body];
    }
    let mut chunks = Vec::new();
    let mut start = 0;
    if pattern == "odd" {
        // Odd lengths that cut through events, lines and UTF-8 sequences alike.
        for length in [1, 3, 7, 13, 2, 61, 5, 199, 17, 997].iter().cycle() {
            if start == body.len() {
                break;
            }
            let end = (start + length).min(body.len());
            chunks.push(body.slice(start..end));
            start = end;
        }
        return chunks;
    }
    assert!(pattern == "events" || pattern.starts_with("paced:"), "chunks={pattern}");
    for end in event_ends(&body) {
        chunks.push(body.slice(start..end));
        start = end;
    }
    if start < body.len() {
        chunks.push(body.slice(start..));
    }
    chunks
}

/// The offsets after each blank line; for what has none, after each line.
fn event_ends(body: &[u8]) -> Vec<usize> {
    let after = |separator: &[u8]| -> Vec<usize> {
        let windows = body.windows(separator.len()).enumerate();
        windows.filter(|(_, w)| *w == separator).map(|(at, _)| at + separator.len()).collect()
    };
    let candidates = [after(b"\r\n\r\n"), after(b"\n\n"), after(b"\n")];
    candidates.into_iter().find(|ends| !ends.is_empty()).unwrap_or_default()
}

fn echo(received: &Received) -> Vec<u8> {
    serde_json::json!({
        "length": received.body_bytes,
        "sha256": received.body_sha256,
        "method": received.method,
        "path": received.path,
        "content_encoding": received.header("content-encoding"),
    })
    .to_string()
    .into_bytes()
}

/// Bytes whose value tells their place, so that a lost or doubled piece shows.
fn chat_events(count: usize) -> Vec<u8> {
    let event = |number: usize| {
        format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"w{number:03} \"}}}}]}}\n\n",
            number = number % 1000
        )
    };
    let end = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    (0..count).map(event).chain([end.to_owned()]).collect::<String>().into_bytes()
}

fn patterned(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at % 251) as u8).collect()
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

/// A body that another task writes.
struct Written {
    receiver: mpsc::Receiver<std::io::Result<Frame<Bytes>>>,
}

impl Written {
    fn all(chunks: Vec<Bytes>) -> Self {
        let (sender, receiver) = mpsc::channel(chunks.len().max(1));
        for chunk in chunks {
            let _ = sender.try_send(Ok(Frame::data(chunk)));
        }
        Self { receiver }
    }
}

impl http_body::Body for Written {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        self.receiver.poll_recv(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1;

    #[test]
    fn every_pattern_gives_the_same_bytes() {
        let body = "data: é1\r\n\r\ndata: 2\r\n\r\nrest".as_bytes().to_vec();
        for pattern in ["whole", "events", "odd", "paced:5"] {
            assert_eq!(chunks(pattern, body.clone()).concat(), body, "{pattern}");
        }
        assert_eq!(chunks("events", body).len(), 3);
    }

    #[test]
    fn a_stream_comes_exactly_and_the_request_is_kept() {
        let provider = Provider::start();
        for name in streams::own() {
            for pattern in ["whole", "events", "odd"] {
                let request = format!(
                    "POST /v1/any HTTP/1.1\r\nhost: fake\r\nx-provider: stream={name};chunks={pattern}\r\n\
                     content-length: 2\r\nconnection: close\r\n\r\n{{}}"
                );
                let response = http1::plain(provider.address(), request.as_bytes());
                assert_eq!(response.status, 200);
                assert_eq!(Some(response.body), streams::read(&name), "{name} {pattern}");
            }
        }
        let received = provider.request("/v1/any").expect("a record");
        assert_eq!((received.method.as_str(), received.body.as_slice()), ("POST", &b"{}"[..]));
        assert!(provider.saw(b"x-provider: stream="));
    }

    #[test]
    fn a_cut_is_not_a_proper_end() {
        let provider = Provider::start();
        let request = b"GET / HTTP/1.1\r\nhost: fake\r\nx-provider: stream=own/anthropic/text.sse;cut=100\r\n\
            connection: close\r\n\r\n";
        let response = http1::plain(provider.address(), request);
        assert!(!response.complete);
        assert_eq!(response.body.len(), 100);
    }
}
