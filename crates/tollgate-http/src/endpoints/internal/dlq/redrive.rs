//! `POST /internal/dlq/redrive`

use axum::Json;
use axum::extract::State;
use tokio::time::Instant;
use tollgate_domain::dead_letters;
use tollgate_model::audit::Actor;
use tollgate_model::dead_letter::Redriven;

use super::selected::SelectedLetters;
use crate::api::App;
use crate::extract::{JsonBody, Operator};
use crate::problem::{ForBody, ForId, ForOperator, Problem, Unfinished};

/// Puts dead letters back into their queues
///
/// Each becomes a task again, with all its attempts and a fresh time to live, and its job is queued anew. A letter whose
/// job is gone, or is not failed any more, is skipped. A long list may take longer than a request: then `more` is true,
/// and the same request goes on.
#[utoipa::path(
    post,
    path = "/internal/dlq/redrive",
    operation_id = "redriveDeadLetters",
    tag = "operators",
    security(("admin_token" = [])),
    request_body = SelectedLetters,
    responses(
        (status = 200, description = "What was done; a dry run does nothing.", body = Redriven),
        ForOperator, ForId, ForBody, Unfinished,
    )
)]
pub(crate) async fn redrive(
    State(app): State<App>,
    operator: Operator,
    JsonBody(selected): JsonBody<SelectedLetters>,
) -> Result<Json<Redriven>, Problem> {
    let dry_run = selected.dry_run;
    let selection = selected.selection()?;
    if dry_run {
        let matched = dead_letters::count(&operator.db, &selection).await?;
        return Ok(Json(Redriven { matched, ..Redriven::default() }));
    }
    // What a batch has done must be told, so none is begun that might not end in time.
    let until = Instant::now() + app.request_timeout / 2;
    let go_on = |_: &Redriven| Instant::now() < until;
    let sum =
        dead_letters::redrive(&operator.db, &operator.ttls, Actor::AdminToken, &selection, go_on).await?;
    tracing::info!(redriven = sum.redriven, skipped = sum.skipped, "an operator redrove dead letters");
    Ok(Json(sum))
}
