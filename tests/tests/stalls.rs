//! What stalls is ended in its own time: answers that nobody takes, connections that do not become
//! requests, upstreams that say what HTTP does not allow them to say.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::upstream::{Wire, connect_narrow};
use harness::{Gateway, GatewayBuilder, Provider, RawUpstream, http1, http2, wait_for};
use rustix::process::Signal;
use rustls::pki_types::ServerName;

/// A timeout of one second is over well before this, and one of the long ones is not.
const GONE_BY: Duration = Duration::from_secs(4);
const UNREAD_REQUESTS: usize = 1500;

/// The timeout under test is set by the test; the others are long.
fn patient(upstream: SocketAddr) -> GatewayBuilder {
    Gateway::in_front_of(upstream).limit("idle_timeout_seconds = 60.0").server("drain_seconds = 20")
}

/// Small answers gather in buffers, so that a write other than a body's meets the closed window.
#[test]
fn pipelined_requests_whose_answers_nobody_reads() {
    let provider = Provider::start();
    for tls in [false, true] {
        let gateway = patient(provider.address()).limit("write_timeout_seconds = 1.0").start();
        let address = if tls { gateway.tls_address() } else { gateway.plain_address() };
        let socket = connect_narrow(address);
        socket.set_write_timeout(Some(Duration::from_millis(300))).expect("a valid timeout");
        socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a valid timeout");
        let request = b"GET /unread HTTP/1.1\r\nHost: a\r\nx-provider: size=12000\r\n\r\n";
        let mut secure;
        let mut plain = socket.try_clone().expect("a socket");
        let stream: &mut dyn Write = if tls {
            let config = gateway.authority().tls_client(&["http/1.1"]);
            let name = ServerName::try_from("localhost").expect("a name");
            let client = rustls::ClientConnection::new(config, name).expect("a client");
            secure = rustls::StreamOwned::new(client, socket);
            &mut secure
        } else {
            &mut plain
        };
        for _ in 0..UNREAD_REQUESTS {
            if stream.write_all(request).and_then(|()| stream.flush()).is_err() {
                break;
            }
        }
        assert!(gateway.metric("stillgate_requests_total") >= 1.0, "tls {tls}: none was served");
        nothing_is_open(&gateway);
    }
}

#[test]
fn an_http2_stream_without_a_window() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .limit("write_timeout_seconds = 1.0")
        .limit("idle_timeout_seconds = 1.0")
        .start();
    let tls = gateway.authority().tls_client(&["h2"]);
    let stream = http1::connect_tls(gateway.tls_address(), &tls);
    let mut connection = http2::Connection::open(stream, &[(4, 0)]);
    let mut fields = http2::get("/unread");
    fields.push(("x-provider".to_owned(), "size=1000000".to_owned()));
    connection.send(&http2::request(1, &fields));
    let started = Instant::now();
    connection.settle(&[1]);
    let answer = connection.answer(1);
    assert!(answer.reset.is_some() && !answer.ended, "{answer:?}");
    assert!(started.elapsed() < GONE_BY, "{:?}", started.elapsed());
    nothing_is_open(&gateway);
}

/// ALPN chose HTTP/2 and the preface does not come, or not all of it.
#[test]
fn http2_without_its_preface() {
    let provider = Provider::start();
    let gateway = patient(provider.address()).limit("handshake_timeout_seconds = 1.0").start();
    let tls = gateway.authority().tls_client(&["h2"]);
    for opening in [&b""[..], b"PRI * HTTP/2.0\r\n"] {
        let mut stream = http1::connect_tls(gateway.tls_address(), &tls);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).expect("a handshake");
        }
        let started = Instant::now();
        stream.write_all(opening).and_then(|()| stream.flush()).expect("an open connection");
        assert!(closes(&mut stream.sock), "{opening:?} is kept for {:?}", started.elapsed());
    }
    nothing_is_open(&gateway);
}

/// The header's time begins with its first byte, wherever that falls.
#[test]
fn a_head_that_was_begun() {
    let provider = Provider::start();
    let gateway = patient(provider.address()).limit("header_timeout_seconds = 1.0").start();
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    let whole = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut held = Vec::new();
    // A head that begins like HTTP/2's preface is no less begun.
    for begun in ["G", "GET / HT", "P", "PR", "POST /v1/messages HTTP/1.1\r\nHost: a\r\n"] {
        for served_before in [false, true] {
            let mut plain = http1::connect(gateway.plain_address());
            let mut secure = http1::connect_tls(gateway.tls_address(), &tls);
            if served_before {
                assert_eq!(http1::exchange(&mut plain, whole).status, 200);
                assert_eq!(http1::exchange(&mut secure, whole).status, 200);
            }
            plain.write_all(begun.as_bytes()).expect("an open connection");
            secure.write_all(begun.as_bytes()).expect("an open connection");
            held.push((begun, served_before, Instant::now(), plain, secure));
        }
    }
    for (begun, served_before, started, mut plain, mut secure) in held {
        let what = format!("{begun:?}, after another request: {served_before}");
        assert!(closes(&mut plain), "plain {what}: kept for {:?}", started.elapsed());
        assert!(closes(&mut secure.sock), "TLS {what}: kept for {:?}", started.elapsed());
    }
    nothing_is_open(&gateway);
}

/// Clients open connections ahead of their requests; the gateway's end is not theirs to put off.
#[test]
fn connections_opened_ahead_do_not_hold_up_a_stop() {
    let provider = Provider::start();
    let mut gateway = patient(provider.address()).start();
    let ahead: Vec<_> = (0..5).map(|_| http1::connect(gateway.plain_address())).collect();
    let mut used = http1::connect(gateway.plain_address());
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(http1::exchange(&mut used, request).status, 200);
    wait_for("all connections", Duration::from_secs(3), || {
        (gateway.metric("stillgate_connections_open") == 6.0).then_some(())
    });
    let started = Instant::now();
    gateway.signal(Signal::TERM);
    let status = gateway.wait(Duration::from_secs(9));
    assert!(status.is_some(), "it still runs after {:?}", started.elapsed());
    drop(ahead);
}

#[test]
fn http_1_0_is_closed_after_its_answer() {
    let provider = Provider::start();
    let gateway = patient(provider.address()).start();
    let cases = [
        ("HTTP/1.0\r\n", true),
        ("HTTP/1.0\r\nConnection: keep-alive\r\n", false),
        ("HTTP/1.1\r\nHost: a\r\nConnection: close\r\n", true),
        ("HTTP/1.1\r\nHost: a\r\n", false),
    ];
    for (rest, closed) in cases {
        let mut stream = http1::connect(gateway.plain_address());
        let response = http1::exchange(&mut stream, format!("GET / {rest}\r\n").as_bytes());
        assert_eq!((response.status, response.complete), (200, true), "{rest:?}");
        let rest_of_it = http1::read_to_close(&mut stream, Duration::from_secs(1));
        assert_eq!(rest_of_it, closed.then(Vec::new), "{rest:?}");
    }
}

/// Bytes behind an unasked-for 101 would be the upstream's to frame.
#[test]
fn an_upgrade_that_nobody_asked_for() {
    let upstream = RawUpstream::start(|mut wire| {
        while wire.head().is_some() {
            wire.send(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\n\
                  Connection: upgrade\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            );
        }
    });
    let gateway = patient(upstream.address()).start();
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let response = http1::plain(gateway.plain_address(), request);
    assert_eq!(response.status, 502, "{}", response.text());
    assert!(!response.text().contains("evil"));
    let tls = gateway.authority().tls_client(&["h2"]);
    let stream = http1::connect_tls(gateway.tls_address(), &tls);
    let mut connection = http2::Connection::open(stream, &[]);
    connection.send(&http2::request(1, &http2::get("/")));
    connection.settle(&[1]);
    assert_eq!(connection.answer(1).status, 502, "{:?}", connection.answer(1));
}

/// A refused stream was not processed (RFC 9113, section 8.7): it is sent again, though there is
/// no other member to send it to.
#[test]
fn a_refused_stream_is_sent_again() {
    static STREAMS: AtomicUsize = AtomicUsize::new(0);
    let upstream = RawUpstream::start(|mut wire| refuse_the_first_stream(&mut wire, &STREAMS));
    let gateway = Gateway::builder()
        .upstream("main", &[upstream.address()], "protocol = \"h2\"\nretries = 1")
        .start();
    let request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\
        Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    let response = http1::plain(gateway.plain_address(), request);
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    assert_eq!(STREAMS.load(Ordering::Relaxed), 2);
    assert_eq!(gateway.metric("stillgate_retries_total"), 1.0);
}

/// HTTP/2 as far as one refused stream and one answer need it.
fn refuse_the_first_stream(wire: &mut Wire, streams: &AtomicUsize) {
    const PREFACE_BYTES: usize = 24;
    const REFUSED_STREAM: u32 = 7;
    const STATUS_200: u8 = 0x88;
    wire.body(PREFACE_BYTES);
    wire.send(&http2::frame(http2::SETTINGS, 0, 0, &[]));
    loop {
        let head = wire.body(9);
        if !head.complete {
            return;
        }
        let head = head.body;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        wire.body(length);
        if kind == http2::SETTINGS && flags & http2::ACK == 0 {
            wire.send(&http2::frame(http2::SETTINGS, http2::ACK, 0, &[]));
        }
        if kind != http2::HEADERS {
            continue;
        }
        if streams.fetch_add(1, Ordering::Relaxed) == 0 {
            let code = REFUSED_STREAM.to_be_bytes();
            wire.send(&http2::frame(http2::RST_STREAM, 0, stream, &code));
        } else {
            wire.send(&http2::frame(http2::HEADERS, http2::END_HEADERS, stream, &[STATUS_200]));
            wire.send(&http2::frame(http2::DATA, http2::END_STREAM, stream, b"ok"));
        }
    }
}

/// Whether the gateway closes within the time of a short timeout; what comes before is passed over.
fn closes(stream: &mut std::net::TcpStream) -> bool {
    let end = Instant::now() + GONE_BY;
    let mut buffer = [0; 4096];
    while Instant::now() < end {
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a valid timeout");
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return true,
        }
    }
    false
}

/// Waits until no client's connection and no exchange is left, though the clients hold on.
fn nothing_is_open(gateway: &Gateway) {
    wait_for("an end of connections and exchanges", GONE_BY, || {
        let gauges = ["stillgate_exchanges_in_flight", "stillgate_connections_open"];
        gauges.iter().all(|gauge| gateway.metric(gauge) == 0.0).then_some(())
    });
}
