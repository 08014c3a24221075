//! Answers pass byte for byte: every stream, cut in every way, over HTTP/1.1 and HTTP/2, to clients
//! that know nothing of providers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use harness::clients::{Target, curl, drive, run};
use harness::{Gateway, Provider, http1, streams};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const PATTERNS: &[&str] = &["whole", "events", "odd"];

#[test]
fn curl_http1() {
    curl_gets_every_stream("--http1.1", "1.1", "");
}

#[test]
fn curl_http2() {
    curl_gets_every_stream("--http2", "2", "");
}

/// Pacing changes when bytes come, and no byte.
const PACED: &str = "[action.none]\npace_tokens_per_second = 10000.0\n";

#[test]
fn curl_http1_paced() {
    curl_gets_every_stream("--http1.1", "1.1", PACED);
}

#[test]
fn curl_http2_paced() {
    curl_gets_every_stream("--http2", "2", PACED);
}

/// One process and one connection for all streams, so that an answer's end is told from the next
/// answer's start.
fn curl_gets_every_stream(version: &str, expected_version: &str, policy: &str) {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).policy(policy).start();
    let Some(mut command) = curl(&Target::from(&gateway)) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = String::new();
    let mut cases = Vec::new();
    for name in streams::all() {
        for pattern in PATTERNS {
            let file = folder.path().join(cases.len().to_string());
            let path = path_for(&name);
            if !cases.is_empty() {
                config.push_str("next\n");
            }
            config.push_str(&format!(
                "url = \"{}{path}\"\noutput = \"{}\"\nheader = \"x-provider: stream={name};chunks={pattern}\"\n\
                 header = \"content-type: application/json\"\ndata = \"{{}}\"\n{}\nsilent\nshow-error\nmax-time = 30\n\
                 write-out = \"%{{http_code}} %{{http_version}} %{{exitcode}} %{{num_connects}}\\n\"\n",
                gateway.url(),
                file.display(),
                version.trim_start_matches("--"),
            ));
            cases.push((name.clone(), *pattern, file));
        }
    }
    let output = run(command.args(["--config", "-"]), config.as_bytes());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}\n{stderr}", output.status);
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.len(), cases.len(), "{stderr}");
    for (line, (name, pattern, file)) in lines.iter().zip(&cases) {
        let expected = format!("200 {expected_version} 0 ");
        assert!(line.starts_with(&expected), "{name} {pattern}: {line}\n{stderr}");
        assert_same(name, pattern, file);
    }
    // Each answer's end is told by its framing, so the connection can be used for the next.
    let closed_after: Vec<&(String, &str, PathBuf)> = lines
        .iter()
        .zip(&cases)
        .skip(1)
        .zip(&cases)
        .filter(|((line, _), _)| !line.ends_with(" 0"))
        .map(|(_, before)| before)
        .collect();
    assert!(
        closed_after.is_empty(),
        "{} of {} answers closed the connection, the first ones: {:?}",
        closed_after.len(),
        cases.len(),
        &closed_after[..closed_after.len().min(6)]
    );
}

#[test]
fn httpx_http2_and_others() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let mut expected = HashMap::new();
    let mut scenarios = Vec::new();
    for (at, name) in streams::all().into_iter().enumerate() {
        // HTTP/2 for every stream and pattern; the other clients take one pattern in turn.
        let others = ["requests", "aiohttp", "curl_cffi:chrome", "httpx:h1"];
        let all = PATTERNS.iter().map(|pattern| ("httpx:h2", *pattern));
        let turn = (others[at % others.len()], PATTERNS[at % PATTERNS.len()]);
        for (client, pattern) in all.chain([turn]) {
            let label = format!("{client} {name} {pattern}");
            expected.insert(label.clone(), streams::read(&name).expect("a stream"));
            scenarios.push(json!({
                "name": label,
                "client": client,
                "method": "POST",
                "path": path_for(&name),
                "headers": [["x-provider", format!("stream={name};chunks={pattern}")],
                            ["content-type", "application/json"]],
                "body": "{}",
            }));
        }
    }
    let target = Target::from(&gateway);
    let Some(seen) = drive("http_clients.py", &target, &scenarios) else { return };
    for seen in &seen {
        assert_answer(seen, &expected[seen["name"].as_str().expect("a name")]);
    }
}

#[test]
fn node_fetch() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let names = streams::all();
    let scenarios: Vec<Value> = names
        .iter()
        .map(|name| {
            json!({
                "name": name,
                "method": "POST",
                "path": path_for(name),
                "headers": [["x-provider", format!("stream={name};chunks=odd")]],
                "body": "{}",
            })
        })
        .collect();
    let Some(seen) = drive("fetch.mjs", &Target::from(&gateway), &scenarios) else { return };
    for (seen, name) in seen.iter().zip(&names) {
        assert_answer(seen, &streams::read(name).expect("a stream"));
    }
}

/// An answer that the provider encoded reaches the client as it was encoded.
#[test]
fn an_encoded_answer_is_not_touched() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let request = |address| {
        http1::plain(
            address,
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\naccept-encoding: gzip\r\n\
              x-provider: stream=own/openai-chat/text.sse;gzip\r\ncontent-length: 2\r\n\
              connection: close\r\n\r\n{}",
        )
    };
    let (direct, through) = (request(provider.address()), request(gateway.plain_address()));
    assert_eq!(through.header("content-encoding"), Some("gzip"));
    assert_eq!(through.body, direct.body);
    assert!(through.complete);
}

/// Status and headers of the provider reach the client, and no header of the gateway's capture
/// reaches either.
#[test]
fn status_and_headers_pass() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    for status in [200, 201, 400, 401, 404, 429, 500, 503, 529] {
        let request = format!(
            "POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nx-custom: Kept As Is\r\n\
             x-provider: status={status};stream=own/anthropic/text.json\r\ncontent-length: 2\r\n\
             connection: close\r\n\r\n{{}}"
        );
        let response = http1::plain(gateway.plain_address(), request.as_bytes());
        assert_eq!(response.status, status);
        assert_eq!(Some(response.body.clone()), streams::read("own/anthropic/text.json"));
        assert_eq!(response.header("x-request-id"), Some("req_fake_provider"));
        assert!(response.headers.iter().all(|(name, _)| !name.contains("stillgate-capture")));
    }
    for request in provider.received() {
        assert_eq!(request.header("x-custom"), Some("Kept As Is"));
        assert!(request.headers.iter().all(|(name, _)| !name.contains("stillgate-capture")));
    }
}

/// Trailers of an HTTP/2 upstream reach an HTTP/2 client.
#[test]
fn trailers_pass() {
    let provider = Provider::start();
    let gateway =
        Gateway::builder().upstream("main", &[provider.address()], "protocol = \"h2\"").start();
    let tls = gateway.authority().tls_client(&["h2"]);
    let stream = http1::connect_tls(gateway.tls_address(), &tls);
    let mut connection = harness::http2::Connection::open(stream, &[]);
    let mut fields = harness::http2::get("/trailers");
    fields.push(("te".to_owned(), "trailers".to_owned()));
    fields.push(("x-provider".to_owned(), "size=100000;trailers".to_owned()));
    connection.send(&harness::http2::request(1, &fields));
    connection.settle(&[1]);
    let answer = connection.answer(1);
    assert_eq!((answer.status, answer.body.len(), answer.ended), (200, 100_000, true));
    assert!(answer.headers.contains(&("x-trailer".to_owned(), "end".to_owned())), "{answer:?}");
}

fn assert_same(name: &str, pattern: &str, file: &Path) {
    let expected = streams::read(name).expect("a stream");
    // curl makes no file for an empty body.
    let got = std::fs::read(file).unwrap_or_default();
    let differs = expected.iter().zip(&got).position(|(a, b)| a != b);
    assert!(
        got == expected,
        "{name} {pattern}: {} bytes for {}, first difference at {differs:?}",
        got.len(),
        expected.len()
    );
}

fn assert_answer(seen: &Value, expected: &[u8]) {
    assert_eq!(seen["status"], 200, "{seen}");
    assert_eq!(seen["length"], expected.len(), "{seen}");
    assert_eq!(seen["sha256"], hex::encode(Sha256::digest(expected)), "{seen}");
}

/// A path under which the gateway takes the stream for its own format and reads it.
fn path_for(name: &str) -> &'static str {
    match name.split('/').nth(1) {
        Some("openai-responses") => "/v1/responses",
        Some("openai-completions") => "/v1/completions",
        Some("anthropic") => "/v1/messages",
        Some("gemini") => "/v1beta/models/still-1:streamGenerateContent?alt=sse",
        Some("cohere") => "/v2/chat",
        Some("ollama") => "/api/chat",
        Some("bedrock") => "/model/still-1/converse-stream",
        _ => "/v1/chat/completions",
    }
}
