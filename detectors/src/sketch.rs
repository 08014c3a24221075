//! Bounded summaries of what went by. Each is a commutative monoid: merging two of them, in any
//! order and grouping, gives what one would hold that had seen both halves. So memories of two
//! gateways join, and a delta joins its base.
//!
//! All of them count in integers, because sums of floats depend on their order.

use serde::{Deserialize, Serialize};

/// A value that joins with another of its kind. `Default` is the neutral element.
pub trait Merge: Default {
    /// Takes in what `other` has seen. Commutative and associative.
    fn merge(&mut self, other: &Self);
}

impl Merge for u32 {
    fn merge(&mut self, other: &Self) {
        *self = self.saturating_add(*other);
    }
}

impl Merge for u64 {
    fn merge(&mut self, other: &Self) {
        *self = self.saturating_add(*other);
    }
}

impl Merge for crate::client::FamilySet {
    fn merge(&mut self, other: &Self) {
        Self::merge(self, *other);
    }
}

impl Merge for crate::client::PermutationWatch {
    fn merge(&mut self, other: &Self) {
        Self::merge(self, other);
    }
}

/// Counts one more where `more` holds. What others counted may have filled the count.
pub fn count(counted: &mut u32, more: bool) {
    *counted = counted.saturating_add(u32::from(more));
}

/// A list that its kind cannot hold: too long, out of order, or with one key twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a list of {length} that ought to be sorted, without doubles and of at most {max}")]
pub struct Unsound {
    length: usize,
    max: usize,
}

impl Unsound {
    /// Refuses a list longer than `max`, or of which some item does not come before its next.
    pub(crate) fn check<T>(
        list: &[T],
        max: usize,
        sorted: impl Fn(&T, &T) -> bool,
    ) -> Result<(), Self> {
        let sound = list.len() <= max && list.windows(2).all(|pair| sorted(&pair[0], &pair[1]));
        if sound { Ok(()) } else { Err(Self { length: list.len(), max }) }
    }
}

/// Counts by a small index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram<const N: usize>(#[serde(with = "array")] [u16; N]);

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> Histogram<N> {
    /// Counts one more at `index`; an index beyond the end is not counted.
    pub fn add(&mut self, index: usize) {
        if let Some(count) = self.0.get_mut(index) {
            *count = count.saturating_add(1);
        }
    }

    /// The counts.
    #[must_use]
    pub fn counts(&self) -> &[u16; N] {
        &self.0
    }

    /// All counts together.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.0.iter().map(|count| u32::from(*count)).sum()
    }

    /// How many indices were ever counted.
    #[must_use]
    pub fn covered(&self) -> usize {
        self.0.iter().filter(|count| **count > 0).count()
    }

    /// Shannon entropy over the indices, 0..1 of the largest possible.
    #[must_use]
    pub fn entropy(&self) -> f64 {
        entropy(self.0.iter().map(|count| f64::from(*count))) / (N as f64).ln()
    }
}

impl<const N: usize> Merge for Histogram<N> {
    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = mine.saturating_add(*theirs);
        }
    }
}

mod array {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer, const N: usize>(
        array: &[u16; N],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        array.as_slice().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<[u16; N], D::Error> {
        let counts = Vec::<u16>::deserialize(deserializer)?;
        let length = counts.len();
        counts.try_into().map_err(|_| D::Error::invalid_length(length, &"as many counts as kinds"))
    }
}

/// Shannon entropy of weights in nats; 0 where there is nothing.
pub fn entropy(weights: impl Iterator<Item = f64> + Clone) -> f64 {
    let total: f64 = weights.clone().sum();
    if total <= 0.0 {
        return 0.0;
    }
    -weights.filter(|w| *w > 0.0).map(|w| (w / total) * (w / total).ln()).sum::<f64>()
}

/// Count, sum and sum of squares of whole numbers: mean and spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moments {
    count: u32,
    sum: u64,
    squares: u64,
}

impl Moments {
    /// Takes in one value.
    pub fn add(&mut self, value: u32) {
        self.count = self.count.saturating_add(1);
        self.sum = self.sum.saturating_add(u64::from(value));
        self.squares = self.squares.saturating_add(u64::from(value) * u64::from(value));
    }

    /// How many values were taken in.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The mean; 0 of nothing.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / f64::from(self.count) }
    }

    /// Standard deviation over mean; `None` below two values or at a mean of 0.
    #[must_use]
    pub fn variation(&self) -> Option<f64> {
        let (mean, count) = (self.mean(), f64::from(self.count));
        if self.count < 2 || mean <= 0.0 {
            return None;
        }
        let variance = (self.squares as f64 / count - mean * mean).max(0.0);
        Some(variance.sqrt() / mean)
    }
}

impl Merge for Moments {
    fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.sum = self.sum.saturating_add(other.sum);
        self.squares = self.squares.saturating_add(other.squares);
    }
}

/// Standard deviation over mean of a few values; `None` below two or at a mean of 0.
pub fn variation(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count;
    (mean > 0.0).then(|| variance.sqrt() / mean)
}

/// Something with a time and an identity, of which the latest are kept.
pub trait Timed: Clone {
    /// What makes two of them the same.
    fn key(&self) -> u64;
    /// When it was last seen, in any unit that grows.
    fn at(&self) -> u64;
    /// Joins two with the same key.
    fn join(&mut self, other: &Self);
}

/// The `N` latest of keyed items, at most one for each key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<T>", bound(deserialize = "T: Timed + Deserialize<'de>"))]
pub struct Latest<T, const N: usize>(Vec<T>);

impl<T, const N: usize> Default for Latest<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Timed, const N: usize> TryFrom<Vec<T>> for Latest<T, N> {
    type Error = Unsound;

    fn try_from(items: Vec<T>) -> Result<Self, Unsound> {
        let mut keys: Vec<u64> = items.iter().map(Timed::key).collect();
        keys.sort_unstable();
        Unsound::check(&keys, N, |one, next| one < next)?;
        Unsound::check(&items, N, |one, next| (one.at(), one.key()) < (next.at(), next.key()))?;
        Ok(Self(items))
    }
}

impl<T: Timed, const N: usize> Latest<T, N> {
    /// Takes in one item; joins it with the one of the same key, or pushes the oldest out.
    ///
    /// Returns whether the key is new here.
    pub fn add(&mut self, item: &T) -> bool {
        let key = item.key();
        if let Some(index) = self.0.iter().position(|held| held.key() == key) {
            self.0[index].join(item);
            self.sort_from(index);
            return false;
        }
        let order = (item.at(), key);
        if self.0.len() >= N {
            if self.0.first().is_none_or(|oldest| order < (oldest.at(), oldest.key())) {
                return false;
            }
            self.0.remove(0);
        } else if self.0.len() == self.0.capacity() {
            // Doubling would waste a third of the memory of a million accounts.
            self.0.reserve_exact((self.0.len() / 2).clamp(2, 8).min(N - self.0.len()));
        }
        let place = self.0.partition_point(|held| (held.at(), held.key()) < order);
        self.0.insert(place, item.clone());
        true
    }

    fn sort_from(&mut self, mut index: usize) {
        while index + 1 < self.0.len() {
            let (here, next) = (&self.0[index], &self.0[index + 1]);
            if (here.at(), here.key()) <= (next.at(), next.key()) {
                break;
            }
            self.0.swap(index, index + 1);
            index += 1;
        }
    }

    /// From the oldest to the latest.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// The one with this key.
    #[must_use]
    pub fn get(&self, key: u64) -> Option<&T> {
        self.0.iter().find(|item| item.key() == key)
    }

    /// The one with this key, to change what neither its key nor its time is made of.
    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        self.0.iter_mut().find(|item| item.key() == key)
    }

    /// How many are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<T>()
    }
}

impl<T: Timed, const N: usize> Merge for Latest<T, N> {
    fn merge(&mut self, other: &Self) {
        // What both hold is joined before anything is pushed out: the order must not matter.
        for theirs in &other.0 {
            match self.0.iter_mut().find(|mine| mine.key() == theirs.key()) {
                Some(mine) => mine.join(theirs),
                None => self.0.push(theirs.clone()),
            }
        }
        self.0.sort_unstable_by_key(|item| (item.at(), item.key()));
        self.0.drain(..self.0.len().saturating_sub(N));
        self.0.shrink_to_fit();
    }
}

/// A key and when it was last seen. Twelve bytes: accounts and pivots hold many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    key: [u32; 2],
    /// Unix seconds.
    pub at_s: u32,
}

impl Mark {
    /// A key seen at a time.
    #[must_use]
    pub fn new(key: u64, at_s: u32) -> Self {
        Self { key: [(key >> 32) as u32, key as u32], at_s }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> u64 {
        u64::from(self.key[0]) << 32 | u64::from(self.key[1])
    }
}

impl Timed for Mark {
    fn key(&self) -> u64 {
        Self::key(self)
    }

    fn at(&self) -> u64 {
        u64::from(self.at_s)
    }

    fn join(&mut self, other: &Self) {
        self.at_s = self.at_s.max(other.at_s);
    }
}

/// How many different things there were: exact below `N`, an estimate from there (the k minimum values
/// of Bar-Yossef et al., "Counting distinct elements in a data stream", 2002; standard error about
/// `1 / sqrt(N - 2)`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u32>")]
pub struct Distinct<const N: usize>(Vec<u32>);

impl<const N: usize> Default for Distinct<N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<const N: usize> TryFrom<Vec<u32>> for Distinct<N> {
    type Error = Unsound;

    fn try_from(smallest: Vec<u32>) -> Result<Self, Unsound> {
        Unsound::check(&smallest, N, |one, next| one < next)?;
        Ok(Self(smallest))
    }
}

impl<const N: usize> Distinct<N> {
    /// Takes in a thing by its hash.
    pub fn add(&mut self, hash: u64) {
        // Keys are hashes already; another mix keeps families of keys apart.
        self.insert((hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32);
    }

    fn insert(&mut self, value: u32) {
        let place = self.0.partition_point(|held| *held < value);
        if place >= N || self.0.get(place) == Some(&value) {
            return;
        }
        if self.0.len() >= N {
            self.0.pop();
        } else if self.0.len() == self.0.capacity() {
            self.0.reserve_exact((self.0.len() / 2).clamp(1, 8).min(N - self.0.len()));
        }
        self.0.insert(place, value);
    }

    /// The hashes that it holds, from the smallest.
    #[must_use]
    pub fn hashes(&self) -> &[u32] {
        &self.0
    }

    /// How many different ones.
    #[must_use]
    pub fn count(&self) -> f64 {
        match self.0.last() {
            Some(largest) if self.0.len() >= N => {
                (N as f64 - 1.0) / ((f64::from(*largest) + 1.0) / 4_294_967_296.0)
            }
            _ => self.0.len() as f64,
        }
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.0.capacity() * size_of::<u32>()
    }
}

impl<const N: usize> Merge for Distinct<N> {
    fn merge(&mut self, other: &Self) {
        for value in &other.0 {
            self.insert(*value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator of our own, so that a failing case can be made again.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self, below: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % below
        }
    }

    fn assert_monoid<T: Merge + Clone + PartialEq + std::fmt::Debug>(
        name: &str,
        mut make: impl FnMut(&mut Numbers, &mut T),
    ) {
        let mut numbers = Numbers(7);
        for round in 0..300 {
            let mut parts: Vec<T> = vec![T::default(), T::default(), T::default()];
            let mut whole = T::default();
            for _ in 0..numbers.next(60) {
                let state = numbers.0;
                make(&mut numbers, &mut whole);
                numbers.0 = state;
                let part = usize::try_from(state % 3).unwrap();
                make(&mut numbers, &mut parts[part]);
            }
            let mut left = parts[0].clone();
            left.merge(&parts[1]);
            left.merge(&parts[2]);
            let mut right = parts[2].clone();
            let mut inner = parts[1].clone();
            inner.merge(&parts[0]);
            right.merge(&inner);
            assert_eq!(left, right, "{name}, round {round}");
            assert_eq!(left, whole, "{name}, round {round}: a merge is not the whole");
            let mut same = whole.clone();
            same.merge(&T::default());
            assert_eq!(same, whole, "{name}: the default is not neutral");
        }
    }

    #[test]
    fn sketches_are_commutative_monoids() {
        assert_monoid::<Histogram<5>>("histogram", |n, h| h.add(n.next(6) as usize));
        assert_monoid::<Moments>("moments", |n, m| m.add(n.next(1000) as u32));
        assert_monoid::<Distinct<8>>("distinct", |n, d| d.add(n.next(40)));
        assert_monoid::<Latest<Mark, 6>>("latest", |n, l| {
            l.add(&Mark::new(n.next(12), n.next(50) as u32));
        });
    }

    #[test]
    fn distinct_is_exact_while_small_and_near_when_large() {
        let mut distinct = Distinct::<16>::default();
        for key in 0..15u64 {
            distinct.add(key.wrapping_mul(0x5851_f42d_4c95_7f2d));
        }
        assert_eq!(distinct.count(), 15.0);
        let mut distinct = Distinct::<64>::default();
        for key in 0..10_000u64 {
            distinct.add(crate::keyed::hash(&[1; 16], &key.to_le_bytes()));
        }
        assert!((5_000.0..20_000.0).contains(&distinct.count()), "{}", distinct.count());
    }

    #[test]
    fn the_latest_are_kept_in_order_of_time() {
        let mut latest = Latest::<Mark, 3>::default();
        for (key, at_s) in [(1, 10), (2, 30), (3, 20), (1, 40), (4, 5), (5, 25)] {
            latest.add(&Mark::new(key, at_s));
        }
        let kept: Vec<_> = latest.iter().map(|mark| (mark.key(), mark.at_s)).collect();
        assert_eq!(kept, [(5, 25), (2, 30), (1, 40)]);
    }
}
