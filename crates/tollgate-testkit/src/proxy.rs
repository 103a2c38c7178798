//! A wire between Tollgate and PostgreSQL that can be cut, at any message of either side.
//!
//! Cut, the message is not delivered and its connection is closed for both. So what was sent before it has arrived, and
//! nothing after it: `COMMIT` without its answer is one of these places.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// Who sends a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// Tollgate.
    Client,
    /// PostgreSQL.
    Server,
}

/// Where the wire is to be cut next.
#[derive(Debug, Default)]
struct Cut {
    at: Option<(Sender, u32)>,
    /// Messages of that side since then, over all connections.
    passed: u32,
}

/// A running proxy, on a port of its own.
#[derive(Debug)]
pub struct PgProxy {
    port: u16,
    cut: Arc<Mutex<Cut>>,
    _running: AbortOnDropHandle<()>,
}

impl PgProxy {
    /// Before the PostgreSQL at `port` of 127.0.0.1.
    pub async fn start(port: u16) -> Self {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap_or_else(|error| panic!("{error}"));
        let own = listener.local_addr().unwrap_or_else(|error| panic!("{error}")).port();
        let cut = Arc::<Mutex<Cut>>::default();
        let shared = cut.clone();
        let running = TaskTracker::new().spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                // However a connection ends, both of its ends are closed.
                let cut = shared.clone();
                connections.spawn(async move { drop(serve(client, port, &cut).await) });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { port: own, cut, _running: AbortOnDropHandle::new(running) }
    }

    /// The same URL, through the proxy.
    pub fn through(&self, url: &str, port: u16) -> String {
        url.replace(&format!(":{port}/"), &format!(":{}/", self.port))
    }

    /// From now on counts the messages of one side, and cuts at the `nr`-th (from 1).
    pub fn cut_at(&self, sender: Sender, nr: u32) {
        *lock(&self.cut) = Cut { at: Some((sender, nr)), passed: 0 };
    }

    /// Cuts no more. `true`: it was cut since it was told to.
    pub fn mend(&self) -> bool {
        let before = std::mem::take(&mut *lock(&self.cut));
        before.at.is_some_and(|(_, nr)| before.passed >= nr)
    }
}

fn lock(cut: &Mutex<Cut>) -> MutexGuard<'_, Cut> {
    cut.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(mut client: TcpStream, port: u16, cut: &Mutex<Cut>) -> io::Result<()> {
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    greet(&mut client, &mut server).await?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        ended = pass_on(from_client, to_server, Sender::Client, cut) => ended,
        ended = pass_on(from_server, to_client, Sender::Server, cut) => ended,
    }
}

/// The first messages have no type; whoever asks for TLS is answered with one byte, and asks on without it.
async fn greet(client: &mut TcpStream, server: &mut TcpStream) -> io::Result<()> {
    const TLS: u32 = 80_877_103;
    loop {
        let mut message = vec![0; 8];
        client.read_exact(&mut message).await?;
        let length = u32::from_be_bytes([message[0], message[1], message[2], message[3]]);
        let code = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
        message.resize(usize::try_from(length).unwrap_or(8).max(8), 0);
        client.read_exact(&mut message[8..]).await?;
        server.write_all(&message).await?;
        if code != TLS {
            return Ok(());
        }
        client.write_u8(server.read_u8().await?).await?;
    }
}

async fn pass_on(
    from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    sender: Sender,
    cut: &Mutex<Cut>,
) -> io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let mut message = vec![0; 5];
        from.read_exact(&mut message).await?;
        let length = u32::from_be_bytes([message[1], message[2], message[3], message[4]]);
        message.resize(usize::try_from(length).unwrap_or(4).max(4) + 1, 0);
        from.read_exact(&mut message[5..]).await?;
        if is_cut(cut, sender) {
            return Ok(());
        }
        to.write_all(&message).await?;
    }
}

fn is_cut(cut: &Mutex<Cut>, sender: Sender) -> bool {
    let mut cut = lock(cut);
    let Some((_, nr)) = cut.at.filter(|(of, _)| *of == sender) else { return false };
    cut.passed += 1;
    cut.passed == nr
}
