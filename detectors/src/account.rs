//! What is remembered of an account: bounded, mergeable, free of text.

use serde::{Deserialize, Serialize};

use crate::event::Profile;
use crate::finding::ramp;
use crate::keyed::{self, Key};
use crate::network::NetworkKind;
use crate::seen::Seen;
use crate::sketch::{Activity, Histogram, Latest, Mark, Merge, Moments, Timed};

/// Length of a slot of activity, in seconds.
pub const SLOT_S: u32 = 300;

/// A recent exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recent {
    /// Hash of its name.
    pub id: u64,
    /// Arrival, unix milliseconds.
    pub at_ms: u64,
    /// How long the answer took, milliseconds.
    pub duration_ms: u32,
    /// Hash of the prompt's first words.
    pub opening: u32,
    /// Length of the prompt in characters.
    pub prompt_chars: u16,
    /// Capability category plus one; 0 where none was found.
    pub topic: u8,
}

impl Recent {
    /// When its answer had ended, unix milliseconds.
    #[must_use]
    pub fn end_ms(&self) -> u64 {
        self.at_ms + u64::from(self.duration_ms)
    }
}

impl Timed for Recent {
    fn key(&self) -> u64 {
        self.id
    }

    fn at(&self) -> u64 {
        self.at_ms
    }

    fn join(&mut self, _: &Self) {}
}

/// What happened in one slot of [`SLOT_S`] seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Unix time over [`SLOT_S`].
    pub slot: u32,
    /// First arrival, in milliseconds after the slot's begin.
    pub first_ms: u32,
    /// Last arrival, in milliseconds after the slot's begin.
    pub last_ms: u32,
    /// Exchanges.
    pub count: u32,
}

impl Timed for Slot {
    fn key(&self) -> u64 {
        u64::from(self.slot)
    }

    fn at(&self) -> u64 {
        u64::from(self.slot)
    }

    fn join(&mut self, other: &Self) {
        self.first_ms = self.first_ms.min(other.first_ms);
        self.last_ms = self.last_ms.max(other.last_ms);
        self.count = self.count.saturating_add(other.count);
    }
}

/// A paragraph that may be a template's frame: it is one once different texts came with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Hash of the paragraph.
    pub key: u64,
    /// Last seen, unix seconds.
    pub at_s: u32,
    /// Exchanges that came with it.
    pub count: u32,
    /// Smallest and largest hash of a whole text that came with it.
    pub texts: (u64, u64),
}

impl Frame {
    /// Whether different texts came with it.
    #[must_use]
    pub fn varies(&self) -> bool {
        self.texts.0 != self.texts.1
    }
}

impl Timed for Frame {
    fn key(&self) -> u64 {
        self.key
    }

    fn at(&self) -> u64 {
        u64::from(self.at_s)
    }

    fn join(&mut self, other: &Self) {
        self.at_s = self.at_s.max(other.at_s);
        self.count = self.count.saturating_add(other.count);
        self.texts = (self.texts.0.min(other.texts.0), self.texts.1.max(other.texts.1));
    }
}

/// What the operator told of an account. The latest word counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Known {
    /// When it was told, unix milliseconds; 0 if never.
    pub at_ms: u64,
    /// Hash of the declared organisation.
    pub organisation: Option<u64>,
    /// Creation, unix seconds.
    pub created_s: Option<i64>,
    /// Hash of the payment instrument.
    pub payment: Option<u64>,
    /// First six digits of the card.
    pub bin: Option<u32>,
    /// Whether the holder was checked.
    pub verified: bool,
}

impl Known {
    /// Takes a profile's facts.
    #[must_use]
    pub fn of(profile: &Profile, key: &Key) -> Self {
        let hash = |text: &str| keyed::hash(key, text.as_bytes());
        Self {
            at_ms: profile.at_ms,
            organisation: profile.organisation.as_ref().map(|id| hash(id.as_str())),
            created_s: profile.created_s,
            payment: profile.payment.as_deref().map(hash),
            bin: profile.bin,
            verified: profile.verified,
        }
    }
}

impl Merge for Known {
    fn merge(&mut self, other: &Self) {
        *self = (*self).max(*other);
    }
}

/// What is remembered of an account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the operator told.
    pub known: Known,
    /// Exchanges.
    pub requests: u32,
    /// First and last arrival.
    pub span: Span,
    /// Recent exchanges.
    pub recent: Latest<Recent, 16>,
    /// Recent slots of activity.
    pub slots: Latest<Slot, 32>,
    /// Hours of activity.
    pub hours: Activity,
    /// Addresses.
    pub addresses: Latest<Mark, 6>,
    /// Subnets.
    pub subnets: Latest<Mark, 6>,
    /// Prompts that somebody else may send too.
    pub prompts: Latest<Mark, 16>,
    /// Template frames.
    pub frames: Latest<Frame, 8>,
    /// System prompts.
    pub systems: Latest<Mark, 12>,
    /// Client shapes.
    pub shapes: Latest<Mark, 4>,
    /// Software with settings.
    pub rigs: Latest<Mark, 4>,
    /// Seconds of arrival with settings.
    pub seconds: Latest<Mark, 16>,
    /// Encrypted resolvers.
    pub resolvers: Latest<Mark, 2>,
    /// Exchanges by kind of network.
    pub networks: Histogram<5>,
    /// Exchanges whose prompt could be read.
    pub prompted: u32,
    /// … that carry earlier answers.
    pub history: u32,
    /// … that hand a tool's result back.
    pub tool_turns: u32,
    /// … with tools on offer.
    pub with_tools: u32,
    /// … with a system prompt.
    pub with_system: u32,
    /// … streamed.
    pub streamed: u32,
    /// Prompt lengths, characters.
    pub prompt_chars: Moments,
    /// Answer lengths, tokens.
    pub completion: Moments,
    /// Upper bounds asked for, tokens.
    pub max_tokens: Moments,
    /// When somebody suspended it.
    pub suspended: Span,
}

impl Memory {
    /// Takes in an exchange.
    pub fn note(&mut self, seen: &Seen) {
        let at_s = seen.at_s();
        let slot = Slot {
            slot: at_s / SLOT_S,
            first_ms: (seen.at_ms % (u64::from(SLOT_S) * 1000)) as u32,
            last_ms: (seen.at_ms % (u64::from(SLOT_S) * 1000)) as u32,
            count: 1,
        };
        let mark = |key: u64| Mark { key, at_s };
        self.requests = self.requests.saturating_add(1);
        self.span.add(seen.at_ms);
        self.slots.add(&slot);
        self.hours.add(at_s / 3600);
        self.addresses.add(&mark(seen.address));
        self.subnets.add(&mark(seen.subnet));
        self.shapes.add(&mark(seen.shape));
        self.rigs.add(&mark(seen.rig));
        self.networks.add(seen.network as usize);
        self.recent.add(&Recent {
            id: seen.id,
            at_ms: seen.at_ms,
            duration_ms: seen.duration_ms,
            opening: seen.opening,
            prompt_chars: u16::try_from(seen.prompt_chars).unwrap_or(u16::MAX),
            topic: seen.text.topic.map_or(0, |(topic, _)| topic + 1),
        });
        self.seconds.add(&mark(seen.second));
        if let Some(resolver) = seen.resolver {
            self.resolvers.add(&mark(resolver));
        }
        if let Some(system) = seen.system {
            self.systems.add(&mark(system));
        }
        if let Some(prompt) = seen.prompt {
            self.prompts.add(&mark(prompt));
        }
        for key in seen.frames.into_iter().flatten() {
            let text = seen.prompt.unwrap_or(0);
            self.frames.add(&Frame { key, at_s, count: 1, texts: (text, text) });
        }
        if seen.status == 200 {
            self.completion.add(seen.completion_tokens);
        }
        if let Some(bound) = seen.max_tokens {
            self.max_tokens.add(u32::try_from(bound).unwrap_or(u32::MAX));
        }
        if !seen.readable {
            return;
        }
        self.prompted = self.prompted.saturating_add(1);
        self.history += u32::from(seen.history && !seen.tool_turn);
        self.tool_turns += u32::from(seen.tool_turn);
        self.with_tools += u32::from(seen.tools);
        self.with_system += u32::from(seen.system.is_some());
        self.streamed += u32::from(seen.stream);
        self.prompt_chars.add(seen.prompt_chars);
    }

    /// How much this looks like somebody at a keyboard, 0..1: conversations that grow, with time to
    /// read and think before each turn.
    #[must_use]
    pub fn interactive(&self) -> f64 {
        let talks = f64::from(self.history) / (f64::from(self.prompted) + 1.0);
        let mut thinks: Vec<u64> = self
            .recent
            .iter()
            .zip(self.recent.iter().skip(1))
            .map(|(before, next)| next.at_ms.saturating_sub(before.end_ms()))
            // A longer pause is another session.
            .filter(|ms| *ms < 1_800_000)
            .collect();
        thinks.sort_unstable();
        let thoughtful = match thinks.get(thinks.len() / 2) {
            Some(median) => ramp(*median as f64, 2_000.0, 8_000.0),
            None => 0.5,
        };
        ramp(talks, 0.0, 0.4) * thoughtful
    }

    /// Exchanges a second over the recent ones.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let (first, last) = (self.recent.iter().next(), self.recent.iter().next_back());
        let span_ms = match (first, last) {
            (Some(first), Some(last)) => last.at_ms - first.at_ms,
            _ => 0,
        };
        self.recent.len() as f64 / (span_ms as f64 / 1000.0).max(1.0)
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let marks = [&self.addresses, &self.subnets].map(Latest::heap_bytes);
        let lists = [&self.shapes, &self.rigs].map(Latest::heap_bytes);
        marks.iter().chain(&lists).sum::<usize>()
            + self.systems.heap_bytes()
            + self.recent.heap_bytes()
            + self.slots.heap_bytes()
            + self.prompts.heap_bytes()
            + self.frames.heap_bytes()
            + self.seconds.heap_bytes()
            + self.resolvers.heap_bytes()
    }

    /// Share of exchanges from hosting providers, 0..1.
    #[must_use]
    pub fn hosting(&self) -> f64 {
        let hosting = self.networks.counts()[NetworkKind::Hosting as usize];
        f64::from(hosting) / f64::from(self.networks.total().max(1))
    }

    /// The customer behind the account: accounts of one declared organisation, or of one payment
    /// instrument, are one.
    #[must_use]
    pub fn customer(&self, account: u64) -> u64 {
        self.known.organisation.or(self.known.payment).unwrap_or(account)
    }

    /// Whether two accounts are openly one customer's.
    #[must_use]
    pub fn same_customer(&self, other: &Self) -> bool {
        let same = |a: Option<u64>, b: Option<u64>| a.is_some() && a == b;
        same(self.known.organisation, other.known.organisation)
            || same(self.known.payment, other.known.payment)
    }
}

/// Implements [`Merge`] field by field.
#[macro_export]
macro_rules! merge_fields {
    ($name:ty { $($field:ident),* $(,)? }) => {
        impl $crate::sketch::Merge for $name {
            fn merge(&mut self, other: &Self) {
                $($crate::sketch::Merge::merge(&mut self.$field, &other.$field);)*
            }
        }
    };
}

/// First and last time, unix milliseconds; zeros before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// First.
    pub first_ms: u64,
    /// Last.
    pub last_ms: u64,
}

impl Span {
    /// Takes in a time.
    pub fn add(&mut self, at_ms: u64) {
        self.merge(&Self { first_ms: at_ms, last_ms: at_ms });
    }
}

impl Merge for Span {
    fn merge(&mut self, other: &Self) {
        if *self == Self::default() {
            *self = *other;
        } else if *other != Self::default() {
            self.first_ms = self.first_ms.min(other.first_ms);
            self.last_ms = self.last_ms.max(other.last_ms);
        }
    }
}

merge_fields!(Memory {
    known,
    requests,
    span,
    recent,
    slots,
    hours,
    addresses,
    subnets,
    prompts,
    frames,
    systems,
    shapes,
    rigs,
    seconds,
    resolvers,
    networks,
    prompted,
    history,
    tool_turns,
    with_tools,
    with_system,
    streamed,
    prompt_chars,
    completion,
    max_tokens,
    suspended,
});
