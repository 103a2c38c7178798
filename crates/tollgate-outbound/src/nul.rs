//! Removing NUL characters, which are fine in JSON and which PostgreSQL can store in neither `text` nor
//! `jsonb`. A model that emits one would otherwise make its job fail at the very end, after it was paid for.
//!
//! They are removed rather than replaced, since no reader expects a mark there.

use serde_json::{Map, Value};

/// `value` without any NUL character in its strings and keys, at any depth.
///
/// The depth of what serde_json has parsed is limited (128), so the recursion is too.
pub(crate) fn strip(value: &mut Value) {
    match value {
        Value::String(text) => strip_text(text),
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Object(fields) => {
            if fields.keys().any(|key| key.contains('\0')) {
                *fields = std::mem::take(fields).into_iter().map(strip_key).collect::<Map<_, _>>();
            }
            fields.values_mut().for_each(strip);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn strip_key((mut key, value): (String, Value)) -> (String, Value) {
    strip_text(&mut key);
    (key, value)
}

fn strip_text(text: &mut String) {
    if text.contains('\0') {
        text.retain(|c| c != '\0');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strips_strings_and_keys_at_any_depth() {
        let mut value = json!({
            "a\0b": [1, null, true, "x\0", {"\0": {"k": "\0\0"}}],
            "plain": "text",
        });
        strip(&mut value);
        assert_eq!(value, json!({"ab": [1, null, true, "x", {"": {"k": ""}}], "plain": "text"}));
    }
}
