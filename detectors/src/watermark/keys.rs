//! Keys of the marks, all derived from one secret.
//!
//! Each use has its own key, so that one that leaks (by a broken mark, by a shared report) says
//! nothing of the others. Derivation is HMAC-SHA256 (RFC 2104, FIPS 180-4) over a label and the
//! parts, each with its length before it, so that no two lists of parts run into one another.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Shortest master key, in bytes: as long as what HMAC-SHA256 gives.
pub const MASTER_BYTES_MIN: usize = 32;

/// Seconds in an epoch: a week.
const EPOCH_SECONDS: u64 = 7 * 24 * 60 * 60;

/// The week since 1970-01-01 of a time in unix seconds. Fits into 16 bits until the year 3225.
#[must_use]
pub fn epoch(unix_seconds: u64) -> u16 {
    u16::try_from(unix_seconds / EPOCH_SECONDS).unwrap_or(u16::MAX)
}

/// The secret from which every key of the marks is derived.
#[derive(Clone)]
pub struct MasterKey(Prf);

/// The master key is shorter than [`MASTER_BYTES_MIN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key has {bytes} bytes, at least {MASTER_BYTES_MIN} are needed")]
pub struct ShortKey {
    /// Its length.
    pub bytes: usize,
}

impl MasterKey {
    /// Takes the secret's bytes.
    ///
    /// # Errors
    /// When there are fewer than [`MASTER_BYTES_MIN`].
    pub fn new(secret: &[u8]) -> Result<Self, ShortKey> {
        if secret.len() < MASTER_BYTES_MIN {
            return Err(ShortKey { bytes: secret.len() });
        }
        Ok(Self(Prf::new(secret)))
    }

    /// The key of layer A's frames and account tags.
    #[must_use]
    pub fn zero_width(&self) -> Prf {
        self.0.derive(b"stillgate mark: zero width", &[])
    }

    /// The key of layer B for a subject: a cluster's or an account's identifier.
    #[must_use]
    pub fn lexical(&self, subject: &str) -> Prf {
        self.0.derive(b"stillgate mark: lexical", &[subject.as_bytes()])
    }

    /// The key of layer C.
    #[must_use]
    pub fn canary(&self) -> Prf {
        self.0.derive(b"stillgate mark: canary", &[])
    }

    /// A key of layer B that no subject has, for the histogram of wrong keys.
    #[must_use]
    pub fn wrong(&self, index: u32) -> Prf {
        self.0.derive(b"stillgate mark: wrong key", &[&index.to_be_bytes()])
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// HMAC-SHA256 under one key.
#[derive(Clone)]
pub struct Prf(Hmac<Sha256>);

impl Prf {
    fn new(key: &[u8]) -> Self {
        // HMAC takes keys of any length; the type only cannot say so.
        Self(Hmac::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default())))
    }

    fn derive(&self, label: &[u8], parts: &[&[u8]]) -> Self {
        Self::new(&self.hash(label, parts))
    }

    /// 256 bits of a label and parts.
    pub(crate) fn hash(&self, label: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = self.0.clone();
        for part in std::iter::once(&label).chain(parts) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// 256 bits of one number: layer B's contexts, of which there are many.
    pub(crate) fn bits(&self, context: u64) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(&context.to_be_bytes());
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for Prf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prf(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_apart() {
        let master = MasterKey::new(&[7; 32]).unwrap();
        let keys = [
            master.zero_width(),
            master.canary(),
            master.lexical("a"),
            master.lexical("b"),
            master.wrong(0),
            master.wrong(1),
            MasterKey::new(&[8; 32]).unwrap().zero_width(),
        ];
        for (at, key) in keys.iter().enumerate() {
            for other in &keys[..at] {
                assert_ne!(key.bits(1), other.bits(1));
            }
        }
        let key = &keys[0];
        assert_ne!(key.hash(b"x", &[b"ab", b"c"]), key.hash(b"x", &[b"a", b"bc"]));
    }

    #[test]
    fn short_keys_are_refused_and_none_is_shown() {
        assert_eq!(MasterKey::new(&[1; 31]).err(), Some(ShortKey { bytes: 31 }));
        let master = MasterKey::new(b"a secret of thirty-two bytes, ok").unwrap();
        assert_eq!(format!("{master:?} {:?}", master.canary()), "MasterKey(..) Prf(..)");
    }

    #[test]
    fn weeks_are_counted() {
        assert_eq!(epoch(0), 0);
        assert_eq!(epoch(604_799), 0);
        assert_eq!(epoch(604_800), 1);
        assert_eq!(epoch(u64::MAX), u16::MAX);
    }
}
