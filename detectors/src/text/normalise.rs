//! One pass over a text that undoes the cheap ways of hiding words from a matcher.
//!
//! Sees: zero-width characters inside words, letters of other alphabets that look Latin, fullwidth
//! and mathematical letters, accents, case, odd white space, letters spaced apart.
//! Why: a phrase list is defeated by any of these for nothing (T-DIST-008, T-DIST-009); undone and
//! counted, the trick itself is evidence.
//! Wrong when: a joiner stands where its script needs it (emoji, Arabic and Indic joiners are not
//! counted, other uses are); a Cyrillic or Greek word of look-alike letters only, in a text without
//! any other letter of its alphabet, is read as Latin; a spelt-out word ("a b c d e f") is joined.
//! Source: the confusable pairs are the everyday ones of Unicode's UTS #39, written out by hand.

use unicode_normalization::char::decompose_compatible;

/// Bytes read from the beginning of a text.
pub const HEAD_BYTES: usize = 4096;
/// Bytes read from the end of a longer text.
pub const TAIL_BYTES: usize = 2048;
/// Letters standing apart before they count as a spaced-out word.
const SPACED_LETTERS_MIN: usize = 5;
/// Look-alike letters that make a word without any Latin letter a disguised one.
const LOOKALIKE_WORD_MIN: u32 = 3;
/// Parts words inside a run of spaced letters until the run is joined. Controls never get into a
/// folded text from outside: they are read as white space.
const WORD_GAP: char = '\u{1f}';

/// How often each way of hiding was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tricks {
    /// Zero-width and other invisible characters, outside emoji and scripts that need joiners.
    pub invisible: u32,
    /// Cyrillic, Greek and other letters standing in for Latin ones.
    pub homoglyphs: u32,
    /// Fullwidth, mathematical, circled letters and digits.
    pub styled: u32,
    /// Words whose letters were spaced apart.
    pub spaced_words: u32,
}

impl Tricks {
    /// All of them together.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.invisible
            .saturating_add(self.homoglyphs)
            .saturating_add(self.styled)
            .saturating_add(self.spaced_words)
    }
}

/// A text as the matchers see it. No `Debug`: it is still a prompt.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Folded {
    /// Lower case, without accents or hyphens, words parted by single spaces.
    pub text: String,
    /// What had to be undone.
    pub tricks: Tricks,
    /// Whether the middle of the text was left out.
    pub clipped: bool,
}

/// Folds the first [`HEAD_BYTES`] and, of a longer text, the last [`TAIL_BYTES`].
#[must_use]
pub fn fold(text: &str) -> Folded {
    let mut folder = Folder::default();
    if text.len() <= HEAD_BYTES + TAIL_BYTES {
        folder.push(text);
        return folder.finish(false);
    }
    let mut head = HEAD_BYTES;
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    let mut tail = text.len() - TAIL_BYTES;
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    folder.push(&text[..head]);
    // The two ends must not make a phrase between them.
    folder.out.push_str(" \u{2026} ");
    folder.push(&text[tail..]);
    folder.finish(true)
}

#[derive(Default)]
struct Folder {
    out: String,
    tricks: Tricks,
    /// The white space before the next character: none, one, or more.
    gap: u8,
    /// Where the current word begins in `out`, and what it is made of.
    word: usize,
    word_chars: u32,
    latin: bool,
    /// Whether a Latin letter came after a look-alike one.
    latin_after: bool,
    lookalikes: u32,
    /// Whether the word before was one letter; how many such words followed each other.
    letters_apart: usize,
    spaced: bool,
    /// Whether a [`WORD_GAP`] was written.
    gaps: bool,
    /// Whether the text has letters that only its Cyrillic or Greek has.
    native_text: bool,
}

impl Folder {
    fn push(&mut self, text: &str) {
        self.out.reserve(text.len() + 8);
        self.gap = self.gap.max(u8::from(!self.out.is_empty()));
        if text.is_ascii() {
            // Word by word: most texts are ASCII, and this is the hottest loop of a reading.
            for word in text.as_bytes().split_inclusive(|&b| parts_ascii(b)) {
                let (letters, parted) = match word.split_last() {
                    Some((&last, letters)) if parts_ascii(last) => (letters, true),
                    _ => (word, false),
                };
                if !letters.is_empty() {
                    self.begin_word();
                    self.word_chars += u32::try_from(letters.len()).unwrap_or(u32::MAX);
                    self.out.extend(letters.iter().map(|&b| char::from(b.to_ascii_lowercase())));
                }
                if parted {
                    self.space();
                }
            }
        } else {
            self.native_text =
                text.chars().any(|c| is_greek_or_cyrillic(c) && lookalike(c).is_none());
            let mut before = ' ';
            for c in text.chars() {
                self.char(c, before);
                before = c;
            }
        }
        self.end_word();
    }

    fn finish(mut self, clipped: bool) -> Folded {
        self.end_run();
        if self.spaced {
            self.join_spaced();
        } else if self.gaps {
            self.out = self.out.replace(WORD_GAP, " ");
        }
        Folded { text: self.out, tricks: self.tricks, clipped }
    }

    fn space(&mut self) {
        if self.gap == 0 {
            self.end_word();
        }
        self.gap = self.gap.saturating_add(1);
    }

    fn begin_word(&mut self) {
        if self.gap > 0 {
            if !self.out.is_empty() && !self.out.ends_with(' ') {
                let between_letters = self.gap > 1 && self.letters_apart > 0;
                self.gaps |= between_letters;
                self.out.push(if between_letters { WORD_GAP } else { ' ' });
            }
            self.gap = 0;
            self.word = self.out.len();
        }
    }

    fn ascii(&mut self, c: char) {
        self.begin_word();
        self.latin |= c.is_ascii_lowercase();
        self.latin_after |= self.lookalikes > 0 && c.is_ascii_lowercase();
        self.word_chars += 1;
        self.out.push(c);
    }

    fn char(&mut self, c: char, before: char) {
        if c.is_ascii() {
            match c {
                'A'..='Z' => self.ascii(c.to_ascii_lowercase()),
                _ if u8::try_from(c).is_ok_and(parts_ascii) => self.space(),
                _ => self.ascii(c),
            }
            return;
        }
        if is_invisible(c) {
            self.tricks.invisible += u32::from(!joins_by_right(c, before));
            return;
        }
        if c.is_whitespace() || c.is_control() || is_dash(c) {
            self.space();
            return;
        }
        if matches!(c, '\u{300}'..='\u{36f}') {
            return; // A combining accent.
        }
        self.begin_word();
        self.word_chars += 1;
        match c {
            '\u{2018}' | '\u{2019}' | '\u{02bc}' => self.out.push('\''),
            '\u{201c}' | '\u{201d}' => self.out.push('"'),
            'ß' => self.letters("ss"),
            'æ' | 'Æ' => self.letters("ae"),
            'œ' | 'Œ' => self.letters("oe"),
            'ø' | 'Ø' => self.letters("o"),
            'ł' | 'Ł' => self.letters("l"),
            'đ' | 'Đ' => self.letters("d"),
            '\u{c0}'..='\u{24f}' | '\u{1e00}'..='\u{1eff}' => self.decomposed(c),
            _ if is_styled(c) => {
                self.tricks.styled += u32::from(c.is_alphanumeric() || is_enclosed(c));
                self.decomposed(c);
            }
            _ => {
                self.lookalikes += u32::from(lookalike(c).is_some());
                self.out.extend(c.to_lowercase());
            }
        }
    }

    fn letters(&mut self, letters: &str) {
        self.latin = true;
        self.out.push_str(letters);
    }

    fn decomposed(&mut self, c: char) {
        let Self { out, latin, .. } = self;
        decompose_compatible(c, |d| {
            if !matches!(d, '\u{300}'..='\u{36f}') {
                *latin |= d.is_ascii_alphabetic();
                // Parenthesised letters bring their brackets, some symbols a space or a dash.
                if d.is_alphanumeric() || d.is_ascii_punctuation() && d != '-' && d != '_' {
                    out.extend(d.to_lowercase());
                }
            }
        });
    }

    fn end_word(&mut self) {
        if self.word_chars == 0 {
            return;
        }
        // A lone alpha or beta is mathematics; a whole word of look-alikes hardly is.
        let whole = !self.native_text && self.lookalikes >= LOOKALIKE_WORD_MIN;
        // Russian puts its endings on Latin words; it does not put Latin letters after its own.
        let mixed = if self.native_text { self.latin_after } else { self.latin };
        if self.lookalikes > 0 && (mixed || whole) {
            self.tricks.homoglyphs += self.lookalikes;
            let latin: String =
                self.out[self.word..].chars().map(|c| lookalike(c).unwrap_or(c)).collect();
            self.out.truncate(self.word);
            self.out.push_str(&latin);
        }
        if self.word_chars == 1 && self.out[self.word..].starts_with(char::is_alphabetic) {
            self.letters_apart += 1;
        } else {
            self.end_run();
        }
        self.word_chars = 0;
        self.latin = false;
        self.latin_after = false;
        self.lookalikes = 0;
    }

    fn end_run(&mut self) {
        self.spaced |= self.letters_apart >= SPACED_LETTERS_MIN;
        self.letters_apart = 0;
    }

    /// Joins every run of letters that stand apart; [`WORD_GAP`] parts its words.
    fn join_spaced(&mut self) {
        let words: Vec<&str> = self.out.split_inclusive([' ', WORD_GAP]).collect();
        let mut joined = String::with_capacity(self.out.len());
        let mut at = 0;
        while at < words.len() {
            let run = &words[at..];
            let run = &run[..run.iter().take_while(|w| is_letter(w)).count()];
            if run.len() < SPACED_LETTERS_MIN {
                joined.push_str(words[at].trim_end_matches([' ', WORD_GAP]));
                joined.push(' ');
                at += 1;
                continue;
            }
            for word in run {
                joined.push_str(word.trim_end_matches([' ', WORD_GAP]));
                if word.ends_with(WORD_GAP) {
                    joined.push(' ');
                    self.tricks.spaced_words += 1;
                }
            }
            if !joined.ends_with(' ') {
                joined.push(' ');
                self.tricks.spaced_words += 1;
            }
            at += run.len();
        }
        joined.truncate(joined.trim_end().len());
        self.out = joined;
    }
}

/// Whether a word and the gap after it are a letter alone.
fn is_letter(word: &str) -> bool {
    let mut chars = word.trim_end_matches([' ', WORD_GAP]).chars();
    chars.next().is_some_and(char::is_alphabetic) && chars.next().is_none()
}

/// White space, controls, hyphens and underscores.
fn parts_ascii(b: u8) -> bool {
    matches!(b, 0..=b' ' | 0x7f | b'-' | b'_')
}

fn is_dash(c: char) -> bool {
    matches!(
        c,
        '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{fe58}' | '\u{fe63}' | '\u{ff0d}' | '\u{ff3f}'
    )
}

fn is_styled(c: char) -> bool {
    matches!(c, '\u{ff01}'..='\u{ff5e}' | '\u{1d400}'..='\u{1d7ff}' | '\u{2100}'..='\u{214f}'
        | '\u{2070}'..='\u{209c}' | '\u{1d2c}'..='\u{1d6a}' | '\u{2b0}'..='\u{2b8}')
        || is_enclosed(c)
}

fn is_enclosed(c: char) -> bool {
    matches!(c, '\u{2460}'..='\u{24ea}' | '\u{1f100}'..='\u{1f189}')
}

fn is_greek_or_cyrillic(c: char) -> bool {
    matches!(c, '\u{370}'..='\u{52f}') && c.is_alphabetic()
}

/// Characters that nobody sees: zero-width, directional marks, fillers, variation selectors, tags.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{e0000}'..='\u{e01ef}')
}

/// Whether an invisible character does its proper work after `before`.
fn joins_by_right(c: char, before: char) -> bool {
    let pictograph = matches!(before, '\u{23}' | '\u{2a}' | '\u{30}'..='\u{39}' | '\u{a9}' | '\u{ae}'
        | '\u{2190}'..='\u{2bff}' | '\u{3030}' | '\u{fe0f}' | '\u{1f000}'..='\u{1faff}');
    match c {
        '\u{fe0e}' | '\u{fe0f}' => pictograph,
        '\u{200c}' | '\u{200d}' => pictograph || matches!(before, '\u{600}'..='\u{109f}'),
        '\u{200e}' | '\u{200f}' => matches!(before, '\u{590}'..='\u{8ff}'),
        _ => false,
    }
}

/// The Latin letter that a letter of another alphabet passes for.
fn lookalike(c: char) -> Option<char> {
    Some(match c {
        'а' | 'А' | 'α' | 'Α' | 'ɑ' => 'a',
        'в' | 'В' | 'Β' | 'β' | 'ʙ' => 'b',
        'с' | 'С' | 'ϲ' | 'ᴄ' => 'c',
        'ԁ' | 'Ԁ' | 'ᴅ' => 'd',
        'е' | 'Е' | 'Ε' | 'ε' | 'ё' | 'Ё' | 'ᴇ' => 'e',
        'ɡ' | 'ɢ' => 'g',
        'һ' | 'Һ' | 'Н' | 'н' | 'Η' | 'ʜ' => 'h',
        'і' | 'І' | 'ї' | 'Ї' | 'ι' | 'Ι' | 'ɪ' | 'ı' => 'i',
        'ј' | 'Ј' | 'ϳ' | 'ᴊ' => 'j',
        'к' | 'К' | 'κ' | 'Κ' | 'ᴋ' => 'k',
        'ӏ' | 'Ӏ' | 'ʟ' => 'l',
        'м' | 'М' | 'Μ' | 'ᴍ' => 'm',
        'п' | 'η' | 'Ν' | 'ɴ' => 'n',
        'о' | 'О' | 'ο' | 'Ο' | 'σ' | 'ᴏ' => 'o',
        'р' | 'Р' | 'ρ' | 'Ρ' | 'ᴘ' => 'p',
        'ԛ' | 'Ԛ' => 'q',
        'ѕ' | 'Ѕ' | 'ꜱ' => 's',
        'т' | 'Т' | 'τ' | 'Τ' | 'ᴛ' => 't',
        'υ' | 'ᴜ' => 'u',
        'ν' | 'ѵ' | 'Ѵ' | 'ᴠ' => 'v',
        'ԝ' | 'Ԝ' | 'ω' | 'ᴡ' => 'w',
        'х' | 'Х' | 'χ' | 'Χ' => 'x',
        'у' | 'У' | 'γ' | 'Υ' | 'ү' | 'Ү' | 'ʏ' => 'y',
        'Ζ' | 'ᴢ' => 'z',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, expected: &str, tricks: [u32; 4]) {
        let folded = fold(input);
        assert_eq!(folded.text, expected, "{input:?}");
        let t = folded.tricks;
        assert_eq!([t.invisible, t.homoglyphs, t.styled, t.spaced_words], tricks, "{input:?}");
    }

    #[test]
    fn texts_fold() {
        check("", "", [0; 4]);
        check("  Think\tStep-by-STEP \n", "think step by step", [0; 4]);
        check("th\u{200b}ink\u{feff} now", "think now", [2, 0, 0, 0]);
        check("ſtep étape Größe", "step etape grosse", [0; 4]);
        check("thіnk stеp", "think step", [0, 2, 0, 0]);
        check("ΑΒΟΤ", "abot", [0, 4, 0, 0]);
        check("α + β = 90", "α + β = 90", [0; 4]);
        check("ｔｈｉｎｋ 𝐬𝐭𝐞𝐩 ⓑⓨ", "think step by", [0, 0, 11, 0]);
        check("t h i n k  s t e p", "think step", [0, 0, 0, 2]);
        check("so t h i n k  b y step", "so think by step", [0, 0, 0, 2]);
        check("t h i n k  step", "think step", [0, 0, 0, 1]);
        check("t-h-i-n-k", "think", [0, 0, 0, 1]);
        check("a b c", "a b c", [0; 4]);
        check("a  b", "a b", [0; 4]);
        check("x y z 1 2 3 4 5", "x y z 1 2 3 4 5", [0; 4]);
        check("let\u{2019}s \u{201c}go\u{201d}", "let's \"go\"", [0; 4]);
    }

    #[test]
    fn other_languages_stay_themselves() {
        check("думай шаг за шагом", "думай шаг за шагом", [0; 4]);
        check("Он сел и хор пел", "он сел и хор пел", [0; 4]);
        check("для LLMов и API", "для llmов и api", [0; 4]);
        check("for жук thіnk", "for жук think", [0, 1, 0, 0]);
        check("请一步一步思考", "请一步一步思考", [0; 4]);
        check("단계별로 생각", "단계별로 생각", [0; 4]);
        check("ステップごとに", "ステップごとに", [0; 4]);
        check("👨\u{200d}👩\u{200d}👧 ❤\u{fe0f}", "👨👩👧 ❤", [0; 4]);
        check("می\u{200c}خواهم", "میخواهم", [0; 4]);
    }

    #[test]
    fn long_texts_are_read_at_both_ends() {
        let long = format!("begin {} end", "middle ".repeat(3000));
        let folded = fold(&long);
        assert!(folded.clipped);
        assert!(folded.text.len() <= HEAD_BYTES + TAIL_BYTES + 8);
        assert!(folded.text.starts_with("begin") && folded.text.ends_with("end"));
        let wide = "界".repeat(5000);
        assert!(fold(&wide).clipped);
    }
}
