//! One deadline over everything, down to the last byte.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tollgate_model::generation::{Decision, FailureKind};

use super::server::{Act, Server, ok, reply};
use super::{ask, chat_reply, config, openai, request_within};
use crate::{OpenAi, Provider};

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n";

#[tokio::test]
async fn silence_and_dripping_end_at_the_deadline() {
    for (act, says) in [
        (Act::SendThenHang(Vec::new()), "no reply within 150ms"),
        (Act::SendThenHang(b"HTTP/1.1 200 OK\r\nx-slow: ".to_vec()), "no reply within 150ms"),
        (Act::SendThenDrip(b"HTTP/1.1 200 OK\r\nx-slow: ".to_vec()), "no reply within 150ms"),
        (Act::SendThenHang(HEAD.into()), "did not end it within 150ms"),
        (Act::SendThenHang(CHUNKED.into()), "did not end it within 150ms"),
        (Act::SendThenDrip(HEAD.into()), "did not end it within 150ms"),
    ] {
        let server = Server::start([act.clone()]).await;
        let openai = openai(&server);
        let started = Instant::now();
        let patience = Duration::from_secs(5);
        let failure = timeout(patience, openai.generate(&request_within(150))).await.unwrap().unwrap_err();
        let took = started.elapsed();
        assert_eq!((failure.kind, failure.decision), (FailureKind::Timeout, Decision::Retry), "{act:?}");
        assert!(failure.message.contains(says), "{act:?}: {failure}");
        assert!((150..400).contains(&took.as_millis()), "{act:?}: {took:?}");
        server.until(Duration::from_millis(200), |counts| counts.open == 0).await;
    }
}

#[tokio::test]
async fn the_deadline_covers_connecting_too() {
    // The server speaks no TLS and says nothing, so the handshake never ends.
    let server = Server::start([Act::SendThenHang(Vec::new())]).await;
    let openai = OpenAi::new(config(server.url("https"))).unwrap();
    let failure = openai.generate(&request_within(150)).await.unwrap_err();
    assert_eq!((failure.kind, failure.decision), (FailureKind::Timeout, Decision::Retry), "{failure}");
    server.until(Duration::from_millis(200), |counts| counts.open == 0).await;
}

#[tokio::test]
async fn connecting_has_a_timeout_of_its_own() {
    let server = Server::start([Act::SendThenHang(Vec::new())]).await;
    let mut config = config(server.url("https"));
    config.connect_timeout = Duration::from_millis(100);
    let failure = OpenAi::new(config).unwrap().generate(&request_within(5_000)).await.unwrap_err();
    assert_eq!((failure.kind, failure.decision), (FailureKind::ServerError, Decision::Retry), "{failure}");
    assert!(failure.message.starts_with("cannot connect to the provider: "), "{failure}");
}

#[tokio::test]
async fn a_status_that_came_decides_even_if_its_body_does_not_come() {
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-length: 100\r\n\r\n{\"err";
    for act in
        [Act::SendThenHang(head.into()), Act::SendThenDrip(head.into()), Act::SendThenClose(head.into())]
    {
        let started = Instant::now();
        let failure = ask(act, &request_within(150)).await.unwrap_err();
        assert_eq!((failure.kind, failure.decision), (FailureKind::BadRequest, Decision::Fail));
        assert!(started.elapsed() < Duration::from_secs(1), "the deadline covers errors, too");
        assert!(failure.message.starts_with("the provider answered 400 Bad Request: {\"err"), "{failure}");
    }
}

#[tokio::test]
async fn timeouts_at_the_extremes_are_no_panic() {
    let mut request = request_within(0);
    let failure = ask(Act::SendThenHang(Vec::new()), &request).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout);
    request.timeout = Duration::MAX;
    assert_eq!(ask(Act::Send(ok(&chat_reply("hi"))), &request).await.unwrap().text, "hi");
}

#[tokio::test]
async fn latency_runs_to_the_last_byte() {
    // 8 spaces of body, one each 20 ms, then the client has its length and reads no further.
    let body = chat_reply("hi").to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len() + 8);
    let output = ask(Act::SendThenDrip(head.into()), &request_within(5_000)).await.unwrap();
    assert!((140..1_000).contains(&output.latency_ms), "{}", output.latency_ms);
    let output = ask(Act::Send(reply("200 OK", "", &body)), &request_within(5_000)).await.unwrap();
    assert!((0..100).contains(&output.latency_ms), "{}", output.latency_ms);
}
