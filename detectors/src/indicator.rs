//! What peers told of their campaigns, where an exchange here shows it.
//!
//! Sees hits: the gateway looks every exchange up among the indicators that peers shared. Matters
//! because a campaign that was found elsewhere need not be found again from nothing. Wrong where an
//! indicator is not the campaign's own: an address is a NAT's or a proxy's, a fingerprint a stock
//! SDK's, a token a published text's; and where the peer was wrong. So what customers here share
//! is worth less the more they are, a fingerprint of software that `data/clients.toml` names is worth
//! nothing, one kind that is not somebody's own is next to nothing, and all together stays below
//! tier high: somebody else's judgement is no sight of ours.
//!
//! Source: threat model, "IOC Sharing Protocol".

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::account::Memory;
use crate::client::ClientReading;
use crate::finding::unit;
use crate::keyed::{self, Key};
use crate::observation::Observation;
use crate::pivot::{Family, Pivots};
use crate::seen;
use crate::sketch::Timed;

/// Hits of one exchange that are looked at.
const HITS_MAX: usize = 16;
/// Days after which a hit speaks half as loud.
const HALF_LIFE_DAYS: f64 = 7.0;
/// Least nats at which a group of kinds speaks.
const SPEAKS_NATS: f64 = 0.5;
/// What is left of one group alone that is nobody's own.
const ALONE: f64 = 0.2;
/// Most nats that one peer's word is worth, and several peers': below tier high at the detector's
/// weight in the threat model's table.
const PEER_NATS_MAX: f64 = 8.0;
const PEERS_NATS_MAX: f64 = 10.0;
/// Nats that divide what is left of the doubt by `e`.
const NATS_FOLD: f64 = 2.0;

/// Kinds of indicators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IndicatorKind {
    /// Address of the client.
    Address,
    /// Its subnet.
    Subnet,
    /// JA3 hash.
    Ja3,
    /// JA3S hash.
    Ja3s,
    /// JA4.
    Ja4,
    /// Fingerprint of the HTTP/2 connection's opening.
    Http2,
    /// Hash of the payment instrument.
    Payment,
    /// A watermark's token in the prompt.
    Token,
    /// Hash of the account.
    Account,
}

/// Kinds that have one cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Network,
    Client,
    Payment,
    Token,
    Account,
}

impl Group {
    const ALL: [Self; 5] = [Self::Network, Self::Client, Self::Payment, Self::Token, Self::Account];

    /// Most nats that it is worth, and whether it is somebody's own.
    fn worth(self) -> (f64, bool) {
        match self {
            Self::Network => (2.5, false),
            Self::Client => (1.0, false),
            Self::Payment | Self::Account => (6.0, true),
            // Whoever quotes what a campaign has published carries its marks.
            Self::Token => (5.0, true),
        }
    }
}

impl IndicatorKind {
    /// Its name in evidence.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Subnet => "subnet",
            Self::Ja3 => "JA3",
            Self::Ja3s => "JA3S",
            Self::Ja4 => "JA4",
            Self::Http2 => "HTTP/2 fingerprint",
            Self::Payment => "payment instrument",
            Self::Token => "watermark token",
            Self::Account => "account",
        }
    }

    fn group(self) -> Group {
        match self {
            Self::Address | Self::Subnet => Group::Network,
            Self::Ja3 | Self::Ja3s | Self::Ja4 | Self::Http2 => Group::Client,
            Self::Payment => Group::Payment,
            Self::Token => Group::Token,
            Self::Account => Group::Account,
        }
    }
}

/// An indicator of a peer's that an exchange shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IndicatorHit {
    /// Its kind.
    pub kind: IndicatorKind,
    /// The peer that shared it.
    pub source: Arc<str>,
    /// The peer's weight times the indicator's confidence, faded by its age: 0..1.
    pub weight: f64,
}

/// A hit as it is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hit {
    /// Hash of what was listed, by which customers who share it are counted.
    value: [u32; 2],
    /// Hash of the source.
    source: u32,
    /// Unix seconds.
    at_s: u32,
    kind: IndicatorKind,
    /// In 255ths.
    weight: u8,
}

impl Hit {
    /// A hit on a value, by its hash, that a source, by its hash too, has listed. `weight` is 0..1.
    #[must_use]
    pub fn new(kind: IndicatorKind, value: u64, source: u32, at_s: u32, weight: f64) -> Self {
        let value = [(value >> 32) as u32, value as u32];
        Self { value, source, at_s, kind, weight: (unit(weight) * 255.0).round() as u8 }
    }

    /// The value that customers are counted by, where no other family of shared values has it.
    #[must_use]
    pub fn shared_value(&self) -> Option<u64> {
        matches!(self.kind.group(), Group::Client | Group::Token).then(|| self.value())
    }

    /// When it was, unix seconds.
    #[must_use]
    pub fn at_s(&self) -> u32 {
        self.at_s
    }

    /// Hash of the source.
    #[must_use]
    pub fn source(&self) -> u32 {
        self.source
    }

    fn value(&self) -> u64 {
        u64::from(self.value[0]) << 32 | u64::from(self.value[1])
    }
}

impl Timed for Hit {
    fn key(&self) -> u64 {
        let whose = u64::from(self.source) << 8 | self.kind as u64;
        (self.value() ^ whose.rotate_right(8)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn at(&self) -> u64 {
        u64::from(self.at_s)
    }

    fn join(&mut self, other: &Self) {
        if (other.at_s, other.weight) > (self.at_s, self.weight) {
            *self = *other;
        }
    }
}

/// The hits of an exchange, each with its source's name. Those that say nothing are left out.
pub(crate) fn hits(
    observation: &Observation,
    reading: &ClientReading,
    key: &Key,
) -> Vec<(Hit, Arc<str>)> {
    let tls = observation.tls.as_deref();
    let http2 = observation.http.h2.as_ref();
    let value = |hit: &IndicatorHit| {
        let hashed = |text: &str| keyed::hash_parts(key, &[&[hit.kind as u8], text.as_bytes()]);
        Some(match hit.kind {
            IndicatorKind::Address => seen::address(observation.ip, key),
            IndicatorKind::Subnet => seen::subnet(observation.ip, key),
            // Software that is known is everybody's.
            IndicatorKind::Ja3 | IndicatorKind::Ja3s | IndicatorKind::Ja4
                if reading.by_tls != 0 =>
            {
                return None;
            }
            IndicatorKind::Http2 if reading.by_http2 != 0 => return None,
            IndicatorKind::Ja3 => hashed(&tls?.ja3_md5),
            IndicatorKind::Ja3s => hashed(tls?.ja3s_md5.as_deref()?),
            IndicatorKind::Ja4 => hashed(&tls?.ja4),
            IndicatorKind::Http2 => hashed(&http2?.akamai),
            IndicatorKind::Token => hashed(&hit.source),
            IndicatorKind::Payment | IndicatorKind::Account => 0,
        })
    };
    let remembered = |hit: &IndicatorHit| {
        let source = (keyed::hash(key, hit.source.as_bytes()) >> 32) as u32;
        let at_s = u32::try_from(observation.at_ms / 1000).unwrap_or(u32::MAX);
        let remembered = Hit::new(hit.kind, value(hit)?, source, at_s, hit.weight);
        (remembered.weight > 0).then(|| (remembered, Arc::clone(&hit.source)))
    };
    observation.indicators.iter().filter_map(remembered).take(HITS_MAX).collect()
}

/// What peers' indicators say of an account.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed {
    /// How much it is like what peers found, 0..1.
    pub strength: f64,
    /// Which kinds each peer has listed, by the hash of its name.
    pub sources: Vec<(u32, Vec<IndicatorKind>)>,
}

/// Weighs the hits of an account. `customers` is how many there are in all.
#[must_use]
pub fn listed(memory: &Memory, pivots: &Pivots, customers: f64, now_ms: u64) -> Listed {
    if memory.hits.is_empty() {
        return Listed::default();
    }
    let sharing = |family: Family, value: u64| {
        pivots.crowd(family, value).map_or(1.0, |crowd| crowd.customers.count().max(1.0))
    };
    // Exchanges of before the import count too: a fingerprint is no rarer than the clients it is of.
    let shapes = memory.shapes.iter().map(|shape| sharing(Family::Shape, shape.key()));
    let shapes = shapes.fold(1.0, f64::max);
    let mut nats = [0.0_f64; Group::ALL.len()];
    let mut sources: Vec<(u32, Vec<IndicatorKind>)> = Vec::new();
    for hit in memory.hits.iter() {
        let shared = match hit.kind {
            IndicatorKind::Address => sharing(Family::Address, hit.value()),
            IndicatorKind::Subnet => sharing(Family::Subnet, hit.value()),
            IndicatorKind::Payment => {
                memory.known.payment.map_or(1.0, |payment| sharing(Family::Payment, payment))
            }
            IndicatorKind::Account => 1.0,
            IndicatorKind::Token => sharing(Family::Listed, hit.value()),
            _ => sharing(Family::Listed, hit.value()).max(shapes),
        };
        let group = hit.kind.group();
        let (most, own) = group.worth();
        let rarity = (customers / shared).ln().clamp(0.0, most);
        // Any of those who share it may be the one whom the peer has found.
        let blame = if own { 1.0 } else { 1.0 / shared };
        let days = (now_ms / 1000).saturating_sub(u64::from(hit.at_s)) as f64 / 86_400.0;
        let weight = f64::from(hit.weight) / 255.0 * (-days / HALF_LIFE_DAYS).exp2();
        let worth = weight * rarity * blame;
        nats[group as usize] = nats[group as usize].max(worth);
        if worth > 0.0 {
            match sources.iter_mut().find(|(source, _)| *source == hit.source) {
                Some((_, kinds)) => kinds.push(hit.kind),
                None => sources.push((hit.source, vec![hit.kind])),
            }
        }
    }
    for (_, kinds) in &mut sources {
        kinds.sort_unstable();
        kinds.dedup();
    }
    sources.sort_unstable();
    let speaking = |group: &&Group| nats[**group as usize] >= SPEAKS_NATS;
    let speakers = Group::ALL.iter().filter(speaking);
    let alone = speakers.clone().count() < 2 && !speakers.clone().any(|group| group.worth().1);
    let all = nats.iter().sum::<f64>() * if alone { ALONE } else { 1.0 };
    let most = if sources.len() > 1 { PEERS_NATS_MAX } else { PEER_NATS_MAX };
    Listed { strength: 1.0 - (-all.min(most) / NATS_FOLD).exp(), sources }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    /// What hits of weight 1 say where so many other customers share them.
    fn strength(kinds: &[IndicatorKind], others: u64, days: u32) -> f64 {
        let mut memory = Memory::default();
        let mut pivots = Pivots::new(1_000);
        let at_s = (NOW_MS / 1000) as u32 - days * 86_400;
        for kind in kinds {
            let value = *kind as u64;
            memory.hits.add(&Hit::new(*kind, value, 1, at_s, 1.0));
            let family = match kind {
                IndicatorKind::Address => Family::Address,
                IndicatorKind::Subnet => Family::Subnet,
                _ => Family::Listed,
            };
            for customer in 0..=others {
                let customer = keyed::hash(&[1; 16], &customer.to_le_bytes());
                pivots.add(family, value, customer, customer, at_s);
            }
        }
        listed(&memory, &pivots, 2_000.0, NOW_MS).strength
    }

    #[test]
    fn what_customers_share_says_nothing_of_one_of_them() {
        use IndicatorKind::{Address, Http2, Ja3, Ja4, Payment, Subnet, Token};
        // At the weight of the threat model's table.
        let suspicion = |strength: f64| 1.0 - (1.0 - strength).powf(2.75 * 0.08);
        for (kinds, others, days, from, to) in [
            (&[Address, Subnet][..], 0, 0, 0.0, 0.1),
            // Software of one's own, and one's own address: beside other evidence it counts.
            (&[Address, Ja3, Ja4, Http2], 0, 0, 0.2, 0.35),
            (&[Address, Ja3, Ja4, Http2], 9, 0, 0.0, 0.1),
            (&[Address, Subnet, Ja3, Ja4, Http2], 60, 0, 0.0, 0.01),
            (&[Token], 0, 0, 0.35, 0.52),
            (&[Token], 500, 0, 0.0, 0.2),
            (&[Payment], 0, 0, 0.35, 0.52),
            (&[Payment], 0, 14, 0.0, 0.2),
            (&[Payment, Address], 0, 0, 0.52, 0.72),
            (&[Payment, Address, Token, Ja3], 0, 0, 0.52, 0.72),
            (&[], 0, 0, 0.0, 0.001),
        ] {
            let reached = suspicion(strength(kinds, others, days));
            assert!((from..to).contains(&reached), "{kinds:?} of {others}: {reached:.3}");
        }
    }

    #[test]
    fn a_hit_told_twice_is_one() {
        let of = |at_s, weight| Hit::new(IndicatorKind::Address, 7, 1, at_s, weight);
        for (one, other, expected) in
            [(of(1, 0.9), of(2, 0.1), of(2, 0.1)), (of(2, 0.1), of(2, 0.3), of(2, 0.3))]
        {
            let (mut forth, mut back) = (one, other);
            forth.join(&other);
            back.join(&one);
            assert_eq!((forth, back), (expected, expected));
        }
    }
}
