//! The sketch against sorting.

use proptest::prelude::*;

use super::*;

fn sketch(millis: &[u64], censored: usize) -> Sketch {
    let mut sketch = Sketch::default();
    for ms in millis {
        sketch.answered(Duration::from_millis(*ms));
    }
    for _ in 0..censored {
        sketch.censored();
    }
    sketch
}

fn merged(one: &Sketch, other: &Sketch) -> Sketch {
    let mut sum = one.clone();
    sum.merge(other);
    sum
}

/// Over all that a sketch can tell apart.
fn latencies() -> impl Strategy<Value = Vec<u64>> {
    let latency = prop_oneof![10..100_u64, 100..1_000_u64, 1_000..10_000_u64, 10_000..1_980_000_u64];
    prop::collection::vec(latency, 1..200)
}

fn any_sketch() -> impl Strategy<Value = Sketch> {
    (latencies(), 0..20_usize).prop_map(|(millis, censored)| sketch(&millis, censored))
}

proptest! {
    #[test]
    fn a_quantile_is_right_to_a_twentieth(mut millis in latencies(), percent in 1..=100_u8) {
        let Some(Quantile::At(found)) = sketch(&millis, 0).quantile(percent) else { panic!() };
        millis.sort_unstable();
        let exact = millis[(millis.len() * usize::from(percent)).div_ceil(100) - 1] as f64 / 1_000.0;
        prop_assert!((found.as_secs_f64() - exact).abs() <= 0.05 * exact, "{found:?} for {exact} s");
    }

    #[test]
    fn merging_is_adding_in_any_order(a in any_sketch(), b in any_sketch(), c in any_sketch()) {
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&a, &b).count(), a.count() + b.count());
        prop_assert_eq!(merged(&a, &Sketch::default()), a);
    }

    #[test]
    fn giving_up_never_lowers_a_quantile(millis in latencies(), more in 1..50_usize, percent in 1..=100_u8) {
        let mut sketch = sketch(&millis, 0);
        for _ in 0..more {
            let before = sketch.quantile(percent);
            sketch.censored();
            prop_assert!(sketch.quantile(percent) >= before);
        }
    }

    #[test]
    fn beyond_a_twentieth_of_them_nobody_knows(answered in 0..300_usize, censored in 0..30_usize) {
        prop_assume!(answered + censored > 0);
        let found = sketch(&vec![1_000; answered], censored).quantile(95).unwrap();
        prop_assert_eq!(found == Quantile::Beyond, censored * 20 > answered + censored);
    }

    #[test]
    fn stored_and_read_it_is_the_same(sketch in any_sketch()) {
        let stored = serde_json::to_value(&sketch).unwrap();
        prop_assert_eq!(serde_json::from_value::<Sketch>(stored).unwrap(), sketch);
    }
}

#[test]
fn its_size_is_fixed_and_the_ends_are_open() {
    let all: Vec<u64> = (0..10_000_000).step_by(997).collect();
    let all = sketch(&all, 0);
    assert!(all.bins.len() <= usize::from(LAST) + 1);
    let Some(Quantile::At(longest)) = all.quantile(100) else { panic!() };
    assert!(longest > Duration::from_mins(30) && longest < Duration::from_mins(34));
    assert!(sketch(&[0], 0).quantile(50).unwrap() < Quantile::At(Duration::from_millis(10)));
    assert_eq!(Sketch::default().quantile(95), None);
    let size = serde_json::to_string(&all).unwrap().len();
    assert!(size < 1_500, "{size} bytes");
}
