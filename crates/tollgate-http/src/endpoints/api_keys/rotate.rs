//! `POST /v1/api-keys/{id}/rotate`

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde::Deserialize;
use tollgate_domain::keys::{self, Expiry};
use tollgate_model::audit::Actor;
use tollgate_model::key::KeyInfo;
use utoipa::ToSchema;

use super::create::CreatedKey;
use crate::api::App;
use crate::extract::{Caller, Id, JsonBody, KeysWrite};
use crate::problem::{ForBody, ForCaller, ForId, Problem, Unfinished};

/// How to replace a key. Without a body: the old key works until it is revoked.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(examples(json!({"overlap_seconds": 86400})))]
pub(crate) struct KeyRotation {
    /// How long the old key goes on working, 30 days at most; 0: it ends at once. If it is left out, the old key works
    /// until it is revoked.
    #[schema(maximum = 2_592_000)]
    overlap_seconds: Option<u32>,
    /// When the new key stops working by itself; if it is left out, it does not, whatever was true of the old one.
    expires_at: Option<DateTime<Utc>>,
}

/// Replaces a key
///
/// Makes a key of the same name, scopes and limits. Both keys work until the old one has ended. A key cannot rotate one
/// with a scope that it lacks itself, nor one that is revoked or has expired; it may rotate itself.
#[utoipa::path(
    post,
    path = "/v1/api-keys/{id}/rotate",
    operation_id = "rotateKey",
    tag = "api-keys",
    security(("api_key" = ["keys:write"])),
    params(("id" = Uuid, Path, description = "The key to replace.")),
    request_body = Option<KeyRotation>,
    responses(
        (status = 201, description = "The new key. It cannot be shown again.", body = CreatedKey),
        ForCaller, ForId, ForBody, Unfinished,
    )
)]
pub(crate) async fn rotate(
    State(app): State<App>,
    caller: Caller<KeysWrite>,
    id: Id<KeyInfo>,
    body: Option<JsonBody<KeyRotation>>,
) -> Result<(StatusCode, Json<CreatedKey>), Problem> {
    let JsonBody(asked) = body.unwrap_or_default();
    let rotation = keys::Rotation {
        key: id.0,
        within: &caller.scopes,
        overlap: asked.overlap_seconds.map(|seconds| Duration::from_secs(seconds.into())),
        expires: asked.expires_at.map(Expiry::At),
    };
    let actor = Actor::Key(caller.key);
    let made = keys::rotate(&app.db, caller.account, actor, app.key_hashing, rotation).await?;
    Ok(CreatedKey::shown(made))
}
