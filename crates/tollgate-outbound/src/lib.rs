//! All that Tollgate calls, and the only crate with an HTTP client
