//! What a detector is.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::account;
use crate::dns::Resolution;
use crate::finding::Finding;
use crate::indicator::Listed;
use crate::pivot::Family;
use crate::seen::{Answered, Learnt, Seen};
use crate::sketch::Merge;
use crate::ties::Ties;

/// Where a detector may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// Before the upstream is asked.
    Inline,
    /// Behind a queue.
    Background,
}

/// A detector: one behaviour, one file, one line in [`crate::list`].
///
/// It is pure: what it may know is its memory of the account and the [`Context`].
pub trait Detector {
    /// What it remembers of an account.
    type Memory: Merge + Clone + PartialEq + Serialize + DeserializeOwned;

    /// Its name in policies, verdicts and metrics.
    const NAME: &'static str;
    /// The techniques of the threat model that it bears on, the primary first.
    const TECHNIQUES: &'static [&'static str];
    /// Where it may run.
    const PACE: Pace;
    /// Shared values that are its evidence: they tie nobody where it is switched off.
    const FAMILIES: &'static [Family] = &[];

    /// Takes in what a request shows.
    fn note(memory: &mut Self::Memory, seen: &Seen);

    /// Takes in how the request was answered, once it was.
    fn note_answer(_memory: &mut Self::Memory, _answered: &Answered) {}

    /// Judges an account.
    fn judge(memory: &Self::Memory, context: &Context<'_>) -> Finding;
}

/// The memory of a detector that needs none of its own: the account's tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nothing;

impl Merge for Nothing {
    fn merge(&mut self, _: &Self) {}
}

/// What a detector may know of an account beside its own memory.
pub struct Context<'a> {
    /// The time of the judgement, unix milliseconds.
    pub now_ms: u64,
    /// What is remembered of the account.
    pub account: &'a account::Memory,
    /// Its ties to other customers' accounts.
    pub ties: &'a Ties,
    /// Accounts on its payment instrument.
    pub card_accounts: f64,
    /// What peers' indicators say of it.
    pub listed: &'a Listed,
    /// Names of those peers.
    pub learnt: &'a Learnt,
    /// What sensors tell of its addresses.
    pub dns: &'a Resolution,
    /// Whether findings carry their evidence.
    pub explain: bool,
}

impl Context<'_> {
    /// How far the prompts seen suffice, 0..1: one half at `half` prompts.
    #[must_use]
    pub fn seen(&self, half: f64) -> f64 {
        let prompts = f64::from(self.account.prompted);
        prompts / (prompts + half)
    }

    /// Days from the account's creation to its first exchange; a year where nobody told.
    #[must_use]
    pub fn age_days_at_first(&self) -> f64 {
        let first_s = (self.account.span.first_ms / 1000) as f64;
        self.account
            .known
            .created_s
            .map_or(365.0, |created_s| ((first_s - created_s as f64) / 86_400.0).max(0.0))
    }
}
