//! `GET /api/ai/status`

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tollgate_domain::status;
use tollgate_model::guard::status::GuardStatus;
use tollgate_model::queue::QueueCounts;
use utoipa::ToSchema;

use crate::api::App;
use crate::extract::{Caller, JobsRead, no_key};
use crate::problem::{ForCaller, Problem, Unfinished};

/// How much there is to do.
#[derive(Debug, Serialize, ToSchema)]
#[schema(examples(json!({
    "queue": {"queued": 3, "running": 5, "failed": 1, "done": 120},
    "breaker": {"state": "closed", "failures": 0, "openedAt": null},
})))]
pub(crate) struct AiStatus {
    /// Generation jobs.
    queue: QueueStatus,
    /// Whether the provider is called: of all classes of models the one that is worst off.
    breaker: BreakerStatus,
}

/// Whether the provider is called.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BreakerStatus {
    /// `closed`: it is; `open`: it is not; `half-open`: one call at a time tries whether it is back.
    #[schema(value_type = String)]
    state: &'static str,
    /// Failures among its last calls.
    failures: usize,
    /// Since when it is not closed.
    opened_at: Option<DateTime<Utc>>,
}

impl BreakerStatus {
    fn worst(guards: &[GuardStatus]) -> Self {
        // A credential that is refused keeps calls from being made, like an open circuit.
        let state = |guard: &GuardStatus| match guard.circuit.state {
            "disabled" => "open",
            state => state,
        };
        let badness = |guard: &&GuardStatus| match state(guard) {
            "open" => 2,
            "half-open" => 1,
            _ => 0,
        };
        let worst = guards.iter().max_by_key(|guard| (badness(guard), guard.circuit.failures));
        Self {
            state: worst.map_or("closed", state),
            failures: worst.map_or(0, |guard| guard.circuit.failures),
            opened_at: worst.and_then(|guard| guard.circuit.opened_at),
        }
    }
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

impl From<QueueCounts> for QueueStatus {
    fn from(counts: QueueCounts) -> Self {
        let QueueCounts { queued, running, done, failed } = counts;
        Self { queued, running, failed, done }
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
    let enabled = *app.breaker_enabled.borrow();
    let guards = app.guards().get(&app.db, &app.guard, enabled).await?;
    Ok(Json(AiStatus { queue: counts.into(), breaker: BreakerStatus::worst(&guards) }))
}
