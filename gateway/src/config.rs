//! The resolved configuration: what the gateway runs on.
//!
//! Raw to resolved, once: `config::file` reads TOML, names every error with file, line and key,
//! and makes a [`Config`]; nothing downstream checks a setting again.

pub mod file;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::ioc::sign::{SigningKey, VerifyKey};
use crate::limits::Limits;
use crate::network::NetworkStore;
use crate::outgoing::{Trust, Url};
use crate::policy::PolicyStore;
use crate::webhook::Webhook;

/// Everything that `stillgate run` needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses that clients connect to; at least one.
    pub listeners: Vec<Listener>,
    /// Routes in file order; the most specific match wins (host before none, longer prefix first).
    pub routes: Vec<Route>,
    /// Upstreams by name.
    pub upstreams: Vec<Arc<Upstream>>,
    /// How a credential becomes an account.
    pub identity: Identity,
    /// Whose an address is.
    pub networks: Arc<NetworkStore>,
    /// The policy, read and checked; the shipped default where the file names none.
    pub policies: Arc<PolicyStore>,
    /// Admin address and its secret.
    pub admin: Admin,
    /// Where DNS sensors of this machine report, beside the admin address; `None`: only there.
    pub sensor_socket: Option<SensorSocket>,
    /// Exchange of indicators with other providers, off when `None`.
    pub ioc: Option<Arc<Ioc>>,
    /// Where the gateways of a fleet meet; `None` for one that is alone.
    pub redis: Option<Redis>,
    /// Where what must last is kept.
    pub store: StoreSettings,
    /// Trace recording, off when `None`.
    pub record: Option<Record>,
    /// Where what happens is told.
    pub webhooks: Vec<Webhook>,
    /// Bounds and timeouts.
    pub limits: Limits,
    /// Process settings.
    pub server: Server,
    /// Log settings.
    pub log: Log,
    /// What the file allows itself but should not; logged at start and shown by `check`.
    pub warnings: Vec<file::ConfigError>,
}

/// One listening address.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Address to bind.
    pub address: SocketAddr,
    /// TLS settings; `None` is a plain-text listener.
    pub tls: Option<ListenerTls>,
    /// Peers that must send a PROXY protocol v2 header. Empty: no PROXY header is expected.
    /// When not empty, connections from any other address are refused.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Fingerprints that a TLS-terminating load balancer saw, accepted from listed peers only.
    pub fingerprint_headers: Option<FingerprintHeaders>,
}

/// Certificates of a listener.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    /// Certificates; the first is served to clients whose SNI matches none. Never empty.
    pub certificates: Vec<Certificate>,
    /// CA bundle that client certificates must chain to; `None`: none is asked for.
    pub client_ca: Option<PathBuf>,
    /// Whether a client certificate is required (`client_ca` is then set).
    pub client_certificate_required: bool,
}

/// A certificate chain and its key, in PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Chain, leaf first.
    pub chain: PathBuf,
    /// Private key (PKCS#8, PKCS#1 or SEC1).
    pub key: PathBuf,
}

/// Header names in which a trusted load balancer passes on what it saw of the client's TLS.
#[derive(Clone, Debug)]
pub struct FingerprintHeaders {
    /// Peers whose headers are believed; from others the headers are ignored.
    pub from: Vec<IpNet>,
    /// Header with the JA3 string or its MD5, lower case.
    pub ja3: Option<String>,
    /// Header with the JA4, lower case.
    pub ja4: Option<String>,
}

/// A route from requests to an upstream.
#[derive(Clone, Debug)]
pub struct Route {
    /// Name for logs, metrics and policies.
    pub name: Arc<str>,
    /// Host to match, lower case without port; `*.example.com` matches one or more labels.
    pub host: Option<String>,
    /// Path prefix to match, `/` by default; matches whole segments only.
    pub path: String,
    /// Index into [`Config::upstreams`].
    pub upstream: usize,
}

/// A named group of equivalent addresses.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Name for logs and metrics.
    pub name: Arc<str>,
    /// `host:port` of each member; never empty.
    pub addresses: Vec<String>,
    /// Whether to speak TLS to them.
    pub tls: bool,
    /// HTTP version to speak.
    pub protocol: UpstreamProtocol,
    /// SNI and certificate name; the host of the address when `None`.
    pub server_name: Option<String>,
    /// Whether the client's `Host` goes through; otherwise it becomes the server name.
    pub preserve_host: bool,
    /// CA bundle for this upstream instead of the system's roots.
    pub ca: Option<PathBuf>,
    /// Active health check; `None` leaves members in until connecting fails.
    pub health: Option<HealthCheck>,
    /// Time for TCP and TLS together.
    pub connect_timeout: Duration,
    /// Time from the request's end to the response header.
    pub first_byte_timeout: Duration,
    /// Longest silence inside a response.
    pub idle_timeout: Duration,
    /// Further attempts on another member where nothing of the request was processed.
    pub retries: usize,
}

/// HTTP version spoken to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1; gRPC requests still need HTTP/2 and get it.
    Http1,
    /// HTTP/2; without TLS by prior knowledge (h2c).
    Http2,
    /// TLS: what ALPN gives. Plain text: HTTP/1.1.
    Auto,
}

/// Active health check.
#[derive(Clone, Debug)]
pub struct HealthCheck {
    /// Path of a GET that answers 2xx when healthy; `None` checks that TCP connects.
    pub path: Option<String>,
    /// Time between checks.
    pub interval: Duration,
}

/// How a credential becomes an account.
#[derive(Clone, Debug)]
pub struct Identity {
    /// HMAC-SHA256 key of the account pseudonyms, at least 32 bytes.
    pub key: Arc<[u8]>,
    /// JWT verification; `None` treats every bearer token as an opaque key.
    pub jwt: Option<Jwt>,
    /// Whether a verified client certificate names the account where no credential is sent.
    pub client_certificate: bool,
    /// Header that names the organisation, believed from listed peers only.
    pub organisation_header: Option<OrganisationHeader>,
}

/// JWT verification.
#[derive(Clone, Debug)]
pub struct Jwt {
    /// Where the key set comes from.
    pub jwks: JwksSource,
    /// Required `iss`.
    pub issuer: Option<String>,
    /// Required `aud`.
    pub audience: Option<String>,
    /// Claim that names the account.
    pub account_claim: String,
    /// Claim that names the organisation.
    pub organisation_claim: Option<String>,
}

/// Where a JWKS comes from.
#[derive(Clone, Debug)]
pub enum JwksSource {
    /// A file, read again when it changes.
    File(PathBuf),
    /// An `http(s)` address, fetched at start and again every `refresh`.
    Url {
        /// Address of the key set.
        url: Url,
        /// Time between fetches.
        refresh: Duration,
    },
}

/// Header that names the organisation.
#[derive(Clone, Debug)]
pub struct OrganisationHeader {
    /// Header name, lower case.
    pub name: String,
    /// Peers whose header is believed; from others it is removed.
    pub from: Vec<IpNet>,
}

/// Admin endpoint.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Address to bind.
    pub address: SocketAddr,
    /// Who may ask; never empty, names and secrets differ.
    pub tokens: Vec<AdminToken>,
    /// TLS; `None` is plain text.
    pub tls: Option<ListenerTls>,
}

/// A bearer token of the admin endpoint.
#[derive(Clone, Debug)]
pub struct AdminToken {
    /// Its name, which the audit tells.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The token.
    pub secret: Secret,
}

impl AdminToken {
    /// The token that may do everything.
    #[must_use]
    pub fn admin(secret: Secret) -> Self {
        Self { name: Role::Admin.name().to_owned(), role: Role::Admin, secret }
    }
}

/// What a token may do. From peer to admin each role may do what the ones before it may; a sensor
/// stands beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Tell how hosts resolve names, and nothing else.
    Sensor,
    /// Exchange signed bundles of indicators, as another provider.
    Peer,
    /// Look.
    Viewer,
    /// Decide on accounts and clusters, and tell what is known of them.
    Operator,
    /// Change the gateway itself.
    Admin,
}

impl Role {
    /// Every role; from the peer on each may do more than the one before.
    pub const ALL: [Self; 5] =
        [Self::Sensor, Self::Peer, Self::Viewer, Self::Operator, Self::Admin];

    /// Whether a token of this role may do what needs the role `needed`.
    #[must_use]
    pub fn may(self, needed: Self) -> bool {
        match (self, needed) {
            (Self::Admin, _) => true,
            (Self::Sensor, _) | (_, Self::Sensor) => self == needed,
            _ => self as u8 >= needed as u8,
        }
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sensor => "sensor",
            Self::Peer => "peer",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// The Unix socket on which DNS sensors of this machine report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SensorSocket {
    /// Its file; UTF-8, and short enough for a socket.
    pub path: PathBuf,
    /// Permissions of the file: whoever may write may report.
    pub mode: u32,
}

/// Where what must last is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// In which store.
    pub kind: StoreKind,
    /// Directory of the embedded store.
    pub dir: PathBuf,
    /// This gateway's name; `None`: made up once and kept in the store.
    pub node: Option<String>,
    /// Days after which what is remembered of an account that did not come back is deleted.
    pub keep_days: u32,
}

/// Kinds of stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// On disk.
    Embedded,
    /// On disk, and shared with other gateways through [`Config::redis`].
    Redis,
    /// It ends with the process.
    Memory,
}

/// A secret that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Exchange of indicators with other providers.
pub struct Ioc {
    /// The name under which this provider issues bundles.
    pub provider: Arc<str>,
    /// Keys that sign them, all of them each; never empty.
    pub signing: Vec<SigningKey>,
    /// Key of the hashes that are told, where peers share one.
    pub exchange_key: Option<Arc<[u8]>>,
    /// Networks that are never told nor taken in.
    pub own_networks: Vec<IpNet>,
    /// How long an indicator holds after it was last seen.
    pub lifetime_ms: u64,
    /// How much STIX that operators take in counts, 0..1.
    pub operator_weight: f64,
    /// The other providers.
    pub peers: Vec<Peer>,
}

impl Ioc {
    /// Key of the hashes that are told: without one that is shared, one of this provider's own.
    #[must_use]
    pub fn share_key(&self) -> Vec<u8> {
        match (&self.exchange_key, self.signing.first()) {
            (Some(key), _) => key.to_vec(),
            (None, Some(key)) => key.reference_key(),
            (None, None) => Vec::new(),
        }
    }
}

impl std::fmt::Debug for Ioc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ioc")
            .field("provider", &self.provider)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

/// Another provider.
#[derive(Debug)]
pub struct Peer {
    /// The name under which it issues bundles.
    pub name: Arc<str>,
    /// Its address, where it is pushed to or pulled from.
    pub url: Option<Url>,
    /// What it wants to see of us.
    pub token: Option<Secret>,
    /// Keys that verify its bundles; any one is enough.
    pub verify: Vec<VerifyKey>,
    /// How much it counts, 0..1.
    pub weight: f64,
    /// Whether it is told at once.
    pub push: bool,
    /// Time between two questions for news.
    pub pull: Option<Duration>,
    /// By whom its address is trusted.
    pub trust: Trust,
}

/// The Redis or Valkey in which the gateways of a fleet meet.
#[derive(Clone, Debug)]
pub struct Redis {
    /// Hosts and ports: of a Cluster any of its servers, otherwise the first that takes writes
    /// counts. Never empty.
    pub addresses: Vec<(String, u16)>,
    /// Whether they speak TLS.
    pub tls: bool,
    /// Whether they are a Cluster.
    pub cluster: bool,
    /// ACL user; the default user when `None`.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// CA bundle instead of the system's roots.
    pub ca: Option<PathBuf>,
    /// Certificate that this gateway shows.
    pub client_certificate: Option<Certificate>,
    /// What every key begins with.
    pub prefix: String,
    /// Time between two looks at what others said, and between two reports of what was let through.
    pub sync_interval: Duration,
    /// Time between two rounds of account memory.
    pub memory_interval: Duration,
    /// How long Redis keeps an account that nobody sees.
    pub keep: Duration,
}

/// Trace recording.
#[derive(Clone, Debug)]
pub struct Record {
    /// File to append to, one JSON object a line.
    pub path: PathBuf,
    /// Whether prompts go in as text. Off: features and keyed hashes in their place.
    pub text: bool,
}

/// Process settings.
#[derive(Clone, Debug)]
pub struct Server {
    /// Worker threads.
    pub threads: usize,
    /// After SIGTERM: time that running exchanges have to end.
    pub drain: Duration,
    /// Socket over which a new process takes over the listeners.
    pub upgrade_socket: PathBuf,
    /// File that holds the process id while running; `None` writes none.
    pub pid_file: Option<PathBuf>,
}

/// Log settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Filter such as `info` or `warn,gateway=debug`.
    pub level: String,
    /// One JSON object a line instead of text.
    pub json: bool,
}
