//! What is done about an account: which actions a tier brings, for which requests, and in how far
//! only for show.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::tier::Tier;

/// Something that can be done about an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Put it into the queue that people look through.
    Review,
    /// Hold its requests and tokens to limits.
    Throttle,
    /// Send its answers at so many tokens a second.
    Pace,
    /// Mark its answers.
    Watermark,
    /// Vary the placeholders that the model invents.
    Canary,
    /// Keep reasoning out of its answers.
    WithholdReasoning,
    /// Refuse its requests until somebody verified its holder.
    Verify,
    /// Refuse its requests.
    Refuse,
    /// End answers under way, where its requests are refused from now on.
    EndStream,
    /// Suspend the members of its cluster.
    Takedown,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 10] = [
        Self::Review,
        Self::Throttle,
        Self::Pace,
        Self::Watermark,
        Self::Canary,
        Self::WithholdReasoning,
        Self::Verify,
        Self::Refuse,
        Self::EndStream,
        Self::Takedown,
    ];

    /// Its name in policies and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Review => "review",
            Self::Throttle => "throttle",
            Self::Pace => "pace",
            Self::Watermark => "watermark",
            Self::Canary => "canary",
            Self::WithholdReasoning => "withhold_reasoning",
            Self::Verify => "verify",
            Self::Refuse => "refuse",
            Self::EndStream => "end_stream",
            Self::Takedown => "takedown",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is done about an account of one tier. What is not named is not done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Actions {
    /// [`Action::Review`].
    pub review: bool,
    /// [`Action::Throttle`]: names of the limits that hold.
    pub throttle: Vec<String>,
    /// [`Action::Pace`]: tokens a second of one answer.
    pub pace_tokens_per_second: Option<f64>,
    /// [`Action::Watermark`].
    pub watermark: bool,
    /// [`Action::Canary`].
    pub canary: bool,
    /// [`Action::WithholdReasoning`].
    pub withhold_reasoning: bool,
    /// [`Action::Verify`].
    pub verify: bool,
    /// [`Action::Refuse`].
    pub refuse: bool,
    /// [`Action::EndStream`].
    pub end_stream: bool,
    /// [`Action::Takedown`].
    pub takedown: bool,
    /// Actions that are only counted, not taken.
    pub shadow: Vec<Action>,
}

impl Actions {
    /// Whether an action is among them, in shadow or not.
    #[must_use]
    pub fn has(&self, action: Action) -> bool {
        match action {
            Action::Review => self.review,
            Action::Throttle => !self.throttle.is_empty(),
            Action::Pace => self.pace_tokens_per_second.is_some(),
            Action::Watermark => self.watermark,
            Action::Canary => self.canary,
            Action::WithholdReasoning => self.withhold_reasoning,
            Action::Verify => self.verify,
            Action::Refuse => self.refuse,
            Action::EndStream => self.end_stream,
            Action::Takedown => self.takedown,
        }
    }
}

/// The actions of every tier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ByTier {
    /// Everybody's.
    pub none: Actions,
    /// Of tier low.
    pub low: Actions,
    /// Of tier medium.
    pub medium: Actions,
    /// Of tier high.
    pub high: Actions,
    /// Of tier critical.
    pub critical: Actions,
}

impl ByTier {
    /// The actions of a tier.
    #[must_use]
    pub fn of(&self, tier: Tier) -> &Actions {
        match tier {
            Tier::None => &self.none,
            Tier::Low => &self.low,
            Tier::Medium => &self.medium,
            Tier::High => &self.high,
            Tier::Critical => &self.critical,
        }
    }
}

impl Default for ByTier {
    /// The threat model's ("Risk Tier Thresholds"): review, rate limit, watermark with canary,
    /// cluster takedown.
    fn default() -> Self {
        let limits = || vec!["suspect".to_owned(), "suspect_cluster".to_owned()];
        Self {
            none: Actions::default(),
            low: Actions { review: true, ..Actions::default() },
            medium: Actions {
                review: true,
                throttle: limits(),
                pace_tokens_per_second: Some(40.0),
                ..Actions::default()
            },
            high: Actions {
                review: true,
                throttle: limits(),
                pace_tokens_per_second: Some(20.0),
                watermark: true,
                canary: true,
                withhold_reasoning: true,
                ..Actions::default()
            },
            critical: Actions {
                review: true,
                refuse: true,
                end_stream: true,
                takedown: true,
                ..Actions::default()
            },
        }
    }
}

/// Other actions for some requests: the first rule of a file that matches holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name of the route; any where absent.
    pub route: Option<String>,
    /// Name of the model as the request gives it; a `*` at the end stands for anything.
    pub model: Option<String>,
    /// The account's organisation.
    pub organisation: Option<String>,
    /// Tiers that it holds for; all where absent.
    pub tiers: Option<Vec<Tier>>,
    /// What is done then, in the place of the tier's actions.
    #[serde(default)]
    pub action: Actions,
}

/// What a rule looks at in a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// Name of the route.
    pub route: &'a str,
    /// The model that the request names.
    pub model: Option<&'a str>,
    /// The account's organisation.
    pub organisation: Option<&'a str>,
}

impl Rule {
    /// Whether the rule holds for a request of an account of this tier.
    #[must_use]
    pub fn matches(&self, tier: Tier, asked: &Asked<'_>) -> bool {
        let model = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => asked.model.is_some_and(|model| model.starts_with(start)),
            None => asked.model == Some(pattern),
        };
        self.route.as_ref().is_none_or(|route| route == asked.route)
            && self.model.as_ref().is_none_or(model)
            && self.organisation.as_ref().is_none_or(|id| asked.organisation == Some(id))
            && self.tiers.as_ref().is_none_or(|tiers| tiers.contains(&tier))
    }
}

/// Whose requests a limit counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// One account's.
    Account,
    /// Those of all accounts of an organisation; of the account where it has none.
    Organisation,
    /// Those of all accounts of a cluster; of the account where it is in none.
    Cluster,
    /// Those from one address (of IPv6 its /64).
    Ip,
}

impl Scope {
    /// Its name in policies and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Organisation => "organisation",
            Self::Cluster => "cluster",
            Self::Ip => "ip",
        }
    }
}

/// A limit: so much a minute, so many at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Whose requests it counts together.
    pub per: Scope,
    /// Requests a minute.
    #[serde(default)]
    pub requests_per_minute: Option<f64>,
    /// Prompt tokens a minute.
    #[serde(default)]
    pub input_tokens_per_minute: Option<f64>,
    /// Tokens of answers a minute.
    #[serde(default)]
    pub output_tokens_per_minute: Option<f64>,
    /// Requests at once.
    #[serde(default)]
    pub concurrent: Option<u32>,
    /// Seconds of the rate that may be used at once after a pause.
    #[serde(default = "burst_seconds")]
    pub burst_seconds: f64,
}

fn burst_seconds() -> f64 {
    10.0
}

/// The shipped limits.
pub(super) fn limits() -> BTreeMap<String, Limit> {
    let limit = |per, requests: f64, input, output, concurrent| Limit {
        per,
        requests_per_minute: Some(requests),
        input_tokens_per_minute: Some(input),
        output_tokens_per_minute: Some(output),
        concurrent: Some(concurrent),
        burst_seconds: burst_seconds(),
    };
    BTreeMap::from([
        ("suspect".to_owned(), limit(Scope::Account, 20.0, 40_000.0, 8_000.0, 4)),
        ("suspect_cluster".to_owned(), limit(Scope::Cluster, 120.0, 240_000.0, 48_000.0, 24)),
    ])
}

/// What holds for all actions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Enforcement {
    /// Nothing is done, everything is counted.
    pub shadow: bool,
    /// Longest time that a request waits for its judgement, in milliseconds.
    pub inline_ms_max: u64,
    /// What becomes of a request whose judgement is not there by then.
    pub when_late: WhenLate,
}

impl Default for Enforcement {
    fn default() -> Self {
        Self { shadow: false, inline_ms_max: 5, when_late: WhenLate::KnownTier }
    }
}

/// What becomes of a request whose judgement does not come in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenLate {
    /// It goes on by the tier that its account was known to have (fail open).
    #[default]
    KnownTier,
    /// It is refused for a moment (fail closed).
    Refuse,
}

/// What holds where several gateways act as one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fleet {
    /// What becomes of requests while this gateway does not hear from the others.
    pub when_apart: WhenApart,
    /// Seconds without them after which that holds.
    pub apart_seconds: f64,
}

impl Default for Fleet {
    fn default() -> Self {
        Self { when_apart: WhenApart::Serve, apart_seconds: 30.0 }
    }
}

/// What becomes of requests while a gateway does not hear from the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenApart {
    /// They are served by what this gateway knows (fail open).
    #[default]
    Serve,
    /// They are refused for a moment (fail closed).
    Refuse,
}

/// How answers are marked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Watermarks {
    /// Zero-width payload that names the account.
    pub zero_width: bool,
    /// Choice between equivalent wordings, keyed to the cluster.
    pub lexical: bool,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self { zero_width: true, lexical: true }
    }
}

/// What callers are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Words {
    /// In the place of an account's answer that is refused.
    pub refused: String,
    /// Where its holder is to be verified first.
    pub verify: String,
    /// Where to go for that.
    pub verify_url: Option<String>,
    /// In the place of reasoning that is withheld; nothing where empty.
    pub reasoning_withheld: String,
}

impl Default for Words {
    fn default() -> Self {
        Self {
            refused: "This account is suspended.".to_owned(),
            verify: "This account has to be verified before it can be used further.".to_owned(),
            verify_url: None,
            reasoning_withheld: String::new(),
        }
    }
}

/// Guard rails of a takedown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Takedown {
    /// Whether it waits until an operator confirms it.
    pub confirm: bool,
    /// Members of a cluster beyond which it always does.
    pub members_max: usize,
    /// Least suspicion of a member that is suspended.
    pub member_suspicion_min: f64,
    /// Hours after which suspensions end.
    pub expires_hours: f64,
    /// Whether members that belong to an organisation of their own are suspended too.
    pub across_organisations: bool,
}

impl Default for Takedown {
    fn default() -> Self {
        Self {
            confirm: false,
            members_max: 1_000,
            member_suspicion_min: 0.72,
            expires_hours: 72.0,
            across_organisations: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_holds_where_all_that_it_names_does() {
        let asked = Asked { route: "main", model: Some("large-2"), organisation: Some("org-1") };
        let text = |text: &str| Some(text.to_owned());
        let cases = [
            (Rule::default(), true),
            (Rule { route: text("main"), ..Rule::default() }, true),
            (Rule { route: text("other"), ..Rule::default() }, false),
            (Rule { model: text("large*"), ..Rule::default() }, true),
            (Rule { model: text("large"), ..Rule::default() }, false),
            (Rule { model: text("*"), ..Rule::default() }, true),
            (
                Rule {
                    organisation: text("org-1"),
                    tiers: Some(vec![Tier::High]),
                    ..Rule::default()
                },
                true,
            ),
            (Rule { tiers: Some(vec![Tier::Low]), ..Rule::default() }, false),
            (Rule { tiers: Some(vec![]), ..Rule::default() }, false),
        ];
        for (rule, expected) in cases {
            assert_eq!(rule.matches(Tier::High, &asked), expected, "{rule:?}");
        }
        let nameless = Asked { model: None, ..asked };
        assert!(!Rule { model: text("*"), ..Rule::default() }.matches(Tier::High, &nameless));
    }

    #[test]
    fn every_action_has_its_key() {
        for action in Action::ALL {
            assert!(!Actions::default().has(action), "{action}");
            let value = match action {
                Action::Throttle => "throttle = [\"x\"]".to_owned(),
                Action::Pace => "pace_tokens_per_second = 3.0".to_owned(),
                _ => format!("{action} = true"),
            };
            let actions: Actions = toml::from_str(&value).unwrap();
            assert!(actions.has(action), "{value}");
        }
    }
}
