//! What a client may ask for, and what becomes of it: every field checked, every gap filled (SPEC X3, Q15).

use std::time::Duration;

use chrono::{DateTime, Days, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::generation::{Endpoint, GenerationRequest, Message, Role};
use crate::image::{DEFAULT_SIZE, is_size};
use crate::job_type::{DEFAULT_JOB_TYPE, JobType, JobTypes};

/// A generation job, as a client posts it. All but the work itself (`messages` or `prompt`) may be left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(title = "Submission", examples(json!({"type": "text", "prompt": "Name three uses of a tollgate."})))]
pub struct Submission {
    /// `text` (the default), `image`, or a declared job type, such as `kb.ingest`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub job_type: Option<String>,
    /// The provider's name of the model; the job type's model, or the configured one, if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The conversation that the model continues; either this or `prompt`. Refused for an image job.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "crate::object::list")]
    pub messages: Option<Vec<Message>>,
    /// Short for one message of the user; of an image job, what the image is to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Sampling temperature, 0 to 2; refused for an image job.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    /// The most tokens to generate, at least 1; refused for an image job.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub max_tokens: Option<i64>,
    /// Size of an image, `WIDTHxHEIGHT` or `auto`; `1024x1024` if left out. Refused for a text job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// For a repeatable answer, where the provider can do so. Image jobs of one prompt, seed, model and size have one
    /// image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// 1 (first) to 10 (last); 5 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10)]
    pub priority: Option<i64>,
    /// Attempts it may take, 1 to 20; 5 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 20)]
    pub max_attempts: Option<i64>,
    /// Not before this; at most a year ahead. The past is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<DateTime<Utc>>,
    /// Total deadline of one call to the provider, in milliseconds, 100 to 600,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 100, maximum = 600_000)]
    pub timeout_ms: Option<i64>,
    /// The client's own notes, an object of at most 16 KiB as JSON; given back unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Map<String, Value>>,
}

/// What a submission is measured against.
#[derive(Debug, Clone)]
pub struct SubmissionRules {
    /// The declared job types.
    pub job_types: JobTypes,
    /// Deadline of a provider's call where the submission asks for none.
    pub default_timeout: Duration,
    /// The same for an image job; images take longer.
    pub image_timeout: Duration,
}

/// A submission that passed: complete, ready to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct AcceptedJob {
    /// The job type's name.
    pub job_type: String,
    /// 1 to 10.
    pub priority: i16,
    /// 1 to 20.
    pub max_attempts: i32,
    /// Not before this; `None` is now, by the database's clock.
    pub scheduled_at: Option<DateTime<Utc>>,
    /// The call to make.
    pub request: GenerationRequest,
    /// The client's own notes.
    pub metadata: Map<String, Value>,
}

/// What is wrong with a submission: the field, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {problem}")]
pub struct InvalidSubmission {
    /// The field, as the client names it.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

fn refuse<T>(field: &'static str, problem: impl Into<String>) -> Result<T, InvalidSubmission> {
    Err(InvalidSubmission { field, problem: problem.into() })
}

const MAX_METADATA_BYTES: usize = 16 * 1024;
/// Readers give up at some depth, ours at 128: metadata must not spoil the list that its job is read in.
const MAX_METADATA_DEPTH: usize = 64;

/// Whether arrays and objects nest deeper than so many levels.
fn deeper_than(value: &Value, levels: usize) -> bool {
    let inside = |value: &Value| levels == 0 || deeper_than(value, levels - 1);
    match value {
        Value::Array(items) => items.iter().any(inside),
        Value::Object(fields) => fields.values().any(inside),
        _ => false,
    }
}

impl Submission {
    /// Checks every field and fills in what was left out. `job_id` becomes the request id at the provider.
    pub fn accept(
        self,
        rules: &SubmissionRules,
        job_id: Uuid,
        now: DateTime<Utc>,
    ) -> Result<AcceptedJob, InvalidSubmission> {
        let name = self.job_type.as_deref().unwrap_or(DEFAULT_JOB_TYPE);
        let Some(job_type) = rules.job_types.get(name) else {
            let known: Vec<_> = rules.job_types.names().collect();
            return refuse("type", format!("is not a known job type; known are {}", known.join(", ")));
        };
        let image = job_type.endpoint == Endpoint::Images;
        let size = if image { self.image_size(job_type)? } else { None };
        if !image && self.size.is_some() {
            return refuse("size", format!("applies to images; `{name}` is a text job"));
        }
        let messages = messages(self.messages, self.prompt)?;
        let model = self.model.or_else(|| job_type.model.clone());
        let model = model.unwrap_or_else(|| rules.job_types.default_model(job_type.endpoint).to_owned());
        if model.trim().is_empty() || model.len() > 200 {
            return refuse("model", "must have 1 to 200 characters");
        }
        if self.temperature.is_some_and(|temperature| !(0.0..=2.0).contains(&temperature)) {
            return refuse("temperature", "must be between 0 and 2");
        }
        let max_tokens = within("max_tokens", self.max_tokens, 1, 1_000_000)?;
        let timeout_ms: Option<u64> = within("timeout_ms", self.timeout_ms, 100, 600_000)?;
        let default_timeout = if image { rules.image_timeout } else { rules.default_timeout };
        if let Some(at) = self.scheduled_at
            && at > now + Days::new(366)
        {
            return refuse("scheduled_at", "must be at most a year ahead");
        }
        let metadata = self.metadata.unwrap_or_default();
        if serde_json::to_string(&metadata).map_or(usize::MAX, |text| text.len()) > MAX_METADATA_BYTES {
            return refuse("metadata", format!("must be at most {MAX_METADATA_BYTES} bytes of JSON"));
        }
        if metadata.values().any(is_rounded) {
            return refuse(
                "metadata",
                "holds a number too large to be given back unchanged; send it as text",
            );
        }
        if metadata.values().any(|value| deeper_than(value, MAX_METADATA_DEPTH)) {
            return refuse("metadata", format!("must not nest deeper than {MAX_METADATA_DEPTH} levels"));
        }
        Ok(AcceptedJob {
            job_type: name.to_owned(),
            priority: within("priority", self.priority, 1, 10)?.unwrap_or(5),
            max_attempts: within("max_attempts", self.max_attempts, 1, 20)?.unwrap_or(5),
            // The past is now; one before PostgreSQL's calendar begins could not even be stored.
            scheduled_at: self.scheduled_at.filter(|at| *at > now),
            request: GenerationRequest {
                request_id: job_id,
                endpoint: job_type.endpoint,
                model,
                messages,
                temperature: self.temperature.or(job_type.temperature),
                max_tokens: max_tokens.or(job_type.max_tokens),
                seed: self.seed,
                size,
                params: job_type.params.clone(),
                timeout: timeout_ms.map_or(default_timeout, Duration::from_millis),
            },
            metadata,
        })
    }

    /// An image job is a prompt and a size; what else a text job takes means nothing to it.
    fn image_size(&self, job_type: &JobType) -> Result<Option<String>, InvalidSubmission> {
        for (field, given) in [
            ("messages", self.messages.is_some()),
            ("temperature", self.temperature.is_some()),
            ("max_tokens", self.max_tokens.is_some()),
        ] {
            if given {
                return refuse(field, "is not for an image job, which takes a `prompt`");
            }
        }
        if self.prompt.is_none() {
            return refuse("prompt", "is required: it says what the image is to show");
        }
        let size = self.size.as_deref().or(job_type.size.as_deref()).unwrap_or(DEFAULT_SIZE);
        if !is_size(size) {
            return refuse("size", "must be WIDTHxHEIGHT, such as 1024x1024, or auto");
        }
        Ok(Some(size.to_owned()))
    }
}

fn messages(
    messages: Option<Vec<Message>>,
    prompt: Option<String>,
) -> Result<Vec<Message>, InvalidSubmission> {
    let (field, messages) = match (messages, prompt) {
        (Some(_), Some(_)) => return refuse("prompt", "cannot stand beside `messages`; send one of the two"),
        (None, None) => {
            return refuse("messages", "or `prompt` is required: a job needs something to work on");
        }
        (Some(messages), None) => ("messages", messages),
        (None, Some(content)) => ("prompt", vec![Message { role: Role::User, content }]),
    };
    if messages.is_empty() {
        return refuse(field, "must not be empty");
    }
    if messages.iter().all(|message| message.content.trim().is_empty()) {
        return refuse(field, "must hold some text");
    }
    Ok(messages)
}

/// Whether the value holds a number that may have been rounded when it was read.
fn is_rounded(value: &Value) -> bool {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
    match value {
        Value::Number(number) => {
            number.is_f64() && number.as_f64().is_none_or(|number| number.abs() >= EXACT)
        }
        Value::Array(values) => values.iter().any(is_rounded),
        Value::Object(members) => members.values().any(is_rounded),
        _ => false,
    }
}

/// A whole number between two bounds, in the type that the job keeps it in.
fn within<T: TryFrom<i64>>(
    field: &'static str,
    value: Option<i64>,
    least: i64,
    most: i64,
) -> Result<Option<T>, InvalidSubmission> {
    let Some(value) = value else { return Ok(None) };
    match T::try_from(value) {
        Ok(fits) if (least..=most).contains(&value) => Ok(Some(fits)),
        _ => refuse(field, format!("must be between {least} and {most}")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn accept(body: Value) -> Result<AcceptedJob, String> {
        let rules = SubmissionRules {
            job_types: JobTypes::new("default-model".into(), "image-model".into(), BTreeMap::new()).unwrap(),
            default_timeout: Duration::from_secs(30),
            image_timeout: Duration::from_mins(1),
        };
        let submission: Submission = serde_json::from_value(body).map_err(|error| error.to_string())?;
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        submission.accept(&rules, Uuid::nil(), now).map_err(|error| error.to_string())
    }

    #[test]
    fn the_least_submission_takes_every_default() {
        let job = accept(json!({"prompt": "hi"})).unwrap();
        assert_eq!((job.job_type.as_str(), job.priority, job.max_attempts), ("text", 5, 5));
        assert_eq!(job.request.model, "default-model");
        assert_eq!(job.request.timeout, Duration::from_secs(30));
        assert_eq!(job.request.temperature, None);
    }

    #[test]
    fn a_time_in_the_past_is_now() {
        for past in ["-200000-01-01T00:00:00Z", "1969-07-20T20:17:40Z"] {
            assert_eq!(accept(json!({"prompt": "a", "scheduled_at": past})).unwrap().scheduled_at, None);
        }
        let soon = accept(json!({"prompt": "a", "scheduled_at": "2023-12-01T00:00:00Z"})).unwrap();
        assert!(soon.scheduled_at.is_some());
    }

    #[test]
    fn a_job_type_presets_what_the_submission_leaves_out() {
        assert_eq!(
            accept(json!({"type": "kb.ingest", "prompt": "a"})).unwrap().request.temperature,
            Some(0.2)
        );
        let own = accept(json!({"type": "kb.ingest", "prompt": "a", "temperature": 1})).unwrap();
        assert_eq!(own.request.temperature, Some(1.0));
    }

    #[test]
    fn an_image_job_is_a_prompt_and_a_size() {
        let job = accept(json!({"type": "image", "prompt": "a gate"})).unwrap();
        assert_eq!((job.request.endpoint, job.request.prompt()), (Endpoint::Images, "a gate"));
        assert_eq!(
            (job.request.model.as_str(), job.request.size.as_deref()),
            ("image-model", Some("1024x1024"))
        );
        assert_eq!(job.request.timeout, Duration::from_mins(1));
        let own =
            accept(json!({"type": "image", "prompt": "a", "size": "auto", "seed": 7, "timeout_ms": 900}));
        let own = own.unwrap().request;
        assert_eq!((own.size.as_deref(), own.seed, own.timeout.as_millis()), (Some("auto"), Some(7), 900));
    }

    #[test]
    fn each_bad_field_is_named() {
        for (body, named) in [
            (json!({}), "`messages`"),
            (json!({"messages": []}), "`messages`"),
            (json!({"prompt": "  "}), "`prompt`"),
            (json!({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}), "`prompt`"),
            (json!({"prompt": "a", "type": "nope"}), "kb.ingest"),
            (json!({"prompt": "a", "size": "1x1"}), "`size`"),
            (json!({"type": "image"}), "`prompt`"),
            (json!({"type": "image", "prompt": " "}), "`prompt`"),
            (json!({"type": "image", "messages": [{"role": "user", "content": "a"}]}), "`messages`"),
            (json!({"type": "image", "prompt": "a", "temperature": 1}), "`temperature`"),
            (json!({"type": "image", "prompt": "a", "max_tokens": 1}), "`max_tokens`"),
            (json!({"type": "image", "prompt": "a", "size": "big"}), "`size`"),
            (json!({"prompt": "a", "max_tokens": -1}), "`max_tokens`"),
            (json!({"prompt": "a", "max_tokens": 0}), "`max_tokens`"),
            (json!({"prompt": "a", "priority": 11}), "`priority`"),
            (json!({"prompt": "a", "max_attempts": 0}), "`max_attempts`"),
            (json!({"prompt": "a", "timeout_ms": 99}), "`timeout_ms`"),
            (json!({"prompt": "a", "temperature": 2.1}), "`temperature`"),
            (json!({"prompt": "a", "model": ""}), "`model`"),
            (json!({"prompt": "a", "scheduled_at": "2100-01-01T00:00:00Z"}), "`scheduled_at`"),
            (json!({"prompt": "a", "metadata": {"a": "x".repeat(17_000)}}), "`metadata`"),
            (json!({"prompt": "a", "metadata": {"a": [{"b": 1e300}]}}), "`metadata`"),
            (json!({"prompt": "a", "colour": "red"}), "`colour`"),
            (json!({"messages": [{"role": "user", "content": "a", "x": 1}]}), "`x`"),
            (json!({"messages": [["user", "a"]]}), "expected an object"),
        ] {
            let error = accept(body.clone()).unwrap_err();
            assert!(error.contains(named), "{body}: {error}");
        }
    }
}
