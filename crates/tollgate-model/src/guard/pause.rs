//! Until when nobody may call at all: because the provider asked for it, or the operator.
//!
//! Whoever asks for the longest wait is right: a later, shorter `Retry-After` comes from a reply that knew less. So the end
//! of a pause only grows; it is over when it has passed.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::time::after;

/// When calls may begin again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pause {
    until: Option<DateTime<Utc>>,
}

impl Pause {
    /// Lasts until this at least. Returns whether that was news.
    pub fn extend(&mut self, until: DateTime<Utc>) -> bool {
        let longer = self.until.is_none_or(|present| present < until);
        if longer {
            self.until = Some(until);
        }
        longer
    }

    /// Its end, while it lasts.
    pub fn until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.until.filter(|until| *until > now)
    }
}

/// When one worker may go on after a pause: at its end or up to the spread after it, never before. `jitter` is the worker's
/// own draw from 0 to 1, made once a pause.
pub fn resume_at(pause_until: DateTime<Utc>, jitter: f64, spread: Duration) -> DateTime<Utc> {
    after(pause_until, spread.mul_f64(jitter.clamp(0.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_700_000_000_000 + millis).unwrap()
    }

    #[test]
    fn a_longer_pause_extends_a_shorter_one_and_not_the_other_way_round() {
        let mut pause = Pause::default();
        assert_eq!(pause.until(at(0)), None);
        assert!(pause.extend(at(30)));
        assert!(!pause.extend(at(10)));
        assert!(!pause.extend(at(30)));
        assert_eq!(pause.until(at(29)), Some(at(30)));
        assert_eq!(pause.until(at(30)), None);
    }

    proptest! {
        #[test]
        fn its_end_is_the_greatest_that_was_asked_for(ends in prop::collection::vec(0..1_000_i64, 1..20)) {
            let mut pause = Pause::default();
            for (nr, end) in ends.iter().enumerate() {
                pause.extend(at(*end));
                prop_assert_eq!(pause.until(at(-1)), ends[..=nr].iter().max().map(|end| at(*end)));
            }
            let stored = serde_json::to_string(&pause).unwrap();
            prop_assert_eq!(serde_json::from_str::<Pause>(&stored).unwrap(), pause);
        }

        #[test]
        fn nobody_returns_early_or_later_than_the_spread(jitter in -1.0_f64..2.0, spread in 0..10_000_u64) {
            let resume = resume_at(at(0), jitter, Duration::from_millis(spread));
            prop_assert!(resume >= at(0) && resume <= at(i64::try_from(spread).unwrap()));
        }
    }
}
