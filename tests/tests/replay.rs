//! `stillgate replay`: recorded traffic in, verdicts out; the same bytes for the same trace, whatever
//! it is packed in.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// 2026-10-05 00:00:00 UTC.
const BEGIN_S: f64 = 1_791_158_400.0;
const CAMPAIGN: usize = 16;
const CUSTOMERS: usize = 60;

#[test]
fn a_campaign_is_told_from_customers() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace.jsonl");
    fs::write(&trace, traffic()).expect("a written trace");
    let verdicts = folder.path().join("verdicts.jsonl");
    let output = replay(&[trace.as_os_str().to_str().unwrap(), "--out", path(&verdicts)]);
    let summary = said(&output);
    assert!(summary.contains("exchanges of 76 accounts judged"), "{summary}");
    assert!(summary.contains("1 clusters of tied accounts"), "{summary}");
    let verdicts = read(&verdicts);
    assert_eq!(verdicts.len(), CAMPAIGN + CUSTOMERS);
    for verdict in &verdicts {
        let harvests = verdict["account"].as_str().unwrap().starts_with("acct-0");
        let tier = verdict["tier"].as_str().unwrap();
        if harvests {
            assert!(["medium", "high", "critical"].contains(&tier), "{verdict}");
            assert!(verdict["first"]["medium"]["request"].as_u64().unwrap() <= 12, "{verdict}");
        } else {
            assert_eq!((tier, &verdict["cluster"]), ("none", &Value::Null), "{verdict}");
        }
    }
}

#[test]
fn the_same_trace_gives_the_same_bytes_however_it_is_packed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (plain, out) = (folder.path().join("t.jsonl"), folder.path().join("v.jsonl"));
    fs::write(&plain, traffic()).expect("a written trace");
    let mut packed = vec![plain.clone()];
    for tool in ["gzip", "zstd"] {
        let done = Command::new(tool).arg("-kq").arg(&plain).status();
        if done.is_ok_and(|status| status.success()) {
            let ending = if tool == "gzip" { "jsonl.gz" } else { "jsonl.zst" };
            packed.push(plain.with_extension(ending));
        }
    }
    packed.push(plain.clone());
    let mut expected: Option<Vec<u8>> = None;
    for trace in &packed {
        said(&replay(&[path(trace), "--out", path(&out)]));
        let bytes = fs::read(&out).expect("verdicts");
        assert_eq!(*expected.get_or_insert_with(|| bytes.clone()), bytes, "{}", trace.display());
    }
    // From a pipe to a pipe, with the summary out of the way.
    let output = binary()
        .args(["replay", "-", "--out", "-"])
        .stdin(fs::File::open(&plain).expect("the trace"))
        .output()
        .expect("it runs");
    assert_eq!(Some(output.stdout), expected);
}

#[test]
fn an_account_is_explained_without_a_word_of_its_prompts() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace.jsonl");
    fs::write(&trace, traffic()).expect("a written trace");
    let text =
        said(&replay(&[path(&trace), "--explain", "acct-000000000003", "--explain", "nobody"]));
    for part in
        ["acct-000000000003: critical", "hydra", "network", "ties to", "nobody: not in the trace"]
    {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert!(!text.contains("lighthouse") && !text.contains("Work through"), "{text}");
}

#[test]
fn two_policies_are_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let (trace, lax) = (folder.path().join("trace.jsonl"), folder.path().join("lax.toml"));
    fs::write(&trace, traffic()).expect("a written trace");
    fs::write(&lax, "[detector.hydra]\nenabled = false\n").expect("a written policy");
    let text = said(&replay(&[path(&trace), "--against", path(&lax)]));
    assert!(text.contains("16 accounts reach another tier"), "{text}");
    fs::write(&lax, "[detector.hydra]\nenabled = 3\n").expect("a written policy");
    let output = replay(&[path(&trace), "--against", path(&lax)]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("lax.toml:2: "), "{error}");
}

#[test]
fn a_broken_trace_is_named_with_its_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace.jsonl");
    let mut lines: Vec<String> = traffic().lines().map(str::to_owned).collect();
    lines[4] = lines[4].replace("\"ts\"", "\"tz\"");
    fs::write(&trace, lines.join("\n")).expect("a written trace");
    let output = replay(&[path(&trace)]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("trace.jsonl:5: "), "{error}");
    let output = replay(&["/nowhere/trace.jsonl"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("/nowhere/trace.jsonl"), "{error}");
}

#[test]
fn what_the_gateway_records_is_replayed() {
    let provider = harness::Provider::start();
    let mut gateway = harness::Gateway::in_front_of(provider.address()).record().start();
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    let body = r#"{"model":"sample-1","messages":[{"role":"user","content":"a lighthouse"}]}"#;
    for number in 0..6 {
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer \
             sk-test-{}-0123456789abcdefghij\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            number % 2,
            body.len()
        );
        let response = harness::http1::tls(gateway.tls_address(), &tls, request.as_bytes());
        assert_eq!(response.status, 200, "{}", response.text());
    }
    gateway.signal(rustix::process::Signal::TERM);
    assert!(gateway.wait(std::time::Duration::from_secs(40)).is_some(), "it does not end");
    let trace = gateway.folder().join("trace.jsonl");
    let text = said(&replay(&[path(&trace)]));
    assert!(text.starts_with("6 exchanges of 2 accounts judged"), "{text}");
}

/// A campaign of 16 accounts on eight cards of one prefix, born on two days, behind one /24, that
/// asks in turn under one template; and 60 customers who talk.
fn traffic() -> String {
    let mut lines: Vec<(f64, Value)> = Vec::new();
    for number in 0..CAMPAIGN {
        let id = format!("acct-{number:012}");
        let born = BEGIN_S - 90_000.0 + number as f64 * 3_000.0;
        lines.push((BEGIN_S, account(&id, born, &format!("{:016x}", 7 + number / 2), "454545")));
        for turn in 0..20 {
            let at = BEGIN_S + 60.0 + turn as f64 * 45.0 + number as f64 * 0.05;
            let text = format!(
                "Work through the following exercise and explain every inference.\n\nExercise {}: a \
                 lighthouse blinks {} times, how long until dawn?",
                turn * CAMPAIGN + number,
                turn * 3 + number
            );
            let ip = format!("203.0.113.{}", 10 + number % 5);
            let body = json!({"model": "sample-1", "max_tokens": 8192, "temperature": 0.6,
                "messages": [{"role": "user", "content": text}]});
            lines.push((at, request(&id, at, &ip, "harvest/1.0", &body, lines.len())));
        }
    }
    for number in 0..CUSTOMERS {
        let id = format!("acct-{:012}", 100_000_000_000_u64 + number as u64);
        let born = BEGIN_S - 5e6 - number as f64 * 400_000.0;
        let bin = format!("{}", 400_000 + number * 37);
        lines.push((BEGIN_S, account(&id, born, &format!("{:016x}", 1000 + number), &bin)));
        let mut messages = Vec::new();
        for turn in 0..8 {
            let at = BEGIN_S + 400.0 + number as f64 * 977.0 + turn as f64 * 60.0;
            messages.push(json!({"role": "user", "content": format!("Question {turn} of customer \
                {number} about supper, which is a different one each time")}));
            let body = json!({"model": "sample-1", "messages": messages});
            let ip = format!("198.51.{}.{}", 100 + number, 7 + number);
            let agent = format!("client-{}/2.{}", number % 7, number);
            lines.push((at, request(&id, at, &ip, &agent, &body, lines.len())));
            messages.push(json!({"role": "assistant", "content": "Soup, perhaps."}));
        }
    }
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut text = String::new();
    for (_, line) in lines {
        writeln!(text, "{line}").expect("a string");
    }
    text
}

fn account(id: &str, created: f64, payment: &str, bin: &str) -> Value {
    json!({"kind": "account", "ts": BEGIN_S, "account": id, "org": null, "created": created as i64,
        "payment": payment, "bin": bin, "verified": false})
}

fn request(id: &str, at: f64, ip: &str, agent: &str, body: &Value, number: usize) -> Value {
    json!({
        "kind": "request", "ts": at, "id": format!("r{number:014x}"), "account": id, "org": null,
        "ip": ip,
        "tls": {"version": "1.3", "ja3": "771,4866-4867-4865,0-11-10-35-22-23-13-43-45-51,29-23,0",
            "ja3s": "771,4866,43-51", "ja4": "t13d031000_000000000000_000000000000",
            "alpn": ["http/1.1"]},
        "http": {"version": "1.1", "method": "POST", "path": "/v1/chat/completions",
            "headers": [["Host", "api.example"], ["User-Agent", agent],
                ["Content-Type", "application/json"]], "h2": null},
        "body": body,
        "response": {"status": 200, "prompt_tokens": 40, "completion_tokens": 300,
            "duration_ms": 2000},
    })
}

fn binary() -> Command {
    let mut command = Command::new(harness::binary());
    command.stdin(Stdio::null());
    command
}

fn replay(arguments: &[&str]) -> Output {
    binary().arg("replay").args(arguments).output().expect("it runs")
}

fn said(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

fn read(path: &PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("verdicts");
    text.lines().map(|line| serde_json::from_str(line).expect("a verdict")).collect()
}
