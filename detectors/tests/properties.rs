//! What must hold of the engine whatever it is told: sameness, merging, bounds, and no way to make
//! it panic or leave 0..1.

#![expect(clippy::expect_used, reason = "a test tells of a failure by panicking")]

mod corpus;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, LazyLock};

use corpus::{END_MS, Label};
use detectors::account;
use detectors::detector::Pace;
use detectors::dns::{DnsSeen, Transports};
use detectors::engine::{AccountRow, Contribution, Decision, Engine};
use detectors::facts::Facts;
use detectors::indicator::Hit;
use detectors::list::{LIST, Memories};
use detectors::pivot::Family as PivotFamily;
use detectors::policy::Policy;
use detectors::seen::{Answered, ClientSeen, Seen, TextSeen};
use detectors::sketch::Merge;
use detectors::snapshot::{ENCODED_BYTES_MAX, RowError, Snapshot, VERSION, WrongVersion};
use detectors::text::FAMILIES;
use detectors::tier::{Held, Tier};
use detectors::{
    AccountId, Answer, Conversation, DnsContact, DnsLookup, DnsTransport, Enforcement,
    EnforcementAction, Event, FamilySet, Finish, Format, HeaderField, Http2Capture, HttpCapture,
    HttpVersion, IndicatorHit, IndicatorKind, ModelRelease, Network, NetworkKind, Observation,
    OrganisationId, Profile, Role, Sampling, Text, TlsCapture, Turn, Usage,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const KEY: [u8; 16] = [7; 16];

static FACTS: LazyLock<Arc<Facts>> =
    LazyLock::new(|| Arc::new(Facts::builtin().expect("shipped tables")));

/// A part of the corpus: enough for ties of every kind, and quick.
static EVENTS: LazyLock<Vec<Event>> = LazyLock::new(|| {
    let kept = [
        "agency",
        "batch_job",
        "coding_agent",
        "university_class",
        "vpn",
        "web",
        "burst",
        "hydra",
        "preambles",
        "coordination",
        "rare_resolver",
        "second_wave",
        "template",
    ];
    let corpus = corpus::generate(3);
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
    corpus.events.iter().filter(|event| keep(event)).cloned().collect()
});

/// Addresses that exchanges of the corpus come from.
static HOMES: LazyLock<Vec<IpAddr>> = LazyLock::new(|| {
    let ips = EVENTS.iter().filter_map(|event| match event {
        Event::Exchange(observation) => Some(observation.ip),
        _ => None,
    });
    ips.step_by(50).collect()
});

fn engine(policy: Policy) -> Engine {
    Engine::new(Arc::new(policy), Arc::clone(&FACTS), KEY)
}

fn told(policy: Policy, events: &[Event]) -> (Engine, Vec<Decision>) {
    let mut engine = engine(policy);
    let decisions = events.iter().filter_map(|event| engine.observe(event)).collect();
    (engine, decisions)
}

/// Two engines with half of the exchanges each; both know everything else.
fn told_apart(events: &[Event]) -> (Engine, Engine) {
    let (mut left, mut right) = (engine(Policy::default()), engine(Policy::default()));
    let mut exchanges = 0;
    for event in events {
        let exchange = matches!(event, Event::Exchange(_));
        exchanges += usize::from(exchange);
        if !exchange || exchanges % 2 == 0 {
            left.observe(event);
        }
        if !exchange || exchanges % 2 == 1 {
            right.observe(event);
        }
    }
    (left, right)
}

fn judged(engine: &mut Engine) -> Vec<Decision> {
    let ids: Vec<AccountId> = engine.accounts().iter().map(|account| account.id.clone()).collect();
    ids.iter().filter_map(|id| engine.judge_now(id, END_MS)).collect()
}

#[test]
fn a_snapshot_taken_back_judges_on_as_if_nothing_had_happened() {
    let (before, after) = EVENTS.split_at(EVENTS.len() / 2);
    let (mut one, _) = told(Policy::default(), before);
    let saved = one.snapshot();
    let kept = serde_json::to_string(&saved).expect("a snapshot is plain data");
    let mut other = engine(Policy::default());
    other.restore(serde_json::from_str(&kept).expect("what was written")).expect("this version");
    assert!(other.snapshot() == saved);
    for event in after {
        one.observe(event);
        other.observe(event);
    }
    let (one, other) = (judged(&mut one), judged(&mut other));
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(&other) {
        let apart = (one.suspicion - other.suspicion).abs();
        assert!(one.account == other.account && apart < 1e-9, "{one:?}\n{other:?}");
    }
    let found = VERSION + 1;
    let newer = Snapshot { version: found, ..saved };
    assert_eq!(engine(Policy::default()).restore(newer), Err(WrongVersion { found }));
}

#[test]
fn the_same_events_give_the_same_judgement() {
    let (one, first) = told(Policy::default(), &EVENTS);
    let (other, second) = told(Policy::default(), &EVENTS);
    assert!(first.len() > 1000);
    assert!(format!("{first:?}") == format!("{second:?}"));
    assert!(format!("{:?}", one.accounts()) == format!("{:?}", other.accounts()));
    assert_eq!((one.memory_bytes(), one.evicted()), (other.memory_bytes(), other.evicted()));
    let ties = |engine: &Engine| -> Vec<String> {
        let ids = engine.accounts();
        ids.iter().map(|account| format!("{:?}", engine.explain_ties(&account.id))).collect()
    };
    assert!(ties(&one) == ties(&other));
}

/// The events with prompts of one word: a prompt stays itself, but nothing is a frame around it.
fn unframed() -> Vec<Event> {
    let joined = |turn: &Turn| Turn {
        text: Text::new(turn.text.as_str().replace([' ', '\n'], "_")),
        ..turn.clone()
    };
    let unframed = |event: &Event| match event {
        Event::Exchange(observation) => {
            let mut observation = observation.clone();
            let turns = &mut observation.conversation.turns;
            *turns = turns.iter().map(joined).collect();
            Event::Exchange(observation)
        }
        other => other.clone(),
    };
    EVENTS.iter().map(unframed).collect()
}

fn assert_order_of_merging_is_free(events: &[Event]) {
    let (left, right) = told_apart(events);
    let (mut one, mut other) = (left.clone(), right.clone());
    one.merge(&right);
    other.merge(&left);
    one.judge_all(END_MS);
    other.judge_all(END_MS);
    let state = |engine: &Engine| -> Vec<String> {
        let accounts = engine.accounts();
        let kept = accounts.iter().map(|a| (&a.id, &a.memory, &a.memories, a.held));
        kept.map(|kept| format!("{kept:?}")).collect()
    };
    let (one, other) = (state(&one), state(&other));
    let differ = one.iter().zip(&other).filter(|(one, other)| one != other).count();
    assert_eq!((differ, one.len()), (0, other.len()), "accounts differ");
}

/// How far the judgement of two merged halves is from the whole's, account by account.
fn apart(events: &[Event]) -> Vec<(AccountId, f64)> {
    let (mut whole, _) = told(Policy::default(), events);
    let (mut merged, right) = told_apart(events);
    merged.merge(&right);
    // What is still held of earlier judgements is each engine's own story, which halves do not
    // share: compared is what the memories say now.
    let (whole, merged) = (judged(&mut whole), judged(&mut merged));
    assert_eq!(whole.len(), merged.len());
    let each = whole.into_iter().zip(merged).map(|(whole, merged)| {
        assert_eq!(whole.account, merged.account);
        let apart = (whole.suspicion - merged.suspicion).abs();
        (whole.account, apart)
    });
    each.collect()
}

#[test]
fn merging_without_frames_is_the_same_in_both_orders() {
    assert_order_of_merging_is_free(&unframed());
}

#[test]
fn merging_is_the_same_in_both_orders() {
    assert_order_of_merging_is_free(&EVENTS);
}

#[test]
fn two_halves_without_frames_judge_like_the_whole() {
    let apart = apart(&unframed());
    let differ: Vec<_> = apart.iter().filter(|(_, apart)| *apart > 1e-9).collect();
    assert!(differ.is_empty(), "{} of {}: {differ:?}", differ.len(), apart.len());
}

#[test]
fn two_halves_judge_like_the_whole() {
    let apart = apart(&EVENTS);
    let differ: Vec<_> = apart.iter().filter(|(_, apart)| *apart > 1e-9).collect();
    assert!(differ.is_empty(), "{} of {}: {differ:?}", differ.len(), apart.len());
}

#[test]
fn memory_stays_within_its_bounds() {
    let mut policy = Policy::default();
    (policy.memory.accounts_max, policy.memory.pivots_max) = (1000, 1000);
    let mut engine = engine(policy);
    let mut sample = EVENTS.iter().filter_map(|event| match event {
        Event::Exchange(observation) => Some((**observation).clone()),
        _ => None,
    });
    let mut observation = sample.next().expect("the corpus has exchanges");
    let mut halfway = (0, 0);
    for number in 0..20_000u32 {
        let at_ms = corpus::BEGIN_MS + u64::from(number) * 1000;
        let id = AccountId::new(format!("passer-by-{number}"));
        let ip = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
        observation.id = format!("r{number:016x}");
        (observation.at_ms, observation.ip) = (at_ms, ip);
        observation.account = Some(id.clone());
        observation.conversation = Conversation {
            system: Text::new(format!("You serve the house with the long name {}", name(number))),
            turns: vec![turn(Role::User, format!("What would {} do all day long?", name(number)))],
            ..Conversation::default()
        };
        if number % 4 == 0 {
            engine.observe(&Event::Profile(Profile {
                at_ms,
                account: id,
                organisation: None,
                created_s: Some(i64::from(number)),
                payment: Some(format!("card-{number}").into()),
                bin: Some(number),
                verified: false,
            }));
            engine.observe(&Event::Dns(DnsLookup {
                at_ms,
                ip,
                host: None,
                client: None,
                transport: DnsTransport::Doh,
                server: IpAddr::from([10, 0, 0, 1]),
                provider: None,
                name: None,
            }));
        }
        if number % 4 == 0 {
            // A NAT with many hosts that contact much.
            for contact in 0..60u32 {
                engine.observe(&Event::Contact(DnsContact {
                    at_ms: at_ms + u64::from(contact % 3) * corpus::DAY,
                    ip,
                    host: Some(u64::from(contact % 20).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                    client: None,
                    destination: IpAddr::from((number * 64 + contact).to_be_bytes()),
                    port: 443,
                }));
            }
        }
        engine.observe(&Event::Exchange(Box::new(observation.clone())));
        if number % 500 == 0 {
            assert!(engine.accounts().len() <= 1000);
        }
        if number == 10_000 {
            halfway = engine.memory_bytes();
        }
    }
    let (accounts, pivots) = engine.memory_bytes();
    let held = engine.accounts().len() as u64;
    assert!((500..=1000).contains(&held), "{held}");
    assert_eq!(engine.evicted().0 + held, 20_000, "each account is held or counted as let go");
    assert!(engine.evicted().1 > 20_000);
    assert!(
        accounts <= halfway.0 * 2 && pivots <= halfway.1 * 2,
        "{halfway:?} {accounts} {pivots}"
    );
    assert!(accounts < 8 << 20 && pivots < 8 << 20, "{accounts} {pivots}");
}

/// A name without digits, because digits are left out of what is compared.
fn name(number: u32) -> String {
    number.to_string().bytes().map(|digit| char::from(digit - b'0' + b'k')).collect()
}

#[test]
fn a_detector_switched_off_is_silent() {
    for entry in LIST {
        let mut policy = Policy::default();
        if let Some(settings) = policy.detector.get_mut(entry.name) {
            settings.enabled = false;
        }
        // A part of the events is enough to see that it says nothing.
        let (mut engine, decisions) = told(policy, &EVENTS[..EVENTS.len() / 5]);
        let judgements = judged(&mut engine);
        assert!(!decisions.is_empty());
        for decision in decisions.iter().chain(&judgements) {
            let named = decision.contributions.iter().any(|c| c.finding.detector == entry.name);
            assert!(!named, "{}", entry.name);
            assert_eq!(decision.contributions.len(), LIST.len() - 1);
        }
    }
}

#[test]
fn a_lower_weight_raises_nobody() {
    let (mut base, _) = told(Policy::default(), &EVENTS);
    let before = judged(&mut base);
    for entry in LIST {
        let mut policy = Policy::default();
        if let Some(settings) = policy.detector.get_mut(entry.name) {
            settings.weight = Some(entry.weight / 2.0);
        }
        let lower = |decision: &Decision| {
            let parts = decision.contributions.iter().map(|part| part.finding.clone()).collect();
            let parts = detectors::fusion::contributions(parts, policy.fusion.k, |name| {
                policy.weight(name)
            });
            detectors::fusion::suspicion(&parts)
        };
        for decision in &before {
            assert!(lower(decision) <= decision.suspicion + 1e-12, "{}", entry.name);
        }
    }
    // The same by way of an engine, for the heaviest and the one that ties weigh in most.
    for name in ["fingerprint", "hydra"] {
        let mut policy = Policy::default();
        if let Some(settings) = policy.detector.get_mut(name) {
            settings.weight = Some(0.01);
        }
        let (mut lowered, _) = told(policy, &EVENTS);
        for (before, after) in before.iter().zip(judged(&mut lowered)) {
            assert_eq!(before.account, after.account);
            assert!(after.suspicion <= before.suspicion + 1e-12, "{name}: {}", after.account);
        }
    }
}

#[test]
fn who_is_allowed_is_not_suspected() {
    let (mut engine, _) = told(Policy::default(), &EVENTS);
    let worst = judged(&mut engine).into_iter().max_by(|a, b| a.suspicion.total_cmp(&b.suspicion));
    let worst = worst.expect("somebody was judged");
    assert!(worst.suspicion > 0.5);
    let mut policy = Policy::default();
    policy.allow.accounts.push(worst.account.as_str().to_owned());
    let (mut engine, decisions) = told(policy, &EVENTS);
    let now = engine.judge_now(&worst.account, END_MS).expect("it is still observed");
    assert_eq!(now.suspicion, 0.0);
    let own = decisions.iter().filter(|decision| decision.account == worst.account);
    assert!(own.clone().count() > 5 && own.clone().all(|decision| decision.suspicion == 0.0));
    // Others who are tied to it are still seen.
    assert!(judged(&mut engine).iter().any(|decision| decision.suspicion > 0.5));
}

#[test]
fn who_is_of_an_allowed_organisation_is_not_suspected() {
    let organisation = OrganisationId::new("org-allowed");
    let events: Vec<Event> = EVENTS
        .iter()
        .map(|event| match event {
            // Whoever has no organisation of his own is of the allowed one.
            Event::Profile(profile) => Event::Profile(Profile {
                organisation: profile.organisation.clone().or(Some(organisation.clone())),
                ..profile.clone()
            }),
            other => other.clone(),
        })
        .collect();
    let mut policy = Policy::default();
    policy.allow.organisations.push(organisation.as_str().to_owned());
    let (mut engine, _) = told(policy, &events);
    let free = |id: &AccountId| {
        events.iter().any(|event| match event {
            Event::Profile(profile) => {
                profile.account == *id && profile.organisation.as_ref() == Some(&organisation)
            }
            _ => false,
        })
    };
    let own: Vec<_> = judged(&mut engine).into_iter().filter(|d| free(&d.account)).collect();
    let suspected = own.iter().filter(|decision| decision.suspicion > 0.0).count();
    assert_eq!((suspected, own.len() > 100), (0, true));
}

fn turn(role: Role, text: String) -> Turn {
    Turn { role, text: Text::new(text), tool_calls: Vec::new(), attachments: 0 }
}

/// Texts that are odd but are texts: other scripts, joiners, private use, no end.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("\u{feff}\u{200b}\u{e0100}\u{202e}\0\r\n\n\n".to_owned()),
        Just("\u{10ffff}\u{fffd}".repeat(700)),
        Just("0 1. 2! 3? ".repeat(400)),
        "\\PC{0,60}",
        any::<String>(),
        "[a-z0-9 .\n]{0,200}",
    ]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>(), 0u64..10_000]
}

fn real() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(-0.0),
        Just(f64::MIN_POSITIVE),
        any::<f64>()
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|ip| IpAddr::from(ip.to_be_bytes())),
        any::<u128>().prop_map(|ip| IpAddr::V6(Ipv6Addr::from(ip))),
        (0u8..4).prop_map(|last| IpAddr::from([10, 0, 0, last])),
        Just(IpAddr::from([0u8; 16])),
    ]
}

fn time(most: u64) -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(most), 0..=most, 1_788_739_200_000u64..1_789_000_000_000]
}

fn whose() -> impl Strategy<Value = AccountId> {
    prop_oneof!["[a-e]", any::<String>()].prop_map(AccountId::new)
}

fn tls() -> impl Strategy<Value = TlsCapture> {
    let ja3 = prop_oneof![
        any::<String>(),
        "[0-9,-]{0,60}",
        Just("771,4865-4866-4867,0-11-10,29-23,0".to_owned())
    ];
    let ja4 = prop_oneof![any::<String>(), Just("t13d1516h2_8daaf6152771_d8a2da3f94cd".to_owned())];
    (ja3, proptest::option::of(text()), ja4, proptest::collection::vec(text(), 0..3), any::<bool>())
        .prop_map(|(ja3, ja3s, ja4, alpn, grease)| TlsCapture {
            ja3,
            ja3s,
            ja4,
            alpn,
            grease,
            ..TlsCapture::default()
        })
}

fn http() -> impl Strategy<Value = HttpCapture> {
    let name = prop_oneof![
        Just("user-agent".to_owned()),
        Just("Content-Type".to_owned()),
        Just("x-stainless-lang".to_owned()),
        text()
    ];
    let value = prop_oneof![
        Just("application/grpc".to_owned()),
        Just("Mozilla/5.0 Chrome/136.0.0.0 Safari/537.36".to_owned()),
        Just("Mozilla/5.0 Chrome/99999999999999999999.0".to_owned()),
        text()
    ];
    let headers = proptest::collection::vec((name, proptest::option::of(value)), 0..6);
    let settings = proptest::collection::vec((any::<u16>(), any::<u32>()), 0..5);
    let h2 = proptest::option::of((settings, any::<u32>(), text()));
    (headers, h2).prop_map(|(headers, h2)| HttpCapture {
        version: if h2.is_some() { HttpVersion::Http2 } else { HttpVersion::Http10 },
        method: String::new(),
        path: String::new(),
        headers: headers
            .into_iter()
            .map(|(name, value)| HeaderField { name: name.into(), value: value.map(Into::into) })
            .collect(),
        h2: h2.map(|(settings, window_update, pseudo)| Http2Capture {
            settings,
            window_update,
            pseudo,
            ..Http2Capture::default()
        }),
    })
}

fn conversation() -> impl Strategy<Value = Conversation> {
    let role =
        prop_oneof![Just(Role::User), Just(Role::Assistant), Just(Role::Tool), Just(Role::System)];
    let turns = proptest::collection::vec((role, text()).prop_map(|(r, t)| turn(r, t)), 0..4);
    let sampling = (
        proptest::option::of(number()),
        proptest::option::of(real()),
        proptest::option::of(real()),
        proptest::option::of(any::<u32>()),
    );
    let sampling = sampling.prop_map(|(max_tokens, temperature, top_p, n)| Sampling {
        max_tokens,
        temperature,
        top_p,
        n,
        ..Sampling::default()
    });
    (proptest::option::of(text()), text(), turns, sampling).prop_map(
        |(model, system, turns, sampling)| Conversation {
            model,
            system: Text::new(system),
            turns,
            tools: Vec::new(),
            sampling,
        },
    )
}

fn indicators() -> impl Strategy<Value = Vec<IndicatorHit>> {
    let kind = prop_oneof![
        Just(IndicatorKind::Subnet),
        Just(IndicatorKind::Ja3s),
        Just(IndicatorKind::Ja4),
        Just(IndicatorKind::Http2),
        Just(IndicatorKind::Payment),
        Just(IndicatorKind::Token),
        Just(IndicatorKind::Account)
    ];
    let hit = (kind, text(), real()).prop_map(|(kind, source, weight)| IndicatorHit {
        kind,
        source: source.into(),
        weight,
    });
    proptest::collection::vec(hit, 0..20)
}

fn observation(most_ms: u64) -> impl Strategy<Value = Observation> {
    let kind = prop_oneof![
        Just(NetworkKind::Unlisted),
        Just(NetworkKind::Hosting),
        Just(NetworkKind::Vpn),
        Just(NetworkKind::Proxy),
        Just(NetworkKind::Tor)
    ];
    let who = (text(), time(most_ms), proptest::option::of(whose()), address(), any::<u32>(), kind);
    let usage = proptest::option::of((number(), number()));
    let answer = (any::<u16>(), usage, number(), number(), indicators());
    (who, proptest::option::of(tls()), http(), conversation(), answer).prop_map(
        |((id, at_ms, account, ip, asn, kind), tls, http, conversation, answer)| {
            let (status, usage, duration_ms, refusal_chars, indicators) = answer;
            Observation {
                id,
                at_ms,
                account,
                organisation: None,
                ip,
                network: Network { asn, name: None, kind },
                route: "".into(),
                tls: tls.map(Arc::new),
                http,
                format: Format::Unknown,
                foreign_marks: 0,
                indicators,
                conversation,
                answer: Answer {
                    status,
                    usage: usage.map(|(prompt_tokens, completion_tokens)| Usage {
                        prompt_tokens,
                        completion_tokens,
                        ..Usage::default()
                    }),
                    finish: Some(Finish::Filtered),
                    duration_ms,
                    refusal_chars,
                    ..Answer::default()
                },
            }
        },
    )
}

/// What sensors tell, of hosts behind few addresses or many.
fn dns_event(at_ms: BoxedStrategy<u64>, ip: BoxedStrategy<IpAddr>) -> impl Strategy<Value = Event> {
    let transport = prop_oneof![
        Just(DnsTransport::Udp),
        Just(DnsTransport::Dot),
        Just(DnsTransport::Doq),
        Just(DnsTransport::Doh)
    ];
    let host = proptest::option::of(prop_oneof![0u64..40, any::<u64>()]);
    let client = proptest::option::weighted(0.3, any::<bool>());
    let provider =
        proptest::option::of(prop_oneof![Just("cloudflare".to_owned()), "[a-d]", any::<String>()]);
    let server = prop_oneof![(0u8..6).prop_map(|last| IpAddr::from([9, 9, 9, last])), address()];
    (at_ms, ip, host, client, server, proptest::option::weighted(0.6, (transport, provider)))
        .prop_map(|(at_ms, ip, host, client, server, lookup)| match lookup {
            Some((transport, provider)) => Event::Dns(DnsLookup {
                at_ms,
                ip,
                host,
                client,
                transport,
                server,
                provider: provider.map(Into::into),
                name: None,
            }),
            None => Event::Contact(DnsContact {
                at_ms,
                ip,
                host,
                client,
                destination: server,
                port: 443,
            }),
        })
}

fn event(most_ms: u64) -> impl Strategy<Value = Event> {
    let profile = (
        time(most_ms),
        whose(),
        proptest::option::of(text()),
        proptest::option::of(any::<i64>()),
        proptest::option::of(text()),
        proptest::option::of(any::<u32>()),
    );
    let profile = profile.prop_map(|(at_ms, account, organisation, created_s, payment, bin)| {
        Event::Profile(Profile {
            at_ms,
            account,
            organisation: organisation.map(OrganisationId::new),
            created_s,
            payment: payment.map(Into::into),
            bin,
            verified: false,
        })
    });
    let dns = dns_event(time(most_ms).boxed(), address().boxed());
    let release = (time(most_ms), text()).prop_map(|(at_ms, model)| {
        Event::ModelRelease(ModelRelease { at_ms, model: model.into() })
    });
    let suspended = (time(most_ms), whose()).prop_map(|(at_ms, account)| {
        Event::Enforcement(Enforcement { at_ms, account, action: EnforcementAction::Suspend })
    });
    prop_oneof![
        8 => observation(most_ms).prop_map(|observation| Event::Exchange(Box::new(observation))),
        2 => profile,
        3 => dns,
        1 => release,
        1 => suspended,
    ]
}

/// People who have nothing in common, each at a place of their own or behind one of a few NATs, and
/// who ask now and then.
fn strangers() -> impl Strategy<Value = Vec<(u8, u64)>> {
    let first = corpus::BEGIN_MS;
    proptest::collection::vec((0u8..12, first..first + 5 * corpus::DAY), 1..30)
}

/// What sensors tell of the places of [`strangers`].
fn told_of_strangers() -> impl Strategy<Value = Vec<Event>> {
    let first = corpus::BEGIN_MS;
    let at_ms = (first..first + 5 * corpus::DAY).boxed();
    let place = (0u8..14).prop_map(place).boxed();
    proptest::collection::vec(dns_event(at_ms, place), 0..120)
}

fn place(number: u8) -> IpAddr {
    IpAddr::from([10, number, number, 1])
}

/// Exchanges of strangers: everything that could tie them but their places and their DNS is another
/// one each time.
fn exchanges_of_strangers(asked: &[(u8, u64)]) -> Vec<Event> {
    let Event::Exchange(like) = exchange_of("a") else { return Vec::new() };
    let exchange = |(number, (who, at_ms)): (usize, &(u8, u64))| {
        let unlike = name(number as u32 * 7919 + 1_000_000);
        let mut observation = (*like).clone();
        observation.id = format!("r{number}");
        observation.at_ms = *at_ms;
        observation.account = Some(AccountId::new(format!("stranger-{who}")));
        observation.ip = place(if *who < 8 { *who } else { 8 + who % 2 });
        observation.indicators = Vec::new();
        observation.conversation = Conversation {
            model: Some(format!("model of {}", name(u32::from(*who) + 10))),
            turns: vec![turn(Role::User, format!("{unlike} went to {unlike} and said {unlike}?"))],
            ..Conversation::default()
        };
        Event::Exchange(Box::new(observation))
    };
    asked.iter().enumerate().map(exchange).collect()
}

fn assert_sound(events: &[Event], now_ms: u64) {
    let mut engine = engine(Policy::default());
    let mut decisions: Vec<Decision> =
        events.iter().filter_map(|event| engine.observe(event)).collect();
    let ids: Vec<AccountId> = engine.accounts().iter().map(|account| account.id.clone()).collect();
    decisions.extend(ids.iter().filter_map(|id| engine.judge_now(id, now_ms)));
    engine.judge_all(now_ms);
    let copy = engine.clone();
    engine.merge(&copy);
    for id in &ids {
        assert!(engine.explain_ties(id).iter().all(|tie| tie.weight.is_finite()));
    }
    for decision in &decisions {
        assert!((0.0..=1.0).contains(&decision.suspicion), "{}", decision.suspicion);
        for part in &decision.contributions {
            let finding = &part.finding;
            assert!((0.0..=1.0).contains(&finding.strength), "{finding:?}");
            assert!((0.0..=1.0).contains(&finding.confidence), "{finding:?}");
            assert!(part.nats.is_finite() && part.nats >= 0.0, "{part:?}");
        }
    }
}

#[test]
fn the_end_of_time_does_not_make_it_panic() {
    let mut events = Vec::new();
    for event in EVENTS.iter().filter(|event| matches!(event, Event::Exchange(_))).take(40) {
        let Event::Exchange(observation) = event else { continue };
        let mut observation = observation.clone();
        observation.at_ms = u64::MAX;
        observation.account = Some(AccountId::new("late"));
        events.push(Event::Exchange(observation));
    }
    assert_sound(&events, u64::MAX);
    assert_sound(&events, 0);
}

#[test]
fn rows_of_others_are_refused() {
    let written = row(&[], &[]).encode();
    let refused =
        |bytes: &[u8]| AccountRow::decode(bytes).expect_err("it is not as it was written");
    assert_eq!(refused(&[]), RowError::Version { found: None });
    let (found, newer) = (VERSION as u8 + 1, [&[VERSION as u8 + 1], &written[1..]].concat());
    assert_eq!(refused(&newer), RowError::Version { found: Some(found) });
    assert_eq!(refused(&[&written[..], &[0, 0]].concat()), RowError::Trailing { bytes: 2 });
    let bytes = ENCODED_BYTES_MAX + 1;
    assert_eq!(refused(&vec![VERSION as u8; bytes]), RowError::TooLong { bytes });
    assert!(matches!(refused(&written[..written.len() - 1]), RowError::Damaged(_)));
    let told = Contribution { peak: (f64::NAN, Tier::None), ..contribution(&[]) };
    assert_eq!(Contribution::decode(&told.encode()), Err(RowError::Suspicion));
}

fn quick(cases: u32) -> ProptestConfig {
    // The same cases on every run: a failure can be had again.
    let (failure_persistence, rng_seed) = (None, RngSeed::Fixed(1));
    ProptestConfig { cases, failure_persistence, rng_seed, ..ProptestConfig::default() }
}

/// An exchange as detectors see it, from a small world, so that keys meet.
///
/// An account remembers so many frames that `frames` of them fit or do not.
fn seen(frames: u64) -> impl Strategy<Value = Seen> {
    let keys = proptest::collection::vec(0u64..12, 12);
    let flags = proptest::collection::vec(any::<bool>(), 12);
    let share = prop_oneof![Just(0.0f32), Just(1.0), 0.0f32..1.0];
    let text = (share.clone(), 0u8..14, share, 0u32..9, 0usize..FAMILIES);
    (keys, flags, text, 0u64..400_000, 0u32..9_000, 0u64..u64::from(u32::MAX) * 1000).prop_map(
        move |(
            keys,
            flags,
            (near, category, margin, invisible, family),
            near_ms,
            length,
            far_ms,
        )| {
            let maybe = |at: usize| flags[at].then_some(keys[at]);
            let mut text = TextSeen {
                archetype: flags[0].then_some((category, near)),
                topic: flags[1].then_some((category, margin)),
                safety: flags[2].then_some((category, margin)),
                invisible,
                ..TextSeen::default()
            };
            text.phrases[family] = near;
            text.system_phrases[family] = margin;
            let families = FamilySet::from_bits(1 << keys[11]);
            Seen {
                // Mostly one morning, sometimes any time at all.
                at_ms: if keys[10] == 0 { far_ms } else { 1_788_739_200_000 + near_ms * 100 },
                // Names are unique, so that two records of one name are the same exchange.
                id: (near_ms << 13) as u32 ^ far_ms as u32,
                address: keys[0],
                subnet: keys[1],
                network: [NetworkKind::Hosting, NetworkKind::Tor][usize::from(flags[3])],
                rig: keys[2],
                shape: keys[3],
                prompt: maybe(4).map_or(0, |key| key as u32 + 1),
                frames: [maybe(5), maybe(6)]
                    .map(|key| key.map_or(0, |key| (key % frames) as u32 + 1)),
                settings: keys[8] as u32,
                system: maybe(7),
                dns: maybe(9).map(|key| DnsSeen {
                    address: keys[0],
                    hosts: 1 + (keys[1] % 4) as u16,
                    encrypted: u16::from(flags[2]),
                    share: 500 * (keys[2] % 3) as u16,
                    transports: Transports::of(DnsTransport::Doh),
                    values: vec![
                        (PivotFamily::Resolver, key, 1_000),
                        (PivotFamily::Unnamed, keys[4], 500),
                        (PivotFamily::Unnamed, keys[4] + 1 + keys[5], 600),
                    ],
                }),
                hits: maybe(5).map_or_else(Vec::new, |key| {
                    let kind =
                        [IndicatorKind::Address, IndicatorKind::Token][usize::from(flags[2])];
                    let at_s = (near_ms / 9) as u32;
                    vec![(
                        Hit::new(kind, key, keys[6] as u32, at_s, f64::from(margin)),
                        "peer".into(),
                    )]
                }),
                prompt_chars: length,
                history: flags[4],
                tool_turn: flags[5],
                readable: flags[6],
                max_tokens: flags[7].then_some(u64::from(length)),
                samples: 1 + u32::from(flags[8]),
                released_h: flags[10].then_some(3.0),
                text,
                client: ClientSeen {
                    strength: near,
                    http2: margin,
                    grpc: flags[0],
                    bulk_window: flags[1],
                    families,
                    ..ClientSeen::default()
                },
                ..Seen::default()
            }
        },
    )
}

fn remembered(seen: &[Seen]) -> (account::Memory, Memories) {
    let (mut memory, mut memories) = (account::Memory::default(), Memories::default());
    for one in seen {
        memory.note(one);
        memory.note_topic(one);
        memories.note(one, Pace::Inline);
        memories.note(one, Pace::Background);
        // Some answers never come.
        if one.readable {
            let answered = Answered { duration_ms: one.prompt_chars, refused: one.history };
            memory.note_answer(one.id, &answered);
            memories.note_answer(&answered);
        }
    }
    (memory, memories)
}

fn contribution(seen: &[Seen]) -> Contribution {
    let (memory, memories) = remembered(seen);
    Contribution {
        account: AccountId::new("a"),
        memory,
        memories,
        held: Held::default(),
        peak: (0.5, Tier::Low),
        first: [None, Some((1, 2)), None, None, None],
        cluster: Some(u64::MAX),
    }
}

/// An account that has been seen here and elsewhere, as it is stored.
fn row(here: &[Seen], elsewhere: &[Seen]) -> AccountRow {
    let id = AccountId::new("a");
    let mut engine = engine(Policy::default());
    engine.take_in(&contribution(elsewhere));
    engine.observe(&exchange_of("a"));
    let mut row = engine.row(&id).expect("it was told of");
    (row.memory, row.memories) = remembered(here);
    engine.adopt(row);
    engine.row(&id).expect("it was told of")
}

fn exchange_of(account: &str) -> Event {
    let exchange = EVENTS.iter().find_map(|event| match event {
        Event::Exchange(observation) => Some(observation.clone()),
        _ => None,
    });
    let mut observation = exchange.expect("the corpus has exchanges");
    observation.account = Some(AccountId::new(account));
    Event::Exchange(observation)
}

/// A change to bytes on their way: one set, one put in, or the end cut off.
fn damage() -> impl Strategy<Value = (u8, usize, u8)> {
    (0u8..3, any::<usize>(), prop_oneof![Just(0), Just(0x7f), Just(0xff), any::<u8>()])
}

fn damaged(mut bytes: Vec<u8>, changes: &[(u8, usize, u8)]) -> Vec<u8> {
    for (kind, place, byte) in changes {
        let place = place % (bytes.len() + 1);
        match kind {
            0 => bytes.insert(place, *byte),
            1 if place < bytes.len() => bytes[place] = *byte,
            _ => bytes.truncate(place.max(bytes.len() / 2)),
        }
    }
    bytes
}

fn merged<T: Merge + Clone>(one: &T, other: &T) -> T {
    let mut joined = one.clone();
    joined.merge(other);
    joined
}

fn assert_commutative<T: Merge + Clone + PartialEq>(a: &T, b: &T) -> Result<(), TestCaseError> {
    // Plain comparisons: what differs would fill pages.
    prop_assert!(merged(a, b) == merged(b, a), "not commutative");
    prop_assert!(merged(a, &T::default()) == *a, "not neutral on the right");
    prop_assert!(merged(&T::default(), a) == *a, "not neutral on the left");
    Ok(())
}

fn assert_associative<T: Merge + Clone + PartialEq>(
    a: &T,
    b: &T,
    c: &T,
) -> Result<(), TestCaseError> {
    prop_assert!(merged(&merged(a, b), c) == merged(a, &merged(b, c)), "not associative");
    Ok(())
}

/// Frames that an account's memory holds.
const FRAMES: u64 = 8;

/// What three gateways saw of one account.
fn parts(frames: u64) -> impl Strategy<Value = Vec<Vec<Seen>>> {
    proptest::collection::vec(proptest::collection::vec(seen(frames), 0..40), 3)
}

proptest! {
    #![proptest_config(quick(96))]

    #[test]
    fn nothing_makes_it_panic(
        // To the end of time but for what an answer may take: see the test below.
        events in proptest::collection::vec(event(u64::MAX / 2), 0..14),
        now_ms in number(),
    ) {
        assert_sound(&events, now_ms);
    }

    #[test]
    fn dns_alone_stays_below_low(asked in strangers(), told in told_of_strangers()) {
        let asked = exchanges_of_strangers(&asked);
        let mut events = [asked.clone(), told].concat();
        events.sort_by_key(Event::at_ms);
        let (mut with, decisions) = self::told(Policy::default(), &events);
        let mut asked = asked;
        asked.sort_by_key(Event::at_ms);
        let (mut without, _) = self::told(Policy::default(), &asked);
        let part = |decision: &Decision| {
            let mut parts = decision.contributions.iter();
            let dns = parts.find(|part| part.finding.detector == "dns_transport");
            1.0 - (-dns.map_or(0.0, |dns| dns.nats)).exp()
        };
        let low = Policy::default().tiers.low;
        prop_assert!(decisions.iter().all(|decision| part(decision) < low));
        for (with, without) in judged(&mut with).iter().zip(judged(&mut without)) {
            // All that it adds, ties and the other detectors' confidence included.
            let more = with.suspicion - without.suspicion;
            prop_assert!(more < 0.01, "{more} {:?}", with.contributions);
            prop_assert!(with.suspicion < low);
        }
    }

    #[test]
    fn what_sensors_tell_is_remembered_in_any_order(
        told in proptest::collection::vec(
            dns_event(
                prop_oneof![corpus::BEGIN_MS..END_MS, 0..corpus::DAY * 9].boxed(),
                (0u8..3).prop_map(place).boxed(),
            ),
            0..80,
        ),
    ) {
        let whole = self::told(Policy::default(), &told).0.snapshot().dns;
        let mut backwards: Vec<Event> = told.iter().rev().cloned().collect();
        backwards.extend_from_within(..told.len() / 2);
        prop_assert!(self::told(Policy::default(), &backwards).0.snapshot().dns == whole);
        let [one, other, third] = [0, 1, 2].map(|part| {
            let events: Vec<Event> = told.iter().skip(part).step_by(3).cloned().collect();
            self::told(Policy::default(), &events).0
        });
        let (mut left, mut right, mut inner) = (one.clone(), third.clone(), other.clone());
        left.merge(&other);
        left.merge(&third);
        inner.merge(&one);
        right.merge(&inner);
        prop_assert!(left.snapshot().dns == whole && right.snapshot().dns == whole);
        let written = serde_json::to_string(&left.snapshot()).unwrap();
        let mut again = engine(Policy::default());
        again.restore(serde_json::from_str(&written).unwrap()).unwrap();
        prop_assert!(again.snapshot().dns == whole);
    }

    #[test]
    fn memories_survive_being_written(seen in proptest::collection::vec(seen(12), 0..50)) {
        let (memory, memories) = remembered(&seen);
        let written = serde_json::to_string(&(&memory, &memories)).unwrap();
        let read: (account::Memory, Memories) = serde_json::from_str(&written).unwrap();
        prop_assert!(read == (memory, memories));
    }

    #[test]
    fn rows_and_contributions_survive_being_encoded(
        here in proptest::collection::vec(seen(12), 0..50),
        elsewhere in proptest::collection::vec(seen(12), 0..50),
    ) {
        let (row, told) = (row(&here, &elsewhere), contribution(&here));
        prop_assert!(row.encode().len() < ENCODED_BYTES_MAX / 2);
        prop_assert!(AccountRow::decode(&row.encode()) == Ok(row));
        prop_assert!(Contribution::decode(&told.encode()) == Ok(told));
    }

    #[test]
    fn damaged_rows_are_refused_or_harmless(
        here in proptest::collection::vec(seen(12), 0..50),
        changes in proptest::collection::vec(damage(), 1..4),
        // A version and anything.
        noise in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let written = [row(&here, &here).encode(), contribution(&here).encode()];
        let [row, told] = written.map(|bytes| damaged(bytes, &changes));
        let noise = [vec![VERSION as u8], noise].concat();
        let mut engine = engine(Policy::default());
        for bytes in [&row, &noise] {
            if let Ok(row) = AccountRow::decode(bytes) {
                engine.adopt(row.clone());
                engine.adopt(row);
            }
        }
        for bytes in [&told, &noise] {
            if let Ok(told) = Contribution::decode(bytes) {
                engine.take_in(&told);
            }
        }
        let whose = engine.accounts().iter().map(|held| held.id.clone()).collect::<Vec<_>>();
        for id in whose {
            for _ in 0..3 {
                engine.observe(&exchange_of(id.as_str()));
            }
            let judged = engine.judge_now(&id, END_MS).expect("it is held");
            prop_assert!((0.0..=1.0).contains(&judged.suspicion));
            prop_assert!(engine.row(&id).is_some_and(|row| !row.encode().is_empty()));
        }
    }

    #[test]
    fn detectors_memories_are_commutative_monoids(parts in parts(12)) {
        let [a, b, c] = [0, 1, 2].map(|part| remembered(&parts[part]).1);
        assert_commutative(&a, &b)?;
        assert_associative(&a, &b, &c)?;
    }

    #[test]
    fn account_memories_are_commutative_monoids(parts in parts(FRAMES)) {
        let [a, b, c] = [0, 1, 2].map(|part| remembered(&parts[part]).0);
        assert_commutative(&a, &b)?;
        assert_associative(&a, &b, &c)?;
    }

    #[test]
    fn full_account_memories_are_commutative(parts in parts(FRAMES + 4)) {
        let [a, b] = [0, 1].map(|part| remembered(&parts[part]).0);
        assert_commutative(&a, &b)?;
    }

    #[test]
    fn full_account_memories_are_associative(parts in parts(FRAMES + 4)) {
        let [a, b, c] = [0, 1, 2].map(|part| remembered(&parts[part]).0);
        assert_associative(&a, &b, &c)?;
    }
}

proptest! {
    #![proptest_config(quick(16))]

    #[test]
    fn whatever_ties_there_are_dns_adds_less_than_low(
        told in proptest::collection::vec(
            dns_event(
                (corpus::BEGIN_MS..END_MS).boxed(),
                proptest::sample::select(&*HOMES).boxed(),
            ),
            0..300,
        ),
    ) {
        let some = EVENTS.iter().filter(|event| !matches!(event, Event::Dns(_) | Event::Contact(_)));
        let mut events: Vec<Event> = some.step_by(7).cloned().chain(told).collect();
        events.sort_by_key(Event::at_ms);
        let (mut engine, _) = self::told(Policy::default(), &events);
        for decision in judged(&mut engine) {
            let mut parts = decision.contributions.iter();
            let dns = parts.find(|part| part.finding.detector == "dns_transport");
            let alone = 1.0 - (-dns.map_or(0.0, |dns| dns.nats)).exp();
            prop_assert!(alone < Policy::default().tiers.low, "{alone}");
        }
    }
}
