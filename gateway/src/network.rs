//! Whose an address is: from a shipped table of clouds, hosting and VPNs, and operators' own files.
//!
//! | source | tells |
//! | --- | --- |
//! | shipped (`data/networks.bin`, `data/networks.toml`) | AS number, name and kind of some hundred hosting and VPN networks |
//! | `network.asn_database`, an MMDB of GeoLite2-ASN's shape | AS number and name of every address; the kind is that of `networks.toml` |
//! | `network.tor_exits`, `.proxies`, `.vpns`, lists of addresses | the kind |
//!
//! The database comes before the shipped table where it knows an address. The lists override
//! the kind and nothing else: among their entries the longest prefix counts, and of one prefix in
//! several lists Tor comes before proxies, those before VPNs.
//!
//! When it is wrong: addresses are sold on, and a table is as old as its date; a company's own
//! network in a cloud looks like any script there. So a kind is context for detectors, never a
//! verdict.
//!
//! All files are read into sorted ranges when they are loaded, so a lookup is one binary search in
//! each and a file that is damaged is found then, not while serving.
//!
//! Sources: MaxMind DB file format 2.0; Tor's exit lists (`TorDNSEL`) format; the shipped data's
//! are in `data/README.md`.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use detectors::{Network, NetworkKind};
use ipnet::IpNet;
use maxminddb::{Reader, WithinOptions};
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::config::file::FileStamp;
use crate::limits::{
    NETWORK_DATABASE_BYTES_MAX, NETWORK_FILES_INTERVAL, NETWORK_LIST_BYTES_MAX, NETWORK_RANGES_MAX,
};

/// The files that an operator adds to the shipped table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkFiles {
    /// MMDB of GeoLite2-ASN's shape.
    pub asn_database: Option<PathBuf>,
    /// Tor exits: an address a line, or Tor's own `ExitAddress` lines.
    pub tor_exits: Option<PathBuf>,
    /// Proxies: an address or a network a line.
    pub proxies: Option<PathBuf>,
    /// VPN exits: an address or a network a line.
    pub vpns: Option<PathBuf>,
}

impl NetworkFiles {
    /// The settings' names and their files.
    fn all(&self) -> [(&'static str, Option<&Path>); 4] {
        [
            ("asn_database", self.asn_database.as_deref()),
            ("tor_exits", self.tor_exits.as_deref()),
            ("proxies", self.proxies.as_deref()),
            ("vpns", self.vpns.as_deref()),
        ]
    }
}

/// Why a file of networks cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// It cannot be read.
    #[error("{} cannot be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is neither an address nor a network.
    #[error("{}:{line}: {wrong}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        wrong: &'static str,
    },
    /// It has more entries than are held.
    #[error("{} has more than {NETWORK_RANGES_MAX} entries", file.display())]
    TooMany {
        /// The file.
        file: PathBuf,
    },
    /// It is no database of the right form.
    #[error("{} is not an ASN database: {wrong}", file.display())]
    Database {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        wrong: String,
    },
}

/// What is known of networks.
pub struct NetworkTable {
    shipped: &'static Shipped,
    database: Option<Systems>,
    kinds: Ranges,
}

impl Default for NetworkTable {
    /// The shipped table alone.
    fn default() -> Self {
        Self { shipped: shipped(), database: None, kinds: Ranges::default() }
    }
}

impl NetworkTable {
    /// The shipped table, and what `files` add to it. Blocks on IO.
    ///
    /// # Errors
    /// What is wrong with each file that cannot be used, by the name of its setting.
    pub fn load(files: &NetworkFiles) -> Result<Self, Vec<(&'static str, NetworkError)>> {
        let shipped = shipped();
        let mut errors = Vec::new();
        let mut database = None;
        let mut entries = Vec::new();
        for (setting, path) in files.all() {
            let Some(path) = path else { continue };
            let kind = match setting {
                "tor_exits" => NetworkKind::Tor,
                "proxies" => NetworkKind::Proxy,
                "vpns" => NetworkKind::Vpn,
                _ => {
                    match read_database(path, shipped) {
                        Ok(systems) => database = Some(systems),
                        Err(error) => errors.push((setting, error)),
                    }
                    continue;
                }
            };
            match read_list(path) {
                Ok(list) => entries.extend(list.into_iter().map(|net| (net, kind as u32))),
                Err(error) => errors.push((setting, error)),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self { shipped, database, kinds: Ranges::new(entries) })
    }

    /// The network of an address; the default where nothing is known.
    #[must_use]
    pub fn lookup(&self, ip: IpAddr) -> Network {
        let ip = ip.to_canonical();
        let known = self.database.as_ref().and_then(|systems| systems.get(ip));
        let mut network =
            known.or_else(|| self.shipped.systems.get(ip)).cloned().unwrap_or_default();
        if let Some(kind) = self.kinds.get(ip) {
            network.kind = LISTED.into_iter().find(|it| *it as u32 == kind).unwrap_or(network.kind);
        }
        network
    }
}

const LISTED: [NetworkKind; 3] = [NetworkKind::Tor, NetworkKind::Proxy, NetworkKind::Vpn];

impl fmt::Debug for NetworkTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = self.database.as_ref().map_or(0, |systems| systems.ranges.len());
        let (shipped, listed) = (self.shipped.systems.ranges.len(), self.kinds.len());
        write!(f, "NetworkTable({shipped} shipped, {database} of a database, {listed} listed)")
    }
}

/// The table in use, read again when its files change.
pub struct NetworkStore {
    files: NetworkFiles,
    stamps: Mutex<[Option<FileStamp>; 4]>,
    table: RwLock<Arc<NetworkTable>>,
}

impl NetworkStore {
    /// Loads the table. Blocks on IO.
    ///
    /// # Errors
    /// As [`NetworkTable::load`].
    pub fn load(files: NetworkFiles) -> Result<Self, Vec<(&'static str, NetworkError)>> {
        // Taken before: a file that changes meanwhile is read once more.
        let stamps = Mutex::new(stamps(&files));
        let table = NetworkTable::load(&files)?;
        Ok(Self { files, stamps, table: RwLock::new(Arc::new(table)) })
    }

    /// As [`NetworkTable::lookup`] in the table in use.
    #[must_use]
    pub fn lookup(&self, ip: IpAddr) -> Network {
        self.table.read().lookup(ip)
    }

    /// The table in use.
    #[must_use]
    pub fn table(&self) -> Arc<NetworkTable> {
        Arc::clone(&self.table.read())
    }

    /// Reads all files again if one of them changed; `None` where none did. If one cannot be used
    /// the table stays as it is, and the file is not tried again before it changes. Blocks on IO.
    pub fn reload_changed(&self) -> Option<Result<(), Vec<(&'static str, NetworkError)>>> {
        let now = stamps(&self.files);
        if std::mem::replace(&mut *self.stamps.lock(), now) == now {
            return None;
        }
        Some(NetworkTable::load(&self.files).map(|table| {
            let table = Arc::new(table);
            // The old table is dropped after the lock is.
            let _old = std::mem::replace(&mut *self.table.write(), table);
        }))
    }

    /// Looks at the files every [`NETWORK_FILES_INTERVAL`] until `stop`.
    pub async fn watch(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        if self.files == NetworkFiles::default() {
            return;
        }
        let mut interval = tokio::time::interval(NETWORK_FILES_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let store = Arc::clone(&self);
            // A database takes a while to read, so not on a worker thread.
            match tokio::task::spawn_blocking(move || store.reload_changed()).await {
                Ok(Some(Ok(()))) => log::info!("networks read again: {:?}", self.table()),
                Ok(Some(Err(errors))) => {
                    for (setting, error) in errors {
                        log::error!("network.{setting}: {error}; the networks stay as they were");
                    }
                }
                Ok(None) | Err(_) => {}
            }
        }
    }
}

impl Default for NetworkStore {
    /// The shipped table alone.
    fn default() -> Self {
        Self { files: NetworkFiles::default(), stamps: Mutex::default(), table: RwLock::default() }
    }
}

impl fmt::Debug for NetworkStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table().fmt(f)
    }
}

fn stamps(files: &NetworkFiles) -> [Option<FileStamp>; 4] {
    files.all().map(|(_, path)| path.and_then(FileStamp::of))
}

/// A number for each address of some disjoint ranges.
#[derive(Default)]
struct Ranges {
    v4: Sorted<u32>,
    v6: Sorted<u128>,
}

/// The first addresses apart from the rest: a search touches less memory.
#[derive(Default)]
struct Sorted<A> {
    firsts: Vec<A>,
    lasts: Vec<(A, u32)>,
}

impl<A: Ord + Copy> Sorted<A> {
    fn get(&self, address: A) -> Option<u32> {
        let after = self.firsts.partition_point(|first| *first <= address);
        let (last, value) = *self.lasts.get(after.checked_sub(1)?)?;
        (address <= last).then_some(value)
    }

    fn push(&mut self, first: A, last: A, value: u32) {
        self.firsts.push(first);
        self.lasts.push((last, value));
    }
}

impl Ranges {
    /// Of networks that may stand within each other: the longest prefix counts, and of one prefix
    /// that is there more than once the largest value.
    fn new(entries: Vec<(IpNet, u32)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (net, value) in entries {
            match (net.network(), net.broadcast()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    v4.push((first.to_bits().into(), last.to_bits().into(), value));
                }
                (first, last) => v6.push((bits(first), bits(last), value)),
            }
        }
        let mut ranges = Self::default();
        flatten(v4, |first, last, value| {
            // They were 32 bits before.
            ranges.v4.push(first as u32, last as u32, value);
        });
        flatten(v6, |first, last, value| ranges.v6.push(first, last, value));
        ranges
    }

    fn get(&self, ip: IpAddr) -> Option<u32> {
        match ip {
            IpAddr::V4(ip) => self.v4.get(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.get(ip.to_bits()),
        }
    }

    fn len(&self) -> usize {
        self.v4.firsts.len() + self.v6.firsts.len()
    }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// Cuts ranges that are disjoint or within each other into disjoint ones, the inner before the
/// outer, in order.
fn flatten(mut nested: Vec<(u128, u128, u32)>, mut emit: impl FnMut(u128, u128, u32)) {
    use std::cmp::Reverse;
    nested.sort_unstable_by_key(|(first, last, value)| (*first, Reverse(*last), Reverse(*value)));
    nested.dedup_by_key(|(first, last, _)| (*first, *last));
    let mut open: Vec<(u128, u32)> = Vec::new();
    // First address that nothing was emitted for yet; `None` past the last there is.
    let mut from = Some(0);
    let mut close = |open: &mut Vec<(u128, u32)>, from: &mut Option<u128>, before: Option<u128>| {
        while let Some((last, value)) = open.pop_if(|(last, _)| before.is_none_or(|at| *last < at))
        {
            if let Some(first) = from.filter(|first| *first <= last) {
                emit(first, last, value);
                *from = last.checked_add(1);
            }
        }
        if let (Some((_, value)), Some(first), Some(before)) = (open.last(), *from, before)
            && first < before
        {
            emit(first, before - 1, *value);
        }
        if let (Some(_), Some(before)) = (*from, before) {
            *from = Some(before);
        }
    };
    for (first, last, value) in nested {
        close(&mut open, &mut from, Some(first));
        open.push((last, value));
    }
    close(&mut open, &mut from, None);
}

/// Autonomous systems by address.
#[derive(Default)]
struct Systems {
    ranges: Ranges,
    networks: Vec<Network>,
}

impl Systems {
    fn get(&self, ip: IpAddr) -> Option<&Network> {
        self.networks.get(self.ranges.get(ip)? as usize)
    }
}

/// What comes with the program.
#[derive(Default)]
struct Shipped {
    listed: HashMap<u32, (Arc<str>, NetworkKind)>,
    systems: Systems,
}

fn shipped() -> &'static Shipped {
    static SHIPPED: LazyLock<Shipped> = LazyLock::new(|| {
        let list = include_str!("../data/networks.toml");
        let ranges = include_bytes!("../data/networks.bin");
        // A test reads them, so this is for a build that was tampered with.
        read_shipped(list, ranges).unwrap_or_else(|wrong| {
            log::error!("the shipped networks cannot be read: {wrong}");
            Shipped::default()
        })
    });
    &SHIPPED
}

fn read_shipped(list: &str, ranges: &[u8]) -> Result<Shipped, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct List {
        network: Vec<Listed>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Listed {
        name: Arc<str>,
        kind: Kind,
        asns: Vec<u32>,
    }
    #[derive(Clone, Copy, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Hosting,
        Vpn,
        Proxy,
    }
    let list: List = toml::from_str(list).map_err(|error| error.to_string())?;
    let mut listed = HashMap::new();
    for Listed { name, kind, asns } in list.network {
        let kind = match kind {
            Kind::Hosting => NetworkKind::Hosting,
            Kind::Vpn => NetworkKind::Vpn,
            Kind::Proxy => NetworkKind::Proxy,
        };
        for asn in asns {
            if listed.insert(asn, (Arc::clone(&name), kind)).is_some() {
                return Err(format!("AS{asn} is listed twice"));
            }
        }
    }
    let systems = read_ranges(ranges, &listed).ok_or("networks.bin is damaged")?;
    Ok(Shipped { listed, systems })
}

fn network(
    listed: &HashMap<u32, (Arc<str>, NetworkKind)>,
    asn: u32,
    name: Option<&str>,
) -> Network {
    match listed.get(&asn) {
        Some((name, kind)) => Network { asn, name: Some(Arc::clone(name)), kind: *kind },
        None => Network { asn, name: name.map(Into::into), kind: NetworkKind::default() },
    }
}

/// Reads the form that `tools/make_networks.py` writes and describes; `None` where it is another.
fn read_ranges(bytes: &[u8], listed: &HashMap<u32, (Arc<str>, NetworkKind)>) -> Option<Systems> {
    const MAGIC: &[u8] = b"SGNETS\x01\0";
    const DATE_BYTES: usize = 4;
    let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if Sha256::digest(content)[..] != *checksum {
        return None;
    }
    let mut rest = content.strip_prefix(MAGIC)?.get(DATE_BYTES..)?;
    let mut systems = Systems::default();
    let mut asn = 0_u32;
    for _ in 0..varint(&mut rest)? {
        asn = asn.checked_add(u32::try_from(varint(&mut rest)?).ok()?)?;
        systems.networks.push(network(listed, asn, None));
    }
    let (v4, v6) = (varint(&mut rest)?, varint(&mut rest)?);
    let mut read = |count: u64, max: u64, push: &mut dyn FnMut(u64, u64, u32)| {
        let mut from = Some(0_u64);
        for _ in 0..count {
            let first = from?.checked_add(varint(&mut rest)?)?;
            let last = first.checked_add(varint(&mut rest)?).filter(|last| *last <= max)?;
            let index = u32::try_from(varint(&mut rest)?).ok()?;
            push(first, last, index);
            from = last.checked_add(1);
        }
        Some(())
    };
    let Ranges { v4: into_v4, v6: into_v6 } = &mut systems.ranges;
    // Within 32 bits by the bound.
    read(v4, u32::MAX.into(), &mut |first, last, index| {
        into_v4.push(first as u32, last as u32, index);
    })?;
    read(v6, u64::MAX, &mut |first, last, index| {
        let (first, last) = (u128::from(first) << 64, u128::from(last) << 64);
        into_v6.push(first, last | u128::from(u64::MAX), index);
    })?;
    rest.is_empty().then_some(systems)
}

/// LEB128, up to 64 bits.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        let part = u64::from(byte & 0x7f);
        if part << shift >> shift != part {
            return None;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, NetworkError> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            return Err(io::Error::other(format!("larger than {bytes_max} bytes")));
        }
        Ok(bytes)
    };
    read().map_err(|source| NetworkError::Read { file: path.to_owned(), source })
}

fn read_database(path: &Path, shipped: &Shipped) -> Result<Systems, NetworkError> {
    let bytes = read_bounded(path, NETWORK_DATABASE_BYTES_MAX)?;
    parse_database(bytes, shipped, NETWORK_RANGES_MAX).map_err(|wrong| {
        let file = path.to_owned();
        match wrong {
            Some(wrong) => NetworkError::Database { file, wrong },
            None => NetworkError::TooMany { file },
        }
    })
}

/// `Err(None)` where there are more networks than are held.
fn parse_database(
    bytes: Vec<u8>,
    shipped: &Shipped,
    ranges_max: usize,
) -> Result<Systems, Option<String>> {
    #[derive(Deserialize)]
    struct Asn<'a> {
        autonomous_system_number: u32,
        #[serde(borrow)]
        autonomous_system_organization: Option<&'a str>,
    }
    let wrong = |error: maxminddb::MaxMindDbError| Some(error.to_string());
    let database = Reader::from_source(bytes).map_err(wrong)?;
    let mut networks = Vec::new();
    // A record serves all the networks of a system.
    let mut by_offset: HashMap<usize, u32> = HashMap::new();
    let mut entries = Vec::new();
    // Whatever can be asked for is, so that it is counted: a damaged tree has no end of networks,
    // and the reader would pass over them for ever.
    let all = WithinOptions::default().include_networks_without_data().include_aliased_networks();
    for (count, found) in database.networks(all).map_err(wrong)?.enumerate() {
        if count >= ranges_max {
            return Err(None);
        }
        let found = found.map_err(wrong)?;
        let Some(offset) = found.offset() else { continue };
        let net = found.network().map_err(wrong)?;
        let net = IpNet::new(net.ip(), net.prefix()).map_err(|error| Some(error.to_string()))?;
        if is_alias(net) {
            continue;
        }
        let index = match by_offset.get(&offset) {
            Some(index) => *index,
            None => {
                let Some(record) = found.decode::<Asn<'_>>().map_err(wrong)? else { continue };
                let name = record.autonomous_system_organization;
                networks.push(network(&shipped.listed, record.autonomous_system_number, name));
                let index = u32::try_from(networks.len() - 1).map_err(|_| None)?;
                by_offset.insert(offset, index);
                index
            }
        };
        entries.push((net, index));
    }
    Ok(Systems { ranges: Ranges::new(entries), networks })
}

/// Whether this is a place where a database shows its IPv4 networks again: mapped addresses,
/// Teredo and 6to4.
fn is_alias(net: IpNet) -> bool {
    match net {
        IpNet::V4(_) => false,
        IpNet::V6(net) => {
            let bits = net.network().to_bits();
            bits >> 32 == 0xffff || bits >> 96 == 0x2001_0000 || bits >> 112 == 0x2002
        }
    }
}

fn read_list(path: &Path) -> Result<Vec<IpNet>, NetworkError> {
    let file = || path.to_owned();
    let bytes = read_bounded(path, NETWORK_LIST_BYTES_MAX)?;
    let mut list = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = std::str::from_utf8(line).map_err(|_| "is not text").and_then(parse_entry);
        match line {
            Ok(None) => {}
            Ok(Some(_)) if list.len() >= NETWORK_RANGES_MAX => {
                return Err(NetworkError::TooMany { file: file() });
            }
            Ok(Some(net)) => list.push(net),
            Err(wrong) => return Err(NetworkError::Line { file: file(), line: index + 1, wrong }),
        }
    }
    Ok(list)
}

/// One line of a list: an address, a network, one of Tor's lines, or nothing.
fn parse_entry(line: &str) -> Result<Option<IpNet>, &'static str> {
    /// Wider entries would be most of a continent: a mistake, not a list.
    const V4_PREFIX_MIN: u8 = 8;
    const V6_PREFIX_MIN: u8 = 16;
    let line = line.trim_start_matches('\u{feff}').split('#').next().unwrap_or_default().trim();
    let mut words = line.split_ascii_whitespace();
    let word = match words.next() {
        None | Some("ExitNode" | "Published" | "LastStatus" | "Downloaded" | "@type") => {
            return Ok(None);
        }
        Some("ExitAddress") => words.next().unwrap_or_default(),
        Some(word) if words.next().is_none() => word,
        Some(_) => return Err("is more than one address; write one a line"),
    };
    let word = word.trim_start_matches('[').trim_end_matches(']');
    let net = match IpAddr::from_str(word) {
        Ok(ip) => IpNet::from(ip.to_canonical()),
        // Bits after the prefix are dropped: these lists are not the operator's own writing.
        Err(_) => IpNet::from_str(word)
            .map_err(|_| "is neither an address nor a network such as 203.0.113.0/24")?
            .trunc(),
    };
    let prefix_min = if net.addr().is_ipv4() { V4_PREFIX_MIN } else { V6_PREFIX_MIN };
    if net.prefix_len() < prefix_min {
        return Err("is too wide: at most a /8, of IPv6 a /16");
    }
    Ok(Some(net))
}

/// Arbitrary bytes as every kind of file that is read here: must not panic.
#[doc(hidden)]
pub fn fuzz_network(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let entries = text.lines().filter_map(|line| parse_entry(line).ok().flatten());
        let ranges = Ranges::new(entries.map(|net| (net, 1)).collect());
        assert!(ranges.v4.firsts.is_sorted() && ranges.v6.firsts.is_sorted());
    }
    // With the checksum that it would have, else nothing but the checksum is met.
    let mut sealed = data.to_vec();
    sealed.extend_from_slice(&Sha256::digest(data));
    if let Some(systems) = read_ranges(&sealed, &HashMap::new()) {
        let _ = systems.get(IpAddr::from([192, 0, 2, 1]));
    }
    let _ = parse_database(data.to_vec(), shipped(), 1000);
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::file::tests::TestDirectory;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn nets(texts: &[(&str, u32)]) -> Vec<(IpNet, u32)> {
        texts.iter().map(|(net, value)| (net.parse().unwrap(), *value)).collect()
    }

    #[test]
    fn what_is_shipped_can_be_read() {
        let list = include_str!("../data/networks.toml");
        let shipped = read_shipped(list, include_bytes!("../data/networks.bin")).unwrap();
        assert!(shipped.listed.len() > 300);
        for network in &shipped.systems.networks {
            assert!(shipped.listed.contains_key(&network.asn), "AS{}", network.asn);
        }
        let ranges = &shipped.systems.ranges;
        assert!(ranges.v4.firsts.is_sorted() && ranges.v6.firsts.is_sorted());
    }

    #[test]
    fn a_shipped_list_or_table_that_is_wrong_is_refused() {
        let list = "[[network]]\nname = \"A\"\nkind = \"vpn\"\nasns = [1]\n";
        let table = |content: &[u8]| [content, &Sha256::digest(content)[..]].concat();
        let whole = table(b"SGNETS\x01\0\0\0\0\0\x01\x01\x01\0\x05\x09\0");
        let shipped = read_shipped(list, &whole).unwrap();
        let network = Network { asn: 1, name: Some("A".into()), kind: NetworkKind::Vpn };
        for (address, expected) in [("0.0.0.5", Some(&network)), ("0.0.0.14", Some(&network))] {
            assert_eq!(shipped.systems.get(ip(address)), expected);
        }
        assert_eq!(shipped.systems.get(ip("0.0.0.4")), None);
        assert_eq!(shipped.systems.get(ip("0.0.0.15")), None);
        for end in 0..whole.len() {
            assert!(read_shipped(list, &whole[..end]).is_err());
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(read_shipped(list, &changed).is_err());
        }
        let wrong: [&[u8]; 5] = [
            b"SGNETS\x02\0\0\0\0\0\0\0\0",
            b"SGNETS\x01\0\0\0\0\0\x01\x01\x01\0\x05",
            b"SGNETS\x01\0\0\0\0\0\0\0\0\0",
            b"SGNETS\x01\0\0\0\0\0\0\x01\0\xff\xff\xff\xff\x0f\x01\0",
            b"SGNETS\x01\0\0\0\0\0\0\x01\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ];
        for content in wrong {
            assert!(read_shipped(list, &table(content)).is_err(), "{content:?}");
        }
        for list in [list.repeat(2), list.replace("vpn", "tor"), "x = 1".into()] {
            assert!(read_shipped(&list, &whole).is_err());
        }
    }

    #[test]
    fn the_longest_prefix_counts_and_of_one_prefix_the_largest_value() {
        let ranges = Ranges::new(nets(&[
            ("10.0.0.0/8", 1),
            ("10.1.0.0/16", 2),
            ("10.1.2.0/24", 3),
            ("10.1.2.3/32", 4),
            ("10.255.0.0/16", 5),
            ("192.0.2.0/24", 6),
            ("192.0.2.0/24", 8),
            ("192.0.2.0/24", 7),
            ("255.255.255.255/32", 9),
            ("2001:db8::/32", 1),
            ("2001:db8::1/128", 2),
            ("ffff::/16", 3),
        ]));
        let cases = [
            ("9.255.255.255", None),
            ("10.0.0.0", Some(1)),
            ("10.1.0.0", Some(2)),
            ("10.1.2.2", Some(3)),
            ("10.1.2.3", Some(4)),
            ("10.1.2.4", Some(3)),
            ("10.1.3.0", Some(2)),
            ("10.2.0.0", Some(1)),
            ("10.255.255.255", Some(5)),
            ("11.0.0.0", None),
            ("192.0.2.77", Some(8)),
            ("255.255.255.255", Some(9)),
            ("255.255.255.254", None),
            ("2001:db8::", Some(1)),
            ("2001:db8::1", Some(2)),
            ("2001:db8::2", Some(1)),
            ("::", None),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Some(3)),
        ];
        for (address, expected) in cases {
            assert_eq!(ranges.get(ip(address)), expected, "{address}");
        }
    }

    #[test]
    fn lists_are_read_in_the_forms_they_come_in() {
        let cases = [
            ("", Ok(None)),
            ("# comment", Ok(None)),
            ("  192.0.2.1  # here\r", Ok(Some("192.0.2.1/32"))),
            ("192.0.2.77/24", Ok(Some("192.0.2.0/24"))),
            ("[2001:db8::1]", Ok(Some("2001:db8::1/128"))),
            ("::ffff:192.0.2.1", Ok(Some("192.0.2.1/32"))),
            ("2001:db8::/32", Ok(Some("2001:db8::/32"))),
            ("ExitNode 0011BD2485AD45D984EC4159C88FC066E5E3300E", Ok(None)),
            ("ExitAddress 192.0.2.9 2026-01-02 03:04:05", Ok(Some("192.0.2.9/32"))),
            ("@type tordnsel 1.0", Ok(None)),
            ("ExitAddress", Err("is neither")),
            ("<!doctype html>", Err("is more than one")),
            ("secret", Err("is neither")),
            ("192.0.2.1/33", Err("is neither")),
            ("0.0.0.0/0", Err("is too wide")),
            ("2000::/3", Err("is too wide")),
        ];
        for (line, expected) in cases {
            match (parse_entry(line), expected) {
                (Ok(net), Ok(expected)) => {
                    assert_eq!(net.map(|net| net.to_string()).as_deref(), expected, "{line}");
                }
                (Err(wrong), Err(expected)) => assert!(wrong.starts_with(expected), "{line}"),
                (got, _) => panic!("{line}: {got:?}"),
            }
        }
    }

    /// A database of GeoLite2-ASN's shape, IPv6 with IPv4 at its place, records of 24 bits.
    fn database(entries: &[(&str, u32, Option<&str>)]) -> Vec<u8> {
        #[derive(Clone, Copy)]
        enum To {
            Nothing,
            Node(usize),
            Data(usize),
        }
        fn text(out: &mut Vec<u8>, text: &str) {
            assert!(text.len() < 285);
            match u8::try_from(text.len()).unwrap_or(u8::MAX) {
                short @ 0..29 => out.push(0x40 | short),
                long => out.extend_from_slice(&[0x40 | 29, long - 29]),
            }
            out.extend_from_slice(text.as_bytes());
        }
        let number = |out: &mut Vec<u8>, number: u32| {
            out.push(0xc4);
            out.extend_from_slice(&number.to_be_bytes());
        };
        let (mut nodes, mut data) = (vec![[To::Nothing; 2]], Vec::new());
        for (net, asn, name) in entries {
            let at = data.len();
            data.push(0xe0 | if name.is_some() { 2 } else { 1 });
            text(&mut data, "autonomous_system_number");
            number(&mut data, *asn);
            if let Some(name) = name {
                text(&mut data, "autonomous_system_organization");
                text(&mut data, name);
            }
            let net: IpNet = net.parse().unwrap();
            let length = usize::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 };
            let (bits, mut node) = (bits(net.addr()), 0);
            for depth in 0..length {
                let side = (bits >> (127 - depth) & 1) as usize;
                if depth + 1 == length {
                    nodes[node][side] = To::Data(at);
                } else {
                    if matches!(nodes[node][side], To::Nothing) {
                        nodes[node][side] = To::Node(nodes.len());
                        nodes.push([To::Nothing; 2]);
                    }
                    let To::Node(next) = nodes[node][side] else { panic!("nested") };
                    node = next;
                }
            }
        }
        let mut out = Vec::new();
        for record in nodes.iter().flatten() {
            let value = match record {
                To::Nothing => nodes.len(),
                To::Node(node) => *node,
                To::Data(at) => nodes.len() + 16 + at,
            };
            out.extend_from_slice(&(value as u32).to_be_bytes()[1..]);
        }
        out.extend_from_slice(&[0; 16]);
        out.extend_from_slice(&data);
        out.extend_from_slice(b"\xab\xcd\xefMaxMind.com\xe9");
        let count = u32::try_from(nodes.len()).unwrap();
        text(&mut out, "node_count");
        number(&mut out, count);
        let short = [
            ("record_size", 24),
            ("ip_version", 6),
            ("binary_format_major_version", 2),
            ("binary_format_minor_version", 0),
        ];
        for (name, value) in short {
            text(&mut out, name);
            out.extend_from_slice(&[0xa1, value]);
        }
        text(&mut out, "build_epoch");
        out.extend_from_slice(&[0x01, 0x02, 5]);
        text(&mut out, "database_type");
        text(&mut out, "GeoLite2-ASN");
        text(&mut out, "languages");
        out.extend_from_slice(&[0x00, 0x04]);
        text(&mut out, "description");
        out.push(0xe0);
        out
    }

    pub(crate) fn sample_database() -> Vec<u8> {
        database(&[
            ("192.0.2.0/24", 64_500, Some("Example Org")),
            ("198.51.100.0/25", 24_940, Some("Their own name")),
            ("2001:db8::/32", 64_501, None),
        ])
    }

    #[test]
    fn a_database_tells_systems_and_the_list_their_kinds() {
        let folder = TestDirectory::new();
        let files = NetworkFiles {
            asn_database: Some(folder.write("asn.mmdb", sample_database())),
            tor_exits: Some(folder.write("tor", "ExitAddress 192.0.2.9 2026-01-02 03:04:05\n")),
            proxies: Some(folder.write("proxies", "192.0.2.0/28\n203.0.113.5\n")),
            vpns: Some(folder.write("vpns", "192.0.2.0/28\n2001:db8::/64\n198.51.100.0/24\n")),
        };
        let table = NetworkTable::load(&files).unwrap();
        let network =
            |asn, name: Option<&str>, kind| Network { asn, name: name.map(Into::into), kind };
        let example = Some("Example Org");
        let cases = [
            ("192.0.2.200", network(64_500, example, NetworkKind::Unlisted)),
            ("192.0.2.9", network(64_500, example, NetworkKind::Tor)),
            ("::ffff:192.0.2.9", network(64_500, example, NetworkKind::Tor)),
            ("192.0.2.8", network(64_500, example, NetworkKind::Proxy)),
            ("203.0.113.5", network(0, None, NetworkKind::Proxy)),
            ("203.0.113.6", Network::default()),
            ("198.51.100.127", network(24_940, Some("Hetzner"), NetworkKind::Vpn)),
            ("198.51.100.128", network(0, None, NetworkKind::Vpn)),
            ("2001:db8::1", network(64_501, None, NetworkKind::Vpn)),
            ("2001:db8:1::1", network(64_501, None, NetworkKind::Unlisted)),
        ];
        for (address, expected) in cases {
            assert_eq!(table.lookup(ip(address)), expected, "{address}");
        }
        let only = NetworkFiles { asn_database: files.asn_database, ..NetworkFiles::default() };
        let table = NetworkTable::load(&only).unwrap();
        let hetzner = network(24_940, Some("Hetzner"), NetworkKind::Hosting);
        assert_eq!(table.lookup(ip("198.51.100.1")), hetzner);
    }

    #[test]
    fn every_file_that_cannot_be_used_is_named() {
        let folder = TestDirectory::new();
        let files = NetworkFiles {
            asn_database: Some(folder.write("asn.mmdb", "not a database")),
            tor_exits: Some(folder.path().join("nowhere")),
            proxies: Some(folder.write("proxies", "192.0.2.1\n\nsecret\n")),
            vpns: Some(folder.write("vpns", b"\xff\n")),
        };
        let errors = NetworkTable::load(&files).unwrap_err();
        let shown: Vec<String> =
            errors.iter().map(|(setting, error)| format!("{setting} {error}")).collect();
        let path = folder.path().display();
        let begins = [
            format!("asn_database {path}/asn.mmdb is not an ASN database: "),
            format!("tor_exits {path}/nowhere cannot be read: "),
            format!("proxies {path}/proxies:3: is neither an address nor"),
            format!("vpns {path}/vpns:1: is not text"),
        ];
        assert_eq!(shown.len(), begins.len(), "{shown:?}");
        for (shown, begin) in shown.iter().zip(begins) {
            assert!(shown.starts_with(&begin), "{shown} instead of {begin}");
        }
    }

    #[test]
    fn a_database_of_something_else_or_damaged_is_refused() {
        let whole = sample_database();
        assert!(parse_database(whole.clone(), shipped(), 1000).is_ok());
        for end in [0, 10, whole.len() / 2, whole.len() - 40] {
            assert!(parse_database(whole[..end].to_vec(), shipped(), 1000).is_err());
        }
        // A city database has records of other fields.
        let name = b"autonomous_system_number";
        let at = whole.windows(name.len()).position(|part| part == name).unwrap();
        let mut other = whole.clone();
        other[at] = b'A';
        let wrong = parse_database(other, shipped(), 1000).err().unwrap();
        assert!(wrong.is_some_and(|wrong| wrong.contains("autonomous_system_number")));
        // Both sides of each node lead to the next one: more networks than there are atoms.
        let mut endless = whole;
        for node in 0..100_usize {
            for side in 0..2 {
                let next = (node as u32 + 1).to_be_bytes();
                endless[node * 6 + side * 3..][..3].copy_from_slice(&next[1..]);
            }
        }
        assert!(matches!(parse_database(endless, shipped(), 1000), Err(None)));
    }

    #[test]
    fn changed_files_are_read_again_and_bad_ones_change_nothing() {
        let folder = TestDirectory::new();
        let list = folder.write("vpns", "192.0.2.1\n");
        let files = NetworkFiles { vpns: Some(list), ..NetworkFiles::default() };
        let store = NetworkStore::load(files).unwrap();
        let is_vpn = |address| store.lookup(ip(address)).kind == NetworkKind::Vpn;
        assert!(store.reload_changed().is_none());
        assert!(is_vpn("192.0.2.1") && !is_vpn("192.0.2.22"));
        folder.write("vpns", "192.0.2.22\n");
        assert!(store.reload_changed().unwrap().is_ok());
        assert!(!is_vpn("192.0.2.1") && is_vpn("192.0.2.22"));
        folder.write("vpns", "<html>\n");
        assert_eq!(store.reload_changed().unwrap().unwrap_err().len(), 1);
        assert!(store.reload_changed().is_none());
        assert!(is_vpn("192.0.2.22"));
    }

    proptest! {
        #[test]
        fn ranges_tell_what_a_look_at_every_entry_tells(
            entries in proptest::collection::vec((0..64_u8, 0..4_u8, 0..5_u32), 0..20),
            six in any::<bool>(),
        ) {
            // Few bits, at the end of the address space, so that entries meet.
            let address = |low: u8| -> IpAddr {
                if six {
                    (u128::MAX - 63 + u128::from(low)).to_be_bytes().into()
                } else {
                    (u32::MAX - 63 + u32::from(low)).to_be_bytes().into()
                }
            };
            let length = if six { 128 } else { 32 };
            let entries: Vec<(IpNet, u32)> = entries
                .into_iter()
                .map(|(low, up, value)| {
                    (IpNet::new(address(low), length - 2 * up).unwrap().trunc(), value)
                })
                .collect();
            let ranges = Ranges::new(entries.clone());
            for low in 0..64 {
                let at = address(low);
                let best = entries.iter().filter(|(net, _)| net.contains(&at));
                let best = best.max_by_key(|(net, value)| (net.prefix_len(), *value));
                prop_assert_eq!(ranges.get(at), best.map(|(_, value)| *value));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_network(&data);
        }

        #[test]
        fn a_changed_database_never_panics(
            changes in proptest::collection::vec(
                (any::<proptest::sample::Index>(), any::<u8>()), 1..6,
            ),
        ) {
            let mut data = sample_database();
            for (index, byte) in changes {
                let at = index.index(data.len());
                data[at] = byte;
            }
            fuzz_network(&data);
        }

        #[test]
        fn arbitrary_lines_never_panic(line in "\\PC{0,40}") {
            let _ = parse_entry(&line);
        }
    }
}
