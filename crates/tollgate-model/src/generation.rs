//! What a provider is asked and what it answers, in words that no provider owns (SPEC G1, G2).
//!
//! These types know nothing of prices, queues or tenants. An adapter turns a [`GenerationRequest`] into one
//! call of its provider and the reply into a [`GenerationOutput`] or a [`ProviderFailure`]; the failure
//! carries its decision, so that nobody downstream interprets a status code again.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::guard::class::CallKind;
use crate::guard::outcome::OutcomeKind;
use crate::image::GeneratedImage;

/// The provider's endpoint that a job type speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/responses`
    Responses,
    /// `POST /v1/images/generations`
    Images,
}

impl Endpoint {
    /// What its calls bring.
    pub fn kind(self) -> CallKind {
        match self {
            Self::ChatCompletions | Self::Responses => CallKind::Text,
            Self::Images => CallKind::Image,
        }
    }
}

/// Who speaks in a [`Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions of the application.
    System,
    /// The newer name some models have for [`Role::System`].
    Developer,
    /// The person, or the program, that asks.
    User,
    /// An earlier answer of the model.
    Assistant,
}

/// One turn of the conversation that the model continues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// One call to a provider, complete: an adapter needs nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationRequest {
    /// Sent along as the request id, so that the provider's support can find the call. The job's id.
    pub request_id: Uuid,
    /// The endpoint that the job's type speaks to.
    pub endpoint: Endpoint,
    /// The provider's name of the model.
    pub model: String,
    /// The conversation; never empty. Of an image job: one message of the user, its prompt.
    pub messages: Vec<Message>,
    /// Sampling temperature, 0 to 2.
    pub temperature: Option<f64>,
    /// The most tokens to generate.
    pub max_tokens: Option<u32>,
    /// For a repeatable answer, where the provider can do so.
    pub seed: Option<i64>,
    /// Of an image job: `WIDTHxHEIGHT`, or `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// Further fields of the provider's request, passed through as the job type declares them.
    pub params: Map<String, Value>,
    /// Total deadline of the call: connecting, waiting, and reading the last byte of the body.
    #[serde(rename = "timeout_ms", with = "millis")]
    pub timeout: Duration,
}

impl GenerationRequest {
    /// What an image job asks for.
    pub fn prompt(&self) -> &str {
        self.messages.first().map_or("", |message| &message.content)
    }
}

/// Durations are stored as whole milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// What the provider counted, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Tokens of the input.
    pub prompt_tokens: i64,
    /// Tokens that were generated.
    pub completion_tokens: i64,
    /// The provider's own total.
    pub total_tokens: i64,
}

/// A provider's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationOutput {
    /// The provider's id of the answer, such as `chatcmpl-…`.
    pub provider_id: String,
    /// The text that was generated; of an image job, the prompt as the provider revised it, if it did. Holds no NUL
    /// character, which PostgreSQL could not store.
    pub text: String,
    /// The image that was generated; `None` for a text job.
    #[serde(skip)]
    pub image: Option<GeneratedImage>,
    /// What the reply said of the provider's limits.
    #[serde(skip)]
    pub limits: Limits,
    /// The adapter's name, such as `openai`.
    pub provider: String,
    /// The model that answered, as the provider names it; often more precise than the one asked for.
    pub model: String,
    /// From sending the request to the last byte of the body, in milliseconds.
    pub latency_ms: i64,
    /// Tokens, as the provider counted them; zeros where it gave none.
    pub usage: Usage,
    /// Those of the input that the provider had in its cache, and bills at another rate.
    #[serde(skip)]
    pub cached_tokens: i64,
    /// The reply as it came, for what the normalised fields leave out: without an image's bytes, and without NUL
    /// characters.
    pub raw: Value,
}

/// Why a call failed, in the words clients see as an error's `code`: the four of SPEC G2, and one of I2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailureKind {
    /// 429.
    RateLimit,
    /// 5xx, no connection, a connection reset, or a reply that is not what the protocol says.
    ServerError,
    /// 408, or our own deadline.
    Timeout,
    /// Any other 4xx: the request is at fault, and would be again.
    BadRequest,
    /// A reply to an image job that holds no image and no URL of one. The provider is alive, has done its work and
    /// billed it: never tried again.
    #[serde(rename = "no-image-url")]
    NoImageUrl,
}

impl FailureKind {
    /// The stable code, as stored and as shown to clients.
    pub fn code(self) -> &'static str {
        match self {
            Self::RateLimit => "RATE_LIMIT",
            Self::ServerError => "SERVER_ERROR",
            Self::Timeout => "TIMEOUT",
            Self::BadRequest => "BAD_REQUEST",
            Self::NoImageUrl => "no-image-url",
        }
    }
}

/// What to do about a failure. Decided once, where the reply is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Trying again cannot help.
    Fail,
    /// Try again after the queue's own delay.
    Retry,
    /// Try again, but not before this long: the provider said so (`Retry-After`).
    RetryAfter(Duration),
}

/// What a provider's reply says of its own limits, on this call or any other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests that are left.
    pub remaining_requests: Option<u64>,
    /// Nothing is left for so long.
    pub exhausted_for: Option<Duration>,
}

/// A call that brought no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", kind.code())]
pub struct ProviderFailure {
    /// The class of the failure.
    pub kind: FailureKind,
    /// Retry or fail.
    pub decision: Decision,
    /// What it says about the provider: the guard's question, not the job's.
    pub sign: OutcomeKind,
    /// What the reply said of the provider's limits.
    pub limits: Limits,
    /// For the tenant and the operator: what the provider said, shortened; never a secret.
    pub message: String,
}

impl ProviderFailure {
    /// One that is not the provider's doing, and says nothing about it.
    pub fn ours(decision: Decision, message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::ServerError,
            decision,
            sign: OutcomeKind::Cancelled,
            limits: Limits::default(),
            message: message.into(),
        }
    }
}
