//! The body of a redrive and of a purge: which dead letters.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use tollgate_domain::Result;
use tollgate_domain::dead_letters::Selection;
use tollgate_model::account::AccountId;
use tollgate_model::dead_letter::DeadLetterFilter;
use tollgate_model::queue::QueueName;
use utoipa::ToSchema;
use uuid::Uuid;

/// Which dead letters: some by their ids, or those that the other fields let through, or all.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(examples(json!({"queue": "generation.create", "code": "SERVER_ERROR", "dry_run": true})))]
pub(crate) struct SelectedLetters {
    /// These; goes with none of the others.
    ids: Option<Vec<Uuid>>,
    /// Those of this queue.
    #[schema(inline)]
    queue: Option<QueueName>,
    /// Those with this code as their reason.
    code: Option<String>,
    /// Those of this account.
    #[schema(value_type = Option<Uuid>)]
    account_id: Option<AccountId>,
    /// Those that died then or later.
    since: Option<DateTime<Utc>>,
    /// Those that died before.
    until: Option<DateTime<Utc>>,
    /// Must be true where nothing else is said: every dead letter there is.
    all: bool,
    /// Only count what would be found.
    pub(super) dry_run: bool,
}

impl SelectedLetters {
    pub(super) fn selection(self) -> Result<Selection> {
        let Self { ids, queue, code, account_id: account, since, until, all, dry_run: _ } = self;
        Selection::new(ids, DeadLetterFilter { queue, code, account, since, until }, all)
    }
}
