//! `tollgate stripe`

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;
use tollgate_domain::stripe::{self, Linked, Received, Resolution};
use tollgate_domain::{Database, Error};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::cursor;
use tollgate_model::stripe::inbox::{EventState, InboxEvent};
use tollgate_model::stripe::reading::{Event, KINDS};
use tollgate_outbound::StripeClient;

use crate::commands::operator;
use crate::config::Config;
use crate::output::{Failure, print};

const LIST: &str = "stripe_events";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List Stripe's events as they came, newest first, and what became of each.
    Events {
        /// Only those in this state: received, processed, ignored, unknown_customer, unknown_payment, needs_attention,
        /// resolved.
        #[arg(long)]
        state: Option<EventState>,
        /// How many, 1 to 100.
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
        limit: u32,
        /// Where to go on: `next_cursor` of the page before.
        #[arg(long)]
        cursor: Option<String>,
    },
    /// Say whose a customer of Stripe's is, and enter what has waited for that.
    Link {
        /// The customer: cus_…
        #[arg(long, value_name = "ID", required_unless_present = "event", conflicts_with = "event")]
        customer: Option<String>,
        /// An event that names no customer, instead: evt_…
        #[arg(long, value_name = "ID")]
        event: Option<String>,
        /// The account.
        #[arg(long, value_name = "ID")]
        account: AccountId,
    },
    /// Say that an event which waits for somebody has been dealt with by hand: nothing more comes of it, and it is forgotten
    /// in time.
    Resolve {
        /// The event: evt_…
        #[arg(long, value_name = "ID")]
        event: String,
        /// What was done about it, for the audit log.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Read from Stripe what it has tried to send, and store what never came.
    Reconcile {
        /// How far back, such as 72h; Stripe keeps events for 30 days.
        #[arg(long, value_name = "TIME", default_value = "72h", value_parser = since)]
        since: Duration,
    },
}

/// Stripe keeps events for as long.
const KEPT: Duration = Duration::from_hours(30 * 24);

fn since(text: &str) -> Result<Duration, String> {
    let since =
        humantime::parse_duration(text).map_err(|error| format!("not a time such as 72h or 7d: {error}"))?;
    if since.is_zero() || since > KEPT {
        return Err("must be more than nothing and at most 30 days: Stripe keeps events no longer".into());
    }
    Ok(since)
}

pub(crate) async fn run(command: Command, config: &Config, json: bool) -> Result<(), Failure> {
    match command {
        Command::Events { state, limit, cursor } => {
            events(&operator(config).await?, state, limit, cursor.as_deref(), json).await
        }
        Command::Link { customer, event, account } => {
            let (object, prefix) = match (&customer, &event) {
                (Some(customer), _) => (customer, "cus_"),
                (None, Some(event)) => (event, "evt_"),
                (None, None) => return Err(Failure::misuse("give --customer or --event")),
            };
            if !object.starts_with(prefix) {
                return Err(Failure::misuse(format!(
                    "`{object}` does not begin with {prefix}, as Stripe's do"
                )));
            }
            let db = operator(config).await?;
            let linked = stripe::link(&db, Actor::Shell, object, account, config.billing_ttl).await?;
            let Linked { released, before } = linked;
            let done =
                json!({ "object": object, "account_id": account, "released": released, "before": before });
            print(json, &done, || {
                let before = before.map_or_else(String::new, |before| format!(", no longer {before}'s"));
                format!("{object} is {account}'s{before}; {released} events are being entered")
            })
        }
        Command::Resolve { event, reason } => resolve(config, &event, &reason, json).await,
        Command::Reconcile { since } => reconcile(config, since, json).await,
    }
}

async fn events(
    db: &Database,
    state: Option<EventState>,
    limit: u32,
    cursor: Option<&str>,
    json: bool,
) -> Result<(), Failure> {
    let before = cursor.map(|cursor| cursor::decode(LIST, cursor)).transpose();
    let before = before.map_err(|foreign| Failure::misuse(format!("--cursor: {foreign}")))?;
    let wanted = limit as usize;
    // One more than is asked for tells whether there are more.
    let mut events = stripe::events(db, state, before, i64::from(limit) + 1).await?;
    let more = events.len() > wanted;
    events.truncate(wanted);
    let next = events.last().filter(|_| more).map(|last| cursor::encode(LIST, &last.id));
    print(json, &json!({ "data": events, "next_cursor": next }), || {
        let mut lines: Vec<_> = events.iter().map(line).collect();
        lines.extend(next.iter().map(|cursor| format!("more with --cursor {cursor}")));
        if lines.is_empty() { "no events".into() } else { lines.join("\n") }
    })
}

fn line(event: &InboxEvent) -> String {
    let InboxEvent { event_id, event_type, received_at, state, account_id, customer, error, .. } = event;
    let time = received_at.format("%Y-%m-%d %H:%M:%S");
    let mut line = format!("{event_id}  {time}  {state:<16}  {event_type}");
    if let Some(account) = account_id {
        line += &format!("  account {account}");
    }
    if let Some(customer) = customer {
        line += &format!("  {customer}");
    }
    if let Some(error) = error {
        line += &format!("\n    {error}");
    }
    line
}

async fn resolve(config: &Config, event: &str, reason: &str, json: bool) -> Result<(), Failure> {
    match stripe::resolve(&operator(config).await?, Actor::Shell, event, reason).await? {
        Resolution::Resolved(was) => print(json, &json!({ "event_id": event, "was": was }), || {
            format!("{event} is resolved; it was {was}")
        }),
        Resolution::Ended(state) => {
            Err(Failure::new(format!("{event} is {state} already: nothing is left to do about it")))
        }
        Resolution::UnderWay => Err(Failure::new(format!(
            "{event} is in the queue: a worker will enter it, and `tollgate stripe events` then shows what came of it"
        ))),
    }
}

async fn reconcile(config: &Config, since: Duration, json: bool) -> Result<(), Failure> {
    let Some(key) = config.stripe_api_key.clone() else {
        return Err(Failure::misuse(
            "STRIPE_API_KEY is not set: a restricted key of Stripe's that may read events will do",
        ));
    };
    let client = StripeClient::new(config.stripe_api_base.clone(), key)?;
    let db = operator(config).await?;
    let since = stripe::begin_to_reconcile(&db, Actor::Shell, since).await?;
    let (mut known, mut new, mut failed) = (0_u64, 0_u64, 0_u64);
    let mut before: Option<String> = None;
    loop {
        let page = client.events(&KINDS, since, before.as_deref()).await?;
        before = None;
        for event in &page.data {
            let event = event.get().as_bytes();
            match stripe::receive(&db, event, config.billing_ttl).await {
                Ok(Received::New) => new += 1,
                Ok(Received::Known) => known += 1,
                // The next one would fare no better.
                Err(error @ Error::Unavailable(_)) => return Err(error.into()),
                Err(error) => {
                    failed += 1;
                    eprintln!("one event could not be stored: {error}");
                }
            }
            before = Event::read(event).ok().map(|event| event.id).or(before);
        }
        if !page.has_more || before.is_none() {
            break;
        }
        eprintln!("{known} known, {new} new, {failed} failed …");
    }
    let sums = json!({ "known": known, "new": new, "failed": failed, "since": since });
    print(json, &sums, || format!("{known} known, {new} new, {failed} failed"))?;
    if failed > 0 {
        return Err(Failure::new(format!("{failed} events could not be stored; the messages above say why")));
    }
    Ok(())
}
