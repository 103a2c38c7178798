//! What one process knows of a class, and what it has not told yet. No locks, no waiting: `now` is an argument.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use tollgate_domain::guard::{Gate, Leave, Report};
use tollgate_model::guard::circuit::Waiting;
use tollgate_model::guard::outcome::{Observation, Outcome};
use tollgate_model::guard::pause::spread_out;
use tollgate_model::guard::ramp::Share;
use tollgate_model::guard::settings::GuardSettings;
use tollgate_model::guard::timeout::{LatencyKey, Sketch};

use super::UNTOLD;

/// Calls that are not told yet, at most: beyond it the oldest are forgotten. A window holds no more anyway.
const UNTOLD_CALLS: usize = 1000;

/// Kinds of call whose timeouts are remembered, at most: models and sizes are the clients' words.
const KEYS: usize = 10_000;

/// What was heard longer ago is asked anew before the next claim.
const STALE: Duration = Duration::from_secs(2);

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
    /// Our deadline ended it, and it was shorter than what such a call is given.
    pub impatient: bool,
    pub began: Instant,
    pub at: Instant,
}

impl Ended {
    fn observed(self, now: Instant) -> Observation {
        Observation { outcome: self.outcome, began_ago: now - self.began, ended_ago: now - self.at }
    }
}

/// Permits as they are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passes {
    pub count: usize,
    pub probe: Option<Probe>,
}

/// Leave to make a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    pub epoch: u64,
    /// Then somebody else may make one.
    pub until: Instant,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a question of its own, and they change apart")]
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
    /// An answer to that is yet to come.
    asking: bool,
    asked: bool,
    would_probe: bool,
    probe: Option<Probe>,
    /// Passes that are out: claimed for, or calling.
    out: usize,
    in_flight: u32,
    /// What the others believe that to be.
    told_in_flight: u32,
    calls: VecDeque<Ended>,
    ended_probe: Option<(u64, Ended)>,
    latencies: HashMap<LatencyKey, Sketch>,
    remaining: Option<u64>,
    bad_news: bool,
    timeouts: HashMap<LatencyKey, Duration>,
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
            gate: Gate::Shut { until: Some(Duration::ZERO), why: None },
            heard: now,
            pause: None,
            untold_pause: None,
            tokens: 0,
            more_at: now,
            used: now,
            want: 0,
            asking: false,
            asked: true,
            would_probe: false,
            probe: None,
            out: 0,
            in_flight: 0,
            told_in_flight: 0,
            calls: VecDeque::new(),
            ended_probe: None,
            latencies: HashMap::new(),
            remaining: None,
            bad_news: false,
            timeouts: HashMap::new(),
            closed: false,
        }
    }

    /// What may be done. Where more leave is needed, it is asked for with the next report.
    pub(super) fn may(&mut self, now: Instant) -> May {
        if let Some(until) = self.paused(now) {
            return May::Wait(Some(until));
        }
        self.probe.take_if(|probe| probe.until <= now);
        if self.probe.is_some() {
            return May::Probe;
        }
        if matches!(self.gate, Gate::Open(_)) && now - self.heard > STALE {
            // Whatever was heard long ago may not hold any more, and the hint of it may have been lost.
            return May::Ask;
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
                    room if !self.limited || self.tokens > 0 => May::Call(room),
                    _ if self.more_at > now => May::Wait(Some(self.more_at)),
                    _ if self.asking => May::Ask,
                    // Tokens are asked for by whoever has something to use them for: what idle processes hold, the bucket
                    // would refill.
                    room => May::Call(room),
                }
            }
        }
    }

    pub(super) fn leave(&mut self, want: usize, now: Instant) -> Option<Passes> {
        match self.may(now) {
            May::Call(most) => {
                let wanted = most.min(want);
                let count = if self.limited { wanted.min(self.tokens as usize) } else { wanted };
                if self.limited {
                    let tokens = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
                    self.tokens -= tokens(count);
                    self.used = if count > 0 { now } else { self.used };
                    self.want = self.want.max(tokens(wanted - count).min(self.slice));
                    self.asking |= self.want > 0;
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
        Some(Passes { count: 1, probe: Some(probe) })
    }

    fn paused(&self, now: Instant) -> Option<Instant> {
        self.pause.filter(|until| *until > now)
    }

    /// Whether a call that was allowed may still begin. A probe has to be over while its leave lasts: else there could be
    /// two.
    pub(super) fn may_begin(&self, probe: Option<Probe>, timeout: Duration, now: Instant) -> bool {
        let allowed = match probe {
            Some(probe) => now + timeout <= probe.until && !self.shut_for(Waiting::Operator),
            None => matches!(self.gate, Gate::Open(_)),
        };
        allowed && self.paused(now).is_none()
    }

    /// Whether that is what keeps calls from being made.
    pub(super) fn shut_for(&self, why: Waiting) -> bool {
        matches!(self.gate, Gate::Shut { why: Some(shut), .. } if shut == why)
    }

    pub(super) fn begun(&mut self) {
        self.in_flight += 1;
    }

    /// A pass that was not used.
    pub(super) fn returned(&mut self, probe: Option<Probe>, now: Instant) {
        self.out -= 1;
        match probe {
            Some(probe) => self.give_probe_back(probe, now),
            None if self.limited => self.tokens += 1,
            None => {}
        }
    }

    fn give_probe_back(&mut self, probe: Probe, now: Instant) {
        let ended = Ended { outcome: Outcome::Cancelled, impatient: false, began: now, at: now };
        self.ended_probe = Some((probe.epoch, ended));
        self.bad_news = true;
    }

    /// A call is over. `true`: the others have to know at once.
    pub(super) fn ended(&mut self, probe: Option<Probe>, ended: Ended, key: &LatencyKey) -> bool {
        self.out -= 1;
        self.in_flight -= 1;
        match &ended.outcome {
            Outcome::Success { latency } => self.sketch(key).answered(*latency),
            outcome if outcome.kind().is_timeout() && !ended.impatient => self.sketch(key).censored(),
            Outcome::RateLimited { pause: Some(pause) } => {
                let until = ended.at + *pause;
                self.stay_away(until);
            }
            Outcome::CredentialRefused { .. } => {
                // No other call of ours will do better, and nobody has to tell us so.
                self.gate = Gate::Shut { until: Some(Duration::ZERO), why: Some(Waiting::Credential) };
                self.heard = ended.at;
            }
            _ => {}
        }
        let good = ended.outcome.kind().is_good() || ended.outcome == Outcome::Cancelled;
        if let Some(probe) = probe {
            self.ended_probe = Some((probe.epoch, ended));
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
        let news = !self.calls.is_empty() || self.in_flight != self.told_in_flight;
        self.asked
            || self.bad_news
            || self.want > 0
            || (self.would_probe && matches!(self.gate, Gate::ProbeOnly))
            || ((news || ramping || self.unused(now)) && silent >= super::REPORTS)
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
        let tokens = if give_back { std::mem::take(&mut self.tokens) } else { 0 };
        let (pause, remaining) = (self.untold_pause.take(), self.remaining.take());
        let unsent = Unsent {
            calls: calls.clone(),
            latencies: latencies.clone(),
            probe: probe.clone(),
            pause,
            remaining,
        };
        let (impatient, calls): (Vec<_>, Vec<_>) = calls.into_iter().partition(|call| call.impatient);
        let observed = |calls: Vec<Ended>| calls.into_iter().map(|call| call.observed(now)).collect();
        let report = Report {
            calls: observed(calls),
            impatient: observed(impatient),
            latencies,
            probe: probe.map(|(epoch, ended)| (epoch, ended.observed(now))),
            unspent: tokens,
            pause: pause.map(|until| until.saturating_duration_since(now)),
            want: if self.closed { 0 } else { std::mem::take(&mut self.want) },
            remaining,
            would_probe: std::mem::take(&mut self.would_probe) && self.probe.is_none() && !self.closed,
            in_flight: self.in_flight,
        };
        (self.asked, self.bad_news) = (false, false);
        self.told_in_flight = self.in_flight;
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
        (self.asked, self.asking) = (true, false);
    }

    pub(super) fn learn_leave(&mut self, leave: Leave, settings: &GuardSettings, jitter: f64, now: Instant) {
        let Leave { gate, pause, granted, more_in, probe, timeouts } = leave;
        // What went wrong since this was asked for may have shut it; the answer to that is under way.
        if !(self.bad_news && matches!(gate, Gate::Open(_))) {
            self.gate = gate;
        }
        self.heard = now;
        if let Some(pause) = pause {
            let until = now + spread_out(pause, jitter, settings.pause_spread);
            // The same pause, heard of again, must not be spread again.
            if self.pause.is_none_or(|present| now + pause > present) {
                self.pause = Some(until);
            }
        } else {
            // An operator may have ended it; one that was heard of here alone is in the next report.
            self.pause = self.pause.filter(|until| *until > now && self.bad_news);
        }
        self.asking = self.want > 0;
        self.tokens += granted;
        if granted > 0 {
            self.used = now;
        }
        self.more_at = now + more_in;
        if let Some((epoch, within)) = probe {
            self.probe = Some(Probe { epoch, until: now + within });
        }
        if self.shut_for(Waiting::Operator)
            && let Some(probe) = self.probe.take()
        {
            self.give_probe_back(probe, now);
        }
        self.learn(timeouts);
    }

    pub(super) fn learn(&mut self, timeouts: HashMap<LatencyKey, Duration>) {
        if self.timeouts.len() + timeouts.len() > KEYS {
            self.timeouts.clear();
        }
        self.timeouts.extend(timeouts);
    }

    pub(super) fn timeout(&self, key: &LatencyKey) -> Option<Duration> {
        self.timeouts.get(key).copied()
    }

    pub(super) fn budget(&self) -> Option<u32> {
        self.limited.then_some(self.tokens)
    }

    /// Nothing begins any more; a probe that was not made is given back.
    pub(super) fn close(&mut self) {
        self.closed = true;
        if let Some(probe) = self.probe.take() {
            self.give_probe_back(probe, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
