//! For those who run the platform: no key needed, nothing of any tenant shown.

pub(crate) mod healthz;
pub(crate) mod metrics;
pub(crate) mod openapi;
pub(crate) mod readyz;
