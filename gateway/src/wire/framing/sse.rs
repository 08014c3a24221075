//! Server-sent events: where an event ends, and what it says.
//!
//! Every provider streams its answers in this framing. Answers arrive in whatever pieces the
//! network made of them, so the same events must come out wherever the input was cut, also inside
//! a UTF-8 sequence or between CR and LF. An event that lies whole in one piece is read in place;
//! only one that spans pieces is copied, up to [`EVENT_BYTES_MAX`].
//!
//! Source: WHATWG HTML, section 9.2.5 and 9.2.6 (line ends CR, LF and CRLF; a leading byte order
//! mark; comments; data lines joined by LF; no event without data). One departure: an event that
//! the end of the body cuts off before its blank line is delivered by [`SseReader::finish`],
//! because several client libraries deliver it too.

use std::borrow::Cow;

use memchr::memchr2;

use crate::limits::EVENT_BYTES_MAX;

/// An event that carries data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Value of the last `event` field; empty when there is none.
    pub name: &'a [u8],
    /// Data lines, joined by LF. Borrowed unless there are several.
    pub data: Cow<'a, [u8]>,
}

/// What comes out of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An event with data.
    Event(Event<'a>),
    /// An event longer than [`EVENT_BYTES_MAX`], which was not kept.
    TooLong,
}

/// Reads events from a stream that comes in pieces.
#[derive(Debug, Default)]
pub struct SseReader {
    boundaries: Boundaries,
    /// The beginning of an event whose end has not come yet.
    open: Vec<u8>,
    /// The open event is longer than the bound: its bytes are let go up to its end.
    skipping: bool,
    /// An event has ended before, so a byte order mark means nothing any more.
    begun: bool,
}

impl SseReader {
    /// A reader at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where in the next piece an event ends: 0 where one has just ended, `None` where none does.
    #[must_use]
    pub fn next_boundary(&self, bytes: &[u8]) -> Option<usize> {
        if self.boundaries.open_bytes() == 0 && !self.boundaries.after_cr {
            return Some(0);
        }
        let mut ahead = self.boundaries;
        ahead.next_end(bytes).map(|boundary| boundary.end)
    }

    /// Takes the next piece of the stream and hands out each event that it completes.
    pub fn feed(&mut self, mut bytes: &[u8], mut on_frame: impl FnMut(Frame<'_>)) {
        while let Some(boundary) = self.boundaries.next_end(bytes) {
            let (head, rest) = bytes.split_at(boundary.end);
            bytes = rest;
            if self.skipping || boundary.event_bytes > EVENT_BYTES_MAX {
                on_frame(Frame::TooLong);
            } else if self.open.is_empty() {
                deliver(head, !self.begun, &mut on_frame);
            } else {
                self.open.extend_from_slice(head);
                deliver(&self.open, !self.begun, &mut on_frame);
            }
            self.open.clear();
            self.skipping = false;
            self.begun = true;
        }
        if self.boundaries.open_bytes() > EVENT_BYTES_MAX {
            self.skipping = true;
            self.open = Vec::new();
        } else if !self.skipping {
            self.open.extend_from_slice(bytes);
        }
    }

    /// Ends the stream; an event that only lacks its blank line is handed out.
    pub fn finish(self, mut on_frame: impl FnMut(Frame<'_>)) {
        if self.skipping {
            on_frame(Frame::TooLong);
        } else {
            deliver(&self.open, !self.begun, &mut on_frame);
        }
    }
}

/// The end of an event inside a piece of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// Offset just past the blank line that ends the event.
    pub end: usize,
    /// Length of the whole event, earlier pieces included. Each line end counts as one byte,
    /// whichever it is, so that the length does not depend on where the input was cut.
    pub event_bytes: usize,
}

/// Finds where events end, and holds no bytes itself.
///
/// Whoever inserts events of their own, or holds a stream back, may do so at these offsets only.
/// A CR ends a blank line at once, so that no event waits for a byte that may never come; the LF
/// of a CRLF cut in two then counts to the next event, where it does no harm.
#[derive(Clone, Copy, Debug, Default)]
pub struct Boundaries {
    /// Bytes of the open event so far, counted as in [`Boundary::event_bytes`].
    open_bytes: usize,
    /// The current line has bytes already.
    in_line: bool,
    /// The last byte was a CR that ended a line; an LF that follows belongs to it.
    after_cr: bool,
}

impl Boundaries {
    /// The next end of an event in `bytes`, or `None` when they hold none.
    ///
    /// Bytes up to the end (or all of them) are then consumed: go on with those after it.
    pub fn next_end(&mut self, bytes: &[u8]) -> Option<Boundary> {
        let mut at = usize::from(self.after_cr && bytes.first() == Some(&b'\n'));
        if !bytes.is_empty() {
            self.after_cr = false;
        }
        while let Some(line_bytes) = memchr2(b'\n', b'\r', &bytes[at..]) {
            let blank = line_bytes == 0 && !self.in_line;
            let end_of_line = at + line_bytes;
            at = end_of_line + 1;
            if bytes[end_of_line] == b'\r' {
                match bytes.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            self.in_line = false;
            self.open_bytes += line_bytes + 1;
            if blank {
                let event_bytes = std::mem::take(&mut self.open_bytes);
                return Some(Boundary { end: at, event_bytes });
            }
        }
        self.in_line |= at < bytes.len();
        self.open_bytes += bytes.len() - at;
        None
    }

    /// Bytes of the event whose end has not come yet, counted as in [`Boundary::event_bytes`].
    #[must_use]
    pub fn open_bytes(&self) -> usize {
        self.open_bytes
    }
}

/// Reads the fields of one whole event; `None` when it carries no data (a comment, a blank line).
///
/// `first` says that the event opens the stream, where a byte order mark may stand.
#[must_use]
pub fn parse_event(mut block: &[u8], first: bool) -> Option<Event<'_>> {
    if first {
        block = block.strip_prefix(b"\xef\xbb\xbf").unwrap_or(block);
    }
    let mut name: &[u8] = b"";
    let mut data: Option<Cow<'_, [u8]>> = None;
    while !block.is_empty() {
        // A CRLF reads as two line ends here; the empty line between them has no field.
        let end = memchr2(b'\n', b'\r', block).unwrap_or(block.len());
        let line = &block[..end];
        block = block.get(end + 1..).unwrap_or_default();
        if let Some(value) = field(line, b"data") {
            data = Some(match data {
                None => Cow::Borrowed(value),
                Some(lines) => {
                    let mut lines = lines.into_owned();
                    lines.push(b'\n');
                    lines.extend_from_slice(value);
                    Cow::Owned(lines)
                }
            });
        } else if let Some(value) = field(line, b"event") {
            name = value;
        }
    }
    // An event whose only data line is empty has an empty data buffer and is not dispatched.
    data.filter(|data| !data.is_empty()).map(|data| Event { name, data })
}

/// The value of a line if the line is the named field.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(b""),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

fn deliver(block: &[u8], first: bool, on_frame: &mut impl FnMut(Frame<'_>)) {
    if let Some(event) = parse_event(block, first) {
        on_frame(Frame::Event(event));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = Option<(String, Vec<u8>)>;

    fn read(pieces: &[&[u8]]) -> Vec<Owned> {
        let mut out = Vec::new();
        let mut keep = |frame: Frame<'_>| {
            out.push(match frame {
                Frame::Event(event) => {
                    Some((String::from_utf8_lossy(event.name).into(), event.data.into_owned()))
                }
                Frame::TooLong => None,
            });
        };
        let mut reader = SseReader::new();
        for piece in pieces {
            reader.feed(piece, &mut keep);
        }
        reader.finish(&mut keep);
        out
    }

    fn check(input: &[u8], expected: &[(&str, &str)]) {
        let expected: Vec<Owned> = expected
            .iter()
            .map(|(name, data)| Some(((*name).to_owned(), data.as_bytes().to_vec())))
            .collect();
        assert_eq!(read(&[input]), expected, "whole: {input:?}");
        for at in 0..=input.len() {
            let (head, tail) = input.split_at(at);
            assert_eq!(read(&[head, tail]), expected, "cut at {at}: {input:?}");
            assert_eq!(read(&[head, b"", tail]), expected, "cut at {at} twice: {input:?}");
        }
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(read(&bytes), expected, "byte by byte: {input:?}");
    }

    #[test]
    fn events_are_the_same_wherever_the_input_is_cut() {
        check(b"data: a\n\ndata: b\n\n", &[("", "a"), ("", "b")]);
        check(b"data: a\r\n\r\ndata: b\r\n\r\n", &[("", "a"), ("", "b")]);
        check(b"data: a\r\rdata: b\r\r", &[("", "a"), ("", "b")]);
        check(b"data: a\r\n\ndata: b\n\r\n", &[("", "a"), ("", "b")]);
        check(b"event: ping\ndata: {}\n\n", &[("ping", "{}")]);
        check(b"data: {}\nevent: late\n\n", &[("late", "{}")]);
        check(b"event: one\n\ndata: x\n\n", &[("", "x")]);
        check(b"data: a\ndata:b\ndata:  c\n\n", &[("", "a\nb\n c")]);
        check(b"data\ndata\n\n", &[("", "\n")]);
        check(b"data:\n\n", &[]);
        check(b": OPENING\n\n: MORE\n\ndata: x\n\n", &[("", "x")]);
        check(b"\n\n\n\ndata: x\n\n\n\n", &[("", "x")]);
        check(b"\xef\xbb\xbfdata: x\n\n", &[("", "x")]);
        check(b"\xef\xbb\xbf\ndata: x\n\n", &[("", "x")]);
        check(b"data: x\n\n\xef\xbb\xbfdata: y\n\n", &[("", "x")]);
        check(b"id: 7\nretry: 10\ndatum: no\ndata: x\n\n", &[("", "x")]);
        check("data: grün 👋\n\n".as_bytes(), &[("", "grün 👋")]);
        check(b"data: cut off", &[("", "cut off")]);
        check(b"data: cut off\r\n", &[("", "cut off")]);
        check(b"", &[]);
    }

    #[test]
    fn an_event_at_the_bound_is_read_and_one_past_it_is_not() {
        // The blank line's end counts too, hence `data:` and two more bytes.
        let fits = EVENT_BYTES_MAX - 7;
        for end in ["\n\n", "\r\n\r\n", "\r\r"] {
            for (length, kept) in [(fits, true), (fits + 1, false)] {
                let input = [b"data:", &vec![b'x'; length][..], end.as_bytes()].concat();
                let input = [&input[..], b"data: next\n\n"].concat();
                for cut in [0, 3, length, length + 6, length + 7, length + 8, input.len()] {
                    let (head, tail) = input.split_at(cut);
                    let frames = read(&[head, tail]);
                    assert_eq!(frames.len(), 2, "{end:?} {length} {cut}");
                    assert_eq!(frames[0].is_some(), kept, "{end:?} {length} {cut}");
                    assert_eq!(frames[1], Some((String::new(), b"next".to_vec())));
                }
            }
        }
    }

    #[test]
    fn an_endless_event_is_not_held() {
        let mut reader = SseReader::new();
        for _ in 0..64 {
            reader.feed(&vec![b'x'; EVENT_BYTES_MAX / 8], |_| panic!("no event has ended"));
            assert!(reader.open.capacity() <= 2 * EVENT_BYTES_MAX);
        }
        let mut frames = 0;
        reader.finish(|frame| {
            assert_eq!(frame, Frame::TooLong);
            frames += 1;
        });
        assert_eq!(frames, 1);
    }

    #[test]
    fn a_whole_event_in_one_piece_is_not_copied() {
        let input = b"data: {\"a\":1}\n\n".to_vec();
        let mut reader = SseReader::new();
        let range = input.as_ptr_range();
        reader.feed(&input, |frame| match frame {
            Frame::Event(Event { data: Cow::Borrowed(data), .. }) => {
                assert!(range.contains(&data.as_ptr()));
            }
            other => panic!("copied: {other:?}"),
        });
        assert_eq!(reader.open.capacity(), 0);
    }

    #[test]
    fn the_next_boundary_is_told_ahead() {
        let mut reader = SseReader::new();
        assert_eq!(reader.next_boundary(b"data: a"), Some(0));
        reader.feed(b"data: a\n", |_| {});
        assert_eq!(reader.next_boundary(b"data: b"), None);
        assert_eq!(reader.next_boundary(b"data: b\n\ndata: c\n\n"), Some(9));
        assert_eq!(reader.next_boundary(b"\ndata"), Some(1));
        reader.feed(b"\n", |_| {});
        assert_eq!(reader.next_boundary(b""), Some(0));
    }

    #[test]
    fn boundaries_lie_past_the_blank_line() {
        let mut boundaries = Boundaries::default();
        let input = b"data: a\r\n\r\ndata: b\n\ndata";
        let first = boundaries.next_end(input).unwrap();
        assert_eq!(first, Boundary { end: 11, event_bytes: 9 });
        assert_eq!(boundaries.next_end(&input[11..]), Some(Boundary { end: 9, event_bytes: 9 }));
        assert_eq!(boundaries.next_end(&input[20..]), None);
        assert_eq!(boundaries.open_bytes(), 4);
    }

    /// Bytes among which line ends, fields and marks are common.
    fn noise() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            Just(b"data: ".to_vec()),
            Just(b"event: e".to_vec()),
            Just(b":".to_vec()),
            Just(b"\n".to_vec()),
            Just(b"\r".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"\xef\xbb\xbf".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        proptest::collection::vec(word, 0..40).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn any_input_reads_the_same_in_any_pieces(
            input in noise(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&input[from..cut]);
                from = cut;
            }
            pieces.push(&input[from..]);
            prop_assert_eq!(read(&pieces), read(&[&input]));
        }

        #[test]
        fn boundaries_cut_the_input_into_events_that_read_alike(input in noise()) {
            let mut boundaries = Boundaries::default();
            let mut rest = &input[..];
            let mut alone = Vec::new();
            let mut first = true;
            while let Some(boundary) = boundaries.next_end(rest) {
                let (event, after) = rest.split_at(boundary.end);
                alone.extend(parse_event(event, first).map(|e| e.data.into_owned()));
                first = false;
                rest = after;
            }
            alone.extend(parse_event(rest, first).map(|e| e.data.into_owned()));
            let together: Vec<Vec<u8>> =
                read(&[&input]).into_iter().flatten().map(|(_, data)| data).collect();
            prop_assert_eq!(alone, together);
        }
    }
}
