//! `Fingerprint` (T-DIST-003a, 003c, 002b): a client whose signs contradict one another, and rare
//! client shapes that different customers share.
//!
//! Sees what the client says of itself (user agent, `x-stainless-*`) against its TLS, HTTP/2 and
//! header order. Matters because a toolkit that dresses scripts as browsers has to get all of them
//! right at once. Wrong where somebody else's TLS stands between (inspection proxies: read as weak),
//! and where a person sets a user agent by hand, so alone it is not a verdict.
//!
//! Source: threat model T-DIST-003; JA3 (Salesforce, 2018), JA4 (FoxIO, 2023); the table of clients
//! is `data/clients.toml`.

use serde::{Deserialize, Serialize};

use crate::client::{FamilySet, PermutationWatch};
use crate::detector::{Context, Detector, Pace};
use crate::finding::{Finding, ramp};
use crate::merge_fields;
use crate::pivot::Family;
use crate::seen::Seen;
use crate::ties::Kind;

/// The detector.
#[derive(Debug)]
pub struct Fingerprint;

/// Contradictions so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Exchanges looked at.
    checked: u32,
    /// Sum of their contradictions, hundredths.
    contradiction: u64,
    /// Who it said it was.
    families: FamilySet,
    /// Whether its permuting browser permutes.
    permutation: PermutationWatch,
}

merge_fields!(Memory { checked, contradiction, families, permutation });

impl Detector for Fingerprint {
    type Memory = Memory;

    const NAME: &'static str = "fingerprint";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-003a", "T-DIST-003c", "T-DIST-002b"];
    const PACE: Pace = Pace::Inline;
    const FAMILIES: &'static [Family] = &[Family::Shape, Family::Rig];

    fn note(memory: &mut Memory, seen: &Seen) {
        memory.checked = memory.checked.saturating_add(1);
        let hundredths = (f64::from(seen.client.strength) * 100.0) as u64;
        memory.contradiction = memory.contradiction.saturating_add(hundredths);
        memory.families.merge(seen.client.families);
        memory.permutation.merge(&seen.client.permutation);
    }

    fn judge(memory: &Memory, context: &Context<'_>) -> Finding {
        let mean = memory.contradiction as f64 / (100.0 * f64::from(memory.checked.max(1)));
        // Shapes that unrelated customers share are worth something only beside other ties.
        let shared = 1.0 - (1.0 + context.ties.of(Kind::Software)).powf(-0.25);
        let fixed = memory.permutation.fixed().map_or(0.0, |fixed| f64::from(fixed.strength));
        // A person has a browser, a script and a tool; one account with very many is shared.
        let many = 0.3 * ramp(f64::from(memory.families.len()), 4.0, 9.0);
        let spoofed = ramp(mean, 0.2, 0.9).max(fixed).max(many) * context.ties.confidence(0.75);
        Finding::new(Self::NAME, 1.0 - (1.0 - spoofed) * (1.0 - shared), 1.0).because(
            context.explain,
            || {
                format!(
                    "signs contradict one another by {mean:.2} of 1 over {} exchanges; {} kinds of \
                     clients; software and settings shared with {:.1} tied customers",
                    memory.checked,
                    memory.families.len(),
                    context.ties.of(Kind::Software)
                )
            },
        )
    }
}
