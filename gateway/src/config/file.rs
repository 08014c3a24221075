//! The configuration file: TOML text in, a [`Config`] or every error at once out.
//!
//! Operators edit this file by hand, so the reader walks the spanned TOML tree itself instead of
//! deriving a deserialiser that stops at the first mistake. Each error names file, line and key,
//! says what is wrong and what is allowed. An unknown key is an error, because a misspelt timeout
//! that is silently ignored is found in production; the nearest key that exists is suggested.
//!
//! Source: TOML 1.0. Relative paths in the file are relative to the file.

mod admin;
mod ioc;
mod redis;
mod sensor;
mod store;
mod webhook;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use http::HeaderName;
use ipnet::IpNet;
use rustls_pki_types::ServerName;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    Certificate, Config, FingerprintHeaders, HealthCheck, Identity, JwksSource, Jwt, Listener,
    ListenerTls, Log, OrganisationHeader, Record, Route, Server, Upstream, UpstreamProtocol,
};
use crate::account::jwks::KeySet;
use crate::limits::{CONFIG_FILE_BYTES_MAX, Limits};
use crate::listener::tls;
use crate::network::{NetworkFiles, NetworkStore};
use crate::outgoing::Url;
use crate::policy::PolicyStore;

/// Bytes of the identity key at least: the output size of its hash (RFC 2104, section 3).
const IDENTITY_KEY_BYTES_MIN: usize = 32;
/// One thing wrong with a configuration file. Never carries a secret's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file that is wrong.
    pub file: PathBuf,
    /// Line in it, from 1; `None` where the file could not be read at all.
    pub line: Option<usize>,
    /// Key such as `listener[0].address`; empty for a syntax error.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Reads a configuration file, and the keys, tokens and certificates that it names.
///
/// # Errors
/// Everything that is wrong, in line order.
pub fn load(path: &Path) -> Result<Config, Vec<ConfigError>> {
    let unreadable = |message: String| {
        vec![ConfigError { file: path.to_owned(), line: None, key: String::new(), message }]
    };
    let bytes = read_bounded(path).map_err(|e| unreadable(format!("cannot be read: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        unreadable(format!("is not UTF-8 from byte {}", e.utf8_error().valid_up_to()))
    })?;
    parse(&text, path)
}

/// As [`load`], from text; `path` is named in errors and anchors relative paths.
///
/// # Errors
/// Everything that is wrong, in line order.
pub fn parse(text: &str, path: &Path) -> Result<Config, Vec<ConfigError>> {
    parse_with(text, path, &|name| std::env::var(name).ok())
}

/// Reads a file whole, up to [`CONFIG_FILE_BYTES_MAX`].
pub(crate) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(CONFIG_FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > CONFIG_FILE_BYTES_MAX {
        return Err(io::Error::other(format!("larger than {CONFIG_FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// What tells that a file was replaced or rewritten. The inode catches a rename over the file and
/// the symlink swap of a mounted secret, where time and size may be those of the old file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

impl FileStamp {
    /// The stamp of a file now; `None` while it cannot be seen.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            modified: metadata.modified().ok(),
            bytes: metadata.len(),
            inode: metadata.ino(),
        })
    }
}

/// Looks up an environment variable; a parameter so that tests need not change the process's own.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

fn parse_with(
    text: &str,
    path: &Path,
    environment: Environment<'_>,
) -> Result<Config, Vec<ConfigError>> {
    let report = Report::new(text, path, environment);
    let (root, syntax) = DeTable::parse_recoverable(text);
    for error in syntax {
        let at = error.span().map_or(0, |span| span.start);
        report.error(at, "", error.message());
    }
    if report.has_errors() {
        // A half-read tree would only add errors that are consequences of these.
        return Err(report.into_errors());
    }
    let section = Section::new(&report, root.get_ref(), root.span().start, String::new());
    let config = read_config(section);
    match config {
        Some(mut config) if !report.has_errors() => {
            config.warnings = report.into_warnings();
            Ok(config)
        }
        _ => Err(report.into_errors()),
    }
}

// The sections. Each reads all of its keys before it gives up, so that all errors come together.

fn read_config(mut root: Section<'_, '_>) -> Option<Config> {
    let listeners = read_listeners(&mut root);
    let upstreams = read_upstreams(&mut root);
    let routes = read_routes(&mut root, &upstreams);
    let client_ca = listeners
        .iter()
        .flatten()
        .any(|l| l.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()));
    let identity = read_identity(&mut root, client_ca);
    let networks = read_networks(&mut root);
    let policies = read_policies(&mut root);
    let admin = admin::read(&mut root, &listeners);
    let ioc = ioc::read_ioc(&mut root);
    let store = store::read(&mut root);
    let webhooks = webhook::read(&mut root);
    let redis = redis::read(&mut root, store.as_ref().map(|store| store.kind));
    let sensor_socket = sensor::read(&mut root);
    let record = read_record(&mut root);
    let limits = read_limits(&mut root);
    let server = read_server(&mut root);
    let log = read_log(&mut root);
    root.finish();
    Some(Config {
        listeners: listeners.into_iter().collect::<Option<_>>()?,
        routes: routes.into_iter().collect::<Option<_>>()?,
        upstreams: upstreams.into_iter().map(|u| u.resolved).collect::<Option<_>>()?,
        identity: identity?,
        networks: networks?,
        policies: policies?,
        admin: admin?,
        sensor_socket: sensor_socket?,
        ioc,
        redis: redis?,
        store: store?,
        record,
        webhooks: webhooks?,
        limits: limits?,
        server,
        log,
        warnings: Vec::new(),
    })
}

fn read_listeners(root: &mut Section<'_, '_>) -> Vec<Option<Listener>> {
    let Some(item) = root.required("listener", "write at least one [[listener]] with an address")
    else {
        return Vec::new();
    };
    let tables = item.tables("write at least one [[listener]]");
    let mut addresses = HashMap::new();
    tables.into_iter().map(|table| read_listener(table, &mut addresses)).collect()
}

fn read_listener(
    mut table: Section<'_, '_>,
    addresses: &mut HashMap<SocketAddr, usize>,
) -> Option<Listener> {
    let address = table.required("address", "such as \"0.0.0.0:8443\"").and_then(|item| {
        let address = item.socket_address()?;
        if let Some(line) = addresses.insert(address, item.line()) {
            item.error(format!("{address} is already listened on (line {line})"));
        }
        Some(address)
    });
    let certificates = table.optional("certificates").map(|item| {
        let tables = item.tables("give a chain and a key, or leave it out for plain text");
        tables.into_iter().map(read_certificate).collect::<Vec<_>>()
    });
    let client_ca_item = table.optional("client_ca");
    let client_ca = client_ca_item.as_ref().and_then(Item::ca_bundle);
    let client_certificate = table.optional("client_certificate");
    let required = match client_certificate.as_ref() {
        Some(item) => item.choice(&[("optional", false), ("required", true)]).unwrap_or(true),
        // Who names a CA and nothing else expects it to be enforced.
        None => true,
    };
    if let (Some(item), None) = (&client_certificate, &client_ca_item) {
        item.error("needs client_ca, the bundle that client certificates must chain to");
    }
    if let (Some(item), None) = (&client_ca_item, &certificates) {
        item.error("needs certificates: a plain-text listener sees no client certificate");
    }
    let proxy_protocol_from = table
        .optional("proxy_protocol_from")
        .map(|item| item.networks("list the load balancers' networks, or leave it out"))
        .unwrap_or_default();
    let fingerprint_headers =
        table.optional("fingerprint_headers").and_then(|item| item.table()).map(read_fingerprints);
    table.finish();
    let tls = match certificates {
        Some(certificates) => Some(ListenerTls {
            certificates: certificates.into_iter().collect::<Option<_>>()?,
            client_certificate_required: client_ca.is_some() && required,
            client_ca,
        }),
        None => None,
    };
    Some(Listener { address: address?, tls, proxy_protocol_from, fingerprint_headers })
}

fn read_certificate(mut table: Section<'_, '_>) -> Option<Certificate> {
    let certificate = read_certificate_files(&mut table);
    table.finish();
    certificate
}

fn read_certificate_files(table: &mut Section<'_, '_>) -> Option<Certificate> {
    let chain_item = table.required("chain", "the path of a PEM file, leaf certificate first");
    let key_item = table.required("key", "the path of the certificate's private key in PEM");
    let (chain_item, key_item) = (chain_item?, key_item?);
    let certificate = Certificate { chain: chain_item.path()?, key: key_item.path()? };
    key_item.check_permissions(&certificate.key);
    match tls::load_certificate(&certificate) {
        Ok(_) => Some(certificate),
        Err(error) => {
            let item = if error.concerns(&certificate.key) { &key_item } else { &chain_item };
            item.error(error.to_string());
            None
        }
    }
}

fn read_fingerprints(mut table: Section<'_, '_>) -> FingerprintHeaders {
    let from = read_trusted_peers(&mut table);
    let ja3 = table.optional("ja3").and_then(|item| item.header_name());
    let ja4 = table.optional("ja4").and_then(|item| item.header_name());
    if !table.has("ja3") && !table.has("ja4") {
        table.error("", "names no header; give ja3, ja4 or both");
    }
    table.finish();
    FingerprintHeaders { from, ja3, ja4 }
}

fn read_trusted_peers(table: &mut Section<'_, '_>) -> Vec<IpNet> {
    let example = "the networks whose header is believed, such as [\"10.0.0.0/8\"]";
    table
        .required("from", example)
        .map(|item| item.networks(&format!("list {example}")))
        .unwrap_or_default()
}

/// An upstream that is named in the file, so that routes may refer to it even where it has errors.
struct NamedUpstream {
    name: String,
    resolved: Option<Arc<Upstream>>,
    used: std::cell::Cell<bool>,
    at: usize,
}

fn read_upstreams(root: &mut Section<'_, '_>) -> Vec<NamedUpstream> {
    let example = "write at least one [upstream.NAME] with addresses";
    let Some(table) = root.required("upstream", example).and_then(|item| item.table()) else {
        return Vec::new();
    };
    let entries = table.entries();
    if entries.is_empty() {
        table.error("", example);
    }
    entries
        .into_iter()
        .map(|(name, item)| {
            if let Err(wrong) = check_name(&name) {
                item.error(wrong);
            }
            let resolved = item.table().and_then(|table| read_upstream(&name, table)).map(Arc::new);
            NamedUpstream { name, resolved, used: false.into(), at: item.at }
        })
        .collect()
}

fn read_upstream(name: &str, mut table: Section<'_, '_>) -> Option<Upstream> {
    let example = "a list of host:port, such as [\"10.0.0.5:8000\"]";
    let addresses = table.required("addresses", example).map(|item| {
        let mut seen: Vec<String> = Vec::new();
        for item in &item.non_empty_list(&format!("give {example}")) {
            let Some(address) = item.upstream_address() else { continue };
            if seen.contains(&address) {
                item.error(format!("{address} is listed twice"));
            }
            seen.push(address);
        }
        seen
    });
    let tls = table.optional("tls").and_then(|item| item.boolean()).unwrap_or(false);
    let protocols = [
        ("auto", UpstreamProtocol::Auto),
        ("h1", UpstreamProtocol::Http1),
        ("h2", UpstreamProtocol::Http2),
    ];
    let protocol = table
        .optional("protocol")
        .and_then(|item| item.choice(&protocols))
        .unwrap_or(UpstreamProtocol::Auto);
    let server_name = table.optional("server_name").and_then(|item| item.server_name());
    let preserve_host =
        table.optional("preserve_host").and_then(|item| item.boolean()).unwrap_or(false);
    let ca = table.optional("ca").and_then(|item| {
        if !tls {
            item.error("needs tls = true");
        }
        item.ca_bundle()
    });
    let health = table.optional("health").and_then(|item| item.table()).map(read_health);
    let connect_timeout = table.seconds("connect_timeout_seconds", Duration::from_secs(5));
    let first_byte_timeout = table.seconds("first_byte_timeout_seconds", Duration::from_secs(600));
    let idle_timeout = table.seconds("idle_timeout_seconds", Duration::from_secs(300));
    let retries = table.integer("retries", 1, 0..=10);
    table.finish();
    Some(Upstream {
        name: name.into(),
        addresses: addresses?,
        tls,
        protocol,
        server_name,
        preserve_host,
        ca,
        health,
        connect_timeout,
        first_byte_timeout,
        idle_timeout,
        retries,
    })
}

fn read_health(mut table: Section<'_, '_>) -> HealthCheck {
    let path = table.optional("path").and_then(|item| item.url_path());
    let interval = table.seconds("interval_seconds", Duration::from_secs(5));
    table.finish();
    HealthCheck { path, interval }
}

fn read_routes(root: &mut Section<'_, '_>, upstreams: &[NamedUpstream]) -> Vec<Option<Route>> {
    let example = "write at least one [[route]] with a name and an upstream";
    let Some(item) = root.required("route", example) else { return Vec::new() };
    let tables = item.tables(example);
    let mut names = HashMap::new();
    let mut matches = HashMap::new();
    let routes = tables
        .into_iter()
        .map(|table| read_route(table, upstreams, &mut names, &mut matches))
        .collect();
    for upstream in upstreams.iter().filter(|upstream| !upstream.used.get()) {
        let key = format!("upstream.{}", upstream.name);
        item.report.warn(upstream.at, &key, "no route leads to it");
    }
    routes
}

fn read_route(
    mut table: Section<'_, '_>,
    upstreams: &[NamedUpstream],
    names: &mut HashMap<String, usize>,
    matches: &mut HashMap<(Option<String>, String), String>,
) -> Option<Route> {
    let name = table.required("name", "a word for logs, metrics and policies").and_then(|item| {
        let name = item.string()?;
        if let Err(wrong) = check_name(&name) {
            item.error(wrong);
        }
        if let Some(line) = names.insert(name.clone(), item.line()) {
            item.error(format!("\"{name}\" is already the name of the route at line {line}"));
        }
        Some(name)
    });
    let host = table.optional("host").and_then(|item| item.host_pattern());
    let path = table.optional("path").map_or_else(|| Some("/".into()), |item| item.url_path());
    let upstream = table.required("upstream", "the name of an [upstream.NAME]").and_then(|item| {
        let wanted = item.string()?;
        let found = upstreams.iter().position(|upstream| upstream.name == wanted);
        match found {
            Some(index) => upstreams[index].used.set(true),
            None => {
                let known: Vec<&str> = upstreams.iter().map(|u| u.name.as_str()).collect();
                item.error(format!("no upstream \"{wanted}\"{}", suggest(&wanted, &known)));
            }
        }
        found
    });
    if let (Some(name), Some(path)) = (&name, &path)
        && let Some(other) = matches.insert((host.clone(), path.clone()), name.clone())
    {
        table.error("", format!("matches the same host and path as route \"{other}\""));
    }
    table.finish();
    Some(Route { name: name?.into(), host, path: path?, upstream: upstream? })
}

fn read_identity(root: &mut Section<'_, '_>, client_ca: bool) -> Option<Identity> {
    let how = "give key_file = \"account.key\" (make one: openssl rand -hex 32 > account.key; \
               chmod 600 account.key) or key_env = \"NAME\"";
    let mut table = root
        .required("identity", &format!("it keys the accounts' pseudonyms: {how}"))
        .and_then(|item| item.table())?;
    let key = table.secret("key_file", "key_env", how).and_then(|(item, bytes)| {
        identity_key(&bytes).map_err(|wrong| item.error(format!("{wrong}; {how}"))).ok()
    });
    let client_certificate = table
        .optional("client_certificate")
        .and_then(|item| {
            let wanted = item.boolean()?;
            if wanted && !client_ca {
                item.error("needs a listener with client_ca, else no certificate is ever verified");
            }
            Some(wanted)
        })
        .unwrap_or(false);
    let organisation_header = match table.optional("organisation_header") {
        Some(item) => item.table().and_then(read_organisation_header),
        None => None,
    };
    let jwt_item = table.optional("jwt");
    let has_jwt = jwt_item.is_some();
    let jwt = jwt_item.and_then(|item| item.table()).and_then(read_jwt);
    table.finish();
    if has_jwt && jwt.is_none() {
        return None;
    }
    Some(Identity { key: key?, jwt, client_certificate, organisation_header })
}

/// The bytes of a secret key: hex and base64 are decoded, anything else is taken as it is.
pub(crate) fn identity_key(secret: &[u8]) -> Result<Arc<[u8]>, String> {
    let text = std::str::from_utf8(secret).map(str::trim).ok();
    let key = match text {
        None => secret.to_vec(),
        Some(text) => decode_key(text),
    };
    if key.len() < IDENTITY_KEY_BYTES_MIN {
        return Err(format!(
            "has {} bytes, at least {IDENTITY_KEY_BYTES_MIN} are needed",
            key.len()
        ));
    }
    let distinct: std::collections::BTreeSet<u8> = key.iter().copied().collect();
    if distinct.len() < 8 {
        return Err("is not random".into());
    }
    Ok(key.into())
}

fn decode_key(text: &str) -> Vec<u8> {
    if let Ok(key) = hex::decode(text) {
        return key;
    }
    // A passphrase of letters is valid base64 too; it is taken as base64 only where that still
    // leaves enough bytes, as it does for `openssl rand -base64 32`.
    let joined: String = text.split_ascii_whitespace().collect();
    let base64 = &base64::engine::general_purpose::STANDARD;
    let base64_url = &base64::engine::general_purpose::URL_SAFE_NO_PAD;
    match base64.decode(&joined).or_else(|_| base64_url.decode(joined.trim_end_matches('='))) {
        Ok(key) if key.len() >= IDENTITY_KEY_BYTES_MIN => key,
        _ => text.as_bytes().to_vec(),
    }
}

fn read_organisation_header(mut table: Section<'_, '_>) -> Option<OrganisationHeader> {
    let name = table.required("name", "a header name").and_then(|item| item.header_name());
    let from = read_trusted_peers(&mut table);
    table.finish();
    Some(OrganisationHeader { name: name?, from })
}

fn read_jwt(mut table: Section<'_, '_>) -> Option<Jwt> {
    let file = table.optional("jwks_file");
    let url = table.optional("jwks_url");
    let refresh_item = table.optional("jwks_refresh_seconds");
    let refresh = refresh_item
        .as_ref()
        .and_then(|item| item.duration(10.0..=86_400.0))
        .unwrap_or(Duration::from_secs(300));
    let jwks = match (file, url) {
        (Some(_), Some(url)) => {
            url.error("give jwks_file or jwks_url, not both");
            None
        }
        (None, None) => {
            table.error("", "needs jwks_file or jwks_url, the keys that sign the tokens");
            None
        }
        (Some(file), None) => {
            if let Some(item) = &refresh_item {
                item.error("belongs to jwks_url; a file is read again when it changes");
            }
            file.jwks_file().map(JwksSource::File)
        }
        (None, Some(url)) => url.jwks_url().map(|url| JwksSource::Url { url, refresh }),
    };
    let issuer = table.optional("issuer").and_then(|item| item.text());
    let audience = table.optional("audience").and_then(|item| item.text());
    if issuer.is_none() && audience.is_none() {
        table.warn("no issuer and no audience: any token that these keys signed is accepted");
    }
    let account_claim =
        table.optional("account_claim").map_or_else(|| Some("sub".into()), |item| item.text());
    let organisation_claim = table.optional("organisation_claim").and_then(|item| item.text());
    table.finish();
    Some(Jwt { jwks: jwks?, issuer, audience, account_claim: account_claim?, organisation_claim })
}

/// The files are read here, so that what is wrong with them is reported with the rest.
fn read_networks(root: &mut Section<'_, '_>) -> Option<Arc<NetworkStore>> {
    let Some(item) = root.optional("network") else { return Some(Arc::default()) };
    let mut table = item.table()?;
    let mut items = BTreeMap::new();
    let mut path = |key| {
        let item = table.optional(key)?;
        let path = item.path();
        items.insert(key, item);
        path
    };
    let files = NetworkFiles {
        asn_database: path("asn_database"),
        tor_exits: path("tor_exits"),
        proxies: path("proxies"),
        vpns: path("vpns"),
    };
    table.finish();
    match NetworkStore::load(files) {
        Ok(store) => Some(Arc::new(store)),
        Err(errors) => {
            for (setting, error) in errors {
                if let Some(item) = items.get(setting) {
                    item.error(error.to_string());
                }
            }
            None
        }
    }
}

/// The policy is read here, so that what is wrong with it is reported with the rest.
fn read_policies(root: &mut Section<'_, '_>) -> Option<Arc<PolicyStore>> {
    let Some(item) = root.optional("policy") else { return Some(Arc::default()) };
    match PolicyStore::load(Some(item.path()?)) {
        Ok(store) => Some(Arc::new(store)),
        Err(faults) => {
            faults.lines().for_each(|fault| item.error(fault.to_owned()));
            None
        }
    }
}

fn read_record(root: &mut Section<'_, '_>) -> Option<Record> {
    let path_item = root.optional("record");
    let text_item = root.optional("record_text");
    if let (Some(item), None) = (&text_item, &path_item) {
        item.error("needs record, the file to write to");
    }
    let text = text_item.and_then(|item| item.boolean()).unwrap_or(false);
    path_item.and_then(|item| item.path()).map(|path| Record { path, text })
}

fn read_limits(root: &mut Section<'_, '_>) -> Option<Limits> {
    let default = Limits::default();
    let Some(item) = root.optional("limits") else { return Some(default) };
    let mut table = item.table()?;
    // Every field is written out: a new bound does not compile until it can be set here.
    let limits = Limits {
        connections_max: table.integer("connections_max", default.connections_max, 1..=10_000_000),
        handshake_timeout: table.seconds("handshake_timeout_seconds", default.handshake_timeout),
        header_timeout: table.seconds("header_timeout_seconds", default.header_timeout),
        idle_timeout: table.seconds("idle_timeout_seconds", default.idle_timeout),
        body_idle_timeout: table.seconds("body_idle_timeout_seconds", default.body_idle_timeout),
        body_timeout: table.seconds("body_timeout_seconds", default.body_timeout),
        write_timeout: table.seconds("write_timeout_seconds", default.write_timeout),
        // The upper bounds of both are those of the HTTP/1 parser below.
        header_bytes_max: table.integer("header_bytes_max", default.header_bytes_max, 1024..=MIB),
        header_fields_max: table.integer("header_fields_max", default.header_fields_max, 8..=256),
        body_bytes_max: table.integer("body_bytes_max", default.body_bytes_max, 1024..=GIB),
        decoded_body_bytes_max: table.integer(
            "decoded_body_bytes_max",
            default.decoded_body_bytes_max,
            1024..=4 * GIB,
        ),
        bodies_bytes_max: table.integer(
            "bodies_bytes_max",
            default.bodies_bytes_max,
            1024..=1024 * GIB,
        ),
        drain_bytes_max: table.integer("drain_bytes_max", default.drain_bytes_max, 1..=GIB),
        drain_first_bytes_max: table.integer(
            "drain_first_bytes_max",
            default.drain_first_bytes_max,
            0..=MIB,
        ),
        drain_timeout: table.seconds("drain_timeout_seconds", default.drain_timeout),
        h2_streams_max: table.integer("h2_streams_max", default.h2_streams_max, 1..=65_536),
        exchanges_kept: table.integer("exchanges_kept", default.exchanges_kept, 1..=1_000_000),
        record_queue_max: table.integer(
            "record_queue_max",
            default.record_queue_max,
            1..=1_000_000,
        ),
    };
    if limits.decoded_body_bytes_max < limits.body_bytes_max {
        table.error(
            "decoded_body_bytes_max",
            format!(
                "{} is below body_bytes_max ({}): a body that is not compressed would be refused",
                limits.decoded_body_bytes_max, limits.body_bytes_max
            ),
        );
    }
    let largest = limits.body_bytes_max + 2 * limits.decoded_body_bytes_max;
    if limits.bodies_bytes_max < largest {
        table.error(
            "bodies_bytes_max",
            format!(
                "is below body_bytes_max + 2 x decoded_body_bytes_max ({largest}): the largest \
                 body, what it decodes to and its texts would not fit"
            ),
        );
    }
    if limits.body_idle_timeout > limits.body_timeout {
        table.error("body_idle_timeout_seconds", "is above body_timeout_seconds");
    }
    table.finish();
    Some(limits)
}

const MIB: usize = 1024 * 1024;
const GIB: usize = 1024 * MIB;

fn read_server(root: &mut Section<'_, '_>) -> Server {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut server = Server {
        threads,
        drain: Duration::from_secs(30),
        upgrade_socket: PathBuf::from("/run/stillgate/upgrade.sock"),
        pid_file: None,
    };
    let Some(mut table) = root.optional("server").and_then(|item| item.table()) else {
        return server;
    };
    server.threads = table.integer("threads", threads, 1..=1024);
    if let Some(drain) =
        table.optional("drain_seconds").and_then(|item| item.duration(0.0..=SECONDS_MAX))
    {
        server.drain = drain;
    }
    if let Some(path) = table.optional("upgrade_socket").and_then(|item| item.path()) {
        server.upgrade_socket = path;
    }
    server.pid_file = table.optional("pid_file").and_then(|item| item.path());
    table.finish();
    server
}

fn read_log(root: &mut Section<'_, '_>) -> Log {
    let mut log = Log { level: "info".into(), json: false };
    let Some(mut table) = root.optional("log").and_then(|item| item.table()) else { return log };
    if let Some(level) = table.optional("level").and_then(|item| item.log_filter()) {
        log.level = level;
    }
    if let Some(json) =
        table.optional("format").and_then(|item| item.choice(&[("text", false), ("json", true)]))
    {
        log.json = json;
    }
    table.finish();
    log
}

// The reader: sections know which keys were asked for, items know where they stand.

/// Longest duration that any setting may have: a week.
const SECONDS_MAX: f64 = 604_800.0;

/// Errors and warnings gathered while a file is read.
struct Report<'a> {
    path: &'a Path,
    line_starts: Vec<usize>,
    environment: Environment<'a>,
    errors: RefCell<Vec<ConfigError>>,
    warnings: RefCell<Vec<ConfigError>>,
}

impl<'a> Report<'a> {
    fn new(text: &str, path: &'a Path, environment: Environment<'a>) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        Self {
            path,
            line_starts,
            environment,
            errors: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at).max(1)
    }

    fn entry(&self, at: usize, key: &str, message: String) -> ConfigError {
        let line = Some(self.line(at));
        ConfigError { file: self.path.to_owned(), line, key: key.to_owned(), message }
    }

    fn error(&self, at: usize, key: &str, message: impl Into<String>) {
        self.errors.borrow_mut().push(self.entry(at, key, message.into()));
    }

    fn warn(&self, at: usize, key: &str, message: impl Into<String>) {
        self.warnings.borrow_mut().push(self.entry(at, key, message.into()));
    }

    fn has_errors(&self) -> bool {
        !self.errors.borrow().is_empty()
    }

    fn into_errors(self) -> Vec<ConfigError> {
        sorted(self.errors.into_inner())
    }

    fn into_warnings(self) -> Vec<ConfigError> {
        sorted(self.warnings.into_inner())
    }
}

fn sorted(mut entries: Vec<ConfigError>) -> Vec<ConfigError> {
    entries.sort_by_key(|entry| entry.line);
    entries
}

/// A table being read. It remembers which keys were asked for; the others are unknown.
struct Section<'r, 'd> {
    report: &'r Report<'r>,
    entries: BTreeMap<&'d str, (usize, &'d Spanned<DeValue<'d>>)>,
    at: usize,
    prefix: String,
    known: Vec<&'static str>,
}

impl<'r, 'd> Section<'r, 'd> {
    fn new(report: &'r Report<'r>, table: &'d DeTable<'d>, at: usize, prefix: String) -> Self {
        let entries = table
            .iter()
            .map(|(key, value)| (key.get_ref().as_ref(), (key.span().start, value)))
            .collect();
        Self { report, entries, at, prefix, known: Vec::new() }
    }

    fn key(&self, key: &str) -> String {
        match (self.prefix.as_str(), key) {
            ("", key) => key.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, key) => format!("{prefix}.{key}"),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    fn optional(&mut self, key: &'static str) -> Option<Item<'r, 'd>> {
        self.known.push(key);
        let (at, value) = *self.entries.get(key)?;
        Some(Item {
            report: self.report,
            value: value.get_ref(),
            at,
            value_at: value.span().start,
            key: self.key(key),
        })
    }

    fn required(&mut self, key: &'static str, example: &str) -> Option<Item<'r, 'd>> {
        let item = self.optional(key);
        if item.is_none() {
            self.error(key, format!("is missing; {example}"));
        }
        item
    }

    /// All entries of a table whose keys are names.
    fn entries(&self) -> Vec<(String, Item<'r, 'd>)> {
        let item = |name: &str, at, value: &'d Spanned<DeValue<'d>>| Item {
            report: self.report,
            value: value.get_ref(),
            at,
            value_at: value.span().start,
            key: self.key(name),
        };
        self.entries
            .iter()
            .map(|(name, (at, value))| ((*name).to_owned(), item(name, *at, value)))
            .collect()
    }

    fn seconds(&mut self, key: &'static str, default: Duration) -> Duration {
        self.optional(key).and_then(|item| item.duration(0.001..=SECONDS_MAX)).unwrap_or(default)
    }

    fn integer<N>(&mut self, key: &'static str, default: N, range: RangeInclusive<N>) -> N
    where
        N: Copy + TryFrom<i128> + PartialOrd + fmt::Display,
    {
        self.optional(key).and_then(|item| item.integer(range)).unwrap_or(default)
    }

    /// A secret from a file or from the environment, exactly one of the two.
    fn secret(
        &mut self,
        file_key: &'static str,
        env_key: &'static str,
        how: &str,
    ) -> Option<(Item<'r, 'd>, Vec<u8>)> {
        match (self.optional(file_key), self.optional(env_key)) {
            (None, None) => {
                self.error(file_key, format!("is missing; {how}"));
                None
            }
            (Some(_), Some(item)) => {
                item.error(format!("give {file_key} or {env_key}, not both"));
                None
            }
            (Some(item), None) => {
                let path = item.path()?;
                match read_bounded(&path) {
                    Ok(bytes) => {
                        item.check_permissions(&path);
                        Some((item, bytes))
                    }
                    Err(error) => {
                        item.error(format!("{} cannot be read: {error}; {how}", path.display()));
                        None
                    }
                }
            }
            (None, Some(item)) => {
                let name = item.text()?;
                match (self.report.environment)(&name) {
                    Some(value) => Some((item, value.into_bytes())),
                    None => {
                        item.error(format!("environment variable {name} is not set; {how}"));
                        None
                    }
                }
            }
        }
    }

    fn error(&self, key: &str, message: impl Into<String>) {
        let at = self.entries.get(key).map_or(self.at, |(at, _)| *at);
        self.report.error(at, &self.key(key), message);
    }

    fn warn(&self, message: &str) {
        self.report.warn(self.at, &self.prefix, message);
    }

    /// Reports every key that was not asked for.
    fn finish(self) {
        for (name, (at, _)) in &self.entries {
            if !self.known.contains(name) {
                let hint = suggest(name, &self.known);
                self.report.error(*at, &self.key(name), format!("unknown key{hint}"));
            }
        }
    }
}

/// A value, and where it stands.
struct Item<'r, 'd> {
    report: &'r Report<'r>,
    value: &'d DeValue<'d>,
    at: usize,
    value_at: usize,
    key: String,
}

impl<'r, 'd> Item<'r, 'd> {
    fn line(&self) -> usize {
        self.report.line(self.at)
    }

    fn error(&self, message: impl Into<String>) {
        self.report.error(self.at, &self.key, message);
    }

    /// Reports that the value is of another type or shape than `wanted`.
    fn expected<T>(&self, wanted: &str) -> Option<T> {
        self.error(format!("is {}, expected {wanted}", article(self.value.type_str())));
        None
    }

    /// Turns a check's outcome into a value or a report.
    fn checked<T>(&self, outcome: Result<T, String>) -> Option<T> {
        outcome.map_err(|wrong| self.error(wrong)).ok()
    }

    fn string(&self) -> Option<String> {
        match self.value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => self.expected("a string"),
        }
    }

    fn text(&self) -> Option<String> {
        let text = self.string()?;
        if text.trim().is_empty() {
            self.error("is empty");
            return None;
        }
        Some(text)
    }

    fn boolean(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.expected("true or false"))
    }

    fn integer<N>(&self, range: RangeInclusive<N>) -> Option<N>
    where
        N: Copy + TryFrom<i128> + PartialOrd + fmt::Display,
    {
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        let Some(integer) = self.value.as_integer() else { return self.expected(&wanted) };
        let value = i128::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .and_then(|value| N::try_from(value).ok())
            .filter(|value| range.contains(value));
        if value.is_none() {
            self.error(format!("{integer} is out of range, expected {wanted}"));
        }
        value
    }

    fn duration(&self, range: RangeInclusive<f64>) -> Option<Duration> {
        let wanted = format!("seconds from {} to {}", range.start(), range.end());
        let seconds: Option<f64> = match self.value {
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
                .ok()
                .and_then(|whole| u32::try_from(whole).ok())
                .map(f64::from),
            DeValue::Float(float) => float.as_str().parse().ok(),
            _ => return self.expected(&wanted),
        };
        match seconds.filter(|seconds| range.contains(seconds)) {
            Some(seconds) => Some(Duration::from_secs_f64(seconds)),
            None => {
                self.error(format!("is out of range, expected {wanted}"));
                None
            }
        }
    }

    fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        let found = choices.iter().find(|(name, _)| *name == text);
        if found.is_none() {
            let names: Vec<String> =
                choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            self.error(format!("\"{text}\" is not one of {}", names.join(", ")));
        }
        found.map(|(_, value)| *value)
    }

    fn path(&self) -> Option<PathBuf> {
        let text = self.text()?;
        let base = self.report.path.parent().unwrap_or(Path::new(""));
        Some(base.join(text))
    }

    fn list(&self) -> Vec<Item<'r, 'd>> {
        let Some(array) = self.value.as_array() else {
            let _: Option<()> = self.expected("a list");
            return Vec::new();
        };
        array.iter().enumerate().map(|(index, value)| self.element(index, value)).collect()
    }

    fn non_empty_list(&self, example: &str) -> Vec<Item<'r, 'd>> {
        if self.value.as_array().is_some_and(|array| array.is_empty()) {
            self.error(format!("is empty; {example}"));
        }
        self.list()
    }

    fn element(&self, index: usize, value: &'d Spanned<DeValue<'d>>) -> Item<'r, 'd> {
        Item {
            report: self.report,
            value: value.get_ref(),
            at: value.span().start,
            value_at: value.span().start,
            key: format!("{}[{index}]", self.key),
        }
    }

    fn tables(&self, example: &str) -> Vec<Section<'r, 'd>> {
        if self.value.is_table() {
            self.error(format!("is one table, expected a list: write [[{}]]", self.key));
            return Vec::new();
        }
        self.non_empty_list(example).iter().filter_map(Item::table).collect()
    }

    fn table(&self) -> Option<Section<'r, 'd>> {
        match self.value.as_table() {
            Some(table) => Some(Section::new(self.report, table, self.value_at, self.key.clone())),
            None => self.expected("a table"),
        }
    }

    fn socket_address(&self) -> Option<SocketAddr> {
        let text = self.string()?;
        self.checked(
            text.parse().map_err(|_| format!("\"{text}\" is not IP:PORT, such as 0.0.0.0:8443")),
        )
    }

    fn networks(&self, example: &str) -> Vec<IpNet> {
        self.non_empty_list(example)
            .iter()
            .filter_map(|item| {
                let text = item.string()?;
                item.checked(parse_network(&text))
            })
            .collect()
    }

    fn header_name(&self) -> Option<String> {
        let text = self.string()?;
        self.checked(
            HeaderName::try_from(text.to_ascii_lowercase())
                .map(|name| name.as_str().to_owned())
                .map_err(|_| format!("\"{text}\" is not a header name")),
        )
    }

    fn host_pattern(&self) -> Option<String> {
        let text = self.string()?.to_ascii_lowercase();
        let name = text.strip_prefix("*.").unwrap_or(&text);
        if is_host(name) {
            return Some(text);
        }
        self.error(format!("\"{text}\" is not a host name without port, nor *.example.com"));
        None
    }

    fn server_name(&self) -> Option<String> {
        let text = self.string()?;
        self.checked(
            ServerName::try_from(text.as_str())
                .map(|_| text.clone())
                .map_err(|_| format!("\"{text}\" is not a host name or an IP address")),
        )
    }

    fn url_path(&self) -> Option<String> {
        let text = self.string()?;
        let plain = text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#'));
        if text.starts_with('/') && plain {
            return Some(text);
        }
        self.error(format!("\"{text}\" is not a path: it starts with / and has no query"));
        None
    }

    fn upstream_address(&self) -> Option<String> {
        let text = self.string()?;
        self.checked(parse_upstream_address(&text))
    }

    fn ca_bundle(&self) -> Option<PathBuf> {
        let path = self.path()?;
        self.checked(tls::load_roots(&path).map(|_| path).map_err(|error| error.to_string()))
    }

    fn jwks_file(&self) -> Option<PathBuf> {
        let path = self.path()?;
        let checked = read_bounded(&path)
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))
            .and_then(|bytes| {
                KeySet::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))
            });
        self.checked(checked.map(|_| path))
    }

    fn jwks_url(&self) -> Option<Url> {
        let wrong = "is not an address such as https://issuer.example/.well-known/jwks.json";
        let url: Url = self.checked(self.text()?.parse().map_err(|_| wrong.to_owned()))?;
        if !url.is_tls() && !url.is_loopback() {
            self.report.warn(
                self.at,
                &self.key,
                "plain http: whoever can change these bytes on the way can sign tokens",
            );
        }
        Some(url)
    }

    fn log_filter(&self) -> Option<String> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let text = self.text()?;
        for directive in text.split(',') {
            let level = directive.rsplit('=').next().unwrap_or(directive).trim();
            if !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
                self.error(format!(
                    "\"{level}\" is not a level{}; levels are comma-separated, as in \
                     \"warn,gateway=debug\"",
                    suggest(level, &LEVELS)
                ));
                return None;
            }
        }
        Some(text)
    }

    /// A secret that every user of the machine can change is not one; one that they can read is
    /// only warned about, since that is how container platforms mount secrets by default.
    fn check_permissions(&self, path: &Path) {
        let Some(mode) = std::fs::metadata(path).ok().as_ref().map(permission_bits) else { return };
        let shown = path.display();
        if mode & 0o002 != 0 {
            self.error(format!(
                "{shown} (mode {mode:03o}) can be written by every user: chmod 600"
            ));
        } else if mode & 0o004 != 0 {
            let message =
                format!("{shown} (mode {mode:03o}) can be read by every user: chmod 600 or 640");
            self.report.warn(self.at, &self.key, message);
        }
    }
}

fn permission_bits(metadata: &Metadata) -> u32 {
    metadata.permissions().mode() & 0o777
}

fn article(type_name: &str) -> String {
    let vowel = type_name.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {type_name}", if vowel { "an" } else { "a" })
}

/// Names become metric labels and policy keys, so they stay simple.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let simple = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if simple && (1..=64).contains(&name.len()) {
        return Ok(());
    }
    Err(format!("\"{name}\" is not a name: 1 to 64 letters, digits, '-', '_' and '.'"))
}

fn parse_network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let network: IpNet = text
        .parse()
        .map_err(|_| format!("\"{text}\" is not a network such as 10.0.0.0/8 or 2001:db8::/32"))?;
    let truncated = network.trunc();
    if truncated != network {
        // Whether one host or the whole network is meant is not ours to guess.
        return Err(format!("\"{text}\" has bits after its prefix; write {truncated}"));
    }
    Ok(network)
}

fn parse_upstream_address(text: &str) -> Result<String, String> {
    let wrong = |why: &str| Err(format!("\"{text}\" {why}; write host:port, such as vllm-1:8000"));
    if text.contains("://") {
        return wrong("has a scheme (TLS is switched on by tls = true)");
    }
    if text.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
        return Ok(text.to_owned());
    }
    let Some((host, port)) = text.rsplit_once(':') else { return wrong("has no port") };
    if !port.parse::<u16>().is_ok_and(|port| port != 0) {
        return wrong("has no valid port");
    }
    if !is_host(host) {
        return wrong("has no valid host");
    }
    Ok(text.to_ascii_lowercase())
}

/// A DNS name or an IPv4 address, lower case or not (RFC 1123, section 2.1; underscores occur in
/// container networks).
fn is_host(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (1..=253).contains(&name.len()) && name.split('.').all(label)
}

/// `; did you mean …?` where something is near, and what is allowed.
fn suggest(wrong: &str, allowed: &[&str]) -> String {
    let nearest = allowed
        .iter()
        .map(|known| (edit_distance(wrong, known), *known))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 3);
    let listed = allowed.join(", ");
    match (nearest, allowed) {
        (_, []) => String::new(),
        (Some((_, known)), _) => format!("; did you mean \"{known}\"? (allowed: {listed})"),
        (None, _) => format!("; allowed: {listed}"),
    }
}

/// Levenshtein distance, by rows.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Arbitrary bytes as a configuration: must not panic, and must not be accepted without a listener.
#[doc(hidden)]
pub fn fuzz_config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(config) = parse(&text, Path::new("fuzz.toml")) {
        assert!(!config.listeners.is_empty());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::config::Role;

    /// A directory that is gone when the test ends.
    pub(crate) struct TestDirectory(PathBuf);

    impl TestDirectory {
        pub(crate) fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("stillgate-test-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }

        /// Writes a file that only its owner may read.
        pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            self.set_mode(name, 0o600);
            path
        }

        pub(crate) fn set_mode(&self, name: &str, mode: u32) {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(self.0.join(name), permissions).unwrap();
        }

        /// A certificate for these names and its key, as `NAME.pem` and `NAME.key`.
        pub(crate) fn certificate(&self, name: &str, dns_names: &[&str]) -> Certificate {
            let names: Vec<String> = dns_names.iter().map(|name| (*name).to_owned()).collect();
            let made = rcgen::generate_simple_self_signed(names).unwrap();
            Certificate {
                chain: self.write(&format!("{name}.pem"), made.cert.pem()),
                key: self.write(&format!("{name}.key"), made.signing_key.serialize_pem()),
            }
        }

        /// The smallest configuration with its key and token, and `more` after it.
        pub(crate) fn minimal_config(&self, name: &str, more: &str) -> PathBuf {
            self.secrets();
            self.write(name, format!("{MINIMAL}{more}"))
        }

        fn secrets(&self) {
            let key: String = (0..32).map(|byte| format!("{byte:02x}")).collect();
            self.write("account.key", key + "\n");
            self.write("admin.token", "0123456789abcdefghij\n");
        }
    }

    impl Drop for TestDirectory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    pub(super) const MINIMAL: &str = r#"
[[listener]]
address = "127.0.0.1:8080"
[[route]]
name = "all"
upstream = "vllm"
[upstream.vllm]
addresses = ["127.0.0.1:1"]
[identity]
key_file = "account.key"
[admin]
token_file = "admin.token"
"#;

    fn environment(name: &str) -> Option<String> {
        match name {
            "KEY" => Some("00112233445566778899aabbccddeeff".repeat(2)),
            "TOKEN" => Some("0123456789abcdef".repeat(2)),
            _ => None,
        }
    }

    pub(super) fn parse_in(
        directory: &TestDirectory,
        text: &str,
    ) -> Result<Config, Vec<ConfigError>> {
        parse_with(text, &directory.path().join("c.toml"), &environment)
    }

    /// The errors of a text without the file's name, `LINE: KEY: MESSAGE`.
    pub(super) fn errors_in(directory: &TestDirectory, text: &str) -> Vec<String> {
        let prefix = format!("{}:", directory.path().join("c.toml").display());
        match parse_in(directory, text) {
            Ok(_) => Vec::new(),
            Err(errors) => errors
                .iter()
                .map(|error| error.to_string().strip_prefix(&prefix).unwrap().to_owned())
                .collect(),
        }
    }

    pub(super) fn ready() -> TestDirectory {
        let directory = TestDirectory::new();
        directory.secrets();
        directory.certificate("a", &["a.example"]);
        directory.certificate("b", &["b.example"]);
        directory.write("jwks.json", JWKS);
        directory
    }

    const JWKS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519",
        "x":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"}]}"#;

    #[test]
    fn the_smallest_file_gets_every_default() {
        let config = parse_in(&ready(), MINIMAL).unwrap();
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.log, Log { level: "info".into(), json: false });
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        assert_eq!(config.admin.address, "127.0.0.1:9090".parse().unwrap());
        let tokens = &config.admin.tokens;
        assert_eq!((tokens.len(), tokens[0].secret.expose()), (1, "0123456789abcdefghij"));
        assert_eq!((tokens[0].name.as_str(), tokens[0].role), ("admin", Role::Admin));
        assert_eq!(config.identity.key.as_ref(), (0..32).collect::<Vec<u8>>());
        assert_eq!(config.routes[0].path, "/");
        let upstream = &config.upstreams[config.routes[0].upstream];
        assert_eq!(upstream.first_byte_timeout, Duration::from_secs(600));
        assert_eq!(upstream.protocol, UpstreamProtocol::Auto);
        assert!(config.listeners[0].tls.is_none() && config.record.is_none());
    }

    #[test]
    fn every_setting_arrives() {
        let directory = ready();
        let text = r#"
record = "t/trace.jsonl"
record_text = true
[[listener]]
address = "[::1]:8443"
certificates = [{ chain = "a.pem", key = "a.key" }, { chain = "b.pem", key = "b.key" }]
client_ca = "a.pem"
client_certificate = "optional"
proxy_protocol_from = ["10.0.0.0/8", "2001:db8::7"]
fingerprint_headers = { from = ["10.0.0.0/8"], ja3 = "X-JA3" }
[[route]]
name = "r"
host = "*.Example.com"
path = "/v1"
upstream = "up"
[upstream.up]
addresses = ["VLLM:8000", "[2001:db8::1]:8000"]
tls = true
protocol = "h2"
server_name = "vllm.internal"
preserve_host = true
ca = "b.pem"
connect_timeout_seconds = 0.25
first_byte_timeout_seconds = 1
idle_timeout_seconds = 2
retries = 0
health = { interval_seconds = 1.5 }
[identity]
key_env = "KEY"
client_certificate = true
organisation_header = { name = "X-Org", from = ["10.0.0.1"] }
[identity.jwt]
jwks_file = "jwks.json"
issuer = "https://i"
audience = "a"
account_claim = "uid"
organisation_claim = "org"
[admin]
address = "0.0.0.0:9090"
token_env = "TOKEN"
[limits]
header_bytes_max = 32_768
header_timeout_seconds = 0.5
decoded_body_bytes_max = 0x1000_0000
[server]
threads = 3
drain_seconds = 0
upgrade_socket = "u.sock"
pid_file = "/run/p"
[log]
level = "warn,gateway=debug"
format = "json"
"#;
        let config = parse_in(&directory, text).unwrap();
        let base = directory.path();
        let record = config.record.unwrap();
        assert_eq!((record.path, record.text), (base.join("t/trace.jsonl"), true));
        let listener = &config.listeners[0];
        let tls = listener.tls.as_ref().unwrap();
        assert_eq!(tls.certificates[1].key, base.join("b.key"));
        assert_eq!(tls.client_ca, Some(base.join("a.pem")));
        assert!(!tls.client_certificate_required);
        let networks: Vec<String> =
            listener.proxy_protocol_from.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.0.0.0/8", "2001:db8::7/128"]);
        let headers = listener.fingerprint_headers.as_ref().unwrap();
        assert_eq!((headers.ja3.as_deref(), headers.ja4.as_deref()), (Some("x-ja3"), None));
        assert_eq!(config.routes[0].host.as_deref(), Some("*.example.com"));
        let upstream = &config.upstreams[0];
        assert_eq!(upstream.addresses, ["vllm:8000", "[2001:db8::1]:8000"]);
        assert_eq!(upstream.connect_timeout, Duration::from_millis(250));
        assert_eq!((upstream.retries, upstream.protocol), (0, UpstreamProtocol::Http2));
        let health = upstream.health.as_ref().unwrap();
        assert_eq!((health.path.clone(), health.interval), (None, Duration::from_millis(1500)));
        assert_eq!(config.identity.key.len(), 32);
        assert_eq!(config.identity.organisation_header.as_ref().unwrap().name, "x-org");
        let jwt = config.identity.jwt.as_ref().unwrap();
        assert_eq!((jwt.account_claim.as_str(), jwt.audience.as_deref()), ("uid", Some("a")));
        assert_eq!(config.limits.header_bytes_max, 32_768);
        assert_eq!(config.limits.header_timeout, Duration::from_millis(500));
        assert_eq!(config.limits.decoded_body_bytes_max, 1 << 28);
        assert_eq!((config.server.threads, config.server.drain), (3, Duration::ZERO));
        assert_eq!(config.server.upgrade_socket, base.join("u.sock"));
        assert_eq!(config.server.pid_file, Some("/run/p".into()));
        assert!(config.log.json);
    }

    #[test]
    fn a_ca_without_a_mode_is_enforced() {
        let more =
            "certificates = [{ chain = \"a.pem\", key = \"a.key\" }]\nclient_ca = \"a.pem\"\n";
        let text = MINIMAL.replace("[[route]]", &format!("{more}[[route]]"));
        let config = parse_in(&ready(), &text).unwrap();
        assert!(config.listeners[0].tls.as_ref().unwrap().client_certificate_required);
    }

    #[test]
    fn all_errors_come_together_with_line_and_key() {
        let text = r#"recrod = "x"
[[listener]]
address = "localhost:80"
[[listener]]
address = "127.0.0.1:81"
proxy_protocol_from = ["10.0.0.1/8", 7]
[[route]]
name = "r"
upstream = "vlm"
[upstream.vllm]
addresses = ["http://a:1", "b"]
protocol = "h3"
[identity]
[limits]
body_bytes_max = 0
[server]
threads = "two"
"#;
        let expected = [
            r#"1: admin: is missing; the admin endpoint needs a token: give token_file = "admin.token" (make one: openssl rand -hex 32 > admin.token; chmod 600 admin.token) or token_env = "NAME""#,
            r#"1: recrod: unknown key; did you mean "record"? (allowed: listener, upstream, route, identity, network, policy, admin, peer, ioc, store, data_dir, node, keep_days, webhook, redis, sensor, record, record_text, limits, server, log)"#,
            r#"3: listener[0].address: "localhost:80" is not IP:PORT, such as 0.0.0.0:8443"#,
            r#"6: listener[1].proxy_protocol_from[0]: "10.0.0.1/8" has bits after its prefix; write 10.0.0.0/8"#,
            "6: listener[1].proxy_protocol_from[1]: is an integer, expected a string",
            r#"9: route[0].upstream: no upstream "vlm"; did you mean "vllm"? (allowed: vllm)"#,
            r#"11: upstream.vllm.addresses[0]: "http://a:1" has a scheme (TLS is switched on by tls = true); write host:port, such as vllm-1:8000"#,
            r#"11: upstream.vllm.addresses[1]: "b" has no port; write host:port, such as vllm-1:8000"#,
            r#"12: upstream.vllm.protocol: "h3" is not one of "auto", "h1", "h2""#,
            r#"13: identity.key_file: is missing; give key_file = "account.key" (make one: openssl rand -hex 32 > account.key; chmod 600 account.key) or key_env = "NAME""#,
            "15: limits.body_bytes_max: 0 is out of range, expected a whole number from 1024 to 1073741824",
            "17: server.threads: is a string, expected a whole number from 1 to 1024",
        ];
        assert_eq!(errors_in(&ready(), text), expected);
    }

    #[test]
    fn each_mistake_is_named() {
        let directory = ready();
        directory.write("short.key", "aabbcc");
        directory.write("flat.key", "ab".repeat(32));
        directory.write("short.token", "tooshort");
        directory.write("spaced.token", "a token with spaces in it");
        directory.write("open.key", "00112233445566778899aabbccddeeff".repeat(2));
        directory.set_mode("open.key", 0o606);
        directory.write("empty.pem", "");
        directory.write("oct.json", r#"{"keys":[{"kty":"oct","k":"AA"}]}"#);
        let tls = |chain: &str, key: &str, more: &str| {
            let pair = format!("certificates = [{{ chain = \"{chain}\", key = \"{key}\" }}]\n");
            ("[[route]]", format!("{pair}{more}[[route]]"))
        };
        let listener = |more: &str| ("[[route]]", format!("{more}\n[[route]]"));
        let upstream = |more: &str| ("[identity]", format!("{more}\n[identity]"));
        let identity = |more: &str| ("[admin]", format!("{more}\n[admin]"));
        let end = |more: &str| {
            ("token_file = \"admin.token\"\n", format!("token_file = \"admin.token\"\n{more}\n"))
        };
        let key = |line: &str| ("key_file = \"account.key\"", line.to_owned());
        let token = |line: &str| ("token_file = \"admin.token\"", line.to_owned());
        let redis = |lines: &str| {
            let table = format!("store = \"redis\"\n[redis]\n{lines}\n[[listener]]");
            ("[[listener]]", table)
        };
        let cases: Vec<((&str, String), &str, &str)> = vec![
            (tls("a.pem", "b.key", ""), "chain", "is not the certificate of"),
            (tls("a.pem", "a.pem", ""), "key", "holds no private key"),
            (tls("empty.pem", "a.key", ""), "chain", "holds no certificate"),
            (tls("gone.pem", "a.key", ""), "chain", "cannot be read"),
            (tls("a.pem", "gone.key", ""), "key", "cannot be read"),
            (tls("a.pem", "open.key", ""), "key", "can be written by every user"),
            (
                tls("a.pem", "a.key", "client_certificate = \"required\"\n"),
                "client_certificate",
                "needs client_ca",
            ),
            (tls("a.pem", "a.key", "client_ca = \"a.key\"\n"), "client_ca", "holds no certificate"),
            (
                tls("a.pem", "a.key", "client_ca = \"a.pem\"\nclient_certificate = \"maybe\"\n"),
                "client_certificate",
                "is not one of",
            ),
            (listener("certificates = []"), "certificates", "is empty"),
            (
                listener("certificates = [{ chain = \"a.pem\" }]"),
                "certificates[0].key",
                "is missing",
            ),
            (listener("client_ca = \"a.pem\""), "client_ca", "needs certificates"),
            (listener("proxy_protocol_from = []"), "proxy_protocol_from", "is empty"),
            (
                listener("fingerprint_headers = { from = [\"10.0.0.0/8\"] }"),
                "fingerprint_headers",
                "names no header",
            ),
            (listener("fingerprint_headers = { ja4 = \"x\" }"), "from", "is missing"),
            (
                listener("fingerprint_headers = { from = [], ja4 = \"a b\" }"),
                "ja4",
                "is not a header name",
            ),
            (
                listener("[[listener]]\naddress = \"127.0.0.1:8080\""),
                "listener[1].address",
                "already listened on (line 3)",
            ),
            (
                listener("[[route]]\nname = \"all\"\nupstream = \"vllm\"\npath = \"/x\""),
                "route[1].name",
                "already the name of the route at line 5",
            ),
            (
                listener("[[route]]\nname = \"too\"\nupstream = \"vllm\""),
                "route[1]",
                "same host and path as route \"too\"",
            ),
            (("name = \"all\"", "name = \"a b\"".into()), "route[0].name", "is not a name"),
            (
                ("name = \"all\"", "name = \"all\"\nhost = \"a.example:80\"".into()),
                "host",
                "without port",
            ),
            (("name = \"all\"", "name = \"all\"\npath = \"v1?x\"".into()), "path", "is not a path"),
            (upstream("tls = 1"), "upstream.vllm.tls", "expected true or false"),
            (upstream("ca = \"a.pem\""), "ca", "needs tls = true"),
            (upstream("retries = -1"), "retries", "from 0 to 10"),
            (upstream("connect_timeout_seconds = 0"), "connect_timeout_seconds", "out of range"),
            (upstream("idle_timeout_seconds = inf"), "idle_timeout_seconds", "out of range"),
            (upstream("idle_timeout_seconds = nan"), "idle_timeout_seconds", "out of range"),
            (upstream("server_name = \"a b\""), "server_name", "is not a host name"),
            (upstream("health = { path = \"health\" }"), "health.path", "starts with /"),
            (("\"127.0.0.1:1\"", "\"a:1\", \"A:1\"".into()), "addresses[1]", "listed twice"),
            (("\"127.0.0.1:1\"", "\"a:0\"".into()), "addresses[0]", "no valid port"),
            (("\"127.0.0.1:1\"", "\"2001:db8::1:80\"".into()), "addresses[0]", "no valid host"),
            (("\"127.0.0.1:1\"", String::new()), "upstream.vllm.addresses", "is empty"),
            (
                key("key_file = \"short.key\""),
                "identity.key_file",
                "has 3 bytes, at least 32 are needed",
            ),
            (key("key_file = \"flat.key\""), "identity.key_file", "is not random"),
            (key("key_file = \"open.key\""), "identity.key_file", "can be written by every user"),
            (key("key_file = \"gone.key\""), "identity.key_file", "openssl rand -hex 32"),
            (key("key_env = \"GONE\""), "identity.key_env", "environment variable GONE is not set"),
            (key("key_env = \"KEY\"\nkey_file = \"account.key\""), "identity.key_env", "not both"),
            (
                identity("client_certificate = true"),
                "identity.client_certificate",
                "needs a listener with client_ca",
            ),
            (identity("[identity.jwt]"), "identity.jwt", "needs jwks_file or jwks_url"),
            (identity("[identity.jwt]\njwks_file = \"oct.json\""), "jwks_file", "no usable key"),
            (identity("[identity.jwt]\njwks_url = \"ftp://x/\""), "jwks_url", "is not an address"),
            (
                identity("[identity.jwt]\njwks_url = \"https://u:p@x/\""),
                "jwks_url",
                "is not an address",
            ),
            (
                identity("[identity.jwt]\njwks_url = \"https://x/\"\njwks_refresh_seconds = 1"),
                "jwks_refresh_seconds",
                "out of range",
            ),
            (
                identity("[identity.jwt]\njwks_file = \"jwks.json\"\njwks_refresh_seconds = 60"),
                "jwks_refresh_seconds",
                "belongs to jwks_url",
            ),
            (
                identity("[identity.jwt]\njwks_file = \"jwks.json\"\naccount_claim = \"\""),
                "account_claim",
                "is empty",
            ),
            (
                token("token_file = \"short.token\""),
                "admin.token_file",
                "has 8 characters, at least 16 are needed on a loopback address",
            ),
            (token("token_file = \"spaced.token\""), "admin.token_file", "printable ASCII"),
            (
                token("token_file = \"admin.token\"\naddress = \"0.0.0.0:1\""),
                "admin.token_file",
                "at least 32 are needed on an address that is not loopback",
            ),
            (token("address = \"0.0.0.0:1\""), "admin.token_file", "is missing"),
            (
                token("token_file = \"admin.token\"\naddress = \"127.0.0.1:8080\""),
                "admin.address",
                "already a listener's address",
            ),
            (token("token = \"0123456789abcdefghij\""), "admin.token", "expected a list"),
            (end("[limits]\nheader_bytes_max = 2097152"), "limits.header_bytes_max", "to 1048576"),
            (
                end("[limits]\ndecoded_body_bytes_max = 2048"),
                "limits.decoded_body_bytes_max",
                "is below body_bytes_max",
            ),
            (
                end("[limits]\nbody_idle_timeout_seconds = 400"),
                "limits.body_idle_timeout_seconds",
                "is above",
            ),
            (
                end("[limits]\nh2_streams_max = 99999999999999999999999999"),
                "limits.h2_streams_max",
                "out of range",
            ),
            (end("[log]\nlevel = \"inof\""), "log.level", "did you mean \"info\"?"),
            (end("[listener]\n"), "", "duplicate key"),
            (("[[listener]]", "[listener]".into()), "listener", "write [[listener]]"),
            (
                ("[[listener]]", "record_text = true\n[[listener]]".into()),
                "record_text",
                "needs record",
            ),
            (
                ("[[listener]]", "store = \"redis\"\n[[listener]]".into()),
                "store",
                "needs a table [redis]",
            ),
            (end("[redis]\nurls = [\"redis://localhost\"]"), "redis", "with store = \"redis\""),
            (redis("urls = []"), "redis.urls", "such as"),
            (redis("cluster = true"), "redis.urls", "is missing"),
            (redis("urls = [\"localhost:6379\"]"), "redis.urls[0]", "begins with redis://"),
            (redis("urls = [\"redis://u:secret@a\"]"), "redis.urls[0]", "password_file"),
            (redis("urls = [\"redis://a\", \"rediss://b\"]"), "redis.urls", "either for all"),
            (redis("urls = [\"redis://a\", \"redis://a:6379\"]"), "redis.urls[1]", "twice"),
            (redis("urls = [\"rediss://a\"]\nusername = \"u\""), "redis.username", "password"),
            (redis("urls = [\"rediss://a\"]\nprefix = \"{a}\""), "redis.prefix", "letters"),
            (
                redis("urls = [\"redis://localhost\"]\nca = \"certificates/clients-ca.pem\""),
                "redis.ca",
                "needs rediss://",
            ),
            (
                redis(
                    "urls = [\"rediss://a\"]\npassword_file = \"spaced.token\"\nsync_interval_ms = 1",
                ),
                "redis.sync_interval_ms",
                "10",
            ),
        ];
        for ((from, to), key, message) in cases {
            assert!(MINIMAL.contains(from), "{from}");
            let text = MINIMAL.replacen(from, &to, 1);
            let errors = errors_in(&directory, &text);
            let found = errors.iter().any(|error| {
                let mut parts = error.splitn(3, ": ");
                let (line, rest) = (parts.next().unwrap(), parts.next().unwrap_or_default());
                line.parse::<usize>().is_ok_and(|line| line >= 1)
                    && (key.is_empty() || rest.ends_with(key))
                    && error.contains(message)
            });
            assert!(found, "expected {key}: …{message}…, got {errors:#?}\nin {text}");
            assert!(errors.len() <= 2, "one mistake has one cause: {errors:#?}\nin {text}");
        }
    }

    #[test]
    fn syntax_errors_have_their_lines_and_nothing_else_is_guessed() {
        let errors = errors_in(&ready(), "[[listener]]\naddress = \n[admin\nx = 1\n");
        let lines: Vec<&str> = errors.iter().filter_map(|e| e.split(':').next()).collect();
        assert!(lines.contains(&"2") && lines.contains(&"3"), "{errors:?}");
        assert!(!errors.iter().any(|error| error.contains("missing;")), "{errors:?}");
    }

    #[test]
    fn no_error_or_warning_shows_a_secret() {
        let directory = ready();
        let secret = "SECRETsecret";
        directory.write("account.key", secret);
        directory.write("admin.token", secret);
        let text = MINIMAL.replace(
            "token_file",
            &format!("token = \"{secret}\"\nkey = \"{secret}\"\ntoken_file"),
        );
        let errors = errors_in(&directory, &text);
        assert!(errors.len() >= 4, "{errors:?}");
        assert!(!errors.concat().contains(secret), "{errors:?}");
        let config = parse_in(&ready(), MINIMAL).unwrap();
        assert!(!format!("{:?}", config.admin).contains("0123456789"));
    }

    #[test]
    fn what_is_allowed_but_unwise_is_a_warning() {
        let directory = ready();
        directory.set_mode("account.key", 0o644);
        let more = "[identity.jwt]\njwks_url = \"http://issuer.example/jwks\"\n\
                    [upstream.spare]\naddresses = [\"a:1\"]\n";
        let config = parse_in(&directory, &format!("{MINIMAL}{more}")).unwrap();
        let keys: Vec<&str> = config.warnings.iter().map(|w| w.key.as_str()).collect();
        let expected =
            ["identity.key_file", "identity.jwt", "identity.jwt.jwks_url", "upstream.spare"];
        assert_eq!(keys, expected);
    }

    #[test]
    fn an_identity_key_is_hex_base64_or_raw() {
        let bytes: Vec<u8> = (100..148).collect();
        let standard = base64::engine::general_purpose::STANDARD;
        let url = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let wrapped = standard.encode(&bytes).chars().collect::<Vec<_>>();
        let wrapped: Vec<String> = wrapped.chunks(40).map(|line| line.iter().collect()).collect();
        let binary: Vec<u8> = (200..=255).collect();
        let cases: Vec<(Vec<u8>, Option<Vec<u8>>)> = vec![
            (hex::encode(&bytes).into(), Some(bytes.clone())),
            (format!(" {}\n", hex::encode_upper(&bytes)).into(), Some(bytes.clone())),
            (standard.encode(&bytes).into(), Some(bytes.clone())),
            (wrapped.join("\n").into(), Some(bytes.clone())),
            (url.encode(&bytes).into(), Some(bytes.clone())),
            (
                b"a long and memorable pass phrase!\n".to_vec(),
                Some(b"a long and memorable pass phrase!".to_vec()),
            ),
            (binary.clone(), Some(binary)),
            // 32 hex digits are 16 bytes, however many characters they have.
            (hex::encode(&bytes[..16]).into(), None),
            (b"short".to_vec(), None),
            (Vec::new(), None),
        ];
        for (secret, expected) in cases {
            let key = identity_key(&secret).ok().map(|key| key.to_vec());
            assert_eq!(key, expected, "{}", String::from_utf8_lossy(&secret));
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_one_error() {
        let directory = TestDirectory::new();
        let errors = load(&directory.path().join("gone.toml")).unwrap_err();
        assert_eq!((errors.len(), errors[0].line), (1, None));
        let binary = directory.write("binary.toml", [0xff, 0xfe]);
        assert!(load(&binary).unwrap_err()[0].message.contains("not UTF-8"));
        let huge = directory.write("huge.toml", "#".repeat(CONFIG_FILE_BYTES_MAX as usize + 1));
        assert!(load(&huge).unwrap_err()[0].message.contains("larger than"));
    }

    /// The shipped example, with the files it names.
    const EXAMPLE: &str = include_str!("../../../deploy/stillgate.toml");

    fn example_directory() -> TestDirectory {
        let directory = ready();
        directory.certificate("certificates/api", &["api.example.com"]);
        directory.certificate("certificates/clients-ca", &["clients.example.com"]);
        directory.certificate("certificates/internal", &["internal.example.com"]);
        directory.certificate("certificates/admin", &["admin.example.com"]);
        directory.certificate("certificates/operators-ca", &["operators.example.com"]);
        directory.write("dashboard.token", "0123456789abcdef0123456789abcdef-dashboard\n");
        directory.write("GeoLite2-ASN.mmdb", crate::network::tests::sample_database());
        directory.certificate("gateway", &["gateway.example.com"]);
        directory.write("redis.password", "a-password\n");
        directory.write("policy.toml", "");
        directory.write("webhook.secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n");
        directory.write("ioc.pem", crate::ioc::sign::tests::PRIVATE);
        directory.write("other-lab.pem", crate::ioc::sign::tests::PUBLIC);
        let key = "00112233445566778899aabbccddeeff".repeat(2);
        directory.write("ioc.key", &key);
        directory.write("exchange.key", key);
        directory.write("other-lab.token", "0123456789abcdefghij\n");
        for list in ["tor-exits.txt", "proxies.txt", "vpns.txt"] {
            directory.write(list, "192.0.2.1\n");
        }
        directory
    }

    #[test]
    fn the_shipped_example_is_valid_and_warns_of_nothing() {
        let directory = example_directory();
        let path = directory.write("stillgate.toml", EXAMPLE);
        let config = load(&path).unwrap();
        assert_eq!((config.listeners.len(), config.routes.len()), (2, 2));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        assert_eq!(config.routes[0].upstream, 1, "upstreams are in the order of their names");
    }

    const REDIS_INTERVALS: (Duration, Duration) =
        (Duration::from_millis(100), Duration::from_secs(1));

    #[test]
    fn the_examples_comments_show_settings_that_exist_with_their_defaults() {
        // Each commented setting is switched on; only `tls` and `store` then need their counterparts.
        let switched_on: String = EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(setting) if is_setting(setting) => format!("{setting}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let switched_on = switched_on.replace("\ntls = false", "\ntls = true");
        let switched_on = switched_on.replace("store = \"embedded\"", "store = \"redis\"");
        let directory = example_directory();
        let config = match parse_in(&directory, &switched_on) {
            Ok(config) => config,
            Err(errors) => panic!("{errors:#?}"),
        };
        assert_eq!(config.limits, Limits::default());
        let every_limit = format!("{:?}", Limits::default()).matches(": ").count();
        let limits =
            switched_on.split("[limits]").nth(1).unwrap().split("[server]").next().unwrap();
        assert_eq!(limits.matches(" = ").count(), every_limit, "each limit is in the example");
        assert!(config.identity.jwt.is_some() && config.record.is_some());
        let defaults = parse_in(&ready(), MINIMAL).unwrap();
        let (shown, default) = (&config.upstreams[0], &defaults.upstreams[0]);
        assert_eq!(shown.connect_timeout, default.connect_timeout);
        assert_eq!(shown.first_byte_timeout, default.first_byte_timeout);
        assert_eq!(shown.idle_timeout, default.idle_timeout);
        assert_eq!((shown.retries, shown.protocol), (default.retries, default.protocol));
        assert_eq!(config.server.drain, defaults.server.drain);
        assert_eq!(config.log.level, defaults.log.level);
        let ioc = config.ioc.as_ref().unwrap();
        assert_eq!((ioc.lifetime_ms, ioc.operator_weight), (crate::ioc::LIFETIME_MS, 0.5));
        assert_eq!((ioc.signing.len(), ioc.peers.len(), ioc.peers[0].weight), (2, 1, 0.5));
        let redis = config.redis.as_ref().expect("it is shown");
        assert_eq!((redis.sync_interval, redis.memory_interval), REDIS_INTERVALS);
        assert_eq!((redis.prefix.as_str(), redis.keep.as_secs()), ("sg", 30 * 86_400));
        assert_eq!(config.sensor_socket.expect("it is shown").mode, 0o660);
        let [webhook] = config.webhooks.as_slice() else { panic!("one webhook") };
        assert_eq!(webhook.events, crate::webhook::DEFAULT_EVENTS);
        let seconds = [webhook.timeout, webhook.retry, webhook.retry_max, webhook.give_up_after];
        assert_eq!(seconds.map(|time| time.as_secs()), [10, 1, 300, 86_400]);
    }

    /// `key = value` or `[table]`, not a sentence.
    fn is_setting(line: &str) -> bool {
        let key = line.split(" = ").next().unwrap();
        let plain = |text: &str| {
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        let tables = [
            "[identity.",
            "[redis]",
            "[[admin.token]]",
            "[sensor]",
            "[ioc]",
            "[[peer]]",
            "[[webhook]]",
        ];
        let table = tables.iter().any(|table| line.starts_with(table));
        (line.contains(" = ") && plain(key)) || table
    }

    #[test]
    fn near_names_are_found_and_far_ones_are_listed() {
        let known = ["address", "certificates", "tls"];
        assert!(suggest("adress", &known).contains("did you mean \"address\""));
        assert!(suggest("certificate", &known).contains("did you mean \"certificates\""));
        assert_eq!(suggest("port", &known), "; allowed: address, certificates, tls");
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }

    #[test]
    fn networks_are_read_and_what_is_wrong_with_them_is_reported() {
        let folder = TestDirectory::new();
        folder.write("vpns.txt", "192.0.2.7\n");
        folder.write("tor.txt", "nothing of the kind\n");
        let good = folder.minimal_config("good.toml", "[network]\nvpns = \"vpns.txt\"\n");
        let config = load(&good).unwrap();
        let kind = config.networks.lookup(IpAddr::from([192, 0, 2, 7])).kind;
        assert_eq!(kind, detectors::NetworkKind::Vpn);
        let more =
            "[network]\ntor_exits = \"tor.txt\"\nasn_database = \"none.mmdb\"\nvpn = \"x\"\n";
        let bad = folder.minimal_config("bad.toml", more);
        let errors: Vec<String> = load(&bad).unwrap_err().iter().map(ToString::to_string).collect();
        let expected = [
            "network.tor_exits: ",
            "network.asn_database: ",
            "network.vpn: unknown key; did you mean \"vpns\"?",
        ];
        assert_eq!(errors.len(), expected.len(), "{errors:?}");
        for (error, expected) in errors.iter().zip(expected) {
            assert!(error.contains(expected), "{error} instead of {expected}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,120}") {
            let _ = parse_with(&text, Path::new("c.toml"), &environment);
        }

        #[test]
        fn a_damaged_file_never_panics_and_always_has_lines(
            at in 0..MINIMAL.len(), byte in "[\\x20-\\x7e\\n]", length in 0_usize..20,
        ) {
            let end = (at + length).min(MINIMAL.len());
            let text = format!("{}{byte}{}", &MINIMAL[..at], &MINIMAL[end..]);
            if let Err(errors) = parse_with(&text, Path::new("c.toml"), &environment) {
                prop_assert!(!errors.is_empty());
                let last = text.lines().count() + 1;
                prop_assert!(errors.iter().all(|error| error.line.is_some_and(|l| l <= last)));
            }
        }
    }
}
