//! One attempt to serve a request: both directions at once, streamed, observed on the way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use detectors::{Answer, Format};
use http::{Method, StatusCode, Version, header};
use pingora_core::protocols::http::ServerSession;
use pingora_error::{Error, ErrorType};
use pingora_http::{RequestHeader, ResponseHeader};

use super::head::{REQUEST_ID, strip_hop_by_hop_response};
use super::upstream_side::{Event, UpstreamSide};
use crate::capture::client_io::WriteMode;
use crate::config::Upstream;
use crate::connection::Connection;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::wire::AnswerReader;

/// Where the request body comes from.
#[derive(Clone, Debug)]
pub enum RequestBody {
    /// There is none.
    None,
    /// It was read for inspection.
    Whole(Bytes),
    /// It is passed on as it comes in.
    Streamed,
}

/// What an attempt needs to know.
pub struct Plan<'a> {
    /// Request head for this upstream.
    pub head: RequestHeader,
    /// The request's body.
    pub body: RequestBody,
    /// Upstream settings.
    pub upstream: &'a Upstream,
    /// Bounds.
    pub limits: &'a Limits,
    /// Provider format of the answer.
    pub format: Format,
    /// Name of the exchange, told to the client unless the upstream names it.
    pub request_id: &'a str,
    /// The client's connection.
    pub connection: &'a Connection,
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
) -> Ended {
    let mut relay = Relay {
        write_mode: plan.connection.write_mode.clone(),
        reader: None,
        gathered: BytesMut::new(),
        started: plan.started,
        request_sent: None,
        first_byte: None,
        status: 0,
        body_consumed: false,
        upgraded: false,
        grpc_error: None,
    };
    let ended = relay.run(session, upstream, plan).await;
    relay.write_mode.on_flush();
    if !matches!(ended, Ended::Complete(_)) {
        upstream.cancel();
    }
    ended
}

struct Relay {
    write_mode: Arc<WriteMode>,
    /// Present once the response head was passed on.
    reader: Option<AnswerReader>,
    gathered: BytesMut,
    started: Instant,
    request_sent: Option<Instant>,
    first_byte: Option<Duration>,
    status: u16,
    body_consumed: bool,
    upgraded: bool,
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

impl Relay {
    async fn run(
        &mut self,
        session: &mut ServerSession,
        upstream: &mut UpstreamSide,
        plan: Plan<'_>,
    ) -> Ended {
        let outcome = self.exchange(session, upstream, &plan).await;
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
        plan: &Plan<'_>,
    ) -> Result<(), Fault> {
        upstream.set_write_timeout(plan.limits.write_timeout);
        upstream.set_read_timeout(plan.upstream.first_byte_timeout);
        self.send_request(upstream, plan).await?;
        loop {
            let streaming = matches!(plan.body, RequestBody::Streamed) || self.upgraded;
            let client_done = !streaming || session.is_body_done();
            // Once all is sent, reading only watches for the client going away.
            let watch_client = client_done || self.upgraded || upstream.takes_more();
            let step = if upstream.has_outgoing() {
                // HTTP/2 with a full window: move the body on, and answers may come early.
                tokio::select! {
                    event = upstream.push_or_next(&mut self.gathered) => match event.transpose() {
                        Some(event) => self.answered(session, upstream, plan, event).await?,
                        None => Step::Continue,
                    },
                    gone = session.read_body_or_idle(true), if client_done => {
                        return Err(client_gone(gone));
                    }
                }
            } else {
                tokio::select! {
                    event = upstream.next(&mut self.gathered) => {
                        self.answered(session, upstream, plan, event).await?
                    }
                    piece = session.read_body_or_idle(client_done), if watch_client => {
                        if client_done {
                            return Err(client_gone(piece));
                        }
                        self.uploaded(session, upstream, plan, piece).await?
                    }
                }
            };
            if matches!(step, Step::Done) {
                return Ok(());
            }
        }
    }

    async fn send_request(
        &mut self,
        upstream: &mut UpstreamSide,
        plan: &Plan<'_>,
    ) -> Result<(), Fault> {
        let end = matches!(plan.body, RequestBody::None);
        upstream.send_head(plan.head.clone(), end).await.map_err(Fault::Upstream)?;
        if let RequestBody::Whole(body) = &plan.body
            && let Err(error) = upstream.send_body(body.clone(), true).await
        {
            // An upstream may answer and close before it has read all. Its answer is then there to
            // be read; where it is not, reading fails and tells why.
            tracing::debug!(%error, "upstream did not take the whole request");
        }
        self.request_sent = Some(Instant::now());
        Ok(())
    }

    /// The client sent a piece of a streamed body, or of an upgraded connection.
    async fn uploaded(
        &mut self,
        session: &mut ServerSession,
        upstream: &mut UpstreamSide,
        plan: &Plan<'_>,
        piece: pingora_error::Result<Option<Bytes>>,
    ) -> Result<Step, Fault> {
        let piece = piece.map_err(Fault::Client)?;
        if self.upgraded {
            return match piece {
                Some(piece) => {
                    count_in(plan, piece.len());
                    upstream.send_upgraded(piece).await.map_err(Fault::Upstream)?;
                    Ok(Step::Continue)
                }
                None => Ok(Step::Done),
            };
        }
        self.body_consumed = true;
        if let Some(fault) = plan.connection.fault() {
            // Cut off before its end, the request is never complete at the upstream.
            plan.metrics.framing_refused.with_label_values(&[fault.name()]).inc();
            return Err(Fault::Client(Error::explain(ErrorType::InvalidHTTPHeader, fault.name())));
        }
        let end = piece.is_none() || session.is_body_done();
        let piece = piece.unwrap_or_default();
        count_in(plan, piece.len());
        if let Err(error) = upstream.send_body(piece, end).await {
            tracing::debug!(%error, "upstream did not take the whole request");
        }
        self.request_sent = Some(Instant::now());
        Ok(Step::Continue)
    }

    async fn answered(
        &mut self,
        session: &mut ServerSession,
        upstream: &mut UpstreamSide,
        plan: &Plan<'_>,
        event: pingora_error::Result<Event>,
    ) -> Result<Step, Fault> {
        match event.map_err(Fault::Upstream)? {
            Event::Head(head, _) if head.status.is_informational() && head.status != 101 => {
                // A 100 was answered here; others (103) tell nothing that has to be passed on.
                Ok(Step::Continue)
            }
            Event::Head(head, end) => {
                let end = end || upstream.gather(&mut self.gathered);
                upstream.set_read_timeout(plan.upstream.idle_timeout);
                self.begin(session, plan, head, end).await?;
                if end && self.gathered.is_empty() && session.is_http2() {
                    // The head carried END_STREAM.
                    return Ok(Step::Done);
                }
                self.upgraded = session.was_upgraded();
                if self.upgraded {
                    // Messages may be a long time apart, and either side ends it.
                    upstream.set_read_timeout(Duration::from_secs(24 * 3600));
                    session.set_read_timeout(None);
                }
                self.deliver(session, end).await
            }
            Event::Body(end) => self.deliver(session, end).await,
            Event::Trailers(trailers) => {
                self.note_grpc_status(&trailers);
                self.deliver(session, false).await?;
                session.write_response_trailers(trailers).await.map_err(Fault::Client)?;
                if !session.is_http2() {
                    self.deliver(session, true).await?;
                }
                Ok(Step::Done)
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
        if end && !upgrade && !without_body && !head.headers.contains_key(header::CONTENT_LENGTH) {
            // All of it is at hand. Without a length HTTP/1 would end it with the connection.
            let _ = head.insert_header(header::CONTENT_LENGTH, self.gathered.len());
        }
        let known_length = head.headers.contains_key(header::CONTENT_LENGTH);
        head.set_version(Version::HTTP_11);
        if !end && !known_length && !upgrade && request_version == Version::HTTP_11 {
            let _ = head.insert_header(header::TRANSFER_ENCODING, "chunked");
        }
        let has_body = !(end && self.gathered.is_empty());
        let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let encoded = head
            .headers
            .get(header::CONTENT_ENCODING)
            .is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
        if encoded && plan.format != Format::Unknown {
            plan.metrics.answers_unread.with_label_values(&["encoded"]).inc();
        }
        // What comes encoded although `identity` was asked for is passed on unread.
        let format = if encoded || upgrade { Format::Unknown } else { plan.format };
        self.status = head.status.as_u16();
        self.note_grpc_status(&head.headers);
        let content_type = content_type.filter(|_| format == plan.format);
        self.reader = Some(AnswerReader::new(format, self.status, content_type));
        let written = match session {
            ServerSession::H2(h2) => {
                // Pingora sends a head without END_STREAM for the version-neutral call, but a gRPC
                // error without messages must be trailers-only.
                h2.write_response_header(head, !has_body)
            }
            _ => {
                // Pingora flushes a body of unknown length piece by piece, one of known length only
                // at its end. A head whose body is at hand leaves with it.
                let after = || {
                    if known_length { self.write_mode.eager() } else { self.write_mode.on_flush() }
                };
                if self.gathered.is_empty() {
                    after();
                } else {
                    self.write_mode.cork();
                }
                let written = session.write_response_header(head).await;
                after();
                written
            }
        };
        written.map_err(Fault::Client)
    }

    /// A gRPC call fails inside an HTTP 200: in its trailers, or in the head of a response without
    /// messages.
    fn note_grpc_status(&mut self, fields: &http::HeaderMap) {
        let status = fields.get("grpc-status").and_then(|status| status.to_str().ok());
        if let Some(status) = status.filter(|status| *status != "0" && status.len() <= 3) {
            self.grpc_error = Some(format!("grpc-status {status}"));
        }
    }

    /// Passes gathered body bytes on.
    async fn deliver(&mut self, session: &mut ServerSession, end: bool) -> Result<Step, Fault> {
        let bytes = self.gathered.split().freeze();
        if !bytes.is_empty() {
            if self.first_byte.is_none() {
                self.first_byte = self.request_sent.map(|sent| sent.elapsed());
            }
            if let Some(reader) = &mut self.reader {
                reader.count(&bytes);
            }
        }
        if end && !session.is_http2() && !bytes.is_empty() {
            // The last bytes and the end of the body leave together.
            self.write_mode.cork();
            session.write_response_body(bytes, false).await.map_err(Fault::Client)?;
            self.write_mode.on_flush();
            session.write_response_body(Bytes::new(), true).await.map_err(Fault::Client)?;
        } else {
            session.write_response_body(bytes, end).await.map_err(Fault::Client)?;
        }
        Ok(if end { Step::Done } else { Step::Continue })
    }

    fn answer(&mut self, metrics: &Metrics, complete: bool) -> Answer {
        let (mut answer, unread) = match self.reader.take() {
            Some(reader) => reader.finish_with(complete, &mut |_| {}),
            None => (Answer { status: self.status, ..Answer::default() }, 0),
        };
        if unread > 0 {
            metrics.answers_unread.with_label_values(&["too_long"]).inc();
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

fn client_gone(read: pingora_error::Result<Option<Bytes>>) -> Fault {
    Fault::Client(read.err().unwrap_or_else(|| {
        Error::explain(ErrorType::ConnectionClosed, "client closed before the answer was complete")
    }))
}
