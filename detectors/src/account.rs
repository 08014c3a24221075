//! What is remembered of an account: bounded, mergeable, free of text.

use serde::{Deserialize, Serialize};

use crate::dns::AccountDns;
use crate::event::Profile;
use crate::finding::ramp;
use crate::indicator::Hit;
use crate::keyed::{self, Key};
use crate::network::NetworkKind;
use crate::seen::{Answered, Seen};
use crate::sketch::{Histogram, Latest, Mark, Merge, Moments, Timed, count};

/// Length of a slot of activity, in seconds.
pub const SLOT_S: u32 = 300;

/// A recent exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Recent {
    /// Arrival, unix milliseconds.
    pub at_ms: u64,
    /// Hash of its name.
    pub id: u32,
    /// How long the answer took, milliseconds.
    pub duration_ms: u32,
    /// Hash of the prompt; 0 where it is too short.
    pub prompt: u32,
    /// Hashes of the paragraphs at its ends; 0 where there is none.
    pub frames: [u32; 2],
    /// Hash of the prompt's first words.
    pub opening: u32,
    /// Hash of model and sampling settings.
    pub settings: u32,
    /// Length of the prompt in characters.
    pub prompt_chars: u16,
    /// Capability category plus one; 0 where none was found.
    pub topic: u8,
}

impl Recent {
    /// When its answer had ended, unix milliseconds.
    #[must_use]
    pub fn end_ms(&self) -> u64 {
        self.at_ms.saturating_add(u64::from(self.duration_ms))
    }

    /// When it arrived, unix seconds.
    #[must_use]
    pub fn at_s(&self) -> u32 {
        u32::try_from(self.at_ms / 1000).unwrap_or(u32::MAX)
    }

    /// Its second of arrival with its settings, as a shared value.
    #[must_use]
    pub fn second(&self) -> u64 {
        (u64::from(self.at_s()) << 32 | u64::from(self.settings))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl Timed for Recent {
    fn key(&self) -> u64 {
        u64::from(self.id)
    }

    fn at(&self) -> u64 {
        self.at_ms
    }

    fn join(&mut self, other: &Self) {
        // Two exchanges of one name are one exchange told twice; either will do, but always the same.
        *self = (*self).max(*other);
    }
}

/// What happened in one slot of [`SLOT_S`] seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Unix time over [`SLOT_S`].
    pub slot: u32,
    /// First arrival, in milliseconds after the slot's begin.
    pub first_ms: u32,
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
        self.count = self.count.saturating_add(other.count);
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

/// The organisation that the credential named last, by its hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organisation(Option<Mark>);

impl Organisation {
    /// Named at a time, unix seconds.
    #[must_use]
    pub fn new(organisation: u64, at_s: u32) -> Self {
        Self(Some(Mark::new(organisation, at_s)))
    }
}

impl Merge for Organisation {
    fn merge(&mut self, other: &Self) {
        let rank = |named: &Self| named.0.map(|mark| (mark.at_s, mark.key()));
        if rank(other) > rank(self) {
            *self = *other;
        }
    }
}

/// What is remembered of an account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the operator told.
    pub known: Known,
    /// What its credential tells.
    pub declared: Organisation,
    /// Exchanges.
    pub requests: u32,
    /// First and last arrival.
    pub span: Span,
    /// Recent exchanges.
    pub recent: Latest<Recent, 12>,
    /// Recent slots of activity.
    pub slots: Latest<Slot, 24>,
    /// Addresses.
    pub addresses: Latest<Mark, 6>,
    /// Subnets.
    pub subnets: Latest<Mark, 6>,
    /// System prompts.
    pub systems: Latest<Mark, 12>,
    /// Client shapes.
    pub shapes: Latest<Mark, 4>,
    /// Software with settings.
    pub rigs: Latest<Mark, 4>,
    /// What sensors tell of its addresses.
    pub dns: AccountDns,
    /// Exchanges by kind of network.
    pub networks: Histogram<5>,
    /// Exchanges whose prompt could be read.
    pub prompted: u32,
    /// … that carry earlier answers.
    pub history: u32,
    /// Prompt lengths, characters.
    pub prompt_chars: Moments,
    /// When somebody suspended it.
    pub suspended: Span,
    /// Indicators of peers that its exchanges have shown.
    pub hits: Latest<Hit, 8>,
}

impl Memory {
    /// Takes in what a request shows. Its topic and its answer may come later, see
    /// [`Self::note_topic`] and [`Self::note_answer`].
    pub fn note(&mut self, seen: &Seen) {
        let at_s = seen.at_s();
        let slot_ms = u64::from(SLOT_S) * 1000;
        let slot = Slot { slot: at_s / SLOT_S, first_ms: (seen.at_ms % slot_ms) as u32, count: 1 };
        let mark = |key: u64| Mark::new(key, at_s);
        self.requests = self.requests.saturating_add(1);
        self.span.add(seen.at_ms);
        self.slots.add(&slot);
        self.addresses.add(&mark(seen.address));
        self.subnets.add(&mark(seen.subnet));
        self.shapes.add(&mark(seen.shape));
        self.rigs.add(&mark(seen.rig));
        self.networks.add(seen.network as usize);
        self.recent.add(&Recent {
            at_ms: seen.at_ms,
            id: seen.id,
            duration_ms: 0,
            prompt: seen.prompt,
            frames: seen.frames,
            opening: seen.opening,
            settings: seen.settings,
            prompt_chars: u16::try_from(seen.prompt_chars).unwrap_or(u16::MAX),
            topic: seen.topic(),
        });
        for (hit, _) in &seen.hits {
            self.hits.add(hit);
        }
        if let Some(dns) = &seen.dns {
            self.dns.note(dns, at_s);
        }
        if let Some(system) = seen.system {
            self.systems.add(&mark(system));
        }
        if !seen.readable {
            return;
        }
        self.prompted = self.prompted.saturating_add(1);
        count(&mut self.history, seen.history && !seen.tool_turn);
        self.prompt_chars.add(seen.prompt_chars);
    }

    /// Takes in what a request's prompt turned out to be about.
    pub fn note_topic(&mut self, seen: &Seen) {
        if let Some(recent) = self.recent.get_mut(u64::from(seen.id)) {
            recent.topic = seen.topic();
        }
    }

    /// Takes in how a request was answered.
    pub fn note_answer(&mut self, id: u32, answered: &Answered) {
        if let Some(recent) = self.recent.get_mut(u64::from(id)) {
            recent.duration_ms = answered.duration_ms;
        }
    }

    /// Templates among the recent exchanges: paragraphs that came with different texts, each with
    /// how many came with it.
    #[must_use]
    pub fn templates(&self) -> Vec<(u32, u32)> {
        let mut uses: Vec<(u32, u32)> = self
            .recent
            .iter()
            .flat_map(|recent| recent.frames.map(|frame| (frame, recent.prompt)))
            .filter(|(frame, _)| *frame != 0)
            .collect();
        uses.sort_unstable();
        let same = uses.chunk_by(|a, b| a.0 == b.0);
        let varied = same.filter(|uses| uses.first().map(|u| u.1) != uses.last().map(|u| u.1));
        varied.map(|uses| (uses[0].0, uses.len() as u32)).collect()
    }

    /// Share of the recent exchanges under the template that most came under, 0..1.
    #[must_use]
    pub fn framed(&self) -> f64 {
        let most = self.templates().iter().map(|(_, count)| *count).max().unwrap_or(0);
        f64::from(most) / self.recent.len().max(1) as f64
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
            + self.dns.heap_bytes()
            + self.hits.heap_bytes()
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
        self.organisation().or(self.known.payment).unwrap_or(account)
    }

    /// Its organisation: the operator's word, or what its credential names.
    #[must_use]
    pub fn organisation(&self) -> Option<u64> {
        self.known.organisation.or(self.declared.0.map(|mark| mark.key()))
    }

    /// Whether two accounts are openly one customer's.
    #[must_use]
    pub fn same_customer(&self, other: &Self) -> bool {
        let same = |a: Option<u64>, b: Option<u64>| a.is_some() && a == b;
        same(self.organisation(), other.organisation())
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
    declared,
    requests,
    span,
    recent,
    slots,
    addresses,
    subnets,
    systems,
    shapes,
    rigs,
    dns,
    networks,
    prompted,
    history,
    prompt_chars,
    suspended,
    hits
});
