//! A server's life, with real ones.

use std::{
    fs,
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    process::{Command, Stdio},
    time::Instant,
};

use tollgate_devdb::{Error, Options, Server, find_binaries};

use crate::common::{eventually, kill, open_dir, options, pgdata, private_dir, psql, psql_command, try_psql};

#[test]
#[expect(clippy::disallowed_methods, reason = "it tells how long a start takes")]
fn data_and_password_survive_a_restart_and_nothing_survives_destruction() {
    let dir = private_dir();
    let started = Instant::now();
    let server = Server::start(options(dir.path())).unwrap();
    eprintln!("initdb to ready: {:?}", started.elapsed());
    assert_eq!(server.version(), find_binaries().unwrap().version());
    let (url, port) = (server.url("postgres"), server.port());
    psql(&url, "CREATE TABLE kept AS SELECT 42 AS n");
    let started = Instant::now();
    server.stop().unwrap();
    eprintln!("stop: {:?}", started.elapsed());
    assert!(try_psql(&url, "SELECT 1").is_err());
    assert!(!pgdata(dir.path()).join("postmaster.pid").exists());

    let started = Instant::now();
    let server = Server::start(options(dir.path())).unwrap();
    eprintln!("start again: {:?}", started.elapsed());
    assert_eq!((server.url("postgres"), server.port()), (url.clone(), port));
    assert_eq!(psql(&url, "SELECT n FROM kept"), "42");

    let mode = |name| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("postgres.password"), mode("postgres.log")), (0o600, 0o600));
    fs::write(dir.path().join("other"), "a file of the caller's").unwrap();
    let cluster = pgdata(dir.path());
    // Root's server runs as another user, who cannot get there.
    let is_root = fs::metadata(dir.path()).unwrap().uid() == 0;
    assert!(cluster.exists());
    assert_eq!(cluster.starts_with("/var/lib/tollgate/clusters"), is_root);
    server.destroy().unwrap();
    assert!(!cluster.exists() && (cluster.starts_with(dir.path()) || !cluster.parent().unwrap().exists()));
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["other"]);
}

#[test]
fn a_reachable_data_directory_holds_its_cluster() {
    let dir = open_dir();
    let data_dir = dir.path().join("made/on the way");
    let server = Server::start(options(&data_dir)).unwrap();
    assert!(data_dir.join("postgres/PG_VERSION").exists() && !data_dir.join("postgres.cluster").exists());
    assert_eq!(psql(&server.url("postgres"), "SELECT 1"), "1");
    drop(server);
}

#[test]
fn two_data_directories_run_side_by_side_with_settings_of_their_own() {
    let (first, second) = (private_dir(), private_dir());
    let settings = [("work_mem", "1234kB"), ("max_connections", "17"), ("port", "1")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let one = Server::start(Options { settings, ..options(first.path()) }).unwrap();
    let two = Server::start(Options::new(second.path())).unwrap();
    assert_ne!((one.port(), one.pid()), (two.port(), two.pid()));
    let shown = |server: &Server, name| psql(&server.url("postgres"), &format!("SHOW {name}"));
    assert_eq!((shown(&one, "work_mem"), shown(&one, "max_connections")), ("1234kB".into(), "17".into()));
    assert_eq!((shown(&two, "work_mem"), shown(&two, "max_connections")), ("4MB".into(), "200".into()));
    assert_eq!((shown(&one, "fsync"), shown(&two, "fsync")), ("off".into(), "on".into()));
    assert_eq!(shown(&one, "port"), one.port().to_string(), "not for settings to change");
    for (name, value) in [
        ("server_encoding", "UTF8"),
        ("timezone", "UTC"),
        ("lc_messages", "C"),
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", ""),
        ("password_encryption", "scram-sha-256"),
    ] {
        assert_eq!(shown(&two, name), value, "{name}");
    }
    let wrong = two.url("postgres").replacen("tollgate:", "tollgate:x", 1);
    assert!(try_psql(&wrong, "SELECT 1").unwrap_err().contains("password authentication failed"));
    one.destroy().unwrap();
    two.destroy().unwrap();
}

#[test]
fn a_second_start_on_the_same_data_directory_is_refused() {
    let dir = private_dir();
    let server = Server::start(options(dir.path())).unwrap();
    let refused = Server::start(options(dir.path())).unwrap_err();
    assert!(
        matches!(&refused, Error::Locked { pid: Some(pid), .. } if *pid == std::process::id()),
        "{refused}"
    );
    assert_eq!(psql(&server.url("postgres"), "SELECT 1"), "1", "the first is untouched");
    server.destroy().unwrap();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "it tells how long a restart takes")]
fn a_server_that_dies_comes_back_on_the_same_port() {
    let dir = private_dir();
    let server = Server::start(options(dir.path())).unwrap();
    let url = server.url("postgres");
    psql(&url, "CREATE TABLE kept AS SELECT 42 AS n");

    let before = server.pid();
    let started = Instant::now();
    server.restart_immediate().unwrap();
    eprintln!("restart after a crash: {:?}", started.elapsed());
    assert_ne!(server.pid(), before);
    assert_eq!(psql(&url, "SELECT n FROM kept"), "42");

    let before = server.pid();
    let started = Instant::now();
    kill("KILL", before);
    eventually("another server", || (server.pid() != before).then_some(()));
    eprintln!("back after kill -9: {:?}", started.elapsed());
    assert_eq!(psql(&url, "SELECT n FROM kept"), "42");
    server.destroy().unwrap();
}

/// Elsewhere than on Linux there is no telling whose server a backend without a postmaster belongs to.
#[cfg(target_os = "linux")]
#[test]
fn a_busy_backend_that_outlives_its_server_does_not_keep_the_next_from_starting() {
    let dir = private_dir();
    let server = Server::start(options(dir.path())).unwrap();
    let url = server.url("postgres");
    // It computes, so it does not notice that its postmaster is gone.
    let busy = "SELECT count(*) FROM generate_series(1, 1000000000000)";
    let mut busy = psql_command(&url, busy).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the query runs", || {
        let running =
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%series(1,%'";
        (psql(&url, running) == "2").then_some(())
    });
    let before = server.pid();
    kill("KILL", before);
    eventually("another server", || (server.pid() != before).then_some(()));
    assert_eq!(psql(&url, "SELECT 1"), "1");
    assert!(!busy.wait().unwrap().success());
    server.destroy().unwrap();
}

#[test]
fn a_port_that_is_taken_is_told_or_avoided() {
    let dir = private_dir();
    let server = Server::start(options(dir.path())).unwrap();
    let port = server.port();
    server.stop().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let refused = Server::start(Options { port: Some(port), ..options(dir.path()) }).unwrap_err();
    assert!(matches!(refused, Error::PortInUse { port: told } if told == port), "{refused}");
    let server = Server::start(options(dir.path())).unwrap();
    assert_ne!(server.port(), port);
    drop(listener);
    server.stop().unwrap();
    let server = Server::start(Options { port: Some(port), ..options(dir.path()) }).unwrap();
    assert_eq!(server.port(), port);
    server.destroy().unwrap();
}

#[test]
fn a_pid_file_whose_pid_is_somebody_elses_is_stale() {
    let dir = private_dir();
    Server::start(options(dir.path())).unwrap().stop().unwrap();
    let mut innocent = Command::new("sleep").arg("600").spawn().unwrap();
    let cluster = pgdata(dir.path());
    let lines =
        format!("{}\n{}\n1700000000\n20000\n\n127.0.0.1\n1 2\nready   \n", innocent.id(), cluster.display());
    fs::write(cluster.join("postmaster.pid"), lines).unwrap();
    let server = Server::start(options(dir.path())).unwrap();
    assert_eq!(psql(&server.url("postgres"), "SELECT 1"), "1");
    assert_eq!(innocent.try_wait().unwrap(), None, "and left alone");
    server.destroy().unwrap();
    innocent.kill().unwrap();
    innocent.wait().unwrap();
}

#[test]
fn a_stray_server_is_replaced() {
    let dir = private_dir();
    let server = Server::start(options(dir.path())).unwrap();
    let port = server.port();
    psql(&server.url("postgres"), "CREATE TABLE kept AS SELECT 42 AS n");
    server.stop().unwrap();

    let cluster = pgdata(dir.path());
    let owner = fs::metadata(&cluster).unwrap();
    let mut stray = Command::new(find_binaries().unwrap().dir().join("postgres"));
    stray.arg("-D").arg(&cluster).args(["-p", &port.to_string(), "-c", "unix_socket_directories="]);
    if fs::metadata(dir.path()).unwrap().uid() != owner.uid() {
        stray.uid(owner.uid()).gid(owner.gid());
    }
    let mut stray = stray.current_dir("/").stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    eventually("the stray is ready", || {
        fs::read_to_string(cluster.join("postmaster.pid")).ok().filter(|text| text.contains("ready"))
    });

    let server = Server::start(options(dir.path())).unwrap();
    assert!(stray.try_wait().unwrap().is_some_and(|status| status.success()), "stopped in good order");
    assert_eq!((server.port(), psql(&server.url("postgres"), "SELECT n FROM kept")), (port, "42".to_owned()));
    server.destroy().unwrap();
}

#[test]
fn a_cluster_without_its_password_and_what_is_no_cluster_are_told() {
    let dir = private_dir();
    let server = Server::start(options(dir.path())).unwrap();
    let (cluster, password) = (pgdata(dir.path()), dir.path().join("postgres.password"));
    let kept = fs::read(&password).unwrap();
    server.stop().unwrap();
    fs::remove_file(&password).unwrap();
    assert!(
        matches!(Server::start(options(dir.path())), Err(Error::PasswordMissing { path }) if path == password)
    );
    fs::write(&password, kept).unwrap();
    let version = fs::read(cluster.join("PG_VERSION")).unwrap();
    fs::remove_file(cluster.join("PG_VERSION")).unwrap();
    assert!(
        matches!(Server::start(options(dir.path())), Err(Error::NotACluster { path }) if path == cluster)
    );
    fs::write(cluster.join("PG_VERSION"), "14\n").unwrap();
    let refused = Server::start(options(dir.path())).unwrap_err();
    assert!(matches!(refused, Error::WrongVersion { cluster: 14, .. }), "{refused}");
    fs::write(cluster.join("PG_VERSION"), version).unwrap();
    let settings = vec![("shared_buffers".to_owned(), "a lot".to_owned())];
    let refused = Server::start(Options { settings, ..options(dir.path()) }).unwrap_err();
    assert!(refused.to_string().contains("invalid value for parameter \"shared_buffers\""), "{refused}");
    Server::start(options(dir.path())).unwrap().destroy().unwrap();
}

#[test]
fn a_scratch_server_leaves_nothing_behind() {
    let server = Server::start_scratch(Vec::new()).unwrap();
    let dir = server.data_dir().to_owned();
    assert_eq!(psql(&server.url("postgres"), "SHOW fsync"), "off");
    assert!(dir.exists());
    drop(server);
    assert!(!dir.exists());
}
