//! Queues, tasks and leases: the words of the engine (SPEC Q1–Q5).
//!
//! A task is the queue's unit of work behind a job, a delivery or a grant. Its id is the id of the thing it stands for,
//! so that neither side stores the other's key.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::account::AccountId;
use crate::guard::class::CallKind;
use crate::lanes::Place;
use crate::retry::RetrySchedule;

/// A queue's name, as stored with its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ToSchema)]
pub enum QueueName {
    /// Generation jobs.
    #[serde(rename = "generation.create")]
    GenerationCreate,
    /// Those of them that make images. They wait in a line of their own: what stops images (their budget is small, and a
    /// circuit of their own stands before them) must not stop texts, and the other way round.
    #[serde(rename = "generation.create.image")]
    GenerationImage,
    /// Probes of a provider that has failed.
    #[serde(rename = "generation.probe")]
    GenerationProbe,
    /// Webhook deliveries.
    #[serde(rename = "webhook.delivery")]
    WebhookDelivery,
    /// Credits that were bought.
    #[serde(rename = "billing.credit_grant")]
    BillingCreditGrant,
}

/// There is no queue of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such queue; known are {}", QueueName::ALL.map(QueueName::as_str).join(", "))]
pub struct UnknownQueue;

impl QueueName {
    /// Every queue.
    pub const ALL: [Self; 5] = [
        Self::GenerationCreate,
        Self::GenerationImage,
        Self::GenerationProbe,
        Self::WebhookDelivery,
        Self::BillingCreditGrant,
    ];

    /// The lines of generation jobs. Whoever asks after `generation.create` means all of them.
    pub const GENERATION: [Self; 2] = [Self::GenerationCreate, Self::GenerationImage];

    /// The line that a job waits in.
    pub fn of_kind(kind: CallKind) -> Self {
        match kind {
            CallKind::Text => Self::GenerationCreate,
            CallKind::Image => Self::GenerationImage,
        }
    }

    /// Whether its tasks stand for generation jobs.
    pub fn is_generation(self) -> bool {
        Self::GENERATION.contains(&self)
    }

    /// The name that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GenerationCreate => "generation.create",
            Self::GenerationImage => "generation.create.image",
            Self::GenerationProbe => "generation.probe",
            Self::WebhookDelivery => "webhook.delivery",
            Self::BillingCreditGrant => "billing.credit_grant",
        }
    }

    /// The queue of this name, `.dlq` at its end or not; `None`: there is none.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.strip_suffix(".dlq").unwrap_or(name);
        Self::ALL.into_iter().find(|queue| queue.as_str() == name)
    }

    /// Where this queue's dead letters are.
    pub fn dead_letter_queue(self) -> String {
        format!("{}.dlq", self.as_str())
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for QueueName {
    type Err = UnknownQueue;

    fn from_str(name: &str) -> Result<Self, UnknownQueue> {
        Self::parse(name).ok_or(UnknownQueue)
    }
}

impl<'de> Deserialize<'de> for QueueName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// How a queue treats its tasks.
#[derive(Debug, Clone)]
pub struct QueuePolicy {
    /// Which queue.
    pub name: QueueName,
    /// Tasks that one worker process runs at a time.
    pub concurrency: usize,
    /// From a task's scheduled time until it expires if it has not finished.
    pub ttl: Duration,
    /// Delays between attempts.
    pub retry: RetrySchedule,
}

/// How long the tasks of each queue live, from their scheduled time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimesToLive {
    /// Generation jobs, and probes.
    pub generation: Duration,
    /// Webhook deliveries.
    pub webhook: Duration,
    /// Credits that were bought.
    pub billing: Duration,
}

impl TimesToLive {
    /// That of one queue.
    pub fn of(&self, queue: QueueName) -> Duration {
        match queue {
            QueueName::GenerationCreate | QueueName::GenerationImage | QueueName::GenerationProbe => {
                self.generation
            }
            QueueName::WebhookDelivery => self.webhook,
            QueueName::BillingCreditGrant => self.billing,
        }
    }
}

/// The right to finish a task. The token is drawn from one sequence and never reused, so a worker that lost its
/// lease can change nothing any more: its token matches no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Whose task.
    pub account: AccountId,
    /// Which task.
    pub task: Uuid,
    /// The fencing token.
    pub token: i64,
}

/// A task in a worker's hands.
#[derive(Debug, Clone)]
pub struct ClaimedTask {
    /// The right to finish it.
    pub lease: Lease,
    /// What kind of work it is, in its queue's own words.
    pub task_type: String,
    /// What the work needs to know, where it is not stored with the thing that the task stands for; as it was enqueued.
    pub payload: Box<RawValue>,
    /// Where it stood in its lane.
    pub place: Place,
    /// Which attempt this is, from 1.
    pub attempt: i32,
    /// Attempts it may take.
    pub max_attempts: i32,
    /// How long it had been due when it was claimed.
    pub waited: Duration,
    /// When it expires.
    pub expires_at: DateTime<Utc>,
}

/// How many tasks there are, of an account in a queue or in all. The first two are of now, the others of all time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Waiting: for a worker, for their time or for their next attempt.
    pub queued: i64,
    /// In a worker's hands.
    pub running: i64,
    /// Ended well.
    pub done: i64,
    /// In the dead letters, or purged from them.
    pub failed: i64,
}

/// A queue as its operator sees it, over all accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct QueueState {
    /// Which queue.
    pub queue: QueueName,
    /// Tasks that wait: for a worker, for their time or for their next attempt.
    pub queued: i64,
    /// Tasks in a worker's hands.
    pub running: i64,
    /// Tasks that ever ended well.
    pub done: i64,
    /// Tasks in the dead letters, or purged from them.
    pub failed: i64,
    /// How many may run at a time, over all workers; null: no limit.
    #[schema(required)]
    pub max_running: Option<i32>,
}

/// How often a task may be lost with its worker before it is held to be the cause (a poison task). Far above
/// what crashes explain, since a loss burns no attempt.
pub const MAX_LOST_LEASES: i16 = 10;
