//! The real binary, as a child process that never outlives its test, nor the test process, however that ends.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tollgate_devdb::{Session, die_with_parent};

/// A running `tollgate`.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// What it printed when it was ready.
    pub ready: Value,
}

impl Process {
    /// Starts the binary and waits for its ready line. Its log goes to the test's stderr.
    pub async fn start(binary: &Path, arguments: &[&str], environment: &[(String, String)]) -> Self {
        Self::start_logged(binary, arguments, environment, None).await
    }

    /// The same; its log is added to a file instead.
    pub async fn start_logged(
        binary: &Path,
        arguments: &[&str],
        environment: &[(String, String)],
        log: Option<&Path>,
    ) -> Self {
        let mut command = command(binary, arguments, environment);
        if let Some(log) = log {
            let file = OpenOptions::new().append(true).create(true).open(log);
            command.stderr(file.unwrap_or_else(|error| panic!("{}: {error}", log.display())));
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("{error}"));
        let stdout = child.stdout.take().unwrap_or_else(|| panic!("no stdout"));
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(Duration::from_mins(1), lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("{arguments:?} did not become ready"));
        let line = line.ok().flatten().unwrap_or_else(|| panic!("{arguments:?} ended before it was ready"));
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        Self { child, ready }
    }

    /// Runs a command that ends. Returns its exit code, stdout and stderr.
    pub async fn run(
        binary: &Path,
        arguments: &[&str],
        environment: &[(String, String)],
    ) -> (i32, String, String) {
        let output = command(binary, arguments, environment)
            .stderr(Stdio::piped())
            .output()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// Where it answers.
    pub fn url(&self) -> String {
        self.ready["url"].as_str().unwrap_or_else(|| panic!("no url in {}", self.ready)).to_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_else(|| panic!("the process has ended"))
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = i32::try_from(self.pid()).unwrap_or_else(|error| panic!("{error}"));
        #[expect(unsafe_code, reason = "the standard library can send no signal but SIGKILL")]
        // SAFETY: kill(2) takes two integers; the child has not been waited for, so its pid is still its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "no such process: {pid}");
    }

    /// SIGSTOP: from here on it does nothing, and its connections stay open.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// SIGCONT: it goes on as if nothing had been.
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    /// The value of a metric, summed over its labels; 0 while it has none.
    pub async fn metric(&self, name: &str) -> f64 {
        tollgate_outbound::install_crypto_provider();
        let url = format!("{}/metrics", self.url());
        let page = reqwest::get(&url).await.unwrap_or_else(|error| panic!("{error}"));
        let page = page.text().await.unwrap_or_else(|error| panic!("{error}"));
        let values = page.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let known = series == name || series.strip_prefix(name)?.starts_with('{');
            known.then(|| value.parse::<f64>().unwrap_or_else(|error| panic!("{line}: {error}")))
        });
        values.sum()
    }

    /// Its open files and sockets.
    pub fn open_files(&self) -> usize {
        self.count_of("fd")
    }

    /// Its threads.
    pub fn threads(&self) -> usize {
        self.count_of("task")
    }

    fn count_of(&self, directory: &str) -> usize {
        let path = format!("/proc/{}/{directory}", self.pid());
        std::fs::read_dir(&path).unwrap_or_else(|error| panic!("{path}: {error}")).count()
    }

    /// SIGTERM, and waits for the end. Returns the exit code.
    pub async fn terminate(mut self) -> i32 {
        self.signal(libc::SIGTERM);
        let status = tokio::time::timeout(Duration::from_mins(1), self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("did not end within 60 s of SIGTERM"));
        status.ok().and_then(|status| status.code()).unwrap_or(-1)
    }
}

fn command(binary: &Path, arguments: &[&str], environment: &[(String, String)]) -> Command {
    let mut command = Command::new(binary);
    // The test's own environment may configure a Tollgate; only what the test says counts.
    command.env_clear();
    for name in ["PATH", "HOME", "TMPDIR", "PGBIN", "RUST_BACKTRACE", "LD_LIBRARY_PATH"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    // A test process that is killed drops nothing. The signal comes when the thread ends that spawns the child, and a
    // runtime's threads live as long as its test.
    die_with_parent(command.as_std_mut(), libc::SIGKILL, Session::Shared);
    command
}
