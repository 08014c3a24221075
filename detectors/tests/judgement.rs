//! What the engine says of the corpus: honest people are left alone, campaigns are found early.

#![expect(clippy::expect_used, reason = "a test tells of a failure by panicking")]

mod corpus;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, LazyLock};

use corpus::{Corpus, END_MS, Label};

use detectors::engine::{Decision, Engine};
use detectors::facts::Facts;
use detectors::list::LIST;
use detectors::policy::Policy;
use detectors::seen::{Answered, Arrived, Pending};
use detectors::tier::Tier;
use detectors::ties::Kind;
use detectors::{AccountId, Conversation, Event};

/// Which corpus is judged.
const SEED: u64 = 1;

/// Detectors that read texts, which nothing hands them yet. Their campaigns are in the corpus with
/// the phrases and topics that they are there for; whoever speaks has to leave this list.
const PENDING: &[&str] = &[];

/// A campaign in which each detector must speak.
const SPEAKS: &[(&str, &str)] = &[
    ("fingerprint", "false_browsers"),
    ("velocity", "rotation"),
    ("cot", "reasoning_english"),
    ("cot", "reasoning_chinese"),
    ("embed", "template"),
    ("hydra", "hydra"),
    ("timing_cluster", "burst"),
    ("timing_cluster", "sampling"),
    ("asn_classifier", "hydra"),
    ("h2_grpc", "grpc_bulk"),
    ("role_preamble", "preambles"),
    ("pivot", "release"),
    ("pivot", "second_wave"),
    ("biometric", "template"),
    ("watermark", "verbatim"),
    ("session_gap", "cron"),
    ("token_budget", "probing"),
    ("refusal_probe", "probing"),
    ("sequence_model", "probing"),
    ("dns_transport", "rare_resolver"),
    ("dns_transport", "coordination"),
];
/// Least score that counts as speaking.
const SPOKEN: f64 = 0.2;

/// The corpus after the engine has seen it.
struct Judged {
    corpus: Corpus,
    engine: Engine,
    decisions: Vec<Decision>,
    /// A last judgement of each account, with every detector's part.
    last: BTreeMap<AccountId, Decision>,
}

static JUDGED: LazyLock<Judged> = LazyLock::new(|| {
    let corpus = corpus::generate(SEED);
    let mut engine =
        Engine::new(Arc::default(), Arc::new(Facts::builtin().expect("shipped tables")), [7; 16]);
    let decisions: Vec<Decision> =
        corpus.events.iter().filter_map(|event| engine.observe(event)).collect();
    let mut last = engine.clone();
    let last = corpus.labels.keys().filter_map(|id| last.judge_now(id, END_MS));
    let last = last.map(|decision| (decision.account.clone(), decision)).collect();
    Judged { corpus, engine, decisions, last }
});

/// Live, a request is taken in when it arrives, its meaning a few requests later and its answer when
/// it ends. That must leave the same memories as taking in whole exchanges, and much the same tiers.
#[test]
fn taking_exchanges_in_by_parts_remembers_the_same() {
    const BACKLOG: usize = 5;
    let facts = Arc::new(Facts::builtin().expect("shipped tables"));
    let key = [7; 16];
    let mut live = Engine::new(Arc::default(), facts.clone(), key);
    let mut pending: VecDeque<Pending> = VecDeque::new();
    let understand = |live: &mut Engine, pending: &mut VecDeque<Pending>, left: usize| {
        while pending.len() > left {
            if let Some(mut one) = pending.pop_front() {
                one.read(&facts);
                live.understood(&one);
            }
        }
    };
    let mut first_medium = BTreeMap::new();
    for event in &JUDGED.corpus.events {
        let Event::Exchange(observation) = event else {
            live.observe(event);
            continue;
        };
        let Some(arrived) = Arrived::read(observation, &facts, &key) else { continue };
        pending.extend(live.arrived(arrived).pending);
        understand(&mut live, &mut pending, BACKLOG);
        let account = observation.account.as_ref().expect("it arrived");
        live.answered(account, &observation.id, &Answered::of(&observation.answer));
    }
    understand(&mut live, &mut pending, 0);
    for (mine, whole) in live.accounts().iter().zip(JUDGED.engine.accounts()) {
        assert_eq!(mine.id, whole.id);
        assert!(mine.memory == whole.memory, "{}: memories differ", mine.id);
        assert!(mine.memories == whole.memories, "{}: detectors' memories differ", mine.id);
        let at = |first: [Option<(u64, u32)>; 5]| first[Tier::Medium as usize].map(|(_, at)| at);
        first_medium.insert(mine.id.clone(), (at(mine.first), at(whole.first)));
    }
    let reached = first_medium.values().filter(|(_, whole)| whole.is_some()).count();
    let near = |(mine, whole): &(Option<u32>, Option<u32>)| match (mine, whole) {
        (Some(mine), Some(whole)) => mine.abs_diff(*whole) <= 2,
        (None, None) => true,
        _ => false,
    };
    let apart = first_medium.values().filter(|pair| !near(pair)).count();
    assert!(reached > 50 && apart * 50 <= reached, "{apart} of {reached} differ");
}

/// What became of the accounts of one population or campaign.
#[derive(Debug, Default)]
struct Outcome {
    accounts: usize,
    exchanges: u32,
    /// Accounts that reached each tier or more.
    reached: [usize; 5],
    /// Of each account: exchanges served before it was at medium, over all of its exchanges.
    served: Vec<f64>,
    peaks: Vec<f64>,
}

impl Outcome {
    fn of(label: Label, judged: &Judged) -> Self {
        let mut outcome = Self::default();
        for (id, _) in judged.corpus.labels.iter().filter(|(_, own)| **own == label) {
            let Some(account) = judged.engine.account(id) else { continue };
            let requests = account.memory.requests;
            if requests == 0 {
                continue;
            }
            outcome.accounts += 1;
            outcome.exchanges += requests;
            for tier in Tier::ALL.into_iter().filter(|tier| *tier <= account.peak.1) {
                outcome.reached[tier as usize] += 1;
            }
            let before = account.first[Tier::Medium as usize]
                .map_or(requests, |(_, exchange)| exchange.saturating_sub(1));
            outcome.served.push(f64::from(before) / f64::from(requests));
            outcome.peaks.push(account.peak.0);
        }
        outcome
    }

    fn at(&self, tier: Tier) -> usize {
        self.reached[tier as usize]
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn outcomes(judged: &Judged) -> BTreeMap<Label, Outcome> {
    let labels = judged.corpus.labels.values();
    labels.map(|label| (*label, Outcome::of(*label, judged))).collect()
}

#[test]
fn honest_people_are_left_alone() {
    let outcomes = outcomes(&JUDGED);
    let benign = |tier: Tier| -> usize {
        let benign = outcomes.iter().filter(|(label, _)| matches!(label, Label::Benign(_)));
        benign.map(|(_, outcome)| outcome.at(tier)).sum()
    };
    print_table(&outcomes);
    print_accused(&JUDGED);
    assert!(benign(Tier::None) >= 400, "{} benign accounts", benign(Tier::None));
    assert_eq!(benign(Tier::High), 0, "at high or above");
    assert!(benign(Tier::Medium) <= 1, "{} at medium", benign(Tier::Medium));
    assert!(benign(Tier::Low) * 100 <= benign(Tier::None), "{} at low", benign(Tier::Low));
}

/// Encrypted DNS is normal: where everybody uses one resolver, behind a large NAT, at home.
#[test]
fn encrypted_dns_of_honest_networks_raises_and_ties_nobody() {
    for population in ["covered_isp", "office_nat", "home_router"] {
        let accounts = JUDGED.corpus.labels.iter();
        let accounts = accounts.filter(|(_, label)| **label == Label::Benign(population));
        let mut shown = 0;
        for (id, _) in accounts {
            let account = JUDGED.engine.account(id).expect("it has asked");
            assert_eq!(account.peak.1, Tier::None, "{population} {id}");
            for tie in JUDGED.engine.explain_ties(id) {
                let of_dns = |(kind, nats): &&(&str, f64)| {
                    [Kind::Resolver, Kind::Unnamed].iter().any(|dns| dns.name() == *kind)
                        && *nats >= 0.3
                };
                assert_eq!(tie.evidence.iter().find(of_dns), None, "{population} {id}");
            }
            let parts = &JUDGED.last[id].contributions;
            let dns = parts.iter().find(|part| part.finding.detector == "dns_transport");
            let dns = &dns.expect("it is on").finding;
            assert!(dns.score() <= 0.05, "{population} {id}: {dns:?}");
            shown += usize::from(dns.evidence.is_some());
        }
        println!("{population}: {shown} show their encrypted DNS");
        assert!(shown > 5, "{population}: {shown}");
    }
}

#[test]
fn dns_evidence_is_written_for_a_person() {
    let mut campaign = JUDGED.corpus.labels.iter();
    let (id, _) = campaign
        .find(|(_, label)| **label == Label::Campaign("coordination"))
        .expect("the corpus has it");
    let parts = &JUDGED.last[id].contributions;
    let dns = parts.iter().find(|part| part.finding.detector == "dns_transport");
    let evidence = dns.and_then(|part| part.finding.evidence.as_deref()).expect("it speaks");
    println!("{evidence}");
    for told in [
        "24 of 24 exchanges from addresses that use encrypted DNS (DoH)",
        "at the latest 1 of 1 client hosts, 1 customers",
        "resolver everybodys, used by ",
        "in common with others 2 contacted addresses that no plain DNS answer had named",
        "a rare one of these in common with ",
    ] {
        assert!(evidence.contains(told), "{told}: {evidence}");
    }
    let ties = JUDGED.engine.explain_ties(id);
    let unnamed =
        |kinds: &[(&str, f64)]| kinds.iter().any(|(kind, _)| *kind == Kind::Unnamed.name());
    assert!(ties.iter().any(|tie| unnamed(&tie.evidence)), "{ties:?}");
}

#[test]
fn campaigns_are_found_early() {
    let outcomes = outcomes(&JUDGED);
    let campaigns: Vec<_> =
        outcomes.iter().filter(|(label, _)| matches!(label, Label::Campaign(_))).collect();
    let found = campaigns.iter().filter(|(_, o)| o.at(Tier::Medium) * 2 > o.accounts).count();
    let missed: Vec<_> = campaigns
        .iter()
        .filter(|(_, o)| o.at(Tier::Medium) * 2 <= o.accounts)
        .map(|(label, o)| (label, o.at(Tier::Medium), o.accounts))
        .collect();
    assert!(campaigns.len() >= 10);
    assert!(found * 10 >= campaigns.len() * 9, "missed {missed:?}");
    let served: Vec<f64> = campaigns.iter().map(|(_, outcome)| median(&outcome.served)).collect();
    assert!(median(&served) <= 0.15, "served before medium: {served:.2?}");
}

#[test]
fn clusters_are_of_one_hand() {
    let mut clusters: BTreeMap<u64, BTreeMap<Label, usize>> = BTreeMap::new();
    for account in JUDGED.engine.accounts() {
        if account.peak.1 < Tier::Medium {
            continue;
        }
        let Some(cluster) = account.cluster else { continue };
        let label = JUDGED.corpus.labels[&account.id];
        *clusters.entry(cluster).or_default().entry(label).or_default() += 1;
    }
    let all: usize = clusters.values().flat_map(BTreeMap::values).sum();
    let pure: usize = clusters.values().filter_map(|labels| labels.values().max()).sum();
    println!("{all} accounts in {} clusters, {pure} with their own", clusters.len());
    assert!(pure as f64 >= 0.95 * all as f64, "{clusters:?}");
}

#[test]
fn contributions_are_the_suspicion() {
    assert!(JUDGED.decisions.len() > 1000);
    for decision in JUDGED.decisions.iter().chain(JUDGED.last.values()) {
        let nats: f64 = decision.contributions.iter().map(|part| part.nats).sum();
        let suspicion = 1.0 - (-nats).exp();
        assert!((suspicion - decision.suspicion).abs() < 1e-12, "{decision:?}");
        assert_eq!(decision.contributions.len(), LIST.len());
    }
}

#[test]
fn each_detector_speaks_where_it_must() {
    let named = |name: &str| SPEAKS.iter().any(|(detector, _)| *detector == name);
    let unnamed: Vec<_> = LIST.iter().filter(|entry| !named(entry.name)).collect();
    assert!(unnamed.is_empty(), "without a campaign: {unnamed:?}");
    let (mut silent, mut mute) = (Vec::new(), PENDING.to_vec());
    for (detector, campaign) in SPEAKS {
        let members = JUDGED.corpus.labels.iter();
        let members = members.filter(|(_, label)| **label == Label::Campaign(campaign));
        let mut scores: Vec<f64> = Vec::new();
        for decision in members.filter_map(|(id, _)| JUDGED.last.get(id)) {
            let part = decision.contributions.iter().find(|c| c.finding.detector == *detector);
            scores.push(part.map_or(0.0, |part| part.finding.score()));
        }
        let spoken = scores.iter().filter(|score| **score >= SPOKEN).count();
        let enough = spoken * 2 > scores.len();
        println!(
            "{detector:16} {campaign:18} {spoken:3} of {:3}, median {:.2}{}",
            scores.len(),
            median(&scores),
            if PENDING.contains(detector) { " (pending)" } else { "" }
        );
        assert!(!scores.is_empty(), "there is no campaign {campaign}");
        match (enough, PENDING.contains(detector)) {
            (false, false) => silent.push((detector, campaign)),
            (true, true) => mute.retain(|name| name != detector),
            _ => {}
        }
    }
    assert!(silent.is_empty(), "silent: {silent:?}");
    assert_eq!(mute, PENDING, "what speaks is no longer pending");
}

#[test]
fn the_corpus_is_large_enough_to_mean_something() {
    let mut sizes: BTreeMap<Label, usize> = BTreeMap::new();
    for label in JUDGED.corpus.labels.values() {
        *sizes.entry(*label).or_default() += 1;
    }
    let (benign, campaigns): (Vec<_>, Vec<_>) =
        sizes.iter().partition(|(label, _)| matches!(label, Label::Benign(_)));
    let honest: usize = benign.iter().map(|(_, accounts)| **accounts).sum();
    assert!((400..=700).contains(&honest) && benign.len() >= 14, "{benign:?}");
    assert!(campaigns.len() >= 10 && campaigns.iter().all(|(_, size)| (15..=40).contains(*size)));
}

#[test]
fn the_corpus_is_the_same_on_every_run() {
    let again = corpus::generate(SEED);
    let first = &JUDGED.corpus;
    assert!(again.labels == first.labels);
    assert!(format!("{:?}", again.events) == format!("{:?}", first.events));
    // `Debug` hides texts.
    let texts = |events: &[Event]| -> Vec<Conversation> {
        let exchanges = events.iter().filter_map(|event| match event {
            Event::Exchange(observation) => Some(observation.conversation.clone()),
            _ => None,
        });
        exchanges.collect()
    };
    assert!(texts(&again.events) == texts(&first.events));
    assert!(again.events.is_sorted_by_key(Event::at_ms));
    assert!(corpus::generate(SEED + 1).labels != again.labels);
}

/// Why honest people were accused, for whoever has to find out.
fn print_accused(judged: &Judged) {
    for (id, label) in &judged.corpus.labels {
        let accused = judged.engine.account(id).is_some_and(|account| account.peak.1 > Tier::None);
        let (Label::Benign(population), true) = (label, accused) else { continue };
        println!("{population} {id}");
        for part in judged.last[id].contributions.iter().filter(|part| part.nats > 0.01) {
            let evidence = part.finding.evidence.as_deref().unwrap_or_default();
            println!("    {:16} {:.2} nats  {evidence}", part.finding.detector, part.nats);
        }
        for tie in judged.engine.explain_ties(id).iter().take(3) {
            println!("    tied to {} by {:.2}: {:?}", tie.account, tie.weight, tie.evidence);
        }
    }
}

fn print_table(outcomes: &BTreeMap<Label, Outcome>) {
    println!(
        "                     accounts exchanges   low  medium  high  served  peak (median, max)"
    );
    for (label, outcome) in outcomes {
        let name = match label {
            Label::Benign(name) | Label::Campaign(name) => name,
        };
        println!(
            "{name:20} {:8} {:9} {:5} {:7} {:5}   {:5.2}  {:.2} {:.2}",
            outcome.accounts,
            outcome.exchanges,
            outcome.at(Tier::Low),
            outcome.at(Tier::Medium),
            outcome.at(Tier::High),
            median(&outcome.served),
            median(&outcome.peaks),
            outcome.peaks.iter().copied().fold(0.0, f64::max)
        );
    }
    println!("default policy: {:?}", Policy::default().tiers);
}
