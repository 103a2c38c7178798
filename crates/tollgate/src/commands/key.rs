//! `tollgate key`

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use tollgate_domain::accounts;
use tollgate_domain::keys::{self, Expiry, NewKey, Rotation};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::key::{ApiKey, KeyInfo, Scope, parse_rate_limit};
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
        /// It stops working by itself after so long, such as 90d. Without it: it does not.
        #[arg(long, value_name = "TIME", value_parser = time)]
        expires_in: Option<Duration>,
        /// Its own rate limit, instead of the installation's: requests and time, such as 600,1m.
        #[arg(long, value_name = "N,TIME", value_parser = rate_limit)]
        rate_limit: Option<String>,
        /// Credits that its jobs may cost a day (UTC). Without it: as many as the account has.
        #[arg(long, value_name = "N")]
        daily_credit_limit: Option<u32>,
    },
    /// List an account's keys, without their secrets.
    List {
        /// The account.
        #[arg(long, value_name = "ID")]
        account: AccountId,
    },
    /// Replace a key by a new one of the same name, scopes and limits, which is shown once. Both work until the old one
    /// has ended.
    Rotate {
        /// The account it belongs to.
        #[arg(long, value_name = "ID")]
        account: AccountId,
        /// The old key's id.
        #[arg(long, value_name = "ID")]
        key: Uuid,
        /// The old key works for so long, such as 24h, and 30d at most; 0s: it ends at once. Without it: until it is revoked.
        #[arg(long, value_name = "TIME", value_parser = time)]
        overlap: Option<Duration>,
        /// The new key stops working by itself after so long, such as 90d. Without it: it does not.
        #[arg(long, value_name = "TIME", value_parser = time)]
        expires_in: Option<Duration>,
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

fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("not a time such as 24h or 90d: {error}"))
}

fn rate_limit(text: &str) -> Result<String, String> {
    parse_rate_limit(text).map(|_| text.to_owned())
}

/// Says it once.
fn show((info, key): (KeyInfo, ApiKey), json: bool) -> Result<(), Failure> {
    print(json, &json!({ "key_id": info.id, "key": key.expose() }), || {
        format!("{}\n\nkey id {}. This is the only time the key is shown.", key.expose(), info.id)
    })
}

fn row(key: &KeyInfo) -> String {
    let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.as_str()).collect();
    let state = if key.revoked_at.is_some() { "revoked" } else { "active " };
    let until = key.expires_at.map(|end| format!("until {}  ", end.to_rfc3339())).unwrap_or_default();
    let limit = key.rate_limit.as_ref().map(|limit| format!("limit {limit}  ")).unwrap_or_default();
    let used = key.last_used_at.map(|last| format!("used {}  ", last.to_rfc3339())).unwrap_or_default();
    let (id, prefix, scopes, name) = (key.id, &key.prefix, scopes.join(","), &key.name);
    format!("{id}  {state}  sk_live_{prefix}_…  {until}{limit}{used}{scopes}  {name}")
}

pub(crate) async fn run(command: Command, config: &Config, json: bool) -> Result<(), Failure> {
    let db = operator(config).await?;
    let hashing = config.api_key_hash_algo;
    match command {
        Command::Create { account, scopes, name, expires_in, rate_limit, daily_credit_limit } => {
            let new = NewKey {
                name: &name,
                scopes: &scopes,
                expires: expires_in.map(Expiry::In),
                rate_limit: rate_limit.as_deref(),
                daily_credit_limit,
            };
            show(keys::create(&db, account, Actor::Shell, hashing, new).await?, json)
        }
        Command::Rotate { account, key, overlap, expires_in } => {
            let expires = expires_in.map(Expiry::In);
            let rotation = Rotation { key, within: &Scope::ALL, overlap, expires };
            show(keys::rotate(&db, account, Actor::Shell, hashing, rotation).await?, json)
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
            let info = keys::revoke(&db, account, Actor::Shell, key).await?;
            print(json, &info, || format!("revoked {}", info.id))
        }
    }
}
