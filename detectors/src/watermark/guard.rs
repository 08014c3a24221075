//! Which places of an answer may be touched at all.
//!
//! Sees: the text of one answer, character by character, and the request that it answers.
//! Why: a mark in code, in JSON, in a formula or in a quotation changes what the answer does.
//! Wrong when: a table begins with a row that has no bar at its left, whose first cell is gone by
//! when the first bar comes; or code stands in prose without any sign of it. Everything else is
//! decided towards leaving alone: an unclosed quotation, backtick or dollar keeps the rest of its
//! paragraph untouched, an unclosed fence or display formula the rest of the text.
//! Source: the block and inline rules of CommonMark 0.31, without nesting; dollars as Pandoc's
//! `tex_math_dollars` reads them.

use memchr::memchr3;

use crate::Conversation;
use crate::Role;
use crate::text::fold;

/// Where in a text a marker is.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    /// Whether nothing may be touched up to the end of the text: it is JSON, or markup.
    whole: Option<bool>,
    fence: Option<Fence>,
    line: Line,
    /// Columns of white space at the beginning of the line.
    indent: u32,
    /// Whether the rest of the paragraph is a quotation or a table.
    paragraph: bool,
    /// Backticks or tildes in a row at this place.
    ticks: u32,
    tick: char,
    code: Option<u32>,
    dollars: u32,
    /// What stood before the dollars.
    before_dollars: char,
    math: Option<Math>,
    environments: u32,
    command: Command,
    quote: Option<char>,
    single: bool,
    /// An apostrophe after which it is not yet known whether it closes.
    closing: bool,
    braces: u32,
    tag: Tag,
    raw: Option<TagName>,
    latest: char,
    /// Whether any code was seen.
    pub(crate) code_seen: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fence {
    tick: char,
    ticks: u32,
    /// Whether this is still the line that opens it.
    opening: bool,
    /// Whether the line so far could close it, and its ticks.
    closes: bool,
    run: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Nothing but white space, list markers and bullets so far.
    Start,
    Text,
    /// Left alone up to its end.
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Math {
    Dollar,
    Dollars,
    Parenthesis,
    Bracket,
}

/// A LaTeX command's name so far: only "begin" and "end" matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    None,
    Backslash,
    Name([u8; 6], usize),
}

type TagName = ([u8; 12], usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    None,
    Opened,
    Name { closing: bool, name: TagName },
    Inside { closing: bool, name: TagName },
}

impl Guard {
    pub(crate) fn new() -> Self {
        Self {
            whole: None,
            fence: None,
            line: Line::Start,
            indent: 0,
            paragraph: false,
            ticks: 0,
            tick: ' ',
            code: None,
            dollars: 0,
            before_dollars: ' ',
            math: None,
            environments: 0,
            command: Command::None,
            quote: None,
            single: false,
            closing: false,
            braces: 0,
            tag: Tag::None,
            raw: None,
            latest: '\n',
            code_seen: false,
        }
    }

    /// Whether what begins at this place may be touched.
    pub(crate) fn open(&self) -> bool {
        self.whole != Some(true)
            && self.fence.is_none()
            && self.line != Line::Skip
            && self.indent < 4
            && !self.paragraph
            && self.ticks == 0
            && self.code.is_none()
            && self.dollars == 0
            && self.math.is_none()
            && self.environments == 0
            && self.command == Command::None
            && self.quote.is_none()
            && !self.single
            && self.braces == 0
            && self.tag == Tag::None
            && self.raw.is_none()
    }

    /// Takes the next character of the text.
    pub(crate) fn step(&mut self, c: char) {
        if self.whole.is_none() && !c.is_whitespace() {
            self.whole = Some(matches!(c, '{' | '[' | '<'));
        }
        if self.fence.is_some() {
            self.step_fence(c);
        } else {
            self.step_text(c);
        }
        self.latest = c;
    }

    fn step_fence(&mut self, c: char) {
        let Some(fence) = &mut self.fence else { return };
        if c == '\n' {
            if fence.closes && fence.run >= fence.ticks && !fence.opening {
                self.fence = None;
                self.new_line();
            } else {
                fence.opening = false;
                fence.closes = true;
                fence.run = 0;
            }
        } else if fence.opening {
            if c == '`' && fence.tick == '`' {
                // An info string has no backtick: this was inline code on one line.
                self.code = Some(fence.ticks);
                self.fence = None;
                self.line = Line::Text;
                self.ticks = 1;
                self.tick = '`';
            }
        } else if c == fence.tick && fence.closes && (fence.run == 0 || self.latest == c) {
            fence.run += 1;
        } else if !c.is_whitespace() {
            fence.closes = false;
        }
    }

    fn step_text(&mut self, c: char) {
        if self.ticks > 0 && c != self.tick {
            self.end_ticks();
            if self.fence.is_some() {
                self.step_fence(c);
                return;
            }
        }
        if self.dollars > 0 && c != '$' {
            self.end_dollars(c);
        }
        if self.closing {
            self.closing = false;
            self.single &= c.is_alphanumeric();
        }
        if c == '\n' {
            self.end_line();
            return;
        }
        let at_start = self.line == Line::Start;
        if at_start {
            self.start_of_line(c);
        }
        self.tag_step(c);
        if self.raw.is_some() {
            return;
        }
        let command = self.command;
        self.command_step(c);
        match c {
            '`' | '~' => {
                let counts = c == '`' || at_start || self.ticks > 0;
                if counts && command != Command::Backslash {
                    if self.ticks == 0 && at_start {
                        // A fence may begin; what follows decides.
                        self.line = Line::Start;
                    }
                    self.ticks += 1;
                    self.tick = c;
                    self.code_seen |= c == '`';
                }
            }
            _ if self.code.is_some() => {}
            '$' if command != Command::Backslash => {
                if self.dollars == 0 {
                    self.before_dollars = self.latest;
                }
                self.dollars += 1;
            }
            _ if self.math.is_some() => {}
            '|' => self.paragraph = true,
            '{' => self.braces = self.braces.saturating_add(1),
            '}' => self.braces = self.braces.saturating_sub(1),
            '"' => {
                let opens = self.latest.is_whitespace()
                    || matches!(self.latest, '(' | '[' | '{' | '*' | '_' | '\u{2014}' | '/' | '=');
                self.quote = match self.quote {
                    Some('"') => None,
                    None if opens => Some('"'),
                    other => other,
                };
            }
            '\u{201c}' | '\u{201e}' if self.quote.is_none() => self.quote = Some('\u{201d}'),
            '\u{201c}' | '\u{201d}' if self.quote == Some('\u{201d}') => self.quote = None,
            '\u{ab}' if self.quote.is_none() => self.quote = Some('\u{bb}'),
            '\u{bb}' if self.quote == Some('\u{bb}') => self.quote = None,
            '\u{2018}' => self.single = true,
            '\'' if !self.single => {
                self.single = self.latest.is_whitespace() || matches!(self.latest, '(' | '[');
            }
            '\'' | '\u{2019}' => self.closing = !self.latest.is_whitespace(),
            _ => {}
        }
    }

    fn start_of_line(&mut self, c: char) {
        match c {
            ' ' => self.indent += 1,
            '\t' => self.indent += 4,
            '>' | '|' | '{' | '[' | '<' => {
                self.paragraph = true;
                self.line = Line::Skip;
            }
            '#' | '}' | ']' | '%' => self.line = Line::Skip,
            '$' => self.line = Line::Text,
            '-' | '*' | '+' | '.' | ')' | '0'..='9' | '`' | '~' => {}
            _ => self.line = Line::Text,
        }
    }

    fn end_line(&mut self) {
        let blank = self.line == Line::Start && matches!(self.latest, '\n' | ' ' | '\t' | '\r');
        if blank {
            // A paragraph ends, and with it whatever was not closed.
            self.paragraph = false;
            self.code = None;
            self.quote = None;
            self.braces = 0;
            self.tag = Tag::None;
            if self.math == Some(Math::Dollar) {
                self.math = None;
            }
        }
        self.single = false;
        self.closing = false;
        self.command = Command::None;
        self.new_line();
    }

    fn new_line(&mut self) {
        self.line = Line::Start;
        self.indent = 0;
        self.ticks = 0;
    }

    /// A run of backticks or tildes is over.
    fn end_ticks(&mut self) {
        let ticks = std::mem::take(&mut self.ticks);
        if self.raw.is_some() {
            return;
        }
        if self.line == Line::Start && ticks >= 3 {
            // A block ends whatever was open before it.
            self.code = None;
            self.math = None;
            self.code_seen = true;
            self.fence =
                Some(Fence { tick: self.tick, ticks, opening: true, closes: true, run: 0 });
        } else if self.tick == '`' && self.math.is_none() {
            self.code = match self.code {
                Some(open) if open == ticks => None,
                Some(open) => Some(open),
                None => Some(ticks),
            };
        }
        if self.line == Line::Start {
            self.line = Line::Text;
        }
    }

    /// A run of dollars is over.
    fn end_dollars(&mut self, next: char) {
        let dollars = std::mem::take(&mut self.dollars);
        if self.code.is_some() || self.raw.is_some() {
            return;
        }
        self.math = match (self.math, dollars) {
            (None, 1) if !next.is_whitespace() => Some(Math::Dollar),
            (None, 1) if self.before_dollars == '\n' => {
                // A shell's prompt.
                self.line = Line::Skip;
                None
            }
            (None, 1) => None,
            (None, _) => Some(Math::Dollars),
            // An amount of money does not end a formula.
            (Some(Math::Dollar), 1)
                if !self.before_dollars.is_whitespace() && !next.is_ascii_digit() =>
            {
                None
            }
            (Some(Math::Dollars | Math::Dollar), 2..) => None,
            (math, _) => math,
        };
    }

    fn command_step(&mut self, c: char) {
        if self.code.is_some() {
            self.command = Command::None;
            return;
        }
        self.command = match (self.command, c) {
            (Command::Backslash, '(') => self.math_step(None, Some(Math::Parenthesis)),
            (Command::Backslash, ')') => self.math_step(Some(Math::Parenthesis), None),
            (Command::Backslash, '[') => self.math_step(None, Some(Math::Bracket)),
            (Command::Backslash, ']') => self.math_step(Some(Math::Bracket), None),
            (Command::Backslash, '\\') => Command::None,
            (_, '\\') => Command::Backslash,
            (Command::Backslash, 'a'..='z') => Command::Name([c as u8, 0, 0, 0, 0, 0], 1),
            (Command::Name(mut name, len), 'a'..='z') => {
                if let Some(place) = name.get_mut(len) {
                    *place = c as u8;
                }
                Command::Name(name, (len + 1).min(name.len()))
            }
            (Command::Name(name, len), _) => {
                match &name[..len] {
                    b"begin" => self.environments = self.environments.saturating_add(1),
                    b"end" => self.environments = self.environments.saturating_sub(1),
                    _ => {}
                }
                Command::None
            }
            _ => Command::None,
        };
    }

    fn math_step(&mut self, from: Option<Math>, to: Option<Math>) -> Command {
        let inline = from.is_none() && self.math == Some(Math::Dollar);
        if self.math == from || inline {
            self.math = to;
        }
        Command::None
    }

    fn tag_step(&mut self, c: char) {
        if self.code.is_some() || self.math.is_some() {
            return;
        }
        self.tag = match (self.tag, c) {
            (Tag::None, '<') => Tag::Opened,
            (Tag::None, _) => Tag::None,
            (Tag::Opened, '/') => Tag::Name { closing: true, name: ([0; 12], 0) },
            (Tag::Opened, 'a'..='z' | 'A'..='Z' | '!' | '?') => {
                let mut name = [0; 12];
                name[0] = c.to_ascii_lowercase() as u8;
                Tag::Name { closing: false, name: (name, 1) }
            }
            (Tag::Opened, _) => Tag::None,
            (Tag::Name { closing, name } | Tag::Inside { closing, name }, '>') => {
                self.end_tag(closing, name);
                Tag::None
            }
            (Tag::Name { closing, name: (mut name, len) }, c) if c.is_ascii_alphanumeric() => {
                if let Some(place) = name.get_mut(len) {
                    *place = c.to_ascii_lowercase() as u8;
                }
                Tag::Name { closing, name: (name, (len + 1).min(name.len())) }
            }
            (Tag::Name { closing, name }, _) => Tag::Inside { closing, name },
            (inside, _) => inside,
        };
    }

    fn end_tag(&mut self, closing: bool, name: TagName) {
        if closing && self.raw == Some(name) {
            self.raw = None;
        } else if !closing && self.raw.is_none() {
            let raw = matches!(
                &name.0[..name.1],
                b"code"
                    | b"pre"
                    | b"script"
                    | b"style"
                    | b"math"
                    | b"svg"
                    | b"textarea"
                    | b"table"
                    | b"blockquote"
                    | b"q"
                    | b"cite"
                    | b"kbd"
                    | b"samp"
                    | b"var"
            );
            if raw && self.latest != '/' {
                self.raw = Some(name);
                self.code_seen = true;
            }
        }
    }
}

/// Follows a text in which nothing is marked, so that marking may begin in its middle.
///
/// Knows of fences and display formulas only; whatever else is open ends with its paragraph, and
/// marking begins at a paragraph. Most of a text is passed over at the speed of `memchr`.
#[derive(Clone, Debug)]
pub struct FenceTracker {
    /// Whether the text began as prose and not as JSON or markup; `None` before its first letter.
    prose: Option<bool>,
    fence: Option<(u8, u32)>,
    opening: bool,
    /// Whether the line before was empty, outside of fences and formulas.
    paragraph: bool,
    /// Whether the line has nothing so far; nothing but white space and one run.
    line_empty: bool,
    line_blank: bool,
    tick: u8,
    run: u32,
    run_over: bool,
    dollars: bool,
    bracket: bool,
    latest: u8,
}

impl Default for FenceTracker {
    fn default() -> Self {
        Self {
            prose: None,
            fence: None,
            opening: false,
            paragraph: false,
            line_empty: true,
            line_blank: true,
            tick: 0,
            run: 0,
            run_over: false,
            dollars: false,
            bracket: false,
            latest: b'\n',
        }
    }
}

impl FenceTracker {
    /// At the beginning of a text.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a paragraph of prose may begin here: after an empty line, outside of everything.
    #[must_use]
    pub fn at_paragraph(&self) -> bool {
        self.paragraph && self.line_empty && self.prose == Some(true)
    }

    /// Takes the next piece of the text.
    pub fn push(&mut self, piece: &str) {
        if self.prose.is_none()
            && let Some(c) = piece.chars().find(|c| !c.is_whitespace())
        {
            self.prose = Some(!matches!(c, '{' | '[' | '<'));
        }
        let bytes = piece.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            // Only the beginning of a line is looked at byte by byte.
            while (self.line_blank || self.opening) && at < bytes.len() {
                self.line_byte(bytes[at]);
                at += 1;
            }
            let Some(stop) = memchr3(b'\n', b'$', b'\\', &bytes[at..]) else {
                // The latest byte alone may matter: a dollar or a backslash would have stopped us.
                if at < bytes.len() {
                    self.latest = 0;
                }
                break;
            };
            if stop > 0 {
                self.latest = 0;
            }
            at += stop;
            self.text_byte(bytes[at]);
            at += 1;
            if self.latest == b'\\' && at < bytes.len() {
                self.text_byte(bytes[at]);
                at += 1;
            }
        }
    }

    fn line_byte(&mut self, b: u8) {
        if self.opening {
            match b {
                b'\n' => self.end_line(),
                // An info string has no backtick: this is inline code on one line.
                b'`' if self.tick == b'`' => {
                    self.fence = None;
                    self.opening = false;
                    self.latest = 0;
                }
                _ => {}
            }
            return;
        }
        match b {
            b'\n' => self.end_line(),
            b' ' | b'\t' | b'\r' => {
                self.run_over |= self.run > 0;
                self.latest = b;
            }
            b'`' | b'~' if !self.run_over && (self.run == 0 || self.tick == b) => {
                self.tick = b;
                self.run += 1;
                self.line_empty = false;
                self.latest = b;
            }
            // List markers may stand before a fence.
            b'-' | b'*' | b'+' | b'.' | b')' | b'0'..=b'9'
                if self.run == 0 && self.fence.is_none() =>
            {
                self.line_empty = false;
                self.latest = b;
            }
            _ => {
                // An info string has no backtick, not as its first either.
                if !(b == b'`' && self.tick == b'`') {
                    self.open_fence();
                }
                self.line_blank = false;
                self.line_empty = false;
                self.text_byte(b);
            }
        }
    }

    fn open_fence(&mut self) {
        if self.fence.is_none() && self.run >= 3 {
            self.fence = Some((self.tick, self.run));
            self.opening = true;
            self.bracket = false;
            self.dollars = false;
        }
    }

    fn text_byte(&mut self, b: u8) {
        if b == b'\n' {
            self.end_line();
            return;
        }
        if self.fence.is_none() {
            match (self.latest, b) {
                (b'\\', b'[') => self.bracket = true,
                (b'\\', b']') => self.bracket = false,
                (b'$', b'$') => {
                    self.dollars = !self.dollars;
                    self.latest = 0;
                    return;
                }
                (b'\\', _) => {
                    self.latest = 0;
                    return;
                }
                _ => {}
            }
        }
        self.latest = b;
    }

    fn end_line(&mut self) {
        match self.fence {
            Some((tick, ticks))
                if self.line_blank && !self.opening && self.tick == tick && self.run >= ticks =>
            {
                self.fence = None;
            }
            Some(_) => self.opening = false,
            None if self.line_blank => {
                self.open_fence();
                self.opening = false;
            }
            None => {}
        }
        self.paragraph = self.line_empty && self.fence.is_none() && !self.dollars && !self.bracket;
        self.line_empty = true;
        self.line_blank = true;
        self.run = 0;
        self.tick = 0;
        self.run_over = false;
        self.latest = b'\n';
    }
}

/// Why an answer is not marked at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// JSON or a schema was asked for: the answer is for a program.
    Structured,
    /// Log-probabilities come with each token and would not fit.
    Logprobs,
    /// The caller asks for given words.
    Verbatim,
    /// The provider's own search or retrieval cites places of the answer.
    Grounded,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Structured, Self::Logprobs, Self::Verbatim, Self::Grounded];

    /// The name used in metrics and records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Structured => "structured",
            Self::Logprobs => "logprobs",
            Self::Verbatim => "verbatim",
            Self::Grounded => "grounded",
        }
    }
}

/// What a user says who wants given words back; folded, so lower case and without hyphens.
const VERBATIM: [&str; 52] = [
    "verbatim",
    "word for word",
    "word by word",
    "exactly as written",
    "exactly as it is",
    "exactly as they",
    "exactly the following",
    "repeat after me",
    "repeat the following",
    "repeat this",
    "repeat the text",
    "repeat everything",
    "repeat back",
    "say exactly",
    "output exactly",
    "reply exactly",
    "respond exactly",
    "reply with exactly",
    "respond with exactly",
    "reply only with",
    "respond only with",
    "answer only with",
    "copy exactly",
    "copy the text",
    "copy this",
    "copy the following",
    "reproduce the",
    "reproduce this",
    "transcribe",
    "transcript of",
    "quote the",
    "quote from",
    "exact quote",
    "direct quote",
    "exact wording",
    "exact text",
    "exact words",
    "recite",
    "literal translation",
    "translate literally",
    "without changing",
    "without any changes",
    "do not change",
    "don't change",
    "do not modify",
    "don't modify",
    "correct the grammar",
    "fix the grammar",
    "proofread",
    "as is, without",
    "letter by letter",
    "the full text of",
];

/// Tools of providers whose answers carry places in the text; folded as names, without `_` or `-`.
const GROUNDING: [&str; 12] = [
    "websearch",
    "googlesearch",
    "filesearch",
    "webfetch",
    "codeinterpreter",
    "retrieval",
    "urlcontext",
    "enterprisewebsearch",
    "groundingtool",
    "bingsearch",
    "googlemaps",
    "citations",
];

/// Whether the answer to a request may be marked.
///
/// # Errors
/// The first reason against it.
pub fn may_mark(conversation: &Conversation) -> Result<(), Reason> {
    let sampling = &conversation.sampling;
    if sampling.structured {
        return Err(Reason::Structured);
    }
    if sampling.logprobs || sampling.top_logprobs.is_some_and(|top| top > 0) {
        return Err(Reason::Logprobs);
    }
    let grounded = |tool: &String| {
        let name: String = tool
            .chars()
            .take(64)
            .filter(char::is_ascii_alphabetic)
            .map(|c| c.to_ascii_lowercase())
            .collect();
        GROUNDING.iter().any(|known| name.starts_with(known))
    };
    if conversation.tools.iter().any(grounded) {
        return Err(Reason::Grounded);
    }
    let asks = |text: &str| {
        let folded = fold(text).text;
        VERBATIM.iter().any(|phrase| folded.contains(phrase))
    };
    let last = conversation.turns.iter().rev().find(|turn| turn.role == Role::User);
    if last.is_some_and(|turn| asks(turn.text.as_str())) {
        return Err(Reason::Verbatim);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Sampling, Text, Turn};

    /// Which of the words "yes" and "no" are where a mark may be.
    fn check(text: &str) {
        let mut guard = Guard::new();
        for (at, c) in text.char_indices() {
            let open = guard.open();
            if text[at..].starts_with("yes") {
                assert!(open, "{at} of {text:?} is left alone");
            } else if text[at..].starts_with("no") {
                assert!(!open, "{at} of {text:?} may be touched");
            }
            guard.step(c);
        }
    }

    #[test]
    fn prose_is_open_and_all_else_is_not() {
        for text in [
            "yes, yes.\n\nyes\n- yes\n1. yes\n  * yes yes",
            "yes\n```rust\nno\n```\nyes\n~~~\nno\n```\nno\n~~~\nyes",
            "yes\n````\nno\n```\nno\n````\nyes\n\n  - ```sh\n    no\n    ```\n\nyes",
            "yes `no` yes ``no ` no`` yes ```no``` yes",
            "```no``` yes",
            "yes `no no\nno\n\nyes",
            "yes\n\n    no\n\tno\nyes",
            "yes $no$ yes $$no$$ yes \\(no\\) yes \\[no\\] yes",
            "yes\n$$\nno\n\nno\n$$\nyes",
            "\\[\nno\n\\]\nyes",
            "\\begin{align}\nno\n\\end{align}\nyes",
            "yes \\alpha{no} yes",
            "yes\n| no | no |\n|---|---|\n| no | no\nno\n\nyes",
            "yes\nyes | no | no\nno | no\n\nyes",
            "> no\nno\n\nyes",
            "yes \"no no\" yes “no” yes «no» yes „no“ yes",
            "yes 'no don't no' yes the dogs' yes",
            "yes ‘no’ yes don’t yes",
            "yes \"no\nno\n\nyes",
            "5\" yes",
            "# no\nyes",
            "yes <a href=\"no\">yes</a> yes <br/>yes",
            "yes <code>no</code> yes <pre class=x>no <b>no</b> no</pre> yes",
            "yes 1 < 2 yes",
            "{\"no\": \"no\"}\n\nno",
            "[no, no]",
            "<answer>no",
            "yes\n{\n  \"no\": \"no\"\n}\n\nyes",
            "yes {no {no} no} yes",
            "$ no\nyes",
            "yes $5 no\n\nyes",
        ] {
            check(text);
        }
    }

    /// At which X a paragraph may begin.
    fn tracked(text: &str) -> Vec<bool> {
        let mut tracker = FenceTracker::new();
        let mut open = Vec::new();
        for (at, part) in text.split('X').enumerate() {
            if at > 0 {
                open.push(tracker.at_paragraph());
                tracker.push("X");
            }
            tracker.push(part);
        }
        open
    }

    #[test]
    fn marking_begins_at_a_paragraph() {
        for (text, expected) in [
            ("some text X\nX\n\nX", vec![false, false, true]),
            ("a\n  \nX\n\n  X", vec![true, true]),
            ("a\n```\ncode\n\nX\n\nX\n```\nX\n\nX", vec![false, false, false, true]),
            ("a\n- ```\ncode\n\nX\n```\n\nX", vec![false, true]),
            ("a\n~~~\n\nX\n```\n\nX", vec![false, false]),
            ("a\n````\n```\n\nX\n````\n\nX", vec![false, true]),
            ("a `x` b\n\nX", vec![true]),
            ("a\n```x``` b\n\nX", vec![true]),
            ("a $$\nx\n\nX\n\nX $$\n\nX", vec![false, false, true]),
            ("a \\[\nx\n\nX\n\nX \\]\n\nX", vec![false, false, true]),
            ("{\"a\":\n\nX\n\nX", vec![false, false]),
            ("X\n\nX", vec![false, true]),
        ] {
            assert_eq!(tracked(text), expected, "{text:?}");
        }
    }

    #[test]
    fn an_info_string_that_begins_with_a_backtick_opens_nothing() {
        let mut tracker = FenceTracker::new();
        tracker.push("word\n```  `~~~\n```\n\n");
        assert!(!tracker.at_paragraph(), "the second line of backticks has opened a fence");
        tracker.push("word\n```\n\n");
        assert!(tracker.at_paragraph());
    }

    proptest! {
        /// Where the tracker lets a paragraph begin, a guard that read everything is in no code.
        #[test]
        fn the_tracker_is_no_bolder(
            pieces in prop::collection::vec(
                prop_oneof![
                    Just("```"), Just("~~~"), Just("\n"), Just("\n\n"), Just("\\["), Just("\\]"),
                    Just("word "), Just("`"), Just("  "), Just("- "), Just("\\"), Just("$"),
                ],
                0..40,
            ),
        ) {
            let mut tracker = FenceTracker::new();
            let mut guard = Guard::new();
            let mut before = String::new();
            for piece in pieces {
                tracker.push(piece);
                piece.chars().for_each(|c| guard.step(c));
                before.push_str(piece);
                let mut whole = FenceTracker::new();
                whole.push(&before);
                prop_assert_eq!(whole.at_paragraph(), tracker.at_paragraph());
                prop_assert!(!(tracker.at_paragraph() && guard.fence.is_some()), "{before:?}");
            }
        }

        #[test]
        fn arbitrary_text_is_followed(text in "[\\PC\n`$\\\\]*") {
            let mut guard = Guard::new();
            text.chars().for_each(|c| guard.step(c));
            let mut tracker = FenceTracker::new();
            tracker.push(&text);
        }
    }

    fn asking(text: &str) -> Conversation {
        let turn =
            |role, text| Turn { role, text: Text::new(text), tool_calls: vec![], attachments: 0 };
        Conversation {
            turns: vec![turn(Role::User, text), turn(Role::Assistant, "verbatim")],
            ..Conversation::default()
        }
    }

    #[test]
    fn requests_are_guarded() {
        assert_eq!(may_mark(&asking("Why is the sky blue?")), Ok(()));
        assert_eq!(may_mark(&asking("Repeat the following: a")), Err(Reason::Verbatim));
        assert_eq!(may_mark(&asking("Copy this word-for-word")), Err(Reason::Verbatim));
        let with = |change: fn(&mut Conversation)| {
            let mut conversation = asking("Hello");
            change(&mut conversation);
            may_mark(&conversation)
        };
        assert_eq!(
            with(|c| c.sampling = Sampling { structured: true, ..Default::default() }),
            Err(Reason::Structured)
        );
        assert_eq!(with(|c| c.sampling.logprobs = true), Err(Reason::Logprobs));
        assert_eq!(with(|c| c.tools = vec!["web_search_20250305".into()]), Err(Reason::Grounded));
        assert_eq!(with(|c| c.tools = vec!["googleSearch".into()]), Err(Reason::Grounded));
        assert_eq!(with(|c| c.tools = vec!["get_weather".into()]), Ok(()));
    }
}
