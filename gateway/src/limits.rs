//! Every bound and timeout of the gateway, in one place.
//!
//! A collection without a bound here is a bug. Where a bound is hit the event is counted in
//! `metrics.rs`, never hidden.

use std::time::Duration;

/// Bounds that operators may set under `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at once on all listeners; further ones are closed at accept.
    pub connections_max: usize,
    /// Time for a PROXY header and a TLS handshake together.
    pub handshake_timeout: Duration,
    /// Time from the first byte of a request head to its last, on HTTP/1.
    pub header_timeout: Duration,
    /// Time that a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// Longest silence while a request body is read.
    pub body_idle_timeout: Duration,
    /// Time for a whole request body.
    pub body_timeout: Duration,
    /// Longest time that a client may refuse to take response bytes.
    pub write_timeout: Duration,
    /// Request head in bytes (HTTP/1: as sent; HTTP/2: header list size, RFC 9113, section 6.5.2).
    pub header_bytes_max: usize,
    /// Header fields in a request.
    pub header_fields_max: usize,
    /// Request body that is read for inspection and replayed; larger ones get a 413.
    pub body_bytes_max: usize,
    /// Body after content-decoding, for inspection; larger ones get a 413.
    pub decoded_body_bytes_max: usize,
    /// Bytes of a refused request's body that are read so that the client sees the answer.
    pub drain_bytes_max: usize,
    /// Time for that.
    pub drain_timeout: Duration,
    /// Streams open at once on one HTTP/2 connection.
    pub h2_streams_max: u32,
    /// Exchanges kept for `GET /v1/exchanges`.
    pub exchanges_kept: usize,
    /// Exchanges waiting to be written to the trace; further ones are shed and counted.
    pub record_queue_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 65_536,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_idle_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(300),
            write_timeout: Duration::from_secs(60),
            header_bytes_max: 64 * 1024,
            header_fields_max: 128,
            body_bytes_max: 32 * 1024 * 1024,
            decoded_body_bytes_max: 64 * 1024 * 1024,
            drain_bytes_max: 1024 * 1024,
            drain_timeout: Duration::from_secs(2),
            h2_streams_max: 128,
            exchanges_kept: 1024,
            record_queue_max: 4096,
        }
    }
}

/// A ClientHello message. The largest seen (post-quantum shares, ECH, padding) stay under 4 KB.
pub const CLIENT_HELLO_BYTES_MAX: usize = 64 * 1024;
/// Handshake bytes from the server that are searched for its ServerHello.
pub const SERVER_HELLO_BYTES_MAX: usize = 64 * 1024;
/// A PROXY protocol v2 header: 16 fixed bytes and addresses with TLVs.
pub const PROXY_HEADER_BYTES_MAX: usize = 16 + 4096;
/// HPACK dynamic table that clients may use (SETTINGS_HEADER_TABLE_SIZE stays at its default).
pub const HPACK_TABLE_BYTES_MAX: usize = 4096;
/// PRIORITY frames kept of a connection's opening.
pub const H2_PRIORITY_FRAMES_MAX: usize = 32;
/// Settings kept of a connection's first SETTINGS frame.
pub const H2_SETTINGS_MAX: usize = 64;
/// Requests captured on an HTTP/2 connection and not yet claimed by the proxy.
pub const H2_UNCLAIMED_MAX: usize = 256;
/// Response bytes gathered before a write.
pub const WRITE_GATHER_BYTES: usize = 16 * 1024;
/// A single event of a streamed answer that is held for reading; longer ones are passed unread.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;
/// A not-streamed answer that is held for reading; longer ones are passed unread.
pub const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
