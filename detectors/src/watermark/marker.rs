//! Puts the marks into a text that streams by.
//!
//! Each piece of a text goes out as soon as it is known not to begin a place where a choice can be
//! made; what is held back is at most [`HELD_BYTES_MAX`]. What goes out does not depend on how the
//! text was cut into pieces, unless a timer flushed it.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::canary::{Canaries, Kind, Placeholder};
use super::guard::{FenceTracker, Guard};
use super::keys::{MasterKey, Prf};
use super::lexical::{self, Look, Wordings};
use super::words::Words;
use super::zero_width::{CELL_WORDS, Payload, symbol};

/// Most that is ever held back, in bytes.
pub const HELD_BYTES_MAX: usize = 64;
/// Edits of one text; from then on it passes unmarked. About 1,500 pages of prose.
pub const EDITS_MAX: usize = 1 << 16;

/// Which layers mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Layer A.
    pub zero_width: bool,
    /// Layer B.
    pub lexical: bool,
    /// Layer C.
    pub canary: bool,
}

impl Layers {
    /// All of them.
    pub const ALL: Self = Self { zero_width: true, lexical: true, canary: true };
}

/// For whom an answer is marked.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'t> {
    /// The account that asked: layer A.
    pub account: &'t str,
    /// Its cluster, or the account itself where it has none: layers B and C.
    pub subject: &'t str,
    /// The week, as [`super::keys::epoch`] counts.
    pub epoch: u16,
}

/// What is put into an answer; shared by all its texts.
#[derive(Debug)]
pub struct Marking {
    zero_width: Option<Payload>,
    lexical: Option<(Prf, Arc<Wordings>)>,
    canary: Option<Canaries>,
}

impl Marking {
    /// Prepares the marks of one answer. `prompt` is every text of the request: what stands there
    /// is the caller's and is not exchanged for a canary.
    #[must_use]
    pub fn new<'p>(
        layers: Layers,
        key: &MasterKey,
        wordings: &Arc<Wordings>,
        identity: Identity<'_>,
        prompt: impl IntoIterator<Item = &'p str>,
    ) -> Self {
        let Identity { account, subject, epoch } = identity;
        let canary = layers.canary.then(|| {
            let mut canaries = Canaries::new(&key.canary(), subject, epoch);
            prompt.into_iter().for_each(|text| canaries.spare(text));
            canaries
        });
        Self {
            zero_width: layers.zero_width.then(|| Payload::new(&key.zero_width(), account, epoch)),
            lexical: layers.lexical.then(|| (key.lexical(subject), Arc::clone(wordings))),
            canary,
        }
    }
}

/// One change of a text. Its `Debug` shows lengths only.
#[derive(Clone, PartialEq, Eq)]
pub struct Edit {
    /// Byte in the text as it was pushed.
    pub at: usize,
    /// What stood there.
    pub removed: Box<str>,
    /// What went out in its place.
    pub inserted: Box<str>,
}

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Edit(at {}, -{} +{})", self.at, self.removed.len(), self.inserted.len())
    }
}

/// Makes the marked text of an original. `None` where the edits are not of this text.
#[must_use]
pub fn apply(original: &str, edits: &[Edit]) -> Option<String> {
    replay(original, edits.iter().map(|edit| (edit.at, &*edit.removed, &*edit.inserted)))
}

/// Makes the original of a marked text. `None` where the edits are not of this text.
#[must_use]
pub fn restore(marked: &str, edits: &[Edit]) -> Option<String> {
    let mut shift = 0_isize;
    let back: Option<Vec<_>> = edits
        .iter()
        .map(|edit| {
            let at = edit.at.checked_add_signed(shift)?;
            shift += edit.inserted.len().checked_signed_diff(edit.removed.len())?;
            Some((at, &*edit.inserted, &*edit.removed))
        })
        .collect();
    replay(marked, back?.into_iter())
}

fn replay<'e>(
    text: &str,
    edits: impl Iterator<Item = (usize, &'e str, &'e str)>,
) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (at, removed, inserted) in edits {
        out.push_str(text.get(done..at)?);
        done = at + text.get(at..)?.strip_prefix(removed).map(|_| removed.len())?;
        out.push_str(inserted);
    }
    out.push_str(text.get(done..)?);
    Some(out)
}

/// How often each layer marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SlotsUsed {
    /// Cells of layer A.
    pub zero_width: u32,
    /// Wordings of layer B that stand as the key asks, those that were so already included.
    pub lexical: u32,
    /// Canaries of layer C.
    pub canary: u32,
}

/// Marks one text as it streams by.
#[derive(Debug)]
pub struct Marker {
    marking: Arc<Marking>,
    /// Until a paragraph begins, where marking began in mid-text.
    waiting: Option<FenceTracker>,
    guard: Guard,
    words: Words,
    /// What was pushed and has not gone out.
    held: Held,
    /// Bytes that have gone out, of the text as pushed.
    passed: usize,
    edits: Vec<Edit>,
    used: SlotsUsed,
    cell: u32,
    words_since_cell: u32,
    /// Kinds of placeholders that were exchanged before: they go on being exchanged.
    exchanged: [bool; Kind::ALL.len()],
    /// Whether placeholders may be exchanged: not where the beginning went out without.
    canaries: bool,
}

/// The tail of the text. No `Debug`: it is an answer.
#[derive(Default)]
struct Held(String);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({} bytes)", self.0.len())
    }
}

/// How much is known of what follows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ahead {
    More,
    Flush,
    End,
}

impl Marker {
    /// From the beginning of a text.
    #[must_use]
    pub fn new(marking: Arc<Marking>) -> Self {
        Self {
            marking,
            waiting: None,
            guard: Guard::new(),
            words: Words::new(),
            held: Held::default(),
            passed: 0,
            edits: Vec::new(),
            used: SlotsUsed::default(),
            cell: 0,
            words_since_cell: 0,
            exchanged: [false; Kind::ALL.len()],
            canaries: true,
        }
    }

    /// From the middle of a text that `fences` has followed. Offsets of edits count from here.
    /// Layer C stays out, as the same placeholders may have gone out before.
    #[must_use]
    pub fn resume(marking: Arc<Marking>, fences: FenceTracker) -> Self {
        Self {
            waiting: (!fences.at_paragraph()).then_some(fences),
            canaries: false,
            ..Self::new(marking)
        }
    }

    /// Takes the next piece of the text and appends to `out` what can go out now.
    pub fn push(&mut self, piece: &str, out: &mut String) {
        self.held.0.push_str(piece);
        self.advance(Ahead::More, out);
    }

    /// Releases what is held, although more may come.
    pub fn flush(&mut self, out: &mut String) {
        self.advance(Ahead::Flush, out);
    }

    /// Releases what is held, as the text has ended.
    pub fn finish(&mut self, out: &mut String) {
        self.advance(Ahead::End, out);
    }

    /// Whether something is held back.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.held.0.is_empty()
    }

    /// What was changed so far, in order.
    #[must_use]
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// How often each layer marked so far.
    #[must_use]
    pub fn slots_used(&self) -> SlotsUsed {
        self.used
    }

    fn advance(&mut self, ahead: Ahead, out: &mut String) {
        let mut text = std::mem::take(&mut self.held.0);
        let mut at = 0;
        while at < text.len() {
            if let Some(tracker) = &mut self.waiting {
                // Character by character, so that it does not matter how the text was cut.
                let len = text[at..].chars().next().map_or(1, char::len_utf8);
                tracker.push(&text[at..at + len]);
                out.push_str(&text[at..at + len]);
                self.passed += len;
                at += len;
                if tracker.at_paragraph() {
                    self.waiting = None;
                }
                continue;
            }
            match self.place(&text[at..], ahead, out) {
                Some(len) => at += len,
                None => break,
            }
        }
        text.drain(..at);
        self.held.0 = text;
    }

    /// Lets out what stands at one place, changed or not: its length. `None`: more must come.
    fn place(&mut self, rest: &str, ahead: Ahead, out: &mut String) -> Option<usize> {
        let c = rest.chars().next()?;
        if self.edits.len() < EDITS_MAX && self.guard.open() {
            let end = ahead == Ahead::End;
            let full = rest.len() > HELD_BYTES_MAX;
            let marking = Arc::clone(&self.marking);
            match self.look_canary(&marking, rest, end) {
                Placeholder::Found { kind, len, replacement } => {
                    self.exchanged[kind as usize] = true;
                    self.used.canary += 1;
                    self.exchange(&rest[..len], &replacement, out);
                    return Some(len);
                }
                Placeholder::More if ahead == Ahead::More && !full => return None,
                Placeholder::More | Placeholder::Nothing => {}
            }
            if let Some((key, wordings)) = &marking.lexical
                && self.words.english()
            {
                match wordings.look(&self.words, rest, end) {
                    Look::Slot(slot) => {
                        let wanted = lexical::bit(key, slot.group, lexical::context(&self.words));
                        match slot.other {
                            Some(other) if wanted != slot.second => {
                                let other = self.in_style_of(&rest[..slot.len], other);
                                self.used.lexical += 1;
                                self.exchange(&rest[..slot.len], &other, out);
                            }
                            _ => {
                                self.used.lexical += u32::from(wanted == slot.second);
                                rest[..slot.len].chars().for_each(|c| self.pass(c, out));
                            }
                        }
                        return Some(slot.len);
                    }
                    Look::More if ahead == Ahead::More && !full => return None,
                    Look::More | Look::Nothing => {}
                }
            }
        }
        self.pass(c, out);
        Some(c.len_utf8())
    }

    fn look_canary(&self, marking: &Marking, rest: &str, end: bool) -> Placeholder {
        let Some(canaries) = marking.canary.as_ref().filter(|_| self.canaries) else {
            return Placeholder::Nothing;
        };
        match canaries.look(&self.words, rest, end) {
            // After code, prose may speak of what the code says.
            Placeholder::Found { kind, .. }
                if self.guard.code_seen && !self.exchanged[kind as usize] =>
            {
                Placeholder::Nothing
            }
            other => other,
        }
    }

    /// Writes a wording with the capital and the apostrophe that the text has.
    fn in_style_of(&self, original: &str, other: &str) -> String {
        let capital = original.starts_with(|c: char| c.is_ascii_uppercase());
        let curly = original.contains('\u{2019}') || self.words.curly && !original.contains('\'');
        let mut styled = String::with_capacity(other.len() + 2);
        for (at, c) in other.chars().enumerate() {
            styled.push(match c {
                '\'' if curly => '\u{2019}',
                _ if at == 0 && capital => c.to_ascii_uppercase(),
                // "I am" is no sign of a capital.
                _ => c,
            });
        }
        styled
    }

    fn exchange(&mut self, original: &str, other: &str, out: &mut String) {
        self.edits.push(Edit { at: self.passed, removed: original.into(), inserted: other.into() });
        self.passed += original.len();
        original.chars().for_each(|c| self.guard.step(c));
        for c in other.chars() {
            self.words.step(c);
            out.push(c);
        }
    }

    /// Lets a character out as it is, with a cell before it where one is due.
    fn pass(&mut self, c: char, out: &mut String) {
        if c == ' ' && self.words.plain_word() {
            self.words_since_cell += 1;
            self.put_cell(out);
        } else if symbol(c).is_some() {
            // The text has such characters of its own: keep away from them.
            self.words_since_cell = 0;
        }
        self.guard.step(c);
        self.words.step(c);
        self.passed += c.len_utf8();
        out.push(c);
    }

    fn put_cell(&mut self, out: &mut String) {
        let Some(payload) = &self.marking.zero_width else { return };
        let due = self.words_since_cell >= CELL_WORDS;
        if !due || !self.guard.open() || self.edits.len() >= EDITS_MAX {
            return;
        }
        let cell = payload.cell(self.cell);
        out.push_str(cell);
        self.edits.push(Edit { at: self.passed, removed: "".into(), inserted: cell.into() });
        self.cell = self.cell.wrapping_add(1);
        self.words_since_cell = 0;
        self.used.zero_width += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::lexical::Tuples;
    use super::super::zero_width::{FrameReader, account_tag};
    use super::*;

    const PROSE: &str = "It is important to know that you are not alone with this. For example, \
        many people often think that it is hard to start with a plan, and they do not ask anyone \
        for help. However, there is a wide range of tools, books, and courses that can help you \
        to improve. Additionally, you may want to ensure that the main goal is clear; in general, \
        this leads to better results\u{2014}and to fewer errors. John Doe (user@example.com) did \
        not wait for order #12345, as he did not have to. ";

    fn key() -> MasterKey {
        MasterKey::new(&[9; 32]).unwrap()
    }

    fn marking(layers: Layers, prompt: &str) -> Arc<Marking> {
        thread_local! {
            static WORDINGS: Arc<Wordings> = Arc::new(Wordings::builtin().unwrap());
        }
        let identity = Identity { account: "acc-1", subject: "cluster-7", epoch: 2969 };
        WORDINGS.with(|table| Arc::new(Marking::new(layers, &key(), table, identity, [prompt])))
    }

    fn mark(text: &str) -> (String, Marker) {
        mark_pieces(Marker::new(marking(Layers::ALL, "")), &[text])
    }

    fn mark_pieces(mut marker: Marker, pieces: &[&str]) -> (String, Marker) {
        let mut out = String::new();
        for piece in pieces {
            marker.push(piece, &mut out);
            assert!(marker.held.0.len() <= HELD_BYTES_MAX);
        }
        marker.finish(&mut out);
        assert!(!marker.holds());
        (out, marker)
    }

    fn cut<'t>(text: &'t str, cuts: &[usize]) -> Vec<&'t str> {
        let mut places: Vec<usize> = cuts
            .iter()
            .map(|cut| cut % (text.len() + 1))
            .filter(|at| text.is_char_boundary(*at))
            .collect();
        places.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for at in places.into_iter().chain([text.len()]) {
            pieces.push(&text[from..at]);
            from = at;
        }
        pieces
    }

    #[test]
    fn prose_is_marked_and_says_the_same() {
        let (out, marker) = mark(PROSE);
        let used = marker.slots_used();
        assert!(used.lexical >= 12 && used.zero_width >= 9 && used.canary == 3, "{used:?}");
        assert!(!out.contains("John Doe") && out.contains(".example.com)"), "{out}");
        assert_eq!(restore(&out, marker.edits()).as_deref(), Some(PROSE));
        assert_eq!(apply(PROSE, marker.edits()), Some(out));
    }

    #[test]
    fn all_votes_agree_with_the_key() {
        let layers = Layers { canary: false, ..Layers::ALL };
        let (out, _) = mark_pieces(Marker::new(marking(layers, "")), &[PROSE]);
        let table = Wordings::builtin().unwrap();
        let mut tuples = Tuples::default();
        tuples.read(&table, &out);
        let votes = tuples.votes(&key().lexical("cluster-7"));
        assert!(votes.of >= 12 && votes.agreeing == votes.of, "{votes:?}");
    }

    #[test]
    fn the_account_is_read_back() {
        let (out, _) = mark(&PROSE.repeat(3));
        let mut reader = FrameReader::new(key().zero_width());
        reader.read(&out);
        let tag = account_tag(&key().zero_width(), "acc-1");
        assert!(reader.frames().found[&(tag, 2969)] >= 2);
    }

    #[test]
    fn nothing_is_touched_where_it_would_do_harm() {
        let slots = "we do not know for example that it is a John Doe of example.com \
            and speed, accuracy, and so on";
        let wide = format!("{PROSE}\n\n");
        for (open, close) in [
            ("```\n", "\n```\n"),
            ("~~~py\n", "\n~~~\n"),
            ("1. ```\n", "\n```\n"),
            ("    ", "\n"),
            ("\t", "\n"),
            ("`", "`"),
            ("``", "``"),
            ("$", "$"),
            ("$$\n", "\n$$\n"),
            ("\\(", "\\)"),
            ("\\[\n", "\n\\]\n"),
            ("\\begin{quote}\n", "\n\\end{quote}\n"),
            ("| ", " |\n"),
            ("> ", "\n"),
            ("\"", "\""),
            ("\u{201c}", "\u{201d}"),
            ("\u{2018}", "\u{2019} "),
            ("\u{ab}", "\u{bb}"),
            ("# ", "\n"),
            ("<p title=\"", "\">"),
            ("<code>", "</code>"),
            ("<pre>\n", "\n</pre>"),
            ("{\"a\": ", "}"),
            ("{\n", "\n}\n"),
            ("[\n", "\n]\n"),
        ] {
            let text = format!("{wide}{open}{slots}{close}");
            let (out, marker) = mark(&text);
            let harmed: Vec<_> = marker.edits().iter().filter(|e| e.at > wide.len()).collect();
            assert!(harmed.is_empty(), "{open:?}: {harmed:?}");
            assert!(out.ends_with(&format!("{slots}{close}")), "{open:?}");
        }
        for text in [
            format!("{{\"text\": \"{PROSE}\"}}"),
            format!("[\n  {PROSE}\n]"),
            format!("<answer>\n{PROSE}"),
        ] {
            assert_eq!(mark(&text).0, text);
        }
    }

    #[test]
    fn addresses_and_names_stay() {
        let text = format!(
            "{PROSE}See https://example.com/do not, www.example.com and a.b/example.com; mail \
             me/you@example.com. John Does it. Captain John Smith, John Doe Smith. It is #12345."
        );
        let (_, marker) = mark(&text);
        let after: Vec<_> = marker
            .edits()
            .iter()
            .filter(|edit| edit.at >= PROSE.len() && !edit.removed.is_empty())
            .collect();
        assert!(after.is_empty(), "{after:?}");
    }

    #[test]
    fn placeholders_after_code_and_of_the_prompt_stay() {
        let (out, _) = mark("Run it:\n\n```\nprint('John Doe')\n```\n\nIt says John Doe to you.");
        assert!(out.contains("It says John Doe to"));
        let asked = Marker::new(marking(Layers::ALL, "Who is John?"));
        let (out, _) = mark_pieces(asked, &["That is John Doe, at example.com now."]);
        assert!(out.contains("John Doe") && out.contains(".example.com now"), "{out}");
    }

    #[test]
    fn most_tokens_pass_at_once() {
        let mut marker = Marker::new(marking(Layers::ALL, ""));
        let (mut out, mut held, mut tokens) = (String::new(), 0, 0);
        let prose = format!(
            "{PROSE}Rivers carry stones from mountains towards the sea; on their way \
            stones grind each other until only sand remains. Along slow stretches that sand sinks, \
            forming banks where birds nest every spring and grass takes hold within two or three \
            seasons. Floods later tear most banks apart and carry their sand further downstream."
        );
        for token in prose.split_inclusive(' ').map(str::trim_end) {
            marker.push(&format!(" {token}"), &mut out);
            held += u32::from(marker.holds() && tokens >= PROSE.split(' ').count());
            tokens += 1;
        }
        let tokens = tokens - PROSE.split(' ').count();
        assert!(held as usize * 3 < tokens, "{held} of {tokens}");
    }

    #[test]
    fn a_flush_lets_go() {
        let mut marker = Marker::new(marking(Layers::ALL, ""));
        let mut out = String::new();
        marker.push("It is the best that you can do with this, if you do", &mut out);
        assert!(marker.holds());
        marker.flush(&mut out);
        assert!(!marker.holds() && out.ends_with("you do"));
        marker.push(" not wait", &mut out);
        marker.finish(&mut out);
        assert!(out.ends_with("do not wait"));
    }

    #[test]
    fn marking_in_mid_text_begins_at_a_paragraph() {
        let mut fences = FenceTracker::new();
        fences.push("Some text\n\n```\ncode\n");
        let text = format!("\n{PROSE}\n```\n{PROSE}\n\n{PROSE}");
        let from = text.len() - PROSE.len();
        let (out, marker) = mark_pieces(Marker::resume(marking(Layers::ALL, ""), fences), &[&text]);
        assert!(marker.edits().len() > 5 && marker.edits().iter().all(|edit| edit.at >= from));
        assert_eq!(marker.slots_used().canary, 0);
        assert_eq!(restore(&out, marker.edits()), Some(text));
    }

    #[test]
    fn other_languages_keep_their_wording() {
        let german = "Es ist wichtig, dass man hier nicht do not sagt, oder it is not so, weil \
            das in der Regel niemand versteht, und weil es auch anders geht, wenn man nur will. ";
        let (_, marker) = mark(&german.repeat(4));
        assert_eq!(marker.slots_used().lexical, 0);
        assert!(marker.slots_used().zero_width > 4);
    }

    #[test]
    fn joining_scripts_are_left_alone() {
        let text =
            "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645} \u{1f469}\u{200d}\u{1f4bb} \
            \u{915}\u{94d}\u{200d}\u{937} e\u{301} "
                .repeat(40);
        assert_eq!(mark(&text).0, text);
    }

    fn texts() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            3 => Just(PROSE.to_owned()),
            2 => (0..PROSE.len()).prop_map(|at| {
                let at = (at..).find(|at| PROSE.is_char_boundary(*at)).unwrap_or(0);
                PROSE[at..].to_owned()
            }),
            2 => "\\PC{0,12}",
            3 => prop::sample::select(vec![
                "```\n", "`", "$", "\"", "\n", "\n\n", "do not ", "it is", " and ", "a, b, and c ",
                "\u{2014}", " \u{2014} ", "John", " Doe", "user@example", ".com ", "#12345", "| ",
                "I am", "\u{200b}", "\u{1f468}\u{200d}", "\\[", "order ID 123456 ", "not only ", "' ",
            ]).prop_map(str::to_owned),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in texts(),
            cuts in prop::collection::vec(any::<usize>(), 0..60),
            resumed in any::<bool>(),
        ) {
            let marker = || {
                let marking = marking(Layers::ALL, "");
                if resumed { Marker::resume(marking, FenceTracker::new()) } else { Marker::new(marking) }
            };
            let (whole, one) = mark_pieces(marker(), &[&text]);
            let (parts, many) = mark_pieces(marker(), &cut(&text, &cuts));
            prop_assert_eq!(&whole, &parts);
            prop_assert_eq!(one.edits(), many.edits());
            let mut characters = [0; 4];
            let singly: Vec<String> =
                text.chars().map(|c| c.encode_utf8(&mut characters).to_owned()).collect();
            let singly: Vec<&str> = singly.iter().map(String::as_str).collect();
            prop_assert_eq!(&whole, &mark_pieces(marker(), &singly).0);
        }

        #[test]
        fn the_original_comes_back(
            text in texts(),
            cuts in prop::collection::vec(any::<usize>(), 0..30),
            flushed in any::<bool>(),
        ) {
            let mut marker = Marker::new(marking(Layers::ALL, ""));
            let mut out = String::new();
            for piece in cut(&text, &cuts) {
                marker.push(piece, &mut out);
                if flushed {
                    marker.flush(&mut out);
                    prop_assert!(!marker.holds());
                }
            }
            marker.finish(&mut out);
            prop_assert_eq!(restore(&out, marker.edits()), Some(text.clone()));
            prop_assert_eq!(apply(&text, marker.edits()), Some(out));
        }
    }
}
