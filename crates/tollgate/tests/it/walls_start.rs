//! Who may start what (SPEC T2): a login that is more powerful than its role is refused, and told why; and `tollgate
//! migrate` brings any database up to date, whoever else is at it.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tollgate_domain::Role;
use tollgate_testkit::{Process, TestDb};

const BINARY: &str = env!("CARGO_BIN_EXE_tollgate");
/// Long enough for a migration on a slow machine; what hangs does not end within it.
const PATIENCE: Duration = Duration::from_mins(1);

fn settings(url: &str) -> Vec<(String, String)> {
    vec![
        ("DATABASE_URL".to_owned(), url.to_owned()),
        ("OPENAI_API_KEY".to_owned(), "sk-test".to_owned()),
        ("LOG_LEVEL".to_owned(), "warn".to_owned()),
    ]
}

/// Runs a command that must end. Returns its exit code, stdout and stderr.
async fn run(arguments: &[&str], url: &str) -> (i32, String, String) {
    let settings = settings(url);
    let ended = tokio::time::timeout(PATIENCE, Process::run(Path::new(BINARY), arguments, &settings)).await;
    ended.unwrap_or_else(|_| panic!("{arguments:?} has not ended within {PATIENCE:?}"))
}

async fn start(command: &str, url: &str) -> Process {
    let arguments = ["--json", command, "--listen", "127.0.0.1:0"];
    Process::start(Path::new(BINARY), &arguments, &settings(url)).await
}

async fn refused(command: &str, url: &str) -> String {
    let (code, stdout, stderr) = run(&[command, "--listen", "127.0.0.1:0"], url).await;
    assert_eq!((code, stdout.as_str()), (1, ""), "{command}: {stderr}");
    stderr
}

/// Makes a login; `what` follows its name in CREATE ROLE.
async fn login(db: &TestDb, owner: &PgPool, name: &str, what: &str) -> String {
    let sql = format!("CREATE ROLE {name} LOGIN PASSWORD 'only-for-tests' {what}");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(owner).await.unwrap_or_else(|error| panic!("{error}"));
    db.url_as(name)
}

#[tokio::test]
async fn walls_refuse_a_login_that_is_too_powerful() {
    let db = TestDb::new().await;
    let owner = db.owner().await;
    for (command, role) in [("api", "app_api"), ("worker", "app_worker")] {
        let bypasses =
            login(&db, &owner, &format!("{command}_bypasses"), &format!("BYPASSRLS IN ROLE {role}")).await;
        let owns =
            login(&db, &owner, &format!("{command}_owns"), &format!("IN ROLE {role}, app_migrator")).await;
        let stranger = login(&db, &owner, &format!("{command}_stranger"), "").await;
        let other = if command == "api" { Role::Worker } else { Role::Api };
        let not_a_member = format!("cannot connect to PostgreSQL as {role}");
        let sql = format!("CREATE ROLE {command}_almighty SUPERUSER");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&owner).await.unwrap();
        let in_all = format!("IN ROLE {role}, {command}_almighty");
        let becomes = login(&db, &owner, &format!("{command}_becomes"), &in_all).await;
        let grants =
            login(&db, &owner, &format!("{command}_grants"), &format!("CREATEROLE IN ROLE {role}")).await;
        for (url, problem) in [
            (db.owner_url(), "is a superuser"),
            (becomes, "is a superuser, or can become one"),
            (grants, "may create roles"),
            (bypasses, "bypasses row-level security"),
            (owns, "owns Tollgate's tables"),
            (db.url_as("app_migrator"), not_a_member.as_str()),
            (db.role_url(other), not_a_member.as_str()),
            (db.role_url(Role::Operator), not_a_member.as_str()),
            (stranger, not_a_member.as_str()),
        ] {
            let stderr = refused(command, &url).await;
            assert!(stderr.contains(problem), "{command}: expected `{problem}`, got: {stderr}");
            assert!(stderr.contains(role), "{command}: does not say which role it takes: {stderr}");
            assert!(!stderr.contains("only-for-tests"), "{command}: tells the password: {stderr}");
        }
    }
}

#[tokio::test]
async fn walls_let_the_role_and_its_members_start() {
    let db = TestDb::new().await;
    let owner = db.owner().await;
    for (command, role) in [("api", Role::Api), ("worker", Role::Worker)] {
        let name = format!("{command}_member");
        // NOINHERIT: what it can do, it can do as the role alone.
        let member = login(&db, &owner, &name, &format!("NOINHERIT IN ROLE {}", role.as_str())).await;
        for (url, login) in [(db.role_url(role), role.as_str()), (member, name.as_str())] {
            // Ready only after it has read migrations._sqlx_migrations, which the member cannot as itself.
            let process = start(command, &url).await;
            let sessions = "SELECT DISTINCT application_name FROM pg_stat_activity
                            WHERE usename = $1 AND datname = current_database()";
            let names: Vec<String> =
                sqlx::query_scalar(sessions).bind(login).fetch_all(&owner).await.expect("sessions");
            assert_eq!(names, [format!("tollgate {}", role.as_str())]);
            assert_eq!(process.terminate().await, 0);
        }
    }
}

#[tokio::test]
async fn walls_are_built_before_anything_starts() {
    // Makes the template, and with it the roles and their passwords; the empty database has the roles alone.
    TestDb::new().await;
    let db = TestDb::empty().await;
    for (command, role) in [("api", Role::Api), ("worker", Role::Worker)] {
        let stderr = refused(command, &db.role_url(role)).await;
        assert!(stderr.contains("run `tollgate migrate`"), "{stderr}");
    }
}

/// How many migrations the command says it applied.
async fn migrate(url: &str) -> u64 {
    let (code, stdout, stderr) = run(&["--json", "migrate"], url).await;
    assert_eq!(code, 0, "{stderr}");
    let said: Value = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{stdout}: {error}"));
    said["applied"].as_u64().unwrap_or_else(|| panic!("{said}"))
}

async fn applied(db: &TestDb) -> u64 {
    let sql = "SELECT count(*) FROM migrations._sqlx_migrations WHERE success";
    let count: i64 = sqlx::query_scalar(sql).fetch_one(&db.owner().await).await.expect("migrations");
    count.unsigned_abs()
}

#[tokio::test]
async fn walls_migrate_once_however_many_try() {
    let db = TestDb::empty().await;
    let url = db.owner_url();
    let (one, two, three) = tokio::join!(migrate(&url), migrate(&url), migrate(&url));
    let mut each = [one, two, three];
    each.sort_unstable();
    let all = applied(&db).await;
    assert!(all > 0);
    assert_eq!(each, [0, 0, all]);
    assert_eq!(migrate(&url).await, 0);
}

#[tokio::test]
async fn walls_migrate_as_app_migrator() {
    let roles = TestDb::new().await;
    let db = TestDb::empty().await;
    let url = db.url_as("app_migrator");
    let (code, _, stderr) = run(&["migrate"], &url).await;
    assert_eq!(code, 1);
    assert!(stderr.contains("grant app_migrator CREATE on the database"), "{stderr}");
    // What a superuser does once for a login that cannot.
    let grant = "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO app_migrator', current_database()); END $$";
    sqlx::raw_sql(grant).execute(&db.owner().await).await.expect("grant");
    assert_eq!(migrate(&url).await, applied(&roles).await);
    assert_eq!(migrate(&url).await, 0);
    assert_eq!(migrate(&db.owner_url()).await, 0);
}

#[tokio::test]
async fn walls_say_why_a_migration_cannot_run() {
    let db = TestDb::new().await;
    let nowhere = "postgres://app_migrator:only-for-tests@127.0.0.1:1/tollgate";
    for (url, advice) in [
        (nowhere.to_owned(), "Check DATABASE_URL and that the server runs"),
        (db.role_url(Role::Api), "Run `tollgate migrate` as a superuser once"),
    ] {
        let (code, stdout, stderr) = run(&["migrate"], &url).await;
        assert_eq!((code, stdout.as_str()), (1, ""), "{url}: {stderr}");
        assert!(stderr.contains(advice), "{url}: {stderr}");
        assert!(!stderr.contains("only-for-tests"), "tells the password: {stderr}");
    }
}

#[tokio::test]
async fn walls_migrate_waits_for_no_table_for_ever() {
    let db = TestDb::new().await;
    let owner = db.owner().await;
    let mut holder = owner.begin().await.expect("transaction");
    let lock = "LOCK TABLE migrations._sqlx_migrations IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(lock).execute(&mut *holder).await.expect("lock");
    let (code, _, stderr) = run(&["migrate"], &db.owner_url()).await;
    assert_eq!(code, 1);
    assert!(stderr.contains("lock timeout"), "{stderr}");
    holder.rollback().await.expect("rollback");
    assert_eq!(migrate(&db.owner_url()).await, 0);
}
