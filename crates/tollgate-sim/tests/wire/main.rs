//! The simulator over its own socket, as its clients meet it.

#![expect(
    clippy::unwrap_used,
    reason = "tests fail by panicking, and clippy's exception for them leaves out helpers"
)]

mod client;
mod control;
mod faults;
mod lifecycle;
mod replies;
