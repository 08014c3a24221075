//! Two providers, a gateway each: what one takes down the other hears of, by either kind of key,
//! pushed and pulled, now or when it is back; what must not be believed is refused.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::{Gateway, GatewayBuilder, Provider, balancer, http1, wait_for};
use serde_json::{Value, json};

const ACCOUNTS: usize = 16;
const TURNS: usize = 24;
const PATIENCE: Duration = Duration::from_secs(30);
/// RFC 8410, sections 10.1 and 10.3.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
    -----END PRIVATE KEY-----\n";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
    -----END PUBLIC KEY-----\n";
const SECRET: &str = "c1b2a3948576f0e1d2c3b4a5968778695a4b3c2d1e0f00112233445566778899";
const OTHER: &str = "00b2a3948576f0e1d2c3b4a5968778695a4b3c2d1e0f00112233445566778811";

/// A provider whose takedowns are told by this key.
fn lab_a(provider: &Provider, key: &str) -> GatewayBuilder {
    let policy = include_str!("../../policies/default.toml");
    let policy = policy.replace("requests_per_minute = 20.0", "requests_per_minute = 600.0");
    let policy = policy.replace("requests_per_minute = 120.0", "requests_per_minute = 9_600.0");
    let policy = policy.replace("tokens_per_minute = ", "tokens_per_minute = 9_00");
    Gateway::in_front_of(provider.address())
        .listener(
            "proxy_protocol_from = [\"127.0.0.1/32\"]\n\
             fingerprint_headers = { from = [\"203.0.0.0/16\"], ja3 = \"x-ja3\", ja4 = \"x-ja4\" }",
        )
        .policy(&policy)
        .secret("ioc.key", SECRET)
        .secret("ioc.pem", PRIVATE)
        .table(&format!("[ioc]\nprovider = \"lab-a\"\n{key}\n"))
}

/// Another, who verifies what that one says by this key.
fn lab_b(provider: &Provider, key: &str) -> GatewayBuilder {
    Gateway::in_front_of(provider.address())
        .secret("ioc.key", OTHER)
        .secret("peer.key", SECRET)
        .file("peer.pem", PUBLIC)
        .table("[ioc]\nprovider = \"lab-b\"\nhmac_key_file = \"ioc.key\"\nown_networks = [\"198.51.100.0/24\"]\n")
        .table(&format!("[[peer]]\nname = \"lab-a\"\nweight = 0.5\n{key}\n"))
}

/// Sixteen accounts of one operator harvest until they are taken down.
fn harvest(gateway: &Gateway) {
    for turn in 0..TURNS {
        for account in 0..ACCOUNTS {
            let text = format!(
                "Work through the following exercise step by step and explain every inference before \
                 you give the final answer.\n\nExercise {}: a lighthouse blinks {} times a minute and a \
                 ship counts {} of them, how long was it in sight?",
                turn * ACCOUNTS + account,
                turn * 3 + account + 2,
                turn * 7 + 3 * account + 5,
            );
            let body = json!({"model": "still-1", "max_tokens": 8192, "temperature": 0.6, "stream": true,
                "messages": [{"role": "user", "content": text}]});
            let client = format!("203.0.{}.{}:5000", 113 + account % 3, 10 + account % 5);
            ask(gateway, &client, &format!("sk-harvest-{account:02}"), &body.to_string());
        }
    }
    wait_for("a takedown", PATIENCE, || (!down(gateway).is_empty()).then_some(()));
}

/// Clusters that are down; one campaign may be several on its way.
fn down(gateway: &Gateway) -> Vec<String> {
    let active = audit(gateway, "taken_down").into_iter();
    let active = active.filter_map(|entry| entry["cluster"].as_str().map(str::to_owned));
    let is_down = |cluster: &String| {
        let path = format!("/v1/clusters/{cluster}/takedown");
        gateway.admin(&path).json()["status"] == "active"
    };
    active.filter(is_down).collect()
}

fn ask(gateway: &Gateway, client: &str, key: &str, body: &str) {
    let mut stream = http1::connect(gateway.further_address(0));
    let header = balancer::header(client.parse().expect("an address"));
    stream.write_all(&header).expect("a header is taken");
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
         x-ja3: 0123456789abcdef0123456789abcdef\r\nx-ja4: t13d1516h2_8daaf6152771_02713d6af862\r\n\
         connection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = http1::exchange(&mut stream, request.as_bytes());
}

fn told(gateway: &Gateway, query: &str) -> Vec<Value> {
    let answer = gateway.admin(&format!("/v1/iocs?limit=1000{query}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["indicators"].as_array().expect("a list").clone()
}

fn await_told(gateway: &Gateway) -> Vec<Value> {
    wait_for("indicators", PATIENCE, || {
        Some(told(gateway, "&source=peer/lab-a")).filter(|all| !all.is_empty())
    })
}

fn import(gateway: &Gateway, envelope: &str) -> (u16, String) {
    let answer = gateway.admin_do("POST", "/v1/iocs/import", envelope);
    (answer.status, answer.text())
}

fn audit(gateway: &Gateway, act: &str) -> Vec<Value> {
    let text = gateway.admin("/v1/audit/export").text();
    let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let entries = entries.map(|line| match line["entry"].as_str() {
        Some(entry) => serde_json::from_str(entry).expect("an entry"),
        None if line["entry"].is_object() => line["entry"].clone(),
        None => line,
    });
    entries.filter(|entry: &Value| entry["act"] == act).collect()
}

/// Nothing of what was asked, and no key of an account, goes to another provider.
fn assert_private(text: &str) {
    for secret in ["lighthouse", "sk-harvest", "acct-", SECRET, "exercise"] {
        assert!(!text.contains(secret), "{secret} is told: {text}");
    }
}

fn exported(gateway: &Gateway) -> Vec<Value> {
    let answer = gateway.admin("/v1/iocs/export");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["bundles"].as_array().expect("bundles").clone()
}

#[test]
fn a_takedown_is_pushed_by_hmac_and_its_undoing_follows() {
    let (provider_a, provider_b) = (Provider::start(), Provider::start());
    let b = lab_b(&provider_b, "hmac_key_file = \"peer.key\"").start();
    let push = format!(
        "[[peer]]\nname = \"lab-b\"\npush = true\nurl = \"http://{}\"\ntoken_file = \"admin.token\"\n",
        b.admin_address()
    );
    let a = lab_a(&provider_a, "hmac_key_file = \"ioc.key\"").table(&push).start();
    harvest(&a);
    let own = wait_for("all of it", PATIENCE, || {
        let own = told(&a, "&source=own/");
        let values = |all: &[Value]| -> BTreeSet<String> {
            all.iter().map(|one| format!("{} {}", one["kind"], one["value"])).collect()
        };
        (values(&own) == values(&told(&b, "&source=peer/lab-a"))).then(|| values(&own))
    });
    let indicators = await_told(&b);
    let of = |kind: &str| indicators.iter().filter(|told| told["kind"] == kind).count();
    assert_eq!(own.len(), indicators.len(), "each once, however many takedowns tell of it");
    assert_eq!((of("ja3"), of("ja4")), (1, 1), "{indicators:?}");
    for kind in ["ip", "subnet", "account", "watermark_token"] {
        assert!(of(kind) > 0, "{kind}: {indicators:?}");
    }
    for one in &indicators {
        let (confidence, weight) = (one["confidence"].as_f64(), one["weight"].as_f64());
        let (confidence, weight) = (confidence.expect("a number"), weight.expect("a number"));
        assert!(confidence >= 0.7 && one["source"] == "peer/lab-a", "{one}");
        assert!((weight - 0.5 * confidence).abs() < 0.01, "{one}");
    }
    // Evidence does nothing by itself: nobody at the other provider is refused.
    assert_eq!(b.metric("stillgate_actions_total"), 0.0);
    let clusters = down(&a);
    for cluster in &clusters {
        let path = format!("/v1/clusters/{cluster}/takedown?reason=a%20school");
        assert_eq!(a.admin_do("DELETE", &path, "").status, 200);
    }
    wait_for("the revocation", PATIENCE, || {
        told(&b, "&source=peer/lab-a").is_empty().then_some(())
    });
    assert!(!audit(&b, "indicators_imported").is_empty());
    assert!(!audit(&a, "indicators_exported").is_empty());
    assert_eq!(audit(&a, "indicator_revoked").len(), clusters.len());
    assert!(a.metric("stillgate_ioc_bundles_sent_total{outcome=\"delivered\"") >= 2.0);
}

#[test]
fn a_takedown_is_pulled_by_ed25519_and_is_stix_for_everybody_else() {
    let (provider_a, provider_b) = (Provider::start(), Provider::start());
    let a = lab_a(&provider_a, "ed25519_key_file = \"ioc.pem\"").start();
    harvest(&a);
    let key = format!(
        "ed25519_public_key_file = \"peer.pem\"\nurl = \"http://{}\"\ntoken_file = \"admin.token\"\n\
         pull_interval_seconds = 1",
        a.admin_address()
    );
    let b = lab_b(&provider_b, &key).start();
    let indicators = await_told(&b);
    wait_for("a bundle that can be handed in again", PATIENCE, || exported(&a).first().cloned());
    for envelope in exported(&a) {
        let (status, why) = import(&b, &envelope.to_string());
        assert_eq!(status, 409, "{why}");
        assert!(why.contains("taken in before"), "{why}");
    }
    // An operator's word stays, and is told to nobody.
    let ip = indicators.iter().find(|one| one["kind"] == "ip").expect("an address");
    let revoke = json!({"source": "peer/lab-a", "kind": "ip", "value": ip["value"],
        "reason": "our own crawler"});
    let answer = b.admin_do("POST", "/v1/iocs/revoke", &revoke.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = b.admin_do("POST", "/v1/iocs/revoke", &revoke.to_string());
    assert_eq!(answer.status, 404, "{}", answer.text());
    assert!(exported(&b).is_empty());

    let stix = a.admin("/v1/iocs/export?format=stix").text();
    assert_private(&stix);
    let checked = harness::clients::check_stix(&stix);
    assert!(checked.is_none_or(|counted| counted == indicators.len()), "{checked:?}");
    let path = "/v1/iocs/stix?source=feed&reason=trusted";
    let taken = b.admin_do("POST", path, &stix);
    assert_eq!(taken.status, 200, "{}", taken.text());
    assert_eq!(taken.json()["taken"], indicators.len(), "{}", taken.text());
    assert_eq!(told(&b, "&source=operator/feed").len(), indicators.len());
    let foreign = json!({"type": "bundle", "id": "bundle--1", "objects": [
        {"type": "indicator", "id": "indicator--1", "pattern_type": "stix", "confidence": 90,
         "pattern": "[url:value = 'https://example.com/']", "valid_from": "2026-01-01T00:00:00Z"}]});
    let taken = b.admin_do("POST", path, &foreign.to_string()).json();
    assert_eq!((&taken["taken"], taken["objects"].as_array().map(Vec::len)), (&json!(0), Some(1)));
}

#[test]
fn a_peer_that_was_away_is_told_when_it_is_back() {
    let (provider_a, provider_b) = (Provider::start(), Provider::start());
    let b = lab_b(&provider_b, "hmac_key_file = \"peer.key\"").start();
    let door = Door::before(b.admin_address());
    let push = format!(
        "[[peer]]\nname = \"lab-b\"\npush = true\nurl = \"http://{}\"\ntoken_file = \"admin.token\"\n",
        door.address
    );
    let a = lab_a(&provider_a, "hmac_key_file = \"ioc.key\"").table(&push).start();
    harvest(&a);
    wait_for("failures", PATIENCE, || {
        let failed = "stillgate_ioc_bundles_sent_total{outcome=\"failed\"";
        (a.metric(failed) >= 2.0).then_some(())
    });
    assert!(told(&b, "&source=peer/lab-a").is_empty());
    door.open.store(true, Ordering::Relaxed);
    assert!(!await_told(&b).is_empty());
}

#[test]
fn what_is_not_a_peers_word_is_refused_and_in_the_audit() {
    let (provider_a, provider_b) = (Provider::start(), Provider::start());
    let a = lab_a(&provider_a, "hmac_key_file = \"ioc.key\"").start();
    harvest(&a);
    let envelope = wait_for("a bundle", PATIENCE, || exported(&a).first().cloned());
    let b = lab_b(&provider_b, "hmac_key_file = \"peer.key\"").start();
    let mut changed = envelope.clone();
    let payload = changed["payload"].as_str().expect("a payload").to_owned();
    let other = if payload.ends_with('=') { &payload[4..] } else { &payload[..payload.len() - 4] };
    changed["payload"] = json!(other);
    let mut unknown = envelope.clone();
    unknown["signatures"][0]["keyid"] = json!("0000000000000000");
    let oversize = format!("{envelope}{}", " ".repeat(1024 * 1024));
    for (sent, status, why) in [
        (changed.to_string(), 403, "does not verify"),
        (unknown.to_string(), 403, "no configured peer"),
        ("{\"payload\": 1}".to_owned(), 400, "not a DSSE envelope"),
        (oversize, 413, "too large"),
    ] {
        let (found, text) = import(&b, &sent);
        assert_eq!(found, status, "{text}");
        assert!(text.contains(why), "{text}");
    }
    assert!(told(&b, "").is_empty());
    let refusals = wait_for("the audit", PATIENCE, || {
        Some(audit(&b, "indicators_refused")).filter(|all| all.len() >= 3)
    });
    let why: Vec<&str> = refusals.iter().filter_map(|one| one["detail"]["why"].as_str()).collect();
    assert_eq!(why, ["signature", "unknown_key", "malformed"]);
    assert_eq!(import(&b, &envelope.to_string()).0, 200);
    assert_private(&exported(&a).iter().map(ToString::to_string).collect::<String>());
    let text = payload_of(&envelope);
    assert_private(&text);
    assert!(text.contains("203.0.11"), "{text}");
}

#[test]
fn a_peers_token_exchanges_bundles_and_nothing_else() {
    const TOKEN: &str = "peer-token-0123456789abcdef0123456789abcdef";
    let provider = Provider::start();
    let b = lab_b(&provider, "hmac_key_file = \"peer.key\"")
        .secret("peer.token", TOKEN)
        .table("[[admin.token]]\nname = \"lab-a\"\nrole = \"peer\"\nfile = \"peer.token\"\n")
        .start();
    let ask = |method: &str, path: &str, body: &str| {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {TOKEN}\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        http1::plain(b.admin_address(), request.as_bytes())
    };
    let exported = ask("GET", "/v1/iocs/export", "");
    assert_eq!(exported.status, 200, "{}", exported.text());
    assert_eq!(exported.json(), json!({"bundles": [], "next": null}));
    assert_eq!(ask("GET", "/v1/iocs/export?after=x", "").status, 400);
    assert_eq!(ask("POST", "/v1/iocs/import", "{}").status, 400);
    for (method, path) in [
        ("GET", "/v1/iocs"),
        ("POST", "/v1/iocs/revoke"),
        ("POST", "/v1/iocs/stix?source=a&reason=b"),
        ("GET", "/v1/accounts"),
        ("GET", "/v1/audit"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
    ] {
        let answer = ask(method, path, "");
        assert_eq!(answer.status, 403, "{method} {path}: {}", answer.text());
    }
}

/// What an envelope's payload says.
fn payload_of(envelope: &Value) -> String {
    let payload = envelope["payload"].as_str().expect("a payload");
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let values = payload.bytes().filter_map(|b| digits.iter().position(|digit| *digit == b));
    let (mut bits, mut held, mut text) = (0_u32, 0, Vec::new());
    for value in values {
        bits = bits << 6 | u32::try_from(value).expect("below 64");
        held += 6;
        if held >= 8 {
            held -= 8;
            text.push(u8::try_from(bits >> held & 255).expect("a byte"));
        }
    }
    String::from_utf8(text).expect("JSON")
}

/// A way to a server that can be shut: it then takes connections and closes them.
struct Door {
    address: SocketAddr,
    open: Arc<AtomicBool>,
}

impl Door {
    fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port");
        let address = listener.local_addr().expect("a bound address");
        let open = Arc::new(AtomicBool::new(false));
        let is_open = open.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if is_open.load(Ordering::Relaxed) {
                    let Ok(onward) = TcpStream::connect(server) else { continue };
                    let (Ok(up), Ok(up_to)) = (stream.try_clone(), onward.try_clone()) else {
                        continue;
                    };
                    std::thread::spawn(move || copy(up, up_to));
                    std::thread::spawn(move || copy(onward, stream));
                }
            }
        });
        Self { address, open }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
