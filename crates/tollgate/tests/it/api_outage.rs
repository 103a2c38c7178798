//! The API while PostgreSQL is away: refused at once, said once, and well again by itself.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use reqwest::header::{ACCEPT, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::json;
use tempfile::NamedTempFile;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tollgate_domain::Role;
use tollgate_testkit::{Process, TestApp, Tune, eventually};
use uuid::Uuid;

use crate::watched::{SUBMIT, refused};

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");

/// An API whose PostgreSQL goes away, and whose log is looked at afterwards.
struct Outage {
    app: TestApp,
    api: Process,
    http: Client,
    log: NamedTempFile,
}

impl Outage {
    async fn start() -> Self {
        tollgate_outbound::install_crypto_provider();
        let log = NamedTempFile::new().unwrap();
        let app = TestApp::start(BINARY, Tune { own_database: true, ..Tune::default() }).await;
        let environment = [
            ("DATABASE_URL", app.db.role_url(Role::Api)),
            ("LOG_LEVEL", "warn".into()),
            ("RATE_LIMIT_DEFAULT", "off".into()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        let arguments = ["--json", "api", "--listen", "127.0.0.1:0"];
        let api = Process::start_logged(Path::new(BINARY), &arguments, &environment, Some(log.path())).await;
        Self { app, api, http: Client::builder().no_proxy().tls_certs_only([]).build().unwrap(), log }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.api.url())).bearer_auth(&self.app.key)
    }

    /// Each kind of request that needs the database.
    fn requests(&self) -> Vec<RequestBuilder> {
        let id = Uuid::nil();
        vec![
            self.submission(),
            self.request(Method::GET, "/v1/jobs"),
            self.request(Method::GET, &format!("/v1/jobs/{id}")),
            self.request(Method::GET, &format!("/v1/jobs/{id}/events")).header(ACCEPT, "text/event-stream"),
            self.request(Method::POST, &format!("/v1/jobs/{id}/cancel")),
            self.request(Method::GET, "/v1/api-keys"),
            self.request(Method::GET, "/api/ai/status"),
        ]
    }

    fn submission(&self) -> RequestBuilder {
        self.request(Method::POST, SUBMIT).json(&json!({"prompt": "whatever happens"}))
    }

    async fn submit(&self) -> Response {
        self.submission().send().await.unwrap()
    }

    async fn well_again(&self) {
        eventually("the API is well again", Duration::from_secs(10), || async {
            (self.submit().await.status() == 202).then_some(())
        })
        .await;
    }

    /// Lines of the API's log, from warnings on, that hold `text`.
    fn lines(&self, text: &str) -> usize {
        let log = std::fs::read_to_string(self.log.path()).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// Sends many requests at once, and checks that each is told to come again. Returns how long the slowest took.
    async fn refused_at_once(&self, times: usize) -> Duration {
        let mut all = JoinSet::new();
        for request in (0..times).flat_map(|_| self.requests()) {
            all.spawn(async move {
                let began = Instant::now();
                let reply = request.send().await.unwrap();
                let wait: u32 = reply.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
                assert!((1..=60).contains(&wait), "{wait}");
                refused("while it is away", reply, 503, "unavailable").await;
                began.elapsed()
            });
        }
        all.join_all().await.into_iter().max().unwrap()
    }

    async fn answers(&self, path: &str) -> u16 {
        self.request(Method::GET, path).send().await.unwrap().status().as_u16()
    }
}

#[tokio::test]
async fn while_postgresql_is_down_all_are_told_at_once_and_the_log_says_it_once() {
    let outage = Outage::start().await;
    outage.well_again().await;
    let id = outage.app.submit("followed").await;
    let path = format!("/v1/jobs/{id}/events");
    let mut stream =
        outage.request(Method::GET, &path).header(ACCEPT, "text/event-stream").send().await.unwrap();
    assert!(stream.chunk().await.unwrap().unwrap().starts_with(b"id: 1\nevent: job.queued"));

    outage.app.db.down().await;
    let began = Instant::now();
    // Nobody waits for a pool that cannot connect, not even the first who ask.
    let first = outage.refused_at_once(30).await;
    assert!(first < Duration::from_secs(4), "one of the first waited for {first:?}");
    let then = outage.refused_at_once(60).await;
    assert!(then < Duration::from_secs(2), "one waited for {then:?}");
    println!(
        "the slowest of the first 210 took {first:?}, of the next 420 {then:?}, all {:?}",
        began.elapsed()
    );
    assert_eq!(outage.answers("/readyz").await, 503);
    for path in ["/healthz", "/api/health", "/openapi.json", "/metrics"] {
        assert_eq!(outage.answers(path).await, 200, "{path}");
    }
    assert_eq!(outage.api.metric("tollgate_database_away").await.to_string(), "1");

    outage.app.db.up().await;
    outage.well_again().await;
    // Well for all, not for the one who asked: no connection of before is left to fail on.
    for request in (0..10).flat_map(|_| outage.requests()) {
        let reply = request.send().await.unwrap();
        assert!(reply.status().as_u16() < 500, "{}", reply.text().await.unwrap());
    }
    assert_eq!(outage.answers("/readyz").await, 200);
    assert_eq!(outage.api.metric("tollgate_database_away").await.to_string(), "0");

    // Who followed a job has missed nothing.
    outage.app.client().cancel(id).await.unwrap();
    let mut rest = String::new();
    let read = async {
        while let Some(chunk) = stream.chunk().await.unwrap() {
            rest += std::str::from_utf8(&chunk).unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("the stream does not end");
    assert!(rest.contains("id: 2\nevent: job.cancelled"), "{rest}");

    assert_eq!(outage.lines("the database is away"), 1);
    assert_eq!(outage.lines("the database is back"), 1);
    let all = outage.lines("");
    assert!(all <= 4, "{all} lines:\n{}", std::fs::read_to_string(outage.log.path()).unwrap());
}

#[tokio::test]
async fn after_a_crash_of_postgresql_what_was_accepted_is_there() {
    let outage = Outage::start().await;
    let (mut accepted, mut refusals) = (Vec::new(), 0);
    for round in 0..3 {
        let enough = accepted.len() + 20;
        let (crash_now, told) = tokio::sync::oneshot::channel();
        let mut crash_now = Some(crash_now);
        let crash = async {
            told.await.unwrap();
            outage.app.db.restart_immediate().await;
            tokio::time::sleep(Duration::from_millis(700)).await;
        };
        let mut crash = std::pin::pin!(crash);
        loop {
            let reply = tokio::select! {
                () = &mut crash => break,
                reply = outage.submit() => reply,
            };
            if reply.status() == 202 {
                let body: serde_json::Value = reply.json().await.unwrap();
                accepted.push(body["job_id"].as_str().unwrap().parse::<Uuid>().unwrap());
                if accepted.len() >= enough
                    && let Some(now) = crash_now.take()
                {
                    now.send(()).unwrap();
                }
            } else {
                refused("in a crash", reply, 503, "unavailable").await;
                refusals += 1;
            }
        }
        let began = Instant::now();
        outage.well_again().await;
        println!("round {round}: well again after {:?}", began.elapsed());
    }
    for id in &accepted {
        outage.app.client().job(*id).await.unwrap();
    }
    println!("{} accepted, {refusals} refused", accepted.len());
    outage.app.assert_consistent().await;
    let all = outage.lines("");
    assert!(all <= 12, "{all} lines:\n{}", std::fs::read_to_string(outage.log.path()).unwrap());
}

/// Processes that stand still until it is dropped.
struct Stopped(Vec<String>);

impl Stopped {
    fn new(processes: Vec<String>) -> Self {
        signal("-STOP", &processes);
        Self(processes)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal("-CONT", &self.0);
    }
}

fn signal(signal: &str, processes: &[String]) {
    assert!(Command::new("kill").arg(signal).args(processes).status().unwrap().success());
}

/// Nothing answers and nothing fails, as behind a firewall that drops what it gets.
#[tokio::test]
async fn a_server_that_says_nothing_is_away_as_well() {
    let outage = Outage::start().await;
    outage.well_again().await;
    let postmaster = outage.app.db.postmaster().to_string();
    let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
    // The postmaster first: it makes no others meanwhile.
    let all = [postmaster].into_iter().chain(children.split_whitespace().map(str::to_owned)).collect();
    let stopped = Stopped::new(all);
    let slowest = outage.refused_at_once(5).await;
    drop(stopped);
    assert!(slowest < Duration::from_secs(6), "one waited for {slowest:?}");
    println!("the slowest took {slowest:?}");
    outage.well_again().await;
    assert_eq!(outage.lines("the database is away"), 1);
}
