//! All that Tollgate calls, and the only crate with an HTTP client.
//!
//! Everything that leaves the process towards somebody else's server goes through here, so that the rules
//! for such calls are kept in one place: each has one total deadline that covers the last byte of the body,
//! each body has a cap, nothing is retried (the queue owns retries), no redirect is followed, and dropping a
//! call's future closes its socket.
//!
//! The crate knows no database and no job. It depends on `tollgate-model` alone, whose
//! [`GenerationRequest`](tollgate_model::generation::GenerationRequest),
//! [`GenerationOutput`](tollgate_model::generation::GenerationOutput) and
//! [`ProviderFailure`](tollgate_model::generation::ProviderFailure) it takes and gives.
//!
//! **Architecture invariant:** `tollgate-store` and `tollgate-domain` cannot see this crate, and this crate
//! cannot see them; no call to a provider can happen inside a database transaction.

mod address;
mod body;
mod client;
mod download;
mod image_store;
mod limits;
mod message;
mod nul;
mod openai;
mod provider;
mod retry_after;
mod tollgate;

#[cfg(test)]
mod tests;

pub use client::{ClientError, install_crypto_provider};
pub use image_store::{ImageStore, ImageStoreError, ImageStoreKind, S3Config};
pub use openai::{NAME as OPENAI, OpenAi, OpenAiConfig};
pub use provider::Provider;
pub use tollgate::{ApiError, Page, TollgateClient};
