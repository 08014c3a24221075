//! Layer B: a keyed choice between wordings that say the same.
//!
//! Sees: which of two equivalent wordings stands at each place of a text.
//! Why: the choice survives every cleaning of characters, and many small votes add up over a data
//! set (T-DIST-008). The bit of a place is one of HMAC(subject's key, the word before it), and the
//! group of wordings says which one, so the same words always ask for the same choice.
//! Wrong when: a text was reworded by a model, which leaves nothing of this layer; or is not
//! English. Repeated contexts are no further evidence: a tuple of group and context votes once.
//! Source: after keyed synonym choice (Topkara, Topkara and Atallah, "The hiding virtues of
//! ambiguity", 2006) with the context hashing of Kirchenbauer et al., "A watermark for large
//! language models", 2023.
//!
//! Beside the table `data/wordings.toml` there are two pairs of punctuation: the comma before the
//! last item of an enumeration, which is only ever taken away, as adding it needs an understanding
//! of the sentence; and a dash with or without spaces.

use hashbrown::HashMap;
use serde::Deserialize;

use super::keys::Prf;
use super::words::{Words, invisible};
use crate::keyed;

/// Groups of the table have smaller numbers than this; above are those of punctuation.
const TABLE_GROUPS: u8 = 250;
const GROUP_AND: u8 = 250;
const GROUP_OR: u8 = 251;
const GROUP_DASH: u8 = 252;

/// The longest wording, in bytes.
const WORDING_BYTES_MAX: usize = 32;
/// The longest word that a condition looks at.
const NEXT_BYTES_MAX: usize = 24;
/// Contexts are hashed so that a text's words are not kept; the key is no secret.
const CONTEXT_KEY: keyed::Key = *b"stillgate mark b";

/// The reviewed table of wordings.
#[derive(Debug)]
pub struct Wordings {
    groups: Vec<Group>,
    wordings: Vec<Wording>,
    /// Wordings by their first letter, the longest first.
    by_letter: [Vec<u16>; 26],
}

#[derive(Debug)]
struct Wording {
    text: String,
    other: String,
    group: usize,
    second: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    group: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    id: u8,
    why: String,
    pairs: Vec<[String; 2]>,
    #[serde(default)]
    next: Vec<String>,
    #[serde(default)]
    not_next: Vec<String>,
    #[serde(default)]
    after: Vec<String>,
    #[serde(default)]
    not_after: Vec<String>,
    #[serde(default)]
    start: bool,
    #[serde(default)]
    inside: bool,
    #[serde(default)]
    ends: Ends,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ends {
    #[default]
    Any,
    Word,
    Stop,
}

/// What is wrong with a table of wordings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordingsError {
    /// Not TOML, or not of the form.
    #[error("{0}")]
    Form(String),
    /// A number that is given twice or too large.
    #[error("group {0}: the number is not free")]
    Number(u8),
    /// A group that does not say why it is safe.
    #[error("group {0}: `why` is empty")]
    Why(u8),
    /// A wording that is too long, not in its place, or given twice.
    #[error("group {0}: {1:?} is not a wording, or stands twice")]
    Wording(u8, String),
}

/// Where a choice can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot<'t> {
    pub(crate) group: u8,
    /// Whether the second wording stands there.
    pub(crate) second: bool,
    /// Bytes of the text.
    pub(crate) len: usize,
    /// The other wording; `None` where it must not be put.
    pub(crate) other: Option<&'t str>,
}

/// What stands at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look<'t> {
    Nothing,
    /// It depends on what comes next.
    More,
    Slot(Slot<'t>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fits {
    Yes,
    No,
    More,
}

impl Wordings {
    /// The shipped table.
    ///
    /// # Errors
    /// When the shipped table is broken, which the tests rule out.
    pub fn builtin() -> Result<Self, WordingsError> {
        Self::parse(include_str!("../../data/wordings.toml"))
    }

    /// Reads a table.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, WordingsError> {
        let table: Table =
            toml::from_str(text).map_err(|error| WordingsError::Form(error.to_string()))?;
        let groups = table.group;
        let mut wordings: Vec<Wording> = Vec::new();
        let mut ids = [false; TABLE_GROUPS as usize];
        for (at, group) in groups.iter().enumerate() {
            match ids.get_mut(usize::from(group.id)) {
                Some(taken) if !*taken => *taken = true,
                _ => return Err(WordingsError::Number(group.id)),
            }
            if group.why.trim().is_empty() {
                return Err(WordingsError::Why(group.id));
            }
            for pair in &group.pairs {
                for (text, other, second) in
                    [(&pair[0], &pair[1], false), (&pair[1], &pair[0], true)]
                {
                    let plain = text
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || matches!(b, b' ' | b'\'' | b',' | b'I'));
                    let twice = wordings.iter().any(|known| known.text == *text);
                    if !plain || twice || text.is_empty() || text.len() > WORDING_BYTES_MAX {
                        return Err(WordingsError::Wording(group.id, text.clone()));
                    }
                    wordings.push(Wording {
                        text: text.clone(),
                        other: other.clone(),
                        group: at,
                        second,
                    });
                }
            }
        }
        let mut by_letter: [Vec<u16>; 26] = Default::default();
        for (at, wording) in wordings.iter().enumerate() {
            let letter = wording.text.as_bytes().first().map(|b| b.to_ascii_lowercase());
            let list = letter.and_then(|b| by_letter.get_mut(usize::from(b.wrapping_sub(b'a'))));
            match (list, u16::try_from(at)) {
                (Some(list), Ok(at)) => list.push(at),
                _ => {
                    let id = groups[wording.group].id;
                    return Err(WordingsError::Wording(id, wording.text.clone()));
                }
            }
        }
        for list in &mut by_letter {
            list.sort_by_key(|at| std::cmp::Reverse(wordings[usize::from(*at)].text.len()));
        }
        Ok(Self { groups, wordings, by_letter })
    }

    /// What stands at the beginning of `rest`, with `words` before it. `end`: nothing follows.
    pub(crate) fn look(&self, words: &Words, rest: &str, end: bool) -> Look<'_> {
        let Some(first) = rest.chars().next() else {
            return Look::More;
        };
        if first.is_ascii_alphabetic() {
            if words.at_boundary() {
                return self.look_word(words, rest, first, end);
            }
        } else if matches!(first, ',' | ' ' | '\u{2014}') && words.latest.is_alphabetic() {
            return look_punctuation(words, rest, first, end);
        }
        Look::Nothing
    }

    fn look_word(&self, words: &Words, rest: &str, first: char, end: bool) -> Look<'_> {
        let letter = first.to_ascii_lowercase() as usize - 'a' as usize;
        for at in &self.by_letter[letter] {
            let wording = &self.wordings[usize::from(*at)];
            let group = &self.groups[wording.group];
            // A capital where no sentence begins is a name, a heading, or stress.
            let capital = first.is_ascii_uppercase() && !wording.text.starts_with('I');
            let misplaced = group.start && !capital || group.inside && words.sentence_start;
            if capital && !words.sentence_start || misplaced {
                continue;
            }
            match matches_wording(rest, &wording.text) {
                None => continue,
                Some(Err(())) if end => continue,
                Some(Err(())) if !self.possible(group, words) => continue,
                Some(Err(())) => return Look::More,
                Some(Ok(len)) => {
                    if !self.possible(group, words) {
                        continue;
                    }
                    match group.fits(&rest[len..], end) {
                        Fits::No => {}
                        Fits::More => return Look::More,
                        Fits::Yes => {
                            return Look::Slot(Slot {
                                group: group.id,
                                second: wording.second,
                                len,
                                other: Some(&wording.other),
                            });
                        }
                    }
                }
            }
        }
        Look::Nothing
    }

    fn possible(&self, group: &Group, words: &Words) -> bool {
        if group.after.is_empty() && group.not_after.is_empty() {
            return true;
        }
        let before = words.last();
        (group.after.is_empty() || !words.sentence_start && group.after.iter().any(|w| w == before))
            && (words.sentence_start || !group.not_after.iter().any(|w| w == before))
    }
}

/// Whether the text begins with the wording, in bytes of the text; an error if it may yet do so.
fn matches_wording(rest: &str, wording: &str) -> Option<Result<usize, ()>> {
    let mut chars = rest.char_indices();
    for (at, expected) in wording.char_indices() {
        let Some((_, c)) = chars.next() else {
            return Some(Err(()));
        };
        let same = match c {
            '\u{2019}' => expected == '\'',
            _ if at == 0 && expected != 'I' => c.to_ascii_lowercase() == expected,
            _ => c == expected,
        };
        if !same {
            return None;
        }
    }
    Some(Ok(chars.offset()))
}

impl Group {
    /// Whether the wording may be followed by this.
    fn fits(&self, rest: &str, end: bool) -> Fits {
        let more = |otherwise| if end { otherwise } else { Fits::More };
        let mut chars = rest.chars();
        let Some(first) = chars.next() else {
            return more(Fits::No);
        };
        if self.ends == Ends::Stop {
            return match (first, chars.next()) {
                ('.' | '!' | '?' | ';', None) => more(Fits::Yes),
                ('.' | '!' | '?' | ';', Some(second)) if second.is_whitespace() => Fits::Yes,
                _ => Fits::No,
            };
        }
        if first != ' ' {
            // A clause ends here, unless this is an address or an abbreviation.
            let open = self.ends == Ends::Any && self.next.is_empty();
            return match (first, chars.next()) {
                _ if !open => Fits::No,
                ('\n', _) => Fits::Yes,
                (',' | '.' | ';' | ':' | '!' | '?' | ')', None) => more(Fits::Yes),
                (',' | '.' | ';' | ':' | '!' | '?' | ')', Some(second))
                    if second.is_whitespace() =>
                {
                    Fits::Yes
                }
                _ => Fits::No,
            };
        }
        let after = &rest[1..];
        if self.ends == Ends::Word {
            match after.chars().next() {
                None => return more(Fits::No),
                Some(c) if !c.is_ascii_lowercase() => return Fits::No,
                Some(_) => {}
            }
        }
        if self.next.is_empty() && self.not_next.is_empty() {
            return Fits::Yes;
        }
        let digit = after.starts_with(|c: char| c.is_ascii_digit());
        if digit && self.next.iter().any(|next| next == "#") {
            return Fits::Yes;
        }
        let len = after
            .find(|c: char| !c.is_alphabetic() && !matches!(c, '\'' | '\u{2019}'))
            .unwrap_or(after.len());
        let word = &after[..len];
        if len == after.len() && !end && len <= NEXT_BYTES_MAX {
            // The word may go on.
            let open = self.next.is_empty() || self.next.iter().any(|next| next.starts_with(word));
            return if open { Fits::More } else { Fits::No };
        }
        // "the" must not be the beginning of "the/a" or of a hyphenated word.
        let whole = after[len..].chars().next().is_none_or(|c| !matches!(c, '-' | '/' | '_'));
        if self.next.is_empty() {
            let kept_out = self.not_next.iter().any(|other| other.eq_ignore_ascii_case(word));
            if kept_out { Fits::No } else { Fits::Yes }
        } else if whole && self.next.iter().any(|next| next == word) {
            Fits::Yes
        } else {
            Fits::No
        }
    }
}

fn look_punctuation<'t>(words: &Words, rest: &str, first: char, end: bool) -> Look<'t> {
    let follows = |text: &str| -> Option<Result<(), ()>> {
        let common = rest.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
        if common == text.len() {
            Some(Ok(()))
        } else {
            (common == rest.len() && !end).then_some(Err(()))
        }
    };
    let next_is = |len: usize, fits: fn(char) -> bool| match rest[len..].chars().next() {
        Some(c) => Some(fits(c)),
        None if end => Some(false),
        None => None,
    };
    let slot = |group, second, len, other| Look::Slot(Slot { group, second, len, other });
    let mut forms: [(&str, &str, u8, bool, Option<&'t str>); 3] = [
        (", and", " ", GROUP_AND, false, Some(" and")),
        (", or", " ", GROUP_OR, false, Some(" or")),
        ("\u{2014}", "", GROUP_DASH, false, Some(" \u{2014} ")),
    ];
    if first == ' ' {
        forms = [
            (" and", " ", GROUP_AND, true, None),
            (" or", " ", GROUP_OR, true, None),
            (" \u{2014} ", "", GROUP_DASH, true, Some("\u{2014}")),
        ];
    }
    let mut more = false;
    for (form, gap, group, second, other) in forms {
        if group != GROUP_DASH && !words.item_ends() {
            continue;
        }
        match follows(form) {
            None => {}
            Some(Err(())) => more = true,
            Some(Ok(())) => {
                let len = form.len();
                let fits: fn(char) -> bool = match group {
                    GROUP_DASH => |c| c.is_ascii_alphabetic(),
                    _ => |c| c == ' ',
                };
                match next_is(len, fits) {
                    None => return Look::More,
                    Some(false) => {}
                    Some(true) if gap.is_empty() => return slot(group, second, len, other),
                    // A capital begins a name or another sentence.
                    Some(true) => match next_is(len + 1, |c| c.is_ascii_lowercase()) {
                        None => return Look::More,
                        Some(true) => return slot(group, second, len, other),
                        Some(false) => {}
                    },
                }
            }
        }
    }
    if more { Look::More } else { Look::Nothing }
}

/// The hash of the word before a slot.
pub(crate) fn context(words: &Words) -> u64 {
    keyed::hash(&CONTEXT_KEY, words.last().as_bytes())
}

/// Whether a subject's key asks for the second wording.
pub(crate) fn bit(key: &Prf, group: u8, context: u64) -> bool {
    bit_of(&key.bits(context), group)
}

fn bit_of(bits: &[u8; 32], group: u8) -> bool {
    bits[usize::from(group / 8)] >> (group % 8) & 1 == 1
}

/// Different tuples that are kept, at most about 100 bytes each.
pub const TUPLES_MAX: usize = 1 << 20;

/// The choices in any number of texts, as tuples of group and hashed context. Holds no text.
#[derive(Clone, Debug, Default)]
pub struct Tuples {
    /// How much more often the second wording stood there than the first.
    balance: HashMap<u64, Vec<(u8, i32)>, keyed::KeyedState>,
    tuples: usize,
    slots: u64,
    overflow: u64,
}

/// The votes of tuples for one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Votes {
    /// Tuples whose wording is the one that the key asks for.
    pub agreeing: u64,
    /// All tuples.
    pub of: u64,
}

impl Tuples {
    /// Takes in a text.
    pub fn read(&mut self, wordings: &Wordings, text: &str) {
        let cleaned: String;
        let text = if text.is_ascii() {
            text
        } else {
            cleaned = text.chars().filter(|c| !invisible(*c)).collect();
            &cleaned
        };
        let mut words = Words::new();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let mut len = c.len_utf8();
            if words.english()
                && let Look::Slot(slot) = wordings.look(&words, &text[at..], true)
            {
                self.add(slot.group, context(&words), if slot.second { 1 } else { -1 });
                self.slots += 1;
                len = slot.len;
            }
            text[at..at + len].chars().for_each(|c| words.step(c));
            at += len;
        }
    }

    fn add(&mut self, group: u8, context: u64, vote: i32) {
        let full = self.tuples >= TUPLES_MAX;
        if full && !self.balance.contains_key(&context) {
            self.overflow += 1;
            return;
        }
        let tuples = self.balance.entry(context).or_default();
        if let Some((_, balance)) = tuples.iter_mut().find(|(known, _)| *known == group) {
            *balance = balance.saturating_add(vote);
        } else if full {
            self.overflow += 1;
        } else {
            tuples.push((group, vote));
            self.tuples += 1;
        }
    }

    /// Takes out the tuples that other texts have, such as the prompts that the texts answer.
    /// Returns how many.
    pub fn exclude(&mut self, others: &Self) -> usize {
        let before = self.tuples;
        for (context, gone) in &others.balance {
            if let Some(tuples) = self.balance.get_mut(context) {
                let had = tuples.len();
                tuples.retain(|(group, _)| !gone.iter().any(|(other, _)| other == group));
                self.tuples -= had - tuples.len();
            }
        }
        before - self.tuples
    }

    /// Counts the votes for a key. A tuple votes once, as its more frequent wording does; one
    /// that stood both ways equally often does not vote.
    #[must_use]
    pub fn votes(&self, key: &Prf) -> Votes {
        let mut votes = Votes::default();
        for (context, tuples) in &self.balance {
            if tuples.iter().all(|(_, balance)| *balance == 0) {
                continue;
            }
            let bits = key.bits(*context);
            for (group, balance) in tuples.iter().filter(|(_, balance)| *balance != 0) {
                votes.of += 1;
                votes.agreeing += u64::from(bit_of(&bits, *group) == (*balance > 0));
            }
        }
        votes
    }

    /// Different tuples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tuples
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tuples == 0
    }

    /// Places where a choice stood, repeated contexts included.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.slots
    }

    /// Places not counted because [`TUPLES_MAX`] tuples are kept.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.overflow
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::keys::MasterKey;
    use super::*;

    const ENGLISH: &str = "This is the way that you have to say it, and it is the best. ";

    fn slots(text: &str) -> Vec<(u8, bool)> {
        let wordings = Wordings::builtin().unwrap();
        let mut words = Words::new();
        ENGLISH.chars().for_each(|c| words.step(c));
        let mut at = 0;
        let mut found = Vec::new();
        while let Some(c) = text[at..].chars().next() {
            let mut len = c.len_utf8();
            if let Look::Slot(slot) = wordings.look(&words, &text[at..], true) {
                found.push((slot.group, slot.second));
                len = slot.len;
            }
            text[at..at + len].chars().for_each(|c| words.step(c));
            at += len;
        }
        found
    }

    #[test]
    fn the_shipped_table_is_whole() {
        let wordings = Wordings::builtin().unwrap();
        assert!(wordings.wordings.len() > 150, "{}", wordings.wordings.len());
        assert!(wordings.groups.iter().all(|group| !group.pairs.is_empty()));
    }

    #[test]
    fn broken_tables_are_refused() {
        let group = |id: u32, pairs: &str| {
            format!("[[group]]\nid = {id}\nwhy = \"so\"\npairs = [{pairs}]\n")
        };
        let one = group(1, "['a b', 'c d']");
        assert!(Wordings::parse(&one).is_ok());
        for broken in [
            format!("{one}{}", group(1, "['e', 'f']")),
            format!("{one}{}", group(2, "['a b', 'f']")),
            group(250, "['a', 'b']"),
            group(1, "['', 'b']"),
            group(1, "['\u{e9}', 'b']"),
            group(1, "[' a', 'b']"),
            one.replace("so", ""),
            one.replace("why", "because"),
        ] {
            assert!(Wordings::parse(&broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn slots_are_found_under_their_conditions() {
        for (text, expected) in [
            ("we do not wait", vec![(0, false)]),
            ("we don’t wait", vec![(0, true)]),
            ("Don't wait for it", vec![(0, true)]),
            ("we Do not wait", vec![]),
            ("the file don't.txt is", vec![]),
            ("and this is what it is.", vec![]),
            ("It's been long", vec![]),
            ("it is the best", vec![(3, false)]),
            ("it is, for instance, late", vec![(20, true)]),
            ("However, though, no", vec![]),
            ("Moreover, we wait", vec![(21, true)]),
            ("and moreover, we wait", vec![]),
            ("in addition to that", vec![]),
            ("even though we wait", vec![]),
            ("good though small", vec![(30, true)]),
            ("In the month of May have", vec![]),
            ("you may want tea", vec![(65, false)]),
            ("over 50 people", vec![(109, true)]),
            ("over the hill", vec![]),
            ("tea, milk, and honey", vec![(250, false)]),
            ("tea, milk and honey", vec![(250, true)]),
            ("tea, milk, and Honey", vec![]),
            ("tea and milk", vec![]),
            ("a word\u{2014}or two", vec![(252, false)]),
            ("a word \u{2014} or two", vec![(252, true)]),
            ("1\u{2014}2", vec![]),
            ("let us know", vec![]),
            ("help us improve", vec![]),
            ("it helps reduce it", vec![(60, false)]),
            ("it helps to reduce it", vec![(60, true)]),
            ("we saw it as well.", vec![(44, false)]),
            ("we saw it as well as them", vec![]),
            ("begin/start to do", vec![]),
            ("get started with it", vec![]),
            ("they began with it", vec![(72, true)]),
            ("wait so you can go", vec![(32, true)]),
            ("wait. So you can go", vec![]),
        ] {
            assert_eq!(slots(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_tuple_votes_once() {
        let wordings = Wordings::builtin().unwrap();
        let mut tuples = Tuples::default();
        let text = format!("{ENGLISH}We do not go. We do not stay. They do not go. ");
        for _ in 0..9 {
            tuples.read(&wordings, &text);
        }
        assert_eq!((tuples.len(), tuples.slots()), (3, 36));
        let key = MasterKey::new(&[1; 32]).unwrap().lexical("c");
        assert_eq!(tuples.votes(&key).of, 3);
        let mut prompts = Tuples::default();
        prompts.read(&wordings, &format!("{ENGLISH}So they don't go. "));
        assert_eq!(tuples.exclude(&prompts), 2);
        assert_eq!(tuples.votes(&key).of, 1);
    }

    #[test]
    fn a_balanced_tuple_does_not_vote() {
        let mut tuples = Tuples::default();
        tuples.add(1, 7, 1);
        tuples.add(1, 7, -1);
        let key = MasterKey::new(&[1; 32]).unwrap().lexical("c");
        assert_eq!(tuples.votes(&key), Votes::default());
    }

    #[test]
    fn tuples_have_a_bound() {
        let mut tuples = Tuples::default();
        for at in 0..TUPLES_MAX as u64 + 10 {
            tuples.add(1, at, 1);
        }
        assert_eq!((tuples.len(), tuples.overflow()), (TUPLES_MAX, 10));
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_read(text in "(\\PC| and|, or|It is | do not|\u{2014}| \u{2014} ){0,60}") {
            let wordings = Wordings::builtin().unwrap();
            Tuples::default().read(&wordings, &format!("{ENGLISH}{text}"));
        }
    }
}
