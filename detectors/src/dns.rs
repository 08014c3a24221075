//! What sensors tell of how names are resolved behind an address, and what that says of an account
//! whose exchanges come from there (T-DIST-006).
//!
//! A sensor sees hosts, the gateway sees addresses, and a NAT puts many hosts behind one. So what is
//! told is held by host, and an account has as much of it as is likely to be its own: the share of
//! the client hosts of which it was told, less where more customers come from the address than a
//! sensor knows hosts there, and less with every day since it was told last.
//!
//! How rare a resolver is shows only where a sensor looks: it is told against the customers from
//! addresses of which a sensor told anything at all, be it plain DNS.

use serde::{Deserialize, Serialize};

use crate::account;
use crate::event::DnsTransport;
use crate::merge_fields;
use crate::pivot::{Family, Pivots};
use crate::sketch::{Distinct, Latest, Mark, Merge, Timed, Unsound, count};

/// Hosts behind an address of which more than their number is remembered: a sample, those with the
/// smallest hashes, where there are more.
const HOSTS_MAX: usize = 12;
/// Most unnamed addresses that say something of a host. Whoever contacts more browses behind
/// encrypted DNS, and meets somebody at some address by chance.
const UNNAMED_MAX: usize = 8;
/// Seconds of a window in which hosts are counted.
const WINDOW_S: u32 = 86_400;
/// Windows that are remembered: enough for [`FADED_S`].
const WINDOWS: usize = 3;
/// What a sensor has told fades evenly over so many seconds.
const FADED_S: u32 = 2 * 86_400;
/// What is remembered of an account fades evenly over so many seconds of its further exchanges.
const FORGOTTEN_S: u32 = 7 * 86_400;
/// Least share, in thousandths, at which a value is an account's: more likely than not.
const SHARE_MIN: u16 = 500;
/// Thousandths of the whole.
const WHOLE: u16 = 1_000;
/// The value in a family that everybody shares who could have shared any.
const COVERED: u64 = 0;

/// Ways of encrypted DNS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transports(u8);

impl Transports {
    const NAMES: [(DnsTransport, &'static str); 3] =
        [(DnsTransport::Dot, "DoT"), (DnsTransport::Doq, "DoQ"), (DnsTransport::Doh, "DoH")];

    /// One way; none where it is not encrypted.
    #[must_use]
    pub fn of(transport: DnsTransport) -> Self {
        let place = Self::NAMES.iter().position(|(named, _)| *named == transport);
        Self(place.map_or(0, |place| 1 << place))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Their names, for a person to read.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let held = Self::NAMES.iter().enumerate().filter(|(place, _)| self.0 & 1 << place != 0);
        held.map(|(_, (_, name))| *name).collect()
    }
}

impl Merge for Transports {
    fn merge(&mut self, other: &Self) {
        self.0 |= other.0;
    }
}

/// What a sensor told of a host at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sighting {
    /// Of a host that is no client of the API: only that a sensor looks here.
    Bystander,
    /// A name was looked up in the clear.
    Plain,
    /// Encrypted DNS, with the resolver's provider or address.
    Encrypted { transport: DnsTransport, resolver: u64 },
    /// A contact to an address that no plain answer had named.
    Unnamed { destination: u64 },
}

/// One host behind an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Host {
    hash: u32,
    /// When it was last seen to use encrypted DNS, unix seconds.
    encrypted_s: u32,
    /// The resolver that it used then.
    resolver: u64,
    /// How; empty where it was never seen to.
    transports: Transports,
    /// Unnamed addresses that it contacted; where it is full there are too many to mean anything.
    unnamed: Distinct<{ UNNAMED_MAX + 1 }>,
}

impl Host {
    fn join(&mut self, other: &Self) {
        if (other.encrypted_s, other.resolver) > (self.encrypted_s, self.resolver) {
            (self.encrypted_s, self.resolver) = (other.encrypted_s, other.resolver);
        }
        self.transports.merge(&other.transports);
        self.unnamed.merge(&other.unnamed);
    }

    /// How far its encrypted DNS counts at a time, in thousandths.
    fn weight(&self, at_s: u32) -> u16 {
        if self.transports.is_empty() { 0 } else { faded(at_s, self.encrypted_s, FADED_S) }
    }
}

/// What is left at a time of what was told at another, in thousandths.
fn faded(at_s: u32, told_s: u32, over_s: u32) -> u16 {
    let left = over_s.saturating_sub(at_s.saturating_sub(told_s));
    (u64::from(left) * u64::from(WHOLE) / u64::from(over_s)) as u16
}

/// Hosts in the order of their hashes, those with the smallest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Host>")]
struct Hosts(Vec<Host>);

impl TryFrom<Vec<Host>> for Hosts {
    type Error = Unsound;

    fn try_from(hosts: Vec<Host>) -> Result<Self, Unsound> {
        Unsound::check(&hosts, HOSTS_MAX, |one, next| one.hash < next.hash)?;
        Ok(Self(hosts))
    }
}

impl Hosts {
    fn add(&mut self, host: &Host) {
        match self.0.binary_search_by_key(&host.hash, |held| held.hash) {
            Ok(place) => self.0[place].join(host),
            Err(place) if place < HOSTS_MAX => {
                self.0.truncate(HOSTS_MAX - 1);
                self.0.insert(place, host.clone());
            }
            Err(_) => {}
        }
    }
}

/// How many hosts there are from how many of them a sample holds and its largest hash, as
/// [`Distinct::count`] estimates it.
fn hosts_of(sample: usize, largest: u32) -> f64 {
    if sample < HOSTS_MAX {
        return sample as f64;
    }
    (HOSTS_MAX as f64 - 1.0) / ((f64::from(largest) + 1.0) / 4_294_967_296.0)
}

impl Merge for Hosts {
    fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|host| self.add(host));
    }
}

/// What was told of an address within one window.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Window {
    /// Unix time over [`WINDOW_S`].
    number: u32,
    hosts: Hosts,
}

impl Timed for Window {
    fn key(&self) -> u64 {
        u64::from(self.number)
    }

    fn at(&self) -> u64 {
        u64::from(self.number)
    }

    fn join(&mut self, other: &Self) {
        self.hosts.merge(&other.hosts);
    }
}

/// What sensors told of an address. Telling it again changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressDns {
    windows: Latest<Window, WINDOWS>,
}

merge_fields!(AddressDns { windows });

impl AddressDns {
    /// Takes in what was told of a host behind the address at a time, unix seconds.
    pub(crate) fn add(&mut self, host: u64, at_s: u32, sighting: Sighting) {
        let mut told = Host {
            hash: (host.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32,
            ..Host::default()
        };
        match sighting {
            Sighting::Bystander | Sighting::Plain => {}
            Sighting::Encrypted { transport, resolver } => {
                told.transports = Transports::of(transport);
                (told.encrypted_s, told.resolver) = (at_s, resolver);
            }
            Sighting::Unnamed { destination } => told.unnamed.add(destination),
        }
        let client = sighting != Sighting::Bystander;
        let hosts = Hosts(if client { vec![told] } else { Vec::new() });
        self.windows.add(&Window { number: at_s / WINDOW_S, hosts });
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let of = |host: &Host| size_of::<Host>() + host.unnamed.heap_bytes();
        let hosts = self.windows.iter().flat_map(|window| &window.hosts.0).map(of);
        self.windows.heap_bytes() + hosts.sum::<usize>()
    }

    /// What it says of an exchange from the address at a time, unix seconds; `None` where no sensor
    /// told of it lately.
    #[must_use]
    pub fn seen(&self, address: u64, at_s: u32) -> Option<DnsSeen> {
        let first = (at_s / WINDOW_S).saturating_sub(WINDOWS as u32 - 1);
        let recent = || self.windows.iter().filter(|window| window.number >= first);
        recent().next()?;
        let mut told: Vec<&Host> = recent().flat_map(|window| &window.hosts.0).collect();
        told.sort_unstable_by_key(|host| host.hash);
        let mut seen = DnsSeen { address, ..DnsSeen::default() };
        let (mut sample, mut largest, mut used, mut sum) = (0_u32, 0, 0_u32, 0_u32);
        let mut values: Vec<(Family, u64, u32)> = Vec::new();
        let mut unnamed: Vec<u32> = Vec::new();
        // The sample of all windows together is the smallest of all.
        for same in told.chunk_by(|one, next| one.hash == next.hash).take(HOSTS_MAX) {
            (sample, largest) = (sample + 1, same[0].hash);
            let Some(latest) = same.iter().max_by_key(|host| (host.encrypted_s, host.resolver))
            else {
                continue;
            };
            let weight = u32::from(latest.weight(at_s));
            if weight == 0 {
                continue;
            }
            (used, sum) = (used + 1, sum + weight);
            same.iter().for_each(|host| seen.transports.merge(&host.transports));
            values.push((Family::Resolver, latest.resolver, weight));
            unnamed.clear();
            same.iter().for_each(|host| unnamed.extend(host.unnamed.hashes()));
            unnamed.sort_unstable();
            unnamed.dedup();
            if unnamed.len() <= UNNAMED_MAX {
                let each = unnamed.iter();
                values.extend(each.map(|hash| (Family::Unnamed, u64::from(*hash), weight)));
            }
        }
        let all = hosts_of(sample as usize, largest).min(f64::from(u16::MAX));
        seen.hosts = all as u16;
        let sample = sample.max(1);
        seen.encrypted = (f64::from(used) / f64::from(sample) * all).round() as u16;
        seen.share = (sum / sample) as u16;
        values.sort_unstable();
        for same in values.chunk_by(|one, next| (one.0, one.1) == (next.0, next.1)) {
            let share = (same.iter().map(|(_, _, weight)| weight).sum::<u32>() / sample) as u16;
            if share >= SHARE_MIN {
                seen.values.push((same[0].0, same[0].1, share));
            }
        }
        Some(seen)
    }
}

/// What sensors say of an exchange by the address that it came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsSeen {
    /// The address.
    pub address: u64,
    /// Client hosts behind it, near enough.
    pub hosts: u16,
    /// … of which so many use encrypted DNS.
    pub encrypted: u16,
    /// How likely a host there uses encrypted DNS now, in thousandths.
    pub share: u16,
    /// In which ways.
    pub transports: Transports,
    /// Resolvers and unnamed addresses that half of the hosts use or more, with their share in
    /// thousandths.
    pub values: Vec<(Family, u64, u16)>,
}

impl DnsSeen {
    /// What the exchange's account shares with others by it.
    pub fn shared_values(&self, mut each: impl FnMut(Family, u64)) {
        each(Family::Resolver, COVERED);
        if self.values.iter().any(|(family, ..)| *family == Family::Unnamed) {
            each(Family::Unnamed, COVERED);
        }
        self.values.iter().for_each(|(family, value, _)| each(*family, *value));
    }
}

/// The hosts behind an address, as an account's exchange met them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Behind {
    at_s: u32,
    address: u64,
    hosts: u16,
    encrypted: u16,
}

impl Timed for Behind {
    fn key(&self) -> u64 {
        self.address
    }

    fn at(&self) -> u64 {
        u64::from(self.at_s)
    }

    fn join(&mut self, other: &Self) {
        *self = (*self).max(*other);
    }
}

/// A resolver or an unnamed address that hosts behind an account's address use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    value: Mark,
    address: Mark,
    hosts: u16,
    share: u16,
}

impl Timed for Used {
    fn key(&self) -> u64 {
        self.value.key()
    }

    fn at(&self) -> u64 {
        u64::from(self.value.at_s)
    }

    fn join(&mut self, other: &Self) {
        let rank = |used: &Self| (used.value.at_s, used.address.key(), used.hosts, used.share);
        if rank(other) > rank(self) {
            *self = *other;
        }
    }
}

impl Used {
    /// How likely the account's own host uses it, 0..1, at the account's last exchange.
    fn likely(&self, last_s: u32, pivots: &Pivots) -> f64 {
        let left = f64::from(faded(last_s, self.value.at_s, FORGOTTEN_S)) / f64::from(WHOLE);
        let share = f64::from(self.share.min(WHOLE)) / f64::from(WHOLE);
        left * share * known_hosts(self.address.key(), self.hosts, pivots)
    }
}

/// Share of an address's hosts that sensors know, 0..1: customers beyond them must have others.
fn known_hosts(address: u64, hosts: u16, pivots: &Pivots) -> f64 {
    let hosts = f64::from(hosts.max(1));
    hosts / hosts.max(crowd(Family::Address, address, pivots))
}

/// Customers that share a value.
fn crowd(family: Family, value: u64, pivots: &Pivots) -> f64 {
    pivots.crowd(family, value).map_or(1.0, |crowd| crowd.customers.count().max(1.0))
}

/// Customers that could share a value of a family: those from addresses of which sensors tell; of
/// unnamed addresses, those of whom any is known.
#[must_use]
pub fn covered(family: Family, pivots: &Pivots) -> f64 {
    crowd(family, COVERED, pivots)
}

/// What is remembered of an account's exchanges from addresses of which sensors tell. Most accounts
/// have none, and pay a pointer for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountDns(Option<Box<Resolved>>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Resolved {
    /// Exchanges from addresses behind which hosts use encrypted DNS.
    encrypted: u32,
    /// Their shares together, in thousandths.
    shares: u32,
    transports: Transports,
    behind: Latest<Behind, 1>,
    resolvers: Latest<Used, 2>,
    unnamed: Latest<Used, UNNAMED_MAX>,
}

merge_fields!(Resolved { encrypted, shares, transports, behind, resolvers, unnamed });

impl Merge for AccountDns {
    fn merge(&mut self, other: &Self) {
        match (&mut self.0, &other.0) {
            (_, None) => {}
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (mine @ None, theirs) => mine.clone_from(theirs),
        }
    }
}

impl AccountDns {
    /// Takes in what sensors say of an exchange at a time, unix seconds.
    pub fn note(&mut self, seen: &DnsSeen, at_s: u32) {
        let held = self.0.get_or_insert_default();
        let DnsSeen { address, hosts, encrypted, share, .. } = *seen;
        held.behind.add(&Behind { at_s, address, hosts, encrypted });
        count(&mut held.encrypted, share > 0);
        held.shares = held.shares.saturating_add(u32::from(share));
        held.transports.merge(&seen.transports);
        for (family, value, share) in &seen.values {
            let (value, address) = (Mark::new(*value, at_s), Mark::new(address, at_s));
            let used = Used { value, address, hosts, share: *share };
            match family {
                Family::Unnamed => held.unnamed.add(&used),
                _ => held.resolvers.add(&used),
            };
        }
    }

    /// What it shares with others as far as it still tells, see [`DnsSeen::shared_values`].
    pub fn shared_values(&self, mut each: impl FnMut(Family, u64, u32)) {
        let Some(held) = &self.0 else { return };
        held.behind.iter().for_each(|behind| each(Family::Resolver, COVERED, behind.at_s));
        if let Some(last) = held.unnamed.iter().next_back() {
            each(Family::Unnamed, COVERED, last.value.at_s);
        }
        for family in [Family::Resolver, Family::Unnamed] {
            self.used(family).for_each(|used| each(family, used.value.key(), used.value.at_s));
        }
    }

    /// Resolvers, or unnamed addresses.
    pub fn values(&self, family: Family) -> impl Iterator<Item = u64> {
        self.used(family).map(|used| used.value.key())
    }

    fn used(&self, family: Family) -> std::slice::Iter<'_, Used> {
        match (&self.0, family) {
            (Some(held), Family::Resolver) => held.resolvers.iter(),
            (Some(held), Family::Unnamed) => held.unnamed.iter(),
            _ => [].iter(),
        }
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let of = |held: &Resolved| {
            let used = held.resolvers.heap_bytes() + held.unnamed.heap_bytes();
            size_of::<Resolved>() + held.behind.heap_bytes() + used
        };
        self.0.as_deref().map_or(0, of)
    }
}

/// Nats of the rarest value of a family that two accounts use, each as likely as it is: below zero
/// where that is unlikely.
#[must_use]
pub fn in_common(
    family: Family,
    one: &account::Memory,
    other: &account::Memory,
    pivots: &Pivots,
) -> f64 {
    let last_s =
        |memory: &account::Memory| u32::try_from(memory.span.last_ms / 1000).unwrap_or(u32::MAX);
    let (last, others_last) = (last_s(one), last_s(other));
    let mut most = 0.0_f64;
    for mine in one.dns.used(family) {
        let key = mine.value.key();
        let Some(theirs) = other.dns.used(family).find(|used| used.value.key() == key) else {
            continue;
        };
        let likely = mine.likely(last, pivots) * theirs.likely(others_last, pivots);
        let among = covered(family, pivots) / crowd(family, key, pivots).max(2.0);
        most = most.max(likely * among);
    }
    // Whoever contacts many addresses meets somebody at one by chance.
    let tried = match family {
        Family::Unnamed => one.dns.used(family).len().max(other.dns.used(family).len()).max(1),
        _ => 1,
    };
    (most / tried as f64).ln()
}

/// What a judgement knows of an account's DNS.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resolution {
    /// Exchanges from addresses behind which hosts use encrypted DNS.
    pub exchanges: u32,
    /// How likely the account's own host used it, 0..1, over all of its exchanges.
    pub used: f64,
    /// In which ways.
    pub transports: Transports,
    /// Client hosts behind its latest address that use encrypted DNS, and all of them.
    pub hosts: (u16, u16),
    /// Customers from that address.
    pub customers: f64,
    /// Its rarest resolver, and the customers that use it.
    pub resolver: Option<(u64, f64)>,
    /// Customers that sensors cover.
    pub covered: f64,
    /// Unnamed addresses of its that others contact too, and the customers of the rarest.
    pub unnamed: Option<(usize, f64)>,
}

impl Resolution {
    /// Of an account's memory.
    #[must_use]
    pub fn of(memory: &account::Memory, pivots: &Pivots) -> Self {
        let Some(held) = &memory.dns.0 else { return Self::default() };
        let rarest = |family: Family, least: f64| {
            let crowds =
                memory.dns.values(family).map(|value| (value, crowd(family, value, pivots)));
            let shared = crowds.filter(|(_, customers)| *customers >= least);
            let mut shared: Vec<(u64, f64)> = shared.collect();
            shared.sort_unstable_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
            shared
        };
        let behind = held.behind.iter().next();
        let known = behind.map_or(1.0, |behind| known_hosts(behind.address, behind.hosts, pivots));
        let shares = f64::from(held.shares) / f64::from(WHOLE);
        let unnamed = rarest(Family::Unnamed, 1.5);
        Self {
            exchanges: held.encrypted,
            used: (shares / f64::from(memory.requests.max(1)) * known).min(1.0),
            transports: held.transports,
            hosts: behind.map_or((0, 0), |behind| (behind.encrypted, behind.hosts)),
            customers: behind.map_or(0.0, |behind| crowd(Family::Address, behind.address, pivots)),
            resolver: rarest(Family::Resolver, 0.0).first().copied(),
            covered: covered(Family::Resolver, pivots),
            unnamed: unnamed.first().map(|(_, fewest)| (unnamed.len(), *fewest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u32 = 86_400;
    const NOW: u32 = 20_000 * DAY + 3_600;

    fn hash(number: u64) -> u64 {
        crate::keyed::hash(&[1; 16], &number.to_le_bytes())
    }

    fn encrypted(resolver: u64) -> Sighting {
        Sighting::Encrypted { transport: DnsTransport::Doh, resolver }
    }

    #[test]
    fn the_share_is_of_client_hosts() {
        let mut told = AddressDns::default();
        told.add(hash(1), NOW, encrypted(7));
        told.add(hash(2), NOW, Sighting::Plain);
        told.add(hash(3), NOW, Sighting::Bystander);
        let seen = told.seen(9, NOW).unwrap();
        assert_eq!((seen.hosts, seen.encrypted, seen.share), (2, 1, 500));
        assert_eq!(seen.transports.names(), ["DoH"]);
        assert_eq!(seen.values, [(Family::Resolver, 7, 500)]);
        told.add(hash(4), NOW, encrypted(8));
        let seen = told.seen(9, NOW).unwrap();
        assert_eq!((seen.hosts, seen.encrypted, seen.share), (3, 2, 666));
        assert_eq!(seen.values, [], "none is used by half of them");
    }

    #[test]
    fn who_is_no_client_only_shows_that_a_sensor_looks() {
        let mut told = AddressDns::default();
        assert_eq!(told.seen(9, NOW), None);
        told.add(hash(1), NOW, Sighting::Bystander);
        assert_eq!(told.seen(9, NOW), Some(DnsSeen { address: 9, ..DnsSeen::default() }));
    }

    #[test]
    fn what_was_told_fades() {
        let mut told = AddressDns::default();
        told.add(hash(1), NOW, encrypted(7));
        let share = |later: u32| told.seen(9, NOW + later).map(|seen| seen.share);
        assert_eq!(
            [0, DAY / 2, DAY, 2 * DAY - 1, 2 * DAY, 3 * DAY].map(share),
            [Some(1000), Some(750), Some(500), Some(0), Some(0), None]
        );
        assert_eq!(told.seen(9, NOW - 60).map(|seen| seen.share), Some(1000), "a clock ahead");
    }

    #[test]
    fn many_hosts_are_a_sample() {
        let mut told = AddressDns::default();
        for number in 0..2_000 {
            let sighting = if number % 4 == 0 { encrypted(7) } else { Sighting::Plain };
            told.add(hash(number), NOW, sighting);
        }
        assert!(told.windows.iter().all(|window| window.hosts.0.len() == HOSTS_MAX));
        let seen = told.seen(9, NOW).unwrap();
        assert!((700..6_000).contains(&seen.hosts), "{}", seen.hosts);
        assert!(seen.share < 700 && seen.encrypted < seen.hosts, "{seen:?}");
    }

    #[test]
    fn unnamed_addresses_are_those_of_hosts_with_encrypted_dns_that_contact_few() {
        let mut told = AddressDns::default();
        let unnamed = |told: &AddressDns| {
            let values = told.seen(9, NOW).unwrap().values.into_iter();
            values.filter(|(family, ..)| *family == Family::Unnamed).count()
        };
        told.add(hash(1), NOW, Sighting::Unnamed { destination: hash(50) });
        assert_eq!(unnamed(&told), 0, "an address that was written down");
        told.add(hash(1), NOW, encrypted(7));
        assert_eq!(unnamed(&told), 1);
        for number in 0..UNNAMED_MAX as u64 {
            told.add(hash(1), NOW, Sighting::Unnamed { destination: hash(60 + number) });
        }
        assert_eq!(unnamed(&told), 0, "it browses");
    }

    /// An account's memory of one exchange from an address of its own.
    fn account(address: u64, values: &[(Family, u64)], pivots: &mut Pivots) -> account::Memory {
        let values = values.iter().map(|(family, value)| (*family, *value, 1_000)).collect();
        let seen =
            DnsSeen { address, hosts: 1, encrypted: 1, share: 1_000, values, ..DnsSeen::default() };
        seen.shared_values(|family, value| {
            pivots.add(family, value, address, address, NOW);
        });
        pivots.add(Family::Address, address, address, address, NOW);
        let mut memory = account::Memory { requests: 1, ..account::Memory::default() };
        memory.span.add(u64::from(NOW) * 1000);
        memory.dns.note(&seen, NOW);
        memory
    }

    #[test]
    fn a_resolver_is_rare_among_whom_sensors_see() {
        for (others, with_theirs, least, most) in [
            // A sensor at one provider, where everybody uses one resolver.
            (300, true, f64::NEG_INFINITY, 0.5),
            // The same number of people, of whom two use it.
            (300, false, 4.0, 6.0),
            // A sensor that sees nobody else says nothing.
            (0, false, f64::NEG_INFINITY, 0.1),
        ] {
            let mut pivots = Pivots::new(10_000);
            let [one, other] =
                [1, 2].map(|of| account(hash(of), &[(Family::Resolver, 7)], &mut pivots));
            for number in 0..others {
                let theirs = [(Family::Resolver, 7)];
                account(hash(100 + number), &theirs[..usize::from(with_theirs)], &mut pivots);
            }
            let nats = in_common(Family::Resolver, &one, &other, &pivots);
            assert!((least..most).contains(&nats), "{others} {with_theirs}: {nats}");
        }
    }

    #[test]
    fn more_customers_than_known_hosts_and_more_addresses_say_less() {
        let mut pivots = Pivots::new(10_000);
        let few = [(Family::Unnamed, 7)];
        let many = [(Family::Unnamed, 7), (Family::Unnamed, 8), (Family::Unnamed, 9)];
        let [one, other] = [1, 2].map(|of| account(hash(of), &few, &mut pivots));
        let busy = account(hash(3), &many, &mut pivots);
        for number in 0..300 {
            account(hash(100 + number), &[(Family::Unnamed, 1_000 + number)], &mut pivots);
        }
        let nats = |one, other, pivots: &Pivots| in_common(Family::Unnamed, one, other, pivots);
        let (alone, tried) = (nats(&one, &other, &pivots), nats(&one, &busy, &pivots));
        assert!((alone - tried - 3.0_f64.ln()).abs() < 1e-9, "{alone} {tried}");
        for customer in 0..9 {
            pivots.add(Family::Address, hash(1), hash(500 + customer), hash(500 + customer), NOW);
        }
        let crowded = nats(&one, &other, &pivots);
        assert!((alone - crowded - 10.0_f64.ln()).abs() < 1e-9, "{alone} {crowded}");
        let used = Resolution::of(&one, &pivots).used;
        assert!((used - 0.1).abs() < 1e-9, "{used}");
    }

    #[test]
    fn what_an_account_has_not_shown_for_long_is_forgotten() {
        let mut pivots = Pivots::new(10_000);
        let [mut one, other] =
            [1, 2].map(|of| account(hash(of), &[(Family::Resolver, 7)], &mut pivots));
        for number in 0..300 {
            account(hash(100 + number), &[], &mut pivots);
        }
        let mut last = in_common(Family::Resolver, &one, &other, &pivots);
        for days in [2, 4, 6] {
            one.span.add(u64::from(NOW + days * DAY) * 1000);
            let now = in_common(Family::Resolver, &one, &other, &pivots);
            assert!(now < last, "{days}: {now}");
            last = now;
        }
        one.span.add(u64::from(NOW + 7 * DAY) * 1000);
        assert_eq!(in_common(Family::Resolver, &one, &other, &pivots), f64::NEG_INFINITY);
    }
}
