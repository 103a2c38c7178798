//! One endpoint, one file: its documentation, what it takes and answers, its handler.

pub(crate) mod ai;
pub(crate) mod api_keys;
pub(crate) mod assets;
pub(crate) mod audit_log;
pub(crate) mod credits;
pub(crate) mod images;
pub(crate) mod internal;
pub(crate) mod jobs;
pub(crate) mod ops;
