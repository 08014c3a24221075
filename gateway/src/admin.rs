//! The operators' endpoint: health, metrics, exchanges, accounts and what is done about them.
//!
//! `GET /healthz` and `GET /readyz` are for load balancers and say nothing worth hiding. All else
//! needs `Authorization: Bearer` with the token of the configuration; where the address is not
//! loopback the configuration refuses a weak token. The server is bounded like the proxy itself:
//! so many connections, so long for a request head, so many body bytes, so long in all. Someone
//! who can reach the port can therefore not hold the process's memory or descriptors.

mod accounts;
mod body;
mod clusters;
mod policy;

use std::pin::pin;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use serde_json::json;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::config::Secret;
use crate::enforce::Enforcer;
use crate::exchanges::ExchangeLog;
use crate::limits::{
    ADMIN_BODY_BYTES_MAX, ADMIN_CONNECTION_TIMEOUT, ADMIN_CONNECTIONS_MAX, ADMIN_EXCHANGES_MAX,
    ADMIN_HEADER_BYTES_MAX, ADMIN_HEADER_TIMEOUT,
};
use crate::metrics::Metrics;

/// Exchanges in an answer where the request does not say.
const EXCHANGES_DEFAULT: usize = 50;

/// What the endpoint shows.
#[derive(Clone)]
pub struct AdminState {
    metrics: Arc<Metrics>,
    exchanges: Arc<ExchangeLog>,
    enforcer: Arc<Enforcer>,
    readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
    /// SHA-256 of the token: equal in length whatever the token's.
    token_digest: [u8; 32],
}

impl AdminState {
    /// `readiness` is asked at each `GET /readyz` and must not block.
    pub fn new(
        metrics: Arc<Metrics>,
        exchanges: Arc<ExchangeLog>,
        enforcer: Arc<Enforcer>,
        token: &Secret,
        readiness: impl Fn() -> Readiness + Send + Sync + 'static,
    ) -> Self {
        let token_digest = Sha256::digest(token.expose()).into();
        Self { metrics, exchanges, enforcer, readiness: Arc::new(readiness), token_digest }
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

/// The endpoint's routes.
pub fn router(state: AdminState) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/exchanges", get(exchanges))
        .route("/v1/accounts/{account}", get(accounts::show))
        .route(
            "/v1/accounts/{account}/override",
            put(accounts::set_override).delete(accounts::remove_override),
        )
        .route("/v1/review", get(accounts::reviews))
        .route("/v1/review/{account}", delete(accounts::reviewed))
        .route("/v1/clusters", get(clusters::list))
        .route(
            "/v1/clusters/{cluster}/takedown",
            get(clusters::show).post(clusters::take_down).delete(clusters::undo),
        )
        .route("/v1/marks", get(clusters::marks))
        .route("/v1/policy", get(policy::show))
        .route("/v1/policy/reload", post(policy::reload))
        .route("/v1/policy/rollback", post(policy::roll_back))
        .route_layer(middleware::from_fn_with_state(state.clone(), authorise));
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .merge(guarded)
        .fallback(async || error(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || {
            error(StatusCode::METHOD_NOT_ALLOWED, "this path does not answer that method")
        })
        .layer(middleware::from_fn(bound_and_protect))
        .with_state(state)
}

/// The endpoint as an application of one of pingora's listeners, so that a hot upgrade hands its
/// socket over like any other.
pub struct AdminApp {
    router: Router,
    places: Arc<Semaphore>,
}

impl AdminApp {
    /// The endpoint over `state`.
    #[must_use]
    pub fn new(state: AdminState) -> Self {
        let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
        Self { router: router(state), places }
    }

    /// Serves one connection; beyond [`ADMIN_CONNECTIONS_MAX`] it is closed unread.
    async fn serve<S>(&self, stream: S, mut ended: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(_place) = self.places.try_acquire() else {
            log::warn!("admin: connection refused, {ADMIN_CONNECTIONS_MAX} are open");
            return;
        };
        let service = TowerToHyperService::new(self.router.clone());
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(ADMIN_HEADER_TIMEOUT)
            .max_buf_size(ADMIN_HEADER_BYTES_MAX);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let served = timeout(ADMIN_CONNECTION_TIMEOUT, async {
            tokio::select! {
                served = connection.as_mut() => return served,
                // An error means that the server is gone, which is an end as well.
                _ = ended.wait_for(|ended| *ended) => {}
            }
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        });
        match served.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("admin: connection ended: {error}"),
            Err(_) => log::debug!("admin: connection ended: it lasted too long"),
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
        self.serve(stream, shutdown.clone()).await;
        None
    }
}

async fn readyz(State(state): State<AdminState>) -> Response {
    match (state.readiness)().reason() {
        None => "ready\n".into_response(),
        Some(reason) => error(StatusCode::SERVICE_UNAVAILABLE, &reason),
    }
}

async fn metrics(State(state): State<AdminState>) -> Response {
    // Asking brings the gauges of healthy members up to date.
    let _ = (state.readiness)();
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, state.metrics.render()).into_response()
}

async fn exchanges(State(state): State<AdminState>, RawQuery(query): RawQuery) -> Response {
    match exchange_limit(query.as_deref().unwrap_or_default()) {
        Ok(limit) => {
            axum::Json(json!({ "exchanges": state.exchanges.latest(limit) })).into_response()
        }
        Err(message) => error(StatusCode::BAD_REQUEST, &message),
    }
}

/// Reads `limit=N`. Anything else is an error, so that a misspelt parameter is not ignored.
fn exchange_limit(query: &str) -> Result<usize, String> {
    let mut limit = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let value = match pair.split_once('=') {
            Some(("limit", value)) if limit.is_none() => value,
            Some(("limit", _)) => return Err("limit is given twice".to_owned()),
            _ => return Err("the only parameter here is limit".to_owned()),
        };
        // `parse` would take a sign as well.
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        let number = value.parse().ok().filter(|limit| (1..=ADMIN_EXCHANGES_MAX).contains(limit));
        if !digits || number.is_none() {
            return Err(format!("limit must be a number from 1 to {ADMIN_EXCHANGES_MAX}"));
        }
        limit = number;
    }
    Ok(limit.unwrap_or(EXCHANGES_DEFAULT))
}

async fn authorise(State(state): State<AdminState>, request: Request, next: Next) -> Response {
    if is_authorised(request.headers(), &state.token_digest) {
        return next.run(request).await;
    }
    let mut response =
        error(StatusCode::UNAUTHORIZED, "send the admin token as `Authorization: Bearer …`");
    let challenge = HeaderValue::from_static("Bearer realm=\"stillgate admin\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

/// Compares digests: the time taken tells neither how much of a guess was right nor its length.
fn is_authorised(headers: &HeaderMap, token_digest: &[u8; 32]) -> bool {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Some((scheme, token)) = value.as_bytes().split_first_chunk::<7>() else { return false };
    let digest: [u8; 32] = Sha256::digest(token).into();
    scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(digest.ct_eq(token_digest))
}

/// Refuses a body beyond the bound, and keeps answers out of caches.
async fn bound_and_protect(request: Request, next: Next) -> Response {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let mut response = if length.is_some_and(|length| length > ADMIN_BODY_BYTES_MAX) {
        error(StatusCode::PAYLOAD_TOO_LARGE, "the request body is too large")
    } else {
        // A body of unknown length is bounded where it is read.
        next.run(request).await
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, axum::Json(json!({ "error": { "message": message } }))).into_response()
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
            indicators: Vec::new(),
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
