//! How an account stands: its tier, what an operator said of it, whether it is suspended.
//!
//! Requests read it without asking the engine, and answers under way look at its generation, one
//! atomic number, to see whether anything has changed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use detectors::engine::Decision;
use detectors::policy::Action;
use detectors::tier::Tier;
use detectors::{AccountId, HttpCapture, Observation, OrganisationId, TlsCapture};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::limits::{INDICATORS_MAX, STANDING_EVENTS_MAX};

/// That an account was asked to verify is told again after so long.
const VERIFICATION_TOLD_MS: u64 = 3_600_000;

/// An operator's word on an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// The tier that holds.
    pub tier: Tier,
    /// Why.
    pub reason: String,
    /// Who said so.
    pub by: String,
    /// When it was set, unix milliseconds.
    pub since_ms: u64,
    /// When it ends, unix milliseconds; `None`: when it is removed.
    pub until_ms: Option<u64>,
}

/// A suspension by a takedown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspension {
    /// The cluster that was taken down.
    pub cluster: String,
    /// When, unix milliseconds.
    pub since_ms: u64,
    /// When it ends, unix milliseconds.
    pub until_ms: u64,
}

/// A change of tier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TierChange {
    /// When, unix milliseconds.
    pub at_ms: u64,
    /// The account's exchange, from 1.
    pub request: u32,
    /// Tier before.
    pub before: Tier,
    /// Tier from then on.
    pub tier: Tier,
    /// Suspicion, 0..1.
    pub suspicion: f64,
    /// Version of the policy by which it was judged.
    pub policy: Arc<str>,
    /// The detectors that had the largest part, with their parts in nats.
    pub because: Vec<(String, f64)>,
}

/// An action, the first and the last time in a row of the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ActionTaken {
    /// What was done.
    pub action: Action,
    /// Whether it was only counted.
    pub shadow: bool,
    /// The first time, unix milliseconds.
    pub first_ms: u64,
    /// The last time, unix milliseconds.
    pub last_ms: u64,
    /// How often.
    pub count: u64,
    /// Version of the policy that says so.
    pub policy: Arc<str>,
}

/// What of an account's traffic goes into an indicator bundle. Kept of suspected accounts only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Indicators {
    /// Addresses.
    pub ips: Vec<String>,
    /// MD5 of JA3 strings.
    pub ja3: Vec<String>,
    /// MD5 of JA3S strings.
    pub ja3s: Vec<String>,
    /// JA4.
    pub ja4: Vec<String>,
    /// HTTP/2 fingerprints.
    pub h2: Vec<String>,
}

impl Indicators {
    fn note(&mut self, observation: &Observation) {
        keep(&mut self.ips, &observation.ip.to_canonical().to_string());
        if let Some(TlsCapture { ja3_md5, ja3s_md5, ja4, .. }) = observation.tls.as_deref() {
            keep(&mut self.ja3, ja3_md5);
            keep(&mut self.ja3s, ja3s_md5.as_deref().unwrap_or_default());
            keep(&mut self.ja4, ja4);
        }
        if let HttpCapture { h2: Some(h2), .. } = &observation.http {
            keep(&mut self.h2, &h2.akamai);
        }
    }
}

/// The latest few different values.
fn keep(values: &mut Vec<String>, value: &str) {
    // Fingerprints are short; what is not comes from a client that plays with us.
    if value.is_empty() || value.len() > 256 || values.iter().any(|kept| kept == value) {
        return;
    }
    if values.len() == INDICATORS_MAX {
        values.remove(0);
    }
    values.push(value.to_owned());
}

/// How one account stands.
#[derive(Debug)]
pub struct Standing {
    /// Whose.
    pub account: AccountId,
    generation: AtomicU32,
    state: Mutex<State>,
}

/// What a standing holds.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Tier by the last judgement.
    pub judged: Tier,
    /// Suspicion at the last judgement, 0..1.
    pub suspicion: f64,
    /// Cluster by the last judgement.
    pub cluster: Option<u64>,
    /// An operator's word, perhaps over.
    pub overridden: Option<Override>,
    /// A suspension, perhaps over.
    pub suspended: Option<Suspension>,
    /// The latest changes of tier.
    pub changes: VecDeque<TierChange>,
    /// The latest actions.
    pub actions: VecDeque<ActionTaken>,
    /// For an indicator bundle, once suspected.
    pub indicators: Option<Box<Indicators>>,
    /// Its organisation, once the engine was told.
    pub organisation: Option<OrganisationId>,
    /// When it was last told that it was asked to verify, unix milliseconds.
    pub asked_to_verify_ms: u64,
}

impl State {
    /// The tier that counts: an operator's word before the judgement.
    #[must_use]
    pub fn tier(&self, now_ms: u64) -> Tier {
        self.operators_word(now_ms).map_or(self.judged, |word| word.tier)
    }

    /// The operator's word, while it holds.
    #[must_use]
    pub fn operators_word(&self, now_ms: u64) -> Option<&Override> {
        let holds = |word: &&Override| word.until_ms.is_none_or(|until| now_ms < until);
        self.overridden.as_ref().filter(holds)
    }

    /// The suspension, while it holds: an operator's word on the account ends it.
    #[must_use]
    pub fn suspension(&self, now_ms: u64) -> Option<&Suspension> {
        if self.operators_word(now_ms).is_some() {
            return None;
        }
        self.suspended.as_ref().filter(|suspension| now_ms < suspension.until_ms)
    }
}

impl Standing {
    /// An account that nothing is known of.
    #[must_use]
    pub fn new(account: AccountId) -> Self {
        Self { account, generation: AtomicU32::new(0), state: Mutex::default() }
    }

    /// Changes whenever something changes that actions depend on.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reads what is held.
    pub fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        read(&self.state.lock())
    }

    /// Changes what is held; answers under way will look.
    pub fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.state.lock());
        self.generation.fetch_add(1, Ordering::AcqRel);
        result
    }

    /// Takes in a judgement. Returns whether tier or cluster have changed, and whether the tier is
    /// higher than before.
    pub fn judged(&self, decision: &Decision, policy: &Arc<str>) -> (bool, bool) {
        let mut state = self.state.lock();
        let before = state.judged;
        state.suspicion = decision.suspicion;
        if before == decision.tier && state.cluster == decision.cluster {
            return (false, false);
        }
        state.judged = decision.tier;
        state.cluster = decision.cluster;
        if before != decision.tier {
            let mut parts: Vec<_> = decision
                .contributions
                .iter()
                .filter(|part| part.nats > 0.0)
                .map(|part| (part.finding.detector.to_owned(), part.nats))
                .collect();
            parts.sort_by(|a, b| b.1.total_cmp(&a.1));
            parts.truncate(5);
            if state.changes.len() == STANDING_EVENTS_MAX {
                state.changes.pop_front();
            }
            state.changes.push_back(TierChange {
                at_ms: decision.at_ms,
                request: decision.request,
                before,
                tier: decision.tier,
                suspicion: decision.suspicion,
                policy: policy.clone(),
                because: parts,
            });
        }
        drop(state);
        self.generation.fetch_add(1, Ordering::AcqRel);
        (true, decision.tier > before)
    }

    /// Takes in a tier that was judged elsewhere.
    pub fn told(&self, tier: Tier, suspicion: f64, cluster: Option<u64>, changes: Vec<TierChange>) {
        self.change(|state| {
            state.judged = tier;
            state.suspicion = suspicion;
            state.cluster = cluster;
            let dropped = changes.len().saturating_sub(STANDING_EVENTS_MAX);
            state.changes = changes.into_iter().skip(dropped).collect();
        });
    }

    /// Whether that it was asked to verify is to be told again.
    pub fn asks_to_verify(&self, now_ms: u64) -> bool {
        let mut state = self.state.lock();
        let due = now_ms.saturating_sub(state.asked_to_verify_ms) >= VERIFICATION_TOLD_MS;
        if due {
            state.asked_to_verify_ms = now_ms;
        }
        due
    }

    /// Remembers an action.
    pub fn acted(&self, action: Action, shadow: bool, at_ms: u64, policy: &Arc<str>) {
        let mut state = self.state.lock();
        let same = |taken: &&mut ActionTaken| {
            taken.action == action && taken.shadow == shadow && taken.policy == *policy
        };
        if let Some(taken) = state.actions.iter_mut().find(same) {
            taken.last_ms = at_ms;
            taken.count += 1;
            return;
        }
        if state.actions.len() == STANDING_EVENTS_MAX {
            state.actions.pop_front();
        }
        let policy = policy.clone();
        state.actions.push_back(ActionTaken {
            action,
            shadow,
            first_ms: at_ms,
            last_ms: at_ms,
            count: 1,
            policy,
        });
    }

    /// Remembers where a suspected account comes from.
    pub fn note_indicators(&self, observation: &Observation) {
        self.state.lock().indicators.get_or_insert_default().note(observation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::tests::observation;

    fn decision(tier: Tier, cluster: Option<u64>) -> Decision {
        Decision {
            account: AccountId::new("a"),
            at_ms: 1,
            request: 1,
            tier,
            before: Tier::None,
            suspicion: 0.5,
            cluster,
            contributions: Vec::new(),
        }
    }

    #[test]
    fn an_operators_word_counts_until_it_ends_and_lifts_a_suspension() {
        let standing = Standing::new(AccountId::new("a"));
        let policy: Arc<str> = "p".into();
        assert_eq!(standing.judged(&decision(Tier::High, Some(1)), &policy), (true, true));
        let generation = standing.generation();
        standing.change(|state| {
            state.suspended =
                Some(Suspension { cluster: "c".to_owned(), since_ms: 0, until_ms: 1_000 });
        });
        assert_ne!(standing.generation(), generation);
        standing.change(|state| {
            let word = Override {
                tier: Tier::Low,
                reason: "known".to_owned(),
                by: "ops".to_owned(),
                since_ms: 0,
                until_ms: Some(500),
            };
            state.overridden = Some(word);
        });
        let at = |ms| standing.read(|state| (state.tier(ms), state.suspension(ms).is_some()));
        assert_eq!(at(499), (Tier::Low, false));
        assert_eq!(at(500), (Tier::High, true));
        assert_eq!(at(1_000), (Tier::High, false));
    }

    #[test]
    fn only_what_matters_changes_the_generation() {
        let standing = Standing::new(AccountId::new("a"));
        let policy: Arc<str> = "p".into();
        let mut generations = vec![standing.generation()];
        let told = [
            (decision(Tier::Low, None), (true, true)),
            (decision(Tier::Low, None), (false, false)),
            (decision(Tier::Low, Some(4)), (true, false)),
            (decision(Tier::None, Some(4)), (true, false)),
        ];
        for (decision, rose) in told {
            assert_eq!(standing.judged(&decision, &policy), rose);
            generations.push(standing.generation());
        }
        standing.acted(Action::Pace, false, 1, &policy);
        generations.push(standing.generation());
        assert_eq!(generations, [0, 1, 1, 2, 3, 3]);
        assert_eq!(standing.read(|state| state.changes.len()), 2);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let standing = Standing::new(AccountId::new("a"));
        for number in 0..100_u8 {
            let policy: Arc<str> = number.to_string().into();
            let tier = if number % 2 == 0 { Tier::High } else { Tier::Low };
            standing.judged(&decision(tier, None), &policy);
            standing.acted(Action::Pace, false, u64::from(number), &policy);
            let mut seen = observation("a", 1, "x");
            seen.ip = [192, 0, 2, number].into();
            standing.note_indicators(&seen);
        }
        standing.acted(Action::Pace, false, 200, &"99".into());
        standing.read(|state| {
            assert_eq!(state.changes.len(), STANDING_EVENTS_MAX);
            assert_eq!(state.actions.len(), STANDING_EVENTS_MAX);
            assert_eq!(
                state.actions.back().map(|taken| (taken.count, taken.last_ms)),
                Some((2, 200))
            );
            let ips = &state.indicators.as_ref().unwrap().ips;
            assert_eq!((ips.len(), ips.last().unwrap().as_str()), (INDICATORS_MAX, "192.0.2.99"));
        });
    }
}
