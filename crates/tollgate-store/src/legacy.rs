//! `art_sessions`, the table in which the source system kept its images (SPEC I3): no row of it may lack its `image_url`.
//!
//! This is no numbered migration. Those are applied once, and the table may come later than they do, with a dump that
//! somebody restores. So it is looked for at each `tollgate migrate`, after the migrations, in the schemas `public` and
//! `app`; where it is not, or has been mended, nothing is locked and nothing is done.
//!
//! The order is the safe one, and the table stays in use meanwhile:
//!
//! 1. the column is added, nullable, where it is missing;
//! 2. row by row, some pages a transaction: what is known of an image elsewhere in its row becomes its URL; a row that
//!    shows nothing goes to `app.image_audit` whole, and out of the table;
//! 3. `NOT VALID` constraints: from here on no such row gets in (a moment's lock, no scan);
//! 4. step 2 again, for what got in before that;
//! 5. the constraints are validated (a scan, under a lock that lets others read and write), and `NOT NULL` follows from
//!    them without another scan.
//!
//! Broken off anywhere, it is run again and goes on. Each step is its own transaction; the rows of step 2 are moved and
//! recorded in one statement.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, FromRow};

/// Where it may be. Both are looked at, and mended, alike.
const TABLES: [&str; 2] = ["public.art_sessions", "app.art_sessions"];

/// Pages of 8 KiB that one transaction goes over.
const PAGES: i64 = 512;

/// A row that shows nothing.
const BAD: &str = "(image_url IS NULL OR btrim(image_url) = '')";

/// What was done to one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// The table.
    pub table: &'static str,
    /// Rows whose image was known elsewhere.
    pub repaired: u64,
    /// Rows that went to `app.image_audit`.
    pub invalid: u64,
}

/// Why a table was left as it is. What had been done until then stays, and is right.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    /// Only its owner may add constraints.
    #[error(
        "{0} is another role's, so its images cannot be mended. Run `tollgate migrate` once as a superuser, or `ALTER TABLE \
         {0} OWNER TO app_migrator`"
    )]
    NotOurs(&'static str),
    /// Rows of other tables hang on rows that would have to go.
    #[error(
        "{table} has rows without an image, and {by} refers to it and would lose rows with them. Drop that foreign key, or \
         remove the rows, and run `tollgate migrate` again"
    )]
    Referenced {
        /// The table.
        table: &'static str,
        /// Who refers to it.
        by: String,
    },
    /// Something else the database said.
    #[error("the images of the source system could not be mended; run `tollgate migrate` again: {0}")]
    Database(#[from] sqlx::Error),
}

/// What the catalogue says of a table.
#[derive(FromRow)]
struct Found {
    ours: bool,
    /// It has the columns that make it the source's, and the constraints do not hold yet.
    due: bool,
    /// The column is there.
    has_column: bool,
    /// How long a URL may be; `None`: as long as it likes.
    longest: Option<i32>,
    /// What else there is to know an image by.
    candidates: Vec<String>,
}

const LOOK: &str = "
    SELECT pg_get_userbyid(c.relowner) = 'app_migrator' AS ours,
           (SELECT count(*) = 2 FROM col WHERE name IN ('id', 'account_id'))
               AND NOT (EXISTS (SELECT FROM col WHERE name = 'image_url' AND required)
                        AND EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.convalidated
                                                                  AND k.conname = 'art_sessions_image_url_not_empty')) AS due,
           EXISTS (SELECT FROM col WHERE name = 'image_url') AS has_column,
           (SELECT longest FROM col WHERE name = 'image_url') AS longest,
           ARRAY(SELECT name FROM col WHERE (name, kind) IN (('url', 'S'), ('image_b64', 'S'), ('metadata', 'J'))) AS candidates
    FROM pg_class c, LATERAL (SELECT $1::regclass::oid) AS wanted (oid)
    WHERE c.oid = wanted.oid AND c.relkind = 'r'";

const COLUMNS: &str = "
    WITH col AS (
        SELECT a.attname::text AS name, a.attnotnull AS required,
               CASE WHEN a.atttypid IN ('json'::regtype, 'jsonb'::regtype) THEN 'J' ELSE t.typcategory::text END AS kind,
               CASE WHEN a.atttypmod > 4 THEN a.atttypmod - 4 END AS longest
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped)";

async fn find(conn: &mut PgConnection, table: &'static str) -> sqlx::Result<Option<Found>> {
    let there: Option<String> =
        sqlx::query_scalar("SELECT to_regclass($1)::text").bind(table).fetch_one(&mut *conn).await?;
    if there.is_none() {
        return Ok(None);
    }
    let look = sqlx::query_as(AssertSqlSafe(format!("{COLUMNS} {LOOK}")));
    let found: Option<Found> = look.bind(table).fetch_optional(conn).await?;
    Ok(found.filter(|found| found.due))
}

async fn run(conn: &mut PgConnection, sql: String) -> sqlx::Result<u64> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.map(|done| done.rows_affected())
}

/// Makes the tables the migrator's, if the login may; whoever had them keeps every right to their rows. A login that may
/// not is told so by [`mend`], if there is anything to do.
pub(crate) async fn take_over(conn: &mut PgConnection) -> sqlx::Result<()> {
    for table in TABLES {
        let Some(found) = find(conn, table).await? else { continue };
        if found.ours {
            continue;
        }
        let taken = format!(
            "DO $$
             DECLARE
                 owner text := (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = '{table}'::regclass);
             BEGIN
                 SET LOCAL lock_timeout = '10s';
                 ALTER TABLE {table} OWNER TO app_migrator;
                 EXECUTE format('GRANT ALL ON {table} TO %I', owner);
             EXCEPTION WHEN insufficient_privilege THEN NULL;
             END $$"
        );
        run(conn, taken).await?;
    }
    Ok(())
}

/// Mends what there is to mend.
pub(crate) async fn mend(conn: &mut PgConnection) -> Result<Vec<Mended>, LegacyError> {
    let mut all = Vec::new();
    for table in TABLES {
        if let Some(found) = find(conn, table).await? {
            all.push(mend_table(conn, table, &found).await?);
        }
    }
    Ok(all)
}

async fn mend_table(
    conn: &mut PgConnection,
    table: &'static str,
    found: &Found,
) -> Result<Mended, LegacyError> {
    if !found.ours {
        return Err(LegacyError::NotOurs(table));
    }
    if !found.has_column {
        run(conn, format!("ALTER TABLE {table} ADD COLUMN IF NOT EXISTS image_url text")).await?;
    }
    let mut mended = Mended { table, repaired: 0, invalid: 0 };
    backfill(conn, found, &mut mended).await?;
    for (name, condition) in CONSTRAINTS {
        let there =
            "SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = $1::regclass AND conname = $2)";
        if !sqlx::query_scalar(there).bind(table).bind(name).fetch_one(&mut *conn).await? {
            let add = format!("ALTER TABLE {table} ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID");
            run(conn, add).await?;
        }
    }
    backfill(conn, found, &mut mended).await?;
    for (name, _) in CONSTRAINTS {
        run(conn, format!("ALTER TABLE {table} VALIDATE CONSTRAINT {name}")).await?;
    }
    let required = format!(
        "ALTER TABLE {table} ALTER COLUMN image_url SET NOT NULL, DROP CONSTRAINT {}",
        CONSTRAINTS[0].0
    );
    run(conn, required).await?;
    Ok(mended)
}

/// The first is there for the sake of `NOT NULL`, which would scan the table under a lock that lets nobody in.
const CONSTRAINTS: [(&str, &str); 2] = [
    ("art_sessions_image_url_present", "image_url IS NOT NULL"),
    ("art_sessions_image_url_not_empty", "image_url <> ''"),
];

/// Goes over the whole table, some pages at a time. Rows that others add meanwhile are for the next time.
async fn backfill(conn: &mut PgConnection, found: &Found, mended: &mut Mended) -> Result<(), LegacyError> {
    let table = mended.table;
    let known = known_elsewhere(found);
    let pages: i64 =
        sqlx::query_scalar("SELECT pg_relation_size($1::regclass) / current_setting('block_size')::bigint")
            .bind(table)
            .fetch_one(&mut *conn)
            .await?;
    let mut from = 0;
    while from < pages {
        let to = from + PAGES;
        let bad = format!("{BAD} AND ctid >= '({from},0)' AND ctid < '({to},0)'");
        if let Some(known) = &known {
            let update =
                format!("UPDATE {table} SET image_url = {known} WHERE {bad} AND {known} IS NOT NULL");
            mended.repaired += run(conn, update).await?;
        }
        mended.invalid += remove(conn, table, &bad).await?;
        from = to;
    }
    Ok(())
}

async fn remove(conn: &mut PgConnection, table: &'static str, bad: &str) -> Result<u64, LegacyError> {
    let any: bool =
        sqlx::query_scalar(AssertSqlSafe(format!("SELECT EXISTS (SELECT FROM {table} WHERE {bad})")))
            .fetch_one(&mut *conn)
            .await?;
    if !any {
        return Ok(0);
    }
    // A foreign key that only refuses does so by itself; one that deletes or clears would do it unseen.
    let by = "SELECT conrelid::regclass::text FROM pg_constraint
              WHERE confrelid = $1::regclass AND contype = 'f' AND confdeltype NOT IN ('a', 'r') LIMIT 1";
    if let Some(by) = sqlx::query_scalar(by).bind(table).fetch_optional(&mut *conn).await? {
        return Err(LegacyError::Referenced { table, by });
    }
    let moved = format!(
        r#"WITH gone AS (DELETE FROM {table} WHERE {bad} RETURNING *)
           INSERT INTO app.image_audit (account_id, source, status, reason, "row")
           SELECT CASE WHEN account_id::text ~* '^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$'
                       THEN account_id::text ELSE '00000000-0000-0000-0000-000000000000' END::uuid,
                  '{table}', 'invalid',
                  CASE WHEN image_url IS NULL THEN 'image_url was missing' ELSE 'image_url was empty' END
                      || ', and nothing else in the row shows the image',
                  to_jsonb(gone)
           FROM gone"#
    );
    Ok(run(conn, moved).await?)
}

/// What else in a row says where its image is, as an expression; NULL where nothing does.
fn known_elsewhere(found: &Found) -> Option<String> {
    let expressions = found.candidates.iter().map(|column| match column.as_str() {
        "metadata" => "NULLIF(btrim(metadata ->> 'image_url'), '')",
        // The bytes themselves, if they begin as those of an image do.
        "image_b64" => {
            "CASE WHEN image_b64 LIKE 'iVBORw0KGgo%' THEN 'data:image/png;base64,' || image_b64
                  WHEN image_b64 LIKE '/9j/%' THEN 'data:image/jpeg;base64,' || image_b64
                  WHEN image_b64 LIKE 'UklGR%' THEN 'data:image/webp;base64,' || image_b64 END"
        }
        _ => "NULLIF(btrim(url), '')",
    });
    // One that does not fit into the column is passed over for one that does.
    let fitting = expressions.map(|known| match found.longest {
        Some(longest) => format!("CASE WHEN length({known}) <= {longest} THEN {known} END"),
        None => known.to_owned(),
    });
    let all: Vec<String> = fitting.collect();
    (!all.is_empty()).then(|| format!("coalesce({})", all.join(", ")))
}
