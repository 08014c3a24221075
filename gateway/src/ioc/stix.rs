//! STIX 2.1, for everybody else: what is told as a bundle of indicators, and simple ones taken in.
//!
//! Addresses and networks are core STIX. For fingerprints and hashes there is nothing in it, so they
//! are properties of an extension of `network-traffic`, `x-stillgate-ext`; readers of other
//! products that know `ja3` under another name are met halfway: of a path only its last word
//! counts. STIX is not signed here: only an operator takes it in, under a name of their own.
//!
//! Sources: STIX 2.1 (OASIS standard), sections 4.5 (grouping), 4.6 (identity), 4.7 (indicator),
//! 9 (patterning); RFC 9562, section 5.8 (UUIDs of our own making).

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::bundle::{CONFIDENCE_MIN, Indicator, Kind};
use crate::limits::IOC_VALUES_MAX;

/// Comparisons in one pattern at most.
const COMPARISONS_MAX: usize = 256;
/// Characters of a pattern at most.
const PATTERN_CHARS_MAX: usize = 64 * 1024;

/// An indicator with all that STIX says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// What is told.
    pub indicator: Indicator,
    /// How sure, 0..1.
    pub confidence: f64,
    /// First and last sighting, unix milliseconds.
    pub seen_ms: (u64, u64),
    /// When it was told, unix milliseconds.
    pub told_ms: u64,
    /// Whether it was taken back.
    pub revoked: bool,
}

/// A STIX bundle of what a provider tells. The same content gives the same bytes.
#[must_use]
pub fn export(issuer: &str, told: &[Told], lifetime_ms: u64) -> Value {
    let newest = told.iter().map(|told| told.told_ms).max().unwrap_or(0);
    let oldest = told.iter().map(|told| told.told_ms).min().unwrap_or(0);
    let identity = id("identity", &[issuer]);
    let mut objects = vec![json!({
        "type": "identity",
        "spec_version": "2.1",
        "id": identity,
        "created": timestamp(oldest),
        "modified": timestamp(oldest),
        "name": issuer,
        "identity_class": "organization",
    })];
    for told in told {
        let Indicator { kind, value } = &told.indicator;
        let (first, last) = told.seen_ms;
        let mut object = json!({
            "type": "indicator",
            "spec_version": "2.1",
            "id": id("indicator", &[issuer, kind.name(), value]),
            "created_by_ref": identity,
            "created": timestamp(told.told_ms.min(first)),
            "modified": timestamp(told.told_ms),
            "name": format!("{} of a distillation campaign", words(*kind)),
            "indicator_types": ["malicious-activity"],
            "pattern": pattern(*kind, value),
            "pattern_type": "stix",
            "pattern_version": "2.1",
            "valid_from": timestamp(first),
            "valid_until": timestamp(last.max(first).saturating_add(lifetime_ms.max(1))),
            "confidence": (told.confidence * 100.0).round() as u64,
        });
        if told.revoked {
            object["revoked"] = Value::Bool(true);
        }
        objects.push(object);
    }
    let refs: Vec<Value> =
        objects.iter().skip(1).filter_map(|object| object.get("id").cloned()).collect();
    if !refs.is_empty() {
        objects.push(json!({
            "type": "grouping",
            "spec_version": "2.1",
            "id": id("grouping", &[issuer]),
            "created_by_ref": identity,
            "created": timestamp(oldest),
            "modified": timestamp(newest),
            "name": "Distillation campaigns",
            "context": "suspicious-activity",
            "object_refs": refs,
        }));
    }
    let content = Value::from(objects);
    json!({ "type": "bundle", "id": id("bundle", &[&content.to_string()]), "objects": content })
}

fn words(kind: Kind) -> &'static str {
    match kind {
        Kind::Ip => "Address",
        Kind::Subnet => "Network",
        Kind::Ja3 => "JA3",
        Kind::Ja3s => "JA3S",
        Kind::Ja4 => "JA4",
        Kind::H2 => "HTTP/2 fingerprint",
        Kind::PaymentHash => "Payment hash",
        Kind::WatermarkToken => "Watermark token",
        Kind::Account => "Account hash",
    }
}

fn pattern(kind: Kind, value: &str) -> String {
    // No value that is held has a quote or a backslash; the reader of patterns is told all the same.
    let value = value.replace('\\', "\\\\").replace('\'', "\\'");
    let version = if value.contains(':') { 6 } else { 4 };
    match kind {
        Kind::Ip => format!("[ipv{version}-addr:value = '{value}']"),
        Kind::Subnet => format!("[ipv{version}-addr:value ISSUBSET '{value}']"),
        _ => format!("[network-traffic:extensions.'x-stillgate-ext'.{} = '{value}']", kind.name()),
    }
}

/// A UUID of version 8, from a hash.
fn id(kind: &str, parts: &[&str]) -> String {
    let mut digest = Sha256::new().chain_update("stillgate stix").chain_update(kind);
    for part in parts {
        digest = digest.chain_update((part.len() as u64).to_be_bytes()).chain_update(part);
    }
    let mut uuid: [u8; 32] = digest.finalize().into();
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let hex = hex::encode(&uuid[..16]);
    let [a, b, c, d, e] = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    format!("{kind}--{a}-{b}-{c}-{d}-{e}")
}

fn timestamp(ms: u64) -> String {
    // To the year 9999: later ones have no form.
    let ms = ms.min(253_402_300_799_000);
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (at.date(), at.time());
    let (hour, minute, second, milli) = time.as_hms_milli();
    format!("{date}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// What was read of a STIX bundle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imported {
    /// What was understood.
    pub told: Vec<Told>,
    /// Identities of objects that were not, and why.
    pub skipped: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    objects: Vec<Value>,
}

/// The fields of an indicator that are used.
#[derive(Deserialize)]
struct Object {
    pattern: Option<String>,
    pattern_type: Option<String>,
    valid_from: Option<String>,
    valid_until: Option<String>,
    modified: Option<String>,
    confidence: Option<f64>,
    #[serde(default)]
    revoked: bool,
}

/// Reads a STIX bundle. `confidence` is that of indicators that tell none.
///
/// # Errors
/// When it is no bundle, or too large a one.
pub fn import(
    text: &[u8],
    confidence: f64,
    own: &[IpNet],
    now_ms: u64,
) -> Result<Imported, String> {
    let bundle: Bundle = serde_json::from_slice(text)
        .map_err(|fault| format!("it is not a STIX bundle (line {})", fault.line()))?;
    if bundle.kind != "bundle" {
        return Err("it is not a STIX bundle: its type is another".to_owned());
    }
    let mut imported = Imported::default();
    for object in bundle.objects.into_iter().filter(|object| object["type"] == "indicator") {
        let id = shown(object["id"].as_str().unwrap_or_default());
        let fields = serde_json::from_value(object).map_err(|_| "a field in it is of another type");
        match fields.and_then(|object| read(&object, confidence, own, now_ms)) {
            Ok((told, skipped)) => {
                imported.told.extend(told);
                imported
                    .skipped
                    .extend(skipped.into_iter().map(|why| (id.clone(), why.to_owned())));
            }
            Err(why) => imported.skipped.push((id, why.to_owned())),
        }
        if imported.told.len() + imported.skipped.len() > IOC_VALUES_MAX {
            return Err(format!("it has more than {IOC_VALUES_MAX} indicators"));
        }
    }
    Ok(imported)
}

/// An object's identity as it is shown again.
fn shown(id: &str) -> String {
    id.chars().filter(|c| c.is_ascii_graphic()).take(64).collect()
}

type Reading = (Vec<Told>, Vec<&'static str>);

fn read(
    object: &Object,
    confidence: f64,
    own: &[IpNet],
    now_ms: u64,
) -> Result<Reading, &'static str> {
    if object.pattern_type.as_deref().is_some_and(|kind| kind != "stix") {
        return Err("its pattern is not in STIX patterning");
    }
    let pattern = object.pattern.as_deref().ok_or("it has no pattern")?;
    let confidence = object.confidence.map_or(confidence, |stated| stated / 100.0);
    let times = [&object.valid_from, &object.valid_until, &object.modified];
    let [from, until, modified] = times.map(|text| text.as_deref().map(unix_ms));
    let bad = "a time in it is not RFC 3339";
    let first = from.transpose().map_err(|()| bad)?.unwrap_or(now_ms);
    let told_ms = modified.transpose().map_err(|()| bad)?.unwrap_or(first).min(now_ms);
    if until.transpose().map_err(|()| bad)?.is_some_and(|until| until <= now_ms) {
        return Err("it is not valid any more");
    }
    if first > now_ms {
        return Err("it is not valid yet");
    }
    if !object.revoked && !(CONFIDENCE_MIN..=1.0).contains(&confidence) {
        return Err("its confidence is not 70 to 100");
    }
    let (mut told, mut skipped) = (Vec::new(), Vec::new());
    for (kind, value) in comparisons(pattern)? {
        let (kind, value) = match kind {
            Some(kind) => (kind, value),
            None => address(value),
        };
        match Indicator::read(kind, &value, own) {
            Ok(indicator) => told.push(Told {
                indicator,
                confidence,
                seen_ms: (first, told_ms.max(first)),
                told_ms,
                revoked: object.revoked,
            }),
            Err(why) => skipped.push(why),
        }
    }
    Ok((told, skipped))
}

/// An address may be written as a network of one, and a network as an address with a width.
fn address(value: String) -> (Kind, String) {
    match value.parse::<IpNet>() {
        Ok(network) if network.prefix_len() == network.max_prefix_len() => {
            (Kind::Ip, network.addr().to_string())
        }
        Ok(_) => (Kind::Subnet, value),
        Err(_) => (Kind::Ip, value),
    }
}

fn unix_ms(text: &str) -> Result<u64, ()> {
    let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| ())?;
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_err(|_| ())
}

/// Reads a pattern that is a choice of comparisons with constants: `[a:b = 'x' OR a:b = 'y']`, or
/// several of these joined by `OR`. What has to come together, or in order, is no list of values.
fn comparisons(pattern: &str) -> Result<Vec<(Option<Kind>, String)>, &'static str> {
    let mut tokens = Tokens::read(pattern)?.into_iter().peekable();
    let mut found = Vec::new();
    loop {
        if tokens.next() != Some(Token::Sign('[')) {
            return Err("its pattern is more than a choice of comparisons");
        }
        loop {
            comparison(&mut tokens, &mut found)?;
            match tokens.next() {
                Some(Token::Sign(']')) => break,
                Some(Token::Word(word)) if word == "OR" => {}
                _ => return Err("its pattern is more than a choice of comparisons"),
            }
        }
        match tokens.next() {
            None => return Ok(found),
            Some(Token::Word(word)) if word == "OR" => {}
            Some(_) => return Err("its pattern is more than a choice of comparisons"),
        }
    }
}

fn comparison(
    tokens: &mut impl Iterator<Item = Token>,
    found: &mut Vec<(Option<Kind>, String)>,
) -> Result<(), &'static str> {
    let more = "its pattern compares otherwise than with =, IN or ISSUBSET and text";
    let Some(Token::Path(path)) = tokens.next() else { return Err(more) };
    let mut take = |value: String| {
        found.push((kind_of(&path)?, value));
        if found.len() > COMPARISONS_MAX { Err("its pattern is too long") } else { Ok(()) }
    };
    match (tokens.next(), tokens.next()) {
        (Some(Token::Sign('=')), Some(Token::Text(value))) => take(value),
        (Some(Token::Word(word)), Some(Token::Text(value))) if word == "ISSUBSET" => take(value),
        (Some(Token::Word(word)), Some(Token::Sign('('))) if word == "IN" => loop {
            match tokens.next() {
                Some(Token::Text(value)) => take(value)?,
                _ => return Err(more),
            }
            match tokens.next() {
                Some(Token::Sign(',')) => {}
                Some(Token::Sign(')')) => return Ok(()),
                _ => return Err(more),
            }
        },
        _ => Err(more),
    }
}

/// What a path is about; `None` is an address or a network, as its value shows.
fn kind_of(path: &str) -> Result<Option<Kind>, &'static str> {
    let other = "its pattern is about something that is not known here";
    let (object, property) = path.split_once(':').ok_or(other)?;
    match (object, property) {
        ("ipv4-addr" | "ipv6-addr", "value") | ("network-traffic", "src_ref.value") => {
            return Ok(None);
        }
        _ => {}
    }
    if object != "network-traffic" && !object.starts_with("x-") {
        return Err(other);
    }
    let last = property.rsplit('.').next().unwrap_or(property).trim_matches('\'');
    let name = last.to_ascii_lowercase().replace('-', "_");
    let name = name.strip_prefix("x_").unwrap_or(&name);
    let name = ["_hash", "_md5", "_fingerprint"]
        .iter()
        .find_map(|end| name.strip_suffix(end).filter(|rest| rest.starts_with("ja")))
        .unwrap_or(name);
    match Kind::of(name) {
        Some(Kind::Ip | Kind::Subnet) | None => Err(other),
        kind => Ok(kind),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Sign(char),
    Word(String),
    Path(String),
    Text(String),
}

struct Tokens;

impl Tokens {
    fn read(pattern: &str) -> Result<Vec<Token>, &'static str> {
        if pattern.len() > PATTERN_CHARS_MAX {
            return Err("its pattern is too long");
        }
        let mut tokens = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(&next) = chars.peek() {
            match next {
                ' ' | '\t' | '\r' | '\n' => {
                    chars.next();
                }
                '[' | ']' | '(' | ')' | ',' | '=' => {
                    chars.next();
                    tokens.push(Token::Sign(next));
                }
                '\'' => tokens.push(Token::Text(quoted(&mut chars)?)),
                _ if next.is_ascii_alphanumeric() => {
                    let mut word = String::new();
                    while let Some(&next) = chars.peek() {
                        match next {
                            '\'' => {
                                word.push('\'');
                                word.push_str(&quoted(&mut chars)?);
                                word.push('\'');
                            }
                            '_' | '-' | '.' | ':' | '[' | ']' | '*'
                                if !matches!(next, '[' | ']')
                                    || word.contains(':') && next == '[' =>
                            {
                                chars.next();
                                word.push(next);
                                // An index of a list, `refs[0]`, goes to its bracket.
                                if next == '[' {
                                    for inside in chars.by_ref() {
                                        word.push(inside);
                                        if inside == ']' {
                                            break;
                                        }
                                    }
                                }
                            }
                            _ if next.is_ascii_alphanumeric() => {
                                chars.next();
                                word.push(next);
                            }
                            _ => break,
                        }
                    }
                    let path = word.contains(':');
                    tokens.push(if path { Token::Path(word) } else { Token::Word(word) });
                }
                _ => return Err("its pattern is more than a choice of comparisons"),
            }
        }
        Ok(tokens)
    }
}

fn quoted(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, &'static str> {
    chars.next();
    let mut text = String::new();
    loop {
        match chars.next() {
            Some('\'') => return Ok(text),
            Some('\\') => text.extend(chars.next()),
            Some(other) => text.push(other),
            None => return Err("its pattern has a text without an end"),
        }
    }
}

/// Entry point for the fuzzer: a STIX bundle, and a pattern by itself. What is understood can be
/// told again, and is then understood as the same.
#[doc(hidden)]
pub fn fuzz_stix(data: &[u8]) {
    const NOW_MS: u64 = 1_800_000_000_000;
    let _ = import(data, 0.9, &[], NOW_MS);
    let Ok(pattern) = std::str::from_utf8(data) else { return };
    let object = json!({"type": "indicator", "pattern": pattern});
    let bundle = json!({"type": "bundle", "objects": [object]}).to_string();
    let Ok(imported) = import(bundle.as_bytes(), 0.9, &[], NOW_MS) else { return };
    let again = export("lab", &imported.told, 1).to_string();
    let again = import(again.as_bytes(), 0.9, &[], NOW_MS).map(|again| again.told);
    assert_eq!(again, Ok(imported.told));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn told(kind: Kind, value: &str) -> Told {
        Told {
            indicator: Indicator { kind, value: value.to_owned() },
            confidence: 0.87,
            seen_ms: (NOW_MS - 9_000, NOW_MS - 1_000),
            told_ms: NOW_MS - 1_000,
            revoked: false,
        }
    }

    fn read_pattern(pattern: &str) -> Result<Vec<(Kind, String)>, String> {
        let object = json!({"type": "indicator", "id": "indicator--1", "pattern": pattern,
            "pattern_type": "stix", "valid_from": "2026-01-01T00:00:00Z"});
        let bundle = json!({"type": "bundle", "objects": [object, {"type": "malware"}]});
        let imported = import(bundle.to_string().as_bytes(), 0.8, &[], NOW_MS)?;
        match imported.skipped.into_iter().next() {
            Some((_, why)) => Err(why),
            None => {
                let told = imported.told.into_iter();
                Ok(told.map(|told| (told.indicator.kind, told.indicator.value)).collect())
            }
        }
    }

    #[test]
    fn what_is_told_is_understood_again() {
        let all = [
            told(Kind::Ip, "203.0.113.9"),
            told(Kind::Ip, "2001:db8::9"),
            told(Kind::Subnet, "203.0.113.0/24"),
            told(Kind::Subnet, "2001:db8:1::/48"),
            told(Kind::Ja3, &"3".repeat(32)),
            told(Kind::Ja3s, &"4".repeat(32)),
            told(Kind::Ja4, "t13d1516h2_8daaf6152771_02713d6af862"),
            told(Kind::H2, "1:65536;2:0|15663105|0|m,a,s,p"),
            told(Kind::PaymentHash, &"5".repeat(32)),
            told(Kind::WatermarkToken, "zw:0a1b2c"),
            told(Kind::Account, &"6".repeat(16)),
            Told { revoked: true, ..told(Kind::Ip, "203.0.113.10") },
        ];
        let bundle = export("lab-a", &all, 86_400_000);
        let text = bundle.to_string();
        let imported = import(text.as_bytes(), 0.7, &[], NOW_MS).unwrap();
        assert_eq!(imported, Imported { told: all.to_vec(), skipped: Vec::new() });
        assert_eq!(export("lab-a", &all, 86_400_000), bundle, "the same bytes");
        // Past its life nothing of it holds.
        let late = import(text.as_bytes(), 0.7, &[], NOW_MS + 86_400_000).unwrap();
        assert!(late.told.is_empty() && late.skipped.len() == all.len(), "{late:?}");
    }

    #[test]
    fn stock_patterns_are_read_and_others_named() {
        let ip = |value: &str| (Kind::Ip, value.to_owned());
        for (pattern, expected) in [
            ("[ipv4-addr:value = '203.0.113.9']", vec![ip("203.0.113.9")]),
            ("[ ipv4-addr:value='203.0.113.9/32' ]", vec![ip("203.0.113.9")]),
            ("[ipv4-addr:value = '203.0.113.0/24']", vec![(Kind::Subnet, "203.0.113.0/24".into())]),
            (
                "[ipv4-addr:value IN ('203.0.113.9', '203.0.113.8')]",
                vec![ip("203.0.113.9"), ip("203.0.113.8")],
            ),
            (
                "[ipv4-addr:value = '203.0.113.9' OR ipv6-addr:value = '2001:db8::1'] OR [ipv4-addr:value = '203.0.113.7']",
                vec![ip("203.0.113.9"), ip("2001:db8::1"), ip("203.0.113.7")],
            ),
            ("[network-traffic:src_ref.value = '203.0.113.9']", vec![ip("203.0.113.9")]),
            (
                "[network-traffic:x_ja3_hash = '33333333333333333333333333333333']",
                vec![(Kind::Ja3, "3".repeat(32))],
            ),
            (
                "[x-tls:ja3s-md5 = '33333333333333333333333333333333']",
                vec![(Kind::Ja3s, "3".repeat(32))],
            ),
        ] {
            assert_eq!(read_pattern(pattern), Ok(expected), "{pattern}");
        }
        for pattern in [
            "[ipv4-addr:value = '203.0.113.9' AND url:value = 'x']",
            "[ipv4-addr:value = '203.0.113.9'] FOLLOWEDBY [ipv4-addr:value = '203.0.113.8']",
            "[ipv4-addr:value = '203.0.113.9'] WITHIN 5 SECONDS",
            "[ipv4-addr:value LIKE '203.%']",
            "[ipv4-addr:value != '203.0.113.9']",
            "[NOT ipv4-addr:value = '203.0.113.9']",
            "[url:value = 'https://example.com/']",
            "[file:hashes.'SHA-256' = 'aa']",
            "[ipv4-addr:value = '10.0.0.1']",
            "[network-traffic:src_port = 443]",
            "[ipv4-addr:value = '203.0.113.9",
            "[",
            "",
        ] {
            assert!(read_pattern(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn times_and_confidence_are_looked_at() {
        let base = json!({"type": "indicator", "pattern": "[ipv4-addr:value = '203.0.113.9']",
            "valid_from": "2026-01-01T00:00:00Z", "confidence": 90});
        let imported = |key: &str, value: Value| {
            let mut object = base.clone();
            object[key] = value;
            let bundle = json!({"type": "bundle", "objects": [object]}).to_string();
            import(bundle.as_bytes(), 0.7, &[], NOW_MS).map(|all| all.told.len())
        };
        assert_eq!(imported("name", json!("x")), Ok(1));
        assert_eq!(imported("confidence", json!(69)), Ok(0));
        assert_eq!(imported("confidence", json!(101)), Ok(0));
        assert_eq!(imported("valid_until", json!("2026-02-01T00:00:00.000Z")), Ok(0));
        assert_eq!(imported("valid_from", json!("2099-02-01T00:00:00.000Z")), Ok(0));
        assert_eq!(imported("valid_from", json!("yesterday")), Ok(0));
        assert_eq!(imported("pattern_type", json!("snort")), Ok(0));
        assert_eq!(imported("pattern", json!(7)), Ok(0));
        assert!(import(b"{\"type\":\"report\"}", 0.7, &[], NOW_MS).is_err());
    }

    #[test]
    fn times_are_written_as_stix_wants_them() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(1_800_000_000_007), "2027-01-15T08:00:00.007Z");
        assert!(timestamp(u64::MAX).starts_with("9999-"));
    }

    proptest! {
        #[test]
        fn no_pattern_makes_the_reader_panic(pattern in "\\PC{0,80}|\\[(ipv4-addr:value|network-traffic:ja3|x-a:h2)( = | IN \\(| ISSUBSET )'[0-9./a-f|:]{0,20}'[\\]) OR]{0,6}") {
            fuzz_stix(pattern.as_bytes());
        }
    }
}
