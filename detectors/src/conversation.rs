//! What was asked and what was answered, in one vocabulary for every provider format.
//!
//! Texts live only as long as the exchange is judged. [`Text`] cannot be serialised and its
//! `Debug` shows a length, so that no log line and no record can carry a prompt by accident;
//! what may be kept of a text is [`TextFeatures`].

use std::fmt;

use serde::Serialize;

/// The provider format that a request was recognised as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `POST …/chat/completions`: OpenAI and its compatibles (Mistral, DeepSeek, vLLM, OpenRouter).
    OpenaiChat,
    /// `POST …/responses`: OpenAI Responses.
    OpenaiResponses,
    /// `POST …/completions`: OpenAI legacy completions.
    OpenaiCompletions,
    /// `POST …/messages`: Anthropic Messages.
    AnthropicMessages,
    /// `POST …:generateContent` and `…:streamGenerateContent`: Gemini.
    GeminiGenerate,
    /// `content-type: application/grpc`: framing is recognised, messages are opaque (T-DIST-010).
    Grpc,
    /// Anything else: passed on byte for byte, still fingerprinted and attributed.
    Unknown,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 7] = [
        Self::OpenaiChat,
        Self::OpenaiResponses,
        Self::OpenaiCompletions,
        Self::AnthropicMessages,
        Self::GeminiGenerate,
        Self::Grpc,
        Self::Unknown,
    ];

    /// The name used in metrics, records and policies.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenaiChat => "openai_chat",
            Self::OpenaiResponses => "openai_responses",
            Self::OpenaiCompletions => "openai_completions",
            Self::AnthropicMessages => "anthropic_messages",
            Self::GeminiGenerate => "gemini_generate",
            Self::Grpc => "grpc",
            Self::Unknown => "unknown",
        }
    }
}

/// Prompt or completion text, held only while an exchange is judged.
///
/// Deliberately neither `Serialize` nor readable through `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// Wraps a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: for detectors, never for a record or a log line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is no text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends a further piece, separated by a line break where both sides have text.
    pub fn join(&mut self, piece: &str) {
        if !self.0.is_empty() && !piece.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(piece);
    }

    /// What may be kept of this text.
    #[must_use]
    pub fn features(&self) -> TextFeatures {
        // Most prompts are ASCII, where a look at each byte is enough.
        if self.0.is_ascii() {
            count(self.0.bytes(), |b| b.is_ascii_alphanumeric(), |b| b == b'\n', |_| (false, false))
        } else {
            let outside = |c: char| (!c.is_ascii(), is_invisible(c));
            count(self.0.chars(), char::is_alphanumeric, |c| c == '\n', outside)
        }
    }
}

fn count<C: Copy>(
    text: impl Iterator<Item = C>,
    in_word: impl Fn(C) -> bool,
    ends_line: impl Fn(C) -> bool,
    outside_ascii: impl Fn(C) -> (bool, bool),
) -> TextFeatures {
    let mut features = TextFeatures::default();
    let mut before = false;
    for c in text {
        let (non_ascii, invisible) = outside_ascii(c);
        let word = in_word(c);
        features.chars += 1;
        features.lines += u32::from(ends_line(c));
        features.non_ascii += u32::from(non_ascii);
        features.invisible += u32::from(invisible);
        features.words += u32::from(word && !before);
        before = word;
    }
    features
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Text({} bytes)", self.0.len())
    }
}

/// Zero-width and other invisible characters that a scraped watermark brings back (T-DIST-008).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{e0100}'..='\u{e01ef}')
}

/// What may be kept of a text: counts, from which no text can be made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TextFeatures {
    /// Unicode scalar values.
    pub chars: u32,
    /// Runs of alphanumeric characters.
    pub words: u32,
    /// Line breaks.
    pub lines: u32,
    /// Characters outside ASCII.
    pub non_ascii: u32,
    /// Zero-width and variation-selector characters (T-DIST-008).
    pub invisible: u32,
}

/// Who speaks in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The caller.
    User,
    /// The model, in an earlier answer.
    Assistant,
    /// A tool's result, handed back.
    Tool,
    /// A system or developer instruction in the middle of a conversation.
    System,
}

/// One message of the conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// All text parts, joined by line breaks.
    pub text: Text,
    /// Names of the tools that an assistant turn calls, in order.
    pub tool_calls: Vec<String>,
    /// Images, audio, files and other parts that are not text.
    pub attachments: u32,
}

/// What the caller asked of the sampler. `None` where the request does not say.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sampling {
    /// Upper bound on the answer, in tokens.
    pub max_tokens: Option<u64>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Nucleus mass.
    pub top_p: Option<f64>,
    /// Answers asked for at once (`n`, `candidateCount`).
    pub n: Option<u32>,
    /// Whether token log-probabilities were asked for.
    pub logprobs: bool,
    /// How many alternatives with their log-probabilities were asked for at each token.
    pub top_logprobs: Option<u32>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Sampler seed.
    pub seed: Option<i64>,
    /// Reasoning effort or budget, as the format spells it (`high`, `8192`).
    pub reasoning: Option<String>,
    /// Whether a JSON or schema-bound answer was asked for.
    pub structured: bool,
}

/// A request's conversation, read from any provider format.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The model that the request names.
    pub model: Option<String>,
    /// System prompt, preamble or instructions; parts joined by line breaks.
    pub system: Text,
    /// The turns in order.
    pub turns: Vec<Turn>,
    /// Names of the tools on offer, in order.
    pub tools: Vec<String>,
    /// What was asked of the sampler.
    pub sampling: Sampling,
}

impl Conversation {
    /// Bytes of memory that its texts and turns take.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let turns = self.turns.iter().map(|turn| turn.text.as_str().len() + size_of_val(turn));
        self.system.as_str().len() + turns.sum::<usize>()
    }
}

/// A tool call in an answer. Arguments are counted, never kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// Length of the JSON arguments in bytes.
    pub argument_bytes: u64,
}

/// Tokens as the provider counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens read, cached ones included.
    pub prompt_tokens: u64,
    /// Tokens written, reasoning included.
    pub completion_tokens: u64,
    /// Of the completion: reasoning tokens, where the provider tells.
    pub reasoning_tokens: u64,
    /// Of the prompt: tokens served from the provider's prompt cache.
    pub cached_tokens: u64,
}

/// Why the answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model was done.
    Stop,
    /// `max_tokens` was reached.
    Length,
    /// The model waits for a tool's result.
    ToolCalls,
    /// A content filter or a refusal ended it.
    Filtered,
    /// Ended for a reason outside this list (a paused turn, a compaction).
    Other,
}

/// An answer as it went by: counts and outcomes, no text.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Answer {
    /// HTTP status; 0 when none was sent.
    pub status: u16,
    /// Whether it came as a stream of events.
    pub streamed: bool,
    /// Events (SSE events, JSON-array elements, gRPC messages) in the body.
    pub events: u64,
    /// Body bytes received from the upstream; a client that went away may have taken fewer.
    pub bytes: u64,
    /// Visible answer text, all choices together, in characters.
    pub text_chars: u64,
    /// Reasoning text shown, in characters.
    pub reasoning_chars: u64,
    /// Refusal text in the provider's own refusal field, in characters.
    pub refusal_chars: u64,
    /// Tool calls in order of their start.
    pub tool_calls: Vec<ToolCall>,
    /// Tokens as the provider counted them, if it told.
    pub usage: Option<Usage>,
    /// Why the (first) choice ended.
    pub finish: Option<Finish>,
    /// The provider's error code or type, also when it came inside a 200.
    pub error: Option<String>,
    /// The model that answered, if the answer names it.
    pub model: Option<String>,
    /// Whether the body reached its proper end.
    pub complete: bool,
    /// From the request's last byte to the answer's first body byte, in milliseconds.
    pub first_byte_ms: Option<u64>,
    /// From the request's arrival to the end of the answer, in milliseconds.
    pub duration_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_a_text() {
        let turn = Turn {
            role: Role::User,
            text: Text::new("the secret recipe"),
            tool_calls: vec![],
            attachments: 0,
        };
        assert!(!format!("{turn:?}").contains("recipe"));
    }

    #[test]
    fn features_count_what_they_name() {
        let features = Text::new("Zwei Wörter\nnext\u{200b}line").features();
        assert_eq!(
            features,
            TextFeatures { chars: 21, words: 4, lines: 1, non_ascii: 2, invisible: 1 }
        );
    }

    #[test]
    fn both_ways_of_counting_agree_on_ascii() {
        for text in ["", "one", "two words\n", "a-b c_d  e\n\nf1 2g"] {
            let ascii = Text::new(text).features();
            let other = Text::new(format!("{text}\u{200b}")).features();
            let expected =
                TextFeatures { chars: ascii.chars + 1, non_ascii: 1, invisible: 1, ..ascii };
            assert_eq!(other, expected, "{text:?}");
        }
    }

    #[test]
    fn pieces_join_with_one_line_break() {
        let mut text = Text::default();
        text.join("a");
        text.join("");
        text.join("b");
        assert_eq!(text.as_str(), "a\nb");
    }
}
