//! `tollgate migrate`

use serde_json::json;
use tollgate_domain::{Mended, Migrated};

use crate::config::Config;
use crate::output::{Failure, print};

pub(crate) async fn run(config: &Config, json: bool) -> Result<(), Failure> {
    let Migrated { applied, mended } = tollgate_domain::migrate(config.required_database_url()?).await?;
    let legacy: Vec<_> = mended
        .iter()
        .map(|Mended { table, repaired, invalid }| {
            json!({ "table": table, "repaired": repaired, "invalid": invalid })
        })
        .collect();
    print(json, &json!({ "applied": applied, "legacy": legacy }), || {
        let schema = match applied {
            0 => "the schema is up to date".into(),
            applied => format!("{applied} migrations applied; the schema is up to date"),
        };
        mended.iter().fold(schema, |said, Mended { table, repaired, invalid }| {
            format!(
                "{said}\n{table}: {repaired} rows had their image_url filled in, {invalid} that show no image were moved to \
                 app.image_audit; from here on every row must have one"
            )
        })
    })
}
