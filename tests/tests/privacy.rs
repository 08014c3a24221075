//! No key, no prompt and no completion is found in anything that the gateway writes or shows: its
//! log, the trace, the exchanges, the metrics.

use harness::{Gateway, Provider, RawUpstream, http1, http2};
use serde_json::json;

const KEY: &str = "sk-planted-Qm7xVt2LpZ9c";
const PROMPT: &str = "The heron of Aldermoor keeps a brass ledger";
const SYSTEM: &str = "You guard the cistern under Vellichor square";
const TOOL_RESULT: &str = "Nineteen lanterns answered from the quarry";
/// Stands in the project's own streams, so the provider sends it as an answer.
const COMPLETION: &str = "Patience is the only rare ingredient";
const SECRET_HEADER: &str = "cookie-planted-8Yh3Kd";

/// Paths, credentials and bodies of every format, all with the planted texts.
fn requests() -> Vec<(String, String, String)> {
    let bearer = format!("authorization: Bearer {KEY}");
    let messages = json!([
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": PROMPT},
        {"role": "tool", "tool_call_id": "c", "content": TOOL_RESULT},
    ]);
    let mut requests = Vec::new();
    for stream in [false, true] {
        let chat = json!({"model": "m", "messages": messages, "stream": stream, "user": PROMPT});
        let responses = json!({"model": "m", "instructions": SYSTEM, "stream": stream,
            "input": [{"role": "user", "content": [{"type": "input_text", "text": PROMPT}]},
                      {"type": "function_call_output", "call_id": "c", "output": TOOL_RESULT}]});
        let completions =
            json!({"model": "m", "prompt": PROMPT, "suffix": SYSTEM, "stream": stream});
        let anthropic = json!({"model": "m", "max_tokens": 9, "system": SYSTEM, "stream": stream,
            "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT},
                {"type": "tool_result", "tool_use_id": "c", "content": TOOL_RESULT}]}]});
        requests.push(("/v1/chat/completions".to_owned(), bearer.clone(), chat.to_string()));
        requests.push(("/v1/responses".to_owned(), bearer.clone(), responses.to_string()));
        requests.push(("/v1/completions".to_owned(), bearer.clone(), completions.to_string()));
        requests.push((
            "/v1/messages".to_owned(),
            format!("x-api-key: {KEY}"),
            anthropic.to_string(),
        ));
        let method = if stream { "streamGenerateContent?alt=sse&" } else { "generateContent?" };
        let gemini = json!({"systemInstruction": {"parts": [{"text": SYSTEM}]}, "contents": [
            {"role": "user", "parts": [{"text": PROMPT}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"r": TOOL_RESULT}}}]}]});
        let path = format!("/v1beta/models/m:{method}key={KEY}");
        requests.push((path, "x-other: 1".to_owned(), gemini.to_string()));
        let path = "/v1beta/models/m:generateContent".to_owned();
        requests.push((path, format!("x-goog-api-key: {KEY}"), gemini.to_string()));
    }
    // What is not read must not leak either: broken JSON, an unknown path, a query, an empty key.
    let broken = format!("{{\"model\": \"m\", \"messages\": [{{\"content\": \"{PROMPT}\", ");
    requests.push(("/v1/chat/completions".to_owned(), bearer.clone(), broken.clone()));
    requests.push(("/v1/messages".to_owned(), format!("x-api-key: {KEY}"), broken));
    requests.push(("/opaque".to_owned(), bearer, PROMPT.to_owned()));
    let query = format!("/search?q={}&api_key={KEY}&token={KEY}", PROMPT.replace(' ', "%20"));
    requests.push((query, format!("api-key: {KEY}"), String::new()));
    requests.push(("/basic".to_owned(), format!("authorization: Basic {KEY}"), PROMPT.to_owned()));
    requests.push(("/odd".to_owned(), format!("authorization: {KEY}"), PROMPT.to_owned()));
    requests
}

#[test]
fn planted_texts_are_found_nowhere() {
    let provider = Provider::start();
    let gateway = Gateway::builder()
        .upstream("main", &[provider.address()], "first_byte_timeout_seconds = 2")
        .upstream("down", &[([127, 0, 0, 1], harness::free_port()).into()], "")
        .policy("[action.none]\nwatermark = true\ncanary = true\nwithhold_reasoning = true\n")
        .limit("body_bytes_max = 100000")
        .log_level("debug")
        .record()
        .start();
    let mut sent = 0;
    for (path, credential, body) in requests() {
        for prefix in ["", "/down"] {
            let response = post(&gateway, &format!("{prefix}{path}"), &credential, &body);
            assert!(response.status >= 200, "{path}: no answer");
            // A refusal of the gateway's own repeats nothing of the request.
            if prefix == "/down" {
                assert!(!response.text().contains(PROMPT), "{}", response.text());
                assert!(!response.text().contains(KEY), "{}", response.text());
            }
            sent += 1;
        }
    }
    failures(&gateway);
    assert!(provider.saw(PROMPT.as_bytes()) && provider.saw(KEY.as_bytes()), "they do pass");
    harness::wait_for("all exchanges", std::time::Duration::from_secs(5), || {
        (gateway.exchanges(1000).len() >= sent).then_some(())
    });
    let exchanges = gateway.admin("/v1/exchanges?limit=1000").text();
    let metrics = gateway.admin("/metrics").text();
    let missing = gateway.admin(&format!("/{KEY}")).text();
    let accounts: std::collections::BTreeSet<String> = gateway
        .exchanges(1000)
        .iter()
        .filter_map(|exchange| exchange["account"].as_str().map(str::to_owned))
        .collect();
    let explained: String = accounts
        .iter()
        .map(|account| gateway.admin(&format!("/v1/accounts/{account}")).text())
        .chain(["/v1/review", "/v1/clusters", "/v1/marks"].map(|path| gateway.admin(path).text()))
        .collect();
    assert!(explained.contains("findings") && explained.contains("first_epoch"), "{explained}");
    gateway.signal(rustix::process::Signal::TERM);
    let mut gateway = gateway;
    let ended = gateway.wait(std::time::Duration::from_secs(40));
    assert!(ended.is_some(), "it still runs");
    let trace = std::fs::read_to_string(gateway.folder().join("trace.jsonl")).expect("a trace");
    assert!(trace.lines().count() > sent, "one line an exchange, and the accounts: {trace}");
    let stderr = gateway.stderr();
    assert!(!stderr.is_empty(), "a debug log says something");
    // What is stored, byte for byte, journals too: they hold what has not been moved yet.
    let mut stored = String::new();
    let mut files = 0;
    for file in std::fs::read_dir(gateway.data()).expect("a data directory") {
        let bytes = std::fs::read(file.expect("a file").path()).expect("its bytes");
        stored += &String::from_utf8_lossy(&bytes);
        files += 1;
    }
    assert!(files >= 4, "two databases with their journals: {files}");
    let account = accounts.iter().next().expect("an account");
    assert!(stored.contains(account), "there is something of the accounts in it");
    let audit: String = gateway.audit().iter().map(|entry| entry.to_string() + "\n").collect();
    assert!(audit.contains("started"), "{audit}");
    let places = [
        ("the data directory", &stored),
        ("the audit", &audit),
        ("the log", &stderr),
        ("the trace", &trace),
        ("/v1/exchanges", &exchanges),
        ("/metrics", &metrics),
        ("accounts, review, clusters and marks", &explained),
        ("a 404 of the admin endpoint", &missing),
    ];
    let mut found = Vec::new();
    for (place, text) in places {
        for planted in [KEY, PROMPT, SYSTEM, TOOL_RESULT, COMPLETION, SECRET_HEADER] {
            for form in forms(planted) {
                if let Some(at) = text.find(&form) {
                    let line = text[..at].rsplit('\n').next().unwrap_or_default();
                    found.push(format!("{place} has `{form}` after: {line}"));
                }
            }
        }
    }
    assert!(found.is_empty(), "{} leaks:\n{}", found.len(), found.join("\n"));
}

/// What an upstream sends where HTTP wants something else may be a piece of an answer: an error's
/// text quotes it, so that text is not for the log.
#[test]
fn what_an_upstream_sends_amiss_is_not_quoted() {
    // Where the head is good, the answer is bad behind it.
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let cases = [
        format!("{COMPLETION}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\n{COMPLETION}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\n{COMPLETION}: 1\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\nX-A: {COMPLETION}\r\nSet Cookie: {SECRET_HEADER}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\nX-A: \0{COMPLETION}\r\n\r\n"),
        format!("HTTP/1.1 2x0 {COMPLETION}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\nContent-Length: {COMPLETION}\r\n\r\n"),
        format!("HTTP/1.1 101 {COMPLETION}\r\nUpgrade: {COMPLETION}\r\n\r\n{COMPLETION}"),
        format!("{chunked}{COMPLETION}\r\n{COMPLETION}\r\n0\r\n\r\n"),
        format!("{chunked}3\r\nabc{COMPLETION}\r\n0\r\n\r\n"),
        format!("{chunked}3\r\nabc\r\n0\r\n{COMPLETION}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc{COMPLETION}"),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{COMPLETION}"),
    ];
    for level in ["info", "debug"] {
        let sent = cases.clone();
        let upstream = RawUpstream::start(move |mut wire| {
            let Some(head) = wire.head() else { return };
            let number = head.split(['/', ' ', '?']).find_map(|part| part.parse::<usize>().ok());
            wire.send(sent[number.expect("a case's number")].as_bytes());
        });
        let gateway = Gateway::in_front_of(upstream.address()).log_level(level).start();
        let tls = gateway.authority().tls_client(&["h2"]);
        for number in 0..cases.len() {
            for prefix in ["", "/v1/chat/completions?n="] {
                let path = format!("{prefix}/{number}");
                let _ = post(&gateway, &path, &format!("x-api-key: {KEY}"), "{}");
                let stream = http1::connect_tls(gateway.tls_address(), &tls);
                let mut connection = http2::Connection::open(stream, &[]);
                connection.send(&http2::request(1, &http2::get(&path)));
                connection.settle(&[1]);
            }
        }
        let attempts = gateway.metric("stillgate_upstream_attempts_total");
        assert!(attempts >= 4.0 * cases.len() as f64, "{attempts} attempts reached the upstream");
        gateway.signal(rustix::process::Signal::INT);
        let mut gateway = gateway;
        assert!(gateway.wait(std::time::Duration::from_secs(5)).is_some(), "it still runs");
        let stderr = gateway.stderr();
        for planted in [COMPLETION, SECRET_HEADER] {
            for form in forms(planted) {
                let line = stderr.lines().find(|line| line.contains(&form));
                assert_eq!(line, None, "at level {level}");
            }
        }
        assert!(stderr.contains("attempt failed"), "it does say that they failed: {stderr}");
    }
}

/// Requests that the gateway refuses, or cannot finish, each with a planted key and prompt.
fn failures(gateway: &Gateway) {
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    let large = format!("{PROMPT} ").repeat(5000);
    let refused = [
        post_head("/v1/chat/completions", "content-length: 5\r\ncontent-length: 9"),
        post_head("/v1/chat/completions", &format!("x y: {SECRET_HEADER}")),
        post_head("/v1/chat/completions", "content-encoding: gzip\r\ncontent-length: 43") + PROMPT,
        post_head("/v1/chat/completions", &format!("content-length: {}", large.len())) + &large,
        post_head("/v1/chat/completions", "transfer-encoding: chunked") + PROMPT + "\r\n",
        format!("{PROMPT} {KEY}\r\n\r\n"),
    ];
    for request in refused {
        let response = http1::tls(gateway.tls_address(), &tls, request.as_bytes());
        assert!(!response.text().contains(PROMPT), "{}", response.text());
        assert!(!response.text().contains(KEY), "{}", response.text());
    }
}

fn post_head(path: &str, fields: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n\
         cookie: s={SECRET_HEADER}\r\n{fields}\r\nconnection: close\r\n\r\n"
    )
}

fn post(gateway: &Gateway, path: &str, credential: &str, body: &str) -> http1::Response {
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\n{credential}\r\ncookie: s={SECRET_HEADER}\r\n\
         x-custom: {SECRET_HEADER}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    http1::plain(gateway.plain_address(), request.as_bytes())
}

/// A text as it may show up: plain, percent-encoded, its first words, its bytes in hex.
fn forms(planted: &str) -> Vec<String> {
    let mut forms = vec![
        planted.to_owned(),
        hex::encode(planted),
        planted.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", "),
    ];
    if planted.contains(' ') {
        forms.push(planted.replace(' ', "%20"));
        forms.push(planted.replace(' ', "+"));
        forms.push(planted.split(' ').take(4).collect::<Vec<_>>().join(" "));
    }
    forms
}
