//! A client on a bare socket: it sees what a real one would see, down to how the connection ended.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tollgate_sim::{Behaviour, Control, Sim};

/// After so long without a byte, nothing more is expected; long enough for a busy machine.
const SILENCE: Duration = Duration::from_secs(2);

/// A simulator that runs as long as this lives.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) control: Control,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: JoinSet<()>,
}

pub(crate) async fn start(behaviour: Behaviour) -> Running {
    let sim = Sim::bind(SocketAddr::from(([127, 0, 0, 1], 0)), behaviour).await.unwrap();
    let (addr, control, shutdown) = (sim.addr(), sim.control(), CancellationToken::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(sim.run(shutdown.clone()));
    Running { addr, control, shutdown, tasks }
}

/// How a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All that was promised has come.
    Complete,
    /// The connection was closed before.
    Closed,
    /// It was reset before.
    Reset,
    /// It is still open, but nothing comes.
    Silent,
}

#[derive(Debug)]
pub(crate) struct Reply {
    /// 0 if there was none.
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn promised(&self) -> usize {
        self.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// `error.type` and `error.code`.
    pub(crate) fn error(&self) -> (Value, Value) {
        let error = &self.json()["error"];
        assert!(error["message"].is_string() && error.as_object().unwrap().contains_key("param"), "{error}");
        (error["type"].clone(), error["code"].clone())
    }
}

impl Running {
    /// Opens a connection and sends a request.
    pub(crate) async fn send(&self, line: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        write(&mut stream, line, headers, body).await;
        stream
    }

    /// One request on a connection of its own.
    pub(crate) async fn call(&self, line: &str, headers: &str, body: &str) -> Reply {
        read(&mut self.send(line, headers, body).await).await
    }

    /// A chat completion.
    pub(crate) async fn chat(&self, prompt: &str) -> Reply {
        self.call("POST /v1/chat/completions", "", &chat_body(prompt)).await
    }

    /// An image.
    pub(crate) async fn image(&self, body: &Value) -> Reply {
        self.call("POST /v1/images/generations", "", &body.to_string()).await
    }

    /// Waits until the statistics are so, and says how long that took.
    pub(crate) async fn until(&self, what: impl Fn(&tollgate_sim::Stats) -> bool) -> Duration {
        let started = Instant::now();
        while !what(&self.control.stats()) {
            assert!(started.elapsed() < Duration::from_secs(20), "{:?}", self.control.stats());
            sleep(Duration::from_millis(1)).await;
        }
        started.elapsed()
    }
}

pub(crate) fn chat_body(prompt: &str) -> String {
    json!({"model": "gpt-test", "messages": [{"role": "user", "content": prompt}]}).to_string()
}

pub(crate) async fn write(stream: &mut TcpStream, line: &str, headers: &str, body: &str) {
    let length = body.len();
    let request = format!("{line} HTTP/1.1\r\nhost: sim\r\n{headers}content-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
}

/// Reads one reply, or what there is of it.
pub(crate) async fn read(stream: &mut TcpStream) -> Reply {
    let mut seen = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let end = match timeout(SILENCE, stream.read(&mut chunk)).await {
            Err(_) => Some(End::Silent),
            Ok(Ok(0)) => Some(End::Closed),
            Ok(Ok(n)) => {
                seen.extend_from_slice(&chunk[..n]);
                None
            }
            Ok(Err(error)) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                Some(End::Reset)
            }
        };
        let mut reply = parse(&seen);
        if reply.status != 0 && reply.body.len() >= reply.promised() {
            return reply;
        }
        if let Some(end) = end {
            reply.end = end;
            return reply;
        }
    }
}

fn parse(seen: &[u8]) -> Reply {
    let Some(at) = seen.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Reply { status: 0, head: String::new(), body: Vec::new(), end: End::Complete };
    };
    let head = String::from_utf8(seen[..at].to_vec()).unwrap();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
    Reply { status, head, body: seen[at + 4..].to_vec(), end: End::Complete }
}
