//! The texts of one answer, their markers, and the events that wait for them.
//!
//! A format's file names the places of an event through [`Editor`]; what becomes of each is
//! decided here, the same for all formats. Held text never makes an event of its own: the last
//! event of its text waits, and every later event behind it, until the next event of the text takes
//! what was held, or the text ends, or the caller's timer fires.

use std::borrow::Cow;
use std::collections::VecDeque;

use bytes::BytesMut;
use serde_json::value::RawValue;

use super::shift::{Edge, shifted, shifted_chars};
use super::splice::{self, Put, Slot, span_of};
use super::{Changes, Edit, MarkerFor, Reasoning, Released, RewriteCounts, TextId, TextMarker};
use crate::limits::{
    REWRITE_KEPT_BYTES_MAX, REWRITE_QUEUE_BYTES_MAX, REWRITE_QUEUE_EVENTS_MAX, REWRITE_TEXTS_MAX,
};
use crate::wire::framing::json::{Raw, Str};

/// What may open a stretch in which a marker behaves differently: code, a formula, a table, a
/// quotation, a link, markup.
const OPENERS: [char; 11] = ['`', '~', '$', '\\', '|', '"', '\u{201c}', '\u{ab}', '<', '>', '['];

/// What an offset counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Unicode characters.
    Chars,
    /// Bytes of UTF-8.
    Bytes,
}

/// A stretch of a text, as an annotation gives it. Absent ends are left alone.
#[derive(Clone, Copy)]
pub(crate) struct Stretch<'de> {
    /// The offset of its first unit.
    pub(crate) start: Raw<'de>,
    /// The offset past its last unit.
    pub(crate) end: Raw<'de>,
    /// The stretch itself, where the format repeats it.
    pub(crate) said: Raw<'de>,
    pub(crate) unit: Unit,
    /// Where in the text, in bytes, the offsets count from.
    pub(crate) base: usize,
}

/// A reasoning text: its field, and the place of the text among its like.
pub(crate) type Thought = (&'static str, TextId);

/// The texts of one answer.
pub(super) struct Desk {
    mark: Option<MarkerFor>,
    reasoning: Reasoning,
    /// Texts may have begun before the first event that was seen.
    resumed: bool,
    /// The format repeats its texts, or points into them.
    keeps: bool,
    texts: Vec<Text>,
    kept_bytes: usize,
    /// Reasoning texts that have their notice.
    noticed: Vec<Thought>,
    queue: VecDeque<Queued>,
    queue_bytes: usize,
    /// Number of the queue's first event, or of the current one when nothing waits.
    first: u64,
    /// The current event's changes, and how many of them are not settled.
    slots: Vec<Slot>,
    unsettled: usize,
    counts: RewriteCounts,
}

/// One text of the answer.
struct Text {
    id: TextId,
    /// `None` where nobody marks it.
    marker: Option<Box<dyn TextMarker>>,
    /// The marker still takes pieces.
    open: bool,
    /// The event, by number, and the slot in it that take what the marker holds.
    carrier: Option<(u64, usize)>,
    /// What the marker was given, and what came of it; empty where the format needs neither.
    original: String,
    rewritten: String,
    /// Bytes of the text before what the marker was given; `None` while that is unknown.
    before: Option<Before>,
    /// Bytes that came after the marker's end.
    after: usize,
    /// Stretches that passed without the marker: how many edits came before each, and its bytes.
    passed: Vec<(usize, usize)>,
    /// The marker comes in within a word, whose end it must not take for a word.
    in_word: bool,
}

/// How much of a text went by before its marker began.
#[derive(Clone, Copy, Default)]
struct Before {
    bytes: usize,
    chars: usize,
}

/// An event that waits.
struct Queued {
    block: Vec<u8>,
    slots: Vec<Slot>,
    unsettled: usize,
    tokens: u32,
}

/// Where events go.
pub(super) struct Outlet<'o> {
    pub(super) out: &'o mut BytesMut,
    /// Length of `out` when this call began to write.
    pub(super) from: usize,
    pub(super) released: Option<&'o mut Vec<Released>>,
}

impl Outlet<'_> {
    pub(super) fn event_ends(&mut self, tokens: u32) {
        if let Some(released) = &mut self.released {
            released.push(Released { end: self.out.len() - self.from, tokens });
        }
    }
}

impl Desk {
    pub(super) fn new(changes: Changes, keeps: bool, resumed: bool) -> Self {
        Self {
            mark: changes.mark,
            reasoning: changes.reasoning,
            resumed,
            keeps,
            texts: Vec::new(),
            kept_bytes: 0,
            noticed: Vec::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            first: 0,
            slots: Vec::new(),
            unsettled: 0,
            counts: RewriteCounts::default(),
        }
    }

    pub(super) fn counts(&self) -> RewriteCounts {
        self.counts
    }

    /// Whether events wait.
    pub(super) fn waits(&self) -> bool {
        !self.queue.is_empty()
    }

    /// An event or a body goes by unread. It may hold text, which must not overtake what is held.
    pub(super) fn unread(&mut self) {
        self.counts.unread += 1;
        self.flush();
    }

    /// Passes on an event after its places were named.
    pub(super) fn commit(&mut self, block: &[u8], tokens: u32, outlet: &mut Outlet<'_>) {
        self.drain(outlet);
        if self.queue.is_empty() && self.unsettled == 0 {
            splice::write(outlet.out, block, &mut self.slots);
            outlet.event_ends(tokens);
            self.slots.clear();
            self.first += 1;
            return;
        }
        self.queue_bytes += block.len();
        self.queue.push_back(Queued {
            block: block.to_vec(),
            slots: std::mem::take(&mut self.slots),
            unsettled: std::mem::take(&mut self.unsettled),
            tokens,
        });
        let full = self.queue_bytes > REWRITE_QUEUE_BYTES_MAX
            || self.queue.len() > REWRITE_QUEUE_EVENTS_MAX;
        if full {
            self.counts.queue_full += 1;
            self.flush();
            self.drain(outlet);
        }
    }

    /// Puts out every event that need not wait any more.
    pub(super) fn drain(&mut self, outlet: &mut Outlet<'_>) {
        while let Some(mut event) = self.queue.pop_front_if(|event| event.unsettled == 0) {
            self.queue_bytes -= event.block.len();
            self.first += 1;
            splice::write(outlet.out, &event.block, &mut event.slots);
            outlet.event_ends(event.tokens);
        }
    }

    /// Makes every marker let go of what it holds.
    pub(super) fn flush(&mut self) {
        for at in 0..self.texts.len() {
            self.flush_text(at);
        }
    }

    /// Ends every text.
    pub(super) fn end_all(&mut self) {
        for at in 0..self.texts.len() {
            self.end_text(at);
        }
    }

    fn flush_text(&mut self, at: usize) {
        let text = &mut self.texts[at];
        let Some(marker) = text.marker.as_mut().filter(|marker| text.open && marker.holds()) else {
            return;
        };
        let mut out = String::new();
        marker.flush(&mut out);
        let holds = marker.holds();
        if holds {
            // A marker that does not let go would lose what it holds: nothing waits for it now.
            marker.finish(&mut out);
            text.open = false;
        }
        self.append(at, &out);
    }

    fn end_text(&mut self, at: usize) {
        let text = &mut self.texts[at];
        let Some(marker) = text.marker.as_mut().filter(|_| text.open) else {
            return;
        };
        text.open = false;
        let mut out = String::new();
        marker.finish(&mut out);
        self.append(at, &out);
    }

    /// Adds to the last event of a text what its marker gave, and lets the event go.
    fn append(&mut self, at: usize, more: &str) {
        let Some(carrier) = self.texts[at].carrier.take() else {
            self.counts.homeless += u64::from(!more.is_empty());
            return;
        };
        let Some((slots, unsettled)) = self.event(carrier.0) else {
            return;
        };
        *unsettled -= 1;
        if let Some(Slot { put: Put::Text(text), .. }) = slots.get_mut(carrier.1) {
            text.push_str(more);
        }
        if self.keeps {
            self.texts[at].rewritten.push_str(more);
        }
    }

    /// The changes of an event that has not gone out.
    fn event(&mut self, number: u64) -> Option<(&mut Vec<Slot>, &mut usize)> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        if at == self.queue.len() {
            return Some((&mut self.slots, &mut self.unsettled));
        }
        self.queue.get_mut(at).map(|event| (&mut event.slots, &mut event.unsettled))
    }

    /// The latest text is looked at first, as pieces of one text mostly follow each other.
    fn find(&self, id: TextId) -> Option<usize> {
        self.texts.iter().rposition(|text| text.id == id)
    }

    /// The text's place; asks for its marker when it is new. `None` when there are too many.
    fn find_or_begin(&mut self, id: TextId, marked: bool) -> Option<usize> {
        if let Some(at) = self.find(id) {
            return Some(at);
        }
        if self.texts.len() == REWRITE_TEXTS_MAX {
            self.counts.texts_left += 1;
            return None;
        }
        let marker = self.mark.as_mut().filter(|_| marked).and_then(|mark| mark(id));
        self.texts.push(Text {
            id,
            open: marker.is_some(),
            marker,
            carrier: None,
            original: String::new(),
            rewritten: String::new(),
            before: (!self.resumed).then(Before::default),
            after: 0,
            passed: Vec::new(),
            in_word: self.resumed,
        });
        Some(self.texts.len() - 1)
    }
}

/// The current event, and the hand that changes it.
///
/// Places are named in the order of the texts in them; offsets after the texts they point into.
pub(crate) struct Editor<'e> {
    pub(super) desk: &'e mut Desk,
    pub(super) block: &'e [u8],
}

impl Editor<'_> {
    /// A piece of visible text.
    pub(crate) fn text(&mut self, id: TextId, piece: Raw<'_>) {
        self.piece(id, piece, true);
    }

    /// A piece of visible text that must stay as it is. The text is marked again behind it, unless
    /// the piece has what may open a stretch that a marker must know of (code, a quotation).
    pub(crate) fn fixed_text(&mut self, id: TextId, piece: Raw<'_>) {
        self.piece(id, piece, false);
    }

    fn piece(&mut self, id: TextId, piece: Raw<'_>, may_change: bool) {
        if self.desk.mark.is_none() {
            return;
        }
        let Some((raw, said)) = string(piece) else {
            return;
        };
        let Some(said) = said else {
            // A spelling that is no text: the marker has lost the thread.
            return self.leave(id);
        };
        if said.as_str().is_empty() {
            return;
        }
        let desk = &mut *self.desk;
        let Some(at) = desk.find_or_begin(id, true) else {
            return;
        };
        let bytes = said.as_str().len();
        if desk.keeps && desk.texts[at].open {
            if desk.kept_bytes.saturating_add(bytes) > REWRITE_KEPT_BYTES_MAX {
                desk.counts.texts_left += 1;
                desk.end_text(at);
            } else {
                desk.kept_bytes += bytes;
            }
        }
        let Some(span) = span_of(self.block, raw) else {
            return;
        };
        if !may_change {
            // What is held stands before the piece.
            if said.as_str().contains(OPENERS) {
                desk.end_text(at);
            } else {
                desk.flush_text(at);
            }
        }
        let number = desk.first + desk.queue.len() as u64;
        let text = &mut desk.texts[at];
        let Some(marker) = text.marker.as_mut().filter(|_| text.open) else {
            text.after = text.after.saturating_add(bytes);
            return;
        };
        let (passed, marked) = match (may_change, text.in_word) {
            (true, false) => ("", said.as_str()),
            (true, true) => {
                let word = said.as_str().find(char::is_whitespace).unwrap_or(bytes);
                said.as_str().split_at(word)
            }
            (false, _) => (said.as_str(), ""),
        };
        if !passed.is_empty() && desk.keeps {
            let edits = marker.edits().len();
            match text.passed.last_mut().filter(|last| last.0 == edits) {
                Some(last) => last.1 += passed.len(),
                None => text.passed.push((edits, passed.len())),
            }
        }
        text.in_word = marked.is_empty() && !passed.ends_with(char::is_whitespace);
        let mut out = passed.to_owned();
        if !marked.is_empty() {
            marker.push(marked, &mut out);
        }
        let holds = marker.holds();
        if desk.keeps {
            text.original.push_str(said.as_str());
            text.rewritten.push_str(&out);
        }
        let settled = text.carrier.take();
        if holds {
            text.carrier = Some((number, desk.slots.len()));
            desk.unsettled += 1;
        }
        desk.slots.push(Slot { span, put: Put::Text(out) });
        if let Some((number, _)) = settled
            && let Some((_, unsettled)) = desk.event(number)
        {
            *unsettled -= 1;
        }
    }

    /// A whole text, of which pieces may have gone by before. The text has ended with it.
    pub(crate) fn whole_text(&mut self, id: TextId, whole: Raw<'_>) {
        if self.desk.mark.is_none() {
            return;
        }
        let Some((raw, said)) = string(whole) else {
            return;
        };
        let Some(at) = self.desk.find(id) else {
            // Resumed, its pieces may have gone by unmarked.
            if self.desk.resumed {
                return self.leave(id);
            }
            self.text(id, whole);
            return self.end(id);
        };
        self.desk.end_text(at);
        let desk = &mut *self.desk;
        let text = &mut desk.texts[at];
        if text.marker.is_none() {
            return;
        }
        let said = said.as_ref().map(Str::as_str).unwrap_or_default();
        let until = said.len().checked_sub(text.after);
        let from = until.and_then(|until| until.checked_sub(text.original.len()));
        let parts = from.zip(until).and_then(|(from, until)| {
            Some((said.get(..from)?, said.get(from..until)?, said.get(until..)?))
        });
        let agreed = parts.filter(|(before, middle, _)| {
            text.before.is_none_or(|known| known.bytes == before.len()) && *middle == text.original
        });
        let (Some((before, _, after)), Some(span)) = (agreed, span_of(self.block, raw)) else {
            desk.counts.disagreed += 1;
            return;
        };
        text.before
            .get_or_insert_with(|| Before { bytes: before.len(), chars: before.chars().count() });
        let put = [before, &text.rewritten, after].concat();
        desk.slots.push(Slot { span, put: Put::Text(put) });
    }

    /// The text is not marked from here on.
    pub(crate) fn leave(&mut self, id: TextId) {
        if self.desk.mark.is_none() {
            return;
        }
        match self.desk.find(id) {
            Some(at) => self.desk.end_text(at),
            None => {
                self.desk.find_or_begin(id, false);
            }
        }
    }

    /// The text goes on later, if at all: what is held of it goes out.
    pub(crate) fn pause(&mut self, id: TextId) {
        if let Some(at) = self.desk.find(id) {
            self.desk.flush_text(at);
        }
    }

    /// The text has ended.
    pub(crate) fn end(&mut self, id: TextId) {
        if let Some(at) = self.desk.find(id) {
            self.desk.end_text(at);
            if !self.desk.keeps {
                self.desk.texts.swap_remove(at);
            }
        }
    }

    /// All texts have ended.
    pub(crate) fn end_all(&mut self) {
        self.desk.end_all();
    }

    /// Reasoning that is shown: a piece of it, or all of it again.
    pub(crate) fn reasoning(&mut self, thought: Thought, piece: Raw<'_>) {
        self.thought(thought, piece, false);
    }

    /// All of a reasoning text, whether its pieces have gone by or not.
    pub(crate) fn whole_reasoning(&mut self, thought: Thought, whole: Raw<'_>) {
        self.thought(thought, whole, true);
    }

    fn thought(&mut self, thought: Thought, raw: Raw<'_>, whole: bool) {
        if raw.is_none_or(|raw| matches!(raw.get(), "null" | "\"\"")) {
            return;
        }
        // Text that came before reasoning goes out before it.
        self.pause(thought.1);
        let desk = &mut *self.desk;
        let Reasoning::Withhold { notice } = &desk.reasoning else {
            return;
        };
        let Some((raw, said)) = string(raw) else {
            return;
        };
        if said.is_some_and(|said| said.as_str().is_empty()) {
            return;
        }
        let mut put = String::new();
        if let Some(notice) = notice {
            let known = desk.noticed.iter().rev().any(|known| *known == thought);
            let room = desk.noticed.len() < REWRITE_TEXTS_MAX;
            if !known && room {
                desk.noticed.push(thought);
            }
            if known == whole || (!known && room) {
                put.clone_from(notice);
            }
        }
        if let Some(span) = span_of(self.block, raw) {
            desk.slots.push(Slot { span, put: Put::Text(put) });
        }
    }

    /// Keeps offsets into a text true.
    pub(crate) fn stretch(&mut self, id: TextId, stretch: Stretch<'_>) {
        let Some(at) = self.desk.find(id) else {
            return;
        };
        // Edits in what is held are not known yet.
        self.desk.flush_text(at);
        let desk = &mut *self.desk;
        let text = &desk.texts[at];
        if text.marker.is_none() || text.edits().is_empty() {
            return;
        }
        match text.shift(stretch) {
            Some(shift) => {
                let numbers = [(stretch.start, shift.start), (stretch.end, shift.end)];
                for (raw, number) in numbers {
                    let Some(raw) = raw.filter(|raw| whole_number(raw).is_some()) else {
                        continue;
                    };
                    if whole_number(raw) != Some(number)
                        && let Some(span) = span_of(self.block, raw)
                    {
                        let number = number as u64;
                        desk.slots.push(Slot { span, put: Put::Number(number) });
                    }
                }
                if let Some((said, raw)) = shift.said.zip(stretch.said)
                    && let Some(span) = span_of(self.block, raw)
                {
                    desk.slots.push(Slot { span, put: Put::Text(said) });
                }
            }
            None => desk.counts.disagreed += 1,
        }
    }

    /// Bytes of a text so far, to count a part's offsets from.
    pub(crate) fn length(&self, id: TextId) -> usize {
        self.desk.find(id).map_or(0, |at| {
            let text = &self.desk.texts[at];
            text.original.len().saturating_add(text.after)
        })
    }
}

/// A stretch in its new place.
struct Shifted {
    start: usize,
    end: usize,
    said: Option<String>,
}

impl Text {
    /// The marker's edits, where they stand in the kept text.
    fn edits(&self) -> Cow<'_, [Edit]> {
        let edits = self.marker.as_ref().map(|marker| marker.edits()).unwrap_or_default();
        if self.passed.is_empty() {
            return Cow::Borrowed(edits);
        }
        let mut passed = self.passed.iter().peekable();
        let mut bytes = 0_usize;
        let moved = edits.iter().enumerate().map(|(count, edit)| {
            while let Some((_, more)) = passed.next_if(|(before, _)| *before <= count) {
                bytes = bytes.saturating_add(*more);
            }
            Edit { at: edit.at.saturating_add(bytes), ..*edit }
        });
        Cow::Owned(moved.collect())
    }

    /// `None` when the stretch does not lie in the text as it was.
    fn shift(&self, stretch: Stretch<'_>) -> Option<Shifted> {
        let before = self.before?;
        let edits = &*self.edits();
        let start = stretch.start.map_or(Some(0), whole_number)?;
        let end = stretch.end.map_or(Some(start), whole_number)?;
        if stretch.unit == Unit::Chars {
            let place = |at: usize, edge: Edge| {
                let Some(at) = at.checked_sub(before.chars) else {
                    return Some(at);
                };
                let shifted = shifted_chars(edits, &self.original, &self.rewritten, at, edge)?;
                shifted.checked_add(before.chars)
            };
            let start = place(start, Edge::Start)?;
            return Some(Shifted { start, end: place(end, Edge::End)?.max(start), said: None });
        }
        let place = |at: usize, edge: Edge| {
            let at = at.checked_add(stretch.base)?;
            let Some(at) = at.checked_sub(before.bytes) else {
                return Some(at);
            };
            shifted(edits, at, edge).checked_add(before.bytes)
        };
        let (from, to) = (place(start, Edge::Start)?, place(end, Edge::End)?);
        let to = to.max(from);
        let base = place(0, Edge::End)?;
        let said = match string(stretch.said) {
            None => None,
            Some((_, said)) => {
                let was = start + stretch.base..end.checked_add(stretch.base)?;
                let was =
                    was.start.checked_sub(before.bytes)?..was.end.checked_sub(before.bytes)?;
                if self.original.get(was)? != said?.as_str() {
                    return None;
                }
                let now = from.checked_sub(before.bytes)?..to.checked_sub(before.bytes)?;
                Some(self.rewritten.get(now)?.to_owned())
            }
        };
        Some(Shifted { start: from.checked_sub(base)?, end: to.checked_sub(base)?, said })
    }
}

/// A string as spelt, and what it says; `None` inside where that is no text.
fn string(raw: Raw<'_>) -> Option<(&RawValue, Option<Str<'_>>)> {
    let raw = raw.filter(|raw| raw.get().starts_with('"'))?;
    Some((raw, serde_json::from_str(raw.get()).ok()))
}

fn whole_number(raw: &RawValue) -> Option<usize> {
    raw.get().parse().ok()
}
