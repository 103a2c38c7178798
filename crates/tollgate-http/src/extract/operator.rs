//! Whether an operator is asking: the installation's own token, and never a tenant's key.

use axum::extract::FromRequestParts;
use http::header::AUTHORIZATION;
use http::request::Parts;

use super::caller::bearer;
use crate::api::{App, Operators};
use crate::problem::{Code, Problem};

/// An operator. Without one in its arguments, a handler has no connection that sees every account's queue.
pub(crate) struct Operator(Operators);

impl std::ops::Deref for Operator {
    type Target = Operators;

    fn deref(&self) -> &Operators {
        &self.0
    }
}

impl FromRequestParts<App> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let refuse = |detail: &str| Err(Problem::new(Code::Unauthorized, detail));
        let Some(operators) = &app.operators else {
            return refuse("the operator API is off: TOLLGATE_ADMIN_TOKEN is not set");
        };
        match parts.headers.get(AUTHORIZATION).map(bearer) {
            Some(Some(token)) if operators.token.is(token.trim_ascii()) => Ok(Self(operators.clone())),
            Some(Some(_)) => refuse("this is not the operators' token, TOLLGATE_ADMIN_TOKEN"),
            Some(None) => refuse("the header `Authorization` does not have the form `Bearer <token>`"),
            None => refuse("no operators' token: send it as `Authorization: Bearer <TOLLGATE_ADMIN_TOKEN>`"),
        }
    }
}
