//! What all connections share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use detectors::{AccountId, Observation};

use crate::account::AccountNamer;
use crate::admin::Readiness;
use crate::config::Config;
use crate::enforce::Enforcer;
use crate::exchanges::ExchangeLog;
use crate::metrics::{Metrics, http_version, status_class};
use crate::proxy::body::BodyMemory;
use crate::route::RouteTable;
use crate::upstream::UpstreamPool;

/// The running gateway.
pub struct Gateway {
    /// Settings.
    pub config: Config,
    /// Where requests go.
    pub routes: RouteTable,
    /// Upstream groups, in the order of [`Config::upstreams`].
    pub pools: Vec<UpstreamPool>,
    /// Names accounts.
    pub namer: AccountNamer,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The latest exchanges, and the trace if one is recorded.
    pub exchanges: Arc<ExchangeLog>,
    /// Judges requests and says what is done about them.
    pub enforcer: Arc<Enforcer>,
    /// The memory of request bodies.
    pub bodies: Arc<BodyMemory>,
    identifiers: Identifiers,
    connections_open: AtomicUsize,
    listening: AtomicBool,
    draining: AtomicBool,
}

/// Held while a connection is open.
pub struct OpenConnection<'a>(&'a Gateway);

impl Gateway {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        config: Config,
        pools: Vec<UpstreamPool>,
        namer: AccountNamer,
        metrics: Arc<Metrics>,
        exchanges: Arc<ExchangeLog>,
        enforcer: Arc<Enforcer>,
    ) -> Self {
        Self {
            routes: RouteTable::new(&config.routes),
            bodies: Arc::new(BodyMemory::new(config.limits.bodies_bytes_max)),
            identifiers: Identifiers::new(random_u64()),
            config,
            pools,
            namer,
            metrics,
            exchanges,
            enforcer,
            connections_open: AtomicUsize::new(0),
            listening: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    /// Counts a connection in, or refuses it at the limit.
    #[must_use]
    pub fn open_connection(&self) -> Option<OpenConnection<'_>> {
        let before = self.connections_open.fetch_add(1, Ordering::Relaxed);
        let open = OpenConnection(self);
        self.metrics.connections_open.inc();
        self.metrics.connections_accepted.inc();
        if before >= self.config.limits.connections_max {
            self.metrics.connections_refused.with_label_values(&["limit"]).inc();
            return None;
        }
        Some(open)
    }

    /// Connections open now.
    #[must_use]
    pub fn connections_open(&self) -> usize {
        self.connections_open.load(Ordering::Relaxed)
    }

    /// Every listening socket is open.
    pub fn listening(&self) {
        self.listening.store(true, Ordering::Relaxed);
    }

    /// From now on no new work is to be sent here.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether requests can be served; otherwise why not.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        if self.draining.load(Ordering::Relaxed) {
            return Readiness::Draining;
        }
        if !self.listening.load(Ordering::Relaxed) {
            return Readiness::Starting;
        }
        let mut down = Vec::new();
        for pool in &self.pools {
            let name = &pool.config().name;
            let healthy = pool.healthy_members();
            let gauge = self.metrics.upstream_members_healthy.with_label_values(&[name]);
            gauge.set(i64::try_from(healthy).unwrap_or(i64::MAX));
            if healthy == 0 {
                down.push(name.to_string());
            }
        }
        if down.is_empty() { Readiness::Ready } else { Readiness::NoHealthyUpstream(down) }
    }

    /// Takes an exchange that has ended: counts it and hands it on.
    pub fn observed(&self, observation: Observation) {
        let metrics = &self.metrics;
        let format = observation.format.name();
        let answer = &observation.answer;
        metrics
            .requests
            .with_label_values(&[
                format,
                http_version(observation.http.version),
                &observation.route,
                status_class(answer.status),
            ])
            .inc();
        let seconds = answer.duration_ms as f64 / 1000.0;
        metrics.request_duration.with_label_values(&[format]).observe(seconds);
        if let Some(first) = answer.first_byte_ms {
            metrics.first_byte.with_label_values(&[format]).observe(first as f64 / 1000.0);
        }
        metrics.body_bytes.with_label_values(&["out"]).inc_by(answer.bytes);
        if let Some(usage) = answer.usage {
            let tokens = &metrics.answer_tokens;
            tokens.with_label_values(&["prompt", format]).inc_by(usage.prompt_tokens);
            tokens.with_label_values(&["completion", format]).inc_by(usage.completion_tokens);
        }
        tracing::debug!(
            target: "stillgate::access",
            id = observation.id,
            account = observation.account.as_ref().map(AccountId::as_str),
            route = %observation.route,
            method = observation.http.method,
            path = observation.http.path.split('?').next().unwrap_or_default(),
            status = answer.status,
            bytes = answer.bytes,
            duration_ms = answer.duration_ms,
            "exchange"
        );
        self.exchanges.push(observation);
    }

    /// Counts a request that the gateway answers with an error of its own.
    pub fn refused(&self, reason: &str) {
        self.metrics.refusals.with_label_values(&[reason]).inc();
    }

    /// Counts an attempt on a member.
    pub fn upstream_attempt(&self, upstream: &str, outcome: &str) {
        self.metrics.upstream_attempts.with_label_values(&[upstream, outcome]).inc();
    }

    /// A new exchange's name.
    #[must_use]
    pub fn exchange_id(&self) -> String {
        format!("r{:016x}", self.identifiers.next())
    }

    /// A value that a client cannot guess.
    #[must_use]
    pub fn nonce(&self) -> u64 {
        random_u64()
    }
}

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.connections_open.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.connections_open.dec();
    }
}

/// Unique names that do not tell how many exchanges came before.
struct Identifiers {
    base: u64,
    count: AtomicU64,
}

impl Identifiers {
    fn new(base: u64) -> Self {
        Self { base, count: AtomicU64::new(0) }
    }

    fn next(&self) -> u64 {
        // An odd multiplier permutes the counter, so that names stay unique.
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        self.base.wrapping_add(count.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // The system's random source fails only where nothing else would work either.
    if provider.secure_random.fill(&mut bytes).is_err() {
        tracing::error!("no random numbers from the system");
        std::process::abort();
    }
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn identifiers_are_unique() {
        let identifiers = Identifiers::new(random_u64());
        let seen: HashSet<u64> = (0..10_000).map(|_| identifiers.next()).collect();
        assert_eq!(seen.len(), 10_000);
    }
}
