//! How much there is to do: for an account, for everybody, and for an operator's dashboard.

use std::time::Duration;

use chrono::Utc;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tollgate_model::key::Scope;
use tollgate_model::submission::Submission;
use tollgate_sim::{Fault, Step};
use tollgate_testkit::{Process, TestApp, Tune, eventually};

use crate::watched::refused;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
const STATUS: &str = "/api/ai/status";

async fn get(url: &str, key: Option<&str>) -> Response {
    tollgate_outbound::install_crypto_provider();
    let http = Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let request = http.get(url);
    let request = match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    };
    request.send().await.unwrap()
}

async fn status(app: &TestApp, key: Option<&str>) -> Response {
    get(&format!("{}{STATUS}", app.api.url()), key).await
}

async fn counts(app: &TestApp, key: Option<&str>) -> Value {
    let reply = status(app, key).await;
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.headers()["cache-control"], "no-store");
    reply.json().await.unwrap()
}

/// Waits until those are the counts.
async fn becomes(app: &TestApp, key: Option<&str>, [queued, running, failed, done]: [i64; 4]) {
    let wanted = json!({"queue": {"queued": queued, "running": running, "failed": failed, "done": done}});
    eventually(&wanted.to_string(), Duration::from_secs(20), || async {
        (counts(app, key).await["queue"] == wanted["queue"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_account_sees_its_own_jobs_and_everybody_the_sum() {
    let tune = Tune { settings: vec![("PUBLIC_STATUS", "true".into())], ..Tune::default() };
    let mut app = TestApp::start(BINARY, tune).await;
    let (_, other) = app.open_account().await;
    let (mine, theirs) = (Some(app.key.clone()), Some(other.clone()));
    let (mine, theirs) = (mine.as_deref(), theirs.as_deref());
    for who in [mine, theirs, None] {
        becomes(&app, who, [0, 0, 0, 0]).await;
    }
    app.provider.script([Step::fault(Fault::BadRequest)]).unwrap();
    for _ in 0..3 {
        app.submit("mine").await;
    }
    let client = app.client_with(&other);
    let submission = Submission { prompt: Some("theirs".into()), ..Submission::default() };
    let cancelled = client.submit(&submission).await.unwrap();
    client.submit(&submission).await.unwrap();
    becomes(&app, mine, [3, 0, 0, 0]).await;
    becomes(&app, theirs, [2, 0, 0, 0]).await;
    becomes(&app, None, [5, 0, 0, 0]).await;

    client.cancel(cancelled).await.unwrap();
    let worker = app.start_worker().await;
    app.workers.push(worker);
    // One of the four met the fault.
    becomes(&app, None, [0, 0, 1, 3]).await;
    let [a, b] = [counts(&app, mine).await, counts(&app, theirs).await];
    let sum = |name: &str| a["queue"][name].as_i64().unwrap() + b["queue"][name].as_i64().unwrap();
    assert_eq!(["queued", "running", "failed", "done"].map(sum), [0, 0, 1, 3]);
    assert_eq!(a["queue"]["done"].as_i64().unwrap() + a["queue"]["failed"].as_i64().unwrap(), 3);
}

#[tokio::test]
async fn who_shows_no_key_sees_nothing_unless_the_operator_says_so() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    refused("no key", status(&app, None).await, 401, "unauthorized").await;
    refused("junk", status(&app, Some("junk")).await, 401, "unauthorized").await;
    let (_, writer) = app.key_with(&[Scope::JobsWrite]).await;
    refused("no scope", status(&app, Some(&writer)).await, 403, "forbidden_scope").await;
    let (_, reader) = app.key_with(&[Scope::JobsRead]).await;
    becomes(&app, Some(&reader), [0, 0, 0, 0]).await;

    let open = Tune { settings: vec![("PUBLIC_STATUS", "true".into())], ..Tune::default() };
    let open = TestApp::start(BINARY, open).await;
    becomes(&open, None, [0, 0, 0, 0]).await;
    // A key that is shown must still be a good one.
    refused("junk", status(&open, Some("junk")).await, 401, "unauthorized").await;
}

#[tokio::test]
async fn health_tells_the_time() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let reply = get(&format!("{}/api/health", app.api.url()), None).await;
    assert_eq!(reply.status(), StatusCode::OK);
    let health: Value = reply.json().await.unwrap();
    assert_eq!(health["ok"], true);
    assert_eq!(health.as_object().unwrap().len(), 2);
    #[expect(clippy::disallowed_methods, reason = "a client's clock")]
    let off = Utc::now().timestamp_millis() - health["ts"].as_i64().unwrap();
    assert!((0..10_000).contains(&off), "off by {off} ms");
}

/// The value of one series, as written; `None`: it is not there.
async fn series(process: &Process, series: &str) -> Option<String> {
    let page = get(&format!("{}/metrics", process.url()), None).await.text().await.unwrap();
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).map(str::to_owned)
}

#[tokio::test]
async fn a_worker_shows_what_waits_and_that_nothing_was_amiss() {
    let app = TestApp::start(BINARY, Tune { workers: 1, ..Tune::default() }).await;
    let worker = &app.workers[0];
    let queues = ["generation.create", "generation.probe", "webhook.delivery", "billing.credit_grant"];
    for queue in queues {
        for state in ["queued", "running"] {
            let name = format!("tollgate_queue_tasks{{queue=\"{queue}\",state=\"{state}\"}}");
            eventually(&name, Duration::from_secs(5), || async {
                series(worker, &name).await.filter(|tasks| tasks == "0")
            })
            .await;
        }
    }
    for what in ["dead_workers", "requeued", "poisoned", "expired", "orphans", "lost_wakeups"] {
        let name = format!("tollgate_swept_total{{what=\"{what}\"}}");
        assert_eq!(series(worker, &name).await.as_deref(), Some("0"), "{name}");
    }
    assert_eq!(series(worker, "tollgate_jobs_removed_total").await.as_deref(), Some("0"));
    for reason in ["account_queue_full", "queue_full"] {
        let name = format!("tollgate_submissions_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(series(&app.api, &name).await.as_deref(), Some("0"), "{name}");
    }

    let later = sqlx::query_scalar("SELECT clock_timestamp() + interval '1 hour'");
    let later = later.fetch_one(&app.owner).await.unwrap();
    app.submit_with("later", Submission { scheduled_at: Some(later), ..Submission::default() }).await;
    let name = "tollgate_queue_tasks{queue=\"generation.create\",state=\"queued\"}";
    eventually("it is counted", Duration::from_secs(20), || async {
        series(worker, name).await.filter(|tasks| tasks == "1")
    })
    .await;
}
