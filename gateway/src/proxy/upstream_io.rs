//! The layer on which HTTP/1.1 is spoken with an upstream: writes never wait.
//!
//! Pingora's HTTP/1 session is one object for both directions, so a write that waits for room would
//! keep the answer from being read, and two parties that both write would wait for each other for
//! ever. Here a write goes to a buffer and leaves as the socket takes it, driven by whoever reads or
//! by [`Outlet::push`] where nobody does. The buffer is bounded by its user: [`Outlet::has_room`]
//! tells when it takes more.
//!
//! A write that fails says so in [`Outlet::failed`], not to the writer: an upstream may answer and
//! close before it has read all, and the answer is then still to be read.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::limits::UPSTREAM_UNSENT_BYTES_MAX;

/// The sending half of an [`UpstreamIo`], for whoever does not hold the stream.
#[derive(Debug)]
pub struct Outlet {
    inner: Mutex<Inner>,
    moved: Notify,
}

#[derive(Debug)]
struct Inner {
    io: Stream,
    buffer: BytesMut,
    /// Bytes went to the layer below since it was last flushed.
    unflushed: bool,
    corked: bool,
    failed: bool,
    moved_total: u64,
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
        self.inner.lock().buffer.len()
    }

    /// Bytes that the socket has ever taken: it stalls where this does not grow.
    #[must_use]
    pub fn moved_total(&self) -> u64 {
        self.inner.lock().moved_total
    }

    /// Whether writing failed; what was not sent is lost.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.inner.lock().failed
    }

    /// Puts flushes off until `false`: a request's head and its body are to leave together.
    pub fn cork(&self, corked: bool) {
        self.inner.lock().corked = corked;
    }

    /// Waits until the socket has taken something, while somebody else reads.
    pub async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Sends until the socket has taken something, where nobody reads.
    pub async fn push(&self) {
        poll_fn(|cx| {
            let before = self.moved_total();
            self.drain(cx);
            let inner = self.inner.lock();
            if inner.moved_total != before || inner.failed || inner.buffer.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Sends what the socket takes now.
    fn drain(&self, cx: &mut Context<'_>) {
        let mut inner = self.inner.lock();
        if inner.buffer.is_empty() && !inner.unflushed {
            return;
        }
        let before = inner.moved_total;
        if let Poll::Ready(Err(error)) = inner.poll_drain(cx) {
            tracing::debug!(%error, "upstream takes no more of the request");
            inner.buffer = BytesMut::new();
            inner.unflushed = false;
            inner.failed = true;
        }
        if inner.moved_total != before || inner.failed {
            self.moved.notify_one();
        }
    }
}

impl Inner {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.buffer))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffer.advance(n);
            self.unflushed = true;
            self.moved_total += n as u64;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

/// The stream.
#[derive(Debug)]
pub struct UpstreamIo {
    outlet: Arc<Outlet>,
    // These do not change, and pingora asks for some by reference.
    id: UniqueIDType,
    tls: Option<Arc<SslDigest>>,
    alpn: Option<ALPN>,
}

impl UpstreamIo {
    /// Wraps a connected stream.
    #[must_use]
    pub fn new(io: Stream) -> Self {
        let (id, tls, alpn) = (io.id(), io.get_ssl_digest(), io.selected_alpn_proto());
        let inner = Inner {
            io,
            buffer: BytesMut::new(),
            unflushed: false,
            corked: false,
            failed: false,
            moved_total: 0,
        };
        let outlet = Arc::new(Outlet { inner: Mutex::new(inner), moved: Notify::new() });
        Self { outlet, id, tls, alpn }
    }

    /// Its sending half.
    #[must_use]
    pub fn outlet(&self) -> &Arc<Outlet> {
        &self.outlet
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.outlet.drain(cx);
        Pin::new(&mut self.outlet.inner.lock().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let unsent = {
            let mut inner = self.outlet.inner.lock();
            if !inner.failed {
                inner.buffer.extend_from_slice(buf);
            }
            inner.buffer.len()
        };
        // Small writes (a head, a chunk's size) wait for the flush that follows them.
        if unsent >= UPSTREAM_UNSENT_BYTES_MAX / 2 {
            self.outlet.drain(cx);
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let corked = self.outlet.inner.lock().corked;
        if !corked {
            self.outlet.drain(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outlet.drain(cx);
        Pin::new(&mut self.outlet.inner.lock().io).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for UpstreamIo {
    async fn shutdown(&mut self) {
        // An error means that the other side is gone already.
        let _ = poll_fn(|cx| Pin::new(&mut self.outlet.inner.lock().io).poll_shutdown(cx)).await;
    }
}

impl UniqueID for UpstreamIo {
    fn id(&self) -> UniqueIDType {
        self.id
    }
}

impl Ssl for UpstreamIo {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.tls.clone()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.alpn.clone()
    }
}

impl GetTimingDigest for UpstreamIo {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.outlet.inner.lock().io.get_timing_digest()
    }
}

impl GetProxyDigest for UpstreamIo {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.outlet.inner.lock().io.get_proxy_digest()
    }
}

impl GetSocketDigest for UpstreamIo {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.outlet.inner.lock().io.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.outlet.inner.lock().io.set_socket_digest(digest);
    }
}

impl Peek for UpstreamIo {}

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
