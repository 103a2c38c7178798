//! What the contenders meet on: one durable PostgreSQL, and for each run a fresh database of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::Instant;
use tollgate_devdb::{Options, Server};
use tollgate_domain::{Database, Role, accounts, keys};
use tollgate_model::key::Scope;
use tollgate_testkit::Process;

use crate::{Result, cpu};

/// A migrated database with all accounts and keys, from which others are copied.
pub(crate) const TEMPLATE: &str = "submit_template";
/// Accounts, each with one key. One takes part where an account is to be hot.
const ACCOUNTS: usize = 100;
/// As for the peers' own benchmark; sessions enough for 64 producers of a library with two pools.
const SETTINGS: [(&str, &str); 3] =
    [("shared_buffers", "1GB"), ("max_wal_size", "4GB"), ("max_connections", "300")];
/// To see what statements take.
const STATEMENTS: [(&str, &str); 3] = [
    ("shared_preload_libraries", "pg_stat_statements"),
    ("pg_stat_statements.track", "all"),
    ("pg_stat_statements.track_planning", "on"),
];

pub(crate) struct Arena {
    _directory: tempfile::TempDir,
    server: Server,
    /// For counters of the whole server.
    meter: PgConnection,
    /// Of each account, in the order of their opening.
    pub(crate) keys: Vec<String>,
    /// Settings of the API beyond what the load needs.
    extra: Vec<(String, String)>,
}

/// Counters at a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    at: Instant,
    postgres: cpu::Postgres,
    api: u64,
    client: u64,
    machine: u64,
    wal_bytes: f64,
    wal_syncs: f64,
    commits: f64,
}

/// What one submit or enqueue took, in microseconds of processor time where it does not say otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) sessions: f64,
    pub(crate) postgres_rest: f64,
    pub(crate) api: f64,
    pub(crate) client: f64,
    /// How many processors everybody else kept busy meanwhile: a run beside much of it tells little.
    pub(crate) others: f64,
    pub(crate) wal_bytes: f64,
    pub(crate) wal_syncs: f64,
    /// Sessions report theirs once a second.
    pub(crate) commits: f64,
}

impl Arena {
    pub(crate) async fn open(statements: bool, extra: Vec<(String, String)>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut options = Options::new(directory.path());
        options.settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        if statements {
            for (name, value) in STATEMENTS {
                options.settings.push((name.into(), value.into()));
            }
        }
        let server = tokio::task::spawn_blocking(move || Server::start(options)).await??;
        let meter = PgConnection::connect(&server.url("postgres")).await?;
        let mut arena = Self { _directory: directory, server, meter, keys: Vec::new(), extra };
        arena.sql("postgres", &format!("CREATE DATABASE {TEMPLATE}")).await?;
        tollgate_domain::migrate(&arena.url(TEMPLATE)).await?;
        arena.sql("postgres", "ALTER ROLE app_api PASSWORD 'bench'").await?;
        if statements {
            arena.sql("postgres", "CREATE EXTENSION pg_stat_statements").await?;
        }
        let operator = Database::connect(&arena.url(TEMPLATE), Role::Operator, 1, false).await?;
        for number in 1..=ACCOUNTS {
            let account =
                accounts::create(&operator, &format!("bench {number}"), tollgate_model::credits::MAX_GRANT)
                    .await?;
            let (_, key) = keys::create(&operator, account, "bench", &Scope::ALL).await?;
            arena.keys.push(key.expose().to_owned());
        }
        operator.close().await;
        arena.sql(TEMPLATE, "VACUUM ANALYZE").await?;
        Ok(arena)
    }

    /// A database's URL, for the cluster's owner.
    pub(crate) fn url(&self, database: &str) -> String {
        self.server.url(database)
    }

    /// A database's URL, for the API.
    pub(crate) fn api_url(&self, database: &str) -> String {
        format!("postgres://{}:bench@127.0.0.1:{}/{database}", Role::Api.as_str(), self.server.port())
    }

    pub(crate) fn meter(&mut self) -> &mut PgConnection {
        &mut self.meter
    }

    /// Runs statements as the cluster's owner, who stands above row-level security.
    pub(crate) async fn sql(&self, database: &str, sql: &str) -> Result<()> {
        let mut conn = PgConnection::connect(&self.url(database)).await?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await?;
        Ok(conn.close().await?)
    }

    /// A fresh database; whatever wrote before is on the disk when this returns.
    pub(crate) async fn fresh(&self, database: &str, template: &str) -> Result<()> {
        self.sql("postgres", &format!("CREATE DATABASE {database} TEMPLATE {template} STRATEGY file_copy"))
            .await?;
        self.sql("postgres", "CHECKPOINT").await
    }

    pub(crate) async fn drop(&self, database: &str) -> Result<()> {
        self.sql("postgres", &format!("DROP DATABASE {database} WITH (FORCE)")).await
    }

    /// `tollgate api` on that database, and where it listens.
    pub(crate) async fn api(&self, database: &str) -> Result<(Process, SocketAddr)> {
        let mut environment: Vec<(String, String)> = [
            ("DATABASE_URL", self.api_url(database).as_str()),
            ("OPENAI_API_KEY", "simulated"),
            ("LOG_LEVEL", "warn"),
            // Limits are looked at, and not reached.
            ("RATE_LIMIT_DEFAULT", "100000000,1m"),
            ("MAX_QUEUED_PER_ACCOUNT", "100000000"),
            ("MAX_QUEUED", "100000000"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        environment.extend(self.extra.iter().cloned());
        let api =
            Process::start(&binary()?, &["--json", "api", "--listen", "127.0.0.1:0"], &environment).await;
        let address = api.url().strip_prefix("http://").ok_or("the API is not at http://")?.parse()?;
        Ok((api, address))
    }

    /// The counters now, of what goes on in that database.
    pub(crate) async fn read(&mut self, database: &str, api: Option<&Process>) -> Result<Reading> {
        let (wal_bytes, wal_syncs, commits) = sqlx::query_as(
            "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8, (SELECT wal_sync FROM pg_stat_wal)::float8,
                    (SELECT xact_commit FROM pg_stat_database WHERE datname = $1)::float8",
        )
        .bind(database)
        .fetch_one(&mut self.meter)
        .await?;
        Ok(Reading {
            at: Instant::now(),
            postgres: cpu::of_postgres(self.server.pid())?,
            api: api.map_or(Ok(0), |api| cpu::of(api.pid()))?,
            client: cpu::own()? + cpu::of_ended_children(std::process::id())?,
            machine: cpu::of_machine()?,
            wal_bytes,
            wal_syncs,
            commits,
        })
    }

    pub(crate) async fn close(self) -> Result<()> {
        self.meter.close().await?;
        let server = self.server;
        Ok(tokio::task::spawn_blocking(move || server.destroy()).await??)
    }
}

impl Reading {
    /// What has been used since then, for each of so many.
    pub(crate) fn since(&self, before: &Self, count: f64) -> Cost {
        let micros = |now: u64, before: u64| (now as f64 - before as f64) / 1000.0 / count;
        let sessions = micros(self.postgres.sessions, before.postgres.sessions);
        let postgres_rest = micros(self.postgres.rest, before.postgres.rest);
        let (api, client) = (micros(self.api, before.api), micros(self.client, before.client));
        let machine = micros(self.machine, before.machine);
        let elapsed_micros = (self.at - before.at).as_secs_f64() * 1e6;
        Cost {
            sessions,
            postgres_rest,
            api,
            client,
            others: (machine - sessions - postgres_rest - api - client).max(0.0) * count / elapsed_micros,
            wal_bytes: (self.wal_bytes - before.wal_bytes) / count,
            wal_syncs: (self.wal_syncs - before.wal_syncs) / count,
            commits: (self.commits - before.commits) / count,
        }
    }
}

/// Built beside this program.
fn binary() -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("tollgate"))
}
