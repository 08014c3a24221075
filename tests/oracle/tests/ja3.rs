//! Differential test: our JA3 against that of `ja3-rustls`, which parses with rustls 0.20.
//!
//! The two differ for known reasons only, and each has its test here:
//! - it takes values such as 0x1a2a for GREASE, because it looks at the low nibbles alone; RFC 8701
//!   reserves the sixteen values with two equal bytes;
//! - it reads one TLS record, and a hello may come in several;
//! - it refuses a hello without extensions, which RFC 5246 allows;
//! - of an extension that is sent twice it takes the last, we take the first (RFC 8446 forbids both).

use ja3_rustls::{Ja3Extractor, TlsMessageExt, parse_tls_plain_message};
use proptest::prelude::*;
use stillgate_oracle::capture::client_hello::{ClientHello, is_grease, md5_hex};
use stillgate_oracle::capture::handshake::ClientHelloReader;

/// What each implementation makes of the first TLS record of `bytes`: JA3 string and MD5.
fn theirs(bytes: &[u8]) -> Option<(String, String)> {
    let ja3 = parse_tls_plain_message(bytes).ok()?.into_client_hello_payload()?.ja3();
    Some((ja3.to_string(), ja3.to_md5_string()))
}

fn ours(bytes: &[u8]) -> Option<(ClientHello, String, String)> {
    let hello = ClientHelloReader::new().feed(bytes).ok()??.hello;
    let (ja3, md5) = (hello.ja3(), hello.ja3_md5());
    Some((hello, ja3, md5))
}

/// Whether the other implementation takes a value for GREASE that is none.
fn is_lookalike(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && !is_grease(value)
}

/// Our JA3 string as it would be if lookalikes were GREASE.
fn without_lookalikes(ja3: &str) -> String {
    let parts: Vec<String> = ja3
        .split(',')
        .enumerate()
        .map(|(part, list)| {
            // Only ciphers, extensions and groups can be GREASE.
            let kept = list.split('-').filter(|number| {
                !(1..=3).contains(&part) || !number.parse().is_ok_and(is_lookalike)
            });
            kept.collect::<Vec<_>>().join("-")
        })
        .collect();
    parts.join(",")
}

/// Compares the two on bytes that both must read.
fn check(bytes: &[u8]) {
    let (theirs, their_md5) = theirs(bytes).expect("the other implementation reads it");
    let (_, ours, our_md5) = ours(bytes).expect("we read it");
    assert_eq!(without_lookalikes(&ours), theirs);
    assert_eq!(md5_hex(&theirs), their_md5);
    if ours == theirs {
        assert_eq!(our_md5, their_md5);
    }
}

fn list8(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8], bytes].concat()
}

fn list16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn u16s(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

type Extensions = Vec<(u16, Vec<u8>)>;

fn message(version: u16, session_id: &[u8], ciphers: &[u16], extensions: &Extensions) -> Vec<u8> {
    let block: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, contents)| [&kind.to_be_bytes()[..], &list16(contents)].concat())
        .collect();
    let body = [
        version.to_be_bytes().to_vec(),
        vec![0x5a; 32],
        list8(session_id),
        list16(&u16s(ciphers)),
        vec![1, 0],
        list16(&block),
    ]
    .concat();
    [&[1][..], &(body.len() as u32).to_be_bytes()[1..], &body].concat()
}

fn record(payload: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &list16(payload)].concat()
}

fn server_name(name: &str) -> (u16, Vec<u8>) {
    (0, list16(&[&[0][..], &list16(name.as_bytes())].concat()))
}

fn alpn(names: &[&str]) -> (u16, Vec<u8>) {
    (16, list16(&names.iter().flat_map(|name| list8(name.as_bytes())).collect::<Vec<_>>()))
}

fn key_share(shares: &[(u16, usize)]) -> (u16, Vec<u8>) {
    let entry = |(group, length): &(u16, usize)| [u16s(&[*group]), list16(&vec![1; *length])];
    (51, list16(&shares.iter().flat_map(entry).flatten().collect::<Vec<_>>()))
}

/// Hellos of the shapes that common clients send.
fn built_in() -> Vec<(&'static str, Vec<u8>)> {
    let shared = |groups: &[u16], algorithms: &[u16], versions: &[u16]| -> Extensions {
        vec![
            (10, list16(&u16s(groups))),
            (11, list8(&[0])),
            (13, list16(&u16s(algorithms))),
            (43, list8(&u16s(versions))),
            (45, list8(&[1])),
            (23, vec![]),
            (0xff01, vec![0]),
        ]
    };
    let chromium = [
        vec![(0x2a2a, vec![])],
        shared(&[0x4a4a, 0x11ec, 29, 23, 24], &[0x0403, 0x0804, 0x0401], &[0xdada, 0x0304, 0x0303]),
        vec![
            server_name("www.example.com"),
            alpn(&["h2", "http/1.1"]),
            key_share(&[(0x4a4a, 1), (0x11ec, 1216), (29, 32)]),
            (5, vec![1, 0, 0, 0, 0]),
            (18, vec![]),
            (27, vec![2, 0, 2]),
            (35, vec![]),
            (0x44cd, vec![0, 3, 2, b'h', b'2']),
            (0xfe0d, vec![0; 250]),
            (0x6a6a, vec![0]),
        ],
    ]
    .concat();
    let firefox = [
        vec![server_name("www.example.com")],
        shared(&[29, 23, 24, 25, 256, 257], &[0x0403, 0x0503, 0x0603], &[0x0304, 0x0303]),
        vec![
            alpn(&["h2", "http/1.1"]),
            key_share(&[(29, 32), (23, 65)]),
            (28, vec![0x40, 1]),
            (34, vec![0, 4, 4, 3, 5, 3]),
        ],
    ]
    .concat();
    let openssl = [
        vec![server_name("localhost")],
        shared(&[29, 23, 30, 25, 24], &[0x0403, 0x0503, 0x0807], &[0x0304, 0x0303]),
        vec![(22, vec![]), (49, vec![]), key_share(&[(29, 32)]), (21, vec![0; 120])],
    ]
    .concat();
    let resumed = [
        openssl.clone(),
        vec![
            (35, vec![7; 180]),
            (
                41,
                [list16(&[list16(&[9; 40]), vec![0; 4]].concat()), list16(&list8(&[8; 32]))]
                    .concat(),
            ),
        ],
    ]
    .concat();
    let old = vec![(10, list16(&u16s(&[23, 24, 25]))), (11, list8(&[0, 1, 2]))];
    let modern = [0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xcca9, 0x009c, 0x002f];
    let greased = [&[0xbaba][..], &modern].concat();
    [
        ("chromium", 0x0303, greased, chromium),
        ("firefox", 0x0303, modern.to_vec(), firefox),
        ("openssl", 0x0303, [&modern[..], &[0x00ff]].concat(), openssl),
        ("resumed", 0x0303, modern.to_vec(), resumed),
        ("tls 1.0", 0x0301, vec![0x002f, 0x0035, 0x0005, 0x000a], old),
    ]
    .into_iter()
    .map(|(name, version, ciphers, extensions)| {
        (name, message(version, &[3; 32], &ciphers, &extensions))
    })
    .collect()
}

#[test]
fn common_clients_agree() {
    for (name, message) in built_in() {
        let bytes = record(&message);
        check(&bytes);
        let (_, ja3, _) = ours(&bytes).expect("we read it");
        assert_eq!(Some(ja3), theirs(&bytes).map(|(ja3, _)| ja3), "{name}: no lookalike in it");
    }
}

#[test]
fn lookalikes_of_grease_are_theirs_alone() {
    let lookalikes: Vec<u16> = (0..=u16::MAX).filter(|value| is_lookalike(*value)).collect();
    assert_eq!(lookalikes.len(), 256 - 16);
    for value in lookalikes {
        let extensions = vec![(value, vec![]), (10, list16(&u16s(&[value, 29])))];
        let bytes = record(&message(0x0303, &[], &[value, 0x1301], &extensions));
        let (theirs, _) = theirs(&bytes).expect("they read it");
        let (_, ours, _) = ours(&bytes).expect("we read it");
        assert_eq!(theirs, "771,4865,10,29,");
        assert_eq!(ours, format!("771,{value}-4865,{value}-10,{value}-29,"));
    }
}

#[test]
fn hellos_in_several_records_are_ours_alone() {
    for (name, message) in built_in() {
        let whole = ours(&record(&message)).expect("we read it");
        for cut in [1, 3, 4, 60, message.len() - 1] {
            let (head, tail) = message.split_at(cut);
            let bytes = [record(head), record(tail)].concat();
            assert_eq!(theirs(&bytes), None, "{name}");
            assert_eq!(ours(&bytes), Some(whole.clone()), "{name}");
        }
    }
}

#[test]
fn hellos_without_extensions_are_ours_alone() {
    let bytes = record(&message(0x0301, &[], &[4, 5], &Vec::new()));
    assert_eq!(theirs(&bytes), None);
    assert_eq!(ours(&bytes).map(|(_, ja3, _)| ja3).as_deref(), Some("769,4-5,,,"));
}

#[test]
fn of_a_repeated_extension_we_take_the_first() {
    let groups = |group| (10, list16(&u16s(&[group])));
    let bytes = record(&message(0x0303, &[], &[1], &vec![groups(23), groups(24)]));
    assert_eq!(theirs(&bytes).map(|(ja3, _)| ja3).as_deref(), Some("771,1,10-10,24,"));
    assert_eq!(ours(&bytes).map(|(_, ja3, _)| ja3).as_deref(), Some("771,1,10-10,23,"));
}

/// A 16-bit value, often GREASE, sometimes a lookalike.
fn value() -> impl Strategy<Value = u16> {
    prop_oneof![
        6 => any::<u16>(),
        2 => (0..16_u16).prop_map(|nibble| nibble * 0x1010 + 0x0a0a),
        1 => (0..16_u16, 0..16_u16).prop_map(|(high, low)| high << 12 | low << 4 | 0x0a0a),
    ]
}

fn values(most: usize) -> impl Strategy<Value = Vec<u16>> {
    proptest::collection::vec(value(), 1..most)
}

/// Well-formed extensions of different types in any order.
fn extensions() -> impl Strategy<Value = Extensions> {
    let known = (
        values(12),
        proptest::collection::vec(any::<u8>(), 1..4),
        values(20),
        values(6),
        "[a-z]{1,20}\\.example",
        proptest::collection::vec("[a-z0-9/.]{1,9}", 1..4),
        proptest::collection::vec((value(), 0..70_usize), 1..4),
        proptest::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(
            |(groups, formats, algorithms, versions, name, protocols, shares, ticket)| {
                let protocols: Vec<&str> = protocols.iter().map(String::as_str).collect();
                vec![
                    (10, list16(&u16s(&groups))),
                    (11, list8(&formats)),
                    (13, list16(&u16s(&algorithms))),
                    (43, list8(&u16s(&versions))),
                    server_name(&name),
                    alpn(&protocols),
                    key_share(&shares),
                    (35, ticket),
                    (23, vec![]),
                    (18, vec![]),
                    (45, list8(&[1])),
                    (5, vec![1, 0, 0, 0, 0]),
                ]
            },
        );
    // Types that neither side reads.
    let unknown = proptest::collection::vec(
        (value().prop_map(|kind| kind | 0x0200), proptest::collection::vec(any::<u8>(), 0..30)),
        1..8,
    );
    (known, unknown, 1..20_usize)
        .prop_flat_map(|(known, unknown, count)| {
            (Just([known, unknown].concat()).prop_shuffle(), Just(count))
        })
        .prop_map(|(mut all, count)| {
            let mut seen = Vec::new();
            all.retain(|(kind, _)| {
                let new = !seen.contains(kind);
                seen.push(*kind);
                new
            });
            all.truncate(count);
            all
        })
}

fn hello() -> impl Strategy<Value = Vec<u8>> {
    (0x0300..=0x0304_u16, proptest::collection::vec(any::<u8>(), 0..=32), values(60), extensions())
        .prop_map(|(version, session_id, ciphers, extensions)| {
            message(version, &session_id, &ciphers, &extensions)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn generated_hellos_agree(message in hello()) {
        check(&record(&message));
    }

    #[test]
    fn damaged_hellos_agree_where_both_read_them(
        which in 0..5_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = record(&built_in()[which].1);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let (Some((theirs, _)), Some((hello, ours, _))) = (theirs(&bytes), ours(&bytes)) {
            let mut kinds = hello.extensions.clone();
            kinds.sort_unstable();
            kinds.dedup();
            prop_assume!(kinds.len() == hello.extensions.len());
            prop_assert_eq!(without_lookalikes(&ours), theirs);
        }
    }
}
