//! `POST /chat/completions`: the endpoint that every compatible server has.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tollgate_model::generation::{GenerationRequest, ProviderFailure};

use super::error;
use super::reply::{self, Reply};

/// The request's body.
///
/// `params` is the ground that the request's own fields are written over. Two things are not for `params` to
/// say: the answer comes whole, so `stream` is false and `stream_options` (refused without a stream) is gone.
///
/// The limit is written as `max_tokens`, which every compatible server knows. The vendor's reasoning models
/// refuse it and want `max_completion_tokens`; a job type for those declares that field in its `params`, with
/// whatever default, and the limit then goes there and only there. Sending both was rejected: the vendor
/// refuses it. Telling by the model's name was rejected: the list would be out of date from the first day.
pub(super) fn body(request: &GenerationRequest) -> Map<String, Value> {
    let mut body = request.params.clone();
    body.remove("stream_options");
    body.insert("stream".to_owned(), false.into());
    body.insert("model".to_owned(), request.model.clone().into());
    body.insert("messages".to_owned(), json!(request.messages));
    if let Some(temperature) = request.temperature {
        body.insert("temperature".to_owned(), temperature.into());
    }
    if let Some(seed) = request.seed {
        body.insert("seed".to_owned(), seed.into());
    }
    if let Some(limit) = request.max_tokens {
        let newer = body.contains_key("max_completion_tokens");
        body.remove("max_tokens");
        let field = if newer { "max_completion_tokens" } else { "max_tokens" };
        body.insert(field.to_owned(), limit.into());
    }
    body
}

/// As much of the reply as is needed. Everything else, `finish_reason` included, is not even looked at, and so
/// cannot be of a kind that we do not know; it stays in `raw`.
#[derive(Deserialize)]
struct Completion {
    choices: Option<Vec<Choice>>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    content: Option<Content>,
    refusal: Option<String>,
}

/// A string by the vendor's word; some gateways pass on a list of parts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
}

/// Reads a reply's JSON.
///
/// The text is the first choice's. If the model declined in the field made for that, what it said there is
/// the text: it is the model's answer, and billed as one. A message with neither (a call of a tool, or an
/// answer that its token limit cut before the first word) has an empty text; `raw` has the rest.
pub(super) fn read(raw: &Value) -> Result<Reply, ProviderFailure> {
    let completion = Completion::deserialize(raw).map_err(|error| error::wrong_shape(&error))?;
    let Some(choice) = completion.choices.unwrap_or_default().into_iter().next() else {
        // Gateways report an upstream's failure in a reply that is itself a success.
        return Err(match raw.get("error").filter(|error| !error.is_null()) {
            Some(error) => error::reported(error),
            None => error::wrong_shape(&"it holds no choices"),
        });
    };
    let text = match choice.message.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => parts.into_iter().filter_map(|part| part.text).collect(),
        None => String::new(),
    };
    let refusal = choice.message.refusal.filter(|_| text.is_empty());
    Ok(Reply {
        id: reply::name(raw, "id"),
        model: reply::name(raw, "model"),
        text: refusal.unwrap_or(text),
        usage: reply::usage(raw, "prompt_tokens", "completion_tokens"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::request;

    #[test]
    fn a_bare_request_says_no_more_than_needed() {
        let mut request = request();
        assert_eq!(
            Value::Object(body(&request)),
            json!({"model": "gpt-test", "messages": [{"role": "user", "content": "hello"}], "stream": false})
        );
        (request.temperature, request.max_tokens, request.seed) = (Some(0.5), Some(64), Some(-7));
        assert_eq!(
            Value::Object(body(&request)),
            json!({
                "model": "gpt-test", "messages": [{"role": "user", "content": "hello"}], "stream": false,
                "temperature": 0.5, "max_tokens": 64, "seed": -7,
            })
        );
    }

    #[test]
    fn params_pass_but_win_over_nothing() {
        let mut request = request();
        (request.temperature, request.max_tokens) = (Some(0.5), Some(64));
        let params = json!({
            "model": "other", "messages": [], "temperature": 2, "max_tokens": 1, "seed": 3,
            "stream": true, "stream_options": {"include_usage": true}, "top_p": 0.9, "logit_bias": {"50256": -100},
        });
        request.params = params.as_object().unwrap().clone();
        assert_eq!(
            Value::Object(body(&request)),
            json!({
                "model": "gpt-test", "messages": [{"role": "user", "content": "hello"}], "stream": false,
                "temperature": 0.5, "max_tokens": 64, "seed": 3, "top_p": 0.9, "logit_bias": {"50256": -100},
            })
        );
    }

    #[test]
    fn the_limit_goes_into_the_field_that_the_job_type_names() {
        let mut request = request();
        request.max_tokens = Some(64);
        request.params = json!({"max_completion_tokens": 1, "max_tokens": 2}).as_object().unwrap().clone();
        let body = body(&request);
        assert_eq!((body.get("max_completion_tokens"), body.get("max_tokens")), (Some(&json!(64)), None));
    }

    #[test]
    fn texts() {
        for (message, expected) in [
            (json!({"role": "assistant", "content": "hi"}), "hi"),
            (json!({"content": "hi", "refusal": null, "annotations": []}), "hi"),
            (json!({"content": null, "refusal": "I will not"}), "I will not"),
            (json!({"content": "", "refusal": "I will not"}), "I will not"),
            (json!({"content": "hi", "refusal": "no"}), "hi"),
            (json!({"content": null, "tool_calls": [{"id": "c"}]}), ""),
            (json!({}), ""),
            (json!({"content": [{"type": "text", "text": "h"}, {"type": "x"}, {"text": "i"}]}), "hi"),
        ] {
            let raw = json!({"choices": [{"finish_reason": "unheard_of", "message": message}]});
            assert_eq!(read(&raw).unwrap().text, expected, "{raw}");
        }
    }
}
