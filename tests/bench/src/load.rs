//! The load: closed loops (every worker sends its next request when it has the last answer), or
//! requests at given times (`rate`), over a window of time.
//!
//! Everything runs on one thread. All workers connect first; then comes the warm-up, then the
//! window, and only what happens within the window counts.
//!
//! Every worker has accounts of its own among the thousand ([`KEYS`]), which it serves in turn, and
//! every connection an address of its own. No prompt comes twice within some ten thousand.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use h2::client::SendRequest;
use memchr::memmem;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::answer::Kind;
use crate::client::{Http1, Target, http2_exchange};
use crate::figures::Percentiles;
use crate::prompt::{KEYS, Random, Requests};

/// Time that all workers together have to connect.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(20);
/// Wait after a failed exchange, so that a proxy that is down is not flooded.
const FAILURE_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of an answer's end that are looked at.
const TAIL_BYTES: usize = 16;

/// How requests use connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
pub enum Reuse {
    /// HTTP/1.1, one request after another on a connection.
    #[value(name = "h1")]
    Http1,
    /// HTTP/2, several requests at once on a connection.
    #[value(name = "h2")]
    Http2,
    /// HTTP/1.1, a new connection for each request.
    New,
}

/// What load is to be made.
#[derive(Clone)]
pub struct Plan {
    /// Where.
    pub target: Target,
    /// How requests use connections.
    pub reuse: Reuse,
    /// Connections open at once.
    pub connections: usize,
    /// Requests at once on each of them (HTTP/2).
    pub streams: usize,
    /// What is asked for.
    pub kind: Kind,
    /// Which prompts: another seed gives others.
    pub seed: u64,
    /// Whether the proxy changes answers: one that has its end is then good at any length.
    pub changed: bool,
    /// Requests a second; `None`: as fast as answers come.
    pub rate: Option<f64>,
    /// Time before the window.
    pub warm_up: Duration,
    /// The window.
    pub window: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Length of the window.
    pub seconds: f64,
    /// Requests answered in full within it.
    pub requests: u64,
    /// Requests that failed, or whose answer was not the expected one.
    pub errors: u64,
    /// One of the errors.
    pub error: Option<String>,
    /// Answers that were longer or shorter than the model API's.
    pub changed: u64,
    /// Events received within the window (paced streams).
    pub events: u64,
    /// Microseconds from the request, or from connecting for it, to the first byte of the body.
    pub first_us: Option<Percentiles>,
    /// Microseconds between two events of a stream (paced streams).
    pub gap_us: Option<Percentiles>,
}

/// A moment of the run, told as it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The window begins.
    Begin,
    /// The window ends.
    End,
}

/// Makes the load.
///
/// # Errors
/// When the workers cannot connect.
pub async fn run(plan: Plan, on_moment: impl FnMut(Moment)) -> io::Result<Report> {
    LocalSet::new().run_until(run_local(Rc::new(plan), on_moment)).await
}

async fn run_local(plan: Rc<Plan>, mut on_moment: impl FnMut(Moment)) -> io::Result<Report> {
    let shared = Rc::new(Shared {
        requests: Requests::varied(&plan.target.authority(), plan.kind, plan.seed),
        answer: Expected {
            bytes: plan.kind.render().body_bytes,
            end: plan.kind.end(),
            changed: plan.changed,
        },
        due: plan.rate.map(|_| Arc::new(Semaphore::new(0))),
        plan: plan.clone(),
    });
    let mut lines = Vec::new();
    let connecting = async {
        for number in 0..plan.connections {
            let target = plan.target.from(source(number));
            match plan.reuse {
                Reuse::Http1 => {
                    let line = Line::Http1(Some(target.http1().await?));
                    lines.push((target, line));
                }
                Reuse::New => lines.push((target, Line::New)),
                Reuse::Http2 => {
                    let requests = target.http2().await?;
                    let line = || (target.clone(), Line::Http2(requests.clone()));
                    lines.extend((0..plan.streams).map(|_| line()));
                }
            }
        }
        io::Result::Ok(())
    };
    tokio::time::timeout(CONNECT_TIME_MAX, connecting)
        .await
        .unwrap_or(Err(io::ErrorKind::TimedOut.into()))?;
    let begin = Instant::now() + plan.warm_up;
    let window = Window { begin, end: begin + plan.window };
    let (stop, stopped) = watch::channel(false);
    if let (Some(rate), Some(due)) = (plan.rate, &shared.due) {
        // A thread of its own: the runtime's timers tick in milliseconds.
        let (due, stopped) = (due.clone(), stopped.clone());
        std::thread::spawn(move || announce(rate, &due, &stopped));
    }
    let workers = lines.len();
    let mut running = JoinSet::new();
    for (number, (target, line)) in lines.into_iter().enumerate() {
        // Paced streams begin one after another, as they would on any day.
        let share = number as f64 / workers as f64;
        let delay = plan.kind.duration().mul_f64(share);
        let worker = Worker { shared: shared.clone(), target, line, number, workers };
        running.spawn_local(worker.run(window, delay));
    }
    sleep_until(window.begin).await;
    on_moment(Moment::Begin);
    sleep_until(window.end).await;
    on_moment(Moment::End);
    let _ = stop.send(true);
    let mut all = Meter::new(window, false);
    while let Some(meter) = running.join_next().await {
        all.add(meter.map_err(io::Error::other)?);
    }
    Ok(all.report(plan.window))
}

struct Shared {
    plan: Rc<Plan>,
    requests: Requests,
    answer: Expected,
    /// With a rate: requests that are due.
    due: Option<Arc<Semaphore>>,
}

/// What a good answer is.
#[derive(Clone, Copy, Debug)]
struct Expected {
    bytes: u64,
    end: &'static [u8],
    /// The length may be another.
    changed: bool,
}

/// Address of a connection.
fn source(connection: usize) -> IpAddr {
    let part = |number: usize| (number % 250 + 1) as u8;
    Ipv4Addr::new(127, 1, part(connection / 250), part(connection)).into()
}

/// Number of a worker's request: those of one worker have its own keys, and all differ.
fn request_number(worker: usize, workers: usize, step: usize) -> usize {
    let keys = KEYS.saturating_sub(worker).div_ceil(workers).max(1);
    step / keys * KEYS + worker % KEYS + step % keys * workers
}

#[derive(Clone, Copy, Debug)]
struct Window {
    begin: Instant,
    end: Instant,
}

/// What a worker sends its requests on.
enum Line {
    Http1(Option<Http1>),
    Http2(SendRequest<Bytes>),
    New,
}

struct Worker {
    shared: Rc<Shared>,
    target: Target,
    line: Line,
    number: usize,
    workers: usize,
}

impl Worker {
    async fn run(mut self, window: Window, delay: Duration) -> Meter {
        let paced = matches!(self.shared.plan.kind, Kind::Paced { .. });
        let mut meter = Meter::new(window, paced);
        sleep(delay).await;
        let _ = timeout_at(window.end, async {
            for step in 0.. {
                if let Some(due) = self.shared.due.clone()
                    && let Ok(permit) = due.acquire().await
                {
                    permit.forget();
                }
                let number = request_number(self.number, self.workers, step);
                meter.start();
                let outcome = self.exchange(number, &mut meter).await;
                let failed = meter.finish(outcome, self.shared.answer);
                if failed {
                    sleep(FAILURE_PAUSE).await;
                }
            }
        })
        .await;
        meter
    }

    async fn exchange(&mut self, number: usize, meter: &mut Meter) -> io::Result<u16> {
        let shared = self.shared.clone();
        let target = &self.target;
        let mut on_piece = |piece: &[u8]| meter.piece(piece);
        let status = match &mut self.line {
            Line::Http2(requests) => {
                let outcome = http2_exchange(requests, &shared.requests, number, &mut on_piece);
                match outcome.await {
                    Ok(status) => return Ok(status),
                    Err(error) => {
                        // The stream or the connection is gone; each worker looks after itself.
                        if let Ok(fresh) = target.http2().await {
                            *requests = fresh;
                        }
                        return Err(error);
                    }
                }
            }
            Line::New => {
                let mut http1 = target.http1().await?;
                let head = http1.exchange(&shared.requests.http1(number), &mut on_piece).await?;
                // The goodbye of a client that has what it wanted.
                let _ = http1.close().await;
                head.status()
            }
            Line::Http1(kept) => {
                let mut http1 = match kept.take() {
                    Some(http1) => http1,
                    None => target.http1().await?,
                };
                let head = http1.exchange(&shared.requests.http1(number), &mut on_piece).await?;
                if !head.close {
                    *kept = Some(http1);
                }
                head.status()
            }
        };
        status.ok_or_else(|| io::Error::other("the response has no status"))
    }
}

/// Adds permits at the rate's times, which are as far apart as independent arrivals are.
fn announce(rate: f64, due: &Semaphore, stopped: &watch::Receiver<bool>) {
    let mut random = Random::new(1);
    let mut next = std::time::Instant::now();
    while !*stopped.borrow() {
        next += Duration::from_secs_f64(-random.fraction().ln() / rate);
        std::thread::sleep(next.saturating_duration_since(std::time::Instant::now()));
        due.add_permits(1);
    }
}

/// What a worker measures.
#[derive(Debug)]
struct Meter {
    window: Window,
    counts_events: bool,
    requests: u64,
    errors: u64,
    error: Option<String>,
    changed: u64,
    events: u64,
    first_us: Vec<u32>,
    gap_us: Vec<u32>,
    // The exchange that runs.
    started: Instant,
    first: Option<Instant>,
    bytes: u64,
    event: Option<Instant>,
    after_newline: bool,
    /// The last bytes.
    tail: Vec<u8>,
}

impl Meter {
    fn new(window: Window, counts_events: bool) -> Self {
        Self {
            window,
            counts_events,
            requests: 0,
            errors: 0,
            error: None,
            changed: 0,
            events: 0,
            first_us: Vec::new(),
            gap_us: Vec::new(),
            started: window.begin,
            first: None,
            bytes: 0,
            event: None,
            after_newline: false,
            tail: Vec::new(),
        }
    }

    fn start(&mut self) {
        self.started = Instant::now();
        (self.first, self.bytes, self.event, self.after_newline) = (None, 0, None, false);
        self.tail.clear();
    }

    fn piece(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.bytes += bytes.len() as u64;
        self.keep_tail(bytes);
        if self.first.is_none() || self.counts_events {
            let now = Instant::now();
            self.first.get_or_insert(now);
            if self.counts_events {
                self.count_events(bytes, now);
            }
        }
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        let rest = TAIL_BYTES - kept.len();
        self.tail.drain(..self.tail.len().saturating_sub(rest));
        self.tail.extend_from_slice(kept);
    }

    /// Events end with an empty line, which two pieces may share.
    fn count_events(&mut self, bytes: &[u8], now: Instant) {
        let across = u64::from(self.after_newline && bytes[0] == b'\n');
        let events = across + memmem::find_iter(bytes, b"\n\n").count() as u64;
        self.after_newline = bytes.ends_with(b"\n") && !bytes.ends_with(b"\n\n");
        if events == 0 {
            return;
        }
        let last = self.event.replace(now);
        if now < self.window.begin {
            return;
        }
        self.events += events;
        if let Some(last) = last {
            self.gap_us.push(micros(now - last));
            // Events that came together came without a gap.
            self.gap_us.extend((1..events).map(|_| 0));
        }
    }

    /// Ends the exchange; returns whether it failed.
    fn finish(&mut self, outcome: io::Result<u16>, expected: Expected) -> bool {
        let as_sent = self.bytes == expected.bytes;
        let error = match outcome {
            Ok(200) if as_sent => None,
            Ok(200) if expected.changed && self.tail.ends_with(expected.end) => None,
            Ok(200) => Some(format!("{} bytes instead of {}", self.bytes, expected.bytes)),
            Ok(status) => Some(format!("status {status}")),
            Err(error) => Some(error.to_string()),
        };
        let failed = error.is_some();
        if Instant::now() >= self.window.begin {
            if failed {
                self.errors += 1;
                self.error = error;
            } else {
                self.requests += 1;
                self.changed += u64::from(!as_sent);
                if let Some(first) = self.first {
                    self.first_us.push(micros(first - self.started));
                }
            }
        }
        failed
    }

    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.error = self.error.take().or(other.error);
        self.changed += other.changed;
        self.events += other.events;
        self.first_us.extend(other.first_us);
        self.gap_us.extend(other.gap_us);
    }

    fn report(self, window: Duration) -> Report {
        Report {
            seconds: window.as_secs_f64(),
            requests: self.requests,
            errors: self.errors,
            error: self.error,
            changed: self.changed,
            events: self.events,
            first_us: Percentiles::of(self.first_us),
            gap_us: Percentiles::of(self.gap_us),
        }
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(bytes: usize) -> Expected {
        Expected { bytes: bytes as u64, end: b"data: [DONE]\n\n", changed: false }
    }

    fn meter() -> Meter {
        let begin = Instant::now();
        Meter::new(Window { begin, end: begin + Duration::from_secs(60) }, true)
    }

    #[test]
    fn events_are_counted_in_whatever_pieces_they_come() {
        let stream = b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n";
        for cut in 0..stream.len() {
            let mut meter = meter();
            meter.start();
            meter.piece(&stream[..cut]);
            meter.piece(&stream[cut..]);
            assert!(!meter.finish(Ok(200), sent(stream.len())));
            assert_eq!((meter.events, meter.requests), (3, 1), "cut at {cut}");
        }
        let mut meter = meter();
        meter.start();
        for byte in stream {
            meter.piece(&[*byte]);
        }
        assert_eq!(meter.events, 3);
        assert_eq!(meter.gap_us.len(), 2);
    }

    #[test]
    fn anything_but_the_expected_answer_is_an_error() {
        for (outcome, bytes) in
            [(Ok(429), 3), (Ok(200), 2), (Err(io::ErrorKind::UnexpectedEof.into()), 3)]
        {
            let mut meter = meter();
            meter.start();
            meter.piece(b"abc");
            assert!(meter.finish(outcome, sent(bytes)));
            assert_eq!((meter.requests, meter.errors), (0, 1));
            assert!(meter.error.is_some());
        }
    }

    #[test]
    fn a_changed_answer_is_good_with_its_end() {
        let changed = Expected { changed: true, ..sent(40) };
        let stream = b"data: \xe2\x80\x8b1\n\ndata: [DONE]\n\n";
        for size in 1..stream.len() {
            let mut meter = meter();
            meter.start();
            stream.chunks(size).for_each(|piece| meter.piece(piece));
            assert!(!meter.finish(Ok(200), changed), "pieces of {size}");
            assert_eq!((meter.requests, meter.changed), (1, 1));
            meter.start();
            meter.piece(&stream[..stream.len() - 1]);
            assert!(meter.finish(Ok(200), changed), "cut off");
        }
    }

    #[test]
    fn workers_have_keys_of_their_own_and_requests_differ() {
        for workers in [1, 16, 32, 400, 1000, 1500] {
            let mut numbers = std::collections::HashSet::new();
            let mut owners = std::collections::HashMap::new();
            for worker in 0..workers {
                for step in 0..(3 * KEYS).div_ceil(workers) {
                    let number = request_number(worker, workers, step);
                    assert!(numbers.insert(number) || workers > KEYS);
                    let owner = *owners.entry(number % KEYS).or_insert(worker);
                    assert!(owner == worker || workers > KEYS);
                }
            }
            assert_eq!(owners.len(), KEYS, "{workers}");
        }
    }

    #[test]
    fn what_ends_before_the_window_does_not_count() {
        let begin = Instant::now() + Duration::from_secs(60);
        let mut meter = Meter::new(Window { begin, end: begin }, true);
        meter.start();
        meter.piece(b"a\n\nb\n\n");
        meter.finish(Ok(200), sent(6));
        meter.finish(Ok(500), sent(6));
        let report = meter.report(Duration::from_secs(1));
        assert_eq!((report.requests, report.errors, report.events), (0, 0, 0));
    }
}
