//! The walls between tenants, read off the catalogue (SPEC T4).
//!
//! Each rule is a query for whatever breaks it, over everything there is, so that a table, policy, view, function or
//! grant added tomorrow is held to it too. The second test breaks each rule once: the checker must say just that.

mod catalogue;

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tollgate_domain::Role;
use tollgate_testkit::TestDb;

use self::catalogue::CATALOGUE;

/// A rule's words, and the query for what breaks it.
const RULES: &[(&str, &str)] = &[
    ("row-level security is off", "SELECT name FROM tables WHERE NOT relrowsecurity"),
    ("row-level security is not forced", "SELECT name FROM tables WHERE NOT relforcerowsecurity"),
    ("account_id is not a uuid NOT NULL", "SELECT name FROM tenant WHERE account_ok IS NOT TRUE"),
    (
        "no account_id, and not on the list",
        "SELECT name FROM tables WHERE account IS NULL
             AND name NOT IN ('queue.workers', 'queue.queues', 'queue.audit_log') AND schema NOT IN ('guard', 'billing')",
    ),
    (
        "no primary key",
        "SELECT name FROM tables t WHERE NOT EXISTS (
             SELECT FROM pg_index i WHERE i.indrelid = t.oid AND i.indisprimary)",
    ),
    (
        "unique key not led by account_id",
        "SELECT i.indexrelid::regclass::text FROM pg_index i JOIN tenant t ON t.oid = i.indrelid
         WHERE (i.indisunique OR i.indisexclusion) AND i.indkey[0] <> t.account",
    ),
    (
        "foreign key not led by account_id",
        "SELECT c.conrelid::regclass || '.' || c.conname FROM pg_constraint c
         LEFT JOIN tables f ON f.oid = c.conrelid LEFT JOIN tables p ON p.oid = c.confrelid
         WHERE c.contype = 'f' AND (f.account IS NOT NULL OR p.account IS NOT NULL)
           AND (c.conkey[1] IS DISTINCT FROM f.account OR c.confkey[1] IS DISTINCT FROM p.account)",
    ),
    (
        "no tenant policy for every role",
        "SELECT name FROM tenant t WHERE NOT EXISTS (
             SELECT FROM walls w WHERE w.name = t.name
                                     AND (w.roles = '-' OR t.schema IN ('queue', 'guard') AND w.roles = 'app_api'))",
    ),
    (
        "policy with another form of app.account_id",
        "SELECT name || '.' || polname FROM (SELECT * FROM policies EXCEPT SELECT * FROM walls) p
         WHERE concat(seen, written) LIKE '%app.account_id%'",
    ),
    (
        "policy not on the list",
        "SELECT name || '.' || polname FROM policies p
         WHERE concat(seen, written) NOT LIKE '%app.account_id%' AND NOT EXISTS (
             SELECT FROM allowed a WHERE (a.name, a.polname, a.polcmd, a.roles) =
                 (p.name, p.polname, p.polcmd::text, p.roles) AND a.seen IS NOT DISTINCT FROM p.seen
                 AND a.written IS NOT DISTINCT FROM p.written)",
    ),
    (
        "row trigger",
        "SELECT t.name || '.' || tgname FROM pg_trigger JOIN tenant t ON t.oid = tgrelid
         WHERE NOT tgisinternal AND tgtype & 1 = 1",
    ),
    (
        "rewrite rule, with its owner's rights",
        "SELECT t.name || '.' || rulename FROM pg_rewrite JOIN tables t ON t.oid = ev_class",
    ),
    (
        "view not security_invoker",
        "SELECT name FROM relations WHERE relkind = 'v' AND NOT EXISTS (
             SELECT FROM pg_options_to_table(reloptions)
             WHERE option_name = 'security_invoker' AND option_value IN ('true', 'on', 'yes', '1'))",
    ),
    ("row-level security cannot cover it", "SELECT name FROM relations WHERE relkind IN ('m', 'f')"),
    (
        "table outside app, queue, guard and billing",
        "SELECT name FROM relations WHERE relkind IN ('r', 'p') AND schema NOT IN ('app', 'queue', 'guard', 'billing')
         AND name <> 'migrations._sqlx_migrations'",
    ),
    (
        "SECURITY DEFINER function",
        "SELECT name FROM functions f WHERE prosecdef AND NOT EXISTS (
             SELECT FROM definers d
             WHERE d.name = f.name AND d.several = f.proretset AND f.proconfig = ARRAY['search_path=pg_catalog']
               AND d.result = (SELECT string_agg(named || ' ' || format_type(type, NULL), ', ' ORDER BY nr)
                               FROM unnest(proargnames, proallargtypes, proargmodes)
                                        WITH ORDINALITY AS a (named, type, mode, nr) WHERE mode = 'o')
               AND d.body = trim(regexp_replace(prosrc, '\\s+', ' ', 'g')))",
    ),
    (
        "role that may do too much",
        "SELECT rolname FROM roles WHERE rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication",
    ),
    (
        "member of another role",
        "SELECT member::regrole || ' in ' || roleid::regrole FROM pg_auth_members
         WHERE member IN (SELECT oid FROM roles)",
    ),
    (
        "not owned by app_migrator",
        "SELECT name FROM (
             SELECT schema AS name, schema, nspowner AS owner FROM schemas JOIN pg_namespace USING (oid)
             UNION ALL SELECT name, schema, relowner FROM relations WHERE relkind <> 'i'
             UNION ALL SELECT name, schema, proowner FROM functions) o
         WHERE schema <> 'public' AND owner <> 'app_migrator'::regrole",
    ),
    (
        "owned by a run-time role",
        "SELECT pg_describe_object(classid, objid, objsubid) FROM pg_shdepend d JOIN roles r ON r.oid = d.refobjid
         WHERE d.refclassid = 'pg_authid'::regclass AND d.deptype = 'o' AND r.rolname <> 'app_migrator'
           AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))",
    ),
    (
        "TRUNCATE, REFERENCES or TRIGGER",
        "SELECT rolname || ' on ' || name FROM runtime r, relations c WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
         AND (has_table_privilege(r.oid, c.oid, 'TRUNCATE, TRIGGER')
              OR has_any_column_privilege(r.oid, c.oid, 'REFERENCES'))",
    ),
    (
        "CREATE at run time",
        "SELECT rolname || ' in ' || nspname FROM runtime r, pg_namespace n
                   WHERE has_schema_privilege(r.oid, n.oid, 'CREATE')
         UNION ALL SELECT rolname || ' in the database' FROM runtime r
                   WHERE has_database_privilege(r.oid, current_database(), 'CREATE, TEMPORARY')",
    ),
    (
        "may rewrite the ledger",
        "SELECT rolname FROM runtime r WHERE has_any_column_privilege(r.oid, 'app.credits_ledger', 'UPDATE')
                                          OR has_table_privilege(r.oid, 'app.credits_ledger', 'DELETE')",
    ),
    (
        "may rewrite the audit log",
        "SELECT rolname FROM runtime r WHERE EXISTS (
             SELECT FROM (VALUES ('app.audit_log'), ('queue.audit_log')) AS log (name)
             WHERE has_any_column_privilege(r.oid, log.name, 'UPDATE') OR has_table_privilege(r.oid, log.name, 'DELETE'))",
    ),
    (
        "granted to PUBLIC",
        "SELECT name FROM (
             SELECT schema AS name, schema, nspacl AS acl FROM schemas JOIN pg_namespace USING (oid)
             UNION ALL SELECT name, schema, relacl FROM relations
             UNION ALL SELECT name || '.' || attname, schema, attacl
                       FROM relations r JOIN pg_attribute ON attrelid = r.oid
             UNION ALL SELECT name, schema, coalesce(proacl, acldefault('f', proowner)) FROM functions
             UNION ALL SELECT concat('by default: ', defaclobjtype), 'default', defaclacl FROM pg_default_acl) g
         WHERE schema <> 'public' AND EXISTS (SELECT FROM aclexplode(acl) WHERE grantee = 0)",
    ),
];

/// Some of what must be found: a checker that looks in the wrong place would find nothing wrong.
#[rustfmt::skip]
const KNOWN: [&str; 26] = [
    "accounts", "users", "api_keys", "jobs", "job_events", "credits_ledger", "webhook_endpoints", "webhook_deliveries",
    "stripe_customers", "stripe_events", "usage_rollups_daily", "idempotency_keys", "tasks", "dead_letters",
    "lanes", "lane_counts", "images", "image_data", "job_images", "image_audit", "audit_log",
    "stripe_grants", "stripe_payments", "stripe_reversals",
    "rate_windows", "ledger_sums",
];

/// What breaks a rule: `object: the rule's words`.
async fn violations(conn: &mut PgConnection) -> Vec<String> {
    let mut found = Vec::new();
    for (rule, query) in RULES {
        let sql = format!("{CATALOGUE} {query} ORDER BY 1");
        let objects: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_all(&mut *conn)
            .await
            .unwrap_or_else(|error| panic!("{rule}: {error}"));
        found.extend(objects.iter().map(|object| format!("{object}: {rule}")));
    }
    found
}

async fn run(conn: &mut PgConnection, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The schema as `tollgate migrate` makes it, not as a copy of the template: a copy has not the database's own grants.
async fn migrated() -> PgConnection {
    // The template sets the roles' passwords; were that under way, it would collide with a change of the roles here.
    drop(TestDb::new().await);
    let db = TestDb::empty().await;
    tollgate_domain::migrate(&db.owner_url()).await.unwrap_or_else(|error| panic!("{error}"));
    PgConnection::connect(&db.owner_url()).await.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test]
async fn walls_stand_around_every_table() {
    let mut conn = migrated().await;
    assert_eq!(violations(&mut conn).await, Vec::<String>::new());

    let sql = format!("{CATALOGUE} SELECT relname::text FROM tenant");
    let found: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut conn).await.expect("tables");
    for table in KNOWN {
        assert!(found.iter().any(|name| name == table), "{table} is missing from {found:?}");
    }
}

/// A table as it should be; each breach begins from it.
const SOUND: &str = "
SET LOCAL ROLE app_migrator;
CREATE TABLE app.extra (
    account_id uuid NOT NULL REFERENCES app.accounts, id uuid NOT NULL, other uuid, PRIMARY KEY (account_id, id));
ALTER TABLE app.extra ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON app.extra
    USING (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid))
    WITH CHECK (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid));
CREATE FUNCTION app.same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
REVOKE ALL ON FUNCTION app.same FROM PUBLIC;
CREATE TRIGGER counted AFTER INSERT ON app.extra FOR EACH STATEMENT EXECUTE FUNCTION app.same();
CREATE VIEW app.extra_view WITH (security_invoker = on) AS SELECT * FROM app.extra;
RESET ROLE;
";

/// Breaches, each followed by all that the checker must say of it. `RESET ROLE`: as the superuser from there on.
const BREACHES: &str = r"
CREATE TABLE app.bare (id integer)
=> app.bare: row-level security is off
=> app.bare: row-level security is not forced
=> app.bare: account_id is not a uuid NOT NULL
=> app.bare: no account_id, and not on the list
=> app.bare: no primary key
=> app.bare: no tenant policy for every role
CREATE TABLE queue.pauses (id integer PRIMARY KEY);
    ALTER TABLE queue.pauses ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY
=> queue.pauses: no account_id, and not on the list
CREATE TABLE billing.receipts (id integer)
=> billing.receipts: row-level security is off
=> billing.receipts: row-level security is not forced
=> billing.receipts: no primary key
CREATE POLICY look ON billing.stripe_events FOR SELECT TO app_api USING (true)
=> billing.stripe_events.look: policy not on the list
CREATE TABLE queue.tracks (account_id uuid PRIMARY KEY);
    ALTER TABLE queue.tracks ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY
=> queue.tracks: no tenant policy for every role
DROP POLICY tenant ON queue.lane_counts
=> queue.lane_counts: no tenant policy for every role
ALTER POLICY totals ON queue.lane_counts TO app_migrator, app_api
=> queue.lane_counts.totals: policy not on the list
ALTER TABLE app.extra DISABLE ROW LEVEL SECURITY
=> app.extra: row-level security is off
ALTER TABLE app.extra NO FORCE ROW LEVEL SECURITY
=> app.extra: row-level security is not forced
ALTER TABLE app.extra DROP CONSTRAINT extra_pkey, ALTER account_id DROP NOT NULL
=> app.extra: account_id is not a uuid NOT NULL
=> app.extra: no primary key
ALTER TABLE app.extra DROP CONSTRAINT extra_pkey, ADD PRIMARY KEY (id, account_id)
=> app.extra_pkey: unique key not led by account_id
ALTER TABLE app.extra ADD UNIQUE (id)
=> app.extra_id_key: unique key not led by account_id
CREATE UNIQUE INDEX half ON app.extra (other) WHERE other IS NOT NULL
=> app.half: unique key not led by account_id
ALTER TABLE app.extra ADD CONSTRAINT once EXCLUDE USING btree (id WITH =)
=> app.once: unique key not led by account_id
ALTER TABLE app.extra ADD CONSTRAINT swapped FOREIGN KEY (id, account_id) REFERENCES app.jobs (id, account_id)
=> app.extra.swapped: foreign key not led by account_id
ALTER TABLE app.extra ADD CONSTRAINT crossed FOREIGN KEY (other) REFERENCES app.accounts
=> app.extra.crossed: foreign key not led by account_id
ALTER TABLE app.extra ADD CONSTRAINT outward FOREIGN KEY (other) REFERENCES queue.workers
=> app.extra.outward: foreign key not led by account_id
DROP POLICY tenant ON app.extra
=> app.extra: no tenant policy for every role
ALTER POLICY tenant ON app.extra TO app_api
=> app.extra: no tenant policy for every role
ALTER POLICY tenant ON app.extra USING (account_id = NULLIF(current_setting('app.account_id', true), '')::uuid)
=> app.extra: no tenant policy for every role
=> app.extra.tenant: policy with another form of app.account_id
ALTER POLICY tenant ON app.extra WITH CHECK (true)
=> app.extra: no tenant policy for every role
=> app.extra.tenant: policy with another form of app.account_id
CREATE POLICY nearly ON app.extra FOR SELECT
    USING (account_id = (SELECT NULLIF(current_setting('app.account_id', true), '')::uuid) OR id IS NULL)
=> app.extra.nearly: policy with another form of app.account_id
CREATE POLICY all_of_it ON app.extra FOR SELECT TO app_worker USING (true)
=> app.extra.all_of_it: policy not on the list
ALTER POLICY holder ON app.api_keys TO app_api, app_worker
=> app.api_keys.holder: policy not on the list
DROP POLICY operator ON app.accounts; CREATE POLICY operator ON app.accounts TO app_operator USING (true)
=> app.accounts.operator: policy not on the list
CREATE TRIGGER each BEFORE INSERT ON app.extra FOR EACH ROW EXECUTE FUNCTION app.same()
=> app.extra.each: row trigger
CREATE RULE kept AS ON DELETE TO app.extra DO INSTEAD NOTHING
=> app.extra.kept: rewrite rule, with its owner's rights
CREATE VIEW app.peek AS SELECT * FROM app.extra
=> app.peek: view not security_invoker
ALTER VIEW app.extra_view SET (security_invoker = off)
=> app.extra_view: view not security_invoker
CREATE MATERIALIZED VIEW app.copy AS SELECT * FROM app.extra
=> app.copy: row-level security cannot cover it
RESET ROLE; CREATE TABLE public.copy AS SELECT * FROM app.extra
=> public.copy: table outside app, queue, guard and billing
ALTER FUNCTION app.same SECURITY DEFINER
=> app.same(): SECURITY DEFINER function
CREATE OR REPLACE FUNCTION queue.totals(wanted text, OUT queued bigint, OUT running bigint, OUT done bigint, OUT failed bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS
    'SELECT queued, running, done, failed FROM queue.lane_counts WHERE queue = wanted'
=> queue.totals(text): SECURITY DEFINER function
ALTER FUNCTION queue.totals RESET search_path
=> queue.totals(text): SECURITY DEFINER function
RESET ROLE; ALTER ROLE app_api BYPASSRLS
=> app_api: role that may do too much
RESET ROLE; ALTER ROLE app_worker CREATEROLE
=> app_worker: role that may do too much
RESET ROLE; ALTER ROLE app_operator SUPERUSER
=> app_operator: role that may do too much
RESET ROLE; ALTER ROLE app_migrator CREATEDB
=> app_migrator: role that may do too much
RESET ROLE; GRANT app_worker TO app_api
=> app_api in app_worker: member of another role
RESET ROLE; GRANT pg_read_all_data TO app_worker
=> app_worker in pg_read_all_data: member of another role
RESET ROLE; ALTER TABLE app.extra OWNER TO CURRENT_USER
=> app.extra: not owned by app_migrator
RESET ROLE; ALTER TABLE app.extra OWNER TO app_api
=> app.extra: not owned by app_migrator
=> table app.extra: owned by a run-time role
=> app_api on app.extra: TRUNCATE, REFERENCES or TRIGGER
GRANT TRUNCATE ON app.extra TO app_worker
=> app_worker on app.extra: TRUNCATE, REFERENCES or TRIGGER
GRANT REFERENCES (id) ON app.extra TO app_api; GRANT TRIGGER ON app.jobs TO app_api
=> app_api on app.extra: TRUNCATE, REFERENCES or TRIGGER
=> app_api on app.jobs: TRUNCATE, REFERENCES or TRIGGER
GRANT CREATE ON SCHEMA queue TO app_worker
=> app_worker in queue: CREATE at run time
RESET ROLE; GRANT CREATE ON SCHEMA public TO PUBLIC
=> app_api in public: CREATE at run time
=> app_operator in public: CREATE at run time
=> app_worker in public: CREATE at run time
RESET ROLE; DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO app_api', current_database()); END $$
=> app_api in the database: CREATE at run time
GRANT UPDATE (note) ON app.credits_ledger TO app_operator; GRANT DELETE ON app.credits_ledger TO app_worker
=> app_operator: may rewrite the ledger
=> app_worker: may rewrite the ledger
GRANT UPDATE (detail) ON app.audit_log TO app_api; GRANT DELETE ON queue.audit_log TO app_operator
=> app_api: may rewrite the audit log
=> app_operator: may rewrite the audit log
GRANT USAGE ON SCHEMA app TO PUBLIC
=> app: granted to PUBLIC
GRANT SELECT (id) ON app.extra TO PUBLIC
=> app.extra.id: granted to PUBLIC
CREATE FUNCTION queue.one() RETURNS integer LANGUAGE sql AS 'SELECT 1'
=> queue.one(): granted to PUBLIC
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO PUBLIC
=> by default: r: granted to PUBLIC
";

/// [`BREACHES`], taken apart.
fn breaches() -> Vec<(String, Vec<&'static str>)> {
    let mut all: Vec<(String, Vec<&str>)> = Vec::new();
    for line in BREACHES.trim().lines() {
        match (line.strip_prefix("=> "), all.last_mut()) {
            (Some(said), Some((_, expected))) => expected.push(said),
            (None, Some((sql, expected))) if expected.is_empty() => *sql = format!("{sql}\n{line}"),
            _ => all.push((line.to_owned(), Vec::new())),
        }
    }
    all
}

#[tokio::test]
async fn walls_that_are_broken_are_named() {
    let mut conn = migrated().await;
    let mut unbroken: BTreeSet<&str> = RULES.iter().map(|(rule, _)| *rule).collect();
    for (breach, expected) in breaches() {
        // Nothing is committed: roles are the whole cluster's, and other tests use them.
        run(&mut conn, "BEGIN").await;
        run(&mut conn, SOUND).await;
        assert_eq!(violations(&mut conn).await, Vec::<String>::new(), "before: {breach}");
        run(&mut conn, "SET LOCAL ROLE app_migrator").await;
        run(&mut conn, &breach).await;
        run(&mut conn, "RESET ROLE").await;
        assert_eq!(violations(&mut conn).await, expected, "{breach}");
        run(&mut conn, "ROLLBACK").await;
        for said in expected {
            unbroken.remove(said.rsplit_once(": ").map_or(said, |(_, rule)| rule));
        }
    }
    assert!(unbroken.is_empty(), "never broken here: {unbroken:?}");
}

/// What Stripe says of people is for workers and operators.
#[tokio::test]
async fn walls_keep_stripes_events_from_the_api_that_takes_them_in() {
    let db = TestDb::new().await;
    let mut api = PgConnection::connect(&db.role_url(Role::Api)).await.unwrap();
    let enter = "INSERT INTO billing.stripe_events (event_id, id, type, created, livemode, state, payload)
                 VALUES ('evt_1', gen_random_uuid(), 'x', now(), false, 'ignored', '{}')";
    run(&mut api, enter).await;
    for refused in [
        &format!("{enter} RETURNING id"),
        "SELECT event_id FROM billing.stripe_events",
        "SELECT event_id FROM billing.stripe_waiting",
        "UPDATE billing.stripe_events SET state = 'received'",
        "DELETE FROM billing.stripe_events",
        "DELETE FROM billing.stripe_waiting",
        "DELETE FROM billing.stripe_objects",
        "UPDATE billing.stripe_objects SET object_id = 'cus_2'",
    ] {
        let done = sqlx::raw_sql(AssertSqlSafe(refused)).execute(&mut api).await;
        let error = done.err().unwrap_or_else(|| panic!("may: {refused}"));
        let code = error.as_database_error().and_then(|error| error.code().map(String::from));
        assert_eq!(code.as_deref(), Some("42501"), "{refused}: {error}");
    }
}

/// The one function that reads more than its caller may: what it tells is the sum over all accounts, in one row.
#[tokio::test]
async fn walls_let_totals_through_and_nothing_of_any_one_account() {
    let db = TestDb::new().await;
    let mut owner = PgConnection::connect(&db.owner_url()).await.unwrap();
    run(
        &mut owner,
        "INSERT INTO queue.lane_counts (account_id, queue, shard, queued, running, done, failed) VALUES
             ('00000000-0000-0000-0000-00000000000a', 'generation.create', 1, 1, 2, 3, 4),
             ('00000000-0000-0000-0000-00000000000b', 'generation.create', 1, 10, 20, 30, 40),
             ('00000000-0000-0000-0000-00000000000b', 'generation.create', 2, -5, 5, 0, 0),
             ('00000000-0000-0000-0000-00000000000b', 'webhook.delivery', 1, 100, 100, 100, 100)",
    )
    .await;
    for role in [Role::Api, Role::Worker, Role::Operator] {
        let mut conn = PgConnection::connect(&db.role_url(role)).await.unwrap();
        run(&mut conn, "SET app.account_id = '00000000-0000-0000-0000-00000000000a'").await;
        let totals: Vec<(i64, i64, i64, i64)> =
            sqlx::query_as("SELECT * FROM queue.totals('generation.create')")
                .fetch_all(&mut conn)
                .await
                .unwrap();
        assert_eq!(totals, [(6, 27, 33, 44)], "{role:?}");
        let none: Vec<(i64, i64, i64, i64)> =
            sqlx::query_as("SELECT * FROM queue.totals('no such queue')").fetch_all(&mut conn).await.unwrap();
        assert_eq!(none, [(0, 0, 0, 0)], "{role:?}");
        // Around it, the API still sees its own account alone.
        let seen: i64 =
            sqlx::query_scalar("SELECT count(*) FROM queue.lane_counts").fetch_one(&mut conn).await.unwrap();
        assert_eq!(seen, if role == Role::Api { 1 } else { 4 }, "{role:?}");
    }
}
