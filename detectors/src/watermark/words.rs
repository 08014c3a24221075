//! A text as layers B and C see it: the words before a place, and what kind of place it is.
//!
//! The marker and the verifier both go through the same states, over what went out and over what
//! came back, so that both see the same contexts.

use super::zero_width::symbol;

/// A longer word is cut: no wording of ours is as long.
const WORD_BYTES_MAX: usize = 48;
/// Words that the language is told from.
const LANGUAGE_WORDS: u32 = 24;
/// Words before the language is told.
const LANGUAGE_WORDS_MIN: u32 = 6;
/// Longest item of an enumeration, in words, before which a comma is a slot.
const ITEM_WORDS_MAX: u8 = 2;

/// Characters that a copied text gains or loses without anybody noticing.
pub(crate) fn invisible(c: char) -> bool {
    symbol(c).is_some()
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{200e}' | '\u{200f}' | '\u{2061}'..='\u{2064}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}')
}

/// What has been read so far.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    /// The word that is being read, lower case.
    current: String,
    /// Whether it has other letters than lower-case ASCII ones.
    capital: bool,
    before: String,
    before_that: String,
    /// The latest character; a line break at the beginning.
    pub(crate) latest: char,
    sentence_ended: bool,
    /// Whether no word of the sentence has begun.
    pub(crate) sentence_start: bool,
    /// Whether the latest apostrophe was typographic.
    pub(crate) curly: bool,
    /// Words since the comma of what may be an enumeration.
    item: Option<u8>,
    /// Whether the characters since the latest white space could be an address's local part, and
    /// whether all of them are ASCII letters.
    pub(crate) chunk_local: bool,
    chunk_letters: bool,
    chunk_empty: bool,
    /// A bit for each of the latest words: whether it is a common English one.
    english: u32,
    seen: u32,
}

impl Words {
    pub(crate) fn new() -> Self {
        Self {
            current: String::new(),
            capital: false,
            before: String::new(),
            before_that: String::new(),
            latest: '\n',
            sentence_ended: true,
            sentence_start: true,
            curly: false,
            item: None,
            chunk_local: true,
            chunk_letters: true,
            chunk_empty: true,
            english: 0,
            seen: 0,
        }
    }

    /// Takes one character of the text.
    pub(crate) fn step(&mut self, c: char) {
        if invisible(c) {
            return;
        }
        let apostrophe = matches!(c, '\'' | '\u{2019}');
        if apostrophe {
            self.curly = c != '\'';
        }
        if c.is_ascii_lowercase() {
            self.letter(c);
        } else if c.is_alphabetic() {
            c.to_lowercase().for_each(|c| self.letter(c));
            self.capital = true;
            // Scripts in which nothing joins across a word's end: Latin, Greek, Cyrillic.
            self.chunk_letters &= c < '\u{530}' && !matches!(c, '\u{300}'..='\u{36f}');
        } else if apostrophe && !self.current.is_empty() {
            self.letter('\'');
            self.chunk_letters = false;
        } else {
            self.end_word();
            self.other(c);
        }
        self.latest = c;
    }

    fn letter(&mut self, c: char) {
        if self.current.len() < WORD_BYTES_MAX {
            self.current.push(c);
        }
        self.sentence_start = false;
        self.sentence_ended = false;
        self.chunk_local &= c.is_ascii();
        self.chunk_empty = false;
    }

    fn other(&mut self, c: char) {
        if c.is_whitespace() {
            self.sentence_start |= self.sentence_ended || c == '\n';
            self.item = match (self.latest, self.item) {
                (_, _) if c != ' ' => None,
                (',', _) => Some(0),
                (_, item) => item,
            };
            self.chunk_local = true;
            self.chunk_letters = true;
            self.chunk_empty = true;
            return;
        }
        match c {
            '.' | '!' | '?' | ':' | '\u{2026}' => self.sentence_ended = true,
            '"' | '\'' | '\u{201d}' | '\u{2019}' | ')' | ']' | '*' | '_' => {}
            _ => self.sentence_ended = false,
        }
        if c.is_alphanumeric() {
            self.sentence_start = false;
        }
        self.item = None;
        if matches!(c, '(' | '*') && self.chunk_empty {
            return;
        }
        let closing = matches!(c, ',' | '.' | ';' | ':' | '!' | '?');
        self.chunk_letters &= closing && !self.chunk_empty;
        self.chunk_local &= c.is_ascii_digit()
            || matches!(c, '.' | '_' | '-' | '+')
            || c == '@' && !self.chunk_empty;
        self.chunk_empty = false;
    }

    fn end_word(&mut self) {
        if self.current.is_empty() {
            return;
        }
        self.item = self.item_with_current();
        self.english = self.english << 1 | u32::from(common(&self.current));
        self.seen = self.seen.saturating_add(1);
        std::mem::swap(&mut self.before_that, &mut self.before);
        std::mem::swap(&mut self.before, &mut self.current);
        self.current.clear();
        self.capital = false;
    }

    fn item_with_current(&self) -> Option<u8> {
        let words = self.item? + 1;
        let plain = !self.capital
            && self.current.len() > 2
            && self.current.bytes().all(|b| b.is_ascii_lowercase())
            && !parenthetic(&self.current);
        (plain && words <= ITEM_WORDS_MAX).then_some(words)
    }

    /// Whether a short item after a comma ends here, as before "and" in an enumeration.
    pub(crate) fn item_ends(&self) -> bool {
        !self.current.is_empty() && self.item_with_current().is_some()
    }

    /// The word that ends at or before this place.
    pub(crate) fn last(&self) -> &str {
        if self.current.is_empty() { &self.before } else { &self.current }
    }

    /// The two words that ended last, the latest first.
    pub(crate) fn last_two(&self) -> [&str; 2] {
        if self.current.is_empty() {
            [&self.before, &self.before_that]
        } else {
            [&self.current, &self.before]
        }
    }

    /// Whether a word of nothing but letters ends here.
    pub(crate) fn plain_word(&self) -> bool {
        self.chunk_letters && !self.chunk_empty
    }

    /// Whether a word may begin here that is joined to nothing before it.
    pub(crate) fn at_boundary(&self) -> bool {
        self.latest.is_whitespace() || matches!(self.latest, '(' | '*')
    }

    /// Whether the text looks English.
    pub(crate) fn english(&self) -> bool {
        let window = self.seen.min(LANGUAGE_WORDS);
        let common = (self.english & ((1 << LANGUAGE_WORDS) - 1)).count_ones();
        // A third of English prose are these words; of related languages a twentieth.
        window >= LANGUAGE_WORDS_MIN && common * 6 >= window
    }
}

/// Words of which English has many and other languages few.
fn common(word: &str) -> bool {
    matches!(
        word,
        "the"
            | "of"
            | "and"
            | "to"
            | "is"
            | "that"
            | "for"
            | "with"
            | "this"
            | "are"
            | "it"
            | "be"
            | "by"
            | "not"
            | "you"
            | "can"
            | "from"
            | "or"
            | "which"
            | "have"
            | "has"
            | "your"
            | "they"
            | "their"
            | "these"
            | "will"
            | "we"
            | "as"
            | "but"
            | "when"
            | "it's"
            | "if"
    )
}

/// What stands between commas without being an item.
fn parenthetic(word: &str) -> bool {
    matches!(
        word,
        "however"
            | "too"
            | "therefore"
            | "though"
            | "indeed"
            | "then"
            | "also"
            | "instead"
            | "yes"
            | "well"
            | "thus"
            | "moreover"
            | "perhaps"
            | "sometimes"
            | "often"
            | "please"
            | "example"
            | "instance"
            | "course"
            | "turn"
            | "fact"
            | "general"
            | "usually"
            | "typically"
            | "frequently"
            | "maybe"
            | "finally"
            | "otherwise"
            | "respectively"
            | "but"
            | "and"
            | "yet"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str) -> Words {
        let mut words = Words::new();
        text.chars().for_each(|c| words.step(c));
        words
    }

    #[test]
    fn words_are_told() {
        assert_eq!(after("The dog\u{200b}, don’t ").last(), "don't");
        assert_eq!(after("user ID: ").last_two(), ["id", "user"]);
        assert_eq!(after("half-wa\u{200d}y").last(), "way");
    }

    #[test]
    fn sentences_are_told() {
        for (text, starts) in [
            ("", true),
            ("So. ", true),
            ("So, ", false),
            ("a\n- ", true),
            ("1. ", true),
            ("ok.a ", false),
        ] {
            assert_eq!(after(text).sentence_start, starts, "{text:?}");
        }
    }

    #[test]
    fn items_are_told() {
        for (text, item) in [
            ("speed, accuracy", true),
            ("speed, high accuracy", true),
            ("speed, very high accuracy", false),
            ("speed and accuracy", false),
            ("In Paris, Bob", false),
            ("this, however", false),
            ("speed, (accuracy", false),
        ] {
            assert_eq!(after(text).item_ends(), item, "{text:?}");
        }
    }

    #[test]
    fn english_is_told_from_others() {
        let english = "The cost of this is that you have to wait for the answer.";
        let german = "Die Kosten davon sind, dass man in der Regel auf die Antwort warten muss.";
        let dutch =
            "De kosten hiervan zijn dat men in de regel op het antwoord moet wachten, of is.";
        let french = "Le prix en est que vous devez attendre la réponse pour un certain temps.";
        for (text, is) in [(english, true), (german, false), (dutch, false), (french, false)] {
            assert_eq!(after(text).english(), is, "{text:?}");
        }
    }
}
