//! The quota API that stays: its paths and shapes are those that its users know.

pub(crate) mod health;
pub(crate) mod status;
