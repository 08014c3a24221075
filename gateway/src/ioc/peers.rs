//! Telling peers, and asking them.
//!
//! What is told is whatever the bundles are after the last one that a peer took, in order; that
//! place is a cursor in the store. So nothing is queued: a peer that was down for a day gets
//! what holds when it is back, and what was taken back in the meantime it never hears of but as
//! revoked. A bundle that a peer had from elsewhere (from another gateway of the fleet, or because
//! it pulled) is as good as delivered.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{Cursor, Exchange, Refused, Sealed};
use crate::audit::{Act, Actor, Draft};
use crate::config::{Peer, Secret};
use crate::limits::{
    IOC_BACK_OFF, IOC_ENVELOPE_BYTES_MAX, IOC_EXPORT_BUNDLES_MAX, IOC_EXPORT_BYTES_MAX,
    IOC_PEER_TIMEOUT,
};
use crate::outgoing::{Answer, Outgoing, OutgoingError, Request};
use crate::store::{Batch, Store, StoreError, Table, Write};

/// Pause between two looks whether there is something to tell, when nothing changed: bundles are
/// issued anew as time goes by.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Tells and asks every peer until the process ends.
pub async fn run(exchange: Arc<Exchange>, mut stop: watch::Receiver<bool>) {
    let Some(config) = exchange.config().cloned() else { return };
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..config.peers.len() {
        for pushes in [true, false] {
            let (exchange, config) = (exchange.clone(), config.clone());
            tasks.spawn(async move {
                let Some(peer) = config.peers.get(index) else { return };
                match Link::new(&exchange, peer) {
                    Ok(Some(link)) if pushes && peer.push => link.push().await,
                    Ok(Some(link)) if !pushes => link.pull(peer.pull).await,
                    Ok(_) => {}
                    Err(error) => warn!(peer = &*peer.name, %error, "the peer cannot be reached"),
                }
            });
        }
    }
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = async { while tasks.join_next().await.is_some() {} } => {}
    }
}

/// One peer at its address.
struct Link<'p> {
    exchange: &'p Exchange,
    peer: &'p Peer,
    outgoing: Outgoing,
    authorization: String,
}

/// What a peer gives on `GET /v1/iocs/export`.
#[derive(Deserialize)]
struct Exported<'a> {
    #[serde(borrow)]
    bundles: Vec<&'a RawValue>,
    next: Option<String>,
}

/// Why asking a peer came to nothing.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Outgoing(#[from] OutgoingError),
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("its answer is no list of bundles")]
    Malformed,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<'p> Link<'p> {
    fn new(exchange: &'p Exchange, peer: &'p Peer) -> Result<Option<Self>, OutgoingError> {
        let Some(url) = &peer.url else { return Ok(None) };
        let outgoing = Outgoing::new(url.clone(), &peer.trust)?;
        let token = peer.token.as_ref().map_or("", Secret::expose);
        Ok(Some(Self { exchange, peer, outgoing, authorization: format!("Bearer {token}") }))
    }

    fn name(&self) -> &str {
        &self.peer.name
    }

    async fn push(&self) {
        let mut changes = self.exchange.changes();
        let mut back_off = BackOff::default();
        loop {
            changes.mark_unchanged();
            match self.push_all().await {
                Ok(()) => {
                    back_off = BackOff::default();
                    let _ = timeout(LOOK_EVERY, changes.changed()).await;
                }
                Err(error) => {
                    let sent = &self.exchange.metrics.ioc_bundles_sent;
                    sent.with_label_values(&[self.name(), "failed"]).inc();
                    let pause = back_off.next();
                    warn!(peer = self.name(), %error, ?pause, "a peer was not told; it will be");
                    sleep(pause).await;
                }
            }
        }
    }

    async fn push_all(&self) -> Result<(), LinkError> {
        let name = format!("ioc push {}", self.name());
        let mut cursor = self.cursor(&name).await?;
        loop {
            let sealed = self.exchange.export(cursor.as_ref());
            if sealed.is_empty() {
                return Ok(());
            }
            for Sealed { cursor: at, values, envelope } in sealed {
                let answer = self
                    .ask(Method::POST, "/v1/iocs/import", Bytes::from(envelope), 64 * 1024)
                    .await?;
                let outcome = match answer.status {
                    status if status.is_success() => "delivered",
                    // It has it.
                    StatusCode::CONFLICT => "delivered",
                    // It will not take it, however often it is told.
                    StatusCode::BAD_REQUEST
                    | StatusCode::PAYLOAD_TOO_LARGE
                    | StatusCode::UNPROCESSABLE_ENTITY => {
                        warn!(peer = self.name(), status = %answer.status, "a bundle was refused");
                        "refused"
                    }
                    status => return Err(LinkError::Status(status)),
                };
                let sent = &self.exchange.metrics.ioc_bundles_sent;
                sent.with_label_values(&[self.name(), outcome]).inc();
                let entry = Draft::new(Actor::System, Act::IndicatorsExported).detail(json!({
                    "peer": self.name(), "bundle": at.id, "values": values, "outcome": outcome,
                }));
                let write = Write::put(Table::Cursor, name.clone(), &at);
                self.exchange.store.commit(Batch::told(vec![write], entry)).durable().await?;
                info!(peer = self.name(), bundle = at.id, values, outcome, "a peer was told");
                cursor = Some(at);
            }
        }
    }

    async fn pull(&self, interval: Option<Duration>) {
        let Some(interval) = interval else { return };
        let mut back_off = BackOff::default();
        loop {
            let pause = match self.pull_all().await {
                Ok(()) => {
                    back_off = BackOff::default();
                    // Not in step with everybody else who was started at the same time.
                    interval.mul_f64(0.9 + 0.2 * chance())
                }
                Err(error) => {
                    let failed = &self.exchange.metrics.ioc_pulls_failed;
                    failed.with_label_values(&[self.name()]).inc();
                    let pause = back_off.next();
                    warn!(peer = self.name(), %error, ?pause, "a peer could not be asked");
                    pause
                }
            };
            sleep(pause).await;
        }
    }

    async fn pull_all(&self) -> Result<(), LinkError> {
        let name = format!("ioc pull {}", self.name());
        let mut cursor = self.cursor(&name).await?;
        // A peer whose list never ends is asked again later.
        for _ in 0..IOC_EXPORT_BUNDLES_MAX {
            let after = cursor.as_ref().map(|at| format!("?after={at}")).unwrap_or_default();
            let target = format!("/v1/iocs/export{after}");
            let most = IOC_EXPORT_BYTES_MAX + IOC_ENVELOPE_BYTES_MAX + 64 * 1024;
            let answer = self.ask(Method::GET, &target, Bytes::new(), most).await?;
            if answer.status != StatusCode::OK {
                return Err(LinkError::Status(answer.status));
            }
            let exported: Exported<'_> =
                serde_json::from_slice(&answer.body).map_err(|_| LinkError::Malformed)?;
            if exported.bundles.len() > IOC_EXPORT_BUNDLES_MAX {
                return Err(LinkError::Malformed);
            }
            for envelope in exported.bundles {
                // What else is refused is in the audit, and asking again would not change it.
                if let Err(Refused::Store(error)) =
                    self.exchange.import(envelope.get().as_bytes(), "pull").await
                {
                    return Err(error.into());
                }
            }
            let Some(next) = exported.next else { return Ok(()) };
            let next: Cursor = next.parse().map_err(|()| LinkError::Malformed)?;
            if cursor.as_ref().is_some_and(|at| next <= *at) {
                return Err(LinkError::Malformed);
            }
            let writes = vec![Write::put(Table::Cursor, name.clone(), &next)];
            let batch = Batch { writes, audit: Vec::new() };
            self.exchange.store.commit(batch).durable().await?;
            cursor = Some(next);
        }
        Ok(())
    }

    async fn ask(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
        answer_bytes_max: usize,
    ) -> Result<Answer, OutgoingError> {
        let headers =
            [("authorization", &*self.authorization), ("content-type", "application/json")];
        self.outgoing
            .send(&Request {
                method,
                target: Some(target),
                headers: &headers,
                body,
                timeout: IOC_PEER_TIMEOUT,
                answer_bytes_max,
            })
            .await
    }

    async fn cursor(&self, name: &str) -> Result<Option<Cursor>, StoreError> {
        let (store, name): (Arc<Store>, _) = (self.exchange.store.clone(), name.to_owned());
        let read = tokio::task::spawn_blocking(move || store.get(Table::Cursor, &name)).await;
        let register = read.map_err(|error| StoreError::Database(error.to_string()))??;
        let value = register.and_then(|register| register.value);
        Ok(value.and_then(|value| serde_json::from_str(&value).ok()))
    }
}

/// Pauses that double, each shortened by chance so that those who failed together do not come back
/// together.
#[derive(Default)]
struct BackOff(u32);

impl BackOff {
    fn next(&mut self) -> Duration {
        let (least, most) = IOC_BACK_OFF;
        let pause = least.saturating_mul(1 << self.0.min(16)).min(most);
        self.0 = self.0.saturating_add(1);
        pause.mul_f64(0.5 + 0.5 * chance())
    }
}

/// 0 to 1, below it.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness everybody waits for the longest time.
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / 4_294_967_296.0,
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let mut back_off = BackOff::default();
        for round in 0..20 {
            let whole = IOC_BACK_OFF.0.saturating_mul(1 << round).min(IOC_BACK_OFF.1);
            let pause = back_off.next();
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
        }
    }
}
