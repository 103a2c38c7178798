//! `PUT /internal/queues/{queue}`

use axum::Json;
use serde::{Deserialize, Deserializer, Serialize};
use tollgate_domain::queue;
use tollgate_model::audit::Actor;
use tollgate_model::queue::QueueName;
use utoipa::ToSchema;

use crate::extract::{JsonBody, Named, Operator};
use crate::problem::{ForBody, ForId, ForOperator, Problem, Unfinished};

/// What is set for a queue as a whole.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({"max_running": 50})))]
pub(crate) struct QueueSettings {
    /// How many of its tasks may run at a time, over all workers; null: no limit. It must be said: leaving it out by
    /// mistake would lift the limit.
    #[serde(deserialize_with = "stated")]
    #[schema(required, minimum = 0)]
    max_running: Option<i32>,
}

/// A field that may be null, but not be left out.
fn stated<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    Option::deserialize(deserializer)
}

/// Sets how many of a queue's tasks may run at a time
///
/// It holds for every worker when this is answered. What runs above a limit goes on, and nothing is started until there
/// is room.
#[utoipa::path(
    put,
    path = "/internal/queues/{queue}",
    operation_id = "setQueue",
    tag = "operators",
    security(("admin_token" = [])),
    params(("queue" = String, Path, description = "The queue.")),
    request_body = QueueSettings,
    responses(
        (status = 200, description = "What is set now.", body = QueueSettings),
        ForOperator, ForId, ForBody, Unfinished,
    )
)]
pub(crate) async fn set(
    operator: Operator,
    Named(queue): Named<QueueName>,
    JsonBody(settings): JsonBody<QueueSettings>,
) -> Result<Json<QueueSettings>, Problem> {
    queue::set_queue(&operator.db, queue, Actor::AdminToken, settings.max_running).await?;
    Ok(Json(settings))
}
