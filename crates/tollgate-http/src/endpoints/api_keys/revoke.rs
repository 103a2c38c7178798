//! `DELETE /v1/api-keys/{id}`

use axum::Json;
use axum::extract::State;
use tollgate_domain::keys;
use tollgate_model::audit::Actor;
use tollgate_model::key::KeyInfo;

use crate::api::App;
use crate::extract::{Caller, Id, KeysWrite};
use crate::problem::{ForCaller, ForId, Problem, Unfinished};

/// Revokes a key
///
/// It stops working at once, in every process, and stays listed. Revoking a revoked key changes nothing and is no
/// error. A key may revoke itself.
#[utoipa::path(
    delete,
    path = "/v1/api-keys/{id}",
    operation_id = "revokeKey",
    tag = "api-keys",
    security(("api_key" = ["keys:write"])),
    params(("id" = Uuid, Path, description = "The key.")),
    responses((status = 200, description = "The key, now revoked.", body = KeyInfo), ForCaller, ForId, Unfinished)
)]
pub(crate) async fn revoke(
    State(app): State<App>,
    caller: Caller<KeysWrite>,
    id: Id<KeyInfo>,
) -> Result<Json<KeyInfo>, Problem> {
    Ok(Json(keys::revoke(&app.db, caller.account, Actor::Key(caller.key), id.0).await?))
}
