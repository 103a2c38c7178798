//! `POST /v1/jobs/{id}/cancel`

use axum::Json;
use axum::extract::State;
use tollgate_domain::jobs;
use tollgate_model::job::Job;
use utoipa::IntoResponses;

use crate::api::App;
use crate::extract::{Caller, Id, JobsWrite};
use crate::problem::{Code, ForCaller, ForId, Problem, Responses, Unfinished, document};

pub(crate) struct TooLate;

impl IntoResponses for TooLate {
    fn responses() -> Responses {
        document(&[(Code::JobFinished, "the job has already succeeded or failed, and stays so")])
    }
}

/// Calls a job off
///
/// A queued job never starts; a running one is aborted, and what its provider still answers is dropped. Cancelling a
/// cancelled job changes nothing and is no error.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/cancel",
    operation_id = "cancelJob",
    tag = "jobs",
    security(("api_key" = ["jobs:write"])),
    params(("id" = Uuid, Path, description = "The job.")),
    responses(
        (status = 200, description = "The job, now cancelled.", body = Job),
        ForCaller, ForId, TooLate, Unfinished,
    )
)]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    id: Id<Job>,
) -> Result<Json<Job>, Problem> {
    let job = jobs::cancel(&app.db, caller.account, id.0).await?;
    Ok(Json(app.shown(job)))
}
