//! Stripe, as far as it talks to Tollgate: it signs events, and lists them. Signatures are computed here from Stripe's
//! documentation, not by the code that verifies them.

use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::Url;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// A signing secret.
pub const STRIPE_SECRET: &str = "whsec_only0for0tests";

/// The key that may list events.
const KEY: &str = "rk_test_only0for0tests";

/// A `Stripe-Signature` for this body, of so many seconds ago.
pub fn stripe_signature(body: &[u8], secret: &str, seconds_ago: u64) -> String {
    #[expect(clippy::disallowed_methods, reason = "Stripe signs by its own clock")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = now - seconds_ago;
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    mac.update(format!("{time}.").as_bytes());
    mac.update(body);
    let mut hex = String::new();
    for byte in mac.finalize().into_bytes() {
        let _ = write!(hex, "{byte:02x}");
    }
    format!("t={time},v1={hex}")
}

#[derive(Debug, Default)]
struct State {
    /// Newest first.
    events: Vec<Value>,
    /// Requests there were.
    asked: u64,
}

/// A server with `GET /v1/events`.
#[derive(Debug)]
pub struct StripeLike {
    url: String,
    state: Arc<Mutex<State>>,
    _serving: AbortOnDropHandle<()>,
}

impl StripeLike {
    /// Listens on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap_or_else(|error| panic!("{error}"));
        let address = listener.local_addr().unwrap_or_else(|error| panic!("{error}"));
        let state = Arc::<Mutex<State>>::default();
        let (connections, shared) = (TaskTracker::new(), Arc::clone(&state));
        let serving = TaskTracker::new().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                // An error is the client going away.
                connections.spawn(async move { drop(serve(stream, &state).await) });
            }
        });
        Self { url: format!("http://{address}"), state, _serving: AbortOnDropHandle::new(serving) }
    }

    /// What Tollgate has to be told to use it.
    pub fn settings(&self) -> [(&'static str, String); 2] {
        [("STRIPE_API_BASE", self.url.clone()), ("STRIPE_API_KEY", KEY.to_owned())]
    }

    /// What has happened at Stripe, oldest first.
    pub fn happened(&self, events: &[Value]) {
        self.state().events = events.iter().rev().cloned().collect();
    }

    /// How many requests there were.
    pub fn asked(&self) -> u64 {
        self.state().asked
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(mut stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let (status, body) = answer(&head, &mut state.lock().unwrap_or_else(PoisonError::into_inner));
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn answer(head: &str, state: &mut State) -> (&'static str, Value) {
    state.asked += 1;
    let refuse = |status, message: String| (status, json!({ "error": { "message": message } }));
    let key = head.lines().find_map(|line| line.strip_prefix("authorization: Bearer ")).unwrap_or_default();
    if key != KEY {
        return refuse("401 Unauthorized", format!("Invalid API Key provided: {key}"));
    }
    let path = head.split(' ').nth(1).unwrap_or_default();
    let Ok(url) = Url::parse(&format!("http://stripe{path}")) else {
        return refuse("400 Bad Request", format!("{path} is none"));
    };
    if url.path() != "/v1/events" {
        return refuse("404 Not Found", format!("Unrecognized request URL {path}"));
    }
    let all = |name: &str| -> Vec<String> {
        url.query_pairs().filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
    };
    let number = |name| all(name).first().and_then(|text| text.parse::<i64>().ok());
    let (kinds, since) = (all("types[]"), number("created[gte]").unwrap_or(0));
    let limit = usize::try_from(number("limit").unwrap_or(10)).unwrap_or(10).min(100);
    let after = all("starting_after");
    if kinds.len() > 20 {
        return refuse("400 Bad Request", "You may only specify up to 20 types".into());
    }
    let mut listed = state.events.iter();
    if let Some(after) = after.first()
        && !listed.by_ref().any(|event| event["id"] == **after)
    {
        return refuse("400 Bad Request", format!("No such event: {after}"));
    }
    let mut listed = listed.filter(|event| {
        event["created"].as_i64() >= Some(since) && kinds.iter().any(|kind| event["type"] == **kind)
    });
    let data: Vec<&Value> = listed.by_ref().take(limit).collect();
    let has_more = listed.next().is_some();
    ("200 OK", json!({ "object": "list", "data": data, "has_more": has_more, "url": "/v1/events" }))
}
