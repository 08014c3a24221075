//! The OpenAPI document: what every operation has is added here, once.
//!
//! Source: OpenAPI Specification 3.1.

use std::collections::HashMap;

use axum::http::Method;
use serde_json::{Value, json};
use utoipa::openapi::OpenApi;

use super::access::SCHEME;
use crate::config::Role;

/// The document, and the role that each of its operations needs.
pub(super) struct Document {
    pub(super) json: String,
    pub(super) needed: HashMap<(Method, String), Role>,
}

impl Document {
    /// Completes what the operations say of themselves.
    pub(super) fn of(operations: &OpenApi) -> Self {
        let mut document = serde_json::to_value(operations).unwrap_or_default();
        document["info"] = json!({
            "title": "Stillgate admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "For the operators of a Stillgate gateway. Every change needs a reason, \
                and is durable and in the audit before it is acknowledged. A token's role is peer, \
                viewer, operator or admin, of which each may do what the ones before it may; or \
                sensor, which may report and nothing else.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        });
        document["components"]["securitySchemes"][SCHEME] = json!({
            "type": "http",
            "scheme": "bearer",
            "description": "A token of the configuration. Beside an operation stands the role that \
                it needs.",
        });
        let mut needed = HashMap::new();
        let paths = document["paths"].as_object_mut();
        for (path, item) in paths.into_iter().flatten() {
            for (method, operation) in item.as_object_mut().into_iter().flatten() {
                let Ok(method) = method.to_ascii_uppercase().parse::<Method>() else { continue };
                let Some(role) = role_of(operation) else { continue };
                operation["operationId"] = json!(operation_id(&method, path));
                complete(&method, role, operation);
                needed.insert((method, path.clone()), role);
            }
        }
        Self { json: document.to_string(), needed }
    }
}

/// The role that an operation names; `None` where it needs no token.
fn role_of(operation: &Value) -> Option<Role> {
    let name = operation["security"][0][SCHEME][0].as_str()?;
    Role::ALL.into_iter().find(|role| role.name() == name)
}

/// A name that no other operation has: of `GET /v1/accounts/{account}`, `get_accounts_account`.
fn operation_id(method: &Method, path: &str) -> String {
    let words = path.split(['/', '{', '}', '.']).filter(|word| !word.is_empty() && *word != "v1");
    words.fold(method.as_str().to_ascii_lowercase(), |id, word| id + "_" + word)
}

/// Answers that any operation may give.
fn complete(method: &Method, role: Role, operation: &mut Value) {
    let mut may: Vec<(&str, &str)> = vec![
        ("400", "A parameter or the body is not what this takes."),
        ("401", "No token that is known."),
        ("429", "Too many requests; `Retry-After` says when to come again."),
        ("403", "The token's role does not suffice; the message names the needed one."),
        ("503", "The store or the gateway is busy; the message says what was done."),
    ];
    if !operation["requestBody"].is_null() {
        may.push(("413", "The body is too large."));
    }
    if method != Method::GET && matches!(role, Role::Operator | Role::Admin) {
        may.push(("507", "There is no room; the message says what was done."));
    }
    let (media_type, schema) = match role {
        Role::Sensor => ("application/problem+json", "Problem"),
        _ => ("application/json", "ErrorBody"),
    };
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    for (status, description) in may {
        let mut response = json!({
            "description": description,
            "content": { media_type: {
                "schema": { "$ref": format!("#/components/schemas/{schema}") }
            } },
        });
        if status == "429" {
            response["headers"]["Retry-After"] =
                json!({ "schema": { "type": "integer", "minimum": 1 }, "description": "Seconds." });
        }
        responses.entry(status).or_insert(response);
    }
    for (status, response) in responses {
        if response["description"].as_str().is_none_or(str::is_empty) {
            let said = match status.as_str() {
                "200" => "Done, or what was asked for.",
                "404" => "There is no such thing.",
                _ => "It cannot be done as things are.",
            };
            response["description"] = json!(said);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::admin::operations;

    #[test]
    fn every_operation_is_named_described_and_needs_a_role() {
        let document = Document::of(&operations().into_openapi());
        let json: Value = serde_json::from_str(&document.json).unwrap();
        let (mut ids, mut operations) = (BTreeSet::new(), 0);
        for (path, item) in json["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                operations += 1;
                ids.insert(operation["operationId"].as_str().unwrap().to_owned());
                assert!(operation["summary"].is_string(), "{method} {path}");
                let method: Method = method.to_ascii_uppercase().parse().unwrap();
                let role = document.needed[&(method.clone(), path.clone())];
                if role == Role::Sensor {
                    assert_eq!((method, &**path), (Method::POST, "/v1/sensor/reports"));
                    continue;
                }
                if role == Role::Peer {
                    // A bundle is the word of whoever signed it.
                    assert!(path == "/v1/iocs/export" || path == "/v1/iocs/import", "{path}");
                    continue;
                }
                // Whoever only looks changes nothing, and whoever changes needs to say why.
                let looks = method == Method::GET || path.ends_with("/verify");
                let looks = looks || path.ends_with("/validate");
                assert_eq!(role == Role::Viewer, looks, "{method} {path}");
                let policy = path.starts_with("/v1/policy/") && !looks;
                assert_eq!(role == Role::Admin, policy, "{method} {path}");
                if !looks {
                    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
                    let named = body["$ref"].as_str().and_then(|name| name.rsplit('/').next());
                    let needed = named.map(|name| &json["components"]["schemas"][name]["required"]);
                    let in_body = needed.and_then(Value::as_array);
                    let in_body = in_body.is_some_and(|all| all.contains(&json!("reason")));
                    let parameters = operation["parameters"].as_array();
                    let in_query = parameters.into_iter().flatten().any(|parameter| {
                        parameter["name"] == "reason" && parameter["required"] == true
                    });
                    assert!(in_body || in_query, "{method} {path} needs no reason");
                }
            }
        }
        assert_eq!(ids.len(), operations);
        assert_eq!(document.needed.len(), operations);
    }
}
