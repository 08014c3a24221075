//! What the detectors know beforehand: reviewed tables, shipped with the program and replaceable.

use crate::client::ClientFacts;
use crate::text::{TextFacts, TextFactsError};

/// The tables.
#[derive(Debug)]
pub struct Facts {
    /// Which signs belong to which client.
    pub clients: ClientFacts,
    /// What texts of extraction read like.
    pub text: TextFacts,
}

impl Facts {
    /// The shipped tables.
    ///
    /// # Errors
    /// When a shipped table is broken, which the tests rule out.
    pub fn builtin() -> Result<Self, TextFactsError> {
        Ok(Self { clients: ClientFacts::builtin(), text: TextFacts::builtin()? })
    }
}
