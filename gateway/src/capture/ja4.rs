//! JA4: a ClientHello fingerprint that survives the extension permutation of browsers.
//!
//! It matters because Chromium shuffles its extensions on every connection: its JA3 changes each
//! time, its JA4 does not. Source: the JA4 description of FoxIO, the part under BSD-3-Clause. Its
//! sister methods (JA4S, JA4H, JA4T, JA4X and so on) are under another licence and are
//! deliberately absent.

use std::cmp::min;

use sha2::{Digest, Sha256};

use super::client_hello::{ClientHello, extension, is_grease};

/// The JA4 fingerprint: a readable part and two truncated SHA-256 hashes.
#[must_use]
pub fn ja4(hello: &ClientHello) -> String {
    let parts = Parts::of(hello);
    format!("{}_{}_{}", parts.summary, hash12(&parts.ciphers), hash12(&parts.extensions))
}

/// The same fingerprint with its sorted lists written out in place of their hashes.
#[must_use]
pub fn ja4_r(hello: &ClientHello) -> String {
    let parts = Parts::of(hello);
    format!("{}_{}_{}", parts.summary, parts.ciphers, parts.extensions)
}

/// TLS over TCP. QUIC would be `q`; the gateway does not listen on QUIC.
const TRANSPORT: char = 't';

/// The three parts before hashing.
struct Parts {
    summary: String,
    ciphers: String,
    extensions: String,
}

impl Parts {
    fn of(hello: &ClientHello) -> Self {
        let mut ciphers = without_grease(&hello.ciphers);
        let mut extensions = without_grease(&hello.extensions);
        let summary = format!(
            "{TRANSPORT}{}{}{:02}{:02}{}",
            version(hello),
            if extensions.contains(&extension::SERVER_NAME) { 'd' } else { 'i' },
            min(ciphers.len(), 99),
            min(extensions.len(), 99),
            alpn(hello.alpn.first().map_or(&[], Vec::as_slice)),
        );
        ciphers.sort_unstable();
        // The name and ALPN already show in the summary, and must not move the hash.
        extensions.retain(|kind| ![extension::SERVER_NAME, extension::ALPN].contains(kind));
        extensions.sort_unstable();
        let mut extensions = hex_list(&extensions);
        let algorithms = without_grease(&hello.signature_algorithms);
        if !algorithms.is_empty() {
            extensions.push('_');
            extensions.push_str(&hex_list(&algorithms));
        }
        Self { summary, ciphers: hex_list(&ciphers), extensions }
    }
}

fn without_grease(values: &[u16]) -> Vec<u16> {
    values.iter().copied().filter(|value| !is_grease(*value)).collect()
}

/// The highest version of `supported_versions`, or the legacy version where that is absent.
fn version(hello: &ClientHello) -> &'static str {
    let highest = hello.supported_versions.iter().copied().filter(|value| !is_grease(*value)).max();
    match highest.unwrap_or(hello.legacy_version) {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        0xfeff => "d1",
        0xfefd => "d2",
        0xfefc => "d3",
        _ => "00",
    }
}

/// First and last character of the first ALPN value; of its hex digits where either byte is not
/// an ASCII letter or digit; `00` where there is none.
fn alpn(value: &[u8]) -> String {
    let (Some(first), Some(last)) = (value.first(), value.last()) else {
        return "00".to_owned();
    };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [char::from(*first), char::from(*last)].iter().collect();
    }
    format!("{:x}{:x}", first >> 4, last & 0x0f)
}

fn hex_list(values: &[u16]) -> String {
    let mut text = String::with_capacity(values.len() * 5);
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        for shift in [12, 8, 4, 0] {
            let nibble = u32::from(value >> shift & 0x0f);
            text.push(char::from_digit(nibble, 16).unwrap_or('0'));
        }
    }
    text
}

/// The first twelve hex digits of SHA-256; twelve zeros for an empty list.
fn hash12(text: &str) -> String {
    if text.is_empty() {
        return "000000000000".to_owned();
    }
    hex::encode(&Sha256::digest(text.as_bytes())[..6])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::client_hello::tests::{
        Draft, alpn as alpn_extension, chrome, curl, firefox,
    };

    fn parse(draft: &Draft) -> ClientHello {
        ClientHello::parse(&draft.message()).expect("the draft is well formed")
    }

    #[test]
    fn the_example_of_the_description() {
        let hello = parse(&chrome());
        assert_eq!(ja4(&hello), "t13d1516h2_8daaf6152771_e5627efa2ab1");
        assert_eq!(
            ja4_r(&hello),
            "t13d1516h2_002f,0035,009c,009d,1301,1302,1303,c013,c014,c02b,c02c,c02f,c030,cca8,cca9\
             _0005,000a,000b,000d,0012,0015,0017,001b,0023,002b,002d,0033,4469,ff01\
             _0403,0804,0401,0503,0805,0501,0806,0601"
        );
    }

    #[test]
    fn known_clients() {
        assert_eq!(ja4(&parse(&curl())), "t13d3112h2_e8f1e7e78f70_b26ce05bbdd6");
        // The hash of Firefox's ciphers is a published one; its extensions change by release.
        assert!(ja4(&parse(&firefox())).starts_with("t13d1717h2_5b57614c22b0_"));
    }

    #[test]
    fn extension_order_does_not_matter() {
        let mut draft = chrome();
        let expected = ja4(&parse(&draft));
        for _ in 0..draft.extensions.len() {
            draft.extensions.rotate_left(1);
            assert_eq!(ja4(&parse(&draft)), expected);
        }
        // The order of the signature algorithms does.
        let algorithms = draft.extensions.iter_mut().find(|(kind, _)| *kind == 13).expect("sent");
        algorithms.1.swap(3, 5);
        assert_ne!(ja4(&parse(&draft)), expected);
    }

    #[test]
    fn alpn_shows_its_ends() {
        let cases: [(&[u8], &str); 11] = [
            (b"h2", "h2"),
            (b"http/1.1", "h1"),
            (b"h", "hh"),
            (b"", "00"),
            (&[0xab], "ab"),
            (&[0xab, 0xcd], "ad"),
            (&[0x30, 0xab], "3b"),
            (&[0x30, 0x31, 0xab, 0xcd], "3d"),
            (&[0x30, 0xab, 0xcd, 0x31], "01"),
            (b"/h2", "22"),
            ("é1".as_bytes(), "c1"),
        ];
        for (value, expected) in cases {
            assert_eq!(alpn(value), expected, "{value:x?}");
        }
    }

    #[test]
    fn names_versions_and_counts() {
        let bare = Draft { version: 0x0303, ..Draft::default() };
        let many = Draft {
            version: 0x0303,
            ciphers: (0..150).collect(),
            extensions: (100..250).map(|kind| (kind, vec![])).collect(),
            ..Draft::default()
        };
        let version = |version| Draft { version, ..Draft::default() };
        let unknown = Draft { extensions: vec![(43, vec![2, 0x7f, 0x1c])], ..version(0x0303) };
        let no_name = Draft {
            extensions: vec![alpn_extension(&[b"\x0a\x0a"])],
            ciphers: vec![0x5600, 0x00ff, 0xfe00],
            ..bare.clone()
        };
        let cases = [
            (bare, "t12i000000_000000000000_000000000000"),
            (version(0x0302), "t11i000000_000000000000_000000000000"),
            (version(0x0301), "t10i000000_000000000000_000000000000"),
            (version(0x0300), "ts3i000000_000000000000_000000000000"),
            (version(0x0002), "ts2i000000_000000000000_000000000000"),
            (version(0x0305), "t00i000000_000000000000_000000000000"),
        ];
        for (draft, expected) in cases {
            assert_eq!(ja4(&parse(&draft)), expected);
        }
        assert!(ja4_r(&parse(&many)).starts_with("t12i999900_0000,0001,"));
        assert!(ja4_r(&parse(&unknown)).starts_with("t00i000100_"));
        // ALPN counts as an extension, and is not in the hash.
        assert_eq!(ja4_r(&parse(&no_name)), "t12i03010a_00ff,5600,fe00_");
        assert!(ja4(&parse(&no_name)).ends_with("_000000000000"));
    }

    #[test]
    fn without_algorithms_there_is_no_trailing_underscore() {
        let mut draft = chrome();
        draft.extensions.retain(|(kind, _)| *kind != 13);
        let raw = ja4_r(&parse(&draft));
        assert!(raw.ends_with("0033,4469,ff01"), "{raw}");
        // The description gives the hash of the whole list without algorithms.
        let listed = "0005,000a,000b,000d,0012,0015,0017,001b,0023,002b,002d,0033,4469,ff01";
        assert_eq!(hash12(listed), "6d807ffa2a79");
    }
}
