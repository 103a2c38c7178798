//! The circuit, one story at a time; any story at all is [`oracle`]'s and [`always`]'s.

mod always;
mod clock;
mod credential;
mod oracle;

use super::*;
use crate::guard::class::CallKind;

pub(super) const START: i64 = 1_772_323_200;

pub(super) fn at(millis: i64) -> Time {
    DateTime::from_timestamp_millis(START * 1_000 + millis).unwrap()
}

pub(super) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) fn print(nr: usize) -> Fingerprint {
    Fingerprint(format!("key-{nr}"))
}

fn outcome(kind: OutcomeKind) -> Outcome {
    match kind {
        OutcomeKind::Success => Outcome::Success { latency: ms(900) },
        OutcomeKind::ServerError => Outcome::ServerError,
        OutcomeKind::Connect => Outcome::Connect,
        OutcomeKind::SilentSocket => Outcome::SilentSocket,
        OutcomeKind::Deadline => Outcome::Deadline,
        OutcomeKind::SlowDown => Outcome::SlowDown,
        OutcomeKind::RateLimited => Outcome::RateLimited { pause: Some(ms(7_000)) },
        OutcomeKind::Content => Outcome::Content,
        OutcomeKind::CredentialRefused => refusal(0),
        OutcomeKind::Cancelled => Outcome::Cancelled,
    }
}

fn refusal(key: usize) -> Outcome {
    Outcome::CredentialRefused { reason: "insufficient_quota".to_owned(), credential: print(key) }
}

fn worker(nr: u128) -> Uuid {
    Uuid::from_u128(nr)
}

/// A circuit with the defaults for text, and a clock in milliseconds.
struct Story {
    circuit: Circuit,
    settings: GuardSettings,
    now: i64,
}

impl Story {
    fn new() -> Self {
        Self { circuit: Circuit::new(at(0)), settings: GuardSettings::defaults(CallKind::Text), now: 0 }
    }

    fn event(&mut self, event: Event) -> Vec<Effect> {
        let (circuit, effects) = step(self.circuit.clone(), &self.settings, event, at(self.now));
        self.circuit = circuit;
        effects
    }

    /// A call that ended just now, after a second.
    fn call(&mut self, kind: OutcomeKind) -> Vec<Effect> {
        self.ended(outcome(kind), 1_000, 0)
    }

    fn calls(&mut self, kind: OutcomeKind, calls: usize) {
        (0..calls).for_each(|_| drop(self.call(kind)));
    }

    fn ended(&mut self, outcome: Outcome, began_ago: u64, ended_ago: u64) -> Vec<Effect> {
        let call = Observation { outcome, began_ago: ms(began_ago), ended_ago: ms(ended_ago) };
        self.event(Event::Observed(vec![call]))
    }

    fn wait(&mut self, seconds: i64) -> Vec<Effect> {
        self.now += seconds * 1_000;
        self.event(Event::Tick)
    }

    fn take(&mut self, holder: u128) -> Result<u64, Option<Time>> {
        match self.event(Event::TakeProbe { holder: worker(holder) }).pop() {
            Some(Effect::ProbeGranted { epoch, .. }) => Ok(epoch),
            Some(Effect::ProbeRefused { until }) => Err(until),
            other => panic!("{other:?}"),
        }
    }

    fn probe(&mut self, kind: OutcomeKind) -> Vec<Effect> {
        let epoch = self.take(1).unwrap();
        self.event(Event::ProbeEnded { epoch, outcome: outcome(kind) })
    }

    fn state(&self) -> &'static str {
        self.circuit.state().name()
    }

    fn decide(&self, enabled: bool, key: usize) -> Decision {
        decide(&self.circuit, &self.settings, enabled, &print(key), at(self.now))
    }

    /// Five failures, and it is open.
    fn open(&mut self) {
        self.now += 1_000;
        self.calls(OutcomeKind::ServerError, 5);
        assert_eq!(self.state(), "open");
    }

    fn half_open(&mut self) {
        self.open();
        self.wait(20);
        assert_eq!(self.state(), "half_open");
    }
}

const WHOLE: Decision = Decision::Admit { share: Share::WHOLE };

#[test]
fn it_opens_at_half_of_at_least_five_calls() {
    let mut story = Story::new();
    story.calls(OutcomeKind::ServerError, 4);
    assert_eq!((story.state(), story.decide(true, 0)), ("closed", WHOLE));
    let opened = story.call(OutcomeKind::Success);
    let until = Some(at(20_000));
    assert_eq!(opened, [Effect::Opened { trigger: Trigger::FailureRate, failure_rate: 0.8, until }]);
    assert_eq!(story.decide(true, 0), Decision::Wait { until, why: Waiting::Open });

    let mut story = Story::new();
    story.calls(OutcomeKind::Success, 10);
    story.calls(OutcomeKind::Connect, 9);
    assert_eq!(story.state(), "closed");
    assert_eq!(story.call(OutcomeKind::Connect).len(), 1);
}

#[test]
fn what_each_kind_alone_does() {
    for kind in OutcomeKind::ALL {
        let mut story = Story::new();
        let mut needed = 0;
        while story.state() == "closed" && needed < 40 {
            story.call(kind);
            needed += 1;
        }
        let expected = match kind {
            OutcomeKind::ServerError | OutcomeKind::Connect | OutcomeKind::SlowDown => ("open", 5),
            OutcomeKind::Deadline | OutcomeKind::SilentSocket => ("open", 3),
            OutcomeKind::CredentialRefused => ("disabled", 1),
            OutcomeKind::Success
            | OutcomeKind::RateLimited
            | OutcomeKind::Content
            | OutcomeKind::Cancelled => ("closed", 40),
        };
        assert_eq!((story.state(), needed), expected, "{kind:?}");
        assert_eq!(story.circuit.samples().count() == 0, needed == 1 || kind == OutcomeKind::Cancelled);
    }
}

#[test]
fn three_timeouts_of_one_caller_are_a_row_though_the_first_is_old_news() {
    let mut story = Story::new();
    for nr in 1..=3 {
        assert_eq!(story.state(), "closed");
        story.wait(90);
        let effects = story.ended(Outcome::Deadline, 90_000, 0);
        assert_eq!(effects.len(), usize::from(nr == 3), "{effects:?}");
    }
    assert_eq!(story.state(), "open");
}

#[test]
fn what_breaks_a_row_and_what_does_not() {
    for kind in OutcomeKind::ALL {
        let mut story = Story::new();
        story.calls(OutcomeKind::Deadline, 2);
        story.call(kind);
        if story.state() == "disabled" {
            continue;
        }
        story.call(OutcomeKind::Deadline);
        let expected = if kind.is_answer() { "closed" } else { "open" };
        assert_eq!(story.state(), expected, "{kind:?}");
    }
    let mut overnight = Story::new();
    overnight.calls(OutcomeKind::Deadline, 2);
    overnight.wait(3_600);
    overnight.call(OutcomeKind::Deadline);
    assert_eq!(overnight.state(), "closed");
}

#[test]
fn a_batch_is_read_in_the_order_in_which_the_calls_ended() {
    let call = |outcome, ended_ago| Observation { outcome, began_ago: ms(60_000), ended_ago: ms(ended_ago) };
    let success = Outcome::Success { latency: ms(1) };
    let mut story = Story::new();
    story.now = 100_000;
    // The success came before all of them, the last timeout was reported first.
    story.event(Event::Observed(vec![
        call(Outcome::Deadline, 10),
        call(Outcome::Deadline, 30),
        call(success.clone(), 40),
        call(Outcome::Deadline, 20),
    ]));
    assert_eq!(story.state(), "open");

    let mut story = Story::new();
    story.now = 100_000;
    story.event(Event::Observed(vec![call(Outcome::Deadline, 10), call(Outcome::Deadline, 30)]));
    // From another worker, and it lies between them.
    story.event(Event::Observed(vec![call(success, 20)]));
    story.event(Event::Observed(vec![call(Outcome::Deadline, 5)]));
    assert_eq!(story.state(), "closed");
}

#[test]
fn old_news_does_not_count() {
    let mut story = Story::new();
    story.calls(OutcomeKind::ServerError, 4);
    story.wait(121);
    story.call(OutcomeKind::ServerError);
    assert_eq!(story.state(), "closed");
    assert_eq!(story.circuit.tally(&story.settings, at(story.now)).attempts, 1);
    // Reported late.
    let late = Observation { outcome: Outcome::ServerError, began_ago: ms(130_000), ended_ago: ms(120_001) };
    story.event(Event::Observed(vec![late; 5]));
    assert_eq!((story.state(), story.circuit.samples().count()), ("closed", 5));
}

#[test]
fn it_closes_after_three_good_probes_and_lets_calls_return_one_by_one() {
    let mut story = Story::new();
    story.half_open();
    assert_eq!(story.decide(true, 0), Decision::ProbeOnly);
    for _ in 0..2 {
        assert_eq!(story.probe(OutcomeKind::Success), []);
        assert_eq!(
            story.decide(true, 0),
            Decision::Wait { until: Some(at(story.now + 2_000)), why: Waiting::Probe }
        );
        story.wait(2);
    }
    let down_for = ms(24_000);
    assert_eq!(story.probe(OutcomeKind::Content), [Effect::Closed { by: ClosedBy::Probes, down_for }]);
    assert_eq!(story.circuit.samples().count(), 0);
    for (seconds, calls) in [(0, 1), (15, 5), (15, 10)] {
        story.wait(seconds);
        let Decision::Admit { share } = story.decide(true, 0) else { panic!() };
        assert_eq!(share.of(10), calls);
    }
}

#[test]
fn calls_that_began_before_it_closed_do_not_open_it_again() {
    let mut story = Story::new();
    story.half_open();
    for _ in 0..3 {
        story.probe(OutcomeKind::Success);
        story.wait(2);
    }
    story.wait(30);
    for _ in 0..5 {
        story.ended(Outcome::Deadline, 60_000, 0);
    }
    assert_eq!((story.state(), story.circuit.samples().count()), ("closed", 0));
    for _ in 0..3 {
        story.ended(Outcome::Deadline, 31_000, 0);
    }
    assert_eq!(story.state(), "open");
}

#[test]
fn what_was_under_way_changes_nothing_while_it_is_open_or_half_open() {
    let mut story = Story::new();
    story.open();
    story.calls(OutcomeKind::Success, 30);
    story.wait(20);
    story.calls(OutcomeKind::Deadline, 3);
    assert_eq!(story.state(), "half_open");
    assert_eq!(story.circuit.samples().count(), 30);
}

#[test]
fn each_trip_lasts_longer_until_it_was_closed_for_long() {
    let mut story = Story::new();
    story.half_open();
    for period in [40, 80, 160, 300, 300] {
        let effects = story.probe(OutcomeKind::Deadline);
        let until = Some(at(story.now + period * 1_000));
        assert!(matches!(
            effects[..],
            [Effect::Opened { trigger: Trigger::Probe(OutcomeKind::Deadline), until: u, .. }] if u == until
        ));
        assert_eq!(story.wait(period), [Effect::HalfOpened]);
    }
    let close = |story: &mut Story| {
        for _ in 0..3 {
            story.probe(OutcomeKind::Success);
            story.wait(2);
        }
        assert_eq!(story.state(), "closed");
    };
    let opened_for = |story: &mut Story| {
        story.open();
        let State::Open { since, until: Some(until), .. } = *story.circuit.state() else { panic!() };
        between(since, until).as_secs()
    };
    close(&mut story);
    story.wait(290);
    assert_eq!(opened_for(&mut story), 300);
    story.wait(300);
    close(&mut story);
    let State::Closed { since, .. } = *story.circuit.state() else { panic!() };
    // A second passes before it opens.
    story.now = since.timestamp_millis() - START * 1_000 + 299_000;
    assert_eq!(opened_for(&mut story), 20);
}

#[test]
fn a_probe_that_is_rate_limited_pauses_and_says_nothing() {
    let mut story = Story::new();
    story.half_open();
    story.probe(OutcomeKind::Success);
    story.wait(2);
    assert_eq!(story.probe(OutcomeKind::RateLimited), []);
    assert_eq!(story.take(2), Err(Some(at(story.now + 7_000))));
    story.wait(7);
    let State::HalfOpen { successes: 1, .. } = story.circuit.state() else { panic!() };
    story.probe(OutcomeKind::Success);
}

#[test]
fn a_probe_that_fails_lightly_begins_the_row_of_successes_anew() {
    let mut story = Story::new();
    story.settings.weights.connect = 0.3;
    story.half_open();
    for kind in [OutcomeKind::Success, OutcomeKind::Connect, OutcomeKind::Success, OutcomeKind::Success] {
        story.probe(kind);
        story.wait(2);
    }
    assert_eq!(story.state(), "half_open");
    story.probe(OutcomeKind::Success);
    assert_eq!(story.state(), "closed");
}

#[test]
fn a_probe_that_is_cancelled_is_somebody_elses_at_once() {
    let mut story = Story::new();
    story.half_open();
    let first = story.take(1).unwrap();
    assert!(story.take(2).is_err());
    story.event(Event::ProbeGivenBack { epoch: first });
    let second = story.take(2).unwrap();
    assert!(second > first);
    // Too late: it is not its turn any more.
    story.event(Event::ProbeEnded { epoch: first, outcome: Outcome::ServerError });
    assert_eq!(story.state(), "half_open");
    story.event(Event::ProbeEnded { epoch: second, outcome: Outcome::ServerError });
    assert_eq!(story.state(), "open");
}

#[test]
fn a_prober_that_dies_is_replaced_when_its_lease_ends() {
    let mut story = Story::new();
    story.half_open();
    let dead = story.take(1).unwrap();
    let until = at(story.now + 105_000);
    assert_eq!(story.take(2), Err(Some(until)));
    assert_eq!(story.decide(true, 0), Decision::Wait { until: Some(until), why: Waiting::Probe });
    let lost = story.wait(105);
    assert_eq!(lost, [Effect::ProbeLost(ProbeLease { holder: worker(1), epoch: dead, until })]);
    story.take(2).unwrap();
    assert_eq!(story.event(Event::ProbeEnded { epoch: dead, outcome: Outcome::ServerError }), []);
    assert_eq!(story.state(), "half_open");
}

#[test]
fn switched_off_it_decides_nothing_but_still_keeps_count() {
    let mut story = Story::new();
    story.open();
    assert_eq!(story.decide(false, 0), WHOLE);
    story.wait(20);
    assert_eq!((story.state(), story.decide(false, 0)), ("half_open", WHOLE));

    story.event(Event::OperatorOpen { until: None });
    assert_eq!(story.decide(false, 0), Decision::Wait { until: None, why: Waiting::Operator });
    story.event(Event::OperatorClose);
    assert_eq!(story.decide(false, 0), WHOLE);

    story.call(OutcomeKind::CredentialRefused);
    let Decision::Wait { why: Waiting::Credential, .. } = story.decide(false, 0) else { panic!() };
}

#[test]
fn the_operators_word_holds_until_its_end() {
    let mut story = Story::new();
    story.event(Event::OperatorOpen { until: Some(at(60_000)) });
    story.calls(OutcomeKind::Success, 30);
    story.call(OutcomeKind::CredentialRefused);
    assert_eq!(story.decide(true, 0), Decision::Wait { until: Some(at(60_000)), why: Waiting::Operator });
    assert_eq!(story.wait(60), [Effect::HalfOpened]);
    let closed = story.event(Event::OperatorClose);
    assert_eq!(closed, [Effect::Closed { by: ClosedBy::Operator, down_for: ms(60_000) }]);
    assert_eq!(story.event(Event::OperatorClose), []);
}

#[test]
fn what_is_due_is_so_before_anybody_steps() {
    let mut story = Story::new();
    story.open();
    story.now = 21_000 - 1;
    assert_eq!(story.decide(true, 0), Decision::Wait { until: Some(at(21_000)), why: Waiting::Open });
    story.now += 1;
    assert_eq!((story.state(), story.decide(true, 0)), ("open", Decision::ProbeOnly));

    let mut story = Story::new();
    story.ended(refusal(1), 10, 0);
    story.event(Event::CredentialInUse { credential: print(2) });
    story.now = 600_000 - 1;
    let until = Some(at(600_000));
    assert_eq!(story.decide(true, 1), Decision::Wait { until, why: Waiting::Credential });
    story.now += 1;
    assert_eq!(story.decide(true, 1), WHOLE);
}

#[test]
fn open_time_is_right_across_midnight_and_while_it_runs() {
    // Ten seconds before midnight.
    let mut story = Story::new();
    story.now = 86_390_000 - 1_000;
    story.event(Event::Tick);
    story.open();
    let (today, tomorrow) = (at(0).date_naive(), at(86_400_000).date_naive());
    story.now += 4_000;
    assert_eq!(story.circuit.open_time(today, at(story.now)), ms(4_000));
    story.now += 11_000;
    assert_eq!(story.circuit.open_time(today, at(story.now)), ms(10_000));
    assert_eq!(story.circuit.open_time(tomorrow, at(story.now)), ms(5_000));
    // Nobody looks for an hour: it was due long before.
    assert_eq!(story.wait(3_600), [Effect::HalfOpened]);
    assert_eq!(story.circuit.open_time(tomorrow, at(story.now)), ms(10_000));
    story.probe(OutcomeKind::Connect);
    story.now += 1_000;
    assert_eq!(story.circuit.open_time(tomorrow, at(story.now)), ms(11_000));
    assert_eq!(story.circuit.open_time(today, at(story.now)), ms(10_000));
}

#[test]
fn it_is_small_when_stored() {
    let mut story = Story::new();
    story.open();
    story.calls(OutcomeKind::CredentialRefused, 1);
    story.calls(OutcomeKind::SilentSocket, 30);
    let size = serde_json::to_string(&story.circuit).unwrap().len();
    assert!(size < 2_500, "{size} bytes");
}
