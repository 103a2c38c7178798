//! `tollgate audit`

use clap::Subcommand;
use serde_json::json;
use tollgate_domain::{accounts, audit};
use tollgate_model::account::AccountId;
use tollgate_model::audit::AuditEntry;
use uuid::Uuid;

use crate::commands::operator;
use crate::config::Config;
use crate::output::{Failure, print};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List what was done, newest first: to an account and by its keys, or by operators to the installation as a whole.
    List {
        /// The account. Without it: what belongs to none, such as the guard's orders.
        #[arg(long, value_name = "ID")]
        account: Option<AccountId>,
        /// How many entries.
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// Only entries older than this one.
        #[arg(long, value_name = "ID")]
        before: Option<Uuid>,
    },
}

pub(crate) async fn run(command: Command, config: &Config, json: bool) -> Result<(), Failure> {
    let Command::List { account, limit, before } = command;
    let db = operator(config).await?;
    let entries = audit::list(&db, account, before, limit.into()).await?;
    if let Some(account) = account.filter(|_| entries.is_empty())
        && !accounts::list(&db).await?.iter().any(|known| known.account_id == account)
    {
        return Err(tollgate_domain::Error::NotFound("account").into());
    }
    print(json, &json!({ "data": entries }), || {
        if entries.is_empty() {
            return "no entries".into();
        }
        entries.iter().map(row).collect::<Vec<_>>().join("\n")
    })
}

fn row(entry: &AuditEntry) -> String {
    let AuditEntry { id, at, actor, action, object, detail } = entry;
    format!("{id}  {}  {actor}  {action}  {object}  {detail}", at.to_rfc3339())
}
