//! `POST /v1/api-keys/{id}/rotate`

use std::time::Duration;

use axum::extract::State;
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use tollgate_domain::keys::{self, Answering, Expiry};
use tollgate_model::audit::Actor;
use tollgate_model::key::KeyInfo;
use utoipa::ToSchema;

use super::create::CreatedKey;
use crate::answer::Answered;
use crate::api::App;
use crate::extract::{AskedPerhapsWith, Caller, Id, KeysWrite};
use crate::problem::{ForBody, ForCaller, ForId, ForOnce, Problem, Unfinished};

/// How to replace a key. Without a body: the old key works until it is revoked.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(examples(json!({"overlap_seconds": 86400})))]
pub(crate) struct KeyRotation {
    /// How long the old key goes on working, 30 days at most; 0: it ends at once, and if it rotated itself and the answer is
    /// lost, the old key cannot ask for it again. If it is left out, the old key works until it is revoked.
    #[schema(maximum = 2_592_000)]
    overlap_seconds: Option<u32>,
    /// When the new key stops working by itself, no later than the calling key; if it is left out, when that does, whatever
    /// was true of the old one.
    expires_at: Option<DateTime<Utc>>,
}

/// Replaces a key
///
/// Makes a key of the same name, scopes and limits; the stricter ones, if the calling key has its own. Both keys work until
/// the old one has ended, and both together have these limits once. A key cannot rotate one with a scope that it lacks
/// itself, nor one that is revoked or has expired, nor give the new one a longer life than its own; it may rotate itself.
#[utoipa::path(
    post,
    path = "/v1/api-keys/{id}/rotate",
    operation_id = "rotateKey",
    tag = "api-keys",
    security(("api_key" = ["keys:write"])),
    params(
        ("id" = Uuid, Path, description = "The key to replace."),
        ("Idempotency-Key" = Option<String>, Header, description = "What you call this request: at most 255 characters."),
    ),
    request_body = Option<KeyRotation>,
    responses(
        (status = 201, description = "The new key. It cannot be shown again.", body = CreatedKey),
        ForCaller, ForId, ForBody, ForOnce, Unfinished,
    )
)]
pub(crate) async fn rotate(
    State(app): State<App>,
    caller: Caller<KeysWrite>,
    id: Id<KeyInfo>,
    AskedPerhapsWith { body: asked, once }: AskedPerhapsWith<KeyRotation>,
) -> Result<Answered, Problem> {
    let asked = asked.unwrap_or_default();
    let rotation = keys::Rotation {
        key: id.0,
        within: &caller.scopes,
        overlap: asked.overlap_seconds.map(|seconds| Duration::from_secs(seconds.into())),
        expires: asked.expires_at.map(Expiry::At),
    };
    let actor = Actor::Key(caller.key);
    let presented = caller.presented.expose_secret();
    let answering = Answering { once: once.as_ref(), presented, answer: CreatedKey::shown };
    let answer =
        keys::rotate_for(&app.db, caller.account, actor, app.key_hashing, rotation, answering).await?;
    Ok(Answered(answer))
}
