//! Every integration test, in one binary: real processes, a real PostgreSQL, the simulated provider.

#![expect(clippy::unwrap_used, reason = "in a test, what cannot be had is a failure")]

mod api_document;
mod api_fuzz;
mod api_input;
mod api_jobs;
mod api_keys;
mod api_provider;
mod api_requests;
mod cli_jobs;
mod commands;
mod dev;
mod layers;
mod walls_catalogue;
mod walls_sessions;
mod walls_start;
mod walls_tenants;
mod watched;
mod worker_cancel;
mod worker_chaos;
mod worker_leases;
mod worker_recovery;
mod worker_runs;
mod worker_versions;
