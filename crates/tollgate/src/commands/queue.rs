//! `tollgate queue`

use clap::Subcommand;
use serde_json::json;
use tollgate_domain::queue::{self, Cap};
use tollgate_model::audit::Actor;
use tollgate_model::queue::{QueueName, QueueState};

use crate::commands::operator;
use crate::config::Config;
use crate::output::{Failure, print};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List every queue, with its counts over all accounts and its limit.
    List,
    /// Limit how many of a queue's tasks run at a time, over all workers.
    Set {
        /// The queue: generation.create (texts), generation.create.image, generation.probe, webhook.delivery,
        /// billing.credit_grant.
        queue: QueueName,
        /// How many, or `none` for no limit.
        #[arg(long, value_name = "N|none", value_parser = cap, allow_negative_numbers = true)]
        max_running: Cap,
    },
}

/// Reads a limit to what runs at a time.
pub(crate) fn cap(text: &str) -> Result<Cap, &'static str> {
    if text == "none" {
        return Ok(Cap(None));
    }
    let max = text.parse().ok().filter(|max| *max >= 0);
    max.map(|max| Cap(Some(max))).ok_or("must be a whole number, 0 or more, or `none`")
}

/// A limit, for people.
pub(crate) fn shown(max_running: Option<i32>) -> String {
    max_running.map_or_else(|| "no limit".into(), |max| format!("at most {max} at a time"))
}

pub(crate) async fn run(command: Command, config: &Config, json: bool) -> Result<(), Failure> {
    let db = operator(config).await?;
    match command {
        Command::List => {
            let queues = queue::states(&db).await?;
            print(json, &json!({ "data": queues }), || queues.iter().map(line).collect::<Vec<_>>().join("\n"))
        }
        Command::Set { queue, max_running: Cap(max_running) } => {
            queue::set_queue(&db, queue, Actor::Shell, max_running).await?;
            let set = json!({ "queue": queue, "max_running": max_running });
            print(json, &set, || format!("{queue}: {}", shown(max_running)))
        }
    }
}

fn line(state: &QueueState) -> String {
    let QueueState { queue, queued, running, done, failed, max_running } = state;
    format!(
        "{:<23}  {queued} queued, {running} running, {done} done, {failed} failed; {}",
        queue.as_str(),
        shown(*max_running)
    )
}
