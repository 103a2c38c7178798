//! Job types are declared, not coded (SPEC Q15): each is a preset of model, endpoint and parameters over the
//! messages a client sends. `text` is the bare one; a user adds others in `tollgate.toml`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::generation::Endpoint;

/// The type of a submission that names none.
pub const DEFAULT_JOB_TYPE: &str = "text";

/// What a job type fixes in advance; a submission's own values win.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobType {
    /// The provider's endpoint.
    #[serde(default = "JobType::default_endpoint")]
    pub endpoint: Endpoint,
    /// The model, where the submission names none. Empty: the configured default model.
    #[serde(default)]
    pub model: Option<String>,
    /// Sampling temperature, 0 to 2.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// The most tokens to generate.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Further fields of the provider's request, passed through unchanged.
    #[serde(default)]
    pub params: Map<String, Value>,
}

impl JobType {
    fn default_endpoint() -> Endpoint {
        Endpoint::ChatCompletions
    }

    fn with_temperature(temperature: Option<f64>) -> Self {
        Self {
            endpoint: Self::default_endpoint(),
            model: None,
            temperature,
            max_tokens: None,
            params: Map::new(),
        }
    }
}

/// All job types of an installation, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct JobTypes {
    default_model: String,
    by_name: BTreeMap<String, JobType>,
}

/// A declaration in the configuration that cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("job type `{name}`: {problem}")]
pub struct BadJobType {
    name: String,
    problem: &'static str,
}

impl JobTypes {
    /// The built-in types and the declared ones; a declaration of the same name replaces the built-in type.
    pub fn new(default_model: String, declared: BTreeMap<String, JobType>) -> Result<Self, BadJobType> {
        let mut by_name: BTreeMap<_, _> = [
            (DEFAULT_JOB_TYPE, None),
            ("kb.ingest", Some(0.2)),
            ("diary.entry", Some(0.7)),
            ("autopoietic.tick", Some(0.5)),
        ]
        .into_iter()
        .map(|(name, temperature)| (name.to_owned(), JobType::with_temperature(temperature)))
        .collect();
        for (name, job_type) in declared {
            let problem = if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
                Some("a name has 1 to 100 characters, none of them a control character")
            } else if job_type.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
                Some("temperature must be between 0 and 2")
            } else if job_type.max_tokens == Some(0) {
                Some("max_tokens must be at least 1")
            } else if job_type.params.contains_key("stream") {
                Some("`stream` cannot be set: a job has one whole result")
            } else {
                None
            };
            if let Some(problem) = problem {
                return Err(BadJobType { name, problem });
            }
            by_name.insert(name, job_type);
        }
        Ok(Self { default_model, by_name })
    }

    /// The type of that name.
    pub fn get(&self, name: &str) -> Option<&JobType> {
        self.by_name.get(name)
    }

    /// Every name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// The model of a job whose submission and type name none.
    pub fn default_model(&self) -> &str {
        &self.default_model
    }
}
