//! Configuration: one typed struct, one documented table.
//!
//! Every setting has one name: `UPPER_CASE` in the environment, the same in lower case in `tollgate.toml`
//! (`TOLLGATE_CONFIG`). The environment wins over the file, the file over the default. Nothing else in the program
//! reads the environment.

mod images;
mod settings;
mod stripe;
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
use tollgate_model::rate_limit::{Quota, RateLimit};
use tollgate_model::retry::RetrySchedule;
use tollgate_model::stripe::rates::StripeSettings;
use tollgate_model::submission::SubmissionRules;

use self::images::ImageStorage;
pub(crate) use self::settings::{SETTINGS, Setting};
use self::values::{duration, durations, parsed, parsed_or_empty, rate_limit, retention};
use crate::node::Mode;

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
    pub q_billing_grant_concurrency: usize,
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
    #[serde(deserialize_with = "rate_limit")]
    pub rate_limit_default: Option<RateLimit>,
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
    pub stripe_webhook_secret: Option<SecretString>,
    pub webhook_tolerance_sec: u64,
    pub stripe_api_key: Option<SecretString>,
    pub stripe_api_base: url::Url,
    #[serde(deserialize_with = "retention")]
    pub stripe_event_retention: Option<Duration>,
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
    #[serde(default)]
    pub stripe: StripeSettings,
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
        if let Some(text) = variable("STRIPE") {
            config.stripe =
                serde_json::from_str(&text).map_err(|error| ConfigError(format!("STRIPE: {error}")))?;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (name, value) in [
            ("database_max_connections", self.database_max_connections as usize),
            ("q_gen_create_concurrency", self.q_gen_create_concurrency),
            ("q_gen_image_concurrency", self.q_gen_image_concurrency),
            ("q_billing_grant_concurrency", self.q_billing_grant_concurrency),
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
        self.stripe_secrets()?;
        self.check_stripe_events()?;
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

    /// The limit of keys that have none of their own.
    pub(crate) fn rate_limit(&self, mode: Mode) -> RateLimit {
        let requests = match mode {
            Mode::Production => 60,
            Mode::Dev => 1_000_000,
        };
        let usual = RateLimit::Quota(Quota { requests, window: Duration::from_mins(1) });
        self.rate_limit_default.unwrap_or(usual)
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
