//! `Biometric` (T-DIST-007): few templates, filled in by a machine.
//!
//! Sees how often prompts open alike, how much one frame dominates, and how little lengths vary.
//! Every product with a prompt template looks like this, so alone it is little; it says more of
//! accounts that are tied to others.
//!
//! Source: threat model T-DIST-007 (structural entropy below 0.20, length variation below 0.10).

use crate::detector::{Context, Detector, Nothing, Pace};
use crate::finding::{Finding, ramp};
use crate::pivot::Family;
use crate::seen::Seen;
use crate::sketch::entropy;

/// The detector.
#[derive(Debug)]
pub struct Biometric;

impl Detector for Biometric {
    type Memory = Nothing;

    const NAME: &'static str = "biometric";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-007", "T-DIST-001"];
    const PACE: Pace = Pace::Inline;
    const FAMILIES: &'static [Family] = &[Family::Frame];

    fn note(_: &mut Nothing, _: &Seen) {}

    fn judge(_: &Nothing, context: &Context<'_>) -> Finding {
        let account = context.account;
        let mut openings: Vec<u32> = account.recent.iter().map(|recent| recent.opening).collect();
        openings.sort_unstable();
        let counts = openings.chunk_by(|a, b| a == b).map(|same| same.len() as f64);
        let most = (openings.len() as f64).ln().max(1e-9);
        let structure = entropy(counts.collect::<Vec<_>>().into_iter()) / most;
        let lengths = account.prompt_chars.variation().unwrap_or(1.0);
        let framed = account.framed();
        let strength = 0.4 * ramp(structure, 0.6, 0.2)
            + 0.2 * ramp(lengths, 0.3, 0.1)
            + 0.4 * ramp(framed, 0.3, 0.9);
        let known = ramp(f64::from(account.prompted), 3.0, 12.0);
        Finding::new(Self::NAME, strength, known * context.ties.confidence(0.12)).because(
            context.explain,
            || {
                format!(
                    "structural entropy {structure:.2}, lengths vary by {lengths:.2} of their mean, \
                     {:.0} % of prompts in one frame",
                    framed * 100.0
                )
            },
        )
    }
}
