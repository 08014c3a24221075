//! What is done about an account, seen from its side: paced, marked, withheld, limited, refused, and
//! ended in the middle; and from its neighbour's, who notices nothing.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use harness::clients::{Target, drive};
use harness::{Gateway, Provider, http1, streams, wait_for};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const WHY: &str = r#"{"reason": "told so by the test"}"#;

/// A request of one account, whose answer the provider is told.
fn request(key: &str, path: &str, provider: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let close = "connection: close";
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n{close}\r\n\
         content-type: application/json\r\nx-provider: {provider}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn chat(text: &str) -> Value {
    json!({"model": "still-1", "stream": true, "messages": [{"role": "user", "content": text}]})
}

fn ask(gateway: &Gateway, key: &str, provider: &str) -> http1::Response {
    http1::plain(gateway.plain_address(), &request(key, CHAT, provider, &chat("How are you?")))
}

/// The pseudonym of whoever asked last.
fn latest_account(gateway: &Gateway) -> String {
    wait_for("an exchange", Duration::from_secs(5), || {
        let exchanges = gateway.exchanges(1);
        exchanges.first().and_then(|exchange| exchange["account"].as_str()).map(str::to_owned)
    })
}

/// Makes an account known, and sets its tier.
fn account_at(gateway: &Gateway, key: &str, tier: &str) -> String {
    let before = gateway.metric("stillgate_requests_total");
    assert_eq!(ask(gateway, key, "stream=own/openai-chat/text.sse").status, 200);
    wait_for("its exchange", Duration::from_secs(5), || {
        (gateway.metric("stillgate_requests_total") > before).then_some(())
    });
    let account = latest_account(gateway);
    gateway.set_tier(&account, tier);
    account
}

const OWN_CHAT: &str = "stream=own/openai-chat/text.sse";

#[test]
fn a_paced_stream_is_smooth_and_its_neighbour_is_not_slowed() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .policy("[action.medium]\npace_tokens_per_second = 20.0\n")
        .start();
    let target = Target::from(&gateway);
    let scenario = |version: &str| json!({"name": version, "version": version, "path": CHAT, "provider": "events=40"});
    let Some(seen) = drive("event_times.py", &target, &[scenario("1.1"), scenario("2")]) else {
        return;
    };
    let as_it_came: Vec<String> =
        seen.iter().map(|seen| seen["body"].as_str().expect("a body").to_owned()).collect();
    let last = |seen: &Value| {
        let times = seen["times_ms"].as_array().expect("times").clone();
        times.last().and_then(Value::as_f64).expect("a time")
    };
    assert!(seen.iter().all(|seen| last(seen) < 1_000.0), "unshaped: {seen:?}");
    gateway.set_tier(&latest_account(&gateway), "medium");
    let seen = drive("event_times.py", &target, &[scenario("1.1"), scenario("2")]).expect("it ran");
    for (seen, unshaped) in seen.iter().zip(&as_it_came) {
        assert_eq!(seen["body"], *unshaped, "pacing changes no byte");
        let times = seen["times_ms"].as_array().expect("times");
        let times: Vec<f64> = times.iter().filter_map(Value::as_f64).take(40).collect();
        let mut gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        gaps.sort_by(f64::total_cmp);
        let p95 = gaps[gaps.len() * 95 / 100];
        println!(
            "HTTP/{}: gaps p5 {:.1} p50 {:.1} p95 {p95:.1} ms",
            seen["name"], gaps[1], gaps[19]
        );
        // Fifty milliseconds are wanted. How near to it single events come is printed: on a busy
        // machine that says more of the machine.
        assert!((40.0..60.0).contains(&gaps[19]), "{gaps:?}");
        assert!(
            (1_800.0..3_000.0).contains(&times[39]),
            "forty tokens at twenty a second: {times:?}"
        );
    }
}

#[test]
fn many_paced_streams_take_little_memory() {
    const STREAMS: usize = 500;
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .policy("[action.medium]\npace_tokens_per_second = 20.0\n")
        .start();
    account_at(&gateway, "sk-paced", "medium");
    // Most of a megabyte each, of which a client at twenty tokens a second sees little.
    let bytes = request("sk-paced", CHAT, "events=10000", &chat("Tell me everything."));
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = http1::connect(gateway.plain_address());
        stream.write_all(&bytes).expect("it is sent");
        open.push(stream);
    }
    wait_for("all of them", Duration::from_secs(60), || {
        (gateway.metric("stillgate_streams_paced") >= STREAMS as f64).then_some(())
    });
    let rss = || gateway.metric("process_resident_memory_bytes") / 1e6;
    std::thread::sleep(Duration::from_secs(1));
    let first = rss();
    let begun = Instant::now();
    assert_eq!(ask(&gateway, "sk-other", "events=2000").status, 200);
    let other = begun.elapsed();
    for stream in &mut open {
        // Every client goes on reading; what it is sent is little.
        let mut buffer = vec![0; 64 * 1024];
        let read = stream.read(&mut buffer).expect("something came");
        assert!(read > 0);
    }
    std::thread::sleep(Duration::from_secs(2));
    let later = rss();
    println!(
        "{STREAMS} paced streams: {first:.0} MB, two seconds later {later:.0} MB; another's 2,000 events took {other:?}"
    );
    assert!(later - first < 20.0, "memory grows: {first} to {later} MB");
    // All that the provider has would be four hundred megabytes more.
    assert!(later < 500.0, "{later} MB for {STREAMS} streams");
    assert!(other < Duration::from_secs(10), "an unshaped stream waits for the others: {other:?}");
}

#[test]
fn marked_answers_say_the_same_and_neighbours_get_every_byte() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .policy("[action.high]\nwatermark = true\n[watermark]\nlexical = false\n")
        .start();
    let account = account_at(&gateway, "sk-marked", "high");
    let mut marked = 0;
    for name in streams::all() {
        let Some(path) = path_of(&name) else { continue };
        let original = streams::read(&name).expect("a stream");
        let body = json!({
            "model": "still-1", "stream": true, "max_tokens": 1000, "input": "Hi",
            "prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}],
            "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
        });
        for chunks in ["whole", "events", "odd"] {
            let provider = format!("stream={name};chunks={chunks}");
            let send = |key: &str| {
                let bytes = request(key, path, &provider, &body);
                http1::plain(gateway.plain_address(), &bytes)
            };
            let (ours, theirs) = (send("sk-marked"), send("sk-other"));
            assert!(theirs.body == original, "{name} {chunks}: an unmarked answer was changed");
            let text = String::from_utf8_lossy(&ours.body).into_owned();
            let stripped: String = text.chars().filter(|c| !ZERO_WIDTH.contains(c)).collect();
            assert!(ours.complete, "{name} {chunks}");
            assert!(
                same_events(&stripped, &String::from_utf8_lossy(&original)),
                "{name} {chunks}: more than marks was changed\n{text}"
            );
            marked += usize::from(text != stripped);
        }
    }
    assert!(marked > 10, "only {marked} answers were marked");
    let marks = gateway.admin("/v1/marks").text();
    assert!(!marks.is_empty() && marks.lines().all(|line| line.contains(&account)), "{marks}");
}

const ZERO_WIDTH: [char; 4] = ['\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}'];

/// Whether two bodies hold the same text, however it is cut into events.
fn same_events(one: &str, other: &str) -> bool {
    let strings = |body: &str| {
        let mut all = std::collections::BTreeMap::new();
        for line in body.lines() {
            let data = line.strip_prefix("data:").map_or(line, str::trim_start);
            let value: Value =
                serde_json::from_str(data.trim_matches([',', '[', ']'])).unwrap_or_default();
            gather(&value, "", &mut all);
        }
        all
    };
    strings(one) == strings(other)
}

/// The strings at each place of all events, put together.
fn gather(value: &Value, at: &str, into: &mut std::collections::BTreeMap<String, String>) {
    match value {
        Value::String(text) => into.entry(at.to_owned()).or_default().push_str(text),
        Value::Array(items) => items.iter().for_each(|item| gather(item, at, into)),
        Value::Object(fields) => {
            for (key, value) in fields {
                gather(value, &format!("{at}.{key}"), into);
            }
        }
        other => into.entry(at.to_owned()).or_default().push_str(&other.to_string()),
    }
}

fn path_of(name: &str) -> Option<&'static str> {
    Some(match name.split('/').nth(1)? {
        "openai-chat" | "azure" | "groq" | "deepseek" | "openrouter" | "mistral" => CHAT,
        "openai-responses" => "/v1/responses",
        "openai-completions" => "/v1/completions",
        "anthropic" => "/v1/messages",
        "gemini" => "/v1beta/models/m:streamGenerateContent?alt=sse",
        _ => return None,
    })
}

const PROSE: &str = "own/openai-chat/prose.sse";

#[test]
fn what_was_collected_names_the_account() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .policy("[action.high]\nwatermark = true\ncanary = true\n")
        .start();
    let account = account_at(&gateway, "sk-collects", "high");
    account_at(&gateway, "sk-other", "high");
    let collect = |key: &str| text_of(&ask(&gateway, key, &format!("stream={PROSE}")).text());
    let (marked, plain) = (collect("sk-collects"), collect("sk-unmarked"));
    assert_ne!(marked, plain);
    assert_eq!(plain, streams::said(PROSE).text);
    collect("sk-other");
    let write = |name: &str, text: &str| {
        let path = gateway.folder().join(name);
        std::fs::write(&path, text).expect("a written file");
        path
    };
    let candidates = write("candidates.jsonl", &gateway.admin("/v1/marks").text());
    let dataset: String = (0..3)
        .map(|_| collect("sk-collects"))
        .map(|answer| json!({"prompt": "Tell me.", "completion": answer}).to_string() + "\n")
        .collect();
    let verify = |file: &std::path::Path| {
        let output = std::process::Command::new(harness::binary())
            .arg("verify")
            .arg("--key-file")
            .arg(gateway.folder().join("account.key"))
            .arg("--candidates")
            .arg(&candidates)
            .args(["--json".as_ref(), file.as_os_str()])
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).expect("a report")
    };
    for file in [write("marked.txt", &marked), write("marked.jsonl", &dataset)] {
        let report = verify(&file);
        assert_eq!(report["verdict"], "evidence", "{report}");
        let frames = report["zero_width"].as_array().expect("frames");
        assert!(!frames.is_empty(), "{report}");
        assert!(frames.iter().all(|frame| frame["accounts"] == json!([account])), "{report}");
    }
    assert_eq!(verify(&write("plain.txt", &plain))["verdict"], "no_evidence");
}

#[test]
fn an_answer_is_marked_from_its_middle_on() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .policy("[action.high]\nwatermark = true\n[watermark]\nlexical = false\n")
        .start();
    // Above tier none the text of an answer is followed.
    let account = account_at(&gateway, "sk-middle", "low");
    let directive = format!("stream={PROSE};chunks=paced:5");
    let bytes = request("sk-middle", CHAT, &directive, &chat("Tell me everything."));
    let address = gateway.plain_address();
    let running = std::thread::spawn(move || http1::plain(address, &bytes));
    std::thread::sleep(Duration::from_millis(300));
    gateway.set_tier(&account, "high");
    let answer = running.join().expect("it ran");
    let text = text_of(&answer.text());
    let first = text.find(ZERO_WIDTH).expect("marks");
    assert!(answer.complete && first > 100, "marked at {first}: {text}");
    let visible: String = text.chars().filter(|c| !ZERO_WIDTH.contains(c)).collect();
    assert_eq!(visible, streams::said(PROSE).text);
    let paragraph = text[..first].rfind("\n\n").expect("a paragraph before it");
    assert!(!text[..paragraph].contains(ZERO_WIDTH));
}

/// The text of a chat stream.
fn text_of(body: &str) -> String {
    let events = body.lines().filter_map(|line| line.strip_prefix("data: {"));
    let values =
        events.map(|rest| serde_json::from_str::<Value>(&format!("{{{rest}")).expect("JSON"));
    values
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn limits_hold_and_say_when_to_come_again() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .policy(
            "[action.medium]\nthrottle = [\"few\"]\n[limit.few]\nper = \"account\"\n\
             requests_per_minute = 6.0\nburst_seconds = 30.0\n",
        )
        .start();
    account_at(&gateway, "sk-limited", "medium");
    let statuses: Vec<u16> = (0..6).map(|_| ask(&gateway, "sk-limited", OWN_CHAT).status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429]);
    let refused = ask(&gateway, "sk-limited", OWN_CHAT);
    let after: u64 = refused.header("retry-after").expect("it says when").parse().expect("seconds");
    assert!((1..=10).contains(&after), "{after}");
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(ask(&gateway, "sk-other", OWN_CHAT).status, 200);
    assert_eq!(gateway.metric("stillgate_throttled_total{"), 4.0);
}

#[test]
fn in_shadow_nothing_happens_and_everything_is_counted() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .policy(
            "[enforcement]\nshadow = true\n[action.high]\nrefuse = true\nwatermark = true\n\
             canary = true\nwithhold_reasoning = true\npace_tokens_per_second = 1.0\n",
        )
        .start();
    account_at(&gateway, "sk-shadowed", "high");
    let begun = Instant::now();
    let answer = ask(&gateway, "sk-shadowed", OWN_CHAT);
    assert_eq!(answer.body, streams::read("own/openai-chat/text.sse").expect("a stream"));
    assert!(begun.elapsed() < Duration::from_secs(2));
    for action in ["refuse", "watermark", "canary", "withhold_reasoning", "pace"] {
        let count = |mode: &str| {
            gateway
                .metric(&format!("stillgate_actions_total{{action=\"{action}\",mode=\"{mode}\"}}"))
        };
        assert_eq!((count("shadow"), count("taken")), (1.0, 0.0), "{action}");
    }
}

#[test]
fn a_tier_that_rises_slows_and_then_ends_the_stream_under_way() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .policy(
            "[action.medium]\npace_tokens_per_second = 10.0\n\
             [action.critical]\nrefuse = true\nend_stream = true\n",
        )
        .start();
    let account = account_at(&gateway, "sk-rising", "none");
    for (path, stream, error) in [
        (CHAT, "own/openai-chat/text.sse", "permission_denied"),
        ("/v1/messages", "own/anthropic/text.sse", "permission_error"),
        ("/v1/responses", "own/openai-responses/text.sse", "permission_denied"),
        (
            "/v1beta/models/m:streamGenerateContent?alt=sse",
            "own/gemini/text.sse",
            "PERMISSION_DENIED",
        ),
    ] {
        gateway.set_tier(&account, "none");
        let before = gateway.exchanges(1)[0]["id"].clone();
        // An event each tenth of a second.
        let directive = format!("stream={stream};chunks=paced:100");
        let body = json!({
            "model": "m", "stream": true, "input": "Hi", "max_tokens": 9,
            "messages": [{"role": "user", "content": "Hi"}],
            "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
        });
        let bytes = request("sk-rising", path, &directive, &body);
        let address = gateway.plain_address();
        let running = std::thread::spawn(move || http1::plain(address, &bytes));
        std::thread::sleep(Duration::from_millis(350));
        gateway.set_tier(&account, "medium");
        std::thread::sleep(Duration::from_millis(300));
        gateway.set_tier(&account, "critical");
        let answer = running.join().expect("it ran");
        let text = answer.text();
        let events = text.matches("data:").count();
        assert!(answer.complete && answer.status == 200, "{path}: {answer:?}");
        assert!(text.contains(error), "{path}: no error event in {text}");
        assert!((2..12).contains(&events), "{path}: {events} events: {text}");
        let exchange = wait_for("its exchange", Duration::from_secs(5), || {
            let latest = gateway.exchanges(1)[0].clone();
            (latest["id"] != before).then_some(latest)
        });
        assert_eq!(exchange["answer"]["error"], "ended_by_policy", "{exchange}");
        assert_eq!(exchange["answer"]["complete"], false, "{exchange}");
        let refused = ask(&gateway, "sk-rising", OWN_CHAT);
        assert_eq!(refused.status, 403, "every later request is refused");
    }
    let shown = gateway.admin(&format!("/v1/accounts/{account}")).json();
    let actions = shown["actions"].as_array().expect("actions");
    assert!(actions.iter().any(|action| action["action"] == "end_stream"), "{shown}");
    assert_eq!(shown["override"]["tier"], "critical");
}

#[test]
fn a_policy_is_replaced_under_load_and_a_bad_one_is_not_taken() {
    let provider = Provider::start();
    let good = |pace: f64| format!("[action.medium]\npace_tokens_per_second = {pace:.1}\n");
    let gateway = Gateway::in_front_of(provider.address()).policy(&good(500.0)).start();
    let version = |gateway: &Gateway| {
        gateway.admin("/v1/policy").json()["version"].as_str().expect("a version").to_owned()
    };
    let first = version(&gateway);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load: Vec<_> = (0..3)
            .map(|number| {
                let (gateway, done) = (&gateway, &done);
                scope.spawn(move || {
                    let (mut good, mut bad) = (0, 0);
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let answer = ask(gateway, &format!("sk-load-{number}"), OWN_CHAT);
                        if answer.status == 200 && answer.complete { good += 1 } else { bad += 1 }
                    }
                    (good, bad)
                })
            })
            .collect();
        for round in 1..=5 {
            gateway.write_policy(&good(500.0 + f64::from(round)));
            if round % 2 == 0 {
                gateway.signal(rustix::process::Signal::HUP);
            } else {
                let answer = gateway.admin_do("POST", "/v1/policy/reload", WHY);
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let before = version(&gateway);
        assert_ne!(before, first);
        gateway.write_policy("[action.medium]\npace_tokens_per_second = 20.0\nthrotle = []\n");
        let refused = gateway.admin_do("POST", "/v1/policy/reload", WHY);
        let message = refused.json()["error"]["message"].as_str().expect("words").to_owned();
        assert_eq!(refused.status, 409);
        assert!(message.contains("policy.toml:3: unknown field `throtle`"), "{message}");
        wait_for("the log", Duration::from_secs(10), || {
            gateway.stderr().contains("unknown field `throtle`").then_some(())
        });
        assert_eq!(version(&gateway), before, "a bad file changes nothing");
        let back = gateway.admin_do("POST", "/v1/policy/rollback", WHY);
        assert_eq!(back.status, 200, "{}", back.text());
        assert_ne!(version(&gateway), before);
        // A file that changes is seen without being told.
        gateway.write_policy(&good(700.0));
        wait_for("the new file", Duration::from_secs(10), || {
            let policy = gateway.admin("/v1/policy").json();
            (policy["policy"]["action"]["medium"]["pace_tokens_per_second"] == 700.0).then_some(())
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for load in load {
            let (good, bad) = load.join().expect("it ran");
            assert!(good > 20 && bad == 0, "{good} good, {bad} bad");
        }
    });
    assert!(gateway.metric("stillgate_policy_reloads_total{outcome=\"ok\"") >= 5.0);
}
