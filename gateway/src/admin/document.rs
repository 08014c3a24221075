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
                viewer, operator or admin; each may do what the ones before it may.",
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

/// Answers that any operation may give.
fn complete(method: &Method, role: Role, operation: &mut Value) {
    let mut may: Vec<(&str, &str)> = vec![
        ("400", "A parameter or the body is not what this takes."),
        ("401", "No token that is known."),
        ("429", "Too many requests; `Retry-After` says when to come again."),
        ("503", "The store or the gateway is busy; nothing was changed."),
    ];
    if role > Role::Peer {
        may.push(("403", "The token's role is too small; the message names the needed one."));
    }
    if !operation["requestBody"].is_null() {
        may.push(("413", "The body is too large."));
    }
    if method != Method::GET && role > Role::Viewer {
        may.push(("507", "There is no room; nothing was changed."));
    }
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    for (status, description) in may {
        let mut response = json!({
            "description": description,
            "content": { "application/json": {
                "schema": { "$ref": "#/components/schemas/ErrorBody" }
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
