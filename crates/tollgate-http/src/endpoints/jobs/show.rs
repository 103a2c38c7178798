//! `GET /v1/jobs/{id}`

use axum::Json;
use axum::extract::State;
use tollgate_domain::jobs;
use tollgate_model::job::Job;

use crate::api::App;
use crate::extract::{Caller, Id, JobsRead};
use crate::problem::{ForCaller, ForId, Problem, Unfinished};

/// Shows a job
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    operation_id = "showJob",
    tag = "jobs",
    security(("api_key" = ["jobs:read"])),
    params(("id" = Uuid, Path, description = "The job.")),
    responses((status = 200, description = "The job.", body = Job), ForCaller, ForId, Unfinished)
)]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    id: Id<Job>,
) -> Result<Json<Job>, Problem> {
    let job = jobs::get(&app.db, caller.account, id.0).await?;
    Ok(Json(app.shown(job)))
}
