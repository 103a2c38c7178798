//! What the tests share: a private cluster, template databases, running binaries
