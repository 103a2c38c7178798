//! JSON bodies: within the limit, clean, and exactly what the endpoint takes.

use axum::body::{Body, HttpBody as _};
use axum::extract::{FromRef, FromRequest, OptionalFromRequest, Request};
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tollgate_model::object::Object;

use super::strict::Clean;
use crate::problem::{Code, Problem};

/// A body read as a `T`.
#[derive(Default)]
pub(crate) struct JsonBody<T>(pub(crate) T);

/// The longest body, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimit(pub(crate) usize);

impl<T, S> FromRequest<S> for JsonBody<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
    BodyLimit: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read_json(&parts.headers, body, BodyLimit::from_ref(state)).await?;
        parse(&bytes).map(Self)
    }
}

/// Where an endpoint needs none: a request without a body, whatever its head says of one.
impl<T, S> OptionalFromRequest<S> for JsonBody<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
    BodyLimit: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, Problem> {
        if request.body().is_end_stream() {
            return Ok(None);
        }
        <Self as FromRequest<S>>::from_request(request, state).await.map(Some)
    }
}

/// The bytes of a JSON body.
pub(super) async fn read_json(headers: &HeaderMap, body: Body, limit: BodyLimit) -> Result<Bytes, Problem> {
    if !is_json(headers) {
        return Err(Problem::invalid("the body must be JSON: send `Content-Type: application/json`"));
    }
    read(body, limit).await
}

/// `application/json`, or another type whose syntax is JSON (`application/…+json`), whatever its parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(value)) = headers.get(CONTENT_TYPE).map(|value| value.to_str()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let subtype = essence.strip_prefix("application/");
    subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

/// Reads no more than the limit, whatever `Content-Length` says or does not say; and nothing at all if it says more.
async fn read(body: Body, limit: BodyLimit) -> Result<Bytes, Problem> {
    let too_long =
        || Problem::new(Code::PayloadTooLarge, format!("the body is longer than {} bytes", limit.0));
    if body.size_hint().lower() > u64::try_from(limit.0).unwrap_or(u64::MAX) {
        return Err(too_long());
    }
    match Limited::new(body, limit.0).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_long()),
        Err(_) => Err(Problem::invalid("the body ended before it was complete")),
    }
}

pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Problem::invalid("the body is empty; a JSON object is required"));
    }
    read_as::<Clean>(bytes)?;
    read_as(bytes).map(|Object(value)| value)
}

fn read_as<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        refusal(error.inner(), &path)
    })?;
    deserializer.end().map_err(|error| refusal(&error, "."))?;
    Ok(value)
}

fn refusal(error: &serde_json::Error, path: &str) -> Problem {
    Problem::invalid(match error.classify() {
        Category::Data if path == "." => format!("the body cannot be accepted: {error}"),
        Category::Data => format!("`{path}` cannot be accepted: {error}"),
        Category::Syntax | Category::Eof | Category::Io => format!("the body is not valid JSON: {error}"),
    })
}

#[cfg(test)]
mod tests;
