//! What is remembered of accounts, on disk: written behind, and taken back when it is needed.
//!
//! An account that the engine does not hold is put there by one thread, the loader, after it has
//! asked the store for its row. So whatever the engine holds includes what was stored, and writing
//! it never loses anything. A request of such an account waits for the loader no longer than for a
//! judgement; then it goes on by the known tier, and the loader takes it in when the row is there.
//! A sweep takes back all other rows after the start, since ties lead to accounts that have not come
//! back themselves. Once it has, and as long as nothing was let go, an account that is not held is
//! known to be new, and nobody is asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use detectors::engine::{AccountRow, Arrival};
use detectors::seen::Arrived;
use detectors::{AccountId, Event};
use parking_lot::{Condvar, Mutex};
use tracing::{error, info, warn};

use crate::enforce::kept::ProfileWord;
use crate::judge::{Follower, Judge};
use crate::limits::{
    ROW_BATCH, ROW_FLUSH_INTERVAL, ROW_LAST_FLUSH_MAX, ROW_PAGE, ROW_QUEUE_MAX, STORE_PAGE,
    STORE_REMOVED_KEPT,
};
use crate::metrics::Metrics;
use crate::policy::unix_ms;
use crate::store::{RowReader, Rows, Store, StoreError, Table, day_of};

/// Time between two deletions of what is old.
const TIDY_INTERVAL: Duration = Duration::from_secs(3_600);
/// The first one after the start waits until there is less to do.
const TIDY_FIRST: Duration = Duration::from_secs(120);
/// Pause between two pages of a deletion: others write in between.
const TIDY_PAUSE: Duration = Duration::from_millis(50);

/// Puts accounts into the engine with what is stored of them.
pub(crate) struct Loader {
    queue: SyncSender<Job>,
    begun: Instant,
    /// When the read under way began, in microseconds since `begun` and one; 0: none is.
    reading_since: AtomicU64,
    /// Whether everything that is stored is held.
    complete: AtomicBool,
    metrics: Arc<Metrics>,
}

struct Job {
    account: AccountId,
    wanted: Wanted,
}

/// What is done with an account when it is there.
enum Wanted {
    Arrived { arrived: Box<Arrived>, profile: Option<Event>, slot: Arc<Slot> },
    Observe(Event),
    Nothing(SyncSender<()>),
}

/// Where a request waits for what became of it.
#[derive(Default)]
struct Slot {
    state: Mutex<SlotState>,
    there: Condvar,
}

#[derive(Default)]
enum SlotState {
    #[default]
    Awaited,
    There(Box<Arrival>),
    GivenUp,
}

impl Loader {
    /// Has a request taken in. `None` where that took too long; then it is taken in later, if there
    /// was room for it.
    pub(crate) fn arrived(
        &self,
        account: &AccountId,
        profile: Option<Event>,
        arrived: Arrived,
        patience: Duration,
    ) -> Option<Arrival> {
        let slot = Arc::new(Slot::default());
        let waits = slot.clone();
        let wanted = Wanted::Arrived { arrived: Box::new(arrived), profile, slot };
        let sent = self.queue.try_send(Job { account: account.clone(), wanted });
        let taken_in = match sent {
            // A disk that does not answer the one before will not answer this one.
            Ok(()) if self.is_stalled(patience) => waits.wait(Duration::ZERO),
            Ok(()) => waits.wait(patience),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => None,
        };
        if taken_in.is_none() {
            self.metrics.rows_late.inc();
        }
        taken_in
    }

    /// Has an event of an account taken in. Waits while the queue is full.
    pub(crate) fn observe(&self, account: &AccountId, event: Event) {
        // The loader ends with the process.
        let _ = self.queue.send(Job { account: account.clone(), wanted: Wanted::Observe(event) });
    }

    /// Has an account put into the engine, if it is stored. Whether that was done in time.
    pub(crate) fn fetch(&self, account: &AccountId, patience: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        let job = Job { account: account.clone(), wanted: Wanted::Nothing(done) };
        self.queue.try_send(job).is_ok() && wait.recv_timeout(patience).is_ok()
    }

    /// Whether everything that is stored is held, as long as nothing was let go.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    fn is_stalled(&self, patience: Duration) -> bool {
        let since = self.reading_since.load(Ordering::Relaxed);
        since > 0 && self.begun.elapsed().saturating_sub(Duration::from_micros(since)) > patience
    }

    fn reading(&self, reading: bool) {
        let now = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.reading_since.store(if reading { now.max(1) } else { 0 }, Ordering::Relaxed);
    }
}

impl Slot {
    fn wait(&self, patience: Duration) -> Option<Arrival> {
        let end = Instant::now() + patience;
        let mut state = self.state.lock();
        while matches!(*state, SlotState::Awaited) {
            if self.there.wait_until(&mut state, end).timed_out() {
                break;
            }
        }
        match std::mem::replace(&mut *state, SlotState::GivenUp) {
            SlotState::There(arrival) => Some(*arrival),
            SlotState::Awaited | SlotState::GivenUp => None,
        }
    }

    /// Gives it back where nobody waits any more.
    fn put(&self, arrival: Arrival) -> Option<Arrival> {
        let mut state = self.state.lock();
        if matches!(*state, SlotState::GivenUp) {
            return Some(arrival);
        }
        *state = SlotState::There(Box::new(arrival));
        self.there.notify_one();
        None
    }
}

/// Rows of accounts between the engine and the store.
pub struct AccountMemory {
    judge: Arc<Judge>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    keep_days: u32,
    loader: Arc<Loader>,
    /// Rows that were taken out of the engine and are not in the store yet.
    in_flight: Mutex<Arc<HashMap<AccountId, Vec<u8>>>>,
    wake: SyncSender<SyncSender<()>>,
}

/// What the sweep after the start has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Rows that were taken back.
    pub taken: u64,
    /// Rows that could not be read.
    pub damaged: u64,
    /// Rows beyond what the engine holds.
    pub left: u64,
}

impl AccountMemory {
    /// Starts the threads, which end with the process: from now on accounts come into the engine
    /// with what is stored of them. `None` where nothing is stored. Rows that were not written for
    /// `keep_days` are deleted.
    ///
    /// # Errors
    /// When the store cannot be read or the system gives no thread.
    pub fn start(
        judge: Arc<Judge>,
        store: Arc<Store>,
        metrics: Arc<Metrics>,
        keep_days: u32,
    ) -> Result<Option<Arc<Self>>, StoreError> {
        let Some(rows) = store.rows() else { return Ok(None) };
        let reader = rows.reader()?;
        let (queue, jobs) = sync_channel(ROW_QUEUE_MAX);
        let loader = Arc::new(Loader {
            queue,
            begun: Instant::now(),
            reading_since: AtomicU64::new(0),
            complete: AtomicBool::new(false),
            metrics: metrics.clone(),
        });
        let (wake, wakes) = sync_channel(8);
        let in_flight = Mutex::default();
        let judge_too = judge.clone();
        let memory =
            Self { judge, store, metrics, keep_days, loader: loader.clone(), in_flight, wake };
        let memory = Arc::new(memory);
        judge_too.follow(Follower::Store);
        let spawned = spawn("rows-in", &memory, move |memory| memory.load(&jobs, &reader))
            .and_then(|()| spawn("rows-out", &memory, move |memory| memory.write(&wakes)));
        spawned.map_err(|error| StoreError::Database(error.to_string()))?;
        judge_too.load_with(loader);
        Ok(Some(memory))
    }

    /// Takes back all rows, but no more accounts than the engine holds, on a thread of its own; then
    /// does what is wanted.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn sweep(
        self: &Arc<Self>,
        accounts_max: usize,
        then: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<()> {
        spawn("rows-sweep", self, move |memory| {
            let begun = Instant::now();
            match memory.take_back(accounts_max as u64) {
                Ok(swept) => info!(
                    accounts = swept.taken,
                    damaged = swept.damaged,
                    left = swept.left,
                    seconds = begun.elapsed().as_secs_f64(),
                    "what is remembered of accounts was taken back"
                ),
                Err(error) => {
                    memory.metrics.rows_failures.inc();
                    error!(%error, "not all that is remembered of accounts could be taken back");
                }
            }
            memory.judge.all_taken_back();
            then();
        })
    }

    /// Writes all that has changed; returns when it is written, or has taken too long.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.wake.try_send(done).is_ok() {
            let _ = wait.recv_timeout(ROW_LAST_FLUSH_MAX);
        }
    }

    fn load(&self, jobs: &Receiver<Job>, reader: &RowReader) {
        while let Ok(Job { account, wanted }) = jobs.recv() {
            let found = if self.judge.is_here(&account) {
                None
            } else {
                self.loader.reading(true);
                let found = self.find(&account, reader);
                self.loader.reading(false);
                Some(found)
            };
            if let Some((row, profile)) = found {
                let only_asked = matches!(wanted, Wanted::Nothing(_)) && profile.is_none();
                match row {
                    Some(row) => self.judge.adopt(vec![row], Duration::ZERO),
                    None if only_asked && !self.judge.holds(&account) => {}
                    None => self.judge.nothing_stored(&account),
                }
                if let Some(profile) = profile {
                    self.judge.observe_held(&profile);
                }
            }
            match wanted {
                Wanted::Nothing(done) => drop(done.send(())),
                Wanted::Observe(event) => self.judge.observe_held(&event),
                Wanted::Arrived { arrived, profile, slot } => {
                    let arrival = self.judge.take_in_arrived(*arrived, profile.as_ref());
                    if let Some(arrival) = slot.put(arrival) {
                        self.judge.arrived_late(arrival);
                    }
                }
            }
        }
    }

    /// What is stored of an account, and what an operator told of it.
    fn find(&self, account: &AccountId, reader: &RowReader) -> (Option<AccountRow>, Option<Event>) {
        let in_flight = self.in_flight.lock().get(account).cloned();
        let bytes = match in_flight {
            Some(bytes) => Some(bytes),
            None => reader.get(account).unwrap_or_else(|error| {
                self.unread(&error);
                None
            }),
        };
        let row = bytes.and_then(|bytes| self.decode(account, &bytes));
        let profile = self.store.get(Table::Profile, account.as_str()).ok().flatten();
        let profile = profile
            .and_then(|register| serde_json::from_str::<ProfileWord>(&register.value?).ok())
            .map(|word| Event::Profile(word.of(account)));
        if row.is_some() {
            self.metrics.rows_read.inc();
        }
        (row, profile)
    }

    fn unread(&self, error: &StoreError) {
        match error {
            StoreError::Damaged(_) => self.metrics.rows_damaged.inc(),
            _ => self.metrics.rows_failures.inc(),
        }
        warn!(%error, "an account begins anew");
    }

    fn decode(&self, account: &AccountId, bytes: &[u8]) -> Option<AccountRow> {
        match AccountRow::decode(bytes) {
            Ok(row) if row.id == *account => Some(row),
            Ok(_) => {
                self.unread(&StoreError::Damaged("an account's row".to_owned()));
                None
            }
            Err(error) => {
                // The error tells of lengths and versions only.
                self.unread(&StoreError::Damaged(format!("an account's row ({error})")));
                None
            }
        }
    }

    /// Takes back the rows that were written last, the latest of them last: so the engine lets go
    /// of the oldest first.
    fn take_back(&self, accounts_max: u64) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let Some(rows) = self.store.rows() else { return Ok(swept) };
        let reader = rows.reader()?;
        let mut room = accounts_max;
        let mut days = Vec::new();
        for (day, rows) in reader.days()? {
            if room == 0 {
                swept.left += rows;
                continue;
            }
            swept.left += rows.saturating_sub(room);
            room = room.saturating_sub(rows);
            days.push(day);
        }
        let mut room = accounts_max;
        for day in days.into_iter().rev() {
            let mut after = i64::MIN;
            loop {
                let page = reader.of_day(day, after, ROW_PAGE)?;
                let Some(last) = page.last() else { break };
                after = last.place;
                let whole = page.len() == ROW_PAGE;
                let mut found = Vec::with_capacity(page.len());
                for stored in page {
                    let row = stored.bytes.and_then(|bytes| AccountRow::decode(&bytes).ok());
                    match row.filter(|row| row.id == stored.account) {
                        Some(row) => found.push(row),
                        None => swept.damaged += 1,
                    }
                }
                found.truncate(usize::try_from(room).unwrap_or(usize::MAX));
                room = room.saturating_sub(found.len() as u64);
                swept.taken += found.len() as u64;
                self.metrics.rows_read.inc_by(found.len() as u64);
                // As long as it held the engine it leaves it to others.
                self.judge.adopt(found, Duration::from_micros(50));
                if !whole || room == 0 {
                    break;
                }
            }
        }
        if swept.damaged > 0 {
            self.metrics.rows_damaged.inc_by(swept.damaged);
            warn!(rows = swept.damaged, "rows of accounts were not as they were written: left out");
        }
        if swept.left == 0 && room > 0 {
            self.loader.complete.store(true, Ordering::Relaxed);
        }
        Ok(swept)
    }

    fn write(&self, wakes: &Receiver<SyncSender<()>>) {
        let mut written_to = Instant::now();
        let mut failing_since = None;
        let mut tidy_at = Instant::now() + TIDY_FIRST;
        loop {
            let asked = match wakes.recv_timeout(ROW_FLUSH_INTERVAL) {
                Ok(asked) => Some(asked),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let begun = Instant::now();
            match self.write_changed() {
                Ok(()) => {
                    written_to = begun;
                    if let Some(since) = failing_since.take() {
                        let seconds = Instant::now().duration_since(since).as_secs();
                        info!(after_seconds = seconds, "rows of accounts can be written again");
                    }
                }
                Err(error) => {
                    self.metrics.rows_failures.inc();
                    // Once, and not at each attempt.
                    if failing_since.is_none() {
                        failing_since = Some(begun);
                        error!(%error, "rows of accounts cannot be written, and are kept for later");
                    }
                }
            }
            let waiting = self.in_flight.lock().len() + self.judge.changed_len(Follower::Store);
            let lag = if waiting == 0 { 0 } else { written_to.elapsed().as_secs() };
            self.metrics.rows_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
            self.metrics.rows_lag.set(i64::try_from(lag).unwrap_or(i64::MAX));
            if let Some(asked) = asked {
                let _ = asked.send(());
            }
            if Instant::now() >= tidy_at {
                if let Err(error) = self.tidy() {
                    warn!(%error, "what is old could not be deleted from the store");
                }
                tidy_at = Instant::now() + TIDY_INTERVAL;
            }
        }
    }

    /// Writes every account that has changed.
    fn write_changed(&self) -> Result<(), StoreError> {
        let Some(rows) = self.store.rows() else { return Ok(()) };
        loop {
            let mut batch = self.in_flight.lock().clone();
            if batch.is_empty() {
                let changed = self.judge.take_changed(Follower::Store, ROW_BATCH);
                if changed.is_empty() {
                    return Ok(());
                }
                let fresh = self.judge.rows(&changed);
                let fresh = fresh.into_iter().map(|row| (row.id.clone(), row.encode()));
                batch = Arc::new(fresh.collect());
                *self.in_flight.lock() = batch.clone();
            }
            let all = batch.iter().map(|(account, row)| (account, row.as_slice()));
            rows.put(unix_ms(), all)?;
            self.metrics.rows_written.inc_by(batch.len() as u64);
            *self.in_flight.lock() = Arc::default();
        }
    }

    /// Deletes what is old.
    fn tidy(&self) -> Result<(), StoreError> {
        let Some(rows) = self.store.rows() else { return Ok(()) };
        forget_rows(rows, day_of(unix_ms()) - i64::from(self.keep_days))?;
        let kept_ms = u64::try_from(STORE_REMOVED_KEPT.as_millis()).unwrap_or(u64::MAX);
        while self.store.forget_removed(unix_ms().saturating_sub(kept_ms))? == STORE_PAGE {
            std::thread::sleep(TIDY_PAUSE);
        }
        Ok(())
    }
}

fn forget_rows(rows: &Rows, before: i64) -> Result<(), StoreError> {
    while rows.forget_before(before, STORE_PAGE)? == STORE_PAGE {
        std::thread::sleep(TIDY_PAUSE);
    }
    Ok(())
}

fn spawn(
    name: &str,
    memory: &Arc<AccountMemory>,
    run: impl FnOnce(&AccountMemory) + Send + 'static,
) -> std::io::Result<()> {
    let memory = memory.clone();
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(move || run(&memory)).map(drop)
}

#[cfg(test)]
mod tests;
