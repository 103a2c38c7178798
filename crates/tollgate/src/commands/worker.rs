//! `tollgate worker`

use std::net::SocketAddr;

use crate::commands::api::{announce, listen};
use crate::config::Config;
use crate::lifecycle::shutdown_on_signal;
use crate::node::{self, Mode};
use crate::output::Failure;
use crate::telemetry;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to serve /healthz, /readyz and /metrics; WORKER_LISTEN if not given.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

pub(crate) async fn run(args: Args, config: Config, json: bool) -> Result<(), Failure> {
    let shutdown = shutdown_on_signal()?;
    let listener = listen(args.listen.unwrap_or(config.worker_listen)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let operations = Some((listener, telemetry::start_metrics()?));
    let ready = || announce(json, "worker", &url);
    node::run_worker(&config, Mode::Production, operations, shutdown, ready).await
}
