//! Workers of different settings and versions side by side, as during any rolling deployment.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use tollgate_model::job::JobStatus;
use tollgate_sim::{Behaviour, Step};
use tollgate_testkit::{TestApp, Tune};

const TOLLGATE: &str = env!("CARGO_BIN_EXE_tollgate");

#[tokio::test]
async fn a_job_that_this_version_cannot_read_fails_alone() {
    let app = TestApp::start(TOLLGATE, Tune { workers: 0, ..Tune::default() }).await;
    let mut jobs = Vec::new();
    for number in 0..5 {
        jobs.push(app.submit(&format!("number {number}")).await);
    }
    let newer = format!(
        "UPDATE app.jobs SET request = jsonb_set(request, '{{endpoint}}', '\"telepathy\"'), max_attempts = 1 WHERE id = '{}'",
        jobs[2]
    );
    let tasks = format!("UPDATE queue.tasks SET max_attempts = 1 WHERE id = '{}'", jobs[2]);
    for sql in [newer, tasks] {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&app.owner).await.unwrap();
    }
    let _worker = app.start_worker().await;
    for (number, id) in jobs.into_iter().enumerate() {
        let job = app.ended(id).await;
        if number == 2 {
            assert_eq!(job.status, JobStatus::Failed);
            assert!(job.error.unwrap().message.contains("cannot read"));
        } else {
            assert_eq!(job.status, JobStatus::Succeeded);
        }
    }
}

/// A worker is given up by the timeout it signed in with, not by that of whoever sweeps.
#[tokio::test]
async fn an_impatient_worker_does_not_give_up_a_patient_one() {
    let mut app = TestApp::start(TOLLGATE, Tune { workers: 0, ..Tune::default() }).await;
    app.set("VISIBILITY_TIMEOUT", "30s");
    let _patient = app.start_worker().await;
    app.provider.script([Step::ok().latency_ms(4000)]).unwrap();
    let id = app.submit("take your time").await;
    app.job_when("runs", id, |job| job.status == JobStatus::Running).await;
    app.set("VISIBILITY_TIMEOUT", "600ms");
    let _impatient = app.start_worker().await;
    let job = app.ended(id).await;
    assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1));
    assert_eq!(app.provider.arrivals_of(&id.to_string()), 1, "the job was taken from a worker that lived");
}

/// A process that is frozen in mid-transaction must lose its locks, and nobody may wait for them for ever.
#[tokio::test]
async fn every_session_has_its_limits() {
    let app = TestApp::start(TOLLGATE, Tune::worker(&[]).provider(Behaviour::default())).await;
    // What a session's start-up options set cannot be seen from another one. What they do can: the worker's own
    // connection waits for a lock that we hold, and gives up by itself.
    let mut blocker = app.owner.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE queue.tasks IN ACCESS EXCLUSIVE MODE").execute(&mut *blocker).await.unwrap();
    tokio::time::sleep(Duration::from_secs(7)).await;
    let longest: Option<f64> = sqlx::query_scalar(
        "SELECT max(extract(epoch FROM now() - query_start))::float8 FROM pg_stat_activity
         WHERE application_name = 'tollgate app_worker' AND wait_event_type = 'Lock'",
    )
    .fetch_one(&app.owner)
    .await
    .unwrap();
    assert!(longest.unwrap_or(0.0) < 6.0, "a session has waited for a lock for {longest:?} s");
    blocker.rollback().await.unwrap();
    let id = app.submit("after the lock").await;
    assert_eq!(app.ended(id).await.status, JobStatus::Succeeded);
}
