//! `GET /v1/images`

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use tollgate_domain::images;
use tollgate_model::image::Image;
use utoipa::IntoParams;

use crate::api::App;
use crate::extract::{Caller, JobsRead, Query};
use crate::page::{self, Limit, Page};
use crate::problem::{ForCaller, ForQuery, Problem, Unfinished};

const LIST: &str = "images";

type ImagePage = Page<Image>;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ImagesQuery {
    /// Images a page may hold.
    #[param(value_type = Option<u8>, minimum = 1, maximum = 100, default = 20)]
    limit: Limit,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists images, newest first
#[utoipa::path(
    get,
    path = "/v1/images",
    operation_id = "listImages",
    tag = "images",
    security(("api_key" = ["jobs:read"])),
    params(ImagesQuery),
    responses(
        (status = 200, description = "A page of images.", body = ImagePage),
        ForCaller, ForQuery, Unfinished,
    )
)]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller<JobsRead>,
    Query(query): Query<ImagesQuery>,
) -> Result<Json<ImagePage>, Problem> {
    let before = page::after(LIST, query.cursor.as_deref())?;
    let mut images = images::list(&app.db, caller.account, before, query.limit.and_one()).await?;
    for image in &mut images {
        app.complete(&mut image.url);
    }
    Ok(Json(Page::new(LIST, images, query.limit, |image| image.id)))
}
