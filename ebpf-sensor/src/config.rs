//! The configuration file: TOML text in, a [`Config`] or what is wrong with it out.
//!
//! Each error names file, line and key and says what is allowed. An unknown key is an error: a
//! misspelt `seen_as` that is silently ignored ties nobody to anything. Relative paths in the file
//! are relative to the file.

use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;
use tracing_subscriber::EnvFilter;

use crate::hooks::{Link, LinkSide};
use crate::limits::{
    CONFIG_FILE_BYTES_MAX, LINKS_MAX, NETWORKS_MAX, RESOLVER_FILES_MAX, SEEN_AS_MAX, TARGETS_MAX,
};
use crate::tally::{HashKey, NamesTold, SeenAs};

/// What `run` does, resolved: a value of this type has no error left in it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The sensor's name in its reports.
    pub name: Arc<str>,
    /// Whether local processes are watched.
    pub local: bool,
    /// The cgroup (v2) whose processes are; the root of the first one that is mounted when `None`.
    pub cgroup: Option<PathBuf>,
    /// Whether only their sockets are, not their packets.
    pub sockets_only: bool,
    /// Links whose forwarded traffic is watched.
    pub links: Vec<Link>,
    /// How the gateway sees inside addresses.
    pub seen_as: SeenAs,
    /// Where clients reach the API.
    pub api: Vec<IpNet>,
    /// Networks whose contacts are not told.
    pub ignore: Vec<IpNet>,
    /// Whether contacts with private addresses are told.
    pub private_destinations: bool,
    /// How long a DNS answer names an address.
    pub named_window: Duration,
    /// Lists of resolvers beside the shipped one.
    pub resolver_files: Vec<PathBuf>,
    /// What is told of query names.
    pub names: NamesTold,
    /// Key of the hashes of names and hosts.
    pub key: HashKey,
    /// Whom to tell.
    pub targets: Vec<Target>,
    /// How often.
    pub report_every: Duration,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// The log.
    pub log: Log,
    /// What is allowed and probably not meant.
    pub warnings: Vec<ConfigError>,
}

/// The log on stderr.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A filter such as `info` or `warn,sensor=debug`.
    pub level: String,
    /// One JSON object a line.
    pub json: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), json: false }
    }
}

/// A gateway that is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where it is.
    pub address: TargetAddress,
    /// File with the bearer token.
    pub token_file: Option<PathBuf>,
}

/// Where a gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// Its admin address.
    Tcp {
        /// Host name or address; an IPv6 address without brackets.
        host: String,
        /// Port.
        port: u16,
        /// TLS; plain text where `None`.
        tls: Option<TlsFiles>,
    },
}

/// By what a gateway is known, and we to it. Read for each connection, so that what was renewed is
/// used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// CA certificates in PEM.
    pub ca: PathBuf,
    /// Our certificate chain and its key in PEM.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl fmt::Display for Target {
    /// The target in logs and metrics: no path or query, no user.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            TargetAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            TargetAddress::Tcp { host, port, tls } => {
                let scheme = if tls.is_some() { "https" } else { "http" };
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                write!(f, "{scheme}://{host}:{port}")
            }
        }
    }
}

/// One thing wrong with a configuration file. Never carries a secret's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file that is wrong.
    pub file: PathBuf,
    /// Line in it, from 1; `None` where no line is to blame.
    pub line: Option<usize>,
    /// Key such as `link[0].side`; empty where there is none.
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

/// Reads a configuration file and the key that it names.
///
/// # Errors
/// What is wrong, in line order.
pub fn load(path: &Path) -> Result<Config, Vec<ConfigError>> {
    let unreadable = |message: String| {
        vec![ConfigError { file: path.to_owned(), line: None, key: String::new(), message }]
    };
    let bytes = read_bounded(path, CONFIG_FILE_BYTES_MAX)
        .map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        unreadable(format!("is not UTF-8 from byte {}", error.utf8_error().valid_up_to()))
    })?;
    parse(&text, path)
}

/// As [`load`], from text; `path` is named in errors and anchors relative paths.
///
/// # Errors
/// What is wrong, in line order.
pub fn parse(text: &str, path: &Path) -> Result<Config, Vec<ConfigError>> {
    let mut faults = Faults { text, path, errors: Vec::new(), warnings: Vec::new() };
    let raw: Raw = match toml::from_str(text) {
        Ok(raw) => raw,
        Err(error) => {
            let at = error.span().map(|span| span.start);
            let key = at.map(|at| key_on_line(text, at)).unwrap_or_default();
            let message = error.message().lines().collect::<Vec<_>>().join("; ");
            faults.error(at, &key, message);
            return Err(faults.errors);
        }
    };
    let config = resolve(raw, &mut faults);
    faults.errors.sort_by_key(|error| error.line);
    match config {
        Some(mut config) if faults.errors.is_empty() => {
            config.warnings = faults.warnings;
            Ok(config)
        }
        _ => Err(faults.errors),
    }
}

/// A file's bytes, up to `max`.
///
/// # Errors
/// The system's, and where the file is larger.
pub fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("larger than {max} bytes")));
    }
    Ok(bytes)
}

/// The token in a file, without the white space around it.
///
/// # Errors
/// When it cannot be read or is none; the text says nothing of its content.
pub fn read_token(path: &Path) -> Result<String, String> {
    const TOKEN_BYTES_MAX: u64 = 4096;
    let shown = path.display();
    let bytes = read_bounded(path, TOKEN_BYTES_MAX).map_err(|error| format!("{shown}: {error}"))?;
    let text = String::from_utf8(bytes).unwrap_or_default();
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{shown} is not a token: one line of printable ASCII"));
    }
    Ok(token.to_owned())
}

// The file as it is written. Serde refuses what is not here.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Option<Spanned<String>>,
    local: Option<RawLocal>,
    link: Option<Vec<RawLink>>,
    seen_as: Option<Vec<RawSeenAs>>,
    api: Option<Vec<Spanned<String>>>,
    ignore: Option<Vec<Spanned<String>>>,
    private_destinations: Option<bool>,
    named_window_seconds: Option<Spanned<u64>>,
    resolvers: Option<RawResolvers>,
    names: Option<RawNames>,
    report_every_seconds: Option<Spanned<u64>>,
    report: Option<Vec<Spanned<RawReport>>>,
    metrics: Option<RawMetrics>,
    log: Option<RawLog>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLocal {
    enabled: Option<Spanned<bool>>,
    sockets_only: Option<bool>,
    cgroup: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    name: Spanned<String>,
    side: Spanned<String>,
    clsact: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSeenAs {
    from: Spanned<String>,
    #[serde(rename = "as")]
    seen_as: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawResolvers {
    files: Option<Spanned<Vec<PathBuf>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNames {
    tell: Option<Spanned<String>>,
    key_file: Option<Spanned<PathBuf>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReport {
    socket: Option<Spanned<PathBuf>>,
    url: Option<Spanned<String>>,
    token_file: Option<Spanned<PathBuf>>,
    ca_file: Option<Spanned<PathBuf>>,
    certificate: Option<Spanned<PathBuf>>,
    key: Option<Spanned<PathBuf>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    level: Option<Spanned<String>>,
    format: Option<Spanned<String>>,
}

struct Faults<'a> {
    text: &'a str,
    path: &'a Path,
    errors: Vec<ConfigError>,
    warnings: Vec<ConfigError>,
}

impl Faults<'_> {
    fn error(&mut self, at: Option<usize>, key: &str, message: impl Into<String>) {
        let error = self.fault(at, key, message.into());
        self.errors.push(error);
    }

    fn warn(&mut self, at: usize, key: &str, message: impl Into<String>) {
        let warning = self.fault(Some(at), key, message.into());
        self.warnings.push(warning);
    }

    fn fault(&self, at: Option<usize>, key: &str, message: String) -> ConfigError {
        let before = |at: usize| self.text.as_bytes().iter().take(at);
        let line = at.map(|at| 1 + before(at).filter(|byte| **byte == b'\n').count());
        ConfigError { file: self.path.to_owned(), line, key: key.to_owned(), message }
    }

    fn too_many(&mut self, key: &str, count: usize, max: usize) {
        if count > max {
            self.error(None, key, format!("{count} are too many: {max} at most"));
        }
    }

    fn beside(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    /// A file that can be opened now; it is read when it is needed.
    fn file(&mut self, path: &Spanned<PathBuf>, key: &str) -> PathBuf {
        let full = self.beside(path.get_ref());
        if let Err(error) = std::fs::File::open(&full) {
            let message = format!("{} cannot be read: {error}", full.display());
            self.error(Some(path.span().start), key, message);
        }
        full
    }
}

fn resolve(raw: Raw, faults: &mut Faults<'_>) -> Option<Config> {
    let name = read_name(raw.name, faults);
    let local = raw.local.as_ref().and_then(|local| local.enabled.as_ref());
    let local_on = local.is_none_or(|enabled| *enabled.get_ref());
    let cgroup = raw.local.as_ref().and_then(|local| local.cgroup.clone());
    let sockets_only = raw.local.as_ref().and_then(|local| local.sockets_only).unwrap_or(false);
    let links = read_links(raw.link.unwrap_or_default(), faults);
    if let (Some(enabled), true) = (local, !local_on && links.is_empty()) {
        let message = "is false and there is no [[link]]: nothing would be seen; set it to true, or \
                       write [[link]] with a name and a side";
        faults.error(Some(enabled.span().start), "local.enabled", message);
    }
    let seen_as = read_seen_as(&raw.seen_as.unwrap_or_default(), faults);
    let api = read_networks("api", raw.api, faults);
    let ignore = read_networks("ignore", raw.ignore, faults);
    let mut seconds = |value: Option<Spanned<u64>>, key, default, max| match value {
        None => Duration::from_secs(default),
        Some(value) => {
            if !(1..=max).contains(value.get_ref()) {
                faults.error(Some(value.span().start), key, format!("must be 1 to {max}"));
            }
            Duration::from_secs(value.into_inner())
        }
    };
    let named_window = seconds(raw.named_window_seconds, "named_window_seconds", 3600, 86_400);
    let report_every = seconds(raw.report_every_seconds, "report_every_seconds", 5, 300);
    let resolver_files = read_resolver_files(raw.resolvers, faults);
    let (names, key) = read_names(raw.names, faults);
    let targets = read_targets(raw.report.unwrap_or_default(), faults);
    let metrics = raw.metrics.and_then(|metrics| {
        let listen = metrics.listen;
        let address = listen.get_ref().parse();
        if address.is_err() {
            let message = "is not an address and a port, such as \"127.0.0.1:9101\"";
            faults.error(Some(listen.span().start), "metrics.listen", message);
        }
        address.ok()
    });
    let log = read_log(raw.log, faults);
    Some(Config {
        name: name?,
        local: local_on,
        cgroup,
        sockets_only,
        links,
        seen_as,
        api,
        ignore,
        private_destinations: raw.private_destinations.unwrap_or(false),
        named_window,
        resolver_files,
        names,
        key: key?,
        targets,
        report_every,
        metrics,
        log,
        warnings: Vec::new(),
    })
}

fn read_name(name: Option<Spanned<String>>, faults: &mut Faults<'_>) -> Option<Arc<str>> {
    let Some(name) = name else { return Some(host_name().into()) };
    if !is_name(name.get_ref()) {
        let message =
            "must be 1 to 64 of a-z, 0-9, '.', '_' and '-', and begin with a letter or digit";
        faults.error(Some(name.span().start), "name", message);
        return None;
    }
    Some(name.into_inner().into())
}

/// Whether the gateway takes it: `[a-z0-9][a-z0-9._-]{0,63}`.
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 64
        && text.bytes().next().is_some_and(plain)
        && text.bytes().all(|byte| plain(byte) || b"._-".contains(&byte))
}

/// The host's name, made fit to be a sensor's.
fn host_name() -> String {
    fit_name(&rustix::system::uname().nodename().to_string_lossy())
}

fn fit_name(host: &str) -> String {
    let lower = host.to_ascii_lowercase();
    let fit = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = lower.chars().map(fit).collect();
    let name = name.trim_start_matches(['.', '_', '-']);
    let name = name.get(..64).unwrap_or(name);
    if name.is_empty() { "sensor".to_owned() } else { name.to_owned() }
}

fn read_links(raw: Vec<RawLink>, faults: &mut Faults<'_>) -> Vec<Link> {
    faults.too_many("link", raw.len(), LINKS_MAX);
    let mut links: Vec<Link> = Vec::new();
    for (index, link) in raw.into_iter().enumerate() {
        let (name, at) = (link.name.get_ref(), Some(link.name.span().start));
        // IFNAMSIZ counts the closing zero.
        let fits = (1..=15).contains(&name.len())
            && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
        if !fits {
            let message = "is not a link's name: 1 to 15 bytes, as `ip link` shows it";
            faults.error(at, &format!("link[{index}].name"), message);
        }
        match link_side(link.side.get_ref()) {
            Ok(side) if links.iter().any(|known| known.name == *name && known.side == side) => {
                faults.error(at, &format!("link[{index}].name"), "is named twice for one side");
            }
            Ok(side) => links.push(Link {
                name: link.name.into_inner(),
                side,
                clsact: link.clsact.unwrap_or(false),
            }),
            Err(message) => {
                let key = format!("link[{index}].side");
                faults.error(Some(link.side.span().start), &key, message);
            }
        }
    }
    links
}

/// What a link leads to, from its word.
///
/// # Errors
/// What is allowed.
pub fn link_side(text: &str) -> Result<LinkSide, &'static str> {
    match text {
        "clients" => Ok(LinkSide::Clients),
        "internet" => Ok(LinkSide::Internet),
        _ => Err("must be \"clients\" (whose traffic is forwarded) or \"internet\""),
    }
}

/// A network, or an address as the network of itself.
///
/// # Errors
/// What is allowed.
pub fn network(text: &str) -> Result<IpNet, &'static str> {
    let address = text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    let network = address.or_else(|_| text.parse()).map(|network: IpNet| network.trunc());
    network.map_err(|_| "is not an address or a network, such as \"203.0.113.0/24\"")
}

fn read_seen_as(raw: &[RawSeenAs], faults: &mut Faults<'_>) -> SeenAs {
    faults.too_many("seen_as", raw.len(), SEEN_AS_MAX);
    let mut pairs: Vec<(IpNet, IpAddr)> = Vec::new();
    for (index, pair) in raw.iter().enumerate() {
        let at = |value: &Spanned<String>| Some(value.span().start);
        let from = network(pair.from.get_ref());
        let seen_as = pair.seen_as.get_ref().parse::<IpAddr>();
        if let Err(wrong) = from {
            faults.error(at(&pair.from), &format!("seen_as[{index}].from"), wrong);
        }
        if seen_as.is_err() {
            let message = "is not an address, such as \"203.0.113.7\"";
            faults.error(at(&pair.seen_as), &format!("seen_as[{index}].as"), message);
        }
        let (Ok(from), Ok(seen_as)) = (from, seen_as) else { continue };
        if pairs.iter().any(|(known, _)| *known == from) {
            let message = format!("{from} is named twice");
            faults.error(at(&pair.from), &format!("seen_as[{index}].from"), message);
        }
        pairs.push((from, seen_as.to_canonical()));
    }
    SeenAs::new(pairs)
}

fn read_networks(
    key: &str,
    raw: Option<Vec<Spanned<String>>>,
    faults: &mut Faults<'_>,
) -> Vec<IpNet> {
    let raw = raw.unwrap_or_default();
    faults.too_many(key, raw.len(), NETWORKS_MAX);
    let mut networks = Vec::new();
    for (index, text) in raw.iter().enumerate() {
        match network(text.get_ref()) {
            Ok(network) => networks.push(network),
            Err(wrong) => faults.error(Some(text.span().start), &format!("{key}[{index}]"), wrong),
        }
    }
    networks
}

fn read_resolver_files(raw: Option<RawResolvers>, faults: &mut Faults<'_>) -> Vec<PathBuf> {
    let Some(files) = raw.and_then(|raw| raw.files) else { return Vec::new() };
    faults.too_many("resolvers.files", files.get_ref().len(), RESOLVER_FILES_MAX);
    let at = files.span().start;
    let mut paths = Vec::new();
    for (index, path) in files.into_inner().into_iter().enumerate() {
        let key = format!("resolvers.files[{index}]");
        paths.push(faults.file(&Spanned::new(at..at, path), &key));
    }
    paths
}

fn read_names(raw: Option<RawNames>, faults: &mut Faults<'_>) -> (NamesTold, Option<HashKey>) {
    let (tell, key_file) = raw.map_or((None, None), |names| (names.tell, names.key_file));
    let told = match tell.as_ref().map(|tell| tell.get_ref().as_str()) {
        None | Some("hashed") => NamesTold::Hashed,
        Some("clear") => NamesTold::Clear,
        Some("none") => NamesTold::None,
        Some(_) => {
            let message = "must be \"hashed\", \"clear\" or \"none\"";
            faults.error(tell.as_ref().map(|tell| tell.span().start), "names.tell", message);
            NamesTold::None
        }
    };
    let Some(file) = key_file else {
        let message = "is missing: hosts and names are told as keyed hashes; make a key (openssl \
                       rand -hex 32 > sensor.key; chmod 600 sensor.key), give it to all of your \
                       sensors, and write key_file = \"sensor.key\" under [names]";
        faults.error(None, "names.key_file", message);
        return (told, None);
    };
    let path = faults.beside(file.get_ref());
    let key = read_key(&path);
    if let Err(wrong) = &key {
        faults.error(Some(file.span().start), "names.key_file", wrong.clone());
    }
    (told, key.ok())
}

/// Reads the key of the hashes.
fn read_key(path: &Path) -> Result<HashKey, String> {
    let shown = path.display();
    let cannot = |error: io::Error| format!("{shown} cannot be read: {error}");
    let mode = std::fs::metadata(path).map_err(cannot)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "{shown} (mode {mode:03o}) can be read or written by others than its owner: chmod 600"
        ));
    }
    let bytes = read_bounded(path, 256).map_err(cannot)?;
    let mut key = [0; 32];
    hex::decode_to_slice(bytes.trim_ascii(), &mut key).map_err(|_| {
        format!("{shown} is not 64 hex digits; make one: openssl rand -hex 32 > {shown}")
    })?;
    Ok(HashKey::new(key))
}

fn read_targets(raw: Vec<Spanned<RawReport>>, faults: &mut Faults<'_>) -> Vec<Target> {
    if raw.is_empty() {
        let message = "is missing: write [[report]] with socket = \"/run/stillgate/sensor.sock\", or \
                       with url, token_file and ca_file; `stillgate-sensor watch` tells nobody and \
                       prints instead";
        faults.error(None, "report", message);
    }
    faults.too_many("report", raw.len(), TARGETS_MAX);
    let mut targets: Vec<Target> = Vec::new();
    for (index, report) in raw.into_iter().enumerate() {
        let at = report.span().start;
        let Some(target) = read_target(index, report, faults) else { continue };
        if targets.iter().any(|known| known.address == target.address) {
            faults.error(Some(at), &format!("report[{index}]"), "is the same as one before it");
        }
        targets.push(target);
    }
    targets
}

fn read_target(
    index: usize,
    report: Spanned<RawReport>,
    faults: &mut Faults<'_>,
) -> Option<Target> {
    let at = report.span().start;
    let report = report.into_inner();
    let key = |name: &str| format!("report[{index}].{name}");
    let token_file = report.token_file.as_ref().map(|path| {
        let full = faults.beside(path.get_ref());
        let from = path.span().start;
        if let Err(wrong) = read_token(&full) {
            faults.error(Some(from), &key("token_file"), wrong);
        } else if let Ok(metadata) = std::fs::metadata(&full)
            && metadata.permissions().mode() & 0o007 != 0
        {
            let message = format!("{} can be read by every user: chmod 600", full.display());
            faults.warn(from, &key("token_file"), message);
        }
        full
    });
    let certificate =
        report.certificate.as_ref().map(|path| faults.file(path, &key("certificate")));
    let certificate_key = report.key.as_ref().map(|path| faults.file(path, &key("key")));
    let ca = report.ca_file.as_ref().map(|path| faults.file(path, &key("ca_file")));
    let client = match (certificate, certificate_key) {
        (Some(certificate), Some(own)) => Some((certificate, own)),
        (None, None) => None,
        _ => {
            faults.error(
                Some(at),
                &key("certificate"),
                "and key are given together, or neither is",
            );
            return None;
        }
    };
    let of_tls =
        [("ca_file", &report.ca_file), ("certificate", &report.certificate), ("key", &report.key)];
    let address = match (&report.socket, &report.url) {
        (Some(socket), None) => TargetAddress::Unix(faults.beside(socket.get_ref())),
        (None, Some(url)) => {
            let (tls, host, port) = match parse_url(url.get_ref()) {
                Ok(parts) => parts,
                Err(wrong) => {
                    faults.error(Some(url.span().start), &key("url"), wrong);
                    return None;
                }
            };
            if token_file.is_none() {
                let message = "is missing: the file with a token of the role `sensor`";
                faults.error(Some(url.span().start), &key("token_file"), message);
            }
            let near = host == "localhost"
                || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
            if !tls && !near {
                let message = "plain http: whoever is on the way reads the token";
                faults.warn(url.span().start, &key("url"), message);
            }
            let tls = match (tls, ca) {
                (false, _) => None,
                (true, Some(ca)) => Some(TlsFiles { ca, client }),
                (true, None) => {
                    let message = "is missing: the CA certificates in PEM that the gateway's \
                                   certificate chains to, such as \
                                   \"/etc/ssl/certs/ca-certificates.crt\"";
                    faults.error(Some(url.span().start), &key("ca_file"), message);
                    return None;
                }
            };
            TargetAddress::Tcp { host, port, tls }
        }
        (Some(_), Some(_)) => {
            faults.error(Some(at), &key("socket"), "and url exclude each other");
            return None;
        }
        (None, None) => {
            let message = "or url is missing, such as socket = \"/run/stillgate/sensor.sock\" or url \
                           = \"https://gateway.example:9090\"";
            faults.error(Some(at), &key("socket"), message);
            return None;
        }
    };
    if !matches!(address, TargetAddress::Tcp { tls: Some(_), .. }) {
        for (name, value) in of_tls {
            if let Some(value) = value {
                faults.error(Some(value.span().start), &key(name), "needs an https url");
            }
        }
    }
    Some(Target { address, token_file })
}

/// Whether it is TLS, the host and the port of a URL that has nothing else.
fn parse_url(text: &str) -> Result<(bool, String, u16), &'static str> {
    const WRONG: &str = "is not http or https with a host and at most a port, such as \
                         \"https://gateway.example:9090\"";
    let uri: Uri = text.parse().map_err(|_| WRONG)?;
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(WRONG),
    };
    let authority = uri.authority().ok_or(WRONG)?;
    let host = authority.host().trim_matches(['[', ']']);
    let rest = authority.as_str().get(authority.host().len()..).unwrap_or(":");
    let port = match (rest, authority.port_u16()) {
        ("", _) => Some(if tls { 443 } else { 80 }),
        (_, port) => port.filter(|port| *port != 0),
    };
    let bare = uri.path_and_query().is_none_or(|rest| rest.as_str() == "/");
    match port {
        Some(port) if bare && !host.is_empty() && !text.contains(['#', '@']) => {
            Ok((tls, host.to_owned(), port))
        }
        _ => Err(WRONG),
    }
}

fn read_log(raw: Option<RawLog>, faults: &mut Faults<'_>) -> Log {
    let mut log = Log::default();
    let Some(raw) = raw else { return log };
    if let Some(level) = raw.level {
        if EnvFilter::try_new(level.get_ref()).is_err() {
            let message = "is not a filter, such as \"info\" or \"warn,sensor=debug\"";
            faults.error(Some(level.span().start), "log.level", message);
        }
        log.level = level.into_inner();
    }
    if let Some(format) = raw.format {
        match format.get_ref().as_str() {
            "text" => log.json = false,
            "json" => log.json = true,
            _ => {
                let message = "must be \"text\" or \"json\"";
                faults.error(Some(format.span().start), "log.format", message);
            }
        }
    }
    log
}

/// The key of the line at `at`, where it has one. Never a value, which may be secret.
fn key_on_line(text: &str, at: usize) -> String {
    let start = text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |end| end + 1);
    let line = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("");
    let key = line.split_once('=').map_or("", |(key, _)| key).trim();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-\"".contains(&byte);
    if key.bytes().all(plain) { key.to_owned() } else { String::new() }
}
