//! Requests that two parsers could read differently are refused here and never reach the upstream
//! (RFC 9112, section 11.2; RFC 9113, section 8.2).

use harness::http1::{self, Response};
use harness::http2::{self, CONTINUATION, Connection, DATA, END_HEADERS, END_STREAM, HEADERS};
use harness::{Gateway, Provider};

/// A request that must not be passed on.
struct Case {
    name: &'static str,
    /// The request; `@` stands for the path.
    request: &'static str,
}

const fn case(name: &'static str, request: &'static str) -> Case {
    Case { name, request }
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    // Two framings.
    case("length-and-chunked", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"),
    case("chunked-and-length", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGET /refused/inside HTTP/1.1\r\n\r\n0\r\n\r\n"),
    case("two-lengths", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\n{}"),
    case("equal-lengths", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}"),
    case("length-list", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\n{}"),
    case("length-plus", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\n{}"),
    case("length-minus", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: -2\r\n\r\n{}"),
    case("length-hex", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 0x2\r\n\r\n{}"),
    case("length-empty", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n"),
    case("length-overflow", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551618\r\n\r\n{}"),
    // Transfer codings that one side might not see.
    case("te-identity", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
    case("te-unknown", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    case("te-list", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    case("te-twice", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    case("te-space-before-colon", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    case("te-vertical-tab", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    case("te-http10", "POST @ HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    // Chunks.
    case("chunk-size-letters", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
    case("chunk-size-minus", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n"),
    case("chunk-size-0x", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n"),
    case("chunk-size-overflow", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n0\r\n\r\n"),
    case("chunk-size-empty", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\n{}\r\n0\r\n\r\n"),
    case("chunk-too-long", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n"),
    // Lines.
    case("bare-lf", "POST @ HTTP/1.1\nHost: a\nContent-Length: 2\n\n{}"),
    case("bare-lf-in-fields", "POST @ HTTP/1.1\r\nHost: a\r\nX-A: b\nContent-Length: 2\r\n\r\n{}"),
    case("bare-cr-in-value", "POST @ HTTP/1.1\r\nHost: a\r\nX-A: b\rX-B: c\r\nContent-Length: 2\r\n\r\n{}"),
    case("obs-fold", "POST @ HTTP/1.1\r\nHost: a\r\nX-A: b\r\n Content-Length: 40\r\nContent-Length: 2\r\n\r\n{}"),
    case("obs-fold-tab", "POST @ HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\tc\r\nContent-Length: 2\r\n\r\n{}"),
    case("fold-after-request-line", "POST @ HTTP/1.1\r\n Host: a\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"),
    case("space-before-colon", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length : 2\r\n\r\n{}"),
    case("tab-before-colon", "POST @ HTTP/1.1\r\nHost: a\r\nX-A\t: 2\r\nContent-Length: 2\r\n\r\n{}"),
    case("space-in-name", "POST @ HTTP/1.1\r\nHost: a\r\nX A: 2\r\nContent-Length: 2\r\n\r\n{}"),
    case("empty-name", "POST @ HTTP/1.1\r\nHost: a\r\n: 2\r\nContent-Length: 2\r\n\r\n{}"),
    case("no-colon", "POST @ HTTP/1.1\r\nHost: a\r\nnonsense\r\nContent-Length: 2\r\n\r\n{}"),
    case("nul-in-value", "POST @ HTTP/1.1\r\nHost: a\r\nX-A: b\0c\r\nContent-Length: 2\r\n\r\n{}"),
    case("nul-in-name", "POST @ HTTP/1.1\r\nHost: a\r\nX-\0A: b\r\nContent-Length: 2\r\n\r\n{}"),
    // Host and version.
    case("no-host", "POST @ HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"),
    case("two-hosts", "POST @ HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 2\r\n\r\n{}"),
    case("version-9", "POST @ HTTP/9.9\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"),
    case("no-version", "GET @\r\n\r\n"),
    case("space-in-path", "GET @ /x HTTP/1.1\r\nHost: a\r\n\r\n"),
];

#[test]
fn over_plain_text() {
    check_cases(|gateway, request| http1::plain(gateway.plain_address(), request));
}

#[test]
fn over_tls() {
    check_cases(|gateway, request| {
        let tls = gateway.authority().tls_client(&["http/1.1"]);
        let mut stream = http1::connect_tls(gateway.tls_address(), &tls);
        http1::exchange(&mut stream, request)
    });
}

fn check_cases(exchange: impl Fn(&Gateway, &[u8]) -> Response) {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let mut wrong = Vec::new();
    for case in CASES {
        let before = refused(&gateway);
        let path = format!("/refused/{}/v1/chat/completions", case.name);
        let response = exchange(&gateway, case.request.replace('@', &path).as_bytes());
        // Closed without an answer is a refusal too, where not even a head could be read.
        if !matches!(response.status, 0 | 400) {
            wrong.push(format!("{}: {}", case.name, response.status));
        }
        if provider.saw(case.name.as_bytes()) {
            wrong.push(format!("{}: reached the upstream", case.name));
        }
        if !counted(&gateway, before) {
            wrong.push(format!("{}: was not counted", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
    assert!(!provider.saw(b"/refused/"), "something was passed on");
    still_serves(&gateway, &provider);
}

/// RFC 9113, section 3.1 took the h2c upgrade away: over TLS it can only be an attempt to speak
/// past the gateway (an upstream that accepts it would read everything after as HTTP/2).
#[test]
fn an_h2c_upgrade_over_tls_is_refused() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    for upgrade in ["h2c", "H2C", "websocket, h2c", "tls/1.2"] {
        let before = refused(&gateway);
        let request = format!(
            "GET /refused/upgrade HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
        );
        let response = http1::tls(gateway.tls_address(), &tls, request.as_bytes());
        assert_eq!(response.status, 400, "{upgrade}: {}", response.text());
        assert!(counted(&gateway, before), "{upgrade}");
    }
    assert!(!provider.saw(b"/refused/"));
    still_serves(&gateway, &provider);
}

/// On plain text the offer is legal and must be ignored, not passed on.
#[test]
fn an_h2c_upgrade_on_plain_text_goes_no_further() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let request = b"GET /offered HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n\
        Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n";
    let response = http1::plain(gateway.plain_address(), request);
    assert!(matches!(response.status, 200 | 400), "{response:?}");
    if let Some(received) = provider.request("/offered") {
        assert_eq!(received.header("upgrade"), None, "{received:?}");
        assert_eq!(received.header("http2-settings"), None, "{received:?}");
    }
}

/// Hop-by-hop fields, and whatever Connection names, end at the gateway (RFC 9110, section 7.6.1).
#[test]
fn hop_by_hop_fields_end_here() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let request = b"GET /hop HTTP/1.1\r\nHost: a\r\nConnection: close, X-Named\r\nX-Named: 1\r\n\
        Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\nX-Kept: 1\r\n\r\n";
    assert_eq!(http1::plain(gateway.plain_address(), request).status, 200);
    let received = provider.request("/hop").expect("the request");
    for name in ["x-named", "keep-alive", "proxy-connection"] {
        assert_eq!(received.header(name), None, "{name}: {received:?}");
    }
    assert_eq!(received.header("x-kept"), Some("1"));
}

#[test]
fn large_heads() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .limit("header_bytes_max = 16384")
        .limit("header_fields_max = 64")
        .start();
    let value = "v".repeat(20_000);
    let many: String = (0..80).map(|n| format!("X-{n}: v\r\n")).collect();
    let cases = [("one-large-field", format!("X-Large: {value}\r\n")), ("many-fields", many)];
    for (name, fields) in cases {
        let request = format!("GET /refused/{name} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let response = http1::plain(gateway.plain_address(), request.as_bytes());
        assert_eq!(response.status, 431, "{name}: {}", response.text());
    }
    let line = format!("GET /refused/{} HTTP/1.1\r\nHost: a\r\n\r\n", "p".repeat(20_000));
    let status = http1::plain(gateway.plain_address(), line.as_bytes()).status;
    assert!(matches!(status, 414 | 431), "a long request line: {status}");

    let mut connection = open_http2(&gateway);
    let mut large = http2::get("/refused/large");
    large.push(("x-large".to_owned(), value));
    let mut many = http2::get("/refused/many");
    many.extend((0..80).map(|n| (format!("x-{n}"), "v".to_owned())));
    for (stream, fields) in [(1, large), (3, many)] {
        connection.send(&header_frames(stream, &http2::header_block(&fields)));
        connection.settle(&[stream]);
        let answer = connection.answer(stream);
        let refused = matches!(answer.status, 400 | 431)
            || answer.reset.is_some()
            || connection.goaway.is_some();
        assert!(refused, "stream {stream}: {answer:?}");
    }
    assert!(!provider.saw(b"/refused/"));
    still_serves(&gateway, &provider);
}

/// Header lists that HTTP/2 forbids, by raw frames.
#[test]
fn http2_header_lists() {
    const FIELDS: &[(&str, &[(&str, &str)])] = &[
        (
            "pseudo-after-regular",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                ("x-a", "1"),
                (":path", "@"),
            ],
        ),
        (
            "unknown-pseudo",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                (":proto", "1"),
            ],
        ),
        (
            "response-pseudo",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                (":status", "200"),
            ],
        ),
        (
            "two-paths",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "/fine"),
                (":path", "@"),
            ],
        ),
        (
            "two-methods",
            &[
                (":method", "GET"),
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
            ],
        ),
        ("no-method", &[(":scheme", "https"), (":authority", "localhost"), (":path", "@")]),
        (
            "no-path",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                ("x-path", "@"),
            ],
        ),
        (
            "empty-path",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", ""),
                ("x-path", "@"),
            ],
        ),
        ("no-scheme", &[(":method", "GET"), (":authority", "localhost"), (":path", "@")]),
        (
            "upper-case",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                ("X-Upper", "1"),
            ],
        ),
        (
            "connection",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                ("connection", "close"),
            ],
        ),
        (
            "keep-alive",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                ("keep-alive", "1"),
            ],
        ),
        (
            "proxy-connection",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                ("proxy-connection", "close"),
            ],
        ),
        (
            "transfer-encoding",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                ("transfer-encoding", "chunked"),
            ],
        ),
        (
            "upgrade",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                ("upgrade", "h2c"),
            ],
        ),
        (
            "te-gzip",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                ("te", "gzip"),
            ],
        ),
        (
            "line-break-in-value",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                ("x-a", "b\r\nx-smuggled: 1"),
            ],
        ),
        (
            "line-break-in-path",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@ HTTP/1.1\r\nx-smuggled: 1"),
            ],
        ),
        (
            "space-in-path",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@ HTTP/1.1"),
            ],
        ),
        (
            "line-break-in-name",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                ("x-a\r\nx-smuggled", "1"),
            ],
        ),
        (
            "space-in-name",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                ("x a", "1"),
            ],
        ),
        (
            "colon-in-name",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                ("x-a:b", "1"),
            ],
        ),
        (
            "line-break-in-method",
            &[
                (":method", "GET /x HTTP/1.1\r\nx-smuggled: 1\r\n\r\nGET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
            ],
        ),
        (
            "two-hosts",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "@"),
                ("host", "other.example"),
            ],
        ),
    ];
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let mut wrong = Vec::new();
    let mut uncounted = Vec::new();
    for (name, fields) in FIELDS {
        let before = refused(&gateway);
        let path = format!("/refused/{name}");
        let fields: Vec<(&str, String)> =
            fields.iter().map(|(name, value)| (*name, value.replace('@', &path))).collect();
        let mut connection = open_http2(&gateway);
        connection.send(&http2::request(1, &fields));
        connection.settle(&[1]);
        let answer = connection.answer(1);
        let refused_now = answer.status == 400
            || (answer.status == 0
                && (answer.reset.is_some() || connection.goaway.is_some() || connection.closed));
        if !refused_now {
            wrong.push(format!("{name}: {answer:?}"));
        }
        if !counted(&gateway, before) {
            uncounted.push(*name);
        }
    }
    for needle in [&b"/refused/"[..], b"x-smuggled"] {
        assert!(!provider.saw(needle), "something was passed on");
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), FIELDS.len(), wrong.join("\n"));
    assert!(uncounted.is_empty(), "not counted in /metrics: {uncounted:?}");
    still_serves(&gateway, &provider);
}

/// A body that is not as long as its content-length says (RFC 9113, section 8.1.1).
#[test]
fn http2_length_must_be_true() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    for (name, declared, sent) in
        [("shorter", "10", "{}"), ("longer", "2", "{\"a\":1}"), ("two", "2", "{}")]
    {
        let mut fields = http2::get(&format!("/refused/{name}/v1/chat/completions"));
        fields[0].1 = "POST".to_owned();
        fields.push(("content-length".to_owned(), declared.to_owned()));
        if name == "two" {
            fields.push(("content-length".to_owned(), "3".to_owned()));
        }
        let mut connection = open_http2(&gateway);
        let mut bytes = http2::frame(HEADERS, END_HEADERS, 1, &http2::header_block(&fields));
        bytes.extend(http2::frame(DATA, END_STREAM, 1, sent.as_bytes()));
        connection.send(&bytes);
        connection.settle(&[1]);
        let answer = connection.answer(1);
        let refused = answer.status == 400
            || (answer.status == 0
                && (answer.reset.is_some() || connection.goaway.is_some() || connection.closed));
        assert!(refused, "{name}: {answer:?}");
    }
    assert!(!provider.saw(b"/refused/"));
    still_serves(&gateway, &provider);
}

/// A header block that never ends is cut off (the CONTINUATION flood).
#[test]
fn http2_endless_header_block() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let mut connection = open_http2(&gateway);
    connection.send(&http2::frame(
        HEADERS,
        END_STREAM,
        1,
        &http2::header_block(&http2::get("/refused/endless")),
    ));
    let piece = http2::header_block(&[("x-more", "v".repeat(1000))]);
    for _ in 0..4000 {
        connection.send(&http2::frame(CONTINUATION, 0, 1, &piece));
        if connection.closed {
            break;
        }
    }
    connection.settle(&[1]);
    assert!(connection.closed || connection.goaway.is_some(), "4 MB of header block were taken");
    assert!(!provider.saw(b"/refused/"));
    still_serves(&gateway, &provider);
}

/// What the gateway refused for its framing, by all of its counters.
fn refused(gateway: &Gateway) -> f64 {
    gateway.metric("stillgate_framing_refused_total") + gateway.metric("stillgate_h2_abuse_total")
}

/// Whether the counters went up. Some are raised when the connection is put away, which may be a
/// moment after the answer.
fn counted(gateway: &Gateway, before: f64) -> bool {
    (0..10).any(|_| {
        let more = refused(gateway) > before;
        if !more {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        more
    })
}

/// After all that an ordinary request still passes, on each listener and version.
fn still_serves(gateway: &Gateway, provider: &Provider) {
    let request = b"GET /fine HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(http1::plain(gateway.plain_address(), request).status, 200);
    let mut connection = open_http2(gateway);
    connection.send(&http2::request(1, &http2::get("/fine")));
    connection.settle(&[1]);
    assert_eq!(connection.answer(1).status, 200);
    assert_eq!(provider.received().iter().filter(|r| r.path == "/fine").count(), 2);
}

fn open_http2(gateway: &Gateway) -> Connection<http1::TlsStream> {
    let tls = gateway.authority().tls_client(&["h2"]);
    Connection::open(http1::connect_tls(gateway.tls_address(), &tls), &[(2, 0)])
}

/// A header block of any length, cut into frames of the size that every server accepts.
fn header_frames(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut pieces = block.chunks(16_384).peekable();
    let mut bytes = Vec::new();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let end = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        let stream_end = if kind == HEADERS { END_STREAM } else { 0 };
        bytes.extend(http2::frame(kind, end | stream_end, stream, piece));
        kind = CONTINUATION;
    }
    bytes
}
