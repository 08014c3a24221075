//! What outlives the process: an operator's words, tiers, marks, indicators, the audit, and what is
//! remembered of accounts.
//!
//! Two databases in one directory. `state` holds *registers* and the audit: small, durable before
//! anything is acknowledged, committed in groups by one thread. `memory` holds a row an account,
//! written behind. They are apart so that a long write of rows never holds up a short one of state.
//!
//! A register is the latest word on one key of one [`Table`], with a [`Stamp`]; of two words the one
//! with the later stamp counts, wherever it was said. So registers of several gateways merge in any
//! order, and a removal is a word like any other.
//!
//! Whoever acts on what is held keeps it in memory; the store is read at start, and for accounts
//! that come back.

mod database;
mod reader;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use detectors::AccountId;
use parking_lot::Mutex;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, oneshot};

use crate::audit::{Anchor, Chained, Draft, Query};
use crate::limits::{STORE_FEED_MAX, STORE_GROUP_MAX, STORE_KEPT_MAX, STORE_QUEUE_MAX};
use crate::policy::unix_ms;

pub use self::reader::Reader;

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
    #[error("the store {path}: {message}")]
    Open {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
    /// The disk is full.
    #[error("the store's disk is full")]
    Full,
    /// More is waiting to be written than may.
    #[error("the store has more to write than it can")]
    Busy,
    /// Anything else that the database says.
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
    state: Mutex<Connection>,
    memory: Mutex<Connection>,
    rows: Mutex<Connection>,
    queue: SyncSender<Request>,
    feed: broadcast::Sender<Arc<Committed>>,
    shared: Arc<Shared>,
}

/// What the writing thread shares.
#[derive(Default)]
struct Shared {
    on_commit: OnceLock<OnCommit>,
    /// What could not be written yet and is tried again.
    kept: Mutex<VecDeque<Batch>>,
    dropped: AtomicU64,
}

impl Shared {
    fn keep(&self, batch: Batch) {
        let mut kept = self.kept.lock();
        if kept.len() >= STORE_KEPT_MAX {
            kept.pop_front();
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        kept.push_back(batch);
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
        Self::start(&database::Place::Directory(dir.to_owned()), node, key_check)
    }

    /// A store that ends with the process.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn in_memory(node: &str) -> Result<Arc<Self>, StoreError> {
        Self::start(&database::Place::new_memory(), Some(node), "")
    }

    fn start(
        at: &database::Place,
        node: Option<&str>,
        key_check: &str,
    ) -> Result<Arc<Self>, StoreError> {
        let writer = database::open_state(at, key_check)?;
        let node = match node {
            Some(node) => node.to_owned(),
            None => database::node(&writer)?,
        };
        let rows = database::open_memory(at, key_check)?;
        let (queue, requests) = sync_channel::<Request>(STORE_QUEUE_MAX);
        let (feed, _) = broadcast::channel(STORE_FEED_MAX);
        let store = Arc::new(Self {
            node: node.into(),
            dir: at.directory(),
            state: Mutex::new(database::open_state(at, key_check)?),
            memory: Mutex::new(database::open_memory(at, key_check)?),
            rows: Mutex::new(rows),
            queue,
            feed: feed.clone(),
            shared: Arc::default(),
        });
        let mut writer = Writer {
            connection: writer,
            node: store.node.clone(),
            shared: store.shared.clone(),
            feed,
        };
        let thread = std::thread::Builder::new().name("store".to_owned());
        let spawned = thread.spawn(move || {
            loop {
                let mut group = match requests.recv_timeout(RETRY_PAUSE) {
                    Ok(first) => vec![first],
                    Err(RecvTimeoutError::Timeout) => {
                        writer.write_kept();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                while group.len() < STORE_GROUP_MAX
                    && let Ok(next) = requests.try_recv()
                {
                    group.push(next);
                }
                writer.commit(group);
            }
        });
        spawned.map_err(|error| StoreError::Database(error.to_string()))?;
        Ok(store)
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

    /// Batches that wait to be tried again, and those given up because too many did.
    #[must_use]
    pub fn unwritten(&self) -> (usize, u64) {
        (self.shared.kept.lock().len(), self.shared.dropped.load(Ordering::Relaxed))
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

    /// Every register of a kind, removed ones too, by key.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn scan(&self, table: Table) -> Result<Vec<Register>, StoreError> {
        database::scan(&self.state.lock(), table)
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

    /// Number of the last audit entry; 0 before the first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn last_audit(&self) -> Result<u64, StoreError> {
        Ok(database::last_link(&self.state.lock())?.map_or(0, |(seq, _)| seq))
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

    /// What is remembered of an account.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn row(&self, account: &AccountId) -> Result<Option<Vec<u8>>, StoreError> {
        database::row(&self.memory.lock(), account.as_str())
    }

    /// Up to `limit` rows whose accounts come after one, in order.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn rows_after(
        &self,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(AccountId, Vec<u8>)>, StoreError> {
        database::rows_after(&self.memory.lock(), after, limit)
    }

    /// Writes rows in one transaction; the last ones may be lost when the machine fails.
    ///
    /// # Errors
    /// When nothing of it was written.
    pub fn put_rows(&self, rows: &[(AccountId, Vec<u8>)]) -> Result<(), StoreError> {
        database::put_rows(&mut self.rows.lock(), rows)
    }
}

fn head(state: &Connection) -> Result<Anchor, StoreError> {
    let last = database::last_link(state)?;
    Ok(last.map_or_else(Anchor::default, |(seq, hash)| Anchor { seq, hash }))
}

/// The thread that writes.
struct Writer {
    connection: Connection,
    node: Arc<str>,
    shared: Arc<Shared>,
    feed: broadcast::Sender<Arc<Committed>>,
}

impl Writer {
    /// Writes a group in one transaction; where that fails, each alone, so that one bad batch does
    /// not take the others with it.
    fn commit(&mut self, group: Vec<Request>) {
        let batches: Vec<&Batch> = group.iter().map(|request| &request.batch).collect();
        let done: Vec<_> = match self.write(&batches) {
            Ok(done) => done.into_iter().map(Ok).collect(),
            Err(_) if group.len() > 1 => batches
                .iter()
                .map(|batch| Ok(self.write(&[batch])?.pop().unwrap_or_default()))
                .collect(),
            Err(error) => vec![Err(error)],
        };
        for (request, done) in group.into_iter().zip(done) {
            let done = done.map(|committed| self.told(committed));
            match (request.done, done) {
                // Whoever waited may have gone.
                (Some(waiting), done) => drop(waiting.send(done)),
                (None, Ok(_)) => {}
                (None, Err(_)) => self.shared.keep(request.batch),
            }
        }
    }

    /// Tries again what could not be written, in order.
    fn write_kept(&mut self) {
        loop {
            let Some(batch) = self.shared.kept.lock().pop_front() else { return };
            match self.write(&[&batch]) {
                Ok(done) => done.into_iter().for_each(|committed| drop(self.told(committed))),
                Err(_) => return self.shared.kept.lock().push_front(batch),
            }
        }
    }

    fn write(&mut self, batches: &[&Batch]) -> Result<Vec<Committed>, StoreError> {
        database::commit(&mut self.connection, &self.node, unix_ms(), batches)
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
/// Time after which what could not be written is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
