//! `PUT /internal/lanes/{account_id}/{queue}`

use axum::Json;
use serde::{Deserialize, Deserializer};
use tollgate_domain::queue::{self, Cap, LaneChange};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::queue::QueueName;
use utoipa::ToSchema;

use super::show::Lane;
use crate::extract::{JsonBody, Named, Operator};
use crate::problem::{ForBody, ForId, ForOperator, Problem, Unfinished};

/// What to set for one account's share of one queue; a field that is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({"weight": 2, "max_running": 10})))]
pub(crate) struct NewLane {
    /// Its share beside other accounts'; 1 unless it is set.
    #[schema(minimum = 1, maximum = 1000)]
    weight: Option<u16>,
    /// How many of its tasks may run at a time, over all workers; null: no limit.
    #[serde(default, deserialize_with = "even_null")]
    #[schema(value_type = Option<i32>, minimum = 0)]
    max_running: Option<Cap>,
}

/// Null is a value of its own, and not the same as nothing said.
fn even_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cap>, D::Error> {
    Option::deserialize(deserializer).map(|max_running| Some(Cap(max_running)))
}

/// Sets one account's share of a queue, and its limit
///
/// It holds for every worker when this is answered. What runs above a limit goes on, and nothing is started until there
/// is room.
#[utoipa::path(
    put,
    path = "/internal/lanes/{account_id}/{queue}",
    operation_id = "setLane",
    tag = "operators",
    security(("admin_token" = [])),
    params(
        ("account_id" = Uuid, Path, description = "The account."),
        ("queue" = String, Path, description = "The queue."),
    ),
    request_body = NewLane,
    responses((status = 200, description = "What is set now.", body = Lane), ForOperator, ForId, ForBody, Unfinished)
)]
pub(crate) async fn set(
    operator: Operator,
    Named((account, queue)): Named<(AccountId, QueueName)>,
    JsonBody(new): JsonBody<NewLane>,
) -> Result<Json<Lane>, Problem> {
    if new.weight.is_none() && new.max_running.is_none() {
        return Err(Problem::invalid("there is nothing to set: give `weight`, `max_running` or both"));
    }
    let change = LaneChange { weight: new.weight, max_running: new.max_running };
    Ok(Json(queue::change_lane(&operator.db, queue, account, Actor::AdminToken, change).await?.into()))
}
