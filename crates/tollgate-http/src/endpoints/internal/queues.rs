//! Queues as a whole: list, set.

pub(crate) mod list;
pub(crate) mod set;
