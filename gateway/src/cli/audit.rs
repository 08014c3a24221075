//! `stillgate audit`: the audit checked and exported, from the directory of a running gateway, of one
//! that has ended, or of a backup.
//!
//! Nothing is written into that directory and no key is needed.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::audit::{Anchor, Chain, Link};
use crate::limits::AUDIT_LINE_BYTES_MAX;
use crate::store::Reader;

/// What is wanted of the audit.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Check every entry's number and hash; tells the head, or the first entry that is damaged.
    Verify {
        /// Where it is.
        #[command(flatten)]
        source: Source,
        /// A head that was kept, as NUMBER:HASH: the audit must go through it. May be repeated.
        #[arg(long, value_name = "HEAD")]
        anchor: Vec<Anchor>,
    },
    /// Write the audit as JSON lines of hash and entry; `verify --file` reads them.
    Export {
        /// Data directory of a gateway, running or not, or a backup of one.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Only entries after this number.
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        after: u64,
    },
}

/// Where an audit is.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// Data directory of a gateway, running or not, or a backup of one.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Exported entries.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// What cannot be read or written, or where the audit is damaged.
pub fn run(command: &Command, out: &mut dyn Write) -> Result<(), String> {
    match command {
        Command::Verify { source, anchor } => {
            let checked = match source {
                Source { data: Some(dir), .. } => verify_store(dir, anchor)?,
                Source { file: Some(file), .. } => verify_file(file, anchor)?,
                // The parser asks for one of the two.
                Source { .. } => return Err("give --data or --file".to_owned()),
            };
            let Checked { first, head } = checked;
            if head.seq == 0 {
                return writeln!(out, "the audit is empty").map_err(|error| error.to_string());
            }
            let count = head.seq - first + 1;
            writeln!(out, "{count} entries, whole from {first} to {}\nhead {head}", head.seq)
                .map_err(|error| error.to_string())
        }
        Command::Export { data, after } => {
            let reader = Reader::open(data).map_err(|error| error.to_string())?;
            let mut out = BufWriter::new(out);
            reader.audit_each(*after, |entry| {
                writeln!(out, "{}", Link::shown(entry).line()).map_err(|error| error.to_string())
            })?;
            out.flush().map_err(|error| error.to_string())
        }
    }
}

/// An audit that is whole.
#[derive(Debug, PartialEq, Eq)]
struct Checked {
    /// Number of its first entry.
    first: u64,
    /// Its last entry.
    head: Anchor,
}

/// Checks entries as they come.
struct Check<'a> {
    anchors: &'a [Anchor],
    chain: Option<(u64, Chain)>,
}

impl Check<'_> {
    fn take(&mut self, link: &Link) -> Result<(), String> {
        let (_, chain) = match &mut self.chain {
            Some(begun) => begun,
            none => {
                let chain = Chain::through(self.anchors.to_vec(), link.seq).map_err(|broken| {
                    format!(
                        "{broken}; of a part that begins later, give the head before it with \
                         --anchor"
                    )
                })?;
                none.insert((link.seq, chain))
            }
        };
        chain.check(link).map_err(|broken| broken.to_string())
    }

    fn finish(self) -> Result<Checked, String> {
        let (first, chain) = match self.chain {
            Some(begun) => begun,
            None => {
                let chain = Chain::through(self.anchors.to_vec(), 1);
                (1, chain.map_err(|broken| broken.to_string())?)
            }
        };
        let head = chain.finish().map_err(|broken| broken.to_string())?;
        Ok(Checked { first, head })
    }
}

fn verify_store(dir: &Path, anchors: &[Anchor]) -> Result<Checked, String> {
    let reader = Reader::open(dir).map_err(|error| error.to_string())?;
    let mut check = Check { anchors, chain: None };
    reader.audit_each(0, |entry| check.take(&Link::shown(entry)))?;
    check.finish()
}

fn verify_file(path: &Path, anchors: &[Anchor]) -> Result<Checked, String> {
    let mut check = Check { anchors, chain: None };
    each_link(path, |link| check.take(&link))?;
    check.finish()
}

/// Gives every line of an exported audit.
///
/// # Errors
/// When the file cannot be read or a line is none; or the taker's own, with the line.
pub(super) fn each_link(
    path: &Path,
    mut take: impl FnMut(Link) -> Result<(), String>,
) -> Result<(), String> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let mut lines = BufReader::new(file);
    for number in 1_u64.. {
        let at = |wrong: String| format!("{shown}:{number}: {wrong}");
        let mut line = Vec::new();
        let mut bounded = Read::take(&mut lines, AUDIT_LINE_BYTES_MAX + 1);
        let read = bounded.read_until(b'\n', &mut line).map_err(|error| at(error.to_string()))?;
        if read == 0 {
            return Ok(());
        }
        if line.len() as u64 > AUDIT_LINE_BYTES_MAX {
            return Err(at(format!("has more than {AUDIT_LINE_BYTES_MAX} bytes")));
        }
        take(Link::read(&line).map_err(at)?).map_err(at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Act, Actor, Draft};
    use crate::config::file::tests::TestDirectory;
    use crate::store::{Batch, Store};

    fn write(store: &Store, count: usize) {
        for n in 0..count {
            let entry = Draft::new(Actor::System, Act::TierChanged).because(&format!("{n}"));
            let done = store.commit(Batch::told(Vec::new(), entry)).wait();
            done.unwrap();
        }
    }

    fn said(command: &Command) -> Result<String, String> {
        let mut out = Vec::new();
        run(command, &mut out).map(|()| String::from_utf8(out).unwrap())
    }

    fn verify(source: &Path, anchor: &[&str]) -> Result<String, String> {
        let path = Some(source.to_owned());
        let (data, file) = if source.is_dir() { (path, None) } else { (None, path) };
        let anchor = anchor.iter().map(|anchor| anchor.parse().unwrap()).collect();
        said(&Command::Verify { source: Source { data, file }, anchor })
    }

    fn files(dir: &Path) -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_audit_is_checked_beside_the_gateway_that_writes_it_and_alone() {
        let folder = TestDirectory::new();
        // What has a meaning in the name that the database is opened by.
        let dir = folder.path().join("a?b#c%20");
        let store = Store::open(&dir, Some("a"), "k").unwrap();
        assert_eq!(verify(&dir, &[]).unwrap(), "the audit is empty\n");
        write(&store, 2_500);
        let head = store.audit_head().unwrap().to_string();
        let whole = format!("2500 entries, whole from 1 to 2500\nhead {head}\n");
        assert_eq!(verify(&dir, &[&head]).unwrap(), whole);
        drop(store);
        // The writer's thread has the database open until it has noticed.
        let alone = ["memory.sqlite", "state.sqlite"];
        while files(&dir) != alone {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(verify(&dir, &[]).unwrap(), whole);
        assert_eq!(files(&dir), alone, "nothing is left behind");
        assert!(verify(folder.path(), &[]).unwrap_err().contains("cannot be read"));
        let later = head.replace("2500:", "2501:");
        assert!(verify(&dir, &[&later]).unwrap_err().contains("its end is missing"));
    }

    #[test]
    fn an_export_is_checked_like_the_store_whole_or_after_a_head() {
        let folder = TestDirectory::new();
        let dir = folder.path().join("data");
        let store = Store::open(&dir, Some("a"), "k").unwrap();
        write(&store, 10);
        let kept = store.audit_head().unwrap().to_string();
        write(&store, 5);
        let export = |after| said(&Command::Export { data: dir.clone(), after }).unwrap();
        let file = folder.write("whole.ndjson", export(0));
        assert!(verify(&file, &[&kept]).unwrap().starts_with("15 entries, whole from 1 to 15\n"));
        let tail = folder.write("tail.ndjson", export(10));
        assert!(verify(&tail, &[&kept]).unwrap().starts_with("5 entries, whole from 11 to 15\n"));
        assert!(verify(&tail, &[]).unwrap_err().contains("--anchor"));

        let damaged = export(0).replace(r#""reason":"7""#, r#""reason":"8""#);
        let file = folder.write("damaged.ndjson", damaged);
        let error = verify(&file, &[]).unwrap_err();
        assert!(error.contains("damaged.ndjson:8: entry 8 was changed"), "{error}");
        let file = folder.write("cut.ndjson", &export(0)[..100]);
        assert!(verify(&file, &[]).unwrap_err().contains("cut.ndjson:1: is no line"));
    }

    #[test]
    fn an_entry_that_was_changed_in_the_database_is_named() {
        let folder = TestDirectory::new();
        let store = Store::open(folder.path(), Some("a"), "k").unwrap();
        write(&store, 10);
        let change = |sql: &str| {
            let state = rusqlite::Connection::open(folder.path().join("state.sqlite")).unwrap();
            assert_eq!(state.execute(sql, []).unwrap(), 1);
        };
        change("UPDATE audit SET entry = replace(entry, '\"6\"', '\"9\"') WHERE seq = 7");
        let error = verify(folder.path(), &[]).unwrap_err();
        assert!(error.starts_with("entry 7 was changed"), "{error}");
        change("DELETE FROM audit WHERE seq = 3");
        let error = verify(folder.path(), &[]).unwrap_err();
        assert!(error.starts_with("entry 3 is missing: 4 is in its place"), "{error}");
    }
}
