//! A TCP server that reads HTTP requests properly and answers them with whatever bytes the script says.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

/// What happens once a request has been read.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// Send, and wait for the next request on the connection.
    Send(Vec<u8>),
    /// Send, and close properly.
    SendThenClose(Vec<u8>),
    /// Send, and say nothing more until the client closes.
    SendThenHang(Vec<u8>),
    /// Send, then a space every 20 ms until the client closes.
    SendThenDrip(Vec<u8>),
    /// Send nothing; reset the connection.
    Reset,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) head: String,
    pub(super) body: Value,
}

impl Seen {
    /// The value of a header, or "".
    pub(super) fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// Connections that the client has opened and not closed.
    pub(super) open: usize,
    /// Connections there ever were.
    pub(super) opened: usize,
    /// Complete requests.
    pub(super) requests: usize,
}

struct State {
    script: Mutex<VecDeque<Act>>,
    seen: Mutex<Vec<Seen>>,
    counts: watch::Sender<Counts>,
}

pub(super) struct Server {
    address: SocketAddr,
    state: Arc<State>,
    /// Ends the server when it is dropped.
    _tasks: JoinSet<()>,
}

impl Server {
    /// Plays one act a request; the last one for all further requests, too.
    pub(super) async fn start(script: impl IntoIterator<Item = Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            script: Mutex::new(script.into_iter().collect()),
            seen: Mutex::default(),
            counts: watch::Sender::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&state)));
        Self { address, state, _tasks: tasks }
    }

    /// Adds acts to the script: those that name the server's own address, which it has only now.
    pub(super) fn then(&self, acts: impl IntoIterator<Item = Act>) {
        self.state.script.lock().unwrap().extend(acts);
    }

    pub(super) fn url(&self, scheme: &str) -> Url {
        Url::parse(&format!("{scheme}://{}/v1", self.address)).unwrap()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Of what it has seen, keeps the counts alone.
    pub(super) fn forget(&self) {
        self.state.seen.lock().unwrap().clear();
    }

    pub(super) fn counts(&self) -> Counts {
        *self.state.counts.borrow()
    }

    /// Waits until the counts are such, or fails after `patience`.
    pub(super) async fn until(&self, patience: Duration, reached: impl Fn(&Counts) -> bool) {
        let mut counts = self.state.counts.subscribe();
        let waited = tokio::time::timeout(patience, counts.wait_for(|counts| reached(counts))).await;
        assert!(waited.is_ok(), "after {patience:?}: {:?}", self.counts());
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                let state = Arc::clone(&state);
                state.counts.send_modify(|counts| (counts.open, counts.opened) = (counts.open + 1, counts.opened + 1));
                connections.spawn(async move {
                    // An error is the client going away, which is what the counts are about.
                    let _ = serve(stream, &state).await;
                    state.counts.send_modify(|counts| counts.open -= 1);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut stream: TcpStream, state: &State) -> io::Result<()> {
    while let Some(seen) = read(&mut stream).await? {
        state.seen.lock().unwrap().push(seen);
        state.counts.send_modify(|counts| counts.requests += 1);
        let act = {
            let mut script = state.script.lock().unwrap();
            if script.len() > 1 { script.pop_front() } else { script.front().cloned() }.unwrap()
        };
        match act {
            Act::Send(bytes) => stream.write_all(&bytes).await?,
            Act::SendThenClose(bytes) => {
                stream.write_all(&bytes).await?;
                return stream.shutdown().await;
            }
            Act::SendThenHang(bytes) => {
                stream.write_all(&bytes).await?;
                return until_closed(&mut stream).await;
            }
            Act::SendThenDrip(bytes) => {
                stream.write_all(&bytes).await?;
                let (mut reading, mut writing) = stream.split();
                let drip = async {
                    loop {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        writing.write_all(b" ").await?;
                    }
                };
                let mut byte = [0];
                tokio::select! {
                    ended = drip => return ended,
                    ended = reading.read(&mut byte) => return ended.map(|_| ()),
                }
            }
            Act::Reset => return stream.set_zero_linger(),
        }
    }
    Ok(())
}

/// Reads one request, or nothing if the client closes instead. Bytes that are no HTTP (TLS) are swallowed.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Seen>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let mut seen = Seen { head, body: Value::Null };
            let length: usize = seen.header("content-length").parse().unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                seen.body = serde_json::from_slice(&bytes[end + 4..]).unwrap_or_default();
                return Ok(Some(seen));
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}

async fn until_closed(stream: &mut TcpStream) -> io::Result<()> {
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// A complete reply. `status` is the code with its reason; `headers` are whole lines, ended by `\r\n`.
pub(super) fn reply(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

/// A complete reply with status 200.
pub(super) fn ok(body: &Value) -> Vec<u8> {
    reply("200 OK", "content-type: application/json\r\n", &body.to_string())
}
