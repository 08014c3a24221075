//! The audit: looked through, exported, and followed as a stream of events.
//!
//! Every entry is an event. A stream carries the number of each as its id, so that whoever was cut
//! off goes on where they were; what a slow reader misses is read from the store again.
//!
//! Source: WHATWG HTML, section 9.2 ("Server-sent events").

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::stream;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::answer::{Answer, Refused};
use super::body::{Params, account, cluster};
use super::connection::Connection;
use super::schema::{AuditQuery, LimitQuery};
use super::{AdminState, LIST_DEFAULT, blocking, schema};
use crate::audit::{Act, Chained, Query};
use crate::limits::{ADMIN_AUDIT_CHUNK, ADMIN_AUDIT_SCAN_MAX, ADMIN_HEARTBEAT, ADMIN_LIST_MAX};
use crate::store::{Committed, Store, StoreError};

/// Largest number that a JSON reader takes exactly.
const NUMBER_MAX: u64 = (1 << 53) - 1;
/// Time after which a stream's reader should come again, milliseconds.
const RETRY_MS: u64 = 1_000;

/// Audit entries.
#[derive(Serialize, ToSchema)]
pub(super) struct Page {
    entries: Vec<Linked>,
    /// Ask for those after it.
    next_after: u64,
    /// Whether that is all there is now. An answer may have few entries, or none, and still not be
    /// all: it looks through so many at a time.
    complete: bool,
}

/// An entry with its link of the chain: SHA-256 over the link before it and the SHA-256 of the entry's
/// exact text, both in hex digits.
#[derive(Serialize, ToSchema)]
pub(super) struct Linked {
    /// 64 hex digits.
    hash: String,
    #[schema(value_type = schema::Entry)]
    entry: Box<RawValue>,
}

/// Which entries are wanted.
#[derive(Clone, Debug, Default)]
struct Filter {
    account: Option<String>,
    cluster: Option<String>,
    act: Option<Act>,
    since_ms: Option<u64>,
    until_ms: Option<u64>,
}

/// What of an entry is looked at.
#[derive(Deserialize)]
struct Facts {
    at_ms: u64,
    act: Act,
    account: Option<String>,
    cluster: Option<String>,
}

impl Filter {
    fn read(asked: &mut Params) -> Result<Self, Refused> {
        Ok(Self {
            account: match asked.text("account")? {
                Some(given) => Some(account(&given)?.as_str().to_owned()),
                None => None,
            },
            cluster: asked.text("cluster")?.map(|given| cluster(&given)).transpose()?,
            act: asked.choice("act", "an act of the audit, such as override_set")?,
            since_ms: asked.number("since_ms", 0..=NUMBER_MAX)?,
            until_ms: asked.number("until_ms", 0..=NUMBER_MAX)?,
        })
    }

    fn wants(&self, entry: &Chained) -> bool {
        let anything = self.account.is_none()
            && self.cluster.is_none()
            && self.act.is_none()
            && self.since_ms.is_none()
            && self.until_ms.is_none();
        if anything {
            return true;
        }
        // What cannot be read was not written by us; it is shown rather than left out.
        let Ok(facts) = serde_json::from_str::<Facts>(&entry.text) else { return true };
        let is =
            |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        is(&self.account, &facts.account)
            && is(&self.cluster, &facts.cluster)
            && self.act.is_none_or(|act| act == facts.act)
            && self.since_ms.is_none_or(|since| since <= facts.at_ms)
            && self.until_ms.is_none_or(|until| facts.at_ms < until)
    }
}

/// Audit entries, the oldest first.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(LimitQuery, AuditQuery),
    responses((status = 200, body = Page)), security(("token" = ["viewer"])))]
pub(super) async fn query(State(state): State<AdminState>, mut asked: Params) -> Answer<Page> {
    let limit = asked.limit(LIST_DEFAULT, ADMIN_LIST_MAX)?;
    let mut after = asked.number("after", 0..=NUMBER_MAX)?.unwrap_or(0);
    let filter = Filter::read(&mut asked)?;
    asked.finish()?;
    let page = blocking(move || -> Result<Page, StoreError> {
        let store = state.enforcer.store();
        let (mut entries, mut looked_through) = (Vec::new(), 0);
        loop {
            let chunk = chunk(store, after)?;
            let last = chunk.len() < ADMIN_AUDIT_CHUNK;
            looked_through += chunk.len();
            for entry in chunk {
                after = entry.seq;
                if !filter.wants(&entry) {
                    continue;
                }
                let Chained { hash, text, .. } = entry;
                let entry = RawValue::from_string(text);
                let entry = entry.map_err(|_| StoreError::Database("an audit entry".to_owned()))?;
                entries.push(Linked { hash, entry });
                if entries.len() == limit {
                    return Ok(Page { entries, next_after: after, complete: false });
                }
            }
            if last || looked_through >= ADMIN_AUDIT_SCAN_MAX {
                return Ok(Page { entries, next_after: after, complete: last });
            }
        }
    });
    Ok(Json(page.await??))
}

/// Every audit entry as a line `{"hash": …, "entry": …}`, the entry with its exact text.
///
/// With the links, `stillgate audit verify` can check it. Entries that are written meanwhile are not
/// waited for.
#[utoipa::path(get, path = "/v1/audit/export", tag = "audit", params(AuditQuery),
    responses((status = 200, body = Linked, content_type = "application/x-ndjson",
        description = "An entry a line.")),
    security(("token" = ["viewer"])))]
pub(super) async fn export(
    State(state): State<AdminState>,
    connection: Option<Extension<Connection>>,
    mut asked: Params,
) -> Result<Response, Refused> {
    let after = asked.number("after", 0..=NUMBER_MAX)?.unwrap_or(0);
    let filter = Filter::read(&mut asked)?;
    asked.finish()?;
    let place = state.stream()?;
    let store = state.enforcer.store().clone();
    let begun = Export { store, after, filter, connection, _place: place };
    let lines = stream::try_unfold(begun, async |mut export| {
        if let Some(Extension(connection)) = &export.connection {
            connection.moved();
        }
        let (store, after) = (export.store.clone(), export.after);
        let chunk = blocking(move || chunk(&store, after)).await;
        // The answer has begun: all that is left is to break it off, so that its end is missed.
        let chunk = chunk.ok().and_then(Result::ok);
        let chunk = chunk.ok_or_else(|| std::io::Error::other("the store cannot be read"))?;
        let Some(last) = chunk.last() else { return Ok(None) };
        export.after = last.seq;
        let wanted = chunk.iter().filter(|entry| export.filter.wants(entry));
        let lines: String = wanted
            .map(|entry| format!("{{\"hash\":\"{}\",\"entry\":{}}}\n", entry.hash, entry.text))
            .collect();
        Ok::<_, std::io::Error>(Some((Bytes::from(lines), export)))
    });
    let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((content_type, Body::from_stream(lines)).into_response())
}

struct Export {
    store: Arc<Store>,
    after: u64,
    filter: Filter,
    connection: Option<Extension<Connection>>,
    _place: OwnedSemaphorePermit,
}

/// Audit entries as they are written, as server-sent events.
///
/// An event's id is the entry's number, its type the act, its data the entry. It begins after
/// `Last-Event-ID` or `after`; without either, with what is written from now on. A comment every 15
/// seconds is a sign of life.
#[utoipa::path(get, path = "/v1/events", tag = "audit",
    params(
        ("Last-Event-ID" = Option<u64>, Header, description = "The id of the last event that was read; goes before `after`."),
        AuditQuery
    ),
    responses((status = 200, body = String, content_type = "text/event-stream",
        description = "Events without an end."),
        (status = 409, body = super::answer::ErrorBody, description = "The audit ends before that event.")),
    security(("token" = ["viewer"])))]
pub(super) async fn events(
    State(state): State<AdminState>,
    connection: Option<Extension<Connection>>,
    headers: HeaderMap,
    mut asked: Params,
) -> Result<Response, Refused> {
    let after = asked.number("after", 0..=NUMBER_MAX)?;
    let filter = Filter::read(&mut asked)?;
    asked.finish()?;
    let after = match headers.get("last-event-id") {
        None => after,
        Some(last) => {
            let digits = last.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            let last = digits.and_then(|text| text.parse().ok());
            Some(last.ok_or_else(|| Refused::bad("Last-Event-ID must be an event's id"))?)
        }
    };
    let place = state.stream()?;
    let store = state.enforcer.store().clone();
    // Listened to before it is read: nothing is written in between unseen.
    let feed = store.subscribe();
    let newest = store.clone();
    let newest = blocking(move || newest.audit_head()).await??.seq;
    let after = after.unwrap_or(newest);
    if after > newest {
        return Err(Refused::conflict(
            "the audit ends before that event: begin again without Last-Event-ID",
        ));
    }
    let followed =
        Followed { store, feed, after, filter, connection, greeted: false, _place: place };
    let events = stream::unfold(followed, async |mut followed| {
        let piece = followed.next().await?;
        Some((Ok::<_, Infallible>(piece), followed))
    });
    let content_type = [(header::CONTENT_TYPE, "text/event-stream")];
    Ok((content_type, Body::from_stream(events)).into_response())
}

struct Followed {
    store: Arc<Store>,
    /// Only wakes: what is told is read from the store, so that nothing is missed for a lag.
    feed: Receiver<Arc<Committed>>,
    after: u64,
    filter: Filter,
    connection: Option<Extension<Connection>>,
    greeted: bool,
    _place: OwnedSemaphorePermit,
}

impl Followed {
    /// The next piece of the stream; `None` when the process is to end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(Extension(connection)) = &self.connection {
            connection.moved();
        }
        if !std::mem::replace(&mut self.greeted, true) {
            return Some(format!("retry: {RETRY_MS}\n\n").into());
        }
        loop {
            let (store, after) = (self.store.clone(), self.after);
            let chunk = blocking(move || chunk(&store, after)).await.ok()?.ok()?;
            if let Some(last) = chunk.last() {
                self.after = last.seq;
                let events: String =
                    chunk.iter().filter(|entry| self.filter.wants(entry)).map(event).collect();
                if !events.is_empty() {
                    return Some(events.into());
                }
                continue;
            }
            let feed = &mut self.feed;
            let woken = async {
                // Whatever it says: what was written is read from the store.
                let woken = feed.recv();
                let Some(Extension(connection)) = &mut self.connection else {
                    let _ = woken.await;
                    return true;
                };
                tokio::select! {
                    _ = woken => true,
                    () = connection.ended() => false,
                }
            };
            match timeout(ADMIN_HEARTBEAT, woken).await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(_) => return Some(Bytes::from_static(b":\n\n")),
            }
        }
    }
}

fn event(entry: &Chained) -> String {
    let facts = serde_json::from_str::<Facts>(&entry.text);
    let act = facts.ok().and_then(|facts| serde_json::to_value(facts.act).ok());
    let act = act.as_ref().and_then(serde_json::Value::as_str).unwrap_or("message");
    format!("id: {}\nevent: {act}\ndata: {}\n\n", entry.seq, entry.text)
}

fn chunk(store: &Store, after: u64) -> Result<Vec<Chained>, StoreError> {
    store.audit(&Query { after, limit: ADMIN_AUDIT_CHUNK })
}
