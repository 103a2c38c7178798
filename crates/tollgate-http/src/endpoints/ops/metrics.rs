//! `GET /metrics`

use axum::extract::State;
use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;

use crate::api::Ops;

/// Shows this process's metrics, for Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "operation",
    responses((status = 200, description = "Prometheus' text format.", body = String, content_type = "text/plain"))
)]
pub(crate) async fn metrics(State(ops): State<Ops>) -> impl IntoResponse {
    let (in_use, open) = ops.db.connections();
    // Read when asked for: a gauge kept current by a task would be no fresher.
    let in_use = u32::try_from(in_use).unwrap_or(u32::MAX);
    metrics::gauge!("tollgate_database_connections", "state" => "in_use").set(in_use);
    metrics::gauge!("tollgate_database_connections", "state" => "open").set(open);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], ops.metrics.render())
}
