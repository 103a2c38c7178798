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

/// How old a reading may be. Anybody may ask for one, and it may cost much: reading may take up a tenth of the time, and no
/// more.
const GOOD_FOR: Duration = Duration::from_secs(1);
const READING_SHARE: u32 = 10;

/// Something as this process last read it: read by one for all who ask.
#[derive(Debug)]
struct Reading<T>(Mutex<Option<(T, Instant)>>);

impl<T> Default for Reading<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Reading<T> {
    async fn get(&self, read: impl Future<Output = Result<T>>) -> Result<T> {
        let mut known = self.0.lock().await;
        let began = Instant::now();
        if let Some((reading, good_until)) = &*known
            && began < *good_until
        {
            return Ok(reading.clone());
        }
        let reading = read.await?;
        let good_until = began + GOOD_FOR.max(began.elapsed() * READING_SHARE);
        *known = Some((reading.clone(), good_until));
        Ok(reading)
    }
}

/// The platform's totals. They cost more the more accounts there are.
#[derive(Debug, Default)]
pub struct Totals(Reading<QueueCounts>);

impl Totals {
    /// The generation jobs of all accounts.
    pub async fn get(&self, db: &Database) -> Result<QueueCounts> {
        self.0.get(queue::counts(db, &QueueName::GENERATION)).await
    }
}

/// The guards.
#[derive(Debug, Default)]
pub struct Guards(Reading<Arc<[GuardStatus]>>);

impl Guards {
    /// Those of all classes. `enabled`: by this process's configuration, the breaker's decisions hold.
    pub async fn get(
        &self,
        db: &Database,
        config: &GuardConfig,
        enabled: bool,
    ) -> Result<Arc<[GuardStatus]>> {
        self.0.get(async { Ok(guard::status(db, config, enabled).await?.into()) }).await
    }
}
