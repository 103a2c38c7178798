//! Accounts: opened and granted credits by the operator, at the shell.

use serde_json::json;
use tollgate_model::account::{Account, AccountId};
use tollgate_model::audit::{Action, Actor};
use tollgate_model::credits::{Balance, EntryReason, MAX_GRANT};
use tollgate_store as store;
use tollgate_store::TenantTx;
use uuid::Uuid;

use crate::ids::new_id;
use crate::{Database, Error, Result, audit};

/// Opens an account, with credits to begin with.
pub async fn create(db: &Database, name: &str, credits: i64) -> Result<AccountId> {
    if name.trim().is_empty() || name.len() > 200 || name.contains('\0') {
        return Err(Error::Invalid { field: "name", problem: "must have 1 to 200 characters".into() });
    }
    if !(0..=MAX_GRANT).contains(&credits) {
        return Err(Error::Invalid {
            field: "credits",
            problem: format!("must be between 0 and {MAX_GRANT}"),
        });
    }
    let account = AccountId(new_id());
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    store::insert_account(&mut tx, name).await?;
    let object = format!("account:{account}");
    let detail = json!({ "name": name });
    audit::record(&mut tx, Actor::Shell, Action::AccountCreated, &object, &detail).await?;
    if credits > 0 {
        post(&mut tx, credits, "opening credits").await?;
    }
    tx.commit().await?;
    Ok(account)
}

/// Posts credits to an account. Returns its new balance.
pub async fn grant(db: &Database, account: AccountId, credits: i64, reason: &str) -> Result<Balance> {
    if !(1..=MAX_GRANT).contains(&credits) {
        return Err(Error::Invalid {
            field: "credits",
            problem: format!("must be between 1 and {MAX_GRANT}"),
        });
    }
    audit::check_reason(reason)?;
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let balance = post(&mut tx, credits, reason).await?;
    tx.commit().await?;
    Ok(balance)
}

async fn post(tx: &mut TenantTx, credits: i64, reason: &str) -> Result<Balance> {
    let entry = new_id();
    let balance = store::grant(tx, entry, credits, EntryReason::Adjustment, Some(reason)).await?;
    let balance = balance.ok_or(Error::NotFound("account"))?;
    let detail = json!({ "credits": credits, "reason": reason });
    audit::record(tx, Actor::Shell, Action::CreditsGranted, &format!("entry:{entry}"), &detail).await?;
    Ok(balance)
}

/// Whether there is this account.
pub(crate) async fn exists(db: &Database, account: AccountId) -> Result<()> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let balance = store::balance(&mut tx).await?;
    tx.commit().await?;
    balance.map(drop).ok_or(Error::NotFound("account"))
}

/// Every account, oldest first.
pub async fn list(db: &Database) -> Result<Vec<Account>> {
    Ok(store::list_accounts(db.pool()).await?)
}

/// Some of all accounts.
pub(crate) struct Part {
    pub(crate) accounts: Vec<AccountId>,
    /// After which one to go on; `None`: these were the last.
    pub(crate) next: Option<AccountId>,
}

/// Up to `most` accounts after this one, or the first ones. Whoever goes through all accounts does it so, a little at a time.
pub(crate) async fn part(db: &Database, after: Option<AccountId>, most: i32) -> Result<Part> {
    let after = after.unwrap_or(AccountId(Uuid::nil()));
    let accounts = store::accounts_after(db.pool(), after, most).await?;
    let next = accounts.last().copied().filter(|_| i32::try_from(accounts.len()) == Ok(most));
    Ok(Part { accounts, next })
}
