//! `[admin]`: the operators' address, who may ask there, its TLS.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{Item, Section, check_name, read_certificate_files};
use crate::config::{Admin, AdminToken, Listener, ListenerTls, Role, Secret};
use crate::limits::ADMIN_TOKENS_MAX;

/// Characters of a token at least, on a loopback address.
const TOKEN_CHARS_MIN: usize = 16;
/// Characters of a token at least, on any other address.
const TOKEN_CHARS_MIN_EXPOSED: usize = 32;
/// Different characters of a token at least, on any other address: a random one has more.
const TOKEN_CHARS_DIFFERENT_MIN: usize = 8;

const HOW: &str = "give token_file = \"admin.token\" (make one: openssl rand -hex 32 > \
                   admin.token; chmod 600 admin.token) or token_env = \"NAME\"";
const HOW_NAMED: &str = "give file = \"NAME.token\" (make one: openssl rand -hex 32 > NAME.token; \
                         chmod 600 NAME.token) or env = \"NAME\"";

pub(super) fn read(root: &mut Section<'_, '_>, listeners: &[Option<Listener>]) -> Option<Admin> {
    let mut table = root
        .required("admin", &format!("the admin endpoint needs a token: {HOW}"))
        .and_then(|item| item.table())?;
    let address = match table.optional("address") {
        Some(item) => item.socket_address().inspect(|address| {
            if listeners.iter().flatten().any(|listener| listener.address == *address) {
                item.error(format!("{address} is already a listener's address"));
            }
        }),
        None => Some(SocketAddr::from(([127, 0, 0, 1], 9090))),
    };
    let exposed = address.is_some_and(|address| !address.ip().is_loopback());
    let named = table.optional("token");
    let mut tokens: Vec<Option<AdminToken>> = Vec::new();
    // The one without a name may be left out where others are given.
    if named.is_none() || table.has("token_file") || table.has("token_env") {
        let secret = table.secret("token_file", "token_env", HOW);
        let secret = secret.and_then(|(item, bytes)| read_secret(&item, &bytes, exposed, HOW));
        tokens.push(secret.map(AdminToken::admin));
    }
    if let Some(item) = &named {
        let tables = item.tables("write [[admin.token]] with a name, a role and a file");
        if tables.len() >= ADMIN_TOKENS_MAX {
            item.error(format!("there may be fewer than {ADMIN_TOKENS_MAX} tokens"));
        }
        for table in tables {
            let token = read_token(table, exposed, &tokens);
            tokens.push(token);
        }
    }
    let tls_item = table.optional("tls");
    let tls = tls_item.as_ref().map(|item| item.table().and_then(read_tls));
    if exposed && tls.is_none() {
        table.warn("the address is not loopback and has no tls: tokens cross the network readable");
    }
    table.finish();
    Some(Admin {
        address: address?,
        tokens: tokens.into_iter().collect::<Option<_>>()?,
        tls: match tls {
            Some(tls) => Some(tls?),
            None => None,
        },
    })
}

fn read_token(
    mut table: Section<'_, '_>,
    exposed: bool,
    others: &[Option<AdminToken>],
) -> Option<AdminToken> {
    let name = table.required("name", "a name, which the audit will tell").and_then(|item| {
        let name = item.text()?;
        item.checked(check_name(&name))?;
        if others.iter().flatten().any(|other| other.name == name) {
            item.error(format!("\"{name}\" is the name of another token"));
        }
        Some(name)
    });
    let roles = Role::ALL.map(|role| (role.name(), role));
    let role =
        table.required("role", "\"sensor\", \"peer\", \"viewer\", \"operator\" or \"admin\"");
    let role = role.and_then(|item| item.choice(&roles));
    let secret = table.secret("file", "env", HOW_NAMED).and_then(|(item, bytes)| {
        let secret = read_secret(&item, &bytes, exposed, HOW_NAMED)?;
        if others.iter().flatten().any(|other| other.secret == secret) {
            item.error("is the same token as another one's: whose word it was could not be told");
        }
        Some(secret)
    });
    table.finish();
    Some(AdminToken { name: name?, role: role?, secret: secret? })
}

fn read_tls(mut table: Section<'_, '_>) -> Option<ListenerTls> {
    let certificate = read_certificate_files(&mut table);
    let client_ca_item = table.optional("client_ca");
    let client_ca = client_ca_item.as_ref().map(Item::ca_bundle);
    table.finish();
    Some(ListenerTls {
        certificates: vec![certificate?],
        client_certificate_required: client_ca.is_some(),
        client_ca: match client_ca {
            Some(path) => Some(path?),
            None => None,
        },
    })
}

fn read_secret(item: &Item<'_, '_>, bytes: &[u8], exposed: bool, how: &str) -> Option<Secret> {
    item.checked(check_token(bytes, exposed).map_err(|wrong| format!("{wrong}; {how}")))
}

fn check_token(secret: &[u8], exposed: bool) -> Result<Secret, String> {
    let token = std::str::from_utf8(secret).map(str::trim).unwrap_or_default();
    if !token.bytes().all(|byte| byte.is_ascii_graphic())
        || (token.is_empty() && !secret.is_empty())
    {
        return Err("must be one line of printable ASCII without spaces".into());
    }
    let (chars_min, place) = if exposed {
        (TOKEN_CHARS_MIN_EXPOSED, "on an address that is not loopback")
    } else {
        (TOKEN_CHARS_MIN, "on a loopback address")
    };
    if token.len() < chars_min {
        let chars = token.len();
        return Err(format!("has {chars} characters, at least {chars_min} are needed {place}"));
    }
    let different = token.bytes().collect::<BTreeSet<u8>>().len();
    if exposed && different < TOKEN_CHARS_DIFFERENT_MIN {
        return Err(format!(
            "has {different} different characters, at least {TOKEN_CHARS_DIFFERENT_MIN} are needed \
             {place}"
        ));
    }
    Ok(Secret::new(token))
}

#[cfg(test)]
mod tests {
    use super::super::ConfigError;
    use super::super::tests::{MINIMAL, errors_in, parse_in, ready};
    use super::*;

    const GIVEN: &str = "token_file = \"admin.token\"";

    fn with(admin: &str) -> String {
        MINIMAL.replace(GIVEN, admin)
    }

    #[test]
    fn tokens_have_names_roles_and_secrets_of_their_own() {
        let directory = ready();
        directory.write("v.token", "abcdefghij0123456789\n");
        directory.write("short.token", "abcdefghij\n");
        directory.write("plain.token", "abc".repeat(20));
        let eve = "[[admin.token]]\nname = \"eve\"\nrole = \"viewer\"\nfile = \"v.token\"\n";
        let config = parse_in(&directory, &with(eve)).unwrap();
        let tokens: Vec<_> =
            config.admin.tokens.iter().map(|token| (token.name.as_str(), token.role)).collect();
        assert_eq!(tokens, [("eve", Role::Viewer)]);
        let both = with(&format!("{GIVEN}\n{eve}"));
        assert_eq!(parse_in(&directory, &both).unwrap().admin.tokens.len(), 2);

        let token = |lines: &str| with(&format!("{GIVEN}\n[[admin.token]]\n{lines}\n"));
        let exposed = |file: &str| {
            with(&format!("address = \"0.0.0.0:1\"\n{}", eve.replace("v.token", file)))
        };
        for (text, part) in [
            (token("name = \"a\"\nrole = \"viewer\""), "admin.token[0].file: is missing"),
            (token("name = \"a\"\nfile = \"v.token\""), "admin.token[0].role: is missing"),
            (token("role = \"viewer\"\nfile = \"v.token\""), "admin.token[0].name: is missing"),
            (token("name = \"a\"\nrole = \"root\"\nfile = \"v.token\""), "\"root\" is not one of"),
            (token("name = \"a\"\nrole = \"viewer\"\nfile = \"admin.token\""), "the same token"),
            (token("name = \"admin\"\nrole = \"viewer\"\nfile = \"v.token\""), "another token"),
            (token("name = \"a b\"\nrole = \"viewer\"\nfile = \"v.token\""), "is not a name"),
            (token("name = \"a\"\nrole = \"viewer\"\nfile = \"short.token\""), "at least 16"),
            (exposed("v.token"), "at least 32"),
            (exposed("plain.token"), "different characters"),
            (with(&format!("{GIVEN}\ntls = {{ chain = \"a.pem\" }}")), "admin.tls.key: is missing"),
        ] {
            let errors = errors_in(&directory, &text);
            assert!(errors.iter().any(|error| error.contains(part)), "{part}: {errors:?}");
        }
    }

    #[test]
    fn an_open_address_without_tls_is_warned_about() {
        let directory = ready();
        directory.write("admin.token", "0123456789abcdef".repeat(3));
        for (tls, warned) in [("", true), ("tls = { chain = \"a.pem\", key = \"a.key\" }", false)] {
            let text = with(&format!("address = \"0.0.0.0:1\"\n{GIVEN}\n{tls}"));
            let config = parse_in(&directory, &text).unwrap();
            let plain = |warning: &ConfigError| warning.message.contains("readable");
            assert_eq!(config.warnings.iter().any(plain), warned, "{:?}", config.warnings);
        }
    }
}
