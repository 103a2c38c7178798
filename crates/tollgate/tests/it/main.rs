//! Every integration test, in one binary: real processes, a real PostgreSQL, the simulated provider.

#![expect(clippy::unwrap_used, reason = "in a test, what cannot be had is a failure")]

mod abandoned;
mod admission;
mod api_document;
mod api_fuzz;
mod api_input;
mod api_jobs;
mod api_keys;
mod api_outage;
mod api_provider;
mod api_requests;
mod cli_jobs;
mod commands;
mod dev;
mod dlq;
mod dlq_lists;
mod guard_budget;
mod guard_idle;
mod guard_matrix;
mod guard_operator;
mod guard_status;
mod images;
mod images_kept;
mod layers;
mod legacy_images;
mod operator;
mod operators;
mod outage;
mod queue_fairness;
mod queue_model;
mod queue_plans;
mod retention;
mod status;
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
