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
use crate::text::Family;

/// Least nearness at which a prompt counts as one of an archetype.
const NEAR: f32 = 0.5;
/// Least weight of a phrase that counts as much.
const PHRASE: f32 = 0.6;
/// Phrases of extraction other than elicited reasoning, which `CoT` counts.
const PHRASED: [Family; 6] = [
    Family::RubricGrading,
    Family::RewriteCensorship,
    Family::InstructionGeneration,
    Family::DataFormat,
    Family::Agentic,
    Family::ComputerUse,
];
/// Kinds of archetypes that are told apart.
const KINDS_MAX: usize = 16;

/// The detector.
#[derive(Debug)]
pub struct Embed;

/// Archetypes so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    archetypes: Histogram<{ KINDS_MAX + PHRASED.len() }>,
}

merge_fields!(Memory { archetypes });

impl Detector for Embed {
    type Memory = Memory;

    const NAME: &'static str = "embed";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-009", "T-DIST-001", "T-DIST-016"];
    const PACE: Pace = Pace::Background;

    fn note(memory: &mut Memory, seen: &Seen) {
        // A pipeline that is used unchanged is known by its phrases, a reworded one by its meaning.
        let phrased = PHRASED.iter().position(|family| seen.text.phrases[family.index()] >= PHRASE);
        match seen.text.archetype {
            Some((kind, near)) if near >= NEAR => memory.archetypes.add(usize::from(kind)),
            _ => {
                if let Some(place) = phrased {
                    memory.archetypes.add(KINDS_MAX + place);
                }
            }
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
                    "{:.0} % of prompts are near an archetype of extraction or carry its phrases, {:.0} % of \
                     those of one kind",
                    near / prompts * 100.0,
                    concentration * 100.0
                )
            },
        )
    }
}
