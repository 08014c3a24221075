//! Numbers that look random and are the same on every run.

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// Numbers of one seed and one name. Each population draws under its own name, so that a change
    /// in one leaves the others as they were.
    pub(crate) fn of(seed: u64, name: &str) -> Self {
        // FNV-1a: the standard hasher may change between releases of Rust.
        let mixed = name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(mixed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to and without `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// From `from` up to and without `end`.
    pub(crate) fn between(&mut self, from: f64, end: f64) -> f64 {
        from + (end - from) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn chance(&mut self, likelihood: f64) -> bool {
        self.between(0.0, 1.0) < likelihood
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, among: &[&'a T]) -> &'a T {
        among[self.below(among.len())]
    }

    /// One of several values that are cheap to copy.
    pub(crate) fn one<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }

    pub(crate) fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        // The sum of twelve is near enough to a normal and needs no transcendental function.
        let normal = (0..12).map(|_| self.between(0.0, 1.0)).sum::<f64>() - 6.0;
        median * (sigma * normal).exp()
    }

    /// A whole number around a median, within bounds.
    pub(crate) fn around(&mut self, median: f64, sigma: f64, least: usize, most: usize) -> usize {
        (self.lognormal(median, sigma).round() as usize).clamp(least, most)
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
