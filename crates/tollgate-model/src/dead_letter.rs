//! Dead letters: tasks that nothing tries again by itself (SPEC Q6), and how an operator picks some of them out.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::account::AccountId;
use crate::job::JobError;
use crate::queue::QueueName;

/// A task that was given up.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct DeadLetter {
    /// The id of the task, and of what it stood for.
    pub id: Uuid,
    /// Whose it was.
    #[schema(value_type = Uuid)]
    pub account_id: AccountId,
    /// The queue it died in.
    pub queue: QueueName,
    /// What kind of work it was, in its queue's own words.
    #[serde(rename = "type")]
    pub task_type: String,
    /// What the work needed to know, where it is not stored with the thing that the task stood for.
    #[schema(value_type = Object)]
    pub payload: Value,
    /// 1 (first) to 10 (last).
    pub priority: i16,
    /// Attempts it took.
    pub attempts: i32,
    /// Attempts it could have taken.
    pub max_attempts: i32,
    /// Why it was given up.
    pub reason: JobError,
    /// When it was enqueued.
    pub created_at: DateTime<Utc>,
    /// When it was given up.
    pub died_at: DateTime<Utc>,
}

/// Which dead letters; what is `None` is not asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// Those of this queue.
    pub queue: Option<QueueName>,
    /// Those with this code as their reason.
    pub code: Option<String>,
    /// Those of this account.
    pub account: Option<AccountId>,
    /// Those that died then or later.
    pub since: Option<DateTime<Utc>>,
    /// Those that died before.
    pub until: Option<DateTime<Utc>>,
}

impl DeadLetterFilter {
    /// The queues to look through.
    pub fn queues(&self) -> Vec<QueueName> {
        match self.queue {
            None => QueueName::ALL.to_vec(),
            // Whoever asks after generation jobs means those of every line.
            Some(QueueName::GenerationCreate) => QueueName::GENERATION.to_vec(),
            Some(queue) => vec![queue],
        }
    }

    /// Whether it lets every letter through.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a letter stands among the others: by the time of its death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeadLetterPlace {
    /// When it died.
    pub died_at: DateTime<Utc>,
    /// Which it is, of those that died at the same time.
    pub id: Uuid,
}

impl DeadLetter {
    /// Its place in a list.
    pub fn place(&self) -> DeadLetterPlace {
        DeadLetterPlace { died_at: self.died_at, id: self.id }
    }
}

/// What a redrive did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Redriven {
    /// Letters that were asked for and are there.
    pub matched: u64,
    /// Those that are tasks again.
    pub redriven: u64,
    /// Those that stay as they are: no such letter, its job is gone or not failed any more, or somebody else is at it.
    pub skipped: u64,
    /// The request's time ran out before all of them were reached: send it again.
    pub more: bool,
}

/// What a purge did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Purged {
    /// Letters that were asked for and are there.
    pub matched: u64,
    /// Those that are gone.
    pub purged: u64,
    /// The request's time ran out before all of them were reached: send it again.
    pub more: bool,
}
