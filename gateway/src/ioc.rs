//! Indicators of compromise: what providers tell each other of campaigns.
//!
//! A takedown that the store holds makes indicators of the provider's own; they are told to peers
//! in signed bundles, pushed and pulled (`peers`). What peers tell is taken in after its signature,
//! its age and each value have been looked at, and is evidence for detectors (`index`); it does
//! nothing by itself. Every indicator is a register of the store, so restarts and gateways of a
//! fleet have the same, and every change is in the audit.
//!
//! A word on an indicator has the time of whoever told it: what a peer took back stays so although
//! an older bundle comes later. What an operator has dropped stays so whatever a peer says.
//!
//! Privacy: bundles carry fingerprints, addresses and keyed hashes only. Account pseudonyms and
//! payment instruments are hashed again for sharing, with HMAC-SHA256. Under the `exchange_key` that
//! peers agree on, hashes of one instrument are the same at each of them, as long as their
//! operators tell instruments by the same pseudonym. Without one they are hashed under a key of the
//! provider's own and are references: nobody else can compare or undo them. Accounts of different
//! providers have nothing in common, so their hashes are references either way.
//!
//! Source: threat model, "IOC Sharing Protocol".

pub mod bundle;
pub mod index;
pub mod peers;
pub mod sign;
pub mod stix;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use aws_lc_rs::hmac;
use detectors::indicator::IndicatorHit;
use detectors::{AccountId, Observation};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tracing::{info, warn};

use self::bundle::{CONFIDENCE_MIN, Indicator, IocBundle, Kind, Revoked};
use self::index::{Hit, Index, Sighting};
use self::sign::EnvelopeError;
use crate::audit::{Act, Actor, Draft};
use crate::config::Ioc;
use crate::enforce::takedown::{Bundle, Status, Takedown};
use crate::limits::{
    INDICATORS_HELD_MAX, INDICATORS_SOURCE_MAX, IOC_BUNDLES_PEER_MAX, IOC_EXPORT_BUNDLES_MAX,
    IOC_EXPORT_BYTES_MAX, IOC_REFUSALS_AUDITED_MAX, IOC_SKIPPED_SHOWN, IOC_VALUES_MAX,
};
use crate::metrics::Metrics;
use crate::policy::unix_ms;
use crate::store::{Batch, Register, Stamp, Store, StoreError, Table, Write};

/// A bundle that was issued longer ago is not taken in.
pub const FRESH_MS: u64 = 24 * 3_600_000;
/// Clocks of providers may differ by so much.
pub const SKEW_MS: u64 = 5 * 60_000;
/// What still holds is issued again so often: half of [`FRESH_MS`], so that whoever asks for the
/// first time gets fresh bundles of all of it.
const REISSUE_MS: u64 = FRESH_MS / 2;
/// How long an indicator holds after it was last seen, where nothing is configured.
pub const LIFETIME_MS: u64 = 30 * 86_400_000;
/// Pause between two looks for what has expired.
const SWEEP_EVERY: std::time::Duration = std::time::Duration::from_secs(60);
/// Registers that are removed in one batch.
const SWEEP_BATCH_MAX: usize = 1_000;

/// Indicators of the provider's own and of others.
pub struct Exchange {
    config: Option<Arc<Ioc>>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    index: Index,
    held: Mutex<Held>,
    /// Counts changes of what is told to peers.
    changed: watch::Sender<u64>,
    refusals: Mutex<Refusals>,
}

#[derive(Default)]
struct Held {
    words: BTreeMap<Key, Word>,
    /// How many of them hold.
    holds: i64,
    /// Bundles that were taken in, with the time until which they would be fresh.
    bundles: HashMap<String, u64>,
}

/// Whose word on what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    source: Arc<str>,
    indicator: Indicator,
}

impl Key {
    /// As the key of a register: no part but the last could hold a space.
    fn text(&self) -> String {
        format!("{} {} {}", self.source, self.indicator.kind.name(), self.indicator.value)
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ' ');
        let (source, kind, value) = (parts.next()?, parts.next()?, parts.next()?);
        let indicator = Indicator { kind: Kind::of(kind)?, value: value.to_owned() };
        Some(Self { source: source.into(), indicator })
    }

    fn is_own(&self) -> bool {
        self.source.starts_with(OWN)
    }
}

/// Sources begin with who they are.
const OWN: &str = "own/";
const PEER: &str = "peer/";
const OPERATOR: &str = "operator/";

/// The latest word, with the time of whoever said it.
#[derive(Clone, Debug, PartialEq)]
struct Word {
    at_ms: u64,
    /// `None`: taken back.
    record: Option<Record>,
}

/// What is told of an indicator: the value of its register.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    confidence: f64,
    first_seen_ms: u64,
    last_seen_ms: u64,
    /// An operator has dropped it: it does not hold, and stays here against being told again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dropped: Option<String>,
}

/// A bundle that was taken in: the value of its register.
#[derive(Serialize, Deserialize)]
struct Seen {
    until_ms: u64,
}

/// How many refusals went into the audit this minute: whoever sends nonsense does not fill it.
#[derive(Default)]
struct Refusals {
    minute: u64,
    audited: u32,
}

/// Why a bundle is not taken in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// No exchange is configured.
    #[error("no exchange of indicators is configured")]
    NotConfigured,
    /// Its envelope is not believed.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// What was signed is no bundle.
    #[error("{0}")]
    Malformed(String),
    /// A peer has signed in another's name.
    #[error("its issuer is not the peer that signed it")]
    Issuer,
    /// It was issued too long ago.
    #[error("it was issued more than 24 hours ago")]
    Stale,
    /// It was issued later than now.
    #[error("it was issued more than 5 minutes from now")]
    Future,
    /// It is not sure enough.
    #[error("its confidence is not {CONFIDENCE_MIN} to 1")]
    Confidence,
    /// It was taken in before.
    #[error("it was taken in before")]
    Replay,
    /// Its issuer has sent too many.
    #[error("its issuer has sent {IOC_BUNDLES_PEER_MAX} bundles within a day")]
    TooMany,
    /// It could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Refused {
    /// Label of the metric, and the audit's word for it: one of [`crate::metrics::IOC_OUTCOMES`].
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotConfigured => "not_configured",
            Self::Envelope(EnvelopeError::Oversize) => "oversize",
            Self::Envelope(EnvelopeError::Malformed) | Self::Malformed(_) => "malformed",
            Self::Envelope(EnvelopeError::UnknownKey) => "unknown_key",
            Self::Envelope(EnvelopeError::Signature) => "signature",
            Self::Issuer => "issuer",
            Self::Stale => "stale",
            Self::Future => "future",
            Self::Confidence => "confidence",
            Self::Replay => "replay",
            Self::TooMany => "too_many",
            Self::Store(_) => "store",
        }
    }
}

/// What came of a bundle.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Taken {
    /// Whose it is.
    pub source: String,
    /// Its identity.
    pub bundle: String,
    /// Values that hold now.
    pub taken: usize,
    /// Values that do not hold any more.
    pub revoked: usize,
    /// How many values were skipped, by why.
    pub skipped: BTreeMap<String, usize>,
}

/// An indicator as it is listed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listed {
    /// Who told of it.
    pub source: Arc<str>,
    /// What it is about, and the value.
    #[serde(flatten)]
    pub indicator: Indicator,
    /// How sure the source is, 0..1.
    pub confidence: f64,
    /// Trust in the source times its confidence, halved with age; what a hit weighs now.
    pub weight: f64,
    /// First sighting, unix milliseconds.
    pub first_seen_ms: u64,
    /// Last sighting, unix milliseconds.
    pub last_seen_ms: u64,
    /// When the source told it, unix milliseconds.
    pub told_ms: u64,
    /// Why an operator has dropped it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
}

/// Which indicators are listed.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Sources that begin so.
    pub source: String,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// Those after this one, as [`Page::next`] gave it.
    pub after: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// A part of the list.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// The indicators.
    pub indicators: Vec<Listed>,
    /// Where the next part begins; `None` at the end.
    pub next: Option<String>,
}

/// A bundle in its envelope.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Its place among all: later ones come after it.
    pub cursor: Cursor,
    /// How many values it has.
    pub values: usize,
    /// The envelope, JSON.
    pub envelope: String,
}

/// Time of issue and identity of a bundle: what is sent is sent in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    /// Unix milliseconds.
    pub issued_ms: u64,
    /// Identity.
    pub id: String,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.issued_ms, self.id)
    }
}

impl std::str::FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (issued, id) = text.split_once('-').ok_or(())?;
        let plain = id.len() <= 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let issued_ms = issued.parse().map_err(|_| ())?;
        if plain { Ok(Self { issued_ms, id: id.to_owned() }) } else { Err(()) }
    }
}

impl Exchange {
    /// Everything that the store holds of indicators.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn new(
        config: Option<Arc<Ioc>>,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, StoreError> {
        let lifetime_ms = config.as_ref().map_or(LIFETIME_MS, |config| config.lifetime_ms);
        let exchange = Self {
            config,
            store,
            metrics,
            index: Index::new(lifetime_ms),
            held: Mutex::default(),
            changed: watch::channel(0).0,
            refusals: Mutex::default(),
        };
        exchange.restore()?;
        Ok(Arc::new(exchange))
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> Option<&Arc<Ioc>> {
        self.config.as_ref()
    }

    /// What others tell of a request, for the detectors. What this provider found out itself they
    /// know better from the engine's own ties.
    #[must_use]
    pub fn lookup(&self, observation: &Observation) -> Vec<IndicatorHit> {
        let hits = self.index.lookup(observation, unix_ms()).into_iter();
        let foreign = hits.filter(|hit| !hit.source.starts_with(OWN));
        foreign
            .map(|Hit { kind, source, weight, .. }| {
                self.metrics.ioc_hits.with_label_values(&[kind.name()]).inc();
                // Evidence names the peer.
                let source = source.strip_prefix(PEER).map_or(source.clone(), Arc::from);
                IndicatorHit { kind: kind.into(), source, weight }
            })
            .collect()
    }

    /// Reads everything again: at start, and when the store's feed ran away from its follower.
    fn restore(&self) -> Result<(), StoreError> {
        for register in self.store.scan(Table::Indicator)? {
            self.apply(&register);
        }
        for register in self.store.scan(Table::Bundle)? {
            self.apply(&register);
        }
        for register in self.store.scan(Table::Takedown)? {
            self.followed(&register)?;
        }
        self.index.refresh_search();
        self.find_payers()
    }

    /// Follows the store: words that came from other gateways, takedowns, profiles. Ends with the
    /// process.
    pub async fn follow(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut feed = self.store.subscribe();
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        // What was committed before the feed began.
        self.clone().off_thread(|exchange| exchange.restore()).await;
        loop {
            let committed = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                _ = sweep.tick() => None,
                committed = feed.recv() => Some(committed),
            };
            match committed {
                None => {
                    let now_ms = unix_ms();
                    self.clone().off_thread(move |exchange| exchange.sweep(now_ms)).await;
                }
                Some(Ok(committed)) if committed.registers.iter().any(concerns_us) => {
                    let take_in = move |exchange: &Self| {
                        let mut payments = false;
                        for register in committed.registers.iter().filter(|r| concerns_us(r)) {
                            exchange.apply(register);
                            exchange.followed(register)?;
                            payments |= is_foreign_payment(register);
                        }
                        // A payment hash that is new may be somebody's.
                        if payments { exchange.find_payers() } else { Ok(()) }
                    };
                    self.clone().off_thread(take_in).await;
                }
                Some(Ok(_)) => {}
                Some(Err(broadcast::error::RecvError::Lagged(_))) => {
                    self.clone().off_thread(|exchange| exchange.restore()).await;
                }
                Some(Err(broadcast::error::RecvError::Closed)) => return,
            }
        }
    }

    /// The store may block.
    async fn off_thread(
        self: Arc<Self>,
        run: impl FnOnce(&Self) -> Result<(), StoreError> + Send + 'static,
    ) {
        let run = move || {
            let done = run(&self);
            self.index.refresh_search();
            done
        };
        match tokio::task::spawn_blocking(run).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "indicators could not be brought up to date"),
            Err(_) => warn!("indicators could not be brought up to date"),
        }
    }

    /// Takes in a register that was committed, here or on another gateway. Again does no harm.
    pub fn apply(&self, register: &Register) {
        match register.table {
            Table::Indicator => {
                let Some(key) = Key::read(&register.key) else { return };
                let value = register.value.as_deref();
                let record = value.and_then(|value| serde_json::from_str(value).ok());
                self.put(key, Word { at_ms: register.stamp.at_ms, record });
            }
            Table::Bundle => {
                let value = register.value.as_deref();
                let seen = value.and_then(|value| serde_json::from_str::<Seen>(value).ok());
                let mut held = self.held.lock();
                match seen {
                    Some(seen) => held.bundles.insert(register.key.clone(), seen.until_ms),
                    None => held.bundles.remove(&register.key),
                };
            }
            _ => {}
        }
    }

    fn put(&self, key: Key, word: Word) {
        let now_ms = unix_ms();
        let mut held = self.held.lock();
        if held.words.get(&key).is_some_and(|before| *before == word || before.at_ms > word.at_ms) {
            return;
        }
        let Indicator { kind, value } = &key.indicator;
        match &word.record {
            Some(record) if record.dropped.is_none() => {
                let weight = self.trust(&key.source) * record.confidence;
                let sighting = Sighting {
                    source: key.source.clone(),
                    weight,
                    last_seen_ms: record.last_seen_ms,
                };
                if weight > 0.0 {
                    self.index.put(*kind, value, sighting);
                } else {
                    self.index.remove(*kind, value, &key.source);
                }
            }
            _ => self.index.remove(*kind, value, &key.source),
        }
        let own = key.is_own();
        let held_before = held.words.get(&key).is_some_and(|word| word.record.is_some());
        held.holds += i64::from(word.record.is_some()) - i64::from(held_before);
        // What was taken back long ago would have expired anyway.
        if word.record.is_none() && word.at_ms.saturating_add(self.lifetime_ms()) < now_ms {
            held.words.remove(&key);
        } else {
            held.words.insert(key, word);
        }
        self.metrics.ioc_held.set(held.holds);
        drop(held);
        if own {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    fn lifetime_ms(&self) -> u64 {
        self.config.as_ref().map_or(LIFETIME_MS, |config| config.lifetime_ms)
    }

    fn own_networks(&self) -> &[ipnet::IpNet] {
        self.config.as_ref().map_or(&[], |config| &config.own_networks)
    }

    /// How much a source counts: a peer that is not configured any more counts nothing.
    fn trust(&self, source: &str) -> f64 {
        if source.starts_with(OWN) {
            return 1.0;
        }
        let Some(config) = &self.config else { return 0.0 };
        match source.strip_prefix(PEER) {
            Some(name) => {
                let peer = config.peers.iter().find(|peer| *peer.name == *name);
                peer.map_or(0.0, |peer| peer.weight)
            }
            None => config.operator_weight,
        }
    }

    /// What follows from somebody else's register.
    fn followed(&self, register: &Register) -> Result<(), StoreError> {
        match register.table {
            // The gateway that said the word tells of it.
            Table::Takedown if register.stamp.by == *self.store.node() => self.taken_down(register),
            Table::Profile => {
                self.note_payer(register);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A takedown that holds makes indicators, one that is undone takes them back.
    fn taken_down(&self, register: &Register) -> Result<(), StoreError> {
        let Some(value) = &register.value else { return Ok(()) };
        let Ok(word) = serde_json::from_str::<Takedown>(value) else {
            warn!(cluster = register.key, "a takedown's indicators cannot be read");
            return Ok(());
        };
        match word.status {
            Status::Active => self.tell(register, &word),
            Status::Undone => self.take_back(&register.key),
            Status::Waiting | Status::Shadow => Ok(()),
        }
    }

    fn tell(&self, register: &Register, word: &Takedown) -> Result<(), StoreError> {
        let content = &word.indicators;
        if content.confidence.is_nan() || content.confidence < CONFIDENCE_MIN {
            info!(cluster = register.key, "a takedown is not sure enough to be told to peers");
            return Ok(());
        }
        let source: Arc<str> = format!("{OWN}{}", register.key).into();
        let record = Record {
            confidence: content.confidence.min(1.0),
            first_seen_ms: content.first_seen_ms,
            last_seen_ms: content.last_seen_ms,
            dropped: None,
        };
        let values = self.shared(word)?;
        let mut writes = Vec::new();
        {
            let held = self.held.lock();
            for indicator in values.into_iter().take(INDICATORS_SOURCE_MAX) {
                let key = Key { source: source.clone(), indicator };
                let known = held.words.get(&key).is_some_and(|known| match &known.record {
                    Some(known) => known.dropped.is_some() || *known == record,
                    None => known.at_ms >= register.stamp.at_ms,
                });
                if !known && held.words.len() + writes.len() < INDICATORS_HELD_MAX {
                    writes.push(Write::put(Table::Indicator, key.text(), &record));
                }
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        info!(cluster = register.key, indicators = writes.len(), "indicators of a takedown");
        self.commit(Batch { writes, audit: Vec::new() })
    }

    /// A takedown's values in the form in which they are told: valid ones, hashed again.
    fn shared(&self, word: &Takedown) -> Result<BTreeSet<Indicator>, StoreError> {
        let own = self.own_networks();
        let plain = [
            Kind::Ip,
            Kind::Subnet,
            Kind::Ja3,
            Kind::Ja3s,
            Kind::Ja4,
            Kind::H2,
            Kind::WatermarkToken,
        ];
        let mut values = BTreeSet::new();
        for kind in plain {
            let all = bundle::values_of(&word.indicators, kind).iter();
            values.extend(all.filter_map(|value| Indicator::read(kind, value, own).ok()));
        }
        for account in &word.suspended {
            let mut value = self.share("account", account.as_str());
            value.truncate(16);
            values.insert(Indicator { kind: Kind::Account, value });
            let profile = self.store.get(Table::Profile, account.as_str())?;
            if let Some(hash) = profile.as_ref().and_then(|profile| self.payment_of(profile)) {
                values.insert(Indicator { kind: Kind::PaymentHash, value: hash });
            }
        }
        Ok(values)
    }

    /// The hash under which something is told to others.
    fn share(&self, what: &str, value: &str) -> String {
        let key = self.config.as_ref().map(|config| config.share_key()).unwrap_or_default();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let message = format!("stillgate ioc {what} v1\0{value}");
        hex::encode(&hmac::sign(&key, message.as_bytes()).as_ref()[..16])
    }

    /// The shared hash of the payment instrument that an operator told of an account.
    fn payment_of(&self, profile: &Register) -> Option<String> {
        self.config.as_ref()?;
        let value: Value = serde_json::from_str(profile.value.as_deref()?).ok()?;
        let payment = value.get("payment_hash").or_else(|| value.get("payment"))?.as_str()?;
        Some(self.share("payment", payment))
    }

    fn note_payer(&self, profile: &Register) {
        let account = AccountId::new(profile.key.as_str());
        let hash = self.payment_of(profile).filter(|hash| self.index.has_payment(hash));
        self.index.set_payer(&account, hash.as_deref());
    }

    fn find_payers(&self) -> Result<(), StoreError> {
        let held = self.held.lock();
        let told = |key: &Key| key.indicator.kind == Kind::PaymentHash;
        if !held.words.keys().any(told) {
            return Ok(());
        }
        drop(held);
        for profile in self.store.scan(Table::Profile)? {
            self.note_payer(&profile);
        }
        Ok(())
    }

    /// Takes back what a takedown told.
    fn take_back(&self, cluster: &str) -> Result<(), StoreError> {
        let source = format!("{OWN}{cluster}");
        let of_it = self.of_source(&source, |word| word.record.is_some());
        if of_it.is_empty() {
            return Ok(());
        }
        let entry = Draft::new(Actor::System, Act::IndicatorRevoked)
            .cluster(cluster)
            .because("its takedown was taken back")
            .detail(json!({ "source": source, "indicators": of_it.len() }));
        let writes = of_it.iter().map(|key| Write::remove(Table::Indicator, key.text()));
        self.commit(Batch::told(writes.collect(), entry))
    }

    fn of_source(&self, source: &str, wanted: impl Fn(&Word) -> bool) -> Vec<Key> {
        let held = self.held.lock();
        let all = held.words.iter().filter(|(key, word)| *key.source == *source && wanted(word));
        all.map(|(key, _)| key.clone()).collect()
    }

    /// For threads that may wait.
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let committed = self.store.commit(batch).wait()?;
        committed.registers.iter().for_each(|register| self.apply(register));
        Ok(())
    }

    /// Takes in a peer's bundle. `via` says how it came, for the audit of a refusal.
    ///
    /// # Errors
    /// Why it is not taken in; the audit has it too.
    pub async fn import(&self, envelope: &[u8], via: &str) -> Result<Taken, Refused> {
        let mut from = None;
        let outcome = match self.check(envelope, &mut from) {
            Ok(bundle) => self.take_in(bundle).await,
            Err(refused) => Err(refused),
        };
        let label = outcome.as_ref().map_or_else(Refused::label, |_| "taken");
        self.metrics.ioc_bundles_received.with_label_values(&[label]).inc();
        if let Err(refused) = &outcome {
            warn!(peer = from.as_deref().unwrap_or("unknown"), via, why = label, "bundle refused");
            self.audit_refusal(refused, from.as_deref(), via);
        }
        outcome
    }

    /// Signature first: nothing of what was not signed by a peer is read.
    fn check(&self, envelope: &[u8], from: &mut Option<Arc<str>>) -> Result<IocBundle, Refused> {
        let config = self.config.as_ref().ok_or(Refused::NotConfigured)?;
        let peers = config.peers.iter();
        let keys = peers.flat_map(|peer| peer.verify.iter().map(move |key| (key, peer)));
        let (text, peer) = sign::open(envelope, &keys)?;
        *from = Some(peer.name.clone());
        let bundle = IocBundle::read(&text).map_err(Refused::Malformed)?;
        let now_ms = unix_ms();
        if *bundle.issuer != *peer.name {
            return Err(Refused::Issuer);
        }
        if bundle.issued_ms > now_ms + SKEW_MS || bundle.content.last_seen_ms > now_ms + SKEW_MS {
            return Err(Refused::Future);
        }
        if bundle.issued_ms + FRESH_MS <= now_ms {
            return Err(Refused::Stale);
        }
        if !(CONFIDENCE_MIN..=1.0).contains(&bundle.content.confidence) {
            return Err(Refused::Confidence);
        }
        // It is held from now on: of two that come at once, one is the first.
        let mut held = self.held.lock();
        let name = format!("{} {}", bundle.issuer, bundle.id);
        if held.bundles.contains_key(&name) {
            return Err(Refused::Replay);
        }
        let of_peer = |other: &&String| other.split(' ').next() == Some(&bundle.issuer);
        if held.bundles.keys().filter(of_peer).count() >= IOC_BUNDLES_PEER_MAX {
            return Err(Refused::TooMany);
        }
        held.bundles.insert(name, bundle.issued_ms + FRESH_MS + SKEW_MS);
        Ok(bundle)
    }

    async fn take_in(&self, bundle: IocBundle) -> Result<Taken, Refused> {
        let name = format!("{} {}", bundle.issuer, bundle.id);
        let source: Arc<str> = format!("{PEER}{}", bundle.issuer).into();
        let record = Record {
            confidence: bundle.content.confidence,
            first_seen_ms: bundle.content.first_seen_ms,
            last_seen_ms: bundle.content.last_seen_ms,
            dropped: None,
        };
        let mut plan = Plan::new(self, source.clone());
        for revoked in &bundle.revoked {
            plan.revoke(revoked.kind, &revoked.value, bundle.issued_ms);
        }
        if record.last_seen_ms.saturating_add(self.lifetime_ms()) <= unix_ms() {
            plan.skip_n("it was last seen too long ago", bundle.values().map(|v| v.1.len()).sum());
        } else {
            for (kind, values) in bundle.values() {
                for value in values {
                    plan.take(kind, value, &record, bundle.issued_ms);
                }
            }
        }
        let (mut writes, mut taken) = plan.finish();
        taken.bundle.clone_from(&bundle.id);
        let until_ms = bundle.issued_ms + FRESH_MS + SKEW_MS;
        writes.push(Write::put(Table::Bundle, name.clone(), &Seen { until_ms }));
        let entry = Draft::new(Actor::Peer(bundle.issuer.clone()), Act::IndicatorsImported)
            .detail(json!(taken));
        match self.store.commit(Batch::told(writes, entry)).durable().await {
            Ok(committed) => {
                committed.registers.iter().for_each(|register| self.apply(register));
                info!(
                    peer = bundle.issuer,
                    taken = taken.taken,
                    revoked = taken.revoked,
                    "bundle taken in"
                );
                Ok(taken)
            }
            Err(error) => {
                self.held.lock().bundles.remove(&name);
                Err(error.into())
            }
        }
    }

    /// Takes in STIX under a name that the operator gives it.
    ///
    /// # Errors
    /// When it is no STIX bundle, or cannot be written.
    pub async fn import_stix(
        &self,
        text: &[u8],
        name: &str,
        confidence: f64,
        actor: Actor,
        reason: &str,
    ) -> Result<(Taken, Vec<(String, String)>), Refused> {
        let imported = stix::import(text, confidence, self.own_networks(), unix_ms())
            .map_err(Refused::Malformed)?;
        let source: Arc<str> = format!("{OPERATOR}{name}").into();
        let mut plan = Plan::new(self, source);
        for told in &imported.told {
            let Indicator { kind, value } = &told.indicator;
            if told.revoked {
                plan.revoke(*kind, value, told.told_ms);
                continue;
            }
            let record = Record {
                confidence: told.confidence,
                first_seen_ms: told.seen_ms.0,
                last_seen_ms: told.seen_ms.1,
                dropped: None,
            };
            plan.take(*kind, value, &record, told.told_ms);
        }
        for (_, why) in &imported.skipped {
            plan.skip_n(why, 1);
        }
        let (writes, taken) = plan.finish();
        let entry = Draft::new(actor, Act::IndicatorsImported).because(reason).detail(json!(taken));
        let committed = self.store.commit(Batch::told(writes, entry)).durable().await?;
        committed.registers.iter().for_each(|register| self.apply(register));
        let mut skipped = imported.skipped;
        skipped.truncate(IOC_SKIPPED_SHOWN);
        Ok((taken, skipped))
    }

    fn audit_refusal(&self, refused: &Refused, from: Option<&str>, via: &str) {
        let minute = unix_ms() / 60_000;
        {
            let mut refusals = self.refusals.lock();
            if refusals.minute != minute {
                *refusals = Refusals { minute, audited: 0 };
            }
            if refusals.audited >= IOC_REFUSALS_AUDITED_MAX {
                return;
            }
            refusals.audited += 1;
        }
        let actor = from.map_or(Actor::System, |name| Actor::Peer(name.to_owned()));
        let entry = Draft::new(actor, Act::IndicatorsRefused)
            .because(&refused.to_string())
            .detail(json!({ "via": via, "why": refused.label() }));
        // Nobody waits for it: a refusal changes nothing.
        self.store.keep(Batch { writes: Vec::new(), audit: vec![entry] });
    }

    /// An operator's word: an indicator does not hold. One of our own is taken back and peers are
    /// told; one of another's is dropped here, whatever they say of it later. Returns its value as it
    /// is held.
    ///
    /// # Errors
    /// When it is not held, or cannot be written.
    pub async fn revoke(
        &self,
        source: &str,
        kind: Kind,
        value: &str,
        actor: Actor,
        reason: &str,
    ) -> Result<String, RevokeError> {
        // As it is held, where it can be read; what was held under older rules as it stands.
        let value = Indicator::read(kind, value, &[]).map_or(value.to_owned(), |read| read.value);
        let key = Key { source: source.into(), indicator: Indicator { kind, value } };
        let record = {
            let held = self.held.lock();
            let word = held.words.get(&key).and_then(|word| word.record.clone());
            word.filter(|record| record.dropped.is_none()).ok_or(RevokeError::NotHeld)?
        };
        let record = Record { dropped: Some(reason.to_owned()), ..record };
        let entry = Draft::new(actor, Act::IndicatorRevoked)
            .because(reason)
            .detail(json!({ "source": source, "kind": kind, "value": key.indicator.value }));
        let writes = vec![Write::put(Table::Indicator, key.text(), &record)];
        let committed = self.store.commit(Batch::told(writes, entry)).durable().await?;
        committed.registers.iter().for_each(|register| self.apply(register));
        Ok(key.indicator.value)
    }

    /// Everything that is held, in order of source, kind and value.
    #[must_use]
    pub fn list(&self, wanted: &Wanted) -> Page {
        let now_ms = unix_ms();
        let held = self.held.lock();
        let after = wanted.after.as_deref().and_then(Key::read);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page = Page { indicators: Vec::new(), next: None };
        let mut last = None;
        for (key, word) in held.words.range((from, Bound::Unbounded)) {
            let kind = wanted.kind.is_none_or(|kind| kind == key.indicator.kind);
            let Some(record) = &word.record else { continue };
            if !kind || !key.source.starts_with(&wanted.source) {
                continue;
            }
            if page.indicators.len() == wanted.limit {
                page.next = last;
                break;
            }
            let Indicator { kind, value } = &key.indicator;
            let hits = self.index.find(*kind, value, now_ms);
            let weight = hits.iter().find(|hit| hit.source == key.source).map_or(0.0, |h| h.weight);
            page.indicators.push(Listed {
                source: key.source.clone(),
                indicator: key.indicator.clone(),
                confidence: record.confidence,
                weight,
                first_seen_ms: record.first_seen_ms,
                last_seen_ms: record.last_seen_ms,
                told_ms: word.at_ms,
                dropped: record.dropped.clone(),
            });
            last = Some(key.text());
        }
        page
    }

    /// What is told to peers as it stands: bundles in order of issue.
    fn bundles(&self, issuer: &str, now_ms: u64) -> Vec<IocBundle> {
        let turn_ms = now_ms - now_ms % REISSUE_MS;
        let held = self.held.lock();
        let mut groups: BTreeMap<Arc<str>, Vec<(Bundle, u64, usize)>> = BTreeMap::new();
        let (mut holds, mut gone) = (HashSet::new(), BTreeMap::new());
        let own = held.words.iter().filter(|(key, _)| key.is_own());
        for (Key { source, indicator }, word) in own {
            let record = word.record.as_ref().filter(|record| record.dropped.is_none());
            let Some(record) = record else {
                let at = gone.entry(indicator.clone()).or_insert(0);
                *at = word.at_ms.max(*at);
                continue;
            };
            if record.last_seen_ms.saturating_add(self.lifetime_ms()) <= now_ms {
                continue;
            }
            holds.insert(indicator.clone());
            let parts = groups.entry(source.clone()).or_default();
            if parts.last().is_none_or(|(_, _, count)| *count >= IOC_VALUES_MAX) {
                let first = Bundle {
                    confidence: record.confidence,
                    first_seen_ms: record.first_seen_ms,
                    last_seen_ms: record.last_seen_ms,
                    ..Bundle::default()
                };
                parts.push((first, 0, 0));
            }
            if let Some((content, changed_ms, count)) = parts.last_mut() {
                content.confidence = content.confidence.min(record.confidence);
                content.first_seen_ms = content.first_seen_ms.min(record.first_seen_ms);
                content.last_seen_ms = content.last_seen_ms.max(record.last_seen_ms);
                bundle::insert(content, indicator.clone());
                *changed_ms = word.at_ms.max(*changed_ms);
                *count += 1;
            }
        }
        drop(held);
        gone.retain(|indicator, _| !holds.contains(indicator));
        let mut bundles: Vec<IocBundle> = groups
            .into_values()
            .flatten()
            .map(|(content, changed_ms, _)| {
                IocBundle::new(issuer, changed_ms.max(turn_ms), content, BTreeSet::new())
            })
            .collect();
        let gone: Vec<(Indicator, u64)> = gone.into_iter().collect();
        for part in gone.chunks(IOC_VALUES_MAX) {
            let issued_ms = part.iter().map(|(_, at_ms)| *at_ms).max().unwrap_or(0).max(turn_ms);
            let revoked = part.iter().map(|(indicator, _)| Revoked {
                kind: indicator.kind,
                value: indicator.value.clone(),
            });
            let nothing = Bundle { confidence: 1.0, ..Bundle::default() };
            bundles.push(IocBundle::new(issuer, issued_ms, nothing, revoked.collect()));
        }
        bundles.sort_by(|a, b| (a.issued_ms, &a.id).cmp(&(b.issued_ms, &b.id)));
        bundles
    }

    /// Bundles after one, signed, in order: as many as fit into an answer.
    #[must_use]
    pub fn export(&self, after: Option<&Cursor>) -> Vec<Sealed> {
        let Some(config) = &self.config else { return Vec::new() };
        let (mut sealed, mut bytes) = (Vec::new(), 0);
        for bundle in self.bundles(&config.provider, unix_ms()) {
            let cursor = Cursor { issued_ms: bundle.issued_ms, id: bundle.id.clone() };
            if after.is_some_and(|after| cursor <= *after) {
                continue;
            }
            let envelope = sign::seal(&bundle.text(), &config.signing);
            bytes += envelope.len();
            let full = sealed.len() >= IOC_EXPORT_BUNDLES_MAX || bytes > IOC_EXPORT_BYTES_MAX;
            if full && !sealed.is_empty() {
                break;
            }
            let values = bundle.values().map(|(_, values)| values.len()).sum::<usize>();
            sealed.push(Sealed { cursor, values: values + bundle.revoked.len(), envelope });
        }
        sealed
    }

    /// What is told to peers, as STIX; after a place, what was issued since.
    #[must_use]
    pub fn export_stix(&self, after: Option<&Cursor>) -> Value {
        let now_ms = unix_ms();
        let issuer = self.config.as_ref().map_or("stillgate", |config| &config.provider);
        let mut told = BTreeMap::new();
        for bundle in self.bundles(issuer, now_ms) {
            let cursor = Cursor { issued_ms: bundle.issued_ms, id: bundle.id.clone() };
            if after.is_some_and(|after| cursor <= *after) {
                continue;
            }
            let content = &bundle.content;
            let tell = |kind, value: &String, revoked| stix::Told {
                indicator: Indicator { kind, value: value.clone() },
                confidence: content.confidence,
                seen_ms: (content.first_seen_ms, content.last_seen_ms),
                told_ms: bundle.issued_ms,
                revoked,
            };
            for (kind, values) in bundle.values() {
                // Of several takedowns that tell of one value, the surest.
                for value in values {
                    let next = tell(kind, value, false);
                    let sure = |held: &mut stix::Told| {
                        if next.confidence > held.confidence {
                            *held = next.clone();
                        }
                    };
                    told.entry(next.indicator.clone()).and_modify(sure).or_insert(next.clone());
                }
            }
            for revoked in &bundle.revoked {
                let mut told_back = tell(revoked.kind, &revoked.value, true);
                told_back.seen_ms = (bundle.issued_ms, bundle.issued_ms);
                told.insert(told_back.indicator.clone(), told_back);
            }
        }
        let told: Vec<stix::Told> = told.into_values().collect();
        stix::export(issuer, &told, self.lifetime_ms())
    }

    /// Puts it into the audit that bundles were given out.
    pub fn exported(&self, to: &str, format: &str, count: usize) {
        let detail = json!({ "to": to, "format": format, "count": count });
        let entry = Draft::new(Actor::Operator(to.to_owned()), Act::IndicatorsExported);
        let entry = entry.detail(detail);
        self.store.keep(Batch { writes: Vec::new(), audit: vec![entry] });
    }

    /// Told whenever what is told to peers has changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Lets go of what has expired.
    fn sweep(&self, now_ms: u64) -> Result<(), StoreError> {
        let writes: Vec<Write> = {
            let mut held = self.held.lock();
            let lifetime_ms = self.lifetime_ms();
            let expired = |at_ms: u64| at_ms.saturating_add(lifetime_ms) < now_ms;
            held.words.retain(|_, word| word.record.is_some() || !expired(word.at_ms));
            let words = held.words.iter().filter(|(_, word)| {
                word.record.as_ref().is_some_and(|record| expired(record.last_seen_ms))
            });
            let words = words.map(|(key, _)| Write::remove(Table::Indicator, key.text()));
            let bundles = held.bundles.iter().filter(|(_, until_ms)| **until_ms < now_ms);
            let bundles = bundles.map(|(name, _)| Write::remove(Table::Bundle, name.as_str()));
            bundles.chain(words).take(SWEEP_BATCH_MAX).collect()
        };
        if writes.is_empty() {
            return Ok(());
        }
        self.commit(Batch { writes, audit: Vec::new() })
    }
}

fn is_foreign_payment(register: &Register) -> bool {
    let key = Key::read(&register.key).filter(|_| register.table == Table::Indicator);
    key.is_some_and(|key| key.indicator.kind == Kind::PaymentHash && !key.is_own())
}

fn concerns_us(register: &Register) -> bool {
    let tables = [Table::Indicator, Table::Bundle, Table::Takedown, Table::Profile];
    tables.contains(&register.table)
}

/// Why an indicator cannot be revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// It is not held, or was dropped before.
    #[error("no such indicator of that source is held")]
    NotHeld,
    /// It could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What one source's words come to.
struct Plan<'e> {
    exchange: &'e Exchange,
    source: Arc<str>,
    writes: Vec<Write>,
    room: usize,
    taken: Taken,
}

impl<'e> Plan<'e> {
    fn new(exchange: &'e Exchange, source: Arc<str>) -> Self {
        let held = exchange.held.lock();
        let of_source = held.words.keys().filter(|key| key.source == source).count();
        let room = INDICATORS_SOURCE_MAX.saturating_sub(of_source);
        let room = room.min(INDICATORS_HELD_MAX.saturating_sub(held.words.len()));
        let taken = Taken { source: source.to_string(), ..Taken::default() };
        Self { exchange, source, writes: Vec::new(), room, taken }
    }

    fn skip_n(&mut self, why: &str, count: usize) {
        if count > 0 {
            *self.taken.skipped.entry(why.to_owned()).or_default() += count;
        }
    }

    /// Whether there is room for a key, and what is held of it.
    fn before(&mut self, key: &Key) -> Result<Option<Word>, &'static str> {
        let before = self.exchange.held.lock().words.get(key).cloned();
        if before.is_none() {
            self.room = self.room.checked_sub(1).ok_or("as many are held as can be")?;
        }
        Ok(before)
    }

    fn take(&mut self, kind: Kind, value: &str, record: &Record, at_ms: u64) {
        if let Err(why) = self.try_take(kind, value, record, at_ms) {
            self.skip_n(why, 1);
        }
    }

    fn try_take(
        &mut self,
        kind: Kind,
        value: &str,
        record: &Record,
        at_ms: u64,
    ) -> Result<(), &'static str> {
        let indicator = Indicator::read(kind, value, self.exchange.own_networks())?;
        let key = Key { source: self.source.clone(), indicator };
        match self.before(&key)? {
            Some(Word { record: Some(held), .. }) if held.dropped.is_some() => {
                return Err("an operator has dropped it here");
            }
            Some(Word { record: None, at_ms: gone_ms }) if gone_ms >= at_ms => {
                return Err("its source has taken it back since");
            }
            // Nothing is written where nothing changes: bundles come again every half day.
            Some(Word { record: Some(held), .. }) if held == *record => {}
            Some(Word { at_ms: held_ms, .. }) if held_ms >= at_ms => {
                return Err("its source has said something newer");
            }
            _ => self.write(&key, serde_json::to_string(record).ok(), at_ms),
        }
        self.taken.taken += 1;
        Ok(())
    }

    fn revoke(&mut self, kind: Kind, value: &str, at_ms: u64) {
        let outcome = Indicator::read(kind, value, &[]).and_then(|indicator| {
            let key = Key { source: self.source.clone(), indicator };
            match self.before(&key)? {
                Some(Word { record: None, .. }) => {}
                Some(Word { record: Some(held), .. }) if held.dropped.is_some() => {}
                Some(Word { at_ms: held_ms, .. }) if held_ms > at_ms => {
                    return Err("its source has said something newer");
                }
                _ => self.write(&key, None, at_ms),
            }
            Ok(())
        });
        match outcome {
            Ok(()) => self.taken.revoked += 1,
            Err(why) => self.skip_n(why, 1),
        }
    }

    /// With the time of whoever said it.
    fn write(&mut self, key: &Key, value: Option<String>, at_ms: u64) {
        let stamp = Stamp { at_ms, by: self.exchange.store.node().clone() };
        let (table, key) = (Table::Indicator, key.text());
        self.writes.push(Write { table, key, value, stamp: Some(stamp) });
    }

    fn finish(self) -> (Vec<Write>, Taken) {
        (self.writes, self.taken)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use detectors::indicator::IndicatorKind;

    use super::*;
    use crate::audit::{Entry, Query};
    use crate::config::Peer;
    use crate::ioc::sign::tests::{PRIVATE, PUBLIC};
    use crate::ioc::sign::{SigningKey, VerifyKey};
    use crate::judge::tests::observation;
    use crate::outgoing::Trust;

    const SECRET: [u8; 32] = [7; 32];

    fn peer(name: &str, verify: Vec<VerifyKey>, weight: f64) -> Peer {
        Peer {
            name: name.into(),
            url: None,
            token: None,
            verify,
            weight,
            push: false,
            pull: None,
            trust: Trust::default(),
        }
    }

    fn config(provider: &str, signing: Vec<SigningKey>, peers: Vec<Peer>) -> Option<Arc<Ioc>> {
        Some(Arc::new(Ioc {
            provider: provider.into(),
            signing,
            exchange_key: Some(vec![9; 32].into()),
            own_networks: vec!["198.51.100.0/24".parse().unwrap()],
            lifetime_ms: LIFETIME_MS,
            operator_weight: 0.5,
            peers,
        }))
    }

    fn exchange(config: Option<Arc<Ioc>>) -> Arc<Exchange> {
        let store = Store::in_memory("gw").unwrap();
        Exchange::new(config, store, Arc::new(Metrics::new().unwrap())).unwrap()
    }

    /// `a` tells, `b` takes in, by either kind of key.
    fn pairs() -> [(Arc<Exchange>, Arc<Exchange>); 2] {
        let pair = |sign: SigningKey, verify: VerifyKey| {
            let a = exchange(config("lab-a", vec![sign], Vec::new()));
            let b = config(
                "lab-b",
                vec![SigningKey::hmac(&[8; 32])],
                vec![peer("lab-a", vec![verify], 0.5)],
            );
            (a, exchange(b))
        };
        let ed25519 = (SigningKey::ed25519(PRIVATE).unwrap(), VerifyKey::ed25519(PUBLIC).unwrap());
        [pair(SigningKey::hmac(&SECRET), VerifyKey::hmac(&SECRET)), pair(ed25519.0, ed25519.1)]
    }

    fn content(confidence: f64) -> Bundle {
        Bundle {
            confidence,
            first_seen_ms: unix_ms() - 9_000,
            last_seen_ms: unix_ms() - 1_000,
            ips: ["203.0.113.9".to_owned(), "198.51.100.3".to_owned()].into(),
            subnets: ["203.0.113.0/24".to_owned()].into(),
            ja3: ["3".repeat(32)].into(),
            payment_hashes: ["00000000000000aa".to_owned()].into(),
            watermark_tokens: ["zw:0a1b2c".to_owned()].into(),
            accounts: ["0123456789abcdef".to_owned()].into(),
            ..Bundle::default()
        }
    }

    /// Has a takedown committed as the enforcer does.
    fn take_down(exchange: &Exchange, cluster: &str, status: Status, confidence: f64) {
        let takedown = Takedown {
            cluster: cluster.to_owned(),
            status,
            by: Actor::System,
            reason: String::new(),
            at_ms: unix_ms(),
            until_ms: unix_ms() + 1_000_000,
            trigger: AccountId::new("acct-1"),
            policy: "p".into(),
            suspended: vec![AccountId::new("acct-1"), AccountId::new("acct-2")],
            left_out: Vec::new(),
            indicators: content(confidence),
        };
        let write = Write::put(Table::Takedown, cluster, &takedown);
        let committed =
            exchange.store.commit(Batch { writes: vec![write], audit: Vec::new() }).wait().unwrap();
        exchange.followed(&committed.registers[0]).unwrap();
    }

    fn block<T>(future: impl Future<Output = T>) -> T {
        futures::executor::block_on(future)
    }

    fn listed(exchange: &Exchange) -> Vec<Listed> {
        exchange.list(&Wanted { limit: 100, ..Wanted::default() }).indicators
    }

    fn audit(exchange: &Exchange, act: Act) -> Vec<Entry> {
        let query = Query { limit: 1_000, ..Query::default() };
        let all = exchange.store.audit(&query).unwrap().into_iter();
        all.map(|entry| entry.entry().unwrap()).filter(|entry| entry.act == act).collect()
    }

    fn sealed(exchange: &Exchange, issuer: &str, issued_ms: u64, content: Bundle) -> Vec<u8> {
        let bundle = IocBundle::new(issuer, issued_ms, content, BTreeSet::new());
        sign::seal(&bundle.text(), &exchange.config().unwrap().signing).into_bytes()
    }

    #[test]
    fn what_one_provider_takes_down_the_other_sees_until_it_is_undone() {
        for (a, b) in pairs() {
            take_down(&a, "00000000000000c1", Status::Active, 0.9);
            let told = a.export(None);
            assert_eq!(told.len(), 1);
            let taken = block(b.import(told[0].envelope.as_bytes(), "push")).unwrap();
            // Two accounts; of the addresses not the provider's own; no payment instrument was told.
            assert_eq!((taken.taken, taken.revoked, taken.skipped.len()), (6, 0, 0));
            assert_eq!(taken.source, "peer/lab-a");
            assert!(listed(&b).iter().all(|held| {
                &*held.source == "peer/lab-a" && (0.44..=0.45).contains(&held.weight)
            }));
            let mut asked = observation("x", 1, "Hello");
            asked.ip = "203.0.113.9".parse().unwrap();
            let hits = b.lookup(&asked);
            let kinds: Vec<IndicatorKind> = hits.iter().map(|hit| hit.kind).collect();
            assert_eq!(kinds, [IndicatorKind::Address, IndicatorKind::Subnet]);
            assert!(hits.iter().all(|hit| &*hit.source == "lab-a" && hit.weight < 0.5));
            assert!(a.lookup(&asked).is_empty(), "one's own is no evidence twice");
            assert_eq!(audit(&b, Act::IndicatorsImported).len(), 1);
            assert!(matches!(
                block(b.import(told[0].envelope.as_bytes(), "push")),
                Err(Refused::Replay)
            ));
            // Nothing new until something changes.
            assert!(a.export(Some(&told[0].cursor)).is_empty());
            std::thread::sleep(Duration::from_millis(3));
            take_down(&a, "00000000000000c1", Status::Undone, 0.9);
            let told_back = a.export(Some(&told[0].cursor));
            assert_eq!(told_back.len(), 1, "what does not hold any more is told");
            let taken = block(b.import(told_back[0].envelope.as_bytes(), "push")).unwrap();
            assert_eq!((taken.taken, taken.revoked), (0, 6));
            assert!(listed(&b).is_empty() && b.lookup(&asked).is_empty());
            assert_eq!(audit(&a, Act::IndicatorRevoked).len(), 1);
        }
    }

    #[test]
    fn what_two_takedowns_tell_holds_while_one_does() {
        let [(a, _), _] = pairs();
        take_down(&a, "00000000000000c1", Status::Active, 0.9);
        take_down(&a, "00000000000000c2", Status::Active, 0.8);
        assert_eq!(a.export(None).len(), 2);
        take_down(&a, "00000000000000c1", Status::Undone, 0.9);
        let bundles = a.bundles("lab-a", unix_ms());
        assert_eq!(bundles.len(), 1);
        assert!(bundles[0].revoked.is_empty() && bundles[0].content.confidence == 0.8);
    }

    #[test]
    fn what_is_not_sure_enough_is_neither_told_nor_taken_in() {
        let [(a, b), _] = pairs();
        take_down(&a, "00000000000000c1", Status::Active, 0.69);
        take_down(&a, "00000000000000c2", Status::Waiting, 0.9);
        take_down(&a, "00000000000000c3", Status::Shadow, 0.9);
        assert!(a.export(None).is_empty() && listed(&a).is_empty());
        let unsure = sealed(&a, "lab-a", unix_ms(), content(0.69));
        assert!(matches!(block(b.import(&unsure, "push")), Err(Refused::Confidence)));
    }

    #[test]
    fn every_refusal_has_its_reason_and_is_in_the_audit() {
        let [(a, b), _] = pairs();
        let now_ms = unix_ms();
        let good = sealed(&a, "lab-a", now_ms, content(0.9));
        let changed =
            String::from_utf8(good.clone()).unwrap().replace("\"sig\":\"", "\"sig\":\"AAAA");
        let stranger = exchange(config("lab-a", vec![SigningKey::hmac(&[1; 32])], Vec::new()));
        let mut late = content(0.9);
        late.last_seen_ms = now_ms + SKEW_MS + 60_000;
        let no_bundle = sign::seal("{}", &a.config().unwrap().signing).into_bytes();
        for (envelope, label) in [
            (changed.into_bytes(), "signature"),
            (sealed(&stranger, "lab-a", now_ms, content(0.9)), "unknown_key"),
            (sealed(&a, "lab-c", now_ms, content(0.9)), "issuer"),
            (sealed(&a, "lab-a", now_ms - FRESH_MS, content(0.9)), "stale"),
            (sealed(&a, "lab-a", now_ms + SKEW_MS + 60_000, content(0.9)), "future"),
            (sealed(&a, "lab-a", now_ms, late), "future"),
            (sealed(&a, "lab-a", now_ms, content(f64::INFINITY)), "malformed"),
            (sealed(&a, "lab-a", now_ms, content(1.01)), "confidence"),
            (no_bundle, "malformed"),
            (b"{}".to_vec(), "malformed"),
            (vec![b' '; crate::limits::IOC_ENVELOPE_BYTES_MAX + 1], "oversize"),
        ] {
            let refused = block(b.import(&envelope, "push")).unwrap_err();
            assert_eq!(refused.label(), label);
            assert!(crate::metrics::IOC_OUTCOMES.contains(&label));
            assert_eq!(b.metrics.ioc_bundles_received.with_label_values(&[label]).get().min(1), 1);
        }
        assert!(listed(&b).is_empty());
        // In the order of the store's queue: a commit that was waited for comes after them.
        b.store.commit(Batch::default()).wait().unwrap();
        let why: Vec<Entry> = audit(&b, Act::IndicatorsRefused);
        assert_eq!(why.len(), 11);
        assert_eq!(why[0].actor, Actor::System, "nobody knows whose it is");
        assert_eq!(why[2].actor, Actor::Peer("lab-a".to_owned()));
        let unconfigured = exchange(None);
        assert!(matches!(block(unconfigured.import(&good, "push")), Err(Refused::NotConfigured)));
        assert!(block(b.import(&good, "push")).is_ok());
    }

    #[test]
    fn values_that_hit_bystanders_are_skipped_with_a_reason() {
        let [(a, b), _] = pairs();
        let mut content = content(0.9);
        content.ips.extend(["10.0.0.1".to_owned(), "not an address".to_owned()]);
        let taken = block(b.import(&sealed(&a, "lab-a", unix_ms(), content), "push")).unwrap();
        // 203.0.113.9, the network, the JA3, the token and the account.
        assert_eq!(taken.taken, 5);
        let skipped: Vec<(&str, usize)> =
            taken.skipped.iter().map(|(why, count)| (why.as_str(), *count)).collect();
        let expected = [
            ("a network of the operator's own", 1),
            ("an address that is nobody's on the internet", 1),
            ("not a hash of 32 hex digits", 1),
            ("not an address", 1),
        ];
        assert_eq!(skipped, expected);
    }

    #[test]
    fn an_operators_word_stays_whatever_peers_say() {
        let [(a, b), _] = pairs();
        take_down(&a, "00000000000000c1", Status::Active, 0.9);
        block(b.import(a.export(None)[0].envelope.as_bytes(), "push")).unwrap();
        let drop_it = |exchange: &Exchange, source: &str| {
            let actor = Actor::Operator("ada".to_owned());
            block(exchange.revoke(source, Kind::Ip, "203.0.113.9", actor, "our own crawler"))
        };
        drop_it(&b, "peer/lab-a").unwrap();
        assert!(matches!(drop_it(&b, "peer/lab-a"), Err(RevokeError::NotHeld)));
        assert!(matches!(drop_it(&b, "peer/lab-z"), Err(RevokeError::NotHeld)));
        let again = sealed(&a, "lab-a", unix_ms() + 1_000, content(0.95));
        let taken = block(b.import(&again, "push")).unwrap();
        assert_eq!(taken.skipped["an operator has dropped it here"], 1);
        let held = listed(&b).into_iter().find(|held| held.indicator.kind == Kind::Ip).unwrap();
        assert_eq!((held.weight, held.dropped.as_deref()), (0.0, Some("our own crawler")));
        // One of our own is taken back, and peers are told, although its takedown goes on.
        drop_it(&a, "own/00000000000000c1").unwrap();
        take_down(&a, "00000000000000c1", Status::Active, 0.91);
        let bundles = a.bundles("lab-a", unix_ms());
        let revoked: Vec<_> = bundles.iter().flat_map(|bundle| &bundle.revoked).collect();
        assert_eq!(revoked.len(), 1);
        assert!(bundles.iter().all(|bundle| bundle.content.ips.is_empty()));
        assert_eq!(audit(&a, Act::IndicatorRevoked)[0].reason, "our own crawler");
    }

    #[test]
    fn an_older_bundle_does_not_bring_back_what_was_taken_back() {
        let [(a, b), _] = pairs();
        let now_ms = unix_ms();
        let revoked = Revoked { kind: Kind::Ip, value: "203.0.113.9".to_owned() };
        let nothing = Bundle { confidence: 1.0, ..Bundle::default() };
        let back = IocBundle::new("lab-a", now_ms - 1_000, nothing, [revoked].into());
        let back = sign::seal(&back.text(), &a.config().unwrap().signing);
        block(b.import(back.as_bytes(), "push")).unwrap();
        let older = sealed(&a, "lab-a", now_ms - 2_000, content(0.9));
        let taken = block(b.import(&older, "push")).unwrap();
        assert_eq!(taken.skipped["its source has taken it back since"], 1);
        let newer = sealed(&a, "lab-a", now_ms, content(0.9));
        assert!(block(b.import(&newer, "push")).unwrap().skipped.len() < taken.skipped.len());
    }

    #[test]
    fn all_of_it_is_there_after_a_restart() {
        let [(a, b), _] = pairs();
        take_down(&a, "00000000000000c1", Status::Active, 0.9);
        let told = a.export(None);
        block(b.import(told[0].envelope.as_bytes(), "push")).unwrap();
        for before in [&a, &b] {
            let metrics = Arc::new(Metrics::new().unwrap());
            let after =
                Exchange::new(before.config.clone(), before.store.clone(), metrics).unwrap();
            let same = |exchange: &Exchange| {
                let all = listed(exchange).into_iter();
                all.map(|held| (held.source, held.indicator, held.told_ms)).collect::<Vec<_>>()
            };
            assert_eq!(same(&after), same(before));
            assert!(after.metrics.ioc_held.get() > 0);
        }
        let metrics = Arc::new(Metrics::new().unwrap());
        let after = Exchange::new(b.config.clone(), b.store.clone(), metrics).unwrap();
        let again = block(after.import(told[0].envelope.as_bytes(), "push"));
        assert!(matches!(again, Err(Refused::Replay)), "{again:?}");
    }

    #[test]
    fn what_has_expired_is_let_go() {
        let [(a, b), _] = pairs();
        take_down(&a, "00000000000000c1", Status::Active, 0.9);
        block(b.import(a.export(None)[0].envelope.as_bytes(), "push")).unwrap();
        b.sweep(unix_ms() + FRESH_MS + SKEW_MS + 1_000).unwrap();
        assert!(b.held.lock().bundles.is_empty() && !listed(&b).is_empty());
        b.sweep(unix_ms() + LIFETIME_MS).unwrap();
        assert!(listed(&b).is_empty());
        assert_eq!(b.metrics.ioc_held.get(), 0);
    }

    #[test]
    fn one_peer_does_not_take_the_room_of_all() {
        let [(a, b), _] = pairs();
        let many = |from: usize| {
            let ips = (from..from + IOC_VALUES_MAX)
                .map(|n| format!("20.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255));
            Bundle {
                ips: ips.collect(),
                confidence: 0.9,
                last_seen_ms: unix_ms(),
                ..Bundle::default()
            }
        };
        let mut full = 0;
        for round in 0..=INDICATORS_SOURCE_MAX / IOC_VALUES_MAX {
            let envelope = sealed(&a, "lab-a", unix_ms(), many(round * IOC_VALUES_MAX));
            let taken = block(b.import(&envelope, "push")).unwrap();
            full += taken.skipped.values().sum::<usize>();
        }
        assert_eq!((full, b.metrics.ioc_held.get()), (IOC_VALUES_MAX, 25_000));
    }

    #[test]
    fn stix_is_an_operators_word() {
        let [(a, b), _] = pairs();
        take_down(&a, "00000000000000c1", Status::Active, 0.9);
        let stix = a.export_stix(None).to_string();
        let actor = Actor::Operator("ada".to_owned());
        let (taken, skipped) =
            block(b.import_stix(stix.as_bytes(), "feed", 0.7, actor, "trusted feed")).unwrap();
        assert_eq!((taken.taken, skipped.len(), &*taken.source), (6, 0, "operator/feed"));
        assert!(listed(&b).iter().all(|held| (0.44..=0.45).contains(&held.weight)));
        assert_eq!(audit(&b, Act::IndicatorsImported)[0].reason, "trusted feed");
    }

    #[test]
    fn lists_go_on_where_they_ended() {
        let [(a, _), _] = pairs();
        take_down(&a, "00000000000000c1", Status::Active, 0.9);
        let all: Vec<Indicator> = listed(&a).into_iter().map(|one| one.indicator).collect();
        let mut wanted = Wanted { limit: 2, ..Wanted::default() };
        let mut found = Vec::new();
        loop {
            let page = a.list(&wanted);
            found.extend(page.indicators.into_iter().map(|one| one.indicator));
            wanted.after = page.next;
            if wanted.after.is_none() {
                break;
            }
        }
        assert_eq!(found, all);
        let ips = Wanted { kind: Some(Kind::Ip), source: "own/".to_owned(), limit: 9, after: None };
        assert_eq!(a.list(&ips).indicators.len(), 1);
        let peers = Wanted { source: "peer/".to_owned(), limit: 9, ..Wanted::default() };
        assert!(a.list(&peers).indicators.is_empty());
    }
}
