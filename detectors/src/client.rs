//! Whether a client is what it says it is.
//!
//! What it sees: how a client names itself (`user-agent`, `x-stainless-*`), its ClientHello, the
//! opening of its HTTP/2 connection, its header block in wire order. Each layer is read for the
//! software that it fits, and the layers are held against each other.
//!
//! Why it matters: a campaign that rotates user agents over one library, or replays a browser's
//! ClientHello under another library's HTTP/2, contradicts itself (T-DIST-003a, b, c); a gRPC
//! client with a raised window is set up for bulk (T-DIST-010). The three hashes name a client's
//! make without naming its user, so that accounts with one rare make can be seen together.
//!
//! When it is wrong: companies inspect TLS, so an honest browser arrives with a middlebox's hello
//! over HTTP/1.1: that is `middlebox_like` and weak, and a spoofer who copies a whole header set
//! hides there. A patched browser (E3) or a true one that is driven contradicts nothing. Someone
//! may set another user agent for no bad reason: a contradiction is evidence, never a verdict.
//! Without JA3 and JA4 the TLS layer says nothing. GREASE is taken as evidence only where seen.
//!
//! Source: the threat model's T-DIST-003 and T-DIST-010; RFC 8446, RFC 8701, RFC 9113; the Fetch
//! standard for what browsers send with a POST; `data/clients.toml` for the facts.

mod facts;
mod hello;
mod shape;
mod watch;

use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

pub use facts::{ClientFacts, ClientKind, FactsError};
pub use watch::{FixedJa3, Ja3sBaseline, PermutationWatch};

use crate::{HttpCapture, HttpVersion, TlsCapture};
use facts::{
    FIELD_ACCEPT, FIELD_CONTENT_TYPE, FIELD_SEC_FETCH_MODE, FIELD_STAINLESS_LANG,
    FIELD_STAINLESS_RUNTIME, FIELD_UPGRADE, FIELD_USER_AGENT, Family,
};
use hello::Hello;
use shape::Block;

/// A window above this is set up for bulk (T-DIST-010).
const BULK_WINDOW_BYTES: u32 = 200_000_000;
/// The most that contradictions behind a TLS-inspecting middlebox weigh.
const MIDDLEBOX_STRENGTH_MAX: f32 = 0.15;
/// The most that contradictions of a request that names an intermediary weigh.
const INTERMEDIARY_STRENGTH_MAX: f32 = 0.3;
/// TLS of one family with the HTTP/2 of another, neither of them of the family claimed.
const TLS_VS_HTTP2_STRENGTH: f32 = 0.75;
/// The SDK's own headers name another language than its user agent does.
const STAINLESS_STRENGTH: f32 = 0.6;
/// A browser cannot navigate with a JSON body, but honest scripts impersonate browsers too.
const NAVIGATION_STRENGTH: f32 = 0.45;
/// A browser whose header names stand in alphabetical order: a map was sorted.
const ALPHABETICAL_STRENGTH: f32 = 0.6;
/// A browser whose HTTP/1.1 header names are in lower case.
const NAME_CASE_STRENGTH: f32 = 0.2;

/// A family of client software, by its number in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FamilyId(pub u8);

/// Families of client software. Merging is union, so a memory of "all families that an account
/// has used" stays one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FamilySet(u64);

impl FamilySet {
    /// Adds a family.
    pub fn insert(&mut self, id: FamilyId) {
        self.0 |= 1_u64.checked_shl(u32::from(id.0)).unwrap_or(0);
    }

    /// Whether a family is in the set.
    #[must_use]
    pub fn contains(self, id: FamilyId) -> bool {
        self.0 & 1_u64.checked_shl(u32::from(id.0)).unwrap_or(0) != 0
    }

    /// Adds all of another set: commutative, associative, idempotent.
    pub fn merge(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// How many families.
    #[must_use]
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set as one word, for storage.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// A set from storage.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// Two layers that do not belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContradictionKind {
    /// The ClientHello is not of the software that the user agent names.
    UserAgentVsTls,
    /// The HTTP/2 opening is not of the software that the user agent names.
    UserAgentVsHttp2,
    /// The header block is not of the software that the user agent names.
    UserAgentVsHeaders(HeaderReason),
    /// No known software opens such an HTTP/2 connection over such a ClientHello.
    TlsVsHttp2,
    /// The SDK's own headers and its user agent name different languages or runtimes.
    StainlessVsUserAgent,
    /// The server's choice is the one that scripts get, not the one that this family gets.
    Ja3sUnexpected,
}

/// What is amiss in a header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderReason {
    /// Fields that the family always sends are missing, or say something else.
    Missing,
    /// Fields stand in an order that the family never uses.
    Order,
    /// All names stand in alphabetical order.
    Alphabetical,
    /// Headers of a page load on a POST of JSON.
    NavigationPost,
    /// Names in lower case on HTTP/1.1.
    NameCase,
}

/// A contradiction and its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contradiction {
    /// What contradicts what.
    pub kind: ContradictionKind,
    /// 0 to 1.
    pub strength: f32,
}

impl Contradiction {
    /// The contradiction in words, without anything that the client wrote.
    #[must_use]
    pub fn explain(&self) -> &'static str {
        match self.kind {
            ContradictionKind::UserAgentVsTls => {
                "the TLS handshake is not of the software that the client says it is"
            }
            ContradictionKind::UserAgentVsHttp2 => {
                "the HTTP/2 connection is not opened by the software that the client says it is"
            }
            ContradictionKind::UserAgentVsHeaders(reason) => match reason {
                HeaderReason::Missing => "headers that such a client always sends are missing",
                HeaderReason::Order => "the headers stand in an order that no such client uses",
                HeaderReason::Alphabetical => {
                    "the headers stand in alphabetical order, which no browser does"
                }
                HeaderReason::NavigationPost => {
                    "JSON is posted with the headers of a page load, which no browser does"
                }
                HeaderReason::NameCase => {
                    "the header names are in lower case, which no such client does on HTTP/1.1"
                }
            },
            ContradictionKind::TlsVsHttp2 => {
                "the TLS handshake and the HTTP/2 connection are of different software"
            }
            ContradictionKind::StainlessVsUserAgent => {
                "the SDK's own headers name another language than its user agent does"
            }
            ContradictionKind::Ja3sUnexpected => {
                "the server's choice of cipher is the one that scripts get, not this browser"
            }
        }
    }
}

/// What one request tells of the client behind it.
#[derive(Clone, Debug)]
pub struct ClientReading {
    /// The family that the client says it is, by user agent or else by `x-stainless-lang`.
    pub claimed: Option<FamilyId>,
    /// What kind of client it says it is.
    pub claimed_kind: Option<ClientKind>,
    /// The major version that a browser claims, where its user agent has one.
    pub claimed_version: Option<u32>,
    /// TLS stacks that the hello fits (bits by the order of the table); 0 for none.
    pub by_tls: u64,
    /// HTTP/2 stacks that the connection fits; 0 for none or for HTTP/1.1.
    pub by_http2: u64,
    /// Families whose header habits all hold.
    pub by_headers: FamilySet,
    /// What does not belong together.
    pub contradictions: Vec<Contradiction>,
    /// All contradictions together, 0 to 1.
    pub strength: f32,
    /// No user agent, or a TLS connection without a fingerprint.
    pub missing: bool,
    /// A whole header set over another TLS stack on HTTP/1.1: TLS inspection, most likely.
    pub middlebox_like: bool,
    /// The request says itself that it came through an intermediary.
    pub intermediary: bool,
    /// A library or tool: by what it says, or by a TLS stack that only scripts use.
    pub is_script: bool,
    /// Says that it is a web browser.
    pub is_browser: bool,
    /// Says that it is a gRPC library, or sends gRPC.
    pub is_grpc: bool,
    /// An HTTP/2 window above 200 MB that its software does not always open.
    pub bulk_window: bool,
    /// Keyed hash of the whole make: TLS, HTTP/2, header names, versions.
    pub shape: u64,
    /// Keyed hash of the make without versions, operating system and architecture.
    pub software: u64,
    /// Keyed hash of TLS and HTTP/2 alone.
    pub tls_h2: u64,
}

impl ClientReading {
    /// Adds a contradiction that came from elsewhere (a baseline) and weighs anew.
    pub fn add(&mut self, contradiction: Contradiction) {
        self.contradictions.push(contradiction);
        self.weigh();
    }

    fn weigh(&mut self) {
        let innocent: f32 =
            self.contradictions.iter().map(|c| 1.0 - c.strength.clamp(0.0, 1.0)).product();
        let most = if self.middlebox_like {
            MIDDLEBOX_STRENGTH_MAX
        } else if self.intermediary {
            INTERMEDIARY_STRENGTH_MAX
        } else {
            1.0
        };
        self.strength = (1.0 - innocent).clamp(0.0, most);
    }
}

impl ClientFacts {
    /// Reads one request. `key` keys the hashes: the same key gives the same hashes.
    #[must_use]
    pub fn read(
        &self,
        tls: Option<&TlsCapture>,
        http: &HttpCapture,
        key: &[u8; 16],
    ) -> ClientReading {
        let hello = tls.and_then(Hello::read);
        let by_tls = match (&hello, tls) {
            (Some(hello), _) => hello.stacks(self),
            (None, Some(tls)) => hello::stacks_by_ja4(self, &tls.ja4),
            (None, None) => 0,
        };
        let by_http2 = http.h2.as_ref().map_or(0, |h2| hello::http2_stacks(self, h2));
        let block = Block::read(self, http);
        let user_agent = block.value(FIELD_USER_AGENT);
        let runtime = block.value(FIELD_STAINLESS_RUNTIME);
        let by_user_agent =
            user_agent.and_then(|user_agent| self.claimed(user_agent, runtime.unwrap_or_default()));
        let languages =
            block.value(FIELD_STAINLESS_LANG).and_then(|language| self.language(language));
        let family = by_user_agent.or_else(|| {
            let set = languages?;
            self.families.iter().find(|family| set.contains(family.number))
        });
        let version = family.zip(user_agent).and_then(|(family, text)| version(family, text));
        let kind = family.map(|family| family.kind);
        let hashes = shape::hashes(key, hello.as_ref(), tls, http, &block);
        let grpc = block.value(FIELD_CONTENT_TYPE).is_some_and(|kind| {
            starts(kind, "application/grpc") && !starts(kind, "application/grpc-web")
        });

        let mut reading = ClientReading {
            claimed: family.map(|family| family.number),
            claimed_kind: kind,
            claimed_version: version,
            by_tls,
            by_http2,
            by_headers: FamilySet::default(),
            contradictions: Vec::new(),
            strength: 0.0,
            missing: user_agent.is_none_or(str::is_empty)
                || tls.is_some_and(|tls| tls.ja3.is_empty() && tls.ja4.is_empty()),
            middlebox_like: false,
            intermediary: block.intermediary,
            is_script: matches!(kind, Some(ClientKind::Script | ClientKind::Grpc)),
            is_browser: kind == Some(ClientKind::Browser),
            is_grpc: grpc || kind == Some(ClientKind::Grpc),
            bulk_window: self.has_bulk_window(http, by_http2),
            shape: hashes.shape,
            software: hashes.software,
            tls_h2: hashes.tls_h2,
        };
        for family in &self.families {
            let habits = &family.headers;
            if habits.present != 0
                && habits.present & !block.present == 0
                && self.lacks(family, &block, http, None) == 0
                && !block.breaks(habits)
            {
                reading.by_headers.insert(family.number);
            }
        }
        if let Some(family) = family {
            let input = Input { hello: hello.is_some(), tls, http, block: &block, version };
            self.hold_against(family, &input, &mut reading);
        }
        self.pair(http, &mut reading);
        if let (Some(named), Some(set)) = (by_user_agent, languages)
            && !set.contains(named.number)
        {
            // An SDK inside a browser keeps the browser's user agent.
            let in_browser =
                named.kind == ClientKind::Browser && runtime.is_some_and(|r| starts(r, "browser"));
            if !in_browser {
                push(&mut reading, ContradictionKind::StainlessVsUserAgent, STAINLESS_STRENGTH);
            }
        } else if let (Some(named), Some(runtime)) = (by_user_agent, runtime)
            && !named.stainless_runtime.is_empty()
            && !named.stainless_runtime.iter().any(|known| starts(runtime, known))
        {
            push(&mut reading, ContradictionKind::StainlessVsUserAgent, STAINLESS_STRENGTH);
        }
        if !reading.middlebox_like && by_tls != 0 && by_tls & self.browser_tls == 0 {
            reading.is_script |= by_tls & self.script_tls != 0;
        }
        reading.weigh();
        reading
    }

    /// The evidence in one line: what the client says it is, and what each layer is of.
    #[must_use]
    pub fn describe(&self, reading: &ClientReading) -> String {
        let mut text = String::new();
        match reading.claimed {
            Some(id) => {
                text.push_str("says ");
                text.push_str(self.family_name(id));
                if let Some(version) = reading.claimed_version {
                    // Writing to a string cannot fail.
                    let _ = write!(text, " {version}");
                }
            }
            None => text.push_str("says nothing known of itself"),
        }
        let layer = |text: &mut String, layer: &str, names: Vec<&str>| {
            if !names.is_empty() {
                text.push_str(layer);
                text.push_str(&names.join(" or "));
            }
        };
        let bits = |mask: u64, index: usize| mask & (1 << index) != 0;
        let tls = self.tls.iter().enumerate().filter(|(at, _)| bits(reading.by_tls, *at));
        layer(&mut text, ", TLS is of ", tls.map(|(_, stack)| stack.name.as_str()).collect());
        let http2 = self.http2.iter().enumerate().filter(|(at, _)| bits(reading.by_http2, *at));
        layer(&mut text, ", HTTP/2 of ", http2.map(|(_, stack)| stack.name.as_str()).collect());
        if reading.middlebox_like {
            text.push_str(", as behind a TLS-inspecting middlebox");
        }
        for contradiction in &reading.contradictions {
            text.push_str("; ");
            text.push_str(contradiction.explain());
        }
        text
    }

    /// Ids of the TLS stacks in a mask.
    #[must_use]
    pub fn tls_ids(&self, mask: u64) -> Vec<&str> {
        let stacks = self.tls.iter().enumerate().filter(|(at, _)| mask & (1 << at) != 0);
        stacks.map(|(_, stack)| stack.id.as_str()).collect()
    }

    /// Ids of the HTTP/2 stacks in a mask.
    #[must_use]
    pub fn http2_ids(&self, mask: u64) -> Vec<&str> {
        let stacks = self.http2.iter().enumerate().filter(|(at, _)| mask & (1 << at) != 0);
        stacks.map(|(_, stack)| stack.id.as_str()).collect()
    }

    fn claimed(&self, user_agent: &str, runtime: &str) -> Option<&Family> {
        let says = |pattern: &facts::RawUserAgent| {
            pattern.exact.as_ref().is_none_or(|exact| user_agent.eq_ignore_ascii_case(exact))
                && pattern.starts.as_ref().is_none_or(|start| starts(user_agent, start))
                && pattern.runtime.as_ref().is_none_or(|start| starts(runtime, start))
                && pattern.contains.as_ref().is_none_or(|part| user_agent.contains(part.as_str()))
                && pattern.without.as_ref().is_none_or(|part| !user_agent.contains(part.as_str()))
        };
        self.families.iter().find(|family| family.user_agent.iter().any(says))
    }

    fn language(&self, language: &str) -> Option<FamilySet> {
        let known = self.languages.iter().find(|(known, _)| known.eq_ignore_ascii_case(language));
        known.map(|(_, set)| *set)
    }

    fn hold_against(&self, family: &Family, input: &Input<'_>, reading: &mut ClientReading) {
        let habits = &family.headers;
        // Browsers keep sec-fetch-*, sec-ch-ua and brotli for secure origins, and open a WebSocket
        // or ask for permission (CORS) with other headers.
        let judged = input.tls.is_some()
            && input.http.method != "OPTIONS"
            && input.block.value(FIELD_UPGRADE).is_none();
        let lacking =
            if judged { self.lacks(family, input.block, input.http, input.version) } else { 0 };
        let disordered = judged && input.block.breaks(habits);

        let foreign = reading.by_tls != 0 && reading.by_tls & family.tls == 0;
        let unknown = input.hello && reading.by_tls == 0;
        if family.tls != 0 && (foreign || unknown) {
            let of_middlebox = self
                .tls
                .iter()
                .enumerate()
                .any(|(at, stack)| stack.middlebox && reading.by_tls & (1 << at) != 0);
            let whole = habits.present != 0 && lacking == 0 && !disordered;
            reading.middlebox_like = whole
                && (unknown || of_middlebox)
                && input.http.version != HttpVersion::Http2
                && input.http.h2.is_none()
                && !input.tls.is_some_and(hello::offers_http2);
            let strength = if reading.middlebox_like {
                MIDDLEBOX_STRENGTH_MAX
            } else if foreign {
                family.tls_strength
            } else {
                family.tls_unknown_strength
            };
            push(reading, ContradictionKind::UserAgentVsTls, strength);
        }

        if let Some(h2) = input.http.h2.as_ref().filter(|h2| hello::is_ordinary(h2))
            && family.http2 != 0
            && reading.by_http2 & family.http2 == 0
        {
            let known = reading.by_http2 != 0 || self.never(family, &h2.pseudo);
            let strength =
                if known { family.http2_strength } else { family.http2_unknown_strength };
            push(reading, ContradictionKind::UserAgentVsHttp2, strength);
        }

        let is_browser = family.kind == ClientKind::Browser;
        let mut reasons = [
            (HeaderReason::Missing, 0.0),
            (HeaderReason::Order, 0.0),
            (HeaderReason::Alphabetical, 0.0),
            (HeaderReason::NavigationPost, 0.0),
            (HeaderReason::NameCase, 0.0),
        ];
        if lacking > 0 {
            reasons[0].1 = habits.missing[(lacking as usize).min(3) - 1];
        }
        if disordered {
            reasons[1].1 = habits.order_strength;
        }
        if is_browser {
            if input.block.is_alphabetical() {
                reasons[2].1 = ALPHABETICAL_STRENGTH;
            }
            if navigates_with_json(input.http, input.block) {
                reasons[3].1 = NAVIGATION_STRENGTH;
            }
            if habits.h1_title
                && !reading.middlebox_like
                && input.http.version == HttpVersion::Http11
                && input.http.headers.iter().any(|field| &*field.name == "user-agent")
            {
                reasons[4].1 = NAME_CASE_STRENGTH;
            }
        }
        let strongest = reasons.into_iter().reduce(|a, b| if b.1 > a.1 { b } else { a });
        if let Some((reason, strength)) = strongest {
            push(reading, ContradictionKind::UserAgentVsHeaders(reason), strength);
        }
    }

    /// How many of a family's header habits do not hold.
    fn lacks(
        &self,
        family: &Family,
        block: &Block<'_>,
        http: &HttpCapture,
        version: Option<u32>,
    ) -> u32 {
        let habits = &family.headers;
        if let (Some(since), Some(version)) = (habits.since, version)
            && version < since
        {
            return 0;
        }
        let navigates = block.value(FIELD_SEC_FETCH_MODE) == Some("navigate");
        let mut wanted = habits.present;
        if http.method == "POST" && !navigates {
            wanted |= habits.present_on_post;
        }
        let missing = (wanted & !block.present).count_ones();
        let surplus = (habits.absent & block.present).count_ones();
        let other = habits.values.iter().filter(|(field, part)| {
            block.value(*field).is_some_and(|value| !value.contains(part.as_str()))
        });
        missing + surplus + u32::try_from(other.count()).unwrap_or(0)
    }

    /// Whether none of the HTTP/2 stacks of a family orders its pseudo-headers so.
    fn never(&self, family: &Family, pseudo: &str) -> bool {
        !self.http2.iter().enumerate().any(|(at, stack)| {
            family.http2 & (1 << at) != 0 && stack.pseudo.iter().any(|order| order == pseudo)
        })
    }

    fn pair(&self, http: &HttpCapture, reading: &mut ClientReading) {
        let Some(h2) = &http.h2 else { return };
        if reading.by_tls == 0 || reading.by_http2 == 0 || !hello::is_ordinary(h2) {
            return;
        }
        let stacks =
            self.pairs.iter().enumerate().filter(|(at, _)| reading.by_tls & (1 << at) != 0);
        let allowed = stacks.fold(0, |mask, (_, allowed)| mask | allowed);
        if reading.by_http2 & allowed == 0 {
            push(reading, ContradictionKind::TlsVsHttp2, TLS_VS_HTTP2_STRENGTH);
        }
    }

    fn has_bulk_window(&self, http: &HttpCapture, by_http2: u64) -> bool {
        const INITIAL_WINDOW_SIZE: u16 = 4;
        let Some(h2) = &http.h2 else { return false };
        let usual = self.http2.iter().enumerate().any(|(at, stack)| {
            by_http2 & (1 << at) != 0
                && stack.window_update_usual > 0
                && h2.window_update <= stack.window_update_usual
        });
        let raised =
            |&(id, value): &(u16, u32)| id == INITIAL_WINDOW_SIZE && value > BULK_WINDOW_BYTES;
        h2.settings.iter().any(raised) || (h2.window_update > BULK_WINDOW_BYTES && !usual)
    }
}

struct Input<'a> {
    hello: bool,
    tls: Option<&'a TlsCapture>,
    http: &'a HttpCapture,
    block: &'a Block<'a>,
    version: Option<u32>,
}

fn push(reading: &mut ClientReading, kind: ContradictionKind, strength: f32) {
    if strength > 0.0 {
        reading.contradictions.push(Contradiction { kind, strength });
    }
}

fn starts(text: &str, start: &str) -> bool {
    text.as_bytes()
        .get(..start.len())
        .is_some_and(|text| text.eq_ignore_ascii_case(start.as_bytes()))
}

/// A page load cannot carry JSON: the Fetch standard gives a form three content types. Browsers
/// before `sec-fetch-mode` show a page load by what they accept.
fn navigates_with_json(http: &HttpCapture, block: &Block<'_>) -> bool {
    http.method == "POST"
        && block.value(FIELD_CONTENT_TYPE).is_some_and(|kind| starts(kind, "application/json"))
        && match block.value(FIELD_SEC_FETCH_MODE) {
            Some(mode) => mode == "navigate",
            None => block.value(FIELD_ACCEPT).is_some_and(|kinds| starts(kinds, "text/html")),
        }
}

/// The number after the first of a family's marks that stands in the user agent.
fn version(family: &Family, user_agent: &str) -> Option<u32> {
    family.version_after.iter().find_map(|mark| {
        let at = user_agent.find(mark.as_str())? + mark.len();
        let digits = user_agent.as_bytes()[at..].iter().take_while(|byte| byte.is_ascii_digit());
        digits.take(6).fold(None, |number: Option<u32>, byte| {
            Some(number.unwrap_or(0) * 10 + u32::from(byte - b'0'))
        })
    })
}

#[cfg(test)]
mod tests;
