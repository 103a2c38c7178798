//! Classes of models: what one guard stands before.
//!
//! `text` and `image` are always there. A configuration changes their figures, and declares further classes for models
//! that fail, or are limited, apart from the others:
//!
//! ```toml
//! [guard.image]
//! timeout_ceiling = "100s"
//!
//! [guard.classes.large]
//! kind = "text"
//! models = ["gpt-5", "gpt-5-*"]
//! bucket_capacity = 20
//! weights = { deadline = 0.4 }
//! ```
//!
//! What a class leaves out it takes from the class of its kind, as configured.

use std::collections::BTreeMap;
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
    /// That of the class of all models of this kind that no other class has.
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
    models: Vec<Pattern>,
}

/// A model's name, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    beginning: String,
    open_ended: bool,
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let beginning = text.strip_suffix('*');
        let pattern =
            Self { beginning: beginning.unwrap_or(text).to_owned(), open_ended: beginning.is_some() };
        (!text.is_empty() && !pattern.beginning.contains('*')).then_some(pattern)
    }

    /// How well it fits, if it does: the longer the better, and a whole name better than as long a beginning.
    fn fit(&self, model: &str) -> Option<(usize, bool)> {
        let fits = if self.open_ended { model.starts_with(&self.beginning) } else { model == self.beginning };
        fits.then_some((self.beginning.len(), !self.open_ended))
    }
}

/// All classes of an installation. A value of this type has been checked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Declared")]
pub struct GuardConfig {
    text: ModelClass,
    image: ModelClass,
    declared: Vec<ModelClass>,
}

/// A table of settings, as it stands in a configuration.
type Table = Map<String, Value>;

/// As it stands in a configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Declared {
    text: Table,
    image: Table,
    classes: BTreeMap<String, Table>,
}

/// What a declared class has beside its settings.
#[derive(Debug, Deserialize)]
struct Members {
    kind: CallKind,
    models: Vec<String>,
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
    /// The class of a call: the declared one whose pattern fits best, else that of the kind.
    pub fn class_of(&self, model: &str, kind: CallKind) -> &ModelClass {
        self.declared
            .iter()
            .filter(|class| class.kind == kind)
            .filter_map(|class| Some((class.models.iter().filter_map(|p| p.fit(model)).max()?, class)))
            .max_by_key(|(fit, _)| *fit)
            .map_or(self.of_kind(kind), |(_, class)| class)
    }

    /// Every class, those of the kinds first.
    pub fn classes(&self) -> impl Iterator<Item = &ModelClass> {
        [&self.text, &self.image].into_iter().chain(&self.declared)
    }

    /// The class of that name; `None` if it is declared no more.
    pub fn get(&self, name: &str) -> Option<&ModelClass> {
        self.classes().find(|class| class.name.as_str() == name)
    }

    /// The class of all models of a kind that no declared class has.
    pub fn of_kind(&self, kind: CallKind) -> &ModelClass {
        match kind {
            CallKind::Text => &self.text,
            CallKind::Image => &self.image,
        }
    }

    fn declare(&mut self, name: String, mut table: Table) -> Result<(), BadClass> {
        let bad = |problem: String| BadClass { class: name.clone(), problem };
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        if name.is_empty() || name.len() > 100 || !name.chars().all(label) {
            return Err(bad("a name has 1 to 100 of a-z, 0-9, `.`, `_` and `-`".to_owned()));
        }
        if self.get(&name).is_some() {
            return Err(bad(format!("is always there; its settings belong in `[guard.{name}]`")));
        }
        let members = ["kind", "models"].into_iter().filter_map(|field| table.remove_entry(field)).collect();
        let Members { kind, models } =
            serde_json::from_value(Value::Object(members)).map_err(|error| bad(error.to_string()))?;
        if models.is_empty() {
            return Err(bad("has no `models`".to_owned()));
        }
        let mut patterns = Vec::with_capacity(models.len());
        for model in &models {
            let pattern = Pattern::parse(model).ok_or_else(|| {
                bad(format!("`{model}` is neither a model's name nor the beginning of one with `*` after it"))
            })?;
            let other =
                self.declared.iter().find(|class| class.kind == kind && class.models.contains(&pattern));
            if let Some(other) = other {
                return Err(bad(format!("`{model}` is a model of class `{}` already", other.name)));
            }
            patterns.push(pattern);
        }
        let settings = overlay(&self.of_kind(kind).settings, table).map_err(bad)?;
        self.declared.push(ModelClass { name: ClassName(name), kind, settings, models: patterns });
        Ok(())
    }
}

impl Default for GuardConfig {
    fn default() -> Self {
        let class = |kind| ModelClass {
            name: ClassName::from(kind),
            kind,
            settings: GuardSettings::defaults(kind),
            models: Vec::new(),
        };
        Self { text: class(CallKind::Text), image: class(CallKind::Image), declared: Vec::new() }
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
        for (name, table) in declared.classes {
            config.declare(name, table)?;
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
