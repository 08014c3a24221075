//! Refusals, each in the shape that the caller's own client library understands.
//!
//! A refusal that the library does not recognise is retried, or surfaces as a parse error at a
//! customer who did nothing wrong. What the official libraries do, measured: a 401 or 403 is never
//! retried; a 429 or 5xx is, after `retry-after`, which some ignore above 60 seconds;
//! `x-should-retry` overrules both.
//!
//! Source: the providers' error references; RFC 9457 for callers of no known format; the gRPC over
//! HTTP/2 protocol ("Trailers-Only", "Status-Message") and gRFC A6 (retry push-back).

use std::time::Duration;

use detectors::Format;
use serde_json::{Value, json};

use super::provider::{anthropic, gemini, openai, openai_responses};

/// Longest `retry-after` that every official client library honours.
const RETRY_AFTER_SECONDS_MAX: u64 = 60;

/// A refusal before it takes a provider's shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is refused, and why.
    pub kind: RefusalKind,
    /// What the caller is told: one or two sentences.
    pub message: String,
    /// Name of the exchange, to ask about it.
    pub request_id: String,
    /// Where the caller can do something about it.
    pub link: Option<String>,
}

/// What is refused, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// 401: no credential, or none that is valid.
    Unauthenticated,
    /// 403: this account may not.
    PermissionDenied,
    /// 403: this account may not until it has been verified.
    VerificationRequired,
    /// 429: later.
    RateLimited {
        /// When.
        retry_after: Duration,
    },
    /// 413: the body is larger than is taken.
    BodyTooLarge,
    /// 431: the request head is larger than is taken.
    HeaderTooLarge,
    /// 408: the body did not come in time.
    RequestTimeout,
    /// 400: the request is broken.
    BadRequest,
    /// 404: no route leads anywhere.
    NotFound,
    /// 415: a content coding that is not spoken here.
    UnsupportedEncoding,
    /// 503 where it is known when to come again, 502 where the upstream just failed.
    UpstreamUnavailable {
        /// When to come again.
        retry_after: Option<Duration>,
    },
    /// 504: the upstream took too long.
    UpstreamTimeout,
}

/// A refusal as it goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// HTTP status.
    pub status: u16,
    /// Header fields, names in lower case. The caller adds `content-length`.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Vec<u8>,
}

/// What a provider's own file decides of a refusal.
pub(crate) struct Body {
    pub(crate) status: u16,
    pub(crate) request_id_header: &'static str,
    pub(crate) json: Value,
}

impl Refusal {
    /// A refusal without a link, of an exchange that is not named yet.
    #[must_use]
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), request_id: String::new(), link: None }
    }

    /// The refusal in the shape of a format.
    #[must_use]
    pub fn render(&self, format: Format) -> Rendered {
        let (content_type, body) = match format {
            Format::OpenaiChat | Format::OpenaiResponses | Format::OpenaiCompletions => {
                ("application/json", openai::refusal(self))
            }
            Format::AnthropicMessages => ("application/json", anthropic::refusal(self)),
            Format::GeminiGenerate => ("application/json; charset=UTF-8", gemini::refusal(self)),
            Format::Unknown => ("application/problem+json", self.problem()),
            Format::Grpc => return self.grpc(),
        };
        let mut headers = vec![
            ("content-type", content_type.to_owned()),
            (body.request_id_header, header_value(&self.request_id)),
        ];
        if self.kind == RefusalKind::Unauthenticated {
            // RFC 9110, section 15.5.2: a 401 must carry a challenge.
            headers.push(("www-authenticate", "Bearer".to_owned()));
        }
        if self.kind == RefusalKind::UnsupportedEncoding {
            // RFC 9110, section 15.5.16: say which codings are taken.
            headers.push(("accept-encoding", "gzip, deflate, br, zstd".to_owned()));
        }
        if let Some(seconds) = self.retry_after_seconds() {
            headers.push(("retry-after", seconds.to_string()));
            headers.push(("x-should-retry", "true".to_owned()));
        } else if body.status < 500 {
            headers.push(("x-should-retry", "false".to_owned()));
        }
        Rendered { status: body.status, headers, body: body.json.to_string().into_bytes() }
    }

    /// HTTP status of the refusal.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self.kind {
            RefusalKind::Unauthenticated => 401,
            RefusalKind::PermissionDenied | RefusalKind::VerificationRequired => 403,
            RefusalKind::RateLimited { .. } => 429,
            RefusalKind::BodyTooLarge => 413,
            RefusalKind::HeaderTooLarge => 431,
            RefusalKind::RequestTimeout => 408,
            RefusalKind::BadRequest => 400,
            RefusalKind::NotFound => 404,
            RefusalKind::UnsupportedEncoding => 415,
            RefusalKind::UpstreamUnavailable { retry_after: None } => 502,
            RefusalKind::UpstreamUnavailable { retry_after: Some(_) } => 503,
            RefusalKind::UpstreamTimeout => 504,
        }
    }

    /// Whole seconds after which to come again: at least one, at most 60.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        let after = match self.kind {
            RefusalKind::RateLimited { retry_after } => retry_after,
            RefusalKind::UpstreamUnavailable { retry_after } => retry_after?,
            _ => return None,
        };
        let whole = after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0));
        Some(whole.clamp(1, RETRY_AFTER_SECONDS_MAX))
    }

    /// The message, and where to go. Client libraries show little else to a person.
    #[must_use]
    pub fn text(&self) -> String {
        match &self.link {
            Some(link) if !self.message.contains(link.as_str()) => {
                format!("{} See {link}", self.message)
            }
            _ => self.message.clone(),
        }
    }

    /// For callers of no known format: RFC 9457.
    fn problem(&self) -> Body {
        let status = self.status();
        let title = match self.kind {
            RefusalKind::Unauthenticated => "Unauthorized",
            RefusalKind::PermissionDenied => "Forbidden",
            RefusalKind::VerificationRequired => "Verification required",
            RefusalKind::RateLimited { .. } => "Too Many Requests",
            RefusalKind::BodyTooLarge => "Content Too Large",
            RefusalKind::HeaderTooLarge => "Request Header Fields Too Large",
            RefusalKind::RequestTimeout => "Request Timeout",
            RefusalKind::BadRequest => "Bad Request",
            RefusalKind::NotFound => "Not Found",
            RefusalKind::UnsupportedEncoding => "Unsupported Media Type",
            RefusalKind::UpstreamUnavailable { retry_after: None } => "Bad Gateway",
            RefusalKind::UpstreamUnavailable { retry_after: Some(_) } => "Service Unavailable",
            RefusalKind::UpstreamTimeout => "Gateway Timeout",
        };
        let mut json = json!({
            "type": "about:blank",
            "title": title,
            "status": status,
            "detail": self.text(),
            "request_id": self.request_id,
        });
        if let Some(link) = &self.link {
            json["link"] = json!(link);
        }
        Body { status, request_id_header: "x-request-id", json }
    }

    /// A gRPC call ends with its status in the header block: HTTP is fine, the call is not.
    fn grpc(&self) -> Rendered {
        let code = match self.kind {
            RefusalKind::BadRequest => 3,
            RefusalKind::UpstreamTimeout | RefusalKind::RequestTimeout => 4,
            RefusalKind::PermissionDenied | RefusalKind::VerificationRequired => 7,
            RefusalKind::RateLimited { .. }
            | RefusalKind::BodyTooLarge
            | RefusalKind::HeaderTooLarge => 8,
            // No such service, and no such compression: UNIMPLEMENTED both.
            RefusalKind::NotFound | RefusalKind::UnsupportedEncoding => 12,
            RefusalKind::UpstreamUnavailable { .. } => 14,
            RefusalKind::Unauthenticated => 16,
        };
        let mut headers = vec![
            ("content-type", "application/grpc".to_owned()),
            ("x-request-id", header_value(&self.request_id)),
            ("grpc-status", code.to_string()),
            ("grpc-message", percent_encode(&self.text())),
        ];
        if let Some(seconds) = self.retry_after_seconds() {
            headers.push(("grpc-retry-pushback-ms", (seconds * 1000).to_string()));
        }
        Rendered { status: 200, headers, body: Vec::new() }
    }
}

/// The format's own error event, for a stream of server-sent events that has begun with a 200.
///
/// Empty where the format has none: gRPC ends a call in its trailers, and of an unknown format
/// nothing is known.
#[must_use]
pub fn stream_error(format: Format, refusal: &Refusal) -> Vec<u8> {
    match format {
        Format::OpenaiChat | Format::OpenaiCompletions => openai::stream_error(refusal),
        Format::OpenaiResponses => openai_responses::stream_error(refusal),
        Format::AnthropicMessages => anthropic::stream_error(refusal),
        Format::GeminiGenerate => gemini::stream_error(refusal),
        Format::Grpc | Format::Unknown => Vec::new(),
    }
}

/// Only what may stand in a header field.
fn header_value(text: &str) -> String {
    text.chars().filter(char::is_ascii_graphic).collect()
}

/// A gRPC status message: everything but printable ASCII, and the percent sign, is encoded.
fn percent_encode(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::wire::AnswerReader;

    const SOON: Duration = Duration::from_millis(1500);

    const KINDS: [(RefusalKind, u16); 11] = [
        (RefusalKind::Unauthenticated, 401),
        (RefusalKind::PermissionDenied, 403),
        (RefusalKind::VerificationRequired, 403),
        (RefusalKind::RateLimited { retry_after: SOON }, 429),
        (RefusalKind::BodyTooLarge, 413),
        (RefusalKind::BadRequest, 400),
        (RefusalKind::NotFound, 404),
        (RefusalKind::UnsupportedEncoding, 415),
        (RefusalKind::UpstreamUnavailable { retry_after: None }, 502),
        (RefusalKind::UpstreamUnavailable { retry_after: Some(SOON) }, 503),
        (RefusalKind::UpstreamTimeout, 504),
    ];

    fn refusal(kind: RefusalKind) -> Refusal {
        Refusal {
            kind,
            message: "Not now – 100% sure.".into(),
            request_id: "r0123456789abcdef".into(),
            link: Some("https://example.com/verify".into()),
        }
    }

    fn header<'a>(rendered: &'a Rendered, name: &str) -> Option<&'a str> {
        rendered.headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn every_refusal_has_its_status_and_tells_whether_to_retry() {
        for format in Format::ALL.into_iter().filter(|format| *format != Format::Grpc) {
            for (kind, status) in KINDS {
                let rendered = refusal(kind).render(format);
                assert_eq!(rendered.status, status, "{format:?}");
                let (after, retry) = match status {
                    429 | 503 => (Some("2"), Some("true")),
                    502 | 504 => (None, None),
                    _ => (None, Some("false")),
                };
                assert_eq!(header(&rendered, "retry-after"), after, "{format:?} {status}");
                assert_eq!(header(&rendered, "x-should-retry"), retry, "{format:?} {status}");
                assert_eq!(header(&rendered, "www-authenticate").is_some(), status == 401);
                let text = String::from_utf8(rendered.body).unwrap();
                assert!(text.contains("https://example.com/verify"), "{text}");
                assert!(serde_json::from_str::<Value>(&text).unwrap().is_object());
            }
        }
    }

    #[test]
    fn each_provider_gets_its_own_shape() {
        let limited = refusal(RefusalKind::RateLimited { retry_after: SOON });
        let message = "Not now – 100% sure. See https://example.com/verify";
        let cases = [
            (
                Format::OpenaiChat,
                "x-request-id",
                json!({"error": {"message": message, "type": "requests", "param": null,
                    "code": "rate_limit_exceeded"}}),
            ),
            (
                Format::AnthropicMessages,
                "request-id",
                json!({"type": "error", "error": {"type": "rate_limit_error", "message": message},
                    "request_id": "r0123456789abcdef"}),
            ),
            (
                Format::GeminiGenerate,
                "x-request-id",
                json!({"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED",
                "details": [
                    {"@type": "type.googleapis.com/google.rpc.RequestInfo",
                        "requestId": "r0123456789abcdef"},
                    {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2s"},
                    {"@type": "type.googleapis.com/google.rpc.Help", "links": [
                        {"description": "What to do", "url": "https://example.com/verify"}]},
                ]}}),
            ),
            (
                Format::Unknown,
                "x-request-id",
                json!({"type": "about:blank", "title": "Too Many Requests", "status": 429,
                    "detail": message, "request_id": "r0123456789abcdef",
                    "link": "https://example.com/verify"}),
            ),
        ];
        for (format, id_header, expected) in cases {
            let rendered = limited.render(format);
            assert_eq!(serde_json::from_slice::<Value>(&rendered.body).unwrap(), expected);
            assert_eq!(header(&rendered, id_header), Some("r0123456789abcdef"), "{format:?}");
        }
        assert_eq!(
            header(&limited.render(Format::Unknown), "content-type"),
            Some("application/problem+json")
        );
    }

    #[test]
    fn grpc_is_refused_in_trailers_only() {
        let codes = KINDS.map(|(kind, _)| {
            let rendered = refusal(kind).render(Format::Grpc);
            assert_eq!((rendered.status, rendered.body.len()), (200, 0));
            assert_eq!(header(&rendered, "content-type"), Some("application/grpc"));
            assert_eq!(
                header(&rendered, "grpc-message"),
                Some("Not now %E2%80%93 100%25 sure. See https://example.com/verify")
            );
            header(&rendered, "grpc-status").unwrap().to_owned()
        });
        assert_eq!(codes.join(" "), "16 7 7 8 8 3 12 12 14 14 4");
    }

    #[test]
    fn retry_after_is_whole_seconds_from_1_to_60() {
        for (after, seconds) in [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (90_000, 60)] {
            let retry_after = Duration::from_millis(after);
            let limited = refusal(RefusalKind::RateLimited { retry_after });
            assert_eq!(limited.retry_after_seconds(), Some(seconds), "{after} ms");
        }
    }

    #[test]
    fn an_error_event_is_read_as_an_error_by_the_format_itself() {
        for format in Format::ALL {
            for (kind, _) in KINDS {
                let event = stream_error(format, &refusal(kind));
                if matches!(format, Format::Grpc | Format::Unknown) {
                    assert!(event.is_empty());
                    continue;
                }
                let mut reader = AnswerReader::new(format, 200, Some("text/event-stream"));
                reader.count(&event);
                let answer = reader.finish(true);
                assert!(answer.error.is_some(), "{format:?} {kind:?}");
                assert_eq!((answer.events, answer.complete), (1, true));
            }
        }
    }

    #[test]
    fn a_refusal_is_read_as_an_error_by_the_format_itself() {
        for (format, code) in [
            (Format::OpenaiChat, "permission_denied"),
            (Format::OpenaiResponses, "permission_denied"),
            (Format::OpenaiCompletions, "permission_denied"),
            (Format::AnthropicMessages, "permission_error"),
            (Format::GeminiGenerate, "PERMISSION_DENIED"),
        ] {
            let rendered = refusal(RefusalKind::PermissionDenied).render(format);
            let content_type = header(&rendered, "content-type");
            let mut reader = AnswerReader::new(format, rendered.status, content_type);
            reader.count(&rendered.body);
            assert_eq!(reader.finish(true).error.as_deref(), Some(code), "{format:?}");
        }
    }

    #[test]
    fn a_request_id_cannot_break_a_header() {
        let mut broken = refusal(RefusalKind::BadRequest);
        broken.request_id = "a\r\nset-cookie: b".into();
        let rendered = broken.render(Format::OpenaiChat);
        assert_eq!(header(&rendered, "x-request-id"), Some("aset-cookie:b"));
    }
}
