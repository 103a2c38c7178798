//! How long a circuit was open on each day (UTC), for the alert on it (SPEC A7).

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{Days, NaiveDate, NaiveTime};
use serde::{Deserialize, Serialize};

use super::time::{Time, between};

/// Days that are remembered: this one, and the one before for whoever asks after midnight.
const REMEMBERED: usize = 2;

/// Milliseconds by day. Holds what is over; a circuit that is open now adds what runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct OpenTime(BTreeMap<NaiveDate, u64>);

impl OpenTime {
    /// It was open from one time to the other.
    pub(super) fn add(&mut self, from: Time, to: Time) {
        let mut from = from;
        while from < to {
            let day = from.date_naive();
            let end = day
                .checked_add_days(Days::new(1))
                .map_or(to, |next| next.and_time(NaiveTime::MIN).and_utc().min(to));
            let millis = u64::try_from(between(from, end).as_millis()).unwrap_or(u64::MAX);
            let sum = self.0.entry(day).or_default();
            *sum = sum.saturating_add(millis);
            from = end;
        }
        while self.0.len() > REMEMBERED {
            self.0.pop_first();
        }
    }

    /// On that day.
    pub(super) fn on(&self, day: NaiveDate) -> Duration {
        Duration::from_millis(self.0.get(&day).copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Time {
        text.parse().unwrap()
    }

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    #[test]
    fn each_day_has_its_own() {
        let mut open = OpenTime::default();
        open.add(time("2026-03-01T10:00:00Z"), time("2026-03-01T10:00:20Z"));
        open.add(time("2026-03-01T23:59:50Z"), time("2026-03-02T00:00:05Z"));
        assert_eq!(open.on(day("2026-03-01")), Duration::from_secs(30));
        assert_eq!(open.on(day("2026-03-02")), Duration::from_secs(5));
        assert_eq!(open.on(day("2026-03-03")), Duration::ZERO);
    }

    #[test]
    fn a_day_has_no_more_than_a_day() {
        let mut open = OpenTime::default();
        open.add(time("2026-03-01T12:00:00Z"), time("2026-03-04T12:00:00Z"));
        assert_eq!(open.on(day("2026-03-03")), Duration::from_hours(24));
        assert_eq!(open.on(day("2026-03-04")), Duration::from_hours(12));
        assert_eq!(open.on(day("2026-03-01")), Duration::ZERO, "days long past are forgotten");
    }

    #[test]
    fn a_clock_that_went_back_adds_nothing() {
        let mut open = OpenTime::default();
        open.add(time("2026-03-01T12:00:00Z"), time("2026-03-01T11:00:00Z"));
        assert_eq!(open, OpenTime::default());
    }
}
