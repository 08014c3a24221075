//! From a request's host and path to an upstream.

use std::sync::Arc;

use crate::config::Route;

/// Routes, most specific first.
#[derive(Debug)]
pub struct RouteTable {
    routes: Vec<Route>,
}

impl RouteTable {
    /// Orders routes: exact host, then wildcard host, then no host; longer paths first.
    #[must_use]
    pub fn new(routes: &[Route]) -> Self {
        let mut routes = routes.to_vec();
        routes.sort_by_key(|route| {
            let host = match &route.host {
                Some(host) if host.starts_with("*.") => (1, usize::MAX - host.len()),
                Some(_) => (0, 0),
                None => (2, 0),
            };
            (host, usize::MAX - route.path.len())
        });
        Self { routes }
    }

    /// The route for a request. `host` may carry a port; `path` may carry a query.
    #[must_use]
    pub fn find(&self, host: Option<&str>, path: &str) -> Option<(Arc<str>, usize)> {
        let host = host.map(|host| without_port(host).to_ascii_lowercase());
        let path = path.split(['?', '#']).next().unwrap_or_default();
        self.routes
            .iter()
            .find(|route| {
                host_matches(route.host.as_deref(), host.as_deref())
                    && path_matches(&route.path, path)
            })
            .map(|route| (route.name.clone(), route.upstream))
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // A colon inside brackets belongs to an IPv6 address.
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

fn host_matches(wanted: Option<&str>, host: Option<&str>) -> bool {
    match (wanted, host) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wanted), Some(host)) => match wanted.strip_prefix('*') {
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => host == wanted,
        },
    }
}

fn path_matches(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
        || prefix.strip_suffix('/').is_some_and(|prefix| prefix == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, host: Option<&str>, path: &str) -> Route {
        Route { name: name.into(), host: host.map(str::to_owned), path: path.into(), upstream: 0 }
    }

    #[test]
    fn the_most_specific_route_wins() {
        let table = RouteTable::new(&[
            route("rest", None, "/"),
            route("wild", Some("*.example.com"), "/"),
            route("api", Some("api.example.com"), "/"),
            route("chat", None, "/v1/chat"),
            route("api-v1", Some("api.example.com"), "/v1/"),
        ]);
        let cases: &[(Option<&str>, &str, Option<&str>)] = &[
            (Some("api.example.com"), "/v1/x", Some("api-v1")),
            (Some("API.example.com:8443"), "/v2", Some("api")),
            (Some("api.example.com"), "/v1", Some("api-v1")),
            (Some("eu.api.example.com"), "/", Some("wild")),
            (Some("example.com"), "/v1/chat/completions?x=1", Some("chat")),
            (Some("example.com"), "/v1/chatty", Some("rest")),
            (Some("[::1]:443"), "/v1/chat", Some("chat")),
            (None, "/", Some("rest")),
        ];
        for (host, path, wanted) in cases {
            let found = table.find(*host, path).map(|(name, _)| name.to_string());
            assert_eq!(found.as_deref(), *wanted, "{host:?} {path}");
        }
    }

    #[test]
    fn nothing_matches_where_no_route_does() {
        let table = RouteTable::new(&[route("a", Some("a.example"), "/v1/")]);
        assert!(table.find(Some("b.example"), "/v1/").is_none());
        assert!(table.find(Some("a.example"), "/v2/").is_none());
        assert!(table.find(None, "/v1/").is_none());
    }
}
