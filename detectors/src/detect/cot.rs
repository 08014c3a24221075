//! `CoT` (T-DIST-001): prompts that elicit reasoning traces.
//!
//! Sees phrases such as "think step by step" in several languages, and phrases that ask for the
//! reasoning behind an answer that is already there. Matters because traces are worth more to a
//! student model than answers. Wrong for everybody who has learnt to prompt: one account of many
//! asks this way, so alone it stays far from a verdict.
//!
//! Source: threat model T-DIST-001; reports of 2026 on elicited reasoning; phrases are in
//! `data/phrases.toml`.

use serde::{Deserialize, Serialize};

use crate::detector::{Context, Detector, Pace};
use crate::finding::{Finding, ramp};
use crate::merge_fields;
use crate::seen::Seen;
use crate::sketch::count;
use crate::text::Family;

/// The detector.
#[derive(Debug)]
pub struct Cot;

/// Phrases so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Prompts that elicit reasoning, weighted, hundredths.
    elicited: u64,
    /// Prompts that ask for the reasoning behind a finished answer.
    behind: u32,
}

merge_fields!(Memory { elicited, behind });

impl Detector for Cot {
    type Memory = Memory;

    const NAME: &'static str = "cot";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-001", "T-DIST-009", "T-DIST-016"];
    const PACE: Pace = Pace::Inline;

    fn note(memory: &mut Memory, seen: &Seen) {
        let text = &seen.text;
        let asked = text.phrase(Family::CotElicitation);
        let hundredths = (f64::from(asked) * 100.0) as u64;
        memory.elicited = memory.elicited.saturating_add(hundredths);
        let behind = text.phrase(Family::ReasoningBehindAnswer);
        count(&mut memory.behind, behind > 0.5);
    }

    fn judge(memory: &Memory, context: &Context<'_>) -> Finding {
        let prompts = f64::from(context.account.prompted.max(1));
        let share = memory.elicited as f64 / 100.0 / prompts;
        let behind = f64::from(memory.behind) / prompts;
        let strength = ramp(share, 0.02, 0.6).max(ramp(behind, 0.0, 0.3));
        Finding::new(Self::NAME, strength, context.seen(4.0) * context.ties.confidence(0.4)).because(
            context.explain,
            || {
                format!(
                    "{:.0} % of prompts elicit reasoning, {} ask for the reasoning behind an answer",
                    share * 100.0,
                    memory.behind
                )
            },
        )
    }
}
