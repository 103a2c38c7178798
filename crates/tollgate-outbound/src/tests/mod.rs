//! The adapter against real sockets: a scripted server on the loopback that can do what no HTTP library would.

mod calls;
mod cancel;
mod deadline;
mod images;
mod mapping;
mod secrets;
mod server;

use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Map, Value, json};
use tollgate_model::generation::{
    Endpoint, GenerationOutput, GenerationRequest, Message, ProviderFailure, Role,
};
use url::Url;
use uuid::Uuid;

use self::server::{Act, Server};
use crate::{OpenAi, OpenAiConfig, Provider};

const KEY: &str = "sk-proj-a1B2c3D4e5F6g7H8i9J0-k_L";

/// The shortest request there is.
pub(crate) fn request() -> GenerationRequest {
    GenerationRequest {
        request_id: Uuid::from_u128(7),
        endpoint: Endpoint::ChatCompletions,
        model: "gpt-test".to_owned(),
        messages: vec![Message { role: Role::User, content: "hello".to_owned() }],
        temperature: None,
        max_tokens: None,
        seed: None,
        size: None,
        params: Map::new(),
        timeout: Duration::from_secs(5),
    }
}

fn request_within(ms: u64) -> GenerationRequest {
    GenerationRequest { timeout: Duration::from_millis(ms), ..request() }
}

fn responses_request() -> GenerationRequest {
    GenerationRequest { endpoint: Endpoint::Responses, ..request() }
}

fn config(base_url: Url) -> OpenAiConfig {
    OpenAiConfig {
        base_url,
        api_key: Some(SecretString::from(KEY)),
        connect_timeout: Duration::from_secs(5),
        max_response_bytes: 100_000,
        max_image_bytes: 50_000,
    }
}

fn openai(server: &Server) -> OpenAi {
    OpenAi::new(config(server.url("http"))).unwrap()
}

/// One call to a server of one act.
async fn ask(act: Act, request: &GenerationRequest) -> Result<GenerationOutput, ProviderFailure> {
    let server = Server::start([act]).await;
    openai(&server).generate(request).await
}

/// An answer to a chat, of the kind the vendor gives.
fn chat_reply(text: &str) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-test-2026",
        "choices": [{
            "index": 0, "finish_reason": "stop", "logprobs": null,
            "message": {"role": "assistant", "content": text, "refusal": null, "annotations": []},
        }],
        "usage": {
            "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "service_tier": "default", "system_fingerprint": null,
    })
}
