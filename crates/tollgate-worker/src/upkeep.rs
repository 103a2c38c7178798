//! What some process has to do for the platform as a whole, beside its work: remove what ended long ago, and count what
//! waits. Every worker does it; any one would do.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tollgate_domain::retention::{self, Progress};
use tollgate_domain::{Database, guard, once, queue, reconcile};
use tollgate_model::guard::circuit::State;
use tollgate_model::guard::class::GuardConfig;
use tollgate_model::guard::status::{GuardStatus, named};
use tollgate_model::queue::QueueName;

use crate::backoff::{Backoff, in_time, jitter};
use crate::images::Images;

/// While there is more to remove, this many times the time it took is left to others.
const REST: u32 = 4;
/// Between two looks at every account, where little is kept for long.
const LOOKS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(15);
/// A process that has just started is not kept from that for so long.
const FIRST_LOOK: Duration = Duration::from_mins(1);

/// Between two counts of what waits.
const COUNTS: Duration = Duration::from_secs(5);
/// Counting may take up this part of the time, and no more: it costs more the more accounts there are.
const COUNTING_SHARE: u32 = 20;

/// Keeps things up until it is dropped. `keep`: how long a job is kept after its end; `None`: for ever. An image goes with
/// the last job that has it.
pub async fn upkeep(
    db: Database,
    keep: Option<Duration>,
    images: Images,
    guards: GuardConfig,
    breaker_enabled: watch::Receiver<bool>,
) {
    tokio::join!(
        retain(&db, keep, &images),
        count(&db),
        show_guards(&db, &guards, &breaker_enabled),
        reconcile(&db),
        forget_answers(&db),
    );
}

/// Not a part of the sweep, which must come round in time: a long list of old jobs keeps nobody but this loop.
async fn retain(db: &Database, keep: Option<Duration>, images: &Images) {
    metrics::counter!("tollgate_jobs_removed_total").increment(0);
    let Some(keep) = keep else { return };
    let mut database = Backoff::new("removing old jobs", db);
    let mut progress = Progress::default();
    // A job is kept for up to a hundredth longer than it must be.
    let look = (keep / 100).clamp(*LOOKS.start(), *LOOKS.end());
    let mut pause = look.min(FIRST_LOOK);
    loop {
        // Drawn anew each time, so that many workers do not go through the accounts in step.
        sleep(pause.mul_f64(0.5 + jitter())).await;
        let began = Instant::now();
        match in_time(retention::round(db, keep, &mut progress)).await {
            Ok(removed) => {
                database.succeeded();
                if removed.jobs > 0 {
                    tracing::debug!(jobs = removed.jobs, more = removed.more, "removed old jobs");
                }
                pause = if removed.more { began.elapsed() * REST } else { look };
            }
            Err(error) => database.failed(&error).await,
        }
        images.remove(progress.take_outside()).await;
    }
}

/// From one look at some accounts' ledgers to the next.
const BOOKS: Duration = Duration::from_secs(2);

async fn reconcile(db: &Database) {
    metrics::gauge!("tollgate_ledger_drift_credits").set(0.0);
    metrics::counter!("tollgate_ledger_accounts_checked_total").increment(0);
    let mut database = Backoff::new("reconciling ledgers", db);
    let mut progress = reconcile::Progress::default();
    let mut pause = BOOKS;
    loop {
        sleep(pause.mul_f64(0.5 + jitter())).await;
        let began = Instant::now();
        match in_time(reconcile::round(db, &mut progress)).await {
            Ok(_) => {
                database.succeeded();
                metrics::gauge!("tollgate_ledger_drift_credits").set(progress.drift() as f64);
            }
            Err(error) => database.failed(&error).await,
        }
        pause = BOOKS.max(began.elapsed() * REST);
    }
}

/// From one look for answers that nobody can ask for again to the next.
const ANSWERS: Duration = Duration::from_mins(1);

async fn forget_answers(db: &Database) {
    let mut database = Backoff::new("forgetting answers", db);
    let mut after = None;
    loop {
        sleep(ANSWERS.mul_f64(0.5 + jitter())).await;
        match in_time(once::forget_expired(db, &mut after)).await {
            Ok(()) => database.succeeded(),
            Err(error) => database.failed(&error).await,
        }
    }
}

async fn count(db: &Database) {
    let mut database = Backoff::new("counting", db);
    loop {
        let began = Instant::now();
        for queue in QueueName::ALL {
            match in_time(queue::counts(db, &[queue])).await {
                Ok(counts) => {
                    database.succeeded();
                    for (state, tasks) in [("queued", counts.queued), ("running", counts.running)] {
                        let tasks = u32::try_from(tasks).unwrap_or(0);
                        metrics::gauge!("tollgate_queue_tasks", "queue" => queue.as_str(), "state" => state)
                            .set(tasks);
                    }
                }
                Err(error) => database.failed(&error).await,
            }
        }
        sleep(COUNTS.max(began.elapsed() * COUNTING_SHARE)).await;
    }
}

/// From one time to the next at which latencies are forgotten that are too old to count.
const FORGETTING: Duration = Duration::from_mins(10);

/// What alerts look at (SPEC A7), and dashboards.
async fn show_guards(db: &Database, guards: &GuardConfig, breaker_enabled: &watch::Receiver<bool>) {
    let mut database = Backoff::new("reading the guards", db);
    let mut forget_at = Instant::now();
    loop {
        if Instant::now() >= forget_at {
            forget_at = Instant::now() + FORGETTING;
            if let Err(error) = in_time(guard::forget_latencies(db, guards)).await {
                tracing::debug!(%error, "could not forget how long calls took that nobody makes any more");
            }
        }
        let enabled = *breaker_enabled.borrow();
        match in_time(guard::status(db, guards, enabled)).await {
            Ok(all) => {
                database.succeeded();
                all.iter().for_each(show_guard);
            }
            Err(error) => database.failed(&error).await,
        }
        sleep(COUNTS).await;
    }
}

fn show_guard(status: &GuardStatus) {
    let class = || status.class.clone();
    for state in State::NAMES.map(named) {
        let is = u8::from(state == status.circuit.state);
        metrics::gauge!("tollgate_guard_state", "class" => class(), "state" => state).set(is);
    }
    metrics::gauge!("tollgate_guard_failure_rate", "class" => class()).set(status.circuit.failure_rate);
    metrics::gauge!("tollgate_guard_in_flight", "class" => class()).set(status.in_flight as f64);
    metrics::gauge!("tollgate_gen_timeout_rate_15m", "class" => class())
        .set(status.gen_timeout_rate_15m.unwrap_or(0.0));
    metrics::gauge!("tollgate_breaker_open_time_daily", "class" => class())
        .set(status.breaker_open_time_daily as f64);
    if let Some(available) = status.budget.available {
        metrics::gauge!("tollgate_guard_budget", "class" => class()).set(available);
    }
}
