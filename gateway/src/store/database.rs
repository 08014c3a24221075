//! The two SQLite databases: how they are opened and checked, registers and audit.
//!
//! Source: SQLite, "Write-Ahead Logging", "PRAGMA synchronous" and "Database File Format".

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Crc;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::{BUSY_TIMEOUT, Batch, Committed, Register, Stamp, StoreError, Table};
use crate::audit::{Chained, FIRST, Query, digest, link_hash};
use crate::limits::{STORE_CHECKED_BYTES_MAX, STORE_PAGE};

/// Version of the tables below; it changes with every change to them.
const FORMAT: i32 = 1;
/// Marks our databases among SQLite's ("SGst").
const APPLICATION: i32 = 0x5347_7374;
/// Bytes to which a journal is cut back once its pages are in the database.
const JOURNAL_BYTES_KEPT: i64 = 64 * 1024 * 1024;

/// What whoever finds a damaged store is to do.
const RESTORE: &str = "move the directory away and put a backup in its place (stillgate backup), \
                       or begin anew without it";

const STATE_SCHEMA: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE registers (
    kind INTEGER NOT NULL, key TEXT NOT NULL, at_ms INTEGER NOT NULL, by TEXT NOT NULL, value TEXT,
    sum INTEGER NOT NULL, change INTEGER NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE UNIQUE INDEX changes ON registers (change);
CREATE INDEX removed ON registers (at_ms) WHERE value IS NULL;
CREATE TABLE audit (seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, entry TEXT NOT NULL);
";
const MEMORY_SCHEMA: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE accounts (
    id TEXT NOT NULL UNIQUE, day INTEGER NOT NULL, epoch INTEGER NOT NULL, sum INTEGER NOT NULL,
    row BLOB NOT NULL
);
CREATE INDEX accounts_by_day ON accounts (day);
";

/// One of the two databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Registers and audit: each commit is on disk before it is acknowledged.
    State,
    /// Account rows: written behind, so a crash of the machine may take the last of them.
    Memory,
}

impl Which {
    pub(super) const ALL: [Self; 2] = [Self::State, Self::Memory];

    pub(super) fn file(self) -> &'static str {
        match self {
            Self::State => "state.sqlite",
            Self::Memory => "memory.sqlite",
        }
    }

    fn schema(self) -> &'static str {
        match self {
            Self::State => STATE_SCHEMA,
            Self::Memory => MEMORY_SCHEMA,
        }
    }

    /// Pages in the journal that a commit puts into the database, which holds that commit up.
    fn checkpoint_pages(self) -> i64 {
        match self {
            Self::State => 1_000,
            Self::Memory => 8_000,
        }
    }
}

/// Opens a database to write it, or makes it; in memory without a directory.
pub(super) fn open(
    dir: Option<&Path>,
    which: Which,
    key_check: &str,
) -> Result<Connection, StoreError> {
    let (path, mut connection) = match dir {
        None => (PathBuf::from(which.file()), Connection::open_in_memory()?),
        Some(dir) => {
            make_directory(dir)?;
            let path = dir.join(which.file());
            make_file(&path)?;
            let connection = connect(dir, which)?;
            (path, connection)
        }
    };
    let failed = |error: rusqlite::Error| cannot_open(&path, &error);
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let tables: i64 = transaction
        .query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
        .map_err(failed)?;
    if tables == 0 {
        transaction.execute_batch(which.schema()).map_err(failed)?;
        transaction
            .execute_batch(&format!(
                "PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT};"
            ))
            .map_err(failed)?;
        let meta = "INSERT INTO meta (name, value) VALUES (?1, ?2)";
        transaction.execute(meta, ["key_check", key_check]).map_err(failed)?;
        transaction.execute(meta, ["node", &made_up_name()]).map_err(failed)?;
    } else {
        check_format(&transaction, &path)?;
    }
    check_key(&transaction, &path, key_check)?;
    transaction.commit().map_err(failed)?;
    // Of a database in memory the journal stays what it is.
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(failed)?;
    connection
        .pragma_update(None, "wal_autocheckpoint", which.checkpoint_pages())
        .map_err(failed)?;
    connection.pragma_update(None, "journal_size_limit", JOURNAL_BYTES_KEPT).map_err(failed)?;
    let synchronous = if which == Which::State { "FULL" } else { "NORMAL" };
    connection.pragma_update(None, "synchronous", synchronous).map_err(failed)?;
    Ok(connection)
}

/// Opens a further connection to a database that is there.
pub(super) fn connect(dir: &Path, which: Which) -> Result<Connection, StoreError> {
    let path = dir.join(which.file());
    let failed = |error: rusqlite::Error| cannot_open(&path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.pragma_update(None, "cache_size", -16_384).map_err(failed)?;
    Ok(connection)
}

fn make_directory(dir: &Path) -> Result<(), StoreError> {
    if dir.exists() && !dir.is_dir() {
        let message = "is a file; data_dir names a directory".to_owned();
        return Err(StoreError::Open { path: dir.to_owned(), message });
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        let message = format!("cannot be made ({error}); name a data_dir that can be written");
        StoreError::Open { path: dir.to_owned(), message }
    })
}

/// The journal's files have the permissions of the database's.
fn make_file(path: &Path) -> Result<(), StoreError> {
    let made = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .and_then(|file| {
            if file.metadata()?.permissions().mode() & 0o077 != 0 {
                file.set_permissions(Permissions::from_mode(0o600))?;
            }
            Ok(())
        });
    made.map_err(|error| {
        let message = format!("cannot be written ({error}); see to it that this user may");
        StoreError::Open { path: path.to_owned(), message }
    })
}

/// What an operator reads where a database cannot be opened.
fn cannot_open(path: &Path, error: &rusqlite::Error) -> StoreError {
    let message = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            format!("is damaged; {RESTORE}")
        }
        Some(ErrorCode::DiskFull) => "the disk is full; make room".to_owned(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "is being written by another process that does not let go of it".to_owned()
        }
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            format!("cannot be opened ({error}); see to it that this user may write it")
        }
        _ => format!("cannot be read ({error}); {RESTORE}"),
    };
    StoreError::Open { path: path.to_owned(), message }
}

fn check_format(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let refused = |message: String| StoreError::Open { path: path.to_owned(), message };
    let number = |pragma: &str| {
        let number = connection.query_row(pragma, [], |row| row.get::<_, i32>(0));
        number.map_err(|error| cannot_open(path, &error))
    };
    let format = number("PRAGMA user_version")?;
    if number("PRAGMA application_id")? != APPLICATION {
        return Err(refused("is a database of another program; name another data_dir".to_owned()));
    }
    if format > FORMAT {
        return Err(refused(format!(
            "was written by a newer version (format {format}, this one reads {FORMAT}); run that \
             version, or restore a backup that this one made"
        )));
    }
    Ok(())
}

fn check_key(connection: &Connection, path: &Path, key_check: &str) -> Result<(), StoreError> {
    let written: String = connection
        .query_row("SELECT value FROM meta WHERE name = 'key_check'", [], |row| row.get(0))
        .map_err(|error| cannot_open(path, &error))?;
    if written == key_check {
        return Ok(());
    }
    let message = "was written under another identity key; give the key back \
                   (identity.key_file), or name another data_dir"
        .to_owned();
    Err(StoreError::Open { path: path.to_owned(), message })
}

/// Says what would keep the store in a directory from being opened. Makes and changes nothing.
pub(super) fn check(dir: &Path, key_check: &str) -> Result<(), StoreError> {
    if dir.exists() && !dir.is_dir() {
        return make_directory(dir);
    }
    for which in Which::ALL {
        let path = dir.join(which.file());
        if path.exists() {
            let connection = open_read_only(dir, which)?;
            check_key(&connection, &path, key_check)?;
        }
    }
    Ok(())
}

/// Opens a database to read it, beside the gateway that writes it or alone, and leaves nothing
/// behind. Whose identity key it was written under does not matter.
pub(super) fn open_read_only(dir: &Path, which: Which) -> Result<Connection, StoreError> {
    let path = dir.join(which.file());
    if let Err(error) = fs::metadata(&path) {
        let message = format!("cannot be read: {error}");
        return Err(StoreError::Open { path, message });
    }
    // Without a journal nobody has it open and all is in the file. Then it may lie where nothing can
    // be written, and no journal is made beside it.
    let mut journal = path.clone().into_os_string();
    journal.push("-wal");
    let connection = if Path::new(&journal).exists() {
        Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)
    } else {
        let escaped: String = path.display().to_string().chars().map(uri_escaped).collect();
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)
    };
    let connection = connection.map_err(|error| cannot_open(&path, &error))?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    check_format(&connection, &path)?;
    Ok(connection)
}

/// What has a meaning in a URI's path (SQLite, "Uniform Resource Identifiers").
fn uri_escaped(character: char) -> String {
    match character {
        '%' => "%25".to_owned(),
        '?' => "%3f".to_owned(),
        '#' => "%23".to_owned(),
        other => other.to_string(),
    }
}

/// Whether the state is so small that all of it is checked before it is used.
pub(super) fn is_small(dir: &Path) -> bool {
    let bytes = fs::metadata(dir.join(Which::State.file())).map_or(0, |file| file.len());
    bytes <= STORE_CHECKED_BYTES_MAX
}

/// Checks all of the state: the database's own structure, each register's sum, the audit's chain.
pub(super) fn verify_state(connection: &Connection, dir: &Path) -> Result<(), StoreError> {
    let path = dir.join(Which::State.file());
    let refused = |what: &str| StoreError::Open {
        path: path.clone(),
        message: format!("is damaged ({what}); {RESTORE}"),
    };
    let structure: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| cannot_open(&path, &error))?;
    if structure != "ok" {
        return Err(refused("its structure"));
    }
    for table in Table::ALL {
        let mut after = String::new();
        loop {
            let page = scan_after(connection, table, &after, STORE_PAGE).map_err(|error| {
                refused(&match error {
                    StoreError::Damaged(what) => what,
                    other => other.to_string(),
                })
            })?;
            let Some(last) = page.last() else { break };
            after.clone_from(&last.key);
        }
    }
    let (mut seq, mut hash) = (0, FIRST.to_owned());
    loop {
        let page = audit(connection, &Query { after: seq, limit: STORE_PAGE })?;
        if page.is_empty() {
            return Ok(());
        }
        for entry in page {
            if entry.seq != seq + 1 || entry.hash != link_hash(&hash, &digest(&entry.text)) {
                return Err(refused(&format!("the audit does not go on after entry {seq}")));
            }
            (seq, hash) = (entry.seq, entry.hash);
        }
    }
}

/// The name that the store was made under.
pub(super) fn node(connection: &Connection) -> Result<String, StoreError> {
    let node = "SELECT value FROM meta WHERE name = 'node'";
    Ok(connection.query_row(node, [], |row| row.get(0))?)
}

/// The host's name with a few digits: hosts are cloned, and two gateways of one name would take each
/// other's words for their own.
fn made_up_name() -> String {
    let uname = rustix::system::uname();
    let host: String = uname
        .nodename()
        .to_string_lossy()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .take(40)
        .collect();
    let drawn = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), host.len());
    format!("{host}-{:08x}", drawn as u32)
}

/// What a transaction has done.
pub(super) struct Done {
    /// What each batch has written.
    pub(super) written: Vec<Committed>,
    /// Words that another process has written since.
    pub(super) others: Vec<Register>,
    /// Number of the last change.
    pub(super) change: i64,
}

/// Writes batches in one transaction. `seen` is the last change that this process knows of.
pub(super) fn commit(
    connection: &mut Connection,
    node: &Arc<str>,
    now_ms: u64,
    seen: i64,
    batches: &[&Batch],
) -> Result<Done, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let others = changed_after(&transaction, seen)?;
    let mut change = last_change(&transaction)?.max(seen);
    let mut all = Vec::with_capacity(batches.len());
    let mut last = last_link(&transaction)?;
    for batch in batches {
        let mut committed = Committed::default();
        for write in &batch.writes {
            let held = stamp(&transaction, write.table, &write.key)?;
            let stamp = match &write.stamp {
                Some(stamp) if held.as_ref().is_some_and(|held| held >= stamp) => continue,
                Some(stamp) => stamp.clone(),
                None => {
                    let after = held.map_or(0, |held| held.at_ms.saturating_add(1));
                    Stamp { at_ms: now_ms.max(after), by: node.clone() }
                }
            };
            let register = Register {
                table: write.table,
                key: write.key.clone(),
                stamp,
                value: write.value.clone(),
            };
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO registers (kind, key, at_ms, by, value, sum, change)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![
                    register.table as u8,
                    register.key,
                    i64::try_from(register.stamp.at_ms).unwrap_or(i64::MAX),
                    &*register.stamp.by,
                    register.value,
                    sum(&register),
                    change + 1,
                ])?;
            change += 1;
            committed.registers.push(register);
        }
        for draft in &batch.audit {
            let entry = Chained::link(draft.clone(), node, last.as_ref());
            transaction
                .prepare_cached("INSERT INTO audit (seq, hash, entry) VALUES (?1, ?2, ?3)")?
                .execute(params![
                    i64::try_from(entry.seq).unwrap_or(i64::MAX),
                    entry.hash,
                    entry.text
                ])?;
            last = Some((entry.seq, entry.hash.clone()));
            committed.audit.push(entry);
        }
        all.push(committed);
    }
    transaction.commit()?;
    Ok(Done { written: all, others, change })
}

/// Number of the last change of a register, by whichever process.
pub(super) fn last_change(connection: &Connection) -> Result<i64, StoreError> {
    let mut last = connection.prepare_cached("SELECT max(change) FROM registers")?;
    Ok(last.query_row([], |row| row.get::<_, Option<i64>>(0))?.unwrap_or(0))
}

/// Registers whose last change comes after one, in the order of their changes.
pub(super) fn changed_after(
    connection: &Connection,
    change: i64,
) -> Result<Vec<Register>, StoreError> {
    let mut changed = connection.prepare_cached(
        "SELECT key, at_ms, by, value, sum, kind FROM registers WHERE change > ?1
         ORDER BY change",
    )?;
    let found = changed.query_map([change], |row| {
        let table = Table::of(row.get(5)?);
        table.map(|table| register(row, table)).transpose()
    })?;
    // A kind of a newer version is none of ours.
    found.filter_map(Result::transpose).map(|found| sound(found?)).collect()
}

/// Finds bytes that a disk gave back otherwise than they were written. CRC-32.
fn sum(register: &Register) -> u32 {
    let mut sum = Crc::new();
    sum.update(&[register.table as u8]);
    sum.update(register.key.as_bytes());
    sum.update(&register.stamp.at_ms.to_le_bytes());
    sum.update(register.stamp.by.as_bytes());
    sum.update(register.value.as_deref().unwrap_or("\0").as_bytes());
    sum.sum()
}

/// The audit's last entry: number and hash.
pub(super) fn last_link(connection: &Connection) -> Result<Option<(u64, String)>, StoreError> {
    let mut last =
        connection.prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")?;
    Ok(last.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

/// The stamp of the latest word on a key. Also of a damaged one, which a new word replaces.
fn stamp(connection: &Connection, table: Table, key: &str) -> Result<Option<Stamp>, StoreError> {
    let mut find = connection
        .prepare_cached("SELECT at_ms, by FROM registers WHERE kind = ?1 AND key = ?2")?;
    let found = find.query_row(params![table as u8, key], |row| {
        Ok(Stamp { at_ms: row.get(0)?, by: row.get::<_, String>(1)?.into() })
    });
    Ok(found.optional()?)
}

/// A register, with whether it is as it was written.
fn register(row: &rusqlite::Row<'_>, table: Table) -> rusqlite::Result<(Register, bool)> {
    let by: String = row.get(2)?;
    let stamp = Stamp { at_ms: row.get(1)?, by: by.into() };
    let register = Register { table, key: row.get(0)?, stamp, value: row.get(3)? };
    let sound = sum(&register) == row.get::<_, u32>(4)?;
    Ok((register, sound))
}

fn sound((register, sound): (Register, bool)) -> Result<Register, StoreError> {
    if sound { Ok(register) } else { Err(damaged(register.table)) }
}

fn damaged(table: Table) -> StoreError {
    StoreError::Damaged(format!("a register of kind {table:?}"))
}

/// Values of the wrong type are damage as well.
fn readable(error: rusqlite::Error, table: Table) -> StoreError {
    match error {
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..) => damaged(table),
        other => other.into(),
    }
}

pub(super) fn get(
    connection: &Connection,
    table: Table,
    key: &str,
) -> Result<Option<Register>, StoreError> {
    let mut find = connection.prepare_cached(
        "SELECT key, at_ms, by, value, sum FROM registers WHERE kind = ?1 AND key = ?2",
    )?;
    let found = find.query_row(params![table as u8, key], |row| register(row, table)).optional();
    found.map_err(|error| readable(error, table))?.map(sound).transpose()
}

/// Up to `limit` registers of a kind whose keys come after one, in order.
pub(super) fn scan_after(
    connection: &Connection,
    table: Table,
    after: &str,
    limit: usize,
) -> Result<Vec<Register>, StoreError> {
    let mut page = connection.prepare_cached(
        "SELECT key, at_ms, by, value, sum FROM registers WHERE kind = ?1 AND key > ?2
         ORDER BY key LIMIT ?3",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let found = page.query_map(params![table as u8, after, limit], |row| register(row, table))?;
    found.map(|found| sound(found.map_err(|error| readable(error, table))?)).collect()
}

/// Everything that is read in pages: each is given the last key before it and its length.
pub(super) fn scan(
    page: impl Fn(&str, usize) -> Result<Vec<Register>, StoreError>,
) -> Result<Vec<Register>, StoreError> {
    let mut all: Vec<Register> = Vec::new();
    loop {
        let fresh = page(all.last().map_or("", |last| &last.key), STORE_PAGE)?;
        let whole = fresh.len() == STORE_PAGE;
        all.extend(fresh);
        if !whole {
            return Ok(all);
        }
    }
}

pub(super) fn audit(connection: &Connection, query: &Query) -> Result<Vec<Chained>, StoreError> {
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let mut read = connection.prepare_cached(
        "SELECT seq, hash, entry FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let after = i64::try_from(query.after).unwrap_or(i64::MAX);
    let found = read.query_map(params![after, limit], |row| {
        Ok(Chained { seq: row.get(0)?, hash: row.get(1)?, text: row.get(2)? })
    })?;
    Ok(found.collect::<Result<_, _>>()?)
}

/// Lets go of removals that were said before a time, some at once. Returns how many.
pub(super) fn forget_removed(
    connection: &Connection,
    before_ms: u64,
    limit: usize,
) -> Result<usize, StoreError> {
    let mut forget = connection.prepare_cached(
        "DELETE FROM registers WHERE value IS NULL AND (kind, key) IN
         (SELECT kind, key FROM registers WHERE value IS NULL AND at_ms < ?1 LIMIT ?2)",
    )?;
    let before = i64::try_from(before_ms).unwrap_or(i64::MAX);
    Ok(forget.execute(params![before, i64::try_from(limit).unwrap_or(i64::MAX)])?)
}
