//! What the two endpoints' replies have in common: an id, a model, a text, and counted tokens.

use serde_json::Value;
use tollgate_model::generation::Usage;

/// More tokens than any model reads or writes. A count beyond it is a bug on the other side, and sums of
/// counts up to it cannot overflow.
const MOST_TOKENS: i64 = 1_000_000_000;

/// Identifiers are shown and indexed; one of a megabyte is neither an id nor welcome.
const LONGEST_NAME: usize = 256;

/// A reply, read. `id` and `model` are empty where the provider gave none.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) text: String,
    pub(super) usage: Usage,
}

/// An id or a model's name; empty if missing, or if it is no string.
pub(super) fn name(raw: &Value, field: &str) -> String {
    raw[field].as_str().unwrap_or_default().chars().take(LONGEST_NAME).collect()
}

/// The usage of `raw`, whose two counts the endpoints name differently.
///
/// Never an error: the answer is there and has been paid for, so a count that is missing or no number is 0, a
/// negative one too, and an absurd one is cut. A missing total is the sum.
pub(super) fn usage(raw: &Value, prompt: &str, completion: &str) -> Usage {
    let usage = &raw["usage"];
    let prompt_tokens = count(&usage[prompt]).unwrap_or(0);
    let completion_tokens = count(&usage[completion]).unwrap_or(0);
    let total_tokens = count(&usage["total_tokens"]).unwrap_or(prompt_tokens + completion_tokens);
    Usage { prompt_tokens, completion_tokens, total_tokens }
}

/// How many tokens of the input the provider had in its cache; the endpoints name these details differently too.
pub(super) fn cached_tokens(raw: &Value) -> i64 {
    let usage = &raw["usage"];
    let details = ["prompt_tokens_details", "input_tokens_details"].map(|name| &usage[name]["cached_tokens"]);
    details.into_iter().find_map(count).unwrap_or(0)
}

fn count(value: &Value) -> Option<i64> {
    // Some servers count in floats, and what is too large for an i64 is one, too.
    let whole = value.as_i64().or_else(|| value.as_f64().map(whole));
    whole.map(|count| count.clamp(0, MOST_TOKENS))
}

#[expect(clippy::cast_possible_truncation, reason = "`as` saturates, and the result is clamped anyway")]
fn whole(number: f64) -> i64 {
    number as i64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn usage_is_what_was_counted_or_zero() {
        for (raw, expected) in [
            (json!({"usage": {"p": 3, "c": 4, "total_tokens": 7}}), (3, 4, 7)),
            (json!({"usage": {"p": 3, "c": 4, "total_tokens": 9, "details": {"x": 1}}}), (3, 4, 9)),
            (json!({"usage": {"p": 3, "c": 4}}), (3, 4, 7)),
            (json!({"usage": {"p": 3.0, "c": 4.9}}), (3, 4, 7)),
            (json!({"usage": {"p": -3, "c": -0.5, "total_tokens": -7}}), (0, 0, 0)),
            (
                json!({"usage": {"p": i64::MAX, "c": u64::MAX, "total_tokens": 1e300}}),
                (MOST_TOKENS, MOST_TOKENS, MOST_TOKENS),
            ),
            (json!({"usage": {"p": i64::MIN, "c": -1e300, "total_tokens": 1}}), (0, 0, 1)),
            (json!({"usage": {"p": "3", "c": null, "total_tokens": [7]}}), (0, 0, 0)),
            (json!({"usage": null}), (0, 0, 0)),
            (json!({"usage": [1, 2]}), (0, 0, 0)),
            (json!({}), (0, 0, 0)),
        ] {
            let Usage { prompt_tokens, completion_tokens, total_tokens } = usage(&raw, "p", "c");
            assert_eq!((prompt_tokens, completion_tokens, total_tokens), expected, "{raw}");
        }
    }

    #[test]
    fn cached_tokens_are_read_wherever_they_stand() {
        for (usage, expected) in [
            (json!({"prompt_tokens_details": {"cached_tokens": 3}}), 3),
            (json!({"input_tokens_details": {"cached_tokens": 4}}), 4),
            (json!({"prompt_tokens_details": {"cached_tokens": -1}}), 0),
            (json!({"prompt_tokens_details": null}), 0),
            (json!({}), 0),
        ] {
            assert_eq!(cached_tokens(&json!({ "usage": usage })), expected, "{usage}");
        }
    }

    #[test]
    fn names_are_strings_of_bounded_length() {
        let raw = json!({"id": "x".repeat(1000), "model": 7});
        assert_eq!(name(&raw, "id").len(), LONGEST_NAME);
        assert_eq!(name(&raw, "model"), "");
        assert_eq!(name(&raw, "other"), "");
    }
}
