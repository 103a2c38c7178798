//! Pools, and the roles they connect as (SPEC T2).

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgPool};

/// The database roles of the running system; none owns a table, none bypasses row-level security.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `app_api`: the HTTP API.
    Api,
    /// `app_worker`: the workers.
    Worker,
    /// `app_operator`: the operator's commands (accounts, keys).
    Operator,
}

impl Role {
    /// The role's name in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "app_api",
            Self::Worker => "app_worker",
            Self::Operator => "app_operator",
        }
    }
}

/// Why a pool could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL is not one of PostgreSQL's.
    #[error("DATABASE_URL is not a PostgreSQL URL (postgres://user:password@host:port/database): {0}")]
    Url(#[source] sqlx::Error),
    /// No connection, or not as this role.
    #[error(
        "cannot connect to PostgreSQL as {role}: {source}. Check DATABASE_URL, that the server runs, and that \
         `tollgate migrate` has created the roles (`tollgate doctor` says more)"
    )]
    Connect {
        /// The role that was asked for.
        role: &'static str,
        /// What PostgreSQL or the network said.
        #[source]
        source: sqlx::Error,
    },
    /// The login could do more than the role it plays.
    #[error(
        "refusing to start: the login `{login}` {problem}, so row-level security would not hold. Log in as `{role}`, or \
         as a login that is only a member of it"
    )]
    TooPowerful {
        /// The login role of DATABASE_URL.
        login: String,
        /// What it can do.
        problem: &'static str,
        /// The role it should be.
        role: &'static str,
    },
}

/// What holds in every session.
///
/// A process that is frozen or cut off in mid-transaction holds row locks: it must lose them while the others can still
/// wait, and they must not wait for ever.
///
/// Every statement is a walk along an index, planned once for all arguments. The planner is told so: what it knows of a
/// queue's tables is of a moment at which they may have been empty, and a plan of that moment scans them when they are
/// full (measured: a claim of 0.6 ms became 150 ms). Of an empty table, all indexes cost the same; so where there is a
/// choice, `ORDER BY` names the index, and sorting is ruled out. A test holds each plan at 0, 10^3 and 10^6 rows.
const SESSION: [(&str, &str); 16] = [
    ("idle_in_transaction_session_timeout", "10s"),
    ("lock_timeout", "5s"),
    ("statement_timeout", "30s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_user_timeout", "20000"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_material", "off"),
    ("enable_sort", "off"),
    ("enable_incremental_sort", "off"),
    ("jit", "off"),
    // To start a second process takes longer than any walk along an index (measured: a page of jobs, 0.5 ms, became 74).
    ("max_parallel_workers_per_gather", "0"),
];

/// A connection that was idle for less is used unasked.
const TRUSTED: Duration = Duration::from_secs(1);

fn options(url: &str, role: Role) -> Result<PgConnectOptions, ConnectError> {
    let options: PgConnectOptions = url.parse().map_err(ConnectError::Url)?;
    Ok(options
        // The role is a start-up option: set before the first statement, and again after each reset of the session.
        .options([("role", role.as_str())])
        .options(SESSION)
        .application_name(&format!("tollgate {}", role.as_str()))
        .log_statements(log::LevelFilter::Trace)
        .log_slow_statements(log::LevelFilter::Warn, Duration::from_secs(1)))
}

/// A pool whose connections act as `role`. Outside dev mode (`strict`), the login must not be able to do more.
pub async fn connect(url: &str, role: Role, max: u32, strict: bool) -> Result<PgPool, ConnectError> {
    let options = options(url, role)?;
    let pool = PgPoolOptions::new()
        .max_connections(max)
        .acquire_timeout(Duration::from_secs(5))
        // A ping before each use costs up to a quarter of the rate. One that was idle for a while may have lost its server
        // meanwhile, and a pool with such connections is not a busy one.
        .test_before_acquire(false)
        // A pool that is waited for is waited for by hundreds; a request that waits too long is refused, and counted.
        .acquire_slow_level(log::LevelFilter::Debug)
        .before_acquire(|conn, meta| {
            Box::pin(async move { Ok(meta.idle_for < TRUSTED || conn.ping().await.is_ok()) })
        })
        .connect_with(options.clone())
        .await;
    let pool = match pool {
        // The pool keeps trying while it is refused, and in the end says only that time is up.
        Err(sqlx::Error::PoolTimedOut) => Err(why_not(&options).await),
        other => other,
    };
    let pool = pool.map_err(|source| ConnectError::Connect { role: role.as_str(), source })?;
    if strict {
        refuse_power(&pool, role).await?;
    }
    Ok(pool)
}

/// What a connection is refused with.
async fn why_not(options: &PgConnectOptions) -> sqlx::Error {
    let refused = tokio::time::timeout(Duration::from_secs(2), options.connect()).await;
    refused.ok().and_then(Result::err).unwrap_or(sqlx::Error::PoolTimedOut)
}

/// Whether a server is there: connects past the pool. What a server refuses (no room, no such login) it refuses as one that
/// is there, unless it is starting or going down.
pub async fn probe(pool: &PgPool) -> crate::Result<()> {
    match pool.connect_options().connect().await {
        Ok(conn) => conn.close().await,
        Err(sqlx::Error::Database(error))
            if !error.code().is_some_and(|code| ["57P01", "57P02", "57P03"].contains(&&*code)) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// For an idle connection to answer: a round trip.
const PING: Duration = Duration::from_millis(500);

/// Closes those of the pool's idle connections that do not answer soon, so that no request meets them. Those that do are the
/// pool's again at once.
pub async fn drop_broken(pool: &PgPool) {
    let mut idle = Vec::new();
    while let Some(conn) = pool.try_acquire() {
        idle.push(conn);
    }
    while let Some(mut conn) = idle.pop() {
        if !matches!(tokio::time::timeout(PING, conn.ping()).await, Ok(Ok(()))) {
            conn.close_on_drop();
        }
    }
}

async fn refuse_power(pool: &PgPool, role: Role) -> Result<(), ConnectError> {
    let login = sqlx::query!(
        r#"SELECT r.rolname::text AS "name!",
                  EXISTS (SELECT FROM pg_roles p WHERE p.rolsuper AND pg_has_role(r.oid, p.oid, 'MEMBER')) AS "superuser!",
                  EXISTS (SELECT FROM pg_roles p WHERE p.rolbypassrls AND pg_has_role(r.oid, p.oid, 'MEMBER'))
                      AS "bypasses!",
                  EXISTS (SELECT FROM pg_roles p WHERE p.rolcreaterole AND pg_has_role(r.oid, p.oid, 'MEMBER'))
                      AS "creates_roles!",
                  EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                          WHERE n.nspname IN ('app', 'billing', 'guard', 'queue') AND pg_has_role(r.oid, c.relowner, 'MEMBER')) AS "owner!"
           FROM pg_roles r WHERE r.rolname = session_user"#
    )
    .fetch_one(pool)
    .await
    .map_err(|source| ConnectError::Connect { role: role.as_str(), source })?;
    let problem = if login.superuser {
        "is a superuser, or can become one"
    } else if login.bypasses {
        "bypasses row-level security"
    } else if login.creates_roles {
        "may create roles, and so become any"
    } else if login.owner {
        "owns Tollgate's tables"
    } else {
        return Ok(());
    };
    Err(ConnectError::TooPowerful { login: login.name, problem, role: role.as_str() })
}
