//! The ledger: entries are only ever added, each balances by itself, and each account sees its own (SPEC C1).

use std::collections::BTreeSet;

use reqwest::Method;
use sqlx::{AssertSqlSafe, PgPool};
use tollgate_domain::reconcile::{self, Drift, Progress};
use tollgate_domain::{Database, Role, accounts};
use tollgate_model::key::Scope;
use tollgate_testkit::TestApp;
use uuid::Uuid;

use crate::idempotency_client::{BINARY, Till, job, open, operator, priced};

const ROLES: [Role; 3] = [Role::Api, Role::Worker, Role::Operator];

/// Says it as a role, in an account's name, for good; what PostgreSQL answers: the rows touched, or its code.
async fn say(pool: &PgPool, account: &str, sql: &str) -> Result<u64, String> {
    let mut tx = pool.begin().await.unwrap();
    let set = format!("SET LOCAL app.account_id = '{account}'");
    sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut *tx).await.unwrap();
    match sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await {
        Ok(done) => {
            tx.commit().await.unwrap();
            Ok(done.rows_affected())
        }
        Err(sqlx::Error::Database(error)) => Err(error.code().unwrap().into_owned()),
        Err(error) => panic!("{sql}: {error}"),
    }
}

async fn all_of_it(app: &TestApp) -> Vec<String> {
    let sql = "SELECT to_jsonb(l)::text FROM app.credits_ledger l UNION ALL
               SELECT to_jsonb(b)::text FROM app.credit_balances b UNION ALL
               SELECT to_jsonb(p)::text FROM billing.prices p ORDER BY 1";
    sqlx::query_scalar(sql).fetch_all(&app.owner).await.unwrap()
}

#[tokio::test]
async fn no_role_changes_or_removes_an_entry_and_none_adds_one_that_does_not_balance() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let till = Till::of(&app);
    till.submit_plain(&job("a", 7)).await.job();
    app.change(r#"INSERT INTO billing.prices (price) VALUES ('{"provider": "p"}')"#).await;
    let (account, before) = (app.account.to_string(), all_of_it(&app).await);
    let refused = Err("42501".to_owned());
    for role in ROLES {
        let pool = app.db.pool(&app.db.role_url(role)).await;
        for sql in [
            "UPDATE app.credits_ledger SET delta = delta",
            "UPDATE app.credits_ledger SET delta = 1000, granted = 1000 WHERE reason = 'adjustment'",
            "UPDATE app.credits_ledger SET note = 'another'",
            "UPDATE app.credits_ledger SET created_at = now()",
            "DELETE FROM app.credits_ledger",
            "TRUNCATE app.credits_ledger",
            "ALTER TABLE app.credits_ledger DISABLE ROW LEVEL SECURITY",
            "ALTER TABLE app.credits_ledger DROP CONSTRAINT balanced",
            "DROP TABLE app.credits_ledger",
            "DELETE FROM app.credit_balances",
            "TRUNCATE app.credit_balances",
            "UPDATE app.credit_balances SET account_id = account_id",
            "ALTER TABLE app.credit_balances DROP CONSTRAINT never_below_zero",
            "UPDATE billing.prices SET price = price",
            "DELETE FROM billing.prices",
            "TRUNCATE billing.prices",
        ] {
            let told = say(&pool, &account, sql).await;
            assert_eq!(told, refused, "{role:?}: {sql}");
        }
        // None goes below zero, by whatever it adds, or holds more than there is.
        for sql in [
            "UPDATE app.credit_balances SET posted = -1, held = 0",
            "UPDATE app.credit_balances SET posted = held - 1",
            "UPDATE app.credit_balances SET held = posted + 1",
            "UPDATE app.credit_balances SET held = -1",
            "UPDATE app.credit_balances SET owed = -1",
            "UPDATE app.credit_balances SET owed = 1",
        ] {
            assert_eq!(say(&pool, &account, sql).await, Err("23514".to_owned()), "{role:?}: {sql}");
        }
        for (delta, held, charged, owed, granted, reason) in [
            (1, 0, 0, 0, 0, "adjustment"),
            (0, 0, 0, 0, 0, "adjustment"),
            (10, 0, 0, 0, 9, "adjustment"),
            (10, 0, 0, 1, 10, "stripe"),
            (10, -10, 0, 0, 0, "stripe"),
            (5, 0, 5, 0, 10, "stripe"),
            (-7, 6, 0, 0, 0, "reservation"),
            (7, -7, 0, 0, 0, "reservation"),
            (0, 0, 0, 0, 0, "reservation"),
            (-7, 7, 0, 0, 0, "refund"),
            (7, -6, -1, 0, 0, "refund"),
            (7, 0, 0, 7, 0, "refund"),
            (7, -7, 0, 0, 7, "confirm"),
            (-7, 7, 0, 0, 0, "confirm"),
            (8, -7, -1, 0, 0, "confirm"),
            (-1, -7, 6, -2, 0, "confirm"),
            (-1, -7, 0, -8, 0, "refund"),
            (1, -7, 5, 0, 0, "confirm"),
            (10, 0, 0, 0, 10, "gift"),
            (10, 0, 0, 0, 10, ""),
        ] {
            let sql = format!(
                "INSERT INTO app.credits_ledger (account_id, id, delta, held, charged, owed, granted, reason)
                 VALUES ('{account}', '{}', {delta}, {held}, {charged}, {owed}, {granted}, '{reason}')",
                Uuid::max()
            );
            assert_eq!(say(&pool, &account, &sql).await, Err("23514".to_owned()), "{role:?}: {sql}");
        }
    }
    assert_eq!(all_of_it(&app).await, before);
}

#[tokio::test]
async fn an_account_reads_its_own_ledger_and_no_other() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let till = Till::of(&app);
    let (other_account, other) = open(&app, 77).await;
    for nr in 0..23 {
        till.submit_plain(&job(&format!("{nr}"), 1)).await.job();
    }
    other.submit_plain(&job("other", 7)).await.job();
    accounts::grant(&operator(&app).await, app.account, 5, "a gift").await.unwrap();
    let page = async |till: &Till, query: &str| {
        till.send(till.request(Method::GET, &format!("/v1/credits/ledger{query}"))).await.unwrap()
    };
    // Page by page, of whatever size: each entry once, newest first.
    for limit in [1, 7, 25, 100] {
        let (mut ids, mut query, mut sum) = (Vec::new(), format!("?limit={limit}"), 0);
        loop {
            let found = page(&till, &query).await.json();
            for entry in found["data"].as_array().unwrap() {
                ids.push(entry["id"].as_str().unwrap().to_owned());
                sum += entry["delta"].as_i64().unwrap();
            }
            let Some(cursor) = found["next_cursor"].as_str() else { break };
            query = format!("?limit={limit}&cursor={cursor}");
        }
        assert_eq!(ids.len(), 25, "pages of {limit}");
        assert!(ids.is_sorted_by(|a, b| a > b), "pages of {limit}: {ids:?}");
        assert_eq!(sum, till.balance().await.balance);
    }
    let newest = page(&till, "?limit=1").await.json();
    let entry = &newest["data"][0];
    assert_eq!((entry["reason"].as_str(), entry["note"].as_str()), (Some("adjustment"), Some("a gift")));
    let mut members: Vec<&str> = entry.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(
        members,
        ["charged", "created_at", "delta", "granted", "held", "id", "job_id", "note", "owed", "reason"]
    );

    // The other's are its own: no page, no cursor and no job of the first one shows anything of it.
    let own = page(&other, "").await.json();
    let own: BTreeSet<&str> =
        own["data"].as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap()).collect();
    assert_eq!(own.len(), 2);
    let cursor = newest["next_cursor"].as_str().unwrap();
    let seen = page(&other, &format!("?cursor={cursor}")).await.json();
    assert!(
        seen["data"].as_array().unwrap().iter().all(|e| own.contains(e["id"].as_str().unwrap())),
        "{seen}"
    );
    assert_eq!((other.balance().await.balance, other.balance().await.held), (70, 7));
    let held: i64 = till.balance().await.held;
    assert_eq!(held, 23);
    let pool = app.db.pool(&app.db.role_url(Role::Api)).await;
    let foreign =
        format!("UPDATE app.credit_balances SET posted = 0, held = 0 WHERE account_id = '{other_account}'");
    assert_eq!(say(&pool, &app.account.to_string(), &foreign).await, Ok(0));
    let foreign = format!(
        "INSERT INTO app.credits_ledger (account_id, id, delta, granted, reason)
         VALUES ('{other_account}', '{}', 1, 1, 'adjustment')",
        Uuid::max()
    );
    assert_eq!(say(&pool, &app.account.to_string(), &foreign).await, Err("42501".to_owned()));

    for query in ["?limit=0", "?limit=101", "?cursor=junk", "?reason=refund", "?cursor="] {
        page(&till, query).await.refused(400, "invalid_request");
    }
    for path in ["/v1/credits", "/v1/credits/ledger"] {
        let scopes: Vec<Scope> =
            Scope::ALL.into_iter().filter(|scope| *scope != Scope::BillingRead).collect();
        let (_, blind) = app.key_with(&scopes).await;
        let (_, seeing) = app.key_with(&[Scope::BillingRead]).await;
        let ask = async |key: &str| {
            let till = till.with_key(key);
            till.send(till.request(Method::GET, path)).await.unwrap()
        };
        let detail = ask(&blind).await.refused(403, "forbidden_scope");
        assert!(detail.contains("`billing:read`"), "{detail}");
        assert_eq!(ask(&seeing).await.status, 200);
        ask("sk_live_nothing").await.refused(401, "unauthorized");
    }
    app.assert_books().await;
}

/// What a round of the reconciler says, and what one of everything does: of balance, held and owed.
#[tokio::test]
async fn books_that_do_not_add_up_are_found_out() {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let (account, till) = open(&app, 70).await;
    till.submit_plain(&job("a", 7)).await.job();
    // An entry of long ago is added up once.
    app.change(&format!(
        "INSERT INTO app.credits_ledger (account_id, id, delta, granted, reason)
             VALUES ('{account}', '01900000-0000-7000-8000-000000000000', 5, 5, 'adjustment');
         UPDATE app.credit_balances SET posted = posted + 5 WHERE account_id = '{account}'"
    ))
    .await;
    let url = app.db.role_url(Role::Worker);
    let worker = Database::connect(&url, Role::Worker, 1, true).await.unwrap();
    let operator = operator(&app).await;
    let mut progress = Progress::default();
    for (planted, balance, held, owed) in [
        ("posted = posted", 0, 0, 0),
        ("posted = posted + 2", 2, 0, 0),
        ("posted = posted + 2, held = held + 3", -1, 3, 0),
        ("posted = held, owed = 4", -68, 0, 4),
        ("posted = 75, held = 7, owed = 0", 0, 0, 0),
    ] {
        let sql = format!("UPDATE app.credit_balances SET {planted} WHERE account_id = '{account}'");
        app.change(&sql).await;
        reconcile::round(&worker, &mut progress).await.unwrap();
        let all = [balance, held, owed].into_iter().map(i64::unsigned_abs).sum::<u64>();
        assert_eq!(progress.drift(), all, "{planted}");
        let expected = Drift { account_id: account, balance, held, owed };
        let expected = Some(expected).filter(|_| all > 0).into_iter().collect::<Vec<_>>();
        assert_eq!(reconcile::all(&operator, None).await.unwrap(), (2, expected), "{planted}");
        app.change(&format!(
            "UPDATE app.credit_balances SET posted = 75, held = 7, owed = 0 WHERE account_id = '{account}'"
        ))
        .await;
    }
    assert_eq!(app.number("SELECT count(*) FROM app.ledger_sums WHERE delta = 5").await, 1);
    // What a job holds that has ended, nothing will ever free.
    app.change(
        "UPDATE app.jobs SET status = 'failed', finished_at = now(), error_code = 'x', error_message = 'x'",
    )
    .await;
    let left = Drift { account_id: account, balance: 0, held: 7, owed: 0 };
    assert_eq!(reconcile::all(&operator, None).await.unwrap(), (2, vec![left]));
}
