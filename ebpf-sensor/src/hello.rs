//! The ClientHello: which server a TLS or QUIC client asks for.
//!
//! Sources: RFC 8446, sections 4.1.2 and 5.1 (message and records), RFC 6066, section 3 (server name),
//! RFC 7301 (ALPN), RFC 9849 (encrypted ClientHello), RFC 9001, section 4 (the same message in QUIC).
//!
//! A reader of our own, not `rustls::server::Acceptor`: that one wants the whole message, refuses hellos
//! without `signature_algorithms` (TLS 1.1 and older), does not tell whether ECH is offered, and wants
//! QUIC's handshake bytes wrapped into records. The kernel copies 4096 bytes of a segment at most, so
//! a name must be read from a hello whose end never comes. Lengths are taken strictly; what Acceptor
//! reads is read alike, which the tests check.

use std::borrow::Cow;

/// The longest hello; with post-quantum shares, ECH and padding they stay under 4 KB.
pub const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;
/// The longest payload of a record (RFC 8446, section 5.1, and the slack that TLS 1.2 allows).
const RECORD_BYTES_MAX: usize = 16 * 1024 + 2048;
/// ALPN names that are kept.
const ALPN_MAX: usize = 16;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// What a hello tells, as far as its bytes go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The server's host name: lower case, no last dot. With ECH the outer one.
    pub server_name: Option<String>,
    /// The application protocols, in order.
    pub alpn: Vec<String>,
    /// Whether an encrypted ClientHello is offered, real or GREASE.
    pub ech: bool,
    /// Whether the message was read to its end.
    pub whole: bool,
}

/// Why bytes are no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHello {
    /// Other records, or another handshake message.
    #[error("no ClientHello")]
    Other,
    /// Longer than [`HANDSHAKE_BYTES_MAX`].
    #[error("the ClientHello is too long")]
    TooLong,
    /// A length in it cannot be.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

/// Reads a hello from the start of a TLS stream: records, of which the last may be cut.
///
/// # Errors
/// When the bytes cannot become a ClientHello, whatever follows.
pub fn from_records(stream: &[u8]) -> Result<Hello, NotHello> {
    let mut handshake = Cow::Borrowed(&[][..]);
    let mut rest = stream;
    loop {
        match rest {
            [HANDSHAKE, 3, ..] | [HANDSHAKE] | [] => {}
            _ => return Err(NotHello::Other),
        }
        let Some((header, after)) = rest.split_first_chunk::<5>() else { break };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > RECORD_BYTES_MAX {
            return Err(NotHello::Malformed("record"));
        }
        let (part, after) = after.split_at(length.min(after.len()));
        if handshake.is_empty() {
            handshake = Cow::Borrowed(part);
        } else {
            handshake.to_mut().extend_from_slice(part);
        }
        // What follows the hello (early data, say) is not looked at.
        if part.len() < length
            || handshake_bytes(&handshake).is_some_and(|of| handshake.len() >= of)
        {
            break;
        }
        rest = after;
    }
    from_handshake(&handshake)
}

/// Reads a hello from handshake bytes, as QUIC's CRYPTO frames carry them; the end may be missing.
///
/// # Errors
/// When the bytes cannot become a ClientHello, whatever follows.
pub fn from_handshake(bytes: &[u8]) -> Result<Hello, NotHello> {
    if bytes.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(NotHello::Other);
    }
    let Some(length) = handshake_bytes(bytes) else { return Ok(Hello::default()) };
    if length > HANDSHAKE_BYTES_MAX {
        return Err(NotHello::TooLong);
    }
    let whole = bytes.len() >= length;
    let body = &bytes[4..length.min(bytes.len())];
    let mut hello = Hello::default();
    match hello.read(&mut Reader { bytes: body, whole, left: length - 4 }) {
        Ok(()) => hello.whole = true,
        Err(Stop::Cut) => {}
        Err(Stop::Not(error)) => return Err(error),
    }
    Ok(hello)
}

/// The length of the message with its header of four bytes.
fn handshake_bytes(bytes: &[u8]) -> Option<usize> {
    let [_, a, b, c] = *bytes.first_chunk::<4>()?;
    Some(4 + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)))
}

impl Hello {
    fn read(&mut self, body: &mut Reader<'_>) -> Result<(), Stop> {
        body.take(2 + 32, "version and random")?;
        if body.vector8("session id")?.len() > 32 {
            return Err(malformed("session id"));
        }
        let suites = body.vector16("cipher suites")?;
        if suites.is_empty() || suites.len() % 2 != 0 {
            return Err(malformed("cipher suites"));
        }
        if body.vector8("compression methods")?.is_empty() {
            return Err(malformed("compression methods"));
        }
        if body.left == 0 {
            return Ok(());
        }
        let length = body.u16("extensions")?;
        if length != body.left {
            return Err(malformed("extensions"));
        }
        let mut named = false;
        while body.left > 0 {
            let kind = body.u16("extension")?;
            let data = body.vector16("extension")?;
            match kind {
                0 if !named => {
                    named = true;
                    self.server_name = server_name(data).ok_or(malformed("server name"))?;
                }
                16 if self.alpn.is_empty() => {
                    self.alpn = alpn(data).ok_or(malformed("ALPN"))?;
                }
                0xfe0d => self.ech = true,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The host name of the extension, where it is one (RFC 6066: ASCII, no address).
fn server_name(data: &[u8]) -> Option<Option<String>> {
    let mut list = Reader::whole(data);
    let mut names = Reader::whole(list.vector16("").ok()?);
    let mut found = None;
    while names.left > 0 {
        let kind = names.take(1, "").ok()?[0];
        let name = names.vector16("").ok()?;
        if kind == 0 && found.is_none() {
            found = host_name(name);
        }
    }
    (list.left == 0).then_some(found)
}

fn alpn(data: &[u8]) -> Option<Vec<String>> {
    let mut list = Reader::whole(data);
    let mut names = Reader::whole(list.vector16("").ok()?);
    let mut found = Vec::new();
    while names.left > 0 {
        let name = names.vector8("").ok()?;
        if found.len() < ALPN_MAX {
            found.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    (list.left == 0).then_some(found)
}

/// Letters, digits, `-`, `_` and dots; lower case, without the last dot.
pub(crate) fn host_name(name: &[u8]) -> Option<String> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let label = |label: &[u8]| {
        (1..=63).contains(&label.len())
            && label.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
    };
    let fits = name.len() <= 253 && name.split(|byte| *byte == b'.').all(label);
    let name = fits.then(|| str::from_utf8(name).ok()).flatten()?;
    Some(name.to_ascii_lowercase())
}

enum Stop {
    /// The bytes end; more may come.
    Cut,
    Not(NotHello),
}

fn malformed(field: &'static str) -> Stop {
    Stop::Not(NotHello::Malformed(field))
}

/// Takes fields; tells one that the message has no room for from one that was not copied.
struct Reader<'a> {
    bytes: &'a [u8],
    /// Whether `bytes` are all there is.
    whole: bool,
    /// Bytes that the message has from here on, of which `bytes` may hold fewer.
    left: usize,
}

impl<'a> Reader<'a> {
    fn whole(bytes: &'a [u8]) -> Self {
        Self { bytes, whole: true, left: bytes.len() }
    }

    fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], Stop> {
        if length > self.left {
            return Err(malformed(field));
        }
        let Some((taken, rest)) = self.bytes.split_at_checked(length) else {
            return Err(if self.whole { malformed(field) } else { Stop::Cut });
        };
        self.bytes = rest;
        self.left -= length;
        Ok(taken)
    }

    fn u16(&mut self, field: &'static str) -> Result<usize, Stop> {
        let bytes = self.take(2, field)?;
        Ok(usize::from(bytes[0]) << 8 | usize::from(bytes[1]))
    }

    fn vector8(&mut self, field: &'static str) -> Result<&'a [u8], Stop> {
        let length = usize::from(self.take(1, field)?[0]);
        self.take(length, field)
    }

    fn vector16(&mut self, field: &'static str) -> Result<&'a [u8], Stop> {
        let length = self.u16(field)?;
        self.take(length, field)
    }
}

/// For `fuzz/`: bytes as records and as handshake bytes.
pub fn fuzz_hello_sni(bytes: &[u8]) {
    for hello in [from_records(bytes), from_handshake(bytes)].into_iter().flatten() {
        assert!(hello.alpn.len() <= ALPN_MAX);
        assert!(hello.server_name.is_none_or(|name| host_name(name.as_bytes()) == Some(name)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use rustls::server::Acceptor;

    use super::*;
    use crate::testing::{client_hello, records};

    /// The record that a rustls client sends.
    fn rustls_hello(
        name: &str,
        alpn: &[&str],
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Vec<u8> {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut record = Vec::new();
        client.write_tls(&mut record).unwrap();
        record
    }

    fn acceptor(stream: &[u8]) -> Option<(Option<String>, Vec<String>)> {
        let mut acceptor = Acceptor::default();
        acceptor.read_tls(&mut &*stream).ok()?;
        let accepted = acceptor.accept().ok()??;
        let hello = accepted.client_hello();
        let alpn = hello.alpn().into_iter().flatten();
        let alpn = alpn.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        Some((hello.server_name().map(ToOwned::to_owned), alpn))
    }

    #[test]
    fn hellos_of_rustls_are_read_as_its_acceptor_reads_them() {
        for versions in
            [rustls::ALL_VERSIONS, &[&rustls::version::TLS12], &[&rustls::version::TLS13]]
        {
            for alpn in [&["h2", "http/1.1"][..], &["dot"], &[]] {
                let record = rustls_hello("Dns.Example", alpn, versions);
                let hello = from_records(&record).unwrap();
                let (name, names) = acceptor(&record).unwrap();
                assert_eq!(hello.server_name, name.map(|name| name.to_ascii_lowercase()));
                assert_eq!(hello.server_name.as_deref(), Some("dns.example"));
                assert_eq!(hello.alpn, names);
                assert_eq!(hello.alpn, alpn);
                assert!(hello.whole && !hello.ech);
                assert_eq!(from_handshake(&record[5..]), Ok(hello));
            }
        }
        assert_eq!(
            from_records(&rustls_hello("192.0.2.1", &[], rustls::ALL_VERSIONS))
                .unwrap()
                .server_name,
            None
        );
    }

    #[test]
    fn hellos_of_other_libraries_are_read() {
        let web = ["h2", "http/1.1"];
        let cases: [(&str, &[u8], &[&str], bool); 9] = [
            ("chrome", include_bytes!("../tests/hellos/chrome.bin"), &web, true),
            ("firefox", include_bytes!("../tests/hellos/firefox.bin"), &web, true),
            ("safari", include_bytes!("../tests/hellos/safari.bin"), &web, false),
            ("curl", include_bytes!("../tests/hellos/curl.bin"), &web, false),
            ("kdig", include_bytes!("../tests/hellos/kdig.bin"), &["dot"], false),
            ("node", include_bytes!("../tests/hellos/node.bin"), &["h2"], false),
            ("openssl", include_bytes!("../tests/hellos/openssl.bin"), &["dot"], false),
            ("openssl, TLS 1.0", include_bytes!("../tests/hellos/openssl-tls1.bin"), &[], false),
            ("python", include_bytes!("../tests/hellos/python.bin"), &web, false),
        ];
        for (who, stream, alpn, ech) in cases {
            let hello = from_records(stream).unwrap();
            assert_eq!(hello.server_name.as_deref(), Some("dns.example"), "{who}");
            assert_eq!((hello.ech, hello.whole), (ech, true), "{who}");
            assert_eq!(hello.alpn, alpn, "{who}");
            for size in [1, 50, 500] {
                assert_eq!(
                    from_records(&records(&stream[5..], size)).as_ref(),
                    Ok(&hello),
                    "{who}"
                );
            }
            // What rustls' own reader takes, it takes alike.
            let expected = (who != "openssl, TLS 1.0").then_some((hello.server_name, hello.alpn));
            assert_eq!(acceptor(stream), expected, "{who}");
        }
    }

    #[test]
    fn a_hello_is_read_however_it_is_cut() {
        let handshake = client_hello(Some("dns.example"), &["h2"], true, 1800);
        let whole = from_handshake(&handshake).unwrap();
        assert_eq!(whole.server_name.as_deref(), Some("dns.example"));
        assert_eq!(
            (whole.alpn.as_slice(), whole.ech, whole.whole),
            (&["h2".to_owned()][..], true, true)
        );
        for record in [1, 2, 3, 4, 5, 100, 1000, 16_384] {
            let stream = records(&handshake, record);
            assert_eq!(from_records(&stream).as_ref(), Ok(&whole), "records of {record}");
            let step = 1.max(stream.len() / 300);
            for end in (0..stream.len()).step_by(step) {
                let cut = from_records(&stream[..end]).unwrap();
                assert!(!cut.whole && cut.server_name.is_none_or(|name| name == "dns.example"));
            }
        }
        let stream = records(&handshake, 16_384);
        assert_eq!(
            from_records(&stream[..stream.len() - 1]).unwrap().server_name,
            whole.server_name
        );
        assert_eq!(from_records(&[&stream[..], &[20, 3, 3, 0, 1, 1]].concat()), Ok(whole));
    }

    #[test]
    fn a_large_hello_is_read_and_a_huge_one_refused() {
        let large = client_hello(Some("dns.example"), &[], false, 60_000);
        assert_eq!(
            from_records(&records(&large, 16_384)).unwrap().server_name.as_deref(),
            Some("dns.example")
        );
        let huge = [&[1, 1, 0, 0][..], &large[4..]].concat();
        assert_eq!(from_handshake(&huge), Err(NotHello::TooLong));
    }

    #[test]
    fn what_is_no_hello_is_told_at_once() {
        let other: [&[u8]; 6] = [
            b"GET / HTTP/1.1\r\n",
            b"\x16\x02\x00\x00\x05",
            b"\x15\x03\x01\x00\x02\x02\x28",
            b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
            b"\x80\x2e\x01\x03\x01",
            b"SSH-2.0-a",
        ];
        for bytes in other {
            assert_eq!(from_records(bytes), Err(NotHello::Other), "{bytes:?}");
        }
        assert_eq!(from_records(b"\x16\x03\x01\x00\x00"), Err(NotHello::Malformed("record")));
        assert_eq!(from_records(b"\x16\x03\x01\xff\xff"), Err(NotHello::Malformed("record")));
        for start in [&b""[..], b"\x16", b"\x16\x03\x01", b"\x16\x03\x01\x00\x05\x01"] {
            assert_eq!(from_records(start), Ok(Hello::default()));
        }
    }

    #[test]
    fn a_hello_of_the_oldest_versions_is_read() {
        // TLS 1.0: no extensions at all, and with the server name alone.
        let mut bare = vec![1, 0, 0, 41, 3, 1];
        bare.extend([7; 32]);
        bare.extend([0, 0, 2, 0, 0x2f, 1, 0]);
        let hello = from_handshake(&bare).unwrap();
        assert_eq!(hello, Hello { whole: true, ..Hello::default() });
        assert!(acceptor(&records(&bare, 1000)).is_none(), "Acceptor wants signature_algorithms");
    }

    #[test]
    fn wrong_lengths_are_malformed() {
        let handshake = client_hello(Some("dns.example"), &["h2"], false, 0);
        // Session id, cipher suites, compression, extensions, each too long for the message.
        for at in [38, 39, 45, 47] {
            let mut bytes = handshake.clone();
            bytes[at] = 0xff;
            assert!(matches!(from_handshake(&bytes), Err(NotHello::Malformed(_))), "byte {at}");
        }
    }

    #[test]
    fn a_name_that_is_none_is_not_told() {
        let long = "a".repeat(300);
        for name in ["", "a..b", "a b", "a\nb", "ä.example", long.as_str()] {
            let hello = from_handshake(&client_hello(Some(name), &[], false, 0)).unwrap();
            assert_eq!(hello.server_name, None, "{name:?}");
        }
        let dotted = from_handshake(&client_hello(Some("A_b-c.Example."), &[], false, 0)).unwrap();
        assert_eq!(dotted.server_name.as_deref(), Some("a_b-c.example"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz_hello_sni(&bytes);
            fuzz_hello_sni(&[&[22, 3, 1, 1, 0, 1, 0, 0, 200, 3, 3][..], &bytes].concat());
        }

        #[test]
        fn no_changed_hello_panics(at in any::<usize>(), value in any::<u8>(), record in 1_usize..300) {
            let mut bytes = client_hello(Some("dns.example"), &["h2"], true, 30);
            let length = bytes.len();
            bytes[at % length] = value;
            fuzz_hello_sni(&bytes);
            fuzz_hello_sni(&records(&bytes, record));
        }
    }
}
