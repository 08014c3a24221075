//! Upstreams that are down, slow, or break off: another member takes over where nothing was sent
//! twice, and what cannot be saved reaches the client as the error it is.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use harness::clients::{Target, curl, run};
use harness::{Gateway, Provider, free_port, http1, http2, streams};
use http::Version;

#[test]
fn one_member_down() {
    let provider = Provider::start();
    let down = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let gateway = Gateway::builder()
        .upstream("main", &[down, provider.address()], "retries = 1\nconnect_timeout_seconds = 1.0")
        .start();
    for n in 0..20 {
        let response = chat(&gateway, &format!("/{n}"), "stream=own/openai-chat/text.sse");
        assert_eq!(response.status, 200, "request {n}: {}", response.text());
        assert!(response.complete);
    }
    assert_eq!(provider.received().len(), 20, "no request was sent twice or lost");
    assert!(gateway.metric("stillgate_retries_total") >= 5.0);
    let failed = "stillgate_upstream_attempts_total{outcome=\"connect_failed\"";
    assert!(gateway.metric(failed) >= 5.0);
}

#[test]
fn all_members_down() {
    let down = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let gateway = Gateway::builder().upstream("main", &[down], "retries = 1").start();
    let response = chat(&gateway, "", "echo");
    assert!(matches!(response.status, 502 | 503), "{}", response.status);
    assert!(response.json()["error"]["message"].is_string(), "{}", response.text());
    assert!(response.complete);
}

/// A large prompt is sent again in full when its first member is down.
#[test]
fn a_retry_sends_the_whole_body() {
    let provider = Provider::start();
    let down = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let gateway = Gateway::builder()
        .upstream("main", &[down, provider.address()], "retries = 1\nconnect_timeout_seconds = 1.0")
        .start();
    let body = vec![b'x'; 3_000_000];
    for n in 0..4 {
        let mut request = format!(
            "POST /large/{n} HTTP/1.1\r\nhost: a\r\nx-provider: echo\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(&body);
        let response = http1::plain(gateway.plain_address(), &request);
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.json()["length"], body.len());
    }
}

/// A member that goes away between two requests: the idle connection to it is dead when it is
/// used, and the request goes to the other member or to a fresh connection.
#[test]
fn a_member_that_restarts() {
    let port = free_port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let first = Provider::start_on(address);
    let gateway = Gateway::builder().upstream("main", &[address], "retries = 1").start();
    assert_eq!(chat(&gateway, "/before", "echo").status, 200);
    drop(first);
    std::thread::sleep(Duration::from_millis(200));
    let second = Provider::start_on(address);
    for n in 0..5 {
        let response = chat(&gateway, &format!("/after/{n}"), "echo");
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert_eq!(second.received().len(), 5);
}

/// A member that fails its health check gets no requests, and gets them again when it is well.
#[test]
fn health_checks() {
    let port = free_port();
    let sick = SocketAddr::from(([127, 0, 0, 1], port));
    let well = Provider::start();
    let settings = "retries = 0\nhealth = { path = \"/health\", interval_seconds = 0.2 }";
    let gateway = Gateway::builder().upstream("main", &[sick, well.address()], settings).start();
    healthy_members(&gateway, 1.0);
    for n in 0..10 {
        assert_eq!(chat(&gateway, &format!("/{n}"), "echo").status, 200, "without a retry");
    }
    let recovered = Provider::start_on(sick);
    healthy_members(&gateway, 2.0);
    for n in 0..10 {
        assert_eq!(chat(&gateway, &format!("/again/{n}"), "echo").status, 200);
    }
    let got = recovered.received().iter().filter(|r| r.path.starts_with("/again/")).count();
    assert!((1..10).contains(&got), "both members share the requests: {got} of 10");
}

/// The provider's connection breaks in the middle of a stream: the client must not take what it
/// has for the whole answer.
#[test]
fn a_cut_stream_is_an_error_to_the_client() {
    const CUT: &[(&str, &str)] = &[
        ("/v1/chat/completions", "stream=own/openai-chat/text.sse;chunks=events;cut=1500"),
        ("/v1/messages", "stream=own/anthropic/text.sse;chunks=events;cut=1500"),
        ("/v1/responses", "stream=own/openai-responses/text.sse;cut=5000"),
        ("/opaque", "size=100000;cut=70000"),
        ("/v1/chat/completions", "stream=own/openai-chat/text.json;cut=300"),
    ];
    for protocol in ["h1", "h2"] {
        let provider = Provider::start();
        let settings = format!("protocol = \"{protocol}\"");
        let gateway = Gateway::builder().upstream("main", &[provider.address()], &settings).start();
        for (n, (path, directive)) in CUT.iter().enumerate() {
            for version in ["--http1.1", "--http2"] {
                let Some(mut command) = curl(&Target::from(&gateway)) else { return };
                let url = format!("{}/{n}{version}{path}", gateway.url());
                command.args([version, "-d", "{}", "-H", "content-type: application/json"]);
                command.args(["-H", &format!("x-provider: {directive}"), &url]);
                let output = run(&mut command, b"");
                // 18: a part of the file; 92: the HTTP/2 stream was reset; 52, 56: nothing or an
                // abrupt end.
                let code = output.status.code().unwrap_or(-1);
                let stderr = String::from_utf8_lossy(&output.stderr);
                assert!(
                    matches!(code, 18 | 52 | 56 | 92),
                    "{protocol} {version} {directive}: curl ended with {code} {stderr}"
                );
                let exchange = gateway.exchange(&format!("/{n}{version}"));
                assert_eq!(exchange["answer"]["complete"], false, "{exchange}");
            }
        }
    }
}

#[test]
fn a_provider_that_does_not_answer_is_a_504() {
    let provider = Provider::start();
    let gateway = Gateway::builder()
        .upstream("main", &[provider.address()], "first_byte_timeout_seconds = 0.5\nretries = 1")
        .start();
    let started = Instant::now();
    let response = chat(&gateway, "", "header_delay=20000;echo");
    assert_eq!(response.status, 504, "{}", response.text());
    assert!(response.json()["error"]["message"].is_string());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let timeouts = "stillgate_upstream_attempts_total{outcome=\"timeout\"";
    assert_eq!(gateway.metric(timeouts), 1.0, "a request that may be running is not sent again");
    // A slow answer within the time is no matter.
    assert_eq!(chat(&gateway, "", "header_delay=200;echo").status, 200);
}

#[test]
fn a_stream_that_stalls_is_ended() {
    let provider = Provider::start();
    let gateway = Gateway::builder()
        .upstream("main", &[provider.address()], "idle_timeout_seconds = 0.5")
        .start();
    let started = Instant::now();
    let response = chat(&gateway, "", "stream=own/openai-chat/text.sse;stall=1500");
    assert_eq!(response.status, 200);
    assert!(!response.complete, "a stalled stream must not end properly");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // A stream whose pauses are shorter goes through to its end.
    let slow = chat(&gateway, "", "stream=own/openai-chat/tools.sse;chunks=paced:100");
    assert_eq!(Some(slow.body), streams::read("own/openai-chat/tools.sse"));
}

/// Events leave as they come: none waits for the next one.
#[test]
fn events_are_not_held_back() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    let mut stream = http1::connect_tls(gateway.tls_address(), &tls);
    let request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\
        x-provider: stream=own/openai-chat/tools.sse;chunks=paced:150\r\n\r\n{}";
    stream.write_all(request).expect("an open connection");
    let mut arrivals = Vec::new();
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !seen.windows(6).any(|w| w == b"[DONE]") {
        let length = stream.read(&mut buffer).expect("more of the stream");
        assert!(length > 0, "the stream ended early");
        let events = buffer[..length].windows(6).filter(|w| *w == b"data: ").count();
        arrivals.extend(std::iter::repeat_n(Instant::now(), events));
        seen.extend_from_slice(&buffer[..length]);
    }
    assert!(arrivals.len() >= 8, "{} events", arrivals.len());
    let spread = arrivals.last().expect("a last").duration_since(arrivals[0]);
    let paused = u32::try_from(arrivals.len() - 1).expect("few events") * 150;
    assert!(spread > Duration::from_millis(u64::from(paused) * 6 / 10), "{spread:?}");
    let apart = arrivals.windows(2).filter(|w| w[1] - w[0] > Duration::from_millis(75)).count();
    assert!(apart * 10 >= (arrivals.len() - 1) * 8, "{apart} of {} came apart", arrivals.len());
}

/// HTTP/2 without TLS behind, both versions in front.
#[test]
fn an_h2c_upstream() {
    let provider = Provider::start();
    let gateway =
        Gateway::builder().upstream("main", &[provider.address()], "protocol = \"h2\"").start();
    let response = chat(&gateway, "/one", "stream=own/anthropic/text.sse;chunks=odd");
    assert_eq!(Some(response.body), streams::read("own/anthropic/text.sse"));
    let tls = gateway.authority().tls_client(&["h2"]);
    let mut connection =
        http2::Connection::open(http1::connect_tls(gateway.tls_address(), &tls), &[]);
    let ids: Vec<u32> = (0..40).map(|n| 1 + 2 * n).collect();
    let mut bytes = Vec::new();
    for id in &ids {
        let mut fields = http2::get("/two");
        let directive = "stream=own/gemini/text.sse;chunks=events";
        fields.push(("x-provider".to_owned(), directive.to_owned()));
        bytes.extend(http2::request(*id, &fields));
    }
    connection.send(&bytes);
    connection.settle(&ids);
    for id in ids {
        let answer = connection.answer(id);
        assert_eq!((answer.status, answer.ended), (200, true), "{answer:?}");
        assert_eq!(Some(answer.body), streams::read("own/gemini/text.sse"));
    }
    assert!(provider.received().iter().all(|request| request.version == Version::HTTP_2));
}

/// Routes by path: the longer prefix wins, whole segments only.
#[test]
fn routes() {
    let (main, other) = (Provider::start(), Provider::start());
    let gateway = Gateway::builder()
        .upstream("main", &[main.address()], "")
        .upstream("other", &[other.address()], "")
        .start();
    for path in ["/v1/models", "/otherwise", "/"] {
        assert_eq!(chat(&gateway, path, "echo").status, 200);
    }
    for path in ["/other", "/other/v1/models", "/other?x=1"] {
        assert_eq!(get(&gateway, path).status, 200);
    }
    assert_eq!(other.received().len(), 3, "{:?}", other.received());
    assert_eq!(main.received().len(), 3);
}

fn healthy_members(gateway: &Gateway, count: f64) {
    harness::wait_for(&format!("{count} healthy members"), Duration::from_secs(10), || {
        (gateway.metric("stillgate_upstream_members_healthy") == count).then_some(())
    });
}

fn get(gateway: &Gateway, path: &str) -> http1::Response {
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    http1::plain(gateway.plain_address(), request.as_bytes())
}

fn chat(gateway: &Gateway, prefix: &str, directive: &str) -> http1::Response {
    let request = format!(
        "POST {prefix}/v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-provider: {directive}\r\n\
         content-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}"
    );
    http1::plain(gateway.plain_address(), request.as_bytes())
}
