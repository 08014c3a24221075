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
mod marks;
mod models;
mod policy;
mod profiles;
mod review;
mod schema;

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
        readiness: impl Fn() -> Readiness + Send + Sync + 'static,
    ) -> Self {
        let Document { json, needed } = Document::of(&operations().into_openapi());
        Self {
            gate: Arc::new(Gate::new(tokens, needed, metrics.clone())),
            metrics,
            exchanges,
            enforcer,
            readiness: Arc::new(readiness),
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
/// it needs: viewer to look, operator to decide, admin to change the gateway itself.
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
    Router::new()
        .route("/healthz", axum::routing::get(async || "ok\n"))
        .route("/readyz", axum::routing::get(readyz))
        .merge(guarded)
        .fallback(async || Refused::not_found("no such path"))
        .method_not_allowed_fallback(async || {
            Refused::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not answer that method")
        })
        .layer(middleware::from_fn(bound_and_protect))
        .with_state(state)
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
    let mut response = if length.is_some_and(|length| length > bytes_max) {
        body::too_large().into_response()
    } else {
        // A body of unknown length is bounded where it is read.
        next.run(request).await
    };
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
        Answer, Conversation, Format, HttpCapture, HttpVersion, Observation, Role, Text, Turn,
    };
    use parking_lot::Mutex;
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::sleep;

    use super::*;
    use crate::enforce::marks;
    use crate::exchanges::TextKey;

    const TOKEN: &str = "a-token-of-some-length";
    const SECRET: &str = "marmalade-heliograph-7731";

    struct Endpoint {
        address: SocketAddr,
        exchanges: Arc<ExchangeLog>,
        enforcer: Arc<Enforcer>,
        readiness: Arc<Mutex<Readiness>>,
        end: watch::Sender<bool>,
    }

    async fn start() -> Endpoint {
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
        let enforcer = Enforcer::new(Arc::default(), judge, [1; 16], marks, store, metrics_too);
        let enforcer = Arc::new(enforcer);
        enforcer.start().unwrap();
        let state = AdminState::new(
            metrics,
            Arc::clone(&exchanges),
            Arc::clone(&enforcer),
            &Secret::new(TOKEN),
            move || asked.lock().clone(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = watch::channel(false);
        let app = Arc::new(AdminApp::new(state));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (app, ended) = (app.clone(), ended.clone());
                tokio::spawn(async move { app.serve(stream, ended).await });
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
            conversation: Conversation {
                turns: vec![Turn {
                    role: Role::User,
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
            ("GET /v1/exchanges?count=1", 400, "limit"),
            ("GET /v1/exchanges?limit", 400, "limit"),
            ("GET /v1/nothing", 404, "path"),
            ("GET /", 404, "path"),
            ("POST /healthz", 405, "method"),
            ("DELETE /v1/exchanges", 405, "method"),
            ("GET /v1/policy/reload", 405, "method"),
            ("GET /v1/accounts/nobody", 404, "account"),
            ("DELETE /v1/accounts/nobody/override", 404, "override"),
            ("DELETE /v1/review/nobody", 404, "queue"),
            ("GET /v1/clusters/0000000000000001/takedown", 404, "takedown"),
            ("DELETE /v1/clusters/0000000000000001/takedown", 404, "takedown"),
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
        let (status, _, _) = send_json(endpoint.address, &format!("DELETE {path}"), "").await;
        assert_eq!(status, 200);
        let (status, _, body) = get(endpoint.address, "/v1/accounts/acct-1").await;
        let shown: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &shown["tier"]), (200, &"none".into()));
        for (wrong, part) in [
            ("", "JSON"),
            ("[]", "JSON"),
            ("{}", "tier"),
            (r#"{"tier": "severe", "reason": "x"}"#, "expected one of `none`, `low`"),
            (r#"{"tier": "low"}"#, "reason"),
            (r#"{"tier": "low", "reason": " "}"#, "reason"),
            (r#"{"tier": "low", "reason": "x", "ttl": 5}"#, "ttl_seconds"),
            (r#"{"tier": "low", "reason": "x", "ttl_seconds": 0}"#, "ttl_seconds"),
            (r#"{"tier": "low", "reason": "x", "ttl_seconds": -1}"#, "`-1`"),
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
        let (status, _, body) = send_json(endpoint.address, "POST /v1/policy/reload", "").await;
        assert_eq!((status, message(&body).contains("no policy file")), (409, true), "{body}");
        let (status, _, body) = send_json(endpoint.address, "POST /v1/policy/rollback", "").await;
        assert_eq!((status, message(&body).contains("no earlier")), (409, true), "{body}");
    }

    #[tokio::test]
    async fn requests_are_bounded() {
        let endpoint = start().await;
        let long = format!("GET /healthz HTTP/1.1\r\ncontent-length: {}", ADMIN_BODY_BYTES_MAX + 1);
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
}
