//! `POST /v1/jobs/generations`

use axum::extract::State;
use secrecy::ExposeSecret as _;
use serde::Serialize;
use tollgate_domain::Error;
use tollgate_model::submission::Submission;
use utoipa::{IntoResponses, ToSchema};
use uuid::Uuid;

use crate::answer::Answered;
use crate::api::App;
use crate::clock;
use crate::extract::{AskedWith, JobsWrite, Recognised};
use crate::problem::{Code, ForBody, ForCaller, ForOnce, Problem, Responses, Unfinished, document};

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
        document(&[
            (Code::InsufficientCredits, "the balance does not pay for the estimate; nothing was stored"),
            (Code::QueueFull, "as much waits as may, of the account or of all; nothing was stored"),
        ])
    }
}

/// Submits a generation job
///
/// Once this is answered the job is stored, and will be run. Poll it, or follow its events. What it is estimated to cost is
/// held until it has ended, and then its real cost is charged.
///
/// With an `Idempotency-Key`, asking again within 24 hours makes no second job: the answer is that of the first time.
#[utoipa::path(
    post,
    path = "/v1/jobs/generations",
    operation_id = "submitGeneration",
    tag = "jobs",
    security(("api_key" = ["jobs:write"])),
    params(("Idempotency-Key" = Option<String>, Header, description = "What you call this request: at most 255 characters.")),
    request_body = Submission,
    responses(
        (status = 202, description = "Accepted.", body = SubmittedJob,
            headers(
                ("Location" = String, description = "The job's own path."),
                ("Idempotency-Replayed" = String, description = "`true`: this was answered before, and nothing was done now."),
            )),
        ForCaller, ForBody, ForOnce, Full, Unfinished,
    )
)]
pub(crate) async fn submit(
    State(app): State<App>,
    Recognised(caller): Recognised<JobsWrite>,
    AskedWith { body, once }: AskedWith<Submission>,
) -> Result<Answered, Problem> {
    let holder = (caller.account, caller.key);
    let answer = app.entrance.submit(&app.db, holder, body, once, clock::now()).await;
    if matches!(answer, Err(Error::KeyGone)) {
        app.auth.forget(caller.presented.expose_secret());
    }
    Ok(Answered(answer?))
}
