//! The circuit (SPEC G6, G7): whether a class's models are called at all.
//!
//! ```text
//!            failure rate, timeouts in a row                 due
//!   closed ----------------------------------> open ------------------> half-open
//!     ^                                          ^    a probe fails          |
//!     |                                          +---------------------------+
//!     +----------------------------------------------------------------------+
//!     |                                             enough probes succeed
//!     +--- a probe succeeds, or there is another credential --- disabled <--- from any: the credential is refused
//! ```
//!
//! Three things that are easily got wrong, and how they are kept right here:
//!
//! - **News of another time.** Calls that began before the circuit closed may end after it: the hung ones of the last
//!   outage time out together a minute later, and would open it again. Only calls that began since count.
//! - **Probes that are never heard of again.** A probe is a lease with an end and an epoch ([`Probing`]).
//! - **A fleet that changes its credential.** While some workers have the new one, the old one's refusals stop the workers
//!   that have it and nobody else.
//!
//! Whoever stores a circuit steps it under a lock, and takes `now` from the database, best the clock's time rather than
//! the transaction's. If it goes back a little, the circuit waits for it; if it goes back far, the circuit goes with it.

mod step;

use std::time::Duration;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::open_time::OpenTime;
use super::outcome::{Fingerprint, Observation, Outcome, OutcomeKind};
pub use super::probe::{ProbeLease, Probing};
use super::ramp::Share;
use super::settings::GuardSettings;
use super::time::{Time, between, shifted};
use super::window::Window;
pub use super::window::{Sample, Tally};
pub use step::step;

/// Times that lie so far behind the last one are no step of the clock: a transaction's time is that of its beginning, and
/// it may have waited for a lock since.
const MOST_DISORDER: TimeDelta = TimeDelta::seconds(10);

/// A circuit, as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Circuit {
    state: State,
    window: Window,
    /// Trips since it was last closed for long; each makes the next open period longer.
    trips: u32,
    /// That of the last probe.
    epoch: u64,
    /// A credential that was refused while there is another.
    superseded: Option<Superseded>,
    open_time: OpenTime,
    /// The latest time that it has been told.
    seen_at: DateTime<Utc>,
}

/// A credential that was refused, and that some workers may still have. They wait; the others do not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Superseded {
    credential: Fingerprint,
    until: DateTime<Utc>,
}

/// What a circuit is, with what belongs to that alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum State {
    /// Calls are made.
    Closed {
        /// Since when.
        since: DateTime<Utc>,
        /// Whether concurrency has to come back step by step: it was not closed before. A new circuit's need not.
        ramps: bool,
    },
    /// No calls are made.
    Open {
        /// Since when.
        since: DateTime<Utc>,
        /// Until when; `None`: until the operator closes it.
        until: Option<DateTime<Utc>>,
        /// Since when it is not closed.
        down_since: DateTime<Utc>,
        /// Whether the operator opened it. Then it holds though the breaker is switched off.
        by_operator: bool,
    },
    /// One call at a time, to see whether the provider is back.
    HalfOpen {
        /// Since when.
        since: DateTime<Utc>,
        /// Since when it is not closed.
        down_since: DateTime<Utc>,
        /// Probes that succeeded, one after the other.
        successes: u32,
        /// Whose turn it is.
        probing: Probing,
    },
    /// The provider refuses the credential. Now and then a call is made to see whether it still does.
    Disabled {
        /// Since when.
        since: DateTime<Utc>,
        /// What the provider said.
        reason: String,
        /// The credential it refuses.
        credential: Fingerprint,
        /// When it is tried again, and by whom.
        probing: Probing,
    },
}

impl State {
    /// As in logs, metrics and the status.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Closed { .. } => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half_open",
            Self::Disabled { .. } => "disabled",
        }
    }

    /// Every name there can be.
    pub const NAMES: [&'static str; 4] = ["closed", "open", "half_open", "disabled"];

    /// When it became so.
    pub fn since(&self) -> DateTime<Utc> {
        match self {
            Self::Closed { since, .. }
            | Self::Open { since, .. }
            | Self::HalfOpen { since, .. }
            | Self::Disabled { since, .. } => *since,
        }
    }

    /// Since when the circuit is not closed; `None`: it is.
    pub fn down_since(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Closed { .. } => None,
            Self::Open { down_since, .. } | Self::HalfOpen { down_since, .. } => Some(*down_since),
            Self::Disabled { since, .. } => Some(*since),
        }
    }

    fn probing(&mut self) -> Option<&mut Probing> {
        match self {
            Self::HalfOpen { probing, .. } | Self::Disabled { probing, .. } => Some(probing),
            Self::Closed { .. } | Self::Open { .. } => None,
        }
    }

    fn shift(&mut self, behind: TimeDelta) {
        match self {
            Self::Closed { since, .. } => *since = shifted(*since, behind),
            Self::Open { since, until, down_since, .. } => {
                *since = shifted(*since, behind);
                *down_since = shifted(*down_since, behind);
                *until = until.map(|until| shifted(until, behind));
            }
            Self::HalfOpen { since, down_since, probing, .. } => {
                *since = shifted(*since, behind);
                *down_since = shifted(*down_since, behind);
                probing.shift(behind);
            }
            Self::Disabled { since, probing, .. } => {
                *since = shifted(*since, behind);
                probing.shift(behind);
            }
        }
    }
}

/// What may happen to a circuit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Calls are over; those of a batch in any order. None of them was a probe.
    ///
    /// A worker that reports a failure at once has to report with it all that it has not reported yet: if successes
    /// waited for their turn and failures did not, the window would see failures alone.
    Observed(Vec<Observation>),
    /// A worker offers to make a probe: [`Effect::ProbeGranted`] or [`Effect::ProbeRefused`] is the answer.
    TakeProbe {
        /// The worker.
        holder: Uuid,
    },
    /// A probe is over. Ignored unless its epoch is that of the lease in force.
    ProbeEnded {
        /// Which one.
        epoch: u64,
        /// How. [`Outcome::Cancelled`] is the same as giving it back.
        outcome: Outcome,
    },
    /// A probe was not made after all; somebody else may make one at once.
    ProbeGivenBack {
        /// Which one.
        epoch: u64,
    },
    /// Time has passed. Every event brings the circuit up to date first; this one does nothing else.
    Tick,
    /// A worker calls with this credential. If another one was refused, calls begin again.
    CredentialInUse {
        /// Which one.
        credential: Fingerprint,
    },
    /// The operator wants no calls to be made.
    OperatorOpen {
        /// Until then; after it, probes decide. `None`: until further notice.
        until: Option<DateTime<Utc>>,
    },
    /// The operator wants calls to be made, whatever was.
    OperatorClose,
}

/// What came of an event, for the log, the metrics and whoever asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// It opened.
    Opened {
        /// What made it so.
        trigger: Trigger,
        /// That of the window, then.
        failure_rate: f64,
        /// Until when.
        until: Option<DateTime<Utc>>,
    },
    /// Probes may be made.
    HalfOpened,
    /// It closed.
    Closed {
        /// What made it so.
        by: ClosedBy,
        /// How long it had not been closed.
        down_for: Duration,
    },
    /// The credential was refused; or, by a probe, once more.
    Disabled {
        /// What the provider said.
        reason: String,
        /// When it is tried again.
        recheck_at: DateTime<Utc>,
    },
    /// The probe is the worker's that asked for it.
    ProbeGranted {
        /// To be named with its end.
        epoch: u64,
        /// By then it has to be over.
        until: DateTime<Utc>,
    },
    /// It is not.
    ProbeRefused {
        /// When to ask again at the latest; `None`: it is closed, or the operator's.
        until: Option<DateTime<Utc>>,
    },
    /// A holder was silent for too long. What it still may report is ignored.
    ProbeLost(ProbeLease),
}

/// Why a circuit opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// Too many failures among the last calls.
    FailureRate,
    /// Timeouts without an answer between them.
    TimeoutsInARow,
    /// A probe failed, in this way.
    Probe(OutcomeKind),
    /// Somebody wanted it so.
    Operator,
}

impl Trigger {
    /// As in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::FailureRate => "failure_rate",
            Self::TimeoutsInARow => "timeouts_in_a_row",
            Self::Probe(_) => "probe",
            Self::Operator => "operator",
        }
    }
}

/// Why a circuit closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosedBy {
    /// Enough of them succeeded.
    Probes,
    /// The provider takes the credential again, or there is another.
    Credential,
    /// Somebody wanted it so.
    Operator,
}

/// What a worker may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Call.
    Admit {
        /// How much of what it otherwise may do at once.
        share: Share,
    },
    /// Claim nothing, call nobody.
    Wait {
        /// When to ask again at the latest: something may happen before. `None`: only when told of a change.
        until: Option<DateTime<Utc>>,
        /// What for.
        why: Waiting,
    },
    /// The same, but for a probe: send [`Event::TakeProbe`].
    ProbeOnly,
    /// The credential that was refused is not this one: send [`Event::CredentialInUse`], and ask again.
    NewCredential,
}

/// What a worker waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The end of the open period.
    Open,
    /// The operator.
    Operator,
    /// The probe that somebody makes, or the time of the next one.
    Probe,
    /// Another credential, or that the provider takes this one again.
    Credential,
}

impl Circuit {
    /// One that has always been closed.
    pub fn new(now: DateTime<Utc>) -> Self {
        Self {
            state: State::Closed { since: now, ramps: false },
            window: Window::default(),
            trips: 0,
            epoch: 0,
            superseded: None,
            open_time: OpenTime::default(),
            seen_at: now,
        }
    }

    /// What it is. Not brought up to date: an open one may be due.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What the last calls came to.
    pub fn tally(&self, settings: &GuardSettings, now: DateTime<Utc>) -> Tally {
        self.window.tally(settings, now)
    }

    /// The last calls themselves, the oldest first.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.window.samples()
    }

    /// Trips since it was last closed for long.
    pub fn trips(&self) -> u32 {
        self.trips
    }

    /// How long it was open on a day (UTC), up to now. Open, not half-open; today and yesterday are remembered.
    pub fn open_time(&self, day: NaiveDate, now: DateTime<Utc>) -> Duration {
        let mut open_time = self.open_time.clone();
        if let Some((from, to)) = self.open_until(now) {
            open_time.add(from, to);
        }
        open_time.on(day)
    }

    /// The open period that runs, up to now. One that is over ended when it was due, whenever somebody noticed.
    fn open_until(&self, now: Time) -> Option<(Time, Time)> {
        match self.state {
            State::Open { since, until, .. } => Some((since, until.map_or(now, |until| until.min(now)))),
            _ => None,
        }
    }

    /// What `now` is to the circuit, and by how much its times have to be put back first.
    fn clock(&self, now: Time) -> (Time, TimeDelta) {
        let behind = self.seen_at.signed_duration_since(now);
        if behind > MOST_DISORDER { (now, behind) } else { (self.seen_at.max(now), TimeDelta::zero()) }
    }

    fn is_superseded(&self, credential: &Fingerprint) -> bool {
        self.superseded.as_ref().is_some_and(|old| old.credential == *credential)
    }

    fn shift(&mut self, behind: TimeDelta) {
        self.state.shift(behind);
        self.window.shift(behind);
        if let Some(superseded) = &mut self.superseded {
            superseded.until = shifted(superseded.until, behind);
        }
    }
}

/// What a worker with this credential may do now. `enabled`: the breaker is switched on; if not, what it decided by itself
/// does not hold, but what the operator or the provider did still does.
pub fn decide(
    circuit: &Circuit,
    settings: &GuardSettings,
    enabled: bool,
    credential: &Fingerprint,
    now: DateTime<Utc>,
) -> Decision {
    let (now, behind) = circuit.clock(now);
    if behind > TimeDelta::zero() {
        let mut circuit = circuit.clone();
        circuit.shift(behind);
        return decide_at(&circuit, settings, enabled, credential, now);
    }
    decide_at(circuit, settings, enabled, credential, now)
}

fn decide_at(
    circuit: &Circuit,
    settings: &GuardSettings,
    enabled: bool,
    credential: &Fingerprint,
    now: Time,
) -> Decision {
    let admit = |share| Decision::Admit { share };
    let probe = |probing: &Probing, why| match probing.free_at() {
        at if at <= now => Decision::ProbeOnly,
        at => Decision::Wait { until: Some(at), why },
    };
    let superseded = circuit.superseded.as_ref();
    if let Some(refused) = superseded.filter(|old| old.credential == *credential && old.until > now) {
        return Decision::Wait { until: Some(refused.until), why: Waiting::Credential };
    }
    match &circuit.state {
        State::Disabled { credential: refused, .. } if refused != credential => Decision::NewCredential,
        State::Disabled { probing, .. } => probe(probing, Waiting::Credential),
        State::Open { until: Some(until), .. } if *until <= now => {
            if enabled {
                Decision::ProbeOnly
            } else {
                admit(Share::WHOLE)
            }
        }
        State::Open { until, by_operator: true, .. } => {
            Decision::Wait { until: *until, why: Waiting::Operator }
        }
        _ if !enabled => admit(Share::WHOLE),
        State::Open { until, .. } => Decision::Wait { until: *until, why: Waiting::Open },
        State::HalfOpen { probing, .. } => probe(probing, Waiting::Probe),
        State::Closed { since, ramps: true } => admit(Share::after(between(*since, now), settings.ramp)),
        State::Closed { ramps: false, .. } => admit(Share::WHOLE),
    }
}

#[cfg(test)]
mod tests;
