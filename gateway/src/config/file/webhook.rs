//! `[[webhook]]`: where what happens is told.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};

use super::{Item, SECONDS_MAX, Section, check_name};
use crate::audit::Act;
use crate::outgoing::{Trust, Url};
use crate::webhook::{DEFAULT_EVENTS, SigningKey, Webhook};

/// Reads every webhook; empty where there is none.
pub(super) fn read(root: &mut Section<'_, '_>) -> Option<Vec<Webhook>> {
    let Some(item) = root.optional("webhook") else { return Some(Vec::new()) };
    let mut names = HashMap::new();
    let tables = item.tables("write [[webhook]] with a name, a url and a secret, or none");
    let webhooks: Vec<_> = tables.into_iter().map(|table| read_one(table, &mut names)).collect();
    webhooks.into_iter().collect()
}

fn read_one(mut table: Section<'_, '_>, names: &mut HashMap<String, usize>) -> Option<Webhook> {
    let name = table.required("name", "a word for logs and metrics").and_then(|item| {
        let name = item.string()?;
        if let Err(wrong) = check_name(&name) {
            item.error(wrong);
        }
        if let Some(line) = names.insert(name.clone(), item.line()) {
            item.error(format!("\"{name}\" is already the name of the webhook at line {line}"));
        }
        Some(name)
    });
    let url = table
        .required("url", "such as \"https://siem.example/stillgate\"")
        .and_then(|item| url(&item));
    let how = "give secret_file = \"webhook.secret\" (make one: \
               echo \"whsec_$(openssl rand -base64 32)\" > webhook.secret; \
               chmod 600 webhook.secret) or secret_env = \"NAME\"";
    let keys = table.secret("secret_file", "secret_env", how).and_then(|(item, bytes)| {
        item.checked(SigningKey::parse_all(&bytes).map_err(|wrong| format!("{wrong}; {how}")))
    });
    let events = match table.optional("events") {
        None => DEFAULT_EVENTS.to_vec(),
        Some(item) => item
            .non_empty_list("name kinds of audit entries, or leave it out")
            .iter()
            .filter_map(|item| {
                let name = item.string()?;
                let name: StrDeserializer<'_, Error> = name.as_str().into_deserializer();
                // The library's error lists what is allowed.
                item.checked(Act::deserialize(name).map_err(|error| error.to_string()))
            })
            .collect(),
    };
    let ca_item = table.optional("ca");
    if let (Some(item), Some(url)) = (&ca_item, &url)
        && !url.is_tls()
    {
        item.error("needs an https url");
    }
    let ca = ca_item.and_then(|item| item.ca_bundle());
    let timeout = table.seconds("timeout_seconds", Duration::from_secs(10));
    let retry = table.seconds("retry_seconds", Duration::from_secs(1));
    let retry_max = table.seconds("retry_max_seconds", Duration::from_secs(300));
    if retry_max < retry {
        table.error("retry_max_seconds", "is below retry_seconds");
    }
    let give_up_after = table
        .optional("give_up_after_seconds")
        .and_then(|item| item.duration(0.0..=SECONDS_MAX))
        .unwrap_or(Duration::from_secs(86_400));
    table.finish();
    Some(Webhook {
        name: name?.into(),
        url: url?,
        trust: Trust { ca, certificate: None },
        events,
        keys: keys?,
        timeout,
        retry,
        retry_max,
        give_up_after,
    })
}

fn url(item: &Item<'_, '_>) -> Option<Url> {
    // The text itself stays out of the message: some receivers have their secret in it.
    let url: Url = item.checked(item.text()?.parse().map_err(|wrong| format!("{wrong}")))?;
    if !url.is_tls() && !url.is_loopback() {
        item.report.warn(
            item.at,
            &item.key,
            "plain http: whoever is on the way reads what happens to accounts",
        );
    }
    Some(url)
}

#[cfg(test)]
mod tests {
    use crate::audit::Act;
    use crate::config::file::load;
    use crate::config::file::tests::TestDirectory;
    use crate::webhook::DEFAULT_EVENTS;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn errors(folder: &TestDirectory, more: &str) -> String {
        let file = folder.minimal_config("bad.toml", more);
        let errors = load(&file).unwrap_err();
        errors.iter().map(|error| format!("{error}\n")).collect()
    }

    #[test]
    fn a_webhook_has_defaults_and_every_setting_arrives() {
        let folder = TestDirectory::new();
        folder.write("hook.secret", SECRET);
        folder.certificate("ca", &["ca.example"]);
        let more = "[[webhook]]\nname = \"a\"\nurl = \"https://a.example/x\"\n\
                    secret_file = \"hook.secret\"\n\
                    [[webhook]]\nname = \"b\"\nurl = \"https://b.example/\"\n\
                    secret_file = \"hook.secret\"\nca = \"ca.pem\"\n\
                    events = [\"override_set\", \"policy_changed\"]\ntimeout_seconds = 2\n\
                    retry_seconds = 0.5\nretry_max_seconds = 60\ngive_up_after_seconds = 0\n";
        let config = load(&folder.minimal_config("good.toml", more)).unwrap();
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        let [a, b] = config.webhooks.as_slice() else { panic!("two") };
        assert_eq!((&*a.name, a.events.as_slice()), ("a", DEFAULT_EVENTS.as_slice()));
        let seconds =
            |hook: &super::Webhook| [hook.timeout, hook.retry, hook.retry_max, hook.give_up_after];
        assert_eq!(seconds(a).map(|time| time.as_secs_f64()), [10.0, 1.0, 300.0, 86_400.0]);
        assert_eq!(seconds(b).map(|time| time.as_secs_f64()), [2.0, 0.5, 60.0, 0.0]);
        assert_eq!(b.events, [Act::OverrideSet, Act::PolicyChanged]);
        assert_eq!(b.trust.ca, Some(folder.path().join("ca.pem")));
        assert!(!format!("{config:?}").contains("MfKQ9"), "no secret is shown");
    }

    #[test]
    fn each_mistake_is_named_and_no_secret_is() {
        let folder = TestDirectory::new();
        folder.write("short.secret", "whsec_c2hvcnQ=");
        folder.write("hook.secret", SECRET);
        let hook = |more: &str| format!("[[webhook]]\nname = \"a\"\n{more}");
        let with = |more: &str| hook(&format!("secret_file = \"hook.secret\"\n{more}"));
        for (text, key, said) in [
            (hook("url = \"https://a/\"\n"), "webhook[0].secret_file", "openssl rand -base64 32"),
            (
                hook("url = \"https://a/\"\nsecret_file = \"short.secret\"\n"),
                "webhook[0].secret_file",
                "has 5 bytes, 24 to 64 are needed",
            ),
            (with(""), "webhook[0].url", "is missing"),
            (with("url = \"https://u:hidden@a/\"\n"), "webhook[0].url", "without user name"),
            (with("url = \"ftp://a/\"\n"), "webhook[0].url", "is not an http or https address"),
            (
                with("url = \"https://a/\"\nevents = [\"tier\"]\n"),
                "webhook[0].events[0]",
                "unknown variant `tier`, expected one of `started`, `tier_changed`",
            ),
            (with("url = \"https://a/\"\nevents = []\n"), "webhook[0].events", "is empty"),
            (with("url = \"http://[::1]/\"\nca = \"ca.pem\"\n"), "webhook[0].ca", "needs an https"),
            (
                with("url = \"https://a/\"\nretry_max_seconds = 0.1\n"),
                "webhook[0].retry_max_seconds",
                "is below retry_seconds",
            ),
            (with("url = \"https://a/\"\nretries = 1\n"), "webhook[0].retries", "unknown key"),
            (
                format!("{0}{0}", with("url = \"https://a/\"\n")),
                "webhook[1].name",
                "is already the name of the webhook at line",
            ),
        ] {
            let errors = errors(&folder, &text);
            let named = errors.lines().any(|line| line.contains(key) && line.contains(said));
            assert!(named, "{key}: {said}\n{errors}");
            assert!(!errors.contains("c2hvcnQ") && !errors.contains("hidden"), "{errors}");
        }
        let plain = with("url = \"http://a.example/\"\n");
        let config = load(&folder.minimal_config("plain.toml", &plain)).unwrap();
        assert!(config.warnings[0].message.contains("plain http"), "{:?}", config.warnings);
    }
}
