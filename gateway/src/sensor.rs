//! What DNS transport sensors tell (T-DIST-006): each report is taken once, its times are put on this
//! gateway's clock, and it goes to the engine and into the trace.
//!
//! A report is acknowledged when the engine has it. Reports are taken one after the other and the
//! engine is held for moments only, so however many come, requests wait for no more than one of
//! those; whoever has to wait is the sensor. Nothing of this is stored: after a restart the instance
//! that each acknowledgement names is another one, and sensors tell again what they know.

pub mod report;
pub mod socket;

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use detectors::{DnsContact, DnsLookup, DnsTransport, Event};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};
use utoipa::ToSchema;

use self::report::{Lost, Malformed, Report, Transport};
use crate::exchanges::ExchangeLog;
use crate::gateway::random_u64;
use crate::judge::Judge;
use crate::limits::{
    SENSOR_AGE_MAX, SENSOR_CLOCK_TOLERANCE, SENSOR_FORGOTTEN_AFTER, SENSOR_LOOK_INTERVAL,
    SENSOR_RUNS_MAX, SENSOR_SILENT_AFTER, SENSORS_MAX,
};
use crate::metrics::Metrics;
use crate::policy::unix_ms;

/// What takes reports, and what is known of who sent them.
pub struct Sensors {
    known: Mutex<Vec<Sensor>>,
    /// Held while a report is taken, so that each is taken once and the engine is asked by one.
    turn: Mutex<()>,
    instance: String,
    judge: Arc<Judge>,
    exchanges: Arc<ExchangeLog>,
    metrics: Arc<Metrics>,
}

/// Which way a report came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the admin address, with a token.
    Token {
        /// From where; `None` where that is unknown.
        address: Option<IpAddr>,
        /// The token's name.
        token: String,
    },
    /// Over the Unix socket.
    Socket,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { address: Some(address), token } => write!(f, "{address} as {token}"),
            Self::Token { address: None, token } => f.write_str(token),
            Self::Socket => f.write_str("socket"),
        }
    }
}

/// A sensor, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SensorView {
    /// Its name in its configuration.
    sensor: String,
    /// The address that it reports from, or `socket`.
    #[schema(required = true)]
    from: Option<String>,
    /// Name of the token that it uses; null on the socket.
    #[schema(required = true)]
    token: Option<String>,
    /// Its last start: 16 hex digits.
    run: String,
    /// Its first report to this process, unix milliseconds.
    first_report_ms: u64,
    /// Its last report, unix milliseconds.
    last_report_ms: u64,
    /// Whether it has not reported for a minute.
    silent: bool,
    /// Reports taken.
    reports: u64,
    /// Reports that came again.
    repeated: u64,
    /// Lookups taken; alike ones count once a report.
    lookups: u64,
    /// Contacts taken; alike ones count once a report.
    contacts: u64,
    /// What it could not tell since its last start.
    lost: LostView,
    /// How far its clock is behind this gateway's, milliseconds.
    clock_offset_ms: i64,
}

/// What a sensor could not tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct LostView {
    /// Events that the kernel could not hand over.
    kernel: u64,
    /// Entries that found its tally full.
    full: u64,
    /// Entries of reports that it gave up.
    unsent: u64,
}

/// What is remembered of a sensor.
#[derive(Debug)]
struct Sensor {
    name: Arc<str>,
    way: Way,
    /// Its starts, the one that reported last at the end.
    runs: VecDeque<Run>,
    first_report_ms: u64,
    last_report_ms: u64,
    heard: Instant,
    silent: bool,
    reports: u64,
    repeated: u64,
    lookups: u64,
    contacts: u64,
    offset_ms: i64,
}

/// One start of a sensor.
#[derive(Debug)]
struct Run {
    id: u64,
    /// Number of its last report that was taken; 0 before the first.
    sequence: u64,
    lost: Lost,
}

impl Sensors {
    /// Nobody is known yet.
    #[must_use]
    pub fn new(judge: Arc<Judge>, exchanges: Arc<ExchangeLog>, metrics: Arc<Metrics>) -> Self {
        let instance = format!("{:016x}", random_u64());
        let (known, turn) = (Mutex::default(), Mutex::default());
        Self { known, turn, instance, judge, exchanges, metrics }
    }

    /// Random for each process: a sensor that sees another one tells again what it knows.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Takes a report, whole or not at all. How many of its entries were taken: none of a report
    /// that was taken before. Waits for reports before this one, and for the engine.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn take(&self, json: &[u8], way: Way) -> Result<usize, Malformed> {
        let report = Report::read(json).inspect_err(|_| self.refused("malformed"))?;
        let _turn = self.turn.lock();
        let (now_ms, now) = (unix_ms(), Instant::now());
        let offset_ms = clock_offset(report.sent_at_ms, now_ms);
        if !self.begin(&report, way, offset_ms, now_ms, now) {
            self.metrics.sensor_reports.with_label_values(&["repeated"]).inc();
            return Ok(0);
        }
        let corrected = beyond_tolerance(offset_ms);
        let (events, entries) = (events(&report, corrected, now_ms), report.entries());
        self.judge.observe_sensed(&events);
        self.exchanges.sensed(events);
        self.count(&report, now_ms);
        Ok(entries)
    }

    /// Counts a report that was refused.
    pub fn refused(&self, reason: &str) {
        self.metrics.sensor_refused.with_label_values(&[reason]).inc();
    }

    /// Every sensor that is known, by its name.
    #[must_use]
    pub fn list(&self) -> Vec<SensorView> {
        let now = Instant::now();
        let mut list: Vec<_> = self.known.lock().iter().map(|sensor| sensor.view(now)).collect();
        list.sort_unstable_by(|a, b| a.sensor.cmp(&b.sensor));
        list
    }

    /// Tells of sensors that fall silent, until the process ends.
    pub async fn watch(&self, mut shutdown: watch::Receiver<bool>) {
        let mut interval = tokio::time::interval(SENSOR_LOOK_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = interval.tick() => self.look(Instant::now()),
                _ = shutdown.wait_for(|down| *down) => return,
            }
        }
    }

    /// Tells once of each sensor that is silent by now, and forgets those that are for long.
    fn look(&self, now: Instant) {
        let mut known = self.known.lock();
        known.retain(|sensor| now.duration_since(sensor.heard) < SENSOR_FORGOTTEN_AFTER);
        for sensor in known.iter_mut().filter(|sensor| !sensor.silent && sensor.is_silent(now)) {
            sensor.silent = true;
            let seconds = SENSOR_SILENT_AFTER.as_secs();
            warn!(sensor = %sensor.name, "a sensor has not reported for {seconds} s");
        }
        self.tell_numbers(&known);
    }

    fn tell_numbers(&self, known: &[Sensor]) {
        let silent = known.iter().filter(|sensor| sensor.silent).count();
        let set = |state: &str, count: usize| {
            let gauge = self.metrics.sensors.with_label_values(&[state]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set("silent", silent);
        set("reporting", known.len() - silent);
    }

    /// Notes a report; `false` where it was taken before.
    fn begin(&self, report: &Report, way: Way, offset_ms: i64, now_ms: u64, now: Instant) -> bool {
        let mut known = self.known.lock();
        let place = known.iter().position(|sensor| sensor.name == report.sensor);
        let place = place.unwrap_or_else(|| {
            if known.len() >= SENSORS_MAX {
                let silent = known.iter().enumerate().min_by_key(|(_, sensor)| sensor.heard);
                let silent = silent.map_or(0, |(place, _)| place);
                let forgotten = known.swap_remove(silent);
                self.metrics.sensors_forgotten.inc();
                warn!(sensor = %forgotten.name, "forgotten: more than {SENSORS_MAX} sensors report");
            }
            info!(sensor = %report.sensor, %way, "a sensor reports for the first time");
            known.push(Sensor::new(report.sensor.clone(), way.clone(), now_ms, now));
            known.len() - 1
        });
        let sensor = &mut known[place];
        if sensor.silent {
            let seconds = now.duration_since(sensor.heard).as_secs();
            info!(sensor = %sensor.name, "a sensor reports again, after {seconds} s");
        }
        (sensor.silent, sensor.heard, sensor.last_report_ms) = (false, now, now_ms);
        (sensor.way, sensor.offset_ms) = (way, offset_ms);
        let run = sensor.run(report.run);
        let fresh = report.sequence > run.sequence;
        if fresh {
            let before = std::mem::replace(&mut run.lost, report.lost);
            run.sequence = report.sequence;
            self.count_lost(before, report.lost);
            sensor.reports += 1;
            sensor.lookups += report.lookups.len() as u64;
            sensor.contacts += report.contacts.len() as u64;
        } else {
            sensor.repeated += 1;
        }
        self.tell_numbers(&known);
        fresh
    }

    fn count_lost(&self, before: Lost, now: Lost) {
        for (part, before, now) in [
            ("kernel", before.kernel, now.kernel),
            ("full", before.full, now.full),
            ("unsent", before.unsent, now.unsent),
        ] {
            let lost = self.metrics.sensor_lost.with_label_values(&[part]);
            lost.inc_by(now.saturating_sub(before));
        }
    }

    fn count(&self, report: &Report, now_ms: u64) {
        let metrics = &self.metrics;
        metrics.sensor_reports.with_label_values(&["taken"]).inc();
        metrics.sensor_last_report.set(now_ms as f64 / 1000.0);
        for lookup in &report.lookups {
            metrics.sensor_lookups.with_label_values(&[lookup.transport.name()]).inc();
        }
        metrics.sensor_contacts.inc_by(report.contacts.len() as u64);
    }
}

impl Sensor {
    fn new(name: Arc<str>, way: Way, now_ms: u64, now: Instant) -> Self {
        Self {
            name,
            way,
            runs: VecDeque::with_capacity(1),
            first_report_ms: now_ms,
            last_report_ms: now_ms,
            heard: now,
            silent: false,
            reports: 0,
            repeated: 0,
            lookups: 0,
            contacts: 0,
            offset_ms: 0,
        }
    }

    /// What is remembered of a start, which is the last one now.
    fn run(&mut self, id: u64) -> &mut Run {
        let known = self.runs.iter().position(|run| run.id == id);
        let run = known.and_then(|place| self.runs.remove(place)).unwrap_or_else(|| {
            if self.runs.len() >= SENSOR_RUNS_MAX {
                self.runs.pop_front();
            }
            Run { id, sequence: 0, lost: Lost::default() }
        });
        self.runs.push_back(run);
        let last = self.runs.len() - 1;
        &mut self.runs[last]
    }

    fn is_silent(&self, now: Instant) -> bool {
        now.duration_since(self.heard) >= SENSOR_SILENT_AFTER
    }

    fn view(&self, now: Instant) -> SensorView {
        let (from, token) = match &self.way {
            Way::Socket => (Some("socket".to_owned()), None),
            Way::Token { address, token } => {
                (address.map(|ip| ip.to_canonical().to_string()), Some(token.clone()))
            }
        };
        let (run, lost) = self.runs.back().map_or((0, Lost::default()), |run| (run.id, run.lost));
        let Lost { kernel, full, unsent } = lost;
        SensorView {
            sensor: self.name.to_string(),
            from,
            token,
            run: format!("{run:016x}"),
            first_report_ms: self.first_report_ms,
            last_report_ms: self.last_report_ms,
            silent: self.is_silent(now),
            reports: self.reports,
            repeated: self.repeated,
            lookups: self.lookups,
            contacts: self.contacts,
            lost: LostView { kernel, full, unsent },
            clock_offset_ms: self.offset_ms,
        }
    }
}

/// How far a sensor's clock is behind, milliseconds. The way of a report is taken for no time.
fn clock_offset(sent_at_ms: u64, now_ms: u64) -> i64 {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    signed(now_ms).saturating_sub(signed(sent_at_ms))
}

/// What is added to a sensor's times.
fn beyond_tolerance(offset_ms: i64) -> i64 {
    let within = Duration::from_millis(offset_ms.unsigned_abs()) <= SENSOR_CLOCK_TOLERANCE;
    if within { 0 } else { offset_ms }
}

/// A report in the engine's words, in the order of their times.
fn events(report: &Report, offset_ms: i64, now_ms: u64) -> Vec<Event> {
    let oldest_ms = now_ms.saturating_sub(SENSOR_AGE_MAX.as_millis() as u64);
    let at = |ms: u64| ms.saturating_add_signed(offset_ms).clamp(oldest_ms, now_ms);
    let lookups = report.lookups.iter().map(|lookup| {
        Event::Dns(DnsLookup {
            at_ms: at(lookup.last_ms),
            ip: lookup.address,
            host: Some(lookup.host),
            client: lookup.client,
            transport: match lookup.transport {
                Transport::Udp => DnsTransport::Udp,
                Transport::Tcp => DnsTransport::Tcp,
                Transport::Dot => DnsTransport::Dot,
                Transport::Doq => DnsTransport::Doq,
                Transport::Doh | Transport::Doh3 => DnsTransport::Doh,
            },
            server: lookup.server,
            provider: lookup.provider.clone(),
            name: lookup.name.clone(),
        })
    });
    let contacts = report.contacts.iter().map(|contact| {
        Event::Contact(DnsContact {
            at_ms: at(contact.last_ms),
            ip: contact.address,
            host: Some(contact.host),
            client: contact.client,
            destination: contact.destination,
            port: contact.port,
        })
    });
    let mut events: Vec<Event> = lookups.chain(contacts).collect();
    events.sort_by_key(Event::at_ms);
    events
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use detectors::facts::Facts;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::report::tests::sample;
    use super::*;
    use crate::config::Record;
    use crate::config::file::tests::TestDirectory;
    use crate::exchanges::{Recorder, TextKey};
    use crate::trace::TraceReader;

    fn sensors() -> Sensors {
        recording(None)
    }

    fn recording(trace: Option<PathBuf>) -> Sensors {
        let metrics = Arc::new(Metrics::new().unwrap());
        let key = TextKey::new(b"key");
        let mut exchanges = ExchangeLog::new(0, key.clone(), metrics.clone());
        if let Some(path) = trace {
            let record = Record { path, text: false };
            let recorder = Recorder::open(&record, 64, key, metrics.clone()).unwrap();
            exchanges = exchanges.with_recorder(recorder);
        }
        let exchanges = Arc::new(exchanges);
        let facts = Arc::new(Facts::builtin().unwrap());
        let judge = Judge::new(Arc::default(), facts, [1; 16], metrics.clone());
        Sensors::new(Arc::new(judge), exchanges, metrics)
    }

    fn numbered(sensor: &str, run: u64, sequence: u64) -> Value {
        let mut report = sample();
        report["sensor"] = json!(sensor);
        report["run"] = json!(format!("{run:016x}"));
        report["sequence"] = json!(sequence);
        report["sent_at_ms"] = json!(unix_ms());
        report
    }

    fn take(sensors: &Sensors, report: &Value) -> usize {
        sensors.take(report.to_string().as_bytes(), Way::Socket).unwrap()
    }

    fn view(sensors: &Sensors, name: &str) -> SensorView {
        sensors.list().into_iter().find(|sensor| sensor.sensor == name).unwrap()
    }

    #[test]
    fn what_comes_again_is_taken_once() {
        let sensors = sensors();
        for (run, sequence, taken) in [
            (1, 1, 2),
            (1, 1, 0),
            (1, 5, 2),
            (1, 4, 0),
            (2, 1, 2),
            // A report of the run before, given up and tried again.
            (1, 5, 0),
            (1, 6, 2),
            (2, 2, 2),
        ] {
            assert_eq!(take(&sensors, &numbered("a", run, sequence)), taken, "{run} {sequence}");
        }
        assert_eq!(take(&sensors, &numbered("b", 1, 5)), 2, "another sensor's run");
        let seen = view(&sensors, "a");
        assert_eq!((seen.reports, seen.repeated, seen.lookups, seen.contacts), (5, 3, 5, 5));
        assert_eq!((seen.run.as_str(), seen.from.as_deref()), ("0000000000000002", Some("socket")));
        let metrics = &sensors.metrics;
        let count = |outcome| metrics.sensor_reports.with_label_values(&[outcome]).get();
        assert_eq!((count("taken"), count("repeated")), (6, 3));
        assert_eq!(metrics.sensor_lookups.with_label_values(&["doh3"]).get(), 6);
        assert_eq!(metrics.sensor_contacts.get(), 6);
        // Only so many runs are remembered.
        for run in 10..10 + SENSOR_RUNS_MAX as u64 {
            take(&sensors, &numbered("a", run, 1));
        }
        assert_eq!(take(&sensors, &numbered("a", 1, 1)), 2);
        assert_eq!(sensors.known.lock()[0].runs.len(), SENSOR_RUNS_MAX);
    }

    #[test]
    fn nothing_of_a_malformed_report_is_taken() {
        let sensors = sensors();
        let mut report = numbered("a", 1, 1);
        report["contacts"][0]["protocol"] = json!("sctp");
        assert!(sensors.take(report.to_string().as_bytes(), Way::Socket).is_err());
        assert!(sensors.list().is_empty());
        assert_eq!(sensors.metrics.sensor_refused.with_label_values(&["malformed"]).get(), 1);
        assert_eq!(take(&sensors, &numbered("a", 1, 1)), 2);
    }

    #[test]
    fn losses_are_counted_as_they_grow() {
        let sensors = sensors();
        let lost = |kernel: u64, run: u64, sequence: u64| {
            let mut report = numbered("a", run, sequence);
            report["lost"] = json!({"kernel": kernel, "full": 0, "unsent": 0});
            take(&sensors, &report);
            sensors.metrics.sensor_lost.with_label_values(&["kernel"]).get()
        };
        assert_eq!(lost(10, 1, 1), 10);
        assert_eq!(lost(10, 1, 2), 10);
        assert_eq!(lost(15, 1, 3), 15);
        assert_eq!(lost(99, 1, 3), 15, "a report that came again");
        assert_eq!(lost(4, 2, 1), 19, "another start begins anew");
        assert_eq!(view(&sensors, "a").lost.kernel, 4);
    }

    #[test]
    fn silence_is_told_once_and_ends() {
        let sensors = sensors();
        take(&sensors, &numbered("a", 1, 1));
        let gauge = |state| sensors.metrics.sensors.with_label_values(&[state]).get();
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        sensors.look(later(59));
        assert_eq!((gauge("reporting"), gauge("silent")), (1, 0));
        sensors.look(later(61));
        assert_eq!((gauge("reporting"), gauge("silent")), (0, 1));
        take(&sensors, &numbered("a", 1, 2));
        assert_eq!((gauge("reporting"), gauge("silent")), (1, 0));
        sensors.look(later(86_401));
        assert!(sensors.list().is_empty());
        assert_eq!((gauge("reporting"), gauge("silent")), (0, 0));
    }

    #[test]
    fn sensors_are_bounded_and_the_longest_silent_goes_first() {
        let sensors = sensors();
        for number in 0..SENSORS_MAX {
            take(&sensors, &numbered(&format!("s{number}"), 1, 1));
        }
        take(&sensors, &numbered("s0", 1, 2));
        take(&sensors, &numbered("fresh", 1, 1));
        let names: Vec<String> = sensors.list().into_iter().map(|sensor| sensor.sensor).collect();
        assert_eq!(names.len(), SENSORS_MAX);
        assert!(names.contains(&"s0".to_owned()) && names.contains(&"fresh".to_owned()));
        assert!(!names.contains(&"s1".to_owned()));
        assert_eq!(sensors.metrics.sensors_forgotten.get(), 1);
    }

    #[test]
    fn a_wrong_clock_is_put_right() {
        const HOUR: i64 = 3_600_000;
        let now = 1_790_000_000_000_u64;
        for (behind_ms, entry_ago_ms, expected_ago_ms) in [
            (0, 2_000, 2_000),
            // The way takes time, which is no wrong clock.
            (4_000, 2_000, 6_000),
            (-4_000, 2_000, 0),
            (HOUR, 2_000, 2_000),
            (-HOUR, 2_000, 2_000),
            // What is told late is late.
            (0, 20 * HOUR, 20 * HOUR),
            (0, 30 * HOUR, 24 * HOUR),
            (HOUR, -2_000, 0),
            (500_000 * HOUR, 0, 0),
        ] {
            let sent = now.saturating_add_signed(-behind_ms);
            let mut report = Report::read(sample().to_string().as_bytes()).unwrap();
            report.lookups[0].last_ms = sent.saturating_add_signed(-entry_ago_ms);
            report.contacts[0].last_ms = report.lookups[0].last_ms;
            let corrected = beyond_tolerance(clock_offset(sent, now));
            for event in events(&report, corrected, now) {
                let ago = now.checked_signed_diff(event.at_ms());
                assert_eq!(ago, Some(expected_ago_ms), "{behind_ms} {entry_ago_ms}");
            }
        }
    }

    /// An entry of a report: a lookup, or a contact where there is a port.
    fn entry() -> impl Strategy<Value = (Option<u16>, Value)> {
        let ip = prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(|bytes| IpAddr::from(bytes).to_canonical()),
        ];
        let shared = (0..9_000_u64, ip.clone(), any::<u64>(), any::<Option<bool>>(), ip);
        let transport = proptest::sample::select(Transport::ALL.to_vec());
        let (word, name) = ("\\PC{1,64}", "[ -~]{1,1020}");
        let lookup = (transport, proptest::option::of(word), proptest::option::of(name));
        let port = proptest::option::of(any::<u16>());
        (shared, lookup, port).prop_map(|(shared, (transport, provider, name), port)| {
            let (ago_ms, address, host, client, to) = shared;
            let at_ms = unix_ms() - ago_ms;
            let mut entry = json!({
                "first_ms": at_ms, "last_ms": at_ms, "address": address, "count": 1,
                "host": format!("{host:016x}"), "client": client,
            });
            let own = match port {
                None => json!({
                    "transport": transport.name(), "server": to, "provider": provider,
                    "sign": "port", "name": name,
                }),
                Some(port) => json!({"destination": to, "port": port, "protocol": "udp"}),
            };
            let own = own.as_object().unwrap().clone();
            entry.as_object_mut().unwrap().extend(own);
            (port, entry)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_replay_has_the_events_that_the_engine_had(
            entries in proptest::collection::vec(entry(), 0..20),
        ) {
            let folder = TestDirectory::new();
            let sensors = recording(Some(folder.path().join("trace")));
            let mut report = numbered("a", 1, 1);
            let of = |contact: bool| {
                let some = entries.iter().filter(|(port, _)| port.is_some() == contact);
                some.map(|(_, entry)| entry.clone()).collect::<Vec<Value>>()
            };
            (report["lookups"], report["contacts"]) = (of(false).into(), of(true).into());
            prop_assert_eq!(take(&sensors, &report), entries.len());
            sensors.exchanges.close();
            let read = Report::read(report.to_string().as_bytes()).unwrap();
            let live = events(&read, 0, unix_ms());
            let trace = TraceReader::open(&folder.path().join("trace")).unwrap();
            let replayed: Vec<Event> = trace.map(Result::unwrap).collect();
            prop_assert_eq!(format!("{replayed:?}"), format!("{live:?}"));
        }
    }

    proptest! {
        #[test]
        fn no_event_is_of_the_future_or_too_old(
            now in any::<u64>(), sent in any::<u64>(), last in any::<u64>(),
        ) {
            let mut report = Report::read(sample().to_string().as_bytes()).unwrap();
            report.lookups[0].last_ms = last;
            let offset = beyond_tolerance(clock_offset(sent, now));
            let events = events(&report, offset, now);
            prop_assert_eq!(events.len(), 2);
            prop_assert!(events.is_sorted_by_key(Event::at_ms));
            for event in events {
                prop_assert!(event.at_ms() <= now && now - event.at_ms() <= 86_400_000);
            }
        }
    }
}
