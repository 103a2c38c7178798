//! `tollgate dev` and `tollgate demo`: a whole Tollgate from nothing, what it keeps, and what it leaves behind.
use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tempfile::{NamedTempFile, TempDir};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tollgate_model::job::{Job, JobStatus};
use tollgate_outbound::TollgateClient;
use tollgate_testkit::{Process, TestDb, eventually};
use uuid::Uuid;

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
const PATIENCE: Duration = Duration::from_mins(1);
/// Where root's clusters go if PostgreSQL's user cannot reach their data directory.
const ELSEWHERE: &str = "/var/lib/tollgate/clusters";

/// A data directory, removed with its cluster wherever that is.
struct DataDir(TempDir);

impl DataDir {
    fn new() -> Self {
        Self::with_mode(0o755)
    }

    fn with_mode(mode: u32) -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(dir.text(), Permissions::from_mode(mode)).unwrap();
        dir
    }

    fn text(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn pgdata(&self) -> PathBuf {
        match fs::read_to_string(self.path("postgres.cluster")) {
            Ok(id) => Path::new(ELSEWHERE).join(id.trim()).join("postgres"),
            Err(_) => self.path("postgres"),
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.text()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// What of PostgreSQL runs anywhere in it.
    fn servers(&self) -> Vec<String> {
        let (here, cluster) = (self.0.path().canonicalize().unwrap(), self.pgdata());
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let directories = processes.filter_map(|process| fs::read_link(process.path().join("cwd")).ok());
        let ours = directories.filter(|dir| dir.starts_with(&here) || dir.starts_with(&cluster));
        ours.map(|dir| dir.display().to_string()).collect()
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        let cluster = self.pgdata();
        if cluster.starts_with(ELSEWHERE) {
            let _ = fs::remove_dir_all(cluster.parent().unwrap());
        }
    }
}

/// A command that goes on, in a given environment and no other, with its stderr kept.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    stderr: NamedTempFile,
}

impl Running {
    fn start(arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let stderr = NamedTempFile::new().unwrap();
        let mut command = Command::new(BINARY);
        command.args(arguments).env_clear();
        for name in ["PATH", "HOME", "TMPDIR", "PGBIN", "LD_LIBRARY_PATH"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        let mut child = command
            .env("LISTEN", "127.0.0.1:0")
            .envs(settings.iter().copied())
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr.reopen().unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, stderr }
    }

    async fn dev(dir: &DataDir, settings: &[(&str, &str)]) -> (Self, Ready) {
        let mut running = Self::start(&["dev", "--json", "--data-dir", dir.text()], settings);
        let line = running.line().await.unwrap_or_else(|| panic!("not ready: {}", running.stderr()));
        (running, Ready(serde_json::from_str(&line).unwrap()))
    }

    async fn line(&mut self) -> Option<String> {
        tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("no line").unwrap()
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.stderr.path()).unwrap()
    }

    async fn said(&self, words: &str) {
        eventually(words, PATIENCE, || async { self.stderr().contains(words).then_some(()) }).await;
    }

    async fn signal(&self, signal: &str) {
        let line = format!("kill -s {signal} {}", self.child.id().unwrap());
        assert!(Command::new("/bin/sh").args(["-c", &line]).status().await.unwrap().success(), "{line}");
    }

    /// The exit code (-1: a signal's), and what was left of stdout.
    async fn end(mut self) -> (i32, Vec<String>, String) {
        let mut rest = Vec::new();
        while let Some(line) = self.line().await {
            rest.push(line);
        }
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("no end").unwrap();
        (status.code().unwrap_or(-1), rest, self.stderr())
    }

    /// Ends `dev` in good order.
    async fn stop(self, signal: &str) {
        self.signal(signal).await;
        let (code, rest, stderr) = self.end().await;
        assert_eq!((code, rest.len()), (0, 0), "{rest:?} {stderr}");
    }
}

/// What `dev` says when it is ready.
#[derive(Debug, PartialEq)]
struct Ready(Value);

impl Ready {
    fn get(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    fn address(&self) -> SocketAddr {
        self.get("url").strip_prefix("http://").unwrap().parse().unwrap()
    }

    fn client(&self) -> TollgateClient {
        TollgateClient::new(self.get("url"), SecretString::from(self.get("api_key"))).unwrap()
    }

    async fn submit(&self) -> Uuid {
        self.client().submit_json(&json!({ "prompt": "What is a toll?" })).await.unwrap()
    }

    async fn ended(&self, id: Uuid) -> Job {
        let client = self.client();
        let ended = || async { client.job(id).await.ok().filter(|job| job.status.is_final()) };
        eventually("the job has ended", PATIENCE, ended).await
    }
}

async fn run(arguments: &[&str], settings: &[(&str, &str)]) -> (i32, String, String) {
    let settings: Vec<_> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Process::run(Path::new(BINARY), arguments, &settings).await
}

#[tokio::test]
async fn one_line_says_where_everything_is_and_all_of_it_works() {
    let dir = DataDir::new();
    let (dev, ready) = Running::dev(&dir, &[]).await;
    let names: Vec<_> = ready.0.as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, ["account_id", "api_key", "database_url", "event", "url"]);
    assert_eq!(ready.get("event"), "ready");
    dev.said("SIMULATED PROVIDER: no model is asked").await;
    let probe = reqwest::get(format!("{}/readyz", ready.get("url"))).await.unwrap();
    assert_eq!(probe.status(), 200);

    let job = ready.ended(ready.submit().await).await;
    let output = job.output.unwrap();
    assert!(
        output.text.starts_with("Simulated answer") && output.model.ends_with("-simulated"),
        "{output:?}"
    );

    let mut owner = PgConnection::connect(ready.get("database_url")).await.unwrap();
    let superuser: String =
        sqlx::query_scalar("SELECT current_setting('is_superuser')").fetch_one(&mut owner).await.unwrap();
    assert_eq!(superuser, "on");
    owner.close().await.unwrap();

    let mode = |name: &str| fs::metadata(dir.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("dev.json"), mode("postgres.password")), (0o600, 0o600));

    // The commands find it by themselves.
    let here = [("TOLLGATE_DATA_DIR", dir.text())];
    let (code, said, error) = run(&["job", "submit", "--prompt", "hi", "--watch"], &here).await;
    assert_eq!(code, 0, "{error}");
    assert!(said.contains("job.completed") && said.contains("You asked: hi"), "{said}");
    let (code, said, error) = run(&["--json", "job", "list", "--status", "succeeded"], &here).await;
    let list: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, list["data"].as_array().unwrap().len()), (0, 2), "{error}");
    let (code, said, error) = run(&["--json", "account", "list"], &here).await;
    assert!(code == 0 && said.contains(ready.get("account_id")), "{said}{error}");

    // One Tollgate a data directory.
    let again = ["dev", "--json", "--data-dir", dir.text(), "--listen", "127.0.0.1:0"];
    let (code, said, error) = run(&again, &[]).await;
    assert_eq!((code, said.as_str()), (1, ""), "{error}");
    let holder = dev.child.id().unwrap();
    assert!(error.contains(&format!("in use by process {holder}")) && error.contains("another"), "{error}");
    assert_eq!(ready.ended(ready.submit().await).await.status, JobStatus::Succeeded);
    dev.stop("INT").await;
}

#[tokio::test]
async fn ctrl_c_leaves_nothing_running_and_a_restart_finds_everything_again() {
    let dir = DataDir::new();
    let (dev, first) = Running::dev(&dir, &[]).await;
    let mut jobs = vec![first.submit().await];
    let finished = first.ended(jobs[0]).await;
    for _ in 0..7 {
        jobs.push(first.submit().await);
    }
    let client = first.client();
    eventually("a job is running", PATIENCE, || async {
        let running = client.jobs(Some(JobStatus::Running), 1, None).await.unwrap();
        (!running.data.is_empty()).then_some(())
    })
    .await;
    dev.stop("INT").await;
    assert!(dir.servers().is_empty(), "{:?}", dir.servers());
    assert!(TcpStream::connect(first.address()).is_err(), "the port is still open");
    assert!(!dir.pgdata().join("postmaster.pid").exists());
    assert!(fs::File::open(dir.path("postgres.lock")).unwrap().try_lock().is_ok());

    let (dev, second) = Running::dev(&dir, &[]).await;
    for name in ["account_id", "api_key"] {
        assert_eq!(first.get(name), second.get(name));
    }
    assert_eq!(second.client().job(jobs[0]).await.unwrap(), finished);
    for id in jobs {
        let job = second.ended(id).await;
        // A job that ran meanwhile was let finish, or handed back unharmed.
        assert_eq!((job.status, job.attempts, job.error), (JobStatus::Succeeded, 1, None));
    }
    dev.stop("TERM").await;
    assert!(dir.servers().is_empty(), "{:?}", dir.servers());
}

#[tokio::test]
async fn a_kill_takes_postgresql_along_and_loses_nothing() {
    let dir = DataDir::new();
    let (mut dev, first) = Running::dev(&dir, &[]).await;
    let finished = first.ended(first.submit().await).await;
    let open = first.submit().await;
    dev.child.kill().await.unwrap();
    // At once, while the old server may still be there.
    let (mut dev, second) = Running::dev(&dir, &[("VISIBILITY_TIMEOUT", "1s")]).await;
    assert_eq!(first.get("api_key"), second.get("api_key"));
    assert_eq!(second.client().job(finished.id).await.unwrap(), finished);
    assert_eq!(second.ended(open).await.status, JobStatus::Succeeded);
    dev.child.kill().await.unwrap();
    let gone = || async { dir.servers().is_empty().then_some(()) };
    eventually("PostgreSQL has gone", Duration::from_secs(10), gone).await;
}

#[tokio::test]
async fn two_data_directories_live_side_by_side_one_of_them_where_root_alone_may_go() {
    let dirs = (DataDir::new(), DataDir::with_mode(0o700));
    let ((first_dev, first), (second_dev, second)) =
        tokio::join!(Running::dev(&dirs.0, &[]), Running::dev(&dirs.1, &[]));
    for name in ["url", "database_url", "account_id", "api_key"] {
        assert_ne!(first.get(name), second.get(name));
    }
    let is_root = fs::metadata(dirs.1.text()).unwrap().uid() == 0;
    assert_eq!(dirs.1.pgdata().starts_with(ELSEWHERE), is_root);
    let (one, other) = (first.submit().await, second.submit().await);
    assert_eq!(first.ended(one).await.status, JobStatus::Succeeded);
    assert_eq!(second.ended(other).await.status, JobStatus::Succeeded);
    assert!(second.client().job(one).await.unwrap_err().to_string().contains("404"));
    tokio::join!(first_dev.stop("INT"), second_dev.stop("INT"));
    assert!(dirs.0.servers().is_empty() && dirs.1.servers().is_empty());
}

#[tokio::test]
async fn a_database_that_is_named_is_used_and_none_is_started() {
    let (db, dir) = (TestDb::empty().await, DataDir::new());
    let settings = [("DATABASE_URL", &*db.owner_url())];
    let (dev, ready) = Running::dev(&dir, &settings).await;
    assert_eq!(ready.get("database_url"), db.owner_url());
    let id = ready.submit().await;
    assert_eq!(ready.ended(id).await.status, JobStatus::Succeeded);
    dev.stop("INT").await;
    assert_eq!(dir.names(), ["dev.json"]);
    let jobs: i64 = sqlx::query_scalar("SELECT count(*) FROM app.jobs WHERE id = $1")
        .bind(id)
        .fetch_one(&db.owner().await)
        .await
        .unwrap();
    assert_eq!(jobs, 1);
    let (dev, again) = Running::dev(&dir, &settings).await;
    assert_eq!(ready.get("api_key"), again.get("api_key"));
    dev.stop("TERM").await;
}

#[tokio::test]
async fn a_port_in_use_is_fatal_only_if_it_was_asked_for() {
    let (db, dir) = (TestDb::new().await, DataDir::new());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, said, error) = run(&["dev", "--data-dir", dir.text(), "--listen", &address], &[]).await;
    assert_eq!((code, said.as_str()), (1, ""), "{error}");
    assert!(error.contains(&format!("cannot listen on {address}")) && error.contains("--listen"), "{error}");
    assert!(dir.names().is_empty());

    let (dev, ready) = Running::dev(&dir, &[("DATABASE_URL", &*db.owner_url()), ("LISTEN", &*address)]).await;
    assert_ne!(ready.get("url"), format!("http://{address}"));
    dev.said(&format!("{address} is in use; taking another port")).await;
    assert_eq!(ready.ended(ready.submit().await).await.status, JobStatus::Succeeded);
    dev.stop("INT").await;
}

#[tokio::test]
async fn without_server_programs_the_message_says_what_to_do() {
    let (dir, empty) = (DataDir::new(), DataDir::new());
    let settings = [("PGBIN", empty.text()), ("PATH", empty.text())];
    let (code, said, error) =
        run(&["dev", "--data-dir", dir.text(), "--listen", "127.0.0.1:0"], &settings).await;
    assert_eq!((code, said.as_str()), (1, ""), "{error}");
    for words in [empty.text(), "there is no `postgres` in it", "`initdb`", "unset it"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert!(!dir.pgdata().exists());
}

#[tokio::test]
async fn the_demo_does_the_whole_job_and_leaves_nothing_behind() {
    let temporary = DataDir::new();
    let demo = Running::start(&["demo", "--json"], &[("TMPDIR", temporary.text())]);
    let (code, lines, error) = demo.end().await;
    assert_eq!((code, lines.len()), (0, 1), "{lines:?} {error}");
    let summary: Value = serde_json::from_str(&lines[0]).unwrap();
    let told = ["event", "jobs", "succeeded", "failed", "simulated"].map(|name| summary[name].clone());
    assert_eq!(told, [json!("done"), json!(36), json!(36), json!(0), json!(true)]);
    for words in ["SIMULATED PROVIDER", "36 jobs accepted", "36/36 done", "jobs/s"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert!(!error.contains(" INFO "), "the log buries the progress: {error}");
    assert!(temporary.names().is_empty() && temporary.servers().is_empty(), "{:?}", temporary.names());
}

#[tokio::test]
async fn an_interrupted_demo_leaves_nothing_behind() {
    // Nobody answers there, so every job waits for its next attempt; the demo says why.
    let settings = [("OPENAI_BASE_URL", "http://127.0.0.1:1/v1"), ("OPENAI_API_KEY", "any")];
    for words in ["starting PostgreSQL", "; retrying after SERVER_ERROR"] {
        let temporary = DataDir::new();
        let settings = [&[("TMPDIR", temporary.text())], &settings[..]].concat();
        let demo = Running::start(&["demo", "--json"], &settings);
        demo.said(words).await;
        if words.starts_with("starting") {
            eventually("a cluster is being made", PATIENCE, || async {
                (!temporary.names().is_empty()).then_some(())
            })
            .await;
        }
        demo.signal("INT").await;
        let (code, lines, error) = demo.end().await;
        assert_eq!((code, lines.len()), (1, 0), "{lines:?} {error}");
        assert!(error.ends_with("tollgate: interrupted\n"), "{error}");
        assert!(temporary.names().is_empty() && temporary.servers().is_empty(), "{:?}", temporary.names());
    }
}
