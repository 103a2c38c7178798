//! The list of roles.

use clap::{Parser, Subcommand};

use crate::commands::{
    account, api, audit, demo, dev, dlq, doctor, guard, job, key, lane, migrate, price, provider_sim, queue,
    worker,
};

/// Asynchronous AI jobs on PostgreSQL: post a generation job, get 202, and it is run exactly as promised.
///
/// Every setting is an environment variable or a line of tollgate.toml; docs/configuration.md lists them.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Print results as JSON, one line each.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A whole Tollgate for development: private PostgreSQL, migrations, API and worker in one process.
    Dev(dev::Args),
    /// The main job, from nothing to finished generation jobs, with progress.
    Demo(demo::Args),
    /// Create the database roles and bring the schema up to date.
    Migrate,
    /// Serve the HTTP API.
    Api(api::Args),
    /// Run jobs.
    Worker(worker::Args),
    /// Say what is wrong with a set-up.
    Doctor,
    /// Accounts (tenants): create, list, grant credits, reconcile.
    #[command(subcommand)]
    Account(account::Command),
    /// API keys: create, list, rotate, revoke.
    #[command(subcommand)]
    Key(key::Command),
    /// The audit log: who did what.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Prices, by model and date: list, set.
    #[command(subcommand)]
    Price(price::Command),
    /// Jobs: submit, list, show, watch, cancel.
    #[command(subcommand)]
    Job(job::Command),
    /// Dead letters, which nothing tries again by itself: list, show, redrive, purge.
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// Queues as a whole: list, set.
    #[command(subcommand)]
    Queue(queue::Command),
    /// Lanes, one account's share of one queue each: show, set.
    #[command(subcommand)]
    Lane(lane::Command),
    /// What stands between the workers and the provider: status, open, close, pause, breaker.
    #[command(subcommand)]
    Guard(guard::Command),
    /// A simulated AI provider with faults on demand, for development and tests.
    ProviderSim(provider_sim::Args),
    /// Print the OpenAPI document.
    Openapi,
}

impl Command {
    /// A long-running role, whose log is read by machines.
    pub(crate) fn is_service(&self) -> bool {
        matches!(self, Self::Api(_) | Self::Worker(_))
    }
}

/// Runs the command.
pub(crate) async fn run(cli: Cli, config: crate::config::Config) -> Result<(), crate::output::Failure> {
    let json = cli.json;
    match cli.command {
        Command::Dev(args) => Box::pin(dev::run(args, config, json)).await,
        Command::Demo(args) => Box::pin(demo::run(args, config, json)).await,
        Command::Migrate => migrate::run(&config, json).await,
        Command::Api(args) => api::run(args, config, json).await,
        Command::Worker(args) => worker::run(args, config, json).await,
        Command::Doctor => doctor::run(&config, json).await,
        Command::Account(command) => account::run(command, &config, json).await,
        Command::Key(command) => key::run(command, &config, json).await,
        Command::Audit(command) => audit::run(command, &config, json).await,
        Command::Price(command) => price::run(command, &config, json).await,
        Command::Job(command) => job::run(command, &config, json).await,
        Command::Dlq(command) => dlq::run(command, &config, json).await,
        Command::Queue(command) => queue::run(command, &config, json).await,
        Command::Lane(command) => lane::run(command, &config, json).await,
        Command::Guard(command) => guard::run(command, &config, json).await,
        Command::ProviderSim(args) => provider_sim::run(args, json).await,
        Command::Openapi => crate::output::print_line(&tollgate_http::openapi_json()),
    }
}
