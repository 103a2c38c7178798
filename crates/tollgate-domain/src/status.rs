//! How much there is to do: an account's own counts, and the platform's.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tollgate_model::account::AccountId;
use tollgate_model::guard::class::GuardConfig;
use tollgate_model::guard::status::GuardStatus;
use tollgate_model::queue::{QueueCounts, QueueName};
use tollgate_store as store;
use tollgate_store::TenantTx;

use crate::{Database, Result, guard, queue};

/// The account's generation jobs.
pub async fn of_account(db: &Database, account: AccountId) -> Result<QueueCounts> {
    let mut tx = TenantTx::begin(db.pool(), account).await?;
    let counts = store::lane_counts(&mut tx, &QueueName::GENERATION, account).await?;
    tx.commit().await?;
    Ok(counts)
}

/// How old the platform's totals may be. Anybody may ask for them, and they cost more the more accounts there are:
/// reading them may take up a tenth of the time, and no more.
const GOOD_FOR: Duration = Duration::from_secs(1);
const READING_SHARE: u32 = 10;

/// The platform's totals, as this process last read them.
#[derive(Debug, Default)]
pub struct Totals(Mutex<Option<Reading>>);

#[derive(Debug)]
struct Reading {
    counts: QueueCounts,
    good_until: Instant,
}

impl Totals {
    /// The generation jobs of all accounts. Read by one for all who ask.
    pub async fn get(&self, db: &Database) -> Result<QueueCounts> {
        let mut known = self.0.lock().await;
        let began = Instant::now();
        if let Some(reading) = &*known
            && began < reading.good_until
        {
            return Ok(reading.counts);
        }
        let counts = queue::counts(db, &QueueName::GENERATION).await?;
        let good_until = began + GOOD_FOR.max(began.elapsed() * READING_SHARE);
        *known = Some(Reading { counts, good_until });
        Ok(counts)
    }
}

/// The guards, as this process last read them: many may ask, and all are told the same.
#[derive(Debug, Default)]
pub struct Guards(Mutex<Option<(Instant, Arc<[GuardStatus]>)>>);

impl Guards {
    /// Those of all classes, at most a second old. `enabled`: by this process's configuration, the breaker's decisions hold.
    pub async fn get(
        &self,
        db: &Database,
        config: &GuardConfig,
        enabled: bool,
    ) -> Result<Arc<[GuardStatus]>> {
        let mut known = self.0.lock().await;
        let began = Instant::now();
        if let Some((read, guards)) = &*known
            && began.duration_since(*read) < GOOD_FOR
        {
            return Ok(guards.clone());
        }
        let guards: Arc<[GuardStatus]> = guard::status(db, config, enabled).await?.into();
        *known = Some((began, guards.clone()));
        Ok(guards)
    }
}
