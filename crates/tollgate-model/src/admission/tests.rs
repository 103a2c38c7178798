//! One process, or several, against a queue that is known exactly.

use proptest::prelude::*;

use super::*;

const LIMIT: u32 = 20;

/// What can happen, in any order.
#[derive(Debug, Clone)]
enum Step {
    /// A submission to this process.
    Submit(usize),
    /// The oldest submission under way at this process commits, or fails.
    Settle(usize, bool),
    /// A worker takes so many tasks.
    Drain(i64),
    /// Tasks go back to the queue.
    Requeue(i64),
    /// Time passes.
    Wait(u64),
    /// This process looks, unasked.
    Look(usize),
}

fn steps(processes: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..processes).prop_map(Step::Submit),
        6 => (0..processes, prop::bool::weighted(0.9)).prop_map(|(process, ok)| Step::Settle(process, ok)),
        2 => (1_i64..8).prop_map(Step::Drain),
        1 => (1_i64..4).prop_map(Step::Requeue),
        3 => (0_u64..1500).prop_map(Step::Wait),
        1 => (0..processes).prop_map(Step::Look),
    ];
    prop::collection::vec(step, 0..200)
}

struct World {
    now: Duration,
    queued: i64,
    processes: Vec<Process>,
}

struct Process {
    backlog: Backlog,
    under_way: i64,
    /// Committed by others since this one's last look began.
    by_others: i64,
    /// The fewest that waited, own submissions under way included, since it last looked.
    fewest: i64,
}

impl World {
    fn new(processes: usize) -> Self {
        let process =
            |_| Process { backlog: Backlog::new(LIMIT), under_way: 0, by_others: 0, fewest: i64::MAX };
        Self { now: Duration::ZERO, queued: 0, processes: (0..processes).map(process).collect() }
    }

    /// A look that takes time. What commits while it is under way is for it to see or not: here, not.
    fn look(&mut self, at: usize) {
        let (began, queued) = (self.now, self.queued);
        self.now += Duration::from_millis(2);
        let process = &mut self.processes[at];
        process.backlog.look_begins();
        process.backlog.look_ended(queued, began, self.now);
        process.by_others = 0;
        process.fewest = queued + process.under_way;
    }

    fn submit(&mut self, at: usize) -> Verdict {
        for _ in 0..2 {
            let now = self.now;
            match self.processes[at].backlog.admit(now) {
                Verdict::LookFirst => self.look(at),
                verdict => return verdict,
            }
        }
        panic!("asked to look, and looked, and asked to look again");
    }

    /// Takes one step. Returns what it made of a submission, with the process.
    fn step(&mut self, step: &Step) -> Option<(usize, Verdict)> {
        let mut verdict = None;
        match *step {
            Step::Submit(at) => {
                let answer = self.submit(at);
                if matches!(answer, Verdict::Admitted { .. }) {
                    self.processes[at].under_way += 1;
                }
                verdict = Some((at, answer));
            }
            Step::Settle(at, committed) if self.processes[at].under_way > 0 => {
                self.processes[at].backlog.settle(committed);
                self.processes[at].under_way -= 1;
                if committed {
                    self.queued += 1;
                    let others = self.processes.iter_mut().enumerate().filter(|(other, _)| *other != at);
                    others.for_each(|(_, other)| other.by_others += 1);
                }
            }
            Step::Drain(tasks) => self.queued -= tasks.min(self.queued),
            Step::Requeue(tasks) => {
                self.queued += tasks;
                self.processes.iter_mut().for_each(|process| process.by_others += tasks);
            }
            Step::Wait(millis) => self.now += Duration::from_millis(millis),
            Step::Look(at) => self.look(at),
            Step::Settle(..) => {}
        }
        for process in &mut self.processes {
            process.fewest = process.fewest.min(self.queued + process.under_way);
        }
        verdict
    }
}

proptest! {
    #[test]
    fn nobody_is_let_in_beyond_the_limit_but_by_what_others_did_since_the_last_look(
        processes in 1_usize..4, steps in steps(3),
    ) {
        let mut world = World::new(processes);
        for step in steps.iter().filter(|step| !matches!(step,
            Step::Submit(at) | Step::Settle(at, _) | Step::Look(at) if *at >= processes))
        {
            if let Some((at, Verdict::Admitted { .. })) = world.step(step) {
                let process = &world.processes[at];
                let mine = world.queued + process.under_way;
                prop_assert!(mine - process.by_others <= i64::from(LIMIT), "{mine} let in, {} by others",
                    process.by_others);
            }
        }
    }

    #[test]
    fn nobody_is_refused_who_had_room_at_the_last_look_and_since(steps in steps(1)) {
        let mut world = World::new(1);
        for step in &steps {
            let verdict = world.step(step);
            let process = &world.processes[0];
            if let Some((_, Verdict::Full)) = verdict {
                let age = world.now.saturating_sub(process.backlog.looked_at().unwrap());
                prop_assert!(age < NEAR, "refused by a look {age:?} old");
                // Without a look in between, what was let in and what waited then is all there was.
                let seen = process.backlog.last.unwrap().queued + process.backlog.let_in;
                prop_assert!(seen >= i64::from(LIMIT), "refused at {seen}");
                prop_assert!(process.backlog.let_in >= process.under_way);
            }
        }
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn looked(limit: u32, queued: i64, at: Duration) -> Backlog {
    let mut backlog = Backlog::new(limit);
    backlog.look_begins();
    backlog.look_ended(queued, at, at);
    backlog
}

#[test]
fn it_looks_once_a_second_far_from_the_limit_and_often_near_it() {
    for (queued, quiet, due, too_old) in [(0, 999, 1000, 3000), (900, 49, 50, 150)] {
        let mut backlog = looked(1000, queued, ms(0));
        assert_eq!(backlog.admit(ms(quiet)), Verdict::Admitted { look: false });
        assert_eq!(backlog.admit(ms(due)), Verdict::Admitted { look: true });
        assert_eq!(backlog.admit(ms(too_old - 1)), Verdict::Admitted { look: true });
        assert_eq!(backlog.admit(ms(too_old)), Verdict::LookFirst);
    }
}

#[test]
fn it_looks_before_it_refuses_but_not_for_each_who_is_refused() {
    let mut backlog = looked(10, 10, ms(0));
    assert_eq!(backlog.admit(ms(49)), Verdict::Full);
    assert_eq!(backlog.admit(ms(50)), Verdict::LookFirst);
    // The limit was set to 0, say for maintenance.
    assert_eq!(looked(0, 0, ms(0)).admit(ms(1)), Verdict::Full);
}

#[test]
fn a_look_that_is_slow_is_rare() {
    let mut backlog = Backlog::new(10);
    backlog.look_begins();
    backlog.look_ended(10, ms(0), ms(200));
    assert_eq!(backlog.admit(ms(1999)), Verdict::Full);
    assert_eq!(backlog.admit(ms(2000)), Verdict::LookFirst);
}

#[test]
fn what_is_under_way_during_a_look_counts_until_the_next() {
    let mut backlog = looked(3, 0, ms(0));
    for _ in 0..3 {
        assert_eq!(backlog.admit(ms(1)), Verdict::Admitted { look: false });
    }
    assert_eq!(backlog.admit(ms(1)), Verdict::Full);
    backlog.settle(true);
    backlog.look_begins();
    // Commits while the look is under way, and is not seen by it.
    backlog.settle(true);
    backlog.settle(false);
    backlog.look_ended(1, ms(60), ms(60));
    assert_eq!(backlog.admit(ms(61)), Verdict::Admitted { look: false });
    assert_eq!(backlog.admit(ms(61)), Verdict::Full);
}
