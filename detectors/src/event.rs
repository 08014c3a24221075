//! What the engine is told: exchanges, and what is known beside them.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::observation::{AccountId, Observation, OrganisationId};

/// One thing that happened. Events come in order of their time.
#[derive(Clone, Debug)]
pub enum Event {
    /// An exchange ended, or was refused.
    Exchange(Box<Observation>),
    /// An account was created, or its profile changed.
    Profile(Profile),
    /// A credential named its organisation.
    Organisation(Declared),
    /// A host resolved a name.
    Dns(DnsLookup),
    /// A host contacted an address that no plain DNS answer had named.
    Contact(DnsContact),
    /// A model became available.
    ModelRelease(ModelRelease),
    /// Somebody acted on an account.
    Enforcement(Enforcement),
}

impl Event {
    /// When it happened, unix milliseconds.
    #[must_use]
    pub fn at_ms(&self) -> u64 {
        match self {
            Self::Exchange(observation) => observation.at_ms,
            Self::Profile(profile) => profile.at_ms,
            Self::Organisation(declared) => declared.at_ms,
            Self::Dns(lookup) => lookup.at_ms,
            Self::Contact(contact) => contact.at_ms,
            Self::ModelRelease(release) => release.at_ms,
            Self::Enforcement(enforcement) => enforcement.at_ms,
        }
    }
}

/// What the operator knows of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// When this was told, unix milliseconds.
    pub at_ms: u64,
    /// Whose profile it is.
    pub account: AccountId,
    /// The organisation that the operator declares for it.
    pub organisation: Option<OrganisationId>,
    /// When the account was created, unix seconds.
    pub created_s: Option<i64>,
    /// A pseudonym of the payment instrument; `None` for free credit.
    pub payment: Option<Arc<str>>,
    /// The first six digits of the card.
    pub bin: Option<u32>,
    /// Whether somebody checked who the account's holder is.
    pub verified: bool,
}

/// An organisation, as the account's credential names it. What the operator told of the account
/// stands beside it, and before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// When, unix milliseconds.
    pub at_ms: u64,
    /// Whose credential.
    pub account: AccountId,
    /// The organisation.
    pub organisation: OrganisationId,
}

/// How a name was resolved (T-DIST-006).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsTransport {
    /// Plain DNS over UDP (RFC 1035).
    Udp,
    /// Plain DNS over TCP (RFC 7766).
    Tcp,
    /// DNS over TLS (RFC 7858).
    Dot,
    /// DNS over QUIC (RFC 9250).
    Doq,
    /// DNS over HTTPS (RFC 8484), HTTP/3 included.
    Doh,
}

impl DnsTransport {
    /// Whether a look at the network does not show the name.
    #[must_use]
    pub fn is_encrypted(self) -> bool {
        !matches!(self, Self::Udp | Self::Tcp)
    }
}

/// A name resolution, as a sensor saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsLookup {
    /// When, unix milliseconds.
    pub at_ms: u64,
    /// The address that asked, as the gateway sees it.
    pub ip: IpAddr,
    /// Which host behind the address, by a keyed hash that the sensor made; `None` where the address
    /// is the host.
    pub host: Option<u64>,
    /// Whether this very host was seen to open connections to the API; `None` where nobody knows.
    pub client: Option<bool>,
    /// How it asked.
    pub transport: DnsTransport,
    /// The resolver.
    pub server: IpAddr,
    /// Who runs the resolver, such as `cloudflare`; `None` where nobody knows.
    pub provider: Option<Arc<str>>,
    /// A pseudonym of the name asked for; `None` where it is encrypted.
    pub name: Option<Arc<str>>,
}

/// A contact to an address that no plain DNS answer seen before had named, as a sensor saw it: the
/// address was written down somewhere, or looked up where nobody sees it (T-DIST-006).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsContact {
    /// When, unix milliseconds.
    pub at_ms: u64,
    /// The address that made the contact, as the gateway sees it.
    pub ip: IpAddr,
    /// Which host behind the address, by a keyed hash that the sensor made; `None` where the address
    /// is the host.
    pub host: Option<u64>,
    /// Whether this very host was seen to open connections to the API; `None` where nobody knows.
    pub client: Option<bool>,
    /// Where to.
    pub destination: IpAddr,
    /// To which port there.
    pub port: u16,
}

/// A model became available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRelease {
    /// When, unix milliseconds.
    pub at_ms: u64,
    /// Its name in requests.
    pub model: Arc<str>,
}

/// Somebody acted on an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enforcement {
    /// When, unix milliseconds.
    pub at_ms: u64,
    /// Whose account it is.
    pub account: AccountId,
    /// What was done.
    pub action: EnforcementAction,
}

/// What was done to an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EnforcementAction {
    /// Its requests are refused from here on.
    Suspend,
    /// Its requests are slowed down.
    Throttle,
}
