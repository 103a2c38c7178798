//! The server: connections in, bounded in number and in patience, and a way out that takes no longer than it may.
//!
//! `axum::serve` knows no time limit for a request's head, so a client that sends half of one would hold its
//! connection for ever; hence hyper's own connections.

mod stall;
mod tls;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::add_extension::AddExtension;

use crate::client::Connection;
use stall::Unstalled;

pub use tls::{Tls, TlsError};

/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;
/// For a request's head to arrive; also, how long a connection may idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// For a client to take anything at all of what was sent.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest head of a request, in bytes; hyper answers `431` to more.
const MAX_HEAD: usize = 64 * 1024;

/// Serves, over TLS if there is a certificate, until `shutdown`; then accepts no more, lets the requests in flight finish
/// for up to `drain`, and drops what is left then.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    router: Router,
    shutdown: CancellationToken,
    drain: Duration,
) {
    let tracker = TaskTracker::new();
    let give_up = CancellationToken::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, peer, place)) = accepted else { continue };
        let (tls, router) = (tls.clone(), router.clone());
        let ends = Ends { shutdown: shutdown.clone(), give_up: give_up.clone() };
        tracker.spawn(async move {
            let gauge = metrics::gauge!("tollgate_http_connections");
            gauge.increment(1.0);
            connection(stream, peer, tls, router, ends).await;
            gauge.decrement(1.0);
            drop(place);
        });
    }
    drop(listener);
    tracker.close();
    if timeout(drain, tracker.wait()).await.is_err() {
        tracing::warn!(
            connections = tracker.len(),
            "requests still in flight after the drain time are dropped"
        );
        give_up.cancel();
        tracker.wait().await;
    }
}

type Place = tokio::sync::OwnedSemaphorePermit;

/// When a connection must end: after the request under way, and at once.
struct Ends {
    shutdown: CancellationToken,
    give_up: CancellationToken,
}

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Option<(TcpStream, IpAddr, Place)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer.ip().to_canonical(), place)),
        Err(error) => {
            // The client went away before it was accepted; or there are no file descriptors left, and trying again
            // at once would spin until there are.
            if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
                tracing::warn!(%error, "could not accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
            None
        }
    }
}

/// One connection, from its handshake to its last request.
async fn connection(stream: TcpStream, peer: IpAddr, tls: Option<Tls>, router: Router, ends: Ends) {
    // Answers are written whole; waiting to fill a packet would only delay them.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return requests(stream, Connection { peer, tls: false }, router, ends).await;
    };
    match ends.shutdown.run_until_cancelled(tls.accept(stream, STALL_TIMEOUT)).await {
        Some(Ok(stream)) => requests(stream, Connection { peer, tls: true }, router, ends).await,
        Some(Err(error)) => tracing::debug!(%error, "a handshake failed"),
        None => {}
    }
}

/// A connection's requests, from the first to the last.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    known: Connection,
    router: Router,
    Ends { shutdown, give_up }: Ends,
) {
    let io = TokioIo::new(Unstalled::new(stream, STALL_TIMEOUT));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(io, TowerToHyperService::new(AddExtension::new(router, known)));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = give_up.cancelled() => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        // The client's doing, nearly always.
        tracing::debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
mod tests;
