//! What events mean: lookups by each transport, connections to the API, contacts without a name.
//!
//! - A query to port 53 is a lookup with its name: one per query, whatever was retransmitted.
//! - A connection to port 853 is DNS over TLS (RFC 7858) or over QUIC (RFC 9250), by its port.
//! - A connection to port 443 is DNS over HTTPS (RFC 8484), on QUIC over HTTP/3, where the resolver's
//!   address or the server name in the ClientHello is on a list. Which of its requests are lookups
//!   cannot be seen. A hello that offers `dot` or `doq` (RFC 7858, RFC 9250 in ALPN) there is one of
//!   those.
//! - Everything else is a contact, judged by `named`.
//!
//! An encrypted lookup is told once per connection, when its ClientHello is read, or without one a second
//! after the connection was opened. Where both the address and the server name are listed, its sign is the
//! name, and the provider the name's: the name is what the client asked for, and an address may have
//! been given to another since the list was made.
//!
//! Where a hook sees calls instead of packets, lookups are told at once, without names.
//!
//! What is no DNS on port 53, or no TLS on port 443, gives nothing and is counted.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::aging::Aging;
use crate::dns::{self, Frame};
use crate::event::{Event, Flow, Hook, Kind, Protocol, is_near};
use crate::hello::{self, Hello};
use crate::named::{self, Excuse, NamedDestinations};
use crate::quic;
use crate::resolvers::{Resolvers, is_private};
use crate::sighting::{Contact, Lookup, Origin, Sighting, Sign, Transport};
use crate::stream::{Assemblies, Pieces, STREAM_BYTES_MAX, Streams};

/// Connections that are remembered at once; the one used longest ago is let go, told of if it waits.
pub const CONNECTIONS_MAX: usize = 65_536;
/// QUIC clients whose hellos are put together at once.
pub const QUIC_CLIENTS_MAX: usize = 4096;
/// TCP streams of answers that are put together at once.
pub const ANSWER_STREAMS_MAX: usize = 1024;
/// Queries that are remembered, so that one that is seen twice counts once.
pub const QUERIES_MAX: usize = 65_536;

const SECOND_NS: u64 = 1_000_000_000;
/// How long a lookup waits for its ClientHello.
const HELLO_WAIT_NS: u64 = SECOND_NS;
/// The same query within this time is a retransmission.
const QUERY_AGAIN_NS: u64 = SECOND_NS;
/// A stream that is silent for so long is given up.
const STREAM_IDLE_NS: u64 = 10 * SECOND_NS;
/// A port is not used again within this time.
const PORT_AGAIN_NS: u64 = SECOND_NS;
/// A segment that begins so many bytes before what is expected was seen before.
const AGAIN_BYTES_MAX: usize = 1024 * 1024;
/// A connection of which nothing was seen for so long is forgotten.
const CONNECTION_IDLE_NS: u64 = 180 * SECOND_NS;

const DNS: u16 = 53;
const HTTPS: u16 = 443;
/// DNS over TLS and over QUIC.
const ENCRYPTED_DNS: u16 = 853;

/// What operators set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassifierSettings {
    /// Addresses of the API: who connects to them runs a client.
    pub api: Vec<IpNet>,
    /// Destinations whose contacts are not told.
    pub ignore: Vec<IpNet>,
    /// Whether contacts of private addresses (RFC 1918, RFC 4193, RFC 6598) are told.
    pub private_destinations: bool,
    /// How long an answer names an address at least, and how long the sensor learns at first.
    pub named_window: Duration,
    /// Addresses that are named at once; at most [`named::NAMED_MAX`].
    pub named_max: usize,
}

impl Default for ClassifierSettings {
    fn default() -> Self {
        Self {
            api: Vec::new(),
            ignore: Vec::new(),
            private_destinations: false,
            named_window: Duration::from_secs(3600),
            named_max: named::NAMED_MAX,
        }
    }
}

/// What was seen and what was not told, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events taken.
    pub events: u64,
    /// Lookups told.
    pub lookups: u64,
    /// Contacts told.
    pub contacts: u64,
    /// Connections to the API told.
    pub clients: u64,
    /// Queries that were seen before.
    pub repeated: u64,
    /// What went to or came from port 53 and is no DNS query or answer.
    pub not_dns: u64,
    /// Streams to port 443 or 853 that are no TLS.
    pub not_tls: u64,
    /// Datagrams to port 443 or 853 that are no readable QUIC Initial of a client.
    pub not_quic: u64,
    /// Events that the kernel programs do not make.
    pub odd: u64,
    /// Streams without a beginning, or with one that is too long.
    pub streams_unread: u64,
    /// Streams and QUIC clients that were let go for want of room.
    pub streams_full: u64,
    /// Connections that were forgotten for want of room.
    pub connections_full: u64,
    /// Plain answers read.
    pub answers: u64,
    /// Plain answers that were cut or could not be put together.
    pub answers_unread: u64,
    /// Addresses of answers for which there was no room.
    pub named_full: u64,
    /// Contacts that were not told, by why: in the order of [`Excuse::ALL`].
    pub excused: [u64; Excuse::ALL.len()],
}

impl Counters {
    /// Contacts that were not told for this reason.
    #[must_use]
    pub fn excused(&self, excuse: Excuse) -> u64 {
        self.excused[excuse as usize]
    }
}

/// How much is held now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Connections remembered.
    pub connections: usize,
    /// Streams and QUIC clients being put together.
    pub streams: usize,
    /// Addresses that answers named.
    pub named: usize,
    /// Contacts that wait for their verdict.
    pub contacts: usize,
}

/// Makes sightings of events. Reads no clock: events and [`Classifier::tick`] bring the time.
#[derive(Debug)]
pub struct Classifier {
    settings: ClassifierSettings,
    resolvers: Arc<Resolvers>,
    connections: Aging<Flow, Connection>,
    /// Lookups that wait for their hello, by when they are told without.
    waiting: VecDeque<(u64, Flow)>,
    streams: Assemblies,
    quic: Aging<Flow, Box<quic::Client>>,
    answers: Aging<Flow, AnswerStream>,
    queries: Aging<(Flow, u16), u64>,
    named: NamedDestinations<Contact>,
    counters: Counters,
}

#[derive(Debug)]
struct Connection {
    at_ns: u64,
    origin: Origin,
    state: State,
    /// Whether the client sent something on it: then no SYN of it comes again.
    carried: bool,
    /// Whether a lookup was told.
    lookup: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// DNS on TCP, of which so many bytes are read.
    Plain(usize),
    /// A lookup; it is told when its hello is read, or soon without.
    Waiting,
    /// A lookup if its server name is listed.
    Watching,
    /// Nothing more is of interest.
    Settled,
}

#[derive(Debug)]
struct AnswerStream {
    /// Sequence number of the first byte that was not read yet.
    next: u32,
    pieces: Pieces,
}

impl Classifier {
    /// Begins to watch.
    #[must_use]
    pub fn new(settings: ClassifierSettings, resolvers: Arc<Resolvers>) -> Self {
        let window_ns = u64::try_from(settings.named_window.as_nanos()).unwrap_or(u64::MAX);
        let named_max = settings.named_max.min(named::NAMED_MAX);
        Self {
            settings,
            resolvers,
            connections: Aging::new(CONNECTIONS_MAX),
            waiting: VecDeque::new(),
            streams: Assemblies::new(),
            quic: Aging::new(QUIC_CLIENTS_MAX),
            answers: Aging::new(ANSWER_STREAMS_MAX),
            queries: Aging::new(QUERIES_MAX),
            named: NamedDestinations::new(window_ns, named_max),
            counters: Counters::default(),
        }
    }

    /// Knows resolvers by another list from now on.
    pub fn set_resolvers(&mut self, resolvers: Arc<Resolvers>) {
        self.resolvers = resolvers;
    }

    /// Takes in an event; pushes what is to be told at once.
    pub fn take(&mut self, event: &Event<'_>, streams: &mut dyn Streams, out: &mut Vec<Sighting>) {
        let told = out.len();
        self.named.watch(event.at_ns);
        self.counters.events += 1;
        match (event.kind, event.flow.protocol) {
            (Kind::Query, Protocol::Udp) => self.query(event, out),
            (Kind::Answer, Protocol::Udp) => self.datagram_answer(event),
            (Kind::Answer, Protocol::Tcp) => self.stream_answer(event),
            (Kind::Open, _) => {
                self.connection(event, out);
            }
            (Kind::Stream, Protocol::Tcp) => self.stream(event, streams, out),
            (Kind::Initial, Protocol::Udp) => self.initial(event, out),
            _ => self.counters.odd += 1,
        }
        self.count(&out[told..]);
    }

    /// Tells what waited long enough and forgets what is old. To be called some times a second.
    pub fn tick(&mut self, now_ns: u64, streams: &mut dyn Streams, out: &mut Vec<Sighting>) {
        let told = out.len();
        self.named.watch(now_ns);
        while let Some((_, flow)) = self.waiting.pop_front_if(|(due_ns, _)| *due_ns <= now_ns) {
            // An entry of before its connection was settled, or forgotten, tells nothing.
            if self.state(&flow) == Some(State::Waiting) {
                // Of a hello whose end has not come, what is there.
                let pieces = self.streams.remove(&flow);
                let client = self.quic.remove(&flow);
                let hello = match (pieces, client) {
                    (Some(pieces), _) => hello::from_records(pieces.start()).ok(),
                    (_, Some(client)) => client.hello().ok(),
                    _ => None,
                };
                self.settle(&flow, hello.as_ref(), out);
                if flow.protocol == Protocol::Tcp {
                    streams.close(&flow);
                }
            }
        }
        let mut silent = Vec::new();
        self.streams.expire(now_ns, STREAM_IDLE_NS, |flow, pieces| {
            streams.close(&flow);
            silent.push((flow, hello::from_records(pieces.start()).ok()));
        });
        self.quic.expire(now_ns, STREAM_IDLE_NS, |flow, client| {
            silent.push((flow, client.hello().ok()));
        });
        for (flow, hello) in silent {
            let read = match self.state(&flow) {
                Some(State::Plain(read)) => read > 0,
                _ => hello.as_ref().is_some_and(|hello| hello.server_name.is_some()),
            };
            self.counters.streams_unread += u64::from(!read);
            self.settle(&flow, hello.as_ref(), out);
        }
        let (connections, counters) = (&self.connections, &mut self.counters);
        self.named.judge(now_ns, |flow, contact, excuse| {
            let lookup = connections.get(&flow).is_some_and(|connection| connection.lookup);
            match if lookup { Some(Excuse::Lookup) } else { excuse } {
                None => out.push(Sighting::Contact(contact)),
                Some(excuse) => counters.excused[excuse as usize] += 1,
            }
        });
        let mut unread = Vec::new();
        self.answers.expire(now_ns, STREAM_IDLE_NS, |flow, stream| {
            unread.extend((!stream.pieces.is_empty()).then_some(flow));
        });
        for flow in unread {
            self.doubt(flow.destination.ip(), None, now_ns);
        }
        self.queries.expire(now_ns, QUERY_AGAIN_NS, |_, _| {});
        self.connections.expire(now_ns, CONNECTION_IDLE_NS, |_, _| {});
        self.named.expire(now_ns);
        self.count(&out[told..]);
    }

    /// The kernel could not hand over all events: an answer may have been among them, so that contacts
    /// are not told for a window.
    pub fn lost(&mut self, at_ns: u64) {
        self.named.doubt(at_ns);
    }

    /// What was seen since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How much is held now.
    #[must_use]
    pub fn held(&self) -> Held {
        Held {
            connections: self.connections.len(),
            streams: self.streams.len() + self.quic.len() + self.answers.len(),
            named: self.named.len(),
            contacts: self.named.pending(),
        }
    }

    fn count(&mut self, told: &[Sighting]) {
        for sighting in told {
            *match sighting {
                Sighting::Lookup(_) => &mut self.counters.lookups,
                Sighting::Contact(_) => &mut self.counters.contacts,
                Sighting::Client { .. } => &mut self.counters.clients,
            } += 1;
        }
    }

    fn query(&mut self, event: &Event<'_>, out: &mut Vec<Sighting>) {
        let query = (event.flow.destination.port() == DNS).then(|| dns::query(event.payload));
        let Some(query) = query.flatten() else {
            self.counters.not_dns += 1;
            return;
        };
        if self.was_asked(event, query.id) {
            self.counters.repeated += 1;
            return;
        }
        out.push(self.plain(
            event.at_ns,
            origin(event),
            event.flow,
            Transport::Udp,
            Some(query.name),
        ));
    }

    fn plain(
        &self,
        at_ns: u64,
        origin: Origin,
        flow: Flow,
        transport: Transport,
        name: Option<String>,
    ) -> Sighting {
        Sighting::Lookup(Lookup {
            at_ns,
            origin,
            transport,
            server: flow.destination,
            sign: Sign::Port,
            provider: self.resolvers.by_address(flow.destination.ip()).cloned(),
            name: name.map(Into::into),
            server_name: None,
        })
    }

    /// Whether the query was seen already: retransmitted, or by two hooks.
    fn was_asked(&mut self, event: &Event<'_>, id: u16) -> bool {
        let asked = (event.flow, id);
        let before = self.queries.get(&asked);
        if before.is_some_and(|before| event.at_ns.abs_diff(*before) < QUERY_AGAIN_NS) {
            return true;
        }
        self.queries.insert(asked, event.at_ns, event.at_ns);
        false
    }

    fn datagram_answer(&mut self, event: &Event<'_>) {
        let cut = event.payload.len() < event.length as usize;
        match from_dns(event).then(|| dns::answer(event.payload)).flatten() {
            Some(answer) => self.take_answer(event, &answer, cut),
            None if cut && from_dns(event) => {
                self.doubt(event.flow.destination.ip(), Some(event.hook), event.at_ns);
            }
            None => self.counters.not_dns += 1,
        }
    }

    /// `cut`: whether the message has more bytes than were copied.
    fn take_answer(&mut self, event: &Event<'_>, answer: &dns::Answer, cut: bool) {
        for named in &answer.addresses {
            if !self.named.name(named.address, named.ttl, event.at_ns) {
                self.counters.named_full += 1;
            }
        }
        if answer.whole {
            self.counters.answers += 1;
            self.named.answered(event.at_ns);
        } else if cut || answer.limited {
            self.doubt(event.flow.destination.ip(), Some(event.hook), event.at_ns);
        } else {
            // Malformed: its client cannot read it either.
            self.counters.not_dns += 1;
        }
    }

    /// An answer could not be read to its end. On the link to the internet its address may be that of a
    /// NAT, so that nobody knows which host it was for.
    fn doubt(&mut self, host: IpAddr, hook: Option<Hook>, at_ns: u64) {
        self.counters.answers_unread += 1;
        if hook.is_none() || hook == Some(Hook::InternetIngress) {
            self.named.doubt(at_ns);
        } else {
            self.named.doubt_host(host, at_ns);
        }
    }

    fn stream_answer(&mut self, event: &Event<'_>) {
        if !from_dns(event) || event.payload.is_empty() {
            self.counters.odd += 1;
            return;
        }
        let (flow, at_ns) = (event.flow, event.at_ns);
        if self.answers.get(&flow).is_none() {
            let stream = AnswerStream { next: event.offset, pieces: Pieces::default() };
            if let Some((gone, stream)) = self.answers.insert(flow, at_ns, stream) {
                self.counters.streams_full += 1;
                if !stream.pieces.is_empty() {
                    self.doubt(gone.destination.ip(), None, at_ns);
                }
            }
        }
        let Some(stream) = self.answers.use_mut(&flow, at_ns) else { return };
        // Of a segment that was seen before (retransmitted, or by another hook) only what is new.
        let before = stream.next.wrapping_sub(event.offset) as usize;
        let (offset, payload) = if before <= AGAIN_BYTES_MAX {
            (0, event.payload.get(before..).unwrap_or_default())
        } else {
            (event.offset.wrapping_sub(stream.next) as usize, event.payload)
        };
        let missing = (event.length as usize).saturating_sub(event.payload.len().max(before));
        let added = stream.pieces.add(offset, payload);
        let mut answers = Vec::new();
        let mut garbage = added.is_err();
        let mut read = 0;
        loop {
            match dns::frame(&stream.pieces.start()[read..]) {
                Frame::Message(message, length) => {
                    answers.push(dns::answer(message));
                    read += length;
                }
                Frame::More => break,
                Frame::Garbage => {
                    garbage = true;
                    break;
                }
            }
        }
        stream.pieces.advance(read);
        stream.next = stream.next.wrapping_add(u32::try_from(read).unwrap_or(u32::MAX));
        let cut = missing > 0;
        // Of a message whose end was not copied, what is there.
        let rest = stream.pieces.start().get(2..);
        let partial = rest.filter(|_| cut && !garbage).and_then(dns::answer);
        if cut || garbage {
            self.answers.remove(&flow);
        }
        for answer in answers {
            match answer {
                Some(answer) => self.take_answer(event, &answer, false),
                None => self.counters.not_dns += 1,
            }
        }
        if let Some(partial) = partial {
            self.take_answer(event, &partial, true);
        } else if cut || garbage {
            self.doubt(flow.destination.ip(), Some(event.hook), at_ns);
        }
    }

    fn stream(&mut self, event: &Event<'_>, streams: &mut dyn Streams, out: &mut Vec<Sighting>) {
        let flow = event.flow;
        if ![DNS, HTTPS, ENCRYPTED_DNS].contains(&flow.destination.port()) {
            self.counters.odd += 1;
            streams.close(&flow);
            return;
        }
        // Bytes of a connection that was forgotten: one that was told of shall not be told again.
        if self.state(&flow).is_none() && event.offset > 0 {
            self.counters.streams_unread += 1;
            return;
        }
        let state = self.connection(event, out);
        if state == State::Settled {
            streams.close(&flow);
            return;
        }
        let offset = event.offset as usize;
        let (added, gone) = self.streams.add(&flow, event.at_ns, offset, event.payload);
        if let Some(gone) = gone {
            self.counters.streams_full += 1;
            streams.close(&gone);
        }
        let Ok(pieces) = added else {
            self.counters.streams_unread += 1;
            self.end_stream(&flow, streams);
            self.settle(&flow, None, out);
            return;
        };
        if let State::Plain(read) = state {
            let (names, read, garbage) = read_queries(pieces.start(), read);
            let full = pieces.start().len() >= STREAM_BYTES_MAX;
            for name in names {
                out.push(self.plain(event.at_ns, origin(event), flow, Transport::Tcp, Some(name)));
            }
            self.counters.not_dns += u64::from(garbage);
            if garbage || full {
                self.end_stream(&flow, streams);
            }
            let state = if garbage || full { State::Settled } else { State::Plain(read) };
            if let Some(connection) = self.connections.use_mut(&flow, event.at_ns) {
                connection.state = state;
            }
            return;
        }
        let full = pieces.start().len() >= STREAM_BYTES_MAX;
        match hello::from_records(pieces.start()) {
            Ok(hello) if hello.whole || full => {
                self.end_stream(&flow, streams);
                self.settle(&flow, Some(&hello), out);
            }
            Ok(_) => {}
            Err(_) => {
                self.counters.not_tls += 1;
                self.end_stream(&flow, streams);
                if flow.destination.port() == HTTPS {
                    // Nothing on this port without TLS is DNS.
                    self.give_up(&flow);
                } else {
                    self.settle(&flow, None, out);
                }
            }
        }
    }

    fn initial(&mut self, event: &Event<'_>, out: &mut Vec<Sighting>) {
        let flow = event.flow;
        if ![HTTPS, ENCRYPTED_DNS].contains(&flow.destination.port()) {
            self.counters.odd += 1;
            return;
        }
        if self.connection(event, out) == State::Settled {
            return;
        }
        if self.quic.get(&flow).is_none()
            && self.quic.insert(flow, event.at_ns, Box::default()).is_some()
        {
            self.counters.streams_full += 1;
        }
        let Some(client) = self.quic.use_mut(&flow, event.at_ns) else { return };
        match client.take(event.payload) {
            Ok(hello) if hello.whole => {
                self.quic.remove(&flow);
                self.settle(&flow, Some(&hello), out);
            }
            Ok(_) => {}
            Err(quic::Unread::NotQuic | quic::Unread::Protected) => self.counters.not_quic += 1,
            Err(quic::Unread::NotHello(_) | quic::Unread::TooMany) => {
                self.counters.not_quic += 1;
                self.quic.remove(&flow);
                self.settle(&flow, None, out);
            }
        }
    }

    fn state(&self, flow: &Flow) -> Option<State> {
        self.connections.get(flow).map(|connection| connection.state)
    }

    /// The state of the event's connection, which it may begin.
    fn connection(&mut self, event: &Event<'_>, out: &mut Vec<Sighting>) -> State {
        let by_call = is_by_call(event.hook);
        // A call mostly knows no source port; one that connects TCP or sends a query is a new one.
        let anew = event.flow.source.port() == 0
            || event.flow.protocol == Protocol::Tcp
            || event.flow.destination.port() == DNS;
        let known = !(by_call && anew);
        let again = self.connections.get(&event.flow).is_some_and(|connection| {
            let opens = (event.kind, event.flow.protocol) == (Kind::Open, Protocol::Tcp);
            let later = event.at_ns.saturating_sub(connection.at_ns) >= PORT_AGAIN_NS;
            opens && later && connection.carried && connection.state != State::Waiting
        });
        if again {
            self.streams.remove(&event.flow);
        } else if known && let Some(connection) = self.connections.use_mut(&event.flow, event.at_ns)
        {
            connection.carried |= event.kind != Kind::Open;
            if connection.origin.process.is_none() {
                connection.origin.process.clone_from(&event.process);
            }
            return connection.state;
        }
        let Some(mut state) = self.begin(event, out) else { return State::Settled };
        let mut connection = Connection {
            at_ns: event.at_ns,
            origin: origin(event),
            state,
            carried: event.kind != Kind::Open,
            lookup: false,
        };
        if by_call {
            // What it carries will not be seen.
            match state {
                State::Plain(_) => {
                    let transport = match event.flow.protocol {
                        Protocol::Udp => Transport::Udp,
                        Protocol::Tcp => Transport::Tcp,
                    };
                    out.push(self.plain(event.at_ns, origin(event), event.flow, transport, None));
                }
                State::Waiting => out.push(self.lookup(&event.flow, &connection, None)),
                State::Watching | State::Settled => {}
            }
            state = State::Settled;
            connection.state = state;
        }
        if known { self.remember(event.flow, connection, out) } else { state }
    }

    fn remember(&mut self, flow: Flow, connection: Connection, out: &mut Vec<Sighting>) -> State {
        let (state, at_ns) = (connection.state, connection.at_ns);
        if let Some((gone, connection)) = self.connections.insert(flow, at_ns, connection) {
            self.counters.connections_full += 1;
            if connection.state == State::Waiting {
                out.push(self.lookup(&gone, &connection, None));
            }
        }
        if state == State::Waiting {
            if self.waiting.len() >= 2 * CONNECTIONS_MAX {
                // Most are of connections that were settled: those are not missed.
                let connections = &self.connections;
                self.waiting.retain(|(_, flow)| {
                    connections.get(flow).is_some_and(|other| other.state == State::Waiting)
                });
            }
            self.waiting.push_back((at_ns.saturating_add(HELLO_WAIT_NS), flow));
        }
        state
    }

    /// What a new connection is; `None` where it need not be remembered.
    fn begin(&mut self, event: &Event<'_>, out: &mut Vec<Sighting>) -> Option<State> {
        let flow = &event.flow;
        let (ip, port) = (flow.destination.ip(), flow.destination.port());
        if self.settings.api.iter().any(|network| network.contains(&ip)) {
            out.push(Sighting::Client { at_ns: event.at_ns, origin: origin(event) });
            return Some(State::Settled);
        }
        match port {
            DNS => return Some(State::Plain(0)),
            ENCRYPTED_DNS => return Some(State::Waiting),
            HTTPS if self.resolvers.by_address(ip).is_some() => return Some(State::Waiting),
            _ => {}
        }
        let excuse = if self.is_exempt(ip) || port == 0 {
            Some(Excuse::Exempt)
        } else {
            let contact = Contact {
                at_ns: event.at_ns,
                origin: origin(event),
                destination: flow.destination,
                protocol: flow.protocol,
            };
            // A datagram that is no Initial need not be a connection's first.
            let ongoing = flow.protocol == Protocol::Udp && event.kind == Kind::Open;
            let waits = self.named.contact(*flow, ongoing, event.at_ns, contact);
            (!waits).then_some(Excuse::Full)
        };
        if let Some(excuse) = excuse {
            self.counters.excused[excuse as usize] += 1;
        }
        (port == HTTPS).then_some(State::Watching)
    }

    fn is_exempt(&self, ip: IpAddr) -> bool {
        is_near(ip)
            || ip.is_unspecified()
            || (is_private(ip) && !self.settings.private_destinations)
            || self.settings.ignore.iter().any(|network| network.contains(&ip))
            || self.resolvers.by_address(ip).is_some()
    }

    /// The hello was read, or none will be.
    fn settle(&mut self, flow: &Flow, hello: Option<&Hello>, out: &mut Vec<Sighting>) {
        let Some(connection) = self.connections.get(flow) else { return };
        let name = hello.and_then(|hello| hello.server_name.as_deref());
        let listed = name.is_some_and(|name| self.resolvers.by_name(name).is_some());
        let lookup = match connection.state {
            State::Waiting => true,
            State::Watching => listed,
            State::Plain(_) | State::Settled => false,
        };
        if lookup {
            out.push(self.lookup(flow, connection, hello));
        }
        if let Some(connection) = self.connections.use_mut(flow, 0) {
            connection.state = State::Settled;
            connection.lookup |= lookup;
        }
    }

    fn give_up(&mut self, flow: &Flow) {
        if let Some(connection) = self.connections.use_mut(flow, 0) {
            connection.state = State::Settled;
        }
    }

    fn end_stream(&mut self, flow: &Flow, streams: &mut dyn Streams) {
        self.streams.remove(flow);
        streams.close(flow);
    }

    fn lookup(&self, flow: &Flow, connection: &Connection, hello: Option<&Hello>) -> Sighting {
        let server = flow.destination;
        let name = hello.and_then(|hello| hello.server_name.as_deref());
        let by_name = name.and_then(|name| self.resolvers.by_name(name));
        let offers = |protocol: &str| {
            hello.is_some_and(|hello| hello.alpn.iter().any(|name| name == protocol))
        };
        let dedicated = server.port() == ENCRYPTED_DNS;
        let transport = match flow.protocol {
            Protocol::Tcp if dedicated || offers("dot") => Transport::Dot,
            Protocol::Tcp => Transport::Doh,
            Protocol::Udp if dedicated || offers("doq") => Transport::Doq,
            Protocol::Udp => Transport::Doh3,
        };
        let sign = match by_name {
            _ if dedicated => Sign::Port,
            Some(_) => Sign::Name,
            None => Sign::Address,
        };
        Sighting::Lookup(Lookup {
            at_ns: connection.at_ns,
            origin: connection.origin.clone(),
            transport,
            server,
            sign,
            provider: by_name.or_else(|| self.resolvers.by_address(server.ip())).cloned(),
            name: None,
            server_name: name.map(Into::into),
        })
    }
}

/// The names of the queries on a stream from `read` on, where to go on, and whether it is no DNS.
fn read_queries(stream: &[u8], mut read: usize) -> (Vec<String>, usize, bool) {
    let mut names = Vec::new();
    loop {
        match dns::frame(stream.get(read..).unwrap_or_default()) {
            Frame::Message(message, length) => {
                let Some(query) = dns::query(message) else { return (names, read, true) };
                names.push(query.name);
                read += length;
            }
            Frame::More => return (names, read, false),
            Frame::Garbage => return (names, read, true),
        }
    }
}

fn from_dns(event: &Event<'_>) -> bool {
    event.flow.source.port() == DNS
}

fn origin(event: &Event<'_>) -> Origin {
    Origin {
        address: event.flow.source.ip(),
        process: event.process.clone(),
        hook: event.hook,
        link: event.link,
    }
}

/// Whether a hook sees what a process asks its socket for, not packets.
fn is_by_call(hook: Hook) -> bool {
    match hook {
        Hook::CgroupConnect
        | Hook::CgroupSendmsg
        | Hook::Fentry
        | Hook::Kprobe
        | Hook::SockState => true,
        Hook::CgroupEgress
        | Hook::CgroupIngress
        | Hook::ClientsIngress
        | Hook::ClientsEgress
        | Hook::InternetIngress => false,
    }
}

/// For `fuzz/`: bytes as events, each taken by a classifier.
pub fn fuzz_sensor_event(bytes: &[u8]) {
    let resolvers = Resolvers::builder().build();
    let mut classifier = Classifier::new(
        ClassifierSettings { named_window: Duration::from_secs(1), ..Default::default() },
        Arc::new(resolvers),
    );
    let mut out = Vec::new();
    let mut rest = bytes;
    let mut now_ns = 0;
    while let Ok(event) = Event::parse(rest) {
        classifier.take(&event, &mut (), &mut out);
        now_ns = now_ns.max(event.at_ns);
        rest = &rest[crate::event::HEADER_BYTES + event.payload.len()..];
    }
    classifier.tick(now_ns.saturating_add(3 * SECOND_NS), &mut (), &mut out);
    let counters = classifier.counters();
    assert_eq!(counters.lookups + counters.contacts + counters.clients, out.len() as u64);
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::event::Process;
    use crate::testing::{
        client_hello, crypto_frame, dns_answer, dns_framed, dns_query, event, quic_initial, records,
    };

    const CLIENT: &str = "10.0.0.5:40000";
    const HOUR_NS: u64 = 3600 * SECOND_NS;
    const ID: &[u8] = b"first id";

    /// A classifier, what it told, and what it closed.
    struct Bench {
        classifier: Classifier,
        closed: Closed,
        out: Vec<Sighting>,
        now_ns: u64,
    }

    #[derive(Default)]
    struct Closed(Vec<Flow>);

    impl Streams for Closed {
        fn close(&mut self, flow: &Flow) {
            self.0.push(*flow);
        }
    }

    impl Bench {
        fn new() -> Self {
            Self::with(ClassifierSettings::default())
        }

        fn with(settings: ClassifierSettings) -> Self {
            let resolvers = Resolvers::builder().built_in().unwrap().build();
            Self {
                classifier: Classifier::new(settings, Arc::new(resolvers)),
                closed: Closed::default(),
                out: Vec::new(),
                now_ns: 0,
            }
        }

        /// One that may tell of contacts: it has watched for an hour and seen an answer.
        fn learnt(settings: ClassifierSettings) -> Self {
            let mut bench = Self::with(settings);
            bench.tick(0);
            bench.take(&answer(HOUR_NS, &["198.51.100.1"]));
            bench
        }

        fn take(&mut self, event: &Event<'_>) {
            self.now_ns = self.now_ns.max(event.at_ns);
            self.classifier.take(event, &mut self.closed, &mut self.out);
        }

        fn tick(&mut self, now_ns: u64) {
            self.classifier.tick(now_ns, &mut self.closed, &mut self.out);
        }

        /// What was told since the last time, after all that waits.
        fn told(&mut self) -> Vec<Sighting> {
            self.tick(self.now_ns + 10 * SECOND_NS);
            std::mem::take(&mut self.out)
        }

        /// The one lookup that was told.
        fn lookup(&mut self) -> Lookup {
            match &self.told()[..] {
                [Sighting::Lookup(lookup)] => lookup.clone(),
                other => panic!("{other:?}"),
            }
        }

        /// Transport, sign, provider, query name or server name of the one lookup.
        fn told_lookup(&mut self) -> (Transport, Sign, Option<String>, Option<String>) {
            let lookup = self.lookup();
            let name = lookup.name.or(lookup.server_name);
            (
                lookup.transport,
                lookup.sign,
                lookup.provider.map(|p| p.to_string()),
                name.map(|n| n.to_string()),
            )
        }

        fn counters(&self) -> &Counters {
            self.classifier.counters()
        }
    }

    fn told(
        transport: Transport,
        sign: Sign,
        provider: Option<&str>,
        name: Option<&str>,
    ) -> (Transport, Sign, Option<String>, Option<String>) {
        (transport, sign, provider.map(ToOwned::to_owned), name.map(ToOwned::to_owned))
    }

    fn answer(at_ns: u64, addresses: &[&str]) -> Event<'static> {
        let addresses: Vec<_> = addresses.iter().map(|ip| (ip.parse().unwrap(), 60)).collect();
        let payload = dns_answer(7, &[b"a", b"example"], &addresses).leak();
        let mut event = event(Kind::Answer, Protocol::Udp, "192.0.2.53:53", CLIENT, payload);
        event.at_ns = at_ns;
        event
    }

    fn open(protocol: Protocol, destination: &str) -> Event<'static> {
        event(Kind::Open, protocol, CLIENT, destination, b"")
    }

    fn stream<'a>(destination: &str, offset: usize, payload: &'a [u8]) -> Event<'a> {
        let event = event(Kind::Stream, Protocol::Tcp, CLIENT, destination, payload);
        Event { offset: u32::try_from(offset).unwrap(), ..event }
    }

    fn initial<'a>(destination: &str, payload: &'a [u8]) -> Event<'a> {
        event(Kind::Initial, Protocol::Udp, CLIENT, destination, payload)
    }

    fn tls(name: &str) -> Vec<u8> {
        records(&client_hello(Some(name), &["h2"], false, 0), 16_384)
    }

    fn quic_hello(name: &str, alpn: &str) -> Vec<u8> {
        let hello = client_hello(Some(name), &[alpn], false, 0);
        quic_initial(quic::V1, ID, ID, 0, &crypto_frame(0, &hello))
    }

    #[test]
    fn a_query_is_a_lookup_with_its_name() {
        let query = dns_query(7, &[b"www", b"Example"]);
        let mut bench = Bench::new();
        let mut event = event(Kind::Query, Protocol::Udp, CLIENT, "8.8.8.8:53", &query);
        bench.take(&event);
        let lookup = bench.lookup();
        assert_eq!(lookup.origin.address, "10.0.0.5".parse::<IpAddr>().unwrap());
        assert_eq!((lookup.origin.hook, lookup.origin.link), (Hook::ClientsIngress, 3));
        assert_eq!((lookup.transport, lookup.sign), (Transport::Udp, Sign::Port));
        assert_eq!(lookup.server, "8.8.8.8:53".parse().unwrap());
        assert_eq!(lookup.provider.as_deref(), Some("google"));
        assert_eq!(lookup.name.as_deref(), Some("www.example"));
        // Again within a second, and after it.
        let mut bench = Bench::new();
        for at_ns in [0, SECOND_NS / 2, SECOND_NS, SECOND_NS + SECOND_NS / 2] {
            event.at_ns = at_ns;
            bench.take(&event);
        }
        assert_eq!((bench.told().len(), bench.counters().repeated), (2, 2));
    }

    #[test]
    fn queries_on_tcp_are_read_however_they_are_cut() {
        let (first, second) =
            (dns_query(1, &[b"a", b"example"]), dns_query(2, &[b"b", b"example"]));
        let all = [dns_framed(&first), dns_framed(&second)].concat();
        // The length alone; byte by byte; at once; the second part first.
        for cuts in [vec![2], (1..all.len()).collect(), vec![], vec![1, 30, 31]] {
            let mut bench = Bench::new();
            bench.take(&open(Protocol::Tcp, "[2001:db8::53]:53"));
            let ends = cuts.iter().copied().chain([all.len()]);
            let starts = [0].into_iter().chain(cuts.iter().copied());
            let mut parts: Vec<_> = starts.zip(ends).collect();
            let last = parts.len() - 1;
            if last > 2 {
                parts.swap(last, last - 1);
            }
            for (start, end) in parts {
                bench.take(&stream("[2001:db8::53]:53", start, &all[start..end]));
            }
            let told = bench.told();
            let names: Vec<_> = told
                .iter()
                .map(|sighting| match sighting {
                    Sighting::Lookup(lookup) => {
                        assert_eq!((lookup.transport, lookup.sign), (Transport::Tcp, Sign::Port));
                        lookup.name.as_deref().unwrap()
                    }
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(names, ["a.example", "b.example"], "{cuts:?}");
            assert_eq!(bench.counters().streams_unread, 0);
        }
    }

    #[test]
    fn dot_and_doq_are_told_once_with_their_server_name() {
        let hello = tls("dns.quad9.net");
        let datagram = quic_hello("dns.adguard-dns.com", "doq");
        let cases = [
            (
                open(Protocol::Tcp, "9.9.9.9:853"),
                stream("9.9.9.9:853", 0, &hello),
                told(Transport::Dot, Sign::Port, Some("quad9"), Some("dns.quad9.net")),
            ),
            (
                open(Protocol::Udp, "[2001:db8::1]:853"),
                initial("[2001:db8::1]:853", &datagram),
                told(Transport::Doq, Sign::Port, Some("adguard"), Some("dns.adguard-dns.com")),
            ),
        ];
        for (open, payload, expected) in cases {
            // Both, in either order and repeated; the second alone.
            for events in [
                vec![&open, &payload],
                vec![&payload, &open],
                vec![&open, &open, &payload, &payload, &open],
                vec![&payload],
            ] {
                let mut bench = Bench::new();
                events.into_iter().for_each(|event| bench.take(event));
                assert_eq!(bench.told_lookup(), expected);
            }
        }
    }

    #[test]
    fn a_port_that_is_used_again_is_another_connection() {
        let hello = tls("dns.quad9.net");
        let mut bench = Bench::new();
        for second in [1, 5, 30] {
            bench.take(&later(open(Protocol::Tcp, "9.9.9.9:853"), second * SECOND_NS));
            bench.take(&later(stream("9.9.9.9:853", 0, &hello), second * SECOND_NS));
            // A SYN that another hook saw.
            bench.take(&later(open(Protocol::Tcp, "9.9.9.9:853"), second * SECOND_NS + 5));
        }
        assert_eq!(bench.told().len(), 3);
        // Without an answer, SYNs come again and again.
        let mut bench = Bench::new();
        for second in [1, 2, 4, 8, 16] {
            bench.take(&later(open(Protocol::Tcp, "9.9.9.9:853"), second * SECOND_NS));
            bench.tick(second * SECOND_NS);
        }
        assert_eq!(bench.told().len(), 1);
    }

    #[test]
    fn each_excuse_has_its_counter() {
        for (index, excuse) in Excuse::ALL.into_iter().enumerate() {
            assert_eq!(excuse as usize, index);
        }
    }

    #[test]
    fn a_connection_to_853_without_a_hello_is_told_after_a_second() {
        for (protocol, transport) in
            [(Protocol::Tcp, Transport::Dot), (Protocol::Udp, Transport::Doq)]
        {
            let mut bench = Bench::new();
            bench.take(&open(protocol, "127.0.0.53:853"));
            bench.tick(SECOND_NS + HELLO_WAIT_NS - 1);
            assert_eq!(bench.out, []);
            bench.tick(SECOND_NS + HELLO_WAIT_NS);
            assert_eq!(bench.out.len(), 1);
            // A hello that comes late does not tell it again.
            match protocol {
                Protocol::Tcp => bench.take(&stream("127.0.0.53:853", 0, &tls("dns.quad9.net"))),
                Protocol::Udp => {
                    bench.take(&initial("127.0.0.53:853", &quic_hello("dns.quad9.net", "doq")));
                }
            }
            let lookup = bench.out[0].clone();
            assert_eq!(bench.told_lookup(), told(transport, Sign::Port, None, None));
            let Sighting::Lookup(lookup) = lookup else { panic!("a lookup") };
            assert_eq!(lookup.at_ns, SECOND_NS);
        }
    }

    #[test]
    fn https_is_a_lookup_by_address_or_by_name() {
        // Destination, server name, expected sign, provider.
        let cases = [
            ("8.8.8.8:443", Some("dns.google"), Some((Sign::Name, "google"))),
            ("8.8.8.8:443", Some("www.example"), Some((Sign::Address, "google"))),
            ("8.8.8.8:443", None, Some((Sign::Address, "google"))),
            ("1.1.1.1:443", Some("dns.quad9.net"), Some((Sign::Name, "quad9"))),
            ("192.0.2.1:443", Some("Mozilla.Cloudflare-DNS.com"), Some((Sign::Name, "cloudflare"))),
            ("192.0.2.1:443", Some("www.example"), None),
            ("192.0.2.1:443", None, None),
        ];
        for (destination, name, expected) in cases {
            for quic in [false, true] {
                let mut bench = Bench::new();
                let (hello, datagram);
                if quic {
                    bench.take(&open(Protocol::Udp, destination));
                    if let Some(name) = name {
                        datagram = quic_hello(name, "h3");
                        bench.take(&initial(destination, &datagram));
                    }
                } else {
                    bench.take(&open(Protocol::Tcp, destination));
                    if let Some(name) = name {
                        hello = tls(name);
                        bench.take(&stream(destination, 0, &hello));
                    }
                }
                let transport = if quic { Transport::Doh3 } else { Transport::Doh };
                let Some((sign, provider)) = expected else {
                    assert_eq!(bench.told(), [], "{destination} {name:?}");
                    continue;
                };
                let name = name.map(str::to_ascii_lowercase);
                let expected = told(transport, sign, Some(provider), name.as_deref());
                assert_eq!(bench.told_lookup(), expected, "{destination}");
            }
        }
    }

    #[test]
    fn dot_and_doq_on_443_are_known_by_alpn() {
        let hello = records(&client_hello(Some("dns.google"), &["dot"], false, 0), 100);
        let mut bench = Bench::new();
        bench.take(&stream("192.0.2.1:443", 0, &hello));
        assert_eq!(bench.told_lookup().0, Transport::Dot);
        let mut bench = Bench::new();
        bench.take(&initial("192.0.2.1:443", &quic_hello("dns.google", "doq")));
        assert_eq!(bench.told_lookup().0, Transport::Doq);
    }

    #[test]
    fn a_hello_is_read_however_it_is_cut_and_the_kernel_told_to_stop() {
        let hello = records(&client_hello(Some("dns.google"), &["h2"], false, 3000), 700);
        for size in [1, 100, 1400, 5000] {
            let mut bench = Bench::new();
            bench.take(&open(Protocol::Tcp, "192.0.2.1:443"));
            for (index, part) in hello.chunks(size).enumerate() {
                assert_eq!(bench.closed.0, []);
                bench.take(&stream("192.0.2.1:443", index * size, part));
            }
            assert_eq!(bench.closed.0.len(), 1);
            assert_eq!(bench.told_lookup().1, Sign::Name);
            assert_eq!(bench.classifier.held().streams, 0);
        }
    }

    #[test]
    fn of_a_hello_that_stays_cut_the_name_is_read() {
        let hello = tls("dns.google");
        let part = &hello[..hello.len() - 4];
        for (destination, transport) in
            [("192.0.2.1:443", Transport::Doh), ("192.0.2.1:853", Transport::Dot)]
        {
            let mut bench = Bench::new();
            bench.take(&stream(destination, 0, part));
            let lookup = bench.told_lookup();
            assert_eq!((lookup.0, lookup.3.as_deref()), (transport, Some("dns.google")));
            assert_eq!(bench.counters().streams_unread, 0);
        }
    }

    #[test]
    fn noise_gives_nothing_and_is_counted() {
        let mut bench = Bench::new();
        let settings = [
            event(Kind::Query, Protocol::Udp, CLIENT, "192.0.2.53:53", b"no DNS at all, but long"),
            event(Kind::Query, Protocol::Udp, CLIENT, "192.0.2.53:53", b""),
            event(Kind::Answer, Protocol::Udp, "192.0.2.53:53", CLIENT, b"no DNS at all"),
            event(Kind::Query, Protocol::Tcp, CLIENT, "192.0.2.53:53", b""),
            stream("192.0.2.53:53", 0, b"SSH-2.0-OpenSSH"),
            stream("8.8.8.8:443", 0, b"GET / HTTP/1.1\r\n\r\n"),
            stream("192.0.2.1:8443", 0, b"\x16\x03\x01"),
            initial("192.0.2.2:443", b"\xc0 no QUIC"),
            initial("192.0.2.2:444", b"\xc0"),
        ];
        settings.iter().for_each(|event| bench.take(event));
        assert_eq!(bench.told(), []);
        let counters = bench.counters();
        assert_eq!((counters.not_dns, counters.not_tls), (4, 1));
        assert_eq!((counters.not_quic, counters.odd), (1, 3));
        assert_eq!(bench.closed.0.len(), 3);
    }

    #[test]
    fn an_answer_whose_counts_lie_is_noise() {
        let mut payload = dns_answer(7, &[b"a"], &[]);
        payload[7] = 200;
        let mut bench = Bench::new();
        bench.take(&event(Kind::Answer, Protocol::Udp, "192.0.2.53:53", CLIENT, &payload));
        assert_eq!((bench.counters().not_dns, bench.counters().answers_unread), (1, 0));
    }

    fn contacts(bench: &mut Bench) -> Vec<String> {
        let told = bench.told();
        told.iter()
            .map(|sighting| match sighting {
                Sighting::Contact(contact) => contact.destination.to_string(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn later(event: Event<'_>, at_ns: u64) -> Event<'_> {
        Event { at_ns, ..event }
    }

    #[test]
    fn a_contact_that_no_answer_named_is_told() {
        let at_ns = HOUR_NS + SECOND_NS;
        let mut bench = Bench::learnt(ClassifierSettings::default());
        for (protocol, destination) in [
            (Protocol::Tcp, "192.0.2.7:443"),
            (Protocol::Tcp, "192.0.2.8:22"),
            (Protocol::Udp, "[2001:db8::9]:443"),
            // Named, private, near, resolvers, and DNS itself.
            (Protocol::Tcp, "198.51.100.1:443"),
            (Protocol::Tcp, "10.1.2.3:443"),
            (Protocol::Tcp, "100.64.0.1:443"),
            (Protocol::Tcp, "[fd00::1]:443"),
            (Protocol::Tcp, "127.0.0.1:8080"),
            (Protocol::Tcp, "[fe80::1]:443"),
            (Protocol::Tcp, "8.8.8.8:80"),
            (Protocol::Tcp, "192.0.2.53:53"),
        ] {
            bench.take(&later(open(protocol, destination), at_ns));
        }
        let expected = ["192.0.2.7:443", "192.0.2.8:22", "[2001:db8::9]:443"];
        assert_eq!(contacts(&mut bench), expected);
        let counters = bench.counters();
        assert_eq!(counters.excused(Excuse::Named), 1);
        assert_eq!(counters.excused(Excuse::Exempt), 6);
        assert_eq!(counters.contacts, 3);
    }

    #[test]
    fn settings_say_what_is_no_contact() {
        let settings = ClassifierSettings {
            ignore: vec!["192.0.2.0/28".parse().unwrap()],
            private_destinations: true,
            ..Default::default()
        };
        let at_ns = HOUR_NS + SECOND_NS;
        let mut bench = Bench::learnt(settings);
        for destination in ["192.0.2.7:443", "192.0.2.17:443", "10.1.2.3:443"] {
            bench.take(&later(open(Protocol::Tcp, destination), at_ns));
        }
        assert_eq!(contacts(&mut bench), ["192.0.2.17:443", "10.1.2.3:443"]);
    }

    #[test]
    fn a_connection_is_one_contact_and_a_lookup_none() {
        let at_ns = HOUR_NS + SECOND_NS;
        let mut bench = Bench::learnt(ClassifierSettings::default());
        let web = quic_hello("www.example", "h3");
        for event in [
            open(Protocol::Udp, "192.0.2.7:443"),
            initial("192.0.2.7:443", &web),
            open(Protocol::Udp, "192.0.2.7:443"),
        ] {
            bench.take(&later(event, at_ns));
        }
        assert_eq!(contacts(&mut bench), ["192.0.2.7:443"]);
        // An unlisted address with a listed name.
        let hello = tls("dns.google");
        bench.take(&later(open(Protocol::Tcp, "192.0.2.8:443"), at_ns));
        bench.take(&later(stream("192.0.2.8:443", 0, &hello), at_ns));
        assert_eq!(bench.told_lookup().0, Transport::Doh);
        assert_eq!(bench.counters().excused(Excuse::Lookup), 1);
    }

    /// Where no packets are seen, calls tell: without names, and mostly without a source port.
    #[test]
    fn what_calls_tell_is_told_at_once() {
        let process = Process { pid: 9, uid: 1000, cgroup: 5, name: "curl".to_owned() };
        let at_ns = HOUR_NS + SECOND_NS;
        let cases = [
            (Hook::Fentry, Protocol::Udp, "8.8.8.8:53", Some(Transport::Udp)),
            (Hook::CgroupConnect, Protocol::Tcp, "8.8.8.8:53", Some(Transport::Tcp)),
            (Hook::SockState, Protocol::Tcp, "8.8.8.8:853", Some(Transport::Dot)),
            (Hook::Kprobe, Protocol::Udp, "8.8.8.8:853", Some(Transport::Doq)),
            (Hook::CgroupConnect, Protocol::Tcp, "8.8.8.8:443", Some(Transport::Doh)),
            (Hook::CgroupSendmsg, Protocol::Udp, "8.8.8.8:443", Some(Transport::Doh3)),
            (Hook::CgroupConnect, Protocol::Tcp, "192.0.2.8:443", None),
        ];
        for (hook, protocol, destination, transport) in cases {
            let mut bench = Bench::learnt(ClassifierSettings::default());
            let mut event = later(open(protocol, destination), at_ns);
            event.flow.source = "0.0.0.0:0".parse().unwrap();
            event.hook = hook;
            event.process = Some(process.clone());
            // Two connections.
            for _ in 0..2 {
                bench.take(&event);
            }
            let told = bench.told();
            assert_eq!(told.len(), 2, "{destination}");
            match (&told[0], transport) {
                (Sighting::Lookup(lookup), Some(transport)) => {
                    assert_eq!((lookup.transport, &lookup.name), (transport, &None));
                    assert_eq!(lookup.provider.as_deref(), Some("google"));
                    assert_eq!(lookup.origin.process.as_ref(), Some(&process));
                }
                (Sighting::Contact(_), None) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn datagrams_of_one_socket_are_one_connection() {
        let mut bench = Bench::new();
        for second in 1..100 {
            let mut event = later(open(Protocol::Udp, "8.8.8.8:853"), second * SECOND_NS);
            event.hook = Hook::Fentry;
            bench.take(&event);
            bench.tick(second * SECOND_NS);
        }
        assert_eq!(bench.told_lookup().0, Transport::Doq);
    }

    #[test]
    fn a_connection_to_the_api_is_a_client() {
        let settings =
            ClassifierSettings { api: vec!["192.0.2.7/32".parse().unwrap()], ..Default::default() };
        let at_ns = HOUR_NS + SECOND_NS;
        let mut bench = Bench::learnt(settings);
        let hello = tls("dns.google");
        bench.take(&later(open(Protocol::Tcp, "192.0.2.7:443"), at_ns));
        bench.take(&later(stream("192.0.2.7:443", 0, &hello), at_ns));
        let told = bench.told();
        assert!(
            matches!(&told[..], [Sighting::Client { at_ns: at, .. }] if *at == at_ns),
            "{told:?}"
        );
        assert_eq!((bench.closed.0.len(), bench.counters().clients), (1, 1));
    }

    #[test]
    fn answers_on_tcp_name_addresses() {
        let at_ns = HOUR_NS + SECOND_NS;
        let mut bench = Bench::learnt(ClassifierSettings::default());
        let message = dns_framed(&dns_answer(7, &[b"a"], &[("192.0.2.7".parse().unwrap(), 60)]));
        let mut segment = |offset: u32, payload: &[u8]| {
            let answer = event(Kind::Answer, Protocol::Tcp, "192.0.2.53:53", CLIENT, payload);
            bench.take(&Event { offset, at_ns, ..answer });
        };
        // The length alone, over the end of the sequence numbers; then another whole one.
        segment(u32::MAX - 1, &message[..2]);
        segment(0, &message[2..20]);
        segment(18, &message[20..]);
        // Again, as another hook sees them; then a whole one, of which some was seen before.
        segment(0, &message[2..20]);
        segment(18, &message[20..]);
        let after = u32::try_from(message.len() - 2).unwrap();
        segment(after, &message);
        segment(after - 5, &[&[0; 5], &message[..], &message[..]].concat());
        bench.tick(at_ns + STREAM_IDLE_NS);
        assert_eq!(bench.classifier.held().streams, 0);
        bench.take(&later(open(Protocol::Tcp, "192.0.2.7:443"), at_ns));
        assert_eq!(contacts(&mut bench), [""; 0]);
        assert_eq!((bench.counters().answers, bench.counters().answers_unread), (4, 0));
    }

    #[test]
    fn an_answer_that_was_cut_excuses_its_host() {
        let at_ns = HOUR_NS + SECOND_NS;
        let long = dns_answer(7, &[b"a"], &vec![("192.0.2.7".parse().unwrap(), 60); 100]);
        let framed = dns_framed(&long);
        for (protocol, payload, hook, others) in [
            (Protocol::Udp, &long[..500], Hook::ClientsEgress, true),
            (Protocol::Tcp, &framed[..500], Hook::ClientsEgress, true),
            (Protocol::Udp, &long[..500], Hook::InternetIngress, false),
        ] {
            let mut bench = Bench::learnt(ClassifierSettings::default());
            let answer = event(Kind::Answer, protocol, "192.0.2.53:53", CLIENT, payload);
            bench.take(&Event { at_ns, hook, length: 1600, ..answer });
            // The address that could be read is named; another of this host is doubted.
            for (source, destination) in [
                (CLIENT, "192.0.2.7:443"),
                (CLIENT, "192.0.2.8:443"),
                ("10.0.0.6:4000", "192.0.2.9:443"),
            ] {
                let mut event = later(open(Protocol::Tcp, destination), at_ns);
                event.flow.source = source.parse().unwrap();
                bench.take(&event);
            }
            let expected: &[&str] = if others { &["192.0.2.9:443"] } else { &[] };
            assert_eq!(contacts(&mut bench), expected);
            assert_eq!(bench.counters().excused(Excuse::Named), 1);
            assert_eq!(bench.counters().answers_unread, 1);
        }
    }

    #[test]
    fn lost_events_excuse_all() {
        let at_ns = HOUR_NS + SECOND_NS;
        let mut bench = Bench::learnt(ClassifierSettings::default());
        bench.classifier.lost(at_ns);
        bench.take(&later(open(Protocol::Tcp, "192.0.2.7:443"), at_ns));
        assert_eq!(contacts(&mut bench), [""; 0]);
        assert_eq!(bench.counters().excused(Excuse::Doubt), 1);
    }

    #[test]
    fn a_connection_that_was_forgotten_is_not_told_again_by_its_middle() {
        let mut bench = Bench::new();
        bench.take(&stream("192.0.2.1:853", 600, b"\x17\x03\x03\x00\x05hello"));
        assert_eq!(bench.told(), []);
        assert_eq!(bench.counters().streams_unread, 1);
    }

    #[test]
    fn what_is_held_is_bounded_and_what_waits_is_told() {
        let mut bench = Bench::new();
        let count = CONNECTIONS_MAX + 1000;
        for index in 0..count {
            let mut event = open(Protocol::Tcp, "192.0.2.1:853");
            let host = u32::try_from(index).unwrap();
            event.flow.source = SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + host).into(), 4000);
            bench.take(&event);
            if index % 8 == 0 {
                event.kind = Kind::Stream;
                event.payload = b"\x16";
                bench.take(&event);
            }
        }
        let held = bench.classifier.held();
        assert_eq!(held.connections, CONNECTIONS_MAX);
        assert_eq!(held.streams, crate::stream::STREAMS_MAX);
        assert_eq!(bench.told().len(), count);
        assert_eq!(bench.counters().connections_full, 1000);
        bench.tick(1000 * SECOND_NS);
        assert_eq!(bench.classifier.held(), Held::default());
    }
}
