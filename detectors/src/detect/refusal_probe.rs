//! `RefusalProbe` (T-DIST-015): prompts that map where the model refuses.
//!
//! Sees categories of prompts that a model would refuse, and refusals. Moderation products are full
//! of toxic text under one template, so frames take from it; what counts is a sweep over categories
//! that are asked outright.
//!
//! Source: threat model T-DIST-015 (over 25 % of prompts, at least four categories).

use serde::{Deserialize, Serialize};

use crate::detector::{Context, Detector, Pace};
use crate::finding::{Finding, ramp};
use crate::merge_fields;
use crate::seen::{Answered, Seen};
use crate::sketch::{Histogram, count};

/// The detector.
#[derive(Debug)]
pub struct RefusalProbe;

/// Categories so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    categories: Histogram<12>,
    refused: u32,
}

merge_fields!(Memory { categories, refused });

impl Detector for RefusalProbe {
    type Memory = Memory;

    const NAME: &'static str = "refusal_probe";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-015"];
    const PACE: Pace = Pace::Background;

    fn note(memory: &mut Memory, seen: &Seen) {
        if let Some((category, margin)) = seen.text.safety
            && margin >= 0.5
        {
            memory.categories.add(usize::from(category));
        }
    }

    fn note_answer(memory: &mut Memory, answered: &Answered) {
        count(&mut memory.refused, answered.refused);
    }

    fn judge(memory: &Memory, context: &Context<'_>) -> Finding {
        let account = context.account;
        let prompts = f64::from(account.prompted.max(1));
        let share = f64::from(memory.categories.total().max(memory.refused)) / prompts;
        let covered = memory.categories.covered();
        let framed = account.framed();
        let strength = ramp(share, 0.1, 0.3)
            * ramp(covered as f64, 2.0, 5.0)
            * (1.0 - 0.8 * ramp(framed, 0.3, 0.8));
        let known = ramp(prompts, 8.0, 30.0);
        Finding::new(Self::NAME, strength, known * context.ties.confidence(0.5)).because(
            context.explain,
            || {
                format!(
                    "{:.0} % of prompts in {covered} categories that models refuse, {} refusals",
                    share * 100.0,
                    memory.refused
                )
            },
        )
    }
}
