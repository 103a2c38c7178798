//! `tollgate doctor`

use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde::Serialize;
use tollgate_domain::{Database, Health, Role};

use crate::config::Config;
use crate::output::{Failure, print};

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    detail: String,
}

pub(crate) async fn run(config: &Config, json: bool) -> Result<(), Failure> {
    let mut findings = vec![finding("configuration", Ok("every setting can be read".into()))];
    match &config.database_url {
        Some(url) => findings.push(finding("database", database(url.expose_secret()).await)),
        None => findings.push(finding("private PostgreSQL", private_postgres())),
    }
    findings.push(finding("provider", provider(config)));
    let failed = findings.iter().filter(|finding| !finding.ok).count();
    print(json, &findings, || {
        let line = |finding: &Finding| {
            format!("{} {}: {}", if finding.ok { "ok  " } else { "FAIL" }, finding.check, finding.detail)
        };
        findings.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    if failed == 0 {
        Ok(())
    } else {
        Err(Failure::new(format!("{failed} of {} checks failed", findings.len())))
    }
}

fn finding(check: &'static str, result: Result<String, String>) -> Finding {
    let (ok, detail) = match result {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    Finding { check, ok, detail }
}

/// A login plays one role or several; the API's and the worker's may be two.
async fn database(url: &str) -> Result<String, String> {
    let (api, worker, operator) =
        tokio::join!(act_as(url, Role::Api), act_as(url, Role::Worker), act_as(url, Role::Operator));
    let tried = [(Role::Api, &api), (Role::Worker, &worker), (Role::Operator, &operator)];
    let roles: Vec<_> =
        tried.iter().filter(|(_, result)| result.is_ok()).map(|(role, _)| role.as_str()).collect();
    if roles.is_empty() {
        return api.map(|()| String::new());
    }
    Ok(format!("the schema is up to date; the login can act as {}", roles.join(", ")))
}

async fn act_as(url: &str, role: Role) -> Result<(), String> {
    let connect = Database::connect(url, role, 1, true);
    let db = tokio::time::timeout(Duration::from_secs(10), connect).await;
    let db = db.map_err(|_| "no answer within 10 s".to_owned())?.map_err(|error| error.to_string())?;
    match db.health().await {
        Ok(Health::Ready) => Ok(()),
        Ok(Health::SchemaOutdated) => Err("the schema is not this version's; run `tollgate migrate`".into()),
        Err(error) => Err(format!("{error}; has `tollgate migrate` been run?")),
    }
}

fn private_postgres() -> Result<String, String> {
    let found = tollgate_devdb::find_binaries().map_err(|error| error.to_string())?;
    Ok(format!("DATABASE_URL is not set; `tollgate dev` would start PostgreSQL {}", found.version()))
}

fn provider(config: &Config) -> Result<String, String> {
    let url = config.openai_base_url.as_ref().map_or("the vendor's API", |url| url.as_str());
    match config.openai_api_key {
        Some(_) => Ok(format!("a key is set for {url}; it was not tried, since a call costs money")),
        None if config.database_url.is_none() && config.uses_simulator() => {
            Ok("OPENAI_API_KEY is not set; `tollgate dev` would use the simulated provider".into())
        }
        None => {
            Err("OPENAI_API_KEY is not set: outside dev mode, generation jobs will fail with SERVER_ERROR"
                .into())
        }
    }
}
