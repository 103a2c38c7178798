//! `POST /v1/api-keys`

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tollgate_domain::keys::{self, Expiry};
use tollgate_model::audit::Actor;
use tollgate_model::key::{ApiKey, KeyInfo, Scope};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::App;
use crate::extract::{Caller, JsonBody, KeysWrite, require};
use crate::problem::{ForBody, ForCaller, Problem, Unfinished};

/// The key to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({"name": "batch importer", "scopes": ["jobs:write", "jobs:read"]})))]
pub(crate) struct NewKey {
    /// For people; at most 200 bytes.
    #[serde(default)]
    name: Option<String>,
    /// What it may do: at least one scope, and none that the calling key lacks.
    scopes: Vec<Scope>,
    /// When it stops working by itself; if it is left out, it does not.
    #[serde(default)]
    expires_at: Option<DateTime<Utc>>,
}

/// A key that was made.
#[derive(Serialize, ToSchema)]
pub(crate) struct CreatedKey {
    /// The key's id.
    key_id: Uuid,
    /// The key itself: shown this once, and stored nowhere.
    key: String,
    /// The key as it will be listed.
    #[serde(flatten)]
    info: KeyInfo,
}

impl CreatedKey {
    pub(super) fn shown((info, key): (KeyInfo, ApiKey)) -> (StatusCode, Json<Self>) {
        (StatusCode::CREATED, Json(Self { key_id: info.id, key: key.expose().to_owned(), info }))
    }
}

/// Creates a key
///
/// A key cannot hand on a scope that it lacks itself.
#[utoipa::path(
    post,
    path = "/v1/api-keys",
    operation_id = "createKey",
    tag = "api-keys",
    security(("api_key" = ["keys:write"])),
    request_body = NewKey,
    responses(
        (status = 201, description = "The key. It cannot be shown again.", body = CreatedKey),
        ForCaller, ForBody, Unfinished,
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller<KeysWrite>,
    JsonBody(new): JsonBody<NewKey>,
) -> Result<(StatusCode, Json<CreatedKey>), Problem> {
    for &scope in &new.scopes {
        require(&caller.scopes, scope)?;
    }
    let key = keys::NewKey {
        name: new.name.as_deref().unwrap_or_default(),
        scopes: &new.scopes,
        expires: new.expires_at.map(Expiry::At),
        // An operator's alone to set: nobody lifts his own.
        rate_limit: None,
        daily_credit_limit: None,
    };
    let made = keys::create(&app.db, caller.account, Actor::Key(caller.key), app.key_hashing, key).await?;
    Ok(CreatedKey::shown(made))
}
