//! Request bodies pass byte for byte, at every size and in every framing; what is too large or not
//! understood is refused so that the client sees why.

use std::io::Write;
use std::path::{Path, PathBuf};

use harness::clients::{KEY, Target, curl, run};
use harness::{Gateway, Provider, http1};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MIB: usize = 1024 * 1024;
const SIZES: &[usize] =
    &[0, 1, 2, 1023, 16_384, 65_535, 65_536, 65_537, 300_000, MIB, MIB + 1, 5 * MIB, 32 * MIB];
/// Content-Length, chunked, HTTP/2. Each takes a limit of its own in the proxy.
const FRAMINGS: &[(&str, &[&str])] = &[
    ("h1-length", &["--http1.1", "-H", "Expect:"]),
    ("h1-chunked", &["--http1.1", "-H", "Expect:", "-H", "Transfer-Encoding: chunked"]),
    ("h2", &["--http2"]),
];

#[test]
fn every_size_in_every_framing() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let folder = tempfile::tempdir().expect("a folder");
    for size in SIZES {
        let body = random_bytes(*size);
        let file = write(folder.path(), &body);
        for (framing, arguments) in FRAMINGS {
            let Some(sent) = send(&gateway, arguments, &[], "/opaque", &file) else { return };
            assert_eq!(sent.status, 200, "{framing} {size}: {sent:?}");
            let echo: Value = serde_json::from_str(&sent.body).expect("an echo");
            assert_eq!(echo["length"], *size, "{framing}");
            assert_eq!(echo["sha256"], hex::encode(Sha256::digest(&body)), "{framing} {size}");
        }
    }
}

/// Prompts are read on their way and still arrive as they were written, spaces and order included.
#[test]
fn prompts_are_read_and_not_rewritten() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let folder = tempfile::tempdir().expect("a folder");
    for (run, words) in [10, 20_000, 1_000_000].into_iter().enumerate() {
        let prompt = "wörd ".repeat(words);
        let body = format!(
            "{{ \"temperature\" :0.50,\n\t\"unknown\": [1.0, 1e3, \"\\u00e9\"], \"model\":\"m\",\
             \"messages\" : [ {{\"content\":{}, \"role\" : \"user\"}} ] }}\n",
            json!(prompt.trim_end())
        );
        let file = write(folder.path(), body.as_bytes());
        for (framing, arguments) in FRAMINGS {
            let path = format!("/{run}/{framing}/v1/chat/completions");
            let json = ["-H", "content-type: application/json"];
            let Some(sent) = send(&gateway, arguments, &json, &path, &file) else { return };
            assert_eq!(sent.status, 200, "{framing} {words}: {sent:?}");
            let received = provider.request(&path).expect("the request");
            let sha256 = hex::encode(Sha256::digest(&body));
            assert_eq!(received.body_sha256, sha256, "{framing} {words}");
            let exchange = gateway.exchange(&path);
            let turn = &exchange["conversation"]["turns"][0];
            assert_eq!(turn["text"]["words"], words, "{framing}: {exchange}");
            assert_eq!(exchange["conversation"]["sampling"]["temperature"], 0.5);
        }
    }
}

/// Above the limit the client gets a 413 that it can read, whether it tells its length or not.
#[test]
fn too_large_is_a_413_that_curl_sees() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .limit("body_bytes_max = 1048576")
        .limit("decoded_body_bytes_max = 2097152")
        .start();
    let folder = tempfile::tempdir().expect("a folder");
    let with_expect: &[(&str, &[&str])] = &[("h1-expect", &["--http1.1"])];
    for size in [MIB + 1, 3 * MIB / 2, 8 * MIB] {
        let file = write(folder.path(), &random_bytes(size));
        for (framing, arguments) in FRAMINGS.iter().chain(with_expect) {
            let path = "/refused/v1/chat/completions";
            let Some(sent) = send(&gateway, arguments, &[], path, &file) else { return };
            assert_eq!(sent.status, 413, "{framing} {size}: {sent:?}");
            assert!(
                sent.body.contains("error"),
                "{framing} {size}: a 413 without a word: {sent:?}"
            );
            // What is not read need not be held, so it may be of any size.
            let Some(sent) = send(&gateway, arguments, &[], "/opaque", &file) else { return };
            assert_eq!(sent.status, 200, "{framing} {size}: {sent:?}");
        }
    }
    assert!(!provider.saw(b"/refused/"), "a part of it reached the upstream");
    // Exactly at the limit it passes.
    let file = write(folder.path(), &random_bytes(MIB));
    for (framing, arguments) in FRAMINGS {
        let path = "/at-the-limit/v1/chat/completions";
        let Some(sent) = send(&gateway, arguments, &[], path, &file) else { return };
        assert_eq!(sent.status, 200, "{framing}: {sent:?}");
    }
}

/// The refusal has the shape that the format's SDKs expect.
#[test]
fn the_413_speaks_the_providers_language() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).limit("body_bytes_max = 2000").start();
    let cases: &[(&str, &[&str])] = &[
        ("/v1/chat/completions", &["error", "message"]),
        ("/v1/responses", &["error", "message"]),
        ("/v1/messages", &["error", "message"]),
        ("/v1beta/models/m:generateContent", &["error", "status"]),
    ];
    for (path, keys) in cases {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
             content-length: 2001\r\nconnection: close\r\n\r\n{}",
            " ".repeat(2001)
        );
        let response = http1::plain(gateway.plain_address(), request.as_bytes());
        assert_eq!(response.status, 413, "{path}");
        let body = response.json();
        let found = keys.iter().fold(&body, |value, key| &value[*key]);
        assert!(found.is_string(), "{path}: {body}");
    }
}

#[test]
fn expect_100_continue() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let mut stream = http1::connect(gateway.plain_address());
    let head = "POST /expect HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\
                connection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).expect("an open socket");
    let mut interim = [0; 25];
    std::io::Read::read_exact(&mut stream, &mut interim).expect("an interim answer");
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    let response = http1::exchange(&mut stream, b"body");
    assert_eq!((response.status, response.complete), (200, true));
    assert_eq!(provider.request("/expect").expect("the request").body, b"body");
}

/// Encoded prompts are decoded for reading and passed on as they came.
#[test]
fn encoded_bodies() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .limit("body_bytes_max = 1000000")
        .limit("decoded_body_bytes_max = 2000000")
        .start();
    let text = "eight words stand in this encoded prompt now ".repeat(100);
    let body = json!({"model": "m", "messages": [{"role": "user", "content": text}]}).to_string();
    for coding in ["gzip", "zstd", "br", "identity"] {
        let encoded = encode(coding, body.as_bytes());
        let path = format!("/{coding}/v1/chat/completions");
        let response = post_encoded(&gateway, &path, coding, &encoded);
        assert_eq!(response.status, 200, "{coding}: {}", response.text());
        let received = provider.request(&path).expect("the request");
        assert_eq!(received.body, encoded, "{coding} is passed on as it came");
        assert_eq!(received.header("content-encoding"), Some(coding));
        let exchange = gateway.exchange(&path);
        let words = &exchange["conversation"]["turns"][0]["text"]["words"];
        assert_eq!(*words, 800, "{coding}: {exchange}");
    }
    for (coding, encoded, status) in [
        ("compress", body.clone().into_bytes(), 415),
        ("gzip, br", body.into_bytes(), 415),
        ("gzip", b"not gzip at all".to_vec(), 400),
        ("zstd", b"nor zstd".to_vec(), 400),
        // A kilobyte that unpacks to ten megabytes.
        ("gzip", encode("gzip", &vec![b' '; 10_000_000]), 413),
        ("br", encode("br", &vec![b' '; 10_000_000]), 413),
        ("zstd", encode("zstd", &vec![b' '; 10_000_000]), 413),
    ] {
        let path = "/refused/v1/chat/completions";
        let response = post_encoded(&gateway, path, coding, &encoded);
        assert_eq!(response.status, status, "{coding}: {}", response.text());
    }
    assert!(!provider.saw(b"/refused/"));
}

/// What curl saw.
#[derive(Debug)]
struct Sent {
    status: u16,
    body: String,
}

fn send(
    gateway: &Gateway,
    framing: &[&str],
    arguments: &[&str],
    path: &str,
    file: &Path,
) -> Option<Sent> {
    let mut command = curl(&Target::from(gateway))?;
    command.args(framing).args(arguments);
    if !arguments.contains(&"content-type: application/json") {
        command.args(["-H", "content-type: application/octet-stream"]);
    }
    command.args(["-H", &format!("authorization: Bearer {KEY}"), "-H", "x-provider: echo"]);
    command.args(["--write-out", "\n%{http_code}", "--data-binary"]);
    command.arg(format!("@{}", file.display()));
    command.arg(format!("{}{path}", gateway.url()));
    let output = run(&mut command, b"");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = stdout.rsplit_once('\n').expect("a status line");
    let status: u16 = status.parse().expect("a status");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let bytes = file.metadata().map_or(0, |file| file.len());
    let what = format!("{framing:?} {bytes} bytes to {path}: {status}");
    assert!(output.status.success(), "{what}, but curl says {stderr}");
    Some(Sent { status, body: body.to_owned() })
}

fn post_encoded(gateway: &Gateway, path: &str, coding: &str, body: &[u8]) -> http1::Response {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nx-provider: echo\r\n\
         content-encoding: {coding}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    http1::plain(gateway.plain_address(), &request)
}

fn encode(coding: &str, body: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(body).expect("writing to memory");
            encoder.finish().expect("writing to memory")
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            encoder.write_all(body).expect("writing to memory");
            encoder.into_inner()
        }
        "zstd" => zstd::encode_all(body, 3).expect("writing to memory"),
        _ => body.to_vec(),
    }
}

fn write(folder: &Path, body: &[u8]) -> PathBuf {
    let file = folder.join("body");
    std::fs::write(&file, body).expect("a written file");
    file
}

/// Bytes that no framing and no coding can guess; the same on every run.
fn random_bytes(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
