//! What judging and shaping cost by themselves, on one thread and without a network: microseconds
//! for a request with a prompt of 2 KB, for an answer's beginning, and for each event of a stream.
//!
//! `cargo run --release -p stillgate --example live_speed`

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use detectors::facts::Facts;
use detectors::policy::Watermarks;
use detectors::{
    AccountId, Answer, Conversation, DnsLookup, DnsTransport, Event, Format, HeaderField,
    HttpCapture, HttpVersion, Network, Observation, Role, Sampling, Text, Turn,
};
use gateway::demo::prose;
use gateway::enforce::marks::{Marks, layers, master_key};
use gateway::enforce::{Enforcer, Leave};
use gateway::judge::Judge;
use gateway::metrics::Metrics;
use gateway::policy::PolicyStore;
use gateway::proxy::shape::{Kind, Shape};
use gateway::store::Store;
use gateway::wire::{AnswerReader, Changes, Reasoning};
use prometheus::IntGauge;

// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error>;

const ROUNDS: usize = 7;
/// Requests judged in a round: more than readings of texts are kept of.
const REQUESTS: usize = 10_000;
const ACCOUNTS: usize = 1_000;
/// Streams sent in a round, each by another account.
const STREAMS: usize = 100;
const NOW_MS: u64 = 1_800_000_000_000;
/// Every tier alike.
const EVERYTHING: &str = "\
    action.none = { pace_tokens_per_second = 40.0, watermark = true, canary = true, \
                    withhold_reasoning = true }\n\
    action.low = { pace_tokens_per_second = 40.0, watermark = true, canary = true, \
                   withhold_reasoning = true }\n\
    action.medium = { pace_tokens_per_second = 40.0, watermark = true, canary = true, \
                      withhold_reasoning = true }\n\
    action.high = { pace_tokens_per_second = 40.0, watermark = true, canary = true, \
                    withhold_reasoning = true }\n";
const SSE: &str = "text/event-stream";
/// Faster than anybody reads, so that nothing waits.
const UNHELD: f64 = 1e9;

fn main() -> Result<(), Failure> {
    println!("medians of {ROUNDS} rounds with the least and the most, microseconds");
    let observations: Vec<Observation> = (0..REQUESTS).map(observation).collect();
    let nothing = enforcer("")?;
    print("request judged, default policy", REQUESTS, &mut || admit(&nothing, &observations));
    let everything = enforcer(EVERYTHING)?;
    print("request judged, all is done", REQUESTS, &mut || admit(&everything, &observations));
    let some = &observations[..STREAMS];
    let leaves: Vec<Leave> =
        some.iter().filter_map(|one| everything.admit(&mut one.clone()).ok()).collect();
    print("beginning of a marked answer", leaves.len(), &mut || {
        for (leave, one) in leaves.iter().zip(some) {
            black_box(everything.changes(leave, &one.conversation, None));
        }
    });
    for (format, name) in [
        (Format::OpenaiChat, "chat"),
        (Format::AnthropicMessages, "messages"),
        (Format::OpenaiResponses, "responses"),
    ] {
        let streams: Vec<Vec<Bytes>> = (0..STREAMS as u64).map(|n| stream(format, n)).collect();
        events(format, name, &streams)?;
    }
    for accounts in [1_000, 20_000] {
        searches(accounts)?;
    }
    beside_reports(&observations)
}

/// How long requests take, one a millisecond, while a DNS sensor reports a thousand lookups ten times a
/// second, of hosts behind a hundred addresses, those of the requests among them.
fn beside_reports(observations: &[Observation]) -> Result<(), Failure> {
    for reports in [false, true] {
        let (enforcer, judge) = enforcer_and_judge("")?;
        let ended = AtomicBool::new(false);
        let mut times: Vec<f64> = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut report = 0;
                while reports && !ended.load(Ordering::Relaxed) {
                    let lookups: Vec<Event> = (0..1_000).map(|n| lookup(report, n)).collect();
                    judge.observe_sensed(&lookups);
                    report += 1;
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            let times = observations.iter().take(5_000).map(|one| {
                std::thread::sleep(Duration::from_millis(1));
                let mut one = one.clone();
                let begun = Instant::now();
                let _ = black_box(enforcer.admit(&mut one).is_ok());
                begun.elapsed().as_secs_f64() * 1e6
            });
            let times = times.collect();
            ended.store(true, Ordering::Relaxed);
            times
        });
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[(times.len() as f64 * share) as usize];
        let what = if reports { "while a sensor reports" } else { "while none does" };
        let most = times[times.len() - 1];
        let (half, few) = (at(0.5), at(0.99));
        println!("request, {what:<35}{half:7.2}   p99 {few:.2}, longest {most:.2}");
    }
    Ok(())
}

fn lookup(report: u64, number: u64) -> Event {
    Event::Dns(DnsLookup {
        at_ms: NOW_MS + report * 100,
        ip: IpAddr::from([198, 51, 100, (number % 100) as u8]),
        host: Some(number),
        client: Some(true),
        transport: DnsTransport::Doh,
        server: IpAddr::from([1, 1, 1, 1]),
        provider: Some("cloudflare".into()),
        name: None,
    })
}

/// The background's search for canaries, made anew after one more account was served some.
fn searches(accounts: usize) -> Result<(), Failure> {
    let marks = marks()?;
    let conversation = observation(0).conversation;
    let layers = layers(true, true, &Watermarks::default());
    let layers = layers.ok_or("the default policy marks nothing")?;
    let mut served = 0;
    let mut serve = || {
        let account = AccountId::new(format!("acct-{served:012x}"));
        served += 1;
        black_box(marks.marker(&account, None, layers, &conversation, None, NOW_MS));
    };
    // The last few places are for the rounds.
    (0..accounts - ROUNDS - 1).for_each(|_| serve());
    print(&format!("search for the canaries of {accounts}"), 1, &mut || {
        serve();
        marks.refresh_search();
    });
    Ok(())
}

fn enforcer(policy: &str) -> Result<Enforcer, Failure> {
    Ok(enforcer_and_judge(policy)?.0)
}

fn enforcer_and_judge(policy: &str) -> Result<(Enforcer, Arc<Judge>), Failure> {
    let path = std::env::temp_dir().join(format!("live_speed-{}.toml", std::process::id()));
    std::fs::write(&path, policy)?;
    let policies = PolicyStore::load(Some(path.clone()));
    std::fs::remove_file(path)?;
    let policies = Arc::new(policies?);
    let metrics = Arc::new(Metrics::new()?);
    let facts = Arc::new(Facts::builtin()?);
    let policy = policies.in_force().policy.clone();
    // No threads: what is left for the background finds the queue full and is let go.
    let judge = Arc::new(Judge::new(policy, facts, [1; 16], metrics.clone()));
    let store = Store::in_memory("live-speed").map_err(|error| error.to_string())?;
    let enforcer = Enforcer::new(policies, judge.clone(), [1; 16], marks()?, store, metrics);
    Ok((enforcer, judge))
}

fn marks() -> Result<Marks, String> {
    Marks::new(master_key(b"no secret, but long enough for one")?)
}

fn admit(enforcer: &Enforcer, observations: &[Observation]) {
    for one in observations {
        // A copy, as each request has its own; its texts are shared or small beside the reading.
        let _ = black_box(enforcer.admit(&mut one.clone()).is_ok());
    }
}

/// A case, and which of its answers' changes there are.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    marked: bool,
    withheld: bool,
    pace: Option<f64>,
}

const CASES: [Case; 5] = [
    Case { name: "reasoning withheld", marked: false, withheld: true, pace: None },
    Case { name: "marked", marked: true, withheld: false, pace: None },
    Case { name: "marked, withheld", marked: true, withheld: true, pace: None },
    Case { name: "paced", marked: false, withheld: false, pace: Some(UNHELD) },
    Case { name: "marked, withheld, paced", marked: true, withheld: true, pace: Some(UNHELD) },
];

fn events(format: Format, name: &str, streams: &[Vec<Bytes>]) -> Result<(), Failure> {
    let count = streams.iter().map(Vec::len).sum();
    print(&format!("event read, {name}"), count, &mut || {
        for stream in streams {
            let mut reader = AnswerReader::new(format, 200, Some(SSE));
            stream.iter().for_each(|event| reader.count(event));
            black_box(reader.finish(true));
        }
    });
    let marks = marks()?;
    let gauge = IntGauge::new("paced", "paced")?;
    let kind = Kind { format, status: 200, content_type: Some(SSE) };
    for case in CASES {
        let mut bytes = (0, 0);
        print(&format!("event {}, {name}", case.name), count, &mut || {
            for (number, stream) in streams.iter().enumerate() {
                let conversation = &observation(number).conversation;
                let account = AccountId::new(format!("acct-{number:012x}"));
                let layers = layers(case.marked, case.marked, &Watermarks::default());
                let mark = layers.and_then(|layers| {
                    marks.marker(&account, None, layers, conversation, None, NOW_MS)
                });
                let reasoning = if case.withheld {
                    Reasoning::Withhold { notice: None }
                } else {
                    Reasoning::Keep
                };
                let changes = Changes { mark, reasoning };
                let now = Instant::now();
                let Some(mut shape) = Shape::new(kind, Some(changes), case.pace, &gauge, now)
                else {
                    continue;
                };
                for event in stream {
                    let now = Instant::now();
                    shape.push(event, now);
                    bytes.0 += event.len();
                    bytes.1 += black_box(shape.take_due(now)).len();
                }
                shape.finish(Instant::now());
                bytes.1 += shape.take_due(Instant::now() + Duration::from_secs(1)).len();
            }
        });
        if case.marked && bytes.0 == bytes.1 {
            return Err(format!("nothing was marked: {name}").into());
        }
    }
    Ok(())
}

fn print(what: &str, count: usize, run: &mut dyn FnMut()) {
    run();
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            run();
            begun.elapsed().as_secs_f64() * 1e6 / count as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let (least, most) = (rounds[0], rounds[ROUNDS - 1]);
    println!("{what:<44}{:7.2}   ({least:.2} to {most:.2})", rounds[ROUNDS / 2]);
}

/// An answer in prose, word by word, after a reasoning.
fn stream(format: Format, seed: u64) -> Vec<Bytes> {
    let (thought, said) = (prose::reasoning(seed), prose::answer(seed));
    let mut events = Vec::new();
    for (text, thinks) in [(thought, true), (said, false)] {
        for word in text.split_inclusive(' ') {
            events.push(event(format, word, thinks, events.len()));
        }
    }
    events
}

fn event(format: Format, word: &str, thinks: bool, number: usize) -> Bytes {
    let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let index = u8::from(!thinks);
    match format {
        Format::OpenaiChat => {
            let field = if thinks { "reasoning_content" } else { "content" };
            format!(
                "data: {{\"id\":\"chatcmpl-00000000000000\",\"object\":\"chat.completion.chunk\",\
                 \"created\":1790000000,\"model\":\"still-1\",\"choices\":[{{\"index\":0,\
                 \"delta\":{{\"{field}\":\"{word}\"}},\"logprobs\":null,\
                 \"finish_reason\":null}}]}}\n\n"
            )
        }
        Format::AnthropicMessages => {
            let (kind, field) =
                if thinks { ("thinking_delta", "thinking") } else { ("text_delta", "text") };
            format!(
                "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\
                 \"index\":{index},\"delta\":{{\"type\":\"{kind}\",\"{field}\":\"{word}\"}}}}\n\n"
            )
        }
        _ => {
            let kind = if thinks { "reasoning_summary_text" } else { "output_text" };
            let part = if thinks { "summary_index" } else { "content_index" };
            format!(
                "event: response.{kind}.delta\ndata: {{\"type\":\"response.{kind}.delta\",\
                 \"item_id\":\"msg_own0001\",\"output_index\":{index},\"{part}\":0,\
                 \"delta\":\"{word}\",\"sequence_number\":{number}}}\n\n"
            )
        }
    }
    .into()
}

/// Accounts in turn, each prompt another one.
fn observation(number: usize) -> Observation {
    let seed = number as u64;
    let mut text = format!("Note {number}.");
    for part in 0.. {
        let _ = write!(text, " {}", prose::answer(seed.wrapping_mul(31).wrapping_add(part)));
        if text.len() > 2_048 {
            break;
        }
    }
    let end = (0..=2_048).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    text.truncate(end);
    let header =
        |name: &str, value: &str| HeaderField { name: name.into(), value: Some(value.into()) };
    let account = number % ACCOUNTS;
    Observation {
        id: format!("r{number:014x}"),
        at_ms: NOW_MS + seed * 10,
        account: Some(AccountId::new(format!("acct-{account:012x}"))),
        organisation: None,
        ip: IpAddr::from([198, 51, 100, (account % 250) as u8]),
        network: Network::default(),
        route: "".into(),
        tls: None,
        http: HttpCapture {
            version: HttpVersion::Http11,
            method: "POST".into(),
            path: "/v1/chat/completions".into(),
            headers: vec![
                header("Host", "api.example"),
                header("Accept", "*/*"),
                header("Content-Type", "application/json"),
                header("User-Agent", "bench/1"),
            ],
            h2: None,
        },
        format: Format::OpenaiChat,
        foreign_marks: 0,
        indicators: Vec::new(),
        conversation: Conversation {
            model: Some("still-1".into()),
            turns: vec![Turn {
                role: Role::User,
                text: Text::new(text),
                tool_calls: Vec::new(),
                attachments: 0,
            }],
            sampling: Sampling { max_tokens: Some(1_024), ..Sampling::default() },
            ..Conversation::default()
        },
        answer: Answer::default(),
    }
}
