//! One run of the server: from its spawn until it has been waited for.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    time::{Duration, Instant, SystemTime},
};

use libc::c_int;

use crate::{
    clock,
    error::{Error, IoContext as _},
    find::{self, Binaries},
    log::Log,
    pidfile, ports,
    privileges::Identity,
    sys::{self, Session},
};

/// How long a server may take until it is ready; recovery after a crash is part of it.
const READY_WITHIN: Duration = Duration::from_mins(1);
/// How long it may take to stop in good order, and then, told to drop everything, to do that.
const STOP_WITHIN: Duration = Duration::from_secs(30);
const ABORT_WITHIN: Duration = Duration::from_secs(5);

/// For a small machine; a caller's settings win.
const DEFAULTS: [(&str, &str); 9] = [
    ("shared_buffers", "128MB"),
    ("max_connections", "200"),
    ("timezone", "UTC"),
    ("lc_messages", "C"),
    ("log_destination", "stderr"),
    ("log_line_prefix", "%m [%p] "),
    ("log_min_messages", "warning"),
    ("log_timezone", "UTC"),
    ("logging_collector", "off"),
];
/// For a cluster that is thrown away: what only a power cut would destroy is not worth waiting for a disk.
/// Not `synchronous_commit`: without it a *server* that crashes loses what it has just committed, and tests
/// that crash servers, to see that nothing is lost, would see it lost. Without `fsync` it costs little.
const NOT_DURABLE: [(&str, &str); 2] = [("fsync", "off"), ("full_page_writes", "off")];

/// How to run the server of one cluster.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) binaries: Binaries,
    pub(crate) identity: Identity,
    pub(crate) pgdata: PathBuf,
    pub(crate) log: Log,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) durable: bool,
}

impl Launch {
    /// Starts the server and waits until it is ready. The server gets SIGINT when the *calling thread* ends.
    pub(crate) fn start(&self, port: u16) -> Result<Postmaster, Error> {
        // Whoever has it, has it; and a server that fails to bind says so only in prose.
        if !ports::is_free(port) {
            return Err(Error::PortInUse { port });
        }
        let log_start = self.log.len();
        let fingerprint = self.fingerprint();
        let mut postmaster = Postmaster { child: self.spawn(port)?, fingerprint, ready_at: clock::now() };
        match self.wait_until_ready(&mut postmaster, port, log_start) {
            Ok(()) => {
                postmaster.ready_at = clock::now();
                Ok(postmaster)
            }
            Err(error) => {
                postmaster.stop(libc::SIGQUIT, &self.pgdata)?;
                Err(error)
            }
        }
    }

    fn spawn(&self, port: u16) -> Result<Child, Error> {
        let program = self.binaries.postgres();
        let log = self.log.open()?;
        let mut command = self.identity.command(&program);
        command.arg("-D").arg(&self.pgdata);
        for (name, value) in self.all_settings(port) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdout(log.try_clone().when("open", self.log.path())?).stderr(log);
        sys::die_with_parent(&mut command, libc::SIGINT, Session::Own);
        command.spawn().when("run", &program)
    }

    /// The last one of a name wins, so a caller's go after ours, and what we rely on goes last.
    fn all_settings(&self, port: u16) -> Vec<(String, String)> {
        let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let mut all = own(&DEFAULTS);
        if !self.durable {
            all.extend(own(&NOT_DURABLE));
        }
        all.extend(self.settings.iter().cloned());
        all.extend(own(&[
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", ""),
            ("port", &port.to_string()),
        ]));
        all
    }

    fn wait_until_ready(&self, postmaster: &mut Postmaster, port: u16, log_start: u64) -> Result<(), Error> {
        let (pid, log) = (postmaster.pid(), self.log.path().to_owned());
        // Without a look at the pid, the file of another server would do.
        let is_ready = || pidfile::read(&self.pgdata).is_some_and(|file| file.pid == pid && file.ready);
        let ended = clock::wait_for(READY_WITHIN, || match postmaster.exited() {
            Ok(None) => is_ready().then_some(Ok(None)),
            outcome => Some(outcome),
        });
        let Some(ended) = ended else {
            let tail = self.log.tail(log_start);
            return Err(Error::StartTimeout { seconds: READY_WITHIN.as_secs(), log, tail });
        };
        let Some(status) = ended? else {
            return Ok(());
        };
        let tail = self.log.tail(log_start);
        if tail.contains("could not create any TCP/IP sockets") {
            return Err(Error::PortInUse { port });
        }
        Err(Error::Start { status, log, tail })
    }

    /// What identifies the server's binary at this moment; `None` while there is none.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        let file = fs::metadata(self.binaries.postgres()).ok()?;
        Some(Fingerprint { dev: file.dev(), ino: file.ino(), modified: file.modified().ok()? })
    }

    /// Whether the binary that is there now can serve the cluster.
    pub(crate) fn fits_cluster(&self) -> bool {
        find::version(&self.binaries.postgres(), &self.identity) == Ok(self.binaries.version())
    }
}

/// Two that differ belong to two builds of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    dev: u64,
    ino: u64,
    modified: SystemTime,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Postmaster {
    child: Child,
    pub(crate) fingerprint: Option<Fingerprint>,
    ready_at: Instant,
}

impl Postmaster {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How long it has been ready.
    pub(crate) fn uptime(&self) -> Duration {
        self.ready_at.elapsed()
    }

    /// How it ended, if it has.
    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child.try_wait().when("wait for", "postgres".as_ref())
    }

    /// Stops it: SIGINT for a fast shutdown in good order, SIGQUIT for one that drops everything. Sterner
    /// signals follow if it does not obey.
    pub(crate) fn stop(&mut self, signal: c_int, pgdata: &Path) -> Result<(), Error> {
        let patience = if signal == libc::SIGINT { STOP_WITHIN } else { ABORT_WITHIN };
        let steps = [(signal, patience), (libc::SIGQUIT, ABORT_WITHIN), (libc::SIGKILL, ABORT_WITHIN)];
        for (signal, patience) in steps {
            if self.exited()?.is_some() {
                return Ok(());
            }
            // It has not been waited for, so its pid is still its own.
            let _ = sys::kill(self.pid(), signal);
            if clock::wait_for(patience, || self.exited().transpose()).transpose()?.is_some() {
                return Ok(());
            }
        }
        Err(Error::DoesNotStop { pgdata: pgdata.to_owned(), pid: self.pid() })
    }
}
