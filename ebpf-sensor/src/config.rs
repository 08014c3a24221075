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
    /// Whether kprobes are taken even where fentry is there.
    pub no_fentry: bool,
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
    no_fentry: Option<bool>,
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
    let no_fentry = raw.local.as_ref().and_then(|local| local.no_fentry).unwrap_or(false);
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
        no_fentry,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Folder;

    const KEY: &str = "0707070707070707070707070707070707070707070707070707070707070707\n";
    const MINIMAL: &str =
        "[names]\nkey_file = \"k\"\n[[report]]\nsocket = \"/run/stillgate/sensor.sock\"\n";

    fn folder() -> Folder {
        let folder = Folder::new();
        folder.write("k", KEY);
        for name in ["sensor.key", "sensor.token", "t"] {
            folder.write(name, KEY);
        }
        for name in ["ca.pem", "gateway-ca.pem", "sensor.pem", "sensor.pem.key", "resolvers.txt"] {
            folder.write(name, "");
        }
        folder
    }

    fn read(folder: &Folder, text: &str) -> Result<Config, String> {
        parse(text, &folder.path("s.toml")).map_err(|errors| {
            let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
            let text = lines.join("\n");
            text.replace(&format!("{}/", folder.as_ref().display()), "")
        })
    }

    #[test]
    fn the_defaults_tell_hashes_to_one_socket() {
        let folder = folder();
        let config = read(&folder, MINIMAL).unwrap();
        assert!(config.local && config.links.is_empty() && config.api.is_empty());
        assert_eq!((config.names, config.private_destinations), (NamesTold::Hashed, false));
        assert_eq!(config.named_window, Duration::from_secs(3600));
        assert_eq!(config.report_every, Duration::from_secs(5));
        assert_eq!((config.metrics, &config.log), (None, &Log::default()));
        assert!(is_name(&config.name) && config.warnings.is_empty());
        let [target] = config.targets.as_slice() else { panic!("one") };
        assert_eq!(target.to_string(), "unix:/run/stillgate/sensor.sock");
        assert!(!format!("{config:?}").contains("07070"), "no key is shown");
    }

    #[test]
    fn the_example_is_right_as_it_is_and_with_everything_uncommented() {
        let folder = folder();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/sensor.toml");
        let example = std::fs::read_to_string(path).unwrap();
        read(&folder, &example).unwrap();
        // A setting begins with a key or a bracket; prose begins with a capital letter.
        let setting = |rest: &str| {
            let first = rest.split([' ', '=']).next().unwrap_or("");
            let key = !first.is_empty()
                && first.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                && rest.contains(" = ");
            key || rest.starts_with('[') || rest.starts_with("    {") || rest == "]"
        };
        let all: Vec<_> = example
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if setting(rest) => rest,
                _ => line,
            })
            .collect();
        let config = read(&folder, &all.join("\n")).unwrap();
        assert_eq!(&*config.name, "egress-1");
        assert_eq!(config.links.len(), 1);
        assert_eq!(config.targets.len(), 2);
        assert_eq!((config.api.len(), config.ignore.len()), (2, 1));
        assert_eq!(config.seen_as.of([10, 1, 2, 3].into()), Some([203, 0, 113, 7].into()));
        assert_eq!(config.metrics, Some(([127, 0, 0, 1], 9101).into()));
        assert_eq!(config.targets[1].to_string(), "https://gateway.example:9090");
        assert!(matches!(
            &config.targets[1].address,
            TargetAddress::Tcp { tls: Some(TlsFiles { client: Some(_), .. }), .. }
        ));
        // Every key of the reader stands in the example.
        for key in [
            "name",
            "seen_as",
            "api",
            "ignore",
            "named_window_seconds",
            "private_destinations",
            "report_every_seconds",
            "enabled",
            "cgroup",
            "sockets_only",
            "no_fentry",
            "side",
            "clsact",
            "files",
            "tell",
            "key_file",
            "socket",
            "url",
            "token_file",
            "ca_file",
            "certificate",
            "key",
            "listen",
            "level",
            "format",
        ] {
            assert!(all.iter().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_key_and_what_is_allowed() {
        let folder = folder();
        folder.write("short.key", "0707");
        folder.write("two.token", "a b");
        let with = |more: &str| format!("{more}\n{MINIMAL}");
        for (text, expected) in [
            // What serde refuses.
            (with("nam = \"a\""), "s.toml:1: nam: unknown field `nam`, expected one of `name`, "),
            (
                with("[local]\nenabled = 1"),
                "s.toml:2: enabled: invalid type: integer `1`, expected a",
            ),
            (with("name = "), "s.toml:1: name: string values must be quoted"),
            (with("[[link]]\nname = \"a\""), "s.toml:1: missing field `side`"),
            // What is ours.
            (with("name = \"A\""), "s.toml:1: name: must be 1 to 64 of a-z"),
            (
                with("[[link]]\nname = \"a\"\nside = \"lan\""),
                "s.toml:3: link[0].side: must be \"clients\" (whose traffic is forwarded) or",
            ),
            (
                with("[[link]]\nname = \"a b\"\nside = \"clients\""),
                "s.toml:2: link[0].name: is not a link's name: 1 to 15 bytes",
            ),
            (
                with(
                    "[[link]]\nname = \"a\"\nside = \"clients\"\n\
                      [[link]]\nname = \"a\"\nside = \"clients\"",
                ),
                "s.toml:5: link[1].name: is named twice for one side",
            ),
            (
                with("[local]\nenabled = false"),
                "s.toml:2: local.enabled: is false and there is no [[link]]: nothing would be seen",
            ),
            (
                with("seen_as = [{ from = \"10\", as = \"203.0.113.7\" }]"),
                "s.toml:1: seen_as[0].from: is not an address or a network, such as",
            ),
            (
                with("seen_as = [{ from = \"10.0.0.0/8\", as = \"203.0.113.0/24\" }]"),
                "s.toml:1: seen_as[0].as: is not an address, such as",
            ),
            (
                with(
                    "seen_as = [\n{ from = \"10.0.0.0/8\", as = \"203.0.113.7\" },\n\
                      { from = \"10.1.0.0/8\", as = \"203.0.113.8\" },\n]",
                ),
                "s.toml:3: seen_as[1].from: 10.0.0.0/8 is named twice",
            ),
            (with("api = [\"a.example\"]"), "s.toml:1: api[0]: is not an address or a network"),
            (with("ignore = [\"::/129\"]"), "s.toml:1: ignore[0]: is not an address or a network"),
            (
                with("named_window_seconds = 0"),
                "s.toml:1: named_window_seconds: must be 1 to 86400",
            ),
            (
                with("report_every_seconds = 301"),
                "s.toml:1: report_every_seconds: must be 1 to 300",
            ),
            (
                with("[resolvers]\nfiles = [\"none.txt\"]"),
                "s.toml:2: resolvers.files[0]: none.txt cannot be read: No such file",
            ),
            (
                with("[metrics]\nlisten = \"9101\""),
                "s.toml:2: metrics.listen: is not an address and",
            ),
            (
                with("[log]\nlevel = \"=\""),
                "s.toml:2: log.level: is not a filter, such as \"info\"",
            ),
            (with("[log]\nformat = \"xml\""), "s.toml:2: log.format: must be \"text\" or \"json\""),
            (
                "[[report]]\nsocket = \"s\"\n".to_owned(),
                "s.toml: names.key_file: is missing: hosts",
            ),
            (
                "[names]\nkey_file = \"k\"\n".to_owned(),
                "s.toml: report: is missing: write [[report]]",
            ),
            (
                "[names]\nkey_file = \"short.key\"\n[[report]]\nsocket = \"s\"\n".to_owned(),
                "s.toml:2: names.key_file: short.key is not 64 hex digits; make one: openssl",
            ),
            (
                "[names]\nkey_file = \"none\"\n[[report]]\nsocket = \"s\"\n".to_owned(),
                "s.toml:2: names.key_file: none cannot be read: No such file",
            ),
            (
                "[names]\ntell = \"all\"\nkey_file = \"k\"\n[[report]]\nsocket = \"s\"\n"
                    .to_owned(),
                "s.toml:2: names.tell: must be \"hashed\", \"clear\" or \"none\"",
            ),
        ] {
            let error = read(&folder, &text).unwrap_err();
            assert!(error.starts_with(expected), "{text}\n{error}\nnot {expected}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_target_is_named() {
        let folder = folder();
        folder.write("two.token", "a b");
        for (report, expected) in [
            ("", "socket: or url is missing, such as socket ="),
            ("socket = \"a\"\nurl = \"https://a\"", "socket: and url exclude each other"),
            ("socket = \"a\"\nca_file = \"ca.pem\"", "ca_file: needs an https url"),
            (
                "url = \"http://[::1]:1\"\ntoken_file = \"t\"\nca_file = \"ca.pem\"",
                "ca_file: needs an",
            ),
            ("url = \"https://a\"\nca_file = \"ca.pem\"", "token_file: is missing: the file with"),
            ("url = \"https://a\"\ntoken_file = \"t\"", "ca_file: is missing: the CA certificates"),
            (
                "url = \"https://a\"\ntoken_file = \"two.token\"\nca_file = \"ca.pem\"",
                "token_file: two.token is not a token: one line",
            ),
            (
                "url = \"https://a\"\ntoken_file = \"none\"\nca_file = \"ca.pem\"",
                "token_file: none: No such file",
            ),
            (
                "url = \"https://a\"\ntoken_file = \"t\"\nca_file = \"ca.pem\"\nkey = \"k\"",
                "certificate: and key are given together",
            ),
            ("url = \"ftp://a\"\ntoken_file = \"t\"", "url: is not http or https with a host and"),
            (
                "url = \"https://a/x\"\ntoken_file = \"t\"",
                "url: is not http or https with a host and",
            ),
            (
                "url = \"https://u@a\"\ntoken_file = \"t\"",
                "url: is not http or https with a host and",
            ),
            (
                "url = \"https://a:0\"\ntoken_file = \"t\"",
                "url: is not http or https with a host and",
            ),
            (
                "url = \"https://a:70000\"\ntoken_file = \"t\"",
                "url: is not http or https with a host",
            ),
            ("url = \"a:9090\"\ntoken_file = \"t\"", "url: is not http or https with a host and"),
        ] {
            let text = format!("[names]\nkey_file = \"k\"\n[[report]]\n{report}\n");
            let error = read(&folder, &text).unwrap_err();
            let said = error.split_once(" report[0].").map_or("", |(_, said)| said);
            assert!(said.starts_with(expected), "{report}\n{error}\nnot {expected}");
        }
        let twice = format!("{MINIMAL}[[report]]\nsocket = \"/run/stillgate/sensor.sock\"\n");
        let error = read(&folder, &twice).unwrap_err();
        assert!(error.contains("report[1]: is the same as one before it"), "{error}");
    }

    #[test]
    fn all_errors_come_together_in_the_order_of_lines() {
        let folder = folder();
        let text =
            "name = \"A\"\napi = [\"x\"]\n[names]\ntell = \"x\"\n[metrics]\nlisten = \"x\"\n";
        let error = read(&folder, text).unwrap_err();
        let lines: Vec<_> = error.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        let keys = ["names.key_file:", "report:", "name:", "api[0]:", "names.tell:"];
        assert_eq!(lines[..5], keys);
        assert_eq!(lines[5], "metrics.listen:");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_and_no_secret_is_shown() {
        let folder = folder();
        for mode in [0o640, 0o604, 0o660] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(folder.path("k"), permissions).unwrap();
            let error = read(&folder, MINIMAL).unwrap_err();
            let expected = format!("k (mode {mode:03o}) can be read or written by others than its");
            assert!(error.contains(&expected) && !error.contains("0707"), "{error}");
        }
        let bad = "[names]\nkey_file = \"k\"\n[[report]]\ntoken_file = 5 # 0707\nsocket = \"s\"";
        let error = read(&folder, bad).unwrap_err();
        assert!(error.starts_with("s.toml:4: token_file: invalid type") && !error.contains("0707"));
        let permissions = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(folder.path("t"), permissions).unwrap();
        folder.write("k", KEY);
        let text = "[names]\nkey_file = \"k\"\n\
                    [[report]]\nurl = \"http://gateway.example:9090\"\ntoken_file = \"t\"\n";
        let warnings = read(&folder, text).unwrap().warnings;
        let said: Vec<_> = warnings.iter().map(|warning| warning.message.as_str()).collect();
        assert!(said[0].contains("can be read by every user"), "{said:?}");
        assert!(said[1].contains("plain http: whoever is on the way reads the token"), "{said:?}");
    }

    #[test]
    fn the_longest_prefix_wins() {
        let pair = |from: &str, to: &str| (network(from).unwrap(), to.parse().unwrap());
        let seen_as = SeenAs::new(vec![
            pair("0.0.0.0/0", "203.0.113.1"),
            pair("10.1.2.3", "203.0.113.4"),
            pair("10.0.0.0/8", "203.0.113.2"),
            pair("10.1.0.0/16", "203.0.113.3"),
            pair("fd00::/8", "203.0.113.5"),
        ]);
        for (inside, outside) in [
            ("10.1.2.3", Some("203.0.113.4")),
            ("10.1.2.4", Some("203.0.113.3")),
            ("10.2.0.1", Some("203.0.113.2")),
            ("198.51.100.1", Some("203.0.113.1")),
            ("fd00::1", Some("203.0.113.5")),
            ("2001:db8::1", None),
        ] {
            let expected = outside.map(|outside| outside.parse().unwrap());
            assert_eq!(seen_as.of(inside.parse().unwrap()), expected, "{inside}");
        }
    }

    #[test]
    fn a_host_s_name_is_made_fit() {
        for (host, name) in [
            ("Egress-1.Example", "egress-1.example"),
            ("_a b", "a-b"),
            ("", "sensor"),
            ("---", "sensor"),
            ("hôte", "h-te"),
        ] {
            assert_eq!(fit_name(host), name);
        }
        assert_eq!(fit_name(&"a".repeat(100)), "a".repeat(64));
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_odd(text in "\\PC*|([a-z_\\[\\]=\"{}0-9. \n]|report|names|seen_as)*") {
            let _ = parse(&text, Path::new("s.toml"));
        }
    }
}
