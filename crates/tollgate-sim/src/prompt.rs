//! Reads a request as far as the simulator needs to understand it.

use serde_json::{Map, Value};

use crate::openai::ApiError;
use crate::picture::Picture;

/// The two ways to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/responses`
    Responses,
    /// `/v1/images/generations`
    Images,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) model: String,
    /// Of Responses.
    pub(crate) instructions: Option<String>,
    /// All text, a line feed between the messages: what a rule's `match` is looked for in.
    pub(crate) text: String,
    /// The last message that says something.
    pub(crate) question: String,
    /// The size of `text`.
    pub(crate) tokens: u64,
    pub(crate) max_tokens: Option<u32>,
    /// Of Images.
    pub(crate) picture: Option<Picture>,
}

/// Tokens by the usual rule of thumb: one for every four characters, rounded up. No tokenizer agrees exactly, and
/// none is wanted here.
pub(crate) fn tokens(text: &str) -> u64 {
    text.chars().count().div_ceil(4) as u64
}

impl Api {
    /// The prefix of a reply's id.
    pub(crate) const fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Responses => "resp_",
            Self::Images => "img_",
        }
    }

    /// The field that holds the messages.
    const fn input(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Responses => "input",
            Self::Images => "prompt",
        }
    }

    /// The fields that bound the answer.
    const fn bounds(self) -> &'static [&'static str] {
        match self {
            Self::Chat => &["max_completion_tokens", "max_tokens"],
            Self::Responses => &["max_output_tokens"],
            Self::Images => &[],
        }
    }

    /// Reads a request's body. `host`: what the client calls us.
    pub(crate) fn read(self, body: &[u8], host: Option<&str>) -> Result<Prompt, ApiError> {
        let Ok(Value::Object(body)) = serde_json::from_slice(body) else {
            let message = "We could not parse the JSON body of your request: a JSON object is expected.";
            return Err(ApiError::new(hyper::StatusCode::BAD_REQUEST, message));
        };
        let model = match body.get("model") {
            Some(Value::String(model)) if !model.trim().is_empty() => model.clone(),
            None | Some(Value::Null | Value::String(_)) => {
                return Err(ApiError::param(
                    "model",
                    "missing_required_parameter",
                    "you must provide a model parameter",
                ));
            }
            Some(_) => return Err(wrong_type("model", "a string")),
        };
        refuse_unsupported(&body)?;
        let max_tokens = self.max_tokens(&body)?;
        let picture = if self == Self::Images { Some(picture(&model, &body, host)?) } else { None };
        let instructions = match body.get("instructions") {
            Some(Value::String(text)) if self == Self::Responses => Some(text.clone()),
            _ => None,
        };
        let mut texts: Vec<String> = instructions.iter().cloned().collect();
        texts.extend(self.messages(&body)?);
        let question = texts.iter().rfind(|text| !text.trim().is_empty()).cloned().unwrap_or_default();
        let text = texts.join("\n");
        if text.trim().is_empty() {
            let field = self.input();
            return Err(ApiError::param(
                field,
                "empty_string",
                format!("Invalid '{field}': the prompt is blank."),
            ));
        }
        Ok(Prompt { model, instructions, question, tokens: tokens(&text), text, max_tokens, picture })
    }

    fn messages(self, body: &Map<String, Value>) -> Result<Vec<String>, ApiError> {
        let field = self.input();
        match body.get(field) {
            None | Some(Value::Null) => Err(ApiError::param(
                field,
                "missing_required_parameter",
                format!("Missing required parameter: '{field}'."),
            )),
            Some(Value::String(text)) if self != Self::Chat => Ok(vec![text.clone()]),
            Some(_) if self == Self::Images => Err(wrong_type(field, "a string")),
            Some(Value::Array(messages)) if messages.is_empty() => Err(ApiError::param(
                field,
                "empty_array",
                format!("Invalid '{field}': empty array. Expected an array with minimum length 1."),
            )),
            Some(Value::Array(messages)) => messages.iter().map(|message| self.message(message)).collect(),
            Some(_) => Err(wrong_type(field, "an array of messages")),
        }
    }

    /// The text of one message; Responses has items of other kinds, which have none.
    fn message(self, message: &Value) -> Result<String, ApiError> {
        let field = self.input();
        let Value::Object(message) = message else { return Err(wrong_type(field, "an array of objects")) };
        let is_message = message.get("type").is_none_or(|kind| kind == "message");
        if self == Self::Responses && !is_message {
            return Ok(String::new());
        }
        if message.get("role").and_then(Value::as_str).is_none_or(|role| role.trim().is_empty()) {
            let text = format!("Missing required parameter: '{field}[].role'.");
            return Err(ApiError::param(field, "missing_required_parameter", text));
        }
        match message.get("content") {
            Some(Value::String(text)) => Ok(text.clone()),
            // An assistant that called a tool has said nothing.
            None | Some(Value::Null) if message.contains_key("tool_calls") => Ok(String::new()),
            None | Some(Value::Null) => {
                let text = format!("Missing required parameter: '{field}[].content'.");
                Err(ApiError::param(field, "missing_required_parameter", text))
            }
            Some(Value::Array(parts)) => {
                let texts = parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str));
                Ok(texts.collect::<Vec<_>>().join(" "))
            }
            Some(_) => Err(wrong_type(field, "a string or an array as each content")),
        }
    }

    fn max_tokens(self, body: &Map<String, Value>) -> Result<Option<u32>, ApiError> {
        for field in self.bounds() {
            match body.get(*field) {
                None | Some(Value::Null) => {}
                Some(value) => match value.as_i64() {
                    // More than 2^32 is as good as no bound.
                    Some(max @ 1..) => return Ok(Some(u32::try_from(max).unwrap_or(u32::MAX))),
                    Some(low) => {
                        let message = format!(
                            "Invalid '{field}': integer below minimum value. Expected a value >= 1, but got {low} instead."
                        );
                        return Err(ApiError::param(field, "integer_below_min_value", message));
                    }
                    None => return Err(wrong_type(field, "an integer")),
                },
            }
        }
        Ok(None)
    }
}

/// The older models answer with a URL, unless they are told otherwise; the newer ones have no choice, but here they may be
/// told too.
fn picture(model: &str, body: &Map<String, Value>, host: Option<&str>) -> Result<Picture, ApiError> {
    let size = match body.get("size") {
        None | Some(Value::Null) => "auto",
        Some(Value::String(size)) => size,
        Some(_) => return Err(wrong_type("size", "a string")),
    };
    let Some(picture) = Picture::of_size(size) else {
        return Err(ApiError::param("size", "invalid_value", format!("Invalid value: '{size}'.")));
    };
    let by_url = match body.get("response_format") {
        None | Some(Value::Null) => model.starts_with("dall-e-"),
        Some(format) if format == "url" => true,
        Some(format) if format == "b64_json" => false,
        Some(_) => return Err(wrong_type("response_format", "'url' or 'b64_json'")),
    };
    let at = by_url.then(|| host.unwrap_or("localhost").to_owned());
    Ok(Picture { at, ..picture })
}

/// What would change the shape of the reply is refused rather than ignored.
fn refuse_unsupported(body: &Map<String, Value>) -> Result<(), ApiError> {
    let unsupported = |field, message| Err(ApiError::param(field, "unsupported_value", message));
    match body.get("stream") {
        None | Some(Value::Null | Value::Bool(false)) => {}
        Some(Value::Bool(true)) => {
            return unsupported("stream", "The simulated provider does not stream: leave out 'stream'.");
        }
        Some(_) => return Err(wrong_type("stream", "a boolean")),
    }
    match body.get("n") {
        None | Some(Value::Null) => Ok(()),
        Some(n) if *n == 1 => Ok(()),
        Some(_) => unsupported("n", "The simulated provider gives one choice: leave out 'n'."),
    }
}

fn wrong_type(param: &'static str, expected: &str) -> ApiError {
    ApiError::param(param, "invalid_type", format!("Invalid type for '{param}': expected {expected}."))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(api: Api, body: &Value) -> Result<Prompt, ApiError> {
        api.read(body.to_string().as_bytes(), Some("sim:1"))
    }

    #[test]
    fn bad_requests_are_told_what_is_wrong() {
        let ok = json!([{"role": "user", "content": "hi"}]);
        for (body, param, code) in [
            (json!({"messages": ok}), "model", "missing_required_parameter"),
            (json!({"model": " ", "messages": ok}), "model", "missing_required_parameter"),
            (json!({"model": 1, "messages": ok}), "model", "invalid_type"),
            (json!({"model": "m"}), "messages", "missing_required_parameter"),
            (json!({"model": "m", "messages": []}), "messages", "empty_array"),
            (json!({"model": "m", "messages": "hi"}), "messages", "invalid_type"),
            (json!({"model": "m", "messages": ["hi"]}), "messages", "invalid_type"),
            (
                json!({"model": "m", "messages": [{"content": "hi"}]}),
                "messages",
                "missing_required_parameter",
            ),
            (json!({"model": "m", "messages": [{"role": "user"}]}), "messages", "missing_required_parameter"),
            (
                json!({"model": "m", "messages": [{"role": "user", "content": " "}]}),
                "messages",
                "empty_string",
            ),
            (json!({"model": "m", "messages": [{"role": "user", "content": 1}]}), "messages", "invalid_type"),
            (json!({"model": "m", "messages": ok, "stream": true}), "stream", "unsupported_value"),
            (json!({"model": "m", "messages": ok, "stream": "yes"}), "stream", "invalid_type"),
            (json!({"model": "m", "messages": ok, "n": 2}), "n", "unsupported_value"),
            (json!({"model": "m", "messages": ok, "max_tokens": 0}), "max_tokens", "integer_below_min_value"),
            (
                json!({"model": "m", "messages": ok, "max_tokens": -5}),
                "max_tokens",
                "integer_below_min_value",
            ),
            (json!({"model": "m", "messages": ok, "max_tokens": 1.5}), "max_tokens", "invalid_type"),
            (json!({"model": "m", "messages": ok, "max_tokens": "9"}), "max_tokens", "invalid_type"),
        ] {
            let error = read(Api::Chat, &body).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.param, error.code),
                (400, Some(param), Some(code)),
                "{body}"
            );
        }
        for body in ["", "{", "[]", "null", "\u{fffd}"] {
            assert_eq!(Api::Chat.read(body.as_bytes(), None).unwrap_err().kind, "invalid_request_error");
        }
    }

    #[test]
    fn both_apis_are_understood() {
        let chat = json!({"model": "m", "max_tokens": 7, "temperature": 0.3, "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "assistant", "content": null, "tool_calls": []},
            {"role": "user", "content": [{"type": "text", "text": "why"}, {"type": "image_url"}]},
        ]});
        let prompt = read(Api::Chat, &chat).unwrap();
        assert_eq!((prompt.text.as_str(), prompt.question.as_str()), ("be brief\n\nwhy", "why"));
        assert_eq!((prompt.tokens, prompt.max_tokens), (4, Some(7)));

        let input = json!([{"role": "user", "content": [{"type": "input_text", "text": "why"}]}]);
        for input in [json!("why"), input] {
            let body =
                json!({"model": "m", "instructions": "be brief", "input": input, "max_output_tokens": 20});
            let prompt = read(Api::Responses, &body).unwrap();
            assert_eq!((prompt.text.as_str(), prompt.question.as_str()), ("be brief\nwhy", "why"));
            assert_eq!((prompt.max_tokens, prompt.instructions.as_deref()), (Some(20), Some("be brief")));
        }
    }

    #[test]
    fn an_image_is_a_prompt_and_a_size() {
        let at = |body: Value| read(Api::Images, &body).unwrap().picture.unwrap().at;
        let url = Some("sim:1".to_owned());
        assert_eq!(
            at(json!({"model": "gpt-image-1", "prompt": "a gate", "n": 1, "size": "1024x1024"})),
            None
        );
        assert_eq!(at(json!({"model": "gpt-image-1", "prompt": "a gate", "response_format": "url"})), url);
        assert_eq!(at(json!({"model": "dall-e-3", "prompt": "a gate"})), url);
        assert_eq!(at(json!({"model": "dall-e-3", "prompt": "a gate", "response_format": "b64_json"})), None);
        for (body, param) in [
            (json!({"model": "m"}), "prompt"),
            (json!({"model": "m", "prompt": " "}), "prompt"),
            (json!({"model": "m", "prompt": ["a"]}), "prompt"),
            (json!({"model": "m", "prompt": "a", "size": "big"}), "size"),
            (json!({"model": "m", "prompt": "a", "size": 1}), "size"),
            (json!({"model": "m", "prompt": "a", "n": 2}), "n"),
            (json!({"model": "m", "prompt": "a", "response_format": "gif"}), "response_format"),
        ] {
            assert_eq!(read(Api::Images, &body).unwrap_err().param, Some(param), "{body}");
        }
    }

    #[test]
    fn a_token_is_four_characters() {
        for (text, n) in [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("ééééé", 2)] {
            assert_eq!(tokens(text), n, "{text}");
        }
    }
}
