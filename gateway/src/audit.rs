//! The audit: who changed what and why, each entry chained to the one before.
//!
//! The hash of an entry is SHA-256 over the hash of the one before (64 hex digits; 64 zeros before
//! the first) followed by the entry's JSON text, byte for byte. Whoever changes, drops or inserts an
//! entry changes every hash after it.

use std::sync::Arc;

use detectors::AccountId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::policy::unix_ms;

/// What happened. The names are in the audit, the event stream and webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// A gateway began to serve.
    Started,
    /// A judgement changed an account's tier.
    TierChanged,
    /// An operator set an account's tier.
    OverrideSet,
    /// An operator's word on an account was removed.
    OverrideRemoved,
    /// An operator told of an account.
    ProfileSet,
    /// An account was asked to verify.
    VerificationRequested,
    /// An account was put up for review.
    ReviewRequested,
    /// An operator decided on an account under review.
    ReviewDecided,
    /// A takedown waits for an operator's word.
    TakedownWaits,
    /// A cluster was taken down.
    TakenDown,
    /// Members followed a takedown.
    TakedownJoined,
    /// A takedown was taken back.
    TakedownUndone,
    /// Another policy came into force.
    PolicyChanged,
    /// A model's release was told or removed.
    ModelChanged,
    /// A mark that was served to others came back.
    MarkReturned,
    /// Indicators were taken in from a peer or an operator.
    IndicatorsImported,
    /// Indicators were sent to a peer or given to an operator.
    IndicatorsExported,
    /// An indicator was revoked.
    IndicatorRevoked,
}

/// Whose doing it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "name")]
pub enum Actor {
    /// A judgement by the policy in force.
    Policy(String),
    /// A person, by the name of the token and, where told, their own.
    Operator(String),
    /// Another provider.
    Peer(String),
    /// The gateway itself.
    System,
}

/// Who wants a change, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Whose word it is.
    pub actor: Actor,
    /// Why.
    pub reason: String,
}

impl Said {
    /// An operator's word.
    #[must_use]
    pub fn by_operator(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { actor: Actor::Operator(name.into()), reason: reason.into() }
    }

    /// The entry that tells of it.
    #[must_use]
    pub fn entry(&self, act: Act) -> Draft {
        Draft::new(self.actor.clone(), act).because(&self.reason)
    }
}

/// An entry as it is told, before it has its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// When, unix milliseconds.
    pub at_ms: u64,
    /// Whose doing.
    pub actor: Actor,
    /// What.
    pub act: Act,
    /// On which account.
    pub account: Option<AccountId>,
    /// On which cluster, 16 hex digits.
    pub cluster: Option<String>,
    /// Why; empty where a judgement is the reason.
    pub reason: String,
    /// What else there is to know. Never text of prompts or answers, never a secret.
    pub detail: Value,
}

impl Draft {
    /// An entry of now.
    #[must_use]
    pub fn new(actor: Actor, act: Act) -> Self {
        Self {
            at_ms: unix_ms(),
            actor,
            act,
            account: None,
            cluster: None,
            reason: String::new(),
            detail: Value::Null,
        }
    }

    /// On an account.
    #[must_use]
    pub fn account(mut self, account: &AccountId) -> Self {
        self.account = Some(account.clone());
        self
    }

    /// On a cluster.
    #[must_use]
    pub fn cluster(mut self, cluster: &str) -> Self {
        self.cluster = Some(cluster.to_owned());
        self
    }

    /// With a reason.
    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        reason.clone_into(&mut self.reason);
        self
    }

    /// With more to know.
    #[must_use]
    pub fn detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }
}

/// An entry in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Number, from 1 without gaps.
    pub seq: u64,
    /// When, unix milliseconds.
    pub at_ms: u64,
    /// The gateway that wrote it.
    pub gateway: String,
    /// Whose doing.
    pub actor: Actor,
    /// What.
    pub act: Act,
    /// On which account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// On which cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What else there is to know.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

/// An entry's text with its link of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chained {
    /// Number, from 1.
    pub seq: u64,
    /// The link, 64 hex digits.
    pub hash: String,
    /// JSON of the [`Entry`].
    pub text: String,
}

impl Chained {
    /// Gives an entry its place after the last one, which is told by number and hash.
    #[must_use]
    pub fn link(draft: Draft, gateway: &Arc<str>, last: Option<&(u64, String)>) -> Self {
        let seq = last.map_or(1, |(seq, _)| seq + 1);
        let entry = Entry {
            seq,
            at_ms: draft.at_ms,
            gateway: gateway.to_string(),
            actor: draft.actor,
            act: draft.act,
            account: draft.account,
            cluster: draft.cluster,
            reason: draft.reason,
            detail: draft.detail,
        };
        let text = serde_json::to_string(&entry).unwrap_or_default();
        let hash = link_hash(last.map_or(FIRST, |(_, hash)| hash), &text);
        Self { seq, hash, text }
    }

    /// The entry.
    ///
    /// # Errors
    /// When the text is not one.
    pub fn entry(&self) -> serde_json::Result<Entry> {
        serde_json::from_str(&self.text)
    }
}

/// What the first entry follows.
pub const FIRST: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The link of an entry's text to what is before it.
#[must_use]
pub fn link_hash(before: &str, text: &str) -> String {
    hex::encode(Sha256::new().chain_update(before).chain_update(text).finalize())
}

/// Which entries are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Those after this number.
    pub after: u64,
    /// At most so many.
    pub limit: usize,
}
