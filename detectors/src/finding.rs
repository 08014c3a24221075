//! What a detector concludes.

use serde::Serialize;

/// One detector's result for one account.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The detector's name, as in policies.
    pub detector: &'static str,
    /// How much what was seen looks like the technique, 0..1.
    pub strength: f64,
    /// How sure that is: how much was seen, and how far others confirm it, 0..1.
    pub confidence: f64,
    /// What was seen, for a person to read; only where it was asked for. Never prompt text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
}

impl Finding {
    /// A finding of a strength, as sure as this. Both are brought into 0..1; what is not a number
    /// counts as 0.
    #[must_use]
    pub fn new(detector: &'static str, strength: f64, confidence: f64) -> Self {
        Self { detector, strength: unit(strength), confidence: unit(confidence), evidence: None }
    }

    /// Nothing was found.
    #[must_use]
    pub fn nothing(detector: &'static str) -> Self {
        Self::new(detector, 0.0, 0.0)
    }

    /// The finding with what a person can read.
    #[must_use]
    pub fn because(mut self, explain: bool, evidence: impl FnOnce() -> String) -> Self {
        if explain && self.score() > 0.0 {
            self.evidence = Some(evidence());
        }
        self
    }

    /// Strength times confidence.
    #[must_use]
    pub fn score(&self) -> f64 {
        self.strength * self.confidence
    }
}

/// A number brought into 0..1; what is not a number is 0.
#[must_use]
pub fn unit(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

/// Rises from 0 at `from` to 1 at `to`; the other way round where `to` is smaller.
#[must_use]
pub fn ramp(value: f64, from: f64, to: f64) -> f64 {
    unit((value - from) / (to - from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_counts_as_nothing() {
        let finding = Finding::new("Test", f64::NAN, f64::INFINITY);
        assert_eq!((finding.strength, finding.confidence, finding.score()), (0.0, 1.0, 0.0));
        assert_eq!(ramp(f64::NAN, 0.0, 1.0), 0.0);
    }

    #[test]
    fn ramps_rise_and_fall() {
        assert_eq!(ramp(3.0, 2.0, 4.0), 0.5);
        assert_eq!(ramp(0.05, 0.10, 0.05), 1.0);
        assert_eq!(ramp(0.20, 0.10, 0.05), 0.0);
    }
}
