//! The two kinds of transaction. A function's argument says which wall it stands behind.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres};
use tollgate_model::account::AccountId;

use crate::connect::{drop_broken, probe};
use crate::{Error, Result};

/// A transaction in one account's name: row-level security shows it that account's rows and no others.
#[derive(Debug)]
pub struct TenantTx {
    tx: Open,
    account: AccountId,
}

impl TenantTx {
    /// Begins, and sets the account in the same round trip. `SET LOCAL` ends with the transaction, so that the
    /// next user of the pooled connection cannot inherit it.
    pub async fn begin(pool: &PgPool, account: AccountId) -> Result<Self> {
        let tx = Open::begin(pool, format!("BEGIN; {}", set_account(account))).await?;
        Ok(Self { tx, account })
    }

    /// Whose rows it sees.
    pub fn account(&self) -> AccountId {
        self.account
    }

    /// The same transaction, in another account's name from here on.
    pub async fn enter(self, account: AccountId) -> Result<Self> {
        SystemTx { tx: self.tx }.enter(account).await
    }

    /// Makes it last.
    pub async fn commit(self) -> Result<()> {
        self.tx.commit().await
    }

    pub(crate) fn conn(&mut self) -> &mut PgConnection {
        self.tx.conn()
    }
}

/// A transaction on the queue, across accounts. Of the tenants' own tables it sees nothing until it
/// [enters](Self::enter) an account.
#[derive(Debug)]
pub struct SystemTx {
    tx: Open,
}

impl SystemTx {
    /// Begins.
    pub async fn begin(pool: &PgPool) -> Result<Self> {
        Ok(Self { tx: Open::begin(pool, "BEGIN".to_owned()).await? })
    }

    /// Goes on in one account's name.
    pub async fn enter(mut self, account: AccountId) -> Result<TenantTx> {
        sqlx::raw_sql(AssertSqlSafe(set_account(account))).execute(self.tx.conn()).await?;
        Ok(TenantTx { tx: self.tx, account })
    }

    /// Makes it last.
    pub async fn commit(self) -> Result<()> {
        self.tx.commit().await
    }

    pub(crate) fn conn(&mut self) -> &mut PgConnection {
        self.tx.conn()
    }
}

/// For a server to be found there again.
const IS_THERE: Duration = Duration::from_secs(1);

/// How long a transaction that nobody wants any more may take to end.
const ROLLBACK: Duration = Duration::from_secs(5);

/// A transaction from before its first byte is sent: whoever drops it, at whatever moment, leaves none open behind.
///
/// `sqlx::Transaction` knows of a transaction once BEGIN was answered. A request whose client leaves before that, or a
/// BEGIN that is refused in its second half, returned a connection to the pool with a transaction open and an account
/// set: what its next user wrote without a transaction of his own was reported as done, and never committed.
#[derive(Debug)]
struct Open(Option<PoolConnection<Postgres>>);

impl Open {
    /// A connection whose server has gone since it was last used is found out here, where nothing is done yet: if it is there
    /// again, it begins on another one.
    async fn begin(pool: &PgPool, sql: String) -> Result<Self> {
        let mut open = Self(Some(pool.acquire().await?));
        let Err(error) = open.execute(sql.clone()).await else { return Ok(open) };
        let is_there = async {
            drop_broken(pool).await;
            probe(pool).await.is_ok()
        };
        // Asked once: who asks a pool for a connection keeps dialling, and in an outage all would.
        if is_lost(&error) && tokio::time::timeout(IS_THERE, is_there).await == Ok(true) {
            open = Self(Some(pool.acquire().await?));
            open.execute(sql).await?;
            return Ok(open);
        }
        Err(error)
    }

    async fn execute(&mut self, sql: String) -> Result<()> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(self.conn()).await?;
        Ok(())
    }

    async fn commit(mut self) -> Result<()> {
        sqlx::raw_sql("COMMIT").execute(self.conn()).await?;
        self.0 = None;
        Ok(())
    }

    fn conn(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("only the end takes it away")
    }
}

/// Whether the connection is gone, with or without a last word of the server's.
fn is_lost(error: &Error) -> bool {
    match error {
        Error::Io(_) => true,
        Error::Database(error) => error.code().is_some_and(|code| ["57P01", "57P02"].contains(&&*code)),
        _ => false,
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(mut conn) = self.0.take() else { return };
        let roll_back = async move {
            let done = tokio::time::timeout(ROLLBACK, sqlx::raw_sql("ROLLBACK").execute(&mut *conn)).await;
            if !matches!(done, Ok(Ok(_))) {
                conn.close_on_drop();
            }
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "a drop cannot wait; it ends in seconds, and holds only what nobody wants"
        )]
        tokio::spawn(roll_back);
    }
}

/// A connection on which every statement is its own transaction.
#[derive(Debug)]
pub struct Alone {
    conn: PoolConnection<Postgres>,
}

impl Alone {
    /// Takes a connection.
    pub async fn acquire(pool: &PgPool) -> Result<Self> {
        Ok(Self { conn: pool.acquire().await? })
    }
}

impl Tx for Alone {
    fn connection(&mut self) -> &mut PgConnection {
        &mut self.conn
    }
}

/// What all kinds can do: the queue's statements name their account themselves.
pub trait Tx: Send {
    /// The connection that the transaction runs on.
    #[doc(hidden)]
    fn connection(&mut self) -> &mut PgConnection;

    /// The database's clock: the one that decides leases and schedules.
    fn now(&mut self) -> impl Future<Output = Result<DateTime<Utc>>> + Send {
        async move {
            sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(self.connection()).await
        }
    }
}

impl Tx for TenantTx {
    fn connection(&mut self) -> &mut PgConnection {
        self.conn()
    }
}

impl Tx for SystemTx {
    fn connection(&mut self) -> &mut PgConnection {
        self.conn()
    }
}

/// A setting takes no bind parameter; an [`AccountId`] is a UUID and can hold nothing else.
fn set_account(account: AccountId) -> String {
    format!("SET LOCAL app.account_id = '{account}'")
}
