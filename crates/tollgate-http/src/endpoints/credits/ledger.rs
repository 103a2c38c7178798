//! `GET /v1/credits/ledger`

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tollgate_domain::credits;
use tollgate_model::credits::LedgerEntry;
use utoipa::IntoParams;

use crate::api::App;
use crate::extract::{BillingRead, Caller, Query};
use crate::page::{self, Limit, Page};
use crate::problem::{ForCaller, ForQuery, Problem, Unfinished};

const LIST: &str = "ledger";

type LedgerEntryPage = Page<LedgerEntry>;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LedgerQuery {
    /// Entries a page may hold.
    #[param(value_type = Option<u8>, minimum = 1, maximum = 100, default = 20)]
    limit: Limit,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists the ledger's entries, newest first
///
/// Entries are only ever added. The sum of all `delta` is the balance.
#[utoipa::path(
    get,
    path = "/v1/credits/ledger",
    operation_id = "listLedger",
    tag = "credits",
    security(("api_key" = ["billing:read"])),
    params(LedgerQuery),
    responses(
        (status = 200, description = "A page of entries.", body = LedgerEntryPage),
        ForCaller, ForQuery, Unfinished,
    )
)]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller<BillingRead>,
    Query(query): Query<LedgerQuery>,
) -> Result<Json<LedgerEntryPage>, Problem> {
    let before = page::after(LIST, query.cursor.as_deref())?;
    let entries = credits::ledger(&app.db, caller.account, before, query.limit.and_one()).await?;
    Ok(Json(Page::new(LIST, entries, query.limit, |entry| entry.id)))
}
