//! When keys were last used: remembered by the process, and written down in batches, never by a request.
//!
//! A batch is lost with a process that is killed, and with a database that is away for longer than there is room. Between
//! processes ages travel, not times: the database's clock is the only one that has to be right.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tollgate_model::account::AccountId;
use tollgate_store as store;
use tollgate_store::TenantTx;
use uuid::Uuid;

use crate::{Database, Result};

/// From one batch to the next.
const EVERY: Duration = Duration::from_secs(10);
/// Keys remembered at a time; what further ones did meanwhile is forgotten.
const ROOM: usize = 100_000;
/// Accounts that share a commit: so many round trips are their locks held.
const ACCOUNTS: usize = 50;
/// For the last batch.
const PATIENCE: Duration = Duration::from_secs(2);

type Uses = HashMap<(AccountId, Uuid), Instant>;

/// The keys that were used since the last batch; clones share it.
#[derive(Debug, Clone, Default)]
pub struct UsedKeys(Arc<Mutex<Uses>>);

impl UsedKeys {
    /// A key was used just now.
    pub fn mark(&self, account: AccountId, key: Uuid) {
        self.note((account, key), Instant::now());
    }

    fn note(&self, key: (AccountId, Uuid), at: Instant) {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = uses.get_mut(&key) {
            *known = at.max(*known);
        } else if uses.len() < ROOM {
            uses.insert(key, at);
        }
    }

    /// Writes a batch now and then, and the last one when `end` is cancelled.
    pub async fn write_down(self, db: Database, end: CancellationToken) {
        while end.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            // What is not written now is written with the next batch.
            if !db.is_away()
                && let Err(error) = self.write(&db).await
            {
                tracing::debug!(%error, "when keys were last used could not be written down");
            }
        }
        let written = timeout(PATIENCE, self.write(&db)).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::warn!(
                "when keys were last used could not be written down; the last seconds of it are lost"
            );
        }
    }

    async fn write(&self, db: &Database) -> Result<()> {
        let mut uses: Vec<_> =
            std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect();
        // Processes that write at the same time lock the same keys in the same order.
        uses.sort_unstable_by_key(|(key, _)| *key);
        let accounts: Vec<_> = uses.chunk_by(|(a, _), (b, _)| a.0 == b.0).collect();
        let mut written = 0;
        for accounts in accounts.chunks(ACCOUNTS) {
            if let Err(error) = write_accounts(db, accounts).await {
                for (key, at) in &uses[written..] {
                    self.note(*key, *at);
                }
                return Err(error);
            }
            written += accounts.iter().map(|uses| uses.len()).sum::<usize>();
        }
        Ok(())
    }
}

/// Writes what the keys of some accounts did, in one commit.
async fn write_accounts(db: &Database, accounts: &[&[((AccountId, Uuid), Instant)]]) -> Result<()> {
    let Some(((first, _), _)) = accounts.first().and_then(|uses| uses.first()) else { return Ok(()) };
    let mut tx = TenantTx::begin(db.pool(), *first).await?;
    for uses in accounts {
        let ((account, _), _) = uses[0];
        if tx.account() != account {
            tx = tx.enter(account).await?;
        }
        let age = |at: &Instant| i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX);
        let ages = uses.iter().map(|((_, key), at)| (*key, age(at))).collect();
        store::mark_used(&mut tx, ages).await?;
    }
    tx.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_latest_use_counts_and_memory_is_bounded() {
        let used = UsedKeys::default();
        let account = AccountId(Uuid::from_u128(1));
        let now = Instant::now();
        for seconds in [5, 9, 7] {
            used.note((account, Uuid::nil()), now + Duration::from_secs(seconds));
        }
        assert_eq!(used.0.lock().unwrap()[&(account, Uuid::nil())], now + Duration::from_secs(9));
        for key in 0..2 * ROOM {
            used.mark(account, Uuid::from_u128(key as u128));
        }
        assert_eq!(used.0.lock().unwrap().len(), ROOM);
    }
}
