//! The account's audit log: list.

pub(crate) mod list;
