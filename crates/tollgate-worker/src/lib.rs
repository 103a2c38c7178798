//! The loop: claim, call, settle
