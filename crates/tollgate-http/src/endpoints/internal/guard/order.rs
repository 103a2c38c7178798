//! `PUT /internal/guard/{class}`

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use tollgate_domain::guard::{self, Order};
use tollgate_model::audit::Actor;
use tollgate_model::guard::class::ClassName;
use utoipa::ToSchema;

use crate::api::App;
use crate::extract::{JsonBody, Named, Operator};
use crate::problem::{Code, ForBody, ForId, ForOperator, Problem, Unfinished};

/// What is to be done with a class's guard.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({"order": "pause", "for_ms": 60000})))]
pub(crate) struct GuardOrder {
    /// `open`: no calls, and after it probes decide. `close`: calls, whatever was; a pause ends too. `pause`: no calls and no
    /// probes.
    order: GuardVerb,
    /// For so many milliseconds. `open` without it: until further notice; `pause` needs it; `close` takes none.
    #[serde(default)]
    for_ms: Option<u64>,
}

/// What can be done with a guard.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GuardVerb {
    /// No calls.
    Open,
    /// Calls.
    Close,
    /// No calls and no probes.
    Pause,
}

/// Opens or closes a class's circuit, or pauses its calls
///
/// It holds for every worker at once.
#[utoipa::path(
    put,
    path = "/internal/guard/{class}",
    operation_id = "orderGuard",
    tag = "operators",
    security(("admin_token" = [])),
    params(("class" = String, Path, description = "The class of models: `text` or `image`.")),
    request_body = GuardOrder,
    responses(
        (status = 200, description = "Done.", body = GuardOrder),
        ForOperator, ForId, ForBody, Unfinished,
    )
)]
pub(crate) async fn order(
    State(app): State<App>,
    operator: Operator,
    Named(class): Named<ClassName>,
    JsonBody(asked): JsonBody<GuardOrder>,
) -> Result<Json<GuardOrder>, Problem> {
    let Some(class) = app.guard.get(class.as_str()) else {
        return Err(Problem::new(Code::NotFound, "no such class; `GET /internal/gen-health` lists them"));
    };
    let span = asked.for_ms.map(Duration::from_millis);
    let order = match (asked.order, span) {
        (GuardVerb::Open, span) => Order::Open(span),
        (GuardVerb::Close, None) => Order::Close,
        (GuardVerb::Pause, Some(span)) => Order::Pause(span),
        (GuardVerb::Close, Some(_)) => return Err(invalid("`for_ms` means nothing to `close`")),
        (GuardVerb::Pause, None) => return Err(invalid("`for_ms` is required for `pause`")),
    };
    guard::order(&operator.db, class, Actor::AdminToken, order).await?;
    Ok(Json(asked))
}

fn invalid(detail: &'static str) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}
