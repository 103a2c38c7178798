//! Probes: one in the whole fleet, whoever makes it, and whatever becomes of him.

use std::path::PathBuf;
use std::process::Command;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use tempfile::TempDir;
use tollgate_model::job::JobStatus;
use tollgate_sim::{Behaviour, Fault, Faults, Step};
use tollgate_testkit::eventually;

use super::fleet::{Fleet, now, pause};
use super::{live_through, well};
use crate::operators::command;

/// An open period that ends soon, and then probes, made of these jobs.
async fn open_for(fleet: &Fleet, time: &str) {
    let (code, status, said) = command(&fleet.app, &format!("guard open text --for {time}")).await;
    assert_eq!((code, &status["circuit"]["state"]), (0, &json!("open")), "{said}");
}

#[tokio::test]
async fn another_worker_takes_over_from_one_that_died_with_its_probe() {
    let figures = json!({
        "timeout_floor": "6s", "timeout_initial": "6s", "timeout_ceiling": "6s", "probe_slack": "500ms",
    });
    let lease = TimeDelta::milliseconds(6500);
    let slow = Behaviour { latency_median_ms: 5000, ..Behaviour::default() };
    let mut fleet = Fleet::start(2, &figures, &[("VISIBILITY_TIMEOUT", "1200ms")], slow).await;
    let start = now();
    open_for(&fleet, "1500ms").await;
    fleet.submit(8).await;
    fleet.look("a probe", start, |look| look.in_flight == 1).await;
    // The probe is a job, and its task names the worker: "host:process".
    let sql = "SELECT w.name, t.started_at FROM queue.tasks t JOIN queue.workers w ON w.id = t.worker_id
               WHERE t.state = 'running'";
    let (name, first): (String, DateTime<Utc>) =
        sqlx::query_as(sql).fetch_one(&fleet.app.owner).await.unwrap();
    let pid: u32 = name.rsplit(':').next().unwrap().parse().unwrap();
    let at = fleet.app.workers.iter().position(|worker| worker.pid() == pid).unwrap();
    fleet.app.workers.swap_remove(at).kill().await;
    let killed = fleet.provider_is(well());
    fleet.look("the probe's end", killed, |look| look.in_flight == 0).await;
    let next = fleet.look("the next probe", killed, |look| look.in_flight == 1).await;
    let closed = fleet.becomes("closed", killed).await;
    let stock = fleet.stock().await;
    println!(
        "SIGKILL of the prober: the next probe {} ms after the first one, by a lease of {} ms; closed {} ms after the kill; \
         {} at once; {} calls for {} jobs, {} lost",
        (next - first).num_milliseconds(),
        lease.num_milliseconds(),
        (closed - killed).num_milliseconds(),
        fleet.probes_at_once(),
        stock.calls,
        stock.jobs,
        stock.failed,
    );
    assert!(next - first >= lease - TimeDelta::milliseconds(300), "before the lease's end");
    assert!(next - first < lease + TimeDelta::milliseconds(3000), "{}", next - first);
    assert_eq!((fleet.probes_at_once(), stock.failed), (1, 0));
    assert_eq!((stock.calls, stock.burnt), (9, 0), "the killed call, and one for each job");
}

#[tokio::test]
async fn a_probe_that_we_gave_up_ourselves_is_another_workers_at_once() {
    let figures = json!({
        "timeout_floor": "10s", "timeout_initial": "10s", "timeout_ceiling": "10s", "probe_slack": "10s",
    });
    let fleet = Fleet::start(2, &figures, &[("REQUEST_TIMEOUT_MS", "20000")], well()).await;
    let start = now();
    fleet.app.provider.script([Step::fault(Fault::Hang).matching("number 0").times(1)]).unwrap();
    open_for(&fleet, "1s").await;
    let hanging = fleet.submit(1).await[0];
    fleet.app.job_when("runs", hanging, |job| job.status == JobStatus::Running).await;
    fleet.look("the probe", start, |look| look.in_flight == 1).await;
    fleet.submit(10).await;
    pause(300).await;
    assert_eq!(fleet.stats().arrivals, 1, "only the probe");
    fleet.app.client().cancel(hanging).await.unwrap();
    let cancelled = now();
    let next = fleet.look("the next probe", cancelled, |look| look.arrivals > 1).await;
    let closed = fleet.becomes("closed", cancelled).await;
    println!(
        "our own cancel of a probe: the next one {} ms later, closed after {} ms, by a lease of 20 s; {} at once",
        (next - cancelled).num_milliseconds(),
        (closed - cancelled).num_milliseconds(),
        fleet.probes_at_once(),
    );
    assert!((next - cancelled).num_milliseconds() < 1000, "{}", next - cancelled);
    assert_eq!(fleet.probes_at_once(), 1);
    assert_eq!(fleet.states(), ["open", "half_open", "closed"], "it was no failure of the provider's");
    eventually("the others have ended", std::time::Duration::from_secs(10), || async {
        let done = "SELECT count(*) FROM app.jobs WHERE status = 'succeeded' AND attempts = 1";
        (fleet.app.number(done).await == 10).then_some(())
    })
    .await;
}

/// Every row there is of tenants and queues, but for those that say who is alive, whose books were looked at, or
/// what the operator of this test did.
async fn rows(fleet: &Fleet) -> Vec<(String, i64)> {
    let tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
                  WHERE schemaname IN ('app', 'queue') AND tablename NOT IN ('workers', 'lane_counts', 'ledger_sums', 'audit_log') ORDER BY 1";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&fleet.app.owner).await.unwrap();
    let mut rows = Vec::new();
    for table in tables {
        let count = fleet.app.number(&format!("SELECT count(*) FROM {table}")).await;
        rows.push((table, count));
    }
    rows
}

#[tokio::test]
async fn where_no_job_waits_the_probe_is_our_own_and_leaves_no_trace() {
    let fleet = Fleet::start(2, &json!({}), &[], well()).await;
    let before = rows(&fleet).await;
    let start = now();
    open_for(&fleet, "500ms").await;
    let half_open = fleet.becomes("half_open", start).await;
    let closed = fleet.becomes("closed", start).await;
    println!(
        "synthetic probes: {} calls, {} at once, closed {} ms after it was half-open",
        fleet.stats().arrivals,
        fleet.probes_at_once(),
        (closed - half_open).num_milliseconds(),
    );
    assert_eq!((fleet.stats().arrivals, fleet.probes_at_once()), (3, 1));
    assert_eq!(rows(&fleet).await, before, "a probe has left something behind");
}

/// Wall clocks hours apart. What workers tell of their calls are ages by the monotonic clock; leases, pauses and open
/// periods are the database's.
#[tokio::test]
async fn skewed_clocks_change_nothing() {
    let directory = TempDir::new().unwrap();
    let library = skewed_clock(&directory);
    let faults = Faults { server_error: 0.6, ..Faults::default() };
    let mut fleet = Fleet::start(0, &json!({}), &[], Behaviour { faults, seed: 7, ..well() }).await;
    for skew in ["7200", "-7200"] {
        let skewed = [("LD_PRELOAD", library.to_str().unwrap()), ("SKEW_SECONDS", skew)];
        let worker = fleet.worker_with(&skewed).await;
        fleet.app.workers.push(worker);
    }
    live_through("60% 5xx, two clocks 4 hours apart", &fleet).await;
    // They really were: the log has their times.
    let log = std::fs::read_to_string(fleet.log.path()).unwrap();
    let off: Vec<i64> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|line| line["timestamp"].as_str()?.parse::<DateTime<Utc>>().ok())
        .map(|at| (at - now()).num_minutes())
        .collect();
    assert!(off.iter().any(|off| *off > 100) && off.iter().any(|off| *off < -100), "{off:?}");
}

fn skewed_clock(directory: &TempDir) -> PathBuf {
    let (source, library) =
        (directory.path().join("skewed_clock.c"), directory.path().join("skewed_clock.so"));
    std::fs::write(&source, include_str!("skewed_clock.c")).unwrap();
    let made =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").status();
    assert!(made.unwrap().success(), "the compiler that links Rust's programs is there");
    library
}
