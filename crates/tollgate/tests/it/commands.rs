//! Every command, as a user or a script has it: its help, its results, its errors and its exit codes.
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate_domain::Role;
use tollgate_testkit::{Process, TestApp, TestDb, Tune};

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
/// An account, a job and a key that nobody has.
const NOBODY: &str = "01900000-0000-7000-8000-000000000000";

/// How a command ended, and what it said.
#[derive(Debug)]
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// Its result.
    #[track_caller]
    fn text(&self) -> &str {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{self:?}");
        self.stdout.trim_end()
    }

    /// Its result, one line of JSON.
    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.text().lines().count(), 1, "{self:?}");
        serde_json::from_str(self.text()).unwrap()
    }

    /// That it ended with this code, with all of these words on stderr, and nothing on stdout.
    #[track_caller]
    fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{self:?}");
        self.said(words);
    }

    #[track_caller]
    fn said(&self, words: &[&str]) {
        for word in words {
            assert!(self.stderr.contains(word), "{word}: {self:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }
}

async fn run(arguments: &[&str], settings: &[(&str, &str)]) -> Ended {
    let settings: Vec<_> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let (code, stdout, stderr) = Process::run(Path::new(BINARY), arguments, &settings).await;
    Ended { code, stdout, stderr }
}

/// A line's words, quoted ones as one.
fn words(line: &str) -> Vec<&str> {
    let parts = line.split('\'').enumerate();
    parts
        .flat_map(|(n, part)| if n % 2 == 1 { vec![part] } else { part.split_whitespace().collect() })
        .collect()
}

/// A migrated database with the operator's commands on it.
struct Operator {
    db: TestDb,
    url: String,
}

impl Operator {
    async fn new() -> Self {
        let db = TestDb::new().await;
        let url = db.role_url(Role::Operator);
        Self { db, url }
    }

    async fn run(&self, line: &str) -> Ended {
        run(&words(line), &[("DATABASE_URL", &self.url)]).await
    }
}

#[tokio::test]
async fn every_command_explains_itself() {
    let mut paths: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = Vec::new();
    while let Some(path) = paths.pop() {
        let arguments: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let help = run(&arguments, &[]).await;
        let text = help.text();
        for word in ["Usage: ", "--json", "--help"] {
            assert!(text.contains(word), "{arguments:?}: {text}");
        }
        assert!(text.lines().next().is_some_and(|line| line.len() > 5), "{arguments:?}: {text}");
        let commands = text.split_once("\nCommands:\n").map_or("", |(_, rest)| rest);
        for line in commands.lines().take_while(|line| !line.is_empty()) {
            let (name, about) = line.trim().split_once(' ').unwrap();
            assert!(!about.trim().is_empty(), "{line}");
            if name != "help" {
                paths.push([&path[..], &[name.to_owned()]].concat());
            }
        }
        // What an option is for stands beside it, or on the next line.
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        for pair in lines.windows(2).filter(|pair| pair[0].starts_with('-')) {
            assert!(pair[0].contains("  ") || !pair[1].is_empty(), "{arguments:?}: {}", pair[0]);
        }
        seen.push(path.join(" "));
    }
    seen.sort();
    let expected = [
        "",
        "account",
        "account create",
        "account grant",
        "account list",
        "account reconcile",
        "api",
        "audit",
        "audit list",
        "demo",
        "dev",
        "dlq",
        "dlq list",
        "dlq purge",
        "dlq redrive",
        "dlq show",
        "doctor",
        "guard",
        "guard breaker",
        "guard close",
        "guard open",
        "guard pause",
        "guard status",
        "job",
        "job cancel",
        "job list",
        "job show",
        "job submit",
        "job watch",
        "key",
        "key create",
        "key list",
        "key revoke",
        "key rotate",
        "lane",
        "lane set",
        "lane show",
        "migrate",
        "openapi",
        "price",
        "price list",
        "price set",
        "provider-sim",
        "queue",
        "queue list",
        "queue set",
        "stripe",
        "stripe events",
        "stripe link",
        "stripe reconcile",
        "stripe resolve",
        "worker",
    ];
    assert_eq!(seen, expected);
    let version = run(&["--version"], &[]).await;
    assert_eq!(version.text(), format!("tollgate {}", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn what_cannot_work_is_misuse_and_says_what_would() {
    let home = TempDir::new().unwrap();
    let settings = [("HOME", home.path().to_str().unwrap())];
    for (line, named) in [
        ("", "provider-sim"),
        ("nonsense", "unrecognized subcommand 'nonsense'"),
        ("dev --nonsense", "unexpected argument '--nonsense'"),
        ("account", "create"),
        ("account create", "--name"),
        ("account grant --account nobody --credits 1 --reason r", "--account"),
        ("key create --account 01900000-0000-7000-8000-000000000000", "--scopes"),
        (
            "key create --account 01900000-0000-7000-8000-000000000000 --scopes jobs:fly",
            "jobs:write, jobs:read",
        ),
        (
            "key create --account 01900000-0000-7000-8000-000000000000 --scopes jobs:read --rate-limit 0,1m",
            "such as `60,1m`",
        ),
        (
            "key rotate --account 01900000-0000-7000-8000-000000000000 --key 01900000-0000-7000-8000-000000000000 \
             --overlap soon",
            "such as 24h or 90d",
        ),
        ("job show 1", "'1'"),
        ("job submit", "--prompt"),
        ("job list --status done", "known are queued, running, succeeded, failed, cancelled"),
        ("job list --limit 0", "1..=100"),
        ("demo --jobs 0", "1..=10000"),
        ("dev --listen here", "--listen"),
        ("provider-sim --rate-limit 2", "must be a probability from 0 to 1"),
        ("provider-sim --hang x", "--hang"),
        ("provider-sim --retry-after soon", "--retry-after"),
        // Nothing is configured, and no `tollgate dev` has run.
        ("migrate", "DATABASE_URL is not set"),
        ("api", "`tollgate dev`"),
        ("worker", "DATABASE_URL is not set"),
        ("account list", "DATABASE_URL is not set"),
        ("key list --account 01900000-0000-7000-8000-000000000000", "start `tollgate dev`"),
        ("job list", "TOLLGATE_URL is not set"),
        ("job submit --prompt hi --watch", "TOLLGATE_DATA_DIR"),
    ] {
        for json in [None, Some("--json")] {
            let arguments: Vec<_> = json.into_iter().chain(words(line)).collect();
            run(&arguments, &settings).await.refused(2, &[named]);
        }
    }
    for (name, value, named) in [
        ("LOG_LEVEL", "a=b=c", "LOG_LEVEL"),
        ("LISTEN", "here", "`listen`"),
        ("Q_GEN_CREATE_CONCURRENCY", "0", "`q_gen_create_concurrency` must be at least 1"),
        ("TOLLGATE_CONFIG", "/nowhere/tollgate.toml", "/nowhere/tollgate.toml"),
        ("DATABASE_URL", "mysql://root:hidden@localhost/db", "postgres://user:password@host:port/database"),
    ] {
        let ended = run(&["migrate"], &[(name, value)]).await;
        ended.refused(2, &[named]);
        assert!(!ended.stderr.contains("hidden"), "{ended:?}");
    }
    let nowhere = [("TOLLGATE_URL", "nowhere"), ("TOLLGATE_API_KEY", "any")];
    run(&["job", "list"], &nowhere).await.refused(2, &["`nowhere` is not the URL of a Tollgate"]);
}

#[tokio::test]
async fn accounts_are_opened_listed_and_granted_credits() {
    let operator = Operator::new().await;
    assert_eq!(operator.run("account list").await.text(), "no accounts; `tollgate account create` opens one");
    assert_eq!(operator.run("account list --json").await.json(), json!({ "data": [] }));
    let created = operator.run("--json account create --name 'Tolls & Sons' --credits 7").await.json();
    let id = created["account_id"].as_str().unwrap();
    let second = operator.run("account create --name second").await;
    assert_eq!(second.text().len(), 36);

    let grant = operator.run(&format!("account grant --account {id} --credits 5 --reason gift --json")).await;
    assert_eq!(grant.json(), json!({ "account_id": id, "balance": 12 }));
    let list = operator.run("account list --json").await.json();
    let told: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|row| (&row["name"], &row["credits"])).collect();
    assert_eq!(told, [(&json!("Tolls & Sons"), &json!(12)), (&json!("second"), &json!(0))]);
    let table = operator.run("account list").await;
    assert!(table.text().contains("12 credits  Tolls & Sons\n"), "{table:?}");

    for (line, code, named) in [
        ("account create --name ' '", 2, "`name` must have 1 to 200 characters"),
        ("account create --name x --credits -1", 2, "`credits` must be between 0 and"),
        ("account grant --account ACCOUNT --credits -1 --reason r", 2, "`credits` must be between 1 and"),
        ("account grant --account ACCOUNT --credits 0 --reason r", 2, "`credits` must be between 1 and"),
        ("account grant --account ACCOUNT --credits 1 --reason ' '", 2, "`reason` must have"),
        (
            "account grant --account NOBODY --credits 1 --reason r",
            1,
            "`tollgate account list` shows them all",
        ),
    ] {
        let line = line.replace("ACCOUNT", id).replace("NOBODY", NOBODY);
        operator.run(&line).await.refused(code, &[named]);
        operator.run(&format!("--json {line}")).await.refused(code, &[named]);
    }
    let after = operator.run("account list --json").await.json();
    assert_eq!(after, list, "a refused command has done something");
}

#[tokio::test]
async fn a_key_is_shown_once_and_works_until_it_is_revoked() {
    let app = TestApp::start(BINARY, Tune::default()).await;
    let operator = Operator { url: app.db.role_url(Role::Operator), db: app.db };
    let account = operator.run("account create --name owner").await.text().to_owned();
    let none = operator.run(&format!("key list --account {account}")).await;
    assert_eq!(none.text(), "no keys; `tollgate key create` makes one");

    let create = format!("key create --account {account} --scopes jobs:read,jobs:write --name ci");
    let created = operator.run(&format!("{create} --json")).await.json();
    let (id, key) = (created["key_id"].as_str().unwrap(), created["key"].as_str().unwrap());
    let shown = operator.run(&create).await;
    assert!(shown.text().starts_with("sk_live_") && shown.text().contains("the only time"), "{shown:?}");

    let list = operator.run(&format!("key list --account {account}")).await;
    assert_eq!(list.text().matches("  active   sk_live_").count(), 2, "{list:?}");
    assert!(list.text().ends_with("jobs:write,jobs:read  ci") && !list.text().contains(key), "{list:?}");
    let url = app.api.url();
    let tenant = [("TOLLGATE_URL", &*url), ("TOLLGATE_API_KEY", key)];
    assert_eq!(run(&["job", "list"], &tenant).await.text(), "no jobs");
    // Not of the form that is asked for: the API says so, and the command that it was misused.
    let submit = ["job", "submit", "--prompt", "hi", "--priority", "99"];
    run(&submit, &tenant).await.refused(2, &["`priority` must be between 1 and 10"]);
    run(&["job", "show", NOBODY], &tenant).await.refused(1, &["no such job"]);

    let revoke = format!("key revoke --account {account} --key {id}");
    assert_eq!(operator.run(&revoke).await.text(), format!("revoked {id}"));
    run(&["job", "list"], &tenant).await.refused(1, &["revoked", "unauthorized"]);
    let list = operator.run(&format!("--json key list --account {account}")).await.json();
    let states: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|row| row["revoked_at"].is_null()).collect();
    assert_eq!(states, [true, false]);
    for (line, named) in [
        (format!("key revoke --account {account} --key {NOBODY}"), "`tollgate key list`"),
        (format!("key list --account {NOBODY}"), "no such account"),
        (format!("key create --account {NOBODY} --scopes jobs:read"), "no such account"),
    ] {
        operator.run(&line).await.refused(1, &[named]);
    }
    let unreachable = [("TOLLGATE_URL", "http://127.0.0.1:1"), ("TOLLGATE_API_KEY", key)];
    run(&["job", "list"], &unreachable)
        .await
        .refused(1, &["no answer from http://127.0.0.1:1", "tollgate dev"]);
}

#[tokio::test]
async fn migrate_says_what_it_did_and_a_second_time_does_nothing() {
    let db = TestDb::empty().await;
    let settings = [("DATABASE_URL", &*db.owner_url())];
    let applied = run(&["--json", "migrate"], &settings).await.json();
    assert!(applied["applied"].as_u64().unwrap() > 0, "{applied}");
    assert_eq!(run(&["--json", "migrate"], &settings).await.json(), json!({ "applied": 0, "legacy": [] }));
    assert_eq!(run(&["migrate"], &settings).await.text(), "the schema is up to date");
    let down = [("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none")];
    run(&["migrate"], &down).await.refused(1, &["Connection refused", "DATABASE_URL"]);
    run(&["api", "--listen", "127.0.0.1:0"], &down).await.refused(1, &["cannot connect", "DATABASE_URL"]);
}

#[tokio::test]
async fn the_doctor_finds_what_is_wrong() {
    let (db, empty) = (TestDb::new().await, TestDb::empty().await);
    let key = ("OPENAI_API_KEY", "any");
    for role in [Role::Api, Role::Worker, Role::Operator] {
        let good = run(&["doctor"], &[("DATABASE_URL", &*db.role_url(role)), key]).await;
        assert!(good.text().lines().all(|line| line.starts_with("ok  ")), "{good:?}");
        assert!(good.text().contains(&format!("can act as {}", role.as_str())), "{good:?}");
    }
    let nothing_set = run(&["doctor", "--json"], &[]).await.json();
    let checks: Vec<_> = nothing_set.as_array().unwrap().iter().map(|finding| &finding["check"]).collect();
    assert_eq!(checks, ["configuration", "private PostgreSQL", "provider"]);
    assert!(nothing_set[2]["detail"].as_str().unwrap().contains("simulated provider"), "{nothing_set}");

    let api = db.role_url(Role::Api);
    for (settings, named) in [
        (vec![("DATABASE_URL", &*api)], "OPENAI_API_KEY is not set"),
        (vec![("DATABASE_URL", &*db.owner_url()), key], "is a superuser"),
        (vec![("DATABASE_URL", &*empty.role_url(Role::Api)), key], "`tollgate migrate`"),
        (vec![("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none"), key], "cannot connect to PostgreSQL"),
        (vec![("PGBIN", "/nowhere")], "PGBIN is set to /nowhere"),
    ] {
        let bad = run(&["doctor"], &settings).await;
        assert_eq!(bad.code, 1, "{bad:?}");
        bad.said(&["1 of 3 checks failed"]);
        let failed: Vec<_> = bad.stdout.lines().filter(|line| line.starts_with("FAIL")).collect();
        assert!(failed.len() == 1 && failed[0].contains(named), "{named}: {bad:?}");
    }
}

#[tokio::test]
async fn the_demo_tells_what_came_of_each_prompt() {
    let db = TestDb::new().await;
    let settings = [("DATABASE_URL", &*db.owner_url()), ("LISTEN", "127.0.0.1:0")];
    let good = run(&["demo", "--jobs", "3"], &settings).await;
    assert_eq!(good.code, 0, "{good:?}");
    assert_eq!(good.stdout.matches("\n  Simulated answer").count(), 3, "{good:?}");
    for words in ["3 of 3 jobs succeeded", "median", "tollgate dev", "OPENAI_API_KEY"] {
        assert!(good.stdout.contains(words), "{words}: {good:?}");
    }

    let arguments = ["provider-sim", "--json", "--listen", "127.0.0.1:0", "--bad-request", "1"];
    let provider = Process::start(Path::new(BINARY), &arguments, &[]).await;
    let base_url = provider.ready["base_url"].as_str().unwrap();
    let settings = [&settings[..], &[("OPENAI_BASE_URL", base_url), ("OPENAI_API_KEY", "any")]].concat();
    let bad = run(&["demo", "--jobs", "3"], &settings).await;
    assert_eq!(bad.code, 1, "{bad:?}");
    assert!(bad.stdout.contains("0 of 3 jobs succeeded") && !bad.stdout.contains("Next:"), "{bad:?}");
    bad.said(&["3 of 3 jobs failed", "BAD_REQUEST: "]);
    assert!(!bad.stderr.contains("SIMULATED"), "{bad:?}");
    assert_eq!(provider.ready, json!({ "event": "ready", "base_url": base_url }));
    let taken = base_url.trim_start_matches("http://").trim_end_matches("/v1");
    let second = run(&["provider-sim", "--listen", taken], &[]).await;
    second.refused(1, &["cannot listen on", "choose another with --listen"]);
    assert_eq!(provider.terminate().await, 0);
}

#[tokio::test]
async fn the_document_is_openapi_3_1() {
    let document = run(&["openapi"], &[]).await;
    let document: Value = serde_json::from_str(document.text()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."), "{}", document["openapi"]);
    assert!(document["paths"]["/v1/jobs/generations"]["post"].is_object());
}

#[tokio::test]
async fn a_reader_that_went_away_is_no_failure() {
    let operator = Operator::new().await;
    for line in ["openapi", "--help", "account list", "--json account list", "doctor"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = Command::new(BINARY)
            .args(words(line))
            .env("DATABASE_URL", &operator.url)
            .env("OPENAI_API_KEY", "any")
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ended = child.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), &*String::from_utf8_lossy(&ended.stderr)), (Some(0), ""), "{line}");
    }
    drop(operator.db);
}
