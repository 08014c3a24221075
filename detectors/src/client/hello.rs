//! Which TLS and HTTP/2 libraries a connection's opening fits.
//!
//! What it sees: the JA3 string (extensions in wire order, GREASE removed), the second part of
//! JA4, the SETTINGS frame, the first window update and the order of the pseudo-headers.
//! Why it matters: these come from the library, not from what the program says of itself.
//! When it is wrong: a library that copies another's hello byte for byte fits the other; a build
//! with an unusual configuration fits nothing, which is not held against it here.
//! Source: RFC 8446, section 4.1.2; RFC 9113, section 6.5; JA3 (Salesforce, 2017); JA4 (FoxIO).

use siphasher::sip::SipHasher13;
use std::hash::Hasher;

use super::facts::{ClientFacts, Tls13, TlsStack};
use crate::{Http2Capture, TlsCapture};

/// Most numbers of one list that are read; the rest of a longer list is left aside.
const LIST_MAX: usize = 96;

/// Extensions that come and go between the connections of one client: padding, and what goes with
/// a resumed session or a retried hello (PSK, early data, cookie).
const EXTENSIONS_PASSING: [u16; 4] = [21, 41, 42, 44];

#[derive(Clone, Copy)]
struct List {
    numbers: [u16; LIST_MAX],
    len: usize,
}

impl List {
    fn read(text: &str) -> Self {
        let mut list = Self { numbers: [0; LIST_MAX], len: 0 };
        let mut number: Option<u32> = None;
        let mut push = |number: Option<u32>| {
            if let (Some(number), true) = (number, list.len < LIST_MAX)
                && let Ok(number) = u16::try_from(number)
            {
                list.numbers[list.len] = number;
                list.len += 1;
            }
        };
        for byte in text.bytes() {
            if byte.is_ascii_digit() {
                let digit = u32::from(byte - b'0');
                number = Some(number.unwrap_or(0).saturating_mul(10).saturating_add(digit));
            } else {
                push(number.take());
            }
        }
        push(number);
        list
    }

    fn as_slice(&self) -> &[u16] {
        &self.numbers[..self.len]
    }
}

/// A ClientHello, read from its JA3 string.
pub(super) struct Hello<'a> {
    tls: &'a TlsCapture,
    ciphers: List,
    extensions: List,
    groups: List,
    point_formats: &'a str,
}

impl<'a> Hello<'a> {
    /// `None` when the string is not of five parts.
    pub(super) fn read(tls: &'a TlsCapture) -> Option<Self> {
        let mut parts = tls.ja3.split(',');
        let _version = parts.next()?;
        let ciphers = List::read(parts.next()?);
        let extensions = List::read(parts.next()?);
        let groups = List::read(parts.next()?);
        let point_formats = parts.next()?;
        (ciphers.len > 0).then_some(Self { tls, ciphers, extensions, groups, point_formats })
    }

    /// The stacks that the hello fits; of a stack and its refinement only the refinement.
    pub(super) fn stacks(&self, facts: &ClientFacts) -> u64 {
        let mask = |list: &List, words: &super::facts::Vocabulary| {
            list.as_slice().iter().fold(0, |mask, &number| mask | words.bit(number))
        };
        let extensions = mask(&self.extensions, &facts.extensions);
        let ciphers = mask(&self.ciphers, &facts.ciphers);
        let groups = mask(&self.groups, &facts.groups);
        let tls13 = self.tls13();
        let mut fitting = 0;
        let mut refined = 0;
        for (index, stack) in facts.tls.iter().enumerate() {
            if stack.extensions.holds(extensions)
                && stack.ciphers.holds(ciphers)
                && stack.groups.holds(groups)
                && stack.cipher_count.contains(&self.ciphers.len)
                && (stack.tls13.is_none() || stack.tls13 == tls13)
                && self.ciphers.as_slice().starts_with(&stack.ciphers_start)
                && stack.point_formats.as_ref().is_none_or(|formats| formats == self.point_formats)
                // A capture without the flag (a replayed trace) says nothing about GREASE.
                && !(self.tls.grease && stack.grease == Some(false))
            {
                fitting |= 1 << index;
                refined |= stack.refines;
            }
        }
        fitting & !refined
    }

    /// Where the TLS 1.3 suites stand; `None` when there are none.
    fn tls13(&self) -> Option<Tls13> {
        let is_13 = |cipher: &u16| cipher >> 8 == 0x13;
        let list = self.ciphers.as_slice();
        match (list.first().is_some_and(is_13), list.last().is_some_and(is_13)) {
            (true, _) => Some(Tls13::First),
            (false, true) => Some(Tls13::Last),
            (false, false) => None,
        }
    }

    /// The hello without what changes between connections of one client.
    pub(super) fn hash_into(&self, hasher: &mut SipHasher13) {
        let mut extensions = self.extensions;
        extensions.numbers[..extensions.len].sort_unstable();
        let mut bytes = [0_u8; 2 * 3 * LIST_MAX + 6];
        let mut at = 0;
        let mut put = |number: u16| {
            bytes[at..at + 2].copy_from_slice(&number.to_le_bytes());
            at += 2;
        };
        for list in [&self.ciphers, &extensions, &self.groups] {
            for &number in list.as_slice() {
                if !(std::ptr::eq(list, &raw const extensions)
                    && EXTENSIONS_PASSING.contains(&number))
                {
                    put(number);
                }
            }
            put(u16::MAX);
        }
        hasher.write(&bytes[..at]);
        hasher.write(self.point_formats.as_bytes());
        for protocol in &self.tls.alpn {
            hasher.write_u8(0xff);
            hasher.write(protocol.as_bytes());
        }
    }
}

/// The stacks whose cipher list is known by its hash, for a capture with JA4 but no JA3.
pub(super) fn stacks_by_ja4(facts: &ClientFacts, ja4: &str) -> u64 {
    let Some(ciphers) = ja4.split('_').nth(1) else { return 0 };
    let known = |stack: &TlsStack| stack.ja4_b.iter().any(|hash| hash == ciphers);
    let stacks = facts.tls.iter().enumerate().filter(|(_, stack)| known(stack));
    stacks.fold(0, |mask, (index, _)| mask | 1 << index)
}

/// Whether the client offers HTTP/2 in ALPN.
pub(super) fn offers_http2(tls: &TlsCapture) -> bool {
    tls.alpn.iter().any(|protocol| protocol == "h2") || tls.ja4.get(8..10) == Some("h2")
}

/// The HTTP/2 stacks that the opening of a connection fits.
pub(super) fn http2_stacks(facts: &ClientFacts, h2: &Http2Capture) -> u64 {
    let has_id = |id: &u16| h2.settings.iter().any(|(other, _)| other == id);
    let mut fitting = 0;
    for (index, stack) in facts.http2.iter().enumerate() {
        let (least, most) = stack.window_update;
        if stack.pseudo.contains(&h2.pseudo)
            && (least..=most).contains(&h2.window_update)
            && stack.settings_all.iter().all(|pair| h2.settings.contains(pair))
            && !stack.settings_none.iter().any(|pair| h2.settings.contains(pair))
            && stack.ids_all.iter().all(has_id)
            && !stack.ids_none.iter().any(has_id)
            && stack.ids_start.len() <= h2.settings.len()
            && stack.ids_start.iter().zip(&h2.settings).all(|(id, (other, _))| id == other)
        {
            fitting |= 1 << index;
        }
    }
    fitting
}

/// Whether the pseudo-headers are those of an ordinary request, so that their order is telling.
pub(super) fn is_ordinary(h2: &Http2Capture) -> bool {
    h2.pseudo.len() == 7
}

/// What the opening of an HTTP/2 connection says, without the priorities of single streams.
pub(super) fn hash_http2_into(h2: &Http2Capture, hasher: &mut SipHasher13) {
    for &(id, value) in &h2.settings {
        hasher.write_u64(u64::from(id) << 32 | u64::from(value));
    }
    hasher.write_u64(u64::MAX);
    hasher.write_u64(u64::from(h2.window_update));
    hasher.write_u64(h2.priority.len() as u64);
    for priority in &h2.priority {
        hasher.write_u64(u64::from(priority.stream_id) << 32 | u64::from(priority.depends_on));
        hasher.write_u64(u64::from(priority.weight) << 1 | u64::from(priority.exclusive));
    }
    if is_ordinary(h2) {
        hasher.write(h2.pseudo.as_bytes());
    }
}
