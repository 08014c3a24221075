//! `[ioc]` and `[[peer]]`: whom indicators are exchanged with, and by which keys.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeValue;

use super::{Item, Section, check_name, identity_key, read_bounded};
use crate::config::{Ioc, Peer, Secret};
use crate::ioc::sign::{SigningKey, VerifyKey};
use crate::limits::IOC_PEERS_MAX;
use crate::outgoing::{Trust, Url};

const HMAC_HOW: &str = "make one: openssl rand -hex 32 > ioc.key; chmod 600 ioc.key";
const HMAC_KEYS: (&str, &str) = ("hmac_key_file", "hmac_key_env");

/// Nothing where there is no `[ioc]`, and where it is wrong, which is then reported.
pub(super) fn read_ioc(root: &mut Section<'_, '_>) -> Option<Arc<Ioc>> {
    let peers_item = root.optional("peer");
    let Some(item) = root.optional("ioc") else {
        if let Some(peers) = peers_item {
            peers.error("needs [ioc], which names this provider to its peers");
        }
        return None;
    };
    let mut table = item.table()?;
    let provider = table
        .required("provider", "the name that peers know this provider by")
        .and_then(|item| name(&item));
    let ed25519 = table.optional("ed25519_key_file").and_then(|item| {
        let pem = pem(&item)?;
        item.check_permissions(&item.path()?);
        item.checked(SigningKey::ed25519(&pem))
    });
    let hmac = secret(&mut table, HMAC_KEYS).map(|secret| SigningKey::hmac(&secret));
    if !["ed25519_key_file", HMAC_KEYS.0, HMAC_KEYS.1].iter().any(|key| table.has(key)) {
        table.error(
            "",
            format!(
                "needs a key that signs: ed25519_key_file (openssl genpkey -algorithm ed25519), or \
                 hmac_key_file or hmac_key_env ({HMAC_HOW})"
            ),
        );
    }
    let signing: Vec<SigningKey> = ed25519.into_iter().chain(hmac).collect();
    let exchange_key = secret(&mut table, ("exchange_key_file", "exchange_key_env"));
    let own_networks = table
        .optional("own_networks")
        .map(|item| item.networks("list this provider's own networks, or leave it out"))
        .unwrap_or_default();
    let lifetime_days = table.integer("lifetime_days", 30_u32, 1..=365);
    let operator_weight = table.optional("operator_weight").and_then(|item| weight(&item));
    table.finish();
    let mut names = HashSet::new();
    let peers: Vec<Option<Peer>> = match peers_item {
        None => Vec::new(),
        Some(item) => {
            let tables = item.tables("write [[peer]] with a name");
            if tables.len() > IOC_PEERS_MAX {
                item.error(format!("has {}, at most {IOC_PEERS_MAX} may be", tables.len()));
            }
            let read = |table| read_peer(table, provider.as_deref(), &mut names);
            tables.into_iter().map(read).collect()
        }
    };
    Some(Arc::new(Ioc {
        provider: provider?.into(),
        signing,
        exchange_key,
        own_networks,
        lifetime_ms: u64::from(lifetime_days) * 86_400_000,
        operator_weight: operator_weight.unwrap_or(0.5),
        peers: peers.into_iter().collect::<Option<_>>()?,
    }))
}

fn read_peer(
    mut table: Section<'_, '_>,
    provider: Option<&str>,
    names: &mut HashSet<String>,
) -> Option<Peer> {
    let item = table.required("name", "the name under which the peer issues its bundles");
    let name = item.and_then(|item| {
        let name = name(&item)?;
        if Some(name.as_str()) == provider {
            item.error("is this provider's own name (ioc.provider)");
        }
        if !names.insert(name.clone()) {
            item.error(format!("another peer is named \"{name}\""));
        }
        Some(name)
    });
    let mut verify = Vec::new();
    if let Some(item) = table.optional("ed25519_public_key_file") {
        verify.extend(pem(&item).and_then(|pem| item.checked(VerifyKey::ed25519(&pem))));
    }
    verify.extend(secret(&mut table, HMAC_KEYS).map(|secret| VerifyKey::hmac(&secret)));
    let keys = ["ed25519_public_key_file", HMAC_KEYS.0, HMAC_KEYS.1];
    let verifies = keys.iter().any(|key| table.has(key));
    let weight = table.optional("weight").and_then(|item| weight(&item)).unwrap_or(0.5);
    let push = table.optional("push").and_then(|item| item.boolean()).unwrap_or(false);
    let pull_item = table.optional("pull_interval_seconds");
    let pull: Option<Duration> = pull_item.as_ref().and_then(|item| item.duration(1.0..=86_400.0));
    if !verifies && !push {
        table.error(
            "",
            "needs ed25519_public_key_file, hmac_key_file or hmac_key_env, by which its bundles are \
             verified, or push = true",
        );
    }
    if let (false, Some(item)) = (verifies, &pull_item) {
        item.error("needs a key by which the peer's bundles are verified");
    }
    let url = table.optional("url").and_then(|item| {
        let url: Url = item.checked(item.text()?.parse().map_err(|e| format!("{e}")))?;
        if !url.is_tls() && !url.is_loopback() {
            let message = "plain http: whoever is on the way reads the token and the indicators";
            item.report.warn(item.at, &item.key, message);
        }
        Some(url)
    });
    let asked = push || pull_item.is_some();
    if asked && !table.has("url") {
        table.error("", "needs url, where the peer is pushed to and pulled from");
    }
    let token = if asked || table.has("token_file") || table.has("token_env") {
        let how = "the token that the peer's operators gave you";
        let read = table.secret("token_file", "token_env", how);
        read.and_then(|(item, bytes)| item.checked(token(&bytes)))
    } else {
        None
    };
    let ca = table.optional("ca").and_then(|item| item.ca_bundle());
    // Keys that were not asked for above are known all the same.
    table.known.extend(["token_file", "token_env"]);
    table.finish();
    let trust = Trust { ca, certificate: None };
    Some(Peer { name: name?.into(), url, token, verify, weight, push, pull, trust })
}

/// A key of bytes from a file or the environment, where either is named.
fn secret(table: &mut Section<'_, '_>, keys: (&'static str, &'static str)) -> Option<Arc<[u8]>> {
    if !table.has(keys.0) && !table.has(keys.1) {
        table.known.extend([keys.0, keys.1]);
        return None;
    }
    let (item, bytes) = table.secret(keys.0, keys.1, HMAC_HOW)?;
    item.checked(identity_key(&bytes))
}

/// What the peer's operators call a token is theirs to say.
fn token(bytes: &[u8]) -> Result<Secret, String> {
    let token = std::str::from_utf8(bytes).map(str::trim).unwrap_or_default();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("must be one line of printable ASCII without spaces".to_owned());
    }
    Ok(Secret::new(token))
}

fn pem(item: &Item<'_, '_>) -> Option<Vec<u8>> {
    let path = item.path()?;
    let read = read_bounded(&path);
    item.checked(read.map_err(|error| format!("{} cannot be read: {error}", path.display())))
}

fn name(item: &Item<'_, '_>) -> Option<String> {
    let name = item.text()?;
    item.checked(check_name(&name).map(|()| name))
}

fn weight(item: &Item<'_, '_>) -> Option<f64> {
    let wanted = "a number from 0 to 1";
    let number: Option<f64> = match item.value {
        DeValue::Integer(number) => number.as_str().parse().ok(),
        DeValue::Float(number) => number.as_str().parse().ok(),
        _ => return item.expected(wanted),
    };
    let number = number.filter(|number| (0.0..=1.0).contains(number));
    if number.is_none() {
        item.error(format!("is out of range, expected {wanted}"));
    }
    number
}

#[cfg(test)]
mod tests {
    use super::super::tests::{errors_in, parse_in, ready};
    use crate::ioc::sign::tests::{PRIVATE, PUBLIC};

    const MINIMAL: &str = super::super::tests::MINIMAL;
    const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn an_exchange_is_read() {
        let directory = ready();
        directory.write("ioc.key", SECRET);
        directory.write("ioc.pem", PRIVATE);
        directory.write("peer.pem", PUBLIC);
        directory.write("peer.token", "0123456789abcdefghij");
        let text = format!(
            "{MINIMAL}\n[ioc]\nprovider = \"lab-a\"\ned25519_key_file = \"ioc.pem\"\n\
             hmac_key_file = \"ioc.key\"\nexchange_key_env = \"KEY\"\nlifetime_days = 7\n\
             own_networks = [\"198.51.100.0/24\"]\noperator_weight = 0.25\n\
             [[peer]]\nname = \"lab-b\"\nurl = \"https://iocs.lab-b.example\"\n\
             token_file = \"peer.token\"\ned25519_public_key_file = \"peer.pem\"\nweight = 1\n\
             push = true\npull_interval_seconds = 300\n\
             [[peer]]\nname = \"lab-c\"\nhmac_key_env = \"KEY\"\n"
        );
        let config = parse_in(&directory, &text).unwrap();
        let ioc = config.ioc.unwrap();
        assert_eq!((&*ioc.provider, ioc.signing.len(), ioc.peers.len()), ("lab-a", 2, 2));
        assert_eq!((ioc.lifetime_ms, ioc.operator_weight), (7 * 86_400_000, 0.25));
        let [b, c] = &ioc.peers[..] else { panic!() };
        assert!(b.push && b.pull.is_some() && b.token.is_some() && b.verify.len() == 1);
        assert_eq!((b.weight, c.weight, c.push, c.url.is_none()), (1.0, 0.5, false, true));
        let shown = format!("{ioc:?}");
        assert!(!shown.contains("0123456789abcdef"), "{shown}");
        assert!(parse_in(&directory, MINIMAL).unwrap().ioc.is_none());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let directory = ready();
        directory.write("ioc.key", SECRET);
        directory.write("peer.pem", PUBLIC);
        let base = "[ioc]\nprovider = \"a\"\nhmac_key_file = \"ioc.key\"\n";
        for (more, wanted) in [
            ("[[peer]]\nname = \"b\"\n".to_owned(), "peer: needs [ioc]"),
            ("[ioc]\nprovider = \"a\"\n".to_owned(), "ioc: needs a key that signs"),
            ("[ioc]\nhmac_key_file = \"ioc.key\"\n".to_owned(), "ioc.provider: is missing"),
            (
                "[ioc]\nprovider = \"a\"\ned25519_key_file = \"peer.pem\"\n".to_owned(),
                "ioc.ed25519_key_file: is not an Ed25519 private key",
            ),
            (format!("{base}lifetime = 3\n"), "ioc.lifetime: unknown key"),
            (format!("{base}operator_weight = 2\n"), "ioc.operator_weight: is out of range"),
            (format!("{base}[[peer]]\nname = \"a\"\n"), "peer[0].name: is this provider's own"),
            (format!("{base}[[peer]]\nname = \"b\"\n"), "peer[0]: needs ed25519_public_key_file"),
            (format!("{base}[[peer]]\nname = \"b\"\npush = true\n"), "peer[0]: needs url"),
            (
                format!("{base}[[peer]]\nname = \"b\"\npush = true\n"),
                "peer[0].token_file: is missing",
            ),
            (
                format!("{base}[[peer]]\nname = \"b\"\npull_interval_seconds = 5\n"),
                "peer[0].pull_interval_seconds: needs a key",
            ),
            (
                format!(
                    "{base}[[peer]]\nname = \"b\"\nhmac_key_file = \"peer.pem\"\nurl = \"x\"\n"
                ),
                "peer[0].url: is not an http or https address",
            ),
        ] {
            let errors = errors_in(&directory, &format!("{MINIMAL}{more}"));
            assert!(errors.iter().any(|error| error.contains(wanted)), "{more}: {errors:?}");
        }
    }
}
