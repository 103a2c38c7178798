//! The guards that stand before the provider: look, order.

pub(crate) mod health;
pub(crate) mod order;
