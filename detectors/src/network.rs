//! What is known of the network that an address belongs to.

use std::sync::Arc;

use serde::Serialize;

/// What an address is used for, as far as tables tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// No table names it: homes, offices, schools, mobile networks.
    #[default]
    Unlisted,
    /// A cloud or hosting provider: where honest scripts live.
    Hosting,
    /// A commercial VPN's exit.
    Vpn,
    /// A proxy that is sold as one.
    Proxy,
    /// A Tor exit.
    Tor,
}

/// The network of an address, looked up by whoever made the observation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Autonomous system number; 0 where unknown.
    pub asn: u32,
    /// The provider's name, where a table has one.
    pub name: Option<Arc<str>>,
    /// What the address is used for.
    pub kind: NetworkKind,
}
