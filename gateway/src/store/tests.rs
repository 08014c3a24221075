use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::AtomicUsize;

use detectors::AccountId;
use serde_json::json;

use super::backup::backup;
use super::*;
use crate::audit::{Act, Actor, FIRST, digest, link_hash};
use crate::config::file::tests::TestDirectory;

const KEY: &str = "0123456789abcdef";

fn open(dir: &Path) -> Arc<Store> {
    Store::open(dir, Some("a"), KEY).unwrap()
}

fn refused(dir: &Path) -> String {
    Store::open(dir, Some("a"), KEY).map(drop).unwrap_err().to_string()
}

fn put(key: &str, value: u64) -> Batch {
    let entry = Draft::new(Actor::System, Act::Started).because(key);
    Batch::told(vec![Write::put(Table::Override, key, &value)], entry)
}

fn word(key: &str, value: Option<&str>, at_ms: u64, by: &str) -> Batch {
    let stamp = Some(Stamp { at_ms, by: by.into() });
    let value = value.map(str::to_owned);
    let write = Write { table: Table::Override, key: key.to_owned(), value, stamp };
    Batch { writes: vec![write], audit: Vec::new() }
}

fn value(store: &Store, key: &str) -> Option<String> {
    store.get(Table::Override, key).unwrap().and_then(|register| register.value)
}

/// Follows the chain through all entries; how many there are.
fn chain(store: &Store) -> u64 {
    let (mut seq, mut hash) = (0, FIRST.to_owned());
    for entry in store.audit(&Query { after: 0, limit: 1_000_000 }).unwrap() {
        assert_eq!(entry.seq, seq + 1);
        assert_eq!(entry.hash, link_hash(&hash, &digest(&entry.text)));
        (seq, hash) = (entry.seq, entry.hash);
    }
    seq
}

/// The writing thread lets go of the database a moment after the store is dropped.
fn close(store: Arc<Store>) {
    let dir = store.dir().unwrap().join("state.sqlite-wal");
    drop(store);
    let end = Instant::now() + Duration::from_secs(5);
    while dir.exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_later_word_counts_in_whichever_order_they_come() {
    let words = [
        (Some("1"), 10, "b"),
        (Some("2"), 11, "a"),
        (None, 12, "a"),
        (Some("3"), 12, "b"),
        (Some("4"), 9, "z"),
    ];
    for turn in 0..words.len() {
        let store = Store::in_memory("a").unwrap();
        let mut turned = words;
        turned.rotate_left(turn);
        for (value, at_ms, by) in turned {
            store.commit(word("k", value, at_ms, by)).wait().unwrap();
        }
        assert_eq!(value(&store, "k").as_deref(), Some("3"), "the larger name at the same time");
        // What this gateway says next is later than what it has heard, whatever its clock says.
        let ahead = unix_ms() + 3_600_000;
        store.commit(word("k", Some("5"), ahead, "b")).wait().unwrap();
        let done = store.commit(put("k", 6)).wait().unwrap();
        assert_eq!(done.registers[0].stamp.at_ms, ahead + 1);
        let late = store.commit(word("k", Some("7"), ahead, "c")).wait().unwrap();
        assert!(late.registers.is_empty(), "an earlier word is not told as the latest");
        assert_eq!(value(&store, "k").as_deref(), Some("6"));
    }
}

#[test]
fn a_removal_is_a_word_and_is_forgotten_when_it_is_old() {
    let store = Store::in_memory("a").unwrap();
    store.commit(word("gone", None, 1_000, "a")).wait().unwrap();
    store.commit(word("gone", Some("1"), 999, "b")).wait().unwrap();
    store.commit(word("held", Some("1"), 1, "a")).wait().unwrap();
    let removed = store.get(Table::Override, "gone").unwrap().unwrap();
    assert_eq!((removed.value, removed.stamp.at_ms), (None, 1_000));
    assert_eq!(store.scan(Table::Override).unwrap().len(), 2, "removals are told too");
    assert_eq!(store.forget_removed(1_000).unwrap(), 0);
    assert_eq!(store.forget_removed(1_001).unwrap(), 1);
    assert_eq!(store.get(Table::Override, "gone").unwrap(), None);
    assert_eq!(value(&store, "held").as_deref(), Some("1"));
}

#[test]
fn many_writers_and_readers_do_not_hinder_each_other() {
    let directory = TestDirectory::new();
    for store in [Store::in_memory("a").unwrap(), open(&directory.path().join("data"))] {
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let store = &store;
                scope.spawn(move || {
                    for number in 0..50 {
                        let key = format!("{writer}-{number}");
                        store.commit(put(&key, number)).wait().unwrap();
                        assert_eq!(value(store, &key), Some(number.to_string()));
                        assert!(!store.scan(Table::Override).unwrap().is_empty());
                    }
                });
            }
        });
        assert_eq!(store.scan(Table::Override).unwrap().len(), 400);
        assert_eq!(chain(&store), 400);
    }
}

#[test]
fn scans_are_read_in_pages_and_are_whole() {
    let store = Store::in_memory("a").unwrap();
    let many = STORE_PAGE * 2 + 7;
    let writes = (0..many).map(|n| Write::put(Table::Tier, format!("{n:05}"), &n)).collect();
    store.commit(Batch { writes, audit: Vec::new() }).wait().unwrap();
    let all = store.scan(Table::Tier).unwrap();
    assert!(all.iter().enumerate().all(|(n, register)| register.key == format!("{n:05}")));
    assert_eq!(all.len(), many);
    let page = store.scan_after(Table::Tier, "00009", 3).unwrap();
    let keys: Vec<&str> = page.iter().map(|register| register.key.as_str()).collect();
    assert_eq!(keys, ["00010", "00011", "00012"]);
}

#[test]
fn what_is_committed_is_taken_in_and_told_before_whoever_waits_is() {
    let store = Store::in_memory("a").unwrap();
    let (seen, counted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = counted.clone();
    store.on_commit(Box::new(move |committed| {
        std::thread::sleep(Duration::from_millis(1));
        counts.fetch_add(committed.registers.len(), Ordering::SeqCst);
    }));
    let again = seen.clone();
    store.on_commit(Box::new(move |_| {
        again.fetch_add(1, Ordering::SeqCst);
    }));
    let mut feed = store.subscribe();
    for number in 1..=20 {
        store.commit(put("k", number as u64)).wait().unwrap();
        assert_eq!(counted.load(Ordering::SeqCst), number);
        let told = feed.try_recv().unwrap();
        assert_eq!((told.registers.len(), told.audit[0].seq), (1, number as u64));
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0, "the first one has it");
}

/// Makes the database refuse one key.
fn refuse_bad(dir: &Path) {
    let connection = database::connect(dir, Which::State).unwrap();
    let trigger = "CREATE TRIGGER bad BEFORE INSERT ON registers WHEN new.key = 'bad'
                   BEGIN SELECT RAISE(ABORT, 'no'); END";
    connection.execute_batch(trigger).unwrap();
}

#[test]
fn one_bad_batch_fails_alone() {
    let directory = TestDirectory::new();
    let store = open(directory.path());
    refuse_bad(directory.path());
    // The thread is busy with the first while the others queue up behind it, so they are one group.
    store.on_commit(Box::new(|_| std::thread::sleep(Duration::from_millis(50))));
    let first = store.commit(put("first", 0));
    let pending: Vec<_> =
        ["a", "bad", "b"].map(|key| (key, store.commit(put(key, 1)))).into_iter().collect();
    store.keep(put("bad", 2));
    store.keep(put("c", 3));
    first.wait().unwrap();
    for (key, pending) in pending {
        let done = pending.wait();
        assert_eq!(done.is_ok(), key != "bad", "{key}");
        assert_eq!(value(&store, key).is_some(), key != "bad");
    }
    store.settle(Duration::from_secs(5));
    assert_eq!(value(&store, "c").as_deref(), Some("3"));
    assert_eq!(store.unwritten(), (0, 1), "what can never be written is given up, and counted");
    assert_eq!(chain(&store), 4, "the chain has no gap where one failed");
}

#[test]
fn what_is_kept_is_written_in_order_when_the_database_is_free_again() {
    let directory = TestDirectory::new();
    let store = open(directory.path());
    // No further page may be had: what a full disk looks like to the database.
    let full = |full: bool| {
        let connection = store.writer.lock();
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        let max = if full { pages } else { 1_000_000 };
        connection.query_row(&format!("PRAGMA max_page_count = {max}"), [], |_| Ok(())).unwrap();
    };
    full(true);
    let large = |key: &str, byte: &str| {
        let value = Write::put(Table::Tier, key, &byte.repeat(20_000));
        Batch::told(vec![value], Draft::new(Actor::System, Act::TierChanged))
    };
    store.keep(large("k", "1"));
    store.keep(large("k", "2"));
    assert_eq!(store.commit(large("waits", "1")).wait().map(drop), Err(StoreError::Full));
    store.keep(large("k", "3"));
    store.settle(Duration::from_secs(5));
    assert_eq!(store.unwritten(), (3, 0));
    assert_eq!(store.scan(Table::Tier).unwrap(), []);
    full(false);
    let end = Instant::now() + Duration::from_secs(10);
    while store.unwritten().0 > 0 {
        assert!(Instant::now() < end, "it is tried again");
        std::thread::sleep(Duration::from_millis(10));
    }
    let held = store.get(Table::Tier, "k").unwrap().unwrap().value.unwrap();
    assert!(held.starts_with("\"333"), "the last word is the last one said");
    assert_eq!(store.get(Table::Tier, "waits").unwrap(), None, "it was refused");
    assert_eq!(chain(&store), 3);
}

#[test]
fn the_audit_goes_on_where_it_was_and_the_name_is_kept() {
    let directory = TestDirectory::new();
    let dir = directory.path().join("data");
    let store = Store::open(&dir, None, KEY).unwrap();
    let node = store.node().clone();
    for number in 0..5 {
        store.commit(put("k", number)).wait().unwrap();
    }
    close(store);
    let store = Store::open(&dir, None, KEY).unwrap();
    assert_eq!(*store.node(), node);
    store.commit(put("k", 9)).wait().unwrap();
    assert_eq!((chain(&store), value(&store, "k").as_deref()), (6, Some("9")));
    close(store);
    assert_eq!(&**Store::open(&dir, Some("named"), KEY).unwrap().node(), "named");
}

#[test]
fn two_processes_write_one_chain() {
    let directory = TestDirectory::new();
    let (old, new) =
        (open(directory.path()), Store::open(directory.path(), Some("b"), KEY).unwrap());
    let heard = Arc::new(Mutex::new(std::collections::HashSet::new()));
    let hears = heard.clone();
    new.on_commit(Box::new(move |committed| {
        hears.lock().extend(committed.registers.iter().map(|register| register.key.clone()));
    }));
    let mut feed = new.subscribe();
    std::thread::scope(|scope| {
        for store in [&old, &new] {
            scope.spawn(move || {
                for number in 0..100 {
                    store
                        .commit(put(&format!("{}-{number}", store.node()), number))
                        .wait()
                        .unwrap();
                }
            });
        }
    });
    assert_eq!((chain(&old), chain(&new)), (200, 200));
    assert_eq!(old.scan(Table::Override).unwrap(), new.scan(Table::Override).unwrap());
    let by: Vec<_> = old.scan(Table::Override).unwrap().into_iter().map(|r| r.stamp.by).collect();
    assert_eq!(by.iter().filter(|by| &***by == "b").count(), 100);
    let end = Instant::now() + Duration::from_secs(5);
    while heard.lock().len() < 200 {
        assert!(Instant::now() < end, "{} words were heard", heard.lock().len());
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut told = 0;
    while let Ok(committed) = feed.try_recv() {
        told += committed.registers.iter().filter(|register| &*register.stamp.by == "b").count();
        assert!(committed.registers.iter().all(|register| &*register.stamp.by == "b"));
    }
    assert_eq!(told, 100, "each process tells its own");
}

fn rows_of(store: &Store) -> &Rows {
    store.rows().unwrap()
}

#[test]
fn whoever_took_over_has_the_last_word_on_a_row() {
    let directory = TestDirectory::new();
    let account = AccountId::new("a");
    let old = open(directory.path());
    rows_of(&old).put(0, [(&account, &b"old"[..])]).unwrap();
    let new = open(directory.path());
    let reader = rows_of(&new).reader().unwrap();
    rows_of(&old).put(0, [(&account, &b"older"[..])]).unwrap();
    assert_eq!(reader.get(&account).unwrap().as_deref(), Some(&b"older"[..]));
    rows_of(&new).put(0, [(&account, &b"new"[..])]).unwrap();
    rows_of(&old).put(0, [(&account, &b"late"[..])]).unwrap();
    assert_eq!(reader.get(&account).unwrap().as_deref(), Some(&b"new"[..]));
}

#[test]
fn rows_are_read_by_day_and_forgotten_by_day() {
    const DAY: u64 = 86_400_000;
    let directory = TestDirectory::new();
    let store = open(directory.path());
    let rows = rows_of(&store);
    let ids: Vec<AccountId> = (0..10).map(|n| AccountId::new(format!("acct-{n}"))).collect();
    for (number, id) in ids.iter().enumerate() {
        rows.put(number as u64 / 4 * DAY, [(id, id.as_str().as_bytes())]).unwrap();
    }
    let reader = rows.reader().unwrap();
    assert_eq!(reader.days().unwrap(), [(2, 2), (1, 4), (0, 4)]);
    let first = reader.of_day(1, i64::MIN, 3).unwrap();
    let rest = reader.of_day(1, first[2].place, 3).unwrap();
    let seen: Vec<&AccountId> = first.iter().chain(&rest).map(|stored| &stored.account).collect();
    assert_eq!(seen, ids[4..8].iter().collect::<Vec<_>>());
    assert!(first.iter().all(|s| s.bytes.as_deref() == Some(s.account.as_str().as_bytes())));
    // Whoever comes back moves to the day of it.
    rows.put(2 * DAY, [(&ids[0], &b"again"[..])]).unwrap();
    assert_eq!((rows.forget_before(2, 5).unwrap(), rows.forget_before(2, 5).unwrap()), (5, 2));
    assert_eq!(reader.days().unwrap(), [(2, 3)]);
    assert_eq!(reader.get(&ids[0]).unwrap().as_deref(), Some(&b"again"[..]));
}

#[test]
fn a_damaged_row_is_told_from_a_sound_one() {
    let directory = TestDirectory::new();
    let store = open(directory.path());
    let ids = ["a", "b", "c"].map(AccountId::new);
    rows_of(&store).put(0, ids.iter().map(|id| (id, &b"row of it"[..]))).unwrap();
    let connection = database::connect(directory.path(), Which::Memory).unwrap();
    connection.execute("UPDATE accounts SET row = x'00' WHERE id = 'b'", []).unwrap();
    let reader = rows_of(&store).reader().unwrap();
    assert!(matches!(reader.get(&ids[1]), Err(StoreError::Damaged(_))));
    assert!(reader.get(&ids[0]).unwrap().is_some());
    let sound: Vec<bool> =
        reader.of_day(0, i64::MIN, 9).unwrap().iter().map(|row| row.bytes.is_some()).collect();
    assert_eq!(sound, [true, false, true]);
}

#[test]
fn a_store_that_is_not_ours_is_refused_with_what_to_do() {
    let directory = TestDirectory::new();
    let sql = |dir: &Path, sql: &str| {
        Connection::open(dir.join("state.sqlite")).unwrap().execute_batch(sql).unwrap();
    };
    let fresh = |name: &str| {
        let dir = directory.path().join(name);
        let store = open(&dir);
        store.commit(put("k", 1)).wait().unwrap();
        close(store);
        dir
    };
    let other = directory.path().join("other");
    std::fs::create_dir(&other).unwrap();
    sql(&other, "CREATE TABLE theirs (a)");
    let newer = fresh("newer");
    sql(&newer, "PRAGMA user_version = 2");
    let file = directory.path().join("file");
    std::fs::write(&file, "text").unwrap();
    for (dir, part) in [
        (other, "is a database of another program; name another data_dir"),
        (newer, "was written by a newer version (format 2, this one reads 1); run that version"),
        (file, "is a file; data_dir names a directory"),
        ("/proc/self/stillgate".into(), "name a data_dir that can be written"),
    ] {
        let message = refused(&dir);
        assert!(message.contains(part) && !message.contains('\n'), "{message}");
        let checked = Store::check(&dir, KEY).map_err(|error| error.to_string());
        assert!(checked.is_ok() == dir.starts_with("/proc") || checked == Err(message));
    }
    let dir = fresh("keyed");
    let message = Store::open(&dir, None, "another").map(drop).unwrap_err().to_string();
    assert!(message.contains("another identity key; give the key back"), "{message}");
    assert_eq!(Store::check(&dir, "another").unwrap_err().to_string(), message);
    Store::check(&dir, KEY).unwrap();
    Store::check(&directory.path().join("not there"), KEY).unwrap();
    assert!(!directory.path().join("not there").exists(), "a check makes nothing");
}

#[test]
fn a_damaged_state_is_refused_whatever_was_damaged() {
    let directory = TestDirectory::new();
    let sound = directory.path().join("sound");
    let store = open(&sound);
    for number in 0..200 {
        store.commit(put(&format!("key-{number:03}"), number)).wait().unwrap();
    }
    close(store);
    let bytes = std::fs::read(sound.join("state.sqlite")).unwrap();
    // Also where a page holds what it has moved elsewhere.
    let changed = |needle: &[u8], at: usize| {
        let mut changed = bytes.clone();
        let found: Vec<usize> =
            (0..bytes.len() - needle.len()).filter(|i| bytes[*i..].starts_with(needle)).collect();
        assert!(!found.is_empty());
        found.into_iter().for_each(|found| changed[found + at] ^= 0x01);
        changed
    };
    let flipped = |at: usize, many: usize| {
        let mut bytes = bytes.clone();
        bytes[at..at + many].iter_mut().for_each(|byte| *byte ^= 0x15);
        bytes
    };
    let cases = [
        ("the header", flipped(0, 16)),
        ("a page's header", flipped(4_096 * 3, 8)),
        ("a register", changed(b"key-100", 6)),
        ("an audit entry", changed(b"\"reason\":\"key-100\"", 12)),
        ("its end", bytes[..bytes.len() / 2].to_vec()),
        ("all but a page", bytes[..4_096].to_vec()),
    ];
    for (what, bytes) in cases {
        let dir = directory.path().join(what.replace(' ', "-"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("state.sqlite"), bytes).unwrap();
        let opened = Store::open(&dir, Some("a"), KEY);
        let message = opened.map(drop).expect_err(what).to_string();
        assert!(message.contains("is damaged"), "{what}: {message}");
        assert!(message.contains("stillgate backup") && !message.contains('\n'), "{message}");
    }
    // The rows of accounts can do without one; a file that is none at all cannot be written.
    std::fs::write(sound.join("memory.sqlite"), "not a database at all, but quite some text")
        .unwrap();
    assert!(refused(&sound).contains("memory.sqlite is damaged"), "{}", refused(&sound));
}

#[test]
fn nobody_else_may_read_it() {
    let directory = TestDirectory::new();
    let dir = directory.path().join("a/b");
    let store = open(&dir);
    store.commit(put("k", 1)).wait().unwrap();
    rows_of(&store).put(0, [(&AccountId::new("a"), &b"row"[..])]).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() >= 6, "two databases with their journals: {files:?}");
    assert!(files.iter().all(|file| mode(file) == 0o600), "{files:?}");
    close(store);
    let state = dir.join("state.sqlite");
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o644)).unwrap();
    drop(open(&dir));
    assert_eq!(mode(&state), 0o600);
}

#[test]
fn a_journal_does_not_grow_for_ever() {
    let directory = TestDirectory::new();
    let store = open(directory.path());
    for number in 0..400 {
        let value = Write::put(Table::Tier, "k", &json!({ "n": number, "x": "y".repeat(40_000) }));
        store.commit(Batch { writes: vec![value], audit: Vec::new() }).wait().unwrap();
        assert!(store.get(Table::Tier, "k").unwrap().is_some());
    }
    let journal = std::fs::metadata(directory.path().join("state.sqlite-wal")).unwrap().len();
    assert!(journal < 8_000_000, "{journal} bytes after 16 MB of the same key");
}

#[test]
fn a_backup_is_a_store_of_one_moment() {
    let directory = TestDirectory::new();
    let (dir, to) = (directory.path().join("data"), directory.path().join("copy"));
    let store = open(&dir);
    store.commit(put("first", 1)).wait().unwrap();
    rows_of(&store).put(0, [(&AccountId::new("a"), &b"row"[..])]).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (store, stop) = (&store, &done);
        scope.spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                store.commit(put(&format!("k{number}"), number)).wait().unwrap();
                number += 1;
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        let mut files = Vec::new();
        let bytes = backup(&dir, &to, |progress| match progress {
            backup::Progress::Checking { file } => files.push(file),
            backup::Progress::Copied { pages, of, .. } => assert!(pages <= of),
        });
        done.store(true, Ordering::Relaxed);
        assert!(bytes.unwrap() > 20_000);
        assert_eq!(files, ["memory.sqlite", "state.sqlite"]);
    });
    let again = backup(&dir, &to, |_| ()).unwrap_err().to_string();
    assert!(again.contains("is there already; name a directory that is not"), "{again}");
    let none = backup(&directory.path().join("nothing"), &directory.path().join("n"), |_| ());
    assert!(none.unwrap_err().to_string().contains("cannot be read"));
    assert!(
        !directory.path().join("n").exists() && !directory.path().join("n.unfinished").exists()
    );
    let copy = open(&to);
    assert_eq!(value(&copy, "first").as_deref(), Some("1"));
    let entries = chain(&copy);
    assert!(entries >= 2 && entries <= chain(&store), "{entries}");
    // Each entry came with its register.
    assert_eq!(copy.scan(Table::Override).unwrap().len() as u64, entries);
    let row = rows_of(&copy).reader().unwrap().get(&AccountId::new("a")).unwrap();
    assert_eq!(row.as_deref(), Some(&b"row"[..]));
}
