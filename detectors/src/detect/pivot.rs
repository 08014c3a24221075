//! `Pivot` (T-DIST-005): traffic that moves at once to a new model, and accounts that take over
//! where suspended ones left off.
//!
//! Sees which share of an account's exchanges in the 24 hours after a model's release asks that
//! model, how many of the tied accounts somebody has suspended, and whether a fresh account begins with
//! long, targeted prompts at once. Many honest customers try a new
//! model on its first day, so moving alone is little; that tied accounts move together is more.
//!
//! Source: threat model T-DIST-005; a reported campaign moved half of its traffic within 24 hours.

use serde::{Deserialize, Serialize};

use crate::detector::{Context, Detector, Pace};
use crate::finding::{Finding, ramp};
use crate::merge_fields;
use crate::seen::Seen;
use crate::sketch::count;

/// The detector.
#[derive(Debug)]
pub struct Pivot;

/// Releases so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Exchanges before any release.
    before: u32,
    /// Exchanges with a model within 24 hours of its release.
    fresh: u32,
    /// Exchanges with another model within 24 hours of a release.
    stale: u32,
}

merge_fields!(Memory { before, fresh, stale });

impl Detector for Pivot {
    type Memory = Memory;

    const NAME: &'static str = "pivot";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-005"];
    const PACE: Pace = Pace::Inline;

    fn note(memory: &mut Memory, seen: &Seen) {
        match seen.released_h {
            Some(hours) if hours < 24.0 => count(&mut memory.fresh, true),
            _ if seen.any_release => count(&mut memory.stale, true),
            _ => count(&mut memory.before, true),
        }
    }

    fn judge(memory: &Memory, context: &Context<'_>) -> Finding {
        let day = f64::from(memory.fresh) + f64::from(memory.stale);
        let moved = f64::from(memory.fresh) / day.max(1.0);
        let moved = ramp(moved, 0.3, 0.7) * ramp(f64::from(memory.fresh), 3.0, 20.0);
        let moved = moved * context.ties.confidence(0.2);
        let suspended = 1.0 - (1.0 + context.ties.suspended).powf(-1.0);
        // A customer tries a thing out first; whoever continues another's work does not.
        let account = context.account;
        let talks = f64::from(account.history) / f64::from(account.prompted.max(1));
        let sophisticated = ramp(account.prompt_chars.mean(), 300.0, 1_200.0) * (1.0 - talks);
        let unwarmed = 0.4 * ramp(context.age_days_at_first(), 3.0, 0.5) * sophisticated;
        let unwarmed = unwarmed * context.ties.confidence(0.1);
        let strength = 1.0 - (1.0 - moved) * (1.0 - suspended) * (1.0 - unwarmed);
        Finding::new(Self::NAME, strength, 1.0).because(context.explain, || {
            format!(
                "{} of {day:.0} exchanges on a release's first day went to the new model; {:.1} \
                     tied accounts are suspended",
                memory.fresh, context.ties.suspended
            )
        })
    }
}
