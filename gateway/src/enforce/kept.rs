//! What must not be forgotten: words on accounts, written to the store and taken back from it.
//!
//! Every word has one way into what is acted on: [`Enforcer::apply`], called for what is found at
//! start, for what this gateway has committed, and for what other gateways say. Judgements alone
//! are acted on first and written after: an account is not spared because a disk is slow.

use std::sync::Arc;

use detectors::engine::Decision;
use detectors::tier::Tier;
use detectors::{AccountId, Event, OrganisationId, Profile};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::{info, warn};

use super::standing::{Override, Standing, Suspension, TierChange};
use super::{Enforcer, hex_label, parse_label};
use crate::audit::{Act, Actor, Draft, Said};
use crate::limits::{OVERRIDES_MAX, STORE_PAGE, SUSPECTS_MAX};
use crate::policy::{Version, unix_ms};
use crate::store::{Batch, Committed, Pending, Register, Store, StoreError, Table, Write};

/// What is kept of an account whatever happens to its standing in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    /// An operator's word.
    pub(super) overridden: Option<Override>,
    /// A suspension.
    pub(super) suspended: Option<Suspension>,
    /// The last tier above none.
    pub(super) judged: Option<TierWord>,
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.overridden.is_none() && self.suspended.is_none() && self.judged.is_none()
    }

    /// Whether any of it has not ended yet.
    fn holds(&self, now_ms: u64) -> bool {
        let word = self.overridden.as_ref();
        word.is_some_and(|word| word.until_ms.is_none_or(|until| now_ms < until))
            || self.suspended.as_ref().is_some_and(|held| now_ms < held.until_ms)
            || self.judged.is_some()
    }
}

/// An account's tier by the last judgement, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TierWord {
    /// The tier.
    pub tier: Tier,
    /// Suspicion, 0..1.
    pub suspicion: f64,
    /// When it was judged, unix milliseconds.
    pub at_ms: u64,
    /// Cluster, 16 hex digits.
    pub cluster: Option<String>,
    /// The latest changes, the newest last.
    pub changes: Vec<TierChange>,
}

/// What an operator told of an account, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileWord {
    /// When it was told, unix milliseconds.
    pub at_ms: u64,
    /// The declared organisation.
    pub organisation: Option<String>,
    /// Creation, unix seconds.
    pub created_s: Option<i64>,
    /// A pseudonym of the payment instrument.
    pub payment: Option<String>,
    /// First six digits of the card.
    pub bin: Option<u32>,
    /// Whether the holder was checked.
    pub verified: bool,
}

impl ProfileWord {
    /// As the engine takes it.
    #[must_use]
    pub fn of(&self, account: &AccountId) -> Profile {
        Profile {
            at_ms: self.at_ms,
            account: account.clone(),
            organisation: self.organisation.as_deref().map(OrganisationId::new),
            created_s: self.created_s,
            payment: self.payment.as_deref().map(Arc::from),
            bin: self.bin,
            verified: self.verified,
        }
    }
}

impl Enforcer {
    /// Where words are kept.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Takes back what is in the store. To be called once, before anything is served.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn restore(&self) -> Result<(), StoreError> {
        let mut taken = 0_usize;
        // Profiles come with the accounts.
        for table in [
            Table::Override,
            Table::Suspension,
            Table::Tier,
            Table::Takedown,
            Table::Mark,
            Table::Review,
            Table::Release,
        ] {
            for register in self.store.scan(table)? {
                match table {
                    // The engine has it in the account's row.
                    Table::Suspension => {
                        let account = AccountId::new(register.key.as_str());
                        self.set_suspension(&account, read(&register));
                    }
                    _ => self.apply(&register),
                }
                taken += 1;
            }
        }
        let version = self.policies.in_force();
        let mut batch = policy_batch(&version);
        let detail = json!({ "policy": version.version, "version": env!("CARGO_PKG_VERSION") });
        batch.audit.push(Draft::new(Actor::System, Act::Started).detail(detail));
        self.store.keep(batch);
        if taken > 0 {
            info!(words = taken, "restored from the store");
        }
        Ok(())
    }

    /// Takes in what operators told of accounts, a page at a time: ties lead to accounts that have
    /// not come back.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn restore_profiles(&self) -> Result<(), StoreError> {
        let mut after = String::new();
        loop {
            let page = self.store.scan_after(Table::Profile, &after, STORE_PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after.clone_from(&last.key);
            page.iter().for_each(|register| self.apply(register));
        }
    }

    /// Takes in what was committed.
    pub(super) fn take_in(&self, committed: &Committed) {
        for register in &committed.registers {
            // What this gateway judged it has acted on already.
            let own = register.stamp.by == *self.store.node();
            if !(own && register.table == Table::Tier) {
                self.apply(register);
            }
        }
    }

    /// Takes a word into what is acted on.
    pub fn apply(&self, register: &Register) {
        let account = || AccountId::new(register.key.as_str());
        match register.table {
            Table::Override => self.set_override(&account(), read(register)),
            Table::Suspension => self.suspend(&account(), read(register)),
            Table::Tier => self.set_tier(&account(), read(register)),
            Table::Takedown => {
                if let Some(takedown) = read(register) {
                    self.takedowns.put(takedown);
                }
            }
            Table::Mark => self.marks.apply(&register.key),
            Table::Review => match read(register) {
                Some(entry) => drop(self.reviews.put(entry)),
                None => drop(self.reviews.take(&account())),
            },
            Table::Profile => {
                if let Some(profile) = read::<ProfileWord>(register) {
                    self.judge.observe(&Event::Profile(profile.of(&account())));
                }
            }
            Table::Release => self.judge.set_release(&register.key, read(register)),
            Table::Indicator | Table::Bundle | Table::Policy | Table::Cursor => {}
        }
    }

    /// Changes what is kept of an account; what is over is let go where there is no room.
    pub(super) fn keep_of<R>(&self, account: &AccountId, change: impl FnOnce(&mut Kept) -> R) -> R {
        let mut all = self.kept.lock();
        if all.len() >= OVERRIDES_MAX + SUSPECTS_MAX && !all.contains_key(account) {
            let now_ms = unix_ms();
            all.retain(|_, kept| kept.holds(now_ms));
        }
        let kept = all.entry(account.clone()).or_default();
        let result = change(kept);
        if kept.is_empty() {
            all.remove(account);
        }
        result
    }

    /// Accounts that a takedown has suspended: whoever followed later is among the kept, not only
    /// in the takedown's list.
    pub(super) fn suspended_by(&self, cluster: &str) -> Vec<AccountId> {
        let of_it = |kept: &Kept| kept.suspended.as_ref().is_some_and(|s| s.cluster == cluster);
        let kept = self.kept.lock();
        kept.iter().filter(|(_, kept)| of_it(kept)).map(|(id, _)| id.clone()).collect()
    }

    /// A standing with everything that is kept of its account.
    pub(super) fn remembered(&self, account: &AccountId) -> Arc<Standing> {
        let standing = Standing::new(account.clone());
        if let Some(kept) = self.kept.lock().get(account).cloned() {
            standing.change(|state| {
                state.overridden = kept.overridden;
                state.suspended = kept.suspended;
            });
            if let Some(word) = kept.judged {
                standing.told(word.tier, word.suspicion, label_of(&word), word.changes);
            }
        }
        Arc::new(standing)
    }

    /// Sets or removes an operator's word on an account. It holds when the answer is durable.
    ///
    /// # Errors
    /// When as many are set as can be.
    pub fn override_tier(
        &self,
        account: &AccountId,
        word: Option<&Override>,
        said: &Said,
    ) -> Result<Pending, String> {
        let (write, act, detail) = match word {
            Some(word) => {
                let kept = self.kept.lock();
                let set = |kept: &Kept| kept.overridden.is_some();
                if kept.len() >= OVERRIDES_MAX
                    && !kept.get(account).is_some_and(set)
                    && kept.values().filter(|kept| set(kept)).count() >= OVERRIDES_MAX
                {
                    return Err(format!("{OVERRIDES_MAX} accounts have an override"));
                }
                let write = Write::put(Table::Override, account.as_str(), word);
                (write, Act::OverrideSet, json!({ "tier": word.tier, "until_ms": word.until_ms }))
            }
            None => {
                let write = Write::remove(Table::Override, account.as_str());
                (write, Act::OverrideRemoved, serde_json::Value::Null)
            }
        };
        let entry = said.entry(act).account(account).detail(detail);
        Ok(self.store.commit(Batch::told(vec![write], entry)))
    }

    /// Takes in what an operator tells of accounts; they are judged by it when it is durable.
    #[must_use]
    pub fn set_profiles(&self, profiles: &[(AccountId, ProfileWord)], said: &Said) -> Pending {
        let writes = profiles
            .iter()
            .map(|(account, word)| Write::put(Table::Profile, account.as_str(), word))
            .collect();
        let mut entry = said.entry(Act::ProfileSet);
        match profiles {
            [(account, word)] => {
                entry = entry.account(account).detail(json!({ "profile": word }));
            }
            _ => entry = entry.detail(json!({ "accounts": profiles.len() })),
        }
        self.store.commit(Batch::told(writes, entry))
    }

    /// Tells when a model was released, unix milliseconds, or that it is not to be heeded.
    #[must_use]
    pub fn tell_release(&self, model: &str, at_ms: Option<u64>, said: &Said) -> Pending {
        let write = match at_ms {
            Some(at_ms) => Write::put(Table::Release, model, &at_ms),
            None => Write::remove(Table::Release, model),
        };
        let detail = json!({ "model": model, "released_ms": at_ms });
        let entry = said.entry(Act::ModelChanged).detail(detail);
        self.store.commit(Batch::told(vec![write], entry))
    }

    fn set_override(&self, account: &AccountId, word: Option<Override>) {
        self.keep_of(account, |kept| kept.overridden.clone_from(&word));
        self.standing(account).change(|state| state.overridden = word);
    }

    /// Takes in a tier that another gateway has judged, or that was judged before the start.
    fn set_tier(&self, account: &AccountId, word: Option<TierWord>) {
        let standing = self.standing(account);
        self.keep_of(account, |kept| kept.judged.clone_from(&word));
        match word {
            Some(word) => {
                let label = label_of(&word);
                self.judge.hold(account, word.tier, word.suspicion, word.at_ms, label);
                standing.told(word.tier, word.suspicion, label, word.changes);
            }
            None => standing.told(Tier::None, 0.0, None, Vec::new()),
        }
    }

    /// Writes a change of tier or cluster, and tells of the former.
    pub(super) fn tell_tier(&self, standing: &Standing, decision: &Decision, version: &Version) {
        let account = &decision.account;
        let (tier, cluster) = (decision.tier, decision.cluster.map(hex_label));
        let before = self.kept.lock().get(account).and_then(|kept| kept.judged.clone());
        let was = before.as_ref().map_or(Tier::None, |word| word.tier);
        let moved = was != tier;
        if !moved && (tier == Tier::None || before.is_some_and(|word| word.cluster == cluster)) {
            return;
        }
        let changes = standing.read(|state| state.changes.iter().cloned().collect());
        let (suspicion, at_ms) = (decision.suspicion, decision.at_ms);
        let word = (tier > Tier::None).then(|| TierWord {
            tier,
            suspicion,
            at_ms,
            cluster: cluster.clone(),
            changes,
        });
        let write = match &word {
            Some(word) => Write::put(Table::Tier, account.as_str(), word),
            None => Write::remove(Table::Tier, account.as_str()),
        };
        self.keep_of(account, |kept| kept.judged = word);
        let mut batch = Batch { writes: vec![write], audit: Vec::new() };
        if moved {
            let parts = decision.contributions.iter().filter(|part| part.nats > 0.0);
            let detail = json!({
                "before": was,
                "tier": tier,
                "suspicion": decision.suspicion,
                "request": decision.request,
                "policy": version.version,
                "contributions": parts.collect::<Vec<_>>(),
            });
            let actor = Actor::Policy(version.version.to_string());
            let mut draft = Draft::new(actor, Act::TierChanged).account(account).detail(detail);
            draft.cluster = cluster;
            batch.audit.push(draft);
        }
        self.store.keep(batch);
    }
}

/// The policy's text under its version, and that it is in force.
pub(super) fn policy_batch(version: &Version) -> Batch {
    let text = Write::put(Table::Policy, &*version.version, &&*version.text);
    Batch { writes: vec![text], audit: Vec::new() }
}

fn label_of(word: &TierWord) -> Option<u64> {
    parse_label(word.cluster.as_deref()?).ok()
}

/// A register's value. One that cannot be read counts as none and is logged: it was written by this
/// program, or by another gateway's.
fn read<T: DeserializeOwned>(register: &Register) -> Option<T> {
    let value = register.value.as_deref()?;
    match serde_json::from_str(value) {
        Ok(value) => Some(value),
        Err(error) => {
            // The error's text may quote the value.
            let (line, column) = (error.line(), error.column());
            warn!(table = ?register.table, line, column, "a word in the store cannot be read");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use detectors::watermark::Layers;

    use super::super::review::Reason;
    use super::super::tests::{enforcer, enforcer_over, override_tier, word};
    use super::*;

    fn decision(account: &AccountId, tier: Tier, before: Tier) -> Decision {
        Decision {
            account: account.clone(),
            at_ms: unix_ms(),
            request: 3,
            tier,
            before,
            suspicion: 0.8,
            cluster: Some(7),
            contributions: Vec::new(),
        }
    }

    /// Waits until everything that was to be kept is written.
    fn settle(enforcer: &Enforcer) {
        enforcer.store.commit(Batch::default()).wait().unwrap();
    }

    fn acts(enforcer: &Enforcer) -> Vec<Act> {
        let query = crate::audit::Query { after: 0, limit: 100 };
        let entries = enforcer.store.audit(&query).unwrap();
        entries.iter().map(|chained| chained.entry().unwrap().act).collect()
    }

    #[test]
    fn everything_that_was_said_is_known_after_a_restart() {
        let before = enforcer("");
        let [known, judged, suspended] = ["known", "judged", "suspended"].map(AccountId::new);
        override_tier(&before, &known, word(Tier::Low).as_ref());
        before.decided(&decision(&judged, Tier::High, Tier::None));
        let suspension =
            Suspension { cluster: "c".to_owned(), since_ms: 0, until_ms: unix_ms() + 60_000 };
        let write = Write::put(Table::Suspension, suspended.as_str(), &suspension);
        before.store.commit(Batch { writes: vec![write], audit: Vec::new() }).wait().unwrap();
        let mark = before.marks.unregistered(&judged, Some(7), Layers::ALL, unix_ms()).unwrap();
        before.store.commit(Batch { writes: vec![mark], audit: Vec::new() }).wait().unwrap();
        let said = Said::by_operator("ops", "it is out");
        before.tell_release("model-1", Some(5), &said).wait().unwrap();
        let version = before.policies.in_force();
        let mut asked = crate::judge::tests::observation("reviewed", 1, "How are you?");
        assert!(before.admit(&mut asked).is_ok());
        before.put_up_for_review(&AccountId::new("reviewed"), Reason::Tier, Vec::new(), &version);
        settle(&before);

        let after = enforcer_over("", before.store.clone());
        let tier =
            |account: &AccountId| after.standing(account).read(|state| state.tier(unix_ms()));
        assert_eq!(
            (tier(&known), tier(&judged), tier(&suspended)),
            (Tier::Low, Tier::High, Tier::None)
        );
        let standing = after.standing(&suspended);
        assert!(standing.read(|state| state.suspension(unix_ms()).is_some()));
        after.standing(&judged).read(|state| {
            assert_eq!((state.cluster, state.changes.len()), (Some(7), 1));
        });
        assert_eq!(after.reviews.list(9)[0].account.as_str(), "reviewed");
        assert_eq!(after.marked().len(), 1);
        let text = after.store.get(Table::Policy, &version.version).unwrap();
        assert!(text.is_some_and(|text| text.value.is_some()));
        let wanted = [Act::OverrideSet, Act::TierChanged, Act::ModelChanged, Act::ReviewRequested];
        assert_eq!(
            acts(&before).into_iter().filter(|act| *act != Act::Started).collect::<Vec<_>>(),
            wanted
        );
    }

    #[test]
    fn another_gateways_word_is_acted_on_and_its_tier_is_not_lowered_by_the_next_request() {
        let enforcer = enforcer(
            "[limit.suspect]\nper = \"account\"\n[limit.suspect_cluster]\nper = \"cluster\"\n",
        );
        let account = AccountId::new("a");
        let told = |table, value: &str, at_ms| Write {
            table,
            key: "a".to_owned(),
            value: Some(value.to_owned()),
            stamp: Some(crate::store::Stamp { at_ms, by: "other".into() }),
        };
        let commit = |write| {
            let batch = Batch { writes: vec![write], audit: Vec::new() };
            enforcer.store.commit(batch).wait().unwrap();
        };
        let now_ms = unix_ms();
        let word = TierWord {
            tier: Tier::High,
            suspicion: 0.8,
            at_ms: now_ms,
            cluster: None,
            changes: Vec::new(),
        };
        commit(told(Table::Tier, &serde_json::to_string(&word).unwrap(), now_ms));
        let tier = || enforcer.standing(&account).read(|state| state.tier(unix_ms()));
        assert_eq!(tier(), Tier::High);
        let mut asked = crate::judge::tests::observation("a", 1, "How are you?");
        asked.at_ms = now_ms + 5;
        let leave = enforcer.admit(&mut asked).ok().unwrap();
        assert!(leave.treatment().watermark, "{:?}", leave.treatment());
        assert_eq!(tier(), Tier::High);
        // An older word changes nothing, and one that cannot be read nothing either.
        commit(told(Table::Tier, "{}", now_ms - 1));
        assert_eq!(tier(), Tier::High);
        commit(told(Table::Override, "{\"tier\": \"nonsense\"}", now_ms));
        assert_eq!(tier(), Tier::High);
    }

    #[test]
    fn a_takedown_is_undone_with_every_suspension_that_it_brought() {
        let enforcer = enforcer("");
        let said = Said::by_operator("ops", "they are known");
        assert!(enforcer.undo_takedown("00000000000000aa", &said).is_err());
        let takedown =
            super::super::takedown::tests::takedown("00000000000000aa", unix_ms() + 60_000);
        let [first, second] = ["first", "second"].map(AccountId::new);
        let writes = vec![
            Write::put(Table::Takedown, &takedown.cluster, &takedown),
            Write::put(Table::Suspension, "first", &takedown.suspension()),
            Write::put(Table::Suspension, "second", &takedown.suspension()),
        ];
        enforcer.store.commit(Batch { writes, audit: Vec::new() }).wait().unwrap();
        let suspended = |account: &AccountId| {
            enforcer.standing(account).read(|state| state.suspension(unix_ms()).is_some())
        };
        assert!(suspended(&first) && suspended(&second));
        let (_, done) = enforcer.undo_takedown("00000000000000aa", &said).unwrap();
        done.wait().unwrap();
        assert!(!suspended(&first) && !suspended(&second));
        assert!(enforcer.kept.lock().is_empty());
    }
}
