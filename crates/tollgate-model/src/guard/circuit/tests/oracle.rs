//! The circuit against another one, written from the specification: it forgets nothing, and finds what counts by looking
//! through all that ever was. Weights in thousandths, times in milliseconds, no clock that goes back.

use proptest::prelude::*;

use super::*;
use crate::guard::settings::Weights;

/// Small figures, so that short stories meet every limit.
pub(super) fn settings() -> GuardSettings {
    let settings = GuardSettings {
        window: 6,
        sample_max_age: ms(30_000),
        min_attempts: 3,
        open_period: ms(10_000),
        open_period_cap: ms(35_000),
        trips_forgotten_after: ms(40_000),
        successes_to_close: 2,
        probe_interval: ms(9_000),
        probe_slack: ms(4_000),
        timeout_floor: ms(1_000),
        timeout_initial: ms(5_000),
        timeout_ceiling: ms(20_000),
        credential_recheck: ms(25_000),
        weights: Weights { deadline: 0.4, ..Weights::default() },
        ..GuardSettings::defaults(CallKind::Text)
    };
    settings.validate().unwrap();
    settings
}

/// An event that does not know yet which epoch is the present one.
#[derive(Debug, Clone)]
pub(super) enum Input {
    Observed(Vec<(OutcomeKind, u64, u64)>),
    Take(u128),
    /// How it ended, and by how many epochs it is out of date.
    Ended(OutcomeKind, u64),
    GiveBack(u64),
    Tick,
    Credential(usize),
    OperatorOpen(Option<i64>),
    OperatorClose,
}

impl Input {
    pub(super) fn event(&self, epoch: u64) -> Event {
        let call = |&(kind, took, ended_ago): &(OutcomeKind, u64, u64)| Observation {
            outcome: outcome(kind),
            began_ago: ms(took + ended_ago),
            ended_ago: ms(ended_ago),
        };
        match self {
            Self::Observed(calls) => Event::Observed(calls.iter().map(call).collect()),
            Self::Take(holder) => Event::TakeProbe { holder: worker(*holder) },
            Self::Ended(kind, stale) => {
                Event::ProbeEnded { epoch: epoch.saturating_sub(*stale), outcome: outcome(*kind) }
            }
            Self::GiveBack(stale) => Event::ProbeGivenBack { epoch: epoch.saturating_sub(*stale) },
            Self::Tick => Event::Tick,
            Self::Credential(key) => Event::CredentialInUse { credential: print(*key) },
            Self::OperatorOpen(until) => Event::OperatorOpen { until: until.map(at) },
            Self::OperatorClose => Event::OperatorClose,
        }
    }
}

pub(super) fn inputs() -> impl Strategy<Value = Input> {
    let kind = || {
        prop_oneof![
            8 => Just(OutcomeKind::Success),
            12 => prop::sample::select(&OutcomeKind::ALL[..8]),
            1 => prop::sample::select(&OutcomeKind::ALL[8..]),
        ]
    };
    // Whole seconds, so that limits are met exactly, and calls end together.
    let seconds = |most: u64| (0..most).prop_map(|seconds| seconds * 1_000);
    let calls = prop::collection::vec((kind(), seconds(25), seconds(40)), 1..5);
    let fresh = kind().prop_map(|kind| vec![(kind, 100, 0)]);
    let stale = || prop_oneof![6 => Just(0_u64), 1 => Just(1_u64)];
    prop_oneof![
        4 => calls.prop_map(Input::Observed),
        6 => fresh.prop_map(Input::Observed),
        8 => (1..4_u128).prop_map(Input::Take),
        8 => (kind(), stale()).prop_map(|(kind, stale)| Input::Ended(kind, stale)),
        1 => stale().prop_map(Input::GiveBack),
        3 => Just(Input::Tick),
        1 => (0..2_usize).prop_map(Input::Credential),
        1 => prop::option::of((0..300_i64).prop_map(|at| at * 1_000)).prop_map(Input::OperatorOpen),
        1 => Just(Input::OperatorClose),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Closed,
    Open,
    Half,
    Off,
}

/// A call: when it ended, how, and (by its place in the list) when it was reported.
type Call = (i64, OutcomeKind);

#[derive(Debug)]
struct Oracle {
    mode: Mode,
    since: i64,
    until: Option<i64>,
    forced: bool,
    calls: Vec<Call>,
    trips: i32,
    wins: u32,
    next: i64,
    lease: Option<i64>,
    epoch: u64,
    /// Until when the one key of this story is known to be refused while there was another.
    old_key: Option<i64>,
    open: i64,
    changes: u32,
}

impl Oracle {
    fn recovered(&self) -> bool {
        self.mode == Mode::Closed && self.changes > 0
    }

    fn new() -> Self {
        Self {
            mode: Mode::Closed,
            since: 0,
            until: None,
            forced: false,
            calls: Vec::new(),
            trips: 0,
            wins: 0,
            next: 0,
            lease: None,
            epoch: 0,
            old_key: None,
            open: 0,
            changes: 0,
        }
    }

    fn go(&mut self, mode: Mode, now: i64) {
        if self.mode == Mode::Open {
            self.open += (self.until.unwrap_or(now).min(now) - self.since).max(0);
        }
        (self.mode, self.since, self.lease) = (mode, now, None);
        self.changes += 1;
    }

    fn trip(&mut self, now: i64) {
        if self.mode == Mode::Closed && now - self.since >= 40_000 {
            self.trips = 0;
        }
        let period = [10_000, 20_000, 35_000][usize::try_from(self.trips.min(2)).unwrap()];
        self.trips += 1;
        self.go(Mode::Open, now);
        (self.until, self.forced) = (Some(now + period), false);
    }

    fn close(&mut self, now: i64) {
        if self.mode != Mode::Closed {
            self.go(Mode::Closed, now);
            self.calls.clear();
        }
    }

    fn refuse(&mut self, now: i64) {
        let since = if self.mode == Mode::Off { self.since } else { now };
        self.go(Mode::Off, now);
        (self.since, self.next) = (since, now + 25_000);
    }

    fn weight(kind: OutcomeKind) -> usize {
        match kind {
            OutcomeKind::ServerError | OutcomeKind::Connect | OutcomeKind::SilentSocket => 1_000,
            OutcomeKind::Deadline => 400,
            OutcomeKind::SlowDown => 500,
            OutcomeKind::RateLimited => 250,
            _ => 0,
        }
    }

    fn should_open(&self, now: i64) -> bool {
        let mut calls = self.calls.clone();
        calls.sort_by_key(|(ended, _)| *ended);
        let last = &calls[calls.len().saturating_sub(6)..];
        let fresh: Vec<_> = last.iter().filter(|(ended, _)| now - ended <= 30_000).collect();
        let weight: usize = fresh.iter().map(|(_, kind)| Self::weight(*kind)).sum();
        let rate = fresh.len() >= 3 && weight * 2 >= fresh.len() * 1_000;

        let silent =
            |kind| matches!(kind, OutcomeKind::Deadline | OutcomeKind::SilentSocket | OutcomeKind::Connect);
        let row: Vec<i64> = last
            .iter()
            .rev()
            .take_while(|(_, kind)| silent(*kind))
            .filter(|(_, kind)| *kind != OutcomeKind::Connect)
            .map(|(ended, _)| *ended)
            .collect();
        let unbroken =
            |row: &[i64]| now - row[0] <= 30_000 && row.windows(2).all(|pair| pair[0] - pair[1] <= 30_000);
        rate || (row.len() >= 3 && unbroken(&row[..3]))
    }

    fn apply(&mut self, input: &Input, now: i64) {
        if self.mode == Mode::Open && self.until.is_some_and(|until| until <= now) {
            self.go(Mode::Half, now);
            (self.wins, self.next) = (0, now);
        }
        if self.lease.is_some_and(|end| end <= now) {
            self.lease = None;
        }
        if self.old_key.is_some_and(|until| until <= now) {
            self.old_key = None;
        }
        let probing = matches!(self.mode, Mode::Half | Mode::Off);
        match input {
            Input::Observed(calls) => {
                let mut calls = calls.clone();
                calls.sort_by_key(|(_, _, ago)| -i64::try_from(*ago).unwrap());
                for (kind, took, ago) in calls {
                    let (took, ago) = (i64::try_from(took).unwrap(), i64::try_from(ago).unwrap());
                    let ended = now - ago;
                    match kind {
                        OutcomeKind::Cancelled => {}
                        OutcomeKind::CredentialRefused => {
                            let forced = self.mode == Mode::Open && self.forced;
                            if self.mode != Mode::Off && !forced && self.old_key.is_none() {
                                self.refuse(now);
                            }
                        }
                        _ if ago > 30_000 || (self.recovered() && ended - took < self.since) => {}
                        _ => {
                            self.calls.push((ended, kind));
                            if self.mode == Mode::Closed && self.should_open(now) {
                                self.trip(now);
                            }
                        }
                    }
                }
            }
            Input::Take(_) if probing && self.lease.is_none() && self.next <= now => {
                (self.lease, self.next, self.epoch) = (Some(now + 24_000), now + 9_000, self.epoch + 1);
            }
            Input::GiveBack(0) | Input::Ended(OutcomeKind::Cancelled, 0) if self.lease.is_some() => {
                (self.lease, self.next) = (None, now);
            }
            Input::Ended(kind, 0) if self.lease.is_some() => self.probed(*kind, now),
            // Key 0 is the only one that is ever refused.
            Input::Credential(1) if self.mode == Mode::Off => {
                self.old_key = Some(now + 25_000);
                self.close(now);
            }
            Input::OperatorOpen(until) => {
                self.go(Mode::Open, now);
                (self.until, self.forced) = (*until, true);
            }
            Input::OperatorClose => {
                self.trips = 0;
                self.close(now);
            }
            _ => {}
        }
    }

    fn probed(&mut self, kind: OutcomeKind, now: i64) {
        self.lease = None;
        match kind {
            OutcomeKind::RateLimited => return self.next = self.next.max(now + 7_000),
            OutcomeKind::CredentialRefused if self.old_key.is_some() => return self.next = now,
            OutcomeKind::CredentialRefused => return self.refuse(now),
            _ => self.calls.push((now, kind)),
        }
        let good = matches!(kind, OutcomeKind::Success | OutcomeKind::Content);
        if self.mode == Mode::Half && good {
            self.wins += 1;
        }
        if good && (self.mode == Mode::Off || self.wins == 2) {
            self.close(now);
        } else if !good && self.mode == Mode::Half {
            self.trip(now);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn both_do_the_same(story in prop::collection::vec((0..8_i64, inputs()), 1..150)) {
        let settings = settings();
        let (mut circuit, mut oracle, mut now) = (Circuit::new(at(0)), Oracle::new(), 0);
        for (seconds, input) in story {
            now += seconds * 1_000;
            (circuit, _) = step(circuit.clone(), &settings, input.event(circuit.epoch), at(now));
            oracle.apply(&input, now);

            let millis = |time: Time| time.timestamp_millis() - START * 1_000;
            let lease = |probing: &Probing| (probing.lease.map(|lease| millis(lease.until)), millis(probing.next_at));
            match circuit.state() {
                State::Closed { since, .. } => {
                    prop_assert_eq!((Mode::Closed, oracle.since), (oracle.mode, millis(*since)));
                }
                State::Open { since, until, by_operator, .. } => {
                    prop_assert_eq!((Mode::Open, oracle.since), (oracle.mode, millis(*since)));
                    prop_assert_eq!((oracle.until, oracle.forced), (until.map(millis), *by_operator));
                }
                State::HalfOpen { since, successes, probing, .. } => {
                    prop_assert_eq!((Mode::Half, oracle.since), (oracle.mode, millis(*since)));
                    prop_assert_eq!(oracle.wins, *successes);
                    prop_assert_eq!((oracle.lease, oracle.next), lease(probing));
                }
                State::Disabled { since, probing, .. } => {
                    prop_assert_eq!((Mode::Off, oracle.since), (oracle.mode, millis(*since)));
                    prop_assert_eq!((oracle.lease, oracle.next), lease(probing));
                }
            }
            prop_assert_eq!(oracle.epoch, circuit.epoch);
            prop_assert_eq!(oracle.trips, i32::try_from(circuit.trips).unwrap());
            let running = match oracle.mode {
                Mode::Open => (oracle.until.unwrap_or(now).min(now) - oracle.since).max(0),
                _ => 0,
            };
            let open = circuit.open_time(at(0).date_naive(), at(now)).as_millis();
            prop_assert_eq!(i128::from(oracle.open + running), i128::try_from(open).unwrap());
        }
    }
}
