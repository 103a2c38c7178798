//! Lanes, one account's share of one queue each: show, set.

pub(crate) mod set;
pub(crate) mod show;
