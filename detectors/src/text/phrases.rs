//! Phrases that extraction pipelines use, found literally in a folded text.
//!
//! Sees: wordings from `data/phrases.toml`, in families, in nine languages, at word boundaries;
//! a phrase may have parts with other words between them ("come up with ... instructions").
//! Why: most pipelines are published and reused with their prompts unchanged (T-DIST-001,
//! T-DIST-011), and a literal match costs microseconds and explains itself.
//! Wrong when: an honest prompt uses the same words ("think step by step" is common advice), a
//! grader or a synthetic-data team is a customer in good standing, the wording is paraphrased (see
//! `archetypes`). One match is a weak sign; its rate over an account is what counts.
//! Source: wordings written for this project after the techniques' published descriptions.

use aho_corasick::AhoCorasick;

use super::normalise::fold;
use super::source::{DataError, Source};

/// How many families there are.
pub const FAMILIES: usize = Family::ALL.len();
/// Bytes that may stand between the parts of a phrase.
const GAP_BYTES_MAX: usize = 90;
/// A phrase of at least so many words is also looked for without its spaces.
const RUN_TOGETHER_WORDS_MIN: usize = 3;

/// What a phrase asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Reasoning spelt out before the answer.
    CotElicitation,
    /// The reasoning that might have led to an answer already given.
    ReasoningBehindAnswer,
    /// A score or preference by rubric, as reward models are trained on.
    RubricGrading,
    /// An answer rewritten to be neutral or to leave out what is sensitive.
    RewriteCensorship,
    /// New instructions, tasks, personas or harder prompts.
    InstructionGeneration,
    /// Orders never to decline.
    NeverRefuse,
    /// Orders always to answer in full.
    AlwaysComplete,
    /// Text reproduced word for word.
    Verbatim,
    /// Training data in a fixed format.
    DataFormat,
    /// Trajectories of tool use.
    Agentic,
    /// Trajectories of screens, clicks and keys.
    ComputerUse,
}

impl Family {
    /// Every family; a family's place here is its index in a reading.
    pub const ALL: [Self; 11] = [
        Self::CotElicitation,
        Self::ReasoningBehindAnswer,
        Self::RubricGrading,
        Self::RewriteCensorship,
        Self::InstructionGeneration,
        Self::NeverRefuse,
        Self::AlwaysComplete,
        Self::Verbatim,
        Self::DataFormat,
        Self::Agentic,
        Self::ComputerUse,
    ];

    /// The name used in data files, findings and policies.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CotElicitation => "cot_elicitation",
            Self::ReasoningBehindAnswer => "reasoning_behind_answer",
            Self::RubricGrading => "rubric_grading",
            Self::RewriteCensorship => "rewrite_censorship",
            Self::InstructionGeneration => "instruction_generation",
            Self::NeverRefuse => "never_refuse",
            Self::AlwaysComplete => "always_complete",
            Self::Verbatim => "verbatim",
            Self::DataFormat => "data_format",
            Self::Agentic => "agentic",
            Self::ComputerUse => "computer_use",
        }
    }

    /// The place in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The phrases, ready for matching.
pub struct Phrases {
    automaton: AhoCorasick,
    /// One for each pattern of the automaton.
    parts: Vec<Part>,
    count: usize,
}

struct Part {
    family: u8,
    weight: f32,
    /// Whether the pattern's first and last characters must not continue a word.
    bounded: (bool, bool),
    /// Whether the part before, at the place before, must have been found.
    follows: bool,
    /// Whether the phrase is complete with this part.
    last: bool,
}

impl Phrases {
    /// Reads `phrases.toml`.
    ///
    /// # Errors
    ///
    /// Every mistake of the file, with line and key.
    pub fn parse(text: &str) -> Result<Self, DataError> {
        let (mut source, root) = Source::open("phrases.toml", text);
        source.only(&root, &["phrase"]);
        let mut parts = Vec::new();
        let mut patterns: Vec<String> = Vec::new();
        let mut seen: Vec<(String, usize)> = Vec::new();
        let mut count = 0;
        for entry in source.tables(&root, "phrase") {
            source.only(entry.value, &["family", "language", "weight", "texts"]);
            let family = source.string(entry.value, entry.at, "family");
            let Some(index) = Family::ALL.iter().position(|f| f.name() == family.value) else {
                source.problem(family.at, "family", format!("unknown family {:?}", family.value));
                continue;
            };
            let language = source.string(entry.value, entry.at, "language");
            if language.value.len() != 2 {
                source.problem(language.at, "language", "not a two-letter code");
            }
            let weight = source.number_at(entry.value, entry.at, "weight", 0.01, 1.0);
            for phrase in source.strings(entry.value, entry.at, "texts", 1) {
                let folded: Vec<String> =
                    phrase.value.split("...").map(|p| fold(p.trim()).text).collect();
                if folded.iter().any(String::is_empty) {
                    source.problem(phrase.at, "texts", "nothing left after folding");
                    continue;
                }
                let key = (folded.join(" ... "), index);
                if seen.contains(&key) {
                    source.problem(phrase.at, "texts", "the same as an earlier phrase");
                    continue;
                }
                seen.push(key);
                count += 1;
                let family = u8::try_from(index).unwrap_or(u8::MAX);
                let whole = folded.len() == 1;
                if whole && folded[0].split(' ').count() >= RUN_TOGETHER_WORDS_MIN {
                    let run: String = folded[0].split(' ').collect();
                    parts.push(Part::new(&run, family, weight, false, true));
                    patterns.push(run);
                }
                let last = folded.len() - 1;
                for (at, pattern) in folded.into_iter().enumerate() {
                    parts.push(Part::new(&pattern, family, weight, at > 0, at == last));
                    patterns.push(pattern);
                }
            }
        }
        let automaton = AhoCorasick::new(&patterns);
        match automaton {
            Ok(automaton) => source.close(Self { automaton, parts, count }),
            Err(error) => {
                source.problem(0, "phrase", error.to_string());
                Err(source.failed())
            }
        }
    }

    /// How many phrases there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The greatest weight met for each family, 0 where none was, in a text that was folded.
    #[must_use]
    pub fn read(&self, folded: &str) -> [f32; FAMILIES] {
        let mut weights = [0.0_f32; FAMILIES];
        // Where the chain up to each part last ended; 0 for nowhere, since no match ends there.
        let mut ends: Vec<u32> = Vec::new();
        for found in self.automaton.find_overlapping_iter(folded) {
            let id = found.pattern().as_usize();
            let part = &self.parts[id];
            if !part.stands_alone(folded, found.start(), found.end()) {
                continue;
            }
            if part.follows {
                let before = ends.get(id - 1).map_or(0, |&end| end as usize);
                if before == 0 || found.start() < before || found.start() - before > GAP_BYTES_MAX {
                    continue;
                }
            }
            if part.last {
                let weight = &mut weights[usize::from(part.family)];
                *weight = weight.max(part.weight);
            } else {
                ends.resize(self.parts.len(), 0);
                ends[id] = u32::try_from(found.end()).unwrap_or(u32::MAX);
            }
        }
        weights
    }
}

impl Part {
    fn new(pattern: &str, family: u8, weight: f32, follows: bool, last: bool) -> Self {
        let bounded = (
            pattern.chars().next().is_some_and(parts_words),
            // Korean glues particles to the end of a word.
            pattern.chars().next_back().is_some_and(|c| parts_words(c) && !is_hangul(c)),
        );
        Self { family, weight, bounded, follows, last }
    }

    fn stands_alone(&self, text: &str, start: usize, end: usize) -> bool {
        let continued = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        !(self.bounded.0 && continued(text[..start].chars().next_back())
            || self.bounded.1 && continued(text[end..].chars().next()))
    }
}

/// Whether a letter's script writes spaces between words.
fn parts_words(c: char) -> bool {
    c.is_alphanumeric()
        && !matches!(c, '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
            | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
            | '\u{20000}'..='\u{3ffff}')
}

fn is_hangul(c: char) -> bool {
    matches!(c, '\u{ac00}'..='\u{d7a3}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        [[phrase]]
        family = "cot_elicitation"
        language = "en"
        weight = 0.5
        texts = ["think step by step", "Schritt für Schritt"]
        [[phrase]]
        family = "instruction_generation"
        language = "en"
        weight = 0.75
        texts = ["come up with ... instructions"]
        [[phrase]]
        family = "cot_elicitation"
        language = "zh"
        weight = 0.25
        texts = ["一步一步"]
    "#;

    fn check(text: &str, cot: f32, instructions: f32) {
        let weights = Phrases::parse(SMALL).unwrap().read(&fold(text).text);
        let mut expected = [0.0; FAMILIES];
        expected[Family::CotElicitation.index()] = cot;
        expected[Family::InstructionGeneration.index()] = instructions;
        assert_eq!(weights, expected, "{text}");
    }

    #[test]
    fn phrases_are_found_as_words() {
        check("Please think step-by-step.", 0.5, 0.0);
        check("rethink step by step", 0.0, 0.0);
        check("think step by stepping", 0.0, 0.0);
        check("SCHRITT FUR SCHRITT", 0.5, 0.0);
        check("请一步一步思考", 0.25, 0.0);
        check("t h i n k s t e p b y s t e p", 0.5, 0.0);
        check("t h i n k  s t e p  b y  s t e p", 0.5, 0.0);
        check("Come up with 20 diverse instructions", 0.0, 0.75);
        check("instructions: come up with a name", 0.0, 0.0);
        check(&format!("come up with {} instructions", "so ".repeat(40)), 0.0, 0.0);
        check("", 0.0, 0.0);
    }

    #[test]
    fn mistakes_are_reported_together() {
        let text = r#"
            [[phrase]]
            family = "cot"
            [[phrase]]
            family = "verbatim"
            language = "english"
            weight = 2
            texts = ["a", "A", "..."]
        "#;
        let said = Phrases::parse(text).err().unwrap().to_string();
        assert_eq!(said.lines().count(), 5, "{said}");
        assert!(said.contains("phrases.toml:3: family: unknown family \"cot\""), "{said}");
    }

    #[test]
    fn families_have_their_places() {
        for (at, family) in Family::ALL.into_iter().enumerate() {
            assert_eq!(family.index(), at);
        }
    }
}
