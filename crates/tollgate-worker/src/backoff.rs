//! Waiting for the database to come back: longer each time, spread out, and one line of log a change of state.

use std::time::Duration;

use tollgate_domain::{Error, Result};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// The longest that one transaction may take. PostgreSQL's own limits end it earlier; this one is for a server that
/// says nothing any more.
const DEADLINE: Duration = Duration::from_secs(40);

/// Asks the database, but not for ever.
pub(crate) async fn in_time<T>(ask: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(DEADLINE, ask).await.unwrap_or_else(|_| Err(Error::timed_out()))
}

/// One loop's view of whether the database answers.
#[derive(Debug)]
pub(crate) struct Backoff {
    what: &'static str,
    failures: u32,
}

impl Backoff {
    /// `what` the loop does, for the log.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, failures: 0 }
    }

    /// It worked.
    pub(crate) fn succeeded(&mut self) {
        if self.failures > 0 {
            tracing::info!(what = self.what, failures = self.failures, "the database is back");
            self.failures = 0;
        }
    }

    /// It did not: waits before the next try.
    pub(crate) async fn failed(&mut self, error: &Error) {
        if self.failures == 0 {
            tracing::warn!(what = self.what, %error, "failed; trying again until it works");
        }
        self.failures = self.failures.saturating_add(1);
        metrics::counter!("tollgate_worker_database_failures_total", "what" => self.what).increment(1);
        tokio::time::sleep(delay(self.failures, jitter())).await;
    }
}

/// Doubles from the first to the longest; `jitter` in 0..1 takes up to half of it away.
fn delay(failures: u32, jitter: f64) -> Duration {
    let doubled = FIRST.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST);
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
                let delay = delay(failures, jitter);
                assert!(delay >= FIRST / 2 && delay <= LONGEST, "{failures} {jitter} {delay:?}");
            }
        }
        assert_eq!(delay(3, 0.0), Duration::from_millis(400));
    }
}
