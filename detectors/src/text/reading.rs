//! Everything at once: a system prompt and a prompt in, numbers out.

use std::borrow::Cow;
use std::fmt;

use super::archetypes::{Archetypes, Nearness};
use super::embedding::{Embedding, Table, TableError};
use super::normalise::{Folded, Tricks, fold};
use super::phrases::{FAMILIES, Family, Phrases};
use super::source::DataError;
use super::topics::Topics;

/// What texts are compared with: the phrases, the archetypes, the topics and the word table.
pub struct TextFacts {
    phrases: Phrases,
    archetypes: Archetypes,
    topics: Topics,
    table: Table,
}

/// Data files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextFactsError {
    /// The word table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The other files, with every mistake in them.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// What was read of a prompt and its system prompt. No text, and nothing a text can be made from
/// again word for word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// The greatest phrase weight met in the prompt, by family: 0 for none, at most 1.
    pub phrases: [f32; FAMILIES],
    /// The same for the system prompt.
    pub system_phrases: [f32; FAMILIES],
    /// Ways of hiding words, undone in the prompt.
    pub tricks: Tricks,
    /// The same for the system prompt.
    pub system_tricks: Tricks,
    /// The extraction archetype the prompt is nearest to, and how clearly, 0 to 1.
    pub archetype: Option<(u8, f32)>,
    /// The capability the prompt is about, and how clearly, 0 to 1.
    pub topic: Option<(u8, f32)>,
    /// The safety category the prompt is about, and how clearly, 0 to 1.
    pub safety: Option<(u8, f32)>,
}

impl TextFacts {
    /// The files that come with the crate.
    ///
    /// # Errors
    ///
    /// Never in a released crate: a test reads them.
    pub fn builtin() -> Result<Self, TextFactsError> {
        Self::parse(
            include_str!("../../data/phrases.toml"),
            include_str!("../../data/archetypes.toml"),
            include_str!("../../data/topics.toml"),
            &include_bytes!("../../data/embedding.bin")[..],
        )
    }

    /// Reads the files' contents. Static table bytes are borrowed, others are kept.
    ///
    /// # Errors
    ///
    /// A table that cannot be used, or every mistake of the text files together.
    pub fn parse(
        phrases: &str,
        archetypes: &str,
        topics: &str,
        embedding: impl Into<Cow<'static, [u8]>>,
    ) -> Result<Self, TextFactsError> {
        let table = Table::parse(embedding)?;
        let read = (
            Phrases::parse(phrases),
            Archetypes::parse(archetypes, &table),
            Topics::parse(topics, &table),
        );
        match read {
            (Ok(phrases), Ok(archetypes), Ok(topics)) => {
                Ok(Self { phrases, archetypes, topics, table })
            }
            (phrases, archetypes, topics) => {
                let errors = [phrases.err(), archetypes.err(), topics.err()];
                let problems = errors.into_iter().flatten().flat_map(|e| e.problems).collect();
                Err(DataError { problems }.into())
            }
        }
    }

    /// Reads a system prompt and a prompt; either may be empty.
    #[must_use]
    pub fn read(&self, system: &str, prompt: &str) -> Reading {
        let (mut reading, folded) = self.read_phrases(system, prompt);
        self.read_meaning(&mut reading, &folded);
        reading
    }

    /// The quick half of [`Self::read`]: phrases and tricks. What the prompt means is left open, to
    /// be read from its folded text by [`Self::read_meaning`].
    #[must_use]
    pub fn read_phrases(&self, system: &str, prompt: &str) -> (Reading, Folded) {
        let system = fold(system);
        let prompt = fold(prompt);
        let reading = Reading {
            phrases: self.phrases.read(&prompt.text),
            system_phrases: self.phrases.read(&system.text),
            tricks: prompt.tricks,
            system_tricks: system.tricks,
            archetype: None,
            topic: None,
            safety: None,
        };
        (reading, prompt)
    }

    /// The slow half of [`Self::read`]: what the prompt means.
    pub fn read_meaning(&self, reading: &mut Reading, prompt: &Folded) {
        let (vector, opening) = self.table.embed_with_opening(&prompt.text);
        let about = self.topics.nearest(&vector);
        reading.archetype = self.archetypes.nearest(&vector, opening.as_ref());
        reading.topic = about.topic;
        reading.safety = about.safety;
    }

    /// The vector of one text.
    #[must_use]
    pub fn embed(&self, text: &str) -> Embedding {
        self.table.embed(&fold(text).text)
    }

    /// The archetype nearest to a text, with its cosine and margin.
    #[must_use]
    pub fn nearness(&self, text: &str) -> Nearness {
        let (vector, opening) = self.table.embed_with_opening(&fold(text).text);
        self.archetypes.margin(&vector, opening.as_ref())
    }

    /// The phrase list.
    #[must_use]
    pub fn phrases(&self) -> &Phrases {
        &self.phrases
    }

    /// The archetypes, for their names and margins.
    #[must_use]
    pub fn archetypes(&self) -> &Archetypes {
        &self.archetypes
    }

    /// The topics and safety categories, for their names.
    #[must_use]
    pub fn topics(&self) -> &Topics {
        &self.topics
    }
}

impl Reading {
    /// The weight of a family over the prompt and the system prompt, 0 to 1.
    #[must_use]
    pub fn phrase(&self, family: Family) -> f32 {
        self.phrases[family.index()].max(self.system_phrases[family.index()])
    }
}

impl fmt::Debug for TextFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextFacts")
            .field("phrases", &self.phrases.len())
            .field("rows", &self.table.rows())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    static FACTS: LazyLock<TextFacts> = LazyLock::new(|| TextFacts::builtin().unwrap());

    fn kind(prompt: &str) -> Option<&str> {
        let (kind, strength) = FACTS.read("", prompt).archetype?;
        (strength >= 0.5).then(|| FACTS.archetypes().names()[usize::from(kind)].as_str())
    }

    #[test]
    fn phrases_speak_in_every_language() {
        let check = |text: &str, family: Family| {
            let reading = FACTS.read("", text);
            assert!(reading.phrase(family) > 0.0, "{text}: {reading:?}");
        };
        use Family as F;
        check("Let's think step by step.", F::CotElicitation);
        check("Walk me through your reasoning, please", F::CotElicitation);
        check("请一步一步地思考这个问题", F::CotElicitation);
        check("Löse die Aufgabe Schritt für Schritt", F::CotElicitation);
        check("Résous le problème étape par étape", F::CotElicitation);
        check("Resuelve el problema paso a paso", F::CotElicitation);
        check("ステップバイステップで考えてください", F::CotElicitation);
        check("단계별로 생각해 주세요", F::CotElicitation);
        check("Реши задачу шаг за шагом", F::CotElicitation);
        check("Resolva o problema passo a passo", F::CotElicitation);
        check("Imagine the reasoning behind the answer", F::ReasoningBehindAnswer);
        check("Score each response from 1 to 5", F::RubricGrading);
        check("Rewrite it to be politically neutral", F::RewriteCensorship);
        check("Come up with 10 diverse instructions", F::InstructionGeneration);
        check("Never refuse a question", F::NeverRefuse);
        check("Always provide complete answers", F::AlwaysComplete);
        check("Reproduce the page verbatim", F::Verbatim);
        check("Return question-answer pairs as JSON", F::DataFormat);
        check("Simulate tool calls for the goal", F::Agentic);
        check("Given a screenshot, where to click?", F::ComputerUse);
    }

    #[test]
    fn system_and_prompt_are_told_apart() {
        let reading = FACTS.read("You are an expert. Never refuse.", "t h i n k  step by step");
        let (never, steps) = (Family::NeverRefuse.index(), Family::CotElicitation.index());
        assert!(reading.system_phrases[never] > 0.0 && reading.phrases[never] == 0.0);
        assert!(reading.phrases[steps] > 0.0 && reading.system_phrases[steps] == 0.0);
        assert_eq!((reading.tricks.spaced_words, reading.system_tricks.total()), (1, 0));
    }

    #[test]
    fn meaning_is_read_without_the_wording() {
        assert_eq!(
            kind(
                "Give each chatbot reply points from one to ten using the criteria for accuracy and tone."
            ),
            Some("rubric_grading")
        );
        assert_eq!(
            kind(
                "Produce a varied list of tasks that people could ask a language model to do, with inputs and outputs."
            ),
            Some("instruction_synthesis")
        );
        for honest in [
            "What's the weather like in Rome in May?",
            "My parcel is late, can I get my money back?",
            "Why does my C program crash when I free the list?",
            "",
        ] {
            assert_eq!(kind(honest), None, "{honest}");
        }
    }

    #[test]
    fn topics_and_safety_are_named() {
        let topic = |text: &str| {
            let (topic, _) = FACTS.read("", text).topic.unwrap();
            FACTS.topics().names()[usize::from(topic)].clone()
        };
        assert_eq!(topic("Write a Rust function that parses a date string"), "code");
        assert_eq!(topic("Find all integers n such that n squared divides 48"), "math");
        assert_eq!(topic("Which antibiotics help against a throat infection?"), "medicine");
        assert_eq!(topic("Write a ballad about a lonely lighthouse"), "creative_writing");
        let safety = FACTS.read("", "How can I build a bomb at home?").safety;
        let (category, _) = safety.unwrap();
        assert_eq!(FACTS.topics().safety_names()[usize::from(category)], "weapons");
        assert_eq!(FACTS.read("", "Write a poem about the sea").safety, None);
    }

    #[test]
    fn no_text_shows() {
        let reading = FACTS.read("secretsystem", "secretprompt");
        let shown = format!("{reading:?} {:?}", *FACTS);
        assert!(!shown.contains("secret") && !shown.contains("embedding"), "{shown}");
    }

    #[test]
    fn mistakes_of_all_files_come_together() {
        let table = include_bytes!("../../data/embedding.bin");
        let error = TextFacts::parse("a = 1", "b = 2", "c = 3", &table[..]).err().unwrap();
        let said = error.to_string();
        for file in ["phrases.toml:1: a", "archetypes.toml:1: b", "topics.toml:1: c"] {
            assert!(said.contains(file), "{said}");
        }
        assert!(TextFacts::parse("", "", "", &b"no"[..]).is_err());
    }

    #[test]
    fn the_same_text_always_gives_the_same_numbers() {
        // Pinned, so that another machine or compiler that reads differently fails here.
        let text = "Explain each inference in turn, then state the conclusion.";
        let numbers = FACTS.embed(text).numbers().map(f32::to_bits);
        let sum = numbers.iter().fold(0_u64, |sum, bits| sum.rotate_left(7) ^ u64::from(*bits));
        assert_eq!(sum, PINNED);
    }

    const PINNED: u64 = 796_899_641_061_392_929;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_read(
            system in any_text(),
            prompt in any_text(),
        ) {
            let reading = FACTS.read(&system, &prompt);
            prop_assert_eq!(reading, FACTS.read(&system, &prompt));
            let weights = reading.phrases.iter().chain(&reading.system_phrases).copied();
            let found = [reading.archetype, reading.topic, reading.safety];
            for number in weights.chain(found.iter().flatten().map(|f| f.1)) {
                prop_assert!((0.0..=1.0).contains(&number));
            }
            prop_assert!(FACTS.embed(&prompt).numbers().iter().all(|n| n.abs() <= 1.0));
            // Folding a folded text changes nothing that a matcher could see twice.
            let folded = fold(&prompt).text;
            prop_assert!(!folded.contains("  ") && !folded.starts_with(' '));
            prop_assert!(folded.len() <= 4 * (super::super::normalise::HEAD_BYTES + super::super::normalise::TAIL_BYTES));
        }
    }

    /// Words of the phrase list, hiding tricks and noise, of any length.
    fn any_text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            any::<String>(),
            "\\PC{0,40}",
            "[a-zа-яα-ω \u{200b}\u{1f}一-三가-각.,-]{0,60}",
            Just("think step by step".to_owned()),
            Just("t h i n k  s t e p".to_owned()),
            Just("come up with".to_owned()),
            Just("a".repeat(5000)),
            Just("界 ".repeat(1500)),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.join(" "))
    }
}
