//! What the programs cost: nanoseconds a packet, as the kernel times them (BPF_PROG_TEST_RUN), and a
//! call, by its run statistics over real sockets. The median of five rounds.
//!
//! `cargo run --release -p stillgate-sensor --example cost`, with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON
//! and CAP_SYS_ADMIN (for the statistics). Attaches to the whole machine's sockets for some seconds.

#![allow(clippy::expect_used, reason = "a measurement that fails has nothing to say")]

use std::net::{TcpListener, TcpStream, UdpSocket};

use aya::programs::{CgroupSkb, ProgramInfo, SchedClassifier, loaded_programs};
use aya::sys::enable_stats;
use aya::{TestRun, TestRunOptions};
use sensor::hooks::{HookSettings, Hooks, Link, LinkSide};

const ROUNDS: usize = 5;
/// Runs of a packet that is told of once at most.
const REPEATED: u32 = 200_000;
/// Packets that are each told of.
const FRESH: u32 = 5_000;

fn main() {
    let link = Link { name: "no-such-link".into(), side: LinkSide::Clients, clsact: false };
    let settings = HookSettings { local: true, links: vec![link], ..HookSettings::default() };
    let mut hooks = match Hooks::attach(&settings) {
        Ok(hooks) => hooks,
        Err(error) => return eprintln!("cost: {error}"),
    };
    for name in ["stillgate_in", "stillgate_out", "stillgate_wan"] {
        let program = hooks.programs().program_mut(name).expect(name);
        let program: &mut SchedClassifier = program.try_into().expect(name);
        if program.fd().is_err() {
            program.load().expect(name);
        }
    }
    println!("ns a packet, median of {ROUNDS} rounds");
    let other = frame(&tcp(5000, 5201, 16, &[0; 1400]));
    let bulk = frame(&tcp(5000, 443, 16, &[0; 1400]));
    let bare = frame(&tcp(5000, 443, 16, &[]));
    let datagram = frame(&udp(5000, 51_820, &[0; 1200]));
    let answer = frame(&udp(53, 5000, &message(1, 0x81)));
    for program in
        ["stillgate_in", "stillgate_out", "stillgate_wan", "cgroup_egress", "cgroup_ingress"]
    {
        for (what, bytes) in [
            ("TCP to another port", &other),
            ("TCP payload to port 443, stream closed", &bulk),
            ("TCP acknowledgement to port 443", &bare),
            ("UDP to another port", &datagram),
        ] {
            row(program, what, &mut || repeated(&mut hooks, program, bytes, REPEATED));
        }
        if matches!(program, "stillgate_in" | "cgroup_egress") {
            row(program, "DNS query, told", &mut || {
                fresh(&mut hooks, program, &|number| {
                    frame(&udp(port(number), 53, &message(number, 1)))
                })
            });
            row(program, "TCP SYN, told and remembered", &mut || {
                fresh(&mut hooks, program, &|number| {
                    // Another server each time: the same is told once a second.
                    let mut bytes = frame(&tcp(port(number), 443, 2, &[]));
                    bytes[32..34].copy_from_slice(&(number as u16).to_be_bytes());
                    bytes
                })
            });
            row(program, "QUIC Initial of 1,200 bytes, told", &mut || {
                let mut initial = vec![0xc3, 0, 0, 0, 1];
                initial.resize(1200, 7);
                fresh(&mut hooks, program, &|number| frame(&udp(port(number), 443, &initial)))
            });
            row(program, "ClientHello of 517 bytes, told", &mut || {
                let hello = [0x16; 517];
                for number in 0..FRESH {
                    repeated(&mut hooks, program, &frame(&tcp(port(number), 853, 2, &[])), 1);
                }
                fresh(&mut hooks, program, &|number| {
                    let mut bytes = frame(&tcp(port(number), 853, 16, &hello));
                    // The first byte after the SYN.
                    bytes[41] = 1;
                    bytes
                })
            });
        } else {
            row(program, "DNS answer, told", &mut || {
                let mut total = 0.0;
                for _ in 0..FRESH {
                    total += repeated(&mut hooks, program, &answer, 1);
                    hooks.drain(10, &mut |_| {});
                }
                total / f64::from(FRESH)
            });
        }
    }
    println!("\nns a call, over {FRESH} calls");
    calls();
    println!("\nevents dropped meanwhile: {}", hooks.counters().dropped);
}

fn port(number: u32) -> u16 {
    10_000 + (number % 50_000) as u16
}

fn row(program: &str, what: &str, measure: &mut dyn FnMut() -> f64) {
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| measure()).collect();
    rounds.sort_by(f64::total_cmp);
    println!("{program:<15} {what:<40} {:>7.0}", rounds[ROUNDS / 2]);
}

/// Mean nanoseconds of a run.
fn repeated(hooks: &mut Hooks, program: &str, frame: &[u8], times: u32) -> f64 {
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.repeat = times;
    let found = hooks.programs().program_mut(program).expect(program);
    let result = if program.starts_with("cgroup") {
        <&mut CgroupSkb>::try_from(found).expect(program).test_run(options)
    } else {
        <&mut SchedClassifier>::try_from(found).expect(program).test_run(options)
    };
    // The kernel gives the mean.
    result.expect(program).duration.as_nanos() as f64
}

/// The same over packets of which each is another one, with the ring read in between.
fn fresh(hooks: &mut Hooks, program: &str, make: &dyn Fn(u32) -> Vec<u8>) -> f64 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut total = 0.0;
    for _ in 0..FRESH {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        total += repeated(hooks, program, &make(number), 1);
        hooks.drain(10, &mut |_| {});
    }
    total / f64::from(FRESH)
}

/// Makes calls, and prints what each program took of them.
fn calls() {
    let statistics = enable_stats(aya::sys::Stats::RunTime);
    let _statistics = match statistics {
        Ok(statistics) => statistics,
        Err(error) => return println!("not measured: {error}"),
    };
    let names = ["cgroup_connect4", "cgroup_sendmsg4", "fentry_udp", "kprobe_udp", "sock_state"];
    let before = times(&names);
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("an address");
    for _ in 0..FRESH {
        // Nobody answers there; that it was sent is enough.
        drop(udp.send_to(b"x", "127.0.0.1:53"));
        drop(TcpStream::connect(address));
        drop(listener.accept());
    }
    let after = times(&names);
    for (index, name) in names.iter().enumerate() {
        let (time, runs) = (after[index].0 - before[index].0, after[index].1 - before[index].1);
        match runs {
            0 => println!("{name:<56} not run here"),
            runs => println!("{name:<56} {:>7.0}", time as f64 / runs as f64),
        }
    }
}

/// Nanoseconds and runs of the programs of these names so far.
fn times(names: &[&str]) -> Vec<(u128, u64)> {
    let all: Vec<ProgramInfo> = loaded_programs().flatten().collect();
    let of = |name: &&str| {
        // The kernel keeps 15 bytes of a name.
        let short = &name[..name.len().min(15)];
        all.iter()
            .filter(|info| info.name_as_str() == Some(short))
            .map(|info| (info.run_time().as_nanos(), info.run_count()))
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    };
    names.iter().map(of).collect()
}

fn udp(source: u16, destination: u16, payload: &[u8]) -> (u8, Vec<u8>) {
    let length = payload.len() as u16 + 8;
    let mut bytes: Vec<u8> =
        [source, destination, length, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
    bytes.extend(payload);
    (17, bytes)
}

fn tcp(source: u16, destination: u16, flags: u8, payload: &[u8]) -> (u8, Vec<u8>) {
    let mut bytes: Vec<u8> =
        [source, destination].iter().flat_map(|word| word.to_be_bytes()).collect();
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(payload);
    (6, bytes)
}

fn message(id: u32, flags: u8) -> Vec<u8> {
    let mut bytes = (id as u16).to_be_bytes().to_vec();
    bytes.extend([flags, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.extend(b"\x03www\x07example\x00\x00\x01\x00\x01");
    bytes
}

/// An Ethernet frame from 10.0.0.2 to 198.51.100.53.
fn frame((protocol, inner): &(u8, Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![2; 12];
    bytes.extend([0x08, 0x00, 0x45, 0]);
    bytes.extend((inner.len() as u16 + 20).to_be_bytes());
    bytes.extend([0, 1, 0, 0, 64, *protocol, 0, 0, 10, 0, 0, 2, 198, 51, 100, 53]);
    bytes.extend(inner);
    bytes
}
