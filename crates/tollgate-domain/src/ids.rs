//! Where ids come from: UUIDv7, so that they sort by age and fill an index from one end.

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// A new id.
#[expect(clippy::disallowed_methods, reason = "the one place that makes ids")]
pub fn new_id() -> Uuid {
    Uuid::now_v7()
}

/// The least id that can be made at this time or later: those made before are below it.
pub(crate) fn first_id_of(at: DateTime<Utc>) -> Uuid {
    // A UUIDv7 begins with 48 bits of milliseconds since 1970.
    let millis = u128::try_from(at.timestamp_millis()).unwrap_or(0);
    Uuid::from_u128(millis << 80)
}

#[cfg(test)]
mod tests {
    use uuid::Timestamp;

    use super::*;

    #[test]
    fn an_id_says_when_it_was_made() {
        let made = |millis: u64| {
            Uuid::new_v7(Timestamp::from_unix(
                uuid::NoContext,
                millis / 1000,
                (millis % 1000) as u32 * 1_000_000,
            ))
        };
        let first = first_id_of(DateTime::from_timestamp_millis(1_700_000_000_123).unwrap());
        assert!(made(1_700_000_000_122) < first && first < made(1_700_000_000_123));
        assert_eq!(first_id_of(DateTime::from_timestamp_millis(-1).unwrap()), Uuid::nil());
    }
}
