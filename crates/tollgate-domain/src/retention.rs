//! Retention: what ended long ago goes, a little at a time (SPEC Q13: the counts of all time stay).
//!
//! A round is bounded, whatever there is to remove, and the next one goes on where it stopped. Any number of processes may
//! be at it: what one is at, another passes over, and what is gone is gone.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tollgate_model::account::AccountId;
use tollgate_model::image::StorageKey;
use tollgate_store as store;
use tollgate_store::{Alone, TenantTx, Tx as _};
use uuid::Uuid;

use crate::{Database, Result, accounts, ids, images};

/// Jobs one transaction removes, each with its result and its few events.
const BATCH: i64 = 500;

/// Transactions one round makes.
const BATCHES: usize = 20;

/// Accounts one round looks at.
const ACCOUNTS: i32 = 20;

/// Where the next round goes on.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// This account, and those before it, are done.
    account: Option<AccountId>,
    /// Of the account after it: the jobs up to this one.
    job: Uuid,
    outside: Vec<(String, StorageKey)>,
}

impl Progress {
    /// Where the bytes of images are that are gone, and were kept outside of the database: kind of store and name. Nobody
    /// will ever know of them again but who takes them here, also after a round that broke off.
    pub fn take_outside(&mut self) -> Vec<(String, StorageKey)> {
        std::mem::take(&mut self.outside)
    }
}

/// What a round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Jobs that are gone, with all that belonged to them.
    pub jobs: u64,
    /// Whether the round ended before all accounts had been looked at.
    pub more: bool,
}

/// What is older than this has been kept for long enough. `None`: no time is.
pub(crate) fn kept_until(now: DateTime<Utc>, keep: Duration) -> Option<DateTime<Utc>> {
    TimeDelta::from_std(keep).ok().and_then(|keep| now.checked_sub_signed(keep))
}

/// Removes jobs that ended longer than `keep` ago, by the database's clock.
pub async fn round(db: &Database, keep: Duration, progress: &mut Progress) -> Result<Removed> {
    let now = Alone::acquire(db.pool()).await?.now().await?;
    let part = accounts::part(db, progress.account, ACCOUNTS).await?;
    let Some(until) = kept_until(now, keep) else {
        return Ok(Removed { jobs: 0, more: false });
    };
    let before = ids::first_id_of(until);
    let mut jobs = 0;
    let mut batches = 0;
    for account in part.accounts {
        loop {
            if batches == BATCHES {
                return Ok(Removed { jobs, more: true });
            }
            batches += 1;
            let mut tx = TenantTx::begin(db.pool(), account).await?;
            let batch = store::remove_ended_jobs(&mut tx, progress.job, before, until, BATCH).await?;
            let images = images::remove_unused(&mut tx, &batch.images).await?;
            tx.commit().await?;
            progress.outside.extend(images);
            let removed = batch.removed.unsigned_abs();
            metrics::counter!("tollgate_jobs_removed_total").increment(removed);
            jobs += removed;
            match batch.last {
                Some(last) if batch.seen == BATCH => progress.job = last,
                _ => break,
            }
        }
        (progress.account, progress.job) = (Some(account), Uuid::nil());
    }
    progress.account = part.next;
    Ok(Removed { jobs, more: part.next.is_some() })
}
