//! The head of a request: what it tells of the client, and what of it goes on to the upstream.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use detectors::{HeaderField, Http2Capture, HttpCapture, HttpVersion};
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Version, uri};
use pingora_error::{Error, ErrorType, OrErr};
use pingora_http::{RequestHeader, ResponseHeader};

use crate::account::{header_value_kept, is_credential_header, redact_path};
use crate::connection::Connection;
use crate::limits::REQUEST_ID_BYTES_MAX;

/// Field that carries the exchange's name to the upstream and back to the client.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Captures a request from its header block in wire order.
#[must_use]
pub fn capture(
    head: &RequestHeader,
    block: &[(Bytes, Bytes)],
    h2: Option<Http2Capture>,
) -> HttpCapture {
    HttpCapture {
        version: match head.version {
            Version::HTTP_2 => HttpVersion::Http2,
            Version::HTTP_10 => HttpVersion::Http10,
            _ => HttpVersion::Http11,
        },
        method: head.method.as_str().to_owned(),
        path: redact_path(origin_form(head)),
        headers: block
            .iter()
            .filter(|(name, _)| !name.starts_with(b":"))
            .map(|(name, value)| header_field(name, value))
            .collect(),
        h2,
    }
}

fn header_field(name: &[u8], value: &[u8]) -> HeaderField {
    let name = String::from_utf8_lossy(name);
    let value = header_value_kept(&name).then(|| String::from_utf8_lossy(value).into());
    HeaderField { name: name.into(), value }
}

/// The host that a request is for, with its port if it names one.
#[must_use]
pub fn host_of(head: &RequestHeader) -> Option<&str> {
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => head.headers.get(header::HOST).and_then(|host| host.to_str().ok()),
    }
}

/// The client's own request id, if it is short and printable.
#[must_use]
pub fn request_id_of(head: &RequestHeader) -> Option<&str> {
    let id = head.headers.get(REQUEST_ID)?.to_str().ok()?;
    (!id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.bytes().all(|b| b.is_ascii_graphic()))
        .then_some(id)
}

/// How the body goes to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is none.
    None,
    /// All of it is at hand.
    Whole(usize),
    /// It follows as it comes in; the client's Content-Length, if it sent one, still holds.
    Streamed,
}

/// What decides how a head is rewritten for the upstream.
pub struct Forwarding<'a> {
    /// The client connection.
    pub connection: &'a Connection,
    /// Name of the exchange.
    pub request_id: &'a str,
    /// `Host` for the upstream; `None` keeps the client's.
    pub host: Option<&'a str>,
    /// Whether the upstream speaks TLS (the `:scheme` of HTTP/2).
    pub upstream_tls: bool,
    /// How the body goes.
    pub body: BodyFraming,
    /// Whether the answer is read on its way, so that it must come without content-coding.
    pub answer_is_read: bool,
    /// Whether this is a WebSocket handshake.
    pub websocket: bool,
    /// Organisation header to remove because the peer is not one to name organisations.
    pub untrusted_header: Option<&'a HeaderName>,
}

/// The request head for an HTTP/1.1 upstream.
///
/// # Errors
/// When the head cannot be written as HTTP/1.1 (an invalid host).
pub fn for_http1(head: &RequestHeader, how: &Forwarding<'_>) -> Result<RequestHeader, Box<Error>> {
    let mut out = rewritten(head, how)?;
    out.set_version(Version::HTTP_11);
    out.remove_header(&header::TE);
    join_cookies(&mut out)?;
    match how.body {
        BodyFraming::None => {
            out.remove_header(&header::TRANSFER_ENCODING);
            // RFC 9110, section 8.6: a method that expects a body says that there is none.
            if matches!(out.method, Method::POST | Method::PUT | Method::PATCH) {
                out.insert_header(header::CONTENT_LENGTH, 0)?;
            }
        }
        BodyFraming::Whole(length) => {
            out.remove_header(&header::TRANSFER_ENCODING);
            out.insert_header(header::CONTENT_LENGTH, length)?;
        }
        BodyFraming::Streamed if out.headers.contains_key(header::CONTENT_LENGTH) => {}
        BodyFraming::Streamed => out.insert_header(header::TRANSFER_ENCODING, "chunked")?,
    }
    if how.websocket {
        out.insert_header(header::CONNECTION, "Upgrade")?;
        out.insert_header(header::UPGRADE, "websocket")?;
    }
    let host = how.host.or_else(|| host_of(head)).unwrap_or_default();
    out.insert_header(header::HOST, host)?;
    // Origin form, whatever form the client used.
    let path = origin_form(head);
    if out.uri.authority().is_some() || !head.raw_path().starts_with(b"/") {
        out.set_uri(path.parse().or_err(ErrorType::InvalidHTTPHeader, "request target")?);
    }
    Ok(out)
}

/// The request head for an HTTP/2 upstream.
///
/// # Errors
/// When the head cannot be written as HTTP/2 (an invalid authority).
pub fn for_http2(head: &RequestHeader, how: &Forwarding<'_>) -> Result<RequestHeader, Box<Error>> {
    let mut out = rewritten(head, how)?;
    out.set_version(Version::HTTP_2);
    out.remove_header(&header::TRANSFER_ENCODING);
    if let BodyFraming::Whole(length) = how.body {
        out.insert_header(header::CONTENT_LENGTH, length)?;
    }
    let trailers = head
        .headers
        .get(header::TE)
        .is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    if trailers {
        out.insert_header(header::TE, "trailers")?;
    } else {
        out.remove_header(&header::TE);
    }
    out.remove_header(&header::HOST);
    let authority = how.host.or_else(|| host_of(head)).unwrap_or_default();
    let uri = uri::Builder::new()
        .scheme(if how.upstream_tls { "https" } else { "http" })
        .authority(authority)
        .path_and_query(origin_form(head))
        .build()
        .or_err(ErrorType::InvalidHTTPHeader, "request target")?;
    out.set_uri(uri);
    Ok(out)
}

fn rewritten(head: &RequestHeader, how: &Forwarding<'_>) -> Result<RequestHeader, Box<Error>> {
    let mut out = head.clone();
    strip_hop_by_hop_request(&mut out);
    // A body that the client held back was asked for here.
    out.remove_header(&header::EXPECT);
    if how.answer_is_read {
        out.insert_header(header::ACCEPT_ENCODING, "identity")?;
    }
    if let Some(name) = how.untrusted_header {
        out.remove_header(name);
    }
    forwarded(&mut out, head, how.connection)?;
    out.insert_header(REQUEST_ID, how.request_id)?;
    Ok(out)
}

/// Tells the upstream who the client is. What earlier proxies said is kept only when the peer is
/// a listed load balancer; from anybody else it would be the client's own claim.
fn forwarded(
    out: &mut RequestHeader,
    head: &RequestHeader,
    connection: &Connection,
) -> Result<(), Box<Error>> {
    let trusted = connection.listener.fingerprint_headers.as_ref();
    let trusted = trusted.is_some_and(|headers| connection.client_is_in(&headers.from));
    let client = connection.client_ip();
    let proto = if connection.tls.is_some() { "https" } else { "http" };
    let node = match client {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    };
    let mut element = format!("for={node};proto={proto}");
    if let Some(host) = host_of(head).filter(|host| host.bytes().all(is_host_byte)) {
        out.insert_header(X_FORWARDED_HOST, host)?;
        element.push_str(&format!(";host=\"{host}\""));
    } else {
        out.remove_header(&X_FORWARDED_HOST);
    }
    let before = |name: &HeaderName| -> Vec<String> {
        let values = head.headers.get_all(name).iter();
        values.filter_map(|value| value.to_str().ok().map(str::to_owned)).collect()
    };
    let append = |name: &HeaderName, last: String| {
        let mut all = if trusted { before(name) } else { Vec::new() };
        all.push(last);
        all.join(", ")
    };
    out.insert_header(X_FORWARDED_FOR, append(&X_FORWARDED_FOR, client.to_string()))?;
    out.insert_header(header::FORWARDED, append(&header::FORWARDED, element))?;
    if !(trusted && head.headers.contains_key(X_FORWARDED_PROTO)) {
        out.insert_header(X_FORWARDED_PROTO, proto)?;
    }
    Ok(())
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte)
}

/// RFC 9110, section 7.6.1, with the fields that `Connection` names.
fn strip_hop_by_hop_request(out: &mut RequestHeader) {
    for name in named_by_connection(&out.headers) {
        out.remove_header(&name);
    }
    for name in HOP_BY_HOP {
        out.remove_header(*name);
    }
}

/// Removes hop-by-hop fields of a response; framing is set anew for the client.
pub fn strip_hop_by_hop_response(head: &mut ResponseHeader) {
    for name in named_by_connection(&head.headers) {
        head.remove_header(&name);
    }
    for name in HOP_BY_HOP {
        head.remove_header(*name);
    }
    head.remove_header("transfer-encoding");
}

// `te` and `transfer-encoding` are decided by the version that is spoken on the next hop.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "trailer",
    "upgrade",
    "http2-settings",
];

/// End-to-end fields that a `Connection` header may not make disappear.
const NOT_FOR_CONNECTION: &[&str] = &[
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "idempotency-key",
    "transfer-encoding",
    "te",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "forwarded",
];

fn named_by_connection(headers: &http::HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| {
            !NOT_FOR_CONNECTION.contains(&name.as_str()) && !is_credential_header(name.as_str())
        })
        .collect()
}

/// HTTP/2 clients may send cookie crumbs; HTTP/1.1 has one line (RFC 9113, section 8.2.3).
fn join_cookies(out: &mut RequestHeader) -> Result<(), Box<Error>> {
    let crumbs: Vec<&[u8]> =
        out.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1 {
        let joined = crumbs.join(&b"; "[..]);
        let joined = HeaderValue::from_bytes(&joined)
            .or_err(ErrorType::InvalidHTTPHeader, "joining cookies")?;
        out.insert_header(header::COOKIE, joined)?;
    }
    Ok(())
}

/// The request's path and query, whichever form its target has (RFC 9112, section 3.2).
#[must_use]
pub fn origin_form(head: &RequestHeader) -> &str {
    head.uri.path_and_query().map_or("/", |path| match path.as_str() {
        "" => "/",
        path => path,
    })
}

/// The text of a header that a load balancer sets; `None` where there are several, since one of
/// them is then the client's.
#[must_use]
pub fn header_text(head: &RequestHeader, name: &str) -> Option<Arc<str>> {
    let mut values = head.headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    value.to_str().ok().map(Arc::from)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::config::{FingerprintHeaders, Listener};
    use crate::connection::Requests;

    fn connection(trusted: bool) -> Connection {
        let from = if trusted { vec!["192.0.2.0/24".parse().unwrap()] } else { vec![] };
        let peer: SocketAddr = "192.0.2.7:4711".parse().unwrap();
        Connection {
            peer,
            client: peer,
            listener: Arc::new(Listener {
                address: "127.0.0.1:0".parse().unwrap(),
                tls: None,
                proxy_protocol_from: vec![],
                fingerprint_headers: Some(FingerprintHeaders { from, ja3: None, ja4: None }),
            }),
            tls: None,
            client_certificate: None,
            requests: Requests::Http1(Arc::default()),
            write_mode: Arc::default(),
        }
    }

    fn request(fields: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut head = RequestHeader::build("POST", b"/v1/messages?beta=true", None).unwrap();
        for (name, value) in fields {
            head.append_header(*name, *value).unwrap();
        }
        head
    }

    fn how<'a>(connection: &'a Connection, body: BodyFraming) -> Forwarding<'a> {
        Forwarding {
            connection,
            request_id: "r1",
            host: None,
            upstream_tls: false,
            body,
            answer_is_read: true,
            websocket: false,
            untrusted_header: None,
        }
    }

    fn get<'a>(head: &'a RequestHeader, name: &str) -> Option<&'a str> {
        head.headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn hop_by_hop_fields_stay_on_their_hop() {
        let connection = connection(false);
        let head = request(&[
            ("host", "a"),
            ("connection", "keep-alive, x-private, authorization"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("authorization", "Bearer k"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("accept-encoding", "gzip, br"),
        ]);
        let out = for_http1(&head, &how(&connection, BodyFraming::Whole(12))).unwrap();
        for name in ["connection", "keep-alive", "x-private", "transfer-encoding", "expect"] {
            assert_eq!(get(&out, name), None, "{name}");
        }
        assert_eq!(get(&out, "authorization"), Some("Bearer k"));
        assert_eq!(get(&out, "content-length"), Some("12"));
        assert_eq!(get(&out, "accept-encoding"), Some("identity"));
        assert_eq!(get(&out, "x-request-id"), Some("r1"));
    }

    #[test]
    fn only_a_listed_balancer_is_believed_about_earlier_hops() {
        let fields: &[(&'static str, &'static str)] =
            &[("host", "a.example"), ("x-forwarded-for", "203.0.113.9"), ("forwarded", "for=_x")];
        let untrusted = connection(false);
        let out = for_http1(&request(fields), &how(&untrusted, BodyFraming::None)).unwrap();
        assert_eq!(get(&out, "x-forwarded-for"), Some("192.0.2.7"));
        assert_eq!(get(&out, "forwarded"), Some("for=192.0.2.7;proto=http;host=\"a.example\""));
        let trusted = connection(true);
        let out = for_http1(&request(fields), &how(&trusted, BodyFraming::None)).unwrap();
        assert_eq!(get(&out, "x-forwarded-for"), Some("203.0.113.9, 192.0.2.7"));
        assert!(get(&out, "forwarded").unwrap().starts_with("for=_x, for=192.0.2.7"));
    }

    #[test]
    fn http2_takes_its_authority_from_the_host() {
        let connection = connection(false);
        let mut how = how(&connection, BodyFraming::Streamed);
        let head = request(&[("host", "a.example:8443"), ("te", "trailers"), ("connection", "te")]);
        let out = for_http2(&head, &how).unwrap();
        assert_eq!(out.uri.to_string(), "http://a.example:8443/v1/messages?beta=true");
        assert_eq!(get(&out, "host"), None);
        assert_eq!(get(&out, "te"), Some("trailers"));
        how.host = Some("api.upstream.example");
        how.upstream_tls = true;
        let out = for_http2(&head, &how).unwrap();
        assert_eq!(out.uri.to_string(), "https://api.upstream.example/v1/messages?beta=true");
    }

    #[test]
    fn cookie_crumbs_become_one_line() {
        let connection = connection(false);
        let head = request(&[("host", "a"), ("cookie", "a=1"), ("cookie", "b=2")]);
        let out = for_http1(&head, &how(&connection, BodyFraming::None)).unwrap();
        assert_eq!(out.headers.get_all("cookie").iter().count(), 1);
        assert_eq!(get(&out, "cookie"), Some("a=1; b=2"));
    }

    #[test]
    fn a_request_id_is_believed_only_if_it_is_harmless() {
        assert_eq!(request_id_of(&request(&[("x-request-id", "abc-1")])), Some("abc-1"));
        assert_eq!(request_id_of(&request(&[("x-request-id", "a b")])), None);
        assert_eq!(request_id_of(&request(&[])), None);
    }
}
