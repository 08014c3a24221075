//! The layer below TLS: copies the handshake's hello messages out of the byte stream.
//!
//! It also gives back bytes that were read ahead of TLS (a PROXY header's surplus, the first
//! bytes of a plain-text connection), and once both hellos are complete it costs one branch.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use pingora_core::protocols::{Shutdown, Ssl, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client_hello::ClientHello;
use super::delegate_digests;
use super::handshake::{ClientHelloReader, ReadHello, ServerHelloReader};
use super::server_hello::ServerHello;

/// The hello messages of one handshake, filled while it runs.
#[derive(Debug, Default)]
pub struct Hellos {
    /// The first ClientHello and how it came.
    pub client: Option<ReadHello<ClientHello>>,
    /// The final ServerHello.
    pub server: Option<ServerHello>,
    /// Whether a HelloRetryRequest came before it.
    pub hello_retry_request: bool,
    /// Why there is no ClientHello, if the bytes were not one.
    pub client_error: Option<String>,
}

/// A TCP stream that copies hello messages.
#[derive(Debug)]
pub struct Tee {
    io: Stream,
    ahead: Bytes,
    taps: Option<Box<Taps>>,
}

#[derive(Debug)]
struct Taps {
    hellos: Arc<Mutex<Hellos>>,
    client: Option<ClientHelloReader>,
    server: Option<ServerHelloReader>,
}

impl Tee {
    /// A stream whose hellos are copied into `hellos`; `ahead` was read from `io` already.
    #[must_use]
    pub fn capturing(io: Stream, ahead: Bytes, hellos: Arc<Mutex<Hellos>>) -> Self {
        let taps = Taps {
            hellos,
            client: Some(ClientHelloReader::new()),
            server: Some(ServerHelloReader::new()),
        };
        Self { io, ahead, taps: Some(Box::new(taps)) }
    }

    /// A stream that is only passed on, after the bytes in `ahead`.
    #[must_use]
    pub fn plain(io: Stream, ahead: Bytes) -> Self {
        Self { io, ahead, taps: None }
    }

    fn saw_read(&mut self, bytes: &[u8]) {
        let Some(taps) = &mut self.taps else { return };
        taps.saw_read(bytes);
        if taps.done() {
            self.taps = None;
        }
    }

    fn saw_write(&mut self, bytes: &[u8]) {
        let Some(taps) = &mut self.taps else { return };
        taps.saw_write(bytes);
        if taps.done() {
            self.taps = None;
        }
    }
}

impl Taps {
    fn saw_read(&mut self, bytes: &[u8]) {
        let Some(reader) = &mut self.client else { return };
        match reader.feed(bytes) {
            Ok(None) => return,
            Ok(Some(hello)) => self.hellos.lock().client = Some(hello),
            Err(error) => self.hellos.lock().client_error = Some(error.to_string()),
        }
        self.client = None;
    }

    fn saw_write(&mut self, bytes: &[u8]) {
        let Some(reader) = &mut self.server else { return };
        let outcome = reader.feed(bytes);
        if reader.hello_retry_request() {
            self.hellos.lock().hello_retry_request = true;
        }
        match outcome {
            Ok(None) => return,
            Ok(Some(hello)) => self.hellos.lock().server = Some(hello),
            // An alert instead of a ServerHello: the handshake failed, there is nothing to keep.
            Err(_) => {}
        }
        self.server = None;
    }

    fn done(&self) -> bool {
        self.client.is_none() && self.server.is_none()
    }
}

impl AsyncRead for Tee {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        let start = buf.filled().len();
        if me.ahead.is_empty() {
            ready!(Pin::new(&mut me.io).poll_read(cx, buf))?;
        } else {
            let n = me.ahead.len().min(buf.remaining());
            buf.put_slice(&me.ahead[..n]);
            me.ahead.advance(n);
        }
        if me.taps.is_some() {
            me.saw_read(&buf.filled()[start..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tee {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        if self.taps.is_some() {
            self.saw_write(&buf[..n]);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        if self.taps.is_some() {
            let mut left = n;
            for buf in bufs {
                let taken = left.min(buf.len());
                self.saw_write(&buf[..taken]);
                left -= taken;
            }
        }
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for Tee {
    async fn shutdown(&mut self) {
        self.io.shutdown().await;
    }
}

// Below TLS: there is no TLS digest to pass on.
impl Ssl for Tee {}

delegate_digests!(Tee, io);
