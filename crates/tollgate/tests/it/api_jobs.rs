//! Jobs, as a client of the API sees them: from the 202 to the result, by polling and live, in pages and by priority.
//!
//! JSON is read as it comes, not through our own types: a member that is missing or too many must be noticed.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tollgate_sim::{Behaviour, Fault, Step};
use tollgate_testkit::{TestApp, Tune, eventually};
use uuid::Uuid;

const JOB: &[&str] = &[
    "attempts",
    "created_at",
    "credits",
    "error",
    "finished_at",
    "id",
    "max_attempts",
    "metadata",
    "output",
    "priority",
    "scheduled_at",
    "started_at",
    "status",
    "type",
];

struct Tenant {
    app: TestApp,
    http: Client,
}

impl Tenant {
    async fn start(tune: Tune) -> Self {
        tollgate_outbound::install_crypto_provider();
        let app = TestApp::start(env!("CARGO_BIN_EXE_tollgate"), tune).await;
        Self { app, http: Client::builder().no_proxy().tls_certs_only([]).build().unwrap() }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.app.api.url())).bearer_auth(&self.app.key)
    }

    async fn get(&self, path: &str) -> Value {
        let reply = self.request(Method::GET, path).send().await.unwrap();
        assert_eq!(reply.status(), 200, "{path}");
        reply.json().await.unwrap()
    }

    async fn submit(&self, submission: Value) -> Uuid {
        let reply =
            self.request(Method::POST, "/v1/jobs/generations").json(&submission).send().await.unwrap();
        assert_eq!(reply.status(), 202, "{submission}");
        id_of(&reply.json::<Value>().await.unwrap()["job_id"])
    }

    async fn ended(&self, id: Uuid) -> Value {
        eventually("the job ends", Duration::from_mins(1), || async {
            let job = self.get(&format!("/v1/jobs/{id}")).await;
            (!job["finished_at"].is_null()).then_some(job)
        })
        .await
    }

    async fn stream(&self, id: Uuid, last: Option<&str>) -> Response {
        let request =
            self.request(Method::GET, &format!("/v1/jobs/{id}/events")).header(ACCEPT, "text/event-stream");
        last.map_or(request.try_clone().unwrap(), |last| request.header("last-event-id", last))
            .send()
            .await
            .unwrap()
    }
}

fn id_of(value: &Value) -> Uuid {
    value.as_str().unwrap().parse().unwrap()
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

/// It has these members, and no others.
fn assert_members(value: &Value, members: &[&str]) {
    let mut names: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, members, "{value}");
}

/// The events of a stream, read one by one.
struct Events {
    reply: Response,
    text: String,
}

impl Events {
    /// The next event's `id`, `event` and `data`; `None`: the stream has ended.
    async fn next(&mut self) -> Option<(String, String, Value)> {
        // One deadline for all of it: the comments that keep a connection alive must not keep the test waiting.
        tokio::time::timeout(Duration::from_secs(20), self.read()).await.expect("nothing more within 20 s")
    }

    async fn read(&mut self) -> Option<(String, String, Value)> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let event: String = self.text.drain(..end + 2).collect();
                let field = |name: &str| {
                    event
                        .lines()
                        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
                };
                let read = field("id").map(|id| {
                    (id, field("event").unwrap(), serde_json::from_str(&field("data").unwrap()).unwrap())
                });
                if read.is_some() {
                    return read;
                }
                continue; // A comment, which keeps the connection alive.
            }
            let chunk = self.reply.chunk().await.unwrap()?;
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
    }
}

#[tokio::test]
async fn a_job_goes_all_the_way() {
    let tenant = Tenant::start(Tune::worker(&[])).await;
    let reply = tenant
        .request(Method::POST, "/v1/jobs/generations")
        .json(&json!({"type": "text", "prompt": "why a tollgate?", "priority": 3, "max_attempts": 2}))
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), 202);
    assert_eq!(reply.headers()[CONTENT_TYPE], "application/json");
    let location = reply.headers()[LOCATION].to_str().unwrap().to_owned();
    let body: Value = reply.json().await.unwrap();
    assert_members(&body, &["job_id"]);
    let id = id_of(&body["job_id"]);
    assert_eq!(location, format!("/v1/jobs/{id}"));

    let job = tenant.ended(id).await;
    assert_eq!(job, tenant.get(&location).await);
    assert_members(&job, JOB);
    assert_eq!(
        [&job["id"], &job["type"], &job["status"], &job["priority"], &job["attempts"], &job["max_attempts"]],
        [&json!(id), &json!("text"), &json!("succeeded"), &json!(3), &json!(1), &json!(2)],
    );
    assert_eq!((&job["error"], &job["metadata"]), (&Value::Null, &json!({})));
    assert_members(&job["credits"], &["charged", "held"]);
    let output = &job["output"];
    assert_members(output, &["images", "latency_ms", "model", "provider", "text", "usage"]);
    assert!(output["text"].as_str().unwrap().ends_with("You asked: why a tollgate?"), "{output}");
    assert_eq!((&output["images"], &output["provider"]), (&json!([]), &json!("openai")));
    assert_eq!(output["model"], "gpt-4o-mini-simulated");
    assert!(output["latency_ms"].is_u64());
    assert_members(&output["usage"], &["completion_tokens", "prompt_tokens", "total_tokens"]);
    let tokens = |name: &str| output["usage"][name].as_u64().unwrap();
    // The simulator counts a token for every four characters.
    assert_eq!(tokens("prompt_tokens"), 4);
    assert_eq!(tokens("total_tokens"), tokens("prompt_tokens") + tokens("completion_tokens"));
    let [created, scheduled, started, finished] =
        ["created_at", "scheduled_at", "started_at", "finished_at"].map(|name| time(&job[name]));
    assert!(created == scheduled && created <= started && started <= finished, "{job}");
    assert_eq!(tenant.app.provider.stats().arrivals, 1);

    let events = tenant.get(&format!("/v1/jobs/{id}/events")).await;
    assert_members(&events, &["data", "next_cursor"]);
    assert_eq!(events["next_cursor"], Value::Null);
    for (event, (seq, kind)) in events["data"].as_array().unwrap().iter().zip([
        (1, "job.queued"),
        (2, "job.started"),
        (3, "job.completed"),
    ]) {
        assert_members(event, &["created_at", "data", "seq", "type"]);
        assert_eq!((&event["seq"], &event["type"]), (&json!(seq), &json!(kind)));
    }
    assert_eq!(events["data"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_job_looks_the_same_wherever_it_stands() {
    let tenant = Tenant::start(Tune::worker(&[])).await;
    tenant.app.provider.script([Step::fault(Fault::BadRequest).matching("refuse me")]).unwrap();
    let later: DateTime<Utc> =
        sqlx::query_scalar("SELECT now() + interval '1 hour'").fetch_one(&tenant.app.owner).await.unwrap();
    let queued = tenant.submit(json!({"prompt": "later", "scheduled_at": later})).await;
    let failed = tenant.submit(json!({"prompt": "refuse me"})).await;

    let job = tenant.get(&format!("/v1/jobs/{queued}")).await;
    assert_members(&job, JOB);
    assert_eq!(
        (&job["status"], &job["attempts"], time(&job["scheduled_at"])),
        (&json!("queued"), &json!(0), later)
    );
    for name in ["started_at", "finished_at", "error", "output"] {
        assert_eq!(job[name], Value::Null, "{name}");
    }
    let job = tenant.ended(failed).await;
    assert_members(&job, JOB);
    assert_members(&job["error"], &["code", "message"]);
    assert_eq!(
        (&job["status"], &job["error"]["code"], &job["output"]),
        (&json!("failed"), &json!("BAD_REQUEST"), &Value::Null)
    );

    let cancel = |id: Uuid| tenant.request(Method::POST, &format!("/v1/jobs/{id}/cancel")).send();
    for _ in 0..2 {
        let reply = cancel(queued).await.unwrap();
        assert_eq!(reply.status(), 200);
        let job: Value = reply.json().await.unwrap();
        assert_members(&job, JOB);
        assert_eq!(job["status"], "cancelled");
    }
    let reply = cancel(failed).await.unwrap();
    assert_eq!(reply.status(), 409);
    assert_eq!(reply.json::<Value>().await.unwrap()["code"], "job_finished");
    let kinds = tenant.get(&format!("/v1/jobs/{queued}/events")).await;
    assert_eq!(kinds["data"].as_array().unwrap().len(), 2, "the second cancel was recorded: {kinds}");
}

#[tokio::test]
async fn events_come_as_they_happen_and_the_stream_ends_with_the_job() {
    let slow = Behaviour { latency_median_ms: 1500, ..Behaviour::default() };
    let mut tenant = Tenant::start(Tune::default().provider(slow)).await;
    let id = tenant.submit(json!({"prompt": "take your time"})).await;
    let reply = tenant.stream(id, None).await;
    assert_eq!(reply.headers()[CONTENT_TYPE], "text/event-stream");
    let mut events = Events { reply, text: String::new() };
    let (seq, kind, data) = events.next().await.unwrap();
    assert_eq!(
        (&*seq, &*kind, &data["seq"], &data["type"]),
        ("1", "job.queued", &json!(1), &json!("job.queued"))
    );

    // Nobody has run it yet; what follows cannot have been there before.
    let worker = tenant.app.start_worker().await;
    tenant.app.workers.push(worker);
    let (seq, kind, _) = events.next().await.unwrap();
    assert_eq!((&*seq, &*kind), ("2", "job.started"));
    assert_eq!(tenant.get(&format!("/v1/jobs/{id}")).await["status"], "running", "the event came too late");
    let (seq, kind, _) = events.next().await.unwrap();
    assert_eq!((&*seq, &*kind), ("3", "job.completed"));
    assert!(events.next().await.is_none(), "the stream goes on");

    let mut rest = Events { reply: tenant.stream(id, Some("1")).await, text: String::new() };
    assert_eq!(rest.next().await.unwrap().0, "2");
    assert_eq!(rest.next().await.unwrap().0, "3");
    assert!(rest.next().await.is_none());
    // A browser would reconnect for ever, were it not told that there is nothing more to come.
    assert_eq!(tenant.stream(id, Some("3")).await.status(), 204);
}

#[tokio::test]
async fn events_come_in_pages() {
    let tenant = Tenant::start(Tune::worker(&[("GENERATION_RETRY_DELAYS", "10ms")])).await;
    tenant.app.provider.script([Step::fault(Fault::ServerError).times(3)]).unwrap();
    let id = tenant.submit(json!({"prompt": "stumble"})).await;
    assert_eq!(tenant.ended(id).await["status"], "succeeded");
    let (mut kinds, mut cursor) = (Vec::new(), String::new());
    let mut pages = 0;
    loop {
        let page = tenant.get(&format!("/v1/jobs/{id}/events?limit=2{cursor}")).await;
        pages += 1;
        for event in page["data"].as_array().unwrap() {
            assert_eq!(event["seq"], kinds.len() + 1, "a gap or a repetition");
            kinds.push(event["type"].as_str().unwrap().to_owned());
        }
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let attempt = ["job.started", "job.retrying"];
    let expected =
        [&["job.queued"][..], &attempt, &attempt, &attempt, &["job.started", "job.completed"]].concat();
    assert_eq!((kinds, pages), (expected.into_iter().map(str::to_owned).collect(), 5));
}

#[tokio::test]
async fn a_list_has_each_job_once_while_others_are_added() {
    let tenant = Tenant::start(Tune::default()).await;
    let mut all = Vec::new();
    for n in 0..45 {
        all.push(tenant.submit(json!({"prompt": format!("job {n}")})).await);
    }
    all.reverse();
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = tenant.get(&format!("/v1/jobs?limit=10{cursor}")).await;
        listed.extend(page["data"].as_array().unwrap().iter().map(|job| id_of(&job["id"])));
        // Newer than everything listed so far: they must not push anything over the edge of a page.
        for _ in 0..3 {
            tenant.submit(json!({"prompt": "one more"})).await;
        }
        let Some(next) = page["next_cursor"].as_str() else { break };
        assert_eq!(page["data"].as_array().unwrap().len(), 10);
        cursor = format!("&cursor={next}");
    }
    assert_eq!(listed, all, "not each job once, newest first");

    let cancelled: BTreeSet<Uuid> = all.iter().step_by(9).copied().collect();
    for id in &cancelled {
        tenant.request(Method::POST, &format!("/v1/jobs/{id}/cancel")).send().await.unwrap();
    }
    let (mut found, mut cursor) = (BTreeSet::new(), String::new());
    loop {
        let page = tenant.get(&format!("/v1/jobs?status=cancelled&limit=2{cursor}")).await;
        for job in page["data"].as_array().unwrap() {
            assert_eq!(job["status"], "cancelled");
            assert!(found.insert(id_of(&job["id"])), "twice: {job}");
        }
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(found, cancelled);
    let queued = tenant.get("/v1/jobs?status=queued&limit=100").await;
    assert_eq!(queued["data"].as_array().unwrap().len(), 45 + 5 * 3 - cancelled.len());
    let none = tenant.get("/v1/jobs?status=running").await;
    assert_eq!(none, json!({"data": [], "next_cursor": null}));
}

#[tokio::test]
async fn metadata_comes_back_unchanged() {
    let tenant = Tenant::start(Tune::default()).await;
    let metadata = json!({
        "": "an empty name",
        "snow ☃ \u{1f600} \u{202e}": "é\u{301}\t\"\\/\u{7f}\u{ffff}",
        "a.b[0]": {"c": [[], {}, [null, true]]},
        "numbers": [0, -1, 0.1, 1e-7, -1.5e15],
        "whole numbers": [9_007_199_254_740_992_u64, -9_007_199_254_740_991_i64, i64::MIN, u64::MAX],
        "long": "x".repeat(15_000),
    });
    let id = tenant.submit(json!({"prompt": "keep this", "metadata": metadata})).await;
    assert_eq!(tenant.get(&format!("/v1/jobs/{id}")).await["metadata"], metadata);
    assert_eq!(tenant.get("/v1/jobs").await["data"][0]["metadata"], metadata);
}

/// The deepest metadata that is taken must be readable in a list, where it lies deeper still.
#[tokio::test]
async fn no_metadata_is_too_deep_to_be_listed() {
    let tenant = Tenant::start(Tune::default()).await;
    for depth in (1..130).rev() {
        let nested = (0..depth).fold(json!(1), |inner, _| json!({"a": inner}));
        let submission = json!({"prompt": "deep", "metadata": nested});
        let request = tenant.request(Method::POST, "/v1/jobs/generations").json(&submission);
        if request.send().await.unwrap().status() == 202 {
            break;
        }
    }
    let listed = tenant.app.client().jobs(None, 10, None).await;
    assert_eq!(listed.expect("one job spoils the list").data.len(), 1);
}

#[tokio::test]
async fn a_scheduled_job_waits_and_is_punctual() {
    let tenant = Tenant::start(Tune::worker(&[])).await;
    let at: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp() + interval '1.5 seconds'")
        .fetch_one(&tenant.app.owner)
        .await
        .unwrap();
    let id = tenant.submit(json!({"prompt": "not yet", "scheduled_at": at})).await;
    let job = tenant.ended(id).await;
    assert_eq!(time(&job["scheduled_at"]), at);
    let late = time(&job["started_at"]) - at;
    assert!(late >= TimeDelta::zero() && late < TimeDelta::seconds(1), "started {late} after its time");
}

#[tokio::test]
async fn first_priority_first_then_first_come() {
    let mut tenant =
        Tenant::start(Tune { settings: vec![("Q_GEN_CREATE_CONCURRENCY", "1".into())], ..Tune::default() })
            .await;
    let mut jobs = Vec::new();
    for (age, priority) in [5, 10, 1, 5, 9, 1, 2].into_iter().enumerate() {
        jobs.push((priority, age, tenant.submit(json!({"prompt": "a", "priority": priority})).await));
    }
    let worker = tenant.app.start_worker().await;
    tenant.app.workers.push(worker);
    let mut started = Vec::new();
    for (_, _, id) in &jobs {
        started.push((time(&tenant.ended(*id).await["started_at"]), *id));
    }
    jobs.sort_unstable();
    started.sort_unstable();
    let ran: Vec<Uuid> = started.into_iter().map(|(_, id)| id).collect();
    let due: Vec<Uuid> = jobs.into_iter().map(|(_, _, id)| id).collect();
    assert_eq!(ran, due);
}
