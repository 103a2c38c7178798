//! `with-postgres`, and through it what happens to a server whose supervisor is killed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::Duration,
};

use tollgate_devdb::{Server, find_binaries};

use crate::common::{self, eventually, kill, open_dir, options, pgdata, private_dir, psql, runs};

fn with_postgres() -> Command {
    Command::new(env!("CARGO_BIN_EXE_with-postgres"))
}

/// A `with-postgres` whose command tells its URL and its pid, and then sleeps.
struct Sleeper {
    child: Child,
    url: String,
    command: u32,
    postmaster: u32,
}

impl Sleeper {
    /// Runs in `dir`, which gets a file; `prepare` may add options.
    fn start(dir: &Path, prepare: impl FnOnce(&mut Command)) -> Sleeper {
        let told = dir.join("told");
        let _ = fs::remove_file(&told);
        let mut command = with_postgres();
        prepare(&mut command);
        let script = r#"echo "$$ $DATABASE_URL" > "$0.new" && mv "$0.new" "$0" && exec sleep 600"#;
        let child = command.args(["--", "/bin/sh", "-c", script]).arg(&told).spawn().unwrap();
        let line = eventually("the command runs", || fs::read_to_string(&told).ok());
        let (command, url) = line.trim().split_once(' ').unwrap();
        let postmaster = psql(url, "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)");
        Sleeper {
            child,
            url: url.to_owned(),
            command: command.parse().unwrap(),
            postmaster: postmaster.parse().unwrap(),
        }
    }

    fn expect_gone(&self) {
        eventually("the command is gone", || (!runs(self.command)).then_some(()));
        eventually("the server is gone", || (!runs(self.postmaster)).then_some(()));
    }
}

fn scratch_dirs(tmp: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(tmp).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().contains("tollgate-postgres-")).collect()
}

#[test]
fn the_command_gets_a_database_and_its_exit_code_is_passed_on() {
    let tmp = open_dir();
    let psql = find_binaries().unwrap().dir().join("psql");
    let script = r#""$0" -X -A -t -c 'SELECT 6 * 7' "$DATABASE_URL"; exit 7"#;
    let mut command = with_postgres();
    command.env("TMPDIR", tmp.path()).args(["--", "/bin/sh", "-c", script]).arg(psql);
    let output = command.output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), b"42\n".as_slice()));
    assert_eq!(scratch_dirs(tmp.path()), [] as [PathBuf; 0]);

    let absent = with_postgres().env("TMPDIR", tmp.path()).args(["--", "/no/such/program"]).output().unwrap();
    assert_eq!(absent.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("cannot run /no/such/program"));
    let wrong = with_postgres().env("PGBIN", "/no/such/bin").args(["--", "true"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("PGBIN is set to /no/such/bin"));
    assert_eq!(scratch_dirs(tmp.path()), [] as [PathBuf; 0]);
}

#[test]
fn a_signal_ends_the_command_and_leaves_nothing_behind() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let tmp = open_dir();
        let mut sleeper = Sleeper::start(tmp.path(), |command| {
            command.env("TMPDIR", tmp.path());
        });
        assert_eq!(scratch_dirs(tmp.path()).len(), 1);
        kill(signal, sleeper.child.id());
        assert_eq!(sleeper.child.wait().unwrap().code(), Some(code));
        sleeper.expect_gone();
        assert_eq!(scratch_dirs(tmp.path()), [] as [PathBuf; 0], "{signal}");
    }
}

#[test]
fn kill_9_of_the_parent_takes_the_server_along_and_the_next_start_works() {
    let dir = private_dir();
    let mut sleeper = Sleeper::start(dir.path(), |command| {
        command.arg("--data-dir").arg(dir.path());
    });
    psql(&sleeper.url, "CREATE TABLE kept AS SELECT 42 AS n");
    kill("KILL", sleeper.child.id());
    sleeper.child.wait().unwrap();
    // At once, while the old server may still be stopping.
    let server = Server::start(options(dir.path())).unwrap();
    sleeper.expect_gone();
    assert_eq!(server.url("postgres"), sleeper.url);
    assert_eq!(psql(&sleeper.url, "SELECT n FROM kept"), "42");
    server.destroy().unwrap();
}

#[test]
fn kill_9_without_a_next_start_leaves_no_server_and_the_next_scratch_removes_its_files() {
    let tmp = open_dir();
    let mut sleeper = Sleeper::start(tmp.path(), |command| {
        command.env("TMPDIR", tmp.path());
    });
    kill("KILL", sleeper.child.id());
    sleeper.child.wait().unwrap();
    sleeper.expect_gone();
    assert_eq!(scratch_dirs(tmp.path()).len(), 1);
    assert!(with_postgres().env("TMPDIR", tmp.path()).args(["--", "true"]).status().unwrap().success());
    assert_eq!(scratch_dirs(tmp.path()), [] as [PathBuf; 0]);
}

#[test]
fn kill_9_during_initdb_leaves_nothing_half_made() {
    for pause in [20, 100, 300, 500] {
        let dir = private_dir();
        let mut command = with_postgres();
        let mut child =
            command.arg("--data-dir").arg(dir.path()).args(["--", "sleep", "600"]).spawn().unwrap();
        thread::sleep(Duration::from_millis(pause));
        child.kill().unwrap();
        child.wait().unwrap();
        let server = Server::start(options(dir.path())).unwrap();
        assert_eq!(psql(&server.url("postgres"), "SELECT 1"), "1");
        let base = pgdata(dir.path()).parent().unwrap().to_owned();
        let names = fs::read_dir(base).unwrap().map(|entry| entry.unwrap().file_name());
        let unfinished = names.filter(|name| name.to_string_lossy().contains("initdb")).count();
        assert_eq!(unfinished, 0, "after {pause} ms");
        server.destroy().unwrap();
    }
}

/// A bin directory whose programs are ours to exchange.
fn wrapped_binaries() -> tempfile::TempDir {
    let bin = open_dir();
    wrap(bin.path(), "postgres");
    wrap(bin.path(), "initdb");
    bin
}

fn wrap(bin: &Path, name: &str) {
    let real = find_binaries().unwrap().dir().join(name);
    install(bin, name, &format!("exec '{}' \"$@\"", real.display()));
}

/// Does what a package manager does: puts a new file in the old one's place.
fn install(bin: &Path, name: &str, script: &str) {
    let (new, file) = (bin.join("new"), bin.join(name));
    fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, file).unwrap();
}

#[test]
fn a_server_that_keeps_failing_is_given_up_and_said_so_once() {
    let (bin, dir) = (wrapped_binaries(), private_dir());
    let stderr = dir.path().join("stderr");
    let mut sleeper = Sleeper::start(dir.path(), |command| {
        command.env("PGBIN", bin.path()).arg("--data-dir").arg(dir.path());
        command.stderr(fs::File::create(&stderr).unwrap());
    });
    install(bin.path(), "postgres", "echo 'no luck today' >&2; exit 1");
    kill("KILL", sleeper.postmaster);
    let said = eventually("it gives up", || fs::read_to_string(&stderr).ok().filter(|text| !text.is_empty()));
    assert!(said.contains("failed 5 times in a row") && said.contains("no luck today"), "{said}");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(fs::read_to_string(&stderr).unwrap(), said);
    kill("TERM", sleeper.child.id());
    assert_eq!(sleeper.child.wait().unwrap().code(), Some(143));
    Server::start(options(dir.path())).unwrap().destroy().unwrap();
}

#[test]
fn a_server_whose_binary_is_replaced_is_restarted() {
    let (bin, dir) = (wrapped_binaries(), private_dir());
    let mut sleeper = Sleeper::start(dir.path(), |command| {
        command.env("PGBIN", bin.path()).arg("--data-dir").arg(dir.path());
    });
    wrap(bin.path(), "postgres");
    eventually("the old server is stopped", || (!runs(sleeper.postmaster)).then_some(()));
    eventually("a new one is there", || common::try_psql(&sleeper.url, "SELECT 1").ok());
    let log = fs::read_to_string(dir.path().join("postgres.log")).unwrap();
    assert!(log.contains("tollgate: the server's binary was replaced"), "{log}");
    kill("TERM", sleeper.child.id());
    assert_eq!(sleeper.child.wait().unwrap().code(), Some(143));
    // With the real binaries: the cluster does not care.
    Server::start(options(dir.path())).unwrap().destroy().unwrap();
}
