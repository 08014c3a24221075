//! What a prompt is about: one of twelve capabilities, and perhaps a safety category.
//!
//! Sees: the capability whose descriptions (`data/topics.toml`) are nearest to a prompt, and the
//! safety category where one is nearer than every capability.
//! Why: a harvester covers the capabilities evenly and in order (T-DIST-001, T-DIST-016) or sweeps
//! the refusal categories (T-DIST-015); the spread of topics over an account shows it.
//! Wrong when: a prompt has two topics, or none; a harmless use of a harmful word ("kill a
//! process") is near a safety category. Single labels are noisy; their distribution is less so.
//! Source: descriptions written for this project, at the level of categories.

use super::archetypes::examples;
use super::embedding::{Embedding, Table};
use super::source::{DataError, Source};

/// How many capability categories a file must have: what coverage is measured against.
pub const TOPICS: usize = 12;
/// The most safety categories a file may have.
pub const SAFETY_CATEGORIES_MAX: usize = 16;
const SAFETY_CATEGORIES_MIN: usize = 8;
const EXAMPLES_MIN: usize = 5;

/// The categories, embedded.
pub struct Topics {
    topics: Group,
    safety: Group,
    cosine_min: f32,
    margin_full: f32,
    safety_margin_none: f32,
    safety_margin_full: f32,
}

struct Group {
    names: Vec<String>,
    examples: Vec<(u8, Embedding)>,
}

impl Topics {
    /// Reads `topics.toml` and embeds its examples.
    ///
    /// # Errors
    ///
    /// Every mistake of the file, with line and key.
    pub fn parse(text: &str, table: &Table) -> Result<Self, DataError> {
        let (mut source, root) = Source::open("topics.toml", text);
        source.only(
            &root,
            &[
                "cosine_min",
                "margin_full",
                "safety_margin_none",
                "safety_margin_full",
                "topic",
                "safety",
            ],
        );
        let cosine_min = source.number(&root, "cosine_min", 0.0, 1.0);
        let margin_full = source.number(&root, "margin_full", 0.001, 1.0);
        let safety_margin_none = source.number(&root, "safety_margin_none", -1.0, 1.0);
        let safety_margin_full = source.number(&root, "safety_margin_full", -1.0, 1.0);
        if safety_margin_full <= safety_margin_none {
            source.problem(0, "safety_margin_full", "not above safety_margin_none");
        }
        let topics = Group::read(&mut source, &root, "topic", table);
        if topics.names.len() != TOPICS {
            source.problem(0, "topic", format!("{} instead of {TOPICS}", topics.names.len()));
        }
        let safety = Group::read(&mut source, &root, "safety", table);
        let count = safety.names.len();
        if !(SAFETY_CATEGORIES_MIN..=SAFETY_CATEGORIES_MAX).contains(&count) {
            let range = format!("{SAFETY_CATEGORIES_MIN} to {SAFETY_CATEGORIES_MAX}");
            source.problem(0, "safety", format!("{count} instead of {range}"));
        }
        let topics = Self {
            topics,
            safety,
            cosine_min,
            margin_full,
            safety_margin_none,
            safety_margin_full,
        };
        source.close(topics)
    }

    /// The capabilities' names, by index.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.topics.names
    }

    /// The safety categories' names, by index.
    #[must_use]
    pub fn safety_names(&self) -> &[String] {
        &self.safety.names
    }

    /// What a text is about.
    #[must_use]
    pub fn nearest(&self, text: &Embedding) -> Nearest {
        let (topic, next) = self.topics.best_two(text);
        let (safety, _) = self.safety.best_two(text);
        let clear = ((topic.1 - next) / self.margin_full).clamp(0.0, 1.0);
        let margin = safety.1 - topic.1.max(0.0);
        let width = self.safety_margin_full - self.safety_margin_none;
        let strength = ((margin - self.safety_margin_none) / width).min(1.0);
        Nearest {
            topic: (topic.1 >= self.cosine_min).then_some((topic.0, clear)),
            safety: (safety.1 >= self.cosine_min && strength > 0.0).then_some((safety.0, strength)),
        }
    }
}

/// What a text is about; `None` where no description is near.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    /// The nearest capability's index, and how clearly it is nearer than the next one, 0 to 1.
    pub topic: Option<(u8, f32)>,
    /// The nearest safety category's index, and how clearly it is that rather than any capability,
    /// 0 to 1; `None` too where a capability is nearer.
    pub safety: Option<(u8, f32)>,
}

impl Group {
    fn read<'a>(
        source: &mut Source<'a>,
        root: &toml::de::DeTable<'a>,
        key: &str,
        table: &Table,
    ) -> Self {
        let (names, examples) = examples(source, root, key, table, EXAMPLES_MIN);
        Self { names, examples }
    }

    /// The nearest category with its cosine, and the cosine of the nearest other category.
    fn best_two(&self, text: &Embedding) -> ((u8, f32), f32) {
        let (mut best, mut next) = ((0, -1.0_f32), -1.0_f32);
        for (index, example) in &self.examples {
            let cosine = example.cosine(text);
            if *index == best.0 {
                best.1 = best.1.max(cosine);
            } else if cosine > best.1 {
                next = best.1;
                best = (*index, cosine);
            } else {
                next = next.max(cosine);
            }
        }
        (best, next)
    }
}

#[cfg(test)]
mod tests {
    use super::super::embedding::tests::table_of;
    use super::*;

    fn file(topics: usize) -> String {
        let group = |key: &str, word: &str| {
            let mut examples = String::new();
            for n in 1..=5 {
                examples.push_str(&format!("\"{}\", ", vec![word; n].join(" ")));
            }
            format!("[[{key}]]\nname = \"{word}\"\nexamples = [{examples}]\n")
        };
        let mut text = String::from(
            "cosine_min = 0.3\nmargin_full = 0.5\nsafety_margin_none = 0.0\nsafety_margin_full = 0.5\n",
        );
        for n in 0..topics {
            text.push_str(&group("topic", &format!("t{n}")));
        }
        for n in 0..8 {
            text.push_str(&group("safety", &format!("s{n}")));
        }
        text
    }

    fn table() -> Table {
        let words: Vec<String> =
            (0..12).map(|n| format!("t{n}")).chain((0..8).map(|n| format!("s{n}"))).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).chain(["other"]).collect();
        Table::parse(table_of(&words)).unwrap()
    }

    #[test]
    fn the_nearest_categories_are_named() {
        let table = table();
        let topics = Topics::parse(&file(12), &table).unwrap();
        let check = |text: &str, topic: Option<u8>, safety: Option<u8>| {
            let near = topics.nearest(&table.embed(text));
            assert_eq!(near.topic.map(|t| t.0), topic, "{text}");
            assert_eq!(near.safety.map(|s| s.0), safety, "{text}");
        };
        check("t3 t3 other", Some(3), None);
        check("s2 s2 other", None, Some(2));
        check("t3 t3 s2", Some(3), None);
        check("t1 s7 s7", Some(1), Some(7));
        check("other", None, None);
        check("", None, None);
        let between = topics.nearest(&table.embed("t3 t4")).topic.unwrap();
        assert!(between.1 < 0.3, "{between:?}");
    }

    #[test]
    fn a_file_needs_all_its_categories() {
        let said = Topics::parse(&file(11), &table()).err().unwrap().to_string();
        assert!(said.contains("topic: 11 instead of 12"), "{said}");
        assert!(Topics::parse("", &table()).is_err());
    }
}
