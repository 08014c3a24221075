//! A DNS sensor's reports at the gateway: who may send them and how, what is taken of them, and how
//! accounts whose addresses they tell of show it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::http1::{self, Response};
use harness::sensor::{
    SENSOR_TOKEN, SENSOR_TOKEN_TABLE, contact, lookup, post, post_on_socket, report, request,
};
use harness::{ADMIN_TOKEN, Gateway, GatewayBuilder, Provider, balancer, sensor, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(10);
/// Addresses: of a host that uses DoH, of one that uses plain DNS, of one of which nothing is told.
const HIDES: &str = "203.0.113.7";
const PLAIN: &str = "198.51.100.8";
const UNSEEN: &str = "192.0.2.9";

fn gateway(provider: &Provider) -> GatewayBuilder {
    Gateway::in_front_of(provider.address())
        .listener("proxy_protocol_from = [\"127.0.0.1/32\"]")
        .secret("sensor.token", SENSOR_TOKEN)
        .table(SENSOR_TOKEN_TABLE)
}

fn with_socket(provider: &Provider) -> GatewayBuilder {
    gateway(provider).table("[sensor]\nsocket = \"sensor.sock\"\n")
}

fn socket_of(gateway: &Gateway) -> PathBuf {
    gateway.folder().join("sensor.sock")
}

/// What two hosts do: one asks a DoH resolver and contacts an address that it looked up there.
fn lookups() -> [Value; 3] {
    [
        lookup(HIDES, "doh", "9.9.9.9", "quad9"),
        lookup(HIDES, "doh3", "9.9.9.9", "quad9"),
        lookup(PLAIN, "udp", "198.51.100.53", ""),
    ]
}

#[test]
fn accounts_whose_addresses_use_encrypted_dns_show_it() {
    let provider = Provider::start();
    let mut gateway = with_socket(&provider).record().start();
    let path = socket_of(&gateway);
    let by_token = report("egress-1", 1, &lookups(), &[contact(HIDES, "198.51.100.9")]);
    let on_socket = report("egress-2", 1, &[lookup("2001:db8::7", "dot", "2620:fe::fe", "")], &[]);
    taken(&post(gateway.admin_address(), SENSOR_TOKEN, &by_token), 4);
    taken(&post_on_socket(&path, &on_socket), 1);
    let told = [(HIDES, true), (PLAIN, false), (UNSEEN, false), ("2001:db8::7", true)];
    for (number, (address, _)) in told.iter().enumerate() {
        for _ in 0..6 {
            ask(&gateway, address, number);
        }
    }
    let mut accounts = Vec::new();
    for (address, encrypted) in told {
        let account = account_at(&gateway, address);
        let shown = gateway.admin(&format!("/v1/accounts/{account}")).json();
        let finding = dns_finding(&shown);
        let strength = finding.and_then(|finding| finding["strength"].as_f64()).unwrap_or(0.0);
        assert_eq!(strength > 0.0, encrypted, "{address}: {shown}");
        accounts.push((account, encrypted));
    }

    let sensors = gateway.admin("/v1/sensors").json();
    let [first, second] = sensors["sensors"].as_array().expect("a list").as_slice() else {
        panic!("{sensors}");
    };
    assert_eq!((&first["sensor"], &first["token"]), (&json!("egress-1"), &json!("egress")));
    assert_eq!((&first["from"], &second["from"]), (&json!("127.0.0.1"), &json!("socket")));
    assert_eq!((&first["lookups"], &first["contacts"]), (&json!(3), &json!(1)));
    assert_eq!((&first["silent"], &second["run"]), (&json!(false), &json!("00000000000000a1")));
    for (metric, value) in [
        ("stillgate_sensor_reports_total{outcome=\"taken\"", 2.0),
        ("stillgate_sensor_lookups_total{transport=\"doh3\"", 1.0),
        ("stillgate_sensor_lookups_total{transport=\"dot\"", 1.0),
        ("stillgate_sensor_contacts_total", 1.0),
        ("stillgate_sensors{state=\"reporting\"", 2.0),
    ] {
        assert_eq!(gateway.metric(metric), value, "{metric}");
    }
    assert!(gateway.metric("stillgate_sensor_last_report_timestamp_seconds") > 1.7e9);
    // Reports are no acts of operators: the audit, which is kept for ever, does not tell of them.
    gateway.signal(Signal::TERM);
    assert!(gateway.wait(Duration::from_secs(40)).is_some(), "it does not end");
    assert!(!gateway.audit().iter().any(|entry| entry.to_string().contains("egress-1")));

    replay_shows_the_same(&gateway, &accounts);
}

/// The trace holds what the sensors told, and a replay of it finds what the gateway found.
fn replay_shows_the_same(gateway: &Gateway, accounts: &[(String, bool)]) {
    let text = fs::read_to_string(gateway.folder().join("trace.jsonl")).expect("a trace");
    let mut lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).count();
    assert_eq!((of("dns"), of("contact"), of("request")), (4, 1, 24));
    lines.sort_by(|a, b| a["ts"].as_f64().partial_cmp(&b["ts"].as_f64()).expect("times"));
    let sorted = gateway.folder().join("sorted.jsonl");
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(&sorted, lines.join("\n")).expect("a written trace");
    let mut replay = Command::new(harness::binary());
    replay.arg("replay").arg(&sorted);
    for (account, _) in accounts {
        replay.args(["--explain", &account[..17]]);
    }
    let output = replay.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for (account, encrypted) in accounts {
        let begins = format!("\n{}: ", &account[..17]);
        let explained = said.split(&begins).nth(1).unwrap_or_else(|| panic!("{said}"));
        let explained = explained.split("\nacct-").next().unwrap_or_default();
        assert_eq!(explained.contains("dns_transport"), *encrypted, "{account}: {said}");
    }
}

#[test]
fn a_sensor_reports_and_does_nothing_else() {
    let provider = Provider::start();
    let roles = ["peer", "viewer", "operator"];
    let mut builder = with_socket(&provider);
    for role in roles {
        builder = builder.secret(&format!("{role}.token"), &token_of(role)).table(&format!(
            "[[admin.token]]\nname = \"{role}\"\nrole = \"{role}\"\nfile = \"{role}.token\"\n"
        ));
    }
    let gateway = builder.start();
    let admin = gateway.admin_address();
    let one = report("egress-1", 1, &lookups(), &[]);
    for role in roles {
        let refused = post(admin, &token_of(role), &one);
        problem(&refused, 403, "the role sensor");
    }
    problem(&post(admin, "a-token-that-nobody-has", &one), 401, "admin token");
    assert_eq!(gateway.admin("/v1/sensors").json()["sensors"], json!([]));
    taken(&post(admin, SENSOR_TOKEN, &one), 3);
    taken(&post(admin, ADMIN_TOKEN, &report("egress-1", 2, &lookups(), &[])), 3);
    for path in ["/v1/sensors", "/metrics", "/v1/iocs/export", "/v1/accounts", "/openapi.json"] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {SENSOR_TOKEN}\r\n\
             connection: close\r\n\r\n"
        );
        assert_eq!(http1::plain(admin, request.as_bytes()).status, 403, "{path}");
    }
    // On the socket there is nothing else, whatever token is sent.
    for (request, expected) in [
        ("GET /v1/sensors", 404),
        ("GET /metrics", 404),
        ("GET /healthz", 404),
        ("GET /v1/sensor/reports", 405),
        ("DELETE /v1/sensor/reports", 405),
    ] {
        let request = format!(
            "{request} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {ADMIN_TOKEN}\r\n\
             connection: close\r\n\r\n"
        );
        let mut stream = sensor::connect(&socket_of(&gateway));
        assert_eq!(http1::exchange(&mut stream, request.as_bytes()).status, expected, "{request}");
    }
}

#[test]
fn a_report_is_taken_whole_and_once() {
    let provider = Provider::start();
    let mut gateway = with_socket(&provider).start();
    let (admin, path) = (gateway.admin_address(), socket_of(&gateway));
    let first = report("egress-1", 1, &lookups(), &[]);
    let answer = post(admin, SENSOR_TOKEN, &first);
    taken(&answer, 3);
    let instance = answer.header("stillgate-instance").expect("the instance").to_owned();
    assert!(instance.len() == 16 && instance.bytes().all(|byte| byte.is_ascii_hexdigit()));
    // Whichever way it comes again.
    taken(&post(admin, SENSOR_TOKEN, &first), 0);
    let again = post_on_socket(&path, &first);
    taken(&again, 0);
    assert_eq!(again.header("stillgate-instance"), Some(&*instance));

    let mut wrong = report("egress-1", 2, &lookups(), &[]);
    wrong["lookups"][2]["server"] = json!("planted-secret");
    for refused in [post(admin, SENSOR_TOKEN, &wrong), post_on_socket(&path, &wrong)] {
        problem(&refused, 400, "lookups[2].server must be an IP address");
    }
    let mut more = report("egress-1", 2, &lookups(), &[]);
    more["planted-secret"] = json!(true);
    problem(&post(admin, SENSOR_TOKEN, &more), 400, "line 1, column");
    let many = vec![lookup(HIDES, "doh", "9.9.9.9", "quad9"); 1_001];
    problem(&post(admin, SENSOR_TOKEN, &report("egress-1", 2, &many, &[])), 400, "1000 together");
    let long = vec![b' '; 1024 * 1024 + 1];
    let authorization = format!("authorization: Bearer {SENSOR_TOKEN}\r\n");
    problem(&http1::plain(admin, &request(&authorization, &long)), 413, "too large");
    problem(&http1::exchange(&mut sensor::connect(&path), &request("", &long)), 413, "too large");
    // In pieces nobody says how long it will be.
    let mut stream = http1::connect(admin);
    let head = format!(
        "POST /v1/sensor/reports HTTP/1.1\r\nhost: a\r\n{authorization}transfer-encoding: chunked\r\n\
         connection: close\r\n\r\n{:x}\r\n",
        long.len()
    );
    stream.write_all(head.as_bytes()).expect("a head is taken");
    problem(
        &http1::exchange(&mut stream, &[&long[..], b"\r\n0\r\n\r\n"].concat()),
        413,
        "too large",
    );

    // Nothing of these was taken: the number is still free.
    taken(&post(admin, SENSOR_TOKEN, &report("egress-1", 2, &many[..1_000], &[])), 1_000);
    let seen = &gateway.admin("/v1/sensors").json()["sensors"][0];
    assert_eq!(
        (&seen["reports"], &seen["repeated"], &seen["lookups"]),
        (&json!(2), &json!(2), &json!(1003))
    );
    let refused = "stillgate_sensor_reports_refused_total{reason=";
    assert_eq!(gateway.metric(&format!("{refused}\"malformed\"")), 4.0);
    assert!(gateway.metric(&format!("{refused}\"oversize\"")) >= 1.0);
    assert!(!gateway.stderr().contains("planted"), "{}", gateway.stderr());

    // A process that knows nothing yet says so by its name.
    gateway.kill_and_start();
    let answer = post(gateway.admin_address(), SENSOR_TOKEN, &first);
    taken(&answer, 3);
    assert_ne!(answer.header("stillgate-instance"), Some(&*instance));
}

#[test]
fn the_socket_is_the_process_own_from_start_to_end() {
    let provider = Provider::start();
    let settings = "[sensor]\nsocket = \"sensor.sock\"\nsocket_mode = \"0600\"\n";
    let mut gateway = gateway(&provider).table(settings).start();
    let path = socket_of(&gateway);
    await_socket(&path);
    assert_eq!(mode(&path), 0o600);
    // What a crash leaves behind is no obstacle, and another process's socket is not taken away.
    gateway.crash();
    assert!(path.exists(), "the story needs a stale file");
    gateway.restart();
    await_socket(&path);
    taken(&post_on_socket(&path, &report("egress-1", 1, &lookups(), &[])), 3);
    for (signal, limit) in [(Signal::TERM, 40), (Signal::INT, 10)] {
        gateway.signal(signal);
        assert!(gateway.wait(Duration::from_secs(limit)).is_some(), "it does not end");
        assert!(!path.exists(), "{signal:?} leaves the file");
        gateway.restart();
        await_socket(&path);
    }
}

/// While a new process takes over there is always somebody who takes reports.
#[test]
fn a_hot_upgrade_keeps_the_socket() {
    let provider = Provider::start();
    let mut gateway = with_socket(&provider).server("drain_seconds = 20").start();
    let path = socket_of(&gateway);
    await_socket(&path);
    let stop = Arc::new(AtomicBool::new(false));
    let reporting = {
        let (path, stop) = (path.clone(), stop.clone());
        std::thread::spawn(move || {
            let (mut instances, mut number) = (Vec::new(), 0);
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let answer = post_on_socket(&path, &report("egress-1", number, &lookups(), &[]));
                taken(&answer, 3);
                instances.push(answer.header("stillgate-instance").unwrap_or_default().to_owned());
                std::thread::sleep(Duration::from_millis(10));
            }
            instances
        })
    };
    let mut old = gateway.upgrade();
    let status = old.wait(Duration::from_secs(30)).expect("the old process ends");
    assert!(status.success(), "{status}\n{}", old.stderr());
    assert!(path.exists(), "the old process took the file with it");
    std::thread::sleep(Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    let mut instances = reporting.join().expect("every report was taken");
    let reports = instances.len();
    assert!(reports > 50, "only {reports} reports were made");
    instances.sort_unstable();
    instances.dedup();
    assert_eq!(instances.len(), 2, "both processes took some");
    gateway.signal(Signal::TERM);
    assert!(gateway.wait(Duration::from_secs(40)).is_some(), "the new process does not end");
    assert!(!path.exists(), "the new process leaves the file");
}

/// A connection that says nothing does not stay, and too many do not stay either.
#[test]
fn connections_to_the_socket_are_bounded() {
    let provider = Provider::start();
    let gateway = with_socket(&provider).start();
    let path = socket_of(&gateway);
    await_socket(&path);
    let mut open: Vec<_> = (0..64).map(|_| sensor::connect(&path)).collect();
    // One that finds no place is closed unread.
    wait_for("a closed connection", PATIENCE, || {
        open.push(sensor::connect(&path));
        let answer = post_on_socket(&path, &report("egress-1", 1, &lookups(), &[]));
        (answer.status == 0).then_some(())
    });
    open.truncate(8);
    wait_for("room for a report", PATIENCE, || {
        let answer = post_on_socket(&path, &report("egress-1", 2, &lookups(), &[]));
        (answer.status == 200).then_some(())
    });
    let closed = std::io::Read::read(&mut open[0], &mut [0; 1]);
    assert_eq!(closed.ok(), Some(0), "it is still open after the time for a head");
}

fn ask(gateway: &Gateway, client: &str, number: usize) {
    let body =
        r#"{"model":"sample-1","messages":[{"role":"user","content":"what is for supper"}]}"#;
    let client = std::net::SocketAddr::new(client.parse().expect("an address"), 4711);
    let mut stream = http1::connect(gateway.further_address(0));
    stream.write_all(&balancer::header(client)).expect("a header is taken");
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer \
         sk-test-{number}-0123456789abcdefghij\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = http1::exchange(&mut stream, request.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// The account that asked from an address.
fn account_at(gateway: &Gateway, address: &str) -> String {
    wait_for("an exchange", PATIENCE, || {
        let exchanges = gateway.exchanges(100);
        let from = exchanges.into_iter().find(|exchange| exchange["ip"] == address)?;
        Some(from["account"].as_str().expect("an account").to_owned())
    })
}

fn dns_finding(account: &Value) -> Option<&Value> {
    let findings = account["findings"].as_array().expect("findings");
    findings.iter().find(|finding| finding["detector"] == "dns_transport")
}

fn token_of(role: &str) -> String {
    format!("{role}-token-0123456789abcdef")
}

fn taken(answer: &Response, entries: usize) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json(), json!({ "taken": entries }));
}

/// A problem detail (RFC 9457) that says what is wrong, and not what was sent.
fn problem(answer: &Response, status: u16, part: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let problem = answer.json();
    assert_eq!(problem["status"], status, "{problem}");
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.contains(part) && problem["title"].is_string(), "{problem}");
    assert!(!problem.to_string().contains("planted"), "{problem}");
}

fn await_socket(path: &Path) {
    wait_for("the socket", PATIENCE, || {
        fs::symlink_metadata(path).ok().filter(|found| found.file_type().is_socket())
    });
    wait_for("somebody who listens", PATIENCE, || {
        std::os::unix::net::UnixStream::connect(path).ok()
    });
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("the socket").permissions().mode() & 0o777
}
