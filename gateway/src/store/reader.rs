//! A store that is read beside the gateway that writes it, or after its end.

use std::path::Path;

use rusqlite::Connection;

use super::database::Which;
use super::{Register, StoreError, Table, database, head};
use crate::audit::{Anchor, Chained, Query};
use crate::limits::AUDIT_PAGE;

/// The state of a store, or of a backup of one, to be read beside whoever writes it.
#[derive(Debug)]
pub struct Reader(Connection);

impl Reader {
    /// Opens the store in a directory. Nothing is written, and no key is needed.
    ///
    /// # Errors
    /// When there is none, or it is damaged or of a newer version.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Ok(Self(database::open_read_only(dir, Which::State)?))
    }

    /// The latest word on a key.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn get(&self, table: Table, key: &str) -> Result<Option<Register>, StoreError> {
        database::get(&self.0, table, key)
    }

    /// Every register of a kind, removed ones too, by key.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn scan(&self, table: Table) -> Result<Vec<Register>, StoreError> {
        database::scan(|after, limit| database::scan_after(&self.0, table, after, limit))
    }

    /// The audit's last entry: its number and hash.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn audit_head(&self) -> Result<Anchor, StoreError> {
        head(&self.0)
    }

    /// Gives every audit entry after a number, in order, a page at a time in memory.
    ///
    /// # Errors
    /// When the database cannot be read, told with the last entry that could; or the taker's own.
    pub fn audit_each(
        &self,
        mut after: u64,
        mut take: impl FnMut(Chained) -> Result<(), String>,
    ) -> Result<(), String> {
        loop {
            let query = Query { after, limit: AUDIT_PAGE };
            let page = database::audit(&self.0, &query).map_err(|error| {
                format!("the audit cannot be read after entry {after}: {error}")
            })?;
            let whole = page.len() == AUDIT_PAGE;
            for entry in page {
                after = entry.seq;
                take(entry)?;
            }
            if !whole {
                return Ok(());
            }
        }
    }
}
