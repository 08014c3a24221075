//! How many events a second the classifier takes, from their bytes on: queries, ClientHellos, Initials.
//!
//! `cargo run --release -p stillgate-sensor --example classify_speed`: the median of the rounds with
//! the least and the most, in thousands a second.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use sensor::classify::{Classifier, ClassifierSettings};
use sensor::event::{Event, Kind, Protocol};
use sensor::resolvers::Resolvers;
use sensor::testing::{
    client_hello, crypto_frame, dns_answer, dns_query, event, event_bytes, quic_initial, records,
};

/// Kind and payload of each event that one client sends.
type Payloads<'a> = Vec<(Kind, &'a [u8])>;

const EVENTS: usize = 20_000;
const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let resolvers = Arc::new(Resolvers::builder().built_in()?.build());
    // As browsers send them: 1700 bytes with a post-quantum share, which need two datagrams.
    let hello = client_hello(Some("www.dns.example"), &["h2", "http/1.1"], false, 1600);
    let stream = records(&hello, 16_384);
    let datagrams = [(0_u16, &hello[..1000]), (1000, &hello[1000..])].map(|(offset, part)| {
        let frames = crypto_frame(offset, part);
        quic_initial(sensor::quic::V1, b"first id", b"first id", offset.into(), &frames)
    });
    let query = dns_query(7, &[b"www", b"some", b"example"]);
    let addresses = [(Ipv4Addr::new(192, 0, 2, 1).into(), 300); 4];
    let answer = dns_answer(7, &[b"www", b"some", b"example"], &addresses);
    let kinds: [(&str, Protocol, &str, Payloads<'_>); 5] = [
        ("queries", Protocol::Udp, "192.0.2.53:53", vec![(Kind::Query, &query)]),
        ("answers", Protocol::Udp, "192.0.2.53:53", vec![(Kind::Answer, &answer)]),
        ("opened to 443", Protocol::Tcp, "192.0.2.1:443", vec![(Kind::Open, b"")]),
        ("ClientHellos", Protocol::Tcp, "192.0.2.1:443", vec![(Kind::Stream, &stream)]),
        (
            "Initials, two a hello",
            Protocol::Udp,
            "192.0.2.1:443",
            vec![(Kind::Initial, &datagrams[0]), (Kind::Initial, &datagrams[1])],
        ),
    ];
    for (name, protocol, server, payloads) in kinds {
        let mut events = Vec::new();
        for client in 0..EVENTS / payloads.len() {
            let host = Ipv4Addr::from(0x0a00_0000 + u32::try_from(client)?);
            let client = SocketAddr::new(host.into(), 40_000).to_string();
            for (kind, payload) in &payloads {
                let ends = [client.as_str(), server];
                let [source, destination] =
                    if *kind == Kind::Answer { [ends[1], ends[0]] } else { ends };
                events.push(event_bytes(&event(*kind, protocol, source, destination, payload)));
            }
        }
        let mut thousands = Vec::new();
        for _ in 0..ROUNDS {
            let settings = ClassifierSettings::default();
            let mut classifier = Classifier::new(settings, Arc::clone(&resolvers));
            let mut out = Vec::with_capacity(events.len());
            let begun = Instant::now();
            for bytes in &events {
                classifier.take(&Event::parse(bytes)?, &mut (), &mut out);
            }
            thousands.push(events.len() as f64 / begun.elapsed().as_secs_f64() / 1000.0);
            let counters = classifier.counters();
            let unread =
                counters.not_dns + counters.not_tls + counters.not_quic + counters.repeated;
            if unread > 0 || classifier.held().streams > 0 {
                return Err(format!("not all {name} were read: {counters:?}").into());
            }
        }
        thousands.sort_by(f64::total_cmp);
        println!(
            "{name:22} {:6.0} k/s ({:.0}-{:.0})",
            thousands[ROUNDS / 2],
            thousands[0],
            thousands[ROUNDS - 1]
        );
    }
    Ok(())
}
