//! Layer A: an account's pseudonym in characters that nobody sees.
//!
//! Sees: runs of zero-width characters in a text that comes back, in a prompt or in a data set.
//! Why: a copied answer brings them along, through NFKC and collapsing of white space (T-DIST-008).
//! Wrong when: whoever copies strips characters of category Cf or default-ignorable ones; then the
//! layer is gone altogether. Whoever holds a marked text can copy its frames into another: they say
//! where a text came from, not who sent it on.
//!
//! # The form
//!
//! A frame is eight bytes: a tag of the account (24 bits), the epoch (16), a truncated HMAC (24).
//! They are masked with the key and become twelve by a Reed-Solomon code over GF(256) (Reed and
//! Solomon, "Polynomial Codes over Certain Finite Fields", 1960), so that any eight of the twelve
//! give the frame. Each coded byte travels in a cell of seven characters: its index (4 bits), the
//! byte (8), a check (2). As each cell says where it belongs, there is no other sync, cells may be
//! lost or stand between foreign ones, and two parts of a text may complete one another.
//!
//! A cell stands after the last letter of a word and before the space that follows, never beside
//! anything else, so no grapheme cluster is touched. With a cell every [`CELL_WORDS`] words a frame
//! is whole after 96 words, and can be read from any 64.

use std::collections::BTreeMap;

use serde::Serialize;

use super::keys::Prf;

/// Words from one cell to the next.
pub const CELL_WORDS: u32 = 8;
/// Frames with the same tag and epoch that must be found before they count as evidence.
pub const AGREEING_MIN: u32 = 2;

const SYMBOLS: [char; 4] = ['\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}'];
const CELL_SYMBOLS: usize = 7;
const DATA: usize = 8;
const CODED: usize = 12;
/// A run of zero-width characters longer than this is no cell of ours with company.
const RUN_MAX: usize = 16;
/// Cells seen since; older ones belong to another text.
const CELLS_REMEMBERED: u64 = 24;
/// Searches for wrong cells in one document: the only step that is not a few table look-ups.
const REPAIRS_MAX: u32 = 512;
/// Different frames that are kept.
const FRAMES_MAX: usize = 4096;

/// Whether a character belongs to the alphabet of the cells.
pub(crate) fn symbol(c: char) -> Option<u8> {
    match c {
        '\u{200b}' => Some(0),
        '\u{200c}' => Some(1),
        '\u{200d}' => Some(2),
        '\u{2060}' => Some(3),
        _ => None,
    }
}

/// What of an account stands in its frames: 24 bits of an HMAC.
#[must_use]
pub fn account_tag(key: &Prf, account: &str) -> u32 {
    let hash = key.hash(b"account", &[account.as_bytes()]);
    u32::from_be_bytes([0, hash[0], hash[1], hash[2]])
}

/// The cells of one account and epoch, in order.
#[derive(Clone, Debug)]
pub struct Payload {
    cells: [String; CODED],
}

impl Payload {
    /// Makes the cells.
    #[must_use]
    pub fn new(key: &Prf, account: &str, epoch: u16) -> Self {
        let tag = account_tag(key, account);
        let mut frame = [0; DATA];
        frame[..3].copy_from_slice(&tag.to_be_bytes()[1..]);
        frame[3..5].copy_from_slice(&epoch.to_be_bytes());
        frame[5..].copy_from_slice(&proof(key, tag, epoch));
        let mask = mask(key);
        let mut points = [(0, 0); DATA];
        for (at, byte) in frame.iter().enumerate() {
            points[at] = (at as u8, byte ^ mask[at]);
        }
        let cells = std::array::from_fn(|at| cell(at as u8, interpolate(&points, at as u8)));
        Self { cells }
    }

    /// A cell, counted on without end.
    pub(crate) fn cell(&self, number: u32) -> &str {
        &self.cells[number as usize % CODED]
    }
}

fn proof(key: &Prf, tag: u32, epoch: u16) -> [u8; 3] {
    let hash = key.hash(b"frame", &[&tag.to_be_bytes(), &epoch.to_be_bytes()]);
    [hash[0], hash[1], hash[2]]
}

fn mask(key: &Prf) -> [u8; DATA] {
    let hash = key.hash(b"mask", &[]);
    std::array::from_fn(|at| hash[at])
}

fn cell(index: u8, byte: u8) -> String {
    let bits = u16::from(index) << 10 | u16::from(byte) << 2 | u16::from(check(index, byte));
    (0..CELL_SYMBOLS).rev().map(|at| SYMBOLS[usize::from(bits >> (2 * at) & 3)]).collect()
}

fn check(index: u8, byte: u8) -> u8 {
    // Differing weights, so that two symbols that changed places are noticed.
    let [a, b, c, d] = [byte >> 6, byte >> 4 & 3, byte >> 2 & 3, byte & 3];
    (a + 2 * b + 3 * c + d + 3 * index + (index >> 2) + 1) & 3
}

fn read_cell(run: &[u8]) -> Option<(u8, u8)> {
    let bits = run.iter().fold(0_u16, |bits, symbol| bits << 2 | u16::from(*symbol));
    let (index, byte) = ((bits >> 10) as u8, (bits >> 2) as u8);
    (usize::from(index) < CODED && check(index, byte) == bits as u8 & 3).then_some((index, byte))
}

/// Frames found so far, over any number of documents.
#[derive(Clone, Debug)]
pub struct FrameReader {
    key: Prf,
    mask: [u8; DATA],
    /// The latest byte of each index, and the number of its cell.
    cells: [Option<(u8, u64)>; CODED],
    run: Vec<u8>,
    run_too_long: bool,
    repairs: u32,
    found: Frames,
}

/// What a [`FrameReader`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Frames {
    /// Authenticated frames by tag and epoch: how often each was found, no cell used twice.
    #[serde(serialize_with = "as_list")]
    pub found: BTreeMap<(u32, u16), u32>,
    /// Cells read.
    pub cells: u64,
    /// Tries to authenticate. Cells of noise pass with 2^-24 each.
    pub attempts: u64,
    /// Frames not kept for want of room.
    pub overflow: u64,
}

fn as_list<S: serde::Serializer>(
    found: &BTreeMap<(u32, u16), u32>,
    out: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Frame {
        tag: String,
        epoch: u16,
        count: u32,
    }
    out.collect_seq(found.iter().map(|((tag, epoch), count)| Frame {
        tag: format!("{tag:06x}"),
        epoch: *epoch,
        count: *count,
    }))
}

impl FrameReader {
    /// A reader with the layer's key.
    #[must_use]
    pub fn new(key: Prf) -> Self {
        Self {
            mask: mask(&key),
            key,
            cells: [None; CODED],
            run: Vec::with_capacity(RUN_MAX),
            run_too_long: false,
            repairs: 0,
            found: Frames::default(),
        }
    }

    /// Reads one document. Time is linear in its length, memory constant.
    pub fn read(&mut self, text: &str) {
        self.cells = [None; CODED];
        self.repairs = 0;
        // All four symbols begin with this byte, and little else in most texts does.
        let bytes = text.as_bytes();
        let mut at = 0;
        while let Some(found) = memchr::memchr(0xe2, &bytes[at..]) {
            at += found;
            let mut end = at;
            for c in text[at..].chars() {
                if let Some(symbol) = symbol(c) {
                    if self.run.len() < RUN_MAX {
                        self.run.push(symbol);
                    } else {
                        self.run_too_long = true;
                    }
                } else if !foreign(c) {
                    break;
                }
                end += c.len_utf8();
            }
            self.end_run();
            at = if end > at { end } else { at + 3 };
        }
    }

    /// What was found so far.
    #[must_use]
    pub fn frames(&self) -> &Frames {
        &self.found
    }

    fn end_run(&mut self) {
        let mut cells = self.run.windows(CELL_SYMBOLS).filter_map(read_cell);
        let only = match (cells.next(), cells.next()) {
            (Some(cell), None) if !self.run_too_long => Some(cell),
            _ => None,
        };
        self.run.clear();
        self.run_too_long = false;
        if let Some((index, byte)) = only {
            self.cell(index, byte);
        }
    }

    fn cell(&mut self, index: u8, byte: u8) {
        self.found.cells += 1;
        let now = self.found.cells;
        self.cells[usize::from(index)] = Some((byte, now));
        let mut points: Vec<(u64, u8, u8)> = Vec::with_capacity(CODED);
        for (at, cell) in self.cells.iter_mut().enumerate() {
            match cell {
                Some((byte, number)) if now - *number < CELLS_REMEMBERED => {
                    points.push((*number, at as u8, *byte));
                }
                _ => *cell = None,
            }
        }
        if points.len() < DATA {
            return;
        }
        // The latest first: earlier ones may be of another text.
        points.sort_unstable_by(|a, b| b.cmp(a));
        if self.attempt(&points, [usize::MAX; 2]) {
            return;
        }
        // One or two wrong cells among more than are needed.
        let spare = points.len() - DATA;
        if spare == 0 || self.repairs >= REPAIRS_MAX {
            return;
        }
        self.repairs += 1;
        for first in 0..points.len() {
            if self.attempt(&points, [first, usize::MAX]) {
                return;
            }
            if spare < 2 {
                continue;
            }
            for second in 0..first {
                if self.attempt(&points, [first, second]) {
                    return;
                }
            }
        }
    }

    /// Tries the latest cells, some left out.
    fn attempt(&mut self, cells: &[(u64, u8, u8)], without: [usize; 2]) -> bool {
        self.found.attempts += 1;
        let mut points = [(0, 0); DATA];
        let taken = cells.iter().enumerate().filter(|(at, _)| !without.contains(at));
        for (point, (_, (_, index, byte))) in points.iter_mut().zip(taken) {
            *point = (*index, *byte);
        }
        let frame: [u8; DATA] =
            std::array::from_fn(|at| interpolate(&points, at as u8) ^ self.mask[at]);
        let tag = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
        let epoch = u16::from_be_bytes([frame[3], frame[4]]);
        if proof(&self.key, tag, epoch)[..] != frame[5..] {
            return false;
        }
        // The next frame must be made of other cells.
        self.cells = [None; CODED];
        if self.found.found.len() < FRAMES_MAX || self.found.found.contains_key(&(tag, epoch)) {
            let count = self.found.found.entry((tag, epoch)).or_default();
            *count = count.saturating_add(1);
        } else {
            self.found.overflow += 1;
        }
        true
    }
}

/// Other invisible characters, which do not end a run.
fn foreign(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{200e}' | '\u{200f}' | '\u{2061}'..='\u{2064}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}')
}

/// The value at `x` of the polynomial of degree below eight through the points, over GF(256).
fn interpolate(points: &[(u8, u8); DATA], x: u8) -> u8 {
    if let Some((_, y)) = points.iter().find(|(at, _)| *at == x) {
        return *y;
    }
    points.iter().fold(0, |sum, &(xi, yi)| {
        let term = points
            .iter()
            .filter(|(xj, _)| *xj != xi)
            .fold(yi, |product, &(xj, _)| multiply(product, divide(x ^ xj, xi ^ xj)));
        sum ^ term
    })
}

/// Powers of 2 modulo x^8 + x^4 + x^3 + x^2 + 1, and their logarithms.
const TABLES: ([u8; 255], [u8; 256]) = {
    let (mut powers, mut logarithms) = ([0; 255], [0; 256]);
    let (mut value, mut at) = (1_u16, 0);
    while at < 255 {
        powers[at] = value as u8;
        logarithms[value as usize] = at as u8;
        value <<= 1;
        if value & 0x100 != 0 {
            value ^= 0x11d;
        }
        at += 1;
    }
    (powers, logarithms)
};

fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    let [a, b] = [a, b].map(|factor| usize::from(TABLES.1[usize::from(factor)]));
    TABLES.0[(a + b) % 255]
}

/// `b` is not zero: it is the difference of two points.
fn divide(a: u8, b: u8) -> u8 {
    if a == 0 {
        return 0;
    }
    let [a, b] = [a, b].map(|factor| usize::from(TABLES.1[usize::from(factor)]));
    TABLES.0[(a + 255 - b) % 255]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::keys::MasterKey;
    use super::*;

    fn key(byte: u8) -> Prf {
        MasterKey::new(&[byte; 32]).unwrap().zero_width()
    }

    fn marked(cells: impl Iterator<Item = u32>) -> String {
        let payload = Payload::new(&key(1), "account", 2900);
        cells.map(|at| format!("word{} and more ", payload.cell(at))).collect()
    }

    fn read(text: &str) -> Frames {
        let mut reader = FrameReader::new(key(1));
        reader.read(text);
        reader.found
    }

    fn count(text: &str) -> u32 {
        let tag = account_tag(&key(1), "account");
        read(text).found.get(&(tag, 2900)).copied().unwrap_or(0)
    }

    #[test]
    fn the_field_is_a_field() {
        for a in 1..=255 {
            assert_eq!(divide(a, a), 1);
            for b in 1..=255 {
                assert_eq!(divide(multiply(a, b), b), a);
            }
        }
        // FIPS 197 uses another polynomial; 2 * 0x80 shows ours.
        assert_eq!(multiply(2, 0x80), 0x1d);
    }

    #[test]
    fn frames_are_read_wherever_a_text_begins() {
        assert_eq!(count(&marked(0..7)), 0);
        assert_eq!(count(&marked(0..8)), 1);
        for start in 0..12 {
            assert_eq!(count(&marked(start..start + 16)), 2, "{start}");
        }
        assert_eq!(count(&marked((0..24).filter(|at| at % 3 != 0))), 2);
    }

    #[test]
    fn foreign_characters_do_no_harm() {
        let text = marked(0..16);
        assert_eq!(count(&text.replace("and", "a\u{200b}nd\u{feff}")), 2);
        assert_eq!(count(&text.replace(" and", "\u{fe0f} \u{2060}and")), 2);
        assert_eq!(count(&text.replace('\u{200b}', "")), 0);
    }

    #[test]
    fn wrong_cells_are_repaired() {
        let payload = Payload::new(&key(1), "account", 2900);
        let other = Payload::new(&key(1), "other", 2900);
        let text: String = (0..12)
            .map(|at| if at == 2 || at == 5 { other.cell(at) } else { payload.cell(at) })
            .map(|cell| format!("word{cell} "))
            .collect();
        assert_eq!(count(&text), 1);
    }

    #[test]
    fn another_key_reads_nothing() {
        let mut reader = FrameReader::new(key(2));
        reader.read(&marked(0..100));
        assert!(reader.found.found.is_empty());
        assert_eq!(reader.found.cells, 100);
    }

    #[test]
    fn documents_are_apart() {
        let mut reader = FrameReader::new(key(1));
        for at in 0..12 {
            reader.read(&marked(at..at + 1));
        }
        assert!(reader.found.found.is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_text_authenticates_nothing(text in "\\PC*") {
            prop_assert!(read(&text).found.is_empty());
        }

        #[test]
        fn noise_of_symbols_authenticates_nothing(
            text in "([\u{200b}\u{200c}\u{200d}\u{2060}]{7,9} ){0,80}"
        ) {
            prop_assert!(read(&text).found.is_empty());
        }
    }
}
