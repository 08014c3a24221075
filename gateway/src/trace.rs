//! Reading a recorded trace: lines of JSON become [`Event`]s, one line at a time.
//!
//! A trace is plain, gzip or zstd, told by its first bytes and not by its name; `-` is standard
//! input. Of several members or frames one after another all are read. Memory does not grow with
//! the file: one line is held, and the tables below are bounded.
//!
//! # The form
//!
//! Each line is an object with `kind` and `ts` (unix seconds); lines come in the order of `ts`.
//!
//! | `kind` | becomes | fields |
//! | --- | --- | --- |
//! | `request` | [`Event::Exchange`] | `id`, `account`, `org`, `ip`, `tls`, `http`, `body`, `response` |
//! | `account` | [`Event::Profile`] | `account`, `org`, `created` (unix seconds), `payment`, `bin` (six digits), `verified` |
//! | `dns` | [`Event::Dns`] | `ip`, `transport`, `server`, `name`; where a sensor told them `host` (16 hex digits), `provider`, `client` |
//! | `contact` | [`Event::Contact`] | `ip`, `destination`, `port`; `host` and `client` as of `dns` |
//! | `model_release` | [`Event::ModelRelease`] | `model` |
//! | `enforcement` | [`Event::Enforcement`] | `account`, `action` |
//!
//! Unknown fields are passed over. A line of an unknown kind is skipped and counted. A line that
//! is wrong is an error that names it, and reading may go on with the next; where the file itself
//! cannot be read further, that error is the last item.
//!
//! What is as at the live gateway: the body is read by the readers of `wire.rs`, values of headers
//! outside the allow-list of `account.rs` are dropped, credentials in the query are replaced. What
//! a trace does not tell stays at its default: the network and the route, the TLS members without
//! a field of their own (`grease`, `sni`, …), `akamai`, the stream's id, and of the answer all but
//! status, tokens and duration. `streamed` is whether a stream was asked for and the status is 200.
//! A gRPC body is the equivalent Gemini JSON with a `model` beside it.
//!
//! Traces that Stillgate recorded without texts are read too: the marks in the place of texts come
//! as texts (`exchanges::TextMark::parse` tells them), and the empty value of a header that was not
//! captured as `None`. They are written as exchanges end, so they need sorting before:
//! `LC_ALL=C sort -s -t: -k3,3n`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use detectors::{
    AccountId, Answer, Conversation, DnsContact, DnsLookup, DnsTransport, Enforcement,
    EnforcementAction, Event, Format, HeaderField, Http2Capture, HttpCapture, HttpVersion,
    ModelRelease, Network, Observation, OrganisationId, Priority, Profile, TlsCapture, Usage,
};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::account::{header_value_kept, redact_path};
use crate::capture::client_hello::md5_hex;
use crate::limits::{TRACE_INTERNED_BYTES_MAX, TRACE_INTERNED_MAX, TRACE_LINE_BYTES_MAX};
use crate::wire::{self, Unreadable};

/// Bytes read from a file, and bytes decompressed, at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// A line's buffer is kept at this size; only longer lines make it grow for a while.
const LINE_BYTES_USUAL: usize = 1024 * 1024;
/// A line may be this much earlier than the latest before it, in milliseconds: clocks of several
/// recorders differ.
const BACKWARDS_MS_MAX: u64 = 1000;
/// Largest `ts`, the year 5138: more is milliseconds by mistake.
const SECONDS_MAX: f64 = 1e11;

/// Why a trace, or a line of it, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be opened, or its first bytes not be read.
    #[error("{}: cannot be opened: {source}", file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The compressed data ends before its end mark. Nothing more comes.
    #[error("{}:{line}: the compressed data is cut off here", file.display())]
    CutOff {
        /// The file.
        file: PathBuf,
        /// Line that could not be read whole, from 1.
        line: u64,
    },
    /// The file cannot be read further, or is no valid gzip or zstd. Nothing more comes.
    #[error("{}:{line}: cannot be read further: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Line that could not be read whole, from 1.
        line: u64,
        /// What the system or the decoder said.
        source: io::Error,
    },
    /// One line is wrong; the next may be right.
    #[error("{}:{line}: {wrong}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        wrong: Wrong,
    },
}

impl TraceError {
    /// Whether nothing more can be read after this.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Line { .. })
    }
}

/// What is wrong with a line. Never quotes it, as it may hold texts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Longer than [`TRACE_LINE_BYTES_MAX`].
    #[error("the line is longer than {TRACE_LINE_BYTES_MAX} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("not UTF-8 from byte {at} on")]
    NotUtf8 {
        /// Byte in the line, from 1.
        at: usize,
    },
    /// Broken JSON, or something else than an object.
    #[error("not a JSON object (column {column})")]
    Json {
        /// Column, from 1.
        column: usize,
    },
    /// A field is there more than once, so that two readers may see two lines.
    #[error("a field is given twice (column {column})")]
    Twice {
        /// Column, from 1.
        column: usize,
    },
    /// The line stops before its JSON does.
    #[error("the line ends in the middle of its JSON")]
    Ends,
    /// A field that every line of this kind has is absent or null.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A field is of another type or form.
    #[error("`{field}` is not {wanted}")]
    Form {
        /// The field.
        field: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// The request's body cannot be read.
    #[error("`body`: {0}")]
    Body(#[from] Unreadable),
    /// Earlier than a line before it.
    #[error(
        "`ts` is {by_ms} ms before that of an earlier line; sort the trace first: \
         LC_ALL=C sort -s -t: -k3,3n"
    )]
    Backwards {
        /// By how much.
        by_ms: u64,
    },
}

/// Reads a trace, event by event.
///
/// After an error for which [`TraceError::is_final`] holds the iterator ends.
pub struct TraceReader {
    file: PathBuf,
    input: Box<dyn BufRead + Send>,
    compressed: bool,
    line: Vec<u8>,
    line_number: u64,
    latest_ms: u64,
    skipped: u64,
    ended: bool,
    known: Known,
}

impl TraceReader {
    /// Opens a trace; `-` is standard input.
    ///
    /// # Errors
    /// If it cannot be opened or its first bytes not be read.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        if path == Path::new("-") {
            return Self::from_reader(Path::new("<stdin>"), io::stdin());
        }
        let opened = File::open(path)
            .map_err(|source| TraceError::Open { file: path.to_owned(), source })?;
        Self::from_reader(path, opened)
    }

    /// Reads a trace from anywhere; `name` is named in errors.
    ///
    /// # Errors
    /// If the first bytes cannot be read.
    pub fn from_reader(name: &Path, input: impl Read + Send + 'static) -> Result<Self, TraceError> {
        let (input, compressed) = decompressed(input)
            .map_err(|source| TraceError::Open { file: name.to_owned(), source })?;
        Ok(Self {
            file: name.to_owned(),
            input,
            compressed,
            line: Vec::new(),
            line_number: 0,
            latest_ms: 0,
            skipped: 0,
            ended: false,
            known: Known::default(),
        })
    }

    /// The line that the latest item came from, from 1.
    #[must_use]
    pub fn line(&self) -> u64 {
        self.line_number
    }

    /// Lines of an unknown kind so far.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Puts the next line into `self.line`. `Ok(None)` is the end of the file.
    fn read_line(&mut self) -> io::Result<Option<Result<(), Wrong>>> {
        self.line.shrink_to(LINE_BYTES_USUAL);
        // An error is one of the line that could not be read.
        self.line_number += 1;
        let read = read_line(&mut self.input, &mut self.line)?;
        self.line_number -= u64::from(read.is_none());
        Ok(read.map(|whole| if whole { Ok(()) } else { Err(Wrong::TooLong) }))
    }

    /// What the line in `self.line` says; `None` for an empty line and an unknown kind.
    fn event(&mut self) -> Result<Option<Event>, Wrong> {
        const MARK: &[u8] = b"\xef\xbb\xbf";
        let line = match self.line.strip_prefix(MARK) {
            Some(rest) if self.line_number == 1 => rest,
            _ => &self.line[..],
        };
        if line.trim_ascii().is_empty() {
            return Ok(None);
        }
        let line = std::str::from_utf8(line)
            .map_err(|error| Wrong::NotUtf8 { at: error.valid_up_to() + 1 })?;
        // A list would be taken for the fields in their order.
        if !line.trim_ascii_start().starts_with('{') {
            return Err(Wrong::Json { column: 1 });
        }
        let line: Line<'_> = serde_json::from_str(line).map_err(|error| not_read(line, &error))?;
        let kind = string("kind", line.kind)?;
        let read = match &*kind {
            "request" => Self::exchange,
            "account" => Self::profile,
            "dns" => Self::dns,
            "contact" => Self::contact,
            "model_release" => Self::model_release,
            "enforcement" => Self::enforcement,
            other => {
                if self.skipped == 0 {
                    let shown: String = other.chars().take(32).collect();
                    let (file, at) = (self.file.display(), self.line_number);
                    log::warn!("{file}:{at}: unknown kind {shown:?}; such lines are skipped");
                }
                self.skipped += 1;
                return Ok(None);
            }
        };
        let at_ms = at_ms(line.ts)?;
        let by_ms = self.latest_ms.saturating_sub(at_ms);
        if by_ms > BACKWARDS_MS_MAX {
            return Err(Wrong::Backwards { by_ms });
        }
        let event = read(&mut self.known, at_ms, &line)?;
        self.latest_ms = self.latest_ms.max(at_ms);
        Ok(Some(event))
    }

    fn exchange(known: &mut Known, at_ms: u64, line: &Line<'_>) -> Result<Event, Wrong> {
        let http = line.http.as_ref().ok_or(Wrong::Missing("http"))?;
        let response = line.response.as_ref().ok_or(Wrong::Missing("response"))?;
        let Head { http, format } = head(known, http)?;
        let (format, conversation) = match line.body {
            Some(body) => conversation(format, &http.path, body.get())?,
            None => (format, Conversation::default()),
        };
        let answer = answer(response, &conversation)?;
        Ok(Event::Exchange(Box::new(Observation {
            id: string("id", line.id)?.into_owned(),
            at_ms,
            account: line.account.map(|raw| known.account(raw)).transpose()?,
            organisation: line.org.map(|raw| known.organisation(raw)).transpose()?,
            ip: ip("ip", line.ip)?,
            network: Network::default(),
            route: Arc::clone(&known.no_route),
            tls: line.tls.map(|raw| known.tls(raw)).transpose()?,
            http,
            format,
            foreign_marks: 0,
            indicators: Vec::new(),
            conversation,
            answer,
        })))
    }

    fn profile(known: &mut Known, at_ms: u64, line: &Line<'_>) -> Result<Event, Wrong> {
        let bin = match line.bin {
            None => None,
            Some(raw) => {
                let wanted = Wrong::Form { field: "bin", wanted: "six digits" };
                let digits = raw.get().trim_matches('"');
                let six = digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_digit());
                Some(digits.parse().ok().filter(|_| six).ok_or(wanted)?)
            }
        };
        Ok(Event::Profile(Profile {
            at_ms,
            account: known.account(line.account.ok_or(Wrong::Missing("account"))?)?,
            organisation: line.org.map(|raw| known.organisation(raw)).transpose()?,
            created_s: match line.created {
                None => None,
                Some(_) => Some(number("created", line.created)? as i64),
            },
            payment: match line.payment {
                None => None,
                Some(_) => Some(string("payment", line.payment)?.into()),
            },
            bin,
            verified: boolean("verified", line.verified)?,
        }))
    }

    fn dns(known: &mut Known, at_ms: u64, line: &Line<'_>) -> Result<Event, Wrong> {
        let transport = match &*string("transport", line.transport)? {
            "udp" => DnsTransport::Udp,
            "tcp" => DnsTransport::Tcp,
            "dot" => DnsTransport::Dot,
            "doq" => DnsTransport::Doq,
            "doh" => DnsTransport::Doh,
            _ => {
                return Err(Wrong::Form {
                    field: "transport",
                    wanted: "one of udp, tcp, dot, doq, doh",
                });
            }
        };
        let name = match line.name {
            None => None,
            Some(_) => Some(known.value(&string("name", line.name)?)),
        };
        Ok(Event::Dns(DnsLookup {
            at_ms,
            ip: ip("ip", line.ip)?,
            host: host(line.host)?,
            client: line.client.map(|_| boolean("client", line.client)).transpose()?,
            transport,
            server: ip("server", line.server)?,
            provider: match line.provider {
                None => None,
                Some(_) => Some(known.value(&string("provider", line.provider)?)),
            },
            name,
        }))
    }

    fn contact(_: &mut Known, at_ms: u64, line: &Line<'_>) -> Result<Event, Wrong> {
        let port = count("port", line.port)?;
        let port = u16::try_from(port).map_err(|_| Wrong::Form { field: "port", wanted: "a port" });
        Ok(Event::Contact(DnsContact {
            at_ms,
            ip: ip("ip", line.ip)?,
            host: host(line.host)?,
            client: line.client.map(|_| boolean("client", line.client)).transpose()?,
            destination: ip("destination", line.destination)?,
            port: port?,
        }))
    }

    fn model_release(known: &mut Known, at_ms: u64, line: &Line<'_>) -> Result<Event, Wrong> {
        let model = known.value(&string("model", line.model)?);
        Ok(Event::ModelRelease(ModelRelease { at_ms, model }))
    }

    fn enforcement(known: &mut Known, at_ms: u64, line: &Line<'_>) -> Result<Event, Wrong> {
        let action = match &*string("action", line.action)? {
            "suspend" => EnforcementAction::Suspend,
            "throttle" => EnforcementAction::Throttle,
            _ => return Err(Wrong::Form { field: "action", wanted: "suspend or throttle" }),
        };
        let account = known.account(line.account.ok_or(Wrong::Missing("account"))?)?;
        Ok(Event::Enforcement(Enforcement { at_ms, account, action }))
    }
}

impl Iterator for TraceReader {
    type Item = Result<Event, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let outcome = match self.read_line() {
                Ok(Some(Ok(()))) => self.event(),
                Ok(Some(Err(wrong))) => Err(wrong),
                Ok(None) => {
                    self.ended = true;
                    return None;
                }
                Err(source) => {
                    self.ended = true;
                    let (file, line) = (self.file.clone(), self.line_number);
                    let cut_off = self.compressed && source.kind() == io::ErrorKind::UnexpectedEof;
                    return Some(Err(if cut_off {
                        TraceError::CutOff { file, line }
                    } else {
                        TraceError::Read { file, line, source }
                    }));
                }
            };
            match outcome {
                Ok(Some(event)) => return Some(Ok(event)),
                Ok(None) => {}
                Err(wrong) => {
                    let (file, line) = (self.file.clone(), self.line_number);
                    return Some(Err(TraceError::Line { file, line, wrong }));
                }
            }
        }
        None
    }
}

impl fmt::Debug for TraceReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceReader({}:{})", self.file.display(), self.line_number)
    }
}

/// Puts the next line into `line`, without its end. `None` is the end of the file; `false` says
/// that the line is longer than [`TRACE_LINE_BYTES_MAX`], and only its beginning is there.
///
/// # Errors
/// What the system or the decoder said.
pub(crate) fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    let (mut begun, mut too_long) = (false, false);
    loop {
        let available = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            available => available?,
        };
        if available.is_empty() {
            return Ok(begun.then_some(!too_long));
        }
        begun = true;
        let end = memchr::memchr(b'\n', available);
        let piece = &available[..end.unwrap_or(available.len())];
        too_long |= line.len() + piece.len() > TRACE_LINE_BYTES_MAX;
        if !too_long {
            line.extend_from_slice(piece);
        }
        let taken = piece.len() + usize::from(end.is_some());
        input.consume(taken);
        if end.is_some() {
            return Ok(Some(!too_long));
        }
    }
}

/// The plain bytes of `input`, and whether they were compressed.
pub(crate) fn decompressed(
    mut input: impl Read + Send + 'static,
) -> io::Result<(Box<dyn BufRead + Send>, bool)> {
    const GZIP: &[u8] = b"\x1f\x8b";
    const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
    // A pipe may give less than is asked for.
    let mut magic = Vec::with_capacity(ZSTD.len());
    input.by_ref().take(ZSTD.len() as u64).read_to_end(&mut magic)?;
    // RFC 8878, section 3.1.2: skippable frames may stand before the first real one.
    let skippable = matches!(magic[..], [0x50..=0x5f, 0x2a, 0x4d, 0x18]);
    let zstd = magic == ZSTD || skippable;
    let gzip = magic.starts_with(GZIP);
    let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(magic).chain(input));
    Ok(if zstd {
        let decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
        (Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder)), true)
    } else if gzip {
        let decoder = flate2::bufread::MultiGzDecoder::new(whole);
        (Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder)), true)
    } else {
        (Box::new(whole), false)
    })
}

/// A field as spelt in the line.
type Raw<'a> = Option<&'a RawValue>;

/// A line of any kind: each field as it is spelt, so that an error can name it.
#[derive(Default, Deserialize)]
#[serde(default, expecting = "an object")]
struct Line<'a> {
    #[serde(borrow)]
    kind: Raw<'a>,
    #[serde(borrow)]
    ts: Raw<'a>,
    #[serde(borrow)]
    id: Raw<'a>,
    #[serde(borrow)]
    account: Raw<'a>,
    #[serde(borrow)]
    org: Raw<'a>,
    #[serde(borrow)]
    ip: Raw<'a>,
    #[serde(borrow)]
    tls: Raw<'a>,
    #[serde(borrow)]
    http: Option<HttpLine<'a>>,
    #[serde(borrow)]
    body: Raw<'a>,
    #[serde(borrow)]
    response: Option<ResponseLine<'a>>,
    #[serde(borrow)]
    created: Raw<'a>,
    #[serde(borrow)]
    payment: Raw<'a>,
    #[serde(borrow)]
    bin: Raw<'a>,
    #[serde(borrow)]
    verified: Raw<'a>,
    #[serde(borrow)]
    transport: Raw<'a>,
    #[serde(borrow)]
    server: Raw<'a>,
    #[serde(borrow)]
    name: Raw<'a>,
    #[serde(borrow)]
    host: Raw<'a>,
    #[serde(borrow)]
    provider: Raw<'a>,
    #[serde(borrow)]
    client: Raw<'a>,
    #[serde(borrow)]
    destination: Raw<'a>,
    #[serde(borrow)]
    port: Raw<'a>,
    #[serde(borrow)]
    model: Raw<'a>,
    #[serde(borrow)]
    action: Raw<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HttpLine<'a> {
    #[serde(borrow)]
    version: Raw<'a>,
    #[serde(borrow)]
    method: Raw<'a>,
    #[serde(borrow)]
    path: Raw<'a>,
    #[serde(borrow)]
    headers: Raw<'a>,
    #[serde(borrow)]
    h2: Raw<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ResponseLine<'a> {
    #[serde(borrow)]
    status: Raw<'a>,
    #[serde(borrow)]
    prompt_tokens: Raw<'a>,
    #[serde(borrow)]
    completion_tokens: Raw<'a>,
    #[serde(borrow)]
    duration_ms: Raw<'a>,
}

fn not_read(line: &str, error: &serde_json::Error) -> Wrong {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Objects<'a> {
        #[serde(borrow)]
        http: Raw<'a>,
        #[serde(borrow)]
        response: Raw<'a>,
    }
    let column = error.column();
    match error.classify() {
        Category::Eof => Wrong::Ends,
        Category::Io | Category::Syntax => Wrong::Json { column },
        Category::Data => {
            let objects: Objects<'_> = serde_json::from_str(line).unwrap_or_default();
            let other = |raw: Raw<'_>| raw.is_some_and(|raw| !raw.get().starts_with('{'));
            let form = |field| Wrong::Form { field, wanted: "an object" };
            match objects {
                Objects { http, .. } if other(http) => form("http"),
                Objects { response, .. } if other(response) => form("response"),
                _ => Wrong::Twice { column },
            }
        }
    }
}

fn at_ms(raw: Raw<'_>) -> Result<u64, Wrong> {
    let seconds = number("ts", raw)?;
    if !(0.0..=SECONDS_MAX).contains(&seconds) {
        return Err(Wrong::Form { field: "ts", wanted: "a time in unix seconds" });
    }
    Ok((seconds * 1000.0).round() as u64)
}

fn string<'a>(field: &'static str, raw: Raw<'a>) -> Result<Cow<'a, str>, Wrong> {
    let raw = raw.ok_or(Wrong::Missing(field))?.get();
    let inside = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    match inside {
        Some(inside) if memchr::memchr(b'\\', inside.as_bytes()).is_none() => {
            Ok(Cow::Borrowed(inside))
        }
        _ => serde_json::from_str(raw)
            .map(Cow::Owned)
            .map_err(|_| Wrong::Form { field, wanted: "a string" }),
    }
}

/// JSON's numbers are a part of Rust's.
fn number(field: &'static str, raw: Raw<'_>) -> Result<f64, Wrong> {
    let raw = raw.ok_or(Wrong::Missing(field))?.get();
    raw.parse().map_err(|_| Wrong::Form { field, wanted: "a number" })
}

fn count(field: &'static str, raw: Raw<'_>) -> Result<u64, Wrong> {
    let raw = raw.ok_or(Wrong::Missing(field))?.get();
    raw.parse().map_err(|_| Wrong::Form { field, wanted: "a whole number" })
}

/// Absent is false.
fn boolean(field: &'static str, raw: Raw<'_>) -> Result<bool, Wrong> {
    match raw.map(RawValue::get) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Wrong::Form { field, wanted: "true or false" }),
    }
}

fn host(raw: Raw<'_>) -> Result<Option<u64>, Wrong> {
    let Some(_) = raw else { return Ok(None) };
    let text = string("host", raw)?;
    let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let host = u64::from_str_radix(&text, 16).ok().filter(|_| hex && text.len() == 16);
    host.map(Some).ok_or(Wrong::Form { field: "host", wanted: "16 hex digits" })
}

fn ip(field: &'static str, raw: Raw<'_>) -> Result<IpAddr, Wrong> {
    let text = string(field, raw)?;
    let parsed = text.parse::<IpAddr>().map(|ip| ip.to_canonical());
    parsed.map_err(|_| Wrong::Form { field, wanted: "an IP address" })
}

struct Head {
    http: HttpCapture,
    format: Format,
}

fn head(known: &mut Known, line: &HttpLine<'_>) -> Result<Head, Wrong> {
    let version = match &*string("http.version", line.version)? {
        "1.0" => HttpVersion::Http10,
        "1.1" => HttpVersion::Http11,
        "2" => HttpVersion::Http2,
        _ => return Err(Wrong::Form { field: "http.version", wanted: "1.0, 1.1 or 2" }),
    };
    let method = string("http.method", line.method)?.into_owned();
    let path = redact_path(&string("http.path", line.path)?);
    let mut headers = Headers { known, fields: Vec::new(), content_type: None };
    if let Some(raw) = line.headers {
        let list = &mut serde_json::Deserializer::from_str(raw.get());
        headers.deserialize(list).map_err(|_| Wrong::Form {
            field: "http.headers",
            wanted: "a list of [name, value]",
        })?;
    }
    let Headers { fields, content_type, .. } = headers;
    let format = wire::recognise(&method, &path, content_type.as_deref());
    let h2 = line.h2.map(|raw| known.h2(raw)).transpose()?;
    Ok(Head { http: HttpCapture { version, method, path, headers: fields, h2 }, format })
}

/// The header list being read.
struct Headers<'k> {
    known: &'k mut Known,
    fields: Vec<HeaderField>,
    content_type: Option<Arc<str>>,
}

impl Headers<'_> {
    fn push(&mut self, name: &str, value: Option<&str>) {
        let Name { name, kept, kind } = self.known.name(name);
        // An empty value is how our recorder writes one that it did not capture.
        let value = value.filter(|value| kept && !value.is_empty()).map(|value| match kind {
            // As many values as there are lengths.
            NameKind::ContentLength => value.into(),
            NameKind::ContentType | NameKind::Other => self.known.value(value),
        });
        if kind == NameKind::ContentType && self.content_type.is_none() {
            self.content_type.clone_from(&value);
        }
        self.fields.push(HeaderField { name, value });
    }
}

impl<'de> DeserializeSeed<'de> for &mut Headers<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_seq(self)
    }
}

#[derive(Deserialize)]
struct FieldLine<'a>(#[serde(borrow)] Cow<'a, str>, #[serde(borrow)] Option<Cow<'a, str>>);

impl<'de> Visitor<'de> for &mut Headers<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of [name, value]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.fields.reserve(24);
        while let Some(FieldLine(name, value)) = items.next_element()? {
            self.push(&name, value.as_deref());
        }
        Ok(())
    }
}

/// What was asked, and in which format.
fn conversation(format: Format, path: &str, body: &str) -> Result<(Format, Conversation), Wrong> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Named<'a> {
        #[serde(borrow)]
        model: Raw<'a>,
    }
    let method = path.rsplit('/').next().unwrap_or_default();
    let generates = matches!(method, "GenerateContent" | "StreamGenerateContent");
    if format != Format::Grpc && !(format == Format::Unknown && generates) {
        return Ok((format, wire::read_request(format, path, body.as_bytes())?));
    }
    let mut read = wire::read_request(Format::GeminiGenerate, path, body.as_bytes())?;
    let named: Named<'_> = serde_json::from_str(body).unwrap_or_default();
    // gRPC names the resource, `models/NAME`, where the path of the HTTP API has NAME.
    read.model = string("body.model", named.model)
        .ok()
        .map(|name| name.strip_prefix("models/").unwrap_or(&name).to_owned());
    read.sampling.stream = method == "StreamGenerateContent";
    Ok((Format::Grpc, read))
}

fn answer(line: &ResponseLine<'_>, asked: &Conversation) -> Result<Answer, Wrong> {
    let status = count("response.status", line.status)?;
    let status = u16::try_from(status).ok().filter(|status| *status < 1000);
    let status = status.ok_or(Wrong::Form { field: "response.status", wanted: "a status" })?;
    let tokens = |field, raw: Raw<'_>| raw.map_or(Ok(0), |_| count(field, raw));
    let told = line.prompt_tokens.is_some() || line.completion_tokens.is_some();
    let usage = Usage {
        prompt_tokens: tokens("response.prompt_tokens", line.prompt_tokens)?,
        completion_tokens: tokens("response.completion_tokens", line.completion_tokens)?,
        ..Usage::default()
    };
    Ok(Answer {
        status,
        streamed: asked.sampling.stream && status == 200,
        usage: told.then_some(usage),
        complete: true,
        duration_ms: count("response.duration_ms", line.duration_ms)?,
        ..Answer::default()
    })
}

/// What was read before and is likely to come again, so that it is built and held once.
struct Known {
    accounts: Recent<AccountId>,
    organisations: Recent<OrganisationId>,
    names: Recent<Name>,
    values: Recent<Arc<str>>,
    /// By the object as spelt: a client program's handshake is the same each time.
    tls: Recent<Arc<TlsCapture>>,
    h2: Recent<Http2Capture>,
    no_route: Arc<str>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            accounts: Recent::new(TRACE_INTERNED_MAX),
            organisations: Recent::new(TRACE_INTERNED_MAX),
            names: Recent::new(TRACE_INTERNED_MAX),
            values: Recent::new(TRACE_INTERNED_MAX),
            tls: Recent::new(TRACE_INTERNED_MAX),
            h2: Recent::new(TRACE_INTERNED_MAX),
            no_route: "".into(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NameKind {
    ContentLength,
    ContentType,
    Other,
}

/// A header's name, and what becomes of its value.
#[derive(Clone)]
struct Name {
    name: Arc<str>,
    kept: bool,
    kind: NameKind,
}

impl Known {
    fn account(&mut self, raw: &RawValue) -> Result<AccountId, Wrong> {
        let id = string("account", Some(raw))?;
        Ok(self.accounts.get(&id, || AccountId::new(&*id)))
    }

    fn organisation(&mut self, raw: &RawValue) -> Result<OrganisationId, Wrong> {
        let id = string("org", Some(raw))?;
        Ok(self.organisations.get(&id, || OrganisationId::new(&*id)))
    }

    fn name(&mut self, name: &str) -> Name {
        self.names.get(name, || Name {
            name: name.into(),
            kept: header_value_kept(name),
            kind: if name.eq_ignore_ascii_case("content-length") {
                NameKind::ContentLength
            } else if name.eq_ignore_ascii_case("content-type") {
                NameKind::ContentType
            } else {
                NameKind::Other
            },
        })
    }

    fn value(&mut self, value: &str) -> Arc<str> {
        self.values.get(value, || value.into())
    }

    fn tls(&mut self, raw: &RawValue) -> Result<Arc<TlsCapture>, Wrong> {
        self.tls.try_get(raw.get(), || tls(raw.get()).map(Arc::new))
    }

    fn h2(&mut self, raw: &RawValue) -> Result<Http2Capture, Wrong> {
        self.h2.try_get(raw.get(), || h2(raw.get()))
    }
}

/// Things by the text that they are made from, bounded. Two generations: when the young one is
/// full the old one is forgotten, so that what comes now and then stays.
struct Recent<V> {
    young: HashMap<Box<str>, V, foldhash::fast::RandomState>,
    old: HashMap<Box<str>, V, foldhash::fast::RandomState>,
    /// In each generation.
    max: usize,
}

impl<V: Clone> Recent<V> {
    fn new(max: usize) -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), max }
    }

    fn get(&mut self, key: &str, make: impl FnOnce() -> V) -> V {
        match self.try_get(key, || Ok::<V, std::convert::Infallible>(make())) {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }

    fn try_get<E>(&mut self, key: &str, make: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        if let Some(value) = self.young.get(key) {
            return Ok(value.clone());
        }
        // What is long is rare, and holding it would make the bound on the number mean little.
        if key.len() > TRACE_INTERNED_BYTES_MAX {
            return make();
        }
        let value = match self.old.get(key) {
            Some(value) => value.clone(),
            None => make()?,
        };
        if self.young.len() >= self.max {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key.into(), value.clone());
        Ok(value)
    }
}

fn tls(raw: &str) -> Result<TlsCapture, Wrong> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct TlsLine {
        version: Option<String>,
        ja3: Option<String>,
        ja3s: Option<String>,
        ja4: Option<String>,
        alpn: Option<Vec<String>>,
    }
    let line: TlsLine = serde_json::from_str(raw).map_err(|_| Wrong::Form {
        field: "tls",
        wanted: "an object of version, ja3, ja3s, ja4 and alpn",
    })?;
    let ja3 = line.ja3.unwrap_or_default();
    let md5 = |text: &str| if text.is_empty() { String::new() } else { md5_hex(text) };
    Ok(TlsCapture {
        version: line.version.unwrap_or_default(),
        ja3_md5: md5(&ja3),
        ja3,
        ja3s_md5: line.ja3s.as_deref().map(md5),
        ja3s: line.ja3s,
        ja4: line.ja4.unwrap_or_default(),
        alpn: line.alpn.unwrap_or_default(),
        ..TlsCapture::default()
    })
}

fn h2(raw: &str) -> Result<Http2Capture, Wrong> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct H2Line {
        settings: Vec<(u16, u32)>,
        window_update: u32,
        /// Stream, exclusive (0 or 1), stream that it depends on, weight.
        priority: Vec<(u32, u8, u32, u16)>,
        pseudo: String,
    }
    let line: H2Line = serde_json::from_str(raw).map_err(|_| Wrong::Form {
        field: "http.h2",
        wanted: "an object of settings, window_update, priority and pseudo",
    })?;
    let priority = line.priority.into_iter().map(|(stream_id, exclusive, depends_on, weight)| {
        Priority { stream_id, exclusive: exclusive != 0, depends_on, weight }
    });
    Ok(Http2Capture {
        settings: line.settings,
        window_update: line.window_update,
        priority: priority.collect(),
        pseudo: line.pseudo,
        ..Http2Capture::default()
    })
}

/// Arbitrary bytes as a trace, plain or compressed: must not panic, and must come to an end.
#[doc(hidden)]
pub fn fuzz_trace(data: &[u8]) {
    /// Lines looked at: some bytes of zstd can be millions of them.
    const LINES_MAX: usize = 1000;
    let Ok(reader) = TraceReader::from_reader(Path::new("fuzz"), Cursor::new(data.to_vec())) else {
        return;
    };
    let mut ended = false;
    for item in reader.take(LINES_MAX) {
        assert!(!ended, "something came after the end");
        ended = item.is_err_and(|error| error.is_final());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;
    use crate::config::file::tests::TestDirectory;

    const REQUEST: &str = concat!(
        r#"{"kind":"request","ts":1791158454.428,"id":"r2049dab9b26b73","account":"acct-a518ce47baf0","#,
        r#""org":"org-a770fcbc79","ip":"192.0.2.7","tls":{"version":"1.3","ja3":"771,4865,0-11,29,0","#,
        r#""ja3s":"771,4866,43-51","ja4":"t13d1812h1_85036bcba153_d41ae481755e","alpn":["h2","http/1.1"]},"#,
        r#""http":{"version":"2","method":"POST","path":"/v1/chat/completions?key=abc&alt=sse","#,
        r#""headers":[["user-agent","curl \"8\""],["x-own","v"],["Content-Type","application/json"],"#,
        r#"["accept",""],["content-length","87"]],"h2":{"settings":[[2,0],[4,65535]],"#,
        r#""window_update":15663105,"priority":[[3,1,0,201]],"pseudo":"m,a,s,p"}},"#,
        r#""body":{"model":"m-1","messages":[{"role":"user","content":"sea\u006Dstress"}],"stream":true},"#,
        r#""response":{"status":200,"prompt_tokens":5,"completion_tokens":1,"duration_ms":365}}"#,
    );
    const ACCOUNT: &str = r#"{"kind":"account","ts":1791158400.000,"account":"acct-3af8a6b411c1","org":null,"created":1774314928,"payment":"aa8c140ace9381a5","bin":"024387","verified":true}"#;
    const DNS: &str = r#"{"kind":"dns","ts":1791158400.5,"ip":"192.0.2.1","transport":"doh","server":"198.51.100.1","name":null}"#;
    const CONTACT: &str = r#"{"kind":"contact","ts":1791158400.75,"ip":"2001:db8::1","destination":"198.51.100.9","port":443,"client":true}"#;
    const RELEASE: &str = r#"{"kind":"model_release","ts":1791158401,"model":"m-2"}"#;
    const ENFORCEMENT: &str = r#"{"kind":"enforcement","ts":1791158401.25,"account":"acct-3af8a6b411c1","action":"suspend"}"#;

    fn read(bytes: impl Into<Vec<u8>>) -> Vec<Result<Event, TraceError>> {
        reader(bytes).collect()
    }

    fn reader(bytes: impl Into<Vec<u8>>) -> TraceReader {
        TraceReader::from_reader(Path::new("t.jsonl"), Cursor::new(bytes.into())).unwrap()
    }

    fn event(line: &str) -> Event {
        read(line).pop().unwrap().unwrap()
    }

    fn observation(line: &str) -> Observation {
        match event(line) {
            Event::Exchange(observation) => *observation,
            other => panic!("{other:?}"),
        }
    }

    /// Everything as text, prompts included.
    fn shown(items: &[Result<Event, TraceError>]) -> Vec<String> {
        let prompts = |item: &Result<Event, TraceError>| match item {
            Ok(Event::Exchange(it)) => {
                it.conversation.turns.iter().map(|turn| turn.text.as_str().to_owned()).collect()
            }
            _ => Vec::new(),
        };
        items.iter().map(|item| format!("{item:?} {:?}", prompts(item))).collect()
    }

    fn sample() -> String {
        let lines = [ACCOUNT, DNS, RELEASE, ENFORCEMENT, REQUEST];
        let mut text = lines.join("\n");
        for number in 0..2000 {
            let ts = format!("17911584{}.{:03}", 60 + number / 1000, number % 1000);
            text.push('\n');
            text.push_str(&REQUEST.replace("1791158454.428", &ts));
        }
        text
    }

    #[test]
    fn a_request_becomes_an_exchange() {
        let seen = observation(REQUEST);
        assert_eq!((&seen.id[..], seen.at_ms), ("r2049dab9b26b73", 1_791_158_454_428));
        assert_eq!(seen.account, Some(AccountId::new("acct-a518ce47baf0")));
        assert_eq!(seen.organisation, Some(OrganisationId::new("org-a770fcbc79")));
        assert_eq!(seen.ip, IpAddr::from([192, 0, 2, 7]));
        assert_eq!(seen.network, Network::default());
        let tls = TlsCapture {
            version: "1.3".into(),
            ja3: "771,4865,0-11,29,0".into(),
            ja3_md5: md5_hex("771,4865,0-11,29,0"),
            ja3s: Some("771,4866,43-51".into()),
            ja3s_md5: Some(md5_hex("771,4866,43-51")),
            ja4: "t13d1812h1_85036bcba153_d41ae481755e".into(),
            alpn: vec!["h2".into(), "http/1.1".into()],
            ..TlsCapture::default()
        };
        assert_eq!(seen.tls.as_deref(), Some(&tls));
        let field = |name: &str, value: Option<&str>| HeaderField {
            name: name.into(),
            value: value.map(Into::into),
        };
        let http = HttpCapture {
            version: HttpVersion::Http2,
            method: "POST".into(),
            path: "/v1/chat/completions?key=REDACTED&alt=sse".into(),
            headers: vec![
                field("user-agent", Some("curl \"8\"")),
                field("x-own", None),
                field("Content-Type", Some("application/json")),
                field("accept", None),
                field("content-length", Some("87")),
            ],
            h2: Some(Http2Capture {
                settings: vec![(2, 0), (4, 65_535)],
                window_update: 15_663_105,
                priority: vec![Priority {
                    stream_id: 3,
                    exclusive: true,
                    depends_on: 0,
                    weight: 201,
                }],
                pseudo: "m,a,s,p".into(),
                ..Http2Capture::default()
            }),
        };
        assert_eq!(seen.http, http);
        assert_eq!(seen.format, Format::OpenaiChat);
        assert_eq!(seen.conversation.model.as_deref(), Some("m-1"));
        assert_eq!(seen.conversation.turns[0].text.as_str(), "seamstress");
        let answer = Answer {
            status: 200,
            streamed: true,
            usage: Some(Usage { prompt_tokens: 5, completion_tokens: 1, ..Usage::default() }),
            complete: true,
            duration_ms: 365,
            ..Answer::default()
        };
        assert_eq!(seen.answer, answer);
    }

    #[test]
    fn the_other_kinds_become_their_events() {
        let Event::Profile(profile) = event(ACCOUNT) else { panic!() };
        let expected = Profile {
            at_ms: 1_791_158_400_000,
            account: AccountId::new("acct-3af8a6b411c1"),
            organisation: None,
            created_s: Some(1_774_314_928),
            payment: Some("aa8c140ace9381a5".into()),
            bin: Some(24_387),
            verified: true,
        };
        assert_eq!(profile, expected);
        let Event::Dns(dns) = event(DNS) else { panic!() };
        let expected = DnsLookup {
            at_ms: 1_791_158_400_500,
            ip: [192, 0, 2, 1].into(),
            host: None,
            client: None,
            transport: DnsTransport::Doh,
            server: [198, 51, 100, 1].into(),
            provider: None,
            name: None,
        };
        assert_eq!(dns, expected);
        let told = r#""name":"a1","host":"00000000000000ff","provider":"quad9","client":false}"#;
        let Event::Dns(dns) = event(&DNS.replace(r#""name":null}"#, told)) else { panic!() };
        let expected = DnsLookup {
            host: Some(255),
            client: Some(false),
            provider: Some("quad9".into()),
            name: Some("a1".into()),
            ..expected
        };
        assert_eq!(dns, expected);
        let Event::Contact(contact) = event(CONTACT) else { panic!() };
        let expected = DnsContact {
            at_ms: 1_791_158_400_750,
            ip: "2001:db8::1".parse().unwrap(),
            host: None,
            client: Some(true),
            destination: [198, 51, 100, 9].into(),
            port: 443,
        };
        assert_eq!(contact, expected);
        let Event::ModelRelease(release) = event(RELEASE) else { panic!() };
        let at_ms = 1_791_158_401_000;
        assert_eq!(release, ModelRelease { at_ms, model: "m-2".into() });
        let Event::Enforcement(acted) = event(ENFORCEMENT) else { panic!() };
        let expected = Enforcement {
            at_ms: 1_791_158_401_250,
            account: AccountId::new("acct-3af8a6b411c1"),
            action: EnforcementAction::Suspend,
        };
        assert_eq!(acted, expected);
    }

    #[test]
    fn a_grpc_body_is_read_as_gemini_and_names_its_model() {
        let line = concat!(
            r#"{"kind":"request","ts":1,"id":"r1","account":"a","ip":"2001:db8::1","#,
            r#""http":{"version":"2","method":"POST","headers":[["content-type","application/grpc"]],"#,
            r#""path":"/google.ai.generativelanguage.v1beta.GenerativeService/StreamGenerateContent"},"#,
            r#""body":{"contents":[{"role":"user","parts":[{"text":"hi"}]}],"model":"models/g-2","#,
            r#""generationConfig":{"maxOutputTokens":5}},"response":{"status":200,"duration_ms":1}}"#,
        );
        let without_type = line.replace(r#"[["content-type","application/grpc"]]"#, "[]");
        for line in [line, &without_type] {
            let seen = observation(line);
            assert_eq!(seen.format, Format::Grpc);
            assert_eq!(seen.conversation.model.as_deref(), Some("g-2"));
            assert_eq!(seen.conversation.sampling.max_tokens, Some(5));
            assert!(seen.conversation.sampling.stream);
            assert_eq!(seen.conversation.turns[0].text.as_str(), "hi");
            assert_eq!((seen.tls, seen.http.h2, seen.answer.usage), (None, None, None));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_never_quoted() {
        let without = |what: &str| REQUEST.replacen(what, "", 1);
        let instead = |what: &str, other: &str| REQUEST.replacen(what, other, 1);
        let cases = [
            ("secret".to_owned(), "not a JSON object (column 1)"),
            ("[1]".to_owned(), "not a JSON object (column 1)"),
            (REQUEST[..700].to_owned(), "ends in the middle of its JSON"),
            (without(r#""kind":"request","#), "`kind` is missing"),
            (without(r#""ts":1791158454.428,"#), "`ts` is missing"),
            (without(r#""id":"r2049dab9b26b73","#), "`id` is missing"),
            (without(r#""ip":"192.0.2.7","#), "`ip` is missing"),
            (without(r#""method":"POST","#), "`http.method` is missing"),
            (without(r#""status":200,"#), "`response.status` is missing"),
            (instead("\"id\"", "\"ts\":1,\"id\""), "a field is given twice (column 42)"),
            (instead(r#","response":{"#, r#","response":7,"x":{"#), "`response` is not an object"),
            (instead(r#""http":{"#, r#""http":"secret","x":{"#), "`http` is not an object"),
            (instead("1791158454.428", "\"secret\""), "`ts` is not a number"),
            (instead("1791158454.428", "1791158454428"), "`ts` is not a time in unix seconds"),
            (instead("1791158454.428", "-1"), "`ts` is not a time in unix seconds"),
            (instead("192.0.2.7", "secret"), "`ip` is not an IP address"),
            (instead("\"acct-a518ce47baf0\"", "7"), "`account` is not a string"),
            (instead(r#"["h2","http/1.1"]"#, "\"secret\""), "`tls` is not an object of version"),
            (
                instead(r#""version":"2""#, r#""version":"secret""#),
                "`http.version` is not 1.0, 1.1",
            ),
            (instead(r#"["x-own","v"]"#, r#"["secret"]"#), "`http.headers` is not a list of"),
            (instead("[2,0],", "[2,-1],"), "`http.h2` is not an object of settings"),
            (instead(r#"{"model":"m-1""#, r#"["secret",{"model":"m-1""#), "not a JSON object"),
            (instead(":200", ":2000"), "`response.status` is not a status"),
            (instead(":365", ":3.5"), "`response.duration_ms` is not a whole number"),
            (ACCOUNT.replace("024387", "secret"), "`bin` is not six digits"),
            (ACCOUNT.replace("true", "\"secret\""), "`verified` is not true or false"),
            (DNS.replace("doh", "secret"), "`transport` is not one of udp"),
            (DNS.replace("null}", "null,\"host\":\"secret\"}"), "`host` is not 16 hex digits"),
            (DNS.replace("null}", "null,\"client\":\"secret\"}"), "`client` is not true or false"),
            (DNS.replace("null}", "null,\"provider\":7}"), "`provider` is not a string"),
            (CONTACT.replace("443", "99999"), "`port` is not a port"),
            (CONTACT.replace("198.51.100.9", "secret"), "`destination` is not an IP address"),
            (ENFORCEMENT.replace("suspend", "secret"), "`action` is not suspend or throttle"),
        ];
        for (line, expected) in cases {
            let items = read(format!("{ACCOUNT}\n{line}\n{REQUEST}\n"));
            assert_eq!(items.len(), 3, "{line}");
            let error = items[1].as_ref().unwrap_err();
            let message = error.to_string();
            assert!(message.starts_with("t.jsonl:2: "), "{message}");
            assert!(message.contains(expected), "{message} instead of {expected}");
            assert!(!format!("{message}{error:?}").contains("secret"), "{message}");
            assert!(!error.is_final() && items[2].is_ok());
        }
        let body = instead(r#"{"model":"m-1""#, r#"{"model":"m-1","messages":"#);
        assert!(read(body)[0].is_err());
        let list = instead(
            r#"{"model":"m-1","messages":[{"role":"user","content":"sea\u006Dstress"}],"stream":true}"#,
            "[]",
        );
        let message = read(list)[0].as_ref().unwrap_err().to_string();
        assert!(message.ends_with("`body`: the request body is not a JSON object"), "{message}");
    }

    #[test]
    fn not_utf8_is_one_wrong_line() {
        let items = read([b"{\"kind\":\"\xff\"}\n", DNS.as_bytes()].concat());
        assert!(items[0].as_ref().unwrap_err().to_string().contains("not UTF-8 from byte 10 on"));
        assert!(items[1].is_ok());
    }

    #[test]
    fn time_may_go_back_a_second_and_no_more() {
        let at = |ts: &str| RELEASE.replace("1791158401", ts);
        let text = [at("100"), at("99.0"), at("98.9"), at("99.5"), at("101")].join("\n");
        let items = read(text);
        let ok: Vec<bool> = items.iter().map(Result::is_ok).collect();
        assert_eq!(ok, [true, true, false, true, true]);
        let message = items[2].as_ref().unwrap_err().to_string();
        assert!(message.contains("`ts` is 1100 ms before"), "{message}");
    }

    #[test]
    fn unknown_kinds_are_counted_and_empty_lines_are_nothing() {
        let unknown = r#"{"kind":"weather","degrees":3}"#;
        let mut reader = reader(format!("\u{feff}{RELEASE}\r\n\n  \n{unknown}\n{unknown}\n{DNS}"));
        // The release comes later than the lookup, within the second that is allowed.
        assert!(reader.next().unwrap().is_ok());
        assert_eq!((reader.line(), reader.skipped()), (1, 0));
        assert!(reader.next().unwrap().is_ok());
        assert_eq!((reader.line(), reader.skipped()), (6, 2));
        assert!(reader.next().is_none() && reader.next().is_none());
        assert!(read("").is_empty() && read("\n").is_empty());
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over() {
        let long = std::iter::repeat_n(b' ', TRACE_LINE_BYTES_MAX + 1).chain(*b"\n");
        let most = std::iter::repeat_n(b' ', TRACE_LINE_BYTES_MAX - DNS.len());
        let text: Vec<u8> = long.chain(most).chain(DNS.bytes()).collect();
        let items = read(text);
        assert!(matches!(
            items[..],
            [Err(TraceError::Line { line: 1, wrong: Wrong::TooLong, .. }), Ok(_)]
        ));
    }

    #[test]
    fn what_comes_again_is_held_once() {
        let text = format!("{REQUEST}\n{REQUEST}");
        let seen: Vec<Box<Observation>> = read(text)
            .into_iter()
            .map(|item| match item {
                Ok(Event::Exchange(observation)) => observation,
                other => panic!("{other:?}"),
            })
            .collect();
        let tls = |index: usize| seen[index].tls.as_ref().unwrap();
        assert!(Arc::ptr_eq(tls(0), tls(1)));
        let name = |index: usize| &seen[index].http.headers[1].name;
        assert!(Arc::ptr_eq(name(0), name(1)));
    }

    #[test]
    fn the_recent_is_bounded_and_what_comes_often_stays() {
        let mut recent = Recent::new(4);
        let often = recent.get("often", || Arc::<str>::from("often"));
        for number in 0..100 {
            recent.get(&number.to_string(), || "other".into());
            assert!(Arc::ptr_eq(&recent.get("often", || "again".into()), &often));
            assert!(recent.young.len() <= 4 && recent.old.len() <= 4);
        }
        recent.get(&"x".repeat(TRACE_INTERNED_BYTES_MAX + 1), || "long".into());
        assert!(recent.young.keys().all(|key| key.len() < 10));
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(text, 1).unwrap()
    }

    #[test]
    fn compressed_or_not_it_reads_the_same() {
        let text = sample();
        let plain = shown(&read(text.clone()));
        assert_eq!(plain.len(), 2005);
        let (head, tail) = text.as_bytes().split_at(text.len() / 3);
        let skippable: &[u8] = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
        let cases = [
            gzip(text.as_bytes()),
            zstd(text.as_bytes()),
            [gzip(head), gzip(tail)].concat(),
            [zstd(head), zstd(b""), zstd(tail)].concat(),
            [skippable, &zstd(head), skippable, &zstd(tail)].concat(),
        ];
        for compressed in cases {
            assert_eq!(shown(&read(compressed)), plain);
        }
    }

    #[test]
    fn files_of_the_usual_programs_are_read_whatever_their_name() {
        let folder = TestDirectory::new();
        let text = sample();
        let plain = shown(&read(text.clone()));
        for program in ["gzip", "zstd", "pigz"] {
            let ran = Command::new(program)
                .args(["-c", "-q"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            // Not all of them are everywhere.
            let Ok(mut child) = ran else { continue };
            let mut stdin = child.stdin.take().unwrap();
            let (input, output) = (text.clone(), std::thread::spawn(|| child.wait_with_output()));
            stdin.write_all(input.as_bytes()).unwrap();
            drop(stdin);
            let path = folder.write("trace", output.join().unwrap().unwrap().stdout);
            let items: Vec<_> = TraceReader::open(&path).unwrap().collect();
            assert_eq!(shown(&items), plain, "{program}");
        }
    }

    #[test]
    fn a_file_that_is_cut_off_says_so_and_ends() {
        let text = sample();
        for compressed in [gzip(text.as_bytes()), zstd(text.as_bytes())] {
            for kept in [5, 20, compressed.len() / 2, compressed.len() - 3] {
                let items = read(&compressed[..kept]);
                let error = items.last().unwrap().as_ref().unwrap_err();
                let message = error.to_string();
                assert!(error.is_final(), "{message}");
                assert!(message.starts_with("t.jsonl:"), "{message}");
                assert!(message.ends_with("the compressed data is cut off here"), "{message}");
                assert!(items[..items.len() - 1].iter().all(Result::is_ok));
            }
            let mut damaged = compressed.clone();
            let middle = damaged.len() / 2;
            damaged[middle..middle + 8].fill(0xff);
            assert!(read(damaged).iter().any(Result::is_err));
        }
        let message = read(&text[..text.len() - 9]).pop().unwrap().unwrap_err().to_string();
        assert!(message.contains("ends in the middle of its JSON"), "{message}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = TraceReader::open(Path::new("/nowhere/t.jsonl")).unwrap_err();
        assert!(error.is_final());
        assert!(error.to_string().starts_with("/nowhere/t.jsonl: cannot be opened: "), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_trace(&data);
            fuzz_trace(&[b"\x1f\x8b", &data[..]].concat());
            fuzz_trace(&[b"\x28\xb5\x2f\xfd", &data[..]].concat());
        }

        #[test]
        fn changed_lines_never_panic(
            line in proptest::sample::select(vec![REQUEST, ACCOUNT, DNS, CONTACT, RELEASE, ENFORCEMENT]),
            changes in proptest::collection::vec(
                (any::<proptest::sample::Index>(), prop_oneof![
                    proptest::sample::select(b"\"{}[],:\\0-e.\n\0\xff".to_vec()), any::<u8>(),
                ], 0..3_usize), 1..6),
        ) {
            let mut data = line.as_bytes().to_vec();
            for (index, byte, what) in changes {
                let at = index.index(data.len());
                match what {
                    0 => data[at] = byte,
                    1 => data.insert(at, byte),
                    _ => drop(data.drain(at..(at + 9).min(data.len() - 1).max(at))),
                }
            }
            fuzz_trace(&data);
        }
    }
}
