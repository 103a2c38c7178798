//! What holds after any sequence of events, whatever the clock does meanwhile.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::oracle::{Input, inputs, settings};
use super::*;

/// Steps of the clock: mostly small and forward, some back a little, some far either way.
fn clock_step() -> impl Strategy<Value = i64> {
    prop_oneof![
        12 => 0..12_000_i64,
        3 => -9_000..0_i64,
        1 => -500_000..-10_001_i64,
        1 => 12_000..500_000_i64,
    ]
}

proptest! {
    #[test]
    fn one_probe_at_a_time_and_no_epoch_twice(story in prop::collection::vec((clock_step(), inputs()), 1..120)) {
        let settings = settings();
        let (mut circuit, mut now) = (Circuit::new(at(0)), 0);
        let mut live = None;
        let mut used = BTreeSet::new();
        for (advance, input) in story {
            now += advance;
            let event = input.event(circuit.epoch);
            let ended = match &event {
                Event::ProbeEnded { epoch, .. } | Event::ProbeGivenBack { epoch } => Some(*epoch),
                _ => None,
            };
            let (next, effects) = step(circuit, &settings, event, at(now));
            circuit = next;
            for effect in effects {
                match effect {
                    Effect::ProbeGranted { epoch, .. } => {
                        prop_assert_eq!(live, None, "two probes at once");
                        prop_assert!(used.last().is_none_or(|last| *last < epoch), "epoch {} again", epoch);
                        used.insert(epoch);
                        live = Some(epoch);
                    }
                    Effect::ProbeLost(lost) => {
                        prop_assert_eq!(live, Some(lost.epoch));
                        live = None;
                    }
                    Effect::Opened { .. } | Effect::Closed { .. } | Effect::Disabled { .. } => live = None,
                    Effect::HalfOpened | Effect::ProbeRefused { .. } => {}
                }
            }
            if ended == live {
                live = None;
            }
        }
    }

    /// However the clock steps, nobody is told to wait for longer than the settings say.
    #[test]
    fn no_step_of_the_clock_makes_anybody_wait_for_long(
        story in prop::collection::vec((clock_step(), inputs()), 1..120), then in -500_000..500_000_i64,
    ) {
        let settings = settings();
        let (mut circuit, mut now) = (Circuit::new(at(0)), 0);
        for (advance, input) in story {
            now += advance;
            if matches!(input, Input::OperatorOpen(_)) {
                continue;
            }
            (circuit, _) = step(circuit.clone(), &settings, input.event(circuit.epoch), at(now));
        }
        now += then;
        let longest = [settings.open_period_cap, settings.probe_lease(), settings.credential_recheck]
            .into_iter().max().unwrap();
        let slack = MOST_DISORDER.to_std().unwrap();
        if let Decision::Wait { until, .. } = decide(&circuit, &settings, true, &print(0), at(now)) {
            let wait = between(at(now), until.unwrap());
            prop_assert!(wait <= longest + slack, "{:?} of {:?}", wait, circuit.state());
        }
    }

    /// What is decided and what is granted are one.
    #[test]
    fn a_probe_is_granted_where_it_was_decided_and_nowhere_else(
        story in prop::collection::vec((clock_step(), inputs()), 0..80), then in -20_000..200_000_i64,
    ) {
        let settings = settings();
        let (mut circuit, mut now) = (Circuit::new(at(0)), 0);
        for (advance, input) in story {
            now += advance;
            (circuit, _) = step(circuit.clone(), &settings, input.event(circuit.epoch), at(now));
        }
        now += then;
        let key = match circuit.state() {
            State::Disabled { credential, .. } => credential.clone(),
            _ => Fingerprint("another".to_owned()),
        };
        let decision = decide(&circuit, &settings, true, &key, at(now));
        let (_, effects) = step(circuit, &settings, Event::TakeProbe { holder: worker(1) }, at(now));
        match (decision, effects.last().unwrap()) {
            (Decision::ProbeOnly, Effect::ProbeGranted { .. })
            | (Decision::Admit { .. }, Effect::ProbeRefused { until: None }) => {}
            (Decision::Wait { until, .. }, Effect::ProbeRefused { until: refused }) => {
                prop_assert_eq!(until, *refused);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn stored_and_read_it_is_the_same(story in prop::collection::vec((clock_step(), inputs()), 0..80)) {
        let settings = settings();
        let (mut circuit, mut now) = (Circuit::new(at(0)), 0);
        for (advance, input) in story {
            now += advance;
            (circuit, _) = step(circuit.clone(), &settings, input.event(circuit.epoch), at(now));
        }
        let stored = serde_json::to_value(&circuit).unwrap();
        prop_assert_eq!(serde_json::from_value::<Circuit>(stored).unwrap(), circuit);
    }

    /// Periods between two that were closed for long.
    #[test]
    fn open_periods_never_shrink_within_a_run_and_are_capped(
        story in prop::collection::vec((0..15_000_i64, inputs()), 1..200),
    ) {
        let settings = settings();
        let (mut circuit, mut now) = (Circuit::new(at(0)), 0);
        let mut last = Duration::ZERO;
        for (advance, input) in story {
            now += advance;
            let event = input.event(circuit.epoch);
            if let State::Closed { since, .. } = circuit.state()
                && between(*since, at(now)) >= settings.trips_forgotten_after
            {
                last = Duration::ZERO;
            }
            if event == Event::OperatorClose {
                last = Duration::ZERO;
            }
            let (next, effects) = step(circuit, &settings, event, at(now));
            circuit = next;
            for effect in effects {
                if let Effect::Opened { trigger, until: Some(until), .. } = effect
                    && trigger != Trigger::Operator
                {
                    let period = between(at(now), until);
                    prop_assert!(period >= last && period <= settings.open_period_cap, "{last:?}, {period:?}");
                    prop_assert!(period >= settings.open_period);
                    prop_assert!(
                        period >= last.mul_f64(settings.open_growth).min(settings.open_period_cap)
                    );
                    last = period;
                }
            }
        }
    }
}
