//! Accounts: what is known of one, an operator's word on it, the review queue.

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use detectors::tier::Tier;
use serde::Deserialize;
use serde_json::json;

use super::body::{account, bad, durable, read, reason};
use super::{AdminState, error, exchange_limit};
use crate::audit::Said;
use crate::enforce::standing::Override;
use crate::limits::ADMIN_OVERRIDE_SECONDS_MAX;
use crate::policy::unix_ms;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetOverride {
    tier: Tier,
    reason: String,
    ttl_seconds: Option<u64>,
}

pub(super) async fn show(State(state): State<AdminState>, Path(id): Path<String>) -> Response {
    let account = match account(&id) {
        Ok(account) => account,
        Err(response) => return *response,
    };
    match state.enforcer.explain(&account) {
        Some(explanation) => axum::Json(explanation).into_response(),
        None => error(StatusCode::NOT_FOUND, "no such account has been seen"),
    }
}

pub(super) async fn set_override(
    State(state): State<AdminState>,
    Path(id): Path<String>,
    body: Body,
) -> Response {
    let (account, word) = match override_of(&id, body).await {
        Ok(set) => set,
        Err(response) => return *response,
    };
    let said = Said::by_operator(&word.by, &word.reason);
    let change = match state.enforcer.override_tier(&account, Some(&word), &said) {
        Ok(change) => change,
        Err(full) => return error(StatusCode::INSUFFICIENT_STORAGE, &full),
    };
    match durable(change).await {
        Ok(()) => axum::Json(json!({ "account": account, "override": word })).into_response(),
        Err(response) => *response,
    }
}

async fn override_of(
    id: &str,
    body: Body,
) -> Result<(detectors::AccountId, Override), Box<Response>> {
    let account = account(id)?;
    let set: SetOverride = read(body, None).await?;
    let reason = reason(&set.reason)?;
    let seconds = set.ttl_seconds;
    if seconds.is_some_and(|seconds| !(1..=ADMIN_OVERRIDE_SECONDS_MAX).contains(&seconds)) {
        return Err(bad(&format!("ttl_seconds must be 1 to {ADMIN_OVERRIDE_SECONDS_MAX}")));
    }
    let since_ms = unix_ms();
    let until_ms = seconds.map(|seconds| since_ms.saturating_add(seconds.saturating_mul(1_000)));
    Ok((account, Override { tier: set.tier, reason, by: "admin".to_owned(), since_ms, until_ms }))
}

pub(super) async fn remove_override(
    State(state): State<AdminState>,
    Path(id): Path<String>,
) -> Response {
    let account = match account(&id) {
        Ok(account) => account,
        Err(response) => return *response,
    };
    if state.enforcer.standing(&account).read(|standing| standing.overridden.is_none()) {
        return error(StatusCode::NOT_FOUND, "the account has no override");
    }
    let said = Said::by_operator("admin", "removed");
    let change = match state.enforcer.override_tier(&account, None, &said) {
        Ok(change) => change,
        Err(full) => return error(StatusCode::INSUFFICIENT_STORAGE, &full),
    };
    match durable(change).await {
        Ok(()) => axum::Json(json!({ "account": account, "override": null })).into_response(),
        Err(response) => *response,
    }
}

pub(super) async fn reviews(
    State(state): State<AdminState>,
    RawQuery(query): RawQuery,
) -> Response {
    match exchange_limit(query.as_deref().unwrap_or_default()) {
        Ok(limit) => {
            let reviews = &state.enforcer.reviews;
            axum::Json(json!({ "total": reviews.len(), "review": reviews.list(limit) }))
                .into_response()
        }
        Err(message) => error(StatusCode::BAD_REQUEST, &message),
    }
}

pub(super) async fn reviewed(State(state): State<AdminState>, Path(id): Path<String>) -> Response {
    let account = match account(&id) {
        Ok(account) => account,
        Err(response) => return *response,
    };
    let said = Said::by_operator("admin", "looked at");
    let Some((entry, change)) = state.enforcer.decide_review(&account, "dismissed", &said) else {
        return error(StatusCode::NOT_FOUND, "the account is not in the queue");
    };
    match durable(change).await {
        Ok(()) => axum::Json(entry).into_response(),
        Err(response) => *response,
    }
}
