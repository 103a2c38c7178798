//! `POST /internal/dlq/purge`

use axum::Json;
use axum::extract::State;
use tokio::time::Instant;
use tollgate_domain::dead_letters;
use tollgate_model::audit::Actor;
use tollgate_model::dead_letter::Purged;

use super::selected::SelectedLetters;
use crate::api::App;
use crate::extract::{JsonBody, Operator};
use crate::problem::{ForBody, ForId, ForOperator, Problem, Unfinished};

/// Deletes dead letters for good
///
/// Their jobs stay failed, and can be redriven no more. A long list may take longer than a request: then `more` is true,
/// and the same request goes on.
#[utoipa::path(
    post,
    path = "/internal/dlq/purge",
    operation_id = "purgeDeadLetters",
    tag = "operators",
    security(("admin_token" = [])),
    request_body = SelectedLetters,
    responses(
        (status = 200, description = "What was done; a dry run does nothing.", body = Purged),
        ForOperator, ForId, ForBody, Unfinished,
    )
)]
pub(crate) async fn purge(
    State(app): State<App>,
    operator: Operator,
    JsonBody(selected): JsonBody<SelectedLetters>,
) -> Result<Json<Purged>, Problem> {
    let dry_run = selected.dry_run;
    let selection = selected.selection()?;
    if dry_run {
        let matched = dead_letters::count(&operator.db, &selection).await?;
        return Ok(Json(Purged { matched, ..Purged::default() }));
    }
    // What a batch has done must be told, so none is begun that might not end in time.
    let until = Instant::now() + app.request_timeout / 2;
    let sum =
        dead_letters::purge(&operator.db, Actor::AdminToken, &selection, |_| Instant::now() < until).await?;
    tracing::info!(purged = sum.purged, "an operator purged dead letters");
    Ok(Json(sum))
}
