//! The one place that reads the wall clock; all waiting and measuring is done with [`tokio::time::Instant`].

use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock: replies state when they were created, and `Retry-After` may be a date.
#[expect(clippy::disallowed_methods, reason = "what a reply says about the time is the wall clock's")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Whole seconds since 1970, as `created` has them.
pub(crate) fn unix_seconds() -> u64 {
    now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
