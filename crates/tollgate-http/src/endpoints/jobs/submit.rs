//! `POST /v1/jobs/generations`

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::StatusCode;
use http::header::LOCATION;
use serde::Serialize;
use tollgate_domain::submit as domain;
use tollgate_model::submission::Submission;
use utoipa::{IntoResponses, ToSchema};
use uuid::Uuid;

use crate::api::App;
use crate::clock;
use crate::extract::{Caller, JobsWrite, JsonBody};
use crate::problem::{Code, ForBody, ForCaller, Problem, Responses, Unfinished, document};

/// A job that was accepted.
#[derive(Debug, Serialize, ToSchema)]
#[schema(examples(json!({"job_id": "0198c5a4-7a5e-7c31-9f0e-3c2b1a09f8e7"})))]
pub(crate) struct SubmittedJob {
    /// The job.
    job_id: Uuid,
}

pub(crate) struct Full;

impl IntoResponses for Full {
    fn responses() -> Responses {
        document(&[(
            Code::QueueFull,
            "as much waits as may, of the account or of all; or `rate_limited`: as many requests as the key may \
             make. Nothing was stored",
        )])
    }
}

/// Submits a generation job
///
/// Once this is answered the job is stored, and will be run. Poll it, or follow its events.
#[utoipa::path(
    post,
    path = "/v1/jobs/generations",
    operation_id = "submitGeneration",
    tag = "jobs",
    security(("api_key" = ["jobs:write"])),
    request_body = Submission,
    responses(
        (status = 202, description = "Accepted.", body = SubmittedJob,
            headers(("Location" = String, description = "The job's own path."))),
        ForCaller, ForBody, Full, Unfinished,
    )
)]
pub(crate) async fn submit(
    State(app): State<App>,
    caller: Caller<JobsWrite>,
    JsonBody(submission): JsonBody<Submission>,
) -> Result<impl IntoResponse, Problem> {
    let holder = (caller.account, caller.key);
    let job_id = domain::submit(&app.db, &app.entrance, holder, submission, clock::now()).await?;
    let location = [(LOCATION, format!("/v1/jobs/{job_id}"))];
    Ok((StatusCode::ACCEPTED, location, Json(SubmittedJob { job_id })))
}
