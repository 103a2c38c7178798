//! `tollgate lane`

use clap::Subcommand;
use serde_json::json;
use tollgate_domain::LaneSettings;
use tollgate_domain::queue::{self, Cap, LaneChange};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::queue::QueueName;

use crate::commands::operator;
use crate::commands::queue::{cap, shown};
use crate::config::Config;
use crate::output::{Failure, print};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what is set for one account's share of a queue.
    Show {
        #[command(flatten)]
        lane: Lane,
    },
    /// Set one account's share of a queue, its limit, or both; what is not named stays.
    Set {
        #[command(flatten)]
        lane: Lane,
        /// Its share beside other accounts', 1 to 1000: one of 2 runs twice as many tasks as one of 1.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
        weight: Option<u16>,
        /// How many of its tasks run at a time, over all workers, or `none` for no limit.
        #[arg(long, value_name = "N|none", value_parser = cap, allow_negative_numbers = true)]
        max_running: Option<Cap>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Lane {
    /// The account.
    #[arg(long, value_name = "ID")]
    account: AccountId,
    /// The queue.
    #[arg(long, default_value_t = QueueName::GenerationCreate)]
    queue: QueueName,
}

pub(crate) async fn run(command: Command, config: &Config, json: bool) -> Result<(), Failure> {
    let (Lane { account, queue }, settings) = match command {
        Command::Show { lane } => {
            let db = operator(config).await?;
            let settings = queue::lane_settings(&db, lane.queue, lane.account).await?;
            (lane, settings)
        }
        Command::Set { lane, weight, max_running } => {
            if weight.is_none() && max_running.is_none() {
                return Err(Failure::misuse("there is nothing to set: give --weight, --max-running or both"));
            }
            let db = operator(config).await?;
            let change = LaneChange { weight, max_running };
            let settings = queue::change_lane(&db, lane.queue, lane.account, Actor::Shell, change).await?;
            (lane, settings)
        }
    };
    let LaneSettings { weight, max_running } = settings;
    let set = json!({ "account_id": account, "queue": queue, "weight": weight, "max_running": max_running });
    print(json, &set, || format!("{queue} of {account}: weight {weight}, {}", shown(max_running)))
}
