//! Doing a thing once, however often it is asked for (SPEC K3).
//!
//! A request with an `Idempotency-Key` is known by account, method, route and key, and by what it asks: the hash of its
//! body in canonical form (RFC 8785), so that neither the order of fields nor white space makes it another one, and of
//! its path. The account is not the API key: a rotated key breaks no replay.

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The longest key.
const MAX_LEN: usize = 255;

/// A request that is to be done once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once {
    /// `POST`, `PUT` or `PATCH`.
    pub method: &'static str,
    /// The route, such as `/v1/jobs/{id}/cancel`.
    pub route: String,
    /// What the client calls it.
    pub key: String,
    /// What it asks.
    pub fingerprint: [u8; 32],
}

/// What a request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP's status.
    pub status: u16,
    /// JSON, as it goes out; as it is kept, sealed where it holds a secret.
    pub body: Vec<u8>,
    /// Where to find what was made.
    pub location: Option<String>,
    /// It was done before, and this is what was answered then.
    pub replayed: bool,
}

/// An answer that is not to be had as JSON.
#[derive(Debug, thiserror::Error)]
#[error("an answer cannot be written: {0}")]
pub struct Unwritable(#[from] serde_json::Error);

impl Answer {
    /// A first answer.
    pub fn new(status: u16, body: &impl Serialize) -> Result<Self, Unwritable> {
        Ok(Self { status, body: serde_json::to_vec(body)?, location: None, replayed: false })
    }
}

/// Why a request cannot be done once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadOnce {
    /// The key is empty, too long, or not of printable ASCII characters.
    #[error("the header `Idempotency-Key` must have 1 to {MAX_LEN} printable ASCII characters")]
    Key,
    /// Two such numbers may be one when they are compared.
    #[error(
        "the body holds a whole number beyond 2^53, of which two may look alike: send it as text, or leave the header \
         `Idempotency-Key` out"
    )]
    Number,
}

/// Checks what a client calls its request.
pub fn check_key(key: &[u8]) -> Result<&str, BadOnce> {
    let printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    if !(1..=MAX_LEN).contains(&key.len()) || !key.iter().all(printable) {
        return Err(BadOnce::Key);
    }
    std::str::from_utf8(key).map_err(|_| BadOnce::Key)
}

/// What a request asks: its path, and its body, if it has one.
pub fn fingerprint(path: &str, body: Option<&Value>) -> Result<[u8; 32], BadOnce> {
    let mut hash = Sha256::new();
    hash.update(path);
    if let Some(body) = body {
        if holds_inexact(body) {
            return Err(BadOnce::Number);
        }
        hash.update(b"\n");
        hash.update(serde_jcs::to_vec(body).map_err(|_| BadOnce::Number)?);
    }
    Ok(hash.finalize().into())
}

/// The canonical form writes every number as a double, and rounds what is none.
fn holds_inexact(value: &Value) -> bool {
    const EXACT: u64 = 1 << 53;
    match value {
        Value::Number(number) => number
            .as_i64()
            .map_or_else(|| number.as_u64(), |n| Some(n.unsigned_abs()))
            .is_some_and(|n| n > EXACT),
        Value::Array(items) => items.iter().any(holds_inexact),
        Value::Object(fields) => fields.values().any(holds_inexact),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn of(body: &str) -> Result<[u8; 32], BadOnce> {
        fingerprint("/v1/jobs", Some(&serde_json::from_str(body).unwrap()))
    }

    #[test]
    fn what_means_the_same_is_the_same() {
        assert_eq!(of(r#"{"a": 1, "b": [true, "é"]}"#), of("{\"b\":[true,\"\\u00e9\"],\n\"a\":1.0}"));
        assert_ne!(of(r#"{"a": 1}"#), of(r#"{"a": 2}"#));
        assert_ne!(of(r#"{"a": 1}"#), of(r#"{"a": "1"}"#));
        assert_ne!(of(r#"{"a": [1, 2]}"#), of(r#"{"a": [2, 1]}"#));
        assert_ne!(of("{}"), fingerprint("/v1/jobs", None));
        assert_ne!(fingerprint("/a", None), fingerprint("/b", None));
    }

    #[test]
    fn numbers_that_would_be_rounded_are_refused() {
        assert!(of("[9007199254740992]").is_ok());
        for inexact in ["[9007199254740993]", r#"{"a": {"b": -9007199254740993}}"#, "[18446744073709551615]"]
        {
            assert_eq!(of(inexact), Err(BadOnce::Number), "{inexact}");
        }
    }

    #[test]
    fn keys_are_short_and_printable() {
        assert_eq!(check_key(b"a b-1"), Ok("a b-1"));
        for bad in [&b""[..], b"a\n", b"\xff", &[b'a'; 256]] {
            assert_eq!(check_key(bad), Err(BadOnce::Key));
        }
    }

    proptest! {
        #[test]
        fn the_order_of_fields_does_not_matter(fields in prop::collection::btree_map("[a-e]{1,3}", -100_i64..100, 0..6)) {
            let forth: Value = fields.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            let text: Vec<String> = fields.iter().rev().map(|(k, v)| format!("\"{k}\": {v}")).collect();
            prop_assert_eq!(of(&format!("{{{}}}", text.join(", "))), fingerprint("/v1/jobs", Some(&forth)));
        }
    }
}
