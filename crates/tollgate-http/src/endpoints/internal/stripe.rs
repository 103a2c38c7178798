//! Stripe.

pub(crate) mod webhook;
