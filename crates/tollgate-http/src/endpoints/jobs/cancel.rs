//! `POST /v1/jobs/{id}/cancel`

use axum::extract::State;
use tollgate_domain::{Answer, jobs};
use tollgate_model::job::Job;
use utoipa::IntoResponses;

use crate::answer::Answered;
use crate::api::App;
use crate::extract::{Asked, Caller, Id, JobsWrite};
use crate::problem::{Code, ForCaller, ForId, ForOnce, Problem, Responses, Unfinished, document};

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
    params(
        ("id" = Uuid, Path, description = "The job."),
        ("Idempotency-Key" = Option<String>, Header, description = "What you call this request: at most 255 characters."),
    ),
    responses(
        (status = 200, description = "The job, now cancelled.", body = Job),
        ForCaller, ForId, ForOnce, TooLate, Unfinished,
    )
)]
pub(crate) async fn cancel(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    id: Id<Job>,
    Asked(once): Asked,
) -> Result<Answered, Problem> {
    let shown = |job: &Job| Ok(Answer::new(200, &app.shown(job.clone()))?);
    let answer = jobs::cancel(&app.db, caller.account, id.0, once.as_ref(), shown).await?;
    Ok(Answered(answer))
}
