//! Answers: JSON, and one shape of error for all of them.
//!
//! The texts of errors are constant: what was sent is never repeated, since whoever reads a log of
//! answers may not be whom it was meant for.

use std::borrow::Cow;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::limits::ADMIN_FAULTS_MAX;
use crate::store::StoreError;

/// An answer, or why there is none.
pub(super) type Answer<T> = Result<axum::Json<T>, Refused>;

/// Why a request is not answered as it wishes.
#[derive(Debug)]
pub(super) struct Refused(Box<Told>);

#[derive(Debug)]
struct Told {
    status: StatusCode,
    body: ErrorBody,
    header: Option<(HeaderName, HeaderValue)>,
}

/// An error.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    error: ErrorDetail,
}

/// A problem detail (RFC 9457), which programs of this project read.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// The status in words.
    title: &'static str,
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong. Never repeats what was sent.
    detail: Cow<'static, str>,
}

/// Why a request was refused, beside its response.
#[derive(Clone)]
struct Why(Cow<'static, str>);

/// A refusal in the form of a problem detail.
pub(super) fn as_problem(response: Response) -> Response {
    let Some(Why(detail)) = response.extensions().get().cloned() else { return response };
    let (mut parts, _) = response.into_parts();
    let title = parts.status.canonical_reason().unwrap_or_default();
    let problem = Problem { title, status: parts.status.as_u16(), detail };
    parts.headers.remove(header::CONTENT_LENGTH);
    let content_type = HeaderValue::from_static("application/problem+json");
    parts.headers.insert(header::CONTENT_TYPE, content_type);
    let (_, body) = axum::Json(problem).into_response().into_parts();
    Response::from_parts(parts, body)
}

/// What is wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorDetail {
    /// In words. Never repeats what was sent.
    message: Cow<'static, str>,
    /// Each thing that is wrong, where there are several, up to 100.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    faults: Vec<Fault>,
}

/// One thing that is wrong with what was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Fault {
    /// Line, from 1.
    #[schema(minimum = 1)]
    pub(super) line: u64,
    /// What is wrong.
    pub(super) message: String,
}

impl Refused {
    pub(super) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        let error = ErrorDetail { message: message.into(), faults: Vec::new() };
        Self(Box::new(Told { status, body: ErrorBody { error }, header: None }))
    }

    pub(super) fn bad(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(super) fn conflict(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    pub(super) fn busy(message: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// A policy is in force, but that is not on record: it comes into force before it is written.
    pub(super) fn in_force_unrecorded(error: &StoreError) -> Self {
        let status = match error {
            StoreError::Full => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        tracing::error!(%error, "admin: a policy is in force and the audit does not tell");
        Self::new(status, "the policy is in force, but the store could not put that on record")
    }

    /// There is no room for it.
    pub(super) fn no_room(message: String) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, message)
    }

    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.header = Some((name, value));
        self
    }

    pub(super) fn faults(mut self, mut faults: Vec<Fault>) -> Self {
        faults.truncate(ADMIN_FAULTS_MAX);
        self.0.body.error.faults = faults;
        self
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.0.status
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "the store's disk is full: this was not done; make room and try again",
            ),
            StoreError::Busy => {
                Self::busy("the store has more to write than it can: this was not done, try again")
            }
            other => {
                tracing::error!(error = %other, "admin: the store failed");
                Self::busy("the store cannot be used just now: this was not done; see the log")
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Told { status, body, header } = *self.0;
        let why = Why(body.error.message.clone());
        let mut response = (status, axum::Json(body)).into_response();
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        response.extensions_mut().insert(why);
        response
    }
}
