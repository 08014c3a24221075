//! `Embed` (T-DIST-009, T-DIST-001): prompts close in meaning to archetypes of extraction.
//!
//! Sees how near a prompt's static sentence embedding comes to archetypes of extraction (reviewed
//! in `data/archetypes.toml`), against archetypes of ordinary use. Matters because paraphrase leaves
//! no phrase to match. Weak across pipelines (at 1 % false positives it finds well under half of the
//! prompts of an unseen one), so it is gathered over an account's history: concentration on one
//! archetype, and no conversation around it.
//!
//! Source: threat model T-DIST-009; Model2Vec (MinishLab, 2024) for static embeddings.

use serde::{Deserialize, Serialize};

use crate::detector::{Context, Detector, Pace};
use crate::finding::{Finding, ramp};
use crate::merge_fields;
use crate::seen::Seen;
use crate::sketch::Histogram;

/// Least nearness at which a prompt counts as one of an archetype.
const NEAR: f32 = 0.5;

/// The detector.
#[derive(Debug)]
pub struct Embed;

/// Archetypes so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    archetypes: Histogram<16>,
}

merge_fields!(Memory { archetypes });

impl Detector for Embed {
    type Memory = Memory;

    const NAME: &'static str = "embed";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-009", "T-DIST-001", "T-DIST-016"];
    const PACE: Pace = Pace::Background;

    fn note(memory: &mut Memory, seen: &Seen) {
        if let Some((kind, near)) = seen.text.archetype
            && near >= NEAR
        {
            memory.archetypes.add(usize::from(kind));
        }
    }

    fn judge(memory: &Memory, context: &Context<'_>) -> Finding {
        let account = context.account;
        let prompts = f64::from(account.prompted.max(1));
        let near = f64::from(memory.archetypes.total());
        let most = f64::from(memory.archetypes.counts().iter().copied().max().unwrap_or(0));
        let concentration = if near > 0.0 { most / near } else { 0.0 };
        let talks = f64::from(account.history) / prompts;
        let strength =
            ramp(near / prompts, 0.05, 0.6) * (0.6 + 0.4 * concentration) * (1.0 - 0.7 * talks);
        Finding::new(Self::NAME, strength, context.seen(6.0) * context.ties.confidence(0.4)).because(
            context.explain,
            || {
                format!(
                    "{:.0} % of prompts are near an archetype of extraction, {:.0} % of those near one",
                    near / prompts * 100.0,
                    concentration * 100.0
                )
            },
        )
    }
}
