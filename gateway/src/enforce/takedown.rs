//! Taking a cluster down: who is suspended, who is left out and why, and how it is undone.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use detectors::AccountId;
use detectors::engine::Account;
use detectors::policy::Takedown as GuardRails;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::standing::{Indicators, Suspension};
use crate::audit::Actor;
use crate::limits::TAKEDOWNS_MAX;

/// Whether a takedown holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits for an operator's word.
    Waiting,
    /// Its members are suspended.
    Active,
    /// It was taken back.
    Undone,
    /// It would have been done.
    Shadow,
}

/// Why a member was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Its own suspicion is too low.
    Suspicion,
    /// It belongs to another organisation.
    Organisation,
    /// An operator has set its tier.
    Override,
}

/// What the guard rails look at in a member.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its pseudonym.
    pub account: AccountId,
    /// Its suspicion, 0..1.
    pub suspicion: f64,
    /// Hash of its declared organisation.
    pub organisation: Option<u64>,
    /// Hash of its payment instrument.
    pub payment: Option<u64>,
    /// First and last exchange, unix milliseconds.
    pub seen_ms: (u64, u64),
}

impl Member {
    /// What is needed of an account that the engine holds.
    #[must_use]
    pub fn of(account: &Account) -> Self {
        let memory = &account.memory;
        Self {
            account: account.id.clone(),
            suspicion: account.held.suspicion,
            organisation: memory.organisation(),
            payment: memory.known.payment,
            seen_ms: (memory.span.first_ms, memory.span.last_ms),
        }
    }
}

/// Who of a cluster is to be suspended.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Those who are.
    pub suspended: Vec<Member>,
    /// Those who are not.
    pub left_out: Vec<(AccountId, Why)>,
}

/// Applies the guard rails. `own` is the organisation of the account that set it off.
#[must_use]
pub fn select(
    members: Vec<Member>,
    own: Option<u64>,
    rails: &GuardRails,
    overridden: impl Fn(&AccountId) -> bool,
) -> Selection {
    let mut selection = Selection::default();
    for member in members {
        let foreign = member.organisation.is_some() && member.organisation != own;
        let why = if overridden(&member.account) {
            Some(Why::Override)
        } else if foreign && !rails.across_organisations {
            Some(Why::Organisation)
        } else if member.suspicion < rails.member_suspicion_min {
            Some(Why::Suspicion)
        } else {
            None
        };
        match why {
            Some(why) => selection.left_out.push((member.account, why)),
            None => selection.suspended.push(member),
        }
    }
    selection
}

/// A takedown, done or waiting.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Takedown {
    /// The cluster, 16 hex digits.
    pub cluster: String,
    /// Whether it holds.
    pub status: Status,
    /// Whose word it was.
    pub by: Actor,
    /// Why, where somebody said.
    pub reason: String,
    /// When it was done or began to wait, unix milliseconds.
    pub at_ms: u64,
    /// When its suspensions end, unix milliseconds.
    pub until_ms: u64,
    /// The account that set it off.
    pub trigger: AccountId,
    /// Version of the policy.
    pub policy: Arc<str>,
    /// Suspended members.
    pub suspended: Vec<AccountId>,
    /// Members that the guard rails spared.
    pub left_out: Vec<(AccountId, Why)>,
    /// What could be told to peers.
    pub indicators: Bundle,
}

impl Takedown {
    /// Whether its suspensions hold.
    #[must_use]
    pub fn holds(&self, now_ms: u64) -> bool {
        self.status == Status::Active && now_ms < self.until_ms
    }

    /// What it does to each of its members.
    #[must_use]
    pub fn suspension(&self) -> Suspension {
        Suspension { cluster: self.cluster.clone(), since_ms: self.at_ms, until_ms: self.until_ms }
    }
}

/// Indicators of compromise: what an IOC bundle says. Unsigned here.
///
/// Source: threat model, "IOC Sharing Protocol".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bundle {
    /// Mean suspicion of the members, 0..1.
    pub confidence: f64,
    /// First exchange, unix milliseconds.
    pub first_seen_ms: u64,
    /// Last exchange, unix milliseconds.
    pub last_seen_ms: u64,
    /// Addresses.
    pub ips: BTreeSet<String>,
    /// Their IPv4 /24 and IPv6 /48.
    pub subnets: BTreeSet<String>,
    /// MD5 of JA3 strings.
    pub ja3: BTreeSet<String>,
    /// MD5 of JA3S strings.
    pub ja3s: BTreeSet<String>,
    /// JA4.
    pub ja4: BTreeSet<String>,
    /// HTTP/2 fingerprints.
    pub h2: BTreeSet<String>,
    /// Keyed hashes of payment instruments.
    pub payment_hashes: BTreeSet<String>,
    /// Tokens of the marks that were served.
    pub watermark_tokens: BTreeSet<String>,
    /// SHA-256 of account pseudonyms, first 16 digits.
    pub accounts: BTreeSet<String>,
}

impl Bundle {
    /// What is known of the members.
    pub fn of<'m>(
        members: &'m [Member],
        indicators: impl Fn(&AccountId) -> Option<Box<Indicators>>,
        tokens: impl Fn(&'m AccountId) -> Vec<String>,
    ) -> Self {
        let suspicion: f64 = members.iter().map(|m| m.suspicion).sum();
        let mut bundle = Self {
            confidence: suspicion / members.len().max(1) as f64,
            first_seen_ms: members.iter().map(|m| m.seen_ms.0).min().unwrap_or(0),
            last_seen_ms: members.iter().map(|m| m.seen_ms.1).max().unwrap_or(0),
            ..Self::default()
        };
        for member in members {
            let mut digest = hex::encode(Sha256::digest(member.account.as_str()));
            digest.truncate(16);
            bundle.accounts.insert(digest);
            bundle.payment_hashes.extend(member.payment.map(|payment| format!("{payment:016x}")));
            bundle.watermark_tokens.extend(tokens(&member.account));
            let Some(seen) = indicators(&member.account) else { continue };
            let seen = *seen;
            bundle.subnets.extend(seen.ips.iter().filter_map(|ip| subnet(ip)));
            bundle.ips.extend(seen.ips);
            bundle.ja3.extend(seen.ja3);
            bundle.ja3s.extend(seen.ja3s);
            bundle.ja4.extend(seen.ja4);
            bundle.h2.extend(seen.h2);
        }
        bundle
    }
}

fn subnet(ip: &str) -> Option<String> {
    let ip = ip.parse::<std::net::IpAddr>().ok()?;
    let bits = if ip.is_ipv4() { 24 } else { 48 };
    ipnet::IpNet::new(ip, bits).ok().map(|network| network.trunc().to_string())
}

/// Takedowns, the latest for each cluster.
#[derive(Debug, Default)]
pub struct Log(Mutex<VecDeque<Takedown>>);

impl Log {
    /// Remembers one; what was there of its cluster is replaced.
    pub fn put(&self, takedown: Takedown) {
        let mut held = self.0.lock();
        held.retain(|other| other.cluster != takedown.cluster);
        if held.len() == TAKEDOWNS_MAX {
            held.pop_front();
        }
        held.push_back(takedown);
    }

    /// The takedown of a cluster.
    #[must_use]
    pub fn get(&self, cluster: &str) -> Option<Takedown> {
        self.0.lock().iter().find(|held| held.cluster == cluster).cloned()
    }

    /// All, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Takedown> {
        self.0.lock().iter().rev().cloned().collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn member(account: &str, suspicion: f64, organisation: Option<u64>) -> Member {
        Member {
            account: AccountId::new(account),
            suspicion,
            organisation,
            payment: Some(7),
            seen_ms: (10, 20),
        }
    }

    #[test]
    fn guard_rails_spare_the_unsuspected_the_foreign_and_the_overridden() {
        let members = || {
            vec![
                member("sure", 0.9, None),
                member("doubtful", 0.5, None),
                member("foreign", 0.9, Some(2)),
                member("own", 0.8, Some(1)),
                member("known", 0.95, None),
            ]
        };
        let rails = GuardRails::default();
        let known = |account: &AccountId| account.as_str() == "known";
        let selection = select(members(), Some(1), &rails, known);
        let names: Vec<_> = selection.suspended.iter().map(|m| m.account.as_str()).collect();
        assert_eq!(names, ["sure", "own"]);
        let spared: Vec<_> =
            selection.left_out.iter().map(|(account, why)| (account.as_str(), *why)).collect();
        let expected = [
            ("doubtful", Why::Suspicion),
            ("foreign", Why::Organisation),
            ("known", Why::Override),
        ];
        assert_eq!(spared, expected);
        let told = GuardRails { across_organisations: true, ..rails };
        let selection = select(members(), None, &told, known);
        assert_eq!(selection.suspended.len(), 3);
    }

    pub(crate) fn takedown(cluster: &str, until_ms: u64) -> Takedown {
        Takedown {
            cluster: cluster.to_owned(),
            status: Status::Active,
            by: Actor::System,
            reason: String::new(),
            at_ms: 0,
            until_ms,
            trigger: AccountId::new("a"),
            policy: "p".into(),
            suspended: Vec::new(),
            left_out: Vec::new(),
            indicators: Bundle::default(),
        }
    }

    #[test]
    fn a_takedown_holds_until_it_ends_or_is_taken_back() {
        let takedown = takedown("c", 10);
        assert!(takedown.holds(9) && !takedown.holds(10));
        for status in [Status::Waiting, Status::Undone, Status::Shadow] {
            assert!(!Takedown { status, ..takedown.clone() }.holds(9));
        }
        let log = Log::default();
        log.put(takedown.clone());
        log.put(Takedown { status: Status::Undone, ..takedown });
        assert_eq!(log.get("c").map(|held| held.status), Some(Status::Undone));
        assert_eq!(log.list().len(), 1);
    }

    #[test]
    fn a_bundle_holds_what_is_known_of_the_members() {
        let members = [member("a", 0.8, None), member("b", 0.9, None)];
        let seen = |account: &AccountId| {
            (account.as_str() == "a").then(|| {
                let ips = vec!["192.0.2.7".to_owned(), "2001:db8:1:2::3".to_owned()];
                Box::new(Indicators { ips, ja3: vec!["x".to_owned()], ..Indicators::default() })
            })
        };
        let bundle = Bundle::of(&members, seen, |_| vec!["token".to_owned()]);
        assert!((bundle.confidence - 0.85).abs() < 1e-9);
        assert_eq!(bundle.accounts.len(), 2);
        assert!(bundle.accounts.iter().all(|account| account.len() == 16));
        let subnets: Vec<_> = bundle.subnets.iter().map(String::as_str).collect();
        assert_eq!(subnets, ["192.0.2.0/24", "2001:db8:1::/48"]);
        assert_eq!(bundle.watermark_tokens.len(), 1);
    }
}
