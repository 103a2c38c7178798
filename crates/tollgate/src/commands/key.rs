//! `tollgate key`

use clap::Subcommand;
use serde_json::json;
use tollgate_domain::{accounts, keys};
use tollgate_model::account::AccountId;
use tollgate_model::key::{KeyInfo, Scope};
use uuid::Uuid;

use crate::commands::operator;
use crate::config::Config;
use crate::output::{Failure, print};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a key. It is shown once and stored nowhere.
    Create {
        /// The account it belongs to.
        #[arg(long, value_name = "ID")]
        account: AccountId,
        /// What it may do: jobs:write, jobs:read, keys:write, webhooks:write, billing:read.
        #[arg(long, value_delimiter = ',', value_parser = scope, required = true)]
        scopes: Vec<Scope>,
        /// What to call it; for people.
        #[arg(long, default_value = "")]
        name: String,
    },
    /// List an account's keys, without their secrets.
    List {
        /// The account.
        #[arg(long, value_name = "ID")]
        account: AccountId,
    },
    /// Revoke a key. It stops working at once, everywhere.
    Revoke {
        /// The account it belongs to.
        #[arg(long, value_name = "ID")]
        account: AccountId,
        /// The key's id.
        #[arg(long, value_name = "ID")]
        key: Uuid,
    },
}

fn scope(name: &str) -> Result<Scope, String> {
    let known = || Scope::ALL.map(Scope::as_str).join(", ");
    Scope::parse(name).ok_or_else(|| format!("no such scope; known are {}", known()))
}

fn row(key: &KeyInfo) -> String {
    let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.as_str()).collect();
    let state = if key.revoked_at.is_some() { "revoked" } else { "active " };
    format!("{}  {state}  sk_live_{}_…  {}  {}", key.id, key.prefix, scopes.join(","), key.name)
}

pub(crate) async fn run(command: Command, config: &Config, json: bool) -> Result<(), Failure> {
    let db = operator(config).await?;
    match command {
        Command::Create { account, scopes, name } => {
            let (info, key) = keys::create(&db, account, &name, &scopes).await?;
            print(json, &json!({ "key_id": info.id, "key": key.expose() }), || {
                format!("{}\n\nkey id {}. This is the only time the key is shown.", key.expose(), info.id)
            })
        }
        Command::List { account } => {
            let mut all = Vec::new();
            let mut before = None;
            loop {
                let page = keys::list(&db, account, before, 500).await?;
                let Some(last) = page.last() else { break };
                before = Some(last.id);
                all.extend(page);
            }
            if all.is_empty() && !accounts::list(&db).await?.iter().any(|known| known.account_id == account) {
                return Err(tollgate_domain::Error::NotFound("account").into());
            }
            print(json, &json!({ "data": all }), || {
                if all.is_empty() {
                    return "no keys; `tollgate key create` makes one".into();
                }
                all.iter().map(row).collect::<Vec<_>>().join("\n")
            })
        }
        Command::Revoke { account, key } => {
            let info = keys::revoke(&db, account, key).await?;
            print(json, &info, || format!("revoked {}", info.id))
        }
    }
}
