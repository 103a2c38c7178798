//! The sharing out of slots, against a small world of lanes that workers take tasks from.

use std::collections::{BTreeSet, HashSet};

use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

mod marks;

const RANK: i16 = 10;

fn account(nr: usize) -> AccountId {
    AccountId(Uuid::from_u128(nr as u128 + 1))
}

fn listed(nr: usize, weight: u16) -> ListedLane {
    ListedLane { account: account(nr), weight, capped: false }
}

/// What the database would hold: the positions of each lane's ready tasks.
#[derive(Debug, Default)]
struct World {
    lanes: Vec<BTreeSet<i64>>,
    next: i64,
}

impl World {
    fn add(&mut self, lane: usize, tasks: usize) {
        self.lanes.resize_with(self.lanes.len().max(lane + 1), BTreeSet::new);
        for _ in 0..tasks {
            self.next += 1;
            self.lanes[lane].insert(self.next);
        }
    }

    fn ready(&self) -> usize {
        self.lanes.iter().map(BTreeSet::len).sum()
    }

    /// A claim: share by share, no further than the limit.
    fn claim(&mut self, plan: &Plan) -> Vec<Taken> {
        let mut taken = Vec::new();
        for share in &plan.shares {
            let lane = (0..self.lanes.len()).find(|nr| account(*nr) == share.account).unwrap();
            let after = match share.span.after.rank.cmp(&RANK) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => share.span.after.position,
                std::cmp::Ordering::Greater => i64::MAX,
            };
            let found: Vec<i64> = self.lanes[lane]
                .range(after.saturating_add(1)..)
                .take(if share.span.until_rank >= RANK { share.quota } else { 0 })
                .take(plan.limit - taken.len())
                .copied()
                .collect();
            for position in found {
                self.lanes[lane].remove(&position);
                let place = Place { rank: RANK, position };
                taken.push(Taken { account: share.account, place });
            }
        }
        taken
    }
}

/// One worker's memory; its claims take `TICK` each.
struct Worker {
    lanes: Lanes,
    now: Duration,
}

const TICK: Duration = Duration::from_millis(2);

impl Worker {
    fn new(listed: &[ListedLane]) -> Self {
        let mut lanes = Lanes::default();
        lanes.list(listed, true);
        Self { lanes, now: Duration::ZERO }
    }

    /// Plans, claims, takes note. Returns the lane of each task that it got, in order.
    fn claim(&mut self, world: &mut World, limit: usize) -> Vec<usize> {
        self.now += TICK;
        let plan = self.lanes.plan(limit, self.now);
        assert_sound(&self.lanes, &plan);
        let taken = world.claim(&plan);
        self.lanes.observe(&plan, &taken, self.now);
        let lane = |taken: &Taken| usize::try_from(taken.account.0.as_u128()).unwrap() - 1;
        taken.iter().map(lane).collect()
    }
}

/// All of the limit is shared out among lanes that are not believed empty, if there are any, and no more.
fn assert_sound(lanes: &Lanes, plan: &Plan) {
    let mut seen = HashSet::new();
    let (mut wished, mut hopeful) = (0, false);
    for share in &plan.shares {
        assert!(share.quota > 0);
        let empty = lanes.known[&share.account].empty.is_some();
        if seen.insert(share.account) && !empty {
            wished += share.quota;
            hopeful = true;
        }
    }
    if hopeful {
        assert_eq!(wished, plan.limit);
    } else {
        let all_empty = lanes.known.values().all(|lane| lane.empty.is_some());
        assert!(all_empty || plan.limit == 0, "a lane that may have tasks was left out");
        assert_eq!(seen.len(), lanes.len(), "empty lanes are all looked at when there are no others");
    }
    // The order is that of the lanes, each once.
    let order: BTreeSet<_> = lanes.known.iter().map(|(account, lane)| (lane.due, *account)).collect();
    assert_eq!(order, lanes.order);
}

const WEIGHTS: [u16; 4] = [1, 1, 2, 4];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However many workers share it out, and however much each takes at a time.
    #[test]
    fn a_long_backlog_is_shared_by_weight(claims in vec((0..4_usize, 1..300_usize), 200..300)) {
        let mut world = World::default();
        for lane in 0..4 {
            world.add(lane, 50_000);
        }
        let all: Vec<_> = (0..4).map(|nr| listed(nr, WEIGHTS[nr])).collect();
        let mut workers: Vec<_> = (0..4).map(|_| Worker::new(&all)).collect();
        let mut got = [0_usize; 4];
        for (worker, limit) in claims {
            for lane in workers[worker].claim(&mut world, limit) {
                got[lane] += 1;
            }
        }
        let sum: usize = got.iter().sum();
        for (got, weight) in got.into_iter().zip(WEIGHTS) {
            let fair = sum as f64 * f64::from(weight) / 8.0;
            prop_assert!((got as f64 - fair).abs() <= 0.05 * fair, "{got} of {sum} at weight {weight}");
        }
    }

    /// Nobody is served twice before the newcomer is served once.
    #[test]
    fn a_newcomer_is_served_within_a_round(
        lanes in 1..40_usize, before in vec(1..300_usize, 0..40), after in vec(1..300_usize, 60),
        weight in 1..10_u16, first in any::<bool>(),
    ) {
        let newcomer = if first { 0 } else { lanes };
        let others = if first { 1..lanes + 1 } else { 0..lanes };
        let mut world = World::default();
        world.add(newcomer, 1);
        for lane in others.clone() {
            world.add(lane, 20_000);
        }
        let all: Vec<_> = others.map(|nr| listed(nr, 1 + u16::try_from(nr % 3).unwrap())).collect();
        let mut worker = Worker::new(&all);
        for limit in before {
            worker.claim(&mut world, limit);
        }
        worker.lanes.list(&[listed(newcomer, weight)], false);
        let mut got = vec![0_usize; lanes + 1];
        for limit in after {
            let chunk = (limit / 64).clamp(1, 16);
            let taken = worker.claim(&mut world, limit);
            let at = taken.iter().position(|lane| *lane == newcomer);
            for lane in taken.iter().take(at.unwrap_or(taken.len())) {
                got[*lane] += 1;
            }
            if at.is_some() {
                // In the very claim in which it is served, shares come in the order of the first round.
                return Ok(());
            }
            prop_assert!(got.iter().all(|got| *got <= 16.max(chunk)), "not yet, but others had {got:?}");
        }
        prop_assert!(false, "60 claims without it");
    }

    /// A lane that had nothing for a while gets its share from then on: no less, and no more.
    #[test]
    fn idling_gains_nothing_and_loses_nothing(
        limits in vec(1..200_usize, 150), pause in 1..150_usize, weight in 1..5_u16, forgotten in any::<bool>(),
    ) {
        let mut world = World::default();
        for lane in 0..3 {
            world.add(lane, 30_000);
        }
        world.add(3, 30);
        let all: Vec<_> = (0..4).map(|nr| listed(nr, if nr == 3 { weight } else { 1 })).collect();
        let mut worker = Worker::new(&all);
        for limit in &limits[..pause] {
            worker.claim(&mut world, *limit);
        }
        if forgotten {
            worker.lanes.forget(account(3));
        }
        world.lanes[3].clear();
        for limit in limits.iter().rev().take(pause) {
            worker.claim(&mut world, *limit);
        }
        world.add(3, 40_000);
        worker.lanes.list(&all, true);
        let mut got = [0_usize; 4];
        let mut before = 0.0;
        for (claims, limit) in limits.iter().cycle().take(200).enumerate() {
            for lane in worker.claim(&mut world, *limit) {
                got[lane] += 1;
            }
            // At no moment is it ahead of its share by more than a claim's chunks; nor behind, once it has been seen to
            // have more than the one task that it was asked for: then it catches up with every claim, however small.
            let others = got[..3].iter().sum::<usize>() as f64 / 3.0;
            let ahead = got[3] as f64 / f64::from(weight) - others;
            let behind = ahead < -36.0 && ahead <= before && claims >= 2;
            prop_assert!(ahead <= 36.0 && !behind, "{ahead} ahead: {got:?}");
            before = ahead;
        }
    }

    /// Another worker empties lanes, or a cap keeps them back: whatever this one believes, it gets all that there is
    /// before it comes back with nothing twice.
    #[test]
    fn empty_lanes_freeze_nobody(
        sizes in vec(0..30_usize, 1..30), steps in vec((0..30_usize, 1..40_usize, any::<bool>()), 1..200),
    ) {
        let mut world = World::default();
        for (nr, tasks) in sizes.iter().enumerate() {
            world.add(nr, *tasks);
        }
        let all: Vec<_> = (0..sizes.len()).map(|nr| listed(nr, 1)).collect();
        let mut worker = Worker::new(&all);
        for (lane, limit, emptied) in steps {
            let lane = lane % sizes.len();
            if emptied { world.lanes[lane].clear() } else { world.add(lane, 3) }
            if world.ready() == 0 {
                continue;
            }
            let mut in_vain = 0;
            while worker.claim(&mut world, limit).is_empty() {
                in_vain += 1;
                // Each claim in vain takes at least a limit of lanes off the list of those that may have tasks.
                prop_assert!(in_vain <= sizes.len().div_ceil(limit), "{} ready, {in_vain} claims in vain", world.ready());
            }
        }
    }

    /// Lanes that cannot be served cost the others no slot.
    #[test]
    fn lanes_that_always_come_back_empty_take_no_slots(empty in 1..100_usize, limits in vec(1..300_usize, 50)) {
        let mut world = World::default();
        world.add(empty, 50_000);
        let all: Vec<_> = (0..=empty).map(|nr| listed(nr, 1)).collect();
        let mut worker = Worker::new(&all);
        while worker.claim(&mut world, 300).is_empty() {}
        for limit in limits {
            prop_assert_eq!(worker.claim(&mut world, limit).len(), limit);
        }
    }

    /// After a list of all lanes, those and no others are known.
    #[test]
    fn a_list_of_all_forgets_the_others(lists in vec((vec(0..12_usize, 0..12), any::<bool>()), 1..10)) {
        let mut lanes = Lanes::default();
        let mut known = BTreeSet::new();
        for (list, whole) in lists {
            let list: BTreeSet<usize> = list.into_iter().collect();
            if whole {
                known.clear();
            }
            known.extend(list.iter().copied());
            lanes.list(&list.iter().map(|nr| listed(*nr, 1)).collect::<Vec<_>>(), whole);
            prop_assert_eq!(lanes.known.keys().copied().collect::<BTreeSet<_>>(), known.iter().map(|nr| account(*nr)).collect());
            prop_assert_eq!(lanes.order.len(), known.len());
        }
    }
}

/// A lane that was found empty is put to sleep after a while, a crowd of them at once; one that has tasks after all is
/// looked at from its start, since they may stand before its marks.
#[test]
fn empty_lanes_are_put_to_sleep_and_looked_at_from_the_start_again() {
    let mut world = World::default();
    world.add(EMPTY_AT_MOST + 1, 0);
    let all: Vec<_> = (0..=EMPTY_AT_MOST).map(|nr| listed(nr, 1)).collect();
    let mut worker = Worker::new(&all[..1]);
    world.add(0, 10);
    assert_eq!(worker.claim(&mut world, 5), [0; 5]);
    assert_eq!(worker.claim(&mut world, 6), [0; 5]);
    worker.lanes.list(&all, true);
    worker.claim(&mut world, 1000);
    let now = worker.now;
    assert_eq!(
        worker.lanes.drowsy(now),
        [account(0)],
        "one more than may be looked at in vain, the longest empty"
    );
    assert_eq!(worker.lanes.drowsy(now + EMPTY_FOR).len(), EMPTY_AT_MOST + 1);

    for _ in 0..2 {
        worker.now += Duration::from_secs(10);
        assert_eq!(worker.claim(&mut world, 5), [0_usize; 0]);
    }
    // One that was taken, and given back where it stood.
    world.lanes[0].insert(3);
    assert_eq!(worker.claim(&mut world, 5), [0_usize; 0]);
    worker.lanes.forget(account(0));
    worker.lanes.list(&all, true);
    assert_eq!(worker.claim(&mut world, 5), [0]);

    worker.lanes.forget(account(0));
    assert_eq!(worker.lanes.len(), EMPTY_AT_MOST);
    assert!(!worker.lanes.is_empty());
}

/// A lane with a cap is searched as one, so that its quota is not multiplied by its spans.
#[test]
fn a_capped_lane_is_one_share() {
    let mut lanes = Lanes::default();
    lanes.list(&[ListedLane { account: account(0), weight: 1, capped: true }], true);
    let taken =
        [3, 8, 8, 8, 12].map(|rank| Taken { account: account(0), place: Place { rank, position: 7 } });
    for second in 0..20 {
        let now = Duration::from_secs(second);
        let plan = lanes.plan(5, now);
        assert_eq!(plan.shares, [Share { account: account(0), span: Span::ALL, quota: 5, capped: true }]);
        lanes.observe(&plan, &taken, now);
    }
    lanes.list(&[ListedLane { account: account(0), weight: 1, capped: false }], true);
    assert_eq!(lanes.plan(5, Duration::from_secs(20)).shares.len(), 1, "never looked at by parts");
    assert_eq!(
        lanes.plan(5, Duration::from_secs(20)).shares.len(),
        4,
        "before, and from each of three ranks on"
    );
}
