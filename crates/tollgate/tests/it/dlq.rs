//! Dead letters: what died is listed, shown, redriven and purged, by the shell and by the API, and each death is made
//! known.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tollgate_model::job::JobStatus;
use tollgate_model::submission::Submission;
use tollgate_sim::{Fault, Step};
use tollgate_testkit::{TestApp, eventually};
use uuid::Uuid;

use crate::operators::{BINARY, NO_POLLING, Operator, command, other_letters, tune};

/// Jobs that fail at once, and then no more.
async fn failed_jobs(app: &TestApp, jobs: u32, fault: Fault) -> Vec<Uuid> {
    app.provider.script([Step::fault(fault).times(jobs)]).unwrap();
    // What would be tried again has one attempt.
    let max_attempts = (fault == Fault::RateLimit).then_some(1);
    let wishes = Submission { max_attempts, ..Submission::default() };
    let mut ids = Vec::new();
    for _ in 0..jobs {
        ids.push(app.submit_with("in vain", wishes.clone()).await);
    }
    for &id in &ids {
        assert_eq!(app.ended(id).await.status, JobStatus::Failed);
    }
    ids
}

fn did(matched: u64, redriven: u64, skipped: u64) -> Value {
    json!({ "matched": matched, "redriven": redriven, "skipped": skipped, "more": false })
}

#[tokio::test]
async fn a_redriven_job_begins_anew_and_succeeds_once_the_provider_is_mended() {
    let app = TestApp::start(BINARY, tune(1, &[NO_POLLING])).await;
    let operator = Operator::of(&app);
    for by_api in [false, true] {
        let id = failed_jobs(&app, 1, Fault::BadRequest).await[0];
        let (code, shown, _) = command(&app, &format!("dlq show {id}")).await;
        assert_eq!((code, &shown), (0, &operator.get(&format!("/internal/dlq/{id}")).await));
        assert_eq!(
            (&shown["id"], &shown["account_id"], &shown["queue"], &shown["type"], &shown["reason"]["code"]),
            (
                &json!(id),
                &json!(app.account),
                &json!("generation.create"),
                &json!("text"),
                &json!("BAD_REQUEST")
            )
        );
        assert_eq!(
            (&shown["attempts"], &shown["max_attempts"], &shown["priority"]),
            (&json!(1), &json!(5), &json!(5))
        );
        assert!(!shown["reason"]["message"].as_str().unwrap().is_empty());
        let (_, list, _) = command(&app, "dlq list").await;
        assert_eq!(list, json!({ "data": [shown], "next_cursor": null }));
        assert_eq!(operator.get("/internal/dlq").await, list);

        // The worker is idle, and would not look by itself for a minute.
        let done = if by_api {
            operator.post("/internal/dlq/redrive", &json!({ "ids": [id] })).await
        } else {
            command(&app, &format!("dlq redrive {id}")).await.1
        };
        assert_eq!(done, did(1, 1, 0));
        let job = tokio::time::timeout(Duration::from_secs(30), app.ended(id)).await.unwrap();
        assert_eq!((job.status, job.attempts, job.error), (JobStatus::Succeeded, 1, None));
        assert!(job.finished_at.is_some() && job.scheduled_at > job.created_at);
        assert_eq!(
            app.history(id).await,
            ["queued", "started", "failed", "redriven", "started", "completed"]
        );
        assert_eq!(app.dead_letter(id).await, None);
        app.assert_consistent().await;
    }
    let queues = operator.get("/internal/queues").await;
    let queue = queues["data"]
        .as_array()
        .unwrap()
        .iter()
        .find(|queue| queue["queue"] == "generation.create")
        .unwrap();
    assert_eq!(
        (&queue["queued"], &queue["done"], &queue["failed"]),
        (&json!(0), &json!(2), &json!(0)),
        "{queue}"
    );
}

#[tokio::test]
async fn a_redriven_task_is_as_new_and_may_die_again() {
    let app = TestApp::start(BINARY, tune(1, &[("GENERATION_JOB_TTL", "7m")])).await;
    let id = failed_jobs(&app, 1, Fault::BadRequest).await[0];
    let mut app = app;
    app.workers.remove(0).terminate().await;
    assert_eq!(command(&app, "dlq redrive --code BAD_REQUEST").await.1, did(1, 1, 0));
    let as_new = format!(
        "SELECT count(*) FROM queue.tasks WHERE id = '{id}' AND state = 'ready' AND attempts = 0 AND lost = 0
         AND max_attempts = 5 AND priority = 5 AND rank = 10 AND expires_at - run_at = interval '7 minutes'
         AND run_at BETWEEN now() - interval '1 minute' AND now()"
    );
    assert_eq!(app.number(&as_new).await, 1);
    let job = app.client().job(id).await.unwrap();
    assert_eq!((job.status, job.attempts, job.error, job.finished_at), (JobStatus::Queued, 0, None, None));
    app.assert_consistent().await;

    app.provider.script([Step::fault(Fault::BadRequest)]).unwrap();
    let worker = app.start_worker().await;
    assert_eq!(app.ended(id).await.status, JobStatus::Failed);
    assert_eq!(app.dead_letter(id).await, Some(("BAD_REQUEST".to_owned(), 1)));
    assert_eq!(app.history(id).await, ["queued", "started", "failed", "redriven", "started", "failed"]);
    app.assert_consistent().await;
    // It is cancelled like any other.
    worker.terminate().await;
    assert_eq!(command(&app, "dlq redrive --all").await.1, did(1, 1, 0));
    assert_eq!(app.client().cancel(id).await.unwrap().status, JobStatus::Cancelled);
    app.assert_consistent().await;
}

#[tokio::test]
async fn a_filter_redrives_what_it_lets_through_and_a_dry_run_only_counts() {
    let app = TestApp::start(BINARY, tune(1, &[])).await;
    let operator = Operator::of(&app);
    let bad = failed_jobs(&app, 3, Fault::BadRequest).await;
    let poor = failed_jobs(&app, 2, Fault::RateLimit).await;
    for (filter, found) in [
        (json!({ "code": "BAD_REQUEST" }), 3),
        (json!({ "code": "NONE" }), 0),
        (json!({ "queue": "generation.create", "code": "RATE_LIMIT" }), 2),
        (json!({ "queue": "webhook.delivery" }), 0),
        (json!({ "account_id": app.account }), 5),
        (json!({ "account_id": Uuid::nil() }), 0),
        (json!({ "until": "2020-01-01T00:00:00Z" }), 0),
        (json!({ "since": "2020-01-01T00:00:00Z" }), 5),
        (json!({ "ids": [bad[0], poor[0], Uuid::nil()] }), 2),
        (json!({ "all": true }), 5),
    ] {
        let mut asked = filter.clone();
        asked["dry_run"] = json!(true);
        assert_eq!(operator.post("/internal/dlq/redrive", &asked).await, did(found, 0, 0), "{filter}");
        let purged = operator.post("/internal/dlq/purge", &asked).await;
        assert_eq!(purged, json!({ "matched": found, "purged": 0, "more": false }), "{filter}");
    }
    let (_, dry, _) = command(&app, "dlq redrive --code BAD_REQUEST --dry-run").await;
    assert_eq!(dry, did(3, 0, 0));
    let (_, dry, _) = command(&app, &format!("dlq purge --dry-run {} {}", bad[0], poor[0])).await;
    assert_eq!(dry, json!({ "matched": 2, "purged": 0, "more": false }));
    assert_eq!(app.number("SELECT count(*) FROM queue.dead_letters").await, 5, "a dry run did something");

    assert_eq!(operator.post("/internal/dlq/redrive", &json!({ "code": "BAD_REQUEST" })).await, did(3, 3, 0));
    for id in bad {
        assert_eq!(app.ended(id).await.status, JobStatus::Succeeded);
    }
    let unknown = Uuid::from_u128(7);
    let both = json!({ "ids": [poor[0], unknown, poor[0]] });
    assert_eq!(operator.post("/internal/dlq/redrive", &both).await, did(1, 1, 1));
    assert_eq!(app.ended(poor[0]).await.status, JobStatus::Succeeded);
    let (code, done, said) = command(&app, &format!("dlq redrive {} {unknown}", Uuid::from_u128(8))).await;
    assert_eq!((code, done), (1, did(0, 0, 2)));
    assert!(said.contains("nothing was redriven") && said.contains("tollgate dlq list"), "{said}");
    app.assert_consistent().await;
}

#[tokio::test]
async fn what_is_purged_is_gone_and_its_job_stays_failed() {
    let app = TestApp::start(BINARY, tune(1, &[])).await;
    let operator = Operator::of(&app);
    let jobs = failed_jobs(&app, 4, Fault::BadRequest).await;
    let purged = |found: u64| json!({ "matched": found, "purged": found, "more": false });
    assert_eq!(operator.post("/internal/dlq/purge", &json!({ "ids": [jobs[0]] })).await, purged(1));
    assert_eq!(command(&app, &format!("dlq purge {} {}", jobs[1], Uuid::nil())).await.1, purged(1));
    assert_eq!(
        operator.post("/internal/dlq/purge", &json!({ "queue": "generation.create.dlq" })).await,
        purged(2)
    );
    assert_eq!(operator.post("/internal/dlq/purge", &json!({ "all": true })).await, purged(0));
    assert_eq!(operator.get("/internal/dlq").await, json!({ "data": [], "next_cursor": null }));
    for id in jobs {
        assert_eq!(app.client().job(id).await.unwrap().status, JobStatus::Failed);
        for line in ["show", "purge", "redrive"] {
            let (code, out, said) = command(&app, &format!("dlq {line} {id}")).await;
            assert_eq!((code, out), (1, Value::Null), "{line}");
            assert!(said.contains("no such dead letter; `tollgate dlq list`"), "{line}: {said}");
        }
    }
    app.assert_consistent_but_for_purged().await;
}

#[tokio::test]
async fn a_letter_whose_job_is_gone_or_not_failed_is_skipped_and_stays() {
    let app = TestApp::start(BINARY, tune(1, &[])).await;
    let jobs = failed_jobs(&app, 3, Fault::BadRequest).await;
    let [fine, cancelled, gone] = jobs[..] else { panic!("{jobs:?}") };
    app.change(&format!("UPDATE app.jobs SET status = 'cancelled' WHERE id = '{cancelled}'")).await;
    app.change(&format!(
        "DELETE FROM app.job_events WHERE job_id = '{gone}'; DELETE FROM app.jobs WHERE id = '{gone}'"
    ))
    .await;
    assert_eq!(command(&app, "dlq redrive --all").await.1, did(3, 1, 2));
    assert_eq!(app.ended(fine).await.status, JobStatus::Succeeded);
    for id in [cancelled, gone] {
        assert!(app.dead_letter(id).await.is_some(), "its letter is gone");
        let (code, done, said) = command(&app, &format!("dlq redrive {id}")).await;
        assert_eq!((code, done), (1, did(1, 0, 1)));
        assert!(said.contains("not failed any more"), "{said}");
    }
    assert_eq!(app.history(cancelled).await, ["queued", "started", "failed"]);
    assert_eq!(app.number("SELECT count(*) FROM queue.tasks").await, 0);
}

#[tokio::test]
async fn however_many_redrive_at_once_each_letter_becomes_a_task_once() {
    let mut app = TestApp::start(BINARY, tune(1, &[("Q_GEN_CREATE_CONCURRENCY", "20")])).await;
    let jobs = failed_jobs(&app, 60, Fault::BadRequest).await;
    app.workers.remove(0).terminate().await;
    let operator = Operator::of(&app);
    // All of them in one, and each by itself, from both ends.
    let one_by_one = async |jobs: Vec<Uuid>| {
        let mut redriven = 0;
        for id in jobs {
            let asked = json!({ "ids": [id, Uuid::nil()] });
            redriven += operator.post("/internal/dlq/redrive", &asked).await["redriven"].as_u64().unwrap();
        }
        redriven
    };
    let at_once = async |jobs: &[Uuid]| {
        operator.post("/internal/dlq/redrive", &json!({ "ids": jobs })).await["redriven"].as_u64().unwrap()
    };
    let shell = async || command(&app, "dlq redrive --all").await.1["redriven"].as_u64().unwrap();
    let (a, b, c, d) = tokio::join!(
        one_by_one(jobs.clone()),
        one_by_one(jobs.iter().rev().copied().collect()),
        at_once(&jobs[20..40]),
        shell(),
    );
    assert_eq!(a + b + c + d, 60, "{a} + {b} + {c} + {d}");
    assert!(
        [a, b, c, d].iter().filter(|share| **share > 0).count() > 1,
        "they have not met: {a} {b} {c} {d}"
    );
    assert_eq!(app.number("SELECT count(*) FROM queue.tasks").await, 60);
    assert_eq!(app.number("SELECT count(*) FROM app.job_events WHERE type = 'job.redriven'").await, 60);
    app.assert_consistent().await;
    let _worker = app.start_worker().await;
    for id in jobs {
        let job = app.ended(id).await;
        assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1));
    }
    app.assert_consistent().await;
}

/// While they are redriven they run and die again: that must not go round for ever.
#[tokio::test]
async fn what_dies_again_meanwhile_is_not_redriven_again() {
    let app = TestApp::start(BINARY, tune(1, &[("Q_GEN_CREATE_CONCURRENCY", "20")])).await;
    let jobs = failed_jobs(&app, 20, Fault::BadRequest).await;
    app.provider.script([Step::fault(Fault::BadRequest).times(1000)]).unwrap();
    // Younger letters, of jobs that are gone, keep the redrive busy until the first have died again.
    let of_no_job = r#"INSERT INTO queue.dead_letters (account_id, id, queue, type, payload, priority, attempts, max_attempts,
                                                       reason, created_at)
        SELECT md5('nobody')::uuid, md5('letter' || n)::uuid, 'generation.create', 'text', '{}', 5, 1, 5,
               '{"code": "GONE", "message": "m"}', now()
        FROM generate_series(1, 10000) AS n"#;
    assert_eq!(app.change(of_no_job).await, 10_000);
    assert_eq!(command(&app, "dlq redrive --all").await.1, did(10_020, 20, 10_000));
    for id in jobs {
        eventually("it has died again", Duration::from_secs(30), || async {
            (app.history(id).await == ["queued", "started", "failed", "redriven", "started", "failed"])
                .then_some(())
        })
        .await;
    }
    app.assert_consistent().await;
}

#[tokio::test]
async fn a_long_list_takes_several_transactions_and_says_how_far_it_is() {
    let app = TestApp::start(BINARY, tune(0, &[("WEBHOOK_TTL", "11m")])).await;
    other_letters(&app, 3600).await;
    let (code, done, said) = command(&app, "dlq redrive --queue webhook.delivery").await;
    assert_eq!((code, done), (0, did(1200, 1200, 0)));
    assert_eq!(said, "1000 redriven, 0 skipped …\n1200 redriven, 0 skipped …\n");
    let of_its_queue = "SELECT count(*) FROM queue.tasks WHERE queue = 'webhook.delivery' AND state = 'ready'
                        AND expires_at - run_at = interval '11 minutes'";
    assert_eq!(app.number(of_its_queue).await, 1200);
    let transactions = "SELECT count(DISTINCT xmin::text) FROM queue.tasks";
    assert_eq!(app.number(transactions).await, 3);
    // In the order of their deaths, account by account within each batch.
    let out_of_order = "SELECT count(*) FROM (SELECT account_id, id, position,
            lag(position) OVER (PARTITION BY account_id ORDER BY n / 5, id) AS before
        FROM queue.tasks JOIN generate_series(1, 3600) AS n ON md5('letter' || n)::uuid = id) t WHERE position < before";
    assert_eq!(app.number(out_of_order).await, 0);
    let (_, done, said) = command(&app, "dlq purge --all").await;
    assert_eq!(done, json!({ "matched": 2400, "purged": 2400, "more": false }));
    assert!(said.ends_with("2400 purged …\n"), "{said}");
    assert_eq!(app.number("SELECT count(*) FROM queue.dead_letters").await, 0);
}

/// A request ends before its time is up, and says that there is more.
#[tokio::test]
async fn a_list_too_long_for_a_request_is_gone_on_with_by_the_next() {
    let app = TestApp::start(BINARY, tune(0, &[("HTTP_TIMEOUT", "1s")])).await;
    other_letters(&app, 40_000).await;
    let operator = Operator::of(&app);
    let mut sum = 0;
    let mut requests = 0;
    loop {
        let done = operator.post("/internal/dlq/redrive", &json!({ "all": true })).await;
        sum += done["redriven"].as_u64().unwrap();
        requests += 1;
        if done["more"] == false {
            break;
        }
    }
    assert_eq!(sum, 40_000);
    assert!(requests > 1, "it was not too long: no test of anything");
    assert_eq!(app.number("SELECT count(*) FROM queue.tasks").await, 40_000);
}

/// The deaths that a log tells of: each job with its reason.
fn deaths(log: &Path) -> BTreeSet<(String, String)> {
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let deaths = lines.filter(|line| line["message"] == "queue.deadletter").map(|line| {
        assert_eq!(line["queue"], "generation.create", "{line}");
        assert!(line["account_id"].is_string(), "{line}");
        (line["jobId"].as_str().unwrap().to_owned(), line["reason"].as_str().unwrap().to_owned())
    });
    deaths.collect()
}

#[tokio::test]
async fn each_death_is_made_known_whoever_finds_it() {
    let log = NamedTempFile::new().unwrap();
    let settings = [("VISIBILITY_TIMEOUT", "600ms"), ("Q_GEN_CREATE_CONCURRENCY", "1")];
    let mut tune = tune(1, &settings);
    tune.log = Some(log.path().to_owned());
    let mut app = TestApp::start(BINARY, tune).await;
    let refused = failed_jobs(&app, 1, Fault::BadRequest).await[0];
    app.provider.script([Step::fault(Fault::Hang)]).unwrap();
    let poison = app.submit("kills its worker").await;
    app.job_when("running", poison, |job| job.status == JobStatus::Running).await;
    let late = app.submit("too late").await;
    app.change(&format!("UPDATE queue.tasks SET lost = 9 WHERE id = '{poison}'")).await;
    app.change(&format!("UPDATE queue.tasks SET expires_at = now() WHERE id = '{late}'")).await;
    app.workers.remove(0).kill().await;
    let worker = app.start_worker().await;
    for (id, code) in [(poison, "WORKER_LOST"), (late, "EXPIRED")] {
        assert_eq!(app.ended(id).await.error.unwrap().code, code);
    }
    let expected: BTreeSet<_> = [(refused, "BAD_REQUEST"), (poison, "WORKER_LOST"), (late, "EXPIRED")]
        .map(|(id, code)| (id.to_string(), code.to_owned()))
        .into();
    // A death is told of after its commit, so a moment later.
    eventually("three deaths are in the log", Duration::from_secs(5), || async {
        (deaths(log.path()).len() == 3).then_some(())
    })
    .await;
    assert_eq!(deaths(log.path()), expected);
    for reason in ["WORKER_LOST", "EXPIRED"] {
        let labels = format!(r#"tollgate_dead_letters_total{{queue="generation.create",reason="{reason}"}}"#);
        let page = reqwest::get(format!("{}/metrics", worker.url())).await.unwrap().text().await.unwrap();
        assert!(page.contains(&format!("{labels} 1\n")), "{labels}: {page}");
    }
    app.assert_consistent().await;
}
