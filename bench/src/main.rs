//! The yardsticks: how long a job waits ([`jobs`]), what the guard costs ([`guard`]), and how much a submit costs beside the
//! peers' enqueues ([`submit`]). Each runs the real binary on a durable PostgreSQL of its own.

mod cpu;
mod guard;
mod jobs;
mod submit;

use std::path::Path;

use clap::Parser;
use secrecy::SecretString;
use sqlx::{Connection as _, PgConnection};
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tollgate_devdb::{Options, Server};
use tollgate_domain::{Database, Role, accounts, keys};
use tollgate_model::key::Scope;
use tollgate_outbound::TollgateClient;
use tollgate_sim::{Behaviour, Sim};
use tollgate_testkit::Process;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Measures Tollgate on the machine at hand; `scripts/bench` builds what this needs.
#[derive(Debug, Parser)]
enum Bench {
    /// How long a job waits.
    Jobs(jobs::Args),
    /// What the guard costs.
    Guard(guard::Args),
    /// The complete submit over HTTP, beside the peers' bare enqueues and a raw insert.
    Submit(submit::Args),
}

fn main() -> Result<()> {
    match Bench::parse() {
        Bench::Jobs(args) => Builder::new_multi_thread().enable_all().build()?.block_on(jobs::main(args)),
        Bench::Guard(args) => Builder::new_multi_thread().enable_all().build()?.block_on(guard::main(args)),
        // One thread makes the load, and shares two processors with API and PostgreSQL.
        Bench::Submit(args) => {
            Builder::new_current_thread().enable_all().build()?.block_on(submit::main(args))
        }
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
        let (_, key) = keys::create(&operator, account, "bench", &Scope::ALL).await?;
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
