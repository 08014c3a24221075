//! The ServerHello: what the handshake came to.
//!
//! Together with the ClientHello it tells whether the client had to be asked again
//! (HelloRetryRequest), whether it resumed an earlier session, and its JA3S, which names how this
//! server answers this client. Sources: RFC 8446, sections 4.1.3 and 4.1.4, RFC 5246, section
//! 7.4.1.3, and the JA3S method (2018). Under TLS 1.3 JA3S carries little, because most
//! extensions of the answer are encrypted.

use detectors::TlsCapture;

use super::client_hello::{
    ClientHello, HelloError, Reader, extension, md5_hex, push_number, push_numbers,
};

/// A ServerHello or a HelloRetryRequest, which has the same shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerHello {
    /// `legacy_version`.
    pub legacy_version: u16,
    /// Session id; under TLS 1.3 an echo of the client's.
    pub session_id: Vec<u8>,
    /// Cipher suite chosen.
    pub cipher: u16,
    /// Extension types in wire order.
    pub extensions: Vec<u16>,
    /// Version in the `supported_versions` extension, which TLS 1.3 uses.
    pub selected_version: Option<u16>,
    /// Group of the key share; in a HelloRetryRequest the group asked for.
    pub group: Option<u16>,
    /// Whether this is a HelloRetryRequest.
    pub hello_retry_request: bool,
}

impl ServerHello {
    /// Reads a ServerHello handshake message, its four-byte header included.
    ///
    /// # Errors
    /// When the message is not a ServerHello or a length in it is wrong.
    pub fn parse(handshake_message: &[u8]) -> Result<Self, HelloError> {
        let mut body = Reader::hello(handshake_message, SERVER_HELLO)?;
        let legacy_version = body.u16("version")?;
        let hello_retry_request = body.take(32, "random")? == HELLO_RETRY_REQUEST_RANDOM;
        let mut hello = Self { legacy_version, hello_retry_request, ..Self::default() };
        let session_id = body.list8("session id")?;
        if session_id.0.len() > 32 {
            return Err(HelloError::BadLength("session id"));
        }
        hello.session_id = session_id.0.to_vec();
        hello.cipher = body.u16("cipher suite")?;
        body.u8("compression method")?;
        if body.0.is_empty() {
            return Ok(hello);
        }
        let mut block = body.list16("extensions")?;
        if !body.0.is_empty() {
            return Err(HelloError::Trailing("extensions"));
        }
        while !block.0.is_empty() {
            let kind = block.u16("extensions")?;
            let mut contents = block.list16("extensions")?;
            hello.extensions.push(kind);
            let malformed = |_| HelloError::Extension(kind);
            match kind {
                extension::SUPPORTED_VERSIONS => {
                    hello.selected_version = Some(contents.u16("").map_err(malformed)?);
                }
                extension::KEY_SHARE => hello.group = Some(contents.u16("").map_err(malformed)?),
                _ => {}
            }
        }
        Ok(hello)
    }

    /// The JA3S string: version, cipher and extensions in decimal and wire order.
    #[must_use]
    pub fn ja3s(&self) -> String {
        let mut text = String::with_capacity(64);
        push_number(&mut text, self.legacy_version);
        text.push(',');
        push_number(&mut text, self.cipher);
        text.push(',');
        push_numbers(&mut text, self.extensions.iter().copied());
        text
    }

    /// MD5 of the JA3S string, 32 hex digits.
    #[must_use]
    pub fn ja3s_md5(&self) -> String {
        md5_hex(&self.ja3s())
    }

    /// The version that both sides will speak.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.selected_version.unwrap_or(self.legacy_version)
    }

    /// The name of that version, such as `1.3`.
    #[must_use]
    pub fn version_name(&self) -> &'static str {
        version_name(self.version())
    }

    /// Whether the server resumed the session that the client offered: a pre-shared key under
    /// TLS 1.3 (RFC 8446, section 4.2.11), an echoed session id before (RFC 5246, section 7.3).
    /// TLS 1.3 echoes the session id always, so there the echo means nothing.
    #[must_use]
    pub fn resumed(&self, client: &ClientHello) -> bool {
        if self.version() >= TLS_1_3 {
            self.extensions.contains(&extension::PRE_SHARED_KEY)
        } else {
            !self.session_id.is_empty() && self.session_id == client.session_id
        }
    }

    /// Fills in what the final ServerHello tells of the connection. `hello_retry_request` says
    /// whether one came before it.
    pub fn complete(
        &self,
        client: &ClientHello,
        hello_retry_request: bool,
        capture: &mut TlsCapture,
    ) {
        let ja3s = self.ja3s();
        capture.ja3s_md5 = Some(md5_hex(&ja3s));
        capture.ja3s = Some(ja3s);
        capture.version = self.version_name().to_owned();
        capture.hello_retry_request = hello_retry_request;
        capture.resumed = self.resumed(client);
    }
}

/// The name of a TLS version as people write it; empty for a number that is none.
#[must_use]
pub fn version_name(version: u16) -> &'static str {
    match version {
        0x0304 => "1.3",
        0x0303 => "1.2",
        0x0302 => "1.1",
        0x0301 => "1.0",
        0x0300 => "SSL 3.0",
        _ => "",
    }
}

/// Handshake type of a ServerHello.
pub(super) const SERVER_HELLO: u8 = 2;

const TLS_1_3: u16 = 0x0304;

/// SHA-256 of `HelloRetryRequest`, which stands in place of the random (RFC 8446, section 4.1.3).
pub(super) const HELLO_RETRY_REQUEST_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

#[cfg(test)]
pub(crate) mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::capture::client_hello::tests::{Draft, curl, handshake, list8, list16};

    pub(crate) fn message(
        random: &[u8; 32],
        session_id: &[u8],
        cipher: u16,
        extensions: &[(u16, &[u8])],
    ) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend(random);
        body.extend(list8(session_id));
        body.extend(cipher.to_be_bytes());
        body.push(0);
        let block: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, contents)| [&kind.to_be_bytes()[..], &list16(contents)].concat())
            .collect();
        body.extend(list16(&block));
        handshake(SERVER_HELLO, &body)
    }

    /// A TLS 1.3 answer: supported_versions and a key share of X25519.
    pub(crate) fn tls13(extra: &[(u16, &[u8])]) -> Vec<u8> {
        let share = [&[0, 29, 0, 32][..], &[3; 32]].concat();
        let extensions = [&[(51, &share[..]), (43, &[3, 4][..])], extra].concat();
        message(&[8; 32], &[4; 32], 0x1302, &extensions)
    }

    pub(crate) fn hello_retry_request() -> Vec<u8> {
        message(&HELLO_RETRY_REQUEST_RANDOM, &[4; 32], 0x1302, &[(43, &[3, 4]), (51, &[0, 23])])
    }

    fn client(session_id: &[u8]) -> ClientHello {
        let draft = Draft { session_id: session_id.to_vec(), ..curl() };
        ClientHello::parse(&draft.message()).expect("well formed")
    }

    #[test]
    fn the_retry_random_is_the_hash_that_the_rfc_names() {
        assert_eq!(Sha256::digest(b"HelloRetryRequest")[..], HELLO_RETRY_REQUEST_RANDOM);
    }

    #[test]
    fn reads_versions_groups_and_resumption() {
        let tls12 = |id: &[u8]| message(&[8; 32], id, 0xc02f, &[(0xff01, &[0]), (11, &[1, 0])]);
        // (message, client's session id, JA3S, version, group, retry, resumed)
        let cases = [
            (tls13(&[]), vec![4; 32], "771,4866,51-43", "1.3", Some(29), false, false),
            (
                tls13(&[(41, &[0, 0])]),
                vec![4; 32],
                "771,4866,51-43-41",
                "1.3",
                Some(29),
                false,
                true,
            ),
            (hello_retry_request(), vec![4; 32], "771,4866,43-51", "1.3", Some(23), true, false),
            (tls12(&[4; 32]), vec![4; 32], "771,49199,65281-11", "1.2", None, false, true),
            (tls12(&[5; 32]), vec![4; 32], "771,49199,65281-11", "1.2", None, false, false),
            (tls12(&[]), vec![], "771,49199,65281-11", "1.2", None, false, false),
        ];
        for (message, session_id, ja3s, version, group, retry, resumed) in cases {
            let hello = ServerHello::parse(&message).expect("well formed");
            assert_eq!(hello.ja3s(), ja3s);
            assert_eq!((hello.version_name(), hello.group), (version, group));
            assert_eq!(hello.hello_retry_request, retry);
            assert_eq!(hello.resumed(&client(&session_id)), resumed);
            for length in 0..message.len() {
                assert!(ServerHello::parse(&message[..length]).is_err());
            }
        }
    }

    #[test]
    fn completes_a_capture() {
        let client = client(&[4; 32]);
        let mut capture = client.capture(1, 1);
        let hello = ServerHello::parse(&tls13(&[(41, &[0, 0])])).expect("well formed");
        hello.complete(&client, true, &mut capture);
        assert_eq!(capture.version, "1.3");
        assert!(capture.resumed && capture.hello_retry_request);
        assert_eq!(capture.ja3s.as_deref(), Some("771,4866,51-43-41"));
        assert_eq!(capture.ja3s_md5, Some(hello.ja3s_md5()));
    }
}
