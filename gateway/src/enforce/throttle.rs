//! Limits by the generic cell rate algorithm: one number for each rate and each of those it holds.
//!
//! A cell holds the time until which its allowance is used up (the theoretical arrival time). A
//! request moves it on by what it takes and is refused where it lies further ahead than the burst
//! that the limit allows. Something larger than the burst goes through an unused cell and leaves a
//! debt, so that a long answer is slow, not impossible.
//!
//! In a fleet every gateway tells the others what it has let through since the last time, in
//! nanoseconds of allowance, and moves its own cells on by what they tell. What the others let
//! through within the delay of that is not known when a request is decided on: of a limit of `r` a
//! second with the burst `b`, `G` gateways let through in `t` seconds at most
//!
//! ```text
//! r t + b + (G - 1) min(what arrives at one gateway within the delay, b + r delay)
//! ```
//!
//! The last part comes once, not again and again: it is a debt in every cell, which is waited for.
//! Requests at once (`concurrent`) are counted by each gateway alone.
//!
//! Source: ITU-T I.371, annex A ("virtual scheduling algorithm").

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use detectors::keyed::{self, Key};
use detectors::policy::{Limit, Scope};
use moka::sync::Cache;
use parking_lot::Mutex;

use crate::limits::{
    THROTTLE_CELLS_IDLE, THROTTLE_CELLS_MAX, THROTTLE_RESERVE_TOKENS_MAX, THROTTLE_UNTOLD_MAX,
};

const NS_A_MINUTE: f64 = 60e9;
/// Most that another gateway can use up at once, nanoseconds: a day.
const TOLD_NS_MAX: i64 = 86_400_000_000_000;
/// Output tokens that a request without a bound of its own is taken to need.
const RESERVE_TOKENS_DEFAULT: u64 = 512;

/// Whose request it is.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// The account; empty where there is none.
    pub account: &'a str,
    /// Its organisation.
    pub organisation: Option<&'a str>,
    /// Its cluster.
    pub cluster: Option<u64>,
    /// The client's address.
    pub ip: IpAddr,
}

/// Tokens of one exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the prompt.
    pub input: u64,
    /// Of the answer.
    pub output: u64,
}

impl Tokens {
    /// What a request is reckoned to take before it is known: prompt characters over four, and the
    /// bound on the answer.
    #[must_use]
    pub fn expected(prompt_chars: u64, max_tokens: Option<u64>) -> Self {
        let output = max_tokens.unwrap_or(RESERVE_TOKENS_DEFAULT).min(THROTTLE_RESERVE_TOKENS_MAX);
        Self { input: prompt_chars / 4, output }
    }
}

/// The cells of all limits.
pub struct Throttle {
    key: Key,
    begun: Instant,
    cells: Cache<u64, Arc<Cell>>,
    untold: Arc<Untold>,
}

/// Cells of which the other gateways have something to hear.
#[derive(Default)]
struct Untold {
    /// Whether anybody wants to know.
    wanted: AtomicBool,
    cells: Mutex<Vec<Arc<Cell>>>,
    shed: AtomicU64,
}

/// What was let through by one cell, in nanoseconds of its allowances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The cell: the same at every gateway of one identity key.
    pub cell: u64,
    /// Of requests, prompt tokens, answer tokens; negative where more was given back than taken.
    pub ns: [i64; 3],
}

struct Cell {
    key: u64,
    requests: Gcra,
    input: Gcra,
    output: Gcra,
    concurrent: AtomicU32,
    untold: Arc<Untold>,
    /// Whether it is among the untold.
    listed: AtomicBool,
}

/// Leave to go on: gives back what was reserved and not used.
#[derive(Default)]
pub struct Admission {
    held: Vec<Held>,
    reserved: Tokens,
}

struct Held {
    cell: Arc<Cell>,
    limit: Limit,
}

/// A limit that is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Name of the limit.
    pub limit: String,
    /// When to come again.
    pub retry_after: Duration,
}

impl Throttle {
    /// Cells whose names are hashed under `key`.
    #[must_use]
    pub fn new(key: Key) -> Self {
        let cells = Cache::builder()
            .max_capacity(THROTTLE_CELLS_MAX)
            .time_to_idle(THROTTLE_CELLS_IDLE)
            .build();
        Self { key, begun: Instant::now(), cells, untold: Arc::default() }
    }

    /// Keeps account of what is let through, for [`Self::untold`].
    pub fn share(&self) {
        self.untold.wanted.store(true, Ordering::Relaxed);
    }

    /// What was let through since the last time, and how many cells were left out for want of
    /// room: they are told of with their next request.
    #[must_use]
    pub fn untold(&self) -> (Vec<Used>, u64) {
        let cells = std::mem::take(&mut *self.untold.cells.lock());
        let used = |cell: Arc<Cell>| {
            // In this order: what is taken from now on lists the cell again.
            cell.listed.store(false, Ordering::Release);
            let ns = [&cell.requests, &cell.input, &cell.output]
                .map(|gcra| gcra.untold_ns.swap(0, Ordering::AcqRel));
            (ns != [0; 3]).then_some(Used { cell: cell.key, ns })
        };
        let shed = self.untold.shed.swap(0, Ordering::Relaxed);
        (cells.into_iter().filter_map(used).collect(), shed)
    }

    /// Counts what another gateway has let through.
    pub fn take_in(&self, used: &Used, now: Instant) {
        let now_ns = nanos(now.saturating_duration_since(self.begun));
        let cell = self.cell_of(used.cell);
        for (gcra, ns) in [&cell.requests, &cell.input, &cell.output].into_iter().zip(used.ns) {
            gcra.take_in(ns, now_ns);
        }
    }

    fn cell_of(&self, key: u64) -> Arc<Cell> {
        self.cells.get_with(key, || Arc::new(Cell::new(key, self.untold.clone())))
    }

    /// Asks every limit; all let it through or none is charged.
    ///
    /// # Errors
    /// The first limit that is reached.
    pub fn admit<'l>(
        &self,
        limits: impl Iterator<Item = (&'l String, &'l Limit)>,
        whose: &Whose<'_>,
        expected: Tokens,
        now: Instant,
    ) -> Result<Admission, Reached> {
        let now_ns = nanos(now.saturating_duration_since(self.begun));
        let mut admission = Admission { held: Vec::new(), reserved: expected };
        for (name, limit) in limits {
            let cell = self.cell(name, limit.per, whose);
            if let Err(retry_after) = cell.take(limit, expected, now_ns) {
                // What the limits before it had given is given back.
                admission.reserved = expected;
                admission.cancel();
                return Err(Reached { limit: name.clone(), retry_after });
            }
            admission.held.push(Held { cell, limit: limit.clone() });
        }
        Ok(admission)
    }

    fn cell(&self, limit: &str, scope: Scope, whose: &Whose<'_>) -> Arc<Cell> {
        let own = (b"account".as_slice(), whose.account.as_bytes());
        let cluster = whose.cluster.map(u64::to_le_bytes);
        let address = match whose.ip.to_canonical() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets()[..8].to_vec(),
        };
        let (kind, value) = match scope {
            // Without a credential there is no account but the address.
            Scope::Account | Scope::Organisation | Scope::Cluster if whose.account.is_empty() => {
                (b"ip".as_slice(), address.as_slice())
            }
            Scope::Account => own,
            Scope::Organisation => {
                whose.organisation.map_or(own, |id| (b"organisation", id.as_bytes()))
            }
            Scope::Cluster => cluster.as_ref().map_or(own, |label| (b"cluster", label)),
            Scope::Ip => (b"ip".as_slice(), address.as_slice()),
        };
        let key = keyed::hash_parts(&self.key, &[limit.as_bytes(), kind, value]);
        self.cell_of(key)
    }
}

impl Cell {
    fn new(key: u64, untold: Arc<Untold>) -> Self {
        Self {
            key,
            requests: Gcra::default(),
            input: Gcra::default(),
            output: Gcra::default(),
            concurrent: AtomicU32::new(0),
            untold,
            listed: AtomicBool::new(false),
        }
    }

    /// Something was taken or given back: the other gateways are to hear of it.
    fn list(self: &Arc<Self>) {
        if !self.untold.wanted.load(Ordering::Relaxed) || self.listed.swap(true, Ordering::AcqRel) {
            return;
        }
        // Held for a push here, and for taking the list by whoever tells.
        let mut cells = self.untold.cells.lock();
        if cells.len() < THROTTLE_UNTOLD_MAX {
            cells.push(self.clone());
        } else {
            self.listed.store(false, Ordering::Release);
            self.untold.shed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take(
        self: &Arc<Self>,
        limit: &Limit,
        expected: Tokens,
        now_ns: i64,
    ) -> Result<(), Duration> {
        if let Some(most) = limit.concurrent {
            let free = |running: u32| (running < most).then_some(running + 1);
            let taken = self.concurrent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free);
            taken.map_err(|_| Duration::from_secs(1))?;
        }
        let mut taken: [Option<(&Gcra, f64)>; 3] = [None; 3];
        for (place, (gcra, rate, amount)) in [
            (&self.requests, limit.requests_per_minute, 1),
            (&self.input, limit.input_tokens_per_minute, expected.input),
            (&self.output, limit.output_tokens_per_minute, expected.output),
        ]
        .into_iter()
        .enumerate()
        {
            let Some(rate) = rate else { continue };
            let cost_ns = amount as f64 * NS_A_MINUTE / rate;
            if let Err(retry_after) = gcra.take(cost_ns, limit.burst_seconds * 1e9, now_ns) {
                for (gcra, cost_ns) in taken.into_iter().flatten() {
                    gcra.give_back(cost_ns);
                }
                if limit.concurrent.is_some() {
                    self.concurrent.fetch_sub(1, Ordering::Relaxed);
                }
                return Err(retry_after);
            }
            taken[place] = Some((gcra, cost_ns));
        }
        self.list();
        Ok(())
    }
}

impl Admission {
    /// The exchange has ended and took this much.
    pub fn settle(mut self, used: Tokens) {
        for Held { cell, limit } in &self.held {
            for (gcra, rate, reserved, used) in [
                (&cell.input, limit.input_tokens_per_minute, self.reserved.input, used.input),
                (&cell.output, limit.output_tokens_per_minute, self.reserved.output, used.output),
            ] {
                if let Some(rate) = rate {
                    gcra.give_back((reserved as f64 - used as f64) * NS_A_MINUTE / rate);
                }
            }
            cell.list();
        }
        self.release();
    }

    /// The request was not served after all.
    fn cancel(mut self) {
        for Held { cell, limit } in &self.held {
            for (gcra, rate, amount) in [
                (&cell.requests, limit.requests_per_minute, 1),
                (&cell.input, limit.input_tokens_per_minute, self.reserved.input),
                (&cell.output, limit.output_tokens_per_minute, self.reserved.output),
            ] {
                if let Some(rate) = rate {
                    gcra.give_back(amount as f64 * NS_A_MINUTE / rate);
                }
            }
            cell.list();
        }
        self.release();
    }

    fn release(&mut self) {
        for Held { cell, limit } in self.held.drain(..) {
            if limit.concurrent.is_some() {
                cell.concurrent.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Admission {
    /// Whatever became of the exchange, it runs no more. What was reserved stays taken.
    fn drop(&mut self) {
        self.release();
    }
}

/// One rate's cell.
#[derive(Debug, Default)]
pub(crate) struct Gcra {
    /// Nanoseconds since the start, until which the allowance is used up.
    until_ns: AtomicI64,
    /// What was taken since the other gateways were told, nanoseconds.
    untold_ns: AtomicI64,
}

impl Gcra {
    /// Takes `cost_ns` of the allowance.
    ///
    /// # Errors
    /// When to come again.
    pub(crate) fn take(&self, cost_ns: f64, burst_ns: f64, now_ns: i64) -> Result<(), Duration> {
        let tolerance = whole(burst_ns - cost_ns).max(0);
        let step = |until: i64| {
            let from = until.max(now_ns);
            (from - now_ns <= tolerance).then(|| from.saturating_add(whole(cost_ns)))
        };
        let taken = self.until_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        if taken.is_ok() {
            self.untold_ns.fetch_add(whole(cost_ns), Ordering::AcqRel);
        }
        taken.map(|_| ()).map_err(|until| {
            let wait = until.saturating_sub(now_ns).saturating_sub(tolerance);
            Duration::from_nanos(u64::try_from(wait).unwrap_or(0))
        })
    }

    /// Gives allowance back, or takes more where negative.
    fn give_back(&self, cost_ns: f64) {
        let back = whole(cost_ns);
        let _ = self.until_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| {
            Some(until.saturating_sub(back))
        });
        self.untold_ns.fetch_sub(back, Ordering::AcqRel);
    }

    /// Moves on by what was taken elsewhere.
    fn take_in(&self, ns: i64, now_ns: i64) {
        let ns = ns.clamp(-TOLD_NS_MAX, TOLD_NS_MAX);
        let _ = self.until_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| {
            // Nothing is to be had back of an allowance that time has brought back already.
            let from = if ns > 0 { until.max(now_ns) } else { until };
            Some(from.saturating_add(ns))
        });
    }
}

/// Nanoseconds; what is out of range is as large as fits (a float cast saturates).
fn whole(ns: f64) -> i64 {
    (ns as i64).clamp(i64::MIN / 4, i64::MAX / 4)
}

pub(crate) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn limit(per: Scope) -> Limit {
        Limit {
            per,
            requests_per_minute: None,
            input_tokens_per_minute: None,
            output_tokens_per_minute: None,
            concurrent: None,
            burst_seconds: 10.0,
        }
    }

    fn whose(account: &str) -> Whose<'_> {
        Whose { account, organisation: None, cluster: None, ip: IpAddr::from([192, 0, 2, 1]) }
    }

    struct Bench {
        throttle: Throttle,
        limits: BTreeMap<String, Limit>,
        begun: Instant,
    }

    impl Bench {
        fn new(limit: Limit) -> Self {
            let throttle = Throttle::new([3; 16]);
            let begun = throttle.begun;
            Self { throttle, limits: BTreeMap::from([("a".to_owned(), limit)]), begun }
        }

        fn ask(&self, whose: &Whose<'_>, tokens: Tokens, at_s: f64) -> Result<Admission, Reached> {
            let now = self.begun + Duration::from_secs_f64(at_s);
            self.throttle.admit(self.limits.iter(), whose, tokens, now)
        }
    }

    #[test]
    fn a_rate_holds_and_a_pause_brings_the_burst_back() {
        let bench = Bench::new(Limit { requests_per_minute: Some(60.0), ..limit(Scope::Account) });
        let ask = |at_s| bench.ask(&whose("one"), Tokens::default(), at_s);
        let at_once = (0..50).filter(|_| ask(0.0).is_ok()).count();
        assert_eq!(at_once, 10, "the burst of ten seconds");
        let wait = ask(0.0).err().unwrap().retry_after;
        assert!((wait.as_secs_f64() - 1.0).abs() < 0.01, "{wait:?}");
        let later = (0..600).filter(|step| ask(f64::from(*step) / 10.0).is_ok()).count();
        assert_eq!(later, 59, "one a second");
        assert_eq!((0..50).filter(|_| ask(200.0).is_ok()).count(), 10);
        assert!(bench.ask(&whose("two"), Tokens::default(), 0.0).is_ok(), "another's cell");
    }

    #[test]
    fn tokens_are_reserved_and_settled() {
        let per_second = Limit { output_tokens_per_minute: Some(600.0), ..limit(Scope::Account) };
        let bench = Bench::new(per_second);
        let tokens = |output| Tokens { input: 0, output };
        let first = bench.ask(&whose("one"), tokens(100), 0.0).ok().unwrap();
        assert!(bench.ask(&whose("one"), tokens(100), 0.0).is_err(), "all is reserved");
        first.settle(tokens(20));
        let second = bench.ask(&whose("one"), tokens(80), 0.0).ok().unwrap();
        second.settle(tokens(280));
        let wait = bench.ask(&whose("one"), tokens(0), 0.0).err().unwrap().retry_after;
        assert!((wait.as_secs_f64() - 20.0).abs() < 0.1, "the debt is waited for: {wait:?}");
    }

    #[test]
    fn what_is_larger_than_the_burst_goes_through_an_unused_cell() {
        let bench =
            Bench::new(Limit { output_tokens_per_minute: Some(600.0), ..limit(Scope::Account) });
        let large = Tokens { input: 0, output: 1_000 };
        assert!(bench.ask(&whose("one"), large, 0.0).is_ok());
        let wait = bench.ask(&whose("one"), large, 0.0).err().unwrap().retry_after;
        assert!((wait.as_secs_f64() - 100.0).abs() < 0.1, "{wait:?}");
        assert!(bench.ask(&whose("one"), large, 100.1).is_ok());
    }

    #[test]
    fn running_requests_are_bounded_and_end_with_their_admission() {
        let bench = Bench::new(Limit { concurrent: Some(2), ..limit(Scope::Account) });
        let ask = || bench.ask(&whose("one"), Tokens::default(), 0.0);
        let (one, two) = (ask().ok().unwrap(), ask().ok().unwrap());
        assert!(ask().is_err());
        drop(one);
        let three = ask().ok().unwrap();
        two.settle(Tokens::default());
        drop(three);
        assert_eq!((0..9).map(|_| ask()).filter(Result::is_ok).count(), 9, "each is dropped");
    }

    #[test]
    fn a_limit_that_refuses_charges_no_other() {
        let mut bench =
            Bench::new(Limit { requests_per_minute: Some(6.0), ..limit(Scope::Account) });
        bench.limits.insert(
            "b".to_owned(),
            Limit { concurrent: Some(1), requests_per_minute: Some(600.0), ..limit(Scope::Ip) },
        );
        let held = bench.ask(&whose("one"), Tokens::default(), 0.0).ok().unwrap();
        // `b` is full; `a` of another account must not be charged by that.
        for _ in 0..5 {
            assert_eq!(bench.ask(&whose("two"), Tokens::default(), 0.0).err().unwrap().limit, "b");
        }
        drop(held);
        assert!(bench.ask(&whose("two"), Tokens::default(), 0.0).is_ok());
    }

    #[test]
    fn each_scope_counts_its_own_together() {
        let both = |per, one: &Whose<'_>, two: &Whose<'_>| {
            let bench = Bench::new(Limit { requests_per_minute: Some(6.0), ..limit(per) });
            assert!(bench.ask(one, Tokens::default(), 0.0).is_ok());
            bench.ask(two, Tokens::default(), 0.0).is_err()
        };
        let one = Whose { organisation: Some("org"), cluster: Some(7), ..whose("one") };
        let two = Whose { account: "two", ip: IpAddr::from([192, 0, 2, 2]), ..one };
        assert!(!both(Scope::Account, &one, &two));
        assert!(both(Scope::Organisation, &one, &two));
        assert!(both(Scope::Cluster, &one, &two));
        assert!(!both(Scope::Ip, &one, &two));
        let alone = |account| Whose { organisation: None, cluster: None, ..whose(account) };
        assert!(!both(Scope::Organisation, &alone("one"), &alone("two")));
        assert!(!both(Scope::Cluster, &alone("one"), &alone("two")));
        assert!(both(Scope::Ip, &alone("one"), &alone("two")));
        let v6 = |last| Whose { ip: format!("2001:db8::{last}").parse().unwrap(), ..whose("x") };
        assert!(both(Scope::Ip, &v6(1), &v6(2)), "one host has a whole /64");
        let nobody = |last| Whose { ip: IpAddr::from([192, 0, 2, last]), ..whose("") };
        assert!(!both(Scope::Account, &nobody(1), &nobody(2)));
        assert!(both(Scope::Account, &nobody(1), &nobody(1)));
    }

    #[test]
    fn what_others_let_through_counts_and_nothing_is_told_twice() {
        let limit = || Limit { requests_per_minute: Some(60.0), ..limit(Scope::Account) };
        let (one, two) = (Bench::new(limit()), Bench::new(limit()));
        let ask = |bench: &Bench, at_s| bench.ask(&whose("one"), Tokens::default(), at_s).is_ok();
        assert!(ask(&one, 0.0));
        assert_eq!(one.throttle.untold(), (vec![], 0), "nobody wants to know");
        one.throttle.share();
        two.throttle.share();
        assert_eq!((0..9).filter(|_| ask(&one, 0.0)).count(), 9);
        let (told, shed) = one.throttle.untold();
        // The request before anybody wanted to know is told with the next ones.
        assert_eq!((told.len(), told[0].ns, shed), (1, [10_000_000_000, 0, 0], 0));
        assert!(one.throttle.untold().0.is_empty(), "told once");
        two.throttle.take_in(&told[0], two.begun);
        assert!(!ask(&two, 0.0), "the burst is used up elsewhere");
        assert!(two.throttle.untold().0.is_empty(), "what others told is not told on");
        assert!(ask(&two, 1.01));
        // What is used up beyond the burst is waited for.
        two.throttle.take_in(&told[0], two.begun + Duration::from_secs(1));
        assert!(!ask(&two, 10.0) && ask(&two, 12.1));
    }

    #[test]
    fn tokens_that_were_not_used_are_given_back_everywhere() {
        let limit = || Limit { output_tokens_per_minute: Some(600.0), ..limit(Scope::Account) };
        let (one, two) = (Bench::new(limit()), Bench::new(limit()));
        one.throttle.share();
        let tokens = |output| Tokens { input: 0, output };
        let first = one.ask(&whose("one"), tokens(100), 0.0).ok().unwrap();
        let reserved = one.throttle.untold().0;
        two.throttle.take_in(&reserved[0], two.begun);
        assert!(two.ask(&whose("one"), tokens(50), 0.0).is_err());
        first.settle(tokens(20));
        let back = one.throttle.untold().0;
        assert_eq!(back[0].ns, [0, 0, -8_000_000_000]);
        two.throttle.take_in(&back[0], two.begun);
        assert!(two.ask(&whose("one"), tokens(80), 0.0).is_ok());
    }

    #[test]
    fn cells_without_room_are_told_of_later() {
        let bench = Bench::new(Limit { requests_per_minute: Some(60.0), ..limit(Scope::Account) });
        bench.throttle.share();
        let ask = |n: usize| drop(bench.ask(&whose(&n.to_string()), Tokens::default(), 0.0));
        (0..THROTTLE_UNTOLD_MAX + 3).for_each(ask);
        let (told, shed) = bench.throttle.untold();
        assert_eq!((told.len(), shed), (THROTTLE_UNTOLD_MAX, 3));
        ask(THROTTLE_UNTOLD_MAX);
        let (told, _) = bench.throttle.untold();
        assert_eq!((told.len(), told[0].ns[0]), (1, 2_000_000_000), "both requests");
    }

    proptest! {
        /// Gateways that tell each other with a delay let through no more than the stated bound.
        #[test]
        fn a_fleet_keeps_to_the_rate_within_the_stated_error(
            gateways in 1_usize..5,
            delay_steps in 1_usize..20,
            rate in 30.0_f64..600.0,
            arrivals in proptest::collection::vec(0_usize..4, 50..600),
        ) {
            const STEP_S: f64 = 0.05;
            let most = || Limit {
                requests_per_minute: Some(rate), burst_seconds: 2.0, ..limit(Scope::Account)
            };
            let fleet: Vec<Bench> = (0..gateways).map(|_| Bench::new(most())).collect();
            fleet.iter().for_each(|bench| bench.throttle.share());
            let mut on_the_way: Vec<(usize, usize, Used)> = Vec::new();
            let mut through = 0_u32;
            for (step, wave) in arrivals.iter().enumerate() {
                let at_s = step as f64 * STEP_S;
                on_the_way.retain(|(due, from, used)| {
                    if *due > step { return true; }
                    for (_, bench) in fleet.iter().enumerate().filter(|(to, _)| to != from) {
                        bench.throttle.take_in(used, bench.begun + Duration::from_secs_f64(at_s));
                    }
                    false
                });
                for bench in &fleet {
                    let asked = (0..*wave * 3).filter(|_| {
                        bench.ask(&whose("one"), Tokens::default(), at_s).is_ok()
                    });
                    through += u32::try_from(asked.count()).unwrap();
                }
                for (from, bench) in fleet.iter().enumerate() {
                    let told = bench.throttle.untold().0;
                    on_the_way.extend(told.into_iter().map(|used| (step + delay_steps, from, used)));
                }
            }
            let (a_second, time_s) = (rate / 60.0, arrivals.len() as f64 * STEP_S);
            let delay_s = delay_steps as f64 * STEP_S;
            let burst = 2.0 * a_second + 1.0;
            let error = (gateways - 1) as f64 * (burst + a_second * delay_s);
            let allowed = a_second * time_s + burst + error;
            prop_assert!(f64::from(through) <= allowed + 1e-6, "{through} > {allowed}");
        }

        /// Over any time, a rate lets through at most the burst and what the time brought.
        #[test]
        fn no_more_goes_through_than_the_rate_allows(
            rate in 1.0_f64..6_000.0,
            burst_seconds in 0.1_f64..60.0,
            pauses in proptest::collection::vec(0.0_f64..3.0, 1..200),
        ) {
            let most = Limit {
                requests_per_minute: Some(rate), burst_seconds, ..limit(Scope::Account)
            };
            let bench = Bench::new(most);
            let (mut at_s, mut through) = (0.0, 0);
            for pause in pauses {
                at_s += pause;
                through += u32::from(bench.ask(&whose("one"), Tokens::default(), at_s).is_ok());
            }
            let allowed = (at_s + burst_seconds) * rate / 60.0 + 1.0;
            prop_assert!(f64::from(through) <= allowed + 1e-6, "{through} > {allowed}");
        }

        #[test]
        fn nothing_overflows(cost in any::<f64>(), burst in any::<f64>(), now in any::<i64>()) {
            let gcra = Gcra::default();
            let now = now / 4;
            let _ = gcra.take(cost, burst, now.max(0));
            gcra.give_back(cost);
            let _ = gcra.take(cost, burst, now.max(0));
        }
    }
}
