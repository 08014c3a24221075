//! A header block as the reader needs it, and the three hashes of a client's make.
//!
//! What it sees: header names in wire order and case, and the values that name software. Why it
//! matters: the order is the library's own (T-DIST-003c), and accounts that share a rare make
//! belong together more often than chance. When it is wrong: a program that adds a header for
//! some requests has several shapes; names that usually come and go are left out by the table.
//! Source: T-DIST-003c; SipHash-1-3 (Aumasson and Bernstein, 2012), keyed so that nobody can aim
//! at another client's hash.

use siphasher::sip::SipHasher13;
use std::hash::Hasher;

use super::facts::{ClientFacts, HeaderHabits, NAME_BYTES_MAX};
use super::hello::{self, Hello};
use crate::{HttpCapture, TlsCapture};

/// Most header fields of a request that are looked at.
const FIELDS_MAX: usize = 128;
/// Fewer names than this stand in alphabetical order by chance or by habit.
const ALPHABETICAL_NAMES_MIN: usize = 8;
/// Where a field stands when it is not there.
const NOWHERE: u8 = u8::MAX;

/// A header block, each name looked up once.
pub(super) struct Block<'a> {
    http: &'a HttpCapture,
    /// Fields that are there.
    pub(super) present: u64,
    /// Where each field first stands.
    at: [u8; 64],
    kinds: [Kind; FIELDS_MAX],
    /// Whether some name says that an intermediary forwarded the request.
    pub(super) intermediary: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ignored,
    Name,
    Value,
    Machine,
}

impl<'a> Block<'a> {
    pub(super) fn read(facts: &ClientFacts, http: &'a HttpCapture) -> Self {
        let mut block = Self {
            http,
            present: 0,
            at: [NOWHERE; 64],
            kinds: [Kind::Name; FIELDS_MAX],
            intermediary: false,
        };
        for (index, field) in http.headers.iter().take(FIELDS_MAX).enumerate() {
            let name = field.name.as_bytes();
            if name.len() > NAME_BYTES_MAX {
                continue;
            }
            let mut lower = [0_u8; NAME_BYTES_MAX];
            let lower = &mut lower[..name.len()];
            lower.copy_from_slice(name);
            lower.make_ascii_lowercase();
            let fact = facts.names.get(lower).unwrap_or_default();
            let prefixed =
                || facts.value_prefixes.iter().any(|start| lower.starts_with(start.as_bytes()));
            block.kinds[index] = if fact.ignored {
                Kind::Ignored
            } else if fact.machine {
                Kind::Machine
            } else if fact.value || prefixed() {
                Kind::Value
            } else {
                Kind::Name
            };
            block.intermediary |= fact.intermediary;
            if let Some(at) = fact.field {
                let at = usize::from(at) % 64;
                block.present |= 1 << at;
                if block.at[at] == NOWHERE {
                    block.at[at] = u8::try_from(index).unwrap_or(NOWHERE);
                }
            }
        }
        block
    }

    /// The value of a field of the table, where it was kept.
    pub(super) fn value(&self, field: u8) -> Option<&'a str> {
        let at = self.at[usize::from(field) % 64];
        self.http.headers.get(usize::from(at)).and_then(|field| field.value.as_deref())
    }

    /// Whether fields stand in an order that the habits rule out.
    pub(super) fn breaks(&self, habits: &HeaderHabits) -> bool {
        habits.order.iter().any(|&(before, after)| {
            let (before, after) =
                (self.at[usize::from(before) % 64], self.at[usize::from(after) % 64]);
            before != NOWHERE && after != NOWHERE && before > after
        })
    }

    /// Whether many names stand in alphabetical order.
    pub(super) fn is_alphabetical(&self) -> bool {
        let names = &self.http.headers;
        let ordered = |a: &str, b: &str| {
            a.bytes().map(|b| b.to_ascii_lowercase()).le(b.bytes().map(|b| b.to_ascii_lowercase()))
        };
        names.len() >= ALPHABETICAL_NAMES_MIN
            && names.windows(2).all(|pair| ordered(&pair[0].name, &pair[1].name))
    }
}

pub(super) struct Hashes {
    pub(super) shape: u64,
    pub(super) software: u64,
    pub(super) tls_h2: u64,
}

pub(super) fn hashes(
    key: &[u8; 16],
    hello: Option<&Hello<'_>>,
    tls: Option<&TlsCapture>,
    http: &HttpCapture,
    block: &Block<'_>,
) -> Hashes {
    let mut wire = SipHasher13::new_with_key(key);
    match (hello, tls) {
        (Some(hello), _) => hello.hash_into(&mut wire),
        (None, Some(tls)) => wire.write(tls.ja4.as_bytes()),
        (None, None) => {}
    }
    wire.write_u8(http.version as u8);
    if let Some(h2) = &http.h2 {
        hello::hash_http2_into(h2, &mut wire);
    }
    let tls_h2 = wire.finish();

    let mut shape = SipHasher13::new_with_key(key);
    let mut software = SipHasher13::new_with_key(key);
    shape.write_u64(tls_h2);
    software.write_u64(tls_h2);
    software.write_u8(1);
    for (field, kind) in http.headers.iter().zip(&block.kinds) {
        if *kind == Kind::Ignored {
            continue;
        }
        let name = field.name.as_bytes();
        shape.write(name);
        software.write(name);
        if let (Kind::Value | Kind::Machine, Some(value)) = (kind, &field.value) {
            shape.write_u8(b':');
            shape.write(value.as_bytes());
            if *kind == Kind::Value {
                software.write_u8(b':');
                write_product(&mut software, value);
            }
        }
        shape.write_u8(b'\n');
        software.write_u8(b'\n');
    }
    Hashes { shape: shape.finish(), software: software.finish(), tls_h2 }
}

/// The names in a user agent: comments, which name the machine, and versions are left out.
fn write_product(hasher: &mut SipHasher13, value: &str) {
    let mut kept = [0_u8; 128];
    let mut len = 0;
    let mut depth = 0_u32;
    for byte in value.bytes() {
        match byte {
            b'(' => depth = depth.saturating_add(1),
            b')' => depth = depth.saturating_sub(1),
            b'0'..=b'9' | b'.' | b'-' | b'_' => {}
            _ if depth > 0 => {}
            _ if len < kept.len() => {
                kept[len] = byte;
                len += 1;
            }
            _ => break,
        }
    }
    hasher.write(&kept[..len]);
}
