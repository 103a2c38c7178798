//! `/v1`: one generation request, from its arrival to its reply or its fault.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode, body::Incoming};
use tokio::time::{Instant, sleep_until};

use crate::body::{self, BodyError, Cutter, Ending, ReplyBody};
use crate::bucket::{Limit, seconds_up, short};
use crate::fault::Fault;
use crate::openai::{self, ApiError};
use crate::plan::Action;
use crate::prompt::{Api, Prompt};
use crate::routes::json;
use crate::state::Shared;
use crate::stats::Outcome;

/// Answers a generation request as the plan wants it.
///
/// The client may go away at any await; hyper then drops this future, and the guard with it.
pub(crate) async fn generate(
    shared: &Arc<Shared>,
    cutter: &Cutter,
    api: Api,
    request: Request<Incoming>,
) -> Response<ReplyBody> {
    let arrived = Instant::now();
    let request_id = request.headers().get("x-client-request-id").and_then(|id| id.to_str().ok());
    let mut guard = shared.counters.arrive(request_id);

    let prompt = match understand(shared, api, request).await {
        Ok(prompt) => prompt,
        Err(Refusal::Error(error)) => {
            shared.counters.refused();
            return failure(&error).map(|body| body.guarded(guard));
        }
        Err(Refusal::Broken) => {
            // A client that half closed may still read this; it counts as gone all the same.
            guard.finish(Outcome::Aborted);
            return failure(&ApiError::new(
                StatusCode::BAD_REQUEST,
                "The request's body did not arrive whole.",
            ));
        }
    };

    let verdict = shared.plan().decide(&prompt.text, Instant::now());
    let mut reply = match verdict.action {
        None => {
            shared.counters.rate_limited();
            let wait = verdict.limit.and_then(|limit| limit.refused_for).unwrap_or_default();
            failure(&ApiError::rate_limit(&prompt.model, Some(seconds_up(wait).to_string())))
        }
        Some(action) => {
            shared.counters.decided(action.fault);
            sleep_until(arrived + action.latency).await;
            let mut reply = act(shared, cutter, api, &prompt, &action).await;
            add_headers(reply.headers_mut(), &action.headers);
            reply
        }
    };
    if let Some(limit) = verdict.limit {
        add_limit(reply.headers_mut(), limit);
    }
    reply.map(|body| body.guarded(guard))
}

/// Refuses a request without the key, if there is one.
pub(crate) fn authorize(shared: &Shared, headers: &HeaderMap) -> Result<(), ApiError> {
    let plan = shared.plan();
    let Some(key) = &plan.behaviour().api_key else { return Ok(()) };
    let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let bearer = shown.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let Some((_, token)) = bearer else {
        let message =
            "You didn't provide an API key in an Authorization header (Authorization: Bearer YOUR_KEY).";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, message));
    };
    if token.trim() == key {
        return Ok(());
    }
    Err(ApiError::unauthorized())
}

enum Refusal {
    Error(ApiError),
    Broken,
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

async fn understand(shared: &Shared, api: Api, request: Request<Incoming>) -> Result<Prompt, Refusal> {
    authorize(shared, request.headers())?;
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    match body::read(request.into_body()).await {
        Ok(body) => Ok(api.read(&body, host.as_deref())?),
        Err(BodyError::TooLarge) => Err(too_large().into()),
        Err(BodyError::Broken) => Err(Refusal::Broken),
    }
}

/// A body beyond the limit.
pub(crate) fn too_large() -> ApiError {
    let message = format!("The request's body is larger than {} bytes.", body::MAX_BODY_BYTES);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

async fn act(
    shared: &Shared,
    cutter: &Cutter,
    api: Api,
    prompt: &Prompt,
    action: &Action,
) -> Response<ReplyBody> {
    let answer = || {
        let id = shared.id(api.id_prefix());
        json(StatusCode::OK, &openai::answer(api, &id, prompt, action))
    };
    match action.fault {
        Fault::RateLimit => failure(&ApiError::rate_limit(&prompt.model, action.retry_after.header())),
        Fault::InsufficientQuota => failure(&ApiError::insufficient_quota()),
        Fault::BadRequest => failure(&ApiError::content_policy()),
        Fault::SlowDown => failure(&ApiError::slow_down(action.status, action.retry_after.header())),
        Fault::Unauthorized => failure(&ApiError::unauthorized()),
        Fault::NoImageUrl if api == Api::Images => json(StatusCode::OK, &openai::image(prompt, &[])),
        Fault::EmptyImageUrl if api == Api::Images => {
            json(StatusCode::OK, &openai::image(prompt, &[("url", "")]))
        }
        Fault::ServerError => failure(&ApiError::server(action.status)),
        Fault::Malformed => answer().map(ReplyBody::halved),
        Fault::Hang => std::future::pending().await,
        Fault::SilentBody => answer().map(ReplyBody::then_silence),
        Fault::Reset => answer().map(|body| body.then_cut(Ending::Reset, cutter.clone())),
        Fault::Truncated => answer().map(|body| body.then_cut(Ending::Close, cutter.clone())),
        Fault::Ok | Fault::NoImageUrl | Fault::EmptyImageUrl => answer(),
    }
}

/// The reply that tells this error.
pub(crate) fn failure(error: &ApiError) -> Response<ReplyBody> {
    let mut reply = json(error.status, &error.body());
    if let Some(value) = error.retry_after.as_ref().and_then(|value| HeaderValue::from_str(value).ok()) {
        reply.headers_mut().insert(RETRY_AFTER, value);
    }
    reply
}

/// What a step says, in the place of what was said before.
fn add_headers(headers: &mut HeaderMap, scripted: &BTreeMap<String, String>) {
    for (name, value) in scripted {
        // The step has been looked at.
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    }
}

fn add_limit(headers: &mut HeaderMap, limit: Limit) {
    for (name, value) in [
        ("x-ratelimit-limit-requests", limit.size.to_string()),
        ("x-ratelimit-remaining-requests", limit.remaining.to_string()),
        ("x-ratelimit-reset-requests", short(limit.reset)),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}
