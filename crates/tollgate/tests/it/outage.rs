//! What the death of PostgreSQL does, each time on a cluster of the test's own: a crash, an outage far longer than the
//! visibility timeout, and a server that says nothing for a while. Workers live through all of it, and no job is run twice
//! because of it.
//!
//! `OUTAGE_SECONDS` makes the outage longer than its 12 s.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use tollgate_model::job::{Job, JobStatus};
use tollgate_model::submission::Submission;
use tollgate_outbound::{ApiError, TollgateClient};
use tollgate_sim::{Behaviour, Step};
use tollgate_testkit::{TestApp, Tune, eventually};
use uuid::Uuid;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

/// A poll that no test waits for.
const NO_POLLING: (&str, &str) = ("QUEUE_POLL_INTERVAL", "30s");
const LONG_CALLS: (&str, &str) = ("REQUEST_TIMEOUT_MS", "180000");

async fn start(workers: usize, settings: &[(&'static str, &str)], log: Option<&NamedTempFile>) -> TestApp {
    let provider = Behaviour { latency_median_ms: 50, ..Behaviour::default() };
    let log = log.map(|file| file.path().to_owned());
    let tune = Tune { workers, own_database: true, log, ..Tune::worker(settings) };
    TestApp::start(BINARY, tune.provider(provider)).await
}

/// The job's id, unless the API says "not now"; anything else is no way to answer.
async fn try_submit(client: &TollgateClient, prompt: &str) -> Option<Uuid> {
    let submission = Submission { prompt: Some(prompt.to_owned()), ..Submission::default() };
    match client.submit(&submission).await {
        Ok(id) => Some(id),
        Err(ApiError::Refused { status: 503, code, .. }) if code == "unavailable" => None,
        Err(error) => panic!("neither success nor 503: {error}"),
    }
}

/// As soon as the API takes it.
async fn insist(app: &TestApp, prompt: &str) -> Uuid {
    let client = app.client();
    eventually("the API recovers", Duration::from_secs(10), || try_submit(&client, prompt)).await
}

async fn ended(app: &TestApp, jobs: &[Uuid]) -> Vec<Job> {
    eventually("every job ended", Duration::from_mins(1), || async {
        (app.number("SELECT count(*) FROM app.jobs WHERE finished_at IS NULL").await == 0).then_some(())
    })
    .await;
    let mut all = Vec::new();
    for id in jobs {
        all.push(app.ended(*id).await);
    }
    all
}

/// How long the job was ready before it was started.
fn waited(job: &Job) -> TimeDelta {
    job.started_at.map_or(TimeDelta::MAX, |started| started - job.scheduled_at)
}

/// The calls that the provider has seen.
fn calls(app: &TestApp) -> u64 {
    app.provider.stats().arrivals
}

async fn called(app: &TestApp, calls_in_all: u64) {
    eventually(&format!("{calls_in_all} calls"), Duration::from_secs(30), || async {
        (calls(app) >= calls_in_all).then_some(())
    })
    .await;
}

/// What the sweeps of all workers found; in a healthy history: nothing.
async fn swept(app: &TestApp) -> f64 {
    let mut sum = 0.0;
    for worker in &app.workers {
        sum += worker.metric("tollgate_swept_total").await;
    }
    sum
}

async fn worker_ids(app: &TestApp) -> BTreeSet<Uuid> {
    let ids = sqlx::query_scalar("SELECT id FROM queue.workers").fetch_all(&app.owner).await;
    ids.unwrap().into_iter().collect()
}

/// All is as it was: an idle worker hears of a job at once, and does not poll for it, which would take half a minute. (It
/// may take a second on a machine that does nothing else.)
async fn wakes_at_once(app: &TestApp, prompt: &str) {
    let job = app.ended(insist(app, prompt).await).await;
    assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1));
    println!("`{prompt}` waited for {}", waited(&job));
    assert!(waited(&job) < TimeDelta::seconds(5), "`{prompt}` waited for {}", waited(&job));
}

#[tokio::test]
async fn a_crash_of_the_database_costs_no_job_and_no_call() {
    let app = start(2, &[NO_POLLING, ("Q_GEN_CREATE_CONCURRENCY", "10")], None).await;
    let workers = worker_ids(&app).await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        let before = calls(&app);
        app.provider.script([Step::ok().latency_ms(3000).times(20)]).unwrap();
        for n in 0..40 {
            jobs.push(insist(&app, &format!("job {n}")).await);
        }
        called(&app, before + 20).await;
        app.db.restart_immediate().await;
        // Nobody waits for the workers: they are to be there when the database is.
        wakes_at_once_or_queues(&app).await;
        ended(&app, &[]).await;
        // And once more while everybody idles.
        app.db.restart_immediate().await;
        wakes_at_once(&app, "while they idled").await;
    }
    for job in ended(&app, &jobs).await {
        assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1), "{}", job.id);
    }
    let stats = app.provider.stats();
    assert!(stats.repeated_request_ids.is_empty(), "called twice: {:?}", stats.repeated_request_ids);
    assert_eq!(i64::try_from(stats.arrivals).unwrap(), app.number("SELECT count(*) FROM app.jobs").await);
    assert!(swept(&app).await.abs() < 0.5);
    assert_eq!(worker_ids(&app).await, workers, "somebody was given up");
    app.assert_consistent().await;
}

/// A submission right after the crash is accepted; it has to wait for a slot.
async fn wakes_at_once_or_queues(app: &TestApp) {
    insist(app, "right after the crash").await;
}

/// How often the workers have said this, of each thing that they do.
fn said(lines: &str, message: &str) -> BTreeMap<String, usize> {
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut said = BTreeMap::new();
    for line in lines.filter(|line| line["message"] == message) {
        *said.entry(line["what"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    said
}

/// Counts who dials the port of a server that is not there.
async fn connections(port: u16, during: Duration) -> usize {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let until = Instant::now() + during;
    let mut count = 0;
    while Instant::now() < until {
        while listener.accept().is_ok() {
            count += 1;
        }
        sleep(Duration::from_millis(2)).await;
    }
    count
}

#[tokio::test]
async fn an_outage_longer_than_every_lease_takes_no_job_from_a_worker_that_lives() {
    let seconds: u32 = env::var("OUTAGE_SECONDS").map_or(12, |text| text.parse().unwrap());
    let outage = Duration::from_secs(seconds.into());
    let log = NamedTempFile::new().unwrap();
    let settings = [
        NO_POLLING,
        LONG_CALLS,
        ("VISIBILITY_TIMEOUT", "4s"),
        ("Q_GEN_CREATE_CONCURRENCY", "4"),
        ("LOG_LEVEL", "info"),
    ];
    let mut app = start(3, &settings, Some(&log)).await;
    // Twelve calls: some are answered during the outage, some after it. Thirty jobs wait.
    app.provider
        .script([
            Step::ok().matching("answered during").latency_ms(5000).times(6),
            Step::ok().matching("answered after").latency_ms(seconds * 1000 + 5000).times(6),
        ])
        .unwrap();
    let mut jobs = Vec::new();
    for n in 0..6 {
        jobs.push(app.submit(&format!("answered during it {n}")).await);
        jobs.push(app.submit(&format!("answered after it {n}")).await);
    }
    called(&app, 12).await;
    for n in 0..30 {
        jobs.push(app.submit(&format!("waits {n}")).await);
    }
    let before = worker_ids(&app).await;
    // One worker dies meanwhile: these jobs, and no others, are to be run again.
    let victim = app.workers.remove(0);
    let its_jobs = format!(
        "SELECT t.id FROM queue.tasks t JOIN queue.workers w ON w.id = t.worker_id WHERE w.name LIKE '%:{}'",
        victim.pid()
    );
    let lost: Vec<Uuid> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(its_jobs)).fetch_all(&app.owner).await.unwrap();
    assert!(!lost.is_empty());

    let began = Instant::now();
    let logged = fs::read_to_string(log.path()).unwrap().len();
    app.db.down().await;
    victim.kill().await;
    let client = app.client();
    assert_eq!(try_submit(&client, "refused").await, None);
    // Past the visibility timeout, and once nobody is in a hurry any more.
    sleep((outage / 2).saturating_sub(began.elapsed())).await;
    let watched = outage / 3;
    let dialled = connections(app.db.port(), watched).await;
    assert_eq!(timeout(Duration::from_secs(10), try_submit(&client, "refused")).await, Ok(None));
    sleep(outage.saturating_sub(began.elapsed())).await;
    let lines = fs::read_to_string(log.path()).unwrap()[logged..].to_owned();
    app.db.up().await;
    let back = Instant::now();

    let rate = dialled as f64 / watched.as_secs_f64();
    println!(
        "an API and two workers dialled {dialled} times in {watched:?}, the workers wrote {} lines",
        lines.lines().count()
    );
    // In each of them one looks whether it is back, four times a second, and nobody else.
    assert!(rate < 3.0 * 5.0, "an API and two workers dialled {rate} times a second");
    assert!(lines.lines().count() <= 40, "a storm of log lines:\n{lines}");
    let failing = said(&lines, "failed; trying again until it works");
    assert!(!failing.is_empty(), "nothing fails:\n{lines}");
    // The third had the time to say it before it was killed.
    assert!(failing.values().all(|count| *count <= 3), "said more than once a worker: {failing:?}");

    // What the living have in hand is theirs still, and what the dead one had comes back.
    for job in ended(&app, &jobs).await {
        assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1), "{}", job.id);
        let calls = app.provider.arrivals_of(&job.id.to_string());
        let requeued = app.history(job.id).await.iter().any(|event| event == "requeued");
        let expected = if lost.contains(&job.id) { (2, true) } else { (1, false) };
        assert_eq!((calls, requeued), expected, "{}: {:?}", job.id, app.history(job.id).await);
    }
    println!("all ended {:.1?} after the database was back", back.elapsed());
    // The dead one is gone, and the living have kept their names: nobody gave them up.
    let after = worker_ids(&app).await;
    // Each process is one worker a queue.
    assert!(after.len() == 6 && after.is_subset(&before), "{before:?} became {after:?}");
    app.assert_consistent().await;
    for n in 0..5 {
        wakes_at_once(&app, &format!("afterwards {n}")).await;
    }
    let lines = fs::read_to_string(log.path()).unwrap()[logged..].to_owned();
    assert_eq!(said(&lines, "the database is back").values().sum::<usize>(), 2, "{lines}");
    let works = said(&lines, "works again");
    // Once it is back, a worker may find a dead connection more.
    let most = 2 * after.len();
    assert!(works.contains_key("heartbeat") && works.values().all(|count| *count <= most), "{works:?}");
}

/// The postmaster and all that it has started.
fn processes(postmaster: u32) -> Vec<u32> {
    let children = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit(") ").next()?.split(' ').nth(1)?.parse::<u32>().ok()?;
        (parent == postmaster).then_some(pid)
    });
    // The postmaster first: from then on there are no more of them.
    std::iter::once(postmaster).chain(children).collect()
}

async fn signal(signal: &str, pids: &[u32]) {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    // One that has just ended by itself is no matter.
    let _ = Command::new("kill")
        .args(["-s", signal])
        .args(pids)
        .stderr(std::process::Stdio::null())
        .status()
        .await;
}

/// No connection breaks, and none answers: a stalled disk, a suspended machine. What was under way when it stopped goes
/// on when it wakes, sweeps among it, at a moment at which every heartbeat is long overdue.
#[tokio::test]
async fn a_database_that_says_nothing_for_a_while_takes_no_job_from_a_worker_that_lives() {
    let settings = [NO_POLLING, LONG_CALLS, ("VISIBILITY_TIMEOUT", "3s"), ("Q_GEN_CREATE_CONCURRENCY", "4")];
    let app = start(3, &settings, None).await;
    let before = worker_ids(&app).await;
    let mut jobs = Vec::new();
    for round in 0..2 {
        let already = calls(&app);
        app.provider
            .script([Step::ok().latency_ms(5000).times(6), Step::ok().latency_ms(9000).times(6)])
            .unwrap();
        for n in 0..20 {
            jobs.push(insist(&app, &format!("round {round}, job {n}")).await);
        }
        called(&app, already + 12).await;
        // So that each has testified for longer than a visibility timeout.
        sleep(Duration::from_secs(1)).await;
        signal("STOP", &[app.db.postmaster()]).await;
        let all = processes(app.db.postmaster());
        signal("STOP", &all).await;
        sleep(Duration::from_secs(6)).await;
        signal("CONT", &all).await;
        ended(&app, &[]).await;
    }
    for job in ended(&app, &jobs).await {
        assert_eq!((job.status, job.attempts), (JobStatus::Succeeded, 1), "{}", job.id);
    }
    let stats = app.provider.stats();
    assert!(stats.repeated_request_ids.is_empty(), "called twice: {:?}", stats.repeated_request_ids);
    assert_eq!(worker_ids(&app).await, before, "somebody was given up");
    app.assert_consistent().await;
    wakes_at_once(&app, "afterwards").await;
}
