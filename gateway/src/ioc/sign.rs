//! Signed envelopes, and the keys that sign and verify them.
//!
//! An envelope is DSSE (<https://github.com/secure-systems-lab/dsse>, protocol v1.0.0): the exact
//! bytes that were signed travel as base64, so there is nothing to bring into a canonical form, and
//! they are verified before anything reads them. The type of what was signed is signed with it.
//! What algorithm a signature has is the key's property, never the envelope's word.
//!
//! HMAC-SHA256 is what the threat model asks for; whoever can verify it can also make it. Ed25519
//! (RFC 8032) leaves peers nothing to forge with and is the stronger choice.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};

use crate::limits::{IOC_ENVELOPE_BYTES_MAX, IOC_SIGNATURES_MAX};

/// What is signed.
pub const PAYLOAD_TYPE: &str = "application/vnd.stillgate.iocs.v1+json";
/// DER of an Ed25519 public key up to its 32 bytes (RFC 8410, section 4).
pub const ED25519_SPKI: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key that signs.
pub enum SigningKey {
    /// HMAC-SHA256.
    Hmac {
        /// Which, for whoever verifies.
        id: String,
        /// The key.
        key: Box<hmac::Key>,
    },
    /// Ed25519.
    Ed25519 {
        /// Which, for whoever verifies.
        id: String,
        /// The pair.
        pair: Ed25519KeyPair,
    },
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.id())
    }
}

impl SigningKey {
    /// A key of bytes that both sides hold.
    #[must_use]
    pub fn hmac(secret: &[u8]) -> Self {
        let key = Box::new(hmac::Key::new(hmac::HMAC_SHA256, secret));
        Self::Hmac { id: hmac_id(&key), key }
    }

    /// A private key in PEM (PKCS#8), as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// When it is not one.
    pub fn ed25519(pem: &[u8]) -> Result<Self, String> {
        let wrong = "is not an Ed25519 private key in PEM (openssl genpkey -algorithm ed25519)";
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| wrong)?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| wrong)?;
        Ok(Self::Ed25519 { id: public_id(pair.public_key().as_ref()), pair })
    }

    /// Which key it is: as much of a hash as tells keys apart.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Hmac { id, .. } | Self::Ed25519 { id, .. } => id,
        }
    }

    /// A key for hashes that only we can make: it comes from the private half.
    #[must_use]
    pub fn reference_key(&self) -> Vec<u8> {
        self.sign(b"stillgate ioc reference key")
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Hmac { key, .. } => hmac::sign(key, message).as_ref().to_vec(),
            Self::Ed25519 { pair, .. } => pair.sign(message).as_ref().to_vec(),
        }
    }
}

/// A key that verifies.
#[derive(Clone)]
pub enum VerifyKey {
    /// HMAC-SHA256.
    Hmac {
        /// Which.
        id: String,
        /// The key.
        key: Box<hmac::Key>,
    },
    /// Ed25519.
    Ed25519 {
        /// Which.
        id: String,
        /// The public key.
        public: [u8; 32],
    },
}

impl std::fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifyKey({})", self.id())
    }
}

impl VerifyKey {
    /// A key of bytes that both sides hold.
    #[must_use]
    pub fn hmac(secret: &[u8]) -> Self {
        let key = Box::new(hmac::Key::new(hmac::HMAC_SHA256, secret));
        Self::Hmac { id: hmac_id(&key), key }
    }

    /// A public key in PEM, as `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// When it is not one.
    pub fn ed25519(pem: &[u8]) -> Result<Self, String> {
        let wrong = "is not an Ed25519 public key in PEM (openssl pkey -pubout)";
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| wrong)?;
        let public = der.strip_prefix(&ED25519_SPKI[..]).and_then(|key| key.try_into().ok());
        let public: [u8; 32] = public.ok_or(wrong)?;
        Ok(Self::Ed25519 { id: public_id(&public), public })
    }

    /// Which key it is.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Hmac { id, .. } | Self::Ed25519 { id, .. } => id,
        }
    }

    /// In constant time.
    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Hmac { key, .. } => hmac::verify(key, message, signature).is_ok(),
            Self::Ed25519 { public, .. } => {
                UnparsedPublicKey::new(&ED25519, public).verify(message, signature).is_ok()
            }
        }
    }
}

/// Says nothing of the secret that a guess at it would not.
fn hmac_id(key: &hmac::Key) -> String {
    let tag = hmac::sign(key, b"stillgate ioc key id");
    hex::encode(&tag.as_ref()[..8])
}

fn public_id(public: &[u8]) -> String {
    hex::encode(&digest::digest(&digest::SHA256, public).as_ref()[..8])
}

/// A signed text on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload_type: String,
    payload: String,
    signatures: Vec<Signature>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Signature {
    keyid: String,
    sig: String,
}

/// Why an envelope is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is larger than may be.
    #[error("the envelope is larger than {IOC_ENVELOPE_BYTES_MAX} bytes")]
    Oversize,
    /// It is not an envelope.
    #[error("it is not a DSSE envelope of {PAYLOAD_TYPE}")]
    Malformed,
    /// No key that is known has signed it.
    #[error("no configured peer has a key of the ids that signed it")]
    UnknownKey,
    /// A key that is known has not made its signature.
    #[error("the signature does not verify")]
    Signature,
}

/// Signs a text with every key.
#[must_use]
pub fn seal(text: &str, keys: &[SigningKey]) -> String {
    let message = encode(PAYLOAD_TYPE, text.as_bytes());
    let signatures = keys.iter().map(|key| Signature {
        keyid: key.id().to_owned(),
        sig: STANDARD.encode(key.sign(&message)),
    });
    let envelope = Envelope {
        payload_type: PAYLOAD_TYPE.to_owned(),
        payload: STANDARD.encode(text),
        signatures: signatures.collect(),
    };
    serde_json::to_string(&envelope).unwrap_or_default()
}

/// Verifies an envelope by the keys of each of `owners`, and returns what was signed with the first
/// whose key it was. One good signature is enough, as a peer may change its keys.
///
/// # Errors
/// Why it is not believed. Nothing of its payload has been read then.
pub fn open<'k, O: Copy>(
    envelope: &[u8],
    owners: &(impl Iterator<Item = (&'k VerifyKey, O)> + Clone),
) -> Result<(Vec<u8>, O), EnvelopeError> {
    if envelope.len() > IOC_ENVELOPE_BYTES_MAX {
        return Err(EnvelopeError::Oversize);
    }
    let envelope: Envelope =
        serde_json::from_slice(envelope).map_err(|_| EnvelopeError::Malformed)?;
    let signed = 1..=IOC_SIGNATURES_MAX;
    if envelope.payload_type != PAYLOAD_TYPE || !signed.contains(&envelope.signatures.len()) {
        return Err(EnvelopeError::Malformed);
    }
    let payload = STANDARD.decode(&envelope.payload).map_err(|_| EnvelopeError::Malformed)?;
    let message = encode(PAYLOAD_TYPE, &payload);
    let mut known = false;
    for signature in &envelope.signatures {
        let made = STANDARD.decode(&signature.sig).map_err(|_| EnvelopeError::Malformed)?;
        for (key, owner) in owners.clone().filter(|(key, _)| key.id() == signature.keyid) {
            known = true;
            if key.verifies(&message, &made) {
                return Ok((payload, owner));
            }
        }
    }
    Err(if known { EnvelopeError::Signature } else { EnvelopeError::UnknownKey })
}

/// DSSE's pre-authentication encoding: lengths before each part.
fn encode(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Entry point for the fuzzer: envelopes of noise are refused; one that was sealed and then changed
/// by `data` gives the same text or is refused.
#[doc(hidden)]
pub fn fuzz_envelope(data: &[u8]) {
    let secret = [7; 32];
    let verify = VerifyKey::hmac(&secret);
    let owners = [(&verify, ())];
    assert!(open(data, &owners.into_iter()).is_err());
    let text = "{\"version\":1}";
    let mut sealed = seal(text, &[SigningKey::hmac(&secret)]).into_bytes();
    if let [at, value, ..] = data {
        let at = usize::from(*at) % sealed.len();
        sealed[at] = *value;
    }
    if let Ok((payload, ())) = open(&sealed, &owners.into_iter()) {
        assert_eq!(payload, text.as_bytes());
    }
    if let Ok(bundle) = super::bundle::IocBundle::read(data) {
        let again = super::bundle::IocBundle::read(bundle.text().as_bytes());
        assert_eq!(again.as_ref(), Ok(&bundle));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 8410, section 10.3 and 10.1: a pair of one key.
    pub(crate) const PRIVATE: &[u8] = b"-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    pub(crate) const PUBLIC: &[u8] = b"-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";

    fn pairs() -> [(SigningKey, VerifyKey); 2] {
        let ed25519 = (SigningKey::ed25519(PRIVATE).unwrap(), VerifyKey::ed25519(PUBLIC).unwrap());
        [(SigningKey::hmac(&[7; 32]), VerifyKey::hmac(&[7; 32])), ed25519]
    }

    fn opened(sealed: &[u8], key: &VerifyKey) -> Result<Vec<u8>, EnvelopeError> {
        open(sealed, &[(key, ())].into_iter()).map(|(text, ())| text)
    }

    #[test]
    fn what_one_key_signed_its_counterpart_verifies() {
        for (sign, verify) in pairs() {
            assert_eq!(sign.id(), verify.id());
            let sealed = seal("{\"a\":1}", &[sign]);
            assert_eq!(opened(sealed.as_bytes(), &verify).as_deref(), Ok(&b"{\"a\":1}"[..]));
        }
    }

    #[test]
    fn a_changed_or_foreign_signature_is_refused() {
        let [(hmac, hmac_verify), (ed25519, ed25519_verify)] = pairs();
        for (sign, verify, other) in
            [(hmac, &hmac_verify, &ed25519_verify), (ed25519, &ed25519_verify, &hmac_verify)]
        {
            let sealed = seal("{\"a\":1}", &[sign]);
            let other_text = STANDARD.encode("{\"a\":2}");
            let changed = sealed.replace(&STANDARD.encode("{\"a\":1}"), &other_text);
            assert_ne!(changed, sealed);
            assert_eq!(opened(changed.as_bytes(), verify), Err(EnvelopeError::Signature));
            assert_eq!(opened(sealed.as_bytes(), other), Err(EnvelopeError::UnknownKey));
            // Another key's id does not make it that key's.
            let claimed = sealed.replace(verify.id(), other.id());
            assert_eq!(opened(claimed.as_bytes(), other), Err(EnvelopeError::Signature));
            let typed = sealed.replace("iocs.v1", "else.v1");
            assert_eq!(opened(typed.as_bytes(), verify), Err(EnvelopeError::Malformed));
        }
        let large = vec![b' '; IOC_ENVELOPE_BYTES_MAX + 1];
        assert_eq!(opened(&large, &hmac_verify), Err(EnvelopeError::Oversize));
    }

    #[test]
    fn the_encoding_is_dsses() {
        // The example of the protocol's text.
        let encoded = encode("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        for pem in [PUBLIC, b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
        {
            assert!(SigningKey::ed25519(pem).is_err());
        }
        for pem in [PRIVATE, b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert!(VerifyKey::ed25519(pem).is_err());
        }
    }

    proptest! {
        #[test]
        fn changed_envelopes_never_give_another_text(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            fuzz_envelope(&data);
        }
    }
}
