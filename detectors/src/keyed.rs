//! Keyed hashes: what may be kept of a value that must not be kept itself.

use std::hash::{BuildHasher, Hasher};

use siphasher::sip::SipHasher13;

/// The key of an engine's hashes. Values hashed under different keys cannot be compared.
pub type Key = [u8; 16];

/// Hashes bytes under a key (SipHash-1-3; Aumasson and Bernstein, "SipHash: a fast short-input
/// PRF", 2012).
#[must_use]
pub fn hash(key: &Key, bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_key(key);
    hasher.write(bytes);
    hasher.finish()
}

/// Hashes several parts, each with its length, so that no two lists run into one another.
#[must_use]
pub fn hash_parts(key: &Key, parts: &[&[u8]]) -> u64 {
    let mut hasher = SipHasher13::new_with_key(key);
    for part in parts {
        hasher.write_u64(part.len() as u64);
        hasher.write(part);
    }
    hasher.finish()
}

/// A table's hasher for keys that are keyed hashes already.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyedState;

impl BuildHasher for KeyedState {
    type Hasher = Taken;

    fn build_hasher(&self) -> Taken {
        Taken(0)
    }
}

/// Takes a key for its own hash.
#[derive(Clone, Copy, Debug)]
pub struct Taken(u64);

impl Hasher for Taken {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}
