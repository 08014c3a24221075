//! The engine: takes in events, remembers within bounds, judges accounts.
//!
//! An account is judged at its first exchanges, then ever more rarely as they add up, and at once
//! where a judgement of somebody else ties it to new company. So a fresh account inherits what its
//! ties say from its first exchange on, and an old one costs next to nothing.

mod fleet;

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::account::{self, Known, Recent};
use crate::detector::{Context, Pace};
use crate::dns::{AddressDns, Resolution, Sighting};
use crate::event::{Declared, DnsContact, DnsLookup, EnforcementAction, Event, Profile};
use crate::facts::Facts;
use crate::fusion;
use crate::indicator;
use crate::keyed::{self, Key, KeyedState};
use crate::list::{LIST, Memories};
use crate::observation::{AccountId, Observation};
use crate::pivot::{self, Family, Generations, Pivots};
use crate::policy::Policy;
use crate::seen::{self, Answered, Arrived, Learnt, Pending, Seen};
use crate::sketch::Merge;
use crate::snapshot::{self, Snapshot, WrongVersion};
use crate::tier::{Held, Tier};
use crate::ties::{self, Edge, Kind, Muted, Neighbour, Ties};

pub use fleet::{AccountRow, Contribution, First};
use fleet::{Changes, Own};

/// Time after which a suspected account's next exchange has it judged again, so that a tier which
/// nothing new supports is left though its account asks rarely.
const REJUDGED_MS: u64 = 3_600_000;
/// Releases that are remembered.
const RELEASES_MAX: usize = 64;
/// Ties at least this likely have the other side judged again.
const FIRM: f64 = 0.5;
/// Ties at least this likely hand on a cluster.
const SAME_CLUSTER: f64 = 0.9;
/// What is rare is told against so many customers at least: of the first few that a gateway sees,
/// every value would be common.
const CUSTOMERS_MIN: f64 = 2_000.0;
/// Tied customers from which on an account is in a cluster.
const CLUSTER_MASS_MIN: f64 = 0.4;

/// Everything that is held of an account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Its pseudonym.
    pub id: AccountId,
    /// What is remembered, of other gateways too.
    pub memory: account::Memory,
    /// What the detectors remember, of other gateways too.
    pub memories: Memories,
    /// The part of it that this gateway has seen itself; `None` where that is all of it, or none.
    own: Option<Box<Own>>,
    /// Tier and suspicion.
    pub held: Held,
    /// The highest suspicion and tier reached.
    pub peak: (f64, Tier),
    /// When each tier was first reached.
    pub first: First,
    /// The cluster that its ties put it into.
    pub cluster: Option<u64>,
    /// Exchanges at the last judgement.
    judged_at: u32,
    /// Somebody else's judgement tied it to new company, or other gateways have told more of it.
    stale: bool,
    /// Only other gateways have seen it.
    elsewhere: bool,
    /// Its key waits among the changes.
    #[serde(skip)]
    changed: bool,
    /// Its row was taken back, or there is none.
    #[serde(skip)]
    restored: bool,
}

/// A judgement.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// Whose.
    pub account: AccountId,
    /// When, unix milliseconds.
    pub at_ms: u64,
    /// The account's exchange, from 1.
    pub request: u32,
    /// Tier now.
    pub tier: Tier,
    /// Tier before.
    pub before: Tier,
    /// Suspicion, 0..1.
    pub suspicion: f64,
    /// The cluster that its ties put it into.
    pub cluster: Option<u64>,
    /// Every detector's part.
    pub contributions: Vec<fusion::Contribution>,
}

/// What came of a request's arrival.
#[derive(Debug)]
pub struct Arrival {
    /// The judgement, where the account was due.
    pub decision: Option<Decision>,
    /// What is left to read of its prompt; `None` where its text came before.
    pub pending: Option<Pending>,
}

/// A tie as a person reads it.
#[derive(Clone, Debug, Serialize)]
pub struct TieReport {
    /// The other account.
    pub account: AccountId,
    /// Its tier.
    pub tier: Tier,
    /// How likely one hand is behind both, 0..1.
    pub weight: f64,
    /// The kinds of evidence, each with its nats.
    pub evidence: Vec<(&'static str, f64)>,
}

/// The engine.
#[derive(Clone, Debug)]
pub struct Engine {
    policy: Arc<Policy>,
    facts: Arc<Facts>,
    key: Key,
    /// Accounts and organisations that are never judged, by their hashes.
    allowed: Vec<u64>,
    learnt: Learnt,
    muted: Muted,
    accounts: Generations<Box<Account>>,
    pivots: Pivots,
    /// What sensors told of addresses.
    dns: Generations<AddressDns>,
    releases: Vec<(u64, u64)>,
    /// The accounts of each cluster, by their keys: found again from the accounts, so not saved.
    clusters: HashMap<u64, Vec<u64>, KeyedState>,
    changes: Changes,
    /// Accounts have rows in a store.
    stored: bool,
    /// Rows are being taken back.
    restoring: bool,
}

impl Engine {
    /// An engine without memories. Hashes are made under `key`.
    #[must_use]
    pub fn new(policy: Arc<Policy>, facts: Arc<Facts>, key: Key) -> Self {
        Self {
            facts,
            key,
            allowed: allowed(&policy, &key),
            learnt: Learnt::default(),
            muted: muted(&policy),
            accounts: Generations::new(policy.memory.accounts_max),
            pivots: Pivots::new(policy.memory.pivots_max),
            dns: Generations::new(policy.memory.accounts_max),
            releases: Vec::new(),
            clusters: HashMap::default(),
            changes: Changes::default(),
            stored: false,
            restoring: false,
            policy,
        }
    }

    /// Judges by another policy from now on. The bounds of memory stay those of the first.
    pub fn set_policy(&mut self, policy: Arc<Policy>) {
        self.allowed = allowed(&policy, &self.key);
        self.muted = muted(&policy);
        self.policy = policy;
    }

    /// Grows what is about to be full. For whoever has time: growing in the middle of an exchange
    /// would hold that exchange up.
    pub fn make_room(&mut self) {
        self.accounts.make_room();
        self.dns.make_room();
        self.pivots.make_room();
    }

    /// The accounts whose ties put them into a cluster, in the order of their pseudonyms.
    #[must_use]
    pub fn cluster_members(&self, label: u64) -> Vec<&Account> {
        let keys = self.clusters.get(&label).map(Vec::as_slice).unwrap_or_default();
        let held = keys.iter().filter_map(|key| self.accounts.get(*key)).map(|held| &**held);
        let mut members: Vec<_> = held.filter(|held| held.cluster == Some(label)).collect();
        members.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        members
    }

    /// Every cluster with how many accounts are in it, the largest first.
    #[must_use]
    pub fn clusters(&self) -> Vec<(u64, usize)> {
        let mut clusters: Vec<_> =
            self.clusters.iter().map(|(label, members)| (*label, members.len())).collect();
        clusters.sort_unstable_by_key(|(label, members)| (usize::MAX - members, *label));
        clusters
    }

    /// Takes in an event. An exchange of a known account that is due gives a judgement.
    pub fn observe(&mut self, event: &Event) -> Option<Decision> {
        match event {
            Event::Exchange(observation) => return self.exchange(observation),
            Event::Profile(profile) => self.profile(profile),
            Event::Organisation(declared) => self.declared(declared),
            Event::Dns(lookup) => self.lookup(lookup),
            Event::Contact(contact) => self.contact(contact),
            Event::ModelRelease(release) => {
                let model = keyed::hash(&self.key, release.model.as_bytes());
                self.release((release.at_ms, model));
            }
            Event::Enforcement(enforcement) => {
                let key = self.account_key(&enforcement.account);
                if enforcement.action == EnforcementAction::Suspend {
                    let account = touch(&mut self.accounts, key, &enforcement.account);
                    account.note(|memory, _| memory.suspended.add(enforcement.at_ms));
                    self.mark(key);
                }
            }
        }
        None
    }

    /// Judges an account now, whether it is due or not; with evidence for a person to read.
    pub fn judge_now(&mut self, id: &AccountId, now_ms: u64) -> Option<Decision> {
        let key = self.account_key(id);
        self.judge(key, now_ms, true)
    }

    /// The ties of an account, the strongest first, for a person to read.
    #[must_use]
    pub fn explain_ties(&self, id: &AccountId) -> Vec<TieReport> {
        let key = self.account_key(id);
        let Some(account) = self.accounts.get(key) else { return Vec::new() };
        let report = |edge: &Edge| {
            let other = self.accounts.get(edge.account)?;
            let evidence = Kind::ALL.iter().zip(edge.kinds).filter(|(_, nats)| *nats > 0.0);
            Some(TieReport {
                account: other.id.clone(),
                tier: other.held.tier,
                weight: edge.weight,
                evidence: evidence.map(|(kind, nats)| (kind.name(), f64::from(nats))).collect(),
            })
        };
        self.ties(key, account).edges.iter().filter_map(report).collect()
    }

    /// Every account held, in the order of their pseudonyms.
    #[must_use]
    pub fn accounts(&self) -> Vec<&Account> {
        let mut accounts: Vec<&Account> = self.accounts.iter().map(|(_, held)| &**held).collect();
        accounts.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        accounts
    }

    /// The account, where it is held.
    #[must_use]
    pub fn account(&self, id: &AccountId) -> Option<&Account> {
        self.accounts.get(self.account_key(id)).map(|held| &**held)
    }

    /// Accounts that were let go to keep the bounds, and shared values and addresses of which sensors
    /// told.
    #[must_use]
    pub fn evicted(&self) -> (u64, u64) {
        (self.accounts.evicted(), self.pivots.evicted() + self.dns.evicted())
    }

    /// Bytes held: accounts; shared values and what sensors told of addresses.
    #[must_use]
    pub fn memory_bytes(&self) -> (usize, usize) {
        let of = |account: &Account| size_of::<Account>() + 48 + account.heap_bytes();
        let accounts = self.accounts.iter().map(|(_, account)| of(account)).sum::<usize>();
        let told = self.dns.iter().map(|(_, told)| told.heap_bytes()).sum::<usize>();
        let shared = self.pivots.memory_bytes() + self.dns.table_bytes() + told;
        (accounts + self.accounts.table_bytes(), shared)
    }

    /// Takes in what another engine has seen under the same key. Tiers follow with the next
    /// judgements, see [`Self::judge_all`].
    pub fn merge(&mut self, other: &Self) {
        self.pivots.merge(&other.pivots);
        self.learnt.ja3s.merge(&other.learnt.ja3s);
        let mut accounts: Vec<_> = other.accounts.iter().collect();
        accounts.sort_unstable_by_key(|(key, _)| *key);
        for (key, theirs) in accounts {
            self.join(key, (**theirs).clone());
        }
        self.index_clusters();
        let mut told: Vec<_> = other.dns.iter().collect();
        told.sort_unstable_by_key(|(address, _)| *address);
        for (address, theirs) in told {
            self.dns.touch(address, AddressDns::default).merge(theirs);
        }
        other.releases.iter().for_each(|release| self.release(*release));
    }

    /// Takes in a release, unix milliseconds and the model's hash, however often it is told.
    fn release(&mut self, release: (u64, u64)) {
        if let Err(place) = self.releases.binary_search(&release) {
            self.releases.insert(place, release);
            self.releases.drain(..self.releases.len().saturating_sub(RELEASES_MAX));
        }
    }

    /// A model's releases are not heeded any more.
    pub fn forget_release(&mut self, model: &str) {
        let model = keyed::hash(&self.key, model.as_bytes());
        self.releases.retain(|(_, released)| *released != model);
    }

    /// What this engine remembers. What it has learnt of the server's ServerHellos it learns again.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut dns: Vec<_> =
            self.dns.iter().map(|(address, told)| (address, told.clone())).collect();
        dns.sort_unstable_by_key(|(address, _)| *address);
        Snapshot {
            version: snapshot::VERSION,
            accounts: self.accounts().into_iter().cloned().collect(),
            pivots: self.pivots.save(),
            dns,
            releases: self.releases.clone(),
        }
    }

    /// Takes back what an engine under the same key remembered.
    ///
    /// # Errors
    /// When another version wrote it; nothing is taken then.
    pub fn restore(&mut self, saved: Snapshot) -> Result<(), WrongVersion> {
        if saved.version != snapshot::VERSION {
            return Err(WrongVersion { found: saved.version });
        }
        for account in saved.accounts {
            let key = self.account_key(&account.id);
            self.join(key, account);
        }
        for (family, value, pivot) in saved.pivots {
            self.pivots.restore(family, value, pivot);
        }
        for (address, told) in saved.dns {
            self.dns.touch(address, AddressDns::default).merge(&told);
        }
        saved.releases.into_iter().for_each(|release| self.release(release));
        self.index_clusters();
        Ok(())
    }

    /// Judges every account anew.
    pub fn judge_all(&mut self, now_ms: u64) {
        let mut keys: Vec<u64> = self.accounts.iter().map(|(key, _)| key).collect();
        keys.sort_unstable();
        for key in keys {
            self.judge(key, now_ms, false);
        }
    }

    fn account_key(&self, id: &AccountId) -> u64 {
        keyed::hash(&self.key, id.as_str().as_bytes())
    }

    fn profile(&mut self, profile: &Profile) {
        let key = self.account_key(&profile.account);
        let known = Known::of(profile, &self.key);
        let account = touch(&mut self.accounts, key, &profile.account);
        account.note(|memory, _| memory.known.merge(&known));
        let customer = account.memory.customer(key);
        pivot::profile_values(&account.memory, |family, value, at_s| {
            self.pivots.add(family, value, key, customer, at_s);
        });
        self.mark(key);
    }

    fn declared(&mut self, declared: &Declared) {
        let key = self.account_key(&declared.account);
        let organisation = keyed::hash(&self.key, declared.organisation.as_str().as_bytes());
        let at_s = u32::try_from(declared.at_ms / 1000).unwrap_or(u32::MAX);
        let account = touch(&mut self.accounts, key, &declared.account);
        let named = account::Organisation::new(organisation, at_s);
        account.note(|memory, _| memory.declared.merge(&named));
        self.mark(key);
    }

    fn lookup(&mut self, lookup: &DnsLookup) {
        let &DnsLookup { at_ms, ip, host, client, transport, server, .. } = lookup;
        let sighting = match (&lookup.provider, transport.is_encrypted()) {
            (_, false) => Sighting::Plain,
            (None, true) => {
                Sighting::Encrypted { transport, resolver: seen::address(server, &self.key) }
            }
            (Some(name), true) => {
                // A provider is one, whatever its addresses.
                let resolver = keyed::hash_parts(&self.key, &[b"provider", name.as_bytes()]);
                self.learnt.learn_provider(resolver, name);
                Sighting::Encrypted { transport, resolver }
            }
        };
        self.sighted(at_ms, ip, host, client, sighting);
    }

    fn contact(&mut self, contact: &DnsContact) {
        // An address is one, whatever its ports.
        let &DnsContact { at_ms, ip, host, client, destination, .. } = contact;
        let destination = seen::address(destination, &self.key);
        self.sighted(at_ms, ip, host, client, Sighting::Unnamed { destination });
    }

    fn sighted(
        &mut self,
        at_ms: u64,
        ip: IpAddr,
        host: Option<u64>,
        client: Option<bool>,
        sighting: Sighting,
    ) {
        let address = seen::address(ip, &self.key);
        let at_s = u32::try_from(at_ms / 1000).unwrap_or(u32::MAX);
        let sighting = if client == Some(false) { Sighting::Bystander } else { sighting };
        let told = self.dns.touch(address, AddressDns::default);
        told.add(host.unwrap_or(address), at_s, sighting);
    }

    /// Takes in a request that has just arrived: everything but its prompt's meaning and its answer,
    /// which [`Self::understood`] and [`Self::answered`] take in when they are known. The three
    /// together leave what [`Self::observe`] leaves of the whole exchange.
    pub fn arrived(&mut self, arrived: Arrived) -> Arrival {
        let (id, seen, mut pending) = arrived.join(&self.facts, &mut self.learnt);
        let key = self.account_key(&id);
        let (seen, due) = self.note(key, &id, seen);
        if pending.is_none() {
            self.note_meaning(key, &seen);
        }
        let decision = if due { self.judge(key, seen.at_ms, false) } else { None };
        if let Some(pending) = &mut pending {
            pending.seen = seen;
            pending.judged = due;
        }
        Arrival { decision, pending }
    }

    /// Takes in what a request's prompt means; judges again where the account was judged without it.
    pub fn understood(&mut self, pending: &Pending) -> Option<Decision> {
        pending.learn(&mut self.learnt);
        let key = self.account_key(&pending.account);
        self.note_meaning(key, &pending.seen);
        if pending.judged { self.judge(key, pending.seen.at_ms, false) } else { None }
    }

    /// Takes in how an exchange was answered.
    pub fn answered(&mut self, id: &AccountId, exchange: &str, answered: &Answered) {
        let key = self.account_key(id);
        if let Some(account) = self.accounts.get_mut(key) {
            account.note_answer(seen::exchange_key(exchange, &self.key), answered);
            self.mark(key);
        }
    }

    fn exchange(&mut self, observation: &Observation) -> Option<Decision> {
        let id = observation.account.as_ref()?;
        let key = self.account_key(id);
        let seen = Seen::read(observation, &self.facts, &mut self.learnt, &self.key);
        let (seen, due) = self.note(key, id, seen);
        self.note_meaning(key, &seen);
        let answered = Answered::of(&observation.answer);
        if let Some(account) = self.accounts.get_mut(key) {
            account.note_answer(seen.id, &answered);
        }
        if due { self.judge(key, seen.at_ms, false) } else { None }
    }

    fn note_meaning(&mut self, key: u64, seen: &Seen) {
        if let Some(account) = self.accounts.get_mut(key) {
            account.note(|memory, memories| {
                memory.note_topic(seen);
                memories.note(seen, Pace::Background);
            });
            self.mark(key);
        }
    }

    /// Remembers what a request shows; returns it completed, and whether its account is due.
    fn note(&mut self, key: u64, id: &AccountId, mut seen: Seen) -> (Seen, bool) {
        let at_s = seen.at_s();
        seen.dns = self.dns.get(seen.address).and_then(|told| told.seen(seen.address, at_s));
        for (at_ms, model) in &self.releases {
            let hours = seen.at_ms.saturating_sub(*at_ms) as f32 / 3_600_000.0;
            if hours < 24.0 && seen.at_ms >= *at_ms {
                seen.any_release = true;
                if *model == seen.model {
                    seen.released_h = Some(hours);
                }
            }
        }
        self.learnt.learn_peers(&seen);
        let account = touch(&mut self.accounts, key, id);
        account.note(|memory, memories| {
            memory.note(&seen);
            memories.note(&seen, Pace::Inline);
        });
        let customer = account.memory.customer(key);
        let aged = account.held.tier > Tier::None
            && seen.at_ms.saturating_sub(account.held.at_ms) >= REJUDGED_MS;
        let due = account.stale || aged || is_due(account.memory.requests, account.judged_at);
        let some = |hash: u32| (hash != 0).then_some(u64::from(hash));
        let second = account.memory.recent.get(u64::from(seen.id)).map(Recent::second);
        let shared = [
            (Family::Address, Some(seen.address)),
            (Family::Subnet, Some(seen.subnet)),
            (Family::Shape, Some(seen.shape)),
            (Family::Rig, Some(seen.rig)),
            (Family::Second, second),
            (Family::Prompt, some(seen.prompt)),
            (Family::System, seen.system),
            (Family::Frame, some(seen.frames[0])),
            (Family::Frame, some(seen.frames[1])),
        ];
        let listed = seen.hits.iter().map(|(hit, _)| (Family::Listed, hit.shared_value()));
        for (family, value) in shared.into_iter().chain(listed) {
            if let Some(value) = value {
                self.pivots.add(family, value, key, customer, at_s);
            }
        }
        if let Some(dns) = &seen.dns {
            dns.shared_values(|family, value| {
                self.pivots.add(family, value, key, customer, at_s);
            });
        }
        self.mark(key);
        (seen, due)
    }

    fn ties(&self, key: u64, account: &Account) -> Ties {
        ties::ties(key, &account.memory, &self.pivots, &self.muted, self.customers(), |other| {
            self.accounts.get(other).map(|held| Neighbour {
                memory: &held.memory,
                suspended: held.memory.suspended != account::Span::default(),
            })
        })
    }

    fn customers(&self) -> f64 {
        (self.accounts.len() as f64).max(CUSTOMERS_MIN)
    }

    fn judge(&mut self, key: u64, now_ms: u64, explain: bool) -> Option<Decision> {
        let account = self.accounts.get(key)?;
        let ties = self.ties(key, account);
        let card = account.memory.known.payment;
        let card = card.and_then(|payment| self.pivots.crowd(Family::Payment, payment));
        let listed = indicator::listed(&account.memory, &self.pivots, self.customers(), now_ms);
        let dns = Resolution::of(&account.memory, &self.pivots);
        let context = Context {
            now_ms,
            account: &account.memory,
            ties: &ties,
            card_accounts: card.map_or(1.0, |crowd| crowd.accounts.count()),
            listed: &listed,
            learnt: &self.learnt,
            dns: &dns,
            explain,
        };
        let findings = account.memories.judge(&context, |name| self.policy.enabled(name));
        let weight = |name: &str| self.policy.weight(name);
        let contributions = fusion::contributions(findings, self.policy.fusion.k, weight);
        let organisation = account.memory.organisation();
        let allowed = self.allowed.iter().any(|id| *id == key || Some(*id) == organisation);
        let suspicion = if allowed { 0.0 } else { fusion::suspicion(&contributions) };
        let cluster = self.cluster(key, account, &ties);
        // Ties that are still to come back do not speak against a cluster.
        let cluster = if self.restoring { cluster.or(account.cluster) } else { cluster };
        for edge in ties.edges.iter().filter(|edge| edge.weight >= FIRM) {
            if let Some(other) = self.accounts.get_mut(edge.account) {
                other.stale |= other.cluster.is_none() || other.held.tier < Tier::Medium;
            }
        }
        let thresholds = &self.policy.tiers;
        let account = self.accounts.get_mut(key)?;
        let before = account.held.tier;
        account.held.judge(suspicion, now_ms, thresholds);
        account.judged_at = account.memory.requests;
        account.stale = false;
        let cluster_before = std::mem::replace(&mut account.cluster, cluster);
        if let Some(own) = &mut account.own {
            own.cluster = cluster;
        }
        let tier = account.held.tier;
        account.peak = (account.peak.0.max(suspicion), account.peak.1.max(tier));
        for reached in Tier::ALL.into_iter().skip(1).filter(|reached| *reached <= tier) {
            account.first[reached as usize].get_or_insert((now_ms, account.memory.requests));
        }
        let decision = Decision {
            account: account.id.clone(),
            at_ms: now_ms,
            request: account.memory.requests,
            tier,
            before,
            suspicion,
            cluster,
            contributions,
        };
        self.mark(key);
        self.join_cluster(key, cluster_before, cluster);
        Some(decision)
    }

    fn join_cluster(&mut self, key: u64, before: Option<u64>, now: Option<u64>) {
        if before == now {
            return;
        }
        if let Some(label) = before
            && let Some(members) = self.clusters.get_mut(&label)
        {
            members.retain(|member| *member != key);
            if members.is_empty() {
                self.clusters.remove(&label);
            }
        }
        if let Some(label) = now {
            let accounts = &self.accounts;
            let members = self.clusters.entry(label).or_default();
            // Accounts that were let go are let go here too, once in a while.
            if members.len() == members.capacity() {
                members.retain(|member| accounts.get(*member).is_some());
            }
            members.push(key);
        }
    }

    fn index_clusters(&mut self) {
        self.clusters.clear();
        let mut labelled: Vec<(u64, u64)> =
            self.accounts.iter().filter_map(|(key, held)| Some((held.cluster?, key))).collect();
        labelled.sort_unstable();
        for (label, key) in labelled {
            self.clusters.entry(label).or_default().push(key);
        }
    }

    /// The cluster that an account's firm ties vote for: the label with the most weight, so that
    /// one wrong tie does not join two groups.
    fn cluster(&self, key: u64, account: &Account, ties: &Ties) -> Option<u64> {
        if ties.mass < CLUSTER_MASS_MIN {
            return None;
        }
        let mut votes: Vec<(u64, f64)> = Vec::new();
        for edge in ties.edges.iter().filter(|edge| edge.weight >= SAME_CLUSTER) {
            let Some(label) = self.accounts.get(edge.account).and_then(|other| other.cluster)
            else {
                continue;
            };
            match votes.iter_mut().find(|(voted, _)| *voted == label) {
                Some((_, weight)) => *weight += edge.nats,
                None => votes.push((label, edge.nats)),
            }
        }
        votes.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        votes.first().map(|(label, _)| *label).or(account.cluster).or(Some(key))
    }
}

/// What is held of an account, from now on if nothing is.
fn touch<'a>(
    accounts: &'a mut Generations<Box<Account>>,
    key: u64,
    id: &AccountId,
) -> &'a mut Account {
    accounts.touch(key, || Box::new(Account::new(id.clone())))
}

/// Accounts and organisations that a policy never judges, by their hashes.
fn allowed(policy: &Policy, key: &Key) -> Vec<u64> {
    let allow = policy.allow.accounts.iter().chain(&policy.allow.organisations);
    allow.map(|id| keyed::hash(key, id.as_bytes())).collect()
}

/// Shared values that tie nobody, because their detector is off.
fn muted(policy: &Policy) -> Muted {
    let mut muted: Muted = [false; Family::ALL.len()];
    for entry in LIST.iter().filter(|entry| !policy.enabled(entry.name)) {
        for family in entry.families {
            muted[*family as usize] = true;
        }
    }
    muted
}

/// Whether an account with so many exchanges is to be judged again.
fn is_due(requests: u32, judged_at: u32) -> bool {
    requests <= 6 || requests >= judged_at.saturating_add((judged_at / 5).max(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ModelRelease;
    use crate::observation::OrganisationId;

    #[test]
    fn a_release_that_is_forgotten_leaves_the_others() {
        let facts = Arc::new(Facts::builtin().unwrap());
        let mut engine = Engine::new(Arc::default(), facts, [1; 16]);
        for (at_ms, model) in [(1, "a"), (2, "b"), (3, "a")] {
            let release = ModelRelease { at_ms, model: model.into() };
            engine.observe(&Event::ModelRelease(release));
        }
        engine.forget_release("a");
        let times: Vec<u64> = engine.releases.iter().map(|(at_ms, _)| *at_ms).collect();
        assert_eq!(times, [2]);
    }

    #[test]
    fn merged_releases_keep_their_bound() {
        let facts = Arc::new(Facts::builtin().unwrap());
        let mut engines = [0_u64, 1].map(|odd| {
            let mut engine = Engine::new(Arc::default(), facts.clone(), [1; 16]);
            for number in 0..RELEASES_MAX as u64 {
                let at_ms = 2 * number + odd;
                let model = format!("model-{at_ms}").into();
                engine.observe(&Event::ModelRelease(ModelRelease { at_ms, model }));
            }
            engine
        });
        let [mine, theirs] = &mut engines;
        mine.merge(theirs);
        assert_eq!(mine.releases.len(), RELEASES_MAX);
        assert_eq!(mine.releases[0].0, RELEASES_MAX as u64, "the oldest go");
        mine.forget_release(&format!("model-{RELEASES_MAX}"));
        assert_eq!(mine.releases.len(), RELEASES_MAX - 1);
    }

    #[test]
    fn clusters_are_found_by_their_label() {
        let facts = Arc::new(Facts::builtin().unwrap());
        let mut engine = Engine::new(Arc::default(), facts, [1; 16]);
        let ids: Vec<AccountId> = ["a", "b", "c"].iter().map(|id| AccountId::new(*id)).collect();
        let keys: Vec<u64> = ids.iter().map(|id| engine.account_key(id)).collect();
        let put = |engine: &mut Engine, place: usize, label: Option<u64>| {
            let account = touch(&mut engine.accounts, keys[place], &ids[place]);
            let before = std::mem::replace(&mut account.cluster, label);
            engine.join_cluster(keys[place], before, label);
        };
        for (place, label) in [(0, Some(7)), (1, Some(7)), (2, Some(9)), (1, Some(9)), (2, Some(9))]
        {
            put(&mut engine, place, label);
        }
        let names = |engine: &Engine, label| {
            let members = engine.cluster_members(label).into_iter();
            members.map(|held| held.id.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            (names(&engine, 7), names(&engine, 9)),
            (vec!["a".into()], vec!["b".into(), "c".into()])
        );
        assert_eq!(engine.clusters(), [(9, 2), (7, 1)]);
        let mut again = Engine::new(Arc::default(), engine.facts.clone(), [1; 16]);
        again.restore(engine.snapshot()).unwrap();
        assert_eq!(again.clusters(), engine.clusters());
        put(&mut engine, 0, None);
        assert_eq!(engine.clusters(), [(9, 2)]);
    }

    #[test]
    fn what_a_credential_names_leaves_what_an_operator_told() {
        let facts = Arc::new(Facts::builtin().unwrap());
        let id = AccountId::new("a");
        let profile = |at_ms, organisation: Option<&str>| {
            Event::Profile(Profile {
                at_ms,
                account: id.clone(),
                organisation: organisation.map(OrganisationId::new),
                created_s: Some(7),
                payment: Some("card".into()),
                bin: None,
                verified: true,
            })
        };
        let named = |at_ms| {
            let organisation = OrganisationId::new("named");
            Event::Organisation(Declared { at_ms, account: id.clone(), organisation })
        };
        let hash = |text: &str| Some(keyed::hash(&[1; 16], text.as_bytes()));
        for (events, organisation) in [
            (vec![profile(5, None), named(9)], "named"),
            (vec![named(9), profile(5, None)], "named"),
            (vec![profile(5, Some("told")), named(9_000)], "told"),
        ] {
            let mut engine = Engine::new(Arc::default(), facts.clone(), [1; 16]);
            events.iter().for_each(|event| drop(engine.observe(event)));
            let memory = &engine.account(&id).unwrap().memory;
            assert_eq!((memory.known.payment, memory.known.created_s), (hash("card"), Some(7)));
            assert_eq!(memory.organisation(), hash(organisation));
        }
    }

    #[test]
    fn judgements_thin_out() {
        let (mut judged_at, mut judged) = (0, Vec::new());
        for requests in 1..=100 {
            if is_due(requests, judged_at) {
                judged_at = requests;
                judged.push(requests);
            }
        }
        assert_eq!(judged[..9], [1, 2, 3, 4, 5, 6, 8, 10, 12]);
        assert!(judged.len() < 26, "{judged:?}");
    }
}
