//! Tollgate: asynchronous AI work on PostgreSQL, in one binary of many roles.
//!
//! [`cli`] lists the roles; [`node`] is the one place where the parts are put together.

mod cli;
mod commands;
mod config;
mod lifecycle;
mod local;
mod node;
mod output;
mod telemetry;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

fn main() -> ExitCode {
    let command = cli::Cli::command().after_long_help(config::help());
    let cli = cli::Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    let run = || {
        let config = config::Config::load()?;
        telemetry::start_logging(&config, &cli.command)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(cli::run(cli, config));
        // A name lookup or a password hash under way must not hold up the end.
        runtime.shutdown_timeout(std::time::Duration::from_millis(200));
        result
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
