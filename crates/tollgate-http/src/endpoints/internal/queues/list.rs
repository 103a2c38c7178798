//! `GET /internal/queues`

use axum::Json;
use tollgate_domain::queue;
use tollgate_model::queue::QueueState;

use crate::extract::Operator;
use crate::page::{Limit, Page};
use crate::problem::{ForOperator, Problem, Unfinished};

type QueueStatePage = Page<QueueState>;

/// Lists every queue, with its counts over all accounts and its cap
#[utoipa::path(
    get,
    path = "/internal/queues",
    operation_id = "listQueues",
    tag = "operators",
    security(("admin_token" = [])),
    responses((status = 200, description = "The queues, on one page.", body = QueueStatePage), ForOperator, Unfinished)
)]
pub(crate) async fn list(operator: Operator) -> Result<Json<QueueStatePage>, Problem> {
    let queues = queue::states(&operator.db).await?;
    Ok(Json(Page::new("queues", queues, Limit::default(), |queue| queue.queue)))
}
