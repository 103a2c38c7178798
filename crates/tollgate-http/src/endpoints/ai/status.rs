//! `GET /api/ai/status`

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use tollgate_domain::status;
use tollgate_model::queue::QueueCounts;
use utoipa::ToSchema;

use crate::api::App;
use crate::extract::{Caller, JobsRead, no_key};
use crate::problem::{ForCaller, Problem, Unfinished};

/// How much there is to do.
#[derive(Debug, Serialize, ToSchema)]
#[schema(examples(json!({"queue": {"queued": 3, "running": 5, "failed": 1, "done": 120}})))]
pub(crate) struct AiStatus {
    /// Generation jobs.
    queue: QueueStatus,
}

/// How many generation jobs there are.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QueueStatus {
    /// Waiting: for a worker, for their time, or for their next attempt.
    queued: i64,
    /// Being run.
    running: i64,
    /// Failed, of all time.
    failed: i64,
    /// Succeeded, of all time.
    done: i64,
}

impl From<QueueCounts> for AiStatus {
    fn from(counts: QueueCounts) -> Self {
        let QueueCounts { queued, running, done, failed } = counts;
        Self { queue: QueueStatus { queued, running, failed, done } }
    }
}

/// Shows how much there is to do
///
/// With a key, of the key's account. Without one, over all accounts, where the operator lets everybody see that
/// (`PUBLIC_STATUS`); those totals may be a second old.
#[utoipa::path(
    get,
    path = "/api/ai/status",
    operation_id = "aiStatus",
    tag = "quota",
    security((), ("api_key" = ["jobs:read"])),
    responses((status = 200, description = "The counts.", body = AiStatus), ForCaller, Unfinished)
)]
pub(crate) async fn status(
    State(app): State<App>,
    caller: Option<Caller<JobsRead>>,
) -> Result<Json<AiStatus>, Problem> {
    let counts = match caller {
        Some(caller) => status::of_account(&app.db, caller.account).await?,
        None if app.public_status => app.totals().get(&app.db).await?,
        None => return Err(no_key()),
    };
    Ok(Json(counts.into()))
}
