//! Stripe's events as they are kept.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::account::AccountId;

/// What has become of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventState {
    /// A worker will see to it.
    Received,
    /// All that it says is in its account's books.
    Processed,
    /// It says nothing about credits.
    Ignored,
    /// Nobody knows yet whose customer it is about. It waits for `tollgate stripe link`, or for an event that says so.
    UnknownCustomer,
    /// It is about a payment that is, so far, for nothing of ours. It waits for the purchase, which may never come.
    UnknownPayment,
    /// An operator has to do something; `error` says what.
    NeedsAttention,
    /// An operator has done it, or has found that there is nothing to do; the audit log says why. Nothing more comes of it.
    Resolved,
}

/// There is no such state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such state; known are {}", EventState::ALL.map(EventState::as_str).join(", "))]
pub struct UnknownState;

impl EventState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Received,
        Self::Processed,
        Self::Ignored,
        Self::UnknownCustomer,
        Self::UnknownPayment,
        Self::NeedsAttention,
        Self::Resolved,
    ];

    /// Those of which nothing is left to do. An event in another one stays until it is in one of these, whoever has to see to
    /// that.
    pub const ENDED: [Self; 3] = [Self::Processed, Self::Ignored, Self::Resolved];

    /// The name that is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Processed => "processed",
            Self::Ignored => "ignored",
            Self::UnknownCustomer => "unknown_customer",
            Self::UnknownPayment => "unknown_payment",
            Self::NeedsAttention => "needs_attention",
            Self::Resolved => "resolved",
        }
    }

    /// Whether only an operator, or what may never come, can end it.
    pub fn can_be_resolved(self) -> bool {
        matches!(self, Self::UnknownCustomer | Self::UnknownPayment | Self::NeedsAttention)
    }
}

impl fmt::Display for EventState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for EventState {
    type Err = UnknownState;

    fn from_str(name: &str) -> Result<Self, UnknownState> {
        Self::ALL.into_iter().find(|state| state.as_str() == name).ok_or(UnknownState)
    }
}

/// An event as an operator sees it: without what it says of people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InboxEvent {
    /// Ours, and its task's. Sorts by when it came.
    pub id: Uuid,
    /// Stripe's: `evt_…`.
    pub event_id: String,
    /// Stripe's name for what happened.
    #[serde(rename = "type")]
    pub event_type: String,
    /// When it happened, by Stripe's clock.
    pub created: DateTime<Utc>,
    /// When it came.
    pub received_at: DateTime<Utc>,
    /// `false`: of Stripe's test mode.
    pub livemode: bool,
    /// An [`EventState`]'s name.
    pub state: String,
    /// Whose it is, once that is known.
    pub account_id: Option<AccountId>,
    /// The customer it names: `cus_…`.
    pub customer: Option<String>,
    /// What an operator has to know, in words.
    pub error: Option<String>,
}
