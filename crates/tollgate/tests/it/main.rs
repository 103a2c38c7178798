//! Every integration test, in one binary: real processes, a real PostgreSQL, the simulated provider.

mod layers;
