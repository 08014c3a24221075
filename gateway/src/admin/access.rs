//! Who may ask: bearer tokens, their roles, how often.
//!
//! What role an operation needs stands in the OpenAPI document, beside the operation, and is read
//! from there: what is not in the document needs the highest. A token that is known is never held up
//! by what others try from the same address.
//!
//! Source: RFC 6750 (bearer tokens), RFC 6585, section 4 (429).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::AdminState;
use super::answer::Refused;
use super::connection::Connection;
use crate::config::{AdminToken, Role};
use crate::enforce::throttle::{Gcra, nanos};
use crate::limits::{
    ADMIN_REQUESTS_BURST, ADMIN_REQUESTS_PER_SECOND, ADMIN_STRANGERS_BURST, ADMIN_STRANGERS_IDLE,
    ADMIN_STRANGERS_MAX, ADMIN_STRANGERS_PER_SECOND,
};
use crate::metrics::Metrics;

/// Name of the security scheme in the document; its list names the role that is needed.
pub(super) const SCHEME: &str = "token";

/// Who is let in.
pub(super) struct Gate {
    callers: Vec<Arc<Caller>>,
    /// By method and path, as the document has them.
    needed: HashMap<(Method, String), Role>,
    strangers: Cache<IpAddr, Arc<Gcra>>,
    begun: Instant,
    metrics: Arc<Metrics>,
}

/// Whose request it is.
#[derive(Debug)]
pub(super) struct Caller {
    /// The token's name.
    pub(super) name: String,
    role: Role,
    /// SHA-256 of the token: equal in length whatever the token's.
    digest: [u8; 32],
    asked: Gcra,
}

impl Gate {
    pub(super) fn new(
        tokens: &[AdminToken],
        needed: HashMap<(Method, String), Role>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let caller = |token: &AdminToken| {
            Arc::new(Caller {
                name: token.name.clone(),
                role: token.role,
                digest: Sha256::digest(token.secret.expose()).into(),
                asked: Gcra::default(),
            })
        };
        let strangers = Cache::builder()
            .max_capacity(ADMIN_STRANGERS_MAX)
            .time_to_idle(ADMIN_STRANGERS_IDLE)
            .build();
        let callers = tokens.iter().map(caller).collect();
        Self { callers, needed, strangers, begun: Instant::now(), metrics }
    }

    /// Lets a request pass, with who asks.
    fn admit(
        &self,
        headers: &HeaderMap,
        peer: Option<IpAddr>,
        operation: Option<(&Method, &str)>,
    ) -> Result<Arc<Caller>, Refused> {
        let now_ns = nanos(self.begun.elapsed());
        let refuse = |reason: &str| self.metrics.admin_refused.with_label_values(&[reason]).inc();
        let Some(caller) = self.caller(headers) else {
            let cell = self.strangers.get_with(network(peer), Arc::default);
            let (rate, burst) = (ADMIN_STRANGERS_PER_SECOND, ADMIN_STRANGERS_BURST);
            refuse("unauthorised");
            return Err(match take(&cell, rate, burst, now_ns) {
                Ok(()) => Refused::unauthorised(),
                Err(wait) => Refused::too_often(wait),
            });
        };
        let (rate, burst) = (ADMIN_REQUESTS_PER_SECOND, ADMIN_REQUESTS_BURST);
        if let Err(wait) = take(&caller.asked, rate, burst, now_ns) {
            refuse("rate");
            return Err(Refused::too_often(wait));
        }
        let needed = operation.and_then(|(method, path)| {
            let method = if *method == Method::HEAD { &Method::GET } else { method };
            self.needed.get(&(method.clone(), path.to_owned())).copied()
        });
        let needed = needed.unwrap_or(Role::Admin);
        if !caller.role.may(needed) {
            refuse("role");
            return Err(Refused::role(needed));
        }
        Ok(caller)
    }

    /// Whose token it is. Compares digests, with every token: the time taken tells neither how much
    /// of a guess was right, nor its length, nor whose it nearly was.
    fn caller(&self, headers: &HeaderMap) -> Option<Arc<Caller>> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let (scheme, token) = value.as_bytes().split_first_chunk::<7>()?;
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut found = None;
        for caller in &self.callers {
            if bool::from(digest.ct_eq(&caller.digest)) {
                found = Some(caller.clone());
            }
        }
        found.filter(|_| scheme.eq_ignore_ascii_case(b"Bearer "))
    }
}

/// Lets a request pass to its handler, or answers why not.
pub(super) async fn authorise(
    State(state): State<AdminState>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Connection>().and_then(|connection| connection.peer);
    let path = request.extensions().get::<MatchedPath>();
    let operation = path.map(|path| (request.method(), path.as_str()));
    match state.gate.admit(request.headers(), peer, operation) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refused) => refused.into_response(),
    }
}

impl Refused {
    fn unauthorised() -> Self {
        let challenge = HeaderValue::from_static("Bearer realm=\"stillgate admin\"");
        Self::new(StatusCode::UNAUTHORIZED, "send an admin token as `Authorization: Bearer …`")
            .with(header::WWW_AUTHENTICATE, challenge)
    }

    fn too_often(wait: Duration) -> Self {
        let seconds = wait.as_secs().saturating_add(1);
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too many requests, come again later")
            .with(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    fn role(needed: Role) -> Self {
        let message = match needed {
            Role::Sensor => "this needs a token with the role sensor",
            Role::Peer => "this needs a token with the role peer",
            Role::Viewer => "this needs a token with the role viewer",
            Role::Operator => "this needs a token with the role operator",
            Role::Admin => "this needs a token with the role admin",
        };
        Self::new(StatusCode::FORBIDDEN, message)
    }
}

fn take(cell: &Gcra, per_second: f64, burst: f64, now_ns: i64) -> Result<(), Duration> {
    let cost_ns = 1e9 / per_second;
    cell.take(cost_ns, burst * cost_ns, now_ns)
}

/// Whose attempts are counted together: an address, or an IPv6 /64, which is one customer's.
fn network(peer: Option<IpAddr>) -> IpAddr {
    match peer.map(|peer| peer.to_canonical()) {
        Some(IpAddr::V6(ip)) => {
            IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)))
        }
        Some(ip) => ip,
        None => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const KNOWN: &str = "a-token-of-some-length";

    fn gate() -> Gate {
        let tokens = [AdminToken::admin(Secret::new(KNOWN))];
        Gate::new(&tokens, HashMap::new(), Arc::new(Metrics::new().unwrap()))
    }

    fn asks(gate: &Gate, token: &str, peer: &str) -> Result<(), StatusCode> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        let peer = peer.parse().ok();
        gate.admit(&headers, peer, None).map(|_| ()).map_err(|refused| refused.status())
    }

    #[test]
    fn attempts_are_counted_by_address_and_hold_up_nobody_who_is_known() {
        let gate = gate();
        let (wrong, limited) = (StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS);
        let burst = ADMIN_STRANGERS_BURST as usize;
        let of = |from: &str| -> Vec<_> {
            (0..burst + 5).map(|_| asks(&gate, "x", from).unwrap_err()).collect()
        };
        for from in ["192.0.2.1", "2001:db8::1"] {
            let answers = of(from);
            assert!(answers[..burst].iter().all(|status| *status == wrong), "{answers:?}");
            assert!(answers[burst + 1..].iter().all(|status| *status == limited), "{answers:?}");
        }
        assert_eq!(asks(&gate, "x", "2001:db8::9"), Err(limited), "the same /64");
        assert_eq!(asks(&gate, "x", "2001:db8:1::9"), Err(wrong));
        assert_eq!(asks(&gate, KNOWN, "192.0.2.1"), Ok(()));
        let refused = gate.metrics.admin_refused.with_label_values(&["unauthorised"]);
        assert_eq!(refused.get() as usize, 2 * (burst + 5) + 2);
    }

    #[test]
    fn a_sensor_stands_beside_the_other_roles() {
        let allowed = |role: Role| -> Vec<&str> {
            Role::ALL.into_iter().filter(|needed| role.may(*needed)).map(Role::name).collect()
        };
        assert_eq!(allowed(Role::Sensor), ["sensor"]);
        assert_eq!(allowed(Role::Peer), ["peer"]);
        assert_eq!(allowed(Role::Viewer), ["peer", "viewer"]);
        assert_eq!(allowed(Role::Operator), ["peer", "viewer", "operator"]);
        assert_eq!(allowed(Role::Admin), ["sensor", "peer", "viewer", "operator", "admin"]);
    }

    #[test]
    fn a_token_that_asks_too_often_is_told_when_to_come_again() {
        let gate = gate();
        let answers: Vec<_> = (0..2 * ADMIN_REQUESTS_BURST as usize)
            .map(|_| asks(&gate, KNOWN, "192.0.2.1"))
            .collect();
        let limited = answers.iter().filter(|answer| answer.is_err()).count();
        // Some time passes, and gives some of them back.
        assert!((1..=ADMIN_REQUESTS_BURST as usize).contains(&limited), "{limited}");
        let refused = Refused::too_often(Duration::from_millis(1_500)).into_response();
        assert_eq!(refused.headers()[header::RETRY_AFTER], "2");
    }
}
