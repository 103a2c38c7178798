//! The queue's tasks: enqueue, claim, and the ways a lease can end.
//!
//! Every end of a lease names its fencing token and reports whether it still held. Rows are picked by `ctid` from a
//! subselect that locked them: joined by key, the planner may hash the whole table (measured: 66,000 tasks/s against
//! 11,000). Times are compared with `now()` or `statement_timestamp()`: `clock_timestamp()` is volatile, and no index
//! can be asked for it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::types::PgInterval;
use tollgate_model::account::AccountId;
use tollgate_model::job::JobError;
use tollgate_model::queue::{ClaimedTask, Lease, QueueName};
use uuid::Uuid;

use crate::tx::Tx;
use crate::{Result, SystemTx, TenantTx};

/// A task to enqueue, in the transaction of whatever it stands for.
#[derive(Debug, Clone)]
pub struct NewTask<'a> {
    /// The id of what it stands for.
    pub id: Uuid,
    /// Which queue.
    pub queue: QueueName,
    /// For people and metrics.
    pub task_type: &'a str,
    /// 1 (first) to 10 (last).
    pub priority: i16,
    /// Attempts it may take.
    pub max_attempts: i32,
    /// Not before this; `None` is now.
    pub run_at: Option<DateTime<Utc>>,
    /// From `run_at` until it expires.
    pub ttl: Duration,
}

pub(crate) fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}

/// Enqueues a task of the transaction's account.
pub async fn enqueue(tx: &mut TenantTx, task: NewTask<'_>) -> Result<()> {
    sqlx::query!(
        "INSERT INTO queue.tasks (account_id, id, queue, type, state, priority, max_attempts, run_at, expires_at)
         SELECT $1, $2, $3, $4, CASE WHEN due > now() THEN 'scheduled' ELSE 'ready' END, $5, $6, due, due + $8
         FROM (SELECT greatest(now(), $7::timestamptz) AS due) AS schedule",
        tx.account().0,
        task.id,
        task.queue.as_str(),
        task.task_type,
        task.priority,
        task.max_attempts,
        task.run_at,
        interval(task.ttl),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Leases up to `limit` ready tasks to a worker, first priority first, then oldest. Tasks that another claim is
/// looking at are passed over, not waited for. A worker that is no longer registered gets none.
pub async fn claim(
    tx: &mut SystemTx,
    queue: QueueName,
    worker: Uuid,
    limit: i64,
) -> Result<Vec<ClaimedTask>> {
    sqlx::query!(
        r#"UPDATE queue.tasks
           SET state = 'running', lease = nextval('queue.lease_token'), worker_id = $2, attempts = attempts + 1,
               started_at = clock_timestamp()
           WHERE ctid = ANY (ARRAY(
               SELECT ctid FROM queue.tasks WHERE queue = $1 AND state = 'ready' AND expires_at > now()
               ORDER BY priority, id LIMIT $3 FOR UPDATE SKIP LOCKED))
             AND EXISTS (SELECT FROM queue.workers WHERE id = $2)
           RETURNING account_id, id, lease AS "lease!", attempts, max_attempts, expires_at,
                     extract(epoch FROM clock_timestamp() - run_at)::float8 AS "waited!""#,
        queue.as_str(),
        worker,
        limit,
    )
    .map(|row| ClaimedTask {
        lease: Lease { account: AccountId(row.account_id), task: row.id, token: row.lease },
        attempt: row.attempts,
        max_attempts: row.max_attempts,
        waited: Duration::try_from_secs_f64(row.waited).unwrap_or_default(),
        expires_at: row.expires_at,
    })
    .fetch_all(tx.conn())
    .await
}

/// Makes up to `limit` tasks that have fallen due claimable. Returns how many.
pub async fn promote_due(tx: &mut SystemTx, queue: QueueName, limit: i64) -> Result<u64> {
    let done = sqlx::query!(
        "UPDATE queue.tasks SET state = 'ready'
         WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM queue.tasks WHERE queue = $1 AND state = 'scheduled' AND run_at <= statement_timestamp()
             ORDER BY run_at LIMIT $2 FOR UPDATE SKIP LOCKED))",
        queue.as_str(),
        limit,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected())
}

/// How long until the next scheduled task is due, by the database's clock; `None`: none is scheduled.
pub async fn due_in(tx: &mut SystemTx, queue: QueueName) -> Result<Option<Duration>> {
    let seconds = sqlx::query_scalar!(
        "SELECT extract(epoch FROM min(run_at) - clock_timestamp())::float8 FROM queue.tasks
         WHERE queue = $1 AND state = 'scheduled'",
        queue.as_str(),
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)))
}

/// The task is done and gone. `false`: the lease was lost, and the caller must change nothing.
pub async fn finish(tx: &mut TenantTx, lease: Lease) -> Result<bool> {
    let done = sqlx::query!(
        "DELETE FROM queue.tasks WHERE account_id = $1 AND id = $2 AND lease = $3",
        lease.account.0,
        lease.task,
        lease.token,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Back to the queue after a failed attempt. `false`: the lease was lost.
pub async fn retry_at(tx: &mut TenantTx, lease: Lease, at: DateTime<Utc>, error: &JobError) -> Result<bool> {
    let done = sqlx::query!(
        "UPDATE queue.tasks
         SET state = CASE WHEN $4 > clock_timestamp() THEN 'scheduled' ELSE 'ready' END, run_at = $4,
             lease = NULL, worker_id = NULL, last_error = $5
         WHERE account_id = $1 AND id = $2 AND lease = $3",
        lease.account.0,
        lease.task,
        lease.token,
        at,
        sqlx::types::Json(error) as _,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Handed back unharmed: the attempt does not count. `false`: the lease was lost.
pub async fn release(tx: &mut TenantTx, lease: Lease) -> Result<bool> {
    let done = sqlx::query!(
        "UPDATE queue.tasks SET state = 'ready', lease = NULL, worker_id = NULL, attempts = attempts - 1
         WHERE account_id = $1 AND id = $2 AND lease = $3",
        lease.account.0,
        lease.task,
        lease.token,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes a task out of the queue, whatever its state; a worker that runs it has lost its lease.
/// `false`: there was none.
pub async fn delete_task(tx: &mut TenantTx, id: Uuid) -> Result<bool> {
    let done = sqlx::query!("DELETE FROM queue.tasks WHERE account_id = $1 AND id = $2", tx.account().0, id)
        .execute(tx.conn())
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Puts up to `limit` tasks whose worker is gone back into the queue, the lost attempt not counted. Returns each
/// with the number of times it has been lost.
pub async fn take_back_lost(tx: &mut SystemTx, limit: i64) -> Result<Vec<(AccountId, Uuid, i16)>> {
    sqlx::query!(
        "UPDATE queue.tasks
         SET state = 'ready', lease = NULL, worker_id = NULL, attempts = attempts - 1, lost = lost + 1
         WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM queue.tasks t
             WHERE state = 'running' AND NOT EXISTS (SELECT FROM queue.workers w WHERE w.id = t.worker_id)
             LIMIT $1 FOR UPDATE OF t SKIP LOCKED))
         RETURNING account_id, id, lost",
        limit,
    )
    .map(|row| (AccountId(row.account_id), row.id, row.lost))
    .fetch_all(tx.connection())
    .await
}
