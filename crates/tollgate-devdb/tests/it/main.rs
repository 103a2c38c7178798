//! Tests with real servers: whatever PostgreSQL this machine has, or the one that `PGBIN` names.
//!
//! They run as root and as anybody else, and leave no process and no file behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking; its helpers too")]

mod common;
mod server;
#[cfg(target_os = "linux")]
mod with_postgres;
