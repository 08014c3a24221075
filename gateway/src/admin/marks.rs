//! Who was served marked answers, and whose marks a text carries.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use detectors::watermark::Report;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::{Answer, Refused};
use super::body::{self, Params, Sent, parse};
use super::{AdminState, blocking, schema};
use crate::limits::{ADMIN_CANDIDATES_MAX, ADMIN_TEXT_BYTES_MAX};

/// Rows of a table of the report.
const ROWS_MAX: usize = 100;

/// A text that came from somewhere. It is looked at, and neither kept nor logged.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Verify {
    /// The text.
    #[schema(min_length = 1, max_length = 1_048_576)]
    text: String,
    /// What led to it, where that is known: what stands there does not count.
    #[schema(max_length = 1_048_576)]
    prompt: Option<String>,
}

impl Sent for Verify {
    const SHAPE: &'static str = "an object with text, and if wanted prompt";
}

/// Whose marks a text carries.
#[derive(Serialize, ToSchema)]
pub(super) struct Verified {
    /// The strongest finding.
    #[schema(value_type = schema::Verdict)]
    verdict: detectors::watermark::Verdict,
    /// Candidates that were tested: the accounts that were served marked answers last.
    candidates: usize,
    /// Candidates that were not, for want of time: `stillgate verify` tests all.
    candidates_left_out: usize,
    /// Layer A, zero-width frames.
    #[schema(value_type = Vec<schema::AccountFrames>)]
    zero_width: Vec<detectors::watermark::AccountFrames>,
    /// Layer B, choice of wording: up to 100 subjects, the least likely by chance first.
    #[schema(value_type = Vec<schema::SubjectVotes>)]
    lexical: Vec<detectors::watermark::SubjectVotes>,
    /// Layer C, canaries: up to 100 subjects.
    #[schema(value_type = Vec<schema::SubjectCanaries>)]
    canaries: Vec<detectors::watermark::SubjectCanaries>,
    /// Places where a choice of wording stood, different with their context.
    tuples: usize,
    /// p-values of keys that nobody has, in ten equal buckets from 0 to 1: even ones mean that
    /// p-values can be trusted.
    #[schema(value_type = Vec<u32>)]
    wrong_keys: [u32; 10],
}

/// Everybody who was served marked answers, one a line, as `stillgate verify --candidates` takes
/// them.
#[utoipa::path(get, path = "/v1/marks", tag = "marks",
    responses((status = 200, body = schema::Candidate, content_type = "application/x-ndjson",
        description = "A candidate a line.")),
    security(("token" = ["viewer"])))]
pub(super) async fn list(
    State(state): State<AdminState>,
    asked: Params,
) -> Result<Response, Refused> {
    asked.finish()?;
    let lines = blocking(move || {
        let lines = state.enforcer.marked().into_iter();
        lines
            .filter_map(|candidate| Some(serde_json::to_string(&candidate).ok()? + "\n"))
            .collect::<String>()
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], lines.await?).into_response())
}

/// Tells to which accounts a text was served, and how sure that is.
#[utoipa::path(post, path = "/v1/marks/verify", tag = "marks", request_body = Verify,
    responses((status = 200, body = Verified)), security(("token" = ["viewer"])))]
pub(super) async fn verify(
    State(state): State<AdminState>,
    asked: Params,
    body: Body,
) -> Answer<Verified> {
    asked.finish()?;
    let bytes = body::bytes(body, body::bytes_max("/v1/marks/verify")).await?;
    let sent: Verify = parse(&bytes).map_err(Refused::bad)?;
    let fits = |text: &str| text.len() as u64 <= ADMIN_TEXT_BYTES_MAX;
    if sent.text.is_empty() || !fits(&sent.text) || !sent.prompt.as_deref().is_none_or(fits) {
        return Err(Refused::bad(format!(
            "text and prompt may have {ADMIN_TEXT_BYTES_MAX} bytes, and text at least one"
        )));
    }
    let Ok(place) = state.verifying.clone().try_acquire_owned() else {
        state.metrics.admin_refused.with_label_values(&["busy"]).inc();
        return Err(Refused::busy("another text is being looked at, try again"));
    };
    let verified = blocking(move || {
        let _place = place;
        let prompt = sent.prompt.as_deref();
        state.enforcer.verify(&sent.text, prompt, ADMIN_CANDIDATES_MAX)
    });
    let (report, left_out) = verified.await?;
    let Report { verdict, candidates, zero_width, lexical, canaries, tuples, wrong_keys, .. } =
        report;
    let mut verified = Verified {
        verdict,
        candidates,
        candidates_left_out: left_out,
        zero_width,
        lexical,
        canaries,
        tuples,
        wrong_keys,
    };
    verified.zero_width.truncate(ROWS_MAX);
    verified.lexical.truncate(ROWS_MAX);
    verified.canaries.truncate(ROWS_MAX);
    Ok(Json(verified))
}
