//! From packets to evidence: hosts behind a router resolve names in their own ways, the sensor on the
//! router tells the gateway, and the accounts that are used from there show it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::netns::{LISTED, Network, RESOLVER, Running, UNLISTED};
use harness::{Authority, Gateway, Provider, balancer, sensor_binary, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);
/// Where clients reach the gateways: balancers in front of them, a port for each.
const API: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));

/// A host behind the router: its own address, what the router makes of it, how it resolves names.
struct Host {
    inside: &'static str,
    outside: &'static str,
    resolves: &'static str,
}

const HOSTS: [Host; 4] = [
    Host { inside: "10.77.1.21", outside: "198.51.100.21", resolves: "DoH" },
    Host { inside: "10.77.1.22", outside: "192.0.2.22", resolves: "DoT" },
    Host { inside: "10.77.1.23", outside: "198.18.7.23", resolves: "plain" },
    Host { inside: "10.77.1.24", outside: "203.0.114.24", resolves: "never" },
];

/// The gateway's own network: accounts ask there with PROXY headers of the balancer.
fn gateway(network: &Network, provider: &Provider, port: u16) -> Gateway {
    network.internet.run(|| {
        let gateway = Gateway::in_front_of(provider.address())
            .listener("proxy_protocol_from = [\"127.0.0.1/32\"]")
            .table("[sensor]\nsocket = \"sensor.sock\"\n")
            .start();
        balancer::listen(SocketAddr::new(API, port), gateway.further_address(0));
        gateway
    })
}

fn join(network: &Network) {
    let mut rules =
        "table ip one {\nchain out {\ntype nat hook postrouting priority 50\n".to_owned();
    for host in &HOSTS {
        network.client.ip(&format!("address add {}/24 dev eth0", host.inside));
        network.router.ip(&format!("address add {}/24 dev wan0", host.outside));
        rules += &format!("ip saddr {} oifname wan0 snat to {}\n", host.inside, host.outside);
    }
    rules += "}\n}\n";
    let mut nft = network.router.command("nft");
    let mut nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    std::io::Write::write_all(&mut nft.stdin.take().unwrap(), rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success());
}

/// A sensor on the router, with the configuration that an operator would write.
fn sensor(network: &Network, folder: &Path, gateway: &Gateway) -> Running {
    let seen_as: String = HOSTS
        .iter()
        .map(|host| format!("{{ from = \"{}/32\", as = \"{}\" }}, ", host.inside, host.outside))
        .collect();
    let socket = gateway.folder().join("sensor.sock");
    let toml = format!(
        "name = \"egress-1\"\napi = [\"{}\"]\nseen_as = [{seen_as}]\nreport_every_seconds = 1\n\
         [local]\nenabled = false\n\
         [[link]]\nname = \"lan0\"\nside = \"clients\"\n\
         [[link]]\nname = \"wan0\"\nside = \"internet\"\n\
         [names]\nkey_file = \"sensor.key\"\n[[report]]\nsocket = \"{}\"\n",
        API,
        socket.display()
    );
    let path = folder.join("sensor.toml");
    fs::write(&path, toml).unwrap();
    let key = folder.join("sensor.key");
    fs::write(&key, "5a".repeat(32)).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let checked = Command::new(sensor_binary()).args(["check", "--config"]).arg(&path).output();
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let mut command = network.router.command(sensor_binary());
    command.args(["run", "--config"]).arg(&path);
    Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

fn client(network: &Network, program: &str, arguments: &str) -> bool {
    let mut command = network.client.command(program);
    command.args(arguments.split(' ')).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null()).status().expect(program).success()
}

/// Each host resolves a name in its way, and asks the API with a key of its own.
fn live(network: &Network, port: u16, round: usize) {
    for (number, host) in HOSTS.iter().enumerate() {
        let from = host.inside;
        match host.resolves {
            "DoH" => {
                let doh = format!("+timeout=2 +retry=0 +https -b {from} @{} www.example", LISTED.0);
                client(network, "kdig", &doh);
            }
            "DoT" => {
                let dot = format!("+timeout=2 +retry=0 +tls -b {from} @{} www.example", UNLISTED.0);
                client(network, "kdig", &dot);
            }
            "plain" => {
                let udp = format!("+timeout=2 +retry=0 -b {from} @{} www.example", RESOLVER.0);
                client(network, "kdig", &udp);
            }
            _ => {}
        }
        let mut curl = network.client.command("curl");
        let key = format!("authorization: Bearer sk-host-{number}-0123456789abcdefghij");
        let body = json!({"model": "sample-1",
            "messages": [{"role": "user", "content": format!("what is for supper, {round}?")}]});
        curl.args(["-s", "-f", "-m", "5", "-o", "/dev/null", "--interface", from, "-H", &key]);
        curl.args(["-H", "content-type: application/json", "-d", &body.to_string()]);
        curl.arg(format!("http://{API}:{port}/v1/chat/completions"));
        assert!(curl.status().unwrap().success(), "{from} asks the API");
    }
}

/// The account that was used from an address, as operators see it.
fn account(network: &Network, gateway: &Gateway, address: &str) -> Value {
    network.internet.run(|| {
        let id = wait_for("an exchange", PATIENCE, || {
            let exchanges = gateway.exchanges(100);
            let from = exchanges.into_iter().find(|exchange| exchange["ip"] == address)?;
            from["account"].as_str().map(str::to_owned)
        });
        gateway.admin(&format!("/v1/accounts/{id}")).json()
    })
}

fn evidence(account: &Value) -> (f64, String) {
    let findings = account["findings"].as_array().expect("findings");
    let found = findings.iter().find(|finding| finding["detector"] == "dns_transport");
    let text = |finding: &Value| finding["evidence"].to_string();
    found.map_or((0.0, String::new()), |finding| {
        (finding["strength"].as_f64().unwrap_or_default(), text(finding))
    })
}

#[test]
fn accounts_show_how_their_hosts_resolve_names() {
    let Some(network) = Network::new() else { return };
    join(&network);
    let folder = tempfile::tempdir().unwrap();
    let _resolver = network.resolver(folder.path(), &Authority::new());
    let provider = network.internet.run(Provider::start);
    for (watched, port) in [(true, 8080), (false, 8081)] {
        let gateway = gateway(&network, &provider, port);
        let mut running = watched.then(|| sensor(&network, folder.path(), &gateway));
        if watched {
            // A sensor without anything to tell says that it is there.
            network.internet.run(|| {
                wait_for("sensor", PATIENCE, || {
                    let sensors = gateway.admin("/v1/sensors").json();
                    sensors["sensors"].as_array().is_some_and(|list| !list.is_empty()).then_some(())
                });
            });
        }
        live(&network, port, 0);
        if watched {
            network.internet.run(|| {
                wait_for("three lookups", PATIENCE, || {
                    let told = |transport: &str| {
                        gateway.metric(&format!(
                            "stillgate_sensor_lookups_total{{transport=\"{transport}\""
                        )) >= 1.0
                    };
                    (told("doh") && told("dot") && told("udp")).then_some(())
                });
            });
        }
        for round in 1..7 {
            live(&network, port, round);
        }
        for host in &HOSTS {
            let account = account(&network, &gateway, host.outside);
            let (strength, text) = evidence(&account);
            let hides = watched && matches!(host.resolves, "DoH" | "DoT");
            assert_eq!(strength > 0.0, hides, "{} watched: {watched}: {account:#}", host.resolves);
            assert_eq!(account["tier"], "none", "encrypted DNS is normal: {account:#}");
            if hides {
                eprintln!("{}: {strength:.3} {text}", host.resolves);
                assert!(text.to_lowercase().contains(&host.resolves.to_lowercase()), "{text}");
            }
        }
        if let Some(running) = &mut running {
            assert!(running.end().unwrap().success());
        }
        network.internet.run(|| drop(gateway));
    }
}
