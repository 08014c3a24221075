//! What an operator may set of the judgement.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::list::LIST;
use crate::tier::Thresholds;

/// The settings of the judgement. Parsed and checked once by [`Policy::parse`]; what passes
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
}

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
        let policy: Self = toml::from_str(toml).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = toml.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
            vec![format!("{line}: {}", error.message().replace('\n', " "))]
        })?;
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
        wrong
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

/// The line, from 1, on which a dotted key or its table stands; 1 where it is not found.
fn line_of(toml: &str, key: &str) -> usize {
    let (table, name) = key.rsplit_once('.').unwrap_or((key, ""));
    let mut within = "";
    let mut nearest = 1;
    for (number, line) in toml.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            within = header.trim();
            if within == table || within == key {
                nearest = number + 1;
            }
        } else if within == table && line.split('=').next().is_some_and(|held| held.trim() == name)
        {
            return number + 1;
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
