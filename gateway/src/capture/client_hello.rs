//! The ClientHello: what a TLS client says of itself before any key is agreed.
//!
//! It matters because the library that speaks TLS shows in the order and choice of cipher suites,
//! extensions, groups and signature algorithms, whatever the `user-agent` claims. Sources:
//! RFC 8446, section 4.1.2 (the message), RFC 8701 (GREASE), RFC 6066, section 3 (server name),
//! RFC 7301 (ALPN), the encrypted_client_hello extension (0xfe0d) and the JA3 method (2017).
//!
//! Lengths are taken strictly, as a TLS server takes them. Extensions that are unknown here are
//! recorded by type and skipped, and a hello may end before the extensions block.

use detectors::TlsCapture;
use md5::{Digest, Md5};

use super::ja4;

/// Extension types that are read here; all others are recorded by number only.
pub(super) mod extension {
    pub(crate) const SERVER_NAME: u16 = 0;
    pub(crate) const SUPPORTED_GROUPS: u16 = 10;
    pub(crate) const EC_POINT_FORMATS: u16 = 11;
    pub(crate) const SIGNATURE_ALGORITHMS: u16 = 13;
    pub(crate) const ALPN: u16 = 16;
    pub(crate) const SESSION_TICKET: u16 = 35;
    pub(crate) const PRE_SHARED_KEY: u16 = 41;
    pub(crate) const SUPPORTED_VERSIONS: u16 = 43;
    pub(crate) const KEY_SHARE: u16 = 51;
    pub(crate) const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
}

/// Groups with a post-quantum part: the ML-KEM hybrids and pure ML-KEM of the IANA registry, and
/// the Kyber drafts that browsers shipped before.
const POST_QUANTUM_GROUPS: [u16; 11] = [
    0x11eb, // SecP256r1MLKEM768
    0x11ec, // X25519MLKEM768
    0x11ed, // SecP384r1MLKEM1024
    0x11ee, // curveSM2MLKEM768
    0x0200, // MLKEM512
    0x0201, // MLKEM768
    0x0202, // MLKEM1024
    0x6399, // X25519Kyber768Draft00
    0x639a, // SecP256r1Kyber768Draft00
    0xfe30, // X25519Kyber512Draft00
    0xfe31, // X25519Kyber768Draft00, first number
];

/// Why a hello message could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The handshake message is of another type.
    #[error("handshake message of type {found}, not {expected}")]
    NotHello {
        /// Type asked for.
        expected: u8,
        /// Type of the message.
        found: u8,
    },
    /// The message ends inside a field.
    #[error("the hello ends inside its {0}")]
    Truncated(&'static str),
    /// A field's length is not one that the field may have.
    #[error("the hello's {0} has a length that it may not have")]
    BadLength(&'static str),
    /// Bytes follow where the message should end.
    #[error("bytes follow the hello's {0}")]
    Trailing(&'static str),
    /// The contents of an extension are malformed.
    #[error("extension {0} of the hello is malformed")]
    Extension(u16),
}

/// A ClientHello, lists in wire order with GREASE values left in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// `legacy_version`: 0x0303 since TLS 1.2.
    pub legacy_version: u16,
    /// `legacy_session_id`, at most 32 bytes.
    pub session_id: Vec<u8>,
    /// Cipher suites.
    pub ciphers: Vec<u16>,
    /// Extension types.
    pub extensions: Vec<u16>,
    /// `supported_groups`.
    pub groups: Vec<u16>,
    /// `ec_point_formats`.
    pub point_formats: Vec<u8>,
    /// `signature_algorithms`.
    pub signature_algorithms: Vec<u16>,
    /// `supported_versions`.
    pub supported_versions: Vec<u16>,
    /// ALPN protocol names.
    pub alpn: Vec<Vec<u8>>,
    /// The first host name of `server_name`.
    pub sni: Option<String>,
    /// Groups of the key shares.
    pub key_share_groups: Vec<u16>,
    /// Whether a session ticket or a pre-shared key is offered.
    pub ticket: bool,
    /// Whether any list carries a GREASE value (RFC 8701).
    pub grease: bool,
    /// Whether the hello carries an encrypted_client_hello extension, real or GREASE.
    pub ech: bool,
    /// Length of the message with its four-byte header.
    pub message_bytes: usize,
}

impl ClientHello {
    /// Reads a ClientHello handshake message, its four-byte header included.
    ///
    /// # Errors
    /// When the message is not a ClientHello or a length in it is wrong.
    pub fn parse(handshake_message: &[u8]) -> Result<Self, HelloError> {
        let mut body = Reader::hello(handshake_message, CLIENT_HELLO)?;
        let mut hello = Self { message_bytes: handshake_message.len(), ..Self::default() };
        hello.legacy_version = body.u16("version")?;
        body.take(32, "random")?;
        let session_id = body.list8("session id")?;
        if session_id.0.len() > 32 {
            return Err(HelloError::BadLength("session id"));
        }
        hello.session_id = session_id.0.to_vec();
        let ciphers = body.list16("cipher suites")?;
        hello.ciphers = ciphers.u16s().ok_or(HelloError::BadLength("cipher suites"))?;
        if body.list8("compression methods")?.0.is_empty() {
            return Err(HelloError::BadLength("compression methods"));
        }
        let mut block = Reader(&[]);
        if !body.0.is_empty() {
            block = body.list16("extensions")?;
        }
        if !body.0.is_empty() {
            return Err(HelloError::Trailing("extensions"));
        }
        while !block.0.is_empty() {
            let kind = block.u16("extensions")?;
            let contents = block.list16("extensions")?;
            // A repeated type is recorded each time, and its first contents count.
            let first = !hello.extensions.contains(&kind);
            hello.extensions.push(kind);
            if first {
                hello.read_extension(kind, contents).ok_or(HelloError::Extension(kind))?;
            }
        }
        hello.grease = hello.carries_grease();
        Ok(hello)
    }

    /// Whether a group or a key share with a post-quantum part is offered.
    #[must_use]
    pub fn post_quantum(&self) -> bool {
        self.groups
            .iter()
            .chain(&self.key_share_groups)
            .any(|group| POST_QUANTUM_GROUPS.contains(group))
    }

    /// ALPN protocol names as text.
    #[must_use]
    pub fn alpn_text(&self) -> Vec<String> {
        self.alpn.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }

    /// The JA3 string: version, ciphers, extensions, groups and point formats in decimal and wire
    /// order, GREASE removed.
    #[must_use]
    pub fn ja3(&self) -> String {
        let mut text = String::with_capacity(256);
        push_number(&mut text, self.legacy_version);
        for list in [&self.ciphers, &self.extensions, &self.groups] {
            text.push(',');
            push_numbers(&mut text, list.iter().copied().filter(|value| !is_grease(*value)));
        }
        text.push(',');
        push_numbers(&mut text, self.point_formats.iter().map(|format| u16::from(*format)));
        text
    }

    /// MD5 of the JA3 string, 32 hex digits.
    #[must_use]
    pub fn ja3_md5(&self) -> String {
        md5_hex(&self.ja3())
    }

    /// The JA4 fingerprint.
    #[must_use]
    pub fn ja4(&self) -> String {
        ja4::ja4(self)
    }

    /// The JA4 fingerprint with its lists written out in place of their hashes.
    #[must_use]
    pub fn ja4_r(&self) -> String {
        ja4::ja4_r(self)
    }

    /// What the connection's capture holds of this hello, which came in `records` TLS records and
    /// `reads` socket reads. What only the server's answer tells is left at its default:
    /// [`super::server_hello::ServerHello::complete`] fills it in.
    #[must_use]
    pub fn capture(&self, records: u16, reads: u16) -> TlsCapture {
        let ja3 = self.ja3();
        TlsCapture {
            ja3_md5: md5_hex(&ja3),
            ja3,
            ja4: self.ja4(),
            alpn: self.alpn_text(),
            sni: self.sni.clone(),
            hello_records: records,
            hello_reads: reads,
            hello_bytes: u32::try_from(self.message_bytes).unwrap_or(u32::MAX),
            grease: self.grease,
            ech: self.ech,
            post_quantum: self.post_quantum(),
            ticket: self.ticket,
            ..TlsCapture::default()
        }
    }

    fn carries_grease(&self) -> bool {
        let lists = [
            &self.ciphers,
            &self.extensions,
            &self.groups,
            &self.signature_algorithms,
            &self.supported_versions,
            &self.key_share_groups,
        ];
        lists.into_iter().flatten().any(|value| is_grease(*value))
            || self
                .alpn
                .iter()
                .any(|name| matches!(name[..], [a, b] if is_grease(u16::from_be_bytes([a, b]))))
    }

    /// Reads the extensions that fingerprints use; `None` when one is malformed.
    fn read_extension(&mut self, kind: u16, mut contents: Reader<'_>) -> Option<()> {
        match kind {
            extension::SERVER_NAME => {
                let mut names = contents.whole16()?;
                while !names.0.is_empty() {
                    let name_type = names.u8("").ok()?;
                    let name = names.list16("").ok()?;
                    // RFC 6066 knows host_name (0) only.
                    if name_type == 0 && self.sni.is_none() {
                        self.sni = Some(String::from_utf8_lossy(name.0).into_owned());
                    }
                }
            }
            extension::SUPPORTED_GROUPS => self.groups = contents.whole16()?.u16s()?,
            extension::EC_POINT_FORMATS => self.point_formats = contents.whole8()?.0.to_vec(),
            extension::SIGNATURE_ALGORITHMS => {
                self.signature_algorithms = contents.whole16()?.u16s()?;
            }
            extension::ALPN => {
                let mut names = contents.whole16()?;
                while !names.0.is_empty() {
                    self.alpn.push(names.list8("").ok()?.0.to_vec());
                }
            }
            extension::SUPPORTED_VERSIONS => self.supported_versions = contents.whole8()?.u16s()?,
            extension::KEY_SHARE => {
                let mut shares = contents.whole16()?;
                while !shares.0.is_empty() {
                    self.key_share_groups.push(shares.u16("").ok()?);
                    shares.list16("").ok()?;
                }
            }
            extension::SESSION_TICKET => self.ticket |= !contents.0.is_empty(),
            extension::PRE_SHARED_KEY => self.ticket = true,
            extension::ENCRYPTED_CLIENT_HELLO => self.ech = true,
            _ => {}
        }
        Some(())
    }
}

/// Whether a 16-bit value is one of the sixteen reserved by RFC 8701: 0x0a0a, 0x1a1a … 0xfafa.
///
/// Both bytes must be equal: 0x1a2a is not GREASE, although it has the nibbles.
#[must_use]
pub fn is_grease(value: u16) -> bool {
    let [high, low] = value.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

/// Handshake type of a ClientHello.
pub(super) const CLIENT_HELLO: u8 = 1;

/// MD5 of a fingerprint string. A name for a fingerprint, not a security measure.
#[must_use]
pub fn md5_hex(text: &str) -> String {
    hex::encode(Md5::digest(text.as_bytes()))
}

/// Appends numbers in decimal, joined by hyphens.
pub(super) fn push_numbers(text: &mut String, values: impl Iterator<Item = u16>) {
    for (index, value) in values.enumerate() {
        if index > 0 {
            text.push('-');
        }
        push_number(text, value);
    }
}

/// Appends a number in decimal, without the machinery of `format!`: a JA3 string has up to a
/// hundred of them.
pub(super) fn push_number(text: &mut String, value: u16) {
    let mut started = false;
    for divisor in [10_000, 1_000, 100, 10, 1] {
        let digit = (value / divisor % 10) as u8;
        started |= digit != 0 || divisor == 1;
        if started {
            text.push(char::from(b'0' + digit));
        }
    }
}

/// A cursor over bytes from outside: every read is checked.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// The body of a handshake message of the given type, whose length must be exact.
    pub(super) fn hello(message: &'a [u8], expected: u8) -> Result<Self, HelloError> {
        let mut reader = Self(message);
        let found = reader.u8("header")?;
        if found != expected {
            return Err(HelloError::NotHello { expected, found });
        }
        let high = reader.u8("header")?;
        let low = reader.u16("header")?;
        let length = usize::from(high) << 16 | usize::from(low);
        let body = reader.take(length, "body")?;
        if reader.0.is_empty() { Ok(Self(body)) } else { Err(HelloError::Trailing("body")) }
    }

    pub(super) fn take(
        &mut self,
        count: usize,
        field: &'static str,
    ) -> Result<&'a [u8], HelloError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(HelloError::Truncated(field))?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, HelloError> {
        let (head, rest) = self.0.split_first().ok_or(HelloError::Truncated(field))?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, HelloError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(HelloError::Truncated(field))?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*head))
    }

    /// A list with a one-byte length.
    pub(super) fn list8(&mut self, field: &'static str) -> Result<Self, HelloError> {
        let length = usize::from(self.u8(field)?);
        Ok(Self(self.take(length, field)?))
    }

    /// A list with a two-byte length.
    pub(super) fn list16(&mut self, field: &'static str) -> Result<Self, HelloError> {
        let length = usize::from(self.u16(field)?);
        Ok(Self(self.take(length, field)?))
    }

    /// A list with a one-byte length that must fill what is left.
    fn whole8(&mut self) -> Option<Self> {
        let list = self.list8("").ok()?;
        self.0.is_empty().then_some(list)
    }

    /// A list with a two-byte length that must fill what is left.
    fn whole16(&mut self) -> Option<Self> {
        let list = self.list16("").ok()?;
        self.0.is_empty().then_some(list)
    }

    /// Everything left as 16-bit numbers; `None` when a byte is left over.
    fn u16s(self) -> Option<Vec<u16>> {
        let (pairs, rest) = self.0.as_chunks::<2>();
        rest.is_empty().then(|| pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect())
    }
}

/// Entry point for the fuzzer: reads `data` as a ClientHello and, if it is one, makes every
/// fingerprint of it; then as a stream of records, cut at its own first byte.
#[doc(hidden)]
pub fn fuzz_client_hello(data: &[u8]) {
    use super::handshake::HandshakeReassembler;
    use super::server_hello::ServerHello;

    if let Ok(hello) = ClientHello::parse(data) {
        let capture = hello.capture(1, 1);
        assert_eq!(capture.ja3_md5.len(), 32);
        assert!(hello.ja4().len() == 36 && hello.ja4().is_ascii());
        assert_eq!(capture.hello_bytes as usize, data.len());
    }
    let _ = ServerHello::parse(data);
    let step = data.first().map_or(1, |byte| usize::from(*byte) + 1);
    for mut reassembler in [HandshakeReassembler::client(), HandshakeReassembler::server()] {
        let stepped = data.chunks(step).try_fold(false, |_, part| reassembler.feed(part));
        let mut whole = reassembler.fresh();
        let at_once = if data.is_empty() { Ok(false) } else { whole.feed(data) };
        assert_eq!(stepped, at_once, "the outcome depends on how the bytes were cut");
        assert_eq!(reassembler.message(), whole.message());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ClientHello to be assembled by hand.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Draft {
        pub(crate) version: u16,
        pub(crate) session_id: Vec<u8>,
        pub(crate) ciphers: Vec<u16>,
        pub(crate) extensions: Vec<(u16, Vec<u8>)>,
    }

    impl Draft {
        pub(crate) fn message(&self) -> Vec<u8> {
            let mut body = self.version.to_be_bytes().to_vec();
            body.extend([7; 32]);
            body.push(self.session_id.len() as u8);
            body.extend(&self.session_id);
            body.extend(list16(&u16s(&self.ciphers)));
            body.extend([1, 0]);
            let mut block = Vec::new();
            for (kind, contents) in &self.extensions {
                block.extend(kind.to_be_bytes());
                block.extend(list16(contents));
            }
            body.extend(list16(&block));
            handshake(CLIENT_HELLO, &body)
        }
    }

    pub(crate) fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![kind];
        message.extend(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        message
    }

    pub(crate) fn u16s(values: &[u16]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_be_bytes()).collect()
    }

    pub(crate) fn list8(bytes: &[u8]) -> Vec<u8> {
        [&[bytes.len() as u8], bytes].concat()
    }

    pub(crate) fn list16(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
    }

    pub(crate) fn sni(name: &str) -> (u16, Vec<u8>) {
        (0, list16(&[&[0][..], &list16(name.as_bytes())].concat()))
    }

    pub(crate) fn alpn(names: &[&[u8]]) -> (u16, Vec<u8>) {
        (16, list16(&names.iter().flat_map(|name| list8(name)).collect::<Vec<_>>()))
    }

    pub(crate) fn key_share(shares: &[(u16, usize)]) -> (u16, Vec<u8>) {
        let entries: Vec<u8> = shares
            .iter()
            .flat_map(|(group, length)| [u16s(&[*group]), list16(&vec![9; *length])].concat())
            .collect();
        (51, list16(&entries))
    }

    fn groups(values: &[u16]) -> (u16, Vec<u8>) {
        (10, list16(&u16s(values)))
    }

    fn algorithms(values: &[u16]) -> (u16, Vec<u8>) {
        (13, list16(&u16s(values)))
    }

    fn versions(values: &[u16]) -> (u16, Vec<u8>) {
        (43, list8(&u16s(values)))
    }

    /// The shape of a Chromium 110-116 hello, as the JA4 description's example has it, in its
    /// order, with GREASE where Chromium puts it.
    pub(crate) fn chrome() -> Draft {
        Draft {
            version: 0x0303,
            session_id: vec![5; 32],
            ciphers: vec![
                0x3a3a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8,
                0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
            ],
            extensions: vec![
                (0x8a8a, vec![]),
                (0x001b, vec![2, 0, 2]),
                sni("www.example.com"),
                key_share(&[(0xdada, 1), (29, 32)]),
                alpn(&[b"h2", b"http/1.1"]),
                (0x4469, vec![0, 3, 2, b'h', b'2']),
                (0x0017, vec![]),
                (0x002d, vec![1, 1]),
                algorithms(&[0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601]),
                (0x0005, vec![1, 0, 0, 0, 0]),
                (0x0023, vec![]),
                (0x0012, vec![]),
                versions(&[0xaaaa, 0x0304, 0x0303]),
                (0xff01, vec![0]),
                (0x000b, vec![1, 0]),
                groups(&[0xdada, 29, 23, 24]),
                (0x0015, vec![0; 190]),
                (0xfafa, vec![0]),
            ],
        }
    }

    /// The shape of a Firefox 13x hello: post-quantum share, ECH, no GREASE.
    pub(crate) fn firefox() -> Draft {
        Draft {
            version: 0x0303,
            session_id: vec![6; 32],
            ciphers: vec![
                0x1301, 0x1303, 0x1302, 0xc02b, 0xc02f, 0xcca9, 0xcca8, 0xc02c, 0xc030, 0xc00a,
                0xc009, 0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
            ],
            extensions: vec![
                sni("www.example.com"),
                (0x0017, vec![]),
                (0xff01, vec![0]),
                groups(&[0x11ec, 29, 23, 24, 25, 256, 257]),
                (0x000b, vec![1, 0]),
                (0x0023, vec![]),
                alpn(&[b"h2", b"http/1.1"]),
                (0x0005, vec![1, 0, 0, 0, 0]),
                (0x0022, vec![0, 8, 4, 3, 5, 3, 6, 3, 2, 3]),
                (0x0012, vec![]),
                key_share(&[(0x11ec, 1216), (29, 32), (23, 65)]),
                versions(&[0x0304, 0x0303]),
                algorithms(&[
                    0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0203,
                    0x0201,
                ]),
                (0x002d, vec![1, 1]),
                (0x001c, vec![0x40, 1]),
                (0x001b, vec![6, 0, 1, 0, 2, 0, 3]),
                (0xfe0d, vec![0; 281]),
            ],
        }
    }

    /// The shape of a hello of curl with OpenSSL 3.
    pub(crate) fn curl() -> Draft {
        Draft {
            version: 0x0303,
            session_id: vec![4; 32],
            ciphers: vec![
                0x1302, 0x1303, 0x1301, 0xc02c, 0xc030, 0x009f, 0xcca9, 0xcca8, 0xccaa, 0xc02b,
                0xc02f, 0x009e, 0xc024, 0xc028, 0x006b, 0xc023, 0xc027, 0x0067, 0xc00a, 0xc014,
                0x0039, 0xc009, 0xc013, 0x0033, 0x009d, 0x009c, 0x003d, 0x003c, 0x0035, 0x002f,
                0x00ff,
            ],
            extensions: vec![
                sni("localhost"),
                (0x000b, vec![3, 0, 1, 2]),
                groups(&[29, 23, 30, 25, 24, 256, 257, 258, 259, 260]),
                alpn(&[b"h2", b"http/1.1"]),
                (0x0016, vec![]),
                (0x0017, vec![]),
                (0x0031, vec![]),
                algorithms(&[
                    0x0403, 0x0503, 0x0603, 0x0807, 0x0808, 0x0809, 0x080a, 0x080b, 0x0804, 0x0805,
                    0x0806, 0x0401, 0x0501, 0x0601, 0x0303, 0x0301, 0x0302, 0x0402, 0x0502, 0x0602,
                ]),
                versions(&[0x0304, 0x0303]),
                (0x002d, vec![1, 1]),
                key_share(&[(29, 32)]),
                (0x0015, vec![0; 17]),
            ],
        }
    }

    fn parse(draft: &Draft) -> ClientHello {
        ClientHello::parse(&draft.message()).expect("the draft is well formed")
    }

    #[test]
    fn ja3_leaves_grease_out_and_keeps_the_order() {
        let cases = [
            (
                chrome(),
                "771,4865-4866-4867-49195-49199-49196-49200-52393-52392-49171-49172-156-157-47-53,\
                 27-0-51-16-17513-23-45-13-5-35-18-43-65281-11-10-21,29-23-24,0",
            ),
            (
                firefox(),
                "771,4865-4867-4866-49195-49199-52393-52392-49196-49200-49162-49161-49171-49172-\
                 156-157-47-53,0-23-65281-10-11-35-16-5-34-18-51-43-13-45-28-27-65037,\
                 4588-29-23-24-25-256-257,0",
            ),
            (
                Draft { version: 0x0301, ciphers: vec![4, 5, 10, 0], ..Draft::default() },
                "769,4-5-10-0,,,",
            ),
        ];
        for (draft, expected) in cases {
            assert_eq!(parse(&draft).ja3(), expected);
        }
    }

    #[test]
    fn ja3_md5_of_known_strings() {
        // The two examples that the JA3 description itself gives.
        let first = "769,47-53-5-10-49161-49162-49171-49172-50-56-19-4,0-10-11,23-24-25,0";
        assert_eq!(md5_hex(first), "ada70206e40642a3e4461f35503241d5");
        let bare = Draft {
            version: 0x0301,
            ciphers: vec![4, 5, 10, 9, 100, 98, 3, 6, 19, 18, 99],
            ..Draft::default()
        };
        assert_eq!(parse(&bare).ja3_md5(), "de350869b8c85de67a350c8d186f11e6");
    }

    #[test]
    fn flags_follow_what_the_hello_carries() {
        let with = |kind: u16, contents: Vec<u8>| {
            let mut draft = curl();
            draft.extensions.insert(0, (kind, contents));
            draft
        };
        // (hello, grease, ech, post-quantum, ticket)
        let cases = [
            (chrome(), true, false, false, false),
            (firefox(), false, true, true, false),
            (curl(), false, false, false, false),
            (with(35, vec![1, 2, 3]), false, false, false, true),
            (with(41, vec![0, 0, 0, 0]), false, false, false, true),
            (with(0x1a2a, vec![]), false, false, false, false),
            (with(0x1a1a, vec![]), true, false, false, false),
        ];
        for (draft, grease, ech, post_quantum, ticket) in cases {
            let hello = parse(&draft);
            let flags = (hello.grease, hello.ech, hello.post_quantum(), hello.ticket);
            assert_eq!(flags, (grease, ech, post_quantum, ticket), "{:x?}", hello.extensions);
        }
        for group in POST_QUANTUM_GROUPS {
            let draft = Draft { extensions: vec![groups(&[group])], ..curl() };
            assert!(parse(&draft).post_quantum(), "{group:04x}");
        }
    }

    #[test]
    fn grease_is_the_sixteen_values_of_the_rfc() {
        let values: Vec<u16> = (0..=u16::MAX).filter(|value| is_grease(*value)).collect();
        let expected: Vec<u16> = (0..16).map(|nibble| nibble * 0x1010 + 0x0a0a).collect();
        assert_eq!(values, expected);
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        for value in 0..=u16::MAX {
            let mut text = String::new();
            push_number(&mut text, value);
            assert_eq!(text, value.to_string());
        }
    }

    #[test]
    fn capture_carries_the_hello() {
        let hello = parse(&firefox());
        let capture = hello.capture(2, 3);
        assert_eq!(capture.sni.as_deref(), Some("www.example.com"));
        assert_eq!(capture.alpn, ["h2", "http/1.1"]);
        assert_eq!((capture.hello_records, capture.hello_reads), (2, 3));
        assert_eq!(capture.hello_bytes as usize, firefox().message().len());
        assert!(capture.ech && capture.post_quantum && !capture.grease && !capture.ticket);
        assert_eq!(capture.ja3s, None);
    }

    #[test]
    fn a_hello_may_end_before_its_extensions() {
        let mut message =
            Draft { version: 0x0300, ciphers: vec![10], ..Draft::default() }.message();
        message.truncate(message.len() - 2);
        message[3] -= 2;
        let hello = ClientHello::parse(&message).expect("RFC 5246 allows it");
        assert_eq!(hello.ja3(), "768,10,,,");
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let good = chrome().message();
        let change = |at: usize, value: u8| {
            let mut message = good.clone();
            message[at] = value;
            ClientHello::parse(&message)
        };
        assert_eq!(change(0, 2), Err(HelloError::NotHello { expected: 1, found: 2 }));
        assert_eq!(change(3, good[3] - 1), Err(HelloError::Trailing("body")));
        assert_eq!(change(3, good[3].wrapping_add(1)), Err(HelloError::Truncated("body")));
        assert_eq!(change(38, 33), Err(HelloError::BadLength("session id")));
        assert_eq!(change(72, 33), Err(HelloError::BadLength("cipher suites")));
        let broken = |contents: Vec<u8>, kind: u16| {
            let draft = Draft { extensions: vec![(kind, contents)], ..curl() };
            ClientHello::parse(&draft.message())
        };
        for kind in [0, 10, 13, 16, 51] {
            assert_eq!(broken(vec![], kind), Err(HelloError::Extension(kind)));
            assert_eq!(broken(vec![0, 3, 0, 0], kind), Err(HelloError::Extension(kind)));
            assert_eq!(broken(vec![0, 0, 0], kind), Err(HelloError::Extension(kind)));
        }
        for kind in [11, 43] {
            assert_eq!(broken(vec![3, 0, 0], kind), Err(HelloError::Extension(kind)));
            assert_eq!(broken(vec![0, 0], kind), Err(HelloError::Extension(kind)));
        }
    }

    #[test]
    fn a_hello_cut_anywhere_is_refused() {
        for draft in [chrome(), firefox(), curl()] {
            let message = draft.message();
            for length in 0..message.len() {
                assert!(ClientHello::parse(&message[..length]).is_err(), "{length}");
            }
            // The same with a header that agrees with the cut. What is left is a whole hello only
            // where the cut falls just before the extensions.
            let whole: Vec<usize> = (4..message.len())
                .filter(|length| {
                    ClientHello::parse(&handshake(CLIENT_HELLO, &message[4..*length])).is_ok()
                })
                .collect();
            assert_eq!(whole, [4 + 2 + 32 + 33 + 2 + 2 * draft.ciphers.len() + 2]);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz_client_hello(&data);
        }

        #[test]
        fn mutated_hellos_never_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut message = firefox().message();
            for (at, value) in changes {
                let at = at.index(message.len());
                message[at] = value;
            }
            fuzz_client_hello(&message);
        }
    }
}
