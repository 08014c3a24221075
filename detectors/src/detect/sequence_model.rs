//! `SequenceModel` (T-DIST-016): a walk through all capabilities in a plan's order.
//!
//! Sees the capability category of each prompt: how many were visited, how evenly, and how
//! predictable the next one is from the last. People jump about or stay; a harvest covers everything
//! and drills down.
//!
//! Source: threat model T-DIST-016 (stationary entropy above 0.80, transition entropy below 0.25, at
//! least 10 of 12 categories).

use serde::{Deserialize, Serialize};

use crate::detector::{Context, Detector, Pace};
use crate::finding::{Finding, ramp};
use crate::merge_fields;
use crate::seen::Seen;
use crate::sketch::Histogram;

/// Capability categories.
const CATEGORIES: usize = 12;

/// The detector.
#[derive(Debug)]
pub struct SequenceModel;

/// Categories so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    categories: Histogram<CATEGORIES>,
}

merge_fields!(Memory { categories });

impl Detector for SequenceModel {
    type Memory = Memory;

    const NAME: &'static str = "sequence_model";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-016", "T-DIST-001", "T-DIST-009"];
    const PACE: Pace = Pace::Background;

    fn note(memory: &mut Memory, seen: &Seen) {
        if let Some((category, _)) = seen.text.topic {
            memory.categories.add(usize::from(category));
        }
    }

    fn judge(memory: &Memory, context: &Context<'_>) -> Finding {
        let recent: Vec<u8> =
            context.account.recent.iter().map(|recent| recent.topic).filter(|t| *t > 0).collect();
        let stays = recent.windows(2).filter(|pair| pair[0] == pair[1]).count() as f64;
        let steps = recent.len().saturating_sub(1).max(1) as f64;
        let covered = memory.categories.covered() as f64;
        let spread = memory.categories.entropy();
        // Over a few recent steps, staying in a category is what low transition entropy looks like.
        let predictable = ramp(stays / steps, 0.5, 0.9);
        let strength =
            ramp(covered, 7.0, 11.0) * ramp(spread, 0.6, 0.85) * (0.5 + 0.5 * predictable);
        let known = ramp(f64::from(memory.categories.total()), 15.0, 60.0);
        Finding::new(Self::NAME, strength, known * context.ties.confidence(0.4)).because(
            context.explain,
            || {
                format!(
                    "{covered:.0} of {CATEGORIES} capabilities, entropy {spread:.2}; {:.0} % of recent \
                     steps stay in one",
                    stays / steps * 100.0
                )
            },
        )
    }
}
