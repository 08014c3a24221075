//! The audit: who changed what and why, each entry chained to the one before.
//!
//! The hash of an entry is SHA-256 over the hash of the one before (64 zeros before the first)
//! followed by the SHA-256 of the entry's JSON text, byte for byte; both as 64 hex digits. Whoever
//! changes, drops or inserts an entry changes every hash after it. As the text's own hash is enough
//! for the chain, an entry can be shown in its place without showing the others.
//!
//! What the chain cannot tell is whether it was cut at its end, or written anew from some entry on:
//! for that its head, number and hash, has to be kept somewhere else ([`Chain::check`] of a later
//! audit passes through every head it ever had).

use std::sync::Arc;

use detectors::AccountId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::policy::unix_ms;

/// What happened. The names are in the audit, the event stream and webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// A gateway began to serve.
    Started,
    /// A judgement changed an account's tier.
    TierChanged,
    /// An operator set an account's tier.
    OverrideSet,
    /// An operator's word on an account was removed.
    OverrideRemoved,
    /// An operator told of an account.
    ProfileSet,
    /// An account was asked to verify.
    VerificationRequested,
    /// An account was put up for review.
    ReviewRequested,
    /// An operator looks at an account under review.
    ReviewTaken,
    /// An operator decided on an account under review.
    ReviewDecided,
    /// A takedown waits for an operator's word.
    TakedownWaits,
    /// A cluster was taken down.
    TakenDown,
    /// Members followed a takedown.
    TakedownJoined,
    /// A takedown was taken back.
    TakedownUndone,
    /// Another policy came into force.
    PolicyChanged,
    /// A model's release was told or removed.
    ModelChanged,
    /// A mark that was served to others came back.
    MarkReturned,
    /// Indicators were taken in from a peer or an operator.
    IndicatorsImported,
    /// A bundle of indicators was refused.
    IndicatorsRefused,
    /// Indicators were sent to a peer or given to an operator.
    IndicatorsExported,
    /// An indicator was revoked.
    IndicatorRevoked,
}

/// Whose doing it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "name")]
pub enum Actor {
    /// A judgement by the policy in force.
    Policy(String),
    /// A person, by the name of the token and, where told, their own.
    Operator(String),
    /// Another provider.
    Peer(String),
    /// The gateway itself.
    System,
}

impl Actor {
    /// Its name; empty of the gateway itself.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Policy(name) | Self::Operator(name) | Self::Peer(name) => name,
            Self::System => "",
        }
    }
}

/// Who wants a change, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Whose word it is.
    pub actor: Actor,
    /// Why.
    pub reason: String,
}

impl Said {
    /// An operator's word.
    #[must_use]
    pub fn by_operator(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { actor: Actor::Operator(name.into()), reason: reason.into() }
    }

    /// The entry that tells of it.
    #[must_use]
    pub fn entry(&self, act: Act) -> Draft {
        Draft::new(self.actor.clone(), act).because(&self.reason)
    }
}

/// An entry as it is told, before it has its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// When, unix milliseconds.
    pub at_ms: u64,
    /// Whose doing.
    pub actor: Actor,
    /// What.
    pub act: Act,
    /// On which account.
    pub account: Option<AccountId>,
    /// On which cluster, 16 hex digits.
    pub cluster: Option<String>,
    /// Why; empty where a judgement is the reason.
    pub reason: String,
    /// What else there is to know. Never text of prompts or answers, never a secret.
    pub detail: Value,
}

impl Draft {
    /// An entry of now.
    #[must_use]
    pub fn new(actor: Actor, act: Act) -> Self {
        Self {
            at_ms: unix_ms(),
            actor,
            act,
            account: None,
            cluster: None,
            reason: String::new(),
            detail: Value::Null,
        }
    }

    /// On an account.
    #[must_use]
    pub fn account(mut self, account: &AccountId) -> Self {
        self.account = Some(account.clone());
        self
    }

    /// On a cluster.
    #[must_use]
    pub fn cluster(mut self, cluster: &str) -> Self {
        self.cluster = Some(cluster.to_owned());
        self
    }

    /// With a reason.
    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        reason.clone_into(&mut self.reason);
        self
    }

    /// With more to know.
    #[must_use]
    pub fn detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }
}

/// An entry in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Number, from 1 without gaps.
    pub seq: u64,
    /// When, unix milliseconds.
    pub at_ms: u64,
    /// The gateway that wrote it.
    pub gateway: String,
    /// Whose doing.
    pub actor: Actor,
    /// What.
    pub act: Act,
    /// On which account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// On which cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What else there is to know.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

/// An entry's text with its link of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chained {
    /// Number, from 1.
    pub seq: u64,
    /// The link, 64 hex digits.
    pub hash: String,
    /// JSON of the [`Entry`].
    pub text: String,
}

impl Chained {
    /// Gives an entry its place after the last one, which is told by number and hash.
    #[must_use]
    pub fn link(draft: Draft, gateway: &Arc<str>, last: Option<&(u64, String)>) -> Self {
        let seq = last.map_or(1, |(seq, _)| seq + 1);
        let entry = Entry {
            seq,
            at_ms: draft.at_ms,
            gateway: gateway.to_string(),
            actor: draft.actor,
            act: draft.act,
            account: draft.account,
            cluster: draft.cluster,
            reason: draft.reason,
            detail: draft.detail,
        };
        let text = serde_json::to_string(&entry).unwrap_or_default();
        let hash = link_hash(last.map_or(FIRST, |(_, hash)| hash), &digest(&text));
        Self { seq, hash, text }
    }

    /// The entry.
    ///
    /// # Errors
    /// When the text is not one.
    pub fn entry(&self) -> serde_json::Result<Entry> {
        serde_json::from_str(&self.text)
    }
}

/// What the first entry follows.
pub const FIRST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// SHA-256 of an entry's text, 64 hex digits.
#[must_use]
pub fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// The link of an entry, told by its [`digest`], to what is before it.
#[must_use]
pub fn link_hash(before: &str, digest: &str) -> String {
    hex::encode(Sha256::new().chain_update(before).chain_update(digest).finalize())
}

/// An entry of an exported audit: with its text, or where that is nobody else's business with its
/// digest alone. As a line of JSON it is `{"hash":…,"entry":…}`, the entry byte for byte as it was
/// hashed, or `{"seq":…,"hash":…,"digest":…}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Number, from 1.
    pub seq: u64,
    /// The link, 64 hex digits.
    pub hash: String,
    /// JSON of the [`Entry`], or in place of it its [`digest`].
    pub told: Told,
}

/// What is told of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// JSON of the [`Entry`].
    Text(String),
    /// Its [`digest`].
    Digest(String),
}

/// A line that was exported.
#[derive(Deserialize)]
struct Line<'a> {
    seq: Option<u64>,
    hash: String,
    #[serde(borrow)]
    entry: Option<&'a RawValue>,
    digest: Option<String>,
}

impl Link {
    /// With its text.
    #[must_use]
    pub fn shown(entry: Chained) -> Self {
        Self { seq: entry.seq, hash: entry.hash, told: Told::Text(entry.text) }
    }

    /// Without it.
    #[must_use]
    pub fn withheld(entry: &Chained) -> Self {
        let told = Told::Digest(digest(&entry.text));
        Self { seq: entry.seq, hash: entry.hash.clone(), told }
    }

    /// The line, without its end.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { seq, hash, told } = self;
        let hash = Value::from(hash.as_str());
        match told {
            Told::Text(text) => format!(r#"{{"hash":{hash},"entry":{text}}}"#),
            Told::Digest(digest) => {
                let digest = Value::from(digest.as_str());
                format!(r#"{{"seq":{seq},"hash":{hash},"digest":{digest}}}"#)
            }
        }
    }

    /// Reads a line.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(line: &[u8]) -> Result<Self, String> {
        let wrong = |error: serde_json::Error| format!("is no line of an exported audit: {error}");
        let line: Line<'_> = serde_json::from_slice(line).map_err(wrong)?;
        let (seq, told) = match (line.seq, line.entry, line.digest) {
            (None, Some(entry), None) => {
                let text = entry.get().to_owned();
                let entry: Numbered = serde_json::from_str(&text).map_err(wrong)?;
                (entry.seq, Told::Text(text))
            }
            (Some(seq), None, Some(digest)) => (seq, Told::Digest(digest)),
            _ => return Err("is no line of an exported audit".to_owned()),
        };
        Ok(Self { seq, hash: line.hash, told })
    }
}

/// Where a chain is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// An entry is missing, or there twice, or out of order.
    #[error("entry {expected} is missing: {found} is in its place")]
    Number {
        /// The number that should be there.
        expected: u64,
        /// The number that is.
        found: u64,
    },
    /// The text or the hash was changed, or something before it.
    #[error("entry {0} was changed: its hash does not follow from its text and the entry before")]
    Hash(u64),
    /// The text is no entry of this number, though the hash is right.
    #[error("entry {0} is no audit entry, though its hash is right")]
    Text(u64),
    /// A head that was kept is not that of this chain.
    #[error("entry {0} has another hash than the head that was kept: the audit was written anew")]
    Anchor(u64),
    /// The chain ends before a head that was kept.
    #[error("ends at entry {last}, before the head that was kept ({wanted}): its end is missing")]
    Short {
        /// The last entry's number.
        last: u64,
        /// The number that was kept.
        wanted: u64,
    },
}

/// A number and a hash: an entry's place in the chain. The last one's is the chain's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Number; 0 before the first entry.
    pub seq: u64,
    /// Its link, 64 hex digits.
    pub hash: String,
}

impl Default for Anchor {
    fn default() -> Self {
        Self { seq: 0, hash: FIRST.to_owned() }
    }
}

impl std::fmt::Display for Anchor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl std::str::FromStr for Anchor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(seq, hash)| {
            let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let whole = hash.len() == FIRST.len() && hash.bytes().all(hex);
            Some(Self { seq: seq.parse().ok()?, hash: whole.then(|| hash.to_owned())? })
        });
        parsed.ok_or_else(|| "is not NUMBER:HASH with 64 hex digits in lower case".to_owned())
    }
}

/// A chain that is checked entry by entry.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    last: Anchor,
    /// Heads that were kept and are still to come, the next one last.
    wanted: Vec<Anchor>,
}

impl Chain {
    /// A chain that must go through heads that were kept. One that begins later than at entry 1
    /// begins after one of them; `first` is the number of its first entry.
    ///
    /// # Errors
    /// When no head tells what is before the first entry.
    pub fn through(mut anchors: Vec<Anchor>, first: u64) -> Result<Self, Broken> {
        anchors.sort_by_key(|anchor| std::cmp::Reverse(anchor.seq));
        anchors.insert(anchors.len(), Anchor::default());
        let before = anchors.iter().find(|anchor| anchor.seq.checked_add(1) == Some(first));
        let Some(last) = before.cloned() else {
            return Err(Broken::Number { expected: 1, found: first });
        };
        anchors.retain(|anchor| anchor.seq >= last.seq && *anchor != last);
        Ok(Self { last, wanted: anchors })
    }

    /// Checks the next entry.
    ///
    /// # Errors
    /// When it is not the one that follows.
    pub fn check(&mut self, link: &Link) -> Result<(), Broken> {
        let expected = self.last.seq.saturating_add(1);
        if link.seq != expected {
            return Err(Broken::Number { expected, found: link.seq });
        }
        let digest = match &link.told {
            Told::Text(text) => digest(text),
            Told::Digest(digest) => digest.clone(),
        };
        if link_hash(&self.last.hash, &digest) != link.hash {
            return Err(Broken::Hash(link.seq));
        }
        if let Told::Text(text) = &link.told
            && !serde_json::from_str::<Numbered>(text).is_ok_and(|entry| entry.seq == link.seq)
        {
            return Err(Broken::Text(link.seq));
        }
        self.last = Anchor { seq: link.seq, hash: link.hash.clone() };
        while self.wanted.last().is_some_and(|anchor| anchor.seq <= link.seq) {
            if self.wanted.pop().is_some_and(|anchor| anchor != self.last) {
                return Err(Broken::Anchor(link.seq));
            }
        }
        Ok(())
    }

    /// The head, once every entry was checked.
    ///
    /// # Errors
    /// When a head that was kept did not come.
    pub fn finish(self) -> Result<Anchor, Broken> {
        match self.wanted.first() {
            None => Ok(self.last),
            Some(anchor) => Err(Broken::Short { last: self.last.seq, wanted: anchor.seq }),
        }
    }
}

/// What of an entry's text the chain looks at: acts of later versions are entries as well.
#[derive(Deserialize)]
struct Numbered {
    seq: u64,
}

/// Which entries are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Those after this number.
    pub after: u64,
    /// At most so many.
    pub limit: usize,
}

/// Arbitrary bytes as a line of an exported audit: must not panic, and is written as it was read.
#[doc(hidden)]
pub fn fuzz_audit_line(data: &[u8]) {
    if let Ok(link) = Link::read(data) {
        assert_eq!(Link::read(link.line().as_bytes()), Ok(link));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn chain(count: u64) -> Vec<Link> {
        let gateway: Arc<str> = "a".into();
        let mut last = None;
        (0..count)
            .map(|n| {
                let mut draft = Draft::new(Actor::System, Act::TierChanged)
                    .account(&AccountId::new(format!("acct-{}", n % 3)))
                    .detail(json!({ "n": n }));
                draft.at_ms = 1_000 + n;
                let entry = Chained::link(draft, &gateway, last.as_ref());
                last = Some((entry.seq, entry.hash.clone()));
                if n % 4 == 1 { Link::withheld(&entry) } else { Link::shown(entry) }
            })
            .collect()
    }

    fn verify(links: &[Link], anchors: Vec<Anchor>) -> Result<Anchor, Broken> {
        let mut chain = Chain::through(anchors, links.first().map_or(1, |link| link.seq))?;
        links.iter().try_for_each(|link| chain.check(link))?;
        chain.finish()
    }

    /// The same chain with every hash from one entry on made right again.
    fn rehashed(mut links: Vec<Link>, from: usize) -> Vec<Link> {
        for at in from..links.len() {
            let before = at.checked_sub(1).map_or(FIRST.to_owned(), |at| links[at].hash.clone());
            let digest = match &links[at].told {
                Told::Text(text) => digest(text),
                Told::Digest(digest) => digest.clone(),
            };
            links[at].hash = link_hash(&before, &digest);
        }
        links
    }

    fn head(links: &[Link]) -> Anchor {
        links
            .last()
            .map_or_else(Anchor::default, |last| Anchor { seq: last.seq, hash: last.hash.clone() })
    }

    #[test]
    fn a_chain_is_whole_from_its_start_or_from_a_head_that_was_kept() {
        let links = chain(20);
        assert_eq!(verify(&links, vec![]), Ok(head(&links)));
        assert_eq!(verify(&[], vec![]), Ok(Anchor::default()));
        assert_eq!(verify(&links[5..], vec![]), Err(Broken::Number { expected: 1, found: 6 }));
        let kept = vec![head(&links[..12]), head(&links[..5]), head(&links)];
        assert_eq!(verify(&links[5..], kept.clone()), Ok(head(&links)));
        assert_eq!(verify(&links, kept), Ok(head(&links)));
        let text = head(&links).to_string();
        assert_eq!(text.parse(), Ok(head(&links)));
        for wrong in ["", "1", "1:", "x:0", &text.to_uppercase(), &text[..text.len() - 1]] {
            assert!(wrong.parse::<Anchor>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_a_kept_head_tells_of_an_end_that_was_cut_or_written_anew() {
        let links = chain(20);
        let kept = vec![head(&links)];
        assert!(verify(&links[..19], vec![]).is_ok());
        assert_eq!(verify(&links[..19], kept.clone()), Err(Broken::Short { last: 19, wanted: 20 }));
        let mut anew = links;
        let Told::Text(text) = &anew[6].told else { panic!("a text") };
        anew[6].told = Told::Text(text.replace("acct-0", "acct-1"));
        let anew = rehashed(anew, 6);
        assert!(verify(&anew, vec![]).is_ok());
        assert_eq!(verify(&anew, kept), Err(Broken::Anchor(20)));
    }

    #[test]
    fn a_text_that_is_no_entry_of_its_number_is_found_though_the_hash_is_right() {
        let mut links = chain(5);
        for text in ["{}", "", r#"{"seq":3}"#] {
            links[4].told = Told::Text(text.to_owned());
            let links = rehashed(links.clone(), 4);
            assert_eq!(verify(&links, vec![]), Err(Broken::Text(5)), "{text}");
        }
    }

    /// One change to a chain, of every kind that somebody with an editor can make.
    #[derive(Clone, Debug)]
    enum Damage {
        Text(usize, usize, u8),
        Hash(usize, usize),
        Number(usize, u64),
        Drop(usize),
        Swap(usize, usize),
        Insert(usize, usize),
        Forge(usize),
    }

    fn damage() -> impl Strategy<Value = Damage> {
        let at = 0..30_usize;
        prop_oneof![
            (at.clone(), any::<usize>(), 1..=255_u8).prop_map(|(a, b, c)| Damage::Text(a, b, c)),
            (at.clone(), any::<usize>()).prop_map(|(a, b)| Damage::Hash(a, b)),
            (at.clone(), any::<u64>()).prop_map(|(a, b)| Damage::Number(a, b)),
            // The last one is not in it: that a chain was cut at its end only a kept head tells.
            (0..29_usize).prop_map(Damage::Drop),
            (at.clone(), at.clone()).prop_map(|(a, b)| Damage::Swap(a, b)),
            (at.clone(), at.clone()).prop_map(|(a, b)| Damage::Insert(a, b)),
            at.prop_map(Damage::Forge),
        ]
    }

    fn damaged(mut links: Vec<Link>, damage: &Damage) -> Vec<Link> {
        match *damage {
            Damage::Text(at, place, flip) => {
                let (Told::Text(text) | Told::Digest(text)) = &mut links[at].told;
                let mut bytes = std::mem::take(text).into_bytes();
                let place = place % bytes.len();
                // Texts are ASCII here; they stay text.
                bytes[place] = (bytes[place] ^ flip) & 0x7f;
                *text = String::from_utf8(bytes).unwrap();
            }
            Damage::Hash(at, place) => {
                let mut bytes = std::mem::take(&mut links[at].hash).into_bytes();
                let place = place % bytes.len();
                bytes[place] = if bytes[place] == b'0' { b'1' } else { b'0' };
                links[at].hash = String::from_utf8(bytes).unwrap();
            }
            Damage::Number(at, seq) => links[at].seq = seq,
            Damage::Drop(at) => drop(links.remove(at)),
            Damage::Swap(a, b) => links.swap(a, b),
            Damage::Insert(at, from) => {
                let link = links[from].clone();
                links.insert(at, link);
            }
            // With numbers and its own hash made right: what follows does not follow from it.
            Damage::Forge(at) => {
                let link = links[at].clone();
                links.insert(at, link);
                for (at, link) in links.iter_mut().enumerate() {
                    link.seq = at as u64 + 1;
                }
                let tail = links.split_off(at + 1);
                links = rehashed(links, at);
                links.extend(tail);
            }
        }
        links
    }

    proptest! {
        #[test]
        fn any_single_change_is_found(damage in damage()) {
            let whole = chain(30);
            let changed = damaged(whole.clone(), &damage);
            prop_assume!(changed != whole);
            prop_assert!(verify(&changed, vec![]).is_err(), "{damage:?}");
        }

        #[test]
        fn lines_are_read_as_they_were_written_and_others_never_panic(line in "\\PC{0,60}") {
            for link in chain(6) {
                prop_assert_eq!(Link::read(link.line().as_bytes()), Ok(link));
            }
            let _ = Link::read(line.as_bytes());
            let _ = Link::read(format!("{{\"hash\":\"\",\"entry\":{line}}}").as_bytes());
        }
    }
}
