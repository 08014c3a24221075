//! `Watermark` (T-DIST-008): our own marks coming back in prompts.
//!
//! Sees zero-width characters in prompts, and demands for verbatim reproduction. Copied documents
//! carry stray zero-width characters too, so those alone are little.
//!
//! Source: threat model T-DIST-008.

use serde::{Deserialize, Serialize};

use crate::detector::{Context, Detector, Pace};
use crate::finding::{Finding, ramp};
use crate::merge_fields;
use crate::seen::Seen;

/// Invisible characters in one prompt that are more than a stray one.
const MANY: u32 = 4;
use crate::text::Family;

/// The detector.
#[derive(Debug)]
pub struct Watermark;

/// Marks so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Prompts with any invisible character.
    stray: u32,
    /// Prompts with many.
    many: u32,
    /// Prompts that demand a verbatim or complete reproduction.
    verbatim: u32,
}

merge_fields!(Memory { stray, many, verbatim });

impl Detector for Watermark {
    type Memory = Memory;

    const NAME: &'static str = "watermark";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-008"];
    const PACE: Pace = Pace::Inline;

    fn note(memory: &mut Memory, seen: &Seen) {
        memory.stray += u32::from(seen.text.invisible > 0);
        memory.many += u32::from(seen.text.invisible >= MANY);
        memory.verbatim += u32::from(seen.text.phrases[Family::Verbatim.index()] > 0.5);
    }

    fn judge(memory: &Memory, context: &Context<'_>) -> Finding {
        let prompts = f64::from(context.account.prompted.max(1));
        let share = |count: u32| f64::from(count) / prompts;
        let strength = (0.2 * ramp(share(memory.stray), 0.05, 0.5))
            .max(0.8 * ramp(share(memory.many), 0.02, 0.3))
            .max(0.4 * ramp(share(memory.verbatim), 0.1, 0.6));
        Finding::new(Self::NAME, strength, context.seen(3.0) * context.ties.confidence(0.4))
            .because(context.explain, || {
                format!(
                    "invisible characters in {} prompts, many in {}; {} demand verbatim text",
                    memory.stray, memory.many, memory.verbatim
                )
            })
    }
}
