//! The statements themselves, as an API, a worker and an operator use them; and what they left behind.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde_json::{Map, json};
use sqlx::PgPool;
use tollgate_domain::ids::new_id;
use tollgate_domain::{Answer, Database, KeyHashing, Once, Role, accounts, jobs, keys};
use tollgate_model::account::AccountId;
use tollgate_model::audit::Actor;
use tollgate_model::credits::{Balance, EntryReason};
use tollgate_model::generation::{Endpoint, GenerationRequest, Message, Role as Speaker};
use tollgate_model::job::JobError;
use tollgate_model::key::Scope;
use tollgate_model::pricing::{Quote, Rates};
use tollgate_model::submission::AcceptedJob;
use tollgate_store as store;
use tollgate_store::{NewJob, SubmitTerms, Submitted, TenantTx};
use tollgate_testkit::{TestDb, wrong_in_the_books};
use uuid::Uuid;

use super::oracle::{Oracle, State, Told};
use super::{ACCOUNTS, New, Op, ROOM};

/// For somebody else to be done with a row.
const PATIENCE: Duration = Duration::from_secs(5);
const TERMS: SubmitTerms =
    SubmitTerms { ttl: Duration::from_hours(1), max_queued: ROOM, keep: Duration::from_hours(1) };

/// An account, its key, and one that is revoked.
struct Holder {
    account: AccountId,
    key: Uuid,
    revoked: Uuid,
}

pub(super) struct Engine {
    owner: PgPool,
    api: Database,
    operator: Database,
    api_pool: PgPool,
    worker_pool: PgPool,
    operator_pool: PgPool,
    holders: Vec<Holder>,
    /// The jobs, in the oracle's order; and what was answered for each.
    ids: Vec<(Uuid, Vec<u8>)>,
}

type Done = Result<(), String>;

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

fn same<T: PartialEq + fmt::Debug>(what: &str, engine: &T, oracle: &T) -> Done {
    if engine == oracle { Ok(()) } else { Err(format!("{what}: {engine:?}, the oracle says {oracle:?}")) }
}

/// A submission that holds so much, ready to be stored.
pub(crate) fn new_job(account: AccountId, key: Uuid, hold: i64) -> NewJob {
    let id = new_id();
    let request = GenerationRequest {
        request_id: id,
        endpoint: Endpoint::ChatCompletions,
        model: "m".into(),
        messages: vec![Message { role: Speaker::User, content: "a".into() }],
        temperature: None,
        max_tokens: None,
        seed: None,
        size: None,
        params: Map::new(),
        timeout: Duration::from_secs(1),
    };
    let job = AcceptedJob {
        job_type: "text".into(),
        priority: 5,
        max_attempts: 5,
        scheduled_at: None,
        request,
        metadata: Map::new(),
    };
    let quote = Quote { rates: Rates::default(), estimate: hold };
    let (response, location) = (json!({"job_id": id}).to_string().into_bytes(), format!("/v1/jobs/{id}"));
    NewJob { account, id, key, entry: new_id(), job, quote, once: None, response, location }
}

impl Engine {
    pub(super) async fn start() -> Self {
        let db = TestDb::new().await;
        let connect = async |role| Database::connect(&db.role_url(role), role, 2, true).await.unwrap();
        let pool = async |role| store::connect(&db.role_url(role), role, 2, true).await.unwrap();
        let operator = connect(Role::Operator).await;
        let mut holders = Vec::new();
        for _ in 0..ACCOUNTS {
            let account = accounts::create(&operator, "model", 0).await.unwrap();
            let mut ids = Vec::new();
            let new = keys::NewKey { name: "model", scopes: &[Scope::JobsWrite], ..keys::NewKey::default() };
            for _ in 0..2 {
                ids.push(
                    keys::create(&operator, account, Actor::Shell, KeyHashing::default(), new)
                        .await
                        .unwrap()
                        .0
                        .id,
                );
            }
            keys::revoke(&operator, account, Actor::Shell, ids[1]).await.unwrap();
            holders.push(Holder { account, key: ids[0], revoked: ids[1] });
        }
        Self {
            owner: db.owner().await,
            api: connect(Role::Api).await,
            operator,
            api_pool: pool(Role::Api).await,
            worker_pool: pool(Role::Worker).await,
            operator_pool: pool(Role::Operator).await,
            holders,
            ids: Vec::new(),
        }
    }

    /// Accounts without a job, a credit or an entry.
    pub(super) async fn reset(&mut self) {
        let sql =
            "TRUNCATE app.jobs, app.job_events, app.job_results, app.credits_ledger, app.idempotency_keys,
                            queue.tasks, queue.lane_counts CASCADE;
                   UPDATE app.credit_balances SET posted = 0, held = 0, owed = 0";
        sqlx::raw_sql(sql).execute(&self.owner).await.unwrap();
        self.ids = Vec::new();
    }

    fn pick(&self, pick: usize) -> Option<usize> {
        (!self.ids.is_empty()).then(|| self.ids.len() - 1 - pick % self.ids.len())
    }

    /// Does it, and lets the oracle do it; what both return must be the same.
    pub(super) async fn step(&mut self, oracle: &mut Oracle, op: Op) -> Done {
        match op {
            Op::Submit { account, batch } => self.submit(oracle, account, batch).await,
            Op::Succeed { pick, cost } => {
                let Some(nr) = self.pick(pick) else { return Ok(()) };
                let mut tx = self.working(oracle, nr).await?;
                store::delete_task(&mut tx, self.ids[nr].0).await.map_err(text)?;
                let done =
                    store::mark_succeeded(&mut tx, self.ids[nr].0, new_id(), cost).await.map_err(text)?;
                tx.commit().await.map_err(text)?;
                same("succeeded", &done, &oracle.succeed(nr, cost))
            }
            Op::Fail { picks } => {
                let Some(first) = picks.first().and_then(|pick| self.pick(*pick)) else { return Ok(()) };
                // Of one account, as a sweep does it; some of them twice, some of them ended.
                let of = oracle.jobs[first].account;
                let picked: Vec<usize> = picks.iter().filter_map(|pick| self.pick(*pick)).collect();
                let nrs: Vec<usize> =
                    picked.into_iter().filter(|nr| oracle.jobs[*nr].account == of).collect();
                let mut ids: Vec<Uuid> = nrs.iter().map(|nr| self.ids[*nr].0).collect();
                ids.sort_unstable();
                ids.dedup();
                let entries: Vec<Uuid> = ids.iter().map(|_| new_id()).collect();
                let error = JobError { code: "X".into(), message: "x".into() };
                let mut tx = self.working(oracle, first).await?;
                for id in &ids {
                    store::delete_task(&mut tx, *id).await.map_err(text)?;
                }
                let failed = store::mark_failed(&mut tx, &ids, &error).await.map_err(text)?;
                // Asked twice, it is done once.
                for entries in [&entries, &ids.iter().map(|_| new_id()).collect()] {
                    store::refund(&mut tx, &ids, entries).await.map_err(text)?;
                }
                tx.commit().await.map_err(text)?;
                let expected = nrs.into_iter().filter(|nr| oracle.end(*nr, State::Failed)).count();
                same("failed", &usize::try_from(failed).unwrap_or(0), &expected)
            }
            Op::Cancel { pick } => {
                let Some(nr) = self.pick(pick) else { return Ok(()) };
                let account = self.holders[oracle.jobs[nr].account].account;
                let answered =
                    jobs::cancel(&self.api, account, self.ids[nr].0, None, |_| Ok(Answer::new(200, &())?))
                        .await;
                let ended = matches!(oracle.jobs[nr].state, State::Succeeded | State::Failed);
                oracle.end(nr, State::Cancelled);
                same("refused to cancel", &answered.is_err(), &ended)
            }
            Op::Redrive { pick } => {
                let Some(nr) = self.pick(pick) else { return Ok(()) };
                let account = self.holders[oracle.jobs[nr].account].account;
                let mut tx = TenantTx::begin(&self.operator_pool, account).await.map_err(text)?;
                let open = store::reopen_failed(&mut tx, self.ids[nr].0, new_id()).await.map_err(text)?;
                tx.commit().await.map_err(text)?;
                same("redriven", &open, &oracle.redrive(nr))
            }
            Op::Grant { account, credits } => {
                oracle.grant(account, credits);
                let expected = balance(oracle, account);
                let account = self.holders[account].account;
                let found = if credits > 0 {
                    accounts::grant(&self.operator, account, credits, "model").await.map_err(text)?
                } else {
                    let mut tx = TenantTx::begin(&self.operator_pool, account).await.map_err(text)?;
                    let reason = EntryReason::Stripe;
                    let after = store::grant(&mut tx, new_id(), credits, reason, None).await.map_err(text)?;
                    tx.commit().await.map_err(text)?;
                    after.ok_or("no such account")?
                };
                same("granted", &found, &expected)
            }
            Op::Forget { account } => {
                let sql = "UPDATE app.idempotency_keys SET expires_at = now() WHERE account_id = $1";
                let expired = sqlx::query(sql).bind(self.holders[account].account.0);
                expired.execute(&self.owner).await.map_err(text)?;
                oracle.answers.retain(|(of, _), _| *of != account);
                Ok(())
            }
        }
    }

    async fn working(&self, oracle: &Oracle, nr: usize) -> Result<TenantTx, String> {
        let account = self.holders[oracle.jobs[nr].account].account;
        TenantTx::begin(&self.worker_pool, account).await.map_err(text)
    }

    async fn submit(&mut self, oracle: &mut Oracle, account: usize, mut batch: Vec<New>) -> Done {
        // Whoever puts a batch together sees to its order, and that no key is in it twice.
        let mut seen = BTreeSet::new();
        batch.sort_by_key(|new| new.key);
        batch.retain(|new| new.key.is_none_or(|key| seen.insert(key)));
        let holder = &self.holders[account];
        let new: Vec<NewJob> = batch
            .iter()
            .map(|new| {
                let key = if new.revoked { holder.revoked } else { holder.key };
                let once = new.key.map(|key| Once {
                    method: "POST",
                    route: "/v1/jobs/generations".into(),
                    key: key.to_string(),
                    fingerprint: [new.body; 32],
                });
                NewJob { once, ..new_job(holder.account, key, new.hold) }
            })
            .collect();
        let answered = store::submit(&self.api_pool, &TERMS, PATIENCE, &new).await.map_err(text)?;
        let told = oracle.submit(account, &batch);
        self.ids.extend(
            new.iter()
                .zip(&told)
                .filter(|(_, told)| **told == Told::Accepted)
                .map(|(n, _)| (n.id, n.response.clone())),
        );
        let expected: Vec<Submitted> = told
            .into_iter()
            .map(|told| match told {
                Told::Accepted => Submitted::Accepted,
                Told::Replayed(nr) => Submitted::Replayed {
                    response: self.ids[nr].1.clone(),
                    location: Some(format!("/v1/jobs/{}", self.ids[nr].0)),
                },
                Told::Conflict => Submitted::Conflict,
                Told::Unauthorized => Submitted::Unauthorized,
                Told::Full => Submitted::Full,
                Told::Short(balance) => Submitted::Short { balance },
            })
            .collect();
        same("told", &answered, &expected)
    }

    pub(super) async fn compare(&self, oracle: &Oracle) -> Done {
        for (nr, holder) in self.holders.iter().enumerate() {
            let mut tx = TenantTx::begin(&self.api_pool, holder.account).await.map_err(text)?;
            let found = store::balance(&mut tx).await.map_err(text)?;
            tx.commit().await.map_err(text)?;
            same("balance", &found, &Some(balance(oracle, nr)))?;
        }
        let sql = "SELECT id, status, credits_held, credits_charged FROM app.jobs ORDER BY id";
        let found: Vec<(Uuid, String, i64, i64)> =
            sqlx::query_as(sql).fetch_all(&self.owner).await.map_err(text)?;
        let mut expected: Vec<_> = oracle
            .jobs
            .iter()
            .zip(&self.ids)
            .map(|(job, (id, _))| {
                let status = match job.state {
                    State::Open => "queued",
                    State::Succeeded => "succeeded",
                    State::Failed => "failed",
                    State::Cancelled => "cancelled",
                };
                (*id, status.to_owned(), if job.state == State::Open { job.hold } else { 0 }, job.charged)
            })
            .collect();
        expected.sort_unstable();
        same("jobs", &found, &expected)?;
        let sql = "SELECT count(*) FROM app.idempotency_keys WHERE expires_at > now()";
        let answers: i64 = sqlx::query_scalar(sql).fetch_one(&self.owner).await.map_err(text)?;
        same("answers", &usize::try_from(answers).unwrap_or(0), &oracle.answers.len())?;
        let wrong = wrong_in_the_books(&self.owner).await;
        if wrong.is_empty() { Ok(()) } else { Err(format!("the books are wrong: {wrong:?}")) }
    }
}

fn balance(oracle: &Oracle, account: usize) -> Balance {
    let (purse, held) = (oracle.purses[account], oracle.held(account));
    Balance::new(purse.free + held, held, purse.owed)
}
