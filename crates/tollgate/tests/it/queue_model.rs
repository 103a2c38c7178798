//! The queue engine against a small oracle, on a real PostgreSQL: any operations in any order, and after each of them
//! every task is in the state that the oracle says, and every count is right.
//!
//! Time passes by the hour, in that the database's times are moved back: nothing sleeps. What the oracle leaves open is
//! which of several lanes a claim serves; what it took must have been the first in their lanes.

mod concurrent;
mod engine;
mod oracle;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use engine::Engine;
use oracle::Oracle;

const ACCOUNTS: usize = 4;
const WORKERS: usize = 3;

/// What can happen. Numbers name accounts, workers, and the one of a list that is so far down it, around the end.
#[derive(Debug, Clone)]
enum Op {
    Enqueue(New),
    Bulk(Vec<New>),
    Claim { worker: usize, limit: usize, list: bool },
    Finish { picks: Vec<usize> },
    Retry { pick: usize, hours: i64 },
    Bury { pick: usize },
    Release { pick: usize },
    Cancel { pick: usize },
    Heartbeat { worker: usize },
    SignOut { worker: usize },
    Sweep,
    Sleep { worker: usize, accounts: Vec<usize> },
    SetLane { account: usize, weight: u16, cap: Option<i32> },
    SetQueue { cap: Option<i32> },
    Promote,
    Clock { hours: i64 },
}

/// A task to enqueue: due in so many hours, expired so many after that.
#[derive(Debug, Clone, Copy)]
struct New {
    account: usize,
    priority: i16,
    due: i64,
    ttl: i64,
}

fn new_task() -> impl Strategy<Value = New> {
    let due = prop_oneof![3 => Just(0), 1 => 1..4_i64];
    (0..ACCOUNTS, prop_oneof![Just(1_i16), Just(5), Just(6)], due, 2..8_i64)
        .prop_map(|(account, priority, due, ttl)| New { account, priority, due, ttl })
}

fn op() -> impl Strategy<Value = Op> {
    let pick = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 16));
    let cap = |most: i32| prop_oneof![1 => Just(None), 3 => (0..most).prop_map(Some)];
    prop_oneof![
        4 => new_task().prop_map(Op::Enqueue),
        2 => vec(new_task(), 1..12).prop_map(Op::Bulk),
        10 => (0..WORKERS, 1..9_usize, any::<bool>())
            .prop_map(|(worker, limit, list)| Op::Claim { worker, limit, list }),
        4 => vec(pick(), 1..5).prop_map(|picks| Op::Finish { picks }),
        2 => (pick(), 0..3_i64).prop_map(|(pick, hours)| Op::Retry { pick, hours }),
        1 => pick().prop_map(|pick| Op::Bury { pick }),
        2 => pick().prop_map(|pick| Op::Release { pick }),
        1 => pick().prop_map(|pick| Op::Cancel { pick }),
        2 => (0..WORKERS).prop_map(|worker| Op::Heartbeat { worker }),
        1 => (0..WORKERS).prop_map(|worker| Op::SignOut { worker }),
        2 => Just(Op::Sweep),
        2 => (0..WORKERS, vec(0..ACCOUNTS, 0..5)).prop_map(|(worker, accounts)| Op::Sleep { worker, accounts }),
        2 => (0..ACCOUNTS, 1..5_u16, cap(4)).prop_map(|(account, weight, cap)| Op::SetLane { account, weight, cap }),
        1 => cap(7).prop_map(|cap| Op::SetQueue { cap }),
        2 => Just(Op::Promote),
        2 => (1..3_i64).prop_map(|hours| Op::Clock { hours }),
    ]
}

/// One history, from an empty queue.
async fn run(engine: &mut Engine, ops: Vec<Op>) -> Result<(), String> {
    engine.reset().await;
    let mut oracle = Oracle::new(engine.worker_ids());
    for (nr, op) in ops.into_iter().enumerate() {
        let happened = format!("step {nr}, {op:?}");
        engine.step(&mut oracle, op).await.map_err(|error| format!("{happened}: {error}"))?;
        engine.compare(&mut oracle).await.map_err(|error| format!("after {happened}: {error}"))?;
    }
    engine.drain(&mut oracle).await.map_err(|error| format!("at the end: {error}"))?;
    engine.compare(&mut oracle).await.map_err(|error| format!("at the end: {error}"))
}

/// `QUEUE_MODEL_CASES` histories; a failing one is made as short as it can be.
#[test]
fn queue_does_what_the_oracle_says_in_any_order() {
    let cases = std::env::var("QUEUE_MODEL_CASES").map_or(24, |cases| cases.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let engine = std::cell::RefCell::new(runtime.block_on(Engine::start()));
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    let tested = TestRunner::new(config).run(&vec(op(), 1..80), |ops| {
        runtime.block_on(run(&mut engine.borrow_mut(), ops)).map_err(TestCaseError::fail)
    });
    if let Err(error) = tested {
        panic!("{error}");
    }
}

fn now(account: usize, priority: i16) -> New {
    New { account, priority, due: 0, ttl: 2 }
}

/// Histories that were found by the test above, and were right.
#[tokio::test]
async fn queue_histories_that_once_went_wrong() {
    let claim = |limit| Op::Claim { worker: 0, limit, list: true };
    let histories = [
        // A worker that was given up signed in anew, and claimed by a plan from before a change of settings.
        vec![
            Op::Enqueue(now(0, 1)),
            claim(1),
            Op::Clock { hours: 2 },
            Op::Sweep,
            Op::SetLane { account: 0, weight: 1, cap: None },
            Op::Heartbeat { worker: 0 },
            Op::Claim { worker: 0, limit: 1, list: false },
        ],
        // A lane that is looked at in several parts took its quota from each, and so the second before the first was done.
        vec![
            Op::Bulk(vec![now(2, 1), now(0, 1), now(0, 1), New { due: 1, ..now(1, 1) }]),
            Op::Enqueue(now(1, 5)),
            claim(3),
            Op::Bulk(vec![now(0, 1), now(1, 5), now(1, 1), now(0, 1)]),
            Op::Clock { hours: 1 },
            Op::SetQueue { cap: None },
            Op::Claim { worker: 0, limit: 2, list: false },
            Op::Promote,
            Op::Claim { worker: 0, limit: 1, list: false },
            claim(3),
        ],
    ];
    let mut engine = Engine::start().await;
    for history in histories {
        run(&mut engine, history).await.unwrap_or_else(|error| panic!("{error}"));
    }
}
