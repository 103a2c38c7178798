//! One private PostgreSQL for the whole test process, and a database of its own for each test, copied from a
//! migrated template.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use tollgate_devdb::Server;
use tollgate_domain::Role;
use tollgate_model::account::AccountId;

const TEMPLATE: &str = "template_tollgate";
const PASSWORD: &str = "only-for-tests";

static CLUSTER: Mutex<Option<Server>> = Mutex::new(None);
static TEMPLATE_MADE: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
static NEXT: AtomicU32 = AtomicU32::new(1);

/// Asks the cluster something; the first who asks starts it.
pub fn with_cluster<T>(ask: impl FnOnce(&Server) -> T) -> T {
    let mut cluster = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    let server = cluster.get_or_insert_with(|| {
        let settings = vec![("max_connections".to_owned(), "400".to_owned())];
        let server = Server::start_scratch(settings).unwrap_or_else(|error| panic!("{error}"));
        stop_at_exit();
        server
    });
    ask(server)
}

/// A static is never dropped, so the cluster is stopped, and its directory removed, when the process exits. If the
/// process is killed instead, PostgreSQL dies with it.
fn stop_at_exit() {
    extern "C" fn stop() {
        drop(CLUSTER.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
    #[expect(unsafe_code, reason = "there is no safe way to run something when the test harness exits")]
    // SAFETY: `stop` is a plain function that takes nothing and touches only a static.
    unsafe {
        libc::atexit(stop);
    }
}

/// A migrated database of one test.
#[derive(Debug)]
pub struct TestDb {
    name: String,
    /// A cluster of its own, if the test is to do to it what no other test could bear.
    own: Option<OwnCluster>,
}

/// A cluster that can be away for a while.
#[derive(Debug)]
struct OwnCluster {
    server: Arc<Server>,
    /// The owner's URL, up to the database's name: a server that is down is not asked for it.
    base: String,
}

impl TestDb {
    /// A copy of the migrated template.
    pub async fn new() -> Self {
        TEMPLATE_MADE.get_or_init(make_template).await;
        Self::create(&format!("TEMPLATE {TEMPLATE}")).await
    }

    /// An empty database, not migrated.
    pub async fn empty() -> Self {
        Self::create("TEMPLATE template0").await
    }

    async fn create(with: &str) -> Self {
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        run("postgres", &format!("CREATE DATABASE {name} {with}")).await;
        Self { name, own: None }
    }

    /// A migrated database on a cluster of its own, which the test may crash, stop and start.
    pub async fn alone() -> Self {
        let start = || Server::start_scratch(vec![("max_connections".to_owned(), "400".to_owned())]);
        let server = blocking(start).await;
        let base = server.url("");
        let database =
            Self { name: "postgres".to_owned(), own: Some(OwnCluster { server: Arc::new(server), base }) };
        migrate(&database.owner_url()).await;
        database
    }

    /// Crashes the test's own cluster and starts it again (`pg_ctl restart -m immediate`).
    pub async fn restart_immediate(&self) {
        let server = self.own_server();
        blocking(move || server.restart_immediate()).await;
    }

    /// Stops the test's own cluster, as an operator would.
    pub async fn down(&self) {
        let server = self.own_server();
        blocking(move || server.down()).await;
    }

    /// Starts it again.
    pub async fn up(&self) {
        let server = self.own_server();
        blocking(move || server.up()).await;
    }

    /// The process id of its postmaster.
    pub fn postmaster(&self) -> u32 {
        self.own_server().pid()
    }

    fn own_server(&self) -> Arc<Server> {
        let own = self.own.as_ref().unwrap_or_else(|| panic!("the cluster is every test's"));
        own.server.clone()
    }

    /// The cluster owner's URL: a superuser.
    pub fn owner_url(&self) -> String {
        self.own.as_ref().map_or_else(|| url(&self.name), |own| format!("{}{}", own.base, self.name))
    }

    /// The URL of one of Tollgate's own logins.
    pub fn url_as(&self, login: &str) -> String {
        format!("postgres://{login}:{PASSWORD}@127.0.0.1:{}/{}", self.port(), self.name)
    }

    /// The port of its cluster, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.own.as_ref().map_or_else(|| with_cluster(Server::port), |own| own.server.port())
    }

    /// The URL of a role's login.
    pub fn role_url(&self, role: Role) -> String {
        self.url_as(role.as_str())
    }

    /// Opens accounts with these ids and nothing in them.
    pub async fn open_accounts(&self, ids: impl IntoIterator<Item = AccountId>) {
        let ids: Vec<_> = ids.into_iter().map(|id| format!("('{id}'::uuid)")).collect();
        let sql = format!(
            "WITH opened AS (
                 INSERT INTO app.accounts (account_id, name) SELECT id, 'test' FROM (VALUES {}) AS given (id)
                 RETURNING account_id)
             INSERT INTO app.credit_balances (account_id) SELECT account_id FROM opened",
            ids.join(", ")
        );
        run_at(&self.owner_url(), &sql).await;
    }

    /// A small pool at some URL of this database.
    pub async fn pool(&self, url: &str) -> PgPool {
        let options = PgPoolOptions::new().max_connections(4);
        options.connect(url).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// A pool of the owner's, for looking at everything.
    pub async fn owner(&self) -> PgPool {
        self.pool(&self.owner_url()).await
    }
}

async fn run(database: &str, sql: &str) {
    run_at(&url(database), sql).await;
}

async fn run_at(url: &str, sql: &str) {
    let mut conn = PgConnection::connect(url).await.unwrap_or_else(|error| panic!("{error}"));
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut conn)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    conn.close().await.unwrap_or_else(|error| panic!("{error}"));
}

async fn make_template() {
    run("postgres", &format!("CREATE DATABASE {TEMPLATE} TEMPLATE template0")).await;
    migrate(&url(TEMPLATE)).await;
}

async fn migrate(url: &str) {
    tollgate_domain::migrate(url).await.unwrap_or_else(|error| panic!("{error}"));
    for role in ["app_api", "app_worker", "app_operator", "app_migrator"] {
        run_at(url, &format!("ALTER ROLE {role} PASSWORD '{PASSWORD}'")).await;
    }
}

/// The supervisor's calls wait, and a test's runtime may have one thread only.
async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, tollgate_devdb::Error> + Send + 'static,
) -> T {
    let asked = tokio::task::spawn_blocking(ask).await;
    asked.unwrap_or_else(|error| panic!("{error}")).unwrap_or_else(|error| panic!("{error}"))
}

fn url(database: &str) -> String {
    with_cluster(|server| server.url(database))
}
