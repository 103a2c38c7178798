//! `GET /internal/dlq`

use axum::Json;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use tollgate_domain::dead_letters;
use tollgate_model::account::AccountId;
use tollgate_model::dead_letter::{DeadLetter, DeadLetterFilter};
use tollgate_model::queue::QueueName;
use utoipa::IntoParams;

use crate::extract::{Operator, Query};
use crate::page::{self, Limit, Page};
use crate::problem::{ForOperator, ForQuery, Problem, Unfinished};

const LIST: &str = "dlq";

type DeadLetterPage = Page<DeadLetter>;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeadLettersQuery {
    /// Only those of this queue.
    #[param(inline)]
    queue: Option<QueueName>,
    /// Only those with this code as their reason.
    code: Option<String>,
    /// Only those of this account.
    #[param(value_type = Option<Uuid>)]
    account: Option<AccountId>,
    /// Only those that died before.
    before: Option<DateTime<Utc>>,
    /// Only those that died then or later.
    since: Option<DateTime<Utc>>,
    /// Dead letters a page may hold.
    #[param(value_type = Option<u8>, minimum = 1, maximum = 100, default = 20)]
    limit: Limit,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists dead letters, newest first
#[utoipa::path(
    get,
    path = "/internal/dlq",
    operation_id = "listDeadLetters",
    tag = "operators",
    security(("admin_token" = [])),
    params(DeadLettersQuery),
    responses(
        (status = 200, description = "A page of dead letters.", body = DeadLetterPage),
        ForOperator, ForQuery, Unfinished,
    )
)]
pub(crate) async fn list(
    operator: Operator,
    Query(query): Query<DeadLettersQuery>,
) -> Result<Json<DeadLetterPage>, Problem> {
    let before = page::after(LIST, query.cursor.as_deref())?;
    let DeadLettersQuery { queue, code, account, since, before: until, limit, .. } = query;
    let filter = DeadLetterFilter { queue, code, account, since, until };
    let letters = dead_letters::list(&operator.db, &filter, before, limit.and_one()).await?;
    Ok(Json(Page::new(LIST, letters, limit, DeadLetter::place)))
}
