//! `tollgate dev`

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::config::Config;
use crate::lifecycle::shutdown_on_signal;
use crate::local::{Access, Local, data_dir};
use crate::output::{Failure, print_line, program};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the API listens; LISTEN if not given. Port 0 takes any free one.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Where PostgreSQL and the key are kept, so that a restart finds everything again; TOLLGATE_DATA_DIR if not
    /// given, or else ~/.local/share/tollgate.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Serialize)]
struct Ready<'a> {
    event: &'static str,
    #[serde(flatten)]
    access: &'a Access,
}

pub(crate) async fn run(args: Args, config: Config, json: bool) -> Result<(), Failure> {
    let shutdown = shutdown_on_signal()?;
    let directory = data_dir(&config, args.data_dir);
    let is_usual = directory == data_dir(&config, None);
    let started = Box::pin(Local::start(config, Some(&directory), args.listen, &shutdown)).await?;
    let Some(local) = started else { return Ok(()) };
    warn_if_simulated(&local);
    if json {
        let ready = Ready { event: "ready", access: &local.access };
        print_line(&serde_json::to_string(&ready).map_err(|error| Failure::new(error.to_string()))?)?;
    } else {
        print_line(&welcome(&local.access, (!is_usual).then_some(&directory)))?;
    }
    let failure = tokio::select! {
        () = shutdown.cancelled() => None,
        failure = local.failure() => Some(failure),
    };
    eprintln!("stopping …");
    local.stop().await?;
    failure.map_or(Ok(()), Err)
}

/// So that nobody takes an echo for an answer.
pub(crate) fn warn_if_simulated(local: &Local) {
    if local.simulated {
        eprintln!(
            "\n  *** SIMULATED PROVIDER: no model is asked, answers are made up. ***\n  \
             Set OPENAI_API_KEY (and OPENAI_BASE_URL for another vendor or a local model) for real ones.\n"
        );
    }
}

/// `directory`: where the other commands would not look by themselves.
fn welcome(access: &Access, directory: Option<&PathBuf>) -> String {
    let Access { url, database_url, account_id, api_key } = access;
    let directory = directory.map(|directory| std::path::absolute(directory).unwrap_or(directory.clone()));
    let setting =
        directory.map_or(String::new(), |directory| format!("TOLLGATE_DATA_DIR={} ", directory.display()));
    let tollgate = program();
    format!(
        "Tollgate is ready at {url}\n\
         \n  account   {account_id}\
         \n  API key   {api_key}\
         \n  database  {database_url}\n\
         \nTry:\n\
         \n  curl {url}/v1/jobs/generations -H 'Authorization: Bearer {api_key}' \\\
         \n       -H 'Content-Type: application/json' -d '{{\"prompt\": \"What is a tollgate?\"}}'\
         \n  {setting}{tollgate} job submit --prompt 'Hello' --watch\n\
         \nThe API is described at {url}/openapi.json. Ctrl-C stops everything; data and key are kept."
    )
}
