//! `tollgate dlq`

use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde_json::json;
use tollgate_domain::Database;
use tollgate_domain::dead_letters::{self, Selection};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::cursor;
use tollgate_model::dead_letter::{DeadLetter, DeadLetterFilter, Purged, Redriven};
use tollgate_model::queue::QueueName;
use uuid::Uuid;

use crate::commands::operator;
use crate::config::Config;
use crate::output::{Failure, print};

/// The same as the API's, so that either continues the other's.
const LIST: &str = "dlq";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List dead letters, newest first.
    List {
        #[command(flatten)]
        filter: Filter,
        /// How many, 1 to 100.
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
        limit: u32,
        /// Where to go on: `next_cursor` of the page before.
        #[arg(long)]
        cursor: Option<String>,
    },
    /// Show a dead letter.
    Show {
        /// Its id, which is the job's.
        id: Uuid,
    },
    /// Put dead letters back into their queues, and their jobs to where they began.
    Redrive(Selected),
    /// Delete dead letters for good; their jobs stay failed.
    Purge(Selected),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Filter {
    /// Only those of this queue.
    #[arg(long)]
    queue: Option<QueueName>,
    /// Only those with this code as their reason, such as SERVER_ERROR.
    #[arg(long)]
    code: Option<String>,
    /// Only those of this account.
    #[arg(long, value_name = "ID")]
    account: Option<AccountId>,
    /// Only those that died then or later, such as 2030-01-01T00:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<DateTime<Utc>>,
    /// Only those that died before.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<DateTime<Utc>>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Selected {
    /// These, and no filter.
    ids: Vec<Uuid>,
    #[command(flatten)]
    filter: Filter,
    /// Every dead letter there is.
    #[arg(long)]
    all: bool,
    /// Only count what would be found.
    #[arg(long)]
    dry_run: bool,
}

fn time(text: &str) -> Result<DateTime<Utc>, String> {
    text.parse().map_err(|_| "must be a time such as 2030-01-01T00:00:00Z".into())
}

impl From<Filter> for DeadLetterFilter {
    fn from(Filter { queue, code, account, since, until }: Filter) -> Self {
        Self { queue, code, account, since, until }
    }
}

impl Selected {
    fn selection(self) -> Result<Selection, Failure> {
        let filter = DeadLetterFilter::from(self.filter);
        let ids = Some(self.ids).filter(|ids| !ids.is_empty());
        if ids.is_none() && filter.is_empty() && !self.all {
            return Err(Failure::misuse(
                "which dead letters? Name them by their ids, pick them by --queue, --code, --account, --since or \
                 --until, or say --all; --dry-run counts them first",
            ));
        }
        Ok(Selection::new(ids, filter, self.all)?)
    }
}

pub(crate) async fn run(command: Command, config: &Config, json: bool) -> Result<(), Failure> {
    match command {
        Command::List { filter, limit, cursor } => {
            list(&operator(config).await?, &filter.into(), limit, cursor.as_deref(), json).await
        }
        Command::Show { id } => {
            let letter = dead_letters::get(&operator(config).await?, id).await?;
            print(json, &letter, || describe(&letter))
        }
        Command::Redrive(selected) => {
            let dry_run = selected.dry_run;
            let selection = selected.selection()?;
            redrive(&operator(config).await?, config, &selection, dry_run, json).await
        }
        Command::Purge(selected) => {
            let dry_run = selected.dry_run;
            let selection = selected.selection()?;
            purge(&operator(config).await?, &selection, dry_run, json).await
        }
    }
}

async fn list(
    db: &Database,
    filter: &DeadLetterFilter,
    limit: u32,
    cursor: Option<&str>,
    json: bool,
) -> Result<(), Failure> {
    let before = cursor.map(|cursor| cursor::decode(LIST, cursor)).transpose();
    let before = before.map_err(|foreign| Failure::misuse(format!("--cursor: {foreign}")))?;
    let wanted = limit as usize;
    // One more than is asked for tells whether there are more.
    let mut letters = dead_letters::list(db, filter, before, i64::from(limit) + 1).await?;
    let more = letters.len() > wanted;
    letters.truncate(wanted);
    let next = letters.last().filter(|_| more).map(|last| cursor::encode(LIST, &last.place()));
    print(json, &json!({ "data": letters, "next_cursor": next }), || {
        let mut lines: Vec<_> = letters.iter().map(line).collect();
        lines.extend(next.iter().map(|cursor| format!("more with --cursor {cursor}")));
        if lines.is_empty() { "no dead letters".into() } else { lines.join("\n") }
    })
}

fn line(letter: &DeadLetter) -> String {
    let time = letter.died_at.format("%Y-%m-%d %H:%M:%S");
    let DeadLetter { id, queue, reason, attempts, max_attempts, account_id, .. } = letter;
    format!("{id}  {time}  {queue}  {:<12}  {attempts} of {max_attempts}  account {account_id}", reason.code)
}

fn describe(letter: &DeadLetter) -> String {
    let mut text = format!("{}\n{}: {}", line(letter), letter.reason.code, letter.reason.message);
    text += &format!("\n{}, priority {}, enqueued {}", letter.task_type, letter.priority, letter.created_at);
    if letter.payload != json!({}) {
        text += &format!("\n\n{}", letter.payload);
    }
    text
}

async fn redrive(
    db: &Database,
    config: &Config,
    selection: &Selection,
    dry_run: bool,
    json: bool,
) -> Result<(), Failure> {
    if dry_run {
        let matched = dead_letters::count(db, selection).await?;
        let redriven = Redriven { matched, ..Redriven::default() };
        return print(json, &redriven, || format!("{matched} found; nothing was redriven"));
    }
    let mut batches = 0;
    let progress = |sum: &Redriven| {
        batches += 1;
        if batches > 1 {
            eprintln!("{} redriven, {} skipped …", sum.redriven, sum.skipped);
        }
        true
    };
    let sum = dead_letters::redrive(db, &config.times_to_live(), Actor::Shell, selection, progress).await?;
    print(json, &sum, || format!("{} redriven, {} skipped", sum.redriven, sum.skipped))?;
    if sum.redriven == 0 && sum.skipped > 0 {
        return Err(Failure::new(
            "nothing was redriven: there are no such dead letters, or their jobs are gone or not failed any more; \
             `tollgate dlq list` shows those there are",
        ));
    }
    Ok(())
}

async fn purge(db: &Database, selection: &Selection, dry_run: bool, json: bool) -> Result<(), Failure> {
    if dry_run {
        let matched = dead_letters::count(db, selection).await?;
        let purged = Purged { matched, ..Purged::default() };
        return print(json, &purged, || format!("{matched} found; nothing was purged"));
    }
    let mut batches = 0;
    let progress = |sum: &Purged| {
        batches += 1;
        if batches > 1 {
            eprintln!("{} purged …", sum.purged);
        }
        true
    };
    let sum = dead_letters::purge(db, Actor::Shell, selection, progress).await?;
    print(json, &sum, || format!("{} purged", sum.purged))
}
