//! `H2Grpc` (T-DIST-003b, T-DIST-010): HTTP/2 settings that belong to another client than the one
//! it says it is, and gRPC connections opened for bulk.
//!
//! Sees the first SETTINGS, the connection window and the pseudo-header order. Every Go client opens
//! a window of 1 GiB, so a large window counts only where the client's kind does not have it anyway.
//!
//! Source: threat model T-DIST-003b and T-DIST-010; HTTP/2 fingerprints (Shuster et al., "Passive
//! Fingerprinting of HTTP/2 Clients", Akamai, 2017).

use serde::{Deserialize, Serialize};

use crate::detector::{Context, Detector, Pace};
use crate::finding::{Finding, ramp};
use crate::merge_fields;
use crate::seen::Seen;
use crate::sketch::count;

/// The detector.
#[derive(Debug)]
pub struct H2Grpc;

/// What HTTP/2 showed so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    checked: u32,
    /// Sum of contradictions, hundredths.
    contradiction: u64,
    /// Exchanges with windows opened for bulk.
    bulk: u32,
    /// gRPC exchanges.
    grpc: u32,
}

merge_fields!(Memory { checked, contradiction, bulk, grpc });

impl Detector for H2Grpc {
    type Memory = Memory;

    const NAME: &'static str = "h2_grpc";
    const TECHNIQUES: &'static [&'static str] = &["T-DIST-003b", "T-DIST-010"];
    const PACE: Pace = Pace::Inline;

    fn note(memory: &mut Memory, seen: &Seen) {
        memory.checked = memory.checked.saturating_add(1);
        let hundredths = (f64::from(seen.client.http2) * 100.0) as u64;
        memory.contradiction = memory.contradiction.saturating_add(hundredths);
        count(&mut memory.bulk, seen.client.bulk_window);
        count(&mut memory.grpc, seen.client.grpc);
    }

    fn judge(memory: &Memory, context: &Context<'_>) -> Finding {
        let checked = f64::from(memory.checked.max(1));
        let contradiction = memory.contradiction as f64 / 100.0 / checked;
        let (bulk, grpc) = (f64::from(memory.bulk) / checked, f64::from(memory.grpc) / checked);
        let mismatch = 0.72 * ramp(contradiction, 0.1, 0.8);
        let strength = mismatch.max(bulk * (0.4 + 0.4 * grpc));
        Finding::new(Self::NAME, strength, context.ties.confidence(0.6)).because(
            context.explain,
            || {
                format!(
                    "HTTP/2 contradicts the client's name by {contradiction:.2} of 1; {:.0} % of \
                     exchanges over windows opened for bulk, {:.0} % gRPC",
                    bulk * 100.0,
                    grpc * 100.0
                )
            },
        )
    }
}
