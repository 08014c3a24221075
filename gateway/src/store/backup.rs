//! A consistent copy of a store, also of one that is being written.
//!
//! Source: SQLite, "Using the SQLite Online Backup API". The copy is of one moment: a read
//! transaction on the source holds for as long as it takes, beside which the gateway writes on.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::StoreError;
use super::database::{self, Which};

/// Pages that are copied between two reports.
const PAGES_AT_ONCE: i32 = 4_096;

/// What is told while a store is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Pages of this file that were copied, of all.
    Copied {
        /// The file.
        file: &'static str,
        /// Pages so far.
        pages: i32,
        /// All of them.
        of: i32,
    },
    /// The copy is being read back.
    Checking {
        /// The file.
        file: &'static str,
    },
}

/// Copies the store in one directory into another that is not there yet, and reads the copy back.
/// Returns how many bytes it has.
///
/// # Errors
/// When there is no store, the other directory is there, or the copy is not what it should be;
/// nothing is left of it then.
pub fn backup(from: &Path, to: &Path, report: impl FnMut(Progress)) -> Result<u64, StoreError> {
    if to.exists() {
        return Err(refused(to, "is there already; name a directory that is not"));
    }
    // It gets its name when it is whole.
    let mut unfinished = to.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    DirBuilder::new()
        .mode(0o700)
        .create(&unfinished)
        .map_err(|error| refused(&unfinished, &format!("cannot be made ({error})")))?;
    let copied = copy(from, &unfinished, report).and_then(|bytes| {
        let named = fs::rename(&unfinished, to).and_then(|()| {
            let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
        });
        named.map_err(|error| refused(to, &format!("cannot be made ({error})")))?;
        Ok(bytes)
    });
    if copied.is_err() {
        let _ = fs::remove_dir_all(&unfinished);
    }
    copied
}

fn copy(from: &Path, to: &Path, mut report: impl FnMut(Progress)) -> Result<u64, StoreError> {
    let mut bytes = 0;
    // Rows first, so that no word is missing on an account that has one.
    for which in [Which::Memory, Which::State] {
        let (file, path) = (which.file(), to.join(which.file()));
        let source = database::open_read_only(from, which)?;
        source.execute_batch("BEGIN")?;
        // The moment that is copied begins with the first read.
        source.query_row("SELECT count(*) FROM meta", [], |_| Ok(()))?;
        let mut copy = Connection::open(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(|error| refused(&path, &error.to_string()))?;
        {
            let backup = Backup::new(&source, &mut copy)?;
            loop {
                let step = backup.step(PAGES_AT_ONCE)?;
                let progress = backup.progress();
                let (pages, of) = (progress.pagecount - progress.remaining, progress.pagecount);
                report(Progress::Copied { file, pages, of });
                match step {
                    StepResult::Done => break,
                    StepResult::More => {}
                    _ => return Err(StoreError::Busy),
                }
            }
        }
        drop(source);
        report(Progress::Checking { file });
        // One file, without a journal beside it: that is how it is kept.
        copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
        let sound: String = copy.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        if sound != "ok" {
            return Err(StoreError::Damaged(format!("{file} of the copy, or the store itself,")));
        }
        if which == Which::State {
            database::verify_state(&copy, to)?;
        }
        drop(copy);
        let synced = File::open(&path).and_then(|file| {
            file.sync_all()?;
            file.metadata()
        });
        bytes += synced.map_err(|error| refused(&path, &error.to_string()))?.len();
    }
    Ok(bytes)
}

fn refused(path: &Path, message: &str) -> StoreError {
    StoreError::Open { path: path.to_owned(), message: message.to_owned() }
}
