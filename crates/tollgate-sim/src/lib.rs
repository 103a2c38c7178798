//! A simulated AI provider with faults on demand
