//! `RolePreamble` (T-DIST-011): system prompts made for extraction, and the same rare ones at
//! different customers.
//!
//! Sees two of "never refuse", "always complete" and a numbered chain of tasks together, a rotation of
//! system prompts, and collisions of their keyed hashes. A public agent's prompt is shared by
//! thousands and ties nobody; two customers that have *several* rare prompts in common are another
//! matter.
//!
//! Source: threat model T-DIST-011.

use serde::{Deserialize, Serialize};

use crate::detector::{Context, Detector, Pace};
use crate::finding::{Finding, ramp};
use crate::merge_fields;
use crate::pivot;
use crate::seen::Seen;
use crate::sketch::count;
use crate::text::Family;
use crate::ties::Kind;

/// The detector.
#[derive(Debug)]
pub struct RolePreamble;

/// Preambles so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Prompts under a preamble with two of its three signs.
    compound: u32,
}

merge_fields!(Memory { compound });

impl Detector for RolePreamble {
    type Memory = Memory;

    const NAME: &'static str = "role_preamble";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-011", "T-DIST-001", "T-DIST-007"];
    const PACE: Pace = Pace::Inline;
    const FAMILIES: &'static [pivot::Family] = &[pivot::Family::System];

    fn note(memory: &mut Memory, seen: &Seen) {
        let text = &seen.text;
        let has = |family: Family| text.phrase(family) > 0.5;
        // Each alone stands in many honest prompts.
        let signs =
            [has(Family::NeverRefuse), has(Family::AlwaysComplete), seen.task_chain && !seen.tools];
        count(&mut memory.compound, signs.iter().filter(|sign| **sign).count() >= 2);
    }

    fn judge(memory: &Memory, context: &Context<'_>) -> Finding {
        let prompts = f64::from(context.account.prompted.max(1));
        let compound = ramp(f64::from(memory.compound) / prompts, 0.0, 0.5);
        let shared = context.ties.of(Kind::Preambles);
        let collision = 1.0 - (1.0 + shared).powf(-1.2);
        // A product has one system prompt or two; few have a new one every other time.
        let kept = context.account.systems.len() as f64;
        let rotation = 0.5 * ramp(kept / prompts.min(12.0), 0.2, 0.5) * ramp(kept, 2.0, 6.0);
        let alone = compound.max(rotation) * context.seen(3.0) * context.ties.confidence(0.4);
        Finding::new(Self::NAME, 1.0 - (1.0 - alone) * (1.0 - collision), 1.0).because(
            context.explain,
            || {
                format!(
                    "{} prompts under a preamble made for extraction; \
                     {kept:.0} system prompts of late; several rare system prompts in common with {shared:.1} tied customers",
                    memory.compound
                )
            },
        )
    }
}
