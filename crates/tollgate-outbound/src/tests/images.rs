//! Images, in the reply or at its URL; and what of a URL is refused.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::time::Instant;
use tollgate_model::generation::{Decision, Endpoint, FailureKind, GenerationRequest};
use tollgate_model::image::MediaType;

use super::server::{Act, Server, ok, reply};
use super::{openai, request};
use crate::Provider as _;

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and so on";

fn image_request() -> GenerationRequest {
    GenerationRequest { endpoint: Endpoint::Images, size: Some("1024x1024".to_owned()), ..request() }
}

fn here(bytes: &[u8]) -> Act {
    Act::Send(ok(&json!({
        "created": 1, "data": [{"b64_json": STANDARD.encode(bytes)}],
        "usage": {"input_tokens": 3, "output_tokens": 272, "total_tokens": 275},
    })))
}

fn at(url: &str) -> Act {
    Act::Send(ok(&json!({"created": 1, "data": [{"url": url, "revised_prompt": "a fine gate"}]})))
}

fn file(bytes: &[u8]) -> Act {
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n", bytes.len());
    Act::Send([head.as_bytes(), bytes].concat())
}

#[tokio::test]
async fn an_image_in_the_reply() {
    let server = Server::start([here(PNG)]).await;
    let output = openai(&server).generate(&image_request()).await.unwrap();
    let image = output.image.unwrap();
    assert_eq!((image.media_type, image.bytes.as_slice()), (MediaType::Png, PNG));
    assert_eq!((output.text.as_str(), output.model.as_str()), ("", "gpt-test"));
    assert_eq!(output.usage.total_tokens, 275);
    assert_eq!(output.raw["data"], json!([{}]), "the bytes are kept twice");

    let [seen] = server.seen().try_into().unwrap();
    assert!(seen.head.starts_with("POST /v1/images/generations "), "{}", seen.head);
    assert_eq!(seen.body, json!({"model": "gpt-test", "prompt": "hello", "n": 1, "size": "1024x1024"}));
}

#[tokio::test]
async fn an_image_at_a_url_of_the_provider_itself() {
    let server = Server::start([]).await;
    let url = server.url("http").join("/images/1.png").unwrap();
    server.then([at(url.as_str()), file(PNG)]);
    let output = openai(&server).generate(&image_request()).await.unwrap();
    assert_eq!(output.image.unwrap().bytes, PNG);
    assert_eq!(output.text, "a fine gate");

    let [_, fetched] = server.seen().try_into().unwrap();
    assert!(fetched.head.starts_with("GET /images/1.png "), "{}", fetched.head);
    assert_eq!(fetched.header("authorization"), "", "the key went along");
}

/// A call that fails; what is fetched, if anything, is fetched from the provider's own server.
async fn failure(
    first: impl FnOnce(&str) -> Act,
    then: Option<Act>,
) -> (FailureKind, Decision, String, usize) {
    let server = Server::start([]).await;
    let url = server.url("http").join("/images/1.png").unwrap();
    server.then([first(url.as_str())].into_iter().chain(then));
    let request = GenerationRequest { timeout: Duration::from_millis(1_500), ..image_request() };
    let failure = openai(&server).generate(&request).await.unwrap_err();
    (failure.kind, failure.decision, failure.message, server.counts().requests)
}

#[tokio::test]
async fn urls_that_lead_inside_or_nowhere_are_refused_and_never_fetched() {
    let inside = Server::start([file(PNG)]).await;
    let loopback = inside.url("http").join("/secret.png").unwrap().to_string();
    let by_name = loopback.replace("127.0.0.1", "localhost");
    for url in [
        loopback.as_str(),
        &by_name,
        "http://10.0.0.1/i.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:1/i.png",
        "http://[::ffff:10.0.0.1]/i.png",
        "http://2130706433/i.png",
        "http://0x7f.1/i.png",
        "file:///etc/passwd",
        "ftp://h.example/i.png",
        "data:image/png;base64,iVBORw0KGgo=",
        "/images/1.png",
        "no url",
    ] {
        let (kind, decision, message, requests) = failure(|_| at(url), None).await;
        assert_eq!((kind, decision), (FailureKind::ServerError, Decision::Fail), "{url}: {message}");
        assert_eq!(requests, 1, "{url}");
        assert!(!message.contains("i.png"), "it tells the URL: {message}");
    }
    assert_eq!(inside.counts().opened, 0, "somebody knocked");
}

#[tokio::test]
async fn what_is_fetched_must_be_an_image_of_an_allowed_size() {
    let too_long = vec![0x89; 50_001];
    let redirect = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    for (act, decision, said) in [
        (file(b"<html>an error page</html>"), Decision::Retry, "no PNG, JPEG or WebP"),
        (file(b""), Decision::Retry, "no PNG, JPEG or WebP"),
        (file(&too_long), Decision::Fail, "longer than the 50000 bytes"),
        (Act::Send(reply("404 Not Found", "", "gone")), Decision::Retry, "404"),
        (Act::Send(redirect.as_bytes().to_vec()), Decision::Fail, "redirect"),
        (Act::Reset, Decision::Retry, "could not be fetched"),
    ] {
        let (kind, found, message, requests) = failure(at, Some(act)).await;
        assert_eq!((kind, found, requests), (FailureKind::ServerError, decision, 2), "{message}");
        assert!(message.contains(said), "{said}: {message}");
    }
}

#[tokio::test]
async fn the_deadline_covers_the_image_too() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n\x89PNG".to_vec();
    for act in [Act::SendThenHang(head.clone()), Act::SendThenDrip(head)] {
        let began = Instant::now();
        let (kind, decision, message, _) = failure(at, Some(act)).await;
        assert_eq!((kind, decision), (FailureKind::Timeout, Decision::Retry), "{message}");
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(1_400) && took < Duration::from_secs(4), "{took:?}");
    }
}

#[tokio::test]
async fn bytes_in_the_reply_are_held_to_the_same() {
    for (act, kind, decision) in [
        (here(b"GIF89a..."), FailureKind::ServerError, Decision::Retry),
        (here(&vec![0x89; 50_001]), FailureKind::ServerError, Decision::Fail),
        (here(&vec![0x89; 500_000]), FailureKind::ServerError, Decision::Fail),
        (Act::Send(ok(&json!({"data": [{}]}))), FailureKind::NoImageUrl, Decision::Fail),
        (Act::Send(ok(&json!({"data": [{"url": ""}]}))), FailureKind::NoImageUrl, Decision::Fail),
        (Act::Send(ok(&json!({"choices": []}))), FailureKind::ServerError, Decision::Retry),
        (Act::Send(ok(&Value::Null)), FailureKind::ServerError, Decision::Retry),
    ] {
        let (found, how, message, requests) = failure(|_| act, None).await;
        assert_eq!((found, how, requests), (kind, decision, 1), "{message}");
    }
    let longest = [PNG, &vec![0; 50_000 - PNG.len()]].concat();
    let server = Server::start([here(&longest)]).await;
    assert!(openai(&server).generate(&image_request()).await.is_ok(), "the longest that is allowed");
}
