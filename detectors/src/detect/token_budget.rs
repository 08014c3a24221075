//! `TokenBudget` (T-DIST-012): sweeps of `max_tokens`, and always asking for the most.
//!
//! Sees the different bounds that an account asks for. Matters because a sweep maps the model's
//! lengths, and the largest bound collects the fullest answers. People who try a model out sweep
//! too, and many products set a large bound once and for all, so alone it is little.
//!
//! Source: threat model T-DIST-012 (geometric sweeps; over 70 % at 90 % of the maximum).

use serde::{Deserialize, Serialize};

use crate::detector::{Context, Detector, Pace};
use crate::finding::{Finding, ramp};
use crate::merge_fields;
use crate::seen::Seen;
use crate::sketch::{Histogram, count};

/// A bound from here on asks for about all that models of today give in one answer, tokens.
const LARGE: u64 = 8_000;

/// The detector.
#[derive(Debug)]
pub struct TokenBudget;

/// Bounds so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Exchanges by the binary logarithm of their bound.
    octaves: Histogram<20>,
    /// Exchanges with a bound of [`LARGE`] or more.
    large: u32,
    /// Exchanges that ask for several answers at once.
    sampled: u32,
}

merge_fields!(Memory { octaves, large, sampled });

impl Detector for TokenBudget {
    type Memory = Memory;

    const NAME: &'static str = "token_budget";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-012"];
    const PACE: Pace = Pace::Inline;

    fn note(memory: &mut Memory, seen: &Seen) {
        if let Some(bound) = seen.max_tokens {
            memory.octaves.add(bound.max(1).ilog2() as usize);
            count(&mut memory.large, bound >= LARGE);
        }
        count(&mut memory.sampled, seen.samples > 1);
    }

    fn judge(memory: &Memory, context: &Context<'_>) -> Finding {
        let requests = f64::from(context.account.requests.max(1));
        let covered = memory.octaves.covered() as f64;
        // A sweep visits its steps about equally often.
        let sweep = ramp(covered, 4.0, 9.0) * memory.octaves.entropy().min(0.7) / 0.7;
        let large = 0.4 * ramp(f64::from(memory.large) / requests, 0.5, 0.8);
        let sampled = 0.4 * ramp(f64::from(memory.sampled) / requests, 0.1, 0.6);
        let strength = sweep.max(large).max(sampled);
        Finding::new(Self::NAME, strength, context.seen(6.0) * context.ties.confidence(0.3)).because(
            context.explain,
            || {
                format!(
                    "bounds in {covered:.0} octaves, {:.0} % of exchanges at {LARGE} tokens or more, \
                     {:.0} % ask for several answers",
                    f64::from(memory.large) / requests * 100.0,
                    f64::from(memory.sampled) / requests * 100.0
                )
            },
        )
    }
}
