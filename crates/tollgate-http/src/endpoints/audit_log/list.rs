//! `GET /v1/audit-log`

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tollgate_domain::audit;
use tollgate_model::audit::AuditEntry;
use utoipa::IntoParams;

use crate::api::App;
use crate::extract::{Caller, KeysWrite, Query};
use crate::page::{self, Limit, Page};
use crate::problem::{ForCaller, ForQuery, Problem, Unfinished};

const LIST: &str = "audit-log";

type AuditEntryPage = Page<AuditEntry>;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditQuery {
    /// Entries a page may hold.
    #[param(value_type = Option<u8>, minimum = 1, maximum = 100, default = 20)]
    limit: Limit,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists what was done to the account and by its keys, newest first
///
/// Accounts, keys, credits and limits: who changed what, and when. Entries are only ever added.
#[utoipa::path(
    get,
    path = "/v1/audit-log",
    operation_id = "listAuditLog",
    tag = "audit-log",
    security(("api_key" = ["keys:write"])),
    params(AuditQuery),
    responses(
        (status = 200, description = "A page of entries.", body = AuditEntryPage),
        ForCaller, ForQuery, Unfinished,
    )
)]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller<KeysWrite>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<AuditEntryPage>, Problem> {
    let before = page::after(LIST, query.cursor.as_deref())?;
    let entries = audit::list(&app.db, Some(caller.account), before, query.limit.and_one()).await?;
    Ok(Json(Page::new(LIST, entries, query.limit, |entry| entry.id)))
}
