//! The bucket against what a quota is: capacity, and so much more as time has brought.

use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;
use crate::guard::class::CallKind;

fn at(millis: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_700_000_000_000 + millis).unwrap()
}

fn settings(capacity: u32, refill: u32, per_ms: u64) -> GuardSettings {
    let settings = GuardSettings {
        bucket_capacity: capacity,
        bucket_refill: refill,
        bucket_refill_per: Duration::from_millis(per_ms),
        ..GuardSettings::defaults(CallKind::Text)
    };
    settings.validate().unwrap();
    settings
}

#[test]
fn five_images_and_then_one_a_minute() {
    let settings = GuardSettings::defaults(CallKind::Image);
    let mut bucket = Bucket::new(&settings, at(0));
    assert_eq!(bucket.take(&settings, 3, at(0)), 3);
    assert_eq!(bucket.take(&settings, 9, at(1_000)), 2);
    assert_eq!(bucket.next_token_at(&settings, at(1_000)), at(60_000));
    assert_eq!(bucket.take(&settings, 9, at(59_999)), 0);
    assert_eq!(bucket.take(&settings, 9, at(60_000)), 1);
    assert_eq!(bucket.take(&settings, 9, at(240_000)), 3);
    assert_eq!(bucket.available(&settings, at(86_400_000)), Some(5));
}

#[test]
fn a_capacity_of_nothing_is_no_bucket() {
    let settings = GuardSettings::defaults(CallKind::Text);
    let mut bucket = Bucket::new(&settings, at(0));
    assert_eq!(bucket.take(&settings, 1_000, at(0)), 1_000);
    assert_eq!(bucket.available(&settings, at(0)), None);
    assert_eq!(bucket.next_token_at(&settings, at(0)), at(0));
}

#[test]
fn the_provider_may_only_lower_it() {
    let settings = settings(10, 1, 1_000);
    let mut bucket = Bucket::new(&settings, at(0));
    bucket.lower(&settings, 4, at(0));
    assert_eq!(bucket.available(&settings, at(0)), Some(4));
    bucket.lower(&settings, 9, at(0));
    assert_eq!(bucket.available(&settings, at(0)), Some(4));
    bucket.lower(&settings, 0, at(0));
    assert_eq!(bucket.take(&settings, 1, at(999)), 0);
    assert_eq!(bucket.take(&settings, 1, at(1_000)), 1);
}

#[test]
fn a_smaller_capacity_holds_at_once() {
    let mut bucket = Bucket::new(&settings(10, 1, 1_000), at(0));
    assert_eq!(bucket.take(&settings(3, 1, 1_000), 10, at(0)), 3);
}

#[test]
fn what_the_provider_says_of_its_limits() {
    let limit = |limit, remaining, reset_ms| ProviderLimit {
        limit,
        remaining,
        reset: Duration::from_millis(reset_ms),
    };
    let ms = |n| Some(Duration::from_millis(n));
    let table = [
        (limit(Some(5_000), 4_999, 12), 1, None),
        // All 60 are back in a minute, the first in a second.
        (limit(Some(60), 0, 60_000), 1, ms(1_000)),
        (limit(Some(10_000), 0, 86_400_000), 1, ms(8_640)),
        (limit(Some(150_000), 50_000, 40_000), 60_000, ms(4_000)),
        (limit(Some(100), 40, 6_000), 500, ms(6_000)),
        (limit(None, 0, 20_000), 1, ms(20_000)),
        (limit(None, 1, 20_000), 1, None),
        // It contradicts itself.
        (limit(Some(0), 0, 20_000), 1, ms(20_000)),
        (limit(Some(5), 9, 20_000), 10, ms(20_000)),
    ];
    for (limit, need, wait) in table {
        assert_eq!(limit.wait_for(need), wait, "{limit:?}, {need}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Take(u32),
    /// Part of what is out, in thousandths.
    GiveBack(u32),
    Lower(u64),
}

fn steps() -> impl Strategy<Value = Vec<(i64, Step)>> {
    let step = prop_oneof![
        6 => (0..12_u32).prop_map(Step::Take),
        2 => (0..=1_000_u32).prop_map(Step::GiveBack),
        1 => (0..12_u64).prop_map(Step::Lower),
    ];
    let clock = prop_oneof![8 => 0..3_000_i64, 2 => -3_000..0_i64, 1 => -100_000..100_000_i64];
    prop::collection::vec((clock, step), 1..100)
}

proptest! {
    /// Over any stretch of the story, by the latest time that the bucket saw.
    #[test]
    fn no_more_is_out_than_capacity_and_refill(
        story in steps(), capacity in 1..10_u32, refill in 1..7_u32, per in 1..5_000_u64,
    ) {
        let settings = settings(capacity, refill, per);
        let mut bucket = Bucket::new(&settings, at(0));
        let (mut now, mut latest, mut out) = (0, 0, 0);
        // At each step: the latest time, and the tokens granted up to it, less those given back.
        let mut granted = vec![(0, 0_i64)];
        for (advance, step) in story {
            now += advance;
            // Giving back asks for no time, so the bucket does not learn it.
            if !matches!(step, Step::GiveBack(_)) {
                latest = latest.max(now);
            }
            let before = granted.last().unwrap().1;
            let net = match step {
                Step::Take(want) => {
                    let got = bucket.take(&settings, want, at(now));
                    prop_assert!(got <= want);
                    out += got;
                    i64::from(got)
                }
                Step::GiveBack(part) => {
                    let unspent = u32::try_from(u64::from(out) * u64::from(part) / 1_000).unwrap();
                    out -= unspent;
                    bucket.give_back(&settings, unspent);
                    -i64::from(unspent)
                }
                Step::Lower(remaining) => {
                    let before = bucket.available(&settings, at(now)).unwrap();
                    bucket.lower(&settings, remaining, at(now));
                    let after = bucket.available(&settings, at(now)).unwrap();
                    prop_assert_eq!(u64::from(after), u64::from(before).min(remaining));
                    0
                }
            };
            prop_assert!(bucket.tokens <= capacity);
            granted.push((latest, before + net));
            for (from, earlier) in &granted {
                let came = (latest - from) * i64::from(refill) / i64::try_from(per).unwrap();
                prop_assert!(before + net - earlier <= i64::from(capacity) + came);
            }
            let stored = serde_json::to_string(&bucket).unwrap();
            prop_assert_eq!(serde_json::from_str::<Bucket>(&stored).unwrap(), bucket);
        }
    }

    /// Nor less: whoever takes all there is gets all that came.
    #[test]
    fn all_that_comes_can_be_had(
        waits in prop::collection::vec(0..2_000_i64, 1..100), capacity in 3..10_u32, refill in 1..5_u32,
    ) {
        // A token takes a whole number of milliseconds, and no wait is as long as filling the bucket.
        let settings = settings(capacity, refill, u64::from(refill) * 1_000);
        let mut bucket = Bucket::new(&settings, at(0));
        let (mut now, mut got) = (0, bucket.take(&settings, u32::MAX, at(0)));
        for wait in waits {
            now += wait;
            got += bucket.take(&settings, u32::MAX, at(now));
        }
        prop_assert_eq!(i64::from(got), i64::from(capacity) + now / 1_000);
    }

    #[test]
    fn the_next_token_is_there_when_it_is_said_to_be(
        refill in 1..1_000_u32, per in 1_u64..100_000, wait in 0..100_000_i64,
    ) {
        let settings = settings(5, refill, per);
        let mut bucket = Bucket::new(&settings, at(0));
        bucket.take(&settings, 5, at(0));
        bucket.take(&settings, 5, at(wait));
        let next = bucket.next_token_at(&settings, at(wait));
        prop_assert!(next > at(wait));
        prop_assert_eq!(bucket.available(&settings, next - TimeDelta::microseconds(1)), Some(0));
        prop_assert!(bucket.available(&settings, next) >= Some(1));
    }
}
