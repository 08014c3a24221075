//! Which destinations plain DNS has named, and so which contacts no plain DNS answer explains.
//!
//! A host that resolves names out of sight contacts addresses that never stood in an answer. So does one
//! that keeps an old answer, was given an address by other means, or whose answer was not seen: a
//! contact is told only where nothing speaks for that. It is not told
//!
//! - before the sensor has watched for one window (answers before its start were not seen),
//! - when no plain answer was seen within the window (the answers do not pass here),
//! - when within the window an answer may have been missed: no room in the table, events that the
//!   kernel lost, an answer that was cut (for the host that it went to),
//! - to an address that an answer named, for the longer of its TTL and the window; each contact makes
//!   it last a window longer, as clients and connection pools keep addresses beyond their TTL,
//! - of datagrams that may not be a connection's first, to an address that was already contacted while
//!   learning: the connection may be older than the sensor.
//!
//! The verdict waits two seconds, as an answer may be read after the contact that it caused. False all
//! the same: addresses written down in configurations, lists of peers (BitTorrent, NTP pools by DHCP),
//! answers by mDNS or a hosts file. The sensor tells what it saw; what it means is for the judgement.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use crate::aging::Aging;
use crate::event::Flow;

/// Addresses that answers named, at once; further ones are not taken in until others have expired.
pub const NAMED_MAX: usize = 262_144;
/// Contacts that wait for their verdict; further ones are not told.
pub const PENDING_MAX: usize = 65_536;
/// Hosts with an answer that could not be read; beyond, no host's contacts are told.
pub const DOUBTED_MAX: usize = 16_384;
/// How long a contact waits for its verdict.
pub const DELAY_NS: u64 = 2_000_000_000;
/// An answer names an address for a day at most, whatever its TTL (or for the window, if longer).
const TTL_MAX_NS: u64 = 86_400_000_000_000;
/// The table is searched for what has expired this often at most.
const SWEEP_NS: u64 = 1_000_000_000;

/// Why a contact is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Excuse {
    /// The sensor has not watched for a window yet.
    Learning,
    /// No plain answer was seen within the window.
    NoAnswers,
    /// An answer may have been missed.
    Doubt,
    /// An answer named it.
    Named,
    /// It is near, private, ignored, or a resolver.
    Exempt,
    /// It was a lookup by encrypted DNS.
    Lookup,
    /// Too many contacts waited.
    Full,
}

impl Excuse {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Learning,
        Self::NoAnswers,
        Self::Doubt,
        Self::Named,
        Self::Exempt,
        Self::Lookup,
        Self::Full,
    ];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Learning => "learning",
            Self::NoAnswers => "no_answers",
            Self::Doubt => "doubt",
            Self::Named => "named",
            Self::Exempt => "exempt",
            Self::Lookup => "lookup",
            Self::Full => "full",
        }
    }
}

/// A contact that waits for its verdict.
#[derive(Clone, Debug)]
struct Pending<T> {
    at_ns: u64,
    flow: Flow,
    /// Whether the connection may have begun long before.
    ongoing: bool,
    contact: T,
}

/// What was named; `T` is what the caller keeps of a contact.
#[derive(Debug)]
pub(crate) struct NamedDestinations<T> {
    window_ns: u64,
    named_max: usize,
    /// When the first event came.
    begun_ns: Option<u64>,
    answered_ns: Option<u64>,
    doubt_until_ns: u64,
    named: HashMap<IpAddr, u64>,
    swept_ns: u64,
    doubted: Aging<IpAddr, ()>,
    pending: VecDeque<Pending<T>>,
}

impl<T> NamedDestinations<T> {
    pub(crate) fn new(window_ns: u64, named_max: usize) -> Self {
        Self {
            window_ns,
            named_max,
            begun_ns: None,
            answered_ns: None,
            doubt_until_ns: 0,
            named: HashMap::new(),
            swept_ns: 0,
            doubted: Aging::new(DOUBTED_MAX),
            pending: VecDeque::new(),
        }
    }

    /// Addresses that are named.
    pub(crate) fn len(&self) -> usize {
        self.named.len()
    }

    /// Contacts that wait.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The sensor watches, from the first time on that this is called.
    pub(crate) fn watch(&mut self, now_ns: u64) {
        self.begun_ns.get_or_insert(now_ns);
    }

    /// A plain answer was read to its end.
    pub(crate) fn answered(&mut self, at_ns: u64) {
        self.answered_ns = Some(self.answered_ns.unwrap_or(0).max(at_ns));
    }

    /// An answer named an address for `ttl` seconds; `false` where there was no room.
    pub(crate) fn name(&mut self, address: IpAddr, ttl: u32, at_ns: u64) -> bool {
        let ttl_ns = (u64::from(ttl) * 1_000_000_000).min(TTL_MAX_NS);
        let until_ns = at_ns.saturating_add(ttl_ns.max(self.window_ns));
        if let Some(until) = self.named.get_mut(&address) {
            *until = (*until).max(until_ns);
            return true;
        }
        if self.named.len() >= self.named_max {
            self.sweep(at_ns);
        }
        if self.named.len() >= self.named_max {
            self.doubt(at_ns);
            return false;
        }
        self.named.insert(address, until_ns);
        true
    }

    /// Answers may have been missed: nothing is told for a window.
    pub(crate) fn doubt(&mut self, at_ns: u64) {
        self.doubt_until_ns =
            self.doubt_until_ns.max(at_ns.saturating_add(self.window_ns).saturating_add(DELAY_NS));
    }

    /// An answer to this host could not be read.
    pub(crate) fn doubt_host(&mut self, host: IpAddr, at_ns: u64) {
        if self.doubted.insert(host, at_ns, ()).is_some() {
            self.doubt(at_ns);
        }
    }

    /// A host contacts an address; the verdict comes later. `false` where too many wait.
    pub(crate) fn contact(&mut self, flow: Flow, ongoing: bool, at_ns: u64, contact: T) -> bool {
        if self.pending.len() >= PENDING_MAX {
            return false;
        }
        self.pending.push_back(Pending { at_ns, flow, ongoing, contact });
        true
    }

    /// Gives the verdicts that are due: `None` for a contact without a name, else what excuses it.
    pub(crate) fn judge(&mut self, now_ns: u64, mut verdict: impl FnMut(Flow, T, Option<Excuse>)) {
        while let Some(first) = self.pending.front() {
            if first.at_ns.saturating_add(DELAY_NS) > now_ns {
                break;
            }
            let Some(pending) = self.pending.pop_front() else { break };
            let excuse = self.excuse(&pending.flow, pending.ongoing, pending.at_ns);
            verdict(pending.flow, pending.contact, excuse);
        }
    }

    /// Lets go of what has expired.
    pub(crate) fn expire(&mut self, now_ns: u64) {
        self.doubted.expire(now_ns, self.window_ns.saturating_add(DELAY_NS), |_, ()| {});
        if now_ns.saturating_sub(self.swept_ns) >= (self.window_ns / 8).max(SWEEP_NS) {
            self.sweep(now_ns);
        }
    }

    fn excuse(&mut self, flow: &Flow, ongoing: bool, at_ns: u64) -> Option<Excuse> {
        let address = flow.destination.ip();
        let until_ns = at_ns.saturating_add(self.window_ns);
        let named = [Some(address), embedded(address)].into_iter().flatten().any(|address| {
            self.named.get_mut(&address).is_some_and(|until| {
                let lives = *until >= at_ns;
                if lives {
                    *until = (*until).max(until_ns);
                }
                lives
            })
        });
        if named {
            return Some(Excuse::Named);
        }
        if at_ns.saturating_sub(self.begun_ns.unwrap_or(at_ns)) < self.window_ns {
            if ongoing {
                self.name(address, 0, at_ns);
            }
            return Some(Excuse::Learning);
        }
        let since_ns = at_ns.saturating_sub(self.window_ns);
        if self.answered_ns.is_none_or(|answered| answered < since_ns) {
            return Some(Excuse::NoAnswers);
        }
        if at_ns < self.doubt_until_ns || self.doubted.get(&flow.source.ip()).is_some() {
            return Some(Excuse::Doubt);
        }
        None
    }

    fn sweep(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.swept_ns) < SWEEP_NS {
            return;
        }
        self.swept_ns = now_ns;
        // A contact from before may still wait for its verdict.
        let live_ns = now_ns.saturating_sub(2 * DELAY_NS);
        self.named.retain(|_, until| *until >= live_ns);
    }
}

/// The IPv4 address within one of the well-known NAT64 prefix (RFC 6052): a host behind NAT64 may make
/// it from an A record itself.
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(ip) = address else { return None };
    let octets = ip.octets();
    let [prefix @ .., a, b, c, d] = octets;
    let known = prefix == [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0];
    known.then(|| Ipv4Addr::new(a, b, c, d).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Protocol;

    const SECOND: u64 = 1_000_000_000;
    const HOUR: u64 = 3600 * SECOND;

    fn flow(destination: &str, protocol: Protocol) -> Flow {
        Flow {
            source: "10.0.0.5:40000".parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// One that has learnt, from 0 to `HOUR`, and has seen an answer just before `HOUR`.
    fn learnt() -> NamedDestinations<()> {
        let mut named = NamedDestinations::new(HOUR, 4);
        named.watch(0);
        named.answered(HOUR);
        named
    }

    fn verdict(named: &mut NamedDestinations<()>, to: &str, at_ns: u64) -> Option<Excuse> {
        verdict_of(named, flow(to, Protocol::Tcp), at_ns)
    }

    fn verdict_of(named: &mut NamedDestinations<()>, flow: Flow, at_ns: u64) -> Option<Excuse> {
        assert!(named.contact(flow, flow.protocol == Protocol::Udp, at_ns, ()));
        let mut verdicts = Vec::new();
        named.judge(at_ns + DELAY_NS - 1, |_, (), verdict| verdicts.push(verdict));
        assert_eq!(verdicts, [], "not before it is due");
        named.judge(at_ns + DELAY_NS, |_, (), verdict| verdicts.push(verdict));
        verdicts.pop().expect("one verdict")
    }

    #[test]
    fn a_contact_without_a_name_is_told_after_a_window() {
        let mut named = learnt();
        assert_eq!(verdict(&mut named, "192.0.2.1:443", HOUR - 1), Some(Excuse::Learning));
        assert_eq!(verdict(&mut named, "192.0.2.1:443", HOUR), None);
        assert_eq!(verdict(&mut named, "192.0.2.1:443", 2 * HOUR), None);
        assert_eq!(verdict(&mut named, "192.0.2.1:443", 2 * HOUR + 1), Some(Excuse::NoAnswers));
    }

    #[test]
    fn a_named_address_is_none_for_the_longer_of_ttl_and_window() {
        let mut named = learnt();
        named.name(ip("192.0.2.1"), 60, HOUR);
        named.name(ip("192.0.2.2"), 3 * 3600, HOUR);
        named.name(ip("192.0.2.3"), u32::MAX, HOUR);
        let at = 2 * HOUR + 1;
        named.answered(at);
        assert_eq!(verdict(&mut named, "192.0.2.1:443", at), None);
        assert_eq!(verdict(&mut named, "192.0.2.2:443", at), Some(Excuse::Named));
        named.answered(26 * HOUR);
        assert_eq!(verdict(&mut named, "192.0.2.3:443", 26 * HOUR), None);
    }

    #[test]
    fn an_address_in_use_stays_named() {
        let mut named = learnt();
        named.name(ip("192.0.2.1"), 60, HOUR);
        for hour in 2..9 {
            named.answered(hour * HOUR);
            named.expire(hour * HOUR);
            assert_eq!(verdict(&mut named, "192.0.2.1:443", hour * HOUR), Some(Excuse::Named));
        }
    }

    #[test]
    fn an_answer_that_is_read_later_still_counts() {
        let mut named = learnt();
        assert!(named.contact(flow("192.0.2.1:443", Protocol::Tcp), false, HOUR, ()));
        named.name(ip("192.0.2.1"), 60, HOUR + DELAY_NS / 2);
        named.judge(HOUR + DELAY_NS, |_, (), verdict| assert_eq!(verdict, Some(Excuse::Named)));
        assert_eq!(named.pending(), 0);
    }

    #[test]
    fn where_an_answer_may_have_been_missed_nothing_is_told() {
        let mut named = learnt();
        named.doubt(HOUR);
        assert_eq!(verdict(&mut named, "192.0.2.1:443", 2 * HOUR), Some(Excuse::Doubt));
        named.answered(3 * HOUR);
        assert_eq!(verdict(&mut named, "192.0.2.1:443", 3 * HOUR), None);
        named.doubt_host(ip("10.0.0.5"), 3 * HOUR);
        assert_eq!(verdict(&mut named, "192.0.2.1:443", 3 * HOUR), Some(Excuse::Doubt));
        let mut other = flow("192.0.2.1:443", Protocol::Tcp);
        other.source = "10.0.0.6:40000".parse().unwrap();
        assert_eq!(verdict_of(&mut named, other, 3 * HOUR), None);
        named.answered(5 * HOUR);
        named.expire(5 * HOUR);
        assert_eq!(verdict(&mut named, "192.0.2.1:443", 5 * HOUR), None);
    }

    #[test]
    fn a_full_table_tells_nothing_for_a_window() {
        let mut named = learnt();
        for last in 1..=4 {
            assert!(named.name(Ipv4Addr::new(192, 0, 2, last).into(), 60, HOUR));
        }
        assert!(!named.name(ip("192.0.2.5"), 60, HOUR));
        assert_eq!(named.len(), 4);
        assert_eq!(verdict(&mut named, "192.0.2.9:443", HOUR), Some(Excuse::Doubt));
        // What has expired makes room.
        assert!(named.name(ip("192.0.2.5"), 60, 2 * HOUR + 5 * SECOND));
        assert_eq!(named.len(), 1);
    }

    #[test]
    fn a_connection_of_the_learning_time_may_be_older_than_the_sensor() {
        let mut named = learnt();
        let udp = flow("192.0.2.1:443", Protocol::Udp);
        assert_eq!(verdict_of(&mut named, udp, HOUR / 2), Some(Excuse::Learning));
        assert_eq!(verdict_of(&mut named, udp, HOUR), Some(Excuse::Named));
        let other = flow("192.0.2.2:443", Protocol::Udp);
        assert_eq!(verdict_of(&mut named, other, HOUR), None);
    }

    #[test]
    fn nat64_of_a_named_address_is_named() {
        let mut named = learnt();
        named.name(ip("192.0.2.1"), 60, HOUR);
        let at = HOUR + SECOND;
        assert_eq!(verdict(&mut named, "[64:ff9b::192.0.2.1]:443", at), Some(Excuse::Named));
        assert_eq!(verdict(&mut named, "[64:ff9b::192.0.2.2]:443", at), None);
        assert_eq!(verdict(&mut named, "[64:ff9c::192.0.2.1]:443", at), None);
    }

    #[test]
    fn contacts_that_wait_are_bounded() {
        let mut named = learnt();
        for _ in 0..PENDING_MAX {
            assert!(named.contact(flow("192.0.2.1:443", Protocol::Tcp), false, HOUR, ()));
        }
        assert!(!named.contact(flow("192.0.2.1:443", Protocol::Tcp), false, HOUR, ()));
    }
}
