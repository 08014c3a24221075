//! Client software as captured: ClientHello, HTTP/2 opening, header block.

use std::sync::Arc;

use detectors::{HeaderField, Http2Capture, HttpCapture, HttpVersion, TlsCapture};

use super::numbers::Numbers;

const CHROME_UA: &str = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/136.0.0.0 Safari/537.36";
const FIREFOX_UA: &str =
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:144.0) Gecko/20100101 Firefox/144.0";
const SAFARI_UA: &str = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.4 Safari/605.1.15";
const CHROME_JA3: &str = "771,4865-4866-4867-49195-49199-49196-49200-52393-52392-49171-49172-156-157-47-53,17613-45-27-51-43-65281-65037-23-11-5-35-10-18-16-13-0,4588-29-23-24,0";
const FIREFOX_JA3: &str = "771,4865-4867-4866-49195-49199-52393-52392-49196-49200-49162-49161-49171-49172-156-157-47-53,0-23-65281-10-11-35-16-5-34-18-51-43-13-45-28-27-65037,4588-29-23-24-25-256-257,0";
const SAFARI_JA3: &str = "771,4865-4866-4867-49196-49195-52393-49200-49199-52392-49162-49161-49172-49171-157-156-53-47-49160-49170-10,0-23-65281-10-11-16-5-13-18-51-45-43-27-21,29-23-24-25,0";
const PYTHON_JA3: &str = "771,4866-4867-4865-49196-49200-49195-49199-52393-52392-49188-49192-49187-49191-159-158-107-103-255,0-11-10-35-16-22-23-13-43-45-51-21,29-23-30-25-24-256-257-258-259-260,0-1-2";
const CURL_JA3: &str = "771,4866-4867-4865-49196-49200-159-52393-52392-52394-49195-49199-158-49188-49192-107-49187-49191-103-49162-49172-57-49161-49171-51-157-156-61-60-53-47-255,0-11-10-16-22-23-49-13-43-45-51-21,29-23-30-25-24-256-257-258-259-260,0-1-2";
const NODE_JA3: &str = "771,4866-4867-4865-49199-49195-49200-49196-158-49191-103-49192-107-163-159-52393-52392-52394-49327-49325-49315-49311-49245-49249-49239-49235-162-49326-49324-49314-49310-49244-49248-49238-49234-49188-106-49187-64-49162-49172-57-56-49161-49171-51-50-157-49313-49309-49233-156-49312-49308-49232-61-60-53-47-255,0-11-10-35-16-22-23-13-43-45-51,29-23-30-25-24-256-257-258-259-260,0-1-2";
const GO_JA3: &str = "771,49195-49199-49196-49200-52393-52392-49161-49171-49162-49172-4865-4866-4867,0-11-65281-23-18-5-10-13-50-16-43-51,29-23-24-25,0";
const JAVA_JA3: &str = "771,4866-4865-4867-49196-49195-52393-49200-52392-49199-159-52394-163-158-162-49188-49192-49187-49191-107-106-103-64-49162-49172-49161-49171-57-56-51-50-157-156-61-60-53-47-255,0-5-10-11-16-17-23-35-13-43-45-50-51,29-23-24-25-30-256-257-258-259-260,0";
const GRPC_JA3: &str = "771,4865-4866-4867-49195-49196-49199-49200,0-23-65281-10-11-35-16-13-13172-51-45-43,4588-29-23-24-25,0";
const CHROME_H2: &str = "1:65536;2:0;4:6291456;6:262144|15663105|0|m,a,s,p";
const FIREFOX_H2: &str = "1:65536;2:0;4:131072;5:16384|12517377|0|m,p,a,s";
const SAFARI_H2: &str = "2:0;3:100;4:2097152;9:1|10420225|0|m,s,a,p";
const HTTPX_H2: &str = "1:4096;2:0;4:65535;5:16384;3:100;6:65536|16777216|0|m,a,s,p";
const CURL_H2: &str = "3:100;4:33554432;2:0|33488897|0|m,p,s,a";
const GO_H2: &str = "2:0;4:4194304;5:1048576;6:10485760|1073741824|0|a,m,p,s";
const JAVA_H2: &str = "1:16384;2:0;3:0;4:16777216;5:16384;6:393216|33488897|0|a,m,p,s";
const GRPC_H2: &str = "2:0;3:0;4:4194304;5:4194304;6:16384;65027:1|4128769|0|p,a,m,s";
const GRPC_JS_H2: &str = "4:65535|0|0|a,m,p,s";
const CHROME_HEADERS: &str = "content-length: 9
sec-ch-ua: \"Chromium\";v=\"136\", \"Google Chrome\";v=\"136\", \"Not.A/Brand\";v=\"99\"
sec-ch-ua-mobile: ?0
sec-ch-ua-platform: \"macOS\"
origin: -
content-type: application/json
user-agent: $UA
accept: */*
sec-fetch-site: cross-site
sec-fetch-mode: cors
sec-fetch-dest: empty
referer: -
accept-encoding: gzip, deflate, br, zstd
accept-language: en-US,en;q=0.9
priority: u=1, i";
const FIREFOX_HEADERS: &str = "user-agent: $UA
accept: */*
accept-language: en-US,en;q=0.5
accept-encoding: gzip, deflate, br, zstd
content-type: application/json
content-length: 9
origin: -
referer: -
sec-fetch-dest: empty
sec-fetch-mode: cors
sec-fetch-site: cross-site
priority: u=4
te: trailers";
const SAFARI_HEADERS: &str = "referer: -
origin: -
content-type: application/json
accept: */*
user-agent: $UA
content-length: 9
accept-encoding: gzip, deflate, br
accept-language: en-US
sec-fetch-dest: empty
sec-fetch-mode: cors
sec-fetch-site: cross-site
priority: u=3, i";
const OPENAI_PYTHON: &str = "Host: h
Accept-Encoding: gzip, deflate
Connection: keep-alive
Accept: application/json
Content-Type: application/json
User-Agent: OpenAI/Python 2.54.0
X-Stainless-Lang: python
X-Stainless-Package-Version: 2.54.0
X-Stainless-OS: Linux
X-Stainless-Arch: x64
X-Stainless-Runtime: CPython
X-Stainless-Runtime-Version: 3.11.7
X-Stainless-Async: false
x-stainless-retry-count: 0
x-stainless-read-timeout: 600
Content-Length: 9";
const REQUESTS: &str = "Host: h
User-Agent: $UA
Accept-Encoding: gzip, deflate
Accept: */*
Connection: keep-alive
Content-Length: 9
Content-Type: application/json";
const OPENAI_NODE: &str = "host: h
connection: keep-alive
accept: application/json
user-agent: OpenAI/JS 6.49.0
x-stainless-retry-count: 0
x-stainless-lang: js
x-stainless-package-version: 6.49.0
x-stainless-os: Linux
x-stainless-arch: x64
x-stainless-runtime: node
x-stainless-runtime-version: v20.20.2
content-type: application/json
accept-language: *
sec-fetch-mode: cors
accept-encoding: br, gzip, deflate
content-length: 9";
const HTTPX: &str = "accept: */*
accept-encoding: gzip, deflate
user-agent: $UA
content-length: 9
content-type: application/json";
const AXIOS: &str = "Accept: application/json, text/plain, */*
Content-Type: application/json
User-Agent: $UA
Content-Length: 9
Accept-Encoding: gzip, compress, deflate, br
Host: h
Connection: keep-alive";
const GO: &str = "content-type: application/json
content-length: 9
accept-encoding: gzip
user-agent: $UA";
const JAVA: &str = "content-type: application/json
content-length: 9
user-agent: $UA";
const CURL: &str = "user-agent: $UA
accept: */*
content-type: application/json
content-length: 9";
const GRPC: &str = "content-type: application/grpc
te: trailers
grpc-accept-encoding: identity, deflate, gzip
user-agent: $UA";

/// Kinds of client software in the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chrome,
    Firefox,
    Safari,
    OpenaiPython,
    Requests,
    Httpx,
    OpenaiNode,
    Axios,
    Go,
    Java,
    Curl,
    GrpcPython,
    GrpcNode,
    /// gRPC with windows that were raised for bulk.
    GrpcBulk,
    /// A browser's headers over a Python script's TLS.
    FalseChrome,
}

/// What people ask with.
pub(crate) const PEOPLE: &[Kind] =
    &[Kind::OpenaiPython, Kind::OpenaiPython, Kind::OpenaiNode, Kind::Requests, Kind::Curl];
/// What browsers there are.
pub(crate) const BROWSERS: &[Kind] = &[Kind::Chrome, Kind::Chrome, Kind::Firefox, Kind::Safari];
/// What products are built with.
pub(crate) const PRODUCTS: &[Kind] = &[
    Kind::OpenaiPython,
    Kind::OpenaiNode,
    Kind::Axios,
    Kind::Httpx,
    Kind::Requests,
    Kind::Go,
    Kind::Java,
];

/// One installation of client software.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    tls: Arc<TlsCapture>,
    http: HttpCapture,
    permutes: bool,
}

impl Client {
    /// An installation with a version, an operating system and an architecture of its own.
    pub(crate) fn install(kind: Kind, numbers: &mut Numbers) -> Self {
        let h2: &[&str] = &["h2", "http/1.1"];
        let h1: &[&str] = &["http/1.1"];
        let minor = numbers.below(6);
        let (ja3, ja4, alpn, opening, user_agent, headers) = match kind {
            Kind::Chrome => (
                CHROME_JA3,
                "t13d1516h2_8daaf6152771_d8a2da3f94cd",
                h2,
                CHROME_H2,
                CHROME_UA.replace("136", &(134 + minor).to_string()),
                CHROME_HEADERS.replace("136", &(134 + minor).to_string()),
            ),
            Kind::Firefox => (
                FIREFOX_JA3,
                "t13d1717h2_5b57614c22b0_3cbfd9057e0d",
                h2,
                FIREFOX_H2,
                FIREFOX_UA.replace("144", &(140 + minor).to_string()),
                FIREFOX_HEADERS.to_owned(),
            ),
            Kind::Safari => (
                SAFARI_JA3,
                "t13d2014h2_a09f3c656075_14788d8d241b",
                h2,
                SAFARI_H2,
                SAFARI_UA.replace("18.4", &format!("18.{minor}")),
                SAFARI_HEADERS.to_owned(),
            ),
            Kind::OpenaiPython | Kind::OpenaiNode => {
                let (ja3, ja4, headers) = if kind == Kind::OpenaiPython {
                    (PYTHON_JA3, "t13d1812h1_85036bcba153_d41ae481755e", OPENAI_PYTHON)
                } else {
                    (NODE_JA3, "t13d5911h1_a33745022dd6_1f22a2ca17c4", OPENAI_NODE)
                };
                let headers = headers
                    .replace(".54.0", &format!(".{}.0", 48 + minor))
                    .replace(".49.0", &format!(".{}.0", 44 + minor))
                    .replace("x64", numbers.pick(&["x64", "x64", "arm64"]))
                    .replace("Linux", numbers.pick(&["Linux", "Linux", "MacOS", "Windows"]));
                (ja3, ja4, h1, "", String::new(), headers)
            }
            Kind::Requests => (
                PYTHON_JA3,
                "t13d1812h1_85036bcba153_d41ae481755e",
                h1,
                "",
                format!("python-requests/2.3{minor}.0"),
                REQUESTS.to_owned(),
            ),
            Kind::Httpx => (
                PYTHON_JA3,
                "t13d1812h2_85036bcba153_d41ae481755e",
                h2,
                HTTPX_H2,
                format!("python-httpx/0.2{}.1", 4 + minor % 5),
                HTTPX.to_owned(),
            ),
            Kind::Axios => (
                NODE_JA3,
                "t13d591000_a33745022dd6_5ac7197df9d2",
                &[][..],
                "",
                format!("axios/1.{}.1", 16 + minor),
                AXIOS.to_owned(),
            ),
            Kind::Go => (
                GO_JA3,
                "t13d1312h2_f57a46bbacb6_ab7e3b40a677",
                h2,
                GO_H2,
                "Go-http-client/2.0".to_owned(),
                GO.to_owned(),
            ),
            Kind::Java => (
                JAVA_JA3,
                "t13d4913h2_bd868743f55c_2f5a9f6f0d1f",
                h2,
                JAVA_H2,
                format!("Java-http-client/{}.0.{minor}", numbers.pick(&["17", "21"])),
                JAVA.to_owned(),
            ),
            Kind::Curl => (
                CURL_JA3,
                "t13d3112h2_e8f1e7e78f70_b26ce05bbdd6",
                h2,
                CURL_H2,
                format!("curl/7.8{}.1", 3 + minor),
                CURL.to_owned(),
            ),
            Kind::GrpcPython | Kind::GrpcBulk => (
                GRPC_JA3,
                "t13d0713h2_131602cb7446_6a0b1f5a2f0c",
                &["h2"][..],
                if kind == Kind::GrpcBulk {
                    "2:0;3:0;4:536870912;5:4194304;6:16384;65027:1|536805377|0|p,a,m,s"
                } else {
                    GRPC_H2
                },
                format!("grpc-python/1.{}.1 grpc-c/5{minor}.0.0 (linux; chttp2)", 78 + minor),
                GRPC.to_owned(),
            ),
            Kind::GrpcNode => (
                NODE_JA3,
                "t13d5911h2_a33745022dd6_1f22a2ca17c4",
                &["h2"][..],
                GRPC_JS_H2,
                format!("grpc-node-js/1.1{}.7", minor % 5),
                GRPC.to_owned(),
            ),
            Kind::FalseChrome => (
                PYTHON_JA3,
                "t13d1812h1_85036bcba153_d41ae481755e",
                h1,
                "",
                CHROME_UA.replace("136", &(134 + minor).to_string()),
                REQUESTS.to_owned(),
            ),
        };
        let tls = TlsCapture {
            version: "1.3".to_owned(),
            ja3: ja3.to_owned(),
            ja3s: Some(format!("771,{},43-51", first_suite(ja3))),
            ja4: ja4.to_owned(),
            alpn: alpn.iter().map(|protocol| (*protocol).to_owned()).collect(),
            ..TlsCapture::default()
        };
        let headers = headers.lines().filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| HeaderField {
            name: name.into(),
            value: (value != "-").then(|| value.replace("$UA", &user_agent).into()),
        });
        let http = HttpCapture {
            version: if opening.is_empty() { HttpVersion::Http11 } else { HttpVersion::Http2 },
            method: "POST".to_owned(),
            path: "/v1/chat/completions".to_owned(),
            headers: headers.collect(),
            h2: (!opening.is_empty()).then(|| http2(opening)),
        };
        Self { tls: Arc::new(tls), http, permutes: kind == Kind::Chrome }
    }

    /// What a new connection shows.
    pub(crate) fn connect(&self, numbers: &mut Numbers) -> (Arc<TlsCapture>, HttpCapture) {
        let mut tls = Arc::clone(&self.tls);
        if self.permutes {
            let mut parts: Vec<String> = tls.ja3.split(',').map(str::to_owned).collect();
            if let Some(extensions) = parts.get_mut(2) {
                let mut shuffled: Vec<&str> = extensions.split('-').collect();
                numbers.shuffle(&mut shuffled);
                *extensions = shuffled.join("-");
            }
            Arc::make_mut(&mut tls).ja3 = parts.join(",");
        }
        (tls, self.http.clone())
    }
}

/// The suite of TLS 1.3 that a client names first: what a server without an order of its own takes.
fn first_suite(ja3: &str) -> &str {
    let suites = ja3.split(',').nth(1).unwrap_or_default();
    suites.split('-').find(|suite| matches!(*suite, "4865" | "4866" | "4867")).unwrap_or("4865")
}

fn http2(akamai: &str) -> Http2Capture {
    let mut parts = akamai.split('|');
    let pairs = parts.next().unwrap_or_default().split(';').filter_map(|pair| pair.split_once(':'));
    let settings = pairs.filter_map(|(id, value)| Some((id.parse().ok()?, value.parse().ok()?)));
    Http2Capture {
        settings: settings.collect(),
        window_update: parts.next().and_then(|window| window.parse().ok()).unwrap_or_default(),
        pseudo: parts.nth(1).unwrap_or_default().to_owned(),
        akamai: akamai.to_owned(),
        ..Http2Capture::default()
    }
}
