//! The statements that move credits against a small oracle, on a real PostgreSQL: any operations in any order, and after
//! each of them every balance and every job is what the oracle says, and the books are right.
//!
//! `CREDITS_MODEL_CASES` makes it more histories than 16.

mod engine;
mod oracle;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use engine::Engine;
pub(crate) use engine::new_job;
use oracle::Oracle;

const ACCOUNTS: usize = 2;

/// Jobs of an account that may wait.
const ROOM: u32 = 12;

/// What can happen. `pick` names the job that is so far down the list of all, around the end.
#[derive(Debug, Clone)]
enum Op {
    Submit {
        account: usize,
        batch: Vec<New>,
    },
    Succeed {
        pick: usize,
        cost: i64,
    },
    Fail {
        picks: Vec<usize>,
    },
    Cancel {
        pick: usize,
    },
    Redrive {
        pick: usize,
    },
    Grant {
        account: usize,
        credits: i64,
    },
    /// The answers of before have expired.
    Forget {
        account: usize,
    },
}

/// A submission of a batch: what it holds, its key if it has one, and what it says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct New {
    hold: i64,
    key: Option<u8>,
    body: u8,
    /// With an API key that is revoked.
    revoked: bool,
}

fn submission() -> impl Strategy<Value = New> {
    let hold = prop_oneof![1 => Just(0_i64), 6 => 1..60_i64, 1 => Just(i64::MAX / 128)];
    let revoked = prop_oneof![9 => Just(false), 1 => Just(true)];
    (hold, prop::option::of(0..5_u8), 0..2_u8, revoked).prop_map(|(hold, key, body, revoked)| New {
        hold,
        key,
        body,
        revoked,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let pick = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 16));
    let credits = prop_oneof![6 => 1..200_i64, 3 => -150..0_i64, 1 => Just(-1_000_000_000_i64)];
    let cost = prop_oneof![1 => Just(0_i64), 8 => 0..90_i64, 1 => Just(1_000_000_000_i64)];
    prop_oneof![
        8 => (0..ACCOUNTS, vec(submission(), 1..7)).prop_map(|(account, batch)| Op::Submit { account, batch }),
        5 => (pick(), cost).prop_map(|(pick, cost)| Op::Succeed { pick, cost }),
        3 => vec(pick(), 1..4).prop_map(|picks| Op::Fail { picks }),
        2 => pick().prop_map(|pick| Op::Cancel { pick }),
        3 => pick().prop_map(|pick| Op::Redrive { pick }),
        5 => (0..ACCOUNTS, credits).prop_map(|(account, credits)| Op::Grant { account, credits }),
        1 => (0..ACCOUNTS).prop_map(|account| Op::Forget { account }),
    ]
}

/// One history, from accounts that have nothing.
async fn run(engine: &mut Engine, ops: Vec<Op>) -> Result<(), String> {
    engine.reset().await;
    let mut oracle = Oracle::default();
    for (nr, op) in ops.into_iter().enumerate() {
        let happened = format!("step {nr}, {op:?}");
        engine.step(&mut oracle, op).await.map_err(|error| format!("{happened}: {error}"))?;
        engine.compare(&oracle).await.map_err(|error| format!("after {happened}: {error}"))?;
    }
    Ok(())
}

#[test]
fn credits_are_what_the_oracle_says_in_any_order() {
    let cases = std::env::var("CREDITS_MODEL_CASES").map_or(16, |cases| cases.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let engine = std::cell::RefCell::new(runtime.block_on(Engine::start()));
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    let tested = TestRunner::new(config).run(&vec(op(), 1..60), |ops| {
        runtime.block_on(run(&mut engine.borrow_mut(), ops)).map_err(TestCaseError::fail)
    });
    if let Err(error) = tested {
        panic!("{error}");
    }
}
