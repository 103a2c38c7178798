//! What an account needs no more: answers that nobody can ask for again, windows of rate limits that are long over, and what
//! keys have spent on days gone by.

use std::time::Duration;

use tollgate_model::account::AccountId;
use tollgate_store as store;
use tollgate_store::TenantTx;

use crate::{Database, Result, accounts};

/// Accounts one round looks at.
const ACCOUNTS: i32 = 200;

/// Rows of each kind that one transaction removes.
const BATCH: i64 = 1000;

/// Longer than the longest window.
const WINDOW: Duration = Duration::from_hours(25);

/// Looks at some accounts, and returns after which one the next round goes on. Any number of processes may be at it.
pub async fn round(db: &Database, after: Option<AccountId>) -> Result<Option<AccountId>> {
    let part = accounts::part(db, after, ACCOUNTS).await?;
    for account in part.accounts {
        while {
            let mut tx = TenantTx::begin(db.pool(), account).await?;
            let most = store::remove_expired_answers(&mut tx, BATCH)
                .await?
                .max(store::remove_rate_windows(&mut tx, WINDOW, BATCH).await?)
                .max(store::remove_spending(&mut tx, BATCH).await?);
            tx.commit().await?;
            i64::try_from(most) == Ok(BATCH)
        } {}
    }
    Ok(part.next)
}
