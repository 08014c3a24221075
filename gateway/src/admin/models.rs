//! When models were released: campaigns pivot to a new one within a day.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::Caller;
use super::answer::{Answer, Refused};
use super::body::{Named, Params, Sent, read, said, whole};
use super::schema::{ModelPath, WhyQuery};
use super::{AdminState, blocking};
use crate::limits::{ADMIN_MODELS_MAX, OUTSIDE_CHARS_MAX};
use crate::store::{Register, StoreError, Table};

/// Latest time that a release may have: the year 9999.
const RELEASED_MS_MAX: u64 = 253_402_300_799_999;

/// When a model was released.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SetModel {
    /// When, unix milliseconds.
    #[serde(deserialize_with = "whole")]
    #[schema(minimum = 0, maximum = 253_402_300_799_999_u64)]
    released_ms: u64,
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

impl Sent for SetModel {
    const SHAPE: &'static str = "an object with released_ms, reason, and if wanted operator";
}

/// Models whose release is known.
#[derive(Serialize, ToSchema)]
pub(super) struct Models {
    models: Vec<Model>,
}

/// A model.
#[derive(Serialize, ToSchema)]
pub(super) struct Model {
    /// Its name in requests.
    model: String,
    /// When it was released, unix milliseconds; null where that was removed.
    #[schema(required = true)]
    released_ms: Option<u64>,
}

/// Every model whose release is known.
#[utoipa::path(get, path = "/v1/models", tag = "models", responses((status = 200, body = Models)),
    security(("token" = ["viewer"])))]
pub(super) async fn list(State(state): State<AdminState>, asked: Params) -> Answer<Models> {
    asked.finish()?;
    Ok(Json(Models { models: blocking(move || known(&state)).await?? }))
}

/// A model's release.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "models", params(ModelPath),
    responses((status = 200, body = Model), (status = 404, body = super::answer::ErrorBody)),
    security(("token" = ["viewer"])))]
pub(super) async fn show(
    State(state): State<AdminState>,
    Named(name): Named,
    asked: Params,
) -> Answer<Model> {
    asked.finish()?;
    let model = named(&name)?;
    find(state, model).await?.map(Json).ok_or_else(unknown)
}

/// Tells when a model was released.
#[utoipa::path(put, path = "/v1/models/{model}", tag = "models", params(ModelPath),
    request_body = SetModel, responses((status = 200, body = Model), (status = 409, body = super::answer::ErrorBody)),
    security(("token" = ["operator"])))]
pub(super) async fn set(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    Named(name): Named,
    asked: Params,
    body: Body,
) -> Answer<Model> {
    asked.finish()?;
    let model = named(&name)?;
    let told: SetModel = read(body).await?;
    let said = said(&caller, &told.reason, told.operator.as_deref())?;
    if told.released_ms > RELEASED_MS_MAX {
        return Err(Refused::bad(format!("released_ms may be {RELEASED_MS_MAX} at most")));
    }
    let (asks, wanted) = (state.clone(), model.clone());
    let known = blocking(move || known(&asks)).await??;
    if known.len() >= ADMIN_MODELS_MAX && known.iter().all(|other| other.model != wanted) {
        let message = format!("{ADMIN_MODELS_MAX} models are known; remove one first");
        return Err(Refused::conflict(message));
    }
    state.enforcer.tell_release(&model, Some(told.released_ms), &said).durable().await?;
    Ok(Json(Model { model, released_ms: Some(told.released_ms) }))
}

/// Removes a model's release: it is not heeded any more.
#[utoipa::path(delete, path = "/v1/models/{model}", tag = "models", params(ModelPath, WhyQuery),
    responses((status = 200, body = Model), (status = 404, body = super::answer::ErrorBody)),
    security(("token" = ["operator"])))]
pub(super) async fn remove(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    Named(name): Named,
    asked: Params,
) -> Answer<Model> {
    let model = named(&name)?;
    let said = asked.said(&caller)?;
    let found = find(state.clone(), model.clone()).await?;
    found.ok_or_else(unknown)?;
    state.enforcer.tell_release(&model, None, &said).durable().await?;
    Ok(Json(Model { model, released_ms: None }))
}

fn named(given: &str) -> Result<String, Refused> {
    let plain = given.bytes().all(|byte| byte.is_ascii_graphic());
    if given.is_empty() || given.len() > OUTSIDE_CHARS_MAX || !plain {
        return Err(Refused::bad("that is not a model's name"));
    }
    Ok(given.to_owned())
}

fn unknown() -> Refused {
    Refused::not_found("no release of that model is known")
}

async fn find(state: AdminState, model: String) -> Result<Option<Model>, Refused> {
    let found = blocking(move || state.enforcer.store().get(Table::Release, &model));
    Ok(found.await??.as_ref().and_then(model_of))
}

fn known(state: &AdminState) -> Result<Vec<Model>, StoreError> {
    let registers = state.enforcer.store().scan(Table::Release)?;
    Ok(registers.iter().filter_map(model_of).collect())
}

fn model_of(register: &Register) -> Option<Model> {
    let released_ms = serde_json::from_str(register.value.as_deref()?).ok()?;
    Some(Model { model: register.key.clone(), released_ms: Some(released_ms) })
}
