//! Tests: whole answers of each format, rewritten.
//!
//! The streams here are of our own making, in the shapes that providers send. Where a folder of
//! recorded streams lies beside the repository, those are rewritten too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use detectors::Format;
use proptest::prelude::*;
use serde_json::Value;

use super::framing::sse::{Boundaries, parse_event};
use super::recorded::{folders, format_of, recorded_folder};
use super::{
    AnswerReader, Changes, Edit, EventMeter, Piece, Reasoning, Released, RewriteCounts, Rewriter,
    TextId, TextMarker,
};

const SSE: &str = "text/event-stream";
const JSON: &str = "application/json";

/// Holds up to three words, puts a zero-width space behind every other one, and replaces one.
#[derive(Default)]
struct Marks {
    held: String,
    words: usize,
    passed: usize,
    edits: Vec<Edit>,
}

impl Marks {
    fn word(&mut self, end: usize, out: &mut String) {
        let word: String = self.held.drain(..end).collect();
        let said = word.trim_end();
        if said == "the" {
            self.edits.push(Edit { at: self.passed, removed: 3, inserted: THE.len() });
            out.push_str(THE);
            out.push_str(&word[3..]);
        } else {
            out.push_str(&word);
        }
        self.words += 1;
        self.passed += word.len();
        if self.words.is_multiple_of(2) {
            self.edits.push(Edit { at: self.passed, removed: 0, inserted: 3 });
            out.push('\u{200b}');
        }
    }
}

const THE: &str = "[THE]";

fn unmarked(text: &str) -> String {
    text.replace('\u{200b}', "").replace(THE, "the")
}

impl TextMarker for Marks {
    fn push(&mut self, piece: &str, out: &mut String) {
        self.held.push_str(piece);
        while self.held.matches(' ').count() > 3 {
            let end = self.held.find(' ').unwrap() + 1;
            self.word(end, out);
        }
    }

    fn flush(&mut self, out: &mut String) {
        self.passed += self.held.len();
        out.push_str(&std::mem::take(&mut self.held));
    }

    fn finish(&mut self, out: &mut String) {
        while let Some(space) = self.held.find(' ') {
            self.word(space + 1, out);
        }
        self.flush(out);
    }

    fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    fn edits(&self) -> &[Edit] {
        &self.edits
    }
}

fn marks() -> Changes {
    let mark = |_: TextId| Some(Box::<Marks>::default() as Box<dyn TextMarker>);
    Changes { mark: Some(Box::new(mark)), reasoning: Reasoning::Keep }
}

fn identity() -> Changes {
    let mark = |_: TextId| Some(Box::new(super::rewrite::Hyphens::new(false)) as _);
    Changes { mark: Some(Box::new(mark)), reasoning: Reasoning::Keep }
}

fn withheld(notice: Option<&str>) -> Changes {
    let notice = notice.map(str::to_owned);
    Changes { mark: None, reasoning: Reasoning::Withhold { notice } }
}

/// What comes out, and what did not go as it should.
fn run(mut rewriter: Rewriter, pieces: &[&[u8]]) -> (String, RewriteCounts) {
    let mut out = BytesMut::new();
    for piece in pieces {
        rewriter.push(piece, &mut out);
    }
    rewriter.finish(&mut out);
    assert!(!rewriter.holds());
    (String::from_utf8(out.to_vec()).unwrap(), rewriter.counts())
}

fn rewriter(stream: &Stream, changes: Changes) -> Rewriter {
    Rewriter::new(stream.format, 200, Some(stream.content_type), changes).unwrap()
}

/// The output, which must be the same wherever the input is cut.
fn run_every_way(stream: &Stream, changes: &dyn Fn() -> Changes) -> (String, RewriteCounts) {
    let body = stream.body.as_bytes();
    let whole = run(rewriter(stream, changes()), &[body]);
    // Every cut of a short body; a few of a long one, as the time goes with the square.
    let step = if body.len() > 1_500 { body.len() / 200 + 1 } else { 1 };
    for at in (0..=body.len()).step_by(step) {
        let (head, tail) = body.split_at(at);
        let cut = run(rewriter(stream, changes()), &[head, tail]);
        assert_eq!(cut, whole, "{} cut at {at}", stream.name);
    }
    let bytes: Vec<&[u8]> = body.chunks(1).collect();
    assert_eq!(run(rewriter(stream, changes()), &bytes), whole, "{} byte by byte", stream.name);
    whole
}

struct Stream {
    name: String,
    format: Format,
    content_type: &'static str,
    body: String,
}

fn stream(name: &str, format: Format, content_type: &'static str, body: String) -> Stream {
    Stream { name: name.into(), format, content_type, body }
}

fn events(list: &[&str]) -> String {
    list.iter().map(|data| format!("data: {data}\n\n")).collect()
}

/// The pieces of a sentence, as JSON fragments for a template with `%` for the piece.
fn pieces(template: &str) -> Vec<String> {
    let sentence = [
        "I",
        " think",
        " the",
        " quick",
        " brown f",
        "ox jumps",
        " over the",
        " lazy",
        " grün 👋",
        " dog",
        ", and",
        " then",
        " the",
        " end",
        ".",
    ];
    sentence.iter().map(|piece| template.replace('%', piece)).collect()
}

const SENTENCE: &str =
    "I think the quick brown fox jumps over the lazy grün 👋 dog, and then the end.";

fn own_streams() -> Vec<Stream> {
    use Format::{
        AnthropicMessages, GeminiGenerate, OpenaiChat, OpenaiCompletions, OpenaiResponses,
    };
    let mut streams = Vec::new();

    let said = pieces(
        r#"{"choices":[{"index":0,"delta":{"content":"%"},"logprobs":null,"finish_reason":null}]}"#,
    );
    let mut list: Vec<&str> = vec![
        r#"{"choices":[],"prompt_filter_results":[]}"#,
        r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
    ];
    list.extend(said.iter().map(String::as_str));
    list.extend([
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":9}}"#,
        "[DONE]",
    ]);
    streams.push(stream("chat", OpenaiChat, SSE, format!(": WAIT\n\n{}", events(&list))));
    streams.push(stream(
        "chat crlf",
        OpenaiChat,
        SSE,
        format!("\u{feff}{}", events(&list)).replace('\n', "\r\n"),
    ));
    // Two choices take turns, several in one event, and the text ends with the body.
    let mut body = String::new();
    let zero = pieces(r#"{"index":0,"delta":{"content":"%"}}"#);
    let one = pieces(r#"{"index":1,"delta":{"content":"%"}}"#);
    for (at, (zero, one)) in zero.iter().zip(&one).enumerate() {
        body += &if at % 3 == 0 {
            events(&[&format!(r#"{{"choices":[{zero},{one}]}}"#)])
        } else {
            events(&[&format!(r#"{{"choices":[{one}]}}"#), &format!(r#"{{"choices":[{zero}]}}"#)])
        };
    }
    streams.push(stream("chat, two choices", OpenaiChat, SSE, body));
    // A call and reasoning between, then Mistral's parts.
    let mut list = pieces(r#"{"choices":[{"delta":{"reasoning_content":"%"}}]}"#);
    list.extend(pieces(r#"{"choices":[{"delta":{"content":"%"}}]}"#));
    list.push(r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"the\":1}"}}]}}]}"#.into());
    list.extend(pieces(r#"{"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"%"}]},{"type":"text","text":"%"},"%"]}}]}"#));
    list.push(r#"{"choices":[{"delta":{"reasoning":"or","reasoning_details":[{"type":"reasoning.text","text":"or"},{"type":"reasoning.encrypted","data":"ZGF0YQ=="}]}}]}"#.into());
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    streams.push(stream("chat, reasoning", OpenaiChat, SSE, events(&list)));
    streams.push(stream("chat, whole", OpenaiChat, JSON, format!(
        r#" {{"id":"x", "choices":[{{"message":{{"annotations":[],"content":"{SENTENCE}","reasoning":"because","refusal":null}},"finish_reason":"stop"}},{{"index":1,"message":{{"content":"{SENTENCE}"}}}}]}}
"#)));

    let list = pieces(r#"{"choices":[{"text":"%","index":0,"logprobs":null}]}"#);
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    streams.push(stream("completions", OpenaiCompletions, SSE, events(&list)));

    let mut body = String::from(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"m\",\"content\":[]}}  \n\nevent: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}}\n\n",
    );
    let mut block = |template: &str| {
        for data in pieces(template) {
            body += &format!(
                "event: content_block_delta\ndata: {data}\n\nevent: ping\ndata: {{\"type\": \"ping\"}}\n\n"
            );
        }
    };
    block(
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"%"}   }"#,
    );
    block(
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"%"}   }"#,
    );
    body += "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":1}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":9}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    streams.push(stream("anthropic", AnthropicMessages, SSE, body));
    streams.push(stream("anthropic, whole", AnthropicMessages, JSON, format!(
        r#"{{"type":"message","content":[{{"type":"thinking","thinking":"because","signature":"c2ln"}},{{"type":"text","text":"{SENTENCE}"}},{{"type":"tool_use","id":"t","name":"f","input":{{"text":"the the the the the"}}}}],"stop_reason":"end_turn"}}"#)));

    streams.push(stream("responses", OpenaiResponses, SSE, responses_stream("")));
    let full = responses_full("", SENTENCE, SENTENCE);
    streams.push(stream("responses, whole", OpenaiResponses, JSON, full));

    let mut list = pieces(
        r#"{"candidates": [{"content": {"parts": [{"text": "%","thought": true}],"role": "model"},"index": 0}]}"#,
    );
    list.extend(pieces(r#"{"candidates": [{"content": {"parts": [{"text": "%"},{"text":"%"}],"role": "model"},"index": 0}]}"#));
    list.push(r#"{"candidates": [{"content": {"parts": [{"text": " z","thought":false}]},"finishReason": "STOP"}]}"#.into());
    let sse: String = list.iter().map(|chunk| format!("data: {chunk}\r\n\r\n")).collect();
    streams.push(stream("gemini", GeminiGenerate, SSE, sse));
    let array = format!("[{}\n]\n", list.join("\n,\r\n"));
    streams.push(stream("gemini, array", GeminiGenerate, JSON, array));
    streams.push(stream("gemini, whole", GeminiGenerate, JSON, list[20].clone()));
    streams
}

fn responses_full(annotations: &str, text: &str, summary: &str) -> String {
    format!(
        r#"{{"object":"response","status":"completed","model":"m","output":[{{"type":"reasoning","encrypted_content":"Z0FB","summary":[{{"type":"summary_text","text":"{summary}"}}],"content":[{{"type":"reasoning_text","text":"{summary}"}}]}},{{"type":"message","content":[{{"type":"output_text","text":"{text}","annotations":[{annotations}],"logprobs":[]}}]}}],"text":{{"format":{{"type":"text"}}}}}}"#
    )
}

/// All five places of a text, and all of a reasoning text and a summary.
fn responses_stream(annotations: &str) -> String {
    let mut list = Vec::new();
    for kind in ["reasoning_summary_text", "reasoning_text"] {
        list.extend(pieces(&format!(
            r#"{{"type":"response.{kind}.delta","output_index":0,"summary_index":0,"delta":"%","obfuscation":"xx"}}"#
        )));
        list.push(format!(r#"{{"type":"response.{kind}.done","output_index":0,"summary_index":0,"text":"{SENTENCE}"}}"#));
    }
    list.push(format!(r#"{{"type":"response.reasoning_summary_part.done","output_index":0,"summary_index":0,"part":{{"type":"summary_text","text":"{SENTENCE}"}}}}"#));
    list.push(r#"{"type":"response.content_part.added","output_index":1,"content_index":0,"part":{"type":"output_text","text":"","annotations":[]}}"#.into());
    list.extend(pieces(r#"{"type":"response.output_text.delta","output_index":1,"content_index":0,"delta":"%","logprobs":[],"sequence_number":7}"#));
    if !annotations.is_empty() {
        list.push(format!(r#"{{"type":"response.output_text.annotation.added","output_index":1,"content_index":0,"annotation":{annotations}}}"#));
    }
    list.push(format!(r#"{{"type":"response.output_text.done","output_index":1,"content_index":0,"text":"{SENTENCE}","logprobs":[]}}"#));
    list.push(format!(r#"{{"type":"response.content_part.done","output_index":1,"content_index":0,"part":{{"type":"output_text","text":"{SENTENCE}","annotations":[{annotations}]}}}}"#));
    list.push(format!(r#"{{"type":"response.output_item.done","output_index":1,"item":{{"type":"message","content":[{{"type":"output_text","text":"{SENTENCE}","annotations":[{annotations}]}}]}}}}"#));
    let full = responses_full(annotations, SENTENCE, SENTENCE);
    list.push(format!(r#"{{"type":"response.completed","response":{full}}}"#));
    list.iter().map(|data| format!("event: x\ndata: {data}\n\n")).collect()
}

/// Our own streams, and the recorded ones where they are at hand.
fn streams() -> Vec<Stream> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = read_streams(&crate_folder.join("../tests/streams"));
    assert!(own.len() >= 20, "only {}", own.len());
    let folder = recorded_folder();
    let recorded = read_streams(&folder);
    if recorded.is_empty() {
        println!("skipped: no recorded streams at {}", folder.display());
    }
    own_streams().into_iter().chain(own).chain(recorded).collect()
}

/// The answers in a folder with a folder for each provider.
fn read_streams(folder: &Path) -> Vec<Stream> {
    let mut files: Vec<PathBuf> =
        folders(folder).iter().flat_map(|folder| folders(folder)).collect();
    files.sort();
    let read = files.iter().filter_map(|path| {
        let format = format_of(path.parent()?.file_name()?.to_str()?);
        if format == Format::Unknown {
            return None;
        }
        let content_type = match path.extension()?.to_str()? {
            "sse" => SSE,
            "json" => JSON,
            _ => return None,
        };
        let name = path.strip_prefix(folder).ok()?.display().to_string();
        let body = String::from_utf8(std::fs::read(path).ok()?).ok()?;
        Some(Stream { name, format, content_type, body })
    });
    read.collect()
}

/// What an answer says: its texts, reasoning, calls and arguments, each put together.
#[derive(Debug, Default, PartialEq)]
struct Said {
    text: BTreeMap<u32, String>,
    reasoning: String,
    rest: String,
    answer: detectors::Answer,
}

fn said(stream: &Stream, body: &str) -> Said {
    let mut said = Said::default();
    let mut reader = AnswerReader::new(stream.format, 200, Some(stream.content_type));
    let mut keep = |delta: super::Delta<'_>| match delta.piece {
        Piece::Text(text) => said.text.entry(delta.choice).or_default().push_str(text),
        Piece::Reasoning(text) => said.reasoning.push_str(text),
        other => said.rest += &format!("{other:?}"),
    };
    reader.feed(body.as_bytes(), &mut keep);
    let (answer, unread) = reader.finish_with(true, &mut keep);
    assert_eq!(unread, 0, "{}", stream.name);
    said.answer = detectors::Answer { bytes: 0, text_chars: 0, reasoning_chars: 0, ..answer };
    said
}

/// The JSON of every event, or of the body.
fn values(stream: &Stream, body: &str) -> Vec<Value> {
    if stream.content_type == JSON {
        return match serde_json::from_str(body).unwrap() {
            Value::Array(list) => list,
            value => vec![value],
        };
    }
    let mut boundaries = Boundaries::default();
    let mut rest = body.as_bytes();
    let mut values = Vec::new();
    let mut first = true;
    loop {
        let end = boundaries.next_end(rest).map_or(rest.len(), |boundary| boundary.end);
        let (block, after) = rest.split_at(end);
        if let Some(event) = parse_event(block, first)
            && event.data != &b"[DONE]"[..]
        {
            values.push(serde_json::from_slice(&event.data).unwrap());
        }
        first = false;
        rest = after;
        if rest.is_empty() {
            return values;
        }
    }
}

/// Calls `on_change` with the path of each leaf in which two values differ.
fn compare(path: &str, a: &Value, b: &Value, on_change: &mut dyn FnMut(&str, &Value, &Value)) {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).for_each(|(a, b)| compare(path, a, b, on_change));
        }
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            for (key, a) in a {
                compare(&format!("{path}/{key}"), a, &b[key], on_change);
            }
        }
        _ if a == b => {}
        _ => on_change(path, a, b),
    }
}

#[test]
fn what_nobody_changes_stays_byte_for_byte() {
    for stream in streams() {
        let (out, counts) = run_every_way(&stream, &identity);
        assert_eq!(out, stream.body, "{}", stream.name);
        assert_eq!(counts, RewriteCounts::default(), "{}", stream.name);
        let none = || Changes { mark: Some(Box::new(|_| None)), reasoning: Reasoning::Keep };
        assert_eq!(run_every_way(&stream, &none).0, stream.body, "{}", stream.name);
    }
}

#[test]
fn marked_streams_say_the_same_without_their_marks() {
    let mut marked = 0;
    for stream in streams() {
        let (out, counts) = run_every_way(&stream, &marks);
        let (before, mut after) = (said(&stream, &stream.body), said(&stream, &out));
        assert_eq!(counts, RewriteCounts::default(), "{}", stream.name);
        let text = after.text.values().next().map_or("", String::as_str);
        marked += u32::from(text.contains('\u{200b}'));
        println!("{}: {} -> {} bytes", stream.name, stream.body.len(), out.len());
        for text in after.text.values_mut() {
            *text = unmarked(text);
        }
        assert_eq!(before, after, "{}", stream.name);
        // Nothing but texts has changed.
        let (before, after) = (values(&stream, &stream.body), values(&stream, &out));
        assert_eq!(before.len(), after.len());
        for (before, after) in before.iter().zip(&after) {
            compare("", before, after, &mut |path, _, _| {
                let key = path.rsplit('/').next().unwrap();
                assert!(["content", "text", "delta"].contains(&key), "{} {path}", stream.name);
            });
        }
        if stream.format == Format::OpenaiResponses {
            copies_agree(&stream.name, &after);
        }
    }
    assert!(marked >= 12, "only {marked} streams were marked");
}

/// All places of a Responses text say what its deltas say.
fn copies_agree(name: &str, values: &[Value]) {
    let mut texts: BTreeMap<(u64, u64), String> = BTreeMap::new();
    for value in values {
        let at = |key: &str| value[key].as_u64().unwrap_or(0);
        let key = (at("output_index"), at("content_index"));
        let mut copy = |key: (u64, u64), part: &Value| {
            if part["type"] == "output_text" {
                let text = part["text"].as_str().unwrap();
                assert_eq!(texts.entry(key).or_insert_with(|| text.into()), text, "{name}");
            }
        };
        match value["type"].as_str().unwrap_or_default() {
            "response.output_text.delta" => {
                texts.entry(key).or_default().push_str(value["delta"].as_str().unwrap());
            }
            "response.output_text.done" => {
                assert_eq!(Some(texts[&key].as_str()), value["text"].as_str(), "{name}");
            }
            "response.content_part.done" => copy(key, &value["part"]),
            "response.output_item.done" => {
                for (part, content) in
                    (0..).zip(value["item"]["content"].as_array().into_iter().flatten())
                {
                    copy((key.0, part), content);
                }
            }
            "response.completed" => {
                for (item, value) in (0..).zip(value["response"]["output"].as_array().unwrap()) {
                    for (part, content) in
                        (0..).zip(value["content"].as_array().into_iter().flatten())
                    {
                        copy((item, part), content);
                    }
                }
            }
            _ => {}
        }
    }
}

#[test]
fn withheld_reasoning_is_nowhere() {
    let mut shown = 0;
    for stream in streams() {
        for notice in [None, Some("(withheld)")] {
            let (out, counts) = run_every_way(&stream, &|| withheld(notice));
            let (before, after) = (said(&stream, &stream.body), said(&stream, &out));
            shown += u32::from(!before.reasoning.is_empty());
            assert_eq!(counts, RewriteCounts::default(), "{}", stream.name);
            match notice {
                None => assert_eq!(after.reasoning, "", "{}", stream.name),
                Some(notice) => {
                    let others = after.reasoning.replace(notice, "");
                    assert_eq!(others, "", "{}", stream.name);
                    assert_eq!(before.reasoning.is_empty(), after.reasoning.is_empty());
                }
            }
            assert_eq!((before.text, before.rest), (after.text, after.rest), "{}", stream.name);
            let (before, after) = (values(&stream, &stream.body), values(&stream, &out));
            for (before, after) in before.iter().zip(&after) {
                compare("", before, after, &mut |_, before, after| {
                    assert!(before.is_string() && !before.as_str().unwrap().is_empty());
                    assert!(after == "" || after.as_str() == notice, "{} {after}", stream.name);
                });
            }
            if stream.format == Format::OpenaiResponses && stream.content_type == SSE {
                summaries_agree(&stream.name, &after);
            }
        }
    }
    assert!(shown >= 16, "only {shown}");
}

/// The deltas of a summary say what its copies say.
fn summaries_agree(name: &str, values: &[Value]) {
    let mut texts: BTreeMap<(String, u64), String> = BTreeMap::new();
    for value in values {
        let kind = value["type"].as_str().unwrap_or_default();
        let key = (value["output_index"].to_string(), value["summary_index"].as_u64().unwrap_or(0));
        match kind {
            "response.reasoning_summary_text.delta" => {
                texts.entry(key).or_default().push_str(value["delta"].as_str().unwrap());
            }
            "response.reasoning_summary_text.done" => {
                assert_eq!(Some(texts[&key].as_str()), value["text"].as_str(), "{name}");
            }
            "response.reasoning_summary_part.done" => {
                assert_eq!(Some(texts[&key].as_str()), value["part"]["text"].as_str(), "{name}");
            }
            _ => {}
        }
    }
}

#[test]
fn a_timer_may_fire_at_any_time() {
    for stream in streams() {
        let before = said(&stream, &stream.body);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20 {
            let mut rewriter = rewriter(&stream, marks());
            let mut out = BytesMut::new();
            for piece in stream.body.as_bytes().chunks(97) {
                rewriter.push(piece, &mut out);
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if random.is_multiple_of(4) {
                    rewriter.flush(&mut out);
                    assert!(!rewriter.holds());
                }
            }
            rewriter.finish(&mut out);
            let out = String::from_utf8(out.to_vec()).unwrap();
            let mut after = said(&stream, &out);
            for text in after.text.values_mut() {
                *text = unmarked(text);
            }
            assert_eq!(before, after, "{}", stream.name);
            if stream.format == Format::OpenaiResponses && stream.content_type == SSE {
                copies_agree(&stream.name, &values(&stream, &out));
            }
        }
    }
}

#[test]
fn events_that_wait_go_out_in_order_and_in_time() {
    let body = |content: &str| format!("data: {{\"choices\":[{{\"delta\":{{{content}}}}}]}}\n\n");
    let stream = stream("", Format::OpenaiChat, SSE, String::new());
    let mut rewriter = rewriter(&stream, marks()).with_meter();
    let mut step = |input: &str, flush: bool| {
        let mut out = BytesMut::new();
        if flush {
            rewriter.flush(&mut out);
        } else {
            rewriter.push(input.as_bytes(), &mut out);
        }
        let released: Vec<(usize, u32)> =
            rewriter.released().iter().map(|r| (r.end, r.tokens)).collect();
        (String::from_utf8(out.to_vec()).unwrap(), released, rewriter.holds())
    };
    let nothing = |holds| (String::new(), Vec::new(), holds);
    // What holds nothing goes at once, what holds waits, and whatever comes then waits behind it.
    assert_eq!(step(": hi\n\n", false), (": hi\n\n".into(), vec![(6, 0)], false));
    assert_eq!(step(&body(r#""content":"the""#), false), nothing(true));
    assert_eq!(step(": hi\n\n", false), nothing(true));
    let first = body(r#""content":"""#);
    let end = first.len();
    let (out, released, holds) = step(&body(r#""content":" big cat""#), false);
    assert_eq!(
        (out, released, holds),
        (format!("{first}: hi\n\n"), vec![(end, 1), (end + 6, 0)], true)
    );
    let (out, _, holds) = step("", true);
    assert_eq!((out, holds), (body(r#""content":"the big cat""#), false));
    // A tool call does not wait for text.
    assert_eq!(step(&body(r#""content":" sat""#), false), nothing(true));
    let call = body(r#""tool_calls":[{"index":0,"function":{"arguments":"abcdefghi"}}]"#);
    let (out, released, holds) = step(&call, false);
    assert_eq!((out, holds), (body(r#""content":" sat""#) + &call, false));
    assert_eq!(released[1].1, 2);
}

#[test]
fn an_answer_can_be_broken_off_between_events() {
    for stream in streams() {
        for at in [0, stream.body.len() / 2, stream.body.len() - 3] {
            let at = stream.body.floor_char_boundary(at);
            let mut rewriter = rewriter(&stream, identity());
            let mut out = BytesMut::new();
            rewriter.push(&stream.body.as_bytes()[..at], &mut out);
            let whole = rewriter.holds_whole();
            assert!(rewriter.break_off(&mut out));
            assert!(whole && out.is_empty() || stream.body.as_bytes().starts_with(&out));
            assert!(whole || ends(&stream).contains(&out.len()) || out.is_empty());
            rewriter.finish(&mut out);
            assert!(whole || ends(&stream).contains(&out.len()) || out.is_empty());
        }
    }
    // What waits goes out; what is too long has begun to go out and cannot be taken back.
    let chat = stream("", Format::OpenaiChat, SSE, String::new());
    let mut rewriter = rewriter(&chat, marks());
    let mut out = BytesMut::new();
    let held = events(&[r#"{"choices":[{"delta":{"content":"the"}}]}"#]);
    rewriter.push(format!("{held}data: half").as_bytes(), &mut out);
    assert!(rewriter.break_off(&mut out) && out == held);
    let long = vec![b'x'; crate::limits::EVENT_BYTES_MAX + 1];
    let mut rewriter = Rewriter::new(Format::OpenaiChat, 200, Some(SSE), marks()).unwrap();
    rewriter.push(&long, &mut out);
    assert!(!rewriter.break_off(&mut out));
}

#[test]
fn a_rewriter_can_move_between_threads() {
    fn check<T: Send>(_: Option<T>) {}
    check(Rewriter::new(Format::OpenaiChat, 200, Some(SSE), marks()));
}

#[test]
fn too_much_that_waits_goes_out() {
    use crate::limits::{REWRITE_QUEUE_BYTES_MAX, REWRITE_QUEUE_EVENTS_MAX};
    let stream = stream("", Format::OpenaiChat, SSE, String::new());
    for (comment, count) in [
        (": ping\n\n".to_owned(), REWRITE_QUEUE_EVENTS_MAX),
        (format!(": {}\n\n", "x".repeat(REWRITE_QUEUE_BYTES_MAX / 8)), 8),
    ] {
        let mut rewriter = rewriter(&stream, marks());
        let mut out = BytesMut::new();
        rewriter
            .push(events(&[r#"{"choices":[{"delta":{"content":"the"}}]}"#]).as_bytes(), &mut out);
        for sent in 0..count {
            assert!(out.is_empty() && rewriter.holds(), "{sent}");
            rewriter.push(comment.as_bytes(), &mut out);
        }
        assert!(!rewriter.holds());
        assert_eq!(rewriter.counts().queue_full, 1);
        assert!(out.starts_with(b"data: {\"choices\":[{\"delta\":{\"content\":\"the\"}}]}\n\n: "));
    }
}

#[test]
fn what_must_not_be_touched_is_not() {
    let chat = |rest: &str| format!(r#"{{"choices":[{rest}]}}"#);
    let text = "the a the b the c the d the e";
    let same = [
        (
            Format::OpenaiChat,
            chat(&format!(
                r#"{{"delta":{{"content":"{text}"}},"logprobs":{{"content":[{{"token":"the"}}]}}}}"#
            )),
        ),
        (Format::OpenaiChat, chat(&format!(r#"{{"delta":{{"refusal":"{text}"}}}}"#))),
        (
            Format::OpenaiChat,
            chat(&format!(r#"{{"delta":{{"audio":{{"transcript":"{text}"}}}}}}"#)),
        ),
        (Format::OpenaiChat, chat(&format!(r#"{{"delta":{{"content":"{text}\ud800"}}}}"#))),
        (
            Format::OpenaiChat,
            chat(&format!(
                r#"{{"delta":{{"tool_calls":[{{"function":{{"arguments":"{text}"}}}}]}}}}"#
            )),
        ),
        (
            Format::OpenaiCompletions,
            chat(&format!(r#"{{"text":"{text}","logprobs":{{"tokens":[]}}}}"#)),
        ),
        (
            Format::OpenaiResponses,
            format!(
                r#"{{"type":"response.output_text.delta","delta":"{text}","logprobs":[{{"token":"the"}}]}}"#
            ),
        ),
        (
            Format::OpenaiResponses,
            format!(r#"{{"type":"response.refusal.delta","delta":"{text}"}}"#),
        ),
        (
            Format::AnthropicMessages,
            format!(
                r#"{{"type":"content_block_start","content_block":{{"type":"text","text":"{text}","citations":[]}}}}"#
            ),
        ),
        (
            Format::AnthropicMessages,
            format!(
                r#"{{"type":"content_block_delta","delta":{{"type":"input_json_delta","partial_json":"{text}"}}}}"#
            ),
        ),
        (
            Format::AnthropicMessages,
            format!(
                r#"{{"type":"content_block_delta","delta":{{"type":"thinking_delta","thinking":"{text}"}}}}"#
            ),
        ),
        (
            Format::GeminiGenerate,
            format!(
                r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}","thought":true}}]}}}}]}}"#
            ),
        ),
        (
            Format::GeminiGenerate,
            format!(
                r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}","thoughtSignature":"c2ln"}}]}}}}]}}"#
            ),
        ),
        (
            Format::GeminiGenerate,
            format!(
                r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}}]}},"logprobsResult":{{}}}}]}}"#
            ),
        ),
        // Not read: several data lines, no JSON.
        (Format::OpenaiChat, "{\"choices\":\ndata: []}".to_owned()),
        (Format::OpenaiChat, "{".to_owned()),
    ];
    for (format, data) in same {
        let body = events(&[&data]);
        let stream = stream(&body, format, SSE, body.clone());
        assert_eq!(run_every_way(&stream, &marks).0, body);
    }
    // A citation that comes later: what was held goes out before it, the rest is left.
    let delta =
        |delta: &str| format!("{{\"type\":\"content_block_delta\",\"index\":1,\"delta\":{delta}}}");
    let body = events(&[
        &delta(&format!("{{\"type\":\"text_delta\",\"text\":\"{text}\"}}")),
        &delta("{\"type\":\"citations_delta\",\"citation\":{}}"),
        &delta(&format!("{{\"type\":\"text_delta\",\"text\":\"{text}\"}}")),
    ]);
    let stream = stream("citation", Format::AnthropicMessages, SSE, body.clone());
    let (out, _) = run_every_way(&stream, &marks);
    assert_eq!(unmarked(&out), body);
    assert!(out.ends_with(&events(&[&delta(&format!(
        "{{\"type\":\"text_delta\",\"text\":\"{text}\"}}"
    ))])));
    assert_ne!(out, body);
}

#[test]
fn a_signed_part_stays_and_the_text_is_marked_behind_it() {
    let part = |rest: &str| format!(r#"{{"candidates":[{{"content":{{"parts":[{{{rest}}}]}}}}]}}"#);
    let list = [
        part(r#""text":"a b c d e","thoughtSignature":"c2ln""#),
        part(r#""text":"nd the f g h i the""#),
        part(r#""text":" quick j k l""#),
        r#"{"candidates":[{"groundingMetadata":{"groundingSupports":[{"segment":{"startIndex":24,"endIndex":33,"text":"the quick"}}]}}]}"#.to_owned(),
    ];
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    let signed = stream("signed", Format::GeminiGenerate, SSE, events(&list));
    let (out, counts) = run_every_way(&signed, &marks);
    assert_eq!(counts, RewriteCounts::default());
    assert!(out.starts_with(&events(&[list[0]])), "{out}");
    let text = said(&signed, &out).text.remove(&0).unwrap();
    assert!(text.starts_with("a b c d end") && text.contains(THE));
    assert_eq!(unmarked(&text), "a b c d end the f g h i the quick j k l");
    let last = values(&signed, &out).pop().unwrap();
    let segment = &last["candidates"][0]["groundingMetadata"]["groundingSupports"][0]["segment"];
    let at = |key: &str| segment[key].as_u64().unwrap() as usize;
    assert_eq!(&text[at("startIndex")..at("endIndex")], segment["text"].as_str().unwrap());
    assert_eq!(unmarked(segment["text"].as_str().unwrap()), "the quick");
    // Behind an open fence nobody knows what is code.
    let list =
        [part(r#""text":"a ``` b","thoughtSignature":"c2ln""#), part(r#""text":" the b c d e f""#)];
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    let fence = stream("fence", Format::GeminiGenerate, SSE, events(&list));
    assert_eq!(run_every_way(&fence, &marks).0, fence.body);
}

#[test]
fn what_cannot_be_rewritten_gets_no_rewriter() {
    let cases = [
        (Format::OpenaiChat, 200, Some("text/event-stream; charset=utf-8"), true),
        (Format::OpenaiChat, 200, Some("Application/JSON"), true),
        (Format::OpenaiChat, 200, None, true),
        (Format::OpenaiChat, 429, Some(JSON), false),
        (Format::OpenaiChat, 200, Some("text/html"), false),
        (Format::OpenaiChat, 200, Some("application/vnd.amazon.eventstream"), false),
        (Format::Unknown, 200, Some(SSE), false),
        (Format::Grpc, 200, Some("application/grpc"), false),
    ];
    for (format, status, content_type, there) in cases {
        let rewriter = Rewriter::new(format, status, content_type, marks());
        assert_eq!(rewriter.is_some(), there, "{format:?} {status} {content_type:?}");
    }
    assert!(Rewriter::new(Format::OpenaiChat, 200, Some(SSE), Changes::default()).is_none());
}

#[test]
fn what_is_too_long_passes_as_it_comes() {
    use crate::limits::{ANSWER_BYTES_MAX, EVENT_BYTES_MAX};
    let held = events(&[r#"{"choices":[{"delta":{"content":"the"}}]}"#]);
    let long = events(&[&format!(
        r#"{{"choices":[{{"delta":{{"content":"{}"}}}}]}}"#,
        "the ".repeat(EVENT_BYTES_MAX / 4)
    )]);
    let body = format!("{held}{long}{held}");
    let sse = stream("", Format::OpenaiChat, SSE, body.clone());
    for size in [1 << 15, body.len()] {
        let pieces: Vec<&[u8]> = body.as_bytes().chunks(size).collect();
        let (out, counts) = run(rewriter(&sse, marks()), &pieces);
        assert!(out == body && counts.unread == 1);
    }
    let whole = format!(
        r#"{{"choices":[{{"message":{{"content":"{}"}}}}]}}"#,
        "the ".repeat(ANSWER_BYTES_MAX / 4)
    );
    let json = stream("", Format::OpenaiChat, JSON, whole.clone());
    for size in [1 << 20, whole.len()] {
        let pieces: Vec<&[u8]> = whole.as_bytes().chunks(size).collect();
        let (out, counts) = run(rewriter(&json, marks()), &pieces);
        assert!(out == whole && counts.unread == 1);
    }
}

/// The stretch of `text` between two character offsets.
fn cut(text: &str, start: &Value, end: &Value) -> String {
    let (start, end) = (start.as_u64().unwrap() as usize, end.as_u64().unwrap() as usize);
    text.chars().skip(start).take(end - start).collect()
}

#[test]
fn offsets_into_a_text_stay_true() {
    // "lazy grün 👋 dog", in characters and in bytes.
    let words = "lazy grün 👋 dog";
    let start = SENTENCE.find(words).unwrap();
    let chars = (start, start + words.chars().count());
    let bytes = (start, start + words.len());

    let annotation = format!(
        r#"{{"type":"url_citation","start_index":{},"end_index":{},"url":"u"}}"#,
        chars.0, chars.1
    );
    let streamed = stream("cited", Format::OpenaiResponses, SSE, responses_stream(&annotation));
    let full = responses_full(&annotation, SENTENCE, "");
    let whole = stream("cited, whole", Format::OpenaiResponses, JSON, full);
    for stream in [streamed, whole] {
        let (out, counts) = run_every_way(&stream, &marks);
        assert_eq!(counts, RewriteCounts::default());
        let text = said(&stream, &out).text.remove(&0).unwrap();
        assert_ne!(text, SENTENCE);
        let mut found = 0;
        for value in values(&stream, &out) {
            visit(&value, &mut |object| {
                if object.contains_key("start_index") {
                    found += 1;
                    let cut = cut(&text, &object["start_index"], &object["end_index"]);
                    assert_eq!(unmarked(&cut), words, "{}", stream.name);
                }
            });
        }
        assert_eq!(found, if stream.content_type == SSE { 4 } else { 1 }, "{}", stream.name);
    }

    let mut list = pieces(r#"{"choices":[{"delta":{"content":"%"}}]}"#);
    list.push(format!(r#"{{"choices":[{{"delta":{{"annotations":[{{"type":"url_citation","url_citation":{{"end_index":{},"start_index":{}}}}}]}}}}]}}"#, chars.1, chars.0));
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    let chat = stream("chat, cited", Format::OpenaiChat, SSE, events(&list));
    let (out, _) = run_every_way(&chat, &marks);
    let text = said(&chat, &out).text.remove(&0).unwrap();
    let last = values(&chat, &out).pop().unwrap();
    let citation = &last["choices"][0]["delta"]["annotations"][0]["url_citation"];
    assert_eq!(unmarked(&cut(&text, &citation["start_index"], &citation["end_index"])), words);

    let mut list = pieces(r#"{"candidates":[{"content":{"parts":[{"text":"%"}]}}]}"#);
    list.push(format!(r#"{{"candidates":[{{"finishReason":"STOP","groundingMetadata":{{"groundingSupports":[{{"segment":{{"startIndex":{},"endIndex":{},"text":"{words}"}}}},{{"segment":{{"endIndex":1,"text":"?"}}}}]}},"citationMetadata":{{"citationSources":[{{"startIndex":{},"endIndex":{}}}]}}}}]}}"#, bytes.0, bytes.1, bytes.0, bytes.1));
    let body: String = list.iter().map(|chunk| format!("data: {chunk}\r\n\r\n")).collect();
    let gemini = stream("gemini, grounded", Format::GeminiGenerate, SSE, body);
    let (out, counts) = run_every_way(&gemini, &marks);
    // The second segment does not say what the text says: it stays as it is.
    assert_eq!(counts.disagreed, 1);
    let text = said(&gemini, &out).text.remove(&0).unwrap();
    let last = values(&gemini, &out).pop().unwrap();
    let candidate = &last["candidates"][0];
    let segment = &candidate["groundingMetadata"]["groundingSupports"][0]["segment"];
    for object in [segment, &candidate["citationMetadata"]["citationSources"][0]] {
        let at = |key: &str| object[key].as_u64().unwrap() as usize;
        assert_eq!(unmarked(&text[at("startIndex")..at("endIndex")]), words);
    }
    let at = |key: &str| segment[key].as_u64().unwrap() as usize;
    assert_eq!(&text[at("startIndex")..at("endIndex")], segment["text"].as_str().unwrap());
}

/// Calls `on_object` with every object in a value.
fn visit(value: &Value, on_object: &mut dyn FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            on_object(object);
            object.values().for_each(|value| visit(value, on_object));
        }
        Value::Array(list) => list.iter().for_each(|value| visit(value, on_object)),
        _ => {}
    }
}

/// Where the events of a stream end.
fn ends(stream: &Stream) -> Vec<usize> {
    let mut released = Vec::new();
    EventMeter::new(stream.format, Some(stream.content_type))
        .push(stream.body.as_bytes(), &mut released);
    released.iter().map(|event| event.end).collect()
}

#[test]
fn a_stream_can_be_taken_up_between_any_two_events() {
    for stream in streams() {
        let before = said(&stream, &stream.body);
        let ends = ends(&stream);
        let step = ends.len() / 40 + 1;
        for end in ends.into_iter().step_by(step) {
            let (head, tail) = stream.body.split_at(end);
            let resumed =
                Rewriter::resume(stream.format, 200, Some(stream.content_type), marks()).unwrap();
            let (out, counts) = run(resumed, &[tail.as_bytes()]);
            let name = format!("{} from {end}", stream.name);
            assert_eq!(counts, RewriteCounts::default(), "{name}");
            let out = format!("{head}{out}");
            let mut after = said(&stream, &out);
            for text in after.text.values_mut() {
                *text = unmarked(text);
            }
            assert_eq!(before, after, "{name}");
            if stream.format == Format::OpenaiResponses {
                copies_agree(&name, &values(&stream, &out));
            }
        }
    }
}

#[test]
fn probabilities_that_begin_later_end_the_marks_and_copies_agree() {
    let delta = |text: &str, logprobs: &str| {
        format!(
            r#"{{"type":"response.output_text.delta","delta":"{text}","logprobs":[{logprobs}]}}"#
        )
    };
    let many = vec!["{}"; crate::limits::JSON_ITEMS_MAX + 1].join(",");
    let body = events(&[
        &delta("the big the ", ""),
        &delta("the end", &many),
        &delta(" of it", ""),
        r#"{"type":"response.output_text.done","text":"the big the the end of it"}"#,
    ]);
    let stream = stream("", Format::OpenaiResponses, SSE, body);
    let (out, counts) = run_every_way(&stream, &marks);
    assert_eq!(counts, RewriteCounts::default());
    let values = values(&stream, &out);
    copies_agree("later", &values);
    assert_eq!(values[1]["delta"], "the end");
    assert!(values[3]["text"].as_str().unwrap().starts_with(THE));
}

#[test]
fn copies_that_do_not_fit_are_left_alone_and_counted() {
    let delta = |text: &str| format!(r#"{{"type":"response.output_text.delta","delta":"{text}"}}"#);
    let done = |text: &str| format!(r#"{{"type":"response.output_text.done","text":"{text}"}}"#);
    let body = events(&[&delta("the big the "), &done("another big the ")]);
    let stream = stream("", Format::OpenaiResponses, SSE, body);
    let (out, counts) = run_every_way(&stream, &marks);
    assert!(out.ends_with(&events(&[&done("another big the ")])));
    assert_eq!(counts.disagreed, 1);
}

#[test]
fn copies_agree_also_where_a_bound_is_reached() {
    use crate::limits::{REWRITE_KEPT_BYTES_MAX, REWRITE_TEXTS_MAX};
    // One long text, then many.
    let piece = "the big the ".repeat(1000);
    let count = REWRITE_KEPT_BYTES_MAX / piece.len() + 3;
    let mut body = String::new();
    let delta = format!(r#"{{"type":"response.output_text.delta","delta":"{piece}"}}"#);
    for _ in 0..count {
        body += &events(&[&delta]);
    }
    let long = piece.repeat(count);
    // A whole answer can be longer than an event, but not than a body.
    let done = events(&[&format!(r#"{{"type":"response.output_text.done","text":"{long}"}}"#)]);
    assert!(done.len() > crate::limits::EVENT_BYTES_MAX);
    let stream_ = stream("", Format::OpenaiResponses, SSE, body);
    let (out, counts) = run(rewriter(&stream_, marks()), &[stream_.body.as_bytes()]);
    assert_eq!(counts.texts_left, 1);
    let text = said(&stream_, &out).text.remove(&0).unwrap();
    assert!(text.ends_with(&piece) && unmarked(&text) == long && text != long);

    let mut list = Vec::new();
    for item in 0..REWRITE_TEXTS_MAX + 2 {
        list.push(format!(
            r#"{{"type":"response.output_text.delta","output_index":{item},"delta":"a the b"}}"#
        ));
        list.push(format!(
            r#"{{"type":"response.output_text.done","output_index":{item},"text":"a the b"}}"#
        ));
    }
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    let many = stream("many", Format::OpenaiResponses, SSE, events(&list));
    let (out, counts) = run(rewriter(&many, marks()), &[many.body.as_bytes()]);
    assert_eq!((counts.texts_left, counts.disagreed), (4, 0));
    copies_agree("many", &values(&many, &out));
}

#[test]
fn a_meter_finds_the_events_wherever_the_input_is_cut() {
    for stream in streams() {
        let body = stream.body.as_bytes();
        let metered = |pieces: &[&[u8]]| {
            let mut meter = EventMeter::new(stream.format, Some(stream.content_type));
            let mut all: Vec<Released> = Vec::new();
            let mut passed = 0;
            for piece in pieces {
                let mut released = Vec::new();
                meter.push(piece, &mut released);
                all.extend(released.iter().map(|r| Released { end: r.end + passed, ..*r }));
                passed += piece.len();
            }
            all
        };
        let whole = metered(&[body]);
        let step = body.len() / 100 + 1;
        for at in (0..body.len()).step_by(step) {
            // Between CR and LF an event ends one byte earlier.
            if body[at] != b'\n' {
                assert_eq!(metered(&[&body[..at], &body[at..]]), whole, "{} at {at}", stream.name);
            }
        }
        // A rewriter that changes nothing tells the same, but for what a last event lacks.
        let mut rewriter = rewriter(&stream, identity()).with_meter();
        let mut out = BytesMut::new();
        rewriter.push(body, &mut out);
        let mut released = rewriter.released().to_vec();
        let streams = !rewriter.holds_whole();
        rewriter.finish(&mut out);
        let tokens: u32 = released.iter().map(|event| event.tokens).sum();
        if streams {
            assert_eq!(released, whole, "{}", stream.name);
            assert!(tokens > 0, "{}", stream.name);
        } else {
            released = rewriter.released().to_vec();
            assert_eq!(released.iter().map(|event| event.end).collect::<Vec<_>>(), [body.len()]);
            assert!(released[0].tokens > 0 && whole.is_empty(), "{}", stream.name);
        }
    }
}

#[test]
fn the_marker_is_asked_once_for_each_text_that_says_something() {
    let stream = own_streams().remove(2);
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = asked.clone();
    let mark = move |id: TextId| {
        seen.lock().unwrap().push(id);
        None
    };
    let changes = Changes { mark: Some(Box::new(mark)), reasoning: Reasoning::Keep };
    let (out, _) = run(rewriter(&stream, changes), &[stream.body.as_bytes()]);
    assert_eq!(out, stream.body);
    let choice = |choice| TextId { choice, ..TextId::default() };
    assert_eq!(*asked.lock().unwrap(), [choice(0), choice(1)]);
}

#[test]
fn text_stays_in_its_part_and_before_what_follows_it() {
    let cases = [
        (
            Format::GeminiGenerate,
            r#"{"candidates":[{"content":{"parts":[{"text":"a big cat"},{"executableCode":{"code":"1"}},{"text":"sat down"}]}}]}"#,
        ),
        (
            Format::OpenaiChat,
            r#"{"choices":[{"message":{"content":[{"type":"text","text":"a big cat"},{"type":"reference","reference_ids":[1]},{"type":"text","text":"sat down"}]}}]}"#,
        ),
    ];
    for (format, body) in cases {
        let whole = stream(body, format, JSON, body.to_owned());
        let (out, _) = run_every_way(&whole, &marks);
        assert_eq!(unmarked(&out), body);
    }
    // Reasoning that interrupts a text.
    let body = events(&[
        r#"{"choices":[{"delta":{"content":"a big cat"}}]}"#,
        r#"{"choices":[{"delta":{"reasoning":"so"}}]}"#,
        r#"{"choices":[{"delta":{"content":"sat down"}}]}"#,
    ]);
    let chat = stream("interrupted", Format::OpenaiChat, SSE, body.clone());
    assert_eq!(run_every_way(&chat, &marks).0, body);
}

/// What happens in a made-up stream: a piece of a choice's text, something else, or a timer.
#[derive(Clone, Debug)]
enum Step {
    Text(u32, String),
    Other(&'static str),
    Timer,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0_u32..3, "([a-z]{0,4} ?|the |é\\\\n| {2}){0,4}").prop_map(|(choice, text)| Step::Text(choice, text)),
        2 => proptest::sample::select(vec![
            ": ping\n\n",
            "data: {\"choices\":[]}\n\n",
            "data: no json\n\n",
            "data: {\"choices\":[{\"index\":1,\"delta\":{\"tool_calls\":[{\"index\":0}]}}]}\n\n",
            "data: {\"choices\":[{\"index\":1,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
            "event: x\ndata: {\"choices\":\ndata: []}\n\n",
        ]).prop_map(Step::Other),
        1 => Just(Step::Timer),
    ];
    proptest::collection::vec(step, 0..40)
}

proptest! {
    #[test]
    fn any_stream_keeps_its_events_and_its_texts(steps in steps(), size in 1_usize..300) {
        let chat = stream("", Format::OpenaiChat, SSE, String::new());
        let mut rewriter = rewriter(&chat, marks()).with_meter();
        let (mut body, mut out) = (String::new(), BytesMut::new());
        let mut released = 0;
        for step in &steps {
            let event = match step {
                Step::Text(choice, text) => events(&[&format!(r#"{{"choices":[{{"index":{choice},"delta":{{"content":"{text}"}}}}]}}"#)]),
                Step::Other(event) => (*event).to_owned(),
                Step::Timer => {
                    rewriter.flush(&mut out);
                    released += rewriter.released().len();
                    continue;
                }
            };
            body += &event;
            for piece in event.as_bytes().chunks(size) {
                rewriter.push(piece, &mut out);
                released += rewriter.released().len();
            }
        }
        rewriter.finish(&mut out);
        released += rewriter.released().len();
        prop_assert_eq!(rewriter.counts().homeless, 0);
        let out = String::from_utf8(out.to_vec()).unwrap();
        prop_assert_eq!(released, body.matches("\n\n").count());
        let texts = |body: &str| {
            let mut texts: BTreeMap<u32, String> = BTreeMap::new();
            let mut reader = AnswerReader::new(Format::OpenaiChat, 200, Some(SSE));
            reader.feed(body.as_bytes(), &mut |delta| {
                if let Piece::Text(text) = delta.piece {
                    texts.entry(delta.choice).or_default().push_str(text);
                }
            });
            texts
        };
        let mut after = texts(&out);
        after.values_mut().for_each(|text| *text = unmarked(text));
        prop_assert_eq!(texts(&body), after);
        // The events stand in their order: without texts nothing has changed.
        let bare = |body: &str| -> Vec<String> {
            body.split("\n\n")
                .map(|event| match event.split_once("\"content\":") {
                    Some((head, _)) => head.to_owned(),
                    None => event.to_owned(),
                })
                .collect()
        };
        prop_assert_eq!(bare(&body), bare(&out));
    }
}
