//! The provider's own rate limit: a token bucket.

use std::time::Duration;

use tokio::time::Instant;

/// A bucket that starts full and fills evenly over a minute.
///
/// It is kept as the instant at which it will be full again (GCRA), so there are no fractions of tokens to lose
/// and no timer to run.
#[derive(Debug, Clone)]
pub(crate) struct TokenBucket {
    size: u32,
    /// The time one token takes.
    per_token: Duration,
    full_at: Instant,
}

/// What a request found in the bucket, as the `x-ratelimit-*` headers tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) size: u32,
    /// Whole tokens left.
    pub(crate) remaining: u32,
    /// Until the bucket is full.
    pub(crate) reset: Duration,
    /// For a request that found none: until there is one.
    pub(crate) refused_for: Option<Duration>,
}

impl TokenBucket {
    /// A full bucket of `per_minute` tokens, which must be at least 1.
    pub(crate) fn new(per_minute: u32, now: Instant) -> Self {
        let size = per_minute.max(1);
        Self { size, per_token: Duration::from_mins(1) / size, full_at: now }
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> Limit {
        let missing = self.full_at.saturating_duration_since(now);
        let capacity = self.per_token * self.size;
        let after = missing + self.per_token;
        let refused_for = after.checked_sub(capacity).filter(|wait| !wait.is_zero());
        let reset = if refused_for.is_some() { missing } else { after };
        self.full_at = now + reset;
        let left = capacity.saturating_sub(reset).as_nanos() / self.per_token.as_nanos();
        Limit { size: self.size, remaining: u32::try_from(left).unwrap_or(self.size), reset, refused_for }
    }
}

/// Whole seconds, rounded up: a client that waits as long as it is told finds a token.
pub(crate) fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// A duration as OpenAI writes it in `x-ratelimit-reset-requests`: `120ms`, `8s`, `6m0s`.
pub(crate) fn short(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return format!("{}ms", duration.as_millis());
    }
    match seconds_up(duration) {
        seconds @ ..60 => format!("{seconds}s"),
        seconds => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_bucket_is_a_burst_and_then_a_trickle() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(3, start);
        for remaining in [2, 1, 0] {
            let limit = bucket.take(start);
            assert_eq!((limit.remaining, limit.refused_for), (remaining, None));
        }
        let refused = bucket.take(start);
        assert_eq!(refused.refused_for, Some(Duration::from_secs(20)));
        assert_eq!(refused.reset, Duration::from_mins(1));

        assert!(bucket.take(start + Duration::from_millis(19_999)).refused_for.is_some());
        assert_eq!(bucket.take(start + Duration::from_secs(20)).refused_for, None);
        assert!(bucket.take(start + Duration::from_secs(39)).refused_for.is_some());

        let rested = bucket.take(start + Duration::from_mins(10));
        assert_eq!((rested.size, rested.remaining), (3, 2));
    }

    #[tokio::test]
    async fn waiting_as_long_as_told_is_enough() {
        for per_minute in [1, 7, 59, 60, 61, 1_000, 999_983] {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(per_minute, start);
            let wait =
                std::iter::repeat_with(|| bucket.take(start)).find_map(|limit| limit.refused_for).unwrap();
            assert_eq!(bucket.take(start + wait).refused_for, None, "{per_minute} a minute");
        }
    }

    #[test]
    fn durations_are_short() {
        for (ms, text) in
            [(0, "0ms"), (120, "120ms"), (1_000, "1s"), (7_001, "8s"), (59_001, "1m0s"), (360_000, "6m0s")]
        {
            assert_eq!(short(Duration::from_millis(ms)), text);
        }
    }
}
