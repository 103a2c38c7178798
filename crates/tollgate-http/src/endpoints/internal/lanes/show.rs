//! `GET /internal/lanes/{account_id}/{queue}`

use axum::Json;
use serde::Serialize;
use tollgate_domain::{LaneSettings, queue};
use tollgate_model::account::AccountId;
use tollgate_model::queue::QueueName;
use utoipa::ToSchema;

use crate::extract::{Named, Operator};
use crate::problem::{ForId, ForOperator, Problem, Unfinished};

/// What is set for one account's share of one queue.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Lane {
    /// Its share beside other accounts': one of weight 2 runs twice as many tasks as one of weight 1.
    weight: u16,
    /// How many of its tasks may run at a time, over all workers; null: no limit.
    #[schema(required)]
    max_running: Option<i32>,
}

impl From<LaneSettings> for Lane {
    fn from(LaneSettings { weight, max_running }: LaneSettings) -> Self {
        Self { weight, max_running }
    }
}

/// Shows what is set for one account's share of a queue
#[utoipa::path(
    get,
    path = "/internal/lanes/{account_id}/{queue}",
    operation_id = "showLane",
    tag = "operators",
    security(("admin_token" = [])),
    params(
        ("account_id" = Uuid, Path, description = "The account."),
        ("queue" = String, Path, description = "The queue."),
    ),
    responses((status = 200, description = "What is set.", body = Lane), ForOperator, ForId, Unfinished)
)]
pub(crate) async fn show(
    operator: Operator,
    Named((account, queue)): Named<(AccountId, QueueName)>,
) -> Result<Json<Lane>, Problem> {
    Ok(Json(queue::lane_settings(&operator.db, queue, account).await?.into()))
}
