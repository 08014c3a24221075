//! The policy: shown, read again, rolled back.

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::body::read;
use super::{AdminState, error};

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
    // It reads a file.
    let read = tokio::task::spawn_blocking(move || enforcer.reload_policy(true)).await;
    match read {
        Ok(Ok(changed)) => {
            let version = state.enforcer.policies.in_force().version.clone();
            axum::Json(json!({ "version": version, "changed": changed.is_some() })).into_response()
        }
        Ok(Err(faults)) => error(StatusCode::CONFLICT, &faults),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the reload did not finish"),
    }
}

pub(super) async fn roll_back(State(state): State<AdminState>, body: Body) -> Response {
    let wanted: Wanted = match read(body, Some(Wanted::default())).await {
        Ok(wanted) => wanted,
        Err(response) => return *response,
    };
    match state.enforcer.roll_back_policy(wanted.version.as_deref()) {
        Ok(version) => axum::Json(json!({ "version": version.version })).into_response(),
        Err(message) => error(StatusCode::CONFLICT, &message),
    }
}
