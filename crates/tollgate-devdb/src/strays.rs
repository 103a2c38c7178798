//! Servers that outlived their supervisor.
//!
//! Whoever holds the data directory's lock and finds a server running on its cluster has found a stray.
//! The pid file alone does not tell: its pid may belong to somebody else by now, and the file may be gone
//! while the server's children live on and keep the next one from starting. So the processes are asked.
//! A server's processes all have the cluster as their working directory.

use std::{path::Path, time::Duration};

use libc::c_int;

use crate::{clock, error::Error, pidfile, sys};

/// How long a server is given to obey a signal before it gets a stronger one.
const PATIENCE: Duration = Duration::from_secs(5);

/// Stops whatever runs on the cluster, and removes the pid file that it leaves. A supervised server must
/// not be running, and the data directory's lock must be held.
pub(crate) fn clear(pgdata: &Path) -> Result<(), Error> {
    let running = processes(pgdata);
    // A postmaster can stop its children in good order. Without one, there is no order to keep.
    let postmaster = pidfile::read(pgdata).map(|file| file.pid).filter(|pid| running.contains(pid));
    let done = match postmaster {
        _ if running.is_empty() => true,
        Some(pid) => end(pgdata, Some(pid), libc::SIGINT),
        None => false,
    };
    if done || end(pgdata, None, libc::SIGQUIT) || end(pgdata, None, libc::SIGKILL) {
        return pidfile::remove(pgdata);
    }
    let pid = processes(pgdata).first().copied().unwrap_or_default();
    Err(Error::DoesNotStop { pgdata: pgdata.to_owned(), pid })
}

/// Sees off what an interrupted initdb left running on an unfinished cluster. That reads its statements from a
/// pipe, so it ends by itself and in good order; a signal would have it leave shared memory behind.
pub(crate) fn clear_unfinished(pgdata: &Path) {
    let _ = are_gone(pgdata) || end(pgdata, None, libc::SIGQUIT) || end(pgdata, None, libc::SIGKILL);
}

/// Sends a signal to one process, or to all, and says whether all were gone in time.
fn end(pgdata: &Path, only: Option<u32>, signal: c_int) -> bool {
    for pid in processes(pgdata) {
        if only.is_none_or(|only| only == pid) {
            // It may just have gone by itself.
            let _ = sys::kill(pid, signal);
        }
    }
    are_gone(pgdata)
}

/// Waits until nothing runs on the cluster, for as long as patience lasts.
fn are_gone(pgdata: &Path) -> bool {
    clock::wait_for(PATIENCE, || processes(pgdata).is_empty().then_some(())).is_some()
}

/// The processes of PostgreSQL that run on this cluster.
#[cfg(target_os = "linux")]
pub(crate) fn processes(pgdata: &Path) -> Vec<u32> {
    use std::{fs, os::unix::fs::MetadataExt as _};

    let Ok(cluster) = fs::metadata(pgdata) else {
        return Vec::new();
    };
    let is_ours = |pid: &u32| {
        // The directory itself is compared, not its name: it may have been renamed meanwhile.
        let here = fs::metadata(format!("/proc/{pid}/cwd"));
        here.is_ok_and(|here| (here.dev(), here.ino()) == (cluster.dev(), cluster.ino())) && is_postgres(*pid)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).collect()
}

/// Somebody's shell may well have the cluster as its working directory.
#[cfg(target_os = "linux")]
fn is_postgres(pid: u32) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe"));
    // An upgrade under a running server makes it "postgres (deleted)".
    program.is_ok_and(|file| {
        file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"postgres"))
    })
}

/// The processes of PostgreSQL that run on this cluster: without `/proc`, its postmaster at most. A backend that
/// is busy computing when its postmaster is killed is not seen, and the next server waits for its end.
#[cfg(not(target_os = "linux"))]
pub(crate) fn processes(pgdata: &Path) -> Vec<u32> {
    let Some(file) = pidfile::read(pgdata) else {
        return Vec::new();
    };
    let shown = std::process::Command::new("ps")
        .args(["-ww", "-o", "command=", "-p", &file.pid.to_string()])
        .output();
    let is_ours = shown.is_ok_and(|shown| {
        let command = String::from_utf8_lossy(&shown.stdout);
        command.contains("postgres") && command.contains(&*pgdata.to_string_lossy())
    });
    if is_ours { vec![file.pid] } else { Vec::new() }
}
