//! Dead letters: tasks that nothing tries again by itself.

use tollgate_model::account::AccountId;
use tollgate_model::job::JobError;
use tollgate_model::queue::Lease;
use uuid::Uuid;

use crate::{Result, SystemTx, TenantTx};

/// Acknowledges a leased task into the dead letters. `false`: the lease was lost.
pub async fn bury(tx: &mut TenantTx, lease: Lease, reason: &JobError) -> Result<bool> {
    let done = sqlx::query!(
        "WITH gone AS (DELETE FROM queue.tasks WHERE account_id = $1 AND id = $2 AND lease = $3 RETURNING *)
         INSERT INTO queue.dead_letters
             (account_id, id, queue, type, payload, priority, attempts, max_attempts, reason, created_at)
         SELECT account_id, id, queue, type, payload, priority, attempts, max_attempts, $4, created_at FROM gone",
        lease.account.0,
        lease.task,
        lease.token,
        sqlx::types::Json(reason) as _,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The same for a task that no worker holds, and whose row this transaction has locked.
pub async fn bury_unleased(tx: &mut TenantTx, task: Uuid, reason: &JobError) -> Result<bool> {
    let done = sqlx::query!(
        "WITH gone AS (DELETE FROM queue.tasks WHERE account_id = $1 AND id = $2 AND state <> 'running' RETURNING *)
         INSERT INTO queue.dead_letters
             (account_id, id, queue, type, payload, priority, attempts, max_attempts, reason, created_at)
         SELECT account_id, id, queue, type, payload, priority, attempts, max_attempts, $3, created_at FROM gone",
        tx.account().0,
        task,
        sqlx::types::Json(reason) as _,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Buries up to `limit` tasks that expired before a worker took them. A running one may still finish.
pub async fn bury_expired(
    tx: &mut SystemTx,
    reason: &JobError,
    limit: i64,
) -> Result<Vec<(AccountId, Uuid)>> {
    sqlx::query!(
        r#"WITH gone AS (
               DELETE FROM queue.tasks WHERE ctid = ANY (ARRAY(
                   SELECT ctid FROM queue.tasks WHERE state <> 'running' AND expires_at <= statement_timestamp()
                   ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))
               RETURNING *)
           INSERT INTO queue.dead_letters
               (account_id, id, queue, type, payload, priority, attempts, max_attempts, reason, created_at)
           SELECT account_id, id, queue, type, payload, priority, attempts, max_attempts, $2, created_at FROM gone
           RETURNING account_id, id"#,
        limit,
        sqlx::types::Json(reason) as _,
    )
    .map(|row| (AccountId(row.account_id), row.id))
    .fetch_all(tx.conn())
    .await
}
