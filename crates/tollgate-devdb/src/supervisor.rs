//! The thread that keeps the server running.
//!
//! It is one thread for the whole life of a [`Server`](crate::Server), because the server dies with the
//! thread that spawned it, and because only one hand may start and stop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    clock,
    error::{Error, IoContext as _},
    launch::{Fingerprint, Launch, Postmaster},
    layout::Layout,
    ports, strays,
};

/// How often the server is looked after.
const TICK: Duration = Duration::from_millis(100);
/// How often its binary is looked at.
const BINARY_TICK: Duration = Duration::from_secs(2);
/// A server that dies sooner than this after it was ready has failed fast.
const FAST: Duration = Duration::from_secs(2);
/// After so many fast failures in a row the supervisor gives up.
const MAX_FAILURES: u32 = 5;
/// The pause after the first fast failure, in milliseconds; it doubles with each one more.
const BACKOFF_MS: u64 = 100;
/// How many ports are tried before there is none to be had.
const PORT_ATTEMPTS: u32 = 20;

/// The handle to the thread. Dropping it stops the server.
#[derive(Debug)]
pub(crate) struct Supervisor {
    requests: Sender<Request>,
    thread: Option<JoinHandle<()>>,
    pid: Arc<AtomicU32>,
    port: u16,
}

#[derive(Debug)]
enum Request {
    RestartImmediate(Sender<Result<(), Error>>),
    Down(Sender<Result<(), Error>>),
    Up(Sender<Result<(), Error>>),
    Stop(Sender<Result<(), Error>>),
}

impl Supervisor {
    /// Starts the server: on `port`, or else on the last port if it is free, or else on a free one.
    pub(crate) fn start(launch: Launch, layout: Layout, port: Option<u16>) -> Result<Supervisor, Error> {
        let (requests, inbox) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let pid = Arc::new(AtomicU32::new(0));
        let shown_pid = Arc::clone(&pid);
        let path = layout.data_dir.clone();
        let run = move || match first_start(&launch, &layout, port) {
            Ok((postmaster, port)) => {
                shown_pid.store(postmaster.pid(), Ordering::SeqCst);
                // Nobody listens any more only if the caller is gone, and then the inbox is closed too.
                let _ = ready.send(Ok(port));
                Watch {
                    launch,
                    port,
                    shown_pid,
                    server: Some(postmaster),
                    failures: 0,
                    retry_at: None,
                    binary: Binary::new(),
                }
                .run(&inbox);
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        let thread = thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(run)
            .when("start a thread for", &path)?;
        let port = started.recv().map_err(|_| Error::SupervisorGone)??;
        Ok(Supervisor { requests, thread: Some(thread), pid, port })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::SeqCst)
    }

    pub(crate) fn restart_immediate(&self) -> Result<(), Error> {
        self.ask(Request::RestartImmediate)
    }

    pub(crate) fn down(&self) -> Result<(), Error> {
        self.ask(Request::Down)
    }

    pub(crate) fn up(&self) -> Result<(), Error> {
        self.ask(Request::Up)
    }

    /// Stops the server and ends the thread. The second time there is nothing to do.
    pub(crate) fn stop(&mut self) -> Result<(), Error> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let outcome = self.ask(Request::Stop);
        thread.join().map_err(|_| Error::SupervisorGone).and(outcome)
    }

    fn ask(&self, request: impl FnOnce(Sender<Result<(), Error>>) -> Request) -> Result<(), Error> {
        let (reply, answer) = mpsc::channel();
        self.requests.send(request(reply)).map_err(|_| Error::SupervisorGone)?;
        answer.recv().map_err(|_| Error::SupervisorGone)?
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Whoever wants to know how it went calls `stop`.
        let _ = self.stop();
    }
}

fn first_start(launch: &Launch, layout: &Layout, wanted: Option<u16>) -> Result<(Postmaster, u16), Error> {
    if let Some(port) = wanted {
        let postmaster = launch.start(port)?;
        layout.remember_port(port)?;
        return Ok((postmaster, port));
    }
    let mut last = layout.last_port();
    for _ in 0..PORT_ATTEMPTS {
        let port = last.take().map_or_else(ports::random, Ok)?;
        match launch.start(port) {
            // Somebody took it before us, or just before we could.
            Err(Error::PortInUse { .. }) => {}
            Err(error) => return Err(error),
            Ok(postmaster) => {
                layout.remember_port(port)?;
                return Ok((postmaster, port));
            }
        }
    }
    Err(Error::NoFreePort { attempts: PORT_ATTEMPTS })
}

/// The thread's state.
struct Watch {
    launch: Launch,
    port: u16,
    shown_pid: Arc<AtomicU32>,
    /// `None` after an unexpected death, until it runs again.
    server: Option<Postmaster>,
    /// Fast failures in a row.
    failures: u32,
    /// When to try again; `None` without a server means that we gave up.
    retry_at: Option<Instant>,
    binary: Binary,
}

impl Watch {
    fn run(mut self, inbox: &Receiver<Request>) {
        loop {
            match inbox.recv_timeout(TICK) {
                Ok(Request::RestartImmediate(reply)) => {
                    self.failures = 0;
                    let outcome = self.restart(libc::SIGQUIT);
                    self.judge(&outcome);
                    let _ = reply.send(outcome);
                }
                Ok(Request::Down(reply)) => {
                    self.retry_at = None;
                    let _ = reply.send(self.stop(libc::SIGINT));
                }
                Ok(Request::Up(reply)) => {
                    self.failures = 0;
                    let outcome = if self.server.is_some() { Ok(()) } else { self.start() };
                    self.judge(&outcome);
                    let _ = reply.send(outcome);
                }
                Ok(Request::Stop(reply)) => {
                    let _ = reply.send(self.stop(libc::SIGINT));
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = self.stop(libc::SIGINT);
                    return;
                }
                Err(RecvTimeoutError::Timeout) => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        let Some(server) = &mut self.server else {
            if self.retry_at.is_some_and(|at| at <= clock::now()) {
                let outcome = self.start();
                self.judge(&outcome);
            }
            return;
        };
        match server.exited() {
            Ok(None) => {
                if self.binary.is_replaced(&self.launch, server.fingerprint) {
                    self.launch.log.note("the server's binary was replaced: restarting");
                    let outcome = self.restart(libc::SIGINT);
                    self.judge(&outcome);
                }
            }
            Ok(Some(status)) => {
                self.failures = if server.uptime() < FAST { self.failures + 1 } else { 0 };
                self.server = None;
                self.plan(&format!("the server ended by itself ({status})"));
            }
            // It is our child and we are the only ones who wait for it: this cannot be, and will pass.
            Err(_) => {}
        }
    }

    /// Counts an attempt that failed, and plans the next.
    fn judge(&mut self, outcome: &Result<(), Error>) {
        if let Err(error) = outcome {
            self.failures += 1;
            self.plan(&error.to_string());
        }
    }

    /// Decides what to do about a failure.
    fn plan(&mut self, what: &str) {
        self.launch.log.note(what);
        if self.failures >= MAX_FAILURES {
            self.retry_at = None;
            eprintln!(
                "tollgate: PostgreSQL on {} failed {MAX_FAILURES} times in a row; it is not started again. \
                 See {}. The last failure: {what}",
                self.launch.pgdata.display(),
                self.launch.log.path().display()
            );
            return;
        }
        let pause = self.failures.checked_sub(1).map_or(0, |exponent| BACKOFF_MS << exponent);
        self.retry_at = Some(clock::now() + Duration::from_millis(pause));
    }

    fn restart(&mut self, signal: libc::c_int) -> Result<(), Error> {
        self.stop(signal)?;
        self.start()
    }

    fn start(&mut self) -> Result<(), Error> {
        // The children of a server that was killed outlive it for a moment.
        strays::clear(&self.launch.pgdata)?;
        let server = self.launch.start(self.port)?;
        self.shown_pid.store(server.pid(), Ordering::SeqCst);
        self.server = Some(server);
        self.retry_at = None;
        Ok(())
    }

    fn stop(&mut self, signal: libc::c_int) -> Result<(), Error> {
        if let Some(server) = &mut self.server {
            server.stop(signal, &self.launch.pgdata)?;
            self.server = None;
        }
        Ok(())
    }
}

/// Watches for a package upgrade: a server that runs on while its libraries are exchanged beneath it
/// breaks at the next library that it loads.
struct Binary {
    next_look: Instant,
    /// What was there at the last look, if that was not what runs.
    seen: Option<Fingerprint>,
}

impl Binary {
    fn new() -> Binary {
        Binary { next_look: clock::now() + BINARY_TICK, seen: None }
    }

    /// Whether another binary is there, has been for a while, and fits the cluster: a package manager puts
    /// files in place one by one, and a server that works is better than one half installed.
    fn is_replaced(&mut self, launch: &Launch, running: Option<Fingerprint>) -> bool {
        if clock::now() < self.next_look {
            return false;
        }
        self.next_look = clock::now() + BINARY_TICK;
        let now = launch.fingerprint().filter(|now| Some(*now) != running);
        let settled = now.is_some() && now == self.seen;
        self.seen = now;
        settled && launch.fits_cluster()
    }
}
