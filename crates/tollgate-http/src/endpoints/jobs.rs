//! Jobs: submit, list, show, follow, cancel.

pub(crate) mod cancel;
pub(crate) mod events;
mod follow;
pub(crate) mod list;
pub(crate) mod show;
pub(crate) mod submit;
