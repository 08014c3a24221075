//! ClientHellos as rustls makes them, cut over TLS records as one likes, and their JA3 computed
//! apart from the gateway.
//!
//! A hello that spans two records is legal (RFC 8446, section 5.1) and is missed by a reader that
//! looks at the first record alone. rustls shuffles its extensions on each connection, so the
//! expected JA3 is made from the very bytes that were sent.

use std::fmt::Write as _;

use md5::{Digest, Md5};
use rustls::ClientConnection;

/// Takes the ClientHello that a fresh connection wants to send: one TLS record.
#[must_use]
pub fn take_record(connection: &mut ClientConnection) -> Vec<u8> {
    let mut record = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut record).expect("writing to memory");
    }
    assert_eq!(record.first(), Some(&22), "a handshake record");
    record
}

/// Cuts one record's payload after `at` bytes into two records.
#[must_use]
pub fn split_record(record: &[u8], at: usize) -> Vec<u8> {
    let (head, payload) = record.split_at(5);
    let mut split = Vec::new();
    for part in [&payload[..at], &payload[at..]] {
        split.extend_from_slice(&head[..3]);
        split.extend_from_slice(&u16::try_from(part.len()).expect("a record").to_be_bytes());
        split.extend_from_slice(part);
    }
    split
}

/// The JA3 string of the hello in a record, and its MD5.
#[must_use]
pub fn ja3(record: &[u8]) -> (String, String) {
    // Record header 5, handshake header 4.
    let mut hello = Cursor(&record[9..]);
    let version = hello.number(2);
    hello.bytes(32);
    hello.vector(1);
    let ciphers = hello.vector(2).numbers();
    hello.vector(1);
    let mut all = hello.vector(2);
    let (mut extensions, mut groups, mut points) = (Vec::new(), Vec::new(), Vec::new());
    while !all.0.is_empty() {
        let kind = all.number(2);
        let mut data = all.vector(2);
        extensions.push(kind);
        match kind {
            10 => groups = data.vector(2).numbers(),
            11 => points = data.vector(1).0.iter().map(|point| usize::from(*point)).collect(),
            _ => {}
        }
    }
    let mut text = version.to_string();
    for list in [ciphers, extensions, groups, points] {
        let kept: Vec<String> =
            list.iter().filter(|value| !is_grease(**value)).map(ToString::to_string).collect();
        write!(text, ",{}", kept.join("-")).expect("writing to memory");
    }
    let md5 = hex::encode(Md5::digest(&text));
    (text, md5)
}

/// The sixteen values of RFC 8701.
fn is_grease(value: usize) -> bool {
    value >> 8 == value & 0xff && value & 0xf == 0xa
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    fn number(&mut self, length: usize) -> usize {
        self.bytes(length).iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
    }

    fn vector(&mut self, length_bytes: usize) -> Self {
        let length = self.number(length_bytes);
        Self(self.bytes(length))
    }

    fn numbers(&self) -> Vec<usize> {
        self.0.chunks(2).map(|pair| usize::from(pair[0]) << 8 | usize::from(pair[1])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_made_hello_has_the_ja3_of_its_fields() {
        let extensions: &[u8] = &[
            0x0a, 0x0a, 0, 0, // GREASE
            0, 10, 0, 4, 0, 2, 0, 29, // supported_groups: x25519
            0, 11, 0, 2, 1, 0, // ec_point_formats: uncompressed
            0, 23, 0, 0, // extended_master_secret
        ];
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 6, 0x1a, 0x1a, 0x13, 0x01, 0xc0, 0x2b, 1, 0, 0, extensions.len() as u8]);
        body.extend(extensions);
        let mut record = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
        record.extend(&body);
        assert_eq!(ja3(&record).0, "771,4865-49195,10-11-23,29,0");
        let split = split_record(&record, 3);
        assert_eq!(&split[..8], &[22, 3, 1, 0, 3, 1, 0, 0]);
        assert_eq!(split.len(), record.len() + 5);
    }
}
