//! The guard's shared half: what a worker has seen goes in, what it may do comes out, in one transaction a report.
//!
//! No call waits for this: workers report at most once a second, and at once only what is bad news. What comes out is in
//! spans of time from now on, not in times, so that a worker's own clock may say what it likes.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tollgate_model::audit::{Action, Actor};
use tollgate_model::guard::circuit::{self, Decision, Effect, Event, Waiting};
use tollgate_model::guard::class::{GuardConfig, ModelClass};
use tollgate_model::guard::outcome::{Fingerprint, Observation};
use tollgate_model::guard::pause::Pause;
use tollgate_model::guard::ramp::Share;
use tollgate_model::guard::state::ClassState;
use tollgate_model::guard::status::{GuardStatus, KnownTimeout, millis, shown};
use tollgate_model::guard::timeout::{LatencyKey, Sketch, timeout};
use tollgate_store as store;
use tollgate_store::{Alone, SystemTx, Tx as _};
use uuid::Uuid;

use crate::{Database, Error, Result, audit};

/// What a worker tells of one class, and what it asks for.
#[derive(Debug, Default)]
pub struct Report {
    /// Calls that are over; none of them was a probe.
    pub calls: Vec<Observation>,
    /// Calls that our own deadline ended, and that were given less time than such calls are given: they say something about
    /// the provider only if it answered nobody else meanwhile. Else one account's hurry would stop everybody.
    pub impatient: Vec<Observation>,
    /// How long they took, for those whose length says something.
    pub latencies: HashMap<LatencyKey, Sketch>,
    /// A probe of this worker that is over; cancelled: it was not made.
    pub probe: Option<(u64, Observation)>,
    /// How long the provider asked us to stay away, beside the calls that it refused for it.
    pub pause: Option<Duration>,
    /// Leave to begin calls that was not used.
    pub unspent: u32,
    /// Leave to begin calls that is asked for.
    pub want: u32,
    /// What the provider says is left of its own limit, if it said so.
    pub remaining: Option<u64>,
    /// The worker would make a probe.
    pub would_probe: bool,
    /// Calls of this worker that are in flight.
    pub in_flight: u32,
}

/// What a worker may do, counted from the moment at which it has this.
#[derive(Debug)]
pub struct Leave {
    /// Whether it may call, by the circuit.
    pub gate: Gate,
    /// No call may begin for so long, by the provider's word.
    pub pause: Option<Duration>,
    /// Calls it may begin, of what it asked for.
    pub granted: u32,
    /// When there may be more.
    pub more_in: Duration,
    /// It is to make a probe: its epoch, and how long it may take.
    pub probe: Option<(u64, Duration)>,
    /// How long calls may take, for the kinds that were reported.
    pub timeouts: HashMap<LatencyKey, Duration>,
}

/// What a circuit says to a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    /// Call.
    Open(Share),
    /// Do not.
    Shut {
        /// Ask again after so long; `None`: when told of a change.
        until: Option<Duration>,
        /// What the circuit waits for; `None`: it is not the circuit that keeps calls from being made.
        why: Option<Waiting>,
    },
    /// Do not, but a probe might be made.
    ProbeOnly,
}

/// Latencies of more kinds of call than this are not kept in one report: models and sizes are the clients' words.
const KEYS: usize = 100;

/// Takes a worker's report of a class and tells it what it may do. `enabled`: by this process's configuration, the breaker's
/// decisions hold.
pub async fn report(
    db: &Database,
    class: &ModelClass,
    enabled: bool,
    worker: Uuid,
    credential: &Fingerprint,
    report: Report,
) -> Result<Leave> {
    let (name, settings) = (class.name.as_str(), &class.settings);
    let mut tx = SystemTx::begin(db.pool()).await?;
    let enabled = enabled && store::breaker_enabled(&mut tx).await?;
    let store::ClassRow { state, now } = store::lock_class(&mut tx, name).await?;
    let known = state.is_some();
    let mut state = readable(state, class, now);
    let before = state.clone();
    let mut effects = Vec::new();

    let mut paused = state.observe(&report.calls, now);
    paused |= report.pause.and_then(|pause| later(now, pause)).is_some_and(|until| state.pause.extend(until));
    if !report.calls.is_empty() {
        effects.extend(state.step(settings, Event::Observed(report.calls), now));
    }
    let unanswered: Vec<_> =
        report.impatient.into_iter().filter(|call| !state.answered_since(call, now)).collect();
    if !unanswered.is_empty() {
        state.observe(&unanswered, now);
        effects.extend(state.step(settings, Event::Observed(unanswered), now));
    }
    let mut probe_ended = false;
    if let Some((epoch, call)) = report.probe {
        paused |= state.observe(std::slice::from_ref(&call), now);
        effects.extend(state.step(settings, Event::ProbeEnded { epoch, outcome: call.outcome }, now));
        probe_ended = true;
    }
    state.bucket.give_back(settings, report.unspent);
    if let Some(remaining) = report.remaining {
        state.bucket.lower(settings, remaining, now);
    }
    state.calling(worker, report.in_flight, now);
    let mut timeouts = HashMap::new();
    for (key, seen) in report.latencies.into_iter().take(KEYS) {
        let id = serde_json::to_string(&key).map_err(|error| Error::Internal(error.to_string()))?;
        let latencies =
            store::add_latencies(&mut tx, name, &id, |latencies| latencies.add(&seen, settings, now)).await?;
        timeouts.insert(key, timeout(&latencies, settings, now));
    }

    // A pause holds for probes too: nobody calls before its end.
    let pause = state.pause.until(now).map(|until| span(now, until));
    let mut probe = None;
    let mut decision = circuit::decide(&state.circuit, settings, enabled, credential, now);
    if decision == Decision::NewCredential {
        effects.extend(state.step(settings, Event::CredentialInUse { credential: credential.clone() }, now));
        decision = circuit::decide(&state.circuit, settings, enabled, credential, now);
    }
    let mut broke = false;
    if decision == Decision::ProbeOnly && report.would_probe && pause.is_none() {
        // A probe is a call like any other.
        broke = state.bucket.take(settings, 1, now) == 0;
        if !broke {
            let answer = state.step(settings, Event::TakeProbe { holder: worker }, now);
            probe = answer.iter().find_map(|effect| match effect {
                Effect::ProbeGranted { epoch, until } => Some((*epoch, span(now, *until))),
                _ => None,
            });
            effects.extend(answer);
            decision = circuit::decide(&state.circuit, settings, enabled, credential, now);
            if probe.is_none() {
                state.bucket.give_back(settings, 1);
            }
        }
    }
    let gate = match decision {
        Decision::Admit { share } => Gate::Open(share),
        Decision::Wait { until, why } => {
            Gate::Shut { until: until.map(|until| span(now, until)), why: Some(why) }
        }
        Decision::ProbeOnly if broke => {
            let until = span(now, state.bucket.next_token_at(settings, now));
            Gate::Shut { until: Some(until), why: None }
        }
        Decision::ProbeOnly => Gate::ProbeOnly,
        Decision::NewCredential => Gate::Shut { until: Some(Duration::ZERO), why: Some(Waiting::Credential) },
    };
    let want = if matches!(gate, Gate::Open(_)) || probe.is_some() { report.want } else { 0 };
    let granted = state.bucket.take(settings, want, now);
    let more_in = span(now, state.bucket.next_token_at(settings, now));

    if !known || state != before {
        store::save_class(&mut tx, name, &state).await?;
    }
    tx.commit().await?;
    tell(name, &state, &effects);
    if paused || probe_ended || effects.iter().any(is_change) {
        announce(db, name).await;
    }
    Ok(Leave { gate, pause, granted, more_in, probe, timeouts })
}

/// How long calls of a class may take, as far as that is known.
pub async fn timeouts(db: &Database, class: &ModelClass) -> Result<HashMap<LatencyKey, Duration>> {
    let mut alone = Alone::acquire(db.pool()).await?;
    let now = alone.now().await?;
    let rows = store::latencies(&mut alone, class.name.as_str()).await?;
    let known = rows.into_iter().filter_map(|(key, latencies)| {
        Some((serde_json::from_str(&key).ok()?, timeout(&latencies, &class.settings, now)))
    });
    Ok(known.collect())
}

fn span(now: DateTime<Utc>, until: DateTime<Utc>) -> Duration {
    until.signed_duration_since(now).to_std().unwrap_or_default()
}

/// The state of a class. One that this version cannot read is begun anew: a guard that stops everything because of a field is
/// worse than one that has forgotten a minute.
fn readable(state: Option<Value>, class: &ModelClass, now: DateTime<Utc>) -> ClassState {
    let state = state.and_then(|state| {
        let read = serde_json::from_value(state);
        read.inspect_err(|error| {
            tracing::warn!(%error, class = class.name.as_str(), "the guard's state is of another version; it begins anew");
        })
        .ok()
    });
    state.unwrap_or_else(|| ClassState::new(&class.settings, now))
}

fn later(now: DateTime<Utc>, span: Duration) -> Option<DateTime<Utc>> {
    TimeDelta::from_std(span).ok().and_then(|span| now.checked_add_signed(span))
}

fn is_change(effect: &Effect) -> bool {
    !matches!(effect, Effect::ProbeGranted { .. } | Effect::ProbeRefused { .. })
}

/// Other workers hear of it at once, if they can; if not, when they next ask.
async fn announce(db: &Database, class: &str) {
    if let Err(error) = store::notify_guard(db.pool(), class).await {
        tracing::debug!(%error, class, "could not tell the other workers of the guard's news");
    }
}

/// One line a change, by whoever brought it about.
fn tell(class: &str, state: &ClassState, effects: &[Effect]) {
    let name = shown(state.circuit.state());
    for effect in effects {
        match effect {
            Effect::Opened { trigger, failure_rate, until } => {
                let until = until.map(|until| until.to_rfc3339());
                tracing::warn!(
                    class,
                    state = name,
                    failureRate = failure_rate,
                    trigger = trigger.name(),
                    until,
                    "breaker.state"
                );
            }
            Effect::HalfOpened => tracing::info!(class, state = "half-open", "breaker.state"),
            Effect::Closed { down_for, .. } => {
                let down_for_ms = u64::try_from(down_for.as_millis()).unwrap_or(u64::MAX);
                tracing::info!(class, state = "closed", failureRate = 0.0, down_for_ms, "breaker.state");
            }
            Effect::Disabled { reason, .. } => {
                tracing::error!(
                    class,
                    state = "disabled",
                    reason,
                    "breaker.state: the provider refuses the credential; calls stop until it is replaced or taken again"
                );
            }
            Effect::ProbeLost(lease) => {
                tracing::warn!(class, worker = %lease.holder, "a probe was never heard of again");
            }
            Effect::ProbeGranted { .. } | Effect::ProbeRefused { .. } => continue,
        }
        if is_change(effect) {
            metrics::counter!("tollgate_guard_changes_total", "class" => class.to_owned(), "state" => name)
                .increment(1);
        }
    }
}

/// What an operator does to a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// No calls, for so long; `None`: until further notice.
    Open(Option<Duration>),
    /// Calls, whatever was; a pause ends too.
    Close,
    /// No calls for so long at least, and no probes either.
    Pause(Duration),
}

/// Does it. In force for every worker at once.
pub async fn order(db: &Database, class: &ModelClass, actor: Actor, order: Order) -> Result<()> {
    let (name, settings) = (class.name.as_str(), &class.settings);
    let mut tx = SystemTx::begin(db.pool()).await?;
    let store::ClassRow { state, now } = store::lock_class(&mut tx, name).await?;
    let mut state = readable(state, class, now);
    let effects = match order {
        Order::Open(span) => {
            state.step(settings, Event::OperatorOpen { until: span.and_then(|span| later(now, span)) }, now)
        }
        Order::Close => {
            state.pause = Pause::default();
            state.bucket.restart(now);
            state.step(settings, Event::OperatorClose, now)
        }
        Order::Pause(span) => {
            let until = later(now, span).ok_or_else(|| Error::Invalid {
                field: "for",
                problem: "is longer than the calendar".into(),
            })?;
            state.pause.extend(until);
            Vec::new()
        }
    };
    store::save_class(&mut tx, name, &state).await?;
    let (word, span) = match order {
        Order::Open(span) => ("open", span),
        Order::Close => ("close", None),
        Order::Pause(span) => ("pause", Some(span)),
    };
    let detail = json!({ "order": word, "for_ms": span.map(millis) });
    audit::record_for_all(&mut tx, actor, Action::GuardOrdered, &format!("class:{name}"), &detail).await?;
    tx.commit().await?;
    tell(name, &state, &effects);
    announce(db, name).await;
    Ok(())
}

/// Switches the breaker's decisions on or off, for all processes; they are recorded all the same.
pub async fn switch_breaker(db: &Database, actor: Actor, enabled: bool) -> Result<()> {
    let mut tx = SystemTx::begin(db.pool()).await?;
    store::switch_breaker(&mut tx, enabled).await?;
    let detail = json!({ "enabled": enabled });
    audit::record_for_all(&mut tx, actor, Action::BreakerSwitched, "breaker:*", &detail).await?;
    tx.commit().await?;
    announce(db, "*").await;
    Ok(())
}

/// Forgets how long calls took that nobody has made for long.
pub async fn forget_latencies(db: &Database, config: &GuardConfig) -> Result<()> {
    let mut alone = Alone::acquire(db.pool()).await?;
    for class in config.classes() {
        let slices = u32::try_from(class.settings.latency_slices).unwrap_or(u32::MAX);
        let unused = class.settings.latency_slice.saturating_mul(slices);
        store::forget_latencies(&mut alone, class.name.as_str(), unused).await?;
    }
    Ok(())
}

/// The guards of all classes. `enabled`: by this process's configuration.
pub async fn status(db: &Database, config: &GuardConfig, enabled: bool) -> Result<Vec<GuardStatus>> {
    let mut alone = Alone::acquire(db.pool()).await?;
    let enabled = enabled && store::breaker_enabled(&mut alone).await?;
    let mut all = Vec::new();
    for class in config.classes() {
        let settings = &class.settings;
        let store::ClassRow { state, now } = store::class_state(&mut alone, class.name.as_str()).await?;
        let mut state = readable(state, class, now);
        // What time alone does is shown as done, though nobody has written it down.
        state.step(settings, Event::Tick, now);
        let mut known = Vec::new();
        for (key, latencies) in store::latencies(&mut alone, class.name.as_str()).await? {
            let recent = latencies.recent(settings, now);
            let Ok(key) = serde_json::from_str::<LatencyKey>(&key) else { continue };
            if recent.count() > 0 {
                known.push(KnownTimeout {
                    provider: key.provider,
                    model: key.model,
                    size: key.size,
                    calls: recent.count(),
                    timeout_ms: millis(timeout(&latencies, settings, now)),
                });
            }
        }
        all.push(GuardStatus::new(class, &state, enabled, known, now));
    }
    Ok(all)
}
