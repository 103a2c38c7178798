//! When to try again (SPEC Q5). The queue is the only owner of retries; nothing below it repeats a call.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::generation::Decision;

/// Upper bounds of the delays before the second, third … attempt; the last one repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySchedule(Vec<Duration>);

impl RetrySchedule {
    /// 5 s, 15 s, 45 s, 2 min, 5 min.
    pub const DEFAULT_SECONDS: [u64; 5] = [5, 15, 45, 120, 300];

    /// A schedule of these bounds; `None` if there are none.
    pub fn new(bounds: Vec<Duration>) -> Option<Self> {
        (!bounds.is_empty()).then_some(Self(bounds))
    }

    /// The upper bound of the delay that follows attempt number `attempt` (from 1).
    pub fn bound_after(&self, attempt: i32) -> Duration {
        let index = usize::try_from(attempt - 1).unwrap_or(0).min(self.0.len() - 1);
        self.0[index]
    }
}

impl Default for RetrySchedule {
    fn default() -> Self {
        Self(Self::DEFAULT_SECONDS.map(Duration::from_secs).to_vec())
    }
}

/// What becomes of a task whose attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// Try again, not before this.
    RetryAt(DateTime<Utc>),
    /// To the dead letters.
    GiveUp,
}

/// Decides what follows a failed attempt.
///
/// The delay is drawn with full jitter, `bound * jitter` with `jitter` uniform in 0..1, so that jobs that failed
/// together do not return together; a provider's `Retry-After` wins over it, even where it is shorter. A task
/// whose next attempt would begin after it expires is given up now rather than left to wait for nothing.
pub fn after_failure(
    schedule: &RetrySchedule,
    decision: Decision,
    attempt: i32,
    max_attempts: i32,
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    jitter: f64,
) -> AfterFailure {
    let delay = match decision {
        Decision::Fail => return AfterFailure::GiveUp,
        Decision::Retry => schedule.bound_after(attempt).mul_f64(jitter.clamp(0.0, 1.0)),
        Decision::RetryAfter(delay) => delay,
    };
    let at = TimeDelta::from_std(delay).ok().and_then(|delay| now.checked_add_signed(delay));
    match at {
        Some(at) if attempt < max_attempts && at < expires_at => AfterFailure::RetryAt(at),
        _ => AfterFailure::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
    }

    proptest! {
        #[test]
        fn a_retry_is_never_early_late_or_beyond_its_budget(
            attempt in 1_i32..12, max in 1_i32..12, jitter in 0.0_f64..1.0, ttl in 1_i64..4000, after in prop::option::of(0_u64..4000),
        ) {
            let schedule = RetrySchedule::default();
            let decision = after.map_or(Decision::Retry, |s| Decision::RetryAfter(Duration::from_secs(s)));
            match after_failure(&schedule, decision, attempt, max, at(0), at(ttl), jitter) {
                AfterFailure::RetryAt(when) => {
                    prop_assert!(attempt < max && when < at(ttl));
                    match after {
                        Some(s) => prop_assert_eq!(when, at(i64::try_from(s).unwrap())),
                        None => prop_assert!(when >= at(0) && when <= at(0) + schedule.bound_after(attempt)),
                    }
                }
                AfterFailure::GiveUp => {
                    let latest = after.map_or(schedule.bound_after(attempt), Duration::from_secs);
                    prop_assert!(attempt >= max || at(0) + latest >= at(ttl));
                }
            }
        }
    }

    #[test]
    fn a_terminal_failure_is_not_retried() {
        let schedule = RetrySchedule::default();
        assert_eq!(after_failure(&schedule, Decision::Fail, 1, 5, at(0), at(900), 0.5), AfterFailure::GiveUp);
    }

    #[test]
    fn the_defaults_are_those_of_the_specification() {
        let schedule = RetrySchedule::default();
        let seconds: Vec<_> = (1..=7).map(|attempt| schedule.bound_after(attempt).as_secs()).collect();
        assert_eq!(seconds, [5, 15, 45, 120, 300, 300, 300]);
    }
}
