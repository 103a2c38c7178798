//! Dead letters, as operators handle them: list, show, redrive, purge. And how a death is made known.

use chrono::{DateTime, Datelike as _, Utc};
use serde_json::json;
use tollgate_model::account::AccountId;
use tollgate_model::audit::{Action, Actor};
use tollgate_model::dead_letter::{DeadLetter, DeadLetterFilter, DeadLetterPlace, Purged, Redriven};
use tollgate_model::job::JobError;
use tollgate_model::queue::{QueueName, TimesToLive};
use tollgate_model::stripe::inbox::EventState;
use tollgate_store as store;
use tollgate_store::{Alone, LockedLetter, SystemTx, TenantTx, Tx};
use uuid::Uuid;

use crate::ids::new_id;
use crate::waker::wake_workers;
use crate::{Database, Error, Result, audit, runs};

/// Letters that one transaction handles; a longer list takes several.
const BATCH: usize = 500;

/// The longest code that is asked for; none that is stored is nearly as long.
const LONGEST_CODE: usize = 200;

/// Which letters to redrive or to purge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// These.
    Ids(Vec<Uuid>),
    /// Those that a filter lets through.
    Matching(DeadLetterFilter),
}

impl Selection {
    /// Reads what was asked for: ids, or a filter, or, in so many words, all.
    pub fn new(ids: Option<Vec<Uuid>>, filter: DeadLetterFilter, all: bool) -> Result<Self> {
        let invalid = |field, problem: &str| Err(Error::Invalid { field, problem: problem.into() });
        match ids {
            Some(_) if all || !filter.is_empty() => invalid("ids", "goes with neither a filter nor `all`"),
            Some(ids) if ids.is_empty() => invalid("ids", "must name at least one dead letter"),
            Some(mut ids) => {
                ids.sort_unstable();
                ids.dedup();
                Ok(Self::Ids(ids))
            }
            None if all && !filter.is_empty() => invalid("all", "does not go with a filter"),
            None if !all && filter.is_empty() => invalid(
                "all",
                "must be true to take every dead letter there is: there are neither ids nor a filter",
            ),
            None => {
                check(&filter)?;
                Ok(Self::Matching(filter))
            }
        }
    }
}

/// What PostgreSQL could not even be asked.
fn check(filter: &DeadLetterFilter) -> Result<()> {
    let invalid = |field, problem: &str| Err(Error::Invalid { field, problem: problem.into() });
    if filter.code.as_ref().is_some_and(|code| code.len() > LONGEST_CODE || code.contains('\0')) {
        return invalid("code", "is not the code of a reason");
    }
    for (field, time) in [("since", filter.since), ("until", filter.until)] {
        if time.is_some_and(is_far_off) {
            return invalid(field, "must be a time of the years 1 to 9999");
        }
    }
    Ok(())
}

fn is_far_off(time: DateTime<Utc>) -> bool {
    !(1..=9999).contains(&time.year())
}

/// Letters that the filter lets through, newest first: up to `limit` of those older than the one at `before`.
pub async fn list(
    db: &Database,
    filter: &DeadLetterFilter,
    before: Option<DeadLetterPlace>,
    limit: i64,
) -> Result<Vec<DeadLetter>> {
    check(filter)?;
    if before.is_some_and(|place| is_far_off(place.died_at)) {
        return Err(Error::Invalid { field: "cursor", problem: "is not one that was given out".into() });
    }
    let mut alone = Alone::acquire(db.pool()).await?;
    Ok(store::dead_letters_page(&mut alone, filter, before, limit).await?)
}

/// One letter.
pub async fn get(db: &Database, id: Uuid) -> Result<DeadLetter> {
    let mut alone = Alone::acquire(db.pool()).await?;
    store::dead_letter(&mut alone, id).await?.ok_or(Error::NotFound("dead letter"))
}

/// How many letters are selected: what a redrive or a purge would find now.
pub async fn count(db: &Database, selection: &Selection) -> Result<u64> {
    let mut alone = Alone::acquire(db.pool()).await?;
    match selection {
        Selection::Matching(filter) => Ok(store::count_dead_letters(&mut alone, filter).await?),
        Selection::Ids(ids) => match (store::count_dead_letters_by_id(&mut alone, ids).await?, ids.len()) {
            (0, 1) => Err(Error::NotFound("dead letter")),
            (found, _) => Ok(found),
        },
    }
}

/// Puts letters back into their queues as new tasks, and their jobs back to where they began: batch by batch, each in one
/// commit, after which idle workers are woken. `go_on` is told how far it has come after each, and may end it.
///
/// A letter whose job is gone, or is not failed any more, or is not paid for by its account's balance, stays and is
/// counted as skipped. Others that redrive at the same time take other letters: each becomes a task once. An error leaves
/// the batches before it done.
pub async fn redrive(
    db: &Database,
    ttls: &TimesToLive,
    actor: Actor,
    selection: &Selection,
    mut go_on: impl FnMut(&Redriven) -> bool + Send,
) -> Result<Redriven> {
    let mut walk = Walk::begin(db, selection).await?;
    let mut sum = Redriven { matched: walk.known, ..Redriven::default() };
    while let Some(Batch { tx, asked, letters }) = walk.next(db).await? {
        let redriven = redrive_batch(db, ttls, actor, tx, letters).await?;
        if walk.counts {
            sum.matched += asked;
        }
        sum.redriven += redriven;
        sum.skipped += asked.saturating_sub(redriven);
        if !go_on(&sum) {
            sum.more = true;
            break;
        }
    }
    Ok(sum)
}

async fn redrive_batch(
    db: &Database,
    ttls: &TimesToLive,
    actor: Actor,
    tx: SystemTx,
    mut letters: Vec<LockedLetter>,
) -> Result<u64> {
    // The order in which rows of several lanes are touched, everywhere.
    letters.sort_unstable_by_key(|letter| (letter.account, letter.queue.as_str(), letter.place));
    let Some(first) = letters.first() else {
        tx.commit().await?;
        return Ok(0);
    };
    let mut queues = Vec::new();
    let mut redriven = 0;
    let mut tx = tx.enter(first.account).await?;
    for letters in letters.chunk_by(|a, b| (a.account, a.queue) == (b.account, b.queue)) {
        let LockedLetter { account, queue, .. } = letters[0];
        if tx.account() != account {
            tx = tx.enter(account).await?;
        }
        // The order of locks, everywhere: counts, job, balance.
        store::hold_counts(&mut tx, account, queue).await?;
        let mut open = Vec::with_capacity(letters.len());
        for letter in letters {
            // Other queues' tasks stand for nothing that has a status of its own.
            if !queue.is_generation() || store::reopen_failed(&mut tx, letter.place.id, new_id()).await? {
                open.push(letter);
            }
        }
        let tasks = store::redrive(&mut tx, open, ttls.of(queue)).await?;
        if tasks > 0 {
            redriven += tasks;
            queues.push(queue);
        }
    }
    record(&mut tx, actor, Action::LettersRedriven, &letters, redriven).await?;
    tx.commit().await?;
    queues.sort_unstable();
    queues.dedup();
    for queue in queues {
        wake_workers(db, queue).await;
    }
    Ok(redriven)
}

/// Deletes letters for good; their jobs stay failed. `go_on` as for [`redrive`].
pub async fn purge(
    db: &Database,
    actor: Actor,
    selection: &Selection,
    mut go_on: impl FnMut(&Purged) -> bool + Send,
) -> Result<Purged> {
    let mut walk = Walk::begin(db, selection).await?;
    let mut sum = Purged { matched: walk.known, ..Purged::default() };
    while let Some(Batch { mut tx, asked, letters }) = walk.next(db).await? {
        let purged = store::delete_dead_letters(&mut tx, &letters).await?;
        record(&mut tx, actor, Action::LettersPurged, &letters, purged).await?;
        tx.commit().await?;
        if walk.counts {
            sum.matched += asked;
        }
        sum.purged += purged;
        if !go_on(&sum) {
            sum.more = true;
            break;
        }
    }
    Ok(sum)
}

/// Adds to the audit log what a batch did: one entry for all its letters.
async fn record(
    tx: &mut impl Tx,
    actor: Actor,
    action: Action,
    letters: &[LockedLetter],
    done: u64,
) -> Result<()> {
    if done == 0 {
        return Ok(());
    }
    let object = match letters {
        [letter] => format!("dead-letter:{}", letter.place.id),
        _ => "dead-letter:*".to_owned(),
    };
    audit::record_for_all(tx, actor, action, &object, &json!({ "letters": done })).await
}

/// Letters that a transaction has locked.
struct Batch {
    tx: SystemTx,
    /// How many were to be had at most.
    asked: u64,
    letters: Vec<LockedLetter>,
}

/// The way through a selection, batch by batch.
struct Walk<'a> {
    /// How many of the letters that were named there are.
    known: u64,
    /// Or else they are counted as they are met.
    counts: bool,
    rest: Rest<'a>,
}

enum Rest<'a> {
    Ids(std::slice::Chunks<'a, Uuid>),
    Matching { filter: DeadLetterFilter, queues: Vec<QueueName>, after: Option<DeadLetterPlace> },
}

impl<'a> Walk<'a> {
    async fn begin(db: &Database, selection: &'a Selection) -> Result<Self> {
        match selection {
            Selection::Ids(ids) => Ok(Self {
                known: count(db, selection).await?,
                counts: false,
                rest: Rest::Ids(ids.chunks(BATCH)),
            }),
            Selection::Matching(filter) => {
                // What dies from here on is not met, or jobs that fail again at once would be redriven for ever.
                let now = Alone::acquire(db.pool()).await?.now().await?;
                let until = Some(filter.until.map_or(now, |until| until.min(now)));
                let filter = DeadLetterFilter { until, ..filter.clone() };
                let mut queues = filter.queues();
                queues.reverse();
                Ok(Self { known: 0, counts: true, rest: Rest::Matching { filter, queues, after: None } })
            }
        }
    }

    async fn next(&mut self, db: &Database) -> Result<Option<Batch>> {
        match &mut self.rest {
            Rest::Ids(chunks) => {
                let Some(ids) = chunks.next() else { return Ok(None) };
                let mut tx = SystemTx::begin(db.pool()).await?;
                let letters = store::lock_dead_letters_by_id(&mut tx, ids).await?;
                Ok(Some(Batch { tx, asked: ids.len() as u64, letters }))
            }
            Rest::Matching { filter, queues, after } => {
                while let Some(&queue) = queues.last() {
                    let mut tx = SystemTx::begin(db.pool()).await?;
                    let limit = i64::try_from(BATCH).unwrap_or(i64::MAX);
                    let letters = store::lock_dead_letters(&mut tx, queue, filter, *after, limit).await?;
                    if let Some(last) = letters.last() {
                        *after = Some(last.place);
                        return Ok(Some(Batch { tx, asked: letters.len() as u64, letters }));
                    }
                    tx.commit().await?;
                    *after = None;
                    queues.pop();
                }
                Ok(None)
            }
        }
    }
}

/// Marks what one account's dead tasks of a queue stand for, in the transaction that buries them: whoever looks at that, and
/// not at the dead letters, must see that nothing more comes of it by itself.
pub(crate) async fn mark(tx: &mut TenantTx, queue: QueueName, ids: &[Uuid], reason: &JobError) -> Result<()> {
    match queue {
        QueueName::GenerationCreate | QueueName::GenerationImage => runs::fail(tx, ids, reason).await?,
        QueueName::BillingCreditGrant => {
            for id in ids {
                store::mark_event(tx, *id, EventState::NeedsAttention, Some(&reason.message)).await?;
            }
        }
        // They stand for nothing that has a status of its own.
        QueueName::GenerationProbe | QueueName::WebhookDelivery => {}
    }
    Ok(())
}

/// Makes a death known, after the commit that brought it about (SPEC A6).
pub(crate) fn died(queue: QueueName, account: AccountId, id: Uuid, reason: &str) {
    let queue = queue.as_str();
    metrics::counter!("tollgate_dead_letters_total", "queue" => queue, "reason" => reason.to_owned())
        .increment(1);
    tracing::warn!(jobId = %id, reason, queue, account_id = %account, "queue.deadletter");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(code: &str) -> DeadLetterFilter {
        DeadLetterFilter { code: Some(code.into()), ..DeadLetterFilter::default() }
    }

    #[test]
    fn everything_is_taken_only_by_those_who_say_so() {
        let id = Uuid::from_u128(1);
        let none = DeadLetterFilter::default;
        let selected = |ids, filter, all| Selection::new(ids, filter, all).map_err(|error| error.to_string());
        assert_eq!(selected(Some(vec![id, id]), none(), false), Ok(Selection::Ids(vec![id])));
        assert_eq!(selected(None, none(), true), Ok(Selection::Matching(none())));
        assert_eq!(selected(None, filter("X"), false), Ok(Selection::Matching(filter("X"))));
        for (refused, said) in [
            (selected(None, none(), false), "`all` must be true"),
            (selected(None, filter("X"), true), "`all` does not go with a filter"),
            (selected(Some(vec![id]), filter("X"), false), "`ids` goes with neither"),
            (selected(Some(vec![id]), none(), true), "`ids` goes with neither"),
            (selected(Some(Vec::new()), none(), false), "`ids` must name at least one"),
            (selected(Some(Vec::new()), none(), true), "`ids` goes with neither"),
            (selected(None, filter("a\0b"), false), "`code` is not"),
        ] {
            assert!(refused.as_ref().is_err_and(|error| error.starts_with(said)), "{said}: {refused:?}");
        }
        for time in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
            let filter = DeadLetterFilter { since: Some(time), ..none() };
            assert!(selected(None, filter, false).is_err_and(|error| error.starts_with("`since` must be")));
        }
    }
}
