//! Ties between accounts: which others share rare values with this one, through which independent
//! kinds of evidence, and how surprising that is.
//!
//! A tie's strength is a log-likelihood ratio: a value that `d` of `N` customers share speaks for
//! one hand behind two accounts with about `ln(N / d)`, capped for each family at what that family
//! was measured to be worth. What has one cause counts once: an address and its subnet; questions and
//! the minutes in which they are asked.

use hashbrown::HashMap;

use crate::account::{Memory, Recent};
use crate::dns;
use crate::finding::ramp;
use crate::keyed::KeyedState;
use crate::pivot::{Family, Pivots};

/// Ties that are kept of an account: one for each customer, the strongest.
pub const EDGES_MAX: usize = 32;
/// Most that one shared value can speak for, nats.
const NATS_MAX: f64 = 6.0;
/// Least surprise of a value that is looked at, nats: below, half the customers share it.
const NATS_MIN: f64 = 0.7;
/// Nats at which a tie is as likely as not, and how fast it gets surer.
const EVEN_NATS: f64 = 5.3;
const SURER_NATS: f64 = 0.8;
/// A tie less likely than this is none.
const WEIGHT_MIN: f64 = 0.3;
/// Shared seconds speak as far as they are so many times more than chance would give.
const OVER_CHANCE: f64 = 5.0;
/// How much of a tie is taken off for each side that is somebody at a keyboard.
const KEYBOARD_DISCOUNT: f64 = 0.8;
/// Tied customers at which company weighs half: two with something in common are a coincidence.
const COMPANY_HALF: f64 = 0.5;
/// Least nats of a kind of evidence that makes it count as independent evidence.
const KIND_NATS_MIN: f64 = 0.9;

/// Independent kinds of evidence: what has one cause is one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Address and subnet.
    Place,
    /// What is asked: frames, prompts.
    Task,
    /// The software that asks: its client shape, settings, system prompt.
    Software,
    /// Several rare system prompts in common.
    Preambles,
    /// Arrival in the same seconds.
    Time,
    /// The same question within minutes.
    Together,
    /// Card prefix and birth.
    Birth,
    /// An encrypted resolver that few use.
    Resolver,
    /// A contacted address that no plain DNS answer had named, and that few contact.
    Unnamed,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Place,
        Self::Task,
        Self::Software,
        Self::Preambles,
        Self::Time,
        Self::Together,
        Self::Birth,
        Self::Resolver,
        Self::Unnamed,
    ];

    /// Its name in evidence.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Place => "network",
            Self::Task => "task",
            Self::Software => "software and settings",
            Self::Preambles => "several system prompts",
            Self::Time => "seconds of arrival",
            Self::Together => "same question within minutes",
            Self::Birth => "card prefix and birth",
            Self::Resolver => "encrypted resolver",
            Self::Unnamed => "address outside plain DNS",
        }
    }
}

/// Families whose evidence a policy leaves out.
pub type Muted = [bool; Family::ALL.len()];

/// Raw evidence between two accounts, by family.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Evidence {
    /// Surprise of the rarest shared value, nats.
    nats: [f64; Family::ALL.len()],
    /// Shared values.
    shared: [u8; Family::ALL.len()],
    /// Nats of prompts that both sent within minutes or an hour of one another.
    together: f64,
}

/// A tie to another account.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edge {
    /// The other account.
    pub account: u64,
    /// The customer behind it.
    pub customer: u64,
    /// Evidence by kind, nats.
    pub kinds: [f32; Kind::ALL.len()],
    /// All of it, nats.
    pub nats: f64,
    /// How likely one hand is behind both, 0..1.
    pub weight: f64,
}

/// What ties say of an account.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ties {
    /// Ties to other customers' accounts, the strongest first; one for each customer.
    pub edges: Vec<Edge>,
    /// Tied customers, each counted with its tie's weight and less where either side looks like
    /// somebody at a keyboard.
    pub mass: f64,
    /// The same by kind of evidence.
    pub by_kind: [f64; Kind::ALL.len()],
    /// Share of tied accounts (by weight) at hosting providers.
    pub hosting: f64,
    /// Tied accounts (by weight) that somebody suspended.
    pub suspended: f64,
}

impl Ties {
    /// How far other customers' accounts confirm what this one's behaviour says, 0..1.
    #[must_use]
    pub fn corroboration(&self) -> f64 {
        self.mass / (self.mass + 1.5)
    }

    /// Confidence of a behaviour that `alone` is the most to be said of for a lone account.
    #[must_use]
    pub fn confidence(&self, alone: f64) -> f64 {
        alone + (1.0 - alone) * self.corroboration()
    }

    /// Tied customers by one kind of evidence.
    #[must_use]
    pub fn of(&self, kind: Kind) -> f64 {
        self.by_kind[kind as usize]
    }
}

/// What is to be known of a neighbour.
pub struct Neighbour<'a> {
    /// Its memory.
    pub memory: &'a Memory,
    /// Whether somebody suspended it.
    pub suspended: bool,
}

/// The ties of an account. `customers` is how many there are in all.
#[must_use]
pub fn ties<'a>(
    account: u64,
    memory: &Memory,
    pivots: &Pivots,
    muted: &Muted,
    customers: f64,
    neighbour: impl Fn(u64) -> Option<Neighbour<'a>>,
) -> Ties {
    let mut edges: Vec<Edge> = Vec::new();
    let templates: Vec<u32> = memory.templates().into_iter().map(|(frame, _)| frame).collect();
    for (key, mut evidence) in candidates(account, memory, pivots, muted, customers) {
        let Some(other) = neighbour(key).filter(|other| !memory.same_customer(other.memory)) else {
            continue;
        };
        // Whoever asks every second shares every second with everybody.
        let seconds = f64::from(evidence.shared[Family::Second as usize]);
        let chance = memory.recent.len() as f64 * other.memory.rate().min(1.0);
        evidence.nats[Family::Second as usize] *= 1.0 - (OVER_CHANCE * chance / seconds).min(1.0);
        if evidence.shared[Family::Frame as usize] > 0 {
            let theirs = other.memory.templates();
            let both = templates.iter().filter(|frame| theirs.iter().any(|(f, _)| f == *frame));
            evidence.shared[Family::Frame as usize] = both.count() as u8;
        }
        if evidence.shared[Family::System as usize] > 1 {
            // Whoever passes on everybody's prompts had each of them once: what both use now counts.
            let theirs = &other.memory.systems;
            let both = memory.systems.iter().filter(|mark| theirs.get(mark.key()).is_some());
            evidence.shared[Family::System as usize] = both.count().max(1) as u8;
        }
        // Whoever tries many settings meets somebody's by chance.
        let settings = memory.rigs.len().max(other.memory.rigs.len()) as f64;
        evidence.nats[Family::Rig as usize] -= settings.max(1.0).ln();
        for family in [Family::Resolver, Family::Unnamed] {
            if evidence.shared[family as usize] > 0 {
                let nats = dns::in_common(family, memory, other.memory, pivots);
                evidence.nats[family as usize] = nats.min(NATS_MAX);
            }
        }
        let (kinds, nats) = weigh(&evidence, memory);
        let independent = independent(&kinds);
        let weight = 1.0 / (1.0 + ((EVEN_NATS - nats) / SURER_NATS).exp());
        if independent < 2 || weight < WEIGHT_MIN {
            continue;
        }
        let customer = other.memory.customer(key);
        edges.push(Edge { account: key, customer, kinds, nats, weight });
    }
    // Tables have no order; the same evidence must give the same ties.
    edges.sort_unstable_by(|a, b| b.nats.total_cmp(&a.nats).then(a.account.cmp(&b.account)));
    let mut met: Vec<u64> = Vec::new();
    edges.retain(|edge| {
        let fresh = !met.contains(&edge.customer) && met.len() < EDGES_MAX;
        if fresh {
            met.push(edge.customer);
        }
        fresh
    });
    let mut ties = Ties { edges, ..Ties::default() };
    let own = 1.0 - KEYBOARD_DISCOUNT * memory.interactive();
    let (mut weights, mut hosting) = (0.0, 0.0);
    for edge in &ties.edges {
        let Some(other) = neighbour(edge.account) else { continue };
        let theirs = 1.0 - KEYBOARD_DISCOUNT * other.memory.interactive();
        let mass = edge.weight * own * theirs;
        ties.mass += mass;
        for (sum, nats) in ties.by_kind.iter_mut().zip(edge.kinds) {
            *sum += mass * ramp(f64::from(nats), 0.0, 2.0);
        }
        weights += edge.weight;
        hosting += edge.weight * other.memory.hosting();
        ties.suspended += edge.weight * f64::from(u8::from(other.suspended));
    }
    let company = ties.mass / (ties.mass + COMPANY_HALF);
    ties.mass *= company;
    ties.by_kind.iter_mut().for_each(|mass| *mass *= company);
    ties.hosting = if weights > 0.0 { hosting / weights } else { 0.0 };
    ties
}

/// Kinds that speak, where those with one cause count once: what is asked, and when it is asked
/// again, both follow from a public list of questions.
fn independent(kinds: &[f32; Kind::ALL.len()]) -> usize {
    let speaks = |kind: Kind| f64::from(kinds[kind as usize]) >= KIND_NATS_MIN;
    let groups: [&[Kind]; 6] = [
        &[Kind::Place],
        &[Kind::Task, Kind::Together],
        &[Kind::Software],
        &[Kind::Preambles],
        &[Kind::Time],
        &[Kind::Birth, Kind::Resolver, Kind::Unnamed],
    ];
    groups.iter().filter(|group| group.iter().any(|kind| speaks(*kind))).count()
}

/// Evidence by kind from evidence by family, and all of it. The factors say what a nat of rarity is
/// worth in each family, once shared and more often: rounded from regressions of pairs of accounts
/// on whether they were of one campaign, in generated traffic.
fn weigh(evidence: &Evidence, memory: &Memory) -> ([f32; Kind::ALL.len()], f64) {
    let of = |family: Family, once: f64, again: f64| {
        let (nats, shared) = (evidence.nats[family as usize], evidence.shared[family as usize]);
        nats.max(0.0)
            * match shared {
                0 => 0.0,
                1 => once,
                _ => again,
            }
    };
    // Whoever has many prompts shares some by chance: an aggregator with everybody.
    let systems = f64::from(evidence.shared[Family::System as usize]);
    let overlap = ramp(systems / memory.systems.len().max(1) as f64, 0.15, 0.5);
    let several = (systems - 1.0).clamp(0.0, 3.0) * 0.6 * overlap;
    let preambles = evidence.nats[Family::System as usize] * several;
    let place = of(Family::Address, 0.9, 1.3).max(of(Family::Subnet, 0.7, 0.9));
    let task = of(Family::Frame, 0.5, 0.85).max(of(Family::Prompt, 0.12, 0.25));
    let software = of(Family::Rig, 0.6, 0.9).max(of(Family::Shape, 0.1, 0.1));
    // One prompt in common comes with the software that sends it. Several are evidence of their own,
    // and must not be counted a second time as software.
    let software =
        if several > 0.0 { software } else { software.max(of(Family::System, 0.4, 0.4)) };
    // How a host resolves names comes with its place, so behind one address it is no further
    // evidence; and its resolver and what it then contacts are one.
    let [resolver, unnamed] = [Family::Resolver, Family::Unnamed]
        .map(|family| if place > 0.0 { 0.0 } else { of(family, 0.3, 0.3) });
    let kinds = [
        place,
        task,
        software,
        preambles,
        of(Family::Second, 0.5, 2.4),
        evidence.together.min(6.0),
        of(Family::BinBirth, 0.4, 0.5),
        if resolver >= unnamed { resolver } else { 0.0 },
        if resolver >= unnamed { 0.0 } else { unnamed },
    ];
    (kinds.map(|nats| nats as f32), kinds.iter().sum())
}

/// Collects the raw evidence between an account and everybody who shares a value with it.
fn candidates(
    account: u64,
    memory: &Memory,
    pivots: &Pivots,
    muted: &Muted,
    customers: f64,
) -> HashMap<u64, Evidence, KeyedState> {
    let mut found: HashMap<u64, Evidence, KeyedState> = HashMap::default();
    let mut join_among = |customers: f64, family: Family, value: u64, at_s: Option<u32>| {
        let place = family as usize;
        if muted[place] {
            return;
        }
        let Some(crowd) = pivots.crowd(family, value) else { return };
        let nats = (customers / crowd.customers.count().max(2.0)).ln().min(NATS_MAX);
        if nats < NATS_MIN {
            return;
        }
        for member in crowd.members.iter().filter(|member| member.key() != account) {
            let evidence = found.entry(member.key()).or_default();
            evidence.shared[place] = evidence.shared[place].saturating_add(1);
            evidence.nats[place] = evidence.nats[place].max(nats);
            if let Some(at_s) = at_s {
                let soon = match at_s.abs_diff(member.at_s) {
                    0..=120 => 3.0,
                    121..=3_600 => 1.2,
                    _ => 0.0,
                };
                evidence.together += soon * nats / NATS_MAX;
            }
        }
    };
    // Rare among whom sensors see, not among everybody.
    for family in [Family::Resolver, Family::Unnamed] {
        let covered = dns::covered(family, pivots);
        memory.dns.values(family).for_each(|value| join_among(covered, family, value, None));
    }
    let mut join = |family, value, at_s| join_among(customers, family, value, at_s);
    memory.addresses.iter().for_each(|mark| join(Family::Address, mark.key(), None));
    memory.subnets.iter().for_each(|mark| join(Family::Subnet, mark.key(), None));
    memory.systems.iter().for_each(|mark| join(Family::System, mark.key(), None));
    memory.shapes.iter().for_each(|mark| join(Family::Shape, mark.key(), None));
    memory.rigs.iter().for_each(|mark| join(Family::Rig, mark.key(), None));
    for (frame, _) in memory.templates() {
        join(Family::Frame, u64::from(frame), None);
    }
    // Several exchanges of one second, or with one prompt, share it once.
    let mut seconds: Vec<u64> = memory.recent.iter().map(Recent::second).collect();
    seconds.sort_unstable();
    seconds.dedup();
    seconds.into_iter().for_each(|second| join(Family::Second, second, None));
    let prompts = memory.recent.iter().filter(|recent| recent.prompt != 0);
    let mut prompts: Vec<(u32, u32)> =
        prompts.map(|recent| (recent.prompt, recent.at_s())).collect();
    prompts.sort_unstable_by_key(|(prompt, at_s)| (*prompt, std::cmp::Reverse(*at_s)));
    prompts.dedup_by_key(|(prompt, _)| *prompt);
    for (prompt, at_s) in prompts {
        join(Family::Prompt, u64::from(prompt), Some(at_s));
    }
    for value in bin_births(memory).into_iter().flatten() {
        join(Family::BinBirth, value, None);
    }
    found
}

/// Card prefix with three-day windows of birth: two that overlap, so that no midnight divides.
#[must_use]
pub fn bin_births(memory: &Memory) -> [Option<u64>; 2] {
    let (Some(bin), Some(created_s)) = (memory.known.bin, memory.known.created_s) else {
        return [None; 2];
    };
    let half_days = created_s.div_euclid(43_200);
    let mixed = |window: i64| {
        (u64::from(bin) << 32 | (window as u64 & 0xffff_ffff)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    [Some(mixed(half_days.div_euclid(6) * 2)), Some(mixed((half_days + 3).div_euclid(6) * 2 + 1))]
}
