//! Chaos: workers are killed at random, some frozen past their lease, and PostgreSQL crashes, twice, while jobs of several
//! accounts pour in. Every job ends exactly once, and no cap is ever exceeded.
//!
//! `CHAOS_JOBS` and `CHAOS_SECONDS` make it longer (`make chaos`): so many jobs, spread over so many seconds.
//! `CHAOS_SEED` repeats a choice of victims, though not the moments at which they are hit.

use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sqlx::PgPool;
use tempfile::NamedTempFile;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tollgate_domain::ids::new_id;
use tollgate_domain::queue::{self, Cap, LaneChange};
use tollgate_domain::{Database, Role};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::queue::QueueName;
use tollgate_model::submission::Submission;
use tollgate_outbound::{ApiError, TollgateClient};
use tollgate_sim::{Behaviour, Faults};
use tollgate_testkit::{Process, TestApp, Tune, eventually};

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
const QUEUE: QueueName = QueueName::GenerationCreate;

const WORKERS: usize = 4;
const LEASE: Duration = Duration::from_secs(2);
const BETWEEN_KILLS: Duration = Duration::from_secs(2);
const CRASHES: u32 = 2;
const PROGRESS: Duration = Duration::from_secs(10);

/// Fewer than the workers have slots, so that the cap is what holds them back.
const QUEUE_CAP: i32 = 24;
/// For each account its cap, and how many of eight submitters are its own.
const ACCOUNTS: [(Option<i32>, usize); 4] = [(Some(8), 2), (None, 3), (Some(3), 1), (None, 2)];

fn number(name: &str, default: u64) -> u64 {
    env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// SplitMix64: a few lines, and the same choices for the same seed for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of them, taken out.
    fn take<T>(&mut self, from: &mut Vec<T>) -> T {
        let index = self.next() % from.len() as u64;
        from.swap_remove(usize::try_from(index).unwrap_or_default())
    }
}

/// With the queue's cap this is good for about 60 jobs a second; `make chaos` submits 33.
fn slow_and_faulty(seed: u64) -> Behaviour {
    Behaviour {
        latency_median_ms: 250,
        latency_p99_ms: Some(1500),
        seed,
        faults: Faults { server_error: 0.02, reset: 0.01, rate_limit: 0.01, ..Faults::default() },
        ..Behaviour::default()
    }
}

struct Account {
    id: AccountId,
    cap: Option<i32>,
    clients: Vec<TollgateClient>,
}

/// Opens the accounts and sets their caps and the queue's.
async fn open_accounts(app: &TestApp) -> Vec<Account> {
    let operator =
        Database::connect(&app.db.role_url(Role::Operator), Role::Operator, 1, true).await.unwrap();
    let mut accounts = Vec::new();
    for (cap, submitters) in ACCOUNTS {
        let (id, key) = app.open_account().await;
        let change = LaneChange { max_running: Some(Cap(cap)), ..LaneChange::default() };
        queue::change_lane(&operator, QUEUE, id, Actor::Shell, change).await.unwrap();
        let clients = (0..submitters).map(|_| app.client_with(&key)).collect();
        accounts.push(Account { id, cap, clients });
    }
    queue::set_queue(&operator, QUEUE, Actor::Shell, Some(QUEUE_CAP)).await.unwrap();
    accounts
}

/// One of several who submit, each its share, evenly over the time that there is. Returns how often it was told to come
/// again.
async fn submit(client: TollgateClient, first: u32, stride: u32, jobs: u32, over: Duration) -> u32 {
    let began = Instant::now();
    let mut refused = 0;
    for n in (first..jobs).step_by(stride as usize) {
        sleep_until(began + over * n / jobs).await;
        let submission = Submission {
            prompt: Some(format!("job {n}")),
            // So many that no job fails for want of them: were one burnt wrongly, the sum at the end would show it.
            max_attempts: Some(20),
            ..Submission::default()
        };
        // While PostgreSQL recovers, the answer is "not now"; a machine that is short of everything may say so too.
        while let Err(error) = client.submit(&submission).await {
            assert!(matches!(error, ApiError::Refused { status: 503, .. }), "job {n}: {error}");
            refused += 1;
            sleep(Duration::from_millis(200)).await;
        }
    }
    refused
}

/// What was seen running at once, at most: of each account, and of all.
#[derive(Debug, Default)]
struct Peaks {
    lanes: Vec<i64>,
    queue: i64,
    looks: u32,
}

/// Counts what runs, again and again, from one snapshot each. A database that is away is passed over.
async fn watch(owner: PgPool, accounts: Vec<AccountId>, stop: CancellationToken) -> Peaks {
    let mut peaks = Peaks { lanes: vec![0; accounts.len()], ..Peaks::default() };
    while stop.run_until_cancelled(sleep(Duration::from_millis(40))).await.is_some() {
        let sql = "SELECT account_id, count(*) FROM queue.tasks WHERE state = 'running' GROUP BY account_id";
        let Ok(running) = sqlx::query_as::<_, (uuid::Uuid, i64)>(sql).fetch_all(&owner).await else {
            continue;
        };
        peaks.looks += 1;
        peaks.queue = peaks.queue.max(running.iter().map(|(_, count)| count).sum());
        for (account, count) in running {
            if let Some(at) = accounts.iter().position(|known| known.0 == account) {
                peaks.lanes[at] = peaks.lanes[at].max(count);
            }
        }
    }
    peaks
}

/// What was done to them.
#[derive(Debug, Default)]
struct Deeds {
    kills: u32,
    freezes: u32,
    crashes: u32,
}

/// Kills a random worker and starts another, again and again, until every job has ended. Every tenth victim is not killed
/// but frozen until it has been given up, and then goes on. At a third and two thirds of the time PostgreSQL crashes.
async fn rage(app: &mut TestApp, random: &mut Random, jobs: u32, over: Duration) -> Deeds {
    let began = Instant::now();
    let mut report_at = began + PROGRESS;
    let mut deeds = Deeds::default();
    let mut asleep: Option<(Process, Instant)> = None;
    loop {
        sleep(BETWEEN_KILLS).await;
        let ended = app.number("SELECT count(*) FROM app.jobs WHERE finished_at IS NOT NULL").await;
        let left = app.number("SELECT count(*) FROM app.jobs WHERE finished_at IS NULL").await;
        if Instant::now() >= report_at {
            eprintln!("{:.0?}: {ended} of {jobs} jobs ended, {left} open, {deeds:?}", began.elapsed());
            report_at += PROGRESS;
        }
        if ended >= i64::from(jobs) && left == 0 && asleep.is_none() {
            return deeds;
        }
        assert!(
            began.elapsed() < over * 2 + Duration::from_mins(2),
            "only {ended} of {jobs} jobs ended, {left} are open"
        );
        if deeds.crashes < CRASHES && began.elapsed() > over * (deeds.crashes + 1) / (CRASHES + 1) {
            app.db.restart_immediate().await;
            deeds.crashes += 1;
            continue;
        }
        let victim = random.take(&mut app.workers);
        if (deeds.kills + deeds.freezes) % 10 == 4 && asleep.is_none() {
            victim.freeze();
            asleep = Some((victim, Instant::now()));
            deeds.freezes += 1;
        } else {
            victim.kill().await;
            deeds.kills += 1;
        }
        if asleep.as_ref().is_some_and(|(_, since)| since.elapsed() > LEASE * 2) {
            let woken = asleep.take().map(|(worker, _)| worker);
            app.workers.extend(woken.inspect(Process::thaw));
        }
        while app.workers.len() < WORKERS {
            let worker = app.start_worker().await;
            app.workers.push(worker);
        }
    }
}

/// What the sweeps of all workers, the killed ones too, have said that they found.
fn swept(log: &Path, what: &str) -> u64 {
    let log = fs::read_to_string(log).unwrap();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == "swept").map(|line| line[what].as_u64().unwrap()).sum()
}

async fn run(jobs: u32, over: Duration, seed: u64) {
    let log = NamedTempFile::new().unwrap();
    let lease = format!("{}ms", LEASE.as_millis());
    let settings = [
        ("VISIBILITY_TIMEOUT", lease.as_str()),
        ("Q_GEN_CREATE_CONCURRENCY", "10"),
        ("GENERATION_RETRY_DELAYS", "100ms,200ms"),
    ];
    let tune = Tune {
        workers: WORKERS,
        own_database: true,
        log: Some(log.path().to_owned()),
        ..Tune::worker(&settings)
    };
    let mut app = TestApp::start(BINARY, tune.provider(slow_and_faulty(seed))).await;
    let accounts = open_accounts(&app).await;
    let ledger = app.number("SELECT count(*) FROM app.credits_ledger").await;

    let began = Instant::now();
    let mut submitters = JoinSet::new();
    let clients: Vec<_> = accounts.iter().flat_map(|account| &account.clients).collect();
    let stride = u32::try_from(clients.len()).unwrap();
    for (first, client) in (0..).zip(clients) {
        submitters.spawn(submit(client.clone(), first, stride, jobs, over));
    }
    let stop = CancellationToken::new();
    let ids = accounts.iter().map(|account| account.id).collect();
    let mut watching = JoinSet::new();
    watching.spawn(watch(app.db.owner().await, ids, stop.clone()));
    let deeds = rage(&mut app, &mut Random(seed), jobs, over).await;
    let refused: u32 = submitters.join_all().await.into_iter().sum();
    stop.cancel();
    let peaks = watching.join_next().await.unwrap().unwrap();
    let elapsed = began.elapsed();

    // Each job ended once, in the only way it could end. A submission whose answer was lost in a crash was made again, so
    // there may be a few more.
    let all = app.number("SELECT count(*) FROM app.jobs").await;
    assert!((jobs.into()..=i64::from(jobs + 8 * CRASHES)).contains(&all), "{all} jobs of {jobs}");
    assert_eq!(app.number("SELECT count(*) FROM app.jobs WHERE status = 'succeeded'").await, all);
    assert_eq!(app.number("SELECT count(*) FROM app.job_results").await, all);
    assert_eq!(app.number("SELECT count(*) FROM app.job_events WHERE type = 'job.completed'").await, all);
    app.assert_consistent().await;
    // Nothing is left anywhere, and all was counted.
    for table in ["queue.tasks", "queue.dead_letters"] {
        assert_eq!(app.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    // Held once, and charged once.
    assert_eq!(app.number("SELECT count(*) FROM app.credits_ledger").await, ledger + 2 * all);
    app.assert_books().await;
    let miscounted = "SELECT count(*) FROM (
        SELECT account_id, sum(queued) AS queued, sum(running) AS running, sum(done) AS done, sum(failed) AS failed
        FROM queue.lane_counts GROUP BY account_id) c
        WHERE (queued, running, failed) <> (0, 0, 0)
           OR done <> (SELECT count(*) FROM app.jobs j WHERE j.account_id = c.account_id)";
    assert_eq!(app.number(miscounted).await, 0, "lanes whose counts are not those of their jobs");
    let capped = "SELECT count(*) FROM (SELECT running, overhang FROM queue.lanes
        UNION ALL SELECT running, overhang FROM queue.queues) c WHERE (running, overhang) <> (0, 0)";
    assert_eq!(app.number(capped).await, 0, "caps that count tasks which are gone");
    eventually("nothing is in flight at the provider", Duration::from_secs(5), || async {
        (app.provider.stats().in_flight == 0).then_some(())
    })
    .await;
    // An attempt is burnt by the provider's faults and by nothing else: each is one event that says so.
    let retried = app.number("SELECT count(*) FROM app.job_events WHERE type = 'job.retrying'").await;
    assert_eq!(app.number("SELECT sum(attempts)::bigint FROM app.jobs").await, all + retried);
    let calls = app.number("SELECT count(*) FROM app.job_events WHERE type = 'job.started'").await;
    let arrivals = i64::try_from(app.provider.stats().arrivals).unwrap();
    assert!(arrivals <= calls, "{arrivals} calls arrived, {calls} were begun");
    // No cap was ever exceeded, and the caps were felt.
    for (account, peak) in accounts.iter().zip(&peaks.lanes) {
        assert!(
            account.cap.is_none_or(|cap| *peak <= cap.into()),
            "{peak} ran at once, of {:?}",
            account.cap
        );
    }
    assert!(peaks.queue <= QUEUE_CAP.into(), "{} ran at once, of {QUEUE_CAP}", peaks.queue);
    let felt = |(account, peak): (&Account, &i64)| account.cap.is_some_and(|cap| *peak == i64::from(cap));
    assert!(accounts.iter().zip(&peaks.lanes).any(felt), "no lane ever came up to its cap: {peaks:?}");
    // What must never be there was never there.
    assert_eq!((swept(log.path(), "orphans"), swept(log.path(), "lost_wakeups")), (0, 0));
    // And it was chaos.
    let requeued = app.number("SELECT count(*) FROM app.job_events WHERE type = 'job.requeued'").await;
    assert!(
        deeds.kills >= 5 && deeds.freezes >= 1 && deeds.crashes == CRASHES && requeued >= 5,
        "{deeds:?}, {requeued} requeued: that was too quiet"
    );
    println!(
        "{all} jobs, {deeds:?}: {requeued} requeued, {retried} retried, {arrivals} calls arrived of {calls} begun, \
         {refused} submissions put off, at most {:?} and {} running in {} looks, {elapsed:.1?}",
        peaks.lanes, peaks.queue, peaks.looks
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_and_postgresql_die_at_random_and_every_job_ends_exactly_once() {
    let jobs = u32::try_from(number("CHAOS_JOBS", 2400)).unwrap();
    let over = Duration::from_secs(number("CHAOS_SECONDS", 110));
    let seed = number("CHAOS_SEED", new_id().as_u64_pair().1);
    println!("CHAOS_SEED={seed}: {jobs} jobs over {over:?}");
    run(jobs, over, seed).await;
}
