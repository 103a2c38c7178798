//! The composition root: here the configuration becomes an API and a worker, and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Map;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tollgate_domain::auth::Authenticator;
use tollgate_domain::prices::Prices;
use tollgate_domain::rate_limits::RateLimits;
use tollgate_domain::submit::Entrance;
use tollgate_domain::{AdminToken, Database, Health, Role, admission, wakers};
use tollgate_http::{Api, Operators, StripeInbox, Tls, Transport};
use tollgate_model::generation::{Endpoint, GenerationRequest, Message, Role as MessageRole};
use tollgate_model::guard::class::CallKind;
use tollgate_model::guard::outcome::Fingerprint;
use tollgate_model::image::DEFAULT_SIZE;
use tollgate_model::pricing::Expectation;
use tollgate_model::queue::QueuePolicy;
use tollgate_outbound::{OpenAi, OpenAiConfig, Provider};
use tollgate_worker::{Generation, Grants, Guard, Images, Keep, Worker, WorkerConfig, upkeep};
use url::Url;
use uuid::Uuid;

use crate::config::Config;
use crate::output::Failure;

/// The vendor's API.
const OPENAI: &str = "https://api.openai.com/v1";

/// Operators are few, and must not take connections away from tenants.
const OPERATOR_CONNECTIONS: u32 = 2;

/// How strictly the database login and the way that requests come are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// `tollgate dev`: a superuser will do, narrowed to each role, and so will plain HTTP.
    Dev,
    /// The login must not be able to do more than its role, and requests must come over HTTPS.
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
        max_image_bytes: config.image_max_bytes,
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
    let (wakers, hints) = wakers(db.clone());
    let (admission, looks) = admission(db.clone(), config.admission_limits());
    let expected = Expectation { completion_tokens: config.expected_completion_tokens };
    let (prices, new_prices) =
        Prices::load(db.clone(), tollgate_outbound::OPENAI, config.prices(), expected).await?;
    let (rules, ttl) = (config.submission_rules()?, config.generation_job_ttl);
    let entrance = Entrance::new(db.clone(), rules, prices, ttl, admission, wakers);
    let mut beside = JoinSet::new();
    beside.spawn(new_prices);
    let auth = Authenticator::new()?;
    let used_keys = auth.used().clone();
    let (tls, transport) = transport(config, mode, &listener)?;
    let api = Api {
        db: db.clone(),
        auth,
        rate_limits: RateLimits::new(config.rate_limit(mode)),
        key_hashing: config.api_key_hash_algo,
        transport,
        origins: config.cors_allowed_origins.clone(),
        entrance: Arc::new(entrance),
        operators: operators(config, mode).await?,
        public_status: config.public_status.unwrap_or(mode == Mode::Dev),
        max_body_bytes: config.max_body_bytes,
        request_timeout: config.http_timeout,
        max_event_streams: config.max_event_streams,
        guard: Arc::new(config.guard.clone()),
        breaker_enabled: breaker_switch(config, &mut beside),
        images: config.image_store()?,
        public_base: config.public_base(),
        stripe: stripe_inbox(config)?,
        metrics,
        shutdown: shutdown.clone(),
    };
    let router = tollgate_http::api_router(api);
    beside.spawn(hints);
    beside.spawn(looks);
    beside.spawn(db.clone().watch());
    let served = CancellationToken::new();
    let mut last_words = JoinSet::new();
    last_words.spawn(used_keys.write_down(db.clone(), served.clone()));
    ready()?;
    tollgate_http::serve(listener, tls, router, shutdown, config.shutdown_grace).await;
    served.cancel();
    last_words.join_all().await;
    beside.shutdown().await;
    db.close().await;
    Ok(())
}

/// How the API is to be reached: in production over HTTPS alone, and in `dev` over plain HTTP.
fn transport(
    config: &Config,
    mode: Mode,
    listener: &TcpListener,
) -> Result<(Option<Tls>, Transport), Failure> {
    let proxies = config.trusted_proxies.clone();
    if mode == Mode::Dev {
        return Ok((None, Transport::new(proxies, false)));
    }
    let tls = match (&config.tls_cert, &config.tls_key) {
        (Some(certificate), Some(key)) => Some(Tls::load(certificate, key)?),
        _ => None,
    };
    // What listens to this machine alone has nobody to refuse.
    if tls.is_none() && proxies.is_empty() && !listener.local_addr()?.ip().is_loopback() {
        tracing::warn!(
            "neither TLS_CERT and TLS_KEY nor TRUSTED_PROXIES are set: requests from other machines will be refused"
        );
    }
    Ok((tls, Transport::new(proxies, true)))
}

/// Runs a worker until `shutdown`; `ready` is called when it has signed in. With a listener, serves its health and
/// metrics there.
pub(crate) async fn run_worker(
    config: &Config,
    mode: Mode,
    operations: Option<(TcpListener, PrometheusHandle)>,
    shutdown: CancellationToken,
    ready: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let db = connect(config, Role::Worker, mode).await?;
    let mut beside = JoinSet::new();
    let enabled = breaker_switch(config, &mut beside);
    let images = Images::new(config.image_store()?);
    let provider = provider(config)?;
    let drained = CancellationToken::new();
    let mut lines = JoinSet::new();
    let mut guards = JoinSet::new();
    for kind in [CallKind::Text, CallKind::Image] {
        let policy = config.generation_policy(kind);
        let (queue, concurrency) = (policy.name, policy.concurrency);
        let guard = guard(config, kind, &db, enabled.clone());
        let work =
            Generation::new(queue, provider.clone(), images.clone(), guard.clone(), probe(config, kind));
        let worker = Worker::start(db.clone(), work, worker_config(config, policy)).await?;
        guards.spawn(guard.watch(drained.clone()));
        lines.spawn(worker.run(shutdown.clone()));
        tracing::info!(queue = queue.as_str(), concurrency, "worker started");
    }
    lines.spawn(billing_worker(config, &db).await?.run(shutdown.clone()));
    let keep = Keep { jobs: config.job_retention, stripe_events: config.stripe_event_retention };
    beside.spawn(upkeep(db.clone(), keep, images, config.guard.clone(), enabled));
    ready()?;
    let work = async {
        lines.join_all().await;
        // The guards have the last word: what leave nobody used goes back.
        drained.cancel();
        guards.join_all().await;
    };
    match operations {
        Some((listener, metrics)) => {
            // Health is served until the worker has drained, not only until it was asked to.
            let router = tollgate_http::ops_router(db.clone(), metrics);
            let serve = tollgate_http::serve(listener, None, router, drained.clone(), Duration::from_secs(1));
            tokio::join!(work, serve);
        }
        None => work.await,
    }
    beside.shutdown().await;
    db.close().await;
    Ok(())
}

/// The worker that enters Stripe's events into the accounts' books.
async fn billing_worker(config: &Config, db: &Database) -> Result<Worker<Grants>, Failure> {
    let policy = config.billing_policy();
    tracing::info!(queue = policy.name.as_str(), concurrency = policy.concurrency, "worker started");
    let work = Grants::new(config.stripe.credits_per_unit.clone());
    Ok(Worker::start(db.clone(), work, worker_config(config, policy)).await?)
}

fn worker_config(config: &Config, policy: QueuePolicy) -> WorkerConfig {
    WorkerConfig {
        name: worker_name(),
        policy,
        visibility_timeout: config.visibility_timeout,
        poll_interval: config.queue_poll_interval,
        drain: config.shutdown_grace,
    }
}

/// What Stripe's webhook needs, if there is a secret for it.
fn stripe_inbox(config: &Config) -> Result<Option<StripeInbox>, Failure> {
    let Some(secrets) = config.stripe_secrets()? else {
        tracing::warn!(
            "STRIPE_WEBHOOK_SECRET is not set: Stripe's webhook, /internal/stripe/webhook, is off"
        );
        return Ok(None);
    };
    Ok(Some(StripeInbox { secrets, tolerance: config.webhook_tolerance(), ttl: config.billing_ttl }))
}

/// What stands between this process's workers and the provider, for one kind of call.
fn guard(config: &Config, kind: CallKind, db: &Database, enabled: watch::Receiver<bool>) -> Guard {
    let mut class = config.guard.of_kind(kind).clone();
    let key = config.openai_api_key.as_ref().map(ExposeSecret::expose_secret);
    if key.is_none() {
        // Every job fails at once, and no call is made: there is nothing to ration.
        class.settings.bucket_capacity = 0;
    }
    let concurrency = config.generation_policy(kind).concurrency;
    Guard::new(db.clone(), class, Fingerprint::of(key), concurrency, enabled)
}

/// What a probe asks for where no job is there to be one (SPEC G8). It is stored nowhere, by us or by the provider.
fn probe(config: &Config, kind: CallKind) -> GenerationRequest {
    let (endpoint, model, prompt, size, timeout_ms) = match kind {
        CallKind::Text => {
            let timeout_ms = config.request_timeout_ms;
            (Endpoint::ChatCompletions, &config.default_model, "Say: ok", None, timeout_ms)
        }
        CallKind::Image => {
            let (prompt, size) = ("abstract geometric shape, no text", Some(DEFAULT_SIZE.to_owned()));
            (Endpoint::Images, &config.default_image_model, prompt, size, config.image_timeout_ms)
        }
    };
    let mut params = Map::new();
    if kind == CallKind::Text {
        params.insert("store".into(), false.into());
    }
    GenerationRequest {
        request_id: Uuid::nil(),
        endpoint,
        model: model.clone(),
        messages: vec![Message { role: MessageRole::User, content: prompt.into() }],
        temperature: None,
        max_tokens: None,
        seed: None,
        size,
        params,
        // A job that asks for less than this is in a hurry.
        timeout: Duration::from_millis(timeout_ms),
    }
}

/// Whether the breaker's decisions hold: as configured, and as the configuration's file says from then on.
fn breaker_switch(config: &Config, beside: &mut JoinSet<()>) -> watch::Receiver<bool> {
    let (switch, enabled) = watch::channel(config.gen_breaker_enabled);
    beside.spawn(follow_breaker_switch(switch));
    enabled
}

/// From one look at the configuration's file to the next.
const LOOKS: Duration = Duration::from_secs(1);

async fn follow_breaker_switch(switch: watch::Sender<bool>) {
    let path = Config::path();
    let changed = || std::fs::metadata(&path).and_then(|file| file.modified()).ok();
    let mut seen = changed();
    loop {
        tokio::time::sleep(LOOKS).await;
        let now = changed();
        if now == seen {
            continue;
        }
        seen = now;
        match Config::load() {
            Ok(config) => {
                let changed = switch.send_if_modified(|enabled| {
                    std::mem::replace(enabled, config.gen_breaker_enabled) != config.gen_breaker_enabled
                });
                if changed {
                    tracing::warn!(
                        gen_breaker_enabled = config.gen_breaker_enabled,
                        "the breaker was switched"
                    );
                }
            }
            Err(error) => tracing::error!(%error, "the configuration's file has changed, and cannot be used"),
        }
    }
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
