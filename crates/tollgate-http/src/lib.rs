//! The HTTP API: routes, extractors, problem documents
