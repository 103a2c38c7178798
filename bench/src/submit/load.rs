//! The load: HTTP/1.1 over connections that are kept, written by hand.
//!
//! Client, API and PostgreSQL share the processors, so what the client uses is missing from what is measured. An HTTP
//! library's client costs several times as much a request as these: the bytes are made beforehand but for a number, and
//! of the answer only the status and the length are read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Result;

/// Stands in a request for its number, which no other request to the same database has.
pub(crate) const NUMBER: &str = "@@@@@@@@@@@@";

/// A request, ready but for its number.
#[derive(Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    numbers_at: Vec<usize>,
}

impl Request {
    /// A request of these lines, without the `Host`, and this body.
    pub(crate) fn new(head: &str, body: &str) -> Self {
        let text = format!("{head}\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let numbers_at = text.match_indices(NUMBER).map(|(at, _)| at).collect();
        Self { bytes: text.into_bytes(), numbers_at }
    }

    fn write(&self, number: u64, to: &mut Vec<u8>) {
        to.clear();
        to.extend_from_slice(&self.bytes);
        let digits = format!("{number:0width$}", width = NUMBER.len());
        for &at in &self.numbers_at {
            to[at..at + NUMBER.len()].copy_from_slice(digits.as_bytes());
        }
    }
}

/// What is sent where, over how many connections, each with one request under way at a time.
#[derive(Debug)]
pub(crate) struct Load {
    address: SocketAddr,
    requests: Vec<Request>,
    expected: u16,
    numbers: AtomicU64,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Answers with the expected status.
    pub(crate) done: u64,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
    /// The other answers, by status, and the first of them.
    refused: BTreeMap<u16, u64>,
    first_refused: Option<String>,
    /// Of each request in turn: how long its answer took, in milliseconds, from when it was due.
    pub(crate) times: Vec<f64>,
}

impl Tally {
    pub(crate) fn per_sec(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    /// What should not have been; `None`: nothing.
    pub(crate) fn fault(&self) -> Option<String> {
        let answer = self.first_refused.as_deref()?;
        Some(format!("{} as expected, others by status: {:?}; first: {answer}", self.done, self.refused))
    }

    /// Whether this, unexpected, status was among the answers.
    pub(crate) fn has_answer(&self, status: u16) -> bool {
        self.refused.contains_key(&status)
    }

    fn count(&mut self, expected: u16, status: u16, answer: &[u8]) {
        if status == expected {
            self.done += 1;
        } else {
            *self.refused.entry(status).or_default() += 1;
            self.first_refused.get_or_insert_with(|| String::from_utf8_lossy(answer).into_owned());
        }
    }

    fn add(&mut self, other: Self) {
        self.done += other.done;
        for (status, count) in other.refused {
            *self.refused.entry(status).or_default() += count;
        }
        self.first_refused = self.first_refused.take().or(other.first_refused);
        self.times.extend(other.times);
    }
}

/// When requests fall due.
#[derive(Debug)]
struct Schedule {
    taken: AtomicU64,
    due: Due,
}

#[derive(Debug)]
enum Due {
    /// At once, so many.
    Now(u64),
    /// At once, until then.
    Until(Instant),
    /// So many, at a steady rate; each has a permit when it is due.
    Paced { start: Instant, per_sec: f64, count: u64, permits: Semaphore },
}

impl Schedule {
    fn new(due: Due) -> Arc<Self> {
        Arc::new(Self { taken: AtomicU64::new(0), due })
    }

    /// Waits for the next request that nobody has taken. When it was due; `None`: that was all.
    async fn next(&self) -> Option<Instant> {
        let take = || self.taken.fetch_add(1, Ordering::Relaxed);
        match &self.due {
            Due::Now(count) => (take() < *count).then(Instant::now),
            Due::Until(end) => Some(Instant::now()).filter(|now| now < end),
            Due::Paced { count, permits, .. } => {
                // Closed once all are due; what nobody has taken yet is then known by its number alone.
                if let Ok(permit) = permits.acquire().await {
                    permit.forget();
                }
                Some(take()).filter(|index| index < count).map(|index| self.at(index))
            }
        }
    }

    /// When a paced request is due.
    fn at(&self, index: u64) -> Instant {
        match self.due {
            Due::Paced { start, per_sec, .. } => start + Duration::from_secs_f64(index as f64 / per_sec),
            Due::Now(_) | Due::Until(_) => Instant::now(),
        }
    }

    /// Hands out the permits. The runtime's timers are of whole milliseconds; a thread's sleep is good to a tenth.
    fn pace(&self) {
        let Due::Paced { count, permits, .. } = &self.due else { return };
        for index in 0..*count {
            std::thread::sleep(self.at(index).saturating_duration_since(Instant::now()));
            permits.add_permits(1);
        }
        permits.close();
    }
}

impl Load {
    /// A load of these requests, in turns. Every answer should have the `expected` status.
    pub(crate) fn new(address: SocketAddr, requests: Vec<Request>, expected: u16) -> Arc<Self> {
        Arc::new(Self { address, requests, expected, numbers: AtomicU64::new(0) })
    }

    /// Sends so many requests over so many connections.
    pub(crate) async fn send(self: &Arc<Self>, connections: usize, count: u64) -> Result<Tally> {
        self.run(connections, Schedule::new(Due::Now(count))).await
    }

    /// Each connection sends as soon as it has its answer, until the window ends.
    pub(crate) async fn closed(self: &Arc<Self>, connections: usize, window: Duration) -> Result<Tally> {
        self.run(connections, Schedule::new(Due::Until(Instant::now() + window))).await
    }

    /// So many requests a second, on a fixed schedule, whether or not the answers keep up. A request that finds every
    /// connection waiting for an answer is late, and its time runs from when it was due.
    pub(crate) async fn open(
        self: &Arc<Self>,
        connections: usize,
        per_sec: f64,
        window: Duration,
    ) -> Result<Tally> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, and positive")]
        let count = (per_sec * window.as_secs_f64()) as u64;
        let permits = Semaphore::new(0);
        let schedule = Schedule::new(Due::Paced { start: Instant::now(), per_sec, count, permits });
        let pace = {
            let schedule = schedule.clone();
            tokio::task::spawn_blocking(move || schedule.pace())
        };
        let tally = self.run(connections, schedule).await?;
        pace.await?;
        Ok(tally)
    }

    async fn run(self: &Arc<Self>, connections: usize, schedule: Arc<Schedule>) -> Result<Tally> {
        let began = Instant::now();
        let mut running = JoinSet::new();
        for _ in 0..connections {
            let (load, schedule) = (self.clone(), schedule.clone());
            running.spawn(async move { load.connection(&schedule).await });
        }
        let mut tally = Tally::default();
        while let Some(ended) = running.join_next().await {
            tally.add(ended??);
        }
        tally.seconds = began.elapsed().as_secs_f64();
        Ok(tally)
    }

    async fn connection(&self, schedule: &Schedule) -> Result<Tally> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        let mut tally = Tally::default();
        while let Some(due) = schedule.next().await {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let turn = usize::try_from(number)? % self.requests.len();
            self.requests[turn].write(number, &mut sent);
            stream.write_all(&sent).await?;
            received.clear();
            let status = loop {
                if stream.read_buf(&mut received).await? == 0 {
                    return Err(format!(
                        "the API closed a connection: {}",
                        String::from_utf8_lossy(&received)
                    )
                    .into());
                }
                if let Some(status) = status_of(&received)? {
                    break status;
                }
            };
            tally.times.push(due.elapsed().as_secs_f64() * 1000.0);
            tally.count(self.expected, status, &received);
        }
        Ok(tally)
    }
}

/// The status of an answer, once all of it is there.
fn status_of(received: &[u8]) -> Result<Option<u16>> {
    let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&received[..end])?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).ok_or("an answer without a status")?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .ok_or("an answer without Content-Length")?;
    let length: usize = length.1.trim().parse()?;
    Ok((received.len() >= end + 4 + length).then(|| status.parse()).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_once_it_is_all_there() {
        let answer = b"HTTP/1.1 202 Accepted\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok";
        for end in 0..answer.len() {
            assert_eq!(status_of(&answer[..end]).unwrap(), None, "{end}");
        }
        assert_eq!(status_of(answer).unwrap(), Some(202));
        assert!(status_of(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn each_request_has_a_number_of_its_own() {
        let request = Request::new("GET / HTTP/1.1", &format!("<{NUMBER}>"));
        let mut bytes = Vec::new();
        request.write(7, &mut bytes);
        assert!(bytes.ends_with(b"Content-Length: 14\r\n\r\n<000000000007>"), "{bytes:?}");
    }
}
