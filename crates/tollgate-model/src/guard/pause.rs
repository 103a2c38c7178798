//! Until when nobody may call at all: because the provider asked for it, or the operator.
//!
//! Whoever asks for the longest wait is right: a later, shorter `Retry-After` comes from a reply that knew less. So the end
//! of a pause only grows; it is over when it has passed.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

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

/// How long one worker stays away for a pause: so long, or up to the spread longer, never less, so that those who were
/// stopped together do not return together; but a short pause is not made a long one. `jitter` is the worker's own draw from
/// 0 to 1, made once a pause.
pub fn spread_out(pause: Duration, jitter: f64, spread: Duration) -> Duration {
    pause.saturating_add(spread.min(pause / 4).mul_f64(jitter.clamp(0.0, 1.0)))
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
        fn nobody_returns_early_or_later_than_the_spread(
            pause in 0..100_000_u64, jitter in -1.0_f64..2.0, spread in 0..10_000_u64,
        ) {
            let (pause, spread) = (Duration::from_millis(pause), Duration::from_millis(spread));
            let away = spread_out(pause, jitter, spread);
            prop_assert!(away >= pause && away <= pause + spread);
            prop_assert!(away <= pause + pause / 4);
        }
    }
}
