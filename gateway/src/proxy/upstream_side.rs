//! The upstream's half of an exchange, HTTP/1.1 and HTTP/2 alike.
//!
//! Reading gathers whatever is ready without waiting: an answer whose events lie in one socket
//! buffer is passed on in one piece, an event that is alone is passed on alone.

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use h2::SendStream;
use http::HeaderMap;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::protocols::http::v1::client::HttpSession as Http1Session;
use pingora_error::{Error, ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};

use crate::limits::WRITE_GATHER_BYTES;

/// An upstream connection (HTTP/1.1) or stream (HTTP/2) that serves one exchange.
pub struct UpstreamSide {
    session: HttpSession,
    /// HTTP/2: the request body's sink, apart so that both directions can run at once.
    h2_body: Option<SendStream<Bytes>>,
    /// Request bytes that the upstream has no room for yet (HTTP/2).
    outgoing: Bytes,
    /// The request's end follows `outgoing`.
    outgoing_ends: bool,
    request_sent: bool,
    head_read: bool,
    ended: bool,
    /// An error met while gathering, told after the bytes that came before it.
    failure: Option<Box<Error>>,
}

/// What the upstream sent.
#[derive(Debug)]
pub enum Event {
    /// The response head; the flag tells whether nothing follows.
    Head(Box<ResponseHeader>, bool),
    /// Body bytes were gathered; the flag tells whether the body is complete.
    Body(bool),
    /// HTTP/2 trailers; the response is complete.
    Trailers(HeaderMap),
}

impl UpstreamSide {
    /// Takes over a connected session.
    #[must_use]
    pub fn new(session: HttpSession) -> Self {
        Self {
            session,
            h2_body: None,
            outgoing: Bytes::new(),
            outgoing_ends: false,
            request_sent: false,
            head_read: false,
            ended: false,
            failure: None,
        }
    }

    /// Whether this is HTTP/2.
    #[must_use]
    pub fn is_http2(&self) -> bool {
        matches!(self.session, HttpSession::H2(_))
    }

    /// Sets the longest silence that is borne while reading.
    pub fn set_read_timeout(&mut self, timeout: Duration) {
        match &mut self.session {
            HttpSession::H1(h1) => h1.read_timeout = Some(timeout),
            HttpSession::H2(h2) => h2.read_timeout = Some(timeout),
            HttpSession::Custom(()) => {}
        }
    }

    /// Sets the longest time that writing a piece of the request may take.
    pub fn set_write_timeout(&mut self, timeout: Duration) {
        match &mut self.session {
            HttpSession::H1(h1) => h1.write_timeout = Some(timeout),
            HttpSession::H2(h2) => h2.write_timeout = Some(timeout),
            HttpSession::Custom(()) => {}
        }
    }

    /// Sends the request head; `end` says that no body follows.
    ///
    /// # Errors
    /// The write's error.
    pub async fn send_head(&mut self, head: RequestHeader, end: bool) -> Result<()> {
        match &mut self.session {
            HttpSession::H1(h1) => {
                h1.write_request_header(Box::new(head)).await?;
                if end {
                    h1.finish_body().await?;
                }
            }
            HttpSession::H2(h2) => {
                h2.write_request_header(Box::new(head), end)?;
                self.h2_body = h2.take_request_body_writer();
            }
            HttpSession::Custom(()) => {}
        }
        self.request_sent = end;
        Ok(())
    }

    /// Whether a further piece of the request can be taken.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        !self.request_sent && self.outgoing.is_empty() && !self.outgoing_ends
    }

    /// Sends a piece of the request body. HTTP/2 pieces that find no room wait inside, and
    /// [`Self::push_or_next`] moves them on.
    ///
    /// # Errors
    /// The write's error.
    pub async fn send_body(&mut self, piece: Bytes, end: bool) -> Result<()> {
        if let HttpSession::H1(h1) = &mut self.session {
            if !piece.is_empty() {
                h1.write_body(&piece).await?;
            }
            if end {
                h1.finish_body().await?;
                self.request_sent = true;
            }
            return Ok(());
        }
        let Some(body) = &mut self.h2_body else { return Ok(()) };
        if piece.is_empty() {
            if end {
                body.send_data(piece, true).or_err(ErrorType::WriteError, "ending request")?;
                self.request_sent = true;
            }
            return Ok(());
        }
        body.reserve_capacity(piece.len());
        self.outgoing = piece;
        self.outgoing_ends = end;
        Ok(())
    }

    /// Sends raw bytes of an upgraded connection.
    ///
    /// # Errors
    /// The write's error.
    pub async fn send_upgraded(&mut self, piece: Bytes) -> Result<()> {
        if let HttpSession::H1(h1) = &mut self.session {
            h1.maybe_upgrade_body_writer();
            h1.write_body(&piece).await?;
        }
        Ok(())
    }

    /// Whether [`Self::push_or_next`] has bytes to move.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Moves waiting request bytes as the upstream makes room, or reads the next event, whichever
    /// comes first; `None` when bytes were moved. Not to be called again once dropped half-way.
    ///
    /// # Errors
    /// The write's or the read's error.
    pub async fn push_or_next(&mut self, gathered: &mut BytesMut) -> Result<Option<Event>> {
        let Some(mut body) = self.h2_body.take() else {
            return self.next(gathered).await.map(Some);
        };
        let outcome = {
            let mut next = std::pin::pin!(self.next(gathered));
            poll_fn(|cx| match body.poll_capacity(cx) {
                Poll::Ready(room) => Poll::Ready(Err(room)),
                Poll::Pending => next.as_mut().poll(cx).map(Ok),
            })
            .await
        };
        let moved = match outcome {
            Ok(event) => event.map(Some),
            Err(room) => self.send_outgoing(&mut body, room).map(|()| None),
        };
        self.h2_body = Some(body);
        moved
    }

    fn send_outgoing(
        &mut self,
        body: &mut SendStream<Bytes>,
        room: Option<std::result::Result<usize, h2::Error>>,
    ) -> Result<()> {
        let room = room
            .unwrap_or_else(|| Err(h2::Reason::STREAM_CLOSED.into()))
            .or_err(ErrorType::WriteError, "waiting for room in the request stream");
        let room = match room {
            Ok(room) => room,
            Err(error) => {
                // The upstream takes no more: what it answers is still read.
                self.outgoing = Bytes::new();
                self.outgoing_ends = true;
                tracing::debug!(%error, "upstream did not take the whole request");
                return Ok(());
            }
        };
        let piece = self.outgoing.split_to(room.min(self.outgoing.len()));
        let end = self.outgoing.is_empty() && self.outgoing_ends;
        body.send_data(piece, end).or_err(ErrorType::WriteError, "writing request body")?;
        self.request_sent |= end;
        Ok(())
    }

    /// Reads the next event; body bytes go to `gathered`. Cancel-safe.
    ///
    /// # Errors
    /// The read's error: the upstream closed early, reset the stream, or fell silent.
    pub async fn next(&mut self, gathered: &mut BytesMut) -> Result<Event> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if !self.head_read {
            return self.read_head().await;
        }
        match &mut self.session {
            HttpSession::H1(h1) => {
                match h1.read_body_ref().await? {
                    Some(piece) => gathered.extend_from_slice(piece),
                    None => self.ended = true,
                }
                self.gather(gathered);
                Ok(Event::Body(self.ended))
            }
            HttpSession::H2(h2) => match h2.read_response_body().await? {
                Some(piece) => {
                    gathered.extend_from_slice(&piece);
                    self.gather(gathered);
                    Ok(Event::Body(self.ended))
                }
                None => {
                    self.ended = true;
                    Ok(match h2.read_trailers().await? {
                        Some(trailers) => Event::Trailers(trailers),
                        None => Event::Body(true),
                    })
                }
            },
            HttpSession::Custom(()) => Error::e_explain(ErrorType::InternalError, "custom session"),
        }
    }

    async fn read_head(&mut self) -> Result<Event> {
        let (head, end) = match &mut self.session {
            HttpSession::H1(h1) => {
                h1.read_response().await?;
                let head = h1.resp_header().cloned();
                let head = head.ok_or_else(no_head)?;
                let informational = head.status.is_informational() && head.status != 101;
                self.head_read = !informational;
                let end = !informational && h1.is_body_done();
                (head, end)
            }
            HttpSession::H2(h2) => {
                h2.read_response_header().await?;
                let head = h2.response_header().cloned();
                let head = head.ok_or_else(no_head)?;
                self.head_read = true;
                (head, h2.check_response_end_or_error()?)
            }
            HttpSession::Custom(()) => {
                return Error::e_explain(ErrorType::InternalError, "custom session");
            }
        };
        self.ended = end;
        Ok(Event::Head(Box::new(head), end))
    }

    /// Takes what else is ready, without waiting. Returns whether the body is complete.
    pub fn gather(&mut self, gathered: &mut BytesMut) -> bool {
        // HTTP/2 ends with trailers or without: only `next` can tell.
        while !self.ended && self.failure.is_none() && gathered.len() < WRITE_GATHER_BYTES {
            let outcome = match &mut self.session {
                HttpSession::H1(h1) => gather_http1(h1, gathered),
                HttpSession::H2(h2) => {
                    if h2.response_finished() {
                        break;
                    }
                    match tokio::task::unconstrained(h2.read_response_body()).now_or_never() {
                        None => Gathered::NotReady,
                        Some(Ok(Some(piece))) => {
                            gathered.extend_from_slice(&piece);
                            Gathered::More
                        }
                        // The end is met again by `next`, which then reads the trailers.
                        Some(Ok(None)) => Gathered::NotReady,
                        Some(Err(error)) => Gathered::Failed(error),
                    }
                }
                HttpSession::Custom(()) => Gathered::NotReady,
            };
            match outcome {
                Gathered::More => {}
                Gathered::NotReady => break,
                Gathered::End => self.ended = true,
                Gathered::Failed(error) => self.failure = Some(error),
            }
        }
        self.ended
    }

    /// Whether the connection now carries another protocol.
    #[must_use]
    pub fn was_upgraded(&self) -> bool {
        matches!(&self.session, HttpSession::H1(h1) if h1.was_upgraded())
    }

    /// Whether both directions are complete, so that an HTTP/1.1 connection can serve again.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.ended && self.request_sent && self.failure.is_none() && !self.was_upgraded()
    }

    /// Tells an HTTP/2 upstream that nobody waits for the answer any more.
    pub fn cancel(&mut self) {
        if let Some(body) = &mut self.h2_body
            && !self.ended
        {
            body.send_reset(h2::Reason::CANCEL);
        }
    }

    /// The session, to be given back to the pool.
    #[must_use]
    pub fn into_session(self) -> HttpSession {
        self.session
    }
}

fn no_head() -> Box<Error> {
    Error::explain(ErrorType::InvalidHTTPHeader, "no response header")
}

enum Gathered {
    More,
    NotReady,
    End,
    Failed(Box<Error>),
}

fn gather_http1(h1: &mut Http1Session, gathered: &mut BytesMut) -> Gathered {
    if h1.is_body_done() {
        return Gathered::End;
    }
    // Pingora's body reader commits its state before it waits, so a read can be dropped.
    match tokio::task::unconstrained(h1.read_body_ref()).now_or_never() {
        None => Gathered::NotReady,
        Some(Ok(Some(piece))) => {
            gathered.extend_from_slice(piece);
            Gathered::More
        }
        Some(Ok(None)) => Gathered::End,
        Some(Err(error)) => Gathered::Failed(error),
    }
}
