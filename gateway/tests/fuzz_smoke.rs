//! Every fuzz target for a short while, on a stable toolchain: mutated seeds and noise must not
//! make a reader of outside bytes panic. `./x fuzz TARGET` runs the same functions for longer,
//! guided by coverage.

use std::time::{Duration, Instant};

/// Time for each target.
const PATIENCE: Duration = Duration::from_secs(3);
const INPUT_BYTES_MAX: usize = 4096;

#[test]
fn client_hello() {
    let hello = client_hello_seed();
    smoke(gateway::capture::client_hello::fuzz_client_hello, &[&hello, &hello[5..]]);
}

#[test]
fn http2() {
    let mut seed = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS, WINDOW_UPDATE, then HEADERS of a GET with END_STREAM and END_HEADERS.
    seed.extend_from_slice(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0]);
    seed.extend_from_slice(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0xef, 0, 1]);
    seed.extend_from_slice(&[0, 0, 7, 1, 5, 0, 0, 0, 1, 0x82, 0x87, 0x84, 0x41, 0x01, b'a', 0x90]);
    smoke(gateway::capture::http2::fuzz_http2, &[&seed]);
}

#[test]
fn json() {
    let chat = br#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a\u00e9"}]}],"tools":[{"function":{"name":"f"}}],"n":2,"stream":true}"#;
    let gemini = br#"{"contents":[{"parts":[{"text":"a"},{"inlineData":{}}]}],"generationConfig":{"maxOutputTokens":5}}"#;
    smoke(gateway::wire::fuzz_json, &[chat, gemini]);
}

#[test]
fn sse() {
    let seed = b"\x80: hi\r\n\r\nevent: message_start\ndata: {\"type\":\"message_start\"}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
    smoke(gateway::wire::fuzz_sse, &[seed]);
}

#[test]
fn rewrite() {
    let chat = b"\x80: hi\r\n\r\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a b c\",\"reasoning\":\"d\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\" e\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let responses = b"\x90data: {\"type\":\"response.output_text.delta\",\"delta\":\"a b\"}\n\ndata: {\"type\":\"response.output_text.annotation.added\",\"annotation\":{\"start_index\":0,\"end_index\":3}}\n\ndata: {\"type\":\"response.output_text.done\",\"text\":\"a b\"}\n\n";
    let gemini = b"\xa0[{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a b\"},{\"text\":\"c\",\"thought\":true}]},\"groundingMetadata\":{\"groundingSupports\":[{\"segment\":{\"endIndex\":3,\"text\":\"a b\"}}]}}]}\n,\r\n{}]";
    smoke(gateway::wire::fuzz_rewrite, &[chat, responses, gemini]);
}

#[test]
fn proxy_v2() {
    let mut seed = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    seed.extend_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2, 0x30, 0x39, 0x01, 0xbb]);
    smoke(gateway::listener::proxy_protocol::fuzz_proxy_v2, &[&seed]);
}

#[test]
fn http1_head() {
    let seed = b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX-A: b\r\n\r\n";
    smoke(gateway::proxy::framing::fuzz_head, &[seed]);
}

#[test]
fn http1() {
    let seed = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    smoke(gateway::capture::http1::fuzz_http1, &[seed]);
}

#[test]
fn content_coding() {
    let stored = b"\x00\x1f\x8b\x08\0\0\0\0\0\0\x03\x01\x02\0\xfd\xff{}\x43\xbf\xa6\xa3\x02\0\0\0";
    smoke(gateway::proxy::body::fuzz_decoded, &[stored, b"\x03\x28\xb5\x2f\xfd\x04\x58\x11\0\0{}"]);
}

#[test]
fn config() {
    let seed = b"[[listener]]\naddress = \"127.0.0.1:0\"\n[limits]\nbody_bytes_max = 5\n";
    smoke(gateway::config::file::fuzz_config, &[seed]);
}

#[test]
fn audit_line() {
    let shown = br#"{"hash":"9f86","entry":{"seq":1,"at_ms":2,"gateway":"a","actor":{"kind":"system"},"act":"started"}}"#;
    let withheld = br#"{"seq":2,"hash":"9f86","digest":"d081"}"#;
    smoke(gateway::audit::fuzz_audit_line, &[shown, withheld]);
}

#[test]
fn trace() {
    let request = br#"{"kind":"request","ts":1.5,"id":"r1","account":"a","ip":"192.0.2.1","tls":{"ja3":"771,1,2,3,4","alpn":["h2"]},"http":{"version":"2","method":"POST","path":"/v1/messages","headers":[["a","b"]],"h2":{"settings":[[1,2]],"priority":[[1,0,2,3]]}},"body":{"messages":[{"role":"user","content":"a"}]},"response":{"status":200,"duration_ms":1}}"#;
    let others = b"{\"kind\":\"account\",\"ts\":1,\"account\":\"a\",\"bin\":\"123456\"}\n{\"kind\":\"dns\",\"ts\":1,\"ip\":\"::1\",\"transport\":\"doh\",\"server\":\"::1\"}";
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x01\x02\0\xfd\xff{}\x43\xbf\xa6\xa3\x02\0\0\0";
    smoke(
        gateway::trace::fuzz_trace,
        &[request, others, gzip, b"\x28\xb5\x2f\xfd\x04\x58\x11\0\0{}"],
    );
}

#[test]
fn network() {
    let list = b"# exits\n192.0.2.1\nExitAddress 198.51.100.7 2026-01-01 00:00:00\n2001:db8::/32\n";
    let ranges = b"SGNETS\x01\0\0\0\0\0\x02\x05\x80\x01\x01\x01\x05\xff\x01\x01\x01\x05\x07\0";
    let database = b"\0\0\x01\0\0\x11\xab\xcd\xefMaxMind.com\xe3Jnode_count\xc1\x01Krecord_size\xa1\x18Jip_version\xa1\x06";
    smoke(gateway::network::fuzz_network, &[list, ranges, database]);
}

#[test]
fn watermark() {
    let prose = "\x03\0\0They do not say so, for example, as it is hard to do\u{2014}and John Doe of \
        user@example.com, order #12345, may want tea, milk, and honey.\n\n";
    let places = "\x05\x01\x01\n\n```py\ndo not\n```\n$x$ \\[y\\] `a` \"it is\" 'a' <b>c</b> | d\n> e\n\
        wo\u{200b}\u{200c}\u{200d}\u{2060}rd {f} \u{201c}g\u{201d}\n";
    smoke(detectors::watermark::fuzz_watermark, &[prose.as_bytes(), places.as_bytes()]);
}

#[test]
fn ioc_envelope() {
    let envelope = br#"{"payloadType":"application/vnd.stillgate.iocs.v1+json","payload":"e30=","signatures":[{"keyid":"00","sig":"AAAA"}]}"#;
    let bundle = br#"{"version":1,"id":"00112233445566778899aabbccddeeff","issuer":"a","issued_ms":5,"confidence":0.9,"first_seen_ms":1,"last_seen_ms":2,"ips":["203.0.113.9"],"revoked":[{"kind":"ip","value":"203.0.113.8"}]}"#;
    smoke(gateway::ioc::sign::fuzz_envelope, &[envelope, bundle]);
}

#[test]
fn stix() {
    let bundle = br#"{"type":"bundle","objects":[{"type":"indicator","id":"indicator--1","pattern":"[ipv4-addr:value = '203.0.113.9']","pattern_type":"stix","valid_from":"2026-01-01T00:00:00.000Z","confidence":80}]}"#;
    let pattern = b"[ipv4-addr:value IN ('203.0.113.9', '203.0.113.8') OR network-traffic:extensions.'x-a'.ja3 = '33333333333333333333333333333333'] OR [ipv6-addr:value ISSUBSET '2001:db8::/32']";
    smoke(gateway::ioc::stix::fuzz_stix, &[bundle, pattern]);
}

#[test]
fn sensor_report() {
    let report = br#"{"sensor":"egress-1","run":"5f0c1d2e3a4b5c6d","sequence":42,"sent_at_ms":1790000000000,"lost":{"kernel":0,"full":0,"unsent":0},"lookups":[{"first_ms":1,"last_ms":2,"address":"203.0.113.7","host":"9f3a5c0d1e2b4a68","client":true,"transport":"doh","server":"2606:4700:4700::1111","provider":"cloudflare","sign":"address","name":null,"count":3}],"contacts":[{"first_ms":1,"last_ms":1,"address":"2001:db8::7","host":"9f3a5c0d1e2b4a68","client":null,"destination":"198.51.100.9","port":443,"protocol":"tcp","count":1}]}"#;
    smoke(gateway::sensor::report::fuzz_report, &[report]);
}

fn smoke(target: impl Fn(&[u8]), seeds: &[&[u8]]) {
    // The same inputs in the same order on every run: a failure can be met again.
    let mut random = 0x5711_16a7_e000_0001_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let begun = Instant::now();
    let mut runs = 0_u64;
    for seed in seeds {
        for end in 0..=seed.len() {
            target(&seed[..end]);
        }
    }
    while begun.elapsed() < PATIENCE {
        let mut data = seeds[next() as usize % seeds.len()].to_vec();
        for _ in 0..=next() % 8 {
            mutate(&mut data, &mut next);
        }
        data.truncate(INPUT_BYTES_MAX);
        target(&data);
        runs += 1;
    }
    assert!(runs > 100, "only {runs} inputs in {PATIENCE:?}");
}

fn mutate(data: &mut Vec<u8>, next: &mut impl FnMut() -> u64) {
    let at = if data.is_empty() { 0 } else { next() as usize % data.len() };
    match next() % 6 {
        0 if !data.is_empty() => data[at] ^= 1 << (next() % 8),
        1 if !data.is_empty() => data[at] = next() as u8,
        2 => data.insert(at, next() as u8),
        3 if !data.is_empty() => {
            let end = (at + 1 + next() as usize % 16).min(data.len());
            data.drain(at..end);
        }
        4 => {
            let end = (at + next() as usize % 64).min(data.len());
            let copy = data[at..end].to_vec();
            let to = if data.is_empty() { 0 } else { next() as usize % data.len() };
            data.splice(to..to, copy);
        }
        _ => data.extend((0..next() % 16).map(|byte| byte as u8 ^ 0x5a)),
    }
}

/// A TLS record with a small ClientHello: one cipher, SNI, ALPN, groups, versions.
fn client_hello_seed() -> Vec<u8> {
    let extensions: &[u8] = &[
        0, 0, 0, 6, 0, 4, 0, 0, 1, b'a', // server_name
        0, 10, 0, 6, 0, 4, 0x0a, 0x0a, 0, 29, // supported_groups with GREASE
        0, 11, 0, 2, 1, 0, // ec_point_formats
        0, 16, 0, 5, 0, 3, 2, b'h', b'2', // ALPN
        0, 43, 0, 3, 2, 3, 4, // supported_versions
    ];
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
    body.extend_from_slice(extensions);
    let mut message = vec![1, 0];
    message.extend_from_slice(&(body.len() as u16).to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend_from_slice(&(message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}
