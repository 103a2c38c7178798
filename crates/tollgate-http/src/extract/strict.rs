//! What no JSON body may hold, wherever in it: the NUL character, which PostgreSQL cannot store, and an object that
//! has a field twice, of which two readers may each see another one.
//!
//! A typed reader alone would let both through inside free-form values such as `metadata`.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Deserializes from any JSON value that is clean, and keeps nothing of it.
pub(super) struct Clean;

/// A key or a string.
struct Text<'de>(Cow<'de, str>);

fn without_nul<E: Error>(text: &str) -> Result<(), E> {
    if text.contains('\0') { Err(E::custom("must not hold the NUL character")) } else { Ok(()) }
}

impl<'de> Deserialize<'de> for Clean {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CleanVisitor)
    }
}

struct CleanVisitor;

impl<'de> Visitor<'de> for CleanVisitor {
    type Value = Clean;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Clean, E> {
        Ok(Clean)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Clean, E> {
        Ok(Clean)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Clean, E> {
        Ok(Clean)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Clean, E> {
        Ok(Clean)
    }

    fn visit_unit<E>(self) -> Result<Clean, E> {
        Ok(Clean)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Clean, E> {
        without_nul(text).map(|()| Clean)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Clean, A::Error> {
        while seq.next_element::<Clean>()?.is_some() {}
        Ok(Clean)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Clean, A::Error> {
        let mut seen = HashSet::new();
        while let Some(Text(key)) = map.next_key()? {
            without_nul(&key)?;
            map.next_value::<Clean>()?;
            if let Some(key) = seen.replace(key) {
                return Err(A::Error::custom(format_args!("the field `{key}` stands there twice")));
            }
        }
        Ok(Clean)
    }
}

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn is_clean(text: &str) -> bool {
        serde_json::from_str::<Clean>(text).is_ok()
    }

    /// Any JSON value, its strings and keys from an alphabet with a NUL in it.
    fn value() -> impl Strategy<Value = Value> {
        let text = "[a-c\u{0}\\\\u0é]{0,4}";
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            text.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, move |inner| {
            let object = prop::collection::btree_map(text, inner.clone(), 0..4);
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::from),
                object.prop_map(|map| Value::from(Map::from_iter(map))),
            ]
        })
    }

    fn holds_nul(value: &Value) -> bool {
        match value {
            Value::String(text) => text.contains('\0'),
            Value::Array(items) => items.iter().any(holds_nul),
            Value::Object(map) => map.iter().any(|(key, value)| key.contains('\0') || holds_nul(value)),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn nul_is_found_wherever_it_is_and_nowhere_else(value in value()) {
            prop_assert_eq!(is_clean(&value.to_string()), !holds_nul(&value));
        }
    }

    #[test]
    fn an_escaped_backslash_is_no_nul() {
        assert!(is_clean(&json!("\\u0000").to_string()));
        assert!(!is_clean(r#""\u0000""#));
    }

    #[test]
    fn a_field_may_not_stand_there_twice() {
        assert!(is_clean(r#"{"a": {"b": 1}, "b": 1}"#));
        for twice in [r#"{"a": 1, "a": 1}"#, r#"[{"x": {"a": 1, "b": 2, "\u0061": 3}}]"#] {
            let error = serde_json::from_str::<Clean>(twice).err().unwrap().to_string();
            assert!(error.contains("`a` stands there twice"), "{error}");
        }
    }
}
