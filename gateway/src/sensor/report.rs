//! Reading a sensor's report: strictly, as `ebpf-sensor/README.md` has it. What is wrong with one is
//! said by its place and what belongs there, never by what stands there.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::admin::whole;
use crate::limits::{
    SENSOR_ENTRIES_MAX, SENSOR_LOOKED_UP_CHARS_MAX, SENSOR_NAME_CHARS_MAX, SENSOR_REPORT_BYTES_MAX,
};

/// Latest time that is one: the year 9999, unix milliseconds.
const MS_MAX: u64 = 253_402_300_799_999;
/// Largest count: 2^53, up to which JSON's numbers are exact everywhere.
const COUNT_MAX: u64 = 1 << 53;

/// Why bytes are no report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Longer than [`SENSOR_REPORT_BYTES_MAX`].
    #[error("a report may have {SENSOR_REPORT_BYTES_MAX} bytes")]
    Oversize,
    /// No JSON, or a key too many, twice, missing or of another type.
    #[error("line {line}, column {column}: {wanted}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wanted.
        wanted: &'static str,
    },
    /// More entries than [`SENSOR_ENTRIES_MAX`].
    #[error("lookups and contacts may be {SENSOR_ENTRIES_MAX} together")]
    Entries,
    /// A key of the report itself has no value that it may have.
    #[error("{key} must be {wanted}")]
    Key {
        /// The key.
        key: &'static str,
        /// What it may be.
        wanted: &'static str,
    },
    /// A key of an entry has no value that it may have.
    #[error("{list}[{index}].{key} must be {wanted}")]
    Entry {
        /// `lookups` or `contacts`.
        list: &'static str,
        /// Which of them, from 0.
        index: usize,
        /// The key.
        key: &'static str,
        /// What it may be.
        wanted: &'static str,
    },
}

/// A batch of what a sensor saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The sensor's name.
    pub sensor: Arc<str>,
    /// Which of its starts.
    pub run: u64,
    /// Number of the report in this run, from 1.
    pub sequence: u64,
    /// The sensor's clock when it sent this, unix milliseconds.
    pub sent_at_ms: u64,
    /// What it could not tell.
    pub lost: Lost,
    /// Names that were looked up.
    pub lookups: Vec<Lookup>,
    /// Addresses that were contacted though no plain DNS answer had named them.
    pub contacts: Vec<Contact>,
}

/// What a sensor could not tell since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Events that the kernel could not hand over.
    pub kernel: u64,
    /// Entries that found the tally full.
    pub full: u64,
    /// Entries of reports that were given up.
    pub unsent: u64,
}

/// A lookup, told once for all that are alike within some seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The last of them by the sensor's clock, unix milliseconds.
    pub last_ms: u64,
    /// Who asked, as this gateway sees it.
    pub address: IpAddr,
    /// Which host behind the address.
    pub host: u64,
    /// Whether that host was seen to connect to the API.
    pub client: Option<bool>,
    /// How it asked.
    pub transport: Transport,
    /// The resolver.
    pub server: IpAddr,
    /// Who runs it.
    pub provider: Option<Arc<str>>,
    /// The name, or a keyed hash of it.
    pub name: Option<Arc<str>>,
}

/// A contact, told once for all that are alike within some seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// The last of them by the sensor's clock, unix milliseconds.
    pub last_ms: u64,
    /// Who made it, as this gateway sees it.
    pub address: IpAddr,
    /// Which host behind the address.
    pub host: u64,
    /// Whether that host was seen to connect to the API.
    pub client: Option<bool>,
    /// Where to.
    pub destination: IpAddr,
    /// To which port there.
    pub port: u16,
}

/// How a name was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Plain DNS over UDP.
    Udp,
    /// Plain DNS over TCP.
    Tcp,
    /// DNS over TLS.
    Dot,
    /// DNS over QUIC.
    Doq,
    /// DNS over HTTPS, on TCP.
    Doh,
    /// DNS over HTTP/3.
    Doh3,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Udp, Self::Tcp, Self::Dot, Self::Doq, Self::Doh, Self::Doh3];

    /// Its name in reports and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Dot => "dot",
            Self::Doq => "doq",
            Self::Doh => "doh",
            Self::Doh3 => "doh3",
        }
    }
}

impl Report {
    /// Reads a report, whole or not at all.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn read(json: &[u8]) -> Result<Self, Malformed> {
        if json.len() as u64 > SENSOR_REPORT_BYTES_MAX {
            return Err(Malformed::Oversize);
        }
        let Object(sent) = serde_json::from_slice::<Object<Sent<'_>>>(json).map_err(|fault| {
            let wanted = if fault.is_data() {
                "this takes a report, see ebpf-sensor/README.md: its keys, no others, each once"
            } else {
                "this is not JSON"
            };
            Malformed::Json { line: fault.line(), column: fault.column(), wanted }
        })?;
        if sent.lookups.len() + sent.contacts.len() > SENSOR_ENTRIES_MAX {
            return Err(Malformed::Entries);
        }
        let top = |key, wanted| Malformed::Key { key, wanted };
        let Object(lost) = sent.lost;
        let counts = [lost.kernel, lost.full, lost.unsent];
        if counts.iter().any(|count| *count > COUNT_MAX) {
            return Err(top("lost", "counts of at most 2^53"));
        }
        Ok(Self {
            sensor: sensor_name(&sent.sensor).ok_or_else(|| {
                top(
                    "sensor",
                    "1 to 64 of a-z, 0-9, '-', '_' and '.', the first a letter or a digit",
                )
            })?,
            run: hex(&sent.run).ok_or_else(|| top("run", HEX))?,
            sequence: Some(sent.sequence)
                .filter(within(1..=COUNT_MAX))
                .ok_or_else(|| top("sequence", "a whole number from 1 to 2^53"))?,
            sent_at_ms: Some(sent.sent_at_ms)
                .filter(within(0..=MS_MAX))
                .ok_or_else(|| top("sent_at_ms", TIME))?,
            lost: Lost { kernel: lost.kernel, full: lost.full, unsent: lost.unsent },
            lookups: all("lookups", &sent.lookups, lookup)?,
            contacts: all("contacts", &sent.contacts, contact)?,
        })
    }

    /// Lookups and contacts.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.lookups.len() + self.contacts.len()
    }
}

const HEX: &str = "16 hex digits in lower case";
const TIME: &str = "a time in unix milliseconds";
const ADDRESS: &str = "an IP address in its canonical form (RFC 5952), an IPv4 one as such";
const COUNT: &str = "a whole number from 1 to 2^53";

/// A key that is wrong, and what it may be.
type Wrong = (&'static str, &'static str);

fn all<T, U>(
    list: &'static str,
    sent: &[Object<T>],
    read: impl Fn(&T) -> Result<U, Wrong>,
) -> Result<Vec<U>, Malformed> {
    let one = |(index, Object(entry)): (usize, &Object<T>)| {
        read(entry).map_err(|(key, wanted)| Malformed::Entry { list, index, key, wanted })
    };
    sent.iter().enumerate().map(one).collect()
}

fn lookup(sent: &SentLookup<'_>) -> Result<Lookup, Wrong> {
    let named = |name: &str| Transport::ALL.into_iter().find(|other| other.name() == name);
    if !["port", "address", "name"].contains(&&*sent.sign) {
        return Err(("sign", "port, address or name"));
    }
    counted(sent.count)?;
    Ok(Lookup {
        last_ms: times(sent.first_ms, sent.last_ms)?,
        address: address(&sent.address).ok_or(("address", ADDRESS))?,
        host: hex(&sent.host).ok_or(("host", HEX))?,
        client: sent.client,
        transport: named(&sent.transport)
            .ok_or(("transport", "udp, tcp, dot, doq, doh or doh3"))?,
        server: address(&sent.server).ok_or(("server", ADDRESS))?,
        provider: line(sent.provider.as_deref(), SENSOR_NAME_CHARS_MAX)
            .ok_or(("provider", "null, or at most 64 characters without control characters"))?,
        name: line(sent.name.as_deref(), SENSOR_LOOKED_UP_CHARS_MAX)
            .ok_or(("name", "null, or at most 1020 characters without control characters"))?,
    })
}

fn contact(sent: &SentContact<'_>) -> Result<Contact, Wrong> {
    if !["tcp", "udp"].contains(&&*sent.protocol) {
        return Err(("protocol", "tcp or udp"));
    }
    counted(sent.count)?;
    Ok(Contact {
        last_ms: times(sent.first_ms, sent.last_ms)?,
        address: address(&sent.address).ok_or(("address", ADDRESS))?,
        host: hex(&sent.host).ok_or(("host", HEX))?,
        client: sent.client,
        destination: address(&sent.destination).ok_or(("destination", ADDRESS))?,
        port: sent.port,
    })
}

fn within(range: RangeInclusive<u64>) -> impl Fn(&u64) -> bool {
    move |number| range.contains(number)
}

fn counted(count: u64) -> Result<(), Wrong> {
    within(1..=COUNT_MAX)(&count).then_some(()).ok_or(("count", COUNT))
}

/// The later of both times.
fn times(first_ms: u64, last_ms: u64) -> Result<u64, Wrong> {
    if !within(0..=MS_MAX)(&first_ms) {
        return Err(("first_ms", TIME));
    }
    let last = Some(last_ms).filter(within(first_ms..=MS_MAX));
    last.ok_or(("last_ms", "a time in unix milliseconds, not before first_ms"))
}

fn sensor_name(text: &str) -> Option<Arc<str>> {
    let begins = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let goes_on = |byte: &u8| begins(byte) || matches!(byte, b'-' | b'_' | b'.');
    let bytes = text.as_bytes();
    let fits = bytes.first().is_some_and(begins) && bytes.len() <= SENSOR_NAME_CHARS_MAX;
    (fits && bytes.iter().all(goes_on)).then(|| text.into())
}

fn hex(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (text.len() == 16 && digits).then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// One address has one text, so that whoever looks for it finds it.
fn address(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.parse().ok()?;
    (ip.to_canonical() == ip && ip.to_string() == text).then_some(ip)
}

/// `None` where the text may not stand there. An empty one tells nothing.
#[expect(clippy::option_option, reason = "whether it may stand there, and whether it does")]
fn line(text: Option<&str>, chars_max: usize) -> Option<Option<Arc<str>>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Some(None) };
    let fits = text.chars().count() <= chars_max && !text.chars().any(char::is_control);
    fits.then(|| Some(text.into()))
}

/// A JSON object, and never the list of its values that derived readers take as well.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Keys<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, keys: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(keys)).map(Object)
            }
        }

        from.deserialize_map(Keys(PhantomData))
    }
}

/// A report as it is sent.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Sent<'a> {
    #[serde(borrow)]
    sensor: Cow<'a, str>,
    #[serde(borrow)]
    run: Cow<'a, str>,
    #[serde(deserialize_with = "whole")]
    sequence: u64,
    #[serde(deserialize_with = "whole")]
    sent_at_ms: u64,
    lost: Object<SentLost>,
    #[serde(borrow)]
    lookups: Vec<Object<SentLookup<'a>>>,
    #[serde(borrow)]
    contacts: Vec<Object<SentContact<'a>>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SentLost {
    #[serde(deserialize_with = "whole")]
    kernel: u64,
    #[serde(deserialize_with = "whole")]
    full: u64,
    #[serde(deserialize_with = "whole")]
    unsent: u64,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SentLookup<'a> {
    #[serde(deserialize_with = "whole")]
    first_ms: u64,
    #[serde(deserialize_with = "whole")]
    last_ms: u64,
    #[serde(borrow)]
    address: Cow<'a, str>,
    #[serde(borrow)]
    host: Cow<'a, str>,
    client: Option<bool>,
    #[serde(borrow)]
    transport: Cow<'a, str>,
    #[serde(borrow)]
    server: Cow<'a, str>,
    #[serde(borrow)]
    provider: Option<Cow<'a, str>>,
    #[serde(borrow)]
    sign: Cow<'a, str>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(deserialize_with = "whole")]
    count: u64,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SentContact<'a> {
    #[serde(deserialize_with = "whole")]
    first_ms: u64,
    #[serde(deserialize_with = "whole")]
    last_ms: u64,
    #[serde(borrow)]
    address: Cow<'a, str>,
    #[serde(borrow)]
    host: Cow<'a, str>,
    client: Option<bool>,
    #[serde(borrow)]
    destination: Cow<'a, str>,
    #[serde(deserialize_with = "whole")]
    port: u16,
    #[serde(borrow)]
    protocol: Cow<'a, str>,
    #[serde(deserialize_with = "whole")]
    count: u64,
}

/// Reads bytes as a report. For `fuzz/` and its smoke test.
#[doc(hidden)]
pub fn fuzz_report(data: &[u8]) {
    if let Ok(report) = Report::read(data) {
        assert!(report.entries() <= SENSOR_ENTRIES_MAX && report.sequence > 0);
        for lookup in &report.lookups {
            assert!(lookup.last_ms <= MS_MAX && lookup.address.to_canonical() == lookup.address);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// A report of one lookup and one contact.
    pub(in crate::sensor) fn sample() -> Value {
        json!({
            "sensor": "egress-1", "run": "5f0c1d2e3a4b5c6d", "sequence": 42,
            "sent_at_ms": 1_790_000_000_000_u64,
            "lost": {"kernel": 1, "full": 2, "unsent": 3},
            "lookups": [{
                "first_ms": 1_789_999_995_000_u64, "last_ms": 1_789_999_998_000_u64,
                "address": "203.0.113.7", "host": "9f3a5c0d1e2b4a68", "client": true,
                "transport": "doh3", "server": "2606:4700:4700::1111", "provider": "cloudflare",
                "sign": "address", "name": null, "count": 3
            }],
            "contacts": [{
                "first_ms": 1_789_999_996_000_u64, "last_ms": 1_789_999_996_000_u64,
                "address": "2001:db8::7", "host": "0000000000000001", "client": null,
                "destination": "198.51.100.9", "port": 443, "protocol": "tcp", "count": 1
            }]
        })
    }

    fn read(report: &Value) -> Result<Report, Malformed> {
        Report::read(report.to_string().as_bytes())
    }

    #[test]
    fn a_report_arrives_as_it_was_sent() {
        let report = read(&sample()).unwrap();
        let expected = Report {
            sensor: "egress-1".into(),
            run: 0x5f0c_1d2e_3a4b_5c6d,
            sequence: 42,
            sent_at_ms: 1_790_000_000_000,
            lost: Lost { kernel: 1, full: 2, unsent: 3 },
            lookups: vec![Lookup {
                last_ms: 1_789_999_998_000,
                address: [203, 0, 113, 7].into(),
                host: 0x9f3a_5c0d_1e2b_4a68,
                client: Some(true),
                transport: Transport::Doh3,
                server: "2606:4700:4700::1111".parse().unwrap(),
                provider: Some("cloudflare".into()),
                name: None,
            }],
            contacts: vec![Contact {
                last_ms: 1_789_999_996_000,
                address: "2001:db8::7".parse().unwrap(),
                host: 1,
                client: None,
                destination: [198, 51, 100, 9].into(),
                port: 443,
            }],
        };
        assert_eq!(report, expected);
        for (name, transport) in [
            ("udp", Transport::Udp),
            ("tcp", Transport::Tcp),
            ("dot", Transport::Dot),
            ("doq", Transport::Doq),
            ("doh", Transport::Doh),
        ] {
            let mut other = sample();
            other["lookups"][0]["transport"] = json!(name);
            assert_eq!(read(&other).unwrap().lookups[0].transport, transport);
        }
        // What hosts and lists of resolvers may bring is no reason to refuse a report.
        let mut odd = sample();
        odd["contacts"][0]["port"] = json!(0);
        odd["lookups"][0]["name"] = json!("a b\\004.example");
        let read_odd = |provider: &str| {
            let mut odd = odd.clone();
            odd["lookups"][0]["provider"] = json!(provider);
            let lookup = read(&odd).unwrap().lookups.remove(0);
            (lookup.provider.as_deref().map(ToOwned::to_owned), lookup.name)
        };
        let name: Option<Arc<str>> = Some("a b\\004.example".into());
        assert_eq!(read_odd("Résolveur public"), (Some("Résolveur public".into()), name.clone()));
        assert_eq!(read_odd(""), (None, name));
        // A float may be a whole number, and nothing is a report as well: the sensor lives.
        let mut alive = sample();
        (alive["lookups"], alive["contacts"]) = (json!([]), json!([]));
        alive["sequence"] = json!(7.0);
        let alive = read(&alive).unwrap();
        assert_eq!((alive.entries(), alive.sequence), (0, 7));
    }

    #[test]
    fn whatever_is_wrong_is_named_and_never_quoted() {
        const SECRET: &str = "planted-secret";
        for (pointer, values, part) in [
            (
                "/sensor",
                vec![
                    json!(""),
                    json!("-a"),
                    json!("A"),
                    json!("a b"),
                    json!("a".repeat(65)),
                    json!("é"),
                ],
                "sensor must be",
            ),
            (
                "/run",
                vec![
                    json!("5F0C1D2E3A4B5C6D"),
                    json!("5f0c1d2e3a4b5c6"),
                    json!("+f0c1d2e3a4b5c6d"),
                    json!(SECRET),
                ],
                "run must be 16 hex",
            ),
            ("/sequence", vec![json!(0), json!(1_u64 << 54)], "sequence must be"),
            (
                "/sequence",
                vec![json!(-1), json!("1"), json!(1.5), json!(null)],
                "this takes a report",
            ),
            ("/sent_at_ms", vec![json!(MS_MAX + 1)], "sent_at_ms must be"),
            ("/lost/kernel", vec![json!(u64::MAX)], "lost must be"),
            (
                "/lost",
                vec![json!([1, 2, 3]), json!({}), json!({"kernel": 0, "full": 0}), json!(SECRET)],
                "this takes a report",
            ),
            (
                "/lookups",
                vec![json!({}), json!([[]]), json!([SECRET]), json!(null)],
                "this takes a report",
            ),
            (
                "/lookups/0/address",
                vec![
                    json!("203.0.113.07"),
                    json!("203.0.113.7/32"),
                    json!("::ffff:203.0.113.7"),
                    json!("2001:DB8::7"),
                    json!("2001:db8:0::7"),
                    json!("fe80::1%eth0"),
                    json!(SECRET),
                ],
                "lookups[0].address must be",
            ),
            (
                "/lookups/0/host",
                vec![json!("9f3a"), json!(SECRET)],
                "lookups[0].host must be 16 hex",
            ),
            ("/lookups/0/client", vec![json!("yes"), json!(1)], "this takes a report"),
            (
                "/lookups/0/transport",
                vec![json!("quic"), json!("DOH"), json!("")],
                "lookups[0].transport must be",
            ),
            ("/lookups/0/server", vec![json!("dns.google")], "lookups[0].server must be"),
            (
                "/lookups/0/provider",
                vec![json!("a\tb"), json!("é".repeat(65))],
                "lookups[0].provider must be",
            ),
            ("/lookups/0/sign", vec![json!("guess")], "lookups[0].sign must be"),
            (
                "/lookups/0/name",
                vec![json!("a\nb"), json!("n".repeat(1_021))],
                "lookups[0].name must be",
            ),
            ("/lookups/0/count", vec![json!(0)], "lookups[0].count must be"),
            ("/lookups/0/first_ms", vec![json!(MS_MAX + 1)], "lookups[0].first_ms must be"),
            ("/lookups/0/last_ms", vec![json!(1), json!(MS_MAX + 1)], "lookups[0].last_ms must be"),
            ("/contacts/0/destination", vec![json!("")], "contacts[0].destination must be"),
            ("/contacts/0/port", vec![json!(65_536), json!("443")], "this takes a report"),
            ("/contacts/0/protocol", vec![json!("sctp")], "contacts[0].protocol must be"),
        ] {
            for value in values {
                let mut report = sample();
                *report.pointer_mut(pointer).unwrap() = value.clone();
                let error = read(&report).unwrap_err().to_string();
                assert!(error.contains(part), "{pointer} {value}: {error}");
                assert!(!error.contains("planted"), "{error}");
            }
        }
        for (pointer, key) in
            [("", "more"), ("/lost", "more"), ("/lookups/0", "more"), ("/contacts/0", SECRET)]
        {
            let mut report = sample();
            report.pointer_mut(pointer).unwrap()[key] = json!(SECRET);
            let error = read(&report).unwrap_err().to_string();
            assert!(error.contains("this takes a report") && !error.contains("planted"), "{error}");
        }
        let text = sample().to_string();
        for (wrong, part) in [
            (text.replacen("\"count\":3", "\"count\":3,\"count\":3", 1), "this takes a report"),
            (text.clone() + "{}", "this is not JSON"),
            (text[..text.len() - 1].to_owned(), "this is not JSON"),
            (format!("[{text}]"), "this takes a report"),
        ] {
            assert_ne!(wrong, text);
            let error = Report::read(wrong.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("line 1, column ") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_report_has_bounds() {
        let mut report = sample();
        let lookup = report["lookups"][0].clone();
        report["lookups"] = vec![lookup; SENSOR_ENTRIES_MAX - 1].into();
        assert_eq!(read(&report).unwrap().entries(), SENSOR_ENTRIES_MAX);
        let contact = report["contacts"][0].clone();
        report["contacts"] = vec![contact; 2].into();
        assert_eq!(read(&report), Err(Malformed::Entries));
        let mut long = sample().to_string().into_bytes();
        long.resize(SENSOR_REPORT_BYTES_MAX as usize, b' ');
        assert!(Report::read(&long).is_ok());
        long.push(b' ');
        assert_eq!(Report::read(&long), Err(Malformed::Oversize));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_report(&data);
        }

        #[test]
        fn changed_reports_never_panic(
            changes in proptest::collection::vec(
                (any::<proptest::sample::Index>(), prop_oneof![
                    proptest::sample::select(b"\"{}[],:\\0-e.1f\0\xff".to_vec()), any::<u8>(),
                ], 0..3_usize), 1..6),
        ) {
            let mut data = sample().to_string().into_bytes();
            for (index, byte, what) in changes {
                let at = index.index(data.len());
                match what {
                    0 => data[at] = byte,
                    1 => data.insert(at, byte),
                    _ => drop(data.drain(at..(at + 9).min(data.len() - 1).max(at))),
                }
            }
            fuzz_report(&data);
        }

        #[test]
        fn an_address_has_one_text(bits in any::<u128>(), v4 in any::<u32>()) {
            for ip in [IpAddr::from(bits.to_be_bytes()), IpAddr::from(v4.to_be_bytes())] {
                let canonical = ip.to_canonical();
                prop_assert_eq!(address(&canonical.to_string()), Some(canonical));
                if let IpAddr::V6(ip) = ip {
                    let long = ip.segments().map(|part| format!("{part:04x}")).join(":");
                    prop_assert!(long == ip.to_string() || address(&long).is_none());
                }
            }
        }
    }
}
