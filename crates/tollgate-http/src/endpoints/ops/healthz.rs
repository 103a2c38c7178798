//! `GET /healthz`

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

/// All is well, as far as the question went.
#[derive(Debug, Serialize, ToSchema)]
#[schema(examples(json!({"status": "ok"})))]
pub(crate) struct Status {
    /// Always `ok`.
    status: &'static str,
}

impl Status {
    pub(super) const OK: Self = Self { status: "ok" };
}

/// Says that the process lives
///
/// It asks nobody, the database least of all: a supervisor restarts what fails this, and a restart mends no database.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "healthz",
    tag = "operation",
    responses((status = 200, description = "The process lives.", body = Status))
)]
pub(crate) async fn healthz() -> Json<Status> {
    Json(Status::OK)
}
