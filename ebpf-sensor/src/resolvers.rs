//! Resolvers that are known: by address and by the server name in a ClientHello.
//!
//! A short list of our own (`data/resolvers.toml`), and operators' files in the formats that such lists
//! come in, told apart line by line: an address or network; a host name; a line of a hosts file; an
//! Adblock rule (`||name^`); a URL (RFC 8484's `https://…`, or `tls://`, `quic://`); a DNS stamp
//! (`sdns://…`, the DNS Stamps specification of dnscrypt-proxy), in a file of its own or in Markdown
//! under `## name` headings as public-resolvers has it. A line that cannot be read is skipped and told.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ipnet::IpNet;
use serde::Deserialize;

use crate::event::is_near;
use crate::hello::host_name;

/// The largest file that is read.
pub const LIST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Addresses, networks and names together, of all lists.
pub const ENTRIES_MAX: usize = 262_144;
/// The longest line.
const LINE_BYTES_MAX: usize = 4096;
/// Lines whose errors are kept word for word.
const ERRORS_SHOWN: usize = 8;
/// The longest provider name that is kept, bytes.
const PROVIDER_BYTES_MAX: usize = 64;

const BUILT_IN: &str = include_str!("../data/resolvers.toml");

/// Why a list was refused.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// Longer than [`LIST_BYTES_MAX`].
    #[error("the list {0} is longer than {LIST_BYTES_MAX} bytes")]
    TooLong(String),
    /// All lists hold more than [`ENTRIES_MAX`].
    #[error("with the list {0} there are more than {ENTRIES_MAX} entries")]
    TooMany(String),
    /// Nothing in it could be read.
    #[error("the list {label} has no entry that could be read{}", first_of(.errors))]
    Empty {
        /// The list's label.
        label: String,
        /// The first errors.
        errors: Vec<LineError>,
    },
    /// The list of our own is not what it should be.
    #[error("the built-in list: {0}")]
    BuiltIn(String),
}

/// A line that was skipped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct LineError {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// What was read of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Addresses and networks.
    pub addresses: usize,
    /// Names.
    pub names: usize,
    /// Lines that are right but name no resolver that can be seen here: stamps of DNSCrypt, say, or
    /// `127.0.0.1 localhost`.
    pub passed_over: usize,
    /// Lines that could not be read.
    pub skipped: usize,
    /// The first of those.
    pub errors: Vec<LineError>,
}

/// Known resolvers.
#[derive(Clone, Debug, Default)]
pub struct Resolvers {
    addresses: HashMap<IpAddr, Arc<str>>,
    /// Networks by their length, the longest first.
    networks: Vec<(u8, HashMap<IpNet, Arc<str>>)>,
    names: HashMap<Box<str>, Arc<str>>,
    suffixes: HashMap<Box<str>, Arc<str>>,
}

impl Resolvers {
    /// Without any entry yet.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Who runs the resolver at an address.
    #[must_use]
    pub fn by_address(&self, ip: IpAddr) -> Option<&Arc<str>> {
        self.addresses.get(&ip).or_else(|| {
            self.networks
                .iter()
                .find_map(|(length, networks)| networks.get(&IpNet::new(ip, *length).ok()?.trunc()))
        })
    }

    /// Who runs the resolver with a server name (lower case, no last dot).
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&Arc<str>> {
        self.names.get(name).or_else(|| {
            let mut rest = name;
            loop {
                if let Some(provider) = self.suffixes.get(rest) {
                    return Some(provider);
                }
                rest = rest.split_once('.')?.1;
            }
        })
    }

    /// Addresses, networks and names.
    #[must_use]
    pub fn entries(&self) -> usize {
        let networks: usize = self.networks.iter().map(|(_, networks)| networks.len()).sum();
        self.addresses.len() + networks + self.names.len() + self.suffixes.len()
    }
}

/// Takes in lists. What came first stays: add operators' lists before the built-in one where theirs shall
/// name the provider.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    resolvers: Resolvers,
    entries: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BuiltIn {
    resolver: Vec<BuiltInResolver>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BuiltInResolver {
    provider: String,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    suffixes: Vec<String>,
}

impl Builder {
    /// Adds the list of our own.
    ///
    /// # Errors
    /// When it is malformed; a test keeps it from being.
    pub fn built_in(mut self) -> Result<Self, ListError> {
        let list: BuiltIn =
            toml::from_str(BUILT_IN).map_err(|error| ListError::BuiltIn(error.to_string()))?;
        for resolver in list.resolver {
            let provider: Arc<str> = resolver.provider.into();
            let wrong = |entry: &str| ListError::BuiltIn(format!("{entry:?} of {provider}"));
            for address in &resolver.addresses {
                let Some(network) = network(address).filter(is_resolver) else {
                    return Err(wrong(address));
                };
                self.put_network(network, &provider);
            }
            let exact = resolver.names.iter().map(|name| (name, false));
            for (name, below) in exact.chain(resolver.suffixes.iter().map(|name| (name, true))) {
                if domain(name).is_none_or(|read| read != *name) {
                    return Err(wrong(name));
                }
                self.put_name(name, below, &provider);
            }
        }
        Ok(self)
    }

    /// Adds a list; its entries' provider is the heading that they stand under, else `label` (the
    /// file's name).
    ///
    /// # Errors
    /// When the list is too long, when there would be too many entries, and when nothing in it could
    /// be read: then nothing of it is added.
    pub fn add(&mut self, label: &str, text: &[u8]) -> Result<Read, ListError> {
        if text.len() > LIST_BYTES_MAX {
            return Err(ListError::TooLong(label.to_owned()));
        }
        let lines = || text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        // A file of stamps with headings: all else in it is prose.
        let prose = lines().any(|line| line.starts_with(b"## "))
            && lines().any(|line| line.starts_with(b"sdns://"));
        let mut provider: Arc<str> = provider_name(label.as_bytes());
        let mut read = Read::default();
        let mut entries = Vec::new();
        for (index, line) in lines().enumerate() {
            if prose {
                if let Some(heading) = line.strip_prefix(b"## ") {
                    provider = provider_name(heading);
                    continue;
                }
                if !line.starts_with(b"sdns://") {
                    continue;
                }
            }
            match read_line(line) {
                Ok(found) if found.is_empty() => {}
                Ok(found) => {
                    let before = entries.len();
                    let seen = found.into_iter().filter(|entry| !matches!(entry, Entry::None));
                    entries.extend(seen.map(|entry| (entry, Arc::clone(&provider))));
                    read.passed_over += usize::from(entries.len() == before);
                }
                Err(reason) => {
                    read.skipped += 1;
                    if read.errors.len() < ERRORS_SHOWN {
                        read.errors.push(LineError { line: index + 1, reason });
                    }
                }
            }
            if self.entries + entries.len() > ENTRIES_MAX {
                return Err(ListError::TooMany(label.to_owned()));
            }
        }
        if entries.is_empty() {
            return Err(ListError::Empty { label: label.to_owned(), errors: read.errors });
        }
        for (entry, provider) in entries {
            match entry {
                Entry::Network(network) => {
                    read.addresses += 1;
                    self.put_network(network, &provider);
                }
                Entry::Name(name, below) => {
                    read.names += 1;
                    self.put_name(&name, below, &provider);
                }
                Entry::None => {}
            }
        }
        Ok(read)
    }

    /// What was added.
    #[must_use]
    pub fn build(self) -> Resolvers {
        self.resolvers
    }

    fn put_network(&mut self, network: IpNet, provider: &Arc<str>) {
        self.entries += 1;
        let provider = Arc::clone(provider);
        if network.prefix_len() == network.max_prefix_len() {
            self.resolvers.addresses.entry(network.addr()).or_insert(provider);
            return;
        }
        let networks = &mut self.resolvers.networks;
        let length = network.prefix_len();
        let at = networks.partition_point(|(other, _)| *other > length);
        if networks.get(at).is_none_or(|(other, _)| *other != length) {
            networks.insert(at, (length, HashMap::new()));
        }
        networks[at].1.entry(network).or_insert(provider);
    }

    fn put_name(&mut self, name: &str, below: bool, provider: &Arc<str>) {
        self.entries += 1;
        let names = if below { &mut self.resolvers.suffixes } else { &mut self.resolvers.names };
        names.entry(name.into()).or_insert_with(|| Arc::clone(provider));
    }
}

enum Entry {
    Network(IpNet),
    /// A name, and whether those below it are meant too.
    Name(String, bool),
    /// Right, but no resolver that can be seen here.
    None,
}

/// The entries of a line; none of a comment.
fn read_line(line: &[u8]) -> Result<Vec<Entry>, &'static str> {
    if line.len() > LINE_BYTES_MAX {
        return Err("longer than 4096 bytes");
    }
    let line = str::from_utf8(line).map_err(|_| "not UTF-8")?;
    let line = line.trim_start_matches('\u{feff}').trim();
    if line.is_empty() || line.starts_with(['#', ';', '!']) {
        return Ok(Vec::new());
    }
    // A list of Adblock rules begins with its kind.
    if line.starts_with("[Adblock") {
        return Ok(Vec::new());
    }
    if let Some(stamp) = line.strip_prefix("sdns://") {
        return read_stamp(stamp);
    }
    let line = line.split_once(" #").map_or(line, |(line, _)| line).trim_end();
    if let Some(rule) = line.strip_prefix("||") {
        let end = rule.find(['^', '$', '/']).unwrap_or(rule.len());
        if rule[end..].starts_with('/') {
            return Err("an Adblock rule with a path");
        }
        return Ok(vec![host(&rule[..end], true).ok_or("an Adblock rule without a host name")?]);
    }
    if let Some((scheme, rest)) = line.split_once("://") {
        if !["https", "h3", "tls", "quic"].contains(&scheme.to_ascii_lowercase().as_str()) {
            return Err("a URL of another scheme than https, h3, tls or quic");
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        return Ok(vec![authority_host(authority).ok_or("a URL without a host")?]);
    }
    let mut words = line.split_ascii_whitespace();
    let Some(first) = words.next() else { return Ok(Vec::new()) };
    let Some(network) = network(first) else {
        if words.next().is_some() {
            return Err("several words that begin with no address");
        }
        return Ok(vec![host(first, false).ok_or("neither an address nor a host name")?]);
    };
    let resolver = is_resolver(&network);
    let mut entries = vec![if resolver { Entry::Network(network) } else { Entry::None }];
    for name in words {
        // `127.0.0.1 localhost` and its like stand at the head of many hosts files.
        match domain(name) {
            Some(name) => entries.push(Entry::Name(name, false)),
            None if host_name(name.as_bytes()).is_some() => {}
            None => return Err("an address with something that is no host name"),
        }
    }
    if !resolver && entries.len() == 1 && line == first {
        return Err("an address that no public resolver has");
    }
    Ok(entries)
}

/// DNS Stamps: a protocol, eight bytes of properties, then fields with their lengths.
fn read_stamp(stamp: &str) -> Result<Vec<Entry>, &'static str> {
    const MALFORMED: &str = "a malformed DNS stamp";
    let stamp = stamp.split_ascii_whitespace().next().unwrap_or_default().trim_end_matches('=');
    let bytes = URL_SAFE_NO_PAD.decode(stamp).map_err(|_| "a DNS stamp that is not base64url")?;
    let (protocol, rest) = bytes.split_first().ok_or(MALFORMED)?;
    match protocol {
        // DoH, DoT, DoQ.
        2..=4 => {}
        // Plain DNS, DNSCrypt, ODoH targets and the relays of both.
        0 | 1 | 5 | 0x81 | 0x85 => return Ok(vec![Entry::None]),
        _ => return Err("a DNS stamp of an unknown protocol"),
    }
    let mut rest = rest.get(8..).ok_or(MALFORMED)?;
    let mut field = |lengths: &mut bool| {
        let (length, after) = rest.split_first()?;
        // In a list of fields the high bit says that another follows.
        let listed = std::mem::take(lengths);
        let (field, after) = after.split_at_checked(usize::from(if listed {
            *lengths = length & 0x80 != 0;
            length & 0x7f
        } else {
            *length
        }))?;
        rest = after;
        str::from_utf8(field).ok().or(Some(""))
    };
    let address = field(&mut false).ok_or(MALFORMED)?;
    let mut more = true;
    while more {
        field(&mut more).ok_or(MALFORMED)?;
    }
    let name = field(&mut false).ok_or(MALFORMED)?;
    let mut entries = Vec::new();
    for part in [address, name] {
        // The address may be missing, or be a port alone.
        if !part.is_empty() && !part.starts_with(':') {
            entries.push(authority_host(part).ok_or(MALFORMED)?);
        }
    }
    if entries.is_empty() { Err("a DNS stamp without a host") } else { Ok(entries) }
}

/// `host`, `host:port`, `address`, `address:port`, `[address]:port` (RFC 3986, section 3.2).
fn authority_host(authority: &str) -> Option<Entry> {
    if let Ok(end) = authority.parse::<SocketAddr>() {
        return host(&end.ip().to_string(), false);
    }
    let bare = authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Some(entry) = host(bare.unwrap_or(authority), false) {
        return Some(entry);
    }
    let (name, port) = authority.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    host(name, false)
}

/// An address, a host name, or `*.` or `.` before one for all below it.
fn host(text: &str, below: bool) -> Option<Entry> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let network = IpNet::from(ip.to_canonical());
        return Some(if is_resolver(&network) { Entry::Network(network) } else { Entry::None });
    }
    let bare = text.strip_prefix("*.").or_else(|| text.strip_prefix('.'));
    Some(Entry::Name(domain(bare.unwrap_or(text))?, below || bare.is_some()))
}

/// A host name of at least two labels, of which the last is no number.
fn domain(text: &str) -> Option<String> {
    let name = host_name(text.as_bytes())?;
    let (_, last) = name.rsplit_once('.')?;
    (!last.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

fn network(text: &str) -> Option<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(ip) => Some(ip.to_canonical().into()),
        Err(_) => text.parse::<IpNet>().ok().map(|network| network.trunc()),
    }
}

/// Whether a public resolver may be there: lists of hosts files put 0.0.0.0 or 127.0.0.1 before names.
/// A network so wide that it is no provider's is a mistake.
fn is_resolver(network: &IpNet) -> bool {
    let wide = match network {
        IpNet::V4(network) => network.prefix_len() < 8,
        IpNet::V6(network) => network.prefix_len() < 16,
    };
    let ip = network.addr();
    !wide && !ip.is_unspecified() && !is_near(ip) && !is_private(ip)
}

/// Addresses that are not of the public internet: RFC 1918, RFC 4193, RFC 6598 (shared), RFC 1122 (0/8)
/// and RFC 1112 (240/4).
pub(crate) fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            ip.is_private() || a == 0 || a >= 240 || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unspecified(),
    }
}

fn provider_name(text: &[u8]) -> Arc<str> {
    let text = String::from_utf8_lossy(text);
    let mut name: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    let end = (0..=PROVIDER_BYTES_MAX).rev().find(|end| name.is_char_boundary(*end));
    name.truncate(end.unwrap_or(0));
    name.into()
}

fn first_of(errors: &[LineError]) -> String {
    errors.first().map_or_else(String::new, |error| format!(" ({error})"))
}

/// For `fuzz/`: bytes as a list.
pub fn fuzz_resolver_list(bytes: &[u8]) {
    let mut builder = Resolvers::builder();
    match builder.add("fuzz", bytes) {
        Ok(read) => assert!(read.addresses + read.names > 0 && read.errors.len() <= read.skipped),
        Err(_) => assert_eq!(builder.build().entries(), 0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn read(text: &str) -> (Resolvers, Read) {
        let mut builder = Resolvers::builder();
        let read = builder.add("list.txt", text.as_bytes()).unwrap();
        (builder.build(), read)
    }

    #[test]
    fn the_built_in_list_is_right() {
        let resolvers = Resolvers::builder().built_in().unwrap().build();
        let addresses = [
            ("1.1.1.1", Some("cloudflare")),
            ("2606:4700:4700::1111", Some("cloudflare")),
            ("8.8.4.4", Some("google")),
            ("2620:fe::fe", Some("quad9")),
            ("45.90.28.77", Some("nextdns")),
            ("45.90.29.77", None),
            ("2a07:a8c0::12:3456", Some("nextdns")),
            ("1.1.1.4", None),
            ("104.16.248.249", None),
        ];
        for (address, expected) in addresses {
            assert_eq!(resolvers.by_address(ip(address)).map(|p| &**p), expected, "{address}");
        }
        let names = [
            ("dns.google", Some("google")),
            ("www.dns.google", None),
            ("mozilla.cloudflare-dns.com", Some("cloudflare")),
            ("cloudflare-dns.com", Some("cloudflare")),
            ("notcloudflare-dns.com", None),
            ("abc123.dns.nextdns.io", Some("nextdns")),
            ("nextdns.io", None),
            ("com", None),
            ("", None),
        ];
        for (name, expected) in names {
            assert_eq!(resolvers.by_name(name).map(|p| &**p), expected, "{name}");
        }
    }

    #[test]
    fn each_kind_of_line_is_read() {
        let text = "\u{feff}# comment\r\n\
            ; comment\n! comment\n[Adblock Plus 2.0]\n\n\
            9.9.9.9\r\n\
            192.0.2.0/24 # a network\n\
            2001:db8::5\n\
            2001:db8:1::/48\n\
            ::ffff:198.51.100.1\n\
            Dns.Example.\n\
            *.below.example\n\
            0.0.0.0 hosts.example also.example # one\n\
            127.0.0.1 localhost\n\
            203.0.113.5 both.example\n\
            ||adblock.example^$third-party\n\
            https://url.example/dns-query{?dns}\n\
            https://[2001:db8::9]:8443/dns-query\n\
            https://203.0.113.9/dns-query\n\
            tls://dot.example:853\n\
            quic://doq.example\n";
        let (resolvers, read) = read(text);
        assert_eq!(read.errors, []);
        assert_eq!((read.addresses, read.names, read.passed_over, read.skipped), (8, 9, 1, 0));
        for address in [
            "9.9.9.9",
            "192.0.2.200",
            "2001:db8::5",
            "2001:db8:1::7",
            "198.51.100.1",
            "203.0.113.5",
            "2001:db8::9",
            "203.0.113.9",
        ] {
            assert_eq!(
                resolvers.by_address(ip(address)).map(|p| &**p),
                Some("list.txt"),
                "{address}"
            );
        }
        for address in ["0.0.0.0", "127.0.0.1", "192.0.3.1", "2001:db8:2::"] {
            assert_eq!(resolvers.by_address(ip(address)), None, "{address}");
        }
        for name in [
            "dns.example",
            "x.below.example",
            "below.example",
            "hosts.example",
            "also.example",
            "both.example",
            "adblock.example",
            "x.y.adblock.example",
            "url.example",
            "dot.example",
            "doq.example",
        ] {
            assert!(resolvers.by_name(name).is_some(), "{name}");
        }
        for name in ["x.dns.example", "localhost", "example"] {
            assert_eq!(resolvers.by_name(name), None, "{name}");
        }
    }

    fn stamp(protocol: u8, fields: &[u8]) -> String {
        let bytes = [&[protocol, 7, 0, 0, 0, 0, 0, 0, 0][..], fields].concat();
        format!("sdns://{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    fn fields(address: &str, hashes: &[&[u8]], name: &str) -> Vec<u8> {
        let short = |bytes: &[u8]| [&[u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let mut all = short(address.as_bytes());
        if hashes.is_empty() {
            all.push(0);
        }
        for (index, hash) in hashes.iter().enumerate() {
            let mut hash = short(hash);
            hash[0] |= if index + 1 < hashes.len() { 0x80 } else { 0 };
            all.extend(hash);
        }
        all.extend(short(name.as_bytes()));
        all.extend(short(b"/dns-query"));
        all
    }

    #[test]
    fn stamps_are_read_under_their_headings() {
        let text = format!(
            "# public-resolvers\n\nThis is a list of resolvers.\nDNSSEC\n\n    urls = ['a']\n\n\
             ## first-doh\n\nHosted somewhere. See https://first.example/\n\n{}\n{}\n\n\
             ## second-dot\n\n{}\n\n## dnscrypt\n\n{}\n\n## doq\n{}\n",
            stamp(2, &fields("198.51.100.1", &[&[1; 32], &[2; 32]], "first.example")),
            stamp(2, &fields("[2001:db8::1]:443", &[], "first.example:443")),
            stamp(3, &fields(":853", &[&[1; 32]], "second.example")),
            stamp(1, b"\x0d203.0.113.7:44"),
            stamp(4, &fields("", &[], "doq.example")),
        );
        let (resolvers, read) = read(&text);
        assert_eq!((read.addresses, read.names, read.passed_over, read.skipped), (2, 4, 1, 0));
        for (address, provider) in [("198.51.100.1", "first-doh"), ("2001:db8::1", "first-doh")] {
            assert_eq!(resolvers.by_address(ip(address)).map(|p| &**p), Some(provider));
        }
        for (name, provider) in [
            ("first.example", "first-doh"),
            ("second.example", "second-dot"),
            ("doq.example", "doq"),
        ] {
            assert_eq!(resolvers.by_name(name).map(|p| &**p), Some(provider));
        }
        assert_eq!(resolvers.by_address(ip("203.0.113.7")), None);
    }

    /// As dnscrypt-proxy's list has them: without hashes of certificates, and with three.
    #[test]
    fn stamps_as_published_are_read() {
        let text = "sdns://AgcAAAAAAAAABzEuMC4wLjEAEmRucy5jbG91ZGZsYXJlLmNvbQovZG5zLXF1ZXJ5\n\
            sdns://AgcAAAAAAAAADDE5My43MC44NS4xMaARsQLmsfY-UomE1gJfMrE4JB_Ii711GVdNcMmDLVPh6KBa74Q__PL\
            scFX1BKFi8in4ORw3D_OmFj0ts_PWBNYiviBETr1nu4P4gHs5Iek4rJF4uIK9UKrbESMfBEz18I33zhFkb2guYm9ydH\
            ptZXllci5mcgEv\n";
        let (resolvers, read) = read(text);
        assert_eq!((read.addresses, read.names, read.skipped), (2, 2, 0));
        for (address, name) in
            [("1.0.0.1", "dns.cloudflare.com"), ("193.70.85.11", "doh.bortzmeyer.fr")]
        {
            assert!(resolvers.by_address(ip(address)).is_some(), "{address}");
            assert!(resolvers.by_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn lines_that_cannot_be_read_are_told() {
        let text = "9.9.9.9\nlocalhost\na b c\n||^\nftp://a.example/\nsdns://*\nsdns://AgE\n0.0.0.0/0\n\
            10.0.0.1\n300.1.1.1\n@@||a.example^\na_b.example\n";
        let (resolvers, read) = read(text);
        let lines: Vec<_> = read.errors.iter().map(|error| error.line).collect();
        assert_eq!((lines, read.skipped), (vec![2, 3, 4, 5, 6, 7, 8, 9], 10));
        assert_eq!(resolvers.entries(), 2);
    }

    #[test]
    fn a_list_without_entries_is_refused() {
        let mut builder = Resolvers::builder();
        for text in ["", "# nothing\n", "<html>\n<body>Not Found</body>\n", "0.0.0.0\n"] {
            let error = builder.add("a", text.as_bytes()).unwrap_err();
            assert!(matches!(error, ListError::Empty { .. }), "{text:?}: {error}");
        }
        let error = builder.add("a", &vec![b'\n'; LIST_BYTES_MAX + 1]).unwrap_err();
        assert!(matches!(error, ListError::TooLong(_)));
        let many: String = (0..=ENTRIES_MAX).map(|n| format!("a{n}.example\n")).collect();
        assert!(matches!(builder.add("a", many.as_bytes()), Err(ListError::TooMany(_))));
        assert_eq!(builder.build().entries(), 0);
    }

    #[test]
    fn what_came_first_names_the_provider() {
        let mut builder = Resolvers::builder();
        builder.add("ours", b"8.8.8.8\n8.0.0.0/8\n").unwrap();
        let resolvers = builder.built_in().unwrap().build();
        for (address, provider) in [("8.8.8.8", "ours"), ("8.8.4.4", "google"), ("8.1.1.1", "ours")]
        {
            assert_eq!(resolvers.by_address(ip(address)).map(|p| &**p), Some(provider));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_resolver_list(&bytes);
            fuzz_resolver_list(&[b"sdns://", &URL_SAFE_NO_PAD.encode(&bytes).into_bytes()[..]].concat());
        }

        #[test]
        fn no_line_panics(line in "[|*.\\[\\]:/a-c0-9 #^$@é]{0,40}") {
            fuzz_resolver_list(line.as_bytes());
        }
    }
}
