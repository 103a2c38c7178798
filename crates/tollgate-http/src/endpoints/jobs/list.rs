//! `GET /v1/jobs`

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tollgate_domain::jobs;
use tollgate_model::job::{Job, JobStatus};
use utoipa::IntoParams;

use crate::api::App;
use crate::extract::{Caller, JobsRead, Query};
use crate::page::{self, Limit, Page};
use crate::problem::{ForCaller, ForQuery, Problem, Unfinished};

const LIST: &str = "jobs";

type JobPage = Page<Job>;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct JobsQuery {
    /// Only jobs that stand there.
    #[param(inline)]
    status: Option<JobStatus>,
    /// Jobs a page may hold.
    #[param(value_type = Option<u8>, minimum = 1, maximum = 100, default = 20)]
    limit: Limit,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists jobs, newest first
#[utoipa::path(
    get,
    path = "/v1/jobs",
    operation_id = "listJobs",
    tag = "jobs",
    security(("api_key" = ["jobs:read"])),
    params(JobsQuery),
    responses(
        (status = 200, description = "A page of jobs.", body = JobPage),
        ForCaller, ForQuery, Unfinished,
    )
)]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    Query(query): Query<JobsQuery>,
) -> Result<Json<JobPage>, Problem> {
    let before = page::after(LIST, query.cursor.as_deref())?;
    let jobs = jobs::list(&app.db, caller.account, query.status, before, query.limit.and_one()).await?;
    let jobs = jobs.into_iter().map(|job| app.shown(job)).collect();
    Ok(Json(Page::new(LIST, jobs, query.limit, |job| job.id)))
}
