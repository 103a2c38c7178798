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
}

fn scopes(names: &[String]) -> Vec<Scope> {
    names.iter().filter_map(|name| Scope::parse(name)).collect()
}

fn names(scopes: &[Scope]) -> Vec<String> {
    scopes.iter().map(|scope| scope.as_str().to_owned()).collect()
}

/// Stores a key.
pub async fn insert_key(
    tx: &mut TenantTx,
    id: Uuid,
    name: &str,
    prefix: &str,
    secret_hash: &str,
    allowed: &[Scope],
) -> Result<KeyInfo> {
    let created_at = sqlx::query_scalar!(
        "INSERT INTO app.api_keys (account_id, id, name, prefix, secret_hash, scopes)
         VALUES ($1, $2, $3, $4, $5, $6) RETURNING created_at",
        tx.account().0,
        id,
        name,
        prefix,
        secret_hash,
        &names(allowed),
    )
    .fetch_one(tx.conn())
    .await?;
    Ok(KeyInfo {
        id,
        name: name.into(),
        prefix: prefix.into(),
        scopes: allowed.to_vec(),
        created_at,
        revoked_at: None,
    })
}

/// The keys with this prefix that are neither revoked nor expired: nearly always one or none. One round trip, read anew for each request, so
/// that a revocation holds at once everywhere.
pub async fn find_key(pool: &PgPool, prefix: &str) -> Result<Vec<KeyCandidate>> {
    sqlx::query!(
        r#"SELECT account_id AS "account_id!", key_id AS "key_id!", secret_hash AS "secret_hash!", scopes AS "scopes!",
                  rate_limit
           FROM app.find_key($1)"#,
        prefix
    )
    .map(|row| KeyCandidate {
        account: AccountId(row.account_id),
        key_id: row.key_id,
        secret_hash: row.secret_hash,
        scopes: scopes(&row.scopes),
        rate_limit: row.rate_limit,
    })
    .fetch_all(pool)
    .await
}

/// A key's row, its hash left out.
struct KeyRow {
    id: Uuid,
    name: String,
    prefix: String,
    scopes: Vec<String>,
    created_at: DateTime<Utc>,
    revoked_at: Option<DateTime<Utc>>,
}

impl From<KeyRow> for KeyInfo {
    fn from(row: KeyRow) -> Self {
        let KeyRow { id, name, prefix, scopes: names, created_at, revoked_at } = row;
        Self { id, name, prefix, scopes: scopes(&names), created_at, revoked_at }
    }
}

/// Keys by age, newest first, older than `before`.
pub async fn list_keys(tx: &mut TenantTx, before: Option<Uuid>, limit: i64) -> Result<Vec<KeyInfo>> {
    sqlx::query_as!(
        KeyRow,
        "SELECT id, name, prefix, scopes, created_at, revoked_at FROM app.api_keys
         WHERE account_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
        tx.account().0,
        before.unwrap_or(Uuid::max()),
        limit,
    )
    .map(KeyInfo::from)
    .fetch_all(tx.conn())
    .await
}

/// Revokes a key; again is no error. `None`: the account has no such key.
pub async fn revoke_key(tx: &mut TenantTx, id: Uuid) -> Result<Option<KeyInfo>> {
    sqlx::query_as!(
        KeyRow,
        r#"UPDATE app.api_keys SET revoked_at = coalesce(revoked_at, now())
           WHERE account_id = $1 AND id = $2
           RETURNING id, name, prefix, scopes, created_at, revoked_at"#,
        tx.account().0,
        id,
    )
    .map(KeyInfo::from)
    .fetch_optional(tx.conn())
    .await
}
