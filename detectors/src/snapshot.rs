//! What an engine remembers, as a value that can be kept and taken back: whole, or account by account
//! in a compact binary form.
//!
//! The form is versioned: memories are read by the program that wrote them or by one that knows how
//! to, and refused otherwise, since a memory read wrongly would condemn or acquit at random.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::dns::AddressDns;
use crate::engine::{Account, Contribution};
use crate::pivot::{Family, Pivot};

/// Version of the form below. It changes with every change to what is remembered.
pub const VERSION: u16 = 6;
/// Longest encoded account or contribution that is read, in bytes. The longest that is written has
/// less than half, and its account's pseudonym.
pub const ENCODED_BYTES_MAX: usize = 16_384;

/// What an engine remembers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`VERSION`] of the program that wrote it.
    pub version: u16,
    /// Accounts in the order of their pseudonyms.
    pub accounts: Vec<Account>,
    /// Shared values, in the order of family and value.
    pub pivots: Vec<(Family, u64, Pivot)>,
    /// What sensors told of addresses, by their hashes.
    pub dns: Vec<(u64, AddressDns)>,
    /// Releases: unix milliseconds and the model's hash.
    pub releases: Vec<(u64, u64)>,
}

/// A snapshot of another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memories are of version {found}, this program reads version {VERSION}")]
pub struct WrongVersion {
    /// The snapshot's version.
    pub found: u16,
}

/// Why an encoded account or contribution is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Another version wrote it; `None` where there is not even a version.
    #[error("it is of version {found:?}, this program reads version {VERSION}")]
    Version {
        /// Its version.
        found: Option<u8>,
    },
    /// It is longer than any that is written.
    #[error("it has {bytes} bytes, at most {ENCODED_BYTES_MAX} are read")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Its bytes are not what was written.
    #[error("it is damaged: {0}")]
    Damaged(#[from] postcard::Error),
    /// It goes on after its end.
    #[error("{bytes} bytes come after its end")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A suspicion in it is not within 0..1.
    #[error("a suspicion in it is not within 0..1")]
    Suspicion,
}

impl Account {
    /// A compact form of all that is held of the account: [`VERSION`] in one byte, then postcard.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads the compact form.
    ///
    /// # Errors
    /// When another version wrote it, or it is not as it was written.
    pub fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let account: Self = decode(bytes)?;
        checked(account.held.suspicion, account.peak.0)?;
        Ok(account)
    }
}

impl Contribution {
    /// A compact form: [`VERSION`] in one byte, then postcard.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads the compact form.
    ///
    /// # Errors
    /// When another version wrote it, or it is not as it was written.
    pub fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let contribution: Self = decode(bytes)?;
        checked(contribution.held.suspicion, contribution.peak.0)?;
        Ok(contribution)
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let encoded = postcard::to_extend(value, vec![VERSION as u8]);
    #[expect(
        clippy::expect_used,
        reason = "a list that grows takes all, and all lengths are known"
    )]
    encoded.expect("memories are plain data")
}

/// Every list checks its own bound and order as it is read.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RowError> {
    if bytes.len() > ENCODED_BYTES_MAX {
        return Err(RowError::TooLong { bytes: bytes.len() });
    }
    let rest = match bytes.split_first() {
        Some((version, rest)) if u16::from(*version) == VERSION => rest,
        other => return Err(RowError::Version { found: other.map(|(version, _)| *version) }),
    };
    match postcard::take_from_bytes(rest)? {
        (value, []) => Ok(value),
        (_, rest) => Err(RowError::Trailing { bytes: rest.len() }),
    }
}

fn checked(suspicion: f64, peak: f64) -> Result<(), RowError> {
    let sound = [suspicion, peak].iter().all(|value| (0.0..=1.0).contains(value));
    if sound { Ok(()) } else { Err(RowError::Suspicion) }
}
