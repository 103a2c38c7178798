//! From a request to a handler's arguments; each refuses with a [`crate::problem::Problem`].
//!
//! They run in the order of the handler's arguments, so a [`Caller`] stands first: nobody's id, query or body is
//! looked at before the key is.

mod caller;
mod json;
mod once;
mod operator;
mod path;
mod query;
mod strict;

pub(crate) use caller::{
    BillingRead, Caller, JobsRead, JobsWrite, KeysWrite, Recognised, X_API_KEY, no_key, require, unknown,
};
pub(crate) use json::{BodyLimit, JsonBody, read};
pub(crate) use once::{Asked, AskedPerhapsWith, AskedWith, IDEMPOTENCY_KEY};
pub(crate) use operator::Operator;
pub(crate) use path::{Id, Named};
pub(crate) use query::Query;
