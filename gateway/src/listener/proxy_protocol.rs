//! PROXY protocol version 2: who the client is, told by a load balancer before its first byte.
//!
//! Behind a load balancer every connection comes from the same few addresses; without this header
//! there would be one network neighbourhood for all accounts. The header is unauthenticated, so
//! the listener reads it from listed networks only, and there it is not optional: a peer that
//! could leave it out could choose which address it is seen under.
//!
//! The header is wrong about nothing but what the load balancer is wrong about. `LOCAL` (its
//! health checks), Unix sockets and unspecified addresses carry no client.
//!
//! Source: "The PROXY protocol", version 2 (HAProxy), sections 2.2 to 2.2.3.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use crate::limits::PROXY_HEADER_BYTES_MAX;

/// The first twelve bytes: no HTTP request and no TLS hello begins so.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// How a version 1 header, which is text, begins.
const TEXT_SIGNATURE: &[u8] = b"PROXY ";
/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// Type of the checksum TLV.
const TLV_CRC32C: u8 = 0x03;

/// What a PROXY header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether the connection is a client's or the load balancer's own.
    pub command: Command,
    /// The client's address and the address that it connected to, where the header tells.
    pub addresses: Option<Addresses>,
}

/// The command of a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The load balancer speaks for itself (a health check): the socket's addresses hold.
    Local,
    /// The load balancer relays a client.
    Proxy,
}

/// Both ends of the relayed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// The address that the client connected to.
    pub destination: SocketAddr,
}

/// Why a connection's first bytes are not an acceptable PROXY header.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProxyError {
    /// Something else came first.
    #[error("no PROXY protocol header came first")]
    Missing,
    /// The text header of version 1.
    #[error("PROXY protocol version 1 (text) is not accepted: set the load balancer to version 2")]
    TextVersion,
    /// A version other than 2.
    #[error("PROXY protocol version {0} is not known, only 2 is")]
    Version(u8),
    /// A command other than LOCAL and PROXY.
    #[error("PROXY command {0} is not assigned")]
    Command(u8),
    /// An address family or transport that is not assigned.
    #[error("PROXY address family 0x{0:02x} is not assigned")]
    Family(u8),
    /// The header is longer than it may be.
    #[error("PROXY header of {0} bytes is larger than {PROXY_HEADER_BYTES_MAX}")]
    TooLong(usize),
    /// The announced length does not hold the addresses.
    #[error("PROXY header is too short for its addresses")]
    AddressesCut,
    /// A TLV reaches beyond the header.
    #[error("PROXY header has a broken TLV")]
    BrokenTlv,
    /// The checksum TLV does not match.
    #[error("PROXY header fails its CRC-32C")]
    Checksum,
}

/// Reads a header from the first bytes of a connection.
///
/// `Ok(None)` means that more bytes are needed. Otherwise the header comes with the number of
/// bytes that it took; what follows is the client's.
///
/// # Errors
/// As soon as the bytes cannot become an acceptable header.
pub fn parse(buf: &[u8]) -> Result<Option<(Header, usize)>, ProxyError> {
    let compared = buf.len().min(SIGNATURE.len());
    if buf[..compared] != SIGNATURE[..compared] {
        return Err(match buf.len().min(TEXT_SIGNATURE.len()) {
            n if buf[..n] != TEXT_SIGNATURE[..n] => ProxyError::Missing,
            n if n < TEXT_SIGNATURE.len() => return Ok(None),
            _ => ProxyError::TextVersion,
        });
    }
    let Some((fixed, rest)) = buf.split_at_checked(FIXED_BYTES) else { return Ok(None) };
    let command = match (fixed[12] >> 4, fixed[12] & 0x0f) {
        (2, 0) => Command::Local,
        (2, 1) => Command::Proxy,
        (2, command) => return Err(ProxyError::Command(command)),
        (version, _) => return Err(ProxyError::Version(version)),
    };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let total = FIXED_BYTES + length;
    if total > PROXY_HEADER_BYTES_MAX {
        return Err(ProxyError::TooLong(total));
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    // Of a LOCAL header everything after the length is to be ignored, the family included.
    let addresses = match command {
        Command::Local => None,
        Command::Proxy => read_addresses(fixed[13], body, &buf[..total])?,
    };
    Ok(Some((Header { command, addresses }, total)))
}

/// Fuzz entry: arbitrary first bytes, whole and in pieces, end alike and never panic.
pub fn fuzz_proxy_v2(data: &[u8]) {
    let whole = parse(data);
    if let Ok(Some((_, consumed))) = whole {
        assert!(consumed <= data.len() && consumed <= PROXY_HEADER_BYTES_MAX);
        assert_eq!(parse(&data[..consumed]), whole, "bytes after the header change nothing");
    }
    for cut in 0..data.len().min(64) {
        match parse(&data[..cut]) {
            Ok(None) => {}
            decided => assert_eq!(decided, whole, "what is decided stays decided"),
        }
    }
}

fn read_addresses(family: u8, body: &[u8], header: &[u8]) -> Result<Option<Addresses>, ProxyError> {
    // The high half is the address family, the low half the transport; 1 is a stream, 2 datagrams
    // (a balancer that ends QUIC may relay over TCP and still say so).
    let (addresses, length) = match family {
        0x00 => return Ok(None),
        0x11 | 0x12 => (read_pair(body, ipv4), 12),
        0x21 | 0x22 => (read_pair(body, ipv6), 36),
        0x31 | 0x32 => (None, 216),
        _ => return Err(ProxyError::Family(family)),
    };
    let tlvs = body.get(length..).ok_or(ProxyError::AddressesCut)?;
    check_tlvs(tlvs, header)?;
    Ok(addresses)
}

fn read_pair<const N: usize>(body: &[u8], address: fn([u8; N]) -> IpAddr) -> Option<Addresses> {
    let (source, rest) = body.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let (destination_port, _) = rest.split_first_chunk::<2>()?;
    // Behind a dual-stack balancer an IPv4 client is still the same: ::ffff:192.0.2.1 is 192.0.2.1.
    let socket =
        |ip: IpAddr, port: &[u8; 2]| SocketAddr::new(ip.to_canonical(), u16::from_be_bytes(*port));
    Some(Addresses {
        source: socket(address(*source), source_port),
        destination: socket(address(*destination), destination_port),
    })
}

fn ipv4(bytes: [u8; 4]) -> IpAddr {
    Ipv4Addr::from(bytes).into()
}

fn ipv6(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).into()
}

fn check_tlvs(mut tlvs: &[u8], header: &[u8]) -> Result<(), ProxyError> {
    while let Some((head, rest)) = tlvs.split_first_chunk::<3>() {
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        let (value, rest) = rest.split_at_checked(length).ok_or(ProxyError::BrokenTlv)?;
        if head[0] == TLV_CRC32C {
            let stated: [u8; 4] = value.try_into().map_err(|_| ProxyError::BrokenTlv)?;
            // The checksum covers the whole header with its own four bytes as zeros.
            let before = header.len() - rest.len() - stated.len();
            let crc = [&header[..before], &[0; 4], rest]
                .iter()
                .fold(!0, |crc, part| crc32c_extend(crc, part));
            if !crc != u32::from_be_bytes(stated) {
                return Err(ProxyError::Checksum);
            }
        }
        tlvs = rest;
    }
    if tlvs.is_empty() { Ok(()) } else { Err(ProxyError::BrokenTlv) }
}

/// CRC-32C (Castagnoli), reflected, as in RFC 3720, appendix B.4.
fn crc32c_extend(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| {
        let index = usize::from((crc as u8) ^ byte);
        (crc >> 8) ^ CRC32C_TABLE[index]
    })
}

const CRC32C_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0x82f6_3b78 } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header built by hand: version and command, family, addresses and TLVs.
    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn tcp4() -> Vec<u8> {
        let mut body = vec![192, 0, 2, 7, 198, 51, 100, 1];
        body.extend(40_000_u16.to_be_bytes());
        body.extend(443_u16.to_be_bytes());
        body
    }

    fn tcp6(source: &str) -> Vec<u8> {
        let mut body = source.parse::<Ipv6Addr>().unwrap().octets().to_vec();
        body.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        body.extend(50_000_u16.to_be_bytes());
        body.extend(8443_u16.to_be_bytes());
        body
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        bytes.extend(value);
        bytes
    }

    fn with(mut body: Vec<u8>, more: &[u8]) -> Vec<u8> {
        body.extend(more);
        body
    }

    /// A header with a correct checksum between two other TLVs.
    fn with_checksum() -> Vec<u8> {
        let mut body = with(tcp4(), &tlv(0x02, b"example.com"));
        body.extend(tlv(TLV_CRC32C, &[0; 4]));
        let checksum_at = FIXED_BYTES + body.len() - 4;
        body.extend(tlv(0x04, &[9; 5]));
        let mut bytes = header(0x21, 0x11, &body);
        let crc = !crc32c_extend(!0, &bytes);
        bytes[checksum_at..checksum_at + 4].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    #[test]
    fn headers_give_the_addresses_they_carry() {
        let unix = [0; 216];
        type Case = (&'static str, Vec<u8>, Command, Option<(&'static str, &'static str)>);
        let cases: Vec<Case> = vec![
            (
                "tcp4",
                header(0x21, 0x11, &tcp4()),
                Command::Proxy,
                Some(("192.0.2.7:40000", "198.51.100.1:443")),
            ),
            (
                "udp4",
                header(0x21, 0x12, &tcp4()),
                Command::Proxy,
                Some(("192.0.2.7:40000", "198.51.100.1:443")),
            ),
            (
                "tcp6",
                header(0x21, 0x21, &tcp6("2001:db8::9")),
                Command::Proxy,
                Some(("[2001:db8::9]:50000", "[2001:db8::1]:8443")),
            ),
            (
                "mapped",
                header(0x21, 0x21, &tcp6("::ffff:192.0.2.7")),
                Command::Proxy,
                Some(("192.0.2.7:50000", "[2001:db8::1]:8443")),
            ),
            ("unix", header(0x21, 0x31, &unix), Command::Proxy, None),
            ("unspecified", header(0x21, 0x00, b"anything"), Command::Proxy, None),
            ("local", header(0x20, 0x00, b""), Command::Local, None),
            ("local, odd family", header(0x20, 0xff, b"ignored"), Command::Local, None),
            (
                "tlvs",
                header(0x21, 0x11, &with(tcp4(), &tlv(0xea, b"vpce-1"))),
                Command::Proxy,
                Some(("192.0.2.7:40000", "198.51.100.1:443")),
            ),
            (
                "checksum",
                with_checksum(),
                Command::Proxy,
                Some(("192.0.2.7:40000", "198.51.100.1:443")),
            ),
        ];
        for (name, bytes, command, addresses) in cases {
            let addresses = addresses.map(|(source, destination)| Addresses {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
            });
            let stream = with(bytes.clone(), b"\x16\x03\x01");
            let expected = Ok(Some((Header { command, addresses }, bytes.len())));
            assert_eq!(parse(&stream), expected, "{name}");
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]), Ok(None), "{name} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_not_an_acceptable_header_is_named() {
        let mut long = header(0x21, 0x11, &tcp4());
        long[14..16].copy_from_slice(&5000_u16.to_be_bytes());
        let cases: Vec<(Vec<u8>, ProxyError)> = vec![
            (b"GET / HTTP/1.1\r\n".to_vec(), ProxyError::Missing),
            (b"\r\n\r\n\0\r\nQUIZ".to_vec(), ProxyError::Missing),
            (b"POST".to_vec(), ProxyError::Missing),
            (b"\x16\x03\x01".to_vec(), ProxyError::Missing),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(), ProxyError::TextVersion),
            (header(0x11, 0x11, &tcp4()), ProxyError::Version(1)),
            (header(0x22, 0x11, &tcp4()), ProxyError::Command(2)),
            (header(0x21, 0x41, &tcp4()), ProxyError::Family(0x41)),
            (header(0x21, 0x13, &tcp4()), ProxyError::Family(0x13)),
            (header(0x21, 0x11, &tcp4()[..11]), ProxyError::AddressesCut),
            (header(0x21, 0x21, &tcp4()), ProxyError::AddressesCut),
            (header(0x21, 0x31, &[0; 215]), ProxyError::AddressesCut),
            (long, ProxyError::TooLong(5016)),
            (header(0x21, 0x11, &with(tcp4(), &[4, 0])), ProxyError::BrokenTlv),
            (header(0x21, 0x11, &with(tcp4(), &[4, 0, 3, 1, 2])), ProxyError::BrokenTlv),
            (header(0x21, 0x11, &with(tcp4(), &tlv(3, &[1; 3]))), ProxyError::BrokenTlv),
            (header(0x21, 0x11, &with(tcp4(), &tlv(3, &[1; 4]))), ProxyError::Checksum),
        ];
        for (bytes, error) in cases {
            assert_eq!(parse(&bytes), Err(error), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_text_header_is_told_apart_as_soon_as_it_can_be() {
        assert_eq!(parse(b"P"), Ok(None));
        assert_eq!(parse(b"PROXY"), Ok(None));
        assert_eq!(parse(b"PROXY "), Err(ProxyError::TextVersion));
        assert_eq!(parse(b"PU"), Err(ProxyError::Missing));
    }

    #[test]
    fn any_flipped_bit_fails_the_checksum_or_the_syntax() {
        let bytes = with_checksum();
        // Only the byte that makes the checksum a checksum is not covered: of another type it is
        // a TLV to skip.
        let kind_at = bytes.iter().rposition(|byte| *byte == TLV_CRC32C).unwrap();
        for at in (0..bytes.len() * 8).filter(|at| at / 8 != kind_at) {
            let mut flipped = bytes.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            let parsed = parse(&flipped);
            // LOCAL and UNSPEC throw the block away by definition, and a larger length waits.
            let thrown_away =
                matches!(parsed, Ok(Some((Header { addresses: None, .. }, _)) | None));
            assert!(parsed.is_err() || thrown_away, "bit {at}: {parsed:?}");
        }
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // The check value of CRC-32C, and 32 zero bytes from RFC 3720, appendix B.4.
        assert_eq!(!crc32c_extend(!0, b"123456789"), 0xe306_9283);
        assert_eq!(!crc32c_extend(!0, &[0; 32]), 0x8a91_36aa);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_proxy_v2(&data);
        }

        #[test]
        fn arbitrary_bodies_never_panic(
            command in 0x1f_u8..0x23,
            family in prop_oneof![Just(0x11_u8), Just(0x21), Just(0x31), any::<u8>()],
            body in proptest::collection::vec(
                prop_oneof![Just(3_u8), Just(0), any::<u8>()], 0..300,
            ),
        ) {
            fuzz_proxy_v2(&header(command, family, &body));
        }
    }
}
