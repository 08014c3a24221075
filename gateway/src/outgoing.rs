//! Requests of the gateway's own, to addresses that operators configured: key sets, webhooks, peers.
//!
//! HTTP/1.1, a connection for each request, so that a caller knows how often what it sends was sent.
//! Redirects are not followed: the operator names the address whose certificate is to be trusted.
//! Error texts tell what failed and never quote the address, whose path and query may be secret, nor
//! bytes of requests or answers.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, StatusCode, Uri};
use pingora_core::connectors::ConnectorOptions;
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, ErrorType};
use pingora_http::RequestHeader;
use tokio::time::timeout;

use crate::config::Certificate;
use crate::listener::tls;
use crate::upstream::with_roots;

/// An `http` or `https` address that may be asked.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    tls: bool,
    authority: Authority,
    target: PathAndQuery,
}

/// Why a text is no [`Url`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not an http or https address with a host and without user name and fragment")]
pub struct NoUrl;

impl FromStr for Url {
    type Err = NoUrl;

    fn from_str(text: &str) -> Result<Self, NoUrl> {
        let parts = text.parse::<Uri>().map_err(|_| NoUrl)?.into_parts();
        let tls = match parts.scheme.as_ref().map(http::uri::Scheme::as_str) {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(NoUrl),
        };
        let authority = parts.authority.ok_or(NoUrl)?;
        let port = authority.as_str().rsplit_once(']').map_or(authority.as_str(), |(_, port)| port);
        // `Uri` drops a fragment without a word, and takes a port that is none for no port.
        let bad_port = port.contains(':') && authority.port_u16().is_none_or(|port| port == 0);
        let user = authority.as_str().contains('@');
        if authority.host().is_empty() || user || bad_port || text.contains('#') {
            return Err(NoUrl);
        }
        let target = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Self { tls, authority, target })
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/…", if self.tls { "https" } else { "http" }, self.authority)
    }
}

impl Url {
    /// Whether it is asked over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Its host, an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.authority.host().trim_matches(['[', ']'])
    }

    /// Whether it is on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        host == "localhost"
            || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }

    fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.tls { 443 } else { 80 })
    }
}

/// Whom an address is trusted by, and who we are to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// CA bundle in PEM; the system's when `None`.
    pub ca: Option<PathBuf>,
    /// Our certificate, where one is asked for.
    pub certificate: Option<Certificate>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutgoingError {
    /// The system's CA certificates, or what [`Trust`] names, cannot be loaded.
    #[error(
        "the CA certificates cannot be loaded; install the system's (ca-certificates) or name a \
         PEM file"
    )]
    Roots,
    /// A file that [`Trust`] names cannot be used.
    #[error(transparent)]
    Trust(#[from] tls::TlsError),
    /// The host's name has no address.
    #[error("name lookup: {0}")]
    Name(std::io::Error),
    /// No connection, or no TLS on it.
    #[error("connecting: {0}")]
    Connect(String),
    /// The request cannot be made, such as for a malformed header.
    #[error("request: {0}")]
    Request(&'static str),
    /// The request was not taken, or the answer is no HTTP or broke off.
    #[error("answer: {0}")]
    Answer(&'static str),
    /// The answer is longer than was allowed.
    #[error("answer: more than {0} bytes")]
    TooLong(usize),
    /// The time is over.
    #[error("no answer in time")]
    Timeout,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// `GET`, `POST` or another.
    pub method: Method,
    /// Path and query in place of the address's own.
    pub target: Option<&'a str>,
    /// Fields beside `host`, `content-length`, `connection`, `accept-encoding` and `user-agent`,
    /// which are set here.
    pub headers: &'a [(&'a str, &'a str)],
    /// Empty for none.
    pub body: Bytes,
    /// Time for all of it.
    pub timeout: Duration,
    /// Bytes of the answer's body at most.
    pub answer_bytes_max: usize,
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status, never a 1xx.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body, whole.
    pub body: Vec<u8>,
}

/// A client of one address.
pub struct Outgoing {
    url: Url,
    connector: Connector,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Outgoing").field(&self.url).finish()
    }
}

impl Outgoing {
    /// A client of this address. Nothing is connected yet.
    ///
    /// # Errors
    /// When certificates cannot be loaded.
    pub fn new(url: Url, trust: &Trust) -> Result<Self, OutgoingError> {
        let mut options = ConnectorOptions::new(1);
        if url.tls {
            // Read here first: pingora only tells that something was wrong.
            if let Some(ca) = &trust.ca {
                tls::load_roots(ca)?;
                options.ca_file = Some(ca.display().to_string());
            }
            if let Some(certificate) = &trust.certificate {
                tls::load_certificate(certificate)?;
                let Certificate { chain, key } = certificate;
                options.cert_key_file =
                    Some((chain.display().to_string(), key.display().to_string()));
            }
        } else {
            // No certificate is verified on plain text, so the system's are not read for it.
            options.ca_file = Some("/dev/null".to_owned());
        }
        let connector = with_roots(AssertUnwindSafe(|| Connector::new(Some(options))));
        Ok(Self { url, connector: connector.ok_or(OutgoingError::Roots)? })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Asks once.
    ///
    /// # Errors
    /// When there is no whole answer in time. The other side may have had the request all the same.
    pub async fn send(&self, request: &Request<'_>) -> Result<Answer, OutgoingError> {
        match timeout(request.timeout, self.ask(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(OutgoingError::Timeout),
        }
    }

    async fn ask(&self, request: &Request<'_>) -> Result<Answer, OutgoingError> {
        let header = self.header(request)?;
        let mut session = self.connect(request.timeout).await?;
        let answer = |error: Box<Error>| OutgoingError::Answer(error.etype().as_str());
        session.write_request_header(Box::new(header)).await.map_err(answer)?;
        // Who answers before the body is through may close; its answer still counts.
        let written = match session.write_request_body(request.body.clone(), true).await {
            Ok(()) => session.finish_request_body().await,
            failed => failed,
        };
        let (status, headers) = loop {
            if let Err(error) = session.read_response_header().await {
                return Err(answer(written.err().unwrap_or(error)));
            }
            match session.response_header() {
                Some(header) if header.status == StatusCode::SWITCHING_PROTOCOLS => {
                    return Err(OutgoingError::Answer("switches protocols"));
                }
                Some(header) if header.status.is_informational() => {}
                Some(header) => break (header.status, header.headers.clone()),
                None => return Err(OutgoingError::Answer("no header")),
            }
        };
        let mut body = Vec::new();
        while let Some(chunk) = session.read_response_body().await.map_err(answer)? {
            if body.len() + chunk.len() > request.answer_bytes_max {
                return Err(OutgoingError::TooLong(request.answer_bytes_max));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body })
    }

    fn header(&self, request: &Request<'_>) -> Result<RequestHeader, OutgoingError> {
        let wrong = |error: Box<Error>| OutgoingError::Request(error.etype().as_str());
        let target = request.target.unwrap_or(self.url.target.as_str());
        let mut header = RequestHeader::build(request.method.clone(), target.as_bytes(), Some(8))
            .map_err(wrong)?;
        let length = request.body.len().to_string();
        let ours = [
            ("host", self.url.authority.as_str()),
            ("accept-encoding", "identity"),
            ("user-agent", concat!("stillgate/", env!("CARGO_PKG_VERSION"))),
            ("connection", "close"),
        ];
        for (name, value) in request.headers.iter().copied().chain(ours) {
            header.insert_header(name.to_owned(), value).map_err(wrong)?;
        }
        if !request.body.is_empty() || request.method == Method::POST {
            header.insert_header("content-length", length).map_err(wrong)?;
        }
        Ok(header)
    }

    /// Connects to the first of the host's addresses that lets itself be.
    async fn connect(&self, whole: Duration) -> Result<HttpSession, OutgoingError> {
        let found = tokio::net::lookup_host((self.url.host(), self.url.port())).await;
        let mut outcome = Err(OutgoingError::Connect("no address".to_owned()));
        for address in found.map_err(OutgoingError::Name)? {
            let mut peer = HttpPeer::new(address, self.url.tls, self.url.host().to_owned());
            // One that is silent leaves time for another.
            peer.options.total_connection_timeout = Some(whole / 3);
            outcome = match self.connector.get_http_session(&peer).await {
                Ok((session, _)) => return Ok(session),
                Err(error) => Err(OutgoingError::Connect(kind(&error))),
            };
        }
        outcome
    }
}

/// An error's kind; of a handshake that failed, the reason that rustls gives, which pingora only has
/// in its text. It holds nothing of HTTP.
fn kind(error: &Error) -> String {
    let text = error.to_string();
    let reason = || Some(text.split_once("cause: ")?.1.split_once(", SNI")?.0);
    match error.etype() {
        ErrorType::TLSHandshakeFailure => reason().unwrap_or("TLS handshake failed").to_owned(),
        kind => kind.as_str().to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::Mutex;

    use super::*;
    use crate::config::file::tests::TestDirectory;

    /// A server that answers each connection with the next of these bytes, then closes it, and keeps
    /// what it was sent.
    pub(crate) struct Scripted {
        pub(crate) address: String,
        seen: Arc<Mutex<Vec<String>>>,
    }

    impl Scripted {
        pub(crate) async fn start(answers: Vec<Vec<u8>>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let seen = Arc::new(Mutex::new(Vec::new()));
            let keep = seen.clone();
            tokio::spawn(async move {
                for answer in answers {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let request = read_request(&mut stream).await;
                    keep.lock().await.push(request);
                    let _ = stream.write_all(&answer).await;
                }
            });
            Self { address, seen }
        }

        pub(crate) async fn seen(&self) -> Vec<String> {
            self.seen.lock().await.clone()
        }
    }

    async fn read_request(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
        let mut bytes = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                    return text;
                }
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return text;
            }
        }
    }

    fn client(url: &str) -> Outgoing {
        Outgoing::new(url.parse().unwrap(), &Trust::default()).unwrap()
    }

    fn get(timeout: Duration) -> Request<'static> {
        Request {
            method: Method::GET,
            target: None,
            headers: &[],
            body: Bytes::new(),
            timeout,
            answer_bytes_max: 100,
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_request_is_sent_once_and_its_answer_read_whole() {
        let server = Scripted::start(vec![
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nX-A: b\r\n\
              transfer-encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n"
                .to_vec(),
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
                .to_vec(),
        ])
        .await;
        let client = client(&format!("http://{}/hook?k=v", server.address));
        let post = Request {
            method: Method::POST,
            headers: &[("content-type", "application/json"), ("host", "else")],
            body: Bytes::from_static(b"{\"a\":1}"),
            ..get(LONG)
        };
        let answer = client.send(&post).await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (StatusCode::ACCEPTED, &b"yes"[..]));
        assert_eq!(answer.headers["x-a"], "b");
        let moved = client.send(&Request { target: Some("/b?c"), ..get(LONG) }).await.unwrap();
        assert_eq!(moved.status, StatusCode::FOUND);

        let seen = server.seen().await;
        let [posted, got] = seen.as_slice() else { panic!("{seen:?}") };
        assert!(posted.starts_with("POST /hook?k=v HTTP/1.1\r\n"), "{posted}");
        for field in [
            &format!("host: {}\r\n", server.address),
            "content-type: application/json\r\n",
            "content-length: 7\r\n",
            "connection: close\r\n",
        ] {
            assert!(posted.to_lowercase().contains(field), "{posted}: {field}");
        }
        assert!(!posted.contains("else"), "{posted}");
        assert!(posted.ends_with("\r\n\r\n{\"a\":1}"), "{posted}");
        assert!(got.starts_with("GET /b?c HTTP/1.1\r\n"), "{got}");
        assert!(!got.contains("content-length"), "{got}");
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_broken_or_late_is_none() {
        let ok = "HTTP/1.1 200 OK\r\n";
        let server = Scripted::start(vec![
            format!("{ok}content-length: 101\r\n\r\n{}", "x".repeat(101)).into_bytes(),
            format!("{ok}\r\n{}", "x".repeat(101)).into_bytes(),
            format!("{ok}content-length: 10\r\n\r\nshort").into_bytes(),
            format!("{ok}transfer-encoding: chunked\r\n\r\n5\r\nshort").into_bytes(),
            b"SECRET\r\n\r\n".to_vec(),
            Vec::new(),
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n".to_vec(),
        ])
        .await;
        let client = client(&format!("http://{}/", server.address));
        for expected in ["TooLong", "TooLong", "Answer", "Answer", "Answer", "Answer", "Answer"] {
            let error = client.send(&get(LONG)).await.unwrap_err();
            assert!(format!("{error:?}").starts_with(expected), "{error:?}: {expected}");
            assert!(!format!("{error:?}{error}").contains("SECRET"), "{error:?}");
        }
        // Nobody listens any more; then somebody does who never answers.
        let error = client.send(&get(LONG)).await.unwrap_err();
        assert!(matches!(error, OutgoingError::Connect(_)), "{error:?}");
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = self::client(&format!("http://{}", silent.local_addr().unwrap()));
        let error = client.send(&get(Duration::from_millis(50))).await.unwrap_err();
        assert!(matches!(error, OutgoingError::Timeout), "{error:?}");
    }

    /// Serves TLS with this certificate; asks for one of the client's where a CA is given.
    fn tls_server(certificate: &Certificate, client_ca: Option<PathBuf>) -> String {
        let settings = crate::config::ListenerTls {
            certificates: vec![certificate.clone()],
            client_certificate_required: client_ca.is_some(),
            client_ca,
        };
        let store = tls::CertificateStore::load(&settings.certificates).unwrap();
        let config = tls::server_config(&settings, store, false).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
                if stream.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
                }
            }
        });
        format!("https://localhost:{port}/")
    }

    #[tokio::test]
    async fn tls_trusts_the_named_ca_and_shows_the_named_certificate() {
        let directory = TestDirectory::new();
        let server = directory.certificate("server", &["localhost"]);
        let other = directory.certificate("other", &["localhost"]);
        let ours = directory.certificate("ours", &["us"]);
        let trusting = |ca: &Certificate, certificate: Option<&Certificate>| Trust {
            ca: Some(ca.chain.clone()),
            certificate: certificate.cloned(),
        };
        let outcome = async |url: &str, trust: &Trust| {
            Outgoing::new(url.parse().unwrap(), trust).unwrap().send(&get(LONG)).await
        };

        let url = tls_server(&server, None);
        let answer = outcome(&url, &trusting(&server, None)).await.unwrap();
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        let error = outcome(&url, &trusting(&other, None)).await.unwrap_err().to_string();
        assert!(error.starts_with("connecting: invalid peer certificate"), "{error}");
        let elsewhere = url.replace("localhost", "127.0.0.1");
        let error = outcome(&elsewhere, &trusting(&server, None)).await.unwrap_err().to_string();
        assert!(error.contains("not valid for"), "{error}");

        let url = tls_server(&server, Some(ours.chain.clone()));
        let answer = outcome(&url, &trusting(&server, Some(&ours))).await.unwrap();
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        assert!(outcome(&url, &trusting(&server, None)).await.is_err());

        let gone = Trust { ca: Some("/nonexistent.pem".into()), certificate: None };
        let error = Outgoing::new(url.parse().unwrap(), &gone).unwrap_err();
        assert!(error.to_string().contains("/nonexistent.pem cannot be read"), "{error}");
    }

    #[test]
    fn addresses_are_http_with_a_host_and_nothing_else() {
        for text in
            ["http://a", "HTTPS://a/", "https://a:1/b?c", "http://[::1]:80/", "https://a.example/?"]
        {
            assert!(text.parse::<Url>().is_ok(), "{text}");
        }
        for text in [
            "",
            "/",
            "a",
            "a:80",
            "ftp://a/",
            "http://",
            "http:///b",
            "http://u@a/",
            "//a/b",
            "http://u:p@a/",
            "http://a/#b",
            "http://a:0/",
            "http://a:99999/",
            "http://a:/",
            "*",
        ] {
            assert_eq!(text.parse::<Url>(), Err(NoUrl), "{text}");
        }
        let url: Url = "https://[::1]:8443/SECRET?SECRET".parse().unwrap();
        assert_eq!((url.host(), url.port(), url.is_tls()), ("::1", 8443, true));
        assert!(url.is_loopback() && !format!("{url:?}").contains("SECRET"));
        assert_eq!("http://a".parse::<Url>().unwrap().port(), 80);
    }

    proptest! {
        #[test]
        fn arbitrary_addresses_never_panic(text in "(https?://)?[a-z@:/?#\\[\\]0-9.%]{0,40}|\\PC{0,40}") {
            if let Ok(url) = text.parse::<Url>() {
                prop_assert!(!url.host().is_empty());
                prop_assert!(url.port() > 0);
            }
        }
    }
}
