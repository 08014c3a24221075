//! What an account costs: bytes held of it, and time to take in one exchange.
//!
//! `cargo run --release -p stillgate-detectors --example memory` goes through ten thousand, a hundred
//! thousand and a million accounts; a number as argument goes through that many alone.
//!
//! Most accounts ask a few times, some thousands of times, so the number of exchanges is drawn from
//! a log-normal distribution. Exchanges of all accounts are mixed, so that caches help as little as
//! they do in production.
#![expect(
    clippy::disallowed_methods,
    reason = "it measures time and the process' memory; the crate itself does neither"
)]

#[expect(dead_code, reason = "the corpus has more kinds of clients")]
#[path = "../tests/corpus/clients.rs"]
mod clients;
#[path = "../tests/corpus/numbers.rs"]
mod numbers;
#[expect(dead_code, reason = "the corpus writes more kinds of texts")]
#[path = "../tests/corpus/words.rs"]
mod words;

use std::sync::Arc;
use std::time::{Duration, Instant};

use detectors::engine::Engine;
use detectors::facts::Facts;
use detectors::policy::Policy;
use detectors::{
    AccountId, Answer, Conversation, Event, Format, HttpCapture, Network, NetworkKind, Observation,
    Profile, Role, Sampling, Text, TlsCapture, Turn, Usage,
};

use clients::{BROWSERS, Client, PEOPLE, PRODUCTS};
use numbers::Numbers;

/// Resident memory at which a run is stopped.
const RESIDENT_MAX: usize = 8_000_000_000;
const BEGIN_MS: u64 = 1_788_739_200_000;
const WEEK_MS: u64 = 7 * 86_400_000;

fn main() {
    let asked = std::env::args().nth(1).and_then(|accounts| accounts.parse().ok());
    match asked {
        Some(accounts) => measure(accounts, if accounts > 500_000 { 6.0 } else { 20.0 }),
        None => {
            measure(10_000, 20.0);
            measure(100_000, 20.0);
            measure(1_000_000, 6.0);
        }
    }
}

#[expect(clippy::expect_used, reason = "a measurement has nobody to tell")]
fn measure(accounts: u32, median: f64) {
    let mut numbers = Numbers::of(1, "memory");
    let mut schedule = Vec::new();
    for account in 0..accounts {
        let exchanges = numbers.around(median, 1.0, 1, 5_000);
        schedule.extend(std::iter::repeat_n(account, exchanges));
    }
    numbers.shuffle(&mut schedule);
    let world = World::new(&mut numbers);
    let mut policy = Policy::default();
    // A full young generation would let the old one go: here all accounts are to stay.
    policy.memory.accounts_max = 2 * accounts as usize;
    let before = resident();
    let mut engine =
        Engine::new(Arc::new(policy), Arc::new(Facts::builtin().expect("shipped tables")), [3; 16]);
    for account in 0..accounts {
        engine.observe(&Event::Profile(world.profile(account)));
    }
    let (mut spent, mut judged, mut done) = (Duration::ZERO, 0u64, 0usize);
    let mut slowest = Duration::ZERO;
    for (at, account) in schedule.iter().enumerate() {
        let at_ms = BEGIN_MS + (at as u64).saturating_mul(WEEK_MS) / schedule.len() as u64;
        let event = Event::Exchange(Box::new(world.exchange(*account, at, at_ms, &mut numbers)));
        let start = Instant::now();
        judged += u64::from(engine.observe(&event).is_some());
        let took = start.elapsed();
        spent += took;
        slowest = slowest.max(took);
        done = at + 1;
        if at % 100_000 == 0 && resident() > RESIDENT_MAX {
            println!("stopped early: {RESIDENT_MAX} bytes are resident");
            break;
        }
    }
    let (of_accounts, of_pivots) = engine.memory_bytes();
    let held = engine.accounts().len().max(1);
    let resident = resident().saturating_sub(before);
    println!(
        "{held} accounts held of {accounts}, median {median} exchanges, {done} exchanges, {judged} \
         judgements, let go {:?}",
        engine.evicted()
    );
    println!(
        "    bytes per account: {} itself, {} of shared values, {} resident in all",
        of_accounts / held,
        of_pivots / held,
        resident / held
    );
    let encoded = |id: &AccountId| engine.row(id).map_or(0, |row| row.encode().len());
    let mut rows: Vec<usize> = engine.accounts().iter().map(|held| encoded(&held.id)).collect();
    rows.sort_unstable();
    println!(
        "    bytes per stored row: {} on average, {} at most",
        rows.iter().sum::<usize>() / held,
        rows.last().unwrap_or(&0)
    );
    println!(
        "    counted {:.2} GB, resident {:.2} GB; {:.1} us per exchange, the slowest {:.1} ms",
        (of_accounts + of_pivots) as f64 / 1e9,
        resident as f64 / 1e9,
        spent.as_secs_f64() * 1e6 / done.max(1) as f64,
        slowest.as_secs_f64() * 1e3
    );
}

/// Resident bytes of this process; 0 where the system does not tell.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// Accounts are not kept: what an account is follows from its number.
struct World {
    clients: Vec<(Arc<TlsCapture>, HttpCapture)>,
    systems: Vec<String>,
}

impl World {
    fn new(numbers: &mut Numbers) -> Self {
        let kinds: Vec<_> = [PEOPLE, BROWSERS, PRODUCTS].concat();
        let mut clients = Vec::new();
        for kind in kinds {
            for _ in 0..8 {
                clients.push(Client::install(kind, numbers).connect(numbers));
            }
        }
        Self { clients, systems: (0..2_000).map(|_| words::prose(numbers, 3)).collect() }
    }

    fn id(account: u32) -> AccountId {
        AccountId::new(format!("acc-{account:016x}"))
    }

    fn profile(&self, account: u32) -> Profile {
        let mut own = Numbers::of(u64::from(account), "profile");
        Profile {
            at_ms: BEGIN_MS,
            account: Self::id(account),
            organisation: None,
            created_s: i64::try_from(BEGIN_MS / 1000 - own.below(30_000_000) as u64).ok(),
            payment: own.chance(0.8).then(|| format!("card-{account}").into()),
            bin: own.chance(0.6).then(|| 400_000 + own.below(5_000) as u32),
            verified: false,
        }
    }

    fn exchange(&self, account: u32, at: usize, at_ms: u64, numbers: &mut Numbers) -> Observation {
        let mut own = Numbers::of(u64::from(account), "habits");
        let (tls, http) = self.clients[own.below(self.clients.len())].clone();
        let places = 1 + own.below(3) as u32;
        let place =
            account.wrapping_mul(places).wrapping_add(numbers.below(places as usize) as u32);
        // A few thousand subnets are shared, most homes are alone in theirs.
        let shared =
            if own.chance(0.1) { place % 50_000 } else { place.wrapping_mul(2_654_435_761) };
        let product = own.chance(0.15);
        let system = match own.below(10) {
            0..=4 => String::new(),
            5..=7 => self.systems[own.below(40)].clone(),
            _ => self.systems[own.below(self.systems.len())].clone(),
        };
        let text = if product {
            format!("{}\n\n{}", self.systems[own.below(2_000)], words::prose(numbers, 2))
        } else {
            words::chat(numbers)
        };
        let turn = |role, text: String| Turn {
            role,
            text: Text::new(text),
            tool_calls: Vec::new(),
            attachments: 0,
        };
        let mut turns = vec![turn(Role::User, text)];
        if !product && numbers.chance(0.6) {
            turns.insert(0, turn(Role::Assistant, words::prose(numbers, 1)));
        }
        Observation {
            id: format!("r{at:016x}"),
            at_ms,
            account: Some(Self::id(account)),
            organisation: None,
            ip: shared.to_be_bytes().into(),
            network: Network {
                asn: shared >> 20,
                name: None,
                kind: if product { NetworkKind::Hosting } else { NetworkKind::Unlisted },
            },
            route: "models".into(),
            tls: Some(tls),
            http,
            format: Format::OpenaiChat,
            foreign_marks: 0,
            indicators: Vec::new(),
            conversation: Conversation {
                model: Some(own.pick(&["one", "two", "three", "four"]).to_owned()),
                system: Text::new(system),
                turns,
                tools: Vec::new(),
                sampling: Sampling {
                    max_tokens: own.one(&[None, None, Some(512), Some(1024), Some(4096)]),
                    temperature: own.one(&[None, None, Some(0.0), Some(0.7)]),
                    ..Sampling::default()
                },
            },
            answer: Answer {
                status: 200,
                usage: Some(Usage {
                    prompt_tokens: 80,
                    completion_tokens: 40 + numbers.below(600) as u64,
                    ..Usage::default()
                }),
                complete: true,
                duration_ms: 500 + numbers.below(9_000) as u64,
                ..Answer::default()
            },
        }
    }
}
