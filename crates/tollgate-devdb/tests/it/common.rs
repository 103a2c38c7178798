//! What the tests share: a client, patience, and a look at the machine.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Duration,
};

use tempfile::TempDir;
use tollgate_devdb::{Options, find_binaries};

/// A throw-away cluster in this directory.
pub(crate) fn options(data_dir: &Path) -> Options {
    Options { durable: false, ..Options::new(data_dir) }
}

/// A directory that nobody but us can enter, as mkdtemp makes them: root's server cannot be in it.
pub(crate) fn private_dir() -> TempDir {
    dir(0o700)
}

/// A directory that everybody can enter, so that root's server can be in it.
pub(crate) fn open_dir() -> TempDir {
    dir(0o755)
}

fn dir(mode: u32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
    dir
}

/// A `psql` that runs one statement.
pub(crate) fn psql_command(url: &str, sql: &str) -> Command {
    let mut command = Command::new(find_binaries().unwrap().dir().join("psql"));
    command.args(["--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--command", sql, url]);
    command
}

/// What one statement answers, or why it does not.
pub(crate) fn try_psql(url: &str, sql: &str) -> Result<String, String> {
    let Output { status, stdout, stderr } = psql_command(url, sql).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    if status.success() { Ok(text(stdout)) } else { Err(text(stderr)) }
}

/// What one statement answers.
pub(crate) fn psql(url: &str, sql: &str) -> String {
    try_psql(url, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Waits for something that takes a moment.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..3000 {
        if let Some(found) = look() {
            return found;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("not within 30 s: {what}");
}

/// Where the cluster of a data directory is.
pub(crate) fn pgdata(data_dir: &Path) -> PathBuf {
    match fs::read_to_string(data_dir.join("postgres.cluster")) {
        Ok(id) => Path::new("/var/lib/tollgate/clusters").join(id.trim()).join("postgres"),
        Err(_) => data_dir.join("postgres"),
    }
}

/// Whether a process runs; one that has ended and waits to be reaped does not.
#[cfg(target_os = "linux")]
pub(crate) fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// Sends a signal, by its name.
pub(crate) fn kill(signal: &str, pid: u32) {
    let line = format!("kill -s {signal} {pid}");
    assert!(Command::new("/bin/sh").args(["-c", &line]).status().unwrap().success(), "{line}");
}
