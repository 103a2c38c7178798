//! `GET /v1/images/{id}/content`
//!
//! An image never changes, so who has it once needs to ask no more; but only its own account's key shows it, so nothing
//! between us and the client may keep it for others.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use http::{HeaderMap, StatusCode};
use tollgate_domain::Error;
use tollgate_domain::images::{self, Place};
use tollgate_model::image::{Image, StorageKey};

use crate::api::App;
use crate::etag;
use crate::extract::{Caller, Id, JobsRead};
use crate::problem::{Code, ForCaller, ForId, Problem, Unfinished};

/// A year: as long as anything may be kept.
const FOR_EVER: &str = "private, max-age=31536000, immutable";

/// Shows an image
///
/// With the `ETag` of a copy in `If-None-Match`, nothing is sent again.
#[utoipa::path(
    get,
    path = "/v1/images/{id}/content",
    operation_id = "showImageContent",
    tag = "images",
    security(("api_key" = ["jobs:read"])),
    params(
        ("id" = Uuid, Path, description = "The image."),
        ("If-None-Match" = Option<String>, Header, description = "`ETag` of the copy that the client has."),
    ),
    responses(
        (status = 200, description = "The image.",
            content((Vec<u8> = "image/png"), (Vec<u8> = "image/jpeg"), (Vec<u8> = "image/webp")),
            headers(
                ("ETag" = String, description = "SHA-256 of the bytes."),
                ("Cache-Control" = String, description = "It may be kept for ever, by the client itself."),
            )),
        (status = 304, description = "The client's copy is the image."),
        ForCaller, ForId, Unfinished,
    )
)]
pub(crate) async fn content(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    id: Id<Image>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let image = images::get(&app.db, caller.account, id.0).await?;
    let tag = etag::tag(&image.sha256);
    let kept = [(ETAG, tag.clone()), (CACHE_CONTROL, FOR_EVER.to_owned())];
    if etag::has(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, kept).into_response());
    }
    let bytes = match &image.place {
        Place::Database => images::data(&app.db, caller.account, id.0).await?,
        Place::Outside(kind, key) => outside(&app, kind, key).await?,
    };
    Ok((kept, [(CONTENT_TYPE, image.media_type.as_str())], bytes).into_response())
}

/// What another store keeps. That it is not there any more is a fault of ours, of which the client can make no more than
/// that there is no such image.
async fn outside(app: &App, kind: &str, key: &StorageKey) -> Result<Vec<u8>, Problem> {
    let gone = || Problem::from(Error::NotFound("image"));
    let Some(store) = app.images.as_ref().filter(|store| store.kind().as_str() == kind) else {
        tracing::warn!(kind, %key, "an image is in a store that is not configured (IMAGE_STORAGE)");
        return Err(gone());
    };
    match store.read(key).await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => {
            tracing::warn!(kind, %key, "an image's bytes are missing from its store");
            Err(gone())
        }
        Err(error) => {
            tracing::warn!(kind, %key, %error, "an image could not be read");
            let detail = "the store of images is not available at the moment; try again";
            Err(Problem::new(Code::Unavailable, detail))
        }
    }
}
