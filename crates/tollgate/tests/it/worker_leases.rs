//! Leases: who dies, freezes or leaves gives its jobs back, and whoever lost a lease changes nothing any more.

use std::time::Duration;

use tollgate_model::job::JobStatus;
use tollgate_model::submission::Submission;
use tollgate_sim::{Behaviour, Fault, Faults, Step};
use tollgate_testkit::{Process, TestApp, Tune, eventually};
use uuid::Uuid;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

const SHORT_LEASE: (&str, &str) = ("VISIBILITY_TIMEOUT", "1500ms");
/// Longer than any test: what is not given back is not had back.
const LONG_LEASE: (&str, &str) = ("VISIBILITY_TIMEOUT", "10m");
/// Whose faults are not to stop the others.
const NO_BREAKER: (&str, &str) = ("GEN_BREAKER_ENABLED", "false");
const NO_POLLING: (&str, &str) = ("QUEUE_POLL_INTERVAL", "5m");

async fn start(settings: &[(&'static str, &str)]) -> TestApp {
    TestApp::start(BINARY, Tune::worker(settings)).await
}

/// Processes that are signed in: each is one worker a line.
const WORKERS: &str = "SELECT count(DISTINCT name) FROM queue.workers";

/// Submits, and waits until the provider has been asked.
async fn in_call(app: &TestApp, prompt: &str) -> Uuid {
    let id = app.submit(prompt).await;
    called(app, id, 1).await;
    id
}

async fn called(app: &TestApp, id: Uuid, times: u64) {
    eventually(&format!("call {times} for job {id}"), Duration::from_secs(20), || async {
        (app.provider.arrivals_of(&id.to_string()) == times).then_some(())
    })
    .await;
}

async fn leases_lost(worker: &Process, count: f64) {
    eventually(&format!("{count} lost leases counted"), Duration::from_secs(10), || async {
        // Counted when the run has ended, one way or the other.
        let (lost, busy) =
            (worker.metric("tollgate_leases_lost_total").await, worker.metric("tollgate_tasks_in_flight"));
        (lost >= count && busy.await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_job_of_a_killed_worker_is_run_by_another() {
    let mut app = start(&[SHORT_LEASE]).await;
    app.provider.script([Step::fault(Fault::Hang)]).unwrap();
    let id = in_call(&app, "its first worker dies").await;
    let other = app.start_worker().await;
    app.workers.remove(0).kill().await;

    let job = app.ended(id).await;
    assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1), "a lost lease burns no attempt");
    assert_eq!(app.history(id).await, ["queued", "started", "requeued", "started", "completed"]);
    assert_eq!(app.provider.arrivals_of(&id.to_string()), 2);
    assert_eq!(app.number("SELECT count(*) FROM app.job_results").await, 1);
    assert_eq!(app.number(WORKERS).await, 1, "the dead one is signed out");
    app.assert_consistent().await;
    drop(other);
}

/// Its answer arrives while it is frozen and the other is at work on the same job: the moment at which settling by
/// the job's id alone would store the stale answer.
#[tokio::test]
async fn a_frozen_worker_wakes_with_an_answer_and_stores_nothing() {
    let app = start(&[SHORT_LEASE]).await;
    app.provider
        .script([Step::ok().latency_ms(300).text("stale"), Step::ok().latency_ms(3000).text("fresh")])
        .unwrap();
    let id = in_call(&app, "twice answered").await;
    let frozen = &app.workers[0];
    frozen.freeze();
    let _other = app.start_worker().await;
    called(&app, id, 2).await;
    frozen.thaw();
    leases_lost(frozen, 1.0).await;
    let job = app.client().job(id).await.unwrap();
    assert_eq!(
        (job.status, job.output),
        (JobStatus::Running, None),
        "it is the other's, and still under way"
    );

    let job = app.ended(id).await;
    assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1));
    assert_eq!(job.output.unwrap().text, "fresh");
    assert_eq!(app.history(id).await, ["queued", "started", "requeued", "started", "completed"]);
    app.assert_consistent().await;
}

#[tokio::test]
async fn a_frozen_worker_wakes_when_all_is_over_changes_nothing_and_works_again() {
    let app = start(&[SHORT_LEASE]).await;
    app.provider.script([Step::fault(Fault::Hang), Step::ok().text("by the other")]).unwrap();
    let id = in_call(&app, "taken over").await;
    let frozen = &app.workers[0];
    let first_id = app.number(WORKERS).await;
    assert_eq!(first_id, 1);
    frozen.freeze();
    let other = app.start_worker().await;
    let before = app.ended(id).await;
    assert_eq!(before.output.as_ref().unwrap().text, "by the other");
    eventually("the frozen one is signed out", Duration::from_secs(10), || async {
        (app.number(WORKERS).await == 1).then_some(())
    })
    .await;
    assert_eq!(other.terminate().await, 0);
    assert_eq!(app.number(WORKERS).await, 0, "both are signed out by now");

    frozen.thaw();
    leases_lost(frozen, 1.0).await;
    assert_eq!(app.client().job(id).await.unwrap(), before);
    assert_eq!(app.history(id).await, ["queued", "started", "requeued", "started", "completed"]);
    eventually("its abandoned call is closed", Duration::from_secs(5), || async {
        (app.provider.stats().aborted == 1).then_some(())
    })
    .await;
    // There is no one else left: it has signed in anew.
    let job = app.ended(app.submit("work again").await).await;
    assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1));
    assert_eq!(app.number(WORKERS).await, 1);
    app.assert_consistent().await;
}

/// Frozen between two statements it holds row locks that no sweep can pass, until PostgreSQL ends its session.
#[tokio::test]
async fn a_worker_frozen_inside_a_transaction_keeps_no_job_for_ever() {
    const HAS_WRITTEN: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND usename = 'app_worker' AND state = 'idle in transaction' AND backend_xid IS NOT NULL";
    let app = start(&[SHORT_LEASE, ("Q_GEN_CREATE_CONCURRENCY", "20")]).await;
    let frozen = &app.workers[0];
    loop {
        app.submit("while it works").await;
        frozen.freeze();
        // Settled by the time it is asked: a frozen client ends no statement and begins none.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if app.number(HAS_WRITTEN).await > 0 {
            break;
        }
        frozen.thaw();
    }
    let other = app.start_worker().await;
    eventually("every job ended", Duration::from_secs(30), || async {
        (app.number("SELECT count(*) FROM app.jobs WHERE finished_at IS NULL").await == 0).then_some(())
    })
    .await;
    frozen.thaw();
    app.ended(app.submit("and on").await).await;
    app.assert_consistent().await;
    drop(other);
}

/// Records each lease as it is given, in the order of the commits of each task.
const RECORD_LEASES: &str = "
    CREATE TABLE public.leases (n bigserial PRIMARY KEY, task uuid, lease bigint);
    CREATE FUNCTION public.record_lease() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN INSERT INTO public.leases (task, lease) VALUES (NEW.id, NEW.lease); RETURN NULL; END $$;
    CREATE TRIGGER record_lease AFTER UPDATE ON queue.tasks FOR EACH ROW
    WHEN (NEW.lease IS NOT NULL) EXECUTE FUNCTION public.record_lease();";

#[tokio::test]
async fn lease_tokens_rise_and_are_never_used_twice() {
    let faults = Faults { server_error: 0.5, ..Faults::default() };
    let settings = [SHORT_LEASE, ("GENERATION_RETRY_DELAYS", "1ms"), NO_BREAKER];
    let tune = Tune { workers: 3, ..Tune::worker(&settings) };
    let mut app = TestApp::start(BINARY, tune.provider(Behaviour { faults, ..Behaviour::default() })).await;
    app.change(RECORD_LEASES).await;
    let wishes = Submission { max_attempts: Some(20), ..Submission::default() };
    let mut ids = Vec::new();
    for n in 0..150 {
        ids.push(app.submit_with("again and again", wishes.clone()).await);
        if n == 75 {
            // Leases that end without their worker.
            app.workers.remove(0).kill().await;
        }
    }
    for id in ids {
        assert_eq!(app.ended(id).await.status, JobStatus::Succeeded);
    }
    let claims = app.number("SELECT count(*) FROM public.leases").await;
    assert!(claims > 200, "only {claims} claims");
    assert_eq!(app.number("SELECT count(DISTINCT lease) FROM public.leases").await, claims);
    let falling =
        "SELECT count(*) FROM (SELECT lease < lag(lease) OVER (PARTITION BY task ORDER BY n) AS falls
                   FROM public.leases) AS pairs WHERE falls";
    assert_eq!(app.number(falling).await, 0);
    app.assert_consistent().await;
}

#[tokio::test]
async fn a_job_that_always_takes_its_worker_along_fails() {
    let mut app = start(&[SHORT_LEASE]).await;
    app.provider.script([Step::fault(Fault::Hang)]).unwrap();
    let id = in_call(&app, "poison").await;
    assert_eq!(app.change("UPDATE queue.tasks SET lost = 9").await, 1);
    app.workers.remove(0).kill().await;
    let _other = app.start_worker().await;
    let job = app.ended(id).await;
    assert_eq!((job.status, job.attempts), (JobStatus::Failed, 0));
    assert_eq!(job.error.unwrap().code, "WORKER_LOST");
    assert_eq!(app.dead_letter(id).await, Some(("WORKER_LOST".to_owned(), 0)));
    assert_eq!(app.provider.arrivals_of(&id.to_string()), 1, "it was not run again");
    app.assert_consistent().await;
}

#[tokio::test]
async fn sigterm_stops_claiming_and_lets_running_jobs_finish() {
    let tune = Tune::worker(&[LONG_LEASE, ("SHUTDOWN_GRACE", "20s"), ("Q_GEN_CREATE_CONCURRENCY", "2")]);
    let latency = Behaviour { latency_median_ms: 1500, ..Behaviour::default() };
    let mut app = TestApp::start(BINARY, tune.provider(latency)).await;
    let running = [in_call(&app, "one").await, in_call(&app, "two").await];
    let waiting = app.submit("waits for a slot").await;
    let leaving = app.workers.remove(0);
    let (code, late) = tokio::join!(leaving.terminate(), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        app.submit("comes late").await
    });
    assert_eq!(code, 0);
    for id in running {
        let job = app.client().job(id).await.unwrap();
        assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1));
    }
    for id in [waiting, late] {
        assert_eq!(app.history(id).await, ["queued"], "claimed after SIGTERM");
    }
    assert_eq!(app.number(WORKERS).await, 0);
    app.assert_consistent().await;
}

#[tokio::test]
async fn what_the_drain_leaves_is_handed_back_unharmed_and_run_at_once() {
    let mut app = start(&[LONG_LEASE, NO_POLLING, ("SHUTDOWN_GRACE", "300ms")]).await;
    app.provider.script([Step::fault(Fault::Hang).times(2)]).unwrap();
    let id = in_call(&app, "handed back").await;
    assert_eq!(app.workers.remove(0).terminate().await, 0);

    let job = app.client().job(id).await.unwrap();
    assert_eq!((job.status, job.attempts, job.error), (JobStatus::Queued, 0, None));
    assert_eq!(
        app.number("SELECT count(*) FROM queue.tasks WHERE state = 'ready' AND attempts = 0").await,
        1
    );
    assert_eq!(app.number(WORKERS).await, 0);
    assert_eq!(app.history(id).await, ["queued", "started", "requeued"]);
    let stats = app.provider.stats();
    assert_eq!((stats.aborted, stats.in_flight, stats.open_sockets), (1, 0, 0));

    // Again, with one who stands by, idle: it is told, and need not wait for its poll.
    let second = app.start_worker().await;
    called(&app, id, 2).await;
    let third = app.start_worker().await;
    assert_eq!(second.terminate().await, 0);
    let job = app.ended(id).await;
    assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1));
    app.assert_consistent().await;
    drop(third);
}
