//! Proper answers and proper refusals.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tollgate_sim::Behaviour;

use crate::client::{End, chat_body, start};

#[tokio::test]
async fn a_chat_completion() {
    let sim = start(Behaviour::default()).await;
    let reply = sim.chat("Why is the sky blue?").await;
    assert_eq!((reply.status, reply.end), (200, End::Complete));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("server"), Some("tollgate-provider-sim"));
    assert!(reply.header("x-request-id").unwrap().starts_with("req_"));
    assert!(reply.header("x-ratelimit-limit-requests").is_none());

    let body = reply.json();
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("gpt-test-simulated")));
    assert_eq!(body["system_fingerprint"], "fp_tollgate_simulated");
    let choice = &body["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("stop")));
    assert_eq!(
        (&choice["message"]["role"], &choice["message"]["refusal"]),
        (&json!("assistant"), &json!(null))
    );
    let text = choice["message"]["content"].as_str().unwrap();
    assert_eq!(text, "Simulated answer; no model was called. You asked: Why is the sky blue?");
    let usage = &body["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(5), &json!(18)));
    assert_eq!(usage["total_tokens"], 23);
}

#[tokio::test]
async fn a_response() {
    let sim = start(Behaviour::default()).await;
    let request = json!({"model": "gpt-test", "instructions": "Be brief.", "input": "Why?"}).to_string();
    let body = sim.call("POST /v1/responses", "", &request).await.json();
    assert!(body["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!((&body["object"], &body["status"]), (&json!("response"), &json!("completed")));
    assert_eq!(body["model"], "gpt-test-simulated");
    let message = &body["output"][0];
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    let content = &message["content"][0];
    assert_eq!((&content["type"], &content["annotations"]), (&json!("output_text"), &json!([])));
    assert_eq!(content["text"], "Simulated answer; no model was called. You asked: Why?");
    let usage = &body["usage"];
    assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&json!(4), &json!(14)));
    assert_eq!(usage["total_tokens"], 18);
}

#[tokio::test]
async fn an_image_in_the_reply_or_at_a_url() {
    let sim = start(Behaviour::default()).await;
    let ask = |prompt: &str, format: &str| json!({"model": "gpt-image-1", "prompt": prompt, "response_format": format});
    let reply = sim.image(&ask("a gate", "b64_json")).await;
    assert_eq!((reply.status, reply.end), (200, End::Complete));
    let body = reply.json();
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!((&body["usage"]["input_tokens"], &body["usage"]["total_tokens"]), (&json!(2), &json!(274)));
    let image = STANDARD.decode(body["data"][0]["b64_json"].as_str().unwrap()).unwrap();
    assert!(image.starts_with(b"\x89PNG\r\n\x1a\n") && image.len() < 20_000, "{} bytes", image.len());

    let body = sim.image(&ask("a gate", "url")).await.json();
    let url = body["data"][0]["url"].as_str().unwrap();
    let path = url.strip_prefix("http://sim").unwrap_or_else(|| panic!("{url} is not where we are"));
    let fetched = sim.call(&format!("GET {path}"), "", "").await;
    assert_eq!((fetched.status, fetched.header("content-type")), (200, Some("image/png")));
    assert_eq!(fetched.body, image, "the same prompt is another image by URL");

    let other = sim.image(&ask("a toll", "b64_json")).await.json();
    assert_ne!(other["data"], json!([{"b64_json": STANDARD.encode(image)}]), "all prompts have one image");
    assert_eq!(sim.control.stats().arrivals, 3, "only generation counts");
}

#[tokio::test]
async fn max_tokens_are_honoured() {
    let sim = start(Behaviour::default()).await;
    let chat = json!({"model": "m", "max_tokens": 2, "messages": [{"role": "user", "content": "Why?"}]});
    let body = sim.call("POST /v1/chat/completions", "", &chat.to_string()).await.json();
    assert_eq!(body["choices"][0]["message"]["content"], "Simulate");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["usage"]["completion_tokens"], 2);

    let response = json!({"model": "m", "max_output_tokens": 2, "input": "Why?"});
    let body = sim.call("POST /v1/responses", "", &response.to_string()).await.json();
    assert_eq!(body["output"][0]["content"][0]["text"], "Simulate");
    assert_eq!(body["status"], "incomplete");
    assert_eq!(body["incomplete_details"]["reason"], "max_output_tokens");
}

#[tokio::test]
async fn models_are_listed() {
    let sim = start(Behaviour::default()).await;
    let reply = sim.call("GET /v1/models", "", "").await;
    assert_eq!((reply.status, &reply.json()["data"][0]["id"]), (200, &json!("tollgate-simulated")));
    assert_eq!(sim.control.stats().arrivals, 0, "only generation counts");
}

#[tokio::test]
async fn refusals_have_openais_shape() {
    let sim = start(Behaviour::default()).await;
    let huge = chat_body(&"x".repeat(5 << 20));
    for (line, body, status) in [
        ("POST /v1/chat/completions", "{", 400),
        ("POST /v1/chat/completions", r#"{"model": "m", "messages": []}"#, 400),
        ("POST /v1/chat/completions", huge.as_str(), 413),
        ("POST /v1/responses", r#"{"input": "x"}"#, 400),
        ("POST /v1/images/generations", r#"{"model": "m"}"#, 400),
        ("GET /v1/images/generations", "", 405),
        ("GET /images/x.png", "", 404),
        ("GET /v1/chat/completions", "", 405),
        ("POST /v1/models", "", 405),
        ("POST /v1/nothing", "", 404),
        ("GET /", "", 404),
    ] {
        let reply = sim.call(line, "", body).await;
        assert_eq!((reply.status, reply.end), (status, End::Complete), "{line}");
        assert_eq!(reply.error().0, "invalid_request_error");
    }
    let stats = sim.control.stats();
    assert_eq!((stats.refused, stats.completed), (5, 5));
}

#[tokio::test]
async fn the_key_is_asked_for() {
    let sim = start(Behaviour { api_key: Some("sk-right".to_owned()), ..Behaviour::default() }).await;
    for (headers, status) in [
        ("", 401),
        ("authorization: sk-right\r\n", 401),
        ("authorization: Basic sk-right\r\n", 401),
        ("authorization: Bearer sk-wrong\r\n", 401),
        ("authorization: Bearer sk-right\r\n", 200),
        ("authorization: bearer sk-right\r\n", 200),
    ] {
        let chat = sim.call("POST /v1/chat/completions", headers, &chat_body("x")).await;
        assert_eq!(chat.status, status, "{headers}");
        assert_eq!(sim.call("GET /v1/models", headers, "").await.status, status, "{headers}");
    }
    let wrong = sim.call("GET /v1/models", "authorization: Bearer sk-wrong\r\n", "").await;
    assert_eq!(wrong.error(), ("invalid_request_error".into(), "invalid_api_key".into()));
    assert_eq!(sim.call("GET /sim/stats", "", "").await.status, 200, "the controls ask for none");
}
