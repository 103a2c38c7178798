//! API keys. The secret is never here, only its hash.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tollgate_model::account::AccountId;
use tollgate_model::key::{KeyInfo, Scope};
use uuid::Uuid;

use crate::{Result, TenantTx};

/// A row that a presented key could be the key of; its hash decides.
#[derive(Debug, Clone)]
pub struct KeyCandidate {
    /// Whose key.
    pub account: AccountId,
    /// Which key.
    pub key_id: Uuid,
    /// Argon2id, as a PHC string.
    pub secret_hash: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Its own rate limit, as it was set: `600,1m`.
    pub rate_limit: Option<String>,
    /// The key as which its requests are counted.
    pub counted_as: Uuid,
}

fn scopes(names: &[String]) -> Vec<Scope> {
    names.iter().filter_map(|name| Scope::parse(name)).collect()
}

fn names(scopes: &[Scope]) -> Vec<String> {
    scopes.iter().map(|scope| scope.as_str().to_owned()).collect()
}

/// A key to store.
#[derive(Debug, Clone, Copy)]
pub struct KeyToInsert<'a> {
    /// Its id.
    pub id: Uuid,
    /// For people.
    pub name: &'a str,
    /// Its public part.
    pub prefix: &'a str,
    /// Argon2id, as a PHC string.
    pub secret_hash: &'a str,
    /// What it may do.
    pub scopes: &'a [Scope],
    /// When it stops working by itself.
    pub expires_at: Option<DateTime<Utc>>,
    /// The key that it replaces.
    pub rotated_from: Option<Uuid>,
    /// Its own rate limit, such as `600,1m`.
    pub rate_limit: Option<&'a str>,
    /// What it may spend in a day, in credits.
    pub daily_credit_limit: Option<i64>,
    /// The key that it counts with, in rate windows and in what is spent a day; `None`: it counts for itself.
    pub counts_with: Option<Uuid>,
}

/// A key's row, its hash left out.
struct KeyRow {
    id: Uuid,
    name: String,
    prefix: String,
    scopes: Vec<String>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    last_used_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
    rotated_from: Option<Uuid>,
    rate_limit: Option<String>,
    daily_credit_limit: Option<i64>,
}

impl From<KeyRow> for KeyInfo {
    fn from(row: KeyRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            prefix: row.prefix,
            scopes: scopes(&row.scopes),
            created_at: row.created_at,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
            revoked_at: row.revoked_at,
            rotated_from: row.rotated_from,
            rate_limit: row.rate_limit,
            daily_credit_limit: row.daily_credit_limit,
        }
    }
}

/// A statement about keys, and after it the columns of a [`KeyRow`], and what follows them.
macro_rules! keys {
    ($before:literal, $after:literal, $($argument:expr),* $(,)?) => {
        sqlx::query_as!(
            KeyRow,
            $before
                + " id, name, prefix, scopes, created_at, expires_at, last_used_at, revoked_at, rotated_from, rate_limit,
                    daily_credit_limit "
                + $after,
            $($argument),*
        )
        .map(KeyInfo::from)
    };
}

/// Stores a key.
pub async fn insert_key(tx: &mut TenantTx, key: KeyToInsert<'_>) -> Result<KeyInfo> {
    keys!(
        "INSERT INTO app.api_keys
             (account_id, id, name, prefix, secret_hash, scopes, expires_at, rotated_from, rate_limit, daily_credit_limit,
              counted_as)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
                 coalesce((SELECT k.counted_as FROM app.api_keys k WHERE k.account_id = $1 AND k.id = $11), $2))
         RETURNING",
        "",
        tx.account().0,
        key.id,
        key.name,
        key.prefix,
        key.secret_hash,
        &names(key.scopes),
        key.expires_at,
        key.rotated_from,
        key.rate_limit,
        key.daily_credit_limit,
        key.counts_with,
    )
    .fetch_one(tx.conn())
    .await
}

/// The keys with this prefix that are neither revoked nor expired: nearly always one or none. One round trip, read anew for
/// each request, so that a revocation holds at once everywhere.
pub async fn find_key(pool: &PgPool, prefix: &str) -> Result<Vec<KeyCandidate>> {
    sqlx::query!(
        r#"SELECT account_id AS "account_id!", key_id AS "key_id!", secret_hash AS "secret_hash!", scopes AS "scopes!",
                  rate_limit, counted_as AS "counted_as!"
           FROM app.find_key($1)"#,
        prefix
    )
    .map(|row| KeyCandidate {
        account: AccountId(row.account_id),
        key_id: row.key_id,
        secret_hash: row.secret_hash,
        scopes: scopes(&row.scopes),
        rate_limit: row.rate_limit,
        counted_as: row.counted_as,
    })
    .fetch_all(pool)
    .await
}

/// Keys by age, newest first, older than `before`.
pub async fn list_keys(tx: &mut TenantTx, before: Option<Uuid>, limit: i64) -> Result<Vec<KeyInfo>> {
    keys!(
        "SELECT",
        "FROM app.api_keys WHERE account_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
        tx.account().0,
        before.unwrap_or(Uuid::max()),
        limit,
    )
    .fetch_all(tx.conn())
    .await
}

/// Locks a key, so that nobody else ends it meanwhile. `None`: the account has no such key.
pub async fn lock_key(tx: &mut TenantTx, id: Uuid) -> Result<Option<KeyInfo>> {
    keys!(
        "SELECT",
        "FROM app.api_keys WHERE account_id = $1 AND id = $2 FOR NO KEY UPDATE",
        tx.account().0,
        id,
    )
    .fetch_optional(tx.conn())
    .await
}

/// Lets a key work until then at the longest.
pub async fn end_key(tx: &mut TenantTx, id: Uuid, at: DateTime<Utc>) -> Result<()> {
    sqlx::query!(
        "UPDATE app.api_keys SET expires_at = least(expires_at, $3) WHERE account_id = $1 AND id = $2",
        tx.account().0,
        id,
        at,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Notes that keys were used so many milliseconds ago. It only moves forward. They are locked in the order of their ids.
pub async fn mark_used(tx: &mut TenantTx, mut used: Vec<(Uuid, i64)>) -> Result<()> {
    used.sort_unstable();
    let (keys, ages): (Vec<Uuid>, Vec<i64>) = used.into_iter().unzip();
    sqlx::query!(
        "UPDATE app.api_keys k SET last_used_at = now() - used.age * interval '1 millisecond'
         FROM unnest($2::uuid[], $3::bigint[]) AS used (id, age)
         WHERE k.account_id = $1 AND k.id = used.id
           AND coalesce(k.last_used_at < now() - used.age * interval '1 millisecond', true)",
        tx.account().0,
        &keys,
        &ages,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Revokes a key that is not revoked yet. `None`: the account has no such key, or it is.
pub async fn revoke_key(tx: &mut TenantTx, id: Uuid) -> Result<Option<KeyInfo>> {
    keys!(
        "UPDATE app.api_keys SET revoked_at = now() WHERE account_id = $1 AND id = $2 AND revoked_at IS NULL
         RETURNING",
        "",
        tx.account().0,
        id,
    )
    .fetch_optional(tx.conn())
    .await
}

/// Removes up to `limit` rows of what the account's keys have spent on days gone by: no limit asks for them. Returns how
/// many. What a job is about to give back there is left for another time.
pub async fn remove_spending(tx: &mut TenantTx, limit: i64) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM app.key_spending WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM app.key_spending
             WHERE account_id = $1 AND day < (now() AT TIME ZONE 'UTC')::date
             ORDER BY account_id, key_id, day LIMIT $2 FOR UPDATE SKIP LOCKED))",
        tx.account().0,
        limit,
    )
    .execute(tx.conn())
    .await?;
    Ok(done.rows_affected())
}
