//! The sweep: what no worker would otherwise come back to. Any number of processes may sweep at once.

use tollgate_model::account::AccountId;
use tollgate_model::job::{JobError, codes};
use tollgate_model::queue::{MAX_LOST_LEASES, QueueName};
use tollgate_store as store;
use tollgate_store::SystemTx;
use uuid::Uuid;

use crate::{Database, Result};

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
}

/// Gives up dead workers, returns their tasks to the queue, and fails what has expired.
pub async fn sweep(db: &Database) -> Result<Swept> {
    let mut swept = Swept::default();
    // By turns: a long list of one must not delay the other.
    while take_back(db, &mut swept).await? | expire(db, &mut swept).await? {}
    if swept.requeued > 0
        && let Err(error) = store::notify_ready(db.pool(), QueueName::GenerationCreate).await
    {
        tracing::debug!(%error, "could not wake the workers; their scan finds the tasks");
    }
    Ok(swept)
}

/// One batch; `true`: there may be more.
async fn take_back(db: &Database, swept: &mut Swept) -> Result<bool> {
    let mut tx = SystemTx::begin(db.pool()).await?;
    // First the workers: one that wakes up now finds itself gone, before its tasks are.
    swept.dead_workers += store::remove_dead(&mut tx).await?;
    let mut lost = store::take_back_lost(&mut tx, BATCH).await?;
    let full = i64::try_from(lost.len()) == Ok(BATCH);
    lost.sort_unstable();
    let Some(&(first, ..)) = lost.first() else {
        tx.commit().await?;
        return Ok(false);
    };
    let error = JobError {
        code: codes::WORKER_LOST.into(),
        message: format!("its worker died with the job in hand {MAX_LOST_LEASES} times"),
    };
    let mut tx = tx.enter(first).await?;
    for tasks in lost.chunk_by(|a, b| a.0 == b.0) {
        tx = tx.enter(tasks[0].0).await?;
        let ids: Vec<Uuid> = tasks.iter().map(|task| task.1).collect();
        store::mark_requeued(&mut tx, &ids, "worker lost").await?;
        for &(_, id, _) in tasks.iter().filter(|task| task.2 >= MAX_LOST_LEASES) {
            if store::bury_unleased(&mut tx, id, &error).await? {
                store::mark_failed(&mut tx, &[id], &error).await?;
                swept.poisoned += 1;
            }
        }
    }
    tx.commit().await?;
    swept.requeued += lost.len();
    Ok(full)
}

/// One batch; `true`: there may be more.
async fn expire(db: &Database, swept: &mut Swept) -> Result<bool> {
    let error = JobError {
        code: codes::EXPIRED.into(),
        message: "not finished within its time to live (GENERATION_JOB_TTL)".into(),
    };
    let mut tx = SystemTx::begin(db.pool()).await?;
    let mut expired: Vec<(AccountId, Uuid)> = store::bury_expired(&mut tx, &error, BATCH).await?;
    expired.sort_unstable();
    let Some(&(first, _)) = expired.first() else {
        tx.commit().await?;
        return Ok(false);
    };
    let mut tx = tx.enter(first).await?;
    for tasks in expired.chunk_by(|a, b| a.0 == b.0) {
        tx = tx.enter(tasks[0].0).await?;
        let ids: Vec<Uuid> = tasks.iter().map(|task| task.1).collect();
        store::mark_failed(&mut tx, &ids, &error).await?;
    }
    tx.commit().await?;
    swept.expired += expired.len();
    Ok(i64::try_from(expired.len()) == Ok(BATCH))
}
