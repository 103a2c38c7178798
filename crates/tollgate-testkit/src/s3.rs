//! A server that speaks as much of S3 as Tollgate does, and that is not S3: it puts, gets and deletes objects of one bucket
//! in memory, knows `If-None-Match: *`, and refuses every request whose signature (version 4, in the URL) is not right.
//! The signature is computed here from the specification, not by the library that Tollgate signs with.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

const KEY_ID: &str = "AKIATEST";
const SECRET: &str = "only/for+tests";
const REGION: &str = "eu-test-1";
const BUCKET: &str = "pictures";
const PREFIX: &str = "tollgate/images";

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    /// Answer everything with 503.
    down: bool,
    /// Requests there were.
    asked: u64,
    /// Requests that were refused for their signature.
    refused: u64,
}

/// A running server.
#[derive(Debug)]
pub struct S3Like {
    url: String,
    state: Arc<Mutex<State>>,
    _serving: AbortOnDropHandle<()>,
}

impl S3Like {
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
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("IMAGE_STORAGE", format!("s3://{BUCKET}/{PREFIX}")),
            ("AWS_ENDPOINT_URL", self.url.clone()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept, by its name within Tollgate's prefix.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let prefix = format!("/{BUCKET}/{PREFIX}/");
        let objects = self.state().objects.clone();
        let named = |(path, bytes): (String, Vec<u8>)| {
            let name = path.strip_prefix(&prefix).unwrap_or_else(|| panic!("{path} is not beneath {prefix}"));
            (name.to_owned(), bytes)
        };
        objects.into_iter().map(named).collect()
    }

    /// Loses everything.
    pub fn lose(&self) {
        self.state().objects.clear();
    }

    /// Whether it is down from here on.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// How many requests there were.
    pub fn asked(&self) -> u64 {
        self.state().asked
    }

    /// How many requests were signed wrongly.
    pub fn refused(&self) -> u64 {
        self.state().refused
    }
}

struct Request {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

async fn serve(mut stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    while let Some(request) = read(&mut stream).await? {
        let (status, body) = answer(&request, &mut state.lock().unwrap_or_else(PoisonError::into_inner));
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
    }
    Ok(())
}

async fn read(stream: &mut TcpStream) -> io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let mut lines = head.lines();
            let mut words = lines.next().unwrap_or_default().split(' ');
            let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let pair = |text: &str| {
                let (name, value) = text.split_once('=').unwrap_or((text, ""));
                (name.to_owned(), value.to_owned())
            };
            let header = |line: &str| {
                let (name, value) = line.split_once(':')?;
                Some((name.to_lowercase(), value.trim().to_owned()))
            };
            let headers: BTreeMap<_, _> = lines.filter_map(header).collect();
            let length: usize = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                let request = Request {
                    method: method.to_owned(),
                    path: path.to_owned(),
                    query: query.split('&').map(pair).collect(),
                    headers,
                    body: bytes[end + 4..end + 4 + length].to_vec(),
                };
                return Ok(Some(request));
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}

fn answer(request: &Request, state: &mut State) -> (&'static str, Vec<u8>) {
    let error =
        |code: &str| format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>").into_bytes();
    state.asked += 1;
    if state.down {
        return ("503 Service Unavailable", error("ServiceUnavailable"));
    }
    if !is_signed(request) {
        state.refused += 1;
        return ("403 Forbidden", error("SignatureDoesNotMatch"));
    }
    let there = state.objects.contains_key(&request.path);
    match request.method.as_str() {
        "PUT" if there && request.headers.get("if-none-match").is_some_and(|tags| tags == "*") => {
            ("412 Precondition Failed", error("PreconditionFailed"))
        }
        "PUT" => {
            state.objects.insert(request.path.clone(), request.body.clone());
            ("200 OK", Vec::new())
        }
        "GET" => match state.objects.get(&request.path) {
            Some(bytes) => ("200 OK", bytes.clone()),
            None => ("404 Not Found", error("NoSuchKey")),
        },
        "DELETE" => {
            state.objects.remove(&request.path);
            ("204 No Content", Vec::new())
        }
        _ => ("405 Method Not Allowed", error("MethodNotAllowed")),
    }
}

/// AWS Signature Version 4 in query parameters.
fn is_signed(request: &Request) -> bool {
    let Request { method, path, query, headers, .. } = request;
    let parameter =
        |wanted: &str| query.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let all = || {
        Some((
            parameter("X-Amz-Date")?,
            parameter("X-Amz-Credential")?.replace("%2F", "/"),
            parameter("X-Amz-SignedHeaders")?.replace("%3B", ";"),
            parameter("X-Amz-Signature")?,
        ))
    };
    let Some((date, credential, signed_headers, signature)) = all() else { return false };
    let day = date.get(..8).unwrap_or_default();
    let scope = format!("{day}/{REGION}/s3/aws4_request");
    if credential != format!("{KEY_ID}/{scope}") {
        return false;
    }
    let mut signed: Vec<_> = query.iter().filter(|(name, _)| name != "X-Amz-Signature").collect();
    signed.sort();
    let canonical_query: Vec<_> = signed.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let canonical_headers = signed_headers.split(';').fold(String::new(), |text, name| {
        text + &format!("{name}:{}\n", headers.get(name).map_or("", String::as_str))
    });
    let canonical = format!(
        "{method}\n{path}\n{}\n{canonical_headers}\n{signed_headers}\nUNSIGNED-PAYLOAD",
        canonical_query.join("&")
    );
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let key = [day, REGION, "s3", "aws4_request", &to_sign]
        .iter()
        .fold(format!("AWS4{SECRET}").into_bytes(), |key, text| hmac(&key, text.as_bytes()));
    hex(&key) == signature
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|error| panic!("{error}"));
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
