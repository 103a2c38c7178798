//! The composition root: here the configuration becomes an API and a worker, and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tollgate_domain::auth::Authenticator;
use tollgate_domain::submit::Entrance;
use tollgate_domain::{AdminToken, Database, Health, Role, admission, waker};
use tollgate_http::{Api, Operators};
use tollgate_model::queue::QueueName;
use tollgate_outbound::{OpenAi, OpenAiConfig, Provider};
use tollgate_worker::{Generation, Worker, WorkerConfig, upkeep};
use url::Url;

use crate::config::Config;
use crate::output::Failure;

/// The vendor's API.
const OPENAI: &str = "https://api.openai.com/v1";

/// Operators are few, and must not take connections away from tenants.
const OPERATOR_CONNECTIONS: u32 = 2;

/// How strictly the database login is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `tollgate dev`: a superuser will do, narrowed to each role.
    Dev,
    /// The login must not be able to do more than its role.
    Production,
}

impl Config {
    /// The database's URL, or the advice to set it.
    pub(crate) fn required_database_url(&self) -> Result<&str, Failure> {
        self.database_url.as_ref().map(ExposeSecret::expose_secret).ok_or_else(|| {
            Failure::misuse(
                "DATABASE_URL is not set. Set it, or let `tollgate dev` start a private PostgreSQL",
            )
        })
    }
}

/// The configured provider.
pub(crate) fn provider(config: &Config) -> Result<Arc<dyn Provider>, Failure> {
    let base_url = match &config.openai_base_url {
        Some(url) => url.clone(),
        None => Url::parse(OPENAI).map_err(|error| Failure::new(error.to_string()))?,
    };
    let api_key = config.openai_api_key.clone();
    if api_key.is_none() {
        tracing::warn!("OPENAI_API_KEY is not set: generation jobs will fail with SERVER_ERROR");
    }
    let host = base_url.host_str().unwrap_or_default().to_owned();
    let provider = OpenAi::new(OpenAiConfig {
        base_url,
        api_key,
        connect_timeout: config.provider_connect_timeout,
        max_response_bytes: config.provider_max_response_bytes,
    })?;
    // The host alone: a URL may hold secrets.
    tracing::info!(%host, "provider");
    Ok(Arc::new(provider))
}

/// Serves the API until `shutdown`; `ready` is called when it can.
pub(crate) async fn serve_api(
    config: &Config,
    mode: Mode,
    listener: TcpListener,
    metrics: PrometheusHandle,
    shutdown: CancellationToken,
    ready: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let db = connect(config, Role::Api, mode).await?;
    let (waker, hints) = waker(db.clone(), QueueName::GenerationCreate);
    let (admission, looks) = admission(db.clone(), config.admission_limits());
    let entrance =
        Entrance { rules: config.submission_rules()?, ttl: config.generation_job_ttl, admission, waker };
    let api = Api {
        db: db.clone(),
        auth: Authenticator::new()?,
        entrance: Arc::new(entrance),
        operators: operators(config, mode).await?,
        public_status: config.public_status.unwrap_or(mode == Mode::Dev),
        max_body_bytes: config.max_body_bytes,
        request_timeout: config.http_timeout,
        max_event_streams: config.max_event_streams,
        metrics,
        shutdown: shutdown.clone(),
    };
    let router = tollgate_http::api_router(api);
    let mut beside = JoinSet::new();
    beside.spawn(hints);
    beside.spawn(looks);
    beside.spawn(db.clone().watch());
    ready()?;
    tollgate_http::serve(listener, router, shutdown, config.shutdown_grace).await;
    beside.shutdown().await;
    db.close().await;
    Ok(())
}

/// Runs a worker until `shutdown`; `ready` is called when it has signed in. With a listener, serves its health and metrics there.
pub(crate) async fn run_worker(
    config: &Config,
    mode: Mode,
    operations: Option<(TcpListener, PrometheusHandle)>,
    shutdown: CancellationToken,
    ready: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let db = connect(config, Role::Worker, mode).await?;
    let settings = WorkerConfig {
        name: worker_name(),
        policy: config.generation_policy(),
        visibility_timeout: config.visibility_timeout,
        poll_interval: config.queue_poll_interval,
        drain: config.shutdown_grace,
    };
    let worker = Worker::start(db.clone(), Generation::new(provider(config)?), settings).await?;
    tracing::info!(
        queue = QueueName::GenerationCreate.as_str(),
        concurrency = config.q_gen_create_concurrency,
        "worker started"
    );
    let mut beside = JoinSet::new();
    beside.spawn(upkeep(db.clone(), config.job_retention));
    ready()?;
    match operations {
        Some((listener, metrics)) => {
            // Health is served until the worker has drained, not only until it was asked to.
            let drained = CancellationToken::new();
            let router = tollgate_http::ops_router(db.clone(), metrics);
            let serve = tollgate_http::serve(listener, router, drained.clone(), Duration::from_secs(1));
            let work = async {
                worker.run(shutdown).await;
                drained.cancel();
            };
            tokio::join!(work, serve);
        }
        None => worker.run(shutdown).await,
    }
    beside.shutdown().await;
    db.close().await;
    Ok(())
}

/// What the API serves operators with, if there is a token for them.
async fn operators(config: &Config, mode: Mode) -> Result<Option<Operators>, Failure> {
    let Some(token) = &config.tollgate_admin_token else { return Ok(None) };
    let url = match &config.operator_database_url {
        Some(url) => url.expose_secret(),
        None => config.required_database_url()?,
    };
    let db = Database::connect(url, Role::Operator, OPERATOR_CONNECTIONS, mode == Mode::Production).await;
    let db = db.map_err(|error| {
        Failure::new(format!(
            "TOLLGATE_ADMIN_TOKEN is set, so the API connects as the operator too, by OPERATOR_DATABASE_URL, or by \
             DATABASE_URL without it: {error}"
        ))
    })?;
    let token = AdminToken::new(token.expose_secret())?;
    Ok(Some(Operators { db: up_to_date(db).await?, token, ttls: config.times_to_live() }))
}

async fn connect(config: &Config, role: Role, mode: Mode) -> Result<Database, Failure> {
    let url = config.required_database_url()?;
    let db = Database::connect(url, role, config.database_max_connections, mode == Mode::Production).await?;
    up_to_date(db).await
}

/// The database, if its schema is this version's.
async fn up_to_date(db: Database) -> Result<Database, Failure> {
    match db.health().await {
        Ok(Health::Ready) => Ok(db),
        Err(error) if error.is_unavailable() => Err(error.into()),
        _ => Err(Failure::new("the database's schema is not this version's; run `tollgate migrate`")),
    }
}

/// Host and process, for people who look at queue.workers.
fn worker_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "localhost".into());
    format!("{}:{}", host.trim(), std::process::id())
}

/// A secret, where a value is not one yet.
pub(crate) fn secret(text: impl Into<String>) -> SecretString {
    SecretString::from(text.into())
}
