//! `POST /v1/api-keys`

use axum::extract::State;
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use tollgate_domain::Answer;
use tollgate_domain::keys::{self, Answering, Expiry};
use tollgate_model::audit::Actor;
use tollgate_model::key::{ApiKey, KeyInfo, Scope};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::answer::Answered;
use crate::api::App;
use crate::extract::{AskedWith, Caller, KeysWrite, require};
use crate::problem::{ForBody, ForCaller, ForOnce, Problem, Unfinished};

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
    /// When it stops working by itself, no later than the calling key; if it is left out, when that does.
    #[serde(default)]
    expires_at: Option<DateTime<Utc>>,
    /// What it may spend in a day (UTC), in credits; if it is left out, whatever the account has.
    #[serde(default)]
    #[schema(minimum = 0)]
    daily_credit_limit: Option<i64>,
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
    pub(super) fn shown(info: &KeyInfo, key: &ApiKey) -> tollgate_domain::Result<Answer> {
        let shown = Self { key_id: info.id, key: key.expose().to_owned(), info: info.clone() };
        Ok(Answer::new(201, &shown)?)
    }
}

/// Creates a key
///
/// A key cannot hand on a scope that it lacks itself, nor a longer life or higher limits than its own. What is made by
/// a key with limits counts with it: both together have them once.
#[utoipa::path(
    post,
    path = "/v1/api-keys",
    operation_id = "createKey",
    tag = "api-keys",
    security(("api_key" = ["keys:write"])),
    params(("Idempotency-Key" = Option<String>, Header, description = "What you call this request: at most 255 characters.")),
    request_body = NewKey,
    responses(
        (status = 201, description = "The key. It cannot be shown again.", body = CreatedKey),
        ForCaller, ForBody, ForOnce, Unfinished,
    )
)]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller<KeysWrite>,
    AskedWith { body: new, once }: AskedWith<NewKey>,
) -> Result<Answered, Problem> {
    for &scope in &new.scopes {
        require(&caller.scopes, scope)?;
    }
    let key = keys::NewKey {
        name: new.name.as_deref().unwrap_or_default(),
        scopes: &new.scopes,
        expires: new.expires_at.map(Expiry::At),
        // An operator's alone to set: nobody lifts his own.
        rate_limit: None,
        daily_credit_limit: new.daily_credit_limit,
    };
    let presented = caller.presented.expose_secret();
    let answering = Answering { once: once.as_ref(), presented, answer: CreatedKey::shown };
    let actor = Actor::Key(caller.key);
    let answer = keys::create_for(&app.db, caller.account, actor, app.key_hashing, key, answering).await?;
    Ok(Answered(answer))
}
