//! What goes wrong beside the jobs: connections lost, answers lost, hints lost, and many doing the same at once.

use std::time::Duration;

use chrono::TimeDelta;
use tokio::task::JoinSet;
use tollgate_domain::{Database, Role, queue, runs, sweep, workers};
use tollgate_model::account::AccountId;
use tollgate_model::job::{Job, JobStatus};
use tollgate_model::lanes::{Lanes, Taken};
use tollgate_model::queue::QueueName;
use tollgate_model::submission::Submission;
use tollgate_outbound::{ApiError, TollgateClient};
use tollgate_sim::Behaviour;
use tollgate_testkit::{TestApp, Tune, eventually};
use uuid::Uuid;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

/// A poll that no test waits for: whatever happens in time happened because somebody said so.
const NO_POLLING: (&str, &str) = ("QUEUE_POLL_INTERVAL", "30s");

async fn all_ended(app: &TestApp) {
    eventually("every job ended", Duration::from_mins(1), || async {
        (app.number("SELECT count(*) FROM app.jobs WHERE finished_at IS NULL").await == 0).then_some(())
    })
    .await;
}

/// How long the job was ready before it was started.
fn waited(job: &Job) -> TimeDelta {
    job.started_at.map_or(TimeDelta::MAX, |started| started - job.scheduled_at)
}

/// Ends connections of this database as an administrator would, or a failover.
async fn cut(app: &TestApp, which: &str) -> i64 {
    app.number(&format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE datname = current_database() AND usename IN ('app_api', 'app_worker') AND {which}"
    ))
    .await
}

/// The answer, unless the API says "not now"; anything else is no way to answer.
fn now_or_later<T>(answer: Result<T, ApiError>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(ApiError::Refused { status: 503, code, .. }) if code == "unavailable" => None,
        Err(error) => panic!("neither success nor 503: {error}"),
    }
}

/// Submits until `jobs` have been accepted. Returns how often it was told to come again.
async fn insist(client: &TollgateClient, jobs: usize) -> usize {
    let (mut accepted, mut refused) = (0, 0);
    while accepted < jobs {
        let submission = Submission { prompt: Some("whatever happens".into()), ..Submission::default() };
        match now_or_later(client.submit(&submission).await) {
            Some(_) => accepted += 1,
            None => refused += 1,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    refused
}

#[tokio::test]
async fn lost_connections_cost_no_job_and_no_attempt() {
    let provider = Behaviour { latency_median_ms: 100, latency_p99_ms: Some(400), ..Behaviour::default() };
    // Long enough that nobody is given up: what is lost is connections, and no more.
    let tune = Tune { workers: 2, ..Tune::worker(&[("VISIBILITY_TIMEOUT", "12s")]) };
    let app = TestApp::start(BINARY, tune.provider(provider)).await;
    let client = app.client();
    let cutting = async {
        let mut ended = 0;
        for _ in 0..25 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            ended += cut(&app, "true").await;
        }
        ended
    };
    let (ended, a, b, c) =
        tokio::join!(cutting, insist(&client, 60), insist(&client, 60), insist(&client, 60));
    assert!(ended > 25, "only {ended} connections were there to be cut");
    all_ended(&app).await;
    // A submission that was answered with 503 may have been committed, so there may be more than 180.
    let jobs = app.number("SELECT count(*) FROM app.jobs").await;
    assert!(jobs >= 180);
    let well = "SELECT count(*) FROM app.jobs WHERE status = 'succeeded' AND attempts = 1";
    assert_eq!(app.number(well).await, jobs);
    assert_eq!(i64::try_from(app.provider.stats().arrivals).ok(), Some(jobs), "an answer was thrown away");
    app.assert_consistent().await;
    // And all is as before.
    eventually("the API is well again", Duration::from_secs(5), || async {
        now_or_later(client.jobs(None, 1, None).await)
    })
    .await;
    app.ended(app.submit("afterwards").await).await;
    println!("{ended} connections cut, {} submissions refused, {jobs} jobs done", a + b + c);
}

/// The commit of a claim whose answer was lost with its connection: a lease in the name of a worker who knows
/// nothing of it, and whose heartbeats keep it alive.
#[tokio::test]
async fn a_lease_in_nobodys_hands_is_found_and_the_job_run() {
    let app = TestApp::start(BINARY, Tune::worker(&[NO_POLLING, ("VISIBILITY_TIMEOUT", "1200ms")])).await;
    let later = sqlx::query_scalar("SELECT clock_timestamp() + interval '1 hour'");
    let later = later.fetch_one(&app.owner).await.unwrap();
    let wishes = Submission { scheduled_at: Some(later), ..Submission::default() };
    let id = app.submit_with("claimed by nobody", wishes).await;
    let claimed = app.change(
        "BEGIN;
         UPDATE queue.tasks SET state = 'running', lease = nextval('queue.lease_token'), attempts = 1, run_at = now(),
             worker_id = (SELECT id FROM queue.workers LIMIT 1);
         UPDATE queue.lane_counts SET queued = queued - 1, running = running + 1;
         UPDATE app.jobs SET status = 'running', attempts = 1, started_at = now(), last_event = 2;
         INSERT INTO app.job_events (account_id, job_id, seq, type) SELECT account_id, id, 2, 'job.started' FROM app.jobs;
         COMMIT",
    );
    assert_eq!(claimed.await, 4);
    let job = app.ended(id).await;
    assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1));
    assert_eq!(app.history(id).await, ["queued", "started", "requeued", "started", "completed"]);
    assert_eq!(app.provider.stats().arrivals, 1);
    app.assert_consistent().await;
}

#[tokio::test]
async fn an_idle_worker_starts_a_job_as_soon_as_it_is_there() {
    let app = TestApp::start(BINARY, Tune::worker(&[NO_POLLING])).await;
    let mut slowest = TimeDelta::zero();
    for _ in 0..20 {
        let job = app.ended(app.submit("now").await).await;
        assert_eq!(job.scheduled_at, job.created_at);
        slowest = slowest.max(waited(&job));
    }
    // One that nobody was woken for would wait for half a minute.
    assert!(slowest < TimeDelta::seconds(3), "one waited for {slowest}");
    println!("the slowest of 20 waited for {slowest}");

    // One that is due later: the sleep has an end that nobody needs to announce.
    let soon = sqlx::query_scalar("SELECT clock_timestamp() + interval '700 milliseconds'");
    let soon = soon.fetch_one(&app.owner).await.unwrap();
    let wishes = Submission { scheduled_at: Some(soon), ..Submission::default() };
    let job = app.ended(app.submit_with("soon", wishes).await).await;
    assert!(job.scheduled_at > job.created_at);
    assert!(waited(&job) >= TimeDelta::zero(), "early by {}", -waited(&job));
    assert!(waited(&job) < TimeDelta::seconds(3), "late by {}", waited(&job));

    // A worker that lost its ear hears again, and has missed nothing meanwhile.
    for _ in 0..5 {
        eventually("one connection a queue listens", Duration::from_secs(20), || async {
            let sql = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND usename = 'app_worker' AND query LIKE 'LISTEN%'";
            (app.number(sql).await == 3).then_some(())
        })
        .await;
        assert_eq!(cut(&app, "query LIKE 'LISTEN%'").await, 3);
        let job = app.ended(app.submit("to a deaf ear").await).await;
        assert!(waited(&job) < TimeDelta::seconds(3), "waited for {}", waited(&job));
    }
}

#[tokio::test]
async fn many_workers_start_each_job_once() {
    let app = TestApp::start(BINARY, Tune { workers: 0, ..Tune::default() }).await;
    for _ in 0..300 {
        app.submit("once").await;
    }
    // A long backlog, and four who find it at the same moment.
    let (_a, _b, _c, _d) =
        tokio::join!(app.start_worker(), app.start_worker(), app.start_worker(), app.start_worker());
    all_ended(&app).await;
    assert_eq!(app.number("SELECT count(*) FROM app.job_events WHERE type = 'job.started'").await, 300);
    let stats = app.provider.stats();
    assert_eq!((stats.arrivals, stats.repeated_request_ids.len()), (300, 0));
    assert_eq!(app.number("SELECT count(*) FROM app.job_results").await, 300);
    app.assert_consistent().await;
}

/// The domain as a worker process has it, so that a test can do what no worker would.
async fn as_worker(app: &TestApp) -> Database {
    let url = app.db.role_url(Role::Worker);
    Database::connect(&url, Role::Worker, 8, true).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Claims as a worker would that knows nothing yet, until it gets no more. Returns how many jobs it got.
async fn claim(db: &Database, worker: Uuid, limit: usize) -> usize {
    let queue = QueueName::GenerationCreate;
    let listing = queue::list_lanes(db, queue, worker, AccountId(Uuid::nil())).await.unwrap();
    let mut lanes = Lanes::default();
    lanes.list(&listing.lanes, true);
    let mut claimed = 0;
    loop {
        let mut plan = lanes.plan(limit - claimed, Duration::ZERO);
        let runs =
            runs::claim(db, QueueName::GenerationCreate, worker, listing.settings, &mut plan).await.unwrap();
        if runs.is_empty() {
            return claimed;
        }
        claimed += runs.len();
        let place = |run: &runs::Run| Taken { account: run.task.lease.account, place: run.task.place };
        lanes.observe(&plan, &runs.iter().map(place).collect::<Vec<_>>(), Duration::ZERO);
    }
}

/// Eight at once. Returns what they found together: jobs requeued and jobs expired.
async fn sweep_at_once(db: &Database) -> (usize, usize) {
    let mut sweeps = JoinSet::new();
    for _ in 0..8 {
        let db = db.clone();
        sweeps.spawn(async move { sweep::sweep(&db, &mut sweep::Rounds::default()).await });
    }
    let all: Vec<_> =
        sweeps.join_all().await.into_iter().map(|swept| swept.unwrap_or_else(|e| panic!("{e}"))).collect();
    (all.iter().map(|swept| swept.requeued).sum(), all.iter().map(|swept| swept.expired).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sweeps_at_once_take_each_job_back_once_and_bury_it_once() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let db = as_worker(&app).await;
    let (_, other_key) = app.open_account().await;
    let clients = [app.client(), app.client_with(&other_key)];
    for n in 0..600 {
        let submission = Submission { prompt: Some("swept".into()), ..Submission::default() };
        clients[n % 2].submit(&submission).await.unwrap();
    }
    let worker = workers::register(&db, "dies at once", Duration::from_secs(30)).await.unwrap();
    assert_eq!(claim(&db, worker, 600).await, 600);
    workers::deregister(&db, worker).await.unwrap();

    assert_eq!(sweep_at_once(&db).await, (600, 0));
    let requeued = "SELECT count(*) FROM app.job_events WHERE type = 'job.requeued'";
    assert_eq!(app.number(requeued).await, 600);
    assert_eq!(app.number("SELECT count(*) FROM queue.tasks WHERE lost = 1 AND attempts = 0").await, 600);
    app.assert_consistent().await;

    // The worker that died, should it still ask, gets nothing.
    assert_eq!(claim(&db, worker, 600).await, 0);

    app.change("UPDATE queue.tasks SET expires_at = now()").await;
    assert_eq!(sweep_at_once(&db).await, (0, 600));
    assert_eq!(app.number("SELECT count(*) FROM queue.dead_letters").await, 600);
    app.assert_consistent().await;
}
