//! Clients that open connections and do nothing with them lose them in time, and cost the others
//! nothing.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use harness::{Gateway, Provider, http1, http2, wait_for};

/// Every limit is one second; a connection must be gone well before this.
const GONE_BY: Duration = Duration::from_secs(6);

fn strict(provider: &Provider) -> Gateway {
    Gateway::in_front_of(provider.address())
        .limit("handshake_timeout_seconds = 1.0")
        .limit("header_timeout_seconds = 1.0")
        .limit("idle_timeout_seconds = 1.0")
        .limit("body_idle_timeout_seconds = 1.0")
        .limit("body_timeout_seconds = 3.0")
        .limit("write_timeout_seconds = 1.0")
        .limit("drain_timeout_seconds = 1.0")
        .start()
}

#[test]
fn silence_before_the_handshake() {
    let provider = Provider::start();
    let gateway = strict(&provider);
    closed_in_time(gateway.tls_address(), b"");
    // Half a record, half a hello.
    closed_in_time(gateway.tls_address(), &[22, 3, 1, 0, 200, 1, 0]);
    let timeouts = "stillgate_tls_handshakes_total{outcome=\"timeout\"";
    // The socket is closed before the failure is counted.
    wait_for("both timeouts", GONE_BY, || (gateway.metric(timeouts) == 2.0).then_some(()));
}

#[test]
fn a_handshake_byte_by_byte_has_one_deadline() {
    let provider = Provider::start();
    let gateway = strict(&provider);
    // A record that announces more than comes: each byte alone would renew a deadline per read.
    trickled_is_closed(gateway.tls_address(), &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3], b"\0");
}

#[test]
fn silence_before_the_first_request() {
    let provider = Provider::start();
    let gateway = strict(&provider);
    closed_in_time(gateway.plain_address(), b"");
}

#[test]
fn a_head_that_never_ends() {
    let provider = Provider::start();
    let gateway = strict(&provider);
    closed_in_time(gateway.plain_address(), b"GET / HTTP/1.1\r\nHost: a\r\n");
    // The slowloris: a field now and then, so that no single wait is long.
    let head = b"GET / HTTP/1.1\r\nHost: a\r\n";
    trickled_is_closed(gateway.plain_address(), head, b"X-A: b\r\n");
    assert!(provider.received().is_empty());
}

#[test]
fn idle_after_an_answer() {
    let provider = Provider::start();
    let gateway = strict(&provider);
    let mut stream = http1::connect(gateway.plain_address());
    let started = Instant::now();
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(http1::exchange(&mut stream, request).status, 200);
    let rest = http1::read_to_close(&mut stream, GONE_BY);
    assert_eq!(rest, Some(vec![]), "after {:?}", started.elapsed());
    // It was kept for a while: a client that is merely slow finds it open.
    assert!(started.elapsed() > Duration::from_millis(500), "{:?}", started.elapsed());
}

#[test]
fn idle_on_http2() {
    let provider = Provider::start();
    let gateway = strict(&provider);
    let tls = gateway.authority().tls_client(&["h2"]);
    let stream = http1::connect_tls(gateway.tls_address(), &tls);
    let mut connection = http2::Connection::open(stream, &[]);
    connection.send(&http2::request(1, &http2::get("/")));
    connection.settle(&[1]);
    assert_eq!(connection.answer(1).status, 200);
    let started = Instant::now();
    // A stream that never comes: reads until the gateway closes, or the socket's own timeout.
    connection.settle(&[3]);
    assert!(connection.closed && started.elapsed() < GONE_BY, "{:?}", started.elapsed());
}

#[test]
fn a_body_that_never_ends() {
    let provider = Provider::start();
    let gateway = strict(&provider);
    let head = b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{";
    let mut stream = http1::connect(gateway.plain_address());
    let started = Instant::now();
    let response = http1::exchange(&mut stream, head);
    assert!(matches!(response.status, 0 | 408), "{response:?}");
    assert!(started.elapsed() < GONE_BY, "{:?}", started.elapsed());
    // One byte now and then keeps the silence short, but a prompt as a whole has its time too.
    let head = b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{";
    trickled_is_closed(gateway.plain_address(), head, b" ");
    assert!(provider.received().is_empty(), "no half request reached the upstream");
}

/// A client that asks for much and reads nothing.
#[test]
fn an_answer_that_nobody_reads() {
    let provider = Provider::start();
    let gateway = strict(&provider);
    let mut stream = http1::connect(gateway.plain_address());
    let request = b"GET /unread HTTP/1.1\r\nHost: a\r\nx-provider: size=60000000\r\n\r\n";
    stream.write_all(request).expect("an open socket");
    let exchange = wait_for("the exchange's end", Duration::from_secs(12), || {
        gateway.exchanges(10).into_iter().find(|e| e["http"]["path"] == "/unread")
    });
    assert_eq!(exchange["answer"]["complete"], false, "{exchange}");
}

/// A hundred silent connections leave room for an ordinary request at once.
#[test]
fn the_others_are_served() {
    let provider = Provider::start();
    let gateway = strict(&provider);
    let silent: Vec<TcpStream> = (0..100)
        .map(|n| {
            let tls = n % 2 == 0;
            http1::connect(if tls { gateway.tls_address() } else { gateway.plain_address() })
        })
        .collect();
    let started = Instant::now();
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(http1::tls(gateway.tls_address(), &tls, request).status, 200);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    for mut stream in silent {
        assert!(http1::read_to_close(&mut stream, GONE_BY).is_some(), "a silent one is kept");
    }
    wait_for("no open connections", Duration::from_secs(5), || {
        // The one that asks is the admin's and not counted.
        (gateway.metric("stillgate_connections_open") == 0.0).then_some(())
    });
}

/// At the limit a further connection is closed at once and counted.
#[test]
fn too_many_connections() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).limit("connections_max = 10").start();
    let address = gateway.plain_address();
    let mut kept: Vec<TcpStream> = (0..10).map(|_| http1::connect(address)).collect();
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for stream in &mut kept {
        assert_eq!(http1::exchange(stream, request).status, 200);
    }
    let mut further = http1::connect(address);
    assert_eq!(http1::exchange(&mut further, request).status, 0);
    assert!(gateway.metric("stillgate_connections_refused_total{reason=\"limit\"") >= 1.0);
    drop(kept);
    wait_for("room again", Duration::from_secs(5), || {
        (http1::plain(address, request).status == 200).then_some(())
    });
}

/// Sends `bytes`, then nothing; the server must close in time.
fn closed_in_time(address: SocketAddr, bytes: &[u8]) {
    let mut stream = http1::connect(address);
    let started = Instant::now();
    stream.write_all(bytes).expect("an open socket");
    let closed = http1::read_to_close(&mut stream, GONE_BY);
    assert!(closed.is_some(), "{bytes:?} is kept for more than {:?}", started.elapsed());
}

/// Sends `bytes`, then `piece` again and again; the server must close in time nevertheless.
fn trickled_is_closed(address: SocketAddr, bytes: &[u8], piece: &[u8]) {
    let mut stream = http1::connect(address);
    let started = Instant::now();
    stream.write_all(bytes).expect("an open socket");
    while stream.write_all(piece).is_ok() {
        let waited = http1::read_to_close(&mut stream, Duration::from_millis(300));
        if waited.is_some() {
            return;
        }
        assert!(started.elapsed() < GONE_BY, "kept open by {piece:?} for {:?}", started.elapsed());
    }
}
