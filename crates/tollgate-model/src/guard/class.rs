//! Classes of models: what one guard stands before. There is one for each kind of call, `text` and `image`; a configuration
//! changes their figures:
//!
//! ```toml
//! [guard.image]
//! timeout_ceiling = "100s"
//! bucket_capacity = 20
//! ```
//!
//! Classes by the name of a model would need a line of the queue each: a claim cannot pass over the jobs of one model to find
//! those of another. They can come when somebody needs them.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::settings::GuardSettings;

/// What a call is to bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallKind {
    /// Words.
    Text,
    /// A picture.
    Image,
}

impl CallKind {
    /// As stored, and as a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
        }
    }
}

/// The name of a class: key of its state, and a metric's label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClassName(String);

impl ClassName {
    /// The name as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<CallKind> for ClassName {
    /// That of the class of this kind.
    fn from(kind: CallKind) -> Self {
        Self(kind.name().to_owned())
    }
}

impl fmt::Display for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Models that share one guard.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelClass {
    /// Its name.
    pub name: ClassName,
    /// What its models bring.
    pub kind: CallKind,
    /// The figures of its guard.
    pub settings: GuardSettings,
}

/// All classes of an installation. A value of this type has been checked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Declared")]
pub struct GuardConfig {
    text: ModelClass,
    image: ModelClass,
}

/// A table of settings, as it stands in a configuration.
type Table = Map<String, Value>;

/// As it stands in a configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Declared {
    text: Table,
    image: Table,
}

/// A declaration that cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("guard class `{class}`: {problem}")]
pub struct BadClass {
    /// Which one.
    pub class: String,
    /// What is wrong with it.
    pub problem: String,
}

impl GuardConfig {
    /// Every class.
    pub fn classes(&self) -> impl Iterator<Item = &ModelClass> {
        [&self.text, &self.image].into_iter()
    }

    /// The class of that name.
    pub fn get(&self, name: &str) -> Option<&ModelClass> {
        self.classes().find(|class| class.name.as_str() == name)
    }

    /// The class of a kind of call.
    pub fn of_kind(&self, kind: CallKind) -> &ModelClass {
        match kind {
            CallKind::Text => &self.text,
            CallKind::Image => &self.image,
        }
    }
}

impl Default for GuardConfig {
    fn default() -> Self {
        let class =
            |kind| ModelClass { name: ClassName::from(kind), kind, settings: GuardSettings::defaults(kind) };
        Self { text: class(CallKind::Text), image: class(CallKind::Image) }
    }
}

impl TryFrom<Declared> for GuardConfig {
    type Error = BadClass;

    fn try_from(declared: Declared) -> Result<Self, BadClass> {
        let mut config = Self::default();
        for (class, table) in [(&mut config.text, declared.text), (&mut config.image, declared.image)] {
            class.settings = overlay(&class.settings, table)
                .map_err(|problem| BadClass { class: class.name.to_string(), problem })?;
        }
        Ok(config)
    }
}

/// The settings with those of a table in place of theirs.
fn overlay(settings: &GuardSettings, table: Table) -> Result<GuardSettings, String> {
    let mut whole = serde_json::to_value(settings).map_err(|error| error.to_string())?;
    replace(&mut whole, Value::Object(table));
    let settings: GuardSettings = serde_json::from_value(whole).map_err(|error| error.to_string())?;
    settings.validate().map_err(|error| error.to_string())?;
    Ok(settings)
}

fn replace(old: &mut Value, new: Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (field, value) in new {
                replace(old.entry(field).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new,
    }
}

#[cfg(test)]
mod tests;
