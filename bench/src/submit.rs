//! How much a submit costs: the complete one over HTTP (authenticated, rate-limited, idempotent, its credits held),
//! beside the bare enqueues of pg-boss and graphile-worker and a plain insert, which have neither HTTP nor keys nor
//! money.
//!
//! All of them in turns on one durable PostgreSQL, each in a fresh database of its own, at the same concurrency; figures are
//! compared within a round alone.

mod arena;
mod http;
mod ledger;
mod load;
mod peers;
mod recognition;
mod report;
mod statements;

use std::time::Duration;

use clap::ValueEnum;

use self::arena::{Arena, Cost};
use self::http::Figures;
use crate::{Result, lone_commit_ms, machine};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// How long each load lasts.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Connections of the API's clients, and producers of the peers.
    #[arg(long, value_delimiter = ',', default_value = "16,64")]
    connections: Vec<usize>,
    /// Only these.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Part>,
    /// Entries of the account with a long past.
    #[arg(long, default_value_t = 5_000_000)]
    ledger_rows: u64,
    /// Print what PostgreSQL spends its time on, too. It slows Tollgate down.
    #[arg(long)]
    statements: bool,
    /// A further setting of the API, such as DATABASE_MAX_CONNECTIONS=16; may be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("is not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    PgBoss,
    Raw,
    /// 100 accounts, each with a key.
    Many,
    /// One account.
    Hot,
    GraphileWorker,
    /// One account with a short past, and with a long one.
    Ledger,
    /// Recognising keys.
    Keys,
}

impl Part {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// One contender at one number of connections.
struct Run {
    part: Part,
    connections: usize,
    per_sec: f64,
    cost: Cost,
    /// At half of the rate, p50 and p99.
    half_ms: Option<(f64, f64)>,
}

/// What a round came to; what was not asked for is missing.
#[derive(Default)]
struct Round {
    /// Before and after.
    commit_ms: [f64; 2],
    runs: Vec<Run>,
    few_entries: Option<ledger::Depth>,
    many_entries: Option<ledger::Depth>,
    keys: Option<recognition::Rates>,
}

pub(crate) async fn main(args: Args) -> Result<()> {
    let mut arena = Arena::open(args.statements, args.settings.clone()).await?;
    if args.wants(Part::Ledger) {
        for entries in [ledger::FEW, args.ledger_rows] {
            eprintln!("filling a ledger with {entries} entries");
            ledger::fill(&arena, entries).await?;
        }
    }
    let mut faults = Vec::new();
    let mut rounds = Vec::new();
    for number in 1..=args.rounds {
        eprintln!("round {number} of {}", args.rounds);
        rounds.push(round(&args, &mut arena, number % 2 == 0, &mut faults).await?);
    }
    arena.close().await?;
    println!("{}", machine()?);
    println!("{} rounds, {} s each load; fsync on\n", args.rounds, args.seconds);
    report::print(&rounds, &args.connections, args.ledger_rows);
    if faults.is_empty() {
        Ok(())
    } else {
        Err(format!("not as it should be:\n{}", faults.join("\n")).into())
    }
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Everything once. Every other round the other way round, so that nobody is always first.
async fn round(args: &Args, arena: &mut Arena, backwards: bool, faults: &mut Vec<String>) -> Result<Round> {
    let mut round = Round::default();
    round.commit_ms[0] = lone_commit_ms(arena.meter()).await?;
    for &connections in &args.connections {
        let mut parts = vec![Part::PgBoss, Part::Many, Part::Raw, Part::Hot, Part::GraphileWorker];
        if backwards {
            parts.reverse();
        }
        for part in parts.into_iter().filter(|part| args.wants(*part)) {
            let run = run(args, arena, part, connections, faults).await?;
            eprintln!("{} at {connections}: {:.0}/s", part.name(), run.per_sec);
            round.runs.push(run);
        }
    }
    let window = Duration::from_secs(args.seconds);
    if args.wants(Part::Ledger) {
        let connections = args.connections.first().copied().unwrap_or(1);
        let mut depths = [(ledger::FEW, &mut round.few_entries), (args.ledger_rows, &mut round.many_entries)];
        if backwards {
            depths.reverse();
        }
        for (entries, depth) in depths {
            let measured = ledger::measure(arena, entries, connections, window, faults).await?;
            eprintln!("{entries} entries: {measured:?}");
            *depth = Some(measured);
        }
    }
    if args.wants(Part::Keys) {
        round.keys = Some(recognition::measure(arena, window).await?);
    }
    round.commit_ms[1] = lone_commit_ms(arena.meter()).await?;
    Ok(round)
}

async fn run(
    args: &Args,
    arena: &mut Arena,
    part: Part,
    connections: usize,
    faults: &mut Vec<String>,
) -> Result<Run> {
    let keys = match part {
        Part::Many => arena.keys.clone(),
        Part::Hot => arena.keys[..1].to_vec(),
        _ => {
            let (per_sec, cost) = peers::enqueue(arena, &part.name(), connections, args.seconds).await?;
            return Ok(Run { part, connections, per_sec, cost, half_ms: None });
        }
    };
    let window = Duration::from_secs(args.seconds);
    let Figures { per_sec, cost, half_p50_ms, half_p99_ms } =
        http::measure(arena, &keys, connections, window, args.statements, faults).await?;
    Ok(Run { part, connections, per_sec, cost, half_ms: Some((half_p50_ms, half_p99_ms)) })
}
