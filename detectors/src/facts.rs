//! What the detectors know beforehand: reviewed tables, shipped with the program and replaceable.

use crate::client::ClientFacts;

/// The tables.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Which signs belong to which client.
    pub clients: ClientFacts,
}

impl Facts {
    /// The shipped tables.
    #[must_use]
    pub fn builtin() -> Self {
        Self { clients: ClientFacts::builtin() }
    }
}
