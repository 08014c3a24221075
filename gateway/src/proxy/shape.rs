//! Shaping an answer: rewritten, paced, or both. An answer that is not shaped never comes here.
//!
//! Bytes of the upstream's go in, bytes for the client come out when they are due. Two bounds keep
//! the memory flat: a full pacer is not fed (the upstream is then not read), and what a rewriter
//! holds has a bound of its own and a timer.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use detectors::Format;
use prometheus::IntGauge;

use super::pace::Pacer;
use crate::limits::{ANSWER_BYTES_MAX, EVENT_BYTES_MAX, PACED_WHOLE_DELAY_MAX, REWRITE_HOLD_MAX};
use crate::wire::{AnswerReader, Changes, EventMeter, Released, Rewriter};

/// What an answer is, as far as shaping is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Kind<'a> {
    /// Its format; `Unknown` where it is not read.
    pub format: Format,
    /// Its status.
    pub status: u16,
    /// Its content type.
    pub content_type: Option<&'a str>,
}

/// One answer on its way.
pub struct Shape {
    rewriter: Option<Rewriter>,
    pace: Option<Paced>,
    /// What goes out at once.
    ready: BytesMut,
    /// When held text goes out although more of it may come.
    hold_until: Option<Instant>,
    /// The body has ended; what is left of it waits for its time.
    finished: bool,
}

struct Paced {
    pacer: Pacer,
    /// Finds the events where no rewriter does.
    meter: Option<EventMeter>,
    /// The beginning of an event that has not ended; of a body that is no stream, all of it.
    open: BytesMut,
    /// A body that is no stream is held to its end and leaves when its tokens have had their time.
    whole: Option<Whole>,
    _gauge: Gauge,
}

struct Whole {
    format: Format,
    status: u16,
    begun: Instant,
}

/// Counts a paced answer while it is one.
struct Gauge(IntGauge);

impl Gauge {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Shape {
    /// Shapes an answer from its beginning; `None` where there is nothing to shape.
    #[must_use]
    pub fn new(
        kind: Kind<'_>,
        changes: Option<Changes>,
        pace: Option<f64>,
        paced: &IntGauge,
        begun: Instant,
    ) -> Option<Self> {
        let Kind { format, status, content_type } = kind;
        if !(200..300).contains(&status) {
            return None;
        }
        let rewriter = changes.and_then(|all| Rewriter::new(format, status, content_type, all));
        Self::of(kind, rewriter, pace, paced, Some(begun))
    }

    /// Shapes an answer from here on: a stream, where an event has just ended.
    #[must_use]
    pub fn resume(
        kind: Kind<'_>,
        changes: Option<Changes>,
        pace: Option<f64>,
        paced: &IntGauge,
    ) -> Option<Self> {
        let Kind { format, status, content_type } = kind;
        let rewriter = changes.and_then(|all| Rewriter::resume(format, status, content_type, all));
        Self::of(kind, rewriter, pace, paced, None)
    }

    /// `begun` is set at an answer's beginning, where it may still turn out to be no stream.
    fn of(
        kind: Kind<'_>,
        rewriter: Option<Rewriter>,
        pace: Option<f64>,
        paced: &IntGauge,
        begun: Option<Instant>,
    ) -> Option<Self> {
        // Of formats that are not read nobody knows where an event ends, let alone its tokens.
        let pace = pace.filter(|_| !matches!(kind.format, Format::Unknown | Format::Grpc));
        if rewriter.is_none() && pace.is_none() {
            return None;
        }
        let rewriter = rewriter.map(|all| if pace.is_some() { all.with_meter() } else { all });
        let pace = pace.map(|tokens_per_second| Paced {
            pacer: Pacer::new(tokens_per_second, Instant::now()),
            meter: rewriter.is_none().then(|| EventMeter::new(kind.format, kind.content_type)),
            open: BytesMut::new(),
            whole: begun.map(|begun| Whole { format: kind.format, status: kind.status, begun }),
            _gauge: Gauge::new(paced),
        });
        Some(Self { rewriter, pace, ready: BytesMut::new(), hold_until: None, finished: false })
    }

    /// Whether the body's length may change.
    #[must_use]
    pub fn changes_length(&self) -> bool {
        self.rewriter.is_some()
    }

    /// Takes the next piece of the body.
    pub fn push(&mut self, bytes: &[u8], now: Instant) {
        let Some(rewriter) = &mut self.rewriter else {
            match &mut self.pace {
                Some(paced) => paced.meter(bytes, now),
                None => self.ready.extend_from_slice(bytes),
            }
            return;
        };
        match &mut self.pace {
            None => rewriter.push(bytes, &mut self.ready),
            Some(paced) => {
                let mut out = BytesMut::new();
                rewriter.push(bytes, &mut out);
                if rewriter.holds_whole() {
                    // It comes out at the end, and is then as large as it is.
                } else {
                    paced.whole = None;
                }
                paced.events(&out, rewriter.released(), now);
            }
        }
        self.hold_until = match (rewriter.holds(), self.hold_until) {
            (false, _) => None,
            (true, Some(until)) => Some(until),
            (true, None) => Some(now + REWRITE_HOLD_MAX),
        };
    }

    /// The body has ended.
    pub fn finish(&mut self, now: Instant) {
        self.hold_until = None;
        self.finished = true;
        let mut out = BytesMut::new();
        if let Some(rewriter) = &mut self.rewriter {
            rewriter.finish(&mut out);
        }
        match &mut self.pace {
            None => self.ready.unsplit(out),
            Some(paced) => {
                let released = self.rewriter.as_ref().map_or(&[][..], Rewriter::released);
                paced.finish(out, released, now);
            }
        }
    }

    /// What is due for the client.
    pub fn take_due(&mut self, now: Instant) -> Bytes {
        if let (Some(rewriter), Some(until)) = (&mut self.rewriter, self.hold_until)
            && until <= now
        {
            self.hold_until = None;
            let mut out = BytesMut::new();
            rewriter.flush(&mut out);
            match &mut self.pace {
                None => self.ready.unsplit(out),
                Some(paced) => paced.events(&out, rewriter.released(), now),
            }
        }
        match &mut self.pace {
            None => self.ready.split().freeze(),
            Some(paced) => paced.pacer.take_due(now),
        }
    }

    /// When [`Self::take_due`] next has something to give without more coming in.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        let paced = self.pace.as_ref().and_then(|paced| paced.pacer.next_due());
        paced.into_iter().chain(self.hold_until).min()
    }

    /// Whether the upstream may be read.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pace.as_ref().is_none_or(|paced| paced.pacer.has_room())
    }

    /// Whether all that came in has gone out, once the body has ended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.next_due().is_none()
    }

    /// The answer ends here, and what waits is let go. Whether what went out ends between two events:
    /// it does not within one that was too long to be held.
    #[must_use]
    pub fn break_off(&mut self) -> bool {
        let mut let_go = BytesMut::new();
        self.finished || self.rewriter.as_mut().is_none_or(|all| all.break_off(&mut let_go))
    }

    /// Lets the rest go at another pace, or as it comes.
    pub fn set_pace(&mut self, tokens_per_second: Option<f64>) {
        match (tokens_per_second, &mut self.pace) {
            (Some(rate), Some(paced)) => paced.pacer.set_rate(rate),
            // What waits and what comes leaves in time, only faster than anybody reads.
            (None, Some(paced)) => paced.pacer.set_rate(f64::MAX),
            (_, None) => {}
        }
    }
}

impl Paced {
    /// Takes what came of the upstream where nothing is rewritten.
    fn meter(&mut self, bytes: &[u8], now: Instant) {
        let mut released = Vec::new();
        if let Some(meter) = &mut self.meter {
            meter.push(bytes, &mut released);
            if meter.is_stream() == Some(true) {
                self.whole = None;
            }
        }
        let mut from = 0;
        for event in released {
            self.open.extend_from_slice(&bytes[from..event.end]);
            self.pacer.push(&self.open, event.tokens, now);
            self.open.clear();
            from = event.end;
        }
        self.open.extend_from_slice(&bytes[from..]);
        let most = if self.whole.is_some() { ANSWER_BYTES_MAX } else { EVENT_BYTES_MAX };
        if self.open.len() > most {
            // No event that anybody reads is that long.
            let open = self.open.split();
            self.pacer.push(&open, 0, now);
        }
    }

    /// Takes what a rewriter put out.
    fn events(&mut self, out: &[u8], released: &[Released], now: Instant) {
        let mut from = 0;
        for event in released {
            self.pacer.push(&out[from..event.end], event.tokens, now);
            from = event.end;
        }
        if from < out.len() {
            self.pacer.push(&out[from..], 0, now);
        }
    }

    fn finish(&mut self, out: BytesMut, released: &[Released], now: Instant) {
        let Some(whole) = self.whole.take() else {
            self.events(&out, released, now);
            if !self.open.is_empty() {
                let open = self.open.split();
                self.pacer.push(&open, 0, now);
            }
            return;
        };
        let mut body = self.open.split();
        body.unsplit(out);
        let tokens = tokens_of(&whole, &body);
        let time = Duration::try_from_secs_f64(tokens as f64 / self.pacer.tokens_per_second());
        let time = time.unwrap_or_default().min(PACED_WHOLE_DELAY_MAX);
        self.pacer.push_at(&body, (whole.begun + time).max(now));
    }
}

/// A quarter of the characters of a whole answer.
fn tokens_of(whole: &Whole, body: &[u8]) -> u64 {
    let mut reader = AnswerReader::new(whole.format, whole.status, Some("application/json"));
    reader.count(body);
    let answer = reader.finish(true);
    let arguments: u64 = answer.tool_calls.iter().map(|call| call.argument_bytes).sum();
    (answer.text_chars + answer.reasoning_chars + answer.refusal_chars + arguments).div_ceil(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Reasoning;

    const STREAM: Kind<'_> =
        Kind { format: Format::OpenaiChat, status: 200, content_type: Some("text/event-stream") };
    const WHOLE: Kind<'_> =
        Kind { format: Format::OpenaiChat, status: 200, content_type: Some("application/json") };

    fn gauge() -> IntGauge {
        IntGauge::new("paced", "paced").unwrap()
    }

    fn chunk(field: &str, text: &str) -> String {
        let delta = format!("{{\"{field}\":\"{text}\"}}");
        format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{delta}}}]}}\n\n")
    }

    fn withhold() -> Changes {
        let reasoning = Reasoning::Withhold { notice: None };
        Changes { mark: None, reasoning }
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    /// What comes out and when, in milliseconds, if each piece goes in as soon as there is room.
    fn run(mut shape: Shape, pieces: &[&str], start: Instant) -> Vec<(u64, String)> {
        let (mut now, mut sent) = (start, Vec::new());
        let mut pieces = pieces.iter();
        let mut ended = false;
        loop {
            while !ended && shape.has_room() {
                match pieces.next() {
                    Some(piece) => shape.push(piece.as_bytes(), now),
                    None => {
                        shape.finish(now);
                        ended = true;
                    }
                }
            }
            let due = shape.take_due(now);
            if !due.is_empty() {
                sent.push(((now - start).as_millis() as u64, text(&due)));
            }
            match shape.next_due() {
                Some(due) => now = due.max(now),
                None => break,
            }
        }
        assert!(shape.is_empty());
        sent
    }

    #[test]
    fn a_paced_stream_comes_out_whole_and_in_time() {
        let all = [chunk("content", "one"), chunk("content", "two"), "data: [DONE]\n\n".to_owned()];
        let joined = all.concat();
        for cut in 0..joined.len() {
            let (head, tail) = joined.split_at(cut);
            let start = Instant::now();
            let shape = Shape::new(STREAM, None, Some(20.0), &gauge(), start).unwrap();
            let sent = run(shape, &[head, tail], start);
            let times: Vec<u64> = sent.iter().map(|(at, _)| *at).collect();
            assert_eq!(times, [0, 50, 100], "cut at {cut}");
            let parts: Vec<_> = sent.into_iter().map(|(_, part)| part).collect();
            assert_eq!(parts, all, "cut at {cut}");
        }
    }

    #[test]
    fn a_rewritten_stream_can_be_paced() {
        let all = [
            chunk("reasoning_content", "secret thought"),
            chunk("content", "two"),
            chunk("content", "x"),
        ];
        let start = Instant::now();
        let shape = Shape::new(STREAM, Some(withhold()), Some(10.0), &gauge(), start).unwrap();
        assert!(shape.changes_length());
        let sent = run(shape, &[&all.concat()], start);
        // The tokens are the original's: fourteen characters of reasoning are three.
        assert_eq!(sent.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0, 300, 400]);
        assert_eq!(sent[0].1, chunk("reasoning_content", ""));
    }

    #[test]
    fn a_whole_answer_leaves_when_its_tokens_have_had_their_time() {
        let body =
            format!("{{\"choices\":[{{\"message\":{{\"content\":\"{}\"}}}}]}}", "word ".repeat(16));
        for changes in [None, Some(withhold())] {
            let start = Instant::now();
            let shape = Shape::new(WHOLE, changes, Some(10.0), &gauge(), start).unwrap();
            let (head, tail) = body.split_at(20);
            let sent = run(shape, &[head, tail], start);
            assert_eq!(sent, [(2_000, body.clone())], "eighty characters are twenty tokens");
        }
        let long = body.replace("word", &"word".repeat(1_000));
        let start = Instant::now();
        let shape = Shape::new(WHOLE, None, Some(1.0), &gauge(), start).unwrap();
        let sent = run(shape, &[&long], start);
        assert_eq!(sent[0].0, PACED_WHOLE_DELAY_MAX.as_millis() as u64, "no client waits forever");
    }

    #[test]
    fn a_stream_can_be_broken_off_also_while_its_rest_waits() {
        let (now, all) =
            (Instant::now(), [chunk("content", "one"), chunk("content", "two")].concat());
        for rewritten in [false, true] {
            for ended in [false, true] {
                let changes = rewritten.then(withhold);
                let mut shape = Shape::new(STREAM, changes, Some(1.0), &gauge(), now).unwrap();
                shape.push(all.as_bytes(), now);
                if ended {
                    shape.finish(now);
                }
                let first = shape.next_due().unwrap();
                assert!(!shape.take_due(first).is_empty() && shape.next_due().is_some());
                assert!(shape.break_off(), "ended: {ended}");
            }
        }
    }

    #[test]
    fn errors_and_unknown_formats_are_left_alone() {
        let now = Instant::now();
        let refused = Kind { status: 429, ..STREAM };
        assert!(Shape::new(refused, Some(withhold()), Some(1.0), &gauge(), now).is_none());
        let unknown = Kind { format: Format::Unknown, ..STREAM };
        assert!(Shape::new(unknown, Some(withhold()), Some(1.0), &gauge(), now).is_none());
        assert!(Shape::new(STREAM, None, None, &gauge(), now).is_none());
    }

    #[test]
    fn a_paced_answer_holds_little_and_is_counted_while_it_is_one() {
        let gauge = gauge();
        let now = Instant::now();
        let mut shape = Shape::new(STREAM, None, Some(1.0), &gauge, now).unwrap();
        assert_eq!(gauge.get(), 1);
        let event = chunk("content", "word");
        let mut pushed = 0;
        while shape.has_room() {
            shape.push(event.as_bytes(), now);
            pushed += event.len();
        }
        assert!(pushed < 2 * crate::limits::PACED_BYTES_MAX, "{pushed}");
        shape.set_pace(None);
        let out = run(shape, &[], now);
        assert!(out.last().unwrap().0 <= 1_000, "{:?}", out.last().map(|(at, _)| at));
        assert_eq!(gauge.get(), 0);
    }
}
