//! Cancel, and what an abandoned call leaves behind: nothing.

use std::time::Duration;

use tollgate_model::job::JobStatus;
use tollgate_model::submission::Submission;
use tollgate_outbound::{ApiError, TollgateClient};
use tollgate_sim::{Behaviour, Fault, Faults, Step};
use tollgate_testkit::{Process, TestApp, Tune, eventually};
use uuid::Uuid;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

/// A hint travels in milliseconds; without it a worker learns of a cancel by its heartbeat, every 5 s by default.
const PROMPTLY: Duration = Duration::from_secs(1);

/// How many of its calls the provider has seen abandoned.
async fn aborted(app: &TestApp, calls: u64, patience: Duration) {
    eventually(&format!("{calls} calls aborted"), patience, || async {
        let stats = app.provider.stats();
        (stats.aborted == calls && stats.in_flight == 0).then_some(())
    })
    .await;
}

async fn running(app: &TestApp, id: Uuid) {
    app.job_when("running", id, |job| job.status == JobStatus::Running).await;
}

/// The status and code of a refusal.
fn refusal<T: std::fmt::Debug>(answer: Result<T, ApiError>) -> (u16, String) {
    match answer {
        Err(ApiError::Refused { status, code, .. }) => (status, code),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_queued_job_never_reaches_the_provider() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let (called_off, other) = (app.submit("not this").await, app.submit("but this").await);
    let job = app.client().cancel(called_off).await.unwrap();
    assert_eq!((job.status, job.attempts), (JobStatus::Cancelled, 0));
    let again = app.client().cancel(called_off).await.unwrap();
    assert_eq!(
        (again.status, again.finished_at),
        (JobStatus::Cancelled, job.finished_at),
        "no error, no change"
    );

    let _worker = app.start_worker().await;
    app.ended(other).await;
    assert_eq!(app.provider.arrivals_of(&called_off.to_string()), 0);
    assert_eq!(app.history(called_off).await, ["queued", "cancelled"]);
    app.assert_consistent().await;
}

#[tokio::test]
async fn a_running_job_stops_and_its_socket_closes() {
    let app = TestApp::start(BINARY, Tune::worker(&[])).await;
    app.provider.script([Step::fault(Fault::Hang), Step::fault(Fault::SilentBody)]).unwrap();
    for (calls, prompt) in [(1, "no reply"), (2, "half a reply")] {
        let id = app.submit(prompt).await;
        running(&app, id).await;
        eventually("the call is out", Duration::from_secs(5), || async {
            (app.provider.stats().in_flight == 1).then_some(())
        })
        .await;
        let job = app.client().cancel(id).await.unwrap();
        assert_eq!((job.status, job.error), (JobStatus::Cancelled, None));
        aborted(&app, calls, PROMPTLY).await;
        assert_eq!(app.client().cancel(id).await.unwrap().status, JobStatus::Cancelled);
        assert_eq!(app.history(id).await, ["queued", "started", "cancelled"]);
    }
    assert_eq!(app.number("SELECT count(*) FROM queue.dead_letters").await, 0, "a cancel is no failure");
    app.assert_consistent().await;
}

/// What an API leaves behind that dies between the commit of a cancel and its hint.
#[tokio::test]
async fn a_cancel_of_which_nobody_told_the_worker_is_noticed_by_its_heartbeat() {
    let app = TestApp::start(BINARY, Tune::worker(&[("VISIBILITY_TIMEOUT", "1200ms")])).await;
    app.provider.script([Step::fault(Fault::Hang)]).unwrap();
    let id = app.submit("not told").await;
    running(&app, id).await;
    app.change(
        "BEGIN;
         DELETE FROM queue.tasks;
         UPDATE queue.lane_counts SET queued = 0, running = 0;
         UPDATE app.jobs SET status = 'cancelled', finished_at = now(), last_event = 3;
         INSERT INTO app.job_events (account_id, job_id, seq, type) SELECT account_id, id, 3, 'job.cancelled' FROM app.jobs;
         COMMIT",
    )
    .await;
    aborted(&app, 1, Duration::from_secs(5)).await;
    assert_eq!(app.history(id).await, ["queued", "started", "cancelled"]);
    app.assert_consistent().await;
}

/// The worker hears nothing of the cancel until its answer is there: it is frozen.
#[tokio::test]
async fn an_answer_that_comes_after_the_cancel_changes_nothing() {
    let app = TestApp::start(BINARY, Tune::worker(&[])).await;
    app.provider.script([Step::ok().latency_ms(300).text("too late")]).unwrap();
    let id = app.submit("slow").await;
    running(&app, id).await;
    app.workers[0].freeze();
    app.client().cancel(id).await.unwrap();
    eventually("answered", Duration::from_secs(5), || async {
        (app.provider.stats().completed == 1).then_some(())
    })
    .await;
    app.workers[0].thaw();
    eventually("the lost lease is counted", Duration::from_secs(5), || async {
        (app.workers[0].metric("tollgate_leases_lost_total").await >= 1.0).then_some(())
    })
    .await;
    let job = app.client().job(id).await.unwrap();
    assert_eq!((job.status, job.output), (JobStatus::Cancelled, None));
    assert_eq!(app.history(id).await, ["queued", "started", "cancelled"]);
    app.assert_consistent().await;
}

#[tokio::test]
async fn a_finished_job_cannot_be_cancelled() {
    let app = TestApp::start(BINARY, Tune::worker(&[])).await;
    app.provider.script([Step::fault(Fault::BadRequest).matching("refused")]).unwrap();
    for prompt in ["answered", "refused"] {
        let before = app.ended(app.submit(prompt).await).await;
        let (status, code) = refusal(app.client().cancel(before.id).await);
        assert_eq!((status, code.as_str()), (409, "job_finished"), "{prompt}");
        assert_eq!(app.client().job(before.id).await.unwrap(), before, "{prompt}");
    }
    let (status, code) = refusal(app.client().cancel(Uuid::max()).await);
    assert_eq!((status, code.as_str()), (404, "not_found"));
    app.assert_consistent().await;
}

/// Submits and cancels, one job after the other. Each cancel comes later if the last one won and sooner if it lost,
/// so that they stay where it is decided. Returns how many won.
async fn race(client: &TollgateClient, jobs: usize) -> usize {
    let (mut won, mut delay) = (0, Duration::from_millis(40));
    for _ in 0..jobs {
        let submission = Submission { prompt: Some("a race".into()), ..Submission::default() };
        let id = client.submit(&submission).await.unwrap_or_else(|error| panic!("{error}"));
        tokio::time::sleep(delay).await;
        let claimed = match client.cancel(id).await {
            Ok(job) => job.status,
            refused => {
                assert_eq!(refusal(refused).0, 409);
                JobStatus::Succeeded
            }
        };
        // What the caller was told is what it is, and stays.
        assert_eq!(client.job(id).await.ok().map(|job| job.status), Some(claimed));
        let cancelled = claimed == JobStatus::Cancelled;
        won += usize::from(cancelled);
        delay = delay.mul_f64(if cancelled { 1.1 } else { 0.9 });
    }
    won
}

#[tokio::test]
async fn a_cancel_that_races_the_completion_wins_or_loses_but_never_both() {
    let provider = Behaviour { latency_median_ms: 20, latency_p99_ms: Some(60), ..Behaviour::default() };
    let app = TestApp::start(BINARY, Tune::worker(&[]).provider(provider)).await;
    let client = app.client();
    let (a, b, c, d) =
        tokio::join!(race(&client, 50), race(&client, 50), race(&client, 50), race(&client, 50));
    let won = a + b + c + d;
    assert!((20..=180).contains(&won), "{won} of 200 cancels won: that was no race");
    let counted = app.number("SELECT count(*) FROM app.jobs WHERE status = 'cancelled'").await;
    assert_eq!(counted, i64::try_from(won).unwrap());
    assert_eq!(app.number("SELECT count(*) FROM app.job_results").await, 200 - counted);
    assert_eq!(app.number("SELECT count(*) FROM queue.tasks").await, 0);
    app.assert_consistent().await;
    println!("of 200 cancels {won} won");
}

/// Lets `jobs` calls hang, and abandons them: half by cancel, half by their own deadline.
async fn abandon(app: &TestApp, jobs: usize) {
    let already = app.provider.stats().aborted;
    let mut ids = Vec::new();
    for n in 0..jobs {
        let timeout_ms = Some(if n % 2 == 0 { 60_000 } else { 300 });
        let wishes = Submission { timeout_ms, max_attempts: Some(1), ..Submission::default() };
        ids.push(app.submit_with("for ever", wishes).await);
    }
    // Those with the long deadline hold their slots until they are cancelled, so there are slots for all.
    for (n, id) in ids.iter().enumerate() {
        if n % 2 == 0 {
            eventually("the call is out", Duration::from_secs(30), || async {
                (app.provider.arrivals_of(&id.to_string()) == 1).then_some(())
            })
            .await;
            app.client().cancel(*id).await.unwrap_or_else(|error| panic!("{error}"));
        }
    }
    for id in ids {
        app.ended(id).await;
    }
    aborted(app, already + jobs as u64, Duration::from_secs(5)).await;
}

/// Files (sockets among them) and threads of the worker once it has come to rest.
async fn resources(app: &TestApp, worker: &Process) -> (usize, usize) {
    eventually("the provider's sockets are closed", Duration::from_secs(5), || async {
        (app.provider.stats().open_sockets <= 1).then_some(())
    })
    .await;
    (worker.open_files(), worker.threads())
}

#[tokio::test]
async fn a_hundred_abandoned_calls_leave_no_socket_and_no_thread() {
    let provider = Behaviour { faults: Faults { hang: 1.0, ..Faults::default() }, ..Behaviour::default() };
    let settings = [
        ("Q_GEN_CREATE_CONCURRENCY", "100"),
        ("DATABASE_MAX_CONNECTIONS", "4"),
        // Whose timeouts are not to stop the others.
        ("GEN_BREAKER_ENABLED", "false"),
    ];
    let app = TestApp::start(BINARY, Tune::worker(&settings).provider(provider)).await;
    // The first round opens what is opened once: the pool's connections, the runtime's threads.
    abandon(&app, 50).await;
    let (files, threads) = resources(&app, &app.workers[0]).await;
    abandon(&app, 100).await;
    let (files_after, threads_after) = resources(&app, &app.workers[0]).await;
    println!("files {files} -> {files_after}, threads {threads} -> {threads_after}");
    assert!(files_after <= files + 3, "open files: {files} before, {files_after} after 100 abandoned calls");
    assert!(threads_after <= threads + 3, "threads: {threads} before, {threads_after} after");
    app.assert_consistent().await;
}
