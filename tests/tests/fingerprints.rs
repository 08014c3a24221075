//! Fingerprints of real clients: what `GET /v1/exchanges` shows is what tshark computes from the
//! packets, and the HTTP/2 fingerprints are the known ones of these clients.
//!
//! Clients run one after the other, so a packet's time tells whose it is; nothing is decrypted.
//! tshark captures the gateway's own port on loopback only.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::clients::{KEY, Target, curl, drive, has_tool, run, trust};
use harness::{Gateway, Provider, skip, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Python clients: name, and the HTTP/2 fingerprint where they speak it.
const PYTHON: &[(&str, Option<&str>)] = &[
    ("requests", None),
    ("aiohttp", None),
    ("httpx:h1", None),
    ("httpx:h2", Some("1:4096;2:0;4:65535;5:16384;3:100;6:65536|16777216|0|m,a,s,p")),
    ("curl_cffi:chrome", Some(CHROME)),
    ("curl_cffi:chrome110", None),
    ("curl_cffi:chrome124", Some(CHROME)),
    ("curl_cffi:edge101", None),
    ("curl_cffi:firefox", Some("1:65536;2:0;4:131072;5:16384|12517377|0|m,p,a,s")),
    ("curl_cffi:safari", Some("2:0;3:100;4:2097152;9:1|10420225|0|m,s,a,p")),
    ("curl_cffi:safari_ios", None),
];
const CHROME: &str = "1:65536;2:0;4:6291456;6:262144|15663105|0|m,a,s,p";
const CURL: &str = "3:100;4:33554432;2:0|33488897|0|m,p,s,a";
/// Connections of a Chrome, to see its extensions move.
const CHROME_RUNS: usize = 4;

/// One client's run.
struct Run {
    name: String,
    /// Unix time in seconds.
    started: f64,
    ended: f64,
}

#[test]
fn exchanges_show_what_tshark_computes() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    if !has_tool("tshark") || !may_capture() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let capture = folder.path().join("capture.pcapng");
    let sniffer = Sniffer::start(&capture, gateway.tls_address().port());
    let mut runs = Vec::new();
    for run in [python_clients, curls, openssl, node] {
        match run(&gateway, folder.path()) {
            Some(more) => runs.extend(more),
            None => return,
        }
    }
    sniffer.stop();
    let hellos = hellos(&capture, gateway.tls_address().port());
    let mut wrong = Vec::new();
    for run in &runs {
        let tls = gateway.exchange(&path_of(&run.name))["tls"].clone();
        let of_run: Vec<&Hello> = hellos
            .iter()
            .filter(|hello| hello.at >= run.started - 0.005 && hello.at <= run.ended + 0.005)
            .collect();
        let Some(hello) = of_run.iter().find(|hello| tls["ja3"] == hello.ja3) else {
            wrong.push(format!("{}: none of {of_run:?} has the JA3 of {tls}", run.name));
            continue;
        };
        let pairs = [
            ("JA3 MD5", &tls["ja3_md5"], Some(&hello.ja3_md5)),
            ("JA3S", &tls["ja3s"], hello.ja3s.as_ref()),
            ("JA3S MD5", &tls["ja3s_md5"], hello.ja3s_md5.as_ref()),
        ];
        for (what, ours, theirs) in pairs {
            if theirs.is_none_or(|theirs| ours != theirs) {
                wrong.push(format!("{}: {what} is {ours}, tshark says {theirs:?}", run.name));
            }
        }
        if let Some(ja4) = hello.ja4.as_ref().filter(|ja4| tls["ja4"] != **ja4) {
            wrong.push(format!("{}: JA4 is {}, tshark says {ja4}", run.name, tls["ja4"]));
        }
        if tls["hello_retry_request"] != hello.retry {
            wrong.push(format!("{}: HelloRetryRequest: {tls}", run.name));
        }
    }
    if hellos.iter().all(|hello| hello.ja4.is_none()) {
        eprintln!("this tshark knows no JA4: JA3 and JA3S were compared");
    }
    assert!(runs.len() >= 20, "only {} clients ran", runs.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), runs.len(), wrong.join("\n"));

    handshakes_are_told_apart(&gateway);
    a_chrome_moves_its_extensions(&gateway);
}

/// Version, resumption, HelloRetryRequest and ALPN as the clients asked for them.
fn handshakes_are_told_apart(gateway: &Gateway) {
    let tls = |name: &str| gateway.exchange(&path_of(name))["tls"].clone();
    assert_eq!(tls("curl-tls12")["version"], "1.2");
    assert_eq!(tls("curl-h2")["version"], "1.3");
    assert_eq!(tls("curl-h2")["alpn"], json!(["h2", "http/1.1"]));
    assert_eq!(tls("curl-h2")["alpn_selected"], "h2");
    assert_eq!(tls("curl-h1")["alpn_selected"], "http/1.1");
    assert_eq!(tls("curl-h1")["sni"], "localhost");
    assert_eq!(tls("openssl-full")["resumed"], false);
    assert_eq!(tls("openssl-resumed")["resumed"], true);
    assert_eq!(tls("openssl-resumed")["ticket"], true);
    assert_eq!(tls("openssl-retry")["hello_retry_request"], true);
    assert_eq!(tls("openssl-full")["hello_retry_request"], false);
    let ja4 = tls("curl-h2")["ja4"].as_str().expect("a JA4").to_owned();
    assert!(ja4.starts_with("t13d") && &ja4[8..10] == "h2", "{ja4}");
    let ja4 = tls("curl-tls12")["ja4"].as_str().expect("a JA4").to_owned();
    assert!(ja4.starts_with("t12d"), "{ja4}");
}

/// Chrome permutes its extensions: its JA3 changes with each connection, its JA4 does not.
fn a_chrome_moves_its_extensions(gateway: &Gateway) {
    let runs: Vec<Value> = (0..CHROME_RUNS)
        .map(|n| gateway.exchange(&path_of(&format!("chrome-again-{n}")))["tls"].clone())
        .collect();
    let distinct = |field: &str| {
        let mut values: Vec<String> = runs.iter().map(|tls| tls[field].to_string()).collect();
        values.sort();
        values.dedup();
        values.len()
    };
    assert_eq!(distinct("ja4"), 1, "{runs:?}");
    assert!(distinct("ja3") > 1, "{runs:?}");
    for tls in &runs {
        for field in ["grease", "post_quantum", "ech"] {
            assert_eq!(tls[field], true, "{field}: {tls}");
        }
    }
}

/// HTTP/2 fingerprints and the order of headers, by clients whose ways are known.
#[test]
fn http2_fingerprints_are_the_known_ones() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let folder = tempfile::tempdir().expect("a folder");
    if curls(&gateway, folder.path()).is_none() || python_clients(&gateway, folder.path()).is_none()
    {
        return;
    }
    let known = PYTHON.iter().filter_map(|(name, akamai)| Some((*name, (*akamai)?)));
    for (name, akamai) in known.chain([("curl-h2", CURL)]) {
        let http = gateway.exchange(&path_of(name))["http"].clone();
        assert_eq!(http["h2"]["akamai"], akamai, "{name}");
        let pseudo = akamai.rsplit('|').next().expect("a last part");
        assert_eq!(http["h2"]["pseudo"], pseudo, "{name}");
        assert_eq!(http["version"], "2", "{name}");
    }
    let names = |name: &str| -> Vec<String> {
        let exchange = gateway.exchange(&path_of(name));
        let fields = exchange["http"]["headers"].as_array().expect("headers").clone();
        fields.iter().map(|field| field["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(
        names("curl-h1"),
        ["Host", "User-Agent", "Accept", "Authorization", "X-Foo", "x-BAR"]
    );
    assert_eq!(names("curl-h2"), ["user-agent", "accept", "authorization", "x-foo", "x-bar"]);
    let agent = gateway.exchange(&path_of("curl-h1"))["http"]["headers"][1].clone();
    assert!(agent["value"].as_str().is_some_and(|value| value.starts_with("curl/")), "{agent}");
    let credential = gateway.exchange(&path_of("curl-h1"))["http"]["headers"][3].clone();
    assert_eq!(credential["value"], Value::Null, "a credential's value is never kept");
}

fn python_clients(gateway: &Gateway, _folder: &Path) -> Option<Vec<Run>> {
    let mut names: Vec<(String, String)> =
        PYTHON.iter().map(|(client, _)| ((*client).to_owned(), (*client).to_owned())).collect();
    for n in 0..CHROME_RUNS {
        names.push((format!("chrome-again-{n}"), "curl_cffi:chrome".to_owned()));
    }
    let scenarios: Vec<Value> = names
        .iter()
        .map(|(name, client)| json!({"name": name, "client": client, "path": path_of(name)}))
        .collect();
    Some(driven(&drive("http_clients.py", &Target::from(gateway), &scenarios)?))
}

fn node(gateway: &Gateway, _folder: &Path) -> Option<Vec<Run>> {
    let scenario = json!({"name": "node-fetch", "method": "GET", "path": path_of("node-fetch")});
    Some(driven(&drive("fetch.mjs", &Target::from(gateway), &[scenario])?))
}

fn driven(seen: &[Value]) -> Vec<Run> {
    let runs = seen.iter().map(|seen| {
        assert_eq!(seen["status"], 200, "{seen}");
        let time = |name: &str| seen[name].as_f64().expect("a time");
        let name = seen["name"].as_str().expect("a name").to_owned();
        Run { name, started: time("started"), ended: time("ended") }
    });
    runs.collect()
}

fn curls(gateway: &Gateway, _folder: &Path) -> Option<Vec<Run>> {
    const RUNS: &[(&str, &[&str])] = &[
        ("curl-h1", &["--http1.1", "--tlsv1.3"]),
        ("curl-h2", &["--http2"]),
        ("curl-tls12", &["--http1.1", "--tls-max", "1.2"]),
        ("curl-curves", &["--http2", "--curves", "P-384:P-256"]),
        ("curl-ciphers", &["--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-AES256-GCM-SHA384"]),
    ];
    let mut runs = Vec::new();
    for (name, arguments) in RUNS {
        let mut command = curl(&Target::from(gateway))?;
        command.args(*arguments);
        command.args([
            "-H",
            &format!("Authorization: Bearer {KEY}"),
            "-H",
            "X-Foo: 1",
            "-H",
            "x-BAR: 2",
        ]);
        command.arg(format!("{}{}", gateway.url(), path_of(name)));
        runs.push(timed(name, || run(&mut command, b"")));
    }
    Some(runs)
}

fn openssl(gateway: &Gateway, folder: &Path) -> Option<Vec<Run>> {
    if !has_tool("openssl") {
        return None;
    }
    let session = folder.join("session.pem").display().to_string();
    let runs: [(&str, Vec<&str>); 3] = [
        ("openssl-full", vec!["-sess_out", &session]),
        ("openssl-resumed", vec!["-sess_in", &session]),
        // Its one key share is for a group that the gateway does not have.
        ("openssl-retry", vec!["-groups", "X448:P-521:P-384:X25519"]),
    ];
    let runs = runs.iter().map(|(name, arguments)| {
        let mut command = Command::new("openssl");
        let address = gateway.tls_address().to_string();
        command.args(["s_client", "-quiet", "-servername", "localhost", "-connect", &address]);
        command.args(arguments);
        trust(&mut command, Some(&gateway.ca_file()));
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            path_of(name)
        );
        timed(name, || run(&mut command, request.as_bytes()))
    });
    Some(runs.collect())
}

fn timed(name: &str, command: impl FnOnce() -> std::process::Output) -> Run {
    // A little air between two runs, so that no packet is near another's window.
    std::thread::sleep(Duration::from_millis(20));
    let started = now();
    let output = command();
    let ended = now();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{stderr}", output.status);
    Run { name: name.to_owned(), started, ended }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

fn path_of(name: &str) -> String {
    format!("/fingerprint/{}/", name.replace(':', "-"))
}

/// A running packet capture of one loopback port.
struct Sniffer {
    child: Child,
    file: PathBuf,
}

impl Sniffer {
    fn start(file: &Path, port: u16) -> Self {
        let child = Command::new("tshark")
            .args(["-q", "-i", "lo", "-f", &format!("tcp port {port}"), "-w"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tshark starts");
        let sniffer = Self { child, file: file.to_path_buf() };
        // The capture runs when a packet of ours has come into the file.
        wait_for(
            "a packet in the capture (may this user capture?)",
            Duration::from_secs(20),
            || {
                drop(std::net::TcpStream::connect(("127.0.0.1", port)));
                std::thread::sleep(Duration::from_millis(200));
                (sniffer.bytes() > 1000).then_some(())
            },
        );
        sniffer
    }

    fn bytes(&self) -> u64 {
        std::fs::metadata(&self.file).map_or(0, |file| file.len())
    }

    fn stop(mut self) {
        // What was captured last has to leave the kernel's buffer first.
        std::thread::sleep(Duration::from_millis(1500));
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("a running tshark");
        let _ = self.child.wait();
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A handshake as tshark reads it: the first ClientHello, the last ServerHello.
#[derive(Clone, Debug, Default)]
struct Hello {
    at: f64,
    ja3: String,
    ja3_md5: String,
    ja4: Option<String>,
    ja3s: Option<String>,
    ja3s_md5: Option<String>,
    retry: bool,
}

fn hellos(capture: &Path, port: u16) -> Vec<Hello> {
    let mut fields = vec![
        "tcp.stream",
        "frame.time_epoch",
        "tls.handshake.ja3_full",
        "tls.handshake.ja3",
        "tls.handshake.ja3s_full",
        "tls.handshake.ja3s",
    ];
    if knows_ja4() {
        fields.push("tls.handshake.ja4");
    }
    let mut command = Command::new("tshark");
    command.arg("-r").arg(capture).args(["-d", &format!("tcp.port=={port},tls")]);
    command.args(["-Y", "tls.handshake.type == 1 || tls.handshake.type == 2"]);
    command.args(["-T", "fields", "-E", "separator=|", "-E", "occurrence=a", "-E", "aggregator=;"]);
    for field in &fields {
        command.args(["-e", field]);
    }
    let output = run(&mut command, b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut by_stream: HashMap<String, Hello> = HashMap::new();
    let mut order = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let values: Vec<&str> = line.split('|').collect();
        let stream = values[0].to_owned();
        if !values[2].is_empty() {
            let first = |value: &str| value.split(';').next().unwrap_or_default().to_owned();
            by_stream.entry(stream.clone()).or_insert_with(|| {
                order.push(stream.clone());
                Hello {
                    at: values[1].parse().expect("a time"),
                    ja3: first(values[2]),
                    ja3_md5: first(values[3]),
                    ja4: values.get(6).map(|value| first(value)),
                    ..Hello::default()
                }
            });
        }
        if !values[4].is_empty() {
            let last = |value: &str| value.rsplit(';').next().map(str::to_owned);
            let hello = by_stream.get_mut(&stream).expect("a ClientHello comes first");
            // A second ServerHello means that the first was a HelloRetryRequest.
            hello.retry |= hello.ja3s.is_some() || values[4].contains(';');
            (hello.ja3s, hello.ja3s_md5) = (last(values[4]), last(values[5]));
        }
    }
    order.iter().map(|stream| by_stream[stream].clone()).collect()
}

/// Whether this user may capture on loopback; says `SKIP` if not.
fn may_capture() -> bool {
    let output = run(Command::new("tshark").arg("-D"), b"");
    let may = String::from_utf8_lossy(&output.stdout).lines().any(|line| line.contains(" lo"));
    if !may {
        skip("the right to capture on loopback (root, or the group wireshark)");
    }
    may
}

fn knows_ja4() -> bool {
    let output = run(Command::new("tshark").args(["-G", "fields"]), b"");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .any(|line| line.contains("\ttls.handshake.ja4\t"))
}
