//! How long a job waits: from its accepting commit to the start of its attempt, at a steady rate, with the API and one
//! worker as processes of their own on a durable PostgreSQL. Beside it, in the same round, what a lone commit costs on
//! this machine's disk: no durable queue can start a job before its submission and its claim have been committed.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tollgate_domain::Role;
use tollgate_model::submission::Submission;
use tollgate_outbound::TollgateClient;
use tollgate_sim::Behaviour;

use crate::{Result, Stage, lone_commit_ms, machine, percentile, resident_mib};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long the load lasts, each round.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Jobs a second.
    #[arg(long, default_value_t = 100)]
    rate: u64,
    #[arg(long, default_value_t = 3)]
    rounds: u64,
}

/// One round's figures.
struct Round {
    commit_ms: f64,
    accept_p50_ms: f64,
    accept_p99_ms: f64,
    start_p50_ms: f64,
    start_p99_ms: f64,
    api_idle_mib: f64,
    api_load_mib: f64,
    worker_idle_mib: f64,
    worker_load_mib: f64,
}

pub(crate) async fn main(Args { seconds, rate, rounds }: Args) -> Result<()> {
    println!("{}", machine()?);
    println!(
        "{rate} jobs/s for {seconds} s, {rounds} rounds; API, worker and PostgreSQL on this machine, fsync on\n"
    );
    let mut all = Vec::new();
    for round in 1..=rounds {
        all.push(measure(rate, Duration::from_secs(seconds)).await?);
        eprintln!("round {round} of {rounds} done");
    }
    let commit = median(&all, |round| round.commit_ms);
    println!("| figure | median of {rounds} | ÷ a lone commit |\n|---|---|---|");
    println!("| a lone commit (insert of one row) | {commit:.2} ms | 1 |");
    for (name, figure) in [
        ("HTTP submit to 202, p50", (|round: &Round| round.accept_p50_ms) as fn(&Round) -> f64),
        ("HTTP submit to 202, p99", |round| round.accept_p99_ms),
        ("accepted to attempt started, p50", |round| round.start_p50_ms),
        ("accepted to attempt started, p99", |round| round.start_p99_ms),
    ] {
        let value = median(&all, figure);
        println!("| {name} | {value:.2} ms | {:.1} |", value / commit);
    }
    for (name, figure) in [
        ("API resident memory, idle", (|round: &Round| round.api_idle_mib) as fn(&Round) -> f64),
        ("API resident memory, under load", |round| round.api_load_mib),
        ("worker resident memory, idle", |round| round.worker_idle_mib),
        ("worker resident memory, under load", |round| round.worker_load_mib),
    ] {
        println!("| {name} | {:.1} MiB | |", median(&all, figure));
    }
    Ok(())
}

async fn measure(rate: u64, window: Duration) -> Result<Round> {
    let stage = Stage::set(Behaviour::default()).await?;
    let mut conn = PgConnection::connect(&stage.owner).await?;
    let api = stage.start(Role::Api, "api", 50).await?;
    let worker = stage.start(Role::Worker, "worker", 50).await?;
    let client = stage.client(&api)?;
    // The first request pays for the key's hash and for connections.
    steady(&client, rate, Duration::from_secs(2)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    sqlx::raw_sql(
        "DELETE FROM app.job_events; DELETE FROM app.job_results; DELETE FROM app.jobs; CHECKPOINT",
    )
    .execute(&mut conn)
    .await?;
    let (api_idle_mib, worker_idle_mib) = (resident_mib(&api)?, resident_mib(&worker)?);
    let commit_ms = lone_commit_ms(&mut conn).await?;

    let mut accepts = steady(&client, rate, window).await?;
    let (api_load_mib, worker_load_mib) = (resident_mib(&api)?, resident_mib(&worker)?);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut starts: Vec<f64> = sqlx::query_scalar(
        "SELECT extract(epoch FROM started_at - created_at)::float8 * 1000 FROM app.jobs WHERE status = 'succeeded'",
    )
    .fetch_all(&mut conn)
    .await?;
    if starts.len() != accepts.len() {
        return Err(format!("{} jobs accepted, {} succeeded", accepts.len(), starts.len()).into());
    }
    conn.close().await?;
    worker.terminate().await;
    api.terminate().await;
    stage.strike().await?;
    Ok(Round {
        commit_ms,
        accept_p50_ms: percentile(&mut accepts, 0.5),
        accept_p99_ms: percentile(&mut accepts, 0.99),
        start_p50_ms: percentile(&mut starts, 0.5),
        start_p99_ms: percentile(&mut starts, 0.99),
        api_idle_mib,
        api_load_mib,
        worker_idle_mib,
        worker_load_mib,
    })
}

/// Submits at a steady rate, whether or not the answers keep up. Returns how long each took, in milliseconds.
async fn steady(client: &TollgateClient, rate: u64, window: Duration) -> Result<Vec<f64>> {
    let mut tick = interval(Duration::from_secs(1) / u32::try_from(rate)?);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = JoinSet::new();
    for _ in 0..rate * window.as_secs() {
        tick.tick().await;
        let client = client.clone();
        requests.spawn(async move {
            let submission =
                Submission { prompt: Some("What is a tollgate?".into()), ..Submission::default() };
            let sent = Instant::now();
            client.submit(&submission).await.map(|_| sent.elapsed().as_secs_f64() * 1000.0)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = requests.join_next().await {
        times.push(done??);
    }
    Ok(times)
}

fn median(rounds: &[Round], figure: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(figure).collect();
    percentile(&mut values, 0.5)
}
