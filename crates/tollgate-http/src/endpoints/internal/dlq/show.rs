//! `GET /internal/dlq/{id}`

use axum::Json;
use tollgate_domain::dead_letters;
use tollgate_model::dead_letter::DeadLetter;

use crate::extract::{Id, Operator};
use crate::problem::{ForId, ForOperator, Problem, Unfinished};

/// Shows a dead letter
#[utoipa::path(
    get,
    path = "/internal/dlq/{id}",
    operation_id = "showDeadLetter",
    tag = "operators",
    security(("admin_token" = [])),
    params(("id" = Uuid, Path, description = "The task, and what it stood for.")),
    responses((status = 200, description = "The dead letter.", body = DeadLetter), ForOperator, ForId, Unfinished)
)]
pub(crate) async fn show(operator: Operator, id: Id<DeadLetter>) -> Result<Json<DeadLetter>, Problem> {
    Ok(Json(dead_letters::get(&operator.db, id.0).await?))
}
