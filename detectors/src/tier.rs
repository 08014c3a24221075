//! Risk tiers, and how an account moves between them.

use serde::{Deserialize, Serialize};

/// How much an account is distrusted.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Like everybody.
    #[default]
    None,
    /// Something to look at.
    Low,
    /// Probably harvesting.
    Medium,
    /// Strong evidence.
    High,
    /// As good as certain.
    Critical,
}

impl Tier {
    /// Every tier, from the lowest.
    pub const ALL: [Self; 5] = [Self::None, Self::Low, Self::Medium, Self::High, Self::Critical];

    /// Its name in policies and verdicts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// Where the tiers begin, and how slowly one comes down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    /// Least suspicion of `low`.
    pub low: f64,
    /// Least suspicion of `medium`.
    pub medium: f64,
    /// Least suspicion of `high`.
    pub high: f64,
    /// Least suspicion of `critical`.
    pub critical: f64,
    /// How far below a tier's threshold suspicion must fall before the tier is left.
    pub hysteresis: f64,
    /// Hours after which a suspicion that nothing new supports has halved.
    pub half_life_hours: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            low: 0.35,
            medium: 0.52,
            high: 0.72,
            critical: 0.85,
            hysteresis: 0.08,
            half_life_hours: 24.0,
        }
    }
}

impl Thresholds {
    /// The tier of a suspicion.
    #[must_use]
    pub fn tier(&self, suspicion: f64) -> Tier {
        let reached = Tier::ALL.iter().rev().find(|tier| suspicion >= self.least(**tier));
        reached.copied().unwrap_or_default()
    }

    /// Least suspicion of a tier.
    #[must_use]
    pub fn least(&self, tier: Tier) -> f64 {
        match tier {
            Tier::None => f64::NEG_INFINITY,
            Tier::Low => self.low,
            Tier::Medium => self.medium,
            Tier::High => self.high,
            Tier::Critical => self.critical,
        }
    }
}

/// What is held of an account between judgements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Tier now.
    pub tier: Tier,
    /// Suspicion at the last judgement.
    pub suspicion: f64,
    /// When that was, unix milliseconds.
    pub at_ms: u64,
    /// When the suspicion would have been 1, going back along its decay: unix milliseconds, 0 for
    /// none. Of two it says which is higher at any time, and it stays exactly the same while a
    /// suspicion only fades.
    certain_ms: u64,
}

impl Held {
    /// What is left of the held suspicion at a time.
    #[must_use]
    pub fn decayed(&self, now_ms: u64, thresholds: &Thresholds) -> f64 {
        let silent_hours = now_ms.saturating_sub(self.at_ms) as f64 / 3_600_000.0;
        self.suspicion * (-silent_hours / thresholds.half_life_hours.max(1e-3)).exp2()
    }

    /// Takes a new judgement: a tier is reached at once and left late. What was held fades with its
    /// half-life, whatever has slid out of the bounded memory since.
    pub fn judge(&mut self, suspicion: f64, now_ms: u64, thresholds: &Thresholds) {
        let decayed = self.decayed(now_ms, thresholds);
        if suspicion > decayed {
            let half_life_ms = thresholds.half_life_hours.max(1e-3) * 3_600_000.0;
            let certain_ms = (now_ms as f64 + half_life_ms * suspicion.log2()) as u64;
            self.certain_ms = self.certain_ms.max(certain_ms);
        }
        let suspicion = suspicion.max(decayed);
        let reached = thresholds.tier(suspicion);
        if reached >= self.tier || suspicion < thresholds.least(self.tier) - thresholds.hysteresis {
            self.tier = reached;
        }
        self.suspicion = suspicion;
        self.at_ms = now_ms;
    }

    /// Takes what another gateway holds where that is higher, or where it is the same that was
    /// judged again since. So no tier is lowered that somebody has just raised, a tier that was left
    /// is left everywhere, and whoever takes in the same holds the same, in any order.
    pub fn join(&mut self, other: &Self) {
        let rank = |held: &Self| (held.certain_ms, held.at_ms, held.tier, held.suspicion.to_bits());
        if rank(other) > rank(self) {
            *self = *other;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_reached_at_once_and_left_late() {
        let thresholds = Thresholds::default();
        let mut held = Held::default();
        let mut tiers = Vec::new();
        // Each a month later, so that nothing is left of the one before.
        for (month, suspicion) in
            [0.1, 0.36, 0.60, 0.50, 0.45, 0.43, 0.90, 0.80, 0.30, 0.20].into_iter().enumerate()
        {
            held.judge(suspicion, month as u64 * 30 * 86_400_000, &thresholds);
            tiers.push(held.tier.name());
        }
        let expected = [
            "none", "low", "medium", "medium", "medium", "low", "critical", "critical", "none",
            "none",
        ];
        assert_eq!(tiers, expected);
    }

    #[test]
    fn gateways_hold_the_same_whatever_comes_first() {
        let (thresholds, day_ms) = (Thresholds::default(), 24 * 3_600_000);
        let judged = |mut held: Held, suspicion: f64, days: u64| {
            held.judge(suspicion, days * day_ms, &thresholds);
            held
        };
        let joined = |one: &Held, other: &Held| {
            let mut joined = *one;
            joined.join(other);
            joined
        };
        let raised = judged(Held::default(), 0.8, 9);
        let low = judged(Held::default(), 0.4, 9);
        let faded = judged(raised, 0.1, 10);
        let raised_again = judged(faded, 0.9, 11);
        assert_eq!((faded.tier, faded.suspicion), (Tier::Low, 0.4));
        for (one, other, expected) in [
            (raised, low, raised),
            // Judged later elsewhere, and still lower than what is left.
            (raised, judged(low, 0.36, 10), raised),
            (raised, judged(low, 0.6, 10), judged(low, 0.6, 10)),
            // The same, judged again since.
            (raised, faded, faded),
            (raised_again, faded, raised_again),
            (Held::default(), low, low),
        ] {
            assert_eq!((joined(&one, &other), joined(&other, &one)), (expected, expected));
        }
    }

    #[test]
    fn silence_halves_what_is_held() {
        let thresholds = Thresholds::default();
        let day_ms = 24 * 3_600_000;
        let mut held = Held { tier: Tier::High, suspicion: 0.8, ..Held::default() };
        assert_eq!(held.decayed(day_ms, &thresholds), 0.4);
        held.judge(0.0, day_ms, &thresholds);
        assert_eq!((held.tier, held.suspicion), (Tier::Low, 0.4));
        held.judge(0.0, 3 * day_ms, &thresholds);
        assert_eq!(held.tier, Tier::None);
    }
}
