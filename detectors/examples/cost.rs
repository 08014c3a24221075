//! What judging costs: microseconds for an exchange with a prompt of 2 KB, by its parts.
//!
//! `cargo run --release -p stillgate-detectors --example cost`

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use detectors::engine::Engine;
use detectors::facts::Facts;
use detectors::policy::Policy;
use detectors::seen::{Learnt, Seen};
use detectors::text::fold;
use detectors::{
    AccountId, Answer, Conversation, DnsContact, DnsLookup, DnsTransport, Event, Format,
    HeaderField, HttpCapture, HttpVersion, Network, Observation, Role, Sampling, Text, TlsCapture,
    Turn, Usage,
};

/// More than readings are kept of, so that each text is read anew.
const EXCHANGES: usize = 20_000;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let facts = Arc::new(Facts::builtin()?);
    let observations: Vec<Observation> = (0..EXCHANGES).map(observation).collect();
    let text = |at: usize| observations[at].conversation.turns[0].text.as_str();
    println!("prompts of {} bytes; medians of {ROUNDS} rounds, microseconds", text(0).len());
    print("phrases alone (inline)", &mut |at| {
        std::hint::black_box(facts.text.phrases().read(&fold(text(at)).text));
    });
    print("whole reading of the text", &mut |at| {
        std::hint::black_box(facts.text.read("", text(at)));
    });
    print("reading of the client", &mut |at| {
        let observation = &observations[at];
        let tls = observation.tls.as_deref();
        std::hint::black_box(facts.clients.read(tls, &observation.http, &[1; 16]));
    });
    let mut learnt = Learnt::default();
    print("all that an exchange shows", &mut |at| {
        std::hint::black_box(Seen::read(&observations[at], &facts, &mut learnt, &[1; 16]));
    });
    let events: Vec<Event> =
        observations.iter().map(|one| Event::Exchange(Box::new(one.clone()))).collect();
    let mut engine = Engine::new(Arc::new(Policy::default()), Arc::clone(&facts), [1; 16]);
    print("an exchange with its judgements", &mut |at| {
        std::hint::black_box(engine.observe(&events[at]));
    });
    let mut engine = Engine::new(Arc::new(Policy::default()), Arc::clone(&facts), [1; 16]);
    sensed(&mut engine);
    print("the same where sensors tell much", &mut |at| {
        std::hint::black_box(engine.observe(&events[at]));
    });
    let ids: Vec<AccountId> = engine.accounts().iter().map(|account| account.id.clone()).collect();
    print("one judgement with its evidence", &mut |at| {
        std::hint::black_box(engine.judge_now(&ids[at % ids.len()], 1_800_000_000_000));
    });
    Ok(())
}

/// Twenty hosts behind each address, with encrypted DNS and a few unnamed addresses, on three days.
fn sensed(engine: &mut Engine) {
    for number in 0..40 * 20 * 3 * 5_u64 {
        let at_ms = 1_790_000_000_000 - (number / 4_000) * 86_400_000;
        let ip = IpAddr::from([198, 51, 100, (number % 40) as u8]);
        let host = Some((number / 40 % 20).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let server = IpAddr::from([203, 0, 113, (number / 800 % 5) as u8]);
        let (client, transport) = (Some(true), DnsTransport::Doh);
        let (provider, name) = (None, None);
        engine.observe(&Event::Dns(DnsLookup {
            at_ms,
            ip,
            host,
            client,
            transport,
            server,
            provider,
            name,
        }));
        let (destination, port) = (server, 443);
        engine.observe(&Event::Contact(DnsContact { at_ms, ip, host, client, destination, port }));
    }
}

#[expect(clippy::disallowed_methods, reason = "this measures time")]
fn print(what: &str, run: &mut dyn FnMut(usize)) {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            (0..EXCHANGES).for_each(&mut *run);
            begun.elapsed().as_secs_f64() * 1e6 / EXCHANGES as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    println!(
        "{what:<34}{:7.1}   ({:.1} to {:.1})",
        rounds[ROUNDS / 2],
        rounds[0],
        rounds[ROUNDS - 1]
    );
}

/// Forty accounts in turn, each prompt another one.
fn observation(number: usize) -> Observation {
    const WORDS: [&str; 16] = [
        "harbour", "ledger", "compute", "gentle", "matrix", "explain", "winter", "protein",
        "clause", "orbit", "recipe", "compare", "vector", "history", "invoice", "question",
    ];
    let mut text = String::new();
    let mut state = number as u64 + 1;
    while text.len() < 2_048 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let _ = write!(text, "{} ", WORDS[(state >> 40) as usize % WORDS.len()]);
    }
    let header =
        |name: &str, value: &str| HeaderField { name: name.into(), value: Some(value.into()) };
    Observation {
        id: format!("r{number:014x}"),
        at_ms: 1_790_000_000_000 + number as u64 * 700,
        account: Some(AccountId::new(format!("acct-{:012x}", number % 40))),
        organisation: None,
        ip: IpAddr::from([198, 51, 100, (number % 40) as u8]),
        network: Network::default(),
        route: "".into(),
        tls: Some(Arc::new(TlsCapture {
            version: "1.3".into(),
            ja3: "771,4866-4867-4865-49196-49200,0-11-10-35-22-23-13-43-45-51,29-23-30-25-24,0-1-2"
                .into(),
            ja4: "t13d1812h1_85036bcba153_375ca2c5e164".into(),
            alpn: vec!["http/1.1".into()],
            ..TlsCapture::default()
        })),
        http: HttpCapture {
            version: HttpVersion::Http11,
            method: "POST".into(),
            path: "/v1/chat/completions".into(),
            headers: vec![
                header("Host", "api.example"),
                header("Accept-Encoding", "gzip, deflate"),
                header("Connection", "keep-alive"),
                header("Accept", "application/json"),
                header("Content-Type", "application/json"),
                header("User-Agent", "OpenAI/Python 2.54.0"),
                header("X-Stainless-Lang", "python"),
            ],
            h2: None,
        },
        format: Format::OpenaiChat,
        foreign_marks: 0,
        indicators: Vec::new(),
        conversation: Conversation {
            model: Some("sample-1".into()),
            turns: vec![Turn {
                role: Role::User,
                text: Text::new(text),
                tool_calls: Vec::new(),
                attachments: 0,
            }],
            sampling: Sampling { max_tokens: Some(1_024), ..Sampling::default() },
            ..Conversation::default()
        },
        answer: Answer {
            status: 200,
            usage: Some(Usage { prompt_tokens: 500, completion_tokens: 300, ..Usage::default() }),
            duration_ms: 2_000,
            complete: true,
            ..Answer::default()
        },
    }
}
