//! Messages between the audit and a receiver: which may go, and how far all before are done.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::audit::Act;

/// A message to be sent.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// Number of its entry.
    pub(super) seq: u64,
    /// When the entry was written, unix milliseconds.
    pub(super) at_ms: u64,
    /// Its kind.
    pub(super) act: Act,
    /// The same at every attempt.
    pub(super) id: String,
    /// What is sent.
    pub(super) body: Bytes,
    /// Messages that share one come in order.
    pub(super) keys: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waits,
    Flies,
    Done,
}

/// Messages that were read and not all done, in the audit's order.
#[derive(Debug)]
pub(super) struct Window {
    slots: VecDeque<(Arc<Message>, State)>,
    read: u64,
}

impl Window {
    /// Begins after an entry.
    pub(super) fn after(seq: u64) -> Self {
        Self { slots: VecDeque::new(), read: seq }
    }

    /// Messages that are held.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The last entry that was read.
    pub(super) fn read(&self) -> u64 {
        self.read
    }

    /// Takes in the message of the next entry.
    pub(super) fn push(&mut self, message: Message) {
        self.read = message.seq;
        self.slots.push_back((Arc::new(message), State::Waits));
    }

    /// Passes over entries that nobody wants.
    pub(super) fn pass(&mut self, seq: u64) {
        self.read = seq;
    }

    /// Up to so many messages that may go now, as nothing that they must follow is still under way.
    pub(super) fn ready(&mut self, limit: usize) -> Vec<Arc<Message>> {
        let mut ready = Vec::new();
        if limit == 0 {
            return ready;
        }
        let mut taken: HashSet<u64> = HashSet::new();
        for (message, state) in &mut self.slots {
            if *state == State::Done {
                continue;
            }
            if *state == State::Waits && message.keys.iter().all(|key| !taken.contains(key)) {
                *state = State::Flies;
                ready.push(message.clone());
                if ready.len() == limit {
                    break;
                }
            }
            taken.extend(&message.keys);
        }
        ready
    }

    /// A message was taken or given up.
    pub(super) fn finish(&mut self, seq: u64) {
        if let Ok(at) = self.slots.binary_search_by_key(&seq, |(message, _)| message.seq)
            && let Some((_, state)) = self.slots.get_mut(at)
        {
            *state = State::Done;
        }
        while self.slots.front().is_some_and(|(_, state)| *state == State::Done) {
            self.slots.pop_front();
        }
    }

    /// The entry up to which nothing is left to do.
    pub(super) fn cursor(&self) -> u64 {
        self.slots.front().map_or(self.read, |(message, _)| message.seq.saturating_sub(1))
    }

    /// When the oldest message was written that is not done, unix milliseconds.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        self.slots.front().map(|(message, _)| message.at_ms)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(seq: u64, keys: &[u64]) -> Message {
        let keys = keys.iter().copied().collect();
        let (id, body) = (String::new(), Bytes::new());
        Message { seq, at_ms: seq, act: Act::TierChanged, id, body, keys }
    }

    proptest! {
        /// Whatever is done in whatever order: what shares a key goes one after the other, the cursor
        /// never passes what is not done, and in the end everything was sent once.
        #[test]
        fn order_holds_per_key_and_nothing_is_left_out(
            keys in prop::collection::vec(
                prop::option::of(prop::collection::vec(0..4_u64, 1..3)), 1..40),
            choices in prop::collection::vec(any::<prop::sample::Index>(), 100),
            limit in 1..5_usize,
        ) {
            let mut window = Window::after(10);
            let mut wanted = Vec::new();
            for (seq, keys) in (11..).zip(&keys) {
                match keys {
                    Some(keys) => {
                        window.push(message(seq, keys));
                        wanted.push(seq);
                    }
                    None => window.pass(seq),
                }
            }
            let mut flying: Vec<Arc<Message>> = Vec::new();
            let mut done: Vec<Arc<Message>> = Vec::new();
            for choice in choices {
                for message in window.ready(limit - flying.len()) {
                    for other in &flying {
                        prop_assert!(message.keys.is_disjoint(&other.keys));
                    }
                    for other in &done {
                        prop_assert!(other.seq < message.seq || message.keys.is_disjoint(&other.keys));
                    }
                    flying.push(message);
                }
                if flying.is_empty() {
                    break;
                }
                let finished = flying.swap_remove(choice.index(flying.len()));
                window.finish(finished.seq);
                done.push(finished);
                let is_done = |seq: &u64| done.iter().any(|message| message.seq == *seq);
                let first_left = wanted.iter().find(|seq| !is_done(seq));
                let end = 10 + keys.len() as u64;
                prop_assert_eq!(window.cursor(), first_left.map_or(end, |seq| seq - 1));
                prop_assert_eq!(window.oldest_ms(), first_left.copied());
            }
            let mut sent: Vec<u64> = done.iter().map(|message| message.seq).collect();
            sent.sort_unstable();
            prop_assert_eq!(sent, wanted);
            prop_assert_eq!(window.len(), 0);
        }
    }
}
