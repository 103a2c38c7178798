//! The windows in which requests are counted.

use std::time::Duration;

use sqlx::postgres::types::PgInterval;
use tollgate_model::rate_limit::share::Counted;
use uuid::Uuid;

use crate::tasks::interval;
use crate::{Result, TenantTx};

/// Adds `wanted` requests to the window of this key and group, or to a new one if that is over. How many of them are
/// within the limit follows from the sum.
///
/// The clock is read under the row's lock; and a window from the future, by a clock that was set back, is over.
pub async fn count_requests(
    tx: &mut TenantTx,
    key: Uuid,
    group: &str,
    wanted: u32,
    window: Duration,
) -> Result<Counted> {
    let row = sqlx::query!(
        r#"INSERT INTO app.rate_windows AS w (account_id, key_id, route_group, started_at, used)
           VALUES ($1, $2, $3, clock_timestamp(), $4)
           ON CONFLICT (account_id, key_id, route_group) DO UPDATE SET (started_at, used) = (
               SELECT CASE WHEN same THEN w.started_at ELSE clock.now END, CASE WHEN same THEN w.used ELSE 0 END + $4
               FROM (SELECT clock_timestamp() AS now OFFSET 0) AS clock,
                    LATERAL (SELECT w.started_at > clock.now - $5::interval AND w.started_at <= clock.now AS same) AS window_now)
           RETURNING used, clock_timestamp() - started_at AS "age!""#,
        tx.account().0,
        key,
        group,
        i64::from(wanted),
        interval(window),
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(Counted { used: row.used.unsigned_abs(), age: duration(&row.age) })
}

/// The difference of two timestamps has no months; its days are of 24 hours.
fn duration(interval: &PgInterval) -> Duration {
    const DAY: i64 = 86_400_000_000;
    let micros = i64::from(interval.days) * DAY + interval.microseconds;
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// Removes up to `limit` of the account's windows that began longer than `before` ago. Returns how many. One that is
/// begun anew meanwhile stays: said twice, since PostgreSQL before the end of 2025 follows a `ctid` to the row's new version
/// and deletes that.
pub async fn remove_rate_windows(tx: &mut TenantTx, before: Duration, limit: i64) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM app.rate_windows WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM app.rate_windows WHERE account_id = $1 AND started_at < now() - $2::interval
             ORDER BY account_id, key_id, route_group LIMIT $3))
         AND started_at < now() - $2::interval",
        tx.account().0,
        interval(before),
        limit,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected())
}
