//! Requests and answers that are under way at the same time, and upstreams that take their time:
//! what goes one way never waits for what goes the other, and no waiting tears a body.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use harness::http1::{self, Response};
use harness::upstream::{Taken, Wire};
use harness::{Gateway, Provider, RawUpstream, http2};

const MIB: usize = 1024 * 1024;
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

const HANDSHAKE: &[u8] = b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn gateway(upstream: SocketAddr) -> Gateway {
    Gateway::in_front_of(upstream).limit("write_timeout_seconds = 1.0").start()
}

/// How a body's end is told on HTTP/1.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Chunked,
    Length(usize),
}

impl Framing {
    fn both(body: &[u8]) -> [Self; 2] {
        [Self::Chunked, Self::Length(body.len())]
    }

    fn field(self) -> String {
        match self {
            Self::Chunked => "Transfer-Encoding: chunked".to_owned(),
            Self::Length(length) => format!("Content-Length: {length}"),
        }
    }

    fn framed(self, body: &[u8]) -> Vec<u8> {
        let Self::Chunked = self else { return body.to_vec() };
        let mut framed = Vec::with_capacity(body.len() + 1024);
        for piece in body.chunks(50_000) {
            framed.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            framed.extend_from_slice(piece);
            framed.extend_from_slice(b"\r\n");
        }
        framed.extend_from_slice(b"0\r\n\r\n");
        framed
    }

    fn take(self, wire: &mut Wire) -> Taken {
        match self {
            Self::Chunked => wire.chunked_body(),
            Self::Length(length) => wire.body(length),
        }
    }
}

/// An upstream may be too busy to read for as long as it may be too busy to answer.
#[test]
fn an_upload_to_an_upstream_that_pauses() {
    let body = numbered(24 * MIB);
    for framing in Framing::both(&body) {
        let (taken, response) = upload_to_a_pause(framing, &body, 600);
        assert_eq!(taken.malformed, None, "{framing:?} after {} bytes", taken.body.len());
        assert!(taken.body == body, "{framing:?}: other bytes than were sent");
        assert_eq!(response.status, 200, "{framing:?}: {}", response.text());
    }
}

/// The write that timed out must not leave half a piece on the wire with the next one behind it:
/// what the upstream then reads as a chunk's size would be the client's to choose.
#[test]
fn an_upload_to_an_upstream_that_pauses_for_too_long() {
    let body = numbered(24 * MIB);
    for framing in Framing::both(&body) {
        let (taken, response) = upload_to_a_pause(framing, &body, 1);
        assert_eq!(taken.malformed, None, "{framing:?} after {} bytes", taken.body.len());
        assert!(body.starts_with(&taken.body), "{framing:?}: other bytes than were sent");
        assert!(!taken.complete, "{framing:?}");
        assert!(matches!(response.status, 0 | 504), "{framing:?}: {response:?}");
    }
}

/// Uploads to an upstream that reads nothing for 2.5 s.
fn upload_to_a_pause(framing: Framing, body: &[u8], first_byte_seconds: u32) -> (Taken, Response) {
    let (report, reports) = mpsc::sync_channel(1);
    let upstream = RawUpstream::start_narrow(move |mut wire| {
        if wire.head().is_none() {
            return;
        }
        std::thread::sleep(WRITE_TIMEOUT * 5 / 2);
        let taken = framing.take(&mut wire);
        if taken.complete {
            wire.send(OK);
        }
        let _ = report.send(taken);
    });
    let settings = format!("first_byte_timeout_seconds = {first_byte_seconds}");
    let gateway = Gateway::builder()
        .upstream("main", &[upstream.address()], &settings)
        .limit("write_timeout_seconds = 1.0")
        .start();
    let response = upload(gateway.plain_address(), framing, body);
    let taken = reports.recv_timeout(Duration::from_secs(9)).expect("the upstream's view");
    nothing_is_left(&gateway);
    (taken, response)
}

/// The whole takes longer than the timeout; no single wait does.
#[test]
fn an_upstream_that_reads_slowly_but_steadily() {
    let prompt = prompt(7 * MIB);
    let opaque = numbered(7 * MIB);
    for (path, body) in [("/v1/chat/completions", &prompt), ("/opaque", &opaque)] {
        let (length, expected) = (body.len(), body.clone());
        let upstream = RawUpstream::start_narrow(move |mut wire| {
            if wire.head().is_none() {
                return;
            }
            let mut taken = Vec::new();
            while taken.len() < length {
                let piece = wire.body((256 * 1024).min(length - taken.len()));
                taken.extend_from_slice(&piece.body);
                if !piece.complete {
                    return;
                }
                std::thread::sleep(Duration::from_millis(80));
            }
            if taken == expected {
                wire.send(OK);
            }
        });
        let gateway = gateway(upstream.address());
        let started = Instant::now();
        let head = post(path, &Framing::Length(length).field());
        let response = both_ways(gateway.plain_address(), &head, body);
        assert_eq!(response.status, 200, "{path}: {}", response.text());
        assert!(started.elapsed() > WRITE_TIMEOUT * 2, "it was too quick to show anything");
    }
}

/// The upstream writes what it has read before it reads on, and nothing fits in between.
#[test]
fn an_upstream_that_echoes_as_it_reads() {
    let body = numbered(16 * MIB);
    for framing in Framing::both(&body) {
        let upstream = RawUpstream::start_narrow(move |mut wire| {
            if wire.head().is_none() {
                return;
            }
            // Chunks that were echoed are chunks.
            wire.send(format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", framing.field()).as_bytes());
            loop {
                let some = wire.some();
                if some.is_empty() || !wire.send(&some) {
                    return;
                }
            }
        });
        let gateway = gateway(upstream.address());
        let response = upload(gateway.plain_address(), framing, &body);
        assert_eq!(response.status, 200, "{framing:?}");
        assert!(response.complete, "{framing:?}: ended after {} bytes", response.body.len());
        assert!(response.body == body, "{framing:?}: other bytes than were sent");
        nothing_is_left(&gateway);
    }
}

/// A caller that sends all its messages before it takes an answer, as gRPC allows.
#[test]
fn an_http2_client_that_sends_all_before_it_reads() {
    let body = numbered(3 * MIB);
    for content_type in ["application/grpc", "application/octet-stream"] {
        let provider = Provider::start();
        sends_all_before_it_reads(provider.address(), "h2", content_type, &body);
    }
}

/// The same before an HTTP/1.1 upstream, which reads and writes apart from each other: that the
/// client takes no more of the answer is no reason to keep its own bytes.
#[test]
fn an_http2_client_that_sends_all_to_an_http1_upstream() {
    let body = numbered(12 * MIB);
    let (length, answer) = (body.len(), body.clone());
    let upstream = RawUpstream::start_narrow(move |mut wire| {
        if wire.head().is_none() {
            return;
        }
        let mut sink = wire.stream.try_clone().expect("a socket");
        let answer = answer.clone();
        std::thread::spawn(move || {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            sink.write_all(head.as_bytes()).and_then(|()| sink.write_all(&answer))
        });
        // By then all buffers on the way are full.
        std::thread::sleep(WRITE_TIMEOUT / 2);
        wire.chunked_body();
        // Held open until the answer has left too.
        wire.some();
    });
    sends_all_before_it_reads(upstream.address(), "h1", "application/octet-stream", &body);
}

fn sends_all_before_it_reads(
    upstream: SocketAddr,
    protocol: &str,
    content_type: &str,
    body: &[u8],
) {
    let gateway = Gateway::builder()
        .upstream("main", &[upstream], &format!("protocol = \"{protocol}\""))
        .limit("write_timeout_seconds = 3.0")
        .start();
    let tls = gateway.authority().tls_client(&["h2"]);
    let stream = http1::connect_tls(gateway.tls_address(), &tls);
    let mut connection = http2::Connection::open(stream, &[]);
    connection.gives_room = false;
    let mut fields = http2::get("/package.Service/Method");
    fields[0].1 = "POST".to_owned();
    for (name, value) in
        [("content-type", content_type), ("te", "trailers"), ("x-provider", "mirror")]
    {
        fields.push((name.to_owned(), value.to_owned()));
    }
    let block = http2::header_block(&fields);
    connection.send(&http2::frame(http2::HEADERS, http2::END_HEADERS, 1, &block));
    connection.send_body(1, body);
    assert!(connection.answer(1).body.len() < body.len() / 2, "the answer was taken early");
    connection.give_room();
    connection.settle(&[1]);
    let answer = connection.answer(1);
    let what = format!("{protocol} {content_type}");
    assert_eq!((answer.status, answer.ended, answer.reset), (200, true, None), "{what}");
    assert!(answer.body == body, "{what}: {} bytes came back", answer.body.len());
}

/// The answer comes while most of the body is still to be sent, and is not kept waiting for it.
#[test]
fn an_early_413() {
    for closes in [true, false] {
        let (report, reports) = mpsc::sync_channel(1);
        let upstream = RawUpstream::start_narrow(move |mut wire| {
            if wire.head().is_none() {
                return;
            }
            wire.send(
                b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig",
            );
            let _ = report.send(Instant::now());
            if !closes {
                std::thread::sleep(Duration::from_secs(5));
            }
        });
        let gateway =
            Gateway::in_front_of(upstream.address()).limit("write_timeout_seconds = 4.0").start();
        let body = prompt(20 * MIB);
        let head = post("/v1/chat/completions", &Framing::Length(body.len()).field());
        let response = both_ways(gateway.plain_address(), &head, &body);
        let answered = reports.recv().expect("a request at the upstream").elapsed();
        assert_eq!((response.status, response.text().as_str()), (413, "big"), "closes: {closes}");
        assert!(answered < Duration::from_secs(2), "closes: {closes}, after {answered:?}");
    }
}

/// After the handshake neither side waits for the other's turn.
#[test]
fn a_websocket_with_both_sides_sending() {
    let (down, up) = (numbered(8 * MIB), numbered(8 * MIB).into_iter().rev().collect::<Vec<u8>>());
    let (report, reports) = mpsc::sync_channel(1);
    let (sent_down, length) = (down.clone(), up.len());
    let upstream = RawUpstream::start_narrow(move |mut wire| {
        if wire.head().is_none() {
            return;
        }
        wire.send(SWITCHED);
        // It reads nothing until all of its own has left.
        wire.send(&sent_down);
        let _ = report.send(wire.body(length));
    });
    let gateway = gateway(upstream.address());
    let mut stream = harness::upstream::connect_narrow(gateway.plain_address());
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a valid timeout");
    stream.write_all(HANDSHAKE).expect("an open connection");
    assert_eq!(head_of(&mut stream), 101);
    let received = std::thread::scope(|scope| {
        let mut sink = stream.try_clone().expect("a socket");
        scope.spawn(move || sink.write_all(&up));
        let mut received = vec![0; down.len()];
        let outcome = stream.read_exact(&mut received);
        let taken = reports.recv_timeout(Duration::from_secs(5));
        let _ = stream.shutdown(Shutdown::Both);
        assert!(outcome.is_ok(), "{outcome:?}");
        assert!(received == down, "other bytes than the upstream sent");
        taken.expect("the upstream's view")
    });
    assert!(received.complete, "{} bytes reached the upstream", received.body.len());
    let expected: Vec<u8> = numbered(8 * MIB).into_iter().rev().collect();
    assert!(received.body == expected, "other bytes than the client sent");
}

/// What a client sent before it closed still reaches an upstream that reads later. Of these sizes
/// some fill the kernel's buffers (4 MiB where nobody set them) and leave a little in ours.
#[test]
fn a_websocket_that_is_closed_behind_its_last_message() {
    let (report, reports) = mpsc::sync_channel(16);
    let upstream = RawUpstream::start(move |mut wire| {
        if wire.head().is_none() {
            return;
        }
        wire.send(SWITCHED);
        std::thread::sleep(WRITE_TIMEOUT / 2);
        let _ = report.send(wire.body(usize::MAX).body);
    });
    let gateway = gateway(upstream.address());
    let lengths: Vec<usize> = (0..16).map(|n| 4_000_000 + n * 20_000).collect();
    let clients = lengths.iter().map(|length| {
        let up = numbered(*length);
        let mut stream = http1::connect(gateway.plain_address());
        std::thread::spawn(move || {
            stream.write_all(HANDSHAKE).expect("an open connection");
            assert_eq!(head_of(&mut stream), 101);
            stream.write_all(&up).expect("an open connection");
            stream.shutdown(Shutdown::Write).expect("an open connection");
            stream
        })
    });
    let clients: Vec<_> = clients.collect();
    let mut taken: Vec<usize> = Vec::new();
    for _ in &lengths {
        let body = reports.recv_timeout(Duration::from_secs(9)).expect("the upstream's view");
        assert!(body == numbered(body.len()), "other bytes than the client sent");
        taken.push(body.len());
    }
    taken.sort_unstable();
    assert_eq!(taken, lengths);
    for client in clients {
        client.join().expect("a client that sent all");
    }
    nothing_is_left(&gateway);
}

/// Answers that one client does not take keep no other's from coming, though they share a
/// connection to the upstream.
#[test]
fn an_http2_client_that_takes_nothing() {
    let provider = Provider::start();
    let gateway =
        Gateway::builder().upstream("main", &[provider.address()], "protocol = \"h2\"").start();
    let large = |path: &str| {
        let mut fields = http2::get(path);
        fields.push(("x-provider".to_owned(), "size=300000".to_owned()));
        fields
    };
    let tls = gateway.authority().tls_client(&["h2"]);
    let stream = http1::connect_tls(gateway.tls_address(), &tls);
    // SETTINGS_INITIAL_WINDOW_SIZE
    let mut stuck = http2::Connection::open(stream, &[(4, 0)]);
    let ids: Vec<u32> = (0..60).map(|n| 1 + 2 * n).collect();
    let requests: Vec<u8> =
        ids.iter().flat_map(|id| http2::request(*id, &large("/stuck"))).collect();
    stuck.send(&requests);
    harness::wait_for("all requests", Duration::from_secs(5), || {
        (provider.received().len() == ids.len()).then_some(())
    });
    // Time for what the upstream may send ahead.
    std::thread::sleep(Duration::from_millis(300));
    let started = Instant::now();
    let request = b"GET /free HTTP/1.1\r\nHost: a\r\nx-provider: size=300000\r\n\r\n";
    let mut free = http1::connect(gateway.plain_address());
    free.set_read_timeout(Some(Duration::from_secs(5))).expect("a valid timeout");
    free.write_all(request).expect("an open connection");
    let answer = http1::read_response(&mut free);
    assert_eq!((answer.status, answer.body.len()), (200, 300_000), "{:?}", started.elapsed());
    // They were held up, not lost.
    assert!(ids.iter().all(|id| stuck.answer(*id).body.is_empty()));
    assert_eq!(gateway.metric("stillgate_exchanges_in_flight"), 60.0);
}

fn upload(gateway: SocketAddr, framing: Framing, body: &[u8]) -> Response {
    both_ways(gateway, &post("/upload", &framing.field()), &framing.framed(body))
}

fn post(path: &str, framing: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{framing}\r\n\
         Connection: close\r\n\r\n"
    )
}

/// Writes the request and reads its answer at the same time.
fn both_ways(gateway: SocketAddr, head: &str, body: &[u8]) -> Response {
    let mut stream = http1::connect(gateway);
    let mut sink = stream.try_clone().expect("a socket");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Refused half-way, the rest is not taken.
            let _ = sink.write_all(head.as_bytes()).and_then(|()| sink.write_all(body));
        });
        let response = http1::read_response(&mut stream);
        let _ = stream.shutdown(Shutdown::Both);
        response
    })
}

/// Reads a response head byte by byte, so that nothing behind it is taken; gives its status.
fn head_of(stream: &mut TcpStream) -> u16 {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a response head");
        head.push(byte[0]);
    }
    http1::read_response(&mut &head[..]).status
}

fn nothing_is_left(gateway: &Gateway) {
    harness::wait_for("an end of all exchanges", Duration::from_secs(3), || {
        (gateway.metric("stillgate_exchanges_in_flight") == 0.0).then_some(())
    });
}

/// Bytes that tell their place, so that a lost, doubled or moved piece shows.
fn numbered(length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..length.div_ceil(8)).flat_map(|n| format!("{n:07x}\n").into_bytes()).collect();
    bytes.truncate(length);
    bytes
}

/// A chat request of about this length.
fn prompt(length: usize) -> Vec<u8> {
    let content = "a long question ".repeat(length / 16);
    serde_json::json!({"model": "m", "messages": [{"role": "user", "content": content}]})
        .to_string()
        .into_bytes()
}
