//! A text as 256 numbers: the sum of its word pieces' vectors from a static table.
//!
//! Sees: which words a text is made of, with words of like meaning near each other.
//! Why: a paraphrase keeps its meaning and loses its wording (T-DIST-009); a table needs no model
//! at run time and costs microseconds.
//! Wrong when: word order or negation carries the meaning, the text is not English, or the text is
//! mostly data with a short instruction in the middle.
//! Source: Model2Vec's idea (a sentence model's vectors of single tokens), fitted as a bag of tokens;
//! see `tools/make_embedding.py`, which also documents the file.
//!
//! Sums are of integers, exact in any order, and the few divisions after them are IEEE operations:
//! the same text gives the same vector on every machine.

use std::borrow::Cow;

/// Numbers in a vector.
pub const DIMENSIONS: usize = 256;
/// Word pieces read of a text: three quarters from its beginning, the rest from its end.
pub const TOKENS_MAX: usize = 256;
const HEAD_TOKENS: usize = 192;
/// Word pieces at the beginning that are also read apart from the rest.
pub const OPENING_TOKENS: usize = 64;
/// Bytes at the end of a long text in which the last tokens are looked for.
const TAIL_BYTES: usize = 320;
/// A longer word is an encoding or a key, not a word.
const WORD_BYTES_MAX: usize = 40;

const MAGIC: &[u8; 8] = b"STILLEMB";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const ROWS_MAX: usize = 60_000;

/// A table that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Not a table, or of another version.
    #[error("not an embedding table of version {VERSION}")]
    Magic,
    /// Cut short, too long, or with impossible sizes.
    #[error("the embedding table's sizes do not fit its length")]
    Length,
    /// Changed since it was made.
    #[error("the embedding table's checksum is wrong")]
    Checksum,
    /// A vocabulary that is not UTF-8 lines.
    #[error("the embedding table's vocabulary cannot be read")]
    Vocabulary,
}

/// The static table. The vectors stay where they are; only the index is built.
pub struct Table {
    bytes: Cow<'static, [u8]>,
    /// One for each row. Kept as sixteen bits, not as the file's bytes: a compiler that knows them to
    /// be small would multiply in thirty-two bits, at twice the price.
    weights: Vec<i16>,
    rows_at: usize,
    /// Open addressing over the vocabulary, at most half full. Two namespaces: pieces that begin a
    /// word and pieces that continue one.
    slots: Vec<Slot>,
    rows: usize,
    /// Bytes of the longest piece.
    piece_bytes_max: usize,
}

#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    /// Row plus one; 0 for an empty slot.
    row: u16,
    length: u8,
    /// Whether the piece continues a word.
    inner: bool,
    /// Where the piece stands in the file, without its "##".
    at: u32,
}

/// A text's direction: 256 numbers of length 1, or all zero where no word was known.
///
/// Kept as sixteen-bit fractions of [`UNIT`], whose products a plain x86-64 adds up twice as fast as
/// `f32`, and exactly.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Embedding([i16; DIMENSIONS]);

/// Length 1. Rounding may lengthen a vector by a few of these; sums of products still fit in
/// thirty-one bits.
const UNIT: i16 = 32_000;

impl Table {
    /// Reads a table made by `tools/make_embedding.py`; borrows static bytes.
    ///
    /// # Errors
    ///
    /// When the bytes are not a whole, unchanged table of this version.
    pub fn parse(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, TableError> {
        let bytes = bytes.into();
        if bytes.get(..8) != Some(MAGIC) || word(&bytes, 8) != Some(VERSION) {
            return Err(TableError::Magic);
        }
        let size = |at| word(&bytes, at).map(|n| n as usize).ok_or(TableError::Length);
        let (rows, dimensions, vocabulary) = (size(12)?, size(16)?, size(20)?);
        let checksum = bytes.get(24..32).ok_or(TableError::Length)?;
        if rows == 0 || rows > ROWS_MAX || dimensions != DIMENSIONS || vocabulary > bytes.len() {
            return Err(TableError::Length);
        }
        let weights_at = HEADER_BYTES + vocabulary;
        let rows_at = weights_at + rows;
        if bytes.len() != rows_at + rows * DIMENSIONS {
            return Err(TableError::Length);
        }
        if fnv1a(&bytes[HEADER_BYTES..]).to_le_bytes() != checksum {
            return Err(TableError::Checksum);
        }
        let (slots, piece_bytes_max) = index(&bytes[..weights_at], rows)?;
        let weights = bytes[weights_at..rows_at].iter().copied().map(i16::from).collect();
        Ok(Self { bytes, weights, rows_at, slots, rows, piece_bytes_max })
    }

    /// How many word pieces the table knows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The direction of a text that was folded by [`super::normalise::fold`].
    #[must_use]
    pub fn embed(&self, folded: &str) -> Embedding {
        self.embed_with_opening(folded).0
    }

    /// The direction of a folded text, and that of its first [`OPENING_TOKENS`] where it has more:
    /// instructions tend to stand before what they are about.
    #[must_use]
    pub fn embed_with_opening(&self, folded: &str) -> (Embedding, Option<Embedding>) {
        let mut tokens = Tokens { rows: [0; TOKENS_MAX], count: 0 };
        let end = self.cut(folded.as_bytes(), HEAD_TOKENS, &mut tokens);
        let rest = &folded.as_bytes()[end..];
        // The end of a long text is where the answer's form is asked for. A cut inside a character
        // or a word only loses that word.
        let mut tail = rest.len().saturating_sub(TAIL_BYTES);
        if tail > 0 {
            tail += rest[tail..].iter().position(|&b| b == b' ').unwrap_or(0);
        }
        self.cut(&rest[tail..], TOKENS_MAX, &mut tokens);
        let (opening, further) =
            tokens.rows[..tokens.count].split_at(tokens.count.min(OPENING_TOKENS));
        let mut sums = [0_i32; DIMENSIONS];
        self.sum(opening, &mut sums);
        if further.is_empty() {
            return (Embedding::of(&sums), None);
        }
        let opening = Embedding::of(&sums);
        self.sum(further, &mut sums);
        (Embedding::of(&sums), Some(opening))
    }

    /// Cuts a text into pieces until there are `most`; says how far it read.
    fn cut(&self, text: &[u8], most: usize, tokens: &mut Tokens) -> usize {
        let mut at = 0;
        while at < text.len() && tokens.count < most {
            let start = at;
            while at < text.len() && (text[at].is_ascii_alphanumeric() || !text[at].is_ascii()) {
                at += 1;
            }
            if at > start {
                self.cut_word(&text[start..at], most, tokens);
                continue;
            }
            at += 1;
            if text[start].is_ascii_punctuation()
                && let Some(row) = self.find(&text[start..at], false)
            {
                tokens.push(row, most);
            }
        }
        at
    }

    fn cut_word(&self, word: &[u8], most: usize, tokens: &mut Tokens) {
        if word.len() > WORD_BYTES_MAX {
            return;
        }
        if let Some(row) = self.find(word, false) {
            tokens.push(row, most);
            return;
        }
        let before = tokens.count;
        let mut start = 0;
        while start < word.len() {
            let mut end = word.len().min(start + self.piece_bytes_max);
            let row = loop {
                if end == start {
                    // A word that cannot be covered says nothing.
                    tokens.count = before;
                    return;
                }
                if let Some(row) = self.find(&word[start..end], start > 0) {
                    break row;
                }
                end -= 1;
            };
            tokens.push(row, most);
            start = end;
        }
    }

    fn find(&self, piece: &[u8], inner: bool) -> Option<u16> {
        let hash = hash(piece, inner);
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = &self.slots[at];
            if slot.row == 0 {
                return None;
            }
            if slot.hash == hash && slot.inner == inner && usize::from(slot.length) == piece.len() {
                let from = slot.at as usize;
                if &self.bytes[from..from + piece.len()] == piece {
                    return Some(slot.row - 1);
                }
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds the weighted rows: exact, and so the same in any order.
    fn sum(&self, rows: &[u16], sums: &mut [i32; DIMENSIONS]) {
        // Two rows at a time, so that the sums are read and written half as often.
        for two in rows.chunks(2) {
            let (wa, a) = self.row(two[0]);
            let (wb, b) = two.get(1).map_or((0, &[0; DIMENSIONS]), |&row| self.row(row));
            for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                *sum += times(wa, a) + times(wb, b);
            }
        }
    }

    fn row(&self, row: u16) -> (i16, &[u8; DIMENSIONS]) {
        let row = usize::from(row);
        let numbers = self.bytes[self.rows_at + row * DIMENSIONS..].first_chunk();
        // `parse` made sure that every row is whole.
        (self.weights[row], numbers.unwrap_or(&[0; DIMENSIONS]))
    }
}

/// Word pieces of one text.
struct Tokens {
    rows: [u16; TOKENS_MAX],
    count: usize,
}

impl Tokens {
    fn push(&mut self, row: u16, most: usize) {
        if self.count < most {
            self.rows[self.count] = row;
            self.count += 1;
        }
    }
}

/// A weight times a row's signed byte: 255 * 127 fits in sixteen bits.
fn times(weight: i16, number: u8) -> i32 {
    i32::from(weight.wrapping_mul(i16::from(number.cast_signed())))
}

impl Embedding {
    fn of(sums: &[i32; DIMENSIONS]) -> Self {
        let square: i64 = sums.iter().map(|&s| i64::from(s) * i64::from(s)).sum();
        let mut numbers = [0; DIMENSIONS];
        if square > 0 {
            #[expect(clippy::cast_precision_loss, reason = "rounding is the same everywhere")]
            let scale = f64::from(UNIT) / (square as f64).sqrt();
            for (number, &sum) in numbers.iter_mut().zip(sums) {
                #[expect(clippy::cast_possible_truncation, reason = "at most UNIT")]
                let fraction = (f64::from(sum) * scale).round() as i16;
                *number = fraction;
            }
        }
        Self(numbers)
    }

    /// The numbers, each -1 to 1.
    #[must_use]
    pub fn numbers(&self) -> [f32; DIMENSIONS] {
        self.0.map(|n| f32::from(n) / f32::from(UNIT))
    }

    /// Whether no word of the text was known.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|&n| n == 0)
    }

    /// The cosine of the angle between two texts, -1 to 1; 0 where one of them is zero.
    #[must_use]
    pub fn cosine(&self, other: &Self) -> f32 {
        let products = self.0.iter().zip(&other.0);
        let dot: i32 = products.map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
        #[expect(clippy::cast_precision_loss, reason = "rounding is the same everywhere")]
        let cosine = dot as f32 / (f32::from(UNIT) * f32::from(UNIT));
        cosine.clamp(-1.0, 1.0)
    }
}

fn index(bytes: &[u8], rows: usize) -> Result<(Vec<Slot>, usize), TableError> {
    let empty = Slot { hash: 0, row: 0, length: 0, inner: false, at: 0 };
    let mut slots = vec![empty; (rows * 2).next_power_of_two()];
    let mask = slots.len() - 1;
    let mut longest = 1;
    let mut at = HEADER_BYTES;
    for row in 0..rows {
        let rest = bytes.get(at..).ok_or(TableError::Vocabulary)?;
        let end = rest.iter().position(|&b| b == b'\n').ok_or(TableError::Vocabulary)?;
        let token = &rest[..end];
        let inner = token.len() > 2 && token.starts_with(b"##");
        let piece = if inner { &token[2..] } else { token };
        let (Ok(length), Ok(place), Ok(number)) = (
            u8::try_from(piece.len()),
            u32::try_from(at + token.len() - piece.len()),
            u16::try_from(row + 1),
        ) else {
            return Err(TableError::Vocabulary);
        };
        if length == 0 || std::str::from_utf8(token).is_err() {
            return Err(TableError::Vocabulary);
        }
        let hash = hash(piece, inner);
        let mut slot = hash as usize & mask;
        while slots[slot].row != 0 {
            slot = (slot + 1) & mask;
        }
        slots[slot] = Slot { hash, row: number, length, inner, at: place };
        longest = longest.max(piece.len());
        at += end + 1;
    }
    if at == bytes.len() { Ok((slots, longest)) } else { Err(TableError::Vocabulary) }
}

/// Eight bytes at a time; only ever compared within one process.
fn hash(piece: &[u8], inner: bool) -> u32 {
    let mut hash = 0x9e37_79b9_7f4a_7c15_u64 ^ (piece.len() as u64) << 1 ^ u64::from(inner);
    for chunk in piece.chunks(8) {
        let mut eight = [0; 8];
        eight[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(eight)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 32;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the low half is the hash")]
    let low = hash as u32;
    low
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// SplitMix64's finaliser, for numbers that look like anything.
    fn mix(n: u64) -> u64 {
        let mut z = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A table of given pieces, each with a vector of its own.
    pub(crate) fn table_of(pieces: &[&str]) -> Vec<u8> {
        let vocabulary: String = pieces.iter().flat_map(|p| [p, "\n"]).collect();
        let mut body = vocabulary.clone().into_bytes();
        body.extend(pieces.iter().map(|_| 255));
        for row in 0..pieces.len() {
            body.extend((0..DIMENSIONS).map(|d| {
                let signs = mix((row * DIMENSIONS + d) as u64);
                if signs & 1 == 1 { 127_i8 } else { -127 }.cast_unsigned()
            }));
        }
        let mut file = MAGIC.to_vec();
        for n in [VERSION as usize, pieces.len(), DIMENSIONS, vocabulary.len()] {
            file.extend(u32::try_from(n).unwrap().to_le_bytes());
        }
        file.extend(fnv1a(&body).to_le_bytes());
        file.extend(body);
        file
    }

    #[test]
    fn words_are_cut_into_the_longest_pieces() {
        let table = Table::parse(table_of(&["think", "##ing", "step", "s", "##t", "!"])).unwrap();
        let one = |text| table.embed(text);
        assert!(one("thinking").cosine(&one("think")) > 0.5);
        assert!(one("stt").cosine(&one("s")) > 0.3);
        assert!(one("unknown").is_zero());
        assert_eq!(one("unknown").cosine(&one("step")), 0.0);
        assert!((one("step step").cosine(&one("step")) - 1.0).abs() < 1e-3);
        assert!(one("step!") != one("step"));
        assert!(one("thinkqqq").is_zero(), "a word that cannot be covered says nothing");
    }

    #[test]
    fn the_tail_of_a_long_text_counts() {
        let table = Table::parse(table_of(&["think", "step"])).unwrap();
        let long = format!("{}{}", "think ".repeat(400), "step ".repeat(64));
        let plain = "think ".repeat(464);
        assert!(table.embed(&long) != table.embed(&plain));
        assert!(table.embed(&long).cosine(&table.embed("step")) > 0.2);
    }

    #[test]
    fn broken_tables_are_refused() {
        let good = table_of(&["a", "b"]);
        let broken = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            Table::parse(bytes).err()
        };
        assert_eq!(broken(&|_| ()), None);
        assert_eq!(broken(&|b| b.clear()), Some(TableError::Magic));
        assert_eq!(broken(&|b| b[8] = 2), Some(TableError::Magic));
        assert_eq!(broken(&|b| b.truncate(20)), Some(TableError::Length));
        assert_eq!(broken(&|b| b[15] = 255), Some(TableError::Length));
        assert_eq!(broken(&|b| b[23] = 255), Some(TableError::Length));
        assert_eq!(broken(&|b| b.push(0)), Some(TableError::Length));
        assert_eq!(broken(&|b| *b.last_mut().unwrap() ^= 1), Some(TableError::Checksum));
    }
}
