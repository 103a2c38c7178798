//! Query parameters.

use std::error::Error as _;

use axum::extract::FromRequestParts;
use http::request::Parts;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// The query string as a `T`, whose `deny_unknown_fields` refuses what the endpoint does not know.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => {
                let cause = rejection.source().map_or_else(|| rejection.body_text(), ToString::to_string);
                Err(Problem::invalid(format!("query parameter {cause}")))
            }
        }
    }
}
