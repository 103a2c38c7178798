//! Many at once for the same credits: never more than there are, and nobody in anybody's way.

use std::time::Duration;

use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tollgate_domain::dead_letters::{self, Selection};
use tollgate_domain::ids::new_id;
use tollgate_domain::{Answer, Database, Error, Role, accounts, jobs};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::job::JobError;
use tollgate_model::queue::TimesToLive;
use tollgate_store as store;
use tollgate_store::{NewJob, SubmitTerms, Submitted, TenantTx};
use tollgate_testkit::{TestApp, eventually};
use uuid::Uuid;

use crate::credits_model::new_job;
use crate::idempotency_client::{BINARY, Till, job, open, operator, priced, same, stored};

const AT_ONCE: usize = 64;
const SUBMISSIONS: usize = 1000;

/// One of those who submit until all have been: what each was told.
async fn submit_some(till: Till, first: usize) -> Vec<(usize, u16, bool)> {
    let mut told = Vec::new();
    for nr in (first..SUBMISSIONS).step_by(AT_ONCE) {
        let asked = job(&format!("{nr}"), 20);
        let keyed = nr % 3 == 0;
        let reply =
            if keyed { till.submit(&format!("{nr}"), &asked).await } else { till.submit_plain(&asked).await };
        match reply.status {
            202 => _ = reply.job(),
            _ => _ = reply.is_final().refused(402, "insufficient_credits"),
        }
        told.push((nr, reply.status, keyed));
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_submissions_on_a_balance_for_fifty_just_fifty_are_accepted() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let other = app.start_api().await;
    // Ten credits more than fifty cost: they pay for no other one.
    let (_, till) = open(&app, 50 * 20 + 10).await;
    let tills = [till.clone(), till.moved(&other.url())];
    let mut all = JoinSet::new();
    for first in 0..AT_ONCE {
        all.spawn(submit_some(tills[first % 2].clone(), first));
    }
    let told: Vec<_> = all.join_all().await.into_iter().flatten().collect();
    let accepted: Vec<_> = told.iter().filter(|(_, status, _)| *status == 202).collect();
    assert_eq!((told.len(), accepted.len()), (SUBMISSIONS, 50));
    let balance = till.balance().await;
    assert_eq!((balance.balance, balance.held, balance.posted), (10, 1000, 1010));
    let keys = accepted.iter().filter(|(_, _, keyed)| *keyed).count();
    assert_eq!(stored(&app).await, [50, 50, 50, 50, i64::try_from(keys).unwrap(), 50]);
    // And those ten can be spent.
    till.submit_plain(&job("small", 10)).await.job();
    // Who was accepted is told so again, who was not is not.
    for (nr, status, _) in told.iter().filter(|(_, _, keyed)| *keyed) {
        let again = till.submit(&format!("{nr}"), &job(&format!("{nr}"), 20)).await;
        assert_eq!((again.status, again.replayed()), (*status, *status == 202));
    }
    app.assert_books().await;
    app.assert_consistent().await;
}

/// For somebody else to be done with a row.
const PATIENCE: Duration = Duration::from_secs(5);
const TERMS: SubmitTerms =
    SubmitTerms { ttl: Duration::from_hours(1), max_queued: 1000, keep: Duration::from_hours(1) };

/// A pool of one connection whose counts go to the same shard as those of the process `like`.
async fn of_the_same_shard(app: &TestApp, role: Role, like: i32) -> PgPool {
    let mut others = Vec::new();
    loop {
        let pool = store::connect(&app.db.role_url(role), role, 1, true).await.unwrap();
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&pool).await.unwrap();
        if pid % 32 == like % 32 {
            return pool;
        }
        // Kept open, so that the next one is another process; the numbers go up one by one.
        others.push(pool);
        if others.len() > 40 {
            others.clear();
        }
    }
}

/// Until a connection waits for a lock, or the job is there that it stores.
async fn waits_or_has_stored(owner: &PgPool, pid: i32, id: Uuid) {
    let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock')
                   OR EXISTS (SELECT FROM app.jobs WHERE id = $2)";
    eventually("a submission is under way", Duration::from_secs(5), || async {
        let so: bool = sqlx::query_scalar(sql).bind(pid).bind(id).fetch_one(owner).await.unwrap();
        so.then_some(())
    })
    .await;
}

/// Whoever submits holds the account's balance and counts the task; whoever ends a job has counted its task and wants the
/// balance. If both count in the same shard, one of 32, each waits for the other.
#[tokio::test]
async fn whoever_submits_and_whoever_ends_a_job_do_not_wait_for_each_other() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (account, _) = open(&app, 1000).await;
    let key = key_of(&app, account).await;
    let ending = store::connect(&app.db.role_url(Role::Worker), Role::Worker, 1, true).await.unwrap();
    let worker: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&ending).await.unwrap();
    let submitting = of_the_same_shard(&app, Role::Api, worker).await;
    let api: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&submitting).await.unwrap();
    let first = new_job(account, key, 7);
    let id = first.id;
    assert_eq!(store::submit(&submitting, &TERMS, PATIENCE, &[first]).await.unwrap(), [Submitted::Accepted]);

    // The end of a job, up to where its task is counted out; then a submission, as far as it comes.
    let mut tx = TenantTx::begin(&ending, account).await.unwrap();
    assert!(store::delete_task(&mut tx, id).await.unwrap());
    let second = new_job(account, key, 7);
    let second_id = second.id;
    let mut parties = JoinSet::new();
    let pool = submitting.clone();
    parties.spawn(async move { store::submit(&pool, &TERMS, PATIENCE, &[second]).await });
    waits_or_has_stored(&app.owner, api, second_id).await;
    let settled = store::mark_succeeded(&mut tx, id, new_id(), 5).await;
    let settled = match settled {
        Ok(done) => tx.commit().await.map(|()| done),
        Err(error) => Err(error),
    };
    let submitted = parties.join_next().await.unwrap().unwrap();
    let what = "one of the two was sacrificed to a deadlock";
    assert!(settled.as_ref().is_ok_and(|done| *done), "{what}: the settlement: {settled:?}");
    assert!(submitted.as_ref().is_ok_and(|told| *told == [Submitted::Accepted]), "{what}: {submitted:?}");
}

/// The same of an operator who redrives a job, and so holds its credits again and counts its task.
#[tokio::test]
async fn whoever_redrives_and_whoever_ends_a_job_do_not_wait_for_each_other() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (account, _) = open(&app, 1000).await;
    let key = key_of(&app, account).await;
    let ending = store::connect(&app.db.role_url(Role::Worker), Role::Worker, 1, true).await.unwrap();
    let worker: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&ending).await.unwrap();
    let submitting = of_the_same_shard(&app, Role::Api, worker).await;
    let (runs, died) = (new_job(account, key, 7), new_job(account, key, 7));
    let (runs_id, died_id) = (runs.id, died.id);
    store::submit(&submitting, &TERMS, PATIENCE, &[runs, died]).await.unwrap();
    let mut tx = TenantTx::begin(&ending, account).await.unwrap();
    let error = JobError { code: "X".into(), message: "x".into() };
    store::bury_unleased(&mut tx, died_id, &error).await.unwrap();
    store::mark_failed(&mut tx, &[died_id], &error).await.unwrap();
    store::refund(&mut tx, &[died_id], &[new_id()]).await.unwrap();
    tx.commit().await.unwrap();

    // An operator whose counts go to the worker's shard.
    let mut others = Vec::new();
    let (operator, pid) = loop {
        let operator =
            Database::connect(&app.db.role_url(Role::Operator), Role::Operator, 1, true).await.unwrap();
        let newest =
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app_operator'
                      ORDER BY backend_start DESC LIMIT 1";
        let pid: i32 = sqlx::query_scalar(newest).fetch_one(&app.owner).await.unwrap();
        if pid % 32 == worker % 32 {
            break (operator, pid);
        }
        others.push(operator);
        if others.len() > 40 {
            others.clear();
        }
    };
    let mut tx = TenantTx::begin(&ending, account).await.unwrap();
    assert!(store::delete_task(&mut tx, runs_id).await.unwrap());
    let mut redrives = JoinSet::new();
    redrives.spawn(async move {
        let hour = Duration::from_hours(1);
        let ttls = TimesToLive { generation: hour, webhook: hour, billing: hour };
        dead_letters::redrive(&operator, &ttls, Actor::Shell, &Selection::Ids(vec![died_id]), |_| true).await
    });
    waits_or_has_stored(&app.owner, pid, Uuid::nil()).await;
    let settled = match store::mark_succeeded(&mut tx, runs_id, new_id(), 5).await {
        Ok(done) => tx.commit().await.map(|()| done),
        Err(error) => Err(error),
    };
    let outcome = redrives.join_next().await.unwrap().unwrap();
    let what = "one of the two was sacrificed to a deadlock";
    assert!(settled.as_ref().is_ok_and(|done| *done), "{what}: the settlement: {settled:?}");
    assert!(outcome.as_ref().is_ok_and(|done| done.redriven == 1), "{what}: the operator: {outcome:?}");
}

/// The same of what a key with a daily limit has spent.
#[tokio::test]
async fn the_daily_limit_of_a_key_stands_in_nobodys_way() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (account, _) = open(&app, 1000).await;
    let key = key_of(&app, account).await;
    app.change("UPDATE app.api_keys SET daily_credit_limit = 1000").await;
    let ending = store::connect(&app.db.role_url(Role::Worker), Role::Worker, 1, true).await.unwrap();
    let worker: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&ending).await.unwrap();
    let submitting = store::connect(&app.db.role_url(Role::Api), Role::Api, 1, true).await.unwrap();
    let api: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&submitting).await.unwrap();
    let first = new_job(account, key, 7);
    let id = first.id;
    assert_eq!(store::submit(&submitting, &TERMS, PATIENCE, &[first]).await.unwrap(), [Submitted::Accepted]);

    // Somebody is at it; who submits waits for him, and who ends a job comes after both.
    let mut lock = app.owner.begin().await.unwrap();
    sqlx::query("SELECT FROM app.key_spending FOR UPDATE").execute(&mut *lock).await.unwrap();
    let second = new_job(account, key, 7);
    let second_id = second.id;
    let mut submissions = JoinSet::new();
    submissions.spawn(async move { store::submit(&submitting, &TERMS, PATIENCE, &[second]).await });
    waits_or_has_stored(&app.owner, api, second_id).await;
    let mut ends = JoinSet::new();
    ends.spawn(async move {
        let mut tx = TenantTx::begin(&ending, account).await?;
        let done = store::mark_succeeded(&mut tx, id, new_id(), 5).await?;
        tx.commit().await.map(|()| done)
    });
    waits_or_has_stored(&app.owner, worker, second_id).await;
    lock.commit().await.unwrap();
    let settled = ends.join_next().await.unwrap().unwrap();
    let submitted = submissions.join_next().await.unwrap().unwrap();
    let what = "one of the two was sacrificed to a deadlock";
    assert!(settled.as_ref().is_ok_and(|done| *done), "{what}: the settlement: {settled:?}");
    assert!(submitted.as_ref().is_ok_and(|told| *told == [Submitted::Accepted]), "{what}: {submitted:?}");
    let spent = app.number("SELECT sum(credits)::bigint FROM app.key_spending").await;
    assert_eq!(spent, 5 + 7);
}

async fn key_of(app: &TestApp, account: AccountId) -> Uuid {
    let sql = "SELECT id FROM app.api_keys WHERE account_id = $1";
    sqlx::query_scalar(sql).bind(account.0).fetch_one(&app.owner).await.unwrap()
}

/// Submissions, cancellations and grants of one account over many connections, more than there are shards of its counts.
/// Nobody is told that PostgreSQL chose him to end a deadlock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_account_has_no_deadlocks() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (account, till) = open(&app, 1_000_000).await;
    app.change("UPDATE app.api_keys SET daily_credit_limit = 1000000").await;
    let key = key_of(&app, account).await;
    let pool = store::connect(&app.db.role_url(Role::Api), Role::Api, 24, true).await.unwrap();
    let api = Database::connect(&app.db.role_url(Role::Api), Role::Api, 24, true).await.unwrap();
    let operator = operator(&app).await;
    let stop = CancellationToken::new();
    let mut parties = JoinSet::new();
    for party in 0..24 {
        let (pool, api, operator, stop) = (pool.clone(), api.clone(), operator.clone(), stop.clone());
        parties.spawn(async move {
            for round in 0..12 {
                if let Err(error) = churn(party, round, (account, key), &pool, &api, &operator).await
                    && !stop.is_cancelled()
                {
                    stop.cancel();
                    return Some(error);
                }
                if stop.is_cancelled() {
                    break;
                }
            }
            None
        });
    }
    let refused: Vec<Error> = parties.join_all().await.into_iter().flatten().collect();
    app.assert_books().await;
    app.assert_consistent().await;
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(till.balance().await.held, 0);
}

/// Submits, and calls off what it has submitted.
async fn churn(
    party: usize,
    round: usize,
    (account, key): (AccountId, Uuid),
    pool: &PgPool,
    api: &Database,
    operator: &Database,
) -> Result<(), Error> {
    let new: Vec<NewJob> = (0..=party % 3).map(|_| new_job(account, key, 5)).collect();
    store::submit(pool, &TERMS, PATIENCE, &new).await?;
    if round % 5 == party % 5 {
        accounts::grant(operator, account, 1, "more").await?;
    }
    for new in new {
        jobs::cancel(api, account, new.id, None, |_| Ok(Answer::new(200, &())?)).await?;
    }
    Ok(())
}

/// Whose balance somebody is at has to wait for him, and nobody else has to: however many there are of the former, and
/// though all come at once.
#[tokio::test]
async fn accounts_that_must_wait_hold_up_no_other() {
    const HELD_UP: usize = 7;
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let mut tills = Vec::new();
    for _ in 0..2 * HELD_UP {
        tills.push(open(&app, 1000).await);
    }
    let free = tills.split_off(HELD_UP);
    let mut lock = app.owner.begin().await.unwrap();
    for (account, _) in &tills {
        let sql = "SELECT FROM app.credit_balances WHERE account_id = $1 FOR UPDATE";
        sqlx::query(sql).bind(account.0).execute(&mut *lock).await.unwrap();
    }
    let ask = |(nr, (_, till)): (usize, (AccountId, Till))| async move {
        till.submit_plain(&job(&format!("number {nr}"), 1)).await
    };
    let (mut waiting, mut others) = (JoinSet::new(), JoinSet::new());
    for (held_up, free) in tills.into_iter().enumerate().zip(free.into_iter().enumerate()) {
        waiting.spawn(ask(held_up));
        others.spawn(ask(free));
    }
    let answered = timeout(Duration::from_secs(3), others.join_all()).await;
    assert_eq!(waiting.len(), HELD_UP);
    assert!(waiting.try_join_next().is_none(), "one was not held up");
    lock.commit().await.unwrap();
    for reply in waiting.join_all().await {
        reply.job();
    }
    for reply in answered.unwrap_or_else(|_| panic!("not answered while others waited")) {
        reply.job();
    }
    app.assert_books().await;
}

/// Two APIs, and the same keys in another order: each waits for the other's keys in one order only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_keys_in_any_order_over_two_apis_are_no_deadlock() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let other = app.start_api().await;
    let (_, till) = open(&app, 1_000_000).await;
    let tills = [till.clone(), till.moved(&other.url())];
    for round in 0..4 {
        let mut all = JoinSet::new();
        for nr in 0..AT_ONCE {
            let till = tills[nr % 2].clone();
            // Up in one of them, down in the other.
            let key = if nr % 2 == 0 { nr / 2 } else { AT_ONCE / 2 - 1 - nr / 2 };
            let key = format!("{round} {key:02}");
            all.spawn(async move { (till.submit(&key, &job(&key, 1)).await, key) });
        }
        for (reply, key) in all.join_all().await {
            reply.job();
            same(&reply, &till.submit(&key, &job(&key, 1)).await);
        }
    }
    assert_eq!(stored(&app).await, [4 * 32; 6]);
    app.assert_books().await;
}

/// What one key may spend is nothing to another that is in the same batch.
#[tokio::test]
async fn the_limit_of_one_key_is_no_limit_of_anothers() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (mine, _) = open(&app, 1000).await;
    let (theirs, _) = open(&app, 1000).await;
    let (limited, free) = (key_of(&app, mine).await, key_of(&app, theirs).await);
    app.change(&format!("UPDATE app.api_keys SET daily_credit_limit = 5 WHERE id = '{limited}'")).await;
    let pool = store::connect(&app.db.role_url(Role::Api), Role::Api, 1, true).await.unwrap();
    let mut batch = vec![new_job(mine, limited, 5), new_job(mine, limited, 1), new_job(theirs, free, 7)];
    batch.sort_by_key(|new| new.account);
    let told = store::submit(&pool, &TERMS, PATIENCE, &batch).await.unwrap();
    for (new, told) in batch.iter().zip(told) {
        let expected = if new.quote.estimate == 1 { Submitted::Capped } else { Submitted::Accepted };
        assert_eq!(told, expected, "{} credits", new.quote.estimate);
    }
    app.assert_books().await;
}

/// The worker's role may forget what nobody can ask for again, and nothing else; of accounts without a task, too.
#[tokio::test]
async fn what_nobody_asks_for_any_more_is_forgotten() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    app.open_account().await;
    let answers = "INSERT INTO app.idempotency_keys
                       (account_id, method, route, key, fingerprint, status, response, expires_at)
                   SELECT account_id, 'POST', '/', n::text, '', 200, '', now() + (n - 5) * interval '1 hour'
                   FROM app.accounts, generate_series(1, 9) AS n";
    assert_eq!(app.change(answers).await, 18);
    let windows = "INSERT INTO app.rate_windows (account_id, key_id, route_group, started_at, used)
                   SELECT account_id, id, n::text, now() - n * interval '5 hours', 1
                   FROM app.api_keys, generate_series(1, 9) AS n";
    let keys = app.change(windows).await / 9;
    let spending = "INSERT INTO app.key_spending (account_id, key_id, day, credits)
                    SELECT account_id, id, (now() AT TIME ZONE 'UTC')::date - n, 1
                    FROM app.api_keys, generate_series(-1, 7) AS n";
    app.change(spending).await;
    let worker = Database::connect(&app.db.role_url(Role::Worker), Role::Worker, 1, true).await.unwrap();
    assert_eq!(tollgate_domain::forget::round(&worker, None).await.unwrap(), None);
    let keys = i64::try_from(keys).unwrap();
    assert!(keys >= 2, "each account has one");
    for (left, of) in [(8, "idempotency_keys"), (4 * keys, "rate_windows"), (2 * keys, "key_spending")] {
        assert_eq!(app.number(&format!("SELECT count(*) FROM app.{of}")).await, left, "{of}");
    }
    let today = "SELECT count(*) FROM app.key_spending WHERE day < (now() AT TIME ZONE 'UTC')::date";
    assert_eq!(app.number(today).await, 0);
}
