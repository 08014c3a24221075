//! What a judgement brings beside the treatment of answers: reviews and takedowns.

use std::collections::HashSet;

use detectors::engine::{Account, Decision, TieReport};
use detectors::policy::{Action, Asked};
use detectors::tier::Tier;
use detectors::{AccountId, Enforcement, EnforcementAction, Event, OrganisationId};
use serde_json::json;
use tracing::{info, warn};

use super::review::{Entry, Reason};
use super::standing::Suspension;
use super::takedown::{self, Bundle, Member, Status, Takedown};
use super::{Enforcer, TIES_SHOWN, hex_label, parse_label};
use crate::audit::{Act, Actor, Draft, Said};
use crate::limits::TAKEDOWN_MEMBERS_SHOWN_MAX;
use crate::policy::{Version, unix_ms};
use crate::store::{Batch, Pending, Table, Write};

impl Enforcer {
    /// What a higher tier brings.
    pub(super) fn follow_up(&self, decision: &Decision) {
        let version = self.policies.in_force();
        let account = &decision.account;
        let standing = self.standing(account);
        let organisation = standing.read(|state| state.organisation.clone());
        // Of no one request, so rules for routes and models do not hold here.
        let asked = Asked {
            organisation: organisation.as_ref().map(OrganisationId::as_str),
            ..Asked::default()
        };
        let actions = version.policy.actions(decision.tier, &asked);
        if actions.review {
            let shadow = version.policy.in_shadow(actions, Action::Review);
            self.count(Some(&standing), Action::Review, shadow, decision.at_ms, &version);
            if !shadow {
                self.put_up_for_review(account, Reason::Tier, Vec::new(), &version);
            }
        }
        let Some(label) = decision.cluster.filter(|_| actions.takedown) else { return };
        let shadow = version.policy.in_shadow(actions, Action::Takedown);
        self.count(Some(&standing), Action::Takedown, shadow, decision.at_ms, &version);
        let rails = &version.policy.takedown;
        let members = self.judge.cluster_members(label, |_| ()).len();
        let before = self.takedowns.get(&hex_label(label));
        let waits = rails.confirm || members > rails.members_max;
        let status = match &before {
            _ if shadow => Status::Shadow,
            // The cluster is down already: who comes to be suspected later follows.
            Some(held) if held.holds(unix_ms()) && !waits => {
                self.join_takedown(label, held, &version);
                return;
            }
            // Somebody has to say so: of one taken back, that it is to be done again; of one that
            // holds, that the guard rails are passed.
            Some(held) if held.status == Status::Undone || held.holds(unix_ms()) => {
                self.put_up_for_review(account, Reason::TakedownWaits, Vec::new(), &version);
                return;
            }
            _ if waits => Status::Waiting,
            _ => {
                let takedown =
                    self.plan(label, account, &version, Status::Active, by_policy(&version));
                self.take_down(takedown);
                return;
            }
        };
        let takedown = self.plan(label, account, &version, status, by_policy(&version));
        if status == Status::Waiting {
            warn!(cluster = takedown.cluster, members, "a takedown waits for an operator's word");
            self.put_up_for_review(account, Reason::TakedownWaits, Vec::new(), &version);
        }
        // One that already waits, or would have been, is planned anew with every rise: told once.
        let told = before.is_some_and(|held| held.status == status);
        let mut batch = Batch {
            writes: vec![Write::put(Table::Takedown, &takedown.cluster, &takedown)],
            audit: Vec::new(),
        };
        if !told {
            let detail = json!({ "members": members, "status": status });
            let draft = Draft::new(Actor::Policy(version.version.to_string()), Act::TakedownWaits);
            batch.audit.push(draft.cluster(&takedown.cluster).account(account).detail(detail));
        }
        self.takedowns.put(takedown);
        self.store.keep(batch);
    }

    fn plan(
        &self,
        label: u64,
        trigger: &AccountId,
        version: &Version,
        status: Status,
        said: Said,
    ) -> Takedown {
        let rails = &version.policy.takedown;
        let now_ms = unix_ms();
        let members = self.judge.cluster_members(label, Member::of);
        let own = members.iter().find(|member| member.account == *trigger);
        let own = own.and_then(|member| member.organisation);
        let overridden = |account: &AccountId| {
            self.standing(account).read(|s| s.operators_word(now_ms).is_some())
        };
        let selection = takedown::select(members, own, rails, overridden);
        let indicators =
            |account: &AccountId| self.standing(account).read(|state| state.indicators.clone());
        let bundle =
            Bundle::of(&selection.suspended, indicators, |account| self.marks.tokens(account));
        Takedown {
            cluster: hex_label(label),
            status,
            by: said.actor,
            reason: said.reason,
            at_ms: now_ms,
            until_ms: now_ms.saturating_add((rails.expires_hours * 3_600_000.0) as u64),
            trigger: trigger.clone(),
            policy: version.version.clone(),
            suspended: selection.suspended.into_iter().map(|member| member.account).collect(),
            left_out: selection.left_out,
            indicators: bundle,
        }
    }

    /// The policy's word: it holds although it could not be written yet.
    fn take_down(&self, takedown: Takedown) {
        self.log_takedown(&takedown);
        let batch = batch_of(&takedown, &takedown.suspended, Act::TakenDown);
        self.suspend_all(&takedown);
        self.takedowns.put(takedown);
        self.store.keep(batch);
    }

    fn log_takedown(&self, takedown: &Takedown) {
        warn!(
            cluster = takedown.cluster,
            suspended = takedown.suspended.len(),
            left_out = takedown.left_out.len(),
            by = ?takedown.by,
            "cluster taken down"
        );
    }

    /// Those who have come to be suspected since a takedown follow; it stays what it was.
    fn join_takedown(&self, label: u64, held: &Takedown, version: &Version) {
        let said = Said { actor: held.by.clone(), reason: held.reason.clone() };
        let now = self.plan(label, &held.trigger, version, Status::Active, said);
        let new = |account: &AccountId| !held.suspended.contains(account);
        let newcomers: Vec<AccountId> = now.suspended.into_iter().filter(new).collect();
        if newcomers.is_empty() {
            return;
        }
        info!(cluster = held.cluster, suspended = newcomers.len(), "members follow a takedown");
        let takedown = Takedown {
            suspended: [held.suspended.clone(), newcomers.clone()].concat(),
            left_out: now.left_out,
            indicators: now.indicators,
            ..held.clone()
        };
        let batch = batch_of(&takedown, &newcomers, Act::TakedownJoined);
        self.suspend_all(&takedown);
        self.takedowns.put(takedown);
        self.store.keep(batch);
    }

    fn suspend_all(&self, takedown: &Takedown) {
        for account in &takedown.suspended {
            self.suspend(account, Some(takedown.suspension()));
        }
    }

    /// Suspends an account or ends its suspension, and has the engine remember the former.
    pub(super) fn suspend(&self, account: &AccountId, suspension: Option<Suspension>) {
        let since_ms = suspension.as_ref().map(|suspension| suspension.since_ms);
        if self.set_suspension(account, suspension)
            && let Some(at_ms) = since_ms
        {
            self.judge.observe(&Event::Enforcement(Enforcement {
                at_ms,
                account: account.clone(),
                action: EnforcementAction::Suspend,
            }));
        }
    }

    /// Suspends an account or ends its suspension, in what is acted on; whether that is new.
    pub(super) fn set_suspension(
        &self,
        account: &AccountId,
        suspension: Option<Suspension>,
    ) -> bool {
        let before = self
            .keep_of(account, |kept| std::mem::replace(&mut kept.suspended, suspension.clone()));
        if before == suspension {
            return false;
        }
        self.standing(account).change(|state| state.suspended = suspension);
        true
    }

    /// An operator's word: takes a cluster down now. It holds when the answer is durable.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn confirm_takedown(
        &self,
        cluster: &str,
        said: &Said,
    ) -> Result<(Takedown, Pending), String> {
        let label = parse_label(cluster)?;
        let members = self.judge.cluster_members(label, Member::of);
        let surest = members.iter().max_by(|a, b| a.suspicion.total_cmp(&b.suspicion));
        let Some(surest) = surest else { return Err(format!("no cluster {cluster}")) };
        let trigger = match self.takedowns.get(cluster) {
            Some(waiting) => waiting.trigger,
            None => surest.account.clone(),
        };
        let version = self.policies.in_force();
        let takedown = self.plan(label, &trigger, &version, Status::Active, said.clone());
        self.log_takedown(&takedown);
        let batch = batch_of(&takedown, &takedown.suspended, Act::TakenDown);
        Ok((takedown, self.store.commit(batch)))
    }

    /// Takes a takedown back: every suspension that it brought ends, when the answer is durable.
    ///
    /// # Errors
    /// When there is none in force.
    pub fn undo_takedown(&self, cluster: &str, said: &Said) -> Result<(Takedown, Pending), String> {
        let held = self.takedowns.get(cluster).filter(|held| held.holds(unix_ms()));
        let held = held.ok_or_else(|| format!("no takedown of cluster {cluster} is in force"))?;
        let undone = Takedown { status: Status::Undone, ..held };
        let mut writes: Vec<Write> = self
            .suspended_by(cluster)
            .into_iter()
            .map(|account| Write::remove(Table::Suspension, account.as_str()))
            .collect();
        let detail = json!({ "members": writes.len() });
        writes.push(Write::put(Table::Takedown, cluster, &undone));
        let entry = said.entry(Act::TakedownUndone).cluster(cluster).detail(detail);
        info!(cluster, "takedown taken back");
        Ok((undone, self.store.commit(Batch::told(writes, entry))))
    }

    /// Every takedown, the newest first.
    #[must_use]
    pub fn takedowns(&self) -> Vec<Takedown> {
        self.takedowns.list()
    }

    /// Every cluster with its size, the largest first.
    #[must_use]
    pub fn clusters(&self) -> Vec<(String, usize)> {
        let clusters = self.judge.clusters().into_iter();
        clusters.map(|(label, members)| (hex_label(label), members)).collect()
    }

    pub(super) fn put_up_for_review(
        &self,
        account: &AccountId,
        reason: Reason,
        marks_of: Vec<AccountId>,
        version: &Version,
    ) {
        let now_ms = unix_ms();
        let Some((decision, mut ties)) = self.judge.explain(account, now_ms) else { return };
        ties.truncate(TIES_SHOWN);
        let mut findings = decision.contributions;
        findings.retain(|part| part.nats > 0.0);
        findings.sort_by(|a, b| b.nats.total_cmp(&a.nats));
        let entry = Entry {
            account: account.clone(),
            reason,
            since_ms: now_ms,
            at_ms: now_ms,
            tier: decision.tier,
            suspicion: decision.suspicion,
            cluster: decision.cluster.map(hex_label),
            requests: decision.request,
            policy: version.version.clone(),
            findings: json!(findings),
            ties: json!(ties),
            marks_of,
            taken_by: None,
            taken_ms: None,
        };
        let (entry, pushed_out) = self.reviews.put(entry);
        let mut writes = vec![Write::put(Table::Review, account.as_str(), &entry)];
        if let Some(other) = pushed_out {
            self.metrics.reviews_dropped.inc();
            writes.push(Write::remove(Table::Review, other.as_str()));
        }
        let actor = Actor::Policy(version.version.to_string());
        let detail = json!({ "because": reason, "tier": entry.tier, "suspicion": entry.suspicion });
        let draft = Draft::new(actor, Act::ReviewRequested).account(account).detail(detail);
        self.store.keep(Batch::told(writes, draft));
    }

    /// Takes an account out of the queue: somebody has decided. `decision` is what.
    pub fn decide_review(
        &self,
        account: &AccountId,
        decision: &str,
        said: &Said,
    ) -> Option<(Entry, Pending)> {
        let entry = self.reviews.get(account)?;
        let detail = json!({ "decision": decision, "because": entry.reason, "tier": entry.tier });
        let told = said.entry(Act::ReviewDecided).account(account).detail(detail);
        let writes = vec![Write::remove(Table::Review, account.as_str())];
        Some((entry, self.store.commit(Batch::told(writes, told))))
    }

    /// Has somebody look at an account in the queue, so that nobody else does.
    pub fn take_review(&self, account: &AccountId, said: &Said) -> Taken {
        let Some(entry) = self.reviews.get(account) else { return Taken::Nothing };
        let now_ms = unix_ms();
        let by = said.actor.name();
        if entry.is_anothers(by, now_ms) {
            return Taken::ByAnother;
        }
        let entry = Entry { taken_by: Some(by.to_owned()), taken_ms: Some(now_ms), ..entry };
        let writes = vec![Write::put(Table::Review, account.as_str(), &entry)];
        let told = said.entry(Act::ReviewTaken).account(account);
        Taken::Taken(Box::new(entry), self.store.commit(Batch::told(writes, told)))
    }

    /// Up to `limit` members of a cluster, the most suspected first, each with its ties to other
    /// members; and how many there are. The engine is free for others between two of them.
    #[must_use]
    pub fn cluster(&self, cluster: &str, limit: usize) -> (Vec<ClusterMember>, usize) {
        let Ok(label) = parse_label(cluster) else { return (Vec::new(), 0) };
        let of =
            |account: &Account| (account.id.clone(), account.held.tier, account.held.suspicion);
        let mut members = self.judge.cluster_members(label, of);
        let all: HashSet<AccountId> = members.iter().map(|(id, _, _)| id.clone()).collect();
        members.sort_by(|a, b| b.2.total_cmp(&a.2).then_with(|| a.0.cmp(&b.0)));
        members.truncate(limit);
        let with_ties = members.into_iter().map(|(account, tier, suspicion)| {
            let mut ties = self.judge.ties(&account);
            ties.retain(|tie| all.contains(&tie.account));
            ties.truncate(TIES_SHOWN);
            ClusterMember { account, tier, suspicion, ties }
        });
        (with_ties.collect(), all.len())
    }
}

/// What came of asking for an account in the queue.
#[derive(Debug)]
pub enum Taken {
    /// It is theirs, when that is durable.
    Taken(Box<Entry>, Pending),
    /// Somebody else looks at it.
    ByAnother,
    /// It is not in the queue.
    Nothing,
}

/// A member of a cluster.
#[derive(Debug)]
pub struct ClusterMember {
    /// Its pseudonym.
    pub account: AccountId,
    /// Tier by the last judgement.
    pub tier: Tier,
    /// Suspicion at the last judgement, 0..1.
    pub suspicion: f64,
    /// Ties to other members, the strongest first.
    pub ties: Vec<TieReport>,
}

fn by_policy(version: &Version) -> Said {
    Said { actor: Actor::Policy(version.version.to_string()), reason: String::new() }
}

/// What a takedown writes: itself, the suspensions of these members, and the entry that tells.
fn batch_of(takedown: &Takedown, members: &[AccountId], act: Act) -> Batch {
    let suspension = takedown.suspension();
    let mut writes: Vec<Write> = members
        .iter()
        .map(|account| Write::put(Table::Suspension, account.as_str(), &suspension))
        .collect();
    writes.push(Write::put(Table::Takedown, &takedown.cluster, takedown));
    let shown = |accounts: &mut dyn Iterator<Item = &AccountId>| {
        accounts.take(TAKEDOWN_MEMBERS_SHOWN_MAX).cloned().collect::<Vec<_>>()
    };
    let detail = json!({
        "members": shown(&mut members.iter()),
        "suspended": takedown.suspended.len(),
        "left_out": &takedown.left_out[..takedown.left_out.len().min(TAKEDOWN_MEMBERS_SHOWN_MAX)],
        "until_ms": takedown.until_ms,
        "policy": takedown.policy,
        "trigger": takedown.trigger,
    });
    let draft = Draft::new(takedown.by.clone(), act).cluster(&takedown.cluster);
    Batch::told(writes, draft.because(&takedown.reason).detail(detail))
}
