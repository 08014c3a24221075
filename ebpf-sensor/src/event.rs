//! What the kernel programs copy out, byte for byte as `bpf/sensor.bpf.c` lays it out.
//!
//! An event is a header of [`HEADER_BYTES`] in the machine's byte order and up to [`CAPTURED_MAX`]
//! bytes of payload. Ports and payload lengths are in host order, addresses in network order, IPv4
//! ones as IPv4-mapped IPv6 (RFC 4291, section 2.5.5.2).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Bytes of an event's header.
pub const HEADER_BYTES: usize = 104;
/// Bytes of payload that one event carries at most.
pub const CAPTURED_MAX: usize = 4096;
/// The layout's number, in each event: an object of another layout is refused.
pub const LAYOUT: u8 = 1;

/// Why bytes are no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than its header, or than what its header says follows.
    #[error("the event ends early")]
    Truncated,
    /// Of another layout.
    #[error("layout {0}, not {LAYOUT}")]
    Layout(u8),
    /// A field has a value that the programs do not write.
    #[error("unknown {0}")]
    Unknown(&'static str),
}

/// What an event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A UDP datagram to port 53; its payload is a DNS message.
    Query = 1,
    /// A UDP datagram, or a TCP segment with payload, from port 53.
    Answer = 2,
    /// A TCP connection was opened (SYN, or `connect`), or a UDP datagram went to port 443 or 853. One
    /// a second at most for the same hosts, protocol and port.
    Open = 3,
    /// Payload of a TCP segment to port 53, 443 or 853, from the connection's start on: `offset` says
    /// where it belongs.
    Stream = 4,
    /// A UDP datagram to port 443 or 853 with a QUIC long header (RFC 9000, section 17.2).
    Initial = 5,
}

/// Which program saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Hook {
    /// cgroup `connect4` or `connect6`.
    CgroupConnect = 1,
    /// cgroup `sendmsg4` or `sendmsg6`.
    CgroupSendmsg = 2,
    /// `cgroup_skb/egress`: a local socket's packet.
    CgroupEgress = 3,
    /// `cgroup_skb/ingress`: a packet for a local socket.
    CgroupIngress = 4,
    /// tc (tcx or clsact) at the ingress of a link to clients.
    ClientsIngress = 5,
    /// tc at the egress of a link to clients.
    ClientsEgress = 6,
    /// tc at the ingress of a link to the internet.
    InternetIngress = 7,
    /// fentry of `udp_sendmsg` or `udpv6_sendmsg`.
    Fentry = 8,
    /// kprobe of `udp_sendmsg` or `udpv6_sendmsg`.
    Kprobe = 9,
    /// `tp_btf/inet_sock_set_state`.
    SockState = 10,
}

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

/// Both ends of what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who sent it.
    pub source: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
}

/// The local process whose socket it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// Process id, as the initial namespace counts.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Id of its cgroup (v2).
    pub cgroup: u64,
    /// The first 15 bytes of its name; what is not printable ASCII is `?`.
    pub name: String,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// When, nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub at_ns: u64,
    /// What it tells.
    pub kind: Kind,
    /// Which program saw it.
    pub hook: Hook,
    /// Between whom.
    pub flow: Flow,
    /// Index of the link; 0 where the hook knows none.
    pub link: u32,
    /// The local process, where one is known. Forwarded packets have none.
    pub process: Option<Process>,
    /// Of [`Kind::Stream`]: where in the client's stream the payload begins. Of a TCP
    /// [`Kind::Answer`]: its sequence number.
    pub offset: u32,
    /// Bytes of payload on the wire; `payload` may hold fewer.
    pub length: u32,
    /// What was copied of the payload.
    pub payload: &'a [u8],
}

impl<'a> Event<'a> {
    /// Reads one event, as the ring buffer hands it out.
    ///
    /// # Errors
    /// When the bytes are not what the programs of this layout write.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (head, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(Malformed::Truncated)?;
        if head[55] != LAYOUT {
            return Err(Malformed::Layout(head[55]));
        }
        let captured = usize::from(u16::from_ne_bytes(part(head, 44)));
        if captured > CAPTURED_MAX {
            return Err(Malformed::Unknown("length"));
        }
        let payload = rest.get(..captured).ok_or(Malformed::Truncated)?;
        let protocol = match head[52] {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            _ => return Err(Malformed::Unknown("protocol")),
        };
        let end = |address: usize, port: usize| {
            let ip = Ipv6Addr::from(part::<16>(head, address)).to_canonical();
            SocketAddr::new(ip, u16::from_ne_bytes(part(head, port)))
        };
        let process = (head[54] & 1 != 0).then(|| Process {
            pid: u32::from_ne_bytes(part(head, 24)),
            uid: u32::from_ne_bytes(part(head, 28)),
            cgroup: u64::from_ne_bytes(part(head, 16)),
            name: printable(&part::<16>(head, 88)),
        });
        Ok(Self {
            at_ns: u64::from_ne_bytes(part(head, 0)),
            kind: Kind::of(head[50])?,
            hook: Hook::of(head[51])?,
            flow: Flow { source: end(56, 46), destination: end(72, 48), protocol },
            link: u32::from_ne_bytes(part(head, 32)),
            process,
            offset: u32::from_ne_bytes(part(head, 36)),
            length: u32::from_ne_bytes(part(head, 40)),
            payload,
        })
    }
}

impl Kind {
    fn of(number: u8) -> Result<Self, Malformed> {
        let all = [Self::Query, Self::Answer, Self::Open, Self::Stream, Self::Initial];
        all.into_iter().find(|kind| *kind as u8 == number).ok_or(Malformed::Unknown("kind"))
    }
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::CgroupConnect,
        Self::CgroupSendmsg,
        Self::CgroupEgress,
        Self::CgroupIngress,
        Self::ClientsIngress,
        Self::ClientsEgress,
        Self::InternetIngress,
        Self::Fentry,
        Self::Kprobe,
        Self::SockState,
    ];

    fn of(number: u8) -> Result<Self, Malformed> {
        Self::ALL.into_iter().find(|hook| *hook as u8 == number).ok_or(Malformed::Unknown("hook"))
    }

    /// Its name in metrics and lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CgroupConnect => "cgroup/connect",
            Self::CgroupSendmsg => "cgroup/sendmsg",
            Self::CgroupEgress => "cgroup_skb/egress",
            Self::CgroupIngress => "cgroup_skb/ingress",
            Self::ClientsIngress => "tc/clients-ingress",
            Self::ClientsEgress => "tc/clients-egress",
            Self::InternetIngress => "tc/internet-ingress",
            Self::Fentry => "fentry/udp_sendmsg",
            Self::Kprobe => "kprobe/udp_sendmsg",
            Self::SockState => "tp_btf/inet_sock_set_state",
        }
    }
}

/// The `N` bytes of a header at `at`, which every caller gives as a constant within it.
fn part<const N: usize>(head: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|index| head[at + index])
}

fn printable(name: &[u8; 16]) -> String {
    let name = name.iter().take(15).take_while(|byte| **byte != 0);
    name.map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' })
        .collect()
}

/// Whether an address stays on the host or the link: nothing that is contacted there was resolved.
#[must_use]
pub fn is_near(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_broadcast()
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{event, event_bytes};

    /// Each field at the place that `bpf/sensor.bpf.c` writes it to.
    #[test]
    fn the_layout_is_read_field_by_field() {
        let mut bytes = vec![0; HEADER_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &0x0102_0304_0506_0708_u64.to_ne_bytes());
        put(16, &0x1112_1314_1516_1718_u64.to_ne_bytes());
        put(24, &21_u32.to_ne_bytes());
        put(28, &22_u32.to_ne_bytes());
        put(32, &23_u32.to_ne_bytes());
        put(36, &24_u32.to_ne_bytes());
        put(40, &25_u32.to_ne_bytes());
        put(44, &3_u16.to_ne_bytes());
        put(46, &40_000_u16.to_ne_bytes());
        put(48, &53_u16.to_ne_bytes());
        put(50, &[1, 3, 17, 0, 1, LAYOUT]);
        put(56, &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        put(72, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 53]);
        put(88, b"a\xffb c\0never\0\0\0\0\0");
        bytes.extend_from_slice(b"abcdef");
        let expected = Event {
            at_ns: 0x0102_0304_0506_0708,
            kind: Kind::Query,
            hook: Hook::CgroupEgress,
            flow: Flow {
                source: "[2001:db8::5]:40000".parse().unwrap(),
                destination: "192.0.2.53:53".parse().unwrap(),
                protocol: Protocol::Udp,
            },
            link: 23,
            process: Some(Process {
                pid: 21,
                uid: 22,
                cgroup: 0x1112_1314_1516_1718,
                name: "a?b c".to_owned(),
            }),
            offset: 24,
            length: 25,
            payload: b"abc",
        };
        assert_eq!(Event::parse(&bytes), Ok(expected));
        bytes[54] = 0;
        assert_eq!(Event::parse(&bytes).unwrap().process, None);
    }

    #[test]
    fn what_the_programs_do_not_write_is_refused() {
        let good = event_bytes(&event(
            Kind::Stream,
            Protocol::Tcp,
            "10.0.0.5:40000",
            "192.0.2.1:443",
            b"abc",
        ));
        assert!(Event::parse(&good).is_ok());
        for end in 0..good.len() {
            assert_eq!(Event::parse(&good[..end]), Err(Malformed::Truncated), "cut at {end}");
        }
        let cases = [
            (55, 2, Malformed::Layout(2)),
            (50, 0, Malformed::Unknown("kind")),
            (50, 6, Malformed::Unknown("kind")),
            (51, 0, Malformed::Unknown("hook")),
            (51, 11, Malformed::Unknown("hook")),
            (52, 1, Malformed::Unknown("protocol")),
        ];
        for (at, value, expected) in cases {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert_eq!(Event::parse(&bytes), Err(expected), "byte {at} = {value}");
        }
        let mut long = good;
        long[44..46].copy_from_slice(&4097_u16.to_ne_bytes());
        long.resize(HEADER_BYTES + 5000, 0);
        assert_eq!(Event::parse(&long), Err(Malformed::Unknown("length")));
    }

    #[test]
    fn near_addresses_stay_on_the_host_or_link() {
        for near in [
            "127.0.0.53",
            "169.254.1.1",
            "224.0.0.251",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "ff02::fb",
        ] {
            assert!(is_near(near.parse().unwrap()), "{near}");
        }
        for far in ["10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"] {
            assert!(!is_near(far.parse().unwrap()), "{far}");
        }
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        let v4 = any::<[u8; 4]>().prop_map(IpAddr::from);
        let v6 = any::<[u8; 16]>().prop_map(|ip| IpAddr::from(ip).to_canonical());
        (prop_oneof![v4, v6], any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    proptest! {
        #[test]
        fn an_event_is_read_back(
            (at_ns, link, offset, length) in any::<(u64, u32, u32, u32)>(),
            kind in prop::sample::select(vec![Kind::Query, Kind::Answer, Kind::Open, Kind::Stream, Kind::Initial]),
            hook in prop::sample::select(Hook::ALL.to_vec()),
            protocol in prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]),
            (source, destination) in (address(), address()),
            process in prop::option::of((any::<(u32, u32, u64)>(), "[!-~]{0,15}")),
            payload in prop::collection::vec(any::<u8>(), 0..CAPTURED_MAX),
        ) {
            let process = process.map(|((pid, uid, cgroup), name)| Process { pid, uid, cgroup, name });
            let flow = Flow { source, destination, protocol };
            let event = Event { at_ns, kind, hook, flow, link, process, offset, length, payload: &payload };
            let bytes = event_bytes(&event);
            prop_assert_eq!(Event::parse(&bytes), Ok(event));
        }

        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Event::parse(&bytes);
            if let Some(layout) = bytes.get_mut(55) {
                *layout = LAYOUT;
            }
            let _ = Event::parse(&bytes);
            crate::classify::fuzz_sensor_event(&bytes);
        }
    }
}
