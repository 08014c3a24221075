//! Requests whose framing two parsers could read differently are refused (RFC 9112, section 11.2).
//!
//! Pingora repairs some of them (it drops a Content-Length beside a Transfer-Encoding). Whoever
//! stands behind or before us may repair them otherwise, so nothing is repaired here: no client
//! library sends such requests, and the raw head is at hand.

/// Why a request head is refused. The names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FramingFault {
    /// The head could not be parsed at all, or its first line is not three words.
    MalformedHead,
    /// The head is larger than is taken.
    HeadTooLarge,
    /// A line ends without CR LF, or a CR stands alone.
    BareLineBreak,
    /// A header line is continued on the next one (obs-fold).
    Folded,
    /// White space between field name and colon, or no name.
    FieldName,
    /// A control character in a field value.
    FieldValue,
    /// Content-Length beside Transfer-Encoding.
    LengthAndEncoding,
    /// More than one Content-Length.
    SeveralLengths,
    /// A Content-Length that is not a plain number.
    InvalidLength,
    /// A Transfer-Encoding other than `chunked` alone.
    TransferEncoding,
    /// No Host, or more than one.
    Host,
    /// An upgrade that would let another protocol through unseen (h2c over TLS).
    Upgrade,
    /// A chunked body that is not well formed.
    Chunks,
    /// HTTP/2: a pseudo-header out of place, unknown, missing or sent twice, or a field that
    /// HTTP/2 forbids.
    Http2Fields,
}

impl FramingFault {
    /// Label for metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MalformedHead => "malformed_head",
            Self::HeadTooLarge => "head_too_large",
            Self::BareLineBreak => "bare_line_break",
            Self::Folded => "obs_fold",
            Self::FieldName => "field_name",
            Self::FieldValue => "field_value",
            Self::LengthAndEncoding => "length_and_encoding",
            Self::SeveralLengths => "several_lengths",
            Self::InvalidLength => "invalid_length",
            Self::TransferEncoding => "transfer_encoding",
            Self::Host => "host",
            Self::Upgrade => "upgrade",
            Self::Chunks => "chunks",
            Self::Http2Fields => "http2_fields",
        }
    }
}

/// One field line of an HTTP/1 head, as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldLine<'a> {
    /// Name in the client's case.
    pub name: &'a [u8],
    /// Value without surrounding white space.
    pub value: &'a [u8],
}

/// How long a request's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none.
    None,
    /// As the Content-Length says, in bytes.
    Known(u64),
    /// As its chunks say.
    Chunked,
}

/// A sound HTTP/1 request head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http1Head<'a> {
    /// Field lines in order.
    pub fields: Vec<FieldLine<'a>>,
    /// Length of the body that follows.
    pub body: BodyLength,
    /// Whether this opens a WebSocket (RFC 6455, section 4.1).
    pub websocket: bool,
}

/// Reads a raw HTTP/1 request head, from the request line to the empty line, and refuses it where
/// it is ambiguous.
///
/// `over_tls` tells whether an upgrade to h2c can be meant honestly (RFC 9113, section 3.1: it
/// cannot over TLS).
///
/// # Errors
/// The first fault found.
pub fn read_http1(raw: &[u8], over_tls: bool) -> Result<Http1Head<'_>, FramingFault> {
    let mut lines = lines(raw);
    let request_line = lines.next().ok_or(FramingFault::MalformedHead)??;
    check_request_line(request_line)?;
    let http10 = request_line.ends_with(b"HTTP/1.0");
    let get = request_line.starts_with(b"GET ");
    let mut fields = Vec::with_capacity(16);
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        fields.push(field(line)?);
    }
    let body = check(&fields, http10)?;
    let websocket = check_upgrade(&fields, get && !http10 && body == BodyLength::None, over_tls)?;
    Ok(Http1Head { fields, body, websocket })
}

/// `method SP request-target SP HTTP-version` (RFC 9112, section 3), nothing looser.
fn check_request_line(line: &[u8]) -> Result<(), FramingFault> {
    let mut words = line.split(|b| *b == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let sound = method.is_some_and(|m| !m.is_empty() && m.iter().all(|b| is_token_byte(*b)))
        && target.is_some_and(|t| !t.is_empty() && t.iter().all(|b| *b > 0x20 && *b != 0x7f))
        && matches!(version, Some(b"HTTP/1.1" | b"HTTP/1.0"))
        && words.next().is_none();
    if sound { Ok(()) } else { Err(FramingFault::MalformedHead) }
}

/// Whether a WebSocket is opened, the one upgrade that is passed on.
///
/// A request that asks for it and could not get it (another method, a body, no `Connection:
/// upgrade`) is one that two parties would read differently: an upgrade to the one, the start of a
/// further request to the other.
fn check_upgrade(
    fields: &[FieldLine<'_>],
    may_upgrade: bool,
    over_tls: bool,
) -> Result<bool, FramingFault> {
    let named = |name: &'static str| {
        let fields = fields.iter();
        fields.filter(move |field| field.name.eq_ignore_ascii_case(name.as_bytes()))
    };
    let mut upgrades = named("upgrade");
    let Some(upgrade) = upgrades.next() else { return Ok(false) };
    if !upgrade.value.eq_ignore_ascii_case(b"websocket") {
        // Clients offer h2c on plain text (curl, Java), and the offer is not taken up. Over TLS it
        // is never meant (RFC 9113, section 3.1).
        return if over_tls { Err(FramingFault::Upgrade) } else { Ok(false) };
    }
    let connection = named("connection").any(|field| {
        let mut options = field.value.split(|b| *b == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    if may_upgrade && connection && upgrades.next().is_none() {
        Ok(true)
    } else {
        Err(FramingFault::Upgrade)
    }
}

fn check(fields: &[FieldLine<'_>], http10: bool) -> Result<BodyLength, FramingFault> {
    let (mut lengths, mut encodings, mut hosts) = (0_u32, 0_u32, 0_u32);
    let mut body = BodyLength::None;
    for field in fields {
        match field.name.len() {
            14 if field.name.eq_ignore_ascii_case(b"content-length") => {
                lengths += 1;
                body = BodyLength::Known(read_length(field.value)?);
            }
            17 if field.name.eq_ignore_ascii_case(b"transfer-encoding") => {
                encodings += 1;
                body = BodyLength::Chunked;
                if http10 || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(FramingFault::TransferEncoding);
                }
            }
            4 if field.name.eq_ignore_ascii_case(b"host") => hosts += 1,
            _ => {}
        }
    }
    match (lengths, encodings) {
        (1.., 1..) => Err(FramingFault::LengthAndEncoding),
        (2.., _) => Err(FramingFault::SeveralLengths),
        (_, 2..) => Err(FramingFault::TransferEncoding),
        _ if hosts > 1 || (hosts == 0 && !http10) => Err(FramingFault::Host),
        _ => Ok(body),
    }
}

/// A plain number, and only one (RFC 9110, section 8.6).
fn read_length(value: &[u8]) -> Result<u64, FramingFault> {
    if value.contains(&b',') {
        return Err(FramingFault::SeveralLengths);
    }
    let plain = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    if !plain {
        return Err(FramingFault::InvalidLength);
    }
    Ok(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

/// Splits at CR LF; a CR or LF anywhere else is a fault.
fn lines(raw: &[u8]) -> impl Iterator<Item = Result<&[u8], FramingFault>> {
    let mut rest = raw;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.iter().position(|b| matches!(b, b'\r' | b'\n'));
        Some(match end {
            Some(end) if rest[end..].starts_with(b"\r\n") => {
                let line = &rest[..end];
                rest = &rest[end + 2..];
                Ok(line)
            }
            _ => {
                rest = &[];
                Err(FramingFault::BareLineBreak)
            }
        })
    })
}

fn field(line: &[u8]) -> Result<FieldLine<'_>, FramingFault> {
    if matches!(line[0], b' ' | b'\t') {
        return Err(FramingFault::Folded);
    }
    let colon = line.iter().position(|b| *b == b':').ok_or(FramingFault::FieldName)?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if name.is_empty() || !name.iter().all(|b| is_token_byte(*b)) {
        return Err(FramingFault::FieldName);
    }
    if value.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f) {
        return Err(FramingFault::FieldValue);
    }
    Ok(FieldLine { name, value })
}

/// A character of a token (RFC 9110, section 5.6.2).
#[must_use]
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[doc(hidden)]
pub fn fuzz_head(data: &[u8]) {
    if let Ok(head) = read_http1(data, true) {
        assert!(
            head.fields.iter().map(|f| f.name.len() + f.value.len()).sum::<usize>() <= data.len()
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault_of(fields: &str) -> Option<FramingFault> {
        let raw = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        read_http1(raw.as_bytes(), true).err()
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        use FramingFault::*;
        let cases: &[(&str, Option<FramingFault>)] = &[
            ("Content-Length: 5\r\n", None),
            ("content-length:5\r\n", None),
            ("Transfer-Encoding: chunked\r\n", None),
            ("X-Tab: a\tb\r\n", None),
            ("X-Latin: \u{e9}\r\n", None),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Some(LengthAndEncoding)),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Some(LengthAndEncoding)),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", Some(SeveralLengths)),
            ("Content-Length: 5, 5\r\n", Some(SeveralLengths)),
            ("Content-Length: +5\r\n", Some(InvalidLength)),
            ("Content-Length: 0x5\r\n", Some(InvalidLength)),
            ("Content-Length:\r\n", Some(InvalidLength)),
            ("Content-Length: 99999999999999999999\r\n", Some(InvalidLength)),
            ("Transfer-Encoding: gzip, chunked\r\n", Some(TransferEncoding)),
            ("Transfer-Encoding: identity\r\n", Some(TransferEncoding)),
            ("Transfer-Encoding: xchunked\r\n", Some(TransferEncoding)),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Some(TransferEncoding),
            ),
            ("Transfer-Encoding : chunked\r\n", Some(FieldName)),
            (" Transfer-Encoding: chunked\r\n", Some(Folded)),
            ("X-A: b\r\n continued\r\n", Some(Folded)),
            ("X-A: b\nX-B: c\r\n", Some(BareLineBreak)),
            ("X-A: b\rX-B: c\r\n", Some(BareLineBreak)),
            ("X-A: b\0c\r\n", Some(FieldValue)),
            ("X A: b\r\n", Some(FieldName)),
            (": b\r\n", Some(FieldName)),
            ("nonsense\r\n", Some(FieldName)),
            ("Host: b\r\n", Some(Host)),
            ("Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", Some(Upgrade)),
            ("Upgrade: websocket, h2c\r\n", Some(Upgrade)),
        ];
        for (fields, wanted) in cases {
            assert_eq!(fault_of(fields), *wanted, "{fields:?}");
        }
    }

    #[test]
    fn http10_needs_no_host_and_has_no_transfer_encoding() {
        assert!(read_http1(b"GET / HTTP/1.0\r\n\r\n", false).is_ok());
        assert_eq!(read_http1(b"GET / HTTP/1.1\r\n\r\n", false), Err(FramingFault::Host));
        assert_eq!(
            read_http1(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", false),
            Err(FramingFault::TransferEncoding)
        );
    }

    #[test]
    fn a_websocket_is_the_one_upgrade() {
        use FramingFault::Upgrade;
        let plain = "Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n";
        let cases: &[(&str, &str, Result<bool, FramingFault>)] = &[
            ("GET / HTTP/1.1", plain, Ok(true)),
            ("GET / HTTP/1.1", "", Ok(false)),
            ("GET / HTTP/1.1", "Connection: upgrade\r\n", Ok(false)),
            ("GET / HTTP/1.1", "Upgrade: websocket\r\n", Err(Upgrade)),
            ("POST / HTTP/1.1", plain, Err(Upgrade)),
            ("GET / HTTP/1.0", plain, Err(Upgrade)),
            ("GET / HTTP/1.1", "Upgrade: h2c\r\nConnection: Upgrade\r\n", Err(Upgrade)),
        ];
        for (line, fields, wanted) in cases {
            let raw = format!("{line}\r\nHost: a\r\n{fields}\r\n");
            let seen = read_http1(raw.as_bytes(), true).map(|head| head.websocket);
            assert_eq!(seen, *wanted, "{line} {fields:?}");
        }
        let with_body = format!("GET / HTTP/1.1\r\nHost: a\r\n{plain}Content-Length: 3\r\n\r\n");
        assert_eq!(read_http1(with_body.as_bytes(), true), Err(Upgrade));
    }

    #[test]
    fn a_request_line_has_three_words() {
        for line in [
            "GET /a /x HTTP/1.1",
            "GET  / HTTP/1.1",
            "GET /",
            "GET / HTTP/2.0",
            "GET / http/1.1",
            "GET /\t HTTP/1.1",
            "G(T / HTTP/1.1",
            " GET / HTTP/1.1",
        ] {
            let raw = format!("{line}\r\nHost: a\r\n\r\n");
            assert_eq!(
                read_http1(raw.as_bytes(), true),
                Err(FramingFault::MalformedHead),
                "{line}"
            );
        }
    }

    #[test]
    fn the_bodys_length_is_read() {
        let body = |fields: &str| {
            let raw = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            read_http1(raw.as_bytes(), true).unwrap().body
        };
        assert_eq!(body(""), BodyLength::None);
        assert_eq!(body("Content-Length: 0042\r\n"), BodyLength::Known(42));
        assert_eq!(body("Transfer-Encoding: Chunked\r\n"), BodyLength::Chunked);
    }

    #[test]
    fn plain_text_clients_may_offer_h2c() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n";
        assert!(read_http1(head, false).is_ok());
    }

    #[test]
    fn fields_keep_order_and_case() {
        let head = read_http1(b"GET / HTTP/1.1\r\nhOsT: a\r\nX-b:  c \r\n\r\n", true).unwrap();
        let fields = head.fields;
        assert_eq!(fields[0], FieldLine { name: b"hOsT", value: b"a" });
        assert_eq!(fields[1], FieldLine { name: b"X-b", value: b"c" });
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(data in proptest::collection::vec(any::<u8>(), 0..512)) {
            fuzz_head(&data);
        }

        #[test]
        fn no_head_like_bytes_make_it_panic(data in "[a-z:\\r\\n \\t,0-9]{0,200}") {
            fuzz_head(format!("GET / HTTP/1.1\r\n{data}\r\n\r\n").as_bytes());
        }
    }
}
