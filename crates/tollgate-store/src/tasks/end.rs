//! The ways a lease can end.

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use tollgate_model::job::JobError;
use tollgate_model::queue::Lease;
use uuid::Uuid;

use super::counted;
use crate::tx::Tx;
use crate::{Result, TenantTx};

/// The task is done and gone. `false`: the lease was lost, and the caller must change nothing.
pub async fn finish(tx: &mut impl Tx, lease: Lease) -> Result<bool> {
    Ok(finish_all(tx, &[lease]).await?.len() == 1)
}

/// The tasks are done and gone. Returns the tokens of the leases that held; the others were lost.
pub async fn finish_all(tx: &mut impl Tx, leases: &[Lease]) -> Result<Vec<i64>> {
    let accounts: Vec<Uuid> = leases.iter().map(|lease| lease.account.0).collect();
    let ids: Vec<Uuid> = leases.iter().map(|lease| lease.task).collect();
    let tokens: Vec<i64> = leases.iter().map(|lease| lease.token).collect();
    counted!(
        "WITH change AS (
             DELETE FROM queue.tasks t USING unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS l (account_id, id, lease)
             WHERE t.account_id = l.account_id AND t.id = l.id AND t.lease = l.lease
             RETURNING t.account_id, t.queue, t.lease, 0 AS queued, -1 AS running, 1 AS done, 0 AS failed,
                       false AS awake, t.lane_capped, t.queue_capped)",
        r#"SELECT lease AS "lease!" FROM change"#,
        &accounts,
        &ids,
        &tokens,
    )
    .map(|row| row.lease)
    .fetch_all(tx.connection())
    .await
}

/// Back to the queue after a failed attempt. `false`: the lease was lost.
pub async fn retry_at(tx: &mut impl Tx, lease: Lease, at: DateTime<Utc>, error: &JobError) -> Result<bool> {
    let done = counted!(
        "WITH held AS (
             SELECT account_id, id, lane_capped, queue_capped FROM queue.tasks
             WHERE account_id = $1 AND id = $2 AND lease = $3 FOR UPDATE
         ), change AS (
             UPDATE queue.tasks t
             SET state = CASE WHEN $4 > clock_timestamp() THEN 'scheduled' ELSE 'ready' END, run_at = $4,
                 rank = t.priority * 2, position = nextval('queue.position'),
                 lease = NULL, worker_id = NULL, lane_capped = false, queue_capped = false, last_error = $5
             FROM held WHERE t.account_id = held.account_id AND t.id = held.id
             RETURNING t.account_id, t.queue, 1 AS queued, -1 AS running, 0 AS done, 0 AS failed,
                       t.state = 'ready' AS awake, held.lane_capped, held.queue_capped)",
        r#"SELECT count(*) AS "count!" FROM change"#,
        lease.account.0,
        lease.task,
        lease.token,
        at,
        Json(error) as _,
    )
    .fetch_one(tx.connection())
    .await?;
    Ok(done.count == 1)
}

/// Handed back unharmed: the attempt does not count, and it goes before its equals. `false`: the lease was lost.
pub async fn release(tx: &mut impl Tx, lease: Lease) -> Result<bool> {
    let done = counted!(
        "WITH held AS (
             SELECT account_id, id, lane_capped, queue_capped FROM queue.tasks
             WHERE account_id = $1 AND id = $2 AND lease = $3 FOR UPDATE
         ), change AS (
             UPDATE queue.tasks t
             SET state = 'ready', rank = t.priority * 2 - 1, position = nextval('queue.position'),
                 lease = NULL, worker_id = NULL, lane_capped = false, queue_capped = false, attempts = t.attempts - 1
             FROM held WHERE t.account_id = held.account_id AND t.id = held.id
             RETURNING t.account_id, t.queue, 1 AS queued, -1 AS running, 0 AS done, 0 AS failed, true AS awake,
                       held.lane_capped, held.queue_capped)",
        r#"SELECT count(*) AS "count!" FROM change"#,
        lease.account.0,
        lease.task,
        lease.token,
    )
    .fetch_one(tx.connection())
    .await?;
    Ok(done.count == 1)
}

/// Acknowledges a leased task into the dead letters. `false`: the lease was lost.
pub async fn bury(tx: &mut impl Tx, lease: Lease, reason: &JobError) -> Result<bool> {
    let done = counted!(
        "WITH gone AS (
             DELETE FROM queue.tasks WHERE account_id = $1 AND id = $2 AND lease = $3 RETURNING *
         ), letter AS (
             INSERT INTO queue.dead_letters
                 (account_id, id, queue, type, payload, priority, attempts, max_attempts, reason, created_at)
             SELECT account_id, id, queue, type, payload, priority, attempts, max_attempts, $4, created_at FROM gone
         ), change AS (
             SELECT account_id, queue, 0 AS queued, -1 AS running, 0 AS done, 1 AS failed, false AS awake, lane_capped,
                    queue_capped FROM gone)",
        r#"SELECT count(*) AS "count!" FROM change"#,
        lease.account.0,
        lease.task,
        lease.token,
        Json(reason) as _,
    )
    .fetch_one(tx.connection())
    .await?;
    Ok(done.count == 1)
}

/// Takes a task out of the queue, whatever its state; a worker that runs it has lost its lease.
/// `false`: there was none.
pub async fn delete_task(tx: &mut TenantTx, id: Uuid) -> Result<bool> {
    let account = tx.account().0;
    let done = counted!(
        "WITH change AS (
             DELETE FROM queue.tasks WHERE account_id = $1 AND id = $2
             RETURNING account_id, queue, CASE state WHEN 'running' THEN 0 ELSE -1 END AS queued,
                       CASE state WHEN 'running' THEN -1 ELSE 0 END AS running, 0 AS done, 0 AS failed, false AS awake,
                       lane_capped, queue_capped)",
        r#"SELECT count(*) AS "count!" FROM change"#,
        account,
        id,
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(done.count == 1)
}
