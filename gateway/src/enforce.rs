//! What is done about an account: from its standing and the policy to a treatment of each answer.
//!
//! A request asks [`Enforcer::admit`] before its upstream is asked: it is judged, refused or let
//! through with a [`Leave`], which says how its answer is treated and is looked at again while the
//! answer streams. What takes longer (evidence for the review queue, takedowns) runs on a thread of
//! its own.

pub mod after;
pub mod kept;
pub mod marks;
pub mod review;
pub mod standing;
pub mod takedown;
pub mod throttle;

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use detectors::detector::Pace;
use detectors::engine::{Decision, TieReport};
use detectors::finding::Finding;
use detectors::policy::{Action, Actions, Asked, Policy, WhenApart, WhenLate};
use detectors::seen::Answered;
use detectors::tier::Tier;
use detectors::watermark::{Candidate, Layers, Report};
use detectors::{AccountId, Answer, Conversation, Declared, Event, Observation, OrganisationId};
use moka::sync::Cache;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;
use tracing::{info, warn};

use self::kept::{Kept, policy_batch};
use self::marks::{Fences, Marks};
use self::review::{Queue, Reason};
use self::standing::{Override, Standing, Suspension};
use self::takedown::Log;
use self::throttle::{Admission, Throttle, Tokens, Whose};
use crate::audit::{Act, Actor, Draft, Said};
use crate::fleet::Presence;
use crate::judge::{Judge, Judged};
use crate::limits::{ENFORCE_QUEUE_MAX, STANDINGS_MAX};
use crate::metrics::Metrics;
use crate::policy::{PolicyStore, Version, unix_ms};
use crate::store::{Batch, Pending, Store};
use crate::wire::{Changes, Reasoning, Refusal, RefusalKind};

/// Shortest pause after which canaries served since are looked for in prompts.
const SEARCH_REFRESH: Duration = Duration::from_millis(500);
/// The pause is at least so many times what the search took to be made: with the most subjects that
/// is a third of a second, and every new one asks for it.
const SEARCH_PAUSE: u32 = 20;
/// Accounts whose marks came back that are shown with it.
const OWNERS_SHOWN: usize = 20;
/// Ties shown of an account.
const TIES_SHOWN: usize = 20;
/// Longest wait until a mark is on record; an answer that is ready sooner goes without.
const MARK_REGISTRATION_MAX: Duration = Duration::from_secs(1);

/// Judges requests and says what is done about them.
pub struct Enforcer {
    /// The policy in force.
    pub policies: Arc<PolicyStore>,
    /// Accounts to be looked at.
    pub reviews: Queue,
    judge: Arc<Judge>,
    /// The cells of all limits.
    pub throttle: Arc<Throttle>,
    store: Arc<Store>,
    /// Whether the other gateways are heard from, where there are any.
    presence: OnceLock<Arc<Presence>>,
    standings: Cache<AccountId, Arc<Standing>>,
    /// What must not be forgotten with a standing that is let go.
    kept: Mutex<HashMap<AccountId, Kept>>,
    takedowns: Log,
    marks: Marks,
    afterwards: SyncSender<FollowUp>,
    to_do: Mutex<Option<Receiver<FollowUp>>>,
    /// What other providers and earlier takedowns tell of.
    indicators: OnceLock<Arc<crate::ioc::Exchange>>,
    metrics: Arc<Metrics>,
}

/// What is done on a thread of its own.
enum FollowUp {
    /// An account's tier has risen.
    Rise(Decision),
    /// An account handed in what was served to others.
    Mark { account: AccountId, owners: Vec<AccountId> },
}

/// How an answer is treated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Treatment {
    /// Tokens a second.
    pub pace: Option<f64>,
    /// Whether it is marked.
    pub watermark: bool,
    /// Whether placeholders are varied.
    pub canary: bool,
    /// The layers that mark it.
    pub layers: Option<Layers>,
    /// Keep reasoning out; with the words that stand in its place.
    pub withhold_reasoning: Option<String>,
    /// End it now.
    pub end: Option<Denied>,
}

impl Treatment {
    /// Whether the answer passes as it is.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// What it is told.
    pub kind: RefusalKind,
    /// In words.
    pub message: String,
    /// Where to go.
    pub link: Option<String>,
    /// Label of the metric.
    pub reason: &'static str,
}

impl Denied {
    /// As a refusal of the exchange of this name.
    #[must_use]
    pub fn refusal(&self, request_id: &str) -> Refusal {
        let mut refusal = Refusal::new(self.kind, self.message.clone());
        refusal.request_id = request_id.to_owned();
        refusal.link.clone_from(&self.link);
        refusal
    }
}

/// Leave to be served.
pub struct Leave {
    standing: Option<Arc<Standing>>,
    generation: u32,
    route: Arc<str>,
    model: Option<String>,
    organisation: Option<OrganisationId>,
    follows_text: bool,
    admission: Option<Admission>,
    treatment: Treatment,
    /// Marks that must be on record before the first of them goes out.
    registration: Option<Pending>,
}

impl Leave {
    /// Whether the text of its answer is followed, so that it can be marked from its middle on.
    #[must_use]
    pub fn follows_text(&self) -> bool {
        self.follows_text
    }

    /// How the answer is treated.
    #[must_use]
    pub fn treatment(&self) -> &Treatment {
        &self.treatment
    }

    /// Whether the account's standing has changed since the treatment was worked out. One atomic
    /// load: asked for every event of every answer.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.standing.as_ref().is_some_and(|standing| standing.generation() != self.generation)
    }
}

/// Everything that is shown of an account.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// Its pseudonym.
    pub account: AccountId,
    /// The tier that counts.
    pub tier: Tier,
    /// The tier by the last judgement.
    pub judged_tier: Tier,
    /// Suspicion now, 0..1.
    pub suspicion: f64,
    /// Exchanges.
    pub requests: u32,
    /// Cluster, 16 hex digits.
    pub cluster: Option<String>,
    /// An operator's word, while it holds.
    #[serde(rename = "override")]
    pub overridden: Option<Override>,
    /// A suspension, while it holds.
    pub suspended: Option<Suspension>,
    /// Version of the policy in force.
    pub policy: Arc<str>,
    /// What each detector finds now, with its evidence; the largest part first.
    pub findings: Vec<ExplainedFinding>,
    /// Who it is tied to, the strongest first.
    pub ties: Vec<TieReport>,
    /// The latest changes of tier, the newest first.
    pub decisions: Vec<standing::TierChange>,
    /// The latest actions.
    pub actions: Vec<standing::ActionTaken>,
}

/// A detector's finding as it is shown.
#[derive(Debug, Serialize)]
pub struct ExplainedFinding {
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
    /// Techniques of the threat model that it bears on.
    pub techniques: &'static [&'static str],
    /// Whether it is known before the upstream is asked.
    pub pace: Pace,
    /// Weight in the fusion.
    pub weight: f64,
    /// Part in the suspicion, nats.
    pub nats: f64,
}

impl Enforcer {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        policies: Arc<PolicyStore>,
        judge: Arc<Judge>,
        key: detectors::keyed::Key,
        marks: Marks,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (afterwards, to_do) = sync_channel(ENFORCE_QUEUE_MAX);
        Self {
            policies,
            reviews: Queue::default(),
            judge,
            throttle: Arc::new(Throttle::new(key)),
            store,
            presence: OnceLock::new(),
            standings: Cache::new(STANDINGS_MAX),
            kept: Mutex::default(),
            takedowns: Log::default(),
            marks,
            afterwards,
            to_do: Mutex::new(Some(to_do)),
            indicators: OnceLock::new(),
            metrics,
        }
    }

    /// Has requests looked up among indicators.
    pub fn look_up_in(&self, indicators: Arc<crate::ioc::Exchange>) {
        let _ = self.indicators.set(indicators);
    }

    /// What is told of indicators, where there is anything.
    #[must_use]
    pub fn indicators(&self) -> Option<&Arc<crate::ioc::Exchange>> {
        self.indicators.get()
    }

    /// The engine on live traffic.
    #[must_use]
    pub fn judge(&self) -> &Arc<Judge> {
        &self.judge
    }

    /// From now on this gateway is one of several.
    pub fn join_fleet(&self, presence: Arc<Presence>) {
        let _ = self.presence.set(presence);
    }

    /// Whether it is one of several and does not hear from the others.
    #[must_use]
    pub fn is_apart(&self) -> bool {
        self.presence.get().is_some_and(|presence| presence.apart_for().is_some())
    }

    /// Starts the threads. They end with the process.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let Some(to_do) = self.to_do.lock().take() else { return Ok(()) };
        let enforcer = Arc::downgrade(self);
        self.store.on_commit(Box::new(move |committed| {
            if let Some(enforcer) = enforcer.upgrade() {
                enforcer.take_in(committed);
            }
        }));
        let enforcer = self.clone();
        self.judge.start(Box::new(move |decision| enforcer.decided(decision)))?;
        let enforcer = self.clone();
        std::thread::Builder::new().name("enforce".to_owned()).spawn(move || {
            let mut search_at = Instant::now() + SEARCH_REFRESH;
            loop {
                match to_do.recv_timeout(search_at.saturating_duration_since(Instant::now())) {
                    Ok(FollowUp::Rise(decision)) => enforcer.follow_up(&decision),
                    Ok(FollowUp::Mark { account, owners }) => enforcer.returned(&account, owners),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                // Also where there is always something to do.
                let begun = Instant::now();
                if begun >= search_at {
                    enforcer.marks.refresh_search();
                    let pause = SEARCH_REFRESH.max(begun.elapsed() * SEARCH_PAUSE);
                    search_at = Instant::now() + pause;
                }
            }
        })?;
        Ok(())
    }

    /// Judges a request that has arrived, and lets it through or not. The observation has no answer
    /// yet.
    ///
    /// # Errors
    /// Why it is not served.
    pub fn admit(&self, observation: &mut Observation) -> Result<Leave, Denied> {
        let version = self.policies.in_force();
        self.not_apart(&version.policy)?;
        let begun = Instant::now();
        let standing = observation.account.as_ref().map(|account| self.standing(account));
        if let Some(standing) = &standing {
            let patience = Duration::from_millis(version.policy.enforcement.inline_ms_max);
            let profile = organisation(standing, observation);
            let told = profile.is_some();
            let owners = self.recognise(standing, observation);
            if let Some(indicators) = self.indicators() {
                observation.indicators = indicators.lookup(observation);
            }
            let judged = self.judge.arrived(observation, profile, patience);
            if told && !matches!(judged, Judged::Late) {
                standing.change(|state| state.organisation.clone_from(&observation.organisation));
            }
            match judged {
                Judged::Decided(decision) => self.decided(&decision),
                Judged::AsBefore => {}
                Judged::Late if version.policy.enforcement.when_late == WhenLate::Refuse => {
                    return Err(Denied {
                        kind: RefusalKind::UpstreamUnavailable {
                            retry_after: Some(Duration::from_secs(1)),
                        },
                        message: "too many requests at once".to_owned(),
                        link: None,
                        reason: "judgement_late",
                    });
                }
                Judged::Late => {}
            }
            // The engine knows the account now, so that there is something to show of it.
            if !owners.is_empty() {
                let account = standing.account.clone();
                if self.afterwards.try_send(FollowUp::Mark { account, owners }).is_err() {
                    self.metrics.reviews_dropped.inc();
                }
            }
            let seconds = begun.elapsed().as_secs_f64();
            self.metrics.judgement_duration.with_label_values::<&str>(&[]).observe(seconds);
        }
        let mut leave = Leave {
            generation: standing.as_ref().map_or(0, |standing| standing.generation()),
            standing,
            route: observation.route.clone(),
            model: observation.conversation.model.clone(),
            organisation: observation.organisation.clone(),
            follows_text: false,
            admission: None,
            treatment: Treatment::default(),
            registration: None,
        };
        self.decide(&mut leave, observation, &version)?;
        Ok(leave)
    }

    /// What the policy says while the other gateways are not heard from.
    fn not_apart(&self, policy: &Policy) -> Result<(), Denied> {
        let fleet = &policy.fleet;
        if fleet.when_apart == WhenApart::Serve || policy.enforcement.shadow {
            return Ok(());
        }
        let apart = self.presence.get().and_then(|presence| presence.apart_for());
        if apart.is_none_or(|apart| apart.as_secs_f64() < fleet.apart_seconds) {
            return Ok(());
        }
        Err(Denied {
            kind: RefusalKind::UpstreamUnavailable { retry_after: Some(Duration::from_secs(1)) },
            message: "not available for a moment".to_owned(),
            link: None,
            reason: "apart",
        })
    }

    fn decide(
        &self,
        leave: &mut Leave,
        observation: &Observation,
        version: &Version,
    ) -> Result<(), Denied> {
        let policy = &*version.policy;
        let now_ms = unix_ms();
        let how = self.how(leave, policy, now_ms);
        let standing = leave.standing.as_deref();
        if how.tier > Tier::None
            && let Some(standing) = standing
        {
            standing.note_indicators(observation);
        }
        if let Some((denied, action)) = &how.denied {
            let shadow = policy.in_shadow(how.actions, *action);
            self.count(standing, *action, shadow, now_ms, version);
            if !shadow {
                if let (Action::Verify, Some(standing)) = (action, standing) {
                    self.tell_verification(standing, how.tier, now_ms, version);
                }
                return Err(denied.clone());
            }
        }
        let (limits, asked) = (&how.actions.throttle, &observation.conversation);
        if !limits.is_empty() {
            let limits = limits.iter().filter_map(|name| policy.limit.get_key_value(name));
            let whose = Whose {
                account: standing.map_or("", |standing| standing.account.as_str()),
                organisation: leave.organisation.as_ref().map(OrganisationId::as_str),
                cluster: how.cluster,
                ip: observation.ip,
            };
            let prompt_chars = asked.memory_bytes() as u64;
            let expected = Tokens::expected(prompt_chars, asked.sampling.max_tokens);
            let shadow = policy.in_shadow(how.actions, Action::Throttle);
            match self.throttle.admit(limits, &whose, expected, Instant::now()) {
                Ok(admission) => leave.admission = Some(admission),
                Err(reached) => {
                    self.count(standing, Action::Throttle, shadow, now_ms, version);
                    let scope = policy.limit.get(&reached.limit).map_or("", |l| l.per.name());
                    let mode = mode(shadow);
                    self.metrics.throttled.with_label_values(&[scope, mode]).inc();
                    if !shadow {
                        return Err(Denied {
                            kind: RefusalKind::RateLimited { retry_after: reached.retry_after },
                            message: "Rate limit reached.".to_owned(),
                            link: None,
                            reason: "throttled",
                        });
                    }
                }
            }
        }
        leave.treatment = self.treatment(leave, &how, version, now_ms, None);
        self.register_marks(leave, now_ms);
        leave.follows_text = how.tier > Tier::None && !leave.treatment.watermark;
        Ok(())
    }

    /// Tells that an account was asked to verify: once in a while, not at each refusal.
    fn tell_verification(&self, standing: &Standing, tier: Tier, now_ms: u64, version: &Version) {
        if !standing.asks_to_verify(now_ms) {
            return;
        }
        let actor = Actor::Policy(version.version.to_string());
        let draft = Draft::new(actor, Act::VerificationRequested).account(&standing.account);
        let draft = draft.detail(json!({ "tier": tier, "policy": version.version }));
        self.store.keep(Batch { writes: Vec::new(), audit: vec![draft] });
    }

    /// Looks again at an answer under way. Returns the treatment where it has changed.
    pub fn look_again(&self, leave: &mut Leave) -> Option<Treatment> {
        let standing = leave.standing.clone()?;
        leave.generation = standing.generation();
        let version = self.policies.in_force();
        let policy = &*version.policy;
        let now_ms = unix_ms();
        let how = self.how(leave, policy, now_ms);
        let mut next = self.treatment(leave, &how, &version, now_ms, Some(&leave.treatment));
        if let Some((denied, _)) = how.denied
            && (how.actions.end_stream || how.suspended)
        {
            let shadow = policy.in_shadow(how.actions, Action::EndStream);
            self.count(Some(&standing), Action::EndStream, shadow, now_ms, &version);
            next.end = (!shadow).then_some(denied);
        }
        if next == leave.treatment {
            return None;
        }
        leave.treatment = next.clone();
        self.register_marks(leave, now_ms);
        Some(next)
    }

    /// Has the marks that an answer is to carry written down. Whoever was served one must be found
    /// again by it, also after a crash.
    fn register_marks(&self, leave: &mut Leave, now_ms: u64) {
        let Some((standing, layers)) = leave.standing.as_ref().zip(leave.treatment.layers) else {
            return;
        };
        let cluster = standing.read(|state| state.cluster);
        if let Some(write) = self.marks.unregistered(&standing.account, cluster, layers, now_ms) {
            leave.registration =
                Some(self.store.commit(Batch { writes: vec![write], audit: Vec::new() }));
        }
    }

    /// Waits until the marks of an answer are on record; where that fails, it goes without. To be
    /// called before [`Self::changes`].
    pub async fn marks_registered(&self, leave: &mut Leave) {
        let Some(registration) = leave.registration.take() else { return };
        let durable = tokio::time::timeout(MARK_REGISTRATION_MAX, registration.durable()).await;
        if !matches!(durable, Ok(Ok(_))) {
            self.metrics.marks_unregistered.inc();
            leave.treatment.watermark = false;
            leave.treatment.canary = false;
            leave.treatment.layers = None;
        }
    }

    /// What is changed in an answer that is treated so; `None` where its text stays as it is.
    /// `fences` is what its texts showed so far, where that begins in its middle.
    #[must_use]
    pub fn changes(
        &self,
        leave: &Leave,
        conversation: &Conversation,
        fences: Option<Fences>,
    ) -> Option<Changes> {
        let treatment = &leave.treatment;
        let reasoning = match &treatment.withhold_reasoning {
            None => Reasoning::Keep,
            Some(notice) => {
                let notice = (!notice.is_empty()).then(|| notice.clone());
                Reasoning::Withhold { notice }
            }
        };
        let mark = leave.standing.as_ref().zip(treatment.layers).and_then(|(standing, layers)| {
            let cluster = standing.read(|state| state.cluster);
            let (account, now_ms) = (&standing.account, unix_ms());
            self.marks.marker(account, cluster, layers, conversation, fences, now_ms)
        });
        (mark.is_some() || reasoning != Reasoning::Keep).then_some(Changes { mark, reasoning })
    }

    /// Everybody who was served marked answers.
    #[must_use]
    pub fn marked(&self) -> Vec<Candidate> {
        self.marks.candidates()
    }

    /// Whose marks a text carries; see [`Marks::verify`].
    #[must_use]
    pub fn verify(
        &self,
        text: &str,
        prompt: Option<&str>,
        candidates_max: usize,
    ) -> (Report, usize) {
        self.marks.verify(text, prompt, candidates_max)
    }

    /// Looks for what was served to others in a prompt; returns to whom.
    fn recognise(&self, standing: &Standing, observation: &mut Observation) -> Vec<AccountId> {
        let returned = self.marks.returned(&observation.conversation);
        let own = standing.read(|state| state.cluster);
        // Whoever shares a cluster or an organisation may well pass answers on.
        let foreign = |owner: &&AccountId| {
            **owner != standing.account
                && self.standing(owner).read(|state| {
                    let cluster = own.is_some() && state.cluster == own;
                    let organisation = state.organisation.is_some()
                        && state.organisation == observation.organisation;
                    !(cluster || organisation)
                })
        };
        let mut owners: Vec<AccountId> = Vec::new();
        for (layer, found) in [("zero_width", &returned.zero_width), ("canary", &returned.canary)] {
            let found: Vec<&AccountId> = found.iter().filter(foreign).collect();
            if !found.is_empty() {
                self.metrics.marks_recognised.with_label_values(&[layer]).inc();
            }
            owners.extend(found.into_iter().cloned());
        }
        owners.sort_unstable();
        owners.dedup();
        observation.foreign_marks = u32::try_from(owners.len()).unwrap_or(u32::MAX);
        owners.truncate(OWNERS_SHOWN);
        owners
    }

    /// An account handed in what was served to others.
    fn returned(&self, account: &AccountId, owners: Vec<AccountId>) {
        warn!(
            target: "stillgate::marks",
            account = account.as_str(),
            owners = owners.iter().map(AccountId::as_str).collect::<Vec<_>>().join(" "),
            "a prompt carries what was served to others"
        );
        let version = self.policies.in_force();
        let detail = json!({ "owners": owners, "policy": version.version });
        let draft = Draft::new(Actor::System, Act::MarkReturned).account(account).detail(detail);
        self.store.keep(Batch { writes: Vec::new(), audit: vec![draft] });
        self.put_up_for_review(account, Reason::Mark, owners, &version);
    }

    /// What the policy says of an account as it stands.
    fn how<'p>(&self, leave: &Leave, policy: &'p Policy, now_ms: u64) -> How<'p> {
        let (tier, cluster, suspended) = match &leave.standing {
            Some(standing) => standing.read(|state| {
                (state.tier(now_ms), state.cluster, state.suspension(now_ms).is_some())
            }),
            None => (Tier::None, None, false),
        };
        let asked = Asked {
            route: &leave.route,
            model: leave.model.as_deref(),
            organisation: leave.organisation.as_ref().map(OrganisationId::as_str),
        };
        let actions = policy.actions(tier, &asked);
        let words = &policy.words;
        let denied = if suspended || actions.refuse {
            let denied = Denied {
                kind: RefusalKind::PermissionDenied,
                message: words.refused.clone(),
                link: None,
                reason: if suspended { "suspended" } else { "refused" },
            };
            Some((denied, Action::Refuse))
        } else if actions.verify {
            let denied = Denied {
                kind: RefusalKind::VerificationRequired,
                message: words.verify.clone(),
                link: words.verify_url.clone(),
                reason: "verification_required",
            };
            Some((denied, Action::Verify))
        } else {
            None
        };
        How { tier, cluster, suspended, actions, denied }
    }

    /// The treatment of an answer; what was in force `before` is not counted again.
    fn treatment(
        &self,
        leave: &Leave,
        how: &How<'_>,
        version: &Version,
        now_ms: u64,
        before: Option<&Treatment>,
    ) -> Treatment {
        let actions = how.actions;
        let standing = leave.standing.as_deref();
        let take = |action: Action, already: bool| {
            if !actions.has(action) {
                return false;
            }
            let shadow = version.policy.in_shadow(actions, action);
            if !already {
                self.count(standing, action, shadow, now_ms, version);
            }
            !shadow
        };
        let was = |read: fn(&Treatment) -> bool| before.is_some_and(read);
        let words = &version.policy.words;
        let watermark = take(Action::Watermark, was(|t| t.watermark));
        let canary = take(Action::Canary, was(|t| t.canary));
        Treatment {
            watermark,
            canary,
            layers: marks::layers(watermark, canary, &version.policy.watermark),
            pace: actions
                .pace_tokens_per_second
                .filter(|_| take(Action::Pace, was(|t| t.pace.is_some()))),
            withhold_reasoning: take(
                Action::WithholdReasoning,
                was(|t| t.withhold_reasoning.is_some()),
            )
            .then(|| words.reasoning_withheld.clone()),
            end: None,
        }
    }

    /// Takes in how an exchange ended.
    pub fn ended(&self, leave: Option<Leave>, observation: &Observation) {
        if let Some(account) = &observation.account {
            let answered = Answered::of(&observation.answer);
            self.judge.answered(account, &observation.id, answered);
        }
        if let Some(admission) = leave.and_then(|leave| leave.admission) {
            admission.settle(used(observation, &observation.answer));
        }
    }

    /// Takes in a judgement, wherever it was made.
    fn decided(&self, decision: &Decision) {
        self.metrics.judgements.with_label_values(&[decision.tier.name()]).inc();
        let version = self.policies.in_force();
        let standing = self.standing(&decision.account);
        let (changed, rose) = standing.judged(decision, &version.version);
        if changed {
            self.tell_tier(&standing, decision, &version);
        }
        if decision.tier != decision.before {
            info!(
                target: "stillgate::tiers",
                account = decision.account.as_str(),
                before = decision.before.name(),
                tier = decision.tier.name(),
                suspicion = decision.suspicion,
                policy = %version.version,
                "tier"
            );
        }
        if rose && self.afterwards.try_send(FollowUp::Rise(decision.clone())).is_err() {
            self.metrics.reviews_dropped.inc();
        }
    }

    /// Everything that is known of an account; `None` where nothing is.
    #[must_use]
    pub fn explain(&self, account: &AccountId) -> Option<Explanation> {
        let now_ms = unix_ms();
        let version = self.policies.in_force();
        let judged = self.judge.explain(account, now_ms);
        let known = self.standings.contains_key(account) || self.kept.lock().contains_key(account);
        if judged.is_none() && !known {
            return None;
        }
        if let Some((decision, _)) = &judged {
            self.decided(decision);
        }
        let state = self.standing(account).read(Clone::clone);
        let (decision, mut ties) = judged.map_or((None, Vec::new()), |(d, ties)| (Some(d), ties));
        ties.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        ties.truncate(TIES_SHOWN);
        Some(Explanation {
            account: account.clone(),
            tier: state.tier(now_ms),
            judged_tier: state.judged,
            suspicion: state.suspicion,
            requests: decision.as_ref().map_or(0, |decision| decision.request),
            cluster: state.cluster.map(hex_label),
            overridden: state.operators_word(now_ms).cloned(),
            suspended: state.suspension(now_ms).cloned(),
            policy: version.version.clone(),
            findings: decision.map(explained).unwrap_or_default(),
            ties,
            decisions: state.changes.into_iter().rev().collect(),
            actions: state.actions.into_iter().rev().collect(),
        })
    }

    /// Takes the file's policy, where it has changed or is asked for, and judges by it. `said` is by
    /// whom; nobody where the file has changed.
    ///
    /// # Errors
    /// Everything that is wrong with it; nothing has changed then.
    pub fn reload_policy(
        &self,
        said: Option<&Said>,
    ) -> Result<Option<(Arc<Version>, Pending)>, String> {
        let read =
            if said.is_some() { self.policies.reload() } else { self.policies.reload_changed() };
        let label = |outcome| self.metrics.policy_reloads.with_label_values(&[outcome]);
        match read {
            Ok(Some(version)) => {
                label("ok").inc();
                let because = "the file has changed".to_owned();
                let file = Said { actor: Actor::System, reason: because };
                let pending = self.policy_in_force(&version, said.unwrap_or(&file));
                Ok(Some((version, pending)))
            }
            Ok(None) => Ok(None),
            Err(faults) => {
                label("failed").inc();
                for fault in faults.lines() {
                    warn!("policy not taken: {fault}");
                }
                Err(faults)
            }
        }
    }

    /// Brings an earlier policy into force.
    ///
    /// # Errors
    /// When none is kept.
    pub fn roll_back_policy(
        &self,
        version: Option<&str>,
        said: &Said,
    ) -> Result<(Arc<Version>, Pending), String> {
        let version = self.policies.roll_back(version)?;
        let pending = self.policy_in_force(&version, said);
        Ok((version, pending))
    }

    fn policy_in_force(&self, version: &Version, said: &Said) -> Pending {
        self.judge.set_policy(version.policy.clone());
        info!(version = %version.version, "policy in force");
        let mut batch = policy_batch(version);
        let detail = json!({ "policy": version.version });
        batch.audit.push(said.entry(Act::PolicyChanged).detail(detail));
        self.store.commit(batch)
    }

    /// How an account stands.
    #[must_use]
    pub fn standing(&self, account: &AccountId) -> Arc<Standing> {
        self.standings.get_with_by_ref(account, || self.remembered(account))
    }

    fn count(
        &self,
        standing: Option<&Standing>,
        action: Action,
        shadow: bool,
        now_ms: u64,
        version: &Version,
    ) {
        self.metrics.actions.with_label_values(&[action.name(), mode(shadow)]).inc();
        if let Some(standing) = standing {
            standing.acted(action, shadow, now_ms, &version.version);
        }
    }
}

/// What the policy says of an account as it stands.
struct How<'p> {
    tier: Tier,
    cluster: Option<u64>,
    suspended: bool,
    actions: &'p Actions,
    denied: Option<(Denied, Action)>,
}

/// The organisation of a request's credential, where the engine does not know it yet.
fn organisation(standing: &Standing, observation: &Observation) -> Option<Event> {
    let organisation = observation.organisation.as_ref()?;
    if standing.read(|state| state.organisation.as_ref() == Some(organisation)) {
        return None;
    }
    Some(Event::Organisation(Declared {
        at_ms: observation.at_ms,
        account: standing.account.clone(),
        organisation: organisation.clone(),
    }))
}

/// `mode` of an action.
fn mode(shadow: bool) -> &'static str {
    if shadow { "shadow" } else { "taken" }
}

/// Tokens that an exchange took: by the provider's count, or one for four characters where it did
/// not tell, as of an answer that was cut off.
fn used(observation: &Observation, answer: &Answer) -> Tokens {
    match answer.usage {
        Some(usage) => Tokens { input: usage.prompt_tokens, output: usage.completion_tokens },
        None => Tokens {
            input: if answer.bytes > 0 {
                observation.conversation.memory_bytes() as u64 / 4
            } else {
                0
            },
            output: (answer.text_chars + answer.reasoning_chars).div_ceil(4),
        },
    }
}

/// A cluster's name.
#[must_use]
pub fn hex_label(label: u64) -> String {
    format!("{label:016x}")
}

fn parse_label(cluster: &str) -> Result<u64, String> {
    let label = u64::from_str_radix(cluster, 16).ok().filter(|_| cluster.len() == 16);
    label.ok_or_else(|| "a cluster's name has 16 hex digits".to_owned())
}

fn explained(decision: Decision) -> Vec<ExplainedFinding> {
    let entry = |name| detectors::list::LIST.iter().find(|entry| entry.name == name);
    let mut findings: Vec<ExplainedFinding> = decision
        .contributions
        .into_iter()
        .map(|part| {
            let entry = entry(part.finding.detector);
            ExplainedFinding {
                techniques: entry.map_or(&[], |entry| entry.techniques),
                pace: entry.map_or(Pace::Inline, |entry| entry.pace),
                finding: part.finding,
                weight: part.weight,
                nats: part.nats,
            }
        })
        .collect();
    findings.sort_by(|a, b| b.nats.total_cmp(&a.nats));
    findings
}

#[cfg(test)]
pub(crate) mod tests {
    use detectors::facts::Facts;

    use super::*;
    use crate::judge::tests::observation;

    pub(super) fn enforcer(policy: &str) -> Arc<Enforcer> {
        enforcer_over(policy, Store::in_memory("test").unwrap())
    }

    pub(super) fn enforcer_over(policy: &str, store: Arc<Store>) -> Arc<Enforcer> {
        let path = std::env::temp_dir().join(format!(
            "stillgate-enforce-{}-{:x}-{:?}.toml",
            std::process::id(),
            name_of(policy),
            std::thread::current().id(),
        ));
        std::fs::write(&path, policy).unwrap();
        let policies = Arc::new(PolicyStore::load(Some(path.clone())).unwrap());
        std::fs::remove_file(path).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let facts = Arc::new(Facts::builtin().unwrap());
        let policy = policies.in_force().policy.clone();
        let judge = Arc::new(Judge::new(policy, facts, [1; 16], metrics.clone()));
        let marks = Marks::new(marks::master_key(b"key").unwrap()).unwrap();
        let enforcer = Arc::new(Enforcer::new(policies, judge, [1; 16], marks, store, metrics));
        enforcer.restore().unwrap();
        enforcer.start().unwrap();
        enforcer
    }

    /// Sets or removes an operator's word, and waits until it holds.
    pub(super) fn override_tier(enforcer: &Enforcer, account: &AccountId, word: Option<&Override>) {
        let said = Said::by_operator("ops", "test");
        enforcer.override_tier(account, word, &said).unwrap().wait().unwrap();
    }

    fn name_of(text: &str) -> u64 {
        detectors::keyed::hash(&[7; 16], text.as_bytes())
    }

    pub(super) fn word(tier: Tier) -> Option<Override> {
        let (reason, by) = ("test".to_owned(), "ops".to_owned());
        Some(Override { tier, reason, by, since_ms: 0, until_ms: None })
    }

    fn asks(enforcer: &Enforcer, number: u64) -> Result<Leave, Denied> {
        enforcer.admit(&mut observation("a", number, "How are you?"))
    }

    #[test]
    fn a_tier_brings_its_actions_and_an_override_changes_it() {
        let unlimited =
            "[limit.suspect]\nper = \"account\"\n[limit.suspect_cluster]\nper = \"cluster\"\n";
        let enforcer = enforcer(unlimited);
        let account = AccountId::new("a");
        assert!(asks(&enforcer, 1).ok().unwrap().treatment().is_nothing());
        for (tier, check) in [
            (Tier::Medium, (|t: &Treatment| t.pace == Some(40.0) && !t.watermark) as fn(&_) -> _),
            (Tier::High, |t| t.pace == Some(20.0) && t.watermark && t.canary),
            (Tier::High, |t| t.withhold_reasoning == Some(String::new())),
        ] {
            override_tier(&enforcer, &account, word(tier).as_ref());
            let leave = asks(&enforcer, 2).ok().unwrap();
            assert!(check(leave.treatment()), "{tier:?}: {:?}", leave.treatment());
        }
        override_tier(&enforcer, &account, word(Tier::Critical).as_ref());
        let denied = asks(&enforcer, 3).err().unwrap();
        assert_eq!((denied.kind, denied.reason), (RefusalKind::PermissionDenied, "refused"));
        override_tier(&enforcer, &account, None);
        assert!(asks(&enforcer, 4).is_ok());
    }

    #[test]
    fn an_answer_under_way_is_looked_at_again_when_something_changed() {
        let enforcer = enforcer("");
        let account = AccountId::new("a");
        let mut leave = asks(&enforcer, 1).ok().unwrap();
        assert!(!leave.is_stale());
        override_tier(&enforcer, &account, word(Tier::High).as_ref());
        assert!(leave.is_stale());
        let treatment = enforcer.look_again(&mut leave).unwrap();
        assert!(treatment.watermark && treatment.end.is_none() && !leave.is_stale());
        assert_eq!(enforcer.look_again(&mut leave), None, "nothing has changed since");
        override_tier(&enforcer, &account, word(Tier::Critical).as_ref());
        let treatment = enforcer.look_again(&mut leave).unwrap();
        assert_eq!(treatment.end.map(|denied| denied.reason), Some("refused"));
    }

    #[test]
    fn a_suspension_ends_answers_under_way_whatever_the_tier() {
        let enforcer = enforcer("");
        let mut leave = asks(&enforcer, 1).ok().unwrap();
        let suspension =
            Suspension { cluster: "c".to_owned(), since_ms: 0, until_ms: unix_ms() + 60_000 };
        enforcer.suspend(&AccountId::new("a"), Some(suspension));
        let treatment = enforcer.look_again(&mut leave).unwrap();
        assert_eq!(treatment.end.map(|denied| denied.reason), Some("suspended"));
    }

    #[test]
    fn a_suspension_ends_with_its_time_or_an_operators_word() {
        let enforcer = enforcer("");
        let account = AccountId::new("a");
        let until = |until_ms| Suspension { cluster: "c".to_owned(), since_ms: 0, until_ms };
        enforcer.suspend(&account, Some(until(unix_ms() + 60_000)));
        assert_eq!(asks(&enforcer, 1).err().unwrap().reason, "suspended");
        // A standing that was let go comes back with it.
        enforcer.standings.invalidate(&account);
        assert_eq!(asks(&enforcer, 2).err().unwrap().reason, "suspended");
        override_tier(&enforcer, &account, word(Tier::None).as_ref());
        assert!(asks(&enforcer, 3).is_ok());
        override_tier(&enforcer, &account, None);
        enforcer.suspend(&account, Some(until(unix_ms() - 1)));
        assert!(asks(&enforcer, 4).is_ok());
        enforcer.suspend(&account, None);
        assert!(enforcer.kept.lock().is_empty());
    }

    #[test]
    fn in_shadow_even_a_suspension_is_only_counted() {
        let enforcer = enforcer("[enforcement]\nshadow = true\n");
        let account = AccountId::new("a");
        let suspension =
            Suspension { cluster: "c".to_owned(), since_ms: 0, until_ms: unix_ms() + 60_000 };
        enforcer.suspend(&account, Some(suspension));
        assert!(asks(&enforcer, 1).is_ok());
        let shadow = enforcer.metrics.actions.with_label_values(&["refuse", "shadow"]);
        assert_eq!(shadow.get(), 1);
    }

    #[test]
    fn a_late_judgement_goes_by_the_policys_word() {
        for (policy, served) in
            [("", true), ("[enforcement]\nwhen_late = \"refuse\"\ninline_ms_max = 1\n", false)]
        {
            let enforcer = enforcer(policy);
            let (held, done) = (enforcer.clone(), Arc::new(std::sync::Barrier::new(2)));
            let waits = done.clone();
            let holds = std::thread::spawn(move || {
                held.judge.account(&AccountId::new("b"), |_| ());
                held.judge.while_held(|| {
                    waits.wait();
                    waits.wait();
                });
            });
            done.wait();
            let asked = asks(&enforcer, 1);
            done.wait();
            holds.join().unwrap();
            assert_eq!(asked.is_ok(), served, "{policy}");
            assert_eq!(enforcer.metrics.judgements_late.get(), 1);
        }
    }

    #[test]
    fn a_rule_frees_an_organisation_of_everything() {
        let enforcer = enforcer("[[rule]]\norganisation = \"org-1\"\n");
        let account = AccountId::new("a");
        override_tier(&enforcer, &account, word(Tier::Critical).as_ref());
        let mut asked = observation("a", 1, "How are you?");
        asked.organisation = Some(OrganisationId::new("org-1"));
        assert!(enforcer.admit(&mut asked).ok().unwrap().treatment().is_nothing());
        asked.organisation = None;
        assert!(enforcer.admit(&mut asked).is_err());
    }

    #[test]
    fn what_was_served_to_another_is_attributed_when_it_comes_back() {
        let enforcer = enforcer("[watermark]\nlexical = false\n");
        let owner = AccountId::new("owner");
        override_tier(&enforcer, &owner, word(Tier::High).as_ref());
        let mut asked = observation("owner", 1, "Tell me about bread.");
        let mut leave = enforcer.admit(&mut asked).ok().unwrap();
        futures::executor::block_on(async {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let _inside = runtime.as_ref().unwrap().enter();
            enforcer.marks_registered(&mut leave).await;
        });
        let changes = enforcer.changes(&leave, &asked.conversation, None).unwrap();
        let mut marker = changes.mark.unwrap()(crate::wire::TextId::default()).unwrap();
        let (mut served, prose) = (String::new(), crate::demo::prose::answer);
        let text = (0..12).map(prose).collect::<Vec<_>>().join("\n\n");
        marker.push(&text, &mut served);
        marker.finish(&mut served);
        for (account, foreign) in [("owner", 0), ("thief", 1)] {
            let mut brought = observation(account, 2, &served);
            assert!(enforcer.admit(&mut brought).is_ok());
            assert_eq!(brought.foreign_marks, foreign, "{account}");
        }
        let begun = Instant::now();
        while !enforcer.reviews.list(9).iter().any(|entry| entry.reason == Reason::Mark) {
            assert!(begun.elapsed() < Duration::from_secs(10), "nobody is to look at it");
            std::thread::sleep(Duration::from_millis(5));
        }
        let entry = enforcer.reviews.take(&AccountId::new("thief")).unwrap();
        assert_eq!((entry.reason, entry.marks_of), (Reason::Mark, vec![owner]));
    }

    #[test]
    fn tokens_are_the_providers_or_reckoned() {
        let mut seen = observation("a", 1, &"word ".repeat(80));
        let answer = Answer { text_chars: 41, bytes: 900, ..Answer::default() };
        assert_eq!(used(&seen, &answer).output, 11);
        assert_eq!(used(&seen, &Answer::default()), Tokens::default(), "never served");
        seen.answer.usage = Some(detectors::Usage {
            prompt_tokens: 7,
            completion_tokens: 9,
            ..detectors::Usage::default()
        });
        assert_eq!(used(&seen, &seen.answer), Tokens { input: 7, output: 9 });
    }

    #[test]
    fn canaries_are_looked_for_although_there_is_always_something_to_do() {
        let enforcer = enforcer("# searched");
        let served = AccountId::new("served");
        let asked = observation("served", 1, "Tell me.").conversation;
        let now_ms = unix_ms();
        assert!(enforcer.marks.marker(&served, None, Layers::ALL, &asked, None, now_ms).is_some());
        let write = enforcer.marks.unregistered(&served, None, Layers::ALL, now_ms).unwrap();
        let batch = Batch { writes: vec![write], audit: Vec::new() };
        enforcer.store.commit(batch).wait().unwrap();
        assert_eq!(enforcer.marks.unregistered(&served, None, Layers::ALL, now_ms).map(drop), None);
        let canary = enforcer.marks.tokens(&served).pop().unwrap();
        let prompt = format!("As {canary} said.");
        let comes_back = observation("other", 1, &prompt).conversation;
        let begun = Instant::now();
        while enforcer.marks.returned(&comes_back).canary.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the search was never made");
            let account = AccountId::new("busy");
            let _ = enforcer.afterwards.try_send(FollowUp::Mark { account, owners: Vec::new() });
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
