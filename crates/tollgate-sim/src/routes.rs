//! The table of routes, and `/sim`, the controls over HTTP.

use std::sync::Arc;

use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, SERVER};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::body::{self, BodyError, Cutter, ReplyBody};
use crate::control::Control;
use crate::openai::{self, ApiError};
use crate::picture;
use crate::prompt::Api;
use crate::provider::{authorize, failure, generate, too_large};
use crate::state::Shared;
use crate::step::Step;

/// Answers one request.
pub(crate) async fn route(
    shared: &Arc<Shared>,
    cutter: &Cutter,
    request: Request<Incoming>,
) -> Response<ReplyBody> {
    let started = Instant::now();
    let path = request.uri().path().to_owned();
    let mut reply = match (request.method(), path.as_str()) {
        (&Method::POST, "/v1/chat/completions") => generate(shared, cutter, Api::Chat, request).await,
        (&Method::POST, "/v1/responses") => generate(shared, cutter, Api::Responses, request).await,
        (&Method::POST, "/v1/images/generations") => generate(shared, cutter, Api::Images, request).await,
        (&Method::GET, path) if path.starts_with("/images/") => match picture::file(path) {
            Some(file) => png(file),
            None => no_route(&Method::GET, path),
        },
        (&Method::GET, "/v1/models") => match authorize(shared, request.headers()) {
            Ok(()) => json(StatusCode::OK, &openai::models()),
            Err(error) => failure(&error),
        },
        (_, path) if path.starts_with("/sim/") => {
            control(&Control(Arc::clone(shared)), request).await.unwrap_or_else(|error| failure(&error))
        }
        (method, path) => no_route(method, path),
    };
    let headers = reply.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("tollgate-provider-sim"));
    if path.starts_with("/v1/") {
        if let Ok(id) = HeaderValue::from_str(&shared.id("req_")) {
            headers.insert("x-request-id", id);
        }
        let elapsed = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        headers.insert("openai-processing-ms", elapsed.into());
    }
    reply
}

async fn control(control: &Control, request: Request<Incoming>) -> Result<Response<ReplyBody>, ApiError> {
    let (head, body) = request.into_parts();
    match (&head.method, head.uri.path()) {
        (&Method::GET, "/sim/stats") => Ok(json(StatusCode::OK, &control.stats())),
        (&Method::GET, "/sim/request-ids") => Ok(json(StatusCode::OK, &control.request_ids())),
        (&Method::GET, "/sim/faults") => Ok(json(StatusCode::OK, &control.behaviour())),
        (&Method::PUT, "/sim/faults") => {
            let behaviour =
                serde_json::from_value(read_json(body).await?).map_err(|error| bad(error.to_string()))?;
            control.set_behaviour(behaviour).map_err(|error| bad(error.to_string()))?;
            Ok(json(StatusCode::OK, &control.behaviour()))
        }
        (&Method::POST, "/sim/script") => {
            let size =
                control.script(steps(read_json(body).await?)?).map_err(|error| bad(error.to_string()))?;
            Ok(json(StatusCode::OK, &size))
        }
        (&Method::POST, "/sim/reset") => {
            control.reset();
            Ok(json(StatusCode::OK, &control.stats()))
        }
        (method, path) => Ok(no_route(method, path)),
    }
}

/// Each step by itself, so that a mistake is told with the number of its step.
fn steps(script: Value) -> Result<Vec<Step>, ApiError> {
    let Value::Array(steps) = script else { return Err(bad("a script is a JSON array of steps")) };
    let read =
        |(index, step)| serde_json::from_value(step).map_err(|error| bad(format!("step {index}: {error}")));
    steps.into_iter().enumerate().map(read).collect()
}

async fn read_json(body: Incoming) -> Result<Value, ApiError> {
    match body::read(body).await {
        Ok(body) => serde_json::from_slice(&body).map_err(|error| bad(format!("not JSON: {error}"))),
        Err(BodyError::TooLarge) => Err(too_large()),
        Err(BodyError::Broken) => Err(bad("the body did not arrive whole")),
    }
}

fn bad(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, message)
}

/// The methods that a path takes; `None` if there is no such path.
fn allowed(path: &str) -> Option<&'static str> {
    match path {
        "/v1/models" | "/sim/stats" | "/sim/request-ids" => Some("GET"),
        "/v1/chat/completions"
        | "/v1/responses"
        | "/v1/images/generations"
        | "/sim/script"
        | "/sim/reset" => Some("POST"),
        "/sim/faults" => Some("GET, PUT"),
        _ => None,
    }
}

/// 405 for a path that there is, 404 for others.
fn no_route(method: &Method, path: &str) -> Response<ReplyBody> {
    let Some(allowed) = allowed(path) else {
        let error = ApiError::new(StatusCode::NOT_FOUND, format!("Invalid URL ({method} {path})"));
        return failure(&ApiError { code: Some("unknown_url"), ..error });
    };
    let message = format!("Not allowed to {method} on {path}; it takes {allowed}.");
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message);
    let mut reply = failure(&ApiError { code: Some("method_not_supported"), ..error });
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}

fn png(file: Vec<u8>) -> Response<ReplyBody> {
    let mut reply = Response::new(ReplyBody::whole(file));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("image/png"));
    reply
}

/// A whole JSON reply.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<ReplyBody> {
    // Nothing that is serialized here can fail to be: string keys, finite numbers.
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut reply = Response::new(ReplyBody::whole(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}
