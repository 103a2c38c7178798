//! What the guard costs where nothing is wrong: processor time and transactions a call, and the memory of a worker that has
//! 1,000 calls in flight.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tollgate_domain::{Database, Role};
use tollgate_model::guard::class::{CallKind, GuardConfig};
use tollgate_model::guard::outcome::{Fingerprint, Outcome};
use tollgate_model::guard::timeout::LatencyKey;
use tollgate_model::submission::Submission;
use tollgate_sim::Behaviour;
use tollgate_worker::Guard;

use crate::{Result, Stage, cpu, machine, resident_mib};

/// Calls in flight at once, for the memory.
const IN_FLIGHT: u64 = 1000;

/// One round's figures.
struct Round {
    micros_a_call: f64,
    transactions: f64,
    transactions_a_call: f64,
    idle_mib: f64,
    calling_mib: f64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Calls through the guard, each round.
    #[arg(long, default_value_t = 200_000)]
    calls: u64,
}

pub(crate) async fn main(Args { rounds, calls }: Args) -> Result<()> {
    println!("{}", machine()?);
    println!("{calls} calls through the guard, then {IN_FLIGHT} in flight; {rounds} rounds\n");
    let mut all = Vec::new();
    for round in 1..=rounds {
        all.push(measure(calls).await?);
        eprintln!("round {round} of {rounds} done");
    }
    let median = |figure: fn(&Round) -> f64| {
        let mut values: Vec<f64> = all.iter().map(figure).collect();
        crate::percentile(&mut values, 0.5)
    };
    println!("| figure | median of {rounds} |\n|---|---|");
    println!("| the guard's processor time, a call | {:.2} µs |", median(|round| round.micros_a_call));
    println!("| transactions of all those calls | {:.0} |", median(|round| round.transactions));
    println!("| transactions, a call | {:.5} |", median(|round| round.transactions_a_call));
    println!("| worker resident memory, idle | {:.1} MiB |", median(|round| round.idle_mib));
    println!("| the same, {IN_FLIGHT} calls in flight | {:.1} MiB |", median(|round| round.calling_mib));
    Ok(())
}

async fn measure(calls: u64) -> Result<Round> {
    let behaviour = Behaviour { latency_median_ms: 25_000, ..Behaviour::default() };
    let stage = Stage::set(behaviour).await?;
    let mut conn = PgConnection::connect(&stage.owner).await?;

    let db = Database::connect(&stage.url(Role::Worker), Role::Worker, 2, false).await?;
    let class = GuardConfig::default().of_kind(CallKind::Text).clone();
    let (_switch, enabled) = watch::channel(true);
    let guard = Guard::new(db.clone(), class, Fingerprint::of(Some("bench")), 64, enabled);
    let stop = CancellationToken::new();
    let mut beside = tokio::task::JoinSet::new();
    beside.spawn(guard.clone().watch(stop.clone()));
    guard.admitted().await;
    let key = LatencyKey {
        provider: "openai".into(),
        model: "gpt-4o-mini".into(),
        kind: CallKind::Text,
        size: None,
    };
    let (transactions, cpu) = (transactions(&mut conn).await?, cpu::own()?);
    let began = Instant::now();
    for _ in 0..calls {
        guard.admitted().await;
        let pass = guard.leave(1).and_then(|mut leave| leave.take()).ok_or("no leave on a healthy path")?;
        let timeout = guard.timeout(&key);
        let call = pass.begin(key.clone(), timeout).map_err(|_| "held back on a healthy path")?;
        call.ended(Outcome::Success { latency: Duration::from_millis(400) });
    }
    let wall = began.elapsed();
    let cpu = cpu::own()? - cpu;
    let transactions = self::transactions(&mut conn).await? - transactions;
    eprintln!("{calls} calls in {wall:?}");
    stop.cancel();
    beside.join_all().await;
    db.close().await;

    let api = stage.start(Role::Api, "api", 1).await?;
    let worker = stage.start(Role::Worker, "worker", usize::try_from(IN_FLIGHT)?).await?;
    let client = stage.client(&api)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle_mib = resident_mib(&worker)?;
    let submission = Submission { prompt: Some("What is a tollgate?".into()), ..Submission::default() };
    for _ in 0..IN_FLIGHT {
        client.submit(&submission).await?;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while stage.sim.stats().in_flight < IN_FLIGHT {
        if Instant::now() > deadline {
            return Err(format!("only {} calls in flight", stage.sim.stats().in_flight).into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let calling_mib = resident_mib(&worker)?;
    conn.close().await?;
    worker.terminate().await;
    api.terminate().await;
    stage.strike().await?;
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let round = Round {
        micros_a_call: cpu as f64 / 1000.0 / calls as f64,
        transactions: transactions as f64,
        transactions_a_call: transactions as f64 / calls as f64,
        idle_mib,
        calling_mib,
    };
    Ok(round)
}

/// What has been committed in this database; counters are sent late, and are waited for.
async fn transactions(conn: &mut PgConnection) -> Result<i64> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let count = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    Ok(sqlx::query_scalar(count).fetch_one(conn).await?)
}
