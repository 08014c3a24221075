//! The two SQLite databases: schema, versions, transactions.
//!
//! Source: SQLite, "Write-Ahead Logging" and "PRAGMA synchronous".

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use detectors::AccountId;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::{BUSY_TIMEOUT, Batch, Committed, Register, Stamp, StoreError, Table};
use crate::audit::{Chained, Query};

/// Version of the tables below; it changes with every change to them.
const FORMAT: i32 = 1;
/// Marks our databases among SQLite's ("SGst").
const APPLICATION: i32 = 0x5347_7374;

const STATE_SCHEMA: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE registers (
    kind INTEGER NOT NULL, key TEXT NOT NULL, at_ms INTEGER NOT NULL, by TEXT NOT NULL, value TEXT,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE TABLE audit (seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, entry TEXT NOT NULL);
";
const MEMORY_SCHEMA: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE accounts (id TEXT PRIMARY KEY, row BLOB NOT NULL) WITHOUT ROWID;
";

/// Where the databases are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Directory(PathBuf),
    /// A name that all connections of one store share.
    Memory(String),
}

impl Place {
    pub(super) fn new_memory() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Self::Memory(format!("stillgate-{}", NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    pub(super) fn directory(&self) -> Option<PathBuf> {
        match self {
            Self::Directory(dir) => Some(dir.clone()),
            Self::Memory(_) => None,
        }
    }
}

pub(super) fn open_state(at: &Place, key_check: &str) -> Result<Connection, StoreError> {
    open(at, "state", STATE_SCHEMA, "FULL", key_check)
}

pub(super) fn open_memory(at: &Place, key_check: &str) -> Result<Connection, StoreError> {
    open(at, "memory", MEMORY_SCHEMA, "NORMAL", key_check)
}

fn open(
    at: &Place,
    name: &str,
    schema: &str,
    synchronous: &str,
    key_check: &str,
) -> Result<Connection, StoreError> {
    let (path, mut connection) = match at {
        Place::Memory(shared) => {
            let uri = format!("file:{shared}-{name}?mode=memory&cache=shared");
            let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
            (PathBuf::from(name), Connection::open_with_flags(uri, flags)?)
        }
        Place::Directory(dir) => {
            let cannot = |path: &Path, error: &dyn std::fmt::Display| StoreError::Open {
                path: path.to_owned(),
                message: error.to_string(),
            };
            std::fs::create_dir_all(dir).map_err(|error| cannot(dir, &error))?;
            let path = dir.join(format!("{name}.sqlite"));
            let connection = Connection::open(&path).map_err(|error| cannot(&path, &error))?;
            (path, connection)
        }
    };
    let refused = |message: String| StoreError::Open { path: path.clone(), message };
    let damaged = |error: rusqlite::Error| {
        refused(format!("cannot be read ({error}); restore a backup or move it away"))
    };
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(damaged)?;
    let tables: i32 = transaction
        .query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))
        .map_err(damaged)?;
    if tables == 0 {
        transaction.execute_batch(schema)?;
        transaction.execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT};"
        ))?;
        let meta = "INSERT INTO meta (name, value) VALUES (?1, ?2)";
        transaction.execute(meta, ["key_check", key_check])?;
        transaction.execute(meta, ["node", &made_up_name()])?;
    } else {
        check_format(&transaction, &path)?;
    }
    let written: String = transaction
        .query_row("SELECT value FROM meta WHERE name = 'key_check'", [], |row| row.get(0))
        .map_err(damaged)?;
    if written != key_check {
        return Err(refused("was written under another identity key".to_owned()));
    }
    transaction.commit()?;
    // Of a database in memory the journal stays what it is.
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    Ok(connection)
}

fn check_format(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let refused = |message: String| StoreError::Open { path: path.to_owned(), message };
    let number = |pragma: &str| {
        let number = connection.query_row(pragma, [], |row| row.get::<_, i32>(0));
        number.map_err(|error| {
            refused(format!("cannot be read ({error}); restore a backup or move it away"))
        })
    };
    let format = number("PRAGMA user_version")?;
    if number("PRAGMA application_id")? != APPLICATION {
        return Err(refused("is a database of another program".to_owned()));
    }
    if format > FORMAT {
        return Err(refused(format!(
            "was written by a newer version (format {format}, this one reads {FORMAT})"
        )));
    }
    Ok(())
}

/// Opens the state of a store to read it, beside the gateway that writes it or alone, and leaves
/// nothing behind. Whose identity key it was written under does not matter.
pub(super) fn open_read_only(dir: &Path) -> Result<Connection, StoreError> {
    let path = dir.join("state.sqlite");
    let refused = |message: String| StoreError::Open { path: path.clone(), message };
    if let Err(error) = std::fs::metadata(&path) {
        return Err(refused(format!("cannot be read: {error}")));
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
    let damaged = |error: rusqlite::Error| refused(format!("cannot be read ({error})"));
    let connection = connection.map_err(damaged)?;
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

/// Writes batches in one transaction; returns what each has written.
pub(super) fn commit(
    connection: &mut Connection,
    node: &Arc<str>,
    now_ms: u64,
    batches: &[&Batch],
) -> Result<Vec<Committed>, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut all = Vec::with_capacity(batches.len());
    let mut last = last_link(&transaction)?;
    for batch in batches {
        let mut committed = Committed::default();
        for write in &batch.writes {
            let held = get(&transaction, write.table, &write.key)?;
            let stamp = match &write.stamp {
                Some(stamp) if held.as_ref().is_some_and(|held| held.stamp >= *stamp) => continue,
                Some(stamp) => stamp.clone(),
                None => {
                    let after = held.map_or(0, |held| held.stamp.at_ms.saturating_add(1));
                    Stamp { at_ms: now_ms.max(after), by: node.clone() }
                }
            };
            transaction
                .prepare_cached(
                    "INSERT OR REPLACE INTO registers (kind, key, at_ms, by, value)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![
                    write.table as u8,
                    write.key,
                    i64::try_from(stamp.at_ms).unwrap_or(i64::MAX),
                    &*stamp.by,
                    write.value
                ])?;
            committed.registers.push(Register {
                table: write.table,
                key: write.key.clone(),
                stamp,
                value: write.value.clone(),
            });
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
    Ok(all)
}

pub(super) fn last_link(connection: &Connection) -> Result<Option<(u64, String)>, StoreError> {
    let mut last =
        connection.prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")?;
    Ok(last.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

fn register(row: &rusqlite::Row<'_>, table: Table) -> rusqlite::Result<Register> {
    let by: String = row.get(2)?;
    let stamp = Stamp { at_ms: row.get(1)?, by: by.into() };
    Ok(Register { table, key: row.get(0)?, stamp, value: row.get(3)? })
}

pub(super) fn get(
    connection: &Connection,
    table: Table,
    key: &str,
) -> Result<Option<Register>, StoreError> {
    let mut find = connection.prepare_cached(
        "SELECT key, at_ms, by, value FROM registers WHERE kind = ?1 AND key = ?2",
    )?;
    Ok(find.query_row(params![table as u8, key], |row| register(row, table)).optional()?)
}

pub(super) fn scan(connection: &Connection, table: Table) -> Result<Vec<Register>, StoreError> {
    let mut all = connection.prepare_cached(
        "SELECT key, at_ms, by, value FROM registers WHERE kind = ?1 ORDER BY key",
    )?;
    let found = all.query_map([table as u8], |row| register(row, table))?;
    Ok(found.collect::<Result<_, _>>()?)
}

pub(super) fn scan_after(
    connection: &Connection,
    table: Table,
    after: &str,
    limit: usize,
) -> Result<Vec<Register>, StoreError> {
    let mut some = connection.prepare_cached(
        "SELECT key, at_ms, by, value FROM registers WHERE kind = ?1 AND key > ?2
         ORDER BY key LIMIT ?3",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let found = some.query_map(params![table as u8, after, limit], |row| register(row, table))?;
    Ok(found.collect::<Result<_, _>>()?)
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

pub(super) fn row(connection: &Connection, account: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let mut find = connection.prepare_cached("SELECT row FROM accounts WHERE id = ?1")?;
    Ok(find.query_row([account], |row| row.get(0)).optional()?)
}

pub(super) fn rows_after(
    connection: &Connection,
    after: &str,
    limit: usize,
) -> Result<Vec<(AccountId, Vec<u8>)>, StoreError> {
    let mut read = connection
        .prepare_cached("SELECT id, row FROM accounts WHERE id > ?1 ORDER BY id LIMIT ?2")?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let found = read.query_map(params![after, limit], |row| {
        Ok((AccountId::new(row.get::<_, String>(0)?), row.get(1)?))
    })?;
    Ok(found.collect::<Result<_, _>>()?)
}

pub(super) fn put_rows(
    connection: &mut Connection,
    rows: &[(AccountId, Vec<u8>)],
) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut put = transaction
            .prepare_cached("INSERT OR REPLACE INTO accounts (id, row) VALUES (?1, ?2)")?;
        for (account, row) in rows {
            put.execute(params![account.as_str(), row])?;
        }
    }
    Ok(transaction.commit()?)
}
