//! What outlives the process: a restart, a crash at any moment, a full disk, a hot upgrade, a copy.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{ADMIN_TOKEN, Gateway, Provider, binary, http1, may_mount, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const ZERO_WIDTH: [char; 4] = ['\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}'];
const OWN_CHAT: &str = "stream=own/openai-chat/prose.sse";
/// Every account that asks for reasoning is suspected, and whoever is at high gets marked answers.
/// A busy machine is not to hide what was asked: judgements have their time.
const POLICY: &str = "[enforcement]\ninline_ms_max = 1000\n[tiers]\nlow = 0.01\nmedium = 0.9\nhigh = 0.95\ncritical = 0.99\n\
                      hysteresis = 0.001\n\
                      [limit.suspect]\nper = \"account\"\n\
                      [limit.suspect_cluster]\nper = \"cluster\"\n\
                      [action.high]\nwatermark = true\ncanary = true\nreview = true\n\
                      [watermark]\nlexical = false\n";

fn gateway(provider: &Provider) -> Gateway {
    Gateway::in_front_of(provider.address()).policy(POLICY).start()
}

fn request(key: &str, query: &str, text: &str) -> Vec<u8> {
    let body = json!({"model": "still-1", "stream": true,
                      "messages": [{"role": "user", "content": text}]});
    let body = body.to_string();
    format!(
        "POST {CHAT}?{query} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
         connection: close\r\ncontent-type: application/json\r\nx-provider: {OWN_CHAT}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// An answer, or none where nobody is there any more.
fn try_send(address: SocketAddr, request: &[u8]) -> Option<http1::Response> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let answer = http1::exchange(&mut stream, request);
    (answer.status > 0).then_some(answer)
}

fn try_admin(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<http1::Response> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: admin\r\nauthorization: Bearer {ADMIN_TOKEN}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    try_send(address, request.as_bytes())
}

fn override_body(tier: &str) -> String {
    json!({"tier": tier, "reason": "told so by the test"}).to_string()
}

fn has_marks(answer: &http1::Response) -> bool {
    answer.text().contains(ZERO_WIDTH)
}

/// Asks once, alone; the pseudonym under which it was taken.
fn account_of(gateway: &Gateway, key: &str) -> String {
    let before = gateway.metric("stillgate_requests_total");
    let answer = http1::plain(gateway.plain_address(), &request(key, "who", "How are you?"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    wait_for("its exchange", Duration::from_secs(5), || {
        (gateway.metric("stillgate_requests_total") > before).then_some(())
    });
    let exchange = gateway.exchanges(1).remove(0);
    exchange["account"].as_str().expect("an account").to_owned()
}

fn explained(gateway: &Gateway, account: &str) -> Value {
    // The endpoint bounds how much it is asked.
    let answer = wait_for("an answer", Duration::from_secs(30), || {
        let answer = gateway.admin(&format!("/v1/accounts/{account}"));
        (answer.status != 429).then_some(answer)
    });
    assert_eq!(answer.status, 200, "{account}: {}", answer.text());
    answer.json()
}

fn ends(gateway: &mut Gateway) {
    gateway.signal(Signal::TERM);
    let status = gateway.wait(Duration::from_secs(40));
    assert!(status.is_some_and(|status| status.success()), "{}", gateway.stderr());
}

#[test]
fn a_restart_forgets_nothing() {
    let provider = Provider::start();
    let mut gateway = gateway(&provider);
    let marked = account_of(&gateway, "sk-marked");
    gateway.set_tier(&marked, "high");
    let served = http1::plain(gateway.plain_address(), &request("sk-marked", "a", "Tell me."));
    assert!(has_marks(&served), "{}", served.text());
    let refused = account_of(&gateway, "sk-refused");
    gateway.set_tier(&refused, "critical");
    let reasons = account_of(&gateway, "sk-reasons");
    let asks = "Think step by step and show your complete chain of thought before you answer.";
    for number in 0..8 {
        let query = format!("n={number}");
        let answer = http1::plain(gateway.plain_address(), &request("sk-reasons", &query, asks));
        assert_eq!(answer.status, 200);
    }
    let judged = wait_for("a tier", Duration::from_secs(10), || {
        let now = explained(&gateway, &reasons);
        (now["judged_tier"] == "low" && now["requests"].as_u64() >= Some(9)).then_some(now)
    });
    // The background detectors have the last word; what they say is stored too.
    std::thread::sleep(Duration::from_millis(500));
    let policy = gateway.admin("/v1/policy").json();
    let before = gateway.audit();
    ends(&mut gateway);
    gateway.restart();
    let audit = gateway.audit();
    assert_eq!(audit[..before.len()], before[..], "the audit goes on where it was");
    let acts: Vec<&str> = audit.iter().filter_map(|entry| entry["act"].as_str()).collect();
    assert_eq!(acts.iter().filter(|act| **act == "started").count(), 2, "{acts:?}");
    assert_eq!(explained(&gateway, &marked)["override"]["tier"], "high");
    let answer = http1::plain(gateway.plain_address(), &request("sk-refused", "b", "Tell me."));
    assert_eq!(answer.status, 403, "{}", answer.text());
    let after = explained(&gateway, &reasons);
    assert_eq!(after["requests"], judged["requests"]);
    assert_eq!(after["judged_tier"], judged["judged_tier"]);
    assert_eq!(after["decisions"], judged["decisions"]);
    assert_eq!(gateway.admin("/v1/policy").json()["version"], policy["version"]);
    let marks = gateway.admin("/v1/marks").text();
    assert!(marks.contains(&marked), "{marks}");
    // What was served before the restart is known when somebody else hands it in.
    let text: String = served
        .text()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert!(text.contains(ZERO_WIDTH));
    let thief = http1::plain(gateway.plain_address(), &request("sk-thief", "c", &text));
    assert_eq!(thief.status, 200);
    let review = wait_for("an entry for review", Duration::from_secs(10), || {
        let review = gateway.admin("/v1/review").json();
        let entries = review["review"].as_array()?.clone();
        entries.into_iter().find(|entry| entry["marks_of"] == json!([marked]))
    });
    // The queue lasts as well.
    ends(&mut gateway);
    gateway.restart();
    let again = gateway.admin("/v1/review").json();
    assert!(again["review"].as_array().is_some_and(|all| all.contains(&review)), "{again}");
}

#[test]
fn a_hot_upgrade_hands_memory_over_and_the_chain_goes_on() {
    let provider = Provider::start();
    let mut gateway = gateway(&provider);
    let account = account_of(&gateway, "sk-upgraded");
    for number in 0..4 {
        let query = format!("n={number}");
        let _ = http1::plain(gateway.plain_address(), &request("sk-upgraded", &query, "Hello"));
    }
    let mut old = gateway.upgrade();
    wait_for("the new process", Duration::from_secs(15), || {
        (gateway.ready() && gateway.stderr().contains("serving")).then_some(())
    });
    gateway.set_tier(&account, "high");
    assert!(old.wait(Duration::from_secs(40)).is_some_and(|status| status.success()));
    let now = explained(&gateway, &account);
    assert_eq!(
        (now["requests"].as_u64(), now["override"]["tier"].as_str()),
        (Some(5), Some("high"))
    );
    let started = gateway.audit().iter().filter(|entry| entry["act"] == "started").count();
    assert_eq!(started, 2, "one chain of two processes");
}

#[test]
fn a_backup_of_a_running_gateway_is_restored_by_naming_it() {
    let provider = Provider::start();
    let mut gateway = gateway(&provider);
    let account = account_of(&gateway, "sk-kept");
    gateway.set_tier(&account, "critical");
    wait_for("its row", Duration::from_secs(10), || {
        (gateway.metric("stillgate_account_rows_written_total") > 0.0).then_some(())
    });
    let copy = gateway.folder().join("copy");
    let backup = |to: &Path| {
        let mut run = Command::new(binary());
        run.args(["backup", "--config"]).arg(gateway.folder().join("stillgate.toml"));
        let run = run.arg("--to").arg(to).output().expect("the stillgate binary starts");
        let said = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
        (run.status.success(), said)
    };
    let (done, said) = backup(&copy);
    assert!(done && said.contains("read back and whole"), "{said}");
    let (done, said) = backup(&copy);
    assert!(!done && said.contains("is there already"), "{said}");
    gateway.set_tier(&account, "none");
    let config = gateway.folder().join("stillgate.toml");
    let toml = std::fs::read_to_string(&config).expect("its configuration");
    ends(&mut gateway);
    std::fs::write(&config, format!("data_dir = \"copy\"\n{toml}")).expect("a written file");
    gateway.restart();
    let restored = explained(&gateway, &account);
    assert_eq!(restored["override"]["tier"], "critical", "as it was when it was copied");
    assert_eq!(restored["requests"], 1);
}

#[test]
fn a_damaged_store_is_refused_in_one_line() {
    let provider = Provider::start();
    let mut gateway = gateway(&provider);
    ends(&mut gateway);
    let state = gateway.data().join("state.sqlite");
    let mut bytes = std::fs::read(&state).expect("the state");
    bytes[..64].fill(0x2a);
    std::fs::write(&state, bytes).expect("a written file");
    let config = gateway.folder().join("stillgate.toml");
    for command in [vec!["run", "--config"], vec!["check"]] {
        let run = Command::new(binary()).args(&command).arg(&config).output().expect("it starts");
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(!run.status.success(), "{command:?}: {said}");
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("is damaged")).collect();
        assert_eq!(lines.len(), 1, "{command:?}: {said}");
        assert!(lines[0].contains("stillgate backup"), "{command:?}: {said}");
    }
}

#[test]
fn a_full_disk_is_survived_and_said() {
    if !may_mount() {
        return;
    }
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .policy(
            "[tiers]\nlow = 0.9\nmedium = 0.95\nhigh = 0.97\ncritical = 0.99\n\
             [action.medium]\nverify = true\n",
        )
        .small_disk("4m")
        .start();
    let keys: Vec<String> = (0..6).map(|number| format!("sk-{number}")).collect();
    let accounts: Vec<String> = keys.iter().map(|key| account_of(&gateway, key)).collect();
    for account in &accounts {
        gateway.set_tier(account, "medium");
    }
    let inside = gateway.data_inside();
    let ballast = inside.join("ballast");
    let fill = || {
        let mut file =
            std::fs::OpenOptions::new().create(true).append(true).open(&ballast).expect("a file");
        while file.write_all(&[7; 4096]).is_ok() {}
        while file.write_all(&[7]).is_ok() {}
    };
    // The journals have room of their own until they are cut back.
    let mut acknowledged = accounts.len();
    let refused = wait_for("a change that is refused", Duration::from_secs(30), || {
        fill();
        let account = format!("full-{acknowledged}");
        let path = format!("/v1/accounts/{account}/override");
        let long = json!({"tier": "high", "reason": "x".repeat(400)}).to_string();
        let answer = gateway.admin_do("PUT", &path, &long);
        acknowledged += usize::from(answer.status == 200);
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(refused.status, 507, "{}", refused.text());
    assert!(refused.text().contains("the store's disk is full"), "{}", refused.text());
    // Judgements and what is done by them go on, and are kept.
    for key in &keys {
        let answer = http1::plain(gateway.plain_address(), &request(key, "full", "Hello"));
        assert_eq!(answer.status, 403, "{}", answer.text());
    }
    let new = http1::plain(gateway.plain_address(), &request("sk-new", "full", "Hello"));
    assert_eq!(new.status, 200);
    wait_for("what is kept", Duration::from_secs(10), || {
        (gateway.metric("stillgate_store_unwritten") >= keys.len() as f64).then_some(())
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(gateway.metric("stillgate_store_failing"), 1.0);
    assert_eq!(gateway.admin("/readyz").status, 200, "it serves");
    let said = |what: &str| gateway.stderr().matches(what).count();
    assert_eq!(said("the store cannot be written"), 1, "once: {}", gateway.stderr());
    std::fs::remove_file(&ballast).expect("room");
    wait_for("room to be noticed", Duration::from_secs(10), || {
        (gateway.metric("stillgate_store_failing") == 0.0
            && gateway.metric("stillgate_store_unwritten") == 0.0)
            .then_some(())
    });
    assert_eq!(said("the store can be written again"), 1, "{}", gateway.stderr());
    assert_eq!(gateway.metric("stillgate_store_dropped_total"), 0.0);
    gateway.set_tier(&accounts[0], "none");
    // Copied out of the disk that ends with the process, and read there.
    for file in ["state.sqlite", "state.sqlite-wal"] {
        let to = gateway.data().join(file);
        std::fs::copy(inside.join(file), to).expect("a copy");
    }
    let audit = gateway.audit();
    let of = |act: &str| audit.iter().filter(|entry| entry["act"] == *act).count();
    assert_eq!(of("override_set"), acknowledged + 1, "what was acknowledged is there");
    assert_eq!(of("verification_requested"), keys.len(), "what was kept was written");
}

/// What a client or an operator was told before a crash.
#[derive(Default)]
struct Told {
    overrides: Mutex<BTreeMap<String, String>>,
    marked: Mutex<BTreeSet<String>>,
    audit: Mutex<Vec<Value>>,
    /// Addresses that an operator told of as indicators.
    indicators: Mutex<BTreeSet<String>>,
}

#[test]
fn nothing_acknowledged_is_lost_by_a_crash() {
    crashes(8);
}

/// The long form: `./x crash`.
#[test]
#[ignore = "takes some minutes"]
fn nothing_acknowledged_is_lost_by_a_hundred_crashes() {
    crashes(100);
}

fn crashes(rounds: u64) {
    let provider = Provider::start();
    let mut gateway = gateway(&provider);
    let told = Told::default();
    let (mut starts, mut tiers) = (Vec::new(), 0);
    for round in 0..rounds {
        let run = Duration::from_millis(300 + (round * 7_919 + 401) % 1_500);
        under_load(&mut gateway, round, run, &told);
        starts.push(gateway.restart());
        tiers = check(&gateway, &told, round);
    }
    starts.sort();
    let (overrides, marked) = (told.overrides.lock().unwrap(), told.marked.lock().unwrap());
    let indicators = told.indicators.lock().unwrap().len();
    println!(
        "{rounds} crashes: {} overrides, {tiers} tier changes, {} marked accounts, {indicators} \
         indicators, {} audit entries were told before one; 0 lost; start median {:?}, longest {:?}",
        overrides.len(),
        marked.len(),
        told.audit.lock().unwrap().len(),
        starts[starts.len() / 2],
        starts[starts.len() - 1],
    );
    assert!(overrides.len() as u64 > rounds * 3, "{} overrides", overrides.len());
    assert!(marked.len() as u64 >= rounds, "{} marked", marked.len());
    assert!(tiers as u64 >= rounds, "{tiers} tier changes");
    assert!(indicators as u64 >= rounds, "{indicators} indicators");
    let log = gateway.stderr();
    assert!(!log.contains("ERROR"), "{log}");
}

/// Requests, overrides and marks until the process is killed in the middle of them.
fn under_load(gateway: &mut Gateway, round: u64, run: Duration, told: &Told) {
    let (plain, access) = (gateway.plain_address(), gateway.admin_address());
    let data = gateway.data();
    let key = format!("sk-marked-{round}");
    let account = account_of(gateway, &key);
    let done = AtomicBool::new(false);
    let ended = || done.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                let account = format!("acct-{round}-{number}");
                let tier = ["low", "medium", "high", "critical"][number % 4];
                let path = format!("/v1/accounts/{account}/override");
                let answer = try_admin(access, "PUT", &path, &override_body(tier));
                if answer.is_some_and(|answer| answer.status == 200) {
                    told.overrides.lock().unwrap().insert(account, tier.to_owned());
                }
                if ended() {
                    return;
                }
            }
        });
        scope.spawn(|| {
            let path = format!("/v1/accounts/{account}/override");
            let set = try_admin(access, "PUT", &path, &override_body("high"));
            if set.is_none_or(|answer| answer.status != 200) {
                return;
            }
            told.overrides.lock().unwrap().insert(account.clone(), "high".to_owned());
            while !ended() {
                let answer = try_send(plain, &request(&key, "marked", "Tell me."));
                if answer.is_some_and(|answer| has_marks(&answer)) {
                    told.marked.lock().unwrap().insert(account.clone());
                }
            }
        });
        scope.spawn(|| {
            for number in 0.. {
                let address = indicator(round, number);
                let bundle = json!({ "type": "bundle", "objects": [{
                    "type": "indicator",
                    "id": format!("indicator--{round}-{number}"),
                    "pattern": format!("[ipv4-addr:value = '{address}']"),
                    "pattern_type": "stix",
                    "confidence": 90,
                }] });
                let path = "/v1/iocs/stix?source=told&reason=seen+elsewhere";
                let answer = try_admin(access, "POST", path, &bundle.to_string());
                if answer.is_some_and(|answer| answer.status == 200) {
                    told.indicators.lock().unwrap().insert(address);
                }
                if ended() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        scope.spawn(|| {
            let text = "Think step by step and show your complete chain of thought first.";
            for number in 0.. {
                let key = format!("sk-reasons-{round}-{}", number / 6);
                let _ = try_send(plain, &request(&key, "reasons", text));
                if ended() {
                    return;
                }
            }
        });
        scope.spawn(|| {
            while !ended() {
                let after = told.audit.lock().unwrap().last().map_or(0, seq);
                let read = Command::new(binary())
                    .args(["audit", "export", "--after", &after.to_string(), "--data"])
                    .arg(&data)
                    .output()
                    .expect("it starts");
                let lines = String::from_utf8(read.stdout).expect("text");
                let fresh = lines.lines().map(|line| serde_json::from_str(line).expect("a line"));
                told.audit.lock().unwrap().extend(fresh);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        std::thread::sleep(run);
        gateway.crash();
        done.store(true, Ordering::Relaxed);
    });
}

/// An address for each round and number, none of which is private.
fn indicator(round: u64, number: u64) -> String {
    format!("45.{}.{}.{}", round % 256, number / 250 % 256, number % 250 + 1)
}

/// Every address that is held as an indicator.
fn indicators(gateway: &Gateway) -> BTreeSet<String> {
    let (mut held, mut after) = (BTreeSet::new(), String::new());
    loop {
        let page = wait_for("a page of indicators", Duration::from_secs(30), || {
            let answer = gateway.admin(&format!("/v1/iocs?limit=1000{after}"));
            (answer.status != 429).then(|| answer.json())
        });
        let all = page["indicators"].as_array().expect("a list");
        held.extend(all.iter().filter_map(|one| one["value"].as_str()).map(str::to_owned));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={}", next.replace(' ', "+")),
            None => return held,
        }
    }
}

fn seq(entry: &Value) -> u64 {
    let entry = entry.get("entry").unwrap_or(entry);
    entry["seq"].as_u64().expect("a number")
}

/// Everything that was told is there; how many tier changes that are.
fn check(gateway: &Gateway, told: &Told, round: u64) -> usize {
    let audit = gateway.audit();
    let mut tiers = BTreeMap::new();
    let mut changes = 0;
    for before in told.audit.lock().unwrap().iter() {
        let now = &audit[usize::try_from(seq(before) - 1).unwrap()];
        assert_eq!(now["hash"], before["hash"], "round {round}: entry {}", seq(before));
        changes += usize::from(now["act"] == "tier_changed");
    }
    for entry in audit.iter().filter(|entry| entry["act"] == "tier_changed") {
        let account = entry["account"].as_str().expect("an account").to_owned();
        tiers.insert(account, entry["detail"]["tier"].clone());
    }
    // The latest of each kind; at the end all of them.
    let recent = format!("acct-{round}-");
    let access = gateway.admin_address();
    for (account, tier) in told.overrides.lock().unwrap().iter() {
        if account.starts_with("acct-") && !account.starts_with(&recent) && round % 25 != 7 {
            continue;
        }
        // The endpoint bounds how much it is asked.
        let shown = wait_for("an answer", Duration::from_secs(30), || {
            let path = format!("/v1/accounts/{account}");
            try_admin(access, "GET", &path, "").filter(|answer| answer.status != 429)
        });
        let shown = shown.json();
        assert_eq!(shown["override"]["tier"], **tier, "round {round}: {account}: {shown}");
    }
    let marks = wait_for("the marks", Duration::from_secs(30), || {
        let answer = gateway.admin("/v1/marks");
        (answer.status != 429).then(|| answer.text())
    });
    let held = indicators(gateway);
    for address in told.indicators.lock().unwrap().iter() {
        assert!(held.contains(address), "round {round}: {address} is no indicator any more");
    }
    for account in told.marked.lock().unwrap().iter() {
        assert!(marks.contains(account), "round {round}: {account} was served marks: {marks}");
    }
    // Of whoever is back at none nothing is kept but the audit.
    let suspected = tiers.iter().filter(|(_, tier)| **tier != "none");
    for (account, tier) in suspected.rev().take(20) {
        let shown = explained(gateway, account);
        let begun = shown["decisions"].as_array().is_some_and(|all| !all.is_empty());
        assert!(begun, "round {round}: {account} was at {tier}: {shown}");
    }
    changes
}

/// Times of starts are told where the machine is not the measure; this one only bounds them.
#[test]
fn a_start_does_not_wait_for_what_is_stored() {
    let provider = Provider::start();
    let mut gateway = gateway(&provider);
    for number in 0..50 {
        let key = format!("sk-{number}");
        let _ = http1::plain(gateway.plain_address(), &request(&key, "many", "Hello"));
    }
    ends(&mut gateway);
    let begun = Instant::now();
    let ready = gateway.restart();
    assert!(ready < Duration::from_secs(10), "{ready:?}");
    wait_for("all of them", Duration::from_secs(20), || {
        (gateway.metric("stillgate_account_rows_read_total") >= 50.0).then_some(())
    });
    println!("ready after {ready:?}, all back after {:?}", begun.elapsed());
}
