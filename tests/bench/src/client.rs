//! Connections to a proxy: TLS or plain, HTTP/1.1 or HTTP/2, as lean as they can be.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::http1::{Body, Head, Start};
use crate::prompt::Requests;

/// Name in the stand's certificate.
pub const SERVER_NAME: &str = "localhost";
/// Bytes read from a socket at once: one call for several TLS records.
const READ_BYTES: usize = 64 * 1024;
/// HTTP/2 windows, larger than any answer, so that flow control is not what is measured.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 24;

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Where to connect, and how.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    /// Address to connect from.
    source: Option<IpAddr>,
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls {
    http1: TlsConnector,
    http2: TlsConnector,
    name: ServerName<'static>,
}

impl Target {
    /// An address without TLS.
    #[must_use]
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, source: None, tls: None }
    }

    /// An address with TLS, whose certificate chains to the PEM file `authority`.
    ///
    /// # Errors
    /// When the file cannot be read or used.
    pub fn tls(address: SocketAddr, authority: &Path) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(authority).map_err(io::Error::other)? {
            let certificate = certificate.map_err(io::Error::other)?;
            roots.add(certificate).map_err(io::Error::other)?;
        }
        Self::with_roots(address, &roots)
    }

    /// An address with TLS whose certificate is believed by nobody: every handshake fails.
    ///
    /// # Errors
    /// When the library refuses the settings.
    pub fn distrusting(address: SocketAddr) -> io::Result<Self> {
        Self::with_roots(address, &RootCertStore::empty())
    }

    fn with_roots(address: SocketAddr, roots: &RootCertStore) -> io::Result<Self> {
        let connector = |alpn: &[u8]| -> io::Result<TlsConnector> {
            // One key exchange group for every proxy, whatever else they could agree on.
            let provider = CryptoProvider {
                kx_groups: vec![aws_lc_rs::kx_group::X25519],
                ..aws_lc_rs::default_provider()
            };
            let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_safe_default_protocol_versions()
                .map_err(io::Error::other)?
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            // New connections are to pay for whole handshakes, as most client libraries do.
            config.resumption = Resumption::disabled();
            config.alpn_protocols = vec![alpn.to_vec()];
            Ok(Arc::new(config).into())
        };
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        let tls = Tls { http1: connector(b"http/1.1")?, http2: connector(b"h2")?, name };
        Ok(Self { address, source: None, tls: Some(tls) })
    }

    /// The same, from an address of this machine's own choice of many: all of 127.0.0.0/8 is its.
    #[must_use]
    pub fn from(&self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self.clone() }
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let Some(source) = self.source else { return TcpStream::connect(self.address).await };
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        socket.connect(self.address).await
    }

    /// `host:port` for requests.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{SERVER_NAME}:{}", self.address.port())
    }

    /// The address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens an HTTP/1.1 connection.
    ///
    /// # Errors
    /// When connecting or the handshake fails.
    pub async fn http1(&self) -> io::Result<Http1> {
        let connector = self.tls.as_ref().map(|tls| &tls.http1);
        let tcp = self.connect().await?;
        Ok(Http1::new(self.shake_hands(tcp, connector, READ_BYTES).await?))
    }

    /// Opens an HTTP/1.1 connection on which little can be under way, so that a client that reads
    /// slowly is felt.
    ///
    /// # Errors
    /// When connecting or the handshake fails.
    pub async fn narrow_http1(&self) -> io::Result<Http1> {
        let connector = self.tls.as_ref().map(|tls| &tls.http1);
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        let tcp = socket.connect(self.address).await?;
        Ok(Http1::new(self.shake_hands(tcp, connector, 1024).await?))
    }

    /// Opens an HTTP/2 connection, whose driver runs as a task until the last handle is gone.
    ///
    /// # Errors
    /// When connecting or the handshake fails.
    pub async fn http2(&self) -> io::Result<SendRequest<Bytes>> {
        let connector = self.tls.as_ref().map(|tls| &tls.http2);
        let tcp = self.connect().await?;
        let io = self.shake_hands(tcp, connector, READ_BYTES).await?;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            .handshake(io)
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(async move {
            // Its error is met by the requests on it.
            let _ = connection.await;
        });
        Ok(requests)
    }

    async fn shake_hands(
        &self,
        tcp: TcpStream,
        connector: Option<&TlsConnector>,
        read_bytes: usize,
    ) -> io::Result<Box<dyn Stream>> {
        tcp.set_nodelay(true)?;
        match (connector, &self.tls) {
            (Some(connector), Some(tls)) => {
                // TLS reads 4 KB at a time: below it the socket is read in pieces of our choice.
                let io = BufReader::with_capacity(read_bytes, tcp);
                Ok(Box::new(connector.connect(tls.name.clone(), io).await?))
            }
            _ => Ok(Box::new(tcp)),
        }
    }
}

/// An HTTP/1.1 connection that is used for one exchange after another.
pub struct Http1 {
    io: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// What of the buffer was read and not yet used.
    start: usize,
    end: usize,
}

impl Http1 {
    fn new(io: Box<dyn Stream>) -> Self {
        Self { io, buffer: vec![0; 32 * 1024], start: 0, end: 0 }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// Reads a response head.
    ///
    /// # Errors
    /// The connection's error, or what is wrong with the head.
    pub async fn head(&mut self) -> io::Result<Head> {
        loop {
            let parsed = Head::parse(&self.buffer[self.start..self.end], Start::Response)?;
            if let Some((head, length)) = parsed {
                self.start += length;
                return Ok(head);
            }
            self.more().await?;
        }
    }

    /// Reads the next bytes of a body, from what is there or from the connection. Hands pieces of
    /// it on and returns whether more follows.
    ///
    /// # Errors
    /// The connection's error, or what is wrong with the body.
    pub async fn piece(
        &mut self,
        body: &mut Body,
        on_piece: &mut impl FnMut(&[u8]),
    ) -> io::Result<bool> {
        if body.is_done() {
            return Ok(false);
        }
        if self.start == self.end {
            match self.more().await {
                Err(error)
                    if body.ends_with_connection()
                        && error.kind() == io::ErrorKind::UnexpectedEof =>
                {
                    return Ok(false);
                }
                read => read?,
            }
        }
        self.start += body.read(&self.buffer[self.start..self.end], on_piece)?;
        Ok(!body.is_done())
    }

    /// Sends a request and reads the whole response.
    ///
    /// # Errors
    /// The connection's error, or what is wrong with the response.
    pub async fn exchange(
        &mut self,
        request: &[u8],
        on_piece: &mut impl FnMut(&[u8]),
    ) -> io::Result<Head> {
        self.send(request).await?;
        let head = self.head().await?;
        let mut body = Body::new(head.framing);
        while self.piece(&mut body, on_piece).await? {}
        Ok(head)
    }

    /// Says goodbye and closes.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn close(mut self) -> io::Result<()> {
        self.io.shutdown().await
    }

    async fn more(&mut self) -> io::Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match self.io.read(&mut self.buffer[self.end..]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.end += n;
                Ok(())
            }
        }
    }
}

/// Sends request `number` on a new stream and reads the whole response; returns its status.
///
/// # Errors
/// The stream's or the connection's error.
pub async fn http2_exchange(
    connection: &SendRequest<Bytes>,
    requests: &Requests,
    number: usize,
    on_piece: &mut impl FnMut(&[u8]),
) -> io::Result<u16> {
    let (request, body) = requests.http2(number).map_err(io::Error::other)?;
    let mut ready = connection.clone().ready().await.map_err(io::Error::other)?;
    let (response, mut stream) = ready.send_request(request, false).map_err(io::Error::other)?;
    stream.send_data(body, true).map_err(io::Error::other)?;
    let response = response.await.map_err(io::Error::other)?;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(io::Error::other)?;
        on_piece(&piece);
        body.flow_control().release_capacity(piece.len()).map_err(io::Error::other)?;
    }
    Ok(status)
}
