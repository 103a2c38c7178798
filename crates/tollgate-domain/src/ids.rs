//! Where ids come from: UUIDv7, so that they sort by age and fill an index from one end.

use uuid::Uuid;

/// A new id.
#[expect(clippy::disallowed_methods, reason = "the one place that makes ids")]
pub fn new_id() -> Uuid {
    Uuid::now_v7()
}
