//! Whose marks a data set carries.
//!
//! Sees: documents, one after another, of any number; then the candidates who may have been served
//! them. Why: a report must say how sure it is, and must be able to say "no evidence".
//! Wrong when: the documents quote a candidate's marked answers for an honest reason; or they were
//! reworded by a model, which takes layers A and B away, so that "no evidence" is no acquittal.
//!
//! The null hypothesis is that the documents do not depend on a candidate's key. Layer B then is a
//! coin for each tuple of group and context, tuples of the prompts left out, and its p-value an
//! exact binomial tail. Layer C's is the rank of the served canaries among decoys. Both go together
//! through Holm's correction over all candidates ("A simple sequentially rejective multiple test
//! procedure", 1979). A layer A frame authenticates by itself; two that agree are asked for. Keys
//! that nobody has show whether the p-values are honest: theirs must be spread evenly.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::canary::{Kind, Sightings, canary};
use super::keys::{MasterKey, Prf};
use super::lexical::{Tuples, Votes, Wordings};
use super::zero_width::{AGREEING_MIN, FrameReader, Frames, account_tag};

/// Layer B: evidence below this p-value, after Holm.
pub const LEXICAL_EVIDENCE_P: f64 = 1e-6;
/// Layer C: evidence below this p-value, after Holm. Layer B: worth another look.
pub const CANARY_EVIDENCE_P: f64 = 1e-3;
/// Keys that nobody has.
pub const WRONG_KEYS: u32 = 1000;
/// Decoys of each canary.
pub const DECOYS: u32 = 9_999;
/// Weeks of one candidate that are looked at, the latest ones: ten years.
pub const EPOCHS_MAX: u16 = 520;

/// Somebody who may have been served the documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The account, as the gateway names it.
    pub account: String,
    /// Its cluster, if it was marked as one of a cluster.
    #[serde(default)]
    pub cluster: Option<String>,
    /// First week of marking, see [`super::keys::epoch`].
    pub first_epoch: u16,
    /// Last week of marking.
    pub last_epoch: u16,
}

impl Candidate {
    /// What layers B and C were keyed with.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.cluster.as_deref().unwrap_or(&self.account)
    }
}

/// Takes in documents. Memory is bounded by [`super::lexical::TUPLES_MAX`] and
/// [`super::canary::SIGHTINGS_MAX`]; no text is kept.
#[derive(Debug)]
pub struct Evidence<'w> {
    wordings: &'w Wordings,
    frames: FrameReader,
    tuples: Tuples,
    prompts: Tuples,
    sightings: Sightings,
    documents: u64,
    bytes: u64,
}

/// What the documents say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The strongest finding of any layer.
    pub verdict: Verdict,
    /// Documents read, and their bytes.
    pub documents: u64,
    /// Bytes of text read.
    pub bytes: u64,
    /// Candidates that were tested.
    pub candidates: usize,
    /// Layer A: frames by account, those of no candidate last.
    pub zero_width: Vec<AccountFrames>,
    /// Layer A: what was read.
    pub frames: Frames,
    /// Layer B: subjects, the least likely by chance first.
    pub lexical: Vec<SubjectVotes>,
    /// Layer B: places where a choice stood.
    pub slots: u64,
    /// Layer B: different tuples among them, those of the prompts left out.
    pub tuples: usize,
    /// Layer B: tuples left out because the prompts have them.
    pub tuples_excluded: usize,
    /// Layer C: subjects with a hit.
    pub canaries: Vec<SubjectCanaries>,
    /// p-values of keys that nobody has, in ten equal buckets from 0 to 1.
    pub wrong_keys: [u32; 10],
    /// The smallest of them.
    pub wrong_keys_p_min: f64,
    /// Places and sightings not counted for want of room.
    pub overflow: u64,
}

/// How much was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing beyond chance. Not an acquittal: rewording removes layers A and B.
    NoEvidence,
    /// Something, but not enough to name anybody.
    Weak,
    /// More than chance explains.
    Evidence,
}

/// Layer A's frames of one account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccountFrames {
    /// Candidates with this tag; more than one in a case of 2^-24, none for an unknown account.
    pub accounts: Vec<String>,
    /// The tag, in hexadecimal digits.
    pub tag: String,
    /// The week in the frames.
    pub epoch: u16,
    /// How many frames were found.
    pub frames: u32,
    /// Evidence with two frames in a week in which the account was marked; else weak.
    pub verdict: Verdict,
}

/// Layer B's votes for one subject.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubjectVotes {
    /// The cluster or account.
    pub subject: String,
    /// Tuples, and those that agree with the key.
    #[serde(flatten)]
    pub votes: Votes,
    /// Chance of as many, one-sided.
    pub p: f64,
    /// Its decimal logarithm, which has no smallest value.
    pub p_log10: f64,
    /// After Holm over all tests.
    pub p_holm: f64,
    /// What follows.
    pub verdict: Verdict,
}

/// Layer C's hits of one subject.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubjectCanaries {
    /// The cluster or account.
    pub subject: String,
    /// Week and kind of each canary found.
    pub found: Vec<(u16, Kind)>,
    /// Share of families, the served one included, with as many hits: at least 1/(decoys + 1).
    pub p: f64,
    /// After Holm over all tests.
    pub p_holm: f64,
    /// What follows.
    pub verdict: Verdict,
}

impl<'w> Evidence<'w> {
    /// Nothing read yet.
    #[must_use]
    pub fn new(wordings: &'w Wordings, key: &MasterKey) -> Self {
        Self {
            wordings,
            frames: FrameReader::new(key.zero_width()),
            tuples: Tuples::default(),
            prompts: Tuples::default(),
            sightings: Sightings::default(),
            documents: 0,
            bytes: 0,
        }
    }

    /// Takes in a document.
    pub fn read(&mut self, text: &str) {
        self.documents += 1;
        self.bytes += text.len() as u64;
        self.frames.read(text);
        self.tuples.read(self.wordings, text);
        self.sightings.read(text);
    }

    /// Takes in a prompt that led to the documents: what stands there is nobody's choice of ours.
    pub fn read_prompt(&mut self, text: &str) {
        self.prompts.read(self.wordings, text);
    }

    /// Tests every candidate.
    #[must_use]
    pub fn report(mut self, key: &MasterKey, candidates: &[Candidate]) -> Report {
        let tuples_excluded = self.tuples.exclude(&self.prompts);
        let mut weeks: BTreeMap<&str, BTreeSet<u16>> = BTreeMap::new();
        for candidate in candidates {
            let last = candidate.last_epoch;
            let first = candidate.first_epoch.max(last.saturating_sub(EPOCHS_MAX - 1));
            weeks.entry(candidate.subject()).or_default().extend(first..=last);
        }
        let mut lexical: Vec<SubjectVotes> = weeks
            .keys()
            .map(|subject| {
                let votes = self.tuples.votes(&key.lexical(subject));
                let p_ln = binomial_tail_ln(votes.agreeing, votes.of);
                SubjectVotes {
                    subject: (*subject).to_owned(),
                    votes,
                    p: p_ln.exp(),
                    p_log10: p_ln / std::f64::consts::LN_10,
                    p_holm: 1.0,
                    verdict: Verdict::NoEvidence,
                }
            })
            .collect();
        lexical.sort_by(|a, b| a.p_log10.total_cmp(&b.p_log10));
        let canary_key = key.canary();
        let mut canaries: Vec<SubjectCanaries> = weeks
            .iter()
            .filter_map(|(subject, weeks)| self.canaries(&canary_key, subject, weeks))
            .collect();
        canaries.sort_by(|a, b| a.p.total_cmp(&b.p));

        // Subjects without a canary have p = 1, and are tests all the same.
        let tests = 2 * weeks.len();
        let p_values = (lexical.iter_mut().map(|votes| (votes.p, &mut votes.p_holm)))
            .chain(canaries.iter_mut().map(|hits| (hits.p, &mut hits.p_holm)));
        holm(p_values.collect(), tests);
        for votes in &mut lexical {
            votes.verdict = level(votes.p_holm, LEXICAL_EVIDENCE_P, CANARY_EVIDENCE_P);
        }
        for hits in &mut canaries {
            hits.verdict = level(hits.p_holm, CANARY_EVIDENCE_P, f64::INFINITY);
        }

        let zero_width = accounts(self.frames.frames(), &key.zero_width(), candidates);
        let (wrong_keys, wrong_keys_p_min) = wrong_keys(&self.tuples, key);
        let verdict = (lexical.iter().map(|votes| votes.verdict))
            .chain(canaries.iter().map(|hits| hits.verdict))
            .chain(zero_width.iter().map(|frames| frames.verdict))
            .max()
            .unwrap_or(Verdict::NoEvidence);
        Report {
            verdict,
            documents: self.documents,
            bytes: self.bytes,
            candidates: candidates.len(),
            zero_width,
            frames: self.frames.frames().clone(),
            lexical,
            slots: self.tuples.slots(),
            tuples: self.tuples.len(),
            tuples_excluded,
            canaries,
            wrong_keys,
            wrong_keys_p_min,
            overflow: self.tuples.overflow()
                + self.sightings.overflow()
                + self.frames.frames().overflow,
        }
    }

    fn canaries(&self, key: &Prf, subject: &str, weeks: &BTreeSet<u16>) -> Option<SubjectCanaries> {
        let hits = |decoy: u32| {
            weeks.iter().flat_map(|week| Kind::ALL.map(|kind| (*week, kind))).filter(
                move |(week, kind)| self.sightings.has(&canary(key, subject, *week, *kind, decoy)),
            )
        };
        let found: Vec<(u16, Kind)> = hits(0).collect();
        if found.is_empty() {
            return None;
        }
        let as_good = (1..=DECOYS).filter(|decoy| hits(*decoy).count() >= found.len()).count();
        Some(SubjectCanaries {
            subject: subject.to_owned(),
            found,
            p: (as_good + 1) as f64 / f64::from(DECOYS + 1),
            p_holm: 1.0,
            verdict: Verdict::Weak,
        })
    }
}

fn level(p: f64, evidence: f64, weak: f64) -> Verdict {
    if p < evidence {
        Verdict::Evidence
    } else if p < weak {
        Verdict::Weak
    } else {
        Verdict::NoEvidence
    }
}

fn accounts(frames: &Frames, key: &Prf, candidates: &[Candidate]) -> Vec<AccountFrames> {
    let tagged: Vec<(u32, &Candidate)> = if frames.found.is_empty() {
        Vec::new()
    } else {
        candidates.iter().map(|one| (account_tag(key, &one.account), one)).collect()
    };
    let mut found: Vec<AccountFrames> = frames
        .found
        .iter()
        .map(|(&(tag, epoch), &frames)| {
            let of: Vec<&Candidate> =
                tagged.iter().filter(|(other, _)| *other == tag).map(|(_, one)| *one).collect();
            let marked = of.iter().any(|one| (one.first_epoch..=one.last_epoch).contains(&epoch));
            let accounts: BTreeSet<String> = of.iter().map(|one| one.account.clone()).collect();
            AccountFrames {
                accounts: accounts.into_iter().collect(),
                tag: format!("{tag:06x}"),
                epoch,
                frames,
                verdict: if marked && frames >= AGREEING_MIN {
                    Verdict::Evidence
                } else {
                    Verdict::Weak
                },
            }
        })
        .collect();
    found.sort_by_key(|one| (one.accounts.is_empty(), std::cmp::Reverse(one.frames)));
    found
}

fn wrong_keys(tuples: &Tuples, key: &MasterKey) -> ([u32; 10], f64) {
    let mut buckets = [0; 10];
    let mut least = 1.0_f64;
    if tuples.is_empty() {
        return (buckets, least);
    }
    for index in 0..WRONG_KEYS {
        let votes = tuples.votes(&key.wrong(index));
        let p = binomial_tail_ln(votes.agreeing, votes.of).exp();
        least = least.min(p);
        buckets[((p * 10.0) as usize).min(9)] += 1;
    }
    (buckets, least)
}

/// Writes the adjusted p-value beside each; `tests` were made, those not listed with p = 1.
fn holm(mut p_values: Vec<(f64, &mut f64)>, tests: usize) {
    p_values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut least = 0.0_f64;
    for (rank, (p, adjusted)) in p_values.into_iter().enumerate() {
        least = least.max(p * tests.saturating_sub(rank) as f64).min(1.0);
        *adjusted = least;
    }
}

/// The natural logarithm of the chance that a fair coin shows heads at least `heads` times in `of`
/// throws. Exact up to rounding, relatively better than 1e-10 for a million throws, also where the chance itself is too small for a float.
#[must_use]
pub fn binomial_tail_ln(heads: u64, of: u64) -> f64 {
    if heads == 0 {
        return 0.0;
    }
    if heads > of {
        return f64::NEG_INFINITY;
    }
    if heads <= of / 2 {
        // The coin is fair: at most `heads - 1` heads are at least `of - heads + 1` tails.
        return (-binomial_tail_ln(of - heads + 1, of).exp()).ln_1p();
    }
    // From the middle on the terms only fall.
    let (mut term, mut sum) = (1.0_f64, 1.0_f64);
    for k in heads..of {
        term *= (of - k) as f64 / (k + 1) as f64;
        sum += term;
        if term < sum * 1e-17 {
            break;
        }
    }
    (point_ln(heads, of) + sum.ln()).min(0.0)
}

/// The chance of exactly that many heads, without differences of large numbers (Loader, "Fast and
/// accurate computation of binomial probabilities", 2000).
fn point_ln(heads: u64, of: u64) -> f64 {
    let (k, n) = (heads as f64, of as f64);
    if heads == of {
        return -n * std::f64::consts::LN_2;
    }
    let tails = n - k;
    let excess = (k - tails) / n;
    let deviance = k * excess.ln_1p() + tails * (-excess).ln_1p();
    let errors = stirling_error(of) - stirling_error(heads) - stirling_error(of - heads);
    errors - deviance - 0.5 * (std::f64::consts::TAU * k * tails / n).ln()
}

/// What Stirling's formula leaves out of the logarithm of a factorial.
fn stirling_error(n: u64) -> f64 {
    if n < 64 {
        let x = n as f64;
        let factorial: f64 = (2..=n).map(|k| (k as f64).ln()).sum();
        return factorial - (x * x.ln() - x + 0.5 * (std::f64::consts::TAU * x).ln());
    }
    // The next term is below 1e-15.
    let n = n as f64;
    1.0 / (12.0 * n) - 1.0 / (360.0 * n.powi(3)) + 1.0 / (1260.0 * n.powi(5))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::marker::{Identity, Layers, Marker, Marking};
    use super::*;

    fn key() -> MasterKey {
        MasterKey::new(&[5; 32]).unwrap()
    }

    fn candidates() -> Vec<Candidate> {
        (0..20)
            .map(|at| Candidate {
                account: format!("acc-{at}"),
                cluster: (at < 5).then(|| "cluster-1".to_owned()),
                first_epoch: 2960,
                last_epoch: 2970,
            })
            .collect()
    }

    /// Prose with many contexts: the words between the slots differ.
    fn document(number: usize) -> String {
        let nouns = ["river", "engine", "garden", "market", "letter", "window", "bridge", "doctor"];
        let verbs = ["answer", "carry", "follow", "measure", "notice", "repair", "visit", "write"];
        (0..40)
            .map(|at| {
                let seed = number * 40 + at;
                let (a, b) = (nouns[seed % 8], verbs[seed / 8 % 8]);
                format!(
                    "The {a}{seed}s do not {b} it often in the end, for example the {b}s of \
                     {a}s help improve this, and that is the {b}, as they say to John Doe. "
                )
                // Letters instead of digits, so that each number is another word.
                .chars()
                .map(|c| c.to_digit(10).map_or(c, |digit| char::from(b'a' + digit as u8)))
                .collect::<String>()
            })
            .collect()
    }

    fn marked(layers: Layers) -> String {
        let wordings = Arc::new(Wordings::builtin().unwrap());
        let identity = Identity { account: "acc-3", subject: "cluster-1", epoch: 2965 };
        let marking = Arc::new(Marking::new(layers, &key(), &wordings, identity, []));
        let mut marker = Marker::new(marking);
        let mut out = String::new();
        marker.push(&document(0), &mut out);
        marker.finish(&mut out);
        out
    }

    fn report(text: &str) -> Report {
        let wordings = Wordings::builtin().unwrap();
        let mut evidence = Evidence::new(&wordings, &key());
        evidence.read(text);
        evidence.report(&key(), &candidates())
    }

    #[test]
    fn each_layer_names_whom_it_marked() {
        let none = Layers { zero_width: false, lexical: false, canary: false };
        let a = report(&marked(Layers { zero_width: true, ..none }));
        assert_eq!(a.verdict, Verdict::Evidence);
        assert_eq!(a.zero_width[0].accounts, ["acc-3"]);
        let b = report(&marked(Layers { lexical: true, ..none }));
        assert_eq!(b.verdict, Verdict::Evidence, "{:?}", b.lexical[0]);
        assert_eq!(b.lexical[0].subject, "cluster-1");
        assert_eq!(b.lexical[1].verdict, Verdict::NoEvidence);
        assert!(b.zero_width.is_empty() && b.canaries.is_empty());
        let c = report(&marked(Layers { canary: true, ..none }));
        assert_eq!(c.canaries[0].found, [(2965, Kind::JohnDoe)]);
        assert_eq!((c.canaries[0].p, c.verdict), (1e-4, Verdict::Weak));
    }

    #[test]
    fn unmarked_text_is_no_evidence() {
        let report = report(&document(0));
        assert_eq!(report.verdict, Verdict::NoEvidence);
        assert_eq!(report.lexical.len(), 16);
        assert_eq!(report.wrong_keys.iter().sum::<u32>(), WRONG_KEYS);
        // So few tuples have few different p-values, so that single buckets may be empty.
        let lower: u32 = report.wrong_keys[..5].iter().sum();
        assert!((400..600).contains(&lower), "{:?}", report.wrong_keys);
    }

    #[test]
    fn what_the_prompts_say_does_not_count() {
        let wordings = Wordings::builtin().unwrap();
        let text = marked(Layers { zero_width: false, lexical: true, canary: false });
        let mut evidence = Evidence::new(&wordings, &key());
        evidence.read(&text);
        evidence.read_prompt(&document(0));
        let report = evidence.report(&key(), &candidates());
        assert_eq!((report.tuples, report.verdict), (0, Verdict::NoEvidence));
        assert!(report.tuples_excluded > 30);
    }

    #[test]
    fn no_candidates_and_no_text_are_fine() {
        let wordings = Wordings::builtin().unwrap();
        let report = Evidence::new(&wordings, &key()).report(&key(), &[]);
        assert_eq!((report.verdict, report.wrong_keys), (Verdict::NoEvidence, [0; 10]));
    }

    #[test]
    fn tails_are_exact() {
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-11 * b.abs().max(1e-3), "{a} {b}");
        close(binomial_tail_ln(0, 0), 0.0);
        close(binomial_tail_ln(1, 1).exp(), 0.5);
        close(binomial_tail_ln(8, 10).exp(), 56.0 / 1024.0);
        close(binomial_tail_ln(2, 10).exp(), 1013.0 / 1024.0);
        close(binomial_tail_ln(5, 10).exp(), 638.0 / 1024.0);
        // All heads: 2^-n, far below the smallest float.
        for n in [10, 63, 64, 100, 1000, 100_000] {
            close(binomial_tail_ln(n, n), -(n as f64) * std::f64::consts::LN_2);
        }
        // One of two halves of an odd number of throws.
        close(binomial_tail_ln(500_001, 1_000_001).exp(), 0.5);
        assert_eq!(binomial_tail_ln(3, 2), f64::NEG_INFINITY);
    }

    #[test]
    fn holm_steps_down() {
        let mut pairs = [0.01, 0.04, 0.02, 0.5].map(|p| (p, 0.0));
        holm(pairs.iter_mut().map(|(p, adjusted)| (*p, adjusted)).collect(), 4);
        let adjusted = pairs.map(|(_, adjusted)| adjusted);
        assert_eq!(adjusted, [0.04, 0.08, 0.06, 0.5]);
    }

    #[test]
    fn candidates_are_read_strictly() {
        let read = |line: &str| serde_json::from_str::<Candidate>(line);
        let line = r#"{"account":"a","cluster":null,"first_epoch":1,"last_epoch":2}"#;
        assert_eq!(read(line).unwrap().subject(), "a");
        assert!(read(&line.replace("cluster", "clutter")).is_err());
    }
}
