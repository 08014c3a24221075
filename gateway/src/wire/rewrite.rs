//! Rewriting an answer on its way: marks put into its visible text, reasoning withheld.
//!
//! Only the values of the strings concerned change; every other byte (keys and their order, white
//! space, comments, ids, line ends) goes out as it came in, and an event in which nothing changes
//! goes out untouched. Where the texts of a format are is told by its file under
//! `wire/provider/`; here they are found, changed and put back.
//!
//! **No event is made up.** What a marker holds waits together with the last event of its text, and
//! every later event waits behind it: the order and the number of events stay. See
//! `rewrite/editor.rs`.
//!
//! **Copies agree.** A format that repeats a text (OpenAI Responses says it in five places) gets
//! the rewritten text wherever the original stood, and offsets into a text move with it. Where a
//! copy does not say what its pieces said, it is left alone and counted.
//!
//! **What is not read is not changed.** Events that are too long, spread over several `data` lines
//! or no JSON go out as they came, and are counted.

mod editor;
mod shift;
mod splice;

use bytes::BytesMut;
use detectors::Format;

use self::editor::{Desk, Outlet};
pub(super) use self::editor::{Editor, Stretch, Unit};
use super::answer::{Framing, TextCounter};
use super::framing::json::{ArrayBoundaries, element_of};
use super::framing::sse::{Boundaries, Boundary, parse_event};
use super::provider::{anthropic, gemini, openai_chat, openai_completions, openai_responses};
use crate::limits::{ANSWER_BYTES_MAX, EVENT_BYTES_MAX};

/// What changes one text of an answer.
pub trait TextMarker: Send {
    /// Takes the next piece, and appends to `out` what can go out now.
    fn push(&mut self, piece: &str, out: &mut String);
    /// Appends everything that is held although more may come: it cannot wait any longer.
    fn flush(&mut self, out: &mut String);
    /// Appends everything that is held: the text has ended.
    fn finish(&mut self, out: &mut String);
    /// Whether anything is held. Where nothing is, no event waits either: what
    /// [`TextMarker::flush`] and [`TextMarker::finish`] then append has no place to go and is lost.
    fn holds(&self) -> bool;
    /// The changes to what went out so far, in order.
    fn edits(&self) -> &[Edit];
}

/// One change to a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Where, in bytes of all that the marker was given.
    pub at: usize,
    /// Bytes of the original that are gone.
    pub removed: usize,
    /// Bytes that stand in their place.
    pub inserted: usize,
}

/// Which text of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TextId {
    /// Which of the answers asked for at once (`n`, `candidateCount`).
    pub choice: u32,
    /// Number of the output item (Responses) or content block (Anthropic); else 0.
    pub item: u32,
    /// Number of the content part within the item (Responses); else 0.
    pub part: u32,
}

impl TextId {
    /// The text of a choice, in formats that have one for each.
    pub(super) fn choice(choice: u32) -> Self {
        Self { choice, ..Self::default() }
    }
}

/// Asked once for each text, when its first characters come. `None` leaves the text as it is.
pub type MarkerFor = Box<dyn FnMut(TextId) -> Option<Box<dyn TextMarker>> + Send>;

/// What is to be done with one answer.
#[derive(Default)]
pub struct Changes {
    /// Who marks its texts; nobody when `None`.
    pub mark: Option<MarkerFor>,
    /// What becomes of its reasoning.
    pub reasoning: Reasoning,
}

/// What becomes of the reasoning that an answer shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reasoning {
    /// It goes out.
    #[default]
    Keep,
    /// Its text is emptied wherever it stands; encrypted reasoning and signatures stay.
    ///
    /// Its events stay too, as an answer that is silent while the model thinks would run into
    /// clients' timeouts, Responses numbers its events, and a chat's first event has the role.
    Withhold {
        /// What stands once in the place of each reasoning text.
        notice: Option<String>,
    },
}

/// Where an event ended among the bytes that went out, and how much text it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// Offset just past the event, counted from the first byte of the same call.
    pub end: usize,
    /// About how many tokens of answer text, reasoning and tool arguments it had: a quarter of the
    /// characters, at least 1; 0 for an event without any.
    pub tokens: u32,
}

/// What did not go as it should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RewriteCounts {
    /// Events and bodies that went out as they came because they could not be read.
    pub unread: u64,
    /// Copies of a text, and offsets into one, that did not fit the text and were left alone.
    pub disagreed: u64,
    /// Times that a text, or a piece of one, was left as it is because a bound was reached.
    pub texts_left: u64,
    /// Times that held text went out early because too much waited for it.
    pub queue_full: u64,
    /// Times that a marker appended what no event could carry.
    pub homeless: u64,
}

/// Rewrites one answer, streamed or whole, in whatever pieces it comes.
///
/// The bytes must be free of any content coding. Unless [`Rewriter::flush`] is called, what goes
/// out as a whole depends on what came in as a whole, not on its pieces.
pub struct Rewriter {
    format: Format,
    body: Body,
    /// What has come of an event that has not ended; of a whole body, all of it.
    open: Vec<u8>,
    /// The open event is longer than the bound and goes out as it comes.
    skipping: bool,
    /// An event has ended before, so a byte order mark means nothing any more.
    begun: bool,
    resumed: bool,
    desk: Desk,
    counter: Option<TextCounter>,
    released: Vec<Released>,
}

/// What the body turned out to be.
enum Body {
    /// Nothing but white space so far.
    Unseen,
    Sse(Boundaries),
    Array(ArrayBoundaries),
    Whole,
    /// Passed on as it comes.
    Untouched,
}

impl Rewriter {
    /// A rewriter for the answer with this status and content type; `None` when nothing of it can
    /// be rewritten, or nothing is to be.
    #[must_use]
    pub fn new(
        format: Format,
        status: u16,
        content_type: Option<&str>,
        changes: Changes,
    ) -> Option<Self> {
        Self::begin(format, status, content_type, changes, false)
    }

    /// A rewriter that begins in the middle of a stream, where an event has just ended. Texts that
    /// have begun before are marked from their next word on, and their copies from the same place
    /// on. A marker then knows nothing of what stands before (it may be inside a block of code).
    #[must_use]
    pub fn resume(
        format: Format,
        status: u16,
        content_type: Option<&str>,
        changes: Changes,
    ) -> Option<Self> {
        Self::begin(format, status, content_type, changes, true)
    }

    fn begin(
        format: Format,
        status: u16,
        content_type: Option<&str>,
        changes: Changes,
        resumed: bool,
    ) -> Option<Self> {
        let keeps = match format {
            Format::Grpc | Format::Unknown => return None,
            Format::OpenaiChat | Format::OpenaiResponses | Format::GeminiGenerate => true,
            Format::OpenaiCompletions | Format::AnthropicMessages => false,
        };
        let nothing = changes.mark.is_none() && changes.reasoning == Reasoning::Keep;
        if nothing || !(200..300).contains(&status) {
            return None;
        }
        let body = match Framing::labelled(content_type)? {
            Framing::Sse => Body::Sse(Boundaries::default()),
            _ => Body::Unseen,
        };
        Some(Self {
            format,
            body,
            open: Vec::new(),
            skipping: false,
            begun: resumed,
            resumed,
            desk: Desk::new(changes, keeps, resumed),
            counter: None,
            released: Vec::new(),
        })
    }

    /// Also tells, in [`Rewriter::released`], where events end and how much text they carry.
    #[must_use]
    pub fn with_meter(mut self) -> Self {
        self.counter = Some(TextCounter::new(self.format));
        self
    }

    /// The events that the last call of [`Rewriter::push`], [`Rewriter::flush`] or
    /// [`Rewriter::finish`] put out, if [`Rewriter::with_meter`] was called. The tokens are those
    /// of the original.
    #[must_use]
    pub fn released(&self) -> &[Released] {
        &self.released
    }

    /// What did not go as it should, so far.
    #[must_use]
    pub fn counts(&self) -> RewriteCounts {
        self.desk.counts()
    }

    /// Whether the body must be held to its end. It is also `true` while it is not known yet what
    /// the body is. Whatever this says, the body's length may change.
    #[must_use]
    pub fn holds_whole(&self) -> bool {
        matches!(self.body, Body::Unseen | Body::Whole)
    }

    /// Takes the next piece of the body, and appends to `out` what can go out now: of a stream,
    /// always whole events, but for one that is too long to be read.
    pub fn push(&mut self, bytes: &[u8], out: &mut BytesMut) {
        self.released.clear();
        let from = out.len();
        if let Body::Unseen = self.body {
            self.open.extend_from_slice(bytes);
            let Some(first) = self.open.iter().find(|byte| !byte.is_ascii_whitespace()) else {
                if self.open.len() > EVENT_BYTES_MAX {
                    self.body = Body::Untouched;
                    out.extend_from_slice(&std::mem::take(&mut self.open));
                }
                return;
            };
            self.body = match Framing::sniffed(*first) {
                Some(Framing::Sse) => Body::Sse(Boundaries::default()),
                Some(Framing::Array) => Body::Array(ArrayBoundaries::default()),
                Some(Framing::Whole) => Body::Whole,
                None if self.resumed && matches!(first, b',' | b']') => {
                    Body::Array(ArrayBoundaries::behind_an_element())
                }
                None => Body::Untouched,
            };
            let held = std::mem::take(&mut self.open);
            self.feed(&held, from, out);
        } else {
            self.feed(bytes, from, out);
        }
    }

    /// Whether events wait for text that is held: [`Rewriter::flush`] makes them go out.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.desk.waits()
    }

    /// Puts out everything that waits, although the text that it waits for has not ended.
    pub fn flush(&mut self, out: &mut BytesMut) {
        self.released.clear();
        let from = out.len();
        self.desk.flush();
        let Self { desk, counter, released, .. } = self;
        desk.drain(&mut outlet(out, from, counter, released));
    }

    /// The body has ended, or was cut off: puts out everything that is left. Nothing comes after.
    pub fn finish(&mut self, out: &mut BytesMut) {
        self.released.clear();
        let from = out.len();
        let rest = std::mem::take(&mut self.open);
        match self.body {
            _ if rest.is_empty() => {}
            // An event that only lacks its blank line, as many client libraries take it.
            Body::Sse(_) => self.event(&rest, from, out),
            Body::Whole => self.edit(b"", &rest, &rest, from, out),
            // The array's closing bracket, or an element that was cut off.
            Body::Array(_) | Body::Unseen | Body::Untouched => {
                let Self { desk, counter, released, .. } = self;
                desk.end_all();
                desk.commit(&rest, 0, &mut outlet(out, from, counter, released));
            }
        }
        self.body = Body::Untouched;
        let Self { desk, counter, released, .. } = self;
        desk.end_all();
        desk.drain(&mut outlet(out, from, counter, released));
    }

    /// The caller ends the answer here, in order to add an event of its own: puts out what waits,
    /// and drops an event that has not ended. Nothing comes after.
    ///
    /// Returns whether what went out ends between two events; it does not where an event was too
    /// long to be held, or the body is no stream that could be read. Of a body that is held whole
    /// nothing goes out.
    #[must_use]
    pub fn break_off(&mut self, out: &mut BytesMut) -> bool {
        let between = !self.skipping && !matches!(self.body, Body::Untouched);
        self.open = Vec::new();
        self.finish(out);
        between
    }

    fn feed(&mut self, mut bytes: &[u8], from: usize, out: &mut BytesMut) {
        match self.body {
            Body::Whole if self.open.len() + bytes.len() <= ANSWER_BYTES_MAX => {
                self.open.extend_from_slice(bytes);
                return;
            }
            Body::Whole => {
                self.desk.unread();
                self.body = Body::Untouched;
                out.extend_from_slice(&std::mem::take(&mut self.open));
                out.extend_from_slice(bytes);
                return;
            }
            Body::Untouched | Body::Unseen => {
                out.extend_from_slice(bytes);
                return;
            }
            Body::Sse(_) | Body::Array(_) => {}
        }
        while let Some(boundary) = self.next_end(bytes) {
            let (head, rest) = bytes.split_at(boundary.end);
            bytes = rest;
            if self.skipping || boundary.event_bytes > EVENT_BYTES_MAX {
                self.let_by(head, from, out);
                self.skipping = false;
                let Self { counter, released, .. } = self;
                outlet(out, from, counter, released).event_ends(0);
            } else if self.open.is_empty() {
                self.event(head, from, out);
            } else {
                let mut block = std::mem::take(&mut self.open);
                block.extend_from_slice(head);
                self.event(&block, from, out);
                block.clear();
                self.open = block;
            }
            self.begun = true;
        }
        if self.skipping || self.open_bytes() > EVENT_BYTES_MAX {
            self.let_by(bytes, from, out);
            self.skipping = true;
        } else {
            self.open.extend_from_slice(bytes);
        }
    }

    /// Passes on a part of an event that is too long to be read.
    fn let_by(&mut self, bytes: &[u8], from: usize, out: &mut BytesMut) {
        if !self.skipping {
            self.desk.unread();
            let Self { desk, counter, released, .. } = self;
            desk.drain(&mut outlet(out, from, counter, released));
            out.extend_from_slice(&std::mem::take(&mut self.open));
        }
        out.extend_from_slice(bytes);
    }

    fn next_end(&mut self, bytes: &[u8]) -> Option<Boundary> {
        match &mut self.body {
            Body::Sse(boundaries) => boundaries.next_end(bytes),
            Body::Array(boundaries) => boundaries.next_end(bytes),
            Body::Unseen | Body::Whole | Body::Untouched => None,
        }
    }

    fn open_bytes(&self) -> usize {
        match &self.body {
            Body::Sse(boundaries) => boundaries.open_bytes(),
            Body::Array(boundaries) => boundaries.open_bytes(),
            Body::Unseen | Body::Whole | Body::Untouched => 0,
        }
    }

    /// Rewrites one event of a stream, or one element of an array with what stands before it.
    fn event(&mut self, block: &[u8], from: usize, out: &mut BytesMut) {
        if let Body::Array(_) = self.body {
            return self.edit(b"", element_of(block), block, from, out);
        }
        match parse_event(block, !self.begun) {
            Some(event) => match event.data {
                std::borrow::Cow::Borrowed(data) => self.edit(event.name, data, block, from, out),
                std::borrow::Cow::Owned(data) => {
                    self.desk.unread();
                    let Self { desk, counter, released, .. } = self;
                    let tokens = tokens(counter, event.name, &data);
                    desk.commit(block, tokens, &mut outlet(out, from, counter, released));
                }
            },
            // A comment, which keeps its place among the events.
            None => {
                let Self { desk, counter, released, .. } = self;
                desk.commit(block, 0, &mut outlet(out, from, counter, released));
            }
        }
    }

    /// Rewrites one event whose `data` lies in `block`.
    fn edit(&mut self, name: &[u8], data: &[u8], block: &[u8], from: usize, out: &mut BytesMut) {
        let Self { format, desk, counter, released, .. } = self;
        let mut editor = Editor { desk, block };
        if data == b"[DONE]" {
            editor.end_all();
        } else {
            let read = match format {
                Format::OpenaiChat => openai_chat::rewrite_event(data, &mut editor),
                Format::OpenaiCompletions => openai_completions::rewrite_event(data, &mut editor),
                Format::OpenaiResponses => openai_responses::rewrite_event(name, data, &mut editor),
                Format::AnthropicMessages => anthropic::rewrite_event(name, data, &mut editor),
                Format::GeminiGenerate => gemini::rewrite_event(data, &mut editor),
                Format::Grpc | Format::Unknown => Ok(()),
            };
            if read.is_err() {
                desk.unread();
            }
        }
        let tokens = tokens(counter, name, data);
        desk.commit(block, tokens, &mut outlet(out, from, counter, released));
    }
}

fn outlet<'o>(
    out: &'o mut BytesMut,
    from: usize,
    counter: &Option<TextCounter>,
    released: &'o mut Vec<Released>,
) -> Outlet<'o> {
    Outlet { out, from, released: counter.is_some().then_some(released) }
}

fn tokens(counter: &mut Option<TextCounter>, name: &[u8], data: &[u8]) -> u32 {
    counter.as_mut().map_or(0, |counter| counter.tokens(name, data))
}

/// A marker for tests and fuzzing: holds a word until it is complete, and puts a soft hyphen
/// before it.
pub(super) struct Hyphens {
    /// `false` lets everything pass at once and as it is.
    marks: bool,
    held: String,
    passed: usize,
    edits: Vec<Edit>,
}

impl Hyphens {
    pub(super) fn new(marks: bool) -> Self {
        Self { marks, held: String::new(), passed: 0, edits: Vec::new() }
    }
}

impl TextMarker for Hyphens {
    fn push(&mut self, piece: &str, out: &mut String) {
        if !self.marks {
            out.push_str(piece);
            return;
        }
        self.held.push_str(piece);
        while let Some(space) = self.held.find(' ') {
            self.edits.push(Edit { at: self.passed, removed: 0, inserted: 2 });
            out.push('\u{ad}');
            out.extend(self.held.drain(..=space));
            self.passed += space + 1;
        }
    }

    fn flush(&mut self, out: &mut String) {
        self.passed += self.held.len();
        out.push_str(&std::mem::take(&mut self.held));
    }

    fn finish(&mut self, out: &mut String) {
        self.flush(out);
    }

    fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    fn edits(&self) -> &[Edit] {
        &self.edits
    }
}

/// Finds where the events of a stream end and how much text they carry, and changes nothing.
///
/// Of bodies that are no streams it tells nothing.
pub struct EventMeter {
    body: Body,
    /// What has come of an event that has not ended.
    open: Vec<u8>,
    skipping: bool,
    begun: bool,
    counter: TextCounter,
}

impl EventMeter {
    /// A meter for the answer with this content type. Of unknown formats it tells only where
    /// events end.
    #[must_use]
    pub fn new(format: Format, content_type: Option<&str>) -> Self {
        let body = match Framing::labelled(content_type) {
            Some(Framing::Sse) => Body::Sse(Boundaries::default()),
            Some(_) if !matches!(format, Format::Grpc | Format::Unknown) => Body::Unseen,
            _ => Body::Untouched,
        };
        Self {
            body,
            open: Vec::new(),
            skipping: false,
            begun: false,
            counter: TextCounter::new(format),
        }
    }

    /// Whether the body is a stream; `None` while that is not known.
    #[must_use]
    pub fn is_stream(&self) -> Option<bool> {
        match self.body {
            Body::Sse(_) | Body::Array(_) => Some(true),
            Body::Whole | Body::Untouched => Some(false),
            Body::Unseen => None,
        }
    }

    /// Takes the next piece of the body, and tells which events end in it: the offsets count from
    /// its first byte. What is behind the last of them belongs to an event that has not ended.
    pub fn push(&mut self, mut bytes: &[u8], released: &mut Vec<Released>) {
        if let Body::Unseen = self.body {
            let Some(first) = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) else {
                return;
            };
            self.body = match Framing::sniffed(*first) {
                Some(Framing::Sse) => Body::Sse(Boundaries::default()),
                Some(Framing::Array) => Body::Array(ArrayBoundaries::default()),
                Some(Framing::Whole) | None => Body::Untouched,
            };
        }
        let mut passed = 0;
        loop {
            let boundary = match &mut self.body {
                Body::Sse(boundaries) => boundaries.next_end(bytes),
                Body::Array(boundaries) => boundaries.next_end(bytes),
                Body::Unseen | Body::Whole | Body::Untouched => return,
            };
            let Some(boundary) = boundary else {
                break;
            };
            let (head, rest) = bytes.split_at(boundary.end);
            bytes = rest;
            passed += boundary.end;
            let tokens = if self.skipping || boundary.event_bytes > EVENT_BYTES_MAX {
                0
            } else if self.open.is_empty() {
                self.tokens(head)
            } else {
                let mut block = std::mem::take(&mut self.open);
                block.extend_from_slice(head);
                let tokens = self.tokens(&block);
                self.open = block;
                tokens
            };
            self.open.clear();
            self.skipping = false;
            self.begun = true;
            released.push(Released { end: passed, tokens });
        }
        let open_bytes = match &self.body {
            Body::Sse(boundaries) => boundaries.open_bytes(),
            Body::Array(boundaries) => boundaries.open_bytes(),
            Body::Unseen | Body::Whole | Body::Untouched => 0,
        };
        if self.skipping || open_bytes > EVENT_BYTES_MAX {
            self.skipping = true;
            self.open = Vec::new();
        } else {
            self.open.extend_from_slice(bytes);
        }
    }

    fn tokens(&mut self, block: &[u8]) -> u32 {
        if let Body::Array(_) = self.body {
            return self.counter.tokens(b"", element_of(block));
        }
        let event = parse_event(block, !self.begun);
        event.map_or(0, |event| self.counter.tokens(event.name, &event.data))
    }
}
