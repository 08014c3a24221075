//! Webhooks: what happens, told to addresses of the operator.
//!
//! A webhook follows the audit: every entry of a wanted kind is a message, sent as a POST and signed
//! as Standard Webhooks say, so that receivers check it with a library off the shelf. It goes on
//! from a cursor in the store, so messages outlive restarts; a message may come twice (its id is the
//! same), none is lost, and an address that is dead costs no memory: the webhook lags behind the
//! store. A new one begins at the audit's end.
//!
//! Messages that share an account or a cluster come in the audit's order: one that is not yet taken
//! holds up what follows on the same account, and nothing else until [`WEBHOOK_WINDOW_MAX`] messages
//! wait behind it.
//!
//! Any 2xx takes a message. Everything else is tried again with growing pauses, redirects too: they
//! are not followed. A 4xx will be the same in a moment, so it waits the longest pause at once, 410
//! among them: an address that is gone by mistake must not lose what happened meanwhile. Where 429
//! or 503 name a time (`Retry-After`, in seconds), it is kept, up to the longest pause. After
//! `give_up_after` a message is counted, logged and left out.
//!
//! Source: Standard Webhooks 1.0.0, <https://www.standardwebhooks.com/>; RFC 9110, section 10.2.3
//! (`Retry-After`).

mod signature;
mod window;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{Method, StatusCode};
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};
use tracing::{error, info, warn};

pub use self::signature::SigningKey;
use self::window::{Message, Window};
use crate::audit::{Act, Anchor, Chained, Entry, Query};
use crate::gateway::random_u64;
use crate::limits::{
    AUDIT_PAGE, WEBHOOK_ANSWER_BYTES_MAX, WEBHOOK_IN_FLIGHT_MAX, WEBHOOK_LOOK_INTERVAL,
    WEBHOOK_WINDOW_MAX,
};
use crate::metrics::Metrics;
use crate::outgoing::{Outgoing, OutgoingError, Request, Trust, Url};
use crate::policy::unix_ms;
use crate::store::{Batch, Store, StoreError, Table, Write};

/// Kinds of entries that are told where the operator names none.
pub const DEFAULT_EVENTS: [Act; 6] = [
    Act::TierChanged,
    Act::TakedownWaits,
    Act::TakenDown,
    Act::TakedownJoined,
    Act::TakedownUndone,
    Act::VerificationRequested,
];

/// A webhook's settings.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Name for logs and metrics, and of its cursor: under another name it is a new one.
    pub name: Arc<str>,
    /// Where messages go.
    pub url: Url,
    /// Whom the address is trusted by.
    pub trust: Trust,
    /// Kinds of entries that are told.
    pub events: Vec<Act>,
    /// Each signs every message; several while one replaces another. Never empty.
    pub keys: Vec<SigningKey>,
    /// Time for one attempt.
    pub timeout: Duration,
    /// Pause after a first attempt that failed; it doubles with each further one.
    pub retry: Duration,
    /// The longest pause.
    pub retry_max: Duration,
    /// How long a message is tried, from its entry's time or, where that is later, from the start.
    pub give_up_after: Duration,
}

/// The webhooks of a gateway, as a service.
pub struct Webhooks {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    hooks: Vec<Hook>,
}

impl Webhooks {
    /// Prepares them; [`Self::follow`] sends.
    ///
    /// # Errors
    /// When certificates cannot be loaded, in words for the operator.
    pub fn new(
        webhooks: &[Webhook],
        store: &Arc<Store>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, String> {
        let hooks = webhooks.iter().map(|settings| {
            let client = Outgoing::new(settings.url.clone(), &settings.trust)
                .map_err(|error| format!("webhook {}: {error}", settings.name))?;
            Ok(Hook {
                settings: settings.clone(),
                client,
                store: store.clone(),
                metrics: metrics.clone(),
                started_ms: unix_ms(),
                failing: AtomicBool::new(false),
            })
        });
        let hooks = hooks.collect::<Result<_, String>>()?;
        Ok(Self { store: store.clone(), metrics: metrics.clone(), hooks })
    }

    /// Sends until it is shut down. Also keeps the metric of the audit's last number.
    pub async fn follow(&self, shutdown: ShutdownWatch) {
        let hooks = self.hooks.iter().map(|hook| hook.follow(shutdown.clone()));
        let hooks = futures::future::join_all(hooks);
        let head = async {
            let mut look = clock();
            loop {
                look.tick().await;
                if let Ok(head) = read(&self.store, Store::audit_head).await {
                    self.metrics.audit_entries.set(gauge(head.seq));
                }
            }
        };
        // Each webhook ends by itself, when it has stored its cursor.
        let head = async {
            tokio::select! {
                () = head => {}
                () = ended(shutdown.clone()) => {}
            }
        };
        tokio::join!(hooks, head);
    }
}

#[async_trait]
impl BackgroundService for Webhooks {
    async fn start(&self, shutdown: ShutdownWatch) {
        self.follow(shutdown).await;
    }
}

/// One webhook.
struct Hook {
    settings: Webhook,
    client: Outgoing,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    started_ms: u64,
    /// Whether the last attempt failed: only changes are logged.
    failing: AtomicBool,
}

/// How far a webhook has come, as it is stored.
#[derive(Serialize, Deserialize)]
struct Cursor {
    /// Every entry up to this one was taken, given up, or of another kind.
    seq: u64,
}

/// What a receiver gets.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    act: Act,
    timestamp: String,
    id: &'a str,
    hash: &'a str,
    /// The entry, byte for byte as it was hashed.
    data: &'a RawValue,
}

/// What came of an attempt.
enum Outcome {
    Taken,
    /// With the least time until the next attempt, where the receiver named one.
    Refused(StatusCode, Option<Duration>),
    Unreached(OutgoingError),
}

impl Hook {
    /// Follows the audit until it is shut down.
    async fn follow(&self, shutdown: ShutdownWatch) {
        let mut shutdown = std::pin::pin!(ended(shutdown));
        // Before the first look at the store, so that nothing falls between.
        let mut feed = self.store.subscribe();
        let mut look = clock();
        let mut begun = None;
        while begun.is_none() {
            tokio::select! {
                _ = look.tick() => begun = self.begin().await,
                () = &mut shutdown => return,
            }
        }
        let Some(mut saved) = begun else { return };
        let mut window = Window::after(saved);
        let mut flying = FuturesUnordered::new();
        let mut caught_up = false;
        loop {
            if !caught_up && window.len() < WEBHOOK_WINDOW_MAX {
                caught_up = self.fill(&mut window).await;
            }
            for message in window.ready(WEBHOOK_IN_FLIGHT_MAX.saturating_sub(flying.len())) {
                flying.push(self.deliver(message));
            }
            let more = !caught_up && window.len() < WEBHOOK_WINDOW_MAX;
            tokio::select! {
                Some(seq) = flying.next() => window.finish(seq),
                committed = feed.recv(), if caught_up => match committed {
                    Ok(committed) => caught_up = committed.audit.is_empty(),
                    Err(RecvError::Lagged(_)) => caught_up = false,
                    Err(RecvError::Closed) => break,
                },
                _ = look.tick() => {
                    // Another process may have written, as one that is being replaced does.
                    caught_up = false;
                    saved = self.save(saved, window.cursor()).await;
                    self.measure(&window).await;
                }
                () = &mut shutdown => break,
                // A store that could not be read is asked again by the clock.
                () = std::future::ready(()), if more => {}
            }
        }
        drop(flying);
        self.save(saved, window.cursor()).await;
    }

    /// Where to begin; `None` where the store cannot tell now.
    async fn begin(&self) -> Option<u64> {
        let key = self.cursor_key();
        let name = &self.settings.name;
        let held = read(&self.store, move |store| {
            Ok((store.get(Table::Cursor, &key)?, store.audit_head()?))
        });
        let (register, head) = match held.await {
            Ok(held) => held,
            Err(error) => {
                warn!(webhook = %name, %error, "the store cannot be read, the webhook waits");
                return None;
            }
        };
        let value = register.and_then(|register| register.value);
        match value.as_deref().map(serde_json::from_str) {
            Some(Ok(Cursor { seq })) if seq <= head.seq => return Some(seq),
            None => {}
            Some(_) => warn!(webhook = %name, "its cursor fits no entry: it begins at the end"),
        }
        let Anchor { seq, .. } = head;
        // From then on nothing is left out, even if it ends before the first message.
        let write = Write::put(Table::Cursor, self.cursor_key(), &Cursor { seq });
        let batch = Batch { writes: vec![write], audit: Vec::new() };
        match self.store.commit(batch).durable().await {
            Ok(_) => Some(seq),
            Err(error) => {
                warn!(webhook = %name, %error, "the cursor cannot be stored, the webhook waits");
                None
            }
        }
    }

    fn cursor_key(&self) -> String {
        format!("webhook {}", self.settings.name)
    }

    /// Stores how far it has come; returns what is stored.
    async fn save(&self, saved: u64, cursor: u64) -> u64 {
        if cursor == saved {
            return saved;
        }
        let write = Write::put(Table::Cursor, self.cursor_key(), &Cursor { seq: cursor });
        let batch = Batch { writes: vec![write], audit: Vec::new() };
        match self.store.commit(batch).durable().await {
            Ok(_) => cursor,
            // Some messages come twice after a restart.
            Err(error) => {
                warn!(webhook = %self.settings.name, %error, "its cursor was not stored");
                saved
            }
        }
    }

    /// Reads further into the audit; says whether its end is reached, or it cannot be read now.
    async fn fill(&self, window: &mut Window) -> bool {
        let query = Query { after: window.read(), limit: AUDIT_PAGE };
        let page = match read(&self.store, move |store| store.audit(&query)).await {
            Ok(page) => page,
            Err(error) => {
                warn!(webhook = %self.settings.name, %error, "the audit cannot be read");
                return true;
            }
        };
        let whole = page.len() == AUDIT_PAGE;
        for chained in page {
            if window.len() >= WEBHOOK_WINDOW_MAX {
                return false;
            }
            match self.message(&chained) {
                Some(message) => window.push(message),
                None => window.pass(chained.seq),
            }
        }
        !whole
    }

    /// The message of an entry, if it is of a wanted kind. Kinds of later versions are not.
    fn message(&self, chained: &Chained) -> Option<Message> {
        let entry = chained.entry().ok()?;
        if !self.settings.events.contains(&entry.act) {
            return None;
        }
        let at = i128::from(entry.at_ms) * 1_000_000;
        let at = OffsetDateTime::from_unix_timestamp_nanos(at).ok()?;
        let id = format!("msg_{}", chained.hash.get(..32)?);
        let body = Body {
            act: entry.act,
            timestamp: at.format(&Rfc3339).ok()?,
            id: &id,
            hash: &chained.hash,
            data: serde_json::from_str(&chained.text).ok()?,
        };
        let body = Bytes::from(serde_json::to_vec(&body).ok()?);
        let keys = keys(&entry);
        Some(Message { seq: chained.seq, at_ms: entry.at_ms, act: entry.act, id, body, keys })
    }

    /// Tries until it is taken or given up; returns its number.
    async fn deliver(&self, message: Arc<Message>) -> u64 {
        let Webhook { name, give_up_after, .. } = &self.settings;
        let mut failures = 0_u32;
        loop {
            let outcome = self.attempt(&message).await;
            let (counted, why) = match &outcome {
                Outcome::Taken => ("taken", None),
                Outcome::Refused(status, _) => ("refused", Some(status.to_string())),
                Outcome::Unreached(error) => ("unreached", Some(error.to_string())),
            };
            self.count(counted);
            let was_failing = self.failing.swap(why.is_some(), Ordering::Relaxed);
            let Some(why) = why else {
                if was_failing {
                    info!(webhook = %name, "the webhook is taken again");
                }
                return message.seq;
            };
            if !was_failing {
                warn!(webhook = %name, seq = message.seq, %why, "the webhook is not taken");
            }
            let tried_ms = unix_ms().saturating_sub(message.at_ms.max(self.started_ms));
            if u128::from(tried_ms) >= give_up_after.as_millis() {
                self.count("given_up");
                let (seq, act) = (message.seq, message.act);
                error!(webhook = %name, seq, ?act, %why, "a message is given up");
                return seq;
            }
            let pause = self.pause(&outcome, failures);
            failures = failures.saturating_add(1);
            sleep(pause).await;
        }
    }

    async fn attempt(&self, message: &Message) -> Outcome {
        let timestamp = (unix_ms() / 1_000).to_string();
        let signature =
            signature::header(&self.settings.keys, &message.id, &timestamp, &message.body);
        let headers = [
            ("content-type", "application/json"),
            ("webhook-id", message.id.as_str()),
            ("webhook-timestamp", timestamp.as_str()),
            ("webhook-signature", signature.as_str()),
        ];
        let request = Request {
            method: Method::POST,
            target: None,
            headers: &headers,
            body: message.body.clone(),
            timeout: self.settings.timeout,
            answer_bytes_max: WEBHOOK_ANSWER_BYTES_MAX,
        };
        match self.client.send(&request).await {
            Ok(answer) if answer.status.is_success() => Outcome::Taken,
            Ok(answer) => {
                let named = answer.headers.get("retry-after").and_then(|value| value.to_str().ok());
                let seconds = named.and_then(|text| text.trim().parse().ok());
                let asked_for = matches!(answer.status.as_u16(), 429 | 503);
                let wait = seconds.filter(|_| asked_for).map(Duration::from_secs);
                Outcome::Refused(answer.status, wait)
            }
            Err(error) => Outcome::Unreached(error),
        }
    }

    /// Time until the next attempt: between half and all of what doubles with each failure, so that
    /// several that failed together do not come back together.
    fn pause(&self, outcome: &Outcome, failures: u32) -> Duration {
        let Webhook { retry, retry_max, .. } = &self.settings;
        let doubled = retry.saturating_mul(2_u32.saturating_pow(failures)).min(*retry_max);
        let (grown, least) = match outcome {
            Outcome::Refused(status, wait) if !in_a_moment(*status) => {
                (*retry_max, wait.unwrap_or_default())
            }
            Outcome::Refused(_, Some(wait)) => (doubled, *wait),
            _ => (doubled, Duration::ZERO),
        };
        let share = 0.5 + (random_u64() >> 11) as f64 / (1_u64 << 54) as f64;
        grown.mul_f64(share).max(least.min(*retry_max))
    }

    fn count(&self, outcome: &str) {
        self.metrics.webhook_deliveries.with_label_values(&[&self.settings.name, outcome]).inc();
    }

    async fn measure(&self, window: &Window) {
        let Ok(head) = read(&self.store, Store::audit_head).await else { return };
        let label = [&*self.settings.name];
        let lag = gauge(head.seq.saturating_sub(window.cursor()));
        self.metrics.webhook_lag.with_label_values(&label).set(lag);
        let oldest = window.oldest_ms().map_or(0, |at_ms| unix_ms().saturating_sub(at_ms) / 1_000);
        self.metrics.webhook_oldest.with_label_values(&label).set(gauge(oldest));
    }
}

fn clock() -> Interval {
    let mut clock = interval(WEBHOOK_LOOK_INTERVAL);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    clock
}

/// Waits until the service is told to end, or nobody is left to tell.
async fn ended(mut shutdown: ShutdownWatch) {
    let _ = shutdown.wait_for(|down| *down).await;
}

/// Whether a refusal may be another answer in a moment.
fn in_a_moment(status: StatusCode) -> bool {
    !status.is_client_error() || matches!(status.as_u16(), 408 | 425 | 429)
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Asks the store where waiting holds up nobody.
async fn read<T: Send + 'static>(
    store: &Arc<Store>,
    ask: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let store = store.clone();
    let asked = tokio::task::spawn_blocking(move || ask(&store)).await;
    asked.unwrap_or_else(|error| Err(StoreError::Database(error.to_string())))
}

/// What of an entry orders its message among others: hashes of its account, its cluster and the
/// accounts that it tells of. Entries about none of these are in order among themselves.
fn keys(entry: &Entry) -> BTreeSet<u64> {
    let hash = |kind: &str, name: &str| {
        let mut hasher = DefaultHasher::new();
        (kind, name).hash(&mut hasher);
        hasher.finish()
    };
    let mut keys: BTreeSet<u64> = ["members", "left_out", "owners"]
        .iter()
        .filter_map(|key| entry.detail.get(key)?.as_array())
        .flatten()
        // An account alone, or with why.
        .filter_map(|element| element.as_str().or_else(|| element.get(0)?.as_str()))
        .map(|account| hash("account", account))
        .collect();
    keys.extend(entry.account.iter().map(|account| hash("account", account.as_str())));
    keys.extend(entry.cluster.iter().map(|cluster| hash("cluster", cluster)));
    let told_cluster = entry.detail.get("cluster").and_then(Value::as_str);
    keys.extend(told_cluster.map(|cluster| hash("cluster", cluster)));
    if keys.is_empty() {
        keys.insert(hash("", ""));
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use detectors::AccountId;
    use parking_lot::Mutex;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::audit::{Actor, Draft};

    /// What a receiver does with a message.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Reply {
        Status(u16),
        /// Closes the connection.
        Close,
        /// Never answers.
        Hang,
    }

    /// An attempt as a receiver saw it.
    #[derive(Clone, Debug)]
    struct Seen {
        seq: u64,
        id: String,
        accepted: bool,
    }

    struct Receiver {
        url: Url,
        seen: Arc<Mutex<Vec<Seen>>>,
    }

    impl Receiver {
        /// `reply` is asked with the number of the attempt and of the message.
        async fn start(reply: impl Fn(usize, u64) -> Reply + Send + Sync + 'static) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/hook", listener.local_addr().unwrap()).parse().unwrap();
            let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
            let (kept, reply) = (seen.clone(), Arc::new(reply));
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let (kept, reply) = (kept.clone(), reply.clone());
                    tokio::spawn(async move {
                        let Some((id, body)) = message(&mut stream).await else { return };
                        let seq = body["data"]["seq"].as_u64().unwrap();
                        let reply = {
                            let mut kept = kept.lock();
                            let reply = reply(kept.len(), seq);
                            let accepted =
                                matches!(reply, Reply::Status(status) if status / 100 == 2);
                            kept.push(Seen { seq, id, accepted });
                            reply
                        };
                        match reply {
                            Reply::Status(status) => {
                                let answer =
                                    format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
                                let _ = stream.write_all(answer.as_bytes()).await;
                            }
                            Reply::Close => {}
                            Reply::Hang => sleep(Duration::from_secs(60)).await,
                        }
                    });
                }
            });
            Self { url, seen }
        }

        fn seen(&self) -> Vec<Seen> {
            self.seen.lock().clone()
        }

        fn accepted(&self) -> Vec<u64> {
            self.seen().iter().filter(|seen| seen.accepted).map(|seen| seen.seq).collect()
        }
    }

    /// A message's id and body, as soon as it is there whole.
    async fn message(stream: &mut tokio::net::TcpStream) -> Option<(String, Value)> {
        let mut bytes = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n")
                && let Ok(body) = serde_json::from_str(body)
            {
                let head = head.to_ascii_lowercase();
                let id = head.lines().find_map(|line| line.strip_prefix("webhook-id: "))?;
                return Some((id.to_owned(), body));
            }
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        }
    }

    fn settings(url: &Url) -> Webhook {
        Webhook {
            name: "siem".into(),
            url: url.clone(),
            trust: Trust::default(),
            events: DEFAULT_EVENTS.to_vec(),
            keys: SigningKey::parse_all(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap(),
            timeout: Duration::from_millis(300),
            retry: Duration::from_millis(2),
            retry_max: Duration::from_millis(20),
            give_up_after: Duration::from_secs(3_600),
        }
    }

    struct Running {
        task: JoinHandle<()>,
        stop: watch::Sender<bool>,
        metrics: Arc<Metrics>,
    }

    impl Running {
        fn start(settings: Webhook, store: &Arc<Store>) -> Self {
            let metrics = Arc::new(Metrics::new().unwrap());
            let webhooks = Webhooks::new(&[settings], store, &metrics).unwrap();
            let (stop, shutdown) = watch::channel(false);
            let task = tokio::spawn(async move { webhooks.follow(shutdown).await });
            Self { task, stop, metrics }
        }

        async fn stop(self) {
            self.stop.send(true).unwrap();
            self.task.await.unwrap();
        }

        fn counted(&self, outcome: &str) -> u64 {
            self.metrics.webhook_deliveries.with_label_values(&["siem", outcome]).get()
        }
    }

    fn tier_change(account: usize) -> Draft {
        Draft::new(Actor::Policy("p".into()), Act::TierChanged)
            .account(&AccountId::new(format!("acct-{account}")))
            .detail(json!({ "tier": "high" }))
    }

    async fn tell(store: &Store, entry: Draft) -> u64 {
        let done = store.commit(Batch::told(Vec::new(), entry)).durable().await.unwrap();
        done.audit[0].seq
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        for _ in 0..3_000 {
            if condition() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("no {what}");
    }

    /// A cursor was stored: what is told from now on is told to the webhook.
    async fn begun(store: &Store) {
        until("beginning", || store.get(Table::Cursor, "webhook siem").unwrap().is_some()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_receiver_that_fails_at_random_gets_each_accounts_messages_in_order() {
        // A third is taken; the rest is refused, cut off or left hanging.
        let receiver = Receiver::start(|attempt, seq| {
            let mut hasher = DefaultHasher::new();
            (attempt, seq).hash(&mut hasher);
            match hasher.finish() % 12 {
                0..=3 => Reply::Status(204),
                4..=6 => Reply::Status(500),
                7 | 8 => Reply::Status(403),
                9 | 10 => Reply::Close,
                _ => Reply::Hang,
            }
        })
        .await;
        let store = Store::in_memory("a").unwrap();
        tell(&store, tier_change(0)).await;
        let running = Running::start(settings(&receiver.url), &store);
        begun(&store).await;
        let mut wanted = Vec::new();
        let mut accounts: HashMap<u64, Vec<usize>> = HashMap::new();
        for n in 0..120 {
            if n % 10 == 3 {
                tell(&store, Draft::new(Actor::System, Act::PolicyChanged)).await;
            }
            let seq = if n % 20 == 7 {
                let detail =
                    json!({ "members": ["acct-1", "acct-2"], "left_out": [["acct-3", "x"]] });
                let seq = tell(
                    &store,
                    Draft::new(Actor::System, Act::TakenDown).cluster("c").detail(detail),
                );
                let seq = seq.await;
                accounts.insert(seq, vec![1, 2, 3]);
                seq
            } else {
                let seq = tell(&store, tier_change(n % 5)).await;
                accounts.insert(seq, vec![n % 5]);
                seq
            };
            wanted.push(seq);
        }
        until("delivery", || receiver.accepted().len() >= wanted.len()).await;
        running.stop().await;
        let mut taken = receiver.accepted();
        taken.sort_unstable();
        assert_eq!(taken, wanted, "each once, the first of all not, as it was there before");
        // Of one account no message is even tried before the one before it was taken.
        for account in 0..5 {
            let mut last = 0;
            let mut open: Option<u64> = None;
            for seen in receiver.seen() {
                if !accounts[&seen.seq].contains(&account) {
                    continue;
                }
                assert!(seen.seq > last, "{} after {last}", seen.seq);
                assert!(open.is_none_or(|open| open == seen.seq), "{open:?} was overtaken");
                open = (!seen.accepted).then_some(seen.seq);
                last = if seen.accepted { seen.seq } else { last };
            }
        }
        let ids: HashMap<String, u64> =
            receiver.seen().into_iter().map(|seen| (seen.id, seen.seq)).collect();
        assert_eq!(ids.len(), wanted.len(), "an id for each message, at every attempt the same");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_restart_in_the_middle_loses_nothing() {
        let receiver = Receiver::start(|attempt, _| match attempt % 3 {
            0 => Reply::Status(500),
            _ => Reply::Status(200),
        })
        .await;
        let store = Store::in_memory("a").unwrap();
        let running = Running::start(settings(&receiver.url), &store);
        begun(&store).await;
        let mut wanted = BTreeSet::new();
        for n in 0..400 {
            wanted.insert(tell(&store, tier_change(n % 50)).await);
        }
        until("half of them", || receiver.accepted().len() > 150).await;
        // As kill -9: the cursor is not stored.
        running.task.abort();
        assert!(running.task.await.unwrap_err().is_cancelled());
        for n in 0..50 {
            wanted.insert(tell(&store, tier_change(n)).await);
        }
        let second = Running::start(settings(&receiver.url), &store);
        let all = || receiver.accepted().into_iter().collect::<BTreeSet<u64>>();
        until("all of them", || all() == wanted).await;
        let done = receiver.seen().len();
        second.stop().await;
        // What was taken is not sent again, as an orderly end stores the cursor.
        let third = Running::start(settings(&receiver.url), &store);
        let last = tell(&store, tier_change(0)).await;
        until("the last", || receiver.accepted().contains(&last)).await;
        third.stop().await;
        assert!(receiver.seen()[done..].iter().all(|seen| seen.seq == last));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_message_is_given_up_in_the_end_and_what_follows_goes_on() {
        let receiver =
            Receiver::start(|_, seq| Reply::Status(if seq == 1 { 410 } else { 200 })).await;
        let store = Store::in_memory("a").unwrap();
        let give_up_after = Duration::from_millis(400);
        let hook = Webhook { give_up_after, ..settings(&receiver.url) };
        let running = Running::start(hook, &store);
        begun(&store).await;
        tell(&store, tier_change(1)).await;
        tell(&store, tier_change(1)).await;
        tell(&store, tier_change(2)).await;
        until("the other account", || receiver.accepted() == [3]).await;
        until("the same account", || receiver.accepted() == [3, 2]).await;
        assert_eq!(running.counted("given_up"), 1);
        assert_eq!(running.counted("taken"), 2);
        assert!(running.counted("refused") > 1, "it was tried again before");
        let lag = || running.metrics.webhook_lag.with_label_values(&["siem"]).get();
        until("a cursor at the end", || lag() == 0).await;
        until("the audit's number", || running.metrics.audit_entries.get() == 3).await;
        running.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dead_address_makes_a_lag_and_no_queue() {
        let receiver = Receiver::start(|_, _| Reply::Close).await;
        let store = Store::in_memory("a").unwrap();
        let hook = Webhook { retry: Duration::from_secs(60), ..settings(&receiver.url) };
        let hook = Webhook { retry_max: hook.retry, ..hook };
        let running = Running::start(hook, &store);
        begun(&store).await;
        let count = WEBHOOK_WINDOW_MAX + 3 * AUDIT_PAGE;
        let mut batch = Batch::default();
        batch.audit.extend((0..count).map(|n| {
            let mut draft = tier_change(n);
            draft.at_ms -= 50_000;
            draft
        }));
        store.commit(batch).durable().await.unwrap();
        let metrics = running.metrics.clone();
        let gauge = |gauges: &prometheus::IntGaugeVec| gauges.with_label_values(&["siem"]).get();
        until("a lag", || u64::try_from(gauge(&metrics.webhook_lag)) == Ok(count as u64)).await;
        until("an age", || gauge(&metrics.webhook_oldest) >= 50).await;
        assert_eq!(receiver.seen().len(), WEBHOOK_IN_FLIGHT_MAX);
        assert_eq!(running.counted("unreached"), WEBHOOK_IN_FLIGHT_MAX as u64);
        running.stop().await;
    }

    #[test]
    fn pauses_grow_to_the_longest_and_keep_what_the_receiver_names() {
        let store = Store::in_memory("a").unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let settings = Webhook {
            retry: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            ..settings(&"http://127.0.0.1:1/".parse().unwrap())
        };
        let webhooks = Webhooks::new(&[settings], &store, &metrics).unwrap();
        let pause = |status: u16, wait: Option<u64>, failures| {
            let status = StatusCode::from_u16(status).unwrap();
            let outcome = Outcome::Refused(status, wait.map(Duration::from_secs));
            webhooks.hooks[0].pause(&outcome, failures).as_secs_f64()
        };
        for _ in 0..100 {
            for (status, wait, failures, expected) in [
                (500, None, 0, 0.5..=1.0),
                (302, None, 3, 4.0..=8.0),
                (503, None, 100, 30.0..=60.0),
                (404, None, 0, 30.0..=60.0),
                (410, None, 0, 30.0..=60.0),
                (429, None, 0, 0.5..=1.0),
                (429, Some(20), 0, 20.0..=20.0),
                (503, Some(100_000), 0, 60.0..=60.0),
            ] {
                let pause = pause(status, wait, failures);
                assert!(expected.contains(&pause), "{status} {wait:?} {failures}: {pause}");
            }
        }
    }
}
