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
    /// Longest silence while a request body is read. A body that is passed on as it comes over
    /// HTTP/2 may pause for as long as the upstream bears it.
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
    /// All request bodies that are held until their answers begin, what they are decoded to, and the
    /// texts read from them until their answers end; beyond, requests get a 503.
    pub bodies_bytes_max: usize,
    /// Bytes of a refused request's body that are read after the answer, so that the client sees it.
    pub drain_bytes_max: usize,
    /// A refused request's body up to this length is read before the answer, so that the
    /// connection can be used again.
    pub drain_first_bytes_max: usize,
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
            bodies_bytes_max: 1024 * 1024 * 1024,
            drain_bytes_max: 64 * 1024 * 1024,
            drain_first_bytes_max: 64 * 1024,
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
/// Request heads read ahead on an HTTP/1 connection (pipelining) and not yet claimed.
pub const HTTP1_UNCLAIMED_MAX: usize = 256;
/// A chunk-size line with its extensions.
pub const CHUNK_LINE_BYTES_MAX: usize = 256;
/// The trailer section of a chunked request.
pub const HTTP1_TRAILER_BYTES_MAX: usize = 8 * 1024;
/// Response bytes gathered before a write.
pub const WRITE_GATHER_BYTES: usize = 16 * 1024;
/// A request body above this is decoded and read where it does not hold up other connections.
pub const BODY_BYTES_INLINE_MAX: usize = 512 * 1024;
/// Request bytes that wait for an HTTP/1.1 upstream to take them, before more are read.
pub const UPSTREAM_UNSENT_BYTES_MAX: usize = 64 * 1024;
/// A single event of a streamed answer that is held for reading; longer ones are passed unread.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;
/// A not-streamed answer that is held for reading; longer ones are passed unread.
pub const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

// config/file.rs
/// Bytes of a configuration file, a secret file or a PEM file; larger ones are a mistake.
pub const CONFIG_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

// account/jwks.rs
/// Bytes of a fetched key set.
pub const JWKS_BYTES_MAX: usize = 1024 * 1024;

/// Keys in a set; further ones are left out.
pub const JWKS_KEYS_MAX: usize = 100;

/// Time for one whole fetch.
pub const JWKS_FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Time between looks at a file.
pub const JWKS_FILE_INTERVAL: Duration = Duration::from_secs(2);

// listener/tls.rs
/// Time between looks at the certificate files.
pub const CERTIFICATE_WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// TLS 1.2 sessions kept for resumption by id; tickets need no memory here.
pub const TLS_SESSIONS_MAX: usize = 4096;

// account.rs
/// A bearer token longer than this is not verified but refused; real ones stay under 8 KB.
pub const JWT_BYTES_MAX: usize = 16 * 1024;

// exchanges.rs
/// Turns kept of a conversation, the newest ones.
pub const EXCHANGE_TURNS_MAX: usize = 256;

/// Tool names kept of a request, and tool calls of a turn or an answer.
pub const EXCHANGE_TOOLS_MAX: usize = 128;

/// Attachments written into the body of a trace record, for each turn.
pub const RECORD_ATTACHMENTS_MAX: u32 = 32;

/// Characters kept of a name or a header value that comes from outside.
pub const OUTSIDE_CHARS_MAX: usize = 128;

/// Characters kept of a path, and of a JA3 string: four times the longest that clients send.
pub const FINGERPRINT_CHARS_MAX: usize = 4096;

/// A line of the trace with texts; a longer one is written with marks in their place.
pub const RECORD_LINE_BYTES_MAX: usize = 1024 * 1024;

/// Texts and features waiting for the trace writer, beside the bound on their number.
pub const RECORD_QUEUE_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Lines kept for a file that cannot be written at the moment (a full disk).
pub const RECORD_PENDING_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Accounts that the writer remembers having announced, in each of two generations.
pub const RECORD_ACCOUNTS_MAX: usize = 131_072;

/// Longest time that a line waits to be written. Half of what is promised.
pub const RECORD_FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// How often a failing file is mentioned in the log.
pub const RECORD_ERROR_INTERVAL: Duration = Duration::from_secs(60);

// network.rs
/// An ASN database. GeoLite2's has 12 MB.
pub const NETWORK_DATABASE_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// A list of addresses.
pub const NETWORK_LIST_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Networks of a database or a list. GeoLite2 has 700,000 with those that are nobody's.
pub const NETWORK_RANGES_MAX: usize = 8_000_000;

/// Time between looks at these files.
pub const NETWORK_FILES_INTERVAL: Duration = Duration::from_secs(30);

// trace.rs
/// A line of a trace that is read: a request of the largest size, escaped.
pub const TRACE_LINE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Things of one kind (accounts, header values, handshakes) that the reader of a trace holds to
/// build them once only, in each of two generations.
pub const TRACE_INTERNED_MAX: usize = 4096;

/// Longest text that is held so.
pub const TRACE_INTERNED_BYTES_MAX: usize = 4096;

// cli/fingerprint.rs
/// A file with a ClientHello holds little else.
pub const HELLO_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Connections of a capture that are followed at once; beyond, the oldest is printed and let go.
pub const PCAP_CONNECTIONS_MAX: usize = 4096;

/// Bytes that one direction keeps while a segment before them is missing.
pub const PCAP_AHEAD_BYTES_MAX: usize = 128 * 1024;

/// Segments that one direction keeps so.
pub const PCAP_AHEAD_SEGMENTS_MAX: usize = 128;

/// A packet or another block of a capture file.
pub const PCAP_BLOCK_BYTES_MAX: usize = 16 * 1024 * 1024;

// wire/provider/openai_responses.rs
/// Most texts of an answer that are told apart. Past it, a text may be counted again where it is
/// repeated.
pub const ANSWER_TEXTS_MAX: usize = 4096;

// wire/framing/json.rs
/// Most elements of an array that is kept as a list (choices, tools, output items).
pub const JSON_ITEMS_MAX: usize = 4096;

// wire/answer.rs
/// Most tool calls of an answer that are kept.
pub const TOOL_CALLS_MAX: usize = 1024;

/// Longest error code that is kept.
pub const ERROR_CODE_BYTES_MAX: usize = 64;

// wire/request.rs
/// Most turns of a conversation. The largest number that a provider documents is 100,000
/// (Anthropic Messages).
pub const TURNS_MAX: usize = 100_000;

/// Longest name (of a model, a tool) that is kept.
pub const NAME_BYTES_MAX: usize = 256;

// proxy/head.rs
/// A client's own request id is believed up to this length.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

// upstream.rs
/// Time between two lookups of an upstream's names.
pub const UPSTREAM_RESOLVE_INTERVAL: Duration = Duration::from_secs(15);

/// Time after which a connection that serves nobody is closed.
pub const UPSTREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Silence after which an upstream connection is probed (HTTP/2 PING, TCP keep-alive).
pub const UPSTREAM_PING_INTERVAL: Duration = Duration::from_secs(30);

/// How long a connection without a request is kept once the process is to end.
pub const LAST_REQUEST_GRACE: Duration = Duration::from_millis(500);

/// Idle HTTP/1.1 connections kept to one upstream.
pub const UPSTREAM_IDLE_CONNECTIONS_MAX: usize = 1024;

/// Requests at once on one HTTP/2 connection to an upstream.
pub const UPSTREAM_H2_STREAMS_MAX: usize = 100;
/// Answer bytes of one HTTP/2 stream that an upstream may send ahead of the client.
pub const UPSTREAM_H2_STREAM_WINDOW: u32 = 256 * 1024;

// admin.rs
/// Connections open at once; a further one is closed.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;

/// Time for a request head, from the connection's first byte or the last answer's end.
pub const ADMIN_HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that one connection may last: a client that does not read cannot keep it.
pub const ADMIN_CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Request head, and the buffer that it is read into.
pub const ADMIN_HEADER_BYTES_MAX: usize = 16 * 1024;

/// Request body.
pub const ADMIN_BODY_BYTES_MAX: u64 = 64 * 1024;

/// Things listed in one answer: exchanges, accounts, overrides, audit entries.
pub const ADMIN_LIST_MAX: usize = 1000;

/// Tokens of the configuration.
pub const ADMIN_TOKENS_MAX: usize = 64;

/// Requests a second of one token, in the long run.
pub const ADMIN_REQUESTS_PER_SECOND: f64 = 200.0;

/// Requests of one token at once.
pub const ADMIN_REQUESTS_BURST: f64 = 1_000.0;

/// Requests a second of one address without a token that is known, in the long run.
pub const ADMIN_STRANGERS_PER_SECOND: f64 = 0.5;

/// Such requests at once.
pub const ADMIN_STRANGERS_BURST: f64 = 20.0;

/// Addresses whose failed attempts are counted; beyond, those that came least are forgotten.
pub const ADMIN_STRANGERS_MAX: u64 = 8_192;

/// Time after which an address's failed attempts are forgotten: longer than the burst takes to fill.
pub const ADMIN_STRANGERS_IDLE: Duration = Duration::from_secs(120);

/// Answers that stream for long, and bodies that do, at once.
pub const ADMIN_STREAMS_MAX: usize = 16;

/// Time between signs of life of an event stream.
pub const ADMIN_HEARTBEAT: Duration = Duration::from_secs(15);

/// Audit entries that are read from the store at once.
pub const ADMIN_AUDIT_CHUNK: usize = 512;

/// Audit entries that one query looks through.
pub const ADMIN_AUDIT_SCAN_MAX: usize = 20_000;

/// Accounts that one query looks through.
pub const ADMIN_ACCOUNTS_SCAN_MAX: usize = 20_000;

/// Members of a cluster that are shown.
pub const ADMIN_MEMBERS_MAX: usize = 200;

/// Text whose marks are looked for, and text of a policy that is checked.
pub const ADMIN_TEXT_BYTES_MAX: u64 = 1024 * 1024;

/// Candidates against whom a text is tested at once, the ones marked last.
pub const ADMIN_CANDIDATES_MAX: usize = 2_000;

/// Profiles sent at once.
pub const ADMIN_PROFILES_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Lines of profiles sent at once.
pub const ADMIN_PROFILES_LINES_MAX: u64 = 100_000;

/// Bytes of one such line.
pub const ADMIN_PROFILE_LINE_BYTES_MAX: usize = 4 * 1024;

/// Profiles that are taken together, or not at all.
pub const ADMIN_PROFILES_BATCH: usize = 500;

/// Faults that are told of one request.
pub const ADMIN_FAULTS_MAX: usize = 100;

/// Models whose release is known.
pub const ADMIN_MODELS_MAX: usize = 1_000;

// wire/rewrite.rs
/// Texts of an answer that are told apart while it is rewritten; further ones are left as they are.
pub const REWRITE_TEXTS_MAX: usize = 1024;

/// Bytes of an answer's texts that are kept so that what repeats them, or points into them, can be
/// made to agree. Past it, texts are left as they are. The longest answers of today's models have
/// half of this.
pub const REWRITE_KEPT_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of events that wait for text that is held; past it, what is held goes out.
pub const REWRITE_QUEUE_BYTES_MAX: usize = 128 * 1024;

/// Events that wait so.
pub const REWRITE_QUEUE_EVENTS_MAX: usize = 256;
// policy.rs
/// Good versions of the policy that are kept, the one in force included.
pub const POLICIES_KEPT: usize = 8;

/// Time between two looks at the policy's file.
pub const POLICY_FILE_INTERVAL: Duration = Duration::from_secs(1);

// judge.rs
/// Prompts and answers that wait for the background detectors; a further one is shed, and counted.
pub const JUDGEMENT_QUEUE_MAX: usize = 4096;

/// Accounts that have changed that are taken from the engine under one lock.
pub const CHANGED_AT_ONCE: usize = 512;

/// Threads that read what prompts mean.
pub const JUDGEMENT_THREADS: usize = 2;

// enforce.rs
/// Accounts whose standing is held.
pub const STANDINGS_MAX: u64 = 500_000;

/// Changes of tier and actions that an account's standing remembers, of each kind.
pub const STANDING_EVENTS_MAX: usize = 16;

/// Addresses and fingerprints that are kept of a suspected account for an indicator bundle.
pub const INDICATORS_MAX: usize = 8;

/// Overrides that operators have set at once.
pub const OVERRIDES_MAX: usize = 100_000;
/// Accounts above tier none whose tier is kept; with overrides and suspensions.
pub const SUSPECTS_MAX: usize = 1_000_000;
/// Members of a takedown that its audit entry names.
pub const TAKEDOWN_MEMBERS_SHOWN_MAX: usize = 1_000;

/// Accounts in the review queue; a further one pushes the oldest out, and is counted.
pub const REVIEW_MAX: usize = 1_000;

/// Takedowns that are remembered.
pub const TAKEDOWNS_MAX: usize = 1_000;

/// Accounts that were served marked answers and can be attributed.
pub const MARKED_MAX: usize = 500_000;

// enforce/marks.rs
/// Subjects and weeks whose canaries are looked for in prompts.
pub const CANARY_SUBJECTS_MAX: usize = 20_000;

// proxy/relay.rs
/// Choices of an answer whose text is followed so that it can be marked from its middle on.
pub const CHOICES_FOLLOWED_MAX: usize = 16;

// enforce/throttle.rs
/// Cells of limits at once.
pub const THROTTLE_CELLS_MAX: u64 = 1_000_000;

/// Time after which a cell that nobody asked is let go; longer than any debt that matters.
pub const THROTTLE_CELLS_IDLE: Duration = Duration::from_secs(900);

/// Cells whose use the other gateways have yet to hear of; a further one is told of later.
pub const THROTTLE_UNTOLD_MAX: usize = 65_536;

/// Output tokens that are reserved at most when a request begins.
pub const THROTTLE_RESERVE_TOKENS_MAX: u64 = 2_048;

// proxy/pace.rs
/// Bytes of one paced answer that wait.
pub const PACED_BYTES_MAX: usize = 16 * 1024;

/// Events of one paced answer that wait.
pub const PACED_EVENTS_MAX: usize = 64;

// enforce.rs
/// Judgements whose consequences wait to be drawn (evidence for the review queue, takedowns).
pub const ENFORCE_QUEUE_MAX: usize = 4096;

// admin/
/// Longest reason that an operator gives.
pub const ADMIN_REASON_CHARS_MAX: usize = 500;

/// Longest life of an override that has an end: ten years.
pub const ADMIN_OVERRIDE_SECONDS_MAX: u64 = 10 * 366 * 86_400;

// proxy/shape.rs
/// Longest delay of an answer that is no stream, whatever its pace: clients give up.
pub const PACED_WHOLE_DELAY_MAX: Duration = Duration::from_secs(30);

/// Longest time that text waits for what follows it before it goes out as it is.
pub const REWRITE_HOLD_MAX: Duration = Duration::from_millis(250);

// ioc.rs
/// Indicators that are held, of the provider's own and of all others.
pub const INDICATORS_HELD_MAX: usize = 100_000;
/// Indicators of one source that are held, so that no peer takes the room of the others.
pub const INDICATORS_SOURCE_MAX: usize = 25_000;
/// Values in one bundle.
pub const IOC_VALUES_MAX: usize = 5_000;
/// Bytes of a bundle in its envelope, and of a STIX bundle.
pub const IOC_ENVELOPE_BYTES_MAX: usize = 1024 * 1024;
/// Signatures of one bundle.
pub const IOC_SIGNATURES_MAX: usize = 8;
/// Bundles of one peer that are remembered against replay, for a day.
pub const IOC_BUNDLES_PEER_MAX: usize = 2_000;
/// Bundles in one answer to a peer.
pub const IOC_EXPORT_BUNDLES_MAX: usize = 100;
/// Bytes of such an answer; one bundle always fits.
pub const IOC_EXPORT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Hits that one request has at most.
pub const IOC_HITS_MAX: usize = 16;
/// Refused bundles that go into the audit within a minute; further ones are counted.
pub const IOC_REFUSALS_AUDITED_MAX: u32 = 60;
/// Skipped indicators that are named in an answer.
pub const IOC_SKIPPED_SHOWN: usize = 100;
/// Other providers.
pub const IOC_PEERS_MAX: usize = 64;
/// Indicators in one part of the list.
pub const IOC_LIST_MAX: usize = 1_000;
/// Time for one request to a peer.
pub const IOC_PEER_TIMEOUT: Duration = Duration::from_secs(20);
/// Shortest and longest pause after a request to a peer that failed.
pub const IOC_BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

// store.rs
/// Batches that wait to be written; further ones are refused.
pub const STORE_QUEUE_MAX: usize = 8_192;
/// Batches that are committed together.
pub const STORE_GROUP_MAX: usize = 256;
/// Batches that could not be written and are tried again; the oldest are given up beyond.
pub const STORE_KEPT_MAX: usize = 65_536;
/// Commits that a slow reader of the feed may lag behind.
pub const STORE_FEED_MAX: usize = 8_192;
/// Registers that are read, or let go, at a time.
pub const STORE_PAGE: usize = 512;
/// Largest file of state that is checked whole before it is used; a larger one is checked beside.
/// Half a second's work.
pub const STORE_CHECKED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Longest time that the end of the process waits for the last changes to be written.
pub const STORE_SETTLE_MAX: Duration = Duration::from_secs(5);
/// Time after which a removal is forgotten.
pub const STORE_REMOVED_KEPT: Duration = Duration::from_secs(30 * 86_400);

// memory.rs
/// Accounts whose rows are being fetched; requests of further ones are judged by their known tier.
pub const ROW_QUEUE_MAX: usize = 4_096;
/// Rows that are written in one transaction.
pub const ROW_BATCH: usize = 2_000;
/// Rows that are read at a time.
pub const ROW_PAGE: usize = 256;
/// Time between two looks for accounts that have changed.
pub const ROW_FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time for which the engine is held to take rows out or in. Requests wait for it.
pub const ROW_LOCK_MAX: Duration = Duration::from_micros(200);
/// Longest time that an operator's question waits for an account's row.
pub const ROW_FETCH_MAX: Duration = Duration::from_millis(250);
/// Longest time for the last rows to be written when the process ends.
pub const ROW_LAST_FLUSH_MAX: Duration = Duration::from_secs(10);

/// Audit entries that are read at a time.
pub const AUDIT_PAGE: usize = 1_000;
/// A line of an exported audit. Entries hold no texts of customers; the longest tell of a takedown's
/// members.
pub const AUDIT_LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;

// webhook.rs
/// Messages of one webhook that were read from the audit and not all taken.
pub const WEBHOOK_WINDOW_MAX: usize = 256;
/// Messages of one webhook that are being sent at once.
pub const WEBHOOK_IN_FLIGHT_MAX: usize = 8;
/// Time between two looks at the audit without being told, and between two cursors stored.
pub const WEBHOOK_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A receiver's answer.
pub const WEBHOOK_ANSWER_BYTES_MAX: usize = 64 * 1024;

// cli/evidence.rs
/// Files in a folder of evidence.
pub const EVIDENCE_FILES_MAX: usize = 10_000;
/// A text file in it, but for the audit, which is read line by line.
pub const EVIDENCE_TEXT_BYTES_MAX: u64 = 256 * 1024 * 1024;

// fleet.rs
/// Time for TCP, TLS and signing in at one server.
pub const FLEET_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for an answer.
pub const FLEET_RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a first failure; doubled after each further one.
pub const FLEET_BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
pub const FLEET_BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Time between two looks at whether Redis is still the one it was.
pub const FLEET_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which everything is compared with what Redis holds, whatever has happened.
pub const FLEET_COMPARE_INTERVAL: Duration = Duration::from_secs(3_600);
/// Time for which the removal of a word is remembered.
pub const FLEET_TOMBSTONES_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// About how many entries a stream in Redis keeps. Who falls further behind compares everything.
pub const FLEET_FEED_MAX: usize = 100_000;
/// Entries of a stream that are read at once.
pub const FLEET_ENTRIES_MAX: usize = 1_000;
/// Words that are read at once where everything is compared.
pub const FLEET_WORDS_PAGE: usize = 500;
/// Words of other gateways that are stored in one commit.
pub const FLEET_TAKEN_IN_AT_ONCE: usize = 256;
/// Longest key of a word.
pub const FLEET_KEY_BYTES_MAX: usize = 1_024;
/// Longest word; a larger one is not shared, and counted.
pub const FLEET_WORD_BYTES_MAX: usize = 1024 * 1024;
/// Longest name of a gateway.
pub const FLEET_NAME_BYTES_MAX: usize = 128;
/// Reports of what was let through that Redis keeps, about.
pub const FLEET_USED_MAX: usize = 4_096;
/// Cells in one of them.
pub const FLEET_USED_CELLS_MAX: usize = 1_024;
/// Accounts that are written to Redis, or fetched, in one go.
pub const FLEET_ACCOUNTS_AT_ONCE: usize = 64;
/// Accounts that one entry of the stream of changes names.
pub const FLEET_CHANGED_NAMED_MAX: usize = 256;
/// About how many entries that stream keeps.
pub const FLEET_CHANGED_MAX: usize = 20_000;
/// Accounts that wait to be fetched; a further one is left out, and counted.
pub const FLEET_FETCH_MAX: usize = 200_000;
/// Accounts that are written or fetched again at most in one round, beside what has just changed.
pub const FLEET_AGAIN_MAX: usize = 4_000;
/// Gateways whose memory of one account is read.
pub const FLEET_GATEWAYS_MAX: usize = 64;
/// Time for which a replica may lack what its master took, and after which it is not written again.
pub const FLEET_UNSURE: Duration = Duration::from_secs(30);
/// Accounts that are remembered for that.
pub const FLEET_UNSURE_MAX: usize = 200_000;
/// Time after which whatever is new of an account is told, though it hardly matters.
pub const FLEET_RETELL: Duration = Duration::from_secs(5);
/// Accounts of which is remembered what was told of them within that time.
pub const FLEET_TOLD_MAX: usize = 200_000;
/// Time for which a gateway's name is its own after it was last heard of.
pub const FLEET_NAME_HELD: Duration = Duration::from_secs(4);
/// Longest wait for the other gateways' words before this one says that it is ready.
pub const FLEET_FIRST_WORDS_MAX: Duration = Duration::from_secs(5);

// sensor.rs
/// Body of a sensor's report.
pub const SENSOR_REPORT_BYTES_MAX: u64 = 1024 * 1024;
/// Lookups and contacts in one report, together.
pub const SENSOR_ENTRIES_MAX: usize = 1_000;
/// Longest name of a sensor, and of who runs a resolver.
pub const SENSOR_NAME_CHARS_MAX: usize = 64;
/// Longest name that was looked up: 255 octets (RFC 1035, section 2.3.4), each of which may be
/// written as `\DDD`.
pub const SENSOR_LOOKED_UP_CHARS_MAX: usize = 4 * 255;
/// Sensors that are remembered; of more, the one that was silent longest is forgotten.
pub const SENSORS_MAX: usize = 256;
/// Starts of one sensor whose last report is remembered.
pub const SENSOR_RUNS_MAX: usize = 4;
/// Difference of a sensor's clock that is not corrected: reports take time on their way.
pub const SENSOR_CLOCK_TOLERANCE: Duration = Duration::from_secs(5);
/// Oldest time that an entry may have; what is told as older counts as this old.
pub const SENSOR_AGE_MAX: Duration = Duration::from_secs(86_400);
/// Silence after which a sensor is told of as silent.
pub const SENSOR_SILENT_AFTER: Duration = Duration::from_secs(60);
/// Silence after which a sensor is forgotten.
pub const SENSOR_FORGOTTEN_AFTER: Duration = Duration::from_secs(86_400);
/// Longest time for which the engine is held to take in what a sensor saw. Requests wait for it.
pub const SENSED_LOCK_MAX: Duration = Duration::from_micros(200);
/// Time between two looks at which sensors are silent.
pub const SENSOR_LOOK_INTERVAL: Duration = Duration::from_secs(1);
