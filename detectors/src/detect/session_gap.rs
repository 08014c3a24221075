//! `SessionGap` (T-DIST-014): sessions that a scheduler starts.
//!
//! Sees when runs of activity begin and how large they are. Matters because people do not come every
//! hour on the hour. Health checks and nightly jobs do, so a session counts from three exchanges on,
//! and alone it is little.
//!
//! Source: threat model T-DIST-014 (gap variation below 0.08, size variation below 0.10, more than
//! 20 sessions a day).

use crate::account::SLOT_S;
use crate::detector::{Context, Detector, Nothing, Pace};
use crate::finding::{Finding, ramp};
use crate::seen::Seen;
use crate::sketch::variation;

/// Slots without activity that end a session.
const PAUSE_SLOTS: u32 = 2;

/// The detector.
#[derive(Debug)]
pub struct SessionGap;

impl Detector for SessionGap {
    type Memory = Nothing;

    const NAME: &'static str = "session_gap";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-014", "T-DIST-007"];
    const PACE: Pace = Pace::Inline;

    fn note(_: &mut Nothing, _: &Seen) {}

    fn judge(_: &Nothing, context: &Context<'_>) -> Finding {
        let mut sessions: Vec<(f64, f64)> = Vec::new();
        let mut last = None;
        for slot in context.account.slots.iter() {
            let count = f64::from(slot.count);
            if last.is_some_and(|last| slot.slot - last < PAUSE_SLOTS) {
                if let Some(session) = sessions.last_mut() {
                    session.1 += count;
                }
            } else {
                let start = f64::from(slot.slot) * f64::from(SLOT_S);
                sessions.push((start + f64::from(slot.first_ms) / 1000.0, count));
            }
            last = Some(slot.slot);
        }
        let gaps: Vec<f64> = sessions.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        let sizes: Vec<f64> = sessions.iter().map(|(_, size)| *size).collect();
        let mean = sizes.iter().sum::<f64>() / sizes.len().max(1) as f64;
        if sessions.len() < 5 || mean < 3.0 {
            return Finding::nothing(Self::NAME);
        }
        // A scheduler that skips a turn still keeps its grid, so gaps are compared with the least.
        let least = gaps.iter().copied().fold(f64::INFINITY, f64::min).max(1.0);
        let off_grid = gaps.iter().map(|gap| ((gap / least) - (gap / least).round()).abs());
        let off_grid = off_grid.sum::<f64>() / gaps.len() as f64;
        let gap_variation = variation(&gaps).unwrap_or(1.0);
        let size_variation = variation(&sizes).unwrap_or(1.0);
        let regular = ramp(gap_variation, 0.25, 0.08).max(0.6 * ramp(off_grid, 0.10, 0.02));
        let days = (gaps.iter().sum::<f64>() / 86_400.0).max(0.5);
        let many = 0.3 * ramp(gaps.len() as f64 / days, 12.0, 20.0);
        let strength = (regular * (0.6 + 0.4 * ramp(size_variation, 0.4, 0.1))).max(many);
        let known = ramp(sessions.len() as f64, 4.0, 10.0);
        Finding::new(Self::NAME, strength, known * context.ties.confidence(0.3)).because(
            context.explain,
            || {
                format!(
                    "{} sessions, gaps vary by {gap_variation:.2} and sizes by {size_variation:.2} of \
                     their mean",
                    sessions.len()
                )
            },
        )
    }
}
