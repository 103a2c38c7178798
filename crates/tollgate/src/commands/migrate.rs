//! `tollgate migrate`

use serde_json::json;

use crate::config::Config;
use crate::output::{Failure, print};

pub(crate) async fn run(config: &Config, json: bool) -> Result<(), Failure> {
    let applied = tollgate_domain::migrate(config.required_database_url()?).await?;
    print(json, &json!({ "applied": applied }), || match applied {
        0 => "the schema is up to date".into(),
        applied => format!("{applied} migrations applied; the schema is up to date"),
    })
}
