//! Decides what each request meets: the rate limit, then the script, then chance.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::behaviour::Behaviour;
use crate::bucket::{Limit, TokenBucket};
use crate::fault::{Fault, RetryAfter};
use crate::latency::latency;
use crate::random::Draws;
use crate::step::{Step, StepError};

/// How many scripted steps and rules may wait at a time.
pub const MAX_STEPS: usize = 10_000;

/// Why a script is refused. Nothing of it has been taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// One of its steps is wrong.
    #[error("step {index}: {error}")]
    Step {
        /// Which, from 0.
        index: usize,
        /// What is wrong with it.
        error: StepError,
    },
    /// More than [`MAX_STEPS`].
    #[error("a script holds at most {MAX_STEPS} steps; this would make it {0}")]
    TooLong(usize),
}

/// How much of the script waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptSize {
    /// Steps in the queue.
    pub queued: usize,
    /// Steps with a `match`.
    pub rules: usize,
}

/// What one request meets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Action {
    pub(crate) fault: Fault,
    pub(crate) latency: Duration,
    pub(crate) retry_after: RetryAfter,
    /// Of a server error, or of a word to slow down.
    pub(crate) status: StatusCode,
    pub(crate) text: Option<String>,
    pub(crate) headers: BTreeMap<String, String>,
}

/// The decision on one request.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// What the rate limit says, if there is one.
    pub(crate) limit: Option<Limit>,
    /// `None` if the rate limit lets it no further.
    pub(crate) action: Option<Action>,
}

/// The behaviour in force and what is left of the script.
#[derive(Debug)]
pub(crate) struct Plan {
    initial: Behaviour,
    behaviour: Behaviour,
    bucket: Option<TokenBucket>,
    /// The number of the next request that gets past the rate limit.
    ordinal: u64,
    queue: VecDeque<Waiting>,
    rules: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    step: Step,
    /// How many requests more; `None` for all.
    left: Option<u32>,
}

impl Plan {
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        let bucket = bucket(&behaviour);
        let initial = behaviour.clone();
        Self { initial, behaviour, bucket, ordinal: 0, queue: VecDeque::new(), rules: Vec::new() }
    }

    pub(crate) fn behaviour(&self) -> &Behaviour {
        &self.behaviour
    }

    /// Starts over with this behaviour: a full bucket, and the seed's first draws. The script stays.
    pub(crate) fn set_behaviour(&mut self, behaviour: Behaviour) {
        self.bucket = bucket(&behaviour);
        self.behaviour = behaviour;
        self.ordinal = 0;
    }

    /// As after the start.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.initial.clone());
    }

    /// Appends these steps, all or none.
    pub(crate) fn script(&mut self, steps: Vec<Step>) -> Result<ScriptSize, ScriptError> {
        for (index, step) in steps.iter().enumerate() {
            step.validate().map_err(|error| ScriptError::Step { index, error })?;
        }
        let length = self.queue.len() + self.rules.len() + steps.len();
        if length > MAX_STEPS {
            return Err(ScriptError::TooLong(length));
        }
        for step in steps {
            if step.matching.is_some() {
                self.rules.push(Waiting { left: step.times, step });
            } else {
                self.queue.push_back(Waiting { left: Some(step.times.unwrap_or(1)), step });
            }
        }
        Ok(ScriptSize { queued: self.queue.len(), rules: self.rules.len() })
    }

    /// Decides on a request that arrives now.
    pub(crate) fn decide(&mut self, prompt: &str, now: Instant) -> Verdict {
        let limit = self.bucket.as_mut().map(|bucket| bucket.take(now));
        if limit.is_some_and(|limit| limit.refused_for.is_some()) {
            return Verdict { limit, action: None };
        }
        // Scripted requests have a number too, so that a script does not shift the draws of later requests.
        let draws = Draws::new(self.behaviour.seed, self.ordinal);
        self.ordinal += 1;
        let step = self.scripted(prompt);
        Verdict { limit, action: Some(self.action(step, draws)) }
    }

    /// The script's word on this prompt, used up by asking.
    fn scripted(&mut self, prompt: &str) -> Option<Step> {
        let rule = self
            .rules
            .iter()
            .position(|rule| rule.step.matching.as_ref().is_some_and(|text| prompt.contains(text.as_str())));
        if let Some(index) = rule {
            let rule = &mut self.rules[index];
            return Some(if rule.is_last_use() { self.rules.remove(index).step } else { rule.step.clone() });
        }
        let next = self.queue.front_mut()?;
        if next.is_last_use() {
            self.queue.pop_front().map(|next| next.step)
        } else {
            Some(next.step.clone())
        }
    }

    fn action(&self, step: Option<Step>, mut draws: Draws) -> Action {
        let behaviour = &self.behaviour;
        let drawn_fault = behaviour.faults.pick(draws.uniform());
        let drawn_latency = latency(behaviour.latency_median_ms, behaviour.p99_ms(), draws.normal());
        let drawn_status = match draws.uniform() * 3.0 {
            ..1.0 => StatusCode::INTERNAL_SERVER_ERROR,
            ..2.0 => StatusCode::BAD_GATEWAY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let scripted = step.is_some();
        let step = step.unwrap_or_default();
        let fault = if scripted { step.fault } else { drawn_fault };
        let status = if fault == Fault::SlowDown { StatusCode::TOO_MANY_REQUESTS } else { drawn_status };
        let latency = match step.latency_ms {
            Some(ms) => Duration::from_millis(ms.into()),
            None if fault.takes_time() => drawn_latency,
            None => Duration::ZERO,
        };
        Action {
            fault,
            latency,
            retry_after: step.retry_after.unwrap_or(behaviour.retry_after),
            status: step.status.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(status),
            text: step.text,
            headers: step.headers,
        }
    }
}

impl Waiting {
    /// Counts a use, and tells whether it was the last.
    fn is_last_use(&mut self) -> bool {
        match &mut self.left {
            None => false,
            Some(left) => {
                *left = left.saturating_sub(1);
                *left == 0
            }
        }
    }
}

fn bucket(behaviour: &Behaviour) -> Option<TokenBucket> {
    behaviour.requests_per_minute.map(|per_minute| TokenBucket::new(per_minute, Instant::now()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::behaviour::Faults;

    fn fates(plan: &mut Plan, prompts: &[&str]) -> Vec<Fault> {
        let fate = |prompt: &&str| plan.decide(prompt, Instant::now()).action.unwrap().fault;
        prompts.iter().map(fate).collect()
    }

    fn mixed(seed: u64) -> Behaviour {
        let faults = Faults { rate_limit: 0.2, server_error: 0.2, hang: 0.2, ..Faults::default() };
        Behaviour {
            latency_median_ms: 800,
            latency_p99_ms: Some(2_500),
            seed,
            faults,
            ..Behaviour::default()
        }
    }

    fn actions(behaviour: Behaviour) -> Vec<Action> {
        let mut plan = Plan::new(behaviour);
        (0..200).map(|_| plan.decide("", Instant::now()).action.unwrap()).collect()
    }

    #[tokio::test]
    async fn a_seed_repeats_everything() {
        assert_eq!(actions(mixed(1)), actions(mixed(1)));
        assert_ne!(actions(mixed(1)), actions(mixed(2)));
    }

    #[tokio::test]
    async fn faults_come_as_often_as_asked() {
        let mut plan = Plan::new(mixed(3));
        let fates = fates(&mut plan, &vec![""; 10_000]);
        for (fault, expected) in [(Fault::RateLimit, 2_000), (Fault::Hang, 2_000), (Fault::Ok, 4_000)] {
            let found = fates.iter().filter(|fate| **fate == fault).count();
            // Four standard deviations.
            assert!(found.abs_diff(expected) < 200, "{fault}: {found}");
        }
    }

    #[tokio::test]
    async fn the_script_goes_before_chance_and_does_not_shift_it() {
        let unscripted = actions(mixed(1));
        let mut plan = Plan::new(mixed(1));
        plan.script(vec![Step::fault(Fault::Reset), Step::ok().text("hello").latency_ms(5)]).unwrap();
        let scripted: Vec<_> = (0..200).map(|_| plan.decide("", Instant::now()).action.unwrap()).collect();
        assert_eq!(scripted[0].fault, Fault::Reset);
        assert_eq!(scripted[1].text.as_deref(), Some("hello"));
        assert_eq!(scripted[1].latency, Duration::from_millis(5));
        assert_eq!(scripted[2..], unscripted[2..]);
    }

    #[tokio::test]
    async fn rules_go_before_the_queue_and_times_are_counted() {
        let mut plan = Plan::new(Behaviour::default());
        let size = plan.script(vec![
            Step::fault(Fault::Hang).times(2),
            Step::fault(Fault::Reset).matching("poem").times(1),
            Step::fault(Fault::BadRequest).matching("poem"),
        ]);
        assert_eq!(size, Ok(ScriptSize { queued: 1, rules: 2 }));
        assert_eq!(
            fates(&mut plan, &["a poem", "x", "a poem", "x", "x", "a poem"]),
            [Fault::Reset, Fault::Hang, Fault::BadRequest, Fault::Hang, Fault::Ok, Fault::BadRequest]
        );
    }

    #[tokio::test]
    async fn a_script_is_taken_whole_or_not_at_all() {
        let mut plan = Plan::new(Behaviour::default());
        let error = plan.script(vec![Step::ok(), Step::ok().times(0)]).unwrap_err();
        assert_eq!(error.to_string(), "step 1: times must be at least 1");
        assert_eq!(plan.script(vec![Step::ok(); MAX_STEPS + 1]), Err(ScriptError::TooLong(MAX_STEPS + 1)));
        assert_eq!(plan.script(vec![]), Ok(ScriptSize { queued: 0, rules: 0 }));
    }

    #[tokio::test]
    async fn a_request_over_the_limit_takes_nothing_from_the_script() {
        let mut plan = Plan::new(Behaviour { requests_per_minute: Some(1), ..Behaviour::default() });
        plan.script(vec![Step::ok(), Step::fault(Fault::Hang)]).unwrap();
        let now = Instant::now();
        assert!(plan.decide("", now).action.is_some());
        assert_eq!(plan.decide("", now).action, None);
        let later = plan.decide("", now + Duration::from_mins(2)).action.unwrap();
        assert_eq!(later.fault, Fault::Hang);
    }
}
