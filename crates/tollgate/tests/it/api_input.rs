//! Bad bodies: whatever a client submits, it is told what is wrong with it, and nothing is harmed by it.
//!
//! Every refusal is checked as a whole: status, code, the six members of its document, the request's id, the field
//! it names. After each table the server is still ready, holds no job, and has logged neither an error nor a panic.

use std::time::Duration;

use crate::watched::{SUBMIT, Watched, invalid, refused};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

impl Watched {
    /// Sends bytes as they are, all of them before it reads, as simple clients do; then reads until the server closes.
    async fn send_all(&self, head: &str, rest: &str) -> String {
        let mut stream = TcpStream::connect(self.url.trim_start_matches("http://")).await.unwrap();
        let sent = stream.write_all(format!("{head}{rest}").as_bytes()).await;
        sent.unwrap_or_else(|error| panic!("cut off before it had sent {} bytes: {error}", rest.len()));
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        read.unwrap_or_else(|_| panic!("the connection stays open after {answer}")).unwrap();
        answer
    }
}

/// What stands beside a sound prompt, and what the refusal must name.
const BAD_FIELDS: &[(&str, &str)] = &[
    (r#""colour": "red""#, "`colour`"),
    (r#""Prompt": "a""#, "`Prompt`"),
    (r#""prompt": "b""#, "`prompt`"),
    (r#""messages": [{"role": "user", "content": "a"}]"#, "`messages`"),
    (
        r#""type": "nope""#,
        "`type` is not a known job type; known are autopoietic.tick, diary.entry, image, kb.ingest",
    ),
    (r#""type": """#, "`type`"),
    (r#""type": "TEXT""#, "`type`"),
    (r#""type": 1"#, "`type`"),
    (r#""type": "te\u0000xt""#, "`type`"),
    (r#""model": 1"#, "`model`"),
    (r#""model": """#, "`model`"),
    (r#""model": "  ""#, "`model`"),
    (r#""model": "a\u0000""#, "`model`"),
    (r#""size": "1024x1024""#, "`size`"),
    (r#""size": 7"#, "`size`"),
    (r#""temperature": "0.5""#, "`temperature`"),
    (r#""temperature": -0.01"#, "`temperature`"),
    (r#""temperature": 2.01"#, "`temperature`"),
    (r#""temperature": 1e308"#, "`temperature`"),
    (r#""temperature": 1e400"#, "number out of range"),
    (r#""temperature": NaN"#, "not valid JSON"),
    (r#""temperature": [0]"#, "`temperature`"),
    (r#""max_tokens": -1"#, "`max_tokens` must be between 1 and 1000000"),
    (r#""max_tokens": 0"#, "`max_tokens`"),
    (r#""max_tokens": 1000001"#, "`max_tokens`"),
    (r#""max_tokens": 9223372036854775807"#, "`max_tokens`"),
    (r#""max_tokens": 9223372036854775808"#, "`max_tokens`"),
    (r#""max_tokens": 1.0"#, "`max_tokens`"),
    (r#""max_tokens": "7""#, "`max_tokens`"),
    (r#""max_tokens": true"#, "`max_tokens`"),
    (r#""seed": 1.5"#, "`seed`"),
    (r#""seed": 9223372036854775808"#, "`seed`"),
    (r#""seed": -9223372036854775809"#, "`seed`"),
    (r#""seed": 1e400"#, "number out of range"),
    (r#""seed": "7""#, "`seed`"),
    (r#""priority": 0"#, "`priority` must be between 1 and 10"),
    (r#""priority": 11"#, "`priority`"),
    (r#""priority": -1"#, "`priority`"),
    (r#""priority": 65541"#, "`priority`"),
    (r#""priority": 5.5"#, "`priority`"),
    (r#""max_attempts": 0"#, "`max_attempts` must be between 1 and 20"),
    (r#""max_attempts": 21"#, "`max_attempts`"),
    (r#""max_attempts": 4294967297"#, "`max_attempts`"),
    (r#""max_attempts": 1e2"#, "`max_attempts`"),
    (r#""timeout_ms": 99"#, "`timeout_ms` must be between 100 and 600000"),
    (r#""timeout_ms": 600001"#, "`timeout_ms`"),
    (r#""timeout_ms": -100"#, "`timeout_ms`"),
    (r#""timeout_ms": 100.5"#, "`timeout_ms`"),
    (r#""scheduled_at": 1700000000"#, "`scheduled_at`"),
    (r#""scheduled_at": """#, "`scheduled_at`"),
    (r#""scheduled_at": "tomorrow""#, "`scheduled_at`"),
    (r#""scheduled_at": "2030-01-01""#, "`scheduled_at`"),
    (r#""scheduled_at": "2030-02-30T00:00:00Z""#, "`scheduled_at`"),
    (r#""scheduled_at": "2030-01-01T25:00:00Z""#, "`scheduled_at`"),
    (r#""scheduled_at": "2030-01-01T00:00:00""#, "`scheduled_at`"),
    (r#""scheduled_at": "9999-12-31T23:59:59Z""#, "`scheduled_at` must be at most a year ahead"),
    (r#""scheduled_at": "300000-01-01T00:00:00Z""#, "`scheduled_at`"),
    (r#""scheduled_at": "+300000-01-01T00:00:00Z""#, "`scheduled_at`"),
    (r#""scheduled_at": "+262142-12-31T23:59:59Z""#, "`scheduled_at`"),
    (r#""metadata": []"#, "`metadata`"),
    (r#""metadata": "note""#, "`metadata`"),
    (r#""metadata": {"a": 1e400}"#, "number out of range"),
    (r#""metadata": {"a": [123456789012345678901234567890]}"#, "`metadata`"),
    (r#""metadata": {"a": 1, "a": 2}"#, "`metadata`"),
    (r#""metadata": {"a\u0000": 1}"#, "`metadata`"),
    (r#""metadata": {"a": {"b": ["c\u0000"]}}"#, "`metadata.a.b[0]`"),
];

/// Bodies that are wrong as a whole.
const BAD_BODIES: &[(&str, &str)] = &[
    ("", "empty"),
    (" \r\n\t", "empty"),
    ("{}", "`messages`"),
    ("[]", "expected an object"),
    ("null", "expected an object"),
    ("true", "expected an object"),
    (r#""prompt""#, "expected an object"),
    (r#"[{"prompt": "a"}]"#, "expected an object"),
    (r#"{"prompt": "a""#, "not valid JSON"),
    (r#"{"prompt": "a"} {"prompt": "b"}"#, "not valid JSON: trailing characters"),
    (r#"{"prompt": "a",}"#, "not valid JSON"),
    (r"{'prompt': 'a'}", "not valid JSON"),
    (r#"{"prompt": "a" /* b */}"#, "not valid JSON"),
    ("\u{feff}{\"prompt\": \"a\"}", "not valid JSON"),
    ("{\"prompt\": \"a\nb\"}", "not valid JSON"),
    ("{\"prompt\": \"a\0b\"}", "not valid JSON"),
    (r#"{"prompt": "\ud83d"}"#, "not valid JSON"),
    (r#"{"prompt": "\ud83d\ud83d"}"#, "not valid JSON"),
    (r#"{"metadata": {"\udc00": 1}, "prompt": "a"}"#, "not valid JSON"),
    (r#"{"prompt": "\x41"}"#, "not valid JSON"),
    ("prompt=a", "not valid JSON"),
    ("<prompt>a</prompt>", "not valid JSON"),
    (r#"{"prompt": ""}"#, "`prompt` must hold some text"),
    (r#"{"prompt": " \n\t\u2003"}"#, "`prompt` must hold some text"),
    (r#"{"prompt": "a\u0000b"}"#, "`prompt`"),
    (r#"{"prompt": 1}"#, "`prompt`"),
    (r#"{"prompt": ["a"]}"#, "`prompt`"),
    (r#"{"prompt": null}"#, "`messages`"),
    (r#"{"messages": []}"#, "`messages` must not be empty"),
    (r#"{"messages": {}}"#, "`messages`"),
    (r#"{"messages": "a"}"#, "`messages`"),
    (r#"{"messages": [null]}"#, "`messages[0]`"),
    (r#"{"messages": [["user", "a"]]}"#, "`messages[0]`"),
    (r#"{"messages": [{"role": "user"}]}"#, "`content`"),
    (r#"{"messages": [{"content": "a"}]}"#, "`role`"),
    (r#"{"messages": [{"role": "robot", "content": "a"}]}"#, "`messages[0].role`"),
    (r#"{"messages": [{"role": "User", "content": "a"}]}"#, "`messages[0].role`"),
    (r#"{"messages": [{"role": "user", "content": null}]}"#, "`messages[0].content`"),
    (r#"{"messages": [{"role": "user", "content": [{"type": "text"}]}]}"#, "`messages[0].content`"),
    (r#"{"messages": [{"role": "user", "content": "a\u0000"}]}"#, "`messages[0].content`"),
    (r#"{"messages": [{"role": "user", "content": "a", "name": "b"}]}"#, "`name`"),
    (r#"{"messages": [{"role": "user", "content": " "}, {"role": "user", "content": ""}]}"#, "`messages`"),
];

#[tokio::test]
async fn bad_submissions_are_refused_by_field() {
    let api = Watched::start().await;
    for (field, says) in BAD_FIELDS {
        let body = format!(r#"{{"prompt": "a", {field}}}"#);
        invalid(&body, api.post(SUBMIT, body.clone()).send().await.unwrap(), says).await;
    }
    for (body, says) in BAD_BODIES {
        invalid(body, api.post(SUBMIT, *body).send().await.unwrap(), says).await;
    }
    for (what, body, says) in [
        ("not UTF-8", b"{\"prompt\": \"\xff\xfe\"}".to_vec(), "not valid JSON"),
        ("UTF-16", b"\xff\xfe{\0}\0".to_vec(), "not valid JSON"),
        ("arrays in arrays", "[".repeat(10_000).into(), "recursion limit"),
        ("nested", format!("{{\"metadata\": {}", "{\"a\": ".repeat(10_000)).into(), "recursion limit"),
        (
            "much metadata",
            json!({"prompt": "a", "metadata": {"a": "x".repeat(16_384)}}).to_string().into(),
            "`metadata`",
        ),
        ("a long model", json!({"prompt": "a", "model": "x".repeat(201)}).to_string().into(), "`model`"),
    ] {
        invalid(what, api.post(SUBMIT, body).send().await.unwrap(), says).await;
    }
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", ""]
    {
        let request = api.request(Method::POST, SUBMIT).header(CONTENT_TYPE, kind).body(r#"{"prompt": "a"}"#);
        invalid(kind, request.send().await.unwrap(), "`Content-Type: application/json`").await;
    }
    let request = api.request(Method::POST, SUBMIT).body(r#"{"prompt": "a"}"#);
    invalid("no type", request.send().await.unwrap(), "`Content-Type: application/json`").await;
    api.assert_unharmed(0).await;
}

#[tokio::test]
async fn bad_keys_to_create_are_refused_by_field() {
    let api = Watched::start().await;
    for (body, says) in [
        ("{}", "`scopes`"),
        (r#"{"scopes": []}"#, "`scopes`"),
        (r#"{"scopes": "jobs:read"}"#, "`scopes`"),
        (r#"{"scopes": ["jobs:rule"]}"#, "`scopes[0]`"),
        (r#"{"scopes": ["jobs:read"], "name": 1}"#, "`name`"),
        (r#"{"scopes": ["jobs:read"], "name": "a\u0000"}"#, "`name`"),
        (r#"{"scopes": ["jobs:read"], "account": "x"}"#, "`account`"),
        (&json!({"scopes": ["jobs:read"], "name": "x".repeat(201)}).to_string(), "`name`"),
    ] {
        invalid(body, api.post("/v1/api-keys", body.to_owned()).send().await.unwrap(), says).await;
    }
    let keys: i64 =
        sqlx::query_scalar("SELECT count(*) FROM app.api_keys").fetch_one(&api.app.owner).await.unwrap();
    assert_eq!(keys, 1, "a refused key was made");
    api.assert_unharmed(0).await;
}

#[tokio::test]
async fn a_body_of_any_length_is_refused_and_the_client_learns_why() {
    let api = Watched::start().await;
    let head = format!(
        "POST {SUBMIT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Connection: close\r\n",
        api.app.key
    );
    for length in [1_048_577, 3_000_000, 20_000_000] {
        let body = format!(r#"{{"prompt": "{}"}}"#, "x".repeat(length - 14));
        // Several times, as one client with one connection pool: an answer to a body that was not read must say that
        // the connection ends with it, or the next request is sent into the void.
        for _ in 0..5 {
            let reply = api.post(SUBMIT, body.clone()).send().await;
            let reply = reply.unwrap_or_else(|error| panic!("{length} bytes: no answer: {error:?}"));
            let detail = refused("too long", reply, 413, "payload_too_large").await;
            assert!(detail.contains("1048576"), "{detail}");
            // Nor is it otherwise where another refusal comes before the body is looked at.
            let reply = api.bare(Method::POST, SUBMIT).body(body.clone()).send().await;
            let reply =
                reply.unwrap_or_else(|error| panic!("{length} bytes without a key: no answer: {error:?}"));
            refused("no key", reply, 401, "unauthorized").await;
        }
        let counted = format!("Content-Length: {length}\r\n\r\n{body}");
        let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n");
        for rest in [counted, chunked] {
            let answer = api.send_all(&head, &rest).await;
            assert!(answer.starts_with("HTTP/1.1 413"), "{length} bytes: {answer}");
            assert!(answer.contains("\"code\":\"payload_too_large\""), "{answer}");
        }
    }
    api.assert_unharmed(0).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_or_is_no_body_is_refused() {
    let api = Watched::start().await;
    let key = &api.app.key;
    let head =
        format!("POST {SUBMIT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n");
    for rest in [
        "Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{\"prompt\": \"a\"}",
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
        "Content-Type: application/json\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    ] {
        let answer = api.send_all(&head, rest).await;
        // Who closes his side halfway may find nobody left to be told.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{rest}: {answer}");
    }
    api.assert_unharmed(0).await;
}
