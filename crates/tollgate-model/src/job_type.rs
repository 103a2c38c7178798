//! Job types are declared, not coded (SPEC Q15): each is a preset of model, endpoint and parameters over the
//! messages a client sends. `text` and `image` are the bare ones; a user adds others in `tollgate.toml`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::generation::Endpoint;
use crate::image::is_size;

/// The type of a submission that names none.
pub const DEFAULT_JOB_TYPE: &str = "text";

/// The bare type of image jobs.
const IMAGE_JOB_TYPE: &str = "image";

/// What a job type fixes in advance; a submission's own values win.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobType {
    /// The provider's endpoint.
    #[serde(default = "JobType::default_endpoint")]
    pub endpoint: Endpoint,
    /// The model, where the submission names none. Empty: the configured default model, for text or for images.
    #[serde(default)]
    pub model: Option<String>,
    /// Sampling temperature, 0 to 2.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// The most tokens to generate.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// The size of an image, `WIDTHxHEIGHT` or `auto`; of types that speak to `images` alone.
    #[serde(default)]
    pub size: Option<String>,
    /// Further fields of the provider's request, passed through unchanged.
    #[serde(default)]
    pub params: Map<String, Value>,
}

impl JobType {
    fn default_endpoint() -> Endpoint {
        Endpoint::ChatCompletions
    }

    fn bare(endpoint: Endpoint) -> Self {
        Self { endpoint, model: None, temperature: None, max_tokens: None, size: None, params: Map::new() }
    }

    fn with_temperature(temperature: Option<f64>) -> Self {
        Self { temperature, ..Self::bare(Self::default_endpoint()) }
    }

    /// What cannot be declared.
    fn problem(&self) -> Option<&'static str> {
        let image = self.endpoint == Endpoint::Images;
        if self.temperature.is_some_and(|t| !(0.0..=2.0).contains(&t)) {
            Some("temperature must be between 0 and 2")
        } else if self.max_tokens == Some(0) {
            Some("max_tokens must be at least 1")
        } else if self.params.contains_key("stream") {
            Some("`stream` cannot be set: a job has one whole result")
        } else if image && (self.temperature.is_some() || self.max_tokens.is_some()) {
            Some("temperature and max_tokens are not for images")
        } else if !image && self.size.is_some() {
            Some("size is for images alone; their endpoint is \"images\"")
        } else if self.size.as_deref().is_some_and(|size| !is_size(size)) {
            Some("size must be WIDTHxHEIGHT, such as 1024x1024, or auto")
        } else {
            None
        }
    }
}

/// All job types of an installation, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct JobTypes {
    default_model: String,
    default_image_model: String,
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
    pub fn new(
        default_model: String,
        default_image_model: String,
        declared: BTreeMap<String, JobType>,
    ) -> Result<Self, BadJobType> {
        let mut by_name: BTreeMap<_, _> = [
            (DEFAULT_JOB_TYPE, None),
            ("kb.ingest", Some(0.2)),
            ("diary.entry", Some(0.7)),
            ("autopoietic.tick", Some(0.5)),
        ]
        .into_iter()
        .map(|(name, temperature)| (name.to_owned(), JobType::with_temperature(temperature)))
        .collect();
        by_name.insert(IMAGE_JOB_TYPE.to_owned(), JobType::bare(Endpoint::Images));
        for (name, job_type) in declared {
            let problem = if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
                Some("a name has 1 to 100 characters, none of them a control character")
            } else {
                job_type.problem()
            };
            if let Some(problem) = problem {
                return Err(BadJobType { name, problem });
            }
            by_name.insert(name, job_type);
        }
        Ok(Self { default_model, default_image_model, by_name })
    }

    /// The type of that name.
    pub fn get(&self, name: &str) -> Option<&JobType> {
        self.by_name.get(name)
    }

    /// Every name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// The model of a job of this kind whose submission and type name none.
    pub fn default_model(&self, endpoint: Endpoint) -> &str {
        match endpoint {
            Endpoint::ChatCompletions | Endpoint::Responses => &self.default_model,
            Endpoint::Images => &self.default_image_model,
        }
    }
}
