//! The sensor on a network: every way of looking a name up, by every path a packet takes, told once and
//! right; what is none of it, not at all. Real clients (kdig, curl, aioquic) and a real resolver.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::netns::{
    CLIENT, Cgroup, LISTED, LISTED_FREE, NAMED, Namespace, Network, RESOLVER, Running, UNLISTED,
    UNLISTED_FREE, UNNAMED,
};
use harness::{Authority, clients, hello, sensor_binary, wait_for};
use serde_json::{Value, json};

/// Until a sighting is told: a hello is waited for a second, a contact's name two.
const TOLD_MAX: Duration = Duration::from_secs(6);
/// What is not told by then is not told.
const QUIET: Duration = Duration::from_millis(3500);

/// A sensor that prints what it sees.
struct Watch {
    running: Running,
    lines: Arc<Mutex<Vec<Value>>>,
    log: Arc<Mutex<String>>,
}

impl Watch {
    fn start(host: &Namespace, arguments: &[&str]) -> Self {
        Self::run(host.command(sensor_binary()).arg("watch").args(arguments))
    }

    fn run(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("stillgate-sensor");
        let (lines, log) = (Arc::default(), Arc::default());
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let told: Arc<Mutex<Vec<Value>>> = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).expect("a line of JSON");
                told.lock().unwrap().push(line);
            }
        });
        let said: Arc<Mutex<String>> = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(err).lines().map_while(Result::ok) {
                let mut said = said.lock().unwrap();
                said.push_str(&line);
                said.push('\n');
            }
        });
        let watch = Self { running: Running(child), lines, log };
        wait_for("sensor that watches", Duration::from_secs(20), || {
            watch.log().contains("watching").then_some(())
        });
        watch
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Forgets what was told so far.
    fn forget(&self) {
        self.lines.lock().unwrap().clear();
    }

    fn all(&self) -> Vec<Value> {
        self.lines.lock().unwrap().clone()
    }

    /// What was told that has all of this.
    fn like(&self, wanted: &Value) -> Vec<Value> {
        self.all().into_iter().filter(|line| has(line, wanted)).collect()
    }

    /// Waits for what has all of `wanted`, then until nothing more can come; it is told once.
    fn once(&self, what: &str, wanted: &Value) -> Value {
        let end = Instant::now() + TOLD_MAX;
        while self.like(wanted).is_empty() {
            assert!(
                Instant::now() < end,
                "{what}: no {wanted}\nbut {:#?}\n{}",
                self.all(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(300));
        let found = self.like(wanted);
        assert_eq!(found.len(), 1, "{what}: {:#?}", self.all());
        found.into_iter().next().unwrap()
    }
}

/// Whether a line has each of the wanted members, with its value.
fn has(line: &Value, wanted: &Value) -> bool {
    match (line, wanted) {
        (Value::Object(line), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| line.get(key).is_some_and(|found| has(found, value)))
        }
        _ => line == wanted,
    }
}

/// Starts programs somewhere: on a host, or on a host and in a cgroup.
type Start<'a> = &'a dyn Fn(&str) -> Command;

/// Runs a client to its end, however it ends; gives its process id.
fn client(start: Start<'_>, program: &str, arguments: &str) -> u32 {
    let mut command = start(program);
    command.args(arguments.split(' ')).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::null()).spawn().expect(program);
    let id = child.id();
    child.wait().expect(program);
    id
}

/// One way of looking a name up.
struct Case {
    what: &'static str,
    program: &'static str,
    arguments: String,
    wanted: Value,
}

/// Every transport by a real client, in both versions of IP.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for six in [false, true] {
        let pick = |pair: (std::net::Ipv4Addr, std::net::Ipv6Addr)| match six {
            true => IpAddr::from(pair.1),
            false => IpAddr::from(pair.0),
        };
        let from = pick(CLIENT);
        let mut case =
            |what, program, arguments: String, transport: &str, to: IpAddr, more: Value| {
                let mut wanted = json!({"kind": "lookup", "address": from, "transport": transport,
                "server": to});
                wanted.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                cases.push(Case { what, program, arguments, wanted });
            };
        let (plain, listed, unlisted) = (pick(RESOLVER), pick(LISTED), pick(UNLISTED));
        let quick = "+timeout=2 +retry=0";
        let name = if six { "six.example" } else { "four.example" };
        case(
            "UDP",
            "kdig",
            format!("{quick} @{plain} {name}"),
            "udp",
            plain,
            json!({"name": name, "port": 53, "sign": "port"}),
        );
        case(
            "TCP",
            "kdig",
            format!("{quick} +tcp @{plain} {name}"),
            "tcp",
            plain,
            json!({"name": name, "port": 53, "sign": "port"}),
        );
        case(
            "DoT",
            "kdig",
            format!("{quick} +tls @{plain} {name}"),
            "dot",
            plain,
            json!({"port": 853, "sign": "port", "name": null}),
        );
        case(
            "DoT with a name",
            "kdig",
            format!("{quick} +tls +tls-hostname=dns.example @{unlisted} {name}"),
            "dot",
            unlisted,
            json!({"server_name": "dns.example"}),
        );
        case(
            "DoQ",
            "kdig",
            format!("{quick} +quic @{plain} {name}"),
            "doq",
            plain,
            json!({"port": 853, "sign": "port", "name": null}),
        );
        case(
            "DoH by address",
            "kdig",
            format!("{quick} +https @{listed} {name}"),
            "doh",
            listed,
            json!({"port": 443, "sign": "address", "provider": "cloudflare", "name": null}),
        );
        let host = if six { format!("[{unlisted}]") } else { unlisted.to_string() };
        case(
            "DoH by name",
            "curl",
            format!(
                "-sk -m 3 --resolve cloudflare-dns.com:443:{host} \
                     https://cloudflare-dns.com/dns-query?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxlAAABAAE"
            ),
            "doh",
            unlisted,
            json!({"port": 443, "sign": "name", "provider": "cloudflare",
                "server_name": "cloudflare-dns.com"}),
        );
    }
    // What curl does when it is told to resolve over HTTPS.
    cases.push(Case {
        what: "curl --doh-url",
        program: "curl",
        arguments: format!(
            "-sk4 -m 3 --doh-insecure --doh-url https://{}/dns-query http://{}/",
            LISTED.0, "www.example"
        ),
        wanted: json!({"kind": "lookup", "address": CLIENT.0, "transport": "doh",
            "server": LISTED.0, "sign": "address"}),
    });
    cases
}

/// QUIC by aioquic, with a server that answers: DoQ, and DoH3 by address and by name.
fn quic(network: &Network, authority: &Authority, folder: &Path, watch: &Watch) {
    let Some(driver) = clients::driver("quic_peer.py") else { return };
    let on = |host: &Namespace| {
        let mut command = host.command(driver.get_program());
        command.args(driver.get_args()).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    };
    let identity = authority.sign("quic");
    let (chain, key) = (folder.join("quic.pem"), folder.join("quic.key"));
    std::fs::write(&chain, &identity.chain_pem).unwrap();
    std::fs::write(&key, &identity.key_pem).unwrap();
    for (what, to, port, alpn, name, wanted) in [
        (
            "DoQ",
            IpAddr::from(UNLISTED_FREE.0),
            853,
            "doq",
            "dns.example",
            json!({"transport": "doq", "sign": "port", "server_name": "dns.example"}),
        ),
        (
            "DoQ, IPv6",
            IpAddr::from(UNLISTED_FREE.1),
            853,
            "doq",
            "dns.google",
            json!({"transport": "doq", "provider": "google", "server_name": "dns.google"}),
        ),
        (
            "DoH3 by address",
            IpAddr::from(LISTED_FREE.0),
            443,
            "h3",
            "one.example",
            json!({"transport": "doh3", "sign": "address", "provider": "cloudflare"}),
        ),
        (
            "DoH3 by name",
            IpAddr::from(UNLISTED_FREE.0),
            443,
            "h3",
            "cloudflare-dns.com",
            json!({"transport": "doh3", "sign": "name", "provider": "cloudflare",
                "server_name": "cloudflare-dns.com"}),
        ),
        (
            "DoH3 by name, IPv6",
            IpAddr::from(UNLISTED_FREE.1),
            443,
            "h3",
            "dns.quad9.net",
            json!({"transport": "doh3", "sign": "name", "provider": "quad9"}),
        ),
    ] {
        let mut server = on(&network.internet);
        server.args(["serve", &to.to_string(), &port.to_string(), alpn]).arg(&chain).arg(&key);
        let mut server = Running(server.stdout(Stdio::piped()).spawn().expect("a QUIC server"));
        let mut told = String::new();
        let out = server.0.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut told).unwrap();
        assert_eq!(told, "serving\n");
        watch.forget();
        let mut command = on(&network.client);
        command.args(["connect", &to.to_string(), &port.to_string(), alpn, name]);
        let output = command.output().expect("a QUIC client");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "connected\n",
            "{what}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let wanted = {
            let mut all = json!({"kind": "lookup", "server": to, "port": port});
            all.as_object_mut().unwrap().extend(wanted.as_object().unwrap().clone());
            all
        };
        watch.once(what, &wanted);
        assert_eq!(watch.like(&json!({"kind": "lookup"})).len(), 1, "{what}: {:#?}", watch.all());
    }
}

/// A network with a resolver, and a sensor on the router.
struct Forwarded {
    watch: Watch,
    _resolver: Running,
    folder: tempfile::TempDir,
    authority: Authority,
    network: Network,
}

impl Forwarded {
    fn new(more: &[&str]) -> Option<Self> {
        let network = Network::new()?;
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let resolver = network.resolver(folder.path(), &authority);
        let links = ["--no-local", "--link", "lan0=clients", "--link", "wan0=internet"];
        let watch = Watch::start(&network.router, &[&links[..], more].concat());
        Some(Self { watch, _resolver: resolver, folder, authority, network })
    }

    fn start(&self) -> impl Fn(&str) -> Command {
        |program| self.network.client.command(program)
    }
}

fn every_transport(forwarded: &Forwarded) {
    let Forwarded { watch, network, folder, authority, .. } = forwarded;
    for case in cases() {
        watch.forget();
        client(&forwarded.start(), case.program, &case.arguments);
        let line = watch.once(case.what, &case.wanted);
        assert_eq!(line["process"], Value::Null, "{}", case.what);
        assert_eq!(line["link"], "lan0", "{}", case.what);
        assert_eq!(
            watch.like(&json!({"kind": "lookup"})).len(),
            1,
            "{}: {:#?}",
            case.what,
            watch.all()
        );
    }
    quic(network, authority, folder.path(), watch);
}

#[test]
fn forwarded_by_tcx_or_what_the_kernel_has() {
    let Some(forwarded) = Forwarded::new(&[]) else { return };
    every_transport(&forwarded);
}

#[test]
fn forwarded_by_clsact() {
    let Some(forwarded) = Forwarded::new(&["--clsact"]) else { return };
    every_transport(&forwarded);
}

#[test]
fn local_processes_are_named() {
    let Some(network) = Network::new() else { return };
    let Some(cgroup) = Cgroup::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let _resolver = network.resolver(folder.path(), &Authority::new());
    let path = cgroup.path().display().to_string();
    let watch = Watch::start(&network.client, &["--cgroup", &path]);
    let start = |program: &str| cgroup.command(&network.client, program);
    for case in cases() {
        watch.forget();
        let pid = client(&start, case.program, &case.arguments);
        let line = watch.once(case.what, &case.wanted);
        let process = json!({"pid": pid, "name": case.program, "cgroup": cgroup.id(), "uid": 0});
        assert_eq!(line["process"], process, "{}", case.what);
        assert_eq!(
            watch.like(&json!({"kind": "lookup"})).len(),
            1,
            "{}: {:#?}",
            case.what,
            watch.all()
        );
    }
    // Another process on the machine, outside of this cgroup.
    watch.forget();
    let outside = |program: &str| network.client.command(program);
    client(&outside, "kdig", &format!("+timeout=1 +retry=0 @{} elsewhere.example", RESOLVER.0));
    std::thread::sleep(QUIET);
    assert_eq!(watch.all(), [] as [Value; 0]);
}

#[test]
fn sockets_alone_tell_transport_and_process() {
    let Some(network) = Network::new() else { return };
    let Some(cgroup) = Cgroup::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let _resolver = network.resolver(folder.path(), &Authority::new());
    let path = cgroup.path().display().to_string();
    let watch = Watch::start(&network.client, &["--cgroup", &path, "--sockets-only"]);
    let start = |program: &str| cgroup.command(&network.client, program);
    for case in cases().iter().filter(|case| case.wanted["sign"] != "name") {
        watch.forget();
        let pid = client(&start, case.program, &case.arguments);
        let wanted = json!({"kind": "lookup", "transport": case.wanted["transport"],
            "server": case.wanted["server"], "address": case.wanted["address"]});
        let line = watch.once(case.what, &wanted);
        assert_eq!(line["process"]["pid"], pid, "{}", case.what);
        assert_eq!(line["process"]["name"], case.program, "{}", case.what);
        assert_eq!((&line["name"], &line["server_name"]), (&Value::Null, &Value::Null));
    }
}

/// Where the whole machine's sockets are watched, functions of the kernel tell of them, if they can.
#[test]
fn functions_tell_of_every_socket() {
    let Some(network) = Network::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let _resolver = network.resolver(folder.path(), &Authority::new());
    for more in [&[][..], &["--no-fentry"]] {
        let watch = Watch::start(&network.client, &[&["--sockets-only"], more].concat());
        let attached = |hook: &str| watch.log().contains(&format!("{hook}: attached"));
        let udp = match (attached("fentry on udp_sendmsg"), attached("kprobe on udp_sendmsg")) {
            (true, _) => "fentry/udp_sendmsg",
            (_, true) => "kprobe/udp_sendmsg",
            _ => "cgroup/",
        };
        assert!(attached("tp_btf on inet_sock_set_state"), "{}", watch.log());
        for case in cases().iter().filter(|case| case.wanted["sign"] != "name") {
            watch.forget();
            let start = |program: &str| network.client.command(program);
            let pid = client(&start, case.program, &case.arguments);
            let wanted = json!({"kind": "lookup", "transport": case.wanted["transport"],
                "server": case.wanted["server"], "address": case.wanted["address"],
                "process": {"pid": pid, "name": case.program}});
            let line = watch.once(case.what, &wanted);
            let udp_case = matches!(case.wanted["transport"].as_str(), Some("udp" | "doq"));
            let hook = if udp_case { udp } else { "tp_btf/inet_sock_set_state" };
            let told = line["hook"].as_str().unwrap();
            assert!(told.starts_with(hook), "{}: {told}, {}", case.what, watch.log());
        }
        eprintln!("datagrams were told of by {udp}");
    }
}

/// A ClientHello for a name, of at least so many bytes.
fn client_hello(authority: &Authority, name: &str, bytes: usize) -> Vec<u8> {
    // Made-up protocols make it large, as nothing else does so freely; the name comes after them or
    // before, as the library shuffles extensions.
    let long = "x".repeat(250);
    let protocols: Vec<&str> = (0..bytes.div_ceil(251)).map(|_| &long[..]).collect();
    let config = authority.tls_client(&protocols);
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    hello::take_record(&mut connection)
}

/// The message of one TLS record over several (RFC 8446, section 5.1).
fn over_records(record: &[u8], every: usize) -> Vec<u8> {
    let (head, message) = record.split_at(5);
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&head[..3], &length, part].concat()
    };
    message.chunks(every).flat_map(record).collect()
}

#[test]
fn a_hello_is_read_however_it_is_cut() {
    let Some(forwarded) = Forwarded::new(&[]) else { return };
    let Forwarded { watch, network, authority, .. } = &forwarded;
    let small = client_hello(authority, "dns.google", 0);
    let large = client_hello(authority, "dns.google", 7_000);
    assert!(large.len() > 7_000 && large.len() < 16_384, "{}", large.len());
    let at = |bytes: &[u8], every: usize| -> Vec<Vec<u8>> {
        bytes.chunks(every).map(<[u8]>::to_vec).collect()
    };
    let records = over_records(&small, 200);
    for (what, writes) in [
        ("whole", vec![small.clone()]),
        ("after a byte", vec![small[..1].to_vec(), small[1..].to_vec()]),
        ("in its header", vec![small[..4].to_vec(), small[4..].to_vec()]),
        (
            "in the middle",
            vec![small[..small.len() / 2].to_vec(), small[small.len() / 2..].to_vec()],
        ),
        ("forty bytes at a time", at(&small, 40)),
        ("large, at once", vec![large.clone()]),
        ("large, in segments", at(&large, 1400)),
        ("over records", vec![records.clone()]),
        ("over records, cut", at(&records, 90)),
    ] {
        watch.forget();
        network.client.run(|| {
            let mut stream = TcpStream::connect((UNLISTED.0, 443)).unwrap();
            stream.set_nodelay(true).unwrap();
            for write in &writes {
                stream.write_all(write).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
            // Held open until the hello is answered, or refused.
            let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
            let _ = stream.read(&mut [0; 100]);
        });
        watch.once(
            what,
            &json!({"kind": "lookup", "transport": "doh", "server": UNLISTED.0,
            "server_name": "dns.google", "provider": "google", "sign": "name"}),
        );
    }
}

#[test]
fn tagged_frames_are_read() {
    let Some(forwarded) = Forwarded::new(&[]) else { return };
    let Forwarded { watch, network, .. } = &forwarded;
    if !network.client.try_ip("link add link eth0 name probe type vlan id 9") {
        // The kernel's own test runs have such frames all the same.
        eprintln!("SKIP: needs a kernel with 8021q");
        return;
    }
    for (outer, link, tag, net) in [
        ("eth0", "lan0", "protocol 802.1Q id 5", 5),
        ("eth0", "lan0", "protocol 802.1ad id 6", 6),
        ("inner", "inner", "protocol 802.1Q id 7", 7),
    ] {
        // The third one's outer tag is the second one's.
        let name = if net == 6 { "inner".to_owned() } else { format!("vlan{net}") };
        for (host, link, last) in [(&network.client, outer, 2), (&network.router, link, 1)] {
            host.ip(&format!("link add link {link} name {name} type vlan {tag}"));
            host.ip(&format!("link set {name} up"));
            host.ip(&format!("address add 10.78.{net}.{last}/24 dev {name}"));
        }
        watch.forget();
        let query = format!("+timeout=1 +retry=0 @10.78.{net}.1 vlan{net}.example");
        client(&forwarded.start(), "kdig", &query);
        let from = format!("10.78.{net}.2");
        watch.once(
            tag,
            &json!({"kind": "lookup", "transport": "udp", "address": from,
            "name": format!("vlan{net}.example")}),
        );
    }
}

#[test]
fn what_is_no_lookup_is_not_told() {
    let Some(forwarded) = Forwarded::new(&["--named-window", "2"]) else { return };
    let Forwarded { watch, network, .. } = &forwarded;
    std::thread::sleep(Duration::from_secs(3));
    // Names the address that is asked for below.
    for kind in ["A", "AAAA"] {
        client(&forwarded.start(), "kdig", &format!("@{} www.example {kind}", RESOLVER.0));
    }
    wait_for("names", TOLD_MAX, || (watch.all().len() >= 2).then_some(()));
    watch.forget();
    network.client.run(|| {
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        let to = |port| SocketAddr::new(LISTED.0.into(), port);
        udp.send_to(b"not a message", (RESOLVER.0, 53)).unwrap();
        udp.send_to(&[0xff; 600], (RESOLVER.0, 53)).unwrap();
        udp.send_to(&[0xc3; 1300], to(4433)).unwrap();
        udp.send_to(&[0x40; 1300], to(443)).unwrap();
        udp.send_to(b"stun", to(3478)).unwrap();
        // A named address over HTTP, and over TLS with a name that is no resolver's.
        for port in [80, 443] {
            if let Ok(mut stream) = TcpStream::connect((NAMED.0, port)) {
                stream.write_all(b"GET / HTTP/1.1\r\nhost: www.example\r\n\r\n").unwrap();
            }
        }
    });
    let https = "-sk -m 2 --resolve www.example:443:203.0.113.80 https://www.example/";
    client(&forwarded.start(), "curl", https);
    client(&forwarded.start(), "curl", &format!("-s -m 2 http://[{}]/", NAMED.1));
    client(&forwarded.start(), "ping", &format!("-c 1 -W 1 {}", LISTED.0));
    std::thread::sleep(QUIET);
    assert_eq!(watch.all(), [] as [Value; 0]);
}

#[test]
fn an_address_that_no_plain_answer_named() {
    let Some(forwarded) = Forwarded::new(&["--named-window", "2", "--api", "203.0.113.80"]) else {
        return;
    };
    let Forwarded { watch, .. } = &forwarded;
    std::thread::sleep(Duration::from_secs(3));
    let contact = |to: IpAddr| {
        json!({"kind": "contact", "destination": to, "port": 80,
        "protocol": "tcp"})
    };
    let ask = |name: &str| {
        client(&forwarded.start(), "kdig", &format!("@{} {name}", RESOLVER.0));
    };
    // Something was named, so that the sensor knows that it sees answers.
    ask("cloudflare-dns.com");
    watch.forget();
    client(&forwarded.start(), "curl", &format!("-s -m 1 http://{}/", UNNAMED.0));
    client(&forwarded.start(), "curl", &format!("-s -m 1 http://{}/", UNLISTED.0));
    client(&forwarded.start(), "curl", &format!("-s -m 1 http://{}/", NAMED.0));
    let line = watch.once("a contact", &contact(UNNAMED.0.into()));
    assert_eq!(line["address"], json!(CLIENT.0));
    std::thread::sleep(QUIET);
    assert_eq!(watch.like(&contact(UNLISTED.0.into())), [] as [Value; 0], "it was named");
    assert_eq!(watch.like(&contact(NAMED.0.into())), [] as [Value; 0], "it is the API");
    assert_eq!(watch.like(&json!({"kind": "client", "address": CLIENT.0})).len(), 1);
    // Named by an encrypted answer: by none that could be read.
    ask("cloudflare-dns.com");
    watch.forget();
    client(
        &forwarded.start(),
        "curl",
        &format!(
            "-sk6 -m 3 --doh-insecure --doh-url https://[{}]/dns-query http://www.example/",
            LISTED.1
        ),
    );
    watch.once("what DoH resolved", &contact(NAMED.1.into()));
}

fn tc(host: &Namespace, arguments: &str) -> String {
    let output = host.command("tc").args(arguments.split(' ')).output().expect("tc");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn nothing_is_left_behind() {
    let Some(network) = Network::new() else { return };
    let arguments = ["--no-local", "--clsact", "--link", "lan0=clients", "--link", "wan0=internet"];
    let filters = || {
        let mut all = String::new();
        for (link, side) in [("lan0", "ingress"), ("lan0", "egress"), ("wan0", "ingress")] {
            let found = tc(&network.router, &format!("filter show dev {link} {side}"));
            let _ = write!(all, "{}", found.matches("direct-action").count());
        }
        all
    };
    let mut watch = Watch::start(&network.router, &arguments);
    assert_eq!(filters(), "111");
    // Killed, it cannot clean up; the next one does.
    watch.running.0.kill().unwrap();
    watch.running.0.wait().unwrap();
    assert_eq!(filters(), "111", "filters of clsact outlive their process");
    let mut watch = Watch::start(&network.router, &arguments);
    assert_eq!(filters(), "111");
    assert!(watch.log().contains("an earlier run left"), "{}", watch.log());
    assert!(watch.running.end().unwrap().success());
    assert_eq!(filters(), "000");
    // A clsact that it made goes too; one that somebody else made, or hangs filters on, stays.
    for link in ["lan0", "wan0"] {
        let _ = tc(&network.router, &format!("qdisc del dev {link} clsact"));
    }
    let made = || tc(&network.router, "qdisc show dev lan0").matches("clsact").count();
    assert_eq!(made(), 0);
    let mut watch = Watch::start(&network.router, &arguments);
    assert_eq!(made(), 1);
    assert!(watch.running.end().unwrap().success());
    assert_eq!(made(), 0, "{}", watch.log());
    let mut watch = Watch::start(&network.router, &arguments);
    let _ = tc(&network.router, "filter add dev lan0 ingress protocol all u32 match u32 0 0");
    assert!(watch.running.end().unwrap().success());
    assert_eq!(made(), 1, "{}", watch.log());
    assert!(tc(&network.router, "filter show dev lan0 ingress").contains("u32"));
}

#[test]
fn a_link_that_comes_back_is_watched_again() {
    let Some(forwarded) = Forwarded::new(&["--link", "late0=clients"]) else { return };
    let Forwarded { watch, network, .. } = &forwarded;
    let mut descriptors = Vec::new();
    for number in 1..=4 {
        network.router.ip("link add late0 type veth peer name late1");
        network.router.ip("link set late0 up");
        network.router.ip("link set late1 up");
        wait_for("link that is watched", TOLD_MAX, || {
            (watch.log().matches("late0: attached").count() >= 2 * number).then_some(())
        });
        network.router.ip("link delete late0");
        wait_for("link that is gone", TOLD_MAX, || {
            (watch.log().matches("late0: not attached").count() >= 2 * (number + 1)).then_some(())
        });
        let open = std::fs::read_dir(format!("/proc/{}/fd", watch.running.0.id())).unwrap();
        descriptors.push(open.count());
    }
    // The first round loads the programs.
    assert_eq!(descriptors[1..], [descriptors[1]; 3], "what hung on it is let go");
}

/// The sensor as an ordinary user with three capabilities.
fn unprivileged(capabilities: &str, binary: &Path) -> Command {
    let mut command = Command::new("setpriv");
    let given = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    command.args(given).arg(format!("--bounding-set=-all{capabilities}"));
    command.arg(format!("--inh-caps=-all{capabilities}"));
    command.arg(format!("--ambient-caps=-all{capabilities}")).arg("--no-new-privs").arg(binary);
    command
}

/// A copy of the binary where everybody may run it.
fn copied(folder: &Path) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.join("stillgate-sensor");
    std::fs::copy(sensor_binary(), &copy).unwrap();
    copy
}

#[test]
fn three_capabilities_are_enough_and_fewer_say_so() {
    let Some(network) = Network::new() else { return };
    if !harness::netns::has_tool("setpriv") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let binary = copied(folder.path());
    let three = ",+bpf,+net_admin,+perfmon";
    let mut command = network.router.command("setpriv");
    command.args(unprivileged(three, &binary).get_args());
    command.args(["watch", "--link", "lan0=clients", "--link", "wan0=internet"]);
    let watch = Watch::run(&mut command);
    let query = format!("+timeout=1 +retry=0 @{} unprivileged.example", RESOLVER.0);
    client(&|program| network.client.command(program), "kdig", &query);
    watch.once("a lookup", &json!({"kind": "lookup", "name": "unprivileged.example"}));
    assert!(watch.log().contains("tc/clients-ingress on lan0: attached"), "{}", watch.log());
    for (given, missing) in [
        ("", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"),
        (",+bpf,+net_admin", "CAP_PERFMON"),
        (",+net_admin,+perfmon", "CAP_BPF"),
    ] {
        let output = unprivileged(given, &binary).arg("watch").output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains(&format!("needs {missing}:")), "{told}");
    }
}

#[test]
fn check_tells_what_this_kernel_can_do() {
    if Network::new().is_none() {
        return;
    }
    let output = Command::new(sensor_binary()).arg("check").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    for hook in [
        "cgroup_skb/egress",
        "cgroup/connect4",
        "cgroup/sendmsg6",
        "fentry",
        "kprobe",
        "tp_btf",
        "tc/tcx",
        "tc/clsact",
    ] {
        assert!(told.contains(hook), "{hook}: {told}");
    }
    let works = |hook: &str| {
        told.lines().any(|line| line.starts_with(hook) && line.trim_end().ends_with(" works"))
    };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    assert_eq!(works("tc/tcx"), version >= (6, 6), "{release}{told}");
    assert!(works("tc/clsact") && works("cgroup_skb/egress"), "{told}");
}
