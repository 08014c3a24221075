//! `stillgate-sensor run`: watches and tells gateways until it is told to end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Ends, check, complain, drop_capabilities, runtime, start_log};
use crate::classify::{Classifier, ClassifierSettings};
use crate::config::{self, Config};
use crate::hooks::{HookSettings, Hooks};
use crate::limits::{HEARTBEAT, LOOK_INTERVAL, TICK_INTERVAL};
use crate::metrics::{self, Metrics, raise};
use crate::notify::notify;
use crate::report::{Senders, Teller};
use crate::resolver_files::ResolverFiles;
use crate::sighting::Sighting;
use crate::source::Source;
use crate::tally::{Bounds, Clock, Tally, TallySettings, boot_ns};
use crate::watcher::{Watcher, say_hooks};

/// Runs until SIGINT or SIGTERM.
pub(super) fn run(path: Option<&Path>) -> Result<(), String> {
    let path = path.ok_or(
        "run needs --config FILE, which says what is watched and which gateway is told; begin with \
         deploy/sensor.toml. `stillgate-sensor watch` needs no file and tells nobody",
    )?;
    let config = config::load(path)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let wrong = check::wrong_files(&config);
    if !wrong.is_empty() {
        return Err(wrong.join("\n"));
    }
    start_log(&config.log)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let metrics = Metrics::new().map_err(|error| error.to_string())?;
    let listener = match config.metrics {
        Some(address) => Some(
            metrics::bind(address)
                .map_err(|error| format!("metrics.listen {address} cannot be bound: {error}"))?,
        ),
        None => None,
    };
    let runtime = runtime()?;
    let mut lists = ResolverFiles::new(config.resolver_files.clone());
    let classifier = classifier(&config, &mut lists, &metrics)?;
    let settings = HookSettings {
        local: config.local,
        cgroup: config.cgroup.clone(),
        sockets_only: config.sockets_only,
        no_fentry: config.no_fentry,
        links: config.links.clone(),
    };
    runtime.block_on(async {
        let hooks = Hooks::attach(&settings).map_err(|error| error.to_string())?;
        say_hooks(&hooks);
        drop_capabilities(!config.links.is_empty())?;
        if let Some(listener) = listener {
            let listener = TcpListener::from_std(listener).map_err(|error| error.to_string())?;
            tokio::spawn(metrics::serve(listener, metrics.clone()));
        }
        let watcher = Watcher::new(hooks, classifier, metrics.clone());
        let mut ends = Ends::listen()?;
        let sensor = Sensor::new(&config, watcher, lists, metrics)?;
        if let Err(error) = notify("READY=1") {
            complain(&format!("NOTIFY_SOCKET: {error}"));
        }
        sensor.run(ends.asked()).await
    })
}

fn classifier(
    config: &Config,
    lists: &mut ResolverFiles,
    metrics: &Metrics,
) -> Result<Classifier, String> {
    let resolvers = lists.load()?;
    metrics.resolvers.set(i64::try_from(resolvers.entries()).unwrap_or(i64::MAX));
    let settings = ClassifierSettings {
        api: config.api.clone(),
        ignore: config.ignore.clone(),
        private_destinations: config.private_destinations,
        named_window: config.named_window,
        ..ClassifierSettings::default()
    };
    Ok(Classifier::new(settings, resolvers))
}

/// All that runs between the start and the end.
struct Sensor<S> {
    watcher: Watcher<S>,
    lists: ResolverFiles,
    tally: Tally,
    clock: Clock,
    teller: Arc<Teller>,
    senders: Senders,
    metrics: Metrics,
    report_every: Duration,
    told_at: Instant,
}

impl<S: Source> Sensor<S> {
    fn new(
        config: &Config,
        watcher: Watcher<S>,
        lists: ResolverFiles,
        metrics: Metrics,
    ) -> Result<Self, String> {
        let teller = Teller::new(config.name.clone()).map_err(|error| error.to_string())?;
        let teller = Arc::new(teller);
        let senders = Senders::start(teller.clone(), &config.targets, |target| {
            metrics.target(&target.to_string())
        });
        let tally = Tally::new(TallySettings {
            seen_as: config.seen_as.clone(),
            names: config.names,
            key: config.key.clone(),
            api_known: !config.api.is_empty(),
            bounds: Bounds::default(),
        });
        tracing::info!(sensor = %config.name, run = %teller.run, "watching");
        Ok(Self {
            watcher,
            lists,
            tally,
            clock: Clock::now(),
            teller,
            senders,
            metrics,
            report_every: config.report_every,
            told_at: Instant::now(),
        })
    }

    /// Until it is asked to end.
    async fn run(mut self, asked_to_end: impl Future<Output = ()>) -> Result<(), String> {
        let mut asked_to_end = std::pin::pin!(asked_to_end);
        let every = |time: Duration| {
            let mut interval = interval(time);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        let mut tick = every(TICK_INTERVAL);
        let mut period = every(self.report_every);
        let mut look = every(LOOK_INTERVAL);
        let hangup = signal(SignalKind::hangup());
        let mut hangup = hangup.map_err(|error| format!("signals: {error}"))?;
        let mut sightings = Vec::new();
        // Who has nothing to tell yet is seen to be there all the same.
        self.senders.heartbeat();
        loop {
            tokio::select! {
                () = self.watcher.wait() => {
                    self.watcher.take(&mut sightings);
                    self.count(&mut sightings);
                }
                _ = tick.tick() => {
                    self.watcher.tick(&mut sightings);
                    self.count(&mut sightings);
                    self.show();
                }
                _ = period.tick() => self.tell(),
                _ = look.tick() => {
                    self.watcher.refresh();
                    if self.lists.changed() {
                        self.reload();
                    }
                }
                _ = hangup.recv() => {
                    self.watcher.refresh();
                    self.reload();
                }
                () = &mut asked_to_end => break,
            }
        }
        let _ = notify("STOPPING=1");
        self.end(&mut sightings).await;
        Ok(())
    }

    fn count(&mut self, sightings: &mut Vec<Sighting>) {
        for sighting in sightings.iter() {
            self.tally.note(sighting);
        }
        sightings.clear();
    }

    /// Ends the period and tells it.
    fn tell(&mut self) {
        self.clock = Clock::now();
        for batch in self.tally.take(&self.clock, boot_ns()) {
            self.senders.tell(batch);
            self.told_at = Instant::now();
        }
        if self.told_at.elapsed() >= HEARTBEAT {
            self.senders.heartbeat();
            self.told_at = Instant::now();
        }
    }

    fn reload(&mut self) {
        match self.lists.load() {
            Ok(resolvers) => {
                tracing::info!(
                    resolvers = resolvers.entries(),
                    "lists of resolvers were read again"
                );
                self.metrics.resolvers.set(i64::try_from(resolvers.entries()).unwrap_or(i64::MAX));
                self.watcher.set_resolvers(resolvers);
            }
            Err(error) => {
                tracing::error!("the lists of resolvers stay as they were: {error}");
                self.metrics.resolvers_refused.inc();
            }
        }
    }

    /// Passes on what others counted.
    fn show(&self) {
        let tally = self.tally.counters();
        raise(&self.metrics.lost_full, tally.full);
        raise(&self.metrics.names_folded, tally.folded);
        raise(&self.metrics.unmapped, tally.unmapped);
        self.metrics.forgotten("client", tally.clients_forgotten);
        self.metrics.forgotten("told", self.senders.forgotten());
        self.metrics.tally_entries.set(i64::try_from(self.tally.len()).unwrap_or(i64::MAX));
        self.teller.lost_full.store(tally.full, Ordering::Relaxed);
        self.teller.lost_kernel.store(self.metrics.lost_kernel.get(), Ordering::Relaxed);
    }

    /// Tells what is left.
    async fn end(mut self, sightings: &mut Vec<Sighting>) {
        self.watcher.take_all(sightings);
        self.watcher.tick(sightings);
        self.count(sightings);
        self.show();
        self.tell();
        // No more events: the programs go before the last reports do.
        drop(self.watcher);
        match self.senders.flush().await {
            0 => tracing::info!("ended; all was told"),
            entries => tracing::warn!(entries, "ended; some entries could not be told"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Mutex, PoisonError};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;

    use super::*;
    use crate::event::{Event, Flow, Hook, Kind, Protocol};
    use crate::folder::Folder;
    use crate::hooks::{HookState, KernelCounters};
    use crate::testing::event_bytes;

    /// A source of what tests put into it.
    #[derive(Clone, Default)]
    struct Memory {
        events: Arc<Mutex<VecDeque<Vec<u8>>>>,
        dropped: Arc<Mutex<u64>>,
    }

    fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    impl Source for Memory {
        fn drain(&mut self, max: usize, take: &mut dyn FnMut(&[u8])) -> usize {
            let mut events = lock(&self.events);
            let count = max.min(events.len());
            events.drain(..count).for_each(|event| take(&event));
            count
        }

        fn close_stream(&mut self, _: &Flow) {}

        fn counters(&self) -> KernelCounters {
            KernelCounters { dropped: *lock(&self.dropped), ..KernelCounters::default() }
        }

        fn refresh(&mut self) -> bool {
            false
        }

        fn states(&self) -> &[HookState] {
            &[]
        }
    }

    fn query(port: u16) -> Vec<u8> {
        let payload = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06secret\x07example\x00\x00\x01\x00\x01";
        let flow = Flow {
            source: ([10, 0, 0, 9], port).into(),
            destination: ([192, 0, 2, 53], 53).into(),
            protocol: Protocol::Udp,
        };
        event_bytes(&Event {
            at_ns: boot_ns(),
            kind: Kind::Query,
            hook: Hook::ClientsIngress,
            flow,
            link: 0,
            process: None,
            offset: 0,
            length: u32::try_from(payload.len()).unwrap(),
            payload,
        })
    }

    /// A gateway that takes everything; what it was sent, body by body.
    fn gateway(path: &Path) -> mpsc::Receiver<String> {
        let listener = UnixListener::bind(path).unwrap();
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = String::new();
            let mut bytes = [0; 4096];
            loop {
                let count = stream.read(&mut bytes).await.unwrap();
                if count == 0 {
                    return;
                }
                text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
                while let Some((head, rest)) = text.split_once("\r\n\r\n") {
                    let length =
                        head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    let length: usize = length.unwrap().parse().unwrap();
                    if rest.len() < length {
                        break;
                    }
                    let (body, rest) = rest.split_at(length);
                    sender.send(body.to_owned()).await.unwrap();
                    text = rest.to_owned();
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                        .await
                        .unwrap();
                }
            }
        });
        receiver
    }

    fn start(folder: &Folder, source: Memory) -> Sensor<Memory> {
        folder.write("k", &"07".repeat(32));
        let text = "seen_as = [{ from = \"10.0.0.0/8\", as = \"203.0.113.7\" }]\n\
                    report_every_seconds = 1\n\
                    [resolvers]\nfiles = [\"list\"]\n\
                    [names]\nkey_file = \"k\"\n[[report]]\nsocket = \"g.sock\"\n";
        let config = config::parse(text, &folder.path("s.toml")).unwrap();
        let metrics = Metrics::new().unwrap();
        let mut lists = ResolverFiles::new(config.resolver_files.clone());
        let classifier = classifier(&config, &mut lists, &metrics).unwrap();
        let watcher = Watcher::new(source, classifier, metrics.clone());
        Sensor::new(&config, watcher, lists, metrics).unwrap()
    }

    #[tokio::test]
    async fn what_the_kernel_sees_is_told_and_losses_with_it() {
        let folder = Folder::new();
        folder.write("list", "192.0.2.1\n");
        let mut told = gateway(&folder.path("g.sock"));
        let source = Memory::default();
        let sensor = start(&folder, source.clone());
        let metrics = sensor.metrics.clone();
        for port in 1..=9_000 {
            lock(&source.events).push_back(query(port));
        }
        lock(&source.events).push_back(vec![0; 200]);
        *lock(&source.dropped) = 3;
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(async move {
            sensor.run(async { drop(ended.await) }).await.unwrap();
        });
        let mut count = 0;
        while count < 9_000 {
            let body: serde_json::Value =
                serde_json::from_str(&told.recv().await.unwrap()).unwrap();
            assert!(!body.to_string().contains("secret"));
            for lookup in body["lookups"].as_array().unwrap() {
                assert_eq!(lookup["address"], "203.0.113.7");
                count += lookup["count"].as_u64().unwrap();
            }
        }
        assert_eq!(count, 9_000);
        assert_eq!(metrics.malformed.get(), 1);
        // The last one is told at the end, without waiting for the period.
        lock(&source.events).push_back(query(10_000));
        end.send(()).unwrap();
        running.await.unwrap();
        let mut last = String::new();
        while let Ok(body) = told.try_recv() {
            last = body;
        }
        let last: serde_json::Value = serde_json::from_str(&last).unwrap();
        assert_eq!(last["lookups"][0]["count"], 1);
        assert_eq!(last["lost"]["kernel"], 3);
    }

    #[tokio::test]
    async fn a_list_that_cannot_be_read_leaves_the_one_before_in_force() {
        let folder = Folder::new();
        folder.write("list", "192.0.2.1\n");
        let mut sensor = start(&folder, Memory::default());
        let before = sensor.metrics.resolvers.get();
        assert!(!sensor.lists.changed());
        folder.write("list", "192.0.2.1\n192.0.2.2\n");
        assert!(sensor.lists.changed());
        sensor.reload();
        assert_eq!(sensor.metrics.resolvers.get(), before + 1);
        for bad in ["!! nothing\n", ""] {
            folder.write("list", bad);
            if bad.is_empty() {
                std::fs::remove_file(folder.path("list")).unwrap();
            }
            assert!(sensor.lists.changed());
            sensor.reload();
            assert!(!sensor.lists.changed(), "said once");
        }
        assert_eq!(sensor.metrics.resolvers.get(), before + 1);
        assert_eq!(sensor.metrics.resolvers_refused.get(), 2);
    }
}
