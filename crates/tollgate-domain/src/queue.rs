//! The queue itself, whatever its tasks stand for: enqueue, claim, finish, and the upkeep of its lanes.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;
use tollgate_model::account::AccountId;
use tollgate_model::audit::{Action, Actor};
use tollgate_model::generation::Decision;
use tollgate_model::job::JobError;
use tollgate_model::lanes::{ListedLane, Plan};
use tollgate_model::queue::{ClaimedTask, Lease, QueueCounts, QueueName, QueuePolicy, QueueState};
use tollgate_model::retry::{AfterFailure, after_failure};
use tollgate_store as store;
use tollgate_store::{Alone, IdleSign, LaneSettings, SystemTx, TenantTx, Tx as _};
use uuid::Uuid;

use crate::waker::wake_workers;
use crate::{Database, Error, Result, accounts, audit, dead_letters};

pub use tollgate_store::NewTask;

/// Enqueues one by one, each task in a commit of its own, on a connection of its own. Whoever does more than this in one
/// transaction has a function of its own, such as [`crate::submit::submit`].
#[derive(Debug)]
pub struct Enqueuer {
    alone: Alone,
    /// Lanes whose counts are known to be there; they never go.
    lanes: HashSet<(AccountId, QueueName)>,
}

/// An enqueuer forgets what it knows of lanes beyond so many.
const KNOWN_LANES: usize = 10_000;

impl Enqueuer {
    /// Takes a connection.
    pub async fn connect(db: &Database) -> Result<Self> {
        Ok(Self { alone: Alone::acquire(db.pool()).await?, lanes: HashSet::new() })
    }

    /// Enqueues a task of the account.
    pub async fn enqueue(&mut self, account: AccountId, task: NewTask<'_>) -> Result<()> {
        if !self.lanes.contains(&(account, task.queue)) {
            store::open_lane(&mut self.alone, account, task.queue).await?;
            if self.lanes.len() >= KNOWN_LANES {
                self.lanes.clear();
            }
            self.lanes.insert((account, task.queue));
        }
        Ok(store::enqueue(&mut self.alone, account, task).await?)
    }
}

/// Enqueues many tasks of one queue in one statement and one commit.
pub async fn enqueue_all(
    db: &Database,
    queue: QueueName,
    ttl: Duration,
    tasks: &[(AccountId, NewTask<'_>)],
) -> Result<()> {
    let mut alone = Alone::acquire(db.pool()).await?;
    Ok(store::enqueue_all(&mut alone, queue, ttl, tasks).await?)
}

/// Lanes of a queue that may have tasks.
#[derive(Debug)]
pub struct Listing {
    /// In the order of accounts.
    pub lanes: Vec<ListedLane>,
    /// The settings that a claim of these lanes is to name.
    pub settings: i64,
    /// Whether there are lanes beyond the last of these.
    pub more: bool,
}

/// At most so many lanes are listed at a time.
const LISTED: i64 = 4096;

/// The lanes that may have tasks, from the account after `after` on.
pub async fn list_lanes(db: &Database, queue: QueueName, worker: Uuid, after: AccountId) -> Result<Listing> {
    let mut alone = Alone::acquire(db.pool()).await?;
    let (lanes, settings) = store::awake_lanes(&mut alone, queue, worker, after, LISTED).await?;
    let more = i64::try_from(lanes.len()) == Ok(LISTED);
    // A worker that is not registered claims nothing under any settings.
    Ok(Listing { lanes, settings: settings.unwrap_or(-1), more })
}

/// Leases tasks to the worker as planned, in one commit.
pub async fn claim(
    db: &Database,
    queue: QueueName,
    worker: Uuid,
    settings: i64,
    plan: &mut Plan,
) -> Result<Vec<ClaimedTask>> {
    if plan.shares.iter().any(|share| share.capped) {
        let mut tx = SystemTx::begin(db.pool()).await?;
        let tasks = take(&mut tx, queue, worker, settings, plan).await?;
        tx.commit().await?;
        return Ok(tasks);
    }
    let mut alone = Alone::acquire(db.pool()).await?;
    Ok(store::claim(&mut alone, queue, worker, settings, plan, &[], false).await?)
}

/// Leases tasks to the worker as planned, minding caps. A cap of the queue lowers the plan's limit.
pub(crate) async fn take(
    tx: &mut SystemTx,
    queue: QueueName,
    worker: Uuid,
    settings: i64,
    plan: &mut Plan,
) -> Result<Vec<ClaimedTask>> {
    let capped: Vec<Uuid> =
        plan.shares.iter().filter(|share| share.capped).map(|share| share.account.0).collect();
    if capped.is_empty() {
        return Ok(store::claim(tx, queue, worker, settings, plan, &[], false).await?);
    }
    let (lanes, of_queue) = store::lock_caps(tx, queue, &capped).await?;
    let room = |room: i32| usize::try_from(room).unwrap_or(0);
    plan.limit = plan.limit.min(of_queue.map_or(usize::MAX, room));
    // A lane that its cap keeps back counts as looked at in vain: the caller's plan keeps its share.
    let mut plan = plan.clone();
    for share in &mut plan.shares {
        if let Some(lane) = lanes.iter().find(|lane| lane.account == share.account) {
            share.quota = share.quota.min(room(lane.room));
        }
    }
    plan.shares.retain(|share| share.quota > 0);
    if plan.limit == 0 || plan.shares.is_empty() {
        return Ok(Vec::new());
    }
    let tasks = store::claim(tx, queue, worker, settings, &plan, &lanes, of_queue.is_some()).await?;
    let count = |tasks: usize| i32::try_from(tasks).unwrap_or(i32::MAX);
    let of = |lane: AccountId| tasks.iter().filter(|task| task.lease.account == lane).count();
    let counted: Vec<_> = lanes
        .iter()
        .map(|lane| (lane.account, count(of(lane.account))))
        .filter(|(_, tasks)| *tasks > 0)
        .collect();
    let of_queue = of_queue.map_or(0, |_| count(tasks.len()));
    if !counted.is_empty() || of_queue > 0 {
        store::take_cap(tx, queue, &counted, of_queue).await?;
    }
    Ok(tasks)
}

/// Ends leases of tasks that are done, in one commit. Returns the tokens of those that held; the others were lost.
pub async fn finish_all(db: &Database, leases: &[Lease]) -> Result<Vec<i64>> {
    let mut alone = Alone::acquire(db.pool()).await?;
    Ok(store::finish_all(&mut alone, leases).await?)
}

/// Ends a failed attempt of a task that is no job's: schedules the next one, or puts it into the dead letters and marks what
/// it stands for. `jitter` is a random number in 0..1. `None`: the lease was lost.
pub async fn fail(
    db: &Database,
    policy: &QueuePolicy,
    task: &ClaimedTask,
    error: &JobError,
    jitter: f64,
) -> Result<Option<AfterFailure>> {
    let lease = task.lease;
    let mut tx = TenantTx::begin(db.pool(), lease.account).await?;
    let now = tx.now().await?;
    let (attempt, most) = (task.attempt, task.max_attempts);
    let next = after_failure(&policy.retry, Decision::Retry, attempt, most, now, task.expires_at, jitter);
    let held = match next {
        AfterFailure::RetryAt(at) => store::retry_at(&mut tx, lease, at, error).await?,
        AfterFailure::GiveUp => store::bury(&mut tx, lease, error).await?,
    };
    if !held {
        return Ok(None);
    }
    if next == AfterFailure::GiveUp {
        dead_letters::mark(&mut tx, policy.name, &[lease.task], error).await?;
    }
    tx.commit().await?;
    if next == AfterFailure::GiveUp {
        dead_letters::died(policy.name, lease.account, lease.task, &error.code);
    }
    Ok(Some(next))
}

/// Puts lanes to sleep that have no ready task. Returns those that sleep now.
pub async fn put_to_sleep(db: &Database, queue: QueueName, accounts: &[AccountId]) -> Result<Vec<AccountId>> {
    let accounts: Vec<Uuid> = accounts.iter().map(|account| account.0).collect();
    let mut tx = SystemTx::begin(db.pool()).await?;
    let locked = store::lock_lanes(&mut tx, queue, &accounts).await?;
    let mut asleep = store::put_to_sleep(&mut tx, queue, &locked).await?;
    tx.commit().await?;
    asleep.sort_unstable();
    asleep.dedup();
    Ok(asleep)
}

/// How many scheduled tasks are made ready in one commit.
const PROMOTED: i64 = 1000;

/// What a look at the schedule brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promotion {
    /// Tasks that became ready.
    pub promoted: u64,
    /// How long until the next is due; `None`: none is scheduled.
    pub next: Option<Duration>,
}

/// Makes scheduled tasks ready whose time has come.
pub async fn promote_due(db: &Database, queue: QueueName) -> Result<Promotion> {
    let mut alone = Alone::acquire(db.pool()).await?;
    let next = store::due_in(&mut alone, queue).await?;
    if next.is_none_or(|next| !next.is_zero()) {
        return Ok(Promotion { promoted: 0, next });
    }
    let promoted = store::promote_due(&mut alone, queue, PROMOTED).await?;
    let next = store::due_in(&mut alone, queue).await?;
    if promoted > 0 {
        wake_workers(db, queue).await;
    }
    Ok(Promotion { promoted, next })
}

/// How many tasks these queues have together, over all accounts.
pub async fn counts(db: &Database, queues: &[QueueName]) -> Result<QueueCounts> {
    let mut alone = Alone::acquire(db.pool()).await?;
    let mut sum = QueueCounts::default();
    for queue in queues {
        let QueueCounts { queued, running, done, failed } = store::queue_counts(&mut alone, *queue).await?;
        sum.queued += queued;
        sum.running += running;
        sum.done += done;
        sum.failed += failed;
    }
    Ok(sum)
}

/// What is set for one account's lane.
pub async fn lane_settings(db: &Database, queue: QueueName, account: AccountId) -> Result<LaneSettings> {
    accounts::exists(db, account).await?;
    let mut tx = SystemTx::begin(db.pool()).await?;
    let settings = store::lane_settings(&mut tx, queue, account).await?;
    tx.commit().await?;
    Ok(settings)
}

/// What of a lane's settings is to change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneChange {
    /// `None`: stays.
    pub weight: Option<u16>,
    /// `None`: stays.
    pub max_running: Option<Cap>,
}

/// How many tasks may run at a time; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap(pub Option<i32>);

/// Changes what is set for one account's lane, and nothing that is not asked for. Returns what is in force now, for
/// every worker.
pub async fn change_lane(
    db: &Database,
    queue: QueueName,
    account: AccountId,
    actor: Actor,
    change: LaneChange,
) -> Result<LaneSettings> {
    lane_is_valid(change.weight, change.max_running.and_then(|Cap(max)| max))?;
    accounts::exists(db, account).await?;
    // Whoever else changes it takes turns from here on.
    let mut tx = change_settings(db).await?;
    let LaneSettings { weight, max_running } = store::lane_settings(&mut tx, queue, account).await?;
    let settings = LaneSettings {
        weight: change.weight.unwrap_or(weight),
        max_running: change.max_running.map_or(max_running, |Cap(max)| max),
    };
    store::set_lane(&mut tx, queue, account, settings).await?;
    let mut tx = tx.enter(account).await?;
    let detail = json!({ "weight": settings.weight, "max_running": settings.max_running });
    audit::record(&mut tx, actor, Action::LaneSet, &format!("lane:{queue}"), &detail).await?;
    tx.commit().await?;
    // What a cap has held back may be claimed now.
    wake_workers(db, queue).await;
    Ok(settings)
}

/// Every queue, with its counts over all accounts and its cap.
pub async fn states(db: &Database) -> Result<Vec<QueueState>> {
    let mut alone = Alone::acquire(db.pool()).await?;
    Ok(store::queue_states(&mut alone).await?)
}

/// Sets how many of a queue's tasks may run at a time, over all workers; `None`: no limit. In force when this returns.
pub async fn set_queue(
    db: &Database,
    queue: QueueName,
    actor: Actor,
    max_running: Option<i32>,
) -> Result<()> {
    cap_is_valid(max_running)?;
    let mut tx = change_settings(db).await?;
    store::set_queue(&mut tx, queue, max_running).await?;
    let detail = json!({ "max_running": max_running });
    audit::record_for_all(&mut tx, actor, Action::QueueSet, &format!("queue:{queue}"), &detail).await?;
    tx.commit().await?;
    // What a cap has held back may be claimed now.
    wake_workers(db, queue).await;
    Ok(())
}

/// Tries to have the queue to itself, and between tries lets everybody else pass.
async fn change_settings(db: &Database) -> Result<SystemTx> {
    const TRIES: u32 = 20;
    let mut tries = 1;
    loop {
        let mut tx = SystemTx::begin(db.pool()).await?;
        match store::change_settings(&mut tx).await.map_err(Error::from) {
            Ok(()) => return Ok(tx),
            Err(error) if error.is_unavailable() && tries < TRIES => tries += 1,
            Err(error) => return Err(error),
        }
        drop(tx);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn lane_is_valid(weight: Option<u16>, max_running: Option<i32>) -> Result<()> {
    if weight.is_some_and(|weight| !(1..=1000).contains(&weight)) {
        return Err(Error::Invalid { field: "weight", problem: "must be between 1 and 1000".into() });
    }
    cap_is_valid(max_running)
}

fn cap_is_valid(max_running: Option<i32>) -> Result<()> {
    if max_running.is_some_and(|max| max < 0) {
        return Err(Error::Invalid { field: "max_running", problem: "must not be negative".into() });
    }
    Ok(())
}

/// A worker's sign that it is idle, so that others need not send hints to workers that are busy anyway.
#[derive(Debug)]
pub struct Idle {
    sign: IdleSign,
    queue: QueueName,
    up: bool,
    doubted: bool,
}

impl Idle {
    /// Connects; the sign is not up yet.
    pub async fn connect(db: &Database, queue: QueueName) -> Result<Self> {
        Ok(Self { sign: IdleSign::connect(db.pool()).await?, queue, up: false, doubted: false })
    }

    /// Puts the sign up. `true`: it was not, so the worker must look once more before it waits.
    pub async fn raise(&mut self) -> Result<bool> {
        if self.up {
            if std::mem::take(&mut self.doubted) {
                self.sign.check().await?;
            }
            return Ok(false);
        }
        self.sign.raise(self.queue).await?;
        (self.up, self.doubted) = (true, false);
        Ok(true)
    }

    /// The connection may have been lost, and the sign with it: the next [`raise`](Self::raise) asks.
    pub fn doubt(&mut self) {
        self.doubted = true;
    }

    /// Takes the sign down.
    pub async fn lower(&mut self) -> Result<()> {
        if std::mem::take(&mut self.up) {
            self.sign.lower(self.queue).await?;
        }
        Ok(())
    }
}
