//! The API key is in no message and in no `Debug`.

use secrecy::SecretString;
use url::Url;

use super::server::{Act, Server, reply};
use super::{KEY, ask, config, openai, request};
use crate::{ClientError, OpenAi, Provider};

/// Pieces of the key that would be a leak, ends included.
fn assert_clean(text: &str) {
    for piece in [KEY, &KEY[..10], &KEY[KEY.len() - 8..], "a1B2", "k_L"] {
        assert!(!text.contains(piece), "{piece} in {text}");
    }
}

#[tokio::test]
async fn no_message_quotes_the_key() {
    let quoted = format!(
        r#"{{"error": {{"message": "Incorrect API key provided: {KEY}.", "type": "{KEY}", "code": "{KEY}"}}}}"#
    );
    let masked = r#"{"error": {"message": "Incorrect API key provided: sk-proj-a1*****************k_L.", "code": "invalid_api_key"}}"#;
    let at_the_cap = format!("{}{KEY}", "x".repeat(64 * 1024 - 20));
    let plain = format!("Authorization: Bearer {KEY}");
    for body in [quoted.as_str(), masked, &at_the_cap, &plain] {
        let failure = ask(Act::Send(reply("401 Unauthorized", "", body)), &request()).await.unwrap_err();
        assert!(failure.message.starts_with("the provider answered 401 Unauthorized"), "{failure}");
        assert_clean(&format!("{failure} {failure:?}"));
    }
    // Where the message is ours and quotes the reply in passing.
    for head in [format!("HTTP/1.1 200 {KEY}\r\n\r\n{{\"{KEY}\""), format!("{KEY}\r\n\r\n")] {
        let failure = ask(Act::SendThenClose(head.into()), &request()).await.unwrap_err();
        assert_clean(&format!("{failure} {failure:?}"));
    }
    let shape = format!(r#"{{"choices": "{KEY}"}}"#);
    let failure = ask(Act::Send(reply("200 OK", "", &shape)), &request()).await.unwrap_err();
    assert_clean(&format!("{failure} {failure:?}"));
}

#[tokio::test]
async fn messages_are_short() {
    let failure = ask(Act::Send(reply("500 Oops", "", &"ä ".repeat(50_000))), &request()).await.unwrap_err();
    assert_eq!(failure.message.chars().count(), 500);
}

#[tokio::test]
async fn debug_shows_no_key() {
    let server = Server::start([Act::Reset]).await;
    assert_clean(&format!("{:?} {:#?}", config(server.url("http")), openai(&server)));
    assert!(format!("{:?}", openai(&server)).contains("/v1/chat/completions"));
    let failure = openai(&server).generate(&request()).await.unwrap_err();
    assert_clean(&format!("{failure:?}"));
}

#[test]
fn a_key_that_no_header_can_carry_is_refused_unquoted() {
    for key in [format!("{KEY}\n{KEY}"), format!("{KEY} {KEY}"), format!("{KEY}ä"), format!("{KEY}\0x")] {
        let mut config = config(Url::parse("http://h.example/v1").unwrap());
        config.api_key = Some(SecretString::from(key));
        let error = OpenAi::new(config).unwrap_err();
        assert!(matches!(error, ClientError::ApiKey));
        assert_clean(&format!("{error} {error:?}"));
    }
}
