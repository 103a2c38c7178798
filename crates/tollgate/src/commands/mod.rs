//! One command, one file: its arguments, and what it does.

pub(crate) mod account;
pub(crate) mod api;
pub(crate) mod audit;
pub(crate) mod demo;
pub(crate) mod dev;
pub(crate) mod dlq;
pub(crate) mod doctor;
pub(crate) mod guard;
pub(crate) mod job;
pub(crate) mod key;
pub(crate) mod lane;
pub(crate) mod migrate;
pub(crate) mod price;
pub(crate) mod provider_sim;
pub(crate) mod queue;
pub(crate) mod worker;

use secrecy::ExposeSecret as _;
use tollgate_domain::{Database, Role};
use tollgate_outbound::TollgateClient;

use crate::config::Config;
use crate::local::{Access, data_dir};
use crate::node::secret;
use crate::output::Failure;

/// The operator's way to the database: OPERATOR_DATABASE_URL, DATABASE_URL, or the running `tollgate dev`.
async fn operator(config: &Config) -> Result<Database, Failure> {
    let url = match config.operator_database_url.as_ref().or(config.database_url.as_ref()) {
        Some(url) => url.expose_secret().to_owned(),
        None => running_dev(config, "DATABASE_URL")?.database_url,
    };
    Ok(Database::connect(&url, Role::Operator, 1, false).await?)
}

/// A tenant's way to the API: TOLLGATE_URL and TOLLGATE_API_KEY, or the running `tollgate dev`.
fn client(config: &Config) -> Result<TollgateClient, Failure> {
    let (url, key) = match (&config.tollgate_url, &config.tollgate_api_key) {
        (Some(url), Some(key)) => (url.clone(), key.clone()),
        (url, key) => {
            let missing = if url.is_none() { "TOLLGATE_URL" } else { "TOLLGATE_API_KEY" };
            let dev = running_dev(config, missing)?;
            (url.clone().unwrap_or(dev.url), key.clone().unwrap_or_else(|| secret(dev.api_key)))
        }
    };
    Ok(TollgateClient::new(&url, key)?)
}

fn running_dev(config: &Config, missing: &str) -> Result<Access, Failure> {
    let directory = data_dir(config, None);
    Access::read(&directory).ok_or_else(|| {
        Failure::misuse(format!(
            "{missing} is not set, and no `tollgate dev` has run on {}. Set it, start `tollgate dev`, or name its \
             data directory with TOLLGATE_DATA_DIR",
            directory.display()
        ))
    })
}
