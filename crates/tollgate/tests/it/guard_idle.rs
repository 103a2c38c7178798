//! A fleet that may not call: it waits without a word, and all but without a statement.

use std::time::Duration;

use serde_json::json;
use tempfile::NamedTempFile;
use tollgate_testkit::{TestApp, Tune, eventually};

use crate::guard_matrix::fleet::{Fleet, now, pause, quick, submit, tuned};
use crate::guard_matrix::well;
use crate::operators::{BINARY, command};

const WORKERS: usize = 2;

/// What workers did so far.
#[derive(Debug)]
struct Work {
    claims: usize,
    statements: usize,
    lines: usize,
}

impl Work {
    /// PostgreSQL writes down each statement of the workers, the first line of it beside the word `execute`.
    async fn so_far(fleet: &Fleet) -> Self {
        let log: String = sqlx::query_scalar("SELECT current_setting('data_directory') || '.log'")
            .fetch_one(&fleet.app.owner)
            .await
            .unwrap();
        let log = std::fs::read_to_string(log).unwrap();
        let statements: Vec<_> = log.lines().filter(|line| line.contains("LOG:  execute ")).collect();
        let claims = statements.iter().filter(|line| line.contains("WITH me AS MATERIALIZED (")).count();
        Self { claims, statements: statements.len(), lines: fleet.lines("") }
    }
}

async fn assert_calm(case: &str, fleet: &Fleet, seconds: u64) {
    let (arrivals, before) = (fleet.stats().arrivals, Work::so_far(fleet).await);
    pause(seconds * 1000).await;
    let after = Work::so_far(fleet).await;
    let (claims, lines) = (after.claims - before.claims, after.lines - before.lines);
    let per = |count: usize| count as f64 / (WORKERS as f64 * seconds as f64);
    println!(
        "{case}, 200 jobs waiting: {claims} claims, {:.1} statements per worker and second (its heartbeats, sweeps and \
         metrics among them), {lines} log lines of {WORKERS} workers in {seconds} s",
        per(after.statements - before.statements),
    );
    assert!(per(claims) < 1.0, "{case}: {claims} claims in {seconds} s");
    assert!(lines < 5 * WORKERS, "{case}: {lines} lines");
    assert_eq!(fleet.stats().arrivals, arrivals, "{case}: somebody called");
}

async fn order(fleet: &Fleet, line: &str) {
    let (code, _, said) = command(&fleet.app, line).await;
    assert_eq!(code, 0, "{line}: {said}");
}

#[tokio::test]
async fn a_fleet_that_may_not_call_is_calm() {
    let guard = json!({
        "text": quick(&json!({})),
        "image": {"bucket_capacity": 1, "bucket_refill": 1, "bucket_refill_per": "1h"},
    });
    let log = NamedTempFile::new().unwrap();
    let tune = Tune { own_database: true, ..tuned(0, &guard, &[], well(), &log) };
    let mut app = TestApp::start(BINARY, tune).await;
    app.change("ALTER ROLE app_worker SET log_statement = 'all'").await;
    for _ in 0..WORKERS {
        let worker = app.start_worker().await;
        app.workers.push(worker);
    }
    let control = app.provider.clone();
    let fleet = Fleet::watch((app, log), control, None);

    order(&fleet, "guard open text").await;
    submit(&fleet.app, "text", 200).await;
    assert_calm("open", &fleet, 10).await;
    // The pause holds for the probes too that are due then.
    order(&fleet, "guard pause text --for 1h").await;
    order(&fleet, "guard open text --for 1ms").await;
    assert_calm("paused", &fleet, 5).await;

    let start = now();
    submit(&fleet.app, "image", 200).await;
    fleet
        .look("the one image that may be made", start, |look| look.arrivals == 1 && look.in_flight == 0)
        .await;
    pause(500).await;
    assert_calm("out of budget", &fleet, 8).await;
    let claimed = "SELECT count(*) FROM app.jobs WHERE type = 'image' AND attempts > 0";
    assert_eq!(fleet.app.number(claimed).await, 1);

    assert!(Work::so_far(&fleet).await.claims > 0, "claims are not recognised");

    // Whatever waited is still there, and no attempt of it is gone.
    order(&fleet, "guard close text").await;
    let open = "SELECT count(*) FROM app.jobs WHERE type = 'text' AND finished_at IS NULL";
    eventually("every text is there", Duration::from_secs(30), || async {
        (fleet.app.number(open).await == 0).then_some(())
    })
    .await;
    let burnt = "SELECT count(*) FROM app.jobs WHERE type = 'text' AND attempts <> 1";
    assert_eq!(fleet.app.number(burnt).await, 0);
}
