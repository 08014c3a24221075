//! The one list of the sensor's metrics, and the endpoint that serves them.
//!
//! Labels are names of this program and of its configuration; none is taken from what was seen.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{
    Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::classify::Counters;
use crate::event::{Event, Kind};
use crate::hooks::{HookState, Outcome};
use crate::limits::{METRICS_CONNECTIONS_MAX, METRICS_HEAD_BYTES_MAX, METRICS_TIMEOUT};
use crate::named::Excuse;
use crate::sighting::{Sighting, Transport};

/// All of them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    events: IntCounterVec,
    /// Events of a layout that this program does not know.
    pub malformed: IntCounter,
    /// Events that the programs handed over.
    pub kernel_emitted: IntCounter,
    /// Events left out because the same was told within a second.
    pub kernel_suppressed: IntCounter,
    sightings: IntCounterVec,
    classifier: IntCounterVec,
    excused: IntCounterVec,
    /// Lookups counted without their name, for want of room.
    pub names_folded: IntCounter,
    /// Hosts with a private address that no `seen_as` covers, in each period.
    pub unmapped: IntCounter,
    /// Clients and told entries that were forgotten early, for want of room.
    pub forgotten: IntCounterVec,
    /// Events that the kernel could not hand over.
    pub lost_kernel: IntCounter,
    /// Sightings that found the tally full.
    pub lost_full: IntCounter,
    /// Entries of the tally.
    pub tally_entries: IntGauge,
    unsent: IntCounterVec,
    sent: IntCounterVec,
    failed: IntCounterVec,
    retold: IntCounterVec,
    queued: IntGaugeVec,
    hooks: IntGaugeVec,
    /// Resolvers on the lists.
    pub resolvers: IntGauge,
    /// Versions of lists that could not be read.
    pub resolvers_refused: IntCounter,
}

/// Those of one gateway.
#[derive(Clone, Debug)]
pub struct TargetMetrics {
    /// Reports that were taken.
    pub sent: IntCounter,
    /// Attempts that failed.
    pub failed: IntCounter,
    /// Entries of reports that were given up.
    pub unsent: IntCounter,
    /// Entries that were told again.
    pub retold: IntCounter,
    /// Reports that wait.
    pub queued: IntGauge,
}

impl Metrics {
    /// The list, with all at zero.
    ///
    /// # Errors
    /// When two have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let list = List { registry: Registry::new() };
        let lost = list.counters("lost_total", "What could not be told, by cause.", &["cause"])?;
        let kernel = list.counters(
            "kernel_events_total",
            "Events by what the kernel programs did with them.",
            &["outcome"],
        )?;
        let metrics = Self {
            events: list.counters(
                "events_total",
                "Events read from the kernel, by program and kind.",
                &["hook", "kind"],
            )?,
            malformed: list
                .counters("events_malformed_total", "Events of an unknown layout.", &[])?
                .with_label_values::<&str>(&[]),
            kernel_emitted: kernel.with_label_values(&["emitted"]),
            kernel_suppressed: kernel.with_label_values(&["suppressed"]),
            sightings: list.counters(
                "sightings_total",
                "Lookups by transport, contacts without a name, connections to the API.",
                &["kind"],
            )?,
            classifier: list.counters(
                "classifier_total",
                "What the classifier counted, by what.",
                &["what"],
            )?,
            excused: list.counters(
                "contacts_excused_total",
                "Contacts that were not told, by why.",
                &["why"],
            )?,
            names_folded: list
                .counters(
                    "names_folded_total",
                    "Lookups counted without their name, for want of room.",
                    &[],
                )?
                .with_label_values::<&str>(&[]),
            unmapped: list
                .counters(
                    "private_hosts_total",
                    "Hosts told with a private address that no seen_as covers, in each period.",
                    &[],
                )?
                .with_label_values::<&str>(&[]),
            forgotten: list.counters(
                "forgotten_total",
                "Clients and told entries that were forgotten early, for want of room.",
                &["what"],
            )?,
            lost_kernel: lost.with_label_values(&["kernel"]),
            lost_full: lost.with_label_values(&["full"]),
            tally_entries: list
                .gauges("tally_entries", "Entries of the period that runs.", &[])?
                .with_label_values::<&str>(&[]),
            unsent: list.counters(
                "entries_unsent_total",
                "Entries of reports that were given up, by gateway.",
                &["gateway"],
            )?,
            sent: list.counters(
                "reports_sent_total",
                "Reports taken, by gateway.",
                &["gateway"],
            )?,
            failed: list.counters(
                "report_attempts_failed_total",
                "Attempts at a report that failed, by gateway.",
                &["gateway"],
            )?,
            retold: list.counters(
                "entries_retold_total",
                "Entries told again to a gateway that was started anew, by gateway.",
                &["gateway"],
            )?,
            queued: list.gauges(
                "reports_queued",
                "Reports that wait, by gateway.",
                &["gateway"],
            )?,
            hooks: list.gauges(
                "hook_attached",
                "1 where a hook is attached, 0 where it is not.",
                &["hook", "target"],
            )?,
            resolvers: list
                .gauges("resolvers", "Resolvers on the lists: addresses, networks and names.", &[])?
                .with_label_values::<&str>(&[]),
            resolvers_refused: list
                .counters(
                    "resolvers_refused_total",
                    "Versions of lists of resolvers that could not be used.",
                    &[],
                )?
                .with_label_values::<&str>(&[]),
            registry: list.registry,
        };
        for kind in SIGHTINGS {
            let _ = metrics.sightings.with_label_values(&[kind]);
        }
        Ok(metrics)
    }

    /// Counts an event.
    pub fn event(&self, event: &Event<'_>) {
        self.events.with_label_values(&[event.hook.name(), kind_name(event.kind)]).inc();
    }

    /// Counts a sighting.
    pub fn sighting(&self, sighting: &Sighting) {
        self.sightings.with_label_values(&[sighting_name(sighting)]).inc();
    }

    /// What the classifier counted since the start.
    pub fn classifier(&self, counters: &Counters) {
        for (what, total) in [
            ("repeated", counters.repeated),
            ("not_dns", counters.not_dns),
            ("not_tls", counters.not_tls),
            ("not_quic", counters.not_quic),
            ("odd", counters.odd),
            ("streams_unread", counters.streams_unread),
            ("streams_full", counters.streams_full),
            ("connections_full", counters.connections_full),
            ("answers", counters.answers),
            ("answers_unread", counters.answers_unread),
            ("named_full", counters.named_full),
        ] {
            raise(&self.classifier.with_label_values(&[what]), total);
        }
        for excuse in Excuse::ALL {
            let counter = self.excused.with_label_values(&[excuse.name()]);
            raise(&counter, counters.excused(excuse));
        }
    }

    /// What was forgotten since the start.
    pub fn forgotten(&self, what: &'static str, total: u64) {
        raise(&self.forgotten.with_label_values(&[what]), total);
    }

    /// Which hooks are attached.
    pub fn hooks(&self, states: &[HookState]) {
        self.hooks.reset();
        for state in states {
            let gauge = self.hooks.with_label_values(&[state.hook, &state.target]);
            // A target may be tried in two ways; one that works counts.
            gauge.set(gauge.get().max(i64::from(state.outcome == Outcome::Attached)));
        }
    }

    /// Those of one gateway.
    #[must_use]
    pub fn target(&self, name: &str) -> TargetMetrics {
        TargetMetrics {
            sent: self.sent.with_label_values(&[name]),
            failed: self.failed.with_label_values(&[name]),
            unsent: self.unsent.with_label_values(&[name]),
            retold: self.retold.with_label_values(&[name]),
            queued: self.queued.with_label_values(&[name]),
        }
    }

    /// All of them as text (Prometheus exposition format 0.0.4).
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!("metrics: {error}");
        }
        text
    }
}

/// Raises a counter to what somebody else counted since the start.
pub fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

struct List {
    registry: Registry,
}

impl List {
    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        let counters = IntCounterVec::new(Self::options(name, help), labels)?;
        self.registry.register(Box::new(counters.clone()))?;
        Ok(counters)
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        let gauges = IntGaugeVec::new(Self::options(name, help), labels)?;
        self.registry.register(Box::new(gauges.clone()))?;
        Ok(gauges)
    }

    fn options(name: &str, help: &str) -> Opts {
        Opts::new(name, help).namespace("stillgate_sensor")
    }
}

/// Kinds of sightings, as metrics and lines name them.
const SIGHTINGS: [&str; 8] = ["udp", "tcp", "dot", "doq", "doh", "doh3", "contact", "client"];

fn sighting_name(sighting: &Sighting) -> &'static str {
    match sighting {
        Sighting::Lookup(lookup) => match lookup.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Dot => "dot",
            Transport::Doq => "doq",
            Transport::Doh => "doh",
            Transport::Doh3 => "doh3",
        },
        Sighting::Contact(_) => "contact",
        Sighting::Client { .. } => "client",
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Query => "query",
        Kind::Answer => "answer",
        Kind::Open => "open",
        Kind::Stream => "stream",
        Kind::Initial => "initial",
    }
}

/// Listens for whoever reads the metrics.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves `GET /metrics` and `GET /healthz`, one request a connection, for as long as the sensor runs.
pub async fn serve(listener: TcpListener, metrics: Metrics) {
    let room = Arc::new(Semaphore::new(METRICS_CONNECTIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("metrics: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let metrics = metrics.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let answer = answer(&request, &metrics);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(METRICS_TIMEOUT)
                .max_buf_size(METRICS_HEAD_BYTES_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            // Whoever breaks off gets no answer; there is nothing else to do about it.
            let _ = timeout(METRICS_TIMEOUT, connection).await;
            drop(permit);
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let of = |status: StatusCode, kind: &'static str, body: Vec<u8>| {
        let mut answer = Response::new(Full::new(Bytes::from(body)));
        *answer.status_mut() = status;
        answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        answer
    };
    let plain = "text/plain; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return of(StatusCode::METHOD_NOT_ALLOWED, plain, b"GET only\n".to_vec());
    }
    match request.uri().path() {
        "/metrics" => of(StatusCode::OK, "text/plain; version=0.0.4", metrics.text()),
        "/healthz" => of(StatusCode::OK, plain, b"ok\n".to_vec()),
        _ => of(StatusCode::NOT_FOUND, plain, b"/metrics or /healthz\n".to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Whoever sends too much may have its answer cut.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn metrics_and_health_are_served_and_nothing_else() {
        let metrics = Metrics::new().unwrap();
        metrics.lost_kernel.inc_by(7);
        let state = |target: &str, outcome| HookState {
            hook: "tc/clients-ingress",
            target: target.into(),
            outcome,
        };
        let why = || "why".to_owned();
        metrics.hooks(&[
            state("eth1", Outcome::Attached),
            state("eth2", Outcome::Refused(why())),
            state("eth3", Outcome::NotNeeded(why())),
        ]);
        metrics.target("unix:/run/a.sock").queued.set(3);
        let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(TcpListener::from_std(listener).unwrap(), metrics));
        let text = ask(address, "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        for line in [
            "stillgate_sensor_lost_total{cause=\"kernel\"} 7",
            "stillgate_sensor_lost_total{cause=\"full\"} 0",
            "stillgate_sensor_sightings_total{kind=\"doh3\"} 0",
            "stillgate_sensor_hook_attached{hook=\"tc/clients-ingress\",target=\"eth1\"} 1",
            "stillgate_sensor_hook_attached{hook=\"tc/clients-ingress\",target=\"eth2\"} 0",
            "stillgate_sensor_hook_attached{hook=\"tc/clients-ingress\",target=\"eth3\"} 0",
            "stillgate_sensor_reports_queued{gateway=\"unix:/run/a.sock\"} 3",
            "stillgate_sensor_resolvers 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        for (request, status) in [
            ("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), "200"),
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), "404"),
            ("POST /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n".to_owned(), "405"),
            (format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "a".repeat(20_000)), "431"),
        ] {
            let answer = ask(address, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        }
    }
}
