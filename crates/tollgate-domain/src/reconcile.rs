//! Reconciling: that each account's ledger adds up to its balance, looked at all the time (SPEC C1).
//!
//! They cannot part, since each statement that changes the one changes the other. If they do, somebody's hands were in the
//! database, or we have a defect: either must be known before it is a customer who finds it.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use serde::Serialize;
use tollgate_model::account::AccountId;
use tollgate_store as store;
use tollgate_store::{Alone, Books, TenantTx, Tx as _};

use crate::accounts::Part;
use crate::{Database, Error, Result, accounts, ids};

/// Accounts one round looks at.
const ACCOUNTS: i32 = 50;

/// Entries that one transaction adds up.
const BATCH: i64 = 20_000;

/// Entries have ids of the time at which they were made; after so long every transaction has ended, and no entry of an
/// earlier time can still come. Clocks may be apart by the rest of it.
const SETTLED: TimeDelta = TimeDelta::minutes(10);

/// Where the next round goes on, and what is known.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    after: Option<AccountId>,
    drifts: BTreeMap<AccountId, u64>,
}

impl Progress {
    /// By how many credits the books are apart, over all accounts: 0.
    pub fn drift(&self) -> u64 {
        self.drifts.values().fold(0, |sum, drift| sum.saturating_add(*drift))
    }
}

/// An account whose books are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// Which account.
    pub account_id: AccountId,
    /// Balance, less what the entries add up to.
    pub balance: i64,
    /// The same of what is held.
    pub held: i64,
    /// The same of what is owed.
    pub owed: i64,
}

impl Drift {
    fn of(account_id: AccountId, books: &Books) -> Self {
        let apart = |(one, other): (i64, i64)| one - other;
        Self { account_id, balance: apart(books.balance), held: apart(books.held), owed: apart(books.owed) }
    }

    /// In credits, whichever way.
    fn credits(&self) -> u64 {
        [self.balance, self.held, self.owed].into_iter().map(i64::unsigned_abs).fold(0, u64::saturating_add)
    }
}

/// Looks at some accounts; the next round goes on after them.
pub async fn round(db: &Database, progress: &mut Progress) -> Result<()> {
    let part = accounts::part(db, progress.after, ACCOUNTS).await?;
    let now = Alone::acquire(db.pool()).await?.now().await?;
    let settled = ids::first_id_of(now - SETTLED);
    for account in part.accounts {
        while {
            let mut tx = TenantTx::begin(db.pool(), account).await?;
            let added = store::advance_sums(&mut tx, settled, BATCH).await?;
            tx.commit().await?;
            added == BATCH
        } {}
        let mut tx = TenantTx::begin(db.pool(), account).await?;
        let books = store::books(&mut tx).await?;
        tx.commit().await?;
        let drift = Drift::of(account, &books.unwrap_or_default());
        if drift.credits() == 0 {
            progress.drifts.remove(&account);
        } else if progress.drifts.insert(account, drift.credits()).is_none() {
            tracing::error!(account_id = %account, ?drift, "the ledger does not add up to the balance");
        }
        metrics::counter!("tollgate_ledger_accounts_checked_total").increment(1);
    }
    progress.after = part.next;
    Ok(())
}

/// Every entry of one account or of all, added up anew: how many accounts were looked at, and those whose books are apart.
/// What jobs hold is compared as well.
pub async fn all(db: &Database, only: Option<AccountId>) -> Result<(u64, Vec<Drift>)> {
    let mut looked_at = 0;
    let mut drifts = Vec::new();
    let mut after = None;
    loop {
        let part = match only {
            Some(account) => Part { accounts: vec![account], next: None },
            None => accounts::part(db, after, ACCOUNTS).await?,
        };
        for account in part.accounts {
            let mut tx = TenantTx::begin(db.pool(), account).await?;
            let found = store::all_books(&mut tx).await?;
            tx.commit().await?;
            let Some((books, jobs_hold)) = found else { return Err(Error::NotFound("account")) };
            looked_at += 1;
            let mut drift = Drift::of(account, &books);
            if drift.credits() == 0 {
                drift.held = books.held.0 - jobs_hold;
            }
            if drift.credits() > 0 {
                drifts.push(drift);
            }
        }
        after = part.next;
        if after.is_none() {
            return Ok((looked_at, drifts));
        }
    }
}
