//! The same request many times at once, over two APIs, and over APIs that die in the middle of it: one job a key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::RngExt as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use reqwest::Method;
use reqwest::header::RETRY_AFTER;
use sqlx::PgPool;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tollgate_domain::Role;
use tollgate_testkit::{PgProxy, Process, Sender, TestApp, eventually};

use crate::idempotency_client::{BINARY, KEY, Reply, Till, job, open, priced, same, stored};
use crate::watched::SUBMIT;

const AT_ONCE: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_who_ask_the_same_at_once_are_answered_the_same_for_one_job() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let other = app.start_api().await;
    let (_, till) = open(&app, 1000).await;
    let tills = [till.clone(), till.moved(&other.url())];
    for round in 0..6 {
        let key = format!("round {round}");
        let asked = job(&key, 7);
        let mut all = JoinSet::new();
        for nr in 0..AT_ONCE {
            let (till, key, asked) = (tills[nr % 2].clone(), key.clone(), asked.clone());
            all.spawn(async move { till.submit(&key, &asked).await });
        }
        let replies = all.join_all().await;
        let (done, put_off): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 202);
        for reply in &put_off {
            reply.refused(409, "idempotency_in_flight");
            let wait: u32 = reply.headers[RETRY_AFTER].to_str().unwrap().parse().unwrap();
            assert!((1..=60).contains(&wait) && !reply.headers.contains_key("x-should-retry"), "{reply:?}");
        }
        let first: Vec<&&Reply> = done.iter().filter(|reply| !reply.replayed()).collect();
        assert_eq!(first.len(), 1, "of {} accepted, those that did it", done.len());
        first[0].job();
        for reply in done.iter().filter(|reply| reply.replayed()) {
            same(first[0], reply);
        }
        same(first[0], &tills[round % 2].submit(&key, &asked).await);
        assert_eq!(stored(&app).await, [i64::try_from(round).unwrap() + 1; 6], "{} put off", put_off.len());
    }
    app.assert_books().await;
}

/// Waits until so many of the API's statements wait for a lock.
async fn blocked(owner: &PgPool, statements: i64) {
    let sql = "SELECT count(*) FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%app.submit%'";
    eventually(&format!("{statements} submissions wait"), Duration::from_secs(5), || async {
        let count: i64 = sqlx::query_scalar(sql).fetch_one(owner).await.unwrap();
        (count == statements).then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_request_with_the_key_of_one_in_flight_is_a_conflict_and_the_same_one_a_replay() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let other = app.start_api().await;
    let here = Till::of(&app);
    let there = here.moved(&other.url());
    for (round, first_fails) in [false, true].into_iter().enumerate() {
        let key = format!("round {round}");
        let (this, that) = (job("this", 7), job("that", 7));
        let mut lock = app.owner.begin().await.unwrap();
        sqlx::query("SELECT FROM app.credit_balances FOR UPDATE").execute(&mut *lock).await.unwrap();
        let ask = |till: &Till, asked: &serde_json::Value| {
            let (till, key, asked) = (till.clone(), key.clone(), asked.clone());
            async move { till.submit(&key, &asked).await }
        };
        let mut first = JoinSet::new();
        first.spawn(ask(&here, &this));
        blocked(&app.owner, 1).await;
        let mut later = JoinSet::new();
        later.spawn(ask(&there, &that));
        blocked(&app.owner, 2).await;
        later.spawn(ask(&here, &that));
        let mut again = JoinSet::new();
        again.spawn(ask(&here, &this));
        again.spawn(ask(&there, &this));
        if first_fails {
            // Whoever comes second is then the first.
            let kill = "WITH first AS MATERIALIZED (
                            SELECT pid FROM pg_stat_activity
                            WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%app.submit%'
                              AND pg_blocking_pids(pid) = ARRAY[pg_backend_pid()])
                        SELECT count(pg_terminate_backend(pid)) FROM first";
            let killed: i64 = sqlx::query_scalar(kill).fetch_one(&mut *lock).await.unwrap();
            assert_eq!(killed, 1);
        }
        lock.commit().await.unwrap();
        let first = first.join_all().await.remove(0);
        let (later, again) = (later.join_all().await, again.join_all().await);
        if first_fails {
            first.refused(503, "unavailable");
            // One of the two requests was done, and the other is a conflict.
            let all: Vec<&Reply> = later.iter().chain(&again).collect();
            let done: Vec<_> = all.iter().filter(|reply| reply.status == 202).collect();
            assert_eq!(done.iter().filter(|reply| !reply.replayed()).count(), 1, "{all:?}");
            for reply in all.iter().filter(|reply| reply.status != 202) {
                reply.refused(409, "idempotency_key_conflict");
            }
        } else {
            for reply in &later {
                reply.is_final().refused(409, "idempotency_key_conflict");
            }
            for reply in &again {
                same(&first, reply);
            }
        }
        assert_eq!(stored(&app).await, [i64::try_from(round).unwrap() + 1; 6]);
    }
    app.assert_books().await;
}

/// The row of the balance is locked for longer than anybody waits, or the server says so: that is no news of anybody's key.
#[tokio::test]
async fn whoever_sent_no_key_is_not_told_that_his_key_is_in_flight() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let till = Till::of(&app);
    app.change(
        "CREATE FUNCTION app.too_long() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM pg_sleep(0.05);
             RAISE EXCEPTION 'canceling statement due to lock timeout' USING ERRCODE = '55P03';
         END $$;
         CREATE TRIGGER too_long BEFORE INSERT ON app.jobs FOR EACH STATEMENT EXECUTE FUNCTION app.too_long()",
    )
    .await;
    let mut all = JoinSet::new();
    for nr in 0..AT_ONCE {
        let till = till.clone();
        all.spawn(async move {
            let asked = job(&format!("{nr}"), 5);
            let keyed = nr % 2 == 0;
            let key = format!("{nr}");
            (keyed, if keyed { till.submit(&key, &asked).await } else { till.submit_plain(&asked).await })
        });
    }
    let replies = all.join_all().await;
    assert_eq!(stored(&app).await, [0; 6]);
    let told = |wanted: bool| {
        let mut told = BTreeMap::<String, usize>::new();
        for (_, reply) in replies.iter().filter(|(keyed, _)| *keyed == wanted) {
            *told.entry(reply.json()["code"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
        told
    };
    let (keyed, plain) = (told(true), told(false));
    assert_eq!(plain.into_keys().collect::<Vec<_>>(), ["unavailable"], "those with a key: {keyed:?}");
}

/// An SDK whose connection breaks before there is an answer sends the same bytes again.
#[tokio::test]
async fn a_request_that_is_sent_again_after_its_connection_broke_is_done_once() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let till = Till::of(&app);
    for nr in 0..12 {
        let key = format!("broken {nr}");
        let body = job(&key, 5);
        let text = body.to_string();
        let request = format!(
            "POST {SUBMIT} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {}\r\n{KEY}: {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
            app.key,
            text.len()
        );
        // All of it, or but a part; and gone at once, or a moment later.
        let sent = if nr % 3 == 0 { request.len() - 7 } else { request.len() };
        let mut stream = TcpStream::connect(till.url.trim_start_matches("http://")).await.unwrap();
        stream.write_all(&request.as_bytes()[..sent]).await.unwrap();
        sleep(Duration::from_millis(nr)).await;
        drop(stream);
        let first = till.insist(SUBMIT, &key, &body).await;
        first.job();
        same(&first, &till.submit(&key, &body).await);
        assert_eq!(stored(&app).await, [i64::try_from(nr).unwrap() + 1; 6]);
    }
    app.assert_books().await;
}

/// The wire to PostgreSQL is cut at every message of either side: before the statement, after it, and before the answer to
/// a commit that has taken place.
#[tokio::test]
async fn a_wire_cut_at_any_message_leaves_one_job_a_key() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let proxy = PgProxy::start(app.db.port()).await;
    let url = proxy.through(&app.db.role_url(Role::Api), app.db.port());
    let settings = priced(0, &[]).settings.into_iter().map(|(name, value)| (name.to_owned(), value));
    let own = [("DATABASE_URL", url), ("RATE_LIMIT_DEFAULT", "1000000,1m".to_owned())];
    let own = own.map(|(name, value)| (name.to_owned(), value));
    let environment: Vec<_> = settings.chain(own).collect();
    let arguments = ["--json", "api", "--listen", "127.0.0.1:0"];
    let api = Process::start(BINARY.as_ref(), &arguments, &environment).await;
    let (_, till) = open(&app, 100_000).await;
    let till = till.moved(&api.url());
    till.submit("warm", &job("warm", 3)).await.job();
    let (mut jobs, mut cuts, mut unseen) = (1, 0, 0);
    for sender in [Sender::Client, Sender::Server] {
        for nr in 1..=12 {
            let key = format!("{sender:?} {nr}");
            let asked = job(&key, 3);
            proxy.cut_at(sender, nr);
            let first = till.submit(&key, &asked).await;
            cuts += u32::from(proxy.mend());
            let done = stored(&app).await == [jobs + 1; 6];
            assert!(
                done || stored(&app).await == [jobs; 6],
                "neither nothing nor all: {:?}",
                stored(&app).await
            );
            if first.status != 202 {
                first.refused(503, "unavailable");
            }
            unseen += u32::from(done && first.status != 202);
            let again = till.insist(SUBMIT, &key, &asked).await;
            again.job();
            assert_eq!(again.replayed(), done, "{key}");
            same(&again, &till.submit(&key, &asked).await);
            jobs += 1;
            assert_eq!(stored(&app).await, [jobs; 6], "{key}");
        }
    }
    app.assert_books().await;
    println!("{cuts} cuts, {unseen} commits whose answer was lost");
    assert!(cuts >= 8 && unseen >= 2, "{cuts} cuts, {unseen} commits whose answer was lost");
}

type Answered = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// What one of several has seen.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    broken: u32,
    /// Found done by a request that was never answered.
    unseen: u32,
}

/// One of several who submit, each under keys of its own, to whichever API there is.
async fn keep_asking(nr: usize, till: Arc<Mutex<Till>>, stop: CancellationToken, answered: Answered) -> Seen {
    let mut seen = Seen::default();
    let mut count = 0;
    while !stop.is_cancelled() {
        let key = format!("{nr} {count}");
        loop {
            let till = till.lock().unwrap().clone();
            let request = till.request(Method::POST, SUBMIT).json(&job(&key, 3)).header(KEY, &key);
            match till.send(request).await {
                Ok(reply) if reply.status == 202 => {
                    seen.unseen += u32::from(reply.replayed());
                    answered.lock().unwrap().insert(key, reply.body);
                    break;
                }
                Ok(reply) => assert!(matches!(reply.status, 409 | 503), "{reply:?}"),
                Err(_) => seen.broken += 1,
            }
            sleep(Duration::from_millis(5)).await;
        }
        count += 1;
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_killed_again_and_again_in_the_middle_of_it_leaves_one_job_a_key() {
    const KILLS: usize = 20;
    let seed = tollgate_domain::ids::new_id().into_bytes();
    println!("seed {seed:?}");
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed, seed].concat());
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (_, first) = open(&app, 1_000_000).await;
    let mut api = app.start_api().await;
    let till = Arc::new(Mutex::new(first.moved(&api.url())));
    let (stop, answered) = (CancellationToken::new(), Answered::default());
    let mut parties = JoinSet::new();
    for nr in 0..12 {
        parties.spawn(keep_asking(nr, till.clone(), stop.clone(), answered.clone()));
    }
    for _ in 0..KILLS {
        let before = answered.lock().unwrap().len();
        eventually("the new one works", Duration::from_secs(20), || async {
            (answered.lock().unwrap().len() >= before + 12).then_some(())
        })
        .await;
        sleep(Duration::from_micros(random.random_range(0..40_000))).await;
        api.kill().await;
        api = app.start_api().await;
        *till.lock().unwrap() = first.moved(&api.url());
    }
    stop.cancel();
    let all: Vec<Seen> = parties.join_all().await;
    let unseen: u32 = all.iter().map(|one| one.unseen).sum();
    let broken: u32 = all.iter().map(|one| one.broken).sum();
    let answered = answered.lock().unwrap().clone();
    let jobs = i64::try_from(answered.len()).unwrap();
    println!("{KILLS} kills, {jobs} keys, {broken} requests broke, {unseen} of them had been done unseen");
    assert_eq!(stored(&app).await, [jobs; 6]);
    let till = first.moved(&api.url());
    for (key, body) in &answered {
        let again = till.submit(key, &job(key, 3)).await;
        assert!(again.replayed() && (again.status, &again.body) == (202, body), "{key}: {again:?}");
    }
    assert_eq!(stored(&app).await, [jobs; 6]);
    let ids: BTreeSet<&Vec<u8>> = answered.values().collect();
    assert_eq!(ids.len(), answered.len());
    app.assert_books().await;
}
