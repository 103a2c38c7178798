//! `GET /assets/tollgate-frames.js`
//!
//! The component comes with the API that it reads, so the two are of one version. Its address stays the same from version
//! to version, so a browser asks each time whether its copy is still the one; that costs it no more than the question.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use http::{HeaderMap, StatusCode};
use tollgate_model::image::sha256;

use crate::etag;

const SCRIPT: &str = include_str!("../../../../../sdk/web/tollgate-frames.js");

/// Shows the web component `<tollgate-frames>`
///
/// With the `ETag` of a copy in `If-None-Match`, nothing is sent again.
#[utoipa::path(
    get,
    path = "/assets/tollgate-frames.js",
    operation_id = "framesComponent",
    tag = "images",
    params(
        ("If-None-Match" = Option<String>, Header, description = "`ETag` of the copy that the client has."),
    ),
    responses(
        (status = 200, description = "An ES module.", body = String, content_type = "text/javascript",
            headers(("ETag" = String, description = "SHA-256 of the module."))),
        (status = 304, description = "The client's copy is the module."),
    )
)]
pub(crate) async fn frames(headers: HeaderMap) -> Response {
    static TAG: LazyLock<String> = LazyLock::new(|| etag::tag(&sha256(SCRIPT.as_bytes())));
    let kept = [(ETAG, TAG.as_str()), (CACHE_CONTROL, "public, no-cache")];
    if etag::has(&headers, &TAG) {
        return (StatusCode::NOT_MODIFIED, kept).into_response();
    }
    (kept, [(CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use http::header::IF_NONE_MATCH;

    use super::*;

    #[tokio::test]
    async fn who_has_it_is_not_sent_it_again() {
        let mut headers = HeaderMap::new();
        let whole = frames(headers.clone()).await;
        assert_eq!(
            (whole.status(), &whole.headers()[CONTENT_TYPE]),
            (StatusCode::OK, &"text/javascript; charset=utf-8".parse().unwrap())
        );
        headers.insert(IF_NONE_MATCH, whole.headers()[ETAG].clone());
        let body = to_bytes(whole.into_body(), usize::MAX).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains("customElements.define('tollgate-frames'"));

        let known = frames(headers.clone()).await;
        assert_eq!(
            (known.status(), &known.headers()[CACHE_CONTROL]),
            (StatusCode::NOT_MODIFIED, &"public, no-cache".parse().unwrap())
        );
        assert_eq!(known.headers()[ETAG], headers[IF_NONE_MATCH]);
        assert!(to_bytes(known.into_body(), usize::MAX).await.unwrap().is_empty());

        headers.insert(IF_NONE_MATCH, "\"an older one\"".parse().unwrap());
        assert_eq!(frames(headers).await.status(), StatusCode::OK);
    }
}
