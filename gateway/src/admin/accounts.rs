//! Accounts: the list by tier, what is known of one, an operator's word on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use detectors::AccountId;
use detectors::tier::Tier;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::Caller;
use super::answer::{Answer, Refused};
use super::body::{Named, Params, Sent, account, maybe_whole, read, said};
use super::schema::{AccountPath, AfterAccountQuery, LimitQuery, WhyQuery};
use super::{AdminState, LIST_DEFAULT, blocking, schema};
use crate::audit::Actor;
use crate::enforce::Explanation;
use crate::enforce::kept::TierWord;
use crate::enforce::standing::{Override, Suspension};
use crate::limits::{ADMIN_ACCOUNTS_SCAN_MAX, ADMIN_LIST_MAX, ADMIN_OVERRIDE_SECONDS_MAX};
use crate::policy::unix_ms;
use crate::store::{Register, Store, StoreError, Table};

/// An operator's word on an account.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SetOverride {
    /// The tier that holds, whatever the judgement.
    #[schema(value_type = schema::Tier)]
    tier: Tier,
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
    /// For how long; until it is removed where it is left out.
    #[serde(default, deserialize_with = "maybe_whole")]
    #[schema(minimum = 1, maximum = 316_224_000)]
    ttl_seconds: Option<u64>,
}

impl Sent for SetOverride {
    const SHAPE: &'static str = "an object with tier (none, low, medium, high or critical), reason, \
                                 and if wanted operator and ttl_seconds";
}

/// An account and the word on it.
#[derive(Serialize, ToSchema)]
pub(super) struct OverrideOf {
    #[schema(value_type = schema::AccountName)]
    account: AccountId,
    /// The word; null where it was removed.
    #[serde(rename = "override")]
    #[schema(value_type = Option<schema::Override>, required = true)]
    overridden: Option<Override>,
}

/// Overrides, by account.
#[derive(Serialize, ToSchema)]
pub(super) struct Overrides {
    overrides: Vec<OverrideOf>,
    /// Ask for those after it; null at the end.
    #[schema(required = true)]
    next: Option<String>,
}

/// Accounts, by name.
#[derive(Serialize, ToSchema)]
pub(super) struct Accounts {
    accounts: Vec<Listed>,
    /// Ask for those after it; null at the end. An answer may have few accounts, or none, and still
    /// not be the last: it looks through so many at a time.
    #[schema(required = true)]
    next: Option<String>,
}

/// An account as it is listed.
#[derive(Serialize, ToSchema)]
#[schema(as = ListedAccount)]
pub(super) struct Listed {
    #[schema(value_type = schema::AccountName)]
    account: AccountId,
    /// The tier that counts.
    #[schema(value_type = schema::Tier)]
    tier: Tier,
    /// The tier by the last judgement.
    #[schema(value_type = schema::Tier)]
    judged_tier: Tier,
    /// Suspicion when it was last judged, 0..1.
    suspicion: f64,
    /// Cluster, 16 hex digits.
    #[schema(required = true)]
    cluster: Option<String>,
    #[serde(rename = "override")]
    #[schema(value_type = Option<schema::Override>, required = true)]
    overridden: Option<Override>,
    #[schema(value_type = Option<schema::Suspension>, required = true)]
    suspended: Option<Suspension>,
}

/// Accounts that stand out.
///
/// Those above tier none, and those with an override. Of the others nothing is kept but what the
/// engine remembers; ask for one by its name.
#[utoipa::path(get, path = "/v1/accounts", tag = "accounts",
    params(
        ("tier" = inline(Option<schema::Tier>), Query, description = "Only those whose tier this is."),
        LimitQuery, AfterAccountQuery
    ),
    responses((status = 200, body = Accounts)), security(("token" = ["viewer"])))]
pub(super) async fn list(State(state): State<AdminState>, mut asked: Params) -> Answer<Accounts> {
    let tier = asked.choice("tier", "none, low, medium, high or critical")?;
    let limit = asked.limit(LIST_DEFAULT, ADMIN_LIST_MAX)?;
    let after = after(&mut asked)?;
    asked.finish()?;
    let store = state.enforcer.store().clone();
    Ok(Json(blocking(move || list_of(&store, tier, limit, after)).await??))
}

fn list_of(
    store: &Arc<Store>,
    tier: Option<Tier>,
    limit: usize,
    mut after: String,
) -> Result<Accounts, StoreError> {
    let now_ms = unix_ms();
    let mut accounts = Vec::new();
    let mut looked_through = 0;
    loop {
        let tiers = store.scan_after(Table::Tier, &after, ADMIN_LIST_MAX)?;
        let words = store.scan_after(Table::Override, &after, ADMIN_LIST_MAX)?;
        // Past the end of a full page of the one, the other may not be told of yet.
        let full = [&tiers, &words].into_iter().filter(|page| page.len() == ADMIN_LIST_MAX);
        let horizon = full.filter_map(|page| page.last()).map(|last| last.key.clone()).min();
        let mut found: BTreeMap<String, (Option<TierWord>, Option<Override>)> = BTreeMap::new();
        for register in tiers {
            found.entry(register.key.clone()).or_default().0 = value(&register);
        }
        for register in words {
            found.entry(register.key.clone()).or_default().1 = value(&register);
        }
        for (key, (judged, word)) in found {
            if horizon.as_ref().is_some_and(|horizon| key > *horizon) {
                break;
            }
            looked_through += 1;
            let word = word.filter(|word| word.until_ms.is_none_or(|until| now_ms < until));
            let judged_tier = judged.as_ref().map_or(Tier::None, |judged| judged.tier);
            let counts = word.as_ref().map_or(judged_tier, |word| word.tier);
            let known = judged.is_some() || word.is_some();
            if known && tier.is_none_or(|tier| tier == counts) {
                let suspended = store.get(Table::Suspension, &key)?.as_ref().and_then(value);
                let suspended =
                    suspended.filter(|held: &Suspension| now_ms < held.until_ms && word.is_none());
                accounts.push(Listed {
                    account: AccountId::new(key.as_str()),
                    tier: counts,
                    judged_tier,
                    suspicion: judged.as_ref().map_or(0.0, |judged| judged.suspicion),
                    cluster: judged.and_then(|judged| judged.cluster),
                    overridden: word,
                    suspended,
                });
                if accounts.len() == limit {
                    return Ok(Accounts { accounts, next: Some(key) });
                }
            }
            after = key;
        }
        if horizon.is_none() {
            return Ok(Accounts { accounts, next: None });
        }
        if looked_through >= ADMIN_ACCOUNTS_SCAN_MAX {
            return Ok(Accounts { accounts, next: Some(after) });
        }
    }
}

/// Everything that is known of an account.
#[utoipa::path(get, path = "/v1/accounts/{account}", tag = "accounts", params(AccountPath),
    responses((status = 200, body = schema::Account), (status = 404, body = super::answer::ErrorBody)),
    security(("token" = ["viewer"])))]
pub(super) async fn show(
    State(state): State<AdminState>,
    Named(id): Named,
    asked: Params,
) -> Answer<Explanation> {
    asked.finish()?;
    let account = account(&id)?;
    let explained = blocking(move || state.enforcer.explain(&account)).await?;
    explained.map(Json).ok_or_else(|| Refused::not_found("no such account has been seen"))
}

/// Overrides that hold.
#[utoipa::path(get, path = "/v1/overrides", tag = "overrides", params(LimitQuery, AfterAccountQuery),
    responses((status = 200, body = Overrides)), security(("token" = ["viewer"])))]
pub(super) async fn overrides(
    State(state): State<AdminState>,
    mut asked: Params,
) -> Answer<Overrides> {
    let limit = asked.limit(LIST_DEFAULT, ADMIN_LIST_MAX)?;
    let mut after = after(&mut asked)?;
    asked.finish()?;
    let store = state.enforcer.store().clone();
    let listed = blocking(move || -> Result<Overrides, StoreError> {
        let now_ms = unix_ms();
        let mut overrides = Vec::new();
        for _ in 0..ADMIN_ACCOUNTS_SCAN_MAX / ADMIN_LIST_MAX {
            let page = store.scan_after(Table::Override, &after, ADMIN_LIST_MAX)?;
            let last = page.len() < ADMIN_LIST_MAX;
            for register in page {
                let word = value(&register)
                    .filter(|word: &Override| word.until_ms.is_none_or(|until| now_ms < until));
                after = register.key;
                if let Some(word) = word {
                    let account = AccountId::new(after.as_str());
                    overrides.push(OverrideOf { account, overridden: Some(word) });
                    if overrides.len() == limit {
                        return Ok(Overrides { overrides, next: Some(after) });
                    }
                }
            }
            if last {
                return Ok(Overrides { overrides, next: None });
            }
        }
        Ok(Overrides { overrides, next: Some(after) })
    });
    Ok(Json(listed.await??))
}

/// The override of an account.
#[utoipa::path(get, path = "/v1/accounts/{account}/override", tag = "overrides", params(AccountPath),
    responses((status = 200, body = OverrideOf), (status = 404, body = super::answer::ErrorBody)),
    security(("token" = ["viewer"])))]
pub(super) async fn get_override(
    State(state): State<AdminState>,
    Named(id): Named,
    asked: Params,
) -> Answer<OverrideOf> {
    asked.finish()?;
    let account = account(&id)?;
    match word_on(&state, &account) {
        Some(word) => Ok(Json(OverrideOf { account, overridden: Some(word) })),
        None => Err(no_override()),
    }
}

/// Sets an account's tier, whatever the judgement says.
///
/// It lifts a suspension while it holds.
#[utoipa::path(put, path = "/v1/accounts/{account}/override", tag = "overrides", params(AccountPath),
    request_body = SetOverride, responses((status = 200, body = OverrideOf)),
    security(("token" = ["operator"])))]
pub(super) async fn set_override(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    Named(id): Named,
    asked: Params,
    body: Body,
) -> Answer<OverrideOf> {
    asked.finish()?;
    let account = account(&id)?;
    let set: SetOverride = read(body).await?;
    let said = said(&caller, &set.reason, set.operator.as_deref())?;
    let word = word(set.tier, set.ttl_seconds, &said.reason, &said.actor)?;
    let change = state.enforcer.override_tier(&account, Some(&word), &said);
    change.map_err(Refused::no_room)?.durable().await?;
    Ok(Json(OverrideOf { account, overridden: Some(word) }))
}

/// An operator's word, from now on.
pub(super) fn word(
    tier: Tier,
    seconds: Option<u64>,
    reason: &str,
    by: &Actor,
) -> Result<Override, Refused> {
    if seconds.is_some_and(|seconds| !(1..=ADMIN_OVERRIDE_SECONDS_MAX).contains(&seconds)) {
        let message = format!("ttl_seconds must be 1 to {ADMIN_OVERRIDE_SECONDS_MAX}");
        return Err(Refused::bad(message));
    }
    let since_ms = unix_ms();
    let until_ms = seconds.map(|seconds| since_ms.saturating_add(seconds.saturating_mul(1_000)));
    let (reason, by) = (reason.to_owned(), by.name().to_owned());
    Ok(Override { tier, reason, by, since_ms, until_ms })
}

/// Removes an account's override: the judgement counts again, and a suspension that has not ended.
#[utoipa::path(delete, path = "/v1/accounts/{account}/override", tag = "overrides",
    params(AccountPath, WhyQuery),
    responses((status = 200, body = OverrideOf), (status = 404, body = super::answer::ErrorBody)),
    security(("token" = ["operator"])))]
pub(super) async fn remove_override(
    State(state): State<AdminState>,
    Extension(caller): Extension<Arc<Caller>>,
    Named(id): Named,
    asked: Params,
) -> Answer<OverrideOf> {
    let account = account(&id)?;
    let said = asked.said(&caller)?;
    if word_on(&state, &account).is_none() {
        return Err(no_override());
    }
    let change = state.enforcer.override_tier(&account, None, &said);
    change.map_err(Refused::no_room)?.durable().await?;
    Ok(Json(OverrideOf { account, overridden: None }))
}

fn word_on(state: &AdminState, account: &AccountId) -> Option<Override> {
    let now_ms = unix_ms();
    state.enforcer.standing(account).read(|standing| standing.operators_word(now_ms).cloned())
}

fn no_override() -> Refused {
    Refused::not_found("the account has no override")
}

/// `after`, the account that the last answer ended with.
fn after(asked: &mut Params) -> Result<String, Refused> {
    let Some(given) = asked.text("after")? else { return Ok(String::new()) };
    Ok(account(&given)?.as_str().to_owned())
}

fn value<T: DeserializeOwned>(register: &Register) -> Option<T> {
    serde_json::from_str(register.value.as_deref()?).ok()
}
