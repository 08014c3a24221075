//! What the embedded store costs: bytes an account, rows written behind, commits, the sweep, a start.
//!
//! `cargo run --release -p stillgate --example store [ACCOUNTS] [DIR] [TIMES]` lets accounts (a million
//! by default) ask one to six times each (or fewer) through the judge, so that their rows go the way that they go in
//! production, then starts the binary beside it, `stillgate`, on what was written. The background
//! detectors do not run: their part of a row, what prompts mean, is missing, about a tenth of it.
#![expect(clippy::expect_used, reason = "a measurement has nobody to tell")]

use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use detectors::engine::AccountRow;
use detectors::facts::Facts;
use detectors::{
    AccountId, Answer, Conversation, Format, HttpCapture, HttpVersion, Network, Observation, Role,
    Text, Turn,
};
use gateway::audit::{Act, Actor, Draft};
use gateway::cli::run::{engine_key, store_key_check};
use gateway::judge::Judge;
use gateway::memory::AccountMemory;
use gateway::metrics::Metrics;
use gateway::store::{Batch, Store, Table, Write};

const KEY: [u8; 32] = [
    0x7b, 0x1d, 0x0e, 0x5c, 0x9a, 0x4f, 0x38, 0x26, 0x1f, 0xd2, 0xb6, 0xc8, 0xe0, 0xa7, 0x93, 0x54,
    0x41, 0xc6, 0xd8, 0xfb, 0x2e, 0x90, 0x7a, 0x3c, 0x5d, 0x1f, 0x86, 0xb4, 0xe2, 0xa0, 0x9c, 0x77,
];
const PATIENCE: Duration = Duration::from_secs(60);

struct Process {
    judge: Arc<Judge>,
    store: Arc<Store>,
    memory: Arc<AccountMemory>,
    metrics: Arc<Metrics>,
}

fn open(dir: &Path) -> Process {
    let metrics = Arc::new(Metrics::new().expect("metrics"));
    let facts = Arc::new(Facts::builtin().expect("the shipped tables"));
    let judge = Judge::new(Arc::default(), facts, engine_key(&KEY), metrics.clone());
    let judge = Arc::new(judge);
    let store = Store::open(dir, Some("a"), &store_key_check(&KEY)).expect("a store");
    let memory = AccountMemory::start(judge.clone(), store.clone(), metrics.clone(), 90);
    let memory = memory.expect("threads").expect("rows on disk");
    Process { judge, store, memory, metrics }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let accounts: u32 = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = folder.join(format!("stillgate-store-{}", std::process::id()));
    let dir = folder.join("data");
    std::fs::create_dir_all(&folder).expect("a folder");
    let times = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(6);
    write(accounts, times, &dir);
    sweep(accounts, &dir);
    if accounts <= 10_000_000 {
        start(accounts, &folder);
    }
    std::fs::remove_dir_all(folder).expect("its own folder");
}

fn write(accounts: u32, times: u32, dir: &Path) {
    let process = open(dir);
    process.memory.sweep(1_000_000, || ()).expect("a thread");
    let (begun, mut asked) = (Instant::now(), 0);
    for turn in 0..times {
        for account in (0..accounts).filter(|account| mixed(*account) % 6 >= turn) {
            process.judge.arrived(&observation(account, turn), None, PATIENCE);
            asked += 1;
        }
    }
    let judged = begun.elapsed();
    process.memory.flush();
    let written = process.metrics.rows_written.get();
    println!(
        "{accounts} accounts asked {asked} times in {judged:.1?}; {written} rows were written behind \
         in {:.1?}",
        begun.elapsed()
    );
    let again = accounts.min(200_000);
    for account in 0..again {
        process.judge.arrived(&observation(account, 7), None, PATIENCE);
    }
    process.memory.flush();
    for account in 0..again {
        process.judge.arrived(&observation(account.wrapping_mul(7) % accounts, 8), None, PATIENCE);
    }
    let (before, begun) = (process.metrics.rows_written.get(), Instant::now());
    process.memory.flush();
    let rows = process.metrics.rows_written.get() - before;
    let took = begun.elapsed().as_secs_f64();
    println!("{rows} rows overwritten in {took:.2} s: {:.0} rows a second", rows as f64 / took);
    let sizes: Vec<usize> = (0..1_000)
        .filter_map(|n| {
            process.judge.account(&id(n * (accounts / 1_000).max(1)), AccountRow::encode)
        })
        .map(|row| row.len())
        .collect();
    let mean = sizes.iter().sum::<usize>() as f64 / sizes.len() as f64;
    let commit = |threads: u64| {
        let mut times: Vec<Duration> = std::thread::scope(|scope| {
            let each = |thread: u64| {
                let store = &process.store;
                scope.spawn(move || {
                    (0..2_000 / threads).map(|n| commit(store, thread, n)).collect::<Vec<_>>()
                })
            };
            let running: Vec<_> = (0..threads).map(each).collect();
            running.into_iter().flat_map(|times| times.join().expect("a thread")).collect()
        });
        times.sort_unstable();
        println!(
            "durable commit, {threads} at once: p50 {:?}, p99 {:?}",
            times[times.len() / 2],
            times[times.len() * 99 / 100]
        );
    };
    commit(1);
    commit(16);
    drop(process);
    std::thread::sleep(Duration::from_secs(1));
    let size = |file: &str| std::fs::metadata(dir.join(file)).map_or(0, |file| file.len());
    let bytes = size("memory.sqlite");
    println!(
        "memory.sqlite {:.0} MB, {:.0} bytes an account (a row has {mean:.0}); its journal {:.0} MB",
        bytes as f64 / 1e6,
        bytes as f64 / f64::from(accounts),
        size("memory.sqlite-wal") as f64 / 1e6
    );
}

fn commit(store: &Store, thread: u64, number: u64) -> Duration {
    let entry = Draft::new(Actor::System, Act::OverrideSet).because("measured");
    let write = Write::put(Table::Override, format!("acct-{thread}-{number}"), &number);
    let begun = Instant::now();
    store.commit(Batch::told(vec![write], entry)).wait().expect("it is written");
    begun.elapsed()
}

/// Takes all back while requests of new and of known accounts come, and says how long they took.
fn sweep(accounts: u32, dir: &Path) {
    let begun = Instant::now();
    let process = open(dir);
    println!("the store was open after {:?}", begun.elapsed());
    let (done, wait) = sync_channel(1);
    let begun = Instant::now();
    let told = move || done.send(()).expect("somebody waits");
    process.memory.sweep(accounts as usize + 1_000_000, told).expect("a thread");
    let mut fresh = accounts;
    let mut both = |what: &str, stop: &mut dyn FnMut() -> bool| {
        let (mut new, mut known) = (Vec::new(), Vec::new());
        while !stop() && new.len() < 200_000 {
            for (account, times) in
                [(fresh, &mut new), (mixed(fresh) % accounts.max(1), &mut known)]
            {
                let observation = observation(account, 9);
                let begun = Instant::now();
                process.judge.arrived(&observation, None, PATIENCE);
                times.push(begun.elapsed());
            }
            fresh += 1;
            std::thread::sleep(Duration::from_micros(500));
        }
        for (whose, mut times) in [("new", new), ("known", known)] {
            times.sort_unstable();
            let at = |share: usize| times.get((times.len() * share / 1_000).min(times.len() - 1));
            println!(
                "{what}, {whose} accounts: {} judged, p50 {:?}, p99 {:?}, longest {:?}",
                times.len(),
                at(500),
                at(990),
                times.last()
            );
        }
    };
    let mut swept = None;
    both("while the sweep runs", &mut || {
        if wait.try_recv().is_ok() {
            swept = Some(begun.elapsed());
        }
        swept.is_some()
    });
    let took = swept.unwrap_or_else(|| {
        let _ = wait.recv_timeout(Duration::from_secs(600));
        begun.elapsed()
    });
    let read = process.metrics.rows_read.get() as f64;
    println!("{read} rows taken back in {took:.1?}: {:.0} a second", read / took.as_secs_f64());
    let mut turns = 0;
    both("afterwards", &mut || {
        turns += 1;
        turns > 5_000
    });
}

/// Starts the binary on what was written, and asks it.
fn start(accounts: u32, folder: &Path) {
    let binary = std::env::current_exe().expect("its own path");
    let binary = binary.parent().and_then(Path::parent).expect("a folder").join("stillgate");
    if !binary.is_file() {
        println!("{} is not there: no start was measured", binary.display());
        return;
    }
    let address = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.local_addr().expect("its address")
    };
    let (listener, admin, token) = (address(), address(), "measured-".repeat(6));
    std::fs::write(folder.join("account.key"), hex::encode(KEY)).expect("a file");
    std::fs::write(folder.join("admin.token"), &token).expect("a file");
    for secret in ["account.key", "admin.token"] {
        use std::os::unix::fs::PermissionsExt;
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(folder.join(secret), private).expect("its own file");
    }
    let config = format!(
        "data_dir = \"data\"\n[[listener]]\naddress = \"{listener}\"\n[[route]]\nname = \"main\"\n\
         upstream = \"main\"\n[upstream.main]\naddresses = [\"127.0.0.1:9\"]\n\
         [identity]\nkey_file = \"account.key\"\n[admin]\naddress = \"{admin}\"\n\
         token_file = \"admin.token\"\n[server]\nupgrade_socket = \"upgrade.sock\"\n"
    );
    let file = folder.join("stillgate.toml");
    std::fs::write(&file, config).expect("a file");
    for how in ["after an end in order", "after kill -9", "after kill -9"] {
        let begun = Instant::now();
        let mut child = Command::new(&binary)
            .args(["run", "--config"])
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut ready = None;
        let mut swept = None;
        while swept.is_none() && begun.elapsed() < Duration::from_secs(300) {
            match ready {
                None if ask(admin, "/readyz", &token).starts_with("HTTP/1.1 200") => {
                    ready = Some(begun.elapsed());
                }
                None => std::thread::sleep(Duration::from_millis(2)),
                Some(_) => {
                    let metrics = ask(admin, "/metrics", &token);
                    let read = metrics
                        .lines()
                        .find_map(|line| line.strip_prefix("stillgate_account_rows_read_total "))
                        .and_then(|read| read.parse::<f64>().ok());
                    if read.is_some_and(|read| read >= f64::from(accounts.min(1_000_000))) {
                        swept = Some(begun.elapsed());
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
        println!("start {how}: ready after {ready:?}, all taken back after {swept:?}");
        child.kill().expect("its own child");
        child.wait().expect("its own child");
    }
}

fn ask(address: SocketAddr, path: &str, token: &str) -> String {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(address)
        && stream.write_all(request.as_bytes()).is_ok()
    {
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

fn id(account: u32) -> AccountId {
    AccountId::new(format!("acct_{:032x}", u128::from(mixed(account)) << 64 | u128::from(account)))
}

fn mixed(number: u32) -> u32 {
    (number ^ (number >> 16)).wrapping_mul(0x45d9_f3b5).rotate_left(13).wrapping_mul(0x2c1b_3c6d)
}

/// A question of its own from an address of its own.
fn observation(account: u32, turn: u32) -> Observation {
    let words = ["bread", "river", "lamp", "glass", "wool", "stone", "paper", "salt"];
    let word = |n: u32| words[(mixed(account ^ (turn << 8) ^ n) % 8) as usize];
    let text = format!(
        "How is {} made from {} and {}, and why does number {account} need {turn} {} for it?",
        word(1),
        word(2),
        word(3),
        word(4)
    );
    Observation {
        id: format!("r{account:08x}{turn:08x}"),
        at_ms: 1_788_739_200_000 + u64::from(turn) * 3_600_000 + u64::from(account),
        account: Some(id(account)),
        organisation: None,
        ip: IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + account * 5)),
        network: Network::default(),
        route: "main".into(),
        tls: None,
        http: HttpCapture {
            version: HttpVersion::Http11,
            method: "POST".to_owned(),
            path: "/v1/chat/completions".to_owned(),
            headers: vec![],
            h2: None,
        },
        format: Format::OpenaiChat,
        foreign_marks: 0,
        indicators: Vec::new(),
        conversation: Conversation {
            turns: vec![Turn {
                role: Role::User,
                text: Text::new(text),
                tool_calls: vec![],
                attachments: 0,
            }],
            ..Conversation::default()
        },
        answer: Answer::default(),
    }
}
