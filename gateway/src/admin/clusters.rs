//! Clusters: who is in one and by what evidence, taken down and taken back.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::{Extension, Json};
use detectors::AccountId;
use detectors::engine::TieReport;
use detectors::tier::Tier;
use serde::Serialize;
use utoipa::ToSchema;

use super::access::Caller;
use super::answer::{Answer, Refused};
use super::body::{Named, Params, cluster, read};
use super::schema::{ClusterPath, LimitQuery, WhyQuery};
use super::{AdminState, Why, blocking, schema};
use crate::enforce::after::ClusterMember;
use crate::enforce::takedown::{Status, Takedown};
use crate::limits::{ADMIN_LIST_MAX, ADMIN_MEMBERS_MAX};

/// Clusters, the largest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Clusters {
    clusters: Vec<Listed>,
    /// How many there are.
    total: usize,
}

/// A cluster as it is listed.
#[derive(Serialize, ToSchema)]
#[schema(as = ListedCluster)]
pub(super) struct Listed {
    /// Its name, 16 hex digits.
    cluster: String,
    /// How many accounts it has.
    members: usize,
    /// Whether it was taken down: `waiting`, `active`, `undone` or `shadow`; null: never.
    #[schema(value_type = Option<String>, required = true)]
    takedown: Option<Status>,
}

/// A cluster with its members.
#[derive(Serialize, ToSchema)]
pub(super) struct Cluster {
    /// Its name, 16 hex digits.
    cluster: String,
    /// How many accounts it has.
    total: usize,
    /// Up to 200 of them, the most suspected first.
    members: Vec<Member>,
    /// The latest takedown of it.
    #[schema(value_type = Option<schema::Takedown>, required = true)]
    takedown: Option<Takedown>,
}

/// A member, and what ties it to the others.
#[derive(Serialize, ToSchema)]
pub(super) struct Member {
    #[schema(value_type = schema::AccountName)]
    account: AccountId,
    /// Tier by the last judgement.
    #[schema(value_type = schema::Tier)]
    tier: Tier,
    /// Suspicion at the last judgement, 0..1.
    suspicion: f64,
    /// Ties to other members, the strongest first.
    #[schema(value_type = Vec<schema::Tie>)]
    ties: Vec<TieReport>,
}

/// Every cluster.
#[utoipa::path(get, path = "/v1/clusters", tag = "clusters", params(LimitQuery),
    responses((status = 200, body = Clusters)), security(("token" = ["viewer"])))]
pub(super) async fn list(State(state): State<AdminState>, mut asked: Params) -> Answer<Clusters> {
    let limit = asked.limit(ADMIN_LIST_MAX, ADMIN_LIST_MAX)?;
    asked.finish()?;
    let listed = blocking(move || {
        let takedowns = state.enforcer.takedowns();
        let clusters = state.enforcer.clusters();
        let total = clusters.len();
        let clusters = clusters.into_iter().take(limit).map(|(cluster, members)| {
            let takedown = takedowns.iter().find(|held| held.cluster == cluster);
            Listed { cluster, members, takedown: takedown.map(|held| held.status) }
        });
        Clusters { clusters: clusters.collect(), total }
    });
    Ok(Json(listed.await?))
}

/// A cluster's members, with the evidence on each tie.
#[utoipa::path(get, path = "/v1/clusters/{cluster}", tag = "clusters", params(ClusterPath),
    responses((status = 200, body = Cluster), (status = 404, body = super::answer::ErrorBody)),
    security(("token" = ["viewer"])))]
pub(super) async fn show(
    State(state): State<AdminState>,
    Named(name): Named,
    asked: Params,
) -> Answer<Cluster> {
    asked.finish()?;
    let cluster = cluster(&name)?;
    let shown = blocking(move || {
        let takedown = takedown_of(&state, &cluster);
        let (members, total) = state.enforcer.cluster(&cluster, ADMIN_MEMBERS_MAX);
        let member = |ClusterMember { account, tier, suspicion, ties }| Member {
            account,
            tier,
            suspicion,
            ties,
        };
        let members: Vec<Member> = members.into_iter().map(member).collect();
        let known = takedown.is_some() || total > 0;
        known.then_some(Cluster { cluster, total, members, takedown })
    });
    shown.await?.map(Json).ok_or_else(|| Refused::not_found("no such cluster"))
}

/// The latest takedown of a cluster.
#[utoipa::path(get, path = "/v1/clusters/{cluster}/takedown", tag = "clusters", params(ClusterPath),
    responses((status = 200, body = schema::Takedown), (status = 404, body = super::answer::ErrorBody)),
    security(("token" = ["viewer"])))]
pub(super) async fn takedown(
    State(state): State<AdminState>,
    Named(name): Named,
    asked: Params,
) -> Answer<Takedown> {
    asked.finish()?;
    let cluster = cluster(&name)?;
    let found = takedown_of(&state, &cluster);
    found.map(Json).ok_or_else(|| Refused::not_found("no takedown of that cluster"))
}

/// Takes a cluster down now, past the guard rail of the largest cluster.
#[utoipa::path(post, path = "/v1/clusters/{cluster}/takedown", tag = "clusters", params(ClusterPath),
    request_body = Why,
    responses((status = 200, body = schema::Takedown), (status = 404, body = super::answer::ErrorBody)),
    security(("token" = ["operator"])))]
pub(super) async fn take_down(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    Named(name): Named,
    asked: Params,
    body: Body,
) -> Answer<Takedown> {
    asked.finish()?;
    let cluster = cluster(&name)?;
    let said = read::<Why>(body).await?.said(&caller)?;
    let done = blocking(move || state.enforcer.confirm_takedown(&cluster, &said)).await?;
    let (takedown, change) = done.map_err(|_| Refused::not_found("no such cluster"))?;
    change.durable().await?;
    Ok(Json(takedown))
}

/// Takes a takedown back: every suspension that it brought ends.
#[utoipa::path(delete, path = "/v1/clusters/{cluster}/takedown", tag = "clusters",
    params(ClusterPath, WhyQuery),
    responses((status = 200, body = schema::Takedown), (status = 404, body = super::answer::ErrorBody)),
    security(("token" = ["operator"])))]
pub(super) async fn undo(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    Named(name): Named,
    asked: Params,
) -> Answer<Takedown> {
    let cluster = cluster(&name)?;
    let said = asked.said(&caller)?;
    let undone = state.enforcer.undo_takedown(&cluster, &said);
    let (takedown, change) =
        undone.map_err(|_| Refused::not_found("no takedown of that cluster is in force"))?;
    change.durable().await?;
    Ok(Json(takedown))
}

fn takedown_of(state: &AdminState, cluster: &str) -> Option<Takedown> {
    state.enforcer.takedowns().into_iter().find(|held| held.cluster == cluster)
}
