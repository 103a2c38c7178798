//! A fleet that may not call: it waits without a word, and all but without a statement.

use serde_json::json;

use crate::guard_matrix::fleet::{Fleet, now, pause, quick, submit};
use crate::guard_matrix::well;
use crate::operators::command;

const WORKERS: usize = 2;

/// What a wait costs, over all workers.
#[derive(Debug)]
struct Cost {
    claims: i64,
    transactions: i64,
    lines: usize,
}

/// A claim walks along this index once for each lane that it takes from; so do sweeps, now and then.
const CLAIMS: &str = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'tasks_ready'";
const TRANSACTIONS: &str =
    "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";

/// What so many seconds cost.
async fn wait(fleet: &Fleet, seconds: u64) -> Cost {
    let look = || async {
        // PostgreSQL counts what a session did when that is idle, a second later at most.
        pause(1500).await;
        let lines = fleet.lines("");
        (fleet.app.number(CLAIMS).await, fleet.app.number(TRANSACTIONS).await, lines)
    };
    let before = look().await;
    pause(seconds * 1000 - 1500).await;
    let after = look().await;
    Cost { claims: after.0 - before.0, transactions: after.1 - before.1, lines: after.2 - before.2 }
}

async fn assert_calm(case: &str, fleet: &Fleet, seconds: u64) {
    let arrivals = fleet.stats().arrivals;
    let cost = wait(fleet, seconds).await;
    let per = |count: i64| count as f64 / (WORKERS as f64 * seconds as f64);
    println!(
        "{case}, 200 jobs waiting: {:.2} claims, {:.1} transactions per worker and second, {} log lines of {WORKERS} \
         workers in {seconds} s",
        per(cost.claims),
        per(cost.transactions),
        cost.lines,
    );
    assert!(per(cost.claims) < 1.0, "{case}: {cost:?}");
    assert!(cost.lines < 5 * WORKERS, "{case}: {cost:?}");
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
    let app = Fleet::app(WORKERS, &guard, &[], well()).await;
    // Nobody looks at the guard's row meanwhile: that would count.
    let control = app.0.provider.clone();
    let fleet = Fleet::watch(app, control, None);
    order(&fleet, "guard open text").await;
    submit(&fleet.app, "text", 200).await;
    assert_calm("open", &fleet, 8).await;
    order(&fleet, "guard pause text --for 1h").await;
    assert_calm("paused", &fleet, 5).await;

    let start = now();
    submit(&fleet.app, "image", 200).await;
    fleet
        .look("the one image that may be made", start, |look| look.arrivals == 1 && look.in_flight == 0)
        .await;
    assert_calm("out of budget", &fleet, 8).await;

    // Nothing was claimed in vain, and all of it is still there.
    let claimed = "SELECT count(*) FROM app.jobs WHERE attempts > 0";
    assert_eq!(fleet.app.number(claimed).await, 1);
    order(&fleet, "guard close text").await;
    let open = "SELECT count(*) FROM app.jobs WHERE type = 'text' AND finished_at IS NULL";
    tollgate_testkit::eventually("every text is there", std::time::Duration::from_secs(30), || async {
        (fleet.app.number(open).await == 0).then_some(())
    })
    .await;
    let burnt = "SELECT count(*) FROM app.jobs WHERE type = 'text' AND attempts <> 1";
    assert_eq!(fleet.app.number(burnt).await, 0);
}
