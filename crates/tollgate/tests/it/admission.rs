//! Admission control: a full queue refuses, says which limit it met, and stores nothing.

use std::path::Path;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use tokio::task::JoinSet;
use tollgate_domain::Role;
use tollgate_model::submission::Submission;
use tollgate_outbound::{ApiError, TollgateClient};
use tollgate_testkit::{Process, TestApp, Tune, eventually};
use uuid::Uuid;

use crate::watched::{SUBMIT, refused};

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

fn limits(per_account: u32, overall: u32) -> Tune {
    let settings =
        vec![("MAX_QUEUED_PER_ACCOUNT", per_account.to_string()), ("MAX_QUEUED", overall.to_string())];
    Tune { settings, ..Tune::default() }
}

/// The job's id, or the detail of the refusal.
async fn submit(client: &TollgateClient) -> Result<Uuid, String> {
    let submission = Submission { prompt: Some("one more".into()), ..Submission::default() };
    client.submit(&submission).await.map_err(|error| match error {
        ApiError::Refused { status: 429, code, detail, .. } if code == "queue_full" => detail,
        error => panic!("neither accepted nor 429: {error}"),
    })
}

/// Rows there are of what a submission stores.
async fn stored(app: &TestApp) -> [i64; 3] {
    let mut rows = [0; 3];
    for (rows, table) in rows.iter_mut().zip(["app.jobs", "app.job_events", "queue.tasks"]) {
        *rows = app.number(&format!("SELECT count(*) FROM {table}")).await;
    }
    rows
}

#[expect(clippy::disallowed_methods, reason = "a client's clock")]
fn in_an_hour() -> Submission {
    Submission { scheduled_at: Some(Utc::now() + TimeDelta::hours(1)), ..Submission::default() }
}

#[tokio::test]
async fn an_account_whose_queue_is_full_is_refused_and_no_other() {
    let app = TestApp::start(BINARY, limits(5, 1000)).await;
    // Those of the future wait as well.
    let scheduled = app.submit_with("later", in_an_hour()).await;
    for _ in 0..4 {
        app.submit("now").await;
    }
    for _ in 0..10 {
        let detail = submit(&app.client()).await.unwrap_err();
        assert!(detail.contains("this account's queue is full: 5 jobs may wait"), "{detail}");
    }
    assert_eq!(stored(&app).await, [5, 5, 5]);
    assert_eq!(app.api.metric("tollgate_submissions_refused_total").await.to_string(), "10");

    let (_, other) = app.open_account().await;
    submit(&app.client_with(&other)).await.unwrap();

    // As soon as one waits no more, another may.
    app.client().cancel(scheduled).await.unwrap();
    submit(&app.client()).await.unwrap();
    submit(&app.client()).await.unwrap_err();
    app.assert_consistent().await;
}

#[tokio::test]
async fn the_refusal_is_a_whole_problem_and_says_when_to_return() {
    let app = TestApp::start(BINARY, limits(0, 1000)).await;
    let request = reqwest::Client::new().post(format!("{}{SUBMIT}", app.api.url())).bearer_auth(&app.key);
    let reply = request.json(&serde_json::json!({"prompt": "no room"})).send().await.unwrap();
    let wait: u32 = reply.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    refused("a full queue", reply, 429, "queue_full").await;
    // What cannot be accepted anyway is told so first.
    let wrong = Submission { prompt: Some("x".into()), priority: Some(11), ..Submission::default() };
    let wrong = app.client().submit(&wrong).await.unwrap_err();
    assert!(matches!(wrong, ApiError::Refused { status: 400, .. }), "{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_accounts_together_are_never_let_in_beyond_the_limit() {
    let app = TestApp::start(BINARY, limits(1000, 20)).await;
    let (_, other) = app.open_account().await;
    let mut submissions = JoinSet::new();
    for n in 0..60 {
        let client = app.client_with(if n % 2 == 0 { &app.key } else { &other });
        submissions.spawn(async move { submit(&client).await });
    }
    let answers = submissions.join_all().await;
    let details: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(details.len() >= 40, "only {} were refused", details.len());
    for detail in details {
        assert!(detail.contains("jobs of all accounts"), "{detail}");
        assert!(!detail.contains("20"), "one account learns of the others: {detail}");
    }
    // What was under way during a look may have been counted twice, for a moment; one by one they fill what is left.
    for _ in stored(&app).await[0]..20 {
        eventually("there is room", Duration::from_secs(5), || async { submit(&app.client()).await.ok() })
            .await;
    }
    submit(&app.client()).await.unwrap_err();
    assert_eq!(stored(&app).await, [20, 20, 20]);

    // Room that others made is seen, though nobody told this process.
    for client in [app.client(), app.client_with(&other)] {
        if let Some(job) = client.jobs(None, 1, None).await.unwrap().data.first() {
            client.cancel(job.id).await.unwrap();
            break;
        }
    }
    eventually("there is room again", Duration::from_secs(5), || async { submit(&app.client()).await.ok() })
        .await;
    submit(&app.client()).await.unwrap_err();
}

#[tokio::test]
async fn a_process_learns_what_others_let_in() {
    let app = TestApp::start(BINARY, limits(1000, 5)).await;
    let environment = [
        ("DATABASE_URL".to_owned(), app.db.role_url(Role::Api)),
        ("LOG_LEVEL".to_owned(), "warn".to_owned()),
        ("RATE_LIMIT_DEFAULT".to_owned(), "off".to_owned()),
        ("MAX_QUEUED".to_owned(), "5".to_owned()),
    ];
    let second =
        Process::start(Path::new(BINARY), &["--json", "api", "--listen", "127.0.0.1:0"], &environment).await;
    let client = TollgateClient::new(&second.url(), app.key.clone().into()).unwrap();
    // It has looked when nothing waited yet.
    submit(&client).await.unwrap();
    for _ in 0..4 {
        app.submit("through the first").await;
    }
    submit(&app.client()).await.unwrap_err();
    // What it knows is a second old at most, and by then it has let in what it had room for.
    eventually("the second knows", Duration::from_secs(10), || async { submit(&client).await.err() }).await;
    let [jobs, ..] = stored(&app).await;
    assert!((5..10).contains(&jobs), "{jobs} jobs wait");
}
