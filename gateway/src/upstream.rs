//! Upstream groups: member addresses, their health, and connections to them.
//!
//! Names are resolved again every [`UPSTREAM_RESOLVE_INTERVAL`], so that an upstream behind a moving DNS
//! name is followed; when a lookup fails the last known addresses stay.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::Extensions;
use pingora_core::connectors::http::Connector;
use pingora_core::connectors::{ConnectorOptions, TransportConnector};
use pingora_core::protocols::TcpKeepalive;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::services::background::GenBackgroundService;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorType};
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::health_check::{HealthCheck, HttpHealthCheck, TcpHealthCheck};
use pingora_load_balancing::selection::RoundRobin;
use pingora_load_balancing::{Backend, Backends, LoadBalancer};
use tracing::warn;

use crate::config::{Upstream, UpstreamProtocol};
use crate::limits::{
    UPSTREAM_H2_STREAM_WINDOW, UPSTREAM_H2_STREAMS_MAX, UPSTREAM_IDLE_CONNECTIONS_MAX,
    UPSTREAM_IDLE_TIMEOUT, UPSTREAM_PING_INTERVAL, UPSTREAM_RESOLVE_INTERVAL,
};

/// A running upstream group.
pub struct UpstreamPool {
    config: Arc<Upstream>,
    members: Arc<LoadBalancer<RoundRobin>>,
    connector: Connector,
}

/// The CA certificates that an upstream is verified with cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[error(
    "upstream {upstream}: the CA certificates cannot be loaded; install the system's \
     (ca-certificates) or set upstream.{upstream}.ca to a PEM file"
)]
pub struct NoRoots {
    upstream: Arc<str>,
}

type Health = Box<dyn HealthCheck + Send + Sync>;

/// Connections that health checks keep.
const HEALTH_CONNECTIONS_MAX: usize = 16;
/// Longest wait for names before the start.
const FIRST_RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a health check's answer.
const HEALTH_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// One attempt's peer: where to connect and how.
pub struct Attempt {
    peer: HttpPeer,
    host_header: String,
}

impl UpstreamPool {
    /// Builds the group and the background service that resolves and checks its members.
    ///
    /// # Errors
    /// When the CA certificates that the upstream is verified with cannot be loaded.
    pub fn new(
        config: Arc<Upstream>,
    ) -> Result<(Self, GenBackgroundService<LoadBalancer<RoundRobin>>), NoRoots> {
        let connectors = with_roots(|| {
            (
                Connector::new(Some(connector_options(&config, UPSTREAM_IDLE_CONNECTIONS_MAX))),
                config.health.as_ref().map(|health| health_check(&config, health)),
            )
        });
        let (connector, health) =
            connectors.ok_or_else(|| NoRoots { upstream: config.name.clone() })?;
        let discovery = Resolver { addresses: config.addresses.clone() };
        let mut members =
            LoadBalancer::<RoundRobin>::from_backends(Backends::new(Box::new(discovery)));
        members.update_frequency = Some(UPSTREAM_RESOLVE_INTERVAL);
        if let Some(health) = health {
            members.set_health_check(health);
            members.health_check_frequency = config.health.as_ref().map(|health| health.interval);
            members.parallel_health_check = true;
        }
        resolve_first(&members);
        let service = pingora_core::services::background::background_service(
            &format!("upstream {}", config.name),
            members,
        );
        let pool = Self { config, members: service.task(), connector };
        Ok((pool, service))
    }

    /// The group's settings.
    #[must_use]
    pub fn config(&self) -> &Upstream {
        &self.config
    }

    /// Healthy members now.
    #[must_use]
    pub fn healthy_members(&self) -> usize {
        let backends = self.members.backends();
        backends.get_backend().iter().filter(|b| backends.ready(b)).count()
    }

    /// Chooses a member that is healthy and not in `tried`; any untried one when none is healthy,
    /// since a request that may fail is better than one that must.
    #[must_use]
    pub fn select(&self, tried: &[SocketAddr], needs_http2: bool) -> Option<Attempt> {
        let untried = |backend: &Backend| {
            backend.addr.as_inet().is_some_and(|address| !tried.contains(address))
        };
        let bound = self.config.addresses.len().saturating_mul(8).max(16);
        let backend = self
            .members
            .select_with(b"", bound, |backend, healthy| healthy && untried(backend))
            .or_else(|| self.members.select_with(b"", bound, |backend, _| untried(backend)))?;
        let address = *backend.addr.as_inet()?;
        let name = backend.ext.get::<HostName>();
        Some(Attempt {
            peer: self.peer(address, name, needs_http2),
            host_header: self.host_header(address, name),
        })
    }

    /// Connects, or takes an idle connection; the flag tells whether it was used before.
    ///
    /// # Errors
    /// The connector's error: refused, timed out, TLS failure.
    pub async fn connect(&self, attempt: &Attempt) -> Result<(HttpSession, bool), Box<Error>> {
        self.connector.get_http_session(&attempt.peer).await
    }

    /// Gives a connection back after a complete exchange.
    pub async fn release(&self, session: HttpSession, attempt: &Attempt) {
        self.connector
            .release_http_session(session, &attempt.peer, Some(UPSTREAM_IDLE_TIMEOUT))
            .await;
    }

    /// Remembers that this member refuses HTTP/2.
    pub fn prefer_http1(&self, attempt: &Attempt) {
        self.connector.prefer_h1(&attempt.peer);
    }

    /// The configured name as it is; otherwise host and port, without the scheme's own port.
    fn host_header(&self, address: SocketAddr, host: Option<&HostName>) -> String {
        if let Some(name) = &self.config.server_name {
            return name.clone();
        }
        let host = host.map_or_else(|| address.ip().to_string(), |HostName(name)| name.clone());
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        match (address.port(), self.config.tls) {
            (443, true) | (80, false) => host,
            (port, _) => format!("{host}:{port}"),
        }
    }

    fn peer(&self, address: SocketAddr, host: Option<&HostName>, needs_http2: bool) -> HttpPeer {
        let config = &self.config;
        let server_name = match (&config.server_name, host) {
            (Some(name), _) => name.clone(),
            (None, Some(HostName(name))) => name.clone(),
            (None, None) => address.ip().to_string(),
        };
        let mut peer = HttpPeer::new(address, config.tls, server_name);
        let options = &mut peer.options;
        options.connection_timeout = Some(config.connect_timeout);
        options.total_connection_timeout = Some(config.connect_timeout);
        options.max_h2_streams = UPSTREAM_H2_STREAMS_MAX;
        // Answers that clients do not take lie in the connection's window. It holds a full window
        // of every stream, so that those never keep the others' answers from coming.
        options.h2_stream_window_size = Some(UPSTREAM_H2_STREAM_WINDOW);
        options.h2_connection_window_size =
            Some(UPSTREAM_H2_STREAM_WINDOW * UPSTREAM_H2_STREAMS_MAX as u32);
        // A connection into a black hole is found out, not waited on.
        options.h2_ping_interval = Some(UPSTREAM_PING_INTERVAL);
        options.tcp_keepalive = Some(TcpKeepalive {
            idle: UPSTREAM_PING_INTERVAL,
            interval: UPSTREAM_PING_INTERVAL / 3,
            count: 3,
            user_timeout: Duration::ZERO,
        });
        match config.protocol {
            _ if needs_http2 => options.set_http_version(2, 2),
            UpstreamProtocol::Http1 => options.set_http_version(1, 1),
            UpstreamProtocol::Http2 => options.set_http_version(2, 2),
            // Without TLS there is no ALPN to ask, and few servers accept h2c.
            UpstreamProtocol::Auto if config.tls => options.set_http_version(2, 1),
            UpstreamProtocol::Auto => options.set_http_version(1, 1),
        }
        peer
    }
}

impl Attempt {
    /// The member's address.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.peer._address.as_inet().copied()
    }

    /// `Host` for this member, unless the client's is preserved.
    #[must_use]
    pub fn host_header(&self) -> &str {
        &self.host_header
    }
}

/// The host part of a configured address, kept beside the address that it resolved to.
#[derive(Clone)]
struct HostName(String);

struct Resolver {
    addresses: Vec<String>,
}

#[async_trait]
impl ServiceDiscovery for Resolver {
    async fn discover(&self) -> pingora_error::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let mut backends = BTreeSet::new();
        let mut failure = None;
        for address in &self.addresses {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            match tokio::net::lookup_host(address).await {
                Ok(found) => {
                    for address in found {
                        let mut ext = Extensions::new();
                        ext.insert(HostName(host.to_owned()));
                        backends.insert(Backend {
                            addr: pingora_core::protocols::l4::socket::SocketAddr::Inet(address),
                            weight: 1,
                            ext,
                        });
                    }
                }
                Err(error) => {
                    warn!(%address, %error, "upstream address does not resolve");
                    failure = Some(error);
                }
            }
        }
        match failure {
            // An error keeps the last known members.
            Some(error) if backends.is_empty() => {
                Err(Error::because(ErrorType::ConnectNoRoute, "resolving upstream", error))
            }
            _ => Ok((backends, HashMap::new())),
        }
    }
}

/// Resolves the members once before anything is served: a process that takes over open sockets is
/// asked at once, and must not answer that there is no upstream while the service is starting.
fn resolve_first(members: &LoadBalancer<RoundRobin>) {
    let resolve = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let update = async { tokio::time::timeout(FIRST_RESOLVE_TIMEOUT, members.update()).await };
        Ok::<_, std::io::Error>(runtime.block_on(update))
    };
    // A thread of its own, as the caller may be inside a runtime.
    let resolved = std::thread::scope(|scope| scope.spawn(resolve).join());
    // What fails is said where it fails, and tried again by the service.
    if let Ok(Err(error)) = resolved {
        warn!(%error, "upstream addresses are resolved late");
    }
}

/// Runs what builds a connector. Pingora panics on CA certificates that it cannot load; `None` lets
/// the operator have a sentence instead.
pub fn with_roots<T>(build: impl FnOnce() -> T + std::panic::UnwindSafe) -> Option<T> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let built = std::panic::catch_unwind(build);
    std::panic::set_hook(hook);
    built.ok()
}

fn connector_options(config: &Upstream, idle_connections_max: usize) -> ConnectorOptions {
    let mut options = ConnectorOptions::new(idle_connections_max);
    options.ca_file = match &config.ca {
        Some(path) => Some(path.display().to_string()),
        None if config.tls => None,
        // No certificate is verified on plain text, so the system's are not read for it.
        None => Some("/dev/null".to_owned()),
    };
    options
}

fn health_check(config: &Upstream, health: &crate::config::HealthCheck) -> Health {
    let host = config.server_name.clone().unwrap_or_else(|| {
        let first = config.addresses.first().map_or("", String::as_str);
        first.rsplit_once(':').map_or(first, |(host, _)| host).to_owned()
    });
    let options = connector_options(config, HEALTH_CONNECTIONS_MAX);
    let Some(path) = &health.path else {
        let mut check =
            if config.tls { TcpHealthCheck::new_tls(&host) } else { TcpHealthCheck::new() };
        check.set_connector(TransportConnector::new(Some(options)));
        return check;
    };
    let mut check = HttpHealthCheck::new_custom(&host, config.tls, Connector::new(Some(options)));
    check.consecutive_failure = 2;
    check.peer_template.options.connection_timeout = Some(config.connect_timeout);
    check.peer_template.options.read_timeout = Some(HEALTH_READ_TIMEOUT);
    if config.protocol == UpstreamProtocol::Http2 {
        check.peer_template.options.set_http_version(2, 2);
    }
    if let Ok(uri) = path.parse() {
        check.req.set_uri(uri);
    }
    check.validator = Some(Box::new(|response| {
        if response.status.is_success() {
            Ok(())
        } else {
            Error::e_explain(
                ErrorType::HTTPStatus(response.status.as_u16()),
                "health check was not answered with 2xx",
            )
        }
    }));
    Box::new(check)
}
