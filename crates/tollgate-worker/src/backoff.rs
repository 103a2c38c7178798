//! Waiting for the database to come back: longer each time, spread out, and one line of log a change of state.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tollgate_domain::{Database, Error, Result};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// The longest that one transaction may take. PostgreSQL's own limits end it earlier; this one is for a server that
/// says nothing any more.
const DEADLINE: Duration = Duration::from_secs(40);

/// Asks the database, but not for ever.
pub(crate) async fn in_time<T>(ask: impl Future<Output = Result<T>>) -> Result<T> {
    within(DEADLINE, ask).await
}

/// Asks the database, but for no longer than this.
pub(crate) async fn within<T>(deadline: Duration, ask: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(deadline, ask).await.unwrap_or_else(|_| Err(Error::timed_out()))
}

/// Where the database is known to be away, nobody asks it but the one who looks whether it is back ([`Database::watch`]).
/// Should he err, the others ask by themselves after this long.
const TRUST: Duration = Duration::from_secs(15);

/// How many loops and runs fail at the same thing, so that many side by side are one line of log.
static FAILING: Failing = Failing(Mutex::new(BTreeMap::new()));

struct Failing(Mutex<BTreeMap<&'static str, u32>>);

impl Failing {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, u32>> {
        // Nothing panics while the map is half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `true`: nobody has failed at this until now.
    fn begins(&self, what: &'static str) -> bool {
        let mut failing = self.lock();
        let count = failing.entry(what).or_default();
        *count += 1;
        *count == 1
    }

    /// `true`: nobody fails at this any more.
    fn ends(&self, what: &'static str) -> bool {
        let mut failing = self.lock();
        let left = failing.get(what).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            failing.remove(what);
        } else {
            failing.insert(what, left);
        }
        left == 0
    }
}

/// One loop's view of whether the database answers.
#[derive(Debug)]
pub(crate) struct Backoff {
    what: &'static str,
    db: Database,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// `what` the loop does, for the log.
    pub(crate) fn new(what: &'static str, db: &Database) -> Self {
        Self { what, db: db.clone(), longest: LONGEST, failures: 0 }
    }

    /// The same, for a loop that must not wait longer than this, unless the database is known to be away.
    pub(crate) fn at_most(mut self, longest: Duration) -> Self {
        self.longest = longest.clamp(FIRST, LONGEST);
        self
    }

    /// It worked.
    pub(crate) fn succeeded(&mut self) {
        let failures = std::mem::take(&mut self.failures);
        if failures > 0 && FAILING.ends(self.what) {
            tracing::info!(what = self.what, failures, "works again");
        }
    }

    /// It did not: waits before the next try.
    pub(crate) async fn failed(&mut self, error: &Error) {
        if self.failures == 0 && FAILING.begins(self.what) {
            tracing::warn!(what = self.what, %error, "failed; trying again until it works");
        }
        self.failures = self.failures.saturating_add(1);
        metrics::counter!("tollgate_worker_database_failures_total", "what" => self.what).increment(1);
        if error.is_unavailable() {
            self.db.suspect(None);
        }
        tokio::time::sleep(delay(self.failures, self.longest, jitter())).await;
        self.while_away().await;
    }

    /// Waits while the database is known to be away.
    pub(crate) async fn while_away(&self) {
        let _ = tokio::time::timeout(TRUST, self.db.back()).await;
    }
}

impl Drop for Backoff {
    fn drop(&mut self) {
        if self.failures > 0 {
            FAILING.ends(self.what);
        }
    }
}

/// Doubles from the first to the longest; `jitter` in 0..1 takes up to half of it away.
fn delay(failures: u32, longest: Duration, jitter: f64) -> Duration {
    let doubled = FIRST.saturating_mul(1 << (failures - 1).min(10)).min(longest);
    doubled.mul_f64(1.0 - jitter / 2.0)
}

/// A random number in 0..1.
#[expect(clippy::disallowed_methods, reason = "the worker is the edge where randomness enters")]
pub(crate) fn jitter() -> f64 {
    rand::random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_a_bound_and_is_never_nothing() {
        for failures in 1..100 {
            for jitter in [0.0, 0.5, 0.999] {
                let delay = delay(failures, LONGEST, jitter);
                assert!(delay >= FIRST / 2 && delay <= LONGEST, "{failures} {jitter} {delay:?}");
            }
        }
        assert_eq!(delay(3, LONGEST, 0.0), Duration::from_millis(400));
        assert_eq!(delay(3, FIRST, 0.0), FIRST);
    }

    #[test]
    fn many_who_fail_at_one_thing_begin_once_and_end_once() {
        let failing = Failing(Mutex::default());
        assert!(failing.begins("settling"));
        assert!(!failing.begins("settling"));
        assert!(failing.begins("sweeping"), "another thing");
        assert!(!failing.ends("settling"));
        assert!(failing.ends("settling"));
        assert!(failing.begins("settling"), "and again");
    }
}
