//! What can go wrong, in words that say what to do next.
//!
//! These errors are read by somebody who typed `tollgate dev` and wanted a database, not by code that
//! branches on them: so each message carries its cause and the way out, and none hides behind `source()`.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    process::ExitStatus,
};

/// Why there is no running server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No usable server binaries on this machine.
    #[error(
        "no PostgreSQL server (version 15 to 18) was found on this machine.{}\n\
         Install one:\n\
         \x20 Debian, Ubuntu:  apt-get install postgresql\n\
         \x20 Fedora, RHEL:    dnf install postgresql-server\n\
         \x20 Alpine:          apk add postgresql\n\
         \x20 Arch:            pacman -S postgresql\n\
         \x20 macOS:           brew install postgresql@17\n\
         or set PGBIN to the directory that holds `postgres` and `initdb`,\n\
         or set DATABASE_URL to a PostgreSQL that is already running.",
        list(rejected)
    )]
    NotFound {
        /// Servers that were seen but cannot be used.
        rejected: Vec<Rejected>,
    },

    /// `PGBIN` is set, but not to a usable server.
    #[error(
        "PGBIN is set to {}, which cannot be used: {reason}. Point it at the directory that holds \
         `postgres` and `initdb` of PostgreSQL 15 to 18, or unset it to have the system searched.",
        dir.display()
    )]
    Pgbin {
        /// The directory that `PGBIN` names.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// The cluster was made by another major version than the binaries that are there.
    #[error(
        "the cluster in {} was made by PostgreSQL {cluster}, and no server of that version was found.{}\n\
         Install PostgreSQL {cluster} (or set PGBIN to its bin directory), or delete {0} to begin with \
         an empty database.",
        data_dir.display(),
        list(rejected)
    )]
    WrongVersion {
        /// The data directory.
        data_dir: PathBuf,
        /// The major version that made the cluster.
        cluster: u32,
        /// The servers that were found.
        rejected: Vec<Rejected>,
    },

    /// Another process has a server on this data directory.
    #[error(
        "the data directory {} is in use by {}. Stop that one first, or choose another data directory.",
        data_dir.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The data directory.
        data_dir: PathBuf,
        /// The process that holds its lock, if it could be read.
        pid: Option<u32>,
    },

    /// Running as root, and there is no other user to run the server as.
    #[error(
        "PostgreSQL refuses to run as root, and neither a user `postgres` nor `nobody` exists to run it as. \
         Create one (useradd --system postgres), run as an ordinary user, or set DATABASE_URL."
    )]
    NoServerUser,

    /// The cluster belongs to another user.
    #[error(
        "{} belongs to user {owner}, and this process is user {uid}. Run as the user that made it, or \
         choose another data directory.",
        path.display()
    )]
    OwnedByAnother {
        /// The cluster, or the pointer to it.
        path: PathBuf,
        /// The user id that owns it.
        owner: u32,
        /// The user id of this process.
        uid: u32,
    },

    /// The server's user cannot reach a directory that holds a cluster.
    #[error(
        "PostgreSQL runs as user `{user}`, which cannot reach {}. Let it pass (chmod o+x on that directory \
         and those above it), or choose another data directory.",
        path.display()
    )]
    Unreachable {
        /// The directory.
        path: PathBuf,
        /// The user that the server runs as.
        user: String,
    },

    /// Something else than a cluster is where the cluster should be.
    #[error("{} is not a PostgreSQL cluster. Move it away, or choose another data directory.", path.display())]
    NotACluster {
        /// The directory.
        path: PathBuf,
    },

    /// The cluster is there, but its password is not.
    #[error(
        "the password of this cluster should be in {} and is not. Put the file back, or delete {} to begin \
         with an empty database.",
        path.display(),
        path.parent().unwrap_or(path).display()
    )]
    PasswordMissing {
        /// The password's file.
        path: PathBuf,
    },

    /// `initdb` failed.
    #[error("initdb could not make a cluster ({status}):\n{output}")]
    Initdb {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        output: String,
    },

    /// The port that was asked for is taken.
    #[error("port {port} of 127.0.0.1 is in use. Free it, or let another be chosen by not naming one.")]
    PortInUse {
        /// The port.
        port: u16,
    },

    /// No port could be had.
    #[error("no free port was found on 127.0.0.1 after {attempts} attempts. Name one that is free.")]
    NoFreePort {
        /// How many ports were tried.
        attempts: u32,
    },

    /// The server ended before it was ready.
    #[error("PostgreSQL ended before it was ready ({status}). The end of {}:\n{tail}", log.display())]
    Start {
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },

    /// The server did not become ready in time.
    #[error("PostgreSQL was not ready within {seconds} s. The end of {}:\n{tail}", log.display())]
    StartTimeout {
        /// How long was waited, in seconds.
        seconds: u64,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },

    /// A server left over from before could not be stopped, or the present one.
    #[error("PostgreSQL on {} (process {pid}) does not stop. End it by hand: kill -9 {pid}", pgdata.display())]
    DoesNotStop {
        /// The cluster.
        pgdata: PathBuf,
        /// One of its processes.
        pid: u32,
    },

    /// The operating system refused something.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        cause: io::Error,
    },

    /// The supervisor thread is gone; only a bug of this crate can cause it.
    #[error("the thread that supervises PostgreSQL has died; this is a bug in tollgate-devdb")]
    SupervisorGone,
}

/// A server that was found and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its bin directory.
    pub dir: PathBuf,
    /// Why not.
    pub reason: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.dir.display(), self.reason)
    }
}

fn list(rejected: &[Rejected]) -> String {
    if rejected.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = rejected.iter().map(|each| format!("\n  {each}")).collect();
    format!(" Seen, but not usable:{}", lines.concat())
}

/// Says what was tried on which path when the operating system refuses it.
pub(crate) trait IoContext<T> {
    fn when(self, action: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn when(self, action: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|cause| Error::Io { action, path: path.to_owned(), cause })
    }
}
