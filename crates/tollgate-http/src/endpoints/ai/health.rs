//! `GET /api/health`

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::clock;

/// The process answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(examples(json!({"ok": true, "ts": 1_767_225_600_000_i64})))]
pub(crate) struct Health {
    /// Always true.
    ok: bool,
    /// The server's clock: milliseconds since 1970.
    ts: i64,
}

/// Says that the API answers, and what its clock says
///
/// It asks nobody, like `/healthz`; whether requests can be served is `/readyz`'s to say.
#[utoipa::path(
    get,
    path = "/api/health",
    operation_id = "health",
    tag = "quota",
    responses((status = 200, description = "The API answers.", body = Health))
)]
pub(crate) async fn health() -> Json<Health> {
    Json(Health { ok: true, ts: clock::now().timestamp_millis() })
}
