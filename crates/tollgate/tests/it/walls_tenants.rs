//! No tenant reaches another's rows (SPEC T1, T3, T4): every way to try, on every tenant table, as both roles.
//!
//! The tables, their columns and keys are read off the catalogue, so a table added tomorrow is tried too. Each attempt
//! is made twice: with the grants as they are, and with every grant, so that it is the wall that holds and not only
//! that nobody was let near it.

use std::collections::BTreeSet;
use std::future::poll_fn;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use tollgate_domain::Role;
use tollgate_testkit::TestDb;

/// One account's row in every table: all its UUIDs and texts are `id`, so that foreign keys fit by themselves.
#[derive(Clone, Copy)]
struct Row {
    account: &'static str,
    id: &'static str,
}

const OURS: Row =
    Row { account: "0a000000-0000-7000-8000-0000000000aa", id: "0a000000-0000-7000-8000-000000000001" };
const THEIRS: Row =
    Row { account: "0b000000-0000-7000-8000-0000000000bb", id: "0b000000-0000-7000-8000-000000000001" };
const NEW: Row = Row { id: "0c000000-0000-7000-8000-000000000001", ..OURS };

/// Where a CHECK asks for more than the type.
const VALUES: [(&str, &str); 7] = [
    ("app.credits_ledger.reason", "'confirm'"),
    ("app.credits_ledger.delta", "0"),
    ("app.webhook_deliveries.status", "'pending'"),
    ("queue.tasks.state", "'ready'"),
    ("app.images.media_type", "'image/png'"),
    ("app.images.storage", "'database'"),
    ("app.image_audit.status", "'invalid'"),
];

/// PostgreSQL's codes for what may happen.
const REFUSED: &str = "42501";
const NO_SUCH_PARENT: &str = "23503";
const NO_UUID: &str = "22P02";
const NOT_SUPPORTED: &str = "0A000";

/// Whose rows a statement showed or touched, or the code of its error.
type Outcome = Result<BTreeSet<String>, String>;

#[expect(clippy::unnecessary_wraps, reason = "it is compared with outcomes, which can be errors")]
fn only(accounts: &[&str]) -> Outcome {
    Ok(accounts.iter().map(|account| (*account).to_owned()).collect())
}

fn error(code: &str) -> Outcome {
    Err(code.to_owned())
}

/// A tenant table, as far as rows can be made for it.
#[derive(sqlx::FromRow)]
struct Table {
    name: String,
    /// The columns that a row needs, and those of foreign keys; with their types.
    columns: Vec<String>,
    types: Vec<String>,
    key: Vec<String>,
}

/// The columns of a foreign key, but for account_id.
#[derive(sqlx::FromRow)]
struct Reference {
    name: String,
    columns: Vec<String>,
}

const TABLES: &str = "
SELECT n.nspname || '.' || c.relname AS name,
       array_agg(a.attname::text ORDER BY a.attnum) AS columns,
       array_agg(format_type(a.atttypid, NULL) ORDER BY a.attnum) AS types,
       array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attnum = ANY (i.indkey)) AS key
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname IN ('app', 'queue') AND c.relkind IN ('r', 'p')
  AND EXISTS (SELECT FROM pg_attribute t WHERE t.attrelid = c.oid AND t.attname = 'account_id')
  AND (a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' OR a.attnum = ANY (i.indkey)
       OR EXISTS (SELECT FROM pg_constraint f WHERE f.contype = 'f' AND f.conrelid = c.oid AND attnum = ANY (f.conkey)))
GROUP BY 1 ORDER BY 1";

const REFERENCES: &str = "
SELECT conrelid::regclass::text AS name, array_agg(a.attname::text) AS columns
FROM pg_constraint f JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = ANY (f.conkey)
WHERE f.contype = 'f' AND a.attname <> 'account_id' GROUP BY f.oid, 1";

impl Table {
    /// The role must see one account's rows here. To a worker the queue is open, by design.
    fn walls_in(&self, role: Role) -> bool {
        role == Role::Api || self.name.starts_with("app.")
    }

    fn value(&self, column: &str, kind: &str, row: Row) -> String {
        let path = format!("{}.{column}", self.name);
        if let Some((_, value)) = VALUES.iter().find(|(of, _)| *of == path) {
            return (*value).to_owned();
        }
        match kind {
            "uuid" if column == "account_id" => format!("'{}'", row.account),
            "uuid" | "text" => format!("'{}'", row.id),
            "smallint" | "integer" | "bigint" | "numeric" => "1".to_owned(),
            "boolean" => "true".to_owned(),
            "date" | "timestamp with time zone" => "'2026-01-01'".to_owned(),
            "json" | "jsonb" | "text[]" | "uuid[]" => "'{}'".to_owned(),
            "bytea" => r"'\x00'".to_owned(),
            _ => panic!("no value known for {path} of type {kind}: add it here"),
        }
    }

    /// An INSERT of `row`; the columns in `other` are those of `other.1`.
    fn insert(&self, row: Row, other: (&[String], Row)) -> String {
        let value = |(column, kind): (&String, &String)| {
            self.value(column, kind, if other.0.contains(column) { other.1 } else { row })
        };
        let values: Vec<String> = self.columns.iter().zip(&self.types).map(value).collect();
        format!("INSERT INTO {} ({}) VALUES ({})", self.name, self.columns.join(", "), values.join(", "))
    }

    /// What one tenant may try on another's rows, and what must become of it. `touch`: a column that the role may
    /// UPDATE, if there is one.
    fn attempts(&self, touch: &str, references: &[Reference]) -> Vec<(String, Outcome)> {
        let (table, ours, theirs) = (&self.name, OURS.account, THEIRS.account);
        let (insert_theirs, insert_ours) = (self.insert(THEIRS, (&[], OURS)), self.insert(OURS, (&[], OURS)));
        let (set, key) = (format!("SET {touch} = {table}.{touch}"), self.key.join(", "));
        let view = table.replace('.', "_");
        let select = format!("SELECT account_id::text FROM {table}");
        let merge = format!("MERGE INTO {table} USING (SELECT 1) one ON account_id = '{theirs}'");
        let returning = "RETURNING account_id::text";
        let mut attempts = vec![
            (select.clone(), only(&[ours])),
            (format!("{select} WHERE account_id = '{theirs}'"), only(&[])),
            // Whatever the planner puts first, a condition sees no foreign row: neither by dividing by zero ...
            (
                format!("{select} WHERE 1 / (CASE account_id WHEN '{ours}' THEN 1 ELSE 0 END) = 1"),
                only(&[ours]),
            ),
            // ... nor in a function that costs nothing and tells on what it sees.
            (format!("{select} WHERE probe.tell(account_id)"), only(&[ours])),
            (format!("SELECT account_id::text FROM probe.{view}"), only(&[ours])),
            (format!("{select} FOR UPDATE"), only(&[ours])),
            (format!("SET LOCAL row_security = off; {select}"), error(REFUSED)),
            (format!("{insert_theirs} {returning}"), error(REFUSED)),
            (format!("{insert_theirs} ON CONFLICT DO NOTHING"), error(REFUSED)),
            (format!("{insert_theirs} ON CONFLICT ({key}) DO UPDATE {set} {returning}"), error(REFUSED)),
            (
                format!("{insert_ours} ON CONFLICT ({key}) DO UPDATE SET account_id = '{theirs}'"),
                error(REFUSED),
            ),
            (format!("UPDATE {table} {set} {returning}"), only(&[ours])),
            (format!("UPDATE {table} {set} WHERE account_id = '{theirs}' {returning}"), only(&[])),
            (format!("UPDATE {table} SET account_id = '{theirs}'"), error(REFUSED)),
            (format!("DELETE FROM {table} WHERE account_id = '{theirs}' {returning}"), only(&[])),
            (format!("{merge} WHEN MATCHED THEN DELETE"), only(&[])),
            (format!("TRUNCATE {table}"), error(REFUSED)),
            // A statement that reads no column is not held by the wall around SELECT. The DELETE is of an account that
            // has no rows, since ours must stay.
            (format!("UPDATE {table} SET account_id = '{ours}'"), only(&[])),
            (format!("SET LOCAL app.account_id = '{}'; DELETE FROM {table}", NEW.id), only(&[])),
        ];
        for reference in references.iter().filter(|reference| reference.name == *table) {
            let columns = &reference.columns;
            let set: Vec<String> = columns.iter().map(|name| format!("{name} = '{}'", THEIRS.id)).collect();
            attempts.push((self.insert(NEW, (columns, THEIRS)), error(NO_SUCH_PARENT)));
            attempts.push((format!("UPDATE {table} SET {}", set.join(", ")), error(NO_SUCH_PARENT)));
        }
        attempts
    }

    /// What may be tried with no account at all.
    fn attempts_of_nobody(&self, touch: &str, error: &Outcome) -> Vec<(String, Outcome)> {
        let (table, insert) = (&self.name, self.insert(OURS, (&[], OURS)));
        vec![
            (format!("SELECT account_id::text FROM {table}"), error.clone()),
            (format!("UPDATE {table} SET {touch} = {touch} RETURNING account_id::text"), error.clone()),
            (format!("DELETE FROM {table} RETURNING account_id::text"), error.clone()),
            (format!("DELETE FROM {table}"), error.clone()),
            (insert, if error.is_ok() { Err(REFUSED.to_owned()) } else { error.clone() }),
        ]
    }
}

/// A database with one row of each account in every tenant table.
struct World {
    db: TestDb,
    owner: PgPool,
    tables: Vec<Table>,
    references: Vec<Reference>,
}

impl World {
    /// `more`: what is in the schema beside the migrations.
    async fn new(more: &str) -> Self {
        let db = TestDb::new().await;
        let owner = db.owner().await;
        run(&owner, more).await;
        let tables: Vec<Table> = sqlx::query_as(TABLES).fetch_all(&owner).await.expect("tables");
        let references = sqlx::query_as(REFERENCES).fetch_all(&owner).await.expect("references");
        assert!(tables.len() >= 16, "only {} tenant tables were found", tables.len());
        // As a replica, so that the order of the tables does not matter to their foreign keys.
        let mut sql = String::from("SET session_replication_role = replica;\n");
        for table in &tables {
            sql += &format!("{};\n{};\n", table.insert(OURS, (&[], OURS)), table.insert(THEIRS, (&[], OURS)));
        }
        sql += "SET session_replication_role = origin; CREATE SCHEMA probe;\n";
        sql += &format!(
            "CREATE FUNCTION probe.tell(account uuid) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN
                 IF account <> '{}' THEN RAISE EXCEPTION 'saw %', account; END IF; RETURN true; END $$;\n",
            OURS.account
        );
        for table in tables.iter().map(|table| &table.name) {
            let view = table.replace('.', "_");
            sql += &format!("CREATE VIEW probe.{view} WITH (security_invoker) AS TABLE {table};\n");
        }
        sql += "GRANT USAGE ON SCHEMA probe TO PUBLIC; GRANT SELECT ON ALL TABLES IN SCHEMA probe TO PUBLIC";
        run(&owner, &sql).await;
        Self { db, owner, tables, references }
    }

    async fn grant_everything(&self) {
        let grant = "GRANT USAGE ON SCHEMA app, queue TO app_api, app_worker;
            GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA app, queue TO app_api, app_worker";
        run(&self.owner, grant).await;
    }

    /// The other tenant's rows as they lie on disk: an update to the same values would show, too.
    async fn theirs(&self, Table { name, .. }: &Table) -> Vec<String> {
        let sql = format!("SELECT concat(ctid, xmin, t) FROM {name} t WHERE account_id::text = $1");
        let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(THEIRS.account);
        query.fetch_all(&self.owner).await.expect("their rows")
    }

    /// A column of the table that the role may UPDATE; without one, any.
    async fn touchable(&self, table: &Table, role: Role) -> String {
        let sql = "SELECT attname::text FROM pg_attribute
                   WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
                   ORDER BY has_column_privilege($2, attrelid, attnum, 'UPDATE') DESC, attnum DESC LIMIT 1";
        let query = sqlx::query_scalar(sql).bind(&table.name).bind(role.as_str());
        query.fetch_one(&self.owner).await.expect("column")
    }

    /// Makes attempts on every table that walls the role in, in transactions that begin with `begin`. Returns what
    /// went otherwise than it must, and what changed the other tenant's rows.
    async fn try_all(&self, login: &mut Login, begin: &str, list: List<'_>) -> Vec<String> {
        let mut holes = Vec::new();
        for table in self.tables.iter().filter(|table| table.walls_in(login.role)) {
            let touch = self.touchable(table, login.role).await;
            let before = self.theirs(table).await;
            for (sql, expected) in list(table, &touch, &self.references) {
                let outcome = attempt(&mut login.conn, begin, &sql).await;
                let not_granted = !login.granted && outcome == error(REFUSED);
                let changed = self.theirs(table).await != before;
                if changed || outcome != expected && !not_granted {
                    let what = format!("{outcome:?}, not {expected:?}; changed their rows: {changed}");
                    holes.push(format!("{}: {:?}: {begin}; {sql}: {what}", table.name, login.role));
                }
            }
        }
        holes
    }

    /// Everything that can be tried. Returns the holes in the walls.
    async fn holes(&self) -> Vec<String> {
        let nobody: List = &|table, touch, _| table.attempts_of_nobody(touch, &only(&[]));
        let malformed: List = &|table, touch, _| table.attempts_of_nobody(touch, &error(NO_UUID));
        let mut holes = Vec::new();
        for granted in [false, true] {
            if granted {
                self.grant_everything().await;
            }
            for role in ROLES {
                let conn = PgConnection::connect(&self.db.role_url(role)).await.expect("login");
                let mut login = Login { conn, role, granted };
                // A fresh session: the account has never been set.
                holes.extend(self.try_all(&mut login, "", nobody).await);
                let ours = format!("SET LOCAL app.account_id = '{}'", OURS.account);
                holes.extend(self.try_all(&mut login, &ours, &Table::attempts).await);
                // Once set, it is '' between transactions, not unset.
                holes.extend(self.try_all(&mut login, "", nobody).await);
                holes.extend(self.try_all(&mut login, "SET LOCAL app.account_id = 'all'", malformed).await);
            }
        }
        holes
    }
}

const ROLES: [Role; 2] = [Role::Api, Role::Worker];

/// A session of a run-time role.
struct Login {
    conn: PgConnection,
    role: Role,
    /// Whether the role has been granted everything.
    granted: bool,
}

/// What is tried on a table.
type List<'a> = &'a dyn Fn(&Table, &str, &[Reference]) -> Vec<(String, Outcome)>;

async fn run<'c>(conn: impl sqlx::Executor<'c, Database = sqlx::Postgres>, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn outcome<T>(result: sqlx::Result<T>) -> Result<T, String> {
    result.map_err(|error| match error.as_database_error().and_then(sqlx::error::DatabaseError::code) {
        Some(code) => code.into_owned(),
        None => error.to_string(),
    })
}

/// Runs one statement in a transaction that begins with `begin`, and commits it.
async fn attempt(conn: &mut PgConnection, begin: &str, sql: &str) -> Outcome {
    let script = format!("BEGIN; {begin}; {sql}");
    let rows = outcome(sqlx::raw_sql(AssertSqlSafe(script)).fetch_all(&mut *conn).await);
    let end = outcome(sqlx::raw_sql("COMMIT").execute(conn).await);
    let accounts = rows?.iter().map(|row| sqlx::Row::get(row, 0)).collect();
    end.map(|_| accounts)
}

#[tokio::test]
async fn walls_keep_tenants_apart() {
    assert_eq!(World::new("").await.holes().await, Vec::<String>::new());
}

/// The attempts above are worth something only if they find each hole that is there.
#[tokio::test]
async fn walls_with_holes_are_found_out() {
    let holes = [
        ("app.users", "ALTER TABLE app.users DISABLE ROW LEVEL SECURITY"),
        ("app.job_results", "ALTER POLICY tenant ON app.job_results USING (true)"),
        ("app.credits_ledger", "ALTER POLICY tenant ON app.credits_ledger WITH CHECK (true)"),
        ("app.credit_balances", "CREATE POLICY too_much ON app.credit_balances FOR UPDATE USING (true)"),
        ("app.stripe_events", "CREATE POLICY too_much ON app.stripe_events FOR DELETE USING (true)"),
        ("app.job_events", "ALTER TABLE app.job_events DROP CONSTRAINT job_events_account_id_job_id_fkey"),
        ("app.webhook_deliveries", "ALTER VIEW probe.app_webhook_deliveries SET (security_invoker = off)"),
        ("app.stripe_customers", "GRANT TRUNCATE ON app.stripe_customers TO app_api"),
        // Nothing but a table that somebody forgot to wall.
        ("app.extra", "SELECT"),
        // Everything to nobody; and an error to nobody, but only once the session has had an account.
        (
            "app.idempotency_keys",
            "CREATE POLICY too_much ON app.idempotency_keys USING (current_setting('app.account_id', true) IS NULL)",
        ),
        (
            "app.usage_rollups_daily",
            "ALTER POLICY tenant ON app.usage_rollups_daily
                 USING (account_id = current_setting('app.account_id', true)::uuid)",
        ),
    ];
    let world =
        World::new("CREATE TABLE app.extra (account_id uuid, id uuid, PRIMARY KEY (account_id, id))").await;
    for (_, hole) in holes {
        run(&world.owner, hole).await;
    }
    let found = world.holes().await;
    let found: BTreeSet<&str> = found.iter().filter_map(|hole| hole.split(':').next()).collect();
    assert_eq!(found, holes.iter().map(|(table, _)| *table).collect());
}

#[tokio::test]
async fn walls_of_the_queue_are_open_to_workers_alone() {
    let world = World::new("").await;
    let mut worker = PgConnection::connect(&world.db.role_url(Role::Worker)).await.expect("login");
    for table in world.tables.iter().filter(|table| !table.walls_in(Role::Worker)) {
        let sql = format!("SELECT account_id::text FROM {}", table.name);
        assert_eq!(attempt(&mut worker, "", &sql).await, only(&[OURS.account, THEIRS.account]), "{sql}");
    }
}

async fn copy_out(conn: &mut PgConnection, sql: &str) -> Result<String, String> {
    let mut stream = outcome(conn.copy_out_raw(sql).await)?;
    let mut text = String::new();
    while let Some(chunk) = poll_fn(|context| stream.as_mut().poll_next(context)).await {
        text.push_str(&String::from_utf8_lossy(&outcome(chunk)?));
    }
    Ok(text)
}

#[tokio::test]
async fn walls_hold_for_copy() {
    let world = World::new("").await;
    world.grant_everything().await;
    for role in ROLES {
        let mut conn = PgConnection::connect(&world.db.role_url(role)).await.expect("login");
        run(&mut conn, &format!("SET app.account_id = '{}'", OURS.account)).await;
        for Table { name, columns, .. } in world.tables.iter().filter(|table| table.walls_in(role)) {
            for sql in [format!("COPY {name} TO STDOUT"), format!("COPY (SELECT * FROM {name}) TO STDOUT")] {
                let text = copy_out(&mut conn, &sql).await.unwrap_or_else(|code| panic!("{sql}: {code}"));
                assert!(text.contains(OURS.account), "{sql}: {text}");
                assert!(!text.contains(THEIRS.account), "{sql}: {text}");
            }
            // PostgreSQL copies into no table behind row-level security.
            let sql = format!("COPY {name} ({}) FROM STDIN", columns.join(", "));
            let started = outcome(conn.copy_in_raw(&sql).await.map(|_| ()));
            assert_eq!(started, Err(NOT_SUPPORTED.to_owned()), "{sql}");
        }
    }
}
