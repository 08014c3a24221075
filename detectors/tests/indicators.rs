//! What indicators of peers do to an account, and that they condemn nobody who only shares a network
//! or a client with whom a peer has found.

#![expect(clippy::expect_used, reason = "a test tells of a failure by panicking")]

mod corpus;

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use corpus::{Corpus, END_MS, Label};
use detectors::IndicatorKind::{Account, Address, Http2, Ja3, Ja3s, Ja4, Payment, Subnet, Token};
use detectors::engine::{Decision, Engine};
use detectors::facts::Facts;
use detectors::tier::Tier;
use detectors::{AccountId, Event, IndicatorHit, IndicatorKind, Observation, Profile};

/// Honest people.
static CORPUS: LazyLock<Corpus> = LazyLock::new(|| {
    let mut corpus = corpus::generate(6);
    corpus.labels.retain(|_, label| matches!(label, Label::Benign(_)));
    corpus.events.retain(|event| match event {
        Event::Exchange(one) => {
            one.account.as_ref().is_some_and(|id| corpus.labels.contains_key(id))
        }
        Event::Profile(profile) => corpus.labels.contains_key(&profile.account),
        Event::Organisation(declared) => corpus.labels.contains_key(&declared.account),
        Event::Enforcement(enforcement) => corpus.labels.contains_key(&enforcement.account),
        Event::Dns(_) | Event::Contact(_) | Event::ModelRelease(_) => true,
    });
    corpus
});

/// An engine to which all is told, with the hits that each exchange has.
fn told(hits: impl Fn(&Observation) -> Vec<IndicatorHit>) -> Engine {
    let facts = Arc::new(Facts::builtin().expect("shipped tables"));
    let mut engine = Engine::new(Arc::default(), facts, [7; 16]);
    for event in &CORPUS.events {
        if let Event::Exchange(observation) = event {
            let mut observation = observation.clone();
            observation.indicators = hits(&observation);
            engine.observe(&Event::Exchange(observation));
        } else {
            engine.observe(event);
        }
    }
    engine
}

static UNLISTED: LazyLock<Engine> = LazyLock::new(|| told(|_| Vec::new()));

fn listed(kinds: &[IndicatorKind], source: &str, weight: f64) -> Vec<IndicatorHit> {
    kinds.iter().map(|kind| IndicatorHit { kind: *kind, source: source.into(), weight }).collect()
}

/// How many accounts have reached a tier.
fn accused(engine: &Engine, tier: Tier) -> usize {
    engine.accounts().into_iter().filter(|held| held.peak.1 >= tier).count()
}

/// The last judgement of an account that appears after all others, with a card, a home and a client
/// of its own, and shows the same indicators in each of its exchanges.
fn newcomer(client: &'static str, hits: &[IndicatorHit]) -> Decision {
    let mut engine = UNLISTED.clone();
    let mut exchanges = CORPUS.events.iter().filter_map(|event| match event {
        Event::Exchange(observation) => Some(observation),
        _ => None,
    });
    let label = Label::Benign(client);
    let mut observation = exchanges
        .find(|one| one.account.as_ref().is_some_and(|id| CORPUS.labels[id] == label))
        .expect("somebody has this client")
        .clone();
    let id = AccountId::new("newcomer");
    observation.account = Some(id.clone());
    observation.ip = IpAddr::from([192, 0, 2, 7]);
    observation.indicators = hits.to_vec();
    engine.observe(&Event::Profile(Profile {
        at_ms: END_MS,
        account: id.clone(),
        organisation: None,
        created_s: i64::try_from(END_MS / 1000).ok(),
        payment: Some("card-of-the-newcomer".into()),
        bin: None,
        verified: false,
    }));
    for number in 0..5 {
        observation.id = format!("r-newcomer-{number}");
        observation.at_ms = END_MS + number * 60_000;
        engine.observe(&Event::Exchange(observation.clone()));
    }
    engine.judge_now(&id, END_MS + 300_000).expect("it is held")
}

#[test]
fn what_is_somebodys_own_speaks_and_the_rest_hardly() {
    let all = [Address, Subnet, Ja3, Ja3s, Ja4, Http2, Payment, Token, Account];
    for (kinds, weight, expected) in [
        (&[Address, Subnet][..], 1.0, Tier::None),
        // A browser that everybody has.
        (&[Ja3, Ja3s, Ja4, Http2], 1.0, Tier::None),
        (&[Address, Subnet, Ja3, Ja3s, Ja4, Http2], 1.0, Tier::None),
        (&[Payment], 1.0, Tier::Low),
        (&[Payment], 0.3, Tier::None),
        (&[Account], 1.0, Tier::Low),
        // It may be quoted.
        (&[Token], 1.0, Tier::Low),
        (&[Token], 0.5, Tier::None),
        (&[Payment, Address], 1.0, Tier::Medium),
        (&[Payment, Address], 0.7, Tier::Low),
        (&[Token, Address], 1.0, Tier::Medium),
        (&all, 1.0, Tier::Medium),
        (&all, 0.0, Tier::None),
        (&all, f64::NAN, Tier::None),
    ] {
        let judged = newcomer("web", &listed(kinds, "north", weight));
        assert_eq!(judged.tier, expected, "{kinds:?} at {weight}: {:.3}", judged.suspicion);
    }
    // Several peers at once: more, and still nobody's own sight.
    let both = [listed(&all, "north", 1.0), listed(&all, "south", 1.0)].concat();
    assert_eq!(newcomer("web", &both).tier, Tier::Medium);
}

#[test]
fn a_peer_without_weight_changes_nothing() {
    let all = [Address, Ja3, Ja4, Payment, Token, Account];
    let without = newcomer("web", &[]);
    let with = newcomer("web", &listed(&all, "north", 0.0));
    assert_eq!((with.suspicion, with.tier), (without.suspicion, without.tier));
    let named = |decision: &Decision| format!("{:?}", decision.contributions);
    assert_eq!(named(&with), named(&without));
}

#[test]
fn the_source_is_named_with_what_it_listed() {
    let hits =
        [listed(&[Payment, Address], "north", 1.0), listed(&[Address], "south", 0.5)].concat();
    let judged = newcomer("web", &hits);
    let hydra = judged.contributions.iter().find(|part| part.finding.detector == "hydra");
    let evidence = hydra.and_then(|part| part.finding.evidence.clone()).expect("it speaks");
    for part in [
        "shared with north's campaign: address, payment instrument",
        "with south's campaign: address",
    ] {
        assert!(evidence.contains(part), "{evidence}");
    }
}

#[test]
fn who_shares_a_network_or_a_client_with_the_listed_is_left_alone() {
    // A peer whose bundle holds everything that honest people here have in common with anybody.
    let engine = told(|_| listed(&[Address, Subnet, Ja3, Ja3s, Ja4, Http2], "north", 1.0));
    assert!(accused(&engine, Tier::None) > 400);
    for tier in [Tier::Low, Tier::Medium] {
        assert_eq!(accused(&engine, tier), accused(&UNLISTED, tier), "{tier:?}");
    }
}

#[test]
fn an_office_and_a_script_are_left_alone() {
    // Colleagues behind one address, and scripts with the SDK that everybody has.
    let lists = [
        (Label::Benign("corporate_nat"), listed(&[Address, Subnet], "north", 1.0)),
        (Label::Benign("batch_job"), listed(&[Ja3, Ja3s, Ja4, Http2], "north", 1.0)),
    ];
    let label = |id: &AccountId| CORPUS.labels[id];
    let engine = told(|observation| {
        let label = observation.account.as_ref().map(label);
        let list = lists.iter().find(|(listed, _)| Some(*listed) == label);
        list.map_or_else(Vec::new, |(_, hits)| hits.clone())
    });
    for (population, _) in &lists {
        let tiers = |engine: &Engine| -> Vec<Tier> {
            let accounts = engine.accounts().into_iter();
            accounts.filter(|held| label(&held.id) == *population).map(|held| held.peak.1).collect()
        };
        let none = vec![Tier::None; tiers(&UNLISTED).len()];
        assert!(none.len() > 5 && tiers(&engine) == none, "{population:?}");
    }
}

#[test]
fn a_token_that_everybody_quotes_is_soon_worth_nothing() {
    let engine = told(|_| listed(&[Token], "north", 1.0));
    assert_eq!(accused(&engine, Tier::Medium), 0);
    let (quoting, low) = (accused(&engine, Tier::None), accused(&engine, Tier::Low));
    println!("{low} of {quoting} were at low");
    assert!(low * 10 < quoting, "{low} of {quoting}");
}
