//! What the programs make of packets, one by one: the kernel runs them on packets made here
//! (BPF_PROG_TEST_RUN), so every header is tried without a network that sends it.
//!
//! Needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; `STILLGATE_REQUIRE_BPF=1` makes their lack a failure.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use aya::programs::{CgroupSkb, SchedClassifier};
use aya::{TestRun, TestRunOptions};
use sensor::event::{Event, Hook, Kind, Process, Protocol};
use sensor::hooks::{HookError, HookSettings, Hooks, Link, LinkSide};

const CLIENT: &str = "10.0.0.2";
const SERVER: &str = "198.51.100.53";
const CLIENT6: &str = "fd00::2";
const SERVER6: &str = "2001:db8::53";

/// An event that may be kept.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    kind: Kind,
    hook: Hook,
    source: SocketAddr,
    destination: SocketAddr,
    protocol: Protocol,
    offset: u32,
    length: u32,
    payload: Vec<u8>,
    process: Option<Process>,
}

struct Programs {
    hooks: Hooks,
}

impl Programs {
    /// None, with the reason on stderr, where the kernel may not be asked.
    fn load() -> Option<Self> {
        // A link that there is not: nothing is attached, all are loaded on demand below.
        let link = |name: &str, side| Link { name: name.into(), side, clsact: false };
        let links = vec![link("no-such-link", LinkSide::Clients)];
        let settings = HookSettings { links, ..HookSettings::default() };
        match Hooks::attach(&settings) {
            Ok(mut hooks) => {
                for name in ["stillgate_in", "stillgate_out", "stillgate_wan"] {
                    let program = hooks.programs().program_mut(name).unwrap();
                    <&mut SchedClassifier>::try_from(program).unwrap().load().unwrap();
                }
                for name in ["cgroup_egress", "cgroup_ingress"] {
                    let program = hooks.programs().program_mut(name).unwrap();
                    <&mut CgroupSkb>::try_from(program).unwrap().load().unwrap();
                }
                Some(Self { hooks })
            }
            Err(HookError::Capabilities(missing)) => {
                let required = std::env::var("STILLGATE_REQUIRE_BPF").is_ok_and(|one| one == "1");
                assert!(
                    !required,
                    "needs {missing:?}, and STILLGATE_REQUIRE_BPF=1 forbids skipping"
                );
                eprintln!("SKIP: needs {}", missing.join(", "));
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Runs a program on a frame; gives what it returned and what it told.
    fn run(&mut self, program: &str, frame: &[u8]) -> (i32, Vec<Seen>) {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        let found = self.hooks.programs().program_mut(program).unwrap();
        let result = if program.starts_with("cgroup") {
            <&mut CgroupSkb>::try_from(found).unwrap().test_run(options)
        } else {
            <&mut SchedClassifier>::try_from(found).unwrap().test_run(options)
        };
        let returned = result.unwrap().return_value.cast_signed();
        let mut seen = Vec::new();
        self.hooks.drain(1000, &mut |bytes| {
            let event = Event::parse(bytes).unwrap();
            seen.push(Seen {
                kind: event.kind,
                hook: event.hook,
                source: event.flow.source,
                destination: event.flow.destination,
                protocol: event.flow.protocol,
                offset: event.offset,
                length: event.length,
                payload: event.payload.to_vec(),
                process: event.process,
            });
        });
        (returned, seen)
    }

    /// What a client's frame makes the ingress program tell.
    fn sent(&mut self, frame: &[u8]) -> Vec<Seen> {
        let (returned, seen) = self.run("stillgate_in", frame);
        assert_eq!(returned, -1, "the packet goes on as if nobody had looked");
        seen
    }
}

fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap();
    let ports = [source.to_be_bytes(), destination.to_be_bytes(), length.to_be_bytes(), [0; 2]];
    [&ports.concat(), payload].concat()
}

const SYN: u8 = 2;
const ACK: u8 = 16;

fn tcp(source: u16, destination: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut head = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    head.extend(sequence.to_be_bytes());
    head.extend([0; 4]);
    // Six words: a header with an option.
    head.extend([0x60, flags, 0xff, 0xff, 0, 0, 0, 0, 1, 1, 1, 1]);
    [&head, payload].concat()
}

fn ip4(protocol: u8, inner: &[u8]) -> Vec<u8> {
    ip4_with(protocol, 0, &[], inner)
}

fn ip4_with(protocol: u8, fragment: u16, options: &[u8], inner: &[u8]) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    let length = u16::try_from(usize::from(words) * 4 + inner.len()).unwrap();
    let mut head = vec![0x40 | words, 0];
    head.extend(length.to_be_bytes());
    head.extend([0, 1]);
    head.extend(fragment.to_be_bytes());
    head.extend([64, protocol, 0, 0]);
    head.extend(CLIENT.parse::<Ipv4Addr>().unwrap().octets());
    head.extend(SERVER.parse::<Ipv4Addr>().unwrap().octets());
    [&head, options, inner].concat()
}

fn ip6(next: u8, inner: &[u8]) -> Vec<u8> {
    let mut head = vec![0x60, 0, 0, 0];
    head.extend(u16::try_from(inner.len()).unwrap().to_be_bytes());
    head.extend([next, 64]);
    head.extend(CLIENT6.parse::<Ipv6Addr>().unwrap().octets());
    head.extend(SERVER6.parse::<Ipv6Addr>().unwrap().octets());
    [&head, inner].concat()
}

/// An Ethernet frame with VLAN tags (IEEE 802.1Q, 802.1ad).
fn frame(tags: &[u16], ip: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2; 12];
    for tag in tags {
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0, 5]);
    }
    bytes.extend(if ip[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    bytes.extend(ip);
    bytes
}

/// A DNS message: a header and a question for `x.`; with `id` each is another one.
fn message(id: u16, flags: u8) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([flags, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1]);
    bytes
}

fn query(id: u16) -> Vec<u8> {
    udp(4000, 53, &message(id, 1))
}

#[test]
fn every_way_that_headers_stand_before_a_query() {
    let Some(mut programs) = Programs::load() else { return };
    let extension = |next: u8, words: u8| {
        let mut header = vec![next, words];
        header.resize(8 * (usize::from(words) + 1), 0);
        header
    };
    let fragment = |next: u8, offset: u16| {
        let mut header = vec![next, 0];
        header.extend((offset << 3 | 1).to_be_bytes());
        header.extend([0; 4]);
        header
    };
    // RFC 4302: its length is in words of four, less two.
    let mut authentication = vec![17, 4];
    authentication.resize(24, 0);
    let chain = [extension(43, 0), extension(60, 2), extension(17, 1)].concat();
    let many = |count: usize| {
        let mut chain: Vec<u8> = (1..count).flat_map(|_| extension(60, 0)).collect();
        chain.extend(extension(17, 0));
        chain
    };
    let short_of = |whole: &[u8], bytes: usize| whole[..whole.len() - bytes].to_vec();
    let cases: Vec<(&str, Vec<u8>, bool)> = vec![
        ("IPv4", frame(&[], &ip4(17, &query(1))), true),
        ("IPv4 with options", frame(&[], &ip4_with(17, 0, &[1; 8], &query(2))), true),
        ("the first fragment", frame(&[], &ip4_with(17, 0x2000, &[], &query(3))), true),
        ("a later fragment", frame(&[], &ip4_with(17, 0x2001, &[], &query(4))), false),
        ("one tag", frame(&[0x8100], &ip4(17, &query(5))), true),
        ("two tags", frame(&[0x88a8, 0x8100], &ip4(17, &query(6))), true),
        ("three tags", frame(&[0x88a8, 0x8100, 0x8100], &ip4(17, &query(7))), false),
        ("IPv6", frame(&[], &ip6(17, &query(8))), true),
        ("IPv6, tagged", frame(&[0x8100], &ip6(17, &query(9))), true),
        (
            "hop-by-hop, routing, destination options",
            frame(&[], &ip6(0, &[&chain[..], &query(10)].concat())),
            true,
        ),
        (
            "the first fragment of IPv6",
            frame(&[], &ip6(44, &[&fragment(17, 0)[..], &query(11)].concat())),
            true,
        ),
        (
            "a later fragment of IPv6",
            frame(&[], &ip6(44, &[&fragment(17, 9)[..], &query(12)].concat())),
            false,
        ),
        ("authentication", frame(&[], &ip6(51, &[&authentication[..], &query(13)].concat())), true),
        ("seven extensions", frame(&[], &ip6(60, &[&many(7)[..], &query(14)].concat())), true),
        ("nine extensions", frame(&[], &ip6(60, &[&many(9)[..], &query(15)].concat())), false),
        ("ESP", frame(&[], &ip6(50, &query(16))), false),
        ("no next header", frame(&[], &ip6(59, &query(17))), false),
        ("an ARP frame", [&[2; 12][..], &[0x08, 0x06], &[0; 40]].concat(), false),
        ("cut in the UDP header", short_of(&frame(&[], &ip4(17, &query(18))), 24), false),
    ];
    for (what, bytes, told) in cases {
        let seen = programs.sent(&bytes);
        assert_eq!(seen.len(), usize::from(told), "{what}: {seen:?}");
        let Some(one) = seen.first() else { continue };
        assert_eq!((one.kind, one.hook), (Kind::Query, Hook::ClientsIngress), "{what}");
        let six = one.source.is_ipv6();
        let (source, destination) = if six { (CLIENT6, SERVER6) } else { (CLIENT, SERVER) };
        assert_eq!(one.source, SocketAddr::new(source.parse().unwrap(), 4000), "{what}");
        assert_eq!(one.destination, SocketAddr::new(destination.parse().unwrap(), 53), "{what}");
        assert_eq!(one.payload.get(2..), message(0, 1).get(2..), "{what}");
    }
}

#[test]
fn padding_is_no_payload() {
    let Some(mut programs) = Programs::load() else { return };
    // Ethernet frames have 60 bytes at least.
    let mut padded = frame(&[], &ip4(17, &query(1)));
    padded.resize(90, 0xee);
    let seen = programs.sent(&padded);
    assert_eq!(seen[0].payload, message(1, 1));
    assert_eq!(seen[0].length, 19);
}

#[test]
fn the_same_query_is_told_once_a_second() {
    let Some(mut programs) = Programs::load() else { return };
    let one = frame(&[], &ip4(17, &query(7)));
    assert_eq!(programs.sent(&one).len(), 1);
    assert_eq!(programs.sent(&one).len(), 0);
    // The next hook on its way does not tell of it again either.
    let (_, seen) = programs.run("cgroup_egress", &one);
    assert_eq!(seen, []);
    assert_eq!(programs.sent(&frame(&[], &ip4(17, &query(8)))).len(), 1);
    assert_eq!(programs.hooks.counters().suppressed, 2);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(programs.sent(&one).len(), 1);
}

#[test]
fn answers_are_told_by_whom_they_reach() {
    let Some(mut programs) = Programs::load() else { return };
    let answer = frame(&[], &ip4(17, &udp(53, 4000, &message(1, 0x81))));
    let query = frame(&[], &ip4(17, &query(1)));
    for (program, hook) in [
        ("stillgate_out", Hook::ClientsEgress),
        ("stillgate_wan", Hook::InternetIngress),
        ("cgroup_ingress", Hook::CgroupIngress),
    ] {
        let (_, seen) = programs.run(program, &answer);
        assert_eq!(seen.len(), 1, "{program}");
        assert_eq!((seen[0].kind, seen[0].hook), (Kind::Answer, hook));
        assert_eq!(programs.run(program, &query).1, [], "{program} looks at answers alone");
        // What says that it is a query is none, whatever its port.
        let odd = frame(&[], &ip4(17, &udp(53, 4000, &message(1, 1))));
        assert_eq!(programs.run(program, &odd).1, []);
        let segment = tcp(53, 4000, 77, ACK, &[[0, 19].to_vec(), message(1, 0x81)].concat());
        let (_, seen) = programs.run(program, &frame(&[], &ip4(6, &segment)));
        assert_eq!((seen[0].kind, seen[0].offset, seen[0].length), (Kind::Answer, 77, 21));
    }
    assert_eq!(programs.sent(&answer), [], "clients' answers name nothing");
}

#[test]
fn cgroup_programs_let_every_packet_pass() {
    let Some(mut programs) = Programs::load() else { return };
    for bytes in [frame(&[], &ip4(17, &query(1))), frame(&[], &ip6(17, &query(2)))] {
        let (returned, seen) = programs.run("cgroup_egress", &bytes);
        assert_eq!((returned, seen.len()), (1, 1));
        assert_eq!(seen[0].hook, Hook::CgroupEgress);
        assert_eq!(programs.run("cgroup_ingress", &bytes).0, 1);
    }
}

#[test]
fn a_stream_is_copied_from_its_start_to_its_bound() {
    let Some(mut programs) = Programs::load() else { return };
    let client = 5000;
    let segment = |sequence: u32, flags, payload: &[u8]| {
        frame(&[], &ip4(6, &tcp(client, 443, sequence, flags, payload)))
    };
    // Bytes of a connection whose start was not seen say nothing.
    assert_eq!(programs.sent(&segment(500, ACK, b"what")), []);
    // A sequence number that wraps.
    let first = u32::MAX - 1;
    let seen = programs.sent(&segment(first, SYN, b""));
    assert_eq!(seen.iter().map(|one| one.kind).collect::<Vec<_>>(), [Kind::Open]);
    assert_eq!(programs.sent(&segment(first.wrapping_add(1), ACK, b"")), [], "a bare ACK");
    let seen = programs.sent(&segment(first.wrapping_add(1), ACK, b"\x16"));
    assert_eq!(
        (seen[0].kind, seen[0].offset, &seen[0].payload[..]),
        (Kind::Stream, 0, &b"\x16"[..])
    );
    let seen = programs.sent(&segment(first.wrapping_add(2), ACK, b"\x03\x01"));
    assert_eq!((seen[0].offset, &seen[0].payload[..]), (1, &b"\x03\x01"[..]));
    // Out of order, and with a hole.
    let seen = programs.sent(&segment(first.wrapping_add(1 + 10_000), ACK, &[7; 1000]));
    assert_eq!((seen[0].offset, seen[0].payload.len()), (10_000, 1000));
    // The last bytes within the bound, and what is beyond it.
    let seen = programs.sent(&segment(first.wrapping_add(1 + 16_380), ACK, &[8; 100]));
    assert_eq!((seen[0].offset, seen[0].payload.len(), seen[0].length), (16_380, 4, 100));
    assert_eq!(programs.sent(&segment(first.wrapping_add(1 + 16_384), ACK, &[9; 100])), []);
    assert_eq!(programs.sent(&segment(first.wrapping_sub(50), ACK, &[9; 100])), [], "before it");
    // Closed by user space.
    let flow = sensor::event::Flow {
        source: SocketAddr::new(CLIENT.parse().unwrap(), client),
        destination: SocketAddr::new(SERVER.parse().unwrap(), 443),
        protocol: Protocol::Tcp,
    };
    programs.hooks.close_stream(&flow);
    assert_eq!(programs.sent(&segment(first.wrapping_add(20), ACK, b"more")), []);
}

#[test]
fn every_size_is_copied_whole() {
    let Some(mut programs) = Programs::load() else { return };
    // Around the sizes of records, and below a test run's largest frame.
    for (number, size) in
        [1, 2, 127, 128, 129, 511, 512, 513, 1460, 2047, 2048, 2049, 3500].into_iter().enumerate()
    {
        let client = 6000 + u16::try_from(number).unwrap();
        let payload: Vec<u8> = (0..size).map(|index| (index * 7 % 251) as u8).collect();
        programs.sent(&frame(&[], &ip4(6, &tcp(client, 853, 9, SYN, b""))));
        let seen = programs.sent(&frame(&[], &ip4(6, &tcp(client, 853, 10, ACK, &payload))));
        assert_eq!(seen.len(), 1, "{size}");
        assert!(seen[0].payload == payload, "{size}");
    }
}

#[test]
fn a_syn_may_carry_data() {
    let Some(mut programs) = Programs::load() else { return };
    // TCP Fast Open, RFC 7413.
    let seen = programs.sent(&frame(&[], &ip4(6, &tcp(7000, 443, 99, SYN, b"\x16\x03"))));
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[0].kind, seen[1].kind), (Kind::Open, Kind::Stream));
    assert_eq!((seen[1].offset, &seen[1].payload[..]), (0, &b"\x16\x03"[..]));
    let seen = programs.sent(&frame(&[], &ip4(6, &tcp(7000, 443, 102, ACK, b"\x01"))));
    assert_eq!(seen[0].offset, 2);
}

/// A long header packet of a version, padded to the least size of an Initial.
fn long_header(first: u8, version: u32) -> Vec<u8> {
    let mut bytes = vec![first];
    bytes.extend(version.to_be_bytes());
    bytes.resize(1200, 0x55);
    bytes
}

#[test]
fn only_initials_of_quic_are_copied() {
    let Some(mut programs) = Programs::load() else { return };
    let mut client = 8000;
    let mut send = |port: u16, payload: &[u8]| {
        client += 1;
        let seen = programs.sent(&frame(&[], &ip4(17, &udp(client, port, payload))));
        seen.iter().map(|one| (one.kind, one.payload.len())).collect::<Vec<_>>()
    };
    let whole = [(Kind::Initial, 1200)];
    assert_eq!(send(443, &long_header(0xc3, 1)), whole);
    assert_eq!(send(443, &long_header(0xd0, 0x6b33_43cf)), whole, "version 2");
    assert_eq!(send(443, &long_header(0xd0, 1)), [], "0-RTT");
    assert_eq!(send(443, &long_header(0xe0, 1)), [], "Handshake");
    assert_eq!(send(443, &long_header(0xc3, 0xff00_001d)), [], "a draft");
    assert_eq!(send(443, &long_header(0x43, 1)), [], "a short header");
    assert_eq!(send(443, &long_header(0xc3, 1)[..1199]), [], "too short for an Initial");
    assert_eq!(send(853, &long_header(0xc3, 1)), whole);
    assert_eq!(send(853, b"anything"), [(Kind::Open, 0)], "DoQ by its port");
    assert_eq!(send(4433, &long_header(0xc3, 1)), [], "another port");
}

#[test]
fn a_quic_connection_has_few_initials() {
    let Some(mut programs) = Programs::load() else { return };
    let one = frame(&[], &ip4(17, &udp(9000, 443, &long_header(0xc3, 1))));
    let told: usize = (0..20).map(|_| programs.sent(&one).len()).sum();
    assert_eq!(told, 8);
}

#[test]
fn other_traffic_is_left_alone() {
    let Some(mut programs) = Programs::load() else { return };
    for (what, inner, protocol) in [
        ("an answer to a client", tcp(443, 5000, 1, SYN | ACK, b""), 6),
        ("web traffic", tcp(5000, 80, 1, ACK, b"GET /"), 6),
        ("multicast DNS", udp(5353, 5353, &message(1, 0)), 17),
        ("a short datagram to port 53", udp(5000, 53, b"hello"), 17),
        ("an answer sent to port 53", udp(5000, 53, &message(1, 0x81)), 17),
        ("ICMP", vec![8, 0, 0, 0, 0, 0, 0, 0], 1),
    ] {
        assert_eq!(programs.sent(&frame(&[], &ip4(protocol, &inner))), [], "{what}");
    }
    // A connection anywhere is told of by its opening alone.
    let seen = programs.sent(&frame(&[], &ip4(6, &tcp(5000, 80, 1, SYN, b""))));
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].kind, seen[0].destination.port()), (Kind::Open, 80));
}
