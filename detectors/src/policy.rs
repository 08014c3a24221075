//! What an operator may set: how accounts are judged, and what is done about them.

mod actions;

pub use actions::{
    Action, Actions, Asked, ByTier, Enforcement, Fleet, Limit, Rule, Scope, Takedown, Watermarks,
    WhenApart, WhenLate, Words,
};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::list::LIST;
use crate::tier::{Thresholds, Tier};

/// The settings of judgement and enforcement. Parsed and checked once by [`Policy::parse`]; what passes
/// cannot be invalid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The fusion's constant.
    #[serde(default)]
    pub fusion: Fusion,
    /// Where tiers begin and how they are left.
    #[serde(default)]
    pub tiers: Thresholds,
    /// Detectors by name; what is not named has its default.
    #[serde(default)]
    pub detector: BTreeMap<String, DetectorSettings>,
    /// Accounts and organisations that are observed and never judged.
    #[serde(default)]
    pub allow: Allow,
    /// Bounds of memory.
    #[serde(default)]
    pub memory: Bounds,
    /// What holds for all actions.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// What holds where several gateways act as one.
    #[serde(default)]
    pub fleet: Fleet,
    /// What is done about an account, by its tier. A tier that is not named has its default.
    #[serde(default)]
    pub action: ByTier,
    /// Other actions for some requests; the first that matches holds.
    #[serde(default)]
    pub rule: Vec<Rule>,
    /// Limits by name; the shipped ones stay unless one of the same name takes their place.
    #[serde(default)]
    pub limit: BTreeMap<String, Limit>,
    /// How answers are marked.
    #[serde(default)]
    pub watermark: Watermarks,
    /// What callers are told.
    #[serde(default)]
    pub words: Words,
    /// Guard rails of a takedown.
    #[serde(default)]
    pub takedown: Takedown,
}

/// Most rules of one policy.
const RULES_MAX: usize = 256;
/// Most limits of one policy.
const LIMITS_MAX: usize = 64;

/// How findings become one number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fusion {
    /// `k` of `1 - prod (1 - s_i)^(k w_i)`.
    pub k: f64,
}

impl Default for Fusion {
    fn default() -> Self {
        Self { k: 2.75 }
    }
}

/// One detector's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectorSettings {
    /// Whether it is on. Switched off it says nothing, and its shared values tie nobody.
    #[serde(default = "on")]
    pub enabled: bool,
    /// Its weight in the fusion; the threat model's where not set.
    pub weight: Option<f64>,
}

fn on() -> bool {
    true
}

/// Who is observed and never judged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// Accounts by their pseudonym.
    #[serde(default)]
    pub accounts: Vec<String>,
    /// Organisations.
    #[serde(default)]
    pub organisations: Vec<String>,
}

/// Bounds of memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Accounts remembered.
    pub accounts_max: usize,
    /// Shared values remembered of each family.
    pub pivots_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { accounts_max: 1_000_000, pivots_max: 2_000_000 }
    }
}

impl Default for Policy {
    fn default() -> Self {
        let settings = |weight| DetectorSettings { enabled: true, weight: Some(weight) };
        Self {
            fusion: Fusion::default(),
            tiers: Thresholds::default(),
            detector: LIST
                .iter()
                .map(|entry| (entry.name.to_owned(), settings(entry.weight)))
                .collect(),
            allow: Allow::default(),
            memory: Bounds::default(),
            enforcement: Enforcement::default(),
            fleet: Fleet::default(),
            action: ByTier::default(),
            rule: Vec::new(),
            limit: actions::limits(),
            watermark: Watermarks::default(),
            words: Words::default(),
            takedown: Takedown::default(),
        }
    }
}

impl Policy {
    /// Reads a policy from TOML.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its key and what is allowed; a syntax error with
    /// its line.
    pub fn parse(toml: &str) -> Result<Self, Vec<String>> {
        let mut policy: Self = toml::from_str(toml).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = toml.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
            vec![format!("{line}: {}", error.message().replace('\n', " "))]
        })?;
        for (name, limit) in actions::limits() {
            policy.limit.entry(name).or_insert(limit);
        }
        let wrong = policy.faults();
        if wrong.is_empty() {
            return Ok(policy);
        }
        let located =
            |(key, what): &(String, String)| format!("{}: {key}{what}", line_of(toml, key));
        Err(wrong.iter().map(located).collect())
    }

    /// Keys with what is wrong with them.
    fn faults(&self) -> Vec<(String, String)> {
        let mut wrong: Vec<(String, String)> = Vec::new();
        let mut within = |key: &str, value: f64, least: f64, most: f64| {
            if !(least..=most).contains(&value) {
                let what = format!(" = {value}: allowed is {least} to {most}");
                wrong.push((key.to_owned(), what));
            }
        };
        let tiers = &self.tiers;
        within("fusion.k", self.fusion.k, 0.1, 20.0);
        for (key, value) in [
            ("tiers.low", tiers.low),
            ("tiers.medium", tiers.medium),
            ("tiers.high", tiers.high),
            ("tiers.critical", tiers.critical),
        ] {
            within(key, value, 0.01, 1.0);
        }
        within("tiers.hysteresis", tiers.hysteresis, 0.0, 0.3);
        within("tiers.half_life_hours", tiers.half_life_hours, 1.0, 8_760.0);
        for (name, settings) in &self.detector {
            within(&format!("detector.{name}.weight"), settings.weight.unwrap_or(0.0), 0.0, 1.0);
        }
        if !(tiers.low < tiers.medium && tiers.medium < tiers.high && tiers.high < tiers.critical) {
            wrong.push((
                "tiers".to_owned(),
                ": low, medium, high and critical must rise".to_owned(),
            ));
        }
        for name in self.detector.keys().filter(|name| LIST.iter().all(|e| e.name != *name)) {
            let known: Vec<_> = LIST.iter().map(|entry| entry.name).collect();
            let what = format!(": there is none; there are {}", known.join(", "));
            wrong.push((format!("detector.{name}"), what));
        }
        for (key, value) in [
            ("memory.accounts_max", self.memory.accounts_max),
            ("memory.pivots_max", self.memory.pivots_max),
        ] {
            if !(1_000..=100_000_000).contains(&value) {
                let what = format!(" = {value}: allowed is 1000 to 100000000");
                wrong.push((key.to_owned(), what));
            }
        }
        self.enforcement_faults(&mut wrong);
        wrong
    }

    fn enforcement_faults(&self, wrong: &mut Vec<(String, String)>) {
        let mut within = |key: String, value: f64, least: f64, most: f64| {
            if !(least..=most).contains(&value) {
                wrong.push((key, format!(" = {value}: allowed is {least} to {most}")));
            }
        };
        let sets = self.action_sets();
        for (key, actions) in &sets {
            if let Some(pace) = actions.pace_tokens_per_second {
                within(format!("{key}.pace_tokens_per_second"), pace, 0.5, 10_000.0);
            }
        }
        for (name, limit) in &self.limit {
            for (key, value) in [
                ("requests_per_minute", limit.requests_per_minute),
                ("input_tokens_per_minute", limit.input_tokens_per_minute),
                ("output_tokens_per_minute", limit.output_tokens_per_minute),
            ] {
                within(format!("limit.{name}.{key}"), value.unwrap_or(1.0), 0.1, 1e12);
            }
            let concurrent = f64::from(limit.concurrent.unwrap_or(1));
            within(format!("limit.{name}.concurrent"), concurrent, 1.0, 1e6);
            within(format!("limit.{name}.burst_seconds"), limit.burst_seconds, 0.1, 3_600.0);
        }
        let inline_ms = self.enforcement.inline_ms_max as f64;
        within("enforcement.inline_ms_max".to_owned(), inline_ms, 1.0, 1_000.0);
        within("fleet.apart_seconds".to_owned(), self.fleet.apart_seconds, 0.0, 86_400.0);
        let takedown = &self.takedown;
        let least = takedown.member_suspicion_min;
        within("takedown.member_suspicion_min".to_owned(), least, 0.01, 1.0);
        within("takedown.expires_hours".to_owned(), takedown.expires_hours, 0.01, 8_760.0);
        within("takedown.members_max".to_owned(), takedown.members_max as f64, 1.0, 1e6);
        within("rule".to_owned(), self.rule.len() as f64, 0.0, RULES_MAX as f64);
        within("limit".to_owned(), self.limit.len() as f64, 0.0, LIMITS_MAX as f64);
        for (key, actions) in &sets {
            for limit in actions.throttle.iter().filter(|name| !self.limit.contains_key(*name)) {
                let known: Vec<_> = self.limit.keys().map(String::as_str).collect();
                let what = format!(": there is no limit {limit}; there are {}", known.join(", "));
                wrong.push((format!("{key}.throttle"), what));
            }
        }
        if let Some(url) = &self.words.verify_url
            && !(url.starts_with("https://") || url.starts_with("http://"))
        {
            let what = format!(" = {url}: must begin with https:// or http://");
            wrong.push(("words.verify_url".to_owned(), what));
        }
    }

    /// Every set of actions with the key of its table.
    fn action_sets(&self) -> Vec<(String, &Actions)> {
        let by_tier =
            Tier::ALL.map(|tier| (format!("action.{}", tier.name()), self.action.of(tier)));
        let rules = self.rule.iter().enumerate();
        let rules = rules.map(|(index, rule)| (format!("rule {}.action", index + 1), &rule.action));
        by_tier.into_iter().chain(rules).collect()
    }

    /// What is done about a request of an account of this tier.
    #[must_use]
    pub fn actions(&self, tier: Tier, asked: &Asked<'_>) -> &Actions {
        let rule = self.rule.iter().find(|rule| rule.matches(tier, asked));
        rule.map_or_else(|| self.action.of(tier), |rule| &rule.action)
    }

    /// Whether an action is only counted.
    #[must_use]
    pub fn in_shadow(&self, actions: &Actions, action: Action) -> bool {
        self.enforcement.shadow || actions.shadow.contains(&action)
    }

    /// Whether a detector is on.
    #[must_use]
    pub fn enabled(&self, detector: &str) -> bool {
        self.detector.get(detector).is_none_or(|settings| settings.enabled)
    }

    /// A detector's weight.
    #[must_use]
    pub fn weight(&self, detector: &str) -> f64 {
        let listed = || LIST.iter().find(|entry| entry.name == detector).map(|entry| entry.weight);
        let set = self.detector.get(detector).and_then(|settings| settings.weight);
        set.or_else(listed).unwrap_or(0.0)
    }
}

/// The line, from 1, on which a dotted key or its table stands; 1 where it is not found. Tables of
/// a list are numbered from 1: `rule 2.action.throttle`.
fn line_of(toml: &str, key: &str) -> usize {
    let (table, name) = key.rsplit_once('.').unwrap_or((key, ""));
    let mut within = String::new();
    let mut list = (String::new(), 0);
    let mut nearest = 1;
    for (number, line) in toml.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix("[[").and_then(|rest| rest.split(']').next()) {
            let header = header.trim();
            let count = if list.0 == header { list.1 + 1 } else { 1 };
            list = (header.to_owned(), count);
            within = format!("{header} {count}");
        } else if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next())
        {
            let header = header.trim();
            within = match header.strip_prefix(list.0.as_str()) {
                Some(rest) if rest.starts_with('.') => format!("{} {}{rest}", list.0, list.1),
                _ => header.to_owned(),
            };
        } else if within == table && line.split('=').next().is_some_and(|held| held.trim() == name)
        {
            return number + 1;
        }
        let here = within == table || within == key;
        if here && line.starts_with('[') {
            nearest = number + 1;
        }
    }
    nearest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_default_is_the_codes_default() {
        let shipped = include_str!("../../policies/default.toml");
        assert_eq!(Policy::parse(shipped).unwrap(), Policy::default());
    }

    #[test]
    fn an_empty_policy_is_the_default_too() {
        let empty = Policy::parse("").unwrap();
        for entry in LIST {
            assert!(empty.enabled(entry.name));
            assert_eq!(empty.weight(entry.name), entry.weight, "{}", entry.name);
        }
        assert_eq!((empty.tiers, empty.fusion), (Thresholds::default(), Fusion::default()));
    }

    #[test]
    fn shipped_policies_are_valid() {
        let strict = Policy::parse(include_str!("../../policies/strict.toml")).unwrap();
        assert!(strict.action.high.refuse && !strict.enforcement.shadow);
        let observe = Policy::parse(include_str!("../../policies/observe.toml")).unwrap();
        assert!(observe.enforcement.shadow);
        let mut judged_alike = Policy::parse("").unwrap();
        judged_alike.enforcement.shadow = true;
        assert_eq!(observe, judged_alike, "what is observed is what the default would do");
    }

    #[test]
    fn the_first_rule_that_matches_holds() {
        let policy = Policy::parse(
            "[[rule]]\nroute = \"trusted\"\n[[rule]]\nmodel = \"small*\"\ntiers = [\"high\"]\n\
             [rule.action]\nrefuse = true\nshadow = [\"refuse\"]\n",
        )
        .unwrap();
        let asked = |route, model| Asked { route, model: Some(model), organisation: None };
        let trusted = policy.actions(Tier::Critical, &asked("trusted", "small-1"));
        assert_eq!(trusted, &Actions::default());
        let small = policy.actions(Tier::High, &asked("main", "small-1"));
        assert!(small.refuse && policy.in_shadow(small, Action::Refuse));
        let large = policy.actions(Tier::High, &asked("main", "large-1"));
        assert_eq!(large, &policy.action.high);
        assert!(!policy.in_shadow(large, Action::Pace));
    }

    #[test]
    fn everything_wrong_is_told_with_line_and_key() {
        let cases = [
            ("[tiers]\nlow = \"x\"\n", &["2: "][..]),
            ("[tires]\n", &["1: unknown field `tires`"]),
            ("[detector.hydra]\nenabled = true\nweigth = 1\n", &["3: unknown field `weigth`"]),
            ("a = [", &["1: "]),
            (
                "[fusion]\nk = 90.0\n[detector.hydra]\nweight = -1.0\n[detector.hydro]\n",
                &[
                    "2: fusion.k = 90: allowed is 0.1 to 20",
                    "4: detector.hydra.weight = -1: allowed is 0 to 1",
                    "5: detector.hydro: there is none; there are fingerprint, velocity",
                ],
            ),
            (
                "[tiers]\nlow = 0.6\nmedium = 0.5\nhigh = 0.72\ncritical = 0.85\nhysteresis = 0.1\n\
                 half_life_hours = 1.0\n",
                &["1: tiers: low, medium, high and critical must rise"],
            ),
            ("[memory]\naccounts_max = 5\npivots_max = 2000\n", &["2: memory.accounts_max = 5"]),
            ("[action.high]\nthrotle = []\n", &["2: unknown field `throtle`"]),
            (
                "[action.high]\nthrottle = [\"x\"]\npace_tokens_per_second = 0.0\n",
                &[
                    "3: action.high.pace_tokens_per_second = 0: allowed is 0.5 to 10000",
                    "2: action.high.throttle: there is no limit x; there are suspect, suspect_cluster",
                ],
            ),
            ("[limit.a]\nper = \"planet\"\n", &["2: unknown variant `planet`"]),
            (
                "[limit.a]\nper = \"ip\"\nrequests_per_minute = -1.0\n",
                &["3: limit.a.requests_per_minute = -1: allowed is 0.1 to"],
            ),
            (
                "[[rule]]\nroute = \"a\"\n[[rule]]\nroute = \"b\"\n[rule.action]\n\
                 throttle = [\"y\"]\n",
                &["6: rule 2.action.throttle: there is no limit y"],
            ),
            ("[action.low]\nshadow = [\"watch\"]\n", &["2: unknown variant `watch`"]),
            ("[fleet]\nwhen_apart = \"wait\"\n", &["2: unknown variant `wait`"]),
            ("[fleet]\napart_seconds = -1.0\n", &["2: fleet.apart_seconds = -1: allowed is 0"]),
            ("[words]\nverify_url = \"ftp://a\"\n", &["2: words.verify_url = ftp://a: must"]),
        ];
        for (toml, expected) in cases {
            let faults = Policy::parse(toml).unwrap_err();
            assert_eq!(faults.len(), expected.len(), "{toml}: {faults:?}");
            for (fault, expected) in faults.iter().zip(expected) {
                assert!(fault.starts_with(expected), "{toml}: {fault}");
            }
        }
    }
}
