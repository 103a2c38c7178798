//! `tollgate account`

use clap::Subcommand;
use serde_json::json;
use tollgate_domain::accounts;
use tollgate_domain::reconcile::{self, Drift};
use tollgate_model::account::AccountId;

use crate::commands::operator;
use crate::config::Config;
use crate::output::{Failure, print};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Open an account.
    Create {
        /// What to call it; for people.
        #[arg(long)]
        name: String,
        /// Credits to begin with.
        #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
        credits: i64,
    },
    /// List every account.
    List,
    /// Post credits to an account.
    Grant {
        /// The account.
        #[arg(long, value_name = "ID")]
        account: AccountId,
        /// How many, at least 1.
        #[arg(long, allow_negative_numbers = true)]
        credits: i64,
        /// Why; stands in the ledger.
        #[arg(long)]
        reason: String,
    },
    /// Add up every ledger anew, and compare it with the balance and with what jobs hold. Fails if they differ.
    Reconcile {
        /// This account only.
        #[arg(long, value_name = "ID")]
        account: Option<AccountId>,
    },
}

pub(crate) async fn run(command: Command, config: &Config, json: bool) -> Result<(), Failure> {
    let db = operator(config).await?;
    match command {
        Command::Create { name, credits } => {
            let account_id = accounts::create(&db, &name, credits).await?;
            print(json, &json!({ "account_id": account_id }), || account_id.to_string())
        }
        Command::List => {
            let accounts = accounts::list(&db).await?;
            print(json, &json!({ "data": accounts }), || {
                if accounts.is_empty() {
                    return "no accounts; `tollgate account create` opens one".into();
                }
                let row = |account: &tollgate_model::account::Account| {
                    format!("{}  {:>12} credits  {}", account.account_id, account.credits, account.name)
                };
                accounts.iter().map(row).collect::<Vec<_>>().join("\n")
            })
        }
        Command::Grant { account, credits, reason } => {
            let balance = accounts::grant(&db, account, credits, &reason).await?;
            print(json, &json!({ "account_id": account, "balance": balance.balance }), || {
                format!("balance: {} credits", balance.balance)
            })
        }
        Command::Reconcile { account } => {
            let (accounts, drifts) = reconcile::all(&db, account).await?;
            print(json, &json!({ "accounts": accounts, "drifts": drifts }), || {
                let row = |drift: &Drift| {
                    format!(
                        "{}  balance {:+}  held {:+}  owed {:+}",
                        drift.account_id, drift.balance, drift.held, drift.owed
                    )
                };
                let rows =
                    drifts.iter().map(row).chain([format!("{accounts} accounts, {} differ", drifts.len())]);
                rows.collect::<Vec<_>>().join("\n")
            })?;
            if drifts.is_empty() {
                Ok(())
            } else {
                Err(Failure::new(
                    "ledger and balance differ: somebody changed one of them past Tollgate, or it has a defect; nothing \
                     was changed",
                ))
            }
        }
    }
}
