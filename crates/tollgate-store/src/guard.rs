//! What the workers know of the providers together: a row a class, and one for each kind of call's latencies.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::types::Json;
use tollgate_model::guard::state::ClassState;
use tollgate_model::guard::timeout::Latencies;

use crate::tasks::interval;
use crate::tx::Tx;
use crate::{Result, SystemTx};

/// A class, as it was read.
#[derive(Debug, Clone)]
pub struct ClassRow {
    /// Its state, as some version of the program wrote it; `None`: nobody has called it yet.
    pub state: Option<Value>,
    /// The database's time after the lock was had.
    pub now: DateTime<Utc>,
}

/// The state of a class, locked by this transaction until its end.
pub async fn lock_class(tx: &mut SystemTx, class: &str) -> Result<ClassRow> {
    sqlx::query!(
        "INSERT INTO guard.classes (class, state) VALUES ($1, 'null') ON CONFLICT DO NOTHING",
        class
    )
    .execute(tx.conn())
    .await?;
    let state = sqlx::query_scalar!("SELECT state FROM guard.classes WHERE class = $1 FOR UPDATE", class)
        .fetch_one(tx.conn())
        .await?;
    // The time of the lock, not of the statement that waited for it.
    Ok(ClassRow { state: Some(state).filter(|state| !state.is_null()), now: tx.now().await? })
}

/// Stores the state of a class that this transaction has locked.
pub async fn save_class(tx: &mut SystemTx, class: &str, state: &ClassState) -> Result<()> {
    sqlx::query!("UPDATE guard.classes SET state = $2 WHERE class = $1", class, Json(state) as _)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// The state of a class, only to look at.
pub async fn class_state(tx: &mut impl Tx, class: &str) -> Result<ClassRow> {
    let row = sqlx::query!(
        r#"SELECT clock_timestamp() AS "now!",
                  (SELECT state FROM guard.classes WHERE class = $1) AS state"#,
        class,
    )
    .fetch_one(tx.connection())
    .await?;
    Ok(ClassRow { state: row.state.filter(|state| !state.is_null()), now: row.now })
}

/// A class has latencies of so many kinds of call at most: models and sizes are the clients' words.
const KINDS: i64 = 1000;

/// Adds to the latencies of a kind of call what `add` makes of them. The row is locked until the end of the transaction. A
/// kind beyond the most a class may have is not kept.
pub async fn add_latencies(
    tx: &mut SystemTx,
    class: &str,
    key: &str,
    add: impl FnOnce(&mut Latencies),
) -> Result<Latencies> {
    let row = sqlx::query_scalar!(
        "SELECT latencies FROM guard.latencies WHERE class = $1 AND key = $2 FOR UPDATE",
        class,
        key,
    )
    .fetch_optional(tx.conn())
    .await?;
    let mut latencies = row.and_then(|row| serde_json::from_value(row).ok()).unwrap_or_default();
    add(&mut latencies);
    sqlx::query!(
        "INSERT INTO guard.latencies (class, key, latencies)
         SELECT $1, $2, $3 WHERE (SELECT count(*) FROM (SELECT FROM guard.latencies WHERE class = $1 LIMIT $4) AS kinds) < $4
             OR EXISTS (SELECT FROM guard.latencies WHERE class = $1 AND key = $2)
         ON CONFLICT (class, key) DO UPDATE SET latencies = excluded.latencies, changed_at = now()",
        class,
        key,
        Json(&latencies) as _,
        KINDS,
    )
    .execute(tx.conn())
    .await?;
    Ok(latencies)
}

/// Forgets the kinds of call of a class that nobody has made since. Returns how many.
pub async fn forget_latencies(tx: &mut impl Tx, class: &str, unused: Duration) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM guard.latencies WHERE class = $1 AND changed_at < now() - $2::interval",
        class,
        interval(unused),
    )
    .execute(tx.connection())
    .await?;
    Ok(done.rows_affected())
}

/// The latencies of a class, by kind of call.
pub async fn latencies(tx: &mut impl Tx, class: &str) -> Result<Vec<(String, Latencies)>> {
    let rows = sqlx::query!(
        "SELECT key, latencies FROM guard.latencies WHERE class = $1 ORDER BY key LIMIT $2",
        class,
        KINDS,
    )
    .fetch_all(tx.connection())
    .await?;
    let readable = |latencies: Value| serde_json::from_value(latencies).ok();
    Ok(rows.into_iter().filter_map(|row| Some((row.key, readable(row.latencies)?))).collect())
}

/// Whether the breaker's decisions hold, by the operator's switch.
pub async fn breaker_enabled(tx: &mut impl Tx) -> Result<bool> {
    sqlx::query_scalar!("SELECT breaker_enabled FROM guard.switches").fetch_one(tx.connection()).await
}

/// Throws that switch, for all processes.
pub async fn switch_breaker(tx: &mut SystemTx, enabled: bool) -> Result<()> {
    sqlx::query!("UPDATE guard.switches SET breaker_enabled = $1", enabled).execute(tx.conn()).await?;
    Ok(())
}
