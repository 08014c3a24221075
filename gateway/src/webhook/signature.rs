//! Signatures of messages: HMAC-SHA256 over id, time and body.
//!
//! Source: Standard Webhooks 1.0.0, "Signature scheme" (symmetric, `v1`).

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Bytes of a key, as the specification has them.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A key that signs messages.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

impl SigningKey {
    /// Reads a key as receivers' libraries take it: base64, with `whsec_` before it or not.
    ///
    /// # Errors
    /// What is wrong with it, without a word of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let base64 = text.strip_prefix("whsec_").unwrap_or(text);
        let key = STANDARD.decode(base64).map_err(|_| "is not base64".to_owned())?;
        let (least, most) = (KEY_BYTES.start(), KEY_BYTES.end());
        if !KEY_BYTES.contains(&key.len()) {
            return Err(format!("has {} bytes, {least} to {most} are needed", key.len()));
        }
        // A hash takes a key of any length.
        Hmac::new_from_slice(&key).map(Self).map_err(|error| error.to_string())
    }

    /// Reads a key a line: of several, receivers know one.
    ///
    /// # Errors
    /// What is wrong with them, or that there is none.
    pub fn parse_all(secret: &[u8]) -> Result<Vec<Self>, String> {
        let text = std::str::from_utf8(secret).map_err(|_| "is not base64".to_owned())?;
        let keys: Vec<Self> = text.split_whitespace().map(Self::parse).collect::<Result<_, _>>()?;
        match keys.len() {
            0 => Err("is empty".to_owned()),
            1..=KEYS_MAX => Ok(keys),
            more => Err(format!("has {more} keys, at most {KEYS_MAX} sign a message")),
        }
    }

    fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let mut mac = self.0.clone();
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// Keys that sign at once.
const KEYS_MAX: usize = 4;

/// The field `webhook-signature`: a signature by each key.
pub(super) fn header(keys: &[SigningKey], id: &str, timestamp: &str, body: &[u8]) -> String {
    let signatures: Vec<String> = keys.iter().map(|key| key.sign(id, timestamp, body)).collect();
    signatures.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference libraries.
    #[test]
    fn a_known_message_has_its_known_signature() {
        let key = SigningKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signed =
            header(&[key.clone(), key], "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body);
        let one = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signed, format!("{one} {one}"));
    }

    #[test]
    fn keys_are_base64_of_the_right_length_and_are_never_shown() {
        let ok = STANDARD.encode([7; 32]);
        let parse = |text: &str| SigningKey::parse_all(text.as_bytes());
        assert_eq!(parse(&format!("whsec_{ok}\n{ok}\n")).unwrap().len(), 2);
        for (text, wrong) in [
            (String::new(), "is empty"),
            ("whsec_".to_owned(), "has 0 bytes"),
            (STANDARD.encode([7; 23]), "has 23 bytes"),
            (STANDARD.encode([7; 65]), "has 65 bytes"),
            ("not base64!".to_owned(), "is not base64"),
            (format!("{ok} {ok} {ok} {ok} {ok}"), "has 5 keys"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(wrong), "{text}: {error}");
            assert!(text.is_empty() || !error.contains(&text), "{error}");
        }
        assert_eq!(format!("{:?}", parse(&ok).unwrap()), "[SigningKey(…)]");
    }
}
