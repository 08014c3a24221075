//! The layer on which HTTP/1.1 is spoken with an upstream: writes never wait.
//!
//! Pingora's HTTP/1 session is one object for both directions, so a write that waits for room would
//! keep the answer from being read, and two parties that both write would wait for each other for
//! ever. Here a write goes to a buffer and leaves as the socket takes it, driven by whoever reads.
//! The buffer is bounded by its user: [`Outlet::has_room`] tells when it takes more.
//!
//! A write that fails says so in [`Outlet::failed`], not to the writer: an upstream may answer and
//! close before it has read all, and the answer is then still to be read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora_core::protocols::tls::{SslDigest, TlsRef};
use pingora_core::protocols::{ALPN, Shutdown, Ssl, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::capture::delegate_digests;
use crate::limits::UPSTREAM_UNSENT_BYTES_MAX;

/// What is known of an [`UpstreamIo`]'s buffer.
#[derive(Debug, Default)]
pub struct Outlet {
    unsent: AtomicUsize,
    moved_total: AtomicU64,
    failed: AtomicBool,
    corked: AtomicBool,
    moved: Notify,
}

impl Outlet {
    /// Whether the buffer takes another piece.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.unsent() < UPSTREAM_UNSENT_BYTES_MAX
    }

    /// Bytes that the socket has not taken yet.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.unsent.load(Ordering::Relaxed)
    }

    /// Bytes that the socket has ever taken: it stalls where this does not grow.
    #[must_use]
    pub fn moved_total(&self) -> u64 {
        self.moved_total.load(Ordering::Relaxed)
    }

    /// Whether writing failed; what was not sent is lost.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Puts flushes off until `false`: a request's head and its body are to leave together.
    pub fn cork(&self, corked: bool) {
        self.corked.store(corked, Ordering::Relaxed);
    }

    /// Waits until the socket has taken something.
    pub async fn moved(&self) {
        self.moved.notified().await;
    }
}

/// The stream.
#[derive(Debug)]
pub struct UpstreamIo {
    io: Stream,
    buffer: BytesMut,
    /// Bytes went to the layer below since it was last flushed.
    unflushed: bool,
    outlet: Arc<Outlet>,
}

impl UpstreamIo {
    /// Wraps a connected stream.
    #[must_use]
    pub fn new(io: Stream) -> Self {
        Self { io, buffer: BytesMut::new(), unflushed: false, outlet: Arc::default() }
    }

    /// The state of its buffer.
    #[must_use]
    pub fn outlet(&self) -> &Arc<Outlet> {
        &self.outlet
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.buffer))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffer.advance(n);
            self.unflushed = true;
            self.outlet.unsent.store(self.buffer.len(), Ordering::Relaxed);
            self.outlet.moved_total.fetch_add(n as u64, Ordering::Relaxed);
            self.outlet.moved.notify_one();
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what the socket takes now.
    fn drain(&mut self, cx: &mut Context<'_>) {
        if self.buffer.is_empty() && !self.unflushed {
            return;
        }
        if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
            tracing::debug!(%error, "upstream takes no more of the request");
            self.buffer = BytesMut::new();
            self.unflushed = false;
            self.outlet.unsent.store(0, Ordering::Relaxed);
            self.outlet.failed.store(true, Ordering::Relaxed);
            self.outlet.moved.notify_one();
        }
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.drain(cx);
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.outlet.failed() {
            self.buffer.extend_from_slice(buf);
            self.outlet.unsent.store(self.buffer.len(), Ordering::Relaxed);
            // Small writes (a head, a chunk's size) wait for the flush that follows them.
            if self.buffer.len() >= UPSTREAM_UNSENT_BYTES_MAX / 2 {
                self.drain(cx);
            }
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.outlet.corked.load(Ordering::Relaxed) {
            self.drain(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.drain(cx);
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for UpstreamIo {
    async fn shutdown(&mut self) {
        self.io.shutdown().await;
    }
}

impl Ssl for UpstreamIo {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.io.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.io.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.io.selected_alpn_proto()
    }
}

delegate_digests!(UpstreamIo, io);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn writes_do_not_wait_and_reading_sends_them() {
        let (near, mut far) = duplex(1024);
        let mut io = UpstreamIo::new(Box::new(near));
        let outlet = io.outlet().clone();
        let body = vec![b'x'; UPSTREAM_UNSENT_BYTES_MAX];
        io.write_all(&body).await.unwrap();
        io.flush().await.unwrap();
        assert!(outlet.unsent() > 0 && outlet.unsent() < body.len());
        let reader = tokio::spawn(async move {
            let mut answer = [0; 5];
            io.read_exact(&mut answer).await.unwrap();
            answer
        });
        let mut taken = vec![0; body.len()];
        far.read_exact(&mut taken).await.unwrap();
        assert_eq!(taken, body);
        far.write_all(b"early").await.unwrap();
        assert_eq!(&reader.await.unwrap(), b"early");
        assert_eq!((outlet.unsent(), outlet.moved_total()), (0, body.len() as u64));
    }

    #[tokio::test]
    async fn a_failed_write_leaves_the_answer_to_be_read() {
        let (near, mut far) = duplex(64);
        let mut io = UpstreamIo::new(Box::new(near));
        far.write_all(b"no").await.unwrap();
        drop(far);
        io.write_all(&[0; 200]).await.unwrap();
        io.flush().await.unwrap();
        assert!(io.outlet().failed());
        assert_eq!(io.outlet().unsent(), 0);
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"no");
    }
}
