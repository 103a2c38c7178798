//! Replies in OpenAI's shape.

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use crate::clock;
use crate::plan::Action;
use crate::prompt::{Api, Prompt, tokens};

/// In every chat completion and every image's reply, so that nobody takes one for a model's.
const FINGERPRINT: &str = "fp_tollgate_simulated";

/// What `/v1/models` lists, and what every reply's model ends in.
const SUFFIX: &str = "-simulated";

/// What the vendor counts for a square image of low quality.
const IMAGE_TOKENS: u64 = 272;

/// How many words of the question an answer repeats.
const ECHOED_WORDS: usize = 12;

/// An error, to be answered in OpenAI's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) kind: &'static str,
    pub(crate) param: Option<&'static str>,
    pub(crate) code: Option<&'static str>,
    pub(crate) retry_after: Option<String>,
}

impl ApiError {
    /// A client's mistake that has no code.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = "invalid_request_error";
        Self { status, message: message.into(), kind, param: None, code: None, retry_after: None }
    }

    /// A mistake in this field of the body.
    pub(crate) fn param(param: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), code: Some(code), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// A request over the rate limit.
    pub(crate) fn rate_limit(model: &str, retry_after: Option<String>) -> Self {
        Self {
            kind: "requests",
            code: Some("rate_limit_exceeded"),
            retry_after,
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                format!("Rate limit reached for {model} on requests per minute (simulated)."),
            )
        }
    }

    /// Within its limits, but too much more than a moment ago.
    pub(crate) fn slow_down(status: StatusCode, retry_after: Option<String>) -> Self {
        Self {
            kind: "rate_limit_error",
            code: Some("slow_down"),
            retry_after,
            ..Self::new(status, "Your traffic grew too quickly: slow down, and grow gradually (simulated).")
        }
    }

    /// Another key than the right one.
    pub(crate) fn unauthorized() -> Self {
        Self {
            code: Some("invalid_api_key"),
            ..Self::new(StatusCode::UNAUTHORIZED, "Incorrect API key provided (simulated).")
        }
    }

    /// An account that has nothing left.
    pub(crate) fn insufficient_quota() -> Self {
        Self {
            kind: "insufficient_quota",
            code: Some("insufficient_quota"),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "You exceeded your current quota, please check your plan and billing details (simulated).",
            )
        }
    }

    /// A prompt that the provider will not have.
    pub(crate) fn content_policy() -> Self {
        Self {
            code: Some("content_policy_violation"),
            ..Self::new(
                StatusCode::BAD_REQUEST,
                "Your request was rejected as a result of our safety system (simulated).",
            )
        }
    }

    /// The provider's own failure.
    pub(crate) fn server(status: StatusCode) -> Self {
        let message = match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                "The engine is currently overloaded, please try again later (simulated)."
            }
            _ => "The server had an error while processing your request. Sorry about that! (simulated)",
        };
        Self { kind: "server_error", ..Self::new(status, message) }
    }

    pub(crate) fn body(&self) -> Value {
        let Self { message, kind, param, code, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

/// The list of models.
pub(crate) fn models() -> Value {
    let model = json!({
        "id": format!("tollgate{SUFFIX}"),
        "object": "model",
        "created": clock::unix_seconds(),
        "owned_by": "tollgate-provider-sim",
    });
    json!({"object": "list", "data": [model]})
}

/// A proper answer to this prompt.
pub(crate) fn answer(api: Api, id: &str, prompt: &Prompt, action: &Action) -> Value {
    if let Some(picture) = &prompt.picture {
        let asked = action.text.as_ref().unwrap_or(&prompt.text);
        let (field, value) = picture.datum(asked);
        return image(prompt, &[(field, &value)]);
    }
    let text = action.text.clone().unwrap_or_else(|| made_up(&prompt.question));
    let (text, complete) = cut(text, prompt.max_tokens);
    match api {
        Api::Chat => chat(id, prompt, &text, complete),
        // An image has been answered above.
        Api::Responses | Api::Images => response(id, prompt, &text, complete),
    }
}

/// A reply to the request for an image, with these fields in its `data`.
pub(crate) fn image(prompt: &Prompt, datum: &[(&str, &str)]) -> Value {
    let datum: Map<_, _> = datum.iter().map(|(field, value)| ((*field).to_owned(), json!(value))).collect();
    let (input, output) = (prompt.tokens, IMAGE_TOKENS);
    json!({
        "created": clock::unix_seconds(),
        "data": [datum],
        "output_format": "png",
        "usage": {
            "input_tokens": input,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": input},
            "output_tokens": output,
            "total_tokens": input + output,
        },
        "system_fingerprint": FINGERPRINT,
    })
}

fn made_up(question: &str) -> String {
    let mut words = question.split_whitespace();
    let echo: Vec<_> = words.by_ref().take(ECHOED_WORDS).collect();
    let more = if words.next().is_some() { " …" } else { "" };
    format!("Simulated answer; no model was called. You asked: {}{more}", echo.join(" "))
}

/// As much of `text` as `max_tokens` allow, and whether that is all of it.
fn cut(text: String, max_tokens: Option<u32>) -> (String, bool) {
    let Some(max) = max_tokens.filter(|max| u64::from(*max) < tokens(&text)) else { return (text, true) };
    // No truncation: there are fewer tokens allowed than the text has.
    let characters = usize::try_from(max).unwrap_or(usize::MAX).saturating_mul(4);
    (text.chars().take(characters).collect(), false)
}

fn model(prompt: &Prompt) -> String {
    let requested = &prompt.model;
    if requested.ends_with(SUFFIX) { requested.clone() } else { format!("{requested}{SUFFIX}") }
}

fn chat(id: &str, prompt: &Prompt, text: &str, complete: bool) -> Value {
    let (input, output) = (prompt.tokens, tokens(text));
    json!({
        "id": id,
        "object": "chat.completion",
        "created": clock::unix_seconds(),
        "model": model(prompt),
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": null, "annotations": []},
            "logprobs": null,
            "finish_reason": if complete { "stop" } else { "length" },
        }],
        "usage": {
            "prompt_tokens": input,
            "completion_tokens": output,
            "total_tokens": input + output,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    })
}

fn response(id: &str, prompt: &Prompt, text: &str, complete: bool) -> Value {
    let (input, output) = (prompt.tokens, tokens(text));
    let status = if complete { "completed" } else { "incomplete" };
    json!({
        "id": id,
        "object": "response",
        "created_at": clock::unix_seconds(),
        "status": status,
        "background": false,
        "error": null,
        "incomplete_details": if complete { Value::Null } else { json!({"reason": "max_output_tokens"}) },
        "instructions": prompt.instructions,
        "max_output_tokens": prompt.max_tokens,
        "metadata": {},
        "model": model(prompt),
        "output": [{
            "id": id.replacen("resp_", "msg_", 1),
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
        }],
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "reasoning": {"effort": null, "summary": null},
        "service_tier": "default",
        "store": false,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": input,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input + output,
        },
        "user": null,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_answer_repeats_the_first_words_of_the_question() {
        assert_eq!(made_up(" why\n so? "), "Simulated answer; no model was called. You asked: why so?");
        let long = made_up("a b c d e f g h i j k l m");
        assert!(long.ends_with("You asked: a b c d e f g h i j k l …"), "{long}");
    }

    proptest! {
        #[test]
        fn an_answer_never_exceeds_max_tokens(text in "\\PC{0,60}", max in 1_u32..20) {
            let (kept, complete) = cut(text.clone(), Some(max));
            prop_assert!(tokens(&kept) <= u64::from(max));
            prop_assert_eq!(complete, kept == text);
        }
    }
}
