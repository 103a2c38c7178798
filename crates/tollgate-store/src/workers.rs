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
pub async fn register(pool: &PgPool, worker: Uuid, name: &str, timeout: Duration) -> Result<()> {
    sqlx::query!(
        "INSERT INTO queue.workers (id, name, visibility_timeout) VALUES ($1, $2, $3)",
        worker,
        name,
        interval(timeout)
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A sign of life. `false`: the worker was given up, its tasks are others' now, and it must sign in anew.
pub async fn heartbeat(pool: &PgPool, worker: Uuid) -> Result<bool> {
    let done =
        sqlx::query!("UPDATE queue.workers SET heartbeat_at = clock_timestamp() WHERE id = $1", worker)
            .execute(pool)
            .await?;
    Ok(done.rows_affected() == 1)
}

/// The leases that the worker holds, by the database's account.
pub async fn held_leases(pool: &PgPool, worker: Uuid) -> Result<Vec<Lease>> {
    sqlx::query!(
        r#"SELECT account_id, id, lease AS "lease!" FROM queue.tasks WHERE worker_id = $1 AND state = 'running'"#,
        worker
    )
    .map(|row| Lease { account: AccountId(row.account_id), task: row.id, token: row.lease })
    .fetch_all(pool)
    .await
}

/// Signs a worker out.
pub async fn deregister(pool: &PgPool, worker: Uuid) -> Result<()> {
    sqlx::query!("DELETE FROM queue.workers WHERE id = $1", worker).execute(pool).await?;
    Ok(())
}

/// Gives up workers that have not been heard of for as long as each of them allowed. One that is only late finds its row
/// gone. A row that is just being touched is passed over: its worker lives, or another sweep has it.
pub async fn remove_dead(tx: &mut SystemTx) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM queue.workers WHERE id = ANY (ARRAY(
             SELECT id FROM queue.workers WHERE heartbeat_at + visibility_timeout < clock_timestamp()
             ORDER BY id FOR UPDATE SKIP LOCKED))"
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected())
}
