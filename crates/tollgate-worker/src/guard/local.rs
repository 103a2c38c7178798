//! What one process knows of a class, and what it has not told yet. No locks, no waiting: `now` is an argument.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use tollgate_domain::guard::{Gate, Leave, Report};
use tollgate_model::guard::outcome::{Observation, Outcome};
use tollgate_model::guard::ramp::Share;
use tollgate_model::guard::settings::GuardSettings;
use tollgate_model::guard::timeout::{LatencyKey, Patience, Sketch};

use super::UNTOLD;

/// Calls that are not told yet, at most: beyond it the oldest are forgotten. A window holds no more anyway.
const UNTOLD_CALLS: usize = 1000;

/// Kinds of call whose timeouts are remembered, at most: models and sizes are the clients' words.
const KEYS: usize = 10_000;

/// Leave that nobody used for so long goes back.
const UNUSED: Duration = Duration::from_secs(2);

/// What may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum May {
    /// Begin so many calls.
    Call(usize),
    /// Make the probe.
    Probe,
    /// Nothing, but the answer to a question may change that.
    Ask,
    /// Nothing before this; `None`: until something changes.
    Wait(Option<Instant>),
}

/// A call that is over.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub outcome: Outcome,
    pub began: Instant,
    pub ended: Instant,
}

impl Ended {
    fn observed(self, now: Instant) -> Observation {
        Observation { outcome: self.outcome, began_ago: now - self.began, ended_ago: now - self.ended }
    }
}

/// Permits as they are handed out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passes {
    pub count: usize,
    pub probe: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    epoch: u64,
    until: Instant,
}

#[derive(Debug)]
pub(super) struct Local {
    concurrency: usize,
    /// Tokens are counted.
    limited: bool,
    /// A slice of the budget is at most so many.
    slice: u32,
    gate: Gate,
    /// When the gate was last heard of.
    heard: Instant,
    /// With this process's own delay already in it.
    pause: Option<Instant>,
    /// One that the others have not heard of, beside those of calls that were refused for it.
    untold_pause: Option<Instant>,
    tokens: u32,
    more_at: Instant,
    used: Instant,
    want: u32,
    asked: bool,
    would_probe: bool,
    probe: Option<Probe>,
    /// Passes that are out: claimed for, or calling.
    out: usize,
    in_flight: u32,
    calls: VecDeque<Ended>,
    ended_probe: Option<(u64, Ended)>,
    latencies: HashMap<LatencyKey, Sketch>,
    remaining: Option<u64>,
    bad_news: bool,
    patience: HashMap<LatencyKey, Patience>,
    closed: bool,
}

/// What a report took along, should it not arrive.
pub(super) struct Unsent {
    calls: VecDeque<Ended>,
    latencies: HashMap<LatencyKey, Sketch>,
    probe: Option<(u64, Ended)>,
    pause: Option<Instant>,
    remaining: Option<u64>,
}

impl Local {
    pub(super) fn new(settings: &GuardSettings, concurrency: usize, now: Instant) -> Self {
        let capacity = settings.bucket_capacity;
        Self {
            concurrency,
            limited: capacity > 0,
            // A process that holds what another one could use keeps it waiting.
            slice: (capacity / 4).max(1),
            // Nothing is known yet: the first claim asks.
            gate: Gate::Shut { until: Some(Duration::ZERO), why: "unknown" },
            heard: now,
            pause: None,
            untold_pause: None,
            tokens: 0,
            more_at: now,
            used: now,
            want: 0,
            asked: true,
            would_probe: false,
            probe: None,
            out: 0,
            in_flight: 0,
            calls: VecDeque::new(),
            ended_probe: None,
            latencies: HashMap::new(),
            remaining: None,
            bad_news: false,
            patience: HashMap::new(),
            closed: false,
        }
    }

    /// What may be done. Where more leave is needed, it is asked for with the next report.
    pub(super) fn may(&mut self, now: Instant) -> May {
        if let Some(until) = self.paused(now) {
            return May::Wait(Some(until));
        }
        if self.probe.is_some_and(|probe| probe.until > now) {
            return May::Probe;
        }
        match self.gate {
            Gate::Shut { until, .. } => match until.map(|until| self.heard + until) {
                Some(until) if until <= now => {
                    self.asked = true;
                    self.would_probe = true;
                    May::Ask
                }
                until => May::Wait(until),
            },
            Gate::ProbeOnly => {
                self.would_probe = true;
                May::Ask
            }
            Gate::Open(share) => {
                let room = share.of(self.concurrency).saturating_sub(self.out);
                match room {
                    0 => May::Wait(None),
                    room if !self.limited => May::Call(room),
                    room if self.tokens > 0 => May::Call(room.min(self.tokens as usize)),
                    _ if self.more_at > now => May::Wait(Some(self.more_at)),
                    _ => {
                        self.want = self.want.max(1);
                        May::Ask
                    }
                }
            }
        }
    }

    pub(super) fn leave(&mut self, want: usize, now: Instant) -> Option<Passes> {
        match self.may(now) {
            May::Call(most) => {
                let count = most.min(want);
                if self.limited {
                    let count = u32::try_from(count).unwrap_or(u32::MAX);
                    self.tokens -= count;
                    self.used = now;
                    let missing = u32::try_from(want).unwrap_or(u32::MAX) - count;
                    self.want = self.want.max(missing.min(self.slice));
                }
                self.out += count;
                (count > 0).then_some(Passes { count, probe: None })
            }
            May::Probe if want > 0 => self.lone_probe(now),
            _ => None,
        }
    }

    pub(super) fn lone_probe(&mut self, now: Instant) -> Option<Passes> {
        self.paused(now).is_none().then_some(())?;
        let probe = self.probe.take().filter(|probe| probe.until > now)?;
        self.out += 1;
        Some(Passes { count: 1, probe: Some(probe.epoch) })
    }

    fn paused(&self, now: Instant) -> Option<Instant> {
        self.pause.filter(|until| *until > now)
    }

    /// Whether a call that was allowed may still begin.
    pub(super) fn may_begin(&self, probe: bool, now: Instant) -> bool {
        self.paused(now).is_none() && (probe || matches!(self.gate, Gate::Open(_)))
    }

    pub(super) fn begun(&mut self) {
        self.in_flight += 1;
    }

    /// A pass that was not used.
    pub(super) fn returned(&mut self, probe: Option<u64>, now: Instant) {
        self.out -= 1;
        match probe {
            Some(epoch) => {
                self.ended_probe =
                    Some((epoch, Ended { outcome: Outcome::Cancelled, began: now, ended: now }));
                self.bad_news = true;
            }
            None if self.limited => self.tokens += 1,
            None => {}
        }
    }

    /// A call is over. `true`: the others have to know at once.
    pub(super) fn ended(&mut self, probe: Option<u64>, ended: Ended, key: &LatencyKey) -> bool {
        self.out -= 1;
        self.in_flight -= 1;
        match &ended.outcome {
            Outcome::Success { latency } => self.sketch(key).answered(*latency),
            outcome if outcome.kind().is_timeout() => self.sketch(key).censored(),
            Outcome::RateLimited { pause: Some(pause) } => {
                let until = ended.ended + *pause;
                self.stay_away(until);
            }
            Outcome::CredentialRefused { .. } => {
                // No other call of ours will do better, and nobody has to tell us so.
                self.gate = Gate::Shut { until: Some(Duration::ZERO), why: "credential" };
                self.heard = ended.ended;
            }
            _ => {}
        }
        let good = ended.outcome.kind().is_good() || ended.outcome == Outcome::Cancelled;
        if let Some(epoch) = probe {
            self.ended_probe = Some((epoch, ended));
            self.bad_news = true;
        } else if ended.outcome != Outcome::Cancelled {
            if self.calls.len() >= UNTOLD_CALLS {
                self.calls.pop_front();
            }
            self.calls.push_back(ended);
            self.bad_news |= !good;
        }
        self.bad_news
    }

    fn sketch(&mut self, key: &LatencyKey) -> &mut Sketch {
        self.latencies.entry(key.clone()).or_default()
    }

    /// The provider asks us to stay away for so long, whatever it said besides.
    pub(super) fn pause_asked(&mut self, pause: Option<Duration>, now: Instant) {
        let Some(pause) = pause else { return };
        self.stay_away(now + pause);
        self.untold_pause = self.untold_pause.max(Some(now + pause));
        self.bad_news = true;
    }

    fn stay_away(&mut self, until: Instant) {
        self.pause = self.pause.max(Some(until));
    }

    /// What the provider says is left of its own limit.
    pub(super) fn limited_by_provider(&mut self, remaining: u64) {
        let least = self.remaining.map_or(remaining, |known| known.min(remaining));
        self.remaining = Some(least);
    }

    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// Whether an answer is waited for.
    pub(super) fn asks(&self) -> bool {
        self.want > 0
    }

    pub(super) fn has_to_report(&mut self, now: Instant) -> bool {
        let silent = now - self.heard;
        let ramping = matches!(self.gate, Gate::Open(share) if share != Share::WHOLE);
        self.asked
            || self.bad_news
            || self.want > 0
            || (self.would_probe && matches!(self.gate, Gate::ProbeOnly))
            || ((!self.calls.is_empty() || ramping || self.unused(now)) && silent >= super::REPORTS)
            || silent >= UNTOLD
    }

    fn unused(&self, now: Instant) -> bool {
        self.limited && self.tokens > 0 && now - self.used >= UNUSED
    }

    /// Takes what is to be told.
    pub(super) fn report(&mut self, now: Instant) -> (Report, Unsent) {
        let calls = std::mem::take(&mut self.calls);
        let latencies = std::mem::take(&mut self.latencies);
        let probe = self.ended_probe.take();
        let give_back = self.closed || self.unused(now);
        let unspent = if give_back { std::mem::take(&mut self.tokens) } else { 0 };
        let (pause, remaining) = (self.untold_pause.take(), self.remaining.take());
        let unsent = Unsent {
            calls: calls.clone(),
            latencies: latencies.clone(),
            probe: probe.clone(),
            pause,
            remaining,
        };
        let report = Report {
            calls: calls.into_iter().map(|call| call.observed(now)).collect(),
            latencies,
            probe: probe.map(|(epoch, ended)| (epoch, ended.observed(now))),
            unspent,
            pause: pause.map(|until| until.saturating_duration_since(now)),
            want: if self.closed { 0 } else { std::mem::take(&mut self.want) },
            remaining,
            would_probe: std::mem::take(&mut self.would_probe) && self.probe.is_none() && !self.closed,
            in_flight: self.in_flight,
        };
        (self.asked, self.bad_news) = (false, false);
        (report, unsent)
    }

    pub(super) fn report_failed(&mut self, unsent: Unsent) {
        let Unsent { mut calls, latencies, probe, pause, remaining } = unsent;
        calls.append(&mut self.calls);
        let from = calls.len().saturating_sub(UNTOLD_CALLS);
        self.calls = calls.split_off(from);
        for (key, sketch) in latencies {
            self.latencies.entry(key).or_default().merge(&sketch);
        }
        if self.ended_probe.is_none() {
            self.ended_probe = probe;
        }
        self.untold_pause = self.untold_pause.max(pause);
        if let Some(remaining) = remaining {
            self.limited_by_provider(remaining);
        }
        self.asked = true;
    }

    pub(super) fn learn_leave(&mut self, leave: Leave, settings: &GuardSettings, jitter: f64, now: Instant) {
        let Leave { gate, pause, granted, more_in, probe, patience } = leave;
        // What went wrong since this was asked for may have shut it; the answer to that is under way.
        if !(self.bad_news && matches!(gate, Gate::Open(_))) {
            self.gate = gate;
        }
        self.heard = now;
        if let Some(pause) = pause {
            // Those who were stopped together must not return together; but a short pause is not made a long one.
            let spread = settings.pause_spread.min(pause / 4);
            let until = now + pause + spread.mul_f64(jitter.clamp(0.0, 1.0));
            // The same pause, heard of again, must not be spread again.
            if self.pause.is_none_or(|present| now + pause > present) {
                self.pause = Some(until);
            }
        } else {
            // An operator may have ended it; one that was heard of here alone is in the next report.
            self.pause = self.pause.filter(|until| *until > now && self.bad_news);
        }
        self.tokens += granted;
        if granted > 0 {
            self.used = now;
        }
        self.more_at = now + more_in;
        if let Some((epoch, within)) = probe {
            self.probe = Some(Probe { epoch, until: now + within });
        }
        self.learn(patience);
    }

    pub(super) fn learn(&mut self, patience: HashMap<LatencyKey, Patience>) {
        if self.patience.len() + patience.len() > KEYS {
            self.patience.clear();
        }
        self.patience.extend(patience);
    }

    pub(super) fn patience(&self, key: &LatencyKey) -> Option<Patience> {
        self.patience.get(key).copied()
    }

    pub(super) fn budget(&self) -> Option<u32> {
        self.limited.then_some(self.tokens)
    }

    /// Nothing begins any more; a probe that was not made is given back.
    pub(super) fn close(&mut self) {
        self.closed = true;
        if let Some(probe) = self.probe.take() {
            let now = Instant::now();
            self.ended_probe =
                Some((probe.epoch, Ended { outcome: Outcome::Cancelled, began: now, ended: now }));
        }
    }
}
