//! Each way to fail, its kind and its decision (SPEC G2), over a real socket.

use std::time::Duration;

use tokio::net::TcpListener;
use tollgate_model::generation::{Decision, FailureKind, GenerationRequest};
use url::Url;

use super::server::{Act, reply};
use super::{ask, config, request, responses_request};
use crate::{OpenAi, Provider};

use Decision::{Fail, Retry, RetryAfter};
use FailureKind::{BadRequest, RateLimit, ServerError, Timeout};

/// What is sent, and the kind, the decision and the beginning of the message that must come of it.
type Row<'a> = (Act, FailureKind, Decision, &'a str);

async fn check(request: &GenerationRequest, table: &[Row<'_>]) {
    for (act, kind, decision, message) in table {
        let failure = ask(act.clone(), request).await.unwrap_err();
        assert_eq!((failure.kind, failure.decision), (*kind, *decision), "{act:?}: {failure}");
        assert!(failure.message.starts_with(message), "{act:?}: {failure}");
    }
}

fn send(status: &str, headers: &str, body: &str) -> Act {
    Act::Send(reply(status, headers, body))
}

const QUOTA: &str = r#"{"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "param": null, "code": "insufficient_quota"}}"#;
const RATE: &str = r#"{"error": {"message": "Rate limit reached", "type": "requests", "param": null, "code": "rate_limit_exceeded"}}"#;

#[tokio::test]
async fn statuses() {
    let ms = |n| RetryAfter(Duration::from_millis(n));
    let dates = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\nretry-after: Sun, 06 Nov 1994 08:49:57 GMT\r\n";
    let too_many = "429 Too Many Requests";
    #[rustfmt::skip]
    let table = [
        (send(too_many, "", RATE), RateLimit, Retry,
         "the provider answered 429 Too Many Requests (rate_limit_exceeded): Rate limit reached"),
        (send(too_many, "retry-after: 7\r\n", RATE), RateLimit, ms(7_000), "the provider answered 429"),
        (send(too_many, "retry-after: 1.5\r\n", ""), RateLimit, ms(1_500), "the provider answered 429 Too Many Requests"),
        (send(too_many, "retry-after-ms: 20\r\nretry-after: 1\r\n", RATE), RateLimit, ms(20), ""),
        (send(too_many, dates, RATE), RateLimit, ms(20_000), ""),
        (send(too_many, "retry-after: -1\r\n", RATE), RateLimit, ms(0), ""),
        (send(too_many, "retry-after: 999999999\r\n", RATE), RateLimit, ms(86_400_000), ""),
        (send(too_many, "retry-after: soon\r\n", RATE), RateLimit, Retry, ""),
        (send(too_many, "retry-after: 7\r\n", QUOTA), RateLimit, Fail,
         "the provider answered 429 Too Many Requests (insufficient_quota): You exceeded"),
        (send(too_many, "", r#"{"error": {"code": "insufficient_quota"}}"#), RateLimit, Fail, ""),
        (send(too_many, "", r#"{"error": {"type": "insufficient_quota", "code": 429}}"#), RateLimit, Fail, ""),
        (send(too_many, "", r#"{"error": {"type": "billing_not_active"}}"#), RateLimit, Fail, ""),
        (send("408 Request Timeout", "", ""), Timeout, Retry, "the provider answered 408 Request Timeout"),
        (send("400 Bad Request", "", r#"{"error": {"message": "no", "type": "invalid_request_error", "code": null}}"#),
         BadRequest, Fail, "the provider answered 400 Bad Request (invalid_request_error): no"),
        (send("400 Bad Request", "", QUOTA), BadRequest, Fail, ""),
        (send("401 Unauthorized", "retry-after: 7\r\n", ""), BadRequest, Fail, "the provider answered 401"),
        (send("403 Forbidden", "", "nope"), BadRequest, Fail, "the provider answered 403 Forbidden: nope"),
        (send("404 Not Found", "", r#"{"error": "model not found"}"#), BadRequest, Fail,
         "the provider answered 404 Not Found: model not found"),
        (send("409 Conflict", "", r#"{"message": "wait", "code": 409}"#), BadRequest, Fail,
         "the provider answered 409 Conflict (409): wait"),
        (send("422 Unprocessable Entity", "", r#"{"detail": [{"loc": ["body"]}]}"#), BadRequest, Fail,
         r#"the provider answered 422 Unprocessable Entity: [{"loc":["body"]}]"#),
        (send("499 Odd", "", "[1]"), BadRequest, Fail, "the provider answered 499"),
        (send("500 Internal Server Error", "", r#"{"error": {"message": "oops", "type": "server_error"}}"#),
         ServerError, Retry, "the provider answered 500 Internal Server Error (server_error): oops"),
        (send("502 Bad Gateway", "", "\n<html><body>secret innards</body></html>"), ServerError, Retry,
         "the provider answered 502 Bad Gateway"),
        (send("503 Service Unavailable", "retry-after: 3\r\n", "null"), ServerError, ms(3_000),
         "the provider answered 503 Service Unavailable"),
        (send("529 Overloaded", "retry-after: 4\r\n", ""), ServerError, ms(4_000), "the provider answered 529"),
        (send("599 Odd", "", "\u{0}"), ServerError, Retry, "the provider answered 599"),
        (send("300 Multiple Choices", "", ""), ServerError, Retry, "the provider answered 300"),
        (send("301 Moved Permanently", "location: /v2\r\n", ""), ServerError, Retry,
         "the provider answered 301 Moved Permanently, which is not followed; is the base URL right?"),
        (send("304 Not Modified", "", ""), ServerError, Retry, "the provider answered 304"),
        (send("600 Odd", "", ""), ServerError, Retry, "the provider answered 600"),
        (Act::Send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n".to_vec()),
         ServerError, Retry, "the provider answered 101"),
    ];
    check(&request(), &table).await;
    check(&responses_request(), &table[..1]).await;
}

#[tokio::test]
async fn an_error_page_in_markup_is_not_quoted() {
    let failure = ask(send("502 Bad Gateway", "", "<html>innards"), &request()).await.unwrap_err();
    assert_eq!(failure.message, "the provider answered 502 Bad Gateway");
}

#[tokio::test]
async fn broken_connections() {
    let half = reply("200 OK", "", &"x".repeat(1000))[..200].to_vec();
    let chunk = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let before = "the connection to the provider broke before a reply, or the reply was not HTTP: ";
    let after = "the provider's reply broke off: ";
    let table = [
        (Act::Reset, ServerError, Retry, before),
        (Act::SendThenClose(Vec::new()), ServerError, Retry, before),
        (Act::SendThenClose(b"HTTP/1.1 200 OK\r\ncontent-le".to_vec()), ServerError, Retry, before),
        (Act::SendThenClose(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()), ServerError, Retry, before),
        (Act::SendThenClose(half), ServerError, Retry, after),
        (Act::SendThenClose(format!("{chunk}3\r\n{{}} \r\n").into()), ServerError, Retry, after),
        (Act::SendThenClose(format!("{chunk}zz\r\n").into()), ServerError, Retry, after),
    ];
    check(&request(), &table).await;
}

#[tokio::test]
async fn no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let base = Url::parse(&format!("http://{closed}/v1")).unwrap();
    let failure = OpenAi::new(config(base)).unwrap().generate(&request()).await.unwrap_err();
    assert_eq!((failure.kind, failure.decision), (ServerError, Retry), "{failure}");
    assert!(failure.message.starts_with("cannot connect to the provider: "), "{failure}");
}

#[tokio::test]
async fn successes_that_are_none() {
    let ok = |body: &str| send("200 OK", "", body);
    let json = "the provider's reply is not JSON: ";
    let shape = "the provider's reply is JSON of the wrong shape: ";
    let reports = "the provider reports a failure";
    let deep = "[".repeat(100_000);
    let both = [
        (ok(""), ServerError, Retry, json),
        (ok("{\"choices\": ["), ServerError, Retry, json),
        (ok("data: {}\n\ndata: [DONE]\n\n"), ServerError, Retry, json),
        (ok(&deep), ServerError, Retry, json),
        (send("204 No Content", "", ""), ServerError, Retry, json),
        (ok("null"), ServerError, Retry, shape),
        (ok("[]"), ServerError, Retry, shape),
        (ok("[null, null, null, null]"), ServerError, Retry, shape),
        (ok("\"text\""), ServerError, Retry, shape),
        (ok("{}"), ServerError, Retry, shape),
        (ok(r#"{"error": {"message": "busy", "code": 503}}"#), ServerError, Retry, reports),
        (ok(r#"{"error": {"message": "slow", "code": 429}}"#), RateLimit, Retry, reports),
        (ok(r#"{"error": {"message": "no", "code": 400}}"#), BadRequest, Fail, reports),
        (ok(r#"{"error": "hm"}"#), ServerError, Retry, "the provider reports a failure: hm"),
    ];
    check(&request(), &both).await;
    check(&responses_request(), &both).await;
    let chat = [
        (ok(r#"{"choices": []}"#), ServerError, Retry, shape),
        (ok(r#"{"choices": null}"#), ServerError, Retry, shape),
        (ok(r#"{"choices": [{}]}"#), ServerError, Retry, shape),
        (ok(r#"{"choices": [{"text": "hi"}]}"#), ServerError, Retry, shape),
        (ok(r#"{"choices": [{"message": {"content": 7}}]}"#), ServerError, Retry, shape),
        (ok(r#"{"choices": {"0": 1}}"#), ServerError, Retry, shape),
    ];
    check(&request(), &chat).await;
}

#[tokio::test]
async fn responses_that_failed() {
    let failed =
        |code: &str| send("200 OK", "", &format!(r#"{{"status": "failed", "output": [], "error": {code}}}"#));
    let ok = |body: &str| send("200 OK", "", body);
    #[rustfmt::skip]
    let table = [
        (failed(r#"{"code": "rate_limit_exceeded", "message": "slow"}"#), RateLimit, Retry,
         "the provider reports a failure (rate_limit_exceeded): slow"),
        (failed(r#"{"code": "insufficient_quota", "message": "money"}"#), RateLimit, Fail, ""),
        (failed(r#"{"code": "server_error", "message": "oops"}"#), ServerError, Retry, ""),
        (failed(r#"{"code": "vector_store_timeout", "message": "late"}"#), Timeout, Retry, ""),
        (failed(r#"{"code": "invalid_prompt", "message": "no"}"#), BadRequest, Fail, ""),
        (failed("null"), ServerError, Retry, "the provider reports a failure"),
        (ok(r#"{"status": "incomplete", "output": [], "incomplete_details": {"reason": "max_output_tokens"}}"#),
         BadRequest, Fail, "the provider stopped before the first word of an answer (max_output_tokens)"),
        (ok(r#"{"status": "incomplete", "output": []}"#), BadRequest, Fail, "the provider stopped"),
        (ok(r#"{"status": "queued", "output": []}"#), ServerError, Retry, "the provider's reply is JSON of the wrong"),
        (ok(r#"{"status": "cancelled", "output": []}"#), ServerError, Retry, "the provider's reply is JSON of the wrong"),
        (ok(r#"{"output": "hi"}"#), ServerError, Retry, "the provider's reply is JSON of the wrong shape: "),
    ];
    check(&responses_request(), &table).await;
}
