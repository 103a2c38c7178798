//! One function, one business transaction: submit, claim, settle, cancel, sweep, create a key …
//!
//! The edges (HTTP, worker, commands) call these with a [`Database`] and never see a transaction, and nothing here can
//! call out: so no provider is ever called with a transaction open.
//!
//! **Architecture invariant:** this crate does not depend on `tollgate-outbound`, and its public functions neither
//! take nor return a transaction.

pub mod accounts;
mod admin_token;
mod admission;
mod attempts;
pub mod audit;
pub mod auth;
pub mod credits;
mod database;
pub mod dead_letters;
mod error;
pub mod forget;
pub mod guard;
mod hashing;
pub mod ids;
pub mod images;
pub mod jobs;
pub mod keys;
pub mod once;
mod presence;
pub mod prices;
mod process_secret;
pub mod queue;
pub mod rate_limits;
pub mod reconcile;
pub mod retention;
pub mod runs;
mod seal;
pub mod status;
pub mod stripe;
pub mod submit;
pub mod sweep;
pub mod used_keys;
mod waker;
pub mod workers;

pub use admin_token::AdminToken;
pub use admission::{Admission, admission};
pub use database::{Database, Health};
pub use error::{Error, Result};
pub use hashing::{KeyHashing, UnknownHashing};
pub use once::Answer;
pub use tollgate_model::idempotency::Once;
pub use tollgate_store::{ConnectError, LaneSettings, Mended, MigrateError, Migrated, Role, migrate};
pub use waker::{Waker, Wakers, waker, wakers};
