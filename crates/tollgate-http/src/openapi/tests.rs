//! The document against itself, and against the endpoints' sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tollgate_model::key::Scope;

fn document() -> Value {
    serde_json::from_str(super::text()).unwrap()
}

/// Each operation: its method and path, and its object.
fn operations(document: &Value) -> Vec<(String, &Value)> {
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations.push((format!("{} {path}", method.to_uppercase()), operation));
        }
    }
    operations
}

fn walk<'a>(value: &'a Value, visit: &mut impl FnMut(&'a str, &'a Value)) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            visit(key, value);
            walk(value, visit);
        }),
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        _ => {}
    }
}

#[test]
fn it_is_openapi_3_1_and_ours() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["title"], "Tollgate");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(document["components"]["securitySchemes"]["api_key"]["scheme"], "bearer");
}

#[test]
fn every_reference_resolves() {
    let document = document();
    let mut references = 0;
    walk(&document, &mut |key, value| {
        if let ("$ref", Some(target)) = (key, value.as_str()) {
            references += 1;
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target} leads nowhere");
        }
    });
    assert!(references > 20, "only {references}");
}

#[test]
fn every_operation_is_documented() {
    let document = document();
    let mut ids = BTreeSet::new();
    for (name, operation) in operations(&document) {
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{name}: its id is another's");
        assert!(!operation["summary"].as_str().unwrap().is_empty(), "{name}");
        assert_eq!(operation["tags"].as_array().unwrap().len(), 1, "{name}");
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert!(!response["description"].as_str().unwrap().is_empty(), "{name} {status}");
            assert!(response["headers"]["X-Request-Id"].is_object(), "{name} {status}");
            if status.as_str() >= "400" {
                let content = &response["content"]["application/problem+json"];
                assert_eq!(content["schema"]["$ref"], "#/components/schemas/Problem", "{name} {status}");
                assert_eq!(content["example"]["status"].to_string(), *status, "{name} {status}");
            }
        }
    }
    assert_eq!(ids.len(), 32);
}

#[test]
fn every_operation_of_a_tenant_needs_a_key_with_one_scope() {
    let document = document();
    for (name, operation) in operations(&document) {
        let tenants = name.contains(" /v1/");
        // Serves those without a key as well, but differently.
        let either = name == "GET /api/ai/status";
        if name == "POST /internal/stripe/webhook" {
            assert_eq!(operation["security"], serde_json::json!([{"stripe_signature": []}]), "{name}");
            continue;
        }
        if name.contains(" /internal/") {
            assert_eq!(operation["security"], serde_json::json!([{"admin_token": []}]), "{name}");
            assert!(operation["responses"]["401"].is_object(), "{name}");
            continue;
        }
        assert_eq!(operation["security"].is_array(), tenants || either, "{name}");
        let Some(security) = operation["security"].as_array() else { continue };
        assert_eq!(security.contains(&serde_json::json!({})), either, "{name}");
        let scopes = security.last().unwrap()["api_key"].as_array().unwrap();
        let [scope] = scopes.as_slice() else { panic!("{name}") };
        assert!(Scope::parse(scope.as_str().unwrap()).is_some(), "{name}: {scope}");
        for status in ["401", "403", "500", "503"] {
            assert!(operation["responses"][status].is_object(), "{name} {status}");
        }
        let takes = |place: &str| {
            operation["parameters"].as_array().is_some_and(|all| all.iter().any(|one| one["in"] == place))
        };
        assert_eq!(operation["responses"]["404"].is_object(), takes("path"), "{name}");
        let body = operation["requestBody"].is_object();
        assert_eq!(operation["responses"]["413"].is_object(), body, "{name}");
        assert_eq!(operation["responses"]["400"].is_object(), body || takes("query"), "{name}");
    }
}

/// What the documentation says of a scope, the handler's caller must demand: both stand in the endpoint's file.
#[test]
fn a_documented_scope_is_the_one_demanded() {
    let mut endpoints = 0;
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/endpoints")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = fs::read_to_string(&path).unwrap();
            if !source.contains("path = \"/v1/") {
                continue;
            }
            endpoints += 1;
            let documented = between(&source, "security((\"api_key\" = [\"", "\"]))");
            let scope = Scope::parse(documented).unwrap();
            let caller =
                if source.contains("caller: Caller<") { "caller: Caller<" } else { "(caller): Recognised<" };
            assert_eq!(between(&source, caller, ">"), format!("{scope:?}"), "{}", path.display());
        }
    }
    assert_eq!(endpoints, 14);
}

fn between<'a>(source: &'a str, before: &str, after: &str) -> &'a str {
    let rest = source.split_once(before).unwrap_or_else(|| panic!("no `{before}`")).1;
    rest.split_once(after).unwrap().0
}
