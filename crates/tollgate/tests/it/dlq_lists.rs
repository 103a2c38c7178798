//! Lists of dead letters: what a filter lets through, page by page, and what it costs to find it.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tollgate_testkit::{TestApp, TestDb};

use crate::operators::{BINARY, Operator, command, other_letters, tune};

fn ids(page: &Value) -> Vec<&str> {
    page["data"].as_array().unwrap().iter().map(|letter| letter["id"].as_str().unwrap()).collect()
}

fn combinations() -> impl Iterator<Item = [bool; 5]> {
    (0..32_u8).map(|bits| std::array::from_fn(|bit| bits & (1 << bit) != 0))
}

#[tokio::test]
async fn every_filter_lists_just_what_it_says_newest_first_page_by_page() {
    let app = TestApp::start(BINARY, tune(0, &[])).await;
    other_letters(&app, 300).await;
    let operator = Operator::of(&app);
    for [queue, code, account, since, until] in combinations() {
        let mut query = String::new();
        let mut filter = json!({});
        let mut sql = "SELECT id::text FROM queue.dead_letters WHERE true".to_owned();
        let account_id = "cfcd2084-95d5-65ef-66e7-dff9f98764da";
        for (asked, parameter, field, value, term) in [
            (queue, "queue", "queue", "generation.probe", "queue = 'generation.probe'"),
            (code, "code", "code", "B", "reason ->> 'code' = 'B'"),
            (account, "account", "account_id", account_id, "account_id = md5('0')::uuid"),
            (since, "since", "since", "2026-01-01T00:00:11Z", "died_at >= '2026-01-01T00:00:11Z'"),
            (until, "before", "until", "2026-01-01T00:00:47Z", "died_at < '2026-01-01T00:00:47Z'"),
        ] {
            if asked {
                query += &format!("&{parameter}={value}");
                filter[field] = json!(value);
                sql += &format!(" AND {term}");
            }
        }
        sql += " ORDER BY died_at DESC, id DESC";
        let expected: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&app.owner).await.unwrap();

        let mut found: Vec<String> = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = operator.get(&format!("/internal/dlq?limit=37{query}{cursor}")).await;
            let ids = ids(&page);
            assert!(ids.len() == 37 || page["next_cursor"].is_null(), "{query}: a short page in the middle");
            found.extend(ids.into_iter().map(str::to_owned));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        // By three all are told apart; two of them never meet in this set.
        assert_eq!(found, expected, "{query}");
        if filter != json!({}) {
            filter["dry_run"] = json!(true);
            let count = operator.post("/internal/dlq/purge", &filter).await;
            assert_eq!(count["matched"], json!(expected.len()), "{filter}");
        }
    }
    let (_, first, _) = command(&app, "dlq list --limit 2 --queue generation.probe --code A").await;
    let line = format!(
        "dlq list --limit 2 --queue generation.probe --code A --cursor {}",
        first["next_cursor"].as_str().unwrap()
    );
    let (_, second, _) = command(&app, &line).await;
    let both: BTreeSet<_> = ids(&first).into_iter().chain(ids(&second)).collect();
    assert_eq!(both.len(), 4);
    let api = operator.get("/internal/dlq?limit=4&queue=generation.probe&code=A").await;
    assert_eq!(ids(&api).into_iter().collect::<BTreeSet<_>>(), both);
}

/// What every session of the operators has set, as far as plans depend on it.
const SESSION: &str = "SET ROLE app_operator; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off;
    SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off";

const FILL: &str = "INSERT INTO queue.dead_letters (account_id, id, queue, type, payload, priority, attempts, max_attempts,
                                                reason, created_at, died_at)
    SELECT md5((n % 7)::text)::uuid, md5('letter' || n)::uuid,
           (ARRAY['billing.credit_grant', 'generation.probe', 'webhook.delivery', 'generation.create'])[1 + n % 4],
           'odd', '{}', 5, 1, 5, jsonb_build_object('code', (ARRAY['A', 'B', 'C'])[1 + n % 3], 'message', 'm'), now(),
           '2026-01-01Z'::timestamptz + n * interval '1 second'
    FROM generate_series(1, 20000) AS n";

/// Every statement of the store that holds these words, as it is sent.
fn statements(words: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tollgate-store/.sqlx");
    let answers =
        std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let queries = answers.map(|answer| {
        serde_json::from_slice::<Value>(&answer).unwrap()["query"].as_str().unwrap().to_owned()
    });
    queries.filter(|query| query.contains(words)).collect()
}

/// The statement's plan: each node that looks for letters, or for the jobs behind them.
async fn looks(conn: &mut sqlx::PgConnection, query: &str, analyze: bool, arguments: &[&str]) -> Vec<Value> {
    let options = if analyze { "ANALYZE, FORMAT JSON" } else { "FORMAT JSON" };
    let sql = format!(
        "PREPARE look AS {query}; EXPLAIN ({options}) EXECUTE look({}); DEALLOCATE look",
        arguments.join(", ")
    );
    let plan = explained(conn, &sql).await;
    let mut nodes = vec![plan[0][0]["Plan"].clone()];
    let mut looks = Vec::new();
    while let Some(mut node) = nodes.pop() {
        nodes.extend(node["Plans"].take().as_array_mut().into_iter().flat_map(std::mem::take));
        let looked_for = ["dead_letters", "jobs"].iter().any(|name| node["Relation Name"] == *name);
        if looked_for && node["Node Type"] != "ModifyTable" {
            looks.push(node);
        }
    }
    assert!(!looks.is_empty(), "{query}\n{plan:#?}");
    looks
}

/// Which index a statement is made for.
fn index_for(query: &str) -> &'static str {
    match (query.contains("d.account_id = $"), query.contains("d.code = $")) {
        (false, false) => "dead_letters_by_queue",
        (false, true) => "dead_letters_by_code",
        (true, false) => "dead_letters_by_account",
        (true, true) => "dead_letters_by_account_code",
    }
}

#[tokio::test]
async fn every_look_at_the_letters_is_a_walk_along_an_index_no_further_than_asked() {
    let db = TestDb::new().await;
    let owner = db.owner().await;
    sqlx::raw_sql(FILL).execute(&owner).await.unwrap();
    sqlx::raw_sql("ANALYZE queue.dead_letters").execute(&owner).await.unwrap();
    let mut conn = owner.acquire().await.unwrap();
    sqlx::raw_sql(SESSION).execute(&mut *conn).await.unwrap();

    let queues = "'{billing.credit_grant,generation.probe,webhook.delivery,generation.create}'";
    let all = statements("queue.dead_letters d WHERE d.queue");
    assert_eq!(all.len(), 12);
    for query in all {
        let counts = query.contains("count(*)");
        let mut arguments = if counts {
            vec![queues, "'2026-01-01T01:00:00Z'", "'2026-01-01T02:00:00Z'"]
        } else if query.contains("FOR UPDATE") {
            vec![
                "'webhook.delivery'",
                "'2026-01-01T01:00:00Z'",
                "'00000000-0000-0000-0000-000000000000'",
                "NULL",
                "10",
            ]
        } else {
            vec![queues, "NULL", "'ffffffff-ffff-ffff-ffff-ffffffffffff'", "NULL", "10"]
        };
        arguments.extend(query.contains("d.account_id = $").then_some("md5('3')::uuid"));
        arguments.extend(query.contains("d.code = $").then_some("'B'"));
        // An hour of letters, at most, where all are counted; else a page from each queue.
        let most = if counts { 3600.0 } else { 10.0 };
        for look in looks(&mut conn, &query, true, &arguments).await {
            assert_eq!(look["Index Name"], index_for(&query), "{query}\n{look:#}");
            assert!(look["Index Cond"].as_str().unwrap().contains("died_at"), "{query}\n{look:#}");
            assert!(look["Filter"].is_null(), "{query}\n{look:#}");
            let read = look["Actual Rows"].as_f64().unwrap();
            assert!(read <= most && look["Rows Removed by Filter"].is_null(), "{query}\n{look:#}");
        }
    }
}

/// A plan is made once a session, of whatever the table is then; it must be no other for an empty one, or for one whose
/// statistics are of a time when it was.
#[tokio::test]
async fn the_walks_are_the_same_whatever_there_was_when_they_were_planned() {
    let db = TestDb::new().await;
    let owner = db.owner().await;
    for prepare in ["SELECT", "VACUUM ANALYZE queue.dead_letters", FILL, "ANALYZE queue.dead_letters"] {
        sqlx::raw_sql(prepare).execute(&owner).await.unwrap();
        let mut conn = owner.acquire().await.unwrap();
        sqlx::raw_sql(SESSION).execute(&mut *conn).await.unwrap();
        let mut checked = 0;
        let reopens = statements("SET status = 'queued', attempts = 0");
        for query in statements("queue.dead_letters").into_iter().chain(reopens) {
            // What puts letters there looks at none; retention has a test of its own.
            if query.contains("INSERT INTO queue.dead_letters") || query.contains("DELETE FROM app.jobs") {
                continue;
            }
            let arguments = vec!["NULL"; (1..=9).filter(|n| query.contains(&format!("${n}"))).count()];
            for look in looks(&mut conn, &query, false, &arguments).await {
                let what = format!("{prepare}: {query}\n{look:#}");
                if look["Node Type"] == "Tid Scan" {
                    continue;
                }
                let condition = look["Index Cond"].as_str().unwrap_or_else(|| panic!("{what}"));
                if query.contains("queue.dead_letters d WHERE d.queue") {
                    assert_eq!(look["Index Name"], index_for(&query), "{what}");
                    assert!(condition.contains("died_at"), "{what}");
                } else {
                    let led =
                        look["Index Name"] == "dead_letters_by_id" || condition.contains("(account_id = ");
                    assert!(led && condition.contains("(id = ") && look["Filter"].is_null(), "{what}");
                }
            }
            checked += 1;
        }
        assert_eq!(checked, 19);
        sqlx::raw_sql("RESET ALL; RESET ROLE").execute(&mut *conn).await.unwrap();
    }
}

/// The plan among what these statements answer.
async fn explained(conn: &mut sqlx::PgConnection, sql: &str) -> Vec<Value> {
    use sqlx::Row as _;
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(conn).await;
    let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error}"));
    rows.iter()
        .map(|row| serde_json::from_str(&row.try_get_unchecked::<String, _>(0).unwrap()).unwrap())
        .collect()
}
