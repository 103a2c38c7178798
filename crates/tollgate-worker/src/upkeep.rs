//! What some process has to do for the platform as a whole, beside its work: remove what ended long ago, and count what
//! waits. Every worker does it; any one would do.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tollgate_domain::retention::{self, Progress, Removed};
use tollgate_domain::{Database, Result, forget, guard, queue, reconcile, stripe};
use tollgate_model::guard::circuit::State;
use tollgate_model::guard::class::GuardConfig;
use tollgate_model::guard::status::{GuardStatus, named};
use tollgate_model::queue::QueueName;

use crate::backoff::{Backoff, in_time, jitter};
use crate::images::Images;

/// A round is followed by this many times the time it took, which is left to others.
const REST: u32 = 4;
/// Between two looks at every account, where little is kept for long.
const LOOKS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(15);
/// A process that has just started is not kept from that for so long.
const FIRST_LOOK: Duration = Duration::from_mins(1);
/// From one look at some accounts' ledgers to the next.
const BOOKS: Duration = Duration::from_secs(2);
/// From one look for what some accounts need no more to the next.
const FORGETTING: Duration = Duration::from_mins(1);

/// Between two counts of what waits.
const COUNTS: Duration = Duration::from_secs(5);
/// Counting may take up this part of the time, and no more: it costs more the more accounts there are.
const COUNTING_SHARE: u32 = 20;

/// How long things are kept; `None`: for ever.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// A job, from its end on. An image goes with the last job that has it.
    pub jobs: Option<Duration>,
    /// An event of Stripe's, from when it came on, once nothing is left to do about it.
    pub stripe_events: Option<Duration>,
}

/// Keeps things up until it is dropped.
pub async fn upkeep(
    db: Database,
    keep: Keep,
    images: Images,
    guards: GuardConfig,
    breaker_enabled: watch::Receiver<bool>,
) {
    tokio::join!(
        retain(&db, keep.jobs, &images),
        forget_events(&db, keep.stripe_events),
        count(&db),
        show_guards(&db, &guards, &breaker_enabled),
        reconcile(&db),
        forget(&db),
    );
}

/// The turns of one that does a little, again and again. Each pause is drawn anew, so that many workers do not do the same in
/// step.
struct Turns {
    database: Backoff,
    pause: Duration,
    began: Instant,
}

impl Turns {
    fn new(what: &'static str, db: &Database, first: Duration) -> Self {
        Self { database: Backoff::new(what, db), pause: first, began: Instant::now() }
    }

    async fn next(&mut self) {
        sleep(self.pause.mul_f64(0.5 + jitter())).await;
        self.database.while_away().await;
        self.began = Instant::now();
    }

    /// What came of it: how long the next turn may wait, or an error, after which it is tried again soon.
    async fn ended(&mut self, turn: Result<Duration>) {
        match turn {
            Ok(pause) => {
                self.database.succeeded();
                self.pause = pause.max(self.began.elapsed() * REST);
            }
            Err(error) => self.database.failed(&error).await,
        }
    }
}

/// How often to look for what has been kept for long enough: it is kept for up to a hundredth longer than it must be.
fn look(keep: Duration) -> Duration {
    (keep / 100).clamp(*LOOKS.start(), *LOOKS.end())
}

/// Not a part of the sweep, which must come round in time: a long list of old jobs keeps nobody but this loop.
async fn retain(db: &Database, keep: Option<Duration>, images: &Images) {
    metrics::counter!("tollgate_jobs_removed_total").increment(0);
    let Some(keep) = keep else { return };
    let mut progress = Progress::default();
    let mut turns = Turns::new("removing old jobs", db, look(keep).min(FIRST_LOOK));
    loop {
        turns.next().await;
        let removed = in_time(retention::round(db, keep, &mut progress)).await;
        images.remove(progress.take_outside()).await;
        let pause = removed.map(|Removed { jobs, more }| {
            if jobs > 0 {
                tracing::debug!(jobs, more, "removed old jobs");
            }
            if more { Duration::ZERO } else { look(keep) }
        });
        turns.ended(pause).await;
    }
}

async fn forget_events(db: &Database, keep: Option<Duration>) {
    let Some(keep) = keep else { return };
    let mut turns = Turns::new("forgetting events of Stripe's", db, look(keep).min(FIRST_LOOK));
    loop {
        turns.next().await;
        let more = in_time(stripe::forget(db, keep)).await;
        turns.ended(more.map(|more| if more { Duration::ZERO } else { look(keep) })).await;
    }
}

async fn reconcile(db: &Database) {
    metrics::gauge!("tollgate_ledger_drift_credits").set(0.0);
    metrics::counter!("tollgate_ledger_accounts_checked_total").increment(0);
    let mut progress = reconcile::Progress::default();
    let mut turns = Turns::new("reconciling ledgers", db, BOOKS);
    loop {
        turns.next().await;
        let looked = in_time(reconcile::round(db, &mut progress)).await;
        if looked.is_ok() {
            metrics::gauge!("tollgate_ledger_drift_credits").set(progress.drift() as f64);
        }
        turns.ended(looked.map(|()| BOOKS)).await;
    }
}

async fn forget(db: &Database) {
    let mut after = None;
    let mut turns = Turns::new("forgetting what accounts need no more", db, FORGETTING);
    loop {
        turns.next().await;
        let next = in_time(forget::round(db, after)).await;
        turns
            .ended(next.map(|next| {
                after = next;
                FORGETTING
            }))
            .await;
    }
}

async fn count(db: &Database) {
    let mut database = Backoff::new("counting", db);
    loop {
        let began = Instant::now();
        for queue in QueueName::ALL {
            database.while_away().await;
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
const LATENCIES: Duration = Duration::from_mins(10);

/// What alerts look at (SPEC A7), and dashboards.
async fn show_guards(db: &Database, guards: &GuardConfig, breaker_enabled: &watch::Receiver<bool>) {
    let mut database = Backoff::new("reading the guards", db);
    let mut forget_at = Instant::now();
    loop {
        database.while_away().await;
        if Instant::now() >= forget_at {
            forget_at = Instant::now() + LATENCIES;
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
