//! The one list of detectors: a detector is its file under `detect/`, its line here, its entry in
//! `policies/default.toml` and its case in the corpus.

use serde::{Deserialize, Serialize};

use crate::detect;
use crate::detector::{Context, Detector, Pace};
use crate::finding::Finding;
use crate::pivot::Family;
use crate::seen::{Answered, Seen};
use crate::sketch::Merge;

/// What the list says of a detector.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// Its weight in the threat model's table.
    pub weight: f64,
    /// The techniques that it bears on.
    pub techniques: &'static [&'static str],
    /// Where it may run.
    pub pace: Pace,
    /// Shared values that are its evidence.
    pub families: &'static [Family],
}

macro_rules! detectors {
    ($($file:ident :: $detector:ident = $weight:literal),* $(,)?) => {
        /// Every detector.
        pub const LIST: &[Entry] = &[$(Entry {
            name: <detect::$file::$detector as Detector>::NAME,
            weight: $weight,
            techniques: <detect::$file::$detector as Detector>::TECHNIQUES,
            pace: <detect::$file::$detector as Detector>::PACE,
            families: <detect::$file::$detector as Detector>::FAMILIES,
        }),*];

        /// What all detectors remember of an account.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        pub struct Memories {
            $($file: <detect::$file::$detector as Detector>::Memory,)*
        }

        impl Merge for Memories {
            fn merge(&mut self, other: &Self) {
                $(self.$file.merge(&other.$file);)*
            }
        }

        impl Memories {
            /// Takes in what a request shows, by the detectors of one pace.
            pub fn note(&mut self, seen: &Seen, pace: Pace) {
                $(if <detect::$file::$detector as Detector>::PACE == pace {
                    <detect::$file::$detector as Detector>::note(&mut self.$file, seen);
                })*
            }

            /// Takes in how a request was answered.
            pub fn note_answer(&mut self, answered: &Answered) {
                $(<detect::$file::$detector as Detector>::note_answer(&mut self.$file, answered);)*
            }

            /// Judges an account with the detectors that are on.
            #[must_use]
            pub fn judge(&self, context: &Context<'_>, on: impl Fn(&str) -> bool) -> Vec<Finding> {
                let mut findings = Vec::with_capacity(LIST.len());
                $(if on(<detect::$file::$detector as Detector>::NAME) {
                    findings.push(<detect::$file::$detector as Detector>::judge(
                        &self.$file,
                        context,
                    ));
                })*
                findings
            }
        }
    };
}

// The weights are the threat model's (its fusion weight table; they sum to 1.00). DNS evidence has
// no weight there: it has one of its own beside the sum, too small to reach a tier.
detectors! {
    fingerprint::Fingerprint = 0.14,
    velocity::Velocity = 0.10,
    cot::Cot = 0.09,
    embed::Embed = 0.08,
    hydra::Hydra = 0.08,
    timing_cluster::TimingCluster = 0.07,
    asn_classifier::AsnClassifier = 0.07,
    h2_grpc::H2Grpc = 0.06,
    role_preamble::RolePreamble = 0.06,
    pivot::Pivot = 0.05,
    biometric::Biometric = 0.05,
    watermark::Watermark = 0.04,
    session_gap::SessionGap = 0.04,
    token_budget::TokenBudget = 0.03,
    refusal_probe::RefusalProbe = 0.02,
    sequence_model::SequenceModel = 0.02,
    dns_transport::DnsTransport = 0.02,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_weights_are_the_threat_models() {
        let mut names: Vec<_> = LIST.iter().map(|entry| entry.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), LIST.len());
        let matrix = LIST.iter().filter(|entry| entry.name != "dns_transport");
        assert_eq!(matrix.clone().count(), 16);
        let sum: f64 = matrix.map(|entry| entry.weight).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        assert!(LIST.iter().all(|entry| !entry.techniques.is_empty()));
    }

    #[test]
    fn each_family_is_the_evidence_of_one_detector() {
        for family in Family::ALL {
            let owners = LIST.iter().filter(|entry| entry.families.contains(&family)).count();
            assert_eq!(owners, 1, "{family:?}");
        }
    }
}
