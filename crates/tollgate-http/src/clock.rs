//! Where time enters: everything further in takes it as an argument.

use chrono::{DateTime, Utc};

/// The wall clock. Good for judging what a client wrote (`scheduled_at` is a year ahead at most); leases and
/// schedules go by the database's.
#[expect(clippy::disallowed_methods, reason = "the edge is where time enters")]
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now()
}
