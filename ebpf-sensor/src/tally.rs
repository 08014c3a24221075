//! Sightings in, entries of reports out: counted over a period, addresses as the gateway sees them,
//! hosts and names as keyed hashes.
//!
//! What comes in is in the clear and stays here; what goes out holds no inside address, and a name
//! only where the operator opted in. A lookup for whose name there is no room is counted without it;
//! what finds no room at all is counted as lost.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use ipnet::IpNet;
use rustix::time::{ClockId, clock_gettime};
use serde::{Serialize, Serializer};

use crate::event::Protocol;
use crate::limits;
use crate::sighting::{Contact, Lookup, Origin, Sighting, Sign, Transport};

/// What is told of the names that hosts ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamesTold {
    /// A keyed hash.
    Hashed,
    /// The name itself.
    Clear,
    /// Nothing.
    None,
}

/// The key of the hashes of names and hosts. Sensors with one key give one host one hash.
#[derive(Clone)]
pub struct HashKey(hmac::Key);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey")
    }
}

impl HashKey {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
    }

    /// The first `N` bytes of the HMAC (RFC 2104) of what these parts say together: each is told with
    /// its length, so that no two lists of parts are one text.
    fn hash<const N: usize>(&self, domain: &str, parts: &[&[u8]]) -> [u8; N] {
        let mut context = hmac::Context::with_key(&self.0);
        for part in [domain.as_bytes()].iter().chain(parts) {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let tag = context.sign();
        std::array::from_fn(|index| tag.as_ref().get(index).copied().unwrap_or(0))
    }

    fn host(&self, host: &Host) -> [u8; 8] {
        let address = match host.address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let cgroup = host.cgroup.map(u64::to_be_bytes);
        let cgroup = cgroup.as_ref().map_or(&[][..], |cgroup| cgroup);
        self.hash("stillgate sensor host", &[&address.octets(), cgroup])
    }

    fn name(&self, name: &str) -> [u8; 16] {
        self.hash("stillgate sensor name", &[name.as_bytes()])
    }
}

/// As what addresses the gateway sees inside ones: `seen_as`.
#[derive(Clone, Debug, Default)]
pub struct SeenAs(Vec<(IpNet, IpAddr)>);

impl SeenAs {
    /// Of these pairs the one with the longest prefix holds.
    #[must_use]
    pub fn new(mut pairs: Vec<(IpNet, IpAddr)>) -> Self {
        pairs.sort_by_key(|(from, _)| std::cmp::Reverse(from.prefix_len()));
        Self(pairs)
    }

    /// The address that the gateway sees; `None` where nothing covers this one.
    #[must_use]
    pub fn of(&self, address: IpAddr) -> Option<IpAddr> {
        self.0.iter().find(|(from, _)| from.contains(&address)).map(|(_, seen_as)| *seen_as)
    }
}

/// What the kernel's clock since boot says in unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Unix nanoseconds at boot.
    boot_unix_ns: i128,
}

impl Clock {
    /// As both clocks stand now.
    #[must_use]
    pub fn now() -> Self {
        let unix = read_clock(ClockId::Realtime);
        Self { boot_unix_ns: i128::from(unix) - i128::from(boot_ns()) }
    }

    /// A clock of a machine that booted at this unix time.
    #[must_use]
    pub fn booted_at_ms(unix_ms: u64) -> Self {
        Self { boot_unix_ns: i128::from(unix_ms) * 1_000_000 }
    }

    /// Unix milliseconds of a time since boot.
    #[must_use]
    pub fn unix_ms(&self, at_ns: u64) -> u64 {
        let ms = (self.boot_unix_ns + i128::from(at_ns)) / 1_000_000;
        u64::try_from(ms).unwrap_or(0)
    }
}

/// Nanoseconds since boot (`CLOCK_BOOTTIME`).
#[must_use]
pub fn boot_ns() -> u64 {
    read_clock(ClockId::Boottime)
}

/// Unix milliseconds.
#[must_use]
pub fn unix_ms() -> u64 {
    read_clock(ClockId::Realtime) / 1_000_000
}

fn read_clock(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000) + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// A lookup as a report has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LookupEntry {
    /// The first of them, unix milliseconds.
    pub first_ms: u64,
    /// The last of them.
    pub last_ms: u64,
    /// As the gateway sees the host.
    pub address: IpAddr,
    /// Keyed hash of the host.
    #[serde(serialize_with = "as_hex")]
    pub host: [u8; 8],
    /// Whether the host opens connections to the API.
    pub client: Option<bool>,
    /// How.
    pub transport: Transport,
    /// Where.
    pub server: IpAddr,
    /// Who runs it.
    #[serde(serialize_with = "as_text")]
    pub provider: Option<Arc<str>>,
    /// By what it was recognised.
    pub sign: Sign,
    /// The name, as far as it is told.
    pub name: Option<ToldName>,
    /// How many.
    pub count: u64,
}

/// A name as a report has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToldName {
    /// Its keyed hash.
    Hash([u8; 16]),
    /// Itself.
    Clear(Arc<str>),
}

impl Serialize for ToldName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Hash(hash) => as_hex(hash, serializer),
            Self::Clear(name) => serializer.serialize_str(name),
        }
    }
}

/// A contact as a report has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ContactEntry {
    /// The first of them, unix milliseconds.
    pub first_ms: u64,
    /// The last of them.
    pub last_ms: u64,
    /// As the gateway sees the host.
    pub address: IpAddr,
    /// Keyed hash of the host.
    #[serde(serialize_with = "as_hex")]
    pub host: [u8; 8],
    /// Whether the host opens connections to the API.
    pub client: Option<bool>,
    /// Who was contacted.
    pub destination: IpAddr,
    /// At which port.
    pub port: u16,
    /// By which protocol.
    #[serde(serialize_with = "as_protocol")]
    pub protocol: Protocol,
    /// How many.
    pub count: u64,
}

/// Entries of one report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Lookups.
    pub lookups: Vec<LookupEntry>,
    /// Contacts.
    pub contacts: Vec<ContactEntry>,
}

impl Batch {
    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lookups.len() + self.contacts.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that they take in a report at most.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        let lookups: usize = self.lookups.iter().map(LookupEntry::bytes_max).sum();
        REPORT_HEAD_BYTES + lookups + ENTRY_BYTES * self.contacts.len()
    }
}

/// Bytes of an entry without its texts: keys, numbers and addresses at their longest come to less.
const ENTRY_BYTES: usize = 400;
/// Bytes of a report around its entries; they come to less.
const REPORT_HEAD_BYTES: usize = 512;

impl LookupEntry {
    fn bytes_max(&self) -> usize {
        let name = match &self.name {
            Some(ToldName::Clear(name)) => name.len(),
            _ => 0,
        };
        let provider = self.provider.as_ref().map_or(0, |provider| provider.len());
        // JSON writes a byte as six at most.
        ENTRY_BYTES + 6 * (name + provider)
    }
}

/// What a tally holds at most; what the sensor uses is the default.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// [`limits::LOOKUPS_MAX`].
    pub lookups: usize,
    /// [`limits::NAMED_LOOKUPS_MAX`].
    pub named: usize,
    /// [`limits::CONTACTS_MAX`].
    pub contacts: usize,
    /// [`limits::HOST_ENTRIES_MAX`].
    pub of_host: u32,
    /// [`limits::CLIENTS_MAX`].
    pub clients: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            lookups: limits::LOOKUPS_MAX,
            named: limits::NAMED_LOOKUPS_MAX,
            contacts: limits::CONTACTS_MAX,
            of_host: limits::HOST_ENTRIES_MAX,
            clients: limits::CLIENTS_MAX,
        }
    }
}

/// What a tally was told to do.
#[derive(Clone, Debug)]
pub struct TallySettings {
    /// As what the gateway sees addresses.
    pub seen_as: SeenAs,
    /// What is told of names.
    pub names: NamesTold,
    /// The key of the hashes.
    pub key: HashKey,
    /// Whether the API's addresses are known, so that clients are.
    pub api_known: bool,
    /// What is held.
    pub bounds: Bounds,
}

/// What a tally counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TallyCounters {
    /// Lookups that were counted without their name, for want of room.
    pub folded: u64,
    /// Lookups and contacts that found no room.
    pub full: u64,
    /// Hosts with a private address that no `seen_as` covers; again in each period.
    pub unmapped: u64,
    /// Clients that were forgotten early, for want of room.
    pub clients_forgotten: u64,
}

/// The count of one period, and what is known of hosts beyond it.
#[derive(Debug)]
pub struct Tally {
    settings: TallySettings,
    lookups: HashMap<LookupKey, Times>,
    named: usize,
    contacts: HashMap<ContactKey, Times>,
    of_host: HashMap<Host, OfHost>,
    clients: Latest<Host, ()>,
    counters: TallyCounters,
}

/// Who: an inside address, and the cgroup of a local process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Host {
    address: IpAddr,
    cgroup: Option<u64>,
}

impl Host {
    fn of(origin: &Origin) -> Self {
        Self {
            address: origin.address.to_canonical(),
            cgroup: origin.process.as_ref().map(|process| process.cgroup),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LookupKey {
    host: Host,
    transport: Transport,
    server: IpAddr,
    sign: Sign,
    provider: Option<Arc<str>>,
    name: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ContactKey {
    host: Host,
    destination: IpAddr,
    port: u16,
    protocol: Protocol,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    first_ns: u64,
    last_ns: u64,
    count: u64,
}

impl Times {
    fn once(at_ns: u64) -> Self {
        Self { first_ns: at_ns, last_ns: at_ns, count: 1 }
    }

    fn again(&mut self, at_ns: u64) {
        self.first_ns = self.first_ns.min(at_ns);
        self.last_ns = self.last_ns.max(at_ns);
        self.count += 1;
    }
}

/// Entries of one host in this period.
#[derive(Clone, Copy, Debug, Default)]
struct OfHost {
    entries: u32,
    named: u32,
}

/// A host as reports name it.
#[derive(Clone, Copy)]
struct ToldHost {
    address: IpAddr,
    hash: [u8; 8],
    client: Option<bool>,
}

impl Tally {
    /// An empty one.
    #[must_use]
    pub fn new(settings: TallySettings) -> Self {
        let clients = Latest::new(settings.bounds.clients);
        Self {
            settings,
            lookups: HashMap::new(),
            named: 0,
            contacts: HashMap::new(),
            of_host: HashMap::new(),
            clients,
            counters: TallyCounters::default(),
        }
    }

    /// Counts one sighting.
    pub fn note(&mut self, sighting: &Sighting) {
        match sighting {
            Sighting::Lookup(lookup) => self.note_lookup(lookup),
            Sighting::Contact(contact) => self.note_contact(contact),
            Sighting::Client { at_ns, origin } => {
                self.clients.put(Host::of(origin), *at_ns, ());
            }
        }
    }

    fn note_lookup(&mut self, lookup: &Lookup) {
        let name = lookup.name.clone().filter(|_| self.settings.names != NamesTold::None);
        let mut key = LookupKey {
            host: Host::of(&lookup.origin),
            transport: lookup.transport,
            server: lookup.server.ip().to_canonical(),
            sign: lookup.sign,
            provider: lookup.provider.clone(),
            name,
        };
        if let Some(times) = self.lookups.get_mut(&key) {
            return times.again(lookup.at_ns);
        }
        let bounds = self.settings.bounds;
        let of_host = self.of_host.get(&key.host).copied().unwrap_or_default();
        let room = self.lookups.len() < bounds.lookups && of_host.entries < bounds.of_host;
        // Names take half of what a host may have, so that it has room for what they fold to.
        let room_for_name =
            room && self.named < bounds.named && of_host.named < bounds.of_host.div_ceil(2);
        if key.name.is_some() && !room_for_name {
            key.name = None;
            self.counters.folded += 1;
            if let Some(times) = self.lookups.get_mut(&key) {
                return times.again(lookup.at_ns);
            }
        }
        if !room {
            self.counters.full += 1;
            return;
        }
        let of_host = self.of_host.entry(key.host).or_default();
        of_host.entries += 1;
        if key.name.is_some() {
            of_host.named += 1;
            self.named += 1;
        }
        self.lookups.insert(key, Times::once(lookup.at_ns));
    }

    fn note_contact(&mut self, contact: &Contact) {
        let key = ContactKey {
            host: Host::of(&contact.origin),
            destination: contact.destination.ip().to_canonical(),
            port: contact.destination.port(),
            protocol: contact.protocol,
        };
        if let Some(times) = self.contacts.get_mut(&key) {
            return times.again(contact.at_ns);
        }
        let bounds = self.settings.bounds;
        let of_host = self.of_host.get(&key.host).copied().unwrap_or_default();
        if self.contacts.len() >= bounds.contacts || of_host.entries >= bounds.of_host {
            self.counters.full += 1;
            return;
        }
        self.of_host.entry(key.host).or_default().entries += 1;
        self.contacts.insert(key, Times::once(contact.at_ns));
    }

    /// Entries at present.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lookups.len() + self.contacts.len()
    }

    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counters(&self) -> TallyCounters {
        TallyCounters { clients_forgotten: self.clients.forgotten, ..self.counters }
    }

    /// Ends the period at `now_ns` since boot: its entries, the earliest first, in batches of which
    /// each fits a report.
    pub fn take(&mut self, clock: &Clock, now_ns: u64) -> Vec<Batch> {
        let since = now_ns.saturating_sub(nanoseconds(limits::REMEMBERED));
        self.clients.forget_before(since);
        let (lookups, contacts) =
            (std::mem::take(&mut self.lookups), std::mem::take(&mut self.contacts));
        self.named = 0;
        let hosts: HashMap<Host, ToldHost> = std::mem::take(&mut self.of_host)
            .into_keys()
            .map(|host| (host, self.tell(&host, since)))
            .collect();
        let mut batches = Batches::default();
        let mut lookups: Vec<_> = lookups.into_iter().collect();
        lookups.sort_by_key(|(_, times)| times.first_ns);
        for (key, times) in lookups {
            let Some(host) = hosts.get(&key.host) else { continue };
            let name = key.name.and_then(|name| match self.settings.names {
                NamesTold::Hashed => Some(ToldName::Hash(self.settings.key.name(&name))),
                // The gateway refuses a report for a name that is none.
                NamesTold::Clear if is_tellable(&name) => Some(ToldName::Clear(name)),
                NamesTold::Clear => None,
                NamesTold::None => None,
            });
            batches.lookup(LookupEntry {
                first_ms: clock.unix_ms(times.first_ns),
                last_ms: clock.unix_ms(times.last_ns),
                address: host.address,
                host: host.hash,
                client: host.client,
                transport: key.transport,
                server: key.server,
                provider: key.provider,
                sign: key.sign,
                name,
                count: times.count,
            });
        }
        let mut contacts: Vec<_> = contacts.into_iter().collect();
        contacts.sort_by_key(|(_, times)| times.first_ns);
        for (key, times) in contacts {
            let Some(host) = hosts.get(&key.host) else { continue };
            batches.contact(ContactEntry {
                first_ms: clock.unix_ms(times.first_ns),
                last_ms: clock.unix_ms(times.last_ns),
                address: host.address,
                host: host.hash,
                client: host.client,
                destination: key.destination,
                port: key.port,
                protocol: key.protocol,
                count: times.count,
            });
        }
        batches.done()
    }

    fn tell(&mut self, host: &Host, since_ns: u64) -> ToldHost {
        let seen_as = self.settings.seen_as.of(host.address);
        if seen_as.is_none() && is_private(host.address) {
            if self.counters.unmapped == 0 {
                tracing::warn!(
                    address = %host.address,
                    "no seen_as covers this private address: the gateway hardly sees it as that"
                );
            }
            self.counters.unmapped += 1;
        }
        let client = if !self.settings.api_known {
            None
        } else if self.clients.has(host) {
            Some(true)
        } else if self.clients.forgotten_since(since_ns) {
            // It may be one of those that had no room.
            None
        } else {
            Some(false)
        };
        let hash = self.settings.key.host(host);
        ToldHost { address: seen_as.unwrap_or(host.address), hash, client }
    }
}

fn is_tellable(name: &str) -> bool {
    !name.chars().any(char::is_control) && name.chars().count() <= limits::NAME_CHARS_MAX
}

/// Whether an address is one behind a NAT (RFC 1918, RFC 4193, RFC 6598) or of this machine alone.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(address) => {
            address.is_unique_local()
                || address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_unspecified()
        }
    }
}

/// Entries cut into batches.
#[derive(Default)]
struct Batches {
    full: Vec<Batch>,
    open: Batch,
    open_bytes: usize,
}

impl Batches {
    fn lookup(&mut self, entry: LookupEntry) {
        self.make_room(entry.bytes_max());
        self.open.lookups.push(entry);
    }

    fn contact(&mut self, entry: ContactEntry) {
        self.make_room(ENTRY_BYTES);
        self.open.contacts.push(entry);
    }

    fn make_room(&mut self, bytes: usize) {
        let full = self.open.len() >= limits::REPORT_ENTRIES_MAX
            || REPORT_HEAD_BYTES + self.open_bytes + bytes > limits::REPORT_BYTES_MAX;
        if full && !self.open.is_empty() {
            self.full.push(std::mem::take(&mut self.open));
            self.open_bytes = 0;
        }
        self.open_bytes += bytes;
    }

    fn done(mut self) -> Vec<Batch> {
        if !self.open.is_empty() {
            self.full.push(self.open);
        }
        self.full
    }
}

/// What was told in the last day, for a gateway that has forgotten it: of each way in which a host
/// looked names up, and of each address that it contacted, the last entry.
#[derive(Debug)]
pub struct Recent {
    lookups: Latest<(IpAddr, [u8; 8], Transport, IpAddr), LookupEntry>,
    contacts: Latest<(IpAddr, [u8; 8], IpAddr), ContactEntry>,
}

impl Default for Recent {
    fn default() -> Self {
        Self::new(limits::RETOLD_MAX)
    }
}

impl Recent {
    fn new(max: usize) -> Self {
        Self { lookups: Latest::new(max / 2), contacts: Latest::new(max / 2) }
    }

    /// Remembers what is told, without names.
    pub fn note(&mut self, batch: &Batch) {
        for entry in &batch.lookups {
            let key = (entry.address, entry.host, entry.transport, entry.server);
            self.lookups.put(key, entry.last_ms, LookupEntry { name: None, ..entry.clone() });
        }
        for entry in &batch.contacts {
            let key = (entry.address, entry.host, entry.destination);
            self.contacts.put(key, entry.last_ms, entry.clone());
        }
    }

    /// All of it that is of the last day, the earliest first.
    pub fn all(&mut self, now_ms: u64) -> Vec<Batch> {
        let day_ms = nanoseconds(limits::REMEMBERED) / 1_000_000;
        let since = now_ms.saturating_sub(day_ms);
        self.lookups.forget_before(since);
        self.contacts.forget_before(since);
        let mut batches = Batches::default();
        for entry in self.lookups.in_order() {
            batches.lookup(entry);
        }
        for entry in self.contacts.in_order() {
            batches.contact(entry);
        }
        batches.done()
    }

    /// Entries that were forgotten early, for want of room.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.lookups.forgotten + self.contacts.forgotten
    }
}

/// A map of bounded size with a time for each key. Where it is full, the oldest quarter goes.
#[derive(Debug)]
struct Latest<K, V> {
    entries: HashMap<K, (u64, V)>,
    max: usize,
    forgotten: u64,
    /// The latest time among those that were forgotten for want of room.
    forgotten_at: Option<u64>,
}

impl<K: Clone + Eq + Hash, V: Clone> Latest<K, V> {
    fn new(max: usize) -> Self {
        Self { entries: HashMap::new(), max: max.max(1), forgotten: 0, forgotten_at: None }
    }

    fn put(&mut self, key: K, at: u64, value: V) {
        if let Some(known) = self.entries.get_mut(&key) {
            if at >= known.0 {
                *known = (at, value);
            }
            return;
        }
        if self.entries.len() >= self.max {
            self.shrink();
        }
        self.entries.insert(key, (at, value));
    }

    fn shrink(&mut self) {
        let mut times: Vec<u64> = self.entries.values().map(|(at, _)| *at).collect();
        let quarter = times.len().div_ceil(4).saturating_sub(1);
        let (_, limit, _) = times.select_nth_unstable(quarter);
        let limit = *limit;
        let before = self.entries.len();
        // Of those at the limit as many go as make the quarter: many may have one time.
        let mut left = times.iter().take(quarter + 1).filter(|at| **at == limit).count();
        self.entries.retain(|_, (at, _)| {
            let at_limit = *at == limit && left > 0;
            left -= usize::from(at_limit);
            *at >= limit && !at_limit
        });
        self.forgotten += (before - self.entries.len()) as u64;
        self.forgotten_at = self.forgotten_at.max(Some(limit));
    }

    fn has(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    fn forgotten_since(&self, since: u64) -> bool {
        self.forgotten_at.is_some_and(|at| at >= since)
    }

    fn forget_before(&mut self, since: u64) {
        self.entries.retain(|_, (at, _)| *at >= since);
    }

    fn in_order(&self) -> Vec<V> {
        let mut all: Vec<_> = self.entries.values().collect();
        all.sort_by_key(|(at, _)| *at);
        all.into_iter().map(|(_, value)| value.clone()).collect()
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn as_hex<const N: usize, S: Serializer>(
    bytes: &[u8; N],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

fn as_text<S: Serializer>(text: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_deref().serialize(serializer)
}

fn as_protocol<S: Serializer>(protocol: &Protocol, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(protocol_name(*protocol))
}

/// A protocol's name in reports and lines.
#[must_use]
pub fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::event::{Hook, Process};

    pub(crate) fn origin(address: &str, cgroup: Option<u64>) -> Origin {
        Origin {
            address: address.parse().unwrap(),
            process: cgroup.map(|cgroup| Process { pid: 7, uid: 0, cgroup, name: "curl".into() }),
            hook: Hook::ClientsIngress,
            link: 3,
        }
    }

    pub(crate) fn lookup(origin: Origin, at_ns: u64, name: Option<&str>) -> Sighting {
        Sighting::Lookup(Lookup {
            at_ns,
            origin,
            transport: Transport::Udp,
            server: "192.0.2.53:53".parse().unwrap(),
            sign: Sign::Port,
            provider: None,
            name: name.map(Into::into),
            server_name: Some("never.told.example".into()),
        })
    }

    pub(crate) fn contact(origin: Origin, at_ns: u64, destination: &str) -> Sighting {
        let destination = destination.parse().unwrap();
        Sighting::Contact(Contact { at_ns, origin, destination, protocol: Protocol::Tcp })
    }

    fn settings(names: NamesTold) -> TallySettings {
        TallySettings {
            seen_as: SeenAs::new(vec![
                ("10.0.0.0/8".parse().unwrap(), "203.0.113.7".parse().unwrap()),
                ("10.1.0.0/16".parse().unwrap(), "203.0.113.8".parse().unwrap()),
                ("fd00::/8".parse().unwrap(), "2001:db8::7".parse().unwrap()),
            ]),
            names,
            key: HashKey::new([7; 32]),
            api_known: true,
            bounds: Bounds::default(),
        }
    }

    const CLOCK: u64 = 1_790_000_000_000;

    fn take(tally: &mut Tally, now_ns: u64) -> Batch {
        let mut batches = tally.take(&Clock::booted_at_ms(CLOCK), now_ns);
        assert!(batches.len() <= 1, "{} batches", batches.len());
        batches.pop().unwrap_or_default()
    }

    #[test]
    fn equal_lookups_are_one_entry_and_addresses_are_as_the_gateway_sees_them() {
        let mut tally = Tally::new(settings(NamesTold::Hashed));
        for at_ms in [9, 5, 7] {
            let sighting = lookup(origin("10.0.0.9", None), at_ms * 1_000_000, Some("a.example"));
            tally.note(&sighting);
        }
        tally.note(&lookup(origin("10.1.0.9", None), 1, Some("a.example")));
        tally.note(&lookup(origin("fd00::9", None), 2, Some("a.example")));
        tally.note(&lookup(origin("198.51.100.1", None), 3, Some("a.example")));
        let batch = take(&mut tally, 0);
        let shown: Vec<_> = batch
            .lookups
            .iter()
            .map(|entry| (entry.address.to_string(), entry.count, entry.first_ms - CLOCK))
            .collect();
        let expected = [
            ("203.0.113.8".to_owned(), 1, 0),
            ("2001:db8::7".to_owned(), 1, 0),
            ("198.51.100.1".to_owned(), 1, 0),
            ("203.0.113.7".to_owned(), 3, 5),
        ];
        assert_eq!(shown, expected);
        assert_eq!(batch.lookups[3].last_ms - CLOCK, 9);
        let hosts: HashSet<_> = batch.lookups.iter().map(|entry| entry.host).collect();
        assert_eq!(hosts.len(), 4, "each host has a hash of its own");
        let names: HashSet<_> =
            batch.lookups.iter().map(|entry| format!("{:?}", entry.name)).collect();
        assert_eq!(names.len(), 1, "one name has one hash, whoever asks");
        assert!(tally.is_empty() && tally.counters() == TallyCounters::default());
    }

    #[test]
    fn a_report_is_as_the_readme_describes_it() {
        let mut tally = Tally::new(settings(NamesTold::Hashed));
        let host = || origin("10.0.0.9", Some(5));
        tally.note(&Sighting::Client { at_ns: 1, origin: host() });
        tally.note(&lookup(host(), 1_000_000, Some("a.example")));
        tally.note(&contact(host(), 2_000_000, "198.51.100.9:443"));
        let batch = take(&mut tally, 3_000_000);
        let lookup = serde_json::to_value(&batch.lookups[0]).unwrap();
        let contact = serde_json::to_value(&batch.contacts[0]).unwrap();
        // Worked out with Python's hmac.
        let (host, name) = ("681ec03d14034bca", "e0d04594d956e8d140673aca753ac4ea");
        assert_eq!(
            lookup,
            serde_json::json!({
                "first_ms": CLOCK + 1, "last_ms": CLOCK + 1, "address": "203.0.113.7",
                "host": host, "client": true, "transport": "udp",
                "server": "192.0.2.53", "provider": null, "sign": "port", "name": name, "count": 1,
            })
        );
        assert_eq!(
            contact,
            serde_json::json!({
                "first_ms": CLOCK + 2, "last_ms": CLOCK + 2, "address": "203.0.113.7",
                "host": host, "client": true, "destination": "198.51.100.9", "port": 443,
                "protocol": "tcp", "count": 1,
            })
        );
    }

    #[test]
    fn a_client_is_known_for_a_day_and_unknown_where_the_api_is() {
        let day = nanoseconds(limits::REMEMBERED);
        let host = || origin("10.0.0.9", None);
        let told = |tally: &mut Tally, now_ns: u64| {
            tally.note(&lookup(host(), now_ns, None));
            take(tally, now_ns).lookups[0].client
        };
        let mut tally = Tally::new(settings(NamesTold::Hashed));
        assert_eq!(told(&mut tally, 1), Some(false));
        tally.note(&Sighting::Client { at_ns: 2, origin: host() });
        assert_eq!(told(&mut tally, 3), Some(true));
        assert_eq!(told(&mut tally, 2 + day), Some(true));
        assert_eq!(told(&mut tally, 3 + day), Some(false));
        // Another cgroup of the same address is another host.
        tally.note(&Sighting::Client { at_ns: day, origin: origin("10.0.0.9", Some(1)) });
        assert_eq!(told(&mut tally, 4 + day), Some(false));
        let unknown = TallySettings { api_known: false, ..settings(NamesTold::Hashed) };
        assert_eq!(told(&mut Tally::new(unknown), 1), None);
    }

    #[test]
    fn who_may_have_been_forgotten_is_not_called_no_client() {
        let bounds = Bounds { clients: 4, ..Bounds::default() };
        let mut tally = Tally::new(TallySettings { bounds, ..settings(NamesTold::Hashed) });
        for host in 0..5 {
            let origin = origin(&format!("10.0.0.{host}"), None);
            tally.note(&Sighting::Client { at_ns: 10 + host, origin });
        }
        for host in [0, 4] {
            tally.note(&lookup(origin(&format!("10.0.0.{host}"), None), 20 + host, None));
        }
        let clients: Vec<_> =
            take(&mut tally, 30).lookups.iter().map(|entry| entry.client).collect();
        assert_eq!(clients, [None, Some(true)]);
        assert_eq!(tally.counters().clients_forgotten, 1);
    }

    #[test]
    fn a_private_address_that_nothing_covers_is_told_and_counted() {
        let mut tally = Tally::new(settings(NamesTold::Hashed));
        for address in ["192.168.1.9", "100.64.0.1", "fe80::1", "10.0.0.1", "198.51.100.1"] {
            tally.note(&lookup(origin(address, None), 1, None));
        }
        let batch = take(&mut tally, 2);
        let told =
            |address: &str| batch.lookups.iter().any(|entry| entry.address.to_string() == address);
        assert!(told("192.168.1.9") && told("100.64.0.1") && told("203.0.113.7"));
        assert_eq!(tally.counters().unmapped, 3);
    }

    #[test]
    fn one_host_that_scans_leaves_room_for_others() {
        let mut tally = Tally::new(settings(NamesTold::Hashed));
        for host in 0..u32::from(u16::MAX) {
            let destination = std::net::Ipv4Addr::from(0xc633_6400 + host);
            tally.note(&contact(origin("10.0.0.9", None), 1, &format!("{destination}:443")));
        }
        tally.note(&contact(origin("10.0.0.8", None), 1, "198.51.100.9:443"));
        let batches = tally.take(&Clock::booted_at_ms(CLOCK), 2);
        let entries: Vec<_> = batches.iter().flat_map(|batch| &batch.contacts).collect();
        let hosts: HashSet<_> = entries.iter().map(|entry| entry.host).collect();
        assert_eq!(hosts.len(), 2);
        assert_eq!(entries.len(), limits::HOST_ENTRIES_MAX as usize + 1);
        let lost = u64::from(u16::MAX) - u64::from(limits::HOST_ENTRIES_MAX);
        assert_eq!(tally.counters().full, lost);
    }

    #[test]
    fn a_name_that_finds_no_room_is_folded_before_anything_is_lost() {
        let bounds = Bounds { lookups: 3, named: 1, ..Bounds::default() };
        let mut tally = Tally::new(TallySettings { bounds, ..settings(NamesTold::Clear) });
        for name in ["a.example", "b.example", "c.example", "a.example"] {
            tally.note(&lookup(origin("10.0.0.9", None), 1, Some(name)));
        }
        let mut told: Vec<_> = take(&mut tally, 2)
            .lookups
            .iter()
            .map(|entry| (format!("{:?}", entry.name), entry.count))
            .collect();
        told.sort();
        let named = (r#"Some(Clear("a.example"))"#.to_owned(), 2);
        assert_eq!(told, [("None".to_owned(), 2), named]);
        assert_eq!(tally.counters(), TallyCounters { folded: 2, ..TallyCounters::default() });
    }

    #[test]
    fn a_name_that_the_gateway_would_refuse_is_left_out() {
        let mut tally = Tally::new(settings(NamesTold::Clear));
        let long = "a".repeat(limits::NAME_CHARS_MAX + 1);
        for name in ["a\u{7}.example", &long] {
            tally.note(&lookup(origin("10.0.0.9", None), 1, Some(name)));
        }
        let batch = take(&mut tally, 2);
        assert!(batch.lookups.len() == 2 && batch.lookups.iter().all(|entry| entry.name.is_none()));
    }

    #[test]
    fn reports_are_cut_to_their_bounds() {
        let mut tally = Tally::new(settings(NamesTold::Clear));
        // Every character of these is written as two bytes.
        let long = "\"".repeat(250);
        for index in 0..limits::HOST_ENTRIES_MAX {
            let host = origin(&format!("10.0.0.{}", index % 4), None);
            tally.note(&lookup(host, 1, Some(&format!("{long}{index}"))));
        }
        let batches = tally.take(&Clock::booted_at_ms(CLOCK), 2);
        let entries: usize = batches.iter().map(Batch::len).sum();
        assert_eq!(entries, limits::HOST_ENTRIES_MAX as usize);
        for batch in &batches {
            assert!(batch.len() <= limits::REPORT_ENTRIES_MAX);
            let bytes = serde_json::to_vec(&batch.lookups).unwrap().len();
            assert!(bytes <= batch.bytes_max() && batch.bytes_max() <= limits::REPORT_BYTES_MAX);
        }
        assert!(batches.len() >= 3);
    }

    #[test]
    fn the_last_day_is_told_again_without_names_and_within_bounds() {
        let day_ms = nanoseconds(limits::REMEMBERED) / 1_000_000;
        let mut tally = Tally::new(settings(NamesTold::Clear));
        let mut recent = Recent::new(8);
        let mut note = |recent: &mut Recent, sightings: &[Sighting]| {
            sightings.iter().for_each(|sighting| tally.note(sighting));
            recent.note(&take(&mut tally, 0));
        };
        let host = || origin("10.0.0.9", None);
        note(&mut recent, &[lookup(host(), 0, Some("a.example"))]);
        note(
            &mut recent,
            &[
                lookup(host(), 5_000_000, Some("b.example")),
                contact(host(), 6_000_000, "198.51.100.9:443"),
                contact(host(), 6_000_001, "198.51.100.9:80"),
            ],
        );
        let all = recent.all(CLOCK);
        let [batch] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((batch.lookups.len(), batch.contacts.len()), (1, 1), "the last of each");
        assert_eq!((batch.lookups[0].first_ms - CLOCK, &batch.lookups[0].name), (5, &None));
        assert_eq!(recent.all(CLOCK + day_ms + 6)[0].lookups.len(), 0, "older than a day");
        assert!(recent.all(CLOCK + day_ms + 7).is_empty());
        for index in 0..100_u64 {
            note(&mut recent, &[contact(host(), index, &format!("198.51.100.{index}:443"))]);
        }
        let all = recent.all(CLOCK);
        assert!(all[0].contacts.len() <= 4 && !all[0].contacts.is_empty());
        assert_eq!(recent.forgotten() + all[0].contacts.len() as u64, 100);
    }

    /// Sightings of a few hosts, servers and names, so that many are equal.
    fn sightings() -> impl Strategy<Value = Vec<Sighting>> {
        let one = (0..4_u8, prop::option::of(0..2_u64), 0..40_u8, 0..1000_u64, 0..3_u8);
        let sighting = one.prop_map(|(host, cgroup, which, at_ns, kind)| {
            let origin = origin(&format!("10.0.0.{host}"), cgroup);
            match kind {
                0 => lookup(origin, at_ns, Some(&format!("clear-name-{which}.example"))),
                1 => contact(origin, at_ns, &format!("198.51.100.{which}:443")),
                _ => Sighting::Client { at_ns, origin },
            }
        });
        prop::collection::vec(sighting, 0..300)
    }

    proptest! {
        #[test]
        fn totals_are_kept_and_bounds_hold(
            sightings in sightings(),
            lookups in 0..30_usize,
            named in 0..30_usize,
            contacts in 0..30_usize,
            of_host in 0..20_u32,
            periods in 1..4_usize,
        ) {
            let bounds = Bounds { lookups, named, contacts, of_host, clients: 2 };
            let mut tally = Tally::new(TallySettings { bounds, ..settings(NamesTold::Hashed) });
            let clock = Clock::booted_at_ms(CLOCK);
            let (mut told, mut noted) = (0, 0);
            for part in sightings.chunks(sightings.len().div_ceil(periods).max(1)) {
                for sighting in part {
                    noted += u64::from(!matches!(sighting, Sighting::Client { .. }));
                    tally.note(sighting);
                    prop_assert!(tally.len() <= lookups + contacts);
                    prop_assert!(tally.clients.entries.len() <= 2);
                }
                let mut per_host: HashMap<[u8; 8], u32> = HashMap::new();
                for batch in tally.take(&clock, 1000) {
                    for entry in &batch.lookups {
                        prop_assert!(entry.first_ms <= entry.last_ms);
                        *per_host.entry(entry.host).or_default() += 1;
                        told += entry.count;
                    }
                    for entry in &batch.contacts {
                        *per_host.entry(entry.host).or_default() += 1;
                        told += entry.count;
                    }
                }
                prop_assert!(per_host.values().all(|entries| *entries <= of_host));
            }
            prop_assert_eq!(told + tally.counters().full, noted);
        }

        #[test]
        fn no_name_and_no_inside_address_leaves_in_the_clear(
            sightings in sightings(),
            clear in any::<bool>(),
            none in any::<bool>(),
        ) {
            let names = match (clear, none) {
                (true, _) => NamesTold::Clear,
                (_, true) => NamesTold::None,
                _ => NamesTold::Hashed,
            };
            let mut tally = Tally::new(settings(names));
            sightings.iter().for_each(|sighting| tally.note(sighting));
            let asked = sightings.iter().any(|one| matches!(one, Sighting::Lookup(_)));
            let mut text = String::new();
            for batch in tally.take(&Clock::booted_at_ms(CLOCK), 1000) {
                text += &serde_json::to_string(&(&batch.lookups, &batch.contacts)).unwrap();
            }
            prop_assert_eq!(text.contains("clear-name"), clear && asked);
            prop_assert!(!text.contains("10.0.0.") && !text.contains("never.told"));
            prop_assert!(!text.contains("curl"));
        }

        #[test]
        fn the_latest_stay(times in prop::collection::vec(0..50_u64, 1..200), max in 1..20_usize) {
            let mut latest = Latest::new(max);
            for (key, at) in times.iter().enumerate() {
                latest.put(key, *at, key);
                prop_assert!(latest.entries.len() <= max);
                prop_assert!(latest.has(&key), "what was put last is there");
            }
            let kept = latest.in_order();
            prop_assert_eq!(kept.len() as u64 + latest.forgotten, times.len() as u64);
            prop_assert!(kept.is_sorted_by_key(|key| times[*key]));
        }
    }
}
