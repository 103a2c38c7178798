//! The account's API keys: create, list, revoke.

pub(crate) mod create;
pub(crate) mod list;
pub(crate) mod revoke;
