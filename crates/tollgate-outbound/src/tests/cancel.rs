//! Dropping a call closes its socket and leaves nothing behind (SPEC G3).

use std::process::Command;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::server::{Act, Server, ok};
use super::{chat_reply, config, openai, request};
use crate::{OpenAi, Provider};

/// In such a time the server has noticed.
const PROMPT: Duration = Duration::from_millis(200);

const BODY_OPEN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{";

/// Polls `calls` until the server has had so many requests, and a little longer, so that what it answered has
/// been read; then drops them.
async fn abort<T>(calls: impl Future<Output = T>, server: &Server, requests: usize) {
    let reached = async {
        server.until(Duration::from_secs(5), |counts| counts.requests == requests).await;
        sleep(Duration::from_millis(30)).await;
    };
    tokio::select! {
        _ = calls => panic!("the call has ended"),
        () = reached => {}
    }
}

#[tokio::test]
async fn a_drop_closes_the_socket_in_every_phase() {
    for act in [
        Act::SendThenHang(Vec::new()),
        Act::SendThenHang(BODY_OPEN.into()),
        Act::SendThenDrip(BODY_OPEN.into()),
        Act::SendThenHang(b"HTTP/1.1 500 Oops\r\ncontent-length: 9\r\n\r\n{".to_vec()),
    ] {
        let server = Server::start([act.clone()]).await;
        let (openai, request) = (openai(&server), request());
        abort(openai.generate(&request), &server, 1).await;
        server.until(PROMPT, |counts| counts.open == 0).await;
        assert_eq!(server.counts().requests, 1, "{act:?}");
    }
}

#[tokio::test]
async fn a_drop_during_the_handshake_closes_the_socket() {
    let server = Server::start([Act::SendThenHang(Vec::new())]).await;
    let (openai, request) = (OpenAi::new(config(server.url("https"))).unwrap(), request());
    tokio::select! {
        _ = openai.generate(&request) => panic!("the call has ended"),
        () = server.until(Duration::from_secs(5), |counts| counts.opened == 1) => {}
    }
    server.until(PROMPT, |counts| counts.open == 0).await;
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident_kb: usize,
    files: usize,
}

impl Held {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident_kb = resident.trim().trim_end_matches(" kB").parse().unwrap();
        Self { resident_kb, files: std::fs::read_dir("/proc/self/fd").unwrap().count() }
    }
}

/// Aborts `rounds` times 30 calls and holds that no socket and no task is left after any of them. Returns what the process
/// held after the first third of the rounds, which warm it up, and in the end.
async fn abort_thirties(act: Act, rounds: usize) -> (Held, Held) {
    let server = Server::start([act]).await;
    let (openai, request) = (openai(&server), request());
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let mut warm = Held::now();
    for round in 1..=rounds {
        let calls = join_all((0..30).map(|_| openai.generate(&request)));
        abort(calls, &server, 30 * round).await;
        server.until(PROMPT, |counts| counts.open == 0).await;
        assert_eq!(server.counts().opened, 30 * round);
        let settled = async {
            while tasks() > before {
                sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(timeout(PROMPT, settled).await.is_ok(), "{} tasks, {before} before", tasks());
        server.forget();
        if round == rounds / 3 {
            warm = Held::now();
        }
    }
    (warm, Held::now())
}

#[tokio::test]
async fn thirty_aborted_calls_leave_no_socket_and_no_task() {
    abort_thirties(Act::SendThenHang(Vec::new()), 1).await;
    abort_thirties(Act::SendThenHang(BODY_OPEN.into()), 1).await;
}

/// So many calls for [`aborted_calls_leave_nothing`].
const CALLS: &str = "ABORTED_CALLS";

/// A process may grow by so much over its calls: what one of them would leave, if it left anything, is 20 kB or more.
const GROWTH_KB: usize = 4 * 1024;

#[tokio::test]
#[ignore = "run by those below, in a process of its own"]
async fn aborted_calls_leave_nothing() {
    let calls: usize = std::env::var(CALLS).unwrap().parse().unwrap();
    for (what, act) in
        [("no reply", Act::SendThenHang(Vec::new())), ("half a body", Act::SendThenHang(BODY_OPEN.into()))]
    {
        let rounds = calls.div_ceil(60);
        let (warm, end) = abort_thirties(act, rounds).await;
        println!("{} calls aborted, {what}: {warm:?}, in the end {end:?}", 30 * rounds);
        assert!(end.resident_kb <= warm.resident_kb + GROWTH_KB, "{warm:?}, {end:?}");
        assert_eq!(end.files, warm.files);
    }
}

/// Other tests' memory and files would be counted too.
fn in_a_process_of_its_own(calls: usize) {
    let test = "tests::cancel::aborted_calls_leave_nothing";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(CALLS, calls.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said.lines().filter(|line| line.contains("aborted")).for_each(|line| println!("{line}"));
}

#[test]
fn a_thousand_aborted_calls_leave_memory_sockets_and_tasks_flat() {
    in_a_process_of_its_own(1_000);
}

#[test]
#[ignore = "takes a quarter of a minute and ten thousand ports"]
fn ten_thousand_aborted_calls_leave_memory_sockets_and_tasks_flat() {
    in_a_process_of_its_own(10_000);
}

#[tokio::test]
async fn the_client_goes_on_after_an_aborted_call() {
    let server = Server::start([Act::SendThenHang(Vec::new()), Act::Send(ok(&chat_reply("hi")))]).await;
    let (openai, request) = (openai(&server), request());
    abort(openai.generate(&request), &server, 1).await;
    assert_eq!(openai.generate(&request).await.unwrap().text, "hi");
    assert_eq!(server.counts().requests, 2);
}

#[tokio::test]
async fn dropping_the_adapter_closes_kept_connections() {
    let server = Server::start([Act::Send(ok(&chat_reply("hi")))]).await;
    let openai = openai(&server);
    openai.generate(&request()).await.unwrap();
    assert_eq!(server.counts().open, 1);
    drop(openai);
    server.until(PROMPT, |counts| counts.open == 0).await;
}
