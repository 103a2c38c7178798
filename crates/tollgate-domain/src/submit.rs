//! Submit: key, hold, job, first event, task and answer in one commit. After it the job cannot be lost; before it nothing
//! exists.
//!
//! Those that come while others are under way wait here, and go together: one statement and one commit for all of them. An
//! account's balance is one row, on which its submissions would take turns, and a commit costs more than a submission.

mod batches;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use tollgate_model::account::AccountId;
use tollgate_model::idempotency::Once;
use tollgate_model::pricing::Quote;
use tollgate_model::submission::{AcceptedJob, Submission, SubmissionRules};
use tollgate_store::{NewJob, SubmitTerms, Submitted};
use uuid::Uuid;

use self::batches::Batches;
use crate::admission::Place;
use crate::ids::new_id;
use crate::once::{self, Answer, KEEP};
use crate::prices::Prices;
use crate::{Admission, Database, Error, Result, Wakers};

/// What stands between a submission and the queue; made once, at start.
#[derive(Debug)]
pub struct Entrance {
    rules: SubmissionRules,
    prices: Prices,
    admission: Admission,
    batches: Batches,
}

impl Entrance {
    /// `rules`: what submissions are measured against. `ttl`: a job not finished within this time fails. `admission`: how
    /// much may wait. `wakers` wake a worker afterwards.
    pub fn new(
        db: Database,
        rules: SubmissionRules,
        prices: Prices,
        ttl: Duration,
        admission: Admission,
        wakers: Wakers,
    ) -> Self {
        let terms = SubmitTerms { ttl, max_queued: admission.per_account(), keep: KEEP };
        Self { rules, prices, admission, batches: Batches::new(db, terms, wakers) }
    }

    /// Accepts a job of the account that holds the key, and wakes a worker for it: `202 {"job_id"}`.
    pub async fn submit(
        &self,
        db: &Database,
        (account, key): (AccountId, Uuid),
        submission: Submission,
        once: Option<Once>,
        now: DateTime<Utc>,
    ) -> Result<Answer> {
        let id = new_id();
        let (job, quote, place) = match self.admit(db, submission, id, now).await {
            Ok(admitted) => admitted,
            // What was accepted once is answered so, whatever has changed since.
            Err(refused) => {
                return once::before(db, account, key, once.as_ref()).await?.ok_or(refused);
            }
        };
        let mut answer = Answer::new(202, &json!({ "job_id": id }))?;
        let location = format!("/v1/jobs/{id}");
        answer.location = Some(location.clone());
        let hold = quote.estimate;
        let new = NewJob {
            account,
            id,
            key,
            entry: new_id(),
            job,
            quote,
            once,
            response: answer.body.clone(),
            location,
        };
        match self.batches.submit(new).await? {
            Submitted::Accepted => {
                place.taken();
                Ok(answer)
            }
            Submitted::Replayed { response, location } => {
                Ok(Answer { status: answer.status, body: response, location, replayed: true })
            }
            Submitted::Conflict => Err(Error::IdempotencyConflict),
            Submitted::InFlight => Err(Error::IdempotencyInFlight),
            Submitted::Unauthorized => Err(Error::KeyGone),
            Submitted::Full => Err(self.admission.account_is_full()),
            Submitted::Capped => Err(Error::DailyLimit { needed: hold }),
            Submitted::Short { balance } => Err(Error::InsufficientCredits { needed: hold, balance }),
        }
    }

    /// Whether there may be such a job, what it costs, and whether there is room for one.
    async fn admit(
        &self,
        db: &Database,
        submission: Submission,
        id: Uuid,
        now: DateTime<Utc>,
    ) -> Result<(AcceptedJob, Quote, Place<'_>)> {
        let job = submission.accept(&self.rules, id, now)?;
        let quote = self.prices.quote(&job, now)?;
        let place = self.admission.place(db).await?;
        Ok((job, quote, place))
    }
}
