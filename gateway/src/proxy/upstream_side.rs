//! The upstream's half of an exchange, HTTP/1.1 and HTTP/2 alike.
//!
//! Reading gathers whatever is ready without waiting: an answer whose events lie in one socket
//! buffer is passed on in one piece, an event that is alone is passed on alone.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use h2::SendStream;
use http::HeaderMap;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::protocols::http::v1::client::HttpSession as Http1Session;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};

use super::relay::RequestBody;
use super::upstream_io::{Outlet, UpstreamIo};
use crate::limits::{UPSTREAM_UNSENT_BYTES_MAX, WRITE_GATHER_BYTES};

/// An upstream connection (HTTP/1.1) or stream (HTTP/2) that serves one exchange.
pub struct UpstreamSide {
    session: HttpSession,
    /// HTTP/1.1: the connection's write buffer.
    outlet: Option<Arc<Outlet>>,
    /// HTTP/2: the request body's sink, apart so that both directions can run at once.
    h2_body: Option<SendStream<Bytes>>,
    /// Request bytes that the upstream has no room for yet.
    outgoing: Bytes,
    /// Nothing comes behind `outgoing`: the request ends there, or was given up.
    outgoing_ends: bool,
    h2_moved_total: u64,
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
        let (session, outlet) = match session {
            HttpSession::H1(h1) => {
                let (h1, outlet) = with_outlet(h1);
                (HttpSession::H1(h1), outlet)
            }
            session => (session, None),
        };
        Self {
            session,
            outlet,
            h2_body: None,
            outgoing: Bytes::new(),
            outgoing_ends: false,
            h2_moved_total: 0,
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

    /// Sends the request head, with the whole body if that is at hand.
    ///
    /// # Errors
    /// The write's error.
    pub async fn send_head(&mut self, head: Box<RequestHeader>, body: &RequestBody) -> Result<()> {
        let end = matches!(body, RequestBody::None);
        let whole = match body {
            RequestBody::Whole(body, _) => Some(body.clone()),
            RequestBody::None | RequestBody::Streamed => None,
        };
        match &mut self.session {
            HttpSession::H1(h1) => {
                if let Some(outlet) = &self.outlet {
                    outlet.cork(whole.is_some());
                }
                h1.write_request_header(head).await?;
                if let Some(outlet) = &self.outlet {
                    outlet.cork(false);
                }
                if end {
                    h1.finish_body().await?;
                }
            }
            HttpSession::H2(h2) => {
                h2.write_request_header(head, end)?;
                self.h2_body = h2.take_request_body_writer();
            }
            HttpSession::Custom(()) => {}
        }
        self.request_sent = end;
        if let Some(body) = whole {
            self.send_body(body, true);
            if self.outlet.is_some() {
                self.feed_http1().await?;
            }
        }
        Ok(())
    }

    /// Whether a further piece of the request can be taken.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        !self.request_sent && !self.outgoing_ends && !self.is_backed_up()
    }

    /// Takes a piece of the request body, to be sent by [`Self::drive`].
    pub fn send_body(&mut self, piece: Bytes, end: bool) {
        if let Some(body) = &mut self.h2_body {
            body.reserve_capacity(piece.len());
        }
        self.outgoing = piece;
        self.outgoing_ends = end;
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

    /// Whether bytes wait for room, so that no more may be taken.
    #[must_use]
    pub fn is_backed_up(&self) -> bool {
        !self.outgoing.is_empty() || self.outlet.as_ref().is_some_and(|outlet| !outlet.has_room())
    }

    /// Whether no piece of the request waits here to be handed on.
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Request bytes that have not left, and how many ever did: it stalls where the second number
    /// does not grow while the first is not zero.
    #[must_use]
    pub fn unsent(&self) -> (usize, u64) {
        match &self.outlet {
            Some(outlet) => (self.outgoing.len() + outlet.unsent(), outlet.moved_total()),
            None => (self.outgoing.len(), self.h2_moved_total),
        }
    }

    /// Moves the exchange on: sends what finds room and, if `may_read`, reads the next event (body
    /// bytes go to `gathered`). `None` when only something was sent.
    ///
    /// Cancel-safe: dropped while it waits, it has lost nothing.
    ///
    /// # Errors
    /// The read's error. A write that fails is no error: the upstream may answer and close before
    /// it has read all, and if it does not answer, reading tells.
    pub async fn drive(
        &mut self,
        gathered: &mut BytesMut,
        may_read: bool,
    ) -> Result<Option<Event>> {
        if self.outlet.is_some() {
            self.drive_http1(gathered, may_read).await
        } else {
            self.drive_http2(gathered, may_read).await
        }
    }

    async fn drive_http1(
        &mut self,
        gathered: &mut BytesMut,
        may_read: bool,
    ) -> Result<Option<Event>> {
        let Some(outlet) = self.outlet.clone() else { return Ok(None) };
        if outlet.failed() {
            self.give_up_request();
        }
        let waiting = !self.outgoing.is_empty() || (self.outgoing_ends && !self.request_sent);
        if waiting && outlet.has_room() && !outlet.failed() {
            self.feed_http1().await?;
            return Ok(None);
        }
        if !may_read {
            if outlet.unsent() == 0 {
                return std::future::pending().await;
            }
            outlet.push().await;
            return Ok(None);
        }
        if outlet.unsent() == 0 {
            return self.next(gathered).await.map(Some);
        }
        tokio::select! {
            event = self.next(gathered) => event.map(Some),
            () = outlet.moved() => Ok(None),
        }
    }

    /// Hands a piece to the connection's buffer, which never waits.
    async fn feed_http1(&mut self) -> Result<()> {
        let HttpSession::H1(h1) = &mut self.session else { return Ok(()) };
        let piece = self.outgoing.split_to(self.outgoing.len().min(UPSTREAM_UNSENT_BYTES_MAX));
        if !piece.is_empty() {
            h1.write_body(&piece).await?;
        }
        if self.outgoing.is_empty() && self.outgoing_ends {
            h1.finish_body().await?;
            self.request_sent = true;
        }
        Ok(())
    }

    async fn drive_http2(
        &mut self,
        gathered: &mut BytesMut,
        may_read: bool,
    ) -> Result<Option<Event>> {
        if self.outgoing_ends && self.outgoing.is_empty() && !self.request_sent {
            self.end_http2();
        }
        if self.outgoing.is_empty() {
            return if may_read {
                self.next(gathered).await.map(Some)
            } else {
                std::future::pending().await
            };
        }
        // The sink is taken for the time of one poll only, so that nothing is lost on a drop.
        let outcome = poll_fn(|cx| {
            if let Some(body) = &mut self.h2_body
                && let Poll::Ready(room) = body.poll_capacity(cx)
            {
                return Poll::Ready(Err(room));
            }
            if !may_read {
                return Poll::Pending;
            }
            let mut next = std::pin::pin!(self.next(gathered));
            next.as_mut().poll(cx).map(Ok)
        })
        .await;
        match outcome {
            Ok(event) => event.map(Some),
            Err(room) => {
                self.send_outgoing_http2(room.and_then(std::result::Result::ok));
                Ok(None)
            }
        }
    }

    fn send_outgoing_http2(&mut self, room: Option<usize>) {
        let Some(body) = &mut self.h2_body else { return };
        let sent = match room {
            Some(room) => {
                let piece = self.outgoing.split_to(room.min(self.outgoing.len()));
                self.h2_moved_total += piece.len() as u64;
                let end = self.outgoing.is_empty() && self.outgoing_ends;
                let sent = body.send_data(piece, end).is_ok();
                self.request_sent |= end && sent;
                sent
            }
            None => false,
        };
        if !sent {
            self.give_up_request();
        }
    }

    fn end_http2(&mut self) {
        let body = self.h2_body.as_mut();
        if body.is_some_and(|body| body.send_data(Bytes::new(), true).is_ok()) {
            self.request_sent = true;
        } else {
            self.give_up_request();
        }
    }

    /// The upstream takes no more of the request. Its answer may still come; the connection is
    /// not used again.
    fn give_up_request(&mut self) {
        self.outgoing = Bytes::new();
        self.outgoing_ends = true;
        self.h2_body = None;
    }

    /// Reads the next event; body bytes go to `gathered`. Cancel-safe.
    ///
    /// # Errors
    /// The read's error: the upstream closed early, reset the stream, or fell silent.
    async fn next(&mut self, gathered: &mut BytesMut) -> Result<Event> {
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
        let sent = self.outlet.as_ref().is_none_or(|out| out.unsent() == 0 && !out.failed());
        self.ended && self.request_sent && sent && self.failure.is_none() && !self.was_upgraded()
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

/// Puts [`UpstreamIo`] under a session, unless it comes from the pool with one.
fn with_outlet(h1: Http1Session) -> (Http1Session, Option<Arc<Outlet>>) {
    if let Some(io) = (**h1.stream()).as_any().downcast_ref::<UpstreamIo>() {
        let outlet = io.outlet().clone();
        return (h1, Some(outlet));
    }
    let io = UpstreamIo::new(h1.into_inner());
    let outlet = io.outlet().clone();
    (Http1Session::new(Box::new(io)), Some(outlet))
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
