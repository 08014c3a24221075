//! Accepting clients: PROXY header, TLS handshake with capture, then HTTP.
//!
//! The service listens on plain TCP and TLS runs here, inside `process_new`, because that is the
//! one place where pingora lets a layer see the bytes below TLS and above it.

pub mod proxy_protocol;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use detectors::TlsCapture;
use parking_lot::Mutex;
use pingora_core::apps::ServerApp;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::{ALPN, Ssl, Stream};
use pingora_core::server::ShutdownWatch;
use tokio::io::{AsyncRead, AsyncReadExt};
use tracing::{debug, info};

use crate::capture::client_io::{ClientIo, ClientTap, WriteMode};
use crate::capture::http1::{Http1Connection, Http1Tap};
use crate::capture::http2::{Http2Connection, Tap, TapLimits};
use crate::capture::tee::{Hellos, Tee};
use crate::config::Listener;
use crate::connection::{Connection, Requests};
use crate::gateway::Gateway;
use crate::limits::{LAST_REQUEST_GRACE, PROXY_HEADER_BYTES_MAX};
use crate::proxy::ConnectionApp;

/// Room for one read before HTTP begins.
const READ_AHEAD_BYTES: usize = 1024;
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The application behind one listening address.
pub struct ListenerApp {
    gateway: Arc<Gateway>,
    listener: Arc<Listener>,
    acceptor: Option<Acceptor>,
}

/// Why a connection never reached HTTP.
#[derive(Debug, thiserror::Error)]
enum NotEstablished {
    #[error("peer address unknown")]
    NoPeer,
    #[error("peer is not listed in proxy_protocol_from")]
    UnlistedPeer,
    #[error("PROXY header: {0}")]
    ProxyHeader(String),
    #[error("not TLS: {0}")]
    NotTls(String),
    #[error("TLS handshake: {0}")]
    Handshake(String),
    #[error("timed out")]
    TimedOut,
    #[error("closed by the client")]
    Closed,
}

impl NotEstablished {
    /// Label for metrics.
    fn outcome(&self) -> &'static str {
        match self {
            Self::NoPeer | Self::Closed => "failed",
            Self::UnlistedPeer | Self::ProxyHeader(_) => "proxy_header",
            Self::NotTls(_) => "not_tls",
            Self::Handshake(_) => "failed",
            Self::TimedOut => "timeout",
        }
    }
}

impl ListenerApp {
    /// The application for `listener`; `tls` is its server configuration, if it speaks TLS.
    #[must_use]
    pub fn new(
        gateway: Arc<Gateway>,
        listener: Arc<Listener>,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Self {
        Self { gateway, listener, acceptor: tls.map(Acceptor::from_server_config) }
    }

    async fn establish(
        &self,
        mut io: Stream,
        hellos: &Arc<Mutex<Hellos>>,
        mut shutdown: ShutdownWatch,
    ) -> Result<(Stream, Arc<Connection>), NotEstablished> {
        let peer = peer_address(&io).ok_or(NotEstablished::NoPeer)?;
        let mut client = peer;
        let mut ahead = Bytes::new();
        if !self.listener.proxy_protocol_from.is_empty() {
            let ip = peer.ip().to_canonical();
            if !self.listener.proxy_protocol_from.iter().any(|network| network.contains(&ip)) {
                return Err(NotEstablished::UnlistedPeer);
            }
            let (source, rest) = read_proxy_header(&mut io).await?;
            client = source.unwrap_or(peer);
            ahead = rest;
        }
        let write_mode = Arc::new(WriteMode::default());
        let connection = |requests| Connection {
            peer,
            client,
            listener: self.listener.clone(),
            tls: None,
            client_certificate: None,
            requests,
            write_mode: write_mode.clone(),
        };
        match &self.acceptor {
            Some(acceptor) => {
                let tee = Tee::capturing(io, ahead, hellos.clone());
                let mut tls = acceptor.tls_handshake(tee).await.map_err(|error| {
                    match &hellos.lock().client_error {
                        Some(reason) => NotEstablished::NotTls(reason.clone()),
                        None => NotEstablished::Handshake(error.to_string()),
                    }
                })?;
                let alpn = tls.selected_alpn_proto();
                let digest = tls.get_ssl_digest();
                let (tap, requests) = self.tap(matches!(alpn, Some(ALPN::H2)));
                let mut connection = connection(requests);
                connection.client_certificate = digest
                    .as_ref()
                    .map(|digest| digest.cert_digest.clone())
                    .filter(|digest| !digest.is_empty());
                connection.tls = tls_capture(&hellos.lock(), alpn.as_ref()).map(Arc::new);
                // HTTP/2 begins with a preface, and a connection without one is not to be kept.
                let ahead = match alpn {
                    Some(ALPN::H2) => read_preface(&mut tls, Bytes::new()).await?.1,
                    _ => Bytes::new(),
                };
                let io = ClientIo::new(tls, ahead, connection.write_mode.clone(), tap);
                Ok((Box::new(io), Arc::new(connection)))
            }
            None => {
                if ahead.is_empty() {
                    // A connection that was opened ahead of its first request ends with us.
                    let first = tokio::select! {
                        first = read_first(&mut io) => first?,
                        () = ended(&mut shutdown) => return Err(NotEstablished::Closed),
                    };
                    ahead = first;
                }
                // From its first byte on it is a request head like any other.
                let patience = self.gateway.config.limits.header_timeout;
                let (http2, ahead) = tokio::time::timeout(patience, read_preface(&mut io, ahead))
                    .await
                    .unwrap_or(Err(NotEstablished::TimedOut))?;
                let (tap, requests) = self.tap(http2);
                let connection = connection(requests);
                let write_mode = connection.write_mode.clone();
                let io = ClientIo::new(Tee::plain(io, Bytes::new()), ahead, write_mode, tap);
                Ok((Box::new(io), Arc::new(connection)))
            }
        }
    }

    fn tap(&self, http2: bool) -> (ClientTap, Requests) {
        let limits = &self.gateway.config.limits;
        if http2 {
            let counter = self.gateway.clone();
            let shared =
                Arc::new(Http2Connection::new(self.gateway.nonce()).on_abuse(move |abuse| {
                    counter.metrics.h2_abuse.with_label_values(&[abuse.name()]).inc();
                }));
            let limits = TapLimits {
                header_list_bytes_max: limits.header_bytes_max,
                header_fields_max: limits.header_fields_max,
            };
            let tap = Tap::new(shared.clone(), limits);
            (ClientTap::Http2(Box::new(tap)), Requests::Http2(shared))
        } else {
            let shared = Arc::new(Http1Connection::default());
            let over_tls = self.acceptor.is_some();
            let tap = Http1Tap::new(shared.clone(), over_tls, limits.header_bytes_max);
            (ClientTap::Http1(tap), Requests::Http1(shared))
        }
    }

    /// A failed handshake still leaves its fingerprint in the log and the metrics.
    fn record_failure(&self, peer: Option<SocketAddr>, hellos: &Hellos, error: &NotEstablished) {
        let seen = tls_capture(hellos, None);
        let metrics = &self.gateway.metrics;
        match error.outcome() {
            reason @ "proxy_header" => {
                metrics.connections_refused.with_label_values(&[reason]).inc();
            }
            outcome if self.acceptor.is_some() => {
                metrics.handshakes.with_label_values(&[outcome, "none"]).inc();
                let hello = if seen.is_some() { "captured" } else { "missing" };
                metrics.hellos.with_label_values(&[hello]).inc();
            }
            _ => {}
        }
        let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
        match seen {
            Some(tls) => info!(
                %peer, reason = %error, ja3 = tls.ja3_md5, ja4 = tls.ja4,
                sni = tls.sni.unwrap_or_default(), "connection not established"
            ),
            None => debug!(%peer, reason = %error, "connection not established"),
        }
    }
}

#[async_trait]
impl ServerApp for ListenerApp {
    async fn process_new(self: &Arc<Self>, io: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let Some(_open) = self.gateway.open_connection() else {
            debug!("connection refused: connections_max reached");
            return None;
        };
        let limits = &self.gateway.config.limits;
        let peer = peer_address(&io);
        let hellos = Arc::new(Mutex::new(Hellos::default()));
        // A plain-text connection may be opened ahead of its first request.
        let timeout =
            if self.acceptor.is_some() { limits.handshake_timeout } else { limits.idle_timeout };
        let established =
            tokio::time::timeout(timeout, self.establish(io, &hellos, shutdown.clone())).await;
        let (io, connection) = match established.unwrap_or(Err(NotEstablished::TimedOut)) {
            Ok(established) => established,
            Err(error) => {
                self.record_failure(peer, &hellos.lock(), &error);
                return None;
            }
        };
        drop(hellos);
        if self.acceptor.is_some() {
            let metrics = &self.gateway.metrics;
            let version = connection.tls.as_ref().map_or("none", |tls| tls.version.as_str());
            metrics.handshakes.with_label_values(&["ok", version]).inc();
            let hello = if connection.tls.is_some() { "captured" } else { "missing" };
            metrics.hellos.with_label_values(&[hello]).inc();
        }
        let app = Arc::new(ConnectionApp::new(self.gateway.clone(), connection));
        ServerApp::process_new(&app, io, shutdown).await
    }
}

/// Waits until the process ends and whatever was under way to it by then has come in: a connection
/// that is accepted in that moment has its request right behind it.
pub async fn ended(shutdown: &mut ShutdownWatch) {
    // An error means that the sender is gone, which is an end as well.
    let _ = shutdown.wait_for(|down| *down).await;
    tokio::time::sleep(LAST_REQUEST_GRACE).await;
}

pub(crate) fn peer_address(io: &Stream) -> Option<SocketAddr> {
    io.get_socket_digest()?.peer_addr()?.as_inet().copied()
}

async fn read_proxy_header(io: &mut Stream) -> Result<(Option<SocketAddr>, Bytes), NotEstablished> {
    let mut read = BytesMut::with_capacity(256);
    loop {
        let parsed = proxy_protocol::parse(&read)
            .map_err(|error| NotEstablished::ProxyHeader(error.to_string()))?;
        if let Some((header, consumed)) = parsed {
            let rest = read.split_off(consumed).freeze();
            return Ok((header.addresses.map(|addresses| addresses.source), rest));
        }
        if read.len() >= PROXY_HEADER_BYTES_MAX {
            return Err(NotEstablished::ProxyHeader("too long".to_owned()));
        }
        read_more(io, &mut read).await?;
    }
}

/// Whether a connection opens with the HTTP/2 preface (RFC 9113, section 3.4), and the bytes that
/// were read to find out.
async fn read_preface(
    io: &mut (impl AsyncRead + Unpin),
    ahead: Bytes,
) -> Result<(bool, Bytes), NotEstablished> {
    let mut read = BytesMut::from(ahead);
    loop {
        let n = read.len().min(H2_PREFACE.len());
        if read[..n] != H2_PREFACE[..n] {
            return Ok((false, read.freeze()));
        }
        if n == H2_PREFACE.len() {
            return Ok((true, read.freeze()));
        }
        read_more(io, &mut read).await?;
    }
}

async fn read_first(io: &mut Stream) -> Result<Bytes, NotEstablished> {
    let mut read = BytesMut::new();
    read_more(io, &mut read).await?;
    Ok(read.freeze())
}

async fn read_more(
    io: &mut (impl AsyncRead + Unpin),
    read: &mut BytesMut,
) -> Result<(), NotEstablished> {
    read.reserve(READ_AHEAD_BYTES);
    match io.read_buf(read).await {
        Ok(0) | Err(_) => Err(NotEstablished::Closed),
        Ok(_) => Ok(()),
    }
}

/// Puts a handshake's parts together; `None` when no ClientHello was seen.
fn tls_capture(hellos: &Hellos, alpn: Option<&ALPN>) -> Option<TlsCapture> {
    let read = hellos.client.as_ref()?;
    let mut capture = read.hello.capture(read.records, read.reads);
    capture.hello_retry_request = hellos.hello_retry_request;
    if let Some(server) = &hellos.server {
        server.complete(&read.hello, hellos.hello_retry_request, &mut capture);
    }
    capture.alpn_selected = alpn.map(|alpn| match alpn {
        ALPN::H2 | ALPN::H2H1 => "h2".to_owned(),
        ALPN::H1 => "http/1.1".to_owned(),
        ALPN::Custom(protocol) => String::from_utf8_lossy(protocol.protocol()).into_owned(),
    });
    Some(capture)
}
