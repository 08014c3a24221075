//! `stillgate run`: from a configuration to a serving process.

use std::collections::HashSet;
use std::fs::{OpenOptions, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use detectors::facts::Facts;
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{RunArgs, Server, ShutdownWatch};
use pingora_core::services::background::{BackgroundService, background_service};
use pingora_core::services::listening::Service;
use rustix::process::{Resource, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::account::AccountNamer;
use crate::account::jwks::KeySource;
use crate::admin::{AdminApp, AdminState};
use crate::audit::{Actor, Said};
use crate::config::{Config, Log, Redis, StoreKind, file};
use crate::enforce::Enforcer;
use crate::enforce::marks::{self, Marks};
use crate::exchanges::{ExchangeLog, Recorder, TextKey};
use crate::fleet::{self, Fleet};
use crate::gateway::Gateway;
use crate::ioc::{self, Exchange};
use crate::judge::Judge;
use crate::limits::{FLEET_FIRST_WORDS_MAX, POLICY_FILE_INTERVAL, STORE_SETTLE_MAX};
use crate::listener::ListenerApp;
use crate::listener::tls::{CertificateStore, key_log_wanted, server_config};
use crate::memory::AccountMemory;
use crate::metrics::Metrics;
use crate::network::NetworkStore;
use crate::sensor::Sensors;
use crate::sensor::socket::SocketFile;
use crate::store::Store;
use crate::upstream::UpstreamPool;
use crate::webhook::Webhooks;

/// Log levels of the libraries that see what clients and upstreams send.
const LIBRARY_LEVELS: &str = "pingora_core=warn,pingora_core::apps=off,pingora_core::connectors=off,pingora_core::protocols=off,h2=off,rustls=off,hyper=off";
/// Time between two looks at whether the listening sockets are open.
const START_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// After a drain: time for the last bytes to leave the process.
const LAST_BYTES_DELAY: Duration = Duration::from_millis(200);

/// Runs until a signal ends it.
///
/// # Errors
/// What is wrong with the configuration or the machine, in words for the operator.
pub fn run(path: &Path, upgrade: bool) -> Result<(), String> {
    let config = file::load(path).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        format!("the configuration is not valid\n{}", lines.join("\n"))
    })?;
    start_log(&config.log)?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    if !config.policies.has_file() {
        info!("no policy is named: the shipped default is in force, and acts on accounts");
    }
    let running = assemble(config, upgrade)?;
    info!(version = env!("CARGO_PKG_VERSION"), config = %path.display(), "serving");
    running.serve();
    Ok(())
}

/// A gateway that is ready to serve.
pub struct Running {
    server: Server,
    gateway: Arc<Gateway>,
    last: Arc<LastThings>,
}

/// What is done when the process ends, whichever signal ends it.
#[derive(Default)]
struct LastThings {
    pid_file: Option<PathBuf>,
    folder: OnceLock<PathBuf>,
    memory: Option<Arc<AccountMemory>>,
    sensor_file: Option<Arc<SocketFile>>,
}

/// Builds every part of the process. Listening sockets are opened by [`Running::serve`], but an
/// address that is taken is found here, where it can still be said in one line.
///
/// # Errors
/// What is wrong, in words for the operator.
pub fn assemble(config: Config, upgrade: bool) -> Result<Running, String> {
    // Upstream TLS uses pingora's provider, the listeners aws-lc-rs by name.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    raise_descriptor_limit(config.limits.connections_max);
    if !upgrade {
        let listeners = config.listeners.iter().map(|listener| listener.address);
        for address in listeners.chain([config.admin.address]) {
            TcpListener::bind(address)
                .map_err(|error| format!("cannot listen on {address}: {error}"))?;
        }
    }
    let sensor_socket = config.sensor_socket.as_ref();
    let sensor_file = sensor_socket.map(|socket| SocketFile::prepare(&socket.path, upgrade));
    let sensor_file = sensor_file.transpose()?.map(Arc::new);
    let metrics = Arc::new(Metrics::new().map_err(|error| format!("metrics: {error}"))?);
    let key = TextKey::new(&config.identity.key);
    let mut exchanges =
        ExchangeLog::new(config.limits.exchanges_kept, key.clone(), metrics.clone());
    if let Some(record) = &config.record {
        let queue = config.limits.record_queue_max;
        let recorder = Recorder::open(record, queue, key, metrics.clone())
            .map_err(|error| error.to_string())?;
        exchanges = exchanges.with_recorder(recorder);
    }
    let namer = AccountNamer::new(&config.identity).map_err(|error| error.to_string())?;
    let upstreams: Result<Vec<_>, _> =
        config.upstreams.iter().cloned().map(UpstreamPool::new).collect();
    let (pools, members): (Vec<_>, Vec<_>) =
        upstreams.map_err(|error| error.to_string())?.into_iter().unzip();
    let mut server = server(&config, upgrade);
    for service in members {
        server.add_service(service);
    }
    let jwks = namer.key_source().cloned();
    let store = open_store(&config)?;
    let indicators = Exchange::new(config.ioc.clone(), store.clone(), metrics.clone());
    let indicators = indicators.map_err(|error| error.to_string())?;
    let (enforcer, memory) = enforcer(&config, store, &metrics)?;
    enforcer.look_up_in(indicators.clone());
    if let Some(redis) = &config.redis {
        let fleet = fleet(redis, &config, &enforcer, &metrics);
        server.add_service(background_service("fleet", fleet));
    }
    let exchanges = Arc::new(exchanges);
    let gateway = Gateway::new(config, pools, namer, metrics.clone(), exchanges, enforcer.clone());
    let gateway = Arc::new(gateway);
    if let Some(source) = jwks {
        server.add_service(background_service("jwks", Jwks { source }));
    }
    let config = &gateway.config;
    let mut certificates = Vec::new();
    for listener in &config.listeners {
        let listener = Arc::new(listener.clone());
        let tls = match &listener.tls {
            None => None,
            Some(tls) => {
                let store =
                    CertificateStore::load(&tls.certificates).map_err(|error| error.to_string())?;
                certificates.push(store.clone());
                Some(
                    server_config(tls, store, key_log_wanted())
                        .map_err(|error| error.to_string())?,
                )
            }
        };
        let address = listener.address.to_string();
        let app = ListenerApp::new(gateway.clone(), listener, tls);
        let mut service = Service::new(format!("listener {address}"), app);
        service.add_tcp(&address);
        server.add_service(service);
    }
    let policies = Policies { enforcer: enforcer.clone() };
    server.add_service(background_service("policy", policies));
    let indicators_service = Indicators { exchange: indicators };
    server.add_service(background_service("indicators", indicators_service));
    let networks = Networks { store: config.networks.clone() };
    server.add_service(background_service("networks", networks));
    let webhooks = Webhooks::new(&config.webhooks, enforcer.store(), &metrics)?;
    server.add_service(background_service("webhooks", webhooks));
    let sensors =
        Sensors::new(enforcer.judge().clone(), gateway.exchanges.clone(), metrics.clone());
    let sensors = Arc::new(sensors);
    let watch = SensorWatch { sensors: sensors.clone(), file: sensor_file.clone() };
    server.add_service(background_service("sensors", watch));
    let for_readiness = gateway.clone();
    let admin = AdminState::new(
        metrics.clone(),
        gateway.exchanges.clone(),
        enforcer,
        &config.admin.tokens,
        payment_key(config),
        sensors,
        move || for_readiness.readiness(),
    );
    let admin_tls = match &config.admin.tls {
        None => None,
        Some(tls) => {
            let store =
                CertificateStore::load(&tls.certificates).map_err(|error| error.to_string())?;
            certificates.push(store.clone());
            Some(server_config(tls, store, false).map_err(|error| error.to_string())?)
        }
    };
    if let Some(socket) = &config.sensor_socket {
        let app = AdminApp::for_sensors(admin.clone());
        let mut service = Service::new("sensor socket".to_owned(), app);
        let permissions = Permissions::from_mode(socket.mode);
        service.add_uds(&socket.path.display().to_string(), Some(permissions));
        service.threads = Some(1);
        server.add_service(service);
    }
    let mut service = Service::new("admin".to_owned(), AdminApp::new(admin, admin_tls));
    service.add_tcp(&config.admin.address.to_string());
    service.threads = Some(1);
    server.add_service(service);
    let watched = Certificates { stores: certificates, metrics };
    server.add_service(background_service("certificates", watched));
    let pid_file = config.server.pid_file.clone();
    if let Some(memory) = memory.clone() {
        server.add_service(background_service("rows", Rows { memory }));
    }
    let last = Arc::new(LastThings { pid_file, folder: OnceLock::new(), memory, sensor_file });
    server.add_service(background_service("start", Start { gateway: gateway.clone() }));
    let drain = Drain { gateway: gateway.clone(), last: last.clone() };
    server.add_service(background_service("drain", drain));
    Ok(Running { server, gateway, last })
}

/// The engine and what acts by it, running, with what was remembered before.
fn enforcer(
    config: &Config,
    store: Arc<Store>,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Enforcer>, Option<Arc<AccountMemory>>), String> {
    let facts = Arc::new(Facts::builtin().map_err(|error| error.to_string())?);
    let key = engine_key(&config.identity.key);
    let policy = config.policies.in_force().policy.clone();
    let accounts_max = policy.memory.accounts_max;
    let judge = Arc::new(Judge::new(policy, facts, key, metrics.clone()));
    let marks = Marks::new(marks::master_key(&config.identity.key)?)?;
    store.count_in(metrics);
    let keep_days = config.store.keep_days;
    let memory = AccountMemory::start(judge.clone(), store.clone(), metrics.clone(), keep_days)
        .map_err(|error| error.to_string())?;
    let enforcer =
        Enforcer::new(config.policies.clone(), judge, key, marks, store, metrics.clone());
    let enforcer = Arc::new(enforcer);
    enforcer.restore().map_err(|error| error.to_string())?;
    let thread = |error| format!("cannot start a thread: {error}");
    enforcer.start().map_err(thread)?;
    if let Some(memory) = &memory {
        let profiles = enforcer.clone();
        let then = move || {
            if let Err(error) = profiles.restore_profiles() {
                error!(%error, "not all that was told of accounts could be taken back");
            }
        };
        memory.sweep(accounts_max, then).map_err(thread)?;
    }
    Ok((enforcer, memory))
}

/// What keeps this gateway and the others of one mind.
fn fleet(
    redis: &Redis,
    config: &Config,
    enforcer: &Arc<Enforcer>,
    metrics: &Arc<Metrics>,
) -> Fleet {
    let acts = Arc::downgrade(enforcer);
    let parts = fleet::Parts {
        store: enforcer.store().clone(),
        on_word: Box::new(move |word| {
            if let Some(enforcer) = acts.upgrade() {
                enforcer.apply(word);
            }
        }),
        judge: enforcer.judge().clone(),
        throttle: enforcer.throttle.clone(),
        accounts_max: config.policies.in_force().policy.memory.accounts_max,
        metrics: metrics.clone(),
    };
    let key_check = hex::encode(&derived(&config.identity.key, b"stillgate fleet")[..8]);
    let fleet = Fleet::new(redis.clone(), &key_check, parts);
    enforcer.join_fleet(fleet.presence());
    fleet
}

/// The store that the configuration names.
fn open_store(config: &Config) -> Result<Arc<Store>, String> {
    let settings = &config.store;
    let store = match settings.kind {
        StoreKind::Memory => Store::in_memory(settings.node.as_deref().unwrap_or("memory")),
        StoreKind::Embedded | StoreKind::Redis => {
            let check = store_key_check(&config.identity.key);
            Store::open(&settings.dir, settings.node.as_deref(), &check)
        }
    };
    store.map_err(|error| error.to_string())
}

/// What a store holds to tell whether it was written under this identity key.
#[must_use]
pub fn store_key_check(identity_key: &[u8]) -> String {
    let mut check = hex::encode(derived(identity_key, b"stillgate store"));
    check.truncate(16);
    check
}

/// A key for one purpose, of which nothing tells the identity key's.
pub(crate) fn derived(identity_key: &[u8], purpose: &[u8]) -> [u8; 32] {
    let digest = Sha256::new().chain_update(purpose).chain_update([0]);
    digest.chain_update(identity_key).finalize().into()
}

/// The key of what is kept of payment instruments. Where peers share a key it comes from that, so
/// that what is told of one instrument is the same at each of them.
fn payment_key(config: &Config) -> [u8; 32] {
    let shared = config.ioc.as_ref().and_then(|ioc| ioc.exchange_key.as_deref());
    derived(shared.unwrap_or(&config.identity.key), b"stillgate payments")
}

/// The key of the engine's hashes: derived, so that no hash in it is a pseudonym's or a trace's.
#[must_use]
pub fn engine_key(identity_key: &[u8]) -> detectors::keyed::Key {
    let digest = derived(identity_key, b"stillgate engine");
    let mut key = [0; 16];
    key.copy_from_slice(&digest[..16]);
    key
}

impl Running {
    /// What the connections share.
    #[must_use]
    pub fn gateway(&self) -> Arc<Gateway> {
        self.gateway.clone()
    }

    /// Removes a folder with all that is in it when the process ends.
    pub fn remove_at_end(&self, folder: PathBuf) {
        let _ = self.last.folder.set(folder);
    }

    /// Serves until a signal: SIGTERM drains, SIGQUIT hands the listeners to a new process and
    /// drains, SIGINT ends at once.
    pub fn serve(self) {
        if let Some(path) = &self.last.pid_file
            && let Err(error) = std::fs::write(path, format!("{}\n", std::process::id()))
        {
            error!(path = %path.display(), %error, "pid file not written");
        }
        self.server.run(RunArgs::default());
        // After SIGINT; a drain ends the process itself.
        ended(&self.gateway, &self.last);
    }
}

fn server(config: &Config, upgrade: bool) -> Server {
    let conf = ServerConf {
        threads: config.server.threads,
        upgrade_sock: config.server.upgrade_socket.display().to_string(),
        // The drain below ends the process as soon as it can; these are the latest ends.
        grace_period_seconds: Some(config.server.drain.as_secs().saturating_add(1)),
        graceful_shutdown_timeout_seconds: Some(1),
        // Pingora keeps a timer of its own until it is due, which for an idle timeout of minutes
        // on each read adds up; tokio's go when they are dropped.
        fast_timeout_to_tokio_threshold_seconds: Some(1),
        ..ServerConf::default()
    };
    let opt = Opt { upgrade, ..Opt::default() };
    let mut server = Server::new_with_opt_and_conf(Some(opt), conf);
    server.bootstrap();
    server
}

/// Each exchange needs a descriptor on either side; the soft limit of most systems is 1024.
fn raise_descriptor_limit(connections_max: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "the limit on open descriptors could not be raised");
    }
    let wanted = connections_max.saturating_mul(2);
    if let Some(current) = getrlimit(Resource::Nofile).current
        && current < wanted as u64
    {
        warn!(
            limit = current,
            wanted, "fewer descriptors than limits.connections_max needs (LimitNOFILE in systemd)"
        );
    }
}

/// Keeps the keys of tokens fresh.
struct Jwks {
    source: Arc<KeySource>,
}

#[async_trait]
impl BackgroundService for Jwks {
    async fn start(&self, shutdown: ShutdownWatch) {
        self.source.clone().keep_fresh(shutdown).await;
    }
}

/// Takes a new policy when its file changes or SIGHUP comes.
struct Policies {
    enforcer: Arc<Enforcer>,
}

#[async_trait]
impl BackgroundService for Policies {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => {
                error!(%error, "SIGHUP cannot be waited for");
                return;
            }
        };
        let mut interval = tokio::time::interval(POLICY_FILE_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked_for = tokio::select! {
                _ = interval.tick() => false,
                Some(()) = hangup.recv() => true,
                _ = shutdown.wait_for(|down| *down) => return,
            };
            let enforcer = self.enforcer.clone();
            // Reads a file. What is wrong with it was logged.
            let said = asked_for.then(|| Said {
                actor: Actor::System,
                reason: "the process was sent SIGHUP".to_owned(),
            });
            let read = tokio::task::spawn_blocking(move || {
                // That it is durable nobody waits for.
                enforcer.reload_policy(said.as_ref()).map(drop)
            });
            let _ = read.await;
        }
    }
}

/// Writes what is remembered of accounts when the process hands over: its successor reads it.
struct Rows {
    memory: Arc<AccountMemory>,
}

#[async_trait]
impl BackgroundService for Rows {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Ok(mut quit) = signal(SignalKind::quit()) else { return };
        let handed_over = tokio::select! {
            _ = quit.recv() => true,
            _ = shutdown.wait_for(|down| *down) => false,
        };
        if handed_over {
            let memory = self.memory.clone();
            let _ = tokio::task::spawn_blocking(move || memory.flush()).await;
        }
    }
}

/// Tells of sensors that fall silent, and follows what becomes of their socket.
struct SensorWatch {
    sensors: Arc<Sensors>,
    file: Option<Arc<SocketFile>>,
}

#[async_trait]
impl BackgroundService for SensorWatch {
    async fn start(&self, shutdown: ShutdownWatch) {
        let follow = async {
            if let Some(file) = &self.file {
                file.follow(shutdown.clone()).await;
            }
        };
        tokio::join!(follow, self.sensors.watch(shutdown.clone()));
    }
}

/// Follows what is told of indicators, and tells peers.
struct Indicators {
    exchange: Arc<Exchange>,
}

#[async_trait]
impl BackgroundService for Indicators {
    async fn start(&self, shutdown: ShutdownWatch) {
        let follow = self.exchange.clone().follow(shutdown.clone());
        tokio::join!(follow, ioc::peers::run(self.exchange.clone(), shutdown));
    }
}

/// Watches the files that name networks.
struct Networks {
    store: Arc<NetworkStore>,
}

#[async_trait]
impl BackgroundService for Networks {
    async fn start(&self, shutdown: ShutdownWatch) {
        self.store.clone().watch(shutdown).await;
    }
}

/// Watches certificate files.
struct Certificates {
    stores: Vec<Arc<CertificateStore>>,
    metrics: Arc<Metrics>,
}

#[async_trait]
impl BackgroundService for Certificates {
    async fn start(&self, shutdown: ShutdownWatch) {
        let watches = self.stores.iter().map(|store| {
            let metrics = self.metrics.clone();
            store.clone().watch(shutdown.clone(), move |reload| {
                let reloads = &metrics.certificate_reloads;
                reloads.with_label_values(&["ok"]).inc_by(reload.replaced.len() as u64);
                reloads.with_label_values(&["failed"]).inc_by(reload.refused.len() as u64);
            })
        });
        futures::future::join_all(watches).await;
    }
}

/// Tells when every listening socket is open: pingora opens each in a task of its own.
struct Start {
    gateway: Arc<Gateway>,
}

#[async_trait]
impl BackgroundService for Start {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let wanted: Vec<u16> =
            self.gateway.config.listeners.iter().map(|listener| listener.address.port()).collect();
        loop {
            let open = listening_ports();
            // Where the system does not tell (no procfs), what was checked before has to do.
            if open.is_none_or(|open| wanted.iter().all(|port| open.contains(port))) {
                break;
            }
            tokio::time::sleep(START_POLL_INTERVAL).await;
        }
        // What operators said to others is known before anybody is sent here; but not for ever.
        let begun = Instant::now();
        while self.gateway.enforcer.is_apart() && begun.elapsed() < FLEET_FIRST_WORDS_MAX {
            tokio::time::sleep(START_POLL_INTERVAL).await;
        }
        self.gateway.listening();
    }
}

/// TCP ports that are listened on in this network namespace (proc(5), `/proc/net/tcp`).
fn listening_ports() -> Option<HashSet<u16>> {
    const LISTEN: &str = "0A";
    let mut ports = HashSet::new();
    for path in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let table = std::fs::read_to_string(path).ok();
        if table.is_none() && path.ends_with("tcp") {
            return None;
        }
        for line in table.unwrap_or_default().lines().skip(1) {
            let mut columns = line.split_whitespace().skip(1);
            let (local, state) = (columns.next(), columns.nth(1));
            let port =
                local.and_then(|local| u16::from_str_radix(local.rsplit(':').next()?, 16).ok());
            if let (Some(port), Some(LISTEN)) = (port, state) {
                ports.insert(port);
            }
        }
    }
    Some(ports)
}

/// Ends the process once the last exchange has, or when the drain time is over.
struct Drain {
    gateway: Arc<Gateway>,
    last: Arc<LastThings>,
}

#[async_trait]
impl BackgroundService for Drain {
    async fn start(&self, mut shutdown: watch::Receiver<bool>) {
        // An error means that the sender is gone, which is an end as well.
        let _ = shutdown.wait_for(|down| *down).await;
        self.gateway.drain();
        let open = self.gateway.connections_open();
        info!(connections = open, "draining");
        let drained = async {
            while self.gateway.connections_open() > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(self.gateway.config.server.drain, drained).await.is_err() {
            let open = self.gateway.connections_open();
            error!(connections = open, "drain time is over, connections are cut off");
        }
        tokio::time::sleep(LAST_BYTES_DELAY).await;
        ended(&self.gateway, &self.last);
        info!("ended");
        std::process::exit(0);
    }
}

fn ended(gateway: &Gateway, last: &LastThings) {
    gateway.exchanges.close();
    if let Some(memory) = &last.memory {
        memory.flush();
    }
    gateway.enforcer.store().settle(STORE_SETTLE_MAX);
    if let Some(file) = &last.sensor_file {
        file.remove();
    }
    if let Some(folder) = last.folder.get() {
        let _ = std::fs::remove_dir_all(folder);
    }
    if let Some(path) = &last.pid_file {
        // A process that took over has written its own.
        let ours = std::fs::read_to_string(path)
            .is_ok_and(|text| text.trim() == std::process::id().to_string());
        if ours {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Starts the log on stderr.
///
/// # Errors
/// When the filter is not one.
pub fn start_log(log: &Log) -> Result<(), String> {
    // The libraries below quote heads and bodies in their messages, and one of them logs an error
    // for each client that breaks a rule: no setting lets those through.
    let level = format!("{},{LIBRARY_LEVELS}", log.level);
    let filter = EnvFilter::try_new(&level)
        .map_err(|error| format!("log.level \"{}\" is not a filter: {error}", log.level))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if log.json {
        subscriber.json().flatten_event(true).try_init()
    } else {
        subscriber.with_target(false).try_init()
    };
    started.map_err(|error| format!("log: {error}"))
}

/// Opens a private file for writing, replacing what was there.
///
/// # Errors
/// The system's error.
pub fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_port_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(listening_ports().unwrap().contains(&port));
        drop(listener);
        assert!(!listening_ports().unwrap().contains(&port));
    }
}
