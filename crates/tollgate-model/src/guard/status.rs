//! A guard as dashboards and operators see it (SPEC G12).

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::circuit::State;
use super::class::ModelClass;
use super::outcome::OutcomeKind;
use super::state::ClassState;

/// The guard of a class, for dashboards (SPEC G12).
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct GuardStatus {
    /// Which class of models.
    pub class: String,
    /// Whether calls are made at all.
    pub circuit: CircuitStatus,
    /// The last calls, by how they ended.
    pub window: BTreeMap<String, u32>,
    /// How many calls may begin.
    pub budget: BudgetStatus,
    /// No call begins before this.
    pub paused_until: Option<DateTime<Utc>>,
    /// How long a call may take, in milliseconds, for each kind of call seen lately; `initial_ms` for the others.
    pub timeouts: TimeoutStatus,
    /// Calls in flight, over all workers, as of their last reports.
    pub in_flight: u64,
    /// The share of timeouts among the calls of the last 15 minutes; null: there were none.
    pub gen_timeout_rate_15m: Option<f64>,
    /// How long the circuit was open today (UTC), in milliseconds.
    pub breaker_open_time_daily: u64,
}

/// A circuit's state.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CircuitStatus {
    /// `closed`, `open`, `half-open`, or `disabled`: the provider refuses the credential.
    #[schema(value_type = String)]
    pub state: &'static str,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Since when it is not closed.
    pub opened_at: Option<DateTime<Utc>>,
    /// When it becomes half-open by itself.
    pub until: Option<DateTime<Utc>>,
    /// Why the provider refuses the credential.
    pub reason: Option<String>,
    /// The weighted share of failures among the calls in the window.
    pub failure_rate: f64,
    /// Calls in the window.
    pub attempts: usize,
    /// Failures among them.
    pub failures: usize,
    /// Timeouts without an answer between them.
    pub timeouts_in_a_row: usize,
    /// Times it opened since it was last closed for long.
    pub trips: u32,
    /// A probe is under way.
    pub probing: bool,
    /// Its decisions hold. If not, they are only recorded.
    pub enabled: bool,
}

/// A budget of calls.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BudgetStatus {
    /// Calls that may begin at once; null: no limit.
    pub capacity: Option<u32>,
    /// Calls that may begin now, beside what workers have been given already; null: no limit.
    pub available: Option<u32>,
    /// So many calls more …
    pub refill: u32,
    /// … in so many milliseconds.
    pub refill_per_ms: u64,
}

/// How long calls may take.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TimeoutStatus {
    /// Where too little is known.
    pub initial_ms: u64,
    /// What is known.
    pub known: Vec<KnownTimeout>,
}

/// How long one kind of call may take.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct KnownTimeout {
    /// The adapter.
    pub provider: String,
    /// The model.
    pub model: String,
    /// An image's size.
    pub size: Option<String>,
    /// Calls that it rests on.
    pub calls: u64,
    /// Milliseconds.
    pub timeout_ms: u64,
}

impl GuardStatus {
    /// What a class's state comes to. `enabled`: the breaker's decisions hold.
    pub fn new(
        class: &ModelClass,
        state: &ClassState,
        enabled: bool,
        known: Vec<KnownTimeout>,
        now: DateTime<Utc>,
    ) -> Self {
        let settings = &class.settings;
        let circuit = &state.circuit;
        let tally = circuit.tally(settings, now);
        let mut window: BTreeMap<String, u32> =
            OutcomeKind::ALL.map(|kind| (kind.name().to_owned(), 0)).into_iter().collect();
        for sample in circuit.samples() {
            *window.entry(sample.kind.name().to_owned()).or_default() += 1;
        }
        let (until, reason, probing) = match circuit.state() {
            State::Closed { .. } => (None, None, false),
            State::Open { until, .. } => (*until, None, false),
            State::HalfOpen { probing, .. } => (None, None, probing.lease.is_some()),
            State::Disabled { reason, probing, .. } => {
                (Some(probing.next_at), Some(reason.clone()), probing.lease.is_some())
            }
        };
        let limited = settings.bucket_capacity > 0;
        let day: NaiveDate = now.date_naive();
        Self {
            class: class.name.to_string(),
            circuit: CircuitStatus {
                state: shown(circuit.state()),
                since: circuit.state().since(),
                opened_at: circuit.state().down_since(),
                until,
                reason,
                failure_rate: tally.failure_rate,
                attempts: tally.attempts,
                failures: tally.failures,
                timeouts_in_a_row: tally.timeouts_in_a_row,
                trips: circuit.trips(),
                probing,
                enabled,
            },
            window,
            budget: BudgetStatus {
                capacity: limited.then_some(settings.bucket_capacity),
                available: state.bucket.available(settings, now),
                refill: settings.bucket_refill,
                refill_per_ms: millis(settings.bucket_refill_per),
            },
            paused_until: state.pause.until(now),
            timeouts: TimeoutStatus { initial_ms: millis(settings.timeout_initial), known },
            in_flight: state.in_flight(now),
            gen_timeout_rate_15m: state.timeout_rate(now),
            breaker_open_time_daily: millis(circuit.open_time(day, now)),
        }
    }
}

/// The name of a state, as users read it.
pub fn shown(state: &State) -> &'static str {
    named(state.name())
}

/// The same, of one of [`State::NAMES`].
pub fn named(name: &'static str) -> &'static str {
    if name == "half_open" { "half-open" } else { name }
}

/// Whole milliseconds.
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
