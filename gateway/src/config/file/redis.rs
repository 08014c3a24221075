//! `[redis]`: where the gateways of a fleet meet.

use std::collections::HashSet;
use std::time::Duration;

use super::{Item, Section, is_host, read_certificate, suggest};
use crate::config::{Redis, Secret, StoreKind};

/// Port where an address names none.
const PORT: u16 = 6379;
/// Days that Redis keeps an account that nobody sees.
const KEEP_DAYS: u32 = 30;

/// `None` where it is wrong, `Some(None)` where it is not there.
pub(super) fn read(root: &mut Section<'_, '_>, kind: Option<StoreKind>) -> Option<Option<Redis>> {
    let Some(item) = root.optional("redis") else {
        if kind == Some(StoreKind::Redis) {
            root.error("store", "\"redis\" needs a table [redis] with urls");
        }
        return Some(None);
    };
    let mut table = item.table()?;
    if kind.is_some_and(|kind| kind != StoreKind::Redis) {
        table.error("", "is used with store = \"redis\" only");
    }
    let example = "such as [\"rediss://redis.example.com:6379\"]";
    let urls = table.required("urls", &format!("the servers' addresses, {example}"));
    let servers = urls.as_ref().map(|item| servers(item, example)).unwrap_or_default();
    let tls = servers.first().is_some_and(|(tls, _)| *tls);
    if let Some(item) = &urls
        && servers.iter().any(|(other, _)| *other != tls)
    {
        item.error("has redis:// beside rediss://: give either for all servers");
    }
    let cluster = table.optional("cluster").and_then(|item| item.boolean()).unwrap_or(false);
    let username = table.optional("username").and_then(|item| item.text());
    let how = "give password_file = \"redis.password\" or password_env = \"NAME\"";
    let wants_password = table.has("password_file") || table.has("password_env");
    if !wants_password {
        // Known keys all the same, so that a misspelt one is told from them.
        table.optional("password_file");
        table.optional("password_env");
        if username.is_some() {
            table.error("username", format!("needs a password: {how}"));
        }
    }
    let password = wants_password.then(|| table.secret("password_file", "password_env", how));
    let password = match password {
        Some(secret) => Some(secret.and_then(|(item, bytes)| password_of(&item, &bytes))?),
        None => None,
    };
    let needs_tls = |item: &Item<'_, '_>| {
        if !tls {
            item.error("needs rediss:// addresses");
        }
    };
    let ca = table.optional("ca").and_then(|item| {
        needs_tls(&item);
        item.ca_bundle()
    });
    let client_certificate = table.optional("client_certificate").and_then(|item| {
        needs_tls(&item);
        item.table().and_then(read_certificate)
    });
    let prefix = table.optional("prefix").map_or_else(|| Some("sg".to_owned()), |i| prefix(&i));
    let sync_interval_ms = table.integer("sync_interval_ms", 100_u32, 10..=10_000);
    let memory_interval_ms = table.integer("memory_interval_ms", 1_000_u32, 100..=600_000);
    let keep_days = table.integer("keep_days", KEEP_DAYS, 1..=3_650);
    if !tls && !servers.is_empty() && !servers.iter().all(|(_, (host, _))| is_loopback(host)) {
        table.warn("without TLS, whoever is on the way reads and changes what the gateways share");
    }
    table.finish();
    if servers.is_empty() {
        return None;
    }
    Some(Some(Redis {
        addresses: servers.into_iter().map(|(_, address)| address).collect(),
        tls,
        cluster,
        username,
        password,
        ca,
        client_certificate,
        prefix: prefix?,
        sync_interval: Duration::from_millis(sync_interval_ms.into()),
        memory_interval: Duration::from_millis(memory_interval_ms.into()),
        keep: Duration::from_secs(u64::from(keep_days) * 86_400),
    }))
}

type Server = (bool, (String, u16));

fn servers(item: &Item<'_, '_>, example: &str) -> Vec<Server> {
    let mut seen = HashSet::new();
    let server = |item: &Item<'_, '_>| {
        let text = item.string()?;
        let server = item.checked(parse_url(&text))?;
        if !seen.insert(server.1.clone()) {
            item.error(format!("{text} is listed twice"));
        }
        Some(server)
    };
    item.non_empty_list(&format!("give them {example}")).iter().filter_map(server).collect()
}

/// `redis://host:port` or `rediss://host:port`. A secret has no place in it: this file is read by
/// more people than a secret's own file.
fn parse_url(text: &str) -> Result<Server, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let tls = match scheme {
        "redis" => false,
        "rediss" => true,
        _ => {
            let hint = suggest(scheme, &["redis", "rediss"]);
            return Err(format!("begins with redis:// or, for TLS, rediss://{hint}"));
        }
    };
    if rest.contains('@') {
        return Err("has a user or password in it: use username and password_file".to_owned());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let wrong = || format!("\"{text}\" is not {scheme}://HOST:PORT");
    let bracketed = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = match bracketed {
        Some((host, port)) => (host, port.strip_prefix(':').or(port.is_empty().then_some(""))),
        None => rest.split_once(':').map_or((rest, Some("")), |(host, port)| (host, Some(port))),
    };
    let port = match port.ok_or_else(wrong)? {
        "" => PORT,
        port => port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?,
    };
    let is_ip6 = bracketed.is_some() && host.parse::<std::net::Ipv6Addr>().is_ok();
    let is_named = bracketed.is_none() && is_host(&host.to_ascii_lowercase());
    if is_ip6 || is_named { Ok((tls, (host.to_owned(), port))) } else { Err(wrong()) }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn password_of(item: &Item<'_, '_>, bytes: &[u8]) -> Option<Secret> {
    let text = std::str::from_utf8(bytes).map(|text| text.trim_end_matches(['\r', '\n']));
    match text {
        Ok(text) if !text.is_empty() && !text.contains(char::is_control) => Some(Secret::new(text)),
        _ => {
            item.error("must be one line of text");
            None
        }
    }
}

fn prefix(item: &Item<'_, '_>) -> Option<String> {
    let text = item.string()?;
    // Braces would make a hash tag of a Cluster's key.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=32).contains(&text.len()) && text.bytes().all(plain) {
        return Some(text);
    }
    item.error(format!("\"{text}\" is not 1 to 32 letters, digits, \"-\", \"_\" and \".\""));
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let of = |tls, host: &str, port| Ok((tls, (host.to_owned(), port)));
        for (text, expected) in [
            ("redis://127.0.0.1", of(false, "127.0.0.1", 6379)),
            ("rediss://redis.example.com:7000/", of(true, "redis.example.com", 7000)),
            ("redis://[::1]:7001", of(false, "::1", 7001)),
            ("redis://[::1]", of(false, "::1", 6379)),
        ] {
            assert_eq!(parse_url(text), expected, "{text}");
        }
        for text in [
            "127.0.0.1:6379",
            "http://redis",
            "redis://",
            "redis://a:0",
            "redis://a:b",
            "redis://a:70000",
            "redis://a/1",
            "redis://user:secret@a",
            "redis://[::1",
            "redis://[a]:1",
        ] {
            let wrong = parse_url(text).unwrap_err();
            assert!(!wrong.contains("secret@"), "{wrong}");
        }
    }
}
