//! What several gateways remember of one account, and one gateway before and after a restart.
//!
//! Every gateway of a fleet publishes its own [`Contribution`]: all that it has seen of an account,
//! and what it holds of it. The others remember their own part together with everybody else's.
//! Contributions are whole states, so telling one again does no harm, nothing is counted twice, and
//! they may come in any order. Shared values need no exchange of their own, since they follow from
//! memories; only those are missed that an account's bounded memory has let go before it was told.

use std::array;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Account, Engine, touch};
use crate::account::Memory;
use crate::list::Memories;
use crate::observation::AccountId;
use crate::pivot;
use crate::seen::Answered;
use crate::sketch::Merge;
use crate::tier::{Held, Tier};

/// An account as it is stored, see [`Engine::row`] and [`Engine::adopt`].
pub type AccountRow = Account;

/// When each tier was first reached: unix milliseconds and the account's exchange, from 1.
pub type First = [Option<(u64, u32)>; Tier::ALL.len()];

/// What this gateway alone has seen of an account.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Own {
    memory: Memory,
    memories: Memories,
    /// The cluster that its own judgement gave. Others' labels are not told as one's own, or no
    /// label that somebody once gave would ever go.
    pub(super) cluster: Option<u64>,
}

impl Merge for Own {
    fn merge(&mut self, other: &Self) {
        self.memory.merge(&other.memory);
        self.memories.merge(&other.memories);
        self.cluster = label(self.cluster, other.cluster);
    }
}

/// What one gateway, or several together, tell of an account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contribution {
    /// The account.
    pub account: AccountId,
    /// What they have seen.
    pub memory: Memory,
    /// What their detectors remember of it.
    pub memories: Memories,
    /// Tier and suspicion that they hold.
    pub held: Held,
    /// The highest suspicion and tier that they know of.
    pub peak: (f64, Tier),
    /// When each tier was first reached.
    pub first: First,
    /// The cluster that they have judged it to be in.
    pub cluster: Option<u64>,
}

impl Contribution {
    /// Takes in another gateway's contribution of the same account. Commutative and associative.
    pub fn merge(&mut self, other: &Self) {
        self.memory.merge(&other.memory);
        self.memories.merge(&other.memories);
        self.held.join(&other.held);
        self.peak = higher(self.peak, other.peak);
        self.first = earlier(self.first, other.first);
        self.cluster = label(self.cluster, other.cluster);
    }
}

/// Of two labels the one that every gateway takes.
fn label(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

fn higher(one: (f64, Tier), other: (f64, Tier)) -> (f64, Tier) {
    (one.0.max(other.0), one.1.max(other.1))
}

fn earlier(one: First, other: First) -> First {
    array::from_fn(|tier| one[tier].into_iter().chain(other[tier]).min())
}

impl Account {
    pub(super) fn new(id: AccountId) -> Self {
        Self {
            id,
            memory: Memory::default(),
            memories: Memories::default(),
            own: None,
            held: Held::default(),
            peak: (0.0, Tier::None),
            first: First::default(),
            cluster: None,
            judged_at: 0,
            stale: false,
            elsewhere: false,
            changed: false,
            restored: false,
        }
    }

    /// Notes what this gateway sees, in all that is remembered and in its own part of it.
    pub(super) fn note(&mut self, note: impl Fn(&mut Memory, &mut Memories)) {
        if std::mem::take(&mut self.elsewhere) {
            self.own = Some(Box::default());
        }
        note(&mut self.memory, &mut self.memories);
        if let Some(own) = &mut self.own {
            note(&mut own.memory, &mut own.memories);
        }
    }

    pub(super) fn note_answer(&mut self, exchange: u32, answered: &Answered) {
        self.note(|memory, memories| {
            memory.note_answer(exchange, answered);
            memories.note_answer(answered);
        });
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        let own = self.own.as_ref().map_or(0, |own| size_of::<Own>() + own.memory.heap_bytes());
        self.memory.heap_bytes() + own
    }

    /// Whether other gateways have told a part of it.
    fn is_shared(&self) -> bool {
        self.elsewhere || self.own.is_some()
    }

    /// What this gateway has seen itself.
    fn own_part(&self) -> Own {
        match &self.own {
            Some(own) => (**own).clone(),
            None if self.elsewhere => Own::default(),
            None => Own {
                memory: self.memory.clone(),
                memories: self.memories.clone(),
                cluster: self.cluster,
            },
        }
    }

    /// The rest is other gateways'.
    fn set_own(&mut self, own: Own) {
        self.elsewhere = own == Own::default();
        self.own = (!self.elsewhere).then(|| Box::new(own));
    }

    /// Takes in what was remembered of the account elsewhere, or before. The own parts have no
    /// exchange in common; what other gateways told counts as it was told here, if it was.
    pub(super) fn join(&mut self, other: &Self) {
        let (told_here, told_there) = (self.is_shared(), other.is_shared());
        let theirs = other.own_part();
        if told_here || told_there {
            let mut own = self.own_part();
            own.merge(&theirs);
            self.set_own(own);
        }
        if told_there && !told_here {
            self.memory.merge(&other.memory);
            self.memories.merge(&other.memories);
        } else {
            self.memory.merge(&theirs.memory);
            self.memories.merge(&theirs.memories);
        }
        self.held.join(&other.held);
        self.peak = higher(self.peak, other.peak);
        self.first = earlier(self.first, other.first);
        self.cluster = label(self.cluster, other.cluster);
        self.judged_at = self.judged_at.max(other.judged_at);
        self.stale = true;
    }

    /// Takes the place of what other gateways have told before. Returns whether what is remembered
    /// has changed, and whether what is held has.
    fn take_in(&mut self, others: &Contribution) -> (bool, bool) {
        let own = self.own_part();
        let (mut memory, mut memories) = (others.memory.clone(), others.memories.clone());
        memory.merge(&own.memory);
        memories.merge(&own.memories);
        let held = self.held;
        self.held.join(&others.held);
        self.peak = higher(self.peak, others.peak);
        self.first = earlier(self.first, others.first);
        self.cluster = label(own.cluster, others.cluster);
        self.set_own(own);
        let told = memory != self.memory || memories != self.memories;
        if told {
            (self.memory, self.memories) = (memory, memories);
            self.judged_at = self.judged_at.min(self.memory.requests);
            self.stale = true;
        }
        (told, self.held != held)
    }
}

/// Accounts that have changed since they were last taken, the oldest change first.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    tracked: bool,
    keys: VecDeque<u64>,
    /// Accounts let go when the keys were last looked through.
    evicted: u64,
}

impl Engine {
    /// Whether the account is held.
    #[must_use]
    pub fn holds(&self, id: &AccountId) -> bool {
        self.account(id).is_some()
    }

    /// What is stored of an account: everything that is held of it. `None` also of an account whose
    /// row was not taken back yet: it would take the place of what is stored.
    #[must_use]
    pub fn row(&self, id: &AccountId) -> Option<AccountRow> {
        let account = self.account(id).filter(|account| self.is_whole(account))?;
        Some(Account { changed: false, restored: false, ..account.clone() })
    }

    /// Says that accounts have rows in a store, so that what is seen of one is not all there is
    /// until its row was taken back with [`Self::adopt`] or there is none: [`Self::nothing_stored`].
    pub fn set_stored(&mut self, stored: bool) {
        self.stored = stored;
    }

    /// Says that rows of many accounts are being taken back, so that an account's ties may be missing
    /// for the time being: nobody leaves a cluster meanwhile.
    pub fn set_restoring(&mut self, restoring: bool) {
        self.restoring = restoring;
    }

    /// Whether rows are still being taken back.
    #[must_use]
    pub fn is_restoring(&self) -> bool {
        self.restoring
    }

    /// Whether all there is of an account is held.
    #[must_use]
    pub fn is_restored(&self, id: &AccountId) -> bool {
        self.account(id).is_some_and(|account| self.is_whole(account))
    }

    fn is_whole(&self, account: &Account) -> bool {
        account.restored || !self.stored
    }

    /// The store has no row of an account: what is held, or comes to be held, is all there is.
    pub fn nothing_stored(&mut self, id: &AccountId) {
        let key = self.account_key(id);
        touch(&mut self.accounts, key, id).restored = true;
    }

    /// Takes back an account as it was stored before it was last let go, by a restart or to keep the
    /// bounds. It may have been seen again since: then both are joined. A row of an account that is
    /// whole is left.
    pub fn adopt(&mut self, row: AccountRow) {
        let key = self.account_key(&row.id);
        if self.accounts.get(key).is_some_and(|account| account.restored) {
            return;
        }
        let (before, now) = self.join(key, row);
        self.join_cluster(key, before, now);
        if let Some(account) = self.accounts.get_mut(key) {
            account.restored = true;
        }
        if let Some(account) = self.accounts.get(key) {
            let customer = account.memory.customer(key);
            pivot::shared_values(&account.memory, |family, value, at_s| {
                self.pivots.add(family, value, key, customer, at_s);
            });
        }
    }

    /// Joins an account with what is held of it. Returns its cluster before and now.
    pub(super) fn join(&mut self, key: u64, other: Account) -> (Option<u64>, Option<u64>) {
        let other = Account { changed: false, restored: false, ..other };
        if self.accounts.get(key).is_none() {
            let now = other.cluster;
            self.accounts.touch(key, || Box::new(other));
            return (None, now);
        }
        let account = touch(&mut self.accounts, key, &other.id);
        let before = account.cluster;
        account.join(&other);
        let now = account.cluster;
        self.mark(key);
        (before, now)
    }

    /// What this gateway has to tell of an account; `None` where it has not seen it itself, or does
    /// not hold all that it has seen, see [`Self::is_restored`].
    #[must_use]
    pub fn contribution(&self, id: &AccountId) -> Option<Contribution> {
        let account = self.account(id).filter(|account| self.is_whole(account))?;
        if account.elsewhere {
            return None;
        }
        let Own { memory, memories, cluster } = account.own_part();
        Some(Contribution {
            account: account.id.clone(),
            memory,
            memories,
            held: account.held,
            peak: account.peak,
            first: account.first,
            cluster,
        })
    }

    /// Takes in what all other gateways together have to tell of an account, in the place of what
    /// they have told before. It is judged anew at its next exchange if that is anything new.
    pub fn take_in(&mut self, others: &Contribution) {
        let key = self.account_key(&others.account);
        let account = touch(&mut self.accounts, key, &others.account);
        let before = account.cluster;
        let (told, held) = account.take_in(others);
        let (now, customer) = (account.cluster, account.memory.customer(key));
        self.join_cluster(key, before, now);
        if told {
            pivot::shared_values(&others.memory, |family, value, at_s| {
                self.pivots.add(family, value, key, customer, at_s);
            });
        }
        if held {
            self.mark(key);
        }
    }

    /// The keys of all accounts that are held, in no order that means anything: for going through
    /// them a few at a time, with [`Self::id_of`].
    #[must_use]
    pub fn account_keys(&self) -> Vec<u64> {
        self.accounts.iter().map(|(key, _)| key).collect()
    }

    /// The pseudonym of the account of a key, while it is held.
    #[must_use]
    pub fn id_of(&self, key: u64) -> Option<AccountId> {
        self.accounts.get(key).map(|account| account.id.clone())
    }

    /// How many of an account's exchanges other gateways have told of.
    #[must_use]
    pub fn told_requests(&self, id: &AccountId) -> u32 {
        let told = |account: &Account| match &account.own {
            Some(own) => account.memory.requests.saturating_sub(own.memory.requests),
            None if account.elsewhere => account.memory.requests,
            None => 0,
        };
        self.account(id).map_or(0, told)
    }

    /// Takes in a tier and suspicion that another gateway has judged at a time, unix milliseconds,
    /// ahead of what it has seen.
    pub fn hold(
        &mut self,
        id: &AccountId,
        tier: Tier,
        suspicion: f64,
        at_ms: u64,
        cluster: Option<u64>,
    ) {
        let key = self.account_key(id);
        let mut held = Held::default();
        held.judge(suspicion.clamp(0.0, 1.0), at_ms, &self.policy.tiers);
        held.tier = tier;
        let account = self
            .accounts
            .touch(key, || Box::new(Account { elsewhere: true, ..Account::new(id.clone()) }));
        let before = account.cluster;
        account.held.join(&held);
        account.cluster = label(before, cluster);
        let now = account.cluster;
        self.join_cluster(key, before, now);
    }

    /// Whether to remember which accounts change, for whoever takes them with
    /// [`Self::take_changed`]. Nobody does from the start.
    pub fn set_tracking(&mut self, tracked: bool) {
        self.changes.tracked = tracked;
        if !tracked {
            for key in std::mem::take(&mut self.changes.keys) {
                if let Some(account) = self.accounts.get_mut(key) {
                    account.changed = false;
                }
            }
        }
    }

    /// Accounts of which something was noted, judged or told here since they were last taken, each
    /// once and the oldest change first, at most `max`. What was let go since is left out; what is
    /// not whole yet ([`Self::is_restored`]) waits.
    pub fn take_changed(&mut self, max: usize) -> Vec<AccountId> {
        let mut taken = Vec::new();
        for _ in 0..self.changes.keys.len() {
            if taken.len() >= max {
                break;
            }
            let Some(key) = self.changes.keys.pop_front() else { break };
            let Some(account) = self.accounts.get_mut(key) else { continue };
            if self.stored && !account.restored {
                self.changes.keys.push_back(key);
                continue;
            }
            account.changed = false;
            taken.push(account.id.clone());
        }
        taken
    }

    /// How many accounts wait to be taken with [`Self::take_changed`].
    #[must_use]
    pub fn changed_len(&self) -> usize {
        self.changes.keys.len()
    }

    /// Remembers that an account has changed.
    pub(super) fn mark(&mut self, key: u64) {
        let changes = &mut self.changes;
        if !changes.tracked {
            return;
        }
        // Accounts are let go by the generation: what waits never outgrows what is held.
        if changes.evicted != self.accounts.evicted() {
            changes.evicted = self.accounts.evicted();
            changes.keys.retain(|key| self.accounts.get(*key).is_some());
        }
        if let Some(account) = self.accounts.get_mut(key)
            && !std::mem::replace(&mut account.changed, true)
        {
            changes.keys.push_back(key);
        }
    }
}
