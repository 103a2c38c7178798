//! Every integration test, in one binary: real processes, a real PostgreSQL, the simulated provider.

mod commands;
mod dev;
mod layers;
mod walls_catalogue;
mod walls_sessions;
mod walls_start;
mod walls_tenants;
