//! What the sensor has to tell of: a host looked a name up, or contacted an address that no plain DNS
//! answer had named.
//!
//! These are in the clear and stay on this machine: `watch` prints them. What leaves it is made of them
//! by the tally, which hashes names and hosts.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use crate::event::{Hook, Process, Protocol};

/// How a name was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Plain DNS over UDP (RFC 1035).
    Udp,
    /// Plain DNS over TCP (RFC 7766).
    Tcp,
    /// DNS over TLS (RFC 7858).
    Dot,
    /// DNS over QUIC (RFC 9250).
    Doq,
    /// DNS over HTTPS on TCP (RFC 8484).
    Doh,
    /// DNS over HTTP/3 (RFC 9114).
    Doh3,
}

/// By what a lookup was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// The port: 53 or 853.
    Port,
    /// The resolver's address, which is on a list.
    Address,
    /// The server name in a ClientHello, which is on a list.
    Name,
}

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Its address, as the sensor saw it: behind a NAT not as the gateway does.
    pub address: IpAddr,
    /// The local process; `None` of forwarded traffic.
    pub process: Option<Process>,
    /// Where it was seen.
    pub hook: Hook,
    /// Index of the link; 0 where unknown.
    pub link: u32,
}

/// A name was looked up, or a connection to look names up was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// When, nanoseconds since boot.
    pub at_ns: u64,
    /// By whom.
    pub origin: Origin,
    /// How.
    pub transport: Transport,
    /// Where.
    pub server: SocketAddr,
    /// By what it was recognised.
    pub sign: Sign,
    /// Who runs the resolver, where a list says so.
    pub provider: Option<Arc<str>>,
    /// The name asked for, where it could be read; lower case, without the last dot.
    pub name: Option<Arc<str>>,
    /// The server name of an encrypted lookup's ClientHello, where it was read.
    pub server_name: Option<Arc<str>>,
}

/// An address was contacted that no plain DNS answer had named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// When, nanoseconds since boot.
    pub at_ns: u64,
    /// By whom.
    pub origin: Origin,
    /// The address.
    pub destination: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
}

/// One thing to tell of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// A lookup.
    Lookup(Lookup),
    /// A contact without a name.
    Contact(Contact),
    /// A host opened a connection to the API itself (to an address of `api`): it runs an API client.
    Client {
        /// When, nanoseconds since boot.
        at_ns: u64,
        /// Which host.
        origin: Origin,
    },
}
