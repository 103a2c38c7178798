//! `POST /responses`: the vendor's newer endpoint.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tollgate_model::generation::{GenerationRequest, ProviderFailure};

use super::error;
use super::reply::{self, Reply};

/// The request's body.
///
/// `params` is the ground that the request's own fields are written over. As for chat, the answer comes whole:
/// no `stream`, and no `background`, whose reply is only a ticket. `store` is false unless `params` says
/// otherwise: what tenants ask is not left with the vendor by default. This endpoint knows no seed, so the
/// request's is left out.
pub(super) fn body(request: &GenerationRequest) -> Map<String, Value> {
    let mut body = request.params.clone();
    body.remove("stream_options");
    body.remove("background");
    body.insert("stream".to_owned(), false.into());
    body.entry("store").or_insert(Value::Bool(false));
    body.insert("model".to_owned(), request.model.clone().into());
    body.insert("input".to_owned(), json!(request.messages));
    if let Some(temperature) = request.temperature {
        body.insert("temperature".to_owned(), temperature.into());
    }
    if let Some(limit) = request.max_tokens {
        body.insert("max_output_tokens".to_owned(), limit.into());
    }
    body
}

/// As much of the reply as is needed. The items are of many kinds, more each month, so they stay JSON and only
/// the parts that are text are looked for in them.
#[derive(Deserialize)]
struct Response {
    status: Option<String>,
    error: Option<Value>,
    incomplete_details: Option<IncompleteDetails>,
    output: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct IncompleteDetails {
    reason: Option<String>,
}

/// Reads a reply's JSON.
///
/// The text is all of `output_text`, in order; if there is none, the refusal, as for chat. An answer that was
/// cut short (`incomplete`) but says something is an answer. One that says nothing is a failure of the
/// request: its limit left no room, and would not the next time either.
pub(super) fn read(raw: &Value) -> Result<Reply, ProviderFailure> {
    let response = Response::deserialize(raw).map_err(|error| error::wrong_shape(&error))?;
    let status = response.status.as_deref().unwrap_or("completed");
    let reported = response.error.filter(|error| !error.is_null());
    match status {
        "failed" => return Err(error::reported(&reported.unwrap_or_default())),
        "queued" | "in_progress" | "cancelled" => {
            return Err(error::wrong_shape(&format_args!("its status is {status}, so it is no answer")));
        }
        _ => {}
    }
    let Some(output) = response.output else {
        return Err(match reported {
            Some(error) => error::reported(&error),
            None => error::wrong_shape(&"it holds no output"),
        });
    };
    let mut text = parts(&output, "output_text", "text");
    if text.is_empty() {
        text = parts(&output, "refusal", "refusal");
    }
    if text.is_empty() && status == "incomplete" {
        let reason = response.incomplete_details.and_then(|details| details.reason);
        return Err(error::wordless(reason.as_deref()));
    }
    Ok(Reply {
        id: reply::name(raw, "id"),
        model: reply::name(raw, "model"),
        text,
        usage: reply::usage(raw, "input_tokens", "output_tokens"),
    })
}

/// The `field` of all parts of one `kind`, joined.
fn parts(output: &[Value], kind: &str, field: &str) -> String {
    let parts = output.iter().filter_map(|item| item["content"].as_array()).flatten();
    parts.filter(|part| part["type"] == kind).filter_map(|part| part[field].as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::request;

    #[test]
    fn a_request_keeps_nothing_with_the_vendor_and_has_no_seed() {
        let mut request = request();
        (request.temperature, request.max_tokens, request.seed) = (Some(0.5), Some(64), Some(7));
        assert_eq!(
            Value::Object(body(&request)),
            json!({
                "model": "gpt-test", "input": [{"role": "user", "content": "hello"}], "stream": false,
                "store": false, "temperature": 0.5, "max_output_tokens": 64,
            })
        );
    }

    #[test]
    fn params_pass_but_win_over_nothing_except_store() {
        let mut request = request();
        request.max_tokens = Some(64);
        let params = json!({
            "model": "other", "input": "other", "max_output_tokens": 1, "stream": true, "background": true,
            "stream_options": {}, "store": true, "reasoning": {"effort": "low"},
        });
        request.params = params.as_object().unwrap().clone();
        assert_eq!(
            Value::Object(body(&request)),
            json!({
                "model": "gpt-test", "input": [{"role": "user", "content": "hello"}], "stream": false,
                "store": true, "max_output_tokens": 64, "reasoning": {"effort": "low"},
            })
        );
    }

    #[test]
    fn texts() {
        let output = json!([
            {"type": "reasoning", "summary": [], "content": null},
            {"type": "message", "content": [
                {"type": "output_text", "text": "h", "annotations": []},
                {"type": "refusal", "refusal": "no"},
                {"type": "hologram", "text": "?"},
            ]},
            {"type": "function_call", "arguments": "{}", "content": "?"},
            {"type": "message", "content": [{"type": "output_text", "text": "i"}]},
            7,
        ]);
        for (raw, expected) in [
            (json!({"status": "completed", "output": output}), "hi"),
            (json!({"output": output}), "hi"),
            (json!({"status": "unheard_of", "output": output}), "hi"),
            (json!({"status": "incomplete", "output": output}), "hi"),
            (json!({"output": [{"content": [{"type": "refusal", "refusal": "no"}]}]}), "no"),
            (json!({"output": []}), ""),
        ] {
            assert_eq!(read(&raw).unwrap().text, expected, "{raw}");
        }
    }
}
