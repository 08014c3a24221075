//! Tests: what whole requests and answers of each format read as, and that answers read the same
//! wherever they are cut.
//!
//! The streams here are of our own making, in the shapes that providers send. Where a folder of
//! recorded streams lies beside the repository, those are read too.

use std::path::{Path, PathBuf};

use detectors::{Answer, Conversation, Finish, Format, Role, ToolCall, Usage};

use super::{AnswerReader, Delta, Piece, read_request};

/// A conversation as text, so that a case shows everything that was read.
fn outline(conversation: &Conversation) -> String {
    let mut out = String::new();
    if let Some(model) = &conversation.model {
        out += &format!("model {model}; ");
    }
    if !conversation.system.is_empty() {
        out += &format!("system {:?}; ", conversation.system.as_str());
    }
    for turn in &conversation.turns {
        let role = match turn.role {
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            Role::System => "mid-system",
        };
        out += &format!("{role} {:?}", turn.text.as_str());
        if !turn.tool_calls.is_empty() {
            out += &format!(" calls {}", turn.tool_calls.join("+"));
        }
        if turn.attachments > 0 {
            out += &format!(" attached {}", turn.attachments);
        }
        out += "; ";
    }
    if !conversation.tools.is_empty() {
        out += &format!("tools {}; ", conversation.tools.join("+"));
    }
    let sampling = serde_json::to_value(&conversation.sampling).unwrap();
    for (key, value) in sampling.as_object().unwrap() {
        if !value.is_null() && *value != false {
            out += &format!("{key}={value} ");
        }
    }
    out.trim_end_matches([' ', ';']).to_owned()
}

#[test]
fn requests_of_every_format_are_read() {
    use Format::{
        AnthropicMessages, GeminiGenerate, OpenaiChat, OpenaiCompletions, OpenaiResponses,
    };
    let cases = [
        (OpenaiChat, "", r#"{}"#, ""),
        (
            OpenaiChat,
            "",
            r#"{"messages":7,"model":[],"stream":"yes","tools":{},"max_tokens":"9"}"#,
            "",
        ),
        (
            OpenaiChat,
            "",
            r#"{"model":"gpt-x","stream":true,"temperature":0.5,"top_p":1,"n":2,"seed":7,
                "max_tokens":5,"max_completion_tokens":9,"logprobs":true,"top_logprobs":3,
                "reasoning_effort":"high","response_format":{"type":"json_object"},
                "tools":[{"type":"function","function":{"name":"look"}},{"type":"web_search"}],
                "messages":[
                {"role":"developer","content":"Be brief."},{"role":"system","content":"Really."},
                {"role":"user","content":[{"type":"text","text":"a"},
                    {"type":"image_url","image_url":{"url":"data:"}},{"type":"text","text":"b"}]},
                {"role":"assistant","content":null,"tool_calls":[
                    {"id":"1","type":"function","function":{"name":"look","arguments":"{}"}}]},
                {"role":"tool","tool_call_id":"1","content":"found"},
                {"role":"system","content":"Later."},{"role":"user","content":"c"}]}"#,
            r#"model gpt-x; system "Be brief.\nReally."; user "a\nb" attached 1; assistant "" calls look; tool "found"; mid-system "Later."; user "c"; tools look+web_search; logprobs=true max_tokens=9 n=2 reasoning="high" seed=7 stream=true structured=true temperature=0.5 top_logprobs=3 top_p=1.0"#,
        ),
        (
            OpenaiChat,
            "",
            r#"{"model":"m","random_seed":3,"reasoning":{"max_tokens":2048},"messages":[
                {"role":"user","content":"q"},
                {"role":"assistant","content":[{"type":"thinking","thinking":[{"type":"text",
                    "text":"hm"}]},{"type":"text","text":"a"}]},
                {"role":"assistant","content":"b","reasoning_content":"because"},
                {"role":"user","content":["x","y"]}]}"#,
            r#"model m; user "q"; assistant "hm\na"; assistant "b\nbecause"; user "x\ny"; reasoning="2048" seed=3"#,
        ),
        (
            OpenaiChat,
            "",
            r#"{"messages":[{"role":"user","content":"first"}],"messages":[{"role":"user","content":"last \ud800"}]}"#,
            "user \"last \u{fffd}\"",
        ),
        (
            OpenaiResponses,
            "",
            r#"{"model":"m","instructions":"Sys.","input":"hello","max_output_tokens":10,
                "include":["message.output_text.logprobs"],"text":{"format":{"type":"json_schema"}},
                "reasoning":{"effort":"low"},"tools":[{"type":"function","name":"f"},
                {"type":"web_search_preview"}]}"#,
            r#"model m; system "Sys."; user "hello"; tools f+web_search_preview; logprobs=true max_tokens=10 reasoning="low" structured=true"#,
        ),
        (
            OpenaiResponses,
            "",
            r#"{"stream":true,"input":[{"role":"developer","content":"D."},
                {"role":"user","content":[{"type":"input_text","text":"q"},
                    {"type":"input_image","image_url":"data:"}]},
                {"type":"reasoning","summary":[{"type":"summary_text","text":"why"}]},
                {"type":"message","role":"assistant","content":[{"type":"output_text","text":"a"}]},
                {"type":"function_call","name":"f","arguments":"{}","call_id":"1"},
                {"type":"function_call_output","call_id":"1","output":"r"},
                {"type":"custom_tool_call_output","output":[{"type":"input_text","text":"s"}]},
                {"type":"item_reference","id":"x"}]}"#,
            r#"system "D."; user "q" attached 1; assistant "why\na" calls f; tool "r"; tool "s"; stream=true"#,
        ),
        (
            OpenaiCompletions,
            "",
            r#"{"model":"m","prompt":"once","suffix":"end","logprobs":2,"max_tokens":5}"#,
            r#"model m; user "once\nend"; logprobs=true max_tokens=5 top_logprobs=2"#,
        ),
        (OpenaiCompletions, "", r#"{"prompt":["a","b"]}"#, r#"user "a"; user "b""#),
        (OpenaiCompletions, "", r#"{"prompt":[1,2,3]}"#, r#"user "" attached 1"#),
        (
            OpenaiCompletions,
            "",
            r#"{"prompt":[[1,2],[3]]}"#,
            r#"user "" attached 1; user "" attached 1"#,
        ),
        (
            AnthropicMessages,
            "",
            r#"{"model":"c","max_tokens":64,"stream":true,"temperature":1,
                "system":[{"type":"text","text":"S1"},{"type":"text","text":"S2"}],
                "thinking":{"type":"enabled","budget_tokens":8192},"tools":[{"name":"look"}],
                "messages":[{"role":"user","content":"q"},
                {"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":"x"},
                    {"type":"text","text":"a"},{"type":"tool_use","id":"1","name":"look","input":{}}]},
                {"role":"user","content":[{"type":"tool_result","tool_use_id":"1","content":[
                    {"type":"text","text":"found"},{"type":"image","source":{}}]},
                    {"type":"text","text":"and?"},
                    {"type":"document","source":{"type":"text","data":"body"}}]},
                {"role":"user","content":[{"type":"tool_result","content":"only"}]}]}"#,
            r#"model c; system "S1\nS2"; user "q"; assistant "hm\na" calls look; tool "found" attached 1; user "and?\nbody" attached 1; tool "only"; tools look; max_tokens=64 reasoning="8192" stream=true temperature=1.0"#,
        ),
        (
            AnthropicMessages,
            "",
            r#"{"system":"S","output_config":{"effort":"max","format":{}},"thinking":{"type":"disabled"},"messages":[{"role":"user","content":"q"}]}"#,
            r#"system "S"; user "q"; reasoning="max" structured=true"#,
        ),
        (
            GeminiGenerate,
            "/v1beta/models/gemini-x:streamGenerateContent?alt=sse",
            r#"{"systemInstruction":{"parts":[{"text":"S"}]},"contents":[
                {"role":"user","parts":[{"text":"a"},{"inlineData":{"data":""}}]},
                {"role":"model","parts":[{"text":"t","thought":true},{"functionCall":{"name":"f"}}]},
                {"role":"user","parts":[{"functionResponse":{"name":"f","response":{"r":1}}}]}],
                "generationConfig":{"maxOutputTokens":5,"topP":0.5,"candidateCount":2,"seed":-1,
                "responseLogprobs":true,"logprobs":4,"responseMimeType":"application/json",
                "thinkingConfig":{"thinkingBudget":-1}},
                "tools":[{"functionDeclarations":[{"name":"f"},{"name":"g"}]},{"googleSearch":{}}]}"#,
            r#"model gemini-x; system "S"; user "a" attached 1; assistant "t" calls f; tool "{\"r\":1}"; tools f+g+googleSearch; logprobs=true max_tokens=5 n=2 reasoning="-1" seed=-1 stream=true structured=true top_logprobs=4 top_p=0.5"#,
        ),
        (
            GeminiGenerate,
            "/v1/models/m:generateContent",
            r#"{"system_instruction":{"parts":{"text":"S"}},"contents":{"parts":[{"text":"a"}]},
                "generation_config":{"max_output_tokens":7,"response_schema":{}}}"#,
            r#"model m; system "S"; user "a"; max_tokens=7 structured=true"#,
        ),
    ];
    for (format, path, body, expected) in cases {
        let conversation = read_request(format, path, body.as_bytes()).unwrap();
        assert_eq!(outline(&conversation), expected, "{format:?} {body}");
    }
}

/// Everything that a reader gives of an answer: its counts, and its pieces in order, where
/// neighbouring pieces of one kind count as one.
fn read(
    format: Format,
    status: u16,
    content_type: &str,
    pieces: &[&[u8]],
) -> (Answer, u64, Vec<String>) {
    let mut said: Vec<String> = Vec::new();
    let mut keep = |delta: Delta<'_>| {
        said.push(match delta.piece {
            Piece::Text(text) => format!("{} text {text}", delta.choice),
            Piece::Reasoning(text) => format!("{} reasoning {text}", delta.choice),
            Piece::Refusal(text) => format!("{} refusal {text}", delta.choice),
            Piece::ToolCall { call, name } => format!("{} call {call} {name}", delta.choice),
            Piece::Arguments { call, json } => format!("{} arguments {call} {json}", delta.choice),
        });
    };
    let mut reader = AnswerReader::new(format, status, Some(content_type));
    for piece in pieces {
        reader.feed(piece, &mut keep);
    }
    let (answer, unread) = reader.finish_with(true, &mut keep);
    (answer, unread, said)
}

/// Reads a body in many cuts and asserts that it reads the same in each.
fn read_every_way(format: Format, content_type: &str, body: &[u8]) -> (Answer, u64, Vec<String>) {
    let whole = read(format, 200, content_type, &[body]);
    // Every cut of a short body; a few hundred of a long one, as the time goes with the square.
    let step = if body.len() > 4_000 { body.len() / 256 + 1 } else { 1 };
    for at in (0..=body.len()).step_by(step) {
        let (head, tail) = body.split_at(at);
        assert_eq!(read(format, 200, content_type, &[head, tail]), whole, "cut at {at}");
    }
    let bytes: Vec<&[u8]> = body.chunks(1).collect();
    assert_eq!(read(format, 200, content_type, &bytes), whole, "byte by byte");
    whole
}

const SSE: &str = "text/event-stream; charset=utf-8";
const JSON: &str = "application/json";

fn check(
    format: Format,
    content_type: &str,
    body: &str,
    expected: &Answer,
    expected_said: &[&str],
) {
    let (answer, unread, said) = read_every_way(format, content_type, body.as_bytes());
    let expected = Answer { status: 200, bytes: body.len() as u64, ..expected.clone() };
    assert_eq!(answer, expected, "{body}");
    assert_eq!(said, expected_said, "{body}");
    assert_eq!(unread, 0, "{body}");
}

fn events(list: &[&str]) -> String {
    list.iter().map(|data| format!("data: {data}\n\n")).collect()
}

fn call(name: &str, argument_bytes: u64) -> ToolCall {
    ToolCall { name: name.into(), argument_bytes }
}

fn usage(prompt: u64, completion: u64, reasoning: u64, cached: u64) -> Option<Usage> {
    Some(Usage {
        prompt_tokens: prompt,
        completion_tokens: completion,
        reasoning_tokens: reasoning,
        cached_tokens: cached,
    })
}

#[test]
fn openai_chat_streams_are_read() {
    let format = Format::OpenaiChat;
    let ended = Answer { streamed: true, complete: true, ..Answer::default() };
    // Choices interleave, the first event has none (Azure), comments stand between (OpenRouter).
    let body = format!(
        ": WAITING\n\n{}: WAITING\n\n{}",
        events(&[r#"{"choices":[],"model":""}"#]),
        events(&[
            r#"{"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"grün"},"finish_reason":null}],"usage":null}"#,
            r#"{"model":"m","choices":[{"index":1,"delta":{"content":"one\n"}}]}"#,
            r#"{"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}"#,
            r#"{"choices":[{"index":0,"delta":{"refusal":"no"},"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":4,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":2},"completion_tokens_details":{"reasoning_tokens":1}}}"#,
            "[DONE]",
        ]),
    );
    let expected = Answer {
        events: 7,
        text_chars: 8,
        refusal_chars: 2,
        usage: usage(5, 4, 1, 2),
        finish: Some(Finish::Stop),
        model: Some("m".into()),
        ..ended.clone()
    };
    check(format, SSE, &body, &expected, &["0 text grün", "1 text one\n", "0 refusal no"]);

    // Parallel calls; the second server numbers none and repeats nothing.
    let body = events(&[
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":""}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"x\""}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"b","function":{"name":"g","arguments":"{}"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]},"finish_reason":"tool_calls"}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"id":"c","function":{"name":"h","arguments":"[]"}}]}}]}"#,
        "[DONE]",
    ]);
    let expected = Answer {
        events: 6,
        tool_calls: vec![call("f", 7), call("g", 2), call("h", 2)],
        finish: Some(Finish::ToolCalls),
        ..ended.clone()
    };
    let said = [
        "0 call 0 f",
        "0 arguments 0 {\"x\"",
        "0 call 1 g",
        "0 arguments 1 {}",
        "0 arguments 0 :1}",
        "0 call 0 h",
        "0 arguments 0 []",
    ];
    check(format, SSE, &body, &expected, &said);

    // Reasoning as each compatible spells it; where it comes twice it counts once.
    let body = events(&[
        r#"{"choices":[{"delta":{"reasoning_content":"de","content":null}}]}"#,
        r#"{"choices":[{"delta":{"reasoning":"or","reasoning_details":[{"type":"reasoning.text","text":"or"}]}}]}"#,
        r#"{"choices":[{"delta":{"reasoning":null,"reasoning_details":[{"type":"reasoning.summary","summary":"sum"}]}}]}"#,
        r#"{"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"mi"}]},{"type":"text","text":"said"}]}}]}"#,
        r#"{"choices":[{"delta":{"content":""},"finish_reason":"stop"}],"x_groq":{"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":9}}}"#,
    ]);
    let expected = Answer {
        events: 5,
        text_chars: 4,
        reasoning_chars: 9,
        usage: usage(3, 6, 0, 0),
        finish: Some(Finish::Stop),
        ..ended.clone()
    };
    let said =
        ["0 reasoning de", "0 reasoning or", "0 reasoning sum", "0 reasoning mi", "0 text said"];
    check(format, SSE, &body, &expected, &said);

    // Errors inside a 200, and a stream that stops short.
    for (body, error, complete) in [
        (r#"{"error":{"code":502,"message":"Provider returned error"}}"#, Some("502"), true),
        (r#"{"error":{"type":"overloaded","code":null}}"#, Some("overloaded"), true),
        (r#"{"error":{"code":"what the user said"}}"#, Some("error"), true),
        (r#"{"error":"out of memory"}"#, Some("error"), true),
        (r#"{"error":null,"choices":[{"delta":{}}]}"#, None, false),
        (r#"{"error":{},"choices":[{"delta":{}}]}"#, None, false),
    ] {
        let expected =
            Answer { events: 1, error: error.map(Into::into), complete, ..ended.clone() };
        check(format, SSE, &events(&[body]), &expected, &[]);
    }
}

#[test]
fn whole_answers_are_read() {
    let ended = Answer { complete: true, ..Answer::default() };
    let cases = [
        (
            Format::OpenaiChat,
            r#"{"model":"m","choices":[{"index":0,"message":{"content":"hi","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}},{"id":"2","type":"function","function":{"name":"g","arguments":"{}"}}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#,
            Answer {
                text_chars: 2,
                tool_calls: vec![call("f", 2), call("g", 2)],
                usage: usage(1, 2, 0, 0),
                finish: Some(Finish::ToolCalls),
                model: Some("m".into()),
                ..ended.clone()
            },
        ),
        (
            Format::OpenaiCompletions,
            r#"{"model":"m","choices":[{"text":"ab","index":0,"finish_reason":"length"}]}"#,
            Answer {
                text_chars: 2,
                finish: Some(Finish::Length),
                model: Some("m".into()),
                ..ended.clone()
            },
        ),
        (
            Format::OpenaiResponses,
            r#"{"object":"response","model":"m","status":"completed","error":null,"output":[{"type":"reasoning","summary":[{"type":"summary_text","text":"why"}]},{"type":"message","content":[{"type":"output_text","text":"ab"},{"type":"refusal","refusal":"no"}]},{"type":"function_call","call_id":"1","name":"f","arguments":"{}"}],"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":1},"output_tokens":6,"output_tokens_details":{"reasoning_tokens":2}}}"#,
            Answer {
                text_chars: 2,
                reasoning_chars: 3,
                refusal_chars: 2,
                tool_calls: vec![call("f", 2)],
                usage: usage(5, 6, 2, 1),
                finish: Some(Finish::ToolCalls),
                model: Some("m".into()),
                ..ended.clone()
            },
        ),
        (
            Format::AnthropicMessages,
            r#"{"type":"message","model":"m","content":[{"type":"thinking","thinking":"hm","signature":"x"},{"type":"text","text":"ab"},{"type":"tool_use","id":"1","name":"f","input":{"x": 1}}],"stop_reason":"tool_use","usage":{"input_tokens":1,"cache_creation_input_tokens":2,"cache_read_input_tokens":4,"output_tokens":8}}"#,
            Answer {
                text_chars: 2,
                reasoning_chars: 2,
                tool_calls: vec![call("f", 8)],
                usage: usage(7, 8, 0, 4),
                finish: Some(Finish::ToolCalls),
                model: Some("m".into()),
                ..ended.clone()
            },
        ),
        (
            Format::GeminiGenerate,
            r#"{"candidates":[{"content":{"parts":[{"text":"hm","thought":true},{"text":"ab"}]},"finishReason":"MAX_TOKENS"}],"usageMetadata":{"promptTokenCount":1,"candidatesTokenCount":2,"thoughtsTokenCount":4,"cachedContentTokenCount":1},"modelVersion":"m"}"#,
            Answer {
                text_chars: 2,
                reasoning_chars: 2,
                usage: usage(1, 6, 4, 1),
                finish: Some(Finish::Length),
                model: Some("m".into()),
                ..ended.clone()
            },
        ),
        (
            Format::GeminiGenerate,
            r#"{"promptFeedback":{"blockReason":"SAFETY"}}"#,
            Answer { finish: Some(Finish::Filtered), ..ended.clone() },
        ),
        // Neither JSON nor events: not read.
        (Format::OpenaiChat, "Bad Gateway", ended.clone()),
        // A stream that is not labelled as one.
        (
            Format::OpenaiChat,
            "\ndata: [DONE]\n\n",
            Answer { streamed: true, events: 1, ..ended.clone() },
        ),
        (
            Format::AnthropicMessages,
            r#"{"type":"message","content":[{"type":"tool_use","name":"f","input":{}}]}"#,
            Answer { tool_calls: vec![call("f", 2)], ..ended.clone() },
        ),
        (Format::Unknown, r#"{"choices":[]}"#, ended.clone()),
        (Format::OpenaiChat, "", ended),
    ];
    for (format, body, expected) in cases {
        let (answer, unread, _) = read_every_way(format, JSON, body.as_bytes());
        let expected = Answer { status: 200, bytes: body.len() as u64, ..expected };
        assert_eq!((answer, unread), (expected, 0), "{format:?} {body}");
    }
}

#[test]
fn refused_answers_keep_their_code() {
    let cases = [
        (Format::OpenaiChat, r#"{"error":{"type":"t","code":"c"}}"#, Some("c")),
        (
            Format::OpenaiChat,
            r#"{"object":"error","type":"invalid_model","code":1500}"#,
            Some("1500"),
        ),
        (Format::OpenaiChat, r#"{"detail":"Not Found"}"#, Some("error")),
        (Format::OpenaiResponses, r#"{"error":{"type":"t","code":"c"}}"#, Some("c")),
        (Format::AnthropicMessages, r#"{"type":"error","error":{"type":"t"}}"#, Some("t")),
        (Format::GeminiGenerate, r#"{"error":{"code":400,"status":"S"}}"#, Some("S")),
        (Format::GeminiGenerate, r#"[{"error":{"code":400}}]"#, Some("400")),
        (Format::Unknown, r#"{"error":{"code":"c"}}"#, None),
    ];
    for (format, body, code) in cases {
        let (answer, _, _) = read(format, 400, JSON, &[body.as_bytes()]);
        assert_eq!((answer.status, answer.error.as_deref()), (400, code), "{format:?} {body}");
    }
}

#[test]
fn responses_streams_count_each_text_once() {
    let full = r#"{"model":"m","status":"completed","output":[{"type":"reasoning","summary":[{"type":"summary_text","text":"why"}]},{"type":"message","content":[{"type":"output_text","text":"abc"}]},{"type":"function_call","call_id":"1","name":"f","arguments":"{}"}],"usage":{"input_tokens":5,"output_tokens":6}}"#;
    let all = [
        r#"{"type":"response.created","response":{"model":"m","status":"in_progress","output":[],"usage":null}}"#,
        r#"{"type":"response.reasoning_summary_text.delta","output_index":0,"summary_index":0,"delta":"wh"}"#,
        r#"{"type":"response.reasoning_summary_text.delta","output_index":0,"summary_index":0,"delta":"y"}"#,
        r#"{"type":"response.reasoning_summary_text.done","output_index":0,"summary_index":0,"text":"why"}"#,
        r#"{"type":"response.reasoning_summary_part.done","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":"why"}}"#,
        r#"{"type":"response.output_text.delta","output_index":1,"content_index":0,"delta":"ab","logprobs":[],"obfuscation":"xx"}"#,
        r#"{"type":"response.output_text.delta","output_index":1,"content_index":0,"delta":"c"}"#,
        r#"{"type":"response.output_text.done","output_index":1,"content_index":0,"text":"abc"}"#,
        r#"{"type":"response.content_part.done","output_index":1,"content_index":0,"part":{"type":"output_text","text":"abc"}}"#,
        r#"{"type":"response.output_item.done","output_index":1,"item":{"type":"message","content":[{"type":"output_text","text":"abc"}]}}"#,
        r#"{"type":"response.output_item.added","output_index":2,"item":{"type":"function_call","call_id":"1","name":"f","arguments":""}}"#,
        r#"{"type":"response.function_call_arguments.delta","output_index":2,"delta":"{}"}"#,
        r#"{"type":"response.function_call_arguments.done","output_index":2,"arguments":"{}"}"#,
        r#"{"type":"response.output_item.done","output_index":2,"item":{"type":"function_call","call_id":"1","name":"f","arguments":"{}"}}"#,
    ];
    let completed = format!(r#"{{"type":"response.completed","response":{full}}}"#);
    // Whichever of the five places a text is first seen at, it counts once: leave out the first
    // so many events.
    for skipped in 0..=all.len() {
        let list: Vec<&str> = all[skipped..].iter().copied().chain([completed.as_str()]).collect();
        let (answer, unread, said) =
            read_every_way(Format::OpenaiResponses, SSE, events(&list).as_bytes());
        let counted = (answer.text_chars, answer.reasoning_chars, answer.tool_calls.clone());
        let expected_text = if matches!(skipped, 6) { 1 } else { 3 };
        let expected_reasoning = if matches!(skipped, 2) { 1 } else { 3 };
        assert_eq!(counted, (expected_text, expected_reasoning, vec![call("f", 2)]), "{skipped}");
        assert_eq!(answer.usage, usage(5, 6, 0, 0));
        assert_eq!((answer.finish, unread), (Some(Finish::ToolCalls), 0));
        assert!(answer.complete && answer.model.as_deref() == Some("m"));
        assert!(said.contains(&"0 call 2 f".to_owned()));
    }
    for (last, finish, error) in [
        (
            r#"{"type":"response.incomplete","response":{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}}"#,
            Some(Finish::Length),
            None,
        ),
        (
            r#"{"type":"response.incomplete","response":{"status":"incomplete","incomplete_details":{"reason":"content_filter"}}}"#,
            Some(Finish::Filtered),
            None,
        ),
        (
            r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"server_error","message":"x"}}}"#,
            Some(Finish::Other),
            Some("server_error"),
        ),
        (r#"{"type":"error","code":"flat","message":"x"}"#, None, Some("flat")),
        (r#"{"type":"error","error":{"type":"t","code":"nested"}}"#, None, Some("nested")),
    ] {
        let (answer, _, _) = read(Format::OpenaiResponses, 200, SSE, &[events(&[last]).as_bytes()]);
        assert_eq!((answer.finish, answer.error.as_deref()), (finish, error), "{last}");
        assert!(answer.complete, "{last}");
    }
}

#[test]
fn anthropic_streams_are_read() {
    let body = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"m\",\"usage\":{\"input_tokens\":4,\"cache_creation_input_tokens\":2,\"cache_read_input_tokens\":100,\"output_tokens\":1}}}  \n\n\
        event: ping\ndata: {\"type\": \"ping\"}\n\n\
        event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"thinking\",\"thinking\":\"\"}}\n\n\
        event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"hm 👋\"}}\n\n\
        event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"signature_delta\",\"signature\":\"c2ln\"}}\n\n\
        event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n\
        event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"text_delta\",\"text\":\"said\"}}\n\n\
        event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"citations_delta\",\"citation\":{\"cited_text\":\"no\"}}}\n\n\
        event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":2,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"f\",\"input\":{}}}\n\n\
        event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":2,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{}\"}}\n\n\
        event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\"},\"usage\":{\"output_tokens\":9,\"output_tokens_details\":{\"thinking_tokens\":3}}}\n\n\
        event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    let expected = Answer {
        streamed: true,
        complete: true,
        events: 12,
        text_chars: 4,
        reasoning_chars: 4,
        tool_calls: vec![call("f", 2)],
        usage: usage(106, 9, 3, 100),
        finish: Some(Finish::ToolCalls),
        model: Some("m".into()),
        ..Answer::default()
    };
    let said = ["0 reasoning hm 👋", "0 text said", "0 call 2 f", "0 arguments 2 {}"];
    check(Format::AnthropicMessages, SSE, body, &expected, &said);

    let body = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n";
    let expected = Answer {
        streamed: true,
        complete: true,
        events: 1,
        error: Some("overloaded_error".into()),
        ..Answer::default()
    };
    check(Format::AnthropicMessages, SSE, body, &expected, &[]);
}

#[test]
fn gemini_streams_are_read_in_both_forms() {
    let chunks = [
        r#"{"candidates": [{"content": {"parts": [{"text": "hm","thought": true}],"role": "model"}}],"usageMetadata": {"promptTokenCount": 5},"modelVersion": "m"}"#,
        r#"{"candidates": [{"content": {"parts": [{"text": "grün"},{"functionCall": {"name": "f","args": {"a":1}}}]}}]}"#,
        r#"{"candidates": [{"content": {"parts": [{"functionCall": {"name":"g","willContinue":true}}]}}]}"#,
        r#"{"candidates": [{"content": {"parts": [{"functionCall": {"partialArgs":[1],"willContinue":true}}]}}]}"#,
        r#"{"candidates": [{"finishReason": "STOP"}],"usageMetadata": {"promptTokenCount": 5,"candidatesTokenCount": 2,"thoughtsTokenCount": 1,"cachedContentTokenCount": 3}}"#,
    ];
    let expected = Answer {
        streamed: true,
        complete: true,
        events: 5,
        text_chars: 4,
        reasoning_chars: 2,
        tool_calls: vec![call("f", 7), call("g", 3)],
        usage: usage(5, 3, 1, 3),
        finish: Some(Finish::ToolCalls),
        model: Some("m".into()),
        ..Answer::default()
    };
    let said = [
        "0 reasoning hm",
        "0 text grün",
        "0 call 0 f",
        "0 arguments 0 {\"a\":1}",
        "0 call 1 g",
        "0 arguments 1 [1]",
    ];
    let format = Format::GeminiGenerate;
    let sse: String = chunks.iter().map(|chunk| format!("data: {chunk}\r\n\r\n")).collect();
    check(format, "text/event-stream", &sse, &expected, &said);
    check(
        format,
        "application/json; charset=UTF-8",
        &format!("[{}\n]\n", chunks.join("\n,\r\n")),
        &expected,
        &said,
    );
    // Cut off before its bracket, an array is not complete.
    let cut = Answer { complete: false, ..expected };
    check(format, "application/json", &format!("[{}", chunks.join(",")), &cut, &said);
}

#[test]
fn grpc_messages_are_counted() {
    let body = b"\0\0\0\0\x03abc\x01\0\0\0\x01d";
    let (answer, _, _) = read_every_way(Format::Grpc, "application/grpc", body);
    assert_eq!((answer.events, answer.bytes, answer.complete), (2, 14, true));
}

#[test]
fn what_is_too_long_or_broken_is_passed_unread_and_counted() {
    use crate::limits::{ANSWER_BYTES_MAX, EVENT_BYTES_MAX};
    let long = format!("data: {}\n\n", "x".repeat(EVENT_BYTES_MAX));
    let rest = events(&["{broken", "[DONE]"]);
    let (answer, unread, _) =
        read(Format::OpenaiChat, 200, SSE, &[long.as_bytes(), rest.as_bytes()]);
    assert_eq!((answer.events, unread, answer.complete), (3, 2, true));

    let half = format!("{{\"x\":\"{}", "x".repeat(ANSWER_BYTES_MAX / 2));
    let (answer, unread, _) =
        read(Format::OpenaiChat, 200, JSON, &[half.as_bytes(), half.as_bytes(), b"\"}"]);
    assert_eq!(answer.bytes, 2 * half.len() as u64 + 2);
    assert_eq!((unread, answer.complete, answer.streamed), (1, true, false));
}

#[test]
fn an_interrupted_answer_is_not_complete() {
    let mut reader = AnswerReader::new(Format::OpenaiChat, 200, Some(SSE));
    reader.count(events(&["[DONE]"]).as_bytes());
    assert!(!reader.finish(false).complete);
}

/// Where streams recorded from real providers are, if anywhere.
pub(super) fn recorded_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/streams")
}

/// The format of the streams in a provider's folder.
pub(super) fn format_of(provider: &str) -> Format {
    match provider {
        "anthropic" => Format::AnthropicMessages,
        "gemini" => Format::GeminiGenerate,
        "openai-responses" => Format::OpenaiResponses,
        "openai-completions" => Format::OpenaiCompletions,
        "openai-chat" | "azure" | "deepseek" | "groq" | "mistral" | "openrouter" => {
            Format::OpenaiChat
        }
        _ => Format::Unknown,
    }
}

/// Streams recorded from real providers, where they are at hand.
#[test]
fn recorded_streams_read_the_same_wherever_they_are_cut() {
    let folder = recorded_folder();
    let mut files: Vec<PathBuf> = folders(&folder)
        .iter()
        .flat_map(|folder| folders(folder))
        .filter(|path| path.extension().is_some_and(|extension| extension == "sse"))
        .collect();
    files.sort();
    if files.is_empty() {
        println!("skipped: no recorded streams at {}", folder.display());
        return;
    }
    for path in files {
        let provider = path.parent().and_then(Path::file_name).unwrap().to_str().unwrap();
        let format = format_of(provider);
        let body = std::fs::read(&path).unwrap();
        let (answer, unread, said) = read_every_way(format, SSE, &body);
        let name = path.strip_prefix(&folder).unwrap().display();
        println!(
            "{name}: {} events, {} text, {} reasoning, {} refusal, calls {:?}, {:?}, {:?}",
            answer.events,
            answer.text_chars,
            answer.reasoning_chars,
            answer.refusal_chars,
            answer.tool_calls,
            answer.finish,
            answer.usage
        );
        assert!(answer.events > 0 && answer.streamed, "{name}");
        assert_eq!(unread, 0, "{name}");
        if format != Format::Unknown {
            let characters = answer.text_chars + answer.refusal_chars + answer.reasoning_chars;
            assert!(characters > 0 || !answer.tool_calls.is_empty(), "{name}");
            assert!(answer.complete && answer.finish.is_some(), "{name}");
            assert!(answer.model.is_some() && !said.is_empty(), "{name}");
        }
    }
}

/// What lies in a folder; nothing where there is none.
pub(super) fn folders(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect()
}
