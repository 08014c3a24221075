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
        sensor.run(&mut ends).await
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

    async fn run(mut self, ends: &mut Ends) -> Result<(), String> {
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
                () = ends.asked() => break,
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
        self.watcher.take(sightings);
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
