//! The review queue: looked at, taken, decided.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::{Extension, Json};
use detectors::tier::Tier;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::Caller;
use super::accounts::word;
use super::answer::{Answer, Refused};
use super::body::{Named, Params, Sent, account, maybe_whole, read, said};
use super::schema::{AccountPath, LimitQuery};
use super::{AdminState, LIST_DEFAULT, Why, schema};
use crate::enforce::after::Taken;
use crate::enforce::review::Entry;
use crate::limits::ADMIN_LIST_MAX;

/// The queue.
#[derive(Serialize, ToSchema)]
pub(super) struct Reviews {
    /// Accounts in it.
    total: usize,
    /// Those with the highest suspicion first.
    #[schema(value_type = Vec<schema::ReviewEntry>)]
    review: Vec<Entry>,
}

/// What somebody who has looked says.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Decision {
    /// There is nothing to it.
    Dismiss,
    /// It is what it looks like.
    Confirm,
}

/// A decision on an account.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Decide {
    decision: Decision,
    /// Where the tier is to be set as well.
    #[schema(value_type = Option<schema::Tier>)]
    tier: Option<Tier>,
    /// For how long the tier is set; until it is removed where it is left out.
    #[serde(default, deserialize_with = "maybe_whole")]
    #[schema(minimum = 1, maximum = 316_224_000)]
    ttl_seconds: Option<u64>,
    /// Why; the audit tells it.
    #[schema(
        min_length = 1,
        max_length = 500,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    reason: String,
    /// Who, beside the token's name.
    #[schema(
        min_length = 1,
        max_length = 64,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    operator: Option<String>,
}

impl Sent for Decide {
    const SHAPE: &'static str = "an object with decision (dismiss or confirm), reason, and if wanted \
                                 tier, ttl_seconds and operator";
}

/// Accounts that somebody should look at.
#[utoipa::path(get, path = "/v1/review", tag = "review", params(LimitQuery),
    responses((status = 200, body = Reviews)), security(("token" = ["viewer"])))]
pub(super) async fn list(State(state): State<AdminState>, mut asked: Params) -> Answer<Reviews> {
    let limit = asked.limit(LIST_DEFAULT, ADMIN_LIST_MAX)?;
    asked.finish()?;
    let reviews = &state.enforcer.reviews;
    Ok(Json(Reviews { total: reviews.len(), review: reviews.list(limit) }))
}

/// Takes an account to look at it, so that nobody else does.
///
/// What somebody else has taken can be taken an hour later.
#[utoipa::path(post, path = "/v1/review/{account}/take", tag = "review", params(AccountPath),
    request_body = Why,
    responses((status = 200, body = schema::ReviewEntry), (status = 404, body = super::answer::ErrorBody),
        (status = 409, body = super::answer::ErrorBody)),
    security(("token" = ["operator"])))]
pub(super) async fn take(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    Named(id): Named,
    asked: Params,
    body: Body,
) -> Answer<Entry> {
    asked.finish()?;
    let account = account(&id)?;
    let said = read::<Why>(body).await?.said(&caller)?;
    match state.enforcer.take_review(&account, &said) {
        Taken::Taken(entry, change) => {
            change.durable().await?;
            Ok(Json(*entry))
        }
        Taken::ByAnother => Err(Refused::conflict("somebody else has taken it to look at it")),
        Taken::Nothing => Err(not_there()),
    }
}

/// Decides on an account, which leaves the queue.
#[utoipa::path(post, path = "/v1/review/{account}/decision", tag = "review", params(AccountPath),
    request_body = Decide,
    responses((status = 200, body = schema::ReviewEntry), (status = 404, body = super::answer::ErrorBody)),
    security(("token" = ["operator"])))]
pub(super) async fn decide(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    Named(id): Named,
    asked: Params,
    body: Body,
) -> Answer<Entry> {
    asked.finish()?;
    let account = account(&id)?;
    let told: Decide = read(body).await?;
    let said = said(&caller, &told.reason, told.operator.as_deref())?;
    let word = match (told.tier, told.ttl_seconds) {
        (Some(tier), seconds) => Some(word(tier, seconds, &said.reason, &said.actor)?),
        (None, _) => None,
    };
    if state.enforcer.reviews.get(&account).is_none() {
        return Err(not_there());
    }
    // The tier first: an account that has left the queue has been decided on.
    if let Some(word) = &word {
        let change = state.enforcer.override_tier(&account, Some(word), &said);
        change.map_err(Refused::no_room)?.durable().await?;
    }
    let decision = match told.decision {
        Decision::Dismiss => "dismiss",
        Decision::Confirm => "confirm",
    };
    let decided = state.enforcer.decide_review(&account, decision, &said);
    let (entry, change) = decided.ok_or_else(not_there)?;
    change.durable().await?;
    Ok(Json(entry))
}

fn not_there() -> Refused {
    Refused::not_found("the account is not in the queue")
}
