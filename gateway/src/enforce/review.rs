//! The queue of accounts that somebody should look at, with the evidence as it was.

use std::collections::VecDeque;
use std::sync::Arc;

use detectors::AccountId;
use detectors::tier::Tier;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::limits::REVIEW_MAX;

/// How long an account that somebody looks at is theirs.
const TAKEN_MS: u64 = 3_600_000;

/// Why an account is in the queue; what weighs more comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its tier has risen.
    Tier,
    /// It handed in what was served to somebody else.
    Mark,
    /// The takedown of its cluster waits for an operator's word.
    TakedownWaits,
}

/// An account in the queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Whose.
    pub account: AccountId,
    /// Why.
    pub reason: Reason,
    /// Since when, unix milliseconds.
    pub since_ms: u64,
    /// When this evidence was taken, unix milliseconds.
    pub at_ms: u64,
    /// Tier then.
    pub tier: Tier,
    /// Suspicion then, 0..1.
    pub suspicion: f64,
    /// Cluster then.
    pub cluster: Option<String>,
    /// Its exchanges until then.
    pub requests: u32,
    /// Version of the policy by which it was judged.
    pub policy: Arc<str>,
    /// What the detectors found, the largest part first.
    pub findings: Value,
    /// The strongest ties.
    pub ties: Value,
    /// Accounts to whom was served what it handed in.
    pub marks_of: Vec<AccountId>,
    /// Who looks at it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_by: Option<String>,
    /// Since when, unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_ms: Option<u64>,
}

impl Entry {
    /// Whether somebody else looks at it.
    #[must_use]
    pub fn is_anothers(&self, by: &str, now_ms: u64) -> bool {
        let another = self.taken_by.as_ref().is_some_and(|taken| taken != by);
        another && self.taken_ms.is_some_and(|at| now_ms < at.saturating_add(TAKEN_MS))
    }
}

/// The queue: one entry an account, the oldest first.
#[derive(Debug, Default)]
pub struct Queue {
    entries: Mutex<VecDeque<Entry>>,
}

impl Queue {
    /// Puts an account in; what was there of it is replaced and keeps its place. Returns the entry as
    /// it is now, and the account that was pushed out for it.
    pub fn put(&self, mut entry: Entry) -> (Entry, Option<AccountId>) {
        let mut entries = self.entries.lock();
        let same = |held: &&mut Entry| held.account == entry.account;
        if let Some(held) = entries.iter_mut().find(same) {
            entry.since_ms = entry.since_ms.min(held.since_ms);
            entry.reason = entry.reason.max(held.reason);
            if entry.marks_of.is_empty() {
                entry.marks_of = std::mem::take(&mut held.marks_of);
            }
            if entry.taken_by.is_none() {
                entry.taken_by = held.taken_by.take();
                entry.taken_ms = held.taken_ms;
            }
            *held = entry.clone();
            return (entry, None);
        }
        let full = entries.len() == REVIEW_MAX;
        let pushed_out = if full { entries.pop_front() } else { None };
        entries.push_back(entry.clone());
        (entry, pushed_out.map(|entry| entry.account))
    }

    /// The entry of an account.
    #[must_use]
    pub fn get(&self, account: &AccountId) -> Option<Entry> {
        self.entries.lock().iter().find(|held| held.account == *account).cloned()
    }

    /// Takes an account out: somebody has looked at it.
    pub fn take(&self, account: &AccountId) -> Option<Entry> {
        let mut entries = self.entries.lock();
        let place = entries.iter().position(|held| held.account == *account)?;
        entries.remove(place)
    }

    /// Up to `limit` entries, the highest suspicion first.
    #[must_use]
    pub fn list(&self, limit: usize) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.entries.lock().iter().cloned().collect();
        entries
            .sort_by(|a, b| b.suspicion.total_cmp(&a.suspicion).then(a.since_ms.cmp(&b.since_ms)));
        entries.truncate(limit);
        entries
    }

    /// Accounts in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// Whether nobody is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(account: &str, suspicion: f64, at_ms: u64) -> Entry {
        Entry {
            account: AccountId::new(account),
            reason: Reason::Tier,
            since_ms: at_ms,
            at_ms,
            tier: Tier::Low,
            suspicion,
            cluster: None,
            requests: 1,
            policy: "p".into(),
            findings: Value::Null,
            ties: Value::Null,
            marks_of: Vec::new(),
            taken_by: None,
            taken_ms: None,
        }
    }

    #[test]
    fn an_account_is_in_the_queue_once() {
        let queue = Queue::default();
        queue.put(entry("a", 0.4, 1));
        queue.put(entry("b", 0.6, 2));
        queue.put(Entry { reason: Reason::TakedownWaits, ..entry("a", 0.5, 3) });
        queue.put(entry("a", 0.7, 4));
        let list = queue.list(10);
        let seen: Vec<_> =
            list.iter().map(|e| (e.account.as_str(), e.since_ms, e.at_ms, e.reason)).collect();
        assert_eq!(seen, [("a", 1, 4, Reason::TakedownWaits), ("b", 2, 2, Reason::Tier)]);
        assert!(queue.take(&AccountId::new("a")).is_some());
        assert!(queue.take(&AccountId::new("a")).is_none());
        assert_eq!(queue.list(10).len(), 1);
    }

    #[test]
    fn the_oldest_is_pushed_out() {
        let queue = Queue::default();
        for number in 0..REVIEW_MAX {
            assert_eq!(queue.put(entry(&number.to_string(), 0.5, number as u64)).1, None);
        }
        assert_eq!(queue.put(entry("new", 0.5, 9)).1, Some(AccountId::new("0")));
        assert_eq!(queue.len(), REVIEW_MAX);
        assert!(queue.take(&AccountId::new("0")).is_none());
    }
}
