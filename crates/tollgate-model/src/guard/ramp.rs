//! How much concurrency returns after the circuit has closed.
//!
//! All of it at once would be a burst at a provider that has only just recovered, from a backlog that has only grown. The
//! share grows evenly with the time since closing, so each worker finds it by itself. "One call at once" is one of each
//! worker.

use std::time::Duration;

/// Parts of the whole.
const WHOLE: u32 = 1_000_000;

/// A part of what a worker may do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// All of it.
    pub const WHOLE: Self = Self(WHOLE);

    /// So long after closing, where all of it is back after `ramp`.
    pub fn after(closed_for: Duration, ramp: Duration) -> Self {
        if closed_for >= ramp {
            return Self::WHOLE;
        }
        let parts = closed_for.as_micros().saturating_mul(u128::from(WHOLE)) / ramp.as_micros().max(1);
        Self(u32::try_from(parts).unwrap_or(WHOLE).min(WHOLE))
    }

    /// That part of `full` calls at once: 1 at least, if there is any.
    pub fn of(self, full: usize) -> usize {
        let part = (full as u128).saturating_mul(u128::from(self.0)) / u128::from(WHOLE);
        usize::try_from(part).unwrap_or(full).max(1).min(full)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn from_one_to_all() {
        let ramp = Duration::from_secs(30);
        let at = |seconds| Share::after(Duration::from_secs(seconds), ramp).of(10);
        assert_eq!([0, 2, 6, 15, 29, 30, 31].map(at), [1, 1, 2, 5, 9, 10, 10]);
        assert_eq!(Share::after(Duration::ZERO, Duration::ZERO), Share::WHOLE);
        assert_eq!(Share::WHOLE.of(usize::MAX), usize::MAX);
    }

    proptest! {
        #[test]
        fn it_only_grows_and_is_never_none(
            early in 0..40_000_u64, more in 0..40_000_u64, ramp in 0..40_000_u64, full in 0..1_000_usize,
        ) {
            let share = |millis| Share::after(Duration::from_millis(millis), Duration::from_millis(ramp));
            let (before, later) = (share(early).of(full), share(early + more).of(full));
            prop_assert!(before <= later && later <= full);
            prop_assert!(before >= 1 || full == 0);
        }
    }
}
