//! Logs and metrics.

use std::io::IsTerminal as _;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::task::TaskTracker;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::cli::Command;
use crate::config::{Config, LogFormat};
use crate::output::Failure;

/// Seconds: from a millisecond to ten minutes, enough for a queue's delay and for a provider's.
const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0];

/// Begins to log to stderr, as this command should.
pub(crate) fn start_logging(config: &Config, command: &Command) -> Result<(), Failure> {
    let usual = if matches!(command, Command::Demo(_)) { "warn" } else { "info" };
    let filter = EnvFilter::try_new(config.log_level.as_deref().unwrap_or(usual))
        .map_err(|error| Failure::misuse(format!("LOG_LEVEL is no log level or filter: {error}")))?
        // sqlx quotes what it does not understand of DATABASE_URL, secrets and all.
        .add_directive("sqlx_postgres::options::parse=off".parse().map_err(|_| Failure::new("log filter"))?)
        // A line for each connection that broke, where one for all of them is enough: ours.
        .add_directive("sqlx_core::pool::connection=off".parse().map_err(|_| Failure::new("log filter"))?)
        .add_directive("sqlx::postgres::notice=error".parse().map_err(|_| Failure::new("log filter"))?);
    let json = match config.log_format {
        LogFormat::Auto => command.is_service(),
        format => format == LogFormat::Json,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::NONE)
        .with_writer(std::io::stderr);
    let started = if json {
        builder.json().flatten_event(true).with_span_list(false).try_init()
    } else {
        builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init()
    };
    started.map_err(|error| Failure::new(format!("cannot start logging: {error}")))
}

/// Begins to count. The handle renders what `/metrics` shows.
pub(crate) fn start_metrics() -> Result<PrometheusHandle, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("cannot start metrics: {error}"));
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)
        .map_err(|error| failed(&error))?
        .install_recorder()
        .map_err(|error| failed(&error))?;
    // Histograms collect raw samples until somebody sorts them in; without a scrape that is us.
    let upkeep = handle.clone();
    TaskTracker::new().spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(5));
        loop {
            tick.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}
