//! A clock that goes back.

use super::*;

#[test]
fn a_clock_that_goes_back_far_takes_the_circuit_with_it() {
    let mut story = Story::new();
    story.open();
    story.now -= 3_600_000;
    let until = Some(at(story.now + 20_000));
    assert_eq!(story.decide(true, 0), Decision::Wait { until, why: Waiting::Open });
    story.wait(20);
    // The first step after it was the clock's; the period runs from there.
    story.wait(20);
    assert_eq!(story.state(), "half_open");
}

#[test]
fn after_the_clock_went_back_far_new_samples_are_still_the_newest() {
    let mut story = Story::new();
    story.calls(OutcomeKind::Success, 30);
    story.now -= 3_600_000;
    story.calls(OutcomeKind::ServerError, 15);
    assert_eq!(story.state(), "open");
}

#[test]
fn times_a_little_out_of_order_shorten_nothing() {
    let mut story = Story::new();
    story.open();
    let until = Some(at(21_000));
    for nr in 0..1_000 {
        story.now = if nr % 2 == 0 { 10_000 } else { 5_000 };
        story.event(Event::Tick);
    }
    assert_eq!(story.decide(true, 0), Decision::Wait { until, why: Waiting::Open });
}

#[test]
fn a_clock_that_goes_back_far_little_by_little_takes_it_along_too() {
    let mut story = Story::new();
    story.open();
    for _ in 0..400 {
        story.now -= 9_000;
        story.event(Event::Tick);
    }
    let Decision::Wait { until: Some(until), .. } = story.decide(true, 0) else { panic!() };
    assert!(between(at(story.now), until) <= ms(30_000));
}
