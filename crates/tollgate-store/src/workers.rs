//! Worker processes: who is alive, and what each holds. A heartbeat is one row a process, not one a task.

use std::time::Duration;

use sqlx::PgPool;
use tollgate_model::account::AccountId;
use tollgate_model::queue::Lease;
use uuid::Uuid;

use crate::tasks::interval;
use crate::{Result, SystemTx};

/// Signs a worker in, to be given up after `timeout` without a heartbeat. Its id is fresh each boot: a host name would
/// let a restarted process inherit dead leases.
///
/// It goes on with the testimony of those who are heard at this moment, and beat at least as often: else workers that
/// live no longer than their timeout, as in a crash loop, would never give up the dead before them.
pub async fn register(pool: &PgPool, worker: Uuid, name: &str, timeout: Duration) -> Result<()> {
    sqlx::query!(
        "INSERT INTO queue.workers (id, name, visibility_timeout, heard_since)
         SELECT $1, $2, $3, coalesce(min(heard_since), clock_timestamp()) FROM queue.workers
         WHERE visibility_timeout <= $3 AND heartbeat_at + $3 / 3 > clock_timestamp()",
        worker,
        name,
        interval(timeout)
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A sign of life. `false`: the worker was given up, its tasks are others' now, and it must sign in anew. After a gap of
/// two beats the worker cannot tell whether it was cut off or the database was away, so it testifies anew from here on.
pub async fn heartbeat(pool: &PgPool, worker: Uuid) -> Result<bool> {
    let done = sqlx::query!(
        "UPDATE queue.workers
         SET heartbeat_at = clock_timestamp(),
             heard_since = CASE WHEN heartbeat_at + visibility_timeout / 3 < clock_timestamp() THEN clock_timestamp()
                                ELSE heard_since END
         WHERE id = $1",
        worker
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The last fencing token that anybody was given.
pub async fn last_token(pool: &PgPool) -> Result<i64> {
    sqlx::query_scalar!("SELECT last_value FROM queue.lease_token").fetch_one(pool).await
}

/// The leases from token `from` on that the worker holds, by the database's account. What it took before is not stepped
/// over once more.
pub async fn held_leases(pool: &PgPool, worker: Uuid, from: i64) -> Result<Vec<Lease>> {
    sqlx::query!(
        r#"SELECT account_id, id, lease AS "lease!" FROM queue.tasks
           WHERE worker_id = $1 AND state = 'running' AND lease >= $2"#,
        worker,
        from,
    )
    .map(|row| Lease { account: AccountId(row.account_id), task: row.id, token: row.lease })
    .fetch_all(pool)
    .await
}

/// Signs a worker out. What it still holds, if anything, others may take back at once.
pub async fn deregister(pool: &PgPool, worker: Uuid) -> Result<()> {
    sqlx::query!(
        "WITH left_behind AS (
             UPDATE queue.workers SET heartbeat_at = '-infinity'
             WHERE id = $1 AND EXISTS (SELECT FROM queue.tasks WHERE worker_id = $1 AND state = 'running')
             RETURNING id)
         DELETE FROM queue.workers WHERE id = $1 AND NOT EXISTS (SELECT FROM left_behind)",
        worker
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Removes a worker that was given up, unless it still holds a task (one that is just being settled, say). One that is only
/// late finds its row gone. `false`: it still holds one.
pub async fn remove_dead(tx: &mut SystemTx, worker: Uuid) -> Result<bool> {
    let done = sqlx::query!(
        "DELETE FROM queue.workers
         WHERE id = $1 AND NOT EXISTS (SELECT FROM queue.tasks WHERE worker_id = $1 AND state = 'running')",
        worker
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected() == 1)
}
