//! What looking up one request among indicators costs: nanoseconds, on one thread.
//!
//! `cargo run --release -p stillgate --example ioc_speed`

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use detectors::{
    AccountId, Answer, Conversation, Format, Http2Capture, HttpCapture, HttpVersion, Network,
    Observation, TlsCapture,
};
use gateway::ioc::bundle::Kind;
use gateway::ioc::index::{Index, Sighting};

const ROUNDS: usize = 9;
const LOOKUPS: usize = 200_000;
const NOW_MS: u64 = 1_800_000_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    println!("medians of {ROUNDS} rounds with the least and the most, nanoseconds a lookup");
    for held in [0, 1_000, 100_000] {
        let index = Index::new(30 * 86_400_000);
        let per_kind = held / 6;
        for number in 0..per_kind {
            let put = |kind, value: String| {
                let sighting =
                    Sighting { source: "peer/lab-b".into(), weight: 0.4, last_seen_ms: NOW_MS };
                index.put(kind, &value, sighting);
            };
            let [_, _, b, c] = u32::try_from(number)?.to_be_bytes();
            put(Kind::Ip, format!("20.{}.{b}.{c}", number >> 16));
            // Every width that may be held.
            put(Kind::Subnet, format!("60.{b}.{c}.0/{}", 16 + number % 17));
            put(Kind::Ja3, format!("{number:032x}"));
            put(Kind::Ja3s, format!("{number:032x}"));
            put(Kind::Ja4, format!("t13d1516h2_{number:012x}_02713d6af862"));
            put(Kind::H2, format!("1:{number};2:0|15663105|0|m,a,s,p"));
        }
        for (name, found) in [("nothing found", false), ("five found", true)] {
            if found && held == 0 {
                continue;
            }
            let asked = observation(found)?;
            let hits = index.lookup(&asked, NOW_MS).len();
            let mut times: Vec<f64> = (0..ROUNDS)
                .map(|_| {
                    let begun = Instant::now();
                    for _ in 0..LOOKUPS {
                        black_box(index.lookup(black_box(&asked), NOW_MS));
                    }
                    begun.elapsed().as_secs_f64() * 1e9 / LOOKUPS as f64
                })
                .collect();
            times.sort_by(f64::total_cmp);
            println!(
                "{held:>7} held, {name:13} ({hits}): {:7.0} ({:.0} to {:.0})",
                times[ROUNDS / 2],
                times[0],
                times[ROUNDS - 1]
            );
        }
    }
    Ok(())
}

fn observation(known: bool) -> Result<Observation, Box<dyn Error>> {
    let number = if known { 5 } else { 0xffff_ffff_u64 };
    Ok(Observation {
        id: "r0000000000000001".to_owned(),
        at_ms: NOW_MS,
        account: Some(AccountId::new("acct-1")),
        organisation: None,
        ip: if known { "20.0.0.5" } else { "198.51.100.7" }.parse()?,
        network: Network::default(),
        route: "main".into(),
        tls: Some(Arc::new(TlsCapture {
            ja3_md5: format!("{number:032x}"),
            ja3s_md5: Some(format!("{number:032x}")),
            ja4: format!("t13d1516h2_{number:012x}_02713d6af862"),
            ..TlsCapture::default()
        })),
        http: HttpCapture {
            version: HttpVersion::Http2,
            method: "POST".to_owned(),
            path: "/v1/messages".to_owned(),
            headers: vec![],
            h2: Some(Http2Capture {
                akamai: format!("1:{number};2:0|15663105|0|m,a,s,p"),
                ..Http2Capture::default()
            }),
        },
        format: Format::AnthropicMessages,
        foreign_marks: 0,
        indicators: Vec::new(),
        conversation: Conversation::default(),
        answer: Answer::default(),
    })
}
