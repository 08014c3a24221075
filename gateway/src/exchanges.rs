//! What is kept of an exchange after it was judged: a ring for operators, a trace for replay.
//!
//! Neither holds a prompt or a completion. A text is kept as its [`TextMark`]: counts, and a keyed
//! hash by which equal texts can be tied without either being known. The hash key is derived from
//! the identity key with a label of its own, so that no text hash is ever an account pseudonym.
//!
//! # The trace
//!
//! `record = "FILE"` appends one JSON object a line: an `account` record before the first
//! `request` record of each account. The body of a request is a valid request of the provider's
//! own format, made again from the conversation: model, sampling, roles, tool names and the number
//! of attachments are kept, and each text that is not empty is replaced by its mark,
//!
//! ```text
//! ⟨text chars=812 words=140 lines=3 non_ascii=0 invisible=0 hash=9f86d081884c7d65⟩
//! ```
//!
//! so that any reader of that format reads it, and [`TextMark::parse`] gives the features back.
//! With `text = true` the texts themselves are written, except where one has the shape of a mark
//! (it is marked in its turn, so every mark in a trace is the recorder's) and where the line would
//! be longer than [`RECORD_LINE_BYTES_MAX`]. Tool arguments, tool schemas and attachments are never
//! written, gRPC messages are opaque (`contents` is empty) and unknown formats have the body `{}`.
//! Of a long conversation the last [`EXCHANGE_TURNS_MAX`] turns are kept.
//!
//! What a reader should know besides:
//! - Lines are appended as exchanges **end**; `ts` is the request's arrival. A stable sort by `ts`
//!   puts them in order of arrival and keeps every account before its first request, because an
//!   account's `ts` is the time the trace was opened. Its `created` is null: when an account was
//!   created only the operator knows.
//! - What sensors told of is among them, as `dns` and `contact` lines, when they told it; `ts` is when
//!   it happened, by this gateway's clock.
//! - An account may be announced again, after a restart or when it was not seen for long.
//! - `account` and `org` are the first 12 and 10 digits of the exchange's. One without a credential
//!   is given an account made from its address.
//! - `id` is `r` and the last 14 digits of the exchange's id.
//! - `tls` is null on plain-text listeners, `ip` is an IPv6 address where the peer's is.
//! - A header whose value was not captured has an empty value; its place in the order stays.
//! - Where the provider did not say how many tokens there were, one for four characters is
//!   written.

mod trace;

pub use trace::{RecordError, Recorder};

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use detectors::{
    AccountId, Answer, Event, Format, HeaderField, HttpCapture, Observation, OrganisationId, Role,
    Sampling, Text, TextFeatures, TlsCapture, ToolCall,
};
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::account::is_credential_header;
use crate::limits::{
    EXCHANGE_TOOLS_MAX, EXCHANGE_TURNS_MAX, FINGERPRINT_CHARS_MAX, OUTSIDE_CHARS_MAX,
    RECORD_ATTACHMENTS_MAX,
};
use crate::metrics::Metrics;

/// Query parameters whose values say how to answer, never what was asked.
const QUERY_VALUES_KEPT: &[&str] = &["$alt", "alt", "api-version", "beta", "prettyPrint"];

/// The latest exchanges, bounded, and the trace where one is recorded.
#[derive(Debug)]
pub struct ExchangeLog {
    kept_max: usize,
    key: TextKey,
    ring: Mutex<VecDeque<Arc<Exchange>>>,
    recorder: Option<Recorder>,
    metrics: Arc<Metrics>,
}

impl ExchangeLog {
    /// An empty log that keeps the latest `kept_max` exchanges.
    #[must_use]
    pub fn new(kept_max: usize, key: TextKey, metrics: Arc<Metrics>) -> Self {
        Self { kept_max, key, ring: Mutex::default(), recorder: None, metrics }
    }

    /// Also writes every exchange to a trace.
    #[must_use]
    pub fn with_recorder(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// Keeps what may be kept of an exchange that has ended. Never blocks on IO.
    pub fn push(&self, observation: Observation) {
        let exchange = Arc::new(Exchange::new(&observation, &self.key));
        if exchange.is_cut() {
            self.metrics.exchanges_cut.inc();
        }
        if let Some(recorder) = &self.recorder {
            recorder.record(Arc::clone(&exchange), observation.conversation);
        }
        // What falls out of the ring is dropped after the lock is.
        let _oldest = {
            let mut ring = self.ring.lock();
            let oldest = if ring.len() >= self.kept_max { ring.pop_front() } else { None };
            if self.kept_max > 0 {
                ring.push_back(exchange);
            }
            oldest
        };
    }

    /// Writes what a sensor saw to the trace, where one is recorded. Never blocks on IO.
    pub fn sensed(&self, events: Vec<Event>) {
        if let Some(recorder) = &self.recorder {
            recorder.record_sensed(events);
        }
    }

    /// Up to `limit` exchanges, newest first.
    #[must_use]
    pub fn latest(&self, limit: usize) -> Vec<Arc<Exchange>> {
        self.ring.lock().iter().rev().take(limit).cloned().collect()
    }

    /// Writes what waits for the trace and ends its writer. Later exchanges go to the ring only.
    pub fn close(&self) {
        if let Some(recorder) = &self.recorder {
            recorder.close();
        }
    }
}

/// What is kept of one exchange.
#[derive(Debug, Serialize)]
pub struct Exchange {
    /// Unique name.
    pub id: String,
    /// Arrival of the request, RFC 3339 in UTC.
    pub at: String,
    /// Arrival of the request, unix milliseconds.
    pub at_ms: u64,
    /// Who asked.
    pub account: Option<AccountId>,
    /// The account's organisation.
    pub organisation: Option<OrganisationId>,
    /// Address of the client.
    pub ip: IpAddr,
    /// Route taken; empty when none matched.
    pub route: Arc<str>,
    /// TLS fingerprint.
    pub tls: Option<Arc<TlsCapture>>,
    /// HTTP fingerprint, header values cut to [`OUTSIDE_CHARS_MAX`].
    pub http: HttpCapture,
    /// Provider format.
    pub format: Format,
    /// What was asked, without its texts.
    pub conversation: ConversationFeatures,
    /// What was answered.
    pub answer: Answer,
}

/// A conversation without its texts.
#[derive(Debug, Serialize)]
pub struct ConversationFeatures {
    /// The model that the request names.
    pub model: Option<String>,
    /// System prompt, preamble or instructions.
    pub system: TextMark,
    /// Turns in the request; [`Self::turns`] holds the last [`EXCHANGE_TURNS_MAX`] of them.
    pub turns_total: usize,
    /// The turns in order.
    pub turns: Vec<TurnFeatures>,
    /// Tools on offer; [`Self::tools`] holds the first [`EXCHANGE_TOOLS_MAX`] of them.
    pub tools_total: usize,
    /// Names of the tools on offer, in order.
    pub tools: Vec<String>,
    /// What was asked of the sampler.
    pub sampling: Sampling,
}

/// A turn without its text.
#[derive(Debug, Serialize)]
pub struct TurnFeatures {
    /// Who speaks.
    pub role: Role,
    /// What is kept of the text.
    pub text: TextMark,
    /// Names of the tools that an assistant turn calls, in order.
    pub tool_calls: Vec<String>,
    /// Images, audio, files and other parts that are not text.
    pub attachments: u32,
}

impl Exchange {
    /// What may be kept of `observation`.
    #[must_use]
    pub fn new(observation: &Observation, key: &TextKey) -> Self {
        let conversation = &observation.conversation;
        let first_kept = conversation.turns.len().saturating_sub(EXCHANGE_TURNS_MAX);
        let turns = conversation.turns.iter().skip(first_kept);
        Self {
            id: cut(&observation.id, OUTSIDE_CHARS_MAX),
            at: rfc3339(observation.at_ms),
            at_ms: observation.at_ms,
            account: observation.account.clone(),
            organisation: observation.organisation.clone(),
            ip: observation.ip.to_canonical(),
            route: Arc::clone(&observation.route),
            tls: observation.tls.as_ref().map(kept_tls),
            http: kept_http(&observation.http),
            format: observation.format,
            conversation: ConversationFeatures {
                model: conversation.model.as_deref().map(outside),
                system: key.mark(&conversation.system),
                turns_total: conversation.turns.len(),
                turns: turns
                    .map(|turn| TurnFeatures {
                        role: turn.role,
                        text: key.mark(&turn.text),
                        tool_calls: kept_names(&turn.tool_calls),
                        attachments: turn.attachments,
                    })
                    .collect(),
                tools_total: conversation.tools.len(),
                tools: kept_names(&conversation.tools),
                sampling: Sampling {
                    reasoning: conversation.sampling.reasoning.as_deref().map(outside),
                    ..conversation.sampling.clone()
                },
            },
            answer: kept_answer(&observation.answer),
        }
    }

    /// Whether something of the exchange lay beyond a bound and was not kept.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        let conversation = &self.conversation;
        conversation.turns_total > conversation.turns.len()
            || conversation.tools_total > conversation.tools.len()
            || conversation.turns.iter().any(|turn| turn.attachments > RECORD_ATTACHMENTS_MAX)
    }

    /// Bytes that this exchange holds, near enough for a bound.
    fn weight_bytes(&self) -> usize {
        let turns = &self.conversation.turns;
        let names = self.conversation.tools.len()
            + turns.iter().map(|turn| turn.tool_calls.len()).sum::<usize>();
        size_of::<Self>()
            + self.http.path.len()
            + self.http.headers.len() * 96
            + turns.len() * size_of::<TurnFeatures>()
            + names * (size_of::<String>() + 32)
    }
}

/// Keys of what is hashed here, each derived from the identity key for its own purpose.
#[derive(Clone)]
pub struct TextKey {
    texts: Hmac<Sha256>,
    pseudonyms: Hmac<Sha256>,
}

impl TextKey {
    /// Derives the keys.
    #[must_use]
    pub fn new(identity_key: &[u8]) -> Self {
        Self {
            texts: keyed(b"stillgate text hash", identity_key),
            pseudonyms: keyed(b"stillgate trace pseudonym", identity_key),
        }
    }

    /// What may be kept of `text`.
    #[must_use]
    pub fn mark(&self, text: &Text) -> TextMark {
        let hash = (!text.is_empty()).then(|| {
            let full = self.texts.clone().chain_update(text.as_str()).finalize().into_bytes();
            let mut hash = [0; 8];
            hash.copy_from_slice(&full[..8]);
            TextHash(hash)
        });
        TextMark { features: text.features(), hash }
    }

    /// A pseudonym in the trace's shape; `kind` keeps those of different things apart.
    fn pseudonym(&self, kind: &str, of: &str, hex_digits: usize) -> String {
        let digest = self.pseudonyms.clone().chain_update(kind).chain_update([0]).chain_update(of);
        let mut hex = hex::encode(digest.finalize().into_bytes());
        hex.truncate(hex_digits);
        hex
    }
}

impl fmt::Debug for TextKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TextKey(…)")
    }
}

/// HMAC-SHA256 under a key that is bound to `domain`.
fn keyed(domain: &[u8], key: &[u8]) -> Hmac<Sha256> {
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    let derived = Sha256::new().chain_update(domain).chain_update([0]).chain_update(key).finalize();
    block[..derived.len()].copy_from_slice(&derived);
    <Hmac<Sha256> as KeyInit>::new(&block)
}

/// First 8 bytes of a keyed hash of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TextHash(pub [u8; 8]);

impl fmt::Display for TextHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for TextHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is kept of a text: counts and a keyed hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TextMark {
    /// Counts.
    #[serde(flatten)]
    pub features: TextFeatures,
    /// Equal for equal texts under one key; `None` for the empty text.
    pub hash: Option<TextHash>,
}

/// Member that a mark stands in where the format wants an object for a tool's result (Gemini).
const RESULT: &str = "result";
/// How a mark begins and ends, in place of a text.
const MARK_START: &str = "\u{27e8}text ";
const MARK_END: char = '\u{27e9}';

impl TextMark {
    /// Reads a mark back from the trace, also out of the object that a Gemini tool result is; the
    /// empty text is the mark of itself. `None` for anything that is not exactly what
    /// [`fmt::Display`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let inside = text.strip_prefix('{').and_then(|rest| rest.strip_suffix("\"}"));
        let inside = inside.and_then(|rest| rest.strip_prefix('"')?.strip_prefix(RESULT));
        let text = inside.and_then(|rest| rest.strip_prefix("\":\"")).unwrap_or(text);
        if text.is_empty() {
            return Some(Self::default());
        }
        let mut fields = text.strip_prefix(MARK_START)?.strip_suffix(MARK_END)?.split(' ');
        let mut count = |name: &str| -> Option<u32> {
            fields.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok()
        };
        let features = TextFeatures {
            chars: count("chars")?,
            words: count("words")?,
            lines: count("lines")?,
            non_ascii: count("non_ascii")?,
            invisible: count("invisible")?,
        };
        let mut hash = [0; 8];
        hex::decode_to_slice(fields.next()?.strip_prefix("hash=")?, &mut hash).ok()?;
        let mark = Self { features, hash: Some(TextHash(hash)) };
        (mark.to_string() == text).then_some(mark)
    }
}

impl fmt::Display for TextMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(hash) = self.hash else { return Ok(()) };
        let TextFeatures { chars, words, lines, non_ascii, invisible } = self.features;
        write!(
            f,
            "{MARK_START}chars={chars} words={words} lines={lines} non_ascii={non_ascii} \
             invisible={invisible} hash={hash}{MARK_END}"
        )
    }
}

/// One capture serves all requests of a connection, so it is shared unless it must be cut.
fn kept_tls(tls: &Arc<TlsCapture>) -> Arc<TlsCapture> {
    const NAMES_MAX: usize = 32;
    let long = |text: &str| text.len() > FINGERPRINT_CHARS_MAX;
    let fits = !long(&tls.ja3)
        && !tls.ja3s.as_deref().is_some_and(long)
        && tls.ja4.len() <= OUTSIDE_CHARS_MAX
        && tls.sni.as_deref().is_none_or(|name| name.len() <= 2 * OUTSIDE_CHARS_MAX)
        && tls.alpn.len() <= NAMES_MAX
        && tls.alpn.iter().all(|name| name.len() <= OUTSIDE_CHARS_MAX);
    if fits {
        return Arc::clone(tls);
    }
    let mut kept = TlsCapture::clone(tls);
    kept.ja3 = cut(&kept.ja3, FINGERPRINT_CHARS_MAX);
    kept.ja3s = kept.ja3s.map(|ja3s| cut(&ja3s, FINGERPRINT_CHARS_MAX));
    kept.ja4 = outside(&kept.ja4);
    kept.sni = kept.sni.map(|name| cut(&name, 2 * OUTSIDE_CHARS_MAX));
    kept.alpn.truncate(NAMES_MAX);
    for name in &mut kept.alpn {
        *name = outside(name);
    }
    Arc::new(kept)
}

fn kept_http(http: &HttpCapture) -> HttpCapture {
    let shorter = |text: &Arc<str>| {
        if text.len() > OUTSIDE_CHARS_MAX { outside(text).into() } else { Arc::clone(text) }
    };
    // The capture leaves credentials out already; what is kept does not depend on that alone.
    let headers = http.headers.iter().map(|field| HeaderField {
        name: shorter(&field.name),
        value: field.value.as_ref().filter(|_| !is_credential_header(&field.name)).map(shorter),
    });
    HttpCapture {
        version: http.version,
        method: outside(&http.method),
        path: kept_path(&http.path),
        headers: headers.collect(),
        h2: http.h2.clone(),
    }
}

/// Query values may hold what was asked (`?prompt=…`): only those that cannot are kept.
fn kept_path(path: &str) -> String {
    let Some((path, query)) = path.split_once('?') else {
        return cut(path, FINGERPRINT_CHARS_MAX);
    };
    let pairs: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, "REDACTED")) => format!("{}=REDACTED", outside(name)),
            Some((name, value)) if QUERY_VALUES_KEPT.contains(&name) => {
                format!("{name}={}", outside(value))
            }
            Some((name, _)) => format!("{}=", outside(name)),
            None => outside(pair),
        })
        .collect();
    cut(&format!("{path}?{}", pairs.join("&")), FINGERPRINT_CHARS_MAX)
}

fn kept_answer(answer: &Answer) -> Answer {
    let calls = answer.tool_calls.iter().take(EXCHANGE_TOOLS_MAX);
    Answer {
        tool_calls: calls
            .map(|call| ToolCall { name: outside(&call.name), argument_bytes: call.argument_bytes })
            .collect(),
        error: answer.error.as_deref().map(outside),
        model: answer.model.as_deref().map(outside),
        ..*answer
    }
}

fn kept_names(names: &[String]) -> Vec<String> {
    names.iter().take(EXCHANGE_TOOLS_MAX).map(|name| outside(name)).collect()
}

fn outside(text: &str) -> String {
    cut(text, OUTSIDE_CHARS_MAX)
}

fn cut(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}

fn compact<T: Serialize + ?Sized>(value: &T) -> String {
    // Strings, numbers, lists and maps with string keys have no way to fail.
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

fn rfc3339(ms: u64) -> String {
    let nanoseconds = i128::from(ms) * 1_000_000;
    let Ok(at) = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds) else {
        return String::new();
    };
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second, milli) = at.to_hms_milli();
    let month = u8::from(month);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use detectors::{Conversation, Finish, Http2Capture, HttpVersion, Turn, Usage};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::trace::{
        Announced, Shown, request_line, trace_account, trace_body, trace_id, trace_response,
    };
    use super::*;
    use crate::config::Record;
    use crate::limits::{RECORD_ACCOUNTS_MAX, RECORD_FLUSH_INTERVAL, RECORD_LINE_BYTES_MAX};

    const SECRET: &str = "marmalade-heliograph-7731";

    fn key() -> TextKey {
        TextKey::new(b"0123456789abcdef0123456789abcdef")
    }

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::new().unwrap())
    }

    fn field(name: &str, value: Option<&str>) -> HeaderField {
        HeaderField { name: name.into(), value: value.map(Into::into) }
    }

    fn turn(role: Role, text: &str, tool_calls: &[&str], attachments: u32) -> Turn {
        let tool_calls = tool_calls.iter().map(|&name| name.to_owned()).collect();
        Turn { role, text: Text::new(text), tool_calls, attachments }
    }

    /// An exchange with every field set, the secret in each of its texts.
    fn observation(format: Format) -> Observation {
        Observation {
            id: "r0123456789abcdef".to_owned(),
            at_ms: 1_763_629_479_042,
            account: Some(AccountId::new("acct-00112233aabb")),
            organisation: Some(OrganisationId::new("org-0123456789")),
            ip: "203.0.113.9".parse().unwrap(),
            network: detectors::Network::default(),
            route: "main".into(),
            tls: Some(Arc::new(TlsCapture {
                version: "1.3".to_owned(),
                ja3: "771,4865-4866,0-10,29,0".to_owned(),
                ja4: "t13d0202h2_aa_bb".to_owned(),
                alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
                ..TlsCapture::default()
            })),
            http: HttpCapture {
                version: HttpVersion::Http2,
                method: "POST".to_owned(),
                path: format!("/v1/x?alt=sse&key=REDACTED&q={SECRET}"),
                headers: vec![
                    field("content-length", Some("9000")),
                    field("authorization", None),
                    field("X-Api-Key", Some("never")),
                    field("user-agent", Some("curl/8")),
                    field("x-own", None),
                    field("x-long", Some(&"v".repeat(500))),
                ],
                h2: Some(Http2Capture {
                    settings: vec![(3, 100), (4, 65_535)],
                    window_update: 7,
                    pseudo: "m,p,s,a".to_owned(),
                    ..Http2Capture::default()
                }),
            },
            format,
            foreign_marks: 0,
            indicators: Vec::new(),
            conversation: Conversation {
                model: Some("m-1".to_owned()),
                system: Text::new(format!("system {SECRET}")),
                turns: vec![
                    turn(Role::User, &format!("ask {SECRET}"), &[], 1),
                    turn(Role::Assistant, "", &["look_up"], 0),
                    turn(Role::Tool, &format!("found {SECRET}"), &[], 0),
                    turn(Role::User, &format!("and {SECRET}"), &[], 0),
                ],
                tools: vec!["look_up".to_owned()],
                sampling: Sampling {
                    max_tokens: Some(64),
                    temperature: Some(0.5),
                    stream: true,
                    reasoning: Some("high".to_owned()),
                    ..Sampling::default()
                },
            },
            answer: Answer {
                status: 200,
                usage: Some(Usage { prompt_tokens: 31, completion_tokens: 12, ..Usage::default() }),
                finish: Some(Finish::Stop),
                duration_ms: 950,
                ..Answer::default()
            },
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for format in Format::ALL {
            for texts in [false, true] {
                let mut observation = observation(format);
                observation.http.path = match format {
                    Format::OpenaiChat => "/v1/chat/completions",
                    Format::OpenaiResponses => "/v1/responses",
                    Format::OpenaiCompletions => "/v1/completions",
                    Format::AnthropicMessages => "/v1/messages",
                    Format::GeminiGenerate => "/v1beta/models/m-1:streamGenerateContent",
                    Format::Grpc => "/llm.Service/StreamGenerateContent",
                    Format::Unknown => "/v1/embeddings",
                }
                .to_owned();
                let exchange = Exchange::new(&observation, &key());
                let account = trace_account(&exchange, &key());
                let texts = texts.then_some(&observation.conversation);
                let line = request_line(&exchange, &account, Some("org-0123456789"), texts, &key());
                let input = std::io::Cursor::new(line.into_bytes());
                let name = Path::new("trace");
                let mut reader = crate::trace::TraceReader::from_reader(name, input).unwrap();
                let Some(Ok(Event::Exchange(read))) = reader.next() else {
                    panic!("{format:?}: not read");
                };
                assert_eq!(read.format, format);
                assert_eq!((read.at_ms, read.ip), (observation.at_ms, observation.ip));
                assert_eq!(read.account, observation.account);
                assert_eq!(read.organisation, observation.organisation);
                assert_eq!(read.answer.usage, observation.answer.usage);
                let tls = |of: &Observation| of.tls.as_deref().map(|tls| tls.ja3.clone());
                assert_eq!(tls(&read), tls(&observation));
                assert_eq!(read.http.h2, observation.http.h2);
                let names: Vec<_> = read.http.headers.iter().map(|field| &*field.name).collect();
                assert_eq!(names, ["content-length", "user-agent", "x-own", "x-long"]);
                if matches!(format, Format::Unknown | Format::OpenaiCompletions) {
                    continue;
                }
                assert_eq!(read.conversation.model.as_deref(), Some("m-1"), "{format:?}");
                assert!(read.conversation.sampling.stream);
                let said = observation.conversation.turns.iter().filter(|it| !it.text.is_empty());
                let turns = read.conversation.turns.iter().filter(|it| !it.text.is_empty());
                for (said, turn) in said.zip(turns) {
                    match texts {
                        Some(_) if said.role != Role::Tool => assert_eq!(turn.text, said.text),
                        Some(_) => assert!(turn.text.as_str().contains(said.text.as_str())),
                        None => {
                            let mark = TextMark::parse(turn.text.as_str());
                            assert_eq!(mark, Some(key().mark(&said.text)), "{format:?}");
                        }
                    }
                }
            }
        }
    }

    /// A folder that is gone at the end of the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("stillgate-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn record(&self, text: bool) -> Record {
            Record { path: self.0.join("trace.jsonl"), text }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn log_to(record: &Record, queue_max: usize, metrics: &Arc<Metrics>) -> ExchangeLog {
        let recorder = Recorder::open(record, queue_max, key(), Arc::clone(metrics)).unwrap();
        ExchangeLog::new(8, key(), Arc::clone(metrics)).with_recorder(recorder)
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn no_text_is_kept_by_default() {
        let folder = Folder::new("private");
        let metrics = metrics();
        let log = log_to(&folder.record(false), 64, &metrics);
        for format in Format::ALL {
            log.push(observation(format));
        }
        log.close();
        let trace = fs::read_to_string(folder.record(false).path).unwrap();
        let ring = compact(&log.latest(100)) + &format!("{:?}", log.latest(100));
        assert_eq!(trace.lines().count(), 1 + Format::ALL.len());
        assert_eq!(log.latest(100).len(), Format::ALL.len());
        for kept in [trace, ring] {
            for (text, is_kept) in [
                (SECRET, false),
                ("never", false),
                ("look_up", true),
                ("user-agent", true),
                (&"v".repeat(OUTSIDE_CHARS_MAX), true),
                (&"v".repeat(OUTSIDE_CHARS_MAX + 1), false),
            ] {
                assert_eq!(kept.contains(text), is_kept, "{text}");
            }
        }
    }

    #[test]
    fn texts_are_written_when_asked_for() {
        let folder = Folder::new("texts");
        let metrics = metrics();
        let log = log_to(&folder.record(true), 64, &metrics);
        log.push(observation(Format::OpenaiChat));
        let mut lookalike = observation(Format::OpenaiChat);
        let forged = key().mark(&Text::new("not mine")).to_string();
        lookalike.conversation.turns = vec![turn(Role::User, &forged, &[], 0)];
        log.push(lookalike);
        let mut long = observation(Format::OpenaiChat);
        long.conversation.turns =
            vec![turn(Role::User, &"long ".repeat(RECORD_LINE_BYTES_MAX / 5), &[], 0)];
        log.push(long);
        log.close();

        let lines = lines(&folder.record(true).path);
        let last_text = |line: &Value| {
            line["body"]["messages"].as_array().unwrap().last().unwrap()["content"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(lines[1]["body"]["messages"][0]["content"], format!("system {SECRET}"));
        assert_eq!(last_text(&lines[1]), format!("and {SECRET}"));
        let forged = key().mark(&Text::new(forged)).to_string();
        assert_eq!(last_text(&lines[2]), forged, "a text in a mark's shape is marked");
        let mark = TextMark::parse(&last_text(&lines[3])).unwrap();
        assert_eq!(mark.features.words as usize, RECORD_LINE_BYTES_MAX / 5);
        assert!(!log.latest(9).iter().any(|exchange| compact(&**exchange).contains(SECRET)));
    }

    #[test]
    fn a_request_record_follows_the_format() {
        let exchange = Exchange::new(&observation(Format::OpenaiCompletions), &key());
        let mut found: Value =
            serde_json::from_str(&request_line(&exchange, "acct-00112233aabb", None, None, &key()))
                .unwrap();
        let body = compact(&found["body"]);
        let prompts = found["body"]["prompt"].take();
        let marks: Vec<_> = prompts
            .as_array()
            .unwrap()
            .iter()
            .map(|text| TextMark::parse(text.as_str().unwrap()).unwrap().features.chars)
            .collect();
        assert_eq!(marks, [29, 0, 31, 29]);
        assert_eq!(
            found,
            json!({
                "kind": "request", "ts": 1_763_629_479.042, "id": "r23456789abcdef",
                "account": "acct-00112233aabb", "org": null, "ip": "203.0.113.9",
                "tls": {
                    "version": "1.3", "ja3": "771,4865-4866,0-10,29,0", "ja3s": null,
                    "ja4": "t13d0202h2_aa_bb", "alpn": ["h2", "http/1.1"],
                },
                "http": {
                    "version": "2", "method": "POST", "path": "/v1/x?alt=sse&key=REDACTED&q=",
                    "headers": [
                        ["content-length", body.len().to_string()], ["user-agent", "curl/8"],
                        ["x-own", ""], ["x-long", "v".repeat(OUTSIDE_CHARS_MAX)],
                    ],
                    "h2": {
                        "settings": [[3, 100], [4, 65535]], "window_update": 7, "priority": [],
                        "pseudo": "m,p,s,a",
                    },
                },
                "body": {
                    "model": "m-1", "prompt": null, "max_tokens": 64, "temperature": 0.5,
                    "stream": true,
                },
                "response": {
                    "status": 200, "prompt_tokens": 31, "completion_tokens": 12,
                    "duration_ms": 950,
                },
            })
        );
        let line = request_line(&exchange, "acct-00112233aabb", None, None, &key());
        assert!(line.starts_with(r#"{"kind":"request","ts":1763629479.042,"id":"r2345"#), "{line}");
        assert!(line.ends_with("}\n") && line.matches('\n').count() == 1);
    }

    #[test]
    fn bodies_have_their_providers_shape() {
        let mark = |text: &str| key().mark(&Text::new(format!("{text} {SECRET}"))).to_string();
        let (system, ask, found, and) = (mark("system"), mark("ask"), mark("found"), mark("and"));
        let object = json!({ "type": "object" });
        let cases = [
            (
                Format::OpenaiChat,
                json!({
                    "model": "m-1", "max_tokens": 64, "temperature": 0.5, "stream": true,
                    "reasoning_effort": "high",
                    "messages": [
                        { "role": "system", "content": system },
                        { "role": "user", "content": [
                            { "type": "text", "text": ask },
                            { "type": "file", "file": { "file_id": "attachment" } },
                        ] },
                        { "role": "assistant", "content": null, "tool_calls": [{
                            "id": "call_1", "type": "function",
                            "function": { "name": "look_up", "arguments": "{}" },
                        }] },
                        { "role": "tool", "tool_call_id": "call_1", "content": found },
                        { "role": "user", "content": and },
                    ],
                    "tools": [{
                        "type": "function",
                        "function": { "name": "look_up", "parameters": object },
                    }],
                }),
            ),
            (
                Format::OpenaiResponses,
                json!({
                    "model": "m-1", "max_output_tokens": 64, "temperature": 0.5, "stream": true,
                    "reasoning": { "effort": "high" }, "instructions": system,
                    "input": [
                        { "role": "user", "content": [
                            { "type": "input_text", "text": ask },
                            { "type": "input_file", "file_id": "attachment" },
                        ] },
                        {
                            "type": "function_call", "call_id": "call_1", "name": "look_up",
                            "arguments": "{}",
                        },
                        { "type": "function_call_output", "call_id": "call_1", "output": found },
                        { "role": "user", "content": and },
                    ],
                    "tools": [{ "type": "function", "name": "look_up", "parameters": object }],
                }),
            ),
            (
                Format::AnthropicMessages,
                json!({
                    "model": "m-1", "max_tokens": 64, "temperature": 0.5, "stream": true,
                    "output_config": { "effort": "high" }, "system": system,
                    "messages": [
                        { "role": "user", "content": [
                            { "type": "text", "text": ask },
                            { "type": "document",
                              "source": { "type": "file", "file_id": "attachment" } },
                        ] },
                        { "role": "assistant", "content": [
                            { "type": "tool_use", "id": "call_1", "name": "look_up", "input": {} },
                        ] },
                        { "role": "user", "content": [
                            { "type": "tool_result", "tool_use_id": "call_1", "content": found },
                        ] },
                        { "role": "user", "content": and },
                    ],
                    "tools": [{ "name": "look_up", "input_schema": object }],
                }),
            ),
            (
                Format::GeminiGenerate,
                json!({
                    "systemInstruction": { "parts": [{ "text": system }] },
                    "generationConfig": {
                        "maxOutputTokens": 64, "temperature": 0.5,
                        "thinkingConfig": { "thinkingLevel": "high" },
                    },
                    "contents": [
                        { "role": "user", "parts": [
                            { "text": ask },
                            { "fileData": {
                                "mimeType": "application/octet-stream", "fileUri": "attachment",
                            } },
                        ] },
                        { "role": "model", "parts": [
                            { "functionCall": { "name": "look_up", "args": {} } },
                        ] },
                        { "role": "user", "parts": [
                            { "functionResponse": {
                                "name": "look_up", "response": { "result": found },
                            } },
                        ] },
                        { "role": "user", "parts": [{ "text": and }] },
                    ],
                    "tools": [{ "functionDeclarations": [{ "name": "look_up" }] }],
                }),
            ),
            (Format::Unknown, json!({})),
        ];
        for (format, expected) in cases {
            let exchange = Exchange::new(&observation(format), &key());
            let body = trace_body(&exchange, &Shown::new(&exchange, None, &key()));
            assert_eq!(body, expected, "{format:?}");
        }
    }

    #[test]
    fn bodies_are_read_back_as_they_were() {
        let readable = [
            Format::OpenaiChat,
            Format::OpenaiResponses,
            Format::AnthropicMessages,
            Format::GeminiGenerate,
        ];
        for format in readable.into_iter().chain([Format::OpenaiCompletions]) {
            let mut seen = observation(format);
            let conversation = &mut seen.conversation;
            if format == Format::OpenaiCompletions {
                // The oldest format knows one text and nothing around it.
                *conversation = Conversation {
                    model: conversation.model.clone(),
                    turns: vec![turn(Role::User, "once", &[], 0)],
                    sampling: Sampling { reasoning: None, ..conversation.sampling.clone() },
                    ..Conversation::default()
                };
            }
            let conversation = &seen.conversation;
            let exchange = Exchange::new(&seen, &key());
            let mut marked = conversation.clone();
            let mark = |text: &Text| Text::new(key().mark(text).to_string());
            marked.system = mark(&marked.system);
            for turn in &mut marked.turns {
                turn.text = mark(&turn.text);
            }
            for (texts, expected) in [(Some(conversation), conversation), (None, &marked)] {
                let body = trace_body(&exchange, &Shown::new(&exchange, texts, &key())).to_string();
                let path = "/v1beta/models/m-1:streamGenerateContent?alt=sse";
                let read = crate::wire::read_request(format, path, body.as_bytes()).unwrap();
                let mut expected = expected.clone();
                if format == Format::GeminiGenerate {
                    let result = &mut expected.turns[2].text;
                    *result = Text::new(json!({ "result": result.as_str() }).to_string());
                }
                assert_eq!(read, expected, "{format:?} {body}");
                // Read once more, a result that is an object already stays what it is.
                let again = Observation { conversation: read, ..seen.clone() };
                let exchange = Exchange::new(&again, &key());
                let shown = Shown::new(&exchange, Some(&again.conversation), &key());
                if texts.is_some() {
                    assert_eq!(trace_body(&exchange, &shown).to_string(), body, "{format:?}");
                }
            }
        }
    }

    #[test]
    fn small_requests_stay_small() {
        for (format, expected) in [
            (Format::OpenaiChat, json!({ "messages": [{ "role": "user", "content": "hi" }] })),
            (Format::OpenaiResponses, json!({ "input": "hi" })),
            (Format::OpenaiCompletions, json!({ "prompt": "hi" })),
            (
                Format::AnthropicMessages,
                json!({ "messages": [{ "role": "user", "content": "hi" }] }),
            ),
            (
                Format::GeminiGenerate,
                json!({ "contents": [{ "role": "user", "parts": [{ "text": "hi" }] }] }),
            ),
            (
                Format::Grpc,
                json!({ "contents": [{ "role": "user", "parts": [{ "text": "hi" }] }] }),
            ),
        ] {
            let mut seen = observation(format);
            seen.conversation = Conversation {
                turns: vec![turn(Role::User, "hi", &[], 0)],
                ..Conversation::default()
            };
            let exchange = Exchange::new(&seen, &key());
            let shown = Shown::new(&exchange, Some(&seen.conversation), &key());
            assert_eq!(trace_body(&exchange, &shown), expected, "{format:?}");
        }
    }

    #[test]
    fn reasoning_is_spelled_as_anthropic_does() {
        for (spelled, member, expected) in [
            ("2048", "thinking", json!({ "type": "enabled", "budget_tokens": 2048 })),
            ("adaptive", "thinking", json!({ "type": "adaptive" })),
            ("low", "output_config", json!({ "effort": "low" })),
        ] {
            let mut seen = observation(Format::AnthropicMessages);
            seen.conversation.sampling.reasoning = Some(spelled.to_owned());
            let exchange = Exchange::new(&seen, &key());
            let body = trace_body(&exchange, &Shown::new(&exchange, None, &key()));
            assert_eq!(body[member], expected);
        }
    }

    #[test]
    fn equal_texts_are_tied_and_keys_are_apart() {
        let hash = |key: &TextKey, text: &str| key.mark(&Text::new(text)).hash.unwrap();
        assert_eq!(hash(&key(), "a b"), hash(&key(), "a b"));
        assert_ne!(hash(&key(), "a b"), hash(&key(), "a c"));
        let other = TextKey::new(b"another identity key of 32 bytes");
        assert_ne!(hash(&key(), "a b"), hash(&other, "a b"));
        // An account pseudonym is an HMAC under the identity key itself.
        let mut account =
            <Hmac<Sha256> as Mac>::new_from_slice(b"0123456789abcdef0123456789abcdef").unwrap();
        account.update(b"a b");
        assert_ne!(account.finalize().into_bytes()[..8], hash(&key(), "a b").0);
        assert_eq!(key().mark(&Text::default()), TextMark::default());
    }

    #[test]
    fn the_ring_is_bounded_and_newest_first() {
        for kept_max in [0, 1, 3] {
            let log = ExchangeLog::new(kept_max, key(), metrics());
            for index in 0..5 {
                let id = format!("r{index:016x}");
                log.push(Observation { id, ..observation(Format::Unknown) });
            }
            let ids: Vec<_> = log.latest(9).iter().map(|exchange| exchange.id.clone()).collect();
            let expected: Vec<_> =
                (0..5).rev().take(kept_max).map(|index| format!("r{index:016x}")).collect();
            assert_eq!(ids, expected);
            assert_eq!(log.latest(1).len(), kept_max.min(1));
        }
    }

    #[test]
    fn what_lies_beyond_a_bound_is_counted() {
        let metrics = metrics();
        let log = ExchangeLog::new(8, key(), Arc::clone(&metrics));
        log.push(observation(Format::OpenaiChat));
        assert_eq!(metrics.exchanges_cut.get(), 0);
        let mut seen = observation(Format::OpenaiChat);
        seen.conversation.turns = vec![turn(Role::User, "x", &[], 0); EXCHANGE_TURNS_MAX + 5];
        seen.conversation.turns[5].text = Text::new("the first that is kept");
        seen.conversation.tools = vec!["t".repeat(4000); EXCHANGE_TOOLS_MAX * 3];
        seen.conversation.model = Some("ü".repeat(4000));
        seen.tls = Some(Arc::new(TlsCapture {
            ja3: "1-".repeat(FINGERPRINT_CHARS_MAX),
            alpn: vec!["x".repeat(255); 4000],
            ..TlsCapture::default()
        }));
        log.push(seen);
        assert_eq!(metrics.exchanges_cut.get(), 1);
        let kept = &log.latest(1)[0];
        assert_eq!(kept.conversation.turns.len(), EXCHANGE_TURNS_MAX);
        assert_eq!(kept.conversation.turns_total, EXCHANGE_TURNS_MAX + 5);
        assert_eq!(kept.conversation.turns[0].text.features.words, 5);
        assert_eq!(kept.conversation.model.as_ref().unwrap().chars().count(), OUTSIDE_CHARS_MAX);
        assert!(compact(&**kept).len() < 100_000);
    }

    #[test]
    fn accounts_come_before_their_requests() {
        let folder = Folder::new("accounts");
        let metrics = metrics();
        let record = folder.record(false);
        let log = log_to(&record, 64, &metrics);
        let long = "acct-00112233aabb00112233aabb";
        let from = |account: Option<&str>, ip: &str| Observation {
            account: account.map(AccountId::new),
            ip: ip.parse().unwrap(),
            organisation: Some(OrganisationId::new("A name")),
            tls: None,
            ..observation(Format::Unknown)
        };
        for seen in [
            from(Some("acct-00112233aabb"), "192.0.2.1"),
            from(Some(long), "192.0.2.2"),
            from(Some("other shape"), "192.0.2.1"),
            from(None, "192.0.2.1"),
            from(None, "::ffff:192.0.2.1"),
            from(None, "2001:db8::1"),
        ] {
            log.push(seen);
        }
        log.close();
        let lines = lines(&record.path);
        let mut announced = HashSet::new();
        for line in &lines {
            let account = line["account"].as_str().unwrap();
            let digits = account.strip_prefix("acct-").unwrap();
            assert!(digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
            assert_eq!(line["org"].as_str().unwrap().len(), 14, "{line}");
            match line["kind"].as_str().unwrap() {
                "account" => {
                    assert!(announced.insert(account));
                    assert!(line["created"].is_null());
                    assert_eq!(
                        (&line["payment"], &line["bin"], &line["verified"]),
                        (&Value::Null, &Value::Null, &json!(false))
                    );
                }
                _ => assert!(announced.contains(account) && line["tls"].is_null()),
            }
        }
        assert_eq!((announced.len(), lines.len()), (4, 10));
        assert_eq!(lines.last().unwrap()["ip"], "2001:db8::1");
        assert_eq!(metrics.exchanges_recorded.get(), 6);
    }

    #[test]
    fn the_file_is_private_and_appended_to() {
        let folder = Folder::new("append");
        let record = folder.record(false);
        let mode = || fs::metadata(&record.path).unwrap().permissions().mode() & 0o777;
        let log = log_to(&record, 64, &metrics());
        assert_eq!(mode(), 0o600);
        log.push(observation(Format::Unknown));
        drop(log);
        let first = fs::read_to_string(&record.path).unwrap();
        // As if the process had been killed in the middle of a line, and the mode changed.
        fs::write(&record.path, first.clone() + r#"{"kind":"requ"#).unwrap();
        fs::set_permissions(&record.path, fs::Permissions::from_mode(0o644)).unwrap();
        let log = log_to(&record, 64, &metrics());
        log.push(observation(Format::Unknown));
        drop(log);
        assert_eq!(mode(), 0o600);
        let both = fs::read_to_string(&record.path).unwrap();
        assert!(both.starts_with(&first));
        let whole = both.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok());
        assert_eq!((whole.count(), both.lines().count()), (4, 5));
    }

    #[test]
    fn lines_are_written_within_a_second() {
        let folder = Folder::new("flush");
        let record = folder.record(false);
        let log = log_to(&record, 64, &metrics());
        log.push(observation(Format::Unknown));
        let deadline = Instant::now() + Duration::from_secs(20);
        while fs::metadata(&record.path).unwrap().len() == 0 {
            assert!(Instant::now() < deadline, "nothing was written while the log was open");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(lines(&record.path).len(), 2);
        assert!(RECORD_FLUSH_INTERVAL < Duration::from_secs(1));
    }

    #[test]
    fn a_stuck_file_sheds_and_does_not_block() {
        let folder = Folder::new("stuck");
        let record = folder.record(false);
        assert!(Command::new("mkfifo").arg(&record.path).status().unwrap().success());
        let metrics = metrics();
        let log = log_to(&record, 4, &metrics);
        // Nobody reads the pipe: the writer stops, the queue fills, and pushing goes on.
        let mut pushed = 0;
        while metrics.exchanges_shed.get() < 10 {
            log.push(observation(Format::OpenaiChat));
            pushed += 1;
            assert!(pushed < 10_000_000);
        }
        let mut pipe = File::open(&record.path).unwrap();
        let reader = std::thread::spawn(move || {
            let mut read = 0;
            let mut buffer = [0; 65_536];
            while let Ok(more @ 1..) = pipe.read(&mut buffer) {
                read += buffer[..more].iter().filter(|&&byte| byte == b'\n').count() as u64;
            }
            read
        });
        drop(log);
        let recorded = metrics.exchanges_recorded.get();
        assert_eq!(recorded + metrics.exchanges_shed.get(), pushed);
        assert_eq!(reader.join().unwrap(), recorded + 1);
    }

    #[test]
    fn a_full_disk_is_counted() {
        let metrics = metrics();
        let record = Record { path: "/dev/full".into(), text: false };
        let log = log_to(&record, 64, &metrics);
        log.push(observation(Format::Unknown));
        log.close();
        log.push(observation(Format::Unknown));
        log.close();
        assert_eq!(metrics.exchanges_recorded.get(), 0);
        assert_eq!(metrics.exchanges_shed.get(), 2);
        assert!(metrics.record_errors.get() >= 1);
        assert_eq!(log.latest(9).len(), 2);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let record = Record { path: "/nowhere/at/all.jsonl".into(), text: false };
        let error = Recorder::open(&record, 4, key(), metrics()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all.jsonl"), "{error}");
    }

    #[test]
    fn accounts_seen_now_and_then_stay_announced() {
        let mut announced = Announced::default();
        assert!(announced.is_new("acct-ffffffffffff"));
        for index in 0..RECORD_ACCOUNTS_MAX * 3 {
            assert!(announced.is_new(&format!("acct-{index:012x}")));
            if index % 1000 == 0 {
                assert!(!announced.is_new("acct-ffffffffffff"));
            }
        }
        assert!(announced.young.len() + announced.old.len() <= 2 * RECORD_ACCOUNTS_MAX);
    }

    #[test]
    fn paths_keep_only_harmless_query_values() {
        for (path, kept) in [
            ("/v1/messages", "/v1/messages"),
            ("/v1/messages?beta=true", "/v1/messages?beta=true"),
            ("/m:gen?alt=sse&key=REDACTED", "/m:gen?alt=sse&key=REDACTED"),
            ("/x?q=a%20text&flag", "/x?q=&flag"),
            ("/x?key=leaked", "/x?key="),
            ("/x?", "/x?"),
        ] {
            assert_eq!(kept_path(path), kept);
        }
        assert_eq!(kept_path(&"/ü".repeat(9000)).chars().count(), FINGERPRINT_CHARS_MAX);
    }

    #[test]
    fn small_shapes() {
        assert_eq!(trace_id("r00ffffffffffffff"), "rffffffffffffff");
        assert_eq!(trace_id("r1"), "r00000000000001");
        assert_eq!(seconds(1_763_629_479_042), "1763629479.042");
        assert_eq!(seconds(5), "0.005");
        assert_eq!(rfc3339(1_763_629_479_042), "2025-11-20T09:04:39.042Z");
        assert_eq!(rfc3339(u64::MAX), "");
    }

    #[test]
    fn tokens_are_estimated_where_nobody_counted() {
        let mut seen = observation(Format::OpenaiChat);
        seen.answer = Answer { status: 200, text_chars: 41, ..Answer::default() };
        let tokens = |seen: &Observation| -> (Value, Value) {
            let response = trace_response(&Exchange::new(seen, &key()));
            let mut response: Value = serde_json::from_str(&response).unwrap();
            (response["prompt_tokens"].take(), response["completion_tokens"].take())
        };
        assert_eq!(tokens(&seen), (json!(31), json!(11)));
        seen.answer.status = 403;
        assert_eq!(tokens(&seen), (json!(31), json!(0)));
    }

    proptest! {
        #[test]
        fn marks_are_read_back(text in any::<String>()) {
            let mark = key().mark(&Text::new(text));
            prop_assert_eq!(TextMark::parse(&mark.to_string()), Some(mark));
            let result = json!({ "result": mark.to_string() }).to_string();
            prop_assert_eq!(TextMark::parse(&result), Some(mark));
        }

        #[test]
        fn only_marks_are_read_as_marks(text in "(⟨text )?(chars=[0-9+]{1,12} )?\\PC{0,40}⟩?") {
            if let Some(mark) = TextMark::parse(&text) {
                prop_assert_eq!(mark.to_string(), text);
            }
        }

        #[test]
        fn a_changed_mark_is_another_or_none(at in 0_usize..90, with in any::<char>()) {
            let mark = key().mark(&Text::new("Some words, on\ntwo lines"));
            let mut text: Vec<char> = mark.to_string().chars().collect();
            let at = at % text.len();
            let same = text[at] == with;
            text[at] = with;
            let text: String = text.into_iter().collect();
            prop_assert_eq!(TextMark::parse(&text) == Some(mark), same);
        }

        #[test]
        fn any_outside_string_makes_a_line_of_json(
            name in any::<String>(), path in any::<String>(), id in any::<String>(),
        ) {
            let mut seen = observation(Format::OpenaiChat);
            seen.conversation.tools.push(name.clone());
            seen.http.headers.push(field(&name, Some(&path)));
            seen.http.path = path;
            seen.id = id;
            let exchange = Exchange::new(&seen, &key());
            let account = trace_account(&exchange, &key());
            let line = request_line(&exchange, &account, None, None, &key());
            prop_assert_eq!(line.matches('\n').count(), 1);
            let line: Value = serde_json::from_str(&line).unwrap();
            let length = compact(&line["body"]).len().to_string();
            prop_assert_eq!(line["http"]["headers"][0][1].as_str(), Some(&*length));
        }
    }
}
