//! One client connection: everything that was seen of it, in one place.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use detectors::TlsCapture;

use crate::capture::client_io::WriteMode;
use crate::capture::http1::Http1Connection;
use crate::capture::http2::Http2Connection;
use crate::config::Listener;
use crate::proxy::framing::FramingFault;

/// What is known of a connection once HTTP can be spoken on it.
#[derive(Debug)]
pub struct Connection {
    /// The TCP peer: the client, or the load balancer in front of us.
    pub peer: SocketAddr,
    /// The client: the peer, or the source that a trusted PROXY header names.
    pub client: SocketAddr,
    /// The listener's settings.
    pub listener: Arc<Listener>,
    /// TLS fingerprint; `None` on a plain-text listener.
    pub tls: Option<Arc<TlsCapture>>,
    /// SHA-256 of the verified client certificate.
    pub client_certificate: Option<Vec<u8>>,
    /// What the tap sees of the requests.
    pub requests: Requests,
    /// When written bytes leave (HTTP/1).
    pub write_mode: Arc<WriteMode>,
}

/// The tap's side of a connection.
#[derive(Clone, Debug)]
pub enum Requests {
    /// HTTP/1.
    Http1(Arc<Http1Connection>),
    /// HTTP/2.
    Http2(Arc<Http2Connection>),
}

impl Connection {
    /// A fault that was met in what the client sent, and that ends the connection (HTTP/1).
    #[must_use]
    pub fn fault(&self) -> Option<FramingFault> {
        match &self.requests {
            Requests::Http1(http1) => http1.fault(),
            Requests::Http2(_) => None,
        }
    }

    /// Address that exchanges are attributed to.
    #[must_use]
    pub fn client_ip(&self) -> IpAddr {
        self.client.ip().to_canonical()
    }

    /// Whether whoever speaks HTTP with us is in one of `networks`. Behind a PROXY header that is
    /// the client: the balancer in between does not touch HTTP, so its word is not in the fields.
    #[must_use]
    pub fn client_is_in(&self, networks: &[ipnet::IpNet]) -> bool {
        let ip = self.client_ip();
        networks.iter().any(|network| network.contains(&ip))
    }
}
