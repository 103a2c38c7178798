//! Worker processes: who is alive, and what each holds. A heartbeat is one row a process, not one a task.

use std::time::Duration;

use sqlx::PgPool;
use tollgate_model::account::AccountId;
use tollgate_model::queue::Lease;
use uuid::Uuid;

use crate::tasks::interval;
use crate::{Result, SystemTx};

/// Signs a worker in. Its id is fresh each boot: a host name would let a restarted process inherit dead leases.
pub async fn register(pool: &PgPool, worker: Uuid, name: &str) -> Result<()> {
    sqlx::query!("INSERT INTO queue.workers (id, name) VALUES ($1, $2)", worker, name).execute(pool).await?;
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

/// Gives up workers that have not been heard of for `timeout`. One that is only late finds its row gone.
pub async fn remove_dead(tx: &mut SystemTx, timeout: Duration) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM queue.workers WHERE heartbeat_at < clock_timestamp() - $1::interval",
        interval(timeout)
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected())
}
