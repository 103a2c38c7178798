//! The source system's `art_sessions`, whose rows may lack their `image_url`: mended by `tollgate migrate`, whenever the
//! table turns up, while it is in use (SPEC I3).

use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::JoinSet;
use tokio::time::Duration;
use tokio_util::sync::CancellationToken;
use tollgate_domain::{Mended, Migrated};
use tollgate_testkit::TestDb;

const ROWS: i64 = 100_000;

async fn run(owner: &PgPool, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(owner).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn number(owner: &PgPool, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(owner)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
}

async fn migrate(db: &TestDb) -> Migrated {
    tollgate_domain::migrate(&db.owner_url()).await.unwrap_or_else(|error| panic!("{error}"))
}

/// What a statement on the table is refused with.
async fn refused(owner: &PgPool, sql: &str) -> Option<String> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(owner).await;
    done.err().map(|error| error.as_database_error().unwrap().code().unwrap().into_owned())
}

/// Rows by number: of ten, one is empty, one missing, one blank, and one each is known by another column.
async fn populate(owner: &PgPool, table: &str, rows: i64) {
    run(
        owner,
        &format!(
            "CREATE TABLE {table} (
                 id bigint PRIMARY KEY, account_id uuid, user_id bigint, prompt text, image_url text, url text,
                 image_b64 text, metadata jsonb, created_at timestamptz DEFAULT now());
             INSERT INTO {table} (id, account_id, user_id, prompt, image_url, url, image_b64, metadata)
             SELECT n, CASE WHEN n % 1000 = 0 THEN NULL ELSE gen_random_uuid() END, n, repeat('a gate ', 20),
                    CASE n % 10 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN ' ' WHEN 3 THEN NULL WHEN 4 THEN ''
                                WHEN 5 THEN NULL ELSE 'https://h.example/' || n END,
                    CASE WHEN n % 10 = 3 THEN 'https://known.example/' || n END,
                    CASE n % 10 WHEN 5 THEN 'iVBORw0KGgoAAAA' WHEN 2 THEN 'no image' END,
                    CASE WHEN n % 10 = 4 THEN jsonb_build_object('image_url', 'https://meta.example/' || n) END
             FROM generate_series(0, {rows} - 1) n"
        ),
    )
    .await;
}

/// Whether the table is as it must be.
async fn assert_mended(owner: &PgPool, table: &str) {
    assert_eq!(
        number(owner, &format!("SELECT count(*) FROM {table} WHERE image_url IS NULL OR image_url = ''"))
            .await,
        0
    );
    for (url, code) in [("NULL", "23502"), ("''", "23514")] {
        let insert = format!("INSERT INTO {table} (id, image_url) VALUES (-1, {url})");
        assert_eq!(refused(owner, &insert).await.as_deref(), Some(code), "{table}: {url}");
    }
    let loose = format!(
        "SELECT count(*) FROM pg_constraint WHERE conrelid = '{table}'::regclass AND NOT convalidated"
    );
    assert_eq!(number(owner, &loose).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legacy_images_of_a_populated_table_are_mended_while_it_is_in_use() {
    let db = TestDb::new().await;
    let owner = db.owner().await;
    populate(&owner, "public.art_sessions", ROWS).await;

    // The source system goes on writing, and gives up a statement that is kept waiting.
    let (stop, url) = (CancellationToken::new(), db.owner_url());
    let mut writer = JoinSet::new();
    writer.spawn({
        let (stop, pool) = (stop.clone(), db.pool(&url).await);
        async move {
            let mut written = 0_i64;
            while !stop.is_cancelled() {
                written += 1;
                let sql = format!(
                    "SET lock_timeout = '2s';
                     INSERT INTO public.art_sessions (id, image_url) VALUES ({}, 'https://new.example/');
                     UPDATE public.art_sessions SET user_id = 0 WHERE id = {}",
                    ROWS + written,
                    // From the end, where the rows are mended last: one that is bad still may be written to.
                    (ROWS - written).max(0)
                );
                run(&pool, &sql).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            written
        }
    });
    let began = tokio::time::Instant::now();
    let done = migrate(&db).await;
    println!("{ROWS} rows in {:?}", began.elapsed());
    stop.cancel();
    let written = writer.join_all().await.into_iter().sum::<i64>();
    assert!(written > 0, "nothing was written meanwhile");

    let tenth = (ROWS / 10).unsigned_abs();
    let mended = Mended { table: "public.art_sessions", repaired: 3 * tenth, invalid: 3 * tenth };
    assert_eq!(done, Migrated { applied: 0, mended: vec![mended] });
    assert_mended(&owner, "public.art_sessions").await;
    assert_eq!(number(&owner, "SELECT count(*) FROM art_sessions").await, ROWS / 10 * 7 + written);
    for (from, rows) in [
        ("https://known.example/3", 1),
        ("https://meta.example/4", 1),
        ("data:image/png;base64,iVBORw0KGgoAAAA", ROWS / 10),
        ("https://h.example/6", 1),
    ] {
        let sql = format!("SELECT count(*) FROM art_sessions WHERE image_url = '{from}'");
        assert_eq!(number(&owner, &sql).await, rows, "{from}");
    }

    // What shows nothing is kept as it was, with the reason.
    let invalid =
        "SELECT count(*) FROM app.image_audit WHERE status = 'invalid' AND source = 'public.art_sessions'";
    assert_eq!(number(&owner, invalid).await, ROWS / 10 * 3);
    let whole = "SELECT count(DISTINCT \"row\" ->> 'id') FROM app.image_audit
                 WHERE \"row\" ->> 'prompt' LIKE 'a gate%' AND account_id::text = coalesce(\"row\" ->> 'account_id', '00000000-0000-0000-0000-000000000000')";
    assert_eq!(number(&owner, whole).await, ROWS / 10 * 3);
    let reason = "SELECT count(*) FROM app.image_audit WHERE reason LIKE 'image_url was missing%'";
    assert_eq!(number(&owner, reason).await, ROWS / 10);

    // Nothing is left to do.
    assert_eq!(migrate(&db).await, Migrated { applied: 0, mended: Vec::new() });
    assert_eq!(number(&owner, invalid).await, ROWS / 10 * 3);
}

#[tokio::test]
async fn legacy_images_in_either_schema_and_with_least_columns() {
    let db = TestDb::new().await;
    let owner = db.owner().await;
    populate(&owner, "app.art_sessions", 20).await;
    // The column is missing altogether, and nothing else shows an image: every row goes. The keys are texts.
    run(&owner, "CREATE TABLE public.art_sessions (id text, account_id text); INSERT INTO public.art_sessions VALUES ('a', 'b'), ('c', NULL)").await;
    let done = migrate(&db).await;
    assert_eq!(
        done.mended,
        [
            Mended { table: "public.art_sessions", repaired: 0, invalid: 2 },
            Mended { table: "app.art_sessions", repaired: 6, invalid: 6 },
        ]
    );
    assert_mended(&owner, "app.art_sessions").await;
    assert_eq!(number(&owner, "SELECT count(*) FROM public.art_sessions").await, 0);

    // A table that only has the name is left alone.
    let db = TestDb::new().await;
    let owner = db.owner().await;
    run(&owner, "CREATE TABLE public.art_sessions (when_it_is timestamptz); CREATE VIEW app.art_sessions AS SELECT 1 AS id, 2 AS account_id").await;
    assert_eq!(migrate(&db).await.mended, []);
    assert_eq!(number(&owner, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'public.art_sessions'::regclass AND attnum > 0").await, 1);
}

/// Broken off at any step, it goes on where it was.
#[tokio::test]
async fn legacy_images_are_mended_from_wherever_it_stopped() {
    let steps = [
        "ALTER TABLE public.art_sessions ADD CONSTRAINT art_sessions_image_url_present CHECK (image_url IS NOT NULL) NOT VALID",
        "ALTER TABLE public.art_sessions ADD CONSTRAINT art_sessions_image_url_not_empty CHECK (image_url <> '') NOT VALID",
        "DELETE FROM public.art_sessions WHERE image_url IS NULL OR btrim(image_url) = ''",
        "ALTER TABLE public.art_sessions VALIDATE CONSTRAINT art_sessions_image_url_not_empty",
    ];
    for until in 0..=steps.len() {
        let db = TestDb::new().await;
        let owner = db.owner().await;
        populate(&owner, "public.art_sessions", 100).await;
        for step in &steps[..until] {
            run(&owner, step).await;
        }
        assert_eq!(migrate(&db).await.mended.len(), 1, "after {until} steps");
        assert_mended(&owner, "public.art_sessions").await;
        assert_eq!(migrate(&db).await.mended, []);
    }
}

#[tokio::test]
async fn legacy_images_of_another_owner_stay_readable_to_him_and_of_a_stranger_are_left() {
    let db = TestDb::new().await;
    let owner = db.owner().await;
    run(
        &owner,
        "DO $$ BEGIN CREATE ROLE art LOGIN PASSWORD 'art'; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    )
    .await;
    populate(&owner, "public.art_sessions", 100).await;
    run(&owner, "ALTER TABLE public.art_sessions OWNER TO art").await;

    // A copy of the template has not its database's grants.
    run(&owner, "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO app_migrator', current_database()); END $$").await;

    // The migrator by itself may not: it says what to do, and nothing has happened.
    let error = tollgate_domain::migrate(&db.url_as("app_migrator")).await.unwrap_err().to_string();
    assert!(error.contains("ALTER TABLE public.art_sessions OWNER TO app_migrator"), "{error}");
    assert_eq!(number(&owner, "SELECT count(*) FROM art_sessions WHERE image_url IS NULL").await, 30);

    assert_eq!(migrate(&db).await.mended.len(), 1);
    assert_mended(&owner, "public.art_sessions").await;
    let mut tx = owner.begin().await.unwrap();
    sqlx::raw_sql(
        "SET LOCAL ROLE art; UPDATE art_sessions SET user_id = 1; DELETE FROM art_sessions WHERE id = 6",
    )
    .execute(&mut *tx)
    .await
    .unwrap();
}

#[tokio::test]
async fn legacy_images_that_others_hang_on_are_not_removed_unseen() {
    let db = TestDb::new().await;
    let owner = db.owner().await;
    populate(&owner, "public.art_sessions", 100).await;
    run(&owner, "CREATE TABLE public.frames (session_id bigint REFERENCES public.art_sessions ON DELETE CASCADE); INSERT INTO public.frames VALUES (0), (6)").await;
    let error = tollgate_domain::migrate(&db.owner_url()).await.unwrap_err().to_string();
    assert!(error.contains("frames refers to it"), "{error}");
    assert_eq!(number(&owner, "SELECT count(*) FROM public.frames").await, 2);
    run(&owner, "DELETE FROM public.frames WHERE session_id = 0; ALTER TABLE public.frames DROP CONSTRAINT frames_session_id_fkey").await;
    assert_eq!(migrate(&db).await.mended.len(), 1);
}
