//! Whose word counts: what a client says of itself, what a listed balancer says of it, and what the
//! gateway saw. A client's claim must reach neither the upstream nor an observation as a fact.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::http1::{self, Response};
use harness::{Authority, Gateway, Provider, Received, wait_for};
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};

/// The clients of these stories connect from here; a balancer that is listed so is one of them.
const LISTED: &str = "[\"127.0.0.0/8\"]";
/// Nobody of these stories is from there.
const ELSEWHERE: &str = "[\"192.0.2.0/24\"]";
const KEY: &str = "sk-trust-4f9d2c7ab1e8";
/// What a client claims of earlier hops, true or not.
const CLAIMS: &str = "X-Forwarded-For: 198.51.100.1\r\nForwarded: for=198.51.100.1;proto=https\r\n\
    X-Forwarded-Proto: https\r\nX-Forwarded-Host: elsewhere.example\r\n";

#[test]
fn forwarded_fields_of_a_client_are_replaced() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .listener(&format!("fingerprint_headers = {{ from = {ELSEWHERE}, ja4 = \"x-ja4\" }}"))
        .start();
    for (name, address) in
        [("plain", gateway.plain_address()), ("unlisted", gateway.further_address(0))]
    {
        let path = format!("/{name}");
        assert_eq!(ask(address, b"", &path, CLAIMS).status, 200);
        forwarded_are(&provider, &path, "127.0.0.1", "for=127.0.0.1;proto=http;host=\"a\"", "http");
    }
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    let request = format!("GET /tls HTTP/1.1\r\nHost: a\r\n{CLAIMS}Connection: close\r\n\r\n");
    assert_eq!(http1::tls(gateway.tls_address(), &tls, request.as_bytes()).status, 200);
    forwarded_are(&provider, "/tls", "127.0.0.1", "for=127.0.0.1;proto=https;host=\"a\"", "https");
}

/// Behind a PROXY header the fields are the client's own: its balancer does not touch HTTP, even
/// one whose word on fingerprints would count.
#[test]
fn forwarded_fields_behind_a_proxy_header_are_replaced() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .listener(&format!(
            "proxy_protocol_from = {LISTED}\n\
             fingerprint_headers = {{ from = {LISTED}, ja3 = \"x-ja3\", ja4 = \"x-ja4\" }}"
        ))
        .start();
    let address = gateway.further_address(0);
    let fields = format!("{CLAIMS}X-JA4: t13d1516h2_8daaf6152771_02713d6af862\r\n");
    assert_eq!(ask(address, &proxy_v2("203.0.113.7:999"), "/v4", &fields).status, 200);
    let element = "for=203.0.113.7;proto=http;host=\"a\"";
    forwarded_are(&provider, "/v4", "203.0.113.7", element, "http");
    let exchange = gateway.exchange("/v4");
    assert_eq!(exchange["ip"], "203.0.113.7");
    assert_eq!(exchange["tls"], Value::Null, "a client named its own fingerprint");
    assert_eq!(ask(address, &proxy_v2("[2001:db8::7]:999"), "/v6", &fields).status, 200);
    let element = "for=\"[2001:db8::7]\";proto=http;host=\"a\"";
    forwarded_are(&provider, "/v6", "2001:db8::7", element, "http");
}

#[test]
fn a_listed_balancer_is_believed() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .listener(&format!("fingerprint_headers = {{ from = {LISTED}, ja4 = \"x-ja4\" }}"))
        .start();
    assert_eq!(ask(gateway.further_address(0), b"", "/one", CLAIMS).status, 200);
    let element = "for=198.51.100.1;proto=https, for=127.0.0.1;proto=http;host=\"a\"";
    forwarded_are(&provider, "/one", "198.51.100.1, 127.0.0.1", element, "https");
    // Where it says nothing there is only what was seen.
    assert_eq!(ask(gateway.further_address(0), b"", "/two", "").status, 200);
    let element = "for=127.0.0.1;proto=http;host=\"a\"";
    forwarded_are(&provider, "/two", "127.0.0.1", element, "http");
}

#[test]
fn fingerprints_are_taken_from_listed_peers_alone() {
    const JA3: &str = "771,4865-4866-4867,0-23-65281,29-23-24,0";
    const JA3_MD5: &str = "0123456789abcdef0123456789abcdef";
    const JA4: &str = "t13d1516h2_8daaf6152771_02713d6af862";
    let provider = Provider::start();
    let headers = |from| {
        format!("fingerprint_headers = {{ from = {from}, ja3 = \"x-ja3\", ja4 = \"x-ja4\" }}")
    };
    let gateway = Gateway::in_front_of(provider.address())
        .listener(&headers(LISTED))
        .listener(&headers(ELSEWHERE))
        .start();
    let fields = format!("X-JA3: {JA3_MD5}\r\nX-JA4: {JA4}\r\n");
    assert_eq!(ask(gateway.further_address(0), b"", "/listed", &fields).status, 200);
    let tls = &gateway.exchange("/listed")["tls"];
    assert_eq!((&tls["ja3_md5"], &tls["ja4"]), (&json!(JA3_MD5), &json!(JA4)));
    // The string is as good as its MD5.
    let fields = format!("X-JA3: {JA3}\r\n");
    assert_eq!(ask(gateway.further_address(0), b"", "/string", &fields).status, 200);
    let tls = &gateway.exchange("/string")["tls"];
    assert_eq!(tls["ja3"], JA3);
    assert_eq!(tls["ja3_md5"].as_str().map(str::len), Some(32), "{tls}");
    // Of two values one is the client's.
    let twice = format!("X-JA4: {JA4}\r\nX-JA4: t13d000000_000000000000_000000000000\r\n");
    assert_eq!(ask(gateway.further_address(0), b"", "/twice", &twice).status, 200);
    assert_eq!(gateway.exchange("/twice")["tls"], Value::Null);
    for (path, address) in
        [("/unlisted", gateway.further_address(1)), ("/plain", gateway.plain_address())]
    {
        assert_eq!(ask(address, b"", path, &fields).status, 200);
        assert_eq!(gateway.exchange(path)["tls"], Value::Null, "{path}");
    }
}

#[test]
fn an_organisation_is_named_once_and_by_a_listed_peer() {
    let provider = Provider::start();
    let start = |from| {
        Gateway::in_front_of(provider.address())
            .identity(&format!(
                "organisation_header = {{ name = \"x-organisation\", from = {from} }}"
            ))
            .start()
    };
    let gateway = start(LISTED);
    let cases = [
        ("/named", "X-Organisation: heron\r\n", Some("heron")),
        ("/twice", "X-Organisation: heron\r\nX-Organisation: otter\r\n", None),
        ("/same-twice", "X-Organisation: heron\r\nx-organisation: heron\r\n", None),
        ("/none", "", None),
    ];
    for (path, fields, seen) in cases {
        assert_eq!(ask(gateway.plain_address(), b"", path, fields).status, 200);
        let organisation = gateway.exchange(path)["organisation"].clone();
        assert_eq!(organisation.is_string(), seen.is_some(), "{path}: {organisation}");
        assert_eq!(received(&provider, path).header("x-organisation"), seen, "{path}");
    }
    let gateway = start(ELSEWHERE);
    let fields = "X-Organisation: heron\r\n";
    assert_eq!(ask(gateway.plain_address(), b"", "/unlisted", fields).status, 200);
    assert_eq!(gateway.exchange("/unlisted")["organisation"], Value::Null);
    assert_eq!(received(&provider, "/unlisted").header("x-organisation"), None);
}

/// `Connection` names fields of one hop; a client must not make others of them disappear.
#[test]
fn connection_removes_no_end_to_end_field() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let fields = format!(
        "Connection: content-encoding, x-api-key, idempotency-key, x-of-this-hop, x-forwarded-for\r\n\
         Content-Encoding: identity\r\nX-Api-Key: {KEY}\r\nIdempotency-Key: i1\r\n\
         X-Of-This-Hop: 1\r\n"
    );
    let request = format!("GET /kept HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let mut stream = http1::connect(gateway.plain_address());
    assert_eq!(http1::exchange(&mut stream, request.as_bytes()).status, 200);
    let received = received(&provider, "/kept");
    let kept = [
        ("content-encoding", "identity"),
        ("x-api-key", KEY),
        ("idempotency-key", "i1"),
        ("x-forwarded-for", "127.0.0.1"),
    ];
    for (name, value) in kept {
        assert_eq!(received.header(name), Some(value), "{name}");
    }
    assert_eq!(received.header("x-of-this-hop"), None);
    assert!(gateway.exchange("/kept")["account"].is_string(), "the key still names an account");
}

#[test]
fn proxy_headers() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .listener(&format!("proxy_protocol_from = {LISTED}"))
        .listener(&format!("proxy_protocol_from = {ELSEWHERE}"))
        .listener(&format!(
            "proxy_protocol_from = {LISTED}\n\
             certificates = [{{ chain = \"chain.pem\", key = \"key.pem\" }}]"
        ))
        .start();
    let listed = gateway.further_address(0);
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec();
    let taken = [
        ("/v4", proxy_v2("203.0.113.7:4711"), "203.0.113.7"),
        ("/v6", proxy_v2("[2001:db8::7]:4711"), "2001:db8::7"),
        ("/mapped", proxy_v2("[::ffff:203.0.113.8]:4711"), "203.0.113.8"),
        ("/local", local, "127.0.0.1"),
    ];
    for (path, header, ip) in &taken {
        assert_eq!(ask(listed, header, path, "").status, 200, "{path}");
        assert_eq!(gateway.exchange(path)["ip"], *ip, "{path}");
    }
    // Before a handshake just as before a request.
    let tls = gateway.authority().tls_client(&["http/1.1"]);
    let mut stream = http1::connect_tls(gateway.further_address(2), &tls);
    stream.sock.write_all(&taken[0].1).expect("an open connection");
    let request = b"GET /secure HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(http1::exchange(&mut stream, request).status, 200);
    let exchange = gateway.exchange("/secure");
    assert_eq!(exchange["ip"], "203.0.113.7");
    assert_eq!(exchange["tls"]["sni"], "localhost");

    let before = provider.received().len();
    let v1 = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n".to_vec();
    let refused = [
        ("version 1", listed, v1),
        ("no header", listed, Vec::new()),
        ("unlisted", gateway.further_address(1), taken[0].1.clone()),
    ];
    let counter = "stillgate_connections_refused_total{reason=\"proxy_header\"";
    for (n, (what, address, header)) in refused.iter().enumerate() {
        assert_eq!(ask(*address, header, "/refused", "").status, 0, "{what}");
        let count = (n + 1) as f64;
        wait_for(what, Duration::from_secs(3), || (gateway.metric(counter) == count).then_some(()));
    }
    assert_eq!(provider.received().len(), before);
}

/// A request to a proxy names the whole address; its path is what is routed and passed on.
#[test]
fn absolute_targets() {
    let (main, other) = (Provider::start(), Provider::start());
    let gateway = Gateway::builder()
        .upstream("main", &[main.address()], "preserve_host = true")
        .upstream("other", &[other.address()], "preserve_host = true")
        .start();
    let cases = [
        ("http://a/one?x=1", &main, "/one?x=1"),
        ("http://a/other/two", &other, "/other/two"),
        ("http://b:8080/other?y=2", &other, "/other?y=2"),
        ("http://a", &main, "/"),
    ];
    for (target, provider, path) in cases {
        // The target's authority counts, not `Host` (RFC 9112, section 3.2.2).
        let authority = target.trim_start_matches("http://").split('/').next().expect("a part");
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        let response = http1::plain(gateway.plain_address(), request.as_bytes());
        assert_eq!(response.status, 200, "{target}: {}", response.text());
        let last = provider.received().pop().expect("a request");
        assert_eq!((last.path.as_str(), last.header("host")), (path, Some(authority)), "{target}");
    }
}

/// One key is one account, whichever carrier it comes in, and another key is another.
#[test]
fn one_key_is_one_account() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let account = |path: &str, fields: &str| {
        assert_eq!(ask(gateway.plain_address(), b"", path, fields).status, 200, "{path}");
        let place = path.split('?').next().expect("a path");
        gateway.exchange(place)["account"].clone()
    };
    let bearer = account("/bearer", &format!("Authorization: Bearer {KEY}\r\n"));
    assert!(bearer.as_str().is_some_and(|name| name.starts_with("acct-")), "{bearer}");
    assert!(!bearer.to_string().contains(KEY));
    assert_eq!(account("/anthropic", &format!("X-Api-Key: {KEY}\r\n")), bearer);
    assert_eq!(account("/google", &format!("X-Goog-Api-Key: {KEY}\r\n")), bearer);
    assert_eq!(account(&format!("/query?key={KEY}&alt=sse"), ""), bearer);
    assert_ne!(account("/other", &format!("X-Api-Key: {KEY}x\r\n")), bearer);
    assert_eq!(account("/nobody", ""), Value::Null);
    assert!(!gateway.exchange("/query").to_string().contains(KEY));
}

#[test]
fn a_token_names_account_and_organisation() {
    let provider = Provider::start();
    let (signer, stranger) = (Signer::new("k1"), Signer::new("k1"));
    let gateway = Gateway::in_front_of(provider.address())
        .file("jwks.json", &signer.key_set())
        .identity(
            "jwt = { jwks_file = \"jwks.json\", issuer = \"https://login.example\", \
             audience = \"models\", organisation_claim = \"org\" }",
        )
        .start();
    let claims = |subject: &str| {
        json!({"iss": "https://login.example", "aud": "models", "sub": subject,
            "org": "heron", "exp": now() + 300})
    };
    let with = |changed: Value| {
        let mut all = claims("ada");
        for (name, value) in changed.as_object().expect("claims") {
            all[name] = value.clone();
        }
        all
    };
    let chat = |path: &str, token: &str| {
        let fields = format!("Authorization: Bearer {token}\r\n");
        ask_with(gateway.plain_address(), b"", path, &fields, "{}")
    };
    let named = |path: &str, token: &str| {
        let response = chat(path, token);
        assert_eq!(response.status, 200, "{}", response.text());
        let exchange = gateway.exchange(path);
        (exchange["account"].clone(), exchange["organisation"].clone())
    };
    let first = named("/1/v1/chat/completions", &signer.token(&claims("ada")));
    assert!(first.0.is_string() && first.1.is_string(), "{first:?}");
    // A fresh token of the same subject is the same account; another subject is another.
    let later = with(json!({"exp": now() + 600}));
    assert_eq!(named("/2/v1/chat/completions", &signer.token(&later)), first);
    let other = named("/3/v1/chat/completions", &signer.token(&claims("ben")));
    assert_ne!(other.0, first.0);
    assert_eq!(other.1, first.1, "one organisation");
    assert!(!format!("{first:?}").contains("ada") && !format!("{first:?}").contains("heron"));

    let reached = provider.received().len();
    let mut altered = signer.token(&claims("ada"));
    let payload = altered.find('.').expect("three parts") + 10;
    let letter = if altered.as_bytes()[payload] == b'A' { "B" } else { "A" };
    altered.replace_range(payload..=payload, letter);
    let unsigned = format!("{}.", signer.signed_part(&json!({"alg": "none"}), &claims("ada")));
    let bad = [
        ("another's key", stranger.token(&claims("ada"))),
        ("expired", signer.token(&with(json!({"exp": now() - 300})))),
        ("another issuer", signer.token(&with(json!({"iss": "https://other.example"})))),
        ("another audience", signer.token(&with(json!({"aud": "billing"})))),
        ("altered", altered),
        ("unsigned", unsigned),
    ];
    for (what, token) in &bad {
        for (path, shape) in SHAPES {
            let response = chat(path, token);
            assert_eq!(response.status, 401, "{what} {path}: {}", response.text());
            let body = response.json();
            assert!(shape(&body), "{what} {path}: {body}");
            assert_eq!(response.header("www-authenticate"), Some("Bearer"), "{what} {path}");
            assert!(!response.text().contains(token.as_str()), "{what}");
        }
    }
    assert_eq!(provider.received().len(), reached, "a bad token reached the upstream");
}

/// What a 401 looks like to a client library of each provider.
type Shape = fn(&Value) -> bool;
const SHAPES: &[(&str, Shape)] = &[
    ("/v1/chat/completions", |body| {
        body["error"]["message"].is_string() && body["error"]["type"].is_string()
    }),
    ("/v1/messages", |body| {
        body["type"] == "error" && body["error"]["type"] == "authentication_error"
    }),
    ("/v1beta/models/m:generateContent", |body| {
        body["error"]["code"] == 401 && body["error"]["status"] == "UNAUTHENTICATED"
    }),
    ("/opaque", |body| body["status"] == 401 && body["title"] == "Unauthorized"),
];

#[test]
fn a_client_certificate_names_an_account() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address())
        .listener(
            "certificates = [{ chain = \"chain.pem\", key = \"key.pem\" }]\n\
             client_ca = \"ca.pem\"\nclient_certificate = \"optional\"",
        )
        .listener(
            "certificates = [{ chain = \"chain.pem\", key = \"key.pem\" }]\nclient_ca = \"ca.pem\"",
        )
        .identity("client_certificate = true")
        .start();
    let (optional, required) = (gateway.further_address(0), gateway.further_address(1));
    let authority = gateway.authority();
    let (ada, ben) = (authority.sign("ada"), authority.sign("ben"));
    let ask = |address, tls, path: &str, fields: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n");
        http1::tls(address, tls, request.as_bytes()).status
    };
    let account = |address, tls, path: &str, fields: &str| {
        assert_eq!(ask(address, tls, path, fields), 200, "{path}");
        gateway.exchange(path)["account"].clone()
    };
    let as_ada = authority.tls_client_as(&ada, &["http/1.1"]);
    let as_ben = authority.tls_client_as(&ben, &["http/1.1"]);
    let nobody = authority.tls_client(&["http/1.1"]);
    let first = account(optional, &as_ada, "/first", "");
    assert!(first.as_str().is_some_and(|name| name.starts_with("acct-")), "{first}");
    assert_eq!(account(required, &as_ada, "/again", ""), first);
    assert_ne!(account(optional, &as_ben, "/ben", ""), first);
    assert_eq!(account(optional, &nobody, "/nobody", ""), Value::Null);
    // A credential goes before the certificate.
    let key = format!("X-Api-Key: {KEY}\r\n");
    let keyed = account(optional, &as_ada, "/keyed", &key);
    assert_eq!(account(optional, &nobody, "/key-alone", &key), keyed);
    assert_ne!(keyed, first);
    assert_eq!(ask(required, &nobody, "/refused", ""), 0, "a certificate is required there");
    let stranger = Authority::new().sign("ada");
    let as_stranger = authority.tls_client_as(&stranger, &["http/1.1"]);
    for address in [optional, required] {
        assert_eq!(ask(address, &as_stranger, "/refused", ""), 0, "another authority's");
    }
    assert!(provider.request("/refused").is_none());
}

fn ask(address: SocketAddr, before: &[u8], path: &str, fields: &str) -> Response {
    let mut bytes = before.to_vec();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}Connection: close\r\n\r\n");
    bytes.extend_from_slice(request.as_bytes());
    http1::plain(address, &bytes)
}

fn ask_with(address: SocketAddr, before: &[u8], path: &str, fields: &str, body: &str) -> Response {
    let mut bytes = before.to_vec();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\n{fields}Content-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    bytes.extend_from_slice(request.as_bytes());
    http1::plain(address, &bytes)
}

fn received(provider: &Provider, path: &str) -> Received {
    provider.request(path).unwrap_or_else(|| panic!("{path} did not reach the provider"))
}

/// Compares what the upstream was told of the client, all values of a field together.
fn forwarded_are(provider: &Provider, path: &str, client: &str, element: &str, proto: &str) {
    let received = received(provider, path);
    let expected = [
        ("x-forwarded-for", client),
        ("forwarded", element),
        ("x-forwarded-proto", proto),
        ("x-forwarded-host", "a"),
    ];
    for (name, value) in expected {
        let values: Vec<&str> =
            received.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
        assert_eq!(values, [value], "{path}: {name}");
    }
}

/// A PROXY header, version 2, for a client's TCP connection.
fn proxy_v2(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().expect("an address with its port");
    let mut addresses = Vec::new();
    let family = match client {
        SocketAddr::V4(client) => {
            addresses.extend(client.ip().octets());
            addresses.extend([127, 0, 0, 1]);
            0x11
        }
        SocketAddr::V6(client) => {
            addresses.extend(client.ip().octets());
            addresses.extend(std::net::Ipv6Addr::LOCALHOST.octets());
            0x21
        }
    };
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(443_u16.to_be_bytes());
    let length = u16::try_from(addresses.len()).expect("a short header");
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    header.push(family);
    header.extend(length.to_be_bytes());
    header.extend(addresses);
    header
}

/// A login service that signs with ES256 (RFC 7518, section 3.4).
struct Signer {
    name: &'static str,
    key: KeyPair,
}

impl Signer {
    fn new(name: &'static str) -> Self {
        Self { name, key: KeyPair::generate().expect("a P-256 key") }
    }

    /// Its public key as a JWK set (RFC 7517).
    fn key_set(&self) -> String {
        let point = self.key.public_key_raw();
        let (x, y) = point[1..].split_at(32);
        json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig",
            "kid": self.name, "x": base64url(x), "y": base64url(y)}]})
        .to_string()
    }

    fn token(&self, claims: &Value) -> String {
        let signed = self.signed_part(&json!({"alg": "ES256"}), claims);
        let der = self.key.sign(signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", base64url(&fixed_length(&der)))
    }

    fn signed_part(&self, header: &Value, claims: &Value) -> String {
        let mut header = header.clone();
        header["kid"] = json!(self.name);
        [header, claims.clone()].map(|part| base64url(part.to_string().as_bytes())).join(".")
    }
}

/// An ECDSA signature's two numbers in 32 bytes each, from their DER sequence.
fn fixed_length(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut fixed = Vec::new();
    for _ in 0..2 {
        let (number, after) = rest[2..].split_at(usize::from(rest[1]));
        rest = after;
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        fixed.extend(std::iter::repeat_n(0, 32 - number.len()));
        fixed.extend_from_slice(number);
    }
    fixed
}

/// Base64 with the URL's alphabet and without padding (RFC 4648, section 5).
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for piece in bytes.chunks(3) {
        let bits = piece
            .iter()
            .chain([&0, &0])
            .take(3)
            .fold(0_usize, |bits, b| bits << 8 | usize::from(*b));
        for place in 0..=piece.len() {
            text.push(char::from(ALPHABET[bits >> (18 - 6 * place) & 63]));
        }
    }
    text
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}
