//! What accounts share: for each shared value, who was seen with it lately and how widely it is
//! spread.
//!
//! A value that half the world shares (a public agent's system prompt, a popular SDK) ties nobody
//! together, so each pivot counts the different *customers* behind it: a company with a hundred
//! accounts is one. Values live in two generations for each family and the older one is let go
//! when the younger is full: nothing grows without a bound, and prompts cannot push payments out.

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::account::Memory;
use crate::keyed::KeyedState;
use crate::sketch::{Distinct, Latest, Mark, Merge};
use crate::ties;

/// Members that a pivot remembers.
pub const MEMBERS_MAX: usize = 24;

/// Kinds of shared values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Family {
    /// Payment instrument (T-DIST-002a).
    Payment,
    /// Card prefix together with the days of birth (T-DIST-002a, T-DIST-004).
    BinBirth,
    /// Address (T-DIST-002b).
    Address,
    /// IPv4 /24 or IPv6 /48 (T-DIST-002b).
    Subnet,
    /// Exact prompt (repeated sampling across accounts).
    Prompt,
    /// First or last paragraph around varying text (T-DIST-007).
    Frame,
    /// System prompt without what varies in it (T-DIST-011).
    System,
    /// Client shape: TLS, HTTP/2, header order and self-description (T-DIST-003c).
    Shape,
    /// Software with model and sampling settings.
    Rig,
    /// Second of arrival with model and sampling settings (T-DIST-002c).
    Second,
    /// Encrypted resolver, by its provider where that is known (T-DIST-006).
    Resolver,
    /// Address that was contacted though no plain DNS answer had named it (T-DIST-006).
    Unnamed,
    /// Fingerprint or token that a peer listed.
    Listed,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 13] = [
        Self::Payment,
        Self::BinBirth,
        Self::Address,
        Self::Subnet,
        Self::Prompt,
        Self::Frame,
        Self::System,
        Self::Shape,
        Self::Rig,
        Self::Second,
        Self::Resolver,
        Self::Unnamed,
        Self::Listed,
    ];

    /// Its name in evidence and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Payment => "payment",
            Self::BinBirth => "card prefix and birth",
            Self::Address => "address",
            Self::Subnet => "subnet",
            Self::Prompt => "prompt",
            Self::Frame => "frame",
            Self::System => "system prompt",
            Self::Shape => "client shape",
            Self::Rig => "software and settings",
            Self::Second => "second of arrival",
            Self::Resolver => "resolver",
            Self::Unnamed => "unnamed address",
            Self::Listed => "listed by a peer",
        }
    }
}

/// What an account's memory shares with others' as far as it still tells: each value with when it
/// was last seen, unix seconds. Noting the account's exchanges and profiles has added the same.
pub fn shared_values(memory: &Memory, mut each: impl FnMut(Family, u64, u32)) {
    profile_values(memory, &mut each);
    let marks = [
        (Family::Address, memory.addresses.iter()),
        (Family::Subnet, memory.subnets.iter()),
        (Family::System, memory.systems.iter()),
        (Family::Shape, memory.shapes.iter()),
        (Family::Rig, memory.rigs.iter()),
    ];
    for (family, marks) in marks {
        marks.for_each(|mark| each(family, mark.key(), mark.at_s));
    }
    memory.dns.shared_values(&mut each);
    for hit in memory.hits.iter() {
        hit.shared_value().into_iter().for_each(|value| each(Family::Listed, value, hit.at_s()));
    }
    for recent in memory.recent.iter() {
        let at_s = recent.at_s();
        each(Family::Second, recent.second(), at_s);
        let [first, last] = recent.frames;
        let texts =
            [(Family::Prompt, recent.prompt), (Family::Frame, first), (Family::Frame, last)];
        for (family, hash) in texts.into_iter().filter(|(_, hash)| *hash != 0) {
            each(family, u64::from(hash), at_s);
        }
    }
}

/// The part of [`shared_values`] that an operator told.
pub fn profile_values(memory: &Memory, mut each: impl FnMut(Family, u64, u32)) {
    let at_s = u32::try_from(memory.known.at_ms / 1000).unwrap_or(u32::MAX);
    if let Some(payment) = memory.known.payment {
        each(Family::Payment, payment, at_s);
    }
    for value in ties::bin_births(memory).into_iter().flatten() {
        each(Family::BinBirth, value, at_s);
    }
}

/// Who was seen with a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pivot {
    /// One account only: most values never get further.
    One {
        /// Its key.
        account: u64,
        /// Its customer's key.
        customer: u64,
        /// Last seen, unix seconds.
        at_s: u32,
    },
    /// Several accounts.
    Many(Box<Crowd>),
}

/// Several accounts with one value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crowd {
    /// The latest members.
    pub members: Latest<Mark, MEMBERS_MAX>,
    /// Different customers ever.
    pub customers: Distinct<16>,
    /// Different accounts ever.
    pub accounts: Distinct<16>,
}

impl Crowd {
    fn add(&mut self, account: u64, customer: u64, at_s: u32) {
        self.members.add(&Mark::new(account, at_s));
        self.customers.add(customer);
        self.accounts.add(account);
    }
}

impl Pivot {
    fn add(&mut self, account: u64, customer: u64, at_s: u32) {
        match self {
            Self::One { account: held, customer: by, at_s: seen }
                if *held == account && *by == customer =>
            {
                *seen = (*seen).max(at_s);
            }
            Self::One { account: held, customer: by, at_s: seen } => {
                let mut crowd = Crowd::default();
                crowd.add(*held, *by, *seen);
                crowd.add(account, customer, at_s);
                *self = Self::Many(Box::new(crowd));
            }
            Self::Many(crowd) => crowd.add(account, customer, at_s),
        }
    }

    fn join(&mut self, other: &Self) {
        match other {
            Self::One { account, customer, at_s } => self.add(*account, *customer, *at_s),
            Self::Many(theirs) => {
                let mut crowd = match self {
                    Self::One { account, customer, at_s } => {
                        let mut crowd = Crowd::default();
                        crowd.add(*account, *customer, *at_s);
                        crowd
                    }
                    Self::Many(crowd) => std::mem::take(&mut **crowd),
                };
                crowd.members.merge(&theirs.members);
                crowd.customers.merge(&theirs.customers);
                crowd.accounts.merge(&theirs.accounts);
                *self = Self::Many(Box::new(crowd));
            }
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::One { .. } => 0,
            Self::Many(crowd) => {
                size_of::<Crowd>()
                    + crowd.members.heap_bytes()
                    + crowd.customers.heap_bytes()
                    + crowd.accounts.heap_bytes()
            }
        }
    }
}

/// Keyed values in two generations, bounded.
#[derive(Debug)]
pub struct Generations<V> {
    young: HashMap<u64, V, KeyedState>,
    old: HashMap<u64, V, KeyedState>,
    /// A generation that was let go, and is dropped a little at a time: all at once would hold up
    /// an exchange for as long as a million values take.
    gone: Option<hashbrown::hash_map::IntoIter<u64, V>>,
    each_max: usize,
    evicted: u64,
}

impl<V: Clone> Clone for Generations<V> {
    fn clone(&self) -> Self {
        Self {
            young: self.young.clone(),
            old: self.old.clone(),
            gone: None,
            each_max: self.each_max,
            evicted: self.evicted,
        }
    }
}

/// Values of a generation let go that are dropped at each touch.
const DROPPED_AT_ONCE: usize = 4;

impl<V> Generations<V> {
    /// Holds at most `max` values, and never fewer than the half last touched.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            young: HashMap::default(),
            old: HashMap::default(),
            gone: None,
            each_max: (max / 2).max(1),
            evicted: 0,
        }
    }

    /// The value, where it is held.
    #[must_use]
    pub fn get(&self, key: u64) -> Option<&V> {
        self.young.get(&key).or_else(|| self.old.get(&key))
    }

    /// The value to change, where it is held. Does not count as a touch.
    #[must_use]
    pub fn get_mut(&mut self, key: u64) -> Option<&mut V> {
        self.young.get_mut(&key).or_else(|| self.old.get_mut(&key))
    }

    /// Puts the value among the young ones; `make` gives it where none is held.
    pub fn touch(&mut self, key: u64, make: impl FnOnce() -> V) -> &mut V {
        if let Some(gone) = &mut self.gone
            && gone.by_ref().take(DROPPED_AT_ONCE).count() < DROPPED_AT_ONCE
        {
            self.gone = None;
        }
        if !self.young.contains_key(&key) {
            let value = self.old.remove(&key).unwrap_or_else(make);
            if self.young.len() >= self.each_max {
                self.evicted += self.old.len() as u64;
                let fresh = HashMap::with_capacity_and_hasher(self.young.len(), KeyedState);
                let old = std::mem::replace(&mut self.young, fresh);
                self.gone = Some(std::mem::replace(&mut self.old, old).into_iter());
            }
            self.young.insert(key, value);
        }
        self.young.entry(key).or_insert_with(|| unreachable!("it was just put there"))
    }

    /// Grows the table ahead of need: growing in the middle of an exchange would hold that one up.
    pub fn make_room(&mut self) {
        let (held, room) = (self.young.len(), self.young.capacity());
        if room - held <= room / 16 && held < self.each_max {
            self.young.reserve(room.max(1_024).min(self.each_max - held));
        }
    }

    /// Every value held, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.young.iter().chain(&self.old).map(|(key, value)| (*key, value))
    }

    /// How many are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many were let go to keep the bound.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Bytes of the tables themselves.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        let each = size_of::<(u64, V)>() + 1;
        (self.young.capacity() + self.old.capacity()) * 8 / 7 * each
    }
}

/// All pivots of an engine.
#[derive(Clone, Debug)]
pub struct Pivots {
    families: Vec<Generations<Pivot>>,
}

impl Pivots {
    /// At most `max` values of each family, and a quarter of that of those of which every exchange
    /// brings new ones.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let bound = |family: &Family| match family {
            Family::Prompt | Family::Frame | Family::Second => max / 4,
            _ => max,
        };
        Self {
            families: Family::ALL.iter().map(|family| Generations::new(bound(family))).collect(),
        }
    }

    /// Grows the tables ahead of need, see [`Generations::make_room`].
    pub fn make_room(&mut self) {
        self.families.iter_mut().for_each(Generations::make_room);
    }

    /// Notes that an account was seen with a value. Returns whether somebody else was before.
    pub fn add(
        &mut self,
        family: Family,
        value: u64,
        account: u64,
        customer: u64,
        at_s: u32,
    ) -> bool {
        let mut fresh = false;
        let pivot = self.families[family as usize].touch(value, || {
            fresh = true;
            Pivot::One { account, customer, at_s }
        });
        if !fresh {
            pivot.add(account, customer, at_s);
        }
        matches!(pivot, Pivot::Many(_))
    }

    /// The accounts with a value, where there are several.
    #[must_use]
    pub fn crowd(&self, family: Family, value: u64) -> Option<&Crowd> {
        match self.families[family as usize].get(value)? {
            Pivot::One { .. } => None,
            Pivot::Many(crowd) => Some(crowd),
        }
    }

    /// Every value held, in the order of family and value.
    #[must_use]
    pub fn save(&self) -> Vec<(Family, u64, Pivot)> {
        let mut saved = Vec::new();
        for (family, held) in Family::ALL.into_iter().zip(&self.families) {
            let start = saved.len();
            saved.extend(held.iter().map(|(value, pivot)| (family, value, pivot.clone())));
            saved[start..].sort_unstable_by_key(|(_, value, _)| *value);
        }
        saved
    }

    /// Takes a saved value back, where none is held.
    pub fn restore(&mut self, family: Family, value: u64, pivot: Pivot) {
        self.families[family as usize].touch(value, || pivot);
    }

    /// How many values of a family are held.
    #[must_use]
    pub fn len(&self, family: Family) -> usize {
        self.families[family as usize].len()
    }

    /// How many values were let go to keep the bound.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.families.iter().map(Generations::evicted).sum()
    }

    /// Takes in what another engine has seen.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.families.iter_mut().zip(&other.families) {
            let mut values: Vec<_> = theirs.iter().collect();
            values.sort_unstable_by_key(|(value, _)| *value);
            for (value, pivot) in values {
                let mut fresh = false;
                let held = mine.touch(value, || {
                    fresh = true;
                    pivot.clone()
                });
                if !fresh {
                    held.join(pivot);
                }
            }
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let of = |family: &Generations<Pivot>| {
            family.table_bytes() + family.iter().map(|(_, pivot)| pivot.heap_bytes()).sum::<usize>()
        };
        self.families.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_ahead_and_within_the_bound() {
        let mut held: Generations<u32> = Generations::new(100_000);
        let mut grown = 0;
        for key in 0..200_000_u64 {
            held.make_room();
            let before = held.young.capacity();
            held.touch(key.wrapping_mul(0x9e37_79b9_7f4a_7c15), || 0);
            grown += usize::from(held.young.capacity() > before);
        }
        assert_eq!(grown, 0, "a touch has grown the table");
        assert!(held.young.capacity() < 2 * 50_000 + 20_000, "{}", held.young.capacity());
    }
}
