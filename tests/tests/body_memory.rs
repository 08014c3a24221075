//! Request bodies are held in bounded memory: what they are decoded to counts, and they are given
//! up when nobody can need them any more.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use harness::{Gateway, RawUpstream, http1, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(5);

/// Room for the largest body, what it is decoded to, and its texts: 900 kB.
fn gateway(upstream: SocketAddr) -> Gateway {
    Gateway::in_front_of(upstream)
        .limit("body_bytes_max = 300000")
        .limit("decoded_body_bytes_max = 300000")
        .limit("bodies_bytes_max = 900000")
        .start()
}

/// An upstream that begins an answer from stage 1 on and ends it at stage 2.
fn upstream(stage: &Arc<AtomicUsize>) -> RawUpstream {
    let stage = stage.clone();
    RawUpstream::start(move |mut wire| {
        let Some(head) = wire.head() else { return };
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        wire.body(length.expect("a length").parse().expect("a number"));
        for (from, piece) in
            [(1, &b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok"[..]), (2, b"ok")]
        {
            wait_for("the next stage", PATIENCE * 2, || {
                (stage.load(Ordering::Relaxed) >= from).then_some(())
            });
            wire.send(piece);
        }
    })
}

fn post(content: &Value, gzip: bool) -> Vec<u8> {
    let request = json!({"model": "m", "messages": [{"role": "user", "content": content}]});
    let mut body = request.to_string().into_bytes();
    let mut field = "";
    if gzip {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&body).expect("memory");
        body = encoder.finish().expect("memory");
        field = "Content-Encoding: gzip\r\n";
    }
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
         {field}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

fn send(gateway: &Gateway, request: &[u8]) -> TcpStream {
    let mut stream = http1::connect(gateway.plain_address());
    stream.write_all(request).expect("an open connection");
    stream
}

/// Status of an answer that has begun.
fn begun(stream: &mut TcpStream) -> String {
    let mut line = [0; 12];
    stream.read_exact(&mut line).expect("an answer that has begun");
    String::from_utf8_lossy(&line[9..]).into_owned()
}

/// A few hundred bytes on the wire may stand for hundreds of kilobytes here, and the texts stay
/// for as long as the answer takes.
#[test]
fn what_a_body_is_decoded_to_counts() {
    let stage = Arc::new(AtomicUsize::new(1));
    let upstream = upstream(&stage);
    let gateway = gateway(upstream.address());
    let request = post(&"a".repeat(250_000).into(), true);
    assert!(request.len() < 2000, "{} bytes", request.len());
    // The third would be 500 kB more at first, beside the texts of two.
    let mut streams = [(); 3].map(|()| {
        let mut stream = send(&gateway, &request);
        (begun(&mut stream), stream)
    });
    let statuses = streams.each_ref().map(|(status, _)| status.as_str());
    assert_eq!(statuses, ["200", "200", "503"]);
    stage.store(2, Ordering::Relaxed);
    for (_, stream) in &mut streams[..2] {
        assert!(http1::read_to_close(stream, Duration::from_millis(200)).is_none());
    }
    wait_for("the end of both", PATIENCE, || {
        (gateway.metric("stillgate_exchanges_in_flight") == 0.0).then_some(())
    });
    assert_eq!(begun(&mut send(&gateway, &request)), "200", "the room was not given back");
}

/// Three that do not fit together: the third is served while the answers of two still come, but
/// not while they may have to be sent again.
#[test]
fn a_body_is_held_until_its_answer_begins() {
    let stage = Arc::new(AtomicUsize::new(0));
    let upstream = upstream(&stage);
    let gateway = gateway(upstream.address());
    // An attachment, of which no text is read.
    let image = format!("data:image/png;base64,{}", "A".repeat(250_000));
    let request = post(&json!([{"type": "image_url", "image_url": {"url": image}}]), false);
    let mut streams: Vec<TcpStream> = Vec::new();
    for sent in 1..=2 {
        streams.push(send(&gateway, &request));
        wait_for("a body", PATIENCE, || {
            let bytes = gateway.metric("stillgate_body_bytes_total{direction=\"in\"");
            (bytes >= f64::from(sent) * 250_000.0).then_some(())
        });
    }
    assert_eq!(begun(&mut send(&gateway, &request)), "503");
    stage.store(1, Ordering::Relaxed);
    for stream in &mut streams {
        assert_eq!(begun(stream), "200");
    }
    let mut third = send(&gateway, &request);
    assert_eq!(begun(&mut third), "200");
    assert_eq!(gateway.metric("stillgate_exchanges_in_flight"), 3.0);
    stage.store(2, Ordering::Relaxed);
}
