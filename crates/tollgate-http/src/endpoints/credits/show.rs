//! `GET /v1/credits`

use axum::Json;
use axum::extract::State;
use tollgate_domain::credits;
use tollgate_model::credits::Balance;

use crate::api::App;
use crate::extract::{BillingRead, Caller};
use crate::problem::{ForCaller, Problem, Unfinished};

/// Shows the account's credits
#[utoipa::path(
    get,
    path = "/v1/credits",
    operation_id = "showCredits",
    tag = "credits",
    security(("api_key" = ["billing:read"])),
    responses((status = 200, description = "What the account has.", body = Balance), ForCaller, Unfinished)
)]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller<BillingRead>,
) -> Result<Json<Balance>, Problem> {
    Ok(Json(credits::balance(&app.db, caller.account).await?))
}
