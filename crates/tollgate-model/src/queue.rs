//! Queues, tasks and leases: the words of the engine (SPEC Q1–Q5).
//!
//! A task is the queue's unit of work behind a job, later also behind a delivery or a grant. Its id is the id of
//! the thing it stands for, so that neither side stores the other's key.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::account::AccountId;
use crate::retry::RetrySchedule;

/// A queue's name, as stored with its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueName {
    /// Generation jobs.
    GenerationCreate,
}

impl QueueName {
    /// The name that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GenerationCreate => "generation.create",
        }
    }

    /// Where this queue's dead letters are.
    pub fn dead_letter_queue(self) -> String {
        format!("{}.dlq", self.as_str())
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedTask {
    /// The right to finish it.
    pub lease: Lease,
    /// Which attempt this is, from 1.
    pub attempt: i32,
    /// Attempts it may take.
    pub max_attempts: i32,
    /// How long it had been due when it was claimed.
    pub waited: Duration,
    /// When it expires.
    pub expires_at: DateTime<Utc>,
}

/// How often a task may be lost with its worker before it is held to be the cause (a poison task). Far above
/// what crashes explain, since a loss burns no attempt.
pub const MAX_LOST_LEASES: i16 = 10;
