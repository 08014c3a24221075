//! Every metric of the gateway, in one list: [`Metrics::new`].
//!
//! Names begin with `stillgate_` and end in their base unit; counters end in `_total`
//! (Prometheus naming, <https://prometheus.io/docs/practices/naming/>). The three process
//! figures keep the names that every Prometheus client library gives them.
//!
//! A label value is either from a closed set in this file or a name from the operator's own
//! configuration (route, upstream). Accounts, paths and models come from outside and are never
//! labels: each new value would be a new series, and a client could make as many as it likes.

use std::fs;

use detectors::policy::Action;
use detectors::tier::Tier;
use detectors::{Format, HttpVersion};
use prometheus::core::Collector;
use prometheus::{
    Error, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::ioc::bundle::Kind;
use crate::sensor::report::Transport;

/// `reason` of a connection that was closed at accept.
pub const CONNECTION_REFUSALS: &[&str] = &["limit", "proxy_header"];
/// `outcome` of a TLS handshake.
pub const HANDSHAKE_OUTCOMES: &[&str] = &["ok", "failed", "timeout", "not_tls"];
/// `version` of a TLS handshake; `none` when none was agreed.
pub const TLS_VERSIONS: &[&str] = &["1.3", "1.2", "none"];
/// `outcome` of capturing a ClientHello.
pub const HELLO_OUTCOMES: &[&str] = &["captured", "missing"];
/// `direction` of body bytes, from the client's point of view.
pub const DIRECTIONS: &[&str] = &["in", "out"];
/// `kind` of tokens.
pub const TOKEN_KINDS: &[&str] = &["prompt", "completion"];
/// `outcome` of an attempt on an upstream member.
pub const ATTEMPT_OUTCOMES: &[&str] = &["ok", "connect_failed", "timeout", "reset"];
/// `reason` why an answer passed unread.
pub const UNREAD_REASONS: &[&str] = &["too_long", "encoded"];
/// `outcome` of reading a file again.
pub const RELOAD_OUTCOMES: &[&str] = &["ok", "failed"];

/// `outcome` of the store's transactions.
const STORE_OUTCOMES: &[&str] = &["ok", "failed"];

/// `outcome` of an attempt to send a webhook's message; `given_up` comes beside the last one.
pub const WEBHOOK_OUTCOMES: &[&str] = &["taken", "refused", "unreached", "given_up"];
/// `part` of an exchange that the background detectors did not get.
pub const SHED_PARTS: &[&str] = &["meaning", "answer"];
/// `mode` of an action.
pub const ACTION_MODES: &[&str] = &["taken", "shadow"];
/// `kind` of a failure between gateways.
pub const FLEET_ERRORS: &[&str] =
    &["setting", "unreachable", "late", "refused", "unexpected", "store"];
/// `part` of what gateways share that was left out.
pub const FLEET_PARTS: &[&str] = &["word", "use", "fetch"];
/// `layer` of a mark.
pub const MARK_LAYERS: &[&str] = &["zero_width", "canary"];

/// `outcome` of a peer's bundle.
pub const IOC_OUTCOMES: &[&str] = &[
    "taken",
    "not_configured",
    "oversize",
    "malformed",
    "unknown_key",
    "signature",
    "issuer",
    "stale",
    "future",
    "confidence",
    "replay",
    "too_many",
    "store",
];
/// `outcome` of telling a peer.
pub const IOC_SENDINGS: &[&str] = &["delivered", "refused", "failed"];
/// `outcome` of a sensor's report that can be read.
pub const SENSOR_OUTCOMES: &[&str] = &["taken", "repeated"];
/// `reason` of one that is refused.
pub const SENSOR_REFUSALS: &[&str] = &["malformed", "oversize"];
/// `part` of what sensors say that they could not tell.
pub const SENSOR_LOSSES: &[&str] = &["kernel", "full", "unsent"];
/// `state` of a sensor.
pub const SENSOR_STATES: &[&str] = &["reporting", "silent"];
/// `reason` of a request refused at the admin endpoint.
pub const ADMIN_REFUSALS: &[&str] = &["unauthorised", "role", "rate", "busy"];

/// Seconds of work inside the process: microseconds, and what is far too long.
const SHORT_BUCKETS_SECONDS: &[f64] =
    &[0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.1, 1.0];

/// Seconds, from a cached first byte to the longest reasoning answer.
const BUCKETS_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0,
    600.0,
];

/// The gateway's metrics, all in a registry of their own.
#[derive(Debug)]
pub struct Metrics {
    /// Transactions of the store by `outcome`.
    pub store_commits: IntCounterVec,
    /// Their duration.
    pub store_commit_duration: HistogramVec,
    /// 1 while the store cannot be written.
    pub store_failing: IntGauge,
    /// Changes that wait to be written.
    pub store_unwritten: IntGauge,
    /// Changes that were given up.
    pub store_dropped: IntCounter,
    /// Rows of accounts written.
    pub rows_written: IntCounter,
    /// Rows of accounts taken back.
    pub rows_read: IntCounter,
    /// Rows of accounts that were left out.
    pub rows_damaged: IntCounter,
    /// Failed reads and writes of rows.
    pub rows_failures: IntCounter,
    /// Accounts that wait to be written.
    pub rows_waiting: IntGauge,
    /// For how long at most.
    pub rows_lag: IntGauge,
    /// Requests whose account's row was not there in time.
    pub rows_late: IntCounter,
    registry: Registry,
    process: Process,
    /// Connections accepted on all listeners.
    pub connections_accepted: IntCounter,
    /// Connections open now.
    pub connections_open: IntGauge,
    /// Connections closed at accept, by `reason` ([`CONNECTION_REFUSALS`]).
    pub connections_refused: IntCounterVec,
    /// TLS handshakes, by `outcome` ([`HANDSHAKE_OUTCOMES`]) and `version` ([`TLS_VERSIONS`]).
    pub handshakes: IntCounterVec,
    /// ClientHello messages, by `outcome` ([`HELLO_OUTCOMES`]).
    pub hellos: IntCounterVec,
    /// Requests, by `format`, HTTP `version`, `route` and `status` class ([`status_class`]).
    pub requests: IntCounterVec,
    /// Exchanges between a request's arrival and its answer's end.
    pub exchanges_in_flight: IntGauge,
    /// Requests that the gateway itself answered with an error, by `reason`.
    pub refusals: IntCounterVec,
    /// Requests refused for ambiguous framing (request smuggling), by `kind`.
    pub framing_refused: IntCounterVec,
    /// HTTP/2 connections ended for abuse (rapid reset and kin), by `kind`.
    pub h2_abuse: IntCounterVec,
    /// Requests that no wire capture was found for.
    pub capture_missed: IntCounter,
    /// Requests that carried several credentials that differ.
    pub credentials_ambiguous: IntCounter,
    /// Seconds from a request's arrival to its answer's end, by `format`.
    pub request_duration: HistogramVec,
    /// Seconds from a request's last byte to its answer's first, by `format`.
    pub first_byte: HistogramVec,
    /// Body bytes, by `direction` ([`DIRECTIONS`]).
    pub body_bytes: IntCounterVec,
    /// Tokens as the providers counted them, by `kind` ([`TOKEN_KINDS`]) and `format`.
    pub answer_tokens: IntCounterVec,
    /// Attempts on members, by `upstream` and `outcome` ([`ATTEMPT_OUTCOMES`]).
    pub upstream_attempts: IntCounterVec,
    /// Members that are healthy now, by `upstream`.
    pub upstream_members_healthy: IntGaugeVec,
    /// Further attempts after a first that failed, by `upstream`.
    pub retries: IntCounterVec,
    /// Request bodies that were recognised and could not be read, by `format`.
    pub bodies_unreadable: IntCounterVec,
    /// Answers that passed without being read, by `reason` ([`UNREAD_REASONS`]).
    pub answers_unread: IntCounterVec,
    /// Exchanges written to the trace.
    pub exchanges_recorded: IntCounter,
    /// Exchanges lost to the trace: the queue was full, or the file could not be written.
    pub exchanges_shed: IntCounter,
    /// Exchanges of which turns, tools or attachments beyond a bound were not kept.
    pub exchanges_cut: IntCounter,
    /// Lookups and contacts lost to the trace.
    pub sensed_shed: IntCounter,
    /// Failed writes to the trace.
    pub record_errors: IntCounter,
    /// Certificates read again, by `outcome` ([`RELOAD_OUTCOMES`]).
    pub certificate_reloads: IntCounterVec,
    /// Policies read again, by `outcome` ([`RELOAD_OUTCOMES`]).
    pub policy_reloads: IntCounterVec,
    /// Judgements, by the `tier` that they gave.
    pub judgements: IntCounterVec,
    /// Requests whose judgement was not there in time.
    pub judgements_late: IntCounter,
    /// Prompts and answers that wait for the background detectors.
    pub judgements_queued: IntGauge,
    /// Prompts and answers that the background detectors never saw, by `part` ([`SHED_PARTS`]).
    pub judgements_shed: IntCounterVec,
    /// Actions, by `action` and `mode` ([`ACTION_MODES`]).
    pub actions: IntCounterVec,
    /// Requests that a limit refused or would have, by `scope` and `mode` ([`ACTION_MODES`]).
    pub throttled: IntCounterVec,
    /// Answers that are being sent at a pace.
    pub streams_paced: IntGauge,
    /// Seconds that the judgement of a request took before its upstream was asked.
    pub judgement_duration: HistogramVec,
    /// Accounts pushed out of the review queue.
    pub reviews_dropped: IntCounter,
    /// Prompts that held a mark or a canary of ours, by `layer` ([`MARK_LAYERS`]).
    pub marks_recognised: IntCounterVec,
    /// Indicators that are held.
    pub ioc_held: IntGauge,
    /// Indicators that requests were found to show, by `kind`.
    pub ioc_hits: IntCounterVec,
    /// Bundles that came from peers, by `outcome` ([`IOC_OUTCOMES`]).
    pub ioc_bundles_received: IntCounterVec,
    /// Bundles that were sent to peers, by `peer` and `outcome` ([`IOC_SENDINGS`]).
    pub ioc_bundles_sent: IntCounterVec,
    /// Questions to peers for news that failed, by `peer`.
    pub ioc_pulls_failed: IntCounterVec,
    /// Whether the other gateways are heard from: 0 or 1.
    pub fleet_connected: IntGauge,
    /// When they last were, unix seconds.
    pub fleet_last_sync: Gauge,
    /// Words, by `direction` ([`DIRECTIONS`]).
    pub fleet_words: IntCounterVec,
    /// Memories of accounts, by `direction` ([`DIRECTIONS`]).
    pub fleet_contributions: IntCounterVec,
    /// Bytes to and from Redis, by `direction` ([`DIRECTIONS`]).
    pub fleet_bytes: IntCounterVec,
    /// Failures between gateways, by `kind` ([`FLEET_ERRORS`]).
    pub fleet_errors: IntCounterVec,
    /// Comparisons of everything with what Redis holds.
    pub fleet_reconciles: IntCounter,
    /// What was not shared because there was too much of it, by `part` ([`FLEET_PARTS`]).
    pub fleet_shed: IntCounterVec,
    /// Answers that went without marks because the marks could not be put on record in time.
    pub marks_unregistered: IntCounter,
    /// Sensors' reports, by `outcome` ([`SENSOR_OUTCOMES`]).
    pub sensor_reports: IntCounterVec,
    /// Sensors' reports that were refused, by `reason` ([`SENSOR_REFUSALS`]).
    pub sensor_refused: IntCounterVec,
    /// Lookups that sensors told of, by `transport`.
    pub sensor_lookups: IntCounterVec,
    /// Contacts that sensors told of.
    pub sensor_contacts: IntCounter,
    /// What sensors say that they could not tell, by `part` ([`SENSOR_LOSSES`]).
    pub sensor_lost: IntCounterVec,
    /// When a sensor last reported, unix seconds.
    pub sensor_last_report: Gauge,
    /// Sensors that are known, by `state` ([`SENSOR_STATES`]).
    pub sensors: IntGaugeVec,
    /// Sensors that were forgotten because there were too many.
    pub sensors_forgotten: IntCounter,
    /// Number of the audit's last entry.
    pub audit_entries: IntGauge,
    /// Attempts to send messages, by `webhook` and `outcome` ([`WEBHOOK_OUTCOMES`]).
    pub webhook_deliveries: IntCounterVec,
    /// Audit entries that a `webhook` is behind.
    pub webhook_lag: IntGaugeVec,
    /// Age of a `webhook`'s oldest message that was not taken, in seconds; 0 when there is none.
    pub webhook_oldest: IntGaugeVec,
    /// Requests refused at the admin endpoint.
    pub admin_refused: IntCounterVec,
    /// Long answers and bodies at the admin endpoint that are under way.
    pub admin_streams: IntGauge,
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// Only if two entries of the list share a name or one is malformed.
    #[rustfmt::skip]
    pub fn new() -> Result<Self, Error> {
        let list = List(Registry::new());
        let metrics = Self {
            process: Process::register(&list)?,
            connections_accepted: list.counter("connections_accepted_total", "Connections accepted")?,
            connections_open: list.gauge("connections_open", "Connections open now")?,
            connections_refused: list.counters("connections_refused_total", "Connections closed at accept", &["reason"])?,
            handshakes: list.counters("tls_handshakes_total", "TLS handshakes", &["outcome", "version"])?,
            hellos: list.counters("client_hellos_total", "ClientHello messages captured or missing", &["outcome"])?,
            requests: list.counters("requests_total", "Requests", &["format", "version", "route", "status"])?,
            exchanges_in_flight: list.gauge("exchanges_in_flight", "Exchanges between arrival and the answer's end")?,
            refusals: list.counters("refusals_total", "Requests answered with an error by the gateway itself", &["reason"])?,
            framing_refused: list.counters("framing_refused_total", "Requests refused for ambiguous framing", &["kind"])?,
            h2_abuse: list.counters("h2_abuse_total", "HTTP/2 connections ended for abuse", &["kind"])?,
            capture_missed: list.counter("capture_missed_total", "Requests without a wire capture")?,
            credentials_ambiguous: list.counter("credentials_ambiguous_total", "Requests with several credentials that differ")?,
            request_duration: list.seconds("request_duration_seconds", "From a request's arrival to its answer's end", &["format"])?,
            first_byte: list.seconds("first_byte_seconds", "From a request's last byte to its answer's first", &["format"])?,
            body_bytes: list.counters("body_bytes_total", "Body bytes from clients and for them", &["direction"])?,
            answer_tokens: list.counters("answer_tokens_total", "Tokens as the providers counted them", &["kind", "format"])?,
            upstream_attempts: list.counters("upstream_attempts_total", "Attempts on upstream members", &["upstream", "outcome"])?,
            upstream_members_healthy: list.gauges("upstream_members_healthy", "Upstream members that are healthy now", &["upstream"])?,
            retries: list.counters("retries_total", "Further attempts after a first that failed", &["upstream"])?,
            bodies_unreadable: list.counters("bodies_unreadable_total", "Request bodies that could not be read", &["format"])?,
            answers_unread: list.counters("answers_unread_total", "Answers passed without being read", &["reason"])?,
            exchanges_recorded: list.counter("exchanges_recorded_total", "Exchanges written to the trace")?,
            exchanges_shed: list.counter("exchanges_shed_total", "Exchanges lost to the trace")?,
            exchanges_cut: list.counter("exchanges_cut_total", "Exchanges kept without what lay beyond a bound")?,
            sensed_shed: list.counter("sensed_shed_total", "Lookups and contacts that sensors told of, lost to the trace")?,
            record_errors: list.counter("record_errors_total", "Failed writes to the trace")?,
            certificate_reloads: list.counters("certificate_reloads_total", "Certificates read again", &["outcome"])?,
            policy_reloads: list.counters("policy_reloads_total", "Policies read again", &["outcome"])?,
            judgements: list.counters("judgements_total", "Judgements", &["tier"])?,
            judgements_late: list.counter("judgements_late_total", "Requests whose judgement was not there in time")?,
            judgements_queued: list.gauge("judgements_queued", "Prompts and answers that wait for the background detectors")?,
            judgements_shed: list.counters("judgements_shed_total", "Prompts and answers that the background detectors never saw", &["part"])?,
            actions: list.counters("actions_total", "Actions taken, or counted in shadow", &["action", "mode"])?,
            throttled: list.counters("throttled_total", "Requests that a limit refused, or would have", &["scope", "mode"])?,
            streams_paced: list.gauge("streams_paced", "Answers that are being sent at a pace")?,
            judgement_duration: list.short_seconds("judgement_duration_seconds", "Judgement of a request before its upstream is asked", &[])?,
            reviews_dropped: list.counter("reviews_dropped_total", "Accounts pushed out of the review queue")?,
            marks_recognised: list.counters("marks_recognised_total", "Prompts that held a mark or a canary of ours", &["layer"])?,
            ioc_held: list.gauge("ioc_indicators_held", "Indicators of compromise that are held")?,
            ioc_hits: list.counters("ioc_hits_total", "Indicators that requests were found to show", &["kind"])?,
            ioc_bundles_received: list.counters("ioc_bundles_received_total", "Bundles of indicators that came from peers", &["outcome"])?,
            ioc_bundles_sent: list.counters("ioc_bundles_sent_total", "Bundles of indicators that were sent to peers", &["peer", "outcome"])?,
            ioc_pulls_failed: list.counters("ioc_pulls_failed_total", "Questions to peers for bundles that failed", &["peer"])?,
            fleet_connected: list.gauge("fleet_connected", "Whether the other gateways are heard from")?,
            fleet_last_sync: list.number("fleet_last_sync_timestamp_seconds", "When the other gateways were last heard from, since the unix epoch")?,
            fleet_words: list.counters("fleet_words_total", "Words sent to other gateways and taken from them", &["direction"])?,
            fleet_contributions: list.counters("fleet_contributions_total", "Memories of accounts sent to other gateways and taken from them", &["direction"])?,
            fleet_bytes: list.counters("fleet_bytes_total", "Bytes of what gateways share, without TLS and TCP", &["direction"])?,
            fleet_errors: list.counters("fleet_errors_total", "Failures between gateways", &["kind"])?,
            fleet_reconciles: list.counter("fleet_reconciles_total", "Comparisons of everything with what Redis holds")?,
            fleet_shed: list.counters("fleet_shed_total", "What was not shared because there was too much of it", &["part"])?,
            marks_unregistered: list.counter("marks_unregistered_total", "Answers without marks because these could not be put on record in time")?,
            store_commits: list.counters("store_commits_total", "Transactions of the store", &["outcome"])?,
            store_commit_duration: list.short_seconds("store_commit_duration_seconds", "Transactions of the store until they are on disk", &[])?,
            store_failing: list.gauge("store_failing", "1 while the store cannot be written")?,
            store_unwritten: list.gauge("store_unwritten", "Changes that wait until the store can be written again")?,
            store_dropped: list.counter("store_dropped_total", "Changes that were never written")?,
            rows_written: list.counter("account_rows_written_total", "Rows of accounts written to the store")?,
            rows_read: list.counter("account_rows_read_total", "Rows of accounts taken back from the store")?,
            rows_damaged: list.counter("account_rows_damaged_total", "Rows of accounts that could not be read and were left out")?,
            rows_failures: list.counter("account_rows_failures_total", "Failed reads and writes of rows of accounts")?,
            rows_waiting: list.gauge("account_rows_waiting", "Accounts that have changed since their rows were written")?,
            rows_lag: list.gauge("account_rows_lag_seconds", "Longest time for which a change of an account may have waited to be written")?,
            rows_late: list.counter("account_rows_late_total", "Requests whose account's row was not there in time")?,
            sensor_reports: list.counters("sensor_reports_total", "Reports of DNS sensors", &["outcome"])?,
            sensor_refused: list.counters("sensor_reports_refused_total", "Reports of DNS sensors that were refused", &["reason"])?,
            sensor_lookups: list.counters("sensor_lookups_total", "Lookups that sensors told of, alike ones once a report", &["transport"])?,
            sensor_contacts: list.counter("sensor_contacts_total", "Contacts without a name that sensors told of, alike ones once a report")?,
            sensor_lost: list.counters("sensor_lost_total", "What sensors say that they could not tell", &["part"])?,
            sensor_last_report: list.number("sensor_last_report_timestamp_seconds", "When a sensor last reported, since the unix epoch")?,
            sensors: list.gauges("sensors", "Sensors that report, and that have not for a minute", &["state"])?,
            sensors_forgotten: list.counter("sensors_forgotten_total", "Sensors that were forgotten because there were too many")?,
            audit_entries: list.gauge("audit_entries", "Number of the audit's last entry")?,
            webhook_deliveries: list.counters("webhook_deliveries_total", "Attempts to send a webhook's messages", &["webhook", "outcome"])?,
            webhook_lag: list.gauges("webhook_lag_entries", "Audit entries that a webhook is behind", &["webhook"])?,
            webhook_oldest: list.gauges("webhook_oldest_seconds", "Age of a webhook's oldest message that was not taken", &["webhook"])?,
            admin_refused: list.counters("admin_refused_total", "Requests refused at the admin endpoint", &["reason"])?,
            admin_streams: list.gauge("admin_streams", "Long answers and bodies at the admin endpoint under way")?,
            registry: list.0,
        };
        metrics.start_at_zero();
        metrics.register_build_info()?;
        Ok(metrics)
    }

    /// The text exposition format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        self.process.refresh();
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            log::error!("metrics cannot be rendered: {error}");
            String::new()
        })
    }

    /// Series of the closed sets exist from the start, so that a rate over a rare event sees its
    /// first occurrence as a rise from zero.
    fn start_at_zero(&self) {
        for (counters, values) in [
            (&self.connections_refused, CONNECTION_REFUSALS),
            (&self.hellos, HELLO_OUTCOMES),
            (&self.body_bytes, DIRECTIONS),
            (&self.answers_unread, UNREAD_REASONS),
            (&self.certificate_reloads, RELOAD_OUTCOMES),
            (&self.policy_reloads, RELOAD_OUTCOMES),
            (&self.judgements_shed, SHED_PARTS),
            (&self.marks_recognised, MARK_LAYERS),
            (&self.store_commits, STORE_OUTCOMES),
            (&self.ioc_bundles_received, IOC_OUTCOMES),
            (&self.sensor_reports, SENSOR_OUTCOMES),
            (&self.sensor_refused, SENSOR_REFUSALS),
            (&self.sensor_lost, SENSOR_LOSSES),
            (&self.admin_refused, ADMIN_REFUSALS),
            (&self.fleet_words, DIRECTIONS),
            (&self.fleet_contributions, DIRECTIONS),
            (&self.fleet_bytes, DIRECTIONS),
            (&self.fleet_errors, FLEET_ERRORS),
            (&self.fleet_shed, FLEET_PARTS),
        ] {
            for value in values {
                counters.with_label_values(&[value]).inc_by(0);
            }
        }
        for version in ["1.3", "1.2"] {
            self.handshakes.with_label_values(&["ok", version]).inc_by(0);
        }
        for outcome in ["failed", "timeout", "not_tls"] {
            self.handshakes.with_label_values(&[outcome, "none"]).inc_by(0);
        }
        for mode in ACTION_MODES {
            for action in Action::ALL {
                self.actions.with_label_values(&[action.name(), mode]).inc_by(0);
            }
        }
        for kind in Kind::ALL {
            self.ioc_hits.with_label_values(&[kind.name()]).inc_by(0);
        }
        for transport in Transport::ALL {
            self.sensor_lookups.with_label_values(&[transport.name()]).inc_by(0);
        }
        for state in SENSOR_STATES {
            self.sensors.with_label_values(&[state]).set(0);
        }
        for tier in Tier::ALL {
            self.judgements.with_label_values(&[tier.name()]).inc_by(0);
        }
        for format in Format::ALL {
            self.bodies_unreadable.with_label_values(&[format.name()]).inc_by(0);
        }
    }

    fn register_build_info(&self) -> Result<(), Error> {
        let opts = Opts::new("stillgate_build_info", "1, with the running version as a label")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        let gauge = IntGauge::with_opts(opts)?;
        gauge.set(1);
        self.registry.register(Box::new(gauge))
    }
}

/// The `status` label: `2xx` and kin, `none` when no answer was sent.
#[must_use]
pub fn status_class(status: u16) -> &'static str {
    match status {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        500..=599 => "5xx",
        _ => "none",
    }
}

/// The `version` label of a request.
#[must_use]
pub fn http_version(version: HttpVersion) -> &'static str {
    match version {
        HttpVersion::Http10 => "1.0",
        HttpVersion::Http11 => "1.1",
        HttpVersion::Http2 => "2",
    }
}

/// A registry that metrics are made in.
struct List(Registry);

impl List {
    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.register(IntCounter::new(named(name), help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.register(IntCounterVec::new(Opts::new(named(name), help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.register(IntGauge::new(named(name), help)?)
    }

    fn number(&self, name: &str, help: &str) -> Result<Gauge, Error> {
        self.register(Gauge::new(named(name), help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.register(IntGaugeVec::new(Opts::new(named(name), help), labels)?)
    }

    fn seconds(&self, name: &str, help: &str, labels: &[&str]) -> Result<HistogramVec, Error> {
        let opts = HistogramOpts::new(named(name), help).buckets(BUCKETS_SECONDS.to_vec());
        self.register(HistogramVec::new(opts, labels)?)
    }

    fn short_seconds(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<HistogramVec, Error> {
        let opts = HistogramOpts::new(named(name), help).buckets(SHORT_BUCKETS_SECONDS.to_vec());
        self.register(HistogramVec::new(opts, labels)?)
    }

    fn register<M: Collector + Clone + 'static>(&self, metric: M) -> Result<M, Error> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }
}

fn named(name: &str) -> String {
    format!("stillgate_{name}")
}

/// What the kernel says of this process, read when somebody asks.
#[derive(Debug)]
struct Process {
    start_time: Gauge,
    open_fds: IntGauge,
    resident_memory: IntGauge,
}

impl Process {
    fn register(list: &List) -> Result<Self, Error> {
        let process = Self {
            start_time: list.register(Gauge::new(
                "process_start_time_seconds",
                "Start time of the process since the unix epoch",
            )?)?,
            open_fds: list.register(IntGauge::new("process_open_fds", "Open file descriptors")?)?,
            resident_memory: list
                .register(IntGauge::new("process_resident_memory_bytes", "Resident memory")?)?,
        };
        if let Some(start) = start_time_seconds() {
            process.start_time.set(start);
        }
        Ok(process)
    }

    fn refresh(&self) {
        if let Some(count) = open_fds() {
            self.open_fds.set(count);
        }
        if let Some(bytes) = resident_memory_bytes() {
            self.resident_memory.set(bytes);
        }
    }
}

/// `starttime` is field 22 of `/proc/self/stat` (proc(5)), in ticks since boot. The command in
/// field 2 may hold spaces and brackets, so fields are counted from the last closing bracket.
fn start_time_seconds() -> Option<f64> {
    /// USER_HZ, 100 on every architecture that Rust's standard library supports on Linux.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot_seconds: f64 =
        boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot_seconds + ticks / TICKS_PER_SECOND)
}

fn open_fds() -> Option<i64> {
    // Reading the folder opens one descriptor itself.
    i64::try_from(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1)).ok()
}

fn resident_memory_bytes() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    fn used() -> Metrics {
        let metrics = Metrics::new().unwrap();
        metrics.requests.with_label_values(&["openai_chat", "2", "main", "2xx"]).inc();
        metrics.request_duration.with_label_values(&["openai_chat"]).observe(0.3);
        metrics.first_byte.with_label_values(&["openai_chat"]).observe(700.0);
        metrics.refusals.with_label_values(&["no_route"]).inc();
        metrics.framing_refused.with_label_values(&["two_lengths"]).inc();
        metrics.h2_abuse.with_label_values(&["rapid_reset"]).inc();
        metrics.answer_tokens.with_label_values(&["prompt", "openai_chat"]).inc_by(7);
        metrics.upstream_attempts.with_label_values(&["model", "ok"]).inc();
        metrics.upstream_members_healthy.with_label_values(&["model"]).set(2);
        metrics.retries.with_label_values(&["model"]).inc();
        metrics.webhook_deliveries.with_label_values(&["siem", "taken"]).inc();
        metrics.webhook_lag.with_label_values(&["siem"]).set(1);
        metrics.webhook_oldest.with_label_values(&["siem"]).set(1);
        metrics.throttled.with_label_values(&["account", "taken"]).inc();
        metrics.ioc_bundles_sent.with_label_values(&["lab-b", "delivered"]).inc();
        metrics.ioc_pulls_failed.with_label_values(&["lab-b"]).inc();
        metrics.judgement_duration.with_label_values::<&str>(&[]).observe(0.000_03);
        metrics
    }

    #[test]
    fn names_follow_the_convention() {
        let text = used().render();
        let families: Vec<(&str, &str)> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        assert!(families.len() > 40, "{families:?}");
        for (name, kind) in families {
            assert!(name.starts_with("stillgate_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
            assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
            let help = text.lines().find(|line| line.starts_with(&format!("# HELP {name} ")));
            assert!(help.is_some_and(|help| help.len() > name.len() + 12), "{name} has no help");
        }
    }

    #[test]
    fn values_are_rendered() {
        let text = used().render();
        for line in [
            r#"stillgate_requests_total{format="openai_chat",route="main",status="2xx",version="2"} 1"#,
            r#"stillgate_request_duration_seconds_bucket{format="openai_chat",le="0.25"} 0"#,
            r#"stillgate_request_duration_seconds_bucket{format="openai_chat",le="0.5"} 1"#,
            r#"stillgate_first_byte_seconds_bucket{format="openai_chat",le="600"} 0"#,
            r#"stillgate_first_byte_seconds_count{format="openai_chat"} 1"#,
            r#"stillgate_answer_tokens_total{format="openai_chat",kind="prompt"} 7"#,
            r#"stillgate_upstream_members_healthy{upstream="model"} 2"#,
            concat!(r#"stillgate_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""} 1"#),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn closed_sets_start_at_zero() {
        let text = Metrics::new().unwrap().render();
        for line in [
            r#"stillgate_connections_refused_total{reason="proxy_header"} 0"#,
            r#"stillgate_tls_handshakes_total{outcome="timeout",version="none"} 0"#,
            r#"stillgate_bodies_unreadable_total{format="anthropic_messages"} 0"#,
            r#"stillgate_certificate_reloads_total{outcome="failed"} 0"#,
            "stillgate_exchanges_shed_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_process_is_measured() {
        let text = Metrics::new().unwrap().render();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            line.rsplit_once(' ').unwrap().1.parse().unwrap()
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let started = value("process_start_time_seconds");
        assert!(started > now - 86_400.0 && started < now + 2.0, "{started} against {now}");
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_resident_memory_bytes") > 100_000.0);
    }

    #[test]
    fn status_classes() {
        for (status, class) in
            [(0, "none"), (101, "1xx"), (200, "2xx"), (304, "3xx"), (429, "4xx"), (599, "5xx")]
        {
            assert_eq!(status_class(status), class);
        }
        assert_eq!(status_class(600), "none");
    }
}
