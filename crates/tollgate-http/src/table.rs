//! The words the URL table is written in.
//!
//! A row names its method and path, so that the table can be read by itself; the endpoint's documentation names them
//! as well. A row that disagrees with its endpoint panics when the router is built, which every start and every test
//! of it does.

use axum::Extension;
use http::Method;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use crate::rate_limits::Group;

pub(crate) trait Table<S> {
    /// One row: `METHOD /path`, and the endpoint. Its requests are counted together.
    #[must_use]
    fn row(self, row: &'static str, endpoint: UtoipaMethodRouter<S>) -> Self;
}

impl<S: Send + Sync + Clone + 'static> Table<S> for OpenApiRouter<S> {
    fn row(self, row: &'static str, endpoint: UtoipaMethodRouter<S>) -> Self {
        let paths = endpoint.1.paths.iter();
        let documented: Vec<_> = paths
            .flat_map(|(path, item)| {
                operations(item).into_iter().map(move |(method, _)| format!("{method} {path}"))
            })
            .collect();
        assert_eq!(documented, [row], "a row of the URL table and its endpoint's documentation differ");
        let (schemas, paths, methods) = endpoint;
        self.routes((schemas, paths, methods.route_layer(Extension(Group(row)))))
    }
}

/// The operations of a path.
pub(crate) fn operations(item: &PathItem) -> Vec<(Method, &Operation)> {
    [
        (Method::GET, &item.get),
        (Method::POST, &item.post),
        (Method::PUT, &item.put),
        (Method::PATCH, &item.patch),
        (Method::DELETE, &item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
    .collect()
}
