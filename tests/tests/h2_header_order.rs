//! A thousand requests with shuffled header orders, multiplexed on one HTTP/2 connection: each
//! order is found at its own request.
//!
//! The HTTP/2 library of the proxy groups equal names and hides the stream, so the order is taken
//! from the wire and matched to the request. A mistake here would give one request the fingerprint
//! of another.

use std::collections::HashMap;
use std::time::Duration;

use harness::http2::{self, CONTINUATION, Connection, END_HEADERS, END_STREAM, HEADERS};
use harness::{Gateway, Provider, http1};
use serde_json::Value;

const REQUESTS: u32 = 1000;
/// Streams under way at once; the gateway allows 128.
const BATCH: u32 = 100;

#[test]
fn every_order_is_matched_to_its_request() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).limit("exchanges_kept = 2048").start();
    let tls = gateway.authority().tls_client(&["h2"]);
    let stream = http1::connect_tls(gateway.tls_address(), &tls);
    let mut connection = Connection::open(stream, &[(2, 0), (4, 131_072)]);
    let mut random = Lcg(20_26);
    let mut sent: HashMap<String, (u32, Vec<(String, String)>)> = HashMap::new();
    for batch in 0..REQUESTS / BATCH {
        let mut bytes = Vec::new();
        let ids: Vec<u32> = (0..BATCH).map(|at| 1 + 2 * (batch * BATCH + at)).collect();
        for id in &ids {
            let path = format!("/order/{id}/");
            let fields = shuffled_fields(&path, &mut random);
            bytes.extend(header_frames(*id, &http2::header_block(&fields), &mut random));
            sent.insert(path, (*id, fields));
        }
        connection.send(&bytes);
        connection.settle(&ids);
        for id in &ids {
            assert_eq!(connection.answer(*id).status, 200, "stream {id}");
        }
    }
    let exchanges = harness::wait_for("all exchanges", Duration::from_secs(10), || {
        let exchanges = gateway.exchanges(1000);
        (exchanges.len() == REQUESTS as usize).then_some(exchanges)
    });
    let mut found = 0;
    for exchange in &exchanges {
        let path = exchange["http"]["path"].as_str().expect("a path");
        let (id, fields) = &sent[path];
        assert_eq!(exchange["http"]["h2"]["stream_id"], *id, "{path}");
        let names = |pseudo: bool| {
            let of_kind = fields.iter().filter(move |(name, _)| name.starts_with(':') == pseudo);
            of_kind.map(|(name, _)| name.as_str())
        };
        let captured: Vec<&str> = exchange["http"]["headers"]
            .as_array()
            .expect("headers")
            .iter()
            .map(|field| field["name"].as_str().expect("a name"))
            .collect();
        assert_eq!(captured, names(false).collect::<Vec<_>>(), "{path}");
        let pseudo: Vec<&str> = names(true).map(|name| &name[1..2]).collect();
        assert_eq!(exchange["http"]["h2"]["pseudo"], pseudo.join(","), "{path}");
        found += 1;
    }
    assert_eq!(found, REQUESTS);
    assert_eq!(gateway.metric("stillgate_capture_missed_total"), 0.0);
    let marked = provider
        .received()
        .iter()
        .flat_map(|r| r.headers.clone())
        .find(|(name, _)| name.contains("capture"));
    assert_eq!(marked, None, "what joins an order to its request must not leave the gateway");
}

/// A client that sends the gateway's own marker is not believed, and the marker goes nowhere.
#[test]
fn a_marker_from_outside_changes_nothing() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let tls = gateway.authority().tls_client(&["h2"]);
    let mut connection = Connection::open(http1::connect_tls(gateway.tls_address(), &tls), &[]);
    let mut bytes = Vec::new();
    for (id, marker) in [(1, "0000000000000000:3"), (3, "0000000000000000:1"), (5, "x")] {
        let mut fields = http2::get(&format!("/marker/{id}/"));
        fields.push(("x-stillgate-capture".to_owned(), marker.to_owned()));
        fields.push((format!("x-of-{id}"), "1".to_owned()));
        bytes.extend(http2::request(id, &fields));
    }
    connection.send(&bytes);
    connection.settle(&[1, 3, 5]);
    for id in [1, 3, 5] {
        let exchange = gateway.exchange(&format!("/marker/{id}/"));
        assert_eq!(exchange["http"]["h2"]["stream_id"], id);
        let own = Value::from(format!("x-of-{id}"));
        let headers = exchange["http"]["headers"].as_array().expect("headers");
        assert!(headers.iter().any(|field| field["name"] == own), "{exchange}");
    }
    assert_eq!(gateway.metric("stillgate_capture_missed_total"), 0.0);
    assert!(!provider.saw(b"stillgate-capture"));
}

/// HTTP/1 keeps order and case, equal names where they stood.
#[test]
fn http1_keeps_order_and_case() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let mut random = Lcg(7);
    for id in 0..50 {
        let path = format!("/order-1/{id}/");
        let mut names: Vec<String> =
            ["Host", "x-A", "X-b", "COOKIE", "User-Agent", "x-A", "accept"]
                .map(str::to_owned)
                .to_vec();
        random.shuffle(&mut names);
        let fields: String = names.iter().map(|name| format!("{name}: v\r\n")).collect();
        let request = format!("GET {path} HTTP/1.1\r\n{fields}\r\n");
        let mut stream = http1::connect(gateway.plain_address());
        assert_eq!(http1::exchange(&mut stream, request.as_bytes()).status, 200);
        let exchange = gateway.exchange(&path);
        let captured: Vec<&str> = exchange["http"]["headers"]
            .as_array()
            .expect("headers")
            .iter()
            .map(|field| field["name"].as_str().expect("a name"))
            .collect();
        assert_eq!(captured, names, "{path}");
    }
}

/// Pseudo-headers in a random order, then regular ones in a random order, some of them twice.
fn shuffled_fields(path: &str, random: &mut Lcg) -> Vec<(String, String)> {
    let mut fields = http2::get(path);
    random.shuffle(&mut fields);
    let names =
        ["x-a", "x-b", "x-c", "x-d", "x-a", "cookie", "cookie", "user-agent", "accept", "te"];
    let mut regular: Vec<(String, String)> = names
        .iter()
        .map(|name| {
            let value = if *name == "te" { "trailers" } else { "v=1" };
            ((*name).to_owned(), value.to_owned())
        })
        .collect();
    random.shuffle(&mut regular);
    regular.truncate(4 + random.below(6));
    fields.extend(regular);
    fields
}

/// The block in one frame, or cut into CONTINUATION frames, or padded.
fn header_frames(stream: u32, block: &[u8], random: &mut Lcg) -> Vec<u8> {
    const PADDED: u8 = 0x8;
    match random.below(3) {
        0 => {
            let (head, tail) = block.split_at(random.below(block.len()));
            let mut bytes = http2::frame(HEADERS, END_STREAM, stream, head);
            bytes.extend(http2::frame(CONTINUATION, END_HEADERS, stream, tail));
            bytes
        }
        1 => {
            let mut payload = vec![5];
            payload.extend_from_slice(block);
            payload.extend([0; 5]);
            http2::frame(HEADERS, END_STREAM | END_HEADERS | PADDED, stream, &payload)
        }
        _ => http2::frame(HEADERS, END_STREAM | END_HEADERS, stream, block),
    }
}

/// A small generator, so that every run sends the same.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}
