//! Rows of accounts: what is remembered of each, encoded by the engine.
//!
//! The database has a writer and, for each thread that reads, a connection of its own, so that
//! nobody waits for anybody. A process that takes over has the larger epoch: what the one before
//! writes at its end does not replace what its successor has written.

use std::path::{Path, PathBuf};

use detectors::AccountId;
use flate2::Crc;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::StoreError;
use super::database::{self, Which};

const DAY_MS: u64 = 86_400_000;

/// The rows of a store on disk.
pub struct Rows {
    dir: PathBuf,
    epoch: i64,
    writer: Mutex<Connection>,
}

/// A row as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place, for reading on after it.
    pub place: i64,
    /// The account.
    pub account: AccountId,
    /// What the engine encoded; `None` where the disk gave back something else.
    pub bytes: Option<Vec<u8>>,
}

/// The day of a time, counted from 1970. A row's is that on which it was last written.
#[must_use]
pub fn day_of(unix_ms: u64) -> i64 {
    i64::try_from(unix_ms / DAY_MS).unwrap_or(i64::MAX)
}

impl Rows {
    pub(super) fn open(dir: &Path, key_check: &str) -> Result<Self, StoreError> {
        let mut writer = database::open(Some(dir), Which::Memory, key_check)?;
        let epoch = {
            let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let last: Option<String> = transaction
                .query_row("SELECT value FROM meta WHERE name = 'epoch'", [], |row| row.get(0))
                .optional()?;
            let epoch = last.and_then(|last| last.parse::<i64>().ok()).unwrap_or(0) + 1;
            let put = "INSERT OR REPLACE INTO meta (name, value) VALUES ('epoch', ?1)";
            transaction.execute(put, [epoch.to_string()])?;
            transaction.commit()?;
            epoch
        };
        Ok(Self { dir: dir.to_owned(), epoch, writer: Mutex::new(writer) })
    }

    /// Writes rows in one transaction; the last ones may be lost when the machine fails.
    ///
    /// # Errors
    /// When nothing of it was written.
    pub fn put<'r>(
        &self,
        now_ms: u64,
        rows: impl IntoIterator<Item = (&'r AccountId, &'r [u8])>,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer.lock();
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut put = transaction.prepare_cached(
                "INSERT INTO accounts (id, day, epoch, sum, row) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (id) DO UPDATE SET day = excluded.day, epoch = excluded.epoch,
                 sum = excluded.sum, row = excluded.row WHERE excluded.epoch >= epoch",
            )?;
            for (account, row) in rows {
                let sum = sum(account.as_str(), row);
                put.execute(params![account.as_str(), day_of(now_ms), self.epoch, sum, row])?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// Deletes up to `limit` rows that were last written before a day. Returns how many.
    ///
    /// # Errors
    /// When nothing of it was done.
    pub fn forget_before(&self, day: i64, limit: usize) -> Result<usize, StoreError> {
        let writer = self.writer.lock();
        let mut forget = writer.prepare_cached(
            "DELETE FROM accounts WHERE rowid IN
             (SELECT rowid FROM accounts WHERE day < ?1 LIMIT ?2)",
        )?;
        Ok(forget.execute(params![day, i64::try_from(limit).unwrap_or(i64::MAX)])?)
    }

    /// A reader with a connection of its own.
    ///
    /// # Errors
    /// When the database cannot be opened.
    pub fn reader(&self) -> Result<RowReader, StoreError> {
        Ok(RowReader(database::connect(&self.dir, Which::Memory)?))
    }
}

/// Reads rows.
pub struct RowReader(Connection);

impl RowReader {
    /// An account's row.
    ///
    /// # Errors
    /// When the database cannot be read, or the row is not as it was written.
    pub fn get(&self, account: &AccountId) -> Result<Option<Vec<u8>>, StoreError> {
        let mut find = self.0.prepare_cached("SELECT sum, row FROM accounts WHERE id = ?1")?;
        let found = find
            .query_row([account.as_str()], |row| {
                Ok((row.get::<_, u32>(0)?, row.get::<_, Vec<u8>>(1)?))
            })
            .optional()?;
        match found {
            Some((written, row)) if written == sum(account.as_str(), &row) => Ok(Some(row)),
            Some(_) => Err(StoreError::Damaged("an account's row".to_owned())),
            None => Ok(None),
        }
    }

    /// How many rows were last written on each day, the latest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn days(&self) -> Result<Vec<(i64, u64)>, StoreError> {
        let mut days = self
            .0
            .prepare_cached("SELECT day, count(*) FROM accounts GROUP BY day ORDER BY day DESC")?;
        let found = days.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(found.collect::<Result<_, _>>()?)
    }

    /// Up to `limit` rows of a day that come after a place, in order.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn of_day(&self, day: i64, after: i64, limit: usize) -> Result<Vec<Stored>, StoreError> {
        let mut read = self.0.prepare_cached(
            "SELECT rowid, id, sum, row FROM accounts WHERE day = ?1 AND rowid > ?2
             ORDER BY rowid LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let found = read.query_map(params![day, after, limit], |row| {
            let (id, written): (String, u32) = (row.get(1)?, row.get(2)?);
            let bytes: Vec<u8> = row.get(3)?;
            let bytes = (sum(&id, &bytes) == written).then_some(bytes);
            Ok(Stored { place: row.get(0)?, account: AccountId::new(id), bytes })
        })?;
        Ok(found.collect::<Result<_, _>>()?)
    }
}

/// CRC-32 over the account and its row.
fn sum(account: &str, row: &[u8]) -> u32 {
    let mut sum = Crc::new();
    sum.update(account.as_bytes());
    sum.update(row);
    sum.sum()
}
