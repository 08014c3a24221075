//! One attempt to serve a request: both directions at once, streamed, observed on the way.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use detectors::{Answer, Conversation, Format};
use h2::SendStream;
use http::{HeaderMap, Method, StatusCode, Version, header};
use pingora_core::protocols::http::ServerSession;
use pingora_error::{Error, ErrorType};
use pingora_http::{RequestHeader, ResponseHeader};

use super::body::BodyShare;
use super::head::{REQUEST_ID, strip_hop_by_hop_response};
use super::shape::{Kind, Shape};
use super::upstream_side::{Event, UpstreamSide};
use crate::capture::client_io::WriteMode;
use crate::config::Upstream;
use crate::connection::Connection;
use crate::enforce::marks::Fences;
use crate::enforce::{Denied, Enforcer, Leave};
use crate::limits::{CHOICES_FOLLOWED_MAX, Limits};
use crate::metrics::Metrics;
use crate::wire::{AnswerReader, Piece, stream_error};

/// Longest silence of an upstream on an upgraded connection.
const UPGRADED_IDLE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Fields of a head that say something of a body's very bytes.
const CHANGED_WITH_THE_BODY: [&str; 6] =
    ["content-length", "content-md5", "content-digest", "repr-digest", "digest", "etag"];

/// Where the request body comes from.
#[derive(Debug)]
pub enum RequestBody {
    /// There is none.
    None,
    /// It was read for inspection, and is held until no attempt can need it any more.
    Whole(Bytes, BodyShare),
    /// It is passed on as it comes in.
    Streamed,
}

/// What an attempt needs to know.
pub struct Plan<'a> {
    /// Request head for this upstream; taken when it is sent.
    pub head: Option<Box<RequestHeader>>,
    /// The request's body; given up once the answer has begun.
    pub body: &'a mut RequestBody,
    /// Upstream settings.
    pub upstream: &'a Upstream,
    /// Bounds.
    pub limits: &'a Limits,
    /// Provider format of the answer.
    pub format: Format,
    /// Says how the answer is treated, anew when its account's standing changes.
    pub enforcer: &'a Enforcer,
    /// What was asked.
    pub conversation: &'a Conversation,
    /// Name of the exchange, told to the client unless the upstream names it.
    pub request_id: &'a str,
    /// The client's connection.
    pub connection: &'a Connection,
    /// Whether this is a WebSocket handshake.
    pub websocket: bool,
    /// Counters.
    pub metrics: &'a Metrics,
    /// When the request arrived.
    pub started: Instant,
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Ended {
    /// The client has the whole answer.
    Complete(Answer),
    /// The client went away or would not take the answer.
    ClientGone(Answer, Box<Error>),
    /// The upstream failed after the answer had begun; the client was shown that it is cut off.
    CutOff(Answer, Box<Error>),
    /// The upstream failed and the client has seen nothing.
    Failed(Failure),
}

/// A failure of which the client has seen nothing.
#[derive(Debug)]
pub struct Failure {
    /// What happened.
    pub error: Box<Error>,
    /// Whether parts of a streamed request body are gone, so that it cannot be sent again.
    pub body_consumed: bool,
    /// Whether the client's request is to blame, not the upstream.
    pub client_fault: bool,
}

/// Runs the attempt.
pub async fn run(
    session: &mut ServerSession,
    upstream: &mut UpstreamSide,
    plan: Plan<'_>,
    leave: &mut Leave,
) -> Ended {
    let mut relay = Relay {
        fences: leave.follows_text().then(Fences::new),
        leave,
        shape: None,
        format: plan.format,
        content_type: None,
        length_told: false,
        upstream_ended: false,
        to_end: None,
        ended_early: false,
        write_mode: plan.connection.write_mode.clone(),
        reader: None,
        gathered: BytesMut::new(),
        h2_client: None,
        undelivered: Bytes::new(),
        answer_ended: false,
        trailers: None,
        received_total: 0,
        stalled_since: None,
        started: plan.started,
        request_sent: None,
        first_byte: None,
        status: 0,
        body_consumed: false,
        upgraded: false,
        client_ended: false,
        grpc_error: None,
    };
    let ended = relay.run(session, upstream, plan).await;
    relay.write_mode.on_flush();
    if relay.ended_early || !matches!(ended, Ended::Complete(_)) {
        upstream.cancel();
    }
    ended
}

struct Relay<'l> {
    /// The leave to serve it, which says how the answer is treated.
    leave: &'l mut Leave,
    /// What the answer's texts showed so far, where it may yet be marked.
    fences: Option<Fences>,
    /// Present while the answer is rewritten or paced.
    shape: Option<Box<Shape>>,
    /// Format of the answer as far as it is read: `Unknown` where it came encoded.
    format: Format,
    content_type: Option<String>,
    /// The client was told a length, so nothing can be added.
    length_told: bool,
    /// Nothing more comes from the upstream.
    upstream_ended: bool,
    /// Why the answer is to be ended at the next event.
    to_end: Option<Denied>,
    /// The answer was ended before the upstream had ended it.
    ended_early: bool,
    write_mode: Arc<WriteMode>,
    /// Present once the response head was passed on.
    reader: Option<AnswerReader>,
    gathered: BytesMut,
    /// HTTP/2: the answer's sink, apart so that the client can go on sending while it has no room.
    h2_client: Option<SendStream<Bytes>>,
    /// Answer bytes that the client has no room for yet (HTTP/2).
    undelivered: Bytes,
    /// Nothing comes behind `undelivered`.
    answer_ended: bool,
    /// Trailers that follow `undelivered`.
    trailers: Option<HeaderMap>,
    /// Answer bytes so far.
    received_total: u64,
    /// Since when one side has taken nothing of what waits for it, and how much it had taken then.
    stalled_since: Option<(Instant, (u64, usize, u64))>,
    started: Instant,
    request_sent: Option<Instant>,
    first_byte: Option<Duration>,
    status: u16,
    body_consumed: bool,
    upgraded: bool,
    /// Upgraded connections: the client sends nothing more.
    client_ended: bool,
    /// gRPC: the call's status, where it is not OK.
    grpc_error: Option<String>,
}

/// What to do after an event.
enum Step {
    Continue,
    Done,
}

/// Whose error it was.
enum Fault {
    Client(Box<Error>),
    Upstream(Box<Error>),
}

/// What the select of [`Relay::exchange`] woke up to.
enum Woken {
    Upstream(pingora_error::Result<Option<Event>>),
    Client(pingora_error::Result<Option<Bytes>>),
    /// HTTP/2: the client has room, or went away.
    Room(Result<usize, ()>),
    /// Something that was held back is due.
    Due,
    Stalled,
}

impl Relay<'_> {
    async fn run(
        &mut self,
        session: &mut ServerSession,
        upstream: &mut UpstreamSide,
        mut plan: Plan<'_>,
    ) -> Ended {
        let outcome = self.exchange(session, upstream, &mut plan).await;
        match outcome {
            Ok(()) => Ended::Complete(self.answer(plan.metrics, true)),
            Err(Fault::Client(error)) if self.reader.is_some() => {
                Ended::ClientGone(self.answer(plan.metrics, false), error)
            }
            Err(Fault::Upstream(error)) if self.reader.is_some() => {
                Ended::CutOff(self.answer(plan.metrics, false), error)
            }
            Err(fault) => {
                let (error, client_fault) = match fault {
                    Fault::Client(error) => (error, true),
                    Fault::Upstream(error) => (error, false),
                };
                Ended::Failed(Failure { error, body_consumed: self.body_consumed, client_fault })
            }
        }
    }

    async fn exchange(
        &mut self,
        session: &mut ServerSession,
        upstream: &mut UpstreamSide,
        plan: &mut Plan<'_>,
    ) -> Result<(), Fault> {
        upstream.set_read_timeout(plan.upstream.first_byte_timeout);
        self.send_request(upstream, plan).await?;
        let streamed = matches!(plan.body, RequestBody::Streamed);
        loop {
            if streamed && !self.upgraded && session.is_body_done() && upstream.takes_more() {
                // The body's end came without a piece to go with.
                upstream.send_body(Bytes::new(), true);
            }
            if self.reader.is_some() && upstream.holds_nothing() {
                // Nobody sends it again: answers are long, and so may be prompts.
                if let RequestBody::Whole(..) = plan.body {
                    *plan.body = RequestBody::None;
                }
            }
            if self.client_ended && upstream.unsent().0 == 0 {
                return Ok(());
            }
            let woken = self.wait(session, upstream, plan).await?;
            let step = match woken {
                Woken::Upstream(Ok(None)) => Step::Continue,
                Woken::Upstream(Ok(Some(event))) => {
                    self.answered(session, upstream, plan, event).await?
                }
                Woken::Upstream(Err(error)) => return Err(Fault::Upstream(error)),
                Woken::Client(read) => self.client_read(session, upstream, plan, read).await?,
                Woken::Room(Ok(room)) => self.send_undelivered(room)?,
                Woken::Room(Err(())) => return Err(client_gone()),
                Woken::Due => self.send_due(session, plan).await?,
                Woken::Stalled => Step::Continue,
            };
            if matches!(step, Step::Done) {
                return Ok(());
            }
        }
    }

    /// Waits for whatever comes first. Each side waits only for itself: a client without room does
    /// not keep its own upload from going on, nor an upstream without room its answer.
    async fn wait(
        &mut self,
        session: &mut ServerSession,
        upstream: &mut UpstreamSide,
        plan: &Plan<'_>,
    ) -> Result<Woken, Fault> {
        let client_sent_all = self.client_sent_all(session, plan);
        // Reading then only watches for the client going away.
        let watch_only = client_sent_all || (session.is_http2() && !upstream.takes_more());
        let wants_client = if self.upgraded {
            !self.client_ended && !upstream.is_backed_up()
        } else if watch_only {
            // Once an HTTP/2 answer has begun, its sink tells that.
            self.h2_client.is_none()
        } else {
            upstream.takes_more()
        };
        let blocked = !self.undelivered.is_empty();
        let stall = self.stall_deadline(upstream, plan)?;
        let watches_sink = self.h2_client.is_some();
        let shape = self.shape.as_deref();
        let due = shape.filter(|_| !blocked).and_then(Shape::next_due);
        let may_read = !blocked && !self.upstream_ended && shape.is_none_or(Shape::has_room);
        let Self { gathered, h2_client, .. } = self;
        Ok(tokio::select! {
            () = sleep_until(due), if due.is_some() => Woken::Due,
            event = upstream.drive(gathered, may_read) => Woken::Upstream(event),
            room = client_room(h2_client, blocked), if watches_sink => Woken::Room(room),
            read = session.read_body_or_idle(watch_only), if wants_client => {
                Woken::Client(read)
            }
            () = sleep_until(stall), if stall.is_some() => Woken::Stalled,
        })
    }

    fn client_sent_all(&self, session: &mut ServerSession, plan: &Plan<'_>) -> bool {
        let streamed = matches!(plan.body, RequestBody::Streamed) || self.upgraded;
        !streamed || session.is_body_done()
    }

    /// When to give up on a side that takes nothing; `None` while nothing waits to be taken.
    fn stall_deadline(
        &mut self,
        upstream: &UpstreamSide,
        plan: &Plan<'_>,
    ) -> Result<Option<Instant>, Fault> {
        let (unsent, moved_total) = upstream.unsent();
        if unsent == 0 && self.undelivered.is_empty() {
            self.stalled_since = None;
            return Ok(None);
        }
        // Each number changes when its side takes something, or when the upstream gives something:
        // one that answers is not dead, and while the client is in the way it is not read.
        let mark = (moved_total, self.undelivered.len(), self.received_total);
        let since = match self.stalled_since {
            Some((since, before)) if before == mark => since,
            _ => {
                let now = Instant::now();
                self.stalled_since = Some((now, mark));
                now
            }
        };
        // An upstream may be too busy to read for as long as it may be too busy to answer.
        let patience = if !self.undelivered.is_empty() || self.client_ended {
            plan.limits.write_timeout
        } else if self.upgraded {
            UPGRADED_IDLE_TIMEOUT
        } else if self.reader.is_some() {
            plan.upstream.idle_timeout
        } else {
            plan.upstream.first_byte_timeout
        };
        let deadline = since + patience;
        if deadline > Instant::now() {
            return Ok(Some(deadline));
        }
        let error = Error::explain(ErrorType::WriteTimedout, "nothing was taken in time");
        Err(if self.undelivered.is_empty() { Fault::Upstream(error) } else { Fault::Client(error) })
    }

    async fn send_request(
        &mut self,
        upstream: &mut UpstreamSide,
        plan: &mut Plan<'_>,
    ) -> Result<(), Fault> {
        if let Some(head) = plan.head.take() {
            upstream.send_head(head, plan.body).await.map_err(Fault::Upstream)?;
        }
        self.request_sent = Some(Instant::now());
        Ok(())
    }

    /// The client sent a piece of a streamed body or of an upgraded connection, or went away.
    async fn client_read(
        &mut self,
        session: &mut ServerSession,
        upstream: &mut UpstreamSide,
        plan: &Plan<'_>,
        read: pingora_error::Result<Option<Bytes>>,
    ) -> Result<Step, Fault> {
        if self.upgraded {
            return match read.map_err(Fault::Client)? {
                Some(piece) => {
                    count_in(plan, piece.len());
                    upstream.send_upgraded(piece).await.map_err(Fault::Upstream)?;
                    Ok(Step::Continue)
                }
                None => {
                    self.client_ended = true;
                    Ok(Step::Continue)
                }
            };
        }
        if !matches!(plan.body, RequestBody::Streamed) {
            // Nothing more was to come.
            return Err(read.err().map_or_else(client_gone, Fault::Client));
        }
        let piece = read.map_err(Fault::Client)?;
        self.body_consumed = true;
        if let Some(fault) = plan.connection.fault() {
            // Cut off before its end, the request is never complete at the upstream.
            plan.metrics.framing_refused.with_label_values(&[fault.name()]).inc();
            return Err(Fault::Client(Error::explain(ErrorType::InvalidHTTPHeader, fault.name())));
        }
        let end = piece.is_none() || session.is_body_done();
        let piece = piece.unwrap_or_default();
        count_in(plan, piece.len());
        upstream.send_body(piece, end);
        self.request_sent = Some(Instant::now());
        Ok(Step::Continue)
    }

    async fn answered(
        &mut self,
        session: &mut ServerSession,
        upstream: &mut UpstreamSide,
        plan: &Plan<'_>,
        event: Event,
    ) -> Result<Step, Fault> {
        match event {
            Event::Head(head, _) if head.status.is_informational() && head.status != 101 => {
                // A 100 was answered here; others (103) tell nothing that has to be passed on.
                Ok(Step::Continue)
            }
            Event::Head(head, _) if head.status == 101 && !plan.websocket => {
                Err(Fault::Upstream(Error::explain(
                    ErrorType::InvalidHTTPHeader,
                    "the upstream switched protocols unasked",
                )))
            }
            Event::Head(head, end) => {
                let end = end || upstream.gather(&mut self.gathered);
                upstream.set_read_timeout(plan.upstream.idle_timeout);
                // From here the upstream's silence is what ends an exchange.
                session.set_read_timeout(None);
                let with_body = !(end && self.gathered.is_empty());
                self.begin(session, plan, head, end).await?;
                if session.is_http2() && !with_body {
                    // The head carried END_STREAM.
                    return Ok(Step::Done);
                }
                self.upgraded = session.was_upgraded();
                if self.upgraded {
                    // Messages may be a long time apart, and either side ends it.
                    upstream.set_read_timeout(UPGRADED_IDLE_TIMEOUT);
                }
                self.deliver(session, plan, end).await
            }
            Event::Body(end) => self.deliver(session, plan, end).await,
            Event::Trailers(trailers) => {
                self.note_grpc_status(&trailers);
                // HTTP/1 has no way to send them that clients read.
                if session.is_http2() {
                    self.trailers = Some(trailers);
                }
                self.deliver(session, plan, true).await
            }
        }
    }

    /// Passes the response head on.
    async fn begin(
        &mut self,
        session: &mut ServerSession,
        plan: &Plan<'_>,
        mut head: Box<ResponseHeader>,
        end: bool,
    ) -> Result<(), Fault> {
        let request_version = session.req_header().version;
        let upgrade = head.status == StatusCode::SWITCHING_PROTOCOLS;
        if !upgrade {
            strip_hop_by_hop_response(&mut head);
        }
        if !head.headers.contains_key(REQUEST_ID) {
            let _ = head.insert_header(REQUEST_ID, plan.request_id);
        }
        let without_body = session.req_header().method == Method::HEAD
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.note_head(plan, &head, upgrade);
        if self.leave.is_stale() {
            // The tier may have changed while the model was thinking.
            let anew = plan.enforcer.look_again(self.leave);
            self.to_end = anew.and_then(|treatment| treatment.end);
        }
        let has_body = !(end && self.gathered.is_empty());
        if has_body && !without_body {
            self.shape = self.shaped(plan, false).await.map(Box::new);
        }
        let shaped = self.shape.is_some();
        if self.shape.as_ref().is_some_and(|shape| shape.changes_length()) {
            for told_of_the_bytes in CHANGED_WITH_THE_BODY {
                head.remove_header(told_of_the_bytes);
            }
        }
        if end
            && !shaped
            && !upgrade
            && !without_body
            && !head.headers.contains_key(header::CONTENT_LENGTH)
        {
            // All of it is at hand. Without a length HTTP/1 would end it with the connection.
            let _ = head.insert_header(header::CONTENT_LENGTH, self.gathered.len());
        }
        let known_length = head.headers.contains_key(header::CONTENT_LENGTH);
        head.set_version(Version::HTTP_11);
        self.length_told = known_length;
        let open_ended = !known_length && (!end || (shaped && has_body));
        if open_ended && !upgrade && request_version == Version::HTTP_11 {
            let _ = head.insert_header(header::TRANSFER_ENCODING, "chunked");
        }
        self.note_grpc_status(&head.headers);
        if let ServerSession::H2(h2) = session {
            // Pingora's version-neutral call sends a head without END_STREAM, but a gRPC error
            // without messages must be trailers-only.
            h2.write_response_header(head, !has_body).map_err(Fault::Client)?;
            self.h2_client = h2.take_response_body_writer();
            return Ok(());
        }
        // Pingora flushes a body of unknown length piece by piece, one of known length only at its
        // end. A head whose body is at hand leaves with it.
        let after = || {
            if known_length { self.write_mode.eager() } else { self.write_mode.on_flush() }
        };
        if self.gathered.is_empty() {
            after();
        } else {
            self.write_mode.cork();
        }
        let written = in_time(plan, session.write_response_header(head)).await;
        after();
        written
    }

    /// Notes what the answer is.
    fn note_head(&mut self, plan: &Plan<'_>, head: &ResponseHeader, upgrade: bool) {
        let encoded = head
            .headers
            .get(header::CONTENT_ENCODING)
            .is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
        if encoded && plan.format != Format::Unknown {
            plan.metrics.answers_unread.with_label_values(&["encoded"]).inc();
        }
        // What comes encoded although `identity` was asked for is passed on unread.
        self.format = if encoded || upgrade { Format::Unknown } else { plan.format };
        self.status = head.status.as_u16();
        let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        self.content_type = content_type.filter(|_| self.format == plan.format).map(str::to_owned);
        let reader = AnswerReader::new(self.format, self.status, self.content_type.as_deref());
        self.reader = Some(reader);
    }

    /// What shapes the answer, from its beginning or (`resumed`) from here on.
    async fn shaped(&mut self, plan: &Plan<'_>, resumed: bool) -> Option<Shape> {
        plan.enforcer.marks_registered(self.leave).await;
        let treatment = self.leave.treatment();
        if treatment.is_nothing() {
            return None;
        }
        let kind = Kind {
            format: self.format,
            status: self.status,
            content_type: self.content_type.as_deref(),
        };
        let fences = resumed.then(|| self.fences.take().unwrap_or_default());
        let changes = plan.enforcer.changes(self.leave, plan.conversation, fences);
        let paced = &plan.metrics.streams_paced;
        if resumed {
            Shape::resume(kind, changes, treatment.pace, paced)
        } else {
            Shape::new(kind, changes, treatment.pace, paced, Instant::now())
        }
    }

    /// A gRPC call fails inside an HTTP 200: in its trailers, or in the head of a response without
    /// messages.
    fn note_grpc_status(&mut self, fields: &HeaderMap) {
        let status = fields.get("grpc-status").and_then(|status| status.to_str().ok());
        if let Some(status) = status.filter(|status| *status != "0" && status.len() <= 3) {
            self.grpc_error = Some(format!("grpc-status {status}"));
        }
    }

    /// Passes gathered body bytes on.
    async fn deliver(
        &mut self,
        session: &mut ServerSession,
        plan: &Plan<'_>,
        end: bool,
    ) -> Result<Step, Fault> {
        let mut bytes = self.gathered.split().freeze();
        if !bytes.is_empty() && self.first_byte.is_none() {
            self.first_byte = self.request_sent.map(|sent| sent.elapsed());
        }
        self.received_total += bytes.len() as u64;
        self.upstream_ended |= end;
        if (self.leave.is_stale() || self.to_end.is_some())
            && let Some(step) = self.treat_anew(session, plan, &mut bytes).await?
        {
            return Ok(step);
        }
        let Some(shape) = &mut self.shape else {
            // Read after it is passed on: the client's first event does not wait for ours.
            let read = bytes.clone();
            let step = self.write(session, plan, bytes, end).await;
            self.count(&read);
            return step;
        };
        let now = Instant::now();
        shape.push(&bytes, now);
        if end {
            shape.finish(now);
        }
        self.count(&bytes);
        self.send_due(session, plan).await
    }

    fn count(&mut self, bytes: &[u8]) {
        let Some(reader) = self.reader.as_mut().filter(|_| !bytes.is_empty()) else { return };
        let Some(fences) = &mut self.fences else { return reader.count(bytes) };
        reader.feed(bytes, &mut |delta| {
            let room = fences.len() < CHOICES_FOLLOWED_MAX || fences.contains_key(&delta.choice);
            if let (Piece::Text(text), true) = (delta.piece, room) {
                fences.entry(delta.choice).or_default().push(text);
            }
        });
    }

    /// Passes on what a shaped answer has ready.
    async fn send_due(
        &mut self,
        session: &mut ServerSession,
        plan: &Plan<'_>,
    ) -> Result<Step, Fault> {
        if self.leave.is_stale()
            && let Some(step) = self.treat_anew(session, plan, &mut Bytes::new()).await?
        {
            return Ok(step);
        }
        let Some(shape) = &mut self.shape else { return Ok(Step::Continue) };
        if !self.undelivered.is_empty() {
            // The client has no room: what is due waits for it.
            return Ok(Step::Continue);
        }
        let due = shape.take_due(Instant::now());
        let end = self.upstream_ended && shape.is_empty();
        if due.is_empty() && !end {
            return Ok(Step::Continue);
        }
        self.write(session, plan, due, end).await
    }

    /// The account's standing has changed: the answer is treated by it from the next event on.
    /// `bytes` are the next piece; what of them lies before that event is passed on here. A step
    /// where the answer has ended with that.
    async fn treat_anew(
        &mut self,
        session: &mut ServerSession,
        plan: &Plan<'_>,
        bytes: &mut Bytes,
    ) -> Result<Option<Step>, Fault> {
        // A body that is no stream is over before anything could be done about it.
        let Some(reader) = self.reader.as_ref().filter(|reader| reader.is_event_stream()) else {
            return Ok(None);
        };
        // Where the next event begins: behind what is shaped, which leaves in whole events, or
        // where the answer so far, which went out as it came, has its next boundary.
        let boundary = if self.shape.is_some() { Some(0) } else { reader.next_boundary(bytes) };
        let Some(boundary) = boundary else { return Ok(None) };
        let anew = plan.enforcer.look_again(self.leave);
        if anew.is_none() && self.to_end.is_none() {
            return Ok(None);
        }
        let pace = self.leave.treatment().pace;
        self.to_end = anew.and_then(|treatment| treatment.end).or(self.to_end.take());
        if boundary > 0 {
            let head = bytes.split_to(boundary);
            let read = head.clone();
            self.write(session, plan, head, false).await?;
            self.count(&read);
        }
        if let Some(denied) = self.to_end.take() {
            return self.end_early(session, plan, &denied).await.map(Some);
        }
        match &mut self.shape {
            Some(shape) => shape.set_pace(pace),
            None if !self.length_told => {
                self.shape = self.shaped(plan, true).await.map(Box::new);
            }
            None => {}
        }
        Ok(None)
    }

    /// Ends a stream with its provider's own error event.
    async fn end_early(
        &mut self,
        session: &mut ServerSession,
        plan: &Plan<'_>,
        denied: &Denied,
    ) -> Result<Step, Fault> {
        self.ended_early = true;
        let event = stream_error(self.format, &denied.refusal(plan.request_id));
        let between = self.shape.as_mut().is_none_or(|shape| shape.break_off());
        if self.length_told || !between || !self.undelivered.is_empty() {
            // There is no room for an event: the client sees that it is cut off.
            let error = Error::explain(ErrorType::ConnectionClosed, "ended by policy");
            return Err(Fault::Upstream(error));
        }
        self.shape = None;
        self.upstream_ended = true;
        self.trailers = None;
        self.write(session, plan, Bytes::from(event), true).await
    }

    async fn write(
        &mut self,
        session: &mut ServerSession,
        plan: &Plan<'_>,
        bytes: Bytes,
        end: bool,
    ) -> Result<Step, Fault> {
        if session.is_http2() {
            if self.undelivered.is_empty() {
                self.undelivered = bytes;
            } else {
                // Only where an answer's treatment changed between the two.
                self.undelivered = [&self.undelivered[..], &bytes[..]].concat().into();
            }
            self.answer_ended = end;
            let Some(client) = &mut self.h2_client else { return Err(client_gone()) };
            client.reserve_capacity(self.undelivered.len());
            let room = client.capacity();
            return self.send_undelivered(room);
        }
        if end && !bytes.is_empty() {
            // The last bytes and the end of the body leave together.
            self.write_mode.cork();
            in_time(plan, session.write_response_body(bytes, false)).await?;
            self.write_mode.on_flush();
            in_time(plan, session.write_response_body(Bytes::new(), true)).await?;
        } else {
            in_time(plan, session.write_response_body(bytes, end)).await?;
        }
        Ok(if end { Step::Done } else { Step::Continue })
    }

    /// Sends what the client has room for (HTTP/2), and the end once all is sent.
    fn send_undelivered(&mut self, room: usize) -> Result<Step, Fault> {
        let Some(client) = &mut self.h2_client else { return Err(client_gone()) };
        let piece = self.undelivered.split_to(room.min(self.undelivered.len()));
        let all = self.undelivered.is_empty();
        let end = all && self.answer_ended && self.trailers.is_none();
        if !piece.is_empty() || end {
            client.send_data(piece, end).map_err(|_| client_gone())?;
        }
        if all && self.answer_ended {
            if let Some(trailers) = self.trailers.take() {
                client.send_trailers(trailers).map_err(|_| client_gone())?;
            }
            return Ok(Step::Done);
        }
        Ok(Step::Continue)
    }

    fn answer(&mut self, metrics: &Metrics, complete: bool) -> Answer {
        let (mut answer, unread) = match self.reader.take() {
            Some(reader) => reader.finish_with(complete, &mut |_| {}),
            None => (Answer { status: self.status, ..Answer::default() }, 0),
        };
        if unread > 0 {
            metrics.answers_unread.with_label_values(&["too_long"]).inc();
        }
        if self.ended_early {
            answer.complete = false;
            answer.error = Some("ended_by_policy".to_owned());
        }
        if let Some(error) = self.grpc_error.take() {
            answer.error.get_or_insert(error);
        }
        answer.first_byte_ms = self.first_byte.map(millis);
        answer.duration_ms = millis(self.started.elapsed());
        answer
    }
}

/// Whole milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn count_in(plan: &Plan<'_>, bytes: usize) {
    plan.metrics.body_bytes.with_label_values(&["in"]).inc_by(bytes as u64);
}

fn client_gone() -> Fault {
    Fault::Client(Error::explain(
        ErrorType::ConnectionClosed,
        "client closed before the answer was complete",
    ))
}

/// Bounds a write to the client: pingora's own timeout covers neither heads nor flushes.
async fn in_time(
    plan: &Plan<'_>,
    write: impl Future<Output = pingora_error::Result<()>>,
) -> Result<(), Fault> {
    match tokio::time::timeout(plan.limits.write_timeout, write).await {
        Ok(written) => written.map_err(Fault::Client),
        Err(_) => Err(Fault::Client(Error::explain(
            ErrorType::WriteTimedout,
            "the client takes no more of the answer",
        ))),
    }
}

/// Waits until the client has room for more of the answer, if some is waiting, or resets the stream
/// (HTTP/2).
async fn client_room(client: &mut Option<SendStream<Bytes>>, blocked: bool) -> Result<usize, ()> {
    let Some(client) = client else { return std::future::pending().await };
    poll_fn(|cx| {
        if blocked && let Poll::Ready(room) = client.poll_capacity(cx) {
            return Poll::Ready(room.and_then(Result::ok).ok_or(()));
        }
        client.poll_reset(cx).map(|_| Err(()))
    })
    .await
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
