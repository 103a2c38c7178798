//! Requests that are to be done once, in the transaction of what they do. (A submission is claimed by `app.submit`.)

use std::time::Duration;

use tollgate_model::idempotency::{Answer, Once};
use uuid::Uuid;

use crate::tasks::interval;
use crate::{Result, TenantTx};

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Nobody has done it, and whoever asks now waits for this transaction.
    Ours,
    /// It was done, and answered with this.
    Done(Answer),
    /// Its key was used for something else.
    Conflict,
    /// It was let go of just now.
    InFlight,
}

/// A row that is there.
struct Found {
    fingerprint: Vec<u8>,
    status: i16,
    response: Vec<u8>,
    location: Option<String>,
}

impl Found {
    fn claim(self, once: &Once) -> Claim {
        if self.fingerprint != once.fingerprint {
            return Claim::Conflict;
        }
        let Self { status, response: body, location, .. } = self;
        Claim::Done(Answer { status: u16::try_from(status).unwrap_or(500), body, location, replayed: true })
    }
}

/// Claims a request for this transaction, which must [save](save_answer) its answer or roll back. Who asks for the same at
/// the same time waits here until it has ended. What has expired is taken over.
pub async fn claim_once(tx: &mut TenantTx, once: &Once, keep: Duration) -> Result<Claim> {
    let account = tx.account().0;
    let claimed = sqlx::query!(
        "INSERT INTO app.idempotency_keys AS i (account_id, method, route, key, fingerprint, status, response, expires_at)
         VALUES ($1, $2, $3, $4, $5, 0, '', now() + $6)
         ON CONFLICT (account_id, method, route, key) DO UPDATE
         SET fingerprint = excluded.fingerprint, status = 0, response = '', location = NULL,
             expires_at = excluded.expires_at
         WHERE i.expires_at <= now()",
        account,
        once.method,
        once.route,
        once.key,
        &once.fingerprint,
        interval(keep),
    )
    .execute(tx.conn())
    .await?;
    if claimed.rows_affected() == 1 {
        return Ok(Claim::Ours);
    }
    let found = sqlx::query_as!(
        Found,
        "SELECT fingerprint, status, response, location FROM app.idempotency_keys
         WHERE account_id = $1 AND method = $2 AND route = $3 AND key = $4",
        account,
        once.method,
        once.route,
        once.key,
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(found.map_or(Claim::InFlight, |found| found.claim(once)))
}

/// What is known of a request that is refused for a reason of its own, for the holder of a key that is valid now. Claims
/// nothing.
pub async fn look_once(tx: &mut TenantTx, once: &Once, key: Uuid) -> Result<Option<Claim>> {
    let found = sqlx::query_as!(
        Found,
        "SELECT i.fingerprint, i.status, i.response, i.location
         FROM app.idempotency_keys i, app.api_keys k
         WHERE i.account_id = $1 AND i.method = $2 AND i.route = $3 AND i.key = $4 AND i.expires_at > now()
           AND k.account_id = $1 AND k.id = $5 AND k.revoked_at IS NULL AND coalesce(k.expires_at > now(), true)",
        tx.account().0,
        once.method,
        once.route,
        once.key,
        key,
    )
    .fetch_optional(tx.conn())
    .await?;
    Ok(found.map(|found| found.claim(once)))
}

/// Saves the answer of a request that this transaction has claimed.
pub async fn save_answer(tx: &mut TenantTx, once: &Once, answer: &Answer) -> Result<()> {
    sqlx::query!(
        "UPDATE app.idempotency_keys SET status = $5, response = $6, location = $7
         WHERE account_id = $1 AND method = $2 AND route = $3 AND key = $4",
        tx.account().0,
        once.method,
        once.route,
        once.key,
        i16::try_from(answer.status).unwrap_or(500),
        answer.body,
        answer.location,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Removes up to `limit` answers that have expired. Returns how many.
pub async fn remove_expired_answers(tx: &mut TenantTx, limit: i64) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM app.idempotency_keys WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM app.idempotency_keys WHERE account_id = $1 AND expires_at <= now()
             ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))",
        tx.account().0,
        limit,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected())
}
