//! What nobody waits for any more: a request whose client has left, and the processes of a test that was killed.

use std::env;
use std::process::Stdio;
use std::time::Duration;

use sqlx::PgPool;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tollgate_domain::ids::new_id;
use tollgate_domain::queue::{self, NewTask};
use tollgate_domain::{Database, Role, runs};
use tollgate_model::account::AccountId;
use tollgate_model::queue::{Lease, QueueName};
use tollgate_testkit::{TestApp, TestDb, Tune, eventually};

async fn signal(signal: &str, pid: i32) {
    let done = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().await;
    assert!(done.unwrap().success(), "kill -s {signal} {pid}");
}

async fn number(owner: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(owner).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// The pid of the only session of the worker's role.
async fn backend(owner: &PgPool) -> i32 {
    let sql =
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = 'app_worker'";
    sqlx::query_scalar(sql).fetch_one(owner).await.unwrap()
}

/// Writes in a commit of its own, on whatever connection the pool has.
async fn write(db: &Database) {
    let task = NewTask {
        id: new_id(),
        queue: QueueName::GenerationProbe,
        task_type: "test",
        payload: &serde_json::Value::Null,
        priority: 5,
        max_attempts: 1,
        run_at: None,
        ttl: Duration::from_mins(1),
    };
    let tasks = [(AccountId(new_id()), task)];
    let done = queue::enqueue_all(db, QueueName::GenerationProbe, Duration::from_mins(1), &tasks).await;
    done.unwrap_or_else(|error| panic!("{error}"));
}

/// The moment at which a request is dropped is the answer to BEGIN: the server, which is held, has not given it yet.
#[tokio::test]
async fn a_request_that_is_dropped_as_its_transaction_begins_leaves_none_open() {
    let db = TestDb::new().await;
    let owner = db.owner().await;
    let one = Database::connect(&db.role_url(Role::Worker), Role::Worker, 1, true).await.unwrap();
    let lease = Lease { account: AccountId(new_id()), task: new_id(), token: 1 };
    for round in 0..6 {
        write(&one).await;
        let pid = backend(&owner).await;
        signal("STOP", pid).await;
        let patience = Duration::from_millis(100);
        let cut_off = if round % 2 == 0 {
            tokio::time::timeout(patience, runs::release(&one, QueueName::GenerationCreate, lease, "test"))
                .await
                .is_err()
        } else {
            let settings = queue::lane_settings(&one, QueueName::GenerationProbe, lease.account);
            tokio::time::timeout(patience, settings).await.is_err()
        };
        signal("CONT", pid).await;
        assert!(cut_off, "it was over before it could be dropped");

        // What is written next is there when it is said to be.
        write(&one).await;
        assert_eq!(
            number(&owner, "SELECT count(*) FROM queue.tasks").await,
            2 * (round + 1),
            "round {round}"
        );
        let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                    AND usename = 'app_worker' AND state <> 'idle'";
        eventually("no transaction is open", Duration::from_secs(2), || async {
            (number(&owner, open).await == 0).then_some(())
        })
        .await;
    }
}

/// Set for the process that is to be killed.
const VICTIM: &str = "TOLLGATE_TEST_TO_BE_KILLED";

/// Not a test of its own: what the next one runs in another process, and kills.
#[tokio::test]
async fn a_test_that_is_killed() {
    if env::var_os(VICTIM).is_none() {
        return;
    }
    let app = TestApp::start(env!("CARGO_BIN_EXE_tollgate"), Tune::worker(&[])).await;
    let postmaster = tollgate_testkit::with_cluster(tollgate_devdb::Server::pid);
    println!("\nPIDS {} {} {postmaster}", app.api.pid(), app.workers[0].pid());
    tokio::time::sleep(Duration::from_mins(5)).await;
}

#[tokio::test]
async fn a_killed_test_process_leaves_no_process_behind() {
    let mut victim = Command::new(env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "abandoned::a_test_that_is_killed"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let pids: Vec<u32> = loop {
        let line = tokio::time::timeout(Duration::from_mins(2), lines.next_line()).await.unwrap().unwrap();
        if let Some(pids) = line.expect("it ended by itself").strip_prefix("PIDS ") {
            break pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
        }
    };
    let runs = |pid: &u32| {
        // One that has ended and waits to be reaped does not run.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    };
    assert_eq!((pids.len(), pids.iter().filter(|pid| runs(pid)).count()), (3, 3));
    victim.kill().await.unwrap();
    eventually("all of them are gone", Duration::from_secs(20), || async {
        (!pids.iter().any(runs)).then_some(())
    })
    .await;
}
