//! The whole URL table, and the layers that every request passes.

use std::time::Duration;

use axum::Router;
use axum::extract::{FromRef, Request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use http::Method;
use http::header::{AUTHORIZATION, COOKIE};
use metrics_exporter_prometheus::PrometheusHandle;
use tollgate_domain::Database;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::{Api, App, Ops};
use crate::endpoints::{api_keys, jobs, ops};
use crate::extract::X_API_KEY;
use crate::observe;
use crate::openapi;
use crate::problem::{Code, Problem};
use crate::table::Table as _;

/// Every URL of the API. A scope stands in its endpoint's file, as the type of its caller.
pub(crate) fn table() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::frame())
        .row("POST /v1/jobs/generations", routes!(jobs::submit::submit))
        .row("GET /v1/jobs", routes!(jobs::list::list))
        .row("GET /v1/jobs/{id}", routes!(jobs::show::show))
        .row("GET /v1/jobs/{id}/events", routes!(jobs::events::events))
        .row("POST /v1/jobs/{id}/cancel", routes!(jobs::cancel::cancel))
        .row("GET /v1/api-keys", routes!(api_keys::list::list))
        .row("POST /v1/api-keys", routes!(api_keys::create::create))
        .row("DELETE /v1/api-keys/{id}", routes!(api_keys::revoke::revoke))
        .row("GET /openapi.json", routes!(ops::openapi::openapi))
        .merge(ops_table())
}

/// What every role shows.
fn ops_table<S>() -> OpenApiRouter<S>
where
    S: Clone + Send + Sync + 'static,
    Ops: FromRef<S>,
{
    OpenApiRouter::new()
        .row("GET /healthz", routes!(ops::healthz::healthz))
        .row("GET /readyz", routes!(ops::readyz::readyz))
        .row("GET /metrics", routes!(ops::metrics::metrics))
}

/// The API: every route.
pub fn api_router(api: Api) -> Router {
    let request_timeout = api.request_timeout;
    let (router, _) = table().split_for_parts();
    layered(router, request_timeout).with_state(App::new(api))
}

/// `/healthz`, `/readyz` and `/metrics` alone, for a role without the API.
pub fn ops_router(db: Database, metrics: PrometheusHandle) -> Router {
    let (router, _) = ops_table().split_for_parts();
    layered(router, Duration::from_secs(10)).with_state(Ops { db, metrics })
}

/// Puts the layers around the routes: the last one sees a request first.
pub(crate) fn layered<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    request_timeout: Duration,
) -> Router<S> {
    observe::describe_metrics();
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            in_time(request_timeout, request, next)
        }))
        .layer(CatchPanicLayer::custom(|_panic| Problem::panicked().into_response()))
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, COOKIE, X_API_KEY]))
        .layer(middleware::from_fn(observe::observe))
}

async fn no_route() -> Problem {
    Problem::new(Code::NotFound, "no such route; `/openapi.json` lists them")
}

async fn no_method(method: Method) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("no {method} here; the header `Allow` lists what there is"))
}

/// Bounds a request from its head to the head of its answer. An event stream's answer begins at once, so its body,
/// which has a bound of its own, is not cut short.
async fn in_time(limit: Duration, request: Request, next: Next) -> Response {
    tokio::time::timeout(limit, next.run(request)).await.unwrap_or_else(|_elapsed| {
        let detail = format!("no answer within {} ms; it may yet have been done", limit.as_millis());
        Problem::new(Code::Unavailable, detail).into_response()
    })
}

#[cfg(test)]
mod tests;
