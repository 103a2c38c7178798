//! Rate limits: one limit over all API processes, and mostly no database (SPEC K2).
//!
//! What is decided, and how large a slice is asked for, is [`Share`]'s; here is who asks: of the requests that find a share
//! spent, one, and the others wait for its answer.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::{Instant, timeout};
use tollgate_model::rate_limit::share::{Share, Verdict};
use tollgate_model::rate_limit::{Quota, RateLimit, Standing};
use tollgate_store as store;
use tollgate_store::TenantTx;
use uuid::Uuid;

use crate::auth::Caller;
use crate::{Database, Error, Result};

/// For a lease, waiting for one's turn included. A request that cannot be counted is refused as one that cannot be served.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shares kept in memory. One that had to go is leased anew; what was left of it is lost for its window.
const SHARES: u64 = 100_000;
/// One of which nothing is heard for so long goes.
const IDLE: Duration = Duration::from_mins(10);

/// Counts requests. One a process; clones share what it holds.
#[derive(Clone)]
pub struct RateLimits {
    usual: RateLimit,
    /// By the key that is counted, and group: the row of the URL table. Keys that count as one may differ in their limits.
    shares: Cache<(Uuid, &'static str, Quota), Arc<Leased>>,
    began: Instant,
}

impl std::fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimits").field("usual", &self.usual).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Leased {
    share: Mutex<Share>,
    /// Held by whoever asks for more.
    asking: tokio::sync::Mutex<()>,
    /// Requests that wait for that.
    waiting: AtomicU32,
}

/// Whether a request is within its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// It is, and counts.
    Yes(Standing),
    /// It is not.
    No(Standing),
    /// There is no limit.
    Unlimited,
}

impl RateLimits {
    /// With this limit for keys that have none of their own.
    pub fn new(usual: RateLimit) -> Self {
        Self {
            usual,
            shares: Cache::builder().max_capacity(SHARES).time_to_idle(IDLE).build(),
            began: Instant::now(),
        }
    }

    /// Counts one request of the caller, in its group.
    pub async fn check(&self, db: &Database, caller: &Caller, group: &'static str) -> Result<Allowed> {
        let RateLimit::Quota(quota) = caller.rate_limit.unwrap_or(self.usual) else {
            return Ok(Allowed::Unlimited);
        };
        let leased = self.shares.get_with((caller.counted_as, group, quota), Arc::default);
        let mut verdict = leased.share().spend(quota, self.began.elapsed());
        if verdict == Verdict::Lease {
            let lease = self.lease(&leased, db, caller, group, quota);
            verdict = timeout(PATIENCE, lease).await.unwrap_or_else(|_| Err(Error::timed_out()))?;
        }
        match verdict {
            Verdict::Accepted(standing) => Ok(Allowed::Yes(standing)),
            Verdict::Refused(standing) => {
                metrics::counter!("tollgate_rate_limited_total", "group" => group).increment(1);
                Ok(Allowed::No(standing))
            }
            Verdict::Lease => Err(Error::Internal("a lease that was answered by a wish for one".into())),
        }
    }

    async fn lease(
        &self,
        leased: &Leased,
        db: &Database,
        caller: &Caller,
        group: &'static str,
        quota: Quota,
    ) -> Result<Verdict> {
        let waiting = Waiting::begin(&leased.waiting);
        let _turn = leased.asking.lock().await;
        let asked = self.began.elapsed();
        let wanted = {
            let mut share = leased.share();
            match share.spend(quota, asked) {
                Verdict::Lease => share.wanted(quota, waiting.count(), asked),
                verdict => return Ok(verdict),
            }
        };
        let mut tx = TenantTx::begin(db.pool(), caller.account).await?;
        let counted = store::count_requests(&mut tx, caller.counted_as, group, wanted, quota.window).await?;
        tx.commit().await?;
        Ok(leased.share().leased(quota, wanted, counted, asked, self.began.elapsed()))
    }
}

impl Leased {
    fn share(&self) -> MutexGuard<'_, Share> {
        // Nothing panics while it is half changed.
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts among those who wait until it is dropped.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicU32) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }

    fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
