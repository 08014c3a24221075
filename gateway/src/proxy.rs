//! The request path: received, attributed, inspected, served, observed.
//!
//! Every request takes the steps of [`ConnectionApp::serve`] in order. A step that cannot go on
//! returns a [`Refusal`], which the client gets in its provider's own shape; whatever happens,
//! one observation comes out at the end.

pub mod body;
pub mod framing;
pub mod head;
pub mod pace;
pub mod relay;
pub mod shape;
pub mod upstream_io;
pub mod upstream_side;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use detectors::{Answer, Conversation, Format, HttpCapture, Observation, TlsCapture};
use http::{HeaderValue, Method, header};
use pingora_core::apps::{
    HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream,
};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::ShutdownWatch;
use pingora_error::{ErrorType, RetryType};
use pingora_http::ResponseHeader;
use prometheus::IntGauge;
use tracing::{debug, warn};

use self::body::{BodyError, BodyShare};
use self::framing::FramingFault;
use self::head::{BodyFraming, Forwarding};
use self::relay::{Ended, Failure, Plan, RequestBody};
use self::upstream_side::UpstreamSide;
use crate::account::{InvalidCredential, Sender};
use crate::capture::http2::{H2Abuse, MARKER_NAME};
use crate::connection::{Connection, Requests};
use crate::enforce::Leave;
use crate::gateway::Gateway;
use crate::limits::{BODY_BYTES_INLINE_MAX, Limits};
use crate::policy::unix_ms;
use crate::upstream::UpstreamPool;
use crate::wire::{self, Refusal, RefusalKind};

/// HTTP on one client connection.
pub struct ConnectionApp {
    gateway: Arc<Gateway>,
    connection: Arc<Connection>,
    options: HttpServerOptions,
}

/// A request whose head was read and is sound.
struct Received {
    /// What is seen of it, filled as far as it gets; its answer comes last.
    observation: Observation,
    started: Instant,
    request_id: String,
    /// Whether the client waits for a 100 before it sends its body.
    expects_continue: bool,
    /// Whether what is left of the body can no longer be read.
    body_lost: bool,
    /// Whether this opens a WebSocket.
    websocket: bool,
}

/// What a request has been given on its way, and gives back at its end.
#[derive(Default)]
struct Progress {
    /// Leave to be served.
    leave: Option<Leave>,
    /// The memory that the conversation's texts take.
    text_share: Option<BodyShare>,
}

/// How a request was dealt with.
enum Served {
    /// Answered; the connection can be used again if HTTP allows.
    Answered(Answer),
    /// The client's view is broken off; the connection must not be used again.
    Broken(Answer),
}

impl ConnectionApp {
    /// HTTP on `connection`.
    #[must_use]
    pub fn new(gateway: Arc<Gateway>, connection: Arc<Connection>) -> Self {
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(gateway.config.limits.idle_timeout);
        Self { gateway, connection, options }
    }

    /// The request path.
    async fn serve(
        &self,
        session: &mut ServerSession,
        received: &mut Received,
        progress: &mut Progress,
    ) -> Result<Served, Refusal> {
        let pool = self.route(session, received)?;
        self.attribute(session, received)?;
        let body = self.inspect(session, received, progress).await?;
        let leave = progress.leave.insert(self.admit(received)?);
        self.forward(session, received, pool, body, leave).await
    }

    fn route(
        &self,
        session: &ServerSession,
        received: &mut Received,
    ) -> Result<&UpstreamPool, Refusal> {
        let head = session.req_header();
        if head.method == Method::CONNECT {
            return Err(received.refusal(RefusalKind::BadRequest, "CONNECT is not served here"));
        }
        let path = head::origin_form(head);
        let (name, upstream) =
            self.gateway.routes.find(head::host_of(head), path).ok_or_else(|| {
                received.refusal(RefusalKind::NotFound, "no route for this host and path")
            })?;
        received.observation.route = name;
        Ok(&self.gateway.pools[upstream])
    }

    fn attribute(&self, session: &ServerSession, received: &mut Received) -> Result<(), Refusal> {
        let head = session.req_header();
        let sender = Sender {
            headers: &head.headers,
            path_and_query: head::origin_form(head),
            peer: self.connection.client_ip(),
            certificate_sha256: self.connection.client_certificate.as_deref(),
            format: received.format(),
        };
        match self.gateway.namer.name(&sender) {
            Ok(named) => {
                if named.ambiguous {
                    self.gateway.metrics.credentials_ambiguous.inc();
                }
                received.observation.account = named.account;
                received.observation.organisation = named.organisation;
                Ok(())
            }
            Err(InvalidCredential { reason }) => {
                self.gateway.refused("invalid_credential");
                Err(received.refusal(
                    RefusalKind::Unauthenticated,
                    format!("the credential is not valid: {reason}"),
                ))
            }
        }
    }

    /// Reads the body where its format is known, and the conversation in it.
    async fn inspect(
        &self,
        session: &mut ServerSession,
        received: &mut Received,
        progress: &mut Progress,
    ) -> Result<RequestBody, Refusal> {
        if session.is_body_empty() || received.websocket {
            return Ok(RequestBody::None);
        }
        if received.expects_continue {
            let asked = session.write_continue_response().await;
            asked.map_err(|_| received.refusal(RefusalKind::BadRequest, "client closed"))?;
            received.expects_continue = false;
        }
        if matches!(received.format(), Format::Unknown | Format::Grpc) {
            return Ok(RequestBody::Streamed);
        }
        let limits = &self.gateway.config.limits;
        let head = session.req_header();
        let declared = head.headers.get(header::CONTENT_LENGTH);
        let declared = declared.and_then(|length| length.to_str().ok()?.parse().ok());
        let encoding = match head.headers.get_all(header::CONTENT_ENCODING).iter().count() {
            0 => None,
            1 => {
                head.headers.get(header::CONTENT_ENCODING).map(|coding| coding.as_bytes().to_vec())
            }
            _ => return Err(self.body_refusal(received, &BodyError::UnsupportedEncoding)),
        };
        let mut share = self.gateway.bodies.share();
        let whole = body::read_whole(session, &self.connection, declared, limits, &mut share)
            .await
            .map_err(|error| {
                received.body_lost = !matches!(error, BodyError::TooLarge | BodyError::Crowded);
                self.body_refusal(received, &error)
            })?;
        self.gateway.metrics.body_bytes.with_label_values(&["in"]).inc_by(whole.len() as u64);
        let path = head::origin_form(session.req_header());
        let text_share = progress.text_share.insert(self.gateway.bodies.share());
        let mut read = || {
            let max = limits.decoded_body_bytes_max;
            let plain = body::decoded(&whole, encoding.as_deref(), max, text_share)?;
            // Texts are never longer than the JSON that they are read from.
            text_share.grow(plain.len())?;
            let read = wire::read_request(received.format(), path, &plain);
            text_share.shrink_to(read.as_ref().map_or(0, Conversation::memory_bytes));
            Ok(read)
        };
        let read = if whole.len() > BODY_BYTES_INLINE_MAX || encoding.is_some() {
            tokio::task::block_in_place(read)
        } else {
            read()
        };
        match read.map_err(|error| self.body_refusal(received, &error))? {
            Ok(conversation) => received.observation.conversation = conversation,
            Err(error) => {
                // Not ours to judge: the upstream says what is wrong with it.
                debug!(id = received.id(), %error, "request body not understood");
                let unreadable = &self.gateway.metrics.bodies_unreadable;
                unreadable.with_label_values(&[received.format().name()]).inc();
            }
        }
        Ok(RequestBody::Whole(whole, share))
    }

    /// Judges the request, and lets it through or not.
    fn admit(&self, received: &mut Received) -> Result<Leave, Refusal> {
        self.gateway.enforcer.admit(&mut received.observation).map_err(|denied| {
            self.gateway.refused(denied.reason);
            denied.refusal(&received.request_id)
        })
    }

    /// Sends the request to one member after another until one serves it.
    async fn forward(
        &self,
        session: &mut ServerSession,
        received: &Received,
        pool: &UpstreamPool,
        mut body: RequestBody,
        leave: &mut Leave,
    ) -> Result<Served, Refusal> {
        let upstream = pool.config();
        let needs_http2 = received.format() == Format::Grpc;
        if received.websocket {
            // The tap does not follow what comes after the handshake, taken up or not.
            session.set_keepalive(None);
        }
        let mut tried = Vec::new();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let last = attempts > upstream.retries;
            let Some(attempt) = pool.select(&tried, needs_http2) else {
                self.gateway.upstream_attempt(&upstream.name, "no_member");
                return Err(received.refusal(
                    RefusalKind::UpstreamUnavailable { retry_after: None },
                    "the model is not reachable at the moment",
                ));
            };
            let (connected, reused) = match pool.connect(&attempt).await {
                Ok(connected) => connected,
                Err(error) => {
                    warn!(
                        upstream = %upstream.name,
                        member = ?attempt.address(),
                        error = error.etype().as_str(),
                        "connecting failed"
                    );
                    self.gateway.upstream_attempt(&upstream.name, "connect_failed");
                    tried.extend(attempt.address());
                    if last {
                        return Err(upstream_refusal(received, error.etype()));
                    }
                    self.gateway.metrics.retries.with_label_values(&[&upstream.name]).inc();
                    continue;
                }
            };
            let mut side = UpstreamSide::new(connected);
            let plan = self.plan(session, received, pool, &attempt, &side, &mut body)?;
            match relay::run(session, &mut side, plan, leave).await {
                Ended::Complete(answer) => {
                    self.gateway.upstream_attempt(&upstream.name, "ok");
                    if side.is_complete() {
                        pool.release(side.into_session(), &attempt).await;
                    }
                    return Ok(Served::Answered(answer));
                }
                Ended::ClientGone(answer, error) => {
                    debug!(id = received.id(), error = error.etype().as_str(), "client gone");
                    self.gateway.upstream_attempt(&upstream.name, "client_gone");
                    return Ok(Served::Broken(answer));
                }
                Ended::CutOff(answer, error) => {
                    let error = error.etype().as_str();
                    warn!(id = received.id(), upstream = %upstream.name, error, "answer cut off");
                    self.gateway.upstream_attempt(&upstream.name, "cut_off");
                    return Ok(Served::Broken(answer));
                }
                Ended::Failed(failure) => {
                    if failure.client_fault {
                        self.gateway.upstream_attempt(&upstream.name, "client_gone");
                        let error = failure.error.etype().as_str();
                        debug!(id = received.id(), error, "client gone");
                        return Ok(Served::Broken(Answer {
                            duration_ms: relay::millis(received.started.elapsed()),
                            ..Answer::default()
                        }));
                    }
                    let outcome = failure_outcome(failure.error.etype());
                    // Pingora's error texts quote what was read, so only their kind is logged.
                    let error = failure.error.etype().as_str();
                    warn!(upstream = %upstream.name, error, "attempt failed");
                    self.gateway.upstream_attempt(&upstream.name, outcome);
                    if last || !may_retry(session, &failure, reused) {
                        return Err(upstream_refusal(received, failure.error.etype()));
                    }
                    // A stream that was refused says nothing against the member.
                    let unprocessed = matches!(failure.error.retry, RetryType::Decided(true));
                    if matches!(
                        failure.error.etype(),
                        ErrorType::H2Downgrade | ErrorType::InvalidH2
                    ) {
                        pool.prefer_http1(&attempt);
                    } else if !reused && !unprocessed {
                        tried.extend(attempt.address());
                    }
                    self.gateway.metrics.retries.with_label_values(&[&upstream.name]).inc();
                }
            }
        }
    }

    fn plan<'a>(
        &'a self,
        session: &ServerSession,
        received: &'a Received,
        pool: &'a UpstreamPool,
        attempt: &crate::upstream::Attempt,
        side: &UpstreamSide,
        body: &'a mut RequestBody,
    ) -> Result<Plan<'a>, Refusal> {
        let upstream = pool.config();
        let how = Forwarding {
            connection: &self.connection,
            request_id: &received.request_id,
            host: (!upstream.preserve_host).then(|| attempt.host_header()),
            upstream_tls: upstream.tls,
            body: match body {
                RequestBody::None => BodyFraming::None,
                RequestBody::Whole(body, _) => BodyFraming::Whole(body.len()),
                RequestBody::Streamed => BodyFraming::Streamed,
            },
            answer_is_read: !matches!(received.format(), Format::Unknown | Format::Grpc),
            websocket: received.websocket,
            untrusted_header: self
                .gateway
                .namer
                .header_to_remove(self.connection.client_ip(), &session.req_header().headers),
        };
        let head = session.req_header();
        let head =
            if side.is_http2() { head::for_http2(head, &how) } else { head::for_http1(head, &how) };
        let head = head.map_err(|error| {
            debug!(id = received.id(), error = error.etype().as_str(), "head cannot be forwarded");
            received.refusal(RefusalKind::BadRequest, "the request's target is not valid")
        })?;
        Ok(Plan {
            head: Some(Box::new(head)),
            body,
            upstream,
            limits: &self.gateway.config.limits,
            format: received.format(),
            enforcer: &self.gateway.enforcer,
            conversation: &received.observation.conversation,
            request_id: &received.request_id,
            connection: &self.connection,
            websocket: received.websocket,
            metrics: &self.gateway.metrics,
            started: received.started,
        })
    }

    /// Reads and captures the request head. `Err(None)` when there is nobody to answer.
    async fn receive(
        &self,
        session: &mut ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Result<Received, Option<Refusal>> {
        let limits = &self.gateway.config.limits;
        if !session.is_http2() {
            self.read_head(session, shutdown).await?;
        }
        let started = Instant::now();
        let at_ms = unix_ms();
        let (http, websocket) = self.capture(session)?;
        let head = session.req_header();
        if http.headers.len() > limits.header_fields_max {
            return Err(Some(self.framing_refusal(FramingFault::HeadTooLarge)));
        }
        let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let format = wire::recognise(head.method.as_str(), head::origin_form(head), content_type);
        let expects_continue = head
            .headers
            .get(header::EXPECT)
            .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        let id = self.gateway.exchange_id();
        let ip = self.connection.client_ip();
        Ok(Received {
            request_id: head::request_id_of(head).map_or_else(|| id.clone(), str::to_owned),
            observation: Observation {
                id,
                at_ms,
                account: None,
                organisation: None,
                ip,
                network: self.gateway.config.networks.lookup(ip),
                route: "".into(),
                tls: self.tls_of(session),
                http,
                format,
                foreign_marks: 0,
                indicators: Vec::new(),
                conversation: Conversation::default(),
                answer: Answer::default(),
            },
            started,
            expects_continue,
            body_lost: false,
            websocket,
        })
    }

    /// Reads an HTTP/1 head: its first byte within the idle timeout, the rest within the header's.
    async fn read_head(
        &self,
        session: &mut ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Result<(), Option<Refusal>> {
        let limits = &self.gateway.config.limits;
        session.set_pipelining_enabled(true);
        let Requests::Http1(http1) = &self.connection.requests else { return Ok(()) };
        let mut shutdown = shutdown.clone();
        let read = {
            // One future through both waits: dropped half-way, it would lose what it has read.
            let mut read = std::pin::pin!(session.read_request());
            let begun = tokio::select! {
                read = &mut read => Err(read),
                () = http1.head_begun() => Ok(()),
                () = tokio::time::sleep(limits.idle_timeout) => return Err(None),
                () = crate::listener::ended(&mut shutdown) => return Err(None),
            };
            match begun {
                Err(read) => Ok(read),
                Ok(()) => tokio::time::timeout(limits.header_timeout, read).await,
            }
        };
        match read {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(None),
            Ok(Err(error)) if *error.etype() == ErrorType::InvalidHTTPHeader => {
                debug!(peer = %self.connection.peer, "malformed request head");
                // The tap has read the same bytes and says what is wrong with them.
                let fault = self.connection.fault().unwrap_or(FramingFault::MalformedHead);
                Err(Some(self.framing_refusal(fault)))
            }
            Ok(Err(error)) => {
                debug!(peer = %self.connection.peer, error = error.etype().as_str(), "no request");
                Err(None)
            }
            Err(_) => {
                self.gateway.refused("header_timeout");
                Err(None)
            }
        }
    }

    /// Takes the capture of the request that pingora has read.
    /// The flag tells whether it opens a WebSocket.
    fn capture(&self, session: &mut ServerSession) -> Result<(HttpCapture, bool), Option<Refusal>> {
        match &self.connection.requests {
            Requests::Http1(http1) => {
                let request = http1.claim().map_err(|fault| Some(self.framing_refusal(fault)))?;
                let http = head::capture(session.req_header(), &request.headers, None);
                Ok((http, request.websocket))
            }
            Requests::Http2(http2) => {
                let head = session.req_header_mut();
                let markers = head.headers.get_all(MARKER_NAME).iter().map(HeaderValue::as_bytes);
                let claimed = http2.claim(markers);
                head.remove_header(MARKER_NAME);
                let Some(request) = claimed else {
                    // Some header block blinded the tap. Serving on would let a client choose not
                    // to be seen.
                    self.gateway.metrics.capture_missed.inc();
                    return Err(Some(self.framing_refusal(FramingFault::Http2Fields)));
                };
                match request.abuse {
                    None => {}
                    Some(H2Abuse::TooManyFields | H2Abuse::HeaderListTooLarge) => {
                        return Err(Some(self.framing_refusal(FramingFault::HeadTooLarge)));
                    }
                    Some(_) => return Err(Some(self.framing_refusal(FramingFault::Http2Fields))),
                }
                let seen = Some(request.capture());
                Ok((head::capture(session.req_header(), &request.headers, seen), false))
            }
        }
    }

    /// The connection's own TLS fingerprint, or the one that a listed load balancer passes on.
    fn tls_of(&self, session: &ServerSession) -> Option<Arc<TlsCapture>> {
        if self.connection.tls.is_some() {
            return self.connection.tls.clone();
        }
        let headers = self.connection.listener.fingerprint_headers.as_ref()?;
        if !self.connection.client_is_in(&headers.from) {
            return None;
        }
        let head = session.req_header();
        let text = |name: &Option<String>| head::header_text(head, name.as_deref()?);
        let (ja3, ja4) = (text(&headers.ja3), text(&headers.ja4));
        if ja3.is_none() && ja4.is_none() {
            return None;
        }
        let ja3 = ja3.unwrap_or_default();
        // Some balancers pass on the string, some its MD5.
        let (ja3, ja3_md5) = if ja3.contains(',') {
            (ja3.to_string(), crate::capture::client_hello::md5_hex(&ja3))
        } else {
            (String::new(), ja3.to_string())
        };
        let ja4 = ja4.unwrap_or_default().to_string();
        Some(Arc::new(TlsCapture { ja3, ja3_md5, ja4, ..TlsCapture::default() }))
    }

    fn framing_refusal(&self, fault: FramingFault) -> Refusal {
        self.gateway.metrics.framing_refused.with_label_values(&[fault.name()]).inc();
        if fault == FramingFault::HeadTooLarge {
            let limits = &self.gateway.config.limits;
            return Refusal::new(
                RefusalKind::HeaderTooLarge,
                format!(
                    "a request head may have {} bytes and {} fields",
                    limits.header_bytes_max, limits.header_fields_max
                ),
            );
        }
        Refusal::new(
            RefusalKind::BadRequest,
            format!("the request's framing is ambiguous or malformed ({})", fault.name()),
        )
    }

    fn body_refusal(&self, received: &Received, error: &BodyError) -> Refusal {
        let limits = &self.gateway.config.limits;
        let (label, kind, message) = match error {
            BodyError::TooLarge => (
                "body_too_large",
                RefusalKind::BodyTooLarge,
                format!("request body larger than {} bytes", limits.body_bytes_max),
            ),
            BodyError::UnsupportedEncoding => (
                "content_encoding",
                RefusalKind::UnsupportedEncoding,
                "content-encoding must be one of gzip, deflate, br, zstd or identity".to_owned(),
            ),
            BodyError::Undecodable => (
                "content_encoding",
                RefusalKind::BadRequest,
                "the body is not what its content-encoding says".to_owned(),
            ),
            BodyError::Framing(fault) => return self.framing_refusal(*fault),
            BodyError::Crowded => {
                let retry_after = Some(Duration::from_secs(1));
                (
                    "bodies_crowded",
                    RefusalKind::UpstreamUnavailable { retry_after },
                    "too many requests at once".to_owned(),
                )
            }
            BodyError::TimedOut => (
                "body_timeout",
                RefusalKind::RequestTimeout,
                "the body did not arrive in time".to_owned(),
            ),
            BodyError::Gone(reason) => {
                debug!(id = received.id(), reason, "request body not read");
                ("body_incomplete", RefusalKind::BadRequest, "the body is incomplete".to_owned())
            }
        };
        self.gateway.refused(label);
        received.refusal(kind, message)
    }

    /// Answers a refusal in the provider's own shape; 0 when the client does not take it.
    ///
    /// What is left of the request's body is to be drained after this: a client that reads only
    /// once it has written all would otherwise meet a closed connection in the place of the answer.
    async fn refuse(&self, session: &mut ServerSession, refusal: &Refusal, format: Format) -> u16 {
        let rendered = refusal.render(format);
        let status = rendered.status;
        let patience = self.gateway.config.limits.write_timeout;
        match tokio::time::timeout(patience, write_refusal(session, rendered)).await {
            Ok(Ok(())) => status,
            Err(_) => 0,
            Ok(Err(error)) => {
                let error = error.etype().as_str();
                debug!(peer = %self.connection.peer, error, "refusal not delivered");
                0
            }
        }
    }

    fn observe(&self, received: Received, progress: Progress, answer: Answer) {
        let observation = Observation { answer, ..received.observation };
        self.gateway.enforcer.ended(progress.leave, &observation);
        self.gateway.observed(observation);
    }
}

#[async_trait]
impl HttpServerApp for ConnectionApp {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let limits = &self.gateway.config.limits;
        let mut received = match self.receive(&mut session, shutdown).await {
            Ok(received) => received,
            Err(None) => return None,
            Err(Some(mut refusal)) => {
                // What cannot be read safely ends the connection. Its body is not read either: where
                // it ends is just what is in doubt.
                session.set_keepalive(None);
                refusal.request_id = self.gateway.exchange_id();
                self.refuse(&mut session, &refusal, Format::Unknown).await;
                let _ = tokio::time::timeout(limits.write_timeout, session.finish()).await;
                return None;
            }
        };
        let _in_flight = InFlight::begin(&self.gateway.metrics.exchanges_in_flight);
        session.set_write_timeout(Some(limits.write_timeout));
        session.set_read_timeout(Some(limits.body_idle_timeout));
        session.set_total_drain_timeout(Some(limits.drain_timeout));
        if *shutdown.borrow() {
            session.set_keepalive(None);
        } else if session.get_keepalive().is_some() {
            // Where the client's version and Connection header allow it.
            session.set_keepalive(Some(limits.idle_timeout.as_secs().max(1)));
        }
        let mut progress = Progress::default();
        let served = self.serve(&mut session, &mut received, &mut progress).await;
        let reusable = matches!(served, Ok(Served::Answered(_)) | Err(_));
        // A client that waits for a 100 sends no body unless it is asked to.
        let may_drain = reusable && !received.expects_continue && !received.body_lost;
        let answer = match served {
            Ok(Served::Answered(answer) | Served::Broken(answer)) => answer,
            Err(mut refusal) => {
                refusal.request_id.clone_from(&received.request_id);
                if may_drain && declares_little(&session, limits) {
                    // The connection can then serve the client's next request.
                    body::drain(&mut session, limits).await;
                }
                let status = self.refuse(&mut session, &refusal, received.format()).await;
                Answer {
                    status,
                    complete: true,
                    duration_ms: relay::millis(received.started.elapsed()),
                    ..Answer::default()
                }
            }
        };
        self.observe(received, progress, answer);
        if !reusable {
            // Dropped without its proper end, so that the client sees that it is cut off.
            return None;
        }
        if may_drain && !session.was_upgraded() {
            body::drain(&mut session, limits).await;
        }
        if *shutdown.borrow() {
            // It began while the exchange ran: no further request is waited for.
            session.set_keepalive(None);
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let finished = tokio::time::timeout(limits.write_timeout, session.finish()).await;
        let stream = finished.ok()?.ok().flatten()?;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }

    fn h2_options(&self) -> Option<H2Options> {
        let limits = &self.gateway.config.limits;
        let mut options = default_h2_options();
        options.max_concurrent_streams(limits.h2_streams_max);
        // The tap's marker is one more field than the client sent.
        let marker = 256;
        let bytes = u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX);
        options.max_header_list_size(bytes.saturating_add(marker));
        options.initial_window_size(1 << 20);
        options.initial_connection_window_size(4 << 20);
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

impl Received {
    fn id(&self) -> &str {
        &self.observation.id
    }

    fn format(&self) -> Format {
        self.observation.format
    }

    fn refusal(&self, kind: RefusalKind, message: impl Into<String>) -> Refusal {
        let mut refusal = Refusal::new(kind, message);
        refusal.request_id.clone_from(&self.request_id);
        refusal
    }
}

async fn write_refusal(
    session: &mut ServerSession,
    rendered: wire::Rendered,
) -> pingora_error::Result<()> {
    let mut head = ResponseHeader::build(rendered.status, Some(rendered.headers.len() + 1))?;
    for (name, value) in rendered.headers {
        head.insert_header(name, value)?;
    }
    head.insert_header(header::CONTENT_LENGTH, rendered.body.len())?;
    let body = Bytes::from(rendered.body);
    if let ServerSession::H2(h2) = session {
        h2.write_response_header(Box::new(head), body.is_empty())?;
        return if body.is_empty() { Ok(()) } else { h2.write_body(body, true).await };
    }
    session.write_response_header(Box::new(head)).await?;
    session.write_response_body(body, true).await
}

/// Whether what a refused client has yet to send is quickly read.
fn declares_little(session: &ServerSession, limits: &Limits) -> bool {
    let length = session.get_header(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    length.is_some_and(|length| length <= limits.drain_first_bytes_max)
}

/// Held while an exchange runs.
struct InFlight<'a>(&'a IntGauge);

impl<'a> InFlight<'a> {
    fn begin(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Whether a failed attempt may be repeated: always when the upstream says that it processed
/// nothing (a refused HTTP/2 stream, a graceful GOAWAY), and after a connection that was used
/// before turned out dead only if repeating does no harm (RFC 9110, section 9.2.2).
fn may_retry(session: &ServerSession, failure: &Failure, reused: bool) -> bool {
    if failure.body_consumed {
        return false;
    }
    let head = session.req_header();
    let repeatable = head.method.is_idempotent() || head.headers.contains_key("idempotency-key");
    match failure.error.retry {
        RetryType::Decided(retry) => retry,
        RetryType::ReusedOnly => reused && repeatable,
    }
}

fn failure_outcome(error: &ErrorType) -> &'static str {
    match error {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => "timeout",
        ErrorType::InvalidHTTPHeader | ErrorType::InvalidH2 => "invalid_response",
        _ => "reset",
    }
}

fn upstream_refusal(received: &Received, error: &ErrorType) -> Refusal {
    match error {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout | ErrorType::ConnectTimedout => {
            received.refusal(RefusalKind::UpstreamTimeout, "the model did not answer in time")
        }
        _ => received.refusal(
            RefusalKind::UpstreamUnavailable { retry_after: None },
            "the model is not reachable at the moment",
        ),
    }
}
