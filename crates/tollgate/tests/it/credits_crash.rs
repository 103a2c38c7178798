//! A worker that is cut off anywhere between the claim and the end of the settlement, and tries again: what its job cost is
//! charged once, and what was held for it is free again once.
//!
//! The worker here is this process, which calls what a worker calls; so that what fails is tried again at once.

use std::env;
use std::time::Duration;

use serde_json::json;
use sqlx::AssertSqlSafe;
use tollgate_domain::ids::new_id;
use tollgate_domain::runs::{self, Run, Settled};
use tollgate_domain::sweep::{self, Rounds};
use tollgate_domain::{Database, Result, Role, accounts, queue, workers};
use tollgate_model::account::AccountId;
use tollgate_model::credits::Balance;
use tollgate_model::generation::{Decision, GenerationOutput, Limits, ProviderFailure, Usage};
use tollgate_model::lanes::Lanes;
use tollgate_model::queue::{QueueName, QueuePolicy};
use tollgate_model::retry::RetrySchedule;
use tollgate_testkit::{PgProxy, Sender, TestApp};
use uuid::Uuid;

use crate::idempotency_client::{BINARY, Till, job, open, operator, priced};
use crate::idempotency_crash::Cuts;

const LINE: QueueName = QueueName::GenerationCreate;

/// An answer of so many tokens.
fn answer(tokens: i64) -> GenerationOutput {
    GenerationOutput {
        provider_id: "a".into(),
        text: "an answer".into(),
        image: None,
        limits: Limits::default(),
        provider: "openai".into(),
        model: "m".into(),
        latency_ms: 1,
        usage: Usage { prompt_tokens: 3, completion_tokens: tokens, total_tokens: tokens + 3 },
        cached_tokens: 0,
        raw: json!({}),
    }
}

/// How a run is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It held 20, and cost so many.
    Success(i64),
    Failure,
    Retry,
}

/// A worker, by its connections.
pub(crate) struct Hand {
    db: Database,
    /// Who pays.
    operator: Database,
    id: Uuid,
    policy: QueuePolicy,
    /// How often it was cut off, and how often it then found that it had not been in vain.
    failures: u32,
    unseen: u32,
}

impl Hand {
    pub(crate) async fn new(db: Database, operator: Database) -> Self {
        let id = workers::register(&db, "by hand", Duration::from_hours(1)).await.unwrap();
        let (concurrency, ttl) = (1, Duration::from_hours(1));
        let retry = RetrySchedule::new(vec![Duration::ZERO]).unwrap();
        Self {
            db,
            operator,
            id,
            policy: QueuePolicy { name: LINE, concurrency, ttl, retry },
            failures: 0,
            unseen: 0,
        }
    }

    async fn try_to_claim(&self) -> Result<Vec<Run>> {
        let listing = queue::list_lanes(&self.db, LINE, self.id, AccountId(Uuid::nil())).await?;
        let mut lanes = Lanes::default();
        lanes.list(&listing.lanes, true);
        let mut plan = lanes.plan(1, Duration::ZERO);
        runs::claim(&self.db, LINE, self.id, listing.settings, &mut plan).await
    }

    /// The one job that there is. A claim that was committed unseen is lost with its worker, who is another one then.
    pub(crate) async fn claim(&mut self) -> Run {
        for _ in 0..20 {
            match self.try_to_claim().await {
                Ok(runs) if !runs.is_empty() => return runs.into_iter().next().unwrap(),
                // Or its transaction is about to be rolled back, and what it had locked was passed over.
                Ok(_) => self.unseen += u32::from(self.replaced().await == 1),
                Err(error) => self.cut_off(&error),
            }
        }
        panic!("nothing to claim");
    }

    /// It is gone, with what it had in hand, and another takes its place. Returns how much that was.
    async fn replaced(&mut self) -> usize {
        workers::deregister(&self.db, self.id).await.unwrap();
        let swept = sweep::sweep(&self.db, &mut Rounds::default()).await.unwrap();
        assert_eq!((swept.orphans, swept.lost_wakeups), (0, 0), "{swept:?}");
        self.id = workers::register(&self.db, "by hand", Duration::from_hours(1)).await.unwrap();
        swept.requeued
    }

    /// With one job in hand.
    pub(crate) async fn die(&mut self) {
        assert_eq!(self.replaced().await, 1);
    }

    pub(crate) async fn fail_one(&mut self) {
        let run = self.claim().await;
        self.settle(&run, End::Failure).await;
    }

    pub(crate) async fn succeed(&mut self, run: &Run, tokens: i64) {
        self.settle(run, End::Success(tokens)).await;
    }

    fn cut_off(&mut self, error: &tollgate_domain::Error) {
        assert!(error.is_unavailable(), "{error:?}");
        self.failures += 1;
    }

    async fn settle(&mut self, run: &Run, end: End) {
        let lease = run.task.lease;
        let mut tries = 0;
        let settled = loop {
            tries += 1;
            assert!(tries < 20, "{end:?} never settled");
            let settled = match end {
                End::Success(tokens) => {
                    let output = answer(tokens);
                    runs::settle_success(&self.db, lease, &output, None, run.cost(&output)).await
                }
                End::Failure => {
                    let failure = ProviderFailure::ours(Decision::Fail, "no");
                    runs::settle_failure(&self.db, &self.policy, &run.task, &failure, 0.0).await
                }
                End::Retry => {
                    let failure = ProviderFailure::ours(Decision::Retry, "not yet");
                    runs::settle_failure(&self.db, &self.policy, &run.task, &failure, 0.0).await
                }
            };
            match settled {
                Ok(settled) => break settled,
                Err(error) => self.cut_off(&error),
            }
        };
        let expected = match end {
            End::Success(_) => matches!(settled, Settled::Succeeded),
            End::Failure => matches!(settled, Settled::Failed),
            End::Retry => matches!(settled, Settled::Retrying(_)),
        };
        if settled == Settled::LeaseLost {
            assert!(tries > 1, "{end:?} found its lease lost");
            self.unseen += 1;
        } else {
            assert!(expected, "{end:?} became {settled:?}");
        }
    }
}

/// A job that holds 20 of the 30 credits that its account is brought up to; its runs, and what became of it.
async fn live(
    app: &TestApp,
    hand: &mut Hand,
    till: &Till,
    ends: &[End],
    cut: impl AsyncFnOnce(),
    what: &str,
) {
    let Balance { posted, owed, .. } = till.balance().await;
    if posted < 30 {
        accounts::grant(&hand.operator, app.account, 30 - posted + owed, "up to 30").await.unwrap();
    }
    let id = till.submit_plain(&job("a", 20)).await.job();
    cut().await;
    for end in ends {
        let run = hand.claim().await;
        hand.settle(&run, *end).await;
    }
    let expected = match ends[ends.len() - 1] {
        End::Success(cost) => {
            let owed = (cost - 30).max(0);
            format!("succeeded 0 {cost} {} 0 {owed} 1 1 0", 30 - cost + owed)
        }
        End::Failure => "failed 0 0 30 0 0 0 0 1".to_owned(),
        End::Retry => unreachable!("no job ends so"),
    };
    let sql = format!(
        "SELECT concat_ws(' ', j.status, j.credits_held, j.credits_charged, b.posted, b.held, b.owed,
                    (SELECT count(*) FROM app.job_results WHERE job_id = '{id}'),
                    (SELECT count(*) FROM app.credits_ledger WHERE job_id = '{id}' AND reason = 'confirm'),
                    (SELECT count(*) FROM app.credits_ledger WHERE job_id = '{id}' AND reason = 'refund'))
         FROM app.jobs j JOIN app.credit_balances b USING (account_id) WHERE j.id = '{id}'"
    );
    let found: String = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&app.owner).await.unwrap();
    assert_eq!(found, expected, "{what}: {ends:?}");
    let retried = app.history(id).await.iter().filter(|event| *event == "retrying").count();
    assert_eq!(retried, ends.len() - 1, "{what}: {ends:?}");
    assert_eq!(app.number("SELECT count(*) FROM queue.tasks").await, 0, "{what}: {ends:?}");
}

/// An account that has 30 credits.
async fn start() -> (TestApp, Till) {
    let mut app = TestApp::start(BINARY, priced(0, &[])).await;
    let (account, till) = open(&app, 30).await;
    app.account = account;
    (app, till)
}

const HISTORIES: [&[End]; 3] = [&[End::Retry, End::Success(13)], &[End::Success(45)], &[End::Failure]];

#[tokio::test]
async fn a_run_cut_off_at_any_boundary_is_settled_once() {
    let (app, till) = start().await;
    let cuts = Cuts::plant(&app.owner).await;
    let db = Database::connect(&app.db.role_url(Role::Worker), Role::Worker, 2, true).await.unwrap();
    let mut hand = Hand::new(db, operator(&app).await).await;
    // One of the histories at each boundary, another one in each run; `CUTS_ALL` takes all of them.
    let first = if env::var_os("CUTS_ALL").is_some() { 0..3 } else { 0..1 };
    let offset = usize::from(new_id().as_bytes()[15]);
    println!("offset {offset}");
    let (mut at, mut missed) = (0, 0);
    while missed < HISTORIES.len() {
        at += 1;
        missed += 1;
        for nr in first.clone() {
            let ends = HISTORIES[(offset + nr + usize::try_from(at).unwrap()) % HISTORIES.len()];
            let what = format!("cut off at {at}");
            live(&app, &mut hand, &till, ends, async || cuts.cut_at(at).await, &what).await;
            if cuts.mend().await {
                missed = 0;
            }
        }
        app.assert_books().await;
    }
    println!("{at} boundaries, cut off {} times", hand.failures);
    // Not every history has every boundary.
    assert!(at > 35 && hand.failures > 20, "{at} boundaries, cut off {} times", hand.failures);
    assert_eq!(hand.unseen, 0, "before a commit's end nothing is there to be seen");
    app.assert_consistent().await;
}

/// The same at the messages on the wire, the answer to a commit among them.
#[tokio::test]
async fn a_run_whose_wire_is_cut_at_any_message_is_settled_once() {
    let (app, till) = start().await;
    let proxy = PgProxy::start(app.db.port()).await;
    let url = proxy.through(&app.db.role_url(Role::Worker), app.db.port());
    let db = Database::connect(&url, Role::Worker, 1, true).await.unwrap();
    let mut hand = Hand::new(db, operator(&app).await).await;
    for sender in [Sender::Client, Sender::Server] {
        let mut at = 1;
        loop {
            let ends = HISTORIES[usize::try_from(at).unwrap() % HISTORIES.len()];
            let what = format!("{sender:?} cut off at {at}");
            live(&app, &mut hand, &till, ends, async || proxy.cut_at(sender, at), &what).await;
            app.assert_books().await;
            if !proxy.mend() {
                break;
            }
            at += 1;
        }
        println!("{at} messages of {sender:?}");
        assert!(at > 15, "only {at} messages of {sender:?}");
    }
    println!("cut off {} times, {} commits unseen", hand.failures, hand.unseen);
    assert!(hand.unseen >= 1, "no commit's answer was lost");
    app.assert_consistent().await;
}
