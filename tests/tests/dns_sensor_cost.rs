//! What the sensor costs a router, and what a flood does to it. The figures are no claims: run them by
//! hand, on a quiet machine, with `cargo test --release -p stillgate-tests --test dns_sensor_cost -- --ignored
//! --nocapture --test-threads=1`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use harness::netns::{Network, RESOLVER, Running, has_tool};
use harness::{http1, sensor_binary, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const ROUNDS: usize = 5;
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9101);

/// A sensor on the router that has nobody to tell: what it keeps for a gateway is bounded.
fn sensor(network: &Network, folder: &Path, clsact: bool) -> Running {
    let toml = format!(
        "name = \"cost\"\nreport_every_seconds = 1\n[local]\nenabled = false\n\
         [[link]]\nname = \"lan0\"\nside = \"clients\"\nclsact = {clsact}\n\
         [[link]]\nname = \"wan0\"\nside = \"internet\"\nclsact = {clsact}\n\
         [names]\nkey_file = \"sensor.key\"\n[[report]]\nsocket = \"{}\"\n\
         [metrics]\nlisten = \"{METRICS}\"\n[log]\nlevel = \"warn\"\n",
        folder.join("nobody.sock").display()
    );
    let path = folder.join("sensor.toml");
    fs::write(&path, toml).unwrap();
    let key = folder.join("sensor.key");
    fs::write(&key, "5a".repeat(32)).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = network.router.command(sensor_binary());
    command.args(["run", "--config"]).arg(&path);
    let running = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    network.router.run(|| {
        wait_for("sensor", Duration::from_secs(10), || TcpStream::connect(METRICS).ok());
    });
    // The port is there before the hooks are, the answer is not.
    assert_eq!(metric(network, "stillgate_sensor_hook_attached"), 3.0);
    running
}

/// A metric's value, summed over its labels that begin so.
fn metric(network: &Network, name: &str) -> f64 {
    let text = network.router.run(|| {
        http1::plain(METRICS, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .text()
    });
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn gigabits(network: &Network, port: u16) -> f64 {
    let mut server = network.internet.command("iperf3");
    server.args(["-s", "-1", "-p", &port.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut server = Running(server.spawn().expect("iperf3"));
    std::thread::sleep(Duration::from_millis(300));
    let mut client = network.client.command("iperf3");
    let to = RESOLVER.0.to_string();
    client.args(["-J", "-t", "4", "-c", &to, "-p", &port.to_string()]);
    let output = client.output().expect("iperf3");
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let _ = server.0.wait();
    told["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate") / 1e9
}

#[test]
#[ignore = "prints figures, and loads the machine"]
fn what_the_router_forwards() {
    let Some(network) = Network::new() else { return };
    if !has_tool("iperf3") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // In turn, so that a machine that slows down slows all of them.
    let arms = ["without", "tcx", "clsact"];
    for port in [5201, 443] {
        let mut rates = arms.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for (arm, rates) in arms.iter().zip(&mut rates) {
                let _sensor =
                    (*arm != "without").then(|| sensor(&network, folder.path(), *arm == "clsact"));
                rates.push(gigabits(&network, port));
            }
        }
        let bare = median(rates[0].clone());
        for (arm, rates) in arms.iter().zip(rates) {
            let rate = median(rates.clone());
            println!(
                "iperf3 to port {port}, {arm:<8} {rate:6.2} Gbit/s, {:.3} of without; {rates:.2?}",
                rate / bare
            );
        }
    }
}

/// The message of a query; each number has another name.
fn query(number: u32) -> Vec<u8> {
    let mut bytes = (number as u16).to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let name = format!("n{number:08x}");
    bytes.push(u8::try_from(name.len()).unwrap());
    bytes.extend(name.as_bytes());
    bytes.extend(b"\x07example\x00\x00\x01\x00\x01");
    bytes
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

/// Events that find the ring full are lost, and counted to the last.
#[test]
fn what_a_flood_loses_is_counted() {
    const SENT: u32 = 60_000;
    let Some(network) = Network::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let sensor = sensor(&network, folder.path(), false);
    let pid = Pid::from_raw(i32::try_from(sensor.0.id()).unwrap()).unwrap();
    let _sink = network.internet.run(|| UdpSocket::bind((RESOLVER.0, 53)).unwrap());
    // It cannot read for a while.
    kill_process(pid, Signal::STOP).unwrap();
    network.client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for number in 0..SENT {
            socket.send_to(&query(number), (RESOLVER.0, 53)).unwrap();
        }
    });
    kill_process(pid, Signal::CONT).unwrap();
    let counted = || {
        let dropped = metric(&network, "stillgate_sensor_lost_total{cause=\"kernel\"}");
        (metric(&network, "stillgate_sensor_sightings_total{kind=\"udp\"}"), dropped)
    };
    let (seen, dropped) = wait_for("all of it", Duration::from_secs(10), || {
        let (seen, dropped) = counted();
        (seen + dropped >= f64::from(SENT)).then_some((seen, dropped))
    });
    assert_eq!(seen + dropped, f64::from(SENT));
    assert!(seen > 0.0 && dropped > 0.0, "{seen} seen, {dropped} dropped");
    let resident = resident_kib(sensor.0.id());
    assert!(resident < 200 * 1024, "{resident} KiB");
    eprintln!("{seen} seen, {dropped} dropped, {resident} KiB resident");
}

#[test]
#[ignore = "prints figures, and loads the machine"]
fn what_a_flood_does() {
    let Some(network) = Network::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    for rate in [10_000, 30_000, 60_000, 100_000, u32::MAX] {
        let sensor = sensor(&network, folder.path(), false);
        let pid = sensor.0.id();
        let before = resident_kib(pid);
        // Somebody takes them, so that no send is refused.
        let _sink = network.internet.run(|| UdpSocket::bind((RESOLVER.0, 53)).unwrap());
        let (sent, took) = network.client.run(|| {
            // An id comes again on the same socket only after more than a second.
            let sockets: Vec<UdpSocket> =
                (0..16).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect();
            let begun = Instant::now();
            let mut sent = 0_u32;
            while begun.elapsed() < Duration::from_secs(5) {
                for _ in 0..100 {
                    let socket = &sockets[(sent >> 16) as usize % sockets.len()];
                    socket.send_to(&query(sent), (RESOLVER.0, 53)).unwrap();
                    sent += 1;
                }
                let due = Duration::from_secs_f64(f64::from(sent) / f64::from(rate));
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
            (sent, begun.elapsed().as_secs_f64())
        });
        let most = resident_kib(pid);
        std::thread::sleep(Duration::from_secs(2));
        let (dropped, told) = (
            metric(&network, "stillgate_sensor_lost_total{cause=\"kernel\"}"),
            metric(&network, "stillgate_sensor_sightings_total{kind=\"udp\"}"),
        );
        let full = metric(&network, "stillgate_sensor_lost_total{cause=\"full\"}");
        let unsent = metric(&network, "stillgate_sensor_lost_total{cause=\"unsent\"}");
        println!(
            "{:>7.0} queries/s: {sent} sent, {told} seen, {dropped} dropped in the kernel, {full} not \
             counted apart, {unsent} given up for want of a gateway; {:.2} CPU seconds a second; \
             resident {before} KiB before, {most} KiB at its end, {} KiB two seconds later",
            f64::from(sent) / took,
            cpu_seconds(pid) / took,
            resident_kib(pid)
        );
    }
}
