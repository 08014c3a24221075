//! Several gateways that tell one another what they have seen, and one that is restarted, remember
//! what one gateway would that has seen everything.

#![expect(clippy::expect_used, reason = "a test tells of a failure by panicking")]

mod corpus;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use corpus::numbers::Numbers;
use corpus::{END_MS, Label};
use detectors::engine::{AccountRow, Contribution, Engine};
use detectors::facts::Facts;
use detectors::tier::Tier;
use detectors::{AccountId, Event, IndicatorHit, IndicatorKind};

const GATEWAYS: usize = 3;
/// So few that no account's exchanges outrun what is remembered of them between two rounds.
const EXCHANGES_A_ROUND: usize = 12;

static FACTS: LazyLock<Arc<Facts>> =
    LazyLock::new(|| Arc::new(Facts::builtin().expect("shipped tables")));

/// A part of the corpus: ties of every kind, and quick.
static EVENTS: LazyLock<Vec<Event>> = LazyLock::new(|| {
    let kept = [
        "agency",
        "coding_agent",
        "university_class",
        "burst",
        "hydra",
        "coordination",
        "rare_resolver",
        "second_wave",
    ];
    let corpus = corpus::generate(5);
    let keeps = |id: &AccountId| match corpus.labels[id] {
        Label::Benign(name) | Label::Campaign(name) => kept.contains(&name),
    };
    let keep = |event: &Event| match event {
        Event::Exchange(observation) => observation.account.as_ref().is_some_and(keeps),
        Event::Profile(profile) => keeps(&profile.account),
        Event::Organisation(declared) => keeps(&declared.account),
        Event::Enforcement(enforcement) => keeps(&enforcement.account),
        Event::Dns(_) | Event::Contact(_) | Event::ModelRelease(_) => true,
    };
    // Every fifth exchange shows what a peer has listed.
    let listed = |(at, mut event): (usize, Event)| {
        if let Event::Exchange(observation) = &mut event
            && at % 5 == 0
        {
            let hit = |kind| IndicatorHit { kind, source: "peer".into(), weight: 0.9 };
            observation.indicators =
                [IndicatorKind::Address, IndicatorKind::Token].map(hit).to_vec();
        }
        event
    };
    corpus.events.iter().filter(|event| keep(event)).cloned().enumerate().map(listed).collect()
});

fn engine() -> Engine {
    Engine::new(Arc::default(), Arc::clone(&FACTS), [7; 16])
}

fn told(events: &[Event]) -> Engine {
    let mut engine = engine();
    for event in events {
        engine.observe(event);
    }
    engine
}

/// What is told to a gateway again after its restart, since accounts do not hold it.
fn is_general(event: &Event) -> bool {
    matches!(event, Event::Dns(_) | Event::Contact(_) | Event::ModelRelease(_))
}

fn ids(engine: &Engine) -> Vec<AccountId> {
    engine.accounts().iter().map(|account| account.id.clone()).collect()
}

fn assert_same_memory(one: &Engine, other: &Engine) {
    assert_eq!(ids(one), ids(other));
    for (one, other) in one.accounts().into_iter().zip(other.accounts()) {
        assert!(one.memory == other.memory, "{}: {:#?}\n{:#?}", one.id, one.memory, other.memory);
        assert!(one.memories == other.memories, "{}: detectors' memories differ", one.id);
    }
}

fn assert_clusters_are_indexed(engine: &Engine) {
    let mut clusters: BTreeMap<u64, Vec<AccountId>> = BTreeMap::new();
    for account in engine.accounts() {
        if let Some(label) = account.cluster {
            clusters.entry(label).or_default().push(account.id.clone());
        }
    }
    assert_eq!(engine.clusters().len(), clusters.len());
    for (label, members) in clusters {
        let indexed = engine.cluster_members(label);
        assert_eq!(indexed.into_iter().map(|held| held.id.clone()).collect::<Vec<_>>(), members);
    }
}

/// Gateways, and what each has last published of each account.
struct Fleet {
    gateways: Vec<Engine>,
    published: Vec<BTreeMap<AccountId, Vec<u8>>>,
    /// Rows of a gateway that was restarted, until they are taken back.
    rows: BTreeMap<AccountId, Vec<u8>>,
    numbers: Numbers,
}

impl Fleet {
    fn new() -> Self {
        let mut gateways = vec![engine(); GATEWAYS];
        gateways.iter_mut().for_each(|gateway| gateway.set_tracking(true));
        Self {
            gateways,
            published: vec![BTreeMap::new(); GATEWAYS],
            rows: BTreeMap::new(),
            numbers: Numbers::of(1, "fleet"),
        }
    }

    fn adopt(&mut self, id: &AccountId) {
        if let Some(row) = self.rows.remove(id) {
            self.gateways[1].adopt(AccountRow::decode(&row).expect("what was written"));
        }
    }

    /// Everybody publishes what has changed, and takes in what others have: in any order, and some
    /// of it again.
    fn round(&mut self) {
        let mut news = BTreeSet::new();
        for place in 0..GATEWAYS {
            let waiting = self.gateways[place].changed_len();
            let changed = self.gateways[place].take_changed(usize::MAX);
            assert_eq!(changed.len(), waiting);
            for id in changed {
                if place == 1 {
                    self.adopt(&id);
                }
                if let Some(own) = self.gateways[place].contribution(&id) {
                    self.published[place].insert(id.clone(), own.encode());
                }
                news.insert(id);
            }
        }
        let mut told: Vec<AccountId> = news.into_iter().collect();
        let again = told.len() / 4;
        told.extend_from_within(..again);
        for place in 0..GATEWAYS {
            self.numbers.shuffle(&mut told);
            for id in &told {
                if let Some(others) = self.others(place, id) {
                    self.gateways[place].take_in(&others);
                }
            }
        }
    }

    fn others(&mut self, place: usize, id: &AccountId) -> Option<Contribution> {
        let mut others: Vec<usize> = (0..GATEWAYS).filter(|other| *other != place).collect();
        self.numbers.shuffle(&mut others);
        let read = |other: &usize| {
            let bytes = self.published[*other].get(id)?;
            Some(Contribution::decode(bytes).expect("what was written"))
        };
        others.iter().filter_map(read).reduce(|mut one, other| {
            one.merge(&other);
            one
        })
    }

    /// The second gateway loses all that it holds but its accounts' rows.
    fn restart(&mut self, past: &[Event]) {
        let before = std::mem::replace(&mut self.gateways[1], engine());
        self.gateways[1].set_tracking(true);
        for account in before.accounts() {
            let row = before.row(&account.id).expect("it is held");
            assert!(AccountRow::decode(&row.encode()).expect("what was written") == row);
            self.rows.insert(account.id.clone(), row.encode());
        }
        for event in past.iter().filter(|event| is_general(event)) {
            self.gateways[1].observe(event);
        }
    }
}

#[test]
fn a_fleet_remembers_like_one_that_has_seen_everything() {
    let mut whole = told(&EVENTS);
    let mut fleet = Fleet::new();
    let mut exchanges = 0;
    for (at, event) in EVENTS.iter().enumerate() {
        if let Event::Exchange(_) = event {
            let place = fleet.numbers.below(GATEWAYS);
            fleet.gateways[place].observe(event);
            exchanges += 1;
            if exchanges % EXCHANGES_A_ROUND == 0 {
                fleet.round();
            }
        } else {
            for _ in 0..2 {
                fleet.gateways.iter_mut().for_each(|gateway| drop(gateway.observe(event)));
            }
        }
        if at == EVENTS.len() / 2 {
            fleet.round();
            fleet.restart(&EVENTS[..=at]);
        }
        // Some rows are taken back when others have told of their accounts, or new exchanges came.
        if at % 7 == 0
            && let Some(id) = fleet.rows.keys().next().cloned()
        {
            fleet.adopt(&id);
        }
    }
    while let Some(id) = fleet.rows.keys().next().cloned() {
        fleet.adopt(&id);
    }
    let mut rounds = 0;
    while fleet.gateways.iter().any(|gateway| gateway.changed_len() > 0) {
        fleet.round();
        rounds += 1;
    }
    assert!(rounds <= 3, "{rounds} rounds until nobody had news");
    let pivots = |engine: &Engine| engine.snapshot().pivots;
    for gateway in &fleet.gateways {
        assert_same_memory(gateway, &whole);
        assert_clusters_are_indexed(gateway);
    }
    for place in [0, 2] {
        assert!(pivots(&fleet.gateways[place]) == pivots(&whole), "shared values of {place}");
    }
    let held = |engine: &Engine| -> Vec<_> {
        let accounts = engine.accounts().into_iter();
        accounts.map(|held| (held.id.clone(), held.held, held.peak, held.cluster)).collect()
    };
    assert!(held(&fleet.gateways[0]).iter().filter(|held| held.3.is_some()).count() > 30);
    for place in 1..GATEWAYS {
        assert_eq!(held(&fleet.gateways[0]), held(&fleet.gateways[place]));
    }
    fleet.gateways.iter_mut().for_each(|gateway| gateway.judge_all(END_MS));
    let tiers = |engine: &Engine| -> Vec<_> {
        engine.accounts().into_iter().map(|held| (held.held.tier, held.cluster)).collect()
    };
    for place in [0, 2] {
        assert_eq!(tiers(&fleet.gateways[0]), tiers(&fleet.gateways[place]));
        for id in ids(&whole) {
            let suspicion =
                |engine: &mut Engine| engine.judge_now(&id, END_MS).map(|d| d.suspicion);
            let (mine, all) = (suspicion(&mut fleet.gateways[place]), suspicion(&mut whole));
            assert_eq!(mine, all, "{id}");
        }
    }
}

#[test]
fn a_restarted_gateway_remembers_like_one_that_went_on() {
    let whole = told(&EVENTS);
    let (before, after) = EVENTS.split_at(EVENTS.len() / 2);
    let first = told(before);
    let mut rows: Vec<AccountRow> = ids(&first).iter().filter_map(|id| first.row(id)).collect();
    Numbers::of(2, "rows").shuffle(&mut rows);
    let mut again = engine();
    before.iter().filter(|event| is_general(event)).for_each(|event| drop(again.observe(event)));
    let every = after.len() / rows.len();
    for (at, event) in after.iter().enumerate() {
        again.observe(event);
        if at % every == 0
            && let Some(row) = rows.pop()
        {
            again.adopt(row);
        }
    }
    rows.into_iter().for_each(|row| again.adopt(row));
    assert_same_memory(&again, &whole);
    assert_clusters_are_indexed(&again);
}

#[test]
fn a_row_others_news_and_new_exchanges_may_come_in_any_order() {
    // Ten exchanges of one account: before the restart, elsewhere, since.
    let of = |event: &&Event| match event {
        Event::Exchange(observation) => observation.account.clone(),
        _ => None,
    };
    let mut by_account: BTreeMap<AccountId, Vec<Event>> = BTreeMap::new();
    for event in EVENTS.iter() {
        if let Some(id) = of(&event) {
            by_account.entry(id).or_default().push(event.clone());
        }
    }
    let (id, all) = by_account.into_iter().find(|(_, all)| all.len() > 10).expect("a busy account");
    let all = &all[..10];
    let (before, elsewhere, since) = (&all[..3], &all[3..7], &all[7..]);
    let others = told(elsewhere).contribution(&id).expect("it was seen");
    let whole = told(all);
    let own = told(&[before, since].concat());
    for shared in [false, true] {
        let mut first = told(before);
        if shared {
            first.take_in(&others);
        }
        let row = first.row(&id).expect("it was seen");
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut again = engine();
            for step in order {
                match step {
                    0 => again.adopt(row.clone()),
                    1 => again.take_in(&others),
                    _ => since.iter().for_each(|event| drop(again.observe(event))),
                }
            }
            assert_same_memory(&again, &whole);
            let told = again.contribution(&id).expect("it was seen");
            let own = own.account(&id).expect("it was seen");
            assert!(told.memory == own.memory && told.memories == own.memories, "{order:?}");
        }
    }
}

#[test]
fn what_has_changed_is_taken_once_and_in_order() {
    let exchanges = || EVENTS.iter().filter(|event| matches!(event, Event::Exchange(_)));
    let account = |event: &Event| match event {
        Event::Exchange(observation) => observation.account.clone(),
        _ => None,
    };
    let mut engine = engine();
    exchanges().take(50).for_each(|event| drop(engine.observe(event)));
    assert_eq!(engine.changed_len(), 0, "nobody asked for it");
    engine.set_tracking(true);
    let mut expected: Vec<AccountId> = Vec::new();
    for event in exchanges().take(200) {
        engine.observe(event);
        let id = account(event).expect("an exchange of an account");
        if !expected.contains(&id) {
            expected.push(id);
        }
    }
    assert_eq!(engine.changed_len(), expected.len());
    let taken = [engine.take_changed(3), engine.take_changed(usize::MAX)].concat();
    assert_eq!(taken, expected);
    assert_eq!(engine.changed_len(), 0);
    let again = exchanges().next().expect("the corpus has exchanges");
    engine.observe(again);
    assert_eq!(engine.take_changed(9), [account(again).expect("an exchange of an account")]);
    // Others' news is none of its own.
    let mut others = engine.contribution(&expected[0]).expect("it has seen it");
    others.held = Default::default();
    engine.take_in(&others);
    assert_eq!(engine.changed_len(), 0);
    engine.observe(again);
    engine.set_tracking(false);
    assert_eq!((engine.changed_len(), engine.take_changed(9)), (0, Vec::new()));
}

#[test]
fn what_waits_to_be_taken_is_held() {
    let mut policy = detectors::policy::Policy::default();
    policy.memory.accounts_max = 20;
    let mut engine = Engine::new(Arc::new(policy), Arc::clone(&FACTS), [7; 16]);
    engine.set_tracking(true);
    for event in EVENTS.iter() {
        engine.observe(event);
        assert!(engine.changed_len() <= engine.accounts().len());
    }
    let (waiting, taken) = (engine.changed_len(), engine.take_changed(usize::MAX));
    assert!(taken.len() == waiting && taken.iter().all(|id| engine.holds(id)));
}

#[test]
fn what_others_have_seen_is_not_told_as_ones_own() {
    let mut seen = told(&EVENTS);
    let id = ids(&seen).pop().expect("somebody");
    let all = seen.contribution(&id).expect("it was seen");
    let mut other = engine();
    other.take_in(&all);
    assert!(other.holds(&id) && other.contribution(&id).is_none());
    // What is suspended here is seen here.
    other.observe(&Event::Enforcement(detectors::Enforcement {
        at_ms: END_MS,
        account: id.clone(),
        action: detectors::EnforcementAction::Suspend,
    }));
    let own = other.contribution(&id).expect("it was told here");
    assert_eq!((own.memory.requests, own.memory.suspended.last_ms), (0, END_MS));
    seen.take_in(&own);
    seen.take_in(&own);
    let account = seen.account(&id).expect("it is held");
    assert_eq!(account.memory.requests, all.memory.requests);
    assert_eq!(account.memory.suspended.last_ms, END_MS);
}

#[test]
fn what_is_not_whole_is_neither_stored_nor_told() {
    let all = told(&EVENTS);
    let id = ids(&all).into_iter().next().expect("an account");
    let of_it = |event: &&Event| matches!(event, Event::Exchange(seen) if seen.account.as_ref() == Some(&id));
    let seen: Vec<&Event> = EVENTS.iter().filter(of_it).collect();
    let (before, after) = seen.split_at(seen.len() / 2);
    let mut first = engine();
    before.iter().for_each(|event| drop(first.observe(event)));
    let row = first.row(&id).expect("it was seen");

    let mut again = engine();
    again.set_stored(true);
    again.set_tracking(true);
    again.hold(&id, row.held.tier, row.held.suspicion, row.held.at_ms, None);
    after.iter().for_each(|event| drop(again.observe(event)));
    assert!(!again.is_restored(&id));
    assert_eq!((again.row(&id), again.contribution(&id)), (None, None));
    assert_eq!(again.take_changed(9), []);
    again.adopt(row.clone());
    let whole = again.row(&id).expect("it is whole");
    let mut on = engine();
    seen.iter().for_each(|event| drop(on.observe(event)));
    assert_eq!(whole.memory, on.row(&id).expect("it was seen").memory);
    again.adopt(row);
    assert_eq!(again.row(&id).map(|row| row.memory), Some(whole.memory), "taken back once");
    assert_eq!(again.take_changed(9), std::slice::from_ref(&id));

    let fresh = AccountId::new("fresh");
    again.nothing_stored(&fresh);
    assert!(again.is_restored(&fresh));
}

#[test]
fn nobody_leaves_a_cluster_while_rows_are_taken_back() {
    for restoring in [true, false] {
        let mut engine = engine();
        let id = AccountId::new("alone");
        engine.set_restoring(restoring);
        engine.hold(&id, Tier::High, 0.8, END_MS, Some(7));
        let decision = engine.judge_now(&id, END_MS + 1).expect("it is held");
        assert_eq!((decision.tier, decision.cluster), (Tier::High, restoring.then_some(7)));
    }
}
