//! `/v1/credits`: what the account has, and how it came to it.

pub(crate) mod ledger;
pub(crate) mod show;
