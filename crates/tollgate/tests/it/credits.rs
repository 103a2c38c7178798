//! Credits: held when a job is accepted, charged when it has succeeded, and free again when it has not (SPEC C2, C3).

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tollgate_domain::dead_letters::{self, Selection};
use tollgate_domain::ids::new_id;
use tollgate_domain::sweep::{self, Rounds};
use tollgate_domain::{Role, accounts, prices};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::credits::{Balance, EntryReason};
use tollgate_model::dead_letter::Redriven;
use tollgate_model::job::{Job, JobStatus};
use tollgate_model::pricing::{Price, Rates};
use tollgate_model::queue::{MAX_LOST_LEASES, TimesToLive};
use tollgate_sim::{Fault, Step};
use tollgate_store as store;
use tollgate_store::TenantTx;
use tollgate_testkit::{TestApp, eventually};
use uuid::Uuid;

use crate::credits_crash::Hand;
use crate::idempotency_client::{BINARY, Till, as_role, job, open, operator, priced, stored};

/// What an account has: posted, held, owed.
async fn has(till: &Till) -> (i64, i64, i64) {
    let Balance { balance, posted, held, owed } = till.balance().await;
    assert_eq!(balance, posted - held);
    (posted, held, owed)
}

async fn shown(till: &Till, id: Uuid) -> Job {
    let reply = till.send(till.request(Method::GET, &format!("/v1/jobs/{id}"))).await.unwrap();
    serde_json::from_slice(&reply.body).unwrap()
}

async fn when(till: &Till, id: Uuid, status: JobStatus) -> Job {
    eventually(&format!("{id} {status:?}"), Duration::from_secs(30), || async {
        Some(shown(till, id).await).filter(|job| job.status == status)
    })
    .await
}

/// What the ledger says of a job, oldest first: reason, delta, held, charged, owed.
async fn entries(app: &TestApp, id: Uuid) -> Vec<(String, i64, i64, i64, i64)> {
    let sql =
        "SELECT reason, delta, held, charged, owed FROM app.credits_ledger WHERE job_id = $1 ORDER BY id";
    sqlx::query_as(sql).bind(id).fetch_all(&app.owner).await.unwrap()
}

fn entry(reason: &str, delta: i64, held: i64, charged: i64, owed: i64) -> (String, i64, i64, i64, i64) {
    (reason.to_owned(), delta, held, charged, owed)
}

/// A text of so many tokens.
fn tokens(count: usize) -> String {
    "word".repeat(count)
}

/// As a refund of a purchase does it.
async fn take_back(app: &TestApp, account: AccountId, credits: i64) -> Balance {
    let pool = app.db.pool(&app.db.role_url(Role::Operator)).await;
    let mut tx = TenantTx::begin(&pool, account).await.unwrap();
    let after =
        store::grant(&mut tx, new_id(), -credits, EntryReason::Stripe, Some("taken back")).await.unwrap();
    tx.commit().await.unwrap();
    after.unwrap()
}

#[tokio::test]
async fn a_job_holds_its_estimate_and_costs_what_it_used() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (account, till) = open(&app, 100).await;
    let answers = [("less", 10), ("exactly", 30), ("more", 50), ("beyond", 90)];
    app.provider.script(answers.map(|(what, count)| Step::ok().matching(what).text(tokens(count)))).unwrap();
    let less = till.submit_plain(&job("less", 30)).await.job();
    assert_eq!(has(&till).await, (100, 30, 0));
    let held = shown(&till, less).await;
    assert_eq!((held.credits.held, held.credits.charged, held.status), (30, 0, JobStatus::Queued));
    let _worker = app.start_worker().await;

    let done = when(&till, less, JobStatus::Succeeded).await;
    assert_eq!((done.credits.held, done.credits.charged), (0, 10));
    assert_eq!(has(&till).await, (90, 0, 0));
    assert_eq!(
        entries(&app, less).await,
        [entry("reservation", -30, 30, 0, 0), entry("confirm", 20, -30, 10, 0)]
    );

    let exactly = till.submit_plain(&job("exactly", 30)).await.job();
    assert_eq!(when(&till, exactly, JobStatus::Succeeded).await.credits.charged, 30);
    assert_eq!(entries(&app, exactly).await[1], entry("confirm", 0, -30, 30, 0));

    // It said nothing of how much it may generate, so 20 were held.
    let more = till.submit_plain(&json!({"prompt": "more"})).await.job();
    assert_eq!(when(&till, more, JobStatus::Succeeded).await.credits.charged, 50);
    assert_eq!(
        entries(&app, more).await,
        [entry("reservation", -20, 20, 0, 0), entry("confirm", -30, -20, 50, 0)]
    );
    assert_eq!(has(&till).await, (10, 0, 0));
    till.submit_plain(&json!({"prompt": "beyond"})).await.is_final().refused(402, "insufficient_credits");

    // And what the balance does not pay is owed.
    let operator = operator(&app).await;
    accounts::grant(&operator, account, 15, "a little").await.unwrap();
    let beyond = till.submit_plain(&json!({"prompt": "beyond"})).await.job();
    assert_eq!(when(&till, beyond, JobStatus::Succeeded).await.credits.charged, 90);
    assert_eq!(entries(&app, beyond).await[1], entry("confirm", -5, -20, 90, 65));
    assert_eq!(has(&till).await, (0, 0, 65));
    till.submit_plain(&job("one", 1)).await.refused(402, "insufficient_credits");
    assert_eq!(accounts::grant(&operator, account, 60, "not enough").await.unwrap(), Balance::new(0, 0, 5));
    till.submit_plain(&job("one", 1)).await.refused(402, "insufficient_credits");
    assert_eq!(accounts::grant(&operator, account, 40, "enough").await.unwrap(), Balance::new(35, 0, 0));
    till.submit_plain(&job("less", 35)).await.job();
    app.assert_books().await;
}

#[tokio::test]
async fn what_is_free_needs_no_credits_and_what_has_no_price_is_not_offered() {
    let only = r#"[{"provider": "openai", "model": "free"}, {"provider": "openai", "model": "dear", "prompt": 1000000,
                    "completion": 3000000}, {"provider": "other", "completion": 5}]"#;
    let app = TestApp::start(BINARY, priced(0, &[("PRICES", only), ("DEFAULT_MODEL", "free")])).await;
    let (_, till) = open(&app, 0).await;
    for other in [
        json!({"prompt": "a", "model": "other"}),
        json!({"prompt": "a", "type": "image"}),
        json!({"prompt": "a", "type": "image", "model": "dear"}),
    ] {
        let detail = till.submit("once", &other).await.refused(400, "invalid_request");
        assert!(detail.contains("`model`") && detail.contains("no price"), "{detail}");
    }
    till.submit_plain(&json!({"prompt": "a", "model": "dear", "max_tokens": 1}))
        .await
        .refused(402, "insufficient_credits");
    assert_eq!(stored(&app).await, [0; 6]);
    let free = till.submit("once", &job("for nothing", 1_000_000)).await.job();
    assert_eq!(stored(&app).await, [1, 1, 1, 0, 1, 1]);
    // About four bytes are a token, a message is four more; and rounded up once.
    let (_, rich) = open(&app, 1000).await;
    let dear = json!({"model": "dear", "messages": [{"role": "user", "content": "12345"}, {"role": "user", "content": "é"}],
                      "max_tokens": 7});
    rich.submit_plain(&dear).await.job();
    assert_eq!(has(&rich).await, (1000, (2 + 4) + (1 + 4) + 3 * 7, 0));
    let _worker = app.start_worker().await;
    when(&till, free, JobStatus::Succeeded).await;
    assert_eq!((has(&till).await, entries(&app, free).await), ((0, 0, 0), Vec::new()));
    app.assert_books().await;
}

#[tokio::test]
async fn a_job_costs_what_was_the_price_when_it_was_accepted() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (_, till) = open(&app, 100_000).await;
    app.provider.script([Step::ok().matching("a").text(tokens(9))]).unwrap();
    let before = till.submit("before", &job("a", 10)).await.job();
    let price = |completion| Price {
        provider: "openai".into(),
        model: None,
        from: None,
        until: None,
        rates: Rates { completion, ..Rates::default() },
    };
    prices::set(&operator(&app).await, Actor::Shell, price(5_000_000)).await.unwrap();
    let after = eventually("the new price is known", Duration::from_secs(10), || async {
        let id = till.submit_plain(&job("a", 10)).await.job();
        (shown(&till, id).await.credits.held == 50).then_some(id)
    })
    .await;
    prices::set(&operator(&app).await, Actor::Shell, price(7_000_000)).await.unwrap();
    let _worker = app.start_worker().await;
    assert_eq!(when(&till, before, JobStatus::Succeeded).await.credits.charged, 9);
    assert_eq!(when(&till, after, JobStatus::Succeeded).await.credits.charged, 45);
    app.assert_books().await;
}

#[tokio::test]
async fn images_cost_what_their_size_costs() {
    let app = TestApp::start(BINARY, priced(1, &[])).await;
    let (_, till) = open(&app, 181).await;
    for (size, price) in [(None, 40), (Some("512x512"), 70), (Some("auto"), 70)] {
        let before = has(&till).await.0;
        let mut image = json!({"type": "image", "prompt": format!("{size:?}")});
        if let Some(size) = size {
            image["size"] = Value::from(size);
        }
        let id = till.submit_plain(&image).await.job();
        assert_eq!(when(&till, id, JobStatus::Succeeded).await.credits.charged, price, "{size:?}");
        assert_eq!(has(&till).await, (before - price, 0, 0));
    }
    till.submit_plain(&json!({"type": "image", "prompt": "a"})).await.refused(402, "insufficient_credits");
    app.assert_books().await;
}

/// However a job ends but well, all that it held is free again, once.
#[tokio::test]
async fn what_fails_or_is_cancelled_or_is_lost_costs_nothing() {
    let settings =
        [("GENERATION_RETRY_DELAYS", "10ms"), ("VISIBILITY_TIMEOUT", "1s"), ("GEN_BREAKER_ENABLED", "false")];
    let app = TestApp::start(BINARY, priced(0, &settings)).await;
    let (_, till) = open(&app, 1000).await;
    let refunded = [entry("reservation", -30, 30, 0, 0), entry("refund", 30, -30, 0, 0)];
    let queued = till.submit_plain(&job("queued", 30)).await.job();
    let asked = format!("/v1/jobs/{queued}/cancel");
    for _ in 0..2 {
        assert_eq!(till.post(&asked, &[], "").await.status, 200);
    }
    assert_eq!(entries(&app, queued).await, refunded);

    // Too late, whether a worker is there or not.
    let expired = till.submit_plain(&job("expired", 30)).await.job();
    app.change("UPDATE queue.tasks SET expires_at = now()").await;
    let workers_own = as_role(&app, Role::Worker).await;
    for _ in 0..2 {
        sweep::sweep(&workers_own, &mut Rounds::default()).await.unwrap();
    }
    assert_eq!(shown(&till, expired).await.error.unwrap().code, "EXPIRED");
    assert_eq!(entries(&app, expired).await, refunded);

    // Lost with its worker, it runs again and holds what it held; lost too often, it has failed.
    let lost = till.submit_plain(&job("lost", 30)).await.job();
    let mut hand = Hand::new(workers_own.clone(), operator(&app).await).await;
    for nr in 1..=MAX_LOST_LEASES {
        hand.claim().await;
        assert_eq!(has(&till).await, (1000, 30, 0), "lost {nr} times");
        hand.die().await;
    }
    assert_eq!(shown(&till, lost).await.error.unwrap().code, "WORKER_LOST");
    assert_eq!(entries(&app, lost).await, refunded);

    app.provider
        .script([
            Step::fault(Fault::BadRequest).matching("refused"),
            Step::fault(Fault::ServerError).matching("broken"),
            Step::fault(Fault::Hang).matching("running"),
            Step::fault(Fault::Hang).matching("killed").times(1),
            Step::ok().matching("killed").text(tokens(10)),
        ])
        .unwrap();
    let worker = app.start_worker().await;
    let refused = till.submit_plain(&job("refused", 30)).await.job();
    let mut broken = job("broken", 30);
    broken["max_attempts"] = json!(3);
    let broken = till.submit_plain(&broken).await.job();
    for id in [refused, broken] {
        when(&till, id, JobStatus::Failed).await;
        assert_eq!(entries(&app, id).await, refunded);
    }
    let running = till.submit_plain(&job("running", 30)).await.job();
    when(&till, running, JobStatus::Running).await;
    assert_eq!(till.cancel(running, "running").await.status, 200);
    assert_eq!(entries(&app, running).await, refunded);
    assert_eq!(has(&till).await, (1000, 0, 0));

    // Killed with it in hand, and run by another: charged once.
    let killed = till.submit_plain(&job("killed", 30)).await.job();
    eventually("it is called for", Duration::from_secs(10), || async {
        (app.provider.arrivals_of(&killed.to_string()) > 0).then_some(())
    })
    .await;
    worker.kill().await;
    let _worker = app.start_worker().await;
    assert_eq!(when(&till, killed, JobStatus::Succeeded).await.credits.charged, 10);
    assert_eq!(entries(&app, killed).await, [refunded[0].clone(), entry("confirm", 20, -30, 10, 0)]);
    assert_eq!(has(&till).await, (990, 0, 0));
    app.assert_books().await;
    app.assert_consistent().await;
}

#[tokio::test]
async fn a_redriven_job_holds_its_estimate_again_or_stays_where_it_is() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (account, till) = open(&app, 50).await;
    let operator = operator(&app).await;
    let mut hand = Hand::new(as_role(&app, Role::Worker).await, operator.clone()).await;
    let mut letters = Vec::new();
    for nr in 0..2 {
        let id = till.submit_plain(&job(&format!("{nr}"), 30)).await.job();
        hand.fail_one().await;
        letters.push(id);
    }
    assert_eq!(has(&till).await, (50, 0, 0));
    let hour = Duration::from_hours(1);
    let ttls = TimesToLive { generation: hour, webhook: hour, billing: hour };
    let redrive = async |ids: &[Uuid]| -> Redriven {
        let selection = Selection::Ids(ids.to_vec());
        dead_letters::redrive(&operator, &ttls, Actor::Shell, &selection, |_| true).await.unwrap()
    };
    // There is enough for one of them.
    let redriven = redrive(&letters).await;
    assert_eq!((redriven.matched, redriven.redriven, redriven.skipped), (2, 1, 1));
    assert_eq!(has(&till).await, (50, 30, 0));
    app.assert_books().await;
    app.assert_consistent().await;
    let left = if app.dead_letter(letters[0]).await.is_some() { letters[0] } else { letters[1] };
    assert_eq!(redrive(&[left]).await.skipped, 1);
    hand.fail_one().await;
    assert_eq!(has(&till).await, (50, 0, 0));
    assert_eq!(redrive(&[left]).await.redriven, 1);
    let run = hand.claim().await;
    assert_eq!(run.task.lease.task, left);
    hand.succeed(&run, 12).await;
    let again = [entry("reservation", -30, 30, 0, 0), entry("refund", 30, -30, 0, 0)];
    assert_eq!(entries(&app, left).await[..2], again);
    assert_eq!(entries(&app, left).await[2..], [again[0].clone(), entry("confirm", 18, -30, 12, 0)]);
    // What has succeeded is not run again.
    assert!(
        dead_letters::redrive(&operator, &ttls, Actor::Shell, &Selection::Ids(vec![left]), |_| true)
            .await
            .is_err()
    );

    // Owing is no reason to be skipped by itself; having nothing is.
    let free = till.submit_plain(&json!({"prompt": "a", "model": "free"})).await.job();
    hand.fail_one().await;
    assert_eq!(take_back(&app, account, 100).await, Balance::new(0, 0, 62));
    assert_eq!(redrive(&[free]).await.redriven, 1);
    let other = *letters.iter().find(|id| **id != left).unwrap();
    assert_eq!(redrive(&[other]).await.skipped, 1);
    app.assert_books().await;
    app.assert_consistent().await;
}

/// What a key with a daily limit has spent is what is held for its jobs, and what they cost; whoever lets them run.
#[tokio::test]
async fn a_redriven_job_counts_in_its_keys_daily_limit() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (_, till) = open(&app, 100).await;
    app.change("UPDATE app.api_keys SET daily_credit_limit = 50").await;
    let operator = operator(&app).await;
    let mut hand = Hand::new(as_role(&app, Role::Worker).await, operator.clone()).await;
    let spent = async || app.number("SELECT sum(credits)::bigint FROM app.key_spending").await;
    let id = till.submit_plain(&job("a", 30)).await.job();
    assert_eq!(spent().await, 30);
    hand.fail_one().await;
    assert_eq!(spent().await, 0);
    let hour = Duration::from_hours(1);
    let ttls = TimesToLive { generation: hour, webhook: hour, billing: hour };
    let redriven = dead_letters::redrive(&operator, &ttls, Actor::Shell, &Selection::Ids(vec![id]), |_| true)
        .await
        .unwrap();
    assert_eq!((redriven.redriven, has(&till).await), (1, (100, 30, 0)));
    let while_it_runs = spent().await;
    let run = hand.claim().await;
    hand.succeed(&run, 20).await;
    assert_eq!((while_it_runs, spent().await), (30, 20));
}

/// What is taken back beyond what may be spent is owed: never what is held for a job, which was promised to it.
#[tokio::test]
async fn what_is_taken_back_leaves_what_is_held_and_the_rest_is_owed() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (account, till) = open(&app, 100).await;
    let mut hand = Hand::new(as_role(&app, Role::Worker).await, operator(&app).await).await;
    for hold in [30, 20] {
        till.submit_plain(&job("a", hold)).await.job();
    }
    assert_eq!(take_back(&app, account, 40).await, Balance::new(60, 50, 0));
    assert_eq!(take_back(&app, account, 40).await, Balance::new(50, 50, 30));
    till.submit_plain(&job("a", 1)).await.refused(402, "insufficient_credits");
    let run = hand.claim().await;
    hand.succeed(&run, 10).await;
    // 20 are free again, and so are the other 20: both pay what is owed, and what is left may be spent.
    assert_eq!(has(&till).await, (20, 20, 10));
    assert_eq!(entries(&app, run.task.lease.task).await[1], entry("confirm", 0, -30, 10, -20));
    till.submit_plain(&job("a", 1)).await.refused(402, "insufficient_credits");
    hand.fail_one().await;
    assert_eq!(has(&till).await, (10, 0, 0));
    till.submit_plain(&job("a", 10)).await.job();
    assert_eq!(take_back(&app, account, 5).await, Balance::new(10, 10, 5));
    let operator = operator(&app).await;
    assert_eq!(accounts::grant(&operator, account, 6, "pays").await.unwrap(), Balance::new(11, 10, 0));
    assert_eq!(take_back(&app, account, 8).await, Balance::new(10, 10, 7));
    // The hold of a failed job pays as well.
    hand.fail_one().await;
    assert_eq!(has(&till).await, (3, 0, 0));
    app.assert_books().await;
}
