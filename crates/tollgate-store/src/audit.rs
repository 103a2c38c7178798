//! The audit log. Entries are only ever added; no role may change one.
//!
//! Of a command, the database knows by which login it came; what a shell's environment says, anybody can write there.

use serde_json::Value;
use sqlx::PgPool;
use tollgate_model::audit::{Action, Actor, AuditEntry};
use uuid::Uuid;

use crate::{Result, TenantTx, Tx};

/// Adds an entry to the account's log, in the transaction of what it tells of.
pub async fn insert_audit(
    tx: &mut TenantTx,
    id: Uuid,
    actor: Actor,
    action: Action,
    object: &str,
    detail: &Value,
) -> Result<()> {
    sqlx::query!(
        "INSERT INTO app.audit_log (account_id, id, actor, action, object, detail)
         VALUES ($1, $2, CASE WHEN $4 THEN $3::text || ':' || session_user ELSE $3 END, $5, $6, $7)",
        tx.account().0,
        id,
        actor.to_string(),
        actor == Actor::Shell,
        action.as_str(),
        object,
        detail,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The account's entries by age, newest first, older than `before`.
pub async fn audit_page(tx: &mut TenantTx, before: Option<Uuid>, limit: i64) -> Result<Vec<AuditEntry>> {
    sqlx::query_as!(
        AuditEntry,
        "SELECT id, at, actor, action, object, detail FROM app.audit_log
         WHERE account_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
        tx.account().0,
        before.unwrap_or(Uuid::max()),
        limit,
    )
    .fetch_all(tx.conn())
    .await
}

/// Adds an entry to the log of what belongs to no account.
pub async fn insert_operators_audit(
    tx: &mut impl Tx,
    id: Uuid,
    actor: Actor,
    action: Action,
    object: &str,
    detail: &Value,
) -> Result<()> {
    sqlx::query!(
        "INSERT INTO queue.audit_log (id, actor, action, object, detail)
         VALUES ($1, CASE WHEN $3 THEN $2::text || ':' || session_user ELSE $2 END, $4, $5, $6)",
        id,
        actor.to_string(),
        actor == Actor::Shell,
        action.as_str(),
        object,
        detail,
    )
    .execute(tx.connection())
    .await?;
    Ok(())
}

/// Entries of what belongs to no account, newest first, older than `before`.
pub async fn operators_audit_page(
    pool: &PgPool,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<AuditEntry>> {
    sqlx::query_as!(
        AuditEntry,
        "SELECT id, at, actor, action, object, detail FROM queue.audit_log
         WHERE id < $1 ORDER BY id DESC LIMIT $2",
        before.unwrap_or(Uuid::max()),
        limit,
    )
    .fetch_all(pool)
    .await
}
