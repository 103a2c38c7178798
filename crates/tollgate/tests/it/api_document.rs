//! What every role shows of itself: the OpenAPI document, its health, its metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Client;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;
use tollgate_testkit::{TestApp, Tune, eventually};

fn client() -> Client {
    tollgate_outbound::install_crypto_provider();
    Client::builder().no_proxy().tls_certs_only([]).build().unwrap()
}

/// Calls `visit` with each member of each object, however deep.
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

#[tokio::test]
async fn the_document_is_served_and_printed_and_holds_together() {
    let app = TestApp::start(env!("CARGO_BIN_EXE_tollgate"), Tune::default()).await;
    let reply = client().get(format!("{}/openapi.json", app.api.url())).send().await.unwrap();
    assert_eq!(
        (reply.status().as_u16(), reply.headers()[CONTENT_TYPE].as_bytes()),
        (200, &b"application/json"[..])
    );
    let served = reply.text().await.unwrap();
    let (code, printed, _) = app.command(&["openapi"]).await;
    assert_eq!((code, printed.trim_end()), (0, served.trim_end()));
    assert_eq!(app.command(&["--json", "openapi"]).await.1, printed);

    let document: Value = serde_json::from_str(&served).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    for name in ["title", "version", "description"] {
        assert!(!document["info"][name].as_str().unwrap().is_empty(), "info.{name}");
    }
    let mut references = 0;
    walk(&document, &mut |key, value| {
        if let ("$ref", Some(target)) = (key, value.as_str()) {
            references += 1;
            let found = target.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
            assert!(found.is_some(), "{target} leads nowhere");
        }
    });
    assert!(references > 10, "only {references} references");

    let schemes = document["components"]["securitySchemes"].as_object().unwrap();
    let mut ids = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let what = format!("{method} {path}");
            let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{what} has no id"));
            assert_eq!(ids.insert(id, what.clone()), None, "{what}: its id is another's");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{what} never succeeds");
            for (status, response) in responses {
                assert!(response["description"].is_string(), "{what} {status}");
                let problem = response["content"]["application/problem+json"]["schema"].is_object();
                assert_eq!(problem, status.as_str() >= "400", "{what} {status}");
            }
            for requirement in operation["security"].as_array().into_iter().flatten() {
                let known = requirement.as_object().unwrap().keys().all(|name| schemes.contains_key(name));
                assert!(known, "{what}: {requirement}");
                // A signature that is none is refused as a bad request: Stripe shows it to who looks there.
                let signed = requirement["stripe_signature"].is_array();
                assert!(responses.contains_key("401") || signed, "{what}");
                assert!(responses.contains_key("403") || requirement["api_key"].is_null(), "{what}");
            }
            let documented = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
            for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
                let found = documented.iter().find(|one| one["in"] == "path" && one["name"] == name);
                assert_eq!(found.map(|one| &one["required"]), Some(&Value::Bool(true)), "{what}: {name}");
            }
        }
    }
    assert!(ids.len() >= 12, "{ids:?}");
}

/// Each series of Prometheus' text format with its value. Panics at whatever is not that format.
fn series(text: &str) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    let mut kinds = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            let &[word, name, rest] = words.as_slice() else { panic!("{line}") };
            if word == "TYPE" {
                assert!(matches!(rest, "counter" | "gauge" | "histogram" | "summary"), "{line}");
                assert_eq!(kinds.insert(name.to_owned(), rest), None, "{name} has two types");
            } else {
                assert_eq!(word, "HELP", "{line}");
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
        let value: f64 = value.parse().unwrap_or_else(|error| panic!("{error}: {line}"));
        let (bare, labels) = name.split_once('{').unwrap_or((name, "}"));
        assert!(
            bare.starts_with("tollgate_")
                && bare
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'),
            "{line}"
        );
        assert!(labels.ends_with('}') && labels.matches('"').count() % 2 == 0, "{line}");
        let family =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| bare.strip_suffix(end)).unwrap_or(bare);
        let kind = kinds.get(family).or_else(|| kinds.get(bare)).unwrap_or_else(|| panic!("no type: {line}"));
        if *kind == "counter" {
            assert!(bare.ends_with("_total") && value >= 0.0, "{line}");
        }
        assert_eq!(all.insert(name.to_owned(), value), None, "twice: {line}");
    }
    all
}

async fn metrics(http: &Client, url: &str) -> BTreeMap<String, f64> {
    let reply = http.get(format!("{url}/metrics")).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    assert!(reply.headers()[CONTENT_TYPE].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    series(&reply.text().await.unwrap())
}

#[tokio::test]
async fn both_roles_say_how_they_are_and_count_what_they_do() {
    let app = TestApp::start(env!("CARGO_BIN_EXE_tollgate"), Tune::worker(&[])).await;
    let http = client();
    let (api, worker) = (app.api.url(), app.workers[0].url());
    for url in [&api, &worker] {
        for path in ["/healthz", "/readyz"] {
            let reply = http.get(format!("{url}{path}")).send().await.unwrap();
            assert_eq!(reply.status(), 200, "{url}{path}");
            assert_eq!(reply.json::<Value>().await.unwrap()["status"], "ok");
        }
    }
    // A worker shows these alone.
    for path in ["/v1/jobs", "/openapi.json"] {
        let reply = http.get(format!("{worker}{path}")).bearer_auth(&app.key).send().await.unwrap();
        assert_eq!(reply.status(), 404, "{path}");
    }

    let before = [metrics(&http, &api).await, metrics(&http, &worker).await];
    app.provider
        .script([tollgate_sim::Step::fault(tollgate_sim::Fault::BadRequest).matching("refuse me")])
        .unwrap();
    for prompt in ["one", "two", "refuse me"] {
        let id = app.submit(prompt).await;
        app.ended(id).await;
    }
    let text = app.client();
    assert!(text.job(tollgate_domain::ids::new_id()).await.is_err());

    for (role, url, grown) in [
        (
            0,
            &api,
            &[
                (r#"tollgate_jobs_submitted_total{type="text"}"#, 3.0),
                (
                    r#"tollgate_http_requests_total{method="POST",route="/v1/jobs/generations",status="202"}"#,
                    3.0,
                ),
                (r#"tollgate_http_requests_total{method="GET",route="/v1/jobs/{id}",status="404"}"#, 1.0),
                (
                    r#"tollgate_http_request_duration_seconds_count{method="POST",route="/v1/jobs/generations"}"#,
                    3.0,
                ),
            ][..],
        ),
        (
            1,
            &worker,
            &[
                (r#"tollgate_jobs_finished_total{status="succeeded"}"#, 2.0),
                (r#"tollgate_jobs_finished_total{status="failed"}"#, 1.0),
                (r#"tollgate_tasks_claimed_total{queue="generation.create"}"#, 3.0),
                (r#"tollgate_task_wait_seconds_count{queue="generation.create"}"#, 3.0),
                (r#"tollgate_provider_calls_total{provider="openai",outcome="OK"}"#, 2.0),
                (r#"tollgate_provider_calls_total{provider="openai",outcome="BAD_REQUEST"}"#, 1.0),
                (r#"tollgate_provider_call_duration_seconds_count{provider="openai"}"#, 3.0),
            ][..],
        ),
    ] {
        for (name, by) in grown {
            // The last count follows the commit that ends the job, so it may be a moment late.
            eventually(&format!("{name} grows by {by}"), Duration::from_secs(5), || async {
                let now = metrics(&http, url).await.get(*name).copied().unwrap_or(0.0);
                let was = before[role].get(*name).copied().unwrap_or(0.0);
                #[expect(clippy::float_cmp, reason = "counts are whole numbers")]
                let grown = now - was == *by;
                grown.then_some(())
            })
            .await;
        }
    }
    let idle = r#"tollgate_tasks_in_flight{queue="generation.create"}"#;
    eventually("nothing is in flight", Duration::from_secs(5), || async {
        (metrics(&http, &worker).await[idle] == 0.0).then_some(())
    })
    .await;
}
