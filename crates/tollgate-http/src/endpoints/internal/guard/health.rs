//! `GET /internal/gen-health`

use axum::Json;
use axum::extract::State;
use tollgate_domain::guard;
use tollgate_model::guard::status::GuardStatus;

use crate::api::App;
use crate::extract::Operator;
use crate::page::{Limit, Page};
use crate::problem::{ForOperator, Problem, Unfinished};

type GuardPage = Page<GuardStatus>;

/// Shows what stands between the workers and the provider
///
/// For each class of models: circuit, window, budget, pause, timeouts, and calls in flight over all workers.
#[utoipa::path(
    get,
    path = "/internal/gen-health",
    operation_id = "genHealth",
    tag = "operators",
    security(("admin_token" = [])),
    responses((status = 200, description = "The classes, on one page.", body = GuardPage), ForOperator, Unfinished)
)]
pub(crate) async fn health(State(app): State<App>, operator: Operator) -> Result<Json<GuardPage>, Problem> {
    let enabled = *app.breaker_enabled.borrow();
    let guards = guard::status(&operator.db, &app.guard, enabled).await?;
    Ok(Json(Page::new("guards", guards, Limit::default(), |guard| guard.class.clone())))
}
