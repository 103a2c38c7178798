//! Calls that are answered, and calls that are never made.

use std::time::Duration;

use futures_util::future::join;
use secrecy::SecretString;
use serde_json::json;
use tokio::time::Instant;
use tollgate_model::generation::{Decision, FailureKind, Usage};

use super::server::{Act, Server, ok};
use super::{KEY, ask, chat_reply, config, openai, request, responses_request};
use crate::{OpenAi, Provider};

#[tokio::test]
async fn a_chat_from_end_to_end() {
    let server = Server::start([Act::Send(ok(&chat_reply("hi")))]).await;
    let output = openai(&server).generate(&request()).await.unwrap();
    assert_eq!(output.provider_id, "chatcmpl-1");
    assert_eq!(output.text, "hi");
    assert_eq!(output.provider, "openai");
    assert_eq!(output.model, "gpt-test-2026");
    assert_eq!(output.usage, Usage { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7 });
    assert_eq!(output.raw, chat_reply("hi"));

    let seen = server.seen().remove(0);
    assert!(seen.head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.header("authorization"), format!("Bearer {KEY}"));
    assert_eq!(seen.header("content-type"), "application/json");
    assert_eq!(seen.header("x-client-request-id"), "00000000-0000-0000-0000-000000000007");
    assert_eq!(seen.header("user-agent"), concat!("tollgate/", env!("CARGO_PKG_VERSION")));
    assert_eq!(seen.header("accept-encoding"), "");
    assert_eq!(seen.body["messages"], json!([{"role": "user", "content": "hello"}]));
    assert_eq!(seen.body["stream"], false);
}

#[tokio::test]
async fn a_response_from_end_to_end() {
    let body = json!({
        "id": "resp_1", "object": "response", "status": "completed", "error": null, "model": "gpt-test-2026",
        "incomplete_details": null,
        "output": [
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
             "content": [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}]},
        ],
        "usage": {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11,
                  "output_tokens_details": {"reasoning_tokens": 2}},
    });
    let server = Server::start([Act::Send(ok(&body))]).await;
    let output = openai(&server).generate(&responses_request()).await.unwrap();
    assert_eq!((output.provider_id.as_str(), output.text.as_str()), ("resp_1", "hi"));
    assert_eq!(output.model, "gpt-test-2026");
    assert_eq!(output.usage, Usage { prompt_tokens: 5, completion_tokens: 6, total_tokens: 11 });
    assert_eq!(output.raw, body);

    let seen = server.seen().remove(0);
    assert!(seen.head.starts_with("POST /v1/responses HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.body["input"], json!([{"role": "user", "content": "hello"}]));
    assert_eq!(seen.body["store"], false);
}

#[tokio::test]
async fn the_least_that_is_an_answer() {
    let body = json!({"choices": [{"message": {"content": "hi"}}], "id": null, "usage": null});
    let output = ask(Act::Send(ok(&body)), &request()).await.unwrap();
    assert_eq!((output.provider_id.as_str(), output.model.as_str()), ("", "gpt-test"));
    assert_eq!(output.usage, Usage::default());
}

#[tokio::test]
async fn nul_is_nowhere_in_an_output() {
    let mut body = chat_reply("a\0b");
    (body["id"], body["model"]) = (json!("chat\0cmpl"), json!("\0"));
    body["x\0y"] = json!([{"deep\0er": "\0"}]);
    let output = ask(Act::Send(ok(&body)), &request()).await.unwrap();
    assert_eq!((output.text.as_str(), output.provider_id.as_str()), ("ab", "chatcmpl"));
    assert_eq!(output.model, "gpt-test", "an empty name is none");
    assert_eq!(output.raw["xy"], json!([{"deeper": ""}]));
    let everything = serde_json::to_string(&output).unwrap();
    assert!(!everything.contains("\\u0000") && !everything.contains('\0'), "{everything}");
}

#[tokio::test]
async fn a_body_is_read_to_the_cap_and_no_further() {
    let fits = |length: usize| {
        let reply = chat_reply("hi").to_string();
        format!("{reply}{}", " ".repeat(length - reply.len()))
    };
    let whole =
        |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", fits(length));
    let chunked = |length: usize| {
        format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{}\r\n0\r\n\r\n",
            fits(length)
        )
    };
    for text in [whole(100_000), chunked(100_000)] {
        assert_eq!(ask(Act::Send(text.into()), &request()).await.unwrap().text, "hi");
    }
    // Hanging servers: the answer must not wait for the end of what is too long.
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", fits(200_000));
    let promised = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n{".to_owned();
    for text in [whole(100_001), chunked(100_001), endless, promised] {
        let server = Server::start([Act::SendThenHang(text.into())]).await;
        let started = Instant::now();
        let failure = openai(&server).generate(&request()).await.unwrap_err();
        assert_eq!((failure.kind, failure.decision), (FailureKind::ServerError, Decision::Fail));
        assert!(failure.message.contains("longer than the 100000 bytes"), "{failure}");
        assert!(started.elapsed() < Duration::from_secs(2));
        server.until(Duration::from_millis(200), |counts| counts.open == 0).await;
    }
}

#[tokio::test]
async fn two_calls_at_once_have_two_connections_and_one_after_the_other_share_one() {
    // Nobody is answered, so both can arrive only if neither waits for the other.
    let server = Server::start([Act::SendThenHang(Vec::new())]).await;
    let (openai, request) = (openai(&server), request());
    tokio::select! {
        _ = join(openai.generate(&request), openai.generate(&request)) => panic!("the calls have ended"),
        () = server.until(Duration::from_secs(5), |counts| counts.requests == 2) => {}
    }
    assert_eq!(server.counts().opened, 2);

    let server = Server::start([Act::Send(ok(&chat_reply("hi")))]).await;
    let openai = super::openai(&server);
    let (one, two) = join(openai.generate(&request), openai.generate(&request)).await;
    assert_eq!((one.unwrap().text, two.unwrap().text), ("hi".to_owned(), "hi".to_owned()));
    let opened = server.counts().opened;
    for _ in 0..5 {
        openai.generate(&request).await.unwrap();
    }
    assert_eq!((server.counts().opened, server.counts().requests), (opened, 7));
}

#[tokio::test]
async fn nothing_is_sent_twice() {
    // On a kept connection, which is where clients like to try again by themselves.
    for last in [Act::Reset, Act::SendThenClose(Vec::new()), Act::SendThenClose(b"HTTP/1.1 ".to_vec())] {
        let server = Server::start([Act::Send(ok(&chat_reply("hi"))), last.clone()]).await;
        let openai = openai(&server);
        openai.generate(&request()).await.unwrap();
        let failure = openai.generate(&request()).await.unwrap_err();
        assert_eq!((failure.kind, failure.decision), (FailureKind::ServerError, Decision::Retry));
        assert_eq!(server.counts().requests, 2, "{last:?}");
        assert_eq!(server.counts().opened, 1, "{last:?}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Server::start([Act::Send(ok(&chat_reply("hi")))]).await;
    let location = format!("location: {}\r\n", other.url("http"));
    let redirect = super::server::reply("307 Temporary Redirect", &location, "");
    let failure = ask(Act::Send(redirect), &request()).await.unwrap_err();
    assert_eq!((failure.kind, failure.decision), (FailureKind::ServerError, Decision::Retry));
    assert_eq!(other.counts().opened, 0);
}

#[tokio::test]
async fn without_a_key_nothing_is_sent() {
    let server = Server::start([Act::Send(ok(&chat_reply("hi")))]).await;
    for key in [None, Some(""), Some(" \n")] {
        let mut config = config(server.url("http"));
        config.api_key = key.map(SecretString::from);
        let failure = OpenAi::new(config).unwrap().generate(&request()).await.unwrap_err();
        assert_eq!((failure.kind, failure.decision), (FailureKind::ServerError, Decision::Fail));
        assert!(failure.message.contains("OPENAI_API_KEY"), "{failure}");
    }
    assert_eq!(server.counts().opened, 0);
}

#[tokio::test]
async fn white_space_around_the_key_is_ignored() {
    let server = Server::start([Act::Send(ok(&chat_reply("hi")))]).await;
    let mut config = config(server.url("http"));
    config.api_key = Some(format!(" {KEY}\r\n").into());
    OpenAi::new(config).unwrap().generate(&request()).await.unwrap();
    assert_eq!(server.seen()[0].header("authorization"), format!("Bearer {KEY}"));
}

#[tokio::test]
async fn the_adapter_can_be_held_as_a_trait_object() {
    let server = Server::start([Act::Send(ok(&chat_reply("hi")))]).await;
    let provider: std::sync::Arc<dyn Provider> = std::sync::Arc::new(openai(&server));
    assert_eq!(provider.name(), "openai");
    let mut calls = tokio::task::JoinSet::new();
    calls.spawn(async move { provider.generate(&request()).await });
    assert_eq!(calls.join_next().await.unwrap().unwrap().unwrap().text, "hi");
}
