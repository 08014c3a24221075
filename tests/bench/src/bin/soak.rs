//! Whether the gateway holds still: memory, descriptors and threads under long, impolite load.
//!
//! Clients come and go in every way that the internet knows: polite ones on HTTP/1.1, HTTP/2 and
//! new connections, long streams, clients that leave in the middle of an answer or of their own
//! request, that read slowly, that cannot shake hands, or whose framing is refused. The gateway's
//! resident memory, descriptors and threads are sampled on the way. What leaks grows, so the median
//! of the last fifth of the samples is compared with that of the second; the first fifth is left to
//! caches and pools that fill.
//!
//! It fails (exit code 1) when memory grew by more than 10 % and 10 MB, when descriptors grew by
//! more than 20, when more than one polite exchange in a thousand went wrong (a refusal where one is
//! due is a polite answer), when the gateway panicked or ended, or when it did not end in an orderly
//! way once asked to.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use h2::client::SendRequest;
use stand::answer::Kind;
use stand::client::{Http1, Target, http2_exchange};
use stand::figures::Spread;
use stand::http1::Body;
use stand::prompt::{Random, Requests};
use stand::proxies::{Places, Settings, Stand};
use stand::system::{Held, held};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

/// Longest time between two samples.
const SAMPLE_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Fewest samples of a run, however short.
const SAMPLES_MIN: u32 = 30;
/// Memory may grow by the larger of the two.
const RSS_GROWTH_MAX: f64 = 0.10;
const RSS_GROWTH_BYTES_MAX: f64 = 10e6;
/// Descriptors may grow by as many.
const DESCRIPTORS_GROWTH_MAX: f64 = 20.0;
/// Polite exchanges that may go wrong.
const FAILED_SHARE_MAX: f64 = 0.001;
/// Longest time of one exchange; the longest answer takes two seconds.
const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(20);
/// Time that the gateway has to end once asked to.
const END_TIME_MAX: Duration = Duration::from_secs(15);

/// Timeouts shorter than by default: clients that say nothing come and go as well, and what a
/// timeout keeps alive (pingora holds a timer until it is due, used or not) levels off within the
/// first fifth.
const LIMITS_LINES: &str = "handshake_timeout_seconds = 2\nheader_timeout_seconds = 2\n\
                            idle_timeout_seconds = 10\nbody_idle_timeout_seconds = 3\n\
                            body_timeout_seconds = 10\nwrite_timeout_seconds = 5\n";
const UPSTREAM_LINES: &str = "first_byte_timeout_seconds = 10\nidle_timeout_seconds = 10\n";

#[derive(Parser)]
#[command(about = "Watches the gateway's memory and descriptors under long load")]
struct Options {
    /// Minutes of load.
    #[arg(default_value_t = 10.0, value_parser = minutes)]
    minutes: f64,
    /// Only these clients, by name: to find who makes something grow.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    only: Vec<String>,
    /// Worker threads of the gateway.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// A way to behave, its clients and the pause between two of their exchanges.
struct Habit {
    name: &'static str,
    clients: usize,
    pause: Duration,
    /// Whether each exchange has to succeed.
    polite: bool,
    act: fn(Rc<World>, Random) -> Act,
}

type Act = Pin<Box<dyn Future<Output = io::Result<()>>>>;

const FAST: Kind = Kind::Fast { events: 100 };
const LARGE: Kind = Kind::Fast { events: 3000 };
const PACED: Kind = Kind::Paced { events: 50, pace: Duration::from_millis(40) };

const HABITS: &[Habit] = &[
    habit("h1 keep-alive", 4, 30, true, |world, random| Box::pin(keep_alive(world, random))),
    habit("h2", 3, 50, true, |world, random| Box::pin(multiplexed(world, random))),
    habit("h1 new connections", 4, 40, true, |world, _| Box::pin(once(world, Kind::Whole))),
    habit("h1 paced streams", 40, 10, true, |world, _| Box::pin(once(world, PACED))),
    habit("h1 large answers", 1, 200, true, |world, _| Box::pin(once(world, LARGE))),
    habit("h1 leaving in the answer", 6, 100, false, |world, random| {
        Box::pin(leave_http1(world, random))
    }),
    habit("h2 leaving in the answer", 3, 100, false, |world, random| {
        Box::pin(leave_http2(world, random))
    }),
    habit("leaving in the request", 3, 150, false, |world, random| {
        Box::pin(leave_in_request(world, random))
    }),
    habit("slow readers", 6, 100, false, |world, _| Box::pin(read_slowly(world))),
    habit("failed handshakes", 4, 100, false, |world, random| {
        Box::pin(fail_handshake(world, random))
    }),
    habit("refused framing", 3, 100, true, |world, random| Box::pin(be_refused(world, random))),
];

const fn habit(
    name: &'static str,
    clients: usize,
    pause_ms: u64,
    polite: bool,
    act: fn(Rc<World>, Random) -> Act,
) -> Habit {
    Habit { name, clients, pause: Duration::from_millis(pause_ms), polite, act }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the soak; returns whether the gateway held still.
fn run(options: &Options) -> io::Result<bool> {
    let habits = choose(&options.only)?;
    let places = Places { proxy: None, upstream: None };
    let stand = Stand::new(places)?;
    let settings = Settings {
        name: "stillgate",
        threads: options.threads,
        upstream_lines: UPSTREAM_LINES,
        limits_lines: LIMITS_LINES,
        store_lines: "",
        policy: "",
    };
    let mut gateway = stand.gateway(places, &settings)?;
    let world = Rc::new(World::new(stand.target(&gateway)?)?);
    let duration = Duration::from_secs_f64(options.minutes * 60.0);
    let interval = SAMPLE_INTERVAL_MAX.min(duration / SAMPLES_MIN);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let clients = LocalSet::new();
    spawn_clients(&clients, &world, &habits);
    let mut samples = Vec::new();
    println!(
        "{:>8}  {:>8}  {:>11}  {:>7}  {:>11}  {:>6}",
        "seconds", "RSS MB", "descriptors", "threads", "exchanges/s", "failed"
    );
    let started = Instant::now();
    let mut done_before = 0;
    while started.elapsed() < duration {
        let since = Instant::now();
        clients.block_on(&runtime, async { sleep(interval).await });
        if let Some(status) = gateway.process().ended()? {
            eprintln!("{}", last_lines(&stand.log_of("stillgate")));
            return Err(io::Error::other(format!("the gateway ended ({status})")));
        }
        let held = held(gateway.id())?;
        let (done, failed) = world.totals();
        println!(
            "{:>8.0}  {:>8.1}  {:>11}  {:>7}  {:>11.0}  {failed:>6}",
            started.elapsed().as_secs_f64(),
            held.rss_bytes as f64 / 1e6,
            held.descriptors,
            held.threads,
            (done - done_before) as f64 / since.elapsed().as_secs_f64(),
        );
        io::stdout().flush()?;
        done_before = done;
        samples.push(held);
    }
    // All clients hang up at once.
    drop(clients);
    drop(runtime);
    println!("\n{}", world.told());
    let mut faults = world.faults(&habits);
    faults.extend(growth(&samples));
    let log = stand.log_of("stillgate");
    if let Some(panicked) = log.lines().find(|line| line.contains("panicked at")) {
        faults.push(format!("the gateway's log: {panicked}"));
    }
    match gateway.process().terminate(END_TIME_MAX)? {
        Some(status) if status.success() => {}
        Some(status) => faults.push(format!("the gateway ended with {status}")),
        None => faults.push("the gateway did not end when asked to".to_owned()),
    }
    for fault in &faults {
        println!("FAULT: {fault}");
    }
    if faults.is_empty() {
        println!("the gateway held still");
    }
    Ok(faults.is_empty())
}

fn choose(only: &[String]) -> io::Result<Vec<&'static Habit>> {
    if let Some(unknown) = only.iter().find(|name| HABITS.iter().all(|habit| habit.name != *name)) {
        let names: Vec<_> = HABITS.iter().map(|habit| habit.name).collect();
        let names = names.join(", ");
        return Err(io::Error::other(format!("no clients {unknown}; there are {names}")));
    }
    let chosen = |habit: &&Habit| only.is_empty() || only.iter().any(|name| name == habit.name);
    Ok(HABITS.iter().filter(chosen).collect())
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.1..=100_000.0).contains(&minutes) => Ok(minutes),
        _ => Err("expected minutes from 0.1".to_owned()),
    }
}

/// What of the samples tells of a leak.
fn growth(samples: &[Held]) -> Vec<String> {
    let fifth = samples.len() / 5;
    if fifth == 0 {
        return vec!["too few samples to tell".to_owned()];
    }
    let median = |from: usize, figure: fn(&Held) -> u64| {
        let part = &samples[from..(from + fifth).min(samples.len())];
        Spread::of(part.iter().map(|held| figure(held) as f64)).map_or(0.0, |spread| spread.median)
    };
    let (second, last) = (fifth, samples.len() - fifth);
    let rss = |from| median(from, |held| held.rss_bytes);
    let descriptors = |from| median(from, |held| held.descriptors);
    let mut faults = Vec::new();
    let (before, after) = (rss(second), rss(last));
    let told = format!("memory: {:.1} MB, then {:.1} MB", before / 1e6, after / 1e6);
    println!("{told}");
    if after - before > (before * RSS_GROWTH_MAX).max(RSS_GROWTH_BYTES_MAX) {
        faults.push(format!("memory grew: {told}"));
    }
    let (before, after) = (descriptors(second), descriptors(last));
    let told = format!("descriptors: {before:.0}, then {after:.0}");
    println!("{told}");
    if after - before > DESCRIPTORS_GROWTH_MAX {
        faults.push(format!("descriptors grew: {told}"));
    }
    faults
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// What all clients share.
struct World {
    target: Target,
    distrusting: Target,
    pools: Vec<(Kind, Requests)>,
    counts: std::cell::RefCell<BTreeMap<&'static str, Count>>,
}

#[derive(Clone, Debug, Default)]
struct Count {
    polite: bool,
    done: u64,
    failed: u64,
    error: Option<String>,
}

impl World {
    fn new(target: Target) -> io::Result<Self> {
        let authority = target.authority();
        let pool = |kind| (kind, Requests::new(&authority, kind));
        Ok(Self {
            distrusting: Target::distrusting(target.address())?,
            pools: [FAST, LARGE, PACED, Kind::Whole].map(pool).into(),
            counts: std::cell::RefCell::default(),
            target,
        })
    }

    fn requests(&self, kind: Kind) -> &Requests {
        let found = self.pools.iter().find(|(pooled, _)| *pooled == kind);
        &found.unwrap_or(&self.pools[0]).1
    }

    fn address(&self) -> SocketAddr {
        self.target.address()
    }

    fn count(&self, habit: &Habit, outcome: io::Result<()>) {
        let mut counts = self.counts.borrow_mut();
        let count = counts.entry(habit.name).or_default();
        count.polite = habit.polite;
        count.done += 1;
        if let Err(error) = outcome {
            count.failed += 1;
            count.error.get_or_insert_with(|| error.to_string());
        }
    }

    /// Exchanges, and how many polite ones went wrong.
    fn totals(&self) -> (u64, u64) {
        let counts = self.counts.borrow();
        let failed = counts.values().filter(|count| count.polite).map(|count| count.failed).sum();
        (counts.values().map(|count| count.done).sum(), failed)
    }

    fn told(&self) -> String {
        let counts = self.counts.borrow();
        let mut rows = vec![
            ["clients", "have to succeed", "exchanges", "failed", "first error"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(counts.iter().map(|(name, count)| {
            vec![
                (*name).to_owned(),
                if count.polite { "yes" } else { "no" }.to_owned(),
                count.done.to_string(),
                count.failed.to_string(),
                count.error.clone().unwrap_or_default(),
            ]
        }));
        stand::table::aligned(&rows)
    }

    fn faults(&self, habits: &[&Habit]) -> Vec<String> {
        let counts = self.counts.borrow();
        let mut faults = Vec::new();
        for habit in habits {
            let Some(count) = counts.get(habit.name) else {
                faults.push(format!("{}: not one exchange ended", habit.name));
                continue;
            };
            if count.polite && count.failed as f64 > count.done as f64 * FAILED_SHARE_MAX {
                faults.push(format!("{}: {} of {} failed", habit.name, count.failed, count.done));
            }
        }
        faults
    }
}

fn spawn_clients(clients: &LocalSet, world: &Rc<World>, habits: &[&'static Habit]) {
    for (kind, habit) in habits.iter().copied().enumerate() {
        for number in 0..habit.clients {
            let world = world.clone();
            let mut random = Random::new((kind * 1000 + number + 1) as u64);
            clients.spawn_local(async move {
                // Not all at once.
                sleep(habit.pause.mul_f64(random.fraction() * 10.0)).await;
                loop {
                    let act = (habit.act)(world.clone(), Random::new(random.number()));
                    let outcome = timeout(EXCHANGE_TIME_MAX, act).await;
                    let outcome = outcome.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
                    world.count(habit, outcome);
                    sleep(habit.pause.mul_f64(0.5 + random.fraction())).await;
                }
            });
        }
    }
}

/// A status and a body's length, held against what a kind of answer has.
fn expect(kind: Kind, status: Option<u16>, bytes: u64) -> io::Result<()> {
    let expected = kind.render().body_bytes;
    if status == Some(200) && bytes == expected {
        return Ok(());
    }
    let status = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
    Err(io::Error::other(format!("status {status}, {bytes} bytes of {expected}")))
}

async fn exchange(world: &World, http1: &mut Http1, kind: Kind, number: usize) -> io::Result<()> {
    let mut bytes = 0;
    let request = world.requests(kind).http1(number);
    let head = http1.exchange(&request, &mut |piece| bytes += piece.len() as u64).await?;
    expect(kind, head.status(), bytes)
}

async fn once(world: Rc<World>, kind: Kind) -> io::Result<()> {
    let mut http1 = world.target.http1().await?;
    exchange(&world, &mut http1, kind, 0).await?;
    http1.close().await
}

/// A connection that serves some requests, streamed and not.
async fn keep_alive(world: Rc<World>, mut random: Random) -> io::Result<()> {
    let mut http1 = world.target.http1().await?;
    for _ in 0..random.below(20) + 1 {
        let kind = if random.below(3) == 0 { Kind::Whole } else { FAST };
        exchange(&world, &mut http1, kind, random.below(256)).await?;
        sleep(Duration::from_millis(random.below(30) as u64)).await;
    }
    http1.close().await
}

/// A connection that serves some requests at a time.
async fn multiplexed(world: Rc<World>, mut random: Random) -> io::Result<()> {
    let connection = world.target.http2().await?;
    for _ in 0..random.below(10) + 1 {
        let streams = (0..random.below(8) + 1).map(|_| {
            let kind = if random.below(3) == 0 { Kind::Whole } else { FAST };
            let (world, connection) = (world.clone(), connection.clone());
            tokio::task::spawn_local(http2_once(world, connection, kind, random.below(256)))
        });
        for stream in streams.collect::<Vec<_>>() {
            stream.await.map_err(io::Error::other)??;
        }
    }
    Ok(())
}

async fn http2_once(
    world: Rc<World>,
    connection: SendRequest<Bytes>,
    kind: Kind,
    number: usize,
) -> io::Result<()> {
    let mut bytes = 0;
    let mut count = |piece: &[u8]| bytes += piece.len() as u64;
    let status = http2_exchange(&connection, world.requests(kind), number, &mut count).await?;
    expect(kind, Some(status), bytes)
}

/// Hangs up after some events, or before the first.
async fn leave_http1(world: Rc<World>, mut random: Random) -> io::Result<()> {
    let kind = [FAST, PACED, LARGE][random.below(3)];
    let mut http1 = world.target.http1().await?;
    http1.send(&world.requests(kind).http1(random.below(256))).await?;
    let pieces = random.below(6);
    if pieces == 0 {
        return Ok(());
    }
    let mut body = Body::new(http1.head().await?.framing);
    for _ in 0..pieces {
        http1.piece(&mut body, &mut |_| {}).await?;
    }
    Ok(())
}

/// Resets streams after a while; the connection goes with the last.
async fn leave_http2(world: Rc<World>, mut random: Random) -> io::Result<()> {
    let connection = world.target.http2().await?;
    for _ in 0..4 {
        let kind = if random.below(2) == 0 { PACED } else { LARGE };
        let stay = Duration::from_millis(random.below(300) as u64);
        let answer = http2_once(world.clone(), connection.clone(), kind, random.below(256));
        // Not to wait for the rest of the answer resets its stream.
        let _ = timeout(stay, answer).await;
    }
    Ok(())
}

async fn leave_in_request(world: Rc<World>, mut random: Random) -> io::Result<()> {
    let request = world.requests(FAST).http1(random.below(256));
    let mut http1 = world.target.http1().await?;
    http1.send(&request[..random.below(request.len() - 1) + 1]).await?;
    sleep(Duration::from_millis(random.below(50) as u64)).await;
    Ok(())
}

/// Takes a large answer a little at a time, then gives up.
async fn read_slowly(world: Rc<World>) -> io::Result<()> {
    let mut http1 = world.target.narrow_http1().await?;
    http1.send(&world.requests(LARGE).http1(0)).await?;
    let mut body = Body::new(http1.head().await?.framing);
    for _ in 0..60 {
        if !http1.piece(&mut body, &mut |_| {}).await? {
            break;
        }
        sleep(Duration::from_millis(40)).await;
    }
    Ok(())
}

async fn fail_handshake(world: Rc<World>, mut random: Random) -> io::Result<()> {
    let way = random.below(5);
    if way == 0 {
        // A client that does not believe the certificate sends an alert.
        return match world.distrusting.http1().await {
            Ok(_) => Err(io::Error::other("a certificate was believed that should not be")),
            Err(_) => Ok(()),
        };
    }
    let mut tcp = TcpStream::connect(world.address()).await?;
    // Where something is written the server may have hung up already.
    match way {
        // Nothing at all.
        1 => return Ok(()),
        // Plain HTTP to a TLS port.
        2 => drop(tcp.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await),
        // The beginning of a ClientHello, then silence until the server has enough.
        3 => drop(tcp.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await),
        // Noise.
        _ => {
            let noise: Vec<u8> = (0..512).map(|_| random.number().to_le_bytes()[0]).collect();
            drop(tcp.write_all(&noise).await);
        }
    }
    let mut rest = Vec::new();
    let _ = tcp.take(64 * 1024).read_to_end(&mut rest).await;
    Ok(())
}

/// Sends a head that must be refused.
async fn be_refused(world: Rc<World>, mut random: Random) -> io::Result<()> {
    const FIELDS: [&str; 5] = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Content-Length : 5\r\n",
        "X-Folded: a\r\n b\r\nContent-Length: 5\r\n",
    ];
    let fields = FIELDS[random.below(FIELDS.len())];
    let request =
        format!("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n0\r\n\r\n");
    let mut http1 = world.target.http1().await?;
    let head = http1.exchange(request.as_bytes(), &mut |_| {}).await?;
    if head.status() != Some(400) {
        return Err(io::Error::other(format!("{fields:?} was answered {}", head.line)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(of: impl Fn(u64) -> (u64, u64)) -> Vec<Held> {
        let held =
            |(rss_mb, descriptors)| Held { rss_bytes: rss_mb * 1_000_000, descriptors, threads: 9 };
        (0..50).map(|number| held(of(number))).collect()
    }

    #[test]
    fn what_leaks_is_found() {
        let cases: [(&str, Vec<Held>, usize); 7] = [
            ("still", samples(|_| (50, 100)), 0),
            ("warming up", samples(|n| (30 + 2 * n.min(10), 20 + 8 * n.min(10))), 0),
            ("one peak", samples(|n| if n == 45 { (500, 900) } else { (50, 100) }), 0),
            ("memory leaks", samples(|n| (50 + n, 100)), 1),
            ("descriptors leak", samples(|n| (50, 100 + n)), 1),
            ("both", samples(|n| (50 + n, 100 + n)), 2),
            ("6 % of much", samples(|n| (1000 + n * 2, 100)), 0),
        ];
        for (name, samples, faults) in cases {
            assert_eq!(growth(&samples).len(), faults, "{name}");
        }
        assert_eq!(growth(&samples(|_| (50, 100))[..4]).len(), 1, "too few samples");
    }

    #[test]
    fn habits_have_names_of_their_own() {
        let names: std::collections::HashSet<_> = HABITS.iter().map(|habit| habit.name).collect();
        assert_eq!(names.len(), HABITS.len());
        assert!(HABITS.iter().any(|habit| !habit.polite));
    }
}
