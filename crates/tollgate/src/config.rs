//! Configuration: one typed struct, one documented table.
//!
//! Every setting has one name: `UPPER_CASE` in the environment, the same in lower case in `tollgate.toml`
//! (`TOLLGATE_CONFIG`). The environment wins over the file, the file over the default. Nothing else in the program
//! reads the environment.

mod images;
mod values;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use config::{File, FileFormat};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tollgate_domain::KeyHashing;
use tollgate_http::{AllowedOrigins, TrustedProxies};
use tollgate_model::admission::Limits;
use tollgate_model::guard::class::{CallKind, GuardConfig};
use tollgate_model::job_type::{JobType, JobTypes};
use tollgate_model::pricing::{Price, PriceList};
use tollgate_model::queue::{QueueName, QueuePolicy, TimesToLive};
use tollgate_model::retry::RetrySchedule;
use tollgate_model::submission::SubmissionRules;

use self::images::ImageStorage;
use self::values::{Setting, duration, durations, parsed, parsed_or_empty, retention, set, unset};

/// What the program is told. Field names are the settings' names in lower case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub database_url: Option<SecretString>,
    pub database_max_connections: u32,
    pub operator_database_url: Option<SecretString>,
    pub tollgate_admin_token: Option<SecretString>,
    pub openai_api_key: Option<SecretString>,
    pub openai_base_url: Option<url::Url>,
    pub default_model: String,
    pub default_image_model: String,
    pub request_timeout_ms: u64,
    pub image_timeout_ms: u64,
    #[serde(deserialize_with = "duration")]
    pub provider_connect_timeout: Duration,
    pub provider_max_response_bytes: usize,
    pub q_gen_create_concurrency: usize,
    pub q_gen_image_concurrency: usize,
    pub gen_breaker_enabled: bool,
    #[serde(deserialize_with = "duration")]
    pub generation_job_ttl: Duration,
    #[serde(deserialize_with = "duration")]
    pub webhook_ttl: Duration,
    #[serde(deserialize_with = "duration")]
    pub billing_ttl: Duration,
    #[serde(deserialize_with = "durations")]
    pub generation_retry_delays: Vec<Duration>,
    #[serde(deserialize_with = "duration")]
    pub visibility_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub queue_poll_interval: Duration,
    #[serde(deserialize_with = "duration")]
    pub shutdown_grace: Duration,
    pub listen: SocketAddr,
    pub worker_listen: SocketAddr,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    #[serde(deserialize_with = "parsed_or_empty")]
    pub trusted_proxies: TrustedProxies,
    #[serde(deserialize_with = "parsed_or_empty")]
    pub cors_allowed_origins: AllowedOrigins,
    #[serde(deserialize_with = "parsed")]
    pub api_key_hash_algo: KeyHashing,
    #[serde(deserialize_with = "duration")]
    pub http_timeout: Duration,
    pub max_body_bytes: usize,
    pub max_event_streams: usize,
    pub max_queued_per_account: u32,
    pub max_queued: u32,
    pub expected_completion_tokens: u32,
    pub public_status: Option<bool>,
    #[serde(deserialize_with = "retention")]
    pub job_retention: Option<Duration>,
    pub log_level: Option<String>,
    pub log_format: LogFormat,
    pub image_storage: ImageStorage,
    pub image_max_bytes: usize,
    pub aws_endpoint_url: Option<url::Url>,
    pub aws_region: String,
    pub aws_access_key_id: Option<String>,
    pub aws_secret_access_key: Option<SecretString>,
    pub aws_session_token: Option<SecretString>,
    pub public_url: Option<url::Url>,
    pub tollgate_data_dir: Option<PathBuf>,
    pub tollgate_url: Option<String>,
    pub tollgate_api_key: Option<SecretString>,
    #[serde(default)]
    pub job_types: BTreeMap<String, JobType>,
    #[serde(default)]
    pub guard: GuardConfig,
    /// `None`: none are configured, and the built-in ones hold.
    #[serde(default)]
    pub prices: Option<Vec<Price>>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// JSON for `api` and `worker`, text for the rest.
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Every setting, but for `job_types`, `guard` and `prices`, which are tables of their own. `docs/configuration.md` is made of this.
pub(crate) const SETTINGS: &[Setting] = &[
    unset(
        "DATABASE_URL",
        "PostgreSQL, 15 to 18: `postgres://user:password@host:port/database`. Required by `migrate`, `api` and `worker`; `dev` and `demo` start a private PostgreSQL without it.",
    ),
    set(
        "DATABASE_MAX_CONNECTIONS",
        "10",
        "Connections that each of a process's roles (API, worker) may open.",
    ),
    unset(
        "OPERATOR_DATABASE_URL",
        "The operators' login, for their commands and for the API's routes under `/internal`. Unset: `DATABASE_URL`.",
    ),
    unset(
        "TOLLGATE_ADMIN_TOKEN",
        "What operators send as `Authorization: Bearer …` to the API's routes under `/internal`; at least 16 characters. Unset: those routes refuse everybody.",
    ),
    unset(
        "OPENAI_API_KEY",
        "The provider's key. Without it generation jobs fail at once with `SERVER_ERROR`. A server that needs none takes any value.",
    ),
    unset(
        "OPENAI_BASE_URL",
        "The provider's base URL, `/v1` included. Unset: the vendor's, `https://api.openai.com/v1`. `dev` and `demo` use the simulated provider if neither this nor the key is set.",
    ),
    set("DEFAULT_MODEL", "gpt-4o-mini", "The model of a job whose submission and job type name none."),
    set("DEFAULT_IMAGE_MODEL", "gpt-image-1", "The same for image jobs."),
    set(
        "REQUEST_TIMEOUT_MS",
        "30000",
        "Total deadline of one call to the provider, in milliseconds, where a job asks for none.",
    ),
    set(
        "IMAGE_TIMEOUT_MS",
        "600000",
        "The same for image jobs; fetching an image that the provider's reply points at included. The guard's own timeout, 45 to 90 s, is mostly shorter.",
    ),
    set("PROVIDER_CONNECT_TIMEOUT", "5s", "Deadline for connecting to the provider, within the total one."),
    set(
        "PROVIDER_MAX_RESPONSE_BYTES",
        "8388608",
        "The longest reply of the provider that is read, but for images.",
    ),
    set(
        "Q_GEN_CREATE_CONCURRENCY",
        "5",
        "Generation jobs that one worker process runs at a time, but for image jobs.",
    ),
    set(
        "Q_GEN_IMAGE_CONCURRENCY",
        "5",
        "Image jobs that one worker process runs at a time, beside the others.",
    ),
    set(
        "GEN_BREAKER_ENABLED",
        "true",
        "`false`: the circuits' decisions do not hold; they are still recorded. A change in `tollgate.toml` takes effect within seconds, without a restart, and so does `tollgate guard breaker off`, for all processes.",
    ),
    set(
        "GENERATION_JOB_TTL",
        "30m",
        "From a job's scheduled time until it fails as `EXPIRED` if no worker has finished it.",
    ),
    set(
        "WEBHOOK_TTL",
        "2h",
        "The same for a task of `webhook.delivery`. Until webhooks are delivered: that of a redriven one.",
    ),
    set(
        "BILLING_TTL",
        "2h",
        "The same for a task of `billing.credit_grant`. Until credits can be bought: that of a redriven one.",
    ),
    set(
        "GENERATION_RETRY_DELAYS",
        "5s,15s,45s,2m,5m",
        "Upper bounds of the delays between a job's attempts; each delay is drawn from 0 to its bound. The last one repeats.",
    ),
    set(
        "VISIBILITY_TIMEOUT",
        "30s",
        "A worker that is silent for this long is given up, and its jobs run again.",
    ),
    set(
        "QUEUE_POLL_INTERVAL",
        "1s",
        "How often an idle worker looks for work without having been told of any.",
    ),
    set(
        "SHUTDOWN_GRACE",
        "25s",
        "After SIGTERM: how long requests and running jobs may still finish. What is left is handed back, no attempt counted. `dev` waits 2 s at most.",
    ),
    set(
        "LISTEN",
        "127.0.0.1:8787",
        "Where `api` and `dev` listen. `dev` takes another port if this one is in use and was not asked for.",
    ),
    set("WORKER_LISTEN", "127.0.0.1:8788", "Where `worker` serves `/healthz`, `/readyz` and `/metrics`."),
    unset(
        "TLS_CERT",
        "`api` serves HTTPS with this certificate and the chain behind it, a PEM file; it goes with `TLS_KEY`. Unset: it serves plain HTTP, and refuses what comes neither from this machine nor through one of `TRUSTED_PROXIES` over HTTPS.",
    ),
    unset("TLS_KEY", "The certificate's key, a PEM file."),
    unset(
        "TRUSTED_PROXIES",
        "Addresses or networks, such as `10.0.0.0/8,127.0.0.1`, of proxies where TLS ends: their `X-Forwarded-Proto` and `X-Forwarded-For` are believed, and nobody else's.",
    ),
    unset(
        "CORS_ALLOWED_ORIGINS",
        "Origins whose pages may ask from a browser, such as `https://app.example.com`. Unset: none.",
    ),
    set(
        "API_KEY_HASH_ALGO",
        "argon2id",
        "How new API keys are hashed: `argon2id`, or with its memory in KiB, passes and lanes: `argon2id:m=19456,t=2,p=1`, which is the same. Keys hashed otherwise go on working.",
    ),
    set("HTTP_TIMEOUT", "15s", "Deadline for answering one API request."),
    set("MAX_BODY_BYTES", "1048576", "The largest request body."),
    set("MAX_EVENT_STREAMS", "256", "Live event streams that one API process serves at a time."),
    set(
        "MAX_QUEUED_PER_ACCOUNT",
        "1000000",
        "Jobs of one account that may wait, scheduled ones included; a submission beyond it is answered `429 queue_full`. Submissions under way at the same time may exceed it by the number of database connections.",
    ),
    set(
        "MAX_QUEUED",
        "5000000",
        "The same for all accounts together. Each API process counts what it lets in, and looks at the others' at least once a second (near the limit, 20 times).",
    ),
    set(
        "EXPECTED_COMPLETION_TOKENS",
        "500",
        "What a text job that names no `max_tokens` is expected to generate: by it, and by its messages, it is estimated how many credits are held until the job has ended.",
    ),
    set(
        "JOB_RETENTION",
        "30d",
        "Finished jobs older than this are removed, with their results, events and dead letters; `0` or `off`: never. Counts are of all time, and stay.",
    ),
    unset(
        "PUBLIC_STATUS",
        "`true`: `/api/ai/status` shows the platform's totals to those without a key. Unset: only in `dev` and `demo`.",
    ),
    unset(
        "LOG_LEVEL",
        "`error`, `warn`, `info`, `debug` or `trace`, or a filter such as `info,tollgate_worker=debug`. Unset: `info`, and `warn` for `demo`, whose progress it would bury.",
    ),
    set(
        "LOG_FORMAT",
        "auto",
        "`json`, `text`, or `auto`: JSON for `api` and `worker`, text for the rest. Logs go to stderr.",
    ),
    set(
        "IMAGE_STORAGE",
        "database",
        "Where images are kept: `database`, `directory:/absolute/path` (the same for API and workers), or `s3://bucket/prefix`. What is in the database is served from there whatever is set; what was kept elsewhere is found only while that is set.",
    ),
    set("IMAGE_MAX_BYTES", "10485760", "The largest image; a larger one fails its job."),
    unset("AWS_ENDPOINT_URL", "The S3 service, for `s3://`. Unset: Amazon's."),
    set("AWS_REGION", "us-east-1", "The bucket's region."),
    unset(
        "AWS_ACCESS_KEY_ID",
        "The access key for the bucket: it must be allowed to get, put and delete objects.",
    ),
    unset("AWS_SECRET_ACCESS_KEY", "The access key's secret."),
    unset("AWS_SESSION_TOKEN", "The token of temporary credentials."),
    unset(
        "PUBLIC_URL",
        "Where clients reach the API, such as `https://ai.example.com`: images are then shown by whole URLs. Unset: by paths.",
    ),
    unset(
        "TOLLGATE_DATA_DIR",
        "Where `dev` keeps its PostgreSQL and its key. Unset: `~/.local/share/tollgate`, or `/var/lib/tollgate/dev` for root.",
    ),
    unset("TOLLGATE_URL", "The Tollgate that `tollgate job` talks to. Unset: the running `tollgate dev`."),
    unset("TOLLGATE_API_KEY", "The key that `tollgate job` uses. Unset: that of the running `tollgate dev`."),
];

/// What nobody guesses by trying.
const SHORTEST_TOKEN: usize = 16;

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("configuration: {0}")]
pub(crate) struct ConfigError(String);

impl Config {
    /// The file, whether it is there or not.
    pub(crate) fn path() -> PathBuf {
        let named = std::env::var_os("TOLLGATE_CONFIG").filter(|path| !path.is_empty());
        named.map_or("tollgate.toml".into(), PathBuf::from)
    }

    /// Reads the file, if there is one, and the environment.
    pub(crate) fn load() -> Result<Self, ConfigError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let file = match variable("TOLLGATE_CONFIG") {
            Some(path) => Some(std::fs::read_to_string(&path).map_err(|error| {
                ConfigError(format!("TOLLGATE_CONFIG names `{path}`, which cannot be read: {error}"))
            })?),
            None => std::fs::read_to_string("tollgate.toml").ok(),
        };
        Self::read(file.as_deref(), variable)
    }

    /// Reads a file's text and an environment.
    pub(crate) fn read(
        file: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let problem = |error: config::ConfigError| ConfigError(error.to_string());
        let mut builder = config::Config::builder();
        for setting in SETTINGS {
            builder = builder.set_default(setting.name.to_lowercase(), setting.default).map_err(problem)?;
        }
        if let Some(text) = file {
            builder = builder.add_source(File::from_str(text, FileFormat::Toml));
        }
        for setting in SETTINGS {
            builder = builder
                .set_override_option(setting.name.to_lowercase(), variable(setting.name))
                .map_err(|error| ConfigError(format!("{}: {error}", setting.name)))?;
        }
        let mut config: Self = builder.build().and_then(config::Config::try_deserialize).map_err(problem)?;
        if let Some(text) = variable("JOB_TYPES") {
            config.job_types =
                serde_json::from_str(&text).map_err(|error| ConfigError(format!("JOB_TYPES: {error}")))?;
        }
        if let Some(text) = variable("GUARD") {
            config.guard =
                serde_json::from_str(&text).map_err(|error| ConfigError(format!("GUARD: {error}")))?;
        }
        if let Some(text) = variable("PRICES") {
            config.prices =
                serde_json::from_str(&text).map_err(|error| ConfigError(format!("PRICES: {error}")))?;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (name, value) in [
            ("database_max_connections", self.database_max_connections as usize),
            ("q_gen_create_concurrency", self.q_gen_create_concurrency),
            ("q_gen_image_concurrency", self.q_gen_image_concurrency),
            ("max_body_bytes", self.max_body_bytes),
            ("provider_max_response_bytes", self.provider_max_response_bytes),
            ("image_max_bytes", self.image_max_bytes),
        ] {
            if value == 0 {
                return Err(ConfigError(format!("`{name}` must be at least 1")));
            }
        }
        for (name, url) in
            [("database_url", &self.database_url), ("operator_database_url", &self.operator_database_url)]
        {
            // Not to be quoted: it holds a password.
            let url = url.as_ref().map(|url| url::Url::parse(url.expose_secret()).ok());
            if url
                .is_some_and(|url| url.is_none_or(|url| !["postgres", "postgresql"].contains(&url.scheme())))
            {
                return Err(ConfigError(format!(
                    "`{name}` is not a PostgreSQL URL: postgres://user:password@host:port/database"
                )));
            }
        }
        if let Some(token) = &self.tollgate_admin_token {
            let token = token.expose_secret();
            if token.len() < SHORTEST_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(ConfigError(format!(
                    "`tollgate_admin_token` must have at least {SHORTEST_TOKEN} characters, all of them printable \
                     ASCII and no spaces; `openssl rand -hex 32` makes a good one"
                )));
            }
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(ConfigError("`tls_cert` and `tls_key` go together: set both or neither".into()));
        }
        if self.visibility_timeout < Duration::from_millis(600) {
            return Err(ConfigError("`visibility_timeout` must be at least 600ms".into()));
        }
        for (name, time) in [
            ("queue_poll_interval", self.queue_poll_interval),
            ("generation_job_ttl", self.generation_job_ttl),
            ("webhook_ttl", self.webhook_ttl),
            ("billing_ttl", self.billing_ttl),
        ] {
            if time.is_zero() {
                return Err(ConfigError(format!("`{name}` must not be 0")));
            }
        }
        for (name, timeout) in
            [("request_timeout_ms", self.request_timeout_ms), ("image_timeout_ms", self.image_timeout_ms)]
        {
            if !(100..=600_000).contains(&timeout) {
                return Err(ConfigError(format!("`{name}` must be between 100 and 600000")));
            }
        }
        for price in self.prices.iter().flatten() {
            price.check().map_err(|error| ConfigError(error.to_string()))?;
        }
        self.check_images()?;
        self.submission_rules().map(drop)
    }

    /// Whether `dev` and `demo` make answers up.
    pub(crate) fn uses_simulator(&self) -> bool {
        self.openai_api_key.is_none() && self.openai_base_url.is_none()
    }

    /// What submissions are measured against.
    pub(crate) fn submission_rules(&self) -> Result<SubmissionRules, ConfigError> {
        let job_types = JobTypes::new(
            self.default_model.clone(),
            self.default_image_model.clone(),
            self.job_types.clone(),
        );
        Ok(SubmissionRules {
            job_types: job_types.map_err(|error| ConfigError(error.to_string()))?,
            default_timeout: Duration::from_millis(self.request_timeout_ms),
            image_timeout: Duration::from_millis(self.image_timeout_ms),
        })
    }

    /// The prices of the configuration, or the built-in ones.
    pub(crate) fn prices(&self) -> Vec<Price> {
        self.prices.clone().unwrap_or_else(PriceList::built_in)
    }

    /// How much may wait.
    pub(crate) fn admission_limits(&self) -> Limits {
        Limits { per_account: self.max_queued_per_account, overall: self.max_queued }
    }

    /// How long the tasks of each queue live.
    pub(crate) fn times_to_live(&self) -> TimesToLive {
        TimesToLive {
            generation: self.generation_job_ttl,
            webhook: self.webhook_ttl,
            billing: self.billing_ttl,
        }
    }

    /// How a line of generation jobs treats its tasks.
    pub(crate) fn generation_policy(&self, kind: CallKind) -> QueuePolicy {
        QueuePolicy {
            name: QueueName::of_kind(kind),
            concurrency: match kind {
                CallKind::Text => self.q_gen_create_concurrency,
                CallKind::Image => self.q_gen_image_concurrency,
            },
            ttl: self.generation_job_ttl,
            retry: RetrySchedule::new(self.generation_retry_delays.clone()).unwrap_or_default(),
        }
    }
}

/// The settings, as `tollgate --help` shows them.
pub(crate) fn help() -> String {
    let mut text = String::from("Settings (environment, or in lower case in tollgate.toml):\n");
    for Setting { name, default, doc } in SETTINGS {
        let default = default.map_or_else(String::new, |value| format!(" [{value}]"));
        text += &format!("  {name}{default}\n      {doc}\n");
    }
    text
}

#[cfg(test)]
mod tests;
