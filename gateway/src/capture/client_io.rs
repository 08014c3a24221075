//! The layer above TLS, on which HTTP is spoken with the client.
//!
//! Reading, it runs the HTTP/2 tap. Writing, it gathers: small writes wait in a buffer until a
//! flush or until [`WRITE_GATHER_BYTES`] are there, so that a response's head, its events that are
//! ready together and its end leave in one TLS record and one system call. Nothing that is ready
//! waits for something that is not: whoever writes flushes as soon as it has no more to say.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use pingora_core::protocols::tls::{SslDigest, TlsRef};
use pingora_core::protocols::{ALPN, IO, Shutdown, Ssl};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::delegate_digests;
use super::http1::Http1Tap;
use super::http2::{Passage, Tap};
use crate::limits::WRITE_GATHER_BYTES;

/// When buffered bytes leave, set by the exchange that writes on an HTTP/1 connection.
#[derive(Debug, Default)]
pub struct WriteMode(AtomicU8);

const ON_FLUSH: u8 = 0;
const CORKED: u8 = 1;
const EAGER: u8 = 2;

impl WriteMode {
    /// Flushes are put off until [`Self::on_flush`]: more is about to be written.
    pub fn cork(&self) {
        self.0.store(CORKED, Ordering::Relaxed);
    }

    /// Bytes leave at each flush.
    pub fn on_flush(&self) {
        self.0.store(ON_FLUSH, Ordering::Relaxed);
    }

    /// Bytes leave at each write: pingora does not flush a body of known length before its end.
    pub fn eager(&self) {
        self.0.store(EAGER, Ordering::Relaxed);
    }
}

/// Follows what a client sends, by the protocol that is spoken.
pub enum ClientTap {
    /// HTTP/1: sees the bytes.
    Http1(Http1Tap),
    /// HTTP/2: sees the bytes, and marks each request.
    Http2(Box<Tap>),
}

/// The stream that HTTP is spoken on.
pub struct ClientIo<S> {
    io: S,
    mode: Arc<WriteMode>,
    tap: ClientTap,
    /// Bytes that were read before HTTP began.
    ahead: Bytes,
    /// Bytes that the tap put in the place of what was read.
    replaced: Bytes,
    gathered: BytesMut,
}

impl<S: IO> ClientIo<S> {
    /// Wraps a decrypted (or plain) stream, of which `ahead` was read already. The tap decides
    /// which HTTP is spoken on it.
    #[must_use]
    pub fn new(io: S, ahead: Bytes, mode: Arc<WriteMode>, tap: ClientTap) -> Self {
        Self { io, mode, tap, ahead, replaced: Bytes::new(), gathered: BytesMut::new() }
    }

    fn poll_read_ahead(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..n]);
        self.ahead.advance(n);
        Poll::Ready(Ok(()))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.gathered))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_drain_and_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// In eager mode sends what is there. A full socket is no error: the bytes stay gathered and
    /// go with the next write or flush.
    fn after_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.mode.0.load(Ordering::Relaxed) != EAGER {
            return Ok(());
        }
        match self.poll_drain_and_flush(cx) {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }
}

impl<S: IO> AsyncRead for ClientIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        // What a full socket left behind of a body that is not flushed leaves while we wait here.
        if !me.gathered.is_empty() {
            me.after_write(cx)?;
        }
        loop {
            if !me.replaced.is_empty() {
                let n = me.replaced.len().min(buf.remaining());
                buf.put_slice(&me.replaced[..n]);
                me.replaced.advance(n);
                return Poll::Ready(Ok(()));
            }
            let start = buf.filled().len();
            ready!(me.poll_read_ahead(cx, buf))?;
            let read = &buf.filled()[start..];
            match &mut me.tap {
                _ if read.is_empty() => return Poll::Ready(Ok(())),
                ClientTap::Http1(tap) => {
                    tap.feed(read);
                    return Poll::Ready(Ok(()));
                }
                ClientTap::Http2(tap) => match tap.feed(read) {
                    Passage::AsIs => return Poll::Ready(Ok(())),
                    // The replacement may be empty while a header block is held: read on.
                    Passage::Replaced(bytes) => {
                        buf.set_filled(start);
                        me.replaced = bytes;
                    }
                },
            }
        }
    }
}

impl<S: IO> AsyncWrite for ClientIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = &mut *self;
        if me.gathered.len() + buf.len() > WRITE_GATHER_BYTES {
            ready!(me.poll_drain(cx))?;
            if buf.len() >= WRITE_GATHER_BYTES {
                return Pin::new(&mut me.io).poll_write(cx, buf);
            }
        }
        me.gathered.extend_from_slice(buf);
        me.after_write(cx)?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = &mut *self;
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if me.gathered.len() + total > WRITE_GATHER_BYTES {
            ready!(me.poll_drain(cx))?;
            if total >= WRITE_GATHER_BYTES {
                return Pin::new(&mut me.io).poll_write_vectored(cx, bufs);
            }
        }
        for buf in bufs {
            me.gathered.extend_from_slice(buf);
        }
        me.after_write(cx)?;
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.mode.0.load(Ordering::Relaxed) == CORKED {
            return Poll::Ready(Ok(()));
        }
        self.poll_drain_and_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain_and_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[async_trait]
impl<S: IO> Shutdown for ClientIo<S> {
    async fn shutdown(&mut self) {
        // The close must not wait for a client that takes nothing; what TCP takes now leaves.
        let drained = std::future::poll_fn(|cx| self.poll_drain_and_flush(cx));
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), drained).await;
        self.io.shutdown().await;
    }
}

impl<S: IO> Ssl for ClientIo<S> {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.io.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.io.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        // Also where ALPN did not say so: HTTP/2 by prior knowledge on plain text.
        match self.tap {
            ClientTap::Http1(_) => Some(ALPN::H1),
            ClientTap::Http2(_) => Some(ALPN::H2),
        }
    }
}

delegate_digests!(ClientIo<S> where S, io);

impl<S> std::fmt::Debug for ClientIo<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let http2 = matches!(self.tap, ClientTap::Http2(_));
        f.debug_struct("ClientIo").field("http2", &http2).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn stream() -> (ClientIo<DuplexStream>, DuplexStream, Arc<WriteMode>) {
        let (near, far) = duplex(1 << 20);
        let mode = Arc::new(WriteMode::default());
        let tap = Http1Tap::new(Arc::default(), true, 1024);
        (ClientIo::new(near, Bytes::new(), mode.clone(), ClientTap::Http1(tap)), far, mode)
    }

    async fn arrived(far: &mut DuplexStream) -> Vec<u8> {
        let mut buf = vec![0; 1 << 17];
        let read = tokio::time::timeout(std::time::Duration::from_millis(20), far.read(&mut buf));
        let n = read.await.map_or(0, Result::unwrap);
        buf.truncate(n);
        buf
    }

    #[tokio::test]
    async fn small_writes_leave_together_at_the_flush() {
        let (mut io, mut far, _) = stream();
        io.write_all(b"head ").await.unwrap();
        io.write_all(b"body").await.unwrap();
        assert!(arrived(&mut far).await.is_empty());
        io.flush().await.unwrap();
        assert_eq!(arrived(&mut far).await, b"head body");
    }

    #[tokio::test]
    async fn a_corked_flush_waits_for_the_next_one() {
        let (mut io, mut far, mode) = stream();
        mode.cork();
        io.write_all(b"head ").await.unwrap();
        io.flush().await.unwrap();
        assert!(arrived(&mut far).await.is_empty());
        mode.on_flush();
        io.write_all(b"body").await.unwrap();
        io.flush().await.unwrap();
        assert_eq!(arrived(&mut far).await, b"head body");
    }

    #[tokio::test]
    async fn eager_writes_leave_without_a_flush() {
        let (mut io, mut far, mode) = stream();
        mode.eager();
        io.write_all(b"now").await.unwrap();
        assert_eq!(arrived(&mut far).await, b"now");
    }

    #[tokio::test]
    async fn large_writes_keep_their_order_and_are_not_held() {
        let (mut io, mut far, _) = stream();
        io.write_all(b"small").await.unwrap();
        io.write_all(&[b'x'; WRITE_GATHER_BYTES]).await.unwrap();
        let bytes = arrived(&mut far).await;
        assert!(bytes.starts_with(b"smallxxx"));
        assert_eq!(bytes.len(), 5 + WRITE_GATHER_BYTES);
    }

    #[tokio::test]
    async fn closing_sends_what_was_gathered() {
        let (mut io, mut far, _) = stream();
        io.write_all(b"last words").await.unwrap();
        AsyncWriteExt::shutdown(&mut io).await.unwrap();
        assert_eq!(arrived(&mut far).await, b"last words");
    }
}
