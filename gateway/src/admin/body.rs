//! What operators send: small JSON objects, read strictly.

use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use axum::response::Response;
use serde::de::DeserializeOwned;

use super::error;
use crate::limits::{ADMIN_BODY_BYTES_MAX, ADMIN_REASON_CHARS_MAX, OUTSIDE_CHARS_MAX};
use crate::store::{Pending, StoreError};

/// Reads a body as JSON; an empty one where `T` has a default is that default.
pub(super) async fn read<T: DeserializeOwned>(
    body: Body,
    empty: Option<T>,
) -> Result<T, Box<Response>> {
    let limit = usize::try_from(ADMIN_BODY_BYTES_MAX).unwrap_or(usize::MAX);
    let bytes = to_bytes(body, limit).await.map_err(|_| {
        Box::new(error(StatusCode::PAYLOAD_TOO_LARGE, "the request body is too large"))
    })?;
    if let (true, Some(empty)) = (bytes.is_empty(), empty) {
        return Ok(empty);
    }
    serde_json::from_slice(&bytes)
        .map_err(|fault| bad(&format!("the body is not the JSON that this path takes: {fault}")))
}

/// A reason is needed, and a short one.
pub(super) fn reason(given: &str) -> Result<String, Box<Response>> {
    let reason = given.trim();
    if reason.is_empty() || reason.chars().count() > ADMIN_REASON_CHARS_MAX {
        return Err(bad(&format!("reason must have 1 to {ADMIN_REASON_CHARS_MAX} characters")));
    }
    Ok(reason.to_owned())
}

/// An account's pseudonym, as it is written in a path.
pub(super) fn account(given: &str) -> Result<detectors::AccountId, Box<Response>> {
    let plain = given.bytes().all(|b| b.is_ascii_graphic());
    if given.is_empty() || given.len() > OUTSIDE_CHARS_MAX || !plain {
        return Err(bad("that is not an account's pseudonym"));
    }
    Ok(detectors::AccountId::new(given))
}

/// Waits until a change is durable.
pub(super) async fn durable(change: Pending) -> Result<(), Box<Response>> {
    match change.durable().await {
        Ok(_) => Ok(()),
        Err(full @ StoreError::Full) => {
            Err(Box::new(error(StatusCode::INSUFFICIENT_STORAGE, &full.to_string())))
        }
        Err(other) => Err(Box::new(error(StatusCode::SERVICE_UNAVAILABLE, &other.to_string()))),
    }
}

pub(super) fn bad(message: &str) -> Box<Response> {
    Box::new(error(StatusCode::BAD_REQUEST, message))
}
