//! The sweep: what no worker would otherwise come back to. Any number of processes may sweep at once.

use tollgate_model::account::AccountId;
use tollgate_model::job::{JobError, codes};
use tollgate_model::queue::{MAX_LOST_LEASES, QueueName};
use tollgate_store as store;
use tollgate_store::SystemTx;
use uuid::Uuid;

use crate::waker::wake_workers;
use crate::{Database, Result, dead_letters};

/// Rows one transaction handles; a longer list takes several.
const BATCH: i64 = 500;

/// What a sweep found. All zero where nothing went wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Workers not heard of for their visibility timeout.
    pub dead_workers: u64,
    /// Their tasks, back in the queue.
    pub requeued: usize,
    /// Their tasks that have been lost too often, and failed.
    pub poisoned: usize,
    /// Tasks that expired before a worker took them.
    pub expired: usize,
    /// Tasks leased to a worker that does not exist. There must be none.
    pub orphans: usize,
    /// Lanes that slept with tasks ready. There must be none.
    pub lost_wakeups: i64,
}

/// What a sweeper carries from one sweep to the next.
#[derive(Debug, Clone)]
pub struct Rounds {
    /// The worker that sweeps: it gives up only those who were silent while it was itself heard. `None`: nobody, who
    /// goes by the heartbeats alone.
    pub sweeper: Option<Uuid>,
    /// Where the next look for lost wake-ups goes on, queue by queue.
    after: [AccountId; QueueName::ALL.len()],
}

impl Default for Rounds {
    fn default() -> Self {
        Self { sweeper: None, after: [AccountId(Uuid::nil()); QueueName::ALL.len()] }
    }
}

/// Gives up dead workers, returns their tasks to the queue, fails what has expired, and looks for what must not be there.
pub async fn sweep(db: &Database, rounds: &mut Rounds) -> Result<Swept> {
    let mut swept = Swept::default();
    // By turns: a long list of one must not delay the other.
    while take_back_dead(db, rounds.sweeper, &mut swept).await? | expire(db, &mut swept).await? {}
    find_orphans(db, &mut swept).await?;
    find_lost_wakeups(db, rounds, &mut swept).await?;
    if swept.requeued > 0 || swept.lost_wakeups > 0 {
        for queue in QueueName::ALL {
            wake_workers(db, queue).await;
        }
    }
    Ok(swept)
}

/// One batch; `true`: there may be more.
async fn take_back_dead(db: &Database, sweeper: Option<Uuid>, swept: &mut Swept) -> Result<bool> {
    let mut tx = SystemTx::begin(db.pool()).await?;
    let Some(worker) = store::lock_dead_worker(&mut tx, sweeper).await? else {
        tx.commit().await?;
        return Ok(false);
    };
    take_back(tx, worker, swept).await
}

/// Takes back one batch of the worker's tasks; after the last one, the worker's row goes. `true`: there is more to do.
async fn take_back(mut tx: SystemTx, worker: Uuid, swept: &mut Swept) -> Result<bool> {
    let mut lost = store::take_back(&mut tx, worker, BATCH).await?;
    let full = i64::try_from(lost.len()) == Ok(BATCH);
    // While the row stands, its tasks are found by it.
    let removed = !full && store::remove_dead(&mut tx, worker).await?;
    swept.dead_workers += u64::from(removed);
    lost.sort_unstable();
    let Some(&(first, ..)) = lost.first() else {
        tx.commit().await?;
        return Ok(removed);
    };
    let error = JobError {
        code: codes::WORKER_LOST.into(),
        message: format!("its worker died with the job in hand {MAX_LOST_LEASES} times"),
    };
    let mut buried = Vec::new();
    let mut tx = tx.enter(first).await?;
    for tasks in lost.chunk_by(|a, b| a.0 == b.0) {
        tx = tx.enter(tasks[0].0).await?;
        let ids: Vec<Uuid> = tasks.iter().map(|task| task.1).collect();
        store::mark_requeued(&mut tx, &ids, "worker lost").await?;
        for &(account, id, _) in tasks.iter().filter(|task| task.2 >= MAX_LOST_LEASES) {
            if let Some(queue) = store::bury_unleased(&mut tx, id, &error).await? {
                dead_letters::mark(&mut tx, queue, &[id], &error).await?;
                buried.push((queue, account, id));
            }
        }
    }
    tx.commit().await?;
    swept.poisoned += buried.len();
    for (queue, account, id) in buried {
        dead_letters::died(queue, account, id, &error.code);
    }
    swept.requeued += lost.len();
    Ok(full || removed)
}

async fn find_orphans(db: &Database, swept: &mut Swept) -> Result<()> {
    let mut tx = SystemTx::begin(db.pool()).await?;
    let workers = store::orphan_workers(&mut tx).await?;
    tx.commit().await?;
    for worker in workers {
        let before = swept.requeued;
        while take_back(SystemTx::begin(db.pool()).await?, worker, swept).await? {}
        swept.orphans += swept.requeued - before;
    }
    Ok(())
}

async fn find_lost_wakeups(db: &Database, rounds: &mut Rounds, swept: &mut Swept) -> Result<()> {
    for (queue, after) in QueueName::ALL.into_iter().zip(&mut rounds.after) {
        let mut tx = SystemTx::begin(db.pool()).await?;
        let (woken, last) = store::wake_lanes_with_work(&mut tx, queue, *after, BATCH).await?;
        tx.commit().await?;
        swept.lost_wakeups += woken;
        *after = last.unwrap_or(AccountId(Uuid::nil()));
    }
    Ok(())
}

/// One batch; `true`: there may be more.
async fn expire(db: &Database, swept: &mut Swept) -> Result<bool> {
    let error =
        JobError { code: codes::EXPIRED.into(), message: "not finished within its time to live".into() };
    let mut tx = SystemTx::begin(db.pool()).await?;
    let mut expired = store::bury_expired(&mut tx, &error, BATCH).await?;
    swept.expired += expired.len();
    let full = i64::try_from(expired.len()) == Ok(BATCH);
    expired.sort_unstable_by_key(|&(queue, account, id)| (account, queue, id));
    let Some(&(_, first, _)) = expired.first() else {
        tx.commit().await?;
        return Ok(false);
    };
    let mut tx = tx.enter(first).await?;
    for tasks in expired.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let (queue, account, _) = tasks[0];
        tx = tx.enter(account).await?;
        let ids: Vec<Uuid> = tasks.iter().map(|task| task.2).collect();
        dead_letters::mark(&mut tx, queue, &ids, &error).await?;
    }
    tx.commit().await?;
    for (queue, account, id) in expired {
        dead_letters::died(queue, account, id, &error.code);
    }
    Ok(full)
}
