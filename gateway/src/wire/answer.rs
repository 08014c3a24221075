//! Reading an answer as it goes by: what is counted, and the pieces of text on their way.
//!
//! The reader keeps counts and outcomes, and no text. Whoever wants the text (to mark it, to look
//! for a canary) gets each piece while it passes, through a callback.

use detectors::{Answer, Finish, Format, ToolCall, Usage};

use super::framing::grpc::MessageCounter;
use super::framing::json::{self, ArrayReader, Element};
use super::framing::sse::{Frame, SseReader};
use super::provider::{anthropic, gemini, openai_chat, openai_completions, openai_responses};
use super::request::name;
use crate::limits::{ANSWER_BYTES_MAX, ERROR_CODE_BYTES_MAX, TOOL_CALLS_MAX};

/// A piece of an answer on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta<'a> {
    /// Which of the answers asked for at once (`n`, `candidateCount`) it belongs to.
    pub choice: u32,
    /// The piece.
    pub piece: Piece<'a>,
}

/// What a piece of an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Visible answer text.
    Text(&'a str),
    /// Reasoning that is shown.
    Reasoning(&'a str),
    /// Text in the provider's own refusal field.
    Refusal(&'a str),
    /// A tool call begins.
    ToolCall {
        /// Number of the call within its choice, as the provider counts.
        call: u32,
        /// The tool's name.
        name: &'a str,
    },
    /// A piece of a tool call's arguments.
    Arguments {
        /// Number of the call within its choice.
        call: u32,
        /// The piece of JSON.
        json: &'a str,
    },
}

/// Reads one answer of any format, streamed or whole, in whatever pieces it comes.
///
/// The bytes must be free of any content coding.
#[derive(Debug)]
pub struct AnswerReader {
    body: Body,
    provider: Provider,
    tally: Tally,
}

impl AnswerReader {
    /// A reader for the answer with this status and content type.
    #[must_use]
    pub fn new(format: Format, status: u16, content_type: Option<&str>) -> Self {
        let body = if format == Format::Grpc {
            Body::Grpc(MessageCounter::new())
        } else if essence(content_type).eq_ignore_ascii_case(EVENT_STREAM) {
            Body::Sse(SseReader::new())
        } else if format == Format::Unknown {
            Body::Unread
        } else {
            Body::Unseen
        };
        let answer = Answer { status, ..Answer::default() };
        Self { body, provider: Provider::new(format), tally: Tally { answer, ..Tally::default() } }
    }

    /// Takes the next piece of the body; `on_delta` gets each piece of the answer in it.
    pub fn feed(&mut self, bytes: &[u8], on_delta: &mut dyn FnMut(Delta<'_>)) {
        self.tally.answer.bytes += bytes.len() as u64;
        if let Body::Unseen = self.body {
            // Not every server labels its streams; the first character tells them from JSON, and
            // from pages of text that some other server put in the answer's place.
            let Some(first) = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) else {
                return;
            };
            self.body = match Framing::sniffed(*first) {
                Some(Framing::Whole) => Body::Whole(Vec::new()),
                Some(Framing::Array) => Body::Array(ArrayReader::default()),
                Some(Framing::Sse) => Body::Sse(SseReader::new()),
                None => Body::Unread,
            };
        }
        let Self { body, provider, tally } = self;
        match body {
            Body::Sse(reader) => reader.feed(bytes, |frame| {
                provider.frame(&frame, &mut Sink { tally, on_delta });
            }),
            Body::Array(reader) => reader.feed(bytes, |element| {
                tally.answer.events += 1;
                let mut sink = Sink { tally, on_delta };
                match element {
                    Element::Whole(json) => provider.event(b"", json, &mut sink),
                    Element::TooLong => sink.unread(),
                }
            }),
            Body::Whole(held) if held.len() + bytes.len() <= ANSWER_BYTES_MAX => {
                held.extend_from_slice(bytes);
            }
            Body::Whole(_) => {
                tally.unread += 1;
                *body = Body::Unread;
            }
            Body::Grpc(counter) => counter.feed(bytes),
            Body::Unseen | Body::Unread => {}
        }
    }

    /// Takes the next piece of the body where nobody wants the text.
    pub fn count(&mut self, bytes: &[u8]) {
        self.feed(bytes, &mut |_| {});
    }

    /// Whether the body is a stream of server-sent events, as far as is known.
    #[must_use]
    pub fn is_event_stream(&self) -> bool {
        matches!(self.body, Body::Sse(_))
    }

    /// Where in `bytes`, the next piece of an event stream, an event ends: 0 where one has just
    /// ended. `None` where none does, or the body is no event stream.
    #[must_use]
    pub fn next_boundary(&self, bytes: &[u8]) -> Option<usize> {
        match &self.body {
            Body::Sse(reader) => reader.next_boundary(bytes),
            _ => None,
        }
    }

    /// Events and bodies so far that were too long or could not be read, and tool calls past the
    /// number that is kept.
    #[must_use]
    pub fn unread(&self) -> u64 {
        self.tally.unread
    }

    /// Ends the answer. `complete` says whether the transport delivered it to its end; a stream
    /// must also have reached the end that its format marks. Durations are left to the caller.
    ///
    /// An answer that came whole is read only here: `on_delta` gets its pieces now. Returns the
    /// answer and the final [`AnswerReader::unread`].
    #[must_use]
    pub fn finish_with(self, complete: bool, on_delta: &mut dyn FnMut(Delta<'_>)) -> (Answer, u64) {
        let Self { body, mut provider, mut tally } = self;
        let streamed = matches!(body, Body::Sse(_) | Body::Array(_));
        let whole = match body {
            Body::Sse(reader) => {
                reader.finish(|frame| {
                    provider.frame(&frame, &mut Sink { tally: &mut tally, on_delta });
                });
                // An unread event may have been the one that marks the end.
                matches!(provider, Provider::None) || tally.ended || tally.unread > 0
            }
            Body::Array(reader) => reader.at_boundary(),
            Body::Whole(held) => {
                provider.event(b"", &held, &mut Sink { tally: &mut tally, on_delta });
                true
            }
            Body::Grpc(counter) => {
                tally.answer.events = counter.messages();
                counter.at_boundary()
            }
            Body::Unseen | Body::Unread => true,
        };
        tally.answer.streamed = streamed;
        tally.answer.complete = complete && whole;
        (tally.answer, tally.unread)
    }

    /// Ends the answer where nobody wants the text.
    #[must_use]
    pub fn finish(self, complete: bool) -> Answer {
        self.finish_with(complete, &mut |_| {}).0
    }
}

const EVENT_STREAM: &str = "text/event-stream";

/// How an answer's events are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Server-sent events.
    Sse,
    /// The elements of one JSON array.
    Array,
    /// One JSON object.
    Whole,
}

impl Framing {
    /// What a content type promises: events, or some JSON; `None` when neither.
    pub(super) fn labelled(content_type: Option<&str>) -> Option<Self> {
        let essence = essence(content_type).to_ascii_lowercase();
        match essence.as_str() {
            EVENT_STREAM => Some(Self::Sse),
            "" => Some(Self::Whole),
            json if json.ends_with("/json") || json.ends_with("+json") => Some(Self::Whole),
            _ => None,
        }
    }

    /// What a body is by its first character that is no white space.
    pub(super) fn sniffed(first: u8) -> Option<Self> {
        match first {
            b'{' => Some(Self::Whole),
            b'[' => Some(Self::Array),
            b'd' | b'e' | b'i' | b'r' | b':' | 0xef => Some(Self::Sse),
            _ => None,
        }
    }
}

/// The content type without its parameters.
fn essence(content_type: Option<&str>) -> &str {
    content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim()
}

/// Counts the text in single events of a stream.
pub(super) struct TextCounter {
    provider: Provider,
    tally: Tally,
}

impl TextCounter {
    /// A counter for events of this format.
    pub(super) fn new(format: Format) -> Self {
        Self { provider: Provider::new(format), tally: Tally::default() }
    }

    /// About how many tokens of answer text, reasoning and tool arguments an event carries: at
    /// least 1 when it carries any. What repeats earlier text counts nothing.
    pub(super) fn tokens(&mut self, name: &[u8], data: &[u8]) -> u32 {
        let mut said = 0_u64;
        let mut count = |delta: Delta<'_>| {
            said += match delta.piece {
                Piece::Text(text) | Piece::Reasoning(text) | Piece::Refusal(text) => chars(text),
                Piece::Arguments { json, .. } => chars(json),
                Piece::ToolCall { .. } => 0,
            };
        };
        let mut sink = Sink { tally: &mut self.tally, on_delta: &mut count };
        self.provider.event(name, data, &mut sink);
        match said {
            0 => 0,
            said => u32::try_from(said / 4).unwrap_or(u32::MAX).max(1),
        }
    }
}

/// What the body turned out to be.
#[derive(Debug)]
enum Body {
    /// Nothing but white space so far.
    Unseen,
    Sse(SseReader),
    Array(ArrayReader),
    Whole(Vec<u8>),
    Grpc(MessageCounter),
    /// Passed on without reading.
    Unread,
}

/// The reader of the format's events, with what it must remember between them.
#[derive(Debug)]
enum Provider {
    Chat,
    Completions,
    Responses(openai_responses::Progress),
    Anthropic(anthropic::Progress),
    Gemini(gemini::Progress),
    None,
}

impl Provider {
    fn new(format: Format) -> Self {
        match format {
            Format::OpenaiChat => Self::Chat,
            Format::OpenaiResponses => Self::Responses(openai_responses::Progress::default()),
            Format::OpenaiCompletions => Self::Completions,
            Format::AnthropicMessages => Self::Anthropic(anthropic::Progress::default()),
            Format::GeminiGenerate => Self::Gemini(gemini::Progress::default()),
            Format::Grpc | Format::Unknown => Self::None,
        }
    }

    fn frame(&mut self, frame: &Frame<'_>, sink: &mut Sink<'_>) {
        sink.tally.answer.events += 1;
        match frame {
            Frame::Event(event) => self.event(event.name, &event.data, sink),
            Frame::TooLong => sink.unread(),
        }
    }

    /// Reads an event, an array element or a whole body: in every format the three are alike.
    fn event(&mut self, event: &[u8], data: &[u8], sink: &mut Sink<'_>) {
        if data == b"[DONE]" {
            sink.end();
            return;
        }
        let read = json::read(data, |data| match self {
            Self::Chat => openai_chat::read_event(data, sink),
            Self::Completions => openai_completions::read_event(data, sink),
            Self::Responses(progress) => progress.read_event(event, data, sink),
            Self::Anthropic(progress) => progress.read_event(event, data, sink),
            Self::Gemini(progress) => progress.read_event(data, sink),
            Self::None => Ok(()),
        });
        if read.is_err() {
            sink.unread();
        }
    }
}

/// What is known of the answer so far.
#[derive(Debug, Default)]
struct Tally {
    answer: Answer,
    /// Who the answer's tool calls are, in the order of `answer.tool_calls`.
    calls: Vec<Call>,
    ended: bool,
    unread: u64,
}

#[derive(Debug)]
struct Call {
    choice: u32,
    call: u32,
    /// The provider's id of the call; empty where it gives none.
    id: String,
}

/// Where the readers of the formats put what they read.
pub(crate) struct Sink<'a> {
    tally: &'a mut Tally,
    on_delta: &'a mut dyn FnMut(Delta<'_>),
}

impl Sink<'_> {
    pub(crate) fn text(&mut self, choice: u32, text: &str) {
        if !text.is_empty() {
            self.tally.answer.text_chars += chars(text);
            (self.on_delta)(Delta { choice, piece: Piece::Text(text) });
        }
    }

    pub(crate) fn reasoning(&mut self, choice: u32, text: &str) {
        if !text.is_empty() {
            self.tally.answer.reasoning_chars += chars(text);
            (self.on_delta)(Delta { choice, piece: Piece::Reasoning(text) });
        }
    }

    pub(crate) fn refusal(&mut self, choice: u32, text: &str) {
        if !text.is_empty() {
            self.tally.answer.refusal_chars += chars(text);
            (self.on_delta)(Delta { choice, piece: Piece::Refusal(text) });
        }
    }

    /// A tool call, as often as it is mentioned: it begins when its number is new, or when a name
    /// comes with a new id.
    ///
    /// Some servers number every call 0 and tell them apart by id, others repeat the name with
    /// each piece, and one that sends the name late must not lose it.
    pub(crate) fn tool_call(&mut self, choice: u32, call: u32, id: &str, name: &str) {
        let id = super::request::name(id);
        let found = self.find(choice, call).filter(|&at| {
            let known = &self.tally.calls[at].id;
            name.is_empty() || id.is_empty() || known.is_empty() || *known == id
        });
        let Some(at) = found.or_else(|| self.begin_call(choice, call, id)) else {
            return;
        };
        let known = &mut self.tally.answer.tool_calls[at];
        if known.name.is_empty() && !name.is_empty() {
            known.name = super::request::name(name);
            (self.on_delta)(Delta { choice, piece: Piece::ToolCall { call, name } });
        }
    }

    pub(crate) fn arguments(&mut self, choice: u32, call: u32, json: &str) {
        if json.is_empty() {
            return;
        }
        let found = self.find(choice, call);
        // Arguments may come before the name of their call does.
        if let Some(at) = found.or_else(|| self.begin_call(choice, call, String::new())) {
            self.tally.answer.tool_calls[at].argument_bytes += json.len() as u64;
        }
        (self.on_delta)(Delta { choice, piece: Piece::Arguments { call, json } });
    }

    pub(crate) fn model(&mut self, model: &str) {
        if self.tally.answer.model.is_none() && !model.is_empty() {
            self.tally.answer.model = Some(name(model));
        }
    }

    pub(crate) fn usage(&mut self, usage: Usage) {
        self.tally.answer.usage = Some(usage);
    }

    /// Why a choice ended. What is kept is the first choice's reason, whichever comes first.
    pub(crate) fn finish(&mut self, choice: u32, finish: Finish) {
        if choice == 0 || self.tally.answer.finish.is_none() {
            self.tally.answer.finish = Some(finish);
        }
        self.end();
    }

    /// An error code or type. What does not look like one (it may quote anything) is not kept.
    pub(crate) fn error(&mut self, code: &str) {
        let plain = !code.is_empty()
            && code.len() <= ERROR_CODE_BYTES_MAX
            && code.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:/".contains(&b));
        let code = if plain { code } else { "error" };
        self.tally.answer.error.get_or_insert_with(|| code.to_owned());
        self.end();
    }

    /// The format's own end of an answer was seen.
    pub(crate) fn end(&mut self) {
        self.tally.ended = true;
    }

    /// Something was not read.
    pub(crate) fn unread(&mut self) {
        self.tally.unread += 1;
    }

    /// Whether the answer calls a tool.
    pub(crate) fn calls_tools(&self) -> bool {
        !self.tally.calls.is_empty()
    }

    /// Whether the status says that the answer is an error.
    pub(crate) fn is_error(&self) -> bool {
        self.tally.answer.status >= 400
    }

    fn begin_call(&mut self, choice: u32, call: u32, id: String) -> Option<usize> {
        let at = self.tally.calls.len();
        if at == TOOL_CALLS_MAX {
            self.unread();
            return None;
        }
        self.tally.calls.push(Call { choice, call, id });
        self.tally.answer.tool_calls.push(ToolCall { name: String::new(), argument_bytes: 0 });
        Some(at)
    }

    /// The latest call with this number: a number may serve again for a new id.
    fn find(&self, choice: u32, call: u32) -> Option<usize> {
        self.tally.calls.iter().rposition(|known| (known.choice, known.call) == (choice, call))
    }
}

fn chars(text: &str) -> u64 {
    text.chars().count() as u64
}
