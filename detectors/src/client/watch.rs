//! What only several connections show: a JA3 that ought to change, a JA3S that ought to be another.
//!
//! What it sees: the JA3 of each connection that has Chromium's hello, and the cipher that the
//! server chose for each family. Why it matters: Chromium shuffles its extensions on every
//! connection, so a Chrome whose JA3 stays is a recording (T-DIST-003a); the server's choice
//! follows from what was offered, so a "Chrome" that is given what scripts are given did not offer
//! what Chrome offers. When it is wrong: many requests share a connection and traces do not name
//! connections, so only pauses longer than browsers keep a connection idle, or other addresses,
//! count as new ones; a lone connection held for a whole working day would mislead, hence the long
//! spans. A server that chooses by its own order gives all families one JA3S: then nothing differs
//! and nothing is said. Source: T-DIST-003a; RFC 8446, sections 4.1.3 and B.4.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::facts::{ClientFacts, ClientKind};
use super::{ClientReading, Contradiction, ContradictionKind};
use crate::TlsCapture;
use crate::sketch::Unsound;

/// Hellos (by JA4) that one memory tells apart.
const TRACKS_MAX: usize = 3;
/// Distinct JA3 that one track remembers; two are already proof of permutation.
const JA3_MAX: usize = 4;
/// Distinct peers that one track remembers.
const PEERS_MAX: usize = 6;
/// Connections that must be certain before a JA3 that stays says anything.
const CONNECTIONS_MIN: u32 = 6;
/// Span that they must cover.
const SPAN_MS_MIN: u64 = 3_600_000;
/// Browsers close connections that idle for five minutes; a slot without a request is longer.
const SLOT_MS: u64 = 600_000;
/// Slots in which something was asked, after which one connection for all is no longer likely.
const SLOTS_MIN: u32 = 48;
/// A chance permutation of 16 extensions never repeats; one that stays is a recording.
const FIXED_STRENGTH: f32 = 0.7;

/// Whether one account's permuting browser really permutes.
///
/// Merging is commutative, associative and idempotent: sets keep their smallest hashes, time is a
/// set of slots and two ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<Track>", try_from = "Vec<Track>")]
pub struct PermutationWatch {
    /// Sorted by the hash of JA4, the smallest kept.
    tracks: Vec<Track>,
}

impl From<PermutationWatch> for Vec<Track> {
    fn from(watch: PermutationWatch) -> Self {
        watch.tracks
    }
}

impl TryFrom<Vec<Track>> for PermutationWatch {
    type Error = Unsound;

    fn try_from(tracks: Vec<Track>) -> Result<Self, Unsound> {
        Unsound::check(&tracks, TRACKS_MAX, |one, next| one.ja4 < next.ja4)?;
        Ok(Self { tracks })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Track {
    ja4: u64,
    ja3: Smallest<JA3_MAX>,
    peers: Smallest<PEERS_MAX>,
    /// Ten-minute slots with a request, counted around a day of 128 slots.
    slots: u128,
    first_ms: u64,
    last_ms: u64,
}

/// A browser that ought to permute its extensions and does not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedJa3 {
    /// Connections that there were at least.
    pub connections: u32,
    /// From the first to the last of them.
    pub span_ms: u64,
    /// 0 to 1.
    pub strength: f32,
}

impl FixedJa3 {
    /// The finding in words.
    #[must_use]
    pub fn explain(&self) -> String {
        format!(
            "a browser that shuffles its TLS extensions gave the same JA3 on {} or more connections \
             over {} minutes: its ClientHello is a recording",
            self.connections,
            self.span_ms / 60_000
        )
    }
}

impl PermutationWatch {
    /// Takes note of a request. Only a client that says it is a permuting browser, over a hello
    /// that fits, is watched; all others are contradictory already or never permute.
    pub fn observe(
        &mut self,
        facts: &ClientFacts,
        reading: &ClientReading,
        tls: &TlsCapture,
        peer: IpAddr,
        at_ms: u64,
    ) {
        let permutes_from =
            reading.claimed.and_then(|id| facts.family(id)).and_then(|family| family.permutes_from);
        let permutes = |at: usize| facts.tls.get(at).is_some_and(|stack| stack.permutes);
        if permutes_from
            .is_none_or(|from| reading.claimed_version.is_none_or(|version| version < from))
            || !(0..facts.tls.len()).any(|at| reading.by_tls & (1 << at) != 0 && permutes(at))
            || tls.ja4.is_empty()
        {
            return;
        }
        let mut peers = Smallest::default();
        peers.insert(match peer {
            IpAddr::V4(peer) => hash(&peer.octets()),
            // A household holds a /64 and its hosts change addresses within it.
            IpAddr::V6(peer) => hash(&peer.octets()[..8]),
        });
        let mut ja3 = Smallest::default();
        ja3.insert(hash(tls.ja3.as_bytes()));
        self.insert(Track {
            ja4: hash(tls.ja4.as_bytes()),
            ja3,
            peers,
            slots: 1 << (at_ms / SLOT_MS % 128),
            first_ms: at_ms,
            last_ms: at_ms,
        });
    }

    /// Adds what another memory of the same account knows.
    pub fn merge(&mut self, other: &Self) {
        for track in &other.tracks {
            self.insert(track.clone());
        }
    }

    /// A hello that ought to have changed and did not.
    #[must_use]
    pub fn fixed(&self) -> Option<FixedJa3> {
        self.tracks.iter().filter_map(Track::fixed).max_by_key(|fixed| fixed.connections)
    }

    fn insert(&mut self, track: Track) {
        match self.tracks.binary_search_by_key(&track.ja4, |known| known.ja4) {
            Ok(at) => self.tracks[at].merge(&track),
            Err(at) => {
                self.tracks.insert(at, track);
                self.tracks.truncate(TRACKS_MAX);
            }
        }
    }
}

impl Track {
    fn merge(&mut self, other: &Self) {
        self.ja3.merge(&other.ja3);
        self.peers.merge(&other.peers);
        self.slots |= other.slots;
        self.first_ms = self.first_ms.min(other.first_ms);
        self.last_ms = self.last_ms.max(other.last_ms);
    }

    fn fixed(&self) -> Option<FixedJa3> {
        let span_ms = self.last_ms.saturating_sub(self.first_ms);
        // Each run of slots begins after a pause that no idle connection survives.
        let runs = (self.slots & !self.slots.rotate_left(1)).count_ones();
        let connections = runs.max(self.peers.len());
        let slots = self.slots.count_ones();
        (self.ja3.len() == 1
            && span_ms > SPAN_MS_MIN
            && (connections >= CONNECTIONS_MIN || slots >= SLOTS_MIN))
            .then_some(FixedJa3 {
                connections: connections.max(1),
                span_ms,
                strength: FIXED_STRENGTH,
            })
    }
}

/// The smallest of the hashes seen. Which ones are kept does not depend on the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<u64>", try_from = "Vec<u64>")]
struct Smallest<const N: usize>([u64; N]);

impl<const N: usize> From<Smallest<N>> for Vec<u64> {
    fn from(smallest: Smallest<N>) -> Self {
        smallest.0.into_iter().filter(|hash| *hash != u64::MAX).collect()
    }
}

impl<const N: usize> TryFrom<Vec<u64>> for Smallest<N> {
    type Error = Unsound;

    fn try_from(hashes: Vec<u64>) -> Result<Self, Unsound> {
        Unsound::check(&hashes, N, |one, next| one < next)?;
        let mut smallest = Self::default();
        hashes.into_iter().for_each(|hash| smallest.insert(hash));
        Ok(smallest)
    }
}

impl<const N: usize> Default for Smallest<N> {
    fn default() -> Self {
        Self([u64::MAX; N])
    }
}

impl<const N: usize> Smallest<N> {
    fn insert(&mut self, hash: u64) {
        if let Err(at) = self.0.binary_search(&hash)
            && at < N
        {
            self.0[at..].rotate_right(1);
            self.0[at] = hash;
        }
    }

    fn merge(&mut self, other: &Self) {
        for &hash in other.0.iter().filter(|&&hash| hash != u64::MAX) {
            self.insert(hash);
        }
    }

    fn len(&self) -> u32 {
        self.0.iter().fold(0, |count, &hash| count + u32::from(hash != u64::MAX))
    }
}

/// Not keyed: the sets only count what is equal, and hold no more than a few.
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Requests of a family that must have been seen before its usual JA3S is known.
const BASELINE_SEEN_MIN: u32 = 50;
/// Percent of them that must agree.
const BASELINE_AGREE_PERCENT: u64 = 95;
/// The threat model's own weight for a browser's JA3 with a script's JA3S.
const JA3S_STRENGTH: f32 = 0.3;
/// A reading with more than this does not teach.
const TEACHER_STRENGTH_MAX: f32 = 0.1;

/// Which cipher this server chooses for each family under TLS 1.3.
///
/// The rest of a TLS 1.3 JA3S follows from the key exchange and from resumption, so the suite is
/// what is compared. Bounded by 64 families and the five suites of TLS 1.3. Counts add up when
/// merged: give each observation to one table only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ja3sBaseline {
    seen: BTreeMap<(u8, u16), u32>,
}

impl Ja3sBaseline {
    /// Learns from a client that does not contradict itself.
    pub fn learn(&mut self, reading: &ClientReading, tls: &TlsCapture) {
        if let (Some(family), Some(suite)) = (reading.claimed, suite(tls))
            && reading.by_tls != 0
            && reading.strength < TEACHER_STRENGTH_MAX
            && !reading.middlebox_like
            && !reading.intermediary
        {
            let count = self.seen.entry((family.0, suite)).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// Adds another table's counts.
    pub fn merge(&mut self, other: &Self) {
        for (cell, more) in &other.seen {
            let count = self.seen.entry(*cell).or_default();
            *count = count.saturating_add(*more);
        }
    }

    /// A contradiction if a browser is given what scripts are usually given, and its own family
    /// usually is not.
    #[must_use]
    pub fn unexpected(
        &self,
        facts: &ClientFacts,
        reading: &ClientReading,
        tls: &TlsCapture,
    ) -> Option<Contradiction> {
        let family = reading.claimed?;
        let suite = suite(tls)?;
        if !reading.is_browser || reading.middlebox_like || self.usual(family.0)? == suite {
            return None;
        }
        let of_scripts = facts.families.iter().any(|other| {
            other.kind != ClientKind::Browser && self.usual(other.number.0) == Some(suite)
        });
        of_scripts.then_some(Contradiction {
            kind: ContradictionKind::Ja3sUnexpected,
            strength: JA3S_STRENGTH,
        })
    }

    fn usual(&self, family: u8) -> Option<u16> {
        let cells = self.seen.range((family, 0)..=(family, u16::MAX));
        let all: u64 = cells.clone().map(|(_, &count)| u64::from(count)).sum();
        let (&(_, suite), &most) = cells.max_by_key(|(_, count)| **count)?;
        (all >= u64::from(BASELINE_SEEN_MIN)
            && u64::from(most) * 100 >= all * BASELINE_AGREE_PERCENT)
            .then_some(suite)
    }
}

/// The suite of TLS 1.3 that the server chose.
fn suite(tls: &TlsCapture) -> Option<u16> {
    let suite = tls.ja3s.as_deref()?.split(',').nth(1)?.parse().ok()?;
    (4865..=4869).contains(&suite).then_some(suite)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HeaderField, HttpCapture, HttpVersion};

    const CHROME: &str = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
                          Chrome/136.0.0.0 Safari/537.36";
    const CIPHERS: &str =
        "4865-4866-4867-49195-49199-49196-49200-52393-52392-49171-49172-156-157-47-53";

    fn chrome(rotated: usize, user_agent: &str, suite: u16) -> (HttpCapture, TlsCapture) {
        let mut extensions = vec![
            "17613", "45", "27", "51", "43", "65281", "23", "11", "5", "35", "10", "18", "16",
            "13", "0",
        ];
        let by = rotated % extensions.len();
        extensions.rotate_left(by);
        let tls = TlsCapture {
            ja3: format!("771,{CIPHERS},{},4588-29-23-24,0", extensions.join("-")),
            ja3s: Some(format!("771,{suite},43-51")),
            ja4: "t13d1516h2_8daaf6152771_d8a2da3f94cd".to_owned(),
            alpn: vec!["h2".to_owned()],
            ..TlsCapture::default()
        };
        let http = HttpCapture {
            version: HttpVersion::Http2,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            headers: vec![HeaderField {
                name: "user-agent".into(),
                value: Some(user_agent.into()),
            }],
            h2: None,
        };
        (http, tls)
    }

    fn watch(requests: impl Iterator<Item = (u64, usize, u8)>) -> PermutationWatch {
        let facts = ClientFacts::builtin();
        let mut watch = PermutationWatch::default();
        for (minute, rotated, peer) in requests {
            let (http, tls) = chrome(rotated, CHROME, 4865);
            let reading = facts.read(Some(&tls), &http, &[0; 16]);
            watch.observe(&facts, &reading, &tls, IpAddr::from([10, 0, 0, peer]), minute * 60_000);
        }
        watch
    }

    #[test]
    fn a_chrome_that_never_permutes_is_a_recording() {
        let fixed = watch((0..8).map(|n| (n * 30, 0, 1))).fixed().expect("fixed");
        assert!(fixed.connections >= 6 && fixed.strength > 0.5, "{fixed:?}");
        assert!(fixed.explain().contains("210 minutes"));
        // Six addresses are six connections, pauses or not.
        assert!(watch((0..70).map(|n| (n, 0, n as u8 % 7))).fixed().is_some());
    }

    #[test]
    fn one_connection_or_a_changing_ja3_is_none() {
        assert!(watch((0..8).map(|n| (n * 30, n as usize, 1))).fixed().is_none());
        // Two hours without a pause may be one connection.
        assert!(watch((0..120).map(|n| (n, 0, 1))).fixed().is_none());
        assert!(watch((0..8).map(|n| (n, 0, 1))).fixed().is_none());
        // A Chrome of before the permutation.
        let facts = ClientFacts::builtin();
        let mut old = PermutationWatch::default();
        let (http, tls) = chrome(0, &CHROME.replace("136", "100"), 4865);
        let reading = facts.read(Some(&tls), &http, &[0; 16]);
        old.observe(&facts, &reading, &tls, IpAddr::from([10, 0, 0, 1]), 0);
        assert_eq!(old, PermutationWatch::default());
    }

    #[test]
    fn merging_does_not_depend_on_order_or_repetition() {
        let parts: Vec<_> = (0..5_u64)
            .map(|part| {
                watch(
                    (0..6)
                        .map(move |n| (part * 97 + n * 13, (part * n) as usize, (part + n) as u8)),
                )
            })
            .collect();
        let mut forth = PermutationWatch::default();
        let mut back = PermutationWatch::default();
        for part in &parts {
            forth.merge(part);
            forth.merge(part);
        }
        for part in parts.iter().rev() {
            back.merge(part);
        }
        assert_eq!(forth, back);
        let mut nested = parts[3].clone();
        nested.merge(&parts[4]);
        let mut left = parts[0].clone();
        left.merge(&parts[1]);
        left.merge(&parts[2]);
        left.merge(&nested);
        assert_eq!(left, forth);
    }

    #[test]
    fn a_browser_with_the_servers_answer_to_scripts() {
        let facts = ClientFacts::builtin();
        let mut baseline = Ja3sBaseline::default();
        let read = |suite| {
            let (http, tls) = chrome(0, CHROME, suite);
            let mut reading = facts.read(Some(&tls), &http, &[0; 16]);
            // The headers are cut short here; only the claim and the TLS matter.
            reading.contradictions.clear();
            reading.strength = 0.0;
            (reading, tls)
        };
        let (odd, odd_tls) = read(4866);
        for _ in 0..60 {
            let (reading, tls) = read(4865);
            baseline.learn(&reading, &tls);
        }
        assert!(baseline.unexpected(&facts, &odd, &odd_tls).is_none(), "no script is known yet");
        let mut script = odd.clone();
        script.claimed = facts.family_of("python-requests");
        for _ in 0..60 {
            baseline.learn(&script, &odd_tls);
        }
        let found = baseline.unexpected(&facts, &odd, &odd_tls).expect("contradiction");
        assert_eq!(found.kind, ContradictionKind::Ja3sUnexpected);
        let (usual, usual_tls) = read(4865);
        assert!(baseline.unexpected(&facts, &usual, &usual_tls).is_none());
        assert!(baseline.unexpected(&facts, &script, &odd_tls).is_none());
    }
}
