//! A small labelled corpus of traffic: who asks a language model over a week, and who harvests it.
//!
//! Everything is made here, by a seeded generator and from the word lists of [`words`]: no recorded
//! traffic and nobody's text. Each benign population is one that a careless detector would accuse;
//! each campaign is one kind of extraction or evasion that some detector is there for.

mod benign;
mod campaigns;
mod clients;
mod dns;
pub(crate) mod numbers;
mod words;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use detectors::{
    AccountId, Answer, Conversation, DnsLookup, DnsTransport, Enforcement, EnforcementAction,
    Event, Finish, Format, HttpCapture, ModelRelease, Network, NetworkKind, Observation,
    OrganisationId, Profile, Role, Sampling, Text, TlsCapture, Turn, Usage,
};

use clients::{Client, Kind};
use numbers::Numbers;

/// Begin of the week, unix milliseconds.
pub(crate) const BEGIN_MS: u64 = 1_788_739_200_000;
/// Milliseconds of a minute, an hour, a day.
pub(crate) const MINUTE: u64 = 60_000;
pub(crate) const HOUR: u64 = 60 * MINUTE;
pub(crate) const DAY: u64 = 24 * HOUR;
/// End of the week, unix milliseconds.
pub(crate) const END_MS: u64 = BEGIN_MS + 7 * DAY;
/// The model that comes out on the fourth day, and when.
pub(crate) const RELEASED: &str = "meridian-large-3";
pub(crate) const RELEASED_MS: u64 = BEGIN_MS + 3 * DAY + 9 * HOUR;

const MODELS: &[&str] = &[
    "meridian-large-2",
    "meridian-large-2",
    "meridian-small-2",
    "meridian-small-2",
    "meridian-mini",
    "cobalt-pro",
    "cobalt-lite",
    "juniper-70b",
];

/// What an account really is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Label {
    /// An honest one of a population.
    Benign(&'static str),
    /// One of a campaign.
    Campaign(&'static str),
}

/// Events in order of time, and what the accounts in them really are.
#[derive(Debug)]
pub(crate) struct Corpus {
    pub(crate) events: Vec<Event>,
    pub(crate) labels: BTreeMap<AccountId, Label>,
}

/// The corpus of a seed.
pub(crate) fn generate(seed: u64) -> Corpus {
    let mut world =
        World { seed, events: Vec::new(), labels: BTreeMap::new(), exchanges: 0, subnets: 0 };
    world
        .events
        .push(Event::ModelRelease(ModelRelease { at_ms: RELEASED_MS, model: RELEASED.into() }));
    benign::all(&mut world);
    campaigns::all(&mut world);
    dns::all(&mut world);
    // The sort is stable: what was made first comes first within a millisecond.
    world.events.sort_by_key(Event::at_ms);
    world.events.retain(|event| event.at_ms() < END_MS);
    Corpus { events: world.events, labels: world.labels }
}

/// Where the corpus grows.
struct World {
    seed: u64,
    events: Vec<Event>,
    labels: BTreeMap<AccountId, Label>,
    exchanges: u64,
    subnets: u32,
}

/// Somebody's account, and how it asks unless told otherwise.
#[derive(Clone, Debug)]
struct Customer {
    id: AccountId,
    organisation: Option<OrganisationId>,
    payment: Option<Arc<str>>,
    bin: Option<u32>,
    created_ms: u64,
    ip: IpAddr,
    network: Network,
    client: Client,
    connection: (Arc<TlsCapture>, HttpCapture),
    format: Format,
    model: &'static str,
    /// Asks this model too, from its release on.
    adopts: bool,
    sampling: Sampling,
    system: String,
}

/// One question.
#[derive(Clone, Debug, Default)]
struct Ask {
    /// Turns before the last one.
    earlier: Vec<(Role, String)>,
    text: String,
    /// A tool's result takes the place of a last question.
    tool_result: bool,
    tools: &'static [&'static str],
    refused: bool,
    status: Option<u16>,
    tokens: f64,
}

impl Ask {
    fn of(text: impl Into<String>) -> Self {
        Self { text: text.into(), tokens: 250.0, ..Self::default() }
    }
}

impl World {
    fn numbers(&self, name: &str) -> Numbers {
        Numbers::of(self.seed, name)
    }

    /// A /24 that nobody else has. All addresses are private ones: what they are used for is in
    /// [`Network`], so no real provider is named.
    fn subnet(&mut self) -> [u8; 3] {
        self.subnets += 1;
        [10, (self.subnets >> 8) as u8, self.subnets as u8]
    }

    /// A customer at home, with an address, a card and settings of their own.
    fn customer(&mut self, label: Label, kind: Kind, numbers: &mut Numbers) -> Customer {
        let subnet = self.subnet();
        let client = Client::install(kind, numbers);
        let connection = client.connect(numbers);
        let id = AccountId::new(format!("acc-{:016x}", numbers.next()));
        self.labels.insert(id.clone(), label);
        let browser = matches!(kind, Kind::Chrome | Kind::Firefox | Kind::Safari);
        let bins = [411_111, 422_222, 433_333, 444_444, 455_555, 511_111, 522_222, 533_333];
        let paid = numbers.chance(0.8);
        Customer {
            id,
            organisation: None,
            payment: paid.then(|| format!("card-{:016x}", numbers.next()).into()),
            bin: (paid && numbers.chance(0.7))
                .then(|| numbers.one(&bins) + numbers.below(40) as u32),
            created_ms: BEGIN_MS - (numbers.between(0.0, 500.0) * DAY as f64) as u64,
            ip: host(subnet, numbers),
            network: network(NetworkKind::Unlisted, 64_500 + numbers.below(12) as u32),
            client,
            connection,
            format: if matches!(kind, Kind::GrpcPython | Kind::GrpcNode | Kind::GrpcBulk) {
                Format::Grpc
            } else {
                Format::OpenaiChat
            },
            model: numbers.pick(MODELS),
            adopts: numbers.chance(0.15),
            sampling: Sampling {
                max_tokens: numbers.one(&[None, None, None, Some(1024), Some(2048), Some(4096)]),
                temperature: numbers.one(&[None, None, None, Some(0.7), Some(1.0), Some(0.2)]),
                top_p: numbers.one(&[None, None, None, None, Some(0.95)]),
                stream: browser || numbers.chance(0.5),
                ..Sampling::default()
            },
            system: String::new(),
        }
    }

    /// Tells the engine who this is: at creation, or at the week's begin.
    fn profile(&mut self, customer: &Customer) {
        self.events.push(Event::Profile(Profile {
            at_ms: customer.created_ms.max(BEGIN_MS),
            account: customer.id.clone(),
            organisation: customer.organisation.clone(),
            created_s: i64::try_from(customer.created_ms / 1000).ok(),
            payment: customer.payment.clone(),
            bin: customer.bin,
            verified: customer.organisation.is_some(),
        }));
    }

    /// One exchange. Returns when its answer had ended.
    fn send(&mut self, from: &Customer, at_ms: u64, ask: Ask, numbers: &mut Numbers) -> u64 {
        self.exchanges += 1;
        let completion = numbers.lognormal(ask.tokens, 0.5).max(1.0) as u64;
        let bound = from.sampling.max_tokens.unwrap_or(u64::MAX);
        let completion = completion.min(bound);
        let duration_ms = 400 + completion * 12 + numbers.below(600) as u64;
        let opaque = from.format == Format::Grpc;
        let prompt_tokens = 20 + (ask.text.len() + from.system.len()) as u64 / 4;
        let turn = |role, text: String| Turn {
            role,
            text: Text::new(text),
            tool_calls: Vec::new(),
            attachments: 0,
        };
        let mut turns: Vec<Turn> =
            ask.earlier.into_iter().map(|(role, text)| turn(role, text)).collect();
        let last = if ask.tool_result { Role::Tool } else { Role::User };
        turns.push(turn(last, ask.text));
        let model = if from.adopts && at_ms >= RELEASED_MS { RELEASED } else { from.model };
        let conversation = Conversation {
            model: Some(model.to_owned()),
            system: Text::new(from.system.clone()),
            turns,
            tools: ask.tools.iter().map(|tool| (*tool).to_owned()).collect(),
            sampling: from.sampling.clone(),
        };
        let (tls, http) = from.connection.clone();
        self.events.push(Event::Exchange(Box::new(Observation {
            id: format!("r{:016x}", self.exchanges),
            at_ms,
            account: Some(from.id.clone()),
            organisation: from.organisation.clone(),
            ip: from.ip,
            network: from.network.clone(),
            route: "models".into(),
            tls: Some(tls),
            http,
            format: from.format,
            foreign_marks: 0,
            indicators: Vec::new(),
            conversation: if opaque { Conversation::default() } else { conversation },
            answer: Answer {
                status: ask.status.unwrap_or(200),
                streamed: from.sampling.stream,
                text_chars: if ask.refused { 90 } else { completion * 4 },
                refusal_chars: if ask.refused { 90 } else { 0 },
                usage: (!opaque).then_some(Usage {
                    prompt_tokens,
                    completion_tokens: completion,
                    ..Usage::default()
                }),
                finish: Some(if completion == bound { Finish::Length } else { Finish::Stop }),
                complete: true,
                duration_ms,
                ..Answer::default()
            },
        })));
        at_ms + duration_ms
    }

    /// A talk: turns that grow, with time to read and think in between.
    fn talk(
        &mut self,
        from: &mut Customer,
        at_ms: u64,
        first: String,
        turns: usize,
        numbers: &mut Numbers,
    ) {
        from.connection = from.client.connect(numbers);
        let (mut earlier, mut text, mut now) = (Vec::new(), first, at_ms);
        for _ in 0..turns {
            let ask = Ask { earlier: earlier.clone(), ..Ask::of(text.clone()) };
            now = self.send(from, now, ask, numbers);
            now += (numbers.between(8.0, 120.0) * 1000.0) as u64;
            earlier.push((Role::User, text));
            let sentences = 2 + numbers.below(4);
            earlier.push((Role::Assistant, words::prose(numbers, sentences)));
            text = words::next(numbers);
        }
    }

    /// Somebody at a keyboard over the week: talks by day, in all about so many exchanges.
    fn person(
        &mut self,
        from: &mut Customer,
        exchanges: usize,
        numbers: &mut Numbers,
        mut open: impl FnMut(&mut Numbers) -> String,
    ) {
        let mut left = exchanges;
        while left > 0 {
            let turns = (1 + numbers.below(7)).min(left);
            let at_ms = daytime(from.created_ms, numbers);
            let first = open(numbers);
            self.talk(from, at_ms, first, turns, numbers);
            left -= turns;
        }
    }

    fn resolve(&mut self, ip: IpAddr, at_ms: u64, server: IpAddr) {
        self.events.push(Event::Dns(DnsLookup {
            at_ms,
            ip,
            host: None,
            client: None,
            transport: DnsTransport::Doh,
            server,
            provider: None,
            name: None,
        }));
    }

    fn suspend(&mut self, customer: &Customer, at_ms: u64) {
        self.events.push(Event::Enforcement(Enforcement {
            at_ms,
            account: customer.id.clone(),
            action: EnforcementAction::Suspend,
        }));
    }
}

fn network(kind: NetworkKind, asn: u32) -> Network {
    Network { asn, name: None, kind }
}

fn hosting(numbers: &mut Numbers) -> Network {
    network(NetworkKind::Hosting, 64_600 + numbers.below(6) as u32)
}

fn host([a, b, c]: [u8; 3], numbers: &mut Numbers) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, 1 + numbers.below(254) as u8))
}

/// A time of the week by day, not before `from_ms`.
fn daytime(from_ms: u64, numbers: &mut Numbers) -> u64 {
    let from_ms = from_ms.max(BEGIN_MS);
    for _ in 0..8 {
        let day = BEGIN_MS + numbers.below(7) as u64 * DAY;
        let at_ms = day + (numbers.between(7.0, 23.0) * HOUR as f64) as u64;
        if at_ms > from_ms {
            return at_ms;
        }
    }
    from_ms + HOUR
}
