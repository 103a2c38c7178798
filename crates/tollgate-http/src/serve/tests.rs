//! Over real sockets.

use std::net::SocketAddr;

use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;

/// A server of one slow route.
async fn start(drain: Duration) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let slow = async || {
        sleep(Duration::from_millis(300)).await;
        "done"
    };
    let router = Router::new().route("/slow", get(slow));
    let server = serve(listener, None, router, shutdown.clone(), drain);
    (address, shutdown, TaskTracker::new().spawn(server))
}

async fn ask(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

async fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let _ = timeout(Duration::from_secs(5), stream.read_to_string(&mut text)).await.unwrap();
    text
}

const REQUEST: &str = "GET /slow HTTP/1.1\r\nHost: here\r\n\r\n";

#[tokio::test]
async fn a_request_in_flight_is_finished() {
    let (address, shutdown, server) = start(Duration::from_secs(5)).await;
    let busy = ask(address, REQUEST).await;
    let idle = TcpStream::connect(address).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    shutdown.cancel();
    assert!(answer(busy).await.ends_with("done"));
    assert_eq!(answer(idle).await, "");
    server.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_request_that_outlasts_the_drain_is_dropped() {
    let (address, shutdown, server) = start(Duration::from_millis(50)).await;
    let busy = ask(address, REQUEST).await;
    sleep(Duration::from_millis(50)).await;
    let began = Instant::now();
    shutdown.cancel();
    server.await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(250));
    assert_eq!(answer(busy).await, "");
}

#[tokio::test]
async fn a_head_too_long_is_refused() {
    let (address, _shutdown, _server) = start(Duration::ZERO).await;
    let long = format!("GET /slow HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(long.as_bytes()).await;
    let status = answer(stream).await;
    assert!(status.starts_with("HTTP/1.1 431"), "{status}");
}

#[tokio::test]
async fn half_a_head_holds_no_connection() {
    let (ours, mut theirs) = tokio::io::duplex(1000);
    tokio::time::pause();
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(ours), TowerToHyperService::new(Router::<()>::new()));
    theirs.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    assert!(served.await.unwrap_err().is_timeout());
}
