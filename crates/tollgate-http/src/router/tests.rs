//! The layers, around routes that need no database.

use std::future;

use axum::body::Body;
use axum::extract::Path;
use axum::routing::{get, post};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, StatusCode};
use serde_json::Value;
use tollgate_model::job::Job;
use tower::ServiceExt as _;
use uuid::Uuid;

use super::*;
use crate::client::{ClientAddress, Connection};
use crate::extract::{Id, Query};
use crate::page::Limit;

#[derive(serde::Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Params {
    limit: Limit,
    #[serde(rename = "status")]
    _status: Option<tollgate_model::job::JobStatus>,
}

fn router() -> Router {
    let routes = Router::new()
        .route("/v1/jobs/{id}", get(async |id: Id<Job>| id.0.to_string()).delete(async || "gone"))
        .route("/v1/jobs", get(async |Query(params): Query<Params>| params.limit.and_one().to_string()))
        .route("/text/{text}", get(async |Path(text): Path<String>| text))
        .route("/panics", post(async || -> &'static str { panic!("on purpose") }))
        .route("/hangs", get(future::pending::<&'static str>));
    layered(routes, Edge { request_timeout: Duration::from_millis(200), ..Edge::default() })
}

async fn send(method: &str, uri: &[u8]) -> (StatusCode, HeaderMap, Value) {
    let request = Request::builder().method(method).uri(uri).header("x-request-id", "mine-1");
    let response = router().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    (parts.status, parts.headers, serde_json::from_slice(&body).unwrap_or_default())
}

/// Sends a request that must be refused, and returns the detail.
async fn refused(method: &str, uri: &[u8], code: Code) -> (HeaderMap, String) {
    let (status, headers, document) = send(method, uri).await;
    let shown = String::from_utf8_lossy(uri);
    assert_eq!(
        (status, &document["code"]),
        (code.status(), &Value::from(code.as_str())),
        "{shown}: {document}"
    );
    assert_eq!(headers[CONTENT_TYPE], "application/problem+json");
    assert_eq!(headers["x-request-id"], "mine-1");
    assert_eq!(document["request_id"], "mine-1");
    (headers, document["detail"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn each_answer_has_its_headers() {
    let (status, headers, _) = send("GET", b"/v1/jobs").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers["x-request-id"], "mine-1");
    assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
    assert_eq!(headers[CACHE_CONTROL], "no-store");
    assert!(!send("GET", b"/text/a").await.1.contains_key(CACHE_CONTROL));
}

#[tokio::test]
async fn no_route_and_no_method() {
    refused("GET", b"/", Code::NotFound).await;
    refused("GET", b"/v1/nothing", Code::NotFound).await;
    refused("GET", b"/v1/jobs/", Code::NotFound).await;
    let (headers, _) = refused("PUT", b"/v1/jobs/x", Code::MethodNotAllowed).await;
    assert_eq!(headers[ALLOW], "GET,HEAD,DELETE");
    refused("INVENTED", b"/v1/jobs/x", Code::MethodNotAllowed).await;
    let (status, headers, _) = send("HEAD", b"/v1/nothing").await;
    assert_eq!((status, &headers["x-request-id"]), (StatusCode::NOT_FOUND, &"mine-1".parse().unwrap()));
}

#[tokio::test]
async fn what_is_no_id_is_the_id_of_nothing() {
    let id = Uuid::from_u128(7).to_string();
    assert_eq!(send("GET", format!("/v1/jobs/{id}").as_bytes()).await.0, StatusCode::OK);
    for junk in
        [&b"/v1/jobs/1"[..], b"/v1/jobs/%FF", b"/v1/jobs/%00", b"/v1/jobs/%2e%2e", b"/v1/jobs/\xc3\xa9"]
    {
        assert_eq!(refused("GET", junk, Code::NotFound).await.1, "no such job");
    }
}

#[tokio::test]
async fn a_bad_parameter_is_named() {
    for (uri, said) in [
        ("/v1/jobs?limit=0", "query parameter limit: must be a whole number from 1 to 100"),
        ("/v1/jobs?limit=101", "limit: must be"),
        ("/v1/jobs?limit=x", "limit: must be"),
        ("/v1/jobs?limit=", "limit: must be"),
        ("/v1/jobs?limit=1&limit=2", "duplicate field `limit`"),
        ("/v1/jobs?status=done", "status: unknown variant `done`"),
        ("/v1/jobs?colour=red", "unknown field `colour`"),
        ("/v1/jobs?limit=%FF", "limit: must be"),
    ] {
        let (_, detail) = refused("GET", uri.as_bytes(), Code::InvalidRequest).await;
        assert!(detail.contains(said), "{uri}: {detail}");
    }
    assert_eq!(send("GET", b"/v1/jobs?limit=100").await.2, 101);
    assert_eq!(send("GET", b"/v1/jobs").await.2, 21);
}

#[tokio::test]
async fn a_panic_is_a_problem() {
    let (_, detail) = refused("POST", b"/panics", Code::Internal).await;
    assert!(!detail.contains("on purpose"));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_hangs_is_cut_off() {
    let (headers, detail) = refused("GET", b"/hangs", Code::Unavailable).await;
    assert!(headers.contains_key(RETRY_AFTER));
    assert!(detail.contains("200 ms"), "{detail}");
}

/// What becomes of a request that came over this connection, in production: its status, whether browsers are told to stay
/// with HTTPS, and the client's address, or the detail of the refusal.
async fn arrives(peer: &str, tls: bool, path: &str, headers: &[(&str, &str)]) -> (StatusCode, bool, String) {
    let ask =
        async |axum::Extension(ClientAddress(address)): axum::Extension<ClientAddress>| address.to_string();
    let routes = Router::new().route("/healthz", get(ask)).route("/v1/jobs", get(ask));
    let transport = Transport::new("192.0.2.0/24".parse().unwrap(), true);
    let edge = Edge { request_timeout: Duration::from_secs(1), transport, ..Edge::default() };
    let known = Connection { peer: peer.parse().unwrap(), tls };
    let mut request = Request::builder().uri(path).extension(known);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = layered(routes, edge).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let hsts = parts.headers.get("strict-transport-security");
    assert!(hsts.is_none_or(|hsts| hsts == "max-age=63072000; includeSubDomains; preload"));
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let text = match serde_json::from_slice::<Value>(&body) {
        Ok(problem) => problem["detail"].as_str().unwrap().to_owned(),
        Err(_) => String::from_utf8(body.to_vec()).unwrap(),
    };
    (parts.status, hsts.is_some(), text)
}

#[tokio::test]
async fn in_production_only_https_is_served() {
    let (ok, refused) = (StatusCode::OK, StatusCode::BAD_REQUEST);
    let behind = [("x-forwarded-proto", "https"), ("x-forwarded-for", "6.6.6.6, 198.51.100.7")];
    let open = [("x-forwarded-proto", "http"), ("x-forwarded-for", "198.51.100.7")];
    for (peer, tls, path, headers, expected) in [
        ("203.0.113.1", true, "/v1/jobs", &[][..], (ok, true, "203.0.113.1")),
        ("203.0.113.1", false, "/v1/jobs", &[], (refused, false, "set TLS_CERT and TLS_KEY")),
        ("203.0.113.1", false, "/v1/none", &[], (refused, false, "TRUSTED_PROXIES")),
        ("203.0.113.1", false, "/v1/jobs", &behind, (refused, false, "plain HTTP")),
        ("203.0.113.1", false, "/healthz", &[], (ok, false, "203.0.113.1")),
        ("192.0.2.1", false, "/v1/jobs", &behind, (ok, true, "198.51.100.7")),
        ("192.0.2.1", false, "/v1/jobs", &open, (refused, false, "to the proxy over plain HTTP")),
        ("192.0.2.1", false, "/healthz", &open, (ok, false, "198.51.100.7")),
        ("127.0.0.1", false, "/v1/jobs", &[], (ok, false, "127.0.0.1")),
        ("127.0.0.1", false, "/v1/jobs", &behind, (refused, false, "TRUSTED_PROXIES does not name")),
        ("127.0.0.1", false, "/v1/jobs", &behind[1..], (ok, false, "127.0.0.1")),
    ] {
        let (status, hsts, text) = arrives(peer, tls, path, headers).await;
        assert_eq!((status, hsts), (expected.0, expected.1), "{peer} {tls} {path}: {text}");
        assert!(
            if status == ok { text == expected.2 } else { text.contains(expected.2) },
            "{peer} {path}: {text}"
        );
    }
    // A route that is not there, over HTTPS.
    assert!(arrives("203.0.113.1", true, "/v1/none", &[]).await.1);
}
