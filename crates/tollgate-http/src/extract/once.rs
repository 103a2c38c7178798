//! The header `Idempotency-Key`: what is asked with it is done once.

use axum::extract::{FromRef, FromRequest, FromRequestParts, MatchedPath, Request};
use http::request::Parts;
use http::{HeaderName, Method};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tollgate_domain::Once;
use tollgate_model::idempotency::{BadOnce, check_key, fingerprint};

use super::json::{BodyLimit, parse, read_json};
use crate::problem::Problem;

pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A request without a body, that is to be done once if its client says so.
pub(crate) struct Asked(pub(crate) Option<Once>);

/// The same of one whose body is read as a `T`.
pub(crate) struct AskedWith<T> {
    pub(crate) body: T,
    pub(crate) once: Option<Once>,
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        once(parts, || Ok(None)).map(Self)
    }
}

impl<T, S> FromRequest<S> for AskedWith<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
    BodyLimit: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read_json(&parts.headers, body, BodyLimit::from_ref(state)).await?;
        let body = parse(&bytes)?;
        let value = || serde_json::from_slice::<Value>(&bytes).map(Some);
        let once = once(&parts, || value().map_err(|error| Problem::invalid(error.to_string())))?;
        Ok(Self { body, once })
    }
}

fn once(
    parts: &Parts,
    body: impl FnOnce() -> Result<Option<Value>, Problem>,
) -> Result<Option<Once>, Problem> {
    let mut keys = parts.headers.get_all(&IDEMPOTENCY_KEY).into_iter();
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.next().is_some() {
        return Err(Problem::invalid("the header `Idempotency-Key` stands there twice"));
    }
    let refuse = |bad: BadOnce| Problem::invalid(bad.to_string());
    let key = check_key(key.as_bytes()).map_err(refuse)?.to_owned();
    let path = parts.uri.path();
    let route = parts.extensions.get::<MatchedPath>().map_or(path, MatchedPath::as_str).to_owned();
    let fingerprint = fingerprint(path, body()?.as_ref()).map_err(refuse)?;
    Ok(Some(Once { method: method(&parts.method), route, key, fingerprint }))
}

fn method(method: &Method) -> &'static str {
    ["POST", "PUT", "PATCH"].into_iter().find(|known| *known == method.as_str()).unwrap_or("OTHER")
}
