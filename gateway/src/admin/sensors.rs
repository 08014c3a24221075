//! DNS sensors: their reports, and how they are.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::HeaderName;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::access::Caller;
use super::answer::{Answer, Problem, Refused};
use super::body::{self, Params, bytes_max, too_large};
use super::connection::Connection;
use super::{AdminState, blocking, schema};
use crate::sensor::report::Malformed;
use crate::sensor::{SensorView, Way};

/// Where sensors report.
pub(super) const REPORTS: &str = "/v1/sensor/reports";
/// Names this process: a sensor that sees another one tells again what it knows.
const INSTANCE: HeaderName = HeaderName::from_static("stillgate-instance");

/// What was taken of a report.
#[derive(Serialize, ToSchema)]
pub(super) struct Taken {
    /// Entries; none of a report that was taken before.
    #[schema(maximum = 1_000)]
    taken: usize,
}

/// Sensors that have reported to this process.
#[derive(Serialize, ToSchema)]
pub(super) struct Sensors {
    sensors: Vec<SensorView>,
}

/// Takes a sensor's report, whole or not at all.
#[utoipa::path(post, path = "/v1/sensor/reports", tag = "sensors",
    request_body = schema::SensorReport,
    responses(
        (status = 200, body = Taken, headers(
            ("stillgate-instance" = String, description = "Names this process, 16 hex digits.")
        )),
        (status = 400, description = "It is not a report; nothing of it is taken.",
            body = Problem, content_type = "application/problem+json")),
    security(("token" = ["sensor"])))]
pub(super) async fn report(
    State(state): State<AdminState>,
    asked: Params,
    request: Request,
) -> Result<Response, Refused> {
    asked.finish()?;
    let token = request.extensions().get::<Arc<Caller>>().map(|caller| caller.name.clone());
    let connection = request.extensions().get::<Connection>().cloned();
    let address = connection.as_ref().and_then(|connection| connection.peer);
    // Nobody comes here without a token but over the socket.
    let way = token.map_or(Way::Socket, |token| Way::Token { address, token });
    let sensors = state.sensors.clone();
    let bytes = body::bytes(request.into_body(), bytes_max(REPORTS)).await;
    let bytes = bytes.inspect_err(|_| sensors.refused("oversize"))?;
    let taken = blocking(move || sensors.take(&bytes, way)).await?;
    let taken = taken.map_err(|malformed| match malformed {
        Malformed::Oversize => too_large(),
        // None of its texts repeats what was sent.
        malformed => Refused::bad(malformed.to_string()),
    })?;
    // A sensor that goes on reporting keeps its connection.
    if let Some(connection) = connection {
        connection.moved();
    }
    let instance = [(INSTANCE, state.sensors.instance().to_owned())];
    Ok((instance, Json(Taken { taken })).into_response())
}

/// Every sensor that has reported to this process, by its name.
#[utoipa::path(get, path = "/v1/sensors", tag = "sensors",
    responses((status = 200, body = Sensors)), security(("token" = ["viewer"])))]
pub(super) async fn list(State(state): State<AdminState>, asked: Params) -> Answer<Sensors> {
    asked.finish()?;
    Ok(Json(Sensors { sensors: state.sensors.list() }))
}
