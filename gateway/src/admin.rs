//! The operators' endpoint: health, metrics, exchanges, accounts and what is done about them.
//!
//! `GET /healthz` and `GET /readyz` are for load balancers and say nothing worth hiding. All else
//! needs `Authorization: Bearer` with a token of the configuration whose role suffices
//! ([`access`]); where the address is not loopback the configuration refuses weak tokens. Every
//! operation is described in the OpenAPI document, at `GET /openapi.json`, which is also where the
//! role that it needs is read from. Every change needs a reason, and is durable and in the audit
//! before it is acknowledged.
//!
//! The server is bounded like the proxy itself: so many connections, so long for a request head, so
//! many body bytes, so long in all. Someone who can reach the port can therefore not hold the
//! process's memory or descriptors. What streams for long has its time from each piece that moves.

mod access;
mod accounts;
mod answer;
mod audit;
mod body;
mod clusters;
mod connection;
mod document;
mod iocs;
mod marks;
mod models;
mod policy;
mod profiles;
mod review;
mod schema;
mod sensors;

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;

use async_trait::async_trait;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use bytes::Bytes;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pingora_core::apps::ServerApp;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep_until, timeout};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::access::{Caller, Gate, authorise};
use self::answer::{Answer, Refused};
pub(crate) use self::body::whole;
use self::body::{Params, Sent};
use self::connection::Connection;
use self::document::Document;
use crate::audit::Said;
use crate::capture::tee::Tee;
use crate::config::AdminToken;
use crate::enforce::Enforcer;
use crate::exchanges::{Exchange, ExchangeLog};
use crate::limits::{
    ADMIN_CONNECTIONS_MAX, ADMIN_HEADER_BYTES_MAX, ADMIN_HEADER_TIMEOUT, ADMIN_LIST_MAX,
    ADMIN_STREAMS_MAX,
};
use crate::listener::peer_address;
use crate::metrics::Metrics;
use crate::sensor::Sensors;

/// Things in an answer where the request does not say.
const LIST_DEFAULT: usize = 50;

/// What the endpoint shows.
#[derive(Clone)]
pub struct AdminState {
    metrics: Arc<Metrics>,
    exchanges: Arc<ExchangeLog>,
    enforcer: Arc<Enforcer>,
    readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
    gate: Arc<Gate>,
    sensors: Arc<Sensors>,
    document: Arc<str>,
    /// Key of the hashes of payment instruments.
    payment_key: [u8; 32],
    streams: Arc<Semaphore>,
    verifying: Arc<Semaphore>,
}

impl AdminState {
    /// `readiness` is asked at each `GET /readyz` and must not block.
    pub fn new(
        metrics: Arc<Metrics>,
        exchanges: Arc<ExchangeLog>,
        enforcer: Arc<Enforcer>,
        tokens: &[AdminToken],
        payment_key: [u8; 32],
        sensors: Arc<Sensors>,
        readiness: impl Fn() -> Readiness + Send + Sync + 'static,
    ) -> Self {
        let Document { json, needed } = Document::of(&operations().into_openapi());
        Self {
            gate: Arc::new(Gate::new(tokens, needed, metrics.clone())),
            metrics,
            exchanges,
            enforcer,
            readiness: Arc::new(readiness),
            sensors,
            document: json.into(),
            payment_key,
            streams: Arc::new(Semaphore::new(ADMIN_STREAMS_MAX)),
            verifying: Arc::new(Semaphore::new(1)),
        }
    }

    /// A place for an answer or a body that streams for long.
    fn stream(&self) -> Result<OwnedSemaphorePermit, Refused> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            self.metrics.admin_refused.with_label_values(&["busy"]).inc();
            Refused::busy("as many streams are open as may be, come again later")
        })
    }
}

/// Whether new requests should be sent here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Yes.
    Ready,
    /// No: still starting.
    Starting,
    /// No: running exchanges end, then the process does.
    Draining,
    /// No: every member of these upstreams is unhealthy.
    NoHealthyUpstream(Vec<String>),
}

impl Readiness {
    /// Why not, in words; `None` when ready.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Ready => None,
            Self::Starting => Some("starting".to_owned()),
            Self::Draining => Some("draining".to_owned()),
            Self::NoHealthyUpstream(names) => {
                Some(format!("no healthy member in upstream {}", names.join(", ")))
            }
        }
    }
}

/// Why something is to be done.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Why {
    /// Why; the audit tells it.
    #[schema(
        min_length = 1,
        max_length = 500,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    reason: String,
    /// Who, beside the token's name.
    #[schema(
        min_length = 1,
        max_length = 64,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    operator: Option<String>,
}

impl Sent for Why {
    const SHAPE: &'static str = "an object with reason, and if wanted operator";
}

impl Why {
    fn said(&self, caller: &Caller) -> Result<Said, Refused> {
        body::said(caller, &self.reason, self.operator.as_deref())
    }
}

/// Every operation with what the document says of it. An operation's `security` names the role that
/// it needs: sensor to report, peer to exchange bundles of indicators, viewer to look, operator to decide, admin to
/// change the gateway itself.
fn operations() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new()
        .routes(routes!(openapi))
        .routes(routes!(metrics))
        .routes(routes!(exchanges))
        .routes(routes!(accounts::list))
        .routes(routes!(accounts::show))
        .routes(routes!(accounts::overrides))
        .routes(routes!(accounts::get_override, accounts::set_override, accounts::remove_override))
        .routes(routes!(profiles::set_many))
        .routes(routes!(profiles::show, profiles::set))
        .routes(routes!(review::list))
        .routes(routes!(review::take))
        .routes(routes!(review::decide))
        .routes(routes!(clusters::list))
        .routes(routes!(clusters::show))
        .routes(routes!(clusters::takedown, clusters::take_down, clusters::undo))
        .routes(routes!(marks::list))
        .routes(routes!(marks::verify))
        .routes(routes!(models::list))
        .routes(routes!(models::show, models::set, models::remove))
        .routes(routes!(iocs::list))
        .routes(routes!(iocs::export))
        .routes(routes!(iocs::import))
        .routes(routes!(iocs::import_stix))
        .routes(routes!(iocs::revoke))
        .routes(routes!(sensors::report))
        .routes(routes!(sensors::list))
        .routes(routes!(policy::show))
        .routes(routes!(policy::validate))
        .routes(routes!(policy::reload))
        .routes(routes!(policy::roll_back))
        .routes(routes!(audit::query))
        .routes(routes!(audit::export))
        .routes(routes!(audit::events))
}

/// The endpoint's routes.
pub fn router(state: AdminState) -> Router {
    let (guarded, _) = operations().split_for_parts();
    let guarded = guarded.route_layer(middleware::from_fn_with_state(state.clone(), authorise));
    let open = Router::new()
        .route("/healthz", axum::routing::get(async || "ok\n"))
        .route("/readyz", axum::routing::get(readyz));
    bounded(open.merge(guarded)).with_state(state)
}

/// What sensors of this machine may ask on their Unix socket, without a token: to report.
fn sensor_router(state: AdminState) -> Router {
    let reports = axum::routing::post(sensors::report);
    bounded(Router::new().route(sensors::REPORTS, reports)).with_state(state)
}

fn bounded(routes: Router<AdminState>) -> Router<AdminState> {
    routes
        .fallback(async || Refused::not_found("no such path"))
        .method_not_allowed_fallback(async || {
            Refused::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not answer that method")
        })
        .layer(middleware::from_fn(bound_and_protect))
}

/// The endpoint as an application of one of pingora's listeners, so that a hot upgrade hands its
/// socket over like any other.
pub struct AdminApp {
    router: Router,
    acceptor: Option<Acceptor>,
    places: Arc<Semaphore>,
}

impl AdminApp {
    /// The endpoint over `state`; `tls` is its server configuration, if it speaks TLS.
    #[must_use]
    pub fn new(state: AdminState, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
        let acceptor = tls.map(|tls| {
            // HTTP/1.1 is all that is spoken here.
            let mut tls = Arc::unwrap_or_clone(tls);
            tls.alpn_protocols = vec![b"http/1.1".to_vec()];
            Acceptor::from_server_config(Arc::new(tls))
        });
        Self { router: router(state), acceptor, places }
    }

    /// What sensors of this machine find on their Unix socket.
    #[must_use]
    pub fn for_sensors(state: AdminState) -> Self {
        let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
        Self { router: sensor_router(state), acceptor: None, places }
    }

    /// Serves one connection; beyond [`ADMIN_CONNECTIONS_MAX`] it is closed unread.
    async fn accept(&self, stream: Stream, ended: watch::Receiver<bool>) {
        let Ok(_place) = self.places.try_acquire() else {
            log::warn!("admin: connection refused, {ADMIN_CONNECTIONS_MAX} are open");
            return;
        };
        let peer = peer_address(&stream).map(|peer| peer.ip());
        let Some(acceptor) = &self.acceptor else {
            self.serve(stream, peer, ended).await;
            return;
        };
        match timeout(
            ADMIN_HEADER_TIMEOUT,
            acceptor.tls_handshake(Tee::plain(stream, Bytes::new())),
        )
        .await
        {
            Ok(Ok(stream)) => self.serve(stream, peer, ended).await,
            // Its text may quote what was sent.
            Ok(Err(_)) => log::debug!("admin: TLS handshake failed"),
            Err(_) => log::debug!("admin: TLS handshake took too long"),
        }
    }

    async fn serve<S>(&self, stream: S, peer: Option<IpAddr>, mut ended: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let open = Connection::new(peer, ended.clone());
        let seen = open.clone();
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(seen.clone());
            router.call(request)
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(ADMIN_HEADER_TIMEOUT)
            .max_buf_size(ADMIN_HEADER_BYTES_MAX);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut ending = false;
        let served = loop {
            let until = open.until();
            tokio::select! {
                served = connection.as_mut() => break served,
                // An error means that the server is gone, which is an end as well.
                _ = ended.wait_for(|ended| *ended), if !ending => {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = sleep_until(until) => {
                    if open.until() <= until {
                        log::debug!("admin: connection ended: it lasted too long");
                        return;
                    }
                }
            }
        };
        if let Err(error) = served {
            log::debug!("admin: connection ended: {error}");
        }
    }
}

#[async_trait]
impl ServerApp for AdminApp {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        self.accept(stream, shutdown.clone()).await;
        None
    }
}

async fn readyz(State(state): State<AdminState>) -> Response {
    match (state.readiness)().reason() {
        None => "ready\n".into_response(),
        Some(reason) => Refused::new(StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operation",
    responses((status = 200, body = Object, content_type = "application/json")),
    security(("token" = ["viewer"])))]
async fn openapi(State(state): State<AdminState>, asked: Params) -> Result<Response, Refused> {
    asked.finish()?;
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    Ok((content_type, state.document.to_string()).into_response())
}

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "operation",
    responses((status = 200, body = String, content_type = "text/plain")),
    security(("token" = ["viewer"])))]
async fn metrics(State(state): State<AdminState>) -> Response {
    // Asking brings the gauges of healthy members up to date.
    let _ = (state.readiness)();
    let open = ADMIN_STREAMS_MAX.saturating_sub(state.streams.available_permits());
    state.metrics.admin_streams.set(i64::try_from(open).unwrap_or(i64::MAX));
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, state.metrics.render()).into_response()
}

/// Exchanges, the newest first.
#[derive(Serialize, ToSchema)]
struct Exchanges {
    #[schema(value_type = Vec<Object>)]
    exchanges: Vec<Arc<Exchange>>,
}

/// The latest exchanges, with marks in the place of their texts.
#[utoipa::path(get, path = "/v1/exchanges", tag = "operation", params(schema::LimitQuery),
    responses((status = 200, body = Exchanges)), security(("token" = ["viewer"])))]
async fn exchanges(State(state): State<AdminState>, mut asked: Params) -> Answer<Exchanges> {
    let limit = asked.limit(LIST_DEFAULT, ADMIN_LIST_MAX)?;
    asked.finish()?;
    Ok(Json(Exchanges { exchanges: state.exchanges.latest(limit) }))
}

/// Runs what reads files, the store or the engine where it holds up nobody else.
async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    tokio::task::spawn_blocking(run)
        .await
        .map_err(|_| Refused::busy("that did not finish; see the log"))
}

/// Refuses a body beyond the bound, and keeps answers out of caches.
async fn bound_and_protect(request: Request, next: Next) -> Response {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let bytes_max = body::bytes_max(request.uri().path());
    let from_sensor = request.uri().path() == sensors::REPORTS;
    let mut response = if length.is_some_and(|length| length > bytes_max) {
        body::too_large().into_response()
    } else {
        // A body of unknown length is bounded where it is read.
        next.run(request).await
    };
    if from_sensor {
        response = answer::as_problem(response);
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::{Duration, Instant};

    use detectors::{
        Answer, Conversation, Format, HttpCapture, HttpVersion, Observation, Text, Turn,
    };
    use parking_lot::Mutex;
    use pingora_core::protocols::l4::stream::Stream as L4Stream;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::sleep;

    use super::*;
    use crate::config::file::tests::TestDirectory;
    use crate::config::{ListenerTls, Role, Secret};
    use crate::enforce::marks;
    use crate::exchanges::TextKey;
    use crate::listener::tls::tests::{BOTH, client as client_config};
    use crate::listener::tls::{CertificateStore, server_config};

    const TOKEN: &str = "a-token-of-some-length";
    const SECRET: &str = "marmalade-heliograph-7731";
    const WHY: &str = r#"{"reason": "told so by the test"}"#;

    fn tokens() -> [AdminToken; 5] {
        let token = |role: Role| {
            let secret = Secret::new(token_of(role));
            AdminToken { name: role.name().to_owned(), role, secret }
        };
        Role::ALL.map(token)
    }

    fn token_of(role: Role) -> String {
        if role == Role::Admin { TOKEN.to_owned() } else { format!("{TOKEN}-{}", role.name()) }
    }

    struct Endpoint {
        address: SocketAddr,
        exchanges: Arc<ExchangeLog>,
        enforcer: Arc<Enforcer>,
        readiness: Arc<Mutex<Readiness>>,
        end: watch::Sender<bool>,
    }

    async fn start() -> Endpoint {
        start_with(None).await
    }

    async fn start_with(tls: Option<Arc<rustls::ServerConfig>>) -> Endpoint {
        let metrics = Arc::new(Metrics::new().unwrap());
        let exchanges =
            Arc::new(ExchangeLog::new(2000, TextKey::new(b"key"), Arc::clone(&metrics)));
        let readiness = Arc::new(Mutex::new(Readiness::Ready));
        let asked = Arc::clone(&readiness);
        let facts = Arc::new(detectors::facts::Facts::builtin().unwrap());
        let judge = crate::judge::Judge::new(Arc::default(), facts, [1; 16], metrics.clone());
        let marks = marks::Marks::new(marks::master_key(b"key").unwrap()).unwrap();
        let (judge, metrics_too) = (Arc::new(judge), Arc::clone(&metrics));
        let store = crate::store::Store::in_memory("test").unwrap();
        let indicators = crate::ioc::Exchange::new(None, store.clone(), metrics.clone()).unwrap();
        let enforcer = Enforcer::new(Arc::default(), judge, [1; 16], marks, store, metrics_too);
        let enforcer = Arc::new(enforcer);
        enforcer.look_up_in(indicators);
        enforcer.start().unwrap();
        let sensors = Sensors::new(enforcer.judge().clone(), exchanges.clone(), metrics.clone());
        let state = AdminState::new(
            metrics,
            Arc::clone(&exchanges),
            Arc::clone(&enforcer),
            &tokens(),
            [7; 32],
            Arc::new(sensors),
            move || asked.lock().clone(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = watch::channel(false);
        let app = Arc::new(AdminApp::new(state, tls));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (app, ended) = (app.clone(), ended.clone());
                let stream = Box::new(L4Stream::from(stream));
                tokio::spawn(async move { app.accept(stream, ended).await });
            }
        });
        Endpoint { address, exchanges, enforcer, readiness, end }
    }

    fn observation(index: u64) -> Observation {
        Observation {
            id: format!("r{index:016x}"),
            at_ms: index,
            account: None,
            organisation: None,
            ip: "192.0.2.1".parse().unwrap(),
            network: detectors::Network::default(),
            route: "main".into(),
            tls: None,
            http: HttpCapture {
                version: HttpVersion::Http11,
                method: "POST".to_owned(),
                path: "/v1/messages".to_owned(),
                headers: vec![],
                h2: None,
            },
            format: Format::AnthropicMessages,
            foreign_marks: 0,
            indicators: Vec::new(),
            conversation: Conversation {
                turns: vec![Turn {
                    role: detectors::Role::User,
                    text: Text::new(SECRET),
                    tool_calls: vec![],
                    attachments: 0,
                }],
                ..Conversation::default()
            },
            answer: Answer::default(),
        }
    }

    /// Status, head and body of one request on a connection of its own.
    async fn send(address: SocketAddr, head: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{head}\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_lowercase(), body.to_owned())
    }

    async fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
        let authorization = format!("authorization: Bearer {TOKEN}");
        send(address, &format!("GET {path} HTTP/1.1\r\n{authorization}")).await
    }

    fn message(body: &str) -> String {
        let body: Value = serde_json::from_str(body).unwrap();
        body["error"]["message"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn health_needs_no_token() {
        let endpoint = start().await;
        let (status, head, body) = send(endpoint.address, "GET /healthz HTTP/1.1").await;
        assert_eq!((status, body.as_str()), (200, "ok\n"));
        assert!(head.contains("cache-control: no-store"), "{head}");
        for (readiness, status, part) in [
            (Readiness::Ready, 200, "ready"),
            (Readiness::Starting, 503, "starting"),
            (Readiness::Draining, 503, "draining"),
            (Readiness::NoHealthyUpstream(vec!["a".into(), "b".into()]), 503, "upstream a, b"),
        ] {
            *endpoint.readiness.lock() = readiness;
            let (found, _, body) = send(endpoint.address, "GET /readyz HTTP/1.1").await;
            assert_eq!(found, status);
            assert!(body.contains(part), "{body}");
        }
    }

    #[tokio::test]
    async fn everything_else_needs_the_token() {
        let endpoint = start().await;
        let long = format!("{TOKEN}x");
        for path in ["/metrics", "/v1/exchanges"] {
            for (authorization, expected) in [
                (format!("authorization: Bearer {TOKEN}"), 200),
                (format!("Authorization: bearer {TOKEN}"), 200),
                ("x-none: 1".to_owned(), 401),
                (format!("authorization: Basic {TOKEN}"), 401),
                (format!("authorization: {TOKEN}"), 401),
                (format!("authorization: Bearer {long}"), 401),
                (format!("authorization: Bearer {}", &TOKEN[1..]), 401),
                ("authorization: Bearer ".to_owned(), 401),
                ("authorization:".to_owned(), 401),
                (format!("authorization: Bearer {TOKEN}\r\nauthorization: Bearer x"), 401),
            ] {
                let request = format!("GET {path} HTTP/1.1\r\n{authorization}");
                let (status, head, body) = send(endpoint.address, &request).await;
                assert_eq!(status, expected, "{request}");
                if status == 401 {
                    assert!(head.contains("www-authenticate: bearer"), "{head}");
                    assert!(message(&body).contains("token"), "{body}");
                }
            }
        }
    }

    #[tokio::test]
    async fn metrics_are_text() {
        let endpoint = start().await;
        let (status, head, body) = get(endpoint.address, "/metrics").await;
        assert_eq!(status, 200);
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(body.contains("stillgate_connections_open 0"), "{body}");
    }

    #[tokio::test]
    async fn exchanges_come_newest_first_and_without_texts() {
        let endpoint = start().await;
        for index in 0..1500 {
            endpoint.exchanges.push(observation(index));
        }
        for (query, count) in
            [("", 50), ("?limit=1", 1), ("?limit=007", 7), ("?limit=1000", 1000), ("?", 50)]
        {
            let path = format!("/v1/exchanges{query}");
            let (status, head, body) = get(endpoint.address, &path).await;
            assert_eq!(status, 200);
            assert!(head.contains("content-type: application/json"), "{head}");
            assert!(!body.contains(SECRET));
            let body: Value = serde_json::from_str(&body).unwrap();
            let exchanges = body["exchanges"].as_array().unwrap();
            assert_eq!(exchanges.len(), count, "{query}");
            assert_eq!(exchanges[0]["at_ms"], 1499);
            assert_eq!(exchanges[0]["conversation"]["turns"][0]["text"]["words"], 3);
        }
    }

    #[tokio::test]
    async fn bad_requests_are_told_apart() {
        let endpoint = start().await;
        for (request, expected, part) in [
            ("GET /v1/exchanges?limit=0", 400, "1 to 1000"),
            ("GET /v1/exchanges?limit=1001", 400, "1 to 1000"),
            ("GET /v1/exchanges?limit=+5", 400, "1 to 1000"),
            ("GET /v1/exchanges?limit=-5", 400, "1 to 1000"),
            ("GET /v1/exchanges?limit=", 400, "1 to 1000"),
            ("GET /v1/exchanges?limit=99999999999999999999999", 400, "1 to 1000"),
            ("GET /v1/exchanges?limit=1&limit=2", 400, "twice"),
            ("GET /v1/exchanges?count=1", 400, "parameter"),
            ("GET /v1/exchanges?limit", 400, "limit"),
            ("GET /v1/nothing", 404, "path"),
            ("GET /", 404, "path"),
            ("POST /healthz", 405, "method"),
            ("DELETE /v1/exchanges", 405, "method"),
            ("GET /v1/policy/reload", 405, "method"),
            ("GET /v1/accounts/nobody", 404, "account"),
            ("DELETE /v1/accounts/nobody/override", 400, "reason"),
            ("DELETE /v1/accounts/nobody/override?reason=x", 404, "override"),
            ("GET /v1/review/nobody/take", 405, "method"),
            ("GET /v1/accounts?tier=severe", 400, "none, low"),
            ("GET /v1/clusters/1", 400, "16 hex digits"),
            ("GET /v1/models/none", 404, "model"),
            ("GET /v1/audit?act=sung", 400, "act"),
            ("GET /v1/events?after=9", 409, "begin again"),
            ("GET /v1/accounts/%ff", 400, "UTF-8"),
            ("GET /v1/clusters/0000000000000001/takedown", 404, "takedown"),
            ("DELETE /v1/clusters/0000000000000001/takedown?reason=x", 404, "takedown"),
            ("GET /v1/review?limit=0", 400, "1 to 1000"),
        ] {
            let authorization = format!("authorization: Bearer {TOKEN}");
            let (status, head, body) =
                send(endpoint.address, &format!("{request} HTTP/1.1\r\n{authorization}")).await;
            assert_eq!(status, expected, "{request}");
            assert!(message(&body).contains(part), "{request}: {body}");
            assert_eq!(head.contains("allow: "), status == 405, "{head}");
        }
    }

    async fn send_json(address: SocketAddr, request: &str, body: &str) -> (u16, String, String) {
        let head = format!(
            "{request} HTTP/1.1\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: \
             application/json\r\ncontent-length: {}",
            body.len()
        );
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{head}\r\nhost: admin\r\nconnection: close\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_lowercase(), body.to_owned())
    }

    #[tokio::test]
    async fn an_override_holds_until_it_is_removed() {
        let endpoint = start().await;
        let path = "/v1/accounts/acct-1/override";
        let set = r#"{"tier": "high", "reason": "seen on a forum", "ttl_seconds": 3600}"#;
        let (status, _, body) = send_json(endpoint.address, &format!("PUT {path}"), set).await;
        assert_eq!(status, 200, "{body}");
        let (_, _, body) = get(endpoint.address, "/v1/accounts/acct-1").await;
        let shown: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&shown["tier"], &shown["judged_tier"]), (&"high".into(), &"none".into()));
        assert_eq!(shown["override"]["reason"], "seen on a forum");
        let remove = format!("DELETE {path}?reason=a%20mistake");
        let (status, _, _) = send_json(endpoint.address, &remove, "").await;
        assert_eq!(status, 200);
        let (status, _, body) = get(endpoint.address, "/v1/accounts/acct-1").await;
        let shown: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &shown["tier"]), (200, &"none".into()));
        for (wrong, part) in [
            ("", "JSON"),
            ("[]", "an object"),
            ("{}", "tier"),
            (r#"{"tier": "severe", "reason": "x"}"#, "tier (none, low"),
            (r#"{"tier": "low"}"#, "reason"),
            (r#"{"tier": "low", "reason": " "}"#, "reason"),
            (r#"{"tier": "low", "reason": "x", "ttl": 5}"#, "ttl_seconds"),
            (r#"{"tier": "low", "reason": "x", "ttl_seconds": 0}"#, "ttl_seconds"),
            (r#"{"tier": "low", "reason": "x", "ttl_seconds": -1}"#, "ttl_seconds"),
            (r#"{"tier": "low", "reason": "a\u0007"}"#, "control characters"),
            (r#"{"tier": "low", "reason": "x", "operator": ""}"#, "operator"),
        ] {
            let (status, _, body) =
                send_json(endpoint.address, &format!("PUT {path}"), wrong).await;
            assert_eq!(status, 400, "{wrong}: {body}");
            assert!(message(&body).contains(part), "{wrong}: {body}");
        }
        let long = format!("PUT /v1/accounts/{}/override", "x".repeat(300));
        assert_eq!(send_json(endpoint.address, &long, set).await.0, 400);
    }

    #[tokio::test]
    async fn an_account_is_explained_without_its_texts() {
        let endpoint = start().await;
        let mut asked = observation(7);
        asked.account = Some(detectors::AccountId::new("acct-2"));
        asked.conversation.turns[0].text = Text::new(format!("{SECRET}: solve it step by step"));
        let leave =
            endpoint.enforcer.admit(&mut asked).unwrap_or_else(|_| panic!("nobody is refused"));
        endpoint.enforcer.ended(Some(leave), &asked);
        let (status, _, body) = get(endpoint.address, "/v1/accounts/acct-2").await;
        assert_eq!(status, 200);
        assert!(!body.contains(SECRET), "{body}");
        let shown: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(shown["requests"], 1);
        assert_eq!(shown["findings"].as_array().unwrap().len(), detectors::list::LIST.len());
        assert_eq!(shown["policy"].as_str().unwrap().len(), 16);
    }

    #[tokio::test]
    async fn the_policy_is_shown_and_a_reload_without_a_file_says_so() {
        let endpoint = start().await;
        let (status, _, body) = get(endpoint.address, "/v1/policy").await;
        let shown: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 200);
        assert_eq!(shown["versions"][0]["in_force"], true);
        assert_eq!(shown["policy"]["tiers"]["medium"], 0.52);
        let (status, _, body) = send_json(endpoint.address, "POST /v1/policy/reload", WHY).await;
        assert_eq!((status, message(&body).contains("no policy file")), (409, true), "{body}");
        let (status, _, body) = send_json(endpoint.address, "POST /v1/policy/rollback", WHY).await;
        assert_eq!((status, message(&body).contains("no such earlier")), (409, true), "{body}");
    }

    #[tokio::test]
    async fn requests_are_bounded() {
        let endpoint = start().await;
        let beyond = crate::limits::ADMIN_BODY_BYTES_MAX + 1;
        let long = format!("GET /healthz HTTP/1.1\r\ncontent-length: {beyond}");
        assert_eq!(send(endpoint.address, &long).await.0, 413);
        let wide = format!("GET /healthz HTTP/1.1\r\nx: {}", "y".repeat(ADMIN_HEADER_BYTES_MAX));
        assert_eq!(send(endpoint.address, &wide).await.0, 431);
    }

    #[tokio::test]
    async fn connections_are_bounded() {
        let endpoint = start().await;
        let mut idle = Vec::new();
        for _ in 0..ADMIN_CONNECTIONS_MAX {
            idle.push(TcpStream::connect(endpoint.address).await.unwrap());
        }
        sleep(Duration::from_millis(200)).await;
        let mut further = TcpStream::connect(endpoint.address).await.unwrap();
        assert_eq!(further.read(&mut [0; 1]).await.unwrap(), 0, "served beyond the bound");
        idle.pop();
        sleep(Duration::from_millis(200)).await;
        assert_eq!(send(endpoint.address, "GET /healthz HTTP/1.1").await.0, 200);
    }

    #[tokio::test]
    async fn a_slow_head_is_cut_off() {
        let endpoint = start().await;
        for start_of_head in ["", "GET /healthz HTTP/1.1\r\nhost:"] {
            let mut stream = TcpStream::connect(endpoint.address).await.unwrap();
            stream.write_all(start_of_head.as_bytes()).await.unwrap();
            tokio::time::pause();
            let before = tokio::time::Instant::now();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            let waited = before.elapsed();
            tokio::time::resume();
            assert!(waited <= ADMIN_HEADER_TIMEOUT + Duration::from_secs(1), "{waited:?}");
        }
    }

    #[tokio::test]
    async fn shutdown_ends_idle_connections() {
        let endpoint = start().await;
        let mut idle = TcpStream::connect(endpoint.address).await.unwrap();
        idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        idle.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        let before = Instant::now();
        endpoint.end.send(true).unwrap();
        let mut rest = Vec::new();
        idle.read_to_end(&mut rest).await.unwrap();
        assert!(before.elapsed() < Duration::from_secs(2));
    }

    /// Reads from an answer under way until it holds `part`.
    async fn read_until(stream: &mut TcpStream, part: &str) -> String {
        let mut read = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&read).into_owned();
            if text.contains(part) {
                return text;
            }
            let more = timeout(Duration::from_secs(10), stream.read_buf(&mut read)).await;
            let more = more.unwrap_or_else(|_| panic!("no {part:?} in {text}")).unwrap();
            assert!(more > 0, "it ended without {part:?}: {text}");
        }
    }

    async fn follow(address: SocketAddr, query: &str, last: Option<u64>) -> TcpStream {
        let last = last.map_or_else(String::new, |id| format!("last-event-id: {id}\r\n"));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET /v1/events{query} HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {TOKEN}\r\n{last}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn set_tier(endpoint: &Endpoint, account: &str, tier: &str) {
        let path = format!("PUT /v1/accounts/{account}/override");
        let set = json!({ "tier": tier, "reason": "told so", "operator": "Ann" }).to_string();
        let (status, _, body) = send_json(endpoint.address, &path, &set).await;
        assert_eq!(status, 200, "{body}");
    }

    #[tokio::test]
    async fn events_are_audit_entries_and_a_reader_goes_on_where_it_was() {
        let endpoint = start().await;
        set_tier(&endpoint, "before", "low").await;
        let mut live = follow(endpoint.address, "", None).await;
        let head = read_until(&mut live, "retry: 1000\n\n").await;
        assert!(head.to_lowercase().contains("content-type: text/event-stream"), "{head}");
        set_tier(&endpoint, "acct-1", "high").await;
        let told = read_until(&mut live, "\n\n").await;
        for part in
            ["id: 2\nevent: override_set\ndata: {", "\"acct-1\"", "\"admin/Ann\"", "told so"]
        {
            assert!(told.contains(part), "{part:?} is not in {told}");
        }
        assert!(!told.contains("before"), "what was before is not asked for: {told}");
        drop(live);
        set_tier(&endpoint, "acct-2", "high").await;
        for (query, last) in [("?after=1", None), ("?after=0", Some(1)), ("", Some(1))] {
            let mut again = follow(endpoint.address, query, last).await;
            let told = read_until(&mut again, "id: 3\n").await;
            assert!(
                told.contains("id: 2\n") && !told.contains("id: 1\n"),
                "{query} {last:?}: {told}"
            );
        }
        let mut one = follow(endpoint.address, "?after=0&account=acct-2", None).await;
        let told = read_until(&mut one, "id: 3\n").await;
        assert!(!told.contains("id: 1\n") && !told.contains("id: 2\n"), "{told}");
    }

    #[tokio::test]
    async fn streams_are_bounded_and_end_with_the_process() {
        let endpoint = start().await;
        let mut open = Vec::new();
        for _ in 0..ADMIN_STREAMS_MAX {
            let mut stream = follow(endpoint.address, "", None).await;
            read_until(&mut stream, "retry").await;
            open.push(stream);
        }
        let (status, _, body) = get(endpoint.address, "/v1/events").await;
        assert_eq!(status, 503, "{body}");
        let (_, _, metrics) = get(endpoint.address, "/metrics").await;
        assert!(metrics.contains(&format!("stillgate_admin_streams {ADMIN_STREAMS_MAX}\n")));
        endpoint.end.send(true).unwrap();
        for mut stream in open {
            let mut rest = Vec::new();
            let ended = timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
            ended.expect("it ends").unwrap();
        }
    }

    #[tokio::test]
    async fn an_event_stream_outlives_the_time_of_a_connection_and_shows_signs_of_life() {
        let endpoint = start().await;
        let mut live = follow(endpoint.address, "", None).await;
        read_until(&mut live, "retry").await;
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        let mut beats = 0;
        while begun.elapsed() < 3 * crate::limits::ADMIN_CONNECTION_TIMEOUT {
            let mut piece = [0; 64];
            let read = live.read(&mut piece).await.unwrap();
            assert!(read > 0, "cut off after {:?}", begun.elapsed());
            beats += String::from_utf8_lossy(&piece[..read]).matches(":\n\n").count();
        }
        assert!((10..=13).contains(&beats), "{beats}");
    }

    #[tokio::test]
    async fn the_audit_is_paged_filtered_and_exported_as_it_is_chained() {
        let endpoint = start().await;
        for number in 0..7 {
            set_tier(&endpoint, &format!("acct-{}", number % 2), "low").await;
        }
        let ask = async |query: &str| -> Value {
            let (status, _, body) = get(endpoint.address, &format!("/v1/audit{query}")).await;
            assert_eq!(status, 200, "{body}");
            serde_json::from_str(&body).unwrap()
        };
        let seqs = |page: &Value| -> Vec<u64> {
            let entries = page["entries"].as_array().unwrap().iter();
            entries.map(|linked| linked["entry"]["seq"].as_u64().unwrap()).collect()
        };
        let page = ask("?limit=3").await;
        assert_eq!((seqs(&page), &page["next_after"]), (vec![1, 2, 3], &3.into()));
        assert_eq!(page["complete"], false);
        let page = ask("?after=3&limit=100").await;
        assert_eq!((seqs(&page), &page["complete"]), (vec![4, 5, 6, 7], &true.into()));
        assert_eq!(seqs(&ask("?account=acct-1").await), [2, 4, 6]);
        assert!(seqs(&ask("?act=taken_down").await).is_empty());
        assert_eq!(seqs(&ask("?act=override_set&since_ms=5&limit=1").await), [1]);
        assert!(seqs(&ask("?until_ms=5").await).is_empty());

        let (status, _, lines) = get(endpoint.address, "/v1/audit/export?after=0").await;
        assert_eq!(status, 200);
        let mut before = crate::audit::FIRST.to_owned();
        let lines: Vec<&str> =
            lines.split(['\r', '\n']).filter(|line| line.starts_with("{\"hash\"")).collect();
        assert_eq!(lines.len(), 7);
        for line in lines {
            let hash = &line[9..73];
            let entry = line[83..].strip_suffix('}').unwrap();
            let link = crate::audit::link_hash(&before, &crate::audit::digest(entry));
            assert_eq!(link, hash, "{line}");
            hash.clone_into(&mut before);
        }
    }

    #[tokio::test]
    async fn accounts_and_overrides_are_listed_by_pages() {
        let endpoint = start().await;
        for number in 0..5 {
            let tier = if number % 2 == 0 { "high" } else { "none" };
            set_tier(&endpoint, &format!("acct-{number}"), tier).await;
        }
        let names = |body: &str, key: &str| -> Vec<String> {
            let body: Value = serde_json::from_str(body).unwrap();
            let listed = body[key].as_array().unwrap_or_else(|| panic!("{body}")).iter();
            listed.map(|one| one["account"].as_str().unwrap().to_owned()).collect()
        };
        for (path, key, expected) in [
            ("/v1/accounts", "accounts", vec!["acct-0", "acct-1", "acct-2", "acct-3", "acct-4"]),
            ("/v1/accounts?tier=high", "accounts", vec!["acct-0", "acct-2", "acct-4"]),
            ("/v1/accounts?tier=high&limit=2", "accounts", vec!["acct-0", "acct-2"]),
            ("/v1/accounts?tier=high&after=acct-2", "accounts", vec!["acct-4"]),
            ("/v1/accounts?tier=low", "accounts", vec![]),
            ("/v1/overrides?limit=2&after=acct-1", "overrides", vec!["acct-2", "acct-3"]),
        ] {
            let (status, _, body) = get(endpoint.address, path).await;
            assert_eq!(
                (status, names(&body, key)),
                (200, expected.iter().map(|s| (*s).to_owned()).collect()),
                "{path}"
            );
        }
        let (_, _, body) = get(endpoint.address, "/v1/overrides?limit=5").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&body["next"], &body["overrides"][0]["override"]["by"]),
            (&"acct-4".into(), &"admin/Ann".into())
        );
    }

    #[tokio::test]
    async fn profiles_are_taken_by_batches_whole_or_not_at_all() {
        let endpoint = start().await;
        let batch = crate::limits::ADMIN_PROFILES_BATCH;
        let mut lines: Vec<String> = (0..2 * batch + 3)
            .map(|n| format!(r#"{{"account": "acct-{n}", "payment": "card-{n}", "bin": 424242}}"#))
            .collect();
        lines[batch + 7] = r#"{"account": "acct-x", "card": "planted-4242"}"#.to_owned();
        let many = "POST /v1/accounts/profiles?reason=import";
        let (status, _, body) = send_json(endpoint.address, many, &lines.join("\n")).await;
        let taken: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 200, "{body}");
        assert_eq!((&taken["taken"], &taken["left_out"]), (&(batch + 3).into(), &batch.into()));
        assert_eq!(taken["faults"][0]["line"], batch + 8);
        assert!(!body.contains("planted"), "{body}");
        for (account, expected) in [
            ("acct-0", 200),
            (&*format!("acct-{batch}"), 404),
            (&*format!("acct-{}", 2 * batch), 200),
        ] {
            let (status, _, body) =
                get(endpoint.address, &format!("/v1/accounts/{account}/profile")).await;
            assert_eq!(status, expected, "{account}: {body}");
            assert!(!body.contains("card-"), "{body}");
        }
        let (status, _, body) = send_json(endpoint.address, many, "{}\n").await;
        assert_eq!(status, 400, "{body}");
        assert!(body.contains("\"line\":1"), "{body}");
        let endless = "x".repeat(crate::limits::ADMIN_PROFILE_LINE_BYTES_MAX + 1);
        assert_eq!(send_json(endpoint.address, many, &endless).await.0, 400);
        let one = r#"{"organisation": "org-1", "verified": true, "reason": "told by sales"}"#;
        let path = "PUT /v1/accounts/acct-0/profile";
        let (status, _, body) = send_json(endpoint.address, path, one).await;
        let set: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &set["payment"], &set["verified"]), (200, &Value::Null, &true.into()));
    }

    #[tokio::test]
    async fn models_are_told_and_removed() {
        let endpoint = start().await;
        let path = "/v1/models/meta-llama%2FLlama-9";
        let told = r#"{"released_ms": 1800000000000, "reason": "announced"}"#;
        let (status, _, body) = send_json(endpoint.address, &format!("PUT {path}"), told).await;
        assert_eq!(status, 200, "{body}");
        let (_, _, body) = get(endpoint.address, "/v1/models").await;
        assert!(
            body.contains(r#"{"model":"meta-llama/Llama-9","released_ms":1800000000000}"#),
            "{body}"
        );
        assert_eq!(get(endpoint.address, path).await.0, 200);
        let remove = format!("DELETE {path}?reason=not%20so");
        assert_eq!(send_json(endpoint.address, &remove, "").await.0, 200);
        assert_eq!(send_json(endpoint.address, &remove, "").await.0, 404);
        assert_eq!(get(endpoint.address, path).await.0, 404);
        let wrong = told.replace("1800000000000", "253402300800000");
        assert_eq!(send_json(endpoint.address, &format!("PUT {path}"), &wrong).await.0, 400);
    }

    #[tokio::test]
    async fn a_policy_is_checked_with_each_fault_at_its_line() {
        let endpoint = start().await;
        let check = async |toml: &str| -> Value {
            let (status, _, body) =
                send_json(endpoint.address, "POST /v1/policy/validate", toml).await;
            assert_eq!(status, 200, "{body}");
            serde_json::from_str(&body).unwrap()
        };
        assert_eq!(check("[tiers]\nlow = 0.3\n").await, json!({ "valid": true, "faults": [] }));
        let faults = check("[tiers]\nlow = 3.0\n[fusion]\nk = 0.0\n").await;
        assert_eq!(faults["valid"], false);
        let lines: Vec<_> = faults["faults"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["line"].as_u64().unwrap())
            .collect();
        assert!(lines.contains(&2) && lines.contains(&4), "{faults}");
        assert!(faults["faults"][0]["message"].as_str().unwrap().contains("tiers"), "{faults}");
    }

    #[tokio::test]
    async fn a_text_is_verified_and_not_kept() {
        let endpoint = start().await;
        let text = json!({ "text": format!("{SECRET} and no mark at all") }).to_string();
        let (status, _, body) = send_json(endpoint.address, "POST /v1/marks/verify", &text).await;
        let verified: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &verified["verdict"]), (200, &"no_evidence".into()), "{body}");
        assert!(!body.contains(SECRET));
        assert_eq!(
            send_json(endpoint.address, "POST /v1/marks/verify", r#"{"text": ""}"#).await.0,
            400
        );
    }

    /// Status of `GET /healthz` over TLS; `None` where the handshake fails.
    fn over_tls(address: SocketAddr, client: rustls::ClientConfig) -> Option<u16> {
        use std::io::{Read, Write};
        let name = "a.example".try_into().unwrap();
        let client = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
        let socket = std::net::TcpStream::connect(address).unwrap();
        let mut stream = rustls::StreamOwned::new(client, socket);
        let request = b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(request).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        assert_eq!(stream.conn.alpn_protocol(), Some(b"http/1.1".as_slice()));
        answer.get(9..12)?.parse().ok()
    }

    #[tokio::test]
    async fn over_tls_a_client_certificate_may_be_required() {
        let directory = TestDirectory::new();
        let own = directory.certificate("a", &["a.example"]);
        let known = directory.certificate("known", &["operator"]);
        let unknown = directory.certificate("unknown", &["operator"]);
        for (client_ca, expected) in [
            (None, [Some(200), Some(200), Some(200)]),
            (Some(known.chain.clone()), [None, None, Some(200)]),
        ] {
            let required = client_ca.is_some();
            let settings = ListenerTls {
                certificates: vec![own.clone()],
                client_ca,
                client_certificate_required: required,
            };
            let store = CertificateStore::load(&settings.certificates).unwrap();
            let tls = server_config(&settings, store, false).unwrap();
            let endpoint = start_with(Some(tls)).await;
            for (client, expected) in [None, Some(&unknown), Some(&known)].into_iter().zip(expected)
            {
                let mut client = client_config(&[&own], BOTH, client);
                client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
                let address = endpoint.address;
                let found = tokio::task::spawn_blocking(move || over_tls(address, client)).await;
                assert_eq!(found.unwrap(), expected, "required: {required}");
            }
        }
    }
}
