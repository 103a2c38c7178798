//! A run, from the claim to its end: what each answer of the provider leads to, and what is held meanwhile.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use tollgate_model::job::{Job, JobStatus};
use tollgate_model::submission::Submission;
use tollgate_sim::{Behaviour, Fault, Faults, RetryAfter, Step};
use tollgate_testkit::{TestApp, Tune, eventually};
use uuid::Uuid;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

/// A poll that no test waits for: whatever happens in time happened because somebody said so.
const NO_POLLING: (&str, &str) = ("QUEUE_POLL_INTERVAL", "30s");
/// Whose faults are not to stop the others.
const NO_BREAKER: (&str, &str) = ("GEN_BREAKER_ENABLED", "false");
const QUICK_RETRIES: (&str, &str) = ("GENERATION_RETRY_DELAYS", "50ms,50ms");

async fn start(settings: &[(&'static str, &str)]) -> TestApp {
    TestApp::start(BINARY, Tune::worker(settings)).await
}

fn error_code(job: &Job) -> &str {
    job.error.as_ref().map_or("", |error| &error.code)
}

/// When the job's events of this kind happened, by the database's clock.
async fn times(app: &TestApp, id: Uuid, kind: &str) -> Vec<DateTime<Utc>> {
    let sql = "SELECT created_at FROM app.job_events WHERE job_id = $1 AND type = $2 ORDER BY seq";
    let asked = sqlx::query_scalar(sql).bind(id).bind(kind).fetch_all(&app.owner).await;
    asked.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test]
async fn a_job_brings_its_result_at_the_first_attempt() {
    let app = start(&[]).await;
    app.provider.script([Step::ok().matching("bridge").text("a toll")]).unwrap();
    let wishes = Submission { metadata: json!({"n": 1}).as_object().cloned(), ..Submission::default() };
    let job = app.ended(app.submit_with("what does a bridge ask for?", wishes).await).await;
    assert_eq!((job.status, job.attempts, job.error), (JobStatus::Succeeded, 1, None));
    assert_eq!(job.metadata["n"], 1);
    let output = job.output.unwrap();
    assert_eq!((output.text.as_str(), output.provider.as_str()), ("a toll", "openai"));
    assert!(output.usage.total_tokens > 0, "{output:?}");
    assert!(job.created_at <= job.started_at.unwrap() && job.started_at <= job.finished_at);
    assert_eq!(app.history(job.id).await, ["queued", "started", "completed"]);
    assert_eq!(app.provider.arrivals_of(&job.id.to_string()), 1);
    app.assert_consistent().await;
}

#[tokio::test]
async fn each_passing_fault_costs_one_attempt_and_is_retried_by_the_queue_alone() {
    let app = start(&[QUICK_RETRIES, ("Q_GEN_CREATE_CONCURRENCY", "10"), NO_BREAKER]).await;
    let faults = [
        (Fault::RateLimit, "RATE_LIMIT"),
        (Fault::ServerError, "SERVER_ERROR"),
        (Fault::Reset, "SERVER_ERROR"),
        (Fault::Malformed, "SERVER_ERROR"),
        (Fault::Truncated, "SERVER_ERROR"),
        (Fault::Hang, "TIMEOUT"),
        (Fault::SilentBody, "TIMEOUT"),
    ];
    let once = |fault: Fault| Step::fault(fault).matching(format!("meets {fault}.")).times(1);
    app.provider.script(faults.map(|(fault, _)| once(fault))).unwrap();
    // One after the other: what a 429 says holds for all.
    for (fault, code) in faults {
        let wishes = Submission { timeout_ms: Some(500), ..Submission::default() };
        let id = app.submit_with(&format!("meets {fault}."), wishes).await;
        let job = app.ended(id).await;
        assert_eq!((job.status, job.attempts, job.error), (JobStatus::Succeeded, 2, None), "{fault}");
        assert_eq!(
            app.history(id).await,
            ["queued", "started", "retrying", "started", "completed"],
            "{fault}"
        );
        assert_eq!(
            app.provider.arrivals_of(&id.to_string()),
            2,
            "{fault}: a retry that the queue knows nothing of"
        );
        let why = "SELECT data -> 'error' ->> 'code' FROM app.job_events WHERE job_id = $1 AND type = 'job.retrying'";
        let why: String = sqlx::query_scalar(why).bind(id).fetch_one(&app.owner).await.unwrap();
        assert_eq!(why, code, "{fault}");
    }
    app.assert_consistent().await;
}

/// The job's own delay is 0 to 50 ms, so a wait of seconds is the provider's word kept.
#[tokio::test]
async fn retry_after_is_the_least_that_is_waited() {
    let app = start(&[QUICK_RETRIES]).await;
    // An HTTP date knows whole seconds only: "in 3 s" may mean 2.
    for (said, least) in [(RetryAfter::Seconds(2), 2), (RetryAfter::Date(3), 2)] {
        app.provider.script([Step::fault(Fault::RateLimit).retry_after(said)]).unwrap();
        let id = app.submit("patience").await;
        let job = app.ended(id).await;
        assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 2));
        let starts = times(&app, id, "job.started").await;
        let waited = starts[1] - starts[0];
        assert!(waited >= TimeDelta::seconds(least), "{said:?}: came back after {waited}");
        assert!(waited < TimeDelta::seconds(least + 4), "{said:?}: came back only after {waited}");
    }
}

#[tokio::test]
async fn a_retry_begins_when_it_is_due_not_when_somebody_looks() {
    let app = start(&[NO_POLLING, ("GENERATION_RETRY_DELAYS", "300ms")]).await;
    // Slow enough that the worker has looked for more work, found none, and gone to sleep.
    app.provider.script([Step::fault(Fault::ServerError).latency_ms(300).times(2)]).unwrap();
    let id = app.submit("twice in vain").await;
    let job = app.ended(id).await;
    assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 3));
    let starts = times(&app, id, "job.started").await;
    assert!(starts[2] - starts[0] < TimeDelta::seconds(3), "the retries waited for a poll: {starts:?}");
}

#[tokio::test]
async fn what_cannot_get_better_fails_at_once() {
    let app = start(&[QUICK_RETRIES]).await;
    for (fault, code) in [(Fault::BadRequest, "BAD_REQUEST"), (Fault::InsufficientQuota, "RATE_LIMIT")] {
        app.provider.script([Step::fault(fault).matching(fault.as_str())]).unwrap();
        let id = app.submit(fault.as_str()).await;
        let job = app.ended(id).await;
        assert_eq!((job.status, job.attempts, error_code(&job)), (JobStatus::Failed, 1, code));
        assert_eq!(app.history(id).await, ["queued", "started", "failed"]);
        assert_eq!(app.dead_letter(id).await, Some((code.to_owned(), 1)));
        assert_eq!(app.provider.arrivals_of(&id.to_string()), 1);
    }
    app.assert_consistent().await;
}

#[tokio::test]
async fn the_last_attempt_fails_the_job_with_its_error() {
    let faults = Faults { server_error: 1.0, ..Faults::default() };
    let tune = Tune::worker(&[QUICK_RETRIES]).provider(Behaviour { faults, ..Behaviour::default() });
    let app = TestApp::start(BINARY, tune).await;
    let id = app.submit_with("in vain", Submission { max_attempts: Some(3), ..Submission::default() }).await;
    let job = app.ended(id).await;
    assert_eq!((job.status, job.attempts, error_code(&job)), (JobStatus::Failed, 3, "SERVER_ERROR"));
    assert!(job.error.unwrap().message.contains("the provider answered 50"));
    let history = ["queued", "started", "retrying", "started", "retrying", "started", "failed"];
    assert_eq!(app.history(id).await, history);
    assert_eq!(app.dead_letter(id).await, Some(("SERVER_ERROR".to_owned(), 3)));
    assert_eq!(app.provider.stats().arrivals, 3);
    app.assert_consistent().await;
}

#[tokio::test]
async fn without_a_key_a_job_fails_fast() {
    let app = start(&[("OPENAI_API_KEY", "")]).await;
    let job = app.ended(app.submit("anybody there?").await).await;
    assert_eq!((job.status, job.attempts, error_code(&job)), (JobStatus::Failed, 1, "SERVER_ERROR"));
    assert!(job.error.unwrap().message.contains("OPENAI_API_KEY"));
    assert_eq!(app.provider.stats().arrivals, 0);
    app.assert_consistent().await;
}

#[tokio::test]
async fn a_job_that_nobody_took_in_its_time_expires() {
    let settings = [("GENERATION_JOB_TTL", "1s"), ("VISIBILITY_TIMEOUT", "600ms")];
    let app = TestApp::start(BINARY, Tune { workers: 0, ..Tune::worker(&settings) }).await;
    let id = app.submit("too late").await;
    eventually("the time to live is over", Duration::from_secs(5), || async {
        let over = "SELECT count(*) FROM queue.tasks WHERE expires_at <= clock_timestamp()";
        (app.number(over).await == 1).then_some(())
    })
    .await;
    // A worker that comes now must bury it, and on no account run it.
    let _worker = app.start_worker().await;
    let job = app.ended(id).await;
    assert_eq!((job.status, job.attempts, error_code(&job)), (JobStatus::Failed, 0, "EXPIRED"));
    assert_eq!(app.history(id).await, ["queued", "failed"]);
    assert_eq!(app.dead_letter(id).await, Some(("EXPIRED".to_owned(), 0)));
    assert_eq!(app.provider.stats().arrivals, 0);
    app.assert_consistent().await;
}

#[tokio::test]
async fn a_retry_that_could_not_begin_in_time_is_given_up_now() {
    let app = start(&[("GENERATION_JOB_TTL", "30s")]).await;
    let step = Step::fault(Fault::RateLimit).retry_after(RetryAfter::Seconds(600));
    app.provider.script([step]).unwrap();
    let job = app.ended(app.submit("come back in ten minutes").await).await;
    assert_eq!((job.status, job.attempts, error_code(&job)), (JobStatus::Failed, 1, "RATE_LIMIT"));
    assert!(job.finished_at.unwrap() - job.created_at < TimeDelta::seconds(10));
    app.assert_consistent().await;
}

/// Sessions of the worker that are in a transaction, or hold any lock, for longer than a statement takes. An idle worker
/// says so by one shared advisory lock of a session that does nothing else; that one is no lock on anything.
const BUSY: &str = "SELECT count(*) FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.usename = 'app_worker'
      AND (clock_timestamp() - a.xact_start > interval '500 milliseconds'
           OR EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory'
                      AND NOT (l.mode = 'ShareLock' AND l.classid = x'746f6c6c'::int::oid AND l.objid BETWEEN 1 AND 5)))";

#[tokio::test]
async fn nothing_is_locked_and_no_transaction_is_open_while_the_provider_is_called() {
    let app = start(&[("VISIBILITY_TIMEOUT", "1200ms")]).await;
    app.provider.script([Step::fault(Fault::Hang)]).unwrap();
    let id = app.submit("a long call").await;
    app.job_when("running", id, |job| job.status == JobStatus::Running).await;
    // As good as a look into pg_locks: whoever holds either row for longer than this is seen.
    let touch = format!(
        "BEGIN; SET LOCAL lock_timeout = '100ms';
         UPDATE app.jobs SET metadata = metadata WHERE id = '{id}';
         UPDATE queue.tasks SET payload = payload WHERE id = '{id}';
         COMMIT"
    );
    for _ in 0..20 {
        assert_eq!(app.number(BUSY).await, 0, "a session of the worker is busy during the call");
        assert_eq!(app.change(&touch).await, 2);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(app.provider.stats().in_flight, 1, "the call was to last all the while");

    // That the question above can be answered with "yes" at all.
    let worker = app.db.pool(&app.db.role_url(tollgate_domain::Role::Worker)).await;
    let mut held = worker.begin().await.unwrap();
    sqlx::query("SELECT FROM queue.tasks FOR UPDATE").execute(&mut *held).await.unwrap();
    eventually("the held transaction is seen", Duration::from_secs(5), || async {
        (app.number(BUSY).await == 1).then_some(())
    })
    .await;
}
