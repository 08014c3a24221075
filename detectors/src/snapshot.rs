//! What an engine remembers, as a value that can be kept and taken back.
//!
//! The form is versioned: memories are read by the program that wrote them or by one that knows how
//! to, and refused otherwise, since a memory read wrongly would condemn or acquit at random.

use serde::{Deserialize, Serialize};

use crate::engine::Account;
use crate::pivot::{Family, Pivot};
use crate::sketch::Mark;

/// Version of the form below. It changes with every change to what is remembered.
pub const VERSION: u16 = 2;

/// What an engine remembers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`VERSION`] of the program that wrote it.
    pub version: u16,
    /// Accounts in the order of their pseudonyms.
    pub accounts: Vec<Account>,
    /// Shared values, in the order of family and value.
    pub pivots: Vec<(Family, u64, Pivot)>,
    /// Encrypted resolvers by the hash of the address that used them.
    pub resolvers: Vec<(u64, Mark)>,
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
