//! How a circuit changes.

use std::time::Duration;

use uuid::Uuid;

use super::{Circuit, ClosedBy, Effect, Event, State, Superseded, Trigger};
use crate::guard::outcome::{Fingerprint, Observation, Outcome};
use crate::guard::probe::Probing;
use crate::guard::settings::GuardSettings;
use crate::guard::time::{Time, after, before, between};
use crate::guard::window::Sample;

/// A credential that was refused is tried again after this at the earliest.
const FIRST_RECHECK: Duration = Duration::from_secs(30);

/// The circuit after an event, and what came of it.
pub fn step(
    mut circuit: Circuit,
    settings: &GuardSettings,
    event: Event,
    now: Time,
) -> (Circuit, Vec<Effect>) {
    let (now, behind) = circuit.clock(now);
    if !behind.is_zero() {
        circuit.shift(behind);
    }
    circuit.seen_at = now;
    let mut step = Step { circuit, settings, now, effects: Vec::new() };
    step.catch_up();
    match event {
        Event::Observed(calls) => step.observe(calls),
        Event::TakeProbe { holder } => step.take_probe(holder),
        Event::ProbeEnded { epoch, outcome } => step.probe_ended(epoch, outcome),
        Event::ProbeGivenBack { epoch } => step.probe_ended(epoch, Outcome::Cancelled),
        Event::Tick => {}
        Event::CredentialInUse { credential } => step.credential_in_use(&credential),
        Event::OperatorOpen { until } => step.open(Trigger::Operator, until),
        Event::OperatorClose => {
            step.circuit.trips = 0;
            step.close(ClosedBy::Operator);
        }
    }
    (step.circuit, step.effects)
}

/// One step under way.
struct Step<'s> {
    circuit: Circuit,
    settings: &'s GuardSettings,
    now: Time,
    effects: Vec<Effect>,
}

impl Step<'_> {
    /// Does what time alone does.
    fn catch_up(&mut self) {
        let now = self.now;
        self.circuit.superseded.take_if(|superseded| superseded.until <= now);
        if let State::Open { until: Some(until), down_since, .. } = self.circuit.state
            && until <= now
        {
            let probing = Probing::from(now);
            self.enter(State::HalfOpen { since: now, down_since, successes: 0, probing });
            self.effects.push(Effect::HalfOpened);
        }
        if let Some(lost) = self.circuit.state.probing().and_then(|probing| probing.expire(now)) {
            self.effects.push(Effect::ProbeLost(lost));
        }
    }

    /// As if each call had been reported when it ended.
    fn observe(&mut self, mut calls: Vec<Observation>) {
        calls.sort_by_key(|call| std::cmp::Reverse(call.ended_ago));
        for call in calls {
            match call.outcome {
                Outcome::Cancelled => {}
                Outcome::CredentialRefused { reason, credential } => self.refused(reason, credential),
                _ if call.ended_ago > self.settings.sample_max_age => {}
                outcome => self.sample(
                    before(self.now, call.began_ago),
                    Sample { at: before(self.now, call.ended_ago), kind: outcome.kind() },
                ),
            }
        }
    }

    fn sample(&mut self, began: Time, sample: Sample) {
        let closed = match self.circuit.state {
            State::Closed { since, ramps: true } if began < since => return,
            State::Closed { .. } => true,
            _ => false,
        };
        self.circuit.window.insert(sample, self.settings);
        if !closed {
            return;
        }
        let tally = self.circuit.window.tally(self.settings, self.now);
        if tally.timeouts_in_a_row >= self.settings.timeouts_in_a_row {
            self.trip(Trigger::TimeoutsInARow);
        } else if tally.rate_reached(self.settings) {
            self.trip(Trigger::FailureRate);
        }
    }

    fn take_probe(&mut self, holder: Uuid) {
        let (settings, now, epoch) = (self.settings, self.now, self.circuit.epoch + 1);
        let answer = match &mut self.circuit.state {
            State::Closed { .. } => Effect::ProbeRefused { until: None },
            State::Open { until, .. } => Effect::ProbeRefused { until: *until },
            State::HalfOpen { probing, .. } | State::Disabled { probing, .. } => match probing.free_at() {
                at if at > now => Effect::ProbeRefused { until: Some(at) },
                _ => {
                    let lease = probing.take(holder, epoch, settings, now);
                    self.circuit.epoch = epoch;
                    Effect::ProbeGranted { epoch, until: lease.until }
                }
            },
        };
        self.effects.push(answer);
    }

    fn probe_ended(&mut self, epoch: u64, outcome: Outcome) {
        let (now, settings) = (self.now, self.settings);
        let old_key = matches!(
            &outcome,
            Outcome::CredentialRefused { credential, .. } if self.circuit.is_superseded(credential)
        );
        let Some(probing) = self.circuit.state.probing().filter(|probing| probing.holds(epoch)) else {
            return;
        };
        let kind = outcome.kind();
        match outcome {
            Outcome::Cancelled => return probing.give_back(now),
            Outcome::CredentialRefused { .. } if old_key => return probing.give_back(now),
            Outcome::CredentialRefused { reason, credential } => return self.disable(reason, credential),
            // It did not say whether it would have succeeded.
            Outcome::RateLimited { pause } => {
                probing.lease = None;
                probing.next_at = probing.next_at.max(after(now, pause.unwrap_or_default()));
                return;
            }
            _ => probing.lease = None,
        }
        self.circuit.window.insert(Sample { at: now, kind }, settings);
        match &mut self.circuit.state {
            State::Disabled { .. } if kind.is_good() => self.close(ClosedBy::Credential),
            State::HalfOpen { successes, .. } => {
                // A window of one.
                let fails = kind.is_timeout() || settings.weights.of(kind) >= settings.failure_rate;
                *successes = if kind.is_good() { *successes + 1 } else { 0 };
                if *successes >= settings.successes_to_close {
                    self.close(ClosedBy::Probes);
                } else if fails {
                    self.trip(Trigger::Probe(kind));
                }
            }
            _ => {}
        }
    }

    /// A call was refused that was no probe.
    fn refused(&mut self, reason: String, credential: Fingerprint) {
        let known = match &self.circuit.state {
            // Nobody calls, and whoever does so afterwards will learn of it.
            State::Open { by_operator: true, .. } => true,
            State::Disabled { credential: refused, .. } => *refused == credential,
            _ => false,
        };
        if !known && !self.circuit.is_superseded(&credential) {
            self.disable(reason, credential);
        }
    }

    fn disable(&mut self, reason: String, credential: Fingerprint) {
        let since = match &self.circuit.state {
            State::Disabled { since, .. } => *since,
            _ => self.now,
        };
        // Whoever pays a bill or mends a key does so soon or late: it is asked as long after as it has lasted.
        let longest = self.settings.credential_recheck;
        let wait = between(since, self.now).clamp(FIRST_RECHECK.min(longest), longest);
        let recheck_at = after(self.now, wait);
        self.supersede(&credential);
        let probing = Probing::from(recheck_at);
        self.enter(State::Disabled { since, reason: reason.clone(), credential, probing });
        self.effects.push(Effect::Disabled { reason, recheck_at });
    }

    fn credential_in_use(&mut self, credential: &Fingerprint) {
        if !self.circuit.is_superseded(credential) && self.supersede(credential) {
            self.close(ClosedBy::Credential);
        }
    }

    /// Remembers the credential that is refused now, if it is not the same as this one.
    fn supersede(&mut self, by: &Fingerprint) -> bool {
        let State::Disabled { credential, .. } = &self.circuit.state else { return false };
        let other = credential != by;
        if other {
            // Nobody is in a hurry to try the old one: there is another.
            let until = after(self.now, self.settings.credential_recheck);
            self.circuit.superseded = Some(Superseded { credential: credential.clone(), until });
        }
        other
    }

    /// Opens it for the period that is due after so many trips.
    fn trip(&mut self, trigger: Trigger) {
        if let State::Closed { since, .. } = self.circuit.state
            && between(since, self.now) >= self.settings.trips_forgotten_after
        {
            self.circuit.trips = 0;
        }
        let period = self.settings.open_period_after(self.circuit.trips);
        self.circuit.trips = self.circuit.trips.saturating_add(1);
        self.open(trigger, Some(after(self.now, period)));
    }

    fn open(&mut self, trigger: Trigger, until: Option<Time>) {
        let down_since = self.circuit.state.down_since().unwrap_or(self.now);
        let failure_rate = self.circuit.window.tally(self.settings, self.now).failure_rate;
        let by_operator = trigger == Trigger::Operator;
        self.enter(State::Open { since: self.now, until, down_since, by_operator });
        self.effects.push(Effect::Opened { trigger, failure_rate, until });
    }

    fn close(&mut self, by: ClosedBy) {
        let Some(down_since) = self.circuit.state.down_since() else { return };
        self.circuit.window.clear();
        self.enter(State::Closed { since: self.now, ramps: true });
        self.effects.push(Effect::Closed { by, down_for: between(down_since, self.now) });
    }

    /// The only way from one state to another: an open period that ends is counted.
    fn enter(&mut self, state: State) {
        if let Some((from, to)) = self.circuit.open_until(self.now) {
            self.circuit.open_time.add(from, to);
        }
        self.circuit.state = state;
    }
}
