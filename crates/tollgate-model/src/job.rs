//! A job: the tenant's resource. What the queue does with it is a task; see [`crate::queue`].

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::generation::Usage;
use crate::image::MediaType;

/// Where a job stands. The last three are final: nothing leaves them, except that an operator may redrive a failed job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// Waiting for a worker, for its scheduled time, or for its next attempt.
    Queued,
    /// A worker holds its lease.
    Running,
    /// It has a result.
    Succeeded,
    /// It will not be tried again; `error` says why.
    Failed,
    /// It was called off.
    Cancelled,
}

impl JobStatus {
    /// Every status.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// The word that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads a stored word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    /// Whether nothing changes any more by itself.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a job failed, or why its latest attempt did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobError {
    /// One of [`codes`], or a [`crate::generation::FailureKind`]'s code.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Codes of failures that no provider is the cause of.
pub mod codes {
    /// The job was not finished within its time to live.
    pub const EXPIRED: &str = "EXPIRED";
    /// Its worker died with the job in hand, time and again.
    pub const WORKER_LOST: &str = "WORKER_LOST";
    /// An operator has something to do before it can be done.
    pub const NEEDS_ATTENTION: &str = "NEEDS_ATTENTION";
    /// The database refused it: a defect of ours.
    pub const INTERNAL: &str = "INTERNAL";
}

/// What a finished job brought.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobOutput {
    /// The text that was generated; of an image job, the prompt as the provider revised it, or nothing.
    pub text: String,
    /// The images that were generated; none for a text job.
    pub images: Vec<JobImage>,
    /// The adapter that answered, such as `openai`.
    pub provider: String,
    /// The model that answered, as the provider names it.
    pub model: String,
    /// Duration of the provider's call, in milliseconds.
    pub latency_ms: i64,
    /// Tokens, as the provider counted them.
    pub usage: Usage,
}

/// An image that a job brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobImage {
    /// The image.
    pub id: Uuid,
    /// Where Tollgate serves it: a path of this API, or a whole URL where the installation has one set.
    pub url: String,
    /// What it is encoded as.
    pub media_type: MediaType,
    /// Its length.
    pub bytes: i64,
}

/// What a job does to the account's balance, in credits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobCredits {
    /// Set aside until it is finished.
    pub held: i64,
    /// What it cost.
    pub charged: i64,
}

/// A job, as its tenant sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// UUIDv7: sorts by age.
    pub id: Uuid,
    /// The job type it was submitted as.
    #[serde(rename = "type")]
    pub job_type: String,
    /// Where it stands.
    pub status: JobStatus,
    /// 1 (first) to 10 (last).
    pub priority: i16,
    /// Attempts begun. Waiting, a worker's death and a shutdown burn none.
    pub attempts: i32,
    /// Attempts it may take.
    pub max_attempts: i32,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// Before this it is not started; later than asked for where an attempt failed and the next one waits.
    pub scheduled_at: DateTime<Utc>,
    /// When its latest attempt began.
    #[schema(required)]
    pub started_at: Option<DateTime<Utc>>,
    /// When it reached a final status.
    #[schema(required)]
    pub finished_at: Option<DateTime<Utc>>,
    /// Why it failed, or why its latest attempt did.
    #[schema(required)]
    pub error: Option<JobError>,
    /// What it brought.
    #[schema(required)]
    pub output: Option<JobOutput>,
    /// What it does to the account's balance.
    pub credits: JobCredits,
    /// The client's own notes.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
}

/// What can happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobEventKind {
    /// Accepted and enqueued.
    #[serde(rename = "job.queued")]
    Queued,
    /// An attempt began.
    #[serde(rename = "job.started")]
    Started,
    /// An attempt failed; another follows.
    #[serde(rename = "job.retrying")]
    Retrying,
    /// Back in the queue through no fault of its own: its worker died or shut down.
    #[serde(rename = "job.requeued")]
    Requeued,
    /// It has its result.
    #[serde(rename = "job.completed")]
    Completed,
    /// It failed for good.
    #[serde(rename = "job.failed")]
    Failed,
    /// It was called off.
    #[serde(rename = "job.cancelled")]
    Cancelled,
    /// It had failed for good, and an operator put it back into the queue, as new.
    #[serde(rename = "job.redriven")]
    Redriven,
}

impl JobEventKind {
    /// The name that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "job.queued",
            Self::Started => "job.started",
            Self::Retrying => "job.retrying",
            Self::Requeued => "job.requeued",
            Self::Completed => "job.completed",
            Self::Failed => "job.failed",
            Self::Cancelled => "job.cancelled",
            Self::Redriven => "job.redriven",
        }
    }
}

/// Something that happened to a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobEvent {
    /// 1, 2, 3 … within the job, without gaps.
    pub seq: i32,
    /// A [`JobEventKind`]'s name.
    #[serde(rename = "type")]
    pub kind: String,
    /// What there is to know about it.
    #[schema(value_type = Object)]
    pub data: Value,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
}
