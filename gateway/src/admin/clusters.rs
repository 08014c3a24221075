//! Clusters, taking them down, and who was served marked answers.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::body::{durable, read, reason};
use super::{AdminState, error};
use crate::audit::Said;
use crate::enforce::takedown::Takedown;
use crate::limits::ADMIN_EXCHANGES_MAX;
use crate::store::Pending;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Why {
    reason: String,
}

pub(super) async fn list(State(state): State<AdminState>) -> Response {
    let takedowns = state.enforcer.takedowns();
    let clusters = state.enforcer.clusters();
    let clusters = clusters.into_iter().take(ADMIN_EXCHANGES_MAX).map(|(cluster, members)| {
        let takedown = takedowns.iter().find(|held| held.cluster == cluster);
        json!({ "cluster": cluster, "members": members, "takedown": takedown.map(|t| t.status) })
    });
    axum::Json(json!({ "clusters": clusters.collect::<Vec<_>>() })).into_response()
}

pub(super) async fn show(State(state): State<AdminState>, Path(cluster): Path<String>) -> Response {
    let takedown = state.enforcer.takedowns().into_iter().find(|held| held.cluster == cluster);
    match takedown {
        Some(takedown) => axum::Json(takedown).into_response(),
        None => error(StatusCode::NOT_FOUND, "no takedown of that cluster"),
    }
}

pub(super) async fn take_down(
    State(state): State<AdminState>,
    Path(cluster): Path<String>,
    body: Body,
) -> Response {
    let why = match read::<Why>(body, None).await {
        Ok(why) => reason(&why.reason),
        Err(response) => Err(response),
    };
    let said = match why {
        Ok(why) => Said::by_operator("admin", why),
        Err(response) => return *response,
    };
    done(state.enforcer.confirm_takedown(&cluster, &said)).await
}

pub(super) async fn undo(State(state): State<AdminState>, Path(cluster): Path<String>) -> Response {
    let said = Said::by_operator("admin", "taken back");
    done(state.enforcer.undo_takedown(&cluster, &said)).await
}

async fn done(change: Result<(Takedown, Pending), String>) -> Response {
    let (takedown, change) = match change {
        Ok(change) => change,
        Err(message) => return error(StatusCode::NOT_FOUND, &message),
    };
    match durable(change).await {
        Ok(()) => axum::Json(takedown).into_response(),
        Err(response) => *response,
    }
}

/// One candidate a line, as `stillgate verify --candidates` takes them.
pub(super) async fn marks(State(state): State<AdminState>) -> Response {
    let lines = state.enforcer.marked().into_iter();
    let lines: String = lines
        .filter_map(|candidate| Some(serde_json::to_string(&candidate).ok()? + "\n"))
        .collect();
    ([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response()
}
