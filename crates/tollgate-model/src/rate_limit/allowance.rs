//! A token bucket in one number: the moment at which it will be full again (GCRA, as in the governor crate, which
//! cannot give a token back).

use std::time::Duration;

use super::{Quota, Standing};

/// So many at once, and one more each time `every` has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// At once.
    pub burst: u32,
    /// From one to the next.
    pub every: Duration,
}

/// What is taken of an allowance: when all of it will be there again. Begins with nothing taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken(Duration);

impl Allowance {
    /// Takes one, or says how long to wait for it.
    pub fn take(self, taken: &mut Taken, now: Duration) -> Result<(), Duration> {
        let full_at = taken.0.max(now) + self.every;
        let latest = now + self.window();
        let wait = full_at.saturating_sub(latest);
        if wait.is_zero() {
            taken.0 = full_at;
            return Ok(());
        }
        Err(wait)
    }

    /// Gives one back that was taken for nothing.
    pub fn give_back(self, taken: &mut Taken) {
        taken.0 = taken.0.saturating_sub(self.every);
    }

    /// How much is left.
    pub fn standing(self, taken: Taken, now: Duration) -> Standing {
        let reset = taken.0.saturating_sub(now);
        let missing = reset.as_nanos().div_ceil(self.every.as_nanos().max(1));
        let remaining = self.burst.saturating_sub(u32::try_from(missing).unwrap_or(u32::MAX));
        Standing { quota: Quota { requests: self.burst, window: self.window() }, remaining, reset }
    }

    fn window(self) -> Duration {
        self.every.saturating_mul(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OF: Allowance = Allowance { burst: 5, every: Duration::from_millis(100) };

    #[test]
    fn a_burst_then_one_at_a_time() {
        let mut taken = Taken::default();
        let start = Duration::from_secs(9);
        for left in (0..5).rev() {
            assert_eq!(OF.take(&mut taken, start), Ok(()));
            assert_eq!(OF.standing(taken, start).remaining, left);
        }
        assert_eq!(OF.take(&mut taken, start), Err(OF.every));
        let later = start + OF.every;
        assert_eq!((OF.take(&mut taken, later), OF.take(&mut taken, later)), (Ok(()), Err(OF.every)));
        OF.give_back(&mut taken);
        assert_eq!(OF.take(&mut taken, later), Ok(()));
        assert_eq!(OF.standing(taken, later + OF.window()).remaining, 5);
    }

    proptest! {
        /// Against a bucket of whole tokens that counts the time itself.
        #[test]
        fn it_takes_what_a_naive_bucket_gives(steps in prop::collection::vec(0_u64..700, 1..200)) {
            let (mut taken, mut now) = (Taken::default(), Duration::ZERO);
            // In parts of a token.
            let (mut parts, full) = (500_u64, 500_u64);
            for millis in steps {
                now += Duration::from_millis(millis);
                parts = (parts + millis).min(full);
                prop_assert_eq!(OF.standing(taken, now).remaining, u32::try_from(parts / 100).unwrap());
                match OF.take(&mut taken, now) {
                    Ok(()) => {
                        prop_assert!(parts >= 100);
                        parts -= 100;
                    }
                    Err(wait) => prop_assert_eq!(wait, Duration::from_millis(100 - parts)),
                }
            }
        }
    }
}
