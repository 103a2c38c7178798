//! A whole Tollgate in one process, for `dev` and `demo`: PostgreSQL (private, unless DATABASE_URL names one),
//! migrations, an account with a key and credits, the simulated provider if none is configured, API and worker.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tollgate_devdb::{Options, Server};
use tollgate_domain::auth::Authenticator;
use tollgate_domain::{Database, Role, accounts, keys, migrate};
use tollgate_model::account::AccountId;
use tollgate_model::key::Scope;
use tollgate_outbound::ApiError;
use tollgate_sim::{Behaviour, Sim};
use uuid::Uuid;

use crate::commands::api::{cannot_listen, listen};
use crate::config::Config;
use crate::node::{self, Mode, secret};
use crate::output::Failure;
use crate::telemetry;

/// What the account of a new data directory begins with.
const CREDITS: i64 = 1_000_000;

/// Nobody waits for a developer's Ctrl-C as for a deployment.
const GRACE: Duration = Duration::from_secs(2);

/// What other commands of this machine need to talk to a running `tollgate dev`; kept in its data directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Access {
    pub url: String,
    /// The cluster owner's, for `psql`.
    pub database_url: String,
    pub account_id: AccountId,
    pub api_key: String,
}

impl Access {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("dev.json")
    }

    /// What the last `tollgate dev` on this data directory left.
    pub(crate) fn read(data_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::path(data_dir)).ok()?).ok()
    }

    /// Holds a key: for its owner's eyes only, and whole or not at all.
    fn write(&self, data_dir: &Path) -> Result<(), Failure> {
        use std::os::unix::fs::PermissionsExt as _;
        let text = serde_json::to_string_pretty(self).map_err(|error| Failure::new(error.to_string()))?;
        let file = tempfile::Builder::new()
            .permissions(std::fs::Permissions::from_mode(0o600))
            .tempfile_in(data_dir)?;
        std::fs::write(file.path(), text)?;
        file.persist(Self::path(data_dir)).map_err(|error| Failure::new(error.to_string()))?;
        Ok(())
    }
}

/// Where `dev` keeps its data.
pub(crate) fn data_dir(config: &Config, asked: Option<PathBuf>) -> PathBuf {
    asked.or_else(|| config.tollgate_data_dir.clone()).unwrap_or_else(|| {
        // Relative or empty counts as unset: it would be another directory wherever the command is run.
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = variable("HOME");
        let data = variable("XDG_DATA_HOME");
        match data.or_else(|| home.as_ref().map(|home| home.join(".local/share"))) {
            // The server's user can reach nothing beneath root's home.
            Some(_) if home.as_deref() == Some(Path::new("/root")) => "/var/lib/tollgate/dev".into(),
            Some(data) => data.join("tollgate"),
            None => "/var/lib/tollgate/dev".into(),
        }
    })
}

/// A Tollgate that is up.
pub(crate) struct Local {
    pub access: Access,
    /// Nothing real is generated.
    pub simulated: bool,
    parts: Parts,
}

impl Local {
    /// Starts everything. `data_dir`: `None` for data that nobody keeps. `listen`: an address that was asked for, and
    /// that it must be. `None`: it was told to end before it was up, and has left nothing behind.
    pub(crate) async fn start(
        config: Config,
        data_dir: Option<&Path>,
        listen: Option<SocketAddr>,
        shutdown: &CancellationToken,
    ) -> Result<Option<Self>, Failure> {
        let metrics = telemetry::start_metrics()?;
        let listener = bind(listen, config.listen).await?;
        // Not to be interrupted: what is half made would stay.
        let (server, database_url) = database(&config, data_dir).await?;
        let parts = Parts { server, ..Parts::default() };
        let up = parts.bring_up(config, data_dir, database_url, listener, metrics);
        let failure = match Box::pin(shutdown.run_until_cancelled(up)).await {
            Some(Ok((access, simulated))) => return Ok(Some(Self { access, simulated, parts })),
            Some(Err(failure)) => Some(failure),
            None => None,
        };
        let stopped = parts.stop().await;
        failure.map_or(stopped.map(|()| None), Err)
    }

    /// Returns when a part has failed.
    pub(crate) async fn failure(&self) -> Failure {
        self.parts.failed.cancelled().await;
        Failure::new("a part has failed; the message above says which")
    }

    /// Stops everything in order: requests and runs, provider, database.
    pub(crate) async fn stop(self) -> Result<(), Failure> {
        self.parts.stop().await
    }
}

/// What runs, and what is to be stopped.
#[derive(Default)]
struct Parts {
    /// API and worker.
    roles: TaskTracker,
    stop_roles: CancellationToken,
    /// One of the roles has.
    failed: CancellationToken,
    provider: TaskTracker,
    stop_provider: CancellationToken,
    server: Option<Server>,
}

impl Parts {
    async fn bring_up(
        &self,
        mut config: Config,
        data_dir: Option<&Path>,
        database_url: String,
        listener: TcpListener,
        metrics: PrometheusHandle,
    ) -> Result<(Access, bool), Failure> {
        migrate(&database_url).await?;
        config.database_url = Some(secret(database_url.clone()));
        if self.server.is_some() {
            // Whoever has set it means another database.
            config.operator_database_url = None;
        }
        config.shutdown_grace = config.shutdown_grace.min(GRACE);
        let simulated = config.uses_simulator();
        if simulated {
            let sim = simulator().await?;
            config.openai_base_url =
                Some(sim.base_url().parse().map_err(|_| Failure::new("no simulator URL"))?);
            config.openai_api_key = Some(secret("simulated"));
            self.provider.spawn(sim.run(self.stop_provider.clone()));
        }
        let url = format!("http://{}", listener.local_addr()?);
        let access = access(database_url, data_dir, url).await?;
        self.spawn("API", {
            let (config, stop) = (config.clone(), self.stop_roles.clone());
            async move { node::serve_api(&config, Mode::Dev, listener, metrics, stop, || Ok(())).await }
        });
        self.spawn("worker", {
            let stop = self.stop_roles.clone();
            async move { node::run_worker(&config, Mode::Dev, None, stop, || Ok(())).await }
        });
        self.wait_until_ready(&access).await?;
        Ok((access, simulated))
    }

    /// If one role ends in an error, all of it does.
    fn spawn(&self, part: &'static str, work: impl Future<Output = Result<(), Failure>> + Send + 'static) {
        let failed = self.failed.clone();
        self.roles.spawn(async move {
            if let Err(failure) = work.await {
                failure.report();
                tracing::error!(part, "failed");
                failed.cancel();
            }
        });
    }

    /// Ready is what the API says over the network, to this key, not what we believe. Nobody misses what it takes of the
    /// key's limit: it asks for the events of no job.
    async fn wait_until_ready(&self, access: &Access) -> Result<(), Failure> {
        let client = tollgate_outbound::TollgateClient::new(&access.url, secret(access.api_key.clone()))?;
        let ready = async {
            while !matches!(
                client.events(Uuid::nil(), None).await,
                Err(ApiError::Refused { status: 404, .. })
            ) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            ready = tokio::time::timeout(Duration::from_secs(10), ready) => {
                ready.map_err(|_| Failure::new("the API did not become ready within 10 s; the log above says why"))
            }
            () = self.failed.cancelled() => Err(Failure::new("could not start; the message above says why")),
        }
    }

    /// The provider goes after the runs that wait for it, the database after all.
    async fn stop(self) -> Result<(), Failure> {
        for (parts, stop) in [(self.roles, self.stop_roles), (self.provider, self.stop_provider)] {
            stop.cancel();
            parts.close();
            parts.wait().await;
        }
        match self.server {
            Some(server) => blocking(move || server.stop()).await,
            None => Ok(()),
        }
    }
}

/// The address that was asked for, or the usual one, or, where that is taken, any.
async fn bind(asked: Option<SocketAddr>, usual: SocketAddr) -> Result<TcpListener, Failure> {
    if let Some(address) = asked {
        return listen(address).await;
    }
    match TcpListener::bind(usual).await {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            tracing::warn!("{usual} is in use; taking another port");
            listen(SocketAddr::new(usual.ip(), 0)).await
        }
        other => other.map_err(|error| cannot_listen(usual, &error)),
    }
}

/// The configured database, or a private one.
async fn database(config: &Config, data_dir: Option<&Path>) -> Result<(Option<Server>, String), Failure> {
    if let Some(url) = &config.database_url {
        // Otherwise it is made, with the mode it needs, for PostgreSQL.
        if let Some(data_dir) = data_dir {
            std::fs::create_dir_all(data_dir).map_err(|error| {
                Failure::new(format!(
                    "cannot create the data directory {}: {error}; choose another with --data-dir",
                    data_dir.display()
                ))
            })?;
        }
        return Ok((None, url.expose_secret().to_owned()));
    }
    let options = data_dir.map(Options::new);
    let start = move || options.map_or_else(|| Server::start_scratch(Vec::new()), Server::start);
    let server = blocking(start).await?;
    let url = server.url("postgres");
    Ok((Some(server), url))
}

/// The database crate blocks, and so keeps its thread from serving others.
async fn blocking<T: Send + 'static, E: Into<Failure> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::new(error.to_string()))?.map_err(Into::into)
}

/// A provider that takes about as long as a quick real one.
async fn simulator() -> Result<Sim, Failure> {
    let behaviour = Behaviour { latency_median_ms: 400, latency_p99_ms: Some(1500), ..Behaviour::default() };
    Ok(Sim::bind(([127, 0, 0, 1], 0).into(), behaviour).await?)
}

/// The account and key of the last start, if the key still works; else new ones.
async fn access(database_url: String, data_dir: Option<&Path>, url: String) -> Result<Access, Failure> {
    let (account_id, api_key) = match data_dir.and_then(Access::read) {
        Some(last) if works(&database_url, &last.api_key).await? => (last.account_id, last.api_key),
        _ => {
            let db = Database::connect(&database_url, Role::Operator, 1, false).await?;
            let account_id = accounts::create(&db, "dev", CREDITS).await?;
            let (_, key) = keys::create(&db, account_id, "tollgate dev", &Scope::ALL).await?;
            db.close().await;
            (account_id, key.expose().to_owned())
        }
    };
    let access = Access { url, database_url, account_id, api_key };
    if let Some(data_dir) = data_dir {
        access.write(data_dir)?;
    }
    Ok(access)
}

async fn works(database_url: &str, key: &str) -> Result<bool, Failure> {
    let db = Database::connect(database_url, Role::Api, 1, false).await?;
    let caller = Authenticator::new()?.authenticate(&db, key, None).await?;
    db.close().await;
    Ok(caller.is_some())
}
