//! `tollgate api`

use std::net::SocketAddr;

use serde_json::json;
use tokio::net::TcpListener;

use crate::config::Config;
use crate::lifecycle::shutdown_on_signal;
use crate::node::{self, Mode};
use crate::output::{Failure, print};
use crate::telemetry;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen; LISTEN if not given.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

pub(crate) async fn run(args: Args, config: Config, json: bool) -> Result<(), Failure> {
    let shutdown = shutdown_on_signal()?;
    let listener = listen(args.listen.unwrap_or(config.listen)).await?;
    let scheme = if config.tls_cert.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", listener.local_addr()?);
    let metrics = telemetry::start_metrics()?;
    let ready = || announce(json, "API", &url);
    node::serve_api(&config, Mode::Production, listener, metrics, shutdown, ready).await
}

/// Says on stdout where a role answers, once it does.
pub(crate) fn announce(json: bool, role: &str, url: &str) -> Result<(), Failure> {
    print(json, &json!({ "event": "ready", "url": url }), || format!("{role} ready at {url}"))
}

/// Listens, or says why not.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| cannot_listen(address, &error))
}

pub(crate) fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot listen on {address}: {error}; choose another with --listen"))
}
