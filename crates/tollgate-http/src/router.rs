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
use tower_http::cors::CorsLayer;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::{Api, App, Ops};
use crate::available::available;
use crate::endpoints::internal::{dlq, guard, lanes, queues};
use crate::endpoints::{ai, api_keys, assets, audit_log, credits, images, jobs, ops};
use crate::extract::X_API_KEY;
use crate::observe;
use crate::openapi;
use crate::problem::{Code, Problem};
use crate::table::Table as _;
use crate::transport::{Transport, transport};

/// Every URL of the API.
pub(crate) fn table() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::frame()).merge(tenants_table()).merge(open_table())
}

/// What asks the database. A scope stands in its endpoint's file, as the type of its caller.
fn tenants_table() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .row("POST /v1/jobs/generations", routes!(jobs::submit::submit))
        .row("GET /v1/jobs", routes!(jobs::list::list))
        .row("GET /v1/jobs/{id}", routes!(jobs::show::show))
        .row("GET /v1/jobs/{id}/events", routes!(jobs::events::events))
        .row("POST /v1/jobs/{id}/cancel", routes!(jobs::cancel::cancel))
        .row("GET /v1/images", routes!(images::list::list))
        .row("GET /v1/images/{id}/content", routes!(images::content::content))
        .row("GET /v1/credits", routes!(credits::show::show))
        .row("GET /v1/credits/ledger", routes!(credits::ledger::list))
        .row("GET /v1/api-keys", routes!(api_keys::list::list))
        .row("POST /v1/api-keys", routes!(api_keys::create::create))
        .row("DELETE /v1/api-keys/{id}", routes!(api_keys::revoke::revoke))
        .row("POST /v1/api-keys/{id}/rotate", routes!(api_keys::rotate::rotate))
        .row("GET /v1/audit-log", routes!(audit_log::list::list))
        .row("GET /api/ai/status", routes!(ai::status::status))
        .merge(operators_table())
}

/// What only operators may do.
fn operators_table() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .row("GET /internal/dlq", routes!(dlq::list::list))
        .row("GET /internal/dlq/{id}", routes!(dlq::show::show))
        .row("POST /internal/dlq/redrive", routes!(dlq::redrive::redrive))
        .row("POST /internal/dlq/purge", routes!(dlq::purge::purge))
        .row("GET /internal/queues", routes!(queues::list::list))
        .row("PUT /internal/queues/{queue}", routes!(queues::set::set))
        .row("GET /internal/gen-health", routes!(guard::health::health))
        .row("PUT /internal/guard/{class}", routes!(guard::order::order))
        .row("GET /internal/lanes/{account_id}/{queue}", routes!(lanes::show::show))
        .row("PUT /internal/lanes/{account_id}/{queue}", routes!(lanes::set::set))
}

/// What answers whether there is a database or not.
fn open_table() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .row("GET /api/health", routes!(ai::health::health))
        .row("GET /openapi.json", routes!(ops::openapi::openapi))
        .row("GET /assets/tollgate-frames.js", routes!(assets::frames::frames))
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
    let edge = Edge {
        request_timeout: api.request_timeout,
        transport: api.transport.clone(),
        cors: api.origins.layer(),
    };
    let while_away = middleware::from_fn_with_state(api.db.clone(), available);
    let (tenants, _) = tenants_table().split_for_parts();
    let (open, _) = open_table().split_for_parts();
    layered(tenants.route_layer(while_away).merge(open), edge).with_state(App::new(api))
}

/// `/healthz`, `/readyz` and `/metrics` alone, for a role without the API.
pub fn ops_router(db: Database, metrics: PrometheusHandle) -> Router {
    let (router, _) = ops_table().split_for_parts();
    let edge = Edge { request_timeout: Duration::from_secs(10), ..Edge::default() };
    layered(router, edge).with_state(Ops { db, metrics })
}

/// What the layers are told.
#[derive(Default)]
pub(crate) struct Edge {
    pub(crate) request_timeout: Duration,
    pub(crate) transport: Transport,
    pub(crate) cors: Option<CorsLayer>,
}

/// Puts the layers around the routes: the last one sees a request first.
pub(crate) fn layered<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    Edge { request_timeout, transport: rules, cors }: Edge,
) -> Router<S> {
    observe::describe_metrics();
    let router = router.fallback(no_route).method_not_allowed_fallback(no_method).layer(middleware::from_fn(
        move |request: Request, next: Next| in_time(request_timeout, request, next),
    ));
    let router = match cors {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(CatchPanicLayer::custom(|_panic| Problem::panicked().into_response()))
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, COOKIE, X_API_KEY]))
        .layer(middleware::from_fn_with_state(rules, transport))
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
