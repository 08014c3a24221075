//! `stillgate fingerprint FILE`: the TLS fingerprints in a file.
//!
//! The file is a ClientHello (the bare handshake message, or the TLS records that carry it) or a
//! packet capture (pcap or pcapng; Ethernet, Linux cooked, raw IP or loopback). It matters because
//! an operator who writes a policy starts from traffic that was seen, and has to get the same
//! fingerprints from it as the gateway does: the hellos are read by the same code.
//!
//! TCP streams are put together by sequence number, retransmissions and segments out of order
//! included. What is kept for that is bounded; segments beyond the bounds are counted and reported.
//! IP fragments are not put together.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use detectors::TlsCapture;
use etherparse::{EtherType, LaxNetSlice, LaxSlicedPacket, TcpSlice, TransportSlice, ip_number};
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{Block, PcapBlockOwned, PcapError, create_reader};
use serde::Serialize;

use crate::capture::client_hello::{ClientHello, HelloError};
use crate::capture::handshake::{ClientHelloReader, HandshakeError, ReadHello, ServerHelloReader};
use crate::capture::server_hello::ServerHello;
use crate::limits::{
    HELLO_FILE_BYTES_MAX, PCAP_AHEAD_BYTES_MAX, PCAP_AHEAD_SEGMENTS_MAX, PCAP_BLOCK_BYTES_MAX,
    PCAP_CONNECTIONS_MAX,
};

/// Why a file gave no fingerprint, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum FingerprintError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "{path} is neither a ClientHello nor a packet capture: give a TLS handshake message, its \
         TLS records, or a pcap or pcapng file"
    )]
    NotRecognised {
        /// The file.
        path: String,
    },
    /// The records do not hold a ClientHello.
    #[error(
        "{path} begins like TLS but holds no ClientHello ({source}): give the client's side \
             of a connection from its first byte"
    )]
    Handshake {
        /// The file.
        path: String,
        /// What came in its place.
        source: HandshakeError,
    },
    /// The message is malformed.
    #[error(
        "the ClientHello in {path} is malformed ({source}): give the whole message and \
             nothing after it"
    )]
    Hello {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: HelloError,
    },
    /// The records end inside the ClientHello.
    #[error("{path} ends inside its ClientHello: give all TLS records that it is in")]
    Incomplete {
        /// The file.
        path: String,
    },
    /// No connection in the capture begins with a ClientHello.
    #[error(
        "no ClientHello in {path}: capture whole packets, from before the connections open, such \
         as with tcpdump -s 0 -w FILE tcp port 443"
    )]
    NoHello {
        /// The file.
        path: String,
    },
    /// The capture's link type is not known here.
    #[error(
        "{path} was captured on link type {link_type}, which is not read here: capture on an \
         Ethernet, loopback or Linux cooked interface"
    )]
    LinkType {
        /// The file.
        path: String,
        /// Number in the registry of link types.
        link_type: i32,
    },
    /// The capture is damaged; what came before is printed.
    #[error(
        "{path} is damaged after its first {packets} packets: capture again, or repair it; the \
         connections before that are printed"
    )]
    Damaged {
        /// The file.
        path: String,
        /// Packets before the damage.
        packets: u64,
    },
    /// Some of the capture did not fit into the bounds; the rest is printed.
    #[error(
        "{segments} TCP segments of {path} were fragmented or too far out of order and are left \
         out: capture nearer to the endpoint; the other connections are printed"
    )]
    LeftOut {
        /// The file.
        path: String,
        /// Segments left out.
        segments: u64,
    },
    /// The result cannot be written.
    #[error("cannot write the fingerprints: {0}")]
    Write(#[from] io::Error),
}

/// Prints the fingerprint of every ClientHello in the file at `path`: blocks of lines for a
/// person, or with `json` one JSON object a line.
///
/// # Errors
/// When there is no ClientHello to be had, or when only a part of the file could be used; what
/// could be is then printed.
pub fn run(path: &Path, json: bool, out: &mut dyn Write) -> Result<(), FingerprintError> {
    let name = path.display().to_string();
    let read = |source| FingerprintError::Read { path: name.clone(), source };
    let mut file = File::open(path).map_err(read)?;
    let mut start = [0; 4];
    let start = {
        let mut length = 0;
        while length < start.len() {
            match file.read(&mut start[length..]).map_err(read)? {
                0 => break,
                n => length += n,
            }
        }
        &start[..length]
    };
    file.rewind().map_err(read)?;
    let mut printer = Printer { json, out, printed: 0 };
    match start {
        [22, 3, ..] | [1, 0, ..] => {
            let mut bytes = Vec::new();
            file.take(HELLO_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(read)?;
            printer.print(&of_hello_file(&name, &bytes)?)?;
        }
        _ if is_capture(start) => of_capture(&name, file, &mut printer)?,
        _ => return Err(FingerprintError::NotRecognised { path: name }),
    }
    printer.out.flush()?;
    Ok(())
}

/// Where the reading buffer starts.
const BLOCK_BYTES: usize = 1024 * 1024;

/// The first bytes of pcap (both byte orders, micro- and nanoseconds) and pcapng.
fn is_capture(start: &[u8]) -> bool {
    matches!(
        start,
        [0xa1, 0xb2, 0xc3, 0xd4]
            | [0xd4, 0xc3, 0xb2, 0xa1]
            | [0xa1, 0xb2, 0x3c, 0x4d]
            | [0x4d, 0x3c, 0xb2, 0xa1]
            | [0x0a, 0x0d, 0x0d, 0x0a]
    )
}

/// One connection's fingerprints, as printed.
#[derive(Debug, Serialize)]
struct Fingerprint {
    /// Client address, or the file's name.
    client: String,
    /// Server address; `None` where the file holds a hello only.
    server: Option<String>,
    #[serde(flatten)]
    tls: TlsCapture,
    ja4_r: String,
}

impl Fingerprint {
    fn new(client: String, server: Option<String>, hello: &ReadHello<ClientHello>) -> Self {
        let tls = hello.hello.capture(hello.records, hello.reads);
        Self { client, server, tls, ja4_r: hello.hello.ja4_r() }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, server, tls, ja4_r } = self;
        match server {
            Some(server) => writeln!(f, "{client} -> {server}")?,
            None => writeln!(f, "{client}")?,
        }
        let flags = [
            (tls.grease, "GREASE"),
            (tls.ech, "ECH"),
            (tls.post_quantum, "post-quantum"),
            (tls.ticket, "ticket or PSK"),
        ];
        let flags: Vec<&str> =
            flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
        // Names come from the network and go to a terminal.
        let alpn: Vec<String> =
            tls.alpn.iter().map(|name| name.escape_debug().to_string()).collect();
        let sni = tls.sni.as_ref().map(|name| name.escape_debug().to_string());
        let hello = format!(
            "{} bytes in {} record{}",
            tls.hello_bytes,
            tls.hello_records,
            if tls.hello_records == 1 { "" } else { "s" }
        );
        let mut line = |name: &str, value: &str| {
            writeln!(f, "  {name:<9} {}", if value.is_empty() { "-" } else { value })
        };
        line("SNI", sni.as_deref().unwrap_or_default())?;
        line("ALPN", &alpn.join(", "))?;
        line("JA3", &tls.ja3)?;
        line("JA3 MD5", &tls.ja3_md5)?;
        line("JA4", &tls.ja4)?;
        line("JA4_r", ja4_r)?;
        line("hello", &hello)?;
        line("offers", &flags.join(", "))?;
        let Some(ja3s) = &tls.ja3s else { return Ok(()) };
        let yes_no = |set| if set { "yes" } else { "no" };
        line("JA3S", ja3s)?;
        line("JA3S MD5", tls.ja3s_md5.as_deref().unwrap_or_default())?;
        line("version", &tls.version)?;
        line("retry", yes_no(tls.hello_retry_request))?;
        line("resumed", yes_no(tls.resumed))
    }
}

struct Printer<'a> {
    json: bool,
    out: &'a mut dyn Write,
    printed: u64,
}

impl Printer<'_> {
    fn print(&mut self, fingerprint: &Fingerprint) -> io::Result<()> {
        if self.json {
            serde_json::to_writer(&mut *self.out, fingerprint)?;
            writeln!(self.out)?;
        } else {
            let separator = if self.printed > 0 { "\n" } else { "" };
            write!(self.out, "{separator}{fingerprint}")?;
        }
        self.printed += 1;
        Ok(())
    }
}

fn of_hello_file(path: &str, bytes: &[u8]) -> Result<Fingerprint, FingerprintError> {
    let name = || path.to_owned();
    let hello = if bytes.first() == Some(&1) {
        let hello = ClientHello::parse(bytes)
            .map_err(|source| FingerprintError::Hello { path: name(), source })?;
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        // A bare message tells nothing of records.
        ReadHello { hello, records: 0, reads: 0, bytes: length }
    } else {
        match ClientHelloReader::new().feed(bytes) {
            Ok(Some(hello)) => hello,
            Ok(None) => return Err(FingerprintError::Incomplete { path: name() }),
            Err(HandshakeError::Malformed(source)) => {
                return Err(FingerprintError::Hello { path: name(), source });
            }
            Err(source) => return Err(FingerprintError::Handshake { path: name(), source }),
        }
    };
    Ok(Fingerprint::new(name(), None, &hello))
}

fn of_capture(path: &str, file: File, printer: &mut Printer<'_>) -> Result<(), FingerprintError> {
    let mut tracker = Tracker::default();
    let outcome = for_each_packet(path, file, &mut |link_type, data| {
        let Some(packet) = ip_packet(link_type, data) else {
            return Err(FingerprintError::LinkType { path: path.to_owned(), link_type });
        };
        if let Some(done) = packet.and_then(|packet| tracker.take(&packet)) {
            printer.print(&done)?;
        }
        Ok(())
    });
    for done in tracker.finish() {
        printer.print(&done)?;
    }
    outcome?;
    if tracker.left_out > 0 {
        return Err(FingerprintError::LeftOut {
            path: path.to_owned(),
            segments: tracker.left_out,
        });
    }
    if printer.printed == 0 {
        return Err(FingerprintError::NoHello { path: path.to_owned() });
    }
    Ok(())
}

type OnPacket<'a> = dyn FnMut(i32, &[u8]) -> Result<(), FingerprintError> + 'a;

/// Calls `on_packet` with the link type and the bytes of each packet of a capture file.
fn for_each_packet(
    path: &str,
    file: File,
    on_packet: &mut OnPacket<'_>,
) -> Result<(), FingerprintError> {
    let mut packets = 0;
    let damaged = |packets| FingerprintError::Damaged { path: path.to_owned(), packets };
    let mut reader = create_reader(BLOCK_BYTES, file).map_err(|_| damaged(0))?;
    let mut capacity = BLOCK_BYTES;
    // Link types of the interfaces, which packets refer to by number.
    let mut link_types: Vec<i32> = Vec::new();
    loop {
        let consumed = match reader.next() {
            Ok((consumed, block)) => {
                let packet = match &block {
                    PcapBlockOwned::LegacyHeader(header) => {
                        // The upper bits may tell of a checksum at the end of frames.
                        link_types = vec![header.network.0 & 0xffff];
                        None
                    }
                    PcapBlockOwned::Legacy(packet) => Some((0, packet.data)),
                    PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                        link_types.clear();
                        None
                    }
                    PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                        link_types.push(interface.linktype.0);
                        None
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                        Some((packet.if_id as usize, packet.packet_data()))
                    }
                    PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                        Some((0, packet.packet_data()))
                    }
                    PcapBlockOwned::NG(_) => None,
                };
                if let Some((interface, data)) = packet {
                    let Some(link_type) = link_types.get(interface) else {
                        return Err(damaged(packets));
                    };
                    on_packet(*link_type, data)?;
                    packets += 1;
                }
                consumed
            }
            Err(PcapError::Eof) => return Ok(()),
            Err(PcapError::Incomplete(_)) => {
                reader.refill().map_err(|_| damaged(packets))?;
                continue;
            }
            Err(PcapError::BufferTooSmall) if capacity < PCAP_BLOCK_BYTES_MAX => {
                capacity *= 2;
                reader.grow(capacity);
                reader.refill().map_err(|_| damaged(packets))?;
                continue;
            }
            Err(_) => return Err(damaged(packets)),
        };
        reader.consume(consumed);
    }
}

/// The IP packet in a frame; `None` when the link type is not known here. Link types are those of
/// the tcpdump registry.
fn ip_packet(link_type: i32, data: &[u8]) -> Option<Option<LaxSlicedPacket<'_>>> {
    let by_ether_type = |at: usize, header_bytes: usize| {
        let ether_type = u16::from_be_bytes([*data.get(at)?, *data.get(at + 1)?]);
        Some(LaxSlicedPacket::from_ether_type(EtherType(ether_type), data.get(header_bytes..)?))
    };
    let by_version = |header_bytes: usize| LaxSlicedPacket::from_ip(data.get(header_bytes..)?).ok();
    Some(match link_type {
        ETHERNET => LaxSlicedPacket::from_ethernet(data).ok(),
        // Four bytes of address family, whose numbers differ between systems.
        LOOPBACK | LOOPBACK_OPENBSD => by_version(4),
        RAW | RAW_BSD | RAW_OPENBSD | IPV4 | IPV6 => by_version(0),
        LINUX_COOKED => by_ether_type(14, 16),
        LINUX_COOKED_2 => by_ether_type(0, 20),
        _ => return None,
    })
}

const LOOPBACK: i32 = 0;
const ETHERNET: i32 = 1;
const RAW_BSD: i32 = 12;
const RAW_OPENBSD: i32 = 14;
const RAW: i32 = 101;
const LOOPBACK_OPENBSD: i32 = 108;
const LINUX_COOKED: i32 = 113;
const IPV4: i32 = 228;
const IPV6: i32 = 229;
const LINUX_COOKED_2: i32 = 276;

/// Follows the connections of a capture.
#[derive(Default)]
struct Tracker {
    /// Number of each connection by its two ends, the lower one first.
    numbers: HashMap<[SocketAddr; 2], u64>,
    /// By number, which rises with the first packet.
    connections: BTreeMap<u64, Connection>,
    started: u64,
    left_out: u64,
}

impl Tracker {
    /// Takes a packet; gives back a connection that is let go because of it.
    fn take(&mut self, packet: &LaxSlicedPacket<'_>) -> Option<Fingerprint> {
        let payload = packet.ip_payload()?;
        let (source, destination) = addresses(packet)?;
        let Some(TransportSlice::Tcp(segment)) = &packet.transport else {
            self.left_out += u64::from(payload.fragmented && payload.ip_number == ip_number::TCP);
            return None;
        };
        let source = SocketAddr::new(source, segment.source_port());
        let destination = SocketAddr::new(destination, segment.destination_port());
        self.take_segment(source, destination, segment)
    }

    fn take_segment(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        segment: &TcpSlice<'_>,
    ) -> Option<Fingerprint> {
        let ends =
            if source <= destination { [source, destination] } else { [destination, source] };
        let from = usize::from(source != ends[0]);
        let mut done = None;
        if let Some(number) = self.numbers.get(&ends)
            && segment.syn()
            && self.connections.get(number).is_some_and(|old| old.is_reopened(from, segment))
        {
            // The ports are used again.
            done = self.close(*number);
        }
        if !self.numbers.contains_key(&ends) {
            self.numbers.insert(ends, self.started);
            self.connections.insert(self.started, Connection::new(ends));
            self.started += 1;
            if self.connections.len() > PCAP_CONNECTIONS_MAX
                && let Some(oldest) = self.connections.keys().next().copied()
            {
                done = done.or(self.close(oldest));
            }
        }
        let connection = self.connections.get_mut(self.numbers.get(&ends)?)?;
        self.left_out += connection.take(from, segment);
        done
    }

    fn close(&mut self, number: u64) -> Option<Fingerprint> {
        let connection = self.connections.remove(&number)?;
        self.numbers.remove(&connection.ends);
        connection.fingerprint()
    }

    /// The connections that are left, in the order of their first packets.
    fn finish(&mut self) -> Vec<Fingerprint> {
        self.numbers.clear();
        std::mem::take(&mut self.connections)
            .into_values()
            .filter_map(|connection| connection.fingerprint())
            .collect()
    }
}

fn addresses(packet: &LaxSlicedPacket<'_>) -> Option<(IpAddr, IpAddr)> {
    match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            Some((header.source_addr().into(), header.destination_addr().into()))
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            Some((header.source_addr().into(), header.destination_addr().into()))
        }
        LaxNetSlice::Arp(_) => None,
    }
}

/// One connection, whose ends are not known to be client or server until a hello is read.
struct Connection {
    ends: [SocketAddr; 2],
    directions: [Direction; 2],
}

impl Connection {
    fn new(ends: [SocketAddr; 2]) -> Self {
        Self { ends, directions: [Direction::new(), Direction::new()] }
    }

    /// Whether a SYN opens another connection between the same ends: it is neither the first one
    /// sent again, nor the late one of a connection whose first bytes came before it.
    fn is_reopened(&self, from: usize, segment: &TcpSlice<'_>) -> bool {
        let Direction { opened, next, .. } = &self.directions[from];
        let sequence = segment.sequence_number();
        let other = match (opened, next) {
            (Some(opened), _) => *opened != sequence,
            (None, Some(next)) => next.wrapping_sub(sequence) as usize > PCAP_AHEAD_BYTES_MAX,
            (None, None) => false,
        };
        other && !segment.ack()
    }

    /// Takes a segment; gives back how many were left out because of it.
    fn take(&mut self, from: usize, segment: &TcpSlice<'_>) -> u64 {
        let direction = &mut self.directions[from];
        let mut sequence = segment.sequence_number();
        if segment.syn() {
            direction.opened = Some(sequence);
            // The SYN itself counts as a byte (RFC 9293, section 3.4).
            sequence = sequence.wrapping_add(1);
            direction.next.get_or_insert(sequence);
        }
        direction.take(sequence, segment.payload())
    }

    fn fingerprint(self) -> Option<Fingerprint> {
        let from = self.directions.iter().position(|direction| direction.hello.is_some())?;
        let hello = self.directions[from].hello.as_ref()?;
        let answer = &self.directions[1 - from];
        let names = [from, 1 - from].map(|end| self.ends[end].to_string());
        let [client, server] = names;
        let mut fingerprint = Fingerprint::new(client, Some(server), hello);
        fingerprint.tls.hello_retry_request = answer.hello_retry_request;
        if let Some(reply) = &answer.reply {
            reply.complete(&hello.hello, answer.hello_retry_request, &mut fingerprint.tls);
        }
        Some(fingerprint)
    }
}

/// What one end sends.
struct Direction {
    /// Initial sequence number, where the capture has the SYN.
    opened: Option<u32>,
    /// Sequence number of the next byte to be read.
    next: Option<u32>,
    /// Segments behind a missing one, by sequence number.
    ahead: Vec<(u32, Vec<u8>)>,
    ahead_bytes: usize,
    client: Option<ClientHelloReader>,
    server: Option<ServerHelloReader>,
    hello: Option<ReadHello<ClientHello>>,
    reply: Option<ServerHello>,
    hello_retry_request: bool,
}

impl Direction {
    fn new() -> Self {
        Self {
            opened: None,
            next: None,
            ahead: Vec::new(),
            ahead_bytes: 0,
            client: Some(ClientHelloReader::new()),
            server: Some(ServerHelloReader::new()),
            hello: None,
            reply: None,
            hello_retry_request: false,
        }
    }

    /// Takes the payload of a segment; gives back how many segments were left out.
    fn take(&mut self, sequence: u32, payload: &[u8]) -> u64 {
        if payload.is_empty() || self.is_done() {
            return 0;
        }
        if self.next.is_none() && payload.starts_with(&[22, 3]) {
            // The capture began after the SYN: a handshake record is where we can begin.
            self.next = Some(sequence);
        }
        if !self.read(sequence, payload) {
            if self.ahead.len() >= PCAP_AHEAD_SEGMENTS_MAX
                || self.ahead_bytes + payload.len() > PCAP_AHEAD_BYTES_MAX
            {
                return 1;
            }
            self.ahead_bytes += payload.len();
            self.ahead.push((sequence, payload.to_vec()));
            return 0;
        }
        // The gap may be closed for one that waits, and by that one for another.
        while let Some(at) = self.ahead.iter().position(|(sequence, _)| self.is_due(*sequence)) {
            let (sequence, payload) = self.ahead.swap_remove(at);
            self.ahead_bytes -= payload.len();
            self.read(sequence, &payload);
        }
        if self.is_done() {
            self.ahead = Vec::new();
            self.ahead_bytes = 0;
        }
        0
    }

    /// Whether a segment starts at or before the next byte. Sequence numbers wrap.
    fn is_due(&self, sequence: u32) -> bool {
        self.next.is_some_and(|next| next.wrapping_sub(sequence) < 1 << 31)
    }

    /// Reads a segment that is due, without what was read before; `false` when it is not due.
    fn read(&mut self, sequence: u32, payload: &[u8]) -> bool {
        let (true, Some(next)) = (self.is_due(sequence), self.next) else { return false };
        let repeated = next.wrapping_sub(sequence) as usize;
        let Some(bytes) = payload.get(repeated..) else { return true };
        self.next = Some(next.wrapping_add(bytes.len() as u32));
        if let Some(reader) = &mut self.client {
            match reader.feed(bytes) {
                Ok(None) => {}
                Ok(Some(hello)) => {
                    self.hello = Some(hello);
                    self.client = None;
                    self.server = None;
                }
                Err(_) => self.client = None,
            }
        }
        if let Some(reader) = &mut self.server {
            let outcome = reader.feed(bytes);
            self.hello_retry_request = reader.hello_retry_request();
            match outcome {
                Ok(None) => {}
                Ok(Some(reply)) => {
                    self.reply = Some(reply);
                    self.server = None;
                }
                Err(_) => self.server = None,
            }
        }
        true
    }

    fn is_done(&self) -> bool {
        self.client.is_none() && self.server.is_none()
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::capture::client_hello::tests::{chrome, curl, firefox};
    use crate::capture::server_hello::tests::{hello_retry_request, tls13};

    fn record(payload: &[u8]) -> Vec<u8> {
        [&[22, 3, 1][..], &(payload.len() as u16).to_be_bytes(), payload].concat()
    }

    /// Runs over a file with these bytes.
    fn print(bytes: &[u8], json: bool) -> (String, Result<(), FingerprintError>) {
        static FILES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = FILES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir()
            .join(format!("stillgate-fingerprint-{}-{number}", std::process::id()));
        std::fs::write(&path, bytes).expect("a temporary file");
        let mut out = Vec::new();
        let outcome = run(&path, json, &mut out);
        std::fs::remove_file(&path).expect("it is there");
        (String::from_utf8(out).expect("text"), outcome)
    }

    fn json_lines(bytes: &[u8]) -> Vec<serde_json::Value> {
        let (text, outcome) = print(bytes, true);
        outcome.expect("fingerprints");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// One end's packets, as IP.
    struct End {
        ipv6: bool,
        ports: (u16, u16),
        sequence: u32,
    }

    impl End {
        /// Client and server of a connection.
        fn pair(ipv6: bool, port: u16) -> (Self, Self) {
            // The client's sequence number wraps inside its hello.
            let client = Self { ipv6, ports: (port, 443), sequence: u32::MAX - 100 };
            (client, Self { ipv6, ports: (443, port), sequence: 7 })
        }

        fn packet(&self, sequence: u32, syn: bool, payload: &[u8]) -> Vec<u8> {
            let low = |port: u16| if port == 443 { 1 } else { 2 };
            let (from, to) = (low(self.ports.0), low(self.ports.1));
            let mut v6 = [[0; 16]; 2];
            v6[0][15] = from;
            v6[1][15] = to;
            let tcp = if self.ipv6 {
                PacketBuilder::ipv6(v6[0], v6[1], 64)
            } else {
                PacketBuilder::ipv4([192, 0, 2, from], [192, 0, 2, to], 64)
            }
            .tcp(self.ports.0, self.ports.1, sequence, 1000);
            let tcp = if syn { tcp.syn() } else { tcp.ack(1) };
            // The server's SYN acknowledges the client's.
            let tcp = if syn && self.ports.0 == 443 { tcp.ack(1) } else { tcp };
            let mut packet = Vec::new();
            tcp.write(&mut packet, payload).expect("a packet");
            packet
        }

        fn open(&mut self) -> Vec<u8> {
            let packet = self.packet(self.sequence, true, &[]);
            self.sequence = self.sequence.wrapping_add(1);
            packet
        }

        fn send(&mut self, bytes: &[u8], size: usize) -> Vec<Vec<u8>> {
            let send = |part: &[u8]| {
                let packet = self.packet(self.sequence, false, part);
                self.sequence = self.sequence.wrapping_add(part.len() as u32);
                packet
            };
            bytes.chunks(size).map(send).collect()
        }
    }

    fn framed(link_type: i32, packet: &[u8]) -> Vec<u8> {
        let ether_type: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        let header = match link_type {
            ETHERNET => [&[2; 12][..], &ether_type].concat(),
            LOOPBACK => vec![2, 0, 0, 0],
            LOOPBACK_OPENBSD => vec![0, 0, 0, 2],
            LINUX_COOKED => [&[0; 14][..], &ether_type].concat(),
            LINUX_COOKED_2 => [&ether_type[..], &[0; 18]].concat(),
            _ => vec![],
        };
        [&header[..], packet].concat()
    }

    fn pcap(link_type: i32, packets: &[Vec<u8>]) -> Vec<u8> {
        let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0];
        file.extend(link_type.to_le_bytes());
        for packet in packets {
            let packet = framed(link_type, packet);
            file.extend([0; 8]);
            file.extend((packet.len() as u32).to_le_bytes());
            file.extend((packet.len() as u32).to_le_bytes());
            file.extend(packet);
        }
        file
    }

    fn pcapng(link_type: i32, packets: &[Vec<u8>]) -> Vec<u8> {
        let block = |kind: u32, body: &[u8]| {
            let padded = body.len().next_multiple_of(4);
            let length = (padded as u32 + 12).to_le_bytes();
            let mut block = [&kind.to_le_bytes()[..], &length, body].concat();
            block.resize(8 + padded, 0);
            [block, length.to_vec()].concat()
        };
        let section = [&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
        let mut file = block(0x0a0d_0d0a, &section);
        file.extend(block(1, &[&link_type.to_le_bytes()[..], &[0, 0, 4, 0]].concat()));
        for packet in packets {
            let packet = framed(link_type, packet);
            let length = (packet.len() as u32).to_le_bytes();
            file.extend(block(6, &[&[0; 12][..], &length, &length, &packet].concat()));
        }
        file
    }

    /// A handshake with a HelloRetryRequest, in segments of `size`.
    fn handshake(ipv6: bool, port: u16, size: usize) -> Vec<Vec<u8>> {
        let (mut client, mut server) = End::pair(ipv6, port);
        let mut packets = vec![client.open(), server.open()];
        packets.extend(client.send(&record(&firefox().message()), size));
        packets.extend(server.send(&record(&hello_retry_request()), size));
        packets.extend(client.send(&record(&curl().message()), size));
        packets.extend(server.send(&record(&tls13(&[(41, &[0, 0])])), size));
        packets
    }

    #[test]
    fn every_container_and_link_type_gives_the_same() {
        let hello = ClientHello::parse(&firefox().message()).expect("well formed");
        for ipv6 in [false, true] {
            let packets = handshake(ipv6, 50_000, 700);
            let links = [
                LOOPBACK,
                ETHERNET,
                RAW_BSD,
                RAW_OPENBSD,
                RAW,
                LOOPBACK_OPENBSD,
                LINUX_COOKED,
                LINUX_COOKED_2,
                if ipv6 { IPV6 } else { IPV4 },
            ];
            for link_type in links {
                for file in [pcap(link_type, &packets), pcapng(link_type, &packets)] {
                    let lines = json_lines(&file);
                    assert_eq!(lines.len(), 1, "link type {link_type}");
                    let line = &lines[0];
                    let (client, server) = if ipv6 {
                        ("[::2]:50000", "[::1]:443")
                    } else {
                        ("192.0.2.2:50000", "192.0.2.1:443")
                    };
                    assert_eq!(
                        (&line["client"], &line["server"]),
                        (&client.into(), &server.into())
                    );
                    assert_eq!(line["ja3"], hello.ja3());
                    assert_eq!(line["ja4"], hello.ja4());
                    assert_eq!(line["ja4_r"], hello.ja4_r());
                    assert_eq!(line["ja3s"], "771,4866,51-43-41");
                    assert_eq!(line["hello_retry_request"], true);
                    assert_eq!(line["resumed"], true);
                    assert_eq!(line["hello_records"], 1);
                }
            }
        }
    }

    #[test]
    fn disorder_and_repetition_do_not_matter() {
        let packets = handshake(false, 50_000, 100);
        let expected = json_lines(&pcap(RAW, &packets));
        let mut reversed = packets.clone();
        reversed[2..].reverse();
        let mut doubled = packets.clone();
        doubled.extend(packets.clone());
        let mut without_syn = packets.clone();
        without_syn.drain(..2);
        let mut late_syn = packets.clone();
        late_syn.rotate_left(2);
        // The first segment of the client again, longer: what it repeats is not read twice.
        let (mut client, _) = End::pair(false, 50_000);
        client.open();
        let mut overlapping = packets;
        overlapping.insert(3, client.send(&record(&firefox().message()), 150).remove(0));
        for (name, packets) in [
            ("reversed", reversed),
            ("doubled", doubled),
            ("without SYN", without_syn),
            ("late SYN", late_syn),
            ("overlapping", overlapping),
        ] {
            let lines = json_lines(&pcap(RAW, &packets));
            assert_eq!(lines.len(), 1, "{name}");
            for key in ["client", "ja3", "ja4", "ja3s", "hello_retry_request", "hello_bytes"] {
                assert_eq!(lines[0][key], expected[0][key], "{name}: {key}");
            }
        }
    }

    #[test]
    fn connections_are_told_apart_also_on_the_same_ports() {
        let mut packets = handshake(false, 50_000, 900);
        let (mut client, _) = End::pair(false, 50_001);
        packets.push(client.open());
        packets.extend(client.send(&record(&chrome().message()), 2000));
        let (mut client, _) = End::pair(false, 50_000);
        client.sequence = 5;
        packets.push(client.open());
        packets.extend(client.send(&record(&curl().message()), 2000));
        // Another protocol, and a connection without a hello.
        let (mut client, _) = End::pair(false, 50_002);
        packets.push(client.open());
        packets.extend(client.send(b"GET / HTTP/1.1\r\n\r\n", 2000));
        let lines = json_lines(&pcap(ETHERNET, &packets));
        let seen: Vec<(&str, bool)> = lines
            .iter()
            .map(|line| (line["client"].as_str().unwrap_or_default(), line["ja3s"].is_string()))
            .collect();
        let (first, second) = ("192.0.2.2:50000", "192.0.2.2:50001");
        assert_eq!(seen, [(first, true), (second, false), (first, false)]);
        assert_eq!(lines[1]["sni"], "www.example.com");
        assert_eq!(lines[2]["sni"], "localhost");
    }

    #[test]
    fn a_hello_file_is_read_bare_or_in_records() {
        let message = chrome().message();
        let (head, tail) = message.split_at(100);
        let cases = [
            (message.clone(), 0),
            (record(&message), 1),
            ([record(head), record(tail)].concat(), 2),
        ];
        for (bytes, records) in cases {
            let lines = json_lines(&bytes);
            assert_eq!(lines[0]["ja4"], "t13d1516h2_8daaf6152771_e5627efa2ab1");
            assert_eq!(
                (&lines[0]["hello_records"], &lines[0]["grease"]),
                (&records.into(), &true.into())
            );
            assert!(lines[0]["server"].is_null());
        }
    }

    #[test]
    fn a_person_gets_aligned_lines() {
        let (text, outcome) = print(&pcap(RAW, &handshake(false, 50_000, 5000)), false);
        outcome.expect("fingerprints");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "192.0.2.2:50000 -> 192.0.2.1:443");
        for line in &lines[1..] {
            let (name, value) = line.split_at(12);
            assert!(name.ends_with(' ') && !value.starts_with(' '), "{line}");
        }
        for expected in [
            "  SNI       www.example.com",
            "  ALPN      h2, http/1.1",
            "  offers    ECH, post-quantum",
            "  JA3S      771,4866,51-43-41",
            "  version   1.3",
            "  retry     yes",
            "  resumed   yes",
        ] {
            assert!(lines.contains(&expected), "{expected}: {text}");
        }
        // A name from the network cannot steer the terminal.
        let mut draft = chrome();
        draft.extensions[2] = crate::capture::client_hello::tests::sni("a\x1b[2J");
        let (text, _) = print(&draft.message(), false);
        assert!(text.contains(r"a\u{1b}[2J") && !text.contains('\x1b'));
    }

    #[test]
    fn errors_say_what_to_do() {
        let message = chrome().message();
        let packets = handshake(false, 50_000, 100);
        let mut cut = pcap(RAW, &packets);
        cut.truncate(cut.len() - 10);
        let mut no_interface = pcapng(RAW, &packets);
        no_interface.drain(28..48);
        let far: Vec<Vec<u8>> = {
            let (mut client, _) = End::pair(false, 50_000);
            let opened = client.open();
            client.sequence += 1;
            [vec![opened], client.send(&vec![0; 200_000], 1400)].concat()
        };
        let cases: [(Vec<u8>, &str); 10] = [
            (b"hello".to_vec(), "is neither a ClientHello nor a packet capture"),
            (Vec::new(), "is neither a ClientHello nor a packet capture"),
            (record(&message)[..90].to_vec(), "ends inside its ClientHello"),
            (record(&tls13(&[])), "holds no ClientHello (handshake message of type 2"),
            (message[..90].to_vec(), "is malformed (the hello ends inside its body)"),
            (pcap(RAW, &packets[..2]), "no ClientHello in"),
            (pcap(147, &packets), "was captured on link type 147"),
            (cut, "is damaged after its first"),
            (no_interface, "is damaged after its first 0 packets"),
            (pcap(RAW, &far), "TCP segments of"),
        ];
        for (bytes, expected) in cases {
            let (_, outcome) = print(&bytes, false);
            let text = outcome.expect_err(expected).to_string();
            assert!(
                text.contains(expected) && text.contains(": ") && !text.contains('\n'),
                "{text}"
            );
        }
        let missing = run(Path::new("/nonexistent/file"), false, &mut Vec::new());
        assert!(missing.expect_err("missing").to_string().starts_with("cannot read /nonexistent"));
    }

    #[test]
    fn what_can_be_read_of_a_damaged_capture_is_printed() {
        let mut bytes = pcap(RAW, &handshake(false, 50_000, 5000));
        bytes.extend([1; 5]);
        let (text, outcome) = print(&bytes, true);
        assert!(matches!(outcome, Err(FingerprintError::Damaged { packets: 6, .. })));
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn many_connections_are_bounded_and_all_printed() {
        let message = record(&chrome().message());
        let packets: Vec<Vec<u8>> = (0..PCAP_CONNECTIONS_MAX as u16 + 50)
            .flat_map(|index| End::pair(false, 1024 + index).0.send(&message, 5000))
            .collect();
        assert_eq!(json_lines(&pcap(RAW, &packets)).len(), PCAP_CONNECTIONS_MAX + 50);
    }

    #[test]
    fn a_mutated_capture_never_panics() {
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % below
        };
        let files = [
            pcap(ETHERNET, &handshake(false, 50_000, 300)),
            pcapng(LINUX_COOKED, &handshake(true, 50_000, 300)),
        ];
        let mut damaged = 0;
        for round in 0..400 {
            let mut bytes = files[round % 2].clone();
            for _ in 0..1 + random(8) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            bytes.truncate(random(bytes.len() * 2));
            damaged += u32::from(print(&bytes, round % 3 == 0).1.is_err());
        }
        assert!(damaged > 100, "the mutations bite");
    }
}
