//! An account's credits, as it sees them.

use tollgate_model::account::AccountId;
use tollgate_model::credits::{Balance, LedgerEntry};
use tollgate_store as store;
use tollgate_store::TenantTx;
use uuid::Uuid;

use crate::{Database, Error, Result};

/// What the account has. One row, however long its ledger is.
pub async fn balance(db: &Database, account: AccountId) -> Result<Balance> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let balance = store::balance(&mut tx).await?;
    tx.commit().await?;
    balance.ok_or(Error::NotFound("account"))
}

/// The ledger's entries, newest first, older than `before`.
pub async fn ledger(
    db: &Database,
    account: AccountId,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<LedgerEntry>> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let entries = store::ledger_page(&mut tx, before, limit).await?;
    tx.commit().await?;
    Ok(entries)
}
