//! Webhooks as a receiver meets them that refuses, hangs up and falls silent at random, while the
//! gateway is killed in the middle: nothing is lost, each account's messages come in order, and the
//! library that receivers use verifies them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::clients::{Target, drive};
use harness::{Gateway, Provider, http1, wait_for};
use serde_json::{Value, json};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ACCOUNTS: usize = 4;
const QUESTION: &str = "How many herons stand in the reeds?";

/// An attempt as the receiver saw it.
#[derive(Clone)]
struct Seen {
    headers: BTreeMap<String, String>,
    body: String,
    taken: bool,
}

impl Seen {
    fn entry(&self) -> Value {
        let body: Value = serde_json::from_str(&self.body).expect("a body");
        body["data"].clone()
    }

    fn seq(&self) -> u64 {
        self.entry()["seq"].as_u64().expect("a number")
    }
}

/// Takes some messages and treats the others as badly as receivers do.
fn receiver() -> (SocketAddr, Arc<Mutex<Vec<Seen>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let kept = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, kept) = (stream.expect("a connection"), kept.clone());
            std::thread::spawn(move || {
                let Some((headers, body)) = read(&mut stream) else { return };
                let answer = {
                    let mut kept = kept.lock().expect("not poisoned");
                    let answer = match kept.len() * 7 % 10 {
                        0..=4 => "204 No Content",
                        5 => "500 Internal Server Error",
                        6 => "429 Too Many Requests",
                        7 => "302 Found",
                        8 => "",
                        _ => "silence",
                    };
                    kept.push(Seen { headers, body, taken: answer.starts_with('2') });
                    answer
                };
                match answer {
                    "" => {}
                    "silence" => std::thread::sleep(Duration::from_secs(30)),
                    status => {
                        let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    }
                }
            });
        }
    });
    (address, seen)
}

fn read(stream: &mut std::net::TcpStream) -> Option<(BTreeMap<String, String>, String)> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
            let headers: BTreeMap<String, String> =
                fields.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
            if body.len() >= headers["content-length"].parse().expect("a length") {
                return Some((headers, body.to_owned()));
            }
        }
        match stream.read(&mut buffer).ok()? {
            0 => return None,
            length => bytes.extend_from_slice(&buffer[..length]),
        }
    }
}

/// The pseudonyms of some accounts that have asked.
fn accounts(gateway: &Gateway) -> Vec<String> {
    for number in 0..ACCOUNTS {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": QUESTION}]});
        let body = body.to_string();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
             authorization: Bearer sk-heron-{number}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(http1::plain(gateway.plain_address(), request.as_bytes()).status, 200);
    }
    wait_for("accounts", Duration::from_secs(10), || {
        let exchanges = gateway.exchanges(100);
        let ids = exchanges.iter().filter_map(|exchange| exchange["account"].as_str());
        let ids: BTreeSet<String> = ids.map(str::to_owned).collect();
        (ids.len() == ACCOUNTS).then(|| ids.into_iter().collect())
    })
}

#[test]
fn a_bad_receiver_and_a_killed_gateway_lose_no_message_and_no_order() {
    let provider = Provider::start();
    let (address, seen) = receiver();
    let mut gateway = Gateway::in_front_of(provider.address())
        .table(&format!(
            "[[webhook]]\nname = \"siem\"\nurl = \"http://{address}/hook?key=hidden-key\"\n\
             secret_file = \"webhook.secret\"\nevents = [\"override_set\"]\n\
             timeout_seconds = 0.3\nretry_seconds = 0.01\nretry_max_seconds = 0.05\n"
        ))
        .file("webhook.secret", SECRET)
        .start();
    let accounts = accounts(&gateway);
    let set = |gateway: &Gateway, rounds: std::ops::Range<usize>| {
        for round in rounds {
            for account in &accounts {
                gateway.set_tier(account, ["low", "medium", "high"][round % 3]);
            }
        }
    };
    set(&gateway, 0..10);
    let now = || seen.lock().expect("not poisoned").clone();
    let taken = |seen: &[Seen]| -> BTreeSet<u64> {
        seen.iter().filter(|seen| seen.taken).map(Seen::seq).collect()
    };
    wait_for("some messages", Duration::from_secs(30), || (taken(&now()).len() > 10).then_some(()));
    gateway.kill_and_start();
    set(&gateway, 10..15);
    let wanted = 15 * ACCOUNTS;
    let seen = wait_for("every message", Duration::from_secs(60), || {
        let seen = now();
        (taken(&seen).len() == wanted).then_some(seen)
    });
    wait_for("no lag", Duration::from_secs(10), || {
        (gateway.metric("stillgate_webhook_lag_entries") == 0.0).then_some(())
    });
    let counted = |outcome: &str| {
        gateway.metric(&format!("stillgate_webhook_deliveries_total{{outcome=\"{outcome}\""))
    };
    assert!(counted("taken") > 0.0 && counted("refused") > 0.0 && counted("unreached") > 0.0);
    assert_eq!(counted("given_up"), 0.0);

    for account in &accounts {
        let of: Vec<&Seen> =
            seen.iter().filter(|seen| seen.entry()["account"] == account.as_str()).collect();
        // The first time that each was taken; after the kill some may have come again.
        let mut first = Vec::new();
        for seen in &of {
            if seen.taken && !first.contains(&seen.seq()) {
                first.push(seen.seq());
            }
            let before = first.last().copied().unwrap_or(0);
            assert!(seen.taken || seen.seq() >= before || first.contains(&seen.seq()));
        }
        assert!(first.is_sorted() && first.len() == 15, "{first:?}");
        let mut tiers: Vec<(u64, String)> =
            of.iter().map(|s| (s.seq(), s.entry()["detail"]["tier"].to_string())).collect();
        tiers.sort();
        tiers.dedup();
        let tiers: Vec<&str> = tiers.iter().map(|(_, tier)| tier.trim_matches('"')).collect();
        assert_eq!(tiers, ["low", "medium", "high"].repeat(5));
    }
    let admin_token = "test-admin-token-0123456789abcdef0123456789abcdef";
    let log = gateway.stderr();
    for secret in ["sk-heron", "herons", SECRET, "MfKQ9r8G", admin_token, "hidden-key"] {
        assert!(!seen.iter().any(|seen| seen.body.contains(secret)), "{secret} was told");
        assert!(!log.contains(secret), "{secret} is in the log");
    }

    let mut scenarios: Vec<Value> = seen
        .iter()
        .map(|seen| json!({"name": "ok", "secret": SECRET, "headers": seen.headers, "body": seen.body}))
        .collect();
    let whole = scenarios[0].clone();
    let mut changed = whole.clone();
    changed["body"] = seen[0].body.replace("low", "none").into();
    let mut other_key = whole.clone();
    other_key["secret"] = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into();
    let mut other_id = whole;
    other_id["headers"]["webhook-id"] = "msg_0".into();
    let genuine = scenarios.len();
    scenarios.extend([changed, other_key, other_id]);
    let nowhere = Target { url: String::new(), ca_file: None };
    let Some(verified) = drive("webhook_verify.py", &nowhere, &scenarios) else { return };
    for (number, verdict) in verified.iter().enumerate() {
        assert_eq!(verdict["verified"] == true, number < genuine, "{number}: {verdict}");
    }
    assert_eq!(verified[0]["type"], "override_set");
}
