//! Tells gateways what the tally counted.
//!
//! Each gateway has a queue, a numbering and a back-off of its own. A report has its number when it is
//! sent first, and comes again with it, alike but for the time of sending, until there is an answer: so
//! the gateway takes it once. Where the queue is full the oldest report is given up; what the gateway
//! refuses is given up at once. Both are counted, and told with the reports that follow.
//!
//! A gateway that was started anew knows nothing of what was told before. It says so by another
//! `stillgate-instance` in its answers, and is then told the last day again, in short (`Recent`).

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::config::{Target, TargetAddress, TlsFiles, read_token};
use crate::limits::{
    ANSWER_BYTES_MAX, ANSWER_TIMEOUT, BACK_OFF_MAX, BACK_OFF_MIN, CONNECT_TIMEOUT, FLUSH_TIMEOUT,
    INSTANCES_MAX, QUEUED_BYTES_MAX, QUEUED_REPORTS_MAX, REPORT_LOG_EVERY, RETELL_INTERVAL,
    RETRY_AFTER_MAX,
};
use crate::metrics::TargetMetrics;
use crate::tally::{Batch, ContactEntry, LookupEntry, Recent, unix_ms};

/// Where reports are taken.
pub const PATH: &str = "/v1/sensor/reports";
/// The field of an answer that is new at each start of the gateway.
pub const INSTANCE: &str = "stillgate-instance";

/// Who tells: the head of each report.
#[derive(Debug)]
pub struct Teller {
    /// The sensor's name.
    pub sensor: Arc<str>,
    /// New at each start.
    pub run: String,
    /// Events that the kernel could not hand over.
    pub lost_kernel: AtomicU64,
    /// Sightings that found the tally full.
    pub lost_full: AtomicU64,
    /// What was told.
    pub recent: Mutex<Recent>,
}

impl Teller {
    /// A run that begins now.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(sensor: Arc<str>) -> io::Result<Self> {
        let mut run = [0; 8];
        aws_lc_rs::rand::fill(&mut run).map_err(|_| io::Error::other("no randomness"))?;
        Ok(Self {
            sensor,
            run: hex::encode(run),
            lost_kernel: AtomicU64::new(0),
            lost_full: AtomicU64::new(0),
            recent: Mutex::default(),
        })
    }
}

/// A report, as `README.md` describes it.
#[derive(Serialize)]
struct Report<'a> {
    sensor: &'a str,
    run: &'a str,
    sequence: u64,
    sent_at_ms: u64,
    lost: Lost,
    lookups: &'a [LookupEntry],
    contacts: &'a [ContactEntry],
}

#[derive(Clone, Copy, Serialize)]
struct Lost {
    kernel: u64,
    full: u64,
    unsent: u64,
}

/// What waits for gateways, and the tasks that tell them.
#[derive(Debug)]
pub struct Senders {
    teller: Arc<Teller>,
    each: Vec<(Arc<Queue>, JoinHandle<()>)>,
}

impl Senders {
    /// Starts a task for each target.
    #[must_use]
    pub fn start(
        teller: Arc<Teller>,
        targets: &[Target],
        metrics: impl Fn(&Target) -> TargetMetrics,
    ) -> Self {
        let each = targets.iter().map(|target| {
            let queue = Arc::new(Queue::new(metrics(target)));
            let sender = Sender::new(target.clone(), teller.clone(), queue.clone());
            (queue, tokio::spawn(sender.run()))
        });
        let each = each.collect();
        Self { teller, each }
    }

    /// Tells all of them, as soon as they take it.
    pub fn tell(&self, batch: Batch) {
        lock(&self.teller.recent).note(&batch);
        let batch = Arc::new(batch);
        for (queue, _) in &self.each {
            queue.push(batch.clone());
        }
    }

    /// Says that the sensor is alive, to those for whom nothing waits.
    pub fn heartbeat(&self) {
        let batch = Arc::new(Batch::default());
        for (queue, _) in &self.each {
            if lock(&queue.state).waiting.is_empty() {
                queue.push(batch.clone());
            }
        }
    }

    /// Entries for telling again that were forgotten early, for want of room.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        lock(&self.teller.recent).forgotten()
    }

    /// Tells what waits, each report once more, within [`FLUSH_TIMEOUT`]. Gives the number of entries
    /// that stay untold.
    pub async fn flush(self) -> u64 {
        for (queue, _) in &self.each {
            lock(&queue.state).closing = true;
            queue.wake.notify_one();
        }
        let end = Instant::now() + FLUSH_TIMEOUT;
        let unsent = |queue: &Queue| queue.metrics.unsent.get();
        let before: u64 = self.each.iter().map(|(queue, _)| unsent(queue)).sum();
        let mut after = 0;
        for (queue, mut task) in self.each {
            if tokio::time::timeout_at(end, &mut task).await.is_err() {
                task.abort();
                // The task counts what it holds when it is dropped.
                let _ = task.await;
            }
            queue.give_up_all();
            after += unsent(&queue);
        }
        after - before
    }
}

/// What waits for one gateway.
#[derive(Debug)]
struct Queue {
    state: Mutex<Waiting>,
    wake: Notify,
    metrics: TargetMetrics,
}

#[derive(Debug, Default)]
struct Waiting {
    waiting: VecDeque<Arc<Batch>>,
    bytes: usize,
    closing: bool,
}

impl Queue {
    fn new(metrics: TargetMetrics) -> Self {
        Self { state: Mutex::default(), wake: Notify::new(), metrics }
    }

    fn push(&self, batch: Arc<Batch>) {
        let mut state = lock(&self.state);
        state.bytes += batch.bytes_max();
        state.waiting.push_back(batch);
        while state.waiting.len() > QUEUED_REPORTS_MAX || state.bytes > QUEUED_BYTES_MAX {
            let Some(oldest) = state.pop() else { break };
            self.metrics.unsent.inc_by(oldest.len() as u64);
        }
        self.show(&state);
        self.wake.notify_one();
    }

    fn pop(&self) -> Option<Arc<Batch>> {
        let mut state = lock(&self.state);
        let first = state.pop();
        self.show(&state);
        first
    }

    fn give_up_all(&self) {
        while let Some(batch) = self.pop() {
            self.metrics.unsent.inc_by(batch.len() as u64);
        }
    }

    fn closing(&self) -> bool {
        lock(&self.state).closing
    }

    fn show(&self, state: &Waiting) {
        self.metrics.queued.set(i64::try_from(state.waiting.len()).unwrap_or(i64::MAX));
    }
}

impl Waiting {
    fn pop(&mut self) -> Option<Arc<Batch>> {
        let first = self.waiting.pop_front()?;
        self.bytes = self.bytes.saturating_sub(first.bytes_max());
        Some(first)
    }
}

/// Why a report was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    reason: String,
    /// Whether it is tried again, and how long the gateway asks to wait.
    again: Option<Duration>,
}

impl Failure {
    fn again(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), again: Some(Duration::ZERO) }
    }
}

/// The task that tells one gateway.
struct Sender {
    target: Target,
    name: String,
    teller: Arc<Teller>,
    queue: Arc<Queue>,
    connection: Option<Connection>,
    token: Option<HeaderValue>,
    sequence: u64,
    /// Processes of the gateway that answered, the latest last: behind one address there may be several
    /// in turn.
    instances: VecDeque<HeaderValue>,
    /// Whether one of them is still to be told the last day, and when one last was.
    retell: bool,
    retold_at: Option<Instant>,
    /// What of it is still to be told.
    retelling: VecDeque<Batch>,
    said: Said,
}

struct Connection {
    requests: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A report in the hand of its sender: counted as given up unless it is taken.
struct InHand<'a> {
    queue: &'a Queue,
    entries: u64,
}

impl InHand<'_> {
    fn taken(mut self) {
        self.entries = 0;
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.queue.metrics.unsent.inc_by(self.entries);
    }
}

impl Sender {
    fn new(target: Target, teller: Arc<Teller>, queue: Arc<Queue>) -> Self {
        Self {
            name: target.to_string(),
            target,
            teller,
            queue,
            connection: None,
            token: None,
            sequence: 0,
            instances: VecDeque::new(),
            retell: false,
            retold_at: None,
            retelling: VecDeque::new(),
            said: Said::default(),
        }
    }

    /// Until the sensor ends and everything was tried.
    async fn run(mut self) {
        let queue = self.queue.clone();
        loop {
            let taken = if let Some(batch) = self.retelling.pop_front() {
                // What is told again was told once: giving it up loses no entry.
                let taken = self.deliver(&batch).await;
                if taken {
                    self.queue.metrics.retold.inc_by(batch.len() as u64);
                }
                taken
            } else if let Some(batch) = queue.pop() {
                let hand = InHand { queue: &queue, entries: batch.len() as u64 };
                let taken = self.deliver(&batch).await;
                if taken {
                    hand.taken();
                }
                taken
            } else if queue.closing() {
                return;
            } else {
                queue.wake.notified().await;
                continue;
            };
            if queue.closing() {
                // The end is no time for what was told before.
                self.retelling.clear();
                if !taken {
                    return;
                }
            }
        }
    }

    /// Sends one report until it is taken or given up; tells whether it was taken.
    async fn deliver(&mut self, batch: &Batch) -> bool {
        self.sequence += 1;
        let lost = Lost {
            kernel: self.teller.lost_kernel.load(Ordering::Relaxed),
            full: self.teller.lost_full.load(Ordering::Relaxed),
            unsent: self.queue.metrics.unsent.get(),
        };
        let mut back_off = BACK_OFF_MIN;
        let mut renewed = false;
        loop {
            let closing = self.queue.closing();
            let Some(body) = self.report(batch, lost) else { return false };
            let attempt = timeout(ANSWER_TIMEOUT, self.attempt(&body)).await;
            let answer = match attempt.unwrap_or_else(|_| Err(Failure::again("no answer in time")))
            {
                Ok(answer) => self.judge(&answer),
                Err(failure) => {
                    self.connection = None;
                    Err(failure)
                }
            };
            let failure = match answer {
                Ok(instance) => {
                    self.queue.metrics.sent.inc();
                    self.said.works(&self.name);
                    self.look_at(instance);
                    return true;
                }
                Err(failure) => failure,
            };
            self.queue.metrics.failed.inc();
            let Some(asked) = failure.again else {
                // A token that was renewed since it was read is worth another look.
                if !renewed && self.token_renewed() {
                    renewed = true;
                    continue;
                }
                self.said.fails(&self.name, &failure.reason, "given up");
                return false;
            };
            self.said.fails(&self.name, &failure.reason, "tried again");
            if closing {
                return false;
            }
            let pause = jittered(back_off).max(asked.min(RETRY_AFTER_MAX));
            back_off = (back_off * 2).min(BACK_OFF_MAX);
            self.pause(pause).await;
        }
    }

    /// Sleeps; the sensor's end wakes it.
    async fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.queue.closing() {
            // A report that joins the queue wakes it as well.
            let woken = tokio::time::timeout_at(end, self.queue.wake.notified()).await;
            if woken.is_err() {
                return;
            }
        }
    }

    fn report(&self, batch: &Batch, lost: Lost) -> Option<Bytes> {
        let report = Report {
            sensor: &self.teller.sensor,
            run: &self.teller.run,
            sequence: self.sequence,
            // By this the gateway puts the other times on its own clock.
            sent_at_ms: unix_ms(),
            lost,
            lookups: &batch.lookups,
            contacts: &batch.contacts,
        };
        serde_json::to_vec(&report).ok().map(Bytes::from)
    }

    async fn attempt(&mut self, body: &Bytes) -> Result<Answer, Failure> {
        if self.token.is_none()
            && let Some(file) = &self.target.token_file
        {
            self.token = Some(token(file).map_err(Failure::again)?);
        }
        if let Some(mut connection) = self.connection.take()
            && connection.requests.ready().await.is_ok()
        {
            // The gateway may close a connection at the moment at which it is used again.
            if let Ok(answer) = self.ask(connection, body.clone()).await {
                return Ok(answer);
            }
        }
        let connection = connect(&self.target.address).await.map_err(Failure::again)?;
        self.ask(connection, body.clone()).await.map_err(Failure::again)
    }

    async fn ask(&mut self, mut connection: Connection, body: Bytes) -> Result<Answer, String> {
        let host = match &self.target.address {
            TargetAddress::Unix(_) => "localhost",
            TargetAddress::Tcp { .. } => self.name.split_once("//").map_or("", |(_, host)| host),
        };
        let mut request = Request::post(PATH)
            .header(HOST, host)
            .header(USER_AGENT, concat!("stillgate-sensor/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        let request =
            request.body(Full::new(body)).map_err(|_| "no request can be made".to_owned())?;
        // hyper's texts tell what failed and quote nothing of what was sent.
        let answer = connection.requests.send_request(request).await;
        let answer = Answer::of(answer.map_err(|error| format!("no answer: {error}"))?).await;
        if answer.whole {
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    /// What an answer says: taken, with the gateway's instance; or not.
    fn judge(&self, answer: &Answer) -> Result<Option<HeaderValue>, Failure> {
        let status = answer.status;
        if status.is_success() {
            return Ok(answer.instance.clone());
        }
        let again = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
        let hint = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ": it wants a token of the role `sensor`"
            }
            StatusCode::NOT_FOUND => ": it takes no reports there",
            _ => "",
        };
        let reason = format!("answers {}{hint}", status.as_u16());
        Err(Failure { reason, again: again.then_some(answer.retry_after) })
    }

    /// Whether the token file has another token than the one in use.
    fn token_renewed(&mut self) -> bool {
        let Some(Ok(now)) = self.target.token_file.as_deref().map(token) else { return false };
        let before = self.token.replace(now);
        before != self.token
    }

    /// Whether the gateway was started anew since it was told first, and so is told again.
    fn look_at(&mut self, instance: Option<HeaderValue>) {
        if let Some(instance) = instance
            && !self.instances.contains(&instance)
        {
            self.retell |= !self.instances.is_empty();
            if self.instances.len() >= INSTANCES_MAX {
                self.instances.pop_front();
            }
            self.instances.push_back(instance);
        }
        let soon = self.retold_at.is_some_and(|at| at.elapsed() < RETELL_INTERVAL);
        if !self.retell || soon {
            return;
        }
        self.retell = false;
        self.retold_at = Some(Instant::now());
        self.retelling = lock(&self.teller.recent).all(unix_ms()).into();
        let entries: usize = self.retelling.iter().map(Batch::len).sum();
        tracing::info!(
            gateway = %self.name,
            entries,
            "the gateway was started anew and is told the last day again"
        );
    }
}

/// What is looked at of an answer.
struct Answer {
    status: StatusCode,
    instance: Option<HeaderValue>,
    retry_after: Duration,
    /// Whether it was read to its end, so that the connection can be used again.
    whole: bool,
}

impl Answer {
    async fn of(answer: Response<Incoming>) -> Self {
        let (head, body) = answer.into_parts();
        let instance = head.headers.get(INSTANCE).filter(|value| value.len() <= 64).cloned();
        // A date is not read: the back-off does without.
        let seconds =
            head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let whole = Limited::new(body, ANSWER_BYTES_MAX).collect().await.is_ok();
        let retry_after = Duration::from_secs(seconds.unwrap_or(0));
        Self { status: head.status, instance, retry_after, whole }
    }
}

/// The file's token as a header value that no `Debug` shows.
fn token(file: &Path) -> Result<HeaderValue, String> {
    let text = format!("Bearer {}", read_token(file)?);
    let mut value =
        HeaderValue::from_str(&text).map_err(|_| format!("{} is not a token", file.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn connect(address: &TargetAddress) -> Result<Connection, String> {
    let io: Box<dyn Io> = match address {
        TargetAddress::Unix(path) => {
            let stream = timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await;
            Box::new(in_time(stream).map_err(|error| format!("no connection: {error}"))?)
        }
        TargetAddress::Tcp { host, port, tls } => {
            let stream = connect_tcp(host, *port).await?;
            match tls {
                None => Box::new(stream),
                Some(files) => {
                    let name = ServerName::try_from(host.clone())
                        .map_err(|_| "its host is no name of a certificate".to_owned())?;
                    let connector = TlsConnector::from(Arc::new(tls_config(files)?));
                    let stream = timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await;
                    Box::new(in_time(stream).map_err(|error| format!("no TLS: {error}"))?)
                }
            }
        }
    };
    let (requests, driver) =
        handshake(TokioIo::new(io)).await.map_err(|error| format!("no connection: {error}"))?;
    // How it ends is seen by the request on it.
    let driver = tokio::spawn(async move { drop(driver.await) });
    Ok(Connection { requests, driver })
}

/// Connects to the first of the host's addresses that lets itself be.
async fn connect_tcp(host: &str, port: u16) -> Result<TcpStream, String> {
    let found = timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((host, port))).await;
    let mut outcome = Err("its name has no address".to_owned());
    for address in in_time(found).map_err(|error| format!("no address: {error}"))? {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        outcome = in_time(stream).map_err(|error| format!("no connection: {error}"));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn in_time<T>(outcome: Result<io::Result<T>, tokio::time::error::Elapsed>) -> io::Result<T> {
    outcome.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "not in time")))
}

/// What is trusted and shown. Read for each connection, which are few: certificates are renewed.
fn tls_config(files: &TlsFiles) -> Result<ClientConfig, String> {
    let wrong = |path: &Path, error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, String> {
        let found = CertificateDer::pem_file_iter(path).map_err(|error| wrong(path, &error))?;
        let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| wrong(path, &error))?;
        if found.is_empty() { Err(wrong(path, &"no certificate")) } else { Ok(found) }
    };
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(&files.ca)?);
    if added == 0 {
        return Err(wrong(&files.ca, &"no certificate that can be a root"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match &files.client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let own = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
            builder
                .with_client_auth_cert(certificates(chain)?, own)
                .map_err(|error| wrong(chain, &error))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Whether files that a target names can be used.
///
/// # Errors
/// What cannot, and why.
pub fn check_tls(files: &TlsFiles) -> Result<(), String> {
    tls_config(files).map(|_| ())
}

/// What the log was told of one gateway: each change of reason once, and not more than a line in
/// [`REPORT_LOG_EVERY`].
#[derive(Debug, Default)]
struct Said {
    reason: Option<String>,
    at: Option<Instant>,
}

impl Said {
    fn fails(&mut self, gateway: &str, reason: &str, then: &'static str) {
        let known = self.reason.as_deref() == Some(reason);
        if known || self.at.is_some_and(|at| at.elapsed() < REPORT_LOG_EVERY) {
            return;
        }
        tracing::warn!(gateway, reason, "a report was not taken and is {then}");
        self.reason = Some(reason.to_owned());
        self.at = Some(Instant::now());
    }

    fn works(&mut self, gateway: &str) {
        if self.reason.take().is_some() {
            tracing::info!(gateway, "takes reports again");
        }
    }
}

/// Between half of a time and all of it.
fn jittered(time: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness there is no jitter, and no harm.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    time - time / 2 * u32::from(byte[0]) / 255
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::AtomicUsize;

    use hyper::HeaderMap;
    use hyper::service::service_fn;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::ServerConfig;
    use rustls::server::WebPkiClientVerifier;
    use serde_json::Value;
    use tokio::net::{TcpListener, UnixListener};
    use tokio::time::sleep;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::folder::Folder;
    use crate::metrics::Metrics;
    use crate::tally::tests::{contact, lookup, origin};
    use crate::tally::{Bounds, Clock, HashKey, NamesTold, SeenAs, Tally, TallySettings};

    /// What the gateway of a test does with a report.
    #[derive(Clone, Copy, Debug)]
    enum Does {
        Takes(Option<&'static str>),
        Answers(u16),
        AsksToWait(u64),
        Closes,
        Hangs,
    }

    /// A gateway that does these things in turn, the last one for ever, and keeps what it was sent.
    #[derive(Debug)]
    struct Gateway {
        does: Mutex<VecDeque<Does>>,
        seen: Mutex<Vec<(Instant, HeaderMap, Vec<u8>)>>,
        connections: AtomicUsize,
    }

    impl Gateway {
        fn new(does: &[Does]) -> Arc<Self> {
            Arc::new(Self {
                does: Mutex::new(does.iter().copied().collect()),
                seen: Mutex::default(),
                connections: AtomicUsize::new(0),
            })
        }

        fn unix(path: &Path, does: &[Does]) -> Arc<Self> {
            let gateway = Self::new(does);
            let listener = UnixListener::bind(path).unwrap();
            let served = gateway.clone();
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(served.clone().serve(stream));
                }
            });
            gateway
        }

        async fn serve(self: Arc<Self>, stream: impl Io + 'static) {
            self.connections.fetch_add(1, Ordering::Relaxed);
            let service = service_fn(|request: Request<Incoming>| {
                let gateway = self.clone();
                async move {
                    assert_eq!((request.method().as_str(), request.uri().path()), ("POST", PATH));
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes().to_vec();
                    lock(&gateway.seen).push((Instant::now(), head.headers.clone(), body.clone()));
                    let does = {
                        let mut does = lock(&gateway.does);
                        let first = *does.front().unwrap();
                        if does.len() > 1 {
                            does.pop_front();
                        }
                        first
                    };
                    let answer = Response::builder();
                    let answer = match does {
                        Does::Takes(None) => answer,
                        Does::Takes(Some(instance)) => answer.header(INSTANCE, instance),
                        Does::Answers(status) => answer.status(status),
                        Does::AsksToWait(seconds) => {
                            answer.status(429).header(RETRY_AFTER, seconds)
                        }
                        Does::Closes => return Err("closed"),
                        Does::Hangs => std::future::pending().await,
                    };
                    // A rude gateway that says back what it was told.
                    let mut said = body;
                    said.extend_from_slice(
                        head.headers.get(AUTHORIZATION).map_or(b"", HeaderValue::as_bytes),
                    );
                    Ok(answer.body(Full::new(Bytes::from(said))).unwrap())
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        }

        async fn has_seen(&self, count: usize) -> Vec<Value> {
            for _ in 0..1000 {
                if lock(&self.seen).len() >= count {
                    break;
                }
                sleep(Duration::from_millis(10)).await;
            }
            let seen = lock(&self.seen);
            assert!(seen.len() >= count, "{} of {count} reports", seen.len());
            seen.iter().map(|(_, _, body)| serde_json::from_slice(body).unwrap()).collect()
        }
    }

    fn start(target: Target) -> (Senders, TargetMetrics) {
        let metrics = Metrics::new().unwrap().target("test");
        let teller = Arc::new(Teller::new("egress-1".into()).unwrap());
        (Senders::start(teller, &[target], |_| metrics.clone()), metrics)
    }

    fn unix(path: &Path) -> Target {
        Target { address: TargetAddress::Unix(path.to_owned()), token_file: None }
    }

    /// As many entries as that, with names in the clear.
    fn batch(entries: usize) -> Batch {
        let mut tally = Tally::new(TallySettings {
            seen_as: SeenAs::default(),
            names: NamesTold::Clear,
            key: HashKey::new([1; 32]),
            api_known: false,
            bounds: Bounds::default(),
        });
        for index in 0..entries {
            let host = origin(&format!("203.0.113.{index}"), None);
            tally.note(&lookup(host, 1, Some("secret-name.example")));
        }
        tally.take(&Clock::now(), 2).pop().unwrap_or_default()
    }

    async fn eventually(what: impl Fn() -> bool) {
        for _ in 0..1000 {
            if what() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("not within ten seconds");
    }

    #[tokio::test]
    async fn reports_are_numbered_and_come_over_one_connection() {
        let folder = Folder::new();
        let path = folder.path("s.sock");
        let gateway = Gateway::unix(&path, &[Does::Takes(None)]);
        let (senders, metrics) = start(unix(&path));
        senders.tell(batch(2));
        senders.heartbeat();
        senders.tell(batch(3));
        let seen = gateway.has_seen(2).await;
        assert_eq!(senders.flush().await, 0);
        let seen = if seen.len() == 3 { seen } else { gateway.has_seen(2).await };
        let of = |report: &Value, key: &str| report[key].as_array().unwrap().len();
        assert_eq!(seen[0]["sensor"], "egress-1");
        assert_eq!(seen[0]["run"].as_str().unwrap().len(), 16);
        assert_eq!(seen[0]["lost"], serde_json::json!({"kernel": 0, "full": 0, "unsent": 0}));
        assert!(unix_ms() - seen[0]["sent_at_ms"].as_u64().unwrap() < 60_000);
        let entries: Vec<_> = seen.iter().map(|report| of(report, "lookups")).collect();
        assert!(entries == [2, 3] || entries == [2, 0, 3], "{entries:?}");
        for (index, report) in seen.iter().enumerate() {
            assert_eq!(report["sequence"], index + 1);
            assert_eq!(report["run"], seen[0]["run"]);
        }
        assert_eq!(gateway.connections.load(Ordering::Relaxed), 1);
        assert_eq!(metrics.sent.get(), seen.len() as u64);
        assert_eq!((metrics.failed.get(), metrics.queued.get()), (0, 0));
    }

    #[tokio::test]
    async fn what_was_not_taken_comes_again_under_its_number() {
        let folder = Folder::new();
        let path = folder.path("s.sock");
        let does = [Does::Answers(503), Does::Closes, Does::Takes(None)];
        let gateway = Gateway::unix(&path, &does);
        let (senders, metrics) = start(unix(&path));
        senders.tell(batch(1));
        gateway.has_seen(3).await;
        senders.tell(batch(1));
        let reports = gateway.has_seen(4).await;
        let at: Vec<_> = lock(&gateway.seen).iter().map(|(at, _, _)| *at).collect();
        assert!(at[1] - at[0] >= BACK_OFF_MIN / 2, "it waits");
        let sent_at = |report: &Value| report["sent_at_ms"].as_u64().unwrap();
        assert!(sent_at(&reports[1]) - sent_at(&reports[0]) >= 500, "each says when it was sent");
        let alike = |report: &Value| {
            let mut report = report.clone();
            report["sent_at_ms"] = Value::Null;
            report
        };
        assert_eq!(alike(&reports[0]), alike(&reports[1]));
        assert_eq!(alike(&reports[1]), alike(&reports[2]));
        assert_eq!((&reports[2]["sequence"], &reports[3]["sequence"]), (&1.into(), &2.into()));
        // A connection that ends when it is used again is no failure: another one is tried at once.
        assert_eq!((metrics.failed.get(), metrics.unsent.get()), (1, 0));
        assert_eq!(gateway.connections.load(Ordering::Relaxed), 2);
        assert_eq!(senders.flush().await, 0);
    }

    #[tokio::test]
    async fn a_gateway_that_asks_for_time_gets_it() {
        let folder = Folder::new();
        let path = folder.path("s.sock");
        let gateway = Gateway::unix(&path, &[Does::AsksToWait(2), Does::Takes(None)]);
        let (senders, _) = start(unix(&path));
        senders.tell(batch(1));
        gateway.has_seen(2).await;
        {
            let seen = lock(&gateway.seen);
            assert!(seen[1].0 - seen[0].0 >= Duration::from_secs(2));
        }
        assert_eq!(senders.flush().await, 0);
    }

    #[tokio::test]
    async fn what_is_refused_is_given_up_at_once_and_told_as_lost() {
        let folder = Folder::new();
        let path = folder.path("s.sock");
        let gateway = Gateway::unix(&path, &[Does::Answers(400), Does::Takes(None)]);
        let (senders, metrics) = start(unix(&path));
        senders.tell(batch(5));
        senders.tell(batch(1));
        let seen = gateway.has_seen(2).await;
        assert_eq!((&seen[1]["sequence"], &seen[1]["lost"]["unsent"]), (&2.into(), &5.into()));
        assert_eq!((metrics.failed.get(), metrics.unsent.get()), (1, 5));
        assert_eq!(senders.flush().await, 0, "what was lost before is not lost at the end");
    }

    #[tokio::test]
    async fn a_renewed_token_is_read_and_neither_it_nor_a_body_is_logged() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let folder = Folder::new();
        let path = folder.path("s.sock");
        let does = [Does::Takes(None), Does::Answers(401), Does::Takes(None), Does::Answers(403)];
        let gateway = Gateway::unix(&path, &does);
        let token_file = folder.write("token", "first-token\n");
        let target = Target { token_file: Some(token_file), ..unix(&path) };
        let (senders, metrics) = start(target);
        senders.tell(batch(1));
        gateway.has_seen(1).await;
        folder.write("token", "second-token\n");
        senders.tell(batch(1));
        gateway.has_seen(3).await;
        // The same token again: given up.
        senders.tell(batch(4));
        gateway.has_seen(4).await;
        eventually(|| metrics.unsent.get() == 4).await;
        let tokens: Vec<_> = lock(&gateway.seen)
            .iter()
            .map(|(_, headers, _)| headers[AUTHORIZATION].to_str().unwrap().to_owned())
            .collect();
        let [first, second] = ["Bearer first-token", "Bearer second-token"];
        assert_eq!(tokens, [first, first, second, second]);
        assert_eq!(senders.flush().await, 0);
        let text = String::from_utf8(lock(&log.0).clone()).unwrap();
        assert!(text.contains("answers 403: it wants a token of the role `sensor`"), "{text}");
        for secret in ["first-token", "second-token", "secret-name", "203.0.113"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn without_a_gateway_the_oldest_are_given_up_and_the_rest_comes_when_it_is_there() {
        let folder = Folder::new();
        let path = folder.path("s.sock");
        let (senders, metrics) = start(unix(&path));
        let more = 6;
        senders.tell(batch(1));
        // In the sender's hand, beside the queue.
        eventually(|| metrics.failed.get() > 0).await;
        for _ in 0..QUEUED_REPORTS_MAX + more {
            senders.tell(batch(3));
        }
        assert_eq!(metrics.unsent.get(), 3 * more as u64);
        assert_eq!(usize::try_from(metrics.queued.get()), Ok(QUEUED_REPORTS_MAX));
        let gateway = Gateway::unix(&path, &[Does::Takes(None)]);
        let seen = gateway.has_seen(1 + QUEUED_REPORTS_MAX).await;
        let numbers: Vec<_> = seen.iter().map(|seen| seen["sequence"].as_u64().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers.len() == 1 + QUEUED_REPORTS_MAX, "{numbers:?}");
        assert_eq!(seen[1]["lost"]["unsent"], 3 * more);
        eventually(|| metrics.queued.get() == 0).await;
        assert_eq!(senders.flush().await, 0);
    }

    #[test]
    fn a_queue_has_a_bound_in_bytes_too() {
        let metrics = Metrics::new().unwrap().target("test");
        let queue = Queue::new(metrics.clone());
        let large = Arc::new(Batch { contacts: contacts(2_500), ..Batch::default() });
        assert!(large.bytes_max() > QUEUED_BYTES_MAX / 20);
        for _ in 0..40 {
            queue.push(large.clone());
        }
        let state = lock(&queue.state);
        assert!(state.bytes <= QUEUED_BYTES_MAX && state.bytes > QUEUED_BYTES_MAX / 2);
        let given_up = 40 - state.waiting.len() as u64;
        assert_eq!(metrics.unsent.get(), given_up * 2_500);
    }

    fn contacts(count: usize) -> Vec<ContactEntry> {
        let mut tally = Tally::new(TallySettings {
            seen_as: SeenAs::default(),
            names: NamesTold::None,
            key: HashKey::new([1; 32]),
            api_known: false,
            bounds: Bounds::default(),
        });
        tally.note(&contact(origin("203.0.113.1", None), 1, "198.51.100.9:443"));
        let batch = tally.take(&Clock::now(), 2).pop().unwrap();
        vec![batch.contacts[0].clone(); count]
    }

    #[tokio::test]
    async fn a_gateway_that_was_started_anew_is_told_the_last_day_again() {
        let folder = Folder::new();
        let path = folder.path("s.sock");
        let does = [Does::Takes(Some("aa")), Does::Takes(Some("aa")), Does::Takes(Some("bb"))];
        let gateway = Gateway::unix(&path, &does);
        let (senders, metrics) = start(unix(&path));
        senders.tell(batch(2));
        senders.tell(batch(1));
        gateway.has_seen(2).await;
        assert_eq!(metrics.retold.get(), 0);
        // This one finds the new instance; nothing but that it is there follows from it.
        senders.heartbeat();
        let seen = gateway.has_seen(4).await;
        eventually(|| metrics.retold.get() == 2).await;
        let again = &seen[3];
        assert_eq!(again["sequence"], 4);
        let lookups = again["lookups"].as_array().unwrap();
        assert_eq!(lookups.len(), 2, "of two hosts the last entry each: {again}");
        assert!(lookups.iter().all(|entry| entry["name"].is_null()));
        let hosts = |report: &Value| -> std::collections::BTreeSet<String> {
            let lookups = report["lookups"].as_array().unwrap();
            lookups.iter().map(|entry| entry["host"].to_string()).collect()
        };
        assert_eq!(hosts(again), hosts(&seen[0]));
        let times: Vec<_> = lookups.iter().map(|entry| &entry["last_ms"]).collect();
        assert!(times.contains(&&seen[0]["lookups"][1]["last_ms"]), "times stay");
        assert_eq!(senders.flush().await, 0);
        assert_eq!(lock(&gateway.seen).len(), 4, "once");
    }

    #[tokio::test]
    async fn gateways_that_answer_in_turn_are_not_told_again_and_again() {
        let folder = Folder::new();
        let path = folder.path("s.sock");
        let names = ["aa", "bb", "aa", "bb", "cc", "aa", "dd", "ee"];
        let does: Vec<_> = names.into_iter().map(|name| Does::Takes(Some(name))).collect();
        let gateway = Gateway::unix(&path, &does);
        let (senders, metrics) = start(unix(&path));
        for _ in 0..8 {
            senders.tell(batch(1));
        }
        gateway.has_seen(9).await;
        eventually(|| metrics.sent.get() == 9).await;
        assert_eq!(metrics.retold.get(), 1, "once for bb; what came within a minute waits");
        assert_eq!(senders.flush().await, 0);
        assert_eq!(lock(&gateway.seen).len(), 9);
    }

    #[tokio::test]
    async fn the_end_tells_what_is_left_and_does_not_wait_for_a_back_off() {
        let folder = Folder::new();
        let path = folder.path("s.sock");
        let (senders, metrics) = start(unix(&path));
        for _ in 0..3 {
            senders.tell(batch(2));
        }
        // Nobody is there: it waits for the third attempt, two seconds at least.
        eventually(|| metrics.failed.get() == 2).await;
        let gateway = Gateway::unix(&path, &[Does::Takes(None)]);
        let before = Instant::now();
        assert_eq!(senders.flush().await, 0);
        assert!(before.elapsed() < Duration::from_millis(900), "{:?}", before.elapsed());
        assert_eq!(lock(&gateway.seen).len(), 3);
    }

    #[tokio::test]
    async fn the_end_does_not_wait_for_a_gateway_that_is_silent() {
        let folder = Folder::new();
        let path = folder.path("s.sock");
        let gateway = Gateway::unix(&path, &[Does::Hangs]);
        let (senders, metrics) = start(unix(&path));
        for _ in 0..3 {
            senders.tell(batch(2));
        }
        gateway.has_seen(1).await;
        let before = Instant::now();
        assert_eq!(senders.flush().await, 6, "all three reports are lost, and counted");
        assert!(before.elapsed() < FLUSH_TIMEOUT + Duration::from_secs(1));
        assert_eq!(metrics.unsent.get(), 6);
    }

    struct Authority {
        issuer: CertifiedIssuer<'static, KeyPair>,
        folder: Folder,
    }

    impl Authority {
        fn new() -> Self {
            let mut parameters = CertificateParams::default();
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let issuer = CertifiedIssuer::self_signed(parameters, key).unwrap();
            let folder = Folder::new();
            folder.write("ca.pem", &issuer.pem());
            Self { issuer, folder }
        }

        /// A chain and a key, as files.
        fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
            let key = KeyPair::generate().unwrap();
            let parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
            let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
            let chain = self.folder.write(&format!("{name}.pem"), &certificate.pem());
            (chain, self.folder.write(&format!("{name}.key"), &key.serialize_pem()))
        }

        fn ca(&self) -> PathBuf {
            self.folder.path("ca.pem")
        }
    }

    /// A gateway that asks for certificates of this authority; its port.
    async fn tls_gateway(authority: &Authority, does: &[Does]) -> (Arc<Gateway>, u16) {
        let mut roots = RootCertStore::empty();
        roots.add(authority.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let (chain, key) = authority.issue("localhost");
        let chain =
            CertificateDer::pem_file_iter(chain).unwrap().collect::<Result<_, _>>().unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let gateway = Gateway::new(does);
        let served = gateway.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(stream) = acceptor.accept(stream).await {
                    tokio::spawn(served.clone().serve(stream));
                }
            }
        });
        (gateway, port)
    }

    fn tls(port: u16, ca: PathBuf, client: Option<(PathBuf, PathBuf)>) -> Target {
        let tls = Some(TlsFiles { ca, client });
        let address = TargetAddress::Tcp { host: "localhost".into(), port, tls };
        Target { address, token_file: None }
    }

    #[tokio::test]
    async fn a_client_certificate_is_shown_and_the_gateway_s_is_verified() {
        let authority = Authority::new();
        let (gateway, port) = tls_gateway(&authority, &[Does::Takes(None)]).await;
        let client = authority.issue("sensor");
        let (senders, metrics) = start(tls(port, authority.ca(), Some(client.clone())));
        senders.tell(batch(1));
        gateway.has_seen(1).await;
        eventually(|| metrics.sent.get() == 1).await;
        assert_eq!(lock(&gateway.seen)[0].1[HOST], format!("localhost:{port}"));
        assert_eq!(senders.flush().await, 0);

        for (what, target) in [
            ("no certificate", tls(port, authority.ca(), None)),
            ("another's authority", tls(port, Authority::new().ca(), Some(client))),
        ] {
            let (senders, metrics) = start(target);
            senders.tell(batch(1));
            eventually(|| metrics.failed.get() == 1).await;
            assert_eq!(senders.flush().await, 1, "{what}");
        }
        assert_eq!(lock(&gateway.seen).len(), 1);
    }

    #[test]
    fn files_that_are_no_certificates_are_named() {
        let authority = Authority::new();
        let (chain, key) = authority.issue("sensor");
        let files =
            |ca: PathBuf, chain: PathBuf, key: PathBuf| TlsFiles { ca, client: Some((chain, key)) };
        assert_eq!(check_tls(&files(authority.ca(), chain.clone(), key.clone())), Ok(()));
        let empty = authority.folder.write("empty.pem", "");
        let missing = authority.folder.path("missing.pem");
        for (files, name) in [
            (files(empty.clone(), chain.clone(), key.clone()), "empty.pem"),
            (files(missing, chain.clone(), key.clone()), "missing.pem"),
            (files(authority.ca(), empty.clone(), key), "empty.pem"),
            (files(authority.ca(), chain, empty), "empty.pem"),
        ] {
            let wrong = check_tls(&files).unwrap_err();
            assert!(wrong.contains(name), "{wrong}");
        }
    }
}
