//! A provider that nobody answers for.

use std::net::SocketAddr;

use chrono::TimeDelta;
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tollgate_model::guard::circuit::State;
use tollgate_sim::Sim;

use super::fleet::{Fleet, now, pause, quick};
use super::{CALLS_PER_JOB, well};

/// The way to the provider. While it is shut, connections are refused.
struct Door {
    addr: SocketAddr,
    open: Option<AbortOnDropHandle<()>>,
}

impl Door {
    /// One that is shut.
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { addr: listener.local_addr().unwrap(), open: None }
    }

    async fn open(&mut self, to: SocketAddr) {
        let listener = TcpListener::bind(self.addr).await.unwrap();
        let serving = async move {
            let mut connections = JoinSet::new();
            while let Ok((mut from, _)) = listener.accept().await {
                connections.spawn(async move {
                    let mut to = TcpStream::connect(to).await.unwrap();
                    // Either side may go away whenever it likes.
                    let _ = copy_bidirectional(&mut from, &mut to).await;
                });
            }
        };
        self.open = Some(AbortOnDropHandle::new(TaskTracker::new().spawn(serving)));
    }

    /// Cuts what is connected, too.
    async fn shut(&mut self) {
        if let Some(open) = self.open.take() {
            open.abort();
            open.await.unwrap_err();
        }
    }
}

/// Calls that the workers have made, whether they arrived or not.
const CALLS: &str = "tollgate_provider_calls_total";

#[tokio::test]
async fn the_provider_is_down_for_a_while() {
    let mut door = Door::new().await;
    let url = format!("http://{}/v1", door.addr);
    let guard = json!({"text": quick(&json!({"open_growth": 2.5}))});
    let app = Fleet::app(2, &guard, &[("OPENAI_BASE_URL", &url)], well()).await;
    let sim = Sim::bind(([127, 0, 0, 1], 0).into(), well()).await.unwrap();
    let provider = sim.addr();
    let fleet = Fleet::watch(app, sim.control(), Some("text"));
    let _running = AbortOnDropHandle::new(TaskTracker::new().spawn(sim.run(CancellationToken::new())));
    door.open(provider).await;
    let start = now();
    fleet.submit(300).await;
    fleet.look("the provider is at work", start, |look| look.arrivals > 30).await;

    door.shut().await;
    let down = now();
    let opened = fleet.becomes("open", down).await;
    let is_later = |state: &State| state.name() == "open" && state.since() > opened;
    let State::Open { until: Some(until), .. } = fleet.state("open once more", opened, is_later).await else {
        panic!("open until further notice")
    };
    pause(600).await;
    let before = fleet.metric(CALLS).await;
    while now() + TimeDelta::milliseconds(700) < until {
        pause(20).await;
    }
    let late = fleet.metric(CALLS).await - before;

    door.open(provider).await;
    let repaired = now();
    let closed = fleet.becomes("closed", repaired).await;
    let stock = fleet.stock().await;
    let all = fleet.metric(CALLS).await;
    #[expect(clippy::cast_precision_loss, reason = "there are some hundred")]
    let (per_job, waited) =
        (all / stock.jobs as f64, stock.burnt as f64 - (all - (stock.calls + stock.probes) as f64));
    println!(
        "connection refused: open after {} ms, closed {} ms after the repair; {late} calls while open, {} probe at once, \
         {per_job:.2} calls per job over {} jobs, {} lost, {waited} attempts by waiting, {} handed back",
        (opened - down).num_milliseconds(),
        (closed - repaired).num_milliseconds(),
        fleet.probes_at_once(),
        stock.jobs,
        stock.failed,
        stock.handed_back,
    );
    assert!(late.abs() < 0.5, "{late} calls while it was open");
    assert!(fleet.probes_at_once() <= 1);
    assert!(stock.failed == 0 && waited.abs() < 0.5);
    assert!(per_job <= CALLS_PER_JOB, "{per_job} calls per job");
}
