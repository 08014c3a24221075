//! `Velocity` (T-DIST-004): bursts of accounts without a history.
//!
//! Sees the busiest five minutes and the busiest hour, and how old the account was. Matters because
//! rotated accounts are used up in a short burst. Wrong for every production client: the median of
//! 421 measured ones peaks at 11 requests a second (ServeGen), so rate alone says little, and an old
//! account's rate says nothing.
//!
//! Source: threat model T-DIST-004 (windows `W_5MIN` and `W_1HR`).

use crate::detector::{Context, Detector, Nothing, Pace};
use crate::finding::{Finding, ramp};
use crate::seen::Seen;

/// The detector.
#[derive(Debug)]
pub struct Velocity;

impl Detector for Velocity {
    type Memory = Nothing;

    const NAME: &'static str = "velocity";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-004"];
    const PACE: Pace = Pace::Inline;

    fn note(_: &mut Nothing, _: &Seen) {}

    fn judge(_: &Nothing, context: &Context<'_>) -> Finding {
        let account = context.account;
        let (mut five_minutes, mut hour) = (0u32, 0u32);
        for (index, slot) in account.slots.iter().enumerate() {
            five_minutes = five_minutes.max(slot.count);
            let from = slot.slot.saturating_sub(11);
            let within = account.slots.iter().take(index + 1).filter(|other| other.slot >= from);
            let counts = within.map(|other| other.count);
            hour = hour.max(counts.fold(0, u32::saturating_add));
        }
        let age_days = context.age_days_at_first();
        // Per minute: a person types a few, a loop sends tens.
        let fast = ramp(f64::from(five_minutes) / 5.0, 2.0, 30.0);
        let sustained = ramp(f64::from(hour) / 60.0, 1.0, 15.0);
        let fresh = ramp(age_days, 21.0, 2.0);
        let strength = (0.5 * fast + 0.5 * sustained) * (0.3 + 0.7 * fresh);
        Finding::new(Self::NAME, strength, context.ties.confidence(0.2)).because(
            context.explain,
            || {
                format!(
                    "up to {five_minutes} exchanges in five minutes and {hour} in an hour; first used \
                     {age_days:.1} days after its creation"
                )
            },
        )
    }
}
