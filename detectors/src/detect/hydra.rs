//! `Hydra` (T-DIST-002a, 002b, 004): many accounts of different customers behind which one hand
//! shows.
//!
//! Sees the ties of an account: rare values (networks, frames, settings, system prompts, seconds of
//! arrival, card prefixes with days of birth) that it shares with other customers' accounts, where
//! at least two independent kinds of evidence agree. Matters because it is what a campaign cannot do
//! without. An openly declared organisation, and accounts of one payment instrument, are one
//! customer and tie nobody; a class with one assignment is told apart by how its members talk.
//!
//! What peers shared of campaigns that they have found ([`crate::indicator`]) ties an account to somebody
//! else's accounts there, and speaks here too.
//!
//! Source: threat model T-DIST-002 and T-DIST-004, "IOC Sharing Protocol".

use std::fmt::Write as _;

use crate::detector::{Context, Detector, Nothing, Pace};
use crate::finding::{Finding, ramp};
use crate::pivot::Family;
use crate::seen::Seen;
use crate::ties::Kind;

/// How fast tied customers add up: strength is `1 - (1 + mass)^-RATE`.
const RATE: f64 = 2.4;

/// The detector.
#[derive(Debug)]
pub struct Hydra;

impl Detector for Hydra {
    type Memory = Nothing;

    const NAME: &'static str = "hydra";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-002a", "T-DIST-002b", "T-DIST-004"];
    const PACE: Pace = Pace::Inline;
    const FAMILIES: &'static [Family] = &[
        Family::Payment,
        Family::BinBirth,
        Family::Address,
        Family::Subnet,
        Family::Prompt,
        Family::Listed,
    ];

    fn note(_: &mut Nothing, _: &Seen) {}

    fn judge(_: &Nothing, context: &Context<'_>) -> Finding {
        let ties = context.ties;
        let tied = 1.0 - (1.0 + ties.mass).powf(-RATE);
        // One card behind many young accounts that nobody declared to belong together: agencies do
        // it too, so it is little.
        let undeclared = f64::from(u8::from(context.account.organisation().is_none()));
        let card = 0.25 * ramp(context.card_accounts, 3.0, 12.0) * undeclared;
        let strength = 1.0 - (1.0 - tied) * (1.0 - card) * (1.0 - context.listed.strength);
        Finding::new(Self::NAME, strength, 1.0).because(context.explain, || {
            let kinds = Kind::ALL.iter().filter(|kind| ties.of(**kind) >= 0.5);
            let kinds: Vec<_> =
                kinds.map(|kind| format!("{} {:.1}", kind.name(), ties.of(*kind))).collect();
            let mut evidence = format!(
                "tied to {:.1} other customers ({}); {:.0} accounts on its payment instrument",
                ties.mass,
                kinds.join(", "),
                context.card_accounts
            );
            for (source, kinds) in &context.listed.sources {
                let peer = context.learnt.peer(*source).unwrap_or("a peer");
                let kinds: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
                // Writing to a string cannot fail.
                let _ = write!(evidence, "; shared with {peer}'s campaign: {}", kinds.join(", "));
            }
            evidence
        })
    }
}
