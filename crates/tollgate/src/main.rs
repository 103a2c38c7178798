//! The binary: roles, configuration, lifecycle, telemetry
fn main() {}
