//! Images: list, and their bytes.

pub(crate) mod content;
pub(crate) mod list;
