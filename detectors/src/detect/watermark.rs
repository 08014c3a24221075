//! `Watermark` (T-DIST-008): our own marks coming back in prompts.
//!
//! Sees marks and canaries of ours that were served to others, zero-width characters in prompts, and
//! demands for verbatim reproduction. Copied documents carry stray zero-width characters too, so
//! those alone are little; and one mark of another's may be a published text that somebody quotes.
//!
//! Source: threat model T-DIST-008.

use serde::{Deserialize, Serialize};

use crate::detector::{Context, Detector, Pace};
use crate::finding::{Finding, ramp};
use crate::merge_fields;
use crate::seen::Seen;
use crate::sketch::count;
use crate::text::Family;

/// Invisible characters in one prompt that are more than a stray one.
const MANY: u32 = 4;

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
    /// Prompts with marks that were served to others.
    foreign: u32,
}

merge_fields!(Memory { stray, many, verbatim, foreign });

impl Detector for Watermark {
    type Memory = Memory;

    const NAME: &'static str = "watermark";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-008"];
    const PACE: Pace = Pace::Inline;

    fn note(memory: &mut Memory, seen: &Seen) {
        count(&mut memory.stray, seen.text.invisible > 0);
        count(&mut memory.many, seen.text.invisible >= MANY);
        count(&mut memory.foreign, seen.foreign_marks > 0);
        count(&mut memory.verbatim, seen.text.phrases[Family::Verbatim.index()] > 0.5);
    }

    fn judge(memory: &Memory, context: &Context<'_>) -> Finding {
        let prompts = f64::from(context.account.prompted.max(1));
        let share = |count: u32| f64::from(count) / prompts;
        let strength = (0.2 * ramp(share(memory.stray), 0.05, 0.5))
            .max(0.8 * ramp(share(memory.many), 0.02, 0.3))
            .max(0.4 * ramp(share(memory.verbatim), 0.1, 0.6));
        let confidence = context.seen(3.0) * context.ties.confidence(0.4);
        // A mark is no guess: it is authenticated, and says to whom it was served.
        let returned = 0.5 + 0.45 * ramp(f64::from(memory.foreign), 1.0, 4.0);
        let (strength, confidence) = if memory.foreign > 0 && returned > strength * confidence {
            (returned, 1.0)
        } else {
            (strength, confidence)
        };
        Finding::new(Self::NAME, strength, confidence).because(context.explain, || {
            format!(
                "what was served to others came back in {} prompts; invisible characters in {}, many \
                 in {}; {} demand verbatim text",
                memory.foreign, memory.stray, memory.many, memory.verbatim
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account;
    use crate::dns::Resolution;
    use crate::indicator::Listed;
    use crate::seen::Learnt;
    use crate::ties::Ties;

    #[test]
    fn returned_marks_speak_and_one_alone_stays_below_every_tier() {
        let score = |foreign: u32| {
            let (mut memory, mut account) = (Memory::default(), account::Memory::default());
            for number in 0..4 {
                let seen = Seen {
                    id: number,
                    readable: true,
                    foreign_marks: u32::from(number < foreign),
                    ..Seen::default()
                };
                Watermark::note(&mut memory, &seen);
                account.note(&seen);
            }
            let context = Context {
                now_ms: 0,
                account: &account,
                ties: &Ties::default(),
                card_accounts: 1.0,
                listed: &Listed::default(),
                learnt: &Learnt::default(),
                dns: &Resolution::default(),
                explain: false,
            };
            Watermark::judge(&memory, &context).score()
        };
        assert_eq!(score(0), 0.0);
        assert!(score(1) >= 0.5 && score(4) > 0.9);
        // Alone, at the weight of the threat model's table.
        let suspicion = |score: f64| 1.0 - (1.0 - score).powf(2.75 * 0.04);
        assert!(suspicion(score(4)) < 0.35);
    }
}
