//! What an exchange shows, worked out once for all detectors: readings, keyed hashes and counts.
//! No text gets past this point.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::client::{ClientReading, ContradictionKind, FamilySet, Ja3sBaseline, PermutationWatch};
use crate::conversation::{Answer, Conversation, Finish, Role};
use crate::dns::DnsSeen;
use crate::facts::Facts;
use crate::indicator::{self, Hit};
use crate::keyed::{self, Key};
use crate::network::NetworkKind;
use crate::observation::{AccountId, Observation, TlsCapture};
use crate::text::{FAMILIES, Family, Folded, Reading};

/// Shortest prompt, in bytes, whose repetition means anything: `hello` is everybody's.
const PROMPT_BYTES_MIN: usize = 32;
/// Shortest paragraph, in bytes, that counts as a frame around varying text.
const FRAME_BYTES_MIN: usize = 20;
/// Longest part of a text that is hashed for frames and system prompts, in bytes.
const FRAME_BYTES_MAX: usize = 1_024;
/// Readings that are kept for texts that come again.
const READINGS: usize = 4_096;
/// Peers whose names are known.
const PEERS_MAX: usize = 64;
/// Providers of resolvers whose names are known.
const PROVIDERS_MAX: usize = 256;
/// How much of a system prompt stands for it, in bytes: what a product fills in comes later.
const SYSTEM_BYTES: usize = 256;
/// Words of an opening.
const OPENING_WORDS: usize = 6;

/// What one exchange shows.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Arrival, unix milliseconds.
    pub at_ms: u64,
    /// Hash of the exchange's name.
    pub id: u32,
    /// Address of the client.
    pub address: u64,
    /// Its IPv4 /24 or IPv6 /48.
    pub subnet: u64,
    /// What the address is used for.
    pub network: NetworkKind,
    /// Model that was asked.
    pub model: u64,
    /// Model and sampling settings.
    pub settings: u32,
    /// Software with model and settings.
    pub rig: u64,
    /// Client shape.
    pub shape: u64,
    /// The exact prompt; 0 where it is too short.
    pub prompt: u32,
    /// First and last paragraph (or the opening words) around what may vary; 0 where there is none.
    pub frames: [u32; 2],
    /// System prompt without the sentences that carry numbers.
    pub system: Option<u64>,
    /// Whether the system prompt numbers its tasks.
    pub task_chain: bool,
    /// The prompt's first words.
    pub opening: u32,
    /// Length of the prompt in characters.
    pub prompt_chars: u32,
    /// Whether the conversation holds earlier answers.
    pub history: bool,
    /// Whether it hands a tool's result back.
    pub tool_turn: bool,
    /// Whether tools are on offer.
    pub tools: bool,
    /// Whether there was a prompt to read at all.
    pub readable: bool,
    /// Upper bound on the answer, where the request sets one.
    pub max_tokens: Option<u64>,
    /// Answers asked for at once.
    pub samples: u32,
    /// What sensors tell of the address; `None` where they tell nothing of it.
    pub dns: Option<DnsSeen>,
    /// Hours since the model that was asked was released, where it was lately.
    pub released_h: Option<f32>,
    /// Whether any model was released within the last 24 hours.
    pub any_release: bool,
    /// How many others' marks the prompt carries.
    pub foreign_marks: u32,
    /// Indicators of peers that it shows, each with the peer's name.
    pub hits: Vec<(Hit, Arc<str>)>,
    /// What the prompt's text shows.
    pub text: TextSeen,
    /// What the client shows of itself.
    pub client: ClientSeen,
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answered {
    /// How long it took, milliseconds.
    pub duration_ms: u32,
    /// Whether a filter or a refusal ended it.
    pub refused: bool,
}

impl Answered {
    /// What an answer shows.
    #[must_use]
    pub fn of(answer: &Answer) -> Self {
        Self {
            duration_ms: u32::try_from(answer.duration_ms).unwrap_or(u32::MAX),
            refused: answer.finish == Some(Finish::Filtered) || answer.refusal_chars > 0,
        }
    }
}

/// What a prompt's text shows: numbers and categories, no text.
#[derive(Clone, Copy, Debug, Default)]
pub struct TextSeen {
    /// Strongest phrase of each family.
    pub phrases: [f32; FAMILIES],
    /// The same of the system prompt.
    pub system_phrases: [f32; FAMILIES],
    /// Nearest archetype of extraction and how near, 0..1.
    pub archetype: Option<(u8, f32)>,
    /// Capability category and its margin.
    pub topic: Option<(u8, f32)>,
    /// Safety category and its margin.
    pub safety: Option<(u8, f32)>,
    /// Zero-width and other invisible characters.
    pub invisible: u32,
}

impl TextSeen {
    /// The strongest phrase of a family, in prompt or system prompt.
    #[must_use]
    pub fn phrase(&self, family: Family) -> f32 {
        let place = family.index();
        self.phrases[place].max(self.system_phrases[place])
    }

    fn of(reading: &Reading) -> Self {
        Self {
            phrases: reading.phrases,
            system_phrases: reading.system_phrases,
            archetype: reading.archetype,
            topic: reading.topic,
            safety: reading.safety,
            invisible: reading.tricks.invisible,
        }
    }
}

/// Readings of texts that came lately: agents and loops send the same text again and again.
#[derive(Clone, Debug)]
pub struct Readings {
    slots: Vec<(u64, TextSeen)>,
}

impl Default for Readings {
    fn default() -> Self {
        Self { slots: vec![(0, TextSeen::default()); READINGS] }
    }
}

impl Readings {
    fn get(&self, hash: u64) -> Option<TextSeen> {
        let slot = &self.slots[Self::place(hash)];
        (slot.0 == hash).then_some(slot.1)
    }

    fn put(&mut self, hash: u64, read: TextSeen) {
        self.slots[Self::place(hash)] = (hash, read);
    }

    fn place(hash: u64) -> usize {
        (hash >> 32) as usize % READINGS
    }
}

/// What the client shows of itself.
#[derive(Clone, Debug, Default)]
pub struct ClientSeen {
    /// How far its signs contradict one another, 0..1.
    pub strength: f32,
    /// Whether its HTTP/2 contradicts what it says it is.
    pub http2: f32,
    /// Whether it is a gRPC client.
    pub grpc: bool,
    /// Whether its HTTP/2 windows are opened for bulk, beyond what its kind does.
    pub bulk_window: bool,
    /// Who it says it is.
    pub families: FamilySet,
    /// What this exchange adds to the watch on permuting browsers.
    pub permutation: PermutationWatch,
}

/// What a request shows before an engine has seen it. Reading it needs no engine, so that nobody
/// waits meanwhile but the request itself.
#[derive(Debug)]
pub struct Arrived {
    pub(crate) account: AccountId,
    pub(crate) seen: Seen,
    reading: ClientReading,
    tls: Option<Arc<TlsCapture>>,
    ip: IpAddr,
    text_hash: u64,
    unread: Unread,
}

/// A prompt whose meaning has not been read yet.
struct Unread {
    reading: Reading,
    folded: Folded,
}

impl fmt::Debug for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unread({} bytes)", self.folded.text.len())
    }
}

impl Arrived {
    /// Reads the request of an observation, all but its prompt's meaning; `None` where no account
    /// sent it.
    #[must_use]
    pub fn read(observation: &Observation, facts: &Facts, key: &Key) -> Option<Self> {
        let account = observation.account.clone()?;
        let reading = facts.clients.read(observation.tls.as_deref(), &observation.http, key);
        let mut seen = Seen::without_text(observation, &reading, key);
        let (system, prompt) = texts(&observation.conversation);
        let (phrases, folded) = facts.text.read_phrases(system, prompt);
        seen.text = TextSeen::of(&phrases);
        Some(Self {
            account,
            seen,
            reading,
            tls: observation.tls.clone(),
            ip: observation.ip,
            text_hash: text_hash(system, prompt, key),
            unread: Unread { reading: phrases, folded },
        })
    }

    /// Joins what was learnt before. What is left to read of the prompt comes back with it, `None`
    /// where its text came before.
    pub(crate) fn join(
        self,
        facts: &Facts,
        learnt: &mut Learnt,
    ) -> (AccountId, Seen, Option<Pending>) {
        let Self { account, mut seen, reading, tls, ip, text_hash, unread } = self;
        seen.client = client(reading, tls.as_deref(), &seen, ip, facts, learnt);
        if let Some(text) = learnt.readings.get(text_hash) {
            seen.text = text;
            return (account, seen, None);
        }
        let pending = Pending {
            account: account.clone(),
            seen: seen.clone(),
            text_hash,
            unread: Some(unread),
            judged: false,
        };
        (account, seen, Some(pending))
    }
}

/// The slow half of taking a request in: what its prompt means.
#[derive(Debug)]
pub struct Pending {
    pub(crate) account: AccountId,
    pub(crate) seen: Seen,
    text_hash: u64,
    unread: Option<Unread>,
    /// Whether its account was judged when it arrived, and so is to be judged again.
    pub(crate) judged: bool,
}

impl Pending {
    /// Reads the prompt's meaning. Needs no engine.
    pub fn read(&mut self, facts: &Facts) {
        if let Some(Unread { mut reading, folded }) = self.unread.take() {
            facts.text.read_meaning(&mut reading, &folded);
            self.seen.text = TextSeen::of(&reading);
        }
    }

    pub(crate) fn learn(&self, learnt: &mut Learnt) {
        learnt.readings.put(self.text_hash, self.seen.text);
    }

    /// Bytes that it holds, near enough for a bound.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.unread.as_ref().map_or(0, |unread| unread.folded.text.len())
    }
}

/// What reading exchanges has taught so far.
#[derive(Clone, Debug, Default)]
pub struct Learnt {
    /// What this server answers each family of clients in its ServerHello.
    pub ja3s: Ja3sBaseline,
    /// Texts that came lately.
    pub readings: Readings,
    /// Names of the peers whose indicators were seen, by their hashes, the latest known last.
    peers: Vec<(u32, Arc<str>)>,
    /// Names of the providers of resolvers that sensors have told of, by their hashes, the latest
    /// known last.
    providers: Vec<(u64, Arc<str>)>,
}

impl Learnt {
    pub(crate) fn learn_peers(&mut self, seen: &Seen) {
        for (hit, name) in &seen.hits {
            if self.peer(hit.source()).is_none() {
                self.peers.drain(..(self.peers.len() + 1).saturating_sub(PEERS_MAX));
                self.peers.push((hit.source(), Arc::clone(name)));
            }
        }
    }

    pub(crate) fn learn_provider(&mut self, hash: u64, name: &Arc<str>) {
        if self.provider(hash).is_none() {
            self.providers.drain(..(self.providers.len() + 1).saturating_sub(PROVIDERS_MAX));
            self.providers.push((hash, Arc::clone(name)));
        }
    }

    /// A provider's name by its hash, where a sensor told of it since the start.
    #[must_use]
    pub fn provider(&self, hash: u64) -> Option<&str> {
        self.providers.iter().find(|(known, _)| *known == hash).map(|(_, name)| &**name)
    }

    /// A peer's name by its hash, where one of its indicators was seen since the start.
    #[must_use]
    pub fn peer(&self, hash: u32) -> Option<&str> {
        self.peers.iter().find(|(known, _)| *known == hash).map(|(_, name)| &**name)
    }
}

impl Seen {
    /// Reads a whole request at once.
    #[must_use]
    pub fn read(observation: &Observation, facts: &Facts, learnt: &mut Learnt, key: &Key) -> Self {
        let reading = facts.clients.read(observation.tls.as_deref(), &observation.http, key);
        let mut seen = Self::without_text(observation, &reading, key);
        seen.client =
            client(reading, observation.tls.as_deref(), &seen, observation.ip, facts, learnt);
        let (system, prompt) = texts(&observation.conversation);
        let hash = text_hash(system, prompt, key);
        seen.text = learnt.readings.get(hash).unwrap_or_else(|| {
            let read = TextSeen::of(&facts.text.read(system, prompt));
            learnt.readings.put(hash, read);
            read
        });
        seen
    }

    /// Everything but what the client and the prompt's text show.
    fn without_text(observation: &Observation, reading: &ClientReading, key: &Key) -> Self {
        let conversation = &observation.conversation;
        let sampling = &conversation.sampling;
        let (system_text, text) = texts(conversation);
        let model = keyed::hash(key, conversation.model.as_deref().unwrap_or("").as_bytes());
        let settings = keyed::hash_parts(
            key,
            &[
                &model.to_le_bytes(),
                &sampling.max_tokens.unwrap_or(0).to_le_bytes(),
                &sampling.temperature.unwrap_or(-1.0).to_bits().to_le_bytes(),
                &sampling.top_p.unwrap_or(-1.0).to_bits().to_le_bytes(),
                &sampling.n.unwrap_or(0).to_le_bytes(),
                &[u8::from(sampling.stream), u8::from(sampling.structured)],
            ],
        );
        Self {
            at_ms: observation.at_ms,
            id: exchange_key(&observation.id, key),
            address: address(observation.ip, key),
            subnet: subnet(observation.ip, key),
            network: observation.network.kind,
            model,
            settings: (settings >> 32) as u32,
            rig: keyed::hash_parts(
                key,
                &[&reading.software.to_le_bytes(), &settings.to_le_bytes()],
            ),
            shape: reading.shape,
            prompt: if text.len() >= PROMPT_BYTES_MIN { short(key, &[text.as_bytes()]) } else { 0 },
            frames: frames(text, key),
            system: system(system_text, key),
            task_chain: numbers_tasks(system_text),
            opening: opening(text, key),
            prompt_chars: u32::try_from(text.len()).unwrap_or(u32::MAX),
            history: conversation.turns.iter().any(|turn| turn.role == Role::Assistant),
            tool_turn: conversation.turns.last().is_some_and(|turn| turn.role == Role::Tool),
            tools: !conversation.tools.is_empty(),
            readable: conversation.turns.iter().any(|turn| turn.role == Role::User),
            max_tokens: sampling.max_tokens,
            samples: sampling.n.unwrap_or(1).max(1),
            dns: None,
            released_h: None,
            any_release: false,
            foreign_marks: observation.foreign_marks,
            hits: indicator::hits(observation, reading, key),
            text: TextSeen::default(),
            client: ClientSeen::default(),
        }
    }

    /// The prompt's capability category plus one; 0 where none was found.
    #[must_use]
    pub fn topic(&self) -> u8 {
        self.text.topic.map_or(0, |(topic, _)| topic + 1)
    }

    /// Unix seconds.
    #[must_use]
    pub fn at_s(&self) -> u32 {
        u32::try_from(self.at_ms / 1000).unwrap_or(u32::MAX)
    }
}

pub(crate) fn address(ip: IpAddr, key: &Key) -> u64 {
    match ip {
        IpAddr::V4(ip) => keyed::hash(key, &ip.octets()),
        // One host has a whole /64.
        IpAddr::V6(ip) => keyed::hash(key, &ip.octets()[..8]),
    }
}

/// Hash of an exchange's name.
pub(crate) fn exchange_key(id: &str, key: &Key) -> u32 {
    short(key, &[id.as_bytes()])
}

pub(crate) fn subnet(ip: IpAddr, key: &Key) -> u64 {
    match ip {
        IpAddr::V4(ip) => keyed::hash(key, &ip.octets()[..3]),
        IpAddr::V6(ip) => keyed::hash(key, &ip.octets()[..6]),
    }
}

fn client(
    mut reading: ClientReading,
    tls: Option<&TlsCapture>,
    seen: &Seen,
    ip: IpAddr,
    facts: &Facts,
    learnt: &mut Learnt,
) -> ClientSeen {
    let mut permutation = PermutationWatch::default();
    if let Some(tls) = tls {
        if let Some(unexpected) = learnt.ja3s.unexpected(&facts.clients, &reading, tls) {
            reading.add(unexpected);
        }
        learnt.ja3s.learn(&reading, tls);
        permutation.observe(&facts.clients, &reading, tls, ip, seen.at_ms);
    }
    let of_http2 = |kind: ContradictionKind| {
        matches!(kind, ContradictionKind::UserAgentVsHttp2 | ContradictionKind::TlsVsHttp2)
    };
    let http2 = reading.contradictions.iter().filter(|found| of_http2(found.kind));
    let mut families = FamilySet::default();
    if let Some(family) = reading.claimed {
        families.insert(family);
    }
    ClientSeen {
        strength: reading.strength,
        http2: http2.map(|found| found.strength).fold(0.0, f32::max).min(reading.strength),
        grpc: reading.is_grpc,
        bulk_window: reading.bulk_window,
        families,
        permutation,
    }
}

/// System prompt and prompt: the last thing that the caller said.
fn texts(conversation: &Conversation) -> (&str, &str) {
    let prompt = conversation.turns.iter().rev().find(|turn| turn.role == Role::User);
    (conversation.system.as_str(), prompt.map_or("", |turn| turn.text.as_str().trim()))
}

/// Never 0, which an empty place among the readings has.
fn text_hash(system: &str, prompt: &str, key: &Key) -> u64 {
    keyed::hash_parts(key, &[system.as_bytes(), prompt.as_bytes()]) | 1
}

/// Numbers vary within one template, letters' case does not matter.
fn fold(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(FRAME_BYTES_MAX));
    let mut digits = false;
    for c in text.chars() {
        if out.len() >= FRAME_BYTES_MAX {
            break;
        }
        let digit = c.is_ascii_digit();
        if !(digit && digits) {
            out.push(if digit { '0' } else { c.to_ascii_lowercase() });
        }
        digits = digit;
    }
    out
}

/// A short hash, for what is one of few: never 0, which stands for nothing.
fn short(key: &Key, parts: &[&[u8]]) -> u32 {
    ((keyed::hash_parts(key, parts) >> 32) as u32).max(1)
}

fn frames(text: &str, key: &Key) -> [u32; 2] {
    let frame = |kind: u8, part: &str| {
        let part = part.trim();
        if part.len() < FRAME_BYTES_MIN || part.len() >= text.len() {
            return 0;
        }
        short(key, &[&[kind], fold(part).as_bytes()])
    };
    match text.split_once("\n\n") {
        Some((first, _)) => {
            let last = text.rsplit_once("\n\n").map_or("", |(_, last)| last);
            [frame(0, first), frame(1, last)]
        }
        None => {
            let mut words = text.match_indices(' ');
            [words.nth(7).map_or(0, |(end, _)| frame(2, &text[..end])), 0]
        }
    }
}

fn system(text: &str, key: &Key) -> Option<u64> {
    let mut kept = String::new();
    let mut rest = text.trim();
    while !rest.is_empty() && kept.len() < SYSTEM_BYTES {
        let end = rest.find(['.', '\n', '!', '?']).map_or(rest.len(), |end| end + 1);
        let (sentence, after) = rest.split_at(end);
        // A date, a user's number: it says nothing of who wrote the prompt.
        if !sentence.bytes().any(|b| b.is_ascii_digit()) {
            kept.push_str(sentence.trim());
        }
        rest = after;
    }
    let end = kept.char_indices().map(|(at, _)| at).find(|at| *at >= SYSTEM_BYTES);
    let kept = &kept[..end.unwrap_or(kept.len())];
    (kept.len() >= FRAME_BYTES_MIN).then(|| keyed::hash(key, fold(kept).as_bytes()))
}

/// Whether lines begin with `1.`, `2.`, `3.` and so on, three at least.
fn numbers_tasks(text: &str) -> bool {
    let mut next = 1;
    for line in text.lines().take(200) {
        let line = line.trim_start();
        let digits = line.len() - line.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if line[digits..].starts_with(['.', ')']) && line[..digits].parse() == Ok(next) {
            next += 1;
        }
    }
    next > 3
}

fn opening(text: &str, key: &Key) -> u32 {
    let end = text
        .match_indices(char::is_whitespace)
        .nth(OPENING_WORDS - 1)
        .map_or(text.len(), |(end, _)| end);
    let opening = fold(text.get(..end.min(200)).unwrap_or(""));
    (keyed::hash(key, opening.as_bytes()) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_tasks_are_told_from_numbers() {
        for (text, expected) in [
            ("1. Plan\n2. Solve\n3. Check", true),
            ("Do this:\n  1) a\n  2) b\n  3) c\nthen stop", true),
            ("1. Plan\n3. Check\n4. Tell", false),
            ("In 2024. And 3 more.", false),
            ("", false),
            ("99999999999999999999. x", false),
        ] {
            assert_eq!(numbers_tasks(text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_varies_in_a_system_prompt_does_not_count() {
        let key = [1; 16];
        let one = system("Today is 2026-11-20. You answer questions on sailing boats.", &key);
        let other = system("Today is 2026-11-21. You answer questions on sailing boats.", &key);
        assert!(one.is_some() && one == other);
        assert_ne!(one, system("You answer questions on rowing boats and kayaks.", &key));
        assert_eq!(system("Be brief.", &key), None);
    }

    #[test]
    fn frames_are_the_paragraphs_around_what_varies() {
        let key = [1; 16];
        let ends = |text: &str| frames(text, &key);
        let [first, last] = ends("Solve this exercise now.\n\nOne.\n\nShow every step, please.");
        assert!(first != 0 && last != 0 && first != last);
        assert_eq!(ends("Solve this exercise now.\n\nAnother thing")[0], first);
        assert_eq!(ends("Short\n\nalso short"), [0, 0]);
        let long = "Translate the words of this line into plain German please: alpha";
        assert!(ends(long)[0] != 0 && ends(long)[0] == ends(&long.replace("alpha", "beta"))[0]);
    }
}
