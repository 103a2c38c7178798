//! `GET /readyz`

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use tokio::time::timeout;
use tollgate_domain::{Error, Health};
use utoipa::IntoResponses;

use super::healthz::Status;
use crate::api::Ops;
use crate::problem::{Code, Problem, Responses, document};

/// Less than a load balancer's patience.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) struct NotReady;

impl IntoResponses for NotReady {
    fn responses() -> Responses {
        document(&[(Code::Unavailable, "the database is unreachable, or its schema is outdated")])
    }
}

/// Says whether requests can be served
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "readyz",
    tag = "operation",
    responses((status = 200, description = "Requests can be served.", body = Status), NotReady)
)]
pub(crate) async fn readyz(State(ops): State<Ops>) -> Result<Json<Status>, Problem> {
    let refuse = |detail: &str| Err(Problem::new(Code::Unavailable, detail));
    if ops.db.is_away() {
        return refuse("the database is unreachable");
    }
    match timeout(PATIENCE, ops.db.health()).await {
        Ok(Ok(Health::Ready)) => Ok(Json(Status::OK)),
        Ok(Ok(Health::SchemaOutdated)) => refuse("the database's schema is outdated: run `tollgate migrate`"),
        // It answered, but has no schema that could be asked about.
        Ok(Err(error @ Error::Database(_))) => {
            tracing::warn!(%error, "not ready");
            refuse("the database has no schema that this role can read: run `tollgate migrate`")
        }
        // Asked every few seconds, for as long as it lasts: whoever watches the database says it once.
        Ok(Err(error)) => {
            ops.db.suspect(Some(&error.to_string()));
            refuse("the database is unreachable")
        }
        Err(_elapsed) => {
            ops.db.suspect(Some("no answer within 2 s"));
            refuse("the database is unreachable: no answer within 2 s")
        }
    }
}
