//! What operators do: dead letters, and the settings of queues and lanes. Over all accounts, so not for tenants.

pub(crate) mod dlq;
pub(crate) mod guard;
pub(crate) mod lanes;
pub(crate) mod queues;
