//! Retention: what ended long ago goes, with all that belonged to it, and nothing else does.

use std::time::Duration;

use tokio::task::JoinSet;
use tollgate_domain::retention::{self, Progress};
use tollgate_domain::{Database, Role};
use tollgate_model::account::AccountId;
use tollgate_testkit::{TestApp, Tune, eventually};

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
const MONTH: Duration = Duration::from_hours(720);

async fn as_worker(app: &TestApp) -> Database {
    let url = app.db.role_url(Role::Worker);
    Database::connect(&url, Role::Worker, 8, true).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Jobs of an account as their histories would have left them: created and ended so many days ago.
async fn history(app: &TestApp, account: AccountId, status: &str, jobs: u32, created: u32, ended: u32) {
    app.change(&format!(
        "CREATE TEMPORARY TABLE history ON COMMIT DROP AS
             SELECT (lpad(to_hex((extract(epoch FROM now() - interval '{created} days') * 1000)::bigint + n), 12, '0')
                     || '7' || substr(md5(random()::text), 1, 19))::uuid AS id,
                    now() - interval '{created} days' AS created, now() - interval '{ended} days' AS ended
             FROM generate_series(1, {jobs}) n;
         INSERT INTO app.jobs (account_id, id, type, status, priority, attempts, max_attempts, request, metadata,
                               created_at, scheduled_at, finished_at, error_code, error_message, last_event)
         SELECT '{account}', id, 'text', '{status}', 5, 1, 5, '{{}}', '{{}}', created, created,
                CASE WHEN '{status}' <> 'queued' THEN ended END,
                CASE WHEN '{status}' = 'failed' THEN 'SERVER_ERROR' END, CASE WHEN '{status}' = 'failed' THEN 'x' END, 2
         FROM history;
         INSERT INTO app.job_events (account_id, job_id, seq, type)
         SELECT '{account}', id, seq, 'job.queued' FROM history, generate_series(1, 2) seq;
         INSERT INTO app.job_results (account_id, job_id, text, provider, provider_id, model, latency_ms, prompt_tokens,
                                      completion_tokens, total_tokens, raw)
         SELECT '{account}', id, 'text', 'p', 'p', 'm', 1, 1, 1, 2, '{{}}' FROM history WHERE '{status}' = 'succeeded';
         INSERT INTO queue.dead_letters (account_id, id, queue, type, payload, priority, attempts, max_attempts, reason,
                                         created_at, died_at)
         SELECT '{account}', id, 'generation.create', 'text', '{{}}', 5, 1, 5, '{{\"code\": \"SERVER_ERROR\", \"message\": \"x\"}}',
                created, ended FROM history WHERE '{status}' = 'failed';
         INSERT INTO queue.lane_counts (account_id, queue, shard, done, failed)
         VALUES ('{account}', 'generation.create', 31, 7, 7) ON CONFLICT DO NOTHING"
    ))
    .await;
}

async fn count(app: &TestApp, table: &str) -> i64 {
    app.number(&format!("SELECT count(*) FROM {table}")).await
}

/// Rounds until all accounts have been gone through. Returns the jobs removed, and the most that one round did.
async fn go_through(db: &Database, keep: Duration) -> (u64, u64) {
    let (mut progress, mut all, mut most) = (Progress::default(), 0, 0);
    loop {
        let removed =
            retention::round(db, keep, &mut progress).await.unwrap_or_else(|error| panic!("{error}"));
        all += removed.jobs;
        most = most.max(removed.jobs);
        if !removed.more {
            return (all, most);
        }
    }
}

#[tokio::test]
async fn what_ended_long_ago_goes_with_all_that_belonged_to_it() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let db = as_worker(&app).await;
    let (other, _) = app.open_account().await;
    for (account, jobs) in [(app.account, 1300), (other, 40)] {
        // Created long ago, ended yesterday: they stand before all others, more than a batch of them.
        history(&app, account, "succeeded", jobs, 90, 1).await;
        for status in ["succeeded", "failed", "cancelled"] {
            history(&app, account, status, jobs, 60, 45).await;
            history(&app, account, status, 10, 29, 29).await;
        }
        history(&app, account, "queued", 700, 80, 0).await;
    }
    // An operator has purged some letters; the jobs go all the same.
    app.change("DELETE FROM queue.dead_letters WHERE left(id::text, 13) < (SELECT left(id::text, 13) FROM queue.dead_letters ORDER BY id LIMIT 1 OFFSET 100)").await;
    let kept = 1300 + 40 + 2 * (3 * 10 + 700);

    assert_eq!(go_through(&db, MONTH).await.0, 3 * 1340);
    assert_eq!(count(&app, "app.jobs").await, kept);
    assert_eq!(count(&app, "app.job_events").await, 2 * kept);
    assert_eq!(count(&app, "app.job_results").await, 1340 + 20);
    assert_eq!(count(&app, "queue.dead_letters").await, 20);
    let old = "SELECT count(*) FROM app.jobs WHERE finished_at < now() - interval '30 days'";
    assert_eq!(app.number(old).await, 0);
    // They are no less done for being gone.
    assert_eq!(app.number("SELECT sum(done + failed)::bigint FROM queue.lane_counts").await, 28);
    assert_eq!(go_through(&db, MONTH).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_remove_each_job_once_and_no_round_is_without_end() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let db = as_worker(&app).await;
    let jobs = 25_000;
    history(&app, app.account, "succeeded", jobs, 60, 45).await;
    let began = tokio::time::Instant::now();
    let mut all = JoinSet::new();
    for _ in 0..4 {
        let db = db.clone();
        all.spawn(async move { go_through(&db, MONTH).await });
    }
    let removed = all.join_all().await;
    println!("{jobs} jobs in {:?} by four", began.elapsed());
    assert_eq!(removed.iter().map(|(all, _)| all).sum::<u64>(), u64::from(jobs));
    for (_, most) in removed {
        assert!(most <= 20 * 500, "{most} in one round");
    }
    for table in ["app.jobs", "app.job_events", "app.job_results"] {
        assert_eq!(count(&app, table).await, 0, "{table}");
    }
}

#[tokio::test]
async fn what_somebody_is_at_is_left_for_another_time() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let db = as_worker(&app).await;
    history(&app, app.account, "failed", 3, 60, 45).await;
    // An operator is about to redrive one, and has its letter.
    let mut tx = app.owner.begin().await.unwrap();
    sqlx::query("SELECT FROM queue.dead_letters ORDER BY id LIMIT 1 FOR UPDATE")
        .execute(&mut *tx)
        .await
        .unwrap();
    assert_eq!(go_through(&db, MONTH).await.0, 2);
    assert_eq!((count(&app, "app.jobs").await, count(&app, "queue.dead_letters").await), (1, 1));
    tx.rollback().await.unwrap();
    assert_eq!(go_through(&db, MONTH).await.0, 1);
    assert_eq!((count(&app, "app.jobs").await, count(&app, "queue.dead_letters").await), (0, 0));
}

#[tokio::test]
async fn a_worker_removes_by_itself_and_one_that_is_told_not_to_does_not() {
    let mut app = TestApp::start(BINARY, Tune::worker(&[("JOB_RETENTION", "off")])).await;
    let id = app.submit("soon forgotten").await;
    app.ended(id).await;
    history(&app, app.account, "succeeded", 5, 60, 45).await;
    app.set("JOB_RETENTION", "1s");
    let tidy = app.start_worker().await;
    eventually("all are gone", Duration::from_secs(20), || async {
        (count(&app, "app.jobs").await == 0).then_some(())
    })
    .await;
    assert_eq!(tidy.metric("tollgate_jobs_removed_total").await.to_string(), "6");
    assert_eq!(app.workers[0].metric("tollgate_jobs_removed_total").await.to_string(), "0");
    let gone = app.client().job(id).await.unwrap_err();
    assert!(matches!(gone, tollgate_outbound::ApiError::Refused { status: 404, .. }), "{gone}");
}
