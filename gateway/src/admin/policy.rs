//! The policy: shown, checked, read again, rolled back.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::{Extension, Json};
use detectors::policy::Policy;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::Caller;
use super::answer::{Answer, Fault, Refused};
use super::body::{self, Params, Sent, read, said};
use super::{AdminState, Why, blocking, schema};
use crate::limits::{ADMIN_FAULTS_MAX, ADMIN_TEXT_BYTES_MAX};
use crate::policy::VersionReport;

/// The policy in force.
#[derive(Serialize, ToSchema)]
pub(super) struct Shown {
    /// Its version: the beginning of its text's SHA-256.
    #[schema(value_type = String)]
    version: Arc<str>,
    /// The last good versions, the newest first.
    #[schema(value_type = Vec<VersionSchema>)]
    versions: Vec<VersionReport>,
    /// All of its settings.
    #[schema(value_type = Object)]
    policy: Arc<Policy>,
}

/// One version of the policy.
#[derive(ToSchema)]
#[schema(as = PolicyVersion)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct VersionSchema {
    version: String,
    /// When it came into force, unix milliseconds.
    since_ms: u64,
    in_force: bool,
}

/// What is wrong with a policy.
#[derive(Serialize, ToSchema)]
pub(super) struct Checked {
    /// Whether it could come into force.
    valid: bool,
    /// Everything that is wrong, up to 100, by line.
    faults: Vec<Fault>,
}

/// What came of a reload.
#[derive(Serialize, ToSchema)]
pub(super) struct Reloaded {
    /// The version in force.
    #[schema(value_type = String)]
    version: Arc<str>,
    /// Whether it is another than before.
    changed: bool,
}

/// Which version is to come back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RollBack {
    /// The one before where it is left out.
    #[schema(pattern = "^[0-9a-f]{16}$")]
    version: Option<String>,
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

impl Sent for RollBack {
    const SHAPE: &'static str = "an object with reason, and if wanted version and operator";
}

/// The policy in force, and the versions that it can be rolled back to.
#[utoipa::path(get, path = "/v1/policy", tag = "policy", responses((status = 200, body = Shown)),
    security(("token" = ["viewer"])))]
pub(super) async fn show(State(state): State<AdminState>, asked: Params) -> Answer<Shown> {
    asked.finish()?;
    let policies = &state.enforcer.policies;
    let in_force = policies.in_force();
    Ok(Json(Shown {
        version: in_force.version.clone(),
        versions: policies.versions(),
        policy: in_force.policy.clone(),
    }))
}

/// Checks a policy's text; nothing changes.
#[utoipa::path(post, path = "/v1/policy/validate", tag = "policy",
    request_body(content = schema::PolicyText, content_type = "text/plain", description = "The policy, TOML."),
    responses((status = 200, body = Checked)), security(("token" = ["viewer"])))]
pub(super) async fn validate(asked: Params, body: Body) -> Answer<Checked> {
    asked.finish()?;
    let bytes = body::bytes(body, ADMIN_TEXT_BYTES_MAX).await?;
    if bytes.is_empty() {
        return Err(Refused::bad("the body is empty: it takes the text of a policy"));
    }
    let text = String::from_utf8(bytes.into());
    let text = text.map_err(|_| Refused::bad("the text is not UTF-8"))?;
    let checked = blocking(move || Policy::parse(&text)).await?;
    let mut faults: Vec<Fault> = match checked {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(|fault| fault_of(fault)).collect(),
    };
    faults.sort_by_key(|fault| fault.line);
    let valid = faults.is_empty();
    faults.truncate(ADMIN_FAULTS_MAX);
    Ok(Json(Checked { valid, faults }))
}

/// A fault is told as `LINE: what`.
fn fault_of(fault: &str) -> Fault {
    let (line, message) = fault.split_once(": ").unwrap_or(("1", fault));
    Fault { line: line.parse().unwrap_or(1), message: message.to_owned() }
}

/// Reads the policy's file again.
#[utoipa::path(post, path = "/v1/policy/reload", tag = "policy", request_body = Why,
    responses((status = 200, body = Reloaded), (status = 409, body = super::answer::ErrorBody)),
    security(("token" = ["admin"])))]
pub(super) async fn reload(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    asked: Params,
    body: Body,
) -> Answer<Reloaded> {
    asked.finish()?;
    let said = read::<Why>(body).await?.said(&caller)?;
    let enforcer = state.enforcer.clone();
    // It reads a file.
    let read = blocking(move || enforcer.reload_policy(Some(&said))).await?;
    let changed = match read {
        Ok(Some((_, change))) => {
            change.durable().await.map_err(|error| Refused::in_force_unrecorded(&error))?;
            true
        }
        Ok(None) => false,
        // They are the operator's own file's faults, with its lines.
        Err(faults) => return Err(Refused::conflict(faults)),
    };
    let version = state.enforcer.policies.in_force().version.clone();
    Ok(Json(Reloaded { version, changed }))
}

/// Brings an earlier version into force again, until the file changes.
#[utoipa::path(post, path = "/v1/policy/rollback", tag = "policy", request_body = RollBack,
    responses((status = 200, body = Reloaded), (status = 409, body = super::answer::ErrorBody)),
    security(("token" = ["admin"])))]
pub(super) async fn roll_back(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    asked: Params,
    body: Body,
) -> Answer<Reloaded> {
    asked.finish()?;
    let wanted: RollBack = read(body).await?;
    let said = said(&caller, &wanted.reason, wanted.operator.as_deref())?;
    // A version is named as a cluster is.
    if wanted.version.as_deref().is_some_and(|version| body::cluster(version).is_err()) {
        return Err(Refused::bad("a version has 16 hex digits, in lower case"));
    }
    let back = state.enforcer.roll_back_policy(wanted.version.as_deref(), &said);
    let (version, change) =
        back.map_err(|_| Refused::conflict("no such earlier policy is kept"))?;
    change.durable().await.map_err(|error| Refused::in_force_unrecorded(&error))?;
    Ok(Json(Reloaded { version: version.version.clone(), changed: true }))
}
