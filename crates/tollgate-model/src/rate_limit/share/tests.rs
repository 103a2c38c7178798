//! Many processes, one window in the database, and any order of what happens between them.

use proptest::prelude::*;

use super::*;

/// The row of the database, by its own clock.
#[derive(Debug, Default)]
struct Row {
    /// All that there were.
    windows: Vec<Window>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    began: Duration,
    used: u64,
    accepted: u32,
}

impl Row {
    /// As the statement does it.
    fn count(&mut self, quota: Quota, wanted: u32, now: Duration) -> Counted {
        if self.windows.last().is_none_or(|window| now >= window.began + quota.window) {
            self.windows.push(Window { began: now, used: 0, accepted: 0 });
        }
        let window = self.windows.last_mut().unwrap();
        window.used += u64::from(wanted);
        Counted { used: window.used, age: now.saturating_sub(window.began) }
    }

    /// One more in the window of `now`, which there must be.
    fn accept(&mut self, quota: Quota, now: Duration) {
        let window = self.windows.iter_mut().rev().find(|window| window.began <= now);
        let window = window.expect("accepted before there was a window");
        assert!(now < window.began + quota.window, "accepted after the window's end");
        window.accepted += 1;
        assert!(window.accepted <= quota.requests, "more than the limit");
    }
}

/// A wish on its way to the database, or its answer on the way back.
#[derive(Debug, Clone, Copy)]
struct Wish {
    wanted: u32,
    asked: Duration,
    answer: Option<(Counted, Duration)>,
}

#[derive(Debug, Clone)]
enum Step {
    /// A request comes to a process.
    Request(usize),
    /// A process's wish, if one is on its way, is counted.
    Count(usize),
    /// Its answer arrives.
    Answer(usize),
    /// Its answer is lost: whoever asked went away.
    Lose(usize),
    /// A process is started anew.
    Restart(usize),
    Wait(u64),
}

const PROCESSES: usize = 4;

fn step() -> impl Strategy<Value = Step> {
    let process = || 0..PROCESSES;
    prop_oneof![
        12 => process().prop_map(Step::Request),
        8 => process().prop_map(Step::Count),
        8 => process().prop_map(Step::Answer),
        1 => process().prop_map(Step::Lose),
        1 => process().prop_map(Step::Restart),
        3 => (0_u64..400).prop_map(Step::Wait),
    ]
}

const MINUTE: Duration = Duration::from_mins(1);

/// A fleet whose database answers at once.
struct Fleet {
    quota: Quota,
    row: Row,
    shares: Vec<Share>,
    leases: u32,
    /// Each process's clock has a beginning of its own.
    offsets: Vec<Duration>,
}

impl Fleet {
    fn new(requests: u32, processes: u32) -> Self {
        Self {
            quota: Quota { requests, window: MINUTE },
            row: Row::default(),
            shares: vec![Share::default(); processes as usize],
            leases: 0,
            offsets: (0..processes).map(|process| MINUTE * process).collect(),
        }
    }

    /// How many of so many at once are accepted.
    fn burst(&mut self, process: usize, sent: u32) -> u32 {
        (0..sent).map(|_| u32::from(self.request(process, Duration::ZERO).is_ok())).sum()
    }

    fn request(&mut self, process: usize, now: Duration) -> Result<Standing, Standing> {
        let (share, local) = (&mut self.shares[process], now + self.offsets[process]);
        let verdict = match share.spend(self.quota, local) {
            Verdict::Lease => {
                self.leases += 1;
                let wanted = share.wanted(self.quota, 1, local);
                let counted = self.row.count(self.quota, wanted, now);
                share.leased(self.quota, wanted, counted, local, local)
            }
            verdict => verdict,
        };
        match verdict {
            Verdict::Accepted(standing) => Ok(standing),
            Verdict::Refused(standing) => Err(standing),
            Verdict::Lease => panic!("asked twice"),
        }
    }
}

#[test]
fn a_lone_client_counts_down_and_begins_anew() {
    for requests in [1, 2, 7, 60, 1_000] {
        let mut fleet = Fleet::new(requests, 1);
        let (mut now, instant) = (Duration::from_secs(5), Duration::from_nanos(1));
        for round in 0..3 {
            for left in (0..requests).rev() {
                let standing = fleet.request(0, now).expect("within the limit");
                assert_eq!(standing.remaining, left, "{requests}, round {round}");
            }
            let leases = fleet.leases;
            for _ in 0..3 {
                let standing = fleet.request(0, (now + MINUTE).saturating_sub(instant)).unwrap_err();
                assert_eq!((standing.remaining, standing.reset), (0, instant));
            }
            assert_eq!(fleet.leases, leases, "a refusal asks nobody");
            now += MINUTE;
        }
    }
}

#[test]
fn leases_grow_with_the_logarithm_of_the_limit() {
    for (requests, most) in [(60, 30), (6_000, 70), (6_000_000, 140)] {
        let mut fleet = Fleet::new(requests, 1);
        assert_eq!(fleet.burst(0, requests + 1), requests);
        assert!(fleet.leases <= most, "{} leases of {requests}", fleet.leases);
    }
}

#[test]
fn another_limit_holds_at_once() {
    let mut fleet = Fleet::new(10, 1);
    for _ in 0..10 {
        fleet.request(0, Duration::ZERO).unwrap();
    }
    fleet.request(0, Duration::ZERO).unwrap_err();
    fleet.quota.requests = 12;
    assert_eq!(fleet.request(0, Duration::ZERO).unwrap().remaining, 1);
    fleet.quota.requests = 5;
    fleet.request(0, Duration::ZERO).unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn never_more_than_the_limit_is_accepted_in_a_window(
        requests in 1_u32..30,
        window in 1_u64..4,
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let quota = Quota { requests, window: Duration::from_secs(window) };
        let mut row = Row::default();
        let mut shares = [Share::default(); PROCESSES];
        let mut wishes: [Option<Wish>; PROCESSES] = [None; PROCESSES];
        let mut now = Duration::from_secs(1);
        for step in steps {
            match step {
                // While a process asks, its requests wait.
                Step::Request(process) if wishes[process].is_some() => {}
                Step::Request(process) => match shares[process].spend(quota, now) {
                    Verdict::Accepted(_) => row.accept(quota, now),
                    Verdict::Refused(standing) => prop_assert_eq!(standing.remaining, 0),
                    Verdict::Lease => {
                        let wanted = shares[process].wanted(quota, 3, now);
                        wishes[process] = Some(Wish { wanted, asked: now, answer: None });
                    }
                },
                Step::Count(process) => {
                    if let Some(wish) = wishes[process].as_mut().filter(|wish| wish.answer.is_none()) {
                        wish.answer = Some((row.count(quota, wish.wanted, now), now));
                    }
                }
                Step::Answer(process) => {
                    if let Some(Wish { wanted, asked, answer: Some((counted, at)) }) = wishes[process] {
                        wishes[process] = None;
                        let verdict = shares[process].leased(quota, wanted, counted, asked, now);
                        if let Verdict::Accepted(_) = verdict {
                            // It was decided when it was counted.
                            row.accept(quota, at);
                        }
                        prop_assert_ne!(verdict, Verdict::Lease);
                    }
                }
                Step::Lose(process) => wishes[process] = None,
                Step::Restart(process) => (wishes[process], shares[process]) = (None, Share::default()),
                Step::Wait(millis) => now += Duration::from_millis(millis),
            }
        }
    }

    /// Whoever goes round all the processes until each refuses has had the whole limit.
    #[test]
    fn in_turns_exactly_the_limit(requests in 1_u32..500, processes in 1_u32..6) {
        let mut fleet = Fleet::new(requests, processes);
        let mut accepted = 0;
        for round in 0..requests + processes {
            for process in 0..processes as usize {
                accepted += u32::from(fleet.request(process, Duration::from_millis(round.into())).is_ok());
            }
        }
        prop_assert_eq!(accepted, requests);
    }

    /// What other processes sit on is less than what they were used for, and less than an eighth each.
    #[test]
    fn little_is_left_with_processes_that_fell_silent(
        requests in 1_u32..2_000,
        before in prop::collection::vec(0_u32..300, 0..6),
    ) {
        let mut fleet = Fleet::new(requests, 7);
        let (mut accepted, mut lost) = (0, 0);
        for (process, sent) in before.into_iter().enumerate() {
            let had = fleet.burst(process, sent);
            accepted += had;
            lost += had.min(requests / 8);
        }
        accepted += fleet.burst(6, requests);
        prop_assert!(accepted <= requests && accepted + lost >= requests, "{accepted} of {requests}, {lost}");
    }
}
