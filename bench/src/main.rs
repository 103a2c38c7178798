//! How long a job waits: from its accepting commit to the start of its attempt, at a steady rate, with the API and one
//! worker as processes of their own on a durable PostgreSQL. Beside it, in the same round, what a lone commit costs on
//! this machine's disk: no durable queue can start a job before its submission and its claim have been committed.
//!
//! `tollgate-bench [--seconds N] [--rate N] [--rounds N]`; `tollgate-bench guard` measures the guard instead ([`guard`]).

mod guard;

use std::path::Path;
use std::time::Duration;

use secrecy::SecretString;
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tollgate_devdb::{Options, Server};
use tollgate_domain::keys::{self, NewKey};
use tollgate_domain::{Database, KeyHashing, Role, accounts};
use tollgate_model::audit::Actor;
use tollgate_model::key::Scope;
use tollgate_model::submission::Submission;
use tollgate_outbound::TollgateClient;
use tollgate_sim::{Behaviour, Sim};
use tollgate_testkit::Process;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

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

#[tokio::main]
async fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("guard") {
        return guard::main(argument("--rounds", 3)?, argument("--calls", 200_000)?).await;
    }
    let seconds = argument("--seconds", 20)?;
    let rate = argument("--rate", 100)?;
    let rounds = argument("--rounds", 3)?;
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

fn argument(name: &str, default: u64) -> Result<u64> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    match (arguments.next(), arguments.next()) {
        (None, _) => Ok(default),
        (Some(_), Some(value)) => value.parse().map_err(|_| format!("{name} takes a whole number").into()),
        (Some(_), None) => Err(format!("{name} takes a whole number").into()),
    }
}

fn machine() -> Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|pair| pair.1));
    let cores = std::thread::available_parallelism()?;
    Ok(format!(
        "{cores} × {}, PostgreSQL {}",
        model.unwrap_or("unknown CPU"),
        tollgate_devdb::find_binaries()?.version()
    ))
}

/// What a round runs on: a durable PostgreSQL of its own, a simulated provider, an account and its key.
struct Stage {
    _directory: tempfile::TempDir,
    server: Server,
    owner: String,
    key: SecretString,
    provider: String,
    sim: tollgate_sim::Control,
    stop: CancellationToken,
    _beside: JoinSet<()>,
}

impl Stage {
    async fn set(behaviour: Behaviour) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let options = Options::new(directory.path());
        let server = tokio::task::spawn_blocking(move || Server::start(options)).await??;
        let owner = server.url("postgres");
        tollgate_domain::migrate(&owner).await?;
        let mut conn = PgConnection::connect(&owner).await?;
        for role in ["app_api", "app_worker"] {
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("ALTER ROLE {role} PASSWORD 'bench'")))
                .execute(&mut conn)
                .await?;
        }
        conn.close().await?;
        let operator = Database::connect(&owner, Role::Operator, 1, false).await?;
        let account = accounts::create(&operator, "bench", 0).await?;
        let new = NewKey { name: "bench", scopes: &Scope::ALL, ..NewKey::default() };
        let (_, key) = keys::create(&operator, account, Actor::Shell, KeyHashing::default(), new).await?;
        let key = SecretString::from(key.expose().to_owned());
        operator.close().await;

        let sim = Sim::bind(([127, 0, 0, 1], 0).into(), behaviour).await?;
        let (provider, control) = (sim.base_url(), sim.control());
        let stop = CancellationToken::new();
        let mut beside = JoinSet::new();
        beside.spawn(sim.run(stop.clone()));
        Ok(Self { _directory: directory, server, owner, key, provider, sim: control, stop, _beside: beside })
    }

    fn url(&self, role: Role) -> String {
        format!("postgres://{}:bench@127.0.0.1:{}/postgres", role.as_str(), self.server.port())
    }

    /// Starts a role as a process of its own.
    async fn start(&self, role: Role, command: &str, concurrency: usize) -> Result<Process> {
        let binary = std::env::current_exe()?.with_file_name("tollgate");
        let environment: Vec<(String, String)> = [
            ("DATABASE_URL", self.url(role)),
            ("OPENAI_BASE_URL", self.provider.clone()),
            ("OPENAI_API_KEY", "simulated".into()),
            ("LOG_LEVEL", "warn".into()),
            ("Q_GEN_CREATE_CONCURRENCY", concurrency.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        Ok(Process::start(&binary, &["--json", command, "--listen", "127.0.0.1:0"], &environment).await)
    }

    fn client(&self, api: &Process) -> Result<TollgateClient> {
        Ok(TollgateClient::new(&api.url(), self.key.clone())?)
    }

    async fn strike(self) -> Result<()> {
        self.stop.cancel();
        let server = self.server;
        Ok(tokio::task::spawn_blocking(move || server.stop()).await??)
    }
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

/// The mean of 200 single-row inserts, each its own commit, on one connection.
async fn lone_commit_ms(conn: &mut PgConnection) -> Result<f64> {
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS bench_commit (at timestamptz DEFAULT now())")
        .execute(&mut *conn)
        .await?;
    let began = Instant::now();
    for _ in 0..200 {
        sqlx::query("INSERT INTO bench_commit DEFAULT VALUES").execute(&mut *conn).await?;
    }
    Ok(began.elapsed().as_secs_f64() * 1000.0 / 200.0)
}

fn resident_mib(process: &Process) -> Result<f64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(process.pid().to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

fn percentile(values: &mut [f64], at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of a short list")]
    let index = ((values.len() as f64 * at) as usize).min(values.len() - 1);
    values[index]
}

fn median(rounds: &[Round], figure: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(figure).collect();
    percentile(&mut values, 0.5)
}
