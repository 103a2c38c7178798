//! Times and spans without overflow. What is beyond the calendar is at its end.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

pub(super) type Time = DateTime<Utc>;

/// So much later.
pub(super) fn after(at: Time, by: Duration) -> Time {
    TimeDelta::from_std(by).ok().and_then(|by| at.checked_add_signed(by)).unwrap_or(Time::MAX_UTC)
}

/// So much earlier.
pub(super) fn before(at: Time, by: Duration) -> Time {
    TimeDelta::from_std(by).ok().and_then(|by| at.checked_sub_signed(by)).unwrap_or(Time::MIN_UTC)
}

/// From one to the other; nothing if the other is earlier.
pub(super) fn between(from: Time, to: Time) -> Duration {
    to.signed_duration_since(from).to_std().unwrap_or_default()
}

/// The same time by a clock that is behind by so much.
pub(super) fn shifted(at: Time, behind: TimeDelta) -> Time {
    at.checked_sub_signed(behind).unwrap_or(at)
}
