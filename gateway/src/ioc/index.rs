//! What requests are compared with: every indicator that holds, by value.
//!
//! A lookup takes the lock for reading once and asks a table for each thing that a request shows;
//! of networks, one for each width that is held. Nothing is allocated unless something is found.
//! Canaries that others have served are searched for in what the caller says, in one pass.
//! What is found has a weight: how much the operator trusts the source, times how sure the source
//! is, halved with each week since the value was last seen. A hit is evidence for detectors and
//! does nothing by itself.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use detectors::watermark::CanarySearch;
use detectors::{AccountId, Conversation, HttpCapture, Observation, Role, TlsCapture};
use ipnet::IpNet;
use parking_lot::RwLock;

use super::bundle::Kind;
use crate::limits::IOC_HITS_MAX;

/// Time after which a hit weighs half.
const HALF_LIFE_MS: f64 = 7.0 * 86_400_000.0;

/// A value that a request showed and a source has told of.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// What it is about.
    pub kind: Kind,
    /// Who told of it: `own/CLUSTER`, `peer/NAME`, `operator/NAME`.
    pub source: Arc<str>,
    /// Trust in the source times its confidence, halved with age; 0..1.
    pub weight: f64,
    /// When it was last seen there, unix milliseconds.
    pub last_seen_ms: u64,
}

/// What a source has told of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sighting {
    /// Who.
    pub source: Arc<str>,
    /// Trust in the source times its confidence.
    pub weight: f64,
    /// When it was last seen there, unix milliseconds.
    pub last_seen_ms: u64,
}

/// Everything that is looked up.
#[derive(Debug)]
pub struct Index {
    tables: RwLock<Tables>,
    search: RwLock<Option<Arc<Search>>>,
    /// The tokens are not those that are searched for.
    unsearched: AtomicBool,
    lifetime_ms: u64,
}

/// The search for tokens.
#[derive(Debug)]
struct Search {
    find: CanarySearch,
    tokens: Vec<Box<str>>,
}

#[derive(Debug, Default)]
struct Tables {
    ips: HashMap<IpAddr, Vec<Sighting>>,
    networks: HashMap<IpNet, Vec<Sighting>>,
    /// How many networks there are of each width, of IPv4 and IPv6.
    widths: [Vec<(u8, usize)>; 2],
    texts: [HashMap<Box<str>, Vec<Sighting>>; Kind::ALL.len()],
    /// Accounts whose payment instrument is among the payment hashes.
    payers: HashMap<AccountId, Box<str>>,
}

impl Index {
    /// Nothing yet; what was last seen longer ago than `lifetime_ms` is not found.
    #[must_use]
    pub fn new(lifetime_ms: u64) -> Self {
        Self {
            tables: RwLock::default(),
            search: RwLock::default(),
            unsearched: AtomicBool::new(false),
            lifetime_ms,
        }
    }

    /// What is told of a request.
    #[must_use]
    pub fn lookup(&self, observation: &Observation, now_ms: u64) -> Vec<Hit> {
        let search = self.search.read().clone();
        let said = search.as_ref().map(|search| search.tokens_in(&observation.conversation));
        let tables = self.tables.read();
        let mut found = Found { hits: Vec::new(), now_ms, lifetime_ms: self.lifetime_ms };
        let ip = observation.ip.to_canonical();
        found.take(Kind::Ip, tables.ips.get(&ip));
        for (width, _) in &tables.widths[usize::from(ip.is_ipv6())] {
            let network = IpNet::new(ip, *width).map(|network| network.trunc());
            found.take(Kind::Subnet, network.ok().and_then(|net| tables.networks.get(&net)));
        }
        let mut text = |kind: Kind, value: &str| {
            let table = &tables.texts[kind as usize];
            if !table.is_empty() {
                found.take(kind, table.get(value));
            }
        };
        if let Some(TlsCapture { ja3_md5, ja3s_md5, ja4, .. }) = observation.tls.as_deref() {
            text(Kind::Ja3, ja3_md5);
            text(Kind::Ja3s, ja3s_md5.as_deref().unwrap_or_default());
            text(Kind::Ja4, ja4);
        }
        if let HttpCapture { h2: Some(h2), .. } = &observation.http {
            text(Kind::H2, &h2.akamai);
        }
        if let Some(account) = observation.account.as_ref()
            && !tables.payers.is_empty()
            && let Some(payment) = tables.payers.get(account)
        {
            text(Kind::PaymentHash, payment);
        }
        for token in said.iter().flatten() {
            text(Kind::WatermarkToken, token);
        }
        found.hits
    }

    /// What is told of a value that is none of a request's own.
    #[must_use]
    pub fn find(&self, kind: Kind, value: &str, now_ms: u64) -> Vec<Hit> {
        let mut found = Found { hits: Vec::new(), now_ms, lifetime_ms: self.lifetime_ms };
        let tables = self.tables.read();
        found.take(kind, tables.sightings(kind, value));
        found.hits
    }

    /// Puts in what a source tells of a value; what it told before is replaced.
    pub fn put(&self, kind: Kind, value: &str, sighting: Sighting) {
        if kind == Kind::WatermarkToken {
            self.unsearched.store(true, Ordering::Release);
        }
        let mut tables = self.tables.write();
        if let Some(width) = tables.width_of_new(kind, value) {
            let widths = &mut tables.widths[usize::from(width.1)];
            match widths.iter_mut().find(|(held, _)| *held == width.0) {
                Some((_, count)) => *count += 1,
                None => widths.push((width.0, 1)),
            }
        }
        if let Some(held) = tables.entry(kind, value) {
            held.retain(|other| other.source != sighting.source);
            held.push(sighting);
        }
    }

    /// Takes out what a source has told of a value.
    pub fn remove(&self, kind: Kind, value: &str, source: &str) {
        if kind == Kind::WatermarkToken {
            self.unsearched.store(true, Ordering::Release);
        }
        let mut tables = self.tables.write();
        if tables.sightings(kind, value).is_none() {
            return;
        }
        let empty = tables.entry(kind, value).is_some_and(|held| {
            held.retain(|other| *other.source != *source);
            held.is_empty()
        });
        if empty {
            tables.forget(kind, value);
        }
    }

    /// Searches for the tokens that are held, where these have changed. Takes as long as there are
    /// many.
    pub fn refresh_search(&self) {
        if !self.unsearched.swap(false, Ordering::AcqRel) {
            return;
        }
        let tokens: Vec<Box<str>> = {
            let tables = self.tables.read();
            let all = tables.texts[Kind::WatermarkToken as usize].iter();
            // This provider's own are recognised with whose they are.
            let foreign =
                |held: &Vec<Sighting>| held.iter().any(|one| !one.source.starts_with("own/"));
            all.filter(|(token, held)| is_searched(token) && foreign(held))
                .map(|(token, _)| token.clone())
                .collect()
        };
        let search = (!tokens.is_empty()).then(|| {
            let find = CanarySearch::new(tokens.iter().map(|token| &**token));
            Arc::new(Search { find, tokens })
        });
        *self.search.write() = search;
    }

    /// Whether somebody has told of this payment hash.
    #[must_use]
    pub fn has_payment(&self, hash: &str) -> bool {
        self.tables.read().texts[Kind::PaymentHash as usize].contains_key(hash)
    }

    /// Notes that an account's payment instrument has been told of, or has not.
    pub fn set_payer(&self, account: &AccountId, payment: Option<&str>) {
        let mut tables = self.tables.write();
        match payment {
            Some(hash) => tables.payers.insert(account.clone(), hash.into()),
            None => tables.payers.remove(account),
        };
    }
}

impl Search {
    /// The tokens in what the caller says; earlier answers are its own history.
    fn tokens_in(&self, conversation: &Conversation) -> BTreeSet<&str> {
        let said = conversation.turns.iter().filter(|turn| turn.role == Role::User);
        let texts = said.map(|turn| turn.text.as_str()).chain([conversation.system.as_str()]);
        let found = texts.flat_map(|text| self.find.find(text));
        found.filter_map(|number| self.tokens.get(number)).map(|token| &**token).collect()
    }
}

/// Tokens that are no words: two surnames with a hyphen, or eight digits. The tag of a frame cannot
/// be read without the key of whoever made it.
fn is_searched(token: &str) -> bool {
    let digits = token.bytes().all(|byte| byte.is_ascii_digit());
    token.len() >= 8 && !token.contains(':') && (digits || token.contains('-'))
}

impl Tables {
    fn sightings(&self, kind: Kind, value: &str) -> Option<&Vec<Sighting>> {
        match kind {
            Kind::Ip => self.ips.get(&value.parse().ok()?),
            Kind::Subnet => self.networks.get(&value.parse().ok()?),
            _ => self.texts[kind as usize].get(value),
        }
    }

    fn entry(&mut self, kind: Kind, value: &str) -> Option<&mut Vec<Sighting>> {
        Some(match kind {
            Kind::Ip => self.ips.entry(value.parse().ok()?).or_default(),
            Kind::Subnet => self.networks.entry(value.parse().ok()?).or_default(),
            _ => self.texts[kind as usize].entry(value.into()).or_default(),
        })
    }

    /// Width and whether it is of IPv6, of a network that is not held.
    fn width_of_new(&self, kind: Kind, value: &str) -> Option<(u8, bool)> {
        let network: IpNet = value.parse().ok().filter(|_| kind == Kind::Subnet)?;
        let new = !self.networks.contains_key(&network);
        new.then_some((network.prefix_len(), network.addr().is_ipv6()))
    }

    fn forget(&mut self, kind: Kind, value: &str) {
        match kind {
            Kind::Ip => {
                if let Ok(ip) = value.parse() {
                    self.ips.remove(&ip);
                }
            }
            Kind::Subnet => {
                let Ok(network) = value.parse::<IpNet>() else { return };
                self.networks.remove(&network);
                let widths = &mut self.widths[usize::from(network.addr().is_ipv6())];
                if let Some((_, count)) = widths.iter_mut().find(|w| w.0 == network.prefix_len()) {
                    *count -= 1;
                }
                widths.retain(|(_, count)| *count > 0);
            }
            _ => {
                self.texts[kind as usize].remove(value);
            }
        }
    }
}

struct Found {
    hits: Vec<Hit>,
    now_ms: u64,
    lifetime_ms: u64,
}

impl Found {
    fn take(&mut self, kind: Kind, sightings: Option<&Vec<Sighting>>) {
        for sighting in sightings.into_iter().flatten() {
            let age_ms = self.now_ms.saturating_sub(sighting.last_seen_ms);
            if age_ms > self.lifetime_ms || self.hits.len() >= IOC_HITS_MAX {
                continue;
            }
            let Sighting { source, weight, last_seen_ms } = sighting.clone();
            let weight = weight * 0.5_f64.powf(age_ms as f64 / HALF_LIFE_MS);
            self.hits.push(Hit { kind, source, weight, last_seen_ms });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::tests::observation;

    const DAY_MS: u64 = 86_400_000;

    fn sighting(source: &str, weight: f64) -> Sighting {
        Sighting { source: source.into(), weight, last_seen_ms: 100 * DAY_MS }
    }

    fn kinds(hits: &[Hit]) -> Vec<(Kind, &str)> {
        hits.iter().map(|hit| (hit.kind, &*hit.source)).collect()
    }

    #[test]
    fn a_request_is_found_by_everything_that_it_shows() {
        let index = Index::new(30 * DAY_MS);
        let mut asked = observation("a", 1, "Hello");
        asked.ip = "::ffff:203.0.113.9".parse().unwrap();
        asked.tls = Some(Arc::new(TlsCapture {
            ja3_md5: "3".repeat(32),
            ja3s_md5: Some("5".repeat(32)),
            ja4: "t13d1516h2_8daaf6152771_02713d6af862".to_owned(),
            ..TlsCapture::default()
        }));
        assert_eq!(index.lookup(&asked, 100 * DAY_MS), []);
        index.put(Kind::Ip, "203.0.113.9", sighting("peer/b", 0.5));
        index.put(Kind::Ip, "203.0.113.9", sighting("peer/c", 0.5));
        index.put(Kind::Subnet, "203.0.113.0/24", sighting("peer/b", 0.5));
        index.put(Kind::Subnet, "203.0.0.0/16", sighting("peer/b", 0.5));
        index.put(Kind::Subnet, "203.1.0.0/16", sighting("peer/b", 0.5));
        index.put(Kind::Subnet, "2001:db8::/32", sighting("peer/b", 0.5));
        index.put(Kind::Ja3, &"3".repeat(32), sighting("own/x", 0.9));
        index.put(Kind::Ja3s, &"3".repeat(32), sighting("own/x", 0.9));
        index.put(Kind::Ja4, "t13d1516h2_8daaf6152771_02713d6af862", sighting("own/x", 0.9));
        index.put(Kind::PaymentHash, &"7".repeat(32), sighting("peer/b", 0.5));
        let hits = index.lookup(&asked, 100 * DAY_MS);
        let expected = [
            (Kind::Ip, "peer/b"),
            (Kind::Ip, "peer/c"),
            (Kind::Subnet, "peer/b"),
            (Kind::Subnet, "peer/b"),
            (Kind::Ja3, "own/x"),
            (Kind::Ja4, "own/x"),
        ];
        assert_eq!(kinds(&hits), expected);
        index.set_payer(&AccountId::new("a"), Some(&"7".repeat(32)));
        assert_eq!(index.lookup(&asked, 100 * DAY_MS).len(), expected.len() + 1);
        index.set_payer(&AccountId::new("a"), None);
        index.remove(Kind::Ip, "203.0.113.9", "peer/b");
        index.remove(Kind::Subnet, "203.0.113.0/24", "peer/b");
        index.remove(Kind::Subnet, "203.0.113.0/24", "peer/b");
        index.remove(Kind::Ja3, &"3".repeat(32), "peer/b");
        let hits = index.lookup(&asked, 100 * DAY_MS);
        assert_eq!(kinds(&hits), [expected[1], expected[3], expected[4], expected[5]]);
        assert_eq!(index.tables.read().widths, [vec![(16, 2)], vec![(32, 1)]]);
    }

    #[test]
    fn canaries_of_others_are_found_in_what_is_said() {
        let index = Index::new(30 * DAY_MS);
        let told = [
            ("peer/b", "Halverin-Moskate"),
            ("peer/b", "73519264"),
            ("peer/b", "function"),
            ("peer/b", "zw:0a1b2c"),
            ("own/c", "Corlath-Dunwin"),
        ];
        for (source, token) in told {
            index.put(Kind::WatermarkToken, token, sighting(source, 0.5));
        }
        let said =
            "The function of Jane Halverin-Moskate, Corlath-Dunwin, zw:0a1b2c, order 73519264.";
        let asked = observation("a", 1, said);
        assert_eq!(index.lookup(&asked, 100 * DAY_MS), []);
        index.refresh_search();
        let hits = index.lookup(&asked, 100 * DAY_MS);
        assert_eq!(kinds(&hits), [(Kind::WatermarkToken, "peer/b"); 2]);
        index.remove(Kind::WatermarkToken, "73519264", "peer/b");
        index.remove(Kind::WatermarkToken, "Halverin-Moskate", "peer/b");
        index.refresh_search();
        assert!(index.search.read().is_none() && index.lookup(&asked, 100 * DAY_MS).is_empty());
    }

    #[test]
    fn a_hit_weighs_half_after_a_week_and_nothing_after_its_life() {
        let index = Index::new(30 * DAY_MS);
        index.put(Kind::Ip, "192.0.2.1", sighting("peer/b", 0.8));
        let asked = observation("a", 1, "Hello");
        let weight = |day: u64| index.lookup(&asked, day * DAY_MS).first().map(|hit| hit.weight);
        assert_eq!((weight(99), weight(100), weight(107)), (Some(0.8), Some(0.8), Some(0.4)));
        assert!(weight(130).is_some_and(|weight| weight < 0.05));
        assert_eq!(weight(131), None);
        // What a source says again takes the place of what it said before.
        index.put(Kind::Ip, "192.0.2.1", sighting("peer/b", 0.2));
        assert_eq!(weight(100), Some(0.2));
    }
}
