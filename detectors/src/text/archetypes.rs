//! Prompts that mean what extraction prompts mean, whatever their wording.
//!
//! Sees: how much nearer a prompt's vector is to example wordings of an extraction kind
//! (`data/archetypes.toml`) than to wordings of honest use.
//! Why: a reworded pipeline escapes the phrase list and keeps its meaning (T-DIST-009, T-DIST-001).
//! Wrong when: graders, synthetic-data teams and tutors ask the same for honest ends; a prompt that
//! is mostly its own data hides the instruction; a pipeline sends bare questions; the text is not
//! English. Nearness to fixed examples misses more pipelines than it finds: gather it over an
//! account.
//! Source: examples written for this project; thresholds by `examples/text_compare.rs`.

use super::embedding::{Embedding, Table};
use super::normalise::fold;
use super::source::{DataError, Source};

/// The most kinds a file may have; a kind's index fits a byte.
pub const KINDS_MAX: usize = 64;
/// Fewer examples would make a kind one person's wording.
const EXAMPLES_MIN: usize = 6;
const NEAREST: usize = 3;

/// The archetypes, embedded.
pub struct Archetypes {
    names: Vec<String>,
    /// Each kind's examples.
    kinds: Vec<Vec<Embedding>>,
    contrast: Vec<Embedding>,
    cosine_min: f32,
    margin_none: f32,
    margin_full: f32,
}

impl Archetypes {
    /// Reads `archetypes.toml` and embeds its examples.
    ///
    /// # Errors
    ///
    /// Every mistake of the file, with line and key.
    pub fn parse(text: &str, table: &Table) -> Result<Self, DataError> {
        let (mut source, root) = Source::open("archetypes.toml", text);
        source.only(&root, &["cosine_min", "margin_none", "margin_full", "kind", "contrast"]);
        let cosine_min = source.number(&root, "cosine_min", 0.0, 1.0);
        let margin_none = source.number(&root, "margin_none", -1.0, 1.0);
        let margin_full = source.number(&root, "margin_full", -1.0, 1.0);
        if margin_full <= margin_none {
            source.problem(0, "margin_full", "not above margin_none");
        }
        let (names, examples) = examples(&mut source, &root, "kind", table, EXAMPLES_MIN);
        let (_, contrast) = self::examples(&mut source, &root, "contrast", table, EXAMPLES_MIN);
        let contrast = contrast.into_iter().map(|(_, e)| e).collect();
        let mut kinds = vec![Vec::new(); names.len()];
        for (kind, example) in examples {
            kinds[usize::from(kind)].push(example);
        }
        source.close(Self { names, kinds, contrast, cosine_min, margin_none, margin_full })
    }

    /// The kinds' names; a kind's place here is its index in a reading.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The kind whose examples are nearest to a text, and how clearly it is that kind rather than
    /// honest use: 0 to 1, with 0.5 at the threshold that the data file was calibrated for.
    #[must_use]
    pub fn nearest(&self, text: &Embedding, opening: Option<&Embedding>) -> Option<(u8, f32)> {
        let near = self.margin(text, opening);
        let strength = (near.margin - self.margin_none) / (self.margin_full - self.margin_none);
        (near.cosine >= self.cosine_min && strength > 0.0).then(|| (near.kind, strength.min(1.0)))
    }

    /// The nearest kind, with what its strength is made of: of the whole text or of its opening,
    /// whichever is clearer.
    #[must_use]
    pub fn margin(&self, text: &Embedding, opening: Option<&Embedding>) -> Nearness {
        let whole = self.margin_of(text);
        match opening.map(|opening| self.margin_of(opening)) {
            Some(opening) if opening.margin > whole.margin => opening,
            _ => whole,
        }
    }

    fn margin_of(&self, text: &Embedding) -> Nearness {
        let mut best = (0, -1.0_f32);
        for (kind, examples) in (0_u8..).zip(&self.kinds) {
            let cosine = mean_of_nearest(examples, text);
            if cosine > best.1 {
                best = (kind, cosine);
            }
        }
        let honest = mean_of_nearest(&self.contrast, text);
        Nearness { kind: best.0, cosine: best.1, margin: best.1 - honest }
    }
}

/// The mean cosine to the three nearest examples: one example alone is one person's wording, and
/// measured worse.
fn mean_of_nearest(examples: &[Embedding], text: &Embedding) -> f32 {
    let mut top = [-1.0_f32; NEAREST];
    for example in examples {
        let cosine = example.cosine(text);
        if cosine > top[2] {
            top[2] = cosine;
            if top[2] > top[1] {
                top.swap(1, 2);
            }
            if top[1] > top[0] {
                top.swap(0, 1);
            }
        }
    }
    (top[0] + top[1] + top[2]) / 3.0
}

/// How near a text is to the nearest kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearness {
    /// The kind's index.
    pub kind: u8,
    /// The mean cosine to the kind's three nearest examples, -1 to 1.
    pub cosine: f32,
    /// That cosine less the mean cosine to the three nearest honest examples, -2 to 2.
    pub margin: f32,
}

/// Named groups of embedded examples: `[[key]] name = "…", examples = […]`.
pub(super) fn examples<'a>(
    source: &mut Source<'a>,
    root: &toml::de::DeTable<'a>,
    key: &str,
    table: &Table,
    least: usize,
) -> (Vec<String>, Vec<(u8, Embedding)>) {
    let mut names: Vec<String> = Vec::new();
    let mut examples = Vec::new();
    for group in source.tables(root, key) {
        source.only(group.value, &["name", "examples"]);
        let name = source.string(group.value, group.at, "name");
        if names.contains(&name.value) {
            source.problem(name.at, "name", format!("{:?} stands here twice", name.value));
        }
        let index = match u8::try_from(names.len()) {
            Ok(index) if usize::from(index) < KINDS_MAX => index,
            _ => {
                source.problem(group.at, key, format!("more than {KINDS_MAX}"));
                break;
            }
        };
        names.push(name.value);
        for example in source.strings(group.value, group.at, "examples", least) {
            let embedding = table.embed(&fold(&example.value).text);
            if embedding.is_zero() {
                source.problem(example.at, "examples", "has no word that the table knows");
            }
            examples.push((index, embedding));
        }
    }
    (names, examples)
}

#[cfg(test)]
mod tests {
    use super::super::embedding::tests::table_of;
    use super::*;

    const SMALL: &str = r#"
        cosine_min = 0.2
        margin_none = 0.0
        margin_full = 1.0
        [[kind]]
        name = "reasoning"
        examples = ["think", "think step", "step", "step step think", "think think step", "step think step step"]
        [[contrast]]
        name = "chat"
        examples = ["hello", "friend", "hello friend", "hello hello friend", "friend friend hello", "hello hello hello friend"]
    "#;

    #[test]
    fn the_nearest_kind_is_named_with_its_strength() {
        let table = Table::parse(table_of(&["think", "step", "hello", "friend", "other"])).unwrap();
        let archetypes = Archetypes::parse(SMALL, &table).unwrap();
        let read = |text| archetypes.nearest(&table.embed(text), None);
        let (kind, clear) = read("think step step").unwrap();
        assert_eq!(kind, 0);
        assert_eq!(read("hello friend"), None);
        assert_eq!(read("other"), None);
        assert_eq!(read(""), None);
        let (_, mixed) = read("think think step hello").unwrap();
        assert!(mixed < clear, "{mixed} {clear}");
        assert_eq!(archetypes.names(), ["reasoning"]);
    }

    #[test]
    fn mistakes_are_reported_together() {
        let table = Table::parse(table_of(&["think"])).unwrap();
        let text = "cosine_min = 3\nmargin_none = 0.5\nmargin_full = 0.5\n[[kind]]\nname = \"a\"\n\
                    examples = [\"think\", \"what\"]\n";
        let said = Archetypes::parse(text, &table).err().unwrap().to_string();
        assert_eq!(said.lines().count(), 5, "{said}");
        assert!(said.contains("archetypes.toml:6: examples: has no word"), "{said}");
        assert!(said.contains("contrast: missing"), "{said}");
    }
}
