//! `POST /images/generations`: one image, as bytes or as a URL.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};
use tollgate_model::generation::{GenerationRequest, ProviderFailure};

use super::error;
use super::reply::{self, Reply};

/// Padding is left away by some, and says nothing.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The request's body.
///
/// `params` is the ground that the request's own fields are written over, as for chat; one whole image is asked for.
/// The vendor knows no seed here: it is a part of what the image is known by, and stays with us. `response_format` is
/// a matter of `params`: the vendor's newer models refuse it, and its older ones answer with a URL without it.
pub(super) fn body(request: &GenerationRequest) -> Map<String, Value> {
    let mut body = request.params.clone();
    for field in ["stream", "partial_images"] {
        body.remove(field);
    }
    body.insert("model".to_owned(), request.model.clone().into());
    body.insert("prompt".to_owned(), request.prompt().into());
    body.insert("n".to_owned(), 1.into());
    if let Some(size) = &request.size {
        body.insert("size".to_owned(), size.clone().into());
    }
    body
}

/// Where the image is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// It came with the reply.
    Here(Vec<u8>),
    /// It is to be fetched.
    At(String),
}

/// The longest body of a reply whose image has at most `bytes` bytes: four characters for three of them, and the rest.
pub(super) fn longest_reply(bytes: usize) -> usize {
    bytes.div_ceil(3).saturating_mul(4).saturating_add(64 * 1024)
}

/// Reads a reply's JSON, and takes the images out of it: what is stored of the reply is what it says, not what it brings.
///
/// Bytes go before a URL. A reply without either is an answer that was paid for and shows nothing (`no-image-url`).
pub(super) fn read(raw: &mut Value) -> Result<(Reply, Source), ProviderFailure> {
    let reported = raw.get("error").filter(|error| !error.is_null()).cloned();
    let Some(data) = raw.get_mut("data").and_then(Value::as_array_mut) else {
        return Err(match reported {
            Some(error) => error::reported(&error),
            None => error::wrong_shape(&"it holds no data"),
        });
    };
    let inline: Vec<Value> =
        data.iter_mut().filter_map(|item| item.as_object_mut()?.remove("b64_json")).collect();
    let words = |field: &str| {
        let mut words = data.iter().filter_map(|item| item[field].as_str());
        words.find(|text| !text.trim().is_empty()).unwrap_or_default().to_owned()
    };
    let inline = inline.iter().filter_map(Value::as_str).find(|text| !text.trim().is_empty());
    let source = match (inline, words("url")) {
        (Some(text), _) => {
            Source::Here(BASE64.decode(text.trim()).map_err(|error| error::no_base64(&error))?)
        }
        (None, url) if url.is_empty() => return Err(error::no_image()),
        (None, url) => Source::At(url),
    };
    let text = words("revised_prompt");
    let reply = Reply {
        id: reply::name(raw, "id"),
        model: reply::name(raw, "model"),
        text,
        usage: reply::usage(raw, "input_tokens", "output_tokens"),
    };
    Ok((reply, source))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tollgate_model::generation::{Decision, FailureKind};

    use super::*;
    use crate::tests::request;

    #[test]
    fn a_request_asks_for_one_whole_image_and_keeps_the_seed() {
        let mut request = request();
        (request.seed, request.size) = (Some(7), Some("1024x1536".to_owned()));
        let params = json!({
            "quality": "high", "background": "transparent", "n": 10, "stream": true, "partial_images": 2,
            "prompt": "other", "model": "other", "size": "1x1",
        });
        request.params = params.as_object().unwrap().clone();
        assert_eq!(
            Value::Object(body(&request)),
            json!({
                "model": "gpt-test", "prompt": "hello", "n": 1, "size": "1024x1536", "quality": "high",
                "background": "transparent",
            })
        );
    }

    #[test]
    fn an_image_comes_in_either_form_and_leaves_the_reply() {
        let here = |bytes: &[u8]| Source::Here(bytes.to_vec());
        let url = || Source::At("https://h.example/i.png".to_owned());
        for (item, expected) in [
            (json!({"b64_json": "aGk="}), here(b"hi")),
            (json!({"b64_json": "aGk"}), here(b"hi")),
            (json!({"b64_json": "aGk=", "url": "https://h.example/i.png"}), here(b"hi")),
            (json!({"b64_json": null, "url": "https://h.example/i.png"}), url()),
            (json!({"b64_json": "", "url": "https://h.example/i.png", "revised_prompt": "no"}), url()),
        ] {
            let mut raw = json!({"created": 1, "data": [item]});
            let (reply, source) = read(&mut raw).unwrap();
            assert_eq!(source, expected, "{item}");
            assert_eq!(reply.text, item["revised_prompt"].as_str().unwrap_or_default());
            assert!(!raw.to_string().contains("b64_json"), "{raw}");
        }
    }

    #[test]
    fn usage_is_read() {
        let usage =
            json!({"input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "input_tokens_details": {}});
        let mut raw = json!({"data": [{"b64_json": "aGk="}], "usage": usage});
        let (reply, _) = read(&mut raw).unwrap();
        assert_eq!(
            (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens),
            (3, 4, 7)
        );
    }

    #[test]
    fn a_reply_that_shows_nothing_is_final_and_one_of_another_shape_is_not() {
        let nothing = (FailureKind::NoImageUrl, Decision::Fail);
        let broken = (FailureKind::ServerError, Decision::Retry);
        for (raw, expected) in [
            (json!({"data": [{}]}), nothing),
            (json!({"data": []}), nothing),
            (json!({"data": [{"url": ""}]}), nothing),
            (json!({"data": [{"url": " ", "b64_json": ""}]}), nothing),
            (json!({"data": [{"url": null, "b64_json": null}]}), nothing),
            (json!({"data": ["aGk="]}), nothing),
            (json!({"data": [{"b64_json": "not base64"}]}), broken),
            (json!({"data": null}), broken),
            (json!({"choices": []}), broken),
            (json!([]), broken),
            (json!({"error": {"code": "server_error"}}), broken),
        ] {
            let failure = read(&mut raw.clone()).unwrap_err();
            assert_eq!((failure.kind, failure.decision), expected, "{raw}: {failure}");
        }
    }

    #[test]
    fn the_longest_image_fits_into_the_longest_reply() {
        for bytes in [0, 1, 2, 3, 10 * 1024 * 1024] {
            assert!(longest_reply(bytes) >= BASE64.encode(vec![0; bytes]).len() + 60 * 1024);
        }
    }
}
