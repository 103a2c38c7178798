//! Credits: what an account has, and the ledger's entries (SPEC C1). Whole numbers, always.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// The most credits that one grant may post: far above any price, far below what could overflow a balance.
pub const MAX_GRANT: i64 = 1_000_000_000_000;

/// What an account has, in credits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(examples(json!({"balance": 970, "posted": 1000, "held": 30, "owed": 0})))]
pub struct Balance {
    /// What it may spend: `posted` without what is `held`, and the sum of the ledger's `delta`. Never below 0.
    pub balance: i64,
    /// All it has, what is held included.
    pub posted: i64,
    /// Held for jobs that have not ended.
    pub held: i64,
    /// What was taken back, or cost, beyond what it had. Whatever is granted or comes free pays it first.
    pub owed: i64,
}

impl Balance {
    /// Of the three figures that are stored.
    pub fn new(posted: i64, held: i64, owed: i64) -> Self {
        Self { balance: posted - held, posted, held, owed }
    }
}

/// Why an entry was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EntryReason {
    /// A job was accepted, and its estimate is held.
    Reservation,
    /// A job succeeded: it is charged, and what was held beyond that is free again.
    Confirm,
    /// A job failed or was cancelled: all that was held for it is free again.
    Refund,
    /// Bought, or taken back, by Stripe.
    Stripe,
    /// By an operator.
    Adjustment,
}

impl EntryReason {
    /// Every reason.
    pub const ALL: [Self; 5] =
        [Self::Reservation, Self::Confirm, Self::Refund, Self::Stripe, Self::Adjustment];

    /// The name that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reservation => "reservation",
            Self::Confirm => "confirm",
            Self::Refund => "refund",
            Self::Stripe => "stripe",
            Self::Adjustment => "adjustment",
        }
    }
}

/// One row of the ledger. It balances: `delta + held + charged - owed = granted`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LedgerEntry {
    /// UUIDv7: sorts by age.
    pub id: Uuid,
    /// An [`EntryReason`]'s name.
    pub reason: String,
    /// Change of what may be spent. All of an account's add up to its balance.
    pub delta: i64,
    /// Change of what is held for jobs.
    pub held: i64,
    /// What a job cost.
    pub charged: i64,
    /// Change of what is owed.
    pub owed: i64,
    /// What came from outside; negative: what went back.
    pub granted: i64,
    /// The job, if it is about one.
    #[schema(required)]
    pub job_id: Option<Uuid>,
    /// In words.
    #[schema(required)]
    pub note: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}
