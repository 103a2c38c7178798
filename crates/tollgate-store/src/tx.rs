//! The two kinds of transaction. A function's argument says which wall it stands behind.

use chrono::{DateTime, Utc};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Transaction};
use tollgate_model::account::AccountId;

use crate::Result;

/// A transaction in one account's name: row-level security shows it that account's rows and no others.
#[derive(Debug)]
pub struct TenantTx {
    tx: Transaction<'static, Postgres>,
    account: AccountId,
}

impl TenantTx {
    /// Begins, and sets the account in the same round trip. `SET LOCAL` ends with the transaction, so that the
    /// next user of the pooled connection cannot inherit it.
    pub async fn begin(pool: &PgPool, account: AccountId) -> Result<Self> {
        let tx = pool.begin_with(AssertSqlSafe(format!("BEGIN; {}", set_account(account)))).await?;
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
        &mut self.tx
    }
}

/// A transaction on the queue, across accounts. Of the tenants' own tables it sees nothing until it
/// [enters](Self::enter) an account.
#[derive(Debug)]
pub struct SystemTx {
    tx: Transaction<'static, Postgres>,
}

impl SystemTx {
    /// Begins.
    pub async fn begin(pool: &PgPool) -> Result<Self> {
        Ok(Self { tx: pool.begin().await? })
    }

    /// Goes on in one account's name.
    pub async fn enter(mut self, account: AccountId) -> Result<TenantTx> {
        sqlx::raw_sql(AssertSqlSafe(set_account(account))).execute(&mut *self.tx).await?;
        Ok(TenantTx { tx: self.tx, account })
    }

    /// Makes it last.
    pub async fn commit(self) -> Result<()> {
        self.tx.commit().await
    }

    pub(crate) fn conn(&mut self) -> &mut PgConnection {
        &mut self.tx
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
