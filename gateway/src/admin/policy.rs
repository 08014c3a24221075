//! The policy: shown, read again, rolled back.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::body::{durable, read};
use super::{AdminState, error};
use crate::audit::Said;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    version: Option<String>,
}

pub(super) async fn show(State(state): State<AdminState>) -> Response {
    let policies = &state.enforcer.policies;
    let in_force = policies.in_force();
    axum::Json(json!({
        "version": in_force.version,
        "versions": policies.versions(),
        "policy": &*in_force.policy,
    }))
    .into_response()
}

pub(super) async fn reload(State(state): State<AdminState>) -> Response {
    let enforcer = state.enforcer.clone();
    let said = Said::by_operator("admin", "asked for");
    // It reads a file.
    let read = tokio::task::spawn_blocking(move || enforcer.reload_policy(Some(&said))).await;
    let changed = match read {
        Ok(Ok(changed)) => changed,
        Ok(Err(faults)) => return error(StatusCode::CONFLICT, &faults),
        Err(_) => {
            return error(StatusCode::INTERNAL_SERVER_ERROR, "the reload did not finish");
        }
    };
    let has_changed = changed.is_some();
    if let Some((_, change)) = changed
        && let Err(response) = durable(change).await
    {
        return *response;
    }
    let version = state.enforcer.policies.in_force().version.clone();
    axum::Json(json!({ "version": version, "changed": has_changed })).into_response()
}

pub(super) async fn roll_back(State(state): State<AdminState>, body: Body) -> Response {
    let wanted: Wanted = match read(body, Some(Wanted::default())).await {
        Ok(wanted) => wanted,
        Err(response) => return *response,
    };
    let said = Said::by_operator("admin", "rolled back");
    let wanted = wanted.version.as_deref();
    let (version, change) = match state.enforcer.roll_back_policy(wanted, &said) {
        Ok(back) => back,
        Err(message) => return error(StatusCode::CONFLICT, &message),
    };
    match durable(change).await {
        Ok(()) => axum::Json(json!({ "version": version.version })).into_response(),
        Err(response) => *response,
    }
}
