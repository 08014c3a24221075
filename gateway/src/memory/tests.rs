use detectors::facts::Facts;
use detectors::{Observation, OrganisationId, Profile};

use super::*;
use crate::config::file::tests::TestDirectory;
use crate::judge::Judged;
use crate::judge::tests::observation;
use crate::store::{Batch, Write};

const PATIENCE: Duration = Duration::from_secs(5);

struct Process {
    judge: Arc<Judge>,
    store: Arc<Store>,
    memory: Arc<AccountMemory>,
    metrics: Arc<Metrics>,
}

fn start(dir: &TestDirectory) -> Process {
    let metrics = Arc::new(Metrics::new().unwrap());
    let facts = Arc::new(Facts::builtin().unwrap());
    let judge = Arc::new(Judge::new(Arc::default(), facts, [1; 16], metrics.clone()));
    let store = Store::open(&dir.path().join("data"), Some("a"), "k").unwrap();
    let memory = AccountMemory::start(judge.clone(), store.clone(), metrics.clone(), 90);
    let memory = memory.unwrap().unwrap();
    judge.start(Box::new(|_| ())).unwrap();
    Process { judge, store, memory, metrics }
}

impl Process {
    fn asks(&self, account: &str, number: u64) -> Judged {
        self.judge.arrived(&asked(account, number), None, PATIENCE)
    }

    fn requests(&self, account: &str) -> Option<u32> {
        self.judge.account(&AccountId::new(account), |account| account.memory.requests)
    }

    fn sweep(&self, accounts_max: usize) {
        let (done, wait) = sync_channel(1);
        self.memory.sweep(accounts_max, move || done.send(()).unwrap()).unwrap();
        wait.recv_timeout(Duration::from_secs(30)).unwrap();
    }
}

fn asked(account: &str, number: u64) -> Observation {
    observation(account, number, &format!("Question {number}: why does bread rise?"))
}

#[test]
fn an_account_that_comes_back_is_remembered() {
    let directory = TestDirectory::new();
    let first = start(&directory);
    for number in 0..7 {
        assert!(!matches!(first.asks("back", number), Judged::Late));
    }
    first.asks("other", 9);
    first.memory.flush();
    assert!(first.metrics.rows_written.get() >= 2);
    let second = start(&directory);
    assert_eq!(second.requests("back"), None, "nobody has asked for it");
    second.asks("back", 10);
    assert_eq!(second.requests("back"), Some(8));
    assert_eq!((second.metrics.rows_read.get(), second.requests("other")), (1, None));
    second.asks("new", 11);
    assert_eq!(second.requests("new"), Some(1));
    // What an operator asks for is fetched as well.
    assert!(second.judge.explain(&AccountId::new("other"), 1).is_some());
    assert!(second.judge.explain(&AccountId::new("nobody"), 1).is_none());
    second.memory.flush();
    let third = start(&directory);
    assert!(third.judge.fetch(&AccountId::new("back"), PATIENCE));
    assert_eq!(third.requests("back"), Some(8), "counted once, however often it was stored");
}

#[test]
fn all_come_back_behind_the_start_and_then_nobody_is_asked_for_who_is_new() {
    let directory = TestDirectory::new();
    let first = start(&directory);
    for number in 0..600 {
        first.asks(&format!("acct-{number}"), number);
    }
    first.memory.flush();
    let second = start(&directory);
    // One is there, with more than was stored, before the sweep comes to it.
    second.asks("acct-7", 1_000);
    second.sweep(10_000);
    assert_eq!(second.requests("acct-7"), Some(2));
    assert!((0..600).all(|n| second.requests(&format!("acct-{n}")).is_some()));
    assert!(second.judge.is_here(&AccountId::new("new")));
    let bounded = start(&directory);
    bounded.sweep(100);
    let held = (0..600).filter(|n| bounded.requests(&format!("acct-{n}")).is_some()).count();
    assert_eq!(held, 100);
    assert!(!bounded.judge.is_here(&AccountId::new("new")), "it may be one of the others");
}

#[test]
fn a_disk_that_stalls_stalls_no_request() {
    let directory = TestDirectory::new();
    let first = start(&directory);
    first.asks("back", 1);
    first.memory.flush();
    let second = start(&directory);
    // The loader asks who holds the rows in flight first: held here, as a disk would hold it.
    let stalled = second.memory.in_flight.lock();
    let patience = Duration::from_millis(20);
    let begun = Instant::now();
    assert!(matches!(second.judge.arrived(&asked("back", 2), None, patience), Judged::Late));
    assert!(begun.elapsed() < Duration::from_secs(2));
    std::thread::sleep(patience);
    // Now it is known that nothing comes, and nobody waits at all.
    let begun = Instant::now();
    for number in 0..50 {
        let patience = Duration::from_millis(20);
        let judged = second.judge.arrived(&asked("new", 10 + number), None, patience);
        assert!(matches!(judged, Judged::Late));
    }
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!(second.metrics.rows_late.get(), 51);
    drop(stalled);
    assert!(second.judge.fetch(&AccountId::new("last"), PATIENCE));
    // What came meanwhile was taken in all the same.
    assert_eq!((second.requests("back"), second.requests("new")), (Some(2), Some(50)));
}

#[test]
fn damaged_rows_are_left_out_and_counted() {
    let directory = TestDirectory::new();
    let first = start(&directory);
    for account in ["a", "b", "c"] {
        first.asks(account, 1);
    }
    first.memory.flush();
    let rows = first.store.rows().unwrap();
    let (b, c) = (AccountId::new("b"), AccountId::new("c"));
    // What was written so is no account, or another's.
    rows.put(unix_ms(), [(&b, &b"\xff\xff"[..])]).unwrap();
    let row = rows.reader().unwrap().get(&AccountId::new("a")).unwrap().unwrap();
    rows.put(unix_ms(), [(&c, row.as_slice())]).unwrap();
    let second = start(&directory);
    second.asks("b", 2);
    assert_eq!((second.requests("b"), second.metrics.rows_damaged.get()), (Some(1), 1));
    let third = start(&directory);
    third.sweep(1_000);
    assert_eq!((third.requests("a"), third.metrics.rows_damaged.get()), (Some(1), 2));
    assert_eq!((third.requests("b"), third.requests("c")), (None, None));
}

#[test]
fn what_operators_told_comes_with_the_account() {
    let directory = TestDirectory::new();
    let first = start(&directory);
    let word = ProfileWord {
        at_ms: 1,
        organisation: Some("org".to_owned()),
        created_s: Some(5),
        payment: None,
        bin: None,
        verified: true,
    };
    let write = Write::put(Table::Profile, "told", &word);
    first.store.commit(Batch { writes: vec![write], audit: vec![] }).wait().unwrap();
    first.asks("told", 1);
    let known = |process: &Process| {
        let id = AccountId::new("told");
        process.judge.account(&id, |account| account.memory.known)
    };
    let told = known(&first).unwrap();
    assert_ne!(told, detectors::account::Known::default());
    // Also where an event is the first that is heard of the account.
    let event = Event::Profile(Profile {
        at_ms: 0,
        account: AccountId::new("told"),
        organisation: Some(OrganisationId::new("org")),
        created_s: None,
        payment: None,
        bin: None,
        verified: false,
    });
    first.memory.flush();
    let second = start(&directory);
    second.judge.observe(&event);
    assert!(second.judge.fetch(&AccountId::new("told"), PATIENCE));
    assert_eq!(second.requests("told"), Some(1));
    assert_eq!(known(&second).map(|known| known.created_s), Some(told.created_s));
}

#[test]
fn rows_that_cannot_be_written_are_kept_until_they_can() {
    let directory = TestDirectory::new();
    let process = start(&directory);
    process.asks("a", 1);
    process.memory.flush();
    let other = rusqlite::Connection::open(directory.path().join("data/memory.sqlite")).unwrap();
    let refuse =
        "CREATE TRIGGER full BEFORE UPDATE ON accounts BEGIN SELECT RAISE(ABORT, 'no'); END";
    other.execute_batch(refuse).unwrap();
    process.asks("a", 2);
    process.memory.flush();
    assert!(process.metrics.rows_failures.get() >= 1);
    assert!(process.metrics.rows_waiting.get() >= 1);
    let stored = |process: &Process| {
        let row = process.store.rows().unwrap().reader().unwrap().get(&AccountId::new("a"));
        AccountRow::decode(&row.unwrap().unwrap()).unwrap().memory.requests
    };
    assert_eq!(stored(&process), 1);
    process.asks("a", 3);
    other.execute_batch("DROP TRIGGER full").unwrap();
    process.memory.flush();
    assert_eq!(stored(&process), 3);
}
