//! `TimingCluster` (T-DIST-002c, T-DIST-014): accounts of different customers that ask in the same
//! seconds, and a clock behind one account's requests.
//!
//! Sees shared seconds of arrival among accounts with the same model and settings, and the variation
//! of pauses between an answer and the next request. Matters because one dispatcher in front of many
//! accounts shows in both. Health checks have a clock too, so a cadence alone is little.
//!
//! Source: threat model T-DIST-002c (one-second buckets, cadence variation).

use crate::detector::{Context, Detector, Nothing, Pace};
use crate::finding::{Finding, ramp};
use crate::pivot::Family;
use crate::seen::Seen;
use crate::sketch::variation;
use crate::ties::Kind;

/// The detector.
#[derive(Debug)]
pub struct TimingCluster;

impl Detector for TimingCluster {
    type Memory = Nothing;

    const NAME: &'static str = "timing_cluster";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-002c", "T-DIST-014"];
    const PACE: Pace = Pace::Inline;
    const FAMILIES: &'static [Family] = &[Family::Second];

    fn note(_: &mut Nothing, _: &Seen) {}

    fn judge(_: &Nothing, context: &Context<'_>) -> Finding {
        let recent = &context.account.recent;
        let gaps: Vec<f64> = recent
            .iter()
            .zip(recent.iter().skip(1))
            .map(|(before, next)| next.at_ms.saturating_sub(before.at_ms) as f64)
            .collect();
        let cadence = if gaps.len() >= 8 { variation(&gaps) } else { None };
        let regular = cadence.map_or(0.0, |cadence| ramp(cadence, 0.3, 0.05));
        let together = context.ties.of(Kind::Time) + context.ties.of(Kind::Together);
        let synchronous = 1.0 - (1.0 + together).powf(-1.2);
        let strength = 1.0 - (1.0 - synchronous) * (1.0 - regular * context.ties.confidence(0.15));
        Finding::new(Self::NAME, strength, 1.0).because(context.explain, || {
            format!(
                "asks in the same seconds as {together:.1} tied customers; {}",
                match cadence {
                    Some(cadence) => format!("gaps vary by {cadence:.2} of their mean"),
                    None => "too few gaps to tell a cadence".to_owned(),
                }
            )
        })
    }
}
