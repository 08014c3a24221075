//! Sending an answer at so many tokens a second.
//!
//! Each event goes out when the tokens before it have had their time. What waits is bounded: a full
//! pacer is not fed, so that the upstream is not read and waits itself, and the rest of an answer
//! never lies in memory here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::limits::{PACED_BYTES_MAX, PACED_EVENTS_MAX};

/// Lag behind the schedule up to which a pause is made up for: timers fire late, and a rate that
/// loses each time would be a lower one. After a longer pause of the upstream's it begins anew.
const CATCH_UP: Duration = Duration::from_millis(100);

/// Holds an answer's events until they are due.
#[derive(Debug)]
pub struct Pacer {
    tokens_per_second: f64,
    /// Bytes of the events that wait, one behind the other.
    bytes: BytesMut,
    waiting: VecDeque<Waiting>,
    /// When the first that waits is due.
    due: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    bytes: usize,
    tokens: u32,
}

impl Pacer {
    /// A pacer that lets its first event go at `now`.
    #[must_use]
    pub fn new(tokens_per_second: f64, now: Instant) -> Self {
        Self { tokens_per_second, bytes: BytesMut::new(), waiting: VecDeque::new(), due: now }
    }

    /// Changes the rate from the next event on.
    pub fn set_rate(&mut self, tokens_per_second: f64) {
        self.tokens_per_second = tokens_per_second;
    }

    /// Takes one event of so many tokens.
    pub fn push(&mut self, event: &[u8], tokens: u32, now: Instant) {
        if self.waiting.is_empty() && self.due + CATCH_UP < now {
            self.due = now;
        }
        self.bytes.extend_from_slice(event);
        self.waiting.push_back(Waiting { bytes: event.len(), tokens });
    }

    /// Takes an event that is due at a time of its own.
    pub fn push_at(&mut self, event: &[u8], due: Instant) {
        self.due = self.due.max(due);
        self.bytes.extend_from_slice(event);
        self.waiting.push_back(Waiting { bytes: event.len(), tokens: 0 });
    }

    /// The rate.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens_per_second
    }

    /// What is due.
    pub fn take_due(&mut self, now: Instant) -> Bytes {
        let mut bytes = 0;
        while let Some(first) = self.waiting.front().copied() {
            if self.due > now {
                break;
            }
            self.waiting.pop_front();
            bytes += first.bytes;
            let seconds = f64::from(first.tokens) / self.tokens_per_second;
            // The longest float that a duration takes is far beyond any answer's.
            self.due += Duration::try_from_secs_f64(seconds).unwrap_or_default();
        }
        self.bytes.split_to(bytes).freeze()
    }

    /// When the next event is due; `None` where none waits.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.due)
    }

    /// Whether more may be pushed.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes.len() < PACED_BYTES_MAX && self.waiting.len() < PACED_EVENTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn events_go_out_when_the_tokens_before_them_have_had_their_time() {
        let start = Instant::now();
        let mut pacer = Pacer::new(20.0, start);
        for (event, tokens) in [("a", 1), ("b", 2), ("-", 0), ("c", 1)] {
            pacer.push(event.as_bytes(), tokens, start);
        }
        let mut sent = Vec::new();
        while let Some(due) = pacer.next_due() {
            let out = pacer.take_due(due);
            sent.push((due - start, String::from_utf8(out.to_vec()).unwrap()));
        }
        // What has no tokens leaves with what comes before the next wait.
        let expected = [(ms(0), "a"), (ms(50), "b"), (ms(150), "-c")];
        assert_eq!(sent, expected.map(|(at, text)| (at, text.to_owned())));
        assert!(pacer.take_due(start + ms(10_000)).is_empty());
    }

    #[test]
    fn a_late_timer_is_made_up_for_and_a_long_pause_is_not() {
        let start = Instant::now();
        let mut pacer = Pacer::new(20.0, start);
        pacer.push(b"a", 1, start);
        pacer.push(b"b", 1, start);
        assert_eq!(pacer.take_due(start + ms(30)), &b"a"[..]);
        assert_eq!(pacer.next_due(), Some(start + ms(50)), "not 80");
        assert_eq!(pacer.take_due(start + ms(50)), &b"b"[..]);
        let later = start + ms(5_000);
        pacer.push(b"c", 1, later);
        pacer.push(b"d", 1, later);
        assert_eq!(pacer.take_due(later), &b"c"[..], "the pause was not saved up");
        assert_eq!(pacer.next_due(), Some(later + ms(50)));
    }

    #[test]
    fn what_waits_is_bounded() {
        let start = Instant::now();
        let mut pacer = Pacer::new(1.0, start);
        let mut events = 0;
        while pacer.has_room() {
            pacer.push(b"x", 1, start);
            events += 1;
        }
        assert_eq!(events, PACED_EVENTS_MAX);
        assert_eq!(pacer.take_due(start + ms(1_000)).len(), 2);
        assert!(pacer.has_room());
        pacer.push(&vec![b'x'; PACED_BYTES_MAX], 1, start);
        assert!(!pacer.has_room());
        assert!(pacer.take_due(start + ms(100_000)).len() > PACED_BYTES_MAX);
    }
}
