//! What calls are given, by what calls took.

use super::*;

fn at(minutes: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + minutes * 60, 0).unwrap()
}

fn seen(seconds: u64, answered: usize, timed_out: usize) -> Sketch {
    let mut sketch = Sketch::default();
    for _ in 0..answered {
        sketch.answered(Duration::from_secs(seconds));
    }
    for _ in 0..timed_out {
        sketch.censored();
    }
    sketch
}

fn given(seconds: u64, answered: usize, timed_out: usize) -> f64 {
    let settings = GuardSettings::defaults(CallKind::Text);
    let mut latencies = Latencies::default();
    latencies.add(&seen(seconds, answered, timed_out), &settings, at(0));
    timeout(&latencies, &settings, at(0)).as_secs_f64()
}

#[test]
#[expect(clippy::float_cmp, reason = "the limits are exact")]
fn between_the_floor_and_the_ceiling() {
    assert_eq!(given(50, 19, 0), 60.0, "nothing to go by");
    assert_eq!(given(2, 20, 0), 45.0);
    assert!((given(50, 20, 0) - 60.0).abs() <= 2.5);
    assert!((given(70, 100, 5) - 80.0).abs() <= 3.5);
    assert_eq!(given(85, 20, 0), 90.0);
    // One in twenty may take longer than anybody waits; with more of them, nobody knows how long is long enough.
    assert_eq!(given(2, 95, 5), 45.0);
    assert_eq!(given(2, 94, 6), 90.0);
    assert_eq!(given(2, 0, 20), 90.0);
    assert_eq!(given(2, 0, 19), 60.0);
}

#[test]
fn old_latencies_leave_slice_by_slice() {
    let settings = GuardSettings::defaults(CallKind::Text);
    let mut latencies = Latencies::default();
    for slice in 0..6 {
        latencies.add(&seen(60, 10, 0), &settings, at(slice * 10));
    }
    let counts: Vec<u64> = (5..12).map(|slice| latencies.recent(&settings, at(slice * 10)).count()).collect();
    assert_eq!(counts, [60, 50, 40, 30, 20, 10, 0]);
    latencies.add(&seen(1, 1, 0), &settings, at(110));
    assert_eq!((latencies.slices.len(), latencies.recent(&settings, at(110)).count()), (1, 1));
}

#[test]
fn after_the_clock_went_back_nothing_of_a_time_to_come_is_believed() {
    let settings = GuardSettings::defaults(CallKind::Text);
    let mut latencies = Latencies::default();
    latencies.add(&seen(60, 20, 0), &settings, at(600));
    assert_eq!(latencies.recent(&settings, at(0)).count(), 0);
    latencies.add(&seen(1, 1, 0), &settings, at(0));
    assert_eq!((latencies.slices.len(), latencies.recent(&settings, at(0)).count()), (1, 1));
}

#[test]
fn stored_and_read_they_are_the_same() {
    let settings = GuardSettings::defaults(CallKind::Image);
    let mut latencies = Latencies::default();
    latencies.add(&seen(60, 20, 1), &settings, at(0));
    latencies.add(&seen(20, 20, 1), &settings, at(20));
    let stored = serde_json::to_value(&latencies).unwrap();
    assert_eq!(serde_json::from_value::<Latencies>(stored).unwrap(), latencies);
}
