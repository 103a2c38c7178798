//! Everything that moves credits, in any order and all at once, while processes and connections die: the books are right in
//! every snapshot, and when all has ended each hold was resolved once.
//!
//! `CREDITS_SECONDS` makes it longer than 5 s, `CREDITS_SEED` repeats the choices, though not the moments.

use std::collections::BTreeMap;
use std::env;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::RngExt as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::json;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tollgate_domain::dead_letters::{self, Selection};
use tollgate_domain::ids::new_id;
use tollgate_domain::{Database, Role, accounts};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::credits::EntryReason;
use tollgate_model::dead_letter::DeadLetterFilter;
use tollgate_model::queue::TimesToLive;
use tollgate_sim::{Behaviour, Faults};
use tollgate_store as store;
use tollgate_store::TenantTx;
use tollgate_testkit::{Process, TestApp, eventually, wrong_in_the_books};
use uuid::Uuid;

use crate::idempotency_client::{BINARY, KEY, Till, job, open, operator, priced};
use crate::watched::SUBMIT;

const ACCOUNTS: usize = 4;
const PARTIES: usize = 8;
const HOUR: Duration = Duration::from_hours(1);

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

fn random(seed: u64, party: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&party.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

/// How often a key was sent, and what was answered.
type Asked = (u32, Option<Vec<u8>>);

/// An account, and what it was told.
struct Holder {
    account: AccountId,
    till: Till,
    /// By key: what was asked, and the body of the answer once there was one.
    keys: Mutex<BTreeMap<String, Asked>>,
    jobs: Mutex<Vec<Uuid>>,
}

/// What all parties share.
struct Shared {
    holders: Vec<Holder>,
    /// Where the APIs are now.
    urls: Mutex<Vec<String>>,
    operator: Database,
    pool: PgPool,
}

/// One of those who do as they like.
struct Party {
    shared: Arc<Shared>,
    random: TestRng,
    nr: usize,
    steps: usize,
    deeds: BTreeMap<&'static str, u32>,
}

impl Party {
    fn below(&mut self, most: usize) -> usize {
        self.random.random_range(0..most)
    }

    fn credits(&mut self, most: i64) -> i64 {
        self.random.random_range(1..=most)
    }

    fn did(&mut self, what: &'static str) {
        *self.deeds.entry(what).or_default() += 1;
    }

    async fn step(&mut self) {
        self.steps += 1;
        let shared = self.shared.clone();
        let holder = &shared.holders[self.below(ACCOUNTS)];
        let urls = shared.urls.lock().unwrap().clone();
        let till = holder.till.moved(&urls[self.below(urls.len())]);
        match self.below(20) {
            0..6 => {
                let (key, hold) = (format!("{} {}", self.nr, self.steps), self.random.random_range(1..30));
                holder.keys.lock().unwrap().insert(key.clone(), (hold, None));
                self.ask(holder, &till, &key, hold).await;
            }
            6..9 => {
                // Anybody's, of whatever age: there is the same answer, or there was none yet.
                let all = holder.keys.lock().unwrap().clone();
                if !all.is_empty() {
                    let nr = self.below(all.len());
                    let (key, (hold, _)) = all.into_iter().nth(nr).unwrap();
                    self.ask(holder, &till, &key, hold).await;
                }
            }
            9..13 => {
                let hold = self.random.random_range(0..30);
                let model = if hold == 0 { json!({"prompt": "a", "model": "free"}) } else { job("a", hold) };
                let request = till.request(reqwest::Method::POST, SUBMIT).json(&model);
                if let Ok(reply) = till.send(request).await
                    && reply.status == 202
                {
                    self.did("accepted without a key");
                    holder.jobs.lock().unwrap().push(reply.job());
                }
            }
            13..16 => {
                let jobs = holder.jobs.lock().unwrap().clone();
                if let Some(id) = jobs.len().checked_sub(1 + self.below(6)).map(|nr| jobs[nr]) {
                    let path = format!("/v1/jobs/{id}/cancel");
                    let request = till.request(reqwest::Method::POST, &path);
                    let request = if self.below(2) == 0 { request } else { request.header(KEY, "cancel") };
                    if till.send(request).await.is_ok_and(|reply| reply.status == 200) {
                        self.did("cancelled");
                    }
                }
            }
            16 | 17 => {
                let credits = self.credits(150);
                if accounts::grant(&shared.operator, holder.account, credits, "chaos").await.is_ok() {
                    self.did("granted");
                }
            }
            18 => {
                let credits = self.credits(120);
                if take_back(&shared.pool, holder.account, credits).await.is_ok() {
                    self.did("taken back");
                }
            }
            _ => {
                let filter =
                    DeadLetterFilter { account: Some(holder.account), ..DeadLetterFilter::default() };
                let ttls = TimesToLive { generation: HOUR, webhook: HOUR, billing: HOUR };
                let selection = Selection::Matching(filter);
                if let Ok(done) =
                    dead_letters::redrive(&shared.operator, &ttls, Actor::Shell, &selection, |_| true).await
                {
                    *self.deeds.entry("redriven").or_default() += u32::try_from(done.redriven).unwrap();
                }
            }
        }
    }

    /// Asks with a key; what was answered before must be answered again.
    async fn ask(&mut self, holder: &Holder, till: &Till, key: &str, hold: u32) {
        let request = till.request(reqwest::Method::POST, SUBMIT).json(&job(key, hold)).header(KEY, key);
        let Ok(reply) = till.send(request).await else { return self.did("unanswered") };
        match reply.status {
            202 => {
                self.did(if reply.replayed() { "replayed" } else { "accepted with a key" });
                let id = reply.job();
                let before =
                    holder.keys.lock().unwrap().insert(key.to_owned(), (hold, Some(reply.body.clone())));
                match before.and_then(|(_, before)| before) {
                    Some(before) => assert_eq!(before, reply.body, "{key} was answered otherwise before"),
                    None => holder.jobs.lock().unwrap().push(id),
                }
            }
            402 | 409 | 503 => {
                let known = holder.keys.lock().unwrap().get(key).is_some_and(|(_, answer)| answer.is_some());
                assert!(reply.status != 402 || !known, "{key} was accepted before: {reply:?}");
                self.did(if reply.status == 402 { "refused for want of credits" } else { "put off" });
            }
            _ => panic!("{reply:?}"),
        }
    }
}

async fn take_back(pool: &PgPool, account: AccountId, credits: i64) -> store::Result<()> {
    let mut tx = TenantTx::begin(pool, account).await?;
    store::grant(&mut tx, new_id(), -credits, EntryReason::Stripe, Some("taken back")).await?;
    tx.commit().await
}

/// Kills a worker or an API every now and then, and connections all the time; looks at the books in between. Returns how
/// often it did each.
async fn rage(
    app: &mut TestApp,
    apis: &mut Vec<Process>,
    shared: &Shared,
    until: Instant,
    mut random: TestRng,
) -> [u32; 3] {
    let [mut looks, mut kills, mut cuts] = [0; 3];
    while Instant::now() < until {
        let wrong = wrong_in_the_books(&app.owner).await;
        assert!(wrong.is_empty(), "after {looks} looks, {kills} kills and {cuts} cuts: {wrong:#?}");
        looks += 1;
        if random.random_range(0..3) == 0 {
            let cut = "SELECT count(pg_terminate_backend(pid)) FROM (
                           SELECT pid FROM pg_stat_activity
                           WHERE datname = current_database() AND usename IN ('app_api', 'app_worker') AND state <> 'idle'
                           ORDER BY random() LIMIT 1) AS one";
            cuts += u32::try_from(app.number(cut).await).unwrap();
        }
        if random.random_range(0..16) == 0 {
            kills += 1;
            if random.random_range(0..2) == 0 {
                app.workers.swap_remove(random.random_range(0..app.workers.len())).kill().await;
                let worker = app.start_worker().await;
                app.workers.push(worker);
            } else {
                let nr = random.random_range(0..apis.len());
                apis.swap_remove(nr).kill().await;
                apis.push(app.start_api().await);
                *shared.urls.lock().unwrap() = apis.iter().map(Process::url).collect();
            }
        }
        sleep(Duration::from_millis(random.random_range(0..30))).await;
    }
    [looks, kills, cuts]
}

fn unreliable(seed: u64) -> Behaviour {
    let faults = Faults {
        server_error: 0.1,
        bad_request: 0.12,
        reset: 0.05,
        malformed: 0.03,
        hang: 0.05,
        truncated: 0.03,
        ..Faults::default()
    };
    Behaviour { latency_median_ms: 15, latency_p99_ms: Some(120), seed, faults, ..Behaviour::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_are_right_whatever_happens_and_whoever_dies() {
    let seed = number("CREDITS_SEED", new_id().as_u64_pair().1);
    let lasting = Duration::from_secs(number("CREDITS_SECONDS", 5));
    println!("CREDITS_SEED={seed}");
    let settings = [
        ("GENERATION_RETRY_DELAYS", "20ms,50ms"),
        ("VISIBILITY_TIMEOUT", "1s"),
        ("GEN_BREAKER_ENABLED", "false"),
        ("REQUEST_TIMEOUT_MS", "500"),
        ("Q_GEN_CREATE_CONCURRENCY", "8"),
        // Fewer than many answers have: some cost more than was held for them.
        ("EXPECTED_COMPLETION_TOKENS", "5"),
        ("LOG_LEVEL", "error"),
    ];
    let mut app = TestApp::start(BINARY, priced(2, &settings).provider(unreliable(seed))).await;
    let mut apis = vec![app.start_api().await, app.start_api().await];
    let mut holders = Vec::new();
    for _ in 0..ACCOUNTS {
        let (account, till) = open(&app, 200).await;
        holders.push(Holder { account, till, keys: Mutex::default(), jobs: Mutex::default() });
    }
    let shared = Arc::new(Shared {
        holders,
        urls: Mutex::new(apis.iter().map(Process::url).collect()),
        operator: operator(&app).await,
        pool: store::connect(&app.db.role_url(Role::Operator), Role::Operator, 4, true).await.unwrap(),
    });
    let until = Instant::now() + lasting;
    let mut parties = JoinSet::new();
    for nr in 0..PARTIES {
        let random = random(seed, nr as u64);
        let mut party = Party { shared: shared.clone(), random, nr, steps: 0, deeds: BTreeMap::new() };
        parties.spawn(async move {
            while Instant::now() < until {
                party.step().await;
            }
            party.deeds
        });
    }
    let [looks, kills, cuts] = rage(&mut app, &mut apis, &shared, until, random(seed, u64::MAX)).await;
    let mut deeds = BTreeMap::new();
    for (what, times) in parties.join_all().await.into_iter().flatten() {
        *deeds.entry(what).or_insert(0) += times;
    }
    app.provider.set_behaviour(Behaviour::default()).unwrap();
    eventually("every job ended", Duration::from_mins(1), || async {
        assert!(wrong_in_the_books(&app.owner).await.is_empty());
        (app.number("SELECT count(*) FROM app.jobs WHERE finished_at IS NULL").await == 0).then_some(())
    })
    .await;
    app.assert_books().await;
    app.assert_consistent().await;
    assert_eq!(app.number("SELECT sum(held)::bigint FROM app.credit_balances").await, 0);
    // Each key has at most one job, the one that everybody was told of; each without a key that was told of is there.
    let api = &apis[0];
    for holder in &shared.holders {
        let keys = holder.keys.lock().unwrap().clone();
        let till = holder.till.moved(&api.url());
        for (key, (hold, answer)) in keys {
            let Some(answer) = answer else { continue };
            let again = till.insist(SUBMIT, &key, &job(&key, hold)).await;
            assert!(again.replayed() && again.body == answer, "{key}: {again:?}");
        }
        let jobs = holder.jobs.lock().unwrap().clone();
        let sql = "SELECT count(*) FROM app.jobs WHERE account_id = $1 AND id = ANY ($2)";
        let there: i64 =
            sqlx::query_scalar(sql).bind(holder.account.0).bind(&jobs).fetch_one(&app.owner).await.unwrap();
        assert_eq!(usize::try_from(there).unwrap(), jobs.len());
    }
    let prompts =
        "SELECT count(*) - count(DISTINCT (account_id, request #>> '{messages,0,content}')) FROM app.jobs
                   WHERE request #>> '{messages,0,content}' <> 'a'";
    assert_eq!(app.number(prompts).await, 0, "two jobs of one key");
    let ends = sqlx::query_as::<_, (String, i64)>(
        "SELECT status, count(*) FROM app.jobs GROUP BY status ORDER BY 1",
    );
    let ends = ends.fetch_all(&app.owner).await.unwrap();
    let reasons =
        sqlx::query_as::<_, (String, i64)>("SELECT reason, count(*) FROM app.credits_ledger GROUP BY reason");
    let reasons = reasons.fetch_all(&app.owner).await.unwrap();
    println!("{looks} looks, {kills} kills, {cuts} cuts, {deeds:?}, {ends:?}, {reasons:?}");
    assert!(ends.len() == 3 && reasons.len() == 5 && kills >= 2 && cuts >= 5, "that was too quiet");
}
