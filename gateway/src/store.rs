//! What outlives the process: an operator's words, tiers, marks, indicators, the audit, and what is
//! remembered of accounts.
//!
//! Two databases in one directory. `state` holds *registers* and the audit: small, durable before
//! anything is acknowledged, committed in groups by one thread. `memory` holds a row an account,
//! written behind. They are apart so that a long write of rows never holds up a short one of state,
//! and are read through connections of their own, a page at a time, so that nobody who reads holds up
//! who writes.
//!
//! A register is the latest word on one key of one [`Table`], with a [`Stamp`]; of two words the one
//! with the later stamp counts, wherever it was said. So registers of several gateways merge in any
//! order, and a removal is a word like any other.
//!
//! Two processes may have the directory open, at a hot upgrade. Each takes in what the other writes
//! within a fraction of a second, and the audit of both is one chain.
//!
//! Whoever acts on what is held keeps it in memory; the store is read at start, and for accounts
//! that come back.

pub mod backup;
mod database;
mod reader;
mod rows;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, oneshot};
use tracing::{error, info};

use self::database::Which;
pub use self::reader::Reader;
pub use self::rows::{RowReader, Rows, Stored, day_of};
use crate::audit::{Anchor, Chained, Draft, Query};
use crate::limits::{STORE_FEED_MAX, STORE_GROUP_MAX, STORE_KEPT_MAX, STORE_PAGE, STORE_QUEUE_MAX};
use crate::metrics::Metrics;
use crate::policy::unix_ms;

/// Kinds of registers. The numbers are on disk: never give one to another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Table {
    /// An operator's word on an account; key: its pseudonym.
    Override = 1,
    /// A suspension by a takedown; key: the account's pseudonym.
    Suspension = 2,
    /// A takedown; key: the cluster's name.
    Takedown = 3,
    /// Tier by the last judgement that changed it; key: the account's pseudonym.
    Tier = 4,
    /// Marks that were served; key: account, a space, the cluster or `-`.
    Mark = 5,
    /// An entry of the review queue; key: the account's pseudonym.
    Review = 6,
    /// What an operator told of an account; key: its pseudonym.
    Profile = 7,
    /// When a model was released; key: its name.
    Release = 8,
    /// An indicator of compromise, own or imported; key: its source, kind and value.
    Indicator = 9,
    /// A bundle of indicators that was taken in, against replay; key: its identity.
    Bundle = 10,
    /// Text of a policy that was in force; key: its version.
    Policy = 11,
    /// How far something that follows the audit has come; key: its name. Never shared.
    Cursor = 12,
}

impl Table {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Override,
        Self::Suspension,
        Self::Takedown,
        Self::Tier,
        Self::Mark,
        Self::Review,
        Self::Profile,
        Self::Release,
        Self::Indicator,
        Self::Bundle,
        Self::Policy,
        Self::Cursor,
    ];

    /// The kind of a number on disk.
    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| *table as u8 == number)
    }
}

/// When and by which gateway a word was said. The later counts; at the same time, the larger name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// Unix milliseconds; at least one more than of the word that it replaces.
    pub at_ms: u64,
    /// The gateway's name.
    pub by: Arc<str>,
}

/// The latest word on a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// Its kind.
    pub table: Table,
    /// Its key.
    pub key: String,
    /// When and by whom.
    pub stamp: Stamp,
    /// JSON; `None` where it was removed.
    pub value: Option<String>,
}

/// A word to be written.
#[derive(Clone, Debug)]
pub struct Write {
    /// Kind of register.
    pub table: Table,
    /// Its key.
    pub key: String,
    /// JSON; `None` removes it.
    pub value: Option<String>,
    /// Of a word that came from elsewhere: it is written only where it is the latest.
    pub stamp: Option<Stamp>,
}

impl Write {
    /// A word of this gateway.
    ///
    /// # Panics
    /// Never: what is stored are plain structures, which have JSON.
    #[must_use]
    pub fn put(table: Table, key: impl Into<String>, value: &impl Serialize) -> Self {
        let value = serde_json::to_string(value).ok();
        Self { table, key: key.into(), value, stamp: None }
    }

    /// A removal by this gateway.
    #[must_use]
    pub fn remove(table: Table, key: impl Into<String>) -> Self {
        Self { table, key: key.into(), value: None, stamp: None }
    }
}

/// What is committed together, or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Registers.
    pub writes: Vec<Write>,
    /// Audit entries, in order.
    pub audit: Vec<Draft>,
}

impl Batch {
    /// Registers with the entry that tells of them.
    #[must_use]
    pub fn told(writes: Vec<Write>, entry: Draft) -> Self {
        Self { writes, audit: vec![entry] }
    }
}

/// What a commit has written.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// Registers that are now the latest.
    pub registers: Vec<Register>,
    /// Audit entries.
    pub audit: Vec<Chained>,
}

/// Why the store cannot do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The directory or a file in it cannot be used.
    #[error("the store {path} {message}")]
    Open {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
    /// The disk is full.
    #[error("the store's disk is full")]
    Full,
    /// More is waiting to be written than may, or another process keeps the database locked.
    #[error("the store has more to write than it can")]
    Busy,
    /// The disk gave back something else than was written.
    #[error("the store is damaged: {0} is not as it was written")]
    Damaged(String),
    /// The disk does not do what it is asked.
    #[error("the store's disk fails: {0}")]
    Disk(String),
    /// Anything else that the database says: of what was to be written.
    #[error("the store: {0}")]
    Database(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                Self::Busy
            }
            Some(rusqlite::ErrorCode::DatabaseCorrupt) => {
                Self::Damaged("a page of the database".to_owned())
            }
            Some(
                code @ (rusqlite::ErrorCode::SystemIoFailure
                | rusqlite::ErrorCode::ReadOnly
                | rusqlite::ErrorCode::CannotOpen
                | rusqlite::ErrorCode::PermissionDenied
                | rusqlite::ErrorCode::OutOfMemory),
            ) => Self::Disk(format!("{code:?}")),
            // Values that are written stay out of messages.
            Some(code) => Self::Database(format!("{code:?}")),
            None => Self::Database(error.to_string()),
        }
    }
}

/// A commit under way.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Arc<Committed>, StoreError>>);

impl Pending {
    /// Waits until it is durable.
    ///
    /// # Errors
    /// When nothing of it was written.
    pub async fn durable(self) -> Result<Arc<Committed>, StoreError> {
        self.0.await.unwrap_or_else(|_| Err(StoreError::Database("the writer is gone".to_owned())))
    }

    /// As [`Self::durable`], for threads of their own.
    ///
    /// # Errors
    /// When nothing of it was written.
    pub fn wait(self) -> Result<Arc<Committed>, StoreError> {
        futures::executor::block_on(self.durable())
    }
}

struct Request {
    batch: Batch,
    /// Who waits; nobody where it is kept until it could be written.
    done: Option<oneshot::Sender<Result<Arc<Committed>, StoreError>>>,
}

/// Takes in what was committed, before whoever waits for it is told.
pub type OnCommit = Box<dyn Fn(&Committed) + Send + Sync>;

/// The store.
pub struct Store {
    node: Arc<str>,
    dir: Option<PathBuf>,
    /// For reading. In memory it is the writer's: two connections to one database in memory lock
    /// whole tables against each other.
    state: Arc<Mutex<Connection>>,
    writer: Arc<Mutex<Connection>>,
    rows: Option<Rows>,
    queue: SyncSender<Request>,
    feed: broadcast::Sender<Arc<Committed>>,
    shared: Arc<Shared>,
}

/// What the writing thread shares.
#[derive(Default)]
struct Shared {
    on_commit: OnceLock<OnCommit>,
    metrics: OnceLock<Arc<Metrics>>,
    /// What could not be written yet and is tried again.
    kept: Mutex<VecDeque<Batch>>,
    /// How many of these are being tried.
    tried: AtomicUsize,
    dropped: AtomicU64,
}

impl Shared {
    fn keep(&self, batch: Batch) {
        let mut kept = self.kept.lock();
        if kept.len() >= STORE_KEPT_MAX {
            kept.pop_front();
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.count(|metrics| metrics.store_dropped.inc());
        }
        kept.push_back(batch);
        self.waiting(kept.len());
    }

    fn waiting(&self, batches: usize) {
        self.count(|metrics| metrics.store_unwritten.set(i64::try_from(batches).unwrap_or(0)));
    }

    fn count(&self, count: impl FnOnce(&Metrics)) {
        if let Some(metrics) = self.metrics.get() {
            count(metrics);
        }
    }
}

impl Store {
    /// Opens the store in a directory, or makes it. `node` is this gateway's name; without one it
    /// keeps the name that it was given when the store was made. `key_check` tells whether it was
    /// written under the same identity key.
    ///
    /// # Errors
    /// When it cannot be used: damaged, of a newer version, of another key.
    pub fn open(dir: &Path, node: Option<&str>, key_check: &str) -> Result<Arc<Self>, StoreError> {
        let writer = database::open(Some(dir), Which::State, key_check)?;
        let state = database::connect(dir, Which::State)?;
        if database::is_small(dir) {
            database::verify_state(&state, dir)?;
        } else {
            verify_later(dir)?;
        }
        let rows = Rows::open(dir, key_check)?;
        let node = match node {
            Some(node) => node.to_owned(),
            None => database::node(&state)?,
        };
        let (state, writer) = (Arc::new(Mutex::new(state)), Arc::new(Mutex::new(writer)));
        Self::start(&node, Some(dir.to_owned()), state, writer, Some(rows))
    }

    /// A store that ends with the process.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn in_memory(node: &str) -> Result<Arc<Self>, StoreError> {
        let writer = Arc::new(Mutex::new(database::open(None, Which::State, "")?));
        Self::start(node, None, writer.clone(), writer, None)
    }

    /// Says what would keep [`Self::open`] from opening the store in a directory, as far as that can
    /// be told without making or changing anything.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn check(dir: &Path, key_check: &str) -> Result<(), StoreError> {
        database::check(dir, key_check)
    }

    fn start(
        node: &str,
        dir: Option<PathBuf>,
        state: Arc<Mutex<Connection>>,
        writer: Arc<Mutex<Connection>>,
        rows: Option<Rows>,
    ) -> Result<Arc<Self>, StoreError> {
        let (queue, requests) = sync_channel::<Request>(STORE_QUEUE_MAX);
        let (feed, _) = broadcast::channel(STORE_FEED_MAX);
        let (node, shared): (Arc<str>, Arc<Shared>) = (node.into(), Arc::default());
        let seen = database::last_change(&writer.lock())?;
        let mut thread = Writer {
            connection: writer.clone(),
            node: node.clone(),
            shared: shared.clone(),
            feed: feed.clone(),
            seen,
            failing_since: None,
            retry_at: Instant::now(),
        };
        let builder = std::thread::Builder::new().name("store".to_owned());
        let spawned = builder.spawn(move || {
            loop {
                let mut group = match requests.recv_timeout(FOLLOW_PAUSE) {
                    Ok(first) => vec![first],
                    Err(RecvTimeoutError::Timeout) => {
                        thread.follow();
                        if Instant::now() >= thread.retry_at {
                            thread.write_kept();
                        }
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return thread.write_kept(),
                };
                while group.len() < STORE_GROUP_MAX
                    && let Ok(next) = requests.try_recv()
                {
                    group.push(next);
                }
                thread.commit(group);
            }
        });
        spawned.map_err(|error| StoreError::Database(error.to_string()))?;
        Ok(Arc::new(Self { node, dir, state, writer, rows, queue, feed, shared }))
    }

    /// Counts in these metrics from now on.
    pub fn count_in(&self, metrics: &Arc<Metrics>) {
        let _ = self.shared.metrics.set(metrics.clone());
    }

    /// This gateway's name.
    #[must_use]
    pub fn node(&self) -> &Arc<str> {
        &self.node
    }

    /// The directory; `None` in memory.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Rows of accounts; `None` in memory, where they would be no safer than what they are made of.
    #[must_use]
    pub fn rows(&self) -> Option<&Rows> {
        self.rows.as_ref()
    }

    /// Has a batch written. Never waits: it is durable when the answer says so.
    #[must_use]
    pub fn commit(&self, batch: Batch) -> Pending {
        let (done, pending) = oneshot::channel();
        if let Err(TrySendError::Full(request) | TrySendError::Disconnected(request)) =
            self.queue.try_send(Request { batch, done: Some(done) })
            && let Some(done) = request.done
        {
            let _ = done.send(Err(StoreError::Busy));
        }
        Pending(pending)
    }

    /// Has a batch written as soon as it can be: what has happened already, and is to be told of
    /// even where the disk is full just now. Never waits.
    pub fn keep(&self, batch: Batch) {
        if let Err(TrySendError::Full(request) | TrySendError::Disconnected(request)) =
            self.queue.try_send(Request { batch, done: None })
        {
            self.shared.keep(request.batch);
        }
    }

    /// Waits until everything that was to be written before has been tried, but not for longer than
    /// this.
    pub fn settle(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let mut settled = self.commit(Batch::default()).0;
        while matches!(settled.try_recv(), Err(oneshot::error::TryRecvError::Empty))
            && Instant::now() < end
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Batches that wait to be tried again, and those given up because too many did.
    #[must_use]
    pub fn unwritten(&self) -> (usize, u64) {
        let kept = self.shared.kept.lock();
        let waiting = kept.len() + self.shared.tried.load(Ordering::Relaxed);
        (waiting, self.shared.dropped.load(Ordering::Relaxed))
    }

    /// Has everything that is committed taken in before whoever waits for it is told. Only the first
    /// one that asks for it gets it.
    pub fn on_commit(&self, take_in: OnCommit) {
        let _ = self.shared.on_commit.set(take_in);
    }

    /// Everything that is committed from now on, in order. A receiver that lags misses some and
    /// is told so.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Committed>> {
        self.feed.subscribe()
    }

    /// The latest word on a key.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn get(&self, table: Table, key: &str) -> Result<Option<Register>, StoreError> {
        database::get(&self.state.lock(), table, key)
    }

    /// Every register of a kind, removed ones too, by key. Read in pages, between which others read.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn scan(&self, table: Table) -> Result<Vec<Register>, StoreError> {
        database::scan(|after, limit| self.scan_after(table, after, limit))
    }

    /// Up to `limit` registers of a kind whose keys come after one, removed ones too, by key.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn scan_after(
        &self,
        table: Table,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Register>, StoreError> {
        database::scan_after(&self.state.lock(), table, after, limit)
    }

    /// Audit entries.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn audit(&self, query: &Query) -> Result<Vec<Chained>, StoreError> {
        database::audit(&self.state.lock(), query)
    }

    /// The audit's last entry: its number and hash.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn audit_head(&self) -> Result<Anchor, StoreError> {
        head(&self.state.lock())
    }

    /// Lets go of removals that were said before a time, a page at once. Returns how many.
    ///
    /// # Errors
    /// When nothing of it was done.
    pub fn forget_removed(&self, before_ms: u64) -> Result<usize, StoreError> {
        database::forget_removed(&self.writer.lock(), before_ms, STORE_PAGE)
    }
}

fn head(state: &Connection) -> Result<Anchor, StoreError> {
    let last = database::last_link(state)?;
    Ok(last.map_or_else(Anchor::default, |(seq, hash)| Anchor { seq, hash }))
}

/// A state that takes too long to be checked before the start is checked beside it.
fn verify_later(dir: &Path) -> Result<(), StoreError> {
    let dir = dir.to_owned();
    let check = move || {
        let checked = database::connect(&dir, Which::State)
            .and_then(|connection| database::verify_state(&connection, &dir));
        if let Err(error) = checked {
            error!(%error, "the store was checked");
        }
    };
    let spawned = std::thread::Builder::new().name("store-check".to_owned()).spawn(check);
    spawned.map(drop).map_err(|error| StoreError::Database(error.to_string()))
}

/// The thread that writes.
struct Writer {
    connection: Arc<Mutex<Connection>>,
    node: Arc<str>,
    shared: Arc<Shared>,
    feed: broadcast::Sender<Arc<Committed>>,
    /// The last change that this process has made or heard of.
    seen: i64,
    failing_since: Option<Instant>,
    /// When what is kept is tried again at the earliest.
    retry_at: Instant,
}

impl Writer {
    fn commit(&mut self, mut group: Vec<Request>) {
        if Instant::now() >= self.retry_at {
            self.write_kept();
        }
        if !self.shared.kept.lock().is_empty() {
            // What is kept stays in order. Whoever waits is to know at once.
            let (kept, waited_for): (Vec<_>, Vec<_>) =
                group.into_iter().partition(|request| request.done.is_none());
            kept.into_iter().for_each(|request| self.shared.keep(request.batch));
            group = waited_for;
        }
        let (batches, waiting): (Vec<Batch>, Vec<_>) =
            group.into_iter().map(|request| (request.batch, request.done)).unzip();
        for ((batch, waiting), done) in batches.iter().zip(waiting).zip(self.write_each(&batches)) {
            match (waiting, done) {
                // Whoever waited may have gone.
                (Some(waiting), done) => drop(waiting.send(done)),
                (None, Ok(_)) => {}
                (None, Err(StoreError::Database(_))) => self.give_up(),
                (None, Err(_)) => self.shared.keep(batch.clone()),
            }
        }
    }

    /// Tries again what could not be written, in order.
    fn write_kept(&mut self) {
        loop {
            let group: Vec<Batch> = {
                let mut kept = self.shared.kept.lock();
                let some = kept.len().min(STORE_GROUP_MAX);
                self.shared.tried.store(some, Ordering::Relaxed);
                kept.drain(..some).collect()
            };
            if group.is_empty() {
                return;
            }
            let done = self.write_each(&group);
            let mut failed = false;
            let mut kept = self.shared.kept.lock();
            for (batch, done) in group.into_iter().zip(done).rev() {
                match done {
                    Ok(_) => {}
                    Err(StoreError::Database(_)) => self.give_up(),
                    Err(_) => {
                        failed = true;
                        kept.push_front(batch);
                    }
                }
            }
            self.shared.tried.store(0, Ordering::Relaxed);
            self.shared.waiting(kept.len());
            drop(kept);
            if failed {
                self.retry_at = Instant::now() + RETRY_PAUSE;
                return;
            }
        }
    }

    /// What is in it the database does not take, and never will.
    fn give_up(&self) {
        error!("something that the database does not take was given up");
        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        self.shared.count(|metrics| metrics.store_dropped.inc());
    }

    /// Writes a group in one transaction; where that fails for what is in it, each alone, so that
    /// one bad batch does not take the others with it.
    fn write_each(&mut self, group: &[Batch]) -> Vec<Result<Arc<Committed>, StoreError>> {
        if group.is_empty() {
            return Vec::new();
        }
        let all: Vec<&Batch> = group.iter().collect();
        let done: Vec<_> = match self.write(&all) {
            Ok(done) => done.into_iter().map(Ok).collect(),
            Err(StoreError::Database(_)) if group.len() > 1 => group
                .iter()
                .map(|batch| Ok(self.write(&[batch])?.pop().unwrap_or_default()))
                .collect(),
            Err(error) => group.iter().map(|_| Err(error.clone())).collect(),
        };
        done.into_iter().map(|done| done.map(|committed| self.told(committed))).collect()
    }

    fn write(&mut self, batches: &[&Batch]) -> Result<Vec<Committed>, StoreError> {
        let begun = Instant::now();
        let done = {
            let mut connection = self.connection.lock();
            database::commit(&mut connection, &self.node, unix_ms(), self.seen, batches)
        };
        let written = done.map(|done| {
            self.heard(done.others, done.change);
            done.written
        });
        match &written {
            Ok(_) => {
                let seconds = begun.elapsed().as_secs_f64();
                self.shared.count(|metrics| {
                    metrics.store_commits.with_label_values(&["ok"]).inc();
                    metrics.store_commit_duration.with_label_values::<&str>(&[]).observe(seconds);
                    metrics.store_failing.set(0);
                });
                if let Some(since) = self.failing_since.take() {
                    let seconds = since.elapsed().as_secs();
                    info!(after_seconds = seconds, "the store can be written again");
                }
            }
            Err(error) => {
                self.shared.count(|metrics| {
                    metrics.store_commits.with_label_values(&["failed"]).inc();
                    metrics.store_failing.set(1);
                });
                // Once, and not at each attempt.
                if self.failing_since.is_none() {
                    self.failing_since = Some(begun);
                    error!(
                        %error,
                        "the store cannot be written: requests are served and judged, what is \
                         judged is kept for later, operators' changes are refused"
                    );
                }
            }
        }
        written
    }

    /// Takes in what another process has written: of the one that is being replaced, or of the one
    /// that replaces this.
    fn follow(&mut self) {
        let found = {
            let connection = self.connection.lock();
            match database::last_change(&connection) {
                Ok(last) if last > self.seen => {
                    database::changed_after(&connection, self.seen).map(|others| (others, last))
                }
                Ok(_) => return,
                Err(error) => Err(error),
            }
        };
        // What cannot be read now is tried again.
        if let Ok((others, last)) = found {
            self.heard(others, last);
        }
    }

    /// Whoever follows this process' own commits is not told: the other one tells its own. As long
    /// as nobody takes them in they are not seen.
    fn heard(&mut self, registers: Vec<Register>, change: i64) {
        if !registers.is_empty() {
            let Some(take_in) = self.shared.on_commit.get() else { return };
            take_in(&Committed { registers, audit: Vec::new() });
        }
        self.seen = change;
    }

    fn told(&self, committed: Committed) -> Arc<Committed> {
        if let Some(take_in) = self.shared.on_commit.get() {
            take_in(&committed);
        }
        let committed = Arc::new(committed);
        // Nobody may be listening.
        let _ = self.feed.send(committed.clone());
        committed
    }
}

/// How long a reader or writer waits for another process's transaction: of the process that is
/// being replaced.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two looks at what another process has written.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);
/// Time after which what could not be written is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
