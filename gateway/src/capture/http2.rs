//! The HTTP/2 tap: reads a client's frames on their way to the HTTP driver.
//!
//! It matters because the driver hides what distinguishes clients: the SETTINGS and their order,
//! the first WINDOW_UPDATE, PRIORITY frames, and each request's header order with its
//! pseudo-headers (the HTTP/2 fingerprint that Akamai described in 2017). Sources: RFC 9113,
//! RFC 7540, section 5.3 (priority), RFC 7541 (HPACK).
//!
//! DATA and all other frames pass as they are. A header block is held until its END_HEADERS,
//! decoded in wire order, and passed on with one field more: `x-stillgate-capture:
//! <nonce>:<stream id>`, a never-indexed literal, which leaves both compression states alone. The
//! proxy takes the field off and claims the capture with it. Requests of one connection are
//! served concurrently, and the driver tells no stream id: without the marker a capture could be
//! given to another request. A client that sends such a field itself does not know the nonce, and
//! ours stands last.
//!
//! The last frame of a block grows in place. A further CONTINUATION is sent only where the frame
//! is full, because the driver ends the connection rather than the stream for a malformed block
//! that has one.
//!
//! Where the tap cannot follow (frames out of order, a lost compression state, a flood), it hands
//! on what it holds and passes the rest of the connection unread: to raise the right error is the
//! driver's affair. Requests that it lets through in spite of that come without a capture, and the
//! proxy refuses them ([`Http2Connection::lost`]).

use std::collections::VecDeque;
use std::fmt;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use detectors::{Http2Capture, Priority};
use parking_lot::Mutex;

use super::hpack::{Decoder, entry_size};
use crate::limits::{
    H2_PRIORITY_FRAMES_MAX, H2_SETTINGS_MAX, H2_UNCLAIMED_MAX, HPACK_TABLE_BYTES_MAX,
};
use crate::proxy::framing::is_token_byte;

/// Name of the field that ties a request to its capture. The proxy removes it from each request.
pub const MARKER_NAME: &str = "x-stillgate-capture";

/// What becomes of bytes that the tap was fed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    /// They pass as they are.
    AsIs,
    /// These stand in their place; none while a header block is held.
    Replaced(Bytes),
}

/// Bounds that the operator sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapLimits {
    /// Size of a request's header list (RFC 9113, section 6.5.2).
    pub header_list_bytes_max: usize,
    /// Fields in a request, pseudo-headers included.
    pub header_fields_max: usize,
}

impl TapLimits {
    /// Encoded bytes of a block. Huffman coding can make text up to four times longer.
    fn block_bytes_max(self) -> usize {
        self.header_list_bytes_max.saturating_mul(4)
    }

    /// Frames of a block: what its largest list fills, a quarter more for clients that pack
    /// loosely, and some for small bounds.
    fn block_frames_max(self) -> usize {
        let full = self.header_list_bytes_max / FRAME_BYTES_MAX;
        (full + full / 4).max(5) + 2
    }

    /// Header bytes of the requests that wait to be claimed.
    fn unclaimed_bytes_max(self) -> usize {
        self.header_list_bytes_max.saturating_mul(32)
    }
}

/// What a well-behaved HTTP/2 client never sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum H2Abuse {
    /// A pseudo-header after a regular field (RFC 9113, section 8.3).
    PseudoAfterRegular,
    /// A pseudo-header that requests do not have.
    PseudoUnknown,
    /// A pseudo-header twice.
    PseudoDuplicate,
    /// A request without one of its pseudo-headers.
    PseudoMissing,
    /// An upper-case letter in a field name (RFC 9113, section 8.2.1).
    UppercaseName,
    /// A field of the connection, such as `transfer-encoding` (RFC 9113, section 8.2.2).
    ConnectionSpecific,
    /// `te` with another value than `trailers`.
    TeNotTrailers,
    /// A character in a field name that names do not have (RFC 9113, section 8.2.1).
    InvalidName,
    /// A control character in a field value (RFC 9113, section 8.2.1).
    InvalidValue,
    /// A pseudo-header whose value it cannot have: no path, or a space in it.
    InvalidPseudo,
    /// More than one Host, or one that is not the authority (RFC 9113, section 8.3.1).
    SeveralHosts,
    /// More than one Content-Length.
    SeveralLengths,
    /// A header list larger than the limit, before or after decoding.
    HeaderListTooLarge,
    /// More fields than the limit.
    TooManyFields,
    /// More frames in a header block than its size can need.
    ContinuationFlood,
    /// A block that HPACK cannot decode.
    MalformedHpack,
    /// Frames that cannot follow each other, or with impossible lengths or stream ids.
    MalformedFrame,
    /// Bytes that are not HTTP/2.
    NotHttp2,
}

impl H2Abuse {
    /// Every kind.
    pub const ALL: [Self; 18] = [
        Self::PseudoAfterRegular,
        Self::PseudoUnknown,
        Self::PseudoDuplicate,
        Self::PseudoMissing,
        Self::UppercaseName,
        Self::ConnectionSpecific,
        Self::TeNotTrailers,
        Self::InvalidName,
        Self::InvalidValue,
        Self::InvalidPseudo,
        Self::SeveralHosts,
        Self::SeveralLengths,
        Self::HeaderListTooLarge,
        Self::TooManyFields,
        Self::ContinuationFlood,
        Self::MalformedHpack,
        Self::MalformedFrame,
        Self::NotHttp2,
    ];

    /// The name used in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PseudoAfterRegular => "pseudo_after_regular",
            Self::PseudoUnknown => "pseudo_unknown",
            Self::PseudoDuplicate => "pseudo_duplicate",
            Self::PseudoMissing => "pseudo_missing",
            Self::UppercaseName => "uppercase_name",
            Self::ConnectionSpecific => "connection_specific",
            Self::TeNotTrailers => "te_not_trailers",
            Self::InvalidName => "invalid_name",
            Self::InvalidValue => "invalid_value",
            Self::InvalidPseudo => "invalid_pseudo",
            Self::SeveralHosts => "several_hosts",
            Self::SeveralLengths => "several_lengths",
            Self::HeaderListTooLarge => "header_list_too_large",
            Self::TooManyFields => "too_many_fields",
            Self::ContinuationFlood => "continuation_flood",
            Self::MalformedHpack => "malformed_hpack",
            Self::MalformedFrame => "malformed_frame",
            Self::NotHttp2 => "not_http2",
        }
    }
}

/// What the opening of a connection tells, up to its first request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct H2Prefix {
    /// First SETTINGS frame: `(identifier, value)` in wire order.
    pub settings: Vec<(u16, u32)>,
    /// Increment of the first WINDOW_UPDATE of the connection.
    pub window_update: Option<u32>,
    /// PRIORITY frames.
    pub priority: Vec<Priority>,
    /// Settings and PRIORITY frames beyond the bounds on them.
    pub dropped: u32,
    /// `settings|window_update|priority|pseudo`, with the first request's pseudo-header order.
    pub akamai: String,
}

/// A request as the client sent it.
#[derive(Clone, PartialEq, Eq)]
pub struct H2Request {
    /// Stream of the request.
    pub stream_id: u32,
    /// Fields in wire order, pseudo-headers included; cut where the list is too large. They hold
    /// credentials: `Debug` does not show them.
    pub headers: Vec<(Bytes, Bytes)>,
    /// Priority part of the HEADERS frame.
    pub request_priority: Option<Priority>,
    /// The first thing in this request that no well-behaved client sends.
    pub abuse: Option<H2Abuse>,
    /// The connection's opening.
    pub prefix: Arc<H2Prefix>,
}

impl H2Request {
    /// Order of the pseudo-headers, such as `m,a,s,p`; `?` stands for an unknown one.
    #[must_use]
    pub fn pseudo(&self) -> String {
        pseudo_order(self.headers.iter().map(|(name, _)| &name[..]))
    }

    /// The fingerprint of this request and its connection.
    #[must_use]
    pub fn capture(&self) -> Http2Capture {
        Http2Capture {
            settings: self.prefix.settings.clone(),
            window_update: self.prefix.window_update.unwrap_or(0),
            priority: self.prefix.priority.clone(),
            pseudo: self.pseudo(),
            akamai: self.prefix.akamai.clone(),
            stream_id: self.stream_id,
            request_priority: self.request_priority,
        }
    }

    fn bytes(&self) -> usize {
        self.headers.iter().map(|(name, value)| entry_size(name, value)).sum()
    }
}

impl fmt::Debug for H2Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H2Request")
            .field("stream_id", &self.stream_id)
            .field("fields", &self.headers.len())
            .field("abuse", &self.abuse)
            .finish_non_exhaustive()
    }
}

/// What the tap of a connection has seen, shared with the proxy.
pub struct Http2Connection {
    nonce: u64,
    on_abuse: Option<Box<dyn Fn(H2Abuse) + Send + Sync>>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Captured and not yet claimed, by rising stream id.
    unclaimed: VecDeque<H2Request>,
    unclaimed_bytes: usize,
    dropped: u64,
    lost: Option<H2Abuse>,
}

impl fmt::Debug for Http2Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Connection").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Http2Connection {
    /// A connection whose markers carry `nonce`, which the client must not be able to guess.
    #[must_use]
    pub fn new(nonce: u64) -> Self {
        Self { nonce, on_abuse: None, seen: Mutex::default() }
    }

    /// Has each abuse told to `counter` when it is seen: h2 refuses most of these requests itself,
    /// so that no request comes of them that could tell.
    #[must_use]
    pub fn on_abuse(mut self, counter: impl Fn(H2Abuse) + Send + Sync + 'static) -> Self {
        self.on_abuse = Some(Box::new(counter));
        self
    }

    /// The capture of the request that carries these values of [`MARKER_NAME`]. The last one
    /// counts: the tap appends its own behind whatever the client sent. Each capture is given out
    /// once. `None`: the tap has lost the connection, or the request was dropped for space.
    pub fn claim<'a>(&self, markers: impl IntoIterator<Item = &'a [u8]>) -> Option<H2Request> {
        let stream_id = self.stream_id_of(markers.into_iter().last()?)?;
        let mut seen = self.seen.lock();
        let position =
            seen.unclaimed.binary_search_by_key(&stream_id, |request| request.stream_id).ok()?;
        let request = seen.unclaimed.remove(position)?;
        seen.unclaimed_bytes -= request.bytes();
        Some(request)
    }

    /// Why the tap no longer reads this connection, if it does not.
    #[must_use]
    pub fn lost(&self) -> Option<H2Abuse> {
        self.seen.lock().lost
    }

    /// Captures that were dropped unclaimed because too many waited: the driver refused their
    /// requests, or is far behind.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.seen.lock().dropped
    }

    /// Captures that wait to be claimed.
    #[must_use]
    pub fn unclaimed(&self) -> usize {
        self.seen.lock().unclaimed.len()
    }

    fn push(&self, request: H2Request, bytes_max: usize) {
        if let (Some(abuse), Some(counter)) = (request.abuse, &self.on_abuse) {
            counter(abuse);
        }
        let mut seen = self.seen.lock();
        seen.unclaimed_bytes += request.bytes();
        seen.unclaimed.push_back(request);
        while seen.unclaimed.len() > H2_UNCLAIMED_MAX || seen.unclaimed_bytes > bytes_max {
            let Some(oldest) = seen.unclaimed.pop_front() else { break };
            seen.unclaimed_bytes -= oldest.bytes();
            seen.dropped += 1;
        }
    }

    fn lose(&self, abuse: H2Abuse) {
        if let Some(counter) = &self.on_abuse {
            counter(abuse);
        }
        self.seen.lock().lost = Some(abuse);
    }

    fn marker(&self, stream_id: u32) -> String {
        format!("{:016x}:{stream_id}", self.nonce)
    }

    fn stream_id_of(&self, marker: &[u8]) -> Option<u32> {
        let (nonce, stream_id) = std::str::from_utf8(marker).ok()?.split_once(':')?;
        let ours = format!("{:016x}", self.nonce);
        if nonce == ours { stream_id.parse().ok() } else { None }
    }
}

/// Reads the bytes that a client sends on one connection.
pub struct Tap {
    connection: Arc<Http2Connection>,
    limits: TapLimits,
    state: State,
    /// Header of the frame that is being read, and how many of its bytes have come.
    header: [u8; FRAME_HEADER_BYTES],
    header_len: usize,
    frame: Frame,
    /// The opening until the first request, the finished prefix from then on.
    opening: Opening,
    prefix: Option<Arc<H2Prefix>>,
    block: Block,
    decoder: Decoder,
    last_stream_id: u32,
    /// Replacement bytes of the current call.
    output: BytesMut,
    /// Decoded fields of the current block, end to end, and the lengths of their names and values.
    text: Vec<u8>,
    spans: Vec<(usize, usize)>,
}

/// Where in the stream the tap is.
#[derive(Clone, Copy, Debug)]
enum State {
    /// In the connection preface, this far.
    Preface(usize),
    /// In a frame header.
    Header,
    /// In the payload of a frame that passes, with this much to come.
    Pass(usize),
    /// In the payload of a frame that is held, with this much to come.
    Hold(usize),
    /// The tap has lost the connection.
    Lost,
}

#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream_id: u32,
}

/// The connection's first frames.
#[derive(Debug, Default)]
struct Opening {
    settings_seen: bool,
    prefix: H2Prefix,
    /// Whether the payload that passes is being copied, and the copy.
    copying: bool,
    payload: Vec<u8>,
}

/// The header block that is being held.
#[derive(Debug, Default)]
struct Block {
    open: bool,
    frames: usize,
    /// Frames as they came.
    held: Vec<u8>,
    /// Where the last frame starts in `held`, and how much padding ends it.
    last_frame_at: usize,
    padding: usize,
    /// Block fragments, end to end.
    fragments: Vec<u8>,
    priority: Option<Priority>,
}

impl Tap {
    /// A tap at the start of a connection.
    #[must_use]
    pub fn new(connection: Arc<Http2Connection>, limits: TapLimits) -> Self {
        Self {
            connection,
            limits,
            state: State::Preface(0),
            header: [0; FRAME_HEADER_BYTES],
            header_len: 0,
            frame: Frame::default(),
            opening: Opening::default(),
            prefix: None,
            block: Block::default(),
            decoder: Decoder::new(HPACK_TABLE_BYTES_MAX),
            last_stream_id: 0,
            output: BytesMut::new(),
            text: Vec::new(),
            spans: Vec::new(),
        }
    }

    /// Takes the next bytes from the client.
    pub fn feed(&mut self, input: &[u8]) -> Passage {
        // `input[settled..at]` passes as it is; what is before has been copied to the output, or
        // is held. As long as nothing is, no byte is copied.
        let mut settled = 0;
        let mut at = 0;
        let mut replaced = false;
        while at < input.len() {
            let rest = &input[at..];
            match self.state {
                State::Lost => at = input.len(),
                State::Preface(matched) => {
                    let (part, expected) = overlap(rest, &PREFACE[matched..]);
                    at += part.len();
                    if part != expected {
                        self.lose(H2Abuse::NotHttp2);
                    } else if matched + part.len() == PREFACE.len() {
                        self.state = State::Header;
                    } else {
                        self.state = State::Preface(matched + part.len());
                    }
                }
                State::Header => {
                    let start = at;
                    let earlier = self.header_len;
                    let part = &rest[..rest.len().min(FRAME_HEADER_BYTES - earlier)];
                    self.header[earlier..][..part.len()].copy_from_slice(part);
                    self.header_len += part.len();
                    at += part.len();
                    let frame = self.take_header();
                    if let Some(frame) = frame
                        && self.passes(frame)
                    {
                        // Of its header only what was kept back by earlier calls is owed.
                        replaced |= earlier > 0;
                        self.output.put_slice(&self.header[..earlier]);
                        self.start_passing(frame);
                        continue;
                    }
                    self.output.put_slice(&input[settled..start]);
                    settled = at;
                    replaced = true;
                    if let Some(frame) = frame {
                        self.start_holding(frame);
                    }
                }
                State::Pass(left) => {
                    let part = &rest[..rest.len().min(left)];
                    self.opening.copy(part);
                    at += part.len();
                    self.state = State::Pass(left - part.len());
                    if part.len() == left {
                        self.opening.finish_frame(self.frame);
                        self.state = State::Header;
                    }
                }
                State::Hold(left) => {
                    let part = &rest[..rest.len().min(left)];
                    self.block.held.extend_from_slice(part);
                    at += part.len();
                    settled = at;
                    replaced = true;
                    self.state = State::Hold(left - part.len());
                    if part.len() == left {
                        self.finish_frame();
                    }
                }
            }
        }
        if !replaced {
            return Passage::AsIs;
        }
        self.output.put_slice(&input[settled..]);
        Passage::Replaced(self.output.split().freeze())
    }

    /// The frame whose header is complete, if it is.
    fn take_header(&mut self) -> Option<Frame> {
        if self.header_len < FRAME_HEADER_BYTES {
            return None;
        }
        self.header_len = 0;
        let [high, middle, low, kind, flags, stream @ ..] = self.header;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let stream_id = u32::from_be_bytes(stream) & STREAM_ID_MASK;
        Some(Frame { length, kind, flags, stream_id })
    }

    /// Whether a frame has nothing to do with header blocks.
    fn passes(&self, frame: Frame) -> bool {
        !self.block.open && frame.kind != HEADERS && frame.kind != CONTINUATION
    }

    fn start_passing(&mut self, frame: Frame) {
        self.frame = frame;
        self.opening.start_frame(frame, self.prefix.is_none());
        if frame.length == 0 {
            self.opening.finish_frame(frame);
        } else {
            self.state = State::Pass(frame.length);
        }
    }

    fn start_holding(&mut self, frame: Frame) {
        // Nothing may stand between the frames of a block (RFC 9113, section 6.10).
        let follows = if self.block.open {
            frame.kind == CONTINUATION && frame.stream_id == self.frame.stream_id
        } else {
            frame.kind == HEADERS && frame.stream_id % 2 == 1
        };
        self.frame = frame;
        self.block.last_frame_at = self.block.held.len();
        self.block.held.extend_from_slice(&self.header);
        if !follows || frame.length > FRAME_BYTES_MAX {
            return self.lose(H2Abuse::MalformedFrame);
        }
        self.block.frames += 1;
        if frame.length == 0 {
            self.finish_frame();
        } else {
            self.state = State::Hold(frame.length);
        }
    }

    /// Takes a complete frame of a header block.
    fn finish_frame(&mut self) {
        self.state = State::Header;
        if self.frame.kind == HEADERS {
            self.block.open = true;
        }
        if !self.block.take_fragment(self.frame) {
            return self.lose(H2Abuse::MalformedFrame);
        }
        if self.block.fragments.len() > self.limits.block_bytes_max() {
            return self.lose(H2Abuse::HeaderListTooLarge);
        }
        if self.block.frames > self.limits.block_frames_max() {
            return self.lose(H2Abuse::ContinuationFlood);
        }
        if self.frame.flags & END_HEADERS != 0 {
            self.finish_block();
        }
    }

    /// Takes a complete header block: a request, or the trailers of one.
    fn finish_block(&mut self) {
        let Self { limits, decoder, block, text, spans, .. } = self;
        let mut rules = Rules::default();
        let mut list_bytes = 0;
        text.clear();
        spans.clear();
        // The whole block is decoded even past the limits: the driver's table follows it too.
        let decoded = decoder.decode(&block.fragments, |name, value| {
            list_bytes += entry_size(name, value);
            rules.field(name, value);
            if list_bytes > limits.header_list_bytes_max {
                rules.break_with(H2Abuse::HeaderListTooLarge);
            } else if spans.len() >= limits.header_fields_max {
                rules.break_with(H2Abuse::TooManyFields);
            } else {
                text.extend_from_slice(name);
                text.extend_from_slice(value);
                spans.push((name.len(), value.len()));
            }
        });
        if decoded.is_err() {
            return self.lose(H2Abuse::MalformedHpack);
        }
        let stream_id = self.frame.stream_id;
        if stream_id <= self.last_stream_id {
            self.output.put_slice(&self.block.held);
            return self.block.close();
        }
        self.last_stream_id = stream_id;
        self.emit_marked(stream_id);
        let headers = self.take_headers();
        let opening = &mut self.opening.prefix;
        let prefix = self.prefix.get_or_insert_with(|| {
            let mut prefix = std::mem::take(opening);
            prefix.akamai = akamai(&prefix, headers.iter().map(|(name, _)| &name[..]));
            Arc::new(prefix)
        });
        let request = H2Request {
            stream_id,
            headers,
            request_priority: self.block.priority.take(),
            abuse: rules.verdict(),
            prefix: prefix.clone(),
        };
        self.block.close();
        self.connection.push(request, self.limits.unclaimed_bytes_max());
    }

    /// The decoded fields as slices of one allocation.
    fn take_headers(&self) -> Vec<(Bytes, Bytes)> {
        let text = Bytes::copy_from_slice(&self.text);
        let mut at = 0;
        let mut cut = |length: usize| {
            let slice = text.slice(at..at + length);
            at += length;
            slice
        };
        self.spans.iter().map(|(name, value)| (cut(*name), cut(*value))).collect()
    }

    /// Passes the held frames on with the marker at the end of their block.
    fn emit_marked(&mut self, stream_id: u32) {
        let value = self.connection.marker(stream_id);
        let Block { held, last_frame_at, padding, .. } = &mut self.block;
        let marker_bytes = 3 + MARKER_NAME.len() + value.len();
        let payload_bytes = held.len() - *last_frame_at - FRAME_HEADER_BYTES;
        self.output.reserve(held.len() + marker_bytes + FRAME_HEADER_BYTES);
        let (head, tail) = if payload_bytes + marker_bytes <= FRAME_BYTES_MAX {
            put_length(&mut held[*last_frame_at..], payload_bytes + marker_bytes);
            held.split_at(held.len() - *padding)
        } else {
            held[*last_frame_at + 4] &= !END_HEADERS;
            (&held[..], &[][..])
        };
        self.output.put_slice(head);
        if payload_bytes + marker_bytes > FRAME_BYTES_MAX {
            let mut header = [0, 0, 0, CONTINUATION, END_HEADERS, 0, 0, 0, 0];
            put_length(&mut header, marker_bytes);
            header[5..].copy_from_slice(&stream_id.to_be_bytes());
            self.output.put_slice(&header);
        }
        // A never-indexed literal with a new name, both strings plain (RFC 7541, section 6.2.3).
        // Both lengths stay below the seven bits that one byte has for them.
        self.output.put_slice(&[0x10, MARKER_NAME.len() as u8]);
        self.output.put_slice(MARKER_NAME.as_bytes());
        self.output.put_u8(value.len() as u8);
        self.output.put_slice(value.as_bytes());
        self.output.put_slice(tail);
    }

    /// Hands on what is held and stops reading.
    fn lose(&mut self, abuse: H2Abuse) {
        self.output.put_slice(&self.block.held);
        self.block = Block::default();
        self.text = Vec::new();
        self.spans = Vec::new();
        self.decoder = Decoder::new(0);
        self.state = State::Lost;
        self.connection.lose(abuse);
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Opening {
    fn start_frame(&mut self, frame: Frame, open: bool) {
        self.copying = open
            && match frame.kind {
                SETTINGS => frame.flags & ACK == 0 && !self.settings_seen,
                WINDOW_UPDATE => frame.stream_id == 0 && self.prefix.window_update.is_none(),
                PRIORITY => true,
                _ => false,
            };
        self.payload.clear();
    }

    fn copy(&mut self, part: &[u8]) {
        if self.copying {
            // One setting more than is kept, so that overflow shows.
            let room = (H2_SETTINGS_MAX + 1) * SETTING_BYTES - self.payload.len();
            self.payload.extend_from_slice(&part[..part.len().min(room)]);
        }
    }

    fn finish_frame(&mut self, frame: Frame) {
        if !std::mem::take(&mut self.copying) {
            return;
        }
        let prefix = &mut self.prefix;
        match (frame.kind, &self.payload[..]) {
            (SETTINGS, payload) => {
                self.settings_seen = true;
                let settings = payload.as_chunks::<SETTING_BYTES>().0;
                prefix.dropped += u32::from(settings.len() > H2_SETTINGS_MAX);
                let read = |[a, b, c, d, e, f]: &[u8; SETTING_BYTES]| {
                    (u16::from_be_bytes([*a, *b]), u32::from_be_bytes([*c, *d, *e, *f]))
                };
                prefix.settings = settings.iter().take(H2_SETTINGS_MAX).map(read).collect();
            }
            (WINDOW_UPDATE, [a, b, c, d]) => {
                let increment = u32::from_be_bytes([*a, *b, *c, *d]) & STREAM_ID_MASK;
                prefix.window_update = Some(increment);
            }
            (PRIORITY, [a, b, c, d, weight]) => {
                if prefix.priority.len() < H2_PRIORITY_FRAMES_MAX {
                    let priority = priority(frame.stream_id, [*a, *b, *c, *d, *weight]);
                    prefix.priority.push(priority);
                } else {
                    prefix.dropped = prefix.dropped.saturating_add(1);
                }
            }
            _ => {}
        }
    }
}

impl Block {
    /// Appends the fragment of the frame that ends `held`; `false` when its padding or priority
    /// does not fit into it.
    fn take_fragment(&mut self, frame: Frame) -> bool {
        let mut payload = &self.held[self.last_frame_at + FRAME_HEADER_BYTES..];
        self.padding = 0;
        if frame.kind == HEADERS && frame.flags & PADDED != 0 {
            let Some((padding, rest)) = payload.split_first() else { return false };
            self.padding = usize::from(*padding);
            payload = rest;
        }
        if frame.kind == HEADERS && frame.flags & HAS_PRIORITY != 0 {
            let Some((bytes, rest)) = payload.split_first_chunk() else { return false };
            self.priority = Some(priority(frame.stream_id, *bytes));
            payload = rest;
        }
        let Some(length) = payload.len().checked_sub(self.padding) else { return false };
        self.fragments.extend_from_slice(&payload[..length]);
        true
    }

    fn close(&mut self) {
        if self.held.capacity() > KEPT_BYTES_MAX || self.fragments.capacity() > KEPT_BYTES_MAX {
            *self = Self::default();
        }
        self.open = false;
        self.frames = 0;
        self.held.clear();
        self.fragments.clear();
        self.priority = None;
    }
}

/// Of a host, whose letters have no case. It is compared within one request only.
fn digest(host: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for byte in host {
        hasher.write_u8(byte.to_ascii_lowercase());
    }
    hasher.finish()
}

/// The rules of RFC 9113, sections 8.2 and 8.3, applied field by field.
#[derive(Default)]
struct Rules {
    pseudo_seen: u8,
    regular_seen: bool,
    host_seen: bool,
    length_seen: bool,
    /// Digest of the authority, to compare a Host with.
    authority: Option<u64>,
    connect: bool,
    broken: Option<H2Abuse>,
}

impl Rules {
    fn field(&mut self, name: &[u8], value: &[u8]) {
        if name.first() == Some(&b':') {
            return self.pseudo(name, value);
        }
        self.regular_seen = true;
        if value.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
            self.break_with(H2Abuse::InvalidValue);
        }
        match name {
            b"host" => {
                let another = std::mem::replace(&mut self.host_seen, true);
                if another || self.authority.is_some_and(|authority| authority != digest(value)) {
                    self.break_with(H2Abuse::SeveralHosts);
                }
            }
            // h2 takes equal ones; HTTP/1 behind us would not.
            b"content-length" if std::mem::replace(&mut self.length_seen, true) => {
                self.break_with(H2Abuse::SeveralLengths);
            }
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding"
            | b"upgrade" => self.break_with(H2Abuse::ConnectionSpecific),
            b"te" if value != b"trailers" => self.break_with(H2Abuse::TeNotTrailers),
            _ if name.iter().any(u8::is_ascii_uppercase) => {
                self.break_with(H2Abuse::UppercaseName);
            }
            _ if name.is_empty() || !name.iter().all(|byte| is_token_byte(*byte)) => {
                self.break_with(H2Abuse::InvalidName);
            }
            _ => {}
        }
    }

    fn pseudo(&mut self, name: &[u8], value: &[u8]) {
        if self.regular_seen {
            self.break_with(H2Abuse::PseudoAfterRegular);
        }
        let bit = match pseudo_letter(name) {
            'm' => METHOD,
            's' => SCHEME,
            'p' => PATH,
            'a' => AUTHORITY,
            _ => return self.break_with(H2Abuse::PseudoUnknown),
        };
        if self.pseudo_seen & bit != 0 {
            self.break_with(H2Abuse::PseudoDuplicate);
        }
        let sound = match bit {
            METHOD => !value.is_empty() && value.iter().all(|byte| is_token_byte(*byte)),
            AUTHORITY => value.iter().all(|byte| *byte > 0x20 && *byte != 0x7f),
            _ => !value.is_empty() && value.iter().all(|byte| *byte > 0x20 && *byte != 0x7f),
        };
        if !sound {
            self.break_with(H2Abuse::InvalidPseudo);
        }
        if bit == AUTHORITY {
            self.authority = Some(digest(value));
        }
        self.pseudo_seen |= bit;
        self.connect |= bit == METHOD && value == b"CONNECT";
    }

    /// The first breach counts.
    fn break_with(&mut self, abuse: H2Abuse) {
        self.broken.get_or_insert(abuse);
    }

    fn verdict(mut self) -> Option<H2Abuse> {
        // A CONNECT has an authority and nothing else (RFC 9113, section 8.5).
        let needed = if self.connect { METHOD | AUTHORITY } else { METHOD | SCHEME | PATH };
        if self.pseudo_seen & needed != needed {
            self.break_with(H2Abuse::PseudoMissing);
        }
        self.broken
    }
}

const METHOD: u8 = 1;
const SCHEME: u8 = 2;
const PATH: u8 = 4;
const AUTHORITY: u8 = 8;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: usize = 9;
/// The frame size that every connection starts with, and that the gateway never raises
/// (RFC 9113, section 4.2).
const FRAME_BYTES_MAX: usize = 1 << 14;
const STREAM_ID_MASK: u32 = 0x7fff_ffff;
const SETTING_BYTES: usize = 6;
/// Buffer that an idle connection may keep after a large block.
const KEPT_BYTES_MAX: usize = 4 * 1024;

const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 0x01;
const END_HEADERS: u8 = 0x04;
const PADDED: u8 = 0x08;
const HAS_PRIORITY: u8 = 0x20;

fn overlap<'a>(a: &'a [u8], b: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    let length = a.len().min(b.len());
    (&a[..length], &b[..length])
}

fn put_length(header: &mut [u8], length: usize) {
    header[..3].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
}

/// RFC 7540, section 6.3. The weight on the wire is one less than the weight.
fn priority(stream_id: u32, [a, b, c, d, weight]: [u8; 5]) -> Priority {
    let dependency = u32::from_be_bytes([a, b, c, d]);
    Priority {
        stream_id,
        exclusive: dependency > STREAM_ID_MASK,
        depends_on: dependency & STREAM_ID_MASK,
        weight: u16::from(weight) + 1,
    }
}

fn pseudo_letter(name: &[u8]) -> char {
    match name {
        b":method" => 'm',
        b":authority" => 'a',
        b":scheme" => 's',
        b":path" => 'p',
        _ => '?',
    }
}

fn pseudo_order<'a>(names: impl Iterator<Item = &'a [u8]>) -> String {
    let mut order = String::with_capacity(8);
    for name in names.filter(|name| name.first() == Some(&b':')) {
        if !order.is_empty() {
            order.push(',');
        }
        order.push(pseudo_letter(name));
    }
    order
}

/// `settings|window_update|priority|pseudo`: `id:value` joined by semicolons, `00` without a
/// WINDOW_UPDATE, `stream:exclusive:depends_on:weight` joined by commas or `0` without a PRIORITY.
fn akamai<'a>(prefix: &H2Prefix, names: impl Iterator<Item = &'a [u8]>) -> String {
    let mut text = String::with_capacity(96);
    // Writing to a string cannot fail.
    let mut put = |args: fmt::Arguments<'_>| {
        let _ = text.write_fmt(args);
    };
    for (index, (id, value)) in prefix.settings.iter().enumerate() {
        let separator = if index > 0 { ";" } else { "" };
        put(format_args!("{separator}{id}:{value}"));
    }
    match prefix.window_update {
        Some(increment) => put(format_args!("|{increment}|")),
        None => put(format_args!("|00|")),
    }
    if prefix.priority.is_empty() {
        put(format_args!("0"));
    }
    for (index, priority) in prefix.priority.iter().enumerate() {
        let Priority { stream_id, exclusive, depends_on, weight } = priority;
        let separator = if index > 0 { "," } else { "" };
        put(format_args!("{separator}{stream_id}:{}:{depends_on}:{weight}", u8::from(*exclusive)));
    }
    put(format_args!("|{}", pseudo_order(names)));
    text
}

/// Entry point for the fuzzer: feeds `data` behind a preface, at once and cut by its first byte.
/// The output must be the same, and no longer than the input and its markers.
#[doc(hidden)]
pub fn fuzz_http2(data: &[u8]) {
    let step = data.first().map_or(1, |byte| usize::from(*byte) + 1);
    let bytes = [PREFACE, data].concat();
    let limits = TapLimits { header_list_bytes_max: 4096, header_fields_max: 64 };
    let run = |step: usize| {
        let connection = Arc::new(Http2Connection::new(7));
        let mut tap = Tap::new(connection.clone(), limits);
        let mut output = Vec::new();
        for part in bytes.chunks(step) {
            match tap.feed(part) {
                Passage::AsIs => output.extend_from_slice(part),
                Passage::Replaced(replacement) => output.extend_from_slice(&replacement),
            }
        }
        let seen = connection.seen.lock();
        let marked = seen.unclaimed.len() + seen.dropped as usize;
        let held = seen.unclaimed.iter().map(H2Request::bytes).sum::<usize>();
        assert_eq!(held, seen.unclaimed_bytes);
        assert!(held <= limits.unclaimed_bytes_max());
        (output, marked, seen.lost)
    };
    let at_once = run(bytes.len());
    let marker_bytes_max = FRAME_HEADER_BYTES + 3 + MARKER_NAME.len() + 27;
    assert!(at_once.0.len() <= bytes.len() + at_once.1 * marker_bytes_max);
    assert_eq!(at_once, run(step));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::capture::hpack::tests::huffman;

    const LIMITS: TapLimits =
        TapLimits { header_list_bytes_max: 64 * 1024, header_fields_max: 128 };
    const NONCE: u64 = 0x0123_4567_89ab_cdef;

    type Fields = Vec<(Vec<u8>, Vec<u8>)>;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    fn get(path: &str) -> Fields {
        fields(&[
            (":method", "GET"),
            (":authority", "api.example.com"),
            (":scheme", "https"),
            (":path", path),
            ("user-agent", "client/1.0"),
            ("accept", "*/*"),
        ])
    }

    fn frame(kind: u8, flags: u8, stream_id: u32, payload: &[u8]) -> Vec<u8> {
        let length = &(payload.len() as u32).to_be_bytes()[1..];
        [length, &[kind, flags], &stream_id.to_be_bytes(), payload].concat()
    }

    fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
        let payload: Vec<u8> = pairs
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        frame(SETTINGS, 0, 0, &payload)
    }

    fn window_update(stream_id: u32, increment: u32) -> Vec<u8> {
        frame(WINDOW_UPDATE, 0, stream_id, &increment.to_be_bytes())
    }

    fn priority_frame(stream_id: u32, depends_on: u32, weight: u8) -> Vec<u8> {
        frame(PRIORITY, 0, stream_id, &[&depends_on.to_be_bytes()[..], &[weight]].concat())
    }

    /// An independent encoder: plain strings, dynamic table used.
    struct Client(loona_hpack::Encoder<'static>);

    impl Client {
        fn new() -> Self {
            Self(loona_hpack::Encoder::new())
        }

        fn block(&mut self, fields: &Fields) -> Vec<u8> {
            self.0.encode(fields.iter().map(|(name, value)| (&name[..], &value[..])))
        }

        fn request(&mut self, stream_id: u32, fields: &Fields) -> Vec<u8> {
            frame(HEADERS, END_HEADERS | 1, stream_id, &self.block(fields))
        }
    }

    /// Plain literals without indexing, for fields that no encoder would send.
    fn literals(fields: &Fields) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                assert!(text.len() < 127);
                block.push(text.len() as u8);
                block.extend(text);
            }
        }
        block
    }

    /// Feeds `bytes` in parts and gives back what the driver behind the tap would read.
    fn run(tap: &mut Tap, bytes: &[u8], step: usize) -> Vec<u8> {
        let mut output = Vec::new();
        for part in bytes.chunks(step) {
            match tap.feed(part) {
                Passage::AsIs => output.extend_from_slice(part),
                Passage::Replaced(replacement) => output.extend_from_slice(&replacement),
            }
        }
        output
    }

    fn tapped(bytes: &[u8]) -> (Vec<u8>, Arc<Http2Connection>) {
        let connection = Arc::new(Http2Connection::new(NONCE));
        let mut tap = Tap::new(connection.clone(), LIMITS);
        let output = run(&mut tap, bytes, bytes.len());
        (output, connection)
    }

    /// What a driver makes of the tap's output, with a decoder of its own.
    #[derive(Debug, Default, PartialEq)]
    struct Driven {
        blocks: Vec<(u32, Fields)>,
        /// All other frames, headers and payloads.
        others: Vec<u8>,
        continuations: usize,
    }

    fn drive(output: &[u8]) -> Driven {
        let mut driven = Driven::default();
        let mut decoder = loona_hpack::Decoder::new();
        let mut block = Vec::new();
        let mut rest = output.strip_prefix(PREFACE).expect("the preface");
        while !rest.is_empty() {
            let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
            let (kind, flags) = (rest[3], rest[4]);
            let stream_id = u32::from_be_bytes([rest[5], rest[6], rest[7], rest[8]]);
            let (this, after) = rest.split_at(FRAME_HEADER_BYTES + length);
            rest = after;
            let mut payload = &this[FRAME_HEADER_BYTES..];
            assert!(kind != HEADERS && kind != CONTINUATION || length <= FRAME_BYTES_MAX);
            match kind {
                HEADERS => {
                    let mut padding = 0;
                    if flags & PADDED != 0 {
                        padding = usize::from(payload[0]);
                        payload = &payload[1..];
                    }
                    if flags & HAS_PRIORITY != 0 {
                        payload = &payload[5..];
                    }
                    let (fragment, zeros) = payload.split_at(payload.len() - padding);
                    assert!(zeros.iter().all(|byte| *byte == 0), "padding stays at the end");
                    block = fragment.to_vec();
                }
                CONTINUATION => {
                    driven.continuations += 1;
                    block.extend(payload);
                }
                _ => driven.others.extend(this),
            }
            if (kind == HEADERS || kind == CONTINUATION) && flags & END_HEADERS != 0 {
                let fields = decoder.decode(&block).expect("the driver can decode it");
                driven.blocks.push((stream_id, fields));
            }
        }
        driven
    }

    fn marked(stream_id: u32, fields: &Fields) -> (u32, Fields) {
        let marker = format!("{NONCE:016x}:{stream_id}");
        let mut fields = fields.clone();
        fields.push((MARKER_NAME.into(), marker.into()));
        (stream_id, fields)
    }

    fn claim(connection: &Http2Connection, stream_id: u32) -> H2Request {
        let marker = format!("{NONCE:016x}:{stream_id}");
        connection.claim([marker.as_bytes()]).expect("captured")
    }

    fn captured(request: &H2Request) -> Fields {
        request.headers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
    }

    fn opening() -> Vec<u8> {
        [PREFACE.to_vec(), settings(&[(1, 65536), (4, 131_072)]), window_update(0, 12_517_377)]
            .concat()
    }

    /// Everything that a well-behaved connection may have: frames in parts, padding, priority,
    /// bodies, trailers, empty frames, pings.
    fn conversation() -> (Vec<u8>, Vec<(u32, Fields, bool)>) {
        let mut client = Client::new();
        let mut bytes =
            [opening(), priority_frame(3, 0, 200), frame(SETTINGS, ACK, 0, &[])].concat();
        let mut sent = Vec::new();
        let mut send = |fields: Fields, stream_id: u32, trailers: bool| {
            let block = client.block(&fields);
            sent.push((stream_id, fields, !trailers));
            block
        };
        let block = send(get("/one"), 5, false);
        bytes.extend(frame(HEADERS, END_HEADERS, 5, &block));
        bytes.extend(frame(0, 0, 5, &[b'x'; 300]));
        // Padded, with a priority, over three frames of which one is empty.
        let block = send(get("/two"), 7, false);
        let (head, tail) = block.split_at(9);
        let start = [&[4][..], &0x8000_0003_u32.to_be_bytes(), &[41], head, &[0; 4]].concat();
        bytes.extend(frame(HEADERS, PADDED | HAS_PRIORITY, 7, &start));
        bytes.extend(frame(CONTINUATION, 0, 7, &[]));
        bytes.extend(frame(CONTINUATION, END_HEADERS, 7, tail));
        // A body with an empty frame, then trailers that enter the compression table.
        let trailers = send(fields(&[("x-checksum", "abc")]), 5, true);
        bytes.extend(frame(0, 0, 5, &[]));
        bytes.extend(frame(HEADERS, END_HEADERS | 1, 5, &trailers));
        bytes.extend(frame(6, 0, 0, &[1; 8]));
        bytes.extend(window_update(0, 5));
        // A padded single frame that uses the entry.
        let again = [get("/three"), fields(&[("x-checksum", "abc")])].concat();
        let block = send(again, 9, false);
        let padded = [&[7][..], &block, &[0; 7]].concat();
        bytes.extend(frame(HEADERS, END_HEADERS | PADDED, 9, &padded));
        (bytes, sent)
    }

    fn check_conversation(output: &[u8], connection: &Http2Connection) {
        let (input, sent) = conversation();
        let driven = drive(output);
        let expected: Vec<_> = sent
            .iter()
            .map(
                |(id, fields, request)| {
                    if *request { marked(*id, fields) } else { (*id, fields.clone()) }
                },
            )
            .collect();
        assert_eq!(driven.blocks, expected);
        assert_eq!(driven.others, drive(&input).others);
        assert_eq!(driven.continuations, 2, "no frame is added");
        for (id, fields, _) in sent.iter().filter(|(_, _, request)| *request) {
            let request = claim(connection, *id);
            assert_eq!((&captured(&request), request.abuse), (fields, None));
            assert_eq!(request.request_priority.is_some(), *id == 7);
        }
        assert_eq!((connection.unclaimed(), connection.lost()), (0, None));
    }

    #[test]
    fn a_conversation_cut_anywhere_comes_out_the_same() {
        let (bytes, _) = conversation();
        let whole = tapped(&bytes).0;
        for cut in 0..bytes.len() {
            let connection = Arc::new(Http2Connection::new(NONCE));
            let mut tap = Tap::new(connection.clone(), LIMITS);
            let mut output = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                output.extend(run(&mut tap, part, part.len().max(1)));
            }
            assert_eq!(output, whole, "{cut}");
            check_conversation(&output, &connection);
        }
        for step in 1..40 {
            let connection = Arc::new(Http2Connection::new(NONCE));
            let output = run(&mut Tap::new(connection.clone(), LIMITS), &bytes, step);
            assert_eq!(output, whole, "{step}");
            check_conversation(&output, &connection);
        }
    }

    #[test]
    fn bodies_are_not_copied() {
        let connection = Arc::new(Http2Connection::new(NONCE));
        let mut tap = Tap::new(connection, LIMITS);
        assert_eq!(tap.feed(&opening()), Passage::AsIs);
        let request = Client::new().request(1, &get("/"));
        assert!(matches!(tap.feed(&request), Passage::Replaced(_)));
        let body = frame(0, 0, 1, &[b'x'; 16_000]);
        for part in [&body[..], &body[..9000], &body[9000..], &body[..9], &body[9..]] {
            assert_eq!(tap.feed(part), Passage::AsIs);
        }
    }

    #[test]
    fn a_thousand_requests_keep_their_order() {
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % below
        };
        let mut client = Client::new();
        let mut bytes = opening();
        let mut sent = Vec::new();
        for index in 0..1000_u32 {
            let stream_id = index * 2 + 1;
            let mut list = get(&format!("/{index}"));
            list.extend(fields(&[("x-a", "1"), ("x-b", "2"), ("x-a", "3"), ("cookie", "c=1")]));
            list.push((b"x-index".to_vec(), index.to_string().into_bytes()));
            // Pseudo-headers stay in front, each part in an order of its own.
            for (start, end) in [(0, 4), (4, list.len())] {
                for at in start..end {
                    list.swap(at, start + random(end - start));
                }
            }
            let block = client.block(&list);
            let frames = 1 + random(3);
            let size = block.len().div_ceil(frames);
            let parts: Vec<&[u8]> = block.chunks(size).collect();
            for (at, part) in parts.iter().enumerate() {
                let kind = if at == 0 { HEADERS } else { CONTINUATION };
                let end = if at + 1 == parts.len() { END_HEADERS } else { 0 };
                bytes.extend(frame(kind, end, stream_id, part));
            }
            bytes.extend(frame(0, 1, stream_id, &vec![0; random(200)]));
            sent.push((stream_id, list));
        }
        let connection = Arc::new(Http2Connection::new(NONCE));
        let mut tap = Tap::new(connection.clone(), LIMITS);
        let mut output = Vec::new();
        let mut rest = &bytes[..];
        let mut claimed = 0;
        while !rest.is_empty() {
            let (part, after) = rest.split_at((1 + random(3000)).min(rest.len()));
            output.extend(run(&mut tap, part, part.len()));
            rest = after;
            // Claimed late and out of order, as concurrent requests are.
            if connection.unclaimed() > 20 || rest.is_empty() {
                for at in (claimed..claimed + connection.unclaimed()).rev() {
                    assert_eq!(captured(&claim(&connection, sent[at].0)), sent[at].1);
                    claimed += 1;
                }
            }
        }
        assert_eq!(claimed, 1000);
        let expected: Vec<_> = sent.iter().map(|(id, list)| marked(*id, list)).collect();
        assert_eq!(drive(&output).blocks, expected);
        assert_eq!(drive(&output).others, drive(&bytes).others);
    }

    #[test]
    fn large_header_lists_pass() {
        // Just below, at and above a full last frame: only the last needs a frame more.
        let marker = format!("{NONCE:016x}:1").len() + 3 + MARKER_NAME.len();
        let base = literals(&get("/")).len() + 1 + 1 + 5 + 4;
        for (payload, added) in
            [(FRAME_BYTES_MAX - marker, 0), (FRAME_BYTES_MAX - marker + 1, 1), (FRAME_BYTES_MAX, 1)]
        {
            let value = vec![b'v'; payload - base];
            let mut block = literals(&get("/"));
            block.extend([0, 5]);
            block.extend(b"x-big");
            let rest = value.len() - 127;
            block.extend([0x7f, rest as u8 | 0x80, (rest >> 7) as u8 | 0x80, (rest >> 14) as u8]);
            block.extend(&value);
            assert_eq!(block.len(), payload);
            let bytes = [opening(), frame(HEADERS, END_HEADERS, 1, &block)].concat();
            let (output, connection) = tapped(&bytes);
            let driven = drive(&output);
            assert_eq!(driven.continuations, added, "{payload}");
            let list = [get("/"), vec![(b"x-big".to_vec(), value)]].concat();
            assert_eq!(driven.blocks, [marked(1, &list)]);
            assert_eq!(claim(&connection, 1).abuse, None);
        }
        let list =
            [get("/"), (0..40).map(|n| (format!("x-{n}").into(), vec![b'v'; 1000])).collect()];
        let block = Client::new().block(&list.concat());
        let mut bytes = opening();
        let parts: Vec<&[u8]> = block.chunks(FRAME_BYTES_MAX).collect();
        for (at, part) in parts.iter().enumerate() {
            let end = if at + 1 == parts.len() { END_HEADERS } else { 0 };
            bytes.extend(frame(if at == 0 { HEADERS } else { CONTINUATION }, end, 1, part));
        }
        let (output, connection) = tapped(&bytes);
        assert_eq!(drive(&output).blocks, [marked(1, &list.concat())]);
        assert_eq!(captured(&claim(&connection, 1)), list.concat());
    }

    #[test]
    fn a_clients_own_marker_is_worth_nothing() {
        let forged = format!("{:016x}:3", NONCE + 1);
        let list = [get("/"), fields(&[(MARKER_NAME, &forged)])].concat();
        let mut client = Client::new();
        let bytes =
            [opening(), client.request(1, &list), client.request(3, &get("/other"))].concat();
        let (output, connection) = tapped(&bytes);
        let driven = drive(&output);
        let values = driven.blocks[0].1.iter().filter(|(name, _)| name == MARKER_NAME.as_bytes());
        let markers: Vec<&[u8]> = values.map(|(_, value)| &value[..]).collect();
        assert_eq!(markers.len(), 2);
        assert_eq!(connection.claim([markers[0]]), None, "the nonce is not ours");
        assert_eq!(connection.claim(markers.clone()).expect("ours is last").stream_id, 1);
        assert_eq!(connection.claim(markers), None, "a capture is given out once");
        let wrong = ["", ":", "0123456789abcdef", "0123456789abcdef:", "+123456789abcdef:3"];
        for marker in wrong {
            assert_eq!(connection.claim([marker.as_bytes()]), None, "{marker}");
        }
        assert_eq!(connection.claim([]), None);
        assert_eq!(claim(&connection, 3).stream_id, 3);
    }

    #[test]
    fn fingerprints_of_openings() {
        let curl = [settings(&[(3, 100), (4, 33_554_432), (2, 0)]), window_update(0, 33_488_897)];
        let firefox = [
            settings(&[(1, 65_536), (4, 131_072), (5, 16_384)]),
            window_update(0, 12_517_377),
            priority_frame(3, 0, 200),
            priority_frame(5, 0x8000_0003, 0),
            window_update(0, 7),
            settings(&[(9, 9)]),
        ];
        let bare = [settings(&[]), settings(&[(1, 1)]), window_update(1, 9)];
        let cases = [
            (curl.concat(), "mpsa", "3:100;4:33554432;2:0|33488897|0|m,p,s,a"),
            (
                firefox.concat(),
                "mpas",
                "1:65536;4:131072;5:16384|12517377|3:0:0:201,5:1:3:1|m,p,a,s",
            ),
            (bare.concat(), "masp", "|00|0|m,a,s,p"),
            (Vec::new(), "spam", "|00|0|s,p,a,m"),
        ];
        for (frames, order, expected) in cases {
            let list: Fields = order
                .chars()
                .flat_map(|letter| match letter {
                    'm' => fields(&[(":method", "POST")]),
                    'p' => fields(&[(":path", "/v1")]),
                    's' => fields(&[(":scheme", "https")]),
                    _ => fields(&[(":authority", "a")]),
                })
                .collect();
            let mut client = Client::new();
            let bytes = [
                PREFACE.to_vec(),
                frames,
                client.request(1, &list),
                settings(&[(4, 1)]),
                priority_frame(9, 0, 1),
                client.request(3, &get("/")),
            ];
            let (_, connection) = tapped(&bytes.concat());
            let capture = claim(&connection, 1).capture();
            assert_eq!(capture.akamai, expected);
            assert_eq!(Some(&capture.pseudo[..]), expected.rsplit('|').next());
            // A later request has its own order, and the connection's fingerprint.
            let capture = claim(&connection, 3).capture();
            assert_eq!((&capture.akamai[..], &capture.pseudo[..]), (expected, "m,a,s,p"));
        }
    }

    #[test]
    fn openings_are_bounded() {
        let many: Vec<(u16, u32)> = (0..100).map(|n| (n, 1)).collect();
        let mut bytes = [PREFACE.to_vec(), settings(&many)].concat();
        for stream_id in 0..40 {
            bytes.extend(priority_frame(stream_id * 2 + 1, 0, 1));
        }
        bytes.extend(Client::new().request(101, &get("/")));
        let (_, connection) = tapped(&bytes);
        let prefix = claim(&connection, 101).prefix;
        assert_eq!(prefix.settings.len(), H2_SETTINGS_MAX);
        assert_eq!(prefix.priority.len(), H2_PRIORITY_FRAMES_MAX);
        assert_eq!(prefix.dropped, 1 + 8);
    }

    #[test]
    fn breaches_are_named_and_stay_in_their_request() {
        let with = |extra: &[(&str, &str)]| [get("/"), fields(extra)].concat();
        let without = |name: &str| {
            let mut list = get("/");
            list.retain(|(other, _)| other != name.as_bytes());
            list
        };
        let connect = fields(&[(":method", "CONNECT"), (":authority", "a:443")]);
        let long = vec![(b"x".to_vec(), vec![b'v'; 120]); 450];
        let cases = [
            (get("/"), None),
            (with(&[("te", "trailers")]), None),
            (connect, None),
            (without(":authority"), None),
            (with(&[(":path", "/z")]), Some(H2Abuse::PseudoAfterRegular)),
            ([fields(&[(":protocol", "w")]), get("/")].concat(), Some(H2Abuse::PseudoUnknown)),
            ([fields(&[(":path", "/")]), get("/")].concat(), Some(H2Abuse::PseudoDuplicate)),
            (without(":method"), Some(H2Abuse::PseudoMissing)),
            (without(":scheme"), Some(H2Abuse::PseudoMissing)),
            (without(":path"), Some(H2Abuse::PseudoMissing)),
            (fields(&[(":method", "CONNECT")]), Some(H2Abuse::PseudoMissing)),
            (Vec::new(), Some(H2Abuse::PseudoMissing)),
            (with(&[("X-Bad", "1")]), Some(H2Abuse::UppercaseName)),
            (with(&[("a b", "1")]), Some(H2Abuse::InvalidName)),
            (with(&[("a", "b\r\nc")]), Some(H2Abuse::InvalidValue)),
            (with(&[("host", "other.example")]), Some(H2Abuse::SeveralHosts)),
            (
                with(&[("content-length", "1"), ("content-length", "1")]),
                Some(H2Abuse::SeveralLengths),
            ),
            (with(&[("connection", "close")]), Some(H2Abuse::ConnectionSpecific)),
            (with(&[("keep-alive", "5")]), Some(H2Abuse::ConnectionSpecific)),
            (with(&[("proxy-connection", "x")]), Some(H2Abuse::ConnectionSpecific)),
            (with(&[("transfer-encoding", "chunked")]), Some(H2Abuse::ConnectionSpecific)),
            (with(&[("upgrade", "h2c")]), Some(H2Abuse::ConnectionSpecific)),
            (with(&[("te", "gzip")]), Some(H2Abuse::TeNotTrailers)),
            ([get("/"), long].concat(), Some(H2Abuse::TooManyFields)),
            // The first breach counts.
            (with(&[("te", "gzip"), ("X-Bad", "1")]), Some(H2Abuse::TeNotTrailers)),
        ];
        let mut bytes = opening();
        for (at, (list, _)) in cases.iter().enumerate() {
            let stream_id = at as u32 * 2 + 1;
            let block = literals(list);
            let mut parts = block.chunks(FRAME_BYTES_MAX).peekable();
            let mut kind = HEADERS;
            if block.is_empty() {
                bytes.extend(frame(HEADERS, END_HEADERS, stream_id, &[]));
            }
            while let Some(part) = parts.next() {
                let end = if parts.peek().is_none() { END_HEADERS } else { 0 };
                bytes.extend(frame(
                    std::mem::replace(&mut kind, CONTINUATION),
                    end,
                    stream_id,
                    part,
                ));
            }
        }
        let (output, connection) = tapped(&bytes);
        let driven = drive(&output);
        for (at, (list, abuse)) in cases.iter().enumerate() {
            let stream_id = at as u32 * 2 + 1;
            assert_eq!(claim(&connection, stream_id).abuse, *abuse, "case {at}");
            assert_eq!(driven.blocks[at], marked(stream_id, list));
        }
        assert_eq!(connection.lost(), None);
        let (counted, connection) = counting();
        run(&mut Tap::new(connection, LIMITS), &bytes, bytes.len());
        let counted = counted.lock();
        let specific = counted.iter().filter(|abuse| **abuse == H2Abuse::ConnectionSpecific);
        assert_eq!(specific.count(), 5);
        assert_eq!(counted.len(), 21);
    }

    /// A connection that tells each abuse.
    fn counting() -> (Arc<Mutex<Vec<H2Abuse>>>, Arc<Http2Connection>) {
        let counted = Arc::new(Mutex::new(Vec::new()));
        let counter = counted.clone();
        let connection =
            Http2Connection::new(NONCE).on_abuse(move |abuse| counter.lock().push(abuse));
        (counted, Arc::new(connection))
    }

    #[test]
    fn a_list_that_grows_in_decoding_is_cut() {
        // One entry of 4,000 bytes, then a thousand references of one byte each.
        let mut block = literals(&get("/"));
        block.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
        block.extend([b'v'; 4000]);
        block.extend([0xbe; 1000]);
        let bytes = [opening(), frame(HEADERS, END_HEADERS, 1, &block)].concat();
        let (output, connection) = tapped(&bytes);
        assert_eq!(drive(&output).blocks[0].1.len(), 6 + 1001 + 1);
        let request = claim(&connection, 1);
        assert_eq!(request.abuse, Some(H2Abuse::HeaderListTooLarge));
        assert!(request.bytes() <= LIMITS.header_list_bytes_max);
    }

    #[test]
    fn what_cannot_be_followed_passes_unread() {
        let block = literals(&get("/"));
        let open = frame(HEADERS, 0, 1, &block);
        let huge = vec![0; FRAME_BYTES_MAX + 1];
        let flood: Vec<u8> = (0..100).flat_map(|_| frame(CONTINUATION, 0, 1, &[])).collect();
        let small = frame(CONTINUATION, 0, 1, &[0x82]).repeat(100);
        let full = frame(CONTINUATION, 0, 1, &[0x82; FRAME_BYTES_MAX]).repeat(17);
        let malformed = H2Abuse::MalformedFrame;
        let cases = [
            ([&open[..], &frame(0, 0, 1, b"data")].concat(), malformed),
            ([&open[..], &frame(CONTINUATION, END_HEADERS, 3, &[])].concat(), malformed),
            ([&open[..], &open].concat(), malformed),
            (frame(CONTINUATION, END_HEADERS, 1, &block), malformed),
            (frame(HEADERS, END_HEADERS, 0, &block), malformed),
            (frame(HEADERS, END_HEADERS, 2, &block), malformed),
            (frame(HEADERS, END_HEADERS, 1, &huge), malformed),
            (frame(HEADERS, END_HEADERS | PADDED, 1, &[]), malformed),
            (frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0x82]), malformed),
            (frame(HEADERS, END_HEADERS | HAS_PRIORITY, 1, &[0, 0, 0, 3]), malformed),
            (
                frame(HEADERS, END_HEADERS | PADDED | HAS_PRIORITY, 1, &[2, 0, 0, 0, 3, 1, 0]),
                malformed,
            ),
            (frame(HEADERS, END_HEADERS, 1, &[0xff; 6]), H2Abuse::MalformedHpack),
            (frame(HEADERS, END_HEADERS, 1, &[0x40]), H2Abuse::MalformedHpack),
            ([&open[..], &flood].concat(), H2Abuse::ContinuationFlood),
            ([&open[..], &small].concat(), H2Abuse::ContinuationFlood),
            ([&open[..], &full].concat(), H2Abuse::ContinuationFlood),
        ];
        for (at, (frames, expected)) in cases.iter().enumerate() {
            let mut client = Client::new();
            let bytes = [opening(), frames.clone(), client.request(5, &get("/after"))].concat();
            for step in [1, 5, bytes.len()] {
                let (counted, connection) = counting();
                let output = run(&mut Tap::new(connection.clone(), LIMITS), &bytes, step);
                assert!(output == bytes, "case {at}: not a byte is changed");
                assert_eq!(connection.lost(), Some(*expected), "case {at}");
                assert_eq!(*counted.lock(), [*expected]);
                assert_eq!(connection.unclaimed(), 0);
            }
        }
        let (output, connection) = tapped(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(output, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(connection.lost(), Some(H2Abuse::NotHttp2));
        // With room for many frames, the encoded size is the bound.
        let limits = TapLimits { header_list_bytes_max: 20_000, header_fields_max: 128 };
        let connection = Arc::new(Http2Connection::new(NONCE));
        let bytes = [opening(), open, full].concat();
        assert_eq!(run(&mut Tap::new(connection.clone(), limits), &bytes, 4096), bytes);
        assert_eq!(connection.lost(), Some(H2Abuse::HeaderListTooLarge));
    }

    #[test]
    fn unclaimed_requests_are_bounded() {
        let connection = Arc::new(Http2Connection::new(NONCE));
        let mut tap = Tap::new(connection.clone(), LIMITS);
        let mut client = Client::new();
        run(&mut tap, &opening(), 1000);
        for index in 0..300_u32 {
            run(&mut tap, &client.request(index * 2 + 1, &get("/")), 1000);
        }
        assert_eq!(connection.unclaimed(), H2_UNCLAIMED_MAX);
        assert_eq!(connection.dropped(), 300 - H2_UNCLAIMED_MAX as u64);
        assert_eq!(connection.claim([connection.marker(1).as_bytes()]), None);
        assert_eq!(claim(&connection, 599).stream_id, 599);
        // Large ones are bounded by their bytes.
        let large = [get("/"), vec![(b"x-large".to_vec(), vec![b'v'; 15_000])]].concat();
        for index in 300..600_u32 {
            run(&mut tap, &client.request(index * 2 + 1, &large), 20_000);
        }
        let bytes: usize = connection.seen.lock().unclaimed.iter().map(H2Request::bytes).sum();
        assert!(bytes <= LIMITS.unclaimed_bytes_max() && bytes > LIMITS.unclaimed_bytes_max() / 2);
        assert_eq!(bytes, connection.seen.lock().unclaimed_bytes);
    }

    #[test]
    fn debug_shows_no_header() {
        let list = [get("/"), fields(&[("authorization", "Bearer secret-key")])].concat();
        let (_, connection) = tapped(&[opening(), Client::new().request(1, &list)].concat());
        assert!(!format!("{connection:?}").contains("secret"));
        assert!(!format!("{:?}", claim(&connection, 1)).contains("secret"));
    }

    #[test]
    fn every_kind_of_abuse_has_its_place_and_name() {
        let mut names: Vec<&str> = H2Abuse::ALL.iter().map(|abuse| abuse.name()).collect();
        for (at, abuse) in H2Abuse::ALL.iter().enumerate() {
            assert_eq!(*abuse as usize, at);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), H2Abuse::ALL.len());
    }

    #[test]
    fn huffman_strings_are_captured_in_clear() {
        let mut block = literals(&get("/"));
        for (name, value) in [("x-agent", "Mozilla/5.0 (X11)"), ("x-bytes", "ünï\u{7f}")] {
            block.push(0x40);
            for text in [name, value] {
                let coded = huffman(text.as_bytes());
                block.push(0x80 | coded.len() as u8);
                block.extend(coded);
            }
        }
        let bytes = [opening(), frame(HEADERS, END_HEADERS, 1, &block)].concat();
        let (output, connection) = tapped(&bytes);
        let list =
            [get("/"), fields(&[("x-agent", "Mozilla/5.0 (X11)"), ("x-bytes", "ünï\u{7f}")])];
        assert_eq!(captured(&claim(&connection, 1)), list.concat());
        assert_eq!(drive(&output).blocks, [marked(1, &list.concat())]);
    }

    /// Frames that are plausible enough to reach the block decoder.
    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let kind = prop_oneof![Just(HEADERS), Just(CONTINUATION), 0..10_u8];
        let payload = proptest::collection::vec(any::<u8>(), 0..60);
        (kind, any::<u8>(), 0..6_u32, payload)
            .prop_map(|(kind, flags, stream_id, payload)| frame(kind, flags, stream_id, &payload))
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz_http2(&data);
        }

        #[test]
        fn arbitrary_frames_never_panic(
            frames in proptest::collection::vec(any_frame(), 0..12), first in 0..80_u8,
        ) {
            // A frame of an unknown type in front, so that the first byte gives the step.
            fuzz_http2(&[&[0, 0, first, 0x0b, 0, 0, 0, 0, 0], &vec![0; first.into()][..], &frames.concat()].concat());
            fuzz_http2(&frames.concat());
        }

        #[test]
        fn a_mutated_conversation_never_panics(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let (mut bytes, _) = conversation();
            bytes.drain(..PREFACE.len());
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            fuzz_http2(&bytes);
        }
    }
}
