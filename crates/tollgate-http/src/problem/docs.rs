//! The problems of an endpoint, as its OpenAPI documentation lists them: sets named after what may bring them about.

use std::collections::BTreeMap;

use http::StatusCode;
use utoipa::IntoResponses;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::{ContentBuilder, Object, Ref, RefOr, Response, ResponseBuilder, Type};

use super::{Code, ProblemDocument};

/// A map of responses, as utoipa wants it.
pub(crate) type Responses = BTreeMap<String, RefOr<Response>>;

/// Documents the codes, one response a status.
pub(crate) fn document(codes: &[(Code, &str)]) -> Responses {
    codes
        .iter()
        .map(|&(code, when)| (code.status().as_str().to_owned(), response(code, when).into()))
        .collect()
}

fn response(code: Code, when: &str) -> Response {
    let example = ProblemDocument::new(code, when, "01a2016d-3205-72a3-a0af-c3d39231b414");
    let example = serde_json::to_value(example).unwrap_or_default();
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).example(Some(example));
    let mut response = ResponseBuilder::new()
        .description(format!("`{}`: {when}", code.as_str()))
        .content("application/problem+json", content.build());
    let header = |kind: Type, description: &str| {
        HeaderBuilder::new().schema(Some(Object::with_type(kind))).description(Some(description)).build()
    };
    if matches!(code.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        response = response.header("Retry-After", header(Type::Integer, "Seconds to wait."));
    }
    if code == Code::Unauthorized {
        response = response.header("WWW-Authenticate", header(Type::String, "How to authenticate."));
    }
    response.build()
}

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident: $($code:ident $when:literal),+;)+) => {
        $(
            $(#[$doc])*
            pub(crate) struct $name;

            impl IntoResponses for $name {
                fn responses() -> Responses {
                    document(&[$((Code::$code, $when)),+])
                }
            }
        )+
    };
}

problems! {
    /// Of an endpoint that takes a key, as all of `/v1` do.
    ForCaller:
        Unauthorized "no API key, or none that is valid",
        ForbiddenScope "the key lacks the scope that the endpoint needs";
    /// Of an endpoint for operators, as all of `/internal` are.
    ForOperator: Unauthorized "no operators' token, or a wrong one; or none is configured, and the operator API is off";
    /// Of an endpoint with an id in its path.
    ForId: NotFound "no such thing, or it is another account's";
    /// Of an endpoint whose requests can be done once.
    ForOnce:
        IdempotencyKeyConflict "the `Idempotency-Key` was used for another request",
        IdempotencyInFlight "the request with this `Idempotency-Key` has not ended";
    /// Of an endpoint with query parameters.
    ForQuery: InvalidRequest "a query parameter is unknown or out of range, or the cursor is another list's";
    /// Of an endpoint that reads a body.
    ForBody:
        InvalidRequest "the body is not what the endpoint takes; `detail` names the field",
        PayloadTooLarge "the body is longer than the server takes";
    /// Of every endpoint that asks the database.
    Unfinished:
        Internal "a defect of the server; `request_id` identifies it",
        Unavailable "the database is not available, or the answer took too long";
}
