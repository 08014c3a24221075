//! The recorded trace: exchanges as lines of JSON, written by a thread of its own.
//!
//! The form of the lines, and what stands in the place of texts, is described in the module above.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use detectors::{Conversation, Event, Format, HttpCapture, Role, Text, TlsCapture};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    ConversationFeatures, Exchange, MARK_START, RESULT, TextKey, TextMark, compact, seconds,
    unix_ms,
};
use crate::account::is_credential_header;
use crate::config::Record;
use crate::limits::{
    RECORD_ACCOUNTS_MAX, RECORD_ATTACHMENTS_MAX, RECORD_ERROR_INTERVAL, RECORD_FLUSH_INTERVAL,
    RECORD_LINE_BYTES_MAX, RECORD_PENDING_BYTES_MAX, RECORD_QUEUE_BYTES_MAX,
};
use crate::metrics::Metrics;

/// Lines gathered before a write.
const RECORD_GATHER_BYTES: usize = 64 * 1024;
/// Bytes that a lookup or a contact holds while it waits, near enough for a bound.
const SENSED_BYTES: usize = size_of::<Event>() + 128;

/// Why a trace cannot be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be opened for appending.
    #[error("cannot record to {}: {source}; choose a file that can be written", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The writer's thread cannot be started.
    #[error("cannot start the trace writer: {0}")]
    Thread(io::Error),
}

/// Appends exchanges to a trace, on a thread of its own.
#[derive(Debug)]
pub struct Recorder {
    queue: SyncSender<Job>,
    queued_bytes: Arc<AtomicUsize>,
    text: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
    metrics: Arc<Metrics>,
}

impl Recorder {
    /// Opens the trace for appending, readable by its owner alone, and starts the writer.
    ///
    /// # Errors
    /// If the file cannot be opened or no thread be started.
    pub fn open(
        record: &Record,
        queue_max: usize,
        key: TextKey,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RecordError> {
        let file = open_private(&record.path)
            .map_err(|source| RecordError::Open { path: record.path.clone(), source })?;
        let (queue, jobs) = sync_channel(queue_max);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            file,
            path: record.path.clone(),
            key,
            opened_ms: unix_ms(SystemTime::now()),
            announced: Announced::default(),
            pending: Vec::new(),
            pending_requests: 0,
            pending_sensed: 0,
            next_flush: Instant::now() + RECORD_FLUSH_INTERVAL,
            blocked: false,
            error_logged: None,
            queued_bytes: Arc::clone(&queued_bytes),
            metrics: Arc::clone(&metrics),
        };
        let thread = std::thread::Builder::new()
            .name("trace writer".into())
            .spawn(move || writer.run(&jobs))
            .map_err(RecordError::Thread)?;
        let thread = Mutex::new(Some(thread));
        Ok(Self { queue, queued_bytes, text: record.text, thread, metrics })
    }

    /// Hands an exchange to the writer, or counts it as shed. Never blocks.
    pub(super) fn record(&self, exchange: Arc<Exchange>, conversation: Conversation) {
        let conversation = self.text.then_some(conversation);
        let bytes =
            exchange.weight_bytes() + conversation.as_ref().map_or(0, Conversation::memory_bytes);
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let entry = Entry { exchange, conversation, bytes };
        let accepted = queued.saturating_add(bytes) <= RECORD_QUEUE_BYTES_MAX
            && self.queue.try_send(Job::Write(Box::new(entry))).is_ok();
        if !accepted {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.metrics.exchanges_shed.inc();
        }
    }

    /// Hands what a sensor saw to the writer, or counts it as shed. Never blocks.
    pub(super) fn record_sensed(&self, events: Vec<Event>) {
        let count = events.len() as u64;
        let bytes = events.len() * SENSED_BYTES;
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let accepted = queued.saturating_add(bytes) <= RECORD_QUEUE_BYTES_MAX
            && self.queue.try_send(Job::Sensed(events)).is_ok();
        if !accepted {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.metrics.sensed_shed.inc_by(count);
        }
    }

    /// Writes everything that waits and ends the writer. Further exchanges are shed.
    pub fn close(&self) {
        let Some(thread) = self.thread.lock().take() else { return };
        // An error means that the writer is gone already, which joining then tells.
        let _ = self.queue.send(Job::End);
        if thread.join().is_err() {
            log::error!("the trace writer ended by a panic; the trace may lack its last exchanges");
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.close();
    }
}

#[derive(Debug)]
enum Job {
    Write(Box<Entry>),
    Sensed(Vec<Event>),
    End,
}

#[derive(Debug)]
struct Entry {
    exchange: Arc<Exchange>,
    /// The texts, where the operator asked for them.
    conversation: Option<Conversation>,
    bytes: usize,
}

/// The writing half of a [`Recorder`].
struct Writer {
    file: File,
    path: PathBuf,
    key: TextKey,
    opened_ms: u64,
    announced: Announced,
    /// Lines not yet written. After a short write it begins in the middle of a line, whose first
    /// part the file has: what is left is kept, so that the line is whole once there is room.
    pending: Vec<u8>,
    pending_requests: u64,
    pending_sensed: u64,
    next_flush: Instant,
    /// The last write failed: wait for the next interval instead of trying with every exchange.
    blocked: bool,
    error_logged: Option<Instant>,
    queued_bytes: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            match jobs.recv_timeout(self.next_flush.saturating_duration_since(Instant::now())) {
                Ok(Job::Write(entry)) => self.append(&entry),
                Ok(Job::Sensed(events)) => self.append_sensed(&events),
                Ok(Job::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= self.next_flush {
                self.flush();
            }
        }
        loop {
            match jobs.try_recv() {
                Ok(Job::Write(entry)) => self.append(&entry),
                Ok(Job::Sensed(events)) => self.append_sensed(&events),
                Ok(Job::End) | Err(_) => break,
            }
        }
        self.flush();
        let (path, lost, sensed) =
            (self.path.display(), self.pending_requests, self.pending_sensed);
        if lost + sensed > 0 {
            self.metrics.exchanges_shed.inc_by(lost);
            self.metrics.sensed_shed.inc_by(sensed);
            log::error!("{lost} exchanges and {sensed} lookups were not written to {path}");
        }
    }

    fn append(&mut self, entry: &Entry) {
        self.queued_bytes.fetch_sub(entry.bytes, Ordering::Relaxed);
        if self.pending.len() > RECORD_PENDING_BYTES_MAX {
            self.metrics.exchanges_shed.inc();
            return;
        }
        let exchange = &entry.exchange;
        let account = trace_account(exchange, &self.key);
        let organisation = trace_organisation(exchange, &self.key);
        if self.announced.is_new(&account) {
            let line = account_line(self.opened_ms, &account, organisation.as_deref());
            self.pending.extend_from_slice(line.as_bytes());
        }
        let organisation = organisation.as_deref();
        let texts = entry.conversation.as_ref();
        let mut line = request_line(exchange, &account, organisation, texts, &self.key);
        if texts.is_some() && line.len() > RECORD_LINE_BYTES_MAX {
            line = request_line(exchange, &account, organisation, None, &self.key);
        }
        self.pending.extend_from_slice(line.as_bytes());
        self.pending_requests += 1;
        if self.pending.len() >= RECORD_GATHER_BYTES && !self.blocked {
            self.flush();
        }
    }

    fn append_sensed(&mut self, events: &[Event]) {
        self.queued_bytes.fetch_sub(events.len() * SENSED_BYTES, Ordering::Relaxed);
        if self.pending.len() > RECORD_PENDING_BYTES_MAX {
            self.metrics.sensed_shed.inc_by(events.len() as u64);
            return;
        }
        for line in events.iter().filter_map(sensed_line) {
            self.pending.extend_from_slice(line.as_bytes());
            self.pending_sensed += 1;
        }
        if self.pending.len() >= RECORD_GATHER_BYTES && !self.blocked {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.next_flush = Instant::now() + RECORD_FLUSH_INTERVAL;
        let mut written = 0;
        let result = loop {
            match self.file.write(&self.pending[written..]) {
                _ if written == self.pending.len() => break Ok(()),
                Ok(0) => break Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.pending.drain(..written);
        self.blocked = result.is_err();
        match result {
            Ok(()) => {
                self.metrics.exchanges_recorded.inc_by(self.pending_requests);
                (self.pending_requests, self.pending_sensed) = (0, 0);
                self.pending.shrink_to(RECORD_GATHER_BYTES * 2);
            }
            Err(error) => self.tell(&error),
        }
    }

    fn tell(&mut self, error: &io::Error) {
        self.metrics.record_errors.inc();
        if self.error_logged.is_none_or(|at| at.elapsed() >= RECORD_ERROR_INTERVAL) {
            self.error_logged = Some(Instant::now());
            log::error!("cannot write the trace {}: {error}", self.path.display());
        }
    }
}

/// Accounts announced in the trace. Two generations: when the young one is full the old one is
/// forgotten, so that an account stays known as long as it is seen now and then.
#[derive(Default)]
pub(super) struct Announced {
    pub(super) young: HashSet<[u8; 6]>,
    pub(super) old: HashSet<[u8; 6]>,
}

impl Announced {
    pub(super) fn is_new(&mut self, account: &str) -> bool {
        let mut id = [0; 6];
        let digits = account.strip_prefix("acct-").unwrap_or_default();
        if hex::decode_to_slice(digits, &mut id).is_err() {
            return true;
        }
        if self.young.contains(&id) {
            return false;
        }
        if self.young.len() >= RECORD_ACCOUNTS_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id);
        !self.old.remove(&id)
    }
}

/// Opens for appending with mode 0600, and ends a line that an earlier process left unfinished.
fn open_private(path: &Path) -> io::Result<File> {
    let mut file =
        OpenOptions::new().append(true).read(true).create(true).mode(0o600).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        if metadata.permissions().mode() & 0o077 != 0 {
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        if metadata.len() > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
    }
    Ok(file)
}

fn account_line(ts_ms: u64, account: &str, organisation: Option<&str>) -> String {
    format!(
        r#"{{"kind":"account","ts":{},"account":{},"org":{},"created":null,"payment":null,"bin":null,"verified":false}}{}"#,
        seconds(ts_ms),
        compact(&account),
        compact(&organisation),
        '\n',
    )
}

/// One `dns` or `contact` record; `None` for what is neither. What a sensor did not tell is left out.
pub(super) fn sensed_line(event: &Event) -> Option<String> {
    let mut line = match event {
        Event::Dns(lookup) => format!(
            r#"{{"kind":"dns","ts":{},"ip":{},"transport":{},"server":{},"name":{}"#,
            seconds(lookup.at_ms),
            compact(&lookup.ip),
            compact(&lookup.transport),
            compact(&lookup.server),
            compact(&lookup.name.as_deref()),
        ),
        Event::Contact(contact) => format!(
            r#"{{"kind":"contact","ts":{},"ip":{},"destination":{},"port":{}"#,
            seconds(contact.at_ms),
            compact(&contact.ip),
            compact(&contact.destination),
            contact.port,
        ),
        _ => return None,
    };
    let (host, client, provider) = match event {
        Event::Dns(lookup) => (lookup.host, lookup.client, lookup.provider.as_deref()),
        Event::Contact(contact) => (contact.host, contact.client, None),
        _ => return None,
    };
    if let Some(host) = host {
        line += &format!(r#","host":"{host:016x}""#);
    }
    if let Some(provider) = provider {
        line += &format!(r#","provider":{}"#, compact(provider));
    }
    if let Some(client) = client {
        line += &format!(r#","client":{client}"#);
    }
    Some(line + "}\n")
}

/// One `request` record. The members stand in the order of the format's description: some readers
/// look at the line before they parse it.
pub(super) fn request_line(
    exchange: &Exchange,
    account: &str,
    organisation: Option<&str>,
    texts: Option<&Conversation>,
    key: &TextKey,
) -> String {
    let body = compact(&trace_body(exchange, &Shown::new(exchange, texts, key)));
    let http = &exchange.http;
    format!(
        concat!(
            r#"{{"kind":"request","ts":{},"id":{},"account":{},"org":{},"ip":{},"tls":{},"#,
            r#""http":{{"version":{},"method":{},"path":{},"headers":{},"h2":{}}},"#,
            r#""body":{},"response":{}}}{}"#
        ),
        seconds(exchange.at_ms),
        compact(&trace_id(&exchange.id)),
        compact(&account),
        compact(&organisation),
        compact(&exchange.ip),
        compact(&trace_tls(exchange.tls.as_deref())),
        compact(&http.version),
        compact(&http.method),
        compact(&http.path),
        compact(&trace_headers(http, body.len())),
        compact(&trace_h2(http)),
        body,
        trace_response(exchange),
        '\n',
    )
}

pub(super) fn trace_id(id: &str) -> String {
    let digits: Vec<char> = id.chars().filter(char::is_ascii_hexdigit).collect();
    let tail: String = digits[digits.len().saturating_sub(14)..].iter().collect();
    format!("r{:0>14}", tail.to_ascii_lowercase())
}

pub(super) fn trace_account(exchange: &Exchange, key: &TextKey) -> String {
    match &exchange.account {
        Some(account) => in_shape("acct-", 12, account.as_str(), key),
        None => {
            format!("acct-{}", key.pseudonym("no credential", &exchange.ip.to_string(), 12))
        }
    }
}

fn trace_organisation(exchange: &Exchange, key: &TextKey) -> Option<String> {
    exchange
        .organisation
        .as_ref()
        .map(|organisation| in_shape("org-", 10, organisation.as_str(), key))
}

/// `id` cut to `prefix` and `hex_digits`, so that it is found again by its beginning; a pseudonym
/// where it is something else.
fn in_shape(prefix: &str, hex_digits: usize, id: &str, key: &TextKey) -> String {
    let digits = id.strip_prefix(prefix).filter(|rest| {
        rest.len() >= hex_digits && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    match digits {
        Some(digits) => format!("{prefix}{}", &digits[..hex_digits]),
        None => format!("{prefix}{}", key.pseudonym(prefix, id, hex_digits)),
    }
}

fn trace_tls(tls: Option<&TlsCapture>) -> Value {
    let Some(tls) = tls else { return Value::Null };
    json!({
        "version": tls.version,
        "ja3": tls.ja3,
        "ja3s": tls.ja3s,
        "ja4": (!tls.ja4.is_empty()).then_some(&tls.ja4),
        "alpn": tls.alpn,
    })
}

fn trace_headers(http: &HttpCapture, body_bytes: usize) -> Vec<(&str, String)> {
    let shown = http.headers.iter().filter(|field| !is_credential_header(&field.name));
    shown
        .map(|field| {
            let value = if field.name.eq_ignore_ascii_case("content-length") {
                body_bytes.to_string()
            } else {
                field.value.as_deref().unwrap_or_default().to_owned()
            };
            (&*field.name, value)
        })
        .collect()
}

fn trace_h2(http: &HttpCapture) -> Value {
    let Some(h2) = &http.h2 else { return Value::Null };
    let priority: Vec<_> = h2
        .priority
        .iter()
        .map(|p| (p.stream_id, u8::from(p.exclusive), p.depends_on, p.weight))
        .collect();
    json!({
        "settings": h2.settings,
        "window_update": h2.window_update,
        "priority": priority,
        "pseudo": h2.pseudo,
    })
}

pub(super) fn trace_response(exchange: &Exchange) -> String {
    let answer = &exchange.answer;
    let conversation = &exchange.conversation;
    let (prompt, completion) = match answer.usage {
        Some(usage) => (usage.prompt_tokens, usage.completion_tokens),
        None => {
            let turns = conversation.turns.iter().map(|turn| &turn.text);
            let chars: u64 = std::iter::once(&conversation.system)
                .chain(turns)
                .map(|mark| u64::from(mark.features.chars))
                .sum();
            let answered = answer.text_chars + answer.reasoning_chars + answer.refusal_chars;
            (chars.div_ceil(4), answered.div_ceil(4))
        }
    };
    let completion = if answer.status == 200 { completion } else { 0 };
    format!(
        r#"{{"status":{},"prompt_tokens":{prompt},"completion_tokens":{completion},"duration_ms":{}}}"#,
        answer.status, answer.duration_ms
    )
}

/// A conversation with texts or marks in their places, and each tool result tied to its call.
pub(super) struct Shown<'a> {
    system: String,
    turns: Vec<ShownTurn<'a>>,
}

struct ShownTurn<'a> {
    role: Role,
    text: String,
    /// `(id, name)` of the calls made here.
    calls: Vec<(String, &'a str)>,
    /// `(id, name)` of the call that a tool turn answers.
    answers: (String, &'a str),
    attachments: u32,
}

impl<'a> Shown<'a> {
    pub(super) fn new(exchange: &'a Exchange, texts: Option<&Conversation>, key: &TextKey) -> Self {
        let kept = &exchange.conversation;
        let text = |mark: &TextMark, text: Option<&Text>| match text {
            Some(text) if !text.as_str().starts_with(MARK_START) => text.as_str().to_owned(),
            Some(text) => key.mark(text).to_string(),
            None => mark.to_string(),
        };
        let first_kept = kept.turns_total - kept.turns.len();
        let mut calls_made = 0_usize;
        let mut waiting: VecDeque<(String, &str)> = VecDeque::new();
        let mut turns = Vec::with_capacity(kept.turns.len());
        for (index, turn) in kept.turns.iter().enumerate() {
            let said = texts.and_then(|it| it.turns.get(first_kept + index)).map(|it| &it.text);
            let calls: Vec<_> = turn
                .tool_calls
                .iter()
                .map(|name| {
                    calls_made += 1;
                    (format!("call_{calls_made}"), name.as_str())
                })
                .collect();
            waiting.extend(calls.iter().cloned());
            let answers = if turn.role == Role::Tool { waiting.pop_front() } else { None };
            turns.push(ShownTurn {
                role: turn.role,
                text: text(&turn.text, said),
                calls,
                answers: answers.unwrap_or_else(|| ("call_0".to_owned(), "unknown")),
                attachments: turn.attachments.min(RECORD_ATTACHMENTS_MAX),
            });
        }
        Self { system: text(&kept.system, texts.map(|it| &it.system)), turns }
    }
}

/// The request in its provider's own shape.
pub(super) fn trace_body(exchange: &Exchange, shown: &Shown<'_>) -> Value {
    let kept = &exchange.conversation;
    let mut body = match exchange.format {
        Format::OpenaiChat => openai_chat(kept, shown),
        Format::OpenaiResponses => openai_responses(kept, shown),
        Format::OpenaiCompletions => openai_completions(kept, shown),
        Format::AnthropicMessages => anthropic(kept, shown),
        Format::GeminiGenerate => gemini(kept, shown),
        Format::Grpc => {
            let mut body = gemini(kept, shown);
            body["model"] = json!(kept.model);
            body
        }
        Format::Unknown => json!({}),
    };
    without_nulls(&mut body);
    body
}

/// Members that the request did not have were built as null or as an empty object.
fn without_nulls(body: &mut Value) {
    let Some(members) = body.as_object_mut() else { return };
    members.retain(|_, value| {
        if let Some(inner) = value.as_object_mut() {
            inner.retain(|_, value| !value.is_null());
        }
        !value.is_null() && value.as_object().is_none_or(|inner| !inner.is_empty())
    });
}

fn openai_chat(kept: &ConversationFeatures, shown: &Shown<'_>) -> Value {
    let mut messages = Vec::new();
    if !shown.system.is_empty() {
        messages.push(json!({ "role": "system", "content": shown.system }));
    }
    for turn in &shown.turns {
        let content = with_attachments(
            turn,
            || json!({ "type": "text", "text": turn.text }),
            || json!({ "type": "file", "file": { "file_id": "attachment" } }),
        );
        messages.push(match turn.role {
            Role::User => json!({ "role": "user", "content": content }),
            Role::System => json!({ "role": "system", "content": content }),
            Role::Tool => {
                json!({ "role": "tool", "tool_call_id": turn.answers.0, "content": content })
            }
            Role::Assistant if turn.calls.is_empty() => {
                json!({ "role": "assistant", "content": content })
            }
            Role::Assistant => {
                let calls: Vec<_> = turn
                    .calls
                    .iter()
                    .map(|(id, name)| {
                        let function = json!({ "name": name, "arguments": "{}" });
                        json!({ "id": id, "type": "function", "function": function })
                    })
                    .collect();
                let content = if turn.text.is_empty() && turn.attachments == 0 {
                    Value::Null
                } else {
                    content
                };
                json!({ "role": "assistant", "content": content, "tool_calls": calls })
            }
        });
    }
    let tools = tools(
        kept,
        |name| json!({ "type": "function", "function": { "name": name, "parameters": open_schema() } }),
    );
    let sampling = &kept.sampling;
    json!({
        "model": kept.model,
        "messages": messages,
        "tools": tools,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "n": sampling.n,
        "logprobs": sampling.logprobs.then_some(true),
        "top_logprobs": sampling.top_logprobs,
        "stream": sampling.stream.then_some(true),
        "seed": sampling.seed,
        "reasoning_effort": sampling.reasoning,
        "response_format": sampling.structured.then(|| json!({ "type": "json_object" })),
    })
}

fn openai_responses(kept: &ConversationFeatures, shown: &Shown<'_>) -> Value {
    let mut items = Vec::new();
    for turn in &shown.turns {
        if turn.role == Role::Tool {
            items.push(json!({
                "type": "function_call_output", "call_id": turn.answers.0, "output": turn.text,
            }));
            continue;
        }
        if !turn.text.is_empty() || turn.attachments > 0 || turn.calls.is_empty() {
            let (role, part) = match turn.role {
                Role::Assistant => ("assistant", "output_text"),
                Role::System => ("system", "input_text"),
                Role::User | Role::Tool => ("user", "input_text"),
            };
            let content = with_attachments(
                turn,
                || json!({ "type": part, "text": turn.text }),
                || json!({ "type": "input_file", "file_id": "attachment" }),
            );
            items.push(json!({ "role": role, "content": content }));
        }
        for (id, name) in &turn.calls {
            items.push(json!({
                "type": "function_call", "call_id": id, "name": name, "arguments": "{}",
            }));
        }
    }
    // One plain question is sent as a string, as the SDKs' examples do.
    let input = match &shown.turns[..] {
        [turn] if turn.role == Role::User && turn.attachments == 0 => json!(turn.text),
        _ => Value::Array(items),
    };
    let tools = tools(
        kept,
        |name| json!({ "type": "function", "name": name, "parameters": open_schema() }),
    );
    let sampling = &kept.sampling;
    json!({
        "model": kept.model,
        "instructions": (!shown.system.is_empty()).then_some(&shown.system),
        "input": input,
        "tools": tools,
        "max_output_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "include": sampling.logprobs.then(|| json!(["message.output_text.logprobs"])),
        "top_logprobs": sampling.top_logprobs,
        "stream": sampling.stream.then_some(true),
        "reasoning": { "effort": sampling.reasoning },
        "text": { "format": sampling.structured.then(|| json!({ "type": "json_object" })) },
    })
}

fn openai_completions(kept: &ConversationFeatures, shown: &Shown<'_>) -> Value {
    let prompts: Vec<_> = shown.turns.iter().map(|turn| turn.text.as_str()).collect();
    let sampling = &kept.sampling;
    json!({
        "model": kept.model,
        "prompt": if let [prompt] = prompts[..] { json!(prompt) } else { json!(prompts) },
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "n": sampling.n,
        "logprobs": sampling.logprobs.then(|| sampling.top_logprobs.unwrap_or(0)),
        "stream": sampling.stream.then_some(true),
        "seed": sampling.seed,
    })
}

fn anthropic(kept: &ConversationFeatures, shown: &Shown<'_>) -> Value {
    let mut messages = Vec::new();
    for turn in &shown.turns {
        let role = match turn.role {
            Role::User | Role::Tool => "user",
            Role::Assistant => "assistant",
            Role::System => "system",
        };
        let content = if turn.role == Role::Tool {
            json!([{
                "type": "tool_result", "tool_use_id": turn.answers.0, "content": turn.text,
            }])
        } else if turn.calls.is_empty() {
            with_attachments(
                turn,
                || json!({ "type": "text", "text": turn.text }),
                || json!({ "type": "document", "source": { "type": "file", "file_id": "attachment" } }),
            )
        } else {
            let text =
                (!turn.text.is_empty()).then(|| json!({ "type": "text", "text": turn.text }));
            let calls = turn.calls.iter().map(
                |(id, name)| json!({ "type": "tool_use", "id": id, "name": name, "input": {} }),
            );
            text.into_iter().chain(calls).collect()
        };
        messages.push(json!({ "role": role, "content": content }));
    }
    let tools = tools(kept, |name| json!({ "name": name, "input_schema": open_schema() }));
    let sampling = &kept.sampling;
    // A budget in tokens, a kind of thinking, or an effort: whichever the request spelled.
    let (thinking, effort) = match sampling.reasoning.as_deref() {
        None => (Value::Null, None),
        Some(kind @ ("adaptive" | "disabled" | "enabled")) => (json!({ "type": kind }), None),
        Some(spelled) => match spelled.parse::<u64>() {
            Ok(budget) => (json!({ "type": "enabled", "budget_tokens": budget }), None),
            Err(_) => (Value::Null, Some(spelled)),
        },
    };
    let format =
        sampling.structured.then(|| json!({ "type": "json_schema", "schema": open_schema() }));
    json!({
        "model": kept.model,
        "system": (!shown.system.is_empty()).then_some(&shown.system),
        "messages": messages,
        "tools": tools,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stream": sampling.stream.then_some(true),
        "thinking": thinking,
        "output_config": { "effort": effort, "format": format },
    })
}

fn gemini(kept: &ConversationFeatures, shown: &Shown<'_>) -> Value {
    let mut contents = Vec::new();
    for turn in &shown.turns {
        let role = match turn.role {
            Role::User | Role::Tool => "user",
            Role::Assistant => "model",
            Role::System => "system",
        };
        let mut parts = Vec::new();
        if turn.role == Role::Tool {
            // A result is a JSON object here. Anything else, a mark included, is put into one.
            let object = serde_json::from_str(&turn.text).ok().filter(Value::is_object);
            let response = object.unwrap_or_else(|| json!({ RESULT: turn.text }));
            parts.push(json!({
                "functionResponse": { "name": turn.answers.1, "response": response },
            }));
        } else if !turn.text.is_empty() || (turn.calls.is_empty() && turn.attachments == 0) {
            parts.push(json!({ "text": turn.text }));
        }
        for _ in 0..turn.attachments {
            let file = json!({ "mimeType": "application/octet-stream", "fileUri": "attachment" });
            parts.push(json!({ "fileData": file }));
        }
        for (_, name) in &turn.calls {
            parts.push(json!({ "functionCall": { "name": name, "args": {} } }));
        }
        contents.push(json!({ "role": role, "parts": parts }));
    }
    let tools = tools(kept, |name| json!({ "name": name }))
        .map(|declared| json!([{ "functionDeclarations": declared }]));
    let sampling = &kept.sampling;
    let thinking = sampling.reasoning.as_deref().map(|spelled| match spelled.parse::<i64>() {
        Ok(budget) => json!({ "thinkingBudget": budget }),
        Err(_) => json!({ "thinkingLevel": spelled }),
    });
    let system = (!shown.system.is_empty()).then(|| json!({ "parts": [{ "text": shown.system }] }));
    json!({
        "systemInstruction": system,
        "contents": contents,
        "tools": tools,
        "generationConfig": {
            "maxOutputTokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "topP": sampling.top_p,
            "candidateCount": sampling.n,
            "responseLogprobs": sampling.logprobs.then_some(true),
            "logprobs": sampling.top_logprobs,
            "seed": sampling.seed,
            "thinkingConfig": thinking,
            "responseMimeType": sampling.structured.then_some("application/json"),
        },
    })
}

/// The text alone, or a list of parts where the turn has attachments.
fn with_attachments(
    turn: &ShownTurn<'_>,
    text: impl Fn() -> Value,
    attachment: impl Fn() -> Value,
) -> Value {
    if turn.attachments == 0 {
        return json!(turn.text);
    }
    let text = (!turn.text.is_empty()).then(text);
    text.into_iter().chain((0..turn.attachments).map(|_| attachment())).collect()
}

fn tools(kept: &ConversationFeatures, declare: impl Fn(&str) -> Value) -> Option<Value> {
    (!kept.tools.is_empty()).then(|| kept.tools.iter().map(|name| declare(name)).collect())
}

fn open_schema() -> Value {
    json!({ "type": "object" })
}
