//! The engine on live traffic: quick detectors while the request waits, slow ones behind a queue.
//!
//! A request is read without the engine, then taken in and judged under its lock, which it waits
//! for only so long. What its prompt means is read on threads of their own, from a bounded queue;
//! what finds the queue full is shed and counted, and no request ever waits for it. A judgement
//! that comes from there reaches answers under way through the account's standing.

use std::collections::{HashSet, VecDeque};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use detectors::engine::{Account, AccountRow, Arrival, Contribution, Decision, Engine, TieReport};
use detectors::facts::Facts;
use detectors::keyed::Key;
use detectors::policy::Policy;
use detectors::seen::{Answered, Arrived, Pending};
use detectors::tier::Tier;
use detectors::{AccountId, Event, ModelRelease, Observation};
use parking_lot::{Mutex, MutexGuard};

use crate::limits::{
    CHANGED_AT_ONCE, JUDGEMENT_QUEUE_MAX, JUDGEMENT_THREADS, ROW_FETCH_MAX, ROW_LOCK_MAX,
    SENSED_LOCK_MAX,
};
use crate::memory::Loader;
use crate::metrics::Metrics;

/// Takes decisions that come from the background.
pub type OnDecision = Box<dyn Fn(&Decision) + Send + Sync>;

/// The engine and its queue.
pub struct Judge {
    engine: Mutex<Engine>,
    facts: Arc<Facts>,
    key: Key,
    queue: SyncSender<Work>,
    work: Mutex<Receiver<Work>>,
    /// What each follower has yet to take.
    changed: Mutex<[Option<Waiting>; Follower::COUNT]>,
    /// Who puts accounts with what is stored of them into the engine, where something is.
    loader: OnceLock<Arc<Loader>>,
    on_decision: OnceLock<Arc<OnDecision>>,
    metrics: Arc<Metrics>,
}

/// Who wants to know which accounts change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Follower {
    /// Whoever stores them.
    Store,
    /// Whoever tells other gateways.
    Fleet,
}

impl Follower {
    const COUNT: usize = 2;
}

/// Accounts that wait to be taken, each once: never more than the engine holds and has let go since.
#[derive(Default)]
struct Waiting {
    order: VecDeque<AccountId>,
    held: HashSet<AccountId>,
}

impl Waiting {
    fn add(&mut self, account: &AccountId) {
        if self.held.insert(account.clone()) {
            self.order.push_back(account.clone());
        }
    }

    fn take(&mut self, max: usize) -> Vec<AccountId> {
        let taken: Vec<AccountId> = self.order.drain(..max.min(self.order.len())).collect();
        for account in &taken {
            self.held.remove(account);
        }
        taken
    }
}

enum Work {
    Understand(Box<Pending>),
    Answered { account: AccountId, exchange: String, answered: Answered },
}

/// What came of a request's judgement.
#[derive(Debug)]
pub enum Judged {
    /// Its account was due: a new judgement.
    Decided(Decision),
    /// The last judgement stands.
    AsBefore,
    /// The engine was not free in time.
    Late,
}

impl Judge {
    /// An engine without memories, under the policy in force.
    #[must_use]
    pub fn new(policy: Arc<Policy>, facts: Arc<Facts>, key: Key, metrics: Arc<Metrics>) -> Self {
        let (queue, work) = sync_channel(JUDGEMENT_QUEUE_MAX);
        let engine = Mutex::new(Engine::new(policy, facts.clone(), key));
        let (work, changed) = (Mutex::new(work), Mutex::default());
        let (loader, on_decision) = (OnceLock::new(), OnceLock::new());
        Self { engine, facts, key, queue, work, changed, loader, on_decision, metrics }
    }

    /// Takes in a request that has arrived, with what its credential tells of the account, and judges
    /// the account, where it is due. Waits at most `patience` for the engine, and for the account's
    /// row.
    pub fn arrived(
        &self,
        observation: &Observation,
        profile: Option<Event>,
        patience: Duration,
    ) -> Judged {
        let (Some(account), Some(arrived)) =
            (&observation.account, Arrived::read(observation, &self.facts, &self.key))
        else {
            return Judged::AsBefore;
        };
        let arrival = self.engine.try_lock_for(patience).and_then(|mut engine| {
            match self.loader_to_tell(&mut engine, account) {
                None => Some(take_in(&mut engine, arrived, profile.as_ref())),
                Some(loader) => {
                    drop(engine);
                    loader.arrived(account, profile, arrived, patience)
                }
            }
        });
        let Some(arrival) = arrival else {
            self.metrics.judgements_late.inc();
            return Judged::Late;
        };
        if let Some(pending) = arrival.pending {
            self.send(Work::Understand(Box::new(pending)));
        }
        arrival.decision.map_or(Judged::AsBefore, Judged::Decided)
    }

    /// Takes in a request, whoever waits for it.
    pub(crate) fn take_in_arrived(&self, arrived: Arrived, profile: Option<&Event>) -> Arrival {
        take_in(&mut self.engine.lock(), arrived, profile)
    }

    /// What became of a request that nobody waited for any more.
    pub(crate) fn arrived_late(&self, arrival: Arrival) {
        if let Some(pending) = arrival.pending {
            self.send(Work::Understand(Box::new(pending)));
        }
        if let (Some(decision), Some(on_decision)) = (arrival.decision, self.on_decision.get()) {
            on_decision(&decision);
        }
    }

    /// From now on accounts that are not whole are made so by a loader, see
    /// [`Engine::is_restored`].
    pub(crate) fn load_with(&self, loader: Arc<Loader>) {
        let mut engine = self.engine.lock();
        engine.set_stored(true);
        engine.set_restoring(true);
        let _ = self.loader.set(loader);
    }

    /// All that is stored was taken back: who has no ties now has none.
    pub(crate) fn all_taken_back(&self) {
        self.engine.lock().set_restoring(false);
    }

    /// Whether what is stored is still being taken back.
    #[must_use]
    pub fn is_restoring(&self) -> bool {
        self.engine.lock().is_restoring()
    }

    /// Who is to make an account whole; nobody where it is, or new for sure.
    fn loader_for(&self, engine: &Engine, account: &AccountId) -> Option<&Arc<Loader>> {
        let loader = self.loader.get()?;
        let new = || loader.is_complete() && engine.evicted().0 == 0;
        (!engine.is_restored(account) && !new()).then_some(loader)
    }

    /// As [`Self::loader_for`], of an account that is about to be told of: a new one is whole then.
    fn loader_to_tell(&self, engine: &mut Engine, account: &AccountId) -> Option<&Arc<Loader>> {
        let loader = self.loader_for(engine, account);
        if loader.is_none() && !engine.is_restored(account) {
            engine.nothing_stored(account);
        }
        loader
    }

    /// Whether an account is whole, or new for sure.
    pub(crate) fn is_here(&self, account: &AccountId) -> bool {
        self.loader_for(&self.engine.lock(), account).is_none()
    }

    /// The store has no row of an account.
    pub(crate) fn nothing_stored(&self, account: &AccountId) {
        self.engine.lock().nothing_stored(account);
    }

    /// Puts an account into the engine if it is stored, so that it is whole whatever is told of it
    /// next. Whether that was done in time.
    pub fn fetch(&self, account: &AccountId, patience: Duration) -> bool {
        let loader = self.loader_for(&self.engine.lock(), account).cloned();
        loader.is_none_or(|loader| loader.fetch(account, patience))
    }

    /// Whether anything is held of an account.
    pub(crate) fn holds(&self, account: &AccountId) -> bool {
        self.engine.lock().holds(account)
    }

    /// Everything that is held of some accounts, as it is stored.
    pub(crate) fn rows(&self, accounts: &[AccountId]) -> Vec<AccountRow> {
        let mut rows = Vec::with_capacity(accounts.len());
        let mut left = accounts.iter().peekable();
        while left.peek().is_some() {
            let (engine, begun) = (self.engine.lock(), Instant::now());
            while begun.elapsed() < ROW_LOCK_MAX
                && let Some(account) = left.next()
            {
                rows.extend(engine.row(account));
            }
            MutexGuard::unlock_fair(engine);
        }
        rows
    }

    /// Takes back stored accounts that are not whole yet; pauses at least so long after each few, and
    /// as long as it has held the engine.
    pub(crate) fn adopt(&self, rows: Vec<AccountRow>, pause: Duration) {
        let mut left = rows.into_iter().peekable();
        while left.peek().is_some() {
            let (mut engine, begun) = (self.engine.lock(), Instant::now());
            while begun.elapsed() < ROW_LOCK_MAX
                && let Some(row) = left.next()
            {
                engine.adopt(row);
            }
            if !pause.is_zero() {
                engine.make_room();
            }
            MutexGuard::unlock_fair(engine);
            if !pause.is_zero() {
                std::thread::sleep(begun.elapsed().max(pause));
            }
        }
    }

    /// Takes in how an exchange was answered. Never waits.
    pub fn answered(&self, account: &AccountId, exchange: &str, answered: Answered) {
        let (account, exchange) = (account.clone(), exchange.to_owned());
        self.send(Work::Answered { account, exchange, answered });
    }

    /// Takes in what else happened. Waits while accounts are being fetched that it is about.
    pub fn observe(&self, event: &Event) {
        let account = match event {
            Event::Profile(profile) => Some(&profile.account),
            Event::Organisation(declared) => Some(&declared.account),
            Event::Enforcement(enforcement) => Some(&enforcement.account),
            _ => None,
        };
        let mut engine = self.engine.lock();
        match account
            .and_then(|account| Some((account, self.loader_to_tell(&mut engine, account)?)))
        {
            None => drop(engine.observe(event)),
            Some((account, loader)) => {
                drop(engine);
                loader.observe(account, event.clone());
            }
        }
    }

    /// Takes in what happened to an account that is held, or not stored.
    pub(crate) fn observe_held(&self, event: &Event) {
        self.engine.lock().observe(event);
    }

    /// Takes in what sensors saw, a little at a time: requests wait for the engine meanwhile.
    pub fn observe_sensed(&self, events: &[Event]) {
        let mut left = events.iter().peekable();
        while left.peek().is_some() {
            let (mut engine, begun) = (self.engine.lock(), Instant::now());
            while begun.elapsed() < SENSED_LOCK_MAX
                && let Some(event) = left.next()
            {
                engine.observe(event);
            }
            engine.make_room();
            MutexGuard::unlock_fair(engine);
        }
    }

    /// Takes in a tier that was judged elsewhere.
    pub fn hold(
        &self,
        account: &AccountId,
        tier: Tier,
        suspicion: f64,
        at_ms: u64,
        cluster: Option<u64>,
    ) {
        self.engine.lock().hold(account, tier, suspicion, at_ms, cluster);
    }

    /// Takes in when a model was released, unix milliseconds, in the place of what was told before;
    /// `None`: that is not to be heeded.
    pub fn set_release(&self, model: &str, at_ms: Option<u64>) {
        let mut engine = self.engine.lock();
        engine.forget_release(model);
        if let Some(at_ms) = at_ms {
            engine.observe(&Event::ModelRelease(ModelRelease { at_ms, model: model.into() }));
        }
    }

    /// Judges by another policy from now on.
    pub fn set_policy(&self, policy: Arc<Policy>) {
        self.engine.lock().set_policy(policy);
    }

    /// Judges an account now, with the evidence and its ties.
    #[must_use]
    pub fn explain(&self, account: &AccountId, now_ms: u64) -> Option<(Decision, Vec<TieReport>)> {
        self.fetch(account, ROW_FETCH_MAX);
        let mut engine = self.engine.lock();
        let decision = engine.judge_now(account, now_ms)?;
        let ties = engine.explain_ties(account);
        Some((decision, ties))
    }

    /// An account's ties, the strongest first.
    #[must_use]
    pub fn ties(&self, account: &AccountId) -> Vec<TieReport> {
        self.engine.lock().explain_ties(account)
    }

    /// What `read` makes of what is held of an account.
    pub fn account<R>(&self, account: &AccountId, read: impl FnOnce(&Account) -> R) -> Option<R> {
        self.engine.lock().account(account).map(read)
    }

    /// Every cluster with its size, the largest first.
    #[must_use]
    pub fn clusters(&self) -> Vec<(u64, usize)> {
        self.engine.lock().clusters()
    }

    /// What `read` makes of each member of a cluster.
    pub fn cluster_members<R>(&self, label: u64, read: impl FnMut(&Account) -> R) -> Vec<R> {
        self.engine.lock().cluster_members(label).into_iter().map(read).collect()
    }

    /// Has changes kept for a follower from now on.
    pub fn follow(&self, follower: Follower) {
        self.changed.lock()[follower as usize].get_or_insert_default();
        self.engine.lock().set_tracking(true);
    }

    /// Accounts of which something was noted, judged or told since the follower last took them, the
    /// oldest change first.
    #[must_use]
    pub fn take_changed(&self, follower: Follower, max: usize) -> Vec<AccountId> {
        let mut changed = self.changed.lock();
        loop {
            // A few at a time, so that no request waits for long.
            let taken = self.engine.lock().take_changed(CHANGED_AT_ONCE);
            for waiting in changed.iter_mut().flatten() {
                taken.iter().for_each(|account| waiting.add(account));
            }
            let Some(own) = &mut changed[follower as usize] else { return Vec::new() };
            if taken.len() < CHANGED_AT_ONCE || own.order.len() >= max {
                return own.take(max);
            }
        }
    }

    /// How many changed accounts a follower has yet to take.
    #[must_use]
    pub fn changed_len(&self, follower: Follower) -> usize {
        let own = self.changed.lock()[follower as usize].as_ref().map_or(0, |own| own.order.len());
        own + self.engine.lock().changed_len()
    }

    /// What this gateway has to tell of an account.
    #[must_use]
    pub fn contribution(&self, account: &AccountId) -> Option<Contribution> {
        self.engine.lock().contribution(account)
    }

    /// Takes in what all other gateways tell of an account; not where it is less than they told
    /// before, since then something of it was lost on the way and will come again. Whether it was
    /// taken.
    pub fn take_in(&self, others: &Contribution) -> bool {
        if !self.fetch(&others.account, ROW_FETCH_MAX) {
            return false;
        }
        let mut engine = self.engine.lock();
        if others.memory.requests < engine.told_requests(&others.account) {
            return false;
        }
        engine.take_in(others);
        true
    }

    /// The keys of all accounts that are held, for [`Self::ids_of`].
    #[must_use]
    pub fn account_keys(&self) -> Vec<u64> {
        self.engine.lock().account_keys()
    }

    /// The accounts of some keys, where they are still held.
    #[must_use]
    pub fn ids_of(&self, keys: &[u64]) -> Vec<AccountId> {
        let engine = self.engine.lock();
        keys.iter().filter_map(|key| engine.id_of(*key)).collect()
    }

    /// Starts the background threads. They end with the process.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(self: &Arc<Self>, on_decision: OnDecision) -> std::io::Result<()> {
        let on_decision = Arc::new(on_decision);
        let _ = self.on_decision.set(on_decision.clone());
        for number in 0..JUDGEMENT_THREADS {
            let (judge, on_decision) = (self.clone(), on_decision.clone());
            let thread = std::thread::Builder::new().name(format!("judge-{number}"));
            thread.spawn(move || {
                while let Some(work) = judge.next() {
                    judge.work(work, &on_decision);
                }
            })?;
        }
        Ok(())
    }

    /// Keeps the engine from everybody else while `run` runs.
    #[cfg(test)]
    pub(crate) fn while_held(&self, run: impl FnOnce()) {
        let _engine = self.engine.lock();
        run();
    }

    fn next(&self) -> Option<Work> {
        // Held while it waits: the others wait for their turn, which comes to the same.
        let work = self.work.lock().recv().ok();
        self.metrics.judgements_queued.dec();
        work
    }

    fn work(&self, work: Work, on_decision: &OnDecision) {
        match work {
            Work::Understand(mut pending) => {
                pending.read(&self.facts);
                let decision = {
                    let mut engine = self.engine.lock();
                    engine.make_room();
                    engine.understood(&pending)
                };
                if let Some(decision) = decision {
                    on_decision(&decision);
                }
            }
            Work::Answered { account, exchange, answered } => {
                self.engine.lock().answered(&account, &exchange, &answered);
            }
        }
    }

    fn send(&self, work: Work) {
        let detector = match &work {
            Work::Understand(_) => "meaning",
            Work::Answered { .. } => "answer",
        };
        self.metrics.judgements_queued.inc();
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.queue.try_send(work)
        {
            self.metrics.judgements_queued.dec();
            self.metrics.judgements_shed.with_label_values(&[detector]).inc();
        }
    }
}

fn take_in(engine: &mut Engine, arrived: Arrived, profile: Option<&Event>) -> Arrival {
    if let Some(profile) = profile {
        engine.observe(profile);
    }
    engine.arrived(arrived)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use detectors::{
        Answer, Conversation, Format, HttpCapture, HttpVersion, Network, Role, Text, Turn,
    };

    use super::*;

    pub(crate) fn observation(account: &str, number: u64, prompt: &str) -> Observation {
        Observation {
            id: format!("r{number:016x}"),
            at_ms: 1_800_000_000_000 + number * 1_000,
            account: Some(AccountId::new(account)),
            organisation: None,
            ip: "192.0.2.1".parse().unwrap(),
            network: Network::default(),
            route: "main".into(),
            tls: None,
            http: HttpCapture {
                version: HttpVersion::Http11,
                method: "POST".to_owned(),
                path: "/v1/chat/completions".to_owned(),
                headers: vec![],
                h2: None,
            },
            format: Format::OpenaiChat,
            foreign_marks: 0,
            indicators: Vec::new(),
            conversation: Conversation {
                turns: vec![Turn {
                    role: Role::User,
                    text: Text::new(prompt),
                    tool_calls: vec![],
                    attachments: 0,
                }],
                ..Conversation::default()
            },
            answer: Answer::default(),
        }
    }

    fn judge() -> Arc<Judge> {
        let metrics = Arc::new(Metrics::new().unwrap());
        let facts = Arc::new(Facts::builtin().unwrap());
        Arc::new(Judge::new(Arc::default(), facts, [1; 16], metrics))
    }

    #[test]
    fn a_request_is_judged_at_once_and_again_when_its_meaning_is_known() {
        let judge = judge();
        let decided = Arc::new(AtomicUsize::new(0));
        let counted = decided.clone();
        let count = move |_: &Decision| {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        judge.start(Box::new(count)).unwrap();
        let patience = Duration::from_secs(1);
        let first = judge.arrived(&observation("a", 1, "Why does bread rise?"), None, patience);
        assert!(matches!(first, Judged::Decided(_)), "{first:?}");
        let again = judge.arrived(&observation("a", 2, "Why does bread rise?"), None, patience);
        assert!(matches!(again, Judged::Decided(_)), "{again:?}");
        let begun = Instant::now();
        while decided.load(Ordering::Relaxed) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(10), "nothing came from the background");
            std::thread::yield_now();
        }
        let nobody = Observation { account: None, ..observation("", 3, "Hello") };
        assert!(matches!(judge.arrived(&nobody, None, patience), Judged::AsBefore));
    }

    #[test]
    fn an_engine_that_is_not_free_in_time_is_not_waited_for() {
        let judge = judge();
        let _held = judge.engine.lock();
        let late = judge.arrived(&observation("a", 1, "Hello"), None, Duration::from_millis(5));
        assert!(matches!(late, Judged::Late));
        assert_eq!(judge.metrics.judgements_late.get(), 1);
    }

    #[test]
    fn a_full_queue_sheds_and_never_blocks() {
        let judge = judge();
        for number in 0..JUDGEMENT_QUEUE_MAX + 10 {
            judge.answered(&AccountId::new("a"), &number.to_string(), Answered::default());
        }
        assert_eq!(judge.metrics.judgements_shed.with_label_values(&["answer"]).get(), 10);
        let queued = judge.metrics.judgements_queued.get();
        assert_eq!(usize::try_from(queued), Ok(JUDGEMENT_QUEUE_MAX));
    }
}
