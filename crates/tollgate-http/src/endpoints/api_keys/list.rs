//! `GET /v1/api-keys`

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tollgate_domain::keys;
use tollgate_model::key::KeyInfo;
use utoipa::IntoParams;

use crate::api::App;
use crate::extract::{Caller, KeysWrite, Query};
use crate::page::{self, Limit, Page};
use crate::problem::{ForCaller, ForQuery, Problem, Unfinished};

const LIST: &str = "api-keys";

type KeyInfoPage = Page<KeyInfo>;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct KeysQuery {
    /// Keys a page may hold.
    #[param(value_type = Option<u8>, minimum = 1, maximum = 100, default = 20)]
    limit: Limit,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists keys, newest first, revoked ones included
#[utoipa::path(
    get,
    path = "/v1/api-keys",
    operation_id = "listKeys",
    tag = "api-keys",
    security(("api_key" = ["keys:write"])),
    params(KeysQuery),
    responses(
        (status = 200, description = "A page of keys.", body = KeyInfoPage),
        ForCaller, ForQuery, Unfinished,
    )
)]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller<KeysWrite>,
    Query(query): Query<KeysQuery>,
) -> Result<Json<KeyInfoPage>, Problem> {
    let before = page::after(LIST, query.cursor.as_deref())?;
    let keys = keys::list(&app.db, caller.account, before, query.limit.and_one()).await?;
    Ok(Json(Page::new(LIST, keys, query.limit, |key| key.id)))
}
