//! Structs that are read from JSON objects only.
//!
//! What serde derives for a struct takes an array as well, its fields by position: `["user", "hi"]` would be a
//! message, and `[]` a submission. No client means that.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A `T` that was an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// For an optional list: `#[serde(deserialize_with = "object::list")]`.
pub(crate) fn list<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let objects: Option<Vec<Object<T>>> = Option::deserialize(deserializer)?;
    Ok(objects.map(|objects| objects.into_iter().map(|object| object.0).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::{Message, Role};

    #[test]
    fn an_array_is_no_object() {
        let message =
            serde_json::from_str::<Object<Message>>(r#"{"role": "user", "content": "hi"}"#).unwrap();
        assert_eq!(message.0, Message { role: Role::User, content: "hi".into() });
        for other in [r#"["user", "hi"]"#, "[]", "null", "1", r#""user""#] {
            let error = serde_json::from_str::<Object<Message>>(other).unwrap_err().to_string();
            assert!(error.contains("expected an object"), "{error}");
        }
    }
}
