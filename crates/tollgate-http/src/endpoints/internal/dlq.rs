//! Dead letters: list, show, redrive, purge.

pub(crate) mod list;
pub(crate) mod purge;
pub(crate) mod redrive;
mod selected;
pub(crate) mod show;
