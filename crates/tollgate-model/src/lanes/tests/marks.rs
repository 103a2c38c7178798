//! What a claim may leave out, and for how long.

use std::collections::BTreeMap;

use super::super::marks::Marks;
use super::*;

const MS: Duration = Duration::from_millis(1);

/// The least lateness that is told from none.
const LEAST: Duration = Duration::from_millis(50);

fn covers(spans: &[Span], place: Place) -> bool {
    spans.iter().filter(|span| span.after < place && place.rank <= span.until_rank).count() == 1
}

/// Disjoint, in order, from the first rank to the last.
fn assert_in_order(spans: &[Span]) {
    for span in spans {
        assert!(span.after.rank <= span.until_rank, "{spans:?}");
    }
    for pair in spans.windows(2) {
        // The next begins within the rank after the last one's end, so no rank is left out and none is in both.
        assert_eq!(pair[1].after.rank, pair[0].until_rank + 1, "{spans:?}");
    }
    assert!(spans[0].after.rank <= 1 && spans.last().is_some_and(|span| span.until_rank == 20), "{spans:?}");
}

proptest! {
    /// At every moment, in every rank, all that stands behind the last task taken is looked at.
    #[test]
    fn what_was_never_reached_is_always_looked_at(
        steps in vec((1..20_000_u32, vec((1..=20_i16, 1..50_i64), 0..4)), 1..80),
    ) {
        let mut marks = Marks::default();
        let mut now = Duration::ZERO;
        let mut reached = BTreeMap::new();
        for (pause, taken) in steps {
            now += MS * pause;
            let spans = marks.spans(now);
            assert_in_order(&spans);
            for rank in 1..=20 {
                let last = reached.get(&rank).copied().unwrap_or(0);
                for beyond in [1, 2, 1_000] {
                    let place = Place { rank, position: last + beyond };
                    prop_assert!(covers(&spans, place), "{place:?} is not in {spans:?}");
                }
            }
            for (rank, step) in taken {
                let last = reached.entry(rank).or_insert(0);
                *last += step;
                marks.reached(Place { rank, position: *last }, now);
            }
        }
    }

    /// One that was committed `late` after a task behind it was taken: looked at within 32 times that.
    #[test]
    fn a_straggler_is_looked_for_in_time(
        before in 0..100_000_u32, late in 1..20_000_u32, pauses in vec(1..200_u32, 8), other in 1..=20_i16,
    ) {
        let mut marks = Marks::default();
        let mut now = Duration::ZERO;
        let mut position = 10;
        let (mut overtaken, mut committed) = (None, Duration::MAX);
        let mut pauses = pauses.into_iter().cycle();
        // Longer than any that is late may take.
        while now < Duration::from_hours(1) {
            now += MS * pauses.next().unwrap();
            let spans = marks.spans(now);
            if let Some(place) = overtaken && now >= committed {
                if covers(&spans, place) {
                    return Ok(());
                }
                let patience = 32 * LEAST.max(MS * late);
                prop_assert!(now < committed + patience, "not yet at {now:?}, committed at {committed:?}: {spans:?}");
            }
            if overtaken.is_none() && now >= MS * before {
                overtaken = Some(Place { rank: 10, position: position + 5 });
                committed = now + MS * late;
            }
            position += 10;
            marks.reached(Place { rank: 10, position }, now);
            marks.reached(Place { rank: other, position: position + 1 }, now);
        }
        prop_assert!(false, "not within an hour");
    }

    /// Whatever stands anywhere is looked at before half an hour is over.
    #[test]
    fn nothing_is_left_out_for_ever(pause in 1..60_000_u32, rank in 1..=20_i16, at in 1..1_000_i64) {
        let mut marks = Marks::default();
        let mut now = Duration::ZERO;
        let mut seen = now;
        let place = Place { rank, position: at };
        for step in 0..4_000_000_u32 / pause {
            now += MS * pause;
            if covers(&marks.spans(now), place) {
                seen = now;
            }
            prop_assert!(now <= seen + Duration::from_secs(1_700), "not looked at from {seen:?} to {now:?}");
            marks.reached(Place { rank, position: 1_000 + i64::from(step) }, now);
            if step > 5_000 {
                break;
            }
        }
    }
}

/// The point of it all: while claims come one after the other, a look back is short.
#[test]
fn most_claims_begin_where_the_last_one_stopped() {
    let mut marks = Marks::default();
    let (mut again, mut claims) = (0_i64, 0_i64);
    for step in 1..=100_000_i64 {
        let now = MS * 10 * u32::try_from(step).unwrap();
        let spans = marks.spans(now);
        let after = spans.last().unwrap().after;
        // One task a claim, so the distance is in claims, each of which took one task.
        again += step - 1 - after.position.max(0);
        claims += 1;
        marks.reached(Place { rank: 10, position: step }, now);
    }
    // 10 ms apart: what level 0 looks back on is 5 to 15 claims.
    let stepped = again as f64 / claims as f64;
    println!("{stepped:.1} tasks stepped over a claim");
    assert!(stepped < 40.0, "{stepped}");
}
