//! Chaos: workers are killed at random, and some frozen past their lease, while jobs pour in. Every job ends exactly
//! once.
//!
//! `CHAOS_JOBS` and `CHAOS_SECONDS` make it longer (`make chaos`): so many jobs, spread over so many seconds.
//! `CHAOS_SEED` repeats a choice of victims, though not the moments at which they are hit.

use std::env;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tollgate_domain::ids::new_id;
use tollgate_model::submission::Submission;
use tollgate_outbound::{ApiError, TollgateClient};
use tollgate_sim::{Behaviour, Faults};
use tollgate_testkit::{Process, TestApp, Tune, eventually};

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

const WORKERS: usize = 4;
const LEASE: Duration = Duration::from_secs(2);
const BETWEEN_KILLS: Duration = Duration::from_millis(700);
const SUBMITTERS: usize = 8;

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

fn slow_and_faulty(seed: u64) -> Behaviour {
    Behaviour {
        latency_median_ms: 60,
        latency_p99_ms: Some(400),
        seed,
        faults: Faults { server_error: 0.02, reset: 0.01, rate_limit: 0.01, ..Faults::default() },
        ..Behaviour::default()
    }
}

/// One of several who submit, each its share, evenly over the time that there is.
async fn submit(client: TollgateClient, first: u32, jobs: u32, over: Duration) {
    let began = Instant::now();
    for n in (first..jobs).step_by(SUBMITTERS) {
        sleep_until(began + over * n / jobs).await;
        let submission = Submission {
            prompt: Some(format!("job {n}")),
            // So many that no job fails for want of them: were one burnt wrongly, the sum at the end would show it.
            max_attempts: Some(20),
            ..Submission::default()
        };
        // A machine that is short of everything may hear "not now"; that is an answer, and no job was taken.
        while let Err(error) = client.submit(&submission).await {
            assert!(matches!(error, ApiError::Refused { status: 503, .. }), "job {n}: {error}");
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Kills a random worker and starts another, again and again, until every job has ended. Every tenth victim is
/// not killed but frozen until it has been given up, and then goes on. Returns how many were killed, and frozen.
async fn rage(app: &mut TestApp, random: &mut Random, jobs: u32, patience: Duration) -> (usize, usize) {
    let began = Instant::now();
    let (mut killed, mut frozen) = (0, 0);
    let mut asleep: Option<(Process, Instant)> = None;
    loop {
        sleep(BETWEEN_KILLS).await;
        let ended = app.number("SELECT count(*) FROM app.jobs WHERE finished_at IS NOT NULL").await;
        if ended == i64::from(jobs) && asleep.is_none() {
            return (killed, frozen);
        }
        assert!(began.elapsed() < patience, "only {ended} of {jobs} jobs ended within {patience:?}");
        let victim = random.take(&mut app.workers);
        if (killed + frozen) % 10 == 4 && asleep.is_none() {
            victim.freeze();
            asleep = Some((victim, Instant::now()));
            frozen += 1;
        } else {
            victim.kill().await;
            killed += 1;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_die_at_random_and_every_job_ends_exactly_once() {
    let jobs = u32::try_from(number("CHAOS_JOBS", 2000)).unwrap();
    let over = Duration::from_secs(number("CHAOS_SECONDS", 15));
    let seed = number("CHAOS_SEED", new_id().as_u64_pair().1);
    println!("CHAOS_SEED={seed}: {jobs} jobs over {over:?}");
    let lease = format!("{}ms", LEASE.as_millis());
    let settings = [
        ("VISIBILITY_TIMEOUT", lease.as_str()),
        ("Q_GEN_CREATE_CONCURRENCY", "20"),
        ("GENERATION_RETRY_DELAYS", "100ms,200ms"),
    ];
    let tune = Tune { workers: WORKERS, ..Tune::worker(&settings) };
    let mut app = TestApp::start(BINARY, tune.provider(slow_and_faulty(seed))).await;
    let ledger = app.number("SELECT count(*) FROM app.credits_ledger").await;

    let began = Instant::now();
    let mut submitters = JoinSet::new();
    for first in 0..SUBMITTERS {
        submitters.spawn(submit(app.client(), u32::try_from(first).unwrap(), jobs, over));
    }
    let patience = over * 2 + Duration::from_mins(2);
    let (kills, freezes) = rage(&mut app, &mut Random(seed), jobs, patience).await;
    submitters.join_all().await;
    let elapsed = began.elapsed();

    // Each job ended once, in the only way it could end.
    let expected = i64::from(jobs);
    assert_eq!(app.number("SELECT count(*) FROM app.jobs").await, expected);
    assert_eq!(app.number("SELECT count(*) FROM app.jobs WHERE status = 'succeeded'").await, expected);
    assert_eq!(app.number("SELECT count(*) FROM app.job_results").await, expected);
    assert_eq!(
        app.number("SELECT count(*) FROM app.job_events WHERE type = 'job.completed'").await,
        expected
    );
    app.assert_consistent().await;
    // Nothing is left anywhere.
    assert_eq!(app.number("SELECT count(*) FROM queue.tasks").await, 0);
    assert_eq!(app.number("SELECT count(*) FROM queue.dead_letters").await, 0);
    assert_eq!(app.number("SELECT count(*) FROM app.credits_ledger").await, ledger);
    eventually("nothing is in flight at the provider", Duration::from_secs(5), || async {
        (app.provider.stats().in_flight == 0).then_some(())
    })
    .await;
    // An attempt is burnt by the provider's faults and by nothing else: each is one event that says so.
    let attempts = "SELECT sum(attempts)::bigint FROM app.jobs";
    let retried = app.number("SELECT count(*) FROM app.job_events WHERE type = 'job.retrying'").await;
    assert_eq!(app.number(attempts).await, expected + retried);
    let calls = app.number("SELECT count(*) FROM app.job_events WHERE type = 'job.started'").await;
    let arrivals = i64::try_from(app.provider.stats().arrivals).unwrap();
    assert!(arrivals <= calls, "{arrivals} calls arrived, {calls} were begun");
    // And it was chaos.
    let requeued = app.number("SELECT count(*) FROM app.job_events WHERE type = 'job.requeued'").await;
    assert!(
        kills >= 5 && freezes >= 1 && requeued >= 5,
        "{kills} kills, {requeued} requeued: that was too quiet"
    );
    println!(
        "{kills} kills, {freezes} freezes: {requeued} requeued, {retried} retried, {arrivals} calls arrived, {elapsed:.1?}"
    );
}
