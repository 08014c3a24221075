//! What a bundle of indicators says, and what of it is believed.
//!
//! Every value that comes from outside is read into an [`Indicator`], which holds it in one form:
//! whoever compares two compares text. An address that means nothing to others (private, loopback)
//! or a network so wide that it hits bystanders is refused here, so that it is never sent either.
//!
//! Source: threat model, "IOC Sharing Protocol".

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use detectors::indicator::IndicatorKind;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::enforce::takedown::Bundle;
use crate::limits::IOC_VALUES_MAX;

/// Version of the format, in each bundle.
pub const VERSION: u32 = 1;
/// Nothing below is sent or taken in.
pub const CONFIDENCE_MIN: f64 = 0.70;
/// Characters of an HTTP/2 fingerprint at most.
const H2_CHARS_MAX: usize = 256;
/// Characters of a mark's token.
const TOKEN_CHARS: std::ops::RangeInclusive<usize> = 6..=64;
/// The narrowest networks that are held: beyond, it is a host.
const SUBNET_V4: std::ops::RangeInclusive<u8> = 16..=32;
const SUBNET_V6: std::ops::RangeInclusive<u8> = 32..=64;

/// What an indicator is about. The names are in registers, bundles and paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An address.
    Ip,
    /// A network of addresses.
    Subnet,
    /// MD5 of a JA3 string.
    Ja3,
    /// MD5 of a JA3S string.
    Ja3s,
    /// A JA4.
    Ja4,
    /// An HTTP/2 fingerprint.
    H2,
    /// Keyed hash of a payment instrument.
    PaymentHash,
    /// A token of a mark that was served.
    WatermarkToken,
    /// Keyed hash of an account.
    Account,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Ip,
        Self::Subnet,
        Self::Ja3,
        Self::Ja3s,
        Self::Ja4,
        Self::H2,
        Self::PaymentHash,
        Self::WatermarkToken,
        Self::Account,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Subnet => "subnet",
            Self::Ja3 => "ja3",
            Self::Ja3s => "ja3s",
            Self::Ja4 => "ja4",
            Self::H2 => "h2",
            Self::PaymentHash => "payment_hash",
            Self::WatermarkToken => "watermark_token",
            Self::Account => "account",
        }
    }

    /// The kind of a name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl From<Kind> for IndicatorKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Ip => Self::Address,
            Kind::Subnet => Self::Subnet,
            Kind::Ja3 => Self::Ja3,
            Kind::Ja3s => Self::Ja3s,
            Kind::Ja4 => Self::Ja4,
            Kind::H2 => Self::Http2,
            Kind::PaymentHash => Self::Payment,
            Kind::WatermarkToken => Self::Token,
            Kind::Account => Self::Account,
        }
    }
}

/// One value, in the one form in which it is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Indicator {
    /// What it is about.
    pub kind: Kind,
    /// The value.
    pub value: String,
}

impl Indicator {
    /// Reads a value. `own` are the operator's networks, which nobody's word makes suspect.
    ///
    /// # Errors
    /// Why it is not believed, in words without the value.
    pub fn read(kind: Kind, value: &str, own: &[IpNet]) -> Result<Self, &'static str> {
        let value = match kind {
            Kind::Ip => {
                let ip = value.parse::<IpAddr>().map_err(|_| "not an address")?.to_canonical();
                check_network(IpNet::from(ip), own)?;
                ip.to_string()
            }
            Kind::Subnet => {
                let network = value.parse::<IpNet>().map_err(|_| "not a network")?.trunc();
                let widths = if network.addr().is_ipv4() { SUBNET_V4 } else { SUBNET_V6 };
                if network.prefix_len() < *widths.start() {
                    return Err("a network wider than /16, or /32 of IPv6");
                }
                if network.prefix_len() > *widths.end() {
                    return Err("an IPv6 network narrower than /64: send the address");
                }
                check_network(network, own)?;
                network.to_string()
            }
            Kind::Ja3 | Kind::Ja3s => hex_digits(value, 32, "not an MD5 of 32 hex digits")?,
            Kind::PaymentHash => hex_digits(value, 32, "not a hash of 32 hex digits")?,
            Kind::Account => hex_digits(value, 16, "not a hash of 16 hex digits")?,
            Kind::Ja4 if is_ja4(value) => value.to_owned(),
            Kind::Ja4 => return Err("not a JA4"),
            Kind::H2 if is_h2(value) => value.to_owned(),
            Kind::H2 => return Err("not an HTTP/2 fingerprint"),
            Kind::WatermarkToken if is_token(value) => value.to_owned(),
            Kind::WatermarkToken => return Err("not a token of a mark"),
        };
        Ok(Self { kind, value })
    }
}

fn hex_digits(value: &str, digits: usize, wrong: &'static str) -> Result<String, &'static str> {
    let plain = value.len() == digits && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { Ok(value.to_ascii_lowercase()) } else { Err(wrong) }
}

/// JA4 of FoxIO: `t13d1516h2_8daaf6152771_02713d6af862`.
fn is_ja4(value: &str) -> bool {
    let Some((head, rest)) = value.split_once('_') else { return false };
    let Some((ciphers, extensions)) = rest.split_once('_') else { return false };
    let hash = |text: &str| {
        text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let &[transport, v1, v2, sni, c1, c2, e1, e2, a1, a2] = head.as_bytes() else { return false };
    let version = [v1, v2];
    let versions = [b"13", b"12", b"11", b"10", b"s3", b"s2", b"d1", b"d2", b"d3", b"00"];
    matches!(transport, b't' | b'q' | b'd')
        && versions.contains(&&version)
        && matches!(sni, b'd' | b'i')
        && [c1, c2, e1, e2].iter().all(u8::is_ascii_digit)
        && [a1, a2].iter().all(u8::is_ascii_alphanumeric)
        && hash(ciphers)
        && hash(extensions)
}

/// `settings|window_update|priority|pseudo`, as `capture::http2` writes it.
fn is_h2(value: &str) -> bool {
    let parts: Vec<&str> = value.split('|').collect();
    let &[settings, window, priority, pseudo] = &parts[..] else { return false };
    let number =
        |text: &str| (1..=10).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let numbers = |text: &str, count| {
        let all: Vec<&str> = text.split(':').collect();
        all.len() == count && all.into_iter().all(number)
    };
    let settings = settings.is_empty() || settings.split(';').all(|pair| numbers(pair, 2));
    let priority = priority == "0" || priority.split(',').all(|four| numbers(four, 4));
    let letter = |text: &str| text.len() == 1 && text.bytes().all(|b| b.is_ascii_lowercase());
    let pseudo = pseudo.is_empty() || pseudo.split(',').all(letter);
    value.len() <= H2_CHARS_MAX && settings && number(window) && priority && pseudo
}

/// A canary or the tag of a zero-width frame: one word.
fn is_token(value: &str) -> bool {
    TOKEN_CHARS.contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b':'))
}

/// Networks of which no address is anybody's on the internet (IANA special-purpose registries;
/// RFC 6890). Those for documentation are let through: they hit nobody.
const SPECIAL_V4: [([u8; 4], u8); 11] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

fn check_network(network: IpNet, own: &[IpNet]) -> Result<(), &'static str> {
    let overlaps = |other: IpNet| other.contains(&network) || network.contains(&other);
    let special = match network {
        IpNet::V4(_) => SPECIAL_V4.iter().any(|(address, bits)| {
            Ipv4Net::new(Ipv4Addr::from(*address), *bits).is_ok_and(|net| overlaps(net.into()))
        }),
        // 2000::/3 is what has been given out; all else is local or for nobody (RFC 4291).
        IpNet::V6(network) => {
            let global = Ipv6Net::new(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
            !global.is_ok_and(|global| global.contains(&network))
        }
    };
    if special {
        return Err("an address that is nobody's on the internet");
    }
    if own.iter().copied().any(overlaps) {
        return Err("a network of the operator's own");
    }
    Ok(())
}

/// Something that no longer holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Revoked {
    /// What it was about.
    pub kind: Kind,
    /// The value.
    pub value: String,
}

/// A bundle as it is sent: the text that is signed is its JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IocBundle {
    /// [`VERSION`].
    pub version: u32,
    /// SHA-256 over all else, the first 32 hex digits: the same content issued at the same time has
    /// the same identity, whichever gateway of a fleet sends it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// The provider's name.
    pub issuer: String,
    /// When it was issued, unix milliseconds.
    pub issued_ms: u64,
    /// What was seen.
    #[serde(flatten)]
    pub content: Bundle,
    /// What no longer holds of what was sent before.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub revoked: BTreeSet<Revoked>,
}

impl IocBundle {
    /// A bundle with its identity.
    #[must_use]
    pub fn new(issuer: &str, issued_ms: u64, content: Bundle, revoked: BTreeSet<Revoked>) -> Self {
        let mut bundle = Self {
            version: VERSION,
            id: String::new(),
            issuer: issuer.to_owned(),
            issued_ms,
            content,
            revoked,
        };
        let mut id = hex::encode(Sha256::digest(bundle.text()));
        id.truncate(32);
        bundle.id = id;
        bundle
    }

    /// Its JSON: these bytes are signed, and sent as they are.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads what was signed.
    ///
    /// # Errors
    /// What is wrong with it, in words without any of its values.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let bundle: Self = serde_json::from_slice(text)
            // The library's own words may quote the text.
            .map_err(|fault| format!("it is not a bundle (line {})", fault.line()))?;
        if bundle.version != VERSION {
            return Err(format!("it has version {}, this is {VERSION}", bundle.version));
        }
        let plain = bundle.id.len() == 32 && bundle.id.bytes().all(|b| b.is_ascii_hexdigit());
        if !plain {
            return Err("its id is not 32 hex digits".to_owned());
        }
        let values: usize = bundle.values().map(|(_, values)| values.len()).sum();
        if values + bundle.revoked.len() > IOC_VALUES_MAX {
            return Err(format!("it has more than {IOC_VALUES_MAX} values"));
        }
        if !bundle.content.confidence.is_finite() {
            return Err("its confidence is no number".to_owned());
        }
        if bundle.content.first_seen_ms > bundle.content.last_seen_ms {
            return Err("it was last seen before it was first seen".to_owned());
        }
        Ok(bundle)
    }

    /// Its values by kind.
    pub fn values(&self) -> impl Iterator<Item = (Kind, &BTreeSet<String>)> {
        let of = |kind| (kind, values_of(&self.content, kind));
        Kind::ALL.into_iter().map(of)
    }
}

/// The values of a kind.
#[must_use]
pub fn values_of(content: &Bundle, kind: Kind) -> &BTreeSet<String> {
    match kind {
        Kind::Ip => &content.ips,
        Kind::Subnet => &content.subnets,
        Kind::Ja3 => &content.ja3,
        Kind::Ja3s => &content.ja3s,
        Kind::Ja4 => &content.ja4,
        Kind::H2 => &content.h2,
        Kind::PaymentHash => &content.payment_hashes,
        Kind::WatermarkToken => &content.watermark_tokens,
        Kind::Account => &content.accounts,
    }
}

/// Puts a value among those of its kind.
pub fn insert(content: &mut Bundle, indicator: Indicator) {
    let values = match indicator.kind {
        Kind::Ip => &mut content.ips,
        Kind::Subnet => &mut content.subnets,
        Kind::Ja3 => &mut content.ja3,
        Kind::Ja3s => &mut content.ja3s,
        Kind::Ja4 => &mut content.ja4,
        Kind::H2 => &mut content.h2,
        Kind::PaymentHash => &mut content.payment_hashes,
        Kind::WatermarkToken => &mut content.watermark_tokens,
        Kind::Account => &mut content.accounts,
    };
    values.insert(indicator.value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(kind: Kind, value: &str) -> Result<String, &'static str> {
        let own = ["198.51.100.0/24".parse().unwrap(), "2001:db8:77::/48".parse().unwrap()];
        Indicator::read(kind, value, &own).map(|indicator| indicator.value)
    }

    #[test]
    fn values_are_held_in_one_form() {
        for (kind, value, held) in [
            (Kind::Ip, "203.0.113.9", "203.0.113.9"),
            (Kind::Ip, "::ffff:203.0.113.9", "203.0.113.9"),
            (Kind::Ip, "2001:DB8:1:0::1", "2001:db8:1::1"),
            (Kind::Subnet, "203.0.113.9/24", "203.0.113.0/24"),
            (Kind::Subnet, "203.0.0.0/16", "203.0.0.0/16"),
            (Kind::Subnet, "2001:db8:1::/48", "2001:db8:1::/48"),
            (Kind::Ja3, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
            (
                Kind::Ja4,
                "t13d1516h2_8daaf6152771_02713d6af862",
                "t13d1516h2_8daaf6152771_02713d6af862",
            ),
            (Kind::H2, "1:65536;2:0|15663105|0|m,a,s,p", "1:65536;2:0|15663105|0|m,a,s,p"),
            (
                Kind::H2,
                "3:100|00|3:0:0:201,5:0:0:101|m,p,a,s",
                "3:100|00|3:0:0:201,5:0:0:101|m,p,a,s",
            ),
            (Kind::WatermarkToken, "zw:0a1b2c", "zw:0a1b2c"),
            (Kind::Account, "0123456789abcdef", "0123456789abcdef"),
        ] {
            assert_eq!(check(kind, value).as_deref(), Ok(held), "{value}");
        }
    }

    #[test]
    fn what_hits_bystanders_is_refused() {
        for (kind, value) in [
            (Kind::Ip, "127.0.0.1"),
            (Kind::Ip, "::ffff:10.0.0.1"),
            (Kind::Ip, "0.0.0.0"),
            (Kind::Ip, "::"),
            (Kind::Ip, "::1"),
            (Kind::Ip, "fe80::1"),
            (Kind::Ip, "fd00::1"),
            (Kind::Ip, "100.64.1.1"),
            (Kind::Ip, "198.51.100.7"),
            (Kind::Ip, "2001:db8:77::5"),
            (Kind::Ip, "203.0.113.009"),
            (Kind::Ip, ""),
            (Kind::Subnet, "203.0.0.0/15"),
            (Kind::Subnet, "198.51.0.0/16"),
            (Kind::Subnet, "0.0.0.0/0"),
            (Kind::Subnet, "192.168.0.0/16"),
            (Kind::Subnet, "2001:db8::/31"),
            (Kind::Subnet, "2001:db8::/65"),
            (Kind::Ja3, "aaaa"),
            (Kind::Ja3s, "zaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
            (Kind::Ja4, "t13d1516h2_8daaf6152771"),
            (Kind::Ja4, "t14d1516h2_8daaf6152771_02713d6af862"),
            (Kind::Ja4, "t13d1516h2_8DAAF6152771_02713d6af862"),
            (Kind::H2, "1:65536|15663105|0"),
            (Kind::H2, "1:x|15663105|0|m"),
            (Kind::WatermarkToken, "two words"),
            (Kind::WatermarkToken, "the"),
            (Kind::PaymentHash, "4111111111111111"),
        ] {
            assert!(check(kind, value).is_err(), "{value}");
        }
    }

    #[test]
    fn a_bundle_is_read_as_it_was_written() {
        let mut content =
            Bundle { confidence: 0.9, first_seen_ms: 5, last_seen_ms: 9, ..Bundle::default() };
        insert(&mut content, Indicator { kind: Kind::Ip, value: "203.0.113.9".to_owned() });
        let revoked = Revoked { kind: Kind::Ip, value: "203.0.113.8".to_owned() };
        let bundle = IocBundle::new("lab-a", 77, content.clone(), [revoked].into());
        let text = bundle.text();
        assert_eq!(IocBundle::read(text.as_bytes()).as_ref(), Ok(&bundle));
        assert_eq!(
            bundle.id,
            IocBundle::new("lab-a", 77, content.clone(), bundle.revoked.clone()).id
        );
        assert_ne!(bundle.id, IocBundle::new("lab-a", 78, content, bundle.revoked.clone()).id);
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("0.9", "1e999"),
            ("\"first_seen_ms\":5", "\"first_seen_ms\":10"),
            ("\"id\":\"", "\"id\":\"g"),
            ("\"ip\"", "\"secret\""),
        ] {
            assert!(text.contains(from), "{from}");
            let wrong = IocBundle::read(text.replace(from, to).as_bytes()).unwrap_err();
            assert!(!wrong.contains("secret"), "{wrong}");
        }
        // What a later version adds is no reason to refuse it.
        let more = text.replacen('{', "{\"new\":1,", 1);
        assert!(IocBundle::read(more.as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn a_value_in_its_one_form_stays_so(kind in 0..9_usize, value in "[0-9a-f:./|;,_tdm-]{0,48}|[0-9]{1,3}(\\.[0-9]{1,3}){3}(/[0-9]{1,2})?") {
            let kind = Kind::ALL[kind];
            if let Ok(held) = Indicator::read(kind, &value, &[]) {
                prop_assert_eq!(Indicator::read(kind, &held.value, &[]), Ok(held.clone()));
                prop_assert!(!held.value.contains(' ') && held.value.len() <= 256);
            }
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
            let _ = IocBundle::read(text.as_bytes());
        }
    }
}
