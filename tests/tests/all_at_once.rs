//! Good requests, broken ones, clients that leave and upstreams that cut, all at once for some
//! seconds, while the certificate is replaced again and again: every answer is compared, and at
//! the end nothing is left open.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use harness::{Gateway, Provider, http1, http2, streams, wait_for};

const WORKERS: u64 = 4;
const DURATION: Duration = Duration::from_secs(10);
/// Idle connections to the upstream, kept for the next request.
const FILES_MORE_MAX: f64 = 64.0;

#[test]
fn every_answer_is_right_and_nothing_is_left() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .limit("idle_timeout_seconds = 2.0")
        .limit("header_timeout_seconds = 2.0")
        .limit("handshake_timeout_seconds = 2.0")
        .log_level("warn")
        .record()
        .start();
    // One of each first, so that what is opened once is not counted.
    let mut random = Random(1);
    for action in ACTIONS {
        action(&gateway, &mut random).expect("each works alone");
    }
    let files_before = gateway.metric("process_open_fds");
    let end = Instant::now() + DURATION;
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (gateway, failures) = (&gateway, &failures);
            scope.spawn(move || {
                let mut random = Random(worker + 2);
                while Instant::now() < end {
                    let action = ACTIONS[random.below(ACTIONS.len())];
                    if let Err(failure) = action(gateway, &mut random) {
                        failures.lock().expect("not poisoned").push(failure);
                    }
                }
            });
        }
        while Instant::now() < end {
            std::thread::sleep(Duration::from_secs(1));
            let _ = gateway.replace_certificate("another");
        }
    });
    let failures = failures.into_inner().expect("not poisoned");
    let first = &failures[..failures.len().min(10)];
    assert!(failures.is_empty(), "{} failures, the first: {first:#?}", failures.len());
    wait_for("an end of all exchanges", Duration::from_secs(20), || {
        let gauges = ["stillgate_exchanges_in_flight", "stillgate_connections_open"];
        gauges.iter().all(|gauge| gateway.metric(gauge) == 0.0).then_some(())
    });
    let files = gateway.metric("process_open_fds") - files_before;
    assert!(files < FILES_MORE_MAX, "{files} more files are open");
    assert_eq!(gateway.metric("stillgate_capture_missed_total"), 0.0);
    assert_eq!(gateway.metric("stillgate_exchanges_shed_total"), 0.0);
    assert_eq!(gateway.metric("stillgate_record_errors_total"), 0.0);
}

type Action = fn(&Gateway, &mut Random) -> Result<(), String>;

const ACTIONS: &[Action] = &[
    streamed_http1,
    streamed_http1,
    multiplexed_http2,
    multiplexed_http2,
    large_body,
    cut_by_the_provider,
    left_by_the_client,
    ambiguous,
    garbage,
];

fn streamed_http1(gateway: &Gateway, random: &mut Random) -> Result<(), String> {
    let name = stream(random);
    let directive = format!("stream={name};chunks={}", ["whole", "events", "odd"][random.below(3)]);
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    let response = http1::tls(gateway.tls_address(), &tls, &post(&directive, b"{}"));
    let same = streams::read(&name).as_deref() == Some(response.body.as_slice());
    ensure(
        response.status == 200 && same && response.complete,
        &format!("{directive} {response:?}"),
    )
}

fn multiplexed_http2(gateway: &Gateway, random: &mut Random) -> Result<(), String> {
    let tls = gateway.authority().tls_client(&["h2"]);
    let stream_of = http1::connect_tls(gateway.tls_address(), &tls);
    let mut connection = http2::Connection::open(stream_of, &[(2, 0)]);
    let ids: Vec<u32> = (0..20).map(|n| 1 + 2 * n).collect();
    let names: Vec<String> = ids.iter().map(|_| stream(random)).collect();
    for (id, name) in ids.iter().zip(&names) {
        let mut fields = http2::get("/v1/chat/completions");
        fields.push(("x-provider".to_owned(), format!("stream={name};chunks=events")));
        connection.send(&http2::request(*id, &fields));
    }
    connection.settle(&ids);
    for (id, name) in ids.iter().zip(&names) {
        let answer = connection.answer(*id);
        let same = streams::read(name).as_deref() == Some(answer.body.as_slice());
        let status = answer.status;
        ensure(status == 200 && same && answer.ended, &format!("{name} on {id}: {status}"))?;
    }
    Ok(())
}

fn large_body(gateway: &Gateway, random: &mut Random) -> Result<(), String> {
    let body = vec![b' '; 1 + random.below(3_000_000)];
    let response = http1::plain(gateway.plain_address(), &post("echo", &body));
    let echoed = response.status == 200 && response.json()["length"] == body.len();
    ensure(echoed, &format!("{} bytes: {response:?}", body.len()))
}

fn cut_by_the_provider(gateway: &Gateway, random: &mut Random) -> Result<(), String> {
    let directive = format!("stream=own/anthropic/text.sse;cut={}", 100 + random.below(1000));
    let response = http1::plain(gateway.plain_address(), &post(&directive, b"{}"));
    ensure(!response.complete, &format!("{directive} ended properly"))
}

fn left_by_the_client(gateway: &Gateway, random: &mut Random) -> Result<(), String> {
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    let mut stream = http1::connect_tls(gateway.tls_address(), &tls);
    let request = post("stream=own/openai-chat/text.sse;chunks=paced:20", b"{}");
    let kept = random.below(request.len() + 1);
    let sent = stream.write_all(&request[..kept]);
    if kept == request.len() {
        let _ = stream.read(&mut [0; 512]);
    }
    sent.map_err(|error| error.to_string())
}

fn ambiguous(gateway: &Gateway, _random: &mut Random) -> Result<(), String> {
    let request = b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\
        Transfer-Encoding: chunked\r\n\r\n{}";
    let status = http1::plain(gateway.plain_address(), request).status;
    ensure(status == 400, &format!("two framings: {status}"))
}

fn garbage(gateway: &Gateway, random: &mut Random) -> Result<(), String> {
    let bytes: Vec<u8> = (0..random.below(300)).map(|_| (random.next() >> 40) as u8).collect();
    let tls = random.below(2) == 0;
    let address = if tls { gateway.tls_address() } else { gateway.plain_address() };
    let mut stream = http1::connect(address);
    let _ = stream.write_all(&bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let closed = http1::read_to_close(&mut stream, Duration::from_secs(10));
    ensure(closed.is_some(), "garbage is kept waiting")
}

fn ensure(right: bool, otherwise: &str) -> Result<(), String> {
    if right { Ok(()) } else { Err(otherwise.chars().take(300).collect()) }
}

fn post(directive: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-provider: {directive}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

fn stream(random: &mut Random) -> String {
    let names = streams::own();
    names[random.below(names.len())].clone()
}

/// A generator that needs no crate: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
