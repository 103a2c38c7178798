//! What operators do: dead letters, and the settings of queues and lanes; and where Stripe's events come in. Over all
//! accounts, so not for tenants.

pub(crate) mod dlq;
pub(crate) mod guard;
pub(crate) mod lanes;
pub(crate) mod queues;
pub(crate) mod stripe;
