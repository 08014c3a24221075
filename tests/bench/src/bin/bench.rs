//! What the gateway costs beside bare Pingora.
//!
//! **What runs.** A fake model API, bare Pingora and the gateway (its release binary beside this
//! program, or `STILLGATE_BIN`), each proxy with one worker thread, and a load generator that is
//! started for each run. Proxies have the first processor to themselves, the load generator the
//! second, the model API the third, or the second as well where there are only two. All of it talks
//! over loopback; clients speak TLS 1.3 (X25519, AES-256-GCM, ECDSA P-256), the model API HTTP/1.1
//! with keep-alive. Requests are prompts of 2 KB, all different, of a thousand accounts that come from
//! as many addresses as there are connections; a stream has 100 events of about 200 bytes, usage and
//! `[DONE]`, each a chunk of its own, and says plain prose, ten events of it reasoning.
//!
//! **What the gateway does.** It judges every exchange with all detectors and reads every answer:
//! - `stillgate`: judged as by default, with no actions, as under the default policy before anybody
//!   is suspected (a load as hard as this one is soon found out, and then refused: no comparison),
//! - `stored`: as `stillgate`, with the embedded store, which is the default: rows of accounts written
//!   behind and words that last; all others have theirs in memory,
//! - `shadow`: under one that acts on everybody in every way, all of it in shadow: worked out and
//!   counted for each request, and nothing is done,
//! - `marked`: every answer is marked and has its reasoning withheld, so that every event is rewritten,
//! - `paced`: every answer is sent at 40 tokens a second; the model API gives 50.
//!
//! So an account is treated alike whatever its tier.
//!
//! **How it is compared.** Proxies take turns within each round (bare, gateway, bare, gateway, …),
//! so that whatever else the machine does falls on both; every run has a warm-up. Reported are the
//! medians of the rounds with the smallest and largest, and the ratio to bare Pingora, formed round
//! by round. The ratio that the budgets are held against is *capacity*: requests (or events) for
//! each second of processor time that the proxy used, from the kernel's own accounting. On a quiet
//! machine with the proxy's processor at 100 % it equals the ratio of requests a second; unlike
//! that, it stays true where other programs take part of the processor, or where the load generator
//! is what limits. CPU time of a proxy is that of all its threads, user and system.
//!
//! **Is the generator in the way?** The column `proxy` says how much of its processor the proxy
//! used: below about 95 % on a saturating scenario somebody else limits. The column `load` is load
//! generator and model API together on theirs, and the `direct` rows are load on the model API with
//! no proxy (and no TLS) between: the most that the stand can do. The model API shares a processor
//! with the load generator where there are two; that adds to the first-event times of all rows
//! alike, and cannot change CPU time per request, which is measured on the proxy alone. The
//! gateway's background threads, which read what prompts mean, have to share the proxy's processor
//! with its worker, and their time counts as its own: where there are more processors, they do not
//! hold up the worker. `others` is what strangers used of the proxy's processor: above a few percent,
//! trust capacity and not the times.
//!
//! **Judgements.** The second table is from the gateway's own metrics: `inline` is the time from a
//! request's arrival to its judgement, waiting for the engine and for the processor included; `late`
//! are requests that did not wait for theirs, `shed` is what the background had no time for, in parts
//! (the prompt's meaning, the answer) of all parts. `actions` are those taken or counted in shadow;
//! `changed` is the share of answers whose length is not the model API's.
//!
//! **Half load.** Requests come at random times (exponential gaps), at half of the rate that bare
//! Pingora (`half-bare`) or the proxy itself (`half-own`) reached on HTTP/1.1 fast streams. The
//! first-event time runs from sending the request to the first byte of the body.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use serde::Serialize;
use serde_json::json;
use stand::answer::Kind;
use stand::figures::Spread;
use stand::load::{Report, Reuse};
use stand::proxies::{Places, Running, Settings, Stand, beside};
use stand::samples::Samples;
use stand::system::{Process, busy_seconds, cpu_seconds, processor_model, processors, siblings};
use stand::table::aligned;

/// Events of a streamed answer.
const EVENTS: u32 = 100;
/// Time between two events of a paced stream.
const PACE: Duration = Duration::from_millis(20);
/// What others may use of the proxy's processor before a missed budget of times tells nothing.
const OTHERS_SHARE_MAX: f64 = 0.03;
/// Longest time that the gateway's background works after a run.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(20);
/// Longest time that a run may take beyond its warm-up and window.
const RUN_SLACK: Duration = Duration::from_secs(40);

/// A policy whose actions are the same for every tier.
macro_rules! for_all {
    ($head:literal, $actions:literal) => {
        concat!(
            $head,
            "[action.none]\n",
            $actions,
            "[action.low]\n",
            $actions,
            "[action.medium]\n",
            $actions,
            "[action.high]\n",
            $actions,
            "[action.critical]\n",
            $actions
        )
    };
}

const JUDGED: &str = for_all!("", "");
const SHADOW: &str = for_all!(
    "[enforcement]\nshadow = true\n\
     [limit.everybody]\nper = \"account\"\nrequests_per_minute = 20.0\n\
     input_tokens_per_minute = 40000.0\noutput_tokens_per_minute = 8000.0\nconcurrent = 4\n",
    "review = true\nthrottle = [\"everybody\"]\npace_tokens_per_second = 40.0\n\
     watermark = true\ncanary = true\nwithhold_reasoning = true\n"
);
const MARKED: &str = for_all!("", "watermark = true\ncanary = true\nwithhold_reasoning = true\n");
const PACED_ALL: &str = for_all!("", "pace_tokens_per_second = 40.0\n");

/// The gateways: one worker thread each, and for the rest the defaults.
const GATEWAYS: [(Through, Settings); 5] = [
    (Stillgate, gateway("stillgate", JUDGED, IN_MEMORY)),
    (Stored, gateway("stored", JUDGED, "data_dir = \"stored-data\"\n")),
    (Shadow, gateway("shadow", SHADOW, IN_MEMORY)),
    (Marked, gateway("marked", MARKED, IN_MEMORY)),
    (Paced, gateway("paced", PACED_ALL, IN_MEMORY)),
];

const IN_MEMORY: &str = "store = \"memory\"\n";

const fn gateway(name: &'static str, policy: &'static str, store_lines: &'static str) -> Settings {
    Settings { name, threads: 1, upstream_lines: "", limits_lines: "", store_lines, policy }
}

#[derive(Parser)]
#[command(about = "Measures what the gateway costs beside bare Pingora")]
struct Options {
    /// A fifth of the time (three rounds take eight minutes): shorter windows, fewer scenarios.
    #[arg(long)]
    quick: bool,
    /// Rounds of each scenario; at least 3 for figures that are worth telling.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..100))]
    rounds: u32,
    /// Only these scenarios, by name.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    only: Vec<String>,
    /// Write all figures there as JSON, each round's too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is measured.
struct Scenario {
    name: &'static str,
    title: &'static str,
    reuse: Reuse,
    connections: usize,
    streams: usize,
    kind: Kind,
    rate: Rate,
    proxies: &'static [Through],
    budgets: &'static [Budget],
    in_quick: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rate {
    /// As fast as answers come.
    Closed,
    /// Half of what bare Pingora reached on `h1-fast`.
    HalfOfBare,
    /// Half of what the same proxy reached on `h1-fast`.
    HalfOfOwn,
}

/// What the gateway is held against.
#[derive(Clone, Copy, Debug)]
enum Budget {
    /// Capacity, times bare Pingora's.
    CapacityMin(f64),
    /// CPU time for each event, times bare Pingora's.
    CpuMax(f64),
    /// Milliseconds added to the 99th percentile of the first-event time, beside `direct`.
    FirstAddedMax(f64),
    /// Mean microseconds of an inline judgement.
    InlineMax(f64),
    /// Microseconds of CPU time added to each event by shaping the answer, in each way.
    ShapedAddedMax(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Through {
    Direct,
    Bare,
    Stillgate,
    Stored,
    Shadow,
    Marked,
    Paced,
}

use Through::{Bare, Direct, Marked, Paced, Shadow, Stillgate, Stored};

impl Through {
    /// Whether it is a gateway of ours.
    fn judges(self) -> bool {
        !matches!(self, Direct | Bare)
    }
}

const FAST: Kind = Kind::Fast { events: EVENTS };
const SLOW: Kind = Kind::Paced { events: EVENTS, pace: PACE };

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "h1-fast",
        title: "fast stream, h1 keep-alive",
        reuse: Reuse::Http1,
        connections: 32,
        streams: 1,
        kind: FAST,
        rate: Rate::Closed,
        proxies: &[Direct, Bare, Stillgate, Stored, Shadow, Marked],
        budgets: &[Budget::CapacityMin(0.9), Budget::InlineMax(50.0), Budget::ShapedAddedMax(10.0)],
        in_quick: true,
    },
    Scenario {
        name: "h2-fast",
        title: "fast stream, h2",
        reuse: Reuse::Http2,
        connections: 4,
        streams: 8,
        kind: FAST,
        rate: Rate::Closed,
        proxies: &[Bare, Stillgate, Shadow, Marked],
        budgets: &[
            Budget::CapacityMin(0.85),
            Budget::InlineMax(50.0),
            Budget::ShapedAddedMax(10.0),
        ],
        in_quick: true,
    },
    Scenario {
        name: "new-fast",
        title: "fast stream, new connections",
        reuse: Reuse::New,
        connections: 16,
        streams: 1,
        kind: FAST,
        rate: Rate::Closed,
        proxies: &[Bare, Stillgate],
        budgets: &[Budget::CapacityMin(0.9)],
        in_quick: true,
    },
    Scenario {
        name: "h1-small",
        title: "small JSON answer, h1 keep-alive",
        reuse: Reuse::Http1,
        connections: 32,
        streams: 1,
        kind: Kind::Whole,
        rate: Rate::Closed,
        proxies: &[Direct, Bare, Stillgate, Stored, Shadow],
        budgets: &[Budget::CapacityMin(0.9)],
        in_quick: true,
    },
    Scenario {
        name: "h2-small",
        title: "small JSON answer, h2",
        reuse: Reuse::Http2,
        connections: 4,
        streams: 8,
        kind: Kind::Whole,
        rate: Rate::Closed,
        proxies: &[Bare, Stillgate],
        budgets: &[Budget::CapacityMin(0.85)],
        in_quick: true,
    },
    Scenario {
        name: "h1-paced",
        title: "400 paced streams, h1",
        reuse: Reuse::Http1,
        connections: 400,
        streams: 1,
        kind: SLOW,
        rate: Rate::Closed,
        proxies: &[Direct, Bare, Stillgate, Marked, Paced],
        budgets: &[Budget::CpuMax(1.1), Budget::ShapedAddedMax(10.0)],
        in_quick: true,
    },
    Scenario {
        name: "h2-paced",
        title: "400 paced streams, h2",
        reuse: Reuse::Http2,
        connections: 20,
        streams: 20,
        kind: SLOW,
        rate: Rate::Closed,
        proxies: &[Bare, Stillgate, Marked, Paced],
        budgets: &[Budget::CpuMax(1.1), Budget::ShapedAddedMax(10.0)],
        in_quick: false,
    },
    Scenario {
        name: "half-bare",
        title: "fast stream, half of bare's rate",
        reuse: Reuse::Http1,
        connections: 64,
        streams: 1,
        kind: FAST,
        rate: Rate::HalfOfBare,
        proxies: &[Direct, Bare, Stillgate, Shadow, Marked],
        budgets: &[Budget::FirstAddedMax(1.0), Budget::InlineMax(50.0)],
        in_quick: true,
    },
    Scenario {
        name: "half-own",
        title: "fast stream, half of own rate",
        reuse: Reuse::Http1,
        connections: 64,
        streams: 1,
        kind: FAST,
        rate: Rate::HalfOfOwn,
        proxies: &[Direct, Stillgate],
        budgets: &[Budget::FirstAddedMax(1.0)],
        in_quick: false,
    },
];

/// One run.
#[derive(Clone, Debug, Serialize)]
struct Round {
    /// Requests, or events of paced streams, a second.
    per_second: f64,
    /// CPU time of the proxy for each of them.
    cpu_us: Option<f64>,
    first_p50_ms: Option<f64>,
    first_p99_ms: Option<f64>,
    gap_p50_ms: Option<f64>,
    gap_p95_ms: Option<f64>,
    judgement: Option<Judgement>,
    /// Share of the answers whose length is not the model API's.
    changed_share: f64,
    /// Shares of a processor, 1 for all of it.
    proxy_share: Option<f64>,
    load_share: f64,
    others_share: Option<f64>,
    errors: u64,
    error: Option<String>,
}

/// What a gateway says of its judgements in one run.
#[derive(Clone, Copy, Debug, Serialize)]
struct Judgement {
    /// Requests judged.
    judged: f64,
    /// Mean time of an inline judgement.
    inline_us: f64,
    /// Share of them within 50 µs.
    within_50_us: f64,
    late: f64,
    /// Share of the work for the background that was shed.
    shed_share: f64,
    /// Work that waits for the background as the window ends.
    queued: f64,
    /// For each request: actions taken, or counted in shadow.
    actions: f64,
    /// Share of the judgements that gave a tier above none.
    suspected_share: f64,
}

impl Judgement {
    fn between(before: &Samples, after: &Samples) -> Self {
        let grown = |name: &str, label: &str| after.sum(name, label) - before.sum(name, label);
        let share = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
        let judged = grown("stillgate_judgement_duration_seconds_count", "");
        let within = grown("stillgate_judgement_duration_seconds_bucket", "le=\"0.00005\"");
        let seconds = grown("stillgate_judgement_duration_seconds_sum", "");
        let given = grown("stillgate_judgements_total", "");
        let unsuspected = grown("stillgate_judgements_total", "tier=\"none\"");
        Self {
            judged,
            inline_us: share(seconds * 1e6, judged),
            within_50_us: share(within, judged),
            late: grown("stillgate_judgements_late_total", ""),
            // Each request gives two pieces of work: what was asked, and how it was answered.
            shed_share: share(grown("stillgate_judgements_shed_total", ""), 2.0 * judged),
            queued: after.sum("stillgate_judgements_queued", ""),
            actions: share(grown("stillgate_actions_total", ""), judged),
            suspected_share: share(given - unsuspected, given),
        }
    }
}

type Rounds = BTreeMap<Through, Vec<Round>>;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    let chosen = choose(options)?;
    let bench = Bench::new(options.quick)?;
    println!("{}", bench.machine());
    let mut measured: Vec<(&Scenario, Rounds)> = Vec::new();
    for scenario in chosen {
        let mut rounds = Rounds::new();
        for number in 0..options.rounds {
            for through in scenario.proxies {
                // Once is enough to see the stand's limit.
                if *through == Direct && scenario.rate == Rate::Closed && number > 0 {
                    continue;
                }
                let rate = rate_of(scenario, *through, &measured);
                let round = bench.round(scenario, *through, rate, u64::from(number) + 1)?;
                rounds.entry(*through).or_default().push(round);
            }
        }
        eprintln!("{} done", scenario.name);
        measured.push((scenario, rounds));
    }
    println!("{}", table(&measured));
    println!("{}", judgements(&measured));
    println!("{}", budgets(&measured));
    if let Some(path) = &options.json {
        let json = json!({
            "machine": bench.machine(),
            "quick": options.quick,
            "rows": measured.iter().flat_map(|(scenario, rounds)| {
                rounds.iter().map(|(through, of_proxy)| row_json(scenario, *through, of_proxy, rounds))
            }).collect::<Vec<_>>(),
        });
        fs::write(path, format!("{json:#}\n"))?;
    }
    Ok(())
}

fn choose(options: &Options) -> io::Result<Vec<&'static Scenario>> {
    let known = |name: &String| SCENARIOS.iter().any(|scenario| scenario.name == name);
    if let Some(unknown) = options.only.iter().find(|name| !known(name)) {
        let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        let names = names.join(", ");
        return Err(io::Error::other(format!("no scenario {unknown}; there are {names}")));
    }
    let wanted = |scenario: &Scenario| {
        if options.only.is_empty() {
            scenario.in_quick || !options.quick
        } else {
            options.only.iter().any(|name| name == scenario.name)
        }
    };
    let needs_rate = SCENARIOS.iter().any(|s| wanted(s) && s.rate != Rate::Closed);
    let chosen = SCENARIOS.iter().filter(|s| wanted(s) || (needs_rate && s.name == "h1-fast"));
    Ok(chosen.collect())
}

/// Requests a second that a scenario with a rate is run at.
fn rate_of(scenario: &Scenario, through: Through, measured: &[(&Scenario, Rounds)]) -> Option<f64> {
    let model = match (scenario.rate, through) {
        (Rate::Closed, _) => return None,
        (Rate::HalfOfBare, _) => Bare,
        // Without a proxy there is no own rate: the gateway's, so that the two can be compared.
        (Rate::HalfOfOwn, Direct) => Stillgate,
        (Rate::HalfOfOwn, through) => through,
    };
    let (_, rounds) = measured.iter().find(|(scenario, _)| scenario.name == "h1-fast")?;
    Some(Spread::of(rounds.get(&model)?.iter().map(|round| round.per_second))?.median / 2.0)
}

/// The processes that stay up for all runs.
struct Bench {
    // Dropped in this order: proxies before what is behind them.
    proxies: BTreeMap<Through, Running>,
    stand: Stand,
    places: Places,
    load: Option<usize>,
    quick: bool,
}

impl Bench {
    fn new(quick: bool) -> io::Result<Self> {
        let processors = processors()?;
        let place = |number: usize| processors.get(number.min(processors.len() - 1)).copied();
        let places = Places { proxy: place(0), upstream: place(2) };
        if processors.len() < 2 {
            return Err(io::Error::other("two processors are needed at least"));
        }
        let stand = Stand::new(places)?;
        let mut proxies = BTreeMap::from([(Bare, stand.bare(places)?)]);
        for (through, settings) in &GATEWAYS {
            proxies.insert(*through, stand.gateway(places, settings)?);
        }
        Ok(Self { proxies, stand, places, load: place(1), quick })
    }

    fn machine(&self) -> String {
        let name = |place: Option<usize>| place.map_or_else(String::new, |cpu| cpu.to_string());
        let (proxy, load) = (name(self.places.proxy), name(self.load));
        let mut text = format!(
            "{}; proxy on processor {proxy}, load on {load}, model API on {}",
            processor_model(),
            name(self.places.upstream)
        );
        if let Some(siblings) = self.places.proxy.and_then(siblings)
            && siblings != proxy
        {
            text +=
                &format!("\nprocessors {siblings} share a core: what runs there slows the proxy");
        }
        text
    }

    fn round(
        &self,
        scenario: &Scenario,
        through: Through,
        rate: Option<f64>,
        seed: u64,
    ) -> io::Result<Round> {
        let proxy = self.proxies.get(&through);
        let paced = matches!(scenario.kind, Kind::Paced { .. });
        let (warm_up, window) = match (self.quick, paced) {
            (true, false) => (0.2, 0.8),
            (true, true) => (2.1, 1.2),
            (false, false) => (0.5, 3.5),
            (false, true) => (2.2, 4.0),
        };
        let mut command = Command::new(beside("load")?);
        let address = proxy.unwrap_or(self.stand.upstream()).address();
        command
            .args(["--address", &address.to_string()])
            .args(["--connections", &scenario.connections.to_string()])
            .args(["--streams", &scenario.streams.to_string()])
            .args(["--seed", &seed.to_string()])
            .args(["--warm-up", &warm_up.to_string(), "--window", &window.to_string()])
            .args([
                "--reuse",
                match scenario.reuse {
                    Reuse::Http1 => "h1",
                    Reuse::Http2 => "h2",
                    Reuse::New => "new",
                },
            ])
            .stdout(Stdio::piped());
        if proxy.is_some() {
            command.arg("--authority").arg(self.stand.authority());
        }
        if let Kind::Fast { events } | Kind::Paced { events, .. } = scenario.kind {
            command.args(["--events", &events.to_string()]);
        }
        if let Kind::Paced { pace, .. } = scenario.kind {
            command.args(["--pace-ms", &pace.as_millis().to_string()]);
        }
        if through == Marked {
            command.arg("--changed");
        }
        if let Some(rate) = rate {
            command.args(["--rate", &rate.to_string()]);
        }
        let longest = Duration::from_secs_f64(warm_up + window) + RUN_SLACK;
        let mut load = Process::start(&mut command, self.load)?;
        let (before, after, report) = self.watch(&mut load, proxy, longest)?;
        let counted = if paced { report.events } else { report.requests };
        let used = after.since(&before);
        if let Some(gateway) = proxy.filter(|_| through.judges()) {
            settle(gateway)?;
        }
        let to_ms = |us: f64| us / 1000.0;
        Ok(Round {
            per_second: counted as f64 / report.seconds,
            cpu_us: used.proxy.map(|seconds| seconds * 1e6 / (counted.max(1) as f64)),
            first_p50_ms: report.first_us.map(|first| to_ms(first.p50)),
            first_p99_ms: report.first_us.map(|first| to_ms(first.p99)),
            gap_p50_ms: report.gap_us.map(|gap| to_ms(gap.p50)),
            gap_p95_ms: report.gap_us.map(|gap| to_ms(gap.p95)),
            judgement: before
                .samples
                .as_ref()
                .zip(after.samples.as_ref())
                .map(|(before, after)| Judgement::between(before, after)),
            changed_share: report.changed as f64 / report.requests.max(1) as f64,
            proxy_share: used.proxy.map(|seconds| seconds / used.wall),
            load_share: used.load / used.wall,
            others_share: used
                .proxy
                .zip(used.processor)
                .map(|(proxy, processor)| ((processor - proxy) / used.wall).max(0.0)),
            errors: report.errors,
            error: report.error,
        })
    }

    /// Reads what the load generator tells, and the kernel's accounts as its window opens and
    /// closes.
    fn watch(
        &self,
        load: &mut Process,
        proxy: Option<&Running>,
        longest: Duration,
    ) -> io::Result<(Accounts, Accounts, Report)> {
        let id = load.id();
        let accounts = || self.accounts(proxy, id);
        let judges = proxy.filter(|proxy| proxy.admin().is_some());
        let samples = || judges.map(Running::metrics).transpose();
        let output = load.output().ok_or_else(|| io::Error::other("no output of the load"))?;
        let started = Instant::now();
        let (mut before, mut after) = (None, None);
        for line in BufReader::new(output).lines() {
            match line?.as_str() {
                // Telling them costs the gateway time: outside of what is counted.
                "begin" => {
                    let samples = samples()?;
                    before = Some(Accounts { samples, ..accounts()? });
                }
                "end" => {
                    let accounts = accounts()?;
                    after = Some(Accounts { samples: samples()?, ..accounts });
                }
                report => {
                    let report = serde_json::from_str(report).map_err(io::Error::other)?;
                    let (before, after) = before
                        .zip(after)
                        .ok_or_else(|| io::Error::other("the load told no window"))?;
                    load.wait()?;
                    return Ok((before, after, report));
                }
            }
            if started.elapsed() > longest {
                return Err(io::Error::other("the load does not end"));
            }
        }
        let status = load.wait()?;
        Err(io::Error::other(format!("the load generator failed ({status})")))
    }

    fn accounts(&self, proxy: Option<&Running>, load: u32) -> io::Result<Accounts> {
        let upstream = cpu_seconds(self.stand.upstream().id())?;
        Ok(Accounts {
            at: Instant::now(),
            proxy: proxy.map(|proxy| cpu_seconds(proxy.id())).transpose()?,
            load: cpu_seconds(load)? + upstream,
            processor: self.places.proxy.map(busy_seconds).transpose()?,
            samples: None,
        })
    }
}

/// Waits until the gateway's background has nothing left, so that it does not work into the next
/// run of another.
fn settle(gateway: &Running) -> io::Result<()> {
    let end = Instant::now() + SETTLE_TIME_MAX;
    while gateway.metrics()?.sum("stillgate_judgements_queued", "") > 0.0 {
        if Instant::now() > end {
            return Err(io::Error::other("the gateway's background does not come to an end"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Processor time used until a moment, in seconds, and what a gateway has counted.
#[derive(Clone, Debug)]
struct Accounts {
    at: Instant,
    proxy: Option<f64>,
    /// Load generator and model API.
    load: f64,
    /// Of the proxy's processor, by anyone.
    processor: Option<f64>,
    samples: Option<Samples>,
}

/// Processor time used between two moments, in seconds.
struct Used {
    wall: f64,
    proxy: Option<f64>,
    load: f64,
    processor: Option<f64>,
}

impl Accounts {
    fn since(&self, before: &Self) -> Used {
        let difference =
            |after: Option<f64>, before: Option<f64>| Some((after? - before?).max(0.0));
        Used {
            wall: (self.at - before.at).as_secs_f64(),
            proxy: difference(self.proxy, before.proxy),
            load: (self.load - before.load).max(0.0),
            processor: difference(self.processor, before.processor),
        }
    }
}

/// A figure over all rounds of a proxy.
fn spread(rounds: &[Round], figure: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
    Spread::of(rounds.iter().filter_map(figure))
}

/// A ratio of the proxy's rounds to bare Pingora's, round by round.
fn ratio(
    rounds: &Rounds,
    through: Through,
    figure: impl Fn(&Round) -> Option<f64>,
) -> Option<Spread> {
    let pairs = rounds.get(&through)?.iter().zip(rounds.get(&Bare)?);
    Spread::of(pairs.filter_map(|(own, bare)| Some(figure(own)? / figure(bare)?)))
}

fn per_second(round: &Round) -> Option<f64> {
    Some(round.per_second)
}

/// Requests for each second of the proxy's processor time.
fn capacity(round: &Round) -> Option<f64> {
    round.cpu_us.map(|us| 1e6 / us)
}

fn table(measured: &[(&Scenario, Rounds)]) -> String {
    const HEADING: [&str; 16] = [
        "scenario",
        "through",
        "per s",
        "min–max",
        "× bare",
        "CPU µs",
        "min–max",
        "capacity × bare",
        "µs/event",
        "first p50 ms",
        "p99 ms",
        "gap p50 ms",
        "p95 ms",
        "proxy",
        "load",
        "others",
    ];
    let mut rows = vec![HEADING.map(str::to_owned).to_vec()];
    for (scenario, rounds) in measured {
        let mut title = scenario.title;
        for through in scenario.proxies {
            let Some(own) = rounds.get(through) else { continue };
            let number = |value: Option<Spread>, digits: usize| {
                value.map_or_else(String::new, |value| format!("{:.digits$}", value.median))
            };
            let range = |value: Option<Spread>, digits: usize| {
                value.map_or_else(String::new, |value| {
                    format!("{:.digits$}–{:.digits$}", value.min, value.max)
                })
            };
            let percent = |value: Option<Spread>| {
                value.map_or_else(String::new, |value| format!("{:.0} %", value.median * 100.0))
            };
            let compared = through.judges();
            let times = |figure: fn(&Round) -> Option<f64>| {
                let ratio = ratio(rounds, *through, figure).filter(|_| compared);
                ratio.map_or_else(String::new, |ratio| {
                    format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.min, ratio.max)
                })
            };
            let unit = if matches!(scenario.kind, Kind::Paced { .. }) { " ev" } else { "" };
            let errors: u64 = own.iter().map(|round| round.errors).sum();
            let mut row = vec![
                std::mem::take(&mut title).to_owned(),
                format!("{through:?}").to_lowercase(),
                number(spread(own, per_second), 0) + unit,
                range(spread(own, per_second), 0),
                times(per_second),
                number(spread(own, |round| round.cpu_us), 1),
                range(spread(own, |round| round.cpu_us), 1),
                times(capacity),
                number(
                    spread(own, |round| Some(round.cpu_us? / events_counted(scenario.kind)?)),
                    2,
                ),
                number(spread(own, |round| round.first_p50_ms), 2),
                number(spread(own, |round| round.first_p99_ms), 2),
                number(spread(own, |round| round.gap_p50_ms), 2),
                number(spread(own, |round| round.gap_p95_ms), 2),
                percent(spread(own, |round| round.proxy_share)),
                percent(spread(own, |round| Some(round.load_share))),
                percent(spread(own, |round| round.others_share)),
            ];
            if errors > 0 {
                let error = own.iter().find_map(|round| round.error.clone());
                row.push(format!("{errors} ERRORS: {}", error.unwrap_or_default()));
            }
            rows.push(row);
        }
    }
    aligned(&rows)
}

/// Events of what is counted in this scenario: one, or those of a whole stream.
fn events_counted(kind: Kind) -> Option<f64> {
    match kind {
        Kind::Whole => None,
        Kind::Paced { .. } => Some(1.0),
        Kind::Fast { .. } => Some(f64::from(kind.events())),
    }
}

/// What the gateways say of their judgements.
fn judgements(measured: &[(&Scenario, Rounds)]) -> String {
    const HEADING: [&str; 11] = [
        "scenario",
        "through",
        "judged",
        "inline µs",
        "min–max",
        "≤ 50 µs",
        "late",
        "shed",
        "suspected",
        "actions",
        "changed",
    ];
    let mut rows = vec![HEADING.map(str::to_owned).to_vec()];
    for (scenario, rounds) in measured {
        let mut title = scenario.title;
        for (through, own) in rounds.iter().filter(|(through, _)| through.judges()) {
            let figure = |figure: fn(&Judgement) -> f64| {
                spread(own, |round| round.judgement.as_ref().map(figure)).unwrap_or_default()
            };
            let percent = |share: f64| format!("{:.1} %", share * 100.0);
            let inline = figure(|judgement| judgement.inline_us);
            let changed = spread(own, |round| Some(round.changed_share)).unwrap_or_default();
            rows.push(vec![
                std::mem::take(&mut title).to_owned(),
                format!("{through:?}").to_lowercase(),
                format!("{:.0}", figure(|judgement| judgement.judged).median),
                format!("{:.0}", inline.median),
                format!("{:.0}–{:.0}", inline.min, inline.max),
                percent(figure(|judgement| judgement.within_50_us).median),
                format!("{:.0}", figure(|judgement| judgement.late).median),
                percent(figure(|judgement| judgement.shed_share).median),
                percent(figure(|judgement| judgement.suspected_share).median),
                format!("{:.1}", figure(|judgement| judgement.actions).median),
                percent(changed.median),
            ]);
        }
    }
    aligned(&rows)
}

fn budgets(measured: &[(&Scenario, Rounds)]) -> String {
    let mut rows = vec![["budget", "figure", "measured", "verdict"].map(str::to_owned).to_vec()];
    for (scenario, rounds) in measured {
        let others = rounds.get(&Stillgate).and_then(|own| spread(own, |round| round.others_share));
        let others = others.map_or(0.0, |others| others.median);
        for budget in scenario.budgets {
            for (figure, value, met) in held_against(*budget, scenario, rounds) {
                // A stranger that holds the processor holds up whoever waits: no proxy's doing.
                let of_times = matches!(budget, Budget::FirstAddedMax(_) | Budget::InlineMax(_));
                let verdict = if of_times && !met && others > OTHERS_SHARE_MAX {
                    format!("unclear: others used {:.0} % of the processor", others * 100.0)
                } else {
                    if met { "met" } else { "missed" }.to_owned()
                };
                rows.push(vec![scenario.title.to_owned(), figure, value, verdict]);
            }
        }
    }
    aligned(&rows)
}

/// Figures that a budget is held against, with their values and whether they keep it.
fn held_against(
    budget: Budget,
    scenario: &Scenario,
    rounds: &Rounds,
) -> Vec<(String, String, bool)> {
    let least = |name: String, value: Option<f64>, least: f64| {
        value.map(|value| (name, format!("{value:.2}"), value >= least))
    };
    let most = |name: String, value: Option<f64>, most: f64| {
        value.map(|value| (name, format!("{value:.2}"), value <= most))
    };
    let median = |spread: Option<Spread>| spread.map(|spread| spread.median);
    let of = |through, figure: fn(&Round) -> Option<f64>| {
        median(rounds.get(&through).and_then(|own| spread(own, figure)))
    };
    let one = match budget {
        Budget::CapacityMin(bound) => least(
            format!("capacity, at least {bound:.2} × bare"),
            median(ratio(rounds, Stillgate, capacity)),
            bound,
        ),
        Budget::CpuMax(bound) => most(
            format!("CPU per event, at most {bound:.2} × bare"),
            median(ratio(rounds, Stillgate, |round| round.cpu_us)),
            bound,
        ),
        Budget::FirstAddedMax(bound) => {
            let p99 = |through| of(through, |round| round.first_p99_ms);
            let added = p99(Stillgate).zip(p99(Direct)).map(|(own, direct)| own - direct);
            most(format!("first event p99, at most {bound:.2} ms over direct"), added, bound)
        }
        Budget::InlineMax(bound) => most(
            format!("inline judgement, at most {bound:.0} µs"),
            of(Stillgate, |round| Some(round.judgement?.inline_us)),
            bound,
        ),
        Budget::ShapedAddedMax(bound) => {
            let events = events_counted(scenario.kind).unwrap_or(1.0);
            let added = |through| {
                let cpu = |through| of(through, |round| round.cpu_us);
                Some((cpu(through)? - cpu(Stillgate)?) / events)
            };
            let shaped = [(Marked, "marking"), (Paced, "pacing")].into_iter();
            return shaped
                .filter_map(|(through, what)| {
                    let name = format!("{what}, at most {bound:.0} µs for each event");
                    most(name, added(through), bound)
                })
                .collect();
        }
    };
    one.into_iter().collect()
}

fn row_json(
    scenario: &Scenario,
    through: Through,
    own: &[Round],
    rounds: &Rounds,
) -> serde_json::Value {
    let unit = if matches!(scenario.kind, Kind::Paced { .. }) { "event" } else { "request" };
    json!({
        "scenario": scenario.name,
        "through": through,
        "unit": unit,
        "per_second": spread(own, per_second),
        "cpu_us": spread(own, |round| round.cpu_us),
        "first_p50_ms": spread(own, |round| round.first_p50_ms),
        "first_p99_ms": spread(own, |round| round.first_p99_ms),
        "gap_p50_ms": spread(own, |round| round.gap_p50_ms),
        "gap_p95_ms": spread(own, |round| round.gap_p95_ms),
        "inline_us": spread(own, |round| Some(round.judgement?.inline_us)),
        "per_second_to_bare": ratio(rounds, through, per_second),
        "capacity_to_bare": ratio(rounds, through, capacity),
        "rounds": own,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn round(per_second: f64, cpu_us: f64, first_p99_ms: f64) -> Round {
        Round {
            per_second,
            cpu_us: Some(cpu_us),
            first_p50_ms: None,
            first_p99_ms: Some(first_p99_ms),
            gap_p50_ms: None,
            gap_p95_ms: None,
            judgement: None,
            changed_share: 0.0,
            proxy_share: Some(1.0),
            load_share: 0.5,
            others_share: Some(0.0),
            errors: 0,
            error: None,
        }
    }

    fn rounds(bare: [f64; 3], stillgate: [f64; 3]) -> Rounds {
        let of = |cpu: [f64; 3]| cpu.map(|cpu| round(1e6 / cpu, cpu, cpu / 100.0)).to_vec();
        Rounds::from([(Direct, of([10.0; 3])), (Bare, of(bare)), (Stillgate, of(stillgate))])
    }

    #[test]
    fn scenarios_have_names_of_their_own_and_compare_with_bare() {
        let names: HashSet<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        for scenario in SCENARIOS {
            assert!(scenario.proxies.contains(&Stillgate), "{}", scenario.name);
            for budget in scenario.budgets {
                let against: &[Through] = match budget {
                    Budget::FirstAddedMax(_) => &[Direct],
                    Budget::CapacityMin(_) | Budget::CpuMax(_) => &[Bare],
                    Budget::ShapedAddedMax(_) => &[Marked],
                    Budget::InlineMax(_) => &[],
                };
                for through in against {
                    assert!(scenario.proxies.contains(through), "{}", scenario.name);
                }
            }
        }
        assert_eq!(SCENARIOS[0].name, "h1-fast", "rates are formed from it");
        let names: HashSet<_> = GATEWAYS.iter().map(|(_, settings)| settings.name).collect();
        assert_eq!(names.len(), GATEWAYS.len());
    }

    #[test]
    fn ratios_are_formed_round_by_round() {
        // The machine slows down from round to round; the ratio stays.
        let rounds = rounds([100.0, 200.0, 400.0], [50.0, 100.0, 200.0]);
        let ratio = ratio(&rounds, Stillgate, capacity).unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (2.0, 2.0, 2.0));
    }

    #[test]
    fn budgets_are_met_or_missed() {
        let scenario = |name: &str| SCENARIOS.iter().find(|s| s.name == name).unwrap();
        let verdict = |name: &str, bare: f64, stillgate: f64| {
            let scenario = scenario(name);
            let rounds = rounds([bare; 3], [stillgate; 3]);
            held_against(scenario.budgets[0], scenario, &rounds).first().unwrap().2
        };
        let cases = [
            ("h1-fast", 89.0, 98.0, true),
            ("h1-fast", 89.0, 100.0, false),
            ("h2-small", 85.0, 99.0, true),
            ("h2-small", 85.0, 101.0, false),
            ("h1-paced", 100.0, 109.0, true),
            ("h1-paced", 100.0, 111.0, false),
            // A hundredth of each is its p99 in milliseconds; direct has 0.1.
            ("half-bare", 500.0, 109.0, true),
            ("half-bare", 500.0, 111.0, false),
        ];
        for (name, bare, stillgate, met) in cases {
            assert_eq!(verdict(name, bare, stillgate), met, "{name} {bare} {stillgate}");
        }
    }

    #[test]
    fn shaping_is_held_against_the_same_gateway() {
        let mut rounds = rounds([100.0; 3], [110.0; 3]);
        rounds.insert(Marked, vec![round(1.0, 119.0, 0.0); 3]);
        rounds.insert(Paced, vec![round(1.0, 121.0, 0.0); 3]);
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == "h1-paced").unwrap();
        let held = held_against(Budget::ShapedAddedMax(10.0), scenario, &rounds);
        assert_eq!(held.iter().map(|(_, _, met)| *met).collect::<Vec<_>>(), [true, false]);
        assert_eq!(held[0].1, "9.00");
    }

    #[test]
    fn judgements_are_what_was_counted_between_two_moments() {
        let samples = |judged: u32, seconds: f64, none: u32, low: u32, shed: u32| {
            let text = format!(
                "HTTP/1.1 200 OK\r\n\r\nstillgate_judgement_duration_seconds_count {judged}\n\
                 stillgate_judgement_duration_seconds_bucket{{le=\"0.00005\"}} {none}\n\
                 stillgate_judgement_duration_seconds_bucket{{le=\"+Inf\"}} {judged}\n\
                 stillgate_judgement_duration_seconds_sum {seconds}\n\
                 stillgate_judgements_total{{tier=\"none\"}} {none}\n\
                 stillgate_judgements_total{{tier=\"low\"}} {low}\n\
                 stillgate_judgements_shed_total{{part=\"meaning\"}} {shed}\n\
                 stillgate_actions_total{{action=\"pace\",mode=\"shadow\"}} {judged}\n"
            );
            Samples::parse(text.as_bytes()).unwrap()
        };
        let (before, after) = (samples(10, 1.0, 5, 5, 0), samples(110, 1.004, 85, 25, 50));
        let judgement = Judgement::between(&before, &after);
        assert!((judgement.inline_us - 40.0).abs() < 0.01, "{judgement:?}");
        assert_eq!((judgement.judged, judgement.late, judgement.actions), (100.0, 0.0, 1.0));
        let shares = (judgement.within_50_us, judgement.suspected_share, judgement.shed_share);
        assert_eq!(shares, (0.8, 0.2, 0.25));
        let idle = Judgement::between(&after, &after);
        assert_eq!((idle.inline_us, idle.shed_share), (0.0, 0.0));
    }

    #[test]
    fn the_half_rate_follows_what_was_measured() {
        let measured = [(&SCENARIOS[0], rounds([200.0; 3], [100.0; 3]))];
        let rate = |name: &str, through| {
            let scenario = SCENARIOS.iter().find(|s| s.name == name).unwrap();
            rate_of(scenario, through, &measured)
        };
        assert_eq!(rate("half-bare", Stillgate), Some(2500.0));
        assert_eq!(rate("half-own", Stillgate), Some(5000.0));
        assert_eq!(rate("half-own", Direct), Some(5000.0));
        assert_eq!(rate("h1-fast", Bare), None);
    }
}
