//! Indicators of compromise: what is held, peers' bundles in and out, STIX, revocation.
//!
//! A peer's bundle is believed by its signature; the token only lets it in. So whoever has a token
//! may hand one in, and peers have tokens of a role that can do nothing else.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::access::Caller;
use super::answer::{Answer, Refused};
use super::body::{self, Params, Sent, bytes_max, read, said};
use super::{AdminState, blocking, schema};
use crate::config::file::check_name;
use crate::ioc::bundle::Kind;
use crate::ioc::{Cursor, Exchange, Refused as RefusedBundle, RevokeError, Sealed, Taken, Wanted};
use crate::limits::{IOC_LIST_MAX, IOC_SKIPPED_SHOWN};

/// Indicators in a part of the list where the request does not say.
const LIST_DEFAULT: usize = 100;
/// Longest value, source or place in the list.
const TEXT_CHARS_MAX: usize = 512;

/// Bundles in their envelopes, in order of issue.
#[derive(Serialize, ToSchema)]
pub(super) struct Exported {
    #[schema(value_type = Vec<schema::IocEnvelope>)]
    bundles: Vec<Box<RawValue>>,
    /// To be asked after next time; null where there was nothing.
    #[schema(required = true)]
    next: Option<String>,
}

/// What came of STIX.
#[derive(Serialize, ToSchema)]
pub(super) struct TakenStix {
    #[serde(flatten)]
    #[schema(value_type = schema::IocTaken)]
    taken: Taken,
    /// Objects that were not understood or not believed, up to 100.
    objects: Vec<SkippedObject>,
}

/// An object that was left out.
#[derive(Serialize, ToSchema)]
pub(super) struct SkippedObject {
    id: String,
    why: String,
}

/// Which indicator does not hold, and why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Revoke {
    /// As it is listed.
    #[schema(min_length = 1, max_length = 512)]
    source: String,
    #[schema(value_type = schema::IocKind)]
    kind: Kind,
    /// As it is listed.
    #[schema(min_length = 1, max_length = 512)]
    value: String,
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

impl Sent for Revoke {
    const SHAPE: &'static str =
        "an object with source, kind, value, reason, and if wanted operator";
}

/// The indicator that does not hold any more.
#[derive(Serialize, ToSchema)]
pub(super) struct Revoked {
    source: String,
    #[schema(value_type = schema::IocKind)]
    kind: Kind,
    value: String,
}

fn exchange(state: &AdminState) -> Result<Arc<Exchange>, Refused> {
    let indicators = state.enforcer.indicators().cloned();
    indicators.ok_or_else(|| Refused::busy("indicators are not there yet"))
}

/// Indicators that are held, by source, kind and value.
#[utoipa::path(get, path = "/v1/iocs", tag = "iocs", params(schema::IocQuery),
    responses((status = 200, body = schema::IocPage)), security(("token" = ["viewer"])))]
pub(super) async fn list(
    State(state): State<AdminState>,
    mut asked: Params,
) -> Result<Response, Refused> {
    let mut text = |name| {
        let given: Option<String> = asked.text(name)?;
        match given {
            Some(given) if given.len() > TEXT_CHARS_MAX => {
                Err(Refused::bad(format!("{name} is longer than {TEXT_CHARS_MAX} characters")))
            }
            given => Ok(given),
        }
    };
    let (source, after) = (text("source")?.unwrap_or_default(), text("after")?);
    let kind = asked.choice::<Kind>("kind", "one of the kinds of indicators")?;
    let limit = asked.limit(LIST_DEFAULT, IOC_LIST_MAX)?;
    asked.finish()?;
    let exchange = exchange(&state)?;
    let page = blocking(move || exchange.list(&Wanted { source, kind, after, limit })).await?;
    Ok(Json(page).into_response())
}

/// What this provider tells: signed bundles, or all of it as STIX 2.1.
#[utoipa::path(get, path = "/v1/iocs/export", tag = "iocs", params(schema::IocExportQuery),
    responses((status = 200, content((Exported = "application/json"), (Object = "application/stix+json")))),
    security(("token" = ["peer"])))]
pub(super) async fn export(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    mut asked: Params,
) -> Result<Response, Refused> {
    let stix = match asked.text("format")?.as_deref() {
        None | Some("native") => false,
        Some("stix") => true,
        Some(_) => return Err(Refused::bad("format must be native or stix")),
    };
    let after = match asked.text("after")? {
        None => None,
        Some(given) => Some(given.parse::<Cursor>().map_err(|()| {
            Refused::bad("after must be what next was, a number, a dash and hex digits")
        })?),
    };
    asked.finish()?;
    let exchange = exchange(&state)?;
    let to = caller.name.clone();
    if stix {
        let bundle = blocking(move || {
            let bundle = exchange.export_stix(after.as_ref());
            exchange.exported(&to, "stix", bundle["objects"].as_array().map_or(0, Vec::len));
            bundle.to_string()
        });
        let content_type = [(header::CONTENT_TYPE, "application/stix+json;version=2.1")];
        return Ok((content_type, bundle.await?).into_response());
    }
    let sealed = blocking(move || {
        let sealed = exchange.export(after.as_ref());
        if !sealed.is_empty() {
            exchange.exported(&to, "native", sealed.len());
        }
        sealed
    });
    let sealed: Vec<Sealed> = sealed.await?;
    let next = sealed.last().map(|last| last.cursor.to_string());
    let bundles = sealed.into_iter().filter_map(|one| RawValue::from_string(one.envelope).ok());
    Ok(Json(Exported { bundles: bundles.collect(), next }).into_response())
}

/// Takes in a bundle that a peer has signed.
#[utoipa::path(post, path = "/v1/iocs/import", tag = "iocs",
    request_body(content = schema::IocEnvelope, description = "A DSSE envelope."),
    responses((status = 200, body = schema::IocTaken),
        (status = 403, description = "No configured peer has signed it so.", body = super::answer::ErrorBody),
        (status = 404, description = "No exchange of indicators is configured.", body = super::answer::ErrorBody),
        (status = 409, description = "It was taken in before.", body = super::answer::ErrorBody),
        (status = 422, description = "It is too old, from the future, or not sure enough.", body = super::answer::ErrorBody),
        (status = 507, description = "There is no room.", body = super::answer::ErrorBody)),
    security(("token" = ["peer"])))]
pub(super) async fn import(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    asked: Params,
    body: Body,
) -> Answer<Taken> {
    asked.finish()?;
    let bytes = body::bytes(body, bytes_max("/v1/iocs/import")).await?;
    let taken = exchange(&state)?.import(&bytes, &caller.name).await;
    taken.map(Json).map_err(refused)
}

/// Takes in STIX 2.1 on an operator's word, who vouches for it.
#[utoipa::path(post, path = "/v1/iocs/stix", tag = "iocs", params(schema::IocStixQuery),
    request_body(content = schema::StixBundle, description = "A STIX 2.1 bundle."),
    responses((status = 200, body = TakenStix)), security(("token" = ["operator"])))]
pub(super) async fn import_stix(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    mut asked: Params,
    body: Body,
) -> Answer<TakenStix> {
    let source = asked.text("source")?.unwrap_or_default();
    if check_name(&source).is_err() {
        return Err(Refused::bad("source must have 1 to 64 letters, digits, '-', '_' and '.'"));
    }
    let confidence = asked.number("confidence", 70..=100)?.unwrap_or(70) as f64 / 100.0;
    let said = asked.said(&caller)?;
    let bytes = body::bytes(body, bytes_max("/v1/iocs/stix")).await?;
    let exchange = exchange(&state)?;
    let taken = exchange.import_stix(&bytes, &source, confidence, said.actor, &said.reason).await;
    let (taken, skipped) = taken.map_err(refused)?;
    let objects = skipped.into_iter().take(IOC_SKIPPED_SHOWN);
    let objects = objects.map(|(id, why)| SkippedObject { id, why }).collect();
    Ok(Json(TakenStix { taken, objects }))
}

/// An operator's word that an indicator does not hold. Of this provider's own, peers are told.
#[utoipa::path(post, path = "/v1/iocs/revoke", tag = "iocs", request_body = Revoke,
    responses((status = 200, body = Revoked), (status = 404, body = super::answer::ErrorBody)),
    security(("token" = ["operator"])))]
pub(super) async fn revoke(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    asked: Params,
    body: Body,
) -> Answer<Revoked> {
    asked.finish()?;
    let Revoke { source, kind, value, reason, operator } = read::<Revoke>(body).await?;
    let said = said(&caller, &reason, operator.as_deref())?;
    let exchange = exchange(&state)?;
    match exchange.revoke(&source, kind, &value, said.actor, &said.reason).await {
        Ok(value) => Ok(Json(Revoked { source, kind, value })),
        Err(RevokeError::NotHeld) => {
            Err(Refused::not_found("no such indicator of that source holds"))
        }
        Err(RevokeError::Store(error)) => Err(error.into()),
    }
}

/// What a bundle's refusal is to whoever sent it.
fn refused(refused: RefusedBundle) -> Refused {
    use crate::ioc::sign::EnvelopeError;
    let status = match &refused {
        RefusedBundle::Store(_) => {
            let RefusedBundle::Store(error) = refused else { return Refused::busy("try again") };
            return error.into();
        }
        RefusedBundle::NotConfigured => StatusCode::NOT_FOUND,
        RefusedBundle::Envelope(EnvelopeError::Oversize) => StatusCode::PAYLOAD_TOO_LARGE,
        RefusedBundle::Envelope(EnvelopeError::Malformed) | RefusedBundle::Malformed(_) => {
            StatusCode::BAD_REQUEST
        }
        RefusedBundle::Envelope(EnvelopeError::UnknownKey | EnvelopeError::Signature)
        | RefusedBundle::Issuer => StatusCode::FORBIDDEN,
        RefusedBundle::Stale | RefusedBundle::Future | RefusedBundle::Confidence => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        RefusedBundle::Replay => StatusCode::CONFLICT,
        RefusedBundle::TooMany => StatusCode::TOO_MANY_REQUESTS,
    };
    // None of these texts repeats what was sent.
    Refused::new(status, refused.to_string())
}
