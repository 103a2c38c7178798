//! PostgreSQL ends the connection at every statement boundary of a submission and of a cancellation, one after the other.
//! Each time there is nothing, and whoever asks again with the same key has it done once.
//!
//! [`Cuts`] counts the boundaries that are passed, and ends the backend at the one that is asked for: before and after each
//! statement of `app.submit`, and before and after each table that a statement writes. Which these are nobody has to name:
//! the next one is tried until there is none.

use std::collections::BTreeSet;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::JoinSet;
use tollgate_testkit::TestApp;

use crate::idempotency_client::{BINARY, Reply, Till, job, open, priced, same, stored};
use crate::watched::SUBMIT;

/// Boundaries that are counted, in a database of the test's own.
pub(crate) struct Cuts(PgPool);

impl Cuts {
    /// Around every table that money or jobs are written to.
    pub(crate) async fn plant(owner: &PgPool) -> Self {
        let cuts = Self(owner.clone());
        cuts.run(
            "CREATE SCHEMA cuts;
             GRANT USAGE ON SCHEMA cuts TO PUBLIC;
             CREATE TABLE cuts.armed (at bigint NOT NULL);
             CREATE SEQUENCE cuts.passed;
             CREATE FUNCTION cuts.pass() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
             BEGIN
                 -- A sequence is not rolled back with whoever is cut off.
                 IF EXISTS (SELECT FROM cuts.armed WHERE at = nextval('cuts.passed')) THEN
                     PERFORM pg_terminate_backend(pg_backend_pid());
                     PERFORM pg_sleep(10);
                 END IF;
                 RETURN false;
             END $$;
             CREATE FUNCTION cuts.pass_by() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM cuts.pass(); RETURN NULL; END $$;
             DO $$ DECLARE written regclass; moment text; BEGIN
                 FOR written IN
                     SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                     WHERE c.relkind = 'r' AND n.nspname IN ('app', 'queue') AND c.relname <> 'workers'
                 LOOP
                     FOREACH moment IN ARRAY ARRAY['BEFORE', 'AFTER'] LOOP
                         EXECUTE format('CREATE TRIGGER cut_%s %1$s INSERT OR UPDATE OR DELETE ON %s
                                         FOR EACH STATEMENT EXECUTE FUNCTION cuts.pass_by()', moment, written);
                     END LOOP;
                 END LOOP;
             END $$",
        )
        .await;
        cuts
    }

    /// Between every two statements of a function, too.
    async fn within(&self, function: &str) {
        let sql = format!("SELECT pg_get_functiondef('{function}'::regproc)");
        let whole: String = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.0).await.unwrap();
        // A condition, because a statement of its own would change what FOUND says of the one before it.
        let cut = "IF cuts.pass() THEN NULL; END IF;";
        let mut begun = false;
        let mut cuts = 0;
        let lines: Vec<String> = whole
            .lines()
            .map(|line| {
                let ends = line == "BEGIN" || begun && line.ends_with(';') && !line.contains("--");
                begun |= line == "BEGIN";
                cuts += usize::from(ends);
                if ends { format!("{line} {cut}") } else { line.to_owned() }
            })
            .collect();
        assert!(cuts > 30, "{function} has {cuts} statements");
        self.run(&lines.join("\n")).await;
    }

    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&self.0)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The next who comes to the boundary of this number, counted from here, is cut off.
    pub(crate) async fn cut_at(&self, at: u32) {
        self.run(&format!("ALTER SEQUENCE cuts.passed RESTART; INSERT INTO cuts.armed VALUES ({at})")).await;
    }

    /// Nobody is cut off any more. `false`: nobody has been, there are fewer boundaries.
    pub(crate) async fn mend(&self) -> bool {
        let sql = "SELECT is_called AND last_value >= (SELECT at FROM cuts.armed) FROM cuts.passed";
        let cut = sqlx::query_scalar(sql).fetch_one(&self.0).await.unwrap();
        self.run("DELETE FROM cuts.armed").await;
        cut
    }
}

/// Checks how somebody who was cut off is answered, or whoever was not.
fn checked(cut: bool, reply: &Reply, status: u16) {
    if cut {
        reply.refused(503, "unavailable");
    } else {
        assert_eq!(reply.status, status, "{reply:?}");
    }
}

async fn start() -> (TestApp, Cuts) {
    let app = TestApp::start(BINARY, priced(0, &[])).await;
    let cuts = Cuts::plant(&app.owner).await;
    cuts.within("app.submit").await;
    (app, cuts)
}

#[tokio::test]
async fn a_submission_cut_off_anywhere_leaves_nothing_and_is_done_once_when_asked_again() {
    let (app, cuts) = start().await;
    let (_, till) = open(&app, 1_000_000).await;
    let mut at = 0;
    loop {
        at += 1;
        let key = format!("{at}");
        let asked = job(&key, 7);
        // Every third time, the key was used before, and what was answered has expired: it is taken over.
        let expired = at % 3 == 0;
        if expired {
            till.submit(&key, &job("something else", 1)).await.job();
            app.change("UPDATE app.idempotency_keys SET expires_at = now() WHERE expires_at > now() + interval '23 h'")
                .await;
        }
        let before = stored(&app).await;
        let balance = till.balance().await;
        cuts.cut_at(at).await;
        let first = till.submit(&key, &asked).await;
        let cut = cuts.mend().await;
        checked(cut, &first, 202);
        if cut {
            assert_eq!(stored(&app).await, before, "cut off at {at}");
            assert_eq!(till.balance().await, balance, "cut off at {at}");
        }
        let again = till.insist(SUBMIT, &key, &asked).await;
        again.job();
        assert_eq!(again.replayed(), !cut, "cut off at {at}");
        same(&again, &till.submit(&key, &asked).await);
        let mut after = before.map(|rows| rows + 1);
        after[4] -= i64::from(expired);
        assert_eq!(stored(&app).await, after, "cut off at {at}");
        assert_eq!(till.balance().await.held, balance.held + 7);
        if !cut {
            break;
        }
    }
    println!("{at} boundaries");
    assert!(at > 35, "only {at} boundaries");
    app.assert_books().await;
    app.assert_consistent().await;
}

/// Several at once go together in one statement: who is cut off, all of them are. Some of them the balance does not pay for,
/// which is another way through the same statement; and what it lets go of, it must let go of wholly.
#[tokio::test]
async fn submissions_that_are_cut_off_together_are_each_done_once() {
    let (app, cuts) = start().await;
    let mut boundaries = 0;
    // With several in it, a batch has many boundaries, and no two runs pass them in the same order: a part is enough.
    for at in (1..).step_by(11) {
        // An account of its own, so that there is a first row of everything, and 30 credits for three of five.
        let (account, till) = open(&app, 30).await;
        cuts.cut_at(at).await;
        let mut all = JoinSet::new();
        for nr in 0..6 {
            let till = till.clone();
            // The last one is the first one once more.
            let key = format!("{}", nr % 5);
            all.spawn(async move { (till.insist(SUBMIT, &key, &job(&key, 10)).await, key) });
        }
        let replies = all.join_all().await;
        let cut = cuts.mend().await;
        let jobs: BTreeSet<_> =
            replies.iter().filter(|(reply, _)| reply.status == 202).map(|(reply, _)| reply.job()).collect();
        assert_eq!(jobs.len(), 3, "cut off at {at}: {replies:?}");
        for (reply, key) in &replies {
            if reply.status == 202 {
                same(reply, &till.submit(key, &job(key, 10)).await);
            } else {
                reply.is_final().refused(402, "insufficient_credits");
            }
        }
        let mine = |table: &str| format!("SELECT count(*) FROM {table} WHERE account_id = '{account}'");
        for table in ["app.jobs", "app.job_events", "queue.tasks", "app.idempotency_keys"] {
            assert_eq!(app.number(&mine(table)).await, 3, "cut off at {at}: {table}");
        }
        assert_eq!(till.balance().await.held, 30);
        app.assert_books().await;
        boundaries = at;
        if !cut {
            break;
        }
    }
    println!("{boundaries} boundaries");
    assert!(boundaries > 60, "only {boundaries} boundaries");
    app.assert_consistent().await;
}

#[tokio::test]
async fn a_cancellation_cut_off_anywhere_changes_nothing_and_is_done_once_when_asked_again() {
    let (app, cuts) = start().await;
    let till = Till::of(&app);
    let mut at = 0;
    loop {
        at += 1;
        let id = till.submit_plain(&job("a", 7)).await.job();
        let state = format!(
            "SELECT concat_ws(' ', j.status, j.credits_held, j.last_event, b.posted, b.held,
                        (SELECT count(*) FROM queue.tasks t WHERE t.id = j.id),
                        (SELECT count(*) FROM app.credits_ledger l WHERE l.job_id = j.id),
                        (SELECT count(*) FROM app.idempotency_keys), (SELECT sum(queued) FROM queue.lane_counts))
             FROM app.jobs j JOIN app.credit_balances b USING (account_id) WHERE j.id = '{id}'"
        );
        let look = async || -> String {
            sqlx::query_scalar(AssertSqlSafe(state.as_str())).fetch_one(&app.owner).await.unwrap()
        };
        let before = look().await;
        let key = format!("{at}");
        cuts.cut_at(at).await;
        let first = till.cancel(id, &key).await;
        let cut = cuts.mend().await;
        checked(cut, &first, 200);
        if cut {
            assert_eq!(look().await, before, "cut off at {at}");
        }
        let again = till.insist(&format!("/v1/jobs/{id}/cancel"), &key, &Value::Null).await;
        assert_eq!((again.status, again.json()["status"].as_str()), (200, Some("cancelled")), "{again:?}");
        let after = look().await;
        same(&again, &till.cancel(id, &key).await);
        assert_eq!(look().await, after);
        assert_eq!(app.history(id).await, ["queued", "cancelled"], "cut off at {at}");
        app.assert_books().await;
        if !cut {
            break;
        }
    }
    println!("{at} boundaries");
    assert!(at > 20, "only {at} boundaries");
    app.assert_consistent().await;
}
