//! The official SDKs behave in front of the gateway as they do in front of the provider: the text
//! that their users read is the text in the stream, streamed and not, and errors keep their type.

use harness::clients::{KEY, Server, Target, drive};
use harness::{Gateway, Provider, streams};
use serde_json::{Value, json};

/// A driver and the streams that its SDK understands.
struct Sdk {
    driver: &'static str,
    /// Folders of streams, and the kind that the driver is told.
    folders: &'static [(&'static str, &'static str)],
    /// Recorded streams that this SDK itself cannot read or reads differently, with the reason.
    left_out: &'static [(&'static str, &'static str)],
    /// Whether reasoning and tools are compared too.
    text_only: bool,
}

const CHAT: &[(&str, &str)] = &[
    ("openai-chat", "openai-chat"),
    ("openai-responses", "openai-responses"),
    ("openai-completions", "openai-completions"),
    ("azure", "openai-chat"),
    ("groq", "openai-chat"),
    ("deepseek", "openai-chat"),
    ("openrouter", "openai-chat"),
];
const ERROR_INSIDE: (&str, &str) = ("own/openai-chat/error-inside.sse", "raises, tested apart");
const OVERLOADED: (&str, &str) = ("own/anthropic/overloaded.sse", "raises, tested apart");

const SDKS: &[Sdk] = &[
    Sdk { driver: "openai_sdk.py", folders: CHAT, left_out: &[ERROR_INSIDE], text_only: false },
    Sdk { driver: "openai_sdk.mjs", folders: CHAT, left_out: &[ERROR_INSIDE], text_only: false },
    Sdk {
        driver: "anthropic_sdk.py",
        folders: &[("anthropic", "anthropic")],
        left_out: &[OVERLOADED],
        text_only: false,
    },
    Sdk {
        driver: "anthropic_sdk.mjs",
        folders: &[("anthropic", "anthropic")],
        left_out: &[OVERLOADED],
        text_only: false,
    },
    Sdk {
        driver: "genai_sdk.py",
        folders: &[("gemini", "gemini")],
        left_out: &[("own/gemini/text-array.json", "the SDK always asks for SSE")],
        text_only: false,
    },
    Sdk {
        driver: "mistral_sdk.py",
        folders: &[("mistral", "mistral")],
        left_out: &[],
        text_only: false,
    },
    Sdk {
        driver: "litellm_sdk.py",
        folders: &[
            ("openai-chat", "openai-chat"),
            ("anthropic", "anthropic"),
            ("gemini", "gemini"),
            ("mistral", "mistral"),
            ("deepseek", "deepseek"),
        ],
        left_out: &[
            ERROR_INSIDE,
            OVERLOADED,
            ("own/gemini/text-array.json", "LiteLLM always asks for SSE"),
        ],
        text_only: true,
    },
];

#[test]
fn openai_python() {
    reads_what_the_stream_says("openai_sdk.py");
}

#[test]
fn openai_node() {
    reads_what_the_stream_says("openai_sdk.mjs");
}

#[test]
fn anthropic_python() {
    reads_what_the_stream_says("anthropic_sdk.py");
}

#[test]
fn anthropic_node() {
    reads_what_the_stream_says("anthropic_sdk.mjs");
}

#[test]
fn google_genai_python() {
    reads_what_the_stream_says("genai_sdk.py");
}

#[test]
fn mistral_python() {
    reads_what_the_stream_says("mistral_sdk.py");
}

#[test]
fn litellm_python() {
    reads_what_the_stream_says("litellm_sdk.py");
}

/// Runs an SDK over every stream that it understands, each with another cut of its bytes.
fn reads_what_the_stream_says(driver: &str) {
    let sdk = SDKS.iter().find(|sdk| sdk.driver == driver).expect("a row in the table");
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let patterns = ["events", "odd", "whole"];
    let scenarios: Vec<Value> = streams::all()
        .iter()
        .filter(|name| !sdk.left_out.iter().any(|(left_out, _)| left_out == name))
        .filter_map(|name| Some((name, kind_of(sdk, name)?)))
        .zip(patterns.iter().cycle())
        .map(|((name, kind), pattern)| {
            json!({
                "name": name,
                "kind": kind,
                "stream": name.ends_with(".sse"),
                "provider": format!("stream={name};chunks={pattern}"),
            })
        })
        .collect();
    assert!(scenarios.len() >= 2, "{driver} has too few streams");
    let Some(seen) = drive(driver, &Target::from(&gateway), &scenarios) else { return };
    let mut wrong = Vec::new();
    for seen in &seen {
        let name = seen["name"].as_str().expect("a name");
        let said = streams::said(name);
        let same = seen["text"] == said.text
            && (sdk.text_only
                || (seen["reasoning"] == said.reasoning && seen["tools"] == json!(said.tools)));
        if !same {
            wrong.push(format!("{name}: {seen}\nbut the stream says {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), seen.len(), wrong.join("\n\n"));
    assert_eq!(provider.received().len(), scenarios.len(), "one request for each scenario");
    for request in provider.received() {
        let credentials = ["authorization", "x-api-key", "x-goog-api-key"];
        let sent = credentials.iter().any(|name| {
            request.header(name).is_some_and(|value| value.trim_start_matches("Bearer ") == KEY)
        });
        assert!(sent, "the provider got no credential: {:?}", request.headers);
    }
}

/// Marks that nobody sees, and reasoning kept out; nothing else may change.
const INVISIBLE: &str = "[action.none]\nwatermark = true\nwithhold_reasoning = true\n\
    pace_tokens_per_second = 5000.0\n[watermark]\nlexical = false\n";
/// Everything that can be done to an answer.
const EVERYTHING: &str = "[action.none]\nwatermark = true\ncanary = true\n\
    withhold_reasoning = true\npace_tokens_per_second = 5000.0\n\
    [words]\nreasoning_withheld = \"(not shown)\"\n";

/// Runs every SDK over its streams as [`reads_what_the_stream_says`] does, under a policy.
fn treated(policy: &str, check: impl Fn(&Sdk, &str, &Value) -> Result<(), String>) {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).policy(policy).start();
    let mut wrong = Vec::new();
    for sdk in SDKS {
        let scenarios: Vec<Value> = streams::all()
            .iter()
            .filter(|name| !sdk.left_out.iter().any(|(left_out, _)| left_out == name))
            .filter_map(|name| Some((name, kind_of(sdk, name)?)))
            .map(|(name, kind)| {
                let provider = format!("stream={name};chunks=odd");
                json!({"name": name, "kind": kind, "stream": name.ends_with(".sse"),
                       "provider": provider})
            })
            .collect();
        let Some(seen) = drive(sdk.driver, &Target::from(&gateway), &scenarios) else { return };
        for seen in &seen {
            let name = seen["name"].as_str().expect("a name");
            if let Err(fault) = check(sdk, name, seen) {
                wrong.push(format!("{} {name}: {fault}: {seen}", sdk.driver));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n\n"));
}

#[test]
fn marked_answers_without_reasoning_read_the_same() {
    let marked = std::cell::Cell::new(0);
    treated(INVISIBLE, |sdk, name, seen| {
        let said = streams::said(name);
        let text = seen["text"].as_str().ok_or("no text")?;
        let visible: String =
            text.chars().filter(|c| !matches!(c, '\u{200b}'..='\u{200d}' | '\u{2060}')).collect();
        marked.set(marked.get() + usize::from(text != visible));
        let plain: String = said
            .text
            .chars()
            .filter(|c| !matches!(c, '\u{200b}'..='\u{200d}' | '\u{2060}'))
            .collect();
        if visible != plain {
            return Err(format!("the stream says {plain:?}"));
        }
        if !sdk.text_only && seen["reasoning"] != "" {
            return Err("its reasoning is shown".to_owned());
        }
        if !sdk.text_only && seen["tools"] != json!(said.tools) {
            return Err(format!("the stream calls {:?}", said.tools));
        }
        Ok(())
    });
    assert!(marked.get() > 20, "only {} answers carried marks", marked.get());
}

#[test]
fn answers_with_everything_done_to_them_are_read() {
    treated(EVERYTHING, |_, name, seen| {
        let said = streams::said(name);
        if seen["error"].is_string() {
            return Err("it raised".to_owned());
        }
        let text = seen["text"].as_str().ok_or("no text")?;
        // Another wording is a little longer or shorter, and the marks come on top.
        let (before, now) = (said.text.chars().count(), text.chars().count());
        if now * 10 < before * 9 || now > before * 3 / 2 + 200 {
            return Err(format!("{before} characters became {now}"));
        }
        Ok(())
    });
}

/// What the gateway refuses by policy raises the exception that its user expects.
#[test]
fn refusals_by_policy_are_the_sdks_own_errors() {
    const KINDS: &[(&str, &str, &str, &str)] = &[
        ("openai_sdk.py", "openai-chat", "PermissionDeniedError", "RateLimitError"),
        ("openai_sdk.py", "openai-responses", "PermissionDeniedError", "RateLimitError"),
        ("openai_sdk.mjs", "openai-chat", "PermissionDeniedError", "RateLimitError"),
        ("anthropic_sdk.py", "anthropic", "PermissionDeniedError", "RateLimitError"),
        ("anthropic_sdk.mjs", "anthropic", "PermissionDeniedError", "RateLimitError"),
        ("genai_sdk.py", "gemini", "ClientError", "ClientError"),
        ("mistral_sdk.py", "mistral", "SDKError", "SDKError"),
        // LiteLLM goes by the error's type, which is the one that OpenAI gives a 403.
        ("litellm_sdk.py", "openai-chat", "BadRequestError", "RateLimitError"),
    ];
    let provider = Provider::start();
    for (policy, status, words) in [
        ("[action.none]\nrefuse = true\n", 403, "suspended"),
        (
            "[action.none]\nverify = true\n[words]\nverify_url = \"https://example.com/v\"\n",
            403,
            "https://example.com/v",
        ),
        (
            "[action.none]\nthrottle = [\"none\"]\n[limit.none]\nper = \"account\"\n\
             requests_per_minute = 0.1\nburst_seconds = 0.1\n",
            429,
            "Rate limit",
        ),
    ] {
        let gateway = Gateway::in_front_of(provider.address()).policy(policy).start();
        let target = Target::from(&gateway);
        let scenario =
            |kind: &str| json!({"name": kind, "kind": kind, "stream": true, "provider": "echo"});
        // The first request uses the limit up.
        if drive("openai_sdk.py", &target, &[scenario("openai-chat")]).is_none() {
            return;
        }
        for (driver, kind, denied, limited) in KINDS {
            let Some(seen) = drive(driver, &target, &[scenario(kind)]) else { return };
            let expected = if status == 429 { limited } else { denied };
            let (seen, who) = (&seen[0], format!("{driver} {kind} {status}"));
            assert_eq!(seen["error"], *expected, "{who}: {seen}");
            assert!(seen["message"].as_str().is_some_and(|m| m.contains(words)), "{who}: {seen}");
            if *driver != "litellm_sdk.py" {
                assert_eq!(seen["status"], status, "{who}: {seen}");
            }
        }
    }
}

fn kind_of(sdk: &Sdk, name: &str) -> Option<&'static str> {
    let folder = name.split('/').nth(1)?;
    sdk.folders.iter().find(|(of, _)| *of == folder).map(|(_, kind)| *kind)
}

/// An error of the provider, before the stream or inside it, is the same error to the user.
#[test]
fn errors_keep_their_type() {
    let case = |driver, kind, stream, provider: &str, error| {
        let scenario =
            json!({"name": provider, "kind": kind, "stream": stream, "provider": provider});
        (driver, scenario, error)
    };
    let openai_429 = "status=429;stream=own/errors/openai-429.json";
    let openai_inside = "stream=own/openai-chat/error-inside.sse";
    let anthropic_404 = "status=404;stream=own/errors/anthropic-404.json";
    let anthropic_inside = "stream=own/anthropic/overloaded.sse";
    let gemini_400 = "status=400;stream=own/errors/gemini-400.json";
    let cases = [
        case("openai_sdk.py", "openai-chat", true, openai_429, "RateLimitError"),
        case("openai_sdk.py", "openai-chat", true, openai_inside, "APIError"),
        case("openai_sdk.mjs", "openai-chat", false, openai_429, "RateLimitError"),
        case("openai_sdk.mjs", "openai-chat", true, openai_inside, "APIError"),
        case("anthropic_sdk.py", "anthropic", true, anthropic_404, "NotFoundError"),
        case("anthropic_sdk.py", "anthropic", true, anthropic_inside, "APIStatusError"),
        case("anthropic_sdk.mjs", "anthropic", false, anthropic_404, "NotFoundError"),
        case("genai_sdk.py", "gemini", true, gemini_400, "ClientError"),
    ];
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let target = Target::from(&gateway);
    for (driver, scenario, error) in cases {
        let directive = scenario["provider"].as_str().expect("a directive").to_owned();
        let Some(seen) = drive(driver, &target, &[scenario]) else { return };
        assert_eq!(seen[0]["error"], error, "{driver} {directive}: {}", seen[0]);
        if let Some(status) = directive.strip_prefix("status=") {
            let status: u16 = status[..3].parse().expect("a status");
            assert_eq!(seen[0]["status"], status, "{driver} {directive}: {}", seen[0]);
        }
    }
}

/// A stream that breaks off is an error to the user and not a short answer.
#[test]
fn a_broken_stream_is_an_error() {
    const CASES: &[(&str, &str, &str)] = &[
        ("openai_sdk.py", "openai-chat", "stream=own/openai-chat/text.sse;cut=900"),
        ("openai_sdk.mjs", "openai-responses", "stream=own/openai-responses/text.sse;cut=4000"),
        ("anthropic_sdk.py", "anthropic", "stream=own/anthropic/text.sse;cut=900"),
        ("anthropic_sdk.mjs", "anthropic", "stream=own/anthropic/text.sse;cut=900"),
        ("genai_sdk.py", "gemini", "stream=own/gemini/text.sse;cut=300"),
    ];
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let target = Target::from(&gateway);
    for (driver, kind, directive) in CASES {
        let scenario =
            json!({"name": directive, "kind": kind, "stream": true, "provider": directive});
        let Some(seen) = drive(driver, &target, &[scenario]) else { return };
        assert!(seen[0]["error"].is_string(), "{driver} took a broken stream: {}", seen[0]);
    }
}

/// What the gateway read of the SDKs' requests is what they sent.
#[test]
fn conversations_are_read() {
    let provider = Provider::start();
    let gateway = Gateway::in_front_of(provider.address()).start();
    let target = Target::from(&gateway);
    let scenario = |kind: &str, name: &str| json!({"name": name, "kind": kind, "stream": true, "provider": format!("stream={name}")});
    let cases = [
        (
            "openai_sdk.py",
            "openai-chat",
            "own/openai-chat/text.sse",
            "openai_chat",
            "/chat/completions",
        ),
        (
            "openai_sdk.mjs",
            "openai-responses",
            "own/openai-responses/text.sse",
            "openai_responses",
            "/responses",
        ),
        (
            "openai_sdk.py",
            "openai-completions",
            "own/openai-completions/text.sse",
            "openai_completions",
            "/v1/completions",
        ),
        (
            "anthropic_sdk.py",
            "anthropic",
            "own/anthropic/text.sse",
            "anthropic_messages",
            "/messages",
        ),
        (
            "genai_sdk.py",
            "gemini",
            "own/gemini/text.sse",
            "gemini_generate",
            ":streamGenerateContent",
        ),
    ];
    let mut accounts = Vec::new();
    for (driver, kind, stream, format, path) in cases {
        if drive(driver, &target, &[scenario(kind, stream)]).is_none() {
            return;
        }
        let exchange = gateway.exchange(path);
        assert_eq!(exchange["format"], format, "{exchange}");
        let turns = exchange["conversation"]["turns"].as_array().expect("turns");
        assert_eq!(turns.len(), 1, "{exchange}");
        assert_eq!(turns[0]["role"], "user", "{exchange}");
        assert_eq!(turns[0]["text"]["words"], 8, "the question has eight words: {exchange}");
        assert_eq!(exchange["conversation"]["sampling"]["stream"], true, "{exchange}");
        let answer = &exchange["answer"];
        let chars = streams::said(stream).text.chars().count();
        assert_eq!(answer["text_chars"], chars, "{exchange}");
        assert_eq!(answer["finish"], "stop", "{exchange}");
        assert_eq!(answer["complete"], true, "{exchange}");
        assert_eq!(answer["bytes"], streams::read(stream).expect("a stream").len(), "{exchange}");
        accounts.push(exchange["account"].as_str().expect("an account").to_owned());
    }
    assert!(accounts[0].starts_with("acct-"), "{accounts:?}");
    accounts.dedup();
    assert_eq!(accounts.len(), 1, "one key is one account in every format: {accounts:?}");
}

/// gRPC over TLS in front, plain-text HTTP/2 behind: messages, order, status and trailers arrive.
#[test]
fn grpc() {
    let Some(server) = Server::start("grpc_server.py") else { return };
    let gateway =
        Gateway::builder().upstream("grpc", &[server.address()], "protocol = \"h2\"").start();
    let scenarios = [
        json!({"name": "small", "call": "echo", "size": 10}),
        json!({"name": "empty", "call": "echo", "size": 0}),
        json!({"name": "large", "call": "echo", "size": 3_000_000}),
        json!({"name": "stream", "call": "count", "size": 200}),
        json!({"name": "error", "call": "fail"}),
    ];
    let Some(seen) = drive("grpc_client.py", &Target::from(&gateway), &scenarios) else { return };
    for seen in &seen[..3] {
        assert_eq!((&seen["same"], &seen["code"]), (&json!(true), &json!("OK")), "{seen}");
        assert_eq!(seen["trailers"]["x-served-by"], "echo", "{seen}");
    }
    let numbers: Vec<u64> = (0..200).collect();
    assert_eq!(seen[3]["messages"], json!(numbers), "{}", seen[3]);
    assert_eq!(seen[3]["trailers"]["x-served-by"], "count", "{}", seen[3]);
    assert_eq!(seen[4]["code"], "RESOURCE_EXHAUSTED", "{}", seen[4]);
    assert_eq!(seen[4]["details"], "quota used up: 100 % of it", "{}", seen[4]);
    assert_eq!(seen[4]["trailers"]["x-served-by"], "fail", "{}", seen[4]);
    let exchange = gateway.exchange("/test.Model/Count");
    assert_eq!(exchange["format"], "grpc", "{exchange}");
    assert_eq!(exchange["answer"]["events"], 200, "{exchange}");
}

/// A WebSocket (T-DIST-010's other door) passes in both directions.
#[test]
fn websocket() {
    let Some(server) = Server::start("websocket_server.py") else { return };
    let gateway = Gateway::in_front_of(server.address()).start();
    let scenarios = [
        json!({"name": "small", "path": "/v1/realtime", "count": 20, "size": 10}),
        json!({"name": "large", "path": "/v1/realtime", "count": 4, "size": 500_000}),
    ];
    let target = Target::from(&gateway);
    let Some(seen) = drive("websocket_client.py", &target, &scenarios) else { return };
    assert_eq!(seen[0]["echoed"], 20, "{}", seen[0]);
    assert_eq!(seen[1]["echoed"], 4, "{}", seen[1]);
}
