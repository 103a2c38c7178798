//! The audit log: what is done to accounts and by their keys, kept for good, in the commit of what it tells of.

use serde_json::Value;
use tollgate_model::account::AccountId;
use tollgate_model::audit::{Action, Actor, AuditEntry};
use tollgate_store as store;
use tollgate_store::{TenantTx, Tx};
use uuid::Uuid;

use crate::ids::new_id;
use crate::{Database, Error, Result};

/// Adds an entry to the log of the transaction's account. `detail` must hold no secret.
pub(crate) async fn record(
    tx: &mut TenantTx,
    actor: Actor,
    action: Action,
    object: &str,
    detail: &Value,
) -> Result<()> {
    Ok(store::insert_audit(tx, new_id(), actor, action, object, detail).await?)
}

/// Adds an entry to the log of what operators do to the installation as a whole.
pub(crate) async fn record_for_all(
    tx: &mut impl Tx,
    actor: Actor,
    action: Action,
    object: &str,
    detail: &Value,
) -> Result<()> {
    Ok(store::insert_operators_audit(tx, new_id(), actor, action, object, detail).await?)
}

/// Why an operator does something, in words that are worth keeping.
pub(crate) fn check_reason(reason: &str) -> Result<()> {
    if reason.trim().is_empty() || reason.len() > 500 || reason.contains('\0') {
        return Err(Error::Invalid { field: "reason", problem: "must have 1 to 500 characters".into() });
    }
    Ok(())
}

/// An account's entries, newest first, older than `before`; `None`: what operators did that belongs to no account, which
/// only their role may see.
pub async fn list(
    db: &Database,
    account: Option<AccountId>,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<AuditEntry>> {
    let Some(account) = account else {
        return Ok(store::operators_audit_page(db.pool(), before, limit).await?);
    };
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let entries = store::audit_page(&mut tx, before, limit).await?;
    tx.commit().await?;
    Ok(entries)
}
