//! From findings to one number.
//!
//! A plain weighted sum cannot reach the threat model's thresholds: five detectors that fire fully
//! give 0.4. Suspicion here is `1 - prod (1 - s_i)^(k w_i)` over the findings' scores `s_i` with
//! the threat model's weights `w_i`: a noisy-or in which a weight says how much a detector's word
//! counts. Each detector's part is `-k w_i ln(1 - s_i)`, its *contribution*, and the parts add up.
//!
//! A finding's score stays below 1, so no single detector is ever the whole judgement.

use serde::Serialize;

use crate::finding::Finding;

/// Largest score that counts: nothing is certain.
const SCORE_MAX: f64 = 0.9999;

/// A detector's part in a suspicion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contribution {
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
    /// Its detector's weight.
    pub weight: f64,
    /// Its part, in nats; suspicion is `1 - exp(-sum)`.
    pub nats: f64,
}

/// Weighs findings.
#[must_use]
pub fn contributions(
    findings: Vec<Finding>,
    k: f64,
    weight: impl Fn(&str) -> f64,
) -> Vec<Contribution> {
    let weigh = |finding: Finding| {
        let weight = weight(finding.detector);
        let nats = -k * weight * (1.0 - finding.score().min(SCORE_MAX)).ln();
        Contribution { finding, weight, nats: nats.max(0.0) }
    };
    findings.into_iter().map(weigh).collect()
}

/// The suspicion that contributions make, 0..1.
#[must_use]
pub fn suspicion(contributions: &[Contribution]) -> f64 {
    1.0 - (-contributions.iter().map(|part| part.nats).sum::<f64>()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspicion_of(scores: &[(&'static str, f64)]) -> f64 {
        let findings = scores.iter().map(|(name, score)| Finding::new(name, *score, 1.0));
        suspicion(&contributions(findings.collect(), 2.75, |_| 0.07))
    }

    #[test]
    fn strong_evidence_of_some_weight_lands_on_the_tiers() {
        // The combined weights and tiers that the constant was chosen by.
        for (weight, tier) in [(0.07, 0.35), (0.12, 0.52), (0.20, 0.72), (0.30, 0.85)] {
            let finding = vec![Finding::new("Test", 0.9, 1.0)];
            let reached = suspicion(&contributions(finding, 2.75, |_| weight));
            assert!((reached - tier).abs() < 0.02, "weight {weight}: {reached}");
        }
    }

    #[test]
    fn more_evidence_never_lowers_it_and_it_stays_below_one() {
        let mut last = 0.0;
        for strong in 0..20 {
            let scores = vec![("Test", 1.0); strong];
            let now = suspicion_of(&scores);
            assert!(now >= last && now <= 1.0);
            last = now;
        }
        assert_eq!(suspicion_of(&[]), 0.0);
        assert_eq!(suspicion_of(&[("Test", 0.0)]), 0.0);
    }
}
