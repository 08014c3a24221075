//! A ClientHello in pieces: over two TLS records at every offset, and over TCP segments of one byte.
//!
//! Both are legal (RFC 8446, section 5.1) and cost nothing to a client that wants no fingerprint
//! taken. The handshake must complete and the fingerprint must be the same.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use harness::{Gateway, Provider, hello, http1, wait_for};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;

#[test]
fn over_two_records_at_every_offset() {
    let provider = Provider::start();
    let gateway = many_kept(&provider);
    let config = small_hello(&gateway);
    let payload = hello_of(&config).1.len() - 5;
    assert!((150..600).contains(&payload), "the small hello has {payload} bytes");
    let mut sent = HashMap::new();
    for at in 1..payload {
        let path = format!("/split/{at}/");
        let (ja3, md5) = request(&gateway, &config, &path, |stream, record| {
            stream.write_all(&hello::split_record(record, at)).expect("an open socket");
        });
        sent.insert(path, (ja3, md5));
    }
    let exchanges = by_path(&gateway, payload - 1);
    let whole_ja4 = whole_ja4(&gateway, &config);
    for (path, (ja3, md5)) in &sent {
        let tls = &exchanges.get(path).unwrap_or_else(|| panic!("no exchange {path}"))["tls"];
        assert_eq!(tls["ja3"], *ja3, "{path}");
        assert_eq!(tls["ja3_md5"], *md5, "{path}");
        assert_eq!(tls["ja4"], whole_ja4, "{path}");
        assert_eq!(tls["hello_records"], 2, "{path}: {tls}");
    }
    assert_eq!(gateway.metric("stillgate_client_hellos_total{outcome=\"missing\""), 0.0);
}

/// The usual hello of today, with a post-quantum share, is longer than a packet.
#[test]
fn a_long_hello_over_many_records() {
    let provider = Provider::start();
    let gateway = many_kept(&provider);
    let config = gateway.authority().tls_client(&["http/1.1"]);
    let whole_ja4 = whole_ja4(&gateway, &config);
    for piece in [1, 7, 100, 1000] {
        let path = format!("/many/{piece}/");
        let (ja3, _) = request(&gateway, &config, &path, |stream, record| {
            let mut rest = record.to_vec();
            let mut records = Vec::new();
            while rest.len() - 5 > piece {
                let split = hello::split_record(&rest, piece);
                records.extend_from_slice(&split[..5 + piece]);
                rest = split[5 + piece..].to_vec();
            }
            records.extend(rest);
            stream.write_all(&records).expect("an open socket");
        });
        let tls = &gateway.exchange(&path)["tls"];
        assert_eq!(tls["ja3"], ja3, "{path}");
        assert_eq!(tls["ja4"], whole_ja4, "{path}");
        assert_eq!(tls["post_quantum"], true, "{path}");
        let length = tls["hello_bytes"].as_u64().expect("a length");
        assert!(length > 1000, "{path}: {tls}");
        assert_eq!(tls["hello_records"], length.div_ceil(piece as u64), "{path}: {tls}");
    }
}

#[test]
fn over_segments_of_one_byte() {
    let provider = Provider::start();
    let gateway = many_kept(&provider);
    let config = small_hello(&gateway);
    let whole_ja4 = whole_ja4(&gateway, &config);
    for (path, split) in [("/bytes/whole/", None), ("/bytes/split/", Some(100))] {
        let (ja3, md5) = request(&gateway, &config, path, |stream, record| {
            let bytes = split.map_or_else(|| record.to_vec(), |at| hello::split_record(record, at));
            for byte in bytes {
                stream.write_all(&[byte]).expect("an open socket");
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let tls = &gateway.exchange(path)["tls"];
        assert_eq!(
            (&tls["ja3"], &tls["ja3_md5"]),
            (&Value::from(ja3), &Value::from(md5)),
            "{path}"
        );
        assert_eq!(tls["ja4"], whole_ja4, "{path}");
        assert!(tls["hello_reads"].as_u64().expect("a number") > 1, "{path}: {tls}");
    }
}

/// Something else than TLS on the TLS port is closed, counted, and harms nobody.
#[test]
fn what_is_no_hello_is_closed() {
    let provider = Provider::start();
    let gateway = many_kept(&provider);
    let cases: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &[0x80, 0x2e, 0x01, 0x00, 0x02, 0x00, 0x15, 0x00, 0x00, 0x00, 0x10],
        &[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff],
        &[22, 3, 1, 0xff, 0xff, 1, 0, 0, 1],
    ];
    for bytes in cases {
        let before = gateway.metric("stillgate_tls_handshakes_total{outcome=\"ok\"");
        let mut stream = http1::connect(gateway.tls_address());
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let answer = http1::read_to_close(&mut stream, Duration::from_secs(5));
        let answer = answer.unwrap_or_else(|| panic!("{bytes:?} is kept open"));
        assert!(!answer.starts_with(b"HTTP/"), "{bytes:?} was answered in the clear");
        assert_eq!(gateway.metric("stillgate_tls_handshakes_total{outcome=\"ok\""), before);
    }
    // The socket is closed before the failure is counted.
    wait_for("a count of every failure", Duration::from_secs(5), || {
        let bad = ["failed", "not_tls"].map(|outcome| {
            gateway.metric(&format!("stillgate_tls_handshakes_total{{outcome=\"{outcome}\""))
        });
        (bad.iter().sum::<f64>() >= cases.len() as f64).then_some(())
    });
    assert!(provider.received().is_empty());
}

fn many_kept(provider: &Provider) -> Gateway {
    Gateway::in_front_of(provider.address()).limit("exchanges_kept = 2048").start()
}

/// A client without the post-quantum share, so that every offset can be tried.
fn small_hello(gateway: &Gateway) -> Arc<ClientConfig> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    gateway.authority().tls_client_with(Arc::new(provider), &["http/1.1"])
}

fn hello_of(config: &Arc<ClientConfig>) -> (ClientConnection, Vec<u8>) {
    let name = ServerName::try_from("localhost").expect("a name");
    let mut connection = ClientConnection::new(config.clone(), name).expect("a connection");
    let record = hello::take_record(&mut connection);
    (connection, record)
}

/// Sends the hello as `send` likes, completes the handshake, makes one request, and gives the JA3
/// of what was sent.
fn request(
    gateway: &Gateway,
    config: &Arc<ClientConfig>,
    path: &str,
    send: impl FnOnce(&mut TcpStream, &[u8]),
) -> (String, String) {
    let (connection, record) = hello_of(config);
    let mut stream = http1::connect(gateway.tls_address());
    send(&mut stream, &record);
    let mut tls = StreamOwned::new(connection, stream);
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let response = http1::exchange(&mut tls, request.as_bytes());
    assert_eq!(response.status, 200, "{path}");
    let _ = tls.read(&mut [0]);
    hello::ja3(&record)
}

/// The JA4 of the same client when it sends its hello in one piece. JA4 sorts the extensions that
/// rustls shuffles, so it is the same on each connection.
fn whole_ja4(gateway: &Gateway, config: &Arc<ClientConfig>) -> Value {
    let path = "/whole/";
    let (ja3, _) = request(gateway, config, path, |stream, record| {
        stream.write_all(record).expect("an open socket");
    });
    let tls = gateway.exchange(path)["tls"].clone();
    assert_eq!(tls["ja3"], ja3);
    assert_eq!(tls["hello_records"], 1, "{tls}");
    let ja4 = tls["ja4"].as_str().expect("a JA4");
    assert!(ja4.starts_with("t13d") && ja4.len() == 36, "{ja4}");
    tls["ja4"].clone()
}

/// All exchanges by their path, once there are `count` of them. The endpoint gives a thousand at
/// most, which is more than a small hello has offsets.
fn by_path(gateway: &Gateway, count: usize) -> HashMap<String, Value> {
    wait_for("all exchanges", Duration::from_secs(5), || {
        let exchanges = gateway.exchanges(1000);
        (exchanges.len() >= count).then(|| {
            let path = |e: &Value| e["http"]["path"].as_str().unwrap_or_default().to_owned();
            exchanges.into_iter().map(|e| (path(&e), e)).collect()
        })
    })
}
