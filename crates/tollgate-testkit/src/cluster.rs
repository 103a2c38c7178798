//! One private PostgreSQL for the whole test process, and a database of its own for each test, copied from a
//! migrated template.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use tollgate_devdb::Server;
use tollgate_domain::Role;

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
        Self { name }
    }

    /// The cluster owner's URL: a superuser.
    pub fn owner_url(&self) -> String {
        url(&self.name)
    }

    /// The URL of one of Tollgate's own logins.
    pub fn url_as(&self, login: &str) -> String {
        format!("postgres://{login}:{PASSWORD}@127.0.0.1:{}/{}", with_cluster(Server::port), self.name)
    }

    /// The URL of a role's login.
    pub fn role_url(&self, role: Role) -> String {
        self.url_as(role.as_str())
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
    let mut conn = PgConnection::connect(&url(database)).await.unwrap_or_else(|error| panic!("{error}"));
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut conn)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    conn.close().await.unwrap_or_else(|error| panic!("{error}"));
}

async fn make_template() {
    run("postgres", &format!("CREATE DATABASE {TEMPLATE} TEMPLATE template0")).await;
    tollgate_domain::migrate(&url(TEMPLATE)).await.unwrap_or_else(|error| panic!("{error}"));
    for role in ["app_api", "app_worker", "app_operator", "app_migrator"] {
        run("postgres", &format!("ALTER ROLE {role} PASSWORD '{PASSWORD}'")).await;
    }
}

fn url(database: &str) -> String {
    with_cluster(|server| server.url(database))
}
