//! Gateways that act as one: what they say and see meets in Redis.
//!
//! Each gateway acts on what it holds itself; nothing here is ever waited for by a request. Three
//! things are shared, each in the way that loses nothing when Redis is slow, away, fails over or
//! comes back empty:
//!
//! - *words* (`words`): registers merge by their stamps, in any order. What is new goes out at once
//!   and comes in with the next look at the feed; after every interruption both sides are compared
//!   whole.
//! - *memory* (`memory`): each gateway writes what it has seen of an account under its own name, and
//!   adds up what the others wrote.
//! - *use of limits* (`limits`): each gateway tells what it let through, and counts what the others
//!   tell.
//!
//! All that Redis holds can be lost: the gateways have it, and write it again.

mod connection;
mod limits;
mod memory;
mod words;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use redis::Value;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use self::connection::{Link, LinkError, text};
use self::memory::Work;
use self::words::{Entry, Held, Keys};
use crate::config::Redis;
use crate::enforce::throttle::Throttle;
use crate::judge::{Follower, Judge};
use crate::limits::{
    FLEET_BACKOFF_MAX, FLEET_BACKOFF_MIN, FLEET_CHECK_INTERVAL, FLEET_COMPARE_INTERVAL,
    FLEET_ENTRIES_MAX, FLEET_NAME_HELD, FLEET_TAKEN_IN_AT_ONCE, FLEET_TOMBSTONES_KEPT,
};
use crate::metrics::Metrics;
use crate::policy::unix_ms;
use crate::store::{Batch, Committed, Register, Store, Table, Write};

/// Takes in a word that another gateway said, where it cannot be stored.
pub type OnWord = Box<dyn Fn(&Register) + Send + Sync>;

/// The service that keeps this gateway and the others of one mind.
pub struct Fleet {
    settings: Redis,
    keys: Keys,
    /// Tells gateways of one identity key from those of another, without telling the key.
    key_check: String,
    /// This process, among all that may have its name.
    instance: String,
    store: Arc<Store>,
    on_word: OnWord,
    judge: Arc<Judge>,
    throttle: Arc<Throttle>,
    accounts_max: usize,
    presence: Arc<Presence>,
    metrics: Arc<Metrics>,
}

/// Whether this gateway hears from the others.
#[derive(Debug)]
pub struct Presence {
    begun: Instant,
    /// Milliseconds after `begun` from which on it is apart, plus one; 0 while it is not.
    apart_since: AtomicU64,
}

impl Presence {
    fn new() -> Self {
        // Until the first contact it is apart.
        Self { begun: Instant::now(), apart_since: AtomicU64::new(1) }
    }

    /// How long this gateway has been apart from the others; `None` while it is not.
    #[must_use]
    pub fn apart_for(&self) -> Option<Duration> {
        let since = self.apart_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.begun.elapsed().saturating_sub(Duration::from_millis(since)))
    }

    fn joined(&self) {
        self.apart_since.store(0, Ordering::Relaxed);
    }

    fn apart(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        // The first moment counts.
        let _ = self.apart_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// How far each stream was read.
#[derive(Clone, Debug)]
struct Positions {
    feed: String,
    used: String,
}

/// What tells that Redis lost something: each master's history, and a mark in the data itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Trail {
    run: String,
    /// Each history with the one that it follows.
    histories: BTreeMap<String, String>,
}

/// What a fleet keeps in step.
pub struct Parts {
    /// Registers.
    pub store: Arc<Store>,
    /// Takes in words where the store cannot.
    pub on_word: OnWord,
    /// Memory of accounts.
    pub judge: Arc<Judge>,
    /// Limits.
    pub throttle: Arc<Throttle>,
    /// Accounts that are remembered at most.
    pub accounts_max: usize,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Fleet {
    /// Puts the parts together; nothing is connected before [`BackgroundService::start`].
    /// `key_check` tells gateways of one identity key from those of another.
    #[must_use]
    pub fn new(settings: Redis, key_check: &str, parts: Parts) -> Self {
        let Parts { store, on_word, judge, throttle, accounts_max, metrics } = parts;
        throttle.share();
        judge.follow(Follower::Fleet);
        Self {
            keys: Keys::new(&settings.prefix),
            settings,
            key_check: key_check.to_owned(),
            instance: format!("{}-{}", std::process::id(), unix_ms()),
            store,
            on_word,
            judge,
            throttle,
            accounts_max,
            presence: Arc::new(Presence::new()),
            metrics,
        }
    }

    /// Whether this gateway hears from the others.
    #[must_use]
    pub fn presence(&self) -> Arc<Presence> {
        self.presence.clone()
    }

    /// Words and limits: connects, keeps in step, and does so again after every failure.
    async fn keep_in_step(&self, mut shutdown: ShutdownWatch) {
        let mut feed = self.store.subscribe();
        let mut pause = Pause::default();
        loop {
            let running = async {
                let mut link = Link::connect(&self.settings, &self.metrics).await?;
                self.recognise(&mut link).await?;
                self.in_step(&mut link, &mut feed).await
            };
            let Some(error) = failure(running, &mut shutdown).await else { return };
            let was_joined = self.presence.apart_for().is_none();
            self.presence.apart();
            self.metrics.fleet_connected.set(0);
            // Once, not at every try.
            if was_joined || pause.is_first() {
                warn!(target: "stillgate::fleet", "apart from the other gateways: {error}");
            }
            self.metrics.fleet_errors.with_label_values(&[error.kind()]).inc();
            if !pause.take(&mut shutdown).await {
                return;
            }
        }
    }

    /// Memory: the same over a connection of its own, so that it never holds words up.
    async fn keep_in_mind(&self, mut shutdown: ShutdownWatch) {
        let mut work = Work::default();
        let mut pause = Pause::default();
        loop {
            let running = async {
                let mut link = Link::connect(&self.settings, &self.metrics).await?;
                self.recognise(&mut link).await?;
                self.share_memory(&mut link, &mut work).await
            };
            let Some(error) = failure(running, &mut shutdown).await else { return };
            if pause.is_first() {
                warn!(target: "stillgate::fleet", "memories are not shared: {error}");
            }
            self.metrics.fleet_errors.with_label_values(&[error.kind()]).inc();
            if !pause.take(&mut shutdown).await {
                return;
            }
        }
    }

    /// Refuses to mix with gateways whose pseudonyms are of another key.
    async fn recognise(&self, link: &mut Link<'_>) -> Result<(), LinkError> {
        let name = self.keys.shared("key");
        let mut set = redis::cmd("SET");
        set.arg(&name).arg(&self.key_check).arg("NX");
        link.ask(&set).await?;
        let mut get = redis::cmd("GET");
        get.arg(&name);
        match text(&link.ask(&get).await?) {
            Some(found) if found == self.key_check => Ok(()),
            Some(_) => Err(LinkError::OtherKey),
            None => Err(LinkError::Unexpected),
        }
    }

    /// Holds this gateway's name for a few seconds, against another process that has it too. One that
    /// takes this one's place at a hot upgrade, or after a crash, waits for those seconds.
    async fn hold_name(&self, link: &mut Link<'_>) -> Result<(), LinkError> {
        let name = self.keys.shared(&format!("node:{}", self.store.node()));
        let seconds = FLEET_NAME_HELD.as_secs();
        let mut set = redis::cmd("SET");
        set.arg(&name).arg(&self.instance).arg("EX").arg(seconds).arg("NX");
        link.ask(&set).await?;
        let mut get = redis::cmd("GET");
        get.arg(&name);
        if text(&link.ask(&get).await?).is_some_and(|held| held != self.instance) {
            return Err(LinkError::SameName);
        }
        let mut again = redis::cmd("EXPIRE");
        again.arg(&name).arg(seconds);
        link.ask(&again).await.map(drop)
    }

    async fn in_step(
        &self,
        link: &mut Link<'_>,
        feed: &mut broadcast::Receiver<Arc<Committed>>,
    ) -> Result<Infallible, LinkError> {
        self.hold_name(link).await?;
        let mut trail = self.trail(link).await?;
        let mut positions = self.reconcile(link).await?;
        // What was let through while this gateway was apart is past: it would be a debt of now.
        drop(self.throttle.untold());
        self.presence.joined();
        self.metrics.fleet_connected.set(1);
        info!(target: "stillgate::fleet", "in step with the other gateways");
        let mut tick = tokio::time::interval(self.settings.sync_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut checked_at, mut compared_at) = (Instant::now(), Instant::now());
        loop {
            let committed = tokio::select! {
                committed = feed.recv() => Some(committed),
                _ = tick.tick() => None,
            };
            match committed {
                Some(Ok(committed)) => {
                    let mut own = self.own(&committed);
                    while let Ok(more) = feed.try_recv()
                        && own.len() < FLEET_TAKEN_IN_AT_ONCE
                    {
                        own.extend(self.own(&more));
                    }
                    self.push(link, own).await?;
                }
                Some(Err(RecvError::Lagged(_))) => positions = self.reconcile(link).await?,
                // The store lives as long as this service.
                Some(Err(RecvError::Closed)) => return Err(LinkError::Unexpected),
                None => {
                    self.tell_use(link).await?;
                    self.read(link, &mut positions).await?;
                    self.metrics.fleet_last_sync.set(unix_ms() as f64 / 1000.0);
                    if checked_at.elapsed() >= FLEET_CHECK_INTERVAL {
                        checked_at = Instant::now();
                        self.hold_name(link).await?;
                        let now = self.trail(link).await?;
                        let changed = now != trail;
                        if changed {
                            info!(target: "stillgate::fleet", "Redis is not what it was");
                        }
                        // Also where nothing tells that anything was lost.
                        if changed || compared_at.elapsed() >= FLEET_COMPARE_INTERVAL {
                            trail = now;
                            compared_at = Instant::now();
                            positions = self.reconcile(link).await?;
                        }
                    }
                }
            }
        }
    }

    /// Words of a commit that were said here.
    fn own(&self, committed: &Committed) -> Vec<Register> {
        let node = self.store.node();
        let own =
            |register: &&Register| register.stamp.by == *node && words::is_shared(register.table);
        committed.registers.iter().filter(own).cloned().collect()
    }

    /// Writes words to Redis where they are later than what is there.
    async fn push(&self, link: &mut Link<'_>, words: Vec<Register>) -> Result<(), LinkError> {
        let mut by_table: HashMap<Table, Vec<(String, String)>> = HashMap::new();
        for register in words {
            match words::encode(&register) {
                Some(word) => {
                    by_table.entry(register.table).or_default().push((register.key, word));
                }
                None => self.metrics.fleet_shed.with_label_values(&["word"]).inc(),
            }
        }
        for (table, words) in by_table {
            for parcel in words::parcels(words) {
                link.ask(&self.keys.put(table, self.store.node(), &parcel)).await?;
                let count = self.metrics.fleet_words.with_label_values(&["out"]);
                count.inc_by(parcel.len() as u64);
            }
        }
        Ok(())
    }

    /// Tells what was let through since the last time.
    async fn tell_use(&self, link: &mut Link<'_>) -> Result<(), LinkError> {
        let (used, shed) = self.throttle.untold();
        self.metrics.fleet_shed.with_label_values(&["use"]).inc_by(shed);
        for report in limits::reports(&self.keys, self.store.node(), &used) {
            link.ask(&report).await?;
        }
        Ok(())
    }

    /// Reads what the others told since the last time.
    async fn read(&self, link: &mut Link<'_>, positions: &mut Positions) -> Result<(), LinkError> {
        let (feed, used) = (self.keys.feed(), limits::stream(&self.keys));
        loop {
            let mut command = redis::cmd("XREAD");
            command.arg("COUNT").arg(FLEET_ENTRIES_MAX).arg("STREAMS").arg(&feed).arg(&used);
            command.arg(&positions.feed).arg(&positions.used);
            let answer = link.ask(&command).await?;
            let mut full = false;
            for (stream, entries) in words::streams(&answer) {
                full |= entries.len() >= FLEET_ENTRIES_MAX;
                let Some(last) = entries.last() else { continue };
                if stream == feed {
                    last.id.clone_into(&mut positions.feed);
                    self.take_in(self.told(&entries)).await;
                } else if stream == used {
                    last.id.clone_into(&mut positions.used);
                    self.count_use(&entries);
                }
            }
            if !full {
                return Ok(());
            }
        }
    }

    /// Counts what others let through.
    fn count_use(&self, entries: &[Entry<'_>]) {
        let node = &**self.store.node();
        for entry in entries.iter().filter(|entry| entry.text("g") != Some(node)) {
            match entry.bytes("u").and_then(limits::decode) {
                Some(used) => {
                    let now = Instant::now();
                    used.iter().for_each(|used| self.throttle.take_in(used, now));
                }
                None => self.metrics.fleet_errors.with_label_values(&["unexpected"]).inc(),
            }
        }
    }

    /// Words of the feed that others told.
    fn told(&self, entries: &[Entry<'_>]) -> Vec<Register> {
        let node = &**self.store.node();
        let others = entries.iter().filter(|entry| entry.text("g") != Some(node));
        let register = |entry: &Entry<'_>| {
            let register = entry.register();
            if register.is_none() {
                self.metrics.fleet_errors.with_label_values(&["unexpected"]).inc();
            }
            register
        };
        others.filter_map(register).collect()
    }

    /// Stores words where they are later than what is held, and acts on them.
    async fn take_in(&self, words: Vec<Register>) {
        let mut words = words.into_iter();
        loop {
            let some: Vec<Register> = words.by_ref().take(FLEET_TAKEN_IN_AT_ONCE).collect();
            if some.is_empty() {
                return;
            }
            let write = |register: &Register| Write {
                table: register.table,
                key: register.key.clone(),
                value: register.value.clone(),
                stamp: Some(register.stamp.clone()),
            };
            let writes = some.iter().map(write).collect();
            let stored = self.store.commit(Batch { writes, audit: Vec::new() }).durable().await;
            let taken = self.metrics.fleet_words.with_label_values(&["in"]);
            match stored {
                Ok(committed) => {
                    taken.inc_by(committed.registers.len() as u64);
                }
                // A full disk must not keep an operator's word from acting.
                Err(error) => {
                    warn!(target: "stillgate::fleet", "words of other gateways not stored: {error}");
                    self.metrics.fleet_errors.with_label_values(&["store"]).inc();
                    let later = |word: &&Register| {
                        let held = self.store.get(word.table, &word.key).ok().flatten();
                        held.is_none_or(|held| held.stamp < word.stamp)
                    };
                    for word in some.iter().filter(later) {
                        taken.inc();
                        (self.on_word)(word);
                    }
                }
            }
        }
    }

    /// Compares everything with what Redis holds, both ways. Returns from where on the streams have
    /// what is new.
    async fn reconcile(&self, link: &mut Link<'_>) -> Result<Positions, LinkError> {
        self.metrics.fleet_reconciles.inc();
        // First: what is told while the comparison runs is then read again, which does no harm.
        let positions = Positions {
            feed: self.newest(link, &self.keys.feed()).await?,
            used: self.newest(link, &limits::stream(&self.keys)).await?,
        };
        let forgotten = unix_ms()
            .saturating_sub(u64::try_from(FLEET_TOMBSTONES_KEPT.as_millis()).unwrap_or(u64::MAX));
        for table in Table::ALL.into_iter().filter(|table| words::is_shared(*table)) {
            let mut missing = self.held(table, forgotten).await;
            let mut cursor = "0".to_owned();
            loop {
                let answer = link.ask(&self.keys.page(table, &cursor)).await?;
                let (next, page) = words::page(&answer).ok_or(LinkError::Unexpected)?;
                let mut later = Vec::new();
                for (key, word) in page {
                    let Some(register) = words::decode(table, key, word) else {
                        self.metrics.fleet_errors.with_label_values(&["unexpected"]).inc();
                        continue;
                    };
                    if register.value.is_none() && register.stamp.at_ms < forgotten {
                        link.ask(&self.keys.drop_same(table, key, word)).await?;
                        continue;
                    }
                    match missing.get(key) {
                        Some(held) if *held > register.stamp => {}
                        Some(held) if *held == register.stamp => drop(missing.remove(key)),
                        _ => {
                            missing.remove(key);
                            later.push(register);
                        }
                    }
                }
                self.take_in(later).await;
                if next == "0" {
                    break;
                }
                cursor = next;
            }
            let mut missing: Vec<String> = missing.into_keys().collect();
            missing.sort_unstable();
            for keys in missing.chunks(FLEET_TAKEN_IN_AT_ONCE) {
                let words = self.words(table, keys).await;
                self.push(link, words).await?;
            }
        }
        Ok(positions)
    }

    /// The stamps of everything that is held, but of what was removed long ago.
    async fn held(&self, table: Table, forgotten: u64) -> Held {
        let store = self.store.clone();
        let scan = move || {
            let known = |word: &Register| word.value.is_some() || word.stamp.at_ms >= forgotten;
            let words = store.scan(table)?.into_iter().filter(known);
            Ok::<_, crate::store::StoreError>(words.map(|word| (word.key, word.stamp)).collect())
        };
        match tokio::task::spawn_blocking(scan).await {
            Ok(Ok(held)) => held,
            Ok(Err(_)) | Err(_) => {
                self.metrics.fleet_errors.with_label_values(&["store"]).inc();
                Held::new()
            }
        }
    }

    /// The words on some keys.
    async fn words(&self, table: Table, keys: &[String]) -> Vec<Register> {
        let (store, keys) = (self.store.clone(), keys.to_owned());
        let read = move || -> Vec<Register> {
            keys.iter().filter_map(|key| store.get(table, key).ok().flatten()).collect()
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }

    /// The identifier of a stream's last entry.
    async fn newest(&self, link: &mut Link<'_>, stream: &str) -> Result<String, LinkError> {
        let mut command = redis::cmd("XREVRANGE");
        command.arg(stream).arg("+").arg("-").arg("COUNT").arg(1);
        let answer = link.ask(&command).await?;
        let newest = words::entries(&answer).first().map(|entry| entry.id.to_owned());
        Ok(newest.unwrap_or_else(|| "0-0".to_owned()))
    }

    async fn trail(&self, link: &mut Link<'_>) -> Result<Trail, LinkError> {
        let name = self.keys.shared("run");
        let mut set = redis::cmd("SET");
        set.arg(&name).arg(format!("{}-{}", self.store.node(), unix_ms())).arg("NX");
        link.ask(&set).await?;
        let mut get = redis::cmd("GET");
        get.arg(&name);
        let run = text(&link.ask(&get).await?).ok_or(LinkError::Unexpected)?.to_owned();
        let mut info = redis::cmd("INFO");
        info.arg("replication");
        // Who may not ask (ACL without `+info`), or meets a master that is down, goes by the mark.
        let answers = link.ask_masters(info).await.unwrap_or_default();
        Ok(Trail { run, histories: answers.iter().filter_map(history).collect() })
    }
}

/// A master's replication history, and the one that it follows: a new one follows where a replica
/// takes its master's place, and after a restart.
fn history(info: &Value) -> Option<(String, String)> {
    let info = text(info)?;
    let line = |name: &str| {
        let found = |line: &str| line.strip_prefix(name).map(|id| id.trim().to_owned());
        info.lines().find_map(found)
    };
    Some((line("master_replid:")?, line("master_replid2:").unwrap_or_default()))
}

/// Runs a session until it fails; `None` where the process ends.
async fn failure(
    session: impl Future<Output = Result<Infallible, LinkError>>,
    shutdown: &mut ShutdownWatch,
) -> Option<LinkError> {
    tokio::select! {
        ended = session => match ended {
            Ok(never) => match never {},
            Err(error) => Some(error),
        },
        _ = shutdown.wait_for(|down| *down) => None,
    }
}

/// Pauses between tries: longer and longer, until a session has lasted.
struct Pause {
    next: Duration,
    begun: Instant,
}

impl Default for Pause {
    fn default() -> Self {
        Self { next: FLEET_BACKOFF_MIN, begun: Instant::now() }
    }
}

impl Pause {
    /// Whether nothing has failed yet, or not for long.
    fn is_first(&self) -> bool {
        self.next == FLEET_BACKOFF_MIN
    }

    /// Waits; whether there is anything to go on for. Half of the pause to all of it, so that
    /// gateways do not all come at once.
    async fn take(&mut self, shutdown: &mut ShutdownWatch) -> bool {
        if self.begun.elapsed() > self.next + FLEET_BACKOFF_MAX {
            self.next = FLEET_BACKOFF_MIN;
        }
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.subsec_nanos());
        let pause = self.next.mul_f64(0.5 + f64::from(nanos % 1_000) / 2_000.0);
        self.next = (self.next * 2).min(FLEET_BACKOFF_MAX);
        let over = tokio::select! {
            () = tokio::time::sleep(pause) => true,
            _ = shutdown.wait_for(|down| *down) => false,
        };
        self.begun = Instant::now();
        over
    }
}

#[async_trait]
impl BackgroundService for Fleet {
    async fn start(&self, shutdown: ShutdownWatch) {
        futures::join!(self.keep_in_step(shutdown.clone()), self.keep_in_mind(shutdown));
    }
}
