//! Builders of what the readers here take: events, DNS messages, ClientHellos, QUIC Initials. For
//! tests, fuzz seeds and measurements.

#![expect(clippy::expect_used, reason = "only tests and measurements call these")]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::event::{Event, Flow, HEADER_BYTES, Hook, Kind, LAYOUT, Protocol};
use crate::quic;

/// A forwarded client's event, all of its payload copied.
#[must_use]
pub fn event<'a>(
    kind: Kind,
    protocol: Protocol,
    source: &str,
    destination: &str,
    payload: &'a [u8],
) -> Event<'a> {
    Event {
        at_ns: 1_000_000_000,
        kind,
        hook: Hook::ClientsIngress,
        flow: Flow {
            source: source.parse().expect("an address and port"),
            destination: destination.parse().expect("an address and port"),
            protocol,
        },
        link: 3,
        process: None,
        offset: 0,
        length: u32::try_from(payload.len()).expect("a payload of an event"),
        payload,
    }
}

/// The bytes that the kernel programs would write for an event.
#[must_use]
pub fn event_bytes(event: &Event<'_>) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let captured = u16::try_from(event.payload.len()).expect("a payload of an event");
    put(0, &event.at_ns.to_ne_bytes());
    if let Some(process) = &event.process {
        put(16, &process.cgroup.to_ne_bytes());
        put(24, &process.pid.to_ne_bytes());
        put(28, &process.uid.to_ne_bytes());
        put(88, process.name.as_bytes());
    }
    put(32, &event.link.to_ne_bytes());
    put(36, &event.offset.to_ne_bytes());
    put(40, &event.length.to_ne_bytes());
    put(44, &captured.to_ne_bytes());
    put(46, &event.flow.source.port().to_ne_bytes());
    put(48, &event.flow.destination.port().to_ne_bytes());
    put(50, &[event.kind as u8, event.hook as u8, event.flow.protocol as u8, 0]);
    put(54, &[u8::from(event.process.is_some()), LAYOUT]);
    put(56, &mapped(event.flow.source));
    put(72, &mapped(event.flow.destination));
    bytes.extend_from_slice(event.payload);
    bytes
}

fn mapped(address: SocketAddr) -> [u8; 16] {
    match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => Ipv6Addr::octets(&ip),
    }
}

/// A standard query for the A records of a name, given by its labels.
#[must_use]
pub fn dns_query(id: u16, labels: &[&[u8]]) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in labels {
        message.push(u8::try_from(label.len()).expect("a label"));
        message.extend_from_slice(label);
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// An answer with addresses and their TTLs.
#[must_use]
pub fn dns_answer(id: u16, labels: &[&[u8]], addresses: &[(IpAddr, u32)]) -> Vec<u8> {
    let mut message = dns_query(id, labels);
    message[2] = 0x81;
    message[6..8].copy_from_slice(&u16::try_from(addresses.len()).expect("few").to_be_bytes());
    for (address, ttl) in addresses {
        let (kind, data) = match address {
            IpAddr::V4(ip) => (1_u16, ip.octets().to_vec()),
            IpAddr::V6(ip) => (28, ip.octets().to_vec()),
        };
        message.extend([0xc0, 12]);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message.extend(ttl.to_be_bytes());
        message.extend(u16::try_from(data.len()).expect("an address").to_be_bytes());
        message.extend(data);
    }
    message
}

/// A message with its length before it, as TCP carries it.
#[must_use]
pub fn dns_framed(message: &[u8]) -> Vec<u8> {
    vector16(message)
}

/// A ClientHello handshake message: GREASE, one cipher, the server name, ALPN names, TLS 1.3, and
/// `padding` bytes of an unknown extension before the server name.
#[must_use]
pub fn client_hello(
    server_name: Option<&str>,
    alpn: &[&str],
    ech: bool,
    padding: usize,
) -> Vec<u8> {
    let mut extensions = Vec::new();
    let mut add = |kind: u16, data: &[u8]| {
        extensions.extend(kind.to_be_bytes());
        extensions.extend(vector16(data));
    };
    add(0x1a1a, &[]);
    if padding > 0 {
        add(0x3a3a, &vec![0; padding]);
    }
    if let Some(name) = server_name {
        let mut host = vec![0];
        host.extend(vector16(name.as_bytes()));
        add(0, &vector16(&host));
    }
    if !alpn.is_empty() {
        let mut names = Vec::new();
        for name in alpn {
            names.push(u8::try_from(name.len()).expect("a protocol"));
            names.extend_from_slice(name.as_bytes());
        }
        add(16, &vector16(&names));
    }
    add(43, &[4, 0x2a, 0x2a, 3, 4]);
    if ech {
        add(0xfe0d, &[0; 40]);
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 4, 0x0a, 0x0a, 0x13, 0x01, 1, 0]);
    body.extend(vector16(&extensions));
    let mut message = vec![1, 0];
    message.extend(vector16(&body));
    message
}

/// Handshake bytes in TLS records of at most `record` bytes each.
#[must_use]
pub fn records(handshake: &[u8], record: usize) -> Vec<u8> {
    let mut records = Vec::new();
    for part in handshake.chunks(record.max(1)) {
        records.extend([22, 3, 1]);
        records.extend(vector16(part));
    }
    records
}

/// A CRYPTO frame (RFC 9000, section 19.6).
#[must_use]
pub fn crypto_frame(offset: u16, data: &[u8]) -> Vec<u8> {
    let mut frame = vec![6];
    frame.extend((0x4000 | offset).to_be_bytes());
    frame.extend((0x4000 | u16::try_from(data.len()).expect("a frame")).to_be_bytes());
    frame.extend_from_slice(data);
    frame
}

/// A client's protected Initial packet with `frames`, padded to a datagram of 1200 bytes.
#[must_use]
pub fn quic_initial(
    version: u32,
    keys_of: &[u8],
    destination: &[u8],
    number: u32,
    frames: &[u8],
) -> Vec<u8> {
    let mut packet = vec![if version == quic::V2 { 0xd3 } else { 0xc3 }];
    packet.extend(version.to_be_bytes());
    packet.push(u8::try_from(destination.len()).expect("an id"));
    packet.extend_from_slice(destination);
    // No source connection id, no token.
    packet.extend([0, 0]);
    let mut payload = frames.to_vec();
    let header_bytes = packet.len() + 2 + 4;
    payload.resize(payload.len().max(1200_usize.saturating_sub(header_bytes + 16)), 0);
    let length = u16::try_from(4 + payload.len() + 16).expect("a datagram");
    packet.extend((0x4000 | length).to_be_bytes());
    packet.extend(number.to_be_bytes());
    let keys = quic::client_keys(version, keys_of).expect("a version with keys");
    let tag = keys.packet.encrypt_in_place(number.into(), &packet, &mut payload).expect("short");
    packet.extend(payload);
    packet.extend_from_slice(tag.as_ref());
    let (head, sample) = packet.split_at_mut(header_bytes);
    let (first, number) = head.split_at_mut(header_bytes - 4);
    keys.header.encrypt_in_place(&sample[..16], &mut first[0], number).expect("a sample");
    packet
}

fn vector16(data: &[u8]) -> Vec<u8> {
    let mut vector = u16::try_from(data.len()).expect("a vector").to_be_bytes().to_vec();
    vector.extend_from_slice(data);
    vector
}
