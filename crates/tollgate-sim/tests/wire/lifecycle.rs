//! Connections: kept, dropped, by the thousand, and at the end.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tollgate_sim::{Behaviour, Fault, Faults, Sim, Step};

use crate::client::{End, chat_body, read, start, write};

const CHAT: &str = "POST /v1/chat/completions";

#[tokio::test]
async fn a_client_that_leaves_is_noticed_at_once() {
    let steps = [
        Step::fault(Fault::Hang),
        Step::ok().latency_ms(60_000),
        Step::fault(Fault::SilentBody),
        Step::fault(Fault::ServerError).latency_ms(60_000),
    ];
    for step in steps {
        let sim = start(Behaviour::default()).await;
        sim.control.script([step.clone()]).unwrap();
        let stream = sim.send(CHAT, "", &chat_body("x")).await;
        sim.until(|stats| stats.faults.len() == 1).await;
        assert_eq!((sim.control.stats().in_flight, sim.control.stats().open_sockets), (1, 1));
        drop(stream);
        let took =
            sim.until(|stats| stats.aborted == 1 && stats.in_flight == 0 && stats.open_sockets == 0).await;
        assert!(took < Duration::from_millis(200), "{step:?}: {took:?}");
        assert_eq!(sim.control.stats().completed, 0);
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_sending_is_noticed_too() {
    let sim = start(Behaviour::default()).await;
    let mut stream = TcpStream::connect(sim.addr).await.unwrap();
    let half = format!("{CHAT} HTTP/1.1\r\nhost: sim\r\ncontent-length: 100\r\n\r\n{{\"model\"");
    stream.write_all(half.as_bytes()).await.unwrap();
    sim.until(|stats| stats.in_flight == 1).await;
    drop(stream);
    sim.until(|stats| stats.aborted == 1 && stats.in_flight == 0 && stats.open_sockets == 0).await;
    assert_eq!(sim.control.stats().refused, 0);
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request() {
    let sim = start(Behaviour::default()).await;
    sim.control.script([Step::ok(), Step::fault(Fault::RateLimit), Step::fault(Fault::Malformed)]).unwrap();
    let mut stream = sim.send(CHAT, "", &chat_body("x")).await;
    assert_eq!(read(&mut stream).await.status, 200);
    for status in [429, 200, 200] {
        write(&mut stream, CHAT, "", &chat_body("x")).await;
        assert_eq!(read(&mut stream).await.status, status);
    }
    let stats = sim.control.stats();
    assert_eq!((stats.open_sockets, stats.completed), (1, 4));
    drop(stream);
    sim.until(|stats| stats.open_sockets == 0).await;
    assert_eq!(sim.control.stats().aborted, 0, "an idle connection aborts nothing");
}

#[tokio::test]
async fn more_than_a_thousand_at_once() {
    const MANY: u64 = 1_200;
    let sim = start(Behaviour::default()).await;
    sim.control.script([Step::fault(Fault::Hang).matching("hang")]).unwrap();
    for round in 1..=3 {
        let mut streams = Vec::new();
        for _ in 0..MANY {
            streams.push(sim.send(CHAT, "", &chat_body("hang")).await);
        }
        sim.until(|stats| stats.in_flight == MANY && stats.faults[&Fault::Hang] == round * MANY).await;
        assert_eq!(sim.chat("hello").await.status, 200, "the others are answered");
        drop(streams);
        sim.until(|stats| stats.in_flight == 0 && stats.open_sockets == 0).await;
        let stats = sim.control.stats();
        assert_eq!((stats.aborted, stats.completed), (round * MANY, round));
        assert!((MANY..=MANY + 1).contains(&stats.max_in_flight), "{stats:?}");
    }
}

#[tokio::test]
async fn all_arrivals_are_accounted_for() {
    let faults = Faults { hang: 0.3, silent_body: 0.2, reset: 0.1, truncated: 0.1, ..Faults::default() };
    let sim = start(Behaviour { faults, ..Behaviour::default() }).await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(sim.send(CHAT, "", &chat_body("x")).await);
    }
    sim.until(|stats| stats.faults.values().sum::<u64>() == 200).await;
    drop(streams);
    sim.until(|stats| stats.in_flight == 0 && stats.open_sockets == 0).await;
    let stats = sim.control.stats();
    assert_eq!(stats.completed + stats.aborted + stats.cut, 200, "{stats:?}");
}

#[tokio::test]
async fn shutdown_ends_everything_at_once() {
    let mut sim = start(Behaviour::default()).await;
    sim.control.script([Step::fault(Fault::Hang)]).unwrap();
    let mut stream = sim.send(CHAT, "", &chat_body("x")).await;
    sim.until(|stats| stats.in_flight == 1).await;
    sim.shutdown.cancel();
    timeout(Duration::from_secs(1), sim.tasks.join_next()).await.unwrap();
    assert_eq!(read(&mut stream).await.end, End::Closed);
    let stats = sim.control.stats();
    assert_eq!((stats.cut, stats.aborted, stats.in_flight, stats.open_sockets), (1, 0, 0, 0));
}

#[tokio::test]
async fn a_behaviour_that_makes_no_sense_is_not_started() {
    let faults = Faults { hang: 2.0, ..Faults::default() };
    let error = Sim::bind(([127, 0, 0, 1], 0).into(), Behaviour { faults, ..Behaviour::default() })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert_eq!(error.to_string(), "faults.hang must be a probability from 0 to 1, not 2");
}

#[tokio::test]
async fn the_base_url_can_be_dialled() {
    for (bound, shown) in [("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "127.0.0.1")] {
        let sim = Sim::bind(bound.parse().unwrap(), Behaviour::default()).await.unwrap();
        assert_eq!(sim.base_url(), format!("http://{shown}:{}/v1", sim.addr().port()));
    }
}
