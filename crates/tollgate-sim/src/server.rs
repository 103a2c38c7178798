//! The listener and its connections.
//!
//! Connections are served one task each by hyper's own `http1::Connection`, not by a framework: a fault ends a
//! connection in ways that no framework offers, so the task keeps the socket within reach.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::behaviour::Behaviour;
use crate::body::Ending;
use crate::control::Control;
use crate::routes::route;
use crate::state::Shared;

/// Connections that may wait to be accepted: a test opens a thousand at once.
const BACKLOG: u32 = 4_096;

/// Between the first half of a reply and the end of its connection, so that the client has read that half: a reset
/// may overtake it.
const BEFORE_THE_END: Duration = Duration::from_millis(20);

/// After a failed accept (usually no file descriptor is left), instead of trying again at once.
const AFTER_A_FAILED_ACCEPT: Duration = Duration::from_millis(50);

/// A simulated provider that listens; [`Sim::run`] serves.
#[derive(Debug)]
pub struct Sim {
    listener: TcpListener,
    addr: SocketAddr,
    shared: Arc<Shared>,
}

impl Sim {
    /// Listens at `addr`; port 0 takes a free one.
    ///
    /// A behaviour that does not [validate](Behaviour::validate) is [`io::ErrorKind::InvalidInput`]; other errors
    /// are the socket's.
    #[expect(
        clippy::unused_async,
        reason = "listening needs a runtime's context: an async fn cannot be without"
    )]
    pub async fn bind(addr: SocketAddr, behaviour: Behaviour) -> io::Result<Self> {
        behaviour.validate().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        let listener = socket.listen(BACKLOG)?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr, shared: Arc::new(Shared::new(behaviour)) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What `OPENAI_BASE_URL` is to be, e.g. `http://127.0.0.1:4010/v1`.
    pub fn base_url(&self) -> String {
        let ip = match self.addr.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        format!("http://{}/v1", SocketAddr::new(ip, self.addr.port()))
    }

    /// Watches and steers it, also while it runs and after.
    pub fn control(&self) -> Control {
        Control(Arc::clone(&self.shared))
    }

    /// Serves until `shutdown`; then closes all connections at once, answered or not.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                // Reaps the ended ones; with none there, the branch is off.
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, Arc::clone(&self.shared)));
                    }
                    Err(_) => sleep(AFTER_A_FAILED_ACCEPT).await,
                }
            }
        }
        self.shared.counters.close();
        connections.shutdown().await;
    }
}

/// One connection, until the client or a fault ends it.
async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _open = shared.counters.open();
    // Without it a reply's second packet may wait for an acknowledgement; failing that, replies are only slower.
    let _ = stream.set_nodelay(true);
    let (cutter, mut cuts) = mpsc::channel(1);
    let service = service_fn(|request| {
        let (shared, cutter) = (Arc::clone(&shared), cutter.clone());
        async move { Ok::<_, Infallible>(route(&shared, &cutter, request).await) }
    });
    // No header timeout: it would close idle connections under pooling clients, and nobody attacks a simulator.
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // hyper first: when it has nothing more to do, it has flushed the half that goes before a cut.
        biased;
        // How it ended is in the statistics already: the request in flight was dropped.
        _ = &mut connection => {}
        Some(ending) = cuts.recv() => {
            let stream = connection.into_parts().io.into_inner();
            sleep(BEFORE_THE_END).await;
            if ending == Ending::Reset {
                // Turns the close below into a reset; failing that, it is the close of a truncated reply.
                let _ = stream.set_zero_linger();
            }
        }
    }
}
