//! DNS messages, as they were seen on the wire.
//!
//! What a host asks for and which addresses it is told. Sources: RFC 1035 (messages), RFC 3596 (AAAA),
//! RFC 7766, section 8 (two bytes of length on TCP), RFC 9460 (address hints in SVCB and HTTPS records).
//! The names' and records' wire format is read by the `domain` crate; of a message that was cut, what is
//! whole is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use domain::base::iana::{Class, Opcode, Rtype, SvcParamKey};
use domain::base::{Message, ParsedName, ParsedRecord};
use domain::rdata::svcb::{HttpsVariant, SvcbRdata, SvcbVariant};
use domain::rdata::{A, Aaaa};

/// Records of one answer that are looked at.
pub const RECORDS_MAX: usize = 256;
/// Addresses that are taken from one answer.
pub const ADDRESSES_MAX: usize = 256;
/// The longest message on TCP that is read; a query needs some hundred bytes.
pub const TCP_MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// The shortest message: its header (RFC 1035, section 4.1.1).
const HEADER_BYTES: usize = 12;

/// A standard query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The id that its answer repeats.
    pub id: u16,
    /// The name asked for: lower case, without the last dot, what is not printable ASCII as `\DDD`
    /// (RFC 1035, section 5.1). `.` is the root.
    pub name: String,
}

/// An address that an answer gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The address.
    pub address: IpAddr,
    /// How long it may be kept, seconds.
    pub ttl: u32,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The id of its query.
    pub id: u16,
    /// The addresses of its A and AAAA records and of the hints of its SVCB and HTTPS records, of all
    /// sections and whatever their owner: a client follows CNAMEs, and uses additional records too.
    pub addresses: Vec<Named>,
    /// Whether it was read to its end. One with the TC bit is whole: its client asks again over TCP.
    pub whole: bool,
    /// Whether it holds more records or addresses than are looked at.
    pub limited: bool,
}

/// Reads a message as a standard query (opcode QUERY, one question, no answers); `None` where it is
/// something else.
#[must_use]
pub fn query(bytes: &[u8]) -> Option<Query> {
    let message = Message::from_slice(bytes).ok()?;
    let (header, counts) = (message.header(), message.header_counts());
    // IXFR (RFC 1995) carries an SOA record; other queries have nothing but EDNS, TSIG or SIG(0).
    let plain = counts.qdcount() == 1 && counts.ancount() == 0;
    if header.qr() || header.opcode() != Opcode::QUERY || !plain {
        return None;
    }
    if counts.nscount() > 1 || counts.arcount() > 8 {
        return None;
    }
    let question = message.question().next()?.ok()?;
    Some(Query { id: header.id(), name: text(question.qname()) })
}

/// Reads a message as an answer; `None` where it is something else.
#[must_use]
pub fn answer(bytes: &[u8]) -> Option<Answer> {
    let message = Message::from_slice(bytes).ok()?;
    let (header, counts) = (message.header(), message.header_counts());
    if !header.qr() || header.opcode() != Opcode::QUERY || counts.qdcount() > 1 {
        return None;
    }
    let mut answer = Answer { id: header.id(), ..Answer::default() };
    let mut seen = 0_usize;
    let Ok(mut section) = message.answer() else { return Some(answer) };
    loop {
        for record in section.by_ref() {
            seen += 1;
            let Ok(record) = record else { return Some(answer) };
            if seen > RECORDS_MAX || answer.addresses.len() >= ADDRESSES_MAX {
                answer.limited = true;
                return Some(answer);
            }
            take_addresses(&record, &mut answer.addresses);
        }
        match section.next_section() {
            Ok(Some(next)) => section = next,
            Ok(None) => break,
            Err(_) => return Some(answer),
        }
    }
    answer.whole = true;
    Some(answer)
}

/// The next whole message of a TCP stream, and how many bytes it takes with its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message.
    Message(&'a [u8], usize),
    /// More bytes are needed.
    More,
    /// The length is that of no message.
    Garbage,
}

/// Reads the message at the start of `stream` (RFC 7766, section 8).
#[must_use]
pub fn frame(stream: &[u8]) -> Frame<'_> {
    let Some((length, rest)) = stream.split_first_chunk::<2>() else { return Frame::More };
    let length = usize::from(u16::from_be_bytes(*length));
    if !(HEADER_BYTES..=TCP_MESSAGE_BYTES_MAX).contains(&length) {
        return Frame::Garbage;
    }
    rest.get(..length).map_or(Frame::More, |message| Frame::Message(message, length + 2))
}

/// Takes what addresses a record holds, one after the other as long as there is room.
fn take_addresses(record: &ParsedRecord<'_, [u8]>, addresses: &mut Vec<Named>) {
    if record.class() != Class::IN {
        return;
    }
    let ttl = record.ttl().as_secs();
    let mut add = |address: IpAddr| {
        if addresses.len() < ADDRESSES_MAX {
            addresses.push(Named { address, ttl });
        }
    };
    match record.rtype() {
        Rtype::A => {
            if let Ok(Some(record)) = record.to_record::<A>() {
                add(record.data().addr().into());
            }
        }
        Rtype::AAAA => {
            if let Ok(Some(record)) = record.to_record::<Aaaa>() {
                add(record.data().addr().into());
            }
        }
        Rtype::SVCB => {
            type Data<'a> = SvcbRdata<SvcbVariant, &'a [u8], ParsedName<&'a [u8]>>;
            if let Ok(Some(record)) = record.to_record::<Data<'_>>() {
                let values = record.data().params().iter_raw();
                values.for_each(|value| hints(value.key(), value.as_slice(), &mut add));
            }
        }
        Rtype::HTTPS => {
            type Data<'a> = SvcbRdata<HttpsVariant, &'a [u8], ParsedName<&'a [u8]>>;
            if let Ok(Some(record)) = record.to_record::<Data<'_>>() {
                let values = record.data().params().iter_raw();
                values.for_each(|value| hints(value.key(), value.as_slice(), &mut add));
            }
        }
        _ => {}
    }
}

/// The addresses of an `ipv4hint` or `ipv6hint` (RFC 9460, section 7.3).
fn hints(key: SvcParamKey, value: &[u8], add: &mut impl FnMut(IpAddr)) {
    match key {
        SvcParamKey::IPV4HINT => {
            value.as_chunks::<4>().0.iter().for_each(|ip| add(Ipv4Addr::from(*ip).into()));
        }
        SvcParamKey::IPV6HINT => {
            value.as_chunks::<16>().0.iter().for_each(|ip| add(Ipv6Addr::from(*ip).into()));
        }
        _ => {}
    }
}

fn text(name: &ParsedName<&[u8]>) -> String {
    let mut text = name.to_string();
    text.make_ascii_lowercase();
    if text.is_empty() { ".".to_owned() } else { text }
}

/// For `fuzz/`: bytes as a query, an answer and a TCP stream.
pub fn fuzz_dns(bytes: &[u8]) {
    if let Some(query) = query(bytes) {
        assert!(query.name.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
        assert!(!query.name.is_empty());
    }
    if let Some(answer) = answer(bytes) {
        assert!(answer.addresses.len() <= ADDRESSES_MAX);
    }
    let mut rest = bytes;
    while let Frame::Message(message, length) = frame(rest) {
        assert_eq!(message.len() + 2, length);
        let _ = (query(message), answer(message));
        rest = &rest[length..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{dns_answer, dns_query};

    fn named(address: &str, ttl: u32) -> Named {
        Named { address: address.parse().unwrap(), ttl }
    }

    #[test]
    fn a_query_tells_its_name() {
        let cases: [(&[&[u8]], &str); 6] = [
            (&[b"www", b"Example", b"COM"], "www.example.com"),
            (&[], "."),
            (&[b"a.b", b"c"], "a\\.b.c"),
            (&[b"a b\\", b"c"], "a\\ b\\\\.c"),
            (&[b"\x00\xff", b"c"], "\\000\\255.c"),
            (&[b"_dns", b"resolver", b"arpa"], "_dns.resolver.arpa"),
        ];
        for (labels, expected) in cases {
            let query = query(&dns_query(7, labels)).unwrap();
            assert_eq!((query.id, query.name.as_str()), (7, expected));
        }
    }

    #[test]
    fn what_is_no_standard_query_is_none() {
        let plain = dns_query(7, &[b"a", b"b"]);
        assert!(query(&plain).is_some());
        // Byte and value: QR, opcode STATUS, opcode NOTIFY, no question, two, an answer, two
        // authority records, many additional ones.
        for (at, value) in
            [(2, 0x80), (2, 0x10), (2, 0x20), (5, 0), (5, 2), (7, 1), (9, 2), (11, 9)]
        {
            let mut bytes = plain.clone();
            bytes[at] = value;
            assert_eq!(query(&bytes), None, "byte {at} = {value}");
        }
        // EDNS, and the SOA of an IXFR.
        for at in [11, 9] {
            let mut bytes = plain.clone();
            bytes[at] = 1;
            assert!(query(&bytes).is_some(), "byte {at}");
        }
        for end in 0..plain.len() - 4 {
            assert_eq!(query(&plain[..end]), None, "cut at {end}");
        }
        assert_eq!(query(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), None);
    }

    #[test]
    fn a_name_that_points_at_itself_ends() {
        let mut bytes = dns_query(7, &[]);
        bytes.truncate(12);
        bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(query(&bytes), None);
    }

    /// www.example.com CNAME a.example.net, A, AAAA; HTTPS with hints in the additional section.
    fn rich_answer() -> Vec<u8> {
        let mut bytes = dns_answer(9, &[b"www", b"example", b"com"], &[]);
        bytes[7] = 3;
        bytes[11] = 1;
        let owner = [0xc0, 12];
        for (rtype, ttl, data) in [
            (5_u16, 60_u32, b"\x01a\x07example\x03net\0".to_vec()),
            (1, 61, vec![192, 0, 2, 1]),
            (28, 62, "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets().to_vec()),
            (65, 63, {
                let mut data = vec![0, 1, 0, 0, 4, 0, 8, 192, 0, 2, 2, 192, 0, 2, 3, 0, 6, 0, 16];
                data.extend("2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
                data
            }),
        ] {
            bytes.extend(owner);
            bytes.extend(rtype.to_be_bytes());
            bytes.extend([0, 1]);
            bytes.extend(ttl.to_be_bytes());
            bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(data);
        }
        bytes
    }

    #[test]
    fn an_answer_tells_its_addresses() {
        let answer = answer(&rich_answer()).unwrap();
        assert!(answer.whole);
        assert_eq!(
            answer.addresses,
            [
                named("192.0.2.1", 61),
                named("2001:db8::1", 62),
                named("192.0.2.2", 63),
                named("192.0.2.3", 63),
                named("2001:db8::2", 63)
            ]
        );
    }

    #[test]
    fn of_a_cut_answer_what_is_whole_is_read() {
        let bytes = rich_answer();
        let mut before = 0;
        for end in 12..bytes.len() {
            let cut = answer(&bytes[..end]).unwrap();
            assert!(!cut.whole, "cut at {end}");
            assert!(cut.addresses.len() >= before);
            before = cut.addresses.len();
        }
        assert_eq!(before, 2);
        assert_eq!(answer(&bytes[..11]), None);
    }

    #[test]
    fn answers_are_bounded() {
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let long = answer(&dns_answer(1, &[b"a"], &vec![(address, 5); 400])).unwrap();
        assert_eq!((long.addresses.len(), long.whole, long.limited), (ADDRESSES_MAX, false, true));
    }

    #[test]
    fn messages_on_tcp_are_taken_one_by_one() {
        let (first, second) = (dns_query(1, &[b"a"]), dns_query(2, &[b"b"]));
        let mut stream = Vec::new();
        for message in [&first, &second] {
            stream.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
            stream.extend(message);
        }
        for end in 0..first.len() + 2 {
            assert_eq!(frame(&stream[..end]), Frame::More);
        }
        let Frame::Message(message, length) = frame(&stream) else { panic!("a message") };
        assert_eq!(message, first);
        assert_eq!(frame(&stream[length..]), Frame::Message(&second, second.len() + 2));
        assert_eq!(frame(b"\0\x0b"), Frame::Garbage);
        assert_eq!(frame(b"GET / HTTP/1.1"), Frame::Garbage);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz_dns(&bytes);
        }

        #[test]
        fn no_changed_answer_panics(at in 0_usize..200, value in any::<u8>(), end in 0_usize..200) {
            let mut bytes = rich_answer();
            let length = bytes.len();
            bytes[at % length] = value;
            bytes.truncate(length - end % length);
            fuzz_dns(&bytes);
        }
    }
}
