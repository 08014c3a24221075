//! What an exchange shows, worked out once for all detectors: readings, keyed hashes and counts.
//! No text gets past this point.

use std::net::IpAddr;

use crate::client::{ContradictionKind, FamilySet, Ja3sBaseline, PermutationWatch};
use crate::conversation::{Finish, Role};
use crate::facts::Facts;
use crate::keyed::{self, Key};
use crate::network::NetworkKind;
use crate::observation::Observation;
use crate::text::{FAMILIES, Family, Reading};

/// Shortest prompt, in bytes, whose repetition means anything: `hello` is everybody's.
const PROMPT_BYTES_MIN: usize = 32;
/// Shortest paragraph, in bytes, that counts as a frame around varying text.
const FRAME_BYTES_MIN: usize = 20;
/// Longest part of a text that is hashed for frames and system prompts, in bytes.
const FRAME_BYTES_MAX: usize = 1_024;
/// Readings that are kept for texts that come again.
const READINGS: usize = 4_096;
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
    /// How long the answer took, milliseconds.
    pub duration_ms: u32,
    /// The encrypted resolver that the address uses.
    pub resolver: Option<u64>,
    /// Hours since the model that was asked was released, where it was lately.
    pub released_h: Option<f32>,
    /// Whether any model was released within the last 24 hours.
    pub any_release: bool,
    /// What the prompt's text shows.
    pub text: TextSeen,
    /// What the client shows of itself.
    pub client: ClientSeen,
    /// Whether a filter or a refusal ended the answer.
    pub refused: bool,
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
    fn read(&mut self, system: &str, prompt: &str, facts: &Facts, key: &Key) -> TextSeen {
        let hash = keyed::hash_parts(key, &[system.as_bytes(), prompt.as_bytes()]) | 1;
        let slot = &mut self.slots[(hash >> 32) as usize % READINGS];
        if slot.0 != hash {
            *slot = (hash, TextSeen::of(&facts.text.read(system, prompt)));
        }
        slot.1
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

/// What reading exchanges has taught so far.
#[derive(Clone, Debug, Default)]
pub struct Learnt {
    /// What this server answers each family of clients in its ServerHello.
    pub ja3s: Ja3sBaseline,
    /// Texts that came lately.
    pub readings: Readings,
}

impl Seen {
    /// Reads an exchange.
    #[must_use]
    pub fn read(observation: &Observation, facts: &Facts, learnt: &mut Learnt, key: &Key) -> Self {
        let conversation = &observation.conversation;
        let sampling = &conversation.sampling;
        let prompt = conversation.turns.iter().rev().find(|turn| turn.role == Role::User);
        let text = prompt.map_or("", |turn| turn.text.as_str().trim());
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
        let (client, shape, software) = client(observation, facts, &mut learnt.ja3s, key);
        let system_text = conversation.system.as_str();
        let history = conversation.turns.iter().any(|turn| turn.role == Role::Assistant);
        Self {
            at_ms: observation.at_ms,
            id: short(key, &[observation.id.as_bytes()]),
            address: address(observation.ip, key),
            subnet: subnet(observation.ip, key),
            network: observation.network.kind,
            model,
            settings: (settings >> 32) as u32,
            rig: keyed::hash_parts(key, &[&software.to_le_bytes(), &settings.to_le_bytes()]),
            shape,
            prompt: if text.len() >= PROMPT_BYTES_MIN { short(key, &[text.as_bytes()]) } else { 0 },
            frames: frames(text, key),
            system: system(system_text, key),
            task_chain: numbers_tasks(system_text),
            opening: opening(text, key),
            prompt_chars: u32::try_from(text.len()).unwrap_or(u32::MAX),
            history,
            tool_turn: conversation.turns.last().is_some_and(|turn| turn.role == Role::Tool),
            tools: !conversation.tools.is_empty(),
            readable: prompt.is_some(),
            max_tokens: sampling.max_tokens,
            samples: sampling.n.unwrap_or(1).max(1),
            duration_ms: u32::try_from(observation.answer.duration_ms).unwrap_or(u32::MAX),
            resolver: None,
            released_h: None,
            any_release: false,
            text: learnt.readings.read(system_text, text, facts, key),
            client,
            refused: observation.answer.finish == Some(Finish::Filtered)
                || observation.answer.refusal_chars > 0,
        }
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

fn subnet(ip: IpAddr, key: &Key) -> u64 {
    match ip {
        IpAddr::V4(ip) => keyed::hash(key, &ip.octets()[..3]),
        IpAddr::V6(ip) => keyed::hash(key, &ip.octets()[..6]),
    }
}

fn client(
    observation: &Observation,
    facts: &Facts,
    ja3s: &mut Ja3sBaseline,
    key: &Key,
) -> (ClientSeen, u64, u64) {
    let tls = observation.tls.as_deref();
    let mut reading = facts.clients.read(tls, &observation.http, key);
    let mut permutation = PermutationWatch::default();
    if let Some(tls) = tls {
        if let Some(unexpected) = ja3s.unexpected(&facts.clients, &reading, tls) {
            reading.add(unexpected);
        }
        ja3s.learn(&reading, tls);
        permutation.observe(&facts.clients, &reading, tls, observation.ip, observation.at_ms);
    }
    let of_http2 = |kind: ContradictionKind| {
        matches!(kind, ContradictionKind::UserAgentVsHttp2 | ContradictionKind::TlsVsHttp2)
    };
    let http2 = reading.contradictions.iter().filter(|found| of_http2(found.kind));
    let mut families = FamilySet::default();
    if let Some(family) = reading.claimed {
        families.insert(family);
    }
    let seen = ClientSeen {
        strength: reading.strength,
        http2: http2.map(|found| found.strength).fold(0.0, f32::max).min(reading.strength),
        grpc: reading.is_grpc,
        bulk_window: reading.bulk_window,
        families,
        permutation,
    };
    (seen, reading.shape, reading.software)
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
