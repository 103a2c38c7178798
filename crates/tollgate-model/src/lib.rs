//! Pure types and decisions: no tokio, no sqlx, no clock, no randomness of its own.
//!
//! Whatever can be decided without asking anybody is decided here, so that it can be tested with plain values:
//! `now` and random draws come in as arguments.
//!
//! **Architecture invariant:** this crate depends on no runtime, no driver and no other crate of the workspace.

pub mod account;
pub mod admission;
pub mod audit;
pub mod credits;
pub mod cursor;
pub mod dead_letter;
pub mod generation;
pub mod guard;
pub mod idempotency;
pub mod image;
pub mod job;
pub mod job_type;
pub mod key;
pub mod lanes;
pub mod object;
pub mod pricing;
pub mod queue;
pub mod retry;
pub mod submission;
