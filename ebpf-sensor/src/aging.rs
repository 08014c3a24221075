//! A map with a bound that lets go of what was used longest ago.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Entries that were used since they were queued get another turn, at most this many for each that is
/// let go: so letting go takes a bounded time.
const TURNS_MAX: usize = 16;

/// A bounded map; times are nanoseconds since boot.
#[derive(Debug)]
pub(crate) struct Aging<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Each live entry once, about in the order of their last use; and some that are gone.
    order: VecDeque<Place<K>>,
    bound: usize,
    next: u64,
}

#[derive(Debug)]
struct Entry<V> {
    number: u64,
    used_ns: u64,
    value: V,
}

#[derive(Debug)]
struct Place<K> {
    key: K,
    number: u64,
    used_ns: u64,
}

impl<K: Copy + Eq + Hash, V> Aging<K, V> {
    pub(crate) fn new(bound: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), bound, next: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// The entry, which counts as a use.
    pub(crate) fn use_mut(&mut self, key: &K, now_ns: u64) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        entry.used_ns = entry.used_ns.max(now_ns);
        Some(&mut entry.value)
    }

    /// Puts an entry in place of what was there; gives what had to go for want of room.
    pub(crate) fn insert(&mut self, key: K, now_ns: u64, value: V) -> Option<(K, V)> {
        let gone = if self.entries.len() >= self.bound && !self.entries.contains_key(&key) {
            self.let_go()
        } else {
            None
        };
        self.next += 1;
        let number = self.next;
        self.entries.insert(key, Entry { number, used_ns: now_ns, value });
        self.order.push_back(Place { key, number, used_ns: now_ns });
        if self.order.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.order.retain(|place| {
                entries.get(&place.key).is_some_and(|entry| entry.number == place.number)
            });
        }
        gone
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key).map(|entry| entry.value)
    }

    /// Lets go of what was not used for `idle_ns`.
    pub(crate) fn expire(&mut self, now_ns: u64, idle_ns: u64, mut gone: impl FnMut(K, V)) {
        let mut looks = self.order.len();
        while looks > 0 {
            looks -= 1;
            let Some(place) = self.order.pop_front() else { return };
            let Some(entry) = self.entries.get(&place.key).filter(|e| e.number == place.number)
            else {
                continue;
            };
            if now_ns.saturating_sub(entry.used_ns) >= idle_ns {
                if let Some(value) = self.remove(&place.key) {
                    gone(place.key, value);
                }
            } else if entry.used_ns > place.used_ns {
                let used_ns = entry.used_ns;
                self.order.push_back(Place { used_ns, ..place });
            } else {
                self.order.push_front(place);
                return;
            }
        }
    }

    fn let_go(&mut self) -> Option<(K, V)> {
        let mut turns = 0;
        while let Some(place) = self.order.pop_front() {
            let Some(entry) = self.entries.get(&place.key).filter(|e| e.number == place.number)
            else {
                continue;
            };
            if entry.used_ns > place.used_ns && turns < TURNS_MAX {
                turns += 1;
                let used_ns = entry.used_ns;
                self.order.push_back(Place { used_ns, ..place });
                continue;
            }
            return self.remove(&place.key).map(|value| (place.key, value));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_used_longest_ago_goes() {
        let mut map = Aging::new(3);
        for key in 1..=3 {
            assert_eq!(map.insert(key, key, key), None);
        }
        assert_eq!(map.use_mut(&1, 10), Some(&mut 1));
        assert_eq!(map.insert(4, 11, 4), Some((2, 2)));
        assert_eq!(map.insert(4, 12, 5), None);
        assert_eq!((map.get(&4), map.get(&2), map.len()), (Some(&5), None, 3));
        let mut gone = Vec::new();
        map.expire(13, 4, |key, _| gone.push(key));
        assert_eq!((gone, map.len()), (vec![3], 2));
    }

    #[test]
    fn it_stays_bounded_whatever_is_done() {
        let mut map = Aging::new(8);
        for step in 0..10_000_u64 {
            map.insert(step % 13, step, ());
            if step % 3 == 0 {
                map.remove(&(step % 7));
            }
            let _ = map.use_mut(&(step % 5), step);
            assert!(map.len() <= 8 && map.order.len() <= 2 * 8 + 65);
        }
        map.expire(u64::MAX, 1, |_, ()| {});
        assert_eq!((map.len(), map.order.len()), (0, 0));
    }
}
