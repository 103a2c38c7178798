//! Through a router, since what a refusal looks like on the wire is what counts.

use std::time::Duration;

use axum::Router;
use axum::response::Response;
use axum::routing::post;
use futures_util::stream;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tollgate_model::submission::Submission;
use tower::ServiceExt as _;

use super::*;
use crate::router::{Edge, layered};

const LIMIT: usize = 1000;

async fn echo(JsonBody(submission): JsonBody<Submission>) -> axum::Json<Submission> {
    axum::Json(submission)
}

async fn send(request: Request<Body>) -> (StatusCode, Value) {
    let router = Router::new().route("/", post(echo));
    let router = layered(router, Edge { request_timeout: Duration::from_secs(5), ..Edge::default() })
        .with_state(BodyLimit(LIMIT));
    let response: Response = router.oneshot(request).await.unwrap();
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn post_as(content_type: &str, body: impl Into<Body>) -> (StatusCode, Value) {
    send(Request::post("/").header(CONTENT_TYPE, content_type).body(body.into()).unwrap()).await
}

#[tokio::test]
async fn json_of_any_name_is_read() {
    for name in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.me+json"] {
        let (status, body) = post_as(name, r#"{"prompt": "hi"}"#).await;
        assert_eq!((status, body), (StatusCode::OK, json!({"prompt": "hi"})), "{name}");
    }
}

#[tokio::test]
async fn another_type_is_refused() {
    for name in ["text/plain", "application/jsonp", "application/x-www-form-urlencoded", "json", "é", ""] {
        let (status, body) = post_as(name, "{}").await;
        assert_eq!((status, &body["code"]), (StatusCode::BAD_REQUEST, &json!("invalid_request")), "{name}");
    }
    let (status, _) = send(Request::post("/").body(Body::from("{}")).unwrap()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn each_fault_is_named() {
    for (body, said) in [
        ("", "empty"),
        (" \n", "empty"),
        ("{", "not valid JSON: EOF while parsing an object at line 1 column 1"),
        ("{\n  \"prompt\": }", "line 2 column 13"),
        ("{} {}", "trailing characters at line 1 column 4"),
        ("[]", "the body cannot be accepted: invalid type: sequence, expected an object"),
        ("null", "the body cannot be accepted: invalid type: null, expected an object"),
        ("\"text\"", "expected an object"),
        ("{\"messages\": [[\"user\", \"a\"]]}", "`messages[0]` cannot be accepted: invalid type: sequence"),
        ("{\"prompt\": 1}", "`prompt` cannot be accepted: invalid type: integer `1`"),
        ("{\"max_tokens\": 1.5}", "`max_tokens`"),
        ("{\"max_tokens\": 1e400}", "number out of range"),
        ("{\"seed\": 9223372036854775808}", "`seed`"),
        ("{\"scheduled_at\": \"tomorrow\"}", "`scheduled_at`"),
        ("{\"colour\": \"red\"}", "unknown field `colour`"),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"bot\"}]}",
            "`messages[1].role`",
        ),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\", \"x\": 1}]}", "unknown field `x`"),
        ("{\"prompt\": \"a\", \"prompt\": \"b\"}", "`prompt` stands there twice"),
        (
            "{\"metadata\": {\"a\": {\"b\": 1, \"b\": 2}}}",
            "`metadata.a` cannot be accepted: the field `b` stands",
        ),
        ("{\"prompt\": \"a\\u0000\"}", "`prompt` cannot be accepted: must not hold the NUL character"),
        ("{\"metadata\": {\"a\\u0000\": 1}}", "must not hold the NUL character"),
        ("{\"prompt\": \"\\ud800\"}", "not valid JSON"),
    ] {
        let (status, document) = post_as("application/json", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {document}");
        let detail = document["detail"].as_str().unwrap();
        assert!(detail.contains(said), "{body}: {detail}");
    }
    let (status, _) = post_as("application/json", &b"{\"prompt\": \"\xff\"}"[..]).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, _) = post_as("application/json", "[".repeat(500)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_long_body_is_refused_with_or_without_a_length() {
    let fits = json!({"prompt": "x".repeat(LIMIT - 13)}).to_string();
    assert_eq!(fits.len(), LIMIT);
    assert_eq!(post_as("application/json", fits.clone()).await.0, StatusCode::OK);

    let (status, document) = post_as("application/json", format!("{fits} ")).await;
    assert_eq!((status, &document["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!("payload_too_large")));

    let chunks = (0..LIMIT).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(b"  ")));
    let (status, _) = post_as("application/json", Body::from_stream(stream::iter(chunks))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_clients_fault() {
    let chunks = [Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("reset"))];
    let (status, _) = post_as("application/json", Body::from_stream(stream::iter(chunks))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_cut_off() {
    let body = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let (status, document) = post_as("application/json", body).await;
    assert_eq!((status, &document["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")));
}
