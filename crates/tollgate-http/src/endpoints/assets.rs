//! What pages load: no key needed, the same for everybody.

pub(crate) mod frames;
