//! The OpenAPI document: its frame; the endpoints fill it in (`router.rs`).

use std::sync::LazyLock;

use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::PathItem;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Object, OpenApi, RefOr, Type};
use utoipa::{Modify, OpenApi as _};

use crate::problem::{Code, ProblemDocument};
use crate::router;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Tollgate",
        description = "Asynchronous AI work: post a generation job, get its id at once, and read the result when it \
            is there.\n\nRequests carry an API key, as `Authorization: Bearer sk_live_…` or as `X-API-Key`; the scope \
            an operation needs stands in its `security`. Bodies are JSON, and unknown fields are refused. Whatever \
            goes wrong is answered as `application/problem+json` with a stable `code`. Every answer has an \
            `X-Request-Id`; a request may bring its own (up to 64 of `A-Z a-z 0-9 . _ -`).",
        version = env!("CARGO_PKG_VERSION"),
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    tags(
        (name = "jobs", description = "Generation jobs."),
        (name = "images", description = "The images that jobs have brought."),
        (name = "credits", description = "The account's credits, and the ledger of how it came to them."),
        (name = "api-keys", description = "The account's API keys."),
        (name = "audit-log", description = "Who did what to the account."),
        (name = "quota", description = "How much there is to do, for status indicators."),
        (name = "operators", description = "Dead letters, queues and lanes, over all accounts. For the operators' token alone."),
        (name = "operation", description = "For those who run the platform. No key needed."),
    ),
    components(schemas(ProblemDocument, Code)),
    modifiers(&Keys),
)]
struct Frame;

struct Keys;

impl Modify for Keys {
    fn modify(&self, openapi: &mut OpenApi) {
        let mut bearer = Http::new(HttpAuthScheme::Bearer);
        bearer.bearer_format = Some("sk_live_<prefix>_<secret>".into());
        bearer.description = Some("An API key of the account; `X-API-Key` takes it as well.".into());
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("api_key", SecurityScheme::Http(bearer));
        let mut operators = Http::new(HttpAuthScheme::Bearer);
        operators.description =
            Some("The installation's own token, `TOLLGATE_ADMIN_TOKEN`; no tenant has it.".into());
        components.add_security_scheme("admin_token", SecurityScheme::Http(operators));
    }
}

/// The document without its paths.
pub(crate) fn frame() -> OpenApi {
    Frame::openapi()
}

/// The document, as served; the same for the life of the process.
pub(crate) fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let mut document = router::table().into_openapi();
        document.paths.paths.values_mut().for_each(add_request_id);
        document.to_pretty_json().unwrap_or_default()
    });
    &TEXT
}

/// The OpenAPI 3.1 document, as JSON.
pub fn openapi_json() -> String {
    text().to_owned()
}

/// What is true of every answer need not be written at every endpoint.
fn add_request_id(item: &mut PathItem) {
    let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
    for operation in operations.into_iter().flatten() {
        for response in operation.responses.responses.values_mut() {
            if let RefOr::T(response) = response {
                let header = HeaderBuilder::new()
                    .schema(Some(Object::with_type(Type::String)))
                    .description(Some("The request's id."))
                    .build();
                response.headers.insert("X-Request-Id".into(), header.into());
            }
        }
    }
}

#[cfg(test)]
mod tests;
